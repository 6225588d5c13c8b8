//go:build unix

package runner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/sys"
	"golang.org/x/sys/unix"

	"meshnode/node/suspend"
	"meshnode/node/suspend/drive"
	"meshnode/node/wasi"
	"meshnode/pager"
)

// Descriptors the child inherits beside 0 to 2.
const (
	childSocket = 3
	childMemory = 4
	// childBell is a pipe on which a program says, by a byte, that there is
	// something to take.
	childBell = 5
)

// childEnv is all of the child's environment.
func childEnv() []string {
	return []string{
		// One thread runs the worker; the other is for the garbage collector.
		"GOMAXPROCS=2",
		// Preemption signals would interrupt waits for a page again and again,
		// and each time the fault is reported anew. Compiled WebAssembly could
		// not be preempted by them anyway.
		// The number of threads is set above: no need to watch cgroups.
		"GODEBUG=asyncpreemptoff=1,containermaxprocs=0,updatemaxprocs=0",
		// Between events with large payloads the heap is small, and would be
		// collected at each of them.
		"GOGC=400",
		"GOMEMLIMIT=256MiB",
		"GOTRACEBACK=single",
	}
}

// Main is the child's entry. It returns the process's exit code.
func Main() int {
	c := &child{link: newLink(childSocket, childKeep)}
	if err := c.run(); err != nil {
		fmt.Fprintln(os.Stderr, "runner:", err)
		return 2
	}
	return 0
}

// A child is the runner seen from inside its process.
type child struct {
	link    *link
	limit   uint64
	mem     []byte
	uffd    int
	runtime wazero.Runtime
	module  api.Module
	info    suspend.Info
	handler api.Function
	globals []api.MutableGlobal
	clock   *wasi.Clock
	wasi    *wasi.Host
	host    *host
	linear  *linearMemory
	// program is a command worker's; nil for an event worker, which has a
	// handler.
	program *program
	// hidden is what an event worker has of state that is not in globals.
	hidden *hidden
	stack  [3]uint64
	phase  phase
	// lost is set when the node cannot be written to any more.
	lost error
}

// A phase is how far a worker has come; it only advances.
type phase uint8

const (
	phaseFresh   phase = iota // nothing called yet
	phaseCleared              // memory empty, waiting for a state
	phaseLive                 // initialised or restored: takes events
	phaseStopped              // trapped or exited
)

// run serves the node until it goes away.
func (c *child) run() error {
	closeInherited()
	watchParent(childSocket)
	typ, body, err := c.link.read(maxRequest)
	if err != nil {
		return err
	}
	if typ != msgSetup {
		return fmt.Errorf("%w: first message has type %#x", errFrame, typ)
	}
	var s setup
	if err := decode(body, &s); err != nil {
		return err
	}
	ctx := context.Background()
	info, err := c.setUp(ctx, &s)
	if err != nil {
		f := failed{Reason: err.Error()}
		var limit *ExitError
		if errors.As(err, &limit) {
			f.Kind, f.Reason = limit.Kind, limit.Reason
		}
		errors.As(err, &f.Refused)
		if err := c.link.write(msgFailed, &f); err != nil {
			return err
		}
		// The node ends this process when it has read that. One that ended by
		// itself could be taken for a crash before.
		_, _, err = c.link.read(maxRequest)
		return err
	}
	if err := c.link.writeFD(msgReady, info, c.uffd); err != nil {
		return err
	}
	for {
		typ, body, err := c.link.read(maxRequest)
		if err != nil {
			return err
		}
		if err := c.serve(ctx, typ, body); err != nil {
			return err
		}
		if c.lost != nil {
			return c.lost
		}
	}
}

// setUp compiles and instantiates the module, then locks the process down.
func (c *child) setUp(ctx context.Context, s *setup) (*ready, error) {
	if err := checkLimit(s.MemoryLimit); err != nil {
		return nil, err
	}
	c.limit = s.MemoryLimit
	var err error
	if c.mem, err = mapMemory(childMemory, s.MemoryLimit); err != nil {
		return nil, err
	}
	info := &ready{Base: addressOf(c.mem)}
	var features uint64
	if c.uffd, features, err = pager.OpenUserfault(); err != nil {
		c.uffd = -1
		info.UFFDError = err.Error()
	} else {
		info.UFFD, info.Features = true, features
	}

	c.clock = wasi.NewClock(0)
	binary, err := os.ReadFile(s.ModulePath)
	if err != nil {
		return nil, fmt.Errorf("read module: %w", err)
	}
	if binary, err = c.rewrite(binary, s.Kind, s.CacheDir); err != nil {
		return nil, err
	}
	info.Command = c.program != nil
	if need := uint64(c.info.MemoryMin) * WasmPage; need > c.limit {
		return nil, &ExitError{Kind: MemoryLimit, Reason: fmt.Sprintf("the module starts with %d bytes of memory, its limit is %d", need, c.limit)}
	}

	config := wazero.NewRuntimeConfigInterpreter()
	if !s.Interpreter {
		// The compiler where it is supported.
		config = wazero.NewRuntimeConfig()
		info.Compiler = CompilerSupported()
	}
	config = config.WithCoreFeatures(drive.Features)
	if s.CacheDir != "" {
		cache, err := wazero.NewCompilationCacheWithDir(s.CacheDir)
		if err != nil {
			return nil, fmt.Errorf("open compilation cache: %w", err)
		}
		config = config.WithCompilationCache(cache)
	}
	c.runtime = wazero.NewRuntimeWithConfig(ctx, config)
	c.host = newHost(c.clock, c.log, c.read)
	if err := c.host.instantiate(ctx, c.runtime); err != nil {
		return nil, err
	}
	world := wasi.Config{Args: s.Args, Env: s.Env, Clock: c.clock, Output: c.output}
	if c.program != nil {
		// Here, since the sandbox leaves no way to ask for time slices.
		c.program.engage()
		world.Streams, world.Wait = c.program.streams, c.program.wait
		if err := c.program.instantiate(ctx, c.runtime); err != nil {
			return nil, err
		}
	}
	closeArchive, err := c.filesOf(s, &world)
	if err != nil {
		return nil, err
	}
	c.wasi, err = wasi.New(world)
	closeArchive()
	if err != nil {
		return nil, err
	}
	if err := c.wasi.Instantiate(ctx, c.runtime); err != nil {
		return nil, err
	}
	// On every processor the process may use: a program, which is there twice,
	// would take longer to start than plain ones otherwise.
	workers := experimental.WithCompilationWorkers(ctx, runtime.GOMAXPROCS(0))
	compiled, err := c.runtime.CompileModule(workers, binary)
	if err != nil {
		return nil, &suspend.RefusedError{
			Feature: "invalid module",
			Why:     clip(err.Error(), maxReason),
			Hint:    "the module does not pass validation: build it again",
		}
	}
	c.linear = &linearMemory{reservation: c.mem}
	c.module, err = c.runtime.InstantiateModule(
		experimental.WithMemoryAllocator(ctx, experimental.MemoryAllocatorFunc(c.linear.allocate)),
		compiled,
		// No start functions: Init calls them, and a restored worker must not.
		wazero.NewModuleConfig().WithName("").WithStartFunctions(),
	)
	if err != nil {
		return nil, fmt.Errorf("instantiate module: %w", err)
	}
	info.Pages = c.pages()
	// Compiling takes far more memory than running.
	binary = nil
	debug.FreeOSMemory()
	if err := lockDown(); err != nil {
		info.SandboxError = err.Error()
	} else {
		info.Sandbox = true
	}
	if c.program != nil {
		return info, c.program.attach(c.module)
	}
	_ = unix.Close(childBell)
	c.handler = c.module.ExportedFunction("meshnode_event")
	if c.hidden != nil {
		return info, c.hidden.attach(c.module)
	}
	for _, g := range c.info.Globals {
		m, ok := c.module.ExportedGlobal(g.Export).(api.MutableGlobal)
		if !ok {
			return nil, fmt.Errorf("global %d is out of reach", g.Index)
		}
		c.globals = append(c.globals, m)
	}
	return info, nil
}

// rewrite makes a module movable, and with that decides what kind of worker it
// is. The result is what to compile.
func (c *child) rewrite(module []byte, kind Kind, cacheDir string) ([]byte, error) {
	if kind > CommandWorker {
		return nil, fmt.Errorf("%w: worker of kind %d", errFrame, kind)
	}
	var refused error
	if kind != CommandWorker {
		prepared, err := suspend.Prepare(module)
		if err == nil {
			err = prepared.Info.CanBeEventWorker()
		}
		if err == nil {
			c.info = prepared.Info
			if prepared.Program != nil {
				c.hidden = newHidden(prepared.Program)
			}
			return prepared.Module, nil
		}
		if kind == EventWorker {
			return nil, err
		}
		refused = err
	}
	rewrite := suspend.Rewrite
	if cacheDir != "" {
		rewrite = suspend.Cache(cacheDir).Rewrite
	}
	p, err := rewrite(module, suspend.Options{Poll: suspend.Flag})
	if err != nil {
		return nil, err
	}
	if refused != nil && (p.Info.Event || !p.Info.Command) {
		return nil, refused // it was meant to be an event worker
	}
	if err := canBeCommand(&p.Info); err != nil {
		return nil, err
	}
	c.info = p.Info
	c.program = newProgram(p, c.clock, c.outcome)
	return p.Module, nil
}

func (c *child) pages() uint32 { return uint32(c.linear.size.Load() / WasmPage) }

// serve answers one request. The error is one that ends the process.
func (c *child) serve(ctx context.Context, typ byte, body []byte) error {
	switch typ {
	case msgInit:
		if c.phase != phaseFresh {
			return c.refuse("the worker has been initialised or restored")
		}
		if stop := c.initialise(ctx); stop != nil {
			return c.link.write(msgStopped, stop)
		}
		c.phase = phaseLive
		return c.link.write(msgOK, nil)

	case msgClear:
		if c.phase != phaseFresh {
			return c.refuse("the worker has been initialised or restored")
		}
		if err := dropMemory(childMemory, c.mem); err != nil {
			return c.refuse("clear memory: " + err.Error())
		}
		c.phase = phaseCleared
		return c.link.write(msgOK, nil)

	case msgRestore:
		var s State
		if err := decode(body, &s); err != nil {
			return c.refuse(err.Error())
		}
		if c.phase != phaseCleared {
			return c.refuse("the worker's memory has not been cleared")
		}
		if err := c.restore(ctx, &s); err != nil {
			return c.refuse("restore: " + err.Error())
		}
		c.phase = phaseLive
		return c.link.write(msgOK, nil)

	case msgEvent:
		var e Event
		if err := decode(body, &e); err != nil {
			return c.refuse(err.Error())
		}
		if c.phase != phaseLive || c.program != nil {
			return c.refuse("the worker has not been initialised or restored, or takes no events")
		}
		if e.Kind > Timer || len(e.Payload) > MaxPayload {
			return c.refuse(fmt.Sprintf("event of kind %d with %d bytes", e.Kind, len(e.Payload)))
		}
		effects, stop := c.event(ctx, e)
		if stop != nil {
			return c.link.write(msgStopped, stop)
		}
		return c.link.write(msgEffects, effects)

	case msgForget:
		var s stretch
		if err := decode(body, &s); err != nil {
			return c.refuse(err.Error())
		}
		if c.phase != phaseLive {
			return c.refuse("the worker has not been initialised or restored")
		}
		if size := uint64(len(c.mem)); s.Offset > size || s.Length > size-s.Offset {
			return c.refuse(fmt.Sprintf("%d bytes at %d of a memory of %d", s.Length, s.Offset, size))
		}
		if err := forget(c.mem[s.Offset:][:s.Length]); err != nil {
			return c.refuse(err.Error())
		}
		return c.link.write(msgOK, nil)

	case msgState:
		if c.phase != phaseLive {
			return c.refuse("the worker has not been initialised or restored")
		}
		state, err := c.state(ctx)
		if err != nil {
			return c.refuse("state: " + err.Error())
		}
		return c.link.write(msgStateIs, state)

	case msgRun, msgHalt, msgPush, msgTake:
		if c.phase != phaseLive || c.program == nil {
			return c.refuse("the worker has not been initialised or restored, or is no command")
		}
		return c.serveProgram(typ, body)

	case msgStored, msgBlocks, msgPutBlocks, msgMissing, msgGiveUp, msgLook:
		if c.program == nil || c.phase != phaseLive && c.phase != phaseCleared {
			return c.refuse("the worker has not been initialised or cleared, or is no command")
		}
		return c.serveFiles(typ, body)
	}
	return fmt.Errorf("%w: type %#x", errFrame, typ)
}

// serveProgram answers what only command workers are asked.
func (c *child) serveProgram(typ byte, body []byte) error {
	switch typ {
	case msgRun:
		c.program.run()
		return c.link.write(msgOK, nil)

	case msgHalt:
		var err error
		c.program.halt(func() { err = c.link.write(msgOK, nil) })
		return err

	case msgPush:
		var in input
		if err := decode(body, &in); err != nil {
			return c.refuse(err.Error())
		}
		var err error
		switch {
		case in.End:
			c.program.streams.CloseInput()
		case len(in.Message) > 0:
			err = c.program.streams.Push(in.Message)
		}
		switch {
		case errors.Is(err, wasi.ErrFull):
			return c.link.write(msgPushed, &pushed{Full: true})
		case errors.Is(err, wasi.ErrInputClosed):
			return c.link.write(msgPushed, &pushed{Ended: true})
		case err != nil:
			return c.refuse(err.Error())
		}
		return c.link.write(msgPushed, &pushed{})
	}
	var ask ack
	if err := decode(body, &ask); err != nil {
		return c.refuse(err.Error())
	}
	t, err := c.program.take(ask.Acked)
	if err != nil {
		return c.refuse(err.Error())
	}
	t.Pages = c.pages()
	return c.link.write(msgTaken, t)
}

func (c *child) refuse(reason string) error {
	return c.link.write(msgFailed, &failed{Reason: reason})
}

// initialise runs what a new worker runs once: the start function, then
// _initialize. Both may arm timers only through events, so nothing comes of
// them but memory.
func (c *child) initialise(ctx context.Context) *stopped {
	if c.program != nil {
		return nil // its start function can be halted like the rest of it
	}
	for _, name := range []string{c.info.Start, "_initialize"} {
		if name == "" || name == "_initialize" && !c.info.Initialize {
			continue
		}
		err := c.module.ExportedFunction(name).CallWithStack(ctx, c.stack[:])
		c.wasi.Flush()
		if err != nil {
			return c.stop(err)
		}
	}
	return nil
}

// event has the worker handle one event.
func (c *child) event(ctx context.Context, e Event) (*Effects, *stopped) {
	c.host.begin(e)
	c.linear.refused = false
	c.stack[0], c.stack[1], c.stack[2] = uint64(e.Kind), e.ID, uint64(len(e.Payload))
	start := time.Now()
	err := c.handler.CallWithStack(ctx, c.stack[:])
	took := time.Since(start)
	c.wasi.Flush()
	if err != nil {
		return nil, c.stop(err)
	}
	out := c.host.end()
	out.Status = int32(uint32(c.stack[0]))
	out.Duration = max(0, took-c.host.waited)
	out.Pages = c.pages()
	return out, nil
}

// stop ends the worker, and says why it runs no more.
func (c *child) stop(err error) *stopped {
	c.phase = phaseStopped
	return c.outcome(err)
}

// outcome says why a worker runs no more whose function returned err.
func (c *child) outcome(err error) *stopped {
	if err == nil {
		return &stopped{Kind: Exited, Reason: "its main function returned"}
	}
	var exit *sys.ExitError
	if errors.As(err, &exit) {
		s := &stopped{Kind: Exited, Code: exit.ExitCode(), Reason: fmt.Sprintf("it called proc_exit with code %d", exit.ExitCode())}
		if c.linear.refused && s.Code != 0 {
			s.Kind = MemoryLimit
			s.Reason = fmt.Sprintf("it was refused memory over its limit of %d bytes, then called proc_exit with code %d", c.limit, s.Code)
		}
		return s
	}
	text, stack, _ := strings.Cut(err.Error(), "\nwasm stack trace:\n")
	s := &stopped{Kind: Trapped, Reason: clip(strings.TrimPrefix(text, "wasm error: "), maxReason), Stack: clip(stack, maxReason)}
	if c.linear.refused {
		s.Kind = MemoryLimit
		s.Reason = fmt.Sprintf("it was refused memory over its limit of %d bytes, then trapped: %s", c.limit, s.Reason)
	}
	return s
}

func (c *child) state(ctx context.Context) (*State, error) {
	s := &State{Pages: c.pages()}
	var err error
	switch {
	case c.program != nil:
		s.Program, err = c.program.capture(ctx)
	case c.hidden != nil:
		s.Program, err = c.hidden.capture(ctx)
	}
	if err != nil {
		return nil, err
	}
	s.WASI, s.Clock, s.Armed = c.wasi.State(), c.clock.Now(), c.host.timers()
	if len(s.WASI.Tree) > maxTreeState {
		return nil, fmt.Errorf("the names of the program's files take %d bytes, at most %d: it can move when it has fewer of them",
			len(s.WASI.Tree), maxTreeState)
	}
	for i, m := range c.globals {
		g, v := c.info.Globals[i], m.Get()
		if g.Type == api.ValueTypeI32 || g.Type == api.ValueTypeF32 {
			v &= math.MaxUint32
		}
		s.Globals = append(s.Globals, Global{Index: g.Index, Type: g.Type, Value: v})
	}
	return s, nil
}

// restore makes the worker what s says. It checks all of s first, so that a
// worker is restored as a whole or not at all, and touches no page of memory.
func (c *child) restore(ctx context.Context, s *State) error {
	if len(s.Globals) != len(c.globals) {
		return fmt.Errorf("%d globals, the module has %d", len(s.Globals), len(c.globals))
	}
	for i, g := range s.Globals { // those of a worker with a Program are in that
		want := c.info.Globals[i]
		if g.Index != want.Index || g.Type != want.Type {
			return fmt.Errorf("global %d of type %#x, the module has global %d of type %#x", g.Index, g.Type, want.Index, want.Type)
		}
		if (g.Type == api.ValueTypeI32 || g.Type == api.ValueTypeF32) && g.Value > math.MaxUint32 {
			return fmt.Errorf("global %d is over 32 bits", g.Index)
		}
	}
	var program *suspend.State
	var err error
	switch {
	case c.hidden != nil:
		if program, err = c.hidden.parse(s.Program); err != nil {
			return err
		}
	case c.program == nil && len(s.Program) > 0:
		return errors.New("the state of a command, the module is an event worker")
	case c.program != nil:
		if program, err = c.program.parse(s.Program); err != nil {
			return err
		}
		if s.WASI.Streams == nil || len(s.Armed) > 0 {
			return errors.New("a command without streams, or with timers")
		}
	}
	if s.Clock < 0 {
		return errors.New("clock before zero")
	}
	now := c.pages()
	if s.Pages < now || uint64(s.Pages)*WasmPage > c.limit || s.Pages > c.info.MemoryMax {
		return fmt.Errorf("memory of %d pages: the module starts with %d and may have %d, the limit is %d",
			s.Pages, now, c.info.MemoryMax, c.limit/WasmPage)
	}
	if err := c.host.setTimers(s.Armed); err != nil {
		return err
	}
	if err := c.wasi.SetState(s.WASI); err != nil {
		return err
	}
	if _, ok := c.module.Memory().Grow(s.Pages - now); !ok {
		return fmt.Errorf("memory does not grow from %d to %d pages", now, s.Pages)
	}
	for i, g := range s.Globals {
		c.globals[i].Set(g.Value)
	}
	c.clock.Set(s.Clock)
	switch {
	case c.program != nil:
		return c.program.restore(ctx, program)
	case c.hidden != nil:
		return c.hidden.driver.Restore(ctx, program)
	}
	return nil
}

// log sends a line to the node at once: the last lines before a worker hangs
// are the ones that matter.
func (c *child) log(l Log) {
	if c.lost == nil {
		c.lost = c.link.write(msgLog, &logLine{Level: int(l.Level), Source: l.Source, Text: l.Text})
	}
}

// read asks the node for a reading of an interface. It runs inside an event, when
// the node waits for this side and sends nothing else.
func (c *child) read(name string) reading {
	if c.lost == nil {
		c.lost = c.link.write(msgRead, &readAsk{Name: name})
	}
	if c.lost != nil {
		return reading{Code: resNoReading}
	}
	var r reading
	typ, body, err := c.link.read(maxRequest)
	if err == nil && typ != msgReading {
		err = fmt.Errorf("%w: type %#x in answer to %#x", errFrame, typ, msgRead)
	}
	if err == nil {
		err = decode(body, &r)
	}
	if err != nil {
		c.lost = err // and with it the event
		return reading{Code: resNoReading}
	}
	return r
}

// output takes a line of the worker's standard output or error.
func (c *child) output(stream int, line []byte) {
	source := "stdout"
	if stream == 2 {
		source = "stderr"
	}
	c.log(Log{Level: slog.LevelInfo, Source: source, Text: printable(string(line))})
}

// A linearMemory hands the shared mapping to the runtime, which grows into it
// and never moves.
type linearMemory struct {
	reservation []byte
	// size is how much of it the worker has, in bytes. Anyone may read it while
	// a program runs.
	size atomic.Uint64
	// refused is set when the worker asked for more than the limit.
	refused bool
}

func (m *linearMemory) allocate(_, _ uint64) experimental.LinearMemory { return m }

// Reallocate returns the first size bytes, or nil over the limit, which the
// worker sees as memory.grow failing. Memory is only ever grown, and what lies
// beyond its end has never been written: it need not be cleared.
func (m *linearMemory) Reallocate(size uint64) []byte {
	if size > uint64(len(m.reservation)) {
		m.refused = true
		return nil
	}
	m.size.Store(size)
	return m.reservation[:size:size]
}

// Free does nothing: the mapping lasts as long as the process.
func (m *linearMemory) Free() {}
