package suspend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/tetratelabs/wazero"

	. "meshnode/node/suspend/wasmtest"
)

// operands pushes n operands for a test of one instruction, of types found by
// trying.
var operandTypes = []byte{I32, I64, F32, F64, V128, Funcref}

func push(typ byte) []byte {
	switch typ {
	case I32:
		return I32Const(0)
	case I64:
		return I64Const(0)
	case F32:
		return F32Const(0)
	case F64:
		return F64Const(0)
	case V128:
		return append([]byte{0xfd, 12}, make([]byte, 16)...)
	}
	return Op(0xd0, Funcref)
}

// TestEffects checks the table of what each instruction takes and leaves against
// the runtime: with the operands and the result that the table says there must
// be types that the runtime accepts, and in a function that is rewritten they
// must still be accepted.
func TestEffects(t *testing.T) {
	ctx := context.Background()
	rt := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter().WithCoreFeatures(features))
	defer rt.Close(ctx)
	compiles := func(module []byte) bool {
		c, err := rt.CompileModule(ctx, module)
		if err == nil {
			c.Close(ctx)
		}
		return err == nil
	}
	for op, fx := range effects {
		if !fx.ok {
			continue
		}
		var ins []byte
		var imm immediate
		switch {
		case op >= 0x200:
			ins, imm = append([]byte{0xfd}, U32(uint32(op-0x200))...), fdImmediate[op-0x200]
		case op >= 0x100:
			ins, imm = append([]byte{0xfc}, U32(uint32(op-0x100))...), fcImmediate[op-0x100]
		default:
			ins, imm = []byte{byte(op)}, opImmediate[op]
		}
		size := map[immediate]int{immNone: 0, immIndex: 1, immHidden1: 1, immHidden2: 2, immMemarg: 2, immMemLane: 3,
			immLane: 1, immMemory: 1, immMemory2: 2, immDataMem: 2, immI32: 1, immI64: 1, imm4: 4, imm8: 8, imm16: 16}
		ins = append(ins, make([]byte, size[imm])...)
		build := func(types []byte) []byte {
			m := new(Module)
			m.Mem(1, 0)
			m.Tab(2)
			var code [][]byte
			for _, typ := range types {
				code = append(code, push(typ))
			}
			code = append(code, ins)
			if fx.push != 0 {
				code = append(code, Loop, End, LocalSet(0)) // a point, with the result on the stack
			}
			var locals []byte
			if fx.push != 0 {
				locals = Types(fx.push)
			}
			m.Func(nil, nil, locals, code...)
			m.ElemRaw(1, 0, 1, 0)
			m.Passive("x")
			return m.Bytes()
		}
		found := false
		combinations := 1
		for range fx.pops {
			combinations *= len(operandTypes)
		}
		for n := 0; n < combinations && !found; n++ {
			types := make([]byte, fx.pops)
			for i, rest := 0, n; i < len(types); i, rest = i+1, rest/len(operandTypes) {
				types[i] = operandTypes[rest%len(operandTypes)]
			}
			module := build(types)
			if !compiles(module) {
				continue
			}
			found = true
			p, err := Rewrite(module, Options{})
			if err != nil {
				t.Errorf("%#x: %v", op, err)
			} else if !compiles(p.Module) {
				t.Errorf("%#x: the rewritten module does not compile", op)
			}
		}
		if !found {
			t.Errorf("%#x: no types of %d operands leave a result of %s", op, fx.pops, typeName(fx.push))
		}
	}
}

// A frame that holds a reference to the host's own things is refused, with the
// place.
func TestRewriteRefused(t *testing.T) {
	for _, test := range []struct {
		feature string
		module  []byte
	}{
		{"externref in a frame", func() []byte {
			m := new(Module)
			m.Mem(1, 0)
			m.Func(Types(Externref), Types(Externref), nil, Loop, End, LocalGet(0))
			return m.Bytes()
		}()},
		{"externref in a frame", func() []byte {
			// One that the host may have to be asked for again.
			m := new(Module)
			m.Import("host", "wait", Types(Externref), nil)
			m.Mem(1, 0)
			m.Func(Types(Externref), nil, nil, LocalGet(0), Invoke(0))
			return m.Bytes()
		}()},
		{"externref in a frame", func() []byte {
			// A result, of a frame that comes back.
			m := new(Module)
			m.Mem(1, 0)
			m.Func(nil, Types(Externref), nil, Loop, End, Op(0xd0, Externref))
			return m.Bytes()
		}()},
		{"call_ref", with(Op(0x14, 0))},
		{"malformed module", with(Op(0x12, 99))},
		{"malformed module", with(I32Const(0), Op(0x13, 0, 7))},
		{"externref table", func() []byte {
			m := new(Module)
			m.Mem(1, 0)
			m.TabRaw(Externref, 0, 1)
			return m.Bytes()
		}()},
		{"malformed module", with(Br(7))},
		{"malformed module", with(LocalGet(9), Drop)},
		{"malformed module", with(Invoke(99))},
	} {
		_, err := Rewrite(test.module, Options{Foreign: true, Everywhere: true})
		var e *RefusedError
		if !errors.As(err, &e) || e.Feature != test.feature || e.Where == "" || e.Hint == "" {
			t.Errorf("%s: got %v", test.feature, err)
		}
	}
	// One that cannot be on the stack when the program stops is no harm.
	m := new(Module)
	m.Mem(1, 0)
	m.Func(Types(Externref), Types(Externref), nil, LocalGet(0))
	if _, err := Rewrite(m.Bytes(), Options{}); err != nil {
		t.Error(err)
	}
}

// A function suspends if it loops, recurs, can block, or calls one that does,
// also through a table.
func TestPlan(t *testing.T) {
	m := new(Module)
	read := m.Import(WASIModule, "fd_read", Types(I32, I32, I32, I32), Types(I32))
	now := m.Import(HostModule, "clock", nil, Types(I64))
	m.Mem(1, 0)
	m.Tab(2)
	args := Cat(I32Const(0), I32Const(0), I32Const(0), I32Const(0))
	leaf := m.Func(nil, nil, nil)
	loop := m.Func(nil, nil, nil, Loop, End)
	self := m.Func(Types(I32), nil, nil, LocalGet(0), Invoke(4))
	ping := m.Func(nil, Types(F32), nil, Invoke(6))
	pong := m.Func(nil, Types(F32), nil, Invoke(5))
	reads := m.Func(nil, nil, nil, args, Invoke(read), Drop)
	clock := m.Func(nil, nil, nil, Invoke(now), Drop, Invoke(leaf))
	above := m.Func(nil, nil, nil, Invoke(reads))
	m.Elem(0, leaf)
	indirect := m.Func(Types(F64), nil, nil, I32Const(0), Op(0x11, 2, 0)) // of leaf's type
	b := m.Bytes()
	want := map[uint32]bool{loop: true, self: true, ping: true, pong: true, reads: true, above: true}
	p, err := Rewrite(b, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for f := leaf; f <= indirect; f++ {
		if _, got := p.byIndex[f]; got != want[f] {
			t.Errorf("function %d suspends: %v, want %v", f, got, want[f])
		}
	}
	// What a table may hold is what references there are.
	m.Elem(1, loop)
	if p, err = Rewrite(m.Bytes(), Options{}); err != nil {
		t.Fatal(err)
	}
	if _, got := p.byIndex[indirect]; !got {
		t.Error("an indirect call may reach a loop, and is not a suspend point")
	}
	_ = clock
}

// FuzzRewrite: any bytes are refused or rewritten, and what is rewritten is as
// valid as it was.
func FuzzRewrite(f *testing.F) {
	f.Add(with(Loop, I32Const(1), BrIf(0), End), true)
	f.Add(with(Block, I32Const(0), If, Br(1), End, End), false)
	f.Add(with(I32Const(0), Op(0xd2, 0), Op(0x26, 0), Op(0xfc, 13, 0)), true)
	f.Add(with(Op(0x02, I32), I32Const(1), I32Const(2), BrIf(0), End, Drop), true)
	f.Add(with(Loop, I32Const(1), BrIf(0), I32Const(0), If, Op(0x12, 0), End, I32Const(0), Op(0x13, 0, 0), End), false)
	tail := new(Module)
	tail.Import(WASIModule, "sched_yield", nil, Types(I32))
	tail.Mem(1, 2)
	tail.Func(nil, Types(I32), nil, I32Const(3), Op(0x12, 0))
	f.Add(tail.Bytes(), true)
	m := new(Module)
	m.Import(WASIModule, "fd_read", Types(I32, I32, I32, I32), Types(I32))
	m.Mem(1, 2)
	m.Tab(3)
	m.Glob(I64, true, I64Const(1))
	m.Glob(V128, true, push(V128))
	m.Elem(0, 1)
	m.Passive("more")
	m.Func(Types(I64), Types(F64, I32), Types(F32), LocalGet(0), I32Const(1), I32Const(2), I32Const(3), I32Const(4), Invoke(0),
		Op(0x04, I32), I32Const(5), Loop, End, Op(0x05), I32Const(7), End, Drop, Drop, Op(0xfc, 9, 0), F64Const(1), I32Const(2))
	m.Custom("name", []byte{1, 4, 1, 1, 1, 'f'})
	f.Add(m.Bytes(), true)
	// A module's name that is longer than its subsection.
	m = new(Module)
	m.Custom("name", []byte{0, 0, 3, 2, '0', '0'})
	f.Add(m.Bytes(), true)
	ctx := context.Background()
	rt := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter().WithCoreFeatures(features))
	f.Cleanup(func() { rt.Close(ctx) })
	f.Fuzz(func(t *testing.T, module []byte, everywhere bool) {
		o := Options{Everywhere: everywhere, Foreign: true, Once: len(module)%2 == 0}
		p, err := Rewrite(module, o)
		if err != nil {
			var e *RefusedError
			if !errors.As(err, &e) || e.Feature == "" || e.Where == "" || e.Why == "" || e.Hint == "" {
				t.Fatalf("refused with %#v", err)
			}
			// That no valid module is refused is not asked here: the compiler
			// accepts some that are damaged, and takes the memory for whatever
			// length a damaged one announces.
			return
		}
		again, err := Rewrite(module, o)
		if err != nil || !bytes.Equal(again.Module, p.Module) {
			t.Fatalf("a second time: %v, or other bytes", err)
		}
		if len(module) > 4<<10 {
			return // too slow to compile
		}
		c, err := rt.CompileModule(ctx, module)
		if err != nil {
			return
		}
		c.Close(ctx)
		if c, err = rt.CompileModule(ctx, p.Module); err != nil {
			t.Fatalf("the plain module compiles, the rewritten does not: %v", err)
		}
		c.Close(ctx)
	})
}

// FuzzState: any bytes are refused or decoded, what is decoded encodes to the
// same bytes, and is a state of the program or is refused.
func FuzzState(f *testing.F) {
	m := new(Module)
	m.Mem(1, 0)
	m.Tab(2)
	m.Glob(I32, true, I32Const(0))
	m.Export("_start", Function, m.Func(nil, nil, Types(I32, V128), Loop, LocalGet(0), Drop, LocalGet(1), Drop, Br(0), End))
	m.Func(nil, nil, nil, I32Const(0), Op(0xd2, 0), Op(0x26, 0))
	m.ElemRaw(1, 0, 1, 0)
	p, err := Rewrite(m.Bytes(), Options{})
	if err != nil {
		f.Fatal(err)
	}
	good := State{Version: Version, Entry: "_start", Globals: make([]uint64, len(p.Info.Globals)), Tables: [][]uint32{{0, 1}},
		Frames: []Frame{{Function: 0, Point: 0, Values: []uint64{1, 2, 3}}}}
	if err := good.Check(p); err != nil {
		f.Fatal(err)
	}
	b, err := good.AppendBinary(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{0xa0})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseState(b)
		if err != nil {
			return
		}
		again, err := s.AppendBinary(nil)
		if err != nil {
			t.Fatal(err)
		}
		second, err := ParseState(again)
		if err != nil || fmt.Sprint(second) != fmt.Sprint(s) {
			t.Fatalf("%v became %v: %v", s, second, err)
		}
		if s.Check(p) == nil {
			stack := NewStack(p)
			if err := stack.SetFrames(s.Entry, s.Frames); err != nil {
				t.Fatal(err)
			}
			for stack.Next(false) >= 0 {
				stack.Load(make([]uint64, 16))
				stack.Save(-1, make([]uint64, 2))
			}
		}
	})
}

// TestCheckFrames: frames that the program cannot have are refused.
func TestCheckFrames(t *testing.T) {
	m := new(Module)
	m.Mem(1, 0)
	inner := m.Func(Types(I32), Types(I32), nil, Loop, LocalGet(0), BrIf(0), End, LocalGet(0)) // one point: its i32
	outer := m.Func(nil, nil, nil, I32Const(1), Invoke(inner), Drop)                           // one point: the result
	m.Export("_start", Function, outer)
	m.Export("inner", Function, inner)
	p, err := Rewrite(m.Bytes(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	callee := Frame{Function: inner, Values: []uint64{7}}
	caller := Frame{Function: outer, Values: []uint64{0}}
	for _, test := range []struct {
		name   string
		entry  string
		frames []Frame
		ok     bool
	}{
		{"none", "", nil, true},
		{"as it is", "_start", []Frame{caller, callee}, true},
		{"behind the call", "_start", []Frame{caller}, true},
		{"inner alone", "inner", []Frame{callee}, true},
		{"another entry", "_start", []Frame{callee}, false},
		{"unknown entry", "main", []Frame{caller}, false},
		{"upside down", "inner", []Frame{callee, caller}, false},
		{"twice", "_start", []Frame{caller, caller}, false},
		{"too few values", "_start", []Frame{{Function: outer}}, false},
		{"too many values", "_start", []Frame{{Function: outer, Values: []uint64{1, 2}}}, false},
		{"no such point", "_start", []Frame{{Function: outer, Point: 1, Values: []uint64{0}}}, false},
		{"no such function", "_start", []Frame{caller, {Function: 1 << 31}}, false},
		{"too wide", "_start", []Frame{{Function: outer, Values: []uint64{1 << 32}}}, false},
	} {
		if err := p.CheckFrames(test.entry, test.frames); (err == nil) != test.ok {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

// BenchmarkRewrite is the speed of rewriting a Go program.
func BenchmarkRewrite(b *testing.B) {
	module := goWorker(b)
	b.SetBytes(int64(len(module)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Rewrite(module, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
