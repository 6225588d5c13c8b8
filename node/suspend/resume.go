package suspend

import "slices"

// A region is a part of a function between whose instructions a resume can
// jump: the function, the body of a loop with points, one arm of an if with
// points. Blocks are no regions: the resuming version opens every block that
// contains points at the beginning of the region around it, among labels for
// the places to jump to, so that one br_table leads to all of them, whatever
// blocks they are in.
type region struct {
	parent int32  // -1 for the function
	target uint32 // of parent: where it is entered
	depth  int
	base   uint32 // targets of the first arm, for the second
	marks  []mark
	count  uint32 // targets
}

// A mark is where one of the labels opened at a region's beginning is: the end
// of a block, or a target.
type mark struct {
	block  bool
	c      uint32 // the block
	target uint32 // counted from 1
}

// findRegions lists the regions, and where in them each point is.
func (e *emitter) findRegions() {
	f := e.f
	e.regions = append(e.regions, region{parent: -1})
	open := []int32{0}
	target := func() (int32, uint32) {
		r := open[len(open)-1]
		g := &e.regions[r]
		g.count++
		g.marks = append(g.marks, mark{target: g.count})
		return r, g.base + g.count
	}
	enter := func(parent int32, t, base uint32) int32 {
		r := int32(len(e.regions))
		e.regions = append(e.regions, region{parent: parent, target: t, depth: e.regions[parent].depth + 1, base: base})
		open = append(open, r)
		return r
	}
	next := 0
	for i := range f.code {
		ins := &f.code[i]
		for next < len(f.points) && f.points[next].at == i {
			p := &f.points[next]
			next++
			if p.kind == pointLoop {
				p.region, p.target = target()
				f.ctl[ins.a].region[0] = enter(p.region, p.target, 0)
			} else {
				p.region, p.target = target()
			}
		}
		switch ins.op {
		case opIf:
			if c := &f.ctl[ins.a]; c.points {
				r, t := target()
				c.region = [2]int32{enter(r, t, 0), -1}
			}
		case opElse:
			if c := &f.ctl[ins.a]; c.points {
				first := open[len(open)-1]
				open = open[:len(open)-1]
				g := e.regions[first]
				c.region[1] = enter(g.parent, g.target, g.count)
			}
		case opEnd:
			c := &f.ctl[ins.a]
			switch {
			case !c.points || ins.a == 0:
			case c.op == opBlock:
				g := &e.regions[open[len(open)-1]]
				g.marks = append(g.marks, mark{block: true, c: ins.a})
			default:
				open = open[:len(open)-1]
			}
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
		if k.block {
			e.f.ctl[k.c].abs = e.open + n - 1 - i
		}
	}
	e.out = appendBlocks(e.out, n)
	e.open += n
	if g.count == 0 {
		return
	}
	way := e.way(g.depth)
	first := uint32(1)
	if r == 0 {
		first = 0
	} else {
		e.begin(opBlock)
		if g.base == 0 && g.depth > 0 {
			e.get(way)
			e.byte(0x45) // i32.eqz
			e.branch(opBrIf, e.open-1)
		}
	}
	// The local is zero again when it has led the way.
	e.get(way)
	if g.base > 0 {
		e.i32(int32(g.base))
		e.byte(0x6b) // i32.sub
	}
	e.i32(0)
	e.set(way)
	e.u32(opBrTable, g.count+1)
	var labels []uint32
	for i, k := range g.marks {
		if !k.block {
			labels = append(labels, first+uint32(i))
		}
	}
	nowhere := uint32(0)
	if r == 0 {
		nowhere = labels[0]
	}
	e.out = appendU32(e.out, nowhere)
	for _, l := range labels {
		e.out = appendU32(e.out, l)
	}
	e.out = appendU32(e.out, nowhere)
	if r == 0 {
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

// reopen notes a block that was opened at its region's beginning.
func (e *emitter) reopen(ins *instruction) {
	c := &e.f.ctl[ins.a]
	if e.dead {
		e.restack(c.stack)
	}
	e.labels = append(e.labels, label{c: ins.a, abs: c.abs, base: len(e.stack)})
}

// arrive opens a loop or if that a resume can lead into. The stack is all in
// slots, and so are the parameters of a loop; those of an if are in the locals
// that they pass in, its condition is in the local for conditions.
func (e *emitter) arrive(ins *instruction, points []point) {
	c := &e.f.ctl[ins.a]
	d := len(e.labels)
	e.mark()
	if ins.op == opLoop {
		e.restack(c.stack)
		for i, t := range c.params {
			e.get(e.place(len(c.stack)+i, t))
			e.set(e.passing(d, i, t))
		}
	} else {
		first := &e.regions[c.region[0]]
		way := e.way(first.depth)
		e.get(way)
		e.i32(int32(first.count))
		e.byte(0x4d) // i32.le_u
		e.get(e.condition())
		e.get(way)
		e.byte(opSelect)
	}
	if ins.op == opLoop {
		e.openNest(c, points)
	}
	e.labels = append(e.labels, label{c: ins.a, abs: e.open, base: len(e.stack)})
	e.begin(byte(ins.op))
	e.enter(c.region[0])
	e.unpass(d, c.params)
	if ins.op == opLoop {
		e.flush()
		e.poll(&points[0])
	}
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
	f := e.f
	e.resume = true
	e.out, e.stack, e.labels = nil, e.stack[:0], e.labels[:0]
	e.open, e.dead, e.spilt = 0, false, 0
	e.findRegions()
	e.registerCount = map[byte]uint32{}

	ways := 0
	for i := range e.regions {
		if e.regions[i].count > 0 {
			ways = max(ways, e.regions[i].depth+1)
		}
	}
	var list []uint32
	for d := range ways {
		list = append(list, e.way(d))
	}
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
	e.loadFrame(append(list, e.union...))
	e.byte(opBlock, 0x40)
	e.begin(opBlock)
	e.labels = append(e.labels, label{c: 0})
	e.enter(0)
	e.body()
	e.close()
	var results []uint32
	for i, t := range f.typ.results {
		results = append(results, e.passing(0, i, t))
	}
	e.save(func() { e.i32(-1) }, results)
	e.byte(opReturn, opEnd)
	e.saveFrame(e.union)
	e.byte(opEnd)
	body := e.out
	var locals []byte
	if e.nest.number > 0 {
		locals = f.locals
	}
	decl := appendLocals(nil, locals)
	out := appendU32(e.m.bodiesOut, uint32(len(decl)+len(body)))
	return append(append(out, decl...), body...)
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
// their registers to locals; they go back wherever the nest is left.

// get pushes a local, or what stands for it.
func (e *emitter) get(l uint32) {
	if e.resume && !e.inNest(l) {
		e.u32(opGlobalGet, e.register(l))
	} else {
		e.u32(opLocalGet, l)
	}
}

// set pops a local, or what stands for it.
func (e *emitter) set(l uint32) {
	if e.resume && !e.inNest(l) {
		e.u32(opGlobalSet, e.register(l))
	} else {
		e.u32(opLocalSet, l)
	}
}

// register returns the global that stands for a local.
func (e *emitter) register(l uint32) uint32 {
	for len(e.registerOf) < len(e.locals) {
		e.registerOf = append(e.registerOf, 0)
	}
	if e.registerOf[l] == 0 {
		t := e.locals[l]
		e.registerOf[l] = 1 + e.m.register(t, e.registerCount[t])
		e.registerCount[t]++
	}
	return e.registerOf[l] - 1
}

// A nest is a loop that contains no suspend points but loops' heads.
type nest struct {
	label int // of the loop; 0 while there is none
	used  []uint32
	// number tells the nests of a function apart: a local is used in the one
	// whose number is in vars, and changed in the one whose number is in set.
	number    uint32
	vars, set []uint32
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
		n.vars, n.set = make([]uint32, len(e.f.locals)), make([]uint32, len(e.f.locals))
	}
	n.number++
	n.used = n.used[:0]
	for i := points[0].at; i <= c.end; i++ {
		ins := &e.f.code[i]
		switch ins.op {
		case opLocalGet, opLocalSet, opLocalTee:
			if n.vars[ins.a] != n.number {
				n.vars[ins.a] = n.number
				n.used = append(n.used, ins.a)
			}
			if ins.op != opLocalGet {
				n.set[ins.a] = n.number
			}
		}
	}
	for _, l := range n.used {
		e.u32(opGlobalGet, e.register(l))
		e.u32(opLocalSet, l)
	}
	n.label = len(e.labels)
}

// storeNest brings the nest's variables back to their registers.
func (e *emitter) storeNest() {
	for _, l := range e.nest.used {
		e.storeVariable(l)
	}
}

func (e *emitter) storeVariable(l uint32) {
	if e.nest.set[l] == e.nest.number {
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
