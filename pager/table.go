package pager

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"github.com/zeebo/blake3"
)

// A PageState says what a Table knows of a page.
type PageState uint8

const (
	// Unknown: the page's name has not been computed or has not arrived.
	Unknown PageState = iota
	// Zero: all bytes are zero.
	Zero
	// Named: the content is known by its hash.
	Named
)

func (s PageState) String() string {
	switch s {
	case Unknown:
		return "unknown"
	case Zero:
		return "zero"
	case Named:
		return "named"
	}
	return fmt.Sprintf("PageState(%d)", uint8(s))
}

// A Table says, for every page of a memory, whether it is zero, what its name
// is, or that the name is not known. It takes 4 bytes a page, and 36 more for
// every run of pages of one name. It is not safe for concurrent use.
type Table struct {
	// of holds for each page refUnknown, refZero, or refNames plus an index
	// into names.
	of    []uint32
	names []Hash
	uses  []uint32 // how many pages refer to each of names
	free  []uint32 // indexes of names that no page refers to
}

const (
	refUnknown = iota
	refZero
	refNames
)

// NewTable makes a table of which nothing is known yet. It panics when pages
// is negative or above MaxPages.
func NewTable(pages int) *Table {
	if pages < 0 || pages > MaxPages {
		panic(fmt.Sprintf("pager: table of %d pages", pages))
	}
	return &Table{of: make([]uint32, pages)}
}

// Len is the number of pages.
func (t *Table) Len() int { return len(t.of) }

// Get says what is known of page p; the hash is ZeroHash for a zero page. It
// panics when p is not in the table, as do all other methods.
func (t *Table) Get(p PageNum) (Hash, PageState) {
	switch ref := t.of[p]; ref {
	case refUnknown:
		return Hash{}, Unknown
	case refZero:
		return ZeroHash, Zero
	default:
		return t.names[ref-refNames], Named
	}
}

// SetName notes the name of page p. The name of the zero page makes it Zero.
func (t *Table) SetName(p PageNum, h Hash) {
	if h == ZeroHash {
		t.set(p, refZero)
		return
	}
	if old := t.of[p]; old >= refNames && t.names[old-refNames] == h {
		return
	}
	if p > 0 {
		if ref := t.of[p-1]; ref >= refNames && t.names[ref-refNames] == h {
			t.set(p, ref)
			return
		}
	}
	t.set(p, t.intern(h))
}

// Set notes state for a run of pages: Zero or Unknown.
func (t *Table) Set(r Run, state PageState) {
	ref := uint32(refUnknown)
	switch state {
	case Unknown:
	case Zero:
		ref = refZero
	default:
		panic("pager: Table.Set: pages are named one by one")
	}
	for p := r.First; p < r.end(); p++ {
		t.set(p, ref)
	}
}

// truncate makes the table one of its first pages. Of the others nothing may be
// known.
func (t *Table) truncate(pages int) { t.of = t.of[:pages] }

func (t *Table) intern(h Hash) uint32 {
	if n := len(t.free); n > 0 {
		i := t.free[n-1]
		t.free = t.free[:n-1]
		t.names[i], t.uses[i] = h, 0
		return i + refNames
	}
	t.names = append(t.names, h)
	t.uses = append(t.uses, 0)
	return uint32(len(t.names)-1) + refNames
}

func (t *Table) set(p PageNum, ref uint32) {
	old := t.of[p]
	if old == ref {
		return
	}
	if ref >= refNames {
		t.uses[ref-refNames]++
	}
	t.of[p] = ref
	if old >= refNames {
		i := old - refNames
		if t.uses[i]--; t.uses[i] == 0 {
			t.free = append(t.free, i)
		}
	}
}

// Clone copies the table.
func (t *Table) Clone() *Table {
	return &Table{
		of:    cloned(t.of),
		names: append([]Hash(nil), t.names...),
		uses:  cloned(t.uses),
		free:  cloned(t.free),
	}
}

func cloned(s []uint32) []uint32 { return append(make([]uint32, 0, len(s)), s...) }

// Equal reports whether both tables say the same.
func (t *Table) Equal(u *Table) bool {
	if len(t.of) != len(u.of) {
		return false
	}
	for p := range t.of {
		if !t.same(PageNum(p), u) {
			return false
		}
	}
	return true
}

// same reports whether u says the same of page p, false if it has no such page.
func (t *Table) same(p PageNum, u *Table) bool {
	if int(p) >= len(u.of) {
		return false
	}
	a, b := t.of[p], u.of[p]
	if a < refNames || b < refNames {
		return a == b
	}
	return t.names[a-refNames] == u.names[b-refNames]
}

// Count is the number of pages in the given state.
func (t *Table) Count(state PageState) int {
	n := 0
	for _, ref := range t.of {
		if min(ref, refNames) == uint32(state) {
			n++
		}
	}
	return n
}

// Runs lists the pages in the given state.
func (t *Table) Runs(state PageState) []Run {
	return runsOf(len(t.of), func(p PageNum) bool { return min(t.of[p], refNames) == uint32(state) })
}

// All goes through the pages in order.
func (t *Table) All() iter.Seq2[PageNum, Hash] {
	return func(yield func(PageNum, Hash) bool) {
		for p := range t.of {
			if h, s := t.Get(PageNum(p)); s == Named && !yield(PageNum(p), h) {
				return
			}
		}
	}
}

// A Table as it is kept. Big endian:
//
//	format  uint8    // 1
//	pages   uint32
//	runs, until all pages are told:
//	  kind   uint8   // 0 unknown, 1 zero, 2 one name, 3 many names
//	  count  uint32  // pages, at least 1
//	  names  [32]byte, once for kind 2, count times for kind 3
//
// There is one encoding of a table, and no other is accepted: runs are as
// long as they can be, and a name is repeated by kind 2 and nothing else.
const (
	tableFull = 1

	runUnknown = 0
	runZero    = 1
	runRepeat  = 2
	runNames   = 3
)

// ErrTable is wrapped by every error of ParseTable.
var ErrTable = errors.New("page table not valid")

// Append encodes the table.
func (t *Table) Append(b []byte) []byte {
	b = append(b, tableFull)
	b = binary.BigEndian.AppendUint32(b, uint32(len(t.of)))
	return t.appendRuns(b)
}

// Digest names the table's content: the BLAKE3 of its encoding.
func (t *Table) Digest() [32]byte { return blake3.Sum256(t.Append(nil)) }

// kindAt is how page p is told, and for how many pages the same holds. For
// runNames it is how many pages have a name and a neighbour of another name.
func (t *Table) kindAt(p PageNum) (kind byte, count int) {
	n := PageNum(len(t.of))
	q := p + 1
	ref := t.of[p]
	if ref < refNames {
		for q < n && t.of[q] == ref {
			q++
		}
		return byte(ref), int(q - p)
	}
	equal := func(a, b PageNum) bool {
		x, y := t.of[a], t.of[b]
		return x == y || x >= refNames && y >= refNames && t.names[x-refNames] == t.names[y-refNames]
	}
	named := func(q PageNum) bool { return q < n && t.of[q] >= refNames }
	for named(q) && equal(p, q) {
		q++
	}
	if q > p+1 {
		return runRepeat, int(q - p)
	}
	for named(q) && !(named(q+1) && equal(q, q+1)) {
		q++
	}
	return runNames, int(q - p)
}

func (t *Table) appendRuns(b []byte) []byte {
	for p := PageNum(0); int(p) < len(t.of); {
		kind, count := t.kindAt(p)
		b = append(b, kind)
		b = binary.BigEndian.AppendUint32(b, uint32(count))
		switch kind {
		case runRepeat:
			b = append(b, t.names[t.of[p]-refNames][:]...)
		case runNames:
			for i := range count {
				b = append(b, t.names[t.of[int(p)+i]-refNames][:]...)
			}
		}
		p += PageNum(count)
	}
	return b
}

// ParseTable decodes what Append wrote. pages is how many the table must
// have, as told elsewhere and checked by the caller; beside 4 bytes for each
// of those it allocates no more than b justifies.
func ParseTable(b []byte, pages int) (t *Table, rest []byte, err error) {
	if pages < 0 || pages > MaxPages {
		return nil, nil, fmt.Errorf("%w: %d pages wanted, at most %d", ErrTable, pages, MaxPages)
	}
	whole := b
	const head = 5
	if len(b) < head {
		return nil, nil, fmt.Errorf("%w: %w", ErrTable, errShort)
	}
	if b[0] != tableFull {
		return nil, nil, fmt.Errorf("%w: format %d, want %d", ErrTable, b[0], tableFull)
	}
	if n := binary.BigEndian.Uint32(b[1:]); int64(n) != int64(pages) {
		return nil, nil, fmt.Errorf("%w: %d pages, want %d", ErrTable, n, pages)
	}
	b = b[head:]

	t = NewTable(pages)
	// At most as many names as there is room for in b.
	most := min(pages, len(b)/32)
	t.names, t.uses = make([]Hash, 0, most), make([]uint32, 0, most)
	for p := 0; p < pages; {
		if len(b) < 5 {
			return nil, nil, fmt.Errorf("%w: %w at page %d", ErrTable, errShort, p)
		}
		kind, count := b[0], binary.BigEndian.Uint32(b[1:])
		b = b[5:]
		r := Run{PageNum(p), count}
		if !r.within(pages) {
			return nil, nil, fmt.Errorf("%w: run of %d at page %d of %d", ErrTable, count, p, pages)
		}
		names := 0
		switch kind {
		case runRepeat:
			names = 1
		case runNames:
			names = int(count)
		}
		if len(b)/32 < names {
			return nil, nil, fmt.Errorf("%w: %w in names of page %d", ErrTable, errShort, p)
		}
		switch kind {
		case runUnknown: // as it is
		case runZero:
			t.Set(r, Zero)
		case runRepeat:
			for q := r.First; q < r.end(); q++ {
				t.SetName(q, Hash(b[:32]))
			}
		case runNames:
			for i := range count {
				t.SetName(r.First+PageNum(i), Hash(b[32*i:]))
			}
		default:
			return nil, nil, fmt.Errorf("%w: run of kind %d", ErrTable, kind)
		}
		b = b[32*names:]
		p += int(count)
	}

	// Encoding it again is the simplest check for the one accepted form, and
	// cheap: the names are only copied.
	used := whole[:len(whole)-len(b)]
	again := append(make([]byte, 0, len(used)+64), used[:head]...)
	if !bytes.Equal(t.appendRuns(again), used) {
		return nil, nil, fmt.Errorf("%w: not in its one form", ErrTable)
	}
	return t, b, nil
}
