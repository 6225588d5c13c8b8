package pager

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
)

// A diskIndex knows which page lies in which slot of the disk tier, and in
// which order they were used. It is a hash table with open addressing and
// linear probing whose entries are slot numbers; names and the list of use lie
// beside it, so a page costs 40 bytes there and, at a load of 3/8 to 3/4, 5 to
// 11 in the table. A Go map from names to slots would come to twice that, with
// the names once more to get from a slot to its name.
//
// It is not safe for concurrent use.
type diskIndex struct {
	// table holds slot+1, or 0. Its size is a power of two.
	table []uint32
	shift int
	// seed is odd and random: names are hashes, but whoever makes pages can
	// choose among them those that would all fall on one place.
	seed uint64
	// Slots are described in chunks, allocated as slots are used and never
	// moved.
	chunks []*[indexChunk]indexSlot
	count  int
	// The ring of use goes through slots by slot+1; head stands for 0.
	head indexLink
}

const indexChunk = 4096

type indexLink struct {
	next, prev uint32 // slot+1, or 0 for the head
}

type indexSlot struct {
	name Hash
	indexLink
}

func newDiskIndex(slots int) *diskIndex {
	size := bits.Len(uint(max(slots, 8) * 4 / 3))
	return &diskIndex{
		table: make([]uint32, 1<<size),
		shift: 64 - size,
		seed:  rand.Uint64() | 1,
	}
}

// home is where a name belongs in the table: multiplicative hashing of its
// first bytes by a random number (Dietzfelbinger and others, "A reliable
// randomized algorithm for the closest-pair problem", 1997).
func (x *diskIndex) home(h *Hash) int {
	return int(binary.LittleEndian.Uint64(h[:]) * x.seed >> x.shift)
}

func (x *diskIndex) at(slot uint32) *indexSlot {
	return &x.chunks[slot/indexChunk][slot%indexChunk]
}

func (x *diskIndex) name(slot uint32) Hash { return x.at(slot).name }

// find returns the slot of a page.
func (x *diskIndex) find(h *Hash) (slot uint32, ok bool) {
	for i := x.home(h); ; i = (i + 1) & (len(x.table) - 1) {
		e := x.table[i]
		if e == 0 {
			return 0, false
		}
		if x.at(e-1).name == *h {
			return e - 1, true
		}
	}
}

// add notes that a page lies in a slot, and was used last. Neither the page
// nor the slot may be there yet.
func (x *diskIndex) add(h *Hash, slot uint32) {
	for int(slot/indexChunk) >= len(x.chunks) {
		x.chunks = append(x.chunks, new([indexChunk]indexSlot))
	}
	x.at(slot).name = *h
	i := x.home(h)
	for x.table[i] != 0 {
		i = (i + 1) & (len(x.table) - 1)
	}
	x.table[i] = slot + 1
	x.count++
	x.link(slot)
}

// remove forgets the page in a slot.
func (x *diskIndex) remove(slot uint32) {
	x.unlink(slot)
	x.count--
	mask := len(x.table) - 1
	i := x.home(&x.at(slot).name)
	for x.table[i] != slot+1 {
		i = (i + 1) & mask
	}
	// Entries behind the gap that it would hide from their search move into it
	// (Knuth, The Art of Computer Programming 3, 6.4, Algorithm R).
	for j := (i + 1) & mask; x.table[j] != 0; j = (j + 1) & mask {
		home := x.home(&x.at(x.table[j] - 1).name)
		if (j-home)&mask >= (j-i)&mask {
			x.table[i] = x.table[j]
			i = j
		}
	}
	x.table[i] = 0
}

// touch notes that the page in a slot was used last.
func (x *diskIndex) touch(slot uint32) {
	x.unlink(slot)
	x.link(slot)
}

// oldest returns the slot of the page used longest ago.
func (x *diskIndex) oldest() (slot uint32, ok bool) {
	return x.head.prev - 1, x.head.prev != 0
}

// newer returns the slot of the page used next after that of slot.
func (x *diskIndex) newer(slot uint32) (next uint32, ok bool) {
	prev := x.at(slot).prev
	return prev - 1, prev != 0
}

func (x *diskIndex) linkAt(ref uint32) *indexLink {
	if ref == 0 {
		return &x.head
	}
	return &x.at(ref - 1).indexLink
}

func (x *diskIndex) unlink(slot uint32) {
	l := x.at(slot).indexLink
	x.linkAt(l.prev).next, x.linkAt(l.next).prev = l.next, l.prev
}

func (x *diskIndex) link(slot uint32) {
	first := x.head.next
	x.at(slot).indexLink = indexLink{next: first, prev: 0}
	x.linkAt(first).prev = slot + 1
	x.head.next = slot + 1
}
