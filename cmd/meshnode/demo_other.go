//go:build !linux

package main

import "syscall"

// daemonAttr has nothing to ask for: only Linux lets a process die with the
// one that started it.
func daemonAttr() *syscall.SysProcAttr { return nil }
