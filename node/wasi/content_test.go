package wasi

import (
	"archive/zip"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

func one(b []byte) func(func([]byte) bool) {
	return func(yield func([]byte) bool) { yield(b) }
}

// A file against a slice of bytes, saved and restored now and then, its blocks
// fetched one by one.
func TestContentsLikeBytes(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	const limit = 5 * chunkBytes
	all := map[Hash][]byte{}
	fetched := 0
	fetch := func(h Hash) ([]byte, error) {
		fetched++
		if b, ok := all[h]; ok {
			return b, nil
		}
		return nil, errors.New("lost")
	}
	tr := newTree(newStore(fetch, 1<<30), limits{files: 10, bytes: limit})
	f := tr.create(filetypeRegular)
	f.opens++
	var want []byte
	place := func() int64 {
		switch n := int64(len(want)); rng.IntN(4) {
		case 0:
			return rng.Int64N(limit - 70000)
		case 1:
			return n
		case 2:
			return rng.Int64N(n/PageSize+1) * PageSize
		default:
			return rng.Int64N(n + 1)
		}
	}
	for step := range 4000 {
		switch op := rng.IntN(100); {
		case op < 55: // write
			at := min(place(), limit-70000)
			data := make([]byte, 1+rng.IntN(1<<rng.IntN(17)))
			if rng.IntN(4) > 0 {
				for i := range data {
					data[i] = byte(rng.Uint32())
				}
			}
			if e := tr.writeAt(f, at, int64(len(data)), one(data)); e != success {
				t.Fatalf("step %d: write %d bytes at %d: %d", step, len(data), at, e)
			}
			if end := int(at) + len(data); end > len(want) {
				want = append(want, make([]byte, end-len(want))...)
			}
			copy(want[at:], data)
		case op < 85: // read
			at := min(place(), int64(len(want)))
			got := make([]byte, min(int64(len(want))-at, 100000))
			if e := tr.ready(f.chunks, at, int64(len(got))); e != success {
				t.Fatal(e)
			}
			before := fetched
			if e := tr.read(f.chunks, at, got); e != success || !bytes.Equal(got, want[at:][:len(got)]) {
				t.Fatalf("step %d: read %d bytes at %d: %d", step, len(got), at, e)
			}
			if fetched != before {
				t.Fatalf("step %d: a block was fetched that had been made ready", step)
			}
		case op < 93: // resize
			n := rng.Int64N(limit + 1)
			if rng.IntN(2) == 0 {
				n = min(place(), limit)
			}
			if e := tr.resize(f, n); e != success {
				t.Fatalf("step %d: resize to %d: %d", step, n, e)
			}
			if n > int64(len(want)) {
				want = append(want, make([]byte, n-int64(len(want)))...)
			}
			clear(want[n:])
			want = want[:n]
		case op < 96:
			tr.sweep()
		default: // to another node, where nothing is yet
			b := tr.encode()
			names := allNames(tr.store)
			for _, h := range names {
				all[h], _ = tr.store.peek(h)
			}
			next := newTree(newStore(fetch, 1<<30), tr.limits)
			next, err := next.decode(b)
			if err != nil {
				t.Fatal(err)
			}
			tr, f = next, next.inodes[f.ino]
			f.opens++
		}
		if f.size != int64(len(want)) || tr.bytes != f.size {
			t.Fatalf("step %d: size %d, want %d", step, f.size, len(want))
		}
		if len(tr.dirty) > maxDirty {
			t.Fatalf("step %d: %d pages without a name", step, len(tr.dirty))
		}
	}
	if fetched == 0 {
		t.Error("nothing was ever fetched")
	}
}

// What is no longer used is forgotten before it is as much again, and 4,096.
func TestSweep(t *testing.T) {
	tr := newTree(newStore(nil, 1<<30), limits{files: 10, bytes: 1 << 30})
	f := tr.create(filetypeRegular)
	data := make([]byte, PageSize)
	for i := range 50000 {
		le.PutUint64(data, uint64(i+1))
		if e := tr.writeAt(f, int64(i%1000)*PageSize, PageSize, one(data)); e != success {
			t.Fatal(e)
		}
	}
	if n := tr.store.count(); n > 3*1010+4096+maxDirty {
		t.Errorf("%d blocks of a file of 1000 pages", n)
	}
	tr.settleAll()
	tr.sweep()
	if n := tr.store.count(); n != 1008 {
		t.Errorf("%d blocks, want 1000 pages and 8 indexes", n)
	}
}

// A block that cannot be had, or is not what it should be, is EIO and changes
// nothing; a fetch that is interrupted is a call that is.
func TestLostBlocks(t *testing.T) {
	cfg := worker()
	source, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s := source.State()
	var answer func(Hash) ([]byte, error)
	dest, err := New(Config{Streams: NewStreams(), Fetch: func(h Hash) ([]byte, error) { return answer(h) }})
	if err != nil {
		t.Fatal(err)
	}
	if err := dest.SetState(s); err != nil {
		t.Fatal(err)
	}
	mem := newMemory(t)
	path := []byte("given/text")
	copy(mem.all(), path)
	le.PutUint32(mem.all()[100:], 200)
	le.PutUint32(mem.all()[104:], 50)
	call := func(name string, args ...uint64) errno {
		return dest.call(name, functions[name], mem, append(make([]uint64, 0, 16), args...))
	}
	if e := call("path_open", 3, 0, 0, uint64(len(path)), 0, fileRights, 0, 0, 96); e != success {
		t.Fatal(e)
	}
	fd := uint64(le.Uint32(mem.all()[96:]))
	for name, c := range map[string]struct {
		answer func(Hash) ([]byte, error)
		want   errno
	}{
		"lost":          {func(Hash) ([]byte, error) { return nil, errors.New("gone") }, errIO},
		"other content": {func(Hash) ([]byte, error) { return []byte("hellO"), nil }, errIO},
		"nothing":       {func(Hash) ([]byte, error) { return nil, nil }, errIO},
		"too much":      {func(Hash) ([]byte, error) { return make([]byte, PageSize+1), nil }, errIO},
		"a move":        {func(Hash) ([]byte, error) { return nil, fmt.Errorf("demand: %w", ErrInterrupted) }, errIntr},
	} {
		answer = c.answer
		before := dest.State()
		for _, f := range []string{"fd_read", "fd_write"} {
			if !Waits(f) {
				t.Errorf("%s waits", f)
			}
			if e := call(f, fd, 100, 1, 108); e != c.want || dest.Interrupted() != (c.want == errIntr) {
				t.Errorf("%s: %s: %d, want %d", name, f, e, c.want)
			}
		}
		if e := call("fd_filestat_set_size", fd, 3); e != c.want {
			t.Errorf("%s: set size: %d, want %d", name, e, c.want)
		}
		if after := dest.State(); !bytes.Equal(before.Encode(), after.Encode()) {
			t.Errorf("%s: the state has changed", name)
		}
	}
	answer = func(h Hash) ([]byte, error) { b, _ := source.Block(h); return b, nil }
	if e := call("fd_read", fd, 100, 1, 108); e != success || string(mem.all()[200:205]) != "hello" {
		t.Errorf("%d, %q", e, mem.all()[200:205])
	}
	if dest.State().Encode(); missing(dest) == 0 {
		t.Error("nothing is missing, and one file of three was read")
	}
}

// allNames lists a store as somebody does who wants to miss nothing, a few
// names at a time.
func allNames(s *store) (all []Hash) {
	var at Cursor
	for {
		names, next := s.since(at, 3)
		if next.Sweeps != at.Sweeps {
			all = nil
		}
		all, at = append(all, names...), next
		if len(names) == 0 {
			return all
		}
	}
}

func missing(h *Host) int {
	_, n := h.Missing(0)
	return n
}

// What is missing is known in full once the indexes are here, and comes in the
// order of the files; what the guest waits for comes first.
func TestMissing(t *testing.T) {
	files := fstest.MapFS{}
	for _, name := range []string{"a", "b", "c"} {
		files[name] = &fstest.MapFile{Data: bytes.Repeat([]byte(name+" page of it. "), 3000)}
	}
	source, err := New(Config{Streams: NewStreams(), Dirs: []Dir{{Name: "/", Source: files}}})
	if err != nil {
		t.Fatal(err)
	}
	state := source.State()
	var want Hash // a page that the guest waits for
	dest, err := New(Config{Streams: NewStreams(), Fetch: func(h Hash) ([]byte, error) {
		want = h
		return nil, ErrInterrupted
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := dest.SetState(state); err != nil {
		t.Fatal(err)
	}
	if names, all := dest.Missing(2); len(names) != 2 || all != 3 || !slices.Equal(names, dest.Blocks()[:2]) {
		t.Fatalf("%v of %d, want the first two indexes of three", names, all)
	}
	put := func(names []Hash) {
		t.Helper()
		for _, h := range names {
			b, ok := source.Block(h)
			if !ok {
				t.Fatalf("the source has no block %v", h)
			}
			// As a page, with the zeroes at its end.
			page := make([]byte, PageSize)
			copy(page, b)
			if got, err := dest.Put(page); err != nil || got != h {
				t.Fatalf("block %v became %v: %v", h, got, err)
			}
		}
	}
	indexes, _ := dest.Missing(3)
	put(indexes)
	pages := len(source.Blocks()) - 3
	if _, all := dest.Missing(0); all != pages {
		t.Fatalf("%d are missing, want the %d pages", all, pages)
	}
	last, _ := dest.Missing(pages)
	dest.store.demand(last[pages-1])
	if names, _ := dest.Missing(2); names[0] != last[pages-1] || names[1] != last[0] {
		t.Errorf("what the guest waits for does not come first: %v", names)
	}
	if !dest.Expects(last[0]) || dest.Expects(indexes[0]) || dest.Expects(Hash{1}) {
		t.Error("it expects what is here, or does not what is missing")
	}
	put(last)
	if n := missing(dest); n != 0 {
		t.Errorf("%d are missing", n)
	}
	if want != (Hash{}) {
		t.Errorf("%v was fetched", want)
	}
	if got := dest.State().Encode(); !bytes.Equal(got, state.Encode()) {
		t.Error("another state")
	}

	// What does not come is not expected for ever.
	if dest, err = New(Config{Streams: NewStreams()}); err != nil {
		t.Fatal(err)
	}
	if err := dest.SetState(state); err != nil {
		t.Fatal(err)
	}
	dest.GiveUp(indexes[:2])
	if n := missing(dest); n != 1 || dest.Expects(indexes[0]) || !dest.Expects(indexes[2]) {
		t.Errorf("%d are missing, want one", n)
	}

	// Nothing is swept as long as an index is, and what nobody needs is when it
	// is here, though others are lost.
	if _, err := dest.Put([]byte("of no file")); err != nil {
		t.Fatal(err)
	}
	b, _ := source.Block(indexes[2])
	third, _ := parseIndex(b)
	put(third[:1])
	if dest.tree.sweep(); dest.store.count() != 2 {
		t.Errorf("%d blocks while an index was missing, want 2", dest.store.count())
	}
	put(indexes[2:3])
	if dest.tree.sweep(); dest.store.count() != 2 {
		t.Errorf("%d blocks, want an index and a page", dest.store.count())
	}
	if _, here := dest.Block(third[0]); !here {
		t.Error("a page in use was swept")
	}
}

func TestPut(t *testing.T) {
	h, err := New(Config{Limits: Limits{Bytes: 1 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	name, err := h.Put([]byte("block"))
	if err != nil {
		t.Fatal(err)
	}
	if b, ok := h.Block(name); !ok || string(b) != "block" || !slices.Equal(allNames(h.store), []Hash{name}) {
		t.Errorf("%q, %v", b, ok)
	}
	for _, n := range []int{0, PageSize + 1} {
		if _, err := h.Put(make([]byte, n)); err == nil {
			t.Errorf("took a block of %d bytes", n)
		}
	}
	b := make([]byte, PageSize)
	for i := 0; err == nil; i++ {
		if i > 100<<20/PageSize {
			t.Fatal("no end of blocks")
		}
		le.PutUint64(b, uint64(i)+1)
		b[PageSize-1] = 1
		_, err = h.Put(b)
	}
}

func TestLimits(t *testing.T) {
	for _, l := range []Limits{{Files: -1}, {Files: MaxFiles + 1}, {Bytes: -1}} {
		if _, err := New(Config{Limits: l}); err == nil {
			t.Errorf("%+v accepted", l)
		}
	}
	big := fstest.MapFS{"big": {Data: make([]byte, 1000)}}
	for name, c := range map[string]Config{
		"bytes":   {Limits: Limits{Bytes: 999}, Dirs: []Dir{{Name: "/", Source: big}}},
		"files":   {Limits: Limits{Files: 1}, Dirs: []Dir{{Name: "/", Source: big}}},
		"name":    {Dirs: []Dir{{Source: big}}},
		"name 0":  {Dirs: []Dir{{Name: "a\x00b"}}},
		"fifo":    {Dirs: []Dir{{Name: "/", Source: fstest.MapFS{"f": {Mode: fs.ModeNamedPipe}}}}},
		"unusual": {Dirs: []Dir{{Name: "/", Source: fstest.MapFS{"a\xffb": {}}}}},
		"roots":   {Limits: Limits{Files: 1}, Dirs: []Dir{{Name: "/"}, {Name: "/b"}}},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%s: accepted", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}

	h, err := New(Config{Streams: NewStreams(), Limits: Limits{Files: 5, Bytes: 10000}, Dirs: []Dir{{Name: "/"}}})
	if err != nil {
		t.Fatal(err)
	}
	mem := newMemory(t)
	name := func(s string) []uint64 { copy(mem.all(), s); return []uint64{0, uint64(len(s))} }
	call := func(e errno, name string, args ...uint64) {
		t.Helper()
		if got := h.call(name, functions[name], mem, append(make([]uint64, 0, 16), args...)); got != e {
			t.Errorf("%s%v: %d, want %d", name, args, got, e)
		}
	}
	for i, e := range []errno{success, success, success, success, errNospc} {
		p := name(fmt.Sprint("d", i))
		call(e, "path_create_directory", 3, p[0], p[1])
	}
	p := name("d3")
	call(success, "path_remove_directory", 3, p[0], p[1])
	p = name("f")
	call(success, "path_open", 3, 0, p[0], p[1], openCreate, fileRights, 0, 0, 96)
	fd := uint64(le.Uint32(mem.all()[96:]))
	le.PutUint32(mem.all()[100:], 200)
	le.PutUint32(mem.all()[104:], 6000)
	call(success, "fd_write", fd, 100, 1, 108)
	call(errFbig, "fd_write", fd, 100, 1, 108)
	call(errFbig, "fd_filestat_set_size", fd, 10001)
	call(success, "fd_filestat_set_size", fd, 10000)
	call(success, "fd_filestat_set_size", fd, 0)
	for i := 0; ; i++ {
		stack := []uint64{3, 0, p[0], p[1], 0, 0, 0, 0, 96}
		if e := h.call("path_open", functions["path_open"], mem, stack); e == errMfile {
			break
		} else if e != success || i > MaxFDs {
			t.Fatalf("descriptor %d: %d", i, e)
		}
	}
}

// A directory on disk and an archive of it are the same to a guest.
func TestSources(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "sub/empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	big := bytes.Repeat([]byte("0123456789abcdef"), 50000)
	for name, data := range map[string]string{"sub/a": "alpha", "big": string(big), "none": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("sub/a", filepath.Join(dir, "link")); err != nil {
		t.Skip("no symbolic links here: ", err)
	}
	var archive bytes.Buffer
	w := zip.NewWriter(&archive)
	if err := fs.WalkDir(os.DirFS(dir), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		head, err := zip.FileInfoHeader(info)
		if err != nil {
			return err
		}
		head.Name = name
		if e.IsDir() {
			head.Name += "/"
		}
		f, err := w.CreateHeader(head)
		if err != nil || e.IsDir() {
			return err
		}
		if e.Type() == fs.ModeSymlink {
			_, err = f.Write([]byte("sub/a"))
			return err
		}
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil {
			_, err = f.Write(data)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	zipped, err := zip.NewReader(bytes.NewReader(archive.Bytes()), int64(archive.Len()))
	if err != nil {
		t.Fatal(err)
	}
	describe := func(source fs.FS) string {
		h, err := New(Config{Dirs: []Dir{{Name: "/", Source: source}}})
		if err != nil {
			t.Fatal(err)
		}
		if err := h.tree.consistent(); err != nil {
			t.Fatal(err)
		}
		var out []string
		var walk func(n *inode, path string)
		walk = func(n *inode, path string) {
			line := fmt.Sprint(path, " ", n.kind, " ", n.size, " ", n.target, " ", n.mtim/2e9)
			if n.dir == nil {
				for _, c := range n.chunks {
					line += fmt.Sprintf(" %v", c.name)
				}
			} else {
				line = fmt.Sprint(path, " ", n.kind) // zip rounds, and the top has no time
				for _, e := range n.dir.list {
					walk(e.node, path+"/"+e.name)
				}
			}
			out = append(out, line)
		}
		walk(h.fd(3).node, "")
		slices.Sort(out)
		return strings.Join(out, "\n")
	}
	disk, arch := describe(os.DirFS(dir)), describe(zipped)
	if disk != arch || strings.Count(disk, "\n") != 6 {
		t.Errorf("on disk\n%s\nin the archive\n%s", disk, arch)
	}
}

// BenchmarkFreeze takes the state of a guest that has written much, with as many
// pages to be hashed as there ever are: neither time nor size may depend on how
// much was written before.
func BenchmarkFreeze(b *testing.B) {
	for _, size := range []int{4 << 20, 64 << 20, 256 << 20} {
		b.Run(fmt.Sprintf("written=%dMiB", size>>20), func(b *testing.B) {
			tr := newTree(newStore(nil, 1<<40), limits{files: 100, bytes: 1 << 30})
			f := tr.create(filetypeRegular)
			f.opens++
			data := make([]byte, PageSize)
			fill := func(pages, first int) {
				for i := range pages {
					le.PutUint64(data, uint64(first+i))
					for j := 8; j < len(data); j++ {
						data[j] = byte(j)
					}
					if e := tr.writeAt(f, int64(i)*PageSize, PageSize, one(data)); e != success {
						b.Fatal(e)
					}
				}
			}
			fill(size/PageSize, 0)
			tr.encode()
			var took []time.Duration
			var state []byte
			for n := 1; b.Loop(); n++ {
				fill(maxDirty, n*maxDirty)
				start := time.Now()
				state = tr.encode()
				took = append(took, time.Since(start))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[0].Microseconds())/1000, "ms-min")
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms-median")
			b.ReportMetric(float64(len(state)), "B-state")
		})
	}
}

// BenchmarkTree saves and restores the state of many small files.
func BenchmarkTree(b *testing.B) {
	for _, files := range []int{100, 16000} {
		tr := newTree(newStore(nil, 1<<40), limits{files: 1 << 16, bytes: 1 << 30})
		root := tr.newRoot()
		root.opens++
		for i := range files {
			f := tr.create(filetypeRegular)
			if e := tr.writeAt(f, 0, 8, one(fmt.Appendf(nil, "%08d", i))); e != success {
				b.Fatal(e)
			}
			tr.link(root, fmt.Sprintf("file%05d", i), f)
		}
		state := tr.encode()
		b.Run(fmt.Sprintf("encode/files=%d", files), func(b *testing.B) {
			least := time.Hour
			for b.Loop() {
				start := time.Now()
				tr.encode()
				least = min(least, time.Since(start))
			}
			b.ReportMetric(float64(least.Microseconds())/1000, "ms-min")
			b.ReportMetric(float64(len(state))/float64(files), "B/file")
		})
		b.Run(fmt.Sprintf("decode/files=%d", files), func(b *testing.B) {
			least := time.Hour
			for b.Loop() {
				start := time.Now()
				if _, err := tr.decode(state); err != nil {
					b.Fatal(err)
				}
				least = min(least, time.Since(start))
			}
			b.ReportMetric(float64(least.Microseconds())/1000, "ms-min")
		})
	}
}

// BenchmarkWrite appends in small pieces, as programs do.
func BenchmarkWrite(b *testing.B) {
	for _, piece := range []int{64, 4096, 65536} {
		b.Run(fmt.Sprintf("piece=%d", piece), func(b *testing.B) {
			tr := newTree(newStore(nil, 1<<40), limits{files: 100, bytes: 1 << 30})
			f := tr.create(filetypeRegular)
			f.opens++
			data := bytes.Repeat([]byte("some text."), piece/10+1)[:piece]
			b.SetBytes(int64(piece))
			for b.Loop() {
				if f.size > 64<<20 {
					tr.resize(f, 0)
				}
				le.PutUint64(data, uint64(f.size))
				if e := tr.writeAt(f, f.size, int64(piece), one(data)); e != success {
					b.Fatal(e)
				}
			}
		})
	}
}
