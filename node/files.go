package node

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"meshnode/mesh"
	"meshnode/node/runner"
	"meshnode/node/wasi"
	"meshnode/pager"
)

// The files of a command worker are blocks in its runner, named as pages are
// (package wasi). The destination of a move fetches those it lacks over two
// streams that it dials:
//
//	stored    the names of the blocks that there are, a part at a time
//	blocks    blocks by name, as pages by name are (package pager)
//
// While the worker runs at the source they come ahead, as its memory does in
// rounds. Its image brings the names of what it has in the end, and the rest
// comes after the commit while it runs, what it waits for first; where its
// memory is all there before it resumes, so are its files.
const (
	protoStored = "stored"
	protoBlocks = "blocks"
)

// storedAsk asks for the names of a worker's blocks from a place on, storedAre
// answers; no names are the end of the list.
type storedAsk struct {
	Worker string      `cbor:"1,keyasint"`
	At     wasi.Cursor `cbor:"2,keyasint"`
}

type storedAre struct {
	Names []byte      `cbor:"1,keyasint,omitempty"` // one after the other
	Next  wasi.Cursor `cbor:"2,keyasint"`
}

const (
	maxStoredAsk = 128 // bytes
	maxStoredAre = runner.MaxBlocks*len(wasi.Hash{}) + 64
	// aheadPause is how long a destination that has all blocks waits until it
	// looks for more.
	aheadPause = 100 * time.Millisecond
	// blocksIdle is how long a stream of either kind may be silent.
	blocksIdle = time.Minute
)

// leaving returns the move that takes a worker to a peer, or nil.
func (n *Node) leaving(worker string, to mesh.NodeID) *moveOut {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, m := range n.outgoing {
		if m.spec.ID == worker && m.to == to && m.w != nil && m.w.runner.HasFiles() {
			return m
		}
	}
	return nil
}

// serveStored tells a destination which blocks there are.
func (n *Node) serveStored(_ context.Context, s *mesh.Stream) {
	for {
		if err := s.SetDeadline(time.Now().Add(blocksIdle)); err != nil {
			return
		}
		var ask storedAsk
		if err := mesh.ReadMessage(s, maxStoredAsk, &ask); err != nil {
			return // also at its end
		}
		m := n.leaving(ask.Worker, s.Peer())
		if m == nil {
			return
		}
		// A request to the runner cannot be given up without ending it.
		names, next, err := m.w.runner.Stored(context.WithoutCancel(n.ctx), ask.At)
		if err != nil {
			return
		}
		if len(names) == 0 {
			m.filesAhead.Do(func() { close(m.filesThere) })
		}
		if err := mesh.WriteMessage(s, storedAre{Names: packNames(names), Next: next}); err != nil {
			return
		}
	}
}

// serveBlocks hands blocks to a destination.
func (n *Node) serveBlocks(ctx context.Context, s *mesh.Stream) {
	err := s.SetDeadline(time.Now().Add(blocksIdle))
	var ask storedAsk
	if err == nil {
		err = mesh.ReadMessage(s, maxStoredAsk, &ask)
	}
	if err != nil {
		n.log.Debug("stream of blocks without a worker", "peer", s.Peer(), "error", err)
		return
	}
	m := n.leaving(ask.Worker, s.Peer())
	if m == nil {
		_ = pager.Refuse(s, pager.CodeGone, fmt.Sprintf("node %s does not hold the worker's files (any more)", n.name()))
		return
	}
	share := n.budget.Share(string(s.Peer()), pushWeight)
	defer share.Close()
	limits := pager.NamedLimits{Share: share, Idle: blocksIdle}
	if err := pager.ServeNamed(ctx, s, blocksOf{m}, limits); err != nil {
		n.log.Debug("stream of blocks ended", "worker", ask.Worker, "peer", s.Peer(), "error", err)
	}
}

// blocksOf are the blocks of a worker that is leaving, as pages by name.
type blocksOf struct{ m *moveOut }

func (b blocksOf) Has(h pager.Hash) bool {
	var page [pager.PageSize]byte
	return b.Peek(h, page[:])
}

func (b blocksOf) Peek(h pager.Hash, page []byte) bool {
	got, err := b.m.w.runner.Blocks(context.WithoutCancel(b.m.n.ctx), []wasi.Hash{wasi.Hash(h)})
	if err != nil || len(got[0]) == 0 {
		return false
	}
	clear(page[copy(page, got[0]):])
	b.m.blockBytes.Add(int64(len(page)))
	return true
}

// keepBlocks puts a worker's blocks into the store of pages, as far as there is
// room: the worker may come back.
func (n *Node) keepBlocks(ctx context.Context, r *runner.Runner) error {
	var page [pager.PageSize]byte
	for at := (wasi.Cursor{}); ; {
		names, next, err := r.Stored(ctx, at)
		if err != nil || len(names) == 0 {
			return err
		}
		data, err := r.Blocks(ctx, names)
		if err != nil {
			return err
		}
		for _, b := range data {
			if len(b) > 0 {
				clear(page[copy(page[:], b):])
				n.store.Put(page[:])
			}
		}
		at = next
	}
}

// An arrivingFiles brings the blocks of a worker's files to its runner here.
type arrivingFiles struct {
	n      *Node
	worker string
	from   mesh.NodeID
	runner *runner.Runner
	// bytes counts what has come over the network.
	bytes atomic.Uint64

	mu     sync.Mutex // one goroutine at a time
	at     wasi.Cursor
	stored *mesh.Stream
	blocks *mesh.Stream
	client *pager.NamedClient
	had    map[wasi.Hash]struct{} // of the blocks listed, those that came
}

func newArrivingFiles(n *Node, worker string, from mesh.NodeID, r *runner.Runner) *arrivingFiles {
	return &arrivingFiles{n: n, worker: worker, from: from, runner: r, had: map[wasi.Hash]struct{}{}}
}

// close ends the streams. They are dialled anew when they are needed.
func (f *arrivingFiles) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closeLocked()
}

func (f *arrivingFiles) closeLocked() {
	for _, s := range []*mesh.Stream{f.stored, f.blocks} {
		if s != nil {
			s.Close()
		}
	}
	f.stored, f.blocks, f.client = nil, nil, nil
}

// ahead brings blocks while the worker runs at the source, until ctx ends. An
// error means that the rest comes later.
func (f *arrivingFiles) ahead(ctx context.Context) error {
	t := time.NewTicker(aheadPause)
	defer t.Stop()
	for {
		if err := f.all(ctx); err != nil {
			return err
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// all brings all blocks that there are, once the list says that there are no
// more.
func (f *arrivingFiles) all(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		// The source ends a stream that was silent for blocksIdle, and one that
		// was opened earlier may have been: a new one tells.
		earlier := f.stored != nil || f.client != nil
		more, err := f.nextLocked(ctx)
		if err != nil {
			f.closeLocked()
			if earlier && ctx.Err() == nil && f.runner.Err() == nil {
				continue
			}
			return err
		}
		if !more {
			return nil
		}
	}
}

// nextLocked brings the next part of what is listed. After an error the same
// part is the next once more.
func (f *arrivingFiles) nextLocked(ctx context.Context) (more bool, err error) {
	names, next, err := f.listLocked(ctx)
	if err != nil {
		return false, err
	}
	var want []wasi.Hash
	for _, h := range names {
		if _, there := f.had[h]; !there {
			want = append(want, h)
		}
	}
	// What is gone by now nobody needs.
	if _, err := f.bringLocked(ctx, want); err != nil {
		return false, err
	}
	for _, h := range want {
		f.had[h] = struct{}{}
	}
	f.at = next
	return len(names) > 0, nil
}

// listLocked returns the names of the next part, and the place behind them.
func (f *arrivingFiles) listLocked(ctx context.Context) (names []wasi.Hash, next wasi.Cursor, err error) {
	if f.stored == nil {
		s, err := f.n.mesh.Open(ctx, f.from, protoStored, mesh.Bulk)
		if err != nil {
			return nil, next, err
		}
		f.stored = s
	}
	s := f.stored
	stop := context.AfterFunc(ctx, func() { _ = s.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := mesh.WriteMessage(f.stored, storedAsk{Worker: f.worker, At: f.at}); err != nil {
		return nil, next, err
	}
	var are storedAre
	if err := mesh.ReadMessage(f.stored, maxStoredAre, &are); err != nil {
		return nil, next, err
	}
	names, err = unpackNames(are.Names)
	return names, are.Next, err
}

// hereLocked brings what the store of pages has of some blocks, at most
// runner.MaxBlocks, and returns the names of the others.
func (f *arrivingFiles) hereLocked(ctx context.Context, names []wasi.Hash) (far []wasi.Hash, err error) {
	var here [][]byte
	var page [pager.PageSize]byte
	for _, h := range names {
		if f.n.store.Fetch(pager.Hash(h), page[:]) {
			here = append(here, append([]byte(nil), page[:]...))
		} else {
			far = append(far, h)
		}
	}
	if len(here) > 0 {
		// A request to the runner cannot be given up without ending it.
		err = f.runner.PutBlocks(context.WithoutCancel(ctx), here)
	}
	return far, err
}

// bringLocked brings blocks, at most runner.MaxBlocks, from the store of pages
// or from the source, and returns the names of those that the source has not.
func (f *arrivingFiles) bringLocked(ctx context.Context, names []wasi.Hash) (absent []wasi.Hash, err error) {
	names, err = f.hereLocked(ctx, names)
	if err != nil || len(names) == 0 {
		return nil, err
	}
	far := make([]pager.Hash, len(names))
	for i, h := range names {
		far[i] = pager.Hash(h)
	}
	if f.client == nil {
		s, err := f.n.mesh.Open(ctx, f.from, protoBlocks, mesh.Bulk)
		if err != nil {
			return nil, err
		}
		f.blocks = s
		if err := mesh.WriteMessage(s, storedAsk{Worker: f.worker}); err != nil {
			return nil, err
		}
		f.client = pager.NewNamedClient(s)
	}
	var come [][]byte
	missing, err := f.client.Fetch(ctx, far, func(_ int, b []byte) error {
		f.bytes.Add(uint64(len(b)))
		come = append(come, append([]byte(nil), b...))
		return nil
	})
	if len(come) > 0 { // also of a stream that broke
		if perr := f.runner.PutBlocks(context.WithoutCancel(ctx), come); perr != nil {
			return nil, perr
		}
	}
	for _, i := range missing {
		absent = append(absent, names[i])
	}
	return absent, err
}

// rest brings what the restored worker's files still lack, what it waits for
// first, and returns how many blocks could not be had: the source has not got
// them, or not the worker any more, or has been out of reach for longer than
// patience. Reading them is an error to the worker. The error is that of the
// runner, or of ctx.
func (f *arrivingFiles) rest(ctx context.Context, patience time.Duration) (lost int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.closeLocked()
	whole := context.WithoutCancel(ctx)
	reached, gone := time.Now(), false
	for wait := redialFirst; ; {
		if err := ctx.Err(); err != nil {
			return lost, context.Cause(ctx)
		}
		names, all, err := f.runner.Missing(whole)
		if err != nil || all == 0 {
			return lost, err
		}
		var absent []wasi.Hash
		if gone {
			absent, err = f.hereLocked(ctx, names)
		} else {
			absent, err = f.bringLocked(ctx, names)
		}
		if err == nil {
			reached, wait = time.Now(), redialFirst
		} else {
			f.closeLocked()
			if rerr := f.runner.Err(); rerr != nil {
				return lost, rerr
			}
			if gone = errors.Is(err, pager.ErrGone) || time.Since(reached) > patience; gone {
				continue
			}
			f.n.log.Debug("blocks did not come", "worker", f.worker, "error", err)
			select {
			case <-time.After(wait):
				wait = min(2*wait, redialMost)
			case <-ctx.Done():
			}
		}
		if len(absent) > 0 {
			lost += len(absent)
			if err := f.runner.GiveUp(whole, absent); err != nil {
				return lost, err
			}
		}
	}
}

// How long to wait before a source that could not be reached is dialled again.
const (
	redialFirst = 50 * time.Millisecond
	redialMost  = 2 * time.Second
)

func packNames(names []wasi.Hash) []byte {
	b := make([]byte, 0, len(names)*len(wasi.Hash{}))
	for i := range names {
		b = append(b, names[i][:]...)
	}
	return b
}

// unpackNames is the reverse, for what a peer sent.
func unpackNames(b []byte) ([]wasi.Hash, error) {
	const size = len(wasi.Hash{})
	if len(b)%size != 0 || len(b)/size > runner.MaxBlocks {
		return nil, fmt.Errorf("names of blocks in %d bytes", len(b))
	}
	names := make([]wasi.Hash, len(b)/size)
	for i := range names {
		names[i] = wasi.Hash(b[i*size:])
	}
	return names, nil
}

// claim is how much memory a worker may take, in bytes.
func (s spec) claim() uint64 { return s.MemoryLimit + uint64(s.FilesLimit) }

func (s spec) validateFiles() error {
	switch {
	case s.FilesLimit < 0 || s.FilesLimit > wasi.MaxBytes || s.FilesLimit > math.MaxInt:
		return fmt.Errorf("files of %d bytes: want up to %d", s.FilesLimit, int64(wasi.MaxBytes))
	case s.FilesLimit == 0 && len(s.Dirs) > 0:
		return errors.New("directories without a limit of what may be in them")
	case len(s.Dirs) > maxDirs:
		return fmt.Errorf("%d directories, at most %d", len(s.Dirs), maxDirs)
	}
	for _, d := range s.Dirs {
		if d.Name == "" || len(d.Name) > maxDirName {
			return fmt.Errorf("a directory with a name of %d bytes: want 1 to %d", len(d.Name), maxDirName)
		}
	}
	return nil
}

const (
	maxDirs    = 16
	maxDirName = 255
)
