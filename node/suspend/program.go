package suspend

import "fmt"

// A Program is a module that can stop anywhere, and what a host must know of it
// to take its state and to bring it back. Its fields are read only.
type Program struct {
	// Module is the rewritten binary.
	Module []byte
	Info   Info
	// Tables are the tables that the program can change.
	Tables []uint32
	// Hidden are the mutable globals that cannot be exported as such.
	Hidden []HiddenGlobal

	functions []programFunction // those that can stop
	byIndex   map[uint32]uint32 // by index in the module
	points    []programPoint
	regions   []programRegion
	types     []byte   // of frames' values
	places    []uint32 // of frames' values: see programPoint
	exports   map[string]uint32
	typeOf    []uint32 // by function: its type, equal ones being one
	// tailCalled and tailTypes are the functions and types that are called by
	// tail calls at which the program can stop.
	tailCalled, tailTypes map[uint32]bool
}

// A HiddenGlobal is a mutable global of a type that hosts cannot reach: a
// vector or a reference. Export, with ":get" and ":set" behind it, names
// functions that read and write it, a vector as two i64, low half first, a
// reference as one: the function's index plus one, or 0.
type HiddenGlobal struct {
	Index  uint32
	Type   byte
	Export string
}

// TableExport begins the names of the functions by which a host reaches a table
// that changes: with ":size", () -> (i32), ":get", (i32) -> (i32), ":set",
// (i32, i32) -> (), and ":grow", (i32) -> (i32). An entry is a function's index
// plus one, or 0.
func TableExport(table uint32) string { return fmt.Sprintf("%stable:%d", ReservedPrefix, table) }

// A programFunction is a function that can stop.
type programFunction struct {
	index   uint32
	results string // types
	first   uint32 // point
	points  uint32
	ways    uint32 // words in front of the locals, for the resuming version
	units   uint32 // size of the union of all frames
}

// A programPoint is a suspend point.
type programPoint struct {
	function uint32 // in Program.functions
	kind     pointKind
	indirect bool
	callee   uint32 // function or, if indirect, type
	results  uint32 // units the call leaves, the last of the frame; in front of a call, its arguments
	region   uint32 // in Program.regions
	target   uint32
	first    uint32 // of the frame's values in types and places
	values   uint32
	units    uint32
}

// A programRegion is a region of a function, see region.
type programRegion struct {
	parent int32 // in Program.regions
	target uint32
	depth  uint32
}

// newProgram returns a program of which only the module's outside is known.
func (m *rewriter) newProgram() *Program {
	p := &Program{byIndex: map[uint32]uint32{}, exports: map[string]uint32{}}
	for _, x := range m.info.Exports {
		if x.Kind == "func" {
			p.exports[x.Name] = x.Index
		}
	}
	for _, t := range m.functions {
		p.typeOf = append(p.typeOf, m.sameType[t])
	}
	if m.start >= 0 {
		p.exports[StartExport] = uint32(m.start)
	}
	return p
}

// describeFunction adds what the emitter knows of a function to the program.
func (m *rewriter) describeFunction(e *emitter) {
	p, f := m.program, e.f
	fn := programFunction{index: f.index, results: string(f.typ.results), first: uint32(len(p.points)), points: uint32(len(f.points))}
	number := uint32(len(p.functions))
	p.byIndex[f.index] = number
	place := map[uint32]uint32{} // by local: its first unit in the union
	for _, l := range e.union {
		place[l] = fn.units
		fn.units += unitsOf(e.locals[l])
	}
	base := uint32(len(p.regions))
	for _, r := range e.regions {
		if r.count > 0 {
			fn.ways = max(fn.ways, uint32(r.depth)+1)
		}
		parent := int32(-1)
		if r.parent >= 0 {
			parent = int32(base) + r.parent
		}
		p.regions = append(p.regions, programRegion{parent: parent, target: r.target, depth: uint32(r.depth)})
	}
	for i := range f.points {
		pt := &f.points[i]
		d := programPoint{
			function: number, kind: pt.kind, region: base + uint32(pt.region), target: pt.target,
			first: uint32(len(p.types)), values: uint32(len(pt.frame)),
		}
		switch ins := &f.code[pt.at]; ins.op {
		case opCall, opReturnCall:
			d.callee = ins.a
		case opCallIndirect, opReturnCallIn:
			d.callee, d.indirect = m.sameType[ins.a], true
		}
		for j, l := range pt.frame {
			t := e.locals[l]
			p.types = append(p.types, t)
			p.places = append(p.places, place[l])
			d.units += unitsOf(t)
			if j >= len(pt.frame)-pt.results {
				d.results += unitsOf(t)
			}
		}
		p.points = append(p.points, d)
	}
	p.functions = append(p.functions, fn)
}

// noteTails finds out what can stand for another function.
func (p *Program) noteTails() {
	p.tailCalled, p.tailTypes = map[uint32]bool{}, map[uint32]bool{}
	for i := range p.points {
		switch pt := &p.points[i]; {
		case pt.kind != pointTail:
		case pt.indirect:
			p.tailTypes[pt.callee] = true
		default:
			p.tailCalled[pt.callee] = true
		}
	}
}

// standsFor says whether a tail call can have led to a function, in the place of
// one with these results.
func (p *Program) standsFor(fn *programFunction, results string) bool {
	return fn.results == results && (p.tailCalled[fn.index] || p.tailTypes[p.typeOf[fn.index]])
}

// resultsOf are the types of the results of a function that can stop; of one
// that cannot, a type that there is not.
func (p *Program) resultsOf(function uint32) string {
	number, ok := p.byIndex[function]
	if !ok {
		return "?"
	}
	return p.functions[number].results
}

// awaited are the types of the results that a call leaves.
func (p *Program) awaited(pt *programPoint) string {
	types := p.typesAt(pt)
	n, units := len(types), uint32(0)
	for n > 0 && units < pt.results {
		n--
		units += unitsOf(types[n])
	}
	return string(types[n:])
}

// unitsOf is how many 64-bit units a value takes.
func unitsOf(typ byte) uint32 {
	if typ == typV128 {
		return 2
	}
	return 1
}

// typesAt lists the types of the values in a point's frame.
func (p *Program) typesAt(pt *programPoint) []byte { return p.types[pt.first : pt.first+pt.values] }
