package pager

import (
	"fmt"
	"sync"
)

// A Store keeps pages by their names, up to a number of bytes, and drops what
// was used longest ago. It is safe for concurrent use.
type Store struct {
	shards [storeShards]storeShard
}

// Shards keep those who serve faults from waiting for those who fill the
// store. A page's shard is chosen by its name, so all fill alike.
const storeShards = 8

type storeShard struct {
	mu    sync.Mutex
	index map[Hash]int32
	// Pages lie in slabs, allocated as they are needed and never moved.
	slabs [][]byte
	pages []storePage
	limit int
	// The list of use is a ring through pages: pages[0] is its head and holds
	// no page; next is the most recently used.
	hits, misses uint64
}

type storePage struct {
	name       Hash
	next, prev int32
}

const slabPages = 64

// StoreStats counts what a Store holds and how it served.
type StoreStats struct {
	Pages, Bytes, Limit int
	Hits, Misses        uint64
}

// NewStore makes a store for at most limit bytes of pages; what it needs to
// find them, some 90 bytes a page, comes on top. Nothing is allocated before
// it is needed.
func NewStore(limit int64) *Store {
	s := new(Store)
	each := max(limit, 0) / PageSize / storeShards
	each = min(each, 1<<30)
	for i := range s.shards {
		s.shards[i].limit = int(each)
		s.shards[i].index = make(map[Hash]int32)
		s.shards[i].pages = make([]storePage, 1)
	}
	return s
}

func (s *Store) shard(h Hash) *storeShard { return &s.shards[h[0]%storeShards] }

// Has reports whether the page is there. It does not count as use.
func (s *Store) Has(h Hash) bool {
	sh := s.shard(h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	_, ok := sh.index[h]
	return ok
}

// Get copies the page to buf, which must be PageSize bytes, and reports
// whether it was there. The zero page always is.
func (s *Store) Get(h Hash, buf []byte) bool {
	if len(buf) != PageSize {
		panic(fmt.Sprintf("pager: Store.Get into %d bytes", len(buf)))
	}
	if h == ZeroHash {
		clear(buf)
		return true
	}
	sh := s.shard(h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	i, ok := sh.index[h]
	if !ok {
		sh.misses++
		return false
	}
	sh.hits++
	copy(buf, sh.page(i))
	sh.unlink(i)
	sh.link(i)
	return true
}

// Fetch is Get for a caller that may wait.
func (s *Store) Fetch(h Hash, buf []byte) bool { return s.Get(h, buf) }

// Put keeps a copy of page, which must be PageSize bytes, and returns its
// name.
func (s *Store) Put(page []byte) Hash {
	h := HashPage(page)
	s.put(h, page)
	return h
}

// PutNamed keeps a copy of page if its content has that name, and fails with
// a PageError otherwise.
func (s *Store) PutNamed(h Hash, page []byte) error {
	if got := HashPage(page); got != h {
		return &PageError{Want: h, Got: got, Err: ErrContent}
	}
	s.put(h, page)
	return nil
}

// put keeps a page whose name the caller computed.
func (s *Store) put(h Hash, page []byte) {
	if h == ZeroHash {
		return
	}
	sh := s.shard(h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.limit == 0 {
		return
	}
	if i, ok := sh.index[h]; ok {
		sh.unlink(i)
		sh.link(i)
		return
	}
	i := int32(len(sh.pages))
	if len(sh.pages)-1 < sh.limit {
		sh.pages = append(sh.pages, storePage{})
		if (int(i)-1)%slabPages == 0 {
			sh.slabs = append(sh.slabs, make([]byte, min(slabPages, sh.limit-int(i)+1)*PageSize))
		}
	} else {
		i = sh.pages[0].prev // used longest ago
		sh.unlink(i)
		delete(sh.index, sh.pages[i].name)
	}
	sh.pages[i].name = h
	copy(sh.page(i), page)
	sh.index[h] = i
	sh.link(i)
}

func (sh *storeShard) page(i int32) []byte {
	at := (int(i) - 1) % slabPages * PageSize
	return sh.slabs[(int(i)-1)/slabPages][at : at+PageSize]
}

func (sh *storeShard) unlink(i int32) {
	p := &sh.pages[i]
	sh.pages[p.prev].next, sh.pages[p.next].prev = p.next, p.prev
}

// link makes page i the most recently used.
func (sh *storeShard) link(i int32) {
	first := sh.pages[0].next
	sh.pages[i].prev, sh.pages[i].next = 0, first
	sh.pages[first].prev, sh.pages[0].next = i, i
}

// Stats counts what the store holds.
func (s *Store) Stats() StoreStats {
	var st StoreStats
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		st.Pages += len(sh.index)
		st.Limit += sh.limit * PageSize
		st.Hits += sh.hits
		st.Misses += sh.misses
		sh.mu.Unlock()
	}
	st.Bytes = st.Pages * PageSize
	return st
}

// Len is the number of pages in the store.
func (s *Store) Len() int { return s.Stats().Pages }
