package drive_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/tetratelabs/wazero"

	"meshnode/node/suspend"
	"meshnode/node/suspend/drive"
	. "meshnode/node/suspend/drive/drivetest"
)

const tailTexts = `(module
	(import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
	(memory (export "memory") 1)
	(type $step (func (param i64 i64) (result i64)))
	(table $t 4 funcref)
	(elem (i32.const 0) $add $turn $jump)
	(func $fib (param i64) (result i64)
		(if (result i64) (i64.lt_s (local.get 0) (i64.const 2))
			(then (local.get 0))
			(else (i64.add (call $fib (i64.sub (local.get 0) (i64.const 1)))
				(call $fib (i64.sub (local.get 0) (i64.const 2)))))))
	(func $plain (param i64) (result i64) (i64.mul (local.get 0) (i64.const 3)))

	;; Two that take turns, with values of all types and things left on the stack.
	(func $even (param i64 f64 v128 f32) (result i64)
		(if (i64.eqz (local.get 0))
			(then (return (i64.add (i64.trunc_sat_f64_s (local.get 1))
				(i64.add (i64x2.extract_lane 1 (local.get 2)) (i64.trunc_sat_f32_s (local.get 3)))))))
		(i32.const 7) (i64.const 8)
		(return_call $odd (i64.sub (local.get 0) (i64.const 1)) (f64.add (local.get 1) (f64.const 1.25))
			(i64x2.add (local.get 2) (local.get 2)) (f32.sub (local.get 3) (f32.const 1))))
	(func $odd (param i64 f64 v128 f32) (result i64)
		(if (i64.eqz (local.get 0)) (then (return_call $plain (i64.const 5))))
		(block (block (br_table 0 1 (i32.wrap_i64 (local.get 0))))
			(return_call $even (i64.sub (local.get 0) (i64.const 1)) (local.get 1)
				(i64x2.add (local.get 2) (i64x2.splat (local.get 0))) (local.get 3)))
		(return_call $even (i64.sub (local.get 0) (i64.const 1)) (local.get 1) (local.get 2) (f32.add (local.get 3) (f32.const 2))))
	(func (export "turns") (param i64) (result i64)
		(i64.add (call $even (local.get 0) (f64.const 0.5) (i64x2.splat (i64.const 3)) (f32.const 2))
			(call $even (i64.add (local.get 0) (i64.const 1)) (f64.const 0.5) (i64x2.splat (i64.const 3)) (f32.const 2))))

	;; A threaded interpreter.
	(func $add (param i64 i64) (result i64)
		(return_call_indirect (type $step) (local.get 0) (i64.add (local.get 1) (local.get 0)) (i32.const 1)))
	(func $turn (param i64 i64) (result i64)
		(return_call_indirect (type $step) (local.get 0) (i64.rotl (local.get 1) (i64.const 3)) (i32.const 2)))
	(func $jump (param i64 i64) (result i64)
		(if (i64.eqz (local.get 0)) (then (return (local.get 1))))
		(return_call_indirect (type $step) (i64.sub (local.get 0) (i64.const 1)) (local.get 1) (i32.const 0)))
	(func (export "threaded") (param i64) (result i64)
		(return_call $add (local.get 0) (i64.const 1)))
	(func (export "traps") (param i64) (result i64)
		(return_call_indirect (type $step) (local.get 0) (i64.const 1) (i32.const 3)))

	;; Out of a loop that calls, and as often as it likes.
	(func $loop (param i64 i64) (result i64) (local i64)
		(local.set 2 (i64.const 3))
		(loop $l
			(local.set 1 (i64.add (local.get 1) (call $fib (local.get 2))))
			(if (i64.gt_u (local.get 1) (i64.const 100))
				(then (if (i64.eqz (local.get 0)) (then (return (local.get 1))))
					(return_call $loop (i64.sub (local.get 0) (i64.const 1)) (i64.sub (local.get 1) (i64.const 90)))))
			(br_if $l (i64.ne (i64.const 0) (local.tee 2 (i64.sub (local.get 2) (i64.const 1))))))
		(return_call $loop (local.get 0) (i64.add (local.get 1) (local.get 0))))
	(func (export "loops") (param i64) (result i64)
		(i64.add (i64.const 1000000) (call $loop (local.get 0) (i64.const 50))))

	;; A function of the host's that can block.
	(func $yields (param i64) (result i32)
		(if (i64.eqz (local.get 0)) (then (return_call $yield)))
		(drop (call $yield))
		(return_call $yields (i64.sub (local.get 0) (i64.const 1))))
	(func (export "yields") (param i64) (result i64) (i64.extend_i32_u (call $yields (local.get 0)))))`

// Programs that call by tail calls, stopped at every n-th poll.
func TestTailCalls(t *testing.T) {
	ctx := context.Background()
	module := wat(t, tailTexts)
	for name, o := range map[string]suspend.Options{
		"as it is": {}, "everywhere": {Everywhere: true}, "once": {Once: true}, "everywhere, once": {Everywhere: true, Once: true},
	} {
		o.Poll = suspend.Countdown
		p, err := suspend.Rewrite(module, o)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := suspend.ParseProgram(p.AppendBinary(nil)); err != nil {
			t.Fatal(err)
		} else {
			p = again // with all that a cached one has
		}
		h := NewHost(t, p, suspend.Countdown)
		for _, test := range []struct {
			export string
			arg    uint64
		}{{"turns", 20}, {"threaded", 25}, {"traps", 3}, {"loops", 6}, {"yields", 5}} {
			want := Plain(t, module, Interpreter, wazero.NewModuleConfig(), test.export, test.arg)
			for _, n := range []int32{0, 1, 2, 3, 5, 100} {
				t.Run(fmt.Sprintf("%s/%s/%d", name, test.export, n), func(t *testing.T) {
					h.TB = t
					got := h.Call(ctx, n, []Engine{Compiler, Interpreter}, test.export, test.arg)
					if !got.Equal(want) {
						t.Errorf("got %v %s, want %v %s (%d stops)", got.Results, got.Err, want.Results, want.Err, got.Stops)
					}
					if n == 1 && got.Stops < 3 && want.Err == "" {
						t.Errorf("%d stops", got.Stops)
					}
				})
			}
		}
	}
}

// However often functions have stood for each other, there is one frame of them.
func TestTailFrames(t *testing.T) {
	ctx := context.Background()
	p, err := suspend.Rewrite(wat(t, tailTexts), suspend.Options{Poll: suspend.Countdown})
	if err != nil {
		t.Fatal(err)
	}
	h := NewHost(t, p, suspend.Countdown)
	for _, e := range []Engine{Compiler, Interpreter} {
		in, err := h.Instance(ctx, e)
		if err != nil {
			t.Fatal(err)
		}
		in.Countdown(1_000_001)
		if _, err := in.Driver.Call(ctx, "turns", 100_000_000); !errors.Is(err, drive.ErrStopped) {
			t.Fatalf("the call ended with %v", err)
		}
		s, err := in.Capture(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Frames) != 2 {
			t.Errorf("%d frames, want those of turns and of who stands for even", len(s.Frames))
		}
		// Another function of the same type that nobody calls so cannot be there,
		// nor one with other results.
		for _, f := range []uint32{1, 5, 8} {
			bad := *s
			bad.Frames = append([]suspend.Frame(nil), s.Frames...)
			bad.Frames[1].Function = f
			if err := bad.Check(p); err == nil {
				t.Errorf("function %d stands for even", f)
			}
		}
		in.Close(ctx)
	}
}
