//go:build unix

package control

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// tryLock reports whether f could be locked for this process (flock(2)).
func tryLock(f *os.File) (bool, error) {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

// restrictSocket takes everyone else's rights from a socket about to be bound.
// Only Linux heeds it; what it says on other systems does not matter.
func restrictSocket(fd uintptr) { _ = unix.Fchmod(int(fd), 0o600) }
