package pager

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// roundFrame is how many pages a frame of a round has, 64 KiB: the last
	// one to leave before the freeze delays what follows by no more.
	roundFrame = 16
	// roundWindow bounds what is sent and not yet acknowledged, in bytes. What
	// is on its way at the freeze has to be sent again.
	roundWindow = 4 << 20
	// roundWrite is how many bytes are written at once, where frames are smaller.
	roundWrite = 8 << 10
	// roundPause is the time between two looks at what was written.
	roundPause = 20 * time.Millisecond
	// roundFew is how many pages, or bytes for as many, 128 KiB, are too few for
	// another round.
	roundFew = 32
	// roundShrink is by how much less a round must leave than the one before.
	roundShrink = 2
	// judgeFrom is how many pages are sent, 4 MiB, before it is judged what that
	// was good for: of those at least one in judgeShare has to count, else the
	// worker writes about as fast as the link carries, and more rounds cost
	// more than they bring.
	judgeFrom  = 1024
	judgeShare = 2
	// roundsSlow is how many rounds in a row may bring little where what is left
	// goes as patches: such rounds cost next to nothing, and what a busy machine
	// keeps from one of them another brings.
	roundsSlow = 3
	// patchGood is what a page that is sent again takes at most, in bytes, where
	// patches are said to do.
	patchGood = PageSize / 4
	// rateMemory is of how many bytes sent last the rate is an average.
	rateMemory = 16 << 20
	// roundsMost bounds the rounds of a worker whose writes neither converge
	// nor stall.
	roundsMost = 30
)

// RoundsConfig says whose memory is sent while it is written.
type RoundsConfig struct {
	// Worker is the worker's id, 1 to 64 bytes, and Epoch the one in which it
	// runs.
	Worker string
	Epoch  uint64
	// Memory is the mapping of all that the worker's memory may grow to.
	Memory []byte
	// Size is asked for how much of it is in use, in bytes, whole pages. It
	// never falls and must be safe for concurrent use.
	Size func() int64
	// Zero lists pages that were never written when Tracker was started.
	Zero []Run
	// Tracker has been started over that memory. The Rounds use it alone.
	Tracker *Tracker
	// Base is what the memory was when the worker came here, every page named:
	// nil if it was made here. A destination that knew it as that, too, is told
	// no name that has not changed.
	Base *Table
	// WorkingSet lists pages that the worker is known to use, in the order in
	// which they should follow after the freeze. It counts until Sample is
	// called.
	WorkingSet []PageNum
	// Pause is how long the worker may stand still for what the rounds have left,
	// where all of its memory has to be there before it resumes: once that much
	// can be sent they settle. 0 if it resumes before, or nobody has said.
	Pause time.Duration
	// Versions is how many bytes the Rounds may take to remember pages as they
	// were sent, so that the next version can be sent as a patch: 16 MiB if 0.
	Versions int64
	// Share is as in SourceConfig, and closed by Close.
	Share *Share
	// Log is never nil.
	Log *slog.Logger
}

// Rounds sends the memory of a running worker to where it will run: pages
// that were not written lately first, then, round after round, what was
// written since. It is pre-copy (Clark et al., Live Migration of Virtual
// Machines, NSDI 2005) with one difference: since missing pages can be
// fetched after the commit, rounds leave out what is written all the time.
//
// What makes it right: a page is only copied after the scan that renewed its
// write protection, so a write that the copy missed is found by a later scan,
// the last of which Freeze makes when the worker stands still. A page counts
// as held by the far side once the frame that carried its last version was
// acknowledged, or the one that named it was answered so. Everything else is
// sent after the freeze.
//
// All methods are safe for concurrent use.
type Rounds struct {
	cfg RoundsConfig
	log *slog.Logger

	scanning sync.Mutex // held around Tracker
	runs     []Run
	broken   bool   // a scan has failed
	held     bool   // Hold was called
	current  bool   // Hold's last scan has found what was written before it
	ready    *Ahead // by Prepare; nil if there is none since Hold
	tracked  int64  // bytes that Tracker covers

	settled chan struct{} // closed when another round would bring little
	frozen  chan struct{} // closed by Freeze
	next    chan *Source  // what the stream goes on with
	wake    chan struct{} // room for one
	stats   roundsStats

	mu      sync.Mutex
	pages   int // in use
	recency *Recency
	touched []PageNum // since Sample, in the order of their first touch
	sampled []bool    // touched as a set; nil before Sample
	state   []uint8
	sentAt  []uint32        // the frame that carried the page's last version; 0 for none
	newest  []uint32        // the last frame that carried some of a block of pages
	there   []bool          // the far side may have a version of the page
	names   []Hash          // of the pages as they were last sent
	known   []atomic.Uint32 // which of those still hold: nameUnset, nameSet or nameZero
	passed  []uint8         // for the Source: how a page was passed on
	missing []bool          // for the Source: pages that the far side lacks
	todo    int
	seq     uint32 // of the last frame sent, over all streams
	acked   uint32 // frames up to this one were acknowledged
	round   int
	left    float64       // bytes to be sent at the end of the last round
	slow    int           // rounds in a row that have brought little
	closing bool          // no more pages are sent, only what has become stale
	asked   chan struct{} // by Tell, which waits for it; nil if the stream has seen that
	picked  int           // pages taken to be sent since judged was todo
	judged  int
	rate    float64
	rateOf  float64 // bytes that tell the rate
	dirty   float64 // bytes a second
	noted   time.Time
	stream  *serving
	closed  bool
	active  sync.WaitGroup
}

// What the Rounds know of a page.
const (
	roundHole  = iota // never written: nothing to send
	roundTodo         // to be sent
	roundSent         // in frame sentAt, and not written since
	roundNamed        // its name is in frame sentAt, and has no answer yet
	roundGone         // written since, and in frame sentAt the far side was told
)

type roundsStats struct {
	pages, named, held, bytes atomic.Uint64
}

// RoundsStats says how far the rounds are.
type RoundsStats struct {
	// Round counts from 1, and is 0 before the first.
	Round int
	// Pages is the size of the memory, Todo how many pages have to be sent as
	// things stand.
	Pages, Todo int
	// Sent pages had bytes; Held ones were at the far side by their names.
	// Pages sent in several rounds count for each.
	Sent, Held uint64
	// Bytes is all that was written to the stream.
	Bytes uint64
	// WorkingSet is how many pages the worker has touched since Sample, or
	// those of RoundsConfig before.
	WorkingSet int
	// Rate is what the stream carries, and Dirty what the worker writes, as
	// pages of their own between two scans, both in bytes a second; 0 if not
	// known.
	Rate, Dirty float64
}

// NewRounds makes Rounds. It starts nothing.
func NewRounds(cfg RoundsConfig) (*Rounds, error) {
	limit := len(cfg.Memory) / PageSize
	switch {
	case cfg.Worker == "" || len(cfg.Worker) > maxWorkerBytes:
		return nil, fmt.Errorf("rounds: worker id of %d bytes: want 1 to %d", len(cfg.Worker), maxWorkerBytes)
	case len(cfg.Memory)%PageSize != 0 || limit > MaxPages:
		return nil, fmt.Errorf("rounds: memory of %d bytes: want whole pages, at most %d", len(cfg.Memory), MaxPages)
	case cfg.Tracker == nil || !cfg.Tracker.started:
		return nil, errors.New("rounds: no tracker, or one that was not started")
	case cfg.Size == nil || cfg.Log == nil:
		return nil, errors.New("rounds: no size or no log")
	}
	pages := cfg.Tracker.pages
	if err := checkRuns(cfg.Zero, pages); err != nil {
		return nil, fmt.Errorf("rounds: zero pages: %w", err)
	}
	if pages > limit {
		return nil, fmt.Errorf("rounds: %d pages are watched in a memory of %d", pages, limit)
	}
	r := &Rounds{
		cfg: cfg, log: cfg.Log.With("worker", cfg.Worker, "epoch", cfg.Epoch),
		settled: make(chan struct{}), frozen: make(chan struct{}), next: make(chan *Source, 1), wake: make(chan struct{}, 1),
		tracked: int64(pages) * PageSize, pages: pages, recency: NewRecency(pages),
		state: make([]uint8, limit), sentAt: make([]uint32, limit), there: make([]bool, limit), names: make([]Hash, limit), known: make([]atomic.Uint32, limit),
		newest: make([]uint32, (limit+flagBlock-1)/flagBlock), passed: make([]uint8, limit), missing: make([]bool, limit),
		todo: pages - CountPages(cfg.Zero),
	}
	for p := range pages {
		r.state[p] = roundTodo
	}
	for _, p := range cfg.WorkingSet {
		if int(p) < pages {
			r.touched = append(r.touched, p)
		}
	}
	for _, z := range cfg.Zero {
		for p := z.First; p < z.end(); p++ {
			r.state[p] = roundHole
		}
	}
	return r, nil
}

// Scan asks what the worker has written. It is to be called now and then, also
// before the first stream: what was written lately is sent last.
func (r *Rounds) Scan() error {
	r.scanning.Lock()
	defer r.scanning.Unlock()
	if r.held || isClosed(r.frozen) {
		return errFrozen
	}
	if err := r.scan(); err != nil {
		return err
	}
	return r.sample()
}

var errFrozen = errors.New("rounds: the memory is frozen")

// Hold looks once more what was written, and makes every Scan an error up to
// Freeze, which is about to follow: the worker does not wait there for a scan
// under way, and little is left for the last one to find. It may be called again.
func (r *Rounds) Hold() {
	r.scanning.Lock()
	defer r.scanning.Unlock()
	r.held, r.current, r.ready = true, false, nil
	defer r.notify()
	if r.cfg.Tracker.dear() || isClosed(r.frozen) {
		return
	}
	if err := r.scan(); err != nil {
		r.log.Debug("scan before the freeze", "error", err)
		return
	}
	r.current = true
}

// Prepare is called after Hold, with the pages that are zero since they were
// never written. It gets ready what Freeze will return if nothing is written up
// to then.
func (r *Rounds) Prepare(zero []Run) {
	r.scanning.Lock()
	defer r.scanning.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	// It may have grown since.
	within := len(zero) == 0 || int(zero[len(zero)-1].end()) <= r.pages
	if r.current && !r.broken && within && !isClosed(r.frozen) {
		r.ready = r.aheadLocked(r.pages, zero)
	}
}

// scan is called with scanning held.
func (r *Rounds) scan() error {
	size := min(r.cfg.Size(), int64(len(r.cfg.Memory)))
	if size > r.tracked {
		if err := r.cfg.Tracker.Grow(size); err != nil {
			return err
		}
		r.mu.Lock()
		// What was written of it before it was watched is not known.
		for p := r.pages; p < PagesOf(size); p++ {
			r.state[p] = roundTodo
			r.todo++
			r.judged++
		}
		r.pages = PagesOf(size)
		r.mu.Unlock()
		r.tracked = size
	}
	var err error
	if r.runs, err = r.cfg.Tracker.Scan(r.runs[:0]); err != nil {
		// It may have renewed the protection of pages and not told of them.
		r.broken = true
		return err
	}
	r.note()
	return nil
}

// Sample is to be called when the runner has dropped its page-table entries:
// from then on every Scan looks which pages were touched for the first time.
// Those go first after the freeze, in that order: what a worker touches first
// it touches often.
func (r *Rounds) Sample() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sampled = make([]bool, r.limit())
	r.touched = r.touched[:0]
}

// Tell has the far side told at once what is stale by now, and returns when that is
// out of its memory, or after most. It is for the moment before Hold, when the
// rounds have settled: what is told then is not dropped while the worker stands
// still.
func (r *Rounds) Tell(most time.Duration) {
	if err := r.Scan(); err != nil {
		return // what is wrong shows again
	}
	told := make(chan struct{})
	r.mu.Lock()
	r.asked = told
	r.mu.Unlock()
	r.notify()
	late := time.NewTimer(most)
	defer late.Stop()
	select {
	case <-told:
	case <-late.C:
	}
}

// sample takes in what was touched. It is called with scanning held.
func (r *Rounds) sample() error {
	r.mu.Lock()
	on := r.sampled != nil
	r.mu.Unlock()
	if !on {
		return nil
	}
	var err error
	if r.runs, err = r.cfg.Tracker.Touched(r.runs[:0]); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, run := range r.runs {
		for p := run.First; p < run.end(); p++ {
			if !r.sampled[p] {
				r.sampled[p] = true
				r.touched = append(r.touched, p)
			}
		}
	}
	return nil
}

// note takes in what was written. It is called with scanning held.
func (r *Rounds) note() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.recency.Note(r.runs)
	n := 0
	for _, run := range r.runs {
		n += int(run.Count)
		for p := run.First; p < run.end(); p++ {
			if r.state[p] != roundTodo && r.state[p] != roundGone {
				r.state[p] = roundTodo
				r.todo++
			}
			r.known[p].Store(nameUnset)
		}
	}
	now := time.Now()
	if past := now.Sub(r.noted); r.noted.IsZero() {
		r.noted = now
	} else if past >= roundPause/2 {
		r.dirty += (float64(n)*PageSize/past.Seconds() - r.dirty) / 4
		r.noted = now
	}
}

// Stats says how far the rounds are.
func (r *Rounds) Stats() RoundsStats {
	r.mu.Lock()
	defer r.mu.Unlock()
	return RoundsStats{
		Round: r.round, Pages: r.pages, Todo: r.todo, Sent: r.stats.pages.Load(),
		Held: r.stats.held.Load(), Bytes: r.stats.bytes.Load(), Rate: r.rate, Dirty: r.dirty, WorkingSet: len(r.touched),
	}
}

// Settled is closed once another round would bring little: next to nothing is
// left, or as much is written as is sent. The rounds go on until Freeze.
func (r *Rounds) Settled() <-chan struct{} { return r.settled }

// End makes the rounds settle now. What was not sent, or has been written since,
// follows after Freeze.
func (r *Rounds) End() {
	r.mu.Lock()
	r.settleLocked("no more time")
	r.mu.Unlock()
	r.notify()
}

// Limit is the pages that the memory may grow to, as Hello.Pages has it.
func (r *Rounds) limit() int { return len(r.cfg.Memory) / PageSize }

// An Ahead is what the rounds have brought by the time of the freeze.
type Ahead struct {
	Layout Layout
	names  []Hash
	known  []atomic.Uint32
	passed []uint8
	unsent int
	recent func() []Run
	first  func() []Run       // as recent, without what is held
	sure   func(PageNum) bool // what was sent of the page has been acknowledged
}

// Freeze is called once, when the worker stands still with a memory of pages,
// of which those of zero were never written. With still it has stood still since
// before Hold was last called: then what Prepare has got ready is returned, and
// how large the memory is makes no difference. Another call of Scan is an error
// from then on. What the stream carries after it is of the frozen memory, as
// soon as Continue was called.
func (r *Rounds) Freeze(pages int, zero []Run, still bool) (*Ahead, error) {
	r.scanning.Lock()
	defer r.scanning.Unlock()
	if isClosed(r.frozen) {
		return nil, errFrozen
	}
	a := r.ready
	if still && a != nil && a.Layout.Pages == pages && slices.Equal(a.Layout.Zero, zero) {
		r.mu.Lock()
		defer r.mu.Unlock()
	} else {
		if err := r.scan(); err != nil {
			r.log.Warn("writes not found: what was sent ahead does not count", "error", err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.distrustLocked()
		if pages > r.limit() || pages < r.pages {
			return nil, fmt.Errorf("rounds: frozen with %d pages of %d, had %d", pages, r.limit(), r.pages)
		}
		a = r.aheadLocked(pages, zero)
	}
	close(r.frozen)
	r.log.Debug("rounds ended", "rounds", r.round, "pages", pages, "unsent", a.unsent)
	return a, nil
}

// aheadLocked is what the rounds have brought if the worker stands still now
// with a memory of pages, of which those of zero were never written. What is
// sent or acknowledged afterwards counts as not sent. It may be called again.
func (r *Rounds) aheadLocked(pages int, zero []Run) *Ahead {
	a := &Ahead{
		Layout: Layout{Pages: pages, Zero: zero},
		names:  r.names[:pages], known: r.known[:pages], passed: r.passed[:pages], unsent: pages,
	}
	// The worker may stand still: what is held is passed over by blocks.
	state, acked, missing := r.state[:r.pages], r.acked, r.missing
	clear(missing)
	allSent, allHeld := block(roundSent), block(held)
	for first := 0; first < len(state); first += flagBlock {
		part := state[first:min(first+flagBlock, len(state))]
		if r.newest[first/flagBlock] <= acked && span(part, allSent) == len(part) {
			a.unsent -= copy(a.passed[first:], allHeld[:len(part)])
			continue
		}
		for i, s := range part {
			p := first + i
			known := r.there[p] && r.sentAt[p] <= acked
			if known && s == roundSent {
				a.passed[p] = held
				a.unsent--
				continue
			}
			a.passed[p] = unsent
			missing[p] = true
			if r.there[p] && !(known && s == roundGone) {
				a.Layout.Stale = appendRun(a.Layout.Stale, Run{PageNum(p), 1})
			}
		}
	}
	for _, z := range zero {
		for p := z.First; p < z.end(); p++ {
			a.known[p].Store(nameZero)
			a.passed[p] = held
		}
		a.unsent -= int(z.Count)
	}
	// Sorting takes time that the worker does not have now.
	touched := r.touched
	order := func(of func(PageNum) bool) func() []Run {
		return sync.OnceValue(func() []Run {
			var runs []Run
			for _, p := range touched {
				if of(p) {
					runs = appendRun(runs, Run{p, 1})
				}
			}
			return append(runs, r.recency.order(of)...)
		})
	}
	a.recent = order(func(PageNum) bool { return true })
	a.first = order(func(p PageNum) bool { return missing[p] })
	// After the freeze no frame is numbered any more.
	sentAt := r.sentAt[:r.pages]
	a.sure = func(p PageNum) bool { return int(p) < len(sentAt) && sentAt[p] <= acked }
	return a
}

// distrustLocked takes back what the scans cannot vouch for. Where one has
// failed that is everything. And hashes tell what differs from the last scan:
// a page that was sent between two scans with a content that it had only then
// looks as if it had never been written.
func (r *Rounds) distrustLocked() {
	hashes := r.cfg.Tracker.hashes
	if hashes == nil && !r.broken {
		return
	}
	for p := range r.pages {
		known := r.known[p].Load()
		if !r.broken && p < len(hashes) {
			switch {
			case known == nameSet && r.names[p] == hashes[p], known == nameZero && hashes[p] == ZeroHash:
				continue
			case known == nameUnset && r.state[p] != roundSent:
				continue
			}
		}
		r.known[p].Store(nameUnset)
		if r.state[p] == roundSent || r.state[p] == roundNamed {
			r.state[p] = roundTodo
			r.todo++
		}
	}
}

// Continue gives the stream, if there is one, to the Source of the frozen
// memory.
func (r *Rounds) Continue(s *Source) { r.next <- s }

// Close ends the stream, also one that a Source has taken over, and returns
// when nothing reads the memory on behalf of the Rounds any more.
func (r *Rounds) Close() {
	r.mu.Lock()
	r.closed = true
	if r.stream != nil {
		r.stream.cancel(ErrGone)
	}
	r.mu.Unlock()
	r.active.Wait()
	if r.cfg.Share != nil {
		r.cfg.Share.Close()
	}
}

// Serve serves a stream whose Hello asked for rounds, until it breaks, ctx is
// done, the Rounds are closed, or the Source that took it over has ended. A
// newer stream ends this one; what it had not acknowledged is sent again.
func (r *Rounds) Serve(ctx context.Context, hello Hello, rw io.ReadWriter) error {
	if hello.Worker != r.cfg.Worker || hello.Epoch != r.cfg.Epoch {
		_ = Refuse(rw, CodeGone, fmt.Sprintf("worker %q in epoch %d is not held here", hello.Worker, hello.Epoch))
		return fmt.Errorf("stream for worker %q in epoch %d: %w", hello.Worker, hello.Epoch, ErrGone)
	}
	if !hello.Rounds || hello.Pages != r.limit() || len(hello.Have) > 0 {
		_ = Refuse(rw, CodeRefused, fmt.Sprintf("not rounds over %d pages", r.limit()))
		return badFrame("hello that does not ask for rounds over %d pages", r.limit())
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	me := &serving{cancel: cancel, done: make(chan struct{})}
	defer close(me.done)
	before, err := r.enter(me)
	if err != nil {
		_ = Refuse(rw, CodeGone, "the worker stands still already")
		return err
	}
	var leave sync.Once
	defer leave.Do(r.active.Done)
	defer context.AfterFunc(ctx, func() { interrupt(rw) })()
	if before != nil {
		before.cancel(errReplaced)
		<-before.done
	}
	st := &roundStream{
		Rounds: r, rw: rw, buf: make([]byte, maxRun*PageSize), ahead: hello.Names,
		accepts: hello.Accepts, choose: newChooser(hello.Accepts, r.cfg.Share.most()),
		framer: newFramer(hello.Accepts), resend: PageSize, most: int(cmp.Or(r.cfg.Versions, versionsMost) / PageSize),
	}
	if base := r.cfg.Base; hello.Names && base != nil && hello.Base == base.Digest() {
		st.base = base
	}
	st.meter, _ = rw.(Meter)
	r.log.Debug("rounds begin", "names", st.ahead, "base", st.base != nil)
	err = st.serve(ctx, func(src *Source, ended <-chan error) error {
		leave.Do(r.active.Done) // from here on it is the Source that reads the memory
		return src.takeOver(ctx, rw, me, hello.Accepts, &st.versions, ended)
	})
	if ctx.Err() != nil && err != nil {
		return context.Cause(ctx)
	}
	return err
}

var errReplaced = errors.New("replaced by a newer stream")

func (r *Rounds) enter(me *serving) (before *serving, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || isClosed(r.frozen) {
		return nil, ErrGone
	}
	before, r.stream = r.stream, me
	r.active.Add(1)
	return before, nil
}

func (r *Rounds) notify() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// A roundStream is one stream of rounds being served.
type roundStream struct {
	*Rounds
	rw       io.ReadWriter
	pace     pace
	meter    Meter // of rw; nil if it has none
	accepts  Encodings
	choose   *chooser
	ahead    bool     // the far side wants names ahead of bytes
	base     *Table   // which it knows, or nil
	again    bool     // the first round is over
	versions versions // what it holds of pages that may be written again
	most     int      // of them
	patches  int      // sent
	resend   float64  // bytes that a page sent again takes, PageSize if not known
	framer   *framer
	buf      []byte // pages, copied
	hashes   [maxRun]Hash
	frame    []byte
	out      []byte // frames not yet written
	kinds    []byte
	said     []byte // names in the frame

	// Guarded by Rounds.mu:
	first    uint32 // frames of this stream are numbered from first+1
	list     []Run  // what is left of this round
	since    uint32 // the scan that the list is from
	offered  []bool // pages whose names were sent ahead
	offers   []roundOffer
	tally    namesTally
	inFlight int   // bytes not acknowledged
	sizes    []int // of the frames not acknowledged
}

// A roundOffer is a frame of names, of which left pages have no answer.
type roundOffer struct {
	run  Run
	seq  uint32
	left int
	was  []bool // there, before: so it is again of what the far side lacks
}

// errDone means that the far side wants nothing more.
var errDone = errors.New("the far side has all it wants")

func (st *roundStream) serve(ctx context.Context, takeOver func(*Source, <-chan error) error) error {
	st.mu.Lock()
	// What went out on another stream and was not acknowledged may be lost.
	for p := range st.pages {
		switch state := st.state[p]; {
		case state == roundNamed, state == roundSent && st.sentAt[p] > st.acked:
			st.state[p] = roundTodo
			st.todo++
		case state == roundGone && st.sentAt[p] > st.acked:
			st.state[p] = roundTodo // and counted as that
		}
	}
	st.first, st.acked = st.seq, st.seq
	st.picked, st.judged = 0, st.todo
	if st.ahead {
		st.offered = make([]bool, st.limit())
	}
	st.mu.Unlock()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// One goroutine reads for as long as the stream lives: when a Source has
	// taken over, all that may still come is Done.
	ended := make(chan error, 1)
	var reading sync.WaitGroup
	defer reading.Wait()
	reading.Go(func() {
		err := st.read()
		ended <- err
		cancel(cmp.Or(err, errDone))
	})
	err := st.write(appendEmpty(st.frame[:0], frameWelcome))
	if err == nil {
		err = st.rounds(ctx)
	}
	if err == nil {
		err = st.write(appendEmpty(st.frame[:0], frameFrozen))
	}
	if err == nil {
		select {
		case src := <-st.next:
			if err = takeOver(src, ended); err != nil {
				interrupt(st.rw) // or nobody may end the reading
			}
			return err
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	interrupt(st.rw)
	if errors.Is(err, errDone) {
		return nil
	}
	return err
}

func (st *roundStream) write(b []byte) error {
	n, err := st.rw.Write(b)
	st.stats.bytes.Add(uint64(n))
	if err != nil {
		return fmt.Errorf("send pages: %w", err)
	}
	return nil
}

// read takes acknowledgements and answers to names until Done, which is nil.
func (st *roundStream) read() error {
	in := newFrameReader(st.rw, st.limit(), frameLacks, frameAck, frameDone)
	for {
		fr, err := in.next()
		if err != nil {
			return streamEnd(err)
		}
		switch fr.kind {
		case frameDone:
			return nil
		case frameAck:
			err = st.acknowledged(fr.count)
		case frameLacks:
			err = st.answered(fr.run, fr.lacks)
		}
		if err != nil {
			return err
		}
		st.notify()
	}
}

// acknowledged notes that the far side has put in place what came in that many
// frames of this stream.
func (st *roundStream) acknowledged(count uint32) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	n := int64(count) - int64(st.acked-st.first) // newly
	if n <= 0 || n > int64(len(st.sizes)) {
		return badFrame("%d frames acknowledged of %d", count, st.seq-st.first)
	}
	if isClosed(st.frozen) {
		return nil // too late: Freeze has counted
	}
	for _, size := range st.sizes[:n] {
		st.inFlight -= size
	}
	st.sizes = st.sizes[n:]
	st.acked = st.first + count
	return nil
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// answered notes which pages of an offer, or of a part of it, the far side does
// not have. Those it has are in place. It may answer late, and in any order: it
// looks elsewhere meanwhile.
func (st *roundStream) answered(run Run, lacks []byte) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if isClosed(st.frozen) {
		return nil // too late: Freeze has counted
	}
	o := slices.IndexFunc(st.offers, func(o roundOffer) bool {
		return o.run.First <= run.First && run.end() <= o.run.end() && int(run.Count) <= o.left
	})
	if o < 0 {
		return badFrame("lacks for pages %d+%d that were not offered", run.First, run.Count)
	}
	offer := st.offers[o]
	if st.offers[o].left -= int(run.Count); st.offers[o].left == 0 {
		st.offers = slices.Delete(st.offers, o, o+1)
	}
	for i := range PageNum(run.Count) {
		p := run.First + i
		has := lacks[i/8]>>(i%8)&1 == 0
		st.tally.add(has)
		if has {
			st.stats.held.Add(1)
		} else if st.sentAt[p] == offer.seq {
			st.there[p] = offer.was[p-offer.run.First]
		}
		switch {
		case st.state[p] != roundNamed || st.sentAt[p] != offer.seq: // written since
		case has:
			st.state[p], st.sentAt[p] = roundSent, 0 // no frame brings it
		default:
			st.state[p] = roundTodo
			st.todo++
			st.judged++
			st.list = appendRun(st.list, Run{p, 1}) // in this round still
		}
	}
	return nil
}

// rounds sends until the memory is frozen, which is nil.
func (st *roundStream) rounds(ctx context.Context) error {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for !st.isClosing() {
		st.begin()
		begun, bytes := time.Now(), st.stats.bytes.Load()
		sent, err := st.sendRound(ctx, begun)
		if err != nil {
			return err
		}
		st.again = st.again || sent
		if bytes = st.stats.bytes.Load() - bytes; sent {
			st.measure(time.Since(begun), bytes)
		}
		pause.Reset(roundPause)
		select {
		case <-pause.C:
		case <-st.frozen:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err := st.look(); err != nil {
			return err
		}
		st.end()
	}
	return st.close(ctx, pause)
}

func (st *roundStream) isClosing() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.closing
}

// close tells the far side what has become stale, until the memory is frozen,
// which is nil: at the freeze only what was written last is left to tell.
func (st *roundStream) close(ctx context.Context, pause *time.Timer) error {
	var all uint32         // the last frame of what was stale when the rounds ended
	var told chan struct{} // by Tell, to be closed when frame last is acknowledged
	var last uint32
	for first := true; ; first = false {
		st.mu.Lock()
		asked := st.asked
		st.asked = nil
		st.mu.Unlock()
		if err := st.tellStale(); err != nil {
			return err
		}
		st.mu.Lock()
		if first {
			all = st.seq
		}
		if asked != nil {
			told, last = asked, st.seq
		}
		if st.acked >= all && !isClosed(st.settled) {
			close(st.settled)
		}
		if told != nil && st.acked >= last {
			close(told)
			told = nil
		}
		st.mu.Unlock()
		pause.Reset(roundPause)
		select {
		case <-st.wake:
		case <-pause.C:
			if err := st.look(); err != nil {
				return err
			}
		case <-st.frozen:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// tellStale sends what is stale and was not told yet.
func (st *roundStream) tellStale() error {
	for from := PageNum(0); ; {
		st.mu.Lock()
		if isClosed(st.frozen) {
			st.mu.Unlock()
			return nil
		}
		var runs []Run
		p := from
		for ; int(p) < st.pages && len(runs) < maxStaleRuns; p++ {
			// Freeze may wait for the lock.
			next := bytes.IndexByte(st.state[p:st.pages], roundTodo)
			if next < 0 {
				p = PageNum(st.pages)
				break
			}
			if p += PageNum(next); !st.there[p] {
				continue
			}
			if len(runs) == 0 {
				st.seq++
			}
			runs = appendRun(runs, Run{p, 1})
			st.state[p], st.sentAt[p] = roundGone, st.seq
		}
		from = p
		if len(runs) == 0 {
			st.mu.Unlock()
			return nil
		}
		st.frame = appendStale(st.frame[:0], runs)
		st.inFlight += len(st.frame)
		st.sizes = append(st.sizes, len(st.frame))
		st.mu.Unlock()
		if err := st.write(st.frame); err != nil {
			return err
		}
	}
}

// look scans, unless the memory is frozen meanwhile.
func (st *roundStream) look() error {
	if err := st.Scan(); !errors.Is(err, errFrozen) {
		st.judge()
		return err
	}
	return nil
}

// judge looks how many of the pages sent lately have not been written again.
func (st *roundStream) judge() {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.picked < judgeFrom {
		return
	}
	st.resend = st.resendLocked()
	// Where patches will do, a page is worth sending however soon it is written
	// again.
	if (st.judged-st.todo)*judgeShare < st.picked && !st.patching() {
		st.settleLocked("writes keep up with the link")
	}
	st.picked, st.judged = 0, st.todo
}

// patching reports whether most of what is written again can go as patches.
func (st *roundStream) patching() bool { return st.resend <= patchGood }

// resendLocked looks at some pages that were written since they were sent, and
// returns how many bytes one of them would take now.
func (st *roundStream) resendLocked() float64 {
	const most = 64
	looked, bytes := 0, 0
	for i, at := 0, rand.IntN(st.pages); i < st.pages && looked < most; i++ {
		p := PageNum((at + i) % st.pages)
		if st.state[p] != roundTodo || !st.there[p] {
			continue
		}
		looked++
		bytes += PageSize
		if _, was := st.versions.get(p); was != nil {
			if patch, ok := appendPatch(st.said[:0], was[:], st.cfg.Memory[int(p)*PageSize:][:PageSize]); ok {
				bytes += patchAround + len(patch) - PageSize
			}
		}
	}
	if looked == 0 {
		return st.resend
	}
	return float64(bytes) / float64(looked)
}

// patchAround is what a patch takes besides itself, in bytes: its page's kind and
// name, that of its base, its size, and its share of a frame, which may have few others.
const patchAround = 1 + 32 + shortBase + 2 + headBytes + 6

// costLocked is how many bytes it takes to send what is left.
func (st *roundStream) costLocked() float64 {
	first, again := 0, 0
	for p := range st.pages {
		switch {
		case st.state[p] != roundTodo:
		case st.there[p]:
			again++
		default:
			first++
		}
	}
	return float64(first)*PageSize + float64(again)*st.resend
}

// settleLocked ends the rounds. Settled follows when the far side has dropped
// what is stale: to drop a page takes microseconds, and there may be many.
func (r *Rounds) settleLocked(why string) {
	if r.closing {
		return
	}
	r.closing = true
	r.log.Debug("rounds settled", "why", why, "round", r.round, "left", r.todo, "rate", r.rate, "dirty", r.dirty)
}

// sendRound sends the pages of a round and reports whether there were any. It
// ends early, with nil, when the memory is frozen.
func (st *roundStream) sendRound(ctx context.Context, last time.Time) (sent bool, err error) {
	for !isClosed(st.frozen) {
		// A look at what was written meanwhile saves sending it in vain.
		if !st.cfg.Tracker.dear() && time.Since(last) >= roundPause {
			if err := st.look(); err != nil {
				return sent, err
			}
			last = time.Now()
		}
		if st.isClosing() {
			return sent, st.flush(ctx)
		}
		run, seq, what := st.pick()
		switch what {
		case planDone:
			return sent, st.flush(ctx)
		case planWait:
			if err := st.flush(ctx); err != nil {
				return sent, err
			}
			select {
			case <-st.wake:
			case <-st.frozen:
			case <-ctx.Done():
				return sent, context.Cause(ctx)
			}
		default:
			sent = true
			if err := st.send(ctx, run, seq, what == planNames); err != nil {
				return sent, err
			}
		}
	}
	return sent, nil
}

// begin lists the pages of a round, those written longest ago first.
func (st *roundStream) begin() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.since = st.recency.scan
	st.list = st.list[:0]
	st.picked, st.judged = 0, st.todo
	if st.todo == 0 {
		return
	}
	pages := make([]PageNum, 0, st.todo)
	for p := range PageNum(st.pages) {
		if st.state[p] == roundTodo {
			pages = append(pages, p)
		}
	}
	// Where patches will do, those go first that have to be sent whole. Stable,
	// so that pages of one age stay in order and make runs.
	slices.SortStableFunc(pages, func(a, b PageNum) int {
		if st.patching() && st.there[a] != st.there[b] {
			if st.there[b] {
				return -1
			}
			return 1
		}
		return cmp.Compare(st.recency.when(a), st.recency.when(b))
	})
	for _, p := range pages {
		st.list = appendRun(st.list, Run{p, 1})
	}
}

// pick takes the next pages of the round, and numbers the frame they go in.
func (st *roundStream) pick() (r Run, seq uint32, what int) {
	st.mu.Lock()
	defer st.mu.Unlock()
	switch {
	case isClosed(st.frozen):
		return r, 0, planDone // Freeze has counted
	case st.inFlight >= roundWindow:
		return r, 0, planWait
	}
	naming := st.ahead && st.tally.pays()
	// What was sent since it was listed, or written again, is for later.
	due := func(p PageNum) bool {
		return st.state[p] == roundTodo && (st.recency.when(p) <= st.since || st.patching() && !st.there[p])
	}
	name := func(p PageNum) bool { return naming && !st.offered[p] }
	for len(st.list) > 0 && !due(st.list[0].First) {
		st.drop(1)
	}
	if len(st.list) == 0 {
		if len(st.offers) > 0 {
			return r, 0, planWait // what is lacking of those belongs to this round
		}
		return r, 0, planDone
	}
	p := st.list[0].First
	what, most := planPages, min(roundFrame, st.list[0].Count)
	if name(p) {
		what, most = planNames, min(maxRun, st.list[0].Count)
	}
	r = Run{p, 1}
	for r.Count < most && due(r.end()) && name(r.end()) == (what == planNames) {
		r.Count++
	}
	st.drop(r.Count)
	st.seq++
	if what == planNames {
		st.offers = append(st.offers, roundOffer{r, st.seq, int(r.Count), slices.Clone(st.there[r.First:r.end()])})
	}
	for q := r.First; q < r.end(); q++ {
		st.state[q], st.sentAt[q], st.there[q] = roundSent, st.seq, true
		st.newest[q/flagBlock] = st.seq
		if what == planNames {
			st.state[q], st.offered[q] = roundNamed, true
		}
	}
	st.todo -= int(r.Count)
	if what == planPages {
		st.picked += int(r.Count)
	}
	return r, st.seq, what
}

// drop takes pages off the front of the list.
func (st *roundStream) drop(n uint32) {
	head := &st.list[0]
	head.First, head.Count = head.First+PageNum(n), head.Count-n
	if head.Count == 0 {
		st.list = st.list[1:]
	}
}

// send copies pages, so that what is named is what is sent, and sends them or,
// ahead of them, their names. Small frames wait for others, up to flush.
func (st *roundStream) send(ctx context.Context, r Run, seq uint32, names bool) error {
	buf := st.buf[:int(r.Count)*PageSize]
	copy(buf, st.cfg.Memory[int(r.First)*PageSize:])
	hashes := st.hash(buf)
	if names {
		st.frameNames(r.First, hashes)
		st.stats.named.Add(uint64(r.Count))
	} else {
		st.framePages(r.First, hashes, buf)
	}
	st.mu.Lock()
	for i, h := range hashes {
		if isClosed(st.frozen) {
			break // the names are the Source's now
		}
		// Unless it was written since, that is still its name at the freeze.
		if p := r.First + PageNum(i); (st.state[p] == roundSent || st.state[p] == roundNamed) && st.sentAt[p] == seq {
			st.names[p] = h
			if h == ZeroHash {
				st.known[p].Store(nameZero)
			} else {
				st.known[p].Store(nameSet)
			}
		}
	}
	st.inFlight += len(st.frame)
	st.sizes = append(st.sizes, len(st.frame))
	st.mu.Unlock()
	if st.out = append(st.out, st.frame...); len(st.out) < roundWrite {
		return nil
	}
	return st.flush(ctx)
}

// flush writes the frames that wait for it.
func (st *roundStream) flush(ctx context.Context) error {
	out := st.out
	if st.out = st.out[:0]; len(out) == 0 {
		return nil
	}
	begun := time.Now()
	most := st.cfg.Share.bytesIn(chunkTime, bulkChunk)
	for at := 0; at < len(out); at += most {
		chunk := out[at:min(at+most, len(out))]
		if err := st.pace.wait(ctx, st.cfg.Share, st.meter, len(chunk)); err != nil {
			return err
		}
		if err := st.write(chunk); err != nil {
			return err
		}
	}
	st.choose.sent(len(out), time.Since(begun))
	return nil
}

// hash names pages. The names hold until it is called again.
func (st *roundStream) hash(pages []byte) []Hash {
	names := st.hashes[:len(pages)/PageSize]
	var batch [hashBatch][]byte
	var at [hashBatch]int
	var got [hashBatch]Hash
	n := 0
	for i := range names {
		page := pages[i*PageSize:][:PageSize]
		if IsZero(page) {
			names[i] = ZeroHash
		} else {
			batch[n], at[n] = page, i
			n++
		}
		if n < hashBatch && i < len(names)-1 {
			continue
		}
		hashPages(got[:n], batch[:n])
		for b, i := range at[:n] {
			names[i] = got[b]
		}
		n = 0
	}
	return names
}

// frameNames makes a frame of names.
func (st *roundStream) frameNames(first PageNum, hashes []Hash) {
	st.kinds, st.said = st.kinds[:0], st.said[:0]
	var last Hash
	for i, h := range hashes {
		st.versions.drop(first + PageNum(i)) // the far side will hold what is named
		switch {
		case h == ZeroHash:
			st.kinds = append(st.kinds, pageZero)
		case st.asBase(first+PageNum(i), h):
			st.kinds = append(st.kinds, pageSame)
		case len(st.said) > 0 && h == last:
			st.kinds = append(st.kinds, pageRepeat)
		default:
			st.kinds = append(st.kinds, pageRaw)
			st.said = append(st.said, h[:]...)
			last = h
		}
	}
	st.frame = appendPagesHead(st.frame[:0], frameNames, first, st.kinds, st.said, 0)
}

// framePages makes a frame of pages: compressed where that saves time, and
// those that were sent before as what has changed.
func (st *roundStream) framePages(first PageNum, hashes []Hash, buf []byte) {
	f := st.framer
	f.begin(first)
	for i, h := range hashes {
		p, page := first+PageNum(i), buf[i*PageSize:][:PageSize]
		base, was := st.versions.get(p)
		switch {
		case h == ZeroHash:
			f.addZero()
			st.versions.drop(p)
		case was != nil:
			f.addDelta(h, page, base, was[:])
		default:
			f.add(h, page)
		}
	}
	st.frame = f.append(st.frame[:0], st.choose.choose())
	if f.tried != pageRaw {
		st.choose.encoded(f.tried, f.in, f.out, f.duration)
	}
	st.stats.pages.Add(uint64(f.named()))
	st.patches += len(f.sizes) / 2
	keep := st.accepts&EncodeDelta != 0 && (st.again || st.busy())
	for i, h := range hashes {
		switch p := first + PageNum(i); {
		case h == ZeroHash:
		case keep:
			st.versions.put(p, h, buf[i*PageSize:][:PageSize], st.limit(), st.most)
		default:
			st.versions.drop(p)
		}
	}
}

const (
	// versionsMost is how many bytes of pages of which the far side holds a
	// version are kept to send the next one as a patch, if it is not said.
	versionsMost = 16 << 20
	// busyFrom is what a worker writes in a second, in bytes, for which that
	// begins in the first round. Of one that writes less most pages are sent
	// once.
	busyFrom = 256 << 10
	// busyScans is how many scans it takes to know that.
	busyScans = 8
)

// busy reports whether much of what is sent will be sent again.
func (r *Rounds) busy() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dirty >= busyFrom || r.recency.scan < busyScans
}

func (st *roundStream) asBase(p PageNum, h Hash) bool {
	if st.base == nil || int(p) >= st.base.Len() {
		return false
	}
	was, state := st.base.Get(p)
	return state == Named && was == h
}

// measure takes what a round sent in that time.
func (st *roundStream) measure(took time.Duration, bytes uint64) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.round++
	st.log.Debug("round sent", "round", st.round, "bytes", bytes, "took", took, "patches", st.patches, "todo", st.todo, "dirty", st.dirty, "resend", st.resend)
	// By bytes: a few KiB, of which most of the time is the way, say little of
	// what the link carries, be they the first or the last.
	rate := float64(bytes) / max(took, time.Millisecond).Seconds()
	st.rateOf = min(st.rateOf+float64(bytes), rateMemory)
	st.rate += (rate - st.rate) * min(float64(bytes)/max(st.rateOf, 1), 1)
}

// end looks, after a scan, whether another round is worth it.
func (st *roundStream) end() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.resend = st.resendLocked()
	left := st.costLocked()
	if st.round > 1 && left*roundShrink >= st.left {
		st.slow++
	} else {
		st.slow = 0
	}
	st.left = left
	patience := 1
	if st.patching() {
		patience = roundsSlow
	}
	switch {
	case st.todo <= roundFew, left <= roundFew*PageSize:
		st.settleLocked("little is left")
	case left+float64(st.inFlight) <= st.rate*st.cfg.Pause.Seconds():
		st.settleLocked("what is left takes no longer than the worker may stand still")
	case st.slow >= patience:
		st.settleLocked("rounds bring little")
	case st.round >= roundsMost:
		st.settleLocked("enough rounds")
	}
}
