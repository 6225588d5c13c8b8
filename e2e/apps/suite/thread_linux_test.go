package suite

import (
	"time"

	"golang.org/x/sys/unix"
)

// threadClock returns a clock that reads the processor time of the thread that
// calls threadClock; any thread may read it. See clock_getcpuclockid(3): the
// kernel names a thread's clock by the complement of its id.
func threadClock() func() time.Duration {
	id := int32(^unix.Gettid()<<3 | 6)
	return func() time.Duration {
		var t unix.Timespec
		if err := unix.ClockGettime(id, &t); err != nil {
			panic(err)
		}
		return time.Duration(t.Nano())
	}
}
