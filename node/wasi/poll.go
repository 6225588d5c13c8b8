package wasi

import (
	"math"
	"time"

	"github.com/zeebo/blake3"
)

// Layout of subscriptions and events (typenames.witx), in bytes.
const (
	subscriptionSize = 48
	eventSize        = 32

	eventClock   = 0
	eventFDRead  = 1
	eventFDWrite = 2

	clockAbsolute = 1 // subclockflags
	hangup        = 1 // eventrwflags
	// writable is how much room there always is where nothing is ever full.
	writable = 64 << 10
)

// A PollState is a poll that a move interrupted. The guest makes the same call
// again; its timeouts then count from where they began.
type PollState struct {
	// In and N are the call's subscriptions, Hash is the BLAKE3 hash of their
	// bytes.
	In   uint32 `cbor:"1,keyasint"`
	N    uint32 `cbor:"2,keyasint"`
	Hash Hash   `cbor:"3,keyasint"`
	// Began is when the call was first made, on the worker's own clock, in
	// nanoseconds. The clock travels with the worker, so what remains of a
	// timeout on one node is what remains on the next.
	Began int64 `cbor:"4,keyasint"`
}

// pollOneoff waits for the first of a guest's subscriptions.
func (h *Host) pollOneoff(mem memory, stack []uint64) errno {
	in, out, n, stored := uint32(stack[0]), uint32(stack[1]), uint32(stack[2]), uint32(stack[3])
	before := h.poll
	h.poll = nil
	if n == 0 || n > maxSubscriptions {
		return errInval
	}
	subs, ok := mem.view(in, uint64(n)*subscriptionSize)
	if !ok {
		return errFault
	}
	events, ok := mem.view(out, uint64(n)*eventSize)
	if !ok {
		return errFault
	}
	count, ok := mem.view(stored, 4)
	if !ok {
		return errFault
	}
	for s := subs; len(s) > 0; s = s[subscriptionSize:] {
		if s[8] > eventFDWrite {
			return errInval
		}
	}
	// The two lists may lie over one another.
	subs = append([]byte(nil), subs...)

	call := PollState{In: in, N: n, Began: h.clock.Now()}
	if h.streams != nil {
		call.Hash = blake3.Sum256(subs)
		if before != nil && before.In == in && before.N == n && before.Hash == call.Hash {
			call.Began = min(call.Began, before.Began)
		}
	}
	for {
		ready, until, wake := h.pollOnce(subs, call.Began, events)
		if ready > 0 {
			le.PutUint32(count, ready)
			return success
		}
		if e := h.pause(until, wake); e != success {
			if h.streams != nil {
				h.poll = &call
			}
			return e
		}
	}
}

// pollOnce writes an event for each subscription that is ready, and returns
// their number; or, if there is none, how long to wait for what.
func (h *Host) pollOnce(subs []byte, began int64, events []byte) (ready uint32, until int64, wake <-chan struct{}) {
	// The clocks are read once, so that one timeout is not early and the next
	// late.
	monotonic, realtime := h.clock.Now(), max(0, time.Now().UnixNano())
	until = never
	for s := subs; len(s) > 0; s = s[subscriptionSize:] {
		var e errno
		var size uint64
		var flags uint16
		if s[8] == eventClock {
			var deadline int64
			deadline, e = subscribedDeadline(s, began, monotonic, realtime)
			if e == success && deadline > monotonic {
				until = min(until, deadline)
				continue
			}
		} else {
			var now bool
			size, flags, now, e = h.fdReady(le.Uint32(s[16:]), s[8] == eventFDWrite)
			if e == success && !now {
				wake = h.streams.wake
				continue
			}
		}
		ev := events[ready*eventSize:][:eventSize]
		ready++
		clear(ev)
		copy(ev, s[:8])
		le.PutUint16(ev[8:], uint16(e))
		ev[10] = s[8]
		le.PutUint64(ev[16:], size)
		le.PutUint16(ev[24:], flags)
	}
	return ready, until, wake
}

// fdReady says whether a descriptor can be read or written without waiting, and
// how many bytes.
func (h *Host) fdReady(n uint32, write bool) (size uint64, flags uint16, ready bool, e errno) {
	fd := h.fd(n)
	if fd == nil {
		return 0, 0, false, errBadf
	}
	if fd.node == nil && (fd.stream == 0) == write {
		return 0, 0, false, errBadf
	}
	if fd.base&rightPoll == 0 {
		return 0, 0, false, errNotcapable
	}
	switch {
	case fd.node != nil && write:
		return writable, 0, true, success
	case fd.node != nil:
		return uint64(max(0, fd.node.size-fd.offset)), 0, true, success
	case h.streams == nil && write:
		return writable, 0, true, success
	case h.streams == nil:
		return 0, hangup, true, success
	case write:
		room := h.streams.writable()
		return uint64(max(0, room)), 0, room > 0, success
	}
	waiting, ended := h.streams.readable()
	if ended {
		flags = hangup
	}
	return uint64(waiting), flags, waiting > 0 || ended, success
}

// subscribedDeadline returns when a clock subscription is due, on the worker's
// monotonic clock.
func subscribedDeadline(s []byte, began, monotonic, realtime int64) (int64, errno) {
	timeout := int64(min(le.Uint64(s[24:]), math.MaxInt64))
	absolute := le.Uint16(s[40:])&clockAbsolute != 0
	id := le.Uint32(s[16:])
	switch {
	case id == clockProcess || id == clockThread:
		return 0, errNotsup
	case id > clockThread:
		return 0, errInval
	case !absolute:
		return add(began, timeout), success
	case id == clockMonotonic:
		return timeout, success
	}
	// The node's clock says how far off it is; the node may be another one by
	// then, or its clock be set, so it is asked again.
	if timeout <= realtime {
		return monotonic, success
	}
	return add(monotonic, timeout-realtime), success
}

// add adds, up to the end of time.
func add(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return never
	}
	return a + b
}
