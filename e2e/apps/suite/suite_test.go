// Package suite tests programs of all kinds, none of which knows that it is
// being stopped: plain, rewritten, and stopped and moved at every n-th poll.
package suite

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/sys"

	"meshnode/node/suspend"
	. "meshnode/node/suspend/drive/drivetest"
)

// A program is one of the suite.
type program struct {
	name  string
	input string
	// long are the arguments of a run worth measuring.
	long []string
	// here means that what it does to its host's files cannot move yet: it is
	// stopped and continued where it is.
	here bool
	// step is the smallest n for which stopping at every n-th poll takes a
	// second or two rather than minutes.
	step int32
}

var programs = []program{
	{name: "fib", long: []string{"38"}, step: 500},
	{name: "nbody", long: []string{"2000000"}, step: 20},
	{name: "mandelbrot", long: []string{"1500"}, step: 300},
	{name: "fannkuch", long: []string{"10"}, step: 200},
	{name: "binarytrees", long: []string{"15"}, step: 50},
	{name: "sieve", long: []string{"600"}, step: 50},
	{name: "matmul", long: []string{"256", "10"}, step: 20},
	{name: "quicksort", long: []string{"1000000"}, step: 50},
	{name: "sha256", long: []string{"300000"}, step: 50},
	{name: "lz", long: []string{"1000000", "15"}, step: 200},
	{name: "regex", long: []string{"3000"}, step: 50},
	{name: "bytecode", long: []string{"3000000"}, step: 50},
	{name: "mutual", long: []string{"1000", "25000"}, step: 20},
	{name: "goroutines", long: []string{"6000"}, step: 40_000},
	{name: "virtual", long: []string{"8000"}, step: 500},
	{name: "derive", long: []string{"15000"}, step: 100},
	{name: "treap", long: []string{"400000"}, step: 100},
	{name: "maze", long: []string{"1000"}, step: 300},
	{name: "waiter", input: "hello\nsleep 3\nworld\n", here: true, step: 1},
	{name: "files", here: true, step: 1},
	{name: "notes", input: "append a word\nsum a\ncat a\nsize a\ncat b\nwhat\n", here: true, step: 1},
}

var built struct {
	mu      sync.Mutex
	modules map[string][]byte
}

// module builds a program.
func module(tb testing.TB, p program) []byte {
	tb.Helper()
	built.mu.Lock()
	defer built.mu.Unlock()
	if b := built.modules[p.name]; b != nil {
		return b
	}
	out := filepath.Join(tb.TempDir(), p.name+".wasm")
	var cmd *exec.Cmd
	source := filepath.Join(p.name, p.name+".c")
	switch {
	case p.name == "goroutines":
		cmd = exec.Command("go", "build", "-ldflags=-s -w", "-o", out, "./goroutines")
		cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0")
	case p.name == "virtual":
		if _, err := os.Stat("/usr/include/wasm32-wasi/c++/v1/vector"); err != nil {
			tb.Skip("the C++ program needs libc++ for wasm32 (Debian: libc++-dev-wasm32, libc++abi-dev-wasm32)")
		}
		cmd = exec.Command("clang++", "--target=wasm32-wasi", "-O2", "-s", "-std=c++17", "-fno-exceptions", "-o", out, "virtual/virtual.cc")
	case p.name == "derive":
		compiler, target := rust()
		if compiler == "" {
			tb.Skip("the Rust program needs rustc and Rust's library for WASI (Debian: rustc, libstd-rust-dev-wasm32)")
		}
		cmd = exec.Command(compiler, "--target", target, "--edition=2021", "-O", "-Cstrip=symbols", "-o", out, "derive/derive.rs")
	case p.name == "treap":
		// Each version of Zig has another library.
		if v, err := exec.Command("zig", "version").Output(); err != nil || !strings.HasPrefix(string(v), "0.11.") {
			tb.Skipf("the Zig program needs zig 0.11: version %q, %v", bytes.TrimSpace(v), err)
		}
		cache := tb.TempDir()
		cmd = exec.Command("zig", "build-exe", "treap/treap.zig", "-target", "wasm32-wasi", "-O", "ReleaseFast", "-fstrip",
			"--cache-dir", cache, "--global-cache-dir", cache, "-femit-bin="+out)
	case p.name == "maze":
		if _, err := exec.LookPath("asc"); err != nil {
			tb.Skip("the AssemblyScript program needs its compiler (npm: assemblyscript):", err)
		}
		cmd = exec.Command("asc", "maze/maze.ts", "-O3", "--exportStart", "_start", "--use", "abort=wasi_abort", "-o", out)
	default:
		cmd = exec.Command("clang", "--target=wasm32-wasi", "-O2", "-s", "-Wall", "-Wextra", "-Werror", "-o", out, source)
	}
	if _, err := exec.LookPath(cmd.Args[0]); err != nil {
		tb.Skip("the program cannot be built here:", err)
	}
	if strings.HasPrefix(cmd.Args[0], "clang") {
		if _, err := os.Stat("/usr/include/wasm32-wasi/stdio.h"); err != nil {
			tb.Skip("the program needs wasi-libc (Debian: wasi-libc, libclang-rt-dev-wasm32)")
		}
	}
	if msg, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("%v: %v\n%s", cmd, err, msg)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		tb.Fatal(err)
	}
	if built.modules == nil {
		built.modules = map[string][]byte{}
	}
	built.modules[p.name] = b
	return b
}

// rust returns a Rust compiler that has the library for WASI, and its name for
// that; "" if there is none. Rust's own installer puts one on the path that need
// not have it where Debian's has.
func rust() (compiler, target string) {
	for _, compiler := range []string{"rustc", "/usr/bin/rustc"} {
		for _, target := range []string{"wasm32-wasip1", "wasm32-wasi"} {
			dir, err := exec.Command(compiler, "--print", "target-libdir", "--target", target).Output()
			if err != nil {
				continue
			}
			if std, _ := filepath.Glob(filepath.Join(strings.TrimSpace(string(dir)), "libstd-*.rlib")); std != nil {
				return compiler, target
			}
		}
	}
	return "", ""
}

// A world is what surrounds one run of a program, wherever it moves: what it
// reads, what it has written, and the time.
type world struct {
	p      program
	args   []string
	in     io.Reader
	out    bytes.Buffer
	random *rand.ChaCha8
	now    int64
	dir    string
}

func newWorld(tb testing.TB, p program, args ...string) *world {
	w := &world{p: p, args: append([]string{p.name}, args...), in: strings.NewReader(p.input), random: rand.NewChaCha8([32]byte{1})}
	if p.name == "files" {
		w.dir = tb.TempDir()
	}
	return w
}

func (w *world) config() wazero.ModuleConfig {
	tick := func() int64 { w.now += 50_000; return w.now }
	c := wazero.NewModuleConfig().WithArgs(w.args...).WithStdin(w.in).WithStdout(&w.out).WithStderr(&w.out).
		WithRandSource(w.random).WithNanotime(tick, sys.ClockResolution(1000)).
		WithWalltime(func() (int64, int32) { return 1_700_000_000, int32(tick() % 1_000_000_000) }, 1000).
		WithNanosleep(func(ns int64) { w.now += ns })
	if w.dir != "" {
		c = c.WithFSConfig(wazero.NewFSConfig().WithDirMount(w.dir, "/data"))
	}
	return c
}

// TestMoved runs every program stopped at every n-th poll, for several n, and
// moved between the compiler and the interpreter each time: it must write the
// same, leave the same memory and exit alike.
func TestMoved(t *testing.T) {
	if raceDetector {
		t.Skip("nothing here runs concurrently, and under the race detector compiling takes minutes")
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for _, p := range programs {
		t.Run(p.name, func(t *testing.T) {
			m := module(t, p)
			w := newWorld(t, p)
			want := Plain(t, m, Compiler, w.config(), "_start")
			text := w.out.String()
			if want.Err != "exit 0" && want.Err != "" {
				t.Fatalf("plain: %s\n%s", want.Err, text)
			}
			prog, err := suspend.Rewrite(m, suspend.Options{Poll: suspend.Countdown})
			if err != nil {
				t.Fatal(err)
			}
			again, err := suspend.Rewrite(m, suspend.Options{Poll: suspend.Countdown})
			if err != nil || !bytes.Equal(again.Module, prog.Module) {
				t.Errorf("rewritten a second time: %v, or other bytes", err)
			}
			h := NewHost(t, prog, suspend.Countdown)
			for _, n := range []int32{0, p.step, p.step + 1, 3*p.step + 1, p.step + rng.Int32N(10*p.step)} {
				w := newWorld(t, p)
				h.Module = w.config
				var engines []Engine
				if !p.here {
					engines = []Engine{Compiler, Interpreter}
				}
				start := time.Now()
				got := h.Call(context.Background(), n, engines, "_start")
				t.Logf("n=%d: %d stops in %v", n, got.Stops, time.Since(start).Round(time.Millisecond))
				if w.out.String() != text {
					t.Errorf("n=%d: wrote\n%s\nplain\n%s", n, w.out.String(), text)
				}
				if p.name == "files" {
					got.Memory, want.Memory = nil, nil // they hold inode numbers and times
				}
				if !got.Equal(want) {
					t.Errorf("n=%d: %q %v, plain %q %v; memory equal: %v", n, got.Err, got.Results, want.Err, want.Results, bytes.Equal(got.Memory, want.Memory))
				}
				if n > 0 && got.Stops == 0 && n == p.step {
					t.Errorf("n=%d: it never stopped", n)
				}
			}
		})
	}
}
