package pager

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// mountTmpfs makes a small file system, which takes privileges.
func mountTmpfs(dir string, size int) error {
	return unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size))
}

func unmount(t *testing.T, dir string) {
	if err := unix.Unmount(dir, 0); err != nil {
		t.Error(err)
	}
}
