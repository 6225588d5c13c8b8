package pager

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// A Dialer opens the two streams to the Source, wherever it is reached now.
// The streams need a SetDeadline or a Close that makes a Read or Write under
// way fail. Both methods may be called at once, and again after a stream
// broke.
type Dialer interface {
	// Demand opens the stream for pages that somebody waits for: ahead of
	// everything else on the way.
	Demand(ctx context.Context) (io.ReadWriteCloser, error)
	// Bulk opens the stream for all other pages.
	Bulk(ctx context.Context) (io.ReadWriteCloser, error)
}

// SinkConfig says whose memory is brought here, and to where.
type SinkConfig struct {
	// Worker and Epoch are those of the Source.
	Worker string
	Epoch  uint64
	// Region is the memory. Its content must be dropped or never written:
	// pages that are not in Have are holes, or zero where there are no holes.
	Region Region
	// Size is the memory in use, in bytes, whole pages; pages beyond it are
	// left alone. With Arm it must be whole kernel pages.
	Size int64
	// Table holds what is known of the pages: zero ones are not fetched, and
	// named ones are only accepted with that name. Nil means nothing is
	// known. The Sink takes a copy.
	Table *Table
	// Have lists pages that are in place already, in order and apart. Their
	// names must be those of Table; the Sink does not look at them.
	Have []Run
	// Store, if not nil and not empty, is looked into before pages are asked
	// for, and makes the Source send names ahead. Leave it out when it holds
	// nothing of this worker or its app: names ahead cost the push two round
	// trips before they are given up.
	Store *Store
	// Neighbours, if not nil, are asked for what the Source has named and Store
	// has not. Their Run is to be called: names wait for it.
	Neighbours *Neighbours
	// Peers, at most 8, are other nodes that may hold pages of the worker. What
	// is missing is asked of them at the same time as of the Source, which has to
	// send names ahead for that; what somebody waits for, of those that are nearer
	// than the Source, or when that takes long to answer.
	Peers []Peer
	// Plain asks for pages as they are, neither compressed nor as patches.
	Plain bool
	// PathLimit is how long a stream may stay broken before Run gives up with
	// a PathError, 30 s if 0. StallLimit is how long nothing may arrive
	// before a stream counts as broken, 10 s if 0.
	PathLimit, StallLimit time.Duration
	// OnFault, if not nil, is told of every page the worker waited for, and how
	// long. It must not block.
	OnFault func(time.Duration)
	// Log is never nil.
	Log *slog.Logger
}

// ErrContent means that the bytes of a page do not hash to its name.
var ErrContent = errors.New("content does not match its name")

// ErrOccupied means that a page was in place before it was brought: somebody
// read or wrote the memory while it was armed.
var ErrOccupied = errors.New("page was filled by somebody else")

// A PageError says which page of which worker failed, the name it should have
// and the one its content has. It unwraps to Err.
type PageError struct {
	Worker    string
	Page      PageNum
	Want, Got Hash
	Err       error
}

func (e *PageError) Error() string {
	return fmt.Sprintf("page %d of worker %q: %v: want %s, got %s", e.Page, e.Worker, e.Err, e.Want, e.Got)
}

func (e *PageError) Unwrap() error { return e.Err }

// A PathError says that the way to the Source stayed broken, for how long and
// with how many pages missing. It unwraps to the last failure.
type PathError struct {
	Worker  string
	Stream  string // demand or bulk
	Broken  time.Duration
	Missing int
	Err     error
}

func (e *PathError) Error() string {
	return fmt.Sprintf("%s stream for worker %q broken for %s with %d pages missing: %v",
		e.Stream, e.Worker, e.Broken.Round(time.Millisecond), e.Missing, e.Err)
}

func (e *PathError) Unwrap() error { return e.Err }

// What the Sink knows of a page. A page moves down this list, except that one
// asked for or being filled goes back to absent when that fails.
const (
	absent  = iota
	asked   // on the demand stream
	filling // by one goroutine, which will say present
	staged  // arrived, waiting for the other pages of its kernel page
	lazy    // zero, and left to the kernel to fill in
	present
)

// A Sink brings the memory of a worker here.
//
// With Arm, before the worker resumes, the worker may run at once and waits
// for the pages it touches until they are in. Without Arm it must not run
// before Run has returned nil.
//
// A page that cannot be had never becomes zeroes. When Run fails, the memory
// stays armed, and whoever touches a missing page keeps waiting: the caller
// either calls Run again or kills the runner, and only then closes the
// userfaultfd. Closing the last copy of it while the runner lives would let
// the worker go on with zeroes.
//
// All methods are safe for concurrent use, but Run runs once at a time.
type Sink struct {
	cfg        SinkConfig
	pages      int
	kernelPage int // pages in a page of the kernel
	log        *slog.Logger

	intake  *Intake // what came before; nil if nothing was to
	peers   *peers
	noBase  atomic.Bool // a patch came of what is not here: no more of them
	stats   sinkStats
	latency histogram // of all faults
	remote  histogram // of those served from the Source

	// mu is held for microseconds only, since the fault thread takes it.
	mu sync.Mutex
	// group is how many pages can only be put in place together: kernelPage
	// while armed, else 1. Both change only while Run does not run.
	group int
	// aside are earlier versions of pages that are missing, for patches of them.
	aside   versions
	armed   bool
	splits  int // stretches of zeroes that are no longer armed
	state   []uint8
	table   *Table
	missing int // pages absent, asked, filling or staged
	waits   map[PageNum]*wait
	stages  map[PageNum]*stage
	touched []PageNum
	ahead   readAhead // of pages that are here
	trend   trend     // of pages at the Source
	batches []batch   // of wants, in the order of their answers
	wants   []want
	rtt     time.Duration // smoothed, of demanded pages
	done    chan struct{} // closed when missing falls to 0
	running bool

	// wantsReady tells the demand stream to look at wants. It has room for
	// one, so that the fault thread never waits to send.
	wantsReady chan struct{}
	// faulted tells those who ask Peers to look at waits, likewise.
	faulted [maxPeers]chan struct{}
}

// A wait is a fault that has not been served.
type wait struct {
	since  time.Time
	asked  time.Time
	tries  int
	remote bool
	lead   bool  // the page was asked for because of this fault
	asking bool  // a Peer is asked, or was
	others uint8 // bit i: Peer i has answered
}

// A batch is what was asked for at one fault.
type batch struct {
	lead   PageNum
	extras int       // pages brought along that have not come
	at     time.Time // when the last of its pages came
}

// A stage gathers the pages of one kernel page.
type stage struct {
	bytes []byte
	held  []bool // what was there before the worker stood still; nil for nothing
	left  int
}

type sinkStats struct {
	faults, demanded, local                       atomic.Uint64
	demandPages, bulkPages, storePages, zeroPages atomic.Uint64
	duplicates, redials, in, out                  atomic.Uint64
}

// SinkStats says how far a transfer is. It is a snapshot, fit for a live
// display.
type SinkStats struct {
	// Pages is the size of the memory and Missing how many of them are not in.
	Pages, Missing int
	// Armed says that the worker may run meanwhile.
	Armed bool
	// Faults is how many pages the worker waited for: Demanded came from the
	// Source, Local were here already.
	Faults, Demanded, Local uint64
	// DemandPages, BulkPages and StorePages have come with bytes over the
	// demand stream, over the bulk stream, and from the store or Neighbours;
	// ZeroPages without. Duplicates had come before.
	DemandPages, BulkPages, StorePages, ZeroPages, Duplicates uint64
	// PeerPages have come from Peers, those of the Intake before included.
	PeerPages uint64
	// BytesIn and BytesOut crossed the two streams, frames included.
	BytesIn, BytesOut uint64
	// Redials counts streams opened after the first of each kind.
	Redials uint64
	// Fault is the time from when a fault was read to when its page was in
	// place, of all faults; Remote of the Demanded ones.
	Fault, Remote Latency
}

// NewSink makes a Sink. It starts nothing and leaves the memory alone.
func NewSink(cfg SinkConfig) (*Sink, error) {
	if cfg.Table != nil {
		cfg.Table = cfg.Table.Clone()
	}
	return newSink(cfg, nil, os.Getpagesize())
}

// newSink takes over the table, and what is known of the pages if state is not
// nil: then Have is not looked at.
func newSink(cfg SinkConfig, state []uint8, kernelPage int) (*Sink, error) {
	if cfg.Worker == "" || len(cfg.Worker) > maxWorkerBytes {
		return nil, fmt.Errorf("sink: worker id of %d bytes: want 1 to %d", len(cfg.Worker), maxWorkerBytes)
	}
	if cfg.Log == nil {
		return nil, errors.New("sink: no log")
	}
	if err := cfg.Region.validate(cfg.Size); err != nil {
		return nil, fmt.Errorf("sink: %w", err)
	}
	if cfg.PathLimit < 0 || cfg.StallLimit < 0 {
		return nil, fmt.Errorf("sink: negative limits %s and %s", cfg.PathLimit, cfg.StallLimit)
	}
	if cfg.PathLimit == 0 {
		cfg.PathLimit = 30 * time.Second
	}
	if cfg.StallLimit == 0 {
		cfg.StallLimit = 10 * time.Second
	}
	if len(cfg.Peers) > maxPeers {
		return nil, fmt.Errorf("sink: %d peers: want at most %d", len(cfg.Peers), maxPeers)
	}
	pages := PagesOf(cfg.Size)
	if err := checkRuns(cfg.Have, pages); err != nil {
		return nil, fmt.Errorf("sink: pages in place: %w", err)
	}
	if cfg.Table == nil {
		cfg.Table = NewTable(pages)
	}
	if cfg.Table.Len() != pages {
		return nil, fmt.Errorf("sink: table of %d pages for a memory of %d", cfg.Table.Len(), pages)
	}
	if state == nil {
		state = make([]uint8, pages)
		for p, ref := range cfg.Table.of {
			if ref == refZero {
				state[p] = lazy
			}
		}
		for _, r := range cfg.Have {
			fill(state[r.First:r.end()], block(present))
		}
	}
	// Behind an Intake the worker stands still now, and may have a large memory.
	s := &Sink{
		cfg: cfg, pages: pages, kernelPage: max(1, kernelPage/PageSize), group: 1,
		log:   cfg.Log.With("worker", cfg.Worker, "epoch", cfg.Epoch),
		table: cfg.Table, state: state, missing: bytes.Count(state, []byte{absent}),
		waits: make(map[PageNum]*wait), stages: make(map[PageNum]*stage),
		done: make(chan struct{}), wantsReady: make(chan struct{}, 1),
	}
	for i := range cfg.Peers {
		s.faulted[i] = make(chan struct{}, 1)
	}
	s.peers = &peers{of: cfg.Peers, log: s.log}
	s.stats.zeroPages.Add(uint64(bytes.Count(state, []byte{lazy})))
	if s.missing == 0 {
		close(s.done)
	}
	return s, nil
}

// Missing is how many pages are not in yet.
func (s *Sink) Missing() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.missing
}

// Table is what is known of the pages by now, those that came named. It is
// the caller's.
func (s *Sink) Table() *Table {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.table.Clone()
}

// Touched lists the pages the worker waited for, in the order it first did:
// its working set as far as it was missing.
func (s *Sink) Touched() []PageNum {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]PageNum(nil), s.touched...)
}

// Stats says how far the transfer is.
func (s *Sink) Stats() SinkStats {
	c := &s.stats
	st := SinkStats{
		Pages: s.pages, Missing: s.Missing(), Armed: s.isArmed(),
		Faults: c.faults.Load(), Demanded: c.demanded.Load(), Local: c.local.Load(),
		DemandPages: c.demandPages.Load(), BulkPages: c.bulkPages.Load(), StorePages: c.storePages.Load(),
		ZeroPages: c.zeroPages.Load(), Duplicates: c.duplicates.Load(), PeerPages: s.peers.brought.Load(),
		BytesIn: c.in.Load(), BytesOut: c.out.Load(), Redials: c.redials.Load(),
		Fault: s.latency.snapshot(), Remote: s.remote.snapshot(),
	}
	return st
}

func (s *Sink) isArmed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.armed
}

// heldRuns lists the pages that need not be sent.
func (s *Sink) heldRuns() []Run {
	s.mu.Lock()
	defer s.mu.Unlock()
	return runsOf(s.pages, func(p PageNum) bool { return s.state[p] >= filling })
}

// lacksLocked reports whether page p has to be brought and nobody is at it.
func (s *Sink) lacksLocked(p PageNum) bool { return s.state[p] <= asked }

// receive checks the pages of a frame and puts them in place. base is nil on a
// stream on which no patches were asked for.
func (s *Sink) receive(fr *frame, base baseFunc, pages *atomic.Uint64) error {
	switch fr.kind {
	case frameZeros:
		return s.receiveZeros(fr.run)
	case framePages:
	default:
		return badFrame("frame %#x with pages", fr.kind)
	}

	// Unpack and hash before the lock is taken.
	var at [maxRun]namedPage
	if all, err := fr.unpack(base, &at); err != nil {
		return err
	} else if !all && base == nil {
		return badFrame("a patch, which was not asked for")
	}
	if err := fr.verify(s.cfg.Worker, &at); err != nil {
		return err
	}
	data := fr.data.bytes

	var mine [maxRun]bool
	var zeros []Run
	s.mu.Lock()
	for i := range fr.kinds {
		if p := fr.run.First + PageNum(i); at[i].at == nowhereAt && s.lacksLocked(p) {
			s.mu.Unlock()
			s.noBase.Store(true) // the next stream brings no patches
			return errNoBase
		}
	}
	for i := range fr.kinds {
		p := fr.run.First + PageNum(i)
		name := fr.name(at[i])
		if want, state := s.table.Get(p); state != Unknown && want != name {
			s.mu.Unlock()
			return s.pageError(p, want, name, ErrContent)
		}
		if !s.lacksLocked(p) {
			s.stats.duplicates.Add(1)
			continue
		}
		s.table.SetName(p, name)
		if at[i].at < 0 {
			s.stats.zeroPages.Add(1)
			zeros = s.zeroLocked(zeros, p)
			continue
		}
		pages.Add(1)
		s.state[p] = filling
		mine[i] = true
	}
	s.mu.Unlock()

	if err := s.fillZeros(zeros); err != nil {
		return err
	}
	for i := 0; i < len(fr.kinds); {
		if !mine[i] {
			i++
			continue
		}
		j := i + 1
		for j < len(fr.kinds) && mine[j] && at[j].at == at[j-1].at+1 {
			j++
		}
		if err := s.fill(fr.run.First+PageNum(i), data[int(at[i].at)*PageSize:int(at[j-1].at+1)*PageSize]); err != nil {
			return err
		}
		i = j
	}
	return nil
}

// accepts lists the encodings that the Source may use.
func (s *Sink) accepts() Encodings {
	switch {
	case s.cfg.Plain:
		return 0
	case s.intake == nil || s.noBase.Load(): // nothing is kept aside
		return encodeAll &^ EncodeDelta
	}
	return encodeAll
}

// version finds an earlier version of a missing page, for a patch.
func (s *Sink) version(p PageNum, name, buf []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	have, page := s.aside.get(p)
	if page == nil || !bytes.HasPrefix(have[:], name) {
		return false
	}
	copy(buf, page[:])
	return true
}

// putAside keeps the pages of a frame, whose content was checked, of which later
// versions are still to come.
func (s *Sink) putAside(fr *frame, at *[maxRun]namedPage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range fr.kinds {
		if p := fr.run.First + PageNum(i); int(p) < s.pages && s.lacksLocked(p) && at[i].at >= 0 {
			s.aside.put(p, fr.name(at[i]), fr.data.bytes[int(at[i].at)*PageSize:][:PageSize], s.pages, s.pages)
		}
	}
}

func (s *Sink) receiveZeros(r Run) error {
	var zeros []Run
	s.mu.Lock()
	for p := r.First; p < r.end(); p++ {
		if want, state := s.table.Get(p); state == Named {
			s.mu.Unlock()
			return s.pageError(p, want, ZeroHash, ErrContent)
		}
		if !s.lacksLocked(p) {
			continue
		}
		s.table.Set(Run{p, 1}, Zero)
		s.stats.zeroPages.Add(1)
		zeros = s.zeroLocked(zeros, p)
	}
	s.mu.Unlock()
	if err := s.release(r); err != nil {
		return err
	}
	return s.fillZeros(zeros)
}

// zeroLocked takes in a page of zeroes. It stays a hole as long as nobody
// waits for it; with larger kernel pages that takes all pages of one. zeros
// gathers those to be put in place now.
func (s *Sink) zeroLocked(zeros []Run, p PageNum) []Run {
	s.aside.drop(p)
	if s.armed && (s.group > 1 || s.waits[p] != nil) {
		s.state[p] = filling
		if n := len(zeros); n > 0 && zeros[n-1].end() == p {
			zeros[n-1].Count++
			return zeros
		}
		return append(zeros, Run{p, 1})
	}
	s.state[p] = lazy
	s.arrivedLocked(1)
	return zeros
}

func (s *Sink) arrivedLocked(n int) {
	s.missing -= n
	if s.missing == 0 && n > 0 {
		s.aside = versions{} // what was kept for reuse, too
		close(s.done)
	}
}

// fillZeros puts zeroes in place for pages that are filling.
func (s *Sink) fillZeros(runs []Run) error {
	for _, r := range runs {
		if s.group > 1 {
			for p := r.First; p < r.end(); p++ {
				if err := s.stage(p, zeroPage[:]); err != nil {
					return err
				}
			}
			continue
		}
		if err := s.installZeros(r); err != nil {
			return err
		}
		s.settle(r)
	}
	return nil
}

// fill puts data in place from page first on; those pages are filling.
func (s *Sink) fill(first PageNum, data []byte) error {
	r := Run{first, uint32(len(data) / PageSize)}
	switch {
	case !s.isArmed():
		if err := s.cfg.Region.write(first, data); err != nil {
			return err
		}
	case s.group > 1:
		for i := range r.Count {
			if err := s.stage(first+PageNum(i), data[int(i)*PageSize:int(i+1)*PageSize]); err != nil {
				return err
			}
		}
		return nil
	default:
		if err := s.install(first, data); err != nil {
			return err
		}
	}
	s.settle(r)
	return nil
}

// stage gathers the pages of a kernel page, and puts it in place with the
// last of them.
func (s *Sink) stage(p PageNum, page []byte) error {
	first := p - p%PageNum(s.group)
	s.mu.Lock()
	st := s.stages[first]
	if st == nil {
		st = &stage{bytes: make([]byte, s.group*PageSize), left: s.group}
		// Zero pages that were known from the start are in no frame.
		for q := first; q < first+PageNum(s.group); q++ {
			if s.state[q] == lazy {
				st.left--
			}
		}
		s.stages[first] = st
	}
	copy(st.bytes[int(p-first)*PageSize:], page)
	st.left--
	s.state[p] = staged
	full := st.left == 0
	if full {
		delete(s.stages, first)
	}
	s.mu.Unlock()
	if !full {
		return nil
	}
	if err := s.install(first, st.bytes); err != nil {
		return err
	}
	s.settle(Run{first, uint32(s.group)})
	return nil
}

// settle notes that pages are in place, and that who waited for them does no
// more. Pages that were lazy have been counted.
func (s *Sink) settle(r Run) {
	var now time.Time
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for p := r.First; p < r.end(); p++ {
		if s.state[p] == filling || s.state[p] == staged {
			n++
		}
		s.state[p] = present
		s.aside.drop(p)
		w := s.waits[p]
		if w == nil {
			continue
		}
		if now.IsZero() {
			now = time.Now()
		}
		delete(s.waits, p)
		took := now.Sub(w.since)
		s.latency.add(took)
		if s.cfg.OnFault != nil {
			s.cfg.OnFault(took)
		}
		if w.remote {
			s.remote.add(took)
			if w.tries == 1 && w.lead && !w.asking {
				s.rtt += (took - s.rtt) / 4
				s.trend.waited(took)
			}
		}
	}
	s.arrivedLocked(n)
}

func (s *Sink) pageError(p PageNum, want, got Hash, err error) error {
	return &PageError{Worker: s.cfg.Worker, Page: p, Want: want, Got: got, Err: err}
}

// onFault deals with a page that somebody waits for, on the fault thread. It
// must not wait for the network or for anything that might. buf is the
// thread's own, on the heap, aheadMost pages.
func (s *Sink) onFault(p PageNum, buf []byte) error {
	if int(p) >= s.pages {
		return fmt.Errorf("fault on page %d of a memory of %d", p, s.pages)
	}
	p -= p % PageNum(s.group)
	now := time.Now()
	for {
		s.mu.Lock()
		state := s.kernelPageLocked(p)
		if state == present {
			// Served since the fault was queued.
			s.mu.Unlock()
			return s.wake(p)
		}
		w := s.waits[p]
		if w == nil {
			w = &wait{since: now}
			s.waits[p] = w
			s.stats.faults.Add(1)
			s.touched = append(s.touched, p)
		}
		switch state {
		case lazy:
			// Untouched zeroes are mostly a heap that grows: bring what
			// follows as well.
			r := Run{p, uint32(s.group)}
			if s.group == 1 {
				for most := s.ahead.at(p); r.Count < most && int(r.end()) < s.pages && s.state[r.end()] == lazy; {
					r.Count++
				}
			}
			s.ahead.next = r.end()
			s.mu.Unlock()
			s.stats.local.Add(1)
			if err := s.installZeros(r); err != nil {
				return err
			}
			s.settle(r)
			return nil
		case filling, staged:
			s.mu.Unlock()
			return nil
		case asked:
			if !w.remote {
				w.remote, w.asked, w.tries = true, now, 1
				s.stats.demanded.Add(1)
			}
			// It was foretold, and what follows it may be as well.
			s.aheadLocked(p)
			s.mu.Unlock()
			s.wantsNotify()
			return nil
		}

		first := p
		for s.state[first] != absent {
			first++
		}
		if r := s.localLocked(first, 1, buf); r.Count > 0 {
			s.mu.Unlock()
			// The page itself first, so that its reader goes on; what it may
			// want next while it does.
			if err := s.fillLocal(r, buf); err != nil {
				return err
			}
			s.stats.local.Add(1)
			if s.group > 1 {
				continue // other pages of the kernel page may still be missing
			}
			s.mu.Lock()
			r = s.localLocked(r.end(), min(s.ahead.at(p)-1, aheadMost), buf)
			s.ahead.next = max(p+1, r.end())
			s.mu.Unlock()
			if r.Count == 0 {
				return nil
			}
			return s.fillLocal(r, buf)
		}
		if !w.remote {
			w.remote, w.asked, w.tries = true, now, 1
			s.stats.demanded.Add(1)
		}
		w.lead = true
		s.askLocked(p, false)
		s.aheadLocked(p)
		s.mu.Unlock()
		s.wantsNotify()
		return nil
	}
}

// kernelPageLocked is the state of the kernel page that starts at page p:
// that of its page which is furthest from being in.
func (s *Sink) kernelPageLocked(p PageNum) uint8 {
	state := s.state[p]
	for i := 1; i < s.group; i++ {
		state = min(state, s.state[p+PageNum(i)])
	}
	return state
}

// askLocked queues wants for what is absent of the kernel page at p, and says
// how much that is. With join they may become part of the want before.
func (s *Sink) askLocked(p PageNum, join bool) (pages int) {
	for q := p; q < p+PageNum(s.group); q++ {
		if s.state[q] != absent {
			continue
		}
		s.state[q] = asked
		pages++
		if n := len(s.wants); n > 0 && join && !s.wants[n-1].again && s.wants[n-1].run.end() == q && s.wants[n-1].run.Count < maxRun {
			s.wants[n-1].run.Count++
		} else {
			s.wants = append(s.wants, want{run: Run{q, 1}})
		}
		join = true
	}
	return pages
}

// aheadLocked queues wants for the pages that will likely be touched after p.
func (s *Sink) aheadLocked(p PageNum) {
	g := s.trend.fault(int(p) / s.group)
	b := batch{lead: p}
	for i := range g.count {
		u := g.first + i*g.stride
		if u < 0 || (u+1)*s.group > s.pages {
			break
		}
		b.extras += s.askLocked(PageNum(u*s.group), true)
	}
	if b.extras > 0 {
		if len(s.batches) == maxBatches {
			s.batches = s.batches[:copy(s.batches, s.batches[1:])]
		}
		s.batches = append(s.batches, b)
	}
}

// maxBatches is of how many faults the extra pages are waited for.
const maxBatches = 16

// answered measures what extra pages cost, by the frames of the demand stream:
// their answers follow that for the page they came along with at once.
func (s *Sink) answered(r Run) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.batches {
		if s.batches[i].lead == r.First {
			s.batches = s.batches[:copy(s.batches, s.batches[i:])]
			s.batches[0].at = now
			return
		}
	}
	if len(s.batches) == 0 || s.batches[0].at.IsZero() || s.batches[0].extras < int(r.Count) {
		return
	}
	b := &s.batches[0]
	s.trend.took(now.Sub(b.at), int(r.Count))
	b.at = now
	b.extras -= int(r.Count)
}

func (s *Sink) wantsNotify() {
	select {
	case s.wantsReady <- struct{}{}:
	default:
	}
	for i := range s.cfg.Peers {
		select {
		case s.faulted[i] <- struct{}{}:
		default:
		}
	}
}

// localLocked takes page p and what follows, at most most pages, as far as the
// store has them, into buf, and marks them filling. The run is empty if the
// store lacks p.
func (s *Sink) localLocked(p PageNum, most uint32, buf []byte) Run {
	r := Run{p, 0}
	if s.cfg.Store == nil {
		return r
	}
	for r.Count < most && int(r.end()) < s.pages && s.state[r.end()] == absent {
		name, state := s.table.Get(r.end())
		if state != Named || !s.cfg.Store.Get(name, buf[int(r.Count)*PageSize:int(r.Count+1)*PageSize]) {
			break
		}
		s.state[r.end()] = filling
		r.Count++
	}
	return r
}

// fillLocal puts in place what localLocked took. It is not hashed again: the
// store, in this process, was given it by that name only after it was hashed, and
// Neighbours gives only what it has just hashed.
func (s *Sink) fillLocal(r Run, buf []byte) error {
	s.stats.storePages.Add(uint64(r.Count))
	return s.fill(r.First, buf[:int(r.Count)*PageSize])
}

// fillFromStore brings in all pages whose names are known and that the store
// has.
func (s *Sink) fillFromStore(ctx context.Context) error {
	if s.cfg.Store == nil {
		return nil
	}
	buf := make([]byte, aheadMost*PageSize)
	for p := PageNum(0); int(p) < s.pages; p++ {
		if p%256 == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		s.mu.Lock()
		r := s.localLocked(p, aheadMost, buf)
		s.mu.Unlock()
		if r.Count > 0 {
			if err := s.fillLocal(r, buf); err != nil {
				return err
			}
			p = r.end() - 1
		}
	}
	return nil
}

// bring puts a page in place that a Peer has brought, and whose content was
// checked, unless it is in, or arriving.
func (s *Sink) bring(p PageNum, _ Hash, page []byte) error {
	if !s.claim(p) {
		s.stats.duplicates.Add(1)
		return nil
	}
	s.peers.brought.Add(1)
	return s.fill(p, page)
}

// claim marks a page filling, unless it is in, or arriving.
func (s *Sink) claim(p PageNum) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.lacksLocked(p) {
		return false
	}
	s.state[p] = filling
	return true
}

// lacking answers names that the Source sent ahead: what the store or a neighbour
// has is put in place, and bit i of lacks is set if the i-th page, which has name
// i, is not in. It waits for the neighbours until stop is closed or all is in.
func (s *Sink) lacking(stop <-chan struct{}, fr *frame, names *[maxRun]Hash, lacks, buf []byte) ([]byte, error) {
	lacks = append(lacks[:0], make([]byte, (len(fr.kinds)+7)/8)...)
	next := 0
	var last Hash
	var zeros []Run
	for i, k := range fr.kinds {
		p := fr.run.First + PageNum(i)
		name := ZeroHash
		if k == pageSame {
			return nil, badFrame("names: page %d is to be as in a base that was not told", p)
		}
		if k == pageRaw {
			last = Hash(fr.names[32*next:])
			next++
		}
		if k != pageZero {
			name = last
		}
		names[i] = name
		s.mu.Lock()
		if want, state := s.table.Get(p); state != Unknown && want != name {
			s.mu.Unlock()
			return nil, s.pageError(p, want, name, ErrContent)
		}
		s.table.SetName(p, name)
		switch {
		case !s.lacksLocked(p): // in, or just arriving
			s.mu.Unlock()
			continue
		case k == pageZero:
			s.stats.zeroPages.Add(1)
			zeros = s.zeroLocked(zeros, p)
			s.mu.Unlock()
			continue
		case s.cfg.Store == nil || !s.cfg.Store.Get(name, buf[:PageSize]):
			s.mu.Unlock()
			s.cfg.Neighbours.wait(stop, s.done)
			if !s.cfg.Neighbours.Fetch(name, buf[:PageSize]) {
				lacks[i/8] |= 1 << (i % 8)
				continue
			}
			if s.claim(p) {
				if err := s.fillLocal(Run{p, 1}, buf); err != nil {
					return nil, err
				}
			}
			continue
		}
		s.state[p] = filling
		s.mu.Unlock()
		if err := s.fillLocal(Run{p, 1}, buf); err != nil {
			return nil, err
		}
	}
	return lacks, s.fillZeros(zeros)
}
