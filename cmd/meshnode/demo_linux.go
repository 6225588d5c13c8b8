package main

import "syscall"

// daemonAttr lets a daemon die with the demo, and keeps the terminal's Ctrl-C
// from it: the demo ends it in order.
func daemonAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
