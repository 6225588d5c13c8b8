package node

import (
	"bytes"
	"os"
	"testing"
	"time"

	. "meshnode/node/suspend/wasmtest"
)

// calibrateModule assembles calibrate.wasm.
//
//	meshnode_event(kind i32, id i64, len i32) -> i32:
//	  n i32 = 20000; x i64 = id; a i32; f f64 = 1
//	  loop
//	    x = x*6364136223846793005 + 1442695040888963407   // Knuth's MMIX generator
//	    a = wrap(x >> 33) & 0x3fff8                       // within 256 KiB
//	    mem[a] = mem[a] + x
//	    f = f*0.999 + convert(x >> 40)
//	    n = n - 1; if n goto loop
//	  mem[0] = f                                          // all of it is needed
//	  return 0
func calibrateModule() []byte {
	const kind, id, length, n, x, a, f = 0, 1, 2, 3, 4, 5, 6
	_, _ = kind, length
	i64Mul, i64ShrU, i32Wrap, i32And := Op(0x7e), Op(0x88), Op(0xa7), Op(0x71)
	f64Mul, f64Convert, i32Sub, f64Load := Op(0xa2), Op(0xba), Op(0x6b), Op(0x39, 3, 0)
	localTee := func(i uint32) []byte { return append([]byte{0x22}, U32(i)...) }
	m := new(Module)
	m.Mem(4, 4)
	h := m.Func(Types(I32, I64, I32), Types(I32), Types(I32, I64, I32, F64),
		I32Const(20000), LocalSet(n), LocalGet(id), LocalSet(x), F64Const(1), LocalSet(f),
		Loop,
		LocalGet(x), I64Const(6364136223846793005), i64Mul, I64Const(1442695040888963407), I64Add, LocalSet(x),
		LocalGet(x), I64Const(33), i64ShrU, i32Wrap, I32Const(0x3fff8), i32And, localTee(a),
		LocalGet(a), I64Load, LocalGet(x), I64Add, I64Store,
		LocalGet(f), F64Const(0.999), f64Mul, LocalGet(x), I64Const(40), i64ShrU, f64Convert, F64Add, LocalSet(f),
		LocalGet(n), I32Const(1), i32Sub, localTee(n), BrIf(0),
		End,
		I32Const(0), LocalGet(f), f64Load,
		I32Const(0),
	)
	m.Export("meshnode_event", Function, h)
	return m.Bytes()
}

// TestCalibrateModule holds the embedded module against its source. To change
// it: MESHNODE_UPDATE=1 go test -run TestCalibrateModule; every node measures
// anew then.
func TestCalibrateModule(t *testing.T) {
	want := calibrateModule()
	if os.Getenv("MESHNODE_UPDATE") != "" {
		if err := os.WriteFile("calibrate.wasm", want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if !bytes.Equal(calibrateWasm, want) {
		t.Error("calibrate.wasm is not what this file assembles; run with MESHNODE_UPDATE=1")
	}
}

func TestCalibrate(t *testing.T) {
	n := startNodes(t, 1)[0]
	var kept calibration
	waitFor(t, "the speed, kept and told", func() bool {
		kept = n.speedKept(time.Now())
		return kept.Speed > 0 && kept.Speed == n.mesh.Members()[0].Record.Speed
	})
	t.Logf("%d events a second, %s", kept.Speed, n.engine())
	if c := n.speedKept(time.Now().Add(2 * calibrateKeeps)); c.Speed != 0 {
		t.Errorf("an old result is taken: %+v", c)
	}
	interpreted := &Node{cfg: n.cfg}
	interpreted.cfg.Interpreter = true
	if c := interpreted.speedKept(time.Now()); n.engine() == "compiler" && c.Speed != 0 {
		t.Errorf("another engine's result is taken: %+v", c)
	}
}
