package pager

import (
	"slices"
	"testing"
)

func TestTrackByHashes(t *testing.T) {
	const pages = 200
	r := testRand(t)
	mem := testMemory(r, pages, 3)
	tr, err := NewTracker(TrackerConfig{Region: Region{Data: append(mem, make([]byte, 50*PageSize)...), UFFD: -1}, Size: pages * PageSize, Log: quietLog})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tr.Scan(nil); err == nil {
		t.Error("scan before start")
	}
	if err := tr.Start(); err != nil {
		t.Fatal(err)
	}
	data := tr.cfg.Region.Data
	for range 20 {
		in := map[PageNum]bool{}
		for range r.IntN(30) {
			p := PageNum(r.IntN(tr.pages))
			if !in[p] {
				data[int(p)*PageSize+r.IntN(PageSize)]++
				in[p] = true
			}
		}
		want := runsOf(tr.pages, func(p PageNum) bool { return in[p] })
		got, err := tr.Scan(nil)
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("got %v, %v, want %v", got, err, want)
		}
		if tr.pages < pages+50 {
			if err := tr.Grow(int64(tr.pages+10) * PageSize); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := tr.Method(); got != "hashes" {
		t.Errorf("method %q", got)
	}
	if err := tr.Grow(PageSize); err == nil {
		t.Error("memory that shrinks")
	}
	if err := tr.Stop(); err != nil {
		t.Error(err)
	}
}

func TestRecency(t *testing.T) {
	r := testRand(t)
	const pages = 100
	rec := NewRecency(pages)
	last := map[PageNum]int{}
	for scan := 1; scan < 20; scan++ {
		var runs []Run
		for range r.IntN(5) {
			runs = append(runs, Run{PageNum(r.IntN(pages - 5)), uint32(1 + r.IntN(5))})
		}
		runs = NormalizeRuns(runs)
		for _, w := range runs {
			for p := w.First; p < w.end(); p++ {
				last[p] = scan
			}
		}
		rec.Note(runs)
	}
	var got []PageNum
	for _, w := range rec.Order() {
		for p := w.First; p < w.end(); p++ {
			got = append(got, p)
		}
	}
	var want []PageNum
	for p := range last {
		want = append(want, p)
	}
	slices.SortFunc(want, func(a, b PageNum) int {
		if last[a] != last[b] {
			return last[b] - last[a]
		}
		return int(a) - int(b)
	})
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	rec.Note([]Run{{pages + 10, 1}}) // the memory grew
	if first := rec.Order()[0]; first != (Run{pages + 10, 1}) {
		t.Errorf("got %v first", first)
	}
}
