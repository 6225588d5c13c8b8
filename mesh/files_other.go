//go:build !unix

package mesh

import "os"

// Where there are no Unix modes, access follows from the directory's own
// control list, which the user's profile keeps to the user.
const chmodMayFail = true

func checkPrivate(string, os.FileInfo) error { return nil }

// SyncDir does nothing: Windows can sync no directory, and NTFS journals names.
func SyncDir(string) error { return nil }
