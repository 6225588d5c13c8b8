package store

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

func newStore(tb testing.TB, size, slot int) *Store {
	tb.Helper()
	s := new(Store)
	if err := s.Init(size, slot); err != nil {
		tb.Fatal(err)
	}
	return s
}

// content reads everything by Scan, in parts.
func content(tb testing.TB, s *Store) map[string]string {
	tb.Helper()
	all := map[string]string{}
	for from := 0; from >= 0; {
		room := 7
		from = s.Scan(from, func(k, v []byte) bool {
			if room == 0 {
				return false
			}
			room--
			if _, twice := all[string(k)]; twice {
				tb.Fatalf("%q is there twice", k)
			}
			all[string(k)] = string(v)
			return true
		})
	}
	return all
}

func check(tb testing.TB, s *Store, want map[string]string) {
	tb.Helper()
	if got := content(tb, s); !maps.Equal(got, want) {
		tb.Fatalf("got %d entries, want %d:\n%q\n%q", len(got), len(want), got, want)
	}
	bytes := 0
	for _, k := range slices.Sorted(maps.Keys(want)) { // in order, for the fuzzer's sake
		v := want[k]
		if got, ok := s.Get([]byte(k)); !ok || string(got) != v {
			tb.Fatalf("get %q: %q, %v, want %q", k, got, ok, v)
		}
		bytes += len(v)
	}
	if st := s.Stats(); st.Used != len(want) || st.ValueBytes != bytes {
		tb.Fatalf("stats: %+v, want %d entries with %d bytes", st, len(want), bytes)
	}
}

// TestStoreIsMap compares the store with a map over random operations, through
// times when it is full, and empty again.
func TestStoreIsMap(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	s := newStore(t, MinSize, MinSlot)
	slots := s.Stats().Slots
	model := map[string]string{}
	for i := range 60000 {
		// Few keys in some phases, more than there are slots in others.
		key := fmt.Sprint(r.IntN([]int{20, slots, 2 * slots}[i/5000%3]))
		if grow := i/10000%2 == 0; r.IntN(3) == 0 == grow {
			_, want := model[key]
			if got := s.Delete([]byte(key)); got != want {
				t.Fatalf("delete %q: %v, want %v", key, got, want)
			}
			delete(model, key)
		} else {
			value := fmt.Sprintf("%0*d", 1+r.IntN(30), i)
			_, old := model[key]
			err := s.Put([]byte(key), []byte(value))
			if full := len(model) == slots && !old; full != errors.Is(err, ErrFull) {
				t.Fatalf("put into %d of %d: %v", len(model), slots, err)
			}
			if err == nil {
				model[key] = value
			}
		}
		if i%2500 == 0 {
			check(t, s, model)
		}
	}
	check(t, s, model)
	for _, k := range slices.Sorted(maps.Keys(model)) {
		s.Delete([]byte(k))
	}
	check(t, s, nil)
	for i := range s.index {
		if s.index[i] != 0 {
			t.Fatal("an empty store's index is not empty")
		}
	}
}

func TestInit(t *testing.T) {
	for _, c := range []struct{ size, slot int }{
		{0, 64}, {MinSize - PageSize, 64}, {MinSize + 1, 64}, {MaxSize + PageSize, 64},
		{MinSize, 32}, {MinSize, 96}, {MinSize, MaxSlot * 2}, {-MinSize, 64},
	} {
		if err := new(Store).Init(c.size, c.slot); err == nil {
			t.Errorf("init %d, %d was accepted", c.size, c.slot)
		}
	}
	s := newStore(t, 1<<20, 256)
	if _, err := s.Fill(100, 50, 1); err != nil {
		t.Fatal(err)
	}
	fresh := newStore(t, 1<<19, 64)
	if err := s.Init(1<<19, 64); err != nil {
		t.Fatal(err)
	}
	check(t, s, nil)
	if s.DigestArena() != fresh.DigestArena() {
		t.Error("a store made anew has traces of what it held")
	}
}

func TestZeroStore(t *testing.T) {
	var s Store
	if err := s.Put([]byte("k"), nil); !errors.Is(err, ErrTooLarge) {
		t.Errorf("put: %v", err)
	}
	if _, ok := s.Get([]byte("k")); ok || s.Delete([]byte("k")) {
		t.Error("the zero store has an entry")
	}
	s.TouchRandom(3, 1)
	s.TouchRange(0, 3)
	check(t, &s, nil)
}

func TestRoom(t *testing.T) {
	s := newStore(t, MinSize, 256)
	value := bytes.Repeat([]byte{7}, s.Room())
	for _, c := range []struct {
		key, value int
		ok         bool
	}{{1, s.Room() - 1, true}, {1, s.Room(), false}, {s.Room(), 0, true}, {s.Room() + 1, 0, false}, {0, 1, false}} {
		err := s.Put(bytes.Repeat([]byte{'k'}, c.key), value[:c.value])
		if c.ok != (err == nil) || !c.ok && !errors.Is(err, ErrTooLarge) {
			t.Errorf("a key of %d and a value of %d in a slot with room for %d: %v", c.key, c.value, s.Room(), err)
		}
	}
	if n, err := s.Fill(10, s.Room(), 1); n != 0 || !errors.Is(err, ErrTooLarge) {
		t.Errorf("fill with values that leave no room for keys: %d, %v", n, err)
	}
	if n, err := s.Fill(10, -1, 1); n != 0 || !errors.Is(err, ErrTooLarge) {
		t.Errorf("fill with values of -1: %d, %v", n, err)
	}
}

// TestDigest checks that the digest is that of the content, not of its place or
// history, and notices every change.
func TestDigest(t *testing.T) {
	a, b := newStore(t, MinSize, 64), newStore(t, 1<<20, 128)
	keys := []string{"one", "two", "three", "four"}
	for _, k := range keys {
		if err := a.Put([]byte(k), []byte(k+k)); err != nil {
			t.Fatal(err)
		}
	}
	empty := b.Digest()
	b.Put([]byte("other"), []byte("x"))
	b.Delete([]byte("other"))
	if b.Digest() != empty {
		t.Error("the digest remembers what was deleted")
	}
	slices.Reverse(keys)
	for _, k := range keys {
		b.Put([]byte(k), nil)
		b.Put([]byte(k), []byte(k+k))
	}
	want := a.Digest()
	if b.Digest() != want {
		t.Error("the digest depends on order or place")
	}
	b.TouchRange(0, 2*b.Pages())
	if b.Digest() != want {
		t.Error("touching changed the digest")
	}
	check(t, b, content(t, a))
	for change, f := range map[string]func(){
		"value":   func() { b.Put([]byte("one"), []byte("oneonf")) },
		"length":  func() { b.Put([]byte("one"), []byte("oneone\x00")) },
		"missing": func() { b.Delete([]byte("one")) },
		"more":    func() { b.Put([]byte("on"), []byte("eoneone")) },
	} {
		f()
		if b.Digest() == want {
			t.Errorf("the digest does not notice: %s", change)
		}
		b.Delete([]byte("on"))
		b.Put([]byte("one"), []byte("oneone"))
	}
	if b.Digest() != want {
		t.Error("the changes were not undone")
	}
}

func TestFillIsReproducible(t *testing.T) {
	a, b, c := newStore(t, MinSize, 128), newStore(t, MinSize, 128), newStore(t, MinSize, 128)
	for s, seed := range map[*Store]uint64{a: 1, b: 1, c: 2} {
		if n, err := s.Fill(300, 100, seed); n != 300 || err != nil {
			t.Fatal(n, err)
		}
	}
	if a.DigestArena() != b.DigestArena() || a.Digest() != b.Digest() {
		t.Error("the same seed gives different stores")
	}
	if a.Digest() == c.Digest() {
		t.Error("different seeds give the same store")
	}
	if n, err := a.Fill(1000, 100, 1); n != 512 || !errors.Is(err, ErrFull) {
		t.Errorf("filling beyond the end: %d, %v", n, err)
	}
}

// FuzzStore runs operations taken from bytes against a map.
func FuzzStore(f *testing.F) {
	f.Add([]byte("pa1pb2dapc3da"))
	f.Fuzz(func(t *testing.T, ops []byte) {
		s := newStore(t, MinSize, 1024) // 64 slots
		model := map[string]string{}
		for len(ops) >= 3 {
			op, key, value := ops[0]%2, string(ops[1:2]), string(ops[2:3])
			ops = ops[3:]
			if op == 0 {
				_, old := model[key]
				err := s.Put([]byte(key), []byte(value))
				if full := len(model) == 64 && !old; full != errors.Is(err, ErrFull) {
					t.Fatalf("put into %d: %v", len(model), err)
				}
				if err == nil {
					model[key] = value
				}
			} else {
				_, want := model[key]
				if s.Delete([]byte(key)) != want {
					t.Fatalf("delete %q: want %v", key, want)
				}
				delete(model, key)
			}
		}
		check(t, s, model)
	})
}

func BenchmarkDigest(b *testing.B) {
	s := newStore(b, 16<<20, 1024)
	if _, err := s.Fill(16<<10, 1000, 1); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(16 << 20)
	for _, c := range []struct {
		name   string
		digest func() [32]byte
	}{{"entries", s.Digest}, {"arena", s.DigestArena}} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(16 << 20)
			for b.Loop() {
				c.digest()
			}
		})
	}
}
