package drive_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/tetratelabs/wazero"

	"meshnode/node/suspend"
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
	if msg, err := exec.Command(tool, "-o", out, in).CombinedOutput(); err != nil {
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
