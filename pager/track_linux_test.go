package pager

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func startTracker(t testing.TB, c *child, pages int) *Tracker {
	t.Helper()
	if s := Probe(); !s.Tracking() {
		t.Skipf("the kernel does not track writes: %+v", s)
	}
	tr, err := NewTracker(TrackerConfig{Region: c.region, Size: int64(pages) * PageSize, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.Start(); err != nil {
		t.Fatal(err)
	}
	if tr.Method() != "pagemap-scan" {
		t.Fatalf("method %q", tr.Method())
	}
	return tr
}

func TestTracker(t *testing.T) {
	const pages = 3000
	r := testRand(t)
	c := startArmable(t, pages+500)
	// Some pages are there before the watch begins, others are first written
	// under it.
	c.do(childRequest{Op: "write", Pages: pageList(0, pages/2), Value: 1})
	tr := startTracker(t, c, pages)
	if got, err := tr.Scan(nil); err != nil || len(got) != 0 {
		t.Fatalf("got %v, %v, want nothing", got, err)
	}
	size := pages
	for round := range 12 {
		in := map[PageNum]bool{}
		var list []PageNum
		for range r.IntN(1500) {
			p := PageNum(r.IntN(size))
			in[p] = true
			list = append(list, p)
		}
		c.do(childRequest{Op: "touch", Pages: pageList(0, size)}) // reads do not count
		c.do(childRequest{Op: "write", Pages: list, Value: byte(round)})
		if round%3 == 2 {
			// Page-table entries that are dropped after the write, as when
			// memory is short, lose no write.
			c.do(childRequest{Op: "drop", Pages: list})
		}
		want := runsOf(size, func(p PageNum) bool { return in[p] })
		got, err := tr.Scan(nil)
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("round %d: got %d pages, %v, want %d", round, CountPages(got), err, CountPages(want))
		}
		if round == 5 {
			size += 500
			if err := tr.Grow(int64(size) * PageSize); err != nil {
				t.Fatal(err)
			}
		}
	}
	// More runs than the kernel lists in one call.
	var list []PageNum
	for p := 0; p < size; p += 2 {
		list = append(list, PageNum(p))
	}
	c.do(childRequest{Op: "write", Pages: list, Value: 99})
	if got, err := tr.Scan(nil); err != nil || len(got) != len(list) {
		t.Errorf("got %d runs, %v, want %d", len(got), err, len(list))
	}
	if err := tr.Stop(); err != nil {
		t.Fatal(err)
	}
	// And once more, from the start.
	if err := tr.Start(); err != nil {
		t.Fatal(err)
	}
	c.do(childRequest{Op: "write", Pages: []PageNum{7}, Value: 5})
	if got, err := tr.Scan(nil); err != nil || !slices.Equal(got, []Run{{7, 1}}) {
		t.Errorf("got %v, %v", got, err)
	}
	c.kill()
	if _, err := tr.Scan(nil); !errors.Is(err, ErrRunnerGone) {
		t.Errorf("scan after the runner's end: got %v, want %v", err, ErrRunnerGone)
	}
	if err := tr.Stop(); err != nil {
		t.Errorf("stop after the runner's end: %v", err)
	}
}

// A worker that has arrived is tracked like one that was born here.
func TestTrackAfterSink(t *testing.T) {
	const pages = 512
	r := testRand(t)
	mem := testMemory(r, pages, 3)
	c := startArmable(t, pages)
	sink := armSink(t, c, pages, nil)
	src := newTestSource(t, mem, nil)
	wait, _ := runSink(t, sink, newPipes(t, src))
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	src.Close()
	tr := startTracker(t, c, pages)
	c.do(childRequest{Op: "write", Pages: []PageNum{1, 2, 300}, Value: 7})
	if got, err := tr.Scan(nil); err != nil || !slices.Equal(got, []Run{{1, 2}, {300, 1}}) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, p := range []int{1, 2, 300} {
		mem[p*PageSize] = 7
	}
	list := pageList(0, pages)
	checkHashes(t, mem, list, c.do(childRequest{Op: "hash", Pages: list}).Hashes)
	if err := tr.Stop(); err != nil {
		t.Error(err)
	}
}

func TestTrackByHashesSkipsHoles(t *testing.T) {
	const pages = 1000
	c := startArmable(t, pages)
	c.do(childRequest{Op: "write", Pages: []PageNum{5, 900}, Value: 1})
	tr, err := NewTracker(TrackerConfig{Region: c.region, Size: pages * PageSize, Hashes: true, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.Start(); err != nil {
		t.Fatal(err)
	}
	c.do(childRequest{Op: "write", Pages: []PageNum{6, 900}, Value: 2})
	if got, err := tr.Scan(nil); err != nil || !slices.Equal(got, []Run{{6, 1}, {900, 1}}) {
		t.Errorf("got %v, %v", got, err)
	}
	holes, err := ZeroRuns(c.region.File, pages*PageSize)
	if want := []Run{{0, 5}, {7, 893}, {901, 99}}; err != nil || !slices.Equal(holes, want) {
		t.Errorf("holes: got %v, %v, want %v: a scan must not fill them", holes, err, want)
	}
}

func TestZeroRuns(t *testing.T) {
	const pages = 300
	r := testRand(t)
	c := startArmable(t, pages)
	in := map[PageNum]bool{}
	before := []Run{{0, pages}}
	for range 40 {
		p := PageNum(r.IntN(pages))
		c.region.Data[int(p)*PageSize] = 0 // written with zeroes: data, not a hole
		in[p] = true
		got, err := ZeroRuns(c.region.File, pages*PageSize)
		if want := runsOf(pages, func(p PageNum) bool { return !in[p] }); err != nil || !slices.Equal(got, want) {
			t.Fatalf("got %v, %v, want %v", got, err, want)
		}
		// What is a hole now was one before: looking there again is enough.
		again, err := ZeroRunsWithin(c.region.File, before)
		if err != nil || !slices.Equal(NormalizeRuns(again), got) {
			t.Fatalf("within %v: got %v, %v, want %v", before, again, err, got)
		}
		before = got
	}
	if _, err := ZeroRuns(c.region.File, -1); err == nil {
		t.Error("negative size")
	}
}

func TestProbe(t *testing.T) {
	s := Probe()
	t.Logf("%+v", s)
	if s.Missing != (s.Reason == "") {
		t.Errorf("missing %t with reason %q", s.Missing, s.Reason)
	}
}

func BenchmarkTracker(b *testing.B) {
	const pages = 16384
	c := startArmable(b, pages)
	c.do(childRequest{Op: "write", Pages: pageList(0, pages), Value: 1})
	for _, written := range []int{0, 256, 8192} {
		tr := startTracker(b, c, pages)
		var list []PageNum
		for i := range written {
			list = append(list, PageNum(i*(pages/written)))
		}
		b.Run(fmt.Sprintf("scan/pages=%d/written=%d", pages, written), func(b *testing.B) {
			var runs []Run
			for b.Loop() {
				if written > 0 {
					b.StopTimer()
					c.do(childRequest{Op: "write", Pages: list, Value: 3})
					b.StartTimer()
				}
				var err error
				if runs, err = tr.Scan(runs[:0]); err != nil || CountPages(runs) != written {
					b.Fatalf("%d pages, %v", CountPages(runs), err)
				}
			}
		})
		if err := tr.Stop(); err != nil {
			b.Fatal(err)
		}
	}
	b.Run(fmt.Sprintf("start/pages=%d", pages), func(b *testing.B) {
		for b.Loop() {
			tr := startTracker(b, c, pages)
			b.StopTimer()
			if err := tr.Stop(); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
}

// BenchmarkTracked is what a worker pays for being watched while it writes
// 50 MiB a second: between two scans, 20 ms apart, 256 pages, each of which
// faults once. One that is not watched takes turns with it. While no move is
// under way nothing is watched.
func BenchmarkTracked(b *testing.B) {
	const pages, between = 16384, 20 * time.Millisecond
	list := pageList(0, pages)
	watched, free := startArmable(b, pages), startArmable(b, pages)
	for _, c := range []*child{watched, free} {
		c.do(childRequest{Op: "write", Pages: list, Value: 1})
	}
	tr := startTracker(b, watched, pages)
	var took [2][]time.Duration
	var runs []Run
	r := rand.New(rand.NewPCG(1, 1))
	for b.Loop() {
		var some []PageNum
		for range 256 {
			some = append(some, PageNum(r.IntN(pages)))
		}
		for i, c := range []*child{watched, free} {
			at := time.Now()
			c.do(childRequest{Op: "write", Pages: some, Value: 3})
			took[i] = append(took[i], time.Since(at))
		}
		var err error
		if runs, err = tr.Scan(runs[:0]); err != nil {
			b.Fatal(err)
		}
	}
	median := func(d []time.Duration) time.Duration {
		slices.Sort(d)
		return d[len(d)/2]
	}
	more := median(took[0]) - median(took[1])
	b.ReportMetric(float64(more.Nanoseconds())/256, "ns-more/page")
	b.ReportMetric(100*more.Seconds()/between.Seconds(), "%-of-the-worker")
	b.ReportMetric(0, "ns/op")
	if err := tr.Stop(); err != nil {
		b.Fatal(err)
	}
}

// What the child has touched since it dropped its page-table entries is found
// exactly, and no write is lost by the dropping.
func TestTouched(t *testing.T) {
	const pages = 4096
	r := testRand(t)
	c := startArmable(t, pages)
	c.do(childRequest{Op: "write", Pages: pageList(0, pages*3/4), Value: 1})
	tr := startTracker(t, c, pages)
	for round := range 4 {
		before := pageList(r.IntN(1000), 300)
		c.do(childRequest{Op: "write", Pages: before, Value: byte(round)})
		c.do(childRequest{Op: "drop", Pages: pageList(0, pages)})
		touched, written := map[PageNum]bool{}, map[PageNum]bool{}
		for _, p := range before {
			written[p] = true
		}
		var reads, writes []PageNum
		for range 200 {
			reads, writes = append(reads, PageNum(r.IntN(pages))), append(writes, PageNum(r.IntN(pages)))
		}
		for i, p := range reads {
			touched[p], touched[writes[i]], written[writes[i]] = true, true, true
		}
		c.do(childRequest{Op: "touch", Pages: reads})
		c.do(childRequest{Op: "write", Pages: writes, Value: 9})
		got, err := tr.Touched(nil)
		if want := runsOf(pages, func(p PageNum) bool { return touched[p] }); err != nil || !slices.Equal(got, want) {
			t.Fatalf("round %d: %d pages touched, %v, want %d", round, CountPages(got), err, CountPages(want))
		}
		got, err = tr.Scan(nil)
		if want := runsOf(pages, func(p PageNum) bool { return written[p] }); err != nil || !slices.Equal(got, want) {
			t.Fatalf("round %d: %d pages written, %v, want %d", round, CountPages(got), err, CountPages(want))
		}
	}
}
