package suspend

import "slices"

// An instruction is one of a function that is being rewritten.
type instruction struct {
	op uint16
	// a is the instruction's index, if it has one; for block, loop, if, else and
	// end the number of the construct, for branches that of their target, for
	// br_table the first of its targets in function.targets.
	a        uint32
	pos, end uint32 // its bytes, in the module: MaxModule is far less than 4 GiB
}

// A construct is a block, loop or if, or the function itself, which is
// construct 0.
type construct struct {
	op              byte // opBlock, opLoop, opIf; 0 for the function
	hasElse         bool
	branched        bool // a branch that can be reached leads to it
	points          bool // it contains a suspend point
	calls           bool // one that is a call
	deadEnd         bool // what follows its end cannot be reached
	params, results []byte
	end             int // index of the instruction that closes it

	// What the emitter notes of constructs with points: the operand stack below
	// the parameters, the region of a loop's body, and, while it is open, its place
	// in emitter.labels, and how many labels are around the construct's own, and
	// around that of its second arm.
	stack  []byte
	region int32
	label  int
	abs    int
	orElse int
}

// passed is the types that a branch to the construct takes along.
func (c *construct) passed() []byte {
	if c.op == opLoop {
		return c.params
	}
	return c.results
}

// Kinds of suspend points.
type pointKind uint8

const (
	pointLoop   pointKind = iota // at a loop's head
	pointCall                    // behind a call
	pointBefore                  // in front of a call that can block in the host
	pointTail                    // in front of a tail call
)

// A point is a place where a function can stop and be continued.
type point struct {
	kind    pointKind
	id      uint32   // in the module
	at      int      // index of its instruction
	results int      // how many values the call has left, or takes
	live    []uint64 // the locals that are read later, as a set

	// What the emitter notes: the operand stack, the locals that make up the
	// frame, those that are saved here (a call that can block saves its
	// arguments too), and the way here.
	stack  []byte
	frame  []uint32
	saved  []uint32
	region int32
	target uint32
}

// A function is a function body taken apart. It is reused from one body to the
// next.
type function struct {
	index       uint32
	typ         funcType
	locals      []byte // types, parameters first
	body        span   // without the declaration of locals
	code        []instruction
	targets     []uint32 // of br_table: a count, then so many constructs and the default
	ctl         []construct
	points      []point
	calls       []uint32 // functions called, unless asked for points
	indirect    []uint32 // types called indirectly
	loops       bool
	branchesOut bool     // a br_if or br_table leads to its end
	refs        bool     // it uses references as values
	drops       bool     // it drops segments
	size        int      // instructions
	entry       []uint64 // locals that can be read before they are set, as a set
	sets        []uint64 // what the sets of entry and the points are parts of

	refused *RefusedError // in place of all that
}

// A decoder takes function bodies apart. Several can be at work at once, since
// they only read what they share, the module and the plan.
type decoder struct {
	reader
	m    *rewriter
	plan *plan // nil when it is about to be made: no suspend points are looked for
	live liveness

	f    *function // the one at hand
	open []uint32  // constructs that are open
	dead int       // depth of constructs opened in code that cannot be reached, plus one
}

func (m *rewriter) decoder(p *plan) *decoder {
	return &decoder{reader: reader{b: m.b}, m: m, plan: p}
}

// decode takes the body of function index apart. Code that cannot be reached is
// left out, but for the ends of constructs. With a plan it finds the suspend
// points too, and what is live there. What the module is refused for goes into
// f.refused. The body must have passed readBody, which checks immediates.
func (d *decoder) decode(f *function, index uint32) {
	m := d.m
	span := m.code[index-uint32(m.imported)]
	d.pos, d.end = span.pos, span.end
	*f = function{
		index: index, typ: m.typeOf(index),
		locals: f.locals[:0], code: f.code[:0], targets: f.targets[:0], ctl: f.ctl[:0], points: f.points[:0],
		calls: f.calls[:0], indirect: f.indirect[:0], sets: f.sets[:0],
	}
	defer func() {
		switch e := recover().(type) {
		case nil:
		case *RefusedError:
			e.Where = functionWhere(d.b, index, d.pos)
			f.refused = e
		default:
			panic(e)
		}
	}()
	f.locals = append(f.locals, f.typ.params...)
	for n := d.u32(); n > 0; n-- {
		count := d.u32()
		typ := d.valueType()
		if typ == typFuncref {
			f.refs = true
		}
		for range count {
			f.locals = append(f.locals, typ)
		}
	}
	f.body = d.spanHere(span.end)
	f.ctl = append(f.ctl, construct{results: f.typ.results})
	d.f, d.open, d.dead = f, append(d.open[:0], 0), 0
	d.run()
	f.size = len(f.code)
	if d.plan != nil && d.plan.suspends(index) {
		d.live.find(f)
	}
}

// own is how many functions the module has by itself.
func (m *rewriter) own() uint64 { return uint64(m.imported) + uint64(m.bodies) }

func (r *reader) spanHere(end int) span { return span{r.pos, end} }

func (d *decoder) run() {
	m, f := d.m, d.f
	for len(d.open) > 0 {
		at := d.pos
		if at >= d.end {
			d.malformed("unexpected end")
		}
		op := uint16(d.b[at])
		d.pos++
		var a, b uint32
		targets := uint32(len(f.targets))
		var params, results []byte
		switch opImmediate[op] {
		case immNone, immEnd:
		case immIndex, immHidden1:
			a = d.u32()
		case immI32, immI64:
			for d.b[d.pos] >= 0x80 { // the length has been checked
				d.pos++
			}
			d.pos++
		case immMemarg:
			d.memarg()
		case immBlock:
			params, results = d.blockType()
			f.refs = f.refs || slices.Contains(results, typFuncref)
		case immBrTable:
			n := d.u32()
			if d.dead > 0 {
				for range n + 1 {
					d.u32()
				}
				break
			}
			f.targets = append(f.targets, n)
			for range n + 1 {
				c := d.target(d.u32())
				f.branchesOut = f.branchesOut || c == 0
				f.targets = append(f.targets, c)
			}
		case immIndex2:
			a, b = d.u32(), d.u32()
		case imm4:
			d.bytes(4)
		case imm8:
			d.bytes(8)
		case immMemory:
			d.byte()
		case immTypes:
			results = d.valueTypes("types")
		case immRefType:
			results = d.b[d.pos : d.pos+1]
			d.valueType()
		case immPrefixFC:
			sub := d.u32()
			op = uint16(0x100 + sub)
			a, b = d.immediates(fcImmediate[sub])
		case immPrefixFD:
			sub := d.u32()
			op = uint16(0x200 + sub)
			a, b = d.immediates(fdImmediate[sub])
		}
		if d.dead > 0 && !d.revive(op) {
			continue
		}
		ins := instruction{op: op, a: a, pos: uint32(at), end: uint32(d.pos)}
		switch op {
		case opBlock, opLoop, opIf:
			ins.a = uint32(len(f.ctl))
			f.ctl = append(f.ctl, construct{op: byte(op), params: params, results: results})
			d.open = append(d.open, ins.a)
			if op == opLoop {
				f.loops = true
				d.point(pointLoop, 0)
			}
		case opElse:
			ins.a = d.open[len(d.open)-1]
			c := &f.ctl[ins.a]
			if c.op != opIf || c.hasElse {
				d.malformed("else without if")
			}
			c.hasElse = true
			if d.dead == 0 {
				c.branched = true // from the end of the first arm
			}
			d.dead = 0
		case opEnd:
			ins.a = d.open[len(d.open)-1]
			d.open = d.open[:len(d.open)-1]
			c := &f.ctl[ins.a]
			c.end = len(f.code)
			reached := d.dead == 0 || c.branched && c.op != opLoop || c.op == opIf && !c.hasElse
			c.deadEnd = !reached
			d.dead = 0
			if !reached {
				d.dead = 1
			}
		case opBr:
			ins.a = d.target(a)
			d.dead = 1
		case opBrIf:
			ins.a = d.target(a)
			f.branchesOut = f.branchesOut || ins.a == 0
		case opBrTable:
			ins.a = targets
			d.dead = 1
		case opReturn, opUnreachable:
			d.dead = 1
		case opCall:
			if uint64(a) >= m.own() {
				d.malformed("call of function %d of %d", a, m.own())
			}
			d.call(a)
		case opCallIndirect:
			if uint64(a) >= uint64(len(m.types)) || uint64(b) >= uint64(len(m.tables)) {
				d.malformed("indirect call of type %d through table %d", a, b)
			}
			d.callIndirect(a)
		case opReturnCall:
			if uint64(a) >= m.own() {
				d.malformed("call of function %d of %d", a, m.own())
			}
			if d.plan != nil && d.plan.blocks(a) {
				// The host's functions leave nothing on the stack, and one that
				// blocks has to find the way back here.
				d.call(a)
				ins.op = opCall
				f.code = append(f.code, ins)
				ins = instruction{op: opReturn, pos: ins.end, end: ins.end}
			} else {
				d.tailCall(a)
			}
			d.dead = 1
		case opReturnCallIn:
			if uint64(a) >= uint64(len(m.types)) || uint64(b) >= uint64(len(m.tables)) {
				d.malformed("indirect call of type %d through table %d", a, b)
			}
			d.tailCallIndirect(a)
			d.dead = 1
		case opLocalGet, opLocalSet, opLocalTee:
			if uint64(a) >= uint64(len(f.locals)) {
				d.malformed("local %d of %d", a, len(f.locals))
			}
		case opGlobalGet, opGlobalSet:
			if a >= m.globals {
				d.malformed("global %d of %d", a, m.globals)
			}
			if m.globalTypes[a].typ == typFuncref {
				f.refs = true
			}
		case opTableGet, opTableSet, opTableGrow, opTableSize, opTableFill:
			d.table(a)
			f.refs = f.refs || op != opTableSize
		case opTableCopy:
			d.table(a)
			d.table(b)
			f.refs = true
		case opTableInit:
			d.segment(a)
			d.table(b)
			f.refs = true
		case opElemDrop:
			d.segment(a)
			f.refs = true
			f.drops = true
		case opDataDrop:
			if a >= m.dataCount {
				d.malformed("data segment %d of %d", a, m.dataCount)
			}
			f.drops = true
		case opRefFunc:
			if uint64(a) >= m.own() {
				d.malformed("reference to function %d of %d", a, m.own())
			}
			f.refs = true
		case opRefNull:
			if results[0] == typFuncref {
				f.refs = true
			}
			ins.a = uint32(results[0])
		case opSelectTyped:
			if len(results) != 1 {
				d.malformed("select of %d types", len(results))
			}
			ins.a = uint32(results[0])
		default:
			if !effects[op].ok && op != opDrop && op != opSelect {
				d.malformed("instruction %#x", op)
			}
		}
		if op == opNop {
			continue
		}
		f.code = append(f.code, ins)
	}
	if d.pos != f.body.end {
		d.malformed("%d bytes after the end of the function", f.body.end-d.pos)
	}
}

// revive passes an instruction that cannot be reached, and says whether it
// closes the construct that the dead code began in.
func (d *decoder) revive(op uint16) bool {
	switch op {
	case opBlock, opLoop, opIf:
		d.dead++
	case opElse:
		return d.dead == 1
	case opEnd:
		if d.dead == 1 {
			return true
		}
		d.dead--
	}
	return false
}

func (d *decoder) immediates(imm immediate) (a, b uint32) {
	switch imm {
	case immIndex, immHidden1:
		return d.u32(), 0
	case immHidden2:
		return d.u32(), d.u32()
	case immMemory, immLane:
		d.byte()
	case immMemory2:
		d.bytes(2)
	case immDataMem:
		a = d.u32()
		d.byte()
	case immMemarg:
		d.memarg()
	case immMemLane:
		d.memarg()
		d.byte()
	case imm16:
		d.bytes(16)
	}
	return a, 0
}

func (d *decoder) table(t uint32) {
	if uint64(t) >= uint64(len(d.m.tables)) {
		d.malformed("table %d of %d", t, len(d.m.tables))
	}
}

func (d *decoder) segment(s uint32) {
	if uint64(s) >= uint64(len(d.m.elements)) {
		d.malformed("element segment %d of %d", s, len(d.m.elements))
	}
}

// target finds the construct that a branch leads to.
func (d *decoder) target(depth uint32) uint32 {
	if uint64(depth) >= uint64(len(d.open)) {
		d.malformed("branch to label %d of %d", depth, len(d.open))
	}
	c := d.open[len(d.open)-1-int(depth)]
	d.f.ctl[c].branched = true
	return c
}

// blockType reads a block type and returns what it stands for.
func (d *decoder) blockType() (params, results []byte) {
	m := d.m
	switch c := d.b[d.pos]; {
	case c == 0x40:
		d.pos++
		return nil, nil
	case c > 0x40 && c < 0x80:
		d.valueType()
		return nil, d.b[d.pos-1 : d.pos]
	}
	t := d.u32()
	if uint64(t) >= uint64(len(m.types)) {
		d.malformed("block of type %d of %d", t, len(m.types))
	}
	return m.types[t].params, m.types[t].results
}

func (d *decoder) call(callee uint32) {
	f := d.f
	if d.plan == nil {
		f.calls = append(f.calls, callee)
		return
	}
	results := len(d.m.typeOf(callee).results)
	if d.plan.blocks(callee) {
		d.point(pointBefore, len(d.m.typeOf(callee).params))
		d.point(pointCall, results)
	} else if d.plan.suspends(callee) {
		d.point(pointCall, results)
	}
}

func (d *decoder) callIndirect(typ uint32) {
	f := d.f
	if d.plan == nil {
		f.indirect = append(f.indirect, typ)
	} else if d.plan.suspendsIndirect(typ) {
		d.point(pointCall, len(d.m.types[typ].results))
	}
}

// tailCall notes a call behind which nothing is left of the function. A program
// that calls nothing but so never comes to a place behind a call, so it looks in
// front.
func (d *decoder) tailCall(callee uint32) {
	if d.plan == nil {
		d.f.calls = append(d.f.calls, callee)
	} else if d.plan.suspends(callee) {
		d.point(pointTail, 0)
	}
}

func (d *decoder) tailCallIndirect(typ uint32) {
	if d.plan == nil {
		d.f.indirect = append(d.f.indirect, typ)
	} else if d.plan.suspendsIndirect(typ) {
		d.point(pointTail, 0)
	}
}

// point notes a suspend point at the instruction that is about to be added.
func (d *decoder) point(kind pointKind, results int) {
	f := d.f
	if d.plan == nil || !d.plan.suspends(f.index) {
		return
	}
	f.points = append(f.points, point{kind: kind, at: len(f.code), results: results})
	for i := len(d.open) - 1; i >= 0; i-- {
		c := &f.ctl[d.open[i]]
		if c.points && (c.calls || kind == pointLoop) {
			break
		}
		c.points = true
		c.calls = c.calls || kind != pointLoop
	}
}
