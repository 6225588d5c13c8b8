package runner

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// schedIdle is SCHED_IDLE of sched(7).
const schedIdle = 5

// background has a process run only when a processor has nothing else to do. A
// nice value alone would not: it bounds the share of the processors, but a
// process that wakes up waits for the end of a time slice even if it is a nicer
// one's, some milliseconds each time, and an event wakes several. Threads that
// the process starts later take after those that it has.
func background(pid int) error {
	for again := true; again; { // until it has started no thread meanwhile
		again = false
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			return err
		}
		for _, t := range tasks {
			tid, err := strconv.Atoi(t.Name())
			if err != nil {
				return err
			}
			if attr, err := unix.SchedGetAttr(tid, 0); err != nil || attr.Policy == schedIdle {
				continue // done, or it has ended
			}
			if err := unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: schedIdle}, 0); err != nil {
				return fmt.Errorf("have thread %d give way: %w", tid, err)
			}
			again = true
		}
	}
	return nil
}
