package pager

import (
	"encoding/binary"
	"slices"
	"testing"
)

// An index does what a map and a list do, also when names crowd together.
func TestDiskIndex(t *testing.T) {
	r := testRand(t)
	for _, crowded := range []bool{false, true} {
		const slots = 96
		x := newDiskIndex(slots)
		at := map[Hash]uint32{}
		var order []Hash // used longest ago first
		free := r.Perm(slots)
		name := func() (h Hash) {
			n := r.Uint64()
			if crowded { // a few places, many names
				n %= 8
			}
			binary.LittleEndian.PutUint64(h[:], n)
			h[31] = byte(r.IntN(40))
			return h
		}
		for range 20_000 {
			h := name()
			slot, ok := x.find(&h)
			if want, has := at[h]; ok != has || ok && slot != want {
				t.Fatalf("found %d, %v, want %d, %v", slot, ok, want, has)
			}
			switch {
			case !ok && len(free) > 0:
				slot = uint32(free[0])
				free = free[1:]
				x.add(&h, slot)
				at[h] = slot
				order = append(order, h)
			case !ok || r.IntN(4) == 0: // any goes, by slot
				h = order[r.IntN(len(order))]
				slot = at[h]
				x.remove(slot)
				delete(at, h)
				free = append(free, int(slot))
				order = slices.DeleteFunc(order, func(o Hash) bool { return o == h })
			default:
				x.touch(slot)
				order = append(slices.DeleteFunc(order, func(o Hash) bool { return o == h }), h)
			}
			if x.count != len(at) {
				t.Fatalf("%d pages, want %d", x.count, len(at))
			}
		}
		var got []Hash
		for slot, ok := x.oldest(); ok; slot, ok = x.newer(slot) {
			got = append(got, x.name(slot))
		}
		if !slices.Equal(got, order) {
			t.Error("another order of use")
		}
	}
}
