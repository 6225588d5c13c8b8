// Package suspend makes WebAssembly modules movable.
//
// A worker's state is its linear memory, its mutable globals and, hidden inside
// the runtime, its tables, the segments it has dropped and, while it runs, its
// stack. There are two kinds of workers.
//
// An event worker returns after each event, so it has no stack when it moves.
// Prepare exports its globals and refuses, by name, what cannot be carried; the
// code stays as it is, unless it changes tables or drops segments, which it then
// does by functions that a host can follow (reference.go).
//
// A program runs as it pleases. Rewrite gives it the means to stop in its
// middle and to be continued, possibly by another runtime on another machine:
//
//   - Suspend points are the heads of loops, the places behind calls, and those
//     in front of tail calls and of calls of host functions that can block. A
//     function that has no loop, is part of no recursion, and calls nothing that
//     can stop has none (plan.go).
//   - Each function that can stop is there twice. The fast version (emit.go) is
//     the function as it was, but that it looks at a global at every suspend
//     point, and branches out of its body when it is set, to code that hands the
//     frame to the host and returns. There are no calls, no stores and no
//     decisions about resuming in its way. The resuming version (resume.go)
//     begins by fetching a frame and jumping to the point where it was left; it
//     serves only for frames that were suspended, and calls fast versions. Many
//     larger functions are there only once, because two versions would cost much
//     and gain little (emitOnce, emitOnceInLocals).
//   - A frame is the function, the point, and the values that are needed there:
//     the live locals (live.go) and the operand stack. Frames go to the host, not
//     into linear memory: the program can neither see nor change them, and no
//     page gets dirty.
//   - A host function that can block is reached through tables by way of a function
//     that is added, which has the suspend point in front of the call (addStandIns).
//   - A tail call leaves no frame: who is called stands in the caller's place.
//   - Frames come back one by one: the host continues the innermost, and each
//     one when the one inside it has returned (Stack). So a deep stack resumes as
//     fast as a shallow one, and a second stop finds the frames that have not
//     had their turn where they are.
//   - References and tables are kept such that a host can read them, by
//     functions that are added to the module (reference.go).
//
// Nothing of it needs more of a runtime than WebAssembly 2.0 and, for programs
// with tail calls, those: imported functions, exported functions and one exported
// global. Stack is the host's part, free of any runtime; package drive connects
// it with wazero. Host functions must not call the program. A call that traps
// ends the program, as it does without all this; a stack too deep for the machine
// traps, but how deep that is has never been for a program to know.
package suspend

import (
	"fmt"
)

// ReservedPrefix opens the names that Prepare adds to a module's exports. A
// module that exports such a name itself is refused.
const ReservedPrefix = "meshnode:"

// Prepared is a module that can move.
type Prepared struct {
	// Module is the rewritten binary. The same input gives the same bytes. It
	// does not share memory with the input.
	Module []byte
	Info   Info
	// Program is set if some of the module's state can be reached only by
	// functions that were added to it: tables that change, dropped segments,
	// vectors and references in globals. It has no suspend points; a State takes
	// all of its globals, too. Module and Info are Program's.
	Program *Program
}

// Info is what Prepare learnt about a module.
type Info struct {
	// MemoryMin and MemoryMax are linear memory's declared limits, in 64 KiB;
	// MemoryMax is 65536 if the module declares none.
	MemoryMin, MemoryMax uint32
	// Memory is the name under which the memory is exported.
	Memory string
	// Globals are the module's mutable globals, ordered by index.
	Globals []Global
	// Start is the name under which the start function is exported, which the
	// host must call once before anything else and never on a restored worker;
	// empty if there is none.
	Start string
	// Initialize, Event and Command say whether the module exports _initialize,
	// meshnode_event and _start, each with the right type.
	Initialize, Event, Command bool
	Imports                    []Import
	Exports                    []Export
	// Functions is the number of functions with a body.
	Functions int
}

// A Global is a mutable global.
type Global struct {
	// Index counts imported globals too.
	Index uint32
	// Type is the value type's byte: 0x7f i32, 0x7e i64, 0x7d f32, 0x7c f64.
	Type byte
	// Export is the name it is exported under.
	Export string
}

// An Import is a function a module imports.
type Import struct {
	Module, Name string
	// Type is the function's type, such as "(i32, i64) -> (i32)".
	Type string
}

// An Export is something a module exports by itself.
type Export struct {
	Name string
	// Kind is "func", "table", "memory" or "global".
	Kind  string
	Index uint32
}

// A RefusedError says why a module cannot be a worker.
type RefusedError struct {
	// Feature is what the module uses that cannot move, such as "table.set" or
	// "shared memory".
	Feature string `cbor:"1,keyasint"`
	// Where says where in the module, such as "function 12 (main.run), offset
	// 0x1f3".
	Where string `cbor:"2,keyasint,omitempty"`
	// Why says what goes wrong with it.
	Why string `cbor:"3,keyasint"`
	// Hint says what to do about it.
	Hint string `cbor:"4,keyasint,omitempty"`
}

func (e *RefusedError) Error() string {
	s := "module refused: " + e.Feature
	if e.Where != "" {
		s += " in " + e.Where
	}
	s += ": " + e.Why
	if e.Hint != "" {
		s += "; " + e.Hint
	}
	return s
}

// CanBeEventWorker says whether the module can be run one event at a time: nil,
// or a *RefusedError.
func (i *Info) CanBeEventWorker() error {
	switch {
	case i.Event:
		return nil
	case i.Command:
		return &RefusedError{
			Feature: "command worker",
			Where:   "export _start",
			Why:     "a program with its own main loop handles no events",
			Hint:    "run it as a command worker, or export meshnode_event and return after each event (in Go: package meshnode/node/guest and -buildmode=c-shared)",
		}
	}
	return &RefusedError{
		Feature: "no meshnode_event",
		Why:     "the module exports no handler, so there is nothing to call",
		Hint:    "export a function meshnode_event(kind i32, id i64, len i32) -> i32",
	}
}

// GlobalExport is the name Prepare exports mutable global index under.
func GlobalExport(index uint32) string { return fmt.Sprintf("%sglobal:%d", ReservedPrefix, index) }

// Names that Prepare exports the memory and the start function under.
const (
	MemoryExport = ReservedPrefix + "memory"
	StartExport  = ReservedPrefix + "start"
)
