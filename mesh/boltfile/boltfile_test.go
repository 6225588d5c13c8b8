package boltfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
)

// fill makes a database with everything the format has: branches, a value of many
// pages, buckets of their own pages and within a page, one in another, free pages.
func fill(t testing.TB, path string) {
	t.Helper()
	db, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		err = errors.Join(err, db.Update(func(tx *bbolt.Tx) error {
			large, err := tx.CreateBucketIfNotExists([]byte("large"))
			if err != nil {
				return err
			}
			small, err := tx.CreateBucketIfNotExists([]byte("small"))
			if err != nil {
				return err
			}
			inner, err := small.CreateBucketIfNotExists([]byte("inner"))
			if err != nil {
				return err
			}
			err = errors.Join(small.Put([]byte("a"), []byte("b")), inner.Put([]byte("c"), nil),
				large.Put([]byte("long"), make([]byte, 30_000)))
			for i := range 300 {
				key := fmt.Appendf(nil, "key %d", i)
				if err = errors.Join(err, large.Put(key, make([]byte, 200))); round == 1 && i%3 == 0 {
					err = errors.Join(err, large.Delete(key))
				}
			}
			return err
		}))
	}
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

// read returns everything in the database at path, a line each.
func read(path string) (lines []string, err error) {
	db, err := Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	defer Guard(&err)()
	var walk func(prefix string, b *bbolt.Bucket) error
	walk = func(prefix string, b *bbolt.Bucket) error {
		return b.ForEach(func(k, v []byte) error {
			if v != nil {
				lines = append(lines, fmt.Sprintf("%s%q: %x", prefix, k, v))
				return nil
			}
			return walk(prefix+fmt.Sprintf("%q.", k), b.Bucket(k))
		})
	}
	return lines, db.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bbolt.Bucket) error { return walk(fmt.Sprintf("%q.", name), b) })
	})
}

func TestWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	fill(t, path)
	lines, err := read(path)
	if err != nil || len(lines) != 303 {
		t.Fatalf("%d lines, %v", len(lines), err)
	}
	db, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.Is(err, ErrInUse) {
		t.Errorf("opened twice: %v", err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(filepath.Join(path, "below")); err == nil || errors.Is(err, ErrDamaged) || errors.Is(err, ErrForeign) {
		t.Errorf("a path that cannot be: %v", err)
	}
}

// Each kind of damage to the structure is found, and said.
func TestDamage(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "db")
	fill(t, path)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	size := os.Getpagesize()
	pages := len(good) / size
	// find returns the offset of a page in use, of that kind, with that text, and
	// with more pages or without.
	// The first page that counts, and what is not in use by it.
	meta := good[:size]
	if order.Uint64(good[size+64:]) > order.Uint64(good[64:]) {
		meta = good[size : 2*size]
	}
	free := order.Uint64(meta[48:])
	list := good[int(free)*size:]
	unused := map[uint64]bool{0: true, 1: true}
	for i := range uint64(order.Uint16(list[10:])) {
		unused[order.Uint64(list[headerSize+8*i:])] = true
	}
	find := func(kind uint16, text string, long bool) int {
		for id := uint64(2); id < uint64(pages); id++ {
			p := good[id*uint64(size):][:size]
			if !unused[id] && order.Uint64(p) == id && order.Uint16(p[8:]) == kind && order.Uint32(p[12:]) != 0 == long && bytes.Contains(p, []byte(text)) {
				return int(id) * size
			}
		}
		t.Fatalf("no page of kind %d with %q", kind, text)
		return 0
	}
	leaf, branch, long := find(kindLeaf, "key 100", false), find(kindBranch, "key", false), find(kindLeaf, "long", true)
	inline := find(kindLeaf, "inner", false)
	inline += bytes.Index(good[inline:], []byte("inner")) + len("inner")
	u16 := func(at int, v uint16) func([]byte) {
		return func(b []byte) { binary.NativeEndian.PutUint16(b[at:], v) }
	}
	u32 := func(at int, v uint32) func([]byte) {
		return func(b []byte) { binary.NativeEndian.PutUint32(b[at:], v) }
	}
	u64 := func(at int, v uint64) func([]byte) {
		return func(b []byte) { binary.NativeEndian.PutUint64(b[at:], v) }
	}
	for _, c := range []struct {
		name string
		do   func([]byte)
		says string
	}{
		{"number of a page", u64(leaf, 77), "says it is 77"},
		{"kind of a page", u16(leaf+8, 3), "of kind 3"},
		{"count of a leaf", u16(leaf+10, 60_000), "cannot have 60000"},
		{"count of a branch", u16(branch+10, 0), "branch to nothing"},
		{"count in a bucket within a page", u16(inline+bucketSize+10, 0x1002), "cannot have 4098"},
		{"kind in a bucket within a page", u16(inline+bucketSize+8, kindBranch), "neither a root nor a leaf"},
		{"root of a bucket", u64(inline, 1<<40), "speaks of page"},
		{"extent of a page", u32(long+12, 1<<31), "goes on beyond"},
		{"pages that are another's", u32(leaf+12, 1), "in use twice"},
		{"position of a key", u32(leaf+headerSize+4, 1<<30), "not all in it"},
		{"size of a key", u32(leaf+headerSize+8, 1<<32-1), "not all in it"},
		{"size of a value", u32(leaf+headerSize+12, 1<<20), "not all in it"},
		{"kind of an element", u32(leaf+headerSize, 9), "of kind 9"},
		{"a value as a bucket", u32(leaf+headerSize, elementBucket), ""},
		{"order of keys", u32(leaf+headerSize+elementSize+8, 1), "out of order"},
		{"a branch to the beginning", u64(branch+headerSize+8, 0), "speaks of page 0"},
		{"a branch to itself", u64(branch+headerSize+8, uint64(branch/size)), "in use twice"},
		{"kind of the free list", u16(int(free)*size+8, kindLeaf), "not the free list"},
		{"count of the free list", u16(int(free)*size+10, 5000), "cannot have 5000"},
		{"long count of the free list", func(b []byte) {
			u16(int(free)*size+10, longFree)(b)
			u64(int(free)*size+headerSize, 1<<60)(b)
		}, "cannot have 1152921504606846976"},
		{"a page in use in the free list", u64(int(free)*size+headerSize, uint64(leaf/size)), "in use twice"},
	} {
		b := slices.Clone(good)
		if c.do(b); bytes.Equal(b, good) {
			t.Errorf("%s: nothing was damaged", c.name)
		}
		p := filepath.Join(dir, "damaged")
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := read(p); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.says)
		}
		if after, err := os.ReadFile(p); err != nil || !bytes.Equal(after, b) {
			t.Errorf("%s: the file was changed, %v", c.name, err)
		}
	}
	p := filepath.Join(dir, "short")
	for _, n := range []int{5, size, 2 * size, len(good) / 2} {
		if err := os.WriteFile(p, good[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := read(p); !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrForeign) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
}

// Whatever bits fall, a database opens and closes, or it is refused.
func TestAnyDamage(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "db")
	fill(t, path)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	refused := 0
	for range 300 {
		b := slices.Clone(good)
		page := rnd.IntN(len(b)/os.Getpagesize()) * os.Getpagesize()
		for range 1 + rnd.IntN(8) { // in the heads of pages, where it matters
			b[page+rnd.IntN(200)] ^= 1 << rnd.IntN(8)
		}
		p := filepath.Join(dir, "damaged")
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := read(p); err != nil {
			refused++
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrForeign) {
				t.Error(err)
			}
		}
	}
	t.Logf("refused %d of 300", refused)
	if refused < 30 {
		t.Errorf("refused only %d of 300 damaged files", refused)
	}
}

func FuzzVerify(f *testing.F) {
	path := filepath.Join(f.TempDir(), "db")
	fill(f, path)
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	size := os.Getpagesize()
	f.Add([]byte{})
	f.Add([]byte{0x00, 0x40, 0x0a, 0xff, 0xff})
	// Each five bytes are a place, of three, and what is written there.
	f.Fuzz(func(t *testing.T, damage []byte) {
		b := slices.Clone(good)
		for d := range slices.Chunk(damage, 5) {
			if len(d) == 5 {
				at := int(uint32(d[0])<<16|uint32(d[1])<<8|uint32(d[2])) % (len(b) - 1)
				copy(b[at:], d[3:])
			}
		}
		for m := range int64(2) {
			_ = verify(bytes.NewReader(b), int64(size), m*int64(size))
		}
	})
}
