//go:build unix

package runner

import (
	"os"
	"path/filepath"
	"testing"

	. "meshnode/node/suspend/wasmtest"
)

// What the test guest does is chosen by the event's id.
const (
	doCount    = 1 + iota // count the event in every kind of state there is, and reply with all of it
	doTrap                // unreachable
	doLoop                // for ever
	doExit                // proc_exit(7)
	doFill                // grow memory until refused; the status is the pages then
	doFillTop             // the same, then trap
	doSpeak               // logs and output
	doAct                 // messages and timers
	doClock               // reply with the clock
	doEcho                // reply with the payload
	doCompute             // a few milliseconds of arithmetic on memory
	doDeep                // endless recursion
	doSleep               // poll_oneoff for an hour
	doClose               // fd_close(1); the status is its error number
	doSpin                // log for ever
	doTimers              // arm timers until refused; the status is how many
	doRead                // read interface "hello"; the status is the result, the reply 64 bytes of it
	doReadAway            // read interface "hello" to where there is no memory
)

// replySize is what doCount replies with, in bytes.
const replySize = 64

// counter is the test guest: state in memory and in globals of every type.
func counter() []byte {
	m := new(Module)
	i32, i64 := byte(I32), byte(I64)
	read := m.Import("meshnode_v1", "event_read", Types(i32, i32, i32), Types(i32))
	reply := m.Import("meshnode_v1", "reply", Types(i32, i32), Types(i32))
	send := m.Import("meshnode_v1", "send", Types(i32, i32, i32, i32), Types(i32))
	timerSet := m.Import("meshnode_v1", "timer_set", Types(i64, i64, i64), Types(i32))
	timerCancel := m.Import("meshnode_v1", "timer_cancel", Types(i64), Types(i32))
	log := m.Import("meshnode_v1", "log", Types(i32, i32, i32), nil)
	readHost := m.Import("meshnode_v1", "interface_read", Types(i32, i32, i32, i32), Types(i32))
	clock := m.Import("meshnode_v1", "clock", nil, Types(i64))
	exit := m.Import("wasi_snapshot_preview1", "proc_exit", Types(i32), nil)
	write := m.Import("wasi_snapshot_preview1", "fd_write", Types(i32, i32, i32, i32), Types(i32))
	poll := m.Import("wasi_snapshot_preview1", "poll_oneoff", Types(i32, i32, i32, i32), Types(i32))
	closeFD := m.Import("wasi_snapshot_preview1", "fd_close", Types(i32), Types(i32))

	m.Mem(2, 0xffff)
	events := m.Glob(I64, true, I64Const(0))
	started := m.Glob(I32, true, I32Const(-5))
	m.Glob(I32, false, I32Const(1))
	single := m.Glob(F32, true, F32Const(0.5))
	double := m.Glob(F64, true, F64Const(-0.25))
	m.Data(256, "hello")
	m.Data(272, "other-worker")
	m.Data(288, "out 1\nout 2\nrest")
	m.Data(320, "\x20\x01\x00\x00\x10\x00\x00\x00") // vector: 288, 16
	// A subscription to the monotonic clock, one hour from now.
	m.Data(512, "\x01\x00\x00\x00\x00\x00\x00\x00"+"\x00\x00\x00\x00\x00\x00\x00\x00"+
		"\x01\x00\x00\x00\x00\x00\x00\x00"+"\x00\xa0\xb8\x30\x46\x03\x00\x00")

	bump := func(by int32) []byte { return Cat(GlobalGet(started), I32Const(by), I32Add, GlobalSet(started)) }
	start := m.Func(nil, nil, nil, bump(10))
	initialize := m.Func(nil, nil, nil, bump(100))
	handler := initialize + 1

	i64Store := func(at int32, v []byte) []byte { return Cat(I32Const(at), v, I64Store) }
	on := func(id int64, code ...[]byte) []byte {
		return Cat(LocalGet(1), I64Const(id), Op(0x51), If, Cat(code...), End)
	}
	// Locals: 0 kind, 1 id, 2 len, 3 a counter, 4 another.
	fill := Cat(Loop, I32Const(1), MemoryGrow, I32Const(-1), I32Eq, Op(0x45), BrIf(0), End)
	handle := m.Func(Types(i32, i64, i32), Types(i32), Types(i32, i64),
		on(doCount,
			GlobalGet(events), I64Const(1), I64Add, GlobalSet(events),
			GlobalGet(single), F32Const(0.25), F32Add, GlobalSet(single),
			GlobalGet(double), F64Const(1.5), F64Add, GlobalSet(double),
			// A count in memory, and one on a far page.
			i64Store(1024, Cat(I32Const(1024), I64Load, I64Const(1), I64Add)),
			i64Store(100_000, Cat(I32Const(100_000), I64Load, I64Const(3), I64Add)),
			i64Store(2048, GlobalGet(events)),
			I32Const(2056), GlobalGet(started), I32Store,
			I32Const(2060), GlobalGet(single), F32Store,
			I32Const(2064), GlobalGet(double), F64Store,
			i64Store(2072, Cat(I32Const(1024), I64Load)),
			i64Store(2080, Cat(I32Const(100_000), I64Load)),
			I32Const(2088), MemorySize, I32Store,
			i64Store(2096, Cat(I32Const(256), I64Load)), // the data segment
			I32Const(2048), I32Const(replySize), Invoke(reply), Return),
		on(doTrap, I32Const(1024), I32Const(-1), I32Store, Unreachable),
		on(doLoop, Loop, Br(0), End),
		on(doExit, I32Const(7), Invoke(exit)),
		on(doFill, fill, MemorySize, Return),
		on(doFillTop, fill, Unreachable),
		on(doSpeak,
			I32Const(2), I32Const(256), I32Const(5), Invoke(log),
			I32Const(1), I32Const(320), I32Const(1), I32Const(328), Invoke(write), Drop,
			I32Const(2), I32Const(320), I32Const(1), I32Const(328), Invoke(write), Return),
		on(doAct,
			I32Const(256), I32Const(5), Invoke(reply), Drop,
			I32Const(272), I32Const(12), I32Const(256), I32Const(5), Invoke(send), Drop,
			I64Const(9), I64Const(1000), I64Const(2000), Invoke(timerSet), Drop,
			I64Const(3), I64Const(5), I64Const(0), Invoke(timerSet), Drop,
			I64Const(9), Invoke(timerCancel), Drop,
			I64Const(77), Invoke(timerCancel), Drop,
			I32Const(-3), Return),
		on(doClock, i64Store(2048, Invoke(clock)), I32Const(2048), I32Const(8), Invoke(reply), Return),
		on(doEcho,
			// The payload is read to 64 KiB, of which there may be need of more.
			I32Const(40), MemoryGrow, Drop,
			I32Const(1<<16), LocalGet(2), I32Const(0), Invoke(read), Drop,
			I32Const(1<<16), LocalGet(2), Invoke(reply), Return),
		on(doCompute,
			Loop,
			// memory[4096 + 8*(n & 4095)] += n * 0x9e3779b97f4a7c15 ^ that
			LocalGet(3), I32Const(4095), Op(0x71), I32Const(3), Op(0x74), I32Const(4096), I32Add, Op(0x22, 3),
			Drop,
			LocalGet(3),
			LocalGet(3), I64Load, LocalGet(4), I64Const(-7046029254386353131), Op(0x7e), I64Add, LocalGet(4), Op(0x85), I64Store,
			LocalGet(4), I64Const(1), I64Add, Op(0x22, 4), Op(0xa7), LocalSet(3),
			LocalGet(4), I64Const(100_000), Op(0x54), BrIf(0), End, I32Const(0), Return),
		on(doDeep, I32Const(0), LocalGet(1), I32Const(0), Invoke(handler), Return),
		on(doSleep, I32Const(512), I32Const(1024), I32Const(1), I32Const(2000), Invoke(poll), Return),
		on(doClose, I32Const(1), Invoke(closeFD), Return),
		on(doSpin, Loop, I32Const(1), I32Const(256), I32Const(5), Invoke(log), Br(0), End),
		on(doTimers,
			Block, Loop,
			LocalGet(4), I64Const(1000), I64Const(0), Invoke(timerSet), BrIf(1),
			LocalGet(4), I64Const(1), I64Add, LocalSet(4), Br(0), End, End,
			LocalGet(4), Op(0xa7), Return),
		on(doRead,
			I32Const(256), I32Const(5), I32Const(2048), I32Const(64), Invoke(readHost),
			I32Const(2048), I32Const(64), Invoke(reply), Drop, Return),
		on(doReadAway, I32Const(256), I32Const(5), I32Const(-8), I32Const(64), Invoke(readHost), Return),
		I32Const(99),
	)
	m.Start(start)
	m.Export("memory", Memory, 0)
	m.Export("_initialize", Function, initialize)
	m.Export("meshnode_event", Function, handle)
	return m.Bytes()
}

// moduleFile writes a module where a runner can read it.
func moduleFile(tb testing.TB, module []byte) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "module.wasm")
	if err := os.WriteFile(path, module, 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}
