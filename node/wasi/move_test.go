package wasi

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/sys"
)

// A mover is a guest's host that is another one every few calls: the state goes
// through its encoded form, the blocks follow at once or when they are needed.
type mover struct {
	t     testing.TB
	cfg   Config
	h     *Host
	clock *Clock
	// every is how many calls there are between two moves; 0 never moves.
	every int
	// now is the realtime of all nodes, if set.
	now func() uint64
	// interrupt cuts every other wait short.
	interrupt bool
	// feed are messages that come when the guest waits for them.
	feed []string

	calls, moves, waits, cut int
	// out is the output that was taken, taken bytes of it.
	out   map[int]string
	taken uint64
	// left holds the blocks of nodes that the guest was on.
	left map[Hash][]byte
}

// newMover makes the host of a new guest.
func newMover(t testing.TB, cfg Config, every int) *mover {
	t.Helper()
	m := &mover{t: t, cfg: cfg, every: every, clock: NewClock(0), left: map[Hash][]byte{}, out: map[int]string{}}
	m.cfg.Fetch = func(h Hash) ([]byte, error) {
		if b, ok := m.left[h]; ok {
			return b, nil
		}
		return nil, errors.New("nobody has it")
	}
	m.cfg.Wait = func(until int64, wake <-chan struct{}) bool {
		m.waits++
		if m.interrupt && m.waits%2 == 1 {
			m.cut++
			return true
		}
		m.take() // it may be what the guest waits for
		if until == never && len(m.feed) > 0 {
			if err := m.h.streams.Push([]byte(m.feed[0])); err != nil {
				t.Error(err)
			}
			if m.feed = m.feed[1:]; len(m.feed) == 0 {
				m.h.streams.CloseInput()
			}
		}
		return m.h.sleep(until, wake)
	}
	m.h = m.host(cfg.Dirs, cfg.Streams)
	return m
}

func (m *mover) host(dirs []Dir, streams *Streams) *Host {
	m.t.Helper()
	cfg := m.cfg
	cfg.Dirs, cfg.Streams, cfg.Clock = dirs, streams, m.clock
	h, err := New(cfg)
	if err != nil {
		m.t.Fatal(err)
	}
	return h
}

// drain fetches what has not arrived, as the node does before it lets the last
// one go.
func (m *mover) drain() {
	m.t.Helper()
	for names, _ := m.h.Missing(10); len(names) > 0; names, _ = m.h.Missing(10) {
		for _, name := range names {
			if got, err := m.h.Put(m.left[name]); err != nil || got != name {
				m.t.Fatalf("block %v became %v: %v", name, got, err)
			}
		}
	}
}

// move puts the guest on another node.
func (m *mover) move() {
	m.t.Helper()
	m.drain()
	m.moves++
	s := m.h.State()
	b := s.Encode()
	blocks := m.h.Blocks()
	m.clock = NewClock(m.clock.Now())
	next := m.host(nil, NewStreams())
	if m.now != nil {
		next.tree.now = m.now
	}
	for _, name := range blocks {
		data, ok := m.h.Block(name)
		if !ok {
			m.t.Fatalf("block %v is in the state and not here", name)
		}
		m.left[name] = data
		if m.moves%2 == 0 {
			if got, err := next.Put(data); err != nil || got != name {
				m.t.Fatalf("block %v became %v: %v", name, got, err)
			}
		}
	}
	s, err := ParseState(b)
	if err != nil {
		m.t.Fatal(err)
	}
	if err := next.SetState(s); err != nil {
		m.t.Fatal(err)
	}
	if again := next.State().Encode(); !bytes.Equal(again, b) {
		m.t.Fatalf("state %x became %x", b, again)
	}
	if n := missing(next); m.moves%2 == 0 && n != 0 {
		m.t.Fatalf("%d blocks are missing", n)
	}
	m.h = next
}

// call is what a rewritten guest does: it makes a call that was interrupted
// again after the move.
func (m *mover) call(name string, mem memory, args []uint64) errno {
	m.calls++
	for {
		stack := append(make([]uint64, 0, 16), args...)
		e := m.h.call(name, functions[name], mem, stack)
		again := m.h.Interrupted()
		if again || m.every > 0 && m.calls%m.every == 0 {
			m.move()
		}
		if !again {
			return e
		}
	}
}

// take takes the output there is, and acknowledges some of it.
func (m *mover) take() {
	m.t.Helper()
	s := m.h.streams
	for {
		o, ok := s.Next(m.taken, 100_000)
		if !ok {
			break
		}
		m.out[o.Stream] += string(o.Data)
		m.taken += uint64(len(o.Data))
	}
	if err := s.Ack(m.taken - (m.taken-s.Acked())/8); err != nil {
		m.t.Fatal(err)
	}
}

// output returns all that the guest has written, by stream.
func (m *mover) output() map[int]string {
	m.t.Helper()
	m.take()
	return m.out
}

// A machine runs programs, whose host is the mover of the moment.
type machine struct {
	runtime wazero.Runtime
	current *mover
}

func newMachine(t testing.TB) *machine {
	t.Helper()
	ctx := context.Background()
	m := &machine{runtime: wazero.NewRuntime(ctx)}
	t.Cleanup(func() { m.runtime.Close(ctx) })
	b := m.runtime.NewHostModuleBuilder(Module)
	for name, f := range functions {
		results := []api.ValueType{i32}
		body := func(_ context.Context, mod api.Module, stack []uint64) {
			stack[0] = uint64(m.current.call(name, memory{mod.Memory()}, stack[:len(f.params)]))
		}
		switch name {
		case "proc_exit":
			results = nil
			body = func(_ context.Context, _ api.Module, stack []uint64) { panic(sys.NewExitError(uint32(stack[0]))) }
		case "sched_yield":
			body = func(_ context.Context, mod api.Module, stack []uint64) {
				stack[0] = uint64(m.current.call(name, memory{mod.Memory()}, nil))
			}
		}
		b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(body), f.params, results).Export(name)
	}
	if _, err := b.Instantiate(ctx); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *machine) compile(t testing.TB, binary []byte) wazero.CompiledModule {
	t.Helper()
	c, err := m.runtime.CompileModule(context.Background(), binary)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// run runs a program to its end and returns its exit code.
func (m *machine) run(t testing.TB, program wazero.CompiledModule, host *mover) uint32 {
	t.Helper()
	m.current = host
	ctx := context.Background()
	mod, err := m.runtime.InstantiateModule(ctx, program, wazero.NewModuleConfig().WithName(""))
	if mod != nil {
		mod.Close(ctx)
	}
	var exit *sys.ExitError
	switch {
	case errors.As(err, &exit):
		return exit.ExitCode()
	case err != nil:
		t.Fatal(err)
	}
	return 0
}
