//go:build unix

package runner

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"meshnode/node/suspend"
	. "meshnode/node/suspend/wasmtest"
)

// The test binary plays the node's part, the runner's, and two more.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case ChildArg:
			os.Exit(Main())
		default:
			if f := otherMains[os.Args[1]]; f != nil {
				os.Exit(f())
			}
		}
	}
	goleak.VerifyTestMain(m)
}

// otherMains are what else the test binary can be, on some systems.
var otherMains = map[string]func() int{}

// logs collects a worker's log.
type logs struct {
	mu    sync.Mutex
	lines []Log
}

func (l *logs) add(line Log) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, line)
}

func (l *logs) all() []Log {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]Log(nil), l.lines...)
}

// begin starts a runner that ends with the test.
func begin(tb testing.TB, cfg Config) *Runner {
	tb.Helper()
	if cfg.ModulePath == "" {
		cfg.ModulePath = moduleFile(tb, counter())
	}
	if cfg.MemoryLimit == 0 {
		cfg.MemoryLimit = 8 << 20
	}
	r, err := Start(context.Background(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := r.Close(); err != nil {
			tb.Error(err)
		}
	})
	return r
}

// live is begin and Init.
func live(tb testing.TB, cfg Config) *Runner {
	tb.Helper()
	r := begin(tb, cfg)
	if err := r.Init(context.Background()); err != nil {
		tb.Fatal(err)
	}
	return r
}

func call(tb testing.TB, r *Runner, id uint64, payload string) Effects {
	tb.Helper()
	e, err := r.Call(context.Background(), Event{Kind: Call, ID: id, Payload: []byte(payload)})
	if err != nil {
		tb.Fatalf("event %d: %v", id, err)
	}
	return e
}

// counted is what doCount replies with.
type counted struct {
	Events  uint64
	Started int32
	Single  float32
	Double  float64
	Near    uint64
	Far     uint64
	Pages   uint32
	Data    string
}

func count(tb testing.TB, r *Runner) counted {
	tb.Helper()
	e := call(tb, r, doCount, "")
	if !e.Replied || len(e.Reply) != replySize {
		tb.Fatalf("reply of %d bytes", len(e.Reply))
	}
	b, le := e.Reply, binary.LittleEndian
	return counted{
		Events: le.Uint64(b), Started: int32(le.Uint32(b[8:])), Single: math.Float32frombits(le.Uint32(b[12:])),
		Double: math.Float64frombits(le.Uint64(b[16:])), Near: le.Uint64(b[24:]), Far: le.Uint64(b[32:]),
		Pages: le.Uint32(b[40:]), Data: string(b[48:53]),
	}
}

// exitOf returns the error as an *ExitError, which must also be what Err says.
func exitOf(tb testing.TB, r *Runner, err error) *ExitError {
	tb.Helper()
	var e *ExitError
	if !errors.As(err, &e) {
		tb.Fatalf("got %v, want an ExitError", err)
	}
	<-r.Done()
	if r.Err() != e {
		tb.Fatalf("Err says %v, the call %v", r.Err(), e)
	}
	return e
}

// engines runs a test with the compiler, where there is one, and interpreted.
func engines(t *testing.T, test func(t *testing.T, cfg Config)) {
	t.Run("compiler", func(t *testing.T) {
		if !CompilerSupported() {
			t.Skip("wazero does not compile for this machine")
		}
		test(t, Config{})
	})
	t.Run("interpreter", func(t *testing.T) { test(t, Config{Interpreter: true}) })
}

func TestCount(t *testing.T) {
	engines(t, func(t *testing.T, cfg Config) {
		r := live(t, cfg)
		if r.Compiled() == cfg.Interpreter {
			t.Errorf("compiled: %v", r.Compiled())
		}
		if got := r.Pages(); got != 2 {
			t.Errorf("begins with %d pages, want 2", got)
		}
		want := counted{Events: 1, Started: 105, Single: 0.75, Double: 1.25, Near: 1, Far: 3, Pages: 2, Data: "hello"}
		if got := count(t, r); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
		want = counted{Events: 2, Started: 105, Single: 1, Double: 2.75, Near: 2, Far: 6, Pages: 2, Data: "hello"}
		if got := count(t, r); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
		if got := call(t, r, 1234, "").Status; got != 99 {
			t.Errorf("status %d, want 99", got)
		}
		// The node sees the same memory.
		if got := binary.LittleEndian.Uint64(r.Region().Data[1024:]); got != 2 {
			t.Errorf("the node reads %d, want 2", got)
		}
	})
}

// move continues a worker in another runner, as the node does.
func move(t *testing.T, from *Runner, cfg Config) (*Runner, State) {
	t.Helper()
	ctx := context.Background()
	s, err := from.State(ctx)
	if err != nil {
		t.Fatal(err)
	}
	to := begin(t, cfg)
	if err := to.Clear(ctx); err != nil {
		t.Fatal(err)
	}
	if err := to.Restore(ctx, s); err != nil {
		t.Fatal(err)
	}
	copy(to.Region().Data, from.Region().Data[:int(s.Pages)*WasmPage])
	return to, s
}

func TestMove(t *testing.T) {
	engines(t, func(t *testing.T, cfg Config) {
		a := live(t, cfg)
		count(t, a)
		call(t, a, doClose, "")
		call(t, a, doAct, "")
		if got := call(t, a, doFill, "").Status; got != 8<<20/WasmPage {
			t.Fatalf("grew to %d pages, want %d", got, 8<<20/WasmPage)
		}
		// Interpreted here, compiled there, and the other way round.
		cfg.Interpreter = !cfg.Interpreter
		b, s := move(t, a, cfg)
		if want := []ArmedTimer{{ID: 3}}; len(s.Armed) != 1 || s.Armed[0] != want[0] {
			t.Errorf("armed %v, want %v", s.Armed, want)
		}
		// Both go on from the same state.
		got, want := count(t, b), count(t, a)
		if got != want {
			t.Errorf("moved: %+v, unmoved: %+v", got, want)
		}
		if got.Events != 2 || got.Started != 105 || got.Pages != 128 {
			t.Errorf("got %+v", got)
		}
		// Descriptor 1 is still closed: closing it again is EBADF.
		if got := call(t, b, doClose, "").Status; got != 8 {
			t.Errorf("fd_close after the move: %d, want 8", got)
		}
		sa, err := a.State(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		sb, err := b.State(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if sa.Clock, sb.Clock = 0, 0; fmt.Sprint(sa) != fmt.Sprint(sb) {
			t.Errorf("moved: %+v, unmoved: %+v", sb, sa)
		}
		if !bytes.Equal(a.Region().Data, b.Region().Data) {
			t.Error("memory differs")
		}
	})
}

// The clock goes on from what it read, however long the worker was nowhere.
func TestClock(t *testing.T) {
	ctx := context.Background()
	read := func(r *Runner) uint64 {
		return binary.LittleEndian.Uint64(call(t, r, doClock, "").Reply)
	}
	a := live(t, Config{})
	first := read(a)
	if second := read(a); second < first {
		t.Errorf("clock ran from %d to %d", first, second)
	}
	s, err := a.State(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// As if it had run for years on a node whose clock is far ahead.
	s.Clock += int64(3 * 365 * 24 * time.Hour)
	b := begin(t, Config{})
	if err := b.Clear(ctx); err != nil {
		t.Fatal(err)
	}
	if err := b.Restore(ctx, s); err != nil {
		t.Fatal(err)
	}
	copy(b.Region().Data, a.Region().Data)
	if got := read(b); got < uint64(s.Clock) || got > uint64(s.Clock)+uint64(time.Hour) {
		t.Errorf("clock reads %d after a move at %d", got, s.Clock)
	}
}

func TestEffects(t *testing.T) {
	r := live(t, Config{})
	e := call(t, r, doAct, "")
	if e.Status != -3 || !e.Replied || string(e.Reply) != "hello" {
		t.Errorf("status %d, reply %q", e.Status, e.Reply)
	}
	if len(e.Sends) != 1 || e.Sends[0].To != "other-worker" || string(e.Sends[0].Payload) != "hello" {
		t.Errorf("sends %+v", e.Sends)
	}
	want := []TimerOp{{ID: 3, After: 5}, {ID: 9, Cancel: true}}
	if fmt.Sprint(e.Timers) != fmt.Sprint(want) {
		t.Errorf("timers %+v, want %+v", e.Timers, want)
	}
	if e.Pages != 2 || e.Duration <= 0 {
		t.Errorf("%d pages, %v", e.Pages, e.Duration)
	}
	// What is not a call has no reply.
	e, err := r.Call(context.Background(), Event{Kind: Send, ID: doAct})
	if err != nil || e.Replied {
		t.Errorf("reply to a message: %v %v", e.Replied, err)
	}
}

func TestTimerLimit(t *testing.T) {
	ctx := context.Background()
	r := live(t, Config{})
	if e := call(t, r, doTimers, ""); e.Status != MaxTimers || len(e.Timers) != MaxTimers {
		t.Fatalf("armed %d, %d changes", e.Status, len(e.Timers))
	}
	// Arming one anew is no new timer.
	if e := call(t, r, doTimers, ""); e.Status != MaxTimers {
		t.Errorf("armed %d again", e.Status)
	}
	// One that has fired leaves room.
	if _, err := r.Call(ctx, Event{Kind: Timer, ID: 1000}); err != nil {
		t.Fatal(err)
	}
	s, err := r.State(ctx)
	if err != nil || len(s.Armed) != MaxTimers-1 {
		t.Errorf("%d armed, %v", len(s.Armed), err)
	}
}

func TestPayloads(t *testing.T) {
	r := live(t, Config{})
	for _, size := range []int{0, 1, 23, 4096, 65_535, 65_536, 300_000, MaxPayload} {
		payload := strings.Repeat("0123456789abcde\n", size/16+1)[:size]
		e := call(t, r, doEcho, payload)
		if string(e.Reply) != payload || !e.Replied || e.Status != 0 {
			t.Errorf("echo of %d bytes: %d bytes, status %d", size, len(e.Reply), e.Status)
		}
	}
	_, err := r.Call(context.Background(), Event{Payload: make([]byte, MaxPayload+1)})
	if !errors.Is(err, ErrPayloadTooLarge) {
		t.Errorf("got %v, want ErrPayloadTooLarge", err)
	}
	count(t, r)
}

func TestTrap(t *testing.T) {
	engines(t, func(t *testing.T, cfg Config) {
		r, other := live(t, cfg), live(t, cfg)
		_, err := r.Call(context.Background(), Event{ID: doTrap})
		e := exitOf(t, r, err)
		if e.Kind != Trapped || e.Reason != "unreachable" || !strings.Contains(e.Stack, "(i32,i64,i32) i32") {
			t.Errorf("got %+v", e)
		}
		if _, err := r.Call(context.Background(), Event{ID: doCount}); err != error(e) {
			t.Errorf("event after a trap: %v", err)
		}
		// Its memory can still be looked at, and nobody else noticed.
		if got := binary.LittleEndian.Uint32(r.Region().Data[1024:]); got != math.MaxUint32 {
			t.Errorf("memory reads %#x", got)
		}
		count(t, other)
	})
}

func TestStackOverflow(t *testing.T) {
	engines(t, func(t *testing.T, cfg Config) {
		r := live(t, cfg)
		_, err := r.Call(context.Background(), Event{ID: doDeep})
		if e := exitOf(t, r, err); e.Kind != Trapped || !strings.Contains(e.Reason, "stack overflow") || len(e.Stack) > maxReason {
			t.Errorf("got %v, stack of %d bytes", e, len(e.Stack))
		}
	})
}

func TestDeadline(t *testing.T) {
	engines(t, func(t *testing.T, cfg Config) {
		for _, id := range []uint64{doLoop, doSleep, doSpin} {
			r := live(t, cfg)
			ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
			_, err := r.Call(ctx, Event{ID: id})
			cancel()
			if e := exitOf(t, r, err); e.Kind != Killed || !errors.Is(err, ErrEventTimeout) {
				t.Errorf("event %d: %v", id, e)
			}
		}
	})
}

func TestCancel(t *testing.T) {
	lines := make(chan Log, 1)
	r := live(t, Config{OnLog: func(l Log) {
		select {
		case lines <- l:
		default:
		}
	}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		_, err := r.Call(ctx, Event{ID: doSpin})
		done <- err
	}()
	<-lines // it runs

	// Waiting for one's turn can be given up without harm.
	brief, stop := context.WithCancel(context.Background())
	stop()
	if _, err := r.Call(brief, Event{ID: doCount}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	select {
	case <-r.Done():
		t.Fatal("the worker was stopped by a caller that waited")
	default:
	}

	cancel()
	err := <-done
	if e := exitOf(t, r, err); e.Kind != Killed || !errors.Is(err, ErrCancelled) {
		t.Errorf("got %v", e)
	}
}

func TestKill(t *testing.T) {
	lines := make(chan Log, 1)
	r := live(t, Config{OnLog: func(l Log) {
		select {
		case lines <- l:
		default:
		}
	}})
	done := make(chan error, 1)
	go func() {
		_, err := r.Call(context.Background(), Event{ID: doSpin})
		done <- err
	}()
	<-lines
	if r.Err() != nil {
		t.Errorf("Err is %v while it runs", r.Err())
	}
	r.Kill()
	if e := exitOf(t, r, <-done); e.Kind != Killed {
		t.Errorf("got %v", e)
	}
}

func TestMemoryLimit(t *testing.T) {
	engines(t, func(t *testing.T, cfg Config) {
		r := live(t, cfg)
		// A worker that is refused memory and copes is well.
		if got := call(t, r, doFill, "").Status; got != 128 {
			t.Errorf("grew to %d pages, want 128", got)
		}
		count(t, r)
		_, err := r.Call(context.Background(), Event{ID: doFillTop})
		if e := exitOf(t, r, err); e.Kind != MemoryLimit {
			t.Errorf("got %v", e)
		}
		// Too little to begin with.
		cfg.MemoryLimit = WasmPage
		cfg.ModulePath = moduleFile(t, counter())
		_, err = Start(context.Background(), cfg)
		var e *ExitError
		if !errors.As(err, &e) || e.Kind != MemoryLimit {
			t.Errorf("got %v", err)
		}
	})
}

func TestProcExit(t *testing.T) {
	engines(t, func(t *testing.T, cfg Config) {
		r := live(t, cfg)
		_, err := r.Call(context.Background(), Event{ID: doExit})
		if e := exitOf(t, r, err); e.Kind != Exited || e.Code != 7 {
			t.Errorf("got %+v", e)
		}
	})
}

func TestLogs(t *testing.T) {
	var l logs
	r := live(t, Config{OnLog: l.add})
	if got := call(t, r, doSpeak, "").Status; got != 0 {
		t.Errorf("status %d", got)
	}
	want := []Log{
		{slog.LevelWarn, "guest", "hello"},
		{slog.LevelInfo, "stdout", "out 1"}, {slog.LevelInfo, "stdout", "out 2"},
		{slog.LevelInfo, "stderr", "out 1"}, {slog.LevelInfo, "stderr", "out 2"},
		{slog.LevelInfo, "stdout", "rest"}, {slog.LevelInfo, "stderr", "rest"},
	}
	if got := l.all(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// Restore must leave every page of memory as it is: they may not be there yet.
func TestRestoreTouchesNothing(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs a file system that counts the pages of a memory file")
	}
	ctx := context.Background()
	resident := func(r *Runner) int64 {
		var st unix.Stat_t
		if err := unix.Fstat(int(r.memory.file.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks * 512
	}
	a := live(t, Config{})
	call(t, a, doFill, "")
	s, err := a.State(ctx)
	if err != nil {
		t.Fatal(err)
	}
	b := begin(t, Config{})
	if resident(b) == 0 {
		t.Error("data segments were not written")
	}
	if err := b.Clear(ctx); err != nil {
		t.Fatal(err)
	}
	if got := resident(b); got != 0 {
		t.Errorf("%d bytes resident after Clear", got)
	}
	if err := b.Restore(ctx, s); err != nil {
		t.Fatal(err)
	}
	if got := resident(b); got != 0 {
		t.Errorf("%d bytes resident after Restore", got)
	}
}

func TestRestoreRefuses(t *testing.T) {
	ctx := context.Background()
	a := live(t, Config{})
	good, err := a.State(ctx)
	if err != nil {
		t.Fatal(err)
	}
	b := begin(t, Config{})
	if err := b.Restore(ctx, good); err == nil {
		t.Error("restored without Clear")
	}
	if _, err := b.Call(ctx, Event{ID: doCount}); err == nil {
		t.Error("event before Init")
	}
	if _, err := b.State(ctx); err == nil {
		t.Error("state before Init")
	}
	if err := b.Clear(ctx); err != nil {
		t.Fatal(err)
	}
	if err := b.Init(ctx); err == nil {
		t.Error("Init after Clear")
	}
	bad := map[string]func(*State){
		"too few pages":        func(s *State) { s.Pages = 1 },
		"pages over limit":     func(s *State) { s.Pages = 1000 },
		"global missing":       func(s *State) { s.Globals = s.Globals[1:] },
		"global of wrong kind": func(s *State) { s.Globals[0].Type = I32 },
		"other global":         func(s *State) { s.Globals[1].Index = 2 },
		"i32 over 32 bits":     func(s *State) { s.Globals[1].Value = 1 << 40 },
		"clock before zero":    func(s *State) { s.Clock = -1 },
		"descriptor":           func(s *State) { s.WASI.FDs = slices.Clone(s.WASI.FDs); s.WASI.FDs[0].Stream = 9 },
		"timer twice":          func(s *State) { s.Armed = []ArmedTimer{{ID: 1}, {ID: 1}} },
		"too many timers":      func(s *State) { s.Armed = make([]ArmedTimer, MaxTimers+1) },
	}
	for name, spoil := range bad {
		s := good
		s.Globals = append([]Global(nil), good.Globals...)
		spoil(&s)
		if err := b.Restore(ctx, s); err == nil {
			t.Errorf("%s: restored", name)
		}
	}
	if err := b.Restore(ctx, good); err != nil {
		t.Errorf("good state after bad ones: %v", err)
	}
	if err := b.Restore(ctx, good); err == nil {
		t.Error("restored twice")
	}
	if err := a.Init(ctx); err == nil {
		t.Error("initialised twice")
	}
	if err := a.Clear(ctx); err == nil {
		t.Error("cleared while live")
	}
	count(t, a)
}

func TestRefusedModules(t *testing.T) {
	external := new(Module)
	external.Mem(1, 0)
	external.TabRaw(Externref, 0, 1)
	external.Export("meshnode_event", Function, external.Func(Types(I32, I64, I32), Types(I32), nil, I32Const(0)))
	invalid := new(Module)
	invalid.Mem(1, 0)
	invalid.Export("meshnode_event", Function, invalid.Func(Types(I32, I64, I32), Types(I32), nil, I64Const(0)))
	for name, module := range map[string][]byte{
		"externref table": external.Bytes(), "invalid module": invalid.Bytes(),
		"malformed module": []byte("nothing"),
	} {
		_, err := Start(context.Background(), Config{ModulePath: moduleFile(t, module), MemoryLimit: 1 << 20})
		var refused *suspend.RefusedError
		if !errors.As(err, &refused) || refused.Feature != name || refused.Why == "" || refused.Hint == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, cfg := range map[string]Config{
		"no such module": {ModulePath: filepath.Join(t.TempDir(), "none.wasm")},
		"no such binary": {ModulePath: moduleFile(t, counter()), Exe: "/nonexistent/binary"},
		"not a runner":   {ModulePath: moduleFile(t, counter()), Exe: "/bin/true"},
		"no memory":      {ModulePath: moduleFile(t, counter()), MemoryLimit: 1000},
		"too much":       {ModulePath: moduleFile(t, counter()), MemoryLimit: 5 << 30},
		"bad argument":   {ModulePath: moduleFile(t, counter()), Args: []string{"a\x00b"}},
	} {
		if r, err := Start(context.Background(), cfg); err == nil {
			r.Close()
			t.Errorf("%s: started", name)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Start(ctx, Config{ModulePath: moduleFile(t, counter())}); !errors.Is(err, context.Canceled) {
		t.Errorf("start with a context that is done: %v", err)
	}
}

// A worker whose process dies by itself is told apart from one that was killed.
func TestCrash(t *testing.T) {
	r := live(t, Config{})
	if err := unix.Kill(r.Region().PID, unix.SIGSEGV); err != nil {
		t.Fatal(err)
	}
	<-r.Done()
	_, err := r.Call(context.Background(), Event{ID: doCount})
	if e := exitOf(t, r, err); e.Kind != Crashed || len(e.Stderr) == 0 {
		t.Errorf("got %+v", e)
	}
}

// A worker's process that is no longer what it should be must not hurt the node.
func TestHostileChild(t *testing.T) {
	frame := func(typ byte, body any) []byte {
		b, err := frameOf(typ, body)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, answer := range map[string][]byte{
		"length over the limit": {0xff, 0xff, 0xff, 0xff, msgEffects},
		"no length":             {0, 0, 0, 0, msgEffects},
		"wrong type":            frame(msgStateIs, &State{}),
		"unknown type":          frame(0x42, nil),
		"not CBOR":              {0, 0, 0, 3, msgEffects, 0xff, 0xff},
		"two items":             append(frame(msgEffects, &Effects{})[:0:0], 0, 0, 0, 3, msgEffects, 0xa0, 0xa0),
		"reply over the limit":  frame(msgEffects, &Effects{Reply: make([]byte, MaxPayload+1), Replied: true}),
		"reply that is none":    frame(msgEffects, &Effects{Reply: []byte("x")}),
		"too many messages":     frame(msgEffects, &Effects{Sends: make([]Message, MaxSends+1)}),
		"message to nobody":     frame(msgEffects, &Effects{Sends: make([]Message, 1)}),
		"timers out of order":   frame(msgEffects, &Effects{Timers: []TimerOp{{ID: 2}, {ID: 1}}}),
		"timer in the past":     frame(msgEffects, &Effects{Timers: []TimerOp{{ID: 2, After: -1}}}),
		"read of a number":      frame(msgRead, &ack{}),
		"a reading of its own":  frame(msgReading, &reading{}),
		"announces an array":    append([]byte{0, 0, 0, 8, msgEffects, 0xa1, 0x04}, 0x9a, 0x7f, 0xff, 0xff, 0xff),
	} {
		t.Run(name, func(t *testing.T) {
			r := live(t, Config{})
			// Speak for the child.
			ours, theirs, err := socketPair()
			if err != nil {
				t.Fatal(err)
			}
			defer theirs.Close()
			old := r.link
			r.link = newLink(ours, parentKeep)
			written := make(chan error, 1)
			go func() {
				_, err := theirs.Write(answer)
				written <- err
			}()
			_, err = r.Call(context.Background(), Event{ID: doCount})
			if e := exitOf(t, r, err); e.Kind != Crashed {
				t.Errorf("got %v", e)
			}
			if err := <-written; err != nil {
				t.Fatal(err)
			}
			unix.Close(old.fd)
		})
	}
}

// An event reads interfaces of the host: what the node says, or why it says
// nothing, and the wait is no part of the handler's time.
func TestRead(t *testing.T) {
	var asked []string
	var data []byte
	var failure error
	r := live(t, Config{})
	if got := call(t, r, doRead, "").Status; got != -resUndeclared {
		t.Errorf("a worker without a reader read %d", got)
	}
	r = live(t, Config{})
	r.SetReader(func(ctx context.Context, name string) ([]byte, error) {
		asked = append(asked, name)
		return data, failure
	})
	check := func(what string, want int32, reply string) {
		t.Helper()
		e := call(t, r, doRead, "")
		if e.Status != want || !strings.HasPrefix(string(e.Reply), reply+"\x00") {
			t.Errorf("%s: result %d, reply %q, want %d and %q", what, e.Status, e.Reply, want, reply)
		}
	}
	data = []byte("52.5 13.4")
	check("a reading", 9, "52.5 13.4")
	data = make([]byte, 65)
	check("more than there is room for", -resTooLarge, "52.5 13.4")
	data = make([]byte, MaxReading+1)
	check("more than there may be", -resTooLarge, "52.5 13.4")
	data, failure = nil, fmt.Errorf("no: %w", ErrUndeclared)
	check("not given", -resUndeclared, "52.5 13.4")
	failure = errors.New("out of reach")
	check("out of reach", -resNoReading, "52.5 13.4")
	failure = nil
	check("nothing", 0, "52.5 13.4")
	n := len(asked)
	if got := call(t, r, doReadAway, "").Status; got != -resBadPointer || len(asked) != n {
		t.Errorf("result %d for a buffer outside of memory, %d reads", got, len(asked)-n)
	}
	for _, name := range asked {
		if name != "hello" {
			t.Errorf("asked for %q", name)
		}
	}
	if got := call(t, r, doCount, "").Reply; len(got) != replySize {
		t.Errorf("the worker is not what it was: %d bytes", len(got))
	}
}

// A read that is waited for ends with its event.
func TestReadEnds(t *testing.T) {
	r := live(t, Config{})
	reading := make(chan struct{})
	r.SetReader(func(ctx context.Context, name string) ([]byte, error) {
		close(reading)
		<-ctx.Done()
		return nil, ctx.Err()
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-reading
		cancel()
	}()
	_, err := r.Call(ctx, Event{ID: doRead})
	if e := exitOf(t, r, err); !errors.Is(e, ErrCancelled) {
		t.Errorf("got %v", e)
	}
}

// What the child inherits and what it may do.
func TestIsolation(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc")
	}
	r := live(t, Config{})
	proc := fmt.Sprintf("/proc/%d/", r.Region().PID)
	fds, err := os.ReadDir(proc + "fd")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"0": "/dev/null", "1": "/dev/null", "2": "pipe:", "3": "socket:", "4": "/memfd:"}
	for _, fd := range fds {
		to, err := os.Readlink(proc + "fd/" + fd.Name())
		if err != nil {
			t.Fatal(err)
		}
		if w, ok := want[fd.Name()]; ok && strings.HasPrefix(to, w) {
			delete(want, fd.Name())
		} else if !strings.HasPrefix(to, "anon_inode:") { // epoll, eventfd, userfaultfd
			t.Errorf("descriptor %s is %s", fd.Name(), to)
		}
	}
	if len(want) > 0 {
		t.Errorf("descriptors missing: %v", want)
	}
	env, err := os.ReadFile(proc + "environ")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(env, []byte("PATH=")) || bytes.Contains(env, []byte("HOME=")) {
		t.Errorf("environment: %q", env)
	}
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		t.Fatal(err)
	}
	if !r.Sandboxed() {
		t.Skip("system calls cannot be restricted here")
	}
	for _, line := range []string{"Seccomp:\t2", "NoNewPrivs:\t1"} {
		if !strings.Contains(string(status), line) {
			t.Errorf("status has no %q", line)
		}
	}
	if pgid, err := unix.Getpgid(r.Region().PID); err != nil || pgid != r.Region().PID {
		t.Errorf("process group %d, %v", pgid, err)
	}
	if link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", r.Region().UFFD)); r.Region().UFFD >= 0 && link != "anon_inode:[userfaultfd]" {
		t.Errorf("userfaultfd is %s, %v", link, err)
	}
}

// Runners come and go without leaving anything behind.
func TestNoLeak(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc")
	}
	open := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(fds)
	}
	cycle := func() {
		r, err := Start(context.Background(), Config{ModulePath: moduleFile(t, counter()), MemoryLimit: 8 << 20})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Init(context.Background()); err != nil {
			t.Fatal(err)
		}
		count(t, r)
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil {
			t.Error("second Close:", err)
		}
		if _, err := r.Call(context.Background(), Event{ID: doCount}); err == nil {
			t.Error("event after Close")
		}
	}
	cycle()
	before := open()
	for range 5 {
		cycle()
	}
	if after := open(); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}
