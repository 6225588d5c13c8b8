package runner

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_ARM

var (
	allowedHere = []uint32{unix.SYS_EPOLL_WAIT, unix.SYS_FUTEX_TIME64, unix.SYS_CLOCK_GETTIME64, unix.SYS_CLOCK_NANOSLEEP_TIME64}
	mapCalls    = []uint32{unix.SYS_MMAP2, unix.SYS_MPROTECT}
	fcntlCalls  = []uint32{unix.SYS_FCNTL, unix.SYS_FCNTL64}
)
