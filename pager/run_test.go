package pager

import (
	"bytes"
	"slices"
	"testing"
)

func TestRuns(t *testing.T) {
	r := testRand(t)
	for range 500 {
		pages := 1 + r.IntN(300)
		in := map[PageNum]bool{}
		var loose []Run
		for range r.IntN(40) {
			run := Run{PageNum(r.IntN(pages)), 0}
			run.Count = uint32(r.IntN(min(9, pages-int(run.First)) + 1))
			loose = append(loose, run)
			for p := run.First; p < run.end(); p++ {
				in[p] = true
			}
		}
		want := runsOf(pages, func(p PageNum) bool { return in[p] })
		if got := NormalizeRuns(loose); !slices.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
		if CountPages(want) != len(in) {
			t.Fatalf("%d pages in runs, want %d", CountPages(want), len(in))
		}
		got, rest, err := parseRuns(appendRuns(nil, want), pages)
		if err != nil || len(rest) != 0 || !slices.Equal(got, want) {
			t.Fatalf("got %v, %v, want %v", got, err, want)
		}
		if b := appendRuns(nil, want); len(b) > maxRunsBytes(pages) {
			t.Errorf("%d bytes for %d pages", len(b), pages)
		}
	}
	var every []Run
	for p := 0; p < MaxPages; p += 2 {
		every = append(every, Run{PageNum(p), 1})
	}
	if n := len(appendRuns(nil, every)); n > maxRunsBytes(MaxPages) {
		t.Errorf("every second page takes %d bytes, at most %d", n, maxRunsBytes(MaxPages))
	}
}

// Blocks find the same spans that a look at each flag would, whatever their
// length and wherever they begin.
func TestFlagBlocks(t *testing.T) {
	const one, other = 3, 4
	ones := block(one)
	for _, n := range []int{0, 1, flagBlock - 1, flagBlock, flagBlock + 1, 3 * flagBlock, 3*flagBlock + 5} {
		for _, behind := range []int{0, 1, flagBlock} {
			flags := make([]uint8, n+behind)
			fill(flags[:n], ones)
			for i := n; i < len(flags); i++ {
				flags[i] = other
			}
			if got := span(flags, ones); got != n {
				t.Errorf("a span of %d with %d others behind it is taken for %d", n, behind, got)
			}
			if got := len(flags) - bytes.Count(flags, []byte{one}); got != behind {
				t.Errorf("%d of %d flags were not set, want %d", got, len(flags), behind)
			}
		}
	}
}
