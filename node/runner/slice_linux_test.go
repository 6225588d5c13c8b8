package runner

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// All of the node's and of its runners' threads have short time slices, but the
// one that a program runs on, also when it was halted and others were started
// meanwhile.
func TestSlices(t *testing.T) {
	own, err := unix.SchedGetAttr(0, 0)
	if err != nil || own.Policy != unix.SCHED_NORMAL || own.Runtime == 0 {
		t.Skipf("threads have no time slices here: %+v, %v", own, err)
	}
	slices := func(pid int) map[time.Duration]int {
		t.Helper()
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			t.Fatal(err)
		}
		got := map[time.Duration]int{}
		for _, task := range tasks {
			tid, err := strconv.Atoi(task.Name())
			if err != nil {
				t.Fatal(err)
			}
			if attr, err := unix.SchedGetAttr(tid, 0); err == nil { // else it has ended
				got[time.Duration(attr.Runtime)]++
			}
		}
		return got
	}

	s := newSession(t, command(t, "bytecode", "2000000000"))
	for range 3 {
		if err := s.r.Halt(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.r.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := slices(s.r.Region().PID); len(got) != 2 || got[programSlice] != 1 || got[promptSlice] == 0 {
		t.Errorf("a command's threads have slices %v, want one of %v and else %v", got, programSlice, promptSlice)
	}

	e := live(t, Config{})
	if _, err := e.Call(t.Context(), Event{Kind: Call, ID: doEcho}); err != nil {
		t.Fatal(err)
	}
	if got := slices(e.Region().PID); len(got) != 1 || got[promptSlice] == 0 {
		t.Errorf("an event worker's threads have slices %v, want %v", got, promptSlice)
	}
	if got := slices(os.Getpid()); got[promptSlice] == 0 {
		t.Errorf("this process's threads have slices %v, want %v", got, promptSlice)
	}
}
