package suspend

import "slices"

// A region is a part of a function between whose instructions a resume can
// jump: the function, or the body of a loop with points. Blocks are no regions:
// the resuming version opens every block that contains points at the beginning
// of the region around it, among labels for the places to jump to, so that one
// br_table leads to all of them, whatever blocks they are in. An if with points
// becomes a block, or two:
//
//	block $end              opened at the region's beginning
//	  block $else           likewise
//	    condition
//	    i32.eqz
//	    br_if $else
//	    ... first arm ...
//	    br $end
//	  end
//	  ... second arm ...
//	end
type region struct {
	parent int32  // -1 for the function
	target uint32 // of parent: where it is entered
	depth  int
	marks  []mark
	count  uint32 // targets
}

// A mark is where one of the labels opened at a region's beginning is.
type mark struct {
	kind byte
	c    uint32 // unless it is a target: the block or if
}

const (
	markTarget byte = iota
	markEnd         // the end of a block or if
	markElse        // the beginning of an if's second arm
)

// findRegions lists the regions, and where in them each point is.
func (e *emitter) findRegions() {
	f := e.f
	e.regions = append(e.regions, region{parent: -1})
	open := []int32{0}
	target := func() (int32, uint32) {
		r := open[len(open)-1]
		g := &e.regions[r]
		g.count++
		g.marks = append(g.marks, mark{kind: markTarget})
		return r, g.count
	}
	next := 0
	for i := range f.code {
		ins := &f.code[i]
		for next < len(f.points) && f.points[next].at == i {
			p := &f.points[next]
			next++
			p.region, p.target = target()
			if p.kind == pointLoop {
				r := int32(len(e.regions))
				e.regions = append(e.regions, region{parent: p.region, target: p.target, depth: e.regions[p.region].depth + 1})
				open = append(open, r)
				f.ctl[ins.a].region = r
			}
		}
		if ins.op != opElse && ins.op != opEnd || ins.a == 0 || !f.ctl[ins.a].points {
			continue
		}
		g := &e.regions[open[len(open)-1]]
		switch {
		case ins.op == opElse:
			g.marks = append(g.marks, mark{markElse, ins.a})
		case f.ctl[ins.a].op == opLoop:
			open = open[:len(open)-1]
		default:
			g.marks = append(g.marks, mark{markEnd, ins.a})
		}
	}
}

// way is the local that says where to go in regions of a depth: 0 for nowhere.
func (e *emitter) way(depth int) uint32 {
	return e.slot(slotKey{kind: 'w', depth: uint32(depth), typ: typI32})
}

// enter opens a region's labels and, while resuming, leads to one of them.
func (e *emitter) enter(r int32) {
	g := &e.regions[r]
	n := len(g.marks)
	for i, k := range g.marks {
		switch at := e.open + n - 1 - i; k.kind {
		case markEnd:
			e.f.ctl[k.c].abs = at
		case markElse:
			e.f.ctl[k.c].orElse = at
		}
	}
	e.out = appendBlocks(e.out, n)
	e.open += n
	if g.count == 0 {
		return
	}
	way := e.way(g.depth)
	first := uint32(1)
	always := r == 0 && !e.once // somewhere
	if always {
		first = 0
	} else {
		e.begin(opBlock)
		if r == 0 && e.inLocals {
			// One look, at a global, is all that is in the way of a call.
			e.u32(opGlobalGet, e.flag)
			e.byte(0x45) // i32.eqz
			e.branch(opBrIf, e.open-1)
			e.i32(0)
			e.u32(opGlobalSet, e.flag)
			e.loadFrame(append(e.ways(), e.union...))
		} else {
			e.get(way)
			e.byte(0x45) // i32.eqz
			e.branch(opBrIf, e.open-1)
		}
	}
	// The local is zero again when it has led the way.
	e.get(way)
	e.i32(0)
	e.set(way)
	e.u32(opBrTable, g.count+1)
	var labels []uint32
	for i, k := range g.marks {
		if k.kind == markTarget {
			labels = append(labels, first+uint32(i))
		}
	}
	nowhere := uint32(0)
	if always {
		nowhere = labels[0]
	}
	e.out = appendU32(e.out, nowhere)
	for _, l := range labels {
		e.out = appendU32(e.out, l)
	}
	e.out = appendU32(e.out, nowhere)
	if always {
		e.dead = true
	} else {
		e.close()
	}
}

// mark closes the label of a target: a resume arrives here.
func (e *emitter) mark() {
	e.close()
	e.dead = false
}

// reopen notes a block or if that was opened at its region's beginning.
func (e *emitter) reopen(ins *instruction) {
	c := &e.f.ctl[ins.a]
	if e.dead {
		e.restack(c.stack)
	}
	e.enterLabel(ins.a, c.abs, len(e.stack))
}

// arrive opens a loop that a resume can lead into. The stack is all in slots,
// and so are the loop's parameters.
func (e *emitter) arrive(ins *instruction, points []point) {
	c := &e.f.ctl[ins.a]
	d := len(e.labels)
	e.mark()
	e.restack(c.stack)
	for i, t := range c.params {
		e.get(e.place(len(c.stack)+i, t))
		e.set(e.passing(d, i, t))
	}
	if !e.inLocals {
		e.openNest(c, points)
	}
	e.enterLabel(ins.a, e.open, len(e.stack))
	e.begin(opLoop)
	e.enter(c.region)
	e.unpass(d, c.params)
	e.flush()
	e.poll(&points[0])
}

// emitResume writes the resuming version, which takes and returns nothing: it
// asks the host for its frame and for the way to the point, goes there, and
// goes on as the fast version would, but for handing its results to the host.
//
//	ways and locals from the host
//	block $tail
//	  block $done
//	    block ...              the function's own, and a label for each target
//	      local.get $way0
//	      br_table ...
//	    ... the body, from the first point on ...
//	  end
//	  results to the host; return
//	end
//	save $which and all locals that are in any frame
func (e *emitter) emitResume() []byte {
	e.loadFrame(e.beginResume())
	results := e.resumingBody()
	e.save(func() { e.i32(-1) }, results)
	e.byte(opReturn, opEnd)
	e.saveFrame(e.union)
	e.byte(opEnd)
	var locals []byte
	if e.nest.number > 0 {
		locals = e.f.locals
	}
	return e.function(locals)
}

// emitOnce writes a function that is there only once: as its resuming version,
// but that it can be called as well. Its parameters and results are its own;
// emitEntry fetches the frame.
//
// For some functions two versions cost too much. C's printf has 55 loops and 79
// calls that can stop, with 26 variables to save at each: a third of the code of
// a small program is the function as it was, and it would be three times that,
// in two versions. Such a function lives with variables in registers, which
// spares it the code that saves them at each point: nothing as large keeps many
// of them in the processor's. The registers are its own and not shared, for it
// calls others. That needs that it is not called while it runs, by way of its
// callees or of the host.
func (e *emitter) emitOnce() []byte {
	e.once = true
	e.beginResume()
	results := e.resumingBody()
	for _, l := range results {
		e.get(l)
	}
	e.byte(opReturn, opEnd)
	e.saveFrame(e.union)
	for _, t := range e.f.typ.results {
		e.zero(t)
	}
	e.byte(opEnd)
	var locals []byte
	if e.nest.number > 0 {
		locals = e.f.locals[len(e.f.typ.params):]
	}
	return e.function(locals)
}

// emitOnceInLocals writes a function that is there only once, with its variables
// in locals: as the fast version, but that a resume leads to its points. It
// fetches its frame itself, when emitEntry has set a global.
//
// Every variable that lives at a point has to be brought together from two ways
// there. So it is for functions that stop nowhere but in loops, which are little
// of their code (C's malloc), and for those whose frames are small: Go keeps its
// variables in memory of its own, and of a function of kilobytes three or four
// locals live across a call.
func (e *emitter) emitOnceInLocals() []byte {
	e.once, e.inLocals = true, true
	e.beginResume()
	e.flag = e.m.addGlobal(addedGlobal{typ: typI32, owned: true})
	for _, l := range e.resumingBody() {
		e.get(l)
	}
	e.byte(opReturn)
	return e.withTails()
}

// emitEntry writes what stands for the resuming version of a function that is
// there only once: it fetches the frame and calls the function, with arguments
// that do not matter. If it has stopped again, the results do not matter either.
func (e *emitter) emitEntry() []byte {
	e.out = e.out[:0]
	if e.inLocals {
		e.inLocals, e.once = false, false // from here on: the results pass in what all share
		e.i32(1)
		e.u32(opGlobalSet, e.flag)
	} else {
		e.loadFrame(append(e.ways(), e.union...))
	}
	for _, t := range e.f.typ.params {
		e.zero(t)
	}
	e.u32(opCall, e.m.shifted(e.f.index))
	results := e.results()
	for i := len(results) - 1; i >= 0; i-- {
		e.set(results[i])
	}
	e.save(func() { e.i32(-1) }, results)
	e.byte(opEnd)
	return e.function(nil)
}

// beginResume sets up the second version and returns what it loads: the ways,
// and all locals that are in any frame.
func (e *emitter) beginResume() []uint32 {
	f := e.f
	e.resume = true
	e.out, e.stack, e.labels = e.out[:0], e.stack[:0], e.labels[:0]
	e.open, e.dead, e.spilt = 0, false, 0
	e.findRegions()
	e.registerCount = map[byte]uint32{}
	ways := e.ways()
	seen := make([]bool, len(e.locals))
	for i := range f.points {
		for _, l := range f.points[i].saved {
			if !seen[l] {
				seen[l] = true
				e.union = append(e.union, l)
			}
		}
		for _, l := range f.points[i].frame {
			if !seen[l] {
				seen[l] = true
				e.union = append(e.union, l)
			}
		}
	}
	slices.Sort(e.union)
	return append(ways, e.union...)
}

// ways are the locals that say where to go, by depth.
func (e *emitter) ways() []uint32 {
	n := 0
	for i := range e.regions {
		if e.regions[i].count > 0 {
			n = max(n, e.regions[i].depth+1)
		}
	}
	list := make([]uint32, n)
	for d := range list {
		list[d] = e.way(d)
	}
	return list
}

// results are the locals in which the function's results pass.
func (e *emitter) results() []uint32 {
	var list []uint32
	for i, t := range e.f.typ.results {
		list = append(list, e.passing(0, i, t))
	}
	return list
}

// resumingBody writes the body inside the blocks around it, and returns the
// locals that hold the results.
func (e *emitter) resumingBody() []uint32 {
	if !e.inLocals { // else tails are around it
		e.byte(opBlock, 0x40)
	}
	e.begin(opBlock)
	e.enterLabel(0, 0, 0)
	e.enter(0)
	if e.once && !e.inLocals {
		// Only a call comes here. Locals that are not read before they are set
		// may hold what an earlier call has left.
		for i, t := range e.f.locals {
			if e.f.entry[i/64]>>(i%64)&1 == 0 {
				continue
			}
			if i < len(e.f.typ.params) {
				e.u32(opLocalGet, uint32(i))
			} else {
				e.zero(t)
			}
			e.set(uint32(i))
		}
	}
	e.body()
	e.close()
	return e.results()
}

// function appends what has been written as a function with these locals beside
// its parameters.
func (e *emitter) function(locals []byte) []byte {
	decl := appendLocals(nil, locals)
	out := appendU32(e.m.bodiesOut, uint32(len(decl)+len(e.out)))
	return append(append(out, decl...), e.out...)
}

// Registers.
//
// At each point that a resume can jump to, two ways meet, and a compiler that
// keeps locals in SSA form has to bring every variable to the same place on
// both: with locals as such, the resuming versions took three times the code of
// the fast ones. So globals, which are in memory anyway, stand for the locals;
// the same for all functions, since only one resuming version runs at a time:
// the host continues one frame after another, and they call fast versions.
//
// That is slow where a program spends its time, in loops without calls that can
// stop. Outside the outermost of those (a nest), its variables are moved from
// their registers to locals; they go back wherever the nest is left. Those that
// only the nest knows, because they are not read outside and not before they are
// set, stay.

// get pushes a local, or what stands for it.
func (e *emitter) get(l uint32) {
	if e.inRegister(l) {
		e.u32(opGlobalGet, e.register(l))
	} else {
		e.u32(opLocalGet, l)
	}
}

// set pops a local, or what stands for it.
func (e *emitter) set(l uint32) {
	if e.inRegister(l) {
		e.u32(opGlobalSet, e.register(l))
	} else {
		e.u32(opLocalSet, l)
	}
}

// inRegister says whether a register stands for a local.
func (e *emitter) inRegister(l uint32) bool { return e.resume && !e.inLocals && !e.inNest(l) }

// register returns the global that stands for a local.
func (e *emitter) register(l uint32) uint32 {
	for len(e.registerOf) < len(e.locals) {
		e.registerOf = append(e.registerOf, 0)
	}
	if e.registerOf[l] == 0 {
		t := e.locals[l]
		if e.once {
			e.registerOf[l] = 1 + e.m.ownRegister(t)
		} else {
			e.registerOf[l] = 1 + e.m.register(t, e.registerCount[t])
			e.registerCount[t]++
		}
	}
	return e.registerOf[l] - 1
}

// A nest is a loop that contains no suspend points but loops' heads.
type nest struct {
	label int      // of the loop; 0 while there is none
	kept  []uint32 // variables that it changes and that are needed outside
	used  []uint32
	// number tells the nests of a function apart: a local is used in the one
	// whose number is in vars, and changed in the one whose number is in set.
	number    uint32
	vars, set []uint32
	gets      []uint32 // by local: instructions that read it, in all the function
	inside    []uint32 // by local: those in the nest
}

func (e *emitter) inNest(l uint32) bool {
	return e.nest.label > 0 && int(l) < len(e.nest.vars) && e.nest.vars[l] == e.nest.number
}

// openNest begins a nest at a loop, if it is one and there is none yet. Labels
// around it are as many as are open.
func (e *emitter) openNest(c *construct, points []point) {
	if e.nest.label > 0 || c.calls {
		return
	}
	n := &e.nest
	if n.number == 0 {
		all := make([]uint32, 4*len(e.f.locals))
		for _, list := range []*[]uint32{&n.vars, &n.set, &n.gets, &n.inside} {
			*list, all = all[:len(e.f.locals)], all[len(e.f.locals):]
		}
		for i := range e.f.code {
			if ins := &e.f.code[i]; ins.op == opLocalGet {
				n.gets[ins.a]++
			}
		}
	}
	n.number++
	n.used, n.kept = n.used[:0], n.kept[:0]
	for i := points[0].at; i <= c.end; i++ {
		ins := &e.f.code[i]
		switch ins.op {
		case opLocalGet, opLocalSet, opLocalTee:
			if n.vars[ins.a] != n.number {
				n.vars[ins.a] = n.number
				n.used = append(n.used, ins.a)
				n.inside[ins.a] = 0
			}
			if ins.op == opLocalGet {
				n.inside[ins.a]++
			} else {
				n.set[ins.a] = n.number
			}
		}
	}
	first, _ := slices.BinarySearchFunc(e.f.points, points[0].at, func(p point, at int) int { return p.at - at })
	last, _ := slices.BinarySearchFunc(e.f.points, c.end, func(p point, at int) int { return p.at - at })
	for _, l := range n.used {
		// A resume may lead to the head of any loop in it.
		live := slices.ContainsFunc(e.f.points[first:last], func(p point) bool { return p.live[l/64]>>(l%64)&1 != 0 })
		if live {
			e.u32(opGlobalGet, e.register(l))
			e.u32(opLocalSet, l)
		}
		if n.set[l] == n.number && (live || n.gets[l] > n.inside[l]) {
			n.kept = append(n.kept, l)
		}
	}
	n.label = len(e.labels)
}

// storeNest brings the nest's variables back to their registers.
func (e *emitter) storeNest() {
	for _, l := range e.nest.kept {
		e.storeVariable(l)
	}
}

func (e *emitter) storeVariable(l uint32) {
	if e.inNest(l) && e.nest.set[l] == e.nest.number {
		e.u32(opLocalGet, l)
		e.u32(opGlobalSet, e.register(l))
	}
}

// leaves says whether a branch to label d leaves the nest for a place where its
// variables are needed.
func (e *emitter) leaves(d int) bool { return e.nest.label > 0 && d < e.nest.label && d > 0 }

// A unit is 64 bits on the way to or from the host: a local, or half of one.
type unit struct {
	local uint32
	half  byte
}

func (e *emitter) units(list []uint32) []unit {
	var u []unit
	for _, l := range list {
		u = append(u, unit{l, 0})
		if e.locals[l] == typV128 {
			u = append(u, unit{l, 1})
		}
	}
	return u
}

// saveFrame hands a frame to the host: the point it is at, and its locals.
func (e *emitter) saveFrame(list []uint32) {
	e.save(func() { e.get(uint32(e.which)) }, list)
}

// save hands a number and the values of locals to the host, filled up to a
// count for which there is a function.
func (e *emitter) save(number func(), list []uint32) {
	units := e.units(list)
	for ; len(units) > maxUnits; units = units[maxUnits:] {
		for _, u := range units[:maxUnits] {
			e.pushUnit(u)
		}
		e.u32(opCall, e.m.more)
	}
	number()
	size := 0
	for saveSizes[size] < len(units) {
		size++
	}
	for _, u := range units {
		e.pushUnit(u)
	}
	for range saveSizes[size] - len(units) {
		e.byte(opI64Const, 0)
	}
	e.u32(opCall, e.m.save[size])
}

// pushUnit pushes a unit as an i64.
func (e *emitter) pushUnit(u unit) {
	e.get(u.local)
	switch e.locals[u.local] {
	case typI32:
		e.byte(0xad) // i64.extend_i32_u
	case typF32:
		e.byte(0xbc, 0xad) // i32.reinterpret_f32
	case typF64:
		e.byte(0xbd) // i64.reinterpret_f64
	case typV128:
		e.byte(0xfd, 0x1d, u.half) // i64x2.extract_lane
	case typFuncref:
		e.u32(opCall, e.m.referenceIndex())
		e.byte(0xad)
	}
}

// loadFrame sets locals to what the host has for them.
func (e *emitter) loadFrame(list []uint32) {
	units := e.units(list)
	half := -1
	for _, u := range units {
		if e.locals[u.local] == typV128 && half < 0 {
			half = int(e.slot(slotKey{kind: 'h', typ: typI64}))
		}
	}
	for len(units) > 0 {
		size := 0
		for size+1 < len(loadSizes) && loadSizes[size+1]-1 <= len(units) {
			size++
		}
		e.u32(opCall, e.m.load[size])
		n := loadSizes[size]
		for i := n - 1; i >= 0; i-- {
			if i >= len(units) {
				e.byte(opDrop)
				continue
			}
			u := units[i]
			switch e.locals[u.local] {
			case typI32:
				e.byte(0xa7) // i32.wrap_i64
			case typF32:
				e.byte(0xa7, 0xbe) // f32.reinterpret_i32
			case typF64:
				e.byte(0xbf) // f64.reinterpret_i64
			case typV128:
				e.set(uint32(half))
				e.get(u.local)
				e.get(uint32(half))
				e.byte(0xfd, 0x1e, u.half) // i64x2.replace_lane
			case typFuncref:
				e.byte(0xa7)
				e.u32(opTableGet, e.m.thunkTable())
			}
			e.set(u.local)
		}
		units = units[min(n, len(units)):]
	}
}
