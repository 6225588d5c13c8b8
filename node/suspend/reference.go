package suspend

import "fmt"

// References to functions, and tables.
//
// Nothing outside the runtime can tell which function a reference means, so a
// table cannot be read, and a frame that holds a reference cannot be saved. In
// a program that uses references as values, each is therefore a reference to a
// thunk, a function that returns the number of the function meant. A reference
// can be asked for that number, by calling it, wherever it has got to; it has
// the type that references have, so no signature changes.
//
// Calls go through the tables as they are, which hold the functions meant. Each
// has a shadow that holds the thunks. What the program reads comes from the
// shadow; what it writes goes to both, the function meant being looked up in a
// table of all functions by the thunk's number. None of this is there in a
// program that does no more with its tables than call through them.
//
// A reference travels as the function's index plus one, and 0 is null.

// Tables added to a program that uses references, behind the shadows.
const (
	tableReal    = iota // by number: the function
	tableThunk          // by number: its thunk
	tableScratch        // one entry, to call a reference by
)

func (m *rewriter) shadow(t uint32) uint32 { return uint32(len(m.tables)) + t }

func (m *rewriter) extraTable(which uint32) uint32 { return uint32(2*len(m.tables)) + which }

func (m *rewriter) thunkTable() uint32 { return m.extraTable(tableThunk) }

func (m *rewriter) resumeTable() uint32 {
	if m.refs {
		return m.extraTable(tableScratch + 1)
	}
	return uint32(len(m.tables))
}

// reference is the function that a reference to f refers to.
func (m *rewriter) reference(f uint32) uint32 {
	if !m.refs {
		return m.shifted(f)
	}
	return m.help(fmt.Sprint("thunk ", f), nil, []byte{typI32}, func() []byte {
		return appendS32([]byte{0, opI32Const}, int32(f+1))
	})
}

// help returns the index of a helper function, which body writes, locals first
// and without an end, if it is not there yet.
func (m *rewriter) help(key string, params, results []byte, body func() []byte) uint32 {
	i, ok := m.helper[key]
	if !ok {
		i = uint32(len(m.helpers))
		m.helper[key] = i
		m.helpers = append(m.helpers, helper{typ: m.typeIndex(params, results)})
		b := body() // may add others
		m.helpers[i].body = append(b, opEnd)
	}
	return m.helperBase() + i
}

func (m *rewriter) export(f uint32, name string) {
	m.helpers[f-m.helperBase()].export = name
}

// code joins bytes, and numbers as LEB128.
func code(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		switch p := p.(type) {
		case int:
			b = append(b, byte(p))
		case uint32:
			b = appendU32(b, p)
		case []byte:
			b = append(b, p...)
		}
	}
	return b
}

// referenceIndex is a helper: the number of the function that a reference
// means.
func (m *rewriter) referenceIndex() uint32 {
	return m.help("index", []byte{typFuncref}, []byte{typI32}, func() []byte {
		scratch := m.extraTable(tableScratch)
		return code(0,
			opLocalGet, 0, opRefIsNull, opIf, 0x40, opI32Const, 0, opReturn, opEnd,
			opI32Const, 0, opLocalGet, 0, opTableSet, scratch,
			opI32Const, 0, opCallIndirect, m.typeIndex(nil, []byte{typI32}), scratch)
	})
}

// meant is code that replaces a reference in local l by the function meant.
func (m *rewriter) meant(l uint32) []byte {
	return code(opLocalGet, l, opCall, m.referenceIndex(), opTableGet, m.extraTable(tableReal))
}

// ofReferences says whether an instruction deals with tables, references or
// segments, so that appendReference has to write it.
func ofReferences(op uint16) bool {
	switch op {
	case opTableGet, opTableSet, opRefFunc, opDataDrop, opElemDrop, opTableInit, opTableCopy, opTableGrow, opTableFill:
		return true
	}
	return false
}

// appendReference appends an instruction of those.
func (m *rewriter) appendReference(b []byte, ins *instruction) []byte {
	call := func(f uint32) []byte { return appendU32(append(b, opCall), f) }
	i32, ref := byte(typI32), byte(typFuncref)
	t := ins.a
	switch ins.op {
	case opRefFunc:
		return appendU32(append(b, opRefFunc), m.reference(m.referred(t)))
	case opTableGet:
		return appendU32(append(b, opTableGet), m.shadow(t))
	case opTableSet:
		m.changed[t] = true
		return call(m.help(fmt.Sprint("set ", t), []byte{i32, ref}, nil, func() []byte {
			return code(0,
				opLocalGet, 0, opLocalGet, 1, opTableSet, m.shadow(t),
				opLocalGet, 0, m.meant(1), opTableSet, t)
		}))
	case opTableGrow:
		m.changed[t] = true
		return call(m.help(fmt.Sprint("grow ", t), []byte{ref, i32}, []byte{i32}, func() []byte {
			return code(0,
				m.meant(0), opLocalGet, 1, 0xfc, 15, t,
				opI32Const, 0x7f, 0x46, opIf, 0x40, opI32Const, 0x7f, opReturn, opEnd, // i32.const -1; i32.eq
				opLocalGet, 0, opLocalGet, 1, 0xfc, 15, m.shadow(t))
		}))
	case opTableFill:
		m.changed[t] = true
		return call(m.help(fmt.Sprint("fill ", t), []byte{i32, ref, i32}, nil, func() []byte {
			return code(0,
				opLocalGet, 0, opLocalGet, 1, opLocalGet, 2, 0xfc, 17, m.shadow(t),
				opLocalGet, 0, m.meant(1), opLocalGet, 2, 0xfc, 17, t)
		}))
	case opTableCopy, opTableInit:
		r := reader{b: m.b, pos: int(ins.pos), end: int(ins.end)}
		r.byte()
		sub := r.u32()
		x, y := r.u32(), r.u32()
		var shadowX, shadowY uint32
		if ins.op == opTableCopy {
			m.changed[x] = true
			shadowX, shadowY = m.shadow(x), m.shadow(y)
		} else {
			m.changed[y] = true
			shadowX, shadowY = uint32(len(m.elements))+x, m.shadow(y)
		}
		return call(m.help(fmt.Sprint(sub, x, y), []byte{i32, i32, i32}, nil, func() []byte {
			all := code(opLocalGet, 0, opLocalGet, 1, opLocalGet, 2)
			return code(0, all, 0xfc, sub, x, y, all, 0xfc, sub, shadowX, shadowY)
		}))
	case opElemDrop:
		b = append(b, m.b[ins.pos:ins.end]...)
		b = code(b, 0xfc, 13, uint32(len(m.elements))+t)
		return code(b, opI32Const, 1, opGlobalSet, m.addGlobal(addedGlobal{element: true, segment: t}))
	case opDataDrop:
		b = append(b, m.b[ins.pos:ins.end]...)
		return code(b, opI32Const, 1, opGlobalSet, m.addGlobal(addedGlobal{segment: t}))
	}
	panic("suspend: an instruction that deals with no references")
}

// addGlobal returns the index of a global that is added.
func (m *rewriter) addGlobal(d addedGlobal) uint32 {
	g, ok := m.globalOf[d]
	if !ok {
		g = m.stop + 1 + uint32(len(m.addedGlobals))
		m.globalOf[d] = g
		m.addedGlobals = append(m.addedGlobals, d)
	}
	return g
}

// register returns the global that is register n of a type.
func (m *rewriter) register(typ byte, n uint32) uint32 {
	return m.addGlobal(addedGlobal{typ: typ, segment: n})
}

// ownRegister returns a new register, for one function alone.
func (m *rewriter) ownRegister(typ byte) uint32 {
	m.owned++
	return m.addGlobal(addedGlobal{typ: typ, segment: m.owned, owned: true})
}

// tableSection lists the tables that are added.
func (m *rewriter) tableSection() (count uint32, b []byte) {
	table := func(min, max uint32, hasMax bool) {
		b = append(b, typFuncref)
		if hasMax {
			b = appendU32(appendU32(append(b, 1), min), max)
		} else {
			b = appendU32(append(b, 0), min)
		}
		count++
	}
	if m.refs {
		for _, t := range m.tables {
			table(t.min, t.max, t.hasMax)
		}
		n := uint32(len(m.functions)) + 1
		table(n, n, true)
		table(n, n, true)
		table(1, 1, true)
	}
	if n := uint32(len(m.resumes)); n > 0 {
		table(n, n, true)
	}
	return count, b
}

// elementSection writes all element segments with new function indexes, and
// those added: the shadows of the module's, in their order, and those of the
// added tables.
func (m *rewriter) elementSection() (count uint32, b []byte) {
	segment := func(e element, table uint32, index func(uint32) uint32) {
		// The forms without a table or a type are only for table 0 of
		// funcref; the longer ones say the same.
		flags := e.flags
		if flags&1 == 0 && table != 0 {
			flags |= 2
		}
		b = appendU32(b, flags)
		if flags&1 == 0 {
			if flags&2 != 0 {
				b = appendU32(b, table)
			}
			b = append(b, m.b[e.offset.pos:e.offset.end]...)
		}
		if flags&3 != 0 {
			if flags&4 != 0 {
				b = append(b, e.typ)
			} else {
				b = append(b, 0)
			}
		}
		b = appendU32(b, e.count)
		m.items(e, func(f uint32, null bool) {
			switch {
			case flags&4 == 0:
				b = appendU32(b, index(f))
			case null:
				b = append(b, opRefNull, e.typ, opEnd)
			default:
				b = append(appendU32(append(b, opRefFunc), index(f)), opEnd)
			}
		})
		count++
	}
	for _, e := range m.elements {
		if e.flags&1 == 0 && uint64(e.table) >= uint64(len(m.tables)) {
			m.malformed("elements for table %d of %d", e.table, len(m.tables))
		}
		segment(e, e.table, m.shifted)
	}
	// run is an active segment of consecutive entries.
	run := func(table, offset uint32, functions []uint32) {
		b = appendU32(append(b, 2), table)
		b = append(appendS32(append(b, opI32Const), int32(offset)), opEnd, 0)
		b = appendU32(b, uint32(len(functions)))
		for _, f := range functions {
			b = appendU32(b, f)
		}
		count++
	}
	if m.refs {
		for _, e := range m.elements {
			segment(e, m.shadow(e.table), m.reference)
		}
		for i := 0; i < len(m.taken); {
			j := i
			var real, thunks []uint32
			for ; j < len(m.taken) && m.taken[j]; j++ {
				real = append(real, m.shifted(uint32(j)))
				thunks = append(thunks, m.reference(uint32(j)))
			}
			if j > i {
				run(m.extraTable(tableReal), uint32(i)+1, real)
				run(m.extraTable(tableThunk), uint32(i)+1, thunks)
			}
			i = j + 1
		}
	}
	if len(m.resumes) > 0 {
		all := make([]uint32, len(m.resumes))
		for i := range all {
			all[i] = m.resumeBase() + uint32(i)
		}
		run(m.resumeTable(), 0, all)
	}
	return count, b
}

// addHelpers adds the functions that the host calls. All that the code needs
// are there already.
func (m *rewriter) addHelpers() {
	i32, i64 := byte(typI32), byte(typI64)
	if len(m.resumes) > 0 {
		run := m.help("run", nil, nil, func() []byte {
			return code(1, 1, typI32, // a local
				opLoop, 0x40,
				opCall, m.next, opLocalTee, 0, opI32Const, 0, 0x48, opIf, 0x40, opReturn, opEnd, // i32.lt_s
				opLocalGet, 0, opCallIndirect, m.typeIndex(nil, nil), m.resumeTable(),
				opBr, 0, opEnd)
		})
		m.export(run, RunExport)
	}
	for t, changed := range m.changed {
		if !changed {
			continue
		}
		t := uint32(t)
		shadow := m.shadow(t)
		name := TableExport(t)
		m.program.Tables = append(m.program.Tables, t)
		m.export(m.help(name+"size", nil, []byte{i32}, func() []byte {
			return code(0, 0xfc, 16, shadow)
		}), name+":size")
		m.export(m.help(name+"get", []byte{i32}, []byte{i32}, func() []byte {
			return code(0, opLocalGet, 0, opTableGet, shadow, opCall, m.referenceIndex())
		}), name+":get")
		m.export(m.help(name+"put", []byte{i32, i32}, nil, func() []byte {
			return code(0,
				opLocalGet, 0, opLocalGet, 1, opTableGet, m.thunkTable(), opTableSet, shadow,
				opLocalGet, 0, opLocalGet, 1, opTableGet, m.extraTable(tableReal), opTableSet, t)
		}), name+":set")
		m.export(m.help(name+"more", []byte{i32}, []byte{i32}, func() []byte {
			return code(0,
				opRefNull, typFuncref, opLocalGet, 0, 0xfc, 15, shadow, opDrop,
				opRefNull, typFuncref, opLocalGet, 0, 0xfc, 15, t)
		}), name+":grow")
	}
	for i, g := range m.globalTypes {
		if !g.mutable || g.typ != typFuncref && g.typ != typV128 {
			continue
		}
		i := uint32(i)
		name := GlobalExport(i)
		h := HiddenGlobal{Index: i, Type: g.typ, Export: name}
		if g.typ == typFuncref {
			if !m.refs {
				continue // no code touches it
			}
			m.export(m.help(name+"get", nil, []byte{i64}, func() []byte {
				return code(0, opGlobalGet, i, opCall, m.referenceIndex(), 0xad)
			}), name+":get")
			m.export(m.help(name+"set", []byte{i64}, nil, func() []byte {
				return code(0, opLocalGet, 0, 0xa7, opTableGet, m.thunkTable(), opGlobalSet, i)
			}), name+":set")
		} else {
			m.export(m.help(name+"get", nil, []byte{i64, i64}, func() []byte {
				return code(0, opGlobalGet, i, 0xfd, 0x1d, 0, opGlobalGet, i, 0xfd, 0x1d, 1)
			}), name+":get")
			m.export(m.help(name+"set", []byte{i64, i64}, nil, func() []byte {
				return code(0, opLocalGet, 0, 0xfd, 0x12, opLocalGet, 1, 0xfd, 0x1e, 1, opGlobalSet, i) // i64x2.splat
			}), name+":set")
		}
		m.program.Hidden = append(m.program.Hidden, h)
	}
	if m.drops {
		m.export(m.help("reapply", nil, nil, func() []byte {
			b := code(0)
			for i, d := range m.addedGlobals {
				if d.typ != 0 {
					continue
				}
				b = code(b, opGlobalGet, m.stop+1+uint32(i), opIf, 0x40)
				if d.element {
					b = code(b, 0xfc, 13, d.segment, 0xfc, 13, uint32(len(m.elements))+d.segment)
				} else {
					b = code(b, 0xfc, 9, d.segment)
				}
				b = append(b, opEnd)
			}
			return b
		}), ReapplyExport)
	}
	if m.refs {
		// Segments and globals refer to thunks: all must be there before the
		// sections are written.
		for f, taken := range m.taken {
			if taken {
				m.reference(uint32(f))
			}
		}
	}
}
