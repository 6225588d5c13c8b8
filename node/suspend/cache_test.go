package suspend

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	. "meshnode/node/suspend/wasmtest"
)

// cachedModule has something of everything that a program's encoding holds.
func cachedModule() []byte {
	m := new(Module)
	m.Mem(1, 2)
	m.Tab(3)
	m.Glob(I32, true, I32Const(0))
	m.Glob(V128, true, push(V128))
	m.Elem(0, 0)
	f := m.Func(nil, Types(I32), Types(I32, V128, F64), Loop, LocalGet(0), Drop, LocalGet(1), Drop, Br(0), End, I32Const(0))
	m.Export("loop", Function, f)
	g := m.Func(nil, nil, nil, Invoke(f), Drop, I32Const(0), Op(0xd2), []byte{0}, Op(0x26, 0), Op(0xfc, 13, 0))
	m.Export("_start", Function, g)
	return m.Bytes()
}

func TestCache(t *testing.T) {
	module := cachedModule()
	fresh, err := Rewrite(module, Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := fresh.AppendBinary(nil)
	dir := t.TempDir()
	rewrite := func(o Options) []byte {
		t.Helper()
		p, err := Cache(dir).Rewrite(module, o)
		if err != nil {
			t.Fatal(err)
		}
		return p.AppendBinary(nil)
	}
	files := func() []string {
		t.Helper()
		names, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	if got := rewrite(Options{}); !bytes.Equal(got, want) {
		t.Fatal("the first rewriting differs from one without a cache")
	}
	names := files()
	if len(names) != 1 {
		t.Fatalf("files %q", names)
	}
	whole, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	// That the file is read shows by what a changed one with a right sum brings.
	changed := *fresh
	changed.Info.Start = "another"
	if err := writeProgram(names[0], &changed); err != nil {
		t.Fatal(err)
	}
	if got := rewrite(Options{}); !bytes.Equal(got, changed.AppendBinary(nil)) {
		t.Error("the file was not read")
	}
	for i := 0; i < len(whole); i += 1 + len(whole)/60 {
		damaged := bytes.Clone(whole)
		damaged[i] ^= 0x10
		for _, b := range [][]byte{damaged, whole[:i]} {
			if err := os.WriteFile(names[0], b, 0o600); err != nil {
				t.Fatal(err)
			}
			if got := rewrite(Options{}); !bytes.Equal(got, want) {
				t.Fatalf("damaged at %d of %d: another program", i, len(whole))
			}
			if got, err := os.ReadFile(names[0]); err != nil || !bytes.Equal(got, whole) {
				t.Fatalf("damaged at %d of %d: not replaced (%v)", i, len(whole), err)
			}
		}
	}
	if got := rewrite(Options{Poll: Countdown}); bytes.Equal(got, want) {
		t.Error("the cache confuses kinds of polls")
	}
	if names := files(); len(names) != 2 {
		t.Errorf("files %q", names)
	}
	dir = filepath.Join(dir, "missing")
	if got := rewrite(Options{}); !bytes.Equal(got, want) {
		t.Error("without a directory: another program")
	}
}

// FuzzProgram: any bytes are refused or decoded, and what is decoded encodes to
// the same bytes and can be given any frames.
func FuzzProgram(f *testing.F) {
	p, err := Rewrite(cachedModule(), Options{Everywhere: true})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p.AppendBinary(nil), uint32(0), uint32(0))
	f.Add(new(Program).AppendBinary(nil), uint32(1), uint32(1))
	f.Fuzz(func(t *testing.T, b []byte, function, at uint32) {
		p, err := ParseProgram(b)
		if err != nil {
			return
		}
		if got := p.AppendBinary(nil); !bytes.Equal(got, b) {
			t.Fatalf("%x decodes and encodes to %x", b, got)
		}
		number, ok := p.byIndex[function]
		if !ok || p.functions[number].points == 0 {
			return
		}
		fn := &p.functions[number]
		at %= fn.points
		pt := &p.points[fn.first+at]
		s := NewStack(p)
		s.frames = []Frame{{Function: function, Point: at, Values: make([]uint64, pt.units)}}
		if got := s.Next(false); got != int32(number) {
			t.Fatalf("function %d is number %d, not %d", function, got, number)
		}
		if err := s.Save(int32(2*(fn.first+at)+1), make([]uint64, fn.units)); err != nil {
			t.Fatal(err)
		}
		if err := s.Save(-1, make([]uint64, len(fn.results)*2)); err != nil {
			t.Fatal(err)
		}
		if !s.Stopped() || s.Depth() != 1 {
			t.Fatalf("%d frames", s.Depth())
		}
	})
}
