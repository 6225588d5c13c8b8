package wasi

import (
	"math"
	"time"
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
	writable      = 64 << 10
)

// pollOneoff waits for the first of a guest's subscriptions. Streams are ready
// at once, or wrong at once; so the wait, if there is one, is for the earliest
// clock.
func (h *Host) pollOneoff(mem memory, stack []uint64) errno {
	in, out, n, stored := uint32(stack[0]), uint32(stack[1]), uint32(stack[2]), uint32(stack[3])
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
	// The two lists may lie over one another.
	subs = append([]byte(nil), subs...)

	// The clocks are read once, so that one timeout is not early and the next
	// late; and before start, so that no sleep ends early.
	monotonic := h.clock.Now()
	start := time.Now()
	realtime := start.UnixNano()
	var ready uint32
	put := func(sub []byte, e errno) []byte {
		ev := events[ready*eventSize:][:eventSize]
		ready++
		clear(ev)
		copy(ev, sub[:8])
		le.PutUint16(ev[8:], uint16(e))
		ev[10] = sub[8]
		return ev
	}
	earliest := int64(math.MaxInt64)
	for s := subs; len(s) > 0; s = s[subscriptionSize:] {
		switch s[8] {
		case eventClock:
			wait, e := subscribedWait(s, monotonic, realtime)
			switch {
			case e != success:
				put(s, e)
			case wait <= 0:
				put(s, success)
			default:
				earliest = min(earliest, wait)
			}
		case eventFDRead, eventFDWrite:
			fd := h.fd(le.Uint32(s[16:]))
			switch {
			case fd == nil || (fd.Stream == 0) != (s[8] == eventFDRead):
				put(s, errBadf)
			case fd.Base&rightPoll == 0:
				put(s, errNotcapable)
			case fd.Stream == 0:
				le.PutUint16(put(s, success)[24:], hangup)
			default:
				le.PutUint64(put(s, success)[16:], writable)
			}
		default:
			return errInval
		}
	}
	if ready == 0 {
		time.Sleep(time.Duration(earliest) - time.Since(start))
		for s := subs; len(s) > 0; s = s[subscriptionSize:] {
			if wait, _ := subscribedWait(s, monotonic, realtime); wait <= earliest {
				put(s, success)
			}
		}
	}
	le.PutUint32(count, ready)
	return success
}

// subscribedWait returns how long a clock subscription has to wait, in
// nanoseconds.
func subscribedWait(s []byte, monotonic, realtime int64) (int64, errno) {
	now := monotonic
	switch le.Uint32(s[16:]) {
	case clockRealtime:
		now = realtime
	case clockMonotonic:
	case clockProcess, clockThread:
		return 0, errNotsup
	default:
		return 0, errInval
	}
	timeout := int64(min(le.Uint64(s[24:]), math.MaxInt64))
	if le.Uint16(s[40:])&clockAbsolute != 0 {
		timeout -= now // cannot overflow: neither is negative
	}
	return timeout, success
}
