package pager

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A move of a child's memory to another child, while the first writes it.
type roundsTest struct {
	t        testing.TB
	pages    int
	size     atomic.Int64 // of the memory in use; all of it if 0
	hashes   bool         // find writes by hashes
	from, to *child
	tracker  *Tracker
	rounds   *Rounds
	intake   *Intake
	wrap     func(net.Conn) io.ReadWriteCloser
	ran      chan error
	share    *Share    // of what the rounds may push
	peers    []Peer    // of the intake
	late     []PageNum // are written when the freeze has been prepared
}

func startRounds(t testing.TB, r *rand.Rand, pages, zero int, base *Table, store *Store, known *Table) *roundsTest {
	t.Helper()
	rt := &roundsTest{t: t, pages: pages, from: startArmable(t, pages), to: startArmable(t, pages), ran: make(chan error, 1)}
	rt.fill(r, zero)
	rt.start(base, store, known)
	return rt
}

// fill writes the origin's memory; pages that are zero stay holes.
func (rt *roundsTest) fill(r *rand.Rand, zero int) {
	mem := testMemory(r, rt.pages, zero)
	for p := range rt.pages {
		if page := mem[p*PageSize : (p+1)*PageSize]; !IsZero(page) {
			copy(rt.from.region.Data[p*PageSize:], page)
		}
	}
}

func (rt *roundsTest) holes() []Run {
	rt.t.Helper()
	zero, err := ZeroRuns(rt.from.region.File, int64(rt.pages)*PageSize)
	if err != nil {
		rt.t.Fatal(err)
	}
	return zero
}

func (rt *roundsTest) start(base *Table, store *Store, known *Table) {
	t := rt.t
	t.Helper()
	zero := rt.holes()
	var err error
	if rt.size.Load() == 0 {
		rt.size.Store(int64(rt.pages) * PageSize)
	}
	zero = without(zero, []Run{{PageNum(rt.size.Load() / PageSize), uint32(rt.pages)}})
	rt.tracker, err = NewTracker(TrackerConfig{Region: rt.from.region, Size: rt.size.Load(), Hashes: rt.hashes, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	if err := rt.tracker.Start(); err != nil {
		t.Fatal(err)
	}
	rt.rounds, err = NewRounds(RoundsConfig{
		Worker: "w", Epoch: 3, Memory: rt.from.region.Data, Size: rt.size.Load,
		Zero: zero, Tracker: rt.tracker, Base: base, Share: rt.share, Log: testLog(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	rt.intake, err = NewIntake(IntakeConfig{
		Worker: "w", Epoch: 3, Region: rt.to.region, Store: store, Base: known, Peers: rt.peers, Log: testLog(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(testContext(t))
	go func() { rt.ran <- rt.intake.Run(ctx, rt.dial) }()
	t.Cleanup(func() {
		cancel()
		rt.intake.Close()
		<-rt.intake.ended
		rt.rounds.Close()
	})
}

func (rt *roundsTest) dial(context.Context) (io.ReadWriteCloser, error) {
	here, there := net.Pipe()
	go func() {
		defer there.Close()
		hello, err := ReadHello(there)
		if err == nil {
			err = rt.rounds.Serve(context.Background(), hello, there)
		}
		_ = err
	}()
	if rt.wrap != nil {
		return rt.wrap(here), nil
	}
	return here, nil
}

// freeze ends the rounds and lets the destination touch all pages, while what
// is missing comes.
func (rt *roundsTest) finish(kernelPage int) (*Source, *Sink) {
	t := rt.t
	t.Helper()
	rt.rounds.Hold()
	rt.rounds.Prepare(rt.holes())
	if rt.late != nil {
		rt.from.do(childRequest{Op: "write", Pages: rt.late, Value: 99})
	}
	ahead, err := rt.rounds.Freeze(rt.pages, rt.holes(), rt.late == nil)
	if err != nil {
		t.Fatal(err)
	}
	layout, rest, err := ParseLayout(ahead.Layout.Append(nil), rt.pages)
	if err != nil || len(rest) > 0 {
		t.Fatal(err, len(rest))
	}
	mem := rt.from.region.Data[:rt.pages*PageSize]
	src := newTestSource(t, mem, func(cfg *SourceConfig) { cfg.Ahead = ahead })
	rt.rounds.Continue(src)
	sink, err := rt.intake.commit(layout, true, SinkConfig{}, kernelPage)
	if err != nil {
		t.Fatal(err)
	}
	if err := sink.Arm(); err != nil {
		t.Fatal(err)
	}
	list := pageList(0, rt.pages)
	rt.to.send(childRequest{Op: "threads", Pages: list, Number: 3, Seed: 7})
	wait, _ := runSink(t, sink, newPipes(t, src))
	checkHashes(t, mem, list, rt.to.reply().Hashes)
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	table := sink.Table()
	for p := range rt.pages {
		if h, state := table.Get(PageNum(p)); state == Unknown || h != HashPage(mem[p*PageSize:][:PageSize]) {
			t.Fatalf("page %d is %v in the table", p, state)
		}
	}
	return src, sink
}

// What comes, is patched and is dropped again before the freeze is at no time in
// the node's page table: a page that is there is dropped ten times as slowly.
func TestIntakeMapsNothing(t *testing.T) {
	const pages = 1024
	rt := startRounds(t, testRand(t), pages, 0, nil, nil, nil)
	settled := rt.rounds.Settled()
	for i := 0; !isClosed(settled); i++ {
		rt.from.do(childRequest{Op: "write", Pages: []PageNum{PageNum(i % 64)}, Value: byte(i)})
	}
	if here := runsOf(pages, func(p PageNum) bool {
		rt.intake.mu.Lock()
		defer rt.intake.mu.Unlock()
		return rt.intake.state[p] == present
	}); CountPages(here) < pages/2 {
		t.Fatalf("%d pages of %d have come", CountPages(here), pages)
	}
	pagemap, err := os.Open("/proc/self/pagemap")
	if err != nil {
		t.Fatal(err)
	}
	defer pagemap.Close()
	at := uint64(uintptr(unsafe.Pointer(&rt.to.region.Data[0])))
	mapped, err := scanPresent(pagemap, at, at+pages*PageSize, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(mapped) > 0 {
		t.Errorf("%d runs of pages are in the node's page table", len(mapped))
	}
}

// What the destination reads after rounds is what the origin wrote last,
// however the writes fell.
func TestRounds(t *testing.T) {
	for _, tc := range []struct {
		zero, kernelPage int
		breaks, late     bool
	}{{3, 4096, false, false}, {0, 4096, true, true}, {5, 16384, false, true}, {2, 65536, true, false}, {3, 4096, false, true}} {
		t.Run(fmt.Sprintf("zero=%d/kernel=%d/breaks=%t/late=%t", tc.zero, tc.kernelPage, tc.breaks, tc.late), func(t *testing.T) {
			const pages = 4096
			r := testRand(t)
			rt := &roundsTest{t: t, pages: pages, from: startArmable(t, pages), to: startArmable(t, pages), ran: make(chan error, 1)}
			if tc.breaks {
				rt.wrap = func(conn net.Conn) io.ReadWriteCloser {
					left := new(atomic.Int64)
					left.Store(2 << 20)
					return &breaking{conn, left}
				}
			}
			rt.fill(r, tc.zero)
			rt.start(nil, nil, nil)
			for i := 0; !isClosed(rt.rounds.Settled()) || i < 20; i++ {
				var some []PageNum
				for range 40 {
					some = append(some, PageNum(r.IntN(pages/(1+i%4))))
				}
				rt.from.do(childRequest{Op: "write", Pages: some, Value: byte(i)})
			}
			for tc.late && len(rt.late) < 40 {
				rt.late = append(rt.late, PageNum(r.IntN(pages)))
			}
			src, sink := rt.finish(max(tc.kernelPage, unix.Getpagesize()))
			t.Logf("%+v\n%+v\n%+v", rt.rounds.Stats(), src.Stats(), sink.Stats())
			if held := rt.rounds.Stats().Sent; held == 0 {
				t.Error("no page was sent in rounds")
			}
		})
	}
}

// Memory that grows while it is sent, and writes that are found by hashes.
func TestRoundsGrow(t *testing.T) {
	for _, hashes := range []bool{false, true} {
		t.Run(fmt.Sprintf("hashes=%t", hashes), func(t *testing.T) {
			const pages = 2048
			r := testRand(t)
			rt := &roundsTest{t: t, pages: pages, hashes: hashes, from: startArmable(t, pages), to: startArmable(t, pages), ran: make(chan error, 1)}
			mem := testMemory(r, pages/2, 3)
			for p := range pages / 2 {
				if page := mem[p*PageSize : (p+1)*PageSize]; !IsZero(page) {
					copy(rt.from.region.Data[p*PageSize:], page)
				}
			}
			rt.size.Store(pages / 2 * PageSize)
			rt.start(nil, nil, nil)
			for i := 0; !isClosed(rt.rounds.Settled()) || i < 16; i++ {
				size := int(rt.size.Load() / PageSize)
				if i%4 == 3 && size < pages {
					size += pages / 16
				}
				// What has just grown is written before anybody is told of it.
				var some []PageNum
				for range 40 {
					some = append(some, PageNum(r.IntN(size)))
				}
				rt.from.do(childRequest{Op: "write", Pages: some, Value: byte(i)})
				rt.size.Store(int64(size) * PageSize)
			}
			rt.from.do(childRequest{Op: "write", Pages: pageList(pages-100, 50), Value: 3})
			rt.finish(unix.Getpagesize())
		})
	}
}

// A worker that stands still has all its memory over before the freeze.
func TestRoundsIdle(t *testing.T) {
	const pages = 2048
	rt := startRounds(t, testRand(t), pages, 3, nil, nil, nil)
	<-rt.rounds.Settled()
	waitFor(t, "acknowledgements", func() bool {
		rt.rounds.mu.Lock()
		defer rt.rounds.mu.Unlock()
		return rt.rounds.acked == rt.rounds.seq
	})
	src, sink := rt.finish(unix.Getpagesize())
	if st := src.Stats(); st.BulkPages+st.DemandPages > 0 {
		t.Errorf("pages were sent after the freeze: %+v", st)
	}
	if st := sink.Stats(); st.Demanded > 0 {
		t.Errorf("pages were asked for after the freeze: %+v", st)
	}
	if err := <-rt.ran; err != nil {
		t.Errorf("intake: %v", err)
	}
}

// Rounds that are ended settle, and what they have not sent follows.
func TestRoundsEnd(t *testing.T) {
	const pages = 4096
	rt := &roundsTest{t: t, pages: pages, from: startArmable(t, pages), to: startArmable(t, pages), ran: make(chan error, 1)}
	rt.share = NewBudget(1<<20).Share("b", 1)
	rt.fill(testRand(t), 0)
	rt.start(nil, nil, nil)
	waitFor(t, "the first pages", func() bool { return rt.rounds.Stats().Sent > 0 })
	rt.rounds.End()
	<-rt.rounds.Settled()
	src, _ := rt.finish(unix.Getpagesize())
	if st := src.Stats(); st.BulkPages+st.DemandPages == 0 {
		t.Errorf("the rounds had sent all: %+v", rt.rounds.Stats())
	}
}

// What was written before Tell is out of the destination's memory when that returns:
// the freeze has none of it to tell.
func TestRoundsTell(t *testing.T) {
	const pages = 512
	rt := startRounds(t, testRand(t), pages, 0, nil, nil, nil)
	<-rt.rounds.Settled()
	for range 3 {
		rt.from.do(childRequest{Op: "write", Pages: []PageNum{7, 8, 300}, Value: 99})
		rt.rounds.Tell(time.Minute)
		for _, p := range []PageNum{7, 8, 300} {
			if !IsZero(rt.to.region.Data[int(p)*PageSize:][:PageSize]) {
				t.Errorf("page %d is still there", p)
			}
		}
	}
	rt.from.do(childRequest{Op: "write", Pages: []PageNum{7, 9}, Value: 98})
	rt.rounds.Hold()
	rt.rounds.Prepare(rt.holes())
	ahead, err := rt.rounds.Freeze(pages, rt.holes(), true)
	if err != nil {
		t.Fatal(err)
	}
	if got := ahead.Layout.Stale; len(got) > 0 && !slices.Equal(got, []Run{{9, 1}}) {
		t.Errorf("stale at the freeze: %v, written since was page 9", got)
	}
	rt.rounds.Tell(time.Minute) // after the freeze it does not wait
}

// Of a memory that is known from an earlier visit, only what has changed
// travels, and the names of that.
func TestRoundsBase(t *testing.T) {
	const pages, changed = 4096, 40
	r := testRand(t)
	rt := &roundsTest{t: t, pages: pages, from: startArmable(t, pages), to: startArmable(t, pages), ran: make(chan error, 1)}
	rt.fill(r, 2)
	store := NewStore(64 << 20)
	base := NewTable(pages)
	for p := range PageNum(pages) {
		base.SetName(p, HashPage(rt.from.region.Data[int(p)*PageSize:][:PageSize]))
		if p%100 != 99 { // some have gone from the store since
			store.Put(rt.from.region.Data[int(p)*PageSize:][:PageSize])
		}
	}
	gone := 0
	for p := range PageNum(pages) {
		if h, state := base.Get(p); state == Named && !store.Has(h) {
			gone++
		}
	}
	for _, p := range r.Perm(pages)[:changed] {
		rt.from.region.Data[p*PageSize+17]++
	}
	rt.start(base, store, base.Clone())
	<-rt.rounds.Settled()
	src, _ := rt.finish(unix.Getpagesize())
	sent := rt.rounds.Stats().Sent + src.Stats().BulkPages + src.Stats().DemandPages
	if most := uint64(changed + gone); sent > most {
		t.Errorf("%d pages sent, %d changed and %d were gone", sent, changed, gone)
	}
	// A byte for each page, and its share of the frames, besides the pages
	// themselves.
	bytes := rt.rounds.Stats().Bytes + src.Stats().Bytes
	if most := sent*(PageSize+64+32) + pages*2; bytes > most {
		t.Errorf("%d bytes sent for %d pages, at most %d expected", bytes, sent, most)
	}
}

// BenchmarkCommit is what rounds add to the time in which the worker stands
// still, by the size of the memory: all of it is held, and some of it was
// written again.
func BenchmarkCommit(b *testing.B) {
	lookTwice = false // as it is outside tests
	defer func() { lookTwice = true }()
	for _, c := range []struct {
		mib   int
		still bool
	}{{16, true}, {512, true}, {16, false}, {512, false}} {
		b.Run(fmt.Sprintf("mem=%dMiB/still=%v", c.mib, c.still), func(b *testing.B) {
			pages := c.mib << 8
			var freeze, source, commit, arm time.Duration
			for range b.N {
				rt := &roundsTest{t: b, pages: pages, from: startArmable(b, pages), to: startArmable(b, pages), ran: make(chan error, 1)}
				mem, _ := benchMemory(pages)
				copy(rt.from.region.Data, mem)
				rt.start(nil, nil, nil)
				<-rt.rounds.Settled()
				var some []PageNum
				for p := 0; p < pages; p += pages / 200 {
					some = append(some, PageNum(p))
				}
				rt.from.do(childRequest{Op: "write", Pages: some, Value: 77})
				if c.still {
					rt.rounds.Hold()
					rt.rounds.Prepare(nil)
				}
				at := time.Now()
				lap := func(d *time.Duration) {
					*d += time.Since(at)
					at = time.Now()
				}
				ahead, err := rt.rounds.Freeze(pages, nil, c.still)
				if err != nil {
					b.Fatal(err)
				}
				lap(&freeze)
				src := newTestSource(b, mem, func(cfg *SourceConfig) { cfg.Ahead, cfg.Log = ahead, quietLog })
				lap(&source)
				sink, err := rt.intake.Commit(ahead.Layout, true, SinkConfig{})
				if err != nil {
					b.Fatal(err)
				}
				lap(&commit)
				if err := sink.Arm(); err != nil {
					b.Fatal(err)
				}
				lap(&arm)
				src.Close()
			}
			for _, m := range []struct {
				name string
				took time.Duration
			}{{"freeze", freeze}, {"source", source}, {"commit", commit}, {"arm", arm}} {
				b.ReportMetric(float64(m.took.Microseconds())/float64(b.N), "µs-"+m.name)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}
