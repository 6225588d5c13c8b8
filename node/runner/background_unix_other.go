//go:build unix && !linux

package runner

import "golang.org/x/sys/unix"

// background has a process, which leads a group of its own, give way to others.
func background(pid int) error { return unix.Setpriority(unix.PRIO_PGRP, pid, 15) }
