package wasi

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/zeebo/blake3"
)

// PageSize is the unit files are stored and moved in, in bytes: that of linear
// memory's pages.
const PageSize = 4 << 10

// A Hash is a block's name: the BLAKE3 hash of the page it is, with zeroes
// behind the block's bytes up to PageSize. So a file's pages and those of linear
// memory are named alike, and whoever keeps the ones can keep the others.
type Hash [hashSize]byte

const hashSize = 32

// blockName returns the name of a block of at most PageSize bytes.
func blockName(data []byte) Hash {
	if len(data) == PageSize {
		return blake3.Sum256(data)
	}
	var page [PageSize]byte
	copy(page[:], data)
	return blake3.Sum256(page[:])
}

// String returns the first bytes in hexadecimal, enough to tell blocks apart in
// a message.
func (h Hash) String() string { return fmt.Sprintf("%x", h[:6]) }

// ErrInterrupted is what Config.Fetch returns when a move wants the worker: the
// call that needed the block has no effect and is to be made again.
var ErrInterrupted = errors.New("interrupted by a move")

// A store holds a worker's blocks by name, without the zeroes at their ends.
// Blocks never change, so that one may be sent while its worker runs on. Safe
// for concurrent use.
type store struct {
	fetch func(Hash) ([]byte, error)
	// max bounds the bytes of blocks that arrive from outside.
	max int64

	mu     sync.Mutex
	blocks map[Hash][]byte
	bytes  int64
	// order lists the blocks as they came, and sweeps counts how often some
	// were taken out of it.
	order  []Hash
	sweeps uint64
	// missing are blocks in use that have yet to arrive, with whether each is an
	// index; queue has them in the order of the files, and some that have
	// arrived. demanded is the one that the guest waits for.
	missing  map[Hash]bool
	queue    []Hash
	demanded Hash
}

func newStore(fetch func(Hash) ([]byte, error), max int64) *store {
	return &store{fetch: fetch, max: max, blocks: map[Hash][]byte{}, missing: map[Hash]bool{}}
}

// add keeps data, which must not change afterwards, and returns its name.
func (s *store) add(data []byte) Hash {
	h := blockName(data)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addLocked(h, data)
	return h
}

func (s *store) addLocked(h Hash, data []byte) {
	if _, have := s.blocks[h]; !have {
		s.blocks[h] = data
		s.bytes += int64(len(data))
		s.order = append(s.order, h)
	}
	if index, missed := s.missing[h]; missed {
		delete(s.missing, h)
		if index {
			s.expectPagesLocked(data)
		}
	}
}

// expect notes an index that is in use, and what it names, as far as it is not
// here.
func (s *store) expect(index Hash) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b, here := s.blocks[index]; here {
		s.expectPagesLocked(b)
		return
	}
	if known := s.missing[index]; !known {
		s.missing[index] = true
		s.queue = append(s.queue, index)
	}
}

func (s *store) expectPagesLocked(index []byte) {
	names, _ := parseIndex(index) // what is no index is EIO to who reads the file
	for _, h := range names {
		_, here := s.blocks[h]
		_, known := s.missing[h]
		if h != (Hash{}) && !here && !known {
			s.missing[h] = false
			s.queue = append(s.queue, h)
		}
	}
}

// wanted returns up to most of the missing blocks, the one that the guest waits
// for first, and how many there are.
func (s *store) wanted(most int) (names []Hash, all int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, missed := s.missing[s.demanded]; missed && most > 0 {
		names = append(names, s.demanded)
	}
	keep := s.queue[:0]
	for _, h := range s.queue {
		if _, missed := s.missing[h]; missed {
			keep = append(keep, h)
			if len(names) < most && h != s.demanded {
				names = append(names, h)
			}
		}
	}
	s.queue = keep
	return names, len(s.missing)
}

func (s *store) expects(h Hash) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, missed := s.missing[h]
	return missed
}

// giveUp expects some blocks no more.
func (s *store) giveUp(names []Hash) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range names {
		delete(s.missing, h)
	}
}

// expectNothing is giveUp for all.
func (s *store) expectNothing() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.missing, s.queue = map[Hash]bool{}, nil
}

// put is add for a block from outside.
func (s *store) put(data []byte) (Hash, error) {
	if len(data) == 0 || len(data) > PageSize {
		return Hash{}, fmt.Errorf("block of %d bytes, want 1 to %d", len(data), PageSize)
	}
	h := blockName(data)
	if data = trimZeroes(data); len(data) == 0 {
		return Hash{}, errors.New("block of zeroes, which no file has")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, here := s.blocks[h]; here {
		return h, nil
	}
	if s.bytes+int64(len(data)) > s.max {
		return Hash{}, fmt.Errorf("more than %d bytes of blocks: no worker with these limits has so many", s.max)
	}
	s.addLocked(h, bytes.Clone(data))
	return h, nil
}

// peek returns a block if it is here.
func (s *store) peek(h Hash) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.blocks[h]
	return b, ok
}

// get returns a block, fetching it if it is not here yet.
func (s *store) get(h Hash) ([]byte, errno) {
	if b, ok := s.peek(h); ok {
		return b, success
	}
	if s.fetch == nil {
		return nil, errIO
	}
	s.demand(h)
	defer s.demand(Hash{})
	b, err := s.fetch(h)
	if err != nil {
		if errors.Is(err, ErrInterrupted) {
			return nil, errIntr
		}
		return nil, errIO
	}
	// Whoever fetched it is not trusted to have looked.
	if len(b) > PageSize || blockName(b) != h {
		return nil, errIO
	}
	b = bytes.Clone(trimZeroes(b))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addLocked(h, b)
	return b, success
}

func (s *store) demand(h Hash) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.demanded = h
}

// count returns how many blocks there are.
func (s *store) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.blocks)
}

// crowded says that half of the room for blocks is taken.
func (s *store) crowded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes > s.max/2
}

// A Cursor is a place in the list of blocks that a Host has. The zero Cursor is
// its beginning.
type Cursor struct {
	// Sweeps is how often blocks had been taken out of the list.
	Sweeps uint64 `cbor:"1,keyasint,omitempty"`
	Next   uint64 `cbor:"2,keyasint,omitempty"`
}

// since returns the names of up to most blocks from at on, and where they end.
func (s *store) since(at Cursor, most int) ([]Hash, Cursor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at.Sweeps != s.sweeps {
		at = Cursor{Sweeps: s.sweeps}
	}
	first := min(at.Next, uint64(len(s.order)))
	names := s.order[first:]
	names = names[:min(len(names), most)]
	return slices.Clone(names), Cursor{Sweeps: s.sweeps, Next: first + uint64(len(names))}
}

// keep forgets the blocks that are not in live.
func (s *store) keep(live map[Hash]struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := len(s.order)
	s.order = slices.DeleteFunc(s.order, func(h Hash) bool {
		if _, ok := live[h]; ok {
			return false
		}
		s.bytes -= int64(len(s.blocks[h]))
		delete(s.blocks, h)
		return true
	})
	if len(s.order) != before {
		s.sweeps++
	}
}
