package control

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
)

// tryLock reports whether f could be locked for this process (LockFileEx).
func tryLock(f *os.File) (bool, error) {
	err := windows.LockFileEx(windows.Handle(f.Fd()),
		windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, new(windows.Overlapped))
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
		return false, nil
	}
	return err == nil, err
}

// restrictSocket has nothing to do: the directory's access list decides.
func restrictSocket(uintptr) {}
