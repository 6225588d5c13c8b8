package pager

import (
	"encoding/binary"
	"fmt"
)

// A Layout is what a destination has to know of a frozen memory before the
// worker runs there. It travels while the worker stands still, so it names no
// page: names come with the pages.
//
//	pages  uint32  // at most MaxPages
//	zero   runs
//	stale  runs
type Layout struct {
	// Pages is the size of the memory.
	Pages int
	// Zero lists pages that are zero, in order and apart; others may be, too.
	Zero []Run
	// Stale lists pages that were sent in rounds, and of which the destination
	// may have a version that is not the last: it keeps that aside, since the last
	// may come as a patch of it. All others that came in rounds
	// are as they should be; those that did not are still to come.
	Stale []Run
}

// Append encodes the Layout.
func (l Layout) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(l.Pages))
	return appendRuns(appendRuns(b, l.Zero), l.Stale)
}

// ParseLayout decodes what Append wrote, of a memory of at most most pages.
func ParseLayout(b []byte, most int) (l Layout, rest []byte, err error) {
	if len(b) < 4 {
		return l, nil, fmt.Errorf("memory layout: %w", errShort)
	}
	pages := binary.BigEndian.Uint32(b)
	if int64(pages) > int64(min(most, MaxPages)) {
		return l, nil, fmt.Errorf("memory layout: %d pages, at most %d", pages, min(most, MaxPages))
	}
	l.Pages = int(pages)
	if l.Zero, b, err = parseRuns(b[4:], l.Pages); err != nil {
		return l, nil, fmt.Errorf("memory layout: zero pages: %w", err)
	}
	if l.Stale, b, err = parseRuns(b, l.Pages); err != nil {
		return l, nil, fmt.Errorf("memory layout: stale pages: %w", err)
	}
	return l, b, nil
}

// without lists the pages of runs that are not in less. Both are in order and
// apart.
func without(runs, less []Run) []Run {
	var out []Run
	for _, r := range runs {
		at := r.First
		for len(less) > 0 && less[0].end() <= at {
			less = less[1:]
		}
		for _, l := range less {
			if l.First >= r.end() {
				break
			}
			if l.First > at {
				out = append(out, Run{at, uint32(l.First - at)})
			}
			at = max(at, l.end())
		}
		if at < r.end() {
			out = append(out, Run{at, uint32(r.end() - at)})
		}
	}
	return out
}
