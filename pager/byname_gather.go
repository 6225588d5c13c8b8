package pager

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// gatherChunk is how many named pages are dealt with at a time, 256 KiB.
	gatherChunk = 64
	// gatherTime is how long a Peer should take over what it is asked for at
	// once; it gets more when it is faster.
	gatherTime = 250 * time.Millisecond
	// gatherMost is how many chunks a Peer is asked for at once, 4 MiB.
	gatherMost = 16
	// gatherPatience is how long a Peer may take over it, and to be reached.
	gatherPatience = 3 * time.Second
	// gatherGrace is how long the source may be idle while all that is left
	// is expected from Peers.
	gatherGrace = 100 * time.Millisecond
	// gatherTrial is how many pages a Peer is asked for before it must have
	// had an eighth of them.
	gatherTrial = 1024
	// maxPeers bounds the Peers of an Intake or a Sink.
	maxPeers = 8
	// gatherPages is one in how many pages of the memory may begin a chunk of
	// its own. A source that names pages one by one is then asked for the rest
	// itself: a chunk takes some 150 bytes besides its names.
	gatherPages = 8
)

// A Peer is a node, other than the one that a worker comes from, that may hold
// pages of it and answers with ServeNamed.
type Peer struct {
	// Name is for logs.
	Name string
	// Dial opens a stream to it, which who asked closes.
	Dial func(ctx context.Context) (io.ReadWriteCloser, error)
	// Demand opens one for pages that somebody waits for. If nil, those are asked
	// of the source alone.
	Demand func(ctx context.Context) (io.ReadWriteCloser, error)
	// RTT is the round trip to it, 0 if that is not known.
	RTT time.Duration
}

// peers are the Peers of a move, and what is known of them over all streams to
// the source.
type peers struct {
	of []Peer
	// useless says of which nothing is to be expected any more.
	useless [maxPeers]atomic.Bool
	brought atomic.Uint64 // pages
	log     *slog.Logger
}

func (ps *peers) alive() (n int) {
	for i := range ps.of {
		if !ps.useless[i].Load() {
			n++
		}
	}
	return n
}

// A gather takes the names that the source sends ahead and shares out who brings
// the pages: the source, in the order in which it named them, and Peers, which
// start at the other end. Whoever is faster does more, and the move takes no
// longer than with the source alone, whatever a Peer does:
//
//   - The source always has some to send, as much as its link carries in a
//     round trip and a little, and gets more as soon as that has come.
//   - Once nobody but Peers has any left, what they have not brought after a
//     grace is asked of the source as well.
//   - A page of a Peer counts once it is in place and its content has been
//     checked against the name that the source gave.
//
// One belongs to a stream to the source. Its methods are called with mu held where
// they are named for that.
type gather struct {
	peers *peers
	pages int                  // in the memory
	write func(b []byte) error // a frame to the source; safe for concurrent use
	meter Meter                // of the stream to the source; nil if it has none
	// place puts a page in place, whose content was checked, unless it is there.
	// An error is no fault of the Peer's, and ends everything. It is called with
	// mu held.
	place func(p PageNum, name Hash, page []byte) error

	// mu is that of whose memory it is, if place needs it.
	mu sync.Locker
	// Guarded by mu:
	chunks []*namedChunk           // in the order of their names; some are over
	named  int                     // names in chunks
	ready  []*namedChunk           // of those, the ones of which nothing is left
	at     map[PageNum]*namedChunk // the chunk that waits for a page
	alive  int                     // Peers
	owed   []owedChunk             // asked of the source and not come, in order
	owing  int                     // pages in owed
	window int                     // the most that may be owed
	came   int                     // pages from the source since measured
	since  time.Time               // measured
	heard  time.Time               // of the source, last
	failed error                   // of place
	wake   chan struct{}           // closed and replaced when there may be something to do
}

// A namedChunk is some pages that the source has named and nobody here had.
type namedChunk struct {
	run   Run
	names []Hash
	done  []bool // here, or replaced by a later version
	left  int    // pages not done
	tried uint8  // bit i: Peer i was asked
	by    int    // Peers that are being asked
	begun time.Time
	over  bool // answered
}

type owedChunk struct {
	run  Run
	left int
}

func newGather(ps *peers, pages int, stream any, write func([]byte) error) *gather {
	g := &gather{
		peers: ps, pages: pages, write: write, mu: new(sync.Mutex), at: make(map[PageNum]*namedChunk), alive: ps.alive(),
		window: gatherChunk, since: time.Now(), heard: time.Now(), wake: make(chan struct{}),
	}
	g.meter, _ = stream.(Meter)
	return g
}

// start runs until the func that it returns is called, which waits for it. If it
// fails before that, failed is told why.
func (g *gather) start(failed func(error)) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := g.run(ctx); err != nil {
			failed(err)
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// run asks Peers and answers the source until ctx is done, which is nil, the
// source cannot be written to, or a page cannot be put in place.
func (g *gather) run(ctx context.Context) error {
	var asking sync.WaitGroup
	defer asking.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for i, p := range g.peers.of {
		if g.peers.useless[i].Load() {
			continue
		}
		asking.Go(func() {
			asked, had, err := g.ask(ctx, i, p)
			if ctx.Err() == nil {
				// Not again when the stream to the source has broken, either.
				g.peers.useless[i].Store(true)
				g.peers.log.Info("no more pages from another node", "node", p.Name, "asked", asked, "had", had, "error", err)
			} else if asked > 0 {
				g.peers.log.Info("pages from another node", "node", p.Name, "asked", asked, "had", had)
			}
			g.mu.Lock()
			g.alive--
			g.wakeLocked()
			g.mu.Unlock()
		})
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	var out, lacks []byte
	for {
		g.mu.Lock()
		g.measureLocked(time.Now())
		c, wait := g.dueLocked(time.Now())
		wake, failed := g.wake, g.failed
		if c != nil {
			out, lacks = g.answerLocked(out[:0], lacks, c)
		}
		g.mu.Unlock()
		if failed != nil {
			return failed
		}
		if c != nil {
			if err := g.write(out); err != nil {
				return fmt.Errorf("write: %w", err)
			}
			continue
		}
		timer.Reset(wait)
		select {
		case <-wake:
		case <-timer.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (g *gather) wakeLocked() {
	close(g.wake)
	g.wake = make(chan struct{})
}

// offerLocked takes pages named by the source, of which lacks says which are
// not here. It reports whether it will answer; if not, those are to be asked
// of the source.
func (g *gather) offerLocked(first PageNum, names []Hash, lacks []byte) bool {
	// An honest source names no page again before it has an answer. One that does
	// is not to make us remember more than two names a page.
	if g == nil || g.alive == 0 || g.named+len(names) > 2*g.pages || len(g.chunks) >= g.pages/gatherPages+gatherChunk {
		return false
	}
	for from := 0; from < len(names); from += gatherChunk {
		n := min(gatherChunk, len(names)-from)
		c := &namedChunk{
			run: Run{first + PageNum(from), uint32(n)}, names: slices.Clone(names[from : from+n]), done: make([]bool, n),
		}
		for i := range n {
			if k := from + i; lacks[k/8]>>(k%8)&1 == 0 {
				c.done[i] = true
				continue
			}
			c.left++
			g.at[c.run.First+PageNum(i)] = c
		}
		g.chunks = append(g.chunks, c)
		g.named += n
		if c.left == 0 {
			g.ready = append(g.ready, c)
		}
	}
	g.wakeLocked()
	return true
}

// offer is offerLocked for whoever does not hold mu.
func (g *gather) offer(first PageNum, names []Hash, lacks []byte) bool {
	if g == nil || bytes.Equal(lacks, make([]byte, len(lacks))) {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.offerLocked(first, names, lacks)
}

// replacedLocked notes that the source has sent, or named, a page anew.
func (g *gather) replacedLocked(p PageNum) {
	if g == nil {
		return
	}
	if c := g.at[p]; c != nil {
		g.doneLocked(c, p)
	}
}

// doneLocked notes that nobody need bring a page of a chunk any more.
func (g *gather) doneLocked(c *namedChunk, p PageNum) {
	delete(g.at, p)
	c.done[p-c.run.First] = true
	if c.left--; c.left == 0 {
		g.ready = append(g.ready, c)
		g.wakeLocked()
	}
}

// received is receivedLocked for whoever does not hold mu.
func (g *gather) received(r Run) {
	if g != nil {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.receivedLocked(r)
	}
}

// receivedLocked notes pages that the source has sent. It sends what it was
// asked for in order, and leaves out what was written since.
func (g *gather) receivedLocked(r Run) {
	if g == nil {
		return
	}
	for p := r.First; p < r.end(); p++ {
		g.replacedLocked(p)
	}
	g.came += int(r.Count)
	g.heard = time.Now()
	k := slices.IndexFunc(g.owed, func(o owedChunk) bool {
		return o.run.First < r.end() && r.First < o.run.end()
	})
	if k < 0 {
		return
	}
	for range k {
		g.owing -= g.owed[0].left
		g.owed = g.owed[1:]
	}
	for n := int(r.Count); n > 0 && len(g.owed) > 0 && g.owed[0].run.First < r.end() && r.First < g.owed[0].run.end(); {
		o := &g.owed[0]
		m := min(n, o.left)
		o.left, g.owing, n = o.left-m, g.owing-m, n-m
		if o.left > 0 {
			break
		}
		g.owed = g.owed[1:]
	}
	g.wakeLocked()
}

// measureLocked adapts the window to what the source's link carries.
func (g *gather) measureLocked(now time.Time) {
	const most = roundWindow / PageSize
	rtt := 50 * time.Millisecond
	if g.meter != nil {
		if latest, count := g.meter.RTT(); count > 0 {
			rtt = latest
		}
	}
	if past := now.Sub(g.since); past >= max(rtt, 20*time.Millisecond) {
		// Twice what came lets it grow until the link is full.
		w := 2 * float64(g.came) * float64(rtt+25*time.Millisecond) / float64(past)
		g.window = int(min(max(w, gatherChunk), most))
		g.came, g.since = 0, now
	}
	if idle := now.Sub(g.heard); idle > rtt+2*gatherGrace && g.owing > 0 {
		g.owed, g.owing = nil, 0 // it has left them out, or sent them long ago
	}
}

// dueLocked returns a chunk to be answered now, or how long to wait for one if
// nothing happens.
func (g *gather) dueLocked(now time.Time) (*namedChunk, time.Duration) {
	for len(g.ready) > 0 {
		c := g.ready[0]
		g.ready = g.ready[1:]
		if !c.over {
			return c, 0
		}
	}
	var oldest, fresh *namedChunk
	for _, c := range g.chunks {
		if c.over {
			continue
		}
		if c.by == 0 {
			fresh = c
			break // Peers are at the other end
		}
		if oldest == nil || c.begun.Before(oldest.begun) {
			oldest = c
		}
	}
	switch {
	case fresh == nil && oldest == nil:
		return nil, time.Hour
	case fresh != nil && (g.owing < g.window || g.alive == 0):
		return fresh, 0
	case fresh == nil && g.owing == 0 && now.Sub(oldest.begun) >= gatherGrace:
		return oldest, 0
	}
	return nil, gatherGrace / 4
}

// answerLocked appends what is said of a chunk, and takes it off the list.
func (g *gather) answerLocked(out, lacks []byte, c *namedChunk) ([]byte, []byte) {
	lacks = append(lacks[:0], make([]byte, (len(c.done)+7)/8)...)
	for i, done := range c.done {
		if !done {
			lacks[i/8] |= 1 << (i % 8)
			delete(g.at, c.run.First+PageNum(i))
		}
	}
	if c.left > 0 {
		g.owed = append(g.owed, owedChunk{c.run, c.left})
		if g.owing == 0 {
			g.heard = time.Now()
		}
		g.owing += c.left
	}
	c.over = true
	g.named -= len(c.names)
	c.names, c.done = nil, nil
	for len(g.chunks) > 0 && g.chunks[0].over {
		g.chunks = g.chunks[1:]
	}
	for n := len(g.chunks); n > 0 && g.chunks[n-1].over; n-- {
		g.chunks = g.chunks[:n-1]
	}
	return appendLacks(out, c.run, lacks), lacks
}

// ask asks a Peer for as long as it is of use, and returns how many pages it
// was asked for, and how many it had.
func (g *gather) ask(ctx context.Context, i int, p Peer) (asked, had int, err error) {
	dctx, cancel := context.WithTimeoutCause(ctx, gatherPatience, errSlowPeer)
	rw, err := p.Dial(dctx)
	cancel()
	if err != nil {
		return 0, 0, fmt.Errorf("dial: %w", err)
	}
	defer rw.Close()
	client := NewNamedClient(rw)
	for most := gatherMost / 4; ; {
		chunks, wants, names := g.claim(ctx, i, most)
		if len(chunks) == 0 {
			return asked, had, context.Cause(ctx)
		}
		begun := time.Now()
		fctx, cancel := context.WithTimeoutCause(ctx, gatherPatience, errSlowPeer)
		_, err := client.Fetch(fctx, names, func(at int, page []byte) error {
			had++
			return g.take(wants[at], names[at], page)
		})
		cancel()
		asked += len(names)
		g.mu.Lock()
		for _, c := range chunks {
			c.by--
		}
		g.wakeLocked()
		g.mu.Unlock()
		switch took := time.Since(begun); {
		case err != nil:
			return asked, had, err
		case asked >= gatherTrial && had*8 < asked:
			return asked, had, errFewPages
		case took < gatherTime:
			most = min(2*most, gatherMost)
		case took > 2*gatherTime:
			most = max(most/2, 1)
		}
	}
}

var (
	errSlowPeer = errors.New("it is too slow to be of use")
	errFewPages = errors.New("it has too few of the pages to be of use")
)

// A wanted page is one that a Peer is asked for.
type wantedPage struct {
	chunk *namedChunk
	page  PageNum
}

// claim waits for chunks that a Peer has not been asked for, and takes the last
// of them, at most most. It returns none when ctx is done.
func (g *gather) claim(ctx context.Context, i, most int) (chunks []*namedChunk, wants []wantedPage, names []Hash) {
	for {
		g.mu.Lock()
		now := time.Now()
		for k := len(g.chunks) - 1; k >= 0 && len(chunks) < most; k-- {
			c := g.chunks[k]
			if c.over || c.by > 0 || c.left == 0 || c.tried&(1<<i) != 0 {
				continue
			}
			c.by++
			c.tried |= 1 << i
			c.begun = now
			chunks = append(chunks, c)
			for at, done := range c.done {
				if !done {
					wants = append(wants, wantedPage{c, c.run.First + PageNum(at)})
					names = append(names, c.names[at])
				}
			}
		}
		wake := g.wake
		g.mu.Unlock()
		if len(chunks) > 0 {
			return chunks, wants, names
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return nil, nil, nil
		}
	}
}

// take puts a page in place, unless the source was asked for it meanwhile or
// has sent a later version.
func (g *gather) take(w wantedPage, name Hash, page []byte) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.at[w.page] != w.chunk {
		return nil
	}
	if err := g.place(w.page, name, page); err != nil {
		g.failed = err
		g.wakeLocked()
		return err
	}
	g.doneLocked(w.chunk, w.page)
	return nil
}
