package suspend

import (
	"math/bits"
	"slices"
)

// An emitter writes one version of a function: the fast one, or the one that
// resumes.
//
// The operand stack. A frame is made of locals, so whatever lies on the operand
// stack at a suspend point must be in one. Each place of the stack has a local
// for each type (slot), and the emitter knows for each value whether it is on
// the machine's stack or in its slot: flush moves all into slots, need brings
// the topmost back. For a compiler that turns locals into SSA values, as all
// do, neither costs an instruction.
//
// Blocks take and leave nothing on the machine's stack: their parameters and
// results pass through locals too. That makes every label one that a resume can
// jump to.
type emitter struct {
	m      *rewriter
	f      *function
	resume bool
	once   bool // the only version: with resume
	// inLocals means that variables stay in locals though a resume can lead in.
	inLocals bool

	out    []byte
	stack  []value
	spilt  int // values below this are in slots
	labels []label
	open   int  // labels open in the body, counted in the output
	dead   bool // the code that comes cannot be reached

	// locals are the types of all locals; those beyond the function's own are
	// shared by both versions.
	locals []byte
	slots  map[slotKey]uint32
	cond   int32 // a local for conditions, or -1
	which  int32 // a local for the point at which the function stops, or -1

	// Fast version: tails are the lists of locals that the code behind the body
	// saves, one for each distinct list.
	tails   [][]uint32
	tailOf  map[string]int
	keyBuf  []byte
	tailBuf []byte

	// flag is a global that says that a function which is in locals and only once
	// is to resume. One for all will do, since each clears it first of all; and
	// wazero, which looks at every global behind every call while it compiles,
	// would take ten times as long if each had its own.
	flag uint32

	// Resuming version.
	regions []region
	union   []uint32
	nest    nest
	// registerOf is, by local, the global that stands for it, plus one.
	registerOf    []uint32
	registerCount map[byte]uint32 // by type
}

// A value is on the machine's stack, or in a local.
type value struct {
	typ   byte
	local int32 // -1: on the machine's stack
}

// A label is an open construct.
type label struct {
	c    uint32
	abs  int // labels around it
	base int // values on the stack below its parameters
}

type slotKey struct {
	kind  byte // 's' for a place of the stack, 'l' for a label's values, 'a' for arguments
	depth uint32
	index uint32
	typ   byte
}

// slot returns the local for one use, the same in both versions.
func (e *emitter) slot(k slotKey) uint32 {
	l, ok := e.slots[k]
	if !ok {
		l = e.local(k.typ)
		e.slots[k] = l
	}
	return l
}

func (e *emitter) local(typ byte) uint32 {
	if len(e.locals) >= maxLocals {
		e.m.fail(RefusedError{
			Feature: "function too large",
			Why:     "it would need more locals than WebAssembly allows to stop in its middle",
			Hint:    "split the function",
		})
	}
	e.locals = append(e.locals, typ)
	return uint32(len(e.locals) - 1)
}

func (e *emitter) place(depth int, typ byte) uint32 {
	return e.slot(slotKey{kind: 's', depth: uint32(depth), typ: typ})
}

// passing returns the local in which value i passes a label of the construct
// that is the d-th open one.
func (e *emitter) passing(d, i int, typ byte) uint32 {
	return e.slot(slotKey{kind: 'l', depth: uint32(d), index: uint32(i), typ: typ})
}

func (e *emitter) condition() uint32 {
	if e.cond < 0 {
		e.cond = int32(e.local(typI32))
	}
	return uint32(e.cond)
}

func (e *emitter) byte(b ...byte)          { e.out = append(e.out, b...) }
func (e *emitter) u32(op byte, v uint32)   { e.out = appendU32(append(e.out, op), v) }
func (e *emitter) i32(v int32)             { e.out = appendS32(append(e.out, opI32Const), v) }
func (e *emitter) begin(op byte)           { e.byte(op, 0x40); e.open++ }
func (e *emitter) close()                  { e.byte(opEnd); e.open-- }
func (e *emitter) branch(op byte, abs int) { e.u32(op, uint32(e.open-1-abs)) }
func (e *emitter) push(types ...byte)      { e.pushed(types) }

// copyOf writes an instruction as it was. Most are of one byte to three, and
// appending those one by one is quicker than a call of memmove.
func (e *emitter) copyOf(ins *instruction) {
	b := e.m.b[ins.pos:ins.end]
	switch len(b) {
	case 1:
		e.out = append(e.out, b[0])
	case 2:
		e.out = append(e.out, b[0], b[1])
	case 3:
		e.out = append(e.out, b[0], b[1], b[2])
	default:
		e.out = append(e.out, b...)
	}
}

// types lists the types of all values on the stack.
func (e *emitter) types() []byte {
	b := make([]byte, len(e.stack))
	for i, v := range e.stack {
		b[i] = v.typ
	}
	return b
}

func (e *emitter) pushed(types []byte) {
	for _, t := range types {
		e.stack = append(e.stack, value{t, -1})
	}
}

// flush moves all values into their slots.
func (e *emitter) flush() {
	for i := len(e.stack) - 1; i >= e.spilt; i-- {
		e.spill(i)
	}
	e.spilt = len(e.stack)
}

func (e *emitter) spill(i int) {
	v := &e.stack[i]
	if v.local < 0 {
		l := e.place(i, v.typ)
		e.set(l)
		v.local = int32(l)
	}
}

// need sees to it that the topmost n values are on the machine's stack.
func (e *emitter) need(n int) {
	top := len(e.stack)
	if n > top-e.labels[len(e.labels)-1].base {
		e.m.malformed("an instruction needs %d operands and has %d", n, top-e.labels[len(e.labels)-1].base)
	}
	first := top - n
	for first < top && e.stack[first].local < 0 {
		first++
	}
	if first == top {
		return
	}
	for i := top - 1; i > first; i-- {
		e.spill(i)
	}
	for i := first; i < top; i++ {
		e.get(uint32(e.stack[i].local))
		e.stack[i].local = -1
	}
	e.spilt = min(e.spilt, first)
}

func (e *emitter) drop(n int) {
	e.stack = e.stack[:len(e.stack)-n]
	e.spilt = min(e.spilt, len(e.stack))
}

func (e *emitter) take(n int) {
	e.need(n)
	e.drop(n)
}

// restack replaces the stack by one that is all in slots.
func (e *emitter) restack(types []byte) {
	e.stack = e.stack[:0]
	for i, t := range types {
		e.stack = append(e.stack, value{t, int32(e.place(i, t))})
	}
	e.spilt = len(types)
}

// emitter returns an emitter for f, with the memory of an earlier one.
func (m *rewriter) emitter(f *function) *emitter {
	e := &m.e
	clear(e.slots)
	clear(e.tailOf)
	*e = emitter{
		m: m, f: f, out: e.out[:0], stack: e.stack[:0], labels: e.labels[:0],
		locals: append(e.locals[:0], f.locals...), slots: e.slots, cond: -1, which: -1,
		tails: e.tails[:0], tailOf: e.tailOf, keyBuf: e.keyBuf[:0], tailBuf: e.tailBuf[:0],
		regions: e.regions[:0], union: e.union[:0], registerOf: e.registerOf[:0],
	}
	return e
}

// emitFast writes the fast version: the function as it was, and at each suspend
// point a look at the flag and a branch out of the body, to code behind it that
// saves the frame and returns.
//
//	block $tail1                   block for each distinct list of locals
//	  block $tail0
//	    loop $head
//	      i32.const 2*point
//	      local.set $which
//	      global.get $stop
//	      br_if $tail0
//	      ... call $f, results into slots, and the same once more ...
//	    end
//	    return
//	  end
//	  save $which and the locals of list 0; return zeroes
//	end
//	save $which and the locals of list 1; return zeroes
func (e *emitter) emitFast() []byte {
	if e.f.branchesOut { // the body is in a block of its own, which they use
		e.begin(opBlock)
	}
	e.enterLabel(0, 0, 0)
	e.body()
	return e.withTails()
}

// withTails appends the function, whose body has been written, to the others,
// with the code that saves frames.
func (e *emitter) withTails() []byte {
	body := e.out
	head := appendBlocks(nil, len(e.tails))
	e.out = e.tailBuf[:0]
	for i, list := range e.tails {
		e.byte(opEnd)
		e.saveFrame(list)
		for _, t := range e.f.typ.results {
			e.zero(t)
		}
		if i < len(e.tails)-1 {
			e.byte(opReturn)
		}
	}
	e.byte(opEnd)
	tail := e.out
	e.out, e.tailBuf = body, tail
	decl := appendLocals(nil, e.locals[len(e.f.typ.params):])
	size := len(decl) + len(head) + len(body) + len(tail)
	out := appendU32(e.m.bodiesOut, uint32(size))
	return append(append(append(append(out, decl...), head...), body...), tail...)
}

func appendBlocks(b []byte, n int) []byte {
	for range n {
		b = append(b, opBlock, 0x40)
	}
	return b
}

// appendLocals appends a declaration of locals.
func appendLocals(b []byte, types []byte) []byte {
	groups := uint32(0)
	for i, t := range types {
		if i == 0 || types[i-1] != t {
			groups++
		}
	}
	b = appendU32(b, groups)
	for i := 0; i < len(types); {
		j := i
		for j < len(types) && types[j] == types[i] {
			j++
		}
		b = append(appendU32(b, uint32(j-i)), types[i])
		i = j
	}
	return b
}

// zero pushes a value of a type: any will do.
func (e *emitter) zero(t byte) { e.out = appendZero(e.out, t) }

func appendZero(b []byte, t byte) []byte {
	switch t {
	case typI32, typI64:
		return append(b, opI32Const+(typI32-t), 0)
	case typF32:
		return append(b, 0x43, 0, 0, 0, 0)
	case typF64:
		return append(b, 0x44, 0, 0, 0, 0, 0, 0, 0, 0)
	case typV128:
		return append(b, 0xfd, 0x0c, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	}
	return append(b, opRefNull, t)
}

// body writes the instructions.
func (e *emitter) body() {
	f := e.f
	left := f.points
	for i := 0; i < len(f.code); i++ {
		ins := &f.code[i]
		n := 0
		for n < len(left) && left[n].at == i {
			n++
		}
		points := left[:n]
		left = left[n:]
		if e.dead && len(points) == 0 && ins.op != opElse && ins.op != opEnd {
			// Only the resuming version comes here: the part of a function in
			// front of its first point never runs in it.
			switch ins.op {
			case opBlock, opLoop, opIf:
				c := &f.ctl[ins.a]
				if !c.points {
					i = c.end
					continue
				}
				e.m.pos = int(ins.pos)
				e.construct(ins, nil)
			}
			continue
		}
		e.m.pos = int(ins.pos)
		e.instruction(ins, points)
	}
}

func (e *emitter) instruction(ins *instruction, points []point) {
	f, m := e.f, e.m
	switch ins.op {
	case opBlock, opLoop, opIf:
		e.construct(ins, points)
	case opElse:
		e.orElse(ins)
	case opEnd:
		e.end(ins)
	case opBr:
		if ins.a == 0 {
			e.ret()
			return
		}
		d := e.find(ins.a)
		e.pass(d, f.ctl[ins.a].passed())
		if e.leaves(d) {
			e.storeNest()
		}
		e.branch(opBr, e.labels[d].abs)
		e.dead = true
	case opBrIf:
		d := e.find(ins.a)
		types := f.ctl[ins.a].passed()
		e.need(len(types) + 1)
		if len(types) > 0 {
			e.set(e.condition())
			e.drop(1)
			e.pass(d, types)
			e.unpass(d, types)
			e.get(e.condition())
		} else {
			e.drop(1)
		}
		if e.leaves(d) {
			e.begin(opIf)
			e.storeNest()
			e.branch(opBr, e.labels[d].abs)
			e.close()
			return
		}
		e.branch(opBrIf, e.labels[d].abs)
	case opBrTable:
		e.table(ins)
	case opReturn:
		e.ret()
	case opUnreachable:
		e.byte(opUnreachable)
		e.dead = true
	case opCall:
		t := m.typeOf(ins.a)
		e.call(t, points, func() { e.u32(opCall, m.shifted(ins.a)) })
	case opCallIndirect:
		t := m.types[ins.a]
		t.params = append(slices.Clip(t.params), typI32)
		e.call(t, points, func() { e.copyOf(ins) })
	case opReturnCall:
		e.tailCall(m.typeOf(ins.a), points, func(op byte) { e.u32(op, m.shifted(ins.a)) }, opCall)
	case opReturnCallIn:
		t := m.types[ins.a]
		t.params = append(slices.Clip(t.params), typI32)
		e.tailCall(t, points, func(op byte) {
			at := len(e.out)
			e.copyOf(ins)
			e.out[at] = op
		}, opCallIndirect)
	case opDrop:
		if n := len(e.stack); n > e.labels[len(e.labels)-1].base && e.stack[n-1].local >= 0 {
			e.drop(1)
			return
		}
		e.take(1)
		e.copyOf(ins)
	case opSelect:
		e.need(3)
		t := e.stack[len(e.stack)-3].typ
		e.drop(3)
		e.copyOf(ins)
		e.push(t)
	case opSelectTyped:
		e.take(3)
		e.copyOf(ins)
		e.push(byte(ins.a))
	case opLocalGet:
		e.get(ins.a)
		e.push(f.locals[ins.a])
	case opLocalSet:
		e.take(1)
		e.set(ins.a)
	case opLocalTee:
		e.take(1)
		if e.inRegister(ins.a) {
			e.set(ins.a)
			e.get(ins.a)
		} else {
			e.copyOf(ins)
		}
		e.push(f.locals[ins.a])
	case opGlobalGet:
		e.copyOf(ins)
		e.push(m.globalTypes[ins.a].typ)
	case opGlobalSet:
		e.take(1)
		e.copyOf(ins)
	case opRefNull:
		e.copyOf(ins)
		e.push(byte(ins.a))
	default:
		fx := &effects[ins.op]
		e.take(int(fx.pops))
		if ofReferences(ins.op) {
			e.out = m.appendReference(e.out, ins)
		} else {
			e.copyOf(ins)
		}
		if fx.push != 0 {
			e.push(fx.push)
		}
	}
}

// enterLabel opens construct c, with abs labels around it and base values on the
// stack below its parameters.
func (e *emitter) enterLabel(c uint32, abs, base int) {
	e.f.ctl[c].label = len(e.labels)
	e.labels = append(e.labels, label{c: c, abs: abs, base: base})
}

// find returns which open label belongs to a construct.
func (e *emitter) find(c uint32) int {
	d := e.f.ctl[c].label
	if d >= len(e.labels) || e.labels[d].c != c {
		panic("suspend: branch to a construct that is not open")
	}
	return d
}

// pass moves the topmost values into the locals in which they pass label d.
func (e *emitter) pass(d int, types []byte) {
	e.need(len(types))
	for i := len(types) - 1; i >= 0; i-- {
		e.set(e.passing(d, i, types[i]))
	}
	e.drop(len(types))
}

// unpass pushes what has passed label d.
func (e *emitter) unpass(d int, types []byte) {
	for i, t := range types {
		e.get(e.passing(d, i, t))
	}
	e.pushed(types)
}

func (e *emitter) table(ins *instruction) {
	f := e.f
	n := f.targets[ins.a]
	list := f.targets[ins.a+1 : ins.a+2+n]
	types := f.ctl[list[n]].passed()
	e.need(len(types) + 1)
	if len(types) > 0 {
		e.set(e.condition())
		e.drop(1)
		first := e.find(list[n])
		e.pass(first, types)
		seen := map[int]bool{first: true}
		for _, c := range list {
			d := e.find(c)
			other := f.ctl[c].passed()
			if len(other) != len(types) {
				e.m.malformed("br_table to labels of %d and %d values", len(types), len(other))
			}
			if seen[d] {
				continue
			}
			seen[d] = true
			for i, t := range types {
				e.get(e.passing(first, i, t))
				e.set(e.passing(d, i, other[i]))
			}
		}
		e.get(e.condition())
	} else {
		e.drop(1)
	}
	for _, c := range list {
		if e.leaves(e.find(c)) {
			e.storeNest()
			break
		}
	}
	e.u32(opBrTable, n)
	for _, c := range list {
		e.out = appendU32(e.out, uint32(e.open-1-e.labels[e.find(c)].abs))
	}
	e.dead = true
}

// ret leaves the function.
func (e *emitter) ret() {
	results := e.f.typ.results
	e.dead = true
	if !e.resume {
		e.take(len(results))
		e.byte(opReturn)
		return
	}
	e.pass(0, results)
	e.branch(opBr, 0)
}

// construct opens a block, loop or if.
func (e *emitter) construct(ins *instruction, points []point) {
	c := &e.f.ctl[ins.a]
	if e.dead { // a resume leads into it, or to its head
		if ins.op == opLoop {
			e.arrive(ins, points)
		} else {
			e.reopen(ins)
		}
		return
	}
	d := len(e.labels)
	isIf := ins.op == opIf
	if isIf {
		e.need(1 + len(c.params))
		e.drop(1)
		if len(c.params) > 0 || c.points {
			e.set(e.condition())
		}
	}
	if e.resume && c.points && ins.op == opLoop {
		// A resume at the loop's head finds the parameters in their slots.
		e.need(len(c.params))
		e.flush()
		e.arrive(ins, points)
		return
	}
	e.pass(d, c.params)
	if !c.points {
		if isIf && len(c.params) > 0 {
			e.get(e.condition())
		}
		e.enterLabel(ins.a, e.open, len(e.stack))
		e.begin(byte(ins.op))
		e.unpass(d, c.params)
		return
	}
	e.flush()
	if !e.resume {
		c.stack = e.types()
		e.m.account(len(c.stack))
		if isIf {
			e.get(e.condition())
		}
		e.enterLabel(ins.a, e.open, len(e.stack))
		e.begin(byte(ins.op))
		e.unpass(d, c.params)
		if ins.op == opLoop {
			e.flush()
			e.note(&points[0])
			e.poll(&points[0])
		}
		return
	}
	if isIf {
		e.get(e.condition())
		e.byte(0x45) // i32.eqz
		if c.hasElse {
			e.branch(opBrIf, c.orElse)
		} else {
			e.branch(opBrIf, c.abs)
		}
	}
	e.reopen(ins)
	e.unpass(d, c.params)
}

// call writes a call, which is made by code, and the points at it.
func (e *emitter) call(t funcType, points []point, code func()) {
	if e.dead { // a resume leads to it
		e.restack(points[0].stack)
		if points[0].kind == pointCall {
			// The slots hold the results.
			e.mark()
			return
		}
	} else {
		e.need(len(t.params))
	}
	var before *point
	if len(points) == 2 {
		before = &points[0]
		if !e.dead { // else the frame holds the arguments
			for i := len(t.params) - 1; i >= 0; i-- {
				e.set(e.argument(i, t.params[i]))
			}
			e.drop(len(t.params))
		}
		if e.resume {
			e.flush()
			e.mark()
		} else {
			before.stack = e.types()
		}
		for i, p := range t.params {
			e.get(e.argument(i, p))
		}
		points = points[1:]
	} else {
		e.drop(len(t.params))
	}
	code()
	e.pushed(t.results)
	if len(points) == 0 {
		return
	}
	after := &points[0]
	e.flush()
	if !e.resume {
		e.note(after)
		if before != nil {
			e.noteCall(before, after, t.params)
		}
	}
	e.poll(after)
	if e.resume {
		e.mark()
	}
}

// tailCall writes a call that stands for the function from then on. If what is
// called stops, the frame behind it is that of the function's caller.
//
// A resuming version, which has no results, cannot be stood for: it calls, once,
// and hands the results to the host, which takes none from a call that has
// stopped.
func (e *emitter) tailCall(t funcType, points []point, code func(op byte), call byte) {
	if string(t.results) != string(e.f.typ.results) {
		e.m.malformed("a tail call of a function with other results")
	}
	if e.dead { // a resume leads to it, behind the look
		e.restack(points[0].stack)
		e.mark()
	} else {
		e.need(len(t.params))
		if len(points) > 0 {
			e.flush()
			if !e.resume {
				e.note(&points[0])
			}
			e.poll(&points[0])
			if e.resume {
				e.mark()
			}
		}
	}
	e.take(len(t.params))
	if e.resume && !e.once {
		code(call)
		e.pushed(t.results)
		e.ret()
		return
	}
	code(call + opReturnCall - opCall)
	e.dead = true
}

// orElse begins the second arm of an if.
func (e *emitter) orElse(ins *instruction) {
	c := &e.f.ctl[ins.a]
	d := len(e.labels) - 1
	if !e.dead {
		e.pass(d, c.results)
	}
	e.checkEmpty(d)
	if e.resume && c.points {
		if !e.dead {
			e.branch(opBr, c.abs)
		}
		e.close()
	} else {
		e.byte(opElse)
	}
	e.dead = false
	e.stack = e.stack[:e.labels[d].base]
	e.spilt = min(e.spilt, len(e.stack))
	e.unpass(d, c.params)
}

// checkEmpty refuses values that a construct leaves besides its results.
func (e *emitter) checkEmpty(d int) {
	if !e.dead && len(e.stack) != e.labels[d].base {
		e.m.malformed("%d values too many at the end of a block", len(e.stack)-e.labels[d].base)
	}
}

// end closes a construct, or the function.
func (e *emitter) end(ins *instruction) {
	c := &e.f.ctl[ins.a]
	d := len(e.labels) - 1
	if ins.a == 0 {
		e.endFunction()
		return
	}
	if !e.dead {
		e.pass(d, c.results)
	}
	e.checkEmpty(d)
	if c.op == opIf && !c.hasElse && len(c.results) > 0 {
		// Parameters are the results if the condition is false; the locals
		// they pass in are the same ones, by place and type.
		if string(c.params) != string(c.results) {
			e.m.malformed("if without else changes the stack")
		}
	}
	reached := !e.dead || c.branched && c.op != opLoop || c.op == opIf && !c.hasElse
	e.close()
	base := e.labels[d].base
	e.labels = e.labels[:d]
	e.stack = e.stack[:base]
	e.spilt = min(e.spilt, base)
	e.dead = !reached
	if e.nest.label == d && d > 0 {
		if reached {
			e.storeNest()
		}
		e.nest.label = 0
	}
	if e.dead {
		e.byte(opUnreachable)
		return
	}
	e.unpass(d, c.results)
}

func (e *emitter) endFunction() {
	results := e.f.typ.results
	if e.resume {
		if !e.dead {
			e.pass(0, results)
		}
		e.checkEmpty(0)
		return
	}
	if e.f.branchesOut {
		if !e.dead {
			e.pass(0, results)
		}
		e.checkEmpty(0)
		e.close()
		for i, t := range results {
			e.get(e.passing(0, i, t))
		}
		e.byte(opReturn)
		return
	}
	if !e.dead {
		e.take(len(results))
		e.checkEmpty(0)
		if len(e.tails) > 0 {
			e.byte(opReturn)
		}
	}
}

// poll looks whether to stop, at a point whose stack is all in slots.
func (e *emitter) poll(p *point) {
	if e.which < 0 {
		e.which = int32(e.local(typI32))
	}
	if !e.resume || e.inLocals {
		e.i32(int32(2 * p.id))
		e.set(uint32(e.which))
		e.out = e.m.appendPoll(e.out)
		e.u32(opBrIf, uint32(e.open+e.tail(p.saved)))
		return
	}
	if e.nest.label == 0 {
		e.i32(int32(2*p.id + 1))
		e.set(uint32(e.which))
		e.out = e.m.appendPoll(e.out)
		e.branch(opBrIf, -1)
		return
	}
	e.out = e.m.appendPoll(e.out)
	e.begin(opIf)
	e.i32(int32(2*p.id + 1))
	e.set(uint32(e.which))
	for _, l := range p.frame {
		e.storeVariable(l)
	}
	e.branch(opBr, -1)
	e.close()
}

// note writes down what the frame at a point is made of.
func (e *emitter) note(p *point) {
	p.stack = e.types()
	p.frame = e.frame(p)
	p.saved = p.frame
}

// noteCall does the same for the points in front of and behind a call that can
// block. Whether it has is known only when it is over, so its arguments are
// saved in either case.
func (e *emitter) noteCall(before, after *point, params []byte) {
	var args []uint32
	for i, p := range params {
		args = append(args, e.argument(i, p))
	}
	e.checkFrame(args)
	before.frame = append(e.frame(before), args...)
	after.saved = append(slices.Clip(after.frame), args...)
	e.m.account(len(args))
}

func (e *emitter) argument(i int, typ byte) uint32 {
	return e.slot(slotKey{kind: 'a', index: uint32(i), typ: typ})
}

// frame lists the locals that are live at a point, and behind them those that
// hold the operand stack.
func (e *emitter) frame(p *point) []uint32 {
	n := len(p.stack)
	for _, w := range p.live {
		n += bits.OnesCount64(w)
	}
	list := make([]uint32, 0, n)
	for i, w := range p.live {
		for ; w != 0; w &= w - 1 {
			list = append(list, uint32(64*i+bits.TrailingZeros64(w)))
		}
	}
	for i, t := range p.stack {
		list = append(list, e.place(i, t))
	}
	e.checkFrame(list)
	e.m.account(len(list))
	return list
}

// checkFrame refuses a frame that cannot travel.
func (e *emitter) checkFrame(list []uint32) {
	for _, l := range list {
		if e.locals[l] == typExternref {
			e.externref()
		}
	}
}

// externref refuses a reference that would have to go to the host.
func (e *emitter) externref() {
	e.m.fail(RefusedError{
		Feature: "externref in a frame",
		Why:     "the program can be stopped here while it holds a reference to one of the host's own things, which cannot move",
		Hint:    "keep such references away from loops and calls",
	})
}

// tail returns the number of the code that saves a list of locals.
func (e *emitter) tail(list []uint32) int {
	e.keyBuf = e.keyBuf[:0]
	for _, l := range list {
		e.keyBuf = appendU32(e.keyBuf, l)
	}
	n, ok := e.tailOf[string(e.keyBuf)]
	if !ok {
		n = len(e.tails)
		e.tails = append(e.tails, list)
		e.tailOf[string(e.keyBuf)] = n
	}
	return n
}
