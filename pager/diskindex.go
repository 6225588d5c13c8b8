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
	// table holds slot+1 in its low bits and above them five more bits of the
	// hash, so that a search looks at few names that are not the one; or 0. Its
	// size is a power of two.
	table []uint32
	shift int // 64 less the bits of its size
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

const (
	indexChunk = 4096

	slotBits = 27
	slotMask = 1<<slotBits - 1
)

// An entry has room for every slot.
const _ = uint(slotMask - maxSlots)

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

// hash returns where a name belongs in the table, and what marks its entry:
// multiplicative hashing of its first bytes by a random number (Dietzfelbinger
// and others, "A reliable randomized algorithm for the closest-pair problem",
// 1997).
func (x *diskIndex) hash(h *Hash) (home int, mark uint32) {
	product := binary.LittleEndian.Uint64(h[:]) * x.seed
	rest := product << (64 - x.shift) // the bits below those of home
	return int(product >> x.shift), uint32(rest>>32) &^ slotMask
}

func (x *diskIndex) at(slot uint32) *indexSlot {
	return &x.chunks[slot/indexChunk][slot%indexChunk]
}

func (x *diskIndex) name(slot uint32) Hash { return x.at(slot).name }

// search returns where in the table a page stands, or the gap where it would.
func (x *diskIndex) search(h *Hash) (i int, mark uint32) {
	i, mark = x.hash(h)
	for ; ; i = (i + 1) & (len(x.table) - 1) {
		e := x.table[i]
		if e == 0 || e&^slotMask == mark && x.at(e&slotMask-1).name == *h {
			return i, mark
		}
	}
}

// find returns the slot of a page.
func (x *diskIndex) find(h *Hash) (slot uint32, ok bool) {
	i, _ := x.search(h)
	e := x.table[i]
	return e&slotMask - 1, e != 0
}

// add notes that a page lies in a slot, which had none, and was used last. It
// reports false, and does nothing, if the page lies in another slot.
func (x *diskIndex) add(h *Hash, slot uint32) bool {
	ok := x.place(h, slot)
	if ok {
		x.link(slot)
	}
	return ok
}

// place is add without a place in the order of use, which link gives.
func (x *diskIndex) place(h *Hash, slot uint32) bool {
	i, mark := x.search(h)
	if x.table[i] != 0 {
		return false
	}
	for int(slot/indexChunk) >= len(x.chunks) {
		x.chunks = append(x.chunks, new([indexChunk]indexSlot))
	}
	x.at(slot).name = *h
	x.table[i] = mark | (slot + 1)
	x.count++
	return true
}

// remove forgets the page in a slot.
func (x *diskIndex) remove(slot uint32) {
	x.unlink(slot)
	x.count--
	mask := len(x.table) - 1
	i, _ := x.search(&x.at(slot).name)
	// Entries behind the gap that it would hide from their search move into it
	// (Knuth, The Art of Computer Programming 3, 6.4, Algorithm R).
	for j := (i + 1) & mask; x.table[j] != 0; j = (j + 1) & mask {
		home, _ := x.hash(&x.at(x.table[j]&slotMask - 1).name)
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

// link makes the page in a slot the one used last.
func (x *diskIndex) link(slot uint32) {
	first := x.head.next
	x.at(slot).indexLink = indexLink{next: first, prev: 0}
	x.linkAt(first).prev = slot + 1
	x.head.next = slot + 1
}
