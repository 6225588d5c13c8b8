//go:build unix

package runner

import (
	"archive/zip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"meshnode/node/suspend"
	. "meshnode/node/suspend/wasmtest"
	"meshnode/node/wasi"
)

// command builds a program of the suite, which knows of nothing here.
func command(tb testing.TB, name string, args ...string) Config {
	tb.Helper()
	out := filepath.Join(tb.TempDir(), name+".wasm")
	source := filepath.Join("../../e2e/apps/suite", name)
	var cmd *exec.Cmd
	switch name {
	case "goroutines":
		cmd = exec.Command("go", "build", "-ldflags=-s -w", "-o", out, "./"+source)
		cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0", "GOFLAGS=")
	case "virtual":
		if _, err := os.Stat("/usr/include/wasm32-wasi/c++/v1/vector"); err != nil {
			tb.Skip("the C++ program needs libc++ for wasm32 (Debian: libc++-dev-wasm32, libc++abi-dev-wasm32)")
		}
		cmd = exec.Command("clang++", "--target=wasm32-wasi", "-O2", "-std=c++17", "-fno-exceptions", "-o", out, filepath.Join(source, "virtual.cc"))
	default:
		clang, err := exec.LookPath("clang")
		if err != nil {
			tb.Skip("the program is built with clang:", err)
		}
		if _, err := os.Stat("/usr/include/wasm32-wasi/stdio.h"); err != nil {
			tb.Skip("the program needs wasi-libc (Debian: wasi-libc, libclang-rt-dev-wasm32)")
		}
		cmd = exec.Command(clang, "--target=wasm32-wasi", "-O2", "-o", out, filepath.Join(source, name+".c"))
	}
	if msg, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("build %s: %v\n%s", name, err, msg)
	}
	return Config{ModulePath: out, CacheDir: tb.TempDir(), MemoryLimit: 64 << 20, Args: append([]string{name}, args...)}
}

// A session is a command in whichever runner it is, and its output so far.
type session struct {
	tb    testing.TB
	cfg   Config
	r     *Runner
	acked uint64
	out   map[int]string
	ended *ExitError
}

func newSession(tb testing.TB, cfg Config) *session {
	tb.Helper()
	s := &session{tb: tb, cfg: cfg, r: live(tb, cfg), out: map[int]string{}}
	if !s.r.Command() {
		tb.Fatal("not a command")
	}
	if err := s.r.Run(context.Background()); err != nil {
		tb.Fatal(err)
	}
	return s
}

// take takes all the output there is.
func (s *session) take() {
	s.tb.Helper()
	for {
		t, err := s.r.Take(context.Background(), s.acked)
		if err != nil {
			s.tb.Fatal(err)
		}
		for _, o := range t.Output {
			s.out[o.Stream] += string(o.Data)
			s.acked += uint64(len(o.Data))
		}
		if s.ended = t.Ended; len(t.Output) == 0 || s.ended != nil {
			return
		}
	}
}

// until takes output until the condition holds.
func (s *session) until(cond func() bool) {
	s.tb.Helper()
	for s.take(); !cond(); s.take() {
		select {
		case <-s.r.Bell():
		case <-s.r.Done():
			s.tb.Fatal(s.r.Err())
		}
	}
}

func (s *session) end() *ExitError {
	s.tb.Helper()
	s.until(func() bool { return s.ended != nil })
	return s.ended
}

// move halts the command and continues it in another runner. It reports false
// if the command has ended.
func (s *session) move(cfg Config) bool {
	s.tb.Helper()
	ctx := context.Background()
	if err := s.r.Halt(ctx); err != nil {
		s.tb.Fatal(err)
	}
	st, err := s.r.State(ctx)
	if err != nil {
		if s.take(); s.ended != nil {
			return false
		}
		s.tb.Fatal(err)
	}
	to := begin(s.tb, cfg)
	if err := to.Clear(ctx); err != nil {
		s.tb.Fatal(err)
	}
	if err := to.Restore(ctx, st); err != nil {
		s.tb.Fatal(err)
	}
	copy(to.Region().Data, s.r.Region().Data[:int(st.Pages)*WasmPage])
	s.r.Close()
	s.r = to
	if err := to.Run(ctx); err != nil {
		s.tb.Fatal(err)
	}
	return true
}

// Programs that compute say the same wherever they are moved in between.
func TestCommandMoves(t *testing.T) {
	for _, name := range []string{"sha256", "mutual", "bytecode", "goroutines"} {
		t.Run(name, func(t *testing.T) {
			cfg := command(t, name)
			unmoved := newSession(t, cfg)
			if e := unmoved.end(); e.Kind != Exited || e.Code != 0 {
				t.Fatalf("unmoved: %v", e)
			}
			if unmoved.out[1] == "" {
				t.Fatal("it says nothing")
			}
			moved, moves := newSession(t, cfg), 0
			for moves < 6 && moved.move(Config{
				ModulePath: cfg.ModulePath, CacheDir: cfg.CacheDir, MemoryLimit: cfg.MemoryLimit, Args: cfg.Args,
				Interpreter: moves == 1 && name != "goroutines",
			}) {
				moves++
			}
			if e := moved.end(); e.Kind != Exited || e.Code != 0 {
				t.Fatalf("moved: %v", e)
			}
			if moved.out[1] != unmoved.out[1] || moved.out[2] != unmoved.out[2] {
				t.Errorf("after %d moves %q %q, want %q", moves, moved.out[1], moved.out[2], unmoved.out[1])
			}
			t.Logf("%d moves", moves)
		})
	}
}

// A program that waits for input is moved while it waits, and after it was fed.
func TestCommandWaits(t *testing.T) {
	ctx := context.Background()
	lines := []string{"hello\n", "sleep 3\n", "wor", "ld\n"}
	play := func(move bool) string {
		s := newSession(t, command(t, "waiter"))
		for _, l := range lines {
			if move && !s.move(s.cfg) {
				t.Fatal("it has ended")
			}
			if err := s.r.Push(ctx, []byte(l)); err != nil {
				t.Fatal(err)
			}
			if strings.HasSuffix(l, "\n") {
				before := len(s.out[1])
				s.until(func() bool { return len(s.out[1]) > before })
			}
			if move && !s.move(s.cfg) {
				t.Fatal("it has ended")
			}
		}
		if err := s.r.EndInput(ctx); err != nil {
			t.Fatal(err)
		}
		if err := s.r.Push(ctx, []byte("more")); !errors.Is(err, ErrInputEnded) {
			t.Errorf("pushed behind the end: %v", err)
		}
		if e := s.end(); e.Kind != Exited || e.Code != 0 {
			t.Error(e)
		}
		return s.out[1]
	}
	want := play(false)
	if got := play(true); got != want || !strings.HasSuffix(want, "\n3 lines\n") {
		t.Errorf("moved %q, want %q", got, want)
	}
}

// A halted program does nothing until it is run again; input waits for it.
func TestCommandHalted(t *testing.T) {
	ctx := context.Background()
	s := newSession(t, command(t, "waiter"))
	if _, err := s.r.State(ctx); err == nil {
		t.Error("the state of a running program")
	}
	if _, err := s.r.Call(ctx, Event{}); err == nil {
		t.Error("a program took an event")
	}
	for range 2 {
		if err := s.r.Halt(ctx); err != nil {
			t.Fatal(err)
		}
	}
	line := []byte(strings.Repeat("x", 200) + "\n")
	pushes := 0
	for ; ; pushes++ {
		if err := s.r.Push(ctx, line); errors.Is(err, ErrInputFull) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if s.take(); s.out[1] != "" {
		t.Errorf("halted, it said %q", s.out[1])
	}
	if err := s.r.Run(ctx); err != nil {
		t.Fatal(err)
	}
	<-s.r.Bell() // there is room
	s.until(func() bool { return strings.Count(s.out[1], "\n") == pushes })
	if err := s.r.Push(ctx, line); err != nil {
		t.Error(err)
	}
}

// ends is a program whose main does what it is told to in code.
func ends(tb testing.TB, code func(m *Module, exit uint32) []byte) Config {
	m := new(Module)
	exit := m.Import("wasi_snapshot_preview1", "proc_exit", Types(I32), nil)
	m.Mem(1, 0xffff)
	main := m.Func(nil, nil, nil, code(m, exit))
	m.Export("memory", Memory, 0)
	m.Export("_start", Function, main)
	return Config{ModulePath: moduleFile(tb, m.Bytes()), MemoryLimit: 1 << 20}
}

func TestCommandEnds(t *testing.T) {
	for _, test := range []struct {
		name string
		code func(m *Module, exit uint32) []byte
		kind ExitKind
		exit uint32
	}{
		{"returns", func(*Module, uint32) []byte { return nil }, Exited, 0},
		{"exits", func(_ *Module, exit uint32) []byte { return Cat(I32Const(7), Invoke(exit)) }, Exited, 7},
		{"traps", func(*Module, uint32) []byte { return Unreachable }, Trapped, 0},
		{"no memory", func(*Module, uint32) []byte {
			return Cat(Loop, I32Const(1), MemoryGrow, I32Const(-1), I32Eq, Op(0x45), BrIf(0), End, Unreachable)
		}, MemoryLimit, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSession(t, ends(t, test.code))
			if e := s.end(); e.Kind != test.kind || e.Code != test.exit || e.Reason == "" {
				t.Errorf("ended %v, code %d", e, e.Code)
			}
			if err := s.r.Halt(t.Context()); err != nil {
				t.Error(err)
			}
			if _, err := s.r.State(t.Context()); err == nil || s.r.Err() != nil {
				t.Errorf("the state of a program that has ended: %v, %v", err, s.r.Err())
			}
		})
	}
	// One that does nothing but compute can be killed, and halted.
	s := newSession(t, ends(t, func(*Module, uint32) []byte { return Cat(Loop, Br(0), End) }))
	if err := s.r.Halt(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.r.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.r.Kill()
	if _, err := s.r.Take(t.Context(), 0); exitOf(t, s.r, err).Kind != Killed {
		t.Error(err)
	}
}

func TestCommandRefused(t *testing.T) {
	m := new(Module)
	log := m.Import("meshnode_v1", "log", Types(I32, I32, I32), nil)
	m.Mem(1, 0)
	m.Export("_start", Function, m.Func(nil, nil, nil, I32Const(0), I32Const(0), I32Const(0), Invoke(log)))
	for _, test := range []struct {
		module  []byte
		kind    Kind
		feature string
	}{
		{m.Bytes(), ByExports, "import meshnode_v1.log"},
		{m.Bytes(), EventWorker, "command worker"},
		{counter(), CommandWorker, "no _start"},
	} {
		_, err := Start(t.Context(), Config{ModulePath: moduleFile(t, test.module), Kind: test.kind, MemoryLimit: 8 << 20})
		var refused *suspend.RefusedError
		if !errors.As(err, &refused) || refused.Feature != test.feature || refused.Hint == "" {
			t.Errorf("kind %d: %v, want %s", test.kind, err, test.feature)
		}
	}
}

// A program that never waits leaves garbage behind, which is collected all the
// same, and it goes on.
func TestCommandGarbage(t *testing.T) {
	m := new(Module)
	write := m.Import("wasi_snapshot_preview1", "fd_write", Types(I32, I32, I32, I32), Types(I32))
	m.Mem(2, 2)
	m.Data(8, "\x00\x01\x00\x00\x00\x00\x01\x00") // vector: 256, 64 KiB
	const writes = 8000
	main := m.Func(nil, nil, Types(I32),
		Loop, I32Const(1), I32Const(8), I32Const(1), I32Const(0), Invoke(write), Drop,
		LocalGet(0), I32Const(1), I32Add, Op(0x22, 0), I32Const(writes), Op(0x49), BrIf(0), End)
	m.Export("memory", Memory, 0)
	m.Export("_start", Function, main)
	s := newSession(t, Config{ModulePath: moduleFile(t, m.Bytes()), MemoryLimit: 1 << 20})
	total := 0
	for s.ended == nil {
		taken, err := s.r.Take(t.Context(), uint64(total))
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range taken.Output {
			total += len(o.Data)
		}
		if s.ended = taken.Ended; len(taken.Output) == 0 && s.ended == nil {
			<-s.r.Bell()
		}
	}
	if s.ended.Kind != Exited || total != writes<<16 {
		t.Errorf("%d bytes of %d, ended %v", total, writes<<16, s.ended)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.r.Region().PID))
	if err != nil {
		t.Skip("how much memory it took cannot be had:", err)
	}
	for line := range strings.Lines(string(status)) {
		var kib int
		if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &kib); n == 1 {
			t.Logf("%d MiB at the most", kib>>10)
			if kib > 256<<10 {
				t.Errorf("it took %d MiB to write %d MiB", kib>>10, total>>20)
			}
		}
	}
}

// States that no runner has said are refused, and none does any harm.
func TestCommandRestoresHostile(t *testing.T) {
	ctx := t.Context()
	cfg := command(t, "mutual", "1000", "10000")
	s := newSession(t, cfg)
	if err := s.r.Halt(ctx); err != nil {
		t.Fatal(err)
	}
	good, err := s.r.State(ctx)
	if err != nil {
		t.Fatal(err)
	}
	streams := good.WASI.Streams
	for name, spoil := range map[string]func(*State){
		"no program":  func(s *State) { s.Program = nil },
		"a cut":       func(s *State) { s.Program = s.Program[:len(s.Program)/2] },
		"no streams":  func(s *State) { s.WASI.Streams = nil },
		"timers":      func(s *State) { s.Armed = []ArmedTimer{{ID: 1}} },
		"globals":     func(s *State) { s.Globals = []Global{{}} },
		"little room": func(s *State) { s.Pages = 0 },
		"other place": func(s *State) { s.Program = mutate(t, s.Program, func(p *suspend.State) { p.Entry = "main" }) },
		"nowhere":     func(s *State) { s.Program = mutate(t, s.Program, func(p *suspend.State) { p.Frames = nil }) },
		"other frames": func(s *State) {
			s.Program = mutate(t, s.Program, func(p *suspend.State) { p.Frames[0].Point = 1 << 30 })
		},
	} {
		bad := good
		bad.WASI.Streams = streams
		spoil(&bad)
		r := begin(t, cfg)
		if err := r.Clear(ctx); err != nil {
			t.Fatal(err)
		}
		if err := r.Restore(ctx, bad); err == nil || r.Err() != nil {
			t.Errorf("%s: %v, %v", name, err, r.Err())
		}
		if err := r.Run(ctx); err == nil {
			t.Errorf("%s: it runs", name)
		}
		r.Close()
	}
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(uint64(seed), 0))
	for range 20 {
		bad := good
		bad.Program = slices.Clone(good.Program)
		bad.Program[rng.IntN(len(bad.Program))] ^= byte(1 << rng.IntN(8))
		r := begin(t, cfg)
		if err := r.Clear(ctx); err != nil {
			t.Fatal(err)
		}
		if err := r.Restore(ctx, bad); err == nil {
			// A value that is as good as another: it may compute nonsense, trap
			// or go on for ever, and can be halted.
			err = errors.Join(r.Run(ctx), r.Halt(ctx))
			if err != nil {
				t.Error(err)
			}
		}
		if r.Err() != nil {
			t.Errorf("the runner ended: %v", r.Err())
		}
		r.Close()
	}
}

func mutate(t *testing.T, b []byte, f func(*suspend.State)) []byte {
	t.Helper()
	s, err := suspend.ParseState(b)
	if err != nil {
		t.Fatal(err)
	}
	f(s)
	if b, err = s.AppendBinary(nil); err != nil {
		t.Fatal(err)
	}
	return b
}

// archive makes what a new command's only directory holds.
func archive(tb testing.TB, files map[string]string) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "files.zip")
	f, err := os.Create(path)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	z := zip.NewWriter(f)
	for name, content := range files {
		w, err := z.Create("0/" + name)
		if err != nil {
			tb.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			tb.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		tb.Fatal(err)
	}
	return path
}

// A program's files are there after a move: what was brought ahead, what the
// program waits for, and, if nobody has it, an error of the read.
func TestCommandFilesMove(t *testing.T) {
	ctx := context.Background()
	cfg := command(t, "notes")
	cfg.FilesLimit = 8 << 20
	to := cfg
	cfg.Dirs = []Dir{{Name: "/data"}}
	book := strings.Repeat("a line of the book\n", 20_000)
	cfg.FilesPath = archive(t, map[string]string{"book": book})
	s := newSession(t, cfg)
	say := func(line, want string) {
		t.Helper()
		if err := s.r.Push(ctx, []byte(line+"\n")); err != nil {
			t.Fatal(err)
		}
		had := len(s.out[1])
		s.until(func() bool { return strings.HasSuffix(s.out[1][had:], "\n") })
		if got := s.out[1][had:]; got != want+"\n" {
			t.Fatalf("%s: got %q, want %q", line, got, want)
		}
	}
	size := func(n int) string { return fmt.Sprintf("%d bytes", n) }
	say("size book", size(len(book)))
	say("append notes first", "ok")

	// What it has can be looked at while it runs.
	if l, err := s.r.Look(ctx, "/data", ""); err != nil || l.Wrong != "" || len(l.Entries) != 2 || l.Entries[1].Name != "notes" || l.Entries[1].Size != 6 {
		t.Errorf("looked at %+v, %v", l, err)
	}
	if l, err := s.r.ReadFile(ctx, "/data/book", 19*19_999); err != nil || string(l.Data) != "a line of the book\n" {
		t.Errorf("read %+v, %v", l, err)
	}
	if l, err := s.r.ReadFile(ctx, "/data/none", 0); err != nil || !l.Absent || l.Wrong == "" {
		t.Errorf("read %+v, %v", l, err)
	}

	// bring takes blocks from one runner to another.
	bring := func(from, to *Runner, names []wasi.Hash) {
		t.Helper()
		data, err := from.Blocks(ctx, names)
		if err != nil {
			t.Fatal(err)
		}
		if err := to.PutBlocks(ctx, slices.DeleteFunc(data, func(b []byte) bool { return len(b) == 0 })); err != nil {
			t.Fatal(err)
		}
	}
	halted := func() State {
		t.Helper()
		if err := s.r.Halt(ctx); err != nil {
			t.Fatal(err)
		}
		st, err := s.r.State(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	restored := func(st State, ahead func(*Runner)) (from *Runner) {
		t.Helper()
		r := begin(t, to)
		if err := r.Clear(ctx); err != nil {
			t.Fatal(err)
		}
		if ahead != nil {
			ahead(r)
		}
		if err := r.Restore(ctx, st); err != nil {
			t.Fatal(err)
		}
		copy(r.Region().Data, s.r.Region().Data[:int(st.Pages)*WasmPage])
		from, s.r = s.r, r
		if err := r.Run(ctx); err != nil {
			t.Fatal(err)
		}
		return from
	}

	// All of it ahead, while the program runs.
	from := restored(halted(), func(r *Runner) {
		var at wasi.Cursor
		for {
			names, next, err := s.r.Stored(ctx, at)
			if err != nil {
				t.Fatal(err)
			}
			if len(names) == 0 {
				break
			}
			bring(s.r, r, names)
			at = next
		}
	})
	from.Close()
	if names, all, err := s.r.Missing(ctx); err != nil || all != 0 || len(names) != 0 {
		t.Fatalf("%d of %d are missing, %v", len(names), all, err)
	}
	say("append notes second", "ok")
	say("cat notes", "first|second|")

	// None of it ahead: the program waits for what it reads, and can be moved
	// on meanwhile.
	from = restored(halted(), nil)
	if err := s.r.Push(ctx, []byte("sum book\n")); err != nil {
		t.Fatal(err)
	}
	for first := true; ; {
		names, all, err := s.r.Missing(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if all == 0 {
			break
		}
		bring(from, s.r, names[:1]) // what it waits for, if it does
		if first {
			// In the middle of it, on to where nothing is either.
			first = false
			st := halted()
			middle := restored(st, nil)
			middle.Close()
		}
	}
	sum := 0
	for i := range len(book) {
		sum += int(book[i])
	}
	s.until(func() bool { return strings.HasSuffix(s.out[1], fmt.Sprintf("sum %d\n", sum)) })
	from.Close()
	say("cat notes", "first|second|")

	// Nobody has it: that is an error of the read, and the program goes on.
	st := halted()
	from = restored(st, nil)
	from.Close()
	if err := s.r.Push(ctx, []byte("sum book\n")); err != nil {
		t.Fatal(err)
	}
	for {
		names, all, err := s.r.Missing(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if all == 0 {
			break
		}
		if err := s.r.GiveUp(ctx, names); err != nil {
			t.Fatal(err)
		}
	}
	s.until(func() bool { return strings.HasSuffix(s.out[1], "I/O error\n") })
	say("append other first", "ok")
	say("cat other", "first|")
}

func TestCommandFilesBounded(t *testing.T) {
	cfg := command(t, "notes")
	cfg.FilesLimit, cfg.Dirs = 1<<20, []Dir{{Name: "/data"}}
	cfg.FilesPath = archive(t, map[string]string{"book": strings.Repeat("x", 2<<20)})
	if _, err := Start(context.Background(), cfg); err == nil || !strings.Contains(err.Error(), "more than 1048576 bytes of files") {
		t.Errorf("started with more than it may have: %v", err)
	}
	if err := os.WriteFile(cfg.FilesPath, []byte("no archive"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(context.Background(), cfg); err == nil || !strings.Contains(err.Error(), "archive") {
		t.Errorf("started with what is no archive: %v", err)
	}
}
