package drive_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"meshnode/node/suspend"
	"meshnode/node/suspend/drive"
	. "meshnode/node/suspend/drive/drivetest"
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
	if msg, err := exec.Command(tool, "--enable-tail-call", "-o", out, in).CombinedOutput(); err != nil {
		tb.Fatalf("%v\n%s", err, msg)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		tb.Fatal(err)
	}
	return b
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
	h := NewHost(t, p, suspend.Countdown)
	for _, test := range []struct {
		export string
		arg    uint64
	}{{"fib", 10}, {"sum", 50}, {"even", 20}, {"nested", 12}, {"multi", 9}} {
		want := Plain(t, module, Interpreter, wazero.NewModuleConfig(), test.export, test.arg)
		for _, n := range []int32{0, 1, 2, 3, 5, 7, 100} {
			t.Run(fmt.Sprintf("%s/%d", test.export, n), func(t *testing.T) {
				h.TB = t
				got := h.Call(ctx, n, []Engine{Compiler, Interpreter}, test.export, test.arg)
				if !got.Equal(want) {
					t.Errorf("got %v %s, want %v %s (%d stops)", got.Results, got.Err, want.Results, want.Err, got.Stops)
				}
			})
		}
	}
}

// BenchmarkFrames measures unwinding a stack of a thousand frames and bringing
// them back: a recursion that is stopped at its bottom and goes on, without the
// time that it takes anyway.
func BenchmarkFrames(b *testing.B) {
	const depth = 1000
	ctx := context.Background()
	p, err := suspend.Rewrite(wat(b, `(module (memory 1)
		(func $down (export "down") (param i32 i64 f64) (result i64) (local i64 i32)
			(if (result i64) (i32.eqz (local.get 0))
				(then (loop $l (br_if $l (i32.lt_u (local.tee 4 (i32.add (local.get 4) (i32.const 1))) (i32.const 3)))) (local.get 1))
				(else
					(local.set 3 (i64.mul (local.get 1) (i64.const 31)))
					(i64.add (i64.trunc_sat_f64_s (local.get 2)) (i64.add (local.get 3)
						(call $down (i32.sub (local.get 0) (i32.const 1)) (local.get 3) (f64.add (local.get 2) (f64.const 1)))))))))`),
		suspend.Options{Poll: suspend.Countdown})
	if err != nil {
		b.Fatal(err)
	}
	in, err := NewHost(b, p, suspend.Countdown).Instance(ctx, Compiler)
	if err != nil {
		b.Fatal(err)
	}
	defer in.Close(ctx)
	run := func(countdown int32) (time.Duration, []uint64) {
		in.Countdown(countdown)
		start := time.Now()
		r, err := in.Call(ctx, "down", depth, 7, 0)
		if countdown == 1 {
			if !errors.Is(err, drive.ErrStopped) {
				b.Fatalf("it did not stop: %v", err)
			}
			in.Countdown(1<<31 - 1)
			r, err = in.Continue(ctx)
		}
		if err != nil {
			b.Fatal(err)
		}
		return time.Since(start), r
	}
	var times []time.Duration
	for b.Loop() {
		plain, want := run(1<<31 - 1)
		stopped, got := run(1)
		if got[0] != want[0] {
			b.Fatalf("got %d, want %d", got[0], want[0])
		}
		times = append(times, stopped-plain)
	}
	slices.Sort(times)
	b.ReportMetric(times[0].Seconds()*1e3, "ms-min")
	b.ReportMetric(times[len(times)/2].Seconds()*1e3, "ms-median")
	b.ReportMetric(0, "ns/op")
}

// TestStop asks a program to stop from another goroutine while it is in an
// endless loop, again and again, and then lets it go.
func TestStop(t *testing.T) {
	// A collection would wait for the loop; see the package's documentation.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	// And whoever asks it to stop needs a processor beside the one it has.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(2, runtime.GOMAXPROCS(0))))
	ctx := context.Background()
	p, err := suspend.Rewrite(wat(t, `(module (memory 1)
		(func (export "_start") (local i64)
			(loop $l
				(i64.store (i32.const 8) (local.tee 0 (i64.add (local.get 0) (i64.const 1))))
				(br_if $l (i32.eqz (i32.load (i32.const 0)))))
			(i64.store (i32.const 16) (local.get 0))))`), suspend.Options{})
	if err != nil {
		t.Fatal(err)
	}
	h := NewHost(t, p, suspend.Flag)
	in, err := h.Instance(ctx, Compiler)
	if err != nil {
		t.Fatal(err)
	}
	stop := func() (wait func()) {
		done := make(chan struct{})
		go func() { in.Stop(); close(done) }()
		return func() { <-done }
	}
	wait := stop()
	_, err = in.Driver.Call(ctx, "_start")
	wait()
	for i := range 20 {
		if !errors.Is(err, drive.ErrStopped) {
			t.Fatalf("got %v", err)
		}
		e := Engine(i % 2)
		if raceDetector {
			e = Compiler // the interpreter is Go code, which the detector sees read the global
		}
		in = h.Move(ctx, in, e)
		wait = stop()
		_, err = in.Continue(ctx)
		wait()
	}
	if !errors.Is(err, drive.ErrStopped) {
		t.Fatalf("got %v", err)
	}
	if _, err := in.Driver.Call(ctx, "_start"); err == nil || errors.Is(err, drive.ErrStopped) {
		t.Errorf("a stopped program was called: %v", err)
	}
	m := Memory(in.Module)
	m.WriteUint32Le(0, 1)
	if _, err = in.Continue(ctx); err != nil {
		t.Fatal(err)
	}
	rounds, _ := m.ReadUint64Le(8)
	at, _ := m.ReadUint64Le(16)
	if rounds == 0 || rounds != at {
		t.Errorf("%d rounds, %d in the end", rounds, at)
	}
	if _, err := in.Continue(ctx); err == nil {
		t.Error("a program that is done was continued")
	}
	in.Close(ctx)
}

// runMoved runs a program to its end, and moves it between the compiler and the
// interpreter whenever it stops; it returns how often that was. At any time *in is
// the instance that runs, for the functions of the host.
func runMoved(t *testing.T, h *Host, in **Instance) (stops int) {
	t.Helper()
	ctx := context.Background()
	var err error
	if *in, err = h.Instance(ctx, Compiler); err != nil {
		t.Fatal(err)
	}
	_, err = (*in).Driver.Call(ctx, "_start")
	for errors.Is(err, drive.ErrStopped) {
		stops++
		*in = h.Move(ctx, *in, Engine(stops%2))
		_, err = (*in).Continue(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	return stops
}

// TestBlock: a call that blocks is made again with the same arguments, wherever
// the program is by then, and takes effect once.
func TestBlock(t *testing.T) {
	ctx := context.Background()
	for _, poll := range []suspend.Poll{suspend.Flag, suspend.Countdown} {
		p, err := suspend.Rewrite(wat(t, `(module
			(import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
			(memory (export "memory") 1)
			(func $get (param i32) (result i32)
				(i32.add (i32.const 1000)
					(i32.mul (call $read (local.get 0) (i32.const 7) (i32.const 8) (i32.const 9)) (i32.const 2))))
			(func (export "_start")
				(i32.store (i32.const 0) (i32.add (call $get (i32.const 3)) (call $get (i32.const 4))))))`), suspend.Options{Poll: poll})
		if err != nil {
			t.Fatal(err)
		}
		h := NewHost(t, p, poll)
		var in *Instance
		var calls [][4]uint64
		blocks := 3
		h.Imports = func(ctx context.Context, rt wazero.Runtime) {
			i32 := api.ValueTypeI32
			_, err := rt.NewHostModuleBuilder("wasi_snapshot_preview1").NewFunctionBuilder().
				WithGoFunction(api.GoFunc(func(_ context.Context, stack []uint64) {
					calls = append(calls, [4]uint64(stack))
					if len(calls)%4 <= blocks && len(calls)%4 > 0 {
						in.Block()
						stack[0] = 99 // is ignored
						return
					}
					stack[0] = 5 + stack[0]
				}), []api.ValueType{i32, i32, i32, i32}, []api.ValueType{i32}).Export("fd_read").Instantiate(ctx)
			if err != nil {
				t.Fatal(err)
			}
		}
		stops := runMoved(t, h, &in)
		got, _ := Memory(in.Module).ReadUint32Le(0)
		if want := uint32(1000 + 8*2 + 1000 + 9*2); got != want || stops != 6 {
			t.Errorf("poll %d: got %d after %d stops, want %d after 6", poll, got, stops, want)
		}
		for i, c := range calls {
			if want := [4]uint64{3 + uint64(i/4), 7, 8, 9}; c != want {
				t.Errorf("poll %d: call %d with %v, want %v", poll, i, c, want)
			}
		}
		in.Close(ctx)
	}
}

// TestReferenceByType: a frame can hold a reference in a module that makes none, and
// uses none in code that is reached.
func TestReferenceByType(t *testing.T) {
	ctx := context.Background()
	for name, function := range map[string]string{
		"parameter": `(func $f (param $r funcref) (loop $l (br_if $l (call $more))) (drop (ref.is_null (local.get $r))))
			(func (export "_start") (if (call $more) (then (call $f (unreachable)))))`,
		"result": `(func $f (result funcref) (unreachable))
			(func (export "_start") (if (call $more) (then (call $f) (loop $l (br_if $l (call $more))) (drop))))`,
		"block": `(func (export "_start") (if (call $more) (then
			(block (result funcref) (unreachable)) (loop $l (br_if $l (call $more))) (drop))))`,
	} {
		t.Run(name, func(t *testing.T) {
			p, err := suspend.Rewrite(wat(t, `(module (memory (export "memory") 1)
				(func $more (result i32) (i32.load (i32.const 0)))
				`+function+`)`), suspend.Options{Poll: suspend.Flag})
			if err != nil {
				t.Fatal(err)
			}
			for _, engine := range []Engine{Compiler, Interpreter} {
				in, err := NewHost(t, p, suspend.Flag).Instance(ctx, engine)
				if err == nil {
					_, err = in.Driver.Call(ctx, "_start")
				}
				if err != nil {
					t.Errorf("%v: %v", engine, err)
				}
			}
		})
	}
}

// TestBlockByReference: a host function that can block stops the program however it
// is reached, and gets its arguments again.
func TestBlockByReference(t *testing.T) {
	ctx := context.Background()
	const arguments = `(i32.const 3) (i32.const 7) (i32.const 8) (i32.const 9) `
	for name, test := range map[string]struct{ declare, get string }{
		"call":                 {"", `(call $read ` + arguments + `)`},
		"return_call":          {"", `(return_call $read ` + arguments + `)`},
		"call_indirect":        {`(elem (i32.const 0) $read)`, `(call_indirect (type $y) ` + arguments + `(i32.const 0))`},
		"return_call_indirect": {`(elem (i32.const 0) $read)`, `(return_call_indirect (type $y) ` + arguments + `(i32.const 0))`},
		"ref.func": {`(elem declare func $read)`,
			`(table.set $t (i32.const 1) (ref.func $read)) (call_indirect (type $y) ` + arguments + `(i32.const 1))`},
		"exported": {`(export "read" (func $read))`,
			`(table.set $t (i32.const 1) (ref.func $read)) (call_indirect (type $y) ` + arguments + `(i32.const 1))`},
		"global": {`(global $g funcref (ref.func $read))`,
			`(table.set $t (i32.const 1) (global.get $g)) (call_indirect (type $y) ` + arguments + `(i32.const 1))`},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := suspend.Rewrite(wat(t, `(module
				(import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))
				(import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
				(memory (export "memory") 1)
				(type $y (func (param i32 i32 i32 i32) (result i32)))
				(table $t 2 funcref)
				`+test.declare+`
				(func $get (result i32) `+test.get+`)
				(func (export "_start")
					(i32.store (i32.const 0) (i32.add (i32.const 1000) (call $get)))
					(i32.store (i32.const 4) (call $close (i32.const 5)))))`), suspend.Options{Poll: suspend.Flag})
			if err != nil {
				t.Fatal(err)
			}
			h := NewHost(t, p, suspend.Flag)
			var in *Instance
			var calls [][4]uint32
			h.Imports = func(ctx context.Context, rt wazero.Runtime) {
				i32 := api.ValueTypeI32
				_, err := rt.NewHostModuleBuilder("wasi_snapshot_preview1").NewFunctionBuilder().
					WithGoFunction(api.GoFunc(func(_ context.Context, stack []uint64) {
						calls = append(calls, [4]uint32{uint32(stack[0]), uint32(stack[1]), uint32(stack[2]), uint32(stack[3])})
						if len(calls) < 3 {
							in.Block()
							stack[0] = 99 // is ignored
							return
						}
						stack[0] = 5 + uint64(uint32(stack[0]))
					}), []api.ValueType{i32, i32, i32, i32}, []api.ValueType{i32}).Export("fd_read").NewFunctionBuilder().
					WithGoFunction(api.GoFunc(func(context.Context, []uint64) {}), []api.ValueType{i32}, []api.ValueType{i32}).Export("fd_close").
					Instantiate(ctx)
				if err != nil {
					t.Fatal(err)
				}
			}
			stops := runMoved(t, h, &in)
			if got, _ := Memory(in.Module).ReadUint32Le(0); got != 1008 || stops != 2 {
				t.Errorf("got %d after %d stops, want 1008 after 2", got, stops)
			}
			if got, _ := Memory(in.Module).ReadUint32Le(4); got != 5 {
				t.Errorf("another function returned %d, want 5", got)
			}
			for i, c := range calls {
				if c != [4]uint32{3, 7, 8, 9} {
					t.Errorf("call %d with %v", i, c)
				}
			}
			in.Close(ctx)
		})
	}
}

// TestHostile: whatever frames say, if they are accepted, running them returns,
// traps or stops, and does not bring the host down.
func TestHostile(t *testing.T) {
	ctx := context.Background()
	module := wat(t, texts)
	p, err := suspend.Rewrite(module, suspend.Options{Poll: suspend.Countdown})
	if err != nil {
		t.Fatal(err)
	}
	h := NewHost(t, p, suspend.Countdown)
	in, err := h.Instance(ctx, Compiler)
	if err != nil {
		t.Fatal(err)
	}
	in.Countdown(40)
	if _, err = in.Driver.Call(ctx, "nested", 12); !errors.Is(err, drive.ErrStopped) {
		t.Fatal(err)
	}
	good, err := in.Capture(ctx)
	if err != nil {
		t.Fatal(err)
	}
	in.Close(ctx)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	accepted := 0
	for range 300 {
		b, err := good.AppendBinary(nil)
		if err != nil {
			t.Fatal(err)
		}
		s, err := suspend.ParseState(b)
		if err != nil {
			t.Fatal(err)
		}
		for range 1 + rng.IntN(3) {
			f := &s.Frames[rng.IntN(len(s.Frames))]
			switch rng.IntN(6) {
			case 0:
				f.Point = uint32(rng.IntN(12))
			case 1:
				f.Function = uint32(rng.IntN(8))
			case 2:
				s.Frames = append(s.Frames, *f)
			default:
				if len(f.Values) > 0 {
					f.Values[rng.IntN(len(f.Values))] = rng.Uint64() >> rng.IntN(64)
				}
			}
		}
		in, err := h.Instance(ctx, Compiler)
		if err != nil {
			t.Fatal(err)
		}
		if err := in.Restore(ctx, s); err == nil {
			accepted++
			in.Countdown(1000)
			in.Continue(ctx)
		}
		in.Close(ctx)
	}
	if accepted == 0 {
		t.Error("none was accepted, so nothing was tested")
	}
}
