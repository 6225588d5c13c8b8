package suspend

// Opcodes that the rewriter treats by name. An opcode behind the prefix 0xfc is
// 0x100 more than its second number, one behind 0xfd 0x200 more.
const (
	opUnreachable  = 0x00
	opNop          = 0x01
	opBlock        = 0x02
	opLoop         = 0x03
	opIf           = 0x04
	opElse         = 0x05
	opEnd          = 0x0b
	opBr           = 0x0c
	opBrIf         = 0x0d
	opBrTable      = 0x0e
	opReturn       = 0x0f
	opCall         = 0x10
	opCallIndirect = 0x11
	opReturnCall   = 0x12
	opReturnCallIn = 0x13 // return_call_indirect
	opDrop         = 0x1a
	opSelect       = 0x1b
	opSelectTyped  = 0x1c
	opLocalGet     = 0x20
	opLocalSet     = 0x21
	opLocalTee     = 0x22
	opGlobalGet    = 0x23
	opGlobalSet    = 0x24
	opTableGet     = 0x25
	opTableSet     = 0x26
	opI32Const     = 0x41
	opI64Const     = 0x42
	opRefNull      = 0xd0
	opRefIsNull    = 0xd1
	opRefFunc      = 0xd2
	opDataDrop     = 0x100 + 9
	opTableInit    = 0x100 + 12
	opElemDrop     = 0x100 + 13
	opTableCopy    = 0x100 + 14
	opTableGrow    = 0x100 + 15
	opTableSize    = 0x100 + 16
	opTableFill    = 0x100 + 17

	opCount = 0x200 + 0x100
)

// An effect is what an instruction does to the operand stack: how many operands
// it takes and the type it leaves, 0 for none. Instructions whose effect
// depends on more than the opcode have none here.
type effect struct {
	pops uint8
	push byte
	ok   bool
}

// effects holds the effect of each opcode that has a fixed one (Core 2.0,
// "Instructions").
var effects = func() (t [opCount]effect) {
	set := func(pops uint8, push byte, ops ...int) {
		for _, op := range ops {
			t[op] = effect{pops, push, true}
		}
	}
	run := func(pops uint8, push byte, from, to int) {
		for op := from; op <= to; op++ {
			t[op] = effect{pops, push, true}
		}
	}
	set(0, 0, opNop)
	// Loads and stores.
	set(1, typI32, 0x28, 0x2c, 0x2d, 0x2e, 0x2f)
	set(1, typI64, 0x29, 0x30, 0x31, 0x32, 0x33, 0x34, 0x35)
	set(1, typF32, 0x2a)
	set(1, typF64, 0x2b)
	run(2, 0, 0x36, 0x3e)
	set(0, typI32, 0x3f)
	set(1, typI32, 0x40)
	set(0, typI32, 0x41)
	set(0, typI64, 0x42)
	set(0, typF32, 0x43)
	set(0, typF64, 0x44)
	// Comparisons.
	set(1, typI32, 0x45, 0x50)
	run(2, typI32, 0x46, 0x4f)
	run(2, typI32, 0x51, 0x66)
	// Arithmetic.
	run(1, typI32, 0x67, 0x69)
	run(2, typI32, 0x6a, 0x78)
	run(1, typI64, 0x79, 0x7b)
	run(2, typI64, 0x7c, 0x8a)
	run(1, typF32, 0x8b, 0x91)
	run(2, typF32, 0x92, 0x98)
	run(1, typF64, 0x99, 0x9f)
	run(2, typF64, 0xa0, 0xa6)
	// Conversions.
	run(1, typI32, 0xa7, 0xab)
	run(1, typI64, 0xac, 0xb1)
	run(1, typF32, 0xb2, 0xb6)
	run(1, typF64, 0xb7, 0xbb)
	set(1, typI32, 0xbc, 0xc0, 0xc1)
	set(1, typI64, 0xbd, 0xc2, 0xc3, 0xc4)
	set(1, typF32, 0xbe)
	set(1, typF64, 0xbf)
	// References.
	set(1, typI32, opRefIsNull)
	set(0, typFuncref, opRefFunc)
	set(1, typFuncref, opTableGet) // tables of externref are refused
	set(2, 0, opTableSet)

	const fc = 0x100
	run(1, typI32, fc+0, fc+3)
	run(1, typI64, fc+4, fc+7)
	set(3, 0, fc+8, fc+10, fc+11, opTableInit, opTableCopy, opTableFill)
	set(0, 0, opDataDrop, opElemDrop)
	set(2, typI32, opTableGrow)
	set(0, typI32, opTableSize)

	const fd = 0x200
	run(2, typV128, fd+0x00, fd+0xff) // most; the others follow
	run(1, typV128, fd+0x00, fd+0x0a)
	set(2, 0, fd+0x0b)
	set(0, typV128, fd+0x0c)
	run(1, typV128, fd+0x0f, fd+0x14)
	set(1, typI32, fd+0x15, fd+0x16, fd+0x18, fd+0x19, fd+0x1b)
	set(1, typI64, fd+0x1d)
	set(1, typF32, fd+0x1f)
	set(1, typF64, fd+0x21)
	set(1, typV128, fd+0x4d, fd+0x5c, fd+0x5d, fd+0x5e, fd+0x5f)
	set(3, typV128, fd+0x52)
	set(1, typI32, fd+0x53, fd+0x63, fd+0x64, fd+0x83, fd+0x84, fd+0xa3, fd+0xa4, fd+0xc3, fd+0xc4)
	run(2, 0, fd+0x58, fd+0x5b)
	set(1, typV128, fd+0x60, fd+0x61, fd+0x62, fd+0x67, fd+0x68, fd+0x69, fd+0x6a, fd+0x74, fd+0x75, fd+0x7a,
		fd+0x7c, fd+0x7d, fd+0x7e, fd+0x7f, fd+0x80, fd+0x81, fd+0x94, fd+0xa0, fd+0xa1, fd+0xc0, fd+0xc1,
		fd+0xe0, fd+0xe1, fd+0xe3, fd+0xec, fd+0xed, fd+0xef)
	run(1, typV128, fd+0x87, fd+0x8a)
	run(1, typV128, fd+0xa7, fd+0xaa)
	run(1, typV128, fd+0xc7, fd+0xca)
	run(1, typV128, fd+0xf8, fd+0xff)
	for sub, imm := range fdImmediate {
		if imm == immUnknown {
			t[fd+sub] = effect{}
		}
	}
	return t
}()
