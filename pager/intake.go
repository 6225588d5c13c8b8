package pager

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// IntakeConfig says whose memory is taken in while it is still written.
type IntakeConfig struct {
	// Worker and Epoch are those of the Rounds.
	Worker string
	Epoch  uint64
	// Region is the memory, all of it: what the worker's memory may grow to.
	// Its content must have been dropped or never written.
	Region Region
	// Store, if not nil, is looked into before pages are asked for; see
	// SinkConfig.
	Store *Store
	// Base is what the memory was when the worker left here, if it had been
	// here and that is known; its pages should be in Store.
	Base *Table
	// Neighbours, if not nil, are asked for what Store has not, before anyone
	// else. Their Run is to be called: names wait for it.
	Neighbours *Neighbours
	// Peers, at most 8, are other nodes that may hold pages of the worker. They
	// are asked, at the same time as the source, for what Store has not.
	Peers []Peer
	// Log is never nil.
	Log *slog.Logger
}

// An Intake takes in what Rounds send, before the worker runs here. Commit ends
// that and makes the Sink that brings what is still missing. All methods are
// safe for concurrent use.
type Intake struct {
	cfg   IntakeConfig
	pages int // what the memory may grow to
	log   *slog.Logger
	ended chan struct{} // closed when Run has returned
	stop  chan struct{} // closed by Commit and Close
	in    atomic.Uint64 // bytes received
	peers *peers

	// mu is held while pages are put in place, so that none is once Commit has
	// decided which count.
	mu sync.Mutex
	// state says of each page absent, lazy or present, as the Sink has it, which
	// takes it over.
	state []uint8
	table *Table
	// aside are the versions of pages that are stale, for the patches that make
	// the last ones of them. At most all that has come is there, and a page is in
	// the worker's memory or here; what is replaced is garbage before it is free.
	aside versions
	page  [PageSize]byte // one on its way there
	over  bool           // Commit or Close was called
	sink  *Sink          // once Commit was called
	link  *intakeLink
	// gather shares out what the source has named, nil without Peers.
	gather *gather
}

// lookTwice makes Sink.Arm check what an Intake left, for tests.
var lookTwice = false

// asideReady is for how many pages memory is made ready before the freeze, 2 MiB:
// what becomes stale last is kept aside while the worker stands still.
const asideReady = 512

// dropPart is how many pages are copied before they are taken out of the memory,
// 1 MiB.
const dropPart = 256

// acksMost is how many frames one acknowledgement covers at most.
const acksMost = 32

// NewIntake makes an Intake. It starts nothing and leaves the memory alone.
func NewIntake(cfg IntakeConfig) (*Intake, error) {
	if cfg.Worker == "" || len(cfg.Worker) > maxWorkerBytes {
		return nil, fmt.Errorf("intake: worker id of %d bytes: want 1 to %d", len(cfg.Worker), maxWorkerBytes)
	}
	if cfg.Log == nil {
		return nil, errors.New("intake: no log")
	}
	if len(cfg.Peers) > maxPeers {
		return nil, fmt.Errorf("intake: %d peers: want at most %d", len(cfg.Peers), maxPeers)
	}
	if err := cfg.Region.validate(int64(len(cfg.Region.Data))); err != nil {
		return nil, fmt.Errorf("intake: %w", err)
	}
	pages := len(cfg.Region.Data) / PageSize
	log := cfg.Log.With("worker", cfg.Worker, "epoch", cfg.Epoch)
	return &Intake{
		cfg: cfg, pages: pages, log: log, peers: &peers{of: cfg.Peers, log: log},
		ended: make(chan struct{}), stop: make(chan struct{}), state: make([]uint8, pages), table: NewTable(pages),
	}, nil
}

// BytesIn is what has come so far, frames included.
func (t *Intake) BytesIn() uint64 { return t.in.Load() }

// An intakeLink is the stream to the Rounds, and later to the Source.
type intakeLink struct {
	io.ReadWriteCloser
	reader *frameReader
	count  atomic.Pointer[atomic.Uint64]
}

// Read counts for whoever has the stream.
func (l *intakeLink) Read(b []byte) (int, error) {
	n, err := l.ReadWriteCloser.Read(b)
	l.count.Load().Add(uint64(n))
	return n, err
}

// SetDeadline is for interrupt.
func (l *intakeLink) SetDeadline(at time.Time) error {
	if s, ok := l.ReadWriteCloser.(interface{ SetDeadline(time.Time) error }); ok {
		return s.SetDeadline(at)
	}
	return l.Close()
}

// SetWriteDeadline bounds the last word.
func (l *intakeLink) SetWriteDeadline(at time.Time) error {
	if s, ok := l.ReadWriteCloser.(interface{ SetWriteDeadline(time.Time) error }); ok {
		return s.SetWriteDeadline(at)
	}
	return nil
}

// Run takes in pages until the Source's memory is frozen, which is nil: the
// stream then waits for Commit. When the stream breaks before that it is opened
// again, until Commit, Close or the end of ctx; what was not acknowledged comes
// again. It is called once.
func (t *Intake) Run(ctx context.Context, dial func(context.Context) (io.ReadWriteCloser, error)) error {
	defer close(t.ended)
	pause := redialFirst
	for {
		before := t.in.Load()
		err := t.connect(ctx, dial)
		if t.in.Load() > before {
			pause = redialFirst
		}
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case fatal(err), t.isOver():
			return err
		}
		t.log.Debug("stream broken", "stream", "rounds", "err", err)
		select {
		case <-time.After(pause):
		case <-t.stop:
			return err // who waits for the rest dials anew
		case <-ctx.Done():
		}
		pause = min(pause*2, redialMost)
	}
}

// overLocked notes that nothing more is put in place.
func (t *Intake) overLocked() {
	if !t.over {
		t.over = true
		close(t.stop)
	}
}

func (t *Intake) isOver() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.over
}

// connect opens a stream and serves it. It returns nil once the far side is
// frozen, and the stream stays open.
func (t *Intake) connect(ctx context.Context, dial func(context.Context) (io.ReadWriteCloser, error)) error {
	dialling, dialled := context.WithCancel(ctx)
	go func() {
		select {
		case <-t.stop:
			dialled()
		case <-dialling.Done():
		}
	}()
	rw, err := dial(dialling)
	dialled()
	if err != nil {
		return fmt.Errorf("dial: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { interrupt(rw) })
	defer stop()
	l := &intakeLink{ReadWriteCloser: rw}
	l.count.Store(&t.in)
	if err = t.serve(l); err == nil && !stop() {
		err = context.Cause(ctx)
	}
	t.mu.Lock()
	if err == nil && t.over && t.sink == nil {
		err = errStopped
	}
	if err == nil {
		t.link = l
	}
	t.mu.Unlock()
	if err != nil {
		_ = rw.Close()
	}
	return err
}

// serve takes frames until the far side is frozen.
func (t *Intake) serve(l *intakeLink) (err error) {
	h := Hello{Worker: t.cfg.Worker, Epoch: t.cfg.Epoch, Pages: t.pages, Rounds: true, Accepts: encodeAll}
	if t.cfg.Store != nil && t.cfg.Store.Len() > 0 || t.cfg.Neighbours != nil || len(t.cfg.Peers) > 0 {
		h.Names = true
		if t.cfg.Base != nil {
			h.Base = t.cfg.Base.Digest()
		}
	}
	if _, err := l.Write(h.Append(nil)); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	t.mu.Lock()
	t.aside.reserve(min(asideReady, t.pages), t.pages)
	t.mu.Unlock()
	allow := []byte{frameWelcome, framePages, frameStale, frameFrozen, frameError}
	if h.Names {
		allow = append(allow, frameNames)
	}
	in := newFrameReader(l, t.pages, allow...)
	in.buffers = make(chan *pageBuffer, bulkBuffers)
	for range bulkBuffers {
		in.buffers <- new(pageBuffer)
	}
	l.reader = in
	var writing sync.Mutex // Lacks may come late, between Acks
	write := func(b []byte) error {
		writing.Lock()
		defer writing.Unlock()
		_, err := l.Write(b)
		return err
	}
	if len(t.cfg.Peers) > 0 {
		defer t.gatherFor(l, write, &err)()
	}
	var out, lacks []byte
	buf := make([]byte, PageSize)
	for count := uint32(0); ; {
		var fr frame
		if fr, err = in.next(); err != nil {
			return ended(err)
		}
		out = out[:0]
		switch fr.kind {
		case frameWelcome:
			continue
		case frameFrozen:
			return nil
		case frameError:
			return &RemoteError{Code: fr.code, Message: fr.message}
		case frameNames:
			var later bool
			if lacks, later, err = t.lacking(&fr, lacks, buf); err == nil && !later {
				out = appendLacks(out, fr.run, lacks)
			}
		case frameStale:
			err = t.forget(fr.runs)
		case framePages:
			err = t.receive(&fr)
			in.putBuffer(fr.data)
		default:
			err = badFrame("frame %#x in rounds", fr.kind)
		}
		if err != nil {
			return err
		}
		count++
		if len(out) == 0 && in.r.Buffered() > 0 && count%acksMost != 0 {
			continue // the next one says so as well
		}
		if err := write(appendAck(out, count)); err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
}

// gatherFor begins to ask Peers for what is named on a stream. What it returns
// ends that, after an error without waiting for the stream.
func (t *Intake) gatherFor(l *intakeLink, write func([]byte) error, failed *error) (end func()) {
	g := newGather(t.peers, t.pages, l.ReadWriteCloser, write)
	g.mu = &t.mu // the source's next version of a page must not come between
	g.place = t.bringLocked
	t.mu.Lock()
	t.gather = g
	t.mu.Unlock()
	stop := g.start(func(error) { interrupt(l) }) // whoever reads finds out as well
	return func() {
		if *failed != nil {
			interrupt(l)
		}
		stop()
		t.mu.Lock()
		t.gather = nil
		t.mu.Unlock()
	}
}

// bringLocked takes a page of a Peer.
func (t *Intake) bringLocked(p PageNum, name Hash, page []byte) error {
	if t.over {
		return nil
	}
	t.peers.brought.Add(1)
	return t.placeLocked(p, name, page)
}

// receive checks the pages of a frame and puts them in place. Those that come
// after Commit are not the last of their pages, but what those are patches of.
func (t *Intake) receive(fr *frame) error {
	var at [maxRun]namedPage
	all, err := fr.unpack(t.version, &at)
	if err != nil {
		return err
	}
	if err := fr.verify(t.cfg.Worker, &at); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.sink != nil:
		t.sink.putAside(fr, &at)
		return nil
	case t.over:
		return nil
	case !all:
		return errNoBase
	}
	t.gather.receivedLocked(fr.run)
	for i := range fr.kinds {
		page := zeroPage[:]
		if at[i].at >= 0 {
			page = fr.data.bytes[int(at[i].at)*PageSize:][:PageSize]
		}
		if err := t.placeLocked(fr.run.First+PageNum(i), fr.name(at[i]), page); err != nil {
			return err
		}
	}
	return nil
}

// forget drops versions that no longer count, while there is time for it.
func (t *Intake) forget(stale []Run) error {
	for _, r := range stale {
		t.mu.Lock()
		if t.over {
			t.mu.Unlock()
			return nil
		}
		err := t.dropLocked(r)
		t.aside.reserve(min(asideReady, t.pages), t.pages)
		t.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// dropLocked makes pages ones that never came, and keeps aside what came. It goes
// by parts, so that next to nothing is held twice.
func (t *Intake) dropLocked(r Run) error {
	for r.Count > 0 {
		part := Run{r.First, min(r.Count, dropPart-uint32(r.First)%dropPart)}
		r.First, r.Count = part.end(), r.Count-part.Count
		if err := t.dropPartLocked(part); err != nil {
			return err
		}
	}
	return nil
}

func (t *Intake) dropPartLocked(r Run) error {
	for p := r.First; p < r.end(); p++ {
		t.gather.replacedLocked(p) // what a Peer brings of it is stale as well
		if name, state := t.table.Get(p); t.state[p] == present && state == Named {
			if err := t.cfg.Region.read(p, t.page[:]); err != nil {
				return fmt.Errorf("intake: %w", err)
			}
			t.aside.put(p, name, t.page[:], t.pages, t.pages)
		}
	}
	if bytes.IndexByte(t.state[r.First:r.end()], present) >= 0 {
		if err := t.cfg.Region.drop(r); err != nil {
			return fmt.Errorf("intake: drop %d pages from page %d: %w", r.Count, r.First, err)
		}
	}
	clear(t.state[r.First:r.end()])
	t.table.Set(r, Unknown)
	return nil
}

// version finds what is in place of a page, for a patch, or is kept aside of it.
func (t *Intake) version(p PageNum, name, buf []byte) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sink != nil {
		return t.sink.version(p, name, buf)
	}
	have, state := t.table.Get(p)
	return !t.over && state == Named && bytes.HasPrefix(have[:], name) && t.cfg.Region.read(p, buf[:PageSize]) == nil
}

// placeLocked puts a page in place, which may replace an earlier version.
func (t *Intake) placeLocked(p PageNum, name Hash, page []byte) error {
	t.aside.drop(p)
	t.table.SetName(p, name)
	if name == ZeroHash && t.state[p] != present {
		t.state[p] = lazy // a hole stays one
		return nil
	}
	t.state[p] = present
	return t.cfg.Region.write(p, page)
}

// lacking takes names: what the store has is put in place, and bit i of lacks
// is set if the i-th page is not here. With later the answer is given once
// Peers have been asked for those.
func (t *Intake) lacking(fr *frame, lacks, buf []byte) (_ []byte, later bool, err error) {
	lacks = append(lacks[:0], make([]byte, (len(fr.kinds)+7)/8)...)
	var names [maxRun]Hash
	next, missing := 0, 0
	var last Hash
	for i, k := range fr.kinds {
		p := fr.run.First + PageNum(i)
		var name Hash
		switch k {
		case pageZero:
			name = ZeroHash
		case pageSame:
			if t.cfg.Base == nil || int(p) >= t.cfg.Base.Len() {
				return nil, false, badFrame("names: page %d is to be as in a base that was not told", p)
			}
			name, _ = t.cfg.Base.Get(p)
		case pageRaw:
			last = Hash(fr.names[32*next:])
			next++
			name = last
		case pageRepeat:
			name = last
		}
		names[i] = name
		here := t.local(name, buf)
		t.mu.Lock()
		t.gather.replacedLocked(p)
		if here && !t.over {
			err = t.placeLocked(p, name, buf)
		}
		t.mu.Unlock()
		if err != nil {
			return nil, false, err
		}
		if !here {
			lacks[i/8] |= 1 << (i % 8)
			missing++
		}
	}
	if missing == 0 {
		return lacks, false, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return lacks, t.gather.offerLocked(fr.run.First, names[:len(fr.kinds)], lacks), nil
}

// local reads a page that this node has.
func (t *Intake) local(name Hash, buf []byte) bool {
	if name == ZeroHash {
		clear(buf)
		return true
	}
	if t.cfg.Store != nil && t.cfg.Store.Fetch(name, buf) {
		return true
	}
	t.cfg.Neighbours.wait(t.stop, nil)
	return t.cfg.Neighbours.Fetch(name, buf)
}

// Commit ends the intake: from here on nothing is put in place but by the Sink
// that it returns. Of what came, what l says is stale is dropped, and kept aside
// for patches of it. With arm the Sink is to be armed, else it fills the memory
// before the worker runs. Size, Table and Have of cfg, and what the Intake was
// made with, are not looked at.
func (t *Intake) Commit(l Layout, arm bool, cfg SinkConfig) (*Sink, error) {
	return t.commit(l, arm, cfg, os.Getpagesize())
}

func (t *Intake) commit(l Layout, arm bool, cfg SinkConfig, kernelPage int) (*Sink, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.over:
		return nil, errors.New("intake: committed or closed already")
	case l.Pages > t.pages:
		return nil, fmt.Errorf("intake: a memory of %d pages, at most %d", l.Pages, t.pages)
	}
	t.overLocked()
	// The loops over all pages are short: the worker stands still.
	if n := span(t.state[l.Pages:], block(absent)); l.Pages+n < t.pages {
		return nil, badFrame("page %d came, of a memory of %d", l.Pages+n, l.Pages)
	}
	for _, r := range l.Stale {
		if err := t.dropLocked(r); err != nil {
			return nil, err
		}
	}
	allLazy := block(lazy)
	for _, r := range l.Zero {
		if bytes.IndexByte(t.state[r.First:r.end()], present) >= 0 {
			return nil, badFrame("pages of %d from page %d came, and were never written", r.Count, r.First)
		}
		t.table.Set(r, Zero)
		fill(t.state[r.First:r.end()], allLazy)
	}
	state := t.state[:l.Pages]
	var have []Run
	var parts map[PageNum]*stage
	if group := max(1, kernelPage/PageSize); arm && group > 1 {
		have = runsOf(t.pages, func(p PageNum) bool { return t.state[p] == present })
		var drop []Run
		var err error
		if have, drop, parts, err = t.kernelPagesLocked(have, group); err != nil {
			return nil, fmt.Errorf("intake: %w", err)
		}
		state = nil // is by have
		for _, r := range drop {
			if err := t.cfg.Region.drop(r); err != nil {
				return nil, fmt.Errorf("intake: drop %d pages from page %d: %w", r.Count, r.First, err)
			}
		}
	}
	t.table.truncate(l.Pages)

	cfg.Worker, cfg.Epoch, cfg.Region, cfg.Log = t.cfg.Worker, t.cfg.Epoch, t.cfg.Region, t.cfg.Log
	cfg.Size, cfg.Table, cfg.Have, cfg.Peers = int64(l.Pages)*PageSize, t.table, have, t.cfg.Peers
	cfg.Neighbours = t.cfg.Neighbours
	s, err := newSink(cfg, state, kernelPage)
	if err != nil {
		return nil, err
	}
	for first, st := range parts {
		s.stages[first] = st
		for i, held := range st.held {
			if !held {
				continue
			}
			if p := first + PageNum(i); s.state[p] == lazy {
				s.missing++ // it is zero, and was written as that
			}
			s.state[first+PageNum(i)] = staged
		}
	}
	s.intake, s.peers = t, t.peers
	if s.missing > 0 {
		s.aside = t.aside
	}
	s.stats.in.Add(t.in.Load())
	t.sink, t.aside = s, versions{}
	return s, nil
}

// kernelPagesLocked sorts the pages that count by the kernel's larger pages, of
// which either all is in place or nothing: parts wait beside for the rest.
func (t *Intake) kernelPagesLocked(data []Run, group int) (have, drop []Run, parts map[PageNum]*stage, err error) {
	held, zero := make([]bool, t.pages), make([]bool, t.pages)
	for _, r := range data {
		for p := r.First; p < r.end(); p++ {
			held[p] = true
		}
	}
	for p := range zero {
		_, state := t.table.Get(PageNum(p))
		zero[p] = state == Zero && !held[p]
	}
	parts = make(map[PageNum]*stage)
	for first := 0; first+group <= t.pages; first += group {
		here, left := 0, 0
		for p := first; p < first+group; p++ {
			switch {
			case held[p]:
				here++
			case !zero[p]:
				left++
			}
		}
		r := Run{PageNum(first), uint32(group)}
		switch {
		case here > 0 && left == 0:
			for p := first; p < first+group; p++ {
				if !zero[p] {
					continue
				}
				// The kernel has it in place like the rest.
				if err := t.cfg.Region.write(PageNum(p), zeroPage[:]); err != nil {
					return nil, nil, nil, err
				}
			}
			have = appendRun(have, r)
			continue
		case here > 0:
			st := &stage{bytes: make([]byte, group*PageSize), held: held[first : first+group], left: left}
			for i, in := range st.held {
				if !in {
					continue
				}
				if err := t.cfg.Region.read(PageNum(first+i), st.bytes[i*PageSize:(i+1)*PageSize]); err != nil {
					return nil, nil, nil, err
				}
			}
			parts[r.First] = st
		}
		if slices.Contains(t.state[first:first+group], present) {
			drop = appendRun(drop, r)
		}
	}
	return have, drop, parts, nil
}

// Close ends an Intake that no Commit has followed, or whose Sink will not run.
// Run returns as soon as the stream ends, or its ctx.
func (t *Intake) Close() {
	t.mu.Lock()
	t.overLocked()
	l := t.link
	t.link = nil
	t.mu.Unlock()
	if l != nil {
		_ = l.Close()
	}
}

// take gives the stream away, once.
func (t *Intake) take() *intakeLink {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.link
	t.link = nil
	return l
}
