// Package store is a hash table of a fixed size in one piece of memory: an
// index with open addressing, and slots of equal size for keys and values. It
// never allocates after Init, and the garbage collector has nothing to look at
// in it, so the pages it dirties are exactly those of the entries it changes.
package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
)

// Limits of Init, in bytes.
const (
	MinSize = 64 << 10
	MaxSize = 512 << 20
	MinSlot = 64
	MaxSlot = PageSize

	// PageSize is the unit in which memory moves between nodes.
	PageSize = 4 << 10

	// slotHeader precedes the key and the value in a slot, little endian:
	//
	//	value   uint32   // length
	//	key     uint16   // length, 0 in a free slot
	//	        uint16   // 0
	//	touched uint32   // by Touch
	//	next    uint32   // in a free slot: the next free one plus 1, or 0
	slotHeader = 16
)

var (
	// ErrFull means that every slot is taken.
	ErrFull = errors.New("store is full")

	// ErrTooLarge means a key and value that do not fit a slot together.
	ErrTooLarge = errors.New("entry too large")
)

// A Store maps keys to values. The zero value has no room: see Init. It is not
// safe for concurrent use.
type Store struct {
	// The index is a table of 8-byte places, a power of two of them: the upper
	// half of the key's hash and its slot plus 1, or 0. At least a quarter is
	// free. It is rounded up to pages, so that slots do not straddle them.
	arena []byte // index, then slots
	index []byte
	slots []byte

	mask    uint32 // places - 1
	slot    int    // bytes a slot
	used    int    // slots with an entry
	fresh   int    // slots that were used at least once: the first ones
	free    uint32 // list of deleted ones: slot plus 1, or 0
	values  int    // bytes of all values
	touches uint64
}

// Init empties the store and gives it size bytes, a multiple of PageSize, of
// slots of slot bytes each, a power of two. The index comes on top: 8 bytes for
// three quarters of a slot, rounded up to a power of two. The memory of an
// earlier Init is used again if it is enough.
func (s *Store) Init(size, slot int) error {
	if size < MinSize || size > MaxSize || size%PageSize != 0 {
		return fmt.Errorf("a store of %d bytes: want a multiple of %d from %d to %d", size, PageSize, MinSize, MaxSize)
	}
	if slot < MinSlot || slot > MaxSlot || slot&(slot-1) != 0 {
		return fmt.Errorf("slots of %d bytes: want a power of two from %d to %d", slot, MinSlot, MaxSlot)
	}
	places := 1
	for places*3 < size/slot*4 {
		places *= 2
	}
	index := (places*8 + PageSize - 1) &^ (PageSize - 1)
	if cap(s.arena) >= index+size {
		s.arena = s.arena[:index+size]
		clear(s.arena)
	} else {
		if s.arena != nil {
			// Give the old memory back first: a worker has no room for both.
			s.arena, s.index, s.slots = nil, nil, nil
			runtime.GC()
		}
		s.arena = make([]byte, index+size)
	}
	*s = Store{
		arena: s.arena,
		index: s.arena[:index],
		slots: s.arena[index:],
		mask:  uint32(places - 1),
		slot:  slot,
	}
	return nil
}

// hashKey is FNV-1a with the mix of MurmurHash3 behind it, so that all of its bits
// are good.
func hashKey(key []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range key {
		h = (h ^ uint64(c)) * 1099511628211
	}
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

func (s *Store) place(i uint32) uint64 {
	return binary.LittleEndian.Uint64(s.index[int(i)*8:])
}

func (s *Store) setPlace(i uint32, v uint64) {
	binary.LittleEndian.PutUint64(s.index[int(i)*8:], v)
}

// at returns slot n.
func (s *Store) at(n uint32) []byte {
	return s.slots[int(n)*s.slot:][:s.slot]
}

// entry splits a slot into its key and its value.
func entry(slot []byte) (key, value []byte) {
	v := int(binary.LittleEndian.Uint32(slot))
	k := int(binary.LittleEndian.Uint16(slot[4:]))
	return slot[slotHeader:][:k], slot[slotHeader+k:][:v]
}

// find returns the place of a key, or where it would go.
func (s *Store) find(key []byte, h uint64) (place uint32, found bool) {
	for i := uint32(h) & s.mask; ; i = (i + 1) & s.mask {
		p := s.place(i)
		if p == 0 {
			return i, false
		}
		if p>>32 == h>>32 {
			if k, _ := entry(s.at(uint32(p) - 1)); bytes.Equal(k, key) {
				return i, true
			}
		}
	}
}

// Get returns the value of key, which is valid until the entry changes.
func (s *Store) Get(key []byte) ([]byte, bool) {
	if s.used == 0 {
		return nil, false
	}
	i, ok := s.find(key, hashKey(key))
	if !ok {
		return nil, false
	}
	_, v := entry(s.at(uint32(s.place(i)) - 1))
	return v, true
}

// Room is how many bytes key and value of an entry may have together.
func (s *Store) Room() int { return max(0, s.slot-slotHeader) }

// Put sets the value of key. It returns ErrTooLarge or ErrFull without having
// changed anything.
func (s *Store) Put(key, value []byte) error {
	if len(key) == 0 || len(key)+len(value) > s.Room() {
		return fmt.Errorf("a key of %d and a value of %d bytes: %w: want 1 to %d together", len(key), len(value), ErrTooLarge, s.Room())
	}
	h := hashKey(key)
	i, found := s.find(key, h)
	var slot []byte
	if found {
		slot = s.at(uint32(s.place(i)) - 1)
		s.values -= int(binary.LittleEndian.Uint32(slot))
	} else {
		n, ok := s.take()
		if !ok {
			return ErrFull
		}
		s.setPlace(i, h>>32<<32|uint64(n+1))
		s.used++
		slot = s.at(n)
	}
	binary.LittleEndian.PutUint32(slot, uint32(len(value)))
	binary.LittleEndian.PutUint16(slot[4:], uint16(len(key)))
	copy(slot[slotHeader:], key)
	copy(slot[slotHeader+len(key):], value)
	s.values += len(value)
	return nil
}

// take returns a free slot.
func (s *Store) take() (uint32, bool) {
	if s.free != 0 {
		n := s.free - 1
		next := s.at(n)[12:]
		s.free = binary.LittleEndian.Uint32(next)
		binary.LittleEndian.PutUint32(next, 0)
		return n, true
	}
	if s.fresh == len(s.slots)/s.slot {
		return 0, false
	}
	s.fresh++
	return uint32(s.fresh - 1), true
}

// Delete removes key and reports whether it was there.
func (s *Store) Delete(key []byte) bool {
	if s.used == 0 {
		return false
	}
	i, ok := s.find(key, hashKey(key))
	if !ok {
		return false
	}
	n := uint32(s.place(i)) - 1
	slot := s.at(n)
	s.values -= int(binary.LittleEndian.Uint32(slot))
	s.used--
	binary.LittleEndian.PutUint32(slot, 0)
	binary.LittleEndian.PutUint16(slot[4:], 0)
	binary.LittleEndian.PutUint32(slot[12:], s.free)
	s.free = n + 1

	// Close the gap: whatever follows and is not at its own place yet moves up,
	// so that no search ends early (Knuth, TAOCP 3, 6.4, algorithm R).
	for j := (i + 1) & s.mask; ; j = (j + 1) & s.mask {
		p := s.place(j)
		if p == 0 {
			break
		}
		k, _ := entry(s.at(uint32(p) - 1))
		home := uint32(hashKey(k)) & s.mask
		if (j-home)&s.mask >= (j-i)&s.mask {
			s.setPlace(i, p)
			i = j
		}
	}
	s.setPlace(i, 0)
	return true
}

// Scan calls f for the entries in slots from onwards, in the order of slots,
// until f returns false, and returns the slot to go on from: that of the
// entry f refused, or -1 at the end. Key and value are valid until the entry
// changes.
func (s *Store) Scan(from int, f func(key, value []byte) bool) int {
	for n := max(from, 0); n < s.fresh; n++ {
		k, v := entry(s.at(uint32(n)))
		if len(k) > 0 && !f(k, v) {
			return n
		}
	}
	return -1
}

// Fill puts n entries with the keys k0, k1 and so on, and values of size
// pseudo-random bytes that depend on seed and key. It returns how many it put,
// which is less than n only with an error.
func (s *Store) Fill(n, size int, seed uint64) (int, error) {
	key := make([]byte, 0, 16)
	value := make([]byte, max(0, min(size, s.Room()))+8)
	for i := range n {
		key = fmt.Appendf(key[:0], "k%d", i)
		if size < 0 || len(key)+size > s.Room() {
			return i, fmt.Errorf("values of %d bytes: %w: want at most %d", size, ErrTooLarge, s.Room()-len(key))
		}
		x := mix(seed + uint64(i)*0x9e3779b97f4a7c15)
		for j := 0; j < size; j += 8 {
			x += 0x9e3779b97f4a7c15
			binary.LittleEndian.PutUint64(value[j:], mix(x))
		}
		if err := s.Put(key, value[:size]); err != nil {
			return i, err
		}
	}
	return n, nil
}

// Pages is how many pages the slots take.
func (s *Store) Pages() int { return len(s.slots) / PageSize }

// TouchRange writes to each of count pages of the slots from first on, without
// changing any entry. Pages count from 0, and from the end to the start.
func (s *Store) TouchRange(first, count int) {
	if pages := s.Pages(); pages > 0 {
		for i := range count {
			s.touch((first + i) % pages)
		}
	}
}

// TouchRandom writes to count pages drawn from the seed; a page may be drawn
// again. It does not change any entry.
func (s *Store) TouchRandom(count int, seed uint64) {
	if pages := uint64(s.Pages()); pages > 0 {
		for range count {
			seed += 0x9e3779b97f4a7c15
			s.touch(int(mix(seed) % pages))
		}
	}
}

func (s *Store) touch(page int) {
	p := s.slots[page*PageSize+8:]
	binary.LittleEndian.PutUint32(p, binary.LittleEndian.Uint32(p)+1)
	s.touches++
}

// Stats describes a store.
type Stats struct {
	Slots, SlotBytes  int
	Used, ValueBytes  int
	ArenaBytes, Pages int
	Touches           uint64
}

// Stats takes no time.
func (s *Store) Stats() Stats {
	st := Stats{
		SlotBytes: s.slot, Used: s.used, ValueBytes: s.values,
		ArenaBytes: len(s.arena), Pages: s.Pages(), Touches: s.touches,
	}
	if s.slot > 0 {
		st.Slots = len(s.slots) / s.slot
	}
	return st
}
