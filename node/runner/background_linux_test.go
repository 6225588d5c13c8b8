package runner

import (
	"fmt"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// TestBackground: a child in the background gives way with all of its threads.
func TestBackground(t *testing.T) {
	r := begin(t, Config{Background: true})
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", r.Region().PID))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if err != nil {
			t.Fatal(err)
		}
		if attr, err := unix.SchedGetAttr(tid, 0); err == nil && attr.Policy != schedIdle {
			t.Errorf("thread %d of %d has policy %d", tid, len(tasks), attr.Policy)
		}
	}
}
