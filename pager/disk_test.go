package pager

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
)

const testDisk = 4 << 20

func testStoreConfig(t testing.TB, dir string) StoreConfig {
	return StoreConfig{Memory: 4 << 20, Dir: dir, Disk: testDisk, Log: testLog(t)}
}

func openTestStore(t testing.TB, cfg StoreConfig, wrap func(string, diskFile) diskFile) *Store {
	t.Helper()
	s, err := openStore(cfg, wrap)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	if s.disk != nil {
		<-s.disk.loaded
	}
	return s
}

func closeStore(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// numbered is a page that is told from all others by its number.
func numbered(n int) []byte {
	page := make([]byte, PageSize)
	for i := 0; i < PageSize; i += 8 {
		binary.BigEndian.PutUint64(page[i:], uint64(n+1)*0x9e3779b97f4a7c15+uint64(i))
	}
	return page
}

// written says when all that was put is on disk, or was dropped.
func written(s *Store) func() bool {
	return func() bool { return s.Stats().Disk.Waiting == 0 }
}

func slogTo(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

// leastPages is how many pages the disk tier holds at least once it is full.
func leastPages(s *Store) int {
	return int(s.disk.slots) - int(s.disk.slots)/spareShare
}

// onDisk lists what the disk tier holds, used longest ago first.
func onDisk(s *Store) (names []Hash) {
	d := s.disk
	<-d.loaded
	d.mu.Lock()
	defer d.mu.Unlock()
	for slot, ok := d.pages.oldest(); ok; slot, ok = d.pages.newer(slot) {
		names = append(names, d.pages.name(slot))
	}
	return names
}

func diskBytes(t testing.TB, dir string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		n += info.Size()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A store on disk does what a map does, as far as it has room, across
// restarts.
func TestDiskStore(t *testing.T) {
	r := testRand(t)
	cfg := testStoreConfig(t, filepath.Join(t.TempDir(), "made", "here"))
	cfg.Memory = leastTier
	names := []Hash{ZeroHash}
	pages := map[Hash][]byte{ZeroHash: make([]byte, PageSize)}
	buf := make([]byte, PageSize)
	hits := uint64(0)
	for round := range 6 {
		s := openTestStore(t, cfg, nil)
		found := 0
		for _, h := range onDisk(s) {
			if !s.Has(h) || !s.Fetch(h, buf) || !bytes.Equal(buf, pages[h]) {
				t.Fatalf("round %d: page %v is lost or other", round, h)
			}
			found++
		}
		if want := min(len(pages)-1, leastPages(s)); found < want && round > 0 {
			t.Errorf("round %d: %d pages after a restart, want %d", round, found, want)
		}
		for n := range 400 {
			page := testMemory(r, 1, 1)
			h := s.Put(page)
			if h != ZeroHash {
				pages[h] = page
				names = append(names, h)
			}
			if h = names[r.IntN(len(names))]; s.Fetch(h, buf) && !bytes.Equal(buf, pages[h]) {
				t.Fatal("other content")
			}
			if n%20 == 19 { // let the disk catch up, so that nothing is dropped
				waitFor(t, "the writer", written(s))
			}
		}
		waitFor(t, "the writer", written(s))
		st := s.Stats()
		if st.Disk.Bad != 0 || st.Disk.Failures != 0 || st.Bytes > leastTier {
			t.Errorf("round %d: %+v", round, st)
		}
		hits += st.Disk.Hits
		closeStore(t, s)
		if n := diskBytes(t, cfg.Dir); n > cfg.Disk {
			t.Errorf("%d bytes on disk, at most %d", n, cfg.Disk)
		}
		last := names[len(names)-1]
		if h := s.Put(numbered(round)); !s.Fetch(h, buf) || s.disk.has(last) || s.disk.read(last, buf, true) || s.Close() != nil {
			t.Error("a closed store is not one of memory")
		}
	}
	if hits == 0 {
		t.Error("nothing was read from disk")
	}
}

// What is used stays, on disk too, whether it is served from disk or from
// memory, and across a restart.
func TestDiskKeepsWhatIsUsed(t *testing.T) {
	cfg := testStoreConfig(t, t.TempDir())
	cfg.Memory = leastTier
	s := openTestStore(t, cfg, nil)
	inMemory, fromDisk := s.Put(numbered(-1)), s.Put(numbered(-2))
	waitFor(t, "the writer", written(s))
	buf := make([]byte, PageSize)
	for n := range 4 * testDisk / PageSize {
		s.Put(numbered(n))
		if !s.Get(inMemory, buf) {
			t.Fatal("the page used most was dropped from memory")
		}
		if n%200 == 0 {
			waitFor(t, "the writer", written(s))
			if !s.disk.read(fromDisk, buf, true) {
				t.Fatal("the page read most was dropped from disk")
			}
		}
	}
	waitFor(t, "the writer", written(s))
	if !s.disk.has(inMemory) {
		t.Error("the page used most, from memory, was dropped from disk")
	}
	// The oldest on disk is used, so that after a restart it is not.
	first := onDisk(s)[0]
	s.disk.touch(first)
	order := onDisk(s)
	closeStore(t, s)
	s = openTestStore(t, cfg, nil)
	if got := onDisk(s); fmt.Sprint(got) != fmt.Sprint(order) {
		t.Error("another order of use after a restart")
	}
}

// Nobody waits for a disk that is slow: pages are dropped, and counted, and
// those that wait are still served.
func TestDiskSlow(t *testing.T) {
	cfg := testStoreConfig(t, t.TempDir())
	cfg.Memory = leastTier
	release := make(chan struct{})
	s := openTestStore(t, cfg, func(name string, f diskFile) diskFile {
		return &hookedFile{diskFile: f, write: func([]byte, int64) error { <-release; return nil }}
	})
	defer sync.OnceFunc(func() { close(release) })()
	const puts = 3 * leastTier / PageSize
	buf := make([]byte, PageSize)
	for n := range puts {
		if h := s.Put(numbered(n)); !s.Has(h) || !s.Fetch(h, buf) {
			t.Fatal("what was just put is not there")
		}
	}
	st := s.Stats()
	most := puts - st.Limit/PageSize
	if n := int(st.Disk.Dropped); n < most-2*s.disk.batch || n > most || st.Disk.Written != 0 {
		t.Errorf("%d pages put, %d fit in memory: %+v", puts, st.Limit/PageSize, st.Disk)
	}
}

// A hookedFile calls write before it writes and read before it reads; either
// may be nil, and what they return is returned.
type hookedFile struct {
	diskFile
	write func(b []byte, at int64) error
	read  func() error
}

func (f *hookedFile) ReadAt(b []byte, at int64) (int, error) {
	if f.read != nil {
		if err := f.read(); err != nil {
			return 0, err
		}
	}
	return f.diskFile.ReadAt(b, at)
}

func (f *hookedFile) WriteAt(b []byte, at int64) (int, error) {
	if f.write == nil {
		return f.diskFile.WriteAt(b, at)
	}
	if err := f.write(b, at); err != nil {
		n, _ := f.diskFile.WriteAt(b[:len(b)/2], at) // as much as there was room for
		return n, err
	}
	return f.diskFile.WriteAt(b, at)
}

// While the index is being read pages can be put, and wait; Has and Fetch wait
// for it.
func TestDiskLoading(t *testing.T) {
	cfg := testStoreConfig(t, t.TempDir())
	s := openTestStore(t, cfg, nil)
	old := s.Put(numbered(1))
	waitFor(t, "the writer", written(s))
	closeStore(t, s)

	release := make(chan struct{})
	var reads atomic.Int64
	s, err := openStore(cfg, func(name string, f diskFile) diskFile {
		return &hookedFile{diskFile: f, read: func() error {
			if name == indexFile {
				<-release
				reads.Add(1)
			}
			return nil
		}}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, s)
	buf := make([]byte, PageSize)
	s.Put(numbered(1)) // is there already
	if st := s.Stats(); !s.Get(old, buf) || st.Disk.Pages != 0 || st.Disk.Waiting != 1 {
		t.Errorf("before the index is read: %+v", st)
	}
	found := make(chan bool)
	go func() { found <- s.Has(HashPage(numbered(2))) }()
	close(release)
	if <-found || reads.Load() == 0 {
		t.Error("did not wait for the index, or found what is not there")
	}
	waitFor(t, "the writer", written(s))
	if st := s.Stats().Disk; st.Pages != 1 || st.Written != 0 {
		t.Errorf("a page was written twice: %+v", st)
	}
}

// An index that cannot be read is left as it is, and nothing is written.
func TestDiskUnreadable(t *testing.T) {
	cfg := testStoreConfig(t, t.TempDir())
	for _, broken := range []error{nil, syscall.EIO, nil} {
		s := openTestStore(t, cfg, func(name string, f diskFile) diskFile {
			return &hookedFile{diskFile: f, read: func() error { return broken }}
		})
		h := s.Put(numbered(1))
		buf := make([]byte, PageSize)
		if !s.Fetch(h, buf) || s.Fetch(HashPage(numbered(2)), buf) {
			t.Error("memory does not go on")
		}
		if broken == nil {
			waitFor(t, "the writer", written(s))
		}
		if st := s.Stats().Disk; broken == nil && st.Pages != 1 || broken != nil && (st.Pages != 0 || st.Waiting != 1) {
			t.Errorf("%v: %+v", broken, st)
		}
		closeStore(t, s)
	}
}

// A disk that is full is left alone, read on, tried again later, and spoken of
// twice.
func TestDiskFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		cfg := testStoreConfig(t, t.TempDir())
		cfg.Log = slogTo(&log)
		var full atomic.Bool
		var tries atomic.Int64
		s := openTestStore(t, cfg, func(name string, f diskFile) diskFile {
			return &hookedFile{diskFile: f, write: func(b []byte, at int64) error {
				if full.Load() {
					tries.Add(1)
					return fmt.Errorf("write %s: %w", name, syscall.ENOSPC)
				}
				return nil
			}}
		})
		defer closeStore(t, s)
		var before []Hash
		for n := range 300 {
			before = append(before, s.Put(numbered(n)))
		}
		waitFor(t, "the writer", written(s))
		full.Store(true)
		var after []Hash
		for n := range 300 {
			after = append(after, s.Put(numbered(1000+n)))
		}
		waitFor(t, "the first failure", func() bool { return s.Stats().Disk.Failing })
		waitFor(t, "four tries", func() bool { return s.Stats().Disk.Failures == 4 })
		if n := tries.Load(); n > 8 {
			t.Errorf("%d writes for four tries", n)
		}
		buf := make([]byte, PageSize)
		for _, h := range before {
			if !s.disk.read(h, buf, true) {
				t.Fatal("what is on a full disk is not served")
			}
		}
		full.Store(false)
		waitFor(t, "the writer", func() bool { return written(s)() && !s.Stats().Disk.Failing })
		for _, h := range append(before, after...) {
			if !s.disk.read(h, buf, true) {
				t.Fatal("lost")
			}
		}
		if n := strings.Count(log.String(), "\n"); n != 3 { // "starts empty", and these
			t.Errorf("%d lines logged, want 3:\n%s", n, &log)
		}
		for _, want := range []string{"cannot be written", "written again"} {
			if strings.Count(log.String(), want) != 1 {
				t.Errorf("want %q once in the log:\n%s", want, &log)
			}
		}
	})
}

// A disk that fails while the tier is full costs no more than a batch, however
// often it is tried.
func TestDiskFullTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testStoreConfig(t, t.TempDir())
		var broken atomic.Bool
		s := openTestStore(t, cfg, func(name string, f diskFile) diskFile {
			return &hookedFile{diskFile: f, write: func(b []byte, at int64) error {
				if broken.Load() {
					return syscall.EIO
				}
				return nil
			}}
		})
		defer closeStore(t, s)
		for n := range 2 * testDisk / PageSize {
			s.Put(numbered(n))
			if n%100 == 0 {
				waitFor(t, "the writer", written(s))
			}
		}
		waitFor(t, "the writer", written(s))
		broken.Store(true)
		pages := s.Stats().Disk.Pages
		s.Put(numbered(-1))
		waitFor(t, "tries", func() bool { return s.Stats().Disk.Failures == 5 })
		if st := s.Stats().Disk; st.Pages < pages-s.disk.batch {
			t.Errorf("%d pages of %d left after %d tries", st.Pages, pages, st.Failures)
		}
		broken.Store(false)
		waitFor(t, "the writer", func() bool { return written(s)() && !s.Stats().Disk.Failing })
		if !s.disk.has(HashPage(numbered(-1))) {
			t.Error("not written in the end")
		}
	})
}

// A file system that really is full.
func TestDiskFullFileSystem(t *testing.T) {
	dir := t.TempDir()
	if err := mountTmpfs(dir, 2<<20); err != nil {
		t.Skip("no small file system:", err)
	}
	defer unmount(t, dir)
	synctest.Test(t, func(t *testing.T) {
		waste := filepath.Join(dir, "waste")
		if err := os.WriteFile(waste, make([]byte, 3<<20), 0o600); err == nil {
			t.Fatal("a file system of 2 MiB took 3")
		}
		s := openTestStore(t, testStoreConfig(t, dir), nil)
		defer closeStore(t, s)
		s.Put(numbered(-1))
		waitFor(t, "no room for a head", func() bool { return s.Stats().Disk.Failing })
		if err := os.Truncate(waste, 1<<20); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "room again", func() bool { return s.Stats().Disk.Pages == 1 })
		var names []Hash
		for n := range 400 { // 1.6 MiB where 1 MiB is left
			names = append(names, s.Put(numbered(n)))
		}
		waitFor(t, "a full disk", func() bool { return s.Stats().Disk.Failing })
		buf := make([]byte, PageSize)
		for _, h := range names {
			if !s.Fetch(h, buf) {
				t.Fatal("lost")
			}
		}
		if err := os.Remove(waste); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the writer", func() bool { return written(s)() && !s.Stats().Disk.Failing })
		for _, h := range names {
			if !s.disk.read(h, buf, true) {
				t.Fatal("not written in the end")
			}
		}
	})
}

// Files damaged anywhere never give a wrong page, and never stand in the way.
func TestDiskDamaged(t *testing.T) {
	r := testRand(t)
	cfg := testStoreConfig(t, t.TempDir())
	pages := map[Hash][]byte{}
	buf := make([]byte, PageSize)
	next, bad, kept := 0, uint64(0), 0
	for round := range 60 {
		s, err := OpenStore(cfg)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		names := onDisk(s)
		for _, h := range names {
			if s.Fetch(h, buf) {
				kept++
				if !bytes.Equal(buf, pages[h]) {
					t.Fatalf("round %d: wrong page", round)
				}
			} else if s.Has(h) {
				t.Fatalf("round %d: a bad page was not dropped", round)
			}
		}
		bad += s.Stats().Disk.Bad
		for range 100 {
			page := numbered(next)
			next++
			pages[s.Put(page)] = page
		}
		waitFor(t, "the writer", written(s))
		closeStore(t, s)

		name := []string{slabFile, indexFile}[r.IntN(2)]
		path := filepath.Join(cfg.Dir, name)
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		what := r.IntN(10)
		switch {
		case what == 0:
			err = os.Truncate(path, r.Int64N(info.Size()))
		case what == 1:
			err = os.Remove(path)
		case what == 2: // what a power failure leaves of a file just made
			err = errors.Join(os.Truncate(path, 0), os.Truncate(path, info.Size()))
		default:
			var f *os.File
			if f, err = os.OpenFile(path, os.O_WRONLY, 0); err != nil {
				break
			}
			for range 1 + r.IntN(10) {
				junk := make([]byte, 1+r.IntN(3*PageSize))
				for i := range junk {
					junk[i] = byte(r.Uint32())
				}
				// Anywhere but in the magic: a file without it is not ours.
				_, werr := f.WriteAt(junk, 16+r.Int64N(info.Size()-16))
				err = errors.Join(err, werr)
			}
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d pages survived, %d were found bad", kept, bad)
	if bad == 0 || kept == 0 {
		t.Error("the test damages all or nothing")
	}
}

// Records that name pages which other slots hold are found out.
func TestDiskSwappedSlots(t *testing.T) {
	cfg := testStoreConfig(t, t.TempDir())
	s := openTestStore(t, cfg, nil)
	for n := range 64 {
		s.Put(numbered(n))
	}
	waitFor(t, "the writer", written(s))
	closeStore(t, s)
	path := filepath.Join(cfg.Dir, slabFile)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	pages := b[diskHead:]
	copy(pages, append(bytes.Clone(pages[PageSize:]), pages[:PageSize]...))
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s = openTestStore(t, cfg, nil)
	buf := make([]byte, PageSize)
	for n := range 64 {
		if s.Fetch(HashPage(numbered(n)), buf) {
			t.Fatal("a page by the name of another")
		}
	}
	if st := s.Stats().Disk; st.Bad != 64 || st.Pages != 0 {
		t.Errorf("got %+v, want 64 bad pages", st)
	}
}

// A directory is one process's at a time, and a file that is not ours is not
// touched.
func TestDiskRefusals(t *testing.T) {
	cfg := testStoreConfig(t, t.TempDir())
	s := openTestStore(t, cfg, nil)
	if _, err := OpenStore(cfg); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), cfg.Dir) {
		t.Errorf("opened twice: got %v, want %v", err, ErrInUse)
	}
	closeStore(t, s)
	for _, name := range []string{slabFile, indexFile} {
		cfg.Dir = t.TempDir()
		path := filepath.Join(cfg.Dir, name)
		for _, want := range []string{"somebody's letters", "x"} {
			if err := os.WriteFile(path, []byte(want), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := OpenStore(cfg); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), path) {
				t.Errorf("%s: got %v, want %v", name, err, ErrForeign)
			}
			if got, err := os.ReadFile(path); err != nil || string(got) != want {
				t.Errorf("%s: became %q, %v", name, got, err)
			}
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		closeStore(t, openTestStore(t, cfg, nil)) // and nothing is left in the way
	}
	for _, bad := range []StoreConfig{
		{Memory: -1}, {Memory: 1 << 30, Disk: 1 << 30},
		{Memory: 1 << 30, Dir: "x", Log: quietLog}, {Disk: 1 << 30, Dir: "x", Log: quietLog},
		{Memory: 1 << 30, Disk: 1 << 30, Dir: "x"}, {Memory: 1 << 30, Disk: 1 << 60, Dir: "x", Log: quietLog},
	} {
		if _, err := OpenStore(bad); err == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
}

// The bounds may change between two runs.
func TestDiskResized(t *testing.T) {
	cfg := testStoreConfig(t, t.TempDir())
	buf := make([]byte, PageSize)
	next := 0
	for _, limit := range []int64{testDisk, leastTier, 2 * testDisk, 2 << 20} {
		cfg.Disk = limit
		s := openTestStore(t, cfg, nil)
		for _, h := range onDisk(s) {
			if !s.Fetch(h, buf) {
				t.Error("lost")
			}
		}
		for range 3000 {
			s.Put(numbered(next))
			if next++; next%100 == 0 {
				waitFor(t, "the writer", written(s))
			}
		}
		waitFor(t, "the writer", written(s))
		least := leastPages(s)
		if st := s.Stats().Disk; st.Pages < least || st.Bad != 0 {
			t.Errorf("limit %d: want at least %d pages: %+v", limit, least, st)
		}
		closeStore(t, s)
		if n := diskBytes(t, cfg.Dir); n > limit {
			t.Errorf("%d bytes on disk, at most %d", n, limit)
		}
	}
}

func TestDiskConcurrent(t *testing.T) {
	cfg := testStoreConfig(t, t.TempDir())
	cfg.Memory, cfg.Disk = leastTier, leastTier
	s := openTestStore(t, cfg, nil)
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			buf := make([]byte, PageSize)
			for range 2000 {
				n := r.IntN(800)
				want := numbered(n)
				h := HashPage(want)
				switch r.IntN(4) {
				case 0:
					s.put(h, want)
				case 1:
					s.Has(h)
				case 2:
					if s.Peek(h, buf) && !bytes.Equal(buf, want) {
						t.Error("other content")
					}
				default:
					if s.Fetch(h, buf) && !bytes.Equal(buf, want) {
						t.Error("other content")
					}
				}
			}
		})
	}
	all.Wait()
	waitFor(t, "the writer", written(s))
	st := s.Stats().Disk
	if st.Bad != 0 || st.Hits == 0 || st.Written == 0 {
		t.Errorf("%+v", st)
	}
	index := s.disk.pages
	closeStore(t, s) // until then the writer may make room
	w := &s.disk.writer
	if n := index.count + len(w.free) + len(w.open) + len(s.disk.spoiled); n != int(w.top) {
		t.Errorf("%d slots have a page or will have one, of %d", n, w.top)
	}
}

// killEnv makes TestDiskKilledChild the process that is killed.
const killEnv = "PAGER_TEST_KILL"

// TestDiskKilledChild fills a store until it is killed, and says how far it
// is.
func TestDiskKilledChild(t *testing.T) {
	dir := os.Getenv(killEnv)
	if dir == "" {
		t.Skip("only run by TestDiskKilled")
	}
	s, err := OpenStore(StoreConfig{Memory: 2 << 20, Dir: dir, Disk: 2 << 20, Log: quietLog})
	if err != nil {
		t.Fatal(err)
	}
	for n := os.Getpid() * 1_000_000; ; n++ { // until killed
		s.Put(numbered(n))
		st := s.Stats().Disk
		if n%10 == 0 {
			fmt.Printf("written %d %d\n", st.Written, st.Pages)
		}
		for st.Waiting > 400 { // not faster than the disk
			runtime.Gosched()
			st = s.Stats().Disk
		}
	}
}

// What was written before the process was killed, at any moment, is there
// afterwards, and nothing else is.
func TestDiskKilled(t *testing.T) {
	r := testRand(t)
	dir := t.TempDir()
	buf := make([]byte, PageSize)
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	for round := range rounds {
		cmd := exec.Command(os.Args[0], "-test.run=^TestDiskKilledChild$")
		cmd.Env = append(os.Environ(), killEnv+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		pages := 0
		take := func() bool {
			if !lines.Scan() {
				return false
			}
			if f := strings.Fields(lines.Text()); len(f) == 3 && f[0] == "written" {
				pages, _ = strconv.Atoi(f[2])
			}
			return true
		}
		for n := 20 + r.IntN(300); (n > 0 || pages == 0) && take(); n-- {
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for take() {
		}
		if err := cmd.Wait(); err == nil || pages == 0 { // killed is an error
			t.Fatalf("the child ended by itself, %d pages written: %v", pages, err)
		}

		s := openTestStore(t, StoreConfig{Memory: leastTier, Dir: dir, Disk: 2 << 20, Log: testLog(t)}, nil)
		names := onDisk(s)
		if len(names) < pages-s.disk.batch { // a batch may have been on its way out
			t.Errorf("round %d: %d pages left of %d", round, len(names), pages)
		}
		for _, h := range names {
			if !s.Fetch(h, buf) || HashPage(buf) != h {
				t.Errorf("round %d: page %v is lost or other", round, h)
			}
		}
		if st := s.Stats().Disk; st.Bad != 0 {
			t.Errorf("round %d: %+v", round, st)
		}
		closeStore(t, s)
	}
}

// Whatever the index holds, loading it ends, and what it yields is sound.
func FuzzDiskIndex(f *testing.F) {
	var good []byte
	for n := range uint32(3) {
		h := HashPage(numbered(int(n)))
		good = appendRecord(good, n, &h, uint64(9-n))
	}
	f.Add(good)
	f.Add(append(make([]byte, recordBytes), good...))
	f.Add(append(good[:len(good):len(good)], good[:50]...))
	f.Fuzz(func(t *testing.T, b []byte) {
		const slots, pages = 64, 48
		x := newDiskIndex(slots)
		top, free, stamp, err := loadIndex(bytes.NewReader(b), x, slots, pages)
		if err != nil || int(top) != min(len(b)/recordBytes, slots) || x.count+len(free) != int(top) {
			t.Fatalf("%d bytes: %d slots, %d free, %d pages, %v", len(b), top, len(free), x.count, err)
		}
		last := uint64(0)
		for slot, ok := x.oldest(); ok; slot, ok = x.newer(slot) {
			h := x.name(slot)
			at := b[slot*recordBytes:][:recordBytes]
			s := binary.BigEndian.Uint64(at[32:])
			if slot >= pages || s < last || !bytes.Equal(appendRecord(nil, slot, &h, s), at) {
				t.Fatalf("slot %d after stamp %d: %x", slot, last, at)
			}
			last = s
		}
		if last != stamp {
			t.Errorf("highest stamp %d, want %d", stamp, last)
		}
	})
}

func FuzzDiskHead(f *testing.F) {
	f.Add(appendDiskHead(nil, kindSlab, 7)[:headFields+4])
	f.Add(diskMagic[:5])
	f.Fuzz(func(t *testing.T, b []byte) {
		pair, ok, foreign := parseDiskHead(b, kindSlab)
		if ok && (foreign || !bytes.HasPrefix(b, appendDiskHead(nil, kindSlab, pair)[:headFields+4])) {
			t.Errorf("accepted %x", b)
		}
	})
}
