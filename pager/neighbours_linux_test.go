package pager

import (
	"slices"
	"testing"
)

// A look at a neighbour takes no memory for pages that it has never written, and
// what it writes meanwhile is at worst not found.
func TestNeighboursRunning(t *testing.T) {
	const pages = 2048
	r := testRand(t)
	c := startChild(t, pages)
	size := int64(pages) * PageSize
	mem := testMemory(r, pages, 5)
	for p := range pages {
		if page := mem[p*PageSize:][:PageSize]; !IsZero(page) {
			copy(c.region.Data[p*PageSize:], page)
		}
	}
	holes, err := ZeroRuns(c.region.File, size)
	if err != nil {
		t.Fatal(err)
	}
	var written []PageNum
	for p := range PageNum(pages) {
		if page := mem[int(p)*PageSize:][:PageSize]; !IsZero(page) && r.IntN(4) == 0 {
			written = append(written, p)
		}
	}
	n := newTestNeighbours(t, 1<<30, Neighbour{Region: c.region, Size: size, Hold: func() bool { return true }, Release: func() {}})
	c.send(childRequest{Op: "write", Pages: written, Value: 1})
	n.Run(t.Context())
	buf := make([]byte, PageSize)
	for p := range pages {
		page := mem[p*PageSize:][:PageSize]
		if IsZero(page) {
			continue
		}
		found := n.Fetch(HashPage(page), buf)
		if found && string(buf) != string(page) {
			t.Fatalf("page %d has other content", p)
		}
		// Another page may repeat it, and be looked at last.
		once := !slices.Contains(written, PageNum(p)) && (p+1 == pages || string(page) != string(mem[(p+1)*PageSize:][:PageSize]))
		if !found && once {
			t.Fatalf("page %d is there and was not found", p)
		}
	}
	c.reply()
	now, err := ZeroRuns(c.region.File, size)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(now, holes) {
		t.Errorf("%d pages were never written, and %d before anyone has looked", CountPages(now), CountPages(holes))
	}
}
