// Package drive runs a rewritten program under wazero: it stops it, takes its
// state, and brings the state back in another instance, which may run on
// another machine or by another of wazero's engines.
//
// All that is specific to wazero is here; what stopping and continuing mean is
// in suspend.Stack.
//
// Garbage collection: Go cannot preempt a program that computes without calling
// the host, so a collection that begins meanwhile waits for it, and every other
// goroutine waits for the collection: the one that would call Stop, too. A
// process that runs such programs must not collect while they run: turn
// automatic collection off (debug.SetGCPercent), and collect when the program
// has stopped, which can be made to happen whenever it is time, and takes
// microseconds.
package drive

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"

	"meshnode/node/suspend"
)

// Features are what a runtime must have for all programs that can be rewritten.
const Features = api.CoreFeaturesV2 | experimental.CoreFeaturesTailCall

// ErrStopped means that the program has stopped as it was asked to: take its
// state, or continue it.
var ErrStopped = errors.New("program stopped")

// A Driver runs one instance of a program. Stop may be called from any
// goroutine; all else belongs to the one that runs the program.
type Driver struct {
	program *suspend.Program
	stack   *suspend.Stack
	mod     api.Module
	entry   string // the export that was called
	run     api.Function
	poll    suspend.Poll

	stop api.MutableGlobal
	// mu guards stopping, and the global while it is set from outside.
	mu       sync.Mutex
	stopping bool
}

// New returns a driver for a program, rewritten with the given kind of poll.
func New(p *suspend.Program, poll suspend.Poll) *Driver {
	return &Driver{program: p, stack: suspend.NewStack(p), poll: poll}
}

// Instantiate adds the host functions of suspend.SuspendModule to a runtime,
// which therefore can have one driver only. Close the result, if need be, when
// the program's instance is closed.
func (d *Driver) Instantiate(ctx context.Context, rt wazero.Runtime) (api.Module, error) {
	b := rt.NewHostModuleBuilder(suspend.SuspendModule)
	add := func(name string, f func(stack []uint64), params, results []api.ValueType) {
		b.NewFunctionBuilder().WithGoFunction(api.GoFunc(func(_ context.Context, stack []uint64) { f(stack) }), params, results).Export(name)
	}
	i64 := func(n int) []api.ValueType {
		t := make([]api.ValueType, n)
		for i := range t {
			t[i] = api.ValueTypeI64
		}
		return t
	}
	i32 := []api.ValueType{api.ValueTypeI32}
	add("next", func(stack []uint64) { stack[0] = uint64(uint32(d.next())) }, nil, i32)
	add("more", func(stack []uint64) { d.stack.More(stack[:16]) }, i64(16), nil)
	for _, n := range suspend.SaveSizes() {
		add(fmt.Sprintf("save%d", n), func(stack []uint64) { d.save(int32(stack[0]), stack[1:n+1]) }, append(i32, i64(n)...), nil)
	}
	for _, n := range suspend.LoadSizes() {
		add(fmt.Sprintf("load%d", n), func(stack []uint64) { d.stack.Load(stack[:n]) }, nil, i64(n))
	}
	m, err := b.Instantiate(ctx)
	if err != nil {
		return nil, fmt.Errorf("instantiate %s: %w", suspend.SuspendModule, err)
	}
	return m, nil
}

// next is the import next.
func (d *Driver) next() int32 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stack.Next(d.stopping)
}

// save is the import save. A program that does what no rewritten program does
// traps.
func (d *Driver) save(which int32, units []uint64) {
	if which >= 0 && d.poll == suspend.Countdown {
		d.stop.Set(0) // so that the callers stop too
	}
	if err := d.stack.Save(which, units); err != nil {
		panic(err)
	}
}

// Attach tells the driver which instance it runs. The instance must not have
// been started: give wazero no start functions.
func (d *Driver) Attach(mod api.Module) error {
	d.mod = mod
	g, ok := mod.ExportedGlobal(suspend.StopExport).(api.MutableGlobal)
	if !ok {
		return fmt.Errorf("module %s does not export %s: it was not rewritten", mod.Name(), suspend.StopExport)
	}
	d.stop = g
	d.run = mod.ExportedFunction(suspend.RunExport) // nil if nothing can stop
	return nil
}

// Stop asks the program to stop at its next suspend point. It may be called at
// any time, from any goroutine, and holds until the program has stopped; one
// that is not running stops as soon as it runs. With Countdown it must be called
// from a host function.
//
// The program reads the global without synchronisation, which WebAssembly has
// none of without shared memory. It is one aligned word, in memory that wazero
// shares with compiled code, so the program sees the change as soon as the
// processor lets it; there is no other word that would have to be seen with it.
func (d *Driver) Stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stopping = true
	if d.poll == suspend.Flag {
		d.stop.Set(1)
	} else {
		d.stop.Set(0)
	}
}

// Block is called by a host function that cannot finish and has had no effect:
// the program stops, and calls it again when it is continued. What the function
// returns is ignored.
func (d *Driver) Block() {
	d.stack.Block()
	d.Stop()
}

// Countdown makes the program stop at its n-th poll from now. The program must
// have been rewritten with suspend.Countdown, and must not be running.
func (d *Driver) Countdown(n int32) {
	if d.stack.AtLoop() && n < 1<<31-1 {
		n++
	}
	d.stop.Set(uint64(uint32(n)))
}

// Call calls an exported function. If the program stops in it the error is
// ErrStopped, and Continue goes on.
func (d *Driver) Call(ctx context.Context, export string, args ...uint64) ([]uint64, error) {
	if d.stack.Depth() > 0 {
		return nil, fmt.Errorf("call %s: the program is stopped in %s", export, d.entry)
	}
	f := d.mod.ExportedFunction(export)
	if f == nil {
		return nil, fmt.Errorf("call %s: the program exports no such function", export)
	}
	d.entry = export
	results, err := f.Call(ctx, args...)
	if err != nil {
		d.stack.Reset()
		return nil, err
	}
	if d.stopped() {
		return nil, ErrStopped
	}
	return results, nil
}

// Continue goes on where the program has stopped, and returns what the exported
// function returns that was called. Vectors and references are among the results
// as in suspend.Frame.
func (d *Driver) Continue(ctx context.Context) ([]uint64, error) {
	if d.stack.Depth() == 0 {
		return nil, errors.New("continue: the program is not stopped")
	}
	if _, err := d.run.Call(ctx); err != nil {
		d.stack.Reset()
		return nil, err
	}
	if d.stopped() {
		return nil, ErrStopped
	}
	return d.stack.Results(), nil
}

func (d *Driver) stopped() bool {
	if !d.stack.Stopped() {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stopping = false
	if d.poll == suspend.Flag {
		d.stop.Set(0)
	} else {
		d.stop.Set(1<<31 - 1)
	}
	return true
}

// Capture returns the state of a program that has stopped or finished, but for
// its memory. It shares nothing with the program.
func (d *Driver) Capture(ctx context.Context) (*suspend.State, error) {
	s := &suspend.State{Version: suspend.Version}
	if d.stack.Depth() > 0 {
		s.Entry = d.entry
	}
	for _, f := range d.stack.Frames() {
		f.Values = append([]uint64(nil), f.Values...)
		s.Frames = append(s.Frames, f)
	}
	for _, g := range d.program.Info.Globals {
		s.Globals = append(s.Globals, d.mod.ExportedGlobal(g.Export).Get())
	}
	for _, h := range d.program.Hidden {
		v, err := d.call(ctx, h.Export+":get")
		if err != nil {
			return nil, err
		}
		s.Hidden = append(s.Hidden, v...)
	}
	for _, t := range d.program.Tables {
		name := suspend.TableExport(t)
		n, err := d.call(ctx, name+":size")
		if err != nil {
			return nil, err
		}
		entries := make([]uint32, n[0])
		get := d.mod.ExportedFunction(name + ":get")
		var stack [1]uint64
		for i := range entries {
			stack[0] = uint64(i)
			if err := get.CallWithStack(ctx, stack[:]); err != nil {
				return nil, fmt.Errorf("read table %d: %w", t, err)
			}
			entries[i] = uint32(stack[0])
		}
		s.Tables = append(s.Tables, entries)
	}
	return s, nil
}

// Restore brings a captured state into a fresh instance, whose memory the caller
// has restored or will restore before the program is continued. A state that
// does not fit the program is refused, and the instance must then not be used.
func (d *Driver) Restore(ctx context.Context, s *suspend.State) error {
	if err := s.Check(d.program); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	for i, g := range d.program.Info.Globals {
		d.mod.ExportedGlobal(g.Export).(api.MutableGlobal).Set(s.Globals[i])
	}
	hidden := s.Hidden
	for _, h := range d.program.Hidden {
		n := 1
		if h.Type == 0x7b {
			n = 2
		}
		if _, err := d.call(ctx, h.Export+":set", hidden[:n]...); err != nil {
			return err
		}
		hidden = hidden[n:]
	}
	for i, t := range d.program.Tables {
		if err := d.restoreTable(ctx, t, s.Tables[i]); err != nil {
			return err
		}
	}
	if f := d.mod.ExportedFunction(suspend.ReapplyExport); f != nil {
		if _, err := f.Call(ctx); err != nil {
			return fmt.Errorf("restore: drop segments: %w", err)
		}
	}
	d.entry = s.Entry
	return d.stack.SetFrames(s.Entry, s.Frames)
}

func (d *Driver) restoreTable(ctx context.Context, t uint32, entries []uint32) error {
	name := suspend.TableExport(t)
	n, err := d.call(ctx, name+":size")
	if err != nil {
		return err
	}
	if uint64(len(entries)) < n[0] {
		return fmt.Errorf("restore: table %d has %d entries, at least %d expected", t, len(entries), n[0])
	}
	if more := uint64(len(entries)) - n[0]; more > 0 {
		got, err := d.call(ctx, name+":grow", more)
		if err != nil {
			return err
		}
		if int32(got[0]) < 0 {
			return fmt.Errorf("restore: table %d cannot grow to %d entries", t, len(entries))
		}
	}
	set := d.mod.ExportedFunction(name + ":set")
	var stack [2]uint64
	for i, e := range entries {
		stack[0], stack[1] = uint64(i), uint64(e)
		if err := set.CallWithStack(ctx, stack[:]); err != nil {
			return fmt.Errorf("restore table %d: %w", t, err)
		}
	}
	return nil
}

// call calls a function that the rewriter has added.
func (d *Driver) call(ctx context.Context, export string, args ...uint64) ([]uint64, error) {
	f := d.mod.ExportedFunction(export)
	if f == nil {
		return nil, fmt.Errorf("the program does not export %s: it was rewritten by another version", export)
	}
	r, err := f.Call(ctx, args...)
	if err != nil {
		return nil, fmt.Errorf("call %s: %w", export, err)
	}
	return r, nil
}
