package pager

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

// testTable makes a table without unknown pages.
func testTable(r *rand.Rand) *Table {
	t := NewTable(1 + r.IntN(400))
	for p := range t.Len() {
		if r.IntN(3) == 0 {
			t.Set(Run{PageNum(p), 1}, Zero)
		} else {
			t.SetName(PageNum(p), Hash{byte(r.IntN(50)), 1})
		}
	}
	return t
}

func openTestBases(t testing.TB, cfg BasesConfig) *Bases {
	t.Helper()
	b, err := OpenBases(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() }) // again, after those that a test closes
	return b
}

// Bases do what a map does, as far as they have room, and across restarts.
func TestBases(t *testing.T) {
	for _, dir := range []string{"", filepath.Join(t.TempDir(), "made")} {
		r := testRand(t)
		cfg := BasesConfig{Dir: dir, Tables: 8}
		b := openTestBases(t, cfg)
		want := map[string]*Table{}
		var order []string // used longest ago first
		use := func(w string) {
			order = append(slices.DeleteFunc(order, func(o string) bool { return o == w }), w)
		}
		for i := range 400 {
			w := fmt.Sprint("worker/", r.IntN(12))
			switch r.IntN(3) {
			case 0:
				table := testTable(r)
				if err := b.Put(w, table); err != nil {
					t.Fatal(err)
				}
				want[w] = table.Clone()
				table.Set(Run{0, 1}, Unknown) // it is ours still
				if use(w); len(order) > cfg.Tables {
					delete(want, order[0])
					order = order[1:]
				}
			case 1:
				got, ok := b.Get(w)
				table, has := want[w]
				if ok != has || ok && !got.Equal(table) {
					t.Fatalf("step %d: worker %s: got another table, %v, want %v", i, w, ok, has)
				}
				if digest, dok := b.Digest(w); dok != has || ok && digest != got.Digest() {
					t.Fatalf("step %d: digest %x, %v", i, digest, dok)
				}
				if ok {
					use(w)
				}
			default:
				if dir == "" || r.IntN(10) > 0 {
					continue
				}
				if err := b.Close(); err != nil {
					t.Fatal(err)
				}
				b = openTestBases(t, cfg)
			}
		}
		if files, _ := filepath.Glob(filepath.Join(dir, "*"+baseSuffix)); dir != "" && len(files) != cfg.Tables {
			t.Errorf("%d files, want %d", len(files), cfg.Tables)
		}
	}
}

func TestBasesBytes(t *testing.T) {
	r := testRand(t)
	big := NewTable(100)
	for p := range 100 {
		big.SetName(PageNum(p), Hash{byte(p), 2})
	}
	data, _ := appendBase(nil, "w0", big)
	cfg := BasesConfig{Dir: t.TempDir(), Bytes: int64(3*len(data) + 10)}
	b := openTestBases(t, cfg)
	for i := range 9 {
		if err := b.Put(fmt.Sprint("w", i), big); err != nil {
			t.Fatal(err)
		}
		if n := diskBytes(t, cfg.Dir); n > cfg.Bytes {
			t.Errorf("%d bytes, at most %d", n, cfg.Bytes)
		}
	}
	if got := slices.Sorted(maps.Keys(b.of)); !slices.Equal(got, []string{"w6", "w7", "w8"}) {
		t.Errorf("kept %v", got)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Bytes = int64(len(data))
	b = openTestBases(t, cfg)
	if _, ok := b.Get("w8"); !ok || len(b.of) != 1 {
		t.Errorf("kept %v", slices.Sorted(maps.Keys(b.of)))
	}

	huge := NewTable(200)
	for p := range 200 {
		huge.SetName(PageNum(p), Hash{byte(p), byte(p >> 8), 3})
	}
	unknown := testTable(r)
	unknown.Set(Run{0, 1}, Unknown)
	for what, err := range map[string]error{
		"too large":        b.Put("w8", huge),
		"unknown pages":    b.Put("w8", unknown),
		"no worker":        b.Put("", testTable(r)),
		"long worker":      b.Put(string(make([]byte, maxWorkerBytes+1)), testTable(r)),
		"in use":           second(OpenBases(cfg)),
		"negative":         second(OpenBases(BasesConfig{Tables: -1})),
		"not a directory":  second(OpenBases(BasesConfig{Dir: b.path("w8")})),
		"no such device":   second(OpenBases(BasesConfig{Dir: "/dev/null/x"})),
		"negative as well": second(OpenBases(BasesConfig{Bytes: -1})),
	} {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	if err := second(OpenBases(cfg)); !errors.Is(err, ErrInUse) {
		t.Errorf("got %v, want %v", err, ErrInUse)
	}
	if got, ok := b.Get("w8"); !ok || !got.Equal(big) {
		t.Error("what was kept is gone after refusals")
	}
}

func second[T any](_ T, err error) error { return err }

// A file damaged anywhere is dropped, and nothing else is.
func TestBasesDamaged(t *testing.T) {
	r := testRand(t)
	cfg := BasesConfig{Dir: t.TempDir()}
	other := filepath.Join(cfg.Dir, "somebody's.base")
	if err := os.WriteFile(other, []byte("letters"), 0o600); err != nil {
		t.Fatal(err)
	}
	for round := range 100 {
		b := openTestBases(t, cfg)
		table := testTable(r)
		if err := errors.Join(b.Put("w", table), b.Put("v", table)); err != nil {
			t.Fatal(err)
		}
		path := b.path("w")
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		switch r.IntN(4) {
		case 0:
			data = data[:r.IntN(len(data))]
		case 1:
			data = append(data, 0)
		case 2:
			clear(data)
		default:
			data[r.IntN(len(data))] ^= byte(1 + r.IntN(255))
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if round%2 == 0 { // found when it is read, or at the next start
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			b = openTestBases(t, cfg)
		}
		if _, ok := b.Get("w"); ok {
			t.Fatalf("round %d: got a damaged table", round)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("round %d: a damaged file stays: %v", round, err)
		}
		if got, ok := b.Get("v"); !ok || !got.Equal(table) {
			t.Fatalf("round %d: another worker's table is gone", round)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := os.ReadFile(other); err != nil || string(b) != "letters" {
		t.Errorf("another's file became %q, %v", b, err)
	}
}

// A disk without room leaves the table that was there.
func TestBasesDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := mountTmpfs(dir, 1<<20); err != nil {
		t.Skip("no small file system:", err)
	}
	defer unmount(t, dir)
	b := openTestBases(t, BasesConfig{Dir: dir})
	defer b.Close()
	small := testTable(testRand(t))
	if err := b.Put("w", small); err != nil {
		t.Fatal(err)
	}
	big := NewTable(1 << 15)
	for p := range big.Len() {
		big.SetName(PageNum(p), Hash{byte(p), byte(p >> 8), 1})
	}
	if err := b.Put("w", big); err == nil {
		t.Fatal("1 MiB in less")
	}
	if got, ok := b.Get("w"); !ok || !got.Equal(small) {
		t.Error("what was there is gone")
	}
	if _, err := os.Stat(filepath.Join(dir, baseTemp)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half a file takes room: %v", err)
	}
}

func TestBasesConcurrent(t *testing.T) {
	b := openTestBases(t, BasesConfig{Dir: t.TempDir(), Tables: 3})
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			for range 100 {
				n := r.IntN(5)
				w := fmt.Sprint(n)
				if r.IntN(2) == 0 {
					table := NewTable(n + 1)
					table.Set(Run{0, uint32(n + 1)}, Zero)
					if err := b.Put(w, table); err != nil {
						t.Error(err)
					}
				} else if got, ok := b.Get(w); ok && got.Len() != n+1 {
					t.Error("another's table")
				}
			}
		})
	}
	all.Wait()
}

func FuzzBase(f *testing.F) {
	table := NewTable(9)
	table.Set(Run{0, 4}, Zero)
	for p := range PageNum(5) {
		table.SetName(4+p, Hash{byte(p), 1})
	}
	data, _ := appendBase(nil, "w", table)
	f.Add(data)
	f.Add(data[:maxBaseHead])
	f.Fuzz(func(t *testing.T, b []byte) {
		worker, table, err := parseBase(b)
		if err != nil {
			return
		}
		if again, _ := appendBase(nil, worker, table); !bytes.Equal(again, b) {
			t.Errorf("got %x, want %x", again, b)
		}
	})
}
