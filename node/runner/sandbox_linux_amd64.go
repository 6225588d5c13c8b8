package runner

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_X86_64

var (
	// The x32 interface shares the architecture's number; its calls have numbers
	// of their own and are none of these.
	allowedHere = []uint32{unix.SYS_EPOLL_WAIT, unix.SYS_ARCH_PRCTL}
	mapCalls    = []uint32{unix.SYS_MMAP, unix.SYS_MPROTECT}
	fcntlCalls  = []uint32{unix.SYS_FCNTL}
)
