package pager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/zeebo/blake3"
)

// ErrGone means that the peer does not hold the worker, or not in that epoch;
// the mesh knows where it went. A Source returns it once it was closed.
var ErrGone = errors.New("worker gone")

const (
	// bulkRun is how many pages a bulk frame has while nobody waits, 256 KiB,
	// and leastRun how few right after a demand, or before anything is known of
	// the link. Between the two it doubles with every frame, as CRIU's
	// lazy-pages daemon does.
	bulkRun  = 64
	leastRun = 4

	// answerRun is how many pages a frame of an answer has at most.
	answerRun = 16

	// bulkChunk is written at once, in bytes: between chunks the push looks
	// whether a demand is being answered.
	bulkChunk = 64 << 10
	// bulkWrite is for how many bytes small frames wait, unless nothing follows.
	bulkWrite = 8 << 10

	// namesAhead is how many pages may be named without an answer, 4 MiB, so
	// that answers cover the round trip.
	namesAhead = 1024
	// lackingMost is of how many pages that the far side lacks more may be named
	// before those are sent, 1 MiB.
	lackingMost = 256
	// namesTrial is how many answers it takes to see that the far side holds
	// next to nothing, less than one page in namesShare, and that names ahead only
	// cost.
	namesTrial = 2048
	namesShare = 64
)

// A namesTally counts what naming pages ahead of their bytes has brought. Every
// namesTrial answers are judged by themselves: what the far side has often lies
// together, as the pages that a module's data segments write, and says nothing of
// the rest of the memory.
type namesTally struct {
	asked, hits int
	vain        bool
}

func (t *namesTally) add(had bool) {
	t.asked++
	if had {
		t.hits++
	}
	if t.asked == namesTrial {
		*t = namesTally{vain: t.vain || t.hits*namesShare < namesTrial}
	}
}

// pays reports whether more is to be named.
func (t *namesTally) pays() bool { return !t.vain }

// SourceConfig says whose memory is served.
type SourceConfig struct {
	// Worker is the worker's id, 1 to 64 bytes, and Epoch the one in which it
	// was frozen.
	Worker string
	Epoch  uint64
	// Memory is the frozen memory, whole pages. Nothing writes it until Close
	// has returned. Pages that Table says are zero are not read.
	Memory []byte
	// Table holds what is known of the pages: holes from ZeroRuns as Zero,
	// and names that were computed earlier, which are trusted. Nil means that
	// nothing is known. The Source takes a copy.
	Table *Table
	// Recent lists pages that are likely to be needed soon, the likeliest first:
	// those the worker waited for when it came here, or wrote last. Those are
	// pushed first, the others by address.
	Recent []Run
	// Ahead is what rounds have brought over before the freeze, nil if there
	// were none. Its Layout is part of what Table knows, and its order takes
	// the place of Recent.
	Ahead *Ahead
	// Share says how fast the push may be, in company with others. Nil is no
	// limit. A bulk stream that is a Meter keeps the queue on its way short.
	// The Source closes it.
	Share *Share
	// Log is never nil.
	Log *slog.Logger
}

// How a page was passed on. The order matters: see apply.
const (
	unsent  = iota
	demand  // sent on the demand stream
	bulk    // sent on the bulk stream
	held    // the far side said it has it
	offered = 0x80
)

// A Source serves the pages of a frozen worker to one Sink, over streams that
// the Sink dials. Its methods are safe for concurrent use.
type Source struct {
	worker string
	epoch  uint64
	mem    []byte
	pages  int
	recent func() []Run // for Keep
	first  func() []Run // for the push: of recent, what may be missing
	share  *Share
	log    *slog.Logger

	// names holds the names computed so far; name p is there once known[p] is
	// nameSet.
	names []Hash
	known []atomic.Uint32

	// sent are pages as the far side was sent them before the freeze, for patches:
	// set by takeOver, and never changed after that. Of those that are sure, it
	// has said that it has them.
	sent atomic.Pointer[versions]
	sure func(PageNum) bool

	// demanding counts the demands that are being answered, or wait to be.
	demanding atomic.Int32
	// slow says that the bulk stream finds the link slow enough to compress.
	slow  atomic.Bool
	stats sourceStats

	mu sync.Mutex
	// state holds for each page how it was passed on, and with the flag
	// offered that its name was sent ahead on the bulk stream now open.
	state  []uint8
	unsent int
	// The push goes on in order[runAt] at page pageAt, or past those at near,
	// by address and around.
	order   []Run
	runAt   int
	pageAt  PageNum
	near    PageNum
	run     uint32 // pages in the next bulk frame
	streams [2]*serving
	closed  bool
	active  sync.WaitGroup

	// wake tells the bulk stream that there is something to look at. It has
	// room for one, so that nobody waits to send.
	wake chan struct{}
}

type serving struct {
	cancel context.CancelCauseFunc
	done   chan struct{}
}

const (
	nameUnset = iota
	nameBusy
	nameSet
	nameZero
)

type sourceStats struct {
	demandPages, bulkPages, zeroPages, heldPages, namedPages, demands, bytes atomic.Uint64
	packedPages, patches                                                     atomic.Uint64
}

// SourceStats counts what a Source has sent. Pages sent again after a stream
// broke count again.
type SourceStats struct {
	// Pages is the size of the memory, and Unsent how many of them have
	// neither been sent nor are at the far side.
	Pages, Unsent int
	// Demands is how many requests were answered, with DemandPages of bytes;
	// BulkPages were pushed, ZeroPages passed on without bytes, and HeldPages
	// were at the far side already, by their names.
	Demands, DemandPages, BulkPages, ZeroPages, HeldPages uint64
	// PackedPages of those with bytes were sent compressed, and Patches as what
	// had changed since rounds had sent them.
	PackedPages, Patches uint64
	// NamedPages is how many names were sent ahead.
	NamedPages uint64
	// Bytes is all that was written, frames included.
	Bytes uint64
}

// NewSource makes a Source. It starts nothing.
func NewSource(cfg SourceConfig) (*Source, error) {
	pages := len(cfg.Memory) / PageSize
	switch {
	case cfg.Worker == "" || len(cfg.Worker) > maxWorkerBytes:
		return nil, fmt.Errorf("source: worker id of %d bytes: want 1 to %d", len(cfg.Worker), maxWorkerBytes)
	case len(cfg.Memory)%PageSize != 0 || pages > MaxPages:
		return nil, fmt.Errorf("source: memory of %d bytes: want whole pages, at most %d", len(cfg.Memory), MaxPages)
	case cfg.Table != nil && cfg.Table.Len() != pages:
		return nil, fmt.Errorf("source: table of %d pages for a memory of %d", cfg.Table.Len(), pages)
	case cfg.Log == nil:
		return nil, errors.New("source: no log")
	}
	for _, r := range cfg.Recent {
		if !r.within(pages) {
			return nil, fmt.Errorf("source: recent pages %d+%d in a memory of %d", r.First, r.Count, pages)
		}
	}
	if a := cfg.Ahead; a != nil && a.Layout.Pages != pages {
		return nil, fmt.Errorf("source: rounds over %d pages for a memory of %d", a.Layout.Pages, pages)
	}
	recent := func() []Run { return cfg.Recent }
	s := &Source{
		worker: cfg.Worker, epoch: cfg.Epoch,
		mem: cfg.Memory, pages: pages, recent: recent, first: recent, share: cfg.Share,
		log:  cfg.Log.With("worker", cfg.Worker, "epoch", cfg.Epoch),
		run:  leastRun,
		wake: make(chan struct{}, 1),
	}
	if a := cfg.Ahead; a != nil {
		s.names, s.known, s.state, s.unsent = a.names, a.known, a.passed, a.unsent
		s.recent, s.first, s.sure = a.recent, a.first, a.sure
	} else {
		s.names, s.known, s.state, s.unsent = make([]Hash, pages), make([]atomic.Uint32, pages), make([]uint8, pages), pages
	}
	if cfg.Table != nil {
		for p := range pages {
			switch h, state := cfg.Table.Get(PageNum(p)); state {
			case Zero:
				s.known[p].Store(nameZero)
			case Named:
				s.names[p] = h
				s.known[p].Store(nameSet)
			}
		}
	}
	return s, nil
}

// page is the bytes of page p.
func (s *Source) page(p PageNum) []byte {
	return s.mem[int(p)*PageSize : (int(p)+1)*PageSize]
}

// name computes the name of page p unless it is known. zero is true for a
// zero page.
func (s *Source) name(p PageNum, hasher *blake3.Hasher) (h Hash, zero bool) {
	known := &s.known[p]
	switch known.Load() {
	case nameSet:
		return s.names[p], false
	case nameZero:
		return ZeroHash, true
	}
	page := s.page(p)
	mine := known.CompareAndSwap(nameUnset, nameBusy)
	if IsZero(page) {
		known.Store(nameZero)
		return ZeroHash, true
	}
	hashWith(hasher, page, &h)
	// Whoever finds another at work does not wait for it: the page is likely
	// demanded, and hashing it twice costs a few microseconds.
	if mine {
		s.names[p] = h
		known.Store(nameSet)
	}
	return h, false
}

// nameRun names the pages of a run, at most hashBatch of them, as name does.
// The name of a page of zeroes is ZeroHash.
func (s *Source) nameRun(r Run, names *[hashBatch]Hash) {
	var todo [hashBatch]int
	var mine [hashBatch]bool
	var pages [hashBatch][]byte
	var hashes [hashBatch]Hash
	n := 0
	for i := range int(r.Count) {
		p := r.First + PageNum(i)
		known := &s.known[p]
		switch known.Load() {
		case nameSet:
			names[i] = s.names[p]
			continue
		case nameZero:
			names[i] = ZeroHash
			continue
		}
		mine[n] = known.CompareAndSwap(nameUnset, nameBusy)
		page := s.page(p)
		if IsZero(page) {
			known.Store(nameZero)
			names[i] = ZeroHash
			continue
		}
		todo[n], pages[n] = i, page
		n++
	}
	hashPages(hashes[:n], pages[:n])
	for k, i := range todo[:n] {
		names[i] = hashes[k]
		// Whoever finds another at work does not wait for it: the page is likely
		// demanded, and hashing it twice costs a few microseconds.
		if mine[k] {
			s.names[r.First+PageNum(i)] = hashes[k]
			s.known[r.First+PageNum(i)].Store(nameSet)
		}
	}
}

// Table is what the Source knows of its pages by now. It is the caller's.
func (s *Source) Table() *Table {
	t := NewTable(s.pages)
	for p := range s.pages {
		switch s.known[p].Load() {
		case nameSet:
			t.SetName(PageNum(p), s.names[p])
		case nameZero:
			t.Set(Run{PageNum(p), 1}, Zero)
		}
	}
	return t
}

// Stats counts what was sent so far.
func (s *Source) Stats() SourceStats {
	s.mu.Lock()
	left := s.unsent
	s.mu.Unlock()
	c := &s.stats
	return SourceStats{
		Pages: s.pages, Unsent: left,
		Demands: c.demands.Load(), DemandPages: c.demandPages.Load(), BulkPages: c.bulkPages.Load(),
		ZeroPages: c.zeroPages.Load(), HeldPages: c.heldPages.Load(), NamedPages: c.namedPages.Load(),
		PackedPages: c.packedPages.Load(), Patches: c.patches.Load(),
		Bytes: c.bytes.Load(),
	}
}

// Close ends the streams being served and returns when nothing reads the
// memory any more. From then on Serve refuses with CodeGone.
func (s *Source) Close() {
	s.mu.Lock()
	s.closed = true
	for _, serving := range s.streams {
		if serving != nil {
			serving.cancel(ErrGone)
		}
	}
	s.mu.Unlock()
	s.active.Wait()
	s.sent.Store(nil)
	if s.share != nil {
		s.share.Close()
	}
}

// Serve serves one stream, after its Hello was read, until the Sink says that
// it has everything, which is nil, or the stream breaks, ctx is done or the
// Source is closed. A newer stream of the same kind ends this one. When ctx
// is done or the Source closed, reads and writes on rw are made to fail by
// SetDeadline or else Close, whichever rw has; one of them it must have. The
// caller closes rw.
func (s *Source) Serve(ctx context.Context, hello Hello, rw io.ReadWriter) error {
	if hello.Worker != s.worker || hello.Epoch != s.epoch {
		_ = Refuse(rw, CodeGone, fmt.Sprintf("worker %q in epoch %d is not held here", hello.Worker, hello.Epoch))
		return fmt.Errorf("stream for worker %q in epoch %d: %w", hello.Worker, hello.Epoch, ErrGone)
	}
	if hello.Pages != s.pages {
		_ = Refuse(rw, CodeRefused, fmt.Sprintf("the memory has %d pages, not %d", s.pages, hello.Pages))
		return badFrame("hello for %d pages, the memory has %d", hello.Pages, s.pages)
	}
	if err := checkRuns(hello.Have, s.pages); err != nil {
		return badFrame("hello: %w", err)
	}

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	me := &serving{cancel: cancel, done: make(chan struct{})}
	defer close(me.done)
	before, err := s.enter(hello.Bulk, me)
	if err != nil {
		_ = Refuse(rw, CodeGone, "the worker has moved on")
		return err
	}
	defer s.active.Done()
	defer context.AfterFunc(ctx, func() { interrupt(rw) })()
	if before != nil {
		// Until it has ended it may still mark pages as sent.
		before.cancel(errReplaced)
		<-before.done
	}
	s.apply(hello)
	s.log.Debug("serving pages", "bulk", hello.Bulk, "names", hello.Names, "have", CountPages(hello.Have))

	st := &stream{Source: s, ctx: ctx, rw: rw, accepts: hello.Accepts, framer: newFramer(hello.Accepts)}
	if hello.Accepts&EncodeDelta != 0 {
		st.patch = patchSure
	}
	st.meter, _ = rw.(Meter)
	if err = st.write(appendEmpty(nil, frameWelcome)); err == nil {
		if hello.Bulk {
			err = st.serveBulk(hello.Names, st.readBulk)
		} else {
			err = st.serveDemand()
		}
	}
	if ctx.Err() != nil && err != nil {
		return context.Cause(ctx)
	}
	return err
}

// takeOver pushes on a stream that rounds have opened, on which nothing more
// is to come but its end, and on which sent went out.
func (s *Source) takeOver(ctx context.Context, rw io.ReadWriter, me *serving, accepts Encodings, sent *versions, ended <-chan error) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrGone
	}
	if s.streams[1] != nil { // the far side has given this one up meanwhile
		s.mu.Unlock()
		return errReplaced
	}
	s.streams[1] = me
	s.active.Add(1)
	s.sent.Store(sent)
	s.mu.Unlock()
	defer s.active.Done()
	st := &stream{Source: s, ctx: ctx, rw: rw, accepts: accepts, patch: patchAll, framer: newFramer(accepts)}
	st.meter, _ = rw.(Meter)
	err := st.serveBulk(false, func(*offers) error { return <-ended })
	if err == nil {
		s.sent.Store(nil) // all is there
	}
	return err
}

// enter makes me the stream of its kind and returns the one before, which may
// still run.
func (s *Source) enter(bulk bool, me *serving) (before *serving, err error) {
	kind := 0
	if bulk {
		kind = 1
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrGone
	}
	before, s.streams[kind] = s.streams[kind], me
	s.active.Add(1)
	return before, nil
}

// apply takes over what a Hello says is there. Of the rest, what had gone out
// on this kind of stream is lost and will be sent again; what went out on the
// other kind is still on its way, or that stream's next Hello will say.
func (s *Source) apply(hello Hello) {
	mine := uint8(demand)
	if hello.Bulk {
		mine = bulk
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	have := hello.Have
	s.unsent = 0
	for p := range s.state {
		state := s.state[p] &^ offered
		if !hello.Bulk {
			state = s.state[p] // offers belong to the bulk stream
		}
		for len(have) > 0 && PageNum(p) >= have[0].end() {
			have = have[1:]
		}
		switch {
		case len(have) > 0 && PageNum(p) >= have[0].First:
			state = held
		case state&^offered == mine || state&^offered == held:
			state &= offered
		}
		s.state[p] = state
		if state&^offered == unsent {
			s.unsent++
		}
	}
	s.runAt, s.pageAt = 0, 0
	s.notify()
}

func (s *Source) notify() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// take marks those pages of r as sent how that have not been sent, and
// appends them to runs. With again it takes all.
func (s *Source) take(runs []Run, r Run, how uint8, again bool) []Run {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.takeLocked(runs, r, how, again)
}

func (s *Source) takeLocked(runs []Run, r Run, how uint8, again bool) []Run {
	for p := r.First; p < r.end(); p++ {
		state := s.state[p] &^ offered
		if state != unsent && !again {
			continue
		}
		if state == unsent {
			s.unsent--
		}
		s.state[p] = how | s.state[p]&offered
		if n := len(runs); n > 0 && runs[n-1].end() == p {
			runs[n-1].Count++
		} else {
			runs = append(runs, Run{p, 1})
		}
	}
	return runs
}

// nextLocked finds what to push next: at most most pages, in one run, none of
// which has been sent or, with fresh, offered. It returns false when there is
// none. It only looks.
func (s *Source) nextLocked(most uint32, fresh bool) (Run, bool) {
	mask := uint8(0xff)
	if !fresh {
		mask = ^uint8(offered)
	}
	free := func(p PageNum) bool { return s.state[p]&mask == unsent }
	grow := func(first, end PageNum) Run {
		r := Run{first, 1}
		for r.Count < most && r.end() < end && free(r.end()) {
			r.Count++
		}
		return r
	}
	for ; s.runAt < len(s.order); s.runAt, s.pageAt = s.runAt+1, 0 {
		r := s.order[s.runAt]
		for p := max(r.First, s.pageAt); p < r.end(); p++ {
			if free(p) {
				s.pageAt = p
				return grow(p, r.end()), true
			}
		}
	}
	if s.unsent == 0 {
		return Run{}, false
	}
	// By address from the last demand on: what a worker touches next is
	// rarely far behind what it touched last.
	n := PageNum(s.pages)
	for _, part := range [2][2]PageNum{{s.near, n}, {0, s.near}} {
		for p := part[0]; p < part[1]; p++ {
			if free(p) {
				s.near = p
				return grow(p, n), true
			}
		}
	}
	return Run{}, false
}

// Keep puts the pages of the frozen memory into the store, so that a worker
// that comes back finds what it has not changed, and returns the table with
// every page named. The store drops what was used longest ago as it fills; the
// pages pushed first are put last, so that they stay. Call it before Close.
func (s *Source) Keep(ctx context.Context, store *Store) (*Table, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, ErrGone
	}
	s.active.Add(1)
	s.mu.Unlock()
	defer s.active.Done()

	hasher := blake3.New()
	keep := func(p PageNum) {
		if h, zero := s.name(p, hasher); !zero {
			store.put(h, s.page(p))
		}
	}
	var names [hashBatch]Hash
	for p := 0; p < s.pages; p += hashBatch {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		r := Run{PageNum(p), uint32(min(hashBatch, s.pages-p))}
		s.nameRun(r, &names)
		for i := range PageNum(r.Count) {
			store.put(names[i], s.page(r.First+i)) // put leaves out those of zeroes
		}
	}
	order := s.recent()
	for i := len(order) - 1; i >= 0; i-- {
		for p := order[i].First; p < order[i].end(); p++ {
			keep(p)
		}
	}
	t := s.Table()
	for p := range PageNum(s.pages) {
		if _, state := t.Get(p); state == Unknown { // another was at it just then
			h, _ := s.name(p, hasher)
			t.SetName(p, h)
		}
	}
	return t, nil
}
