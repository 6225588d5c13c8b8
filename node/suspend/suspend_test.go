package suspend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"

	. "meshnode/node/suspend/wasmtest"
)

// features are those of package drive.
const features = api.CoreFeaturesV2 | experimental.CoreFeaturesTailCall

// handler adds a meshnode_event that returns 0.
func handler(m *Module) {
	m.Export("meshnode_event", Function, m.Func(Types(I32, I64, I32), Types(I32), nil, I32Const(0)))
}

// with makes a worker with one function of the given code.
func with(code ...[]byte) []byte {
	m := new(Module)
	m.Mem(1, 0)
	m.Tab(2)
	m.Func(nil, nil, nil, code...)
	handler(m)
	return m.Bytes()
}

func TestRefused(t *testing.T) {
	build := func(f func(m *Module)) []byte {
		m := new(Module)
		f(m)
		return m.Bytes()
	}
	worker := func(f func(m *Module)) []byte {
		return build(func(m *Module) {
			m.Mem(1, 0)
			f(m)
			handler(m)
		})
	}
	for _, test := range []struct {
		feature string
		where   string
		module  []byte
	}{
		// Memories.
		{"shared memory", "memory section", build(func(m *Module) { m.MemRaw(3, 1, 1); handler(m) })},
		{"64-bit memory", "memory section", build(func(m *Module) { m.MemRaw(4, 1); handler(m) })},
		{"memory with its own page size", "memory section", build(func(m *Module) { m.MemRaw(8, 1, 0); handler(m) })},
		{"multiple memories", "memory section", build(func(m *Module) { m.Mem(1, 0); m.Mem(1, 0); handler(m) })},
		{"no memory", "module", build(handler)},
		{"multiple memories", "function 0", with(I32Const(0), Op(0x28, 0x42, 1, 0), Drop)},
		{"multiple memories", "function 0", with(Op(0x3f, 1), Drop)},
		{"multiple memories", "function 0", with(I32Const(0), I32Const(0), I32Const(0), Op(0xfc, 10, 0, 1))},

		// Imports.
		{"imported memory", `import "env" "memory"`, worker(func(m *Module) { m.ImportRaw("env", "memory", 2, 0, 1) })},
		{"imported table", `import "env" "table"`, worker(func(m *Module) { m.ImportRaw("env", "table", 1, Funcref, 0, 1) })},
		{"imported global", `import "env" "g"`, worker(func(m *Module) { m.ImportRaw("env", "g", 3, I32, 1) })},
		{"imported exception tag", `import "env" "t"`, worker(func(m *Module) { m.ImportRaw("env", "t", 4, 0, 0) })},
		{`import "env" "f"`, "import section", worker(func(m *Module) { m.Import("env", "f", nil, nil) })},
		{`import "wasi_unstable" "fd_write"`, "import section", worker(func(m *Module) { m.Import("wasi_unstable", "fd_write", nil, nil) })},
		{`import "meshnode_v1" "teleport"`, "import section", worker(func(m *Module) { m.Import("meshnode_v1", "teleport", nil, nil) })},
		{`import "meshnode_v1" "clock"`, "import section", worker(func(m *Module) { m.Import("meshnode_v1", "clock", nil, Types(I32)) })},
		{`import "wasi_snapshot_preview1" "fd_write"`, "import section", worker(func(m *Module) {
			m.Import("wasi_snapshot_preview1", "fd_write", Types(I64), Types(I32))
		})},

		// Globals and tables.
		{"externref global", "global 0", worker(func(m *Module) { m.Glob(Externref, false, Op(0xd0, Externref)) })},
		{"externref table", "table section", worker(func(m *Module) { m.TabRaw(Externref, 0, 1) })},
		{"table with an initial value", "table section", worker(func(m *Module) { m.TabRaw(0x40, 0, Funcref, 0, 1, 0xd0, Funcref, 0x0b) })},
		{"table too large", "table section", worker(func(m *Module) { m.Tab(20_000_000) })},
		{"extended constant expression", "global section", worker(func(m *Module) { m.Glob(I32, false, Cat(I32Const(1), I32Const(2), I32Add)) })},

		// Features.
		{"atomic instruction 0xfe 0x03", "function 0", with(Op(0xfe, 3, 0))},
		{"instruction 0xfb 0x01", "function 0", with(Op(0xfb, 1, 0))},
		{"call_ref", "function 0", with(Op(0x14, 0))},
		{"try", "function 0", with(Op(0x06, 0x40), End)},
		{"throw", "function 0", with(Op(0x08, 0))},
		{"try_table", "function 0", with(Op(0x1f, 0x40, 0), End)},
		{"relaxed SIMD instruction 0xfd 0x100", "function 0", with(Op(0xfd, 0x80, 0x02))},
		{"instruction 0xfd 0x9a", "function 0", with(Op(0xfd, 0x9a, 0x01))},
		{"instruction 0xfc 0x13", "function 0", with(Op(0xfc, 0x13))},
		{"instruction 0xf0", "function 0", with(Op(0xf0))},
		{"exception tags", "tag section", worker(func(m *Module) { m.Type(nil, nil); m.Raw(13, []byte{1, 0, 0}) })},
		{"garbage collected types", "type section", worker(func(m *Module) { m.Raw(1, []byte{1, 0x5f, 0, 0}) })},
		{"reference type 0x64", "type section", worker(func(m *Module) { m.Raw(1, []byte{1, 0x60, 1, 0x64, 0x70, 0}) })},
		{"component", "module", []byte("\x00asm\x0d\x00\x01\x00")},

		// Names.
		{`export "meshnode:global:0"`, "export section", worker(func(m *Module) { m.Export("meshnode:global:0", Memory, 0) })},
		{`export "meshnode_event"`, "export section", build(func(m *Module) {
			m.Mem(1, 0)
			m.Export("meshnode_event", Function, m.Func(nil, nil, nil))
		})},
		{`export "meshnode_event"`, "export section", build(func(m *Module) { m.Mem(1, 0); m.Export("meshnode_event", Memory, 0) })},
		{`export "_initialize"`, "export section", worker(func(m *Module) { m.Export("_initialize", Function, m.Func(nil, Types(I32), nil, I32Const(0))) })},
		{`export "_start"`, "export section", worker(func(m *Module) { m.Export("_start", Function, m.Func(Types(I32), nil, nil)) })},

		// Sizes.
		{"too many locals", "function 0", build(func(m *Module) {
			m.Mem(1, 0)
			m.Type(nil, nil)
			m.Raw(3, []byte{1, 0})
			m.Raw(10, []byte{1, 8, 1, 0xff, 0xff, 0xff, 0xff, 0x0f, I32, 0x0b})
		})},
		{"too many parameters", "type section", worker(func(m *Module) { m.Raw(1, []byte{1, 0x60, 0xff, 0xff, 0xff, 0xff, 0x0f, 0}) })},
		{"too many functions", "function section", worker(func(m *Module) { m.Raw(3, []byte{0xff, 0xff, 0xff, 0xff, 0x0f}) })},

		// Damage.
		{"malformed module", "module", nil},
		{"malformed module", "module", []byte("\x7fELF\x02\x01\x01\x00")},
		{"malformed module", "module", []byte("\x00asm\x02\x00\x00\x00")},
		{"malformed module", "section header", []byte("\x00asm\x01\x00\x00\x00\x01\xff")},
		{"malformed module", "section header", []byte("\x00asm\x01\x00\x00\x00\x7f\x00")},
		{"malformed module", "section header", []byte("\x00asm\x01\x00\x00\x00\x05\x01\x00\x01\x01\x00")},
		{"malformed module", "data section", append(with(), 11, 4, 1, 1, 9, 0)},
		{"malformed module", "function 0", with(Op(0x41, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f), Drop)},
		{"malformed module", "function 0", with(Op(0x0e, 0xff, 0xff, 0xff, 0xff, 0x07))},
		{"malformed module", "function 0", with(End)},
		{"malformed module", "function 0", with(Block)},
		{"malformed module", "module", build(func(m *Module) { m.Mem(1, 0); m.Func(nil, nil, nil); m.Raw(3, []byte{0}) })},
		{"malformed module", "export section", worker(func(m *Module) { m.Export("a", Memory, 0); m.Export("a", Memory, 0) })},
		{"malformed module", "export section", worker(func(m *Module) { m.Export("a", Function, 100) })},
		{"malformed module", "start section", worker(func(m *Module) { m.Start(9) })},
	} {
		t.Run(test.feature, func(t *testing.T) {
			_, err := Prepare(test.module)
			var e *RefusedError
			if !errors.As(err, &e) {
				t.Fatalf("got %v", err)
			}
			if e.Feature != test.feature || !strings.HasPrefix(e.Where, test.where) {
				t.Errorf("got %q in %q, want %q in %q", e.Feature, e.Where, test.feature, test.where)
			}
			if e.Why == "" || e.Hint == "" || strings.Contains(e.Error(), "%!") {
				t.Errorf("says %q", e)
			}
		})
	}
}

// A refusal names the function as its author does.
func TestRefusedNames(t *testing.T) {
	m := new(Module)
	m.Import("meshnode_v1", "clock", nil, Types(I64))
	m.Mem(1, 0)
	m.Tab(1)
	handler(m)
	m.Func(nil, nil, nil, Op(0xfe, 3, 0))
	names := Cat(U32(2), U32(1), Name("meshnode_event"), U32(2), Name("main.run"))
	m.Custom("name", Cat([]byte{0}, Name("\x03app"), []byte{1}, U32(uint32(len(names))), names))
	_, err := Prepare(m.Bytes())
	var e *RefusedError
	if !errors.As(err, &e) || !strings.HasPrefix(e.Where, `function 2 "main.run", offset 0x`) {
		t.Errorf("got %v", err)
	}
}

func TestInfo(t *testing.T) {
	m := new(Module)
	m.Import(HostModule, "clock", nil, Types(I64))
	m.Import(WASIModule, "fd_write", Types(I32, I32, I32, I32), Types(I32))
	m.Mem(3, 17)
	m.Glob(I32, true, I32Const(1))
	m.Glob(I32, false, I32Const(1))
	m.Glob(F64, true, F64Const(1))
	m.Glob(Funcref, false, Op(0xd0, Funcref))
	m.Export("g", GlobalVar, 0)
	m.Export("_initialize", Function, m.Func(nil, nil, nil))
	handler(m)
	m.Start(2)
	p, err := Prepare(m.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	want := Info{
		MemoryMin: 3, MemoryMax: 17, Memory: "meshnode:memory", Start: "meshnode:start",
		Globals:    []Global{{0, I32, "meshnode:global:0"}, {2, F64, "meshnode:global:2"}},
		Initialize: true, Event: true,
		Imports: []Import{
			{HostModule, "clock", "() -> (i64)"},
			{WASIModule, "fd_write", "(i32, i32, i32, i32) -> (i32)"},
		},
		Exports:   []Export{{"g", "global", 0}, {"_initialize", "func", 2}, {"meshnode_event", "func", 3}},
		Functions: 2,
	}
	if !reflect.DeepEqual(p.Info, want) {
		t.Errorf("got %+v\nwant %+v", p.Info, want)
	}
	if err := p.Info.CanBeEventWorker(); err != nil {
		t.Error(err)
	}

	m = new(Module)
	m.Mem(0, 0)
	m.Export("_start", Function, m.Func(nil, nil, nil))
	if p, err = Prepare(m.Bytes()); err != nil {
		t.Fatal(err)
	}
	var e *RefusedError
	if err := p.Info.CanBeEventWorker(); !errors.As(err, &e) || e.Feature != "command worker" {
		t.Errorf("got %v", err)
	}
	m = new(Module)
	m.Mem(0, 0)
	if p, err = Prepare(m.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := p.Info.CanBeEventWorker(); !errors.As(err, &e) || e.Feature != "no meshnode_event" {
		t.Errorf("got %v", err)
	}
}

// The new export section goes where one belongs, whatever else there is.
func TestPlacement(t *testing.T) {
	for _, test := range []struct {
		name  string
		build func(m *Module)
	}{
		{"no exports, start, code and data", func(m *Module) { m.Start(m.Func(nil, nil, nil)); m.Data(0, "x") }},
		{"no exports, elements", func(m *Module) { m.Tab(1); m.Elem(0, m.Func(nil, nil, nil)) }},
		{"nothing after", func(*Module) {}},
		{"custom last", func(m *Module) { m.Custom("note", []byte("x")) }},
		{"exports", func(m *Module) { m.Export("m", Memory, 0); m.Start(m.Func(nil, nil, nil)) }},
		{"many exports", func(m *Module) {
			for i := range 200 {
				m.Glob(I64, true, I64Const(int64(i)))
				m.Export(fmt.Sprint(i), GlobalVar, uint32(i))
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := new(Module)
			m.Mem(1, 0)
			test.build(m)
			p, err := Prepare(m.Bytes())
			if err != nil {
				t.Fatal(err)
			}
			ctx := context.Background()
			rt := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfig().WithCoreFeatures(features))
			defer rt.Close(ctx)
			mod, err := rt.InstantiateWithConfig(ctx, p.Module, wazero.NewModuleConfig().WithStartFunctions())
			if err != nil {
				t.Fatal(err)
			}
			if mod.ExportedMemory(MemoryExport) == nil {
				t.Error("memory is out of reach")
			}
			if (mod.ExportedFunction(StartExport) != nil) != (p.Info.Start != "") {
				t.Errorf("start is %q", p.Info.Start)
			}
			for _, g := range p.Info.Globals {
				if _, ok := mod.ExportedGlobal(g.Export).(api.MutableGlobal); !ok {
					t.Errorf("global %d is out of reach", g.Index)
				}
			}
		})
	}
}

// Each opcode that is let through has immediates as long as the runtime thinks,
// and each that the runtime does not know is refused.
func TestOpcodes(t *testing.T) {
	ctx := context.Background()
	rt := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter().WithCoreFeatures(features))
	defer rt.Close(ctx)
	compiles := func(module []byte) error {
		c, err := rt.CompileModule(ctx, module)
		if err == nil {
			c.Close(ctx)
		}
		return err
	}
	// A function that contains the instruction where no code runs, so that
	// operands of any type are there; in front of and behind it are others, in
	// which a wrong length would show.
	module := func(ins []byte) []byte {
		m := new(Module)
		m.Mem(1, 0)
		m.Tab(2)
		m.Glob(I32, true, I32Const(0))
		m.Func(nil, nil, Types(I32),
			Block, Unreachable, ins, Unreachable, End,
			I32Const(7), Drop)
		m.ElemRaw(1, 0, 1, 0) // declares function 0 for ref.func
		m.Passive("x")
		m.Data(0, "x")
		return m.Bytes()
	}
	zeros := func(n int) []byte { return make([]byte, n) }
	rewrites := func(name string, b []byte) {
		p, err := Rewrite(b, Options{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if err := compiles(p.Module); err != nil {
			t.Errorf("%s: of what Rewrite makes, the runtime says %v", name, err)
		}
	}
	check := func(name string, imm immediate, op []byte) {
		padded := []byte{0x80, 0x00} // 0, in two bytes
		var variants [][]byte
		switch imm {
		case immNone:
			variants = [][]byte{nil}
		case immBlock:
			variants = [][]byte{{0x40, 0x0b}, {0x80, 0x00, 0x0b}}
			if op[0] != 0x02 {
				variants = [][]byte{{0x40, 0x0b}}
			}
		case immIndex, immI32, immI64:
			variants = [][]byte{{0}, padded}
		case immIndex2:
			variants = [][]byte{{0, 0}, Cat(padded, padded)}
		case immBrTable:
			variants = [][]byte{{0, 0}, {2, 0, 0, 0}, Cat([]byte{1}, padded, padded)}
		case immMemarg:
			variants = [][]byte{{0, 0}, {0, 0x80, 0x01}, {0x80, 0x00, 0x05}}
		case immMemLane:
			variants = [][]byte{{0, 0, 0}, {0, 0x80, 0x01, 0}}
		case immLane:
			variants = [][]byte{{0}}
		case immMemory:
			variants = [][]byte{{0}}
		case immMemory2:
			variants = [][]byte{{0, 0}}
		case immDataMem:
			variants = [][]byte{{0, 0}}
		case imm4:
			variants = [][]byte{zeros(4)}
		case imm8:
			variants = [][]byte{zeros(8)}
		case imm16:
			variants = [][]byte{zeros(16)}
		case immTypes:
			variants = [][]byte{{1, I32}}
		case immRefType:
			variants = [][]byte{{Funcref}, {Externref}}
		case immHidden1, immHidden2:
			// State that exports do not reach.
			b := module(append(op[:len(op):len(op)], zeros(int(imm-immHidden1)+1)...))
			if err := compiles(b); err != nil {
				t.Errorf("%s: the runtime says %v", name, err)
			}
			if p, err := Prepare(b); err != nil || p.Program == nil {
				t.Errorf("%s: program %v, %v", name, p.Program, err)
			}
			rewrites(name, b)
			return
		case immUnknown, immRefused:
			// The runtime must not know it either.
			for n := range 3 {
				if compiles(module(append(op[:len(op):len(op)], zeros(n)...))) == nil {
					t.Errorf("%s is refused but compiles", name)
				}
			}
			if _, err := Prepare(module(append(op[:len(op):len(op)], 0, 0))); err == nil {
				t.Errorf("%s is not refused", name)
			}
			return
		default:
			t.Fatalf("%s: immediate %d", name, imm)
		}
		for _, v := range variants {
			b := module(append(op[:len(op):len(op)], v...))
			if _, err := Prepare(b); err != nil {
				t.Errorf("%s %x: %v", name, v, err)
			}
			if op[0] == 0x05 {
				continue // an else needs its if
			}
			if err := compiles(b); err != nil {
				t.Errorf("%s %x: the runtime says %v", name, v, err)
			}
			rewrites(name, b)
		}
	}
	for op := range 256 {
		switch opImmediate[op] {
		case immPrefixFC, immPrefixFD, immEnd:
		default:
			check(fmt.Sprintf("%#02x", op), opImmediate[op], []byte{byte(op)})
		}
	}
	for sub := range uint32(40) {
		imm := immUnknown
		if int(sub) < len(fcImmediate) {
			imm = fcImmediate[sub]
		}
		check(fmt.Sprintf("0xfc %#x", sub), imm, append([]byte{0xfc}, U32(sub)...))
	}
	for sub := range uint32(0x140) {
		imm := immUnknown
		if int(sub) < len(fdImmediate) {
			imm = fdImmediate[sub]
		}
		check(fmt.Sprintf("0xfd %#x", sub), imm, append([]byte{0xfd}, U32(sub)...))
	}
}

// goModule is a worker in Go.
var goModule = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "meshnode-suspend-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	source := `package main

import "fmt"

var total = map[string]int64{}

//go:wasmexport meshnode_event
func event(kind int32, id int64, n int32) int32 {
	total[fmt.Sprint(kind)] += id
	return int32(total["0"]) + n
}

func main() {}
`
	path := filepath.Join(dir, "main.go")
	if err := os.WriteFile(path, []byte(source), 0o600); err != nil {
		return nil, err
	}
	out := filepath.Join(dir, "out.wasm")
	cmd := exec.Command("go", "build", "-buildmode=c-shared", "-o", out, path)
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "GOFLAGS=", "CGO_ENABLED=0", "GO111MODULE=off")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, msg)
	}
	return os.ReadFile(out)
})

func goWorker(tb testing.TB) []byte {
	tb.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		tb.Skip("the module is built with the Go toolchain:", err)
	}
	m, err := goModule()
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

// behaviour runs a worker in Go and returns what its events return and its
// memory.
func behaviour(t *testing.T, module []byte) ([]uint64, uint32) {
	t.Helper()
	ctx := context.Background()
	rt := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfig().WithCoreFeatures(features))
	defer rt.Close(ctx)
	wasi_snapshot_preview1.MustInstantiate(ctx, rt)
	mod, err := rt.InstantiateWithConfig(ctx, module, wazero.NewModuleConfig().WithStartFunctions("_initialize"))
	if err != nil {
		t.Fatal(err)
	}
	var got []uint64
	for i := range uint64(10) {
		r, err := mod.ExportedFunction("meshnode_event").Call(ctx, i%2, i, 100)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, r[0])
	}
	return got, mod.Memory().Size()
}

func TestGoModule(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute under the race detector, and has one goroutine")
	}
	module := goWorker(t)
	original := bytes.Clone(module)
	p, err := Prepare(module)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(module, original) {
		t.Error("the input was changed")
	}
	if !p.Info.Event || !p.Info.Initialize || p.Info.Command || len(p.Info.Globals) == 0 {
		t.Errorf("got %+v", p.Info)
	}
	again, err := Prepare(module)
	if err != nil || !bytes.Equal(again.Module, p.Module) {
		t.Errorf("a second time: %v, or other bytes", err)
	}
	if _, err := Prepare(p.Module); err == nil {
		t.Error("the rewritten module was accepted as if it were an author's")
	}
	want, wantSize := behaviour(t, module)
	got, gotSize := behaviour(t, p.Module)
	if !reflect.DeepEqual(got, want) || gotSize != wantSize {
		t.Errorf("rewritten: %v, %d bytes; plain: %v, %d bytes", got, gotSize, want, wantSize)
	}
}

// A module in C with vectors, tables and bulk memory goes through and computes
// the same.
func TestCModule(t *testing.T) {
	clang, err := exec.LookPath("clang")
	if err != nil {
		t.Skip("needs clang:", err)
	}
	dir := t.TempDir()
	source := filepath.Join(dir, "a.c")
	code := `
typedef int v4 __attribute__((vector_size(16)));
static int table[64];
static int add(int a, int b) { return a + b; }
static int mul(int a, int b) { return a * b; }
static int (*volatile ops[2])(int, int) = {add, mul};
static double weight = 1.5;
__attribute__((export_name("meshnode_event")))
int event(int kind, long long id, int len) {
	v4 sum = {kind, (int)id, len, 1};
	for (int i = 0; i < 64; i += 4) {
		sum += *(v4 *)(table + i);
		*(v4 *)(table + i) = sum * 3;
	}
	char buf[4096];
	__builtin_memset(buf, (int)id, sizeof buf);
	__builtin_memcpy(table, buf + len, 64);
	weight *= (float)sum[1];
	long long r = ops[id & 1](sum[0], sum[1]) + (long long)weight;
	return (int)(r ^ (r >> 32)) + buf[len];
}
`
	if err := os.WriteFile(source, []byte(code), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, flags := range [][]string{{"-O0"}, {"-O2", "-msimd128", "-mbulk-memory", "-mnontrapping-fptoint", "-msign-ext"}} {
		out := filepath.Join(dir, "a.wasm")
		cmd := exec.Command(clang, append(flags, "--target=wasm32", "-nostdlib", "-Wl,--no-entry", "-fno-builtin", "-o", out, source)...)
		if msg, err := cmd.CombinedOutput(); err != nil {
			t.Skipf("clang cannot make WebAssembly here: %v\n%s", err, msg)
		}
		module, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		p, err := Prepare(module)
		if err != nil {
			t.Fatalf("%v: %v", flags, err)
		}
		want, _ := behaviour(t, module)
		got, _ := behaviour(t, p.Module)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%v: rewritten %v, plain %v", flags, got, want)
		}
	}
}

// What wabt makes of every kind of section and segment goes through.
func TestText(t *testing.T) {
	tool, err := exec.LookPath("wat2wasm")
	if err != nil {
		t.Skip("needs wabt:", err)
	}
	dir := t.TempDir()
	in, out := filepath.Join(dir, "a.wat"), filepath.Join(dir, "a.wasm")
	text := `(module
	(type $v (func))
	(import "meshnode_v1" "reply" (func $reply (param i32 i32) (result i32)))
	(memory (export "memory") 1 4)
	(table $t 4 funcref)
	(table $u 4 8 funcref)
	(global $a (mut i64) (i64.const -1))
	(global $f funcref (ref.func $one))
	(global $x v128 (v128.const i32x4 1 2 3 4))
	(elem (i32.const 0) $one $two)
	(elem (table $u) (i32.const 1) funcref (ref.func $one) (ref.null func))
	(elem $passive func $one)
	(elem declare func $two)
	(data (i32.const 8) "active")
	(data $p "passive")
	(func $one (result i32) (i32.const 1))
	(func $two (result i32) (i32.const 2))
	(func $start (global.set $a (i64.const 41)))
	(start $start)
	(func (export "meshnode_event") (param i32 i64 i32) (result i32) (local v128)
		(memory.init $p (i32.const 100) (i32.const 0) (i32.const 7))
		(memory.copy (i32.const 200) (i32.const 100) (i32.const 7))
		(memory.fill (i32.const 300) (i32.const 1) (i32.const 7))
		(local.set 3 (i8x16.shuffle 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 (v128.load (i32.const 8)) (global.get $x)))
		(v128.store8_lane 3 (i32.const 12) (local.get 3))
		(global.set $a (i64.add (global.get $a) (i64.const 1)))
		(drop (table.size $u))
		(drop (ref.is_null (table.get $t (i32.const 0))))
		(block $b (block $c (br_table $b $c (i32.and (local.get 0) (i32.const 1)))))
		(drop (select (result i32) (i32.const 1) (i32.const 2) (local.get 0)))
		(block (result i32 i64) (i32.const 1) (i64.const 2)) drop drop
		(i32.add (call_indirect $t (result i32) (i32.and (local.get 0) (i32.const 1)))
			(i32.add (i32.wrap_i64 (global.get $a)) (i32.trunc_sat_f64_s (f64.const 1e300))))))`
	if err := os.WriteFile(in, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if msg, err := exec.Command(tool, "-o", out, in).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, msg)
	}
	module, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Prepare(module)
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	rt := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfig().WithCoreFeatures(features))
	defer rt.Close(ctx)
	_, err = rt.NewHostModuleBuilder(HostModule).NewFunctionBuilder().
		WithFunc(func(_, _ uint32) uint32 { return 0 }).Export("reply").Instantiate(ctx)
	if err != nil {
		t.Fatal(err)
	}
	run := func(module []byte, start string) []uint64 {
		mod, err := rt.InstantiateWithConfig(ctx, module, wazero.NewModuleConfig().WithName("").WithStartFunctions(start))
		if err != nil {
			t.Fatal(err)
		}
		var got []uint64
		for i := range uint64(4) {
			r, err := mod.ExportedFunction("meshnode_event").Call(ctx, i, i, i)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, r[0])
		}
		return got
	}
	want, got := run(module, "none"), run(p.Module, p.Info.Start)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("rewritten %v, plain %v", got, want)
	}
	// Without its start function, which the host is to call, it is another.
	if got := run(p.Module, "none"); reflect.DeepEqual(got, want) {
		t.Errorf("the start function ran by itself: %v", got)
	}
}

// FuzzPrepare: any bytes are refused or rewritten, and what is rewritten is as
// valid as it was.
func FuzzPrepare(f *testing.F) {
	f.Add(with())
	f.Add(with(Block, I32Const(1), BrIf(0), End))
	m := new(Module)
	m.Import(HostModule, "clock", nil, Types(I64))
	m.Mem(1, 2)
	m.Tab(3)
	m.Glob(I64, true, I64Const(1))
	m.Elem(0, 1)
	m.Data(0, "data")
	m.Passive("more")
	handler(m)
	m.Start(m.Func(nil, nil, Types(I32, F64, V128), I32Const(0), LocalSet(0), Op(0xfd, 12, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16), LocalSet(2)))
	m.Custom("name", []byte{1, 4, 1, 1, 1, 'f'})
	f.Add(m.Bytes())
	f.Add(with(I32Const(0), Op(0xd0, Funcref), Op(0x26, 0)))
	ctx := context.Background()
	rt := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter().WithCoreFeatures(features))
	f.Cleanup(func() { rt.Close(ctx) })
	f.Fuzz(func(t *testing.T, module []byte) {
		p, err := Prepare(module)
		if err != nil {
			var e *RefusedError
			if !errors.As(err, &e) || e.Feature == "" || e.Where == "" || e.Why == "" || e.Hint == "" {
				t.Fatalf("refused with %#v", err)
			}
			return
		}
		again, err := Prepare(module)
		if err != nil || !bytes.Equal(again.Module, p.Module) {
			t.Fatalf("a second time: %v, or other bytes", err)
		}
		most := len(module) + 64 + 64*len(p.Info.Globals)
		if p.Program != nil {
			// Each function that is referred to has a thunk, each table a shadow,
			// each instruction that changes one a function of its own.
			most = 64*len(module) + 4<<10
		}
		if len(p.Module) > most {
			t.Fatalf("%d bytes became %d", len(module), len(p.Module))
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
		if c.ExportedMemories()[MemoryExport] == nil {
			t.Fatal("memory is not exported")
		}
		c.Close(ctx)
	})
}

func BenchmarkPrepare(b *testing.B) {
	module := goWorker(b)
	b.SetBytes(int64(len(module)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Prepare(module); err != nil {
			b.Fatal(err)
		}
	}
}
