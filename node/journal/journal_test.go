package journal

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"go.uber.org/goleak"

	"meshnode/node/handover"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func testMove(b byte) (m handover.MoveID) {
	for i := range m {
		m[i] = b + byte(i)
	}
	return m
}

func testRecord() handover.Record {
	return handover.Record{Worker: "a", Epoch: 8, Own: handover.OwnTaken, Move: testMove(3), Peer: "peer", Ticket: 5,
		Updated: 1_700_000_000, Unsettled: []handover.MoveID{testMove(3), testMove(9)}, Meta: []byte("meta")}
}

func openTest(t testing.TB, path string) *Journal {
	t.Helper()
	j, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

func put(t testing.TB, j *Journal, rs ...handover.Record) {
	t.Helper()
	for _, r := range rs {
		if err := j.Put(r); err != nil {
			t.Fatal(err)
		}
	}
}

func TestJournalKeeps(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j := openTest(t, path)
	a := testRecord()
	b := handover.Record{Worker: "b", Epoch: 3, Own: handover.OwnRunning}
	put(t, j, b, a)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = openTest(t, path)
	got, err := j.All()
	if err != nil {
		t.Fatal(err)
	}
	if want := []handover.Record{a, b}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if r, ok, err := j.Get("b"); err != nil || !ok || !reflect.DeepEqual(r, b) {
		t.Errorf("got %+v, %t, %v", r, ok, err)
	}
	if _, ok, err := j.Get("c"); err != nil || ok {
		t.Errorf("got %t, %v for a worker it never knew", ok, err)
	}

	if err := j.Annotate("b", 3, []byte("note")); err != nil {
		t.Error(err)
	}
	if r, _, err := j.Get("b"); err != nil || string(r.Meta) != "note" || r.Epoch != 3 {
		t.Errorf("annotated: %+v, %v", r, err)
	}
	for _, err := range []error{j.Annotate("b", 2, nil), j.Annotate("c", 1, nil)} {
		if !errors.Is(err, ErrStale) {
			t.Errorf("annotate what is not there: %v", err)
		}
	}
	b.Epoch = 2
	if err := j.Put(b); !errors.Is(err, ErrStale) {
		t.Errorf("put of an earlier epoch: %v", err)
	}
	if err := j.Delete(a.Worker, a.Epoch); !errors.Is(err, ErrUnsettled) {
		t.Errorf("delete of an unsettled record: %v", err)
	}
	for _, m := range []handover.MoveID{testMove(200), a.Unsettled[0], a.Unsettled[1]} {
		if err := j.Settle(a.Worker, m); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Settle("c", testMove(1)); err != nil {
		t.Errorf("settle for a worker it never knew: %v", err)
	}
	if err := j.Delete(a.Worker, a.Epoch-1); err != nil {
		t.Errorf("delete of an earlier epoch: %v", err)
	}
	if r, ok, err := j.Get(a.Worker); err != nil || !ok || r.Epoch != a.Epoch {
		t.Errorf("got %+v, %t, %v after the delete of an earlier epoch", r, ok, err)
	}
	if err := j.Delete(a.Worker, a.Epoch); err != nil {
		t.Errorf("delete of a settled record: %v", err)
	}
	if err := j.Delete("c", 1); err != nil {
		t.Errorf("delete of nothing: %v", err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := j.Put(b); err == nil {
		t.Error("put after close")
	}
	if runtime.GOOS != "windows" {
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", fi.Mode(), err)
		}
	}
}

func TestJournalExpires(t *testing.T) {
	j := openTest(t, filepath.Join(t.TempDir(), "journal"))
	at := func(worker string, own handover.Ownership, updated int64, unsettled ...handover.MoveID) handover.Record {
		return handover.Record{Worker: worker, Epoch: 2, Own: own, Move: testMove(1), Peer: "p", Updated: updated, Unsettled: unsettled}
	}
	put(t, j,
		at("running", handover.OwnRunning, 1), at("moving", handover.OwnMovingOut, 1), at("taken", handover.OwnTaken, 1),
		at("gone-old", handover.OwnGone, 1), at("lost-old", handover.OwnLost, 1), at("declined-old", handover.OwnDeclined, 1),
		at("gone-unsettled", handover.OwnGone, 1, testMove(1)),
		at("gone-1", handover.OwnGone, 101), at("gone-2", handover.OwnGone, 102), at("gone-3", handover.OwnGone, 103),
	)
	n, err := j.Expire(time.Unix(100, 0), 2)
	if err != nil {
		t.Fatal(err)
	}
	rs, err := j.All()
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, r := range rs {
		left = append(left, r.Worker)
	}
	want := []string{"gone-2", "gone-3", "gone-unsettled", "moving", "running", "taken"}
	if n != 4 || !slices.Equal(left, want) {
		t.Errorf("removed %d, left %q, want %q", n, left, want)
	}
}

// Many writers, each with its own workers and its own order: every journal that
// a crash could leave (the file as it is at any time) has, of each writer, a
// prefix of what it wrote, and all that had returned.
func TestJournalOrder(t *testing.T) {
	j := openTest(t, filepath.Join(t.TempDir(), "journal"))
	const writers, writes = 8, 25
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for e := range writes {
				r := handover.Record{Worker: fmt.Sprintf("w%d", w), Epoch: uint64(e + 1), Own: handover.OwnRunning}
				if err := j.Put(r); err != nil {
					t.Error(err)
					return
				}
				if got, ok, err := j.Get(r.Worker); err != nil || !ok || got.Epoch != r.Epoch {
					t.Errorf("read %+v, %v after writing epoch %d", got, err, r.Epoch)
				}
				// An error is this writer's alone.
				if err := j.Put(handover.Record{Worker: r.Worker, Epoch: uint64(e), Own: handover.OwnRunning}); e > 0 && !errors.Is(err, ErrStale) {
					t.Errorf("stale put: %v", err)
				}
			}
		})
	}
	wg.Wait()
	rs, err := j.All()
	if err != nil || len(rs) != writers {
		t.Fatalf("%d records, %v", len(rs), err)
	}
	for _, r := range rs {
		if r.Epoch != writes {
			t.Errorf("%s ends in epoch %d", r.Worker, r.Epoch)
		}
	}
}

func TestJournalInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	openTest(t, path)
	if _, err := Open(path); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), path) {
		t.Errorf("second open: %v", err)
	}
}

func TestJournalForeign(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte(strings.Repeat("this is not a database\n", 2000)), 0o600); err != nil {
		t.Fatal(err)
	}
	short := filepath.Join(dir, "short")
	if err := os.WriteFile(short, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	bolt := func(name string, fill func(tx *bbolt.Tx) error) string {
		path := filepath.Join(dir, name)
		db, err := bbolt.Open(path, 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(db.Update(fill), db.Close()); err != nil {
			t.Fatal(err)
		}
		return path
	}
	other := bolt("other", func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucket([]byte("invoices"))
		return err
	})
	later := filepath.Join(dir, "later")
	if err := openTest(t, later).Close(); err != nil {
		t.Fatal(err)
	}
	bolt("later", func(tx *bbolt.Tx) error { return tx.Bucket(headerBucket).Put(versionKey, []byte{0, 0, 0, 9}) })
	badRecord := filepath.Join(dir, "bad-record")
	if err := openTest(t, badRecord).Close(); err != nil {
		t.Fatal(err)
	}
	bolt("bad-record", func(tx *bbolt.Tx) error { return tx.Bucket(workersBucket).Put([]byte("w"), []byte{1, 0xa0}) })
	wrongKey := filepath.Join(dir, "wrong-key")
	if err := openTest(t, wrongKey).Close(); err != nil {
		t.Fatal(err)
	}
	b, err := testRecord().Encode()
	if err != nil {
		t.Fatal(err)
	}
	bolt("wrong-key", func(tx *bbolt.Tx) error { return tx.Bucket(workersBucket).Put([]byte("w"), b) })

	for path, want := range map[string]error{
		text: ErrForeign, other: ErrForeign, later: ErrForeign, badRecord: ErrCorrupt, wrongKey: ErrCorrupt, short: ErrForeign,
	} {
		j, err := Open(path)
		if err == nil {
			_ = j.Close()
		}
		if !errors.Is(err, want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v, want %v", filepath.Base(path), err, want)
		}
	}
	if _, err := Open(filepath.Join(dir, "no", "such", "dir")); err == nil || errors.Is(err, ErrCorrupt) {
		t.Errorf("missing directory: %v", err)
	}
}

// A damaged journal is either refused with its name, or it reads as it was: no
// panic, no fault, no other record. The one exception is bbolt's: with the newer
// of its two first pages damaged it goes back by one write, as it does when that
// page was torn by a crash.
func TestJournalDamaged(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "journal")
	j := openTest(t, path)
	var want []handover.Record
	for i := range 60 {
		r := testRecord()
		r.Worker = fmt.Sprintf("w%02d", i)
		r.Meta = make([]byte, 300)
		want = append(want, r)
		put(t, j, r)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	refused := 0
	for i := range 120 {
		b := slices.Clone(good)
		switch i % 3 {
		case 0: // cut short
			b = b[:rnd.IntN(len(b))]
		case 1: // a page of zeroes
			p := rnd.IntN(len(b)/os.Getpagesize()) * os.Getpagesize()
			clear(b[p : p+os.Getpagesize()])
		case 2: // bits
			for range 1 + rnd.IntN(64) {
				b[rnd.IntN(len(b))] ^= 1 << rnd.IntN(8)
			}
		}
		p := filepath.Join(dir, fmt.Sprintf("damaged-%d", i))
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := Open(p)
		if err != nil {
			refused++
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), p) {
				t.Errorf("damage %d: %v", i, err)
			}
			continue
		}
		got, err := j.All()
		if err != nil || !reflect.DeepEqual(got, want) && !reflect.DeepEqual(got, want[:len(want)-1]) {
			t.Errorf("damage %d: opened, and has %d other records, %v", i, len(got), err)
		}
		// What does not show in reading may show in writing.
		for _, r := range want {
			if err := j.Put(r); err != nil && !errors.Is(err, ErrCorrupt) {
				t.Errorf("damage %d: put: %v", i, err)
			}
		}
		if err := j.Close(); err != nil {
			t.Errorf("damage %d: close: %v", i, err)
		}
	}
	t.Logf("refused %d of 120", refused)
	if refused < 30 {
		t.Errorf("refused only %d of 120 damaged journals", refused)
	}
}

func BenchmarkJournalPut(b *testing.B) {
	for _, writers := range []int{1, 8} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			j := openTest(b, filepath.Join(b.TempDir(), "journal"))
			r := testRecord()
			r.Meta = make([]byte, 200)
			b.SetParallelism(max(1, writers/runtime.GOMAXPROCS(0)))
			if writers == 1 {
				for b.Loop() {
					put(b, j, r)
				}
				return
			}
			var n sync.Mutex
			next := 0
			b.RunParallel(func(pb *testing.PB) {
				n.Lock()
				next++
				mine := r
				mine.Worker = fmt.Sprintf("w%d", next)
				n.Unlock()
				for pb.Next() {
					if err := j.Put(mine); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
