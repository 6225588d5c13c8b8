// Package drivetest runs programs for tests: it stops them at chosen polls and
// moves them from one instance to another, between wazero's engines.
package drivetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
	"github.com/tetratelabs/wazero/sys"

	"meshnode/node/suspend"
	"meshnode/node/suspend/drive"
)

// An Engine is one of wazero's.
type Engine int

// The engines. On some processors there is only the interpreter.
const (
	Compiler Engine = iota
	Interpreter
)

// Config is a new runtime's configuration.
func (e Engine) Config() wazero.RuntimeConfig {
	config := wazero.NewRuntimeConfigInterpreter()
	if e == Compiler {
		config = wazero.NewRuntimeConfig()
	}
	return config.WithCoreFeatures(drive.Features)
}

// A Host makes instances of one program. At most two are alive at a time.
type Host struct {
	TB      testing.TB
	Program *suspend.Program
	Poll    suspend.Poll
	// Imports adds what the program imports to a runtime: WASI, unless set.
	Imports func(ctx context.Context, rt wazero.Runtime)
	// Module configures an instance.
	Module func() wazero.ModuleConfig

	// places are where instances live, by engine: two each, so that one can
	// move between two of a kind.
	places [2][2]place
	// caches have what each engine has compiled, for both of its places.
	caches [2]wazero.CompilationCache
	next   int
}

// A place is a runtime that has compiled the program.
type place struct {
	rt       wazero.Runtime
	compiled wazero.CompiledModule
}

// NewHost returns a host that ends with the test.
func NewHost(tb testing.TB, p *suspend.Program, poll suspend.Poll) *Host {
	h := &Host{TB: tb, Program: p, Poll: poll, Module: wazero.NewModuleConfig}
	h.Imports = func(ctx context.Context, rt wazero.Runtime) {
		wasi_snapshot_preview1.MustInstantiate(ctx, rt)
	}
	tb.Cleanup(func() {
		for _, p := range slices.Concat(h.places[0][:], h.places[1][:]) {
			if p.rt != nil {
				p.rt.Close(context.Background())
			}
		}
		for _, c := range h.caches {
			if c != nil {
				c.Close(context.Background())
			}
		}
	})
	return h
}

// An Instance is a program that runs.
type Instance struct {
	*drive.Driver
	Module api.Module
	host   api.Module
}

// Close ends the instance.
func (i *Instance) Close(ctx context.Context) {
	i.Module.Close(ctx)
	i.host.Close(ctx)
}

// Instance makes an instance.
func (h *Host) Instance(ctx context.Context, e Engine) (*Instance, error) {
	p := &h.places[e][h.next%2]
	h.next++
	d := drive.New(h.Program, h.Poll)
	if p.rt == nil {
		if h.caches[e] == nil {
			h.caches[e] = wazero.NewCompilationCache()
		}
		p.rt = wazero.NewRuntimeWithConfig(ctx, e.Config().WithCompilationCache(h.caches[e]))
		h.Imports(ctx, p.rt)
		var err error
		if p.compiled, err = p.rt.CompileModule(ctx, h.Program.Module); err != nil {
			return nil, err
		}
	}
	host, err := d.Instantiate(ctx, p.rt)
	if err != nil {
		return nil, err
	}
	mod, err := p.rt.InstantiateModule(ctx, p.compiled, h.Module().WithName("").WithStartFunctions())
	if err == nil {
		err = d.Attach(mod)
	}
	if err != nil {
		host.Close(ctx)
		return nil, err
	}
	return &Instance{Driver: d, Module: mod, host: host}, nil
}

// Memory is an instance's memory, or nil.
func Memory(mod api.Module) api.Memory {
	if m := mod.Memory(); !reflect.ValueOf(m).IsNil() {
		return m
	}
	return nil
}

// Move takes a program that is not running to another instance, by way of its
// encoded state, and closes the one it was in.
func (h *Host) Move(ctx context.Context, from *Instance, to Engine) *Instance {
	h.TB.Helper()
	s, err := from.Capture(ctx)
	if err != nil {
		h.TB.Fatal(err)
	}
	b, err := s.AppendBinary(nil)
	if err != nil {
		h.TB.Fatal(err)
	}
	if s, err = suspend.ParseState(b); err != nil {
		h.TB.Fatal(err)
	}
	next, err := h.Instance(ctx, to)
	if err != nil {
		h.TB.Fatal(err)
	}
	if m := Memory(from.Module); m != nil {
		n := Memory(next.Module)
		if m.Size() > n.Size() {
			if _, ok := n.Grow((m.Size() - n.Size()) / 65536); !ok {
				h.TB.Fatal("memory does not grow")
			}
		}
		content, _ := m.Read(0, m.Size())
		n.Write(0, content)
	}
	if err := next.Restore(ctx, s); err != nil {
		h.TB.Fatal(err)
	}
	from.Close(ctx)
	return next
}

// An Outcome is what a call came to.
type Outcome struct {
	Results []uint64
	Err     string // its first line
	Stops   int
	Memory  []byte
}

// Describe is the first line of an error, which is the same in all engines.
func Describe(err error) string {
	if err == nil {
		return ""
	}
	var exit *sys.ExitError
	if errors.As(err, &exit) {
		return fmt.Sprint("exit ", exit.ExitCode())
	}
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

func outcome(mod api.Module, results []uint64, err error) Outcome {
	o := Outcome{Results: results, Err: Describe(err)}
	if m := Memory(mod); m != nil {
		b, _ := m.Read(0, m.Size())
		o.Memory = bytes.Clone(b)
	}
	return o
}

// Equal says whether two calls came to the same.
func (o Outcome) Equal(p Outcome) bool {
	return slices.Equal(o.Results, p.Results) && o.Err == p.Err && bytes.Equal(o.Memory, p.Memory)
}

// Call calls an export of a program rewritten with suspend.Countdown, stops it
// at every n-th poll, and moves it each time to the next of engines; with none
// given it goes on where it is. With n = 0 it never stops.
func (h *Host) Call(ctx context.Context, n int32, engines []Engine, export string, args ...uint64) Outcome {
	h.TB.Helper()
	first := Compiler
	if len(engines) > 0 {
		first = engines[0]
	}
	in, err := h.Instance(ctx, first)
	if err != nil {
		return Outcome{Err: Describe(err)}
	}
	defer func() { in.Close(ctx) }()
	if n > 0 {
		in.Countdown(n)
	}
	if h.Program.Info.Start != "" {
		_, err = in.Call(ctx, suspend.StartExport)
	}
	stops := 0
	finish := func(results []uint64) []uint64 {
		for errors.Is(err, drive.ErrStopped) {
			stops++
			if len(engines) > 0 {
				in = h.Move(ctx, in, engines[stops%len(engines)])
			}
			in.Countdown(n)
			results, err = in.Continue(ctx)
		}
		return results
	}
	results := finish(nil)
	if err == nil {
		results, err = in.Driver.Call(ctx, export, args...)
		results = finish(results)
	}
	o := outcome(in.Module, results, err)
	o.Stops = stops
	return o
}

// Plain calls an export of a module as its author made it.
func Plain(tb testing.TB, module []byte, e Engine, config wazero.ModuleConfig, export string, args ...uint64) Outcome {
	tb.Helper()
	ctx := context.Background()
	rt := wazero.NewRuntimeWithConfig(ctx, e.Config())
	defer rt.Close(ctx)
	wasi_snapshot_preview1.MustInstantiate(ctx, rt)
	mod, err := rt.InstantiateWithConfig(ctx, module, config.WithStartFunctions())
	if err != nil {
		return Outcome{Err: Describe(err)}
	}
	results, err := mod.ExportedFunction(export).Call(ctx, args...)
	return outcome(mod, results, err)
}
