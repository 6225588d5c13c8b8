package runner

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// watchParent has nothing to do: the kernel ends the process when the node's
// thread that forked it ends (PR_SET_PDEATHSIG), even while it waits for a page.
func watchParent(int) {}

// closeInherited closes descriptors that whoever started the node left open in
// it: they are the node's to have, not the worker's.
func closeInherited() {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return // no /proc: the node's own descriptors are closed on exec
	}
	for _, entry := range fds {
		fd, err := strconv.Atoi(entry.Name())
		if err != nil || fd <= childBell {
			continue
		}
		to, err := os.Readlink("/proc/self/fd/" + entry.Name())
		if err != nil || strings.HasPrefix(to, "anon_inode:[event") {
			continue // the list itself, which is closed again, or Go's poller
		}
		_ = unix.Close(fd)
	}
}

// lockDown takes from the process whatever running a worker does not need: no
// new files, sockets, processes or executable memory, no more privilege. It
// comes after compilation, which needs files and executable memory, and before
// the first instruction of the worker.
//
// The system calls allowed are those that Go's runtime makes and those of this
// package; any other fails with EPERM, in every thread.
func lockDown() error {
	for _, l := range []struct {
		resource int
		max      uint64
	}{
		{unix.RLIMIT_CORE, 0},
		{unix.RLIMIT_NOFILE, 32},
		{unix.RLIMIT_MEMLOCK, 0},
		{unix.RLIMIT_MSGQUEUE, 0},
		// Not RLIMIT_NPROC: it counts all of the user's threads, and a Go
		// process that cannot make one ends.
	} {
		lim := unix.Rlimit{Cur: l.max, Max: l.max}
		if err := unix.Setrlimit(l.resource, &lim); err != nil {
			return fmt.Errorf("set resource limit %d: %w", l.resource, err)
		}
	}
	filter, err := seccompFilter(os.Getpid())
	if err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	// TSYNC puts all threads under the filter, and under no_new_privs.
	tid, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	if tid != 0 {
		return fmt.Errorf("seccomp: thread %d is under another filter", tid)
	}
	return nil
}

// Offsets in struct seccomp_data (linux/seccomp.h), in bytes. Arguments are 64
// bits; the architectures here are little-endian, so that the low half is first.
const (
	seccompNr   = 0
	seccompArch = 4
	seccompArgs = 16
)

// allowed are system calls without conditions; each architecture adds its own.
var allowed = []uint32{
	unix.SYS_READ, unix.SYS_WRITE, unix.SYS_CLOSE, unix.SYS_SENDMSG, unix.SYS_RECVMSG, // the node
	unix.SYS_FALLOCATE, // Clear
	unix.SYS_FUTEX, unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_GETTID, unix.SYS_GETPID,
	unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_CLOCK_GETTIME, unix.SYS_RESTART_SYSCALL,
	unix.SYS_MUNMAP, unix.SYS_MADVISE, unix.SYS_MINCORE, unix.SYS_BRK,
	unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK,
	unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_EPOLL_PWAIT2, unix.SYS_EVENTFD2,
	unix.SYS_SET_ROBUST_LIST, unix.SYS_RSEQ, // threads as the C library makes them
	unix.SYS_GETRANDOM, unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
}

// seccompFilter builds the filter for process pid.
func seccompFilter(pid int) ([]unix.SockFilter, error) {
	if auditArch == 0 {
		return nil, errors.New("seccomp: no filter for this architecture")
	}
	const (
		load  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		some  = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
		mask  = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
		ret   = unix.BPF_RET | unix.BPF_K

		allow = unix.SECCOMP_RET_ALLOW
		deny  = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	)
	f := []unix.SockFilter{
		{Code: load, K: seccompArch},
		{Code: equal, K: auditArch, Jt: 1},
		{Code: ret, K: unix.SECCOMP_RET_KILL_PROCESS},
		{Code: load, K: seccompNr},
	}
	for _, nr := range append(allowed, allowedHere...) {
		f = append(f,
			unix.SockFilter{Code: equal, K: nr, Jf: 1},
			unix.SockFilter{Code: ret, K: allow})
	}
	// when adds a condition on the low half of one argument of one system call:
	// test is a jump whose true branch allows.
	when := func(nr uint32, arg uint32, test ...unix.SockFilter) {
		f = append(f, unix.SockFilter{Code: equal, K: nr, Jf: uint8(len(test) + 3)})
		f = append(f, unix.SockFilter{Code: load, K: seccompArgs + 8*arg})
		f = append(f, test...)
		f = append(f,
			unix.SockFilter{Code: ret, K: deny},
			unix.SockFilter{Code: ret, K: allow})
	}
	// Threads only, as Go makes them.
	const thread = unix.CLONE_VM | unix.CLONE_THREAD
	when(unix.SYS_CLONE, 0,
		unix.SockFilter{Code: mask, K: thread},
		unix.SockFilter{Code: equal, K: thread, Jt: 1})
	// Its flags are out of a filter's sight, in memory; the C library then falls
	// back to clone, but only if the call does not seem to exist.
	f = append(f,
		unix.SockFilter{Code: equal, K: unix.SYS_CLONE3, Jf: 1},
		unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)})
	// No executable memory.
	for _, nr := range mapCalls {
		when(nr, 2,
			unix.SockFilter{Code: some, K: unix.PROT_EXEC, Jf: 1})
	}
	// Signals to itself, with which Go ends a broken process.
	when(unix.SYS_TGKILL, 0, unix.SockFilter{Code: equal, K: uint32(pid), Jt: 1})
	when(unix.SYS_KILL, 0, unix.SockFilter{Code: equal, K: uint32(pid), Jt: 1})
	// Names for memory areas.
	when(unix.SYS_PRCTL, 0, unix.SockFilter{Code: equal, K: unix.PR_SET_VMA, Jt: 1})
	// Questions about a descriptor's flags.
	for _, nr := range fcntlCalls {
		when(nr, 1, unix.SockFilter{Code: equal, K: unix.F_GETFL, Jt: 1})
	}
	return append(f, unix.SockFilter{Code: ret, K: deny}), nil
}
