package suspend

import (
	"fmt"
	"slices"
	"strings"
)

// Version numbers what Rewrite makes of a module. It changes when the output for
// any input does, so a cache of rewritten modules is keyed by it and the
// module's hash, and an image can be restored only by the version that made it.
const Version = 4

// SuspendModule is the module that a rewritten program imports its host
// functions from; see Stack.
const SuspendModule = "meshnode_suspend"

// Names that Rewrite exports things under.
const (
	// StopExport is the global that makes the program stop at its next suspend
	// point while it is not zero; with Countdown, while it is not above zero.
	StopExport = ReservedPrefix + "stop"
	// RunExport is the function that continues suspended frames.
	RunExport = ReservedPrefix + "run"
	// ReapplyExport is the function that drops the segments that were dropped,
	// according to the globals. It is exported if any can be.
	ReapplyExport = ReservedPrefix + "reapply"
)

// A Poll is how a program finds out that it is to stop.
type Poll int

const (
	// Flag: another thread sets a global. It costs a load and a branch.
	Flag Poll = iota
	// Countdown: a global counts the polls down, and the program stops when it
	// is used up. For hosts that cannot reach the global while the program
	// runs, and for tests that stop at a certain place.
	Countdown
)

// Options say how to rewrite a program.
type Options struct {
	Poll Poll
	// Foreign lets the module import functions that no node provides, and have
	// no memory: for tests of the rewriter itself.
	Foreign bool
	// Everywhere treats every function as one that may have to stop, and every
	// imported one as one that can block: for tests too.
	Everywhere bool
	// Once writes every function in one version that can be, not only the large
	// ones that are better for it: for tests too.
	Once bool
}

// Host functions come in sizes, counted in 64-bit units.
var (
	saveSizes = [...]int{0, 2, 4, 8, 16}
	loadSizes = [...]int{2, 4, 8, 16}
)

const maxUnits = 16

// The least sizes of functions that are written in one version, in bytes: of
// those that the code that saves their frames would double, of those that stop
// in loops alone, which are less than a quarter of them, and of those whose
// frames are small: at most smallFrame values, as a mean over their points.
const (
	largeWide     = 4 << 10
	largeStraight = 1 << 10
	largeNarrow   = 512
	smallFrame    = 8
)

// A rewriter makes a program that can stop anywhere out of a module.
type rewriter struct {
	*parse
	straight bool // no function can stop
	plan     *plan
	e        emitter
	runs     []run // used again by every call of decoded

	sameType  []uint32          // of each type, the first that is equal
	standIn   map[uint32]uint32 // functions in the places of imported ones
	standIns  []uint32          // their types
	taken     []bool            // functions to which there are references
	refs      bool              // functions are used as values, or tables change
	drops     bool              // segments are dropped
	changed   []bool            // tables that change
	nextPoint uint32
	state     int // size of all frames' descriptions

	typeOfKey map[string]uint32 // types by their bytes
	newTypes  []byte
	typeCount uint32

	added   uint32 // imported functions added
	save    [len(saveSizes)]uint32
	load    [len(loadSizes)]uint32
	more    uint32
	next    uint32
	resumes []uint32 // functions with a resuming version
	helpers []helper
	helper  map[string]uint32

	stop         uint32        // index of a global
	addedGlobals []addedGlobal // behind stop
	owned        uint32        // registers that belong to one function
	globalOf     map[addedGlobal]uint32

	fast, slow []byte // bodies
	bodiesOut  []byte

	program *Program
}

// A helper is a function added to the module.
type helper struct {
	typ    uint32
	body   []byte // with locals and end
	export string
}

// An addedGlobal is a global that is added: one that says whether a segment has been
// dropped, or, with a type, a register. Registers are numbered by type if
// functions share them; those of one function are numbered by themselves, from 1
// (emitter.flag is number 0).
type addedGlobal struct {
	element bool
	segment uint32
	typ     byte
	owned   bool
}

func (d addedGlobal) export() string {
	if d.element {
		return fmt.Sprintf("%sdropped:element:%d", ReservedPrefix, d.segment)
	}
	return fmt.Sprintf("%sdropped:data:%d", ReservedPrefix, d.segment)
}

// Rewrite makes a program of a module: the same module, but that it can stop at
// any suspend point and be continued from there, possibly by another host, and
// that all of its state can be reached. The same input gives the same output;
// time and memory are linear in the module's length.
//
// The error is a *RefusedError. What Rewrite accepts may still be refused by
// the compiler if it was not valid to begin with.
func Rewrite(module []byte, o Options) (*Program, error) { return rewrite(module, o, false) }

// rewrite is Rewrite, or, with straight, what Prepare needs of it: no function
// can stop, but all else can be reached.
func rewrite(module []byte, o Options, straight bool) (_ *Program, err error) {
	m := &rewriter{parse: newParse(module), straight: straight}
	m.anywhere = &o
	defer m.refused(&err)
	m.read()
	m.check()
	m.prepare()
	m.makePlan()
	m.number()
	m.rewriteCode()
	out := m.assemble()
	m.program.Module = out
	m.program.Info = m.info
	m.program.noteTails()
	return m.program, nil
}

// prepare sets up what depends on no function body.
func (m *rewriter) prepare() {
	m.e.slots = map[slotKey]uint32{}
	m.e.tailOf = map[string]int{}
	m.typeOfKey = map[string]uint32{}
	m.globalOf = map[addedGlobal]uint32{}
	m.helper = map[string]uint32{}
	for i, t := range m.types {
		key := typeKey(t.params, t.results)
		first, ok := m.typeOfKey[key]
		if !ok {
			first = uint32(i)
			m.typeOfKey[key] = first
		}
		m.sameType = append(m.sameType, first)
	}
	m.addStandIns()
	m.program = m.newProgram()
	m.typeCount = uint32(len(m.types))
	m.taken = make([]bool, len(m.functions))
	m.changed = make([]bool, len(m.tables))
	// References in segments and globals; those in code are found later.
	for _, e := range m.elements {
		m.items(e, func(f uint32, null bool) {
			if !null {
				m.taken[f] = true
			}
		})
	}
	for _, g := range m.globalTypes {
		if g.typ == typFuncref {
			if f, ok := m.initialFunction(g.init); ok {
				m.taken[f] = true
			}
		}
	}
	m.stop = m.globals
	if m.straight {
		return
	}
	m.added = uint32(2 + len(saveSizes) + len(loadSizes))
	at := uint32(m.imported)
	take := func() uint32 { at++; return at - 1 }
	m.next = take()
	for i := range saveSizes {
		m.save[i] = take()
	}
	m.more = take()
	for i := range loadSizes {
		m.load[i] = take()
	}
}

// number gives the resuming versions their indexes.
func (m *rewriter) number() {
	for i := m.imported; i < len(m.functions); i++ {
		if m.plan.suspends(uint32(i)) {
			m.resumes = append(m.resumes, uint32(i))
		}
	}
}

// shifted is the new index of a function of the module.
func (m *rewriter) shifted(f uint32) uint32 {
	if f < uint32(m.imported) {
		return f
	}
	return f + m.added
}

func (m *rewriter) resumeBase() uint32 { return uint32(len(m.functions)) + m.added }
func (m *rewriter) helperBase() uint32 { return m.resumeBase() + uint32(len(m.resumes)) }

// account adds to the size of the frames' descriptions, which is bounded so
// that no module can make it grow faster than itself.
func (m *rewriter) account(n int) {
	m.state += n
	if m.state > 64*len(m.b)+1<<20 {
		m.fail(RefusedError{
			Feature: "too much state",
			Why:     "the functions have so many variables in use at once that stopping in them would cost too much",
			Hint:    "split the largest functions, or keep their variables in memory",
		})
	}
}

// typeIndex returns the index of a type, which is added if there is none.
func (m *rewriter) typeIndex(params, results []byte) uint32 {
	key := typeKey(params, results)
	i, ok := m.typeOfKey[key]
	if !ok {
		i = m.typeCount
		m.typeCount++
		m.typeOfKey[key] = i
		m.newTypes = append(m.newTypes, key...)
	}
	return i
}

func typeKey(params, results []byte) string {
	b := appendU32([]byte{0x60}, uint32(len(params)))
	b = append(b, params...)
	b = appendU32(b, uint32(len(results)))
	return string(append(b, results...))
}

func repeat(typ byte, n int) []byte { return []byte(strings.Repeat(string([]byte{typ}), n)) }

// items calls f for each item of an element segment.
func (m *rewriter) items(e element, f func(function uint32, null bool)) {
	r := reader{b: m.b, pos: e.items.pos, end: e.items.end, where: "element section"}
	for range e.count {
		if e.flags&4 == 0 {
			f(m.checkFunction(&r, r.u32()), false)
			continue
		}
		switch op := r.byte(); op {
		case opRefFunc:
			f(m.checkFunction(&r, r.u32()), false)
		case opRefNull:
			r.byte()
			f(0, true)
		default:
			r.malformed("instruction %#02x in an element segment", op)
		}
		if r.byte() != opEnd {
			r.malformed("element of several instructions")
		}
	}
}

// checkFunction returns what stands for a function of the module in references.
func (m *rewriter) checkFunction(r *reader, f uint32) uint32 {
	if uint64(f) >= uint64(len(m.functions)) {
		r.malformed("function %d of %d", f, len(m.functions))
	}
	return m.referred(f)
}

// addStandIns adds, behind the module's functions, one for each imported function
// that can block and that a reference can mean: it calls it with its own arguments,
// and takes its place in all references. A call through a table does not tell whom
// it reaches, so there cannot be the suspend point in front of it that a call of
// such a function needs; in the function that is added there is one.
func (m *rewriter) addStandIns() {
	means := make([]bool, m.imported)
	mean := func(f uint32) {
		if int(f) < m.imported && m.blocks(f) {
			means[f] = true
		}
	}
	for _, e := range m.elements {
		m.items(e, func(f uint32, _ bool) { mean(f) })
	}
	for _, g := range m.globalTypes {
		if g.typ == typFuncref {
			if f, ok := m.initialFunction(g.init); ok {
				mean(f)
			}
		}
	}
	for _, x := range m.info.Exports {
		if x.Kind == "func" {
			mean(x.Index) // which lets code refer to it
		}
	}
	m.standIn = map[uint32]uint32{}
	var bodies []byte
	for i, needed := range means {
		if !needed {
			continue
		}
		f := uint32(i)
		start := len(m.b) + len(bodies)
		bodies = append(bodies, 0) // locals
		for p := range m.typeOf(f).params {
			bodies = appendU32(append(bodies, opLocalGet), uint32(p))
		}
		bodies = append(appendU32(append(bodies, opCall), f), opEnd)
		m.standIn[f] = uint32(len(m.functions))
		m.standIns = append(m.standIns, m.functions[f])
		m.functions = append(m.functions, m.functions[f])
		m.code = append(m.code, span{start, len(m.b) + len(bodies)})
	}
	m.b = append(slices.Clip(m.b), bodies...) // a copy: the module is the caller's
}

// referred is the function that references to f mean.
func (m *rewriter) referred(f uint32) uint32 {
	if s, ok := m.standIn[f]; ok {
		return s
	}
	return f
}

// blocks says whether an imported function is one that can block.
func (m *rewriter) blocks(f uint32) bool {
	imp := &m.info.Imports[f]
	return !m.straight && (canBlock(imp.Module, imp.Name) || m.anywhere.Everywhere)
}

// initialFunction returns the function that a global of references begins with.
func (m *rewriter) initialFunction(init span) (uint32, bool) {
	r := reader{b: m.b, pos: init.pos, end: init.end, where: "global section"}
	if r.byte() != opRefFunc {
		return 0, false
	}
	return m.checkFunction(&r, r.u32()), true
}

// appendPoll appends the condition under which to stop.
func (m *rewriter) appendPoll(b []byte) []byte {
	if m.anywhere.Poll == Flag {
		return appendU32(append(b, opGlobalGet), m.stop)
	}
	b = appendU32(append(b, opGlobalGet), m.stop)
	b = append(b, opI32Const, 1, 0x6b) // i32.sub
	b = appendU32(append(b, opGlobalSet), m.stop)
	b = appendU32(append(b, opGlobalGet), m.stop)
	return append(b, opI32Const, 1, 0x48) // i32.lt_s
}

// rewriteCode writes all function bodies.
func (m *rewriter) rewriteCode() {
	out := make([]byte, 0, len(m.b)+len(m.b)/2)
	slow := make([]byte, 0, len(m.b))
	for f := range m.decoded(m.plan) {
		m.function = int64(f.index)
		m.pos = f.body.end
		if !m.plan.suspends(f.index) {
			m.bodiesOut = out
			out = m.appendPlain(f)
			continue
		}
		base := m.nextPoint
		for j := range f.points {
			f.points[j].id = base + uint32(j)
		}
		m.nextPoint += uint32(len(f.points))
		e := m.emitter(f)
		if len(f.points) > 0 && slices.Contains(f.typ.results, typExternref) {
			e.externref() // results of a frame that was resumed pass through the host
		}
		m.bodiesOut = out
		before := len(out)
		out = e.emitFast()
		if inLocals, once := m.onlyOnce(f, len(out)-before); once {
			m.bodiesOut = out[:before]
			if inLocals {
				out = e.emitOnceInLocals()
			} else {
				out = e.emitOnce()
			}
			m.bodiesOut = slow
			slow = e.emitEntry()
			m.describeFunction(e)
			continue
		}
		m.bodiesOut = slow
		if len(f.points) == 0 {
			slow = append(slow, 3, 0, opUnreachable, opEnd)
		} else {
			slow = e.emitResume()
		}
		m.describeFunction(e)
	}
	m.function = -1
	m.fast, m.slow = out, slow
}

// onlyOnce says whether to write a function in one version, given the length of
// its fast one, and if so, whether its variables stay in locals. It is for large
// functions in which little time is spent in frames that were rebuilt.
func (m *rewriter) onlyOnce(f *function, fast int) (inLocals, once bool) {
	if len(f.points) == 0 {
		return false, false
	}
	size := f.body.end - f.body.pos
	values, calls := 0, false
	for i := range f.points {
		values += len(f.points[i].frame)
		calls = calls || f.points[i].kind != pointLoop
	}
	if !calls {
		return true, m.anywhere.Once || size >= largeStraight && 4*f.loopBytes() < size
	}
	if values <= smallFrame*len(f.points) && (m.anywhere.Once || size >= largeNarrow) {
		return true, true
	}
	// Its registers are its own, but not each call's: no call of it may begin
	// while another goes on.
	return false, !m.plan.again[f.index] && (m.anywhere.Once || size >= largeWide && fast > 2*size)
}

// loopBytes is how many bytes of a function are in loops.
func (f *function) loopBytes() int {
	n := 0
	for i := 0; i < len(f.code); i++ {
		if ins := &f.code[i]; ins.op == opLoop {
			i = f.ctl[ins.a].end
			n += int(f.code[i].end - ins.pos)
		}
	}
	return n
}

// appendPlain copies a function that cannot stop, with new indexes.
func (m *rewriter) appendPlain(f *function) []byte {
	body := m.e.out[:0]
	at := uint32(f.body.pos)
	copied := at
	for i := range f.code {
		ins := &f.code[i]
		if ins.pos != at { // code that cannot be reached
			body = append(body, m.b[copied:at]...)
			copied = ins.pos
		}
		at = ins.end
		replaced := true
		switch {
		case ins.op == opCall || ins.op == opReturnCall:
			body = append(body, m.b[copied:ins.pos]...)
			body = appendU32(append(body, byte(ins.op)), m.shifted(ins.a))
		case ins.op == opEnd:
			if replaced = ins.a != 0 && f.ctl[ins.a].deadEnd; replaced {
				body = append(append(body, m.b[copied:ins.end]...), opUnreachable)
			}
		case ofReferences(ins.op):
			body = append(body, m.b[copied:ins.pos]...)
			body = m.appendReference(body, ins)
		default:
			replaced = false
		}
		if replaced {
			copied = ins.end
		}
	}
	body = append(body, m.b[copied:at]...)
	m.e.out = body
	decl := appendLocals(nil, f.locals[len(f.typ.params):])
	out := appendU32(m.bodiesOut, uint32(len(decl)+len(body)))
	return append(append(out, decl...), body...)
}

// assemble puts the module together.
func (m *rewriter) assemble() []byte {
	m.addHelpers()
	m.info.Memory = ""
	out := make([]byte, 0, len(m.b)+len(m.fast)+len(m.slow)+1<<16)
	out = append(out, m.b[:8]...)
	old := map[byte]section{}
	for _, s := range m.sections {
		if s.id != secCustom {
			old[s.id] = s
		}
	}
	// items returns the entries of a section of the module, and how many.
	items := func(id byte) (uint32, []byte) {
		s, ok := old[id]
		if !ok {
			return 0, nil
		}
		r := reader{b: m.b, pos: s.body, end: s.end}
		n := r.u32()
		return n, m.b[r.pos:s.end]
	}
	put := func(id byte, count uint32, parts ...[]byte) {
		if count == 0 {
			return
		}
		n := appendU32(nil, count)
		size := len(n)
		for _, p := range parts {
			size += len(p)
		}
		out = appendU32(append(out, id), uint32(size))
		out = append(out, n...)
		for _, p := range parts {
			out = append(out, p...)
		}
	}

	tables, newTables := m.tableSection()
	elements, newElements := m.elementSection()
	globals, newGlobals := m.globalSection()
	exports, newExports := m.exportSection()
	imports, newImports := m.importSection()
	functions, newFunctions := m.functionSection()
	bodies := m.helperBodies()

	_, types := items(secType)
	put(secType, m.typeCount, types, m.newTypes)
	_, own := items(secImport)
	put(secImport, uint32(len(m.info.Imports))+imports, own, newImports)
	n, own := items(secFunction)
	functions += n
	put(secFunction, functions, own, newFunctions)
	n, own = items(secTable)
	put(secTable, n+tables, own, newTables)
	if s, ok := old[secMemory]; ok {
		out = append(out, m.b[s.start:s.end]...)
	}
	put(secGlobal, globals, newGlobals)
	put(secExport, exports, newExports)
	put(secElement, elements, newElements)
	if s, ok := old[secDataCount]; ok {
		out = append(out, m.b[s.start:s.end]...)
	}
	put(secCode, functions, m.fast, m.slow, bodies)
	if s, ok := old[secData]; ok {
		out = append(out, m.b[s.start:s.end]...)
	}
	return m.appendNames(out)
}

func (m *rewriter) importSection() (count uint32, b []byte) {
	if m.straight {
		return 0, nil
	}
	add := func(name string, params, results []byte) {
		b = appendName(b, SuspendModule)
		b = appendName(b, name)
		b = appendU32(append(b, 0), m.typeIndex(params, results))
		count++
	}
	add("next", nil, []byte{typI32})
	for _, n := range saveSizes {
		add(fmt.Sprintf("save%d", n), append([]byte{typI32}, repeat(typI64, n)...), nil)
	}
	add("more", repeat(typI64, maxUnits), nil)
	for _, n := range loadSizes {
		add(fmt.Sprintf("load%d", n), nil, repeat(typI64, n))
	}
	return count, b
}

func (m *rewriter) functionSection() (count uint32, b []byte) {
	void := m.typeIndex(nil, nil)
	for _, t := range m.standIns {
		b = appendU32(b, t)
		count++
	}
	for range m.resumes {
		b = appendU32(b, void)
		count++
	}
	for _, h := range m.helpers {
		b = appendU32(b, h.typ)
		count++
	}
	return count, b
}

func (m *rewriter) helperBodies() []byte {
	var b []byte
	for _, h := range m.helpers {
		b = appendU32(b, uint32(len(h.body)))
		b = append(b, h.body...)
	}
	return b
}

func appendName(b []byte, s string) []byte { return append(appendU32(b, uint32(len(s))), s...) }

// globalSection writes all globals: the module's own, whose references to
// functions have new indexes, and those added.
func (m *rewriter) globalSection() (count uint32, b []byte) {
	for _, g := range m.globalTypes {
		mut := byte(0)
		if g.mutable {
			mut = 1
		}
		b = append(b, g.typ, mut)
		if g.typ == typFuncref {
			if f, ok := m.initialFunction(g.init); ok {
				b = appendU32(append(b, opRefFunc), m.reference(f))
				b = append(b, opEnd)
				continue
			}
		}
		b = append(b, m.b[g.init.pos:g.init.end]...)
	}
	start := int32(0)
	if m.anywhere.Poll == Countdown {
		start = 1<<31 - 1
	}
	b = append(b, typI32, 1, opI32Const)
	b = append(appendS32(b, start), opEnd)
	for _, d := range m.addedGlobals {
		t := d.typ
		if t == 0 {
			t = typI32
		}
		b = append(appendZero(append(b, t, 1), t), opEnd)
	}
	return m.globals + 1 + uint32(len(m.addedGlobals)), b
}

func (m *rewriter) exportSection() (count uint32, b []byte) {
	export := func(name string, kind byte, index uint32) {
		b = appendName(b, name)
		b = appendU32(append(b, kind), index)
		count++
	}
	kinds := map[string]byte{"func": 0, "table": 1, "memory": 2, "global": 3}
	for _, e := range m.info.Exports {
		i := e.Index
		if e.Kind == "func" {
			i = m.shifted(i)
		}
		export(e.Name, kinds[e.Kind], i)
	}
	if m.memories > 0 {
		m.info.Memory = MemoryExport
		export(MemoryExport, 2, 0)
	}
	if m.start >= 0 {
		m.info.Start = StartExport
		export(StartExport, 0, m.shifted(uint32(m.start)))
	}
	for i, d := range m.addedGlobals {
		if d.typ != 0 {
			continue
		}
		m.info.Globals = append(m.info.Globals, Global{Index: m.stop + 1 + uint32(i), Type: typI32, Export: d.export()})
	}
	for _, g := range m.info.Globals {
		export(g.Export, 3, g.Index)
	}
	export(StopExport, 3, m.stop)
	for i, h := range m.helpers {
		if h.export != "" {
			export(h.export, 0, m.helperBase()+uint32(i))
		}
	}
	return count, b
}

// appendNames appends the name section with new function indexes. Debug
// information is left out: its offsets into the code are no longer right.
func (m *rewriter) appendNames(out []byte) (result []byte) {
	keep := len(out)
	result = out
	defer func() {
		if _, ok := recover().(*RefusedError); ok {
			result = out[:keep] // names are a convenience: broken ones are none
		}
	}()
	for _, s := range m.sections {
		if s.id != secCustom {
			continue
		}
		r := &reader{b: m.b, pos: s.body, end: s.end}
		if r.name() != "name" {
			continue
		}
		b := appendName(nil, "name")
		for r.left() > 0 {
			kind := r.byte()
			sub := r.bytes(r.u32())
			switch kind {
			case 0: // the module's own
				sub = appendName(nil, (&reader{b: sub, end: len(sub)}).name())
			case 1:
				sub = m.functionNames(sub)
			case 7, 9: // globals, data
			default:
				continue
			}
			b = append(b, kind)
			b = appendU32(b, uint32(len(sub)))
			b = append(b, sub...)
		}
		out = append(out, secCustom)
		out = appendU32(out, uint32(len(b)))
		return append(out, b...)
	}
	return out
}

func (m *rewriter) functionNames(sub []byte) []byte {
	r := &reader{b: sub, end: len(sub)}
	n := r.count("names", maxFunctions, 2)
	b := appendU32(nil, n)
	last := int64(-1)
	for range n {
		f := r.u32()
		if int64(f) <= last || uint64(f) >= uint64(len(m.functions)) {
			r.malformed("names out of order")
		}
		last = int64(f)
		b = appendU32(b, m.shifted(f))
		b = appendName(b, r.name())
	}
	return b
}
