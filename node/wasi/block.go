package wasi

import (
	"errors"
	"fmt"
	"sync"

	"github.com/zeebo/blake3"
)

// PageSize is the unit files are stored and moved in, in bytes: that of linear
// memory's pages.
const PageSize = 4 << 10

// A Hash is the BLAKE3 hash of a block's bytes, and the block's name.
type Hash [hashSize]byte

const hashSize = 32

// String returns the first bytes in hexadecimal, enough to tell blocks apart in
// a message.
func (h Hash) String() string { return fmt.Sprintf("%x", h[:6]) }

// ErrInterrupted is what Config.Fetch returns when a move wants the worker: the
// call that needed the block has no effect and is to be made again.
var ErrInterrupted = errors.New("interrupted by a move")

// A store holds a worker's blocks by name. Blocks never change, so that one may
// be sent while its worker runs on. Safe for concurrent use.
type store struct {
	fetch func(Hash) ([]byte, error)
	// max bounds the bytes of blocks that arrive from outside.
	max int64

	mu     sync.Mutex
	blocks map[Hash][]byte
	bytes  int64
}

func newStore(fetch func(Hash) ([]byte, error), max int64) *store {
	return &store{fetch: fetch, max: max, blocks: map[Hash][]byte{}}
}

// add keeps data, which must not change afterwards, and returns its name.
func (s *store) add(data []byte) Hash {
	h := Hash(blake3.Sum256(data))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addLocked(h, data)
	return h
}

func (s *store) addLocked(h Hash, data []byte) {
	if _, have := s.blocks[h]; !have {
		s.blocks[h] = data
		s.bytes += int64(len(data))
	}
}

// put is add for a block from outside.
func (s *store) put(data []byte) (Hash, error) {
	if len(data) == 0 || len(data) > PageSize {
		return Hash{}, fmt.Errorf("block of %d bytes, want 1 to %d", len(data), PageSize)
	}
	h := Hash(blake3.Sum256(data))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bytes+int64(len(data)) > s.max {
		return Hash{}, fmt.Errorf("more than %d bytes of blocks: no worker with these limits has so many", s.max)
	}
	s.addLocked(h, append([]byte(nil), data...))
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
	b, err := s.fetch(h)
	if err != nil {
		if errors.Is(err, ErrInterrupted) {
			return nil, errIntr
		}
		return nil, errIO
	}
	// Whoever fetched it is not trusted to have looked.
	if len(b) > PageSize || Hash(blake3.Sum256(b)) != h {
		return nil, errIO
	}
	b = append([]byte(nil), b...)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addLocked(h, b)
	return b, success
}

// count returns how many blocks there are.
func (s *store) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.blocks)
}

// names returns the names of all blocks that are here.
func (s *store) names() []Hash {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Hash, 0, len(s.blocks))
	for h := range s.blocks {
		all = append(all, h)
	}
	return all
}

// keep forgets the blocks that are not in live.
func (s *store) keep(live map[Hash]struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for h, b := range s.blocks {
		if _, ok := live[h]; !ok {
			delete(s.blocks, h)
			s.bytes -= int64(len(b))
		}
	}
}
