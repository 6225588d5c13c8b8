//go:build unix && !linux

package runner

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// watchParent ends the process when the node's end of the socket closes, also
// in the middle of an event: nothing else here tells that the node has died.
func watchParent(fd int) {
	go func() {
		for {
			p := []unix.PollFd{{Fd: int32(fd)}}
			_, err := unix.Poll(p, -1)
			if err == unix.EINTR {
				continue
			}
			os.Exit(2)
		}
	}()
}

// lockDown has nothing to restrict system calls with here.
func lockDown() error { return errors.New("not supported on this operating system") }

// closeInherited leaves it to close-on-exec, which all of Go's descriptors have.
func closeInherited() {}
