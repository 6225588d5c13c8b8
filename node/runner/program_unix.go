//go:build unix

package runner

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"golang.org/x/sys/unix"

	"meshnode/node/suspend"
	"meshnode/node/suspend/drive"
	"meshnode/node/wasi"
)

// A program is a command worker's module: it runs in a goroutine of its own
// until it ends or is halted, while the child's main goroutine goes on to serve
// the node. That goroutine has a thread to itself, which the others need not wait
// for (ownThread).
//
// Garbage: a program that computes cannot be preempted by Go, so a collection
// that began meanwhile would stand still, and with it every other goroutine,
// the one that serves the node too. Automatic collection is therefore off. The
// program's goroutine collects where it is about to wait, and if it computes
// without ever waiting, watch halts it for the time that a collection takes.
type program struct {
	rewritten *suspend.Program
	driver    *drive.Driver
	streams   *wasi.Streams
	clock     *wasi.Clock
	// outcome says why the program ended, given what it returned.
	outcome func(error) *stopped

	// work is what the program's goroutine does next.
	work chan func()

	// turn is held by whoever starts or halts the program.
	turn    sync.Mutex
	running bool
	halting chan struct{} // closed to end a wait; one for each run
	idle    chan struct{} // closed when the goroutine has done with a run; one for each
	// answer is what whoever halts the program wants done when it has stopped, nil
	// when that has been done. It is the goroutine's from the close of halting to
	// that of idle.
	answer func()
	came   chan struct{} // a token: blocks of files have come, or will not
	// entry is the export that was called last, empty before the first, and
	// suspended says that it has yet to return. They belong to the goroutine
	// while it runs.
	entry     string
	suspended bool

	ended atomic.Pointer[stopped]
	// rung is set while the node knows that there is something to take.
	rung  atomic.Bool
	watch *time.Ticker
	// floor is how large the heap was after the last collection, in bytes.
	floor atomic.Uint64
}

const (
	commandEntry = "_start"
	// collectInterval is how often a computing program's garbage is looked at.
	collectInterval = 100 * time.Millisecond
	// garbage is how much of it is worth a collection, in bytes; it is also
	// that much more memory than the worker's own that its process may take.
	garbage = 32 << 20
	// maxProgramState bounds the part of a State that is the program's: frames,
	// globals and tables.
	maxProgramState = 6 << 20
)

func newProgram(p *suspend.Program, clock *wasi.Clock, outcome func(error) *stopped) *program {
	return &program{
		rewritten: p, driver: drive.New(p, suspend.Flag), streams: wasi.NewStreams(), clock: clock, outcome: outcome,
		came: make(chan struct{}, 1), work: make(chan func()),
	}
}

// canBeCommand says whether a module can be run as a command.
func canBeCommand(info *suspend.Info) error {
	if !info.Command {
		return &suspend.RefusedError{
			Feature: "no _start",
			Why:     "the module exports no program to run, so it cannot be stopped in the middle of one",
			Hint:    "leave out --suspend, or build the module as a WASI command",
		}
	}
	for _, i := range info.Imports {
		if i.Module == suspend.HostModule {
			return &suspend.RefusedError{
				Feature: "import " + i.Module + "." + i.Name,
				Why:     "a program with its own main loop takes no events: it reads its messages from standard input and writes to standard output",
				Hint:    "use WASI alone, or export meshnode_event instead of _start",
			}
		}
	}
	return nil
}

// attach takes the program's instance, and collections into its own hands.
func (p *program) attach(mod api.Module) error {
	if err := p.driver.Attach(mod); err != nil {
		return err
	}
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(math.MaxInt64)
	runtime.GC()
	p.floor.Store(heapBytes())
	p.watch = time.NewTicker(collectInterval)
	p.watch.Stop()
	go func() {
		for range p.watch.C {
			p.collect()
		}
	}()
	go func() {
		for range p.streams.More() {
			p.ring()
		}
	}()
	return nil
}

// instantiate adds what the rewritten module imports to a runtime.
func (p *program) instantiate(ctx context.Context, rt wazero.Runtime) error {
	_, err := p.driver.Instantiate(ctx, rt)
	return err
}

// engage starts the goroutine that the program will run on, which lasts as long
// as the process.
func (p *program) engage() {
	ready := make(chan struct{})
	go func() {
		ownThread()
		close(ready)
		for f := range p.work {
			f()
		}
	}()
	<-ready
}

// ring tells the node that there is something to take, unless it knows. An
// error means that the node has gone, and this process is about to.
func (p *program) ring() {
	if p.rung.CompareAndSwap(false, true) {
		_, _ = unix.Write(childBell, []byte{1})
	}
}

// run starts or continues the program; one that runs or has ended is left
// alone.
func (p *program) run() {
	p.turn.Lock()
	defer p.turn.Unlock()
	p.runLocked()
}

func (p *program) runLocked() {
	if p.running || p.ended.Load() != nil {
		return
	}
	p.running = true
	p.halting, p.idle = make(chan struct{}), make(chan struct{})
	p.watch.Reset(collectInterval)
	halting, idle := p.halting, p.idle
	p.work <- func() {
		defer close(idle)
		err := p.execute(context.Background())
		p.watch.Stop()
		if p.suspended = errors.Is(err, drive.ErrStopped); !p.suspended {
			p.ended.Store(p.outcome(err))
			p.ring()
		}
		select {
		case <-halting:
			p.answer()
			p.answer = nil
		default: // it ended by itself
		}
	}
}

// execute runs the program until it ends or stops: its start function, if it
// has one, then its main.
func (p *program) execute(ctx context.Context) error {
	if p.suspended {
		if _, err := p.driver.Continue(ctx); err != nil {
			return err
		}
	}
	entries := []string{p.rewritten.Info.Start, commandEntry}
	switch p.entry {
	case commandEntry:
		return nil
	case "":
	default:
		entries = entries[1:]
	}
	for _, p.entry = range entries {
		if p.entry == "" {
			continue
		}
		if _, err := p.driver.Call(ctx, p.entry); err != nil {
			return err
		}
	}
	return nil
}

// halt returns when the program has stopped, or ended, and answer has been called
// then: by the program's own thread if it can be, since whoever halts it has to be
// woken first.
func (p *program) halt(answer func()) {
	p.turn.Lock()
	defer p.turn.Unlock()
	p.haltLocked(answer)
}

func (p *program) haltLocked(answer func()) {
	if !p.running {
		answer()
		return
	}
	p.answer = answer
	p.driver.Stop()
	close(p.halting)
	<-p.idle
	p.running = false
	if p.answer != nil {
		p.answer()
	}
}

// wait is wasi.Config.Wait: it runs on the program's goroutine, in the middle of
// a call of the program's.
func (p *program) wait(until int64, wake <-chan struct{}) (interrupted bool) {
	select {
	case <-p.halting:
		p.driver.Block()
		return true
	default:
	}
	d := time.Duration(until - p.clock.Now())
	if d <= 0 {
		return false
	}
	p.watch.Stop()
	defer p.watch.Reset(collectInterval)
	p.collectWaiting()
	var due <-chan time.Time
	if until != math.MaxInt64 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		due = timer.C
	}
	select {
	case <-p.halting:
		p.driver.Block()
		return true
	case <-due:
	case <-wake:
	}
	return false
}

// collectWaiting collects garbage if there is much of it, on the program's
// goroutine, which is about to wait.
func (p *program) collectWaiting() {
	if heapBytes() > p.floor.Load()+garbage {
		runtime.GC()
		p.floor.Store(heapBytes())
	}
}

// collect collects garbage if there is much of it. It takes the program's
// goroutine out of compiled code first.
func (p *program) collect() {
	if heapBytes() <= p.floor.Load()+garbage {
		return
	}
	p.paused(func() {
		runtime.GC()
		p.floor.Store(heapBytes())
	})
}

// paused calls f while the program does not run.
func (p *program) paused(f func()) {
	p.turn.Lock()
	defer p.turn.Unlock()
	again := p.running
	p.haltLocked(func() {})
	f()
	if again {
		p.runLocked()
	}
}

// heapBytes is how much the heap holds, garbage included. Reading it stops
// nobody.
func heapBytes() uint64 {
	s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// capture returns the state of a halted program, encoded.
func (p *program) capture(ctx context.Context) ([]byte, error) {
	p.turn.Lock()
	defer p.turn.Unlock()
	switch {
	case p.ended.Load() != nil:
		return nil, errors.New("the program has ended")
	case p.running:
		return nil, errors.New("the program has not been halted")
	}
	s, err := p.driver.Capture(ctx)
	if err != nil {
		return nil, err
	}
	return encodeProgram(s)
}

// parse decodes a captured state and checks that the program can have it.
func (p *program) parse(b []byte) (*suspend.State, error) {
	s, err := decodeProgram(b)
	if err != nil {
		return nil, err
	}
	if s.Entry != "" && s.Entry != commandEntry && s.Entry != p.rewritten.Info.Start {
		return nil, fmt.Errorf("the program is in %q, which is not where it begins", s.Entry)
	}
	if (s.Entry == "") != (len(s.Frames) == 0) {
		return nil, fmt.Errorf("%d frames in %q", len(s.Frames), s.Entry)
	}
	return s, s.Check(p.rewritten)
}

// restore makes a program that has not run yet what s says, which parse has
// returned.
func (p *program) restore(ctx context.Context, s *suspend.State) error {
	p.turn.Lock()
	defer p.turn.Unlock()
	if err := p.driver.Restore(ctx, s); err != nil {
		return err
	}
	p.entry, p.suspended = s.Entry, s.Entry != ""
	return nil
}

// take acknowledges output and returns what follows it, and, behind the last of
// it, how the program ended.
func (p *program) take(acked uint64) (*taken, error) {
	// What comes from here on rings again.
	p.rung.Store(false)
	// Before the output is looked at: a program writes first and ends then.
	over := p.ended.Load()
	if err := p.streams.Ack(acked); err != nil {
		return nil, err
	}
	if at := p.streams.Acked(); at != acked {
		return nil, fmt.Errorf("output is acknowledged up to %d already, not %d", at, acked)
	}
	t := new(taken)
	for size := 0; size < maxTake; {
		o, ok := p.streams.Next(acked, maxTake-size)
		if !ok {
			t.Ended = over
			break
		}
		t.Output = append(t.Output, Output{Stream: o.Stream, Data: o.Data})
		acked += uint64(len(o.Data))
		size += len(o.Data)
	}
	_, t.Unread = p.streams.Pushed()
	return t, nil
}
