package wasi

import (
	"math"
	"time"
)

// A Clock is a worker's monotonic clock. It counts only time the worker lives
// somewhere: what it reads when the worker leaves one node is what it goes on
// from on the next, so that it never runs backwards and no node's own clock
// matters. Not safe for concurrent use.
type Clock struct {
	base  int64
	since time.Time
}

// NewClock makes a clock that reads base nanoseconds now.
func NewClock(base int64) *Clock {
	c := new(Clock)
	c.Set(base)
	return c
}

// Now returns the clock's reading in nanoseconds.
func (c *Clock) Now() int64 {
	d := int64(time.Since(c.since))
	if c.base > math.MaxInt64-d {
		return math.MaxInt64
	}
	return c.base + d
}

// Set makes the clock read base nanoseconds now.
func (c *Clock) Set(base int64) {
	c.base = max(0, base)
	c.since = time.Now()
}

// Clock ids (typenames.witx, "clockid").
const (
	clockRealtime  = 0
	clockMonotonic = 1
	clockProcess   = 2
	clockThread    = 3
)

func (h *Host) clockResGet(mem memory, stack []uint64) errno {
	var resolution uint64
	switch uint32(stack[0]) {
	case clockRealtime:
		resolution = 1000
	case clockMonotonic:
		resolution = 1
	case clockProcess, clockThread:
		if h.streams == nil {
			return errNotsup
		}
		resolution = 1
	default:
		return errInval
	}
	out, ok := mem.view(uint32(stack[1]), 8)
	if !ok {
		return errFault
	}
	le.PutUint64(out, resolution)
	return success
}

func (h *Host) clockTimeGet(mem memory, stack []uint64) errno {
	out, ok := mem.view(uint32(stack[2]), 8)
	if !ok {
		return errFault
	}
	now, e := h.now(uint32(stack[0]))
	if e == success {
		le.PutUint64(out, uint64(now))
	}
	return e
}

// now reads a clock, in nanoseconds.
func (h *Host) now(id uint32) (int64, errno) {
	switch id {
	case clockRealtime:
		return max(0, time.Now().UnixNano()), success
	case clockMonotonic:
		return h.clock.Now(), success
	case clockProcess, clockThread:
		if h.streams == nil {
			return 0, errNotsup // an event worker does not know when it idles
		}
		// Not the processor's count, which would not travel: the time the
		// worker lived and did not wait.
		return max(0, h.clock.Now()-h.waited), success
	}
	return 0, errInval
}
