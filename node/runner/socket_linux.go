package runner

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// sendFlags keep a write to a dead runner from raising SIGPIPE.
const sendFlags = unix.MSG_NOSIGNAL

func sendBytes(fd int, b []byte) (int, error) {
	return unix.SendmsgN(fd, b, nil, nil, sendFlags)
}

func recvmsgCloexec(fd int, p, oob []byte) (n, oobn, flags int, from unix.Sockaddr, err error) {
	return unix.Recvmsg(fd, p, oob, unix.MSG_CMSG_CLOEXEC)
}

// socketPair returns the node's end as a descriptor that blocks, and the
// runner's as a file to inherit.
func socketPair() (ours int, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, nil, fmt.Errorf("socketpair: %w", err)
	}
	return fds[0], os.NewFile(uintptr(fds[1]), "runner"), nil
}
