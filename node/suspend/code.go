package suspend

import (
	"fmt"
	"math"
)

// readCode walks every instruction of every function, to find those whose
// effects cannot be carried.
func (m *parse) readCode() {
	n := m.count("function bodies", maxFunctions, 3)
	section := m.end
	for i := range n {
		m.end = section
		m.where = "code section"
		size := m.u32()
		if uint64(size) > uint64(m.left()) {
			m.malformed("body of %d bytes, %d are left", size, m.left())
		}
		m.end = m.pos + int(size)
		if m.anywhere != nil {
			m.code = append(m.code, span{m.pos, m.end})
		}
		m.readBody(uint32(m.imported) + i)
	}
	m.end = section
	m.bodies = n
}

// readBody walks the function body from pos to end.
func (m *parse) readBody(function uint32) {
	m.function = int64(function)
	groups := m.count("groups of locals", maxLocals, 2)
	locals := uint64(0)
	for range groups {
		locals += uint64(m.u32())
		if locals > maxLocals {
			m.fail(RefusedError{
				Feature: "too many locals",
				Why:     fmt.Sprintf("at most %d are allowed", maxLocals),
				Hint:    "split the function",
			})
		}
		m.valueType()
	}

	// Nearly all of a module's bytes pass through this loop, so the common
	// immediates, of one byte, are passed right here; the rest, and whatever is
	// wrong, is left to the reader's methods, for which pos is kept.
	code := m.b[:m.end]
	p := m.pos
	for depth := 1; depth > 0; {
		if p >= len(code) {
			m.pos = p
			m.malformed("the function has no end")
		}
		at := p
		op := code[p]
		p++
		switch opImmediate[op] {
		case immNone:
		case immIndex, immI32, immI64:
			q := p
			for q < len(code) && code[q] >= 0x80 {
				q++
			}
			q++
			most := 5
			if op == 0x42 { // i64.const
				most = 10
			}
			if q > len(code) || q-p > most {
				m.pos = p
				m.skipLEB(most) // says what is wrong
			}
			p = q
		case immMemarg:
			if p+1 < len(code) && code[p] < 0x40 && code[p+1] < 0x80 {
				p += 2
				continue
			}
			m.pos = p
			m.memarg()
			p = m.pos
		case immEnd:
			depth--
		case immBlock:
			if p < len(code) && code[p] <= 0x40 {
				p++
			} else {
				m.pos = p
				m.blockType()
				p = m.pos
			}
			depth++
		default:
			m.pos = p
			m.rareImmediate(op, at)
			p = m.pos
		}
	}
	m.pos = p
	if m.pos != m.end {
		m.malformed("%d bytes after the end of the function", m.end-m.pos)
	}
	m.function = -1
}

// rareImmediate passes what follows opcode op, which is at at.
func (m *parse) rareImmediate(op byte, at int) {
	imm := opImmediate[op]
	var sub uint32
	switch imm {
	case immPrefixFC:
		sub = m.u32()
		imm = immUnknown
		if sub < uint32(len(fcImmediate)) {
			imm = fcImmediate[sub]
		}
	case immPrefixFD:
		sub = m.u32()
		imm = immUnknown
		if sub < uint32(len(fdImmediate)) {
			imm = fdImmediate[sub]
		}
	}
	switch imm {
	case immNone:
	case immHidden1, immHidden2:
		m.hidden = true
		m.skipLEB(5)
		if imm == immHidden2 {
			m.skipLEB(5)
		}
	case immIndex: // table.size
		m.skipLEB(5)
	case immIndex2:
		m.skipLEB(5)
		m.skipLEB(5)
	case immMemarg:
		m.memarg()
	case immMemLane:
		m.memarg()
		m.byte()
	case immLane:
		m.byte()
	case immMemory:
		m.memoryIndex()
	case immMemory2:
		m.memoryIndex()
		m.memoryIndex()
	case immDataMem:
		m.skipLEB(5)
		m.memoryIndex()
	case imm4:
		m.bytes(4)
	case imm8:
		m.bytes(8)
	case imm16:
		m.bytes(16)
	case immBrTable:
		for n := m.count("branch targets", math.MaxInt32, 1); ; n-- {
			m.skipLEB(5)
			if n == 0 {
				break
			}
		}
	case immTypes:
		m.valueTypes("types")
	case immRefType:
		m.valueType()
	default:
		if op == 0xfb || op == 0xfe {
			sub = m.u32()
		}
		m.pos = at
		m.fail(refusal(op, sub))
	}
}

// blockType passes a block type: nothing, a value type or a type index.
func (m *parse) blockType() {
	switch c := m.byte(); {
	case c <= 0x40:
		return // one byte of type index, or no result
	case c < 0x80:
		m.pos--
		m.valueType()
		return
	}
	m.pos--
	m.skipLEB(5)
}

// memarg passes an alignment and an offset.
func (r *reader) memarg() {
	if align := r.u32(); align >= 1<<6 {
		r.fail(RefusedError{
			Feature: "multiple memories",
			Why:     "a load or store names a memory, and there is only one",
			Hint:    "compile for one memory",
		})
	}
	r.skipLEB(5)
}

// memoryIndex passes the index of the one memory there is.
func (m *parse) memoryIndex() {
	if m.byte() != 0 {
		m.pos--
		m.fail(RefusedError{
			Feature: "multiple memories",
			Why:     "an instruction names a memory other than the first",
			Hint:    "compile for one memory",
		})
	}
}

// functionWhere names a place in a function.
func functionWhere(module []byte, function uint32, pos int) string {
	where := fmt.Sprintf("function %d", function)
	if name := functionName(module, function); name != "" {
		where += " " + quote(name)
	}
	return fmt.Sprintf("%s, offset %#x", where, pos)
}

// functionName looks a function up in the module's name section, if it has one
// that can be read (Core 2.0, "Name Section").
func functionName(module []byte, function uint32) (name string) {
	defer func() {
		if _, ok := recover().(*RefusedError); ok {
			name = "" // names are a convenience: broken ones are none
		}
	}()
	r := &reader{b: module, pos: 8, end: len(module)}
	for r.left() > 0 {
		id := r.byte()
		size := r.u32()
		body := &reader{b: module, pos: r.pos}
		r.bytes(size)
		body.end = r.pos
		if id != secCustom || body.name() != "name" {
			continue
		}
		for body.left() > 0 {
			kind := body.byte()
			size := body.u32()
			sub := &reader{b: module, pos: body.pos}
			body.bytes(size)
			sub.end = body.pos
			if kind != 1 {
				continue
			}
			for n := sub.count("names", maxFunctions, 2); n > 0; n-- {
				index := sub.u32()
				text := sub.name()
				if index == function {
					return text
				}
			}
		}
	}
	return ""
}
