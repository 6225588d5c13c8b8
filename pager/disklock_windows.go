package pager

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
)

// lockWhole locks a file until it is closed or the process ends (LockFileEx).
func lockWhole(f *os.File) error {
	err := windows.LockFileEx(windows.Handle(f.Fd()),
		windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, new(windows.Overlapped))
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
		return errLocked
	}
	return err
}
