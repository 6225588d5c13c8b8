package runner

import "syscall"

// childAttr: the child dies with the thread that forked it, and is in a process
// group of its own, so that a Ctrl-C on the node's terminal reaches the node
// alone, which then decides.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
