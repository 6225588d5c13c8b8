//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd || windows)

package pager

import "os"

// lockWhole does nothing on systems without a lock that ends with its process:
// one that had to be removed by hand after a crash would cost more than it
// saves, since a page that two processes wrote over is found out when it is
// read.
func lockWhole(*os.File) error { return nil }
