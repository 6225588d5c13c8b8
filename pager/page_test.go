package pager

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/zeebo/blake3"
)

func TestHashPage(t *testing.T) {
	r := testRand(t)
	for range 100 {
		page := testMemory(r, 1, 2)
		if got, want := HashPage(page), Hash(blake3.Sum256(page)); got != want {
			t.Fatalf("got %s, want %s", got, want)
		}
	}
	if got := HashPage(make([]byte, PageSize)); got != ZeroHash {
		t.Errorf("zero page: got %s, want %s", got, ZeroHash)
	}
	page := testMemory(r, 1, 0)
	if n := testing.AllocsPerRun(100, func() { HashPage(page) }); n != 0 {
		t.Errorf("%v allocations a page", n)
	}
}

func TestIsZero(t *testing.T) {
	page := make([]byte, PageSize)
	if !IsZero(page) {
		t.Error("zero page is not zero")
	}
	for i := range page {
		page[i] = 1
		if IsZero(page) {
			t.Fatalf("byte %d is not looked at", i)
		}
		page[i] = 0
	}
}

func BenchmarkHashPage(b *testing.B) {
	page := bytes.Repeat([]byte("meshnode"), PageSize/8)
	b.SetBytes(PageSize)
	b.ReportAllocs()
	for b.Loop() {
		HashPage(page)
	}
}

func BenchmarkIsZero(b *testing.B) {
	page := make([]byte, PageSize)
	b.SetBytes(PageSize)
	for b.Loop() {
		if !IsZero(page) {
			b.Fatal()
		}
	}
}

// Pages that are named together have the names they have alone, however many
// and wherever they lie.
func TestHashPages(t *testing.T) {
	r := testRand(t)
	mem := make([]byte, (hashBatch+1)*PageSize)
	for range 200 {
		for i := range mem {
			mem[i] = byte(r.Uint32())
		}
		n := 1 + r.IntN(hashBatch)
		at := r.IntN(PageSize)
		var pages [hashBatch][]byte
		var names [hashBatch]Hash
		for i := range n {
			pages[i] = mem[at+i*PageSize:][:PageSize]
		}
		hashPages(names[:n], pages[:n])
		for i := range hashBatch {
			want := Hash{}
			if i < n {
				want = HashPage(pages[i])
			}
			if names[i] != want {
				t.Fatalf("page %d of %d: got %s, want %s", i, n, names[i], want)
			}
		}
	}
}

func BenchmarkHash(b *testing.B) {
	mem, _ := benchMemory(hashBatch)
	var pages [hashBatch][]byte
	var names [hashBatch]Hash
	for i := range pages {
		pages[i] = mem[i*PageSize:][:PageSize]
	}
	for _, n := range []int{1, 2, 4, hashBatch} {
		b.Run(fmt.Sprintf("pages=%d", n), func(b *testing.B) {
			b.SetBytes(int64(n) * PageSize)
			for b.Loop() {
				hashPages(names[:n], pages[:n])
			}
		})
	}
}
