package suspend

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
)

// Limits on what is worth reading. Most are those that browsers share
// (WebAssembly JavaScript Interface, "Limits"); MaxModule and maxBody are
// larger, since Go makes large modules and large functions.
const (
	// MaxModule is the largest module, in bytes.
	MaxModule = 256 << 20
	// MaxGlobals is the number of mutable globals a worker may have.
	MaxGlobals = 64 << 10

	maxTypes      = 1_000_000
	maxImports    = 100_000
	maxFunctions  = 1_000_000
	maxTables     = 100
	maxTableSize  = 10_000_000
	maxGlobals    = 1_000_000
	maxExports    = 1_000_000
	maxSegments   = 100_000
	maxParams     = 1_000
	maxLocals     = 50_000
	maxNameBytes  = 100_000
	maxElements   = 10_000_000
	maxMemoryPage = 65_536
)

// Section ids (Core 2.0, "Modules").
const (
	secCustom    = 0
	secType      = 1
	secImport    = 2
	secFunction  = 3
	secTable     = 4
	secMemory    = 5
	secGlobal    = 6
	secExport    = 7
	secStart     = 8
	secElement   = 9
	secCode      = 10
	secData      = 11
	secDataCount = 12
	secTag       = 13
)

// sectionOrder is where each section stands in a module, by id.
var sectionOrder = [...]int{
	secType: 1, secImport: 2, secFunction: 3, secTable: 4, secMemory: 5, secTag: 6, secGlobal: 7,
	secExport: 8, secStart: 9, secElement: 10, secDataCount: 11, secCode: 12, secData: 13,
}

var sectionNames = [...]string{
	secCustom: "custom", secType: "type", secImport: "import", secFunction: "function", secTable: "table",
	secMemory: "memory", secGlobal: "global", secExport: "export", secStart: "start", secElement: "element",
	secCode: "code", secData: "data", secDataCount: "data count", secTag: "tag",
}

// Value types.
const (
	typI32       = 0x7f
	typI64       = 0x7e
	typF32       = 0x7d
	typF64       = 0x7c
	typV128      = 0x7b
	typFuncref   = 0x70
	typExternref = 0x6f
)

// A section is one section's place in the module: its id byte is at start, its
// content from body to end.
type section struct {
	id               byte
	start, body, end int
}

// A funcType's params and results are value types, in the module's own bytes.
type funcType struct{ params, results []byte }

func (t funcType) String() string {
	var b strings.Builder
	list := func(types []byte) {
		b.WriteByte('(')
		for i, v := range types {
			if i > 0 {
				b.WriteString(", ")
			}
			b.WriteString(typeName(v))
		}
		b.WriteByte(')')
	}
	list(t.params)
	b.WriteString(" -> ")
	list(t.results)
	return b.String()
}

func typeName(t byte) string {
	switch t {
	case typI32:
		return "i32"
	case typI64:
		return "i64"
	case typF32:
		return "f32"
	case typF64:
		return "f64"
	case typV128:
		return "v128"
	case typFuncref:
		return "funcref"
	case typExternref:
		return "externref"
	}
	return fmt.Sprintf("%#02x", t)
}

// A parse is what has been read of a module so far.
type parse struct {
	reader
	sections  []section
	types     []funcType
	functions []uint32 // type index of each function, imported ones first
	imported  int      // how many of functions are imported
	globals   uint32
	exports   map[string]struct{}
	memories  int
	start     int   // index of the start function, or -1
	function  int64 // index of the function being read, or -1
	bodies    uint32
	info      Info
	// hidden says that there is state that cannot be reached by exports; it is
	// for Prepare alone.
	hidden bool

	// What follows is kept for Rewrite alone; anywhere is nil in Prepare.
	anywhere    *Options
	code        []span
	tables      []tableType
	globalTypes []globalType
	elements    []element
	segments    uint32 // data segments
	dataCount   uint32 // data segments announced
}

// A span is a place in the module.
type span struct{ pos, end int }

// A tableType is a table's limits.
type tableType struct {
	min, max uint32
	hasMax   bool
}

// A globalType is a global's type and where its initial value is.
type globalType struct {
	typ     byte
	mutable bool
	init    span
}

// An element is an element segment: where its offset (for active ones) and its
// items are.
type element struct {
	flags  uint32
	table  uint32
	offset span
	typ    byte
	count  uint32
	items  span
}

// Prepare checks that a module can move and rewrites it so that the host can
// reach its state: every mutable global and the memory are exported under
// reserved names, and the start function, which must not run again on a
// restored worker, becomes an export too. Functions, types and code stay as
// they are, unless there is state that exports do not reach; see Prepared.Program.
// Its time is linear in the module's length and so is its memory.
//
// The error is a *RefusedError. Prepare does not check all that validation
// does; a module that it accepts may still be refused by the compiler.
func Prepare(module []byte) (_ Prepared, err error) {
	m := newParse(module)
	defer m.refused(&err)
	m.read()
	m.check()
	if m.hidden {
		p, err := rewrite(module, Options{}, true)
		if err != nil {
			return Prepared{}, err
		}
		return Prepared{Module: p.Module, Info: p.Info, Program: p}, nil
	}
	out := m.rewrite()
	return Prepared{Module: out, Info: m.info}, nil
}

func newParse(module []byte) *parse {
	m := &parse{start: -1, function: -1}
	m.b = module
	m.end = len(module)
	m.where = "module"
	return m
}

// refused, deferred, turns the panic that refuses a module into an error.
func (m *parse) refused(err *error) {
	switch e := recover().(type) {
	case nil:
	case *RefusedError:
		if m.function >= 0 {
			e.Where = functionWhere(m.b, uint32(m.function), m.pos)
		}
		*err = e
	default:
		panic(e)
	}
}

func (m *parse) read() {
	if len(m.b) > MaxModule {
		m.fail(RefusedError{
			Feature: "module too large",
			Where:   fmt.Sprintf("%d bytes", len(m.b)),
			Why:     fmt.Sprintf("at most %d bytes are allowed", MaxModule),
			Hint:    "strip debug information, or load data at run time",
		})
	}
	if len(m.b) < 8 || !bytes.Equal(m.b[:4], []byte("\x00asm")) {
		m.malformed("it does not begin with \\0asm")
	}
	switch v := binary.LittleEndian.Uint32(m.b[4:]); v {
	case 1:
	case 0x1000d:
		m.fail(RefusedError{
			Feature: "component",
			Why:     "components are not supported",
			Hint:    "give the core module that the component was made of",
		})
	default:
		m.malformed("version %d of WebAssembly", v)
	}
	m.pos = 8
	last := 0
	for m.left() > 0 {
		s := section{start: m.pos}
		m.end = len(m.b)
		m.where = "section header"
		s.id = m.byte()
		size := m.u32()
		s.body = m.pos
		if uint64(size) > uint64(m.left()) {
			m.malformed("section %d announces %d bytes, %d are left", s.id, size, m.left())
		}
		s.end = m.pos + int(size)
		if int(s.id) >= len(sectionNames) {
			m.malformed("unknown section %d", s.id)
		}
		if s.id != secCustom {
			if sectionOrder[s.id] <= last {
				m.malformed("%s section out of order", sectionNames[s.id])
			}
			last = sectionOrder[s.id]
		}
		m.where = sectionNames[s.id] + " section"
		m.end = s.end
		m.readSection(s.id)
		if s.id != secCustom && m.pos != s.end {
			m.malformed("%d bytes too many", s.end-m.pos)
		}
		m.pos, m.end = s.end, len(m.b)
		m.sections = append(m.sections, s)
	}
}

func (m *parse) readSection(id byte) {
	switch id {
	case secCustom:
		// A name that does not fit makes a module invalid; the rest is free.
		m.name()
	case secType:
		m.readTypes()
	case secImport:
		m.readImports()
	case secFunction:
		m.readFunctions()
	case secTable:
		n := m.count("tables", maxTables, 3)
		for range n {
			m.readTable()
		}
	case secMemory:
		m.readMemories()
	case secTag:
		m.fail(RefusedError{
			Feature: "exception tags",
			Why:     "exception handling is not supported",
			Hint:    "compile without WebAssembly exceptions",
		})
	case secGlobal:
		m.readGlobals()
	case secExport:
		m.readExports()
	case secStart:
		f := m.u32()
		if uint64(f) >= uint64(len(m.functions)) {
			m.malformed("start function %d of %d", f, len(m.functions))
		}
		if t := m.typeOf(f).String(); t != "() -> ()" {
			m.malformed("start function of type %s", t)
		}
		m.start = int(f)
	case secElement:
		n := m.count("element segments", maxSegments, 3)
		for range n {
			m.readElement()
		}
	case secDataCount:
		m.dataCount = m.u32()
	case secCode:
		m.readCode()
	case secData:
		n := m.count("data segments", maxSegments, 2)
		m.segments = n
		for range n {
			m.readData()
		}
	}
}

func (m *parse) readTypes() {
	n := m.count("types", maxTypes, 3)
	for range n {
		switch form := m.byte(); form {
		case 0x60:
		case 0x4e, 0x4f, 0x50, 0x5e, 0x5f:
			m.pos--
			m.fail(RefusedError{
				Feature: "garbage collected types",
				Why:     "they are not supported, and their values could not move",
				Hint:    "compile to linear memory",
			})
		default:
			m.pos--
			m.malformed("type of form %#02x", form)
		}
		var t funcType
		t.params = m.valueTypes("parameters")
		t.results = m.valueTypes("results")
		m.types = append(m.types, t)
	}
}

// valueTypes reads a vector of value types.
func (r *reader) valueTypes(what string) []byte {
	n := r.count(what, maxParams, 1)
	start := r.pos
	for range n {
		r.valueType()
	}
	return r.b[start:r.pos]
}

func (r *reader) valueType() byte {
	t := r.byte()
	switch t {
	case typI32, typI64, typF32, typF64, typV128, typFuncref, typExternref:
		return t
	case 0x69, 0x74:
		r.pos--
		r.fail(RefusedError{
			Feature: "exception reference type",
			Why:     "exception handling is not supported",
			Hint:    "compile without WebAssembly exceptions",
		})
	case 0x63, 0x64, 0x6a, 0x6b, 0x6c, 0x6d, 0x6e, 0x71, 0x72, 0x73:
		r.pos--
		r.fail(RefusedError{
			Feature: fmt.Sprintf("reference type %#02x", t),
			Why:     "typed references and garbage collected types are not supported, and their values could not move",
			Hint:    "compile to linear memory",
		})
	}
	r.pos--
	r.malformed("value type %#02x", t)
	return 0
}

func (m *parse) readImports() {
	n := m.count("imports", maxImports, 4)
	for range n {
		at := m.pos
		module, name := m.name(), m.name()
		kind := m.byte()
		refuse := func(what string) {
			m.fail(RefusedError{
				Feature: "imported " + what,
				Where:   fmt.Sprintf("import %s %s, offset %#x", quote(module), quote(name), at),
				Why:     "no node provides one, and its state would be outside the worker",
				Hint:    "define it in the module (clang: without --import-memory and --import-table)",
			})
		}
		switch kind {
		case 0:
			t := m.u32()
			if uint64(t) >= uint64(len(m.types)) {
				m.malformed("import of type %d of %d", t, len(m.types))
			}
			typ := m.types[t].String()
			if e := checkImport(module, name, typ); e != nil && (m.anywhere == nil || !m.anywhere.Foreign) {
				e.Where = fmt.Sprintf("import section, offset %#x", at)
				m.fail(*e)
			}
			m.functions = append(m.functions, t)
			m.imported++
			m.info.Imports = append(m.info.Imports, Import{Module: module, Name: name, Type: typ})
		case 1:
			refuse("table")
		case 2:
			refuse("memory")
		case 3:
			refuse("global")
		case 4:
			refuse("exception tag")
		default:
			m.malformed("import of kind %d", kind)
		}
	}
}

func (m *parse) readFunctions() {
	n := m.count("functions", maxFunctions, 1)
	for range n {
		t := m.u32()
		if uint64(t) >= uint64(len(m.types)) {
			m.malformed("function of type %d of %d", t, len(m.types))
		}
		m.functions = append(m.functions, t)
	}
	m.info.Functions = int(n)
}

func (m *parse) readTable() {
	if m.left() > 0 && m.b[m.pos] == 0x40 {
		m.fail(RefusedError{
			Feature: "table with an initial value",
			Why:     "typed function references are not supported",
			Hint:    "use element segments",
		})
	}
	switch t := m.valueType(); t {
	case typFuncref:
	case typExternref:
		m.pos--
		m.fail(RefusedError{
			Feature: "externref table",
			Why:     "it holds references to the host's own things, which cannot move",
			Hint:    "keep such references out of tables (Rust: without wasm-bindgen's reference types)",
		})
	default:
		m.malformed("table of %s", typeName(t))
	}
	size, most, has := m.limits("table")
	m.tables = append(m.tables, tableType{size, most, has})
	if size > maxTableSize {
		m.fail(RefusedError{
			Feature: "table too large",
			Why:     fmt.Sprintf("it has %d entries, at most %d are allowed", size, maxTableSize),
			Hint:    "make it smaller",
		})
	}
}

func (m *parse) readMemories() {
	n := m.count("memories", 1<<16, 2)
	if n > 1 {
		m.fail(RefusedError{
			Feature: "multiple memories",
			Why:     fmt.Sprintf("the module has %d memories and only one moves", n),
			Hint:    "compile for one memory",
		})
	}
	for range n {
		least, most, has := m.limits("memory")
		if !has {
			most = maxMemoryPage
		}
		if least > maxMemoryPage || most > maxMemoryPage {
			m.malformed("memory of %d to %d pages", least, most)
		}
		m.info.MemoryMin, m.info.MemoryMax = least, most
		m.memories++
	}
}

func (m *parse) readGlobals() {
	n := m.count("globals", maxGlobals, 4)
	for i := range n {
		at := m.pos
		t := m.valueType()
		mut := m.byte()
		if mut > 1 {
			m.malformed("global of mutability %d", mut)
		}
		where := fmt.Sprintf("global %d, offset %#x", i, at)
		switch {
		case t == typExternref:
			m.fail(RefusedError{
				Feature: "externref global",
				Where:   where,
				Why:     "it holds a reference to one of the host's own things, which cannot move",
				Hint:    "keep such references out of globals",
			})
		case mut == 1 && (t == typFuncref || t == typV128):
			m.hidden = true
		case mut == 1:
			if len(m.info.Globals) == MaxGlobals {
				m.fail(RefusedError{
					Feature: "too many mutable globals",
					Where:   where,
					Why:     fmt.Sprintf("at most %d are allowed", MaxGlobals),
					Hint:    "keep the values in memory",
				})
			}
			m.info.Globals = append(m.info.Globals, Global{Index: i, Type: t, Export: GlobalExport(i)})
		}
		init := m.pos
		m.constExpr()
		if m.anywhere != nil {
			m.globalTypes = append(m.globalTypes, globalType{t, mut == 1, span{init, m.pos}})
		}
	}
	m.globals = n
}

// constExpr passes a constant expression.
func (m *parse) constExpr() {
	for {
		switch op := m.byte(); op {
		case 0x0b:
			return
		case 0x41:
			m.skipLEB(5)
		case 0x42:
			m.skipLEB(10)
		case 0x43:
			m.bytes(4)
		case 0x44:
			m.bytes(8)
		case 0x23, 0xd2: // global.get, ref.func
			m.u32()
		case 0xd0: // ref.null
			m.valueType()
		case 0xfd:
			if sub := m.u32(); sub != 0x0c {
				m.malformed("vector instruction %#02x in a constant expression", sub)
			}
			m.bytes(16)
		case 0x6a, 0x6b, 0x6c, 0x7c, 0x7d, 0x7e:
			m.pos--
			m.fail(RefusedError{
				Feature: "extended constant expression",
				Why:     "arithmetic in constant expressions is not supported",
				Hint:    "compile without it (clang: -mno-extended-const, without -fPIC)",
			})
		default:
			m.pos--
			m.malformed("instruction %#02x in a constant expression", op)
		}
	}
}

func (m *parse) readExports() {
	n := m.count("exports", maxExports, 3)
	m.exports = make(map[string]struct{})
	for range n {
		at := m.pos
		name := m.name()
		kind := m.byte()
		index := m.u32()
		if strings.HasPrefix(name, ReservedPrefix) {
			m.fail(RefusedError{
				Feature: "export " + quote(name),
				Where:   fmt.Sprintf("export section, offset %#x", at),
				Why:     "names that begin with " + ReservedPrefix + " are reserved for the node",
				Hint:    "give the module as its compiler made it, or rename the export",
			})
		}
		if _, twice := m.exports[name]; twice {
			m.malformed("two exports named %s", quote(name))
		}
		m.exports[name] = struct{}{}
		e := Export{Name: name, Index: index}
		var of uint64
		switch kind {
		case 0:
			e.Kind, of = "func", uint64(len(m.functions))
		case 1:
			e.Kind, of = "table", maxTables
		case 2:
			e.Kind, of = "memory", uint64(m.memories)
		case 3:
			e.Kind, of = "global", uint64(m.globals)
		default:
			m.malformed("export of kind %d", kind)
		}
		if uint64(index) >= of {
			m.malformed("export of %s %d of %d", e.Kind, index, of)
		}
		switch name {
		case "meshnode_event":
			m.entry(e, "(i32, i64, i32) -> (i32)")
			m.info.Event = true
		case "_initialize":
			m.entry(e, "() -> ()")
			m.info.Initialize = true
		case "_start":
			m.entry(e, "() -> ()")
			m.info.Command = true
		}
		m.info.Exports = append(m.info.Exports, e)
	}
}

// entry checks an export that the host calls by name.
func (m *parse) entry(e Export, want string) {
	got := e.Kind
	if e.Kind == "func" {
		got = m.typeOf(e.Index).String()
	}
	if got != want {
		m.fail(RefusedError{
			Feature: "export " + quote(e.Name),
			Why:     "it is " + got + " and must be " + want,
			Hint:    "declare it with that type",
		})
	}
}

// typeOf returns the type of a function index that exists.
func (m *parse) typeOf(f uint32) funcType { return m.types[m.functions[f]] }

func (m *parse) readElement() {
	e := element{flags: m.u32(), typ: typFuncref}
	if e.flags > 7 {
		m.malformed("element segment of kind %d", e.flags)
	}
	active := e.flags&1 == 0
	if active {
		if e.flags&2 != 0 {
			e.table = m.u32()
		}
		e.offset.pos = m.pos
		m.constExpr()
		e.offset.end = m.pos
	}
	exprs := e.flags&4 != 0
	if e.flags&3 != 0 { // a kind or a type is given
		if exprs {
			if e.typ = m.valueType(); e.typ != typFuncref && e.typ != typExternref {
				m.malformed("element segment of %s", typeName(e.typ))
			}
		} else if kind := m.byte(); kind != 0 {
			m.malformed("elements of kind %d", kind)
		}
	}
	e.count = m.count("elements", maxElements, 1)
	e.items.pos = m.pos
	for range e.count {
		if exprs {
			m.constExpr()
		} else {
			m.u32()
		}
	}
	e.items.end = m.pos
	if m.anywhere != nil {
		m.elements = append(m.elements, e)
	}
}

func (m *parse) readData() {
	switch flags := m.u32(); flags {
	case 0:
		m.constExpr()
	case 1:
	case 2:
		if memory := m.u32(); memory != 0 {
			m.malformed("data for memory %d", memory)
		}
		m.constExpr()
	default:
		m.malformed("data segment of kind %d", flags)
	}
	m.bytes(m.u32())
}

// check refuses what shows only when all has been read.
func (m *parse) check() {
	m.where = "module"
	if int(m.bodies) != len(m.functions)-m.imported {
		m.malformed("%d functions and %d bodies", len(m.functions)-m.imported, m.bodies)
	}
	if m.memories == 0 && (m.anywhere == nil || !m.anywhere.Foreign) {
		m.fail(RefusedError{
			Feature: "no memory",
			Why:     "messages pass through the worker's memory, and it has none",
			Hint:    "declare a memory",
		})
	}
}

// rewrite returns the module with its export section extended and its start
// section gone.
func (m *parse) rewrite() []byte {
	m.info.Memory = MemoryExport
	extra := uint32(1 + len(m.info.Globals))
	var add []byte
	export := func(name string, kind byte, index uint32) {
		add = appendU32(add, uint32(len(name)))
		add = append(add, name...)
		add = append(add, kind)
		add = appendU32(add, index)
	}
	export(MemoryExport, 2, 0)
	if m.start >= 0 {
		m.info.Start = StartExport
		export(StartExport, 0, uint32(m.start))
		extra++
	}
	for _, g := range m.info.Globals {
		export(g.Export, 3, g.Index)
	}

	out := make([]byte, 0, len(m.b)+len(add)+32)
	out = append(out, m.b[:8]...)
	done := false
	// exports writes the new section; own are the entries of the old one.
	exports := func(own []byte) {
		count := appendU32(nil, uint32(len(m.info.Exports))+extra)
		out = append(out, secExport)
		out = appendU32(out, uint32(len(count)+len(own)+len(add)))
		out = append(out, count...)
		out = append(out, own...)
		out = append(out, add...)
		done = true
	}
	for _, s := range m.sections {
		if !done && s.id != secCustom && sectionOrder[s.id] > sectionOrder[secExport] {
			exports(nil)
		}
		switch s.id {
		case secStart:
		case secExport:
			r := reader{b: m.b, pos: s.body, end: s.end}
			r.u32()
			exports(m.b[r.pos:s.end])
		default:
			out = append(out, m.b[s.start:s.end]...)
		}
	}
	if !done {
		exports(nil)
	}
	return out
}
