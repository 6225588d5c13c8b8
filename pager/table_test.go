package pager

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// slowTable is a Table as plainly as can be.
type slowTable struct {
	state map[PageNum]PageState
	name  map[PageNum]Hash
}

func testName(r *rand.Rand) Hash {
	var h Hash
	h[0] = byte(r.IntN(6)) // few, so that they repeat
	h[31] = 1
	return h
}

// mutate does the same random things to both tables.
func mutate(r *rand.Rand, fast *Table, slow slowTable, steps int) {
	for range steps {
		p := PageNum(r.IntN(fast.Len()))
		run := Run{p, uint32(1 + r.IntN(fast.Len()-int(p)))}
		switch r.IntN(4) {
		case 0:
			state := PageState(r.IntN(2))
			fast.Set(run, state)
			for q := run.First; q < run.end(); q++ {
				slow.state[q] = state
			}
		case 1:
			h := testName(r)
			for q := run.First; q < run.end(); q++ {
				fast.SetName(q, h)
				slow.state[q], slow.name[q] = Named, h
			}
		default:
			h := testName(r)
			fast.SetName(p, h)
			slow.state[p], slow.name[p] = Named, h
		}
	}
}

func TestTable(t *testing.T) {
	r := testRand(t)
	for range 300 {
		pages := 1 + r.IntN(60)
		fast, slow := NewTable(pages), slowTable{map[PageNum]PageState{}, map[PageNum]Hash{}}
		mutate(r, fast, slow, r.IntN(40))
		counts := map[PageState]int{}
		for p := range PageNum(pages) {
			h, state := fast.Get(p)
			if state != slow.state[p] || state == Named && h != slow.name[p] {
				t.Fatalf("page %d: got %v %s, want %v %s", p, state, h, slow.state[p], slow.name[p])
			}
			counts[state]++
		}
		for state, want := range counts {
			if got := fast.Count(state); got != want {
				t.Errorf("%v: got %d pages, want %d", state, got, want)
			}
			if got := CountPages(fast.Runs(state)); got != want {
				t.Errorf("%v: got %d pages in runs, want %d", state, got, want)
			}
			if err := checkRuns(fast.Runs(state), pages); err != nil {
				t.Error(err)
			}
		}
		b := fast.Append(nil)
		again, rest, err := ParseTable(append(b, "rest"...), pages)
		if err != nil || string(rest) != "rest" || !again.Equal(fast) {
			t.Fatalf("parse what was encoded: %v, rest %q", err, rest)
		}

		// Names that no page has any more are used again.
		if used := len(fast.names) - len(fast.free); used > fast.Len() {
			t.Errorf("%d names for %d pages", used, fast.Len())
		}
	}
}

func TestTableIsSmall(t *testing.T) {
	table := NewTable(MaxPages)
	table.Set(Run{0, MaxPages}, Zero)
	if n := len(table.Append(nil)); n != 10 {
		t.Errorf("4 GiB of zeroes take %d bytes, want 10", n)
	}
	for p := range PageNum(1000) {
		table.SetName(100+p, Hash{1})
	}
	if n := len(table.Append(nil)); n != 5+3*5+32 {
		t.Errorf("a repeated page takes %d bytes", n)
	}
}

func TestTableRefused(t *testing.T) {
	head := func(pages uint32) []byte { return binary.BigEndian.AppendUint32([]byte{tableFull}, pages) }
	run := func(kind byte, count uint32, names ...byte) []byte {
		b := binary.BigEndian.AppendUint32([]byte{kind}, count)
		for _, n := range names {
			b = append(b, bytes.Repeat([]byte{n}, 32)...)
		}
		return b
	}
	for name, b := range map[string][]byte{
		"empty":             {},
		"other format":      slices.Concat([]byte{9, 0, 0, 0, 4}, run(runZero, 4)),
		"other size":        slices.Concat(head(5), run(runZero, 5)),
		"too few":           slices.Concat(head(4), run(runZero, 3)),
		"too many":          slices.Concat(head(4), run(runZero, 5)),
		"overflow":          slices.Concat(head(4), run(runZero, 1), run(runZero, 0xffffffff)),
		"empty run":         slices.Concat(head(4), run(runZero, 0), run(runZero, 4)),
		"split run":         slices.Concat(head(4), run(runZero, 2), run(runZero, 2)),
		"repeat of one":     slices.Concat(head(4), run(runZero, 3), run(runRepeat, 1, 7)),
		"names that repeat": slices.Concat(head(4), run(runNames, 4, 7, 7, 8, 9)),
		"split names":       slices.Concat(head(4), run(runNames, 2, 6, 7), run(runNames, 2, 8, 9)),
		"names cut short":   slices.Concat(head(4), run(runNames, 4, 7, 8, 9)),
		"unknown kind":      slices.Concat(head(4), run(5, 4)),
	} {
		if _, _, err := ParseTable(b, 4); !errors.Is(err, ErrTable) {
			t.Errorf("%s: got %v, want %v", name, err, ErrTable)
		}
	}
	zero := append(slices.Concat(head(1), run(runNames, 1)), ZeroHash[:]...)
	if _, _, err := ParseTable(zero, 1); !errors.Is(err, ErrTable) {
		t.Errorf("the zero page by name: got %v, want %v", err, ErrTable)
	}
	if _, _, err := ParseTable(nil, MaxPages+1); !errors.Is(err, ErrTable) {
		t.Errorf("too many pages: got %v, want %v", err, ErrTable)
	}
}

func FuzzParseTable(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 20 {
		table := NewTable(64)
		mutate(r, table, slowTable{map[PageNum]PageState{}, map[PageNum]Hash{}}, 10)
		f.Add(table.Append(nil), uint16(64))
	}
	f.Fuzz(func(t *testing.T, b []byte, pages uint16) {
		table, rest, err := ParseTable(b, int(pages))
		if err != nil {
			return
		}
		if got := table.Append(nil); !bytes.Equal(got, b[:len(b)-len(rest)]) {
			t.Errorf("got %x, want %x", got, b[:len(b)-len(rest)])
		}
	})
}

func BenchmarkTable(b *testing.B) {
	const pages = 16384
	table := NewTable(pages)
	r := rand.New(rand.NewPCG(1, 1))
	for p := range PageNum(pages) {
		if p%4 == 0 {
			table.Set(Run{p, 1}, Zero)
			continue
		}
		table.SetName(p, Hash{byte(r.Uint32()), byte(r.Uint32()), byte(p), byte(p >> 8)})
	}
	b.Run(fmt.Sprintf("append/pages=%d", pages), func(b *testing.B) {
		var buf []byte
		for b.Loop() {
			buf = table.Append(buf[:0])
		}
		b.ReportMetric(float64(len(buf))/pages, "B/page")
	})
	enc := table.Append(nil)
	b.Run(fmt.Sprintf("parse/pages=%d", pages), func(b *testing.B) {
		for b.Loop() {
			if _, _, err := ParseTable(enc, pages); err != nil {
				b.Fatal(err)
			}
		}
	})
}
