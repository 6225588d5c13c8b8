package runner

import "syscall"

// childAttr: the child dies with the thread that forked it, and is in a process
// group of its own, so that a Ctrl-C on the node's terminal reaches the node
// alone, which then decides.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// ownBinary is the binary that runs, also when its file has been replaced by
// another version, which would speak to us differently.
func ownBinary() (string, error) { return "/proc/self/exe", nil }
