package pager

import (
	"runtime"
	"testing"
	"weak"
)

// The memory behind versions is that of what is held, and a bounded rest, however
// pages are put and dropped.
func TestVersionsMemory(t *testing.T) {
	const pages = 8 * versionsSpare
	var v versions
	page := make([]byte, PageSize)
	seen := make(map[weak.Pointer[[PageSize]byte]]bool)
	for first := range pages - versionsSpare {
		if first%64 > 0 {
			continue
		}
		v.reserve(versionsSpare, pages)
		for _, in := range v.spare {
			seen[weak.Make(in)] = true
		}
		for p := first; p < first+versionsSpare; p++ {
			v.put(PageNum(p), Hash{1}, page, pages, pages)
		}
		for p := first; p < first+versionsSpare; p++ {
			if p%64 > 0 { // one of each 64 stays
				v.drop(PageNum(p))
			}
		}
		v.spare = nil // as if others had used it
	}
	runtime.GC()
	reached := 0
	for p := range seen {
		if p.Value() != nil {
			reached++
		}
	}
	if v.held != pages/64-1 {
		t.Fatalf("%d pages are held, want %d", v.held, pages/64-1)
	}
	// An allocator may keep two small pages together.
	if reached > 2*v.held {
		t.Errorf("%d pages are held, and memory for %d of %d is not free", v.held, reached, len(seen))
	}
	// What is dropped is used again, up to a bound.
	v.reserve(2*versionsSpare, pages)
	for p := range PageNum(pages) {
		v.put(p, Hash{2}, page, pages, pages)
	}
	for p := range PageNum(pages) {
		v.drop(p)
	}
	if v.held != 0 || len(v.spare) != versionsSpare {
		t.Errorf("%d pages are held, and memory for %d is kept, want 0 and %d", v.held, len(v.spare), versionsSpare)
	}
	runtime.KeepAlive(&v)
}
