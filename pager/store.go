package pager

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
)

// A Store keeps pages by their names, up to a number of bytes, and drops what
// was used longest ago. It has two tiers: memory, and below it, if it was
// opened with a directory, files that outlive the process.
//
//	Put ──▶ memory ──▶ disk       what is new in memory waits there to be
//	          ▲          │        written by one goroutine; nobody waits for it
//	          └── Fetch ─┘        what is found on disk is checked against its
//	                              name and comes back to memory
//
// What waits to be written takes no room of its own: it lies in memory as any
// other page. If memory fills faster than the disk takes it, pages are dropped
// that were never written, which is counted. So a full or slow disk costs
// pages and never time.
//
// A Store is safe for concurrent use.
type Store struct {
	shards [storeShards]storeShard
	disk   *diskTier // nil: memory only
}

// Shards keep those who serve faults from waiting for those who fill the
// store. A page's shard is chosen by its name, so all fill alike.
const storeShards = 8

type storeShard struct {
	mu    sync.Mutex
	index map[Hash]int32
	// Pages lie in slabs, allocated as they are needed and never moved.
	slabs [][]byte
	// Two rings run through pages, each with pages[0], which holds no page, as
	// its head: after the head comes what was used, or put, last.
	pages   []storePage
	limit   int
	waiting int

	hits, misses, dropped uint64
}

type storePage struct {
	name  Hash
	rings [2]struct{ next, prev int32 }
	waits bool // in ringWaiting
}

const (
	ringUse     = 0
	ringWaiting = 1 // to be written to disk
)

const slabPages = 64

// StoreConfig says what a Store may take. The zero value is a store that
// keeps nothing.
type StoreConfig struct {
	// Memory is how many bytes of pages are kept in memory. What it takes to
	// find them, some 100 bytes a page, comes on top.
	Memory int64
	// Dir is the directory of the disk tier, which is made if it is missing
	// and belongs to one process at a time; "" is no disk tier.
	Dir string
	// Disk is how many bytes the files in Dir may have, at least 1 MiB. Some 50
	// bytes of memory for each page on disk come on top of Memory, which has
	// to be 1 MiB or more, since pages wait there to be written.
	Disk int64
	// Log is told of a disk that fails. It may be nil without Dir.
	Log *slog.Logger
}

// leastTier is the least that a tier of a store with a disk may have, in bytes.
const leastTier = 1 << 20

// Validate says what is wrong with the configuration.
func (c StoreConfig) Validate() error {
	switch {
	case c.Memory < 0 || c.Disk < 0:
		return fmt.Errorf("page store: %d bytes of memory and %d on disk: want none or more", c.Memory, c.Disk)
	case c.Dir == "" && c.Disk != 0:
		return fmt.Errorf("page store: %d bytes on disk but no directory", c.Disk)
	case c.Dir == "":
		return nil
	case c.Disk < leastTier || c.Memory < leastTier:
		return fmt.Errorf("page store: %d bytes of memory and %d on disk: want at least %d of each", c.Memory, c.Disk, leastTier)
	case slotsFor(c.Disk) > maxSlots:
		return fmt.Errorf("page store: %d bytes on disk, at most %d", c.Disk, int64(maxSlots)*PageSize)
	case c.Log == nil:
		return errors.New("page store: no log")
	}
	return nil
}

// NewStore makes a store for at most limit bytes of pages in memory; what it
// needs to find them, some 100 bytes a page, comes on top. Nothing is
// allocated before it is needed, and nothing has to be closed.
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

// OpenStore makes a store and starts the goroutine that finds again what its
// directory holds and then writes to it, and that Close ends and waits for. The error wraps ErrInUse when
// another process has the directory, and ErrForeign when it holds a file that
// is not a store's, which is left alone. A store's own files are never in the
// way: what is damaged in them is dropped.
func OpenStore(cfg StoreConfig) (*Store, error) { return openStore(cfg, nil) }

// openStore is OpenStore with the files as wrap, unless it is nil, returns
// them.
func openStore(cfg StoreConfig, wrap func(name string, f diskFile) diskFile) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := NewStore(cfg.Memory)
	if cfg.Dir == "" {
		return s, nil
	}
	d, err := openDisk(cfg, s, wrap)
	if err != nil {
		return nil, fmt.Errorf("open page store: %w", err)
	}
	s.disk = d
	return s, nil
}

// Close writes what still waits, as far as that takes closeGrace at most, and
// gives the directory back. After it the store is one of memory only. It may
// be called more than once, and does nothing to a store without a directory.
func (s *Store) Close() error {
	if s.disk == nil {
		return nil
	}
	return s.disk.close()
}

func (s *Store) shard(h Hash) *storeShard { return &s.shards[h[0]%storeShards] }

// Has reports whether the page is in memory or on disk. It does not count as
// use. Right after OpenStore it may wait for the index of the disk. That a page
// on disk is whole is only known once it was read: after a power failure Fetch
// may not find what Has has promised.
func (s *Store) Has(h Hash) bool {
	return h == ZeroHash || s.inMemory(h) || s.disk != nil && s.disk.has(h)
}

func (s *Store) inMemory(h Hash) bool {
	sh := s.shard(h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	_, ok := sh.index[h]
	return ok
}

// Get copies the page to buf, which must be PageSize bytes, and reports
// whether it was in memory. The zero page always is. It never waits for the
// disk, so it may be called where a worker waits.
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
	sh.unlink(ringUse, i)
	sh.link(ringUse, i)
	return true
}

// Fetch is Get, and where the page is not in memory it is read from disk,
// checked against its name, and kept in memory. It may wait for the disk. What
// is in buf when it returns false is of no use.
func (s *Store) Fetch(h Hash, buf []byte) bool {
	if s.Get(h, buf) {
		return true
	}
	if s.disk == nil || !s.disk.read(h, buf, true) {
		return false
	}
	s.keep(h, buf, true)
	return true
}

// Peek is Fetch for somebody else: it does not count as use, so that what
// others ask for does not push out what this node needs.
func (s *Store) Peek(h Hash, buf []byte) bool {
	if h == ZeroHash {
		clear(buf)
		return true
	}
	sh := s.shard(h)
	sh.mu.Lock()
	i, ok := sh.index[h]
	if ok {
		copy(buf, sh.page(i))
	}
	sh.mu.Unlock()
	return ok || s.disk != nil && s.disk.read(h, buf, false)
}

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
	if h != ZeroHash {
		s.keep(h, page, s.disk == nil || s.disk.touch(h))
	}
}

// keep puts a page in memory. Unless it is stored below, it waits there to be
// written.
func (s *Store) keep(h Hash, page []byte, stored bool) {
	sh := s.shard(h)
	sh.mu.Lock()
	waits := sh.keep(h, page, !stored)
	sh.mu.Unlock()
	if waits {
		s.disk.notify()
	}
}

// keep reports whether there is something new to be written.
func (sh *storeShard) keep(h Hash, page []byte, write bool) bool {
	if sh.limit == 0 {
		return false
	}
	i, ok := sh.index[h]
	switch {
	case ok:
		sh.unlink(ringUse, i)
	case len(sh.pages)-1 < sh.limit:
		i = int32(len(sh.pages))
		sh.pages = append(sh.pages, storePage{})
		if (int(i)-1)%slabPages == 0 {
			sh.slabs = append(sh.slabs, make([]byte, min(slabPages, sh.limit-int(i)+1)*PageSize))
		}
	default:
		i = sh.pages[0].rings[ringUse].prev // used longest ago
		sh.unlink(ringUse, i)
		delete(sh.index, sh.pages[i].name)
		if sh.pages[i].waits {
			sh.unwait(i)
			sh.dropped++
		}
	}
	if !ok {
		sh.pages[i].name = h
		copy(sh.page(i), page)
		sh.index[h] = i
	}
	sh.link(ringUse, i)
	if !write || sh.pages[i].waits {
		return false
	}
	sh.wait(i)
	return true
}

func (sh *storeShard) wait(i int32) {
	sh.pages[i].waits = true
	sh.waiting++
	sh.link(ringWaiting, i)
}

func (sh *storeShard) unwait(i int32) {
	sh.pages[i].waits = false
	sh.waiting--
	sh.unlink(ringWaiting, i)
}

// takeWaiting copies the page that has waited longest to be written to buf. It
// waits no more.
func (sh *storeShard) takeWaiting(buf []byte) (Hash, bool) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	i := sh.pages[0].rings[ringWaiting].prev
	if i == 0 {
		return Hash{}, false
	}
	sh.unwait(i)
	copy(buf, sh.page(i))
	return sh.pages[i].name, true
}

// waitAgain is for a page that was taken and could not be written.
func (sh *storeShard) waitAgain(h Hash) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	i, ok := sh.index[h]
	switch {
	case !ok:
		sh.dropped++
	case !sh.pages[i].waits:
		sh.wait(i)
	}
}

func (sh *storeShard) page(i int32) []byte {
	at := (int(i) - 1) % slabPages * PageSize
	return sh.slabs[(int(i)-1)/slabPages][at : at+PageSize]
}

func (sh *storeShard) unlink(ring int, i int32) {
	p := &sh.pages[i].rings[ring]
	sh.pages[p.prev].rings[ring].next, sh.pages[p.next].rings[ring].prev = p.next, p.prev
}

// link puts page i right after the ring's head.
func (sh *storeShard) link(ring int, i int32) {
	head := &sh.pages[0].rings[ring]
	first := head.next
	p := &sh.pages[i].rings[ring]
	p.prev, p.next = 0, first
	sh.pages[first].rings[ring].prev = i
	head.next = i
}

// StoreStats counts what a Store holds and how it served.
type StoreStats struct {
	// Pages, Bytes and Limit, in bytes, are those of the memory, as are Hits
	// and Misses: a miss there may be a hit on disk.
	Pages, Bytes, Limit int
	Hits, Misses        uint64
	// Disk says 0 pages until its index has been read.
	Disk DiskStats
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
		st.Disk.Waiting += sh.waiting
		st.Disk.Dropped += sh.dropped
		sh.mu.Unlock()
	}
	st.Bytes = st.Pages * PageSize
	if s.disk != nil {
		s.disk.addStats(&st.Disk)
	}
	return st
}

// Len is how many pages there are in memory, or on disk if there are more
// there.
func (s *Store) Len() int {
	st := s.Stats()
	return max(st.Pages, st.Disk.Pages)
}
