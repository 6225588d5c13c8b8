//go:build unix && !linux

package runner

import (
	"os"
	"syscall"
)

// childAttr puts the child in a process group of its own, so that a Ctrl-C on
// the node's terminal reaches the node alone, which then decides. The child ends
// when the node's end of the socket closes.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}

func ownBinary() (string, error) { return os.Executable() }
