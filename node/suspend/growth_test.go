package suspend

import (
	"bytes"
	"errors"
	"runtime"
	"testing"

	. "meshnode/node/suspend/wasmtest"
)

// repeated is code n times over.
func repeated(n int, code ...[]byte) []byte { return bytes.Repeat(Cat(code...), n) }

// each is what f makes of 0 to n-1.
func each(n int, f func(i uint32) []byte) []byte {
	var b []byte
	for i := range n {
		b = append(b, f(uint32(i))...)
	}
	return b
}

// grown makes a module with a memory and a function that can stop, and what add
// adds to it.
func grown(add func(m *Module, stops uint32)) []byte {
	m := new(Module)
	m.Mem(100, 100)
	add(m, m.Func(nil, nil, nil, Loop, I32Const(1), BrIf(0), End))
	return m.Bytes()
}

// rewriteBytes rewrites a module, and returns how many bytes were allocated for
// that in all, which bounds both the work and the memory in use at any time.
func rewriteBytes(module []byte) (p *Program, allocated uint64, err error) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	p, err = Rewrite(module, Options{})
	runtime.ReadMemStats(&after)
	return p, after.TotalAlloc - before.TotalAlloc, err
}

// Rewriting is linear: eight times as much of anything, in as many functions or
// in one, gives some eight times the output and takes some eight times the
// memory. Were it quadratic in anything here, it would be 64 times.
func TestRewriteLinear(t *testing.T) {
	if testing.Short() {
		t.Skip("the race detector allocates too")
	}
	otherwise := Op(0x05)
	local0 := Cat(LocalGet(0), BrIf(0))
	for name, module := range map[string]func(n int) []byte{
		"functions": func(n int) []byte {
			return grown(func(m *Module, stops uint32) {
				for range n {
					m.Func(Types(I32), Types(I32), Types(I32, I64, F64),
						Loop, LocalGet(0), LocalSet(1), Invoke(stops), LocalGet(1), I32Const(1), I32Add, Op(0x22, 0), BrIf(0), End, LocalGet(1))
				}
			})
		},
		"loops in turn": func(n int) []byte {
			return grown(func(m *Module, stops uint32) {
				m.Func(nil, nil, Types(I32), repeated(n, Loop, Invoke(stops), local0, End))
			})
		},
		"loops in loops": func(n int) []byte {
			return grown(func(m *Module, stops uint32) {
				m.Func(nil, nil, Types(I32), repeated(n, Loop, Block), Invoke(stops), repeated(n, local0, End, End))
			})
		},
		"ifs in ifs": func(n int) []byte {
			return grown(func(m *Module, stops uint32) {
				m.Func(nil, nil, Types(I32), repeated(n, LocalGet(0), If), Invoke(stops), repeated(n, otherwise, Invoke(stops), End))
			})
		},
		"calls": func(n int) []byte {
			return grown(func(m *Module, stops uint32) {
				m.Func(nil, nil, repeated(20, Types(I32)), repeated(n, Invoke(stops)),
					each(20, func(i uint32) []byte { return Cat(LocalGet(i), Drop) }))
			})
		},
		"targets": func(n int) []byte {
			return grown(func(m *Module, stops uint32) {
				m.Func(nil, nil, nil, repeated(9, Block), Loop, Invoke(stops), I32Const(0), Op(0x0e), U32(uint32(n)),
					each(n+1, func(i uint32) []byte { return U32(i % 10) }), End, repeated(9, End))
			})
		},
		"data": func(n int) []byte {
			return grown(func(m *Module, _ uint32) { m.Data(0, string(make([]byte, 100*n))) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			const n, more = 400, 8
			small, large := module(n), module(more*n)
			p, allocated, err := rewriteBytes(small)
			if err != nil {
				t.Fatal(err)
			}
			q, allocatedMore, err := rewriteBytes(large)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d bytes: %.1f times the output, %d times the allocations; %d bytes: %.1f, %d", len(small),
				float64(len(p.Module))/float64(len(small)), allocated/uint64(len(small)), len(large),
				float64(len(q.Module))/float64(len(large)), allocatedMore/uint64(len(large)))
			if len(q.Module) > 3*more/2*len(p.Module) {
				t.Errorf("%d times the module becomes %d bytes, once %d", more, len(q.Module), len(p.Module))
			}
			if allocatedMore > 2*more*allocated {
				t.Errorf("%d times the module takes %d bytes of memory, once %d", more, allocatedMore, allocated)
			}
		})
	}
}

// What is made to grow faster than itself is refused before it does, or grows no
// more than all else.
func TestRewriteBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("the race detector allocates too")
	}
	const times, extra = 2000, 128 << 20
	locals := func(n int) []byte { return repeated(n, Types(I32)) }
	for _, test := range []struct {
		name    string
		feature string // that it is refused for, empty if it is not
		module  []byte
	}{
		// Each of the calls would have all of the values in its frame.
		{"values at calls", "too much state", grown(func(m *Module, stops uint32) {
			m.Func(nil, nil, nil, repeated(10_000, Invoke(stops), I32Const(1)), repeated(10_000, Drop))
		})},
		{"variables at calls", "too much state", grown(func(m *Module, stops uint32) {
			m.Func(nil, nil, locals(10_000), repeated(10_000, Invoke(stops)),
				each(10_000, func(i uint32) []byte { return Cat(LocalGet(i), Drop) }))
		})},
		// So many that which of them are in use is not looked for.
		{"variables by branches", "too much state", grown(func(m *Module, stops uint32) {
			m.Func(nil, nil, locals(40_000), repeated(2000, Invoke(stops)))
		})},
		{"as many as allowed", "function too large", grown(func(m *Module, stops uint32) {
			m.Func(nil, nil, locals(maxLocals), repeated(2000, Invoke(stops)))
		})},
		{"more than allowed", "too many groups of locals", grown(func(m *Module, stops uint32) {
			m.Func(nil, nil, locals(maxLocals+1), Invoke(stops))
		})},
		{"a million targets", "", grown(func(m *Module, stops uint32) {
			m.Func(nil, nil, nil, Block, Loop, Invoke(stops), I32Const(0), Op(0x0e), U32(1_000_000), make([]byte, 1_000_001), End, End)
		})},
		{"deep", "", grown(func(m *Module, stops uint32) {
			m.Func(nil, nil, nil, repeated(50_000, Block), Invoke(stops), repeated(50_000, End))
		})},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, allocated, err := rewriteBytes(test.module)
			var refused *RefusedError
			switch {
			case test.feature == "" && err != nil:
				t.Fatal(err)
			case test.feature != "" && (!errors.As(err, &refused) || refused.Feature != test.feature):
				t.Fatalf("got %v, want it refused for %s", err, test.feature)
			case err == nil:
				t.Logf("%d bytes became %d", len(test.module), len(p.Module))
			}
			t.Logf("%d bytes took %d of memory, one after the other", len(test.module), allocated)
			if allocated > uint64(times*len(test.module)+extra) {
				t.Errorf("%d bytes took %d of memory", len(test.module), allocated)
			}
		})
	}
}
