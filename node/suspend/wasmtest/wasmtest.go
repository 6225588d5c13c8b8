// Package wasmtest assembles small WebAssembly modules for tests, byte by byte:
// well formed ones, and ones that no compiler would make.
package wasmtest

import (
	"math"
)

// Value types.
const (
	I32       = 0x7f
	I64       = 0x7e
	F32       = 0x7d
	F64       = 0x7c
	V128      = 0x7b
	Funcref   = 0x70
	Externref = 0x6f
)

// Kinds of exports.
const (
	Function  = 0
	Table     = 1
	Memory    = 2
	GlobalVar = 3
)

// A Module is a module under construction. Imports must be added before
// functions.
type Module struct {
	types, imports, functions, tables, memories, globals, exports, elements, bodies, data section

	start    []byte
	function uint32
	extra    map[byte][]byte
	custom   []byte
}

type section struct {
	count uint32
	body  []byte
}

func (s *section) add(b ...byte) uint32 {
	s.body = append(s.body, b...)
	s.count++
	return s.count - 1
}

// U32 encodes an unsigned LEB128.
func U32(v uint32) []byte {
	var b []byte
	for v >= 0x80 {
		b = append(b, byte(v)|0x80)
		v >>= 7
	}
	return append(b, byte(v))
}

// S64 encodes a signed LEB128.
func S64(v int64) []byte {
	var b []byte
	for {
		c := byte(v & 0x7f)
		v >>= 7
		if v == 0 && c&0x40 == 0 || v == -1 && c&0x40 != 0 {
			return append(b, c)
		}
		b = append(b, c|0x80)
	}
}

// Cat joins pieces of code or of a section.
func Cat(parts ...[]byte) []byte {
	var b []byte
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

// Name encodes a string.
func Name(s string) []byte { return append(U32(uint32(len(s))), s...) }

// Types makes a list of value types.
func Types(t ...byte) []byte { return t }

// Type adds a function type.
func (m *Module) Type(params, results []byte) uint32 {
	return m.types.add(Cat([]byte{0x60}, U32(uint32(len(params))), params, U32(uint32(len(results))), results)...)
}

// Import adds an imported function and returns its index.
func (m *Module) Import(module, name string, params, results []byte) uint32 {
	t := m.Type(params, results)
	m.imports.add(Cat(Name(module), Name(name), []byte{0}, U32(t))...)
	m.function++
	return m.function - 1
}

// ImportRaw adds an import of any kind, described by desc.
func (m *Module) ImportRaw(module, name string, desc ...byte) {
	m.imports.add(Cat(Name(module), Name(name), desc)...)
}

// Func adds a function with one local for each of locals, and returns its
// index. The code needs no end.
func (m *Module) Func(params, results, locals []byte, code ...[]byte) uint32 {
	t := m.Type(params, results)
	m.functions.add(U32(t)...)
	body := U32(uint32(len(locals)))
	for _, l := range locals {
		body = append(body, 1, l)
	}
	body = append(append(body, Cat(code...)...), 0x0b)
	m.bodies.add(Cat(U32(uint32(len(body))), body)...)
	m.function++
	return m.function - 1
}

// Mem adds a memory. A max below min means none.
func (m *Module) Mem(min, max uint32) uint32 {
	if max < min {
		return m.memories.add(Cat([]byte{0}, U32(min))...)
	}
	return m.memories.add(Cat([]byte{1}, U32(min), U32(max))...)
}

// MemRaw adds a memory of any kind.
func (m *Module) MemRaw(limits ...byte) { m.memories.add(limits...) }

// Tab adds a table of references to functions.
func (m *Module) Tab(min uint32) uint32 { return m.tables.add(Cat([]byte{Funcref, 0}, U32(min))...) }

// TabRaw adds a table of any kind.
func (m *Module) TabRaw(b ...byte) { m.tables.add(b...) }

// Glob adds a global with an initial value given as code without an end.
func (m *Module) Glob(typ byte, mutable bool, init []byte) uint32 {
	mut := byte(0)
	if mutable {
		mut = 1
	}
	return m.globals.add(Cat([]byte{typ, mut}, init, []byte{0x0b})...)
}

// Export adds an export.
func (m *Module) Export(name string, kind byte, index uint32) {
	m.exports.add(Cat(Name(name), []byte{kind}, U32(index))...)
}

// Start sets the start function.
func (m *Module) Start(f uint32) { m.start = U32(f) }

// Elem adds an active element segment for table 0.
func (m *Module) Elem(offset int32, functions ...uint32) {
	b := Cat([]byte{0}, I32Const(offset), []byte{0x0b}, U32(uint32(len(functions))))
	for _, f := range functions {
		b = append(b, U32(f)...)
	}
	m.elements.add(b...)
}

// ElemRaw adds an element segment of any kind.
func (m *Module) ElemRaw(b ...byte) { m.elements.add(b...) }

// Data adds an active data segment.
func (m *Module) Data(offset int32, bytes string) {
	m.data.add(Cat([]byte{0}, I32Const(offset), []byte{0x0b}, Name(bytes))...)
}

// Passive adds a passive data segment.
func (m *Module) Passive(bytes string) { m.data.add(Cat([]byte{1}, Name(bytes))...) }

// Raw sets a whole section's content, in place of what was added to it.
func (m *Module) Raw(id byte, content []byte) {
	if m.extra == nil {
		m.extra = map[byte][]byte{}
	}
	m.extra[id] = content
}

// Custom adds a custom section at the end.
func (m *Module) Custom(name string, content []byte) {
	body := Cat(Name(name), content)
	m.custom = append(m.custom, Cat([]byte{0}, U32(uint32(len(body))), body)...)
}

// Bytes returns the module.
func (m *Module) Bytes() []byte {
	out := []byte("\x00asm\x01\x00\x00\x00")
	put := func(id byte, content []byte) {
		if raw, ok := m.extra[id]; ok {
			content = raw
		}
		if content != nil {
			out = append(out, Cat([]byte{id}, U32(uint32(len(content))), content)...)
		}
	}
	list := func(s section) []byte {
		if s.count == 0 {
			return nil
		}
		return Cat(U32(s.count), s.body)
	}
	put(1, list(m.types))
	put(2, list(m.imports))
	put(3, list(m.functions))
	put(4, list(m.tables))
	put(5, list(m.memories))
	put(13, nil)
	put(6, list(m.globals))
	put(7, list(m.exports))
	put(8, m.start)
	put(9, list(m.elements))
	if m.data.count > 0 {
		put(12, U32(m.data.count))
	}
	put(10, list(m.bodies))
	put(11, list(m.data))
	return append(out, m.custom...)
}

// Instructions with immediates.

// Op is any instruction given as bytes.
func Op(b ...byte) []byte { return b }

// I32Const pushes a constant.
func I32Const(v int32) []byte { return append([]byte{0x41}, S64(int64(v))...) }

// I64Const pushes a constant.
func I64Const(v int64) []byte { return append([]byte{0x42}, S64(v)...) }

// F32Const pushes a constant.
func F32Const(v float32) []byte {
	u := math.Float32bits(v)
	return []byte{0x43, byte(u), byte(u >> 8), byte(u >> 16), byte(u >> 24)}
}

// F64Const pushes a constant.
func F64Const(v float64) []byte {
	u := math.Float64bits(v)
	b := []byte{0x44}
	for i := range 8 {
		b = append(b, byte(u>>(8*i)))
	}
	return b
}

// LocalGet, LocalSet, GlobalGet, GlobalSet and Invoke name what they act on by
// index.
func LocalGet(i uint32) []byte  { return append([]byte{0x20}, U32(i)...) }
func LocalSet(i uint32) []byte  { return append([]byte{0x21}, U32(i)...) }
func GlobalGet(i uint32) []byte { return append([]byte{0x23}, U32(i)...) }
func GlobalSet(i uint32) []byte { return append([]byte{0x24}, U32(i)...) }
func Invoke(i uint32) []byte    { return append([]byte{0x10}, U32(i)...) }

// Instructions without immediates, or with common ones.
var (
	Unreachable = []byte{0x00}
	Drop        = []byte{0x1a}
	Return      = []byte{0x0f}
	End         = []byte{0x0b}
	Block       = []byte{0x02, 0x40}
	Loop        = []byte{0x03, 0x40}
	If          = []byte{0x04, 0x40}
	I32Eq       = []byte{0x46}
	I32Add      = []byte{0x6a}
	I64Add      = []byte{0x7c}
	F64Add      = []byte{0xa0}
	F32Add      = []byte{0x92}
	I32Load     = []byte{0x28, 2, 0}
	I64Load     = []byte{0x29, 3, 0}
	I32Load8U   = []byte{0x2d, 0, 0}
	I32Store    = []byte{0x36, 2, 0}
	I64Store    = []byte{0x37, 3, 0}
	F32Store    = []byte{0x38, 2, 0}
	F64Store    = []byte{0x39, 3, 0}
	MemorySize  = []byte{0x3f, 0}
	MemoryGrow  = []byte{0x40, 0}
)

// Br branches out of, or back to the head of, the n-th block around it.
func Br(n uint32) []byte   { return append([]byte{0x0c}, U32(n)...) }
func BrIf(n uint32) []byte { return append([]byte{0x0d}, U32(n)...) }
