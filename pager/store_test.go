package pager

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
)

func TestStore(t *testing.T) {
	r := testRand(t)
	const limit = 256
	s := NewStore(limit * PageSize)
	pages := map[Hash][]byte{}
	var names []Hash
	for range 2000 {
		page := testMemory(r, 1, 1)
		h := s.Put(page)
		if h == ZeroHash {
			continue
		}
		pages[h] = page
		names = append(names, h)
		if !s.Has(h) {
			t.Fatal("what was just put is not there")
		}
		if st := s.Stats(); st.Pages > limit || st.Bytes > limit*PageSize {
			t.Fatalf("over the limit: %+v", st)
		}
	}
	buf := make([]byte, PageSize)
	found := 0
	for _, h := range names {
		if s.Get(h, buf) {
			found++
			if !bytes.Equal(buf, pages[h]) {
				t.Fatal("other content")
			}
		}
	}
	if found != s.Len() {
		t.Errorf("found %d pages of %d", found, s.Len())
	}
	buf[0] = 1
	if !s.Get(ZeroHash, buf) || !IsZero(buf) {
		t.Error("no zero page")
	}
	var pe *PageError
	if err := s.PutNamed(Hash{1}, buf); !errors.As(err, &pe) || !errors.Is(err, ErrContent) {
		t.Errorf("got %v, want a PageError", err)
	}
}

// What is used stays.
func TestStoreKeepsWhatIsUsed(t *testing.T) {
	r := testRand(t)
	s := NewStore(storeShards * 4 * PageSize)
	page := testMemory(r, 1, 0)
	h := s.Put(page)
	buf := make([]byte, PageSize)
	for range 500 {
		if !s.Get(h, buf) {
			t.Fatal("the page used most was dropped")
		}
		s.Put(testMemory(r, 1, 0))
	}
}

func TestStoreConcurrent(t *testing.T) {
	s := NewStore(1 << 20)
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i%2), 1)) // two and two put the same
			buf := make([]byte, PageSize)
			for range 300 {
				h := s.Put(testMemory(r, 1, 0))
				if s.Get(h, buf) && HashPage(buf) != h {
					t.Error("other content")
				}
			}
		})
	}
	all.Wait()
}

func TestStoreWithoutRoom(t *testing.T) {
	s := NewStore(100)
	h := s.Put(testMemory(testRand(t), 1, 0))
	if s.Has(h) || s.Len() != 0 {
		t.Error("a page in a store without room")
	}
}

func BenchmarkStore(b *testing.B) {
	const pages = 4096
	mem, table := benchMemory(pages)
	s := NewStore(pages * 2 * PageSize)
	b.Run("put", func(b *testing.B) {
		b.SetBytes(PageSize)
		i := 0
		for b.Loop() {
			s.Put(mem[i*PageSize : (i+1)*PageSize])
			i = (i + 1) % pages
		}
	})
	b.Run("get", func(b *testing.B) {
		b.SetBytes(PageSize)
		buf := make([]byte, PageSize)
		i := 0
		for b.Loop() {
			h, _ := table.Get(PageNum(i))
			if !s.Get(h, buf) {
				b.Fatal("not there")
			}
			i = (i + 1) % pages
		}
	})
}
