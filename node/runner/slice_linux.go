package runner

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Of the threads that have not had their share Linux takes the one whose time
// slice ends first, and whether the running one's has ended it looks at its tick,
// each 4 ms with HZ=250. So a thread that wakes up where a program computes waits
// for a tick, unless it has asked for a shorter slice than the program's (Linux
// 6.12; PREEMPT_SHORT in kernel/sched/features.h): then it runs at once. Nobody
// gets more of the processor by that, only sooner.
const (
	// promptSlice is for all of the node's threads and of its runners' but those
	// that run a program. It is the kernel's least.
	promptSlice = 100 * time.Microsecond
	// programSlice is what the kernel gives each thread on a machine with many
	// processors; with few it is less by itself, 0.7 ms with one.
	programSlice = 3 * time.Millisecond
)

// beginPrompt gives the process's threads short time slices, and with that those
// that they start, in other processes too. Where there are none to be had it
// changes nothing.
func beginPrompt() {
	for range 2 { // a thread may have been started by one that had no short slice yet
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return
		}
		for _, t := range tasks {
			if tid, err := strconv.Atoi(t.Name()); err == nil {
				_ = setSlice(tid, promptSlice)
			}
		}
	}
}

// ownThread gives the calling goroutine a thread for itself, to run a program on.
func ownThread() {
	// The thread that starts others instead of this one, whose slice they would
	// have, is made here.
	runtime.LockOSThread()
	_ = setSlice(0, programSlice)
}

// setSlice sets the time slice of a thread, 0 for the calling one, and leaves its
// policy and its nice value alone. It needs no privilege. Kernels before 6.12
// take it and do nothing.
func setSlice(tid int, d time.Duration) error {
	attr, err := unix.SchedGetAttr(tid, 0)
	if err != nil {
		return fmt.Errorf("look at thread %d's scheduling: %w", tid, err)
	}
	if attr.Policy != unix.SCHED_NORMAL && attr.Policy != unix.SCHED_BATCH {
		return nil // not shared out by slices
	}
	// Whoever started this process may be changing the policy: see background.
	attr.Flags |= unix.SCHED_FLAG_KEEP_POLICY
	attr.Runtime = uint64(d)
	if err := unix.SchedSetAttr(tid, attr, 0); err != nil {
		return fmt.Errorf("set thread %d's time slice: %w", tid, err)
	}
	return nil
}
