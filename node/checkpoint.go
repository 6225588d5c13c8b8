package node

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"slices"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/node/handover"
	"meshnode/node/runner"
	"meshnode/node/wasi"
	"meshnode/pager"
)

// A checkpoint is a whole worker in a file: four letters and a version, then
// records, each a CBOR map with its length in front (mesh.WriteMessage), in this
// order; image.cddl is the schema.
//
//	image    as it travels, without what concerns other workers and clients
//	module   as its author made it, in parts
//	memory   runs of pages; what is left out is zero
//	blocks   of its files
//	end      the SHA-256 of all bytes before this record
//
// A file can be imported any number of times, anywhere, so what is made of it is
// always another worker: with an id of its own, in epoch 1, without the queues
// and cursors of the first one's senders. That no worker runs twice, and no
// message arrives twice, stays true of each of them.
const (
	checkpointMagic   = "MNCK"
	checkpointVersion = 1
	// maxRecord bounds a record, in bytes.
	maxRecord = maxImage + 1<<10
	// recordBytes is how much of a module or of a memory is in one record.
	recordBytes = 256 << 10
)

// A record is one part of a checkpoint: one of its fields is set, or Page and
// Memory.
type record struct {
	Image  []byte   `cbor:"1,keyasint,omitempty"`
	Module []byte   `cbor:"2,keyasint,omitempty"`
	Page   uint32   `cbor:"3,keyasint,omitempty"` // the first of Memory
	Memory []byte   `cbor:"4,keyasint,omitempty"`
	Blocks [][]byte `cbor:"5,keyasint,omitempty"`
	End    []byte   `cbor:"6,keyasint,omitempty"`
}

// kind is a record's place in the order, or 0 if it is none.
func (r *record) kind() int {
	kind, set := 0, 0
	for i, there := range []bool{len(r.Image) > 0, len(r.Module) > 0, len(r.Memory) > 0, len(r.Blocks) > 0, len(r.End) > 0} {
		if there {
			kind, set = i+1, set+1
		}
	}
	if set != 1 || r.Page > 0 && kind != recordMemory {
		return 0
	}
	return kind
}

const (
	recordImage = iota + 1
	recordModule
	recordMemory
	recordBlocks
	recordEnd
)

// A checkpointWriter writes a checkpoint.
type checkpointWriter struct {
	w   *bufio.Writer
	all hash.Hash
}

func newCheckpointWriter(w io.Writer) (*checkpointWriter, error) {
	c := &checkpointWriter{w: bufio.NewWriterSize(w, recordBytes), all: sha256.New()}
	_, err := io.MultiWriter(c.w, c.all).Write(append([]byte(checkpointMagic), checkpointVersion))
	return c, err
}

func (c *checkpointWriter) put(r record) error {
	return mesh.WriteMessage(io.MultiWriter(c.w, c.all), r)
}

func (c *checkpointWriter) module(r io.Reader) error {
	buf := make([]byte, recordBytes)
	for {
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			if err := c.put(record{Module: buf[:n]}); err != nil {
				return err
			}
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// memory writes the pages that are not zero.
func (c *checkpointWriter) memory(m []byte) error {
	const most = recordBytes / pager.PageSize
	pages := len(m) / pager.PageSize
	page := func(i int) []byte { return m[i*pager.PageSize:][:pager.PageSize] }
	for i := 0; i < pages; i++ {
		first := i
		for i < pages && i-first < most && !pager.IsZero(page(i)) {
			i++
		}
		if i == first {
			continue
		}
		if err := c.put(record{Page: uint32(first), Memory: m[first*pager.PageSize : i*pager.PageSize]}); err != nil {
			return err
		}
		i-- // the loop's step goes on with the page that ended the run
	}
	return nil
}

func (c *checkpointWriter) end() error {
	if err := c.put(record{End: c.all.Sum(nil)}); err != nil {
		return err
	}
	return c.w.Flush()
}

// A checkpointReader reads a checkpoint and looks whether it can be one.
type checkpointReader struct {
	r    io.Reader // which all sees
	all  hash.Hash
	at   int // kind of the last record
	next uint64
}

func newCheckpointReader(r io.Reader) (*checkpointReader, error) {
	c := &checkpointReader{all: sha256.New()}
	c.r = io.TeeReader(r, c.all)
	head := make([]byte, len(checkpointMagic)+1)
	if _, err := io.ReadFull(c.r, head); err != nil || string(head[:len(checkpointMagic)]) != checkpointMagic {
		return nil, errors.New("not a checkpoint: `meshnode worker export` makes one")
	}
	if v := head[len(checkpointMagic)]; v != checkpointVersion {
		return nil, fmt.Errorf("checkpoint of version %d: this node reads version %d", v, checkpointVersion)
	}
	return c, nil
}

// read returns the next record. The last one is the end, and is right.
func (c *checkpointReader) read() (record, error) {
	sum := c.all.Sum(nil)
	var r record
	if err := mesh.ReadMessage(c.r, maxRecord, &r); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = errors.New("it ends in its middle")
		}
		return r, fmt.Errorf("checkpoint: %w", err)
	}
	kind := r.kind()
	if kind < max(c.at, recordImage) || kind == recordImage && c.at == recordImage || c.at < recordModule && kind > c.at+1 {
		return r, fmt.Errorf("checkpoint: a record of kind %d behind one of kind %d", kind, c.at)
	}
	c.at = kind
	switch kind {
	case recordMemory:
		n := uint64(len(r.Memory))
		if n%pager.PageSize != 0 || uint64(r.Page) < c.next {
			return r, fmt.Errorf("checkpoint: %d bytes of memory at page %d, where page %d was due", n, r.Page, c.next)
		}
		c.next = uint64(r.Page) + n/pager.PageSize
	case recordBlocks:
		if len(r.Blocks) > runner.MaxBlocks {
			return r, fmt.Errorf("checkpoint: %d blocks in a record, at most %d", len(r.Blocks), runner.MaxBlocks)
		}
	case recordEnd:
		if !bytes.Equal(r.End, sum) {
			return r, errors.New("checkpoint: damaged: it does not have the content that was written")
		}
	}
	return r, nil
}

// checkpoint writes all of a worker to out, during which it stands still.
func (n *Node) checkpoint(ctx context.Context, w *worker, out io.Writer) error {
	if err := n.settleArrival(ctx, w); err != nil {
		return err
	}
	module, err := os.Open(n.modules.path(w.Module))
	if err != nil {
		return err
	}
	defer module.Close()
	return w.command(ctx, func() error {
		// A request to the runner cannot be given up without ending it.
		ctx := context.WithoutCancel(ctx)
		w.timers.halt(time.Now())
		defer w.runAgain()
		if w.console != nil {
			if err := w.runner.Halt(ctx); err != nil {
				return err
			}
		}
		img, err := w.image(ctx)
		if err != nil {
			return err
		}
		return n.writeCheckpoint(ctx, w, img, module, out)
	})
}

func (n *Node) writeCheckpoint(ctx context.Context, w *worker, img image, module io.Reader, out io.Writer) error {
	size := int(img.State.Pages) * wasmPage
	img.Senders, img.Outbox, img.Paused, img.App, img.Origin = nil, nil, false, appState{}, origin{}
	img.Layout = pager.Layout{Pages: size / pager.PageSize}.Append(nil)
	head, err := img.encode()
	if err != nil {
		return err
	}
	c, err := newCheckpointWriter(out)
	if err != nil {
		return err
	}
	if err := c.put(record{Image: head}); err != nil {
		return err
	}
	if err := c.module(module); err != nil {
		return err
	}
	if err := c.memory(w.runner.Region().Data[:size]); err != nil {
		return err
	}
	for at := (wasi.Cursor{}); w.runner.HasFiles(); {
		names, next, err := w.runner.Stored(ctx, at)
		if err != nil {
			return err
		}
		if len(names) == 0 {
			break
		}
		blocks, err := w.runner.Blocks(ctx, names)
		if err != nil {
			return err
		}
		at = next
		blocks = slices.DeleteFunc(blocks, func(b []byte) bool { return len(b) == 0 }) // lost before
		if len(blocks) == 0 {
			continue
		}
		if err := c.put(record{Blocks: blocks}); err != nil {
			return err
		}
	}
	return c.end()
}

// restore makes a worker of a checkpoint. name is its name; empty is the one that
// the first one had.
func (n *Node) restore(ctx context.Context, name string, in io.Reader) (*worker, error) {
	c, err := newCheckpointReader(bufio.NewReaderSize(in, recordBytes))
	if err != nil {
		return nil, err
	}
	first, err := c.read()
	if err != nil {
		return nil, err
	}
	img, err := parseImage(first.Image)
	if err != nil {
		return nil, err
	}
	s := img.Spec
	if name != "" {
		s.Name = name
	}
	s.ID, s.Created = newID(), time.Now().UnixNano()
	if err := n.free(s.Name); err != nil {
		return nil, err
	}
	if len(img.Senders)+len(img.Outbox) > 0 || img.Layout == nil {
		return nil, errors.New("checkpoint: an image with other workers' messages")
	}
	parts := moduleParts{c: c}
	h, size, err := n.modules.put(&parts, &s.Module)
	if err != nil {
		return nil, err
	}
	if h != s.Module || size != s.ModuleBytes {
		return nil, fmt.Errorf("checkpoint: a module of %d bytes, want %d", size, s.ModuleBytes)
	}
	if err := n.reserve(s.claim()); err != nil {
		return nil, err
	}
	defer n.unreserve(s.claim())
	logs := newLogRing()
	r, err := n.startRunner(ctx, s, "", 1, logs)
	if err != nil {
		return nil, err
	}
	w, err := n.restoreInto(ctx, r, s, img, &parts, logs)
	if err != nil {
		r.Close()
		return nil, err
	}
	n.list(w)
	n.log.Info("worker imported", "worker", s.ID, "name", s.Name, "module", s.Module, "was", img.Spec.ID)
	return w, nil
}

// restoreInto fills a runner with what follows the module.
func (n *Node) restoreInto(ctx context.Context, r *runner.Runner, s spec, img image, rest *moduleParts, logs *logRing) (*worker, error) {
	if err := r.Clear(ctx); err != nil {
		return nil, err
	}
	memory := r.Region().Data[:int(img.State.Pages)*wasmPage]
	for rec, err := rest.after, error(nil); ; rec, err = rest.c.read() {
		if err != nil {
			return nil, err
		}
		switch rec.kind() {
		case recordMemory:
			at := uint64(rec.Page) * pager.PageSize
			if at > uint64(len(memory)) || uint64(len(rec.Memory)) > uint64(len(memory))-at {
				return nil, fmt.Errorf("checkpoint: %d bytes at page %d of a memory of %d", len(rec.Memory), rec.Page, len(memory))
			}
			copy(memory[at:], rec.Memory)
			continue
		case recordBlocks:
			if err := r.PutBlocks(ctx, rec.Blocks); err != nil {
				return nil, err
			}
			continue
		}
		break // the end
	}
	if err := r.Restore(ctx, img.State); err != nil {
		return nil, err
	}
	if r.HasFiles() {
		// The worker had lost them before: what it could not read there it cannot
		// read here either.
		lost, err := giveUpMissing(ctx, r)
		if err != nil {
			return nil, err
		}
		if lost > 0 {
			text := fmt.Sprintf("%d blocks of the worker's files are not in the checkpoint: reading them is an I/O error", lost)
			logs.add(control.LogLine{Node: n.name(), Epoch: 1, Level: "warn", Source: "node", Text: text})
			n.log.Warn("blocks of files are lost", "worker", s.ID, "blocks", lost)
		}
	}
	w := n.newWorker(s, 1, r, logs)
	w.events, w.memory = img.Events, uint64(len(memory))
	if err := w.timers.restore(img.Timers); err != nil {
		return nil, err
	}
	if err := w.restoreConsole(img); err != nil {
		return nil, err
	}
	w.look()
	// On disk before anyone hears of it, as with create.
	return w, n.journal.Put(handover.Record{
		Worker: s.ID, Epoch: 1, Own: handover.OwnRunning, Updated: time.Now().Unix(), Meta: s.meta(""),
	})
}

// giveUpMissing gives up what a restored worker's files lack and returns how many
// blocks that were.
func giveUpMissing(ctx context.Context, r *runner.Runner) (lost int, err error) {
	for {
		names, _, err := r.Missing(ctx)
		if err != nil || len(names) == 0 {
			return lost, err
		}
		if err := r.GiveUp(ctx, names); err != nil {
			return lost, err
		}
		lost += len(names)
	}
}

// moduleParts yields the module of a checkpoint and keeps the record behind it.
type moduleParts struct {
	c     *checkpointReader
	part  []byte
	after record
	ended bool
}

func (p *moduleParts) Read(b []byte) (int, error) {
	for len(p.part) == 0 {
		if p.ended {
			return 0, io.EOF
		}
		rec, err := p.c.read()
		if err != nil {
			return 0, err
		}
		if rec.kind() == recordModule {
			p.part = rec.Module
			continue
		}
		p.after, p.ended = rec, true
	}
	k := copy(b, p.part)
	p.part = p.part[k:]
	return k, nil
}

// free says whether a worker can have a name.
func (n *Node) free(name string) error {
	if e, err := n.dir.find(name); err == nil && !ended(e.State) {
		return &control.Error{
			Code:    control.CodeConflict,
			Message: fmt.Sprintf("a worker called %s runs at node %s already", name, n.nameOf(e.Home)),
			Hint:    "choose another name with --name, or stop that worker",
		}
	}
	return nil
}

func (b backend) Export(ctx context.Context, ref string) (io.ReadCloser, error) {
	w, err := b.here(ref)
	if err != nil {
		return nil, err
	}
	// The worker stands still while it is copied, and must not wait for whoever
	// reads.
	f, err := os.CreateTemp(b.n.modules.dir, incoming+"*")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	err = b.n.checkpoint(ctx, w, f)
	if errors.Is(err, errGone) {
		err = &control.Error{Code: control.CodeConflict, Message: fmt.Sprintf("worker %s is not here any more", w.Name)}
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (b backend) Import(ctx context.Context, name string, file io.Reader) (control.Worker, error) {
	w, err := b.n.restore(ctx, name, file)
	if err != nil {
		return control.Worker{}, startError(err)
	}
	return w.describe(), nil
}
