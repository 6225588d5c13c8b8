//go:build wasip1

package guest

import (
	"fmt"
	"time"
	"unsafe"
)

// The host's functions. None of them keeps a pointer, so the arguments may
// stay on the stack; strings travel as pointer and length.

//go:wasmimport meshnode_v1 event_read
//go:noescape
func hostEventRead(p *byte, n, offset uint32) uint32

//go:wasmimport meshnode_v1 reply
//go:noescape
func hostReply(p *byte, n uint32) int32

//go:wasmimport meshnode_v1 send
//go:noescape
func hostSend(name string, p *byte, n uint32) int32

//go:wasmimport meshnode_v1 timer_set
func hostTimerSet(id uint64, afterNS, everyNS int64) int32

//go:wasmimport meshnode_v1 timer_cancel
func hostTimerCancel(id uint64) int32

//go:wasmimport meshnode_v1 log
//go:noescape
func hostLog(level int32, p *byte, n uint32)

//go:wasmimport meshnode_v1 clock
func hostClock() int64

//go:wasmimport meshnode_v1 random
//go:noescape
func hostRandom(p *byte, n uint32) int32

//go:wasmimport meshnode_v1 interface_read
//go:noescape
func hostInterfaceRead(name string, p *byte, n uint32) int32

// The worker runs one event at a time on one thread: no locks.
var (
	handler func(Event)
	payload []byte // grows to the largest payload seen and is kept
	logLine []byte
	turn    uint64 // the event being handled; rises by one with each
	status  int32  // its result
)

// An Event is one message or timer expiry. It is good for one run of the
// handler: what is needed later must be copied.
type Event struct {
	Kind Kind

	// ID is the number the node gave the message, or the id of the timer.
	ID uint64

	// Payload belongs to this package, which overwrites it with the next
	// event: copy what has to stay. The handler may modify it in place until
	// then. Nil when there is none.
	Payload []byte

	// turn tells an event that is still being handled from one that was kept
	// by mistake: a late Reply must not answer somebody else's call.
	turn uint64
}

// Handle registers the function that every event goes to. Call it once, from
// an init function: a second registration panics, and so does an event that
// finds none.
func Handle(h func(Event)) {
	if handler != nil {
		panic("guest: Handle called twice")
	}
	handler = h
}

//go:wasmexport meshnode_event
func meshnodeEvent(kind int32, id int64, n uint32) int32 {
	if handler == nil {
		panic("guest: event without a handler: call guest.Handle from an init function")
	}
	turn++
	status = 0
	ev := Event{Kind: Kind(kind), ID: uint64(id), turn: turn}
	if n > 0 {
		ev.Payload = read(n)
	}
	handler(ev)
	turn++ // whatever was kept of this event is now stale
	return status
}

// read fetches the n bytes of the current event's payload.
func read(n uint32) []byte {
	if n > MaxPayload {
		panic("guest: the node announced a payload above its own limit")
	}
	if uint32(cap(payload)) < n {
		// Powers of two, so that growing messages do not each leave garbage.
		size := 512
		for size < int(n) {
			size *= 2
		}
		payload = make([]byte, size)
	}
	p := payload[:n:n]
	if got := hostEventRead(unsafe.SliceData(p), n, 0); got != n {
		panic("guest: the node announced more payload than it gave")
	}
	return p
}

// Reply sets the answer to a call; a later one replaces it. The bytes are
// copied at once, so p may be reused. It returns ErrNotInCall for any other
// kind of event and for one whose handler has returned, and ErrTooLarge above
// MaxPayload. A call without Reply is answered with no bytes.
func (ev Event) Reply(p []byte) error {
	if ev.turn != turn {
		return ErrNotInCall
	}
	return result(hostReply(unsafe.SliceData(p), uint32(len(p))))
}

// Fail makes the event end with an application error, which the caller sees
// beside the reply. It does not end the handler, and what the event did still
// holds: its sends and timers take effect. The code's meaning is the
// application's own; 0 takes an earlier Fail back. On an event whose handler
// has returned it does nothing.
func (ev Event) Fail(code int32) {
	if ev.turn == turn {
		status = code
	}
}

// Send queues a one-way message to the worker of that name, which leaves
// when the handler returns. The bytes are copied at once, so p may be reused.
// It returns ErrTooLarge above MaxPayload, ErrTooMany after MaxSends messages,
// or while too many of earlier events wait to be handled, and ErrBadArgument for
// what is not a worker's name; whether the worker exists is found out later, and
// not by the sender.
func Send(name string, p []byte) error {
	return result(hostSend(name, unsafe.SliceData(p), uint32(len(p))))
}

// SetTimer arms the worker's timer id, or arms it anew: it expires after the
// given time and then, unless every is 0, at that interval. Timers survive
// moves with the time they had left. It returns ErrTooMany beyond MaxTimers and
// ErrBadArgument for a negative time.
func SetTimer(id uint64, after, every time.Duration) error {
	return result(hostTimerSet(id, int64(after), int64(every)))
}

// CancelTimer disarms timer id. Cancelling one that is not armed is not an
// error.
func CancelTimer(id uint64) error {
	return result(hostTimerCancel(id))
}

// Log writes a line to the worker's log, formatted as by fmt.Sprintf.
func Log(level Level, format string, args ...any) {
	logLine = fmt.Appendf(logLine[:0], format, args...)
	hostLog(int32(level), unsafe.SliceData(logLine), uint32(len(logLine)))
}

// Now is the worker's clock: monotonic from an unspecified start, and never
// backwards, not even when the worker moves to another machine.
func Now() time.Duration {
	return time.Duration(hostClock())
}

// Random fills p with random bytes from the node, good enough for keys.
func Random(p []byte) error {
	return result(hostRandom(unsafe.SliceData(p), uint32(len(p))))
}

// ReadInterface reads an interface of the host that the app's manifest names,
// such as a location, into p, and returns how long the reading is. Where the
// manifest says proxy, the node answers that the worker has had for it from the
// start, wherever it runs by then. It takes a round trip to that node, a second
// at most, in which the worker handles nothing else; it works in a handler only,
// not in an init function. The errors are ErrUndeclared, ErrNoReading, and
// ErrTooLarge for a reading that p cannot take.
func ReadInterface(name string, p []byte) (int, error) {
	n := hostInterfaceRead(name, unsafe.SliceData(p), uint32(len(p)))
	if n < 0 {
		return 0, Errno(-n)
	}
	return int(n), nil
}

// result turns a result code of the host into an error.
func result(code int32) error {
	if code == 0 {
		return nil
	}
	return Errno(code)
}
