package pager

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// A Run is a stretch of pages.
type Run struct {
	First PageNum
	Count uint32
}

// end is the number after the last page of the run.
func (r Run) end() PageNum { return r.First + PageNum(r.Count) }

// within reports whether the run is not empty and lies in a memory of pages.
func (r Run) within(pages int) bool {
	return r.Count > 0 && uint64(r.First)+uint64(r.Count) <= uint64(pages)
}

// CountPages adds up the lengths of runs.
func CountPages(runs []Run) int {
	n := 0
	for _, r := range runs {
		n += int(r.Count)
	}
	return n
}

// checkRuns reports whether runs are in order, apart, not empty, and within a
// memory of pages: the one form in which a set of pages is passed around.
func checkRuns(runs []Run, pages int) error {
	next := uint64(0)
	for i, r := range runs {
		if i > 0 && uint64(r.First) <= next || r.Count == 0 {
			return fmt.Errorf("run %d at page %d is empty, out of order or touches the one before", i, r.First)
		}
		next = uint64(r.First) + uint64(r.Count)
		if next > uint64(pages) {
			return fmt.Errorf("run %d ends at page %d of %d", i, next, pages)
		}
	}
	return nil
}

// NormalizeRuns sorts runs and joins those that overlap or touch, in place.
func NormalizeRuns(runs []Run) []Run {
	runs = slices.DeleteFunc(runs, func(r Run) bool { return r.Count == 0 })
	slices.SortFunc(runs, func(a, b Run) int { return int(int64(a.First) - int64(b.First)) })
	out := runs[:0]
	for _, r := range runs {
		if n := len(out); n > 0 && r.First <= out[n-1].end() {
			if r.end() > out[n-1].end() {
				out[n-1].Count = uint32(r.end() - out[n-1].First)
			}
			continue
		}
		out = append(out, r)
	}
	return out
}

// runsOf lists the pages below pages for which in is true.
func runsOf(pages int, in func(PageNum) bool) []Run {
	var runs []Run
	for p := PageNum(0); int(p) < pages; p++ {
		if !in(p) {
			continue
		}
		if n := len(runs); n > 0 && runs[n-1].end() == p {
			runs[n-1].Count++
		} else {
			runs = append(runs, Run{p, 1})
		}
	}
	return runs
}

// Flags of pages, a byte each, are looked at and set by blocks: with hundreds of
// thousands of pages that takes microseconds, one by one most of a millisecond.
const flagBlock = 64

// block returns a block of flags of one value.
func block(flag uint8) []uint8 { return bytes.Repeat([]uint8{flag}, flagBlock) }

// span is how many flags at the beginning are like those of a block.
func span(flags, block []uint8) int {
	n := 0
	for len(flags)-n >= len(block) && bytes.Equal(flags[n:n+len(block)], block) {
		n += len(block)
	}
	for n < len(flags) && flags[n] == block[0] {
		n++
	}
	return n
}

// fill makes all flags like those of a block.
func fill(flags, block []uint8) {
	for len(flags) > 0 {
		flags = flags[copy(flags, block):]
	}
}

// A set of pages is written as its runs, in order and apart:
//
//	runs  uint32
//	each: gap    uvarint  // absent pages since the last run, 0 only before the first
//	      count  uvarint  // pages present, at least 1
func appendRuns(b []byte, runs []Run) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(runs)))
	next := PageNum(0)
	for _, r := range runs {
		b = binary.AppendUvarint(b, uint64(r.First-next))
		b = binary.AppendUvarint(b, uint64(r.Count))
		next = r.end()
	}
	return b
}

// maxRunsBytes is the most that a set of pages of a memory can take: two
// bytes for every second page, besides the count.
func maxRunsBytes(pages int) int { return 4 + pages + 8 }

func parseRuns(b []byte, pages int) (runs []Run, rest []byte, err error) {
	if len(b) < 4 {
		return nil, nil, errShort
	}
	count := binary.BigEndian.Uint32(b)
	b = b[4:]
	if uint64(count)*2 > uint64(len(b)) { // a run takes two bytes at least
		return nil, nil, fmt.Errorf("%d runs in %d bytes", count, len(b))
	}
	if count > 0 {
		runs = make([]Run, 0, count)
	}
	next := uint64(0)
	for i := range count {
		var gap, n uint64
		if gap, b, err = parseUvarint(b); err != nil {
			return nil, nil, err
		}
		if n, b, err = parseUvarint(b); err != nil {
			return nil, nil, err
		}
		if n == 0 || gap == 0 && i > 0 || gap > MaxPages || n > MaxPages || next+gap+n > uint64(pages) {
			return nil, nil, fmt.Errorf("run %d: %d pages after a gap of %d from page %d, in a memory of %d", i, n, gap, next, pages)
		}
		runs = append(runs, Run{PageNum(next + gap), uint32(n)})
		next += gap + n
	}
	return runs, b, nil
}

var errShort = errors.New("cut short")

// parseUvarint accepts only the shortest form of a number.
func parseUvarint(b []byte) (v uint64, rest []byte, err error) {
	v, n := binary.Uvarint(b)
	switch {
	case n == 0:
		return 0, nil, errShort
	case n < 0, n > 1 && b[n-1] == 0:
		return 0, nil, errors.New("number not in its shortest form")
	}
	return v, b[n:], nil
}
