package runner

import (
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// cpuTime returns the processor time that a process has taken: its CPU clock,
// whose number is made of the process's (clock_getcpuclockid(3)).
func cpuTime(pid int) (time.Duration, error) {
	const perProcess, scheduler = 0, 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|perProcess|scheduler), &ts); err != nil {
		return 0, err
	}
	return time.Duration(ts.Nano()), nil
}

func signalStop(p *os.Process, stop bool) error {
	if stop {
		return p.Signal(syscall.SIGSTOP)
	}
	return p.Signal(syscall.SIGCONT)
}
