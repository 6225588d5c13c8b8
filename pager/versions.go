package pager

import "math/rand/v2"

// versions are pages as the far side holds them, or as they were held here until
// they were told to be stale: what patches are made from and applied to. The
// zero value holds none. It is not safe for concurrent use.
type versions struct {
	pages []*[PageSize]byte // nil where none is held
	names []Hash
	held  int
	// spare is memory for more of them, each page by itself: of a block, one page
	// that is held would keep all.
	spare []*[PageSize]byte
}

// versionsSpare is how many pages are kept for reuse at most, 2 MiB.
const versionsSpare = 512

// reserve readies memory for n more pages, at most versionsSpare, so that put does
// not ask the system for it, of a memory of limit pages.
func (v *versions) reserve(n, limit int) {
	if v.pages == nil {
		v.begin(limit)
		// The system gives memory only when it is used.
		for at := 0; at < limit; at += PageSize / len(Hash{}) {
			v.pages[at], v.names[at] = nil, Hash{}
		}
	}
	for range min(n, versionsSpare) - len(v.spare) {
		page := new([PageSize]byte)
		page[0] = 1 // likewise
		v.spare = append(v.spare, page)
	}
}

// recycle keeps memory for reuse, if there is not enough of it.
func (v *versions) recycle(page *[PageSize]byte) {
	if len(v.spare) < versionsSpare {
		v.spare = append(v.spare, page)
	}
}

// get returns the version of page p, nil if none is held.
func (v *versions) get(p PageNum) (name Hash, page *[PageSize]byte) {
	if int(p) >= len(v.pages) || v.pages[p] == nil {
		return name, nil
	}
	return v.names[p], v.pages[p]
}

func (v *versions) begin(limit int) {
	if v.pages == nil {
		v.pages, v.names = make([]*[PageSize]byte, limit), make([]Hash, limit)
	}
}

// put keeps a copy of page p, of a memory of limit pages, instead of the version
// before. With as many as most held, another goes, whichever chance picks.
func (v *versions) put(p PageNum, name Hash, page []byte, limit, most int) {
	v.begin(limit)
	in := v.pages[p]
	if in == nil {
		if v.held >= most && !v.evict() {
			return
		}
		if n := len(v.spare); n > 0 {
			in, v.spare[n-1] = v.spare[n-1], nil
			v.spare = v.spare[:n-1]
		} else {
			in = new([PageSize]byte)
		}
		v.held++
	}
	copy(in[:], page)
	v.pages[p], v.names[p] = in, name
}

// evict drops a version, if one is held.
func (v *versions) evict() bool {
	for at := rand.IntN(len(v.pages)); v.held > 0; at = (at + 1) % len(v.pages) {
		if v.pages[at] != nil {
			v.drop(PageNum(at))
			return true
		}
	}
	return false
}

// drop forgets the version of page p, if one is held.
func (v *versions) drop(p PageNum) {
	if int(p) < len(v.pages) && v.pages[p] != nil {
		v.recycle(v.pages[p])
		v.pages[p] = nil
		v.held--
	}
}
