package suspend

import "fmt"

// An immediate is what follows an opcode in the binary format (Core 2.0,
// "Instructions").
type immediate uint8

const (
	immUnknown  immediate = iota // no such instruction in the features allowed
	immNone                      // nothing
	immBlock                     // a block type; opens a block
	immEnd                       // nothing; closes a block
	immIndex                     // one u32
	immIndex2                    // two u32
	immBrTable                   // a vector of u32 and one u32
	immMemarg                    // alignment and offset
	immLane                      // one byte
	immMemLane                   // alignment, offset and one byte
	immMemory                    // one memory index, a zero byte
	immMemory2                   // two memory indexes
	immDataMem                   // a data index and a memory index
	immI32                       // a signed LEB128 of 32 bits
	immI64                       // a signed LEB128 of 64 bits
	imm4                         // 4 bytes
	imm8                         // 8 bytes
	imm16                        // 16 bytes
	immTypes                     // a vector of value types
	immRefType                   // a reference type
	immPrefixFC                  // a second opcode
	immPrefixFD                  // a second opcode
	immHidden1                   // one u32; changes state that the runtime hides
	immHidden2                   // two u32; changes state that the runtime hides
	immRefused                   // an instruction of a feature that is refused
)

// opImmediate holds what follows each one-byte opcode.
var opImmediate = func() (t [256]immediate) {
	set := func(from, to int, k immediate) {
		for op := from; op <= to; op++ {
			t[op] = k
		}
	}
	set(0x00, 0x01, immNone)    // unreachable, nop
	set(0x02, 0x04, immBlock)   // block, loop, if
	set(0x05, 0x05, immNone)    // else
	set(0x06, 0x0a, immRefused) // exception handling
	set(0x0b, 0x0b, immEnd)
	set(0x0c, 0x0d, immIndex) // br, br_if
	set(0x0e, 0x0e, immBrTable)
	set(0x0f, 0x0f, immNone)    // return
	set(0x10, 0x10, immIndex)   // call
	set(0x11, 0x11, immIndex2)  // call_indirect
	set(0x12, 0x12, immIndex)   // return_call
	set(0x13, 0x13, immIndex2)  // return_call_indirect
	set(0x14, 0x15, immRefused) // typed function references
	set(0x18, 0x19, immRefused) // exception handling
	set(0x1a, 0x1b, immNone)    // drop, select
	set(0x1c, 0x1c, immTypes)   // select with types
	set(0x1f, 0x1f, immRefused) // exception handling
	set(0x20, 0x24, immIndex)   // locals, globals
	set(0x25, 0x25, immIndex)   // table.get
	set(0x26, 0x26, immHidden1) // table.set
	set(0x28, 0x3e, immMemarg)  // loads and stores
	set(0x3f, 0x40, immMemory)  // memory.size, memory.grow
	set(0x41, 0x41, immI32)
	set(0x42, 0x42, immI64)
	set(0x43, 0x43, imm4)
	set(0x44, 0x44, imm8)
	set(0x45, 0xc4, immNone) // comparisons, arithmetic, conversions, sign extension
	set(0xd0, 0xd0, immRefType)
	set(0xd1, 0xd1, immNone)  // ref.is_null
	set(0xd2, 0xd2, immIndex) // ref.func
	set(0xd3, 0xd6, immRefused)
	set(0xfb, 0xfb, immRefused) // garbage collection
	set(0xfc, 0xfc, immPrefixFC)
	set(0xfd, 0xfd, immPrefixFD)
	set(0xfe, 0xfe, immRefused) // atomics
	return t
}()

// fcImmediate holds what follows the opcodes behind 0xfc.
var fcImmediate = [...]immediate{
	0: immNone, 1: immNone, 2: immNone, 3: immNone, 4: immNone, 5: immNone, 6: immNone, 7: immNone, // trunc_sat
	8:  immDataMem, // memory.init only reads its segment
	9:  immHidden1, // data.drop
	10: immMemory2, // memory.copy
	11: immMemory,  // memory.fill
	12: immHidden2, // table.init
	13: immHidden1, // elem.drop
	14: immHidden2, // table.copy
	15: immHidden1, // table.grow
	16: immIndex,   // table.size
	17: immHidden1, // table.fill
}

// fdImmediate holds what follows the vector opcodes behind 0xfd.
var fdImmediate = func() (t [256]immediate) {
	for op := range t {
		t[op] = immNone
	}
	set := func(from, to int, k immediate) {
		for op := from; op <= to; op++ {
			t[op] = k
		}
	}
	set(0x00, 0x0b, immMemarg) // v128.load* and v128.store
	set(0x0c, 0x0d, imm16)     // v128.const, i8x16.shuffle
	set(0x15, 0x22, immLane)   // extract_lane, replace_lane
	set(0x54, 0x5b, immMemLane)
	set(0x5c, 0x5d, immMemarg)
	for _, op := range []int{
		0x9a, 0xa2, 0xa5, 0xa6, 0xaf, 0xb0, 0xb2, 0xb3, 0xb4, 0xbb,
		0xc2, 0xc5, 0xc6, 0xcf, 0xd0, 0xd2, 0xd3, 0xd4, 0xe2, 0xee,
	} {
		t[op] = immUnknown
	}
	return t
}()

// refusal says why instruction op, or sub behind the prefix op, is refused.
func refusal(op byte, sub uint32) RefusedError {
	const (
		exception = "exception handling is not supported"
		excHint   = "compile without WebAssembly exceptions (clang: -fno-exceptions, or -fwasm-exceptions left out)"
		typedHint = "compile without typed function references and garbage collection"
	)
	switch op {
	case 0x06, 0x07, 0x08, 0x09, 0x0a, 0x18, 0x19, 0x1f:
		name := map[byte]string{
			0x06: "try", 0x07: "catch", 0x08: "throw", 0x09: "rethrow", 0x0a: "throw_ref",
			0x18: "delegate", 0x19: "catch_all", 0x1f: "try_table",
		}[op]
		return RefusedError{Feature: name, Why: exception, Hint: excHint}
	case 0x14, 0x15, 0xd3, 0xd4, 0xd5, 0xd6:
		name := map[byte]string{
			0x14: "call_ref", 0x15: "return_call_ref", 0xd3: "ref.eq",
			0xd4: "ref.as_non_null", 0xd5: "br_on_null", 0xd6: "br_on_non_null",
		}[op]
		return RefusedError{Feature: name, Why: "typed function references are not supported", Hint: typedHint}
	case 0xfb:
		return RefusedError{Feature: fmt.Sprintf("instruction 0xfb %#02x", sub), Why: "garbage collected types are not supported", Hint: typedHint}
	case 0xfc:
		return RefusedError{Feature: fmt.Sprintf("instruction 0xfc %#02x", sub), Why: "no such instruction in WebAssembly 2.0", Hint: "compile without proposals newer than WebAssembly 2.0"}
	case 0xfd:
		if sub >= 0x100 && sub < 0x130 {
			return RefusedError{Feature: fmt.Sprintf("relaxed SIMD instruction 0xfd %#02x", sub), Why: "its result differs from one processor to another", Hint: "compile without relaxed SIMD (clang: -mno-relaxed-simd)"}
		}
		return RefusedError{Feature: fmt.Sprintf("instruction 0xfd %#02x", sub), Why: "no such instruction in WebAssembly 2.0", Hint: "compile without proposals newer than WebAssembly 2.0"}
	case 0xfe:
		return RefusedError{Feature: fmt.Sprintf("atomic instruction 0xfe %#02x", sub), Why: "threads and atomics are not supported", Hint: "compile without threads (clang: without -pthread and -matomics)"}
	}
	return RefusedError{Feature: fmt.Sprintf("instruction %#02x", op), Why: "no such instruction in WebAssembly 2.0", Hint: "compile without proposals newer than WebAssembly 2.0"}
}
