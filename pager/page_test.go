package pager

import (
	"bytes"
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
