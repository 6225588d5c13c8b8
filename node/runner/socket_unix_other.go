//go:build unix && !linux

package runner

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const sendFlags = 0

// sendBytes relies on Go's handling of SIGPIPE, which ignores it for
// descriptors other than 1 and 2.
func sendBytes(fd int, b []byte) (int, error) { return unix.Write(fd, b) }

func recvmsgCloexec(fd int, p, oob []byte) (n, oobn, flags int, from unix.Sockaddr, err error) {
	return unix.Recvmsg(fd, p, oob, 0)
}

// socketPair returns the node's end as a descriptor that blocks, and the
// runner's as a file to inherit.
func socketPair() (ours int, theirs *os.File, err error) {
	// No SOCK_CLOEXEC here: keep forks out until it is set.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return -1, nil, fmt.Errorf("socketpair: %w", err)
	}
	unix.CloseOnExec(fds[0])
	unix.CloseOnExec(fds[1])
	return fds[0], os.NewFile(uintptr(fds[1]), "runner"), nil
}
