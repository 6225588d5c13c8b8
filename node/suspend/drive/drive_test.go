package drive_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
	"github.com/tetratelabs/wazero/sys"

	"meshnode/node/suspend"
	"meshnode/node/suspend/drive"
)

// wat assembles a module in text form.
func wat(tb testing.TB, text string) []byte {
	tb.Helper()
	tool, err := exec.LookPath("wat2wasm")
	if err != nil {
		tb.Skip("needs wabt:", err)
	}
	dir := tb.TempDir()
	in, out := filepath.Join(dir, "a.wat"), filepath.Join(dir, "a.wasm")
	if err := os.WriteFile(in, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
	if msg, err := exec.Command(tool, "-o", out, in).CombinedOutput(); err != nil {
		tb.Fatalf("%v\n%s", err, msg)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// An engine is one of wazero's.
type engine int

const (
	compiler engine = iota
	interpreter
)

func (e engine) config() wazero.RuntimeConfig {
	if e == compiler {
		return wazero.NewRuntimeConfigCompiler()
	}
	return wazero.NewRuntimeConfigInterpreter()
}

// A host makes instances of one program, each in a runtime of its own.
type host struct {
	tb      testing.TB
	program *suspend.Program
	poll    suspend.Poll
	caches  [2]wazero.CompilationCache
	imports func(ctx context.Context, rt wazero.Runtime, d *drive.Driver)
	config  func() wazero.ModuleConfig
}

func newHost(tb testing.TB, p *suspend.Program, poll suspend.Poll) *host {
	h := &host{tb: tb, program: p, poll: poll}
	for i := range h.caches {
		h.caches[i] = wazero.NewCompilationCache()
	}
	h.imports = func(ctx context.Context, rt wazero.Runtime, _ *drive.Driver) {
		wasi_snapshot_preview1.MustInstantiate(ctx, rt)
	}
	h.config = wazero.NewModuleConfig
	tb.Cleanup(func() {
		for _, c := range h.caches {
			c.Close(context.Background())
		}
	})
	return h
}

// An instance is a program that runs.
type instance struct {
	*drive.Driver
	rt  wazero.Runtime
	mod api.Module
}

func (h *host) instance(ctx context.Context, e engine) (*instance, error) {
	rt := wazero.NewRuntimeWithConfig(ctx, e.config().WithCompilationCache(h.caches[e]))
	d := drive.New(h.program, h.poll)
	if _, err := d.Instantiate(ctx, rt); err != nil {
		return nil, err
	}
	h.imports(ctx, rt, d)
	mod, err := rt.InstantiateWithConfig(ctx, h.program.Module, h.config().WithStartFunctions())
	if err != nil {
		rt.Close(ctx)
		return nil, err
	}
	if err := d.Attach(mod); err != nil {
		rt.Close(ctx)
		return nil, err
	}
	return &instance{Driver: d, rt: rt, mod: mod}, nil
}

// memory is an instance's memory, or nil.
func memory(mod api.Module) api.Memory {
	if m := mod.Memory(); !reflect.ValueOf(m).IsNil() {
		return m
	}
	return nil
}

// move takes a stopped program to another instance.
func (h *host) move(ctx context.Context, from *instance, to engine) *instance {
	h.tb.Helper()
	s, err := from.Capture(ctx)
	if err != nil {
		h.tb.Fatal(err)
	}
	b, err := s.AppendBinary(nil)
	if err != nil {
		h.tb.Fatal(err)
	}
	if s, err = suspend.ParseState(b); err != nil {
		h.tb.Fatal(err)
	}
	next, err := h.instance(ctx, to)
	if err != nil {
		h.tb.Fatal(err)
	}
	if m := memory(from.mod); m != nil {
		n := memory(next.mod)
		if m.Size() > n.Size() {
			if _, ok := n.Grow((m.Size() - n.Size()) / 65536); !ok {
				h.tb.Fatal("memory does not grow")
			}
		}
		content, _ := m.Read(0, m.Size())
		n.Write(0, content)
	}
	if err := next.Restore(ctx, s); err != nil {
		h.tb.Fatal(err)
	}
	from.rt.Close(ctx)
	return next
}

// An outcome is what a call came to.
type outcome struct {
	results []uint64
	err     string
	stops   int
	memory  []byte
}

func describe(err error) string {
	if err == nil {
		return ""
	}
	var exit *sys.ExitError
	if errors.As(err, &exit) {
		return fmt.Sprint("exit ", exit.ExitCode())
	}
	s := err.Error()
	if i := bytes.IndexByte([]byte(s), '\n'); i >= 0 {
		s = s[:i]
	}
	return s
}

// call calls an export and stops it at every n-th poll, moving it each time.
func (h *host) call(ctx context.Context, n int32, engines []engine, export string, args ...uint64) outcome {
	h.tb.Helper()
	in, err := h.instance(ctx, engines[0])
	if err != nil {
		return outcome{err: describe(err)}
	}
	defer func() { in.rt.Close(ctx) }()
	if h.program.Info.Start != "" {
		if _, err := in.Call(ctx, suspend.StartExport); err != nil {
			return outcome{err: describe(err)}
		}
	}
	if n > 0 {
		in.Countdown(n)
	}
	results, err := in.Call(ctx, export, args...)
	stops := 0
	for errors.Is(err, drive.ErrStopped) {
		stops++
		in = h.move(ctx, in, engines[stops%len(engines)])
		in.Countdown(n)
		results, err = in.Continue(ctx)
	}
	o := outcome{results: results, err: describe(err), stops: stops}
	if m := memory(in.mod); m != nil {
		b, _ := m.Read(0, m.Size())
		o.memory = bytes.Clone(b)
	}
	return o
}

// plain calls an export of the module as it was.
func plain(tb testing.TB, module []byte, e engine, export string, args ...uint64) outcome {
	ctx := context.Background()
	rt := wazero.NewRuntimeWithConfig(ctx, e.config())
	defer rt.Close(ctx)
	wasi_snapshot_preview1.MustInstantiate(ctx, rt)
	mod, err := rt.InstantiateWithConfig(ctx, module, wazero.NewModuleConfig().WithStartFunctions())
	if err != nil {
		return outcome{err: describe(err)}
	}
	results, err := mod.ExportedFunction(export).Call(ctx, args...)
	o := outcome{results: results, err: describe(err)}
	if m := memory(mod); m != nil {
		b, _ := m.Read(0, m.Size())
		o.memory = bytes.Clone(b)
	}
	return o
}

const texts = `(module
	(memory 1)
	(table $t 4 funcref)
	(elem (i32.const 0) $fib $even)
	(type $f (func (param i64) (result i64)))
	(global $g (mut i64) (i64.const 7))
	(func $fib (export "fib") (param i64) (result i64)
		(if (result i64) (i64.lt_s (local.get 0) (i64.const 2))
			(then (local.get 0))
			(else (i64.add (call $fib (i64.sub (local.get 0) (i64.const 1)))
				(call $fib (i64.sub (local.get 0) (i64.const 2)))))))
	(func (export "sum") (param i64) (result i64) (local i64 f32 f64)
		(local.set 2 (f32.const 1.5)) (local.set 3 (f64.const 0.25))
		(loop $l
			(local.set 1 (i64.add (local.get 1) (local.get 0)))
			(local.set 2 (f32.add (local.get 2) (f32.const 1)))
			(local.set 3 (f64.mul (local.get 3) (f64.const 1.25)))
			(br_if $l (i64.ne (i64.const 0) (local.tee 0 (i64.sub (local.get 0) (i64.const 1))))))
		(i64.add (local.get 1) (i64.add (i64.trunc_sat_f32_s (local.get 2)) (i64.trunc_sat_f64_s (local.get 3)))))
	(func $even (param i64) (result i64)
		(if (i64.eqz (local.get 0)) (then (return (i64.const 1))))
		(i64.const 1000)
		(call $odd (i64.sub (local.get 0) (i64.const 1)))
		(i64.add))
	(func $odd (param i64) (result i64)
		(if (i64.eqz (local.get 0)) (then (return (i64.const 0))))
		(call_indirect (type $f) (i64.sub (local.get 0) (i64.const 1)) (i32.const 1)))
	(func (export "even") (param i64) (result i64) (call $even (local.get 0)))
	(func (export "nested") (param i64) (result i64) (local i64 i64 v128)
		(i64.const 5)
		(block $b (result i64)
			(loop $outer (result i64)
				(local.set 1 (i64.const 0))
				(local.set 3 (i64x2.splat (local.get 0)))
				(loop $inner
					(local.set 2 (i64.add (local.get 2) (i64.mul (local.get 0) (local.get 1))))
					(local.set 2 (i64.add (local.get 2) (i64x2.extract_lane 1 (local.get 3))))
					(if (i64.eq (i64.and (local.get 1) (i64.const 3)) (i64.const 1))
						(then (local.set 2 (i64.add (local.get 2) (call $fib (local.get 1)))))
						(else (local.set 3 (i64x2.add (local.get 3) (local.get 3)))
							(loop $third (drop (call $fib (i64.const 2))))))
					(local.set 1 (i64.add (local.get 1) (i64.const 1)))
					(br_if $inner (i64.lt_u (local.get 1) (local.get 0))))
				(drop (br_if $b (local.get 2) (i64.gt_u (local.get 2) (i64.const 1000000))))
				(local.set 0 (i64.sub (local.get 0) (i64.const 1)))
				(br_if $outer (i64.ne (local.get 0) (i64.const 0)))
				(i64.const 3)
				(global.set $g (i64.add (global.get $g) (call $fib (i64.const 5))))))
		(i64.sub)
		(i64.add (global.get $g)))
	(func (export "multi") (param i64) (result i64 i64) (local i64)
		(i64.const 1) (i64.const 2) (local.get 0)
		(loop $l (param i64 i64 i64) (result i64 i64)
			(local.set 0)
			(i64.add (call $fib (i64.const 3)))
			(i64.const 3)
			(local.get 0)
			(i64.sub (i64.const 1))
			(br_if $l (i64.ne (i64.const 0) (local.tee 1 (i64.sub (local.get 0) (i64.const 1)))))
			(drop) (i64.add))))`

func TestStops(t *testing.T) {
	ctx := context.Background()
	module := wat(t, texts)
	p, err := suspend.Rewrite(module, suspend.Options{Poll: suspend.Countdown})
	if err != nil {
		t.Fatal(err)
	}
	h := newHost(t, p, suspend.Countdown)
	for _, test := range []struct {
		export string
		arg    uint64
	}{{"fib", 10}, {"sum", 50}, {"even", 20}, {"nested", 12}, {"multi", 9}} {
		want := plain(t, module, interpreter, test.export, test.arg)
		for _, n := range []int32{0, 1, 2, 3, 5, 7, 100} {
			t.Run(fmt.Sprintf("%s/%d", test.export, n), func(t *testing.T) {
				h.tb = t
				got := h.call(ctx, n, []engine{compiler, interpreter}, test.export, test.arg)
				if !reflect.DeepEqual(got.results, want.results) || got.err != want.err {
					t.Errorf("got %v %s, want %v %s (%d stops)", got.results, got.err, want.results, want.err, got.stops)
				}
				t.Logf("%d stops", got.stops)
			})
		}
	}
}
