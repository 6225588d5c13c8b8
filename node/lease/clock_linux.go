package lease

import (
	"time"

	"golang.org/x/sys/unix"
)

// Now is the clock of owners: it goes on while the machine is suspended
// (CLOCK_BOOTTIME), as the time of everyone else does. That a virtual machine was
// stopped by its host no clock in it tells.
func Now() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(err) // there since Linux 2.6.39
	}
	return time.Duration(t.Nano())
}
