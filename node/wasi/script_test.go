package wasi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"

	"meshnode/node/suspend/wasmtest"
)

// A script is a guest that makes calls as bytes tell it: most with arguments
// that mean something, some with any.
type script struct {
	data []byte
	step int
}

// signatures say what each argument of a function is.
//
//	f descriptor   P path and its length   b buffer and its length
//	v vectors and their number   o offset   p pointer to the result   i small number
//	r rights   s subscriptions, events, their number
var signatures = map[string]string{
	"args_get": "pp", "args_sizes_get": "pp", "environ_get": "pp", "environ_sizes_get": "pp",
	"clock_res_get": "ip", "fd_advise": "fooi", "fd_allocate": "foo", "fd_close": "f", "fd_datasync": "f",
	"fd_fdstat_get": "fp", "fd_fdstat_set_flags": "fi", "fd_fdstat_set_rights": "frr", "fd_filestat_get": "fp",
	"fd_filestat_set_size": "fo", "fd_filestat_set_times": "fooi", "fd_pread": "fvop", "fd_prestat_get": "fp",
	"fd_prestat_dir_name": "fb", "fd_pwrite": "fvop", "fd_read": "fvp", "fd_readdir": "fbip", "fd_renumber": "ff",
	"fd_seek": "foip", "fd_sync": "f", "fd_tell": "fp", "fd_write": "fvp", "path_create_directory": "fP",
	"path_filestat_get": "fiPp", "path_filestat_set_times": "fiPooi", "path_link": "fiPfP", "path_open": "fiPirrip",
	"path_readlink": "fPbp", "path_remove_directory": "fP", "path_rename": "fPfP", "path_symlink": "PfP",
	"path_unlink_file": "fP", "poll_oneoff": "sp", "sched_yield": "", "sock_shutdown": "fi", "proc_raise": "i",
	// Often, since what else there is depends on them.
	"path_open ": "fiPirrip", "path_open  ": "fiPirrip", "fd_write ": "fvp", "fd_pwrite ": "fvop", "fd_read ": "fvp",
}

var scripted = slices.Sorted(maps.Keys(signatures))

var (
	scriptPaths = []string{
		"a", "b", "c", "d", "a/b", "a/c", "b/a", "d/d", "a/b/c", ".", "..", "a/..", "d/../a", "a/", "b/", "d/./d",
		"", "/a", "../a", "a/../..", "given/text", "given", "given/two", "given/two/file-1", "x\x00y", "\xff",
		strings.Repeat("n", 255), strings.Repeat("n", 256), "l", "l/a", "given/link",
	}
	scriptOffsets = []int64{
		0, 0, 1, 5, 4095, 4096, 4097, 12345, chunkBytes - 3, chunkBytes, chunkBytes + 4096, 2*chunkBytes + 1, 1 << 20,
		-1, -4096, math.MaxInt64, math.MinInt64, 1<<40 + 5, 3<<20 + 1,
	}
	scriptSizes = []uint32{0, 1, 7, 100, 4096, 5000, 30000}
)

// Where a script's arguments are in memory.
const (
	scriptPath    = 1 << 10
	scriptVectors = 8 << 10
	scriptResult  = 9 << 10
	scriptEvents  = 10 << 10
	scriptBuffer  = 16 << 10
)

func (s *script) byte() int {
	if len(s.data) == 0 {
		return 0
	}
	b := s.data[0]
	s.data = s.data[1:]
	return int(b)
}

// next returns the next call, and writes what its arguments point to.
func (s *script) next(mem memory) (name string, args []uint64) {
	s.step++
	key := scripted[s.byte()%len(scripted)]
	name = strings.TrimSpace(key)
	paths := uint32(scriptPath)
	bytes := func(at uint32, n int) []byte { b, _ := mem.view(at, uint64(n)); return b }
	for _, what := range signatures[key] {
		switch what {
		case 'f':
			args = append(args, uint64(s.byte()%12))
		case 'P':
			p := scriptPaths[s.byte()%len(scriptPaths)]
			copy(bytes(paths, len(p)), p)
			args = append(args, uint64(paths), uint64(len(p)))
			paths += 512
		case 'b':
			args = append(args, scriptBuffer, uint64(scriptSizes[s.byte()%len(scriptSizes)]))
		case 'v':
			n := s.byte() % 3
			at := uint32(scriptBuffer)
			for i := range n {
				size := scriptSizes[s.byte()%len(scriptSizes)]
				v := bytes(scriptVectors+uint32(i)*8, 8)
				le.PutUint32(v, at)
				le.PutUint32(v[4:], size)
				for j, b := 0, bytes(at, int(size)); j < len(b); j += 61 {
					b[j] = byte(s.step + j)
				}
				at += size
			}
			args = append(args, scriptVectors, uint64(n))
		case 'o':
			args = append(args, uint64(scriptOffsets[s.byte()%len(scriptOffsets)]))
		case 'p':
			args = append(args, scriptResult)
		case 'i':
			args = append(args, uint64(s.byte()%17))
		case 'r':
			r := uint64(math.MaxUint64)
			switch b := s.byte() % 8; {
			case b == 1:
				r = fileRights
			case b == 2:
				r = dirRights
			case b == 3:
				r = uint64(s.byte()) << (s.byte() % 28)
			}
			args = append(args, r)
		case 's':
			n := s.byte()%3 + 1
			for i := range n {
				b := bytes(scriptEvents+uint32(i)*subscriptionSize, subscriptionSize)
				clear(b)
				b[0] = byte(s.step)
				b[8] = byte(s.byte() % 4)
				if b[8] == eventClock {
					b[16] = clockMonotonic // due at once, or in a thousand years
					b[24+s.byte()%2*7] = byte(s.byte() % 2)
				} else {
					b[16] = byte(s.byte() % 12)
				}
			}
			args = append(args, scriptEvents, scriptBuffer, uint64(n))
		}
	}
	if s.byte()%16 == 0 && len(args) > 0 && name != "poll_oneoff" {
		v := uint64(0)
		for range 4 {
			v = v<<8 | uint64(s.byte())
		}
		args[s.byte()%len(args)] = v
	}
	return name, args
}

// newMemory returns a guest's memory.
func newMemory(t testing.TB) memory {
	t.Helper()
	ctx := context.Background()
	rt := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter())
	t.Cleanup(func() { rt.Close(ctx) })
	m := new(wasmtest.Module)
	m.Mem(pages, pages)
	m.Export("memory", wasmtest.Memory, 0)
	mod, err := rt.Instantiate(ctx, m.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return memory{mod.Memory()}
}

func (m memory) all() []byte {
	b, _ := m.view(0, pages*65536)
	return b
}

// play runs one script on a host that stays and on one that moves behind every
// call: results, memory and state must be the same. A call that is interrupted
// must have changed nothing.
func play(t testing.TB, data []byte, stays, moves memory) {
	t.Helper()
	clear(stays.all())
	clear(moves.all())
	var now uint64
	start := func(every int) *mover {
		cfg := worker("script", "-v")
		cfg.Limits = Limits{Files: 40, Bytes: 3 << 20}
		m := newMover(t, cfg, every)
		m.cfg.Wait = func(int64, <-chan struct{}) bool { return true }
		m.h.wait = m.cfg.Wait
		m.h.tree.now = func() uint64 { return now }
		for _, n := range m.h.tree.inodes {
			n.atim, n.mtim, n.ctim = 1, 1, 1
		}
		return m
	}
	a, b := start(0), start(1)
	b.now = func() uint64 { return now }
	s := &script{data: data}
	compare := func(what string) {
		t.Helper()
		x, y := a.h.State(), b.h.State()
		if x.Poll != nil && y.Poll != nil {
			x.Poll.Began, y.Poll.Began = 0, 0
		}
		x.Waited, y.Waited = 0, 0
		if !bytes.Equal(x.Encode(), y.Encode()) {
			t.Fatalf("step %d, %s: state\n%+v\nwithout a move is\n%+v", s.step, what, y, x)
		}
		if err := b.h.tree.consistent(); err != nil {
			t.Fatalf("step %d, %s: %v", s.step, what, err)
		}
	}
	for len(s.data) > 0 && s.step < 500 {
		now++
		switch s.byte() % 40 {
		case 0:
			msg := []byte(fmt.Sprintf("message %d\n", s.step))
			if e1, e2 := a.h.streams.Push(msg), b.h.streams.Push(msg); !errors.Is(e2, e1) {
				t.Fatalf("push: %v and %v", e1, e2)
			}
			continue
		case 1:
			to := a.h.streams.Acked() + uint64(s.byte())
			if e1, e2 := a.h.streams.Ack(to), b.h.streams.Ack(to); (e1 == nil) != (e2 == nil) {
				t.Fatalf("acknowledge %d: %v and %v", to, e1, e2)
			}
			continue
		}
		name, args := s.next(stays)
		copy(moves.all(), stays.all())
		e1 := a.h.call(name, functions[name], stays, append(make([]uint64, 0, 16), args...))
		if a.h.Interrupted() != (e1 == errIntr) || (e1 == errIntr && !bytes.Equal(stays.all(), moves.all())) {
			t.Fatalf("step %d, %s%v: interrupted, with an effect", s.step, name, args)
		}
		if e1 == errIntr && !Waits(name) {
			t.Fatalf("step %d, %s%v: interrupted, which never waits", s.step, name, args)
		}
		e2 := b.h.call(name, functions[name], moves, append(make([]uint64, 0, 16), args...))
		b.move()
		if e1 != e2 {
			t.Fatalf("step %d, %s%v: %d, without a move %d", s.step, name, args, e2, e1)
		}
		if !bytes.Equal(stays.all(), moves.all()) {
			t.Fatalf("step %d, %s%v: other memory than without a move", s.step, name, args)
		}
		if s.step%50 == 0 {
			compare(name)
		}
	}
	compare("end")
}

// consistent says whether the tree's sums are those of its parts.
func (t *tree) consistent() error {
	var bytes int64
	var n names
	links := map[*inode]int{}
	for _, i := range t.inodes {
		bytes += i.size
		n.bytes += len(i.target)
		if int64(len(i.chunks)) != (i.size+chunkBytes-1)/chunkBytes {
			return fmt.Errorf("inode %d: %d bytes in %d chunks", i.ino, i.size, len(i.chunks))
		}
		if i.dir == nil {
			continue
		}
		for _, e := range i.dir.list {
			if e.node != nil {
				n.count++
				n.bytes += len(e.name)
				links[e.node]++
			}
		}
	}
	if bytes != t.bytes || n != t.names {
		return fmt.Errorf("%d bytes and names %v, counted are %d and %v", t.bytes, t.names, bytes, n)
	}
	for _, i := range t.inodes {
		if i.links != links[i] {
			return fmt.Errorf("inode %d: %d links, counted are %d", i.ino, i.links, links[i])
		}
	}
	return t.reached()
}

func TestScripts(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	stays, moves := newMemory(t), newMemory(t)
	for range 30 {
		data := make([]byte, 3000)
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		play(t, data, stays, moves)
	}
}

func FuzzScripts(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 8 {
		data := make([]byte, 400)
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		f.Add(data)
	}
	stays, moves := newMemory(f), newMemory(f)
	f.Fuzz(func(t *testing.T, data []byte) { play(t, data, stays, moves) })
}
