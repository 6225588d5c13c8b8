//go:build unix

package suite

import (
	"syscall"
	"time"
)

// cpuTime is the processor time this process has used: steadier than the clock
// where other work runs beside it.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
