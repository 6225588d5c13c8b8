//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package pager

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// lockWhole locks a file until it is closed or the process ends (flock(2)).
func lockWhole(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EWOULDBLOCK):
			return errLocked
		}
		return err
	}
}
