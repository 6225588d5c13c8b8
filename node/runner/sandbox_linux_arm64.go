package runner

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_AARCH64

var (
	allowedHere []uint32
	mapCalls    = []uint32{unix.SYS_MMAP, unix.SYS_MPROTECT}
	fcntlCalls  = []uint32{unix.SYS_FCNTL}
)
