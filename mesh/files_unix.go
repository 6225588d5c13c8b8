//go:build unix

package mesh

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

const chmodMayFail = false

// checkPrivate refuses a private key that others can read.
func checkPrivate(path string, info os.FileInfo) error {
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s: %w: not a regular file", path, ErrInsecureKey)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s: %w (mode %04o): if you trust everyone who could have read it, run chmod 600 %s; otherwise remove it, so that this node gets a new identity, and join again",
			path, ErrInsecureKey, info.Mode().Perm(), path)
	}
	return nil
}

// SyncDir makes a change of names in dir survive a crash, where the system can.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	// Some file systems have no such thing as syncing a directory.
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}
