package mesh

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// maxFile bounds the key and certificate files, in bytes.
const maxFile = 64 << 10

// writeFile puts b at path so that a crash leaves the old file or the new one,
// never half of it: a temporary file beside it, synced, then moved into place,
// then the directory synced. With exclusive set, an existing file is left
// alone and the error wraps os.ErrExist: a link, unlike a rename, never
// replaces.
func writeFile(path string, b []byte, mode os.FileMode, exclusive bool) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".tmp*")
	if err != nil {
		return err
	}
	tmp := f.Name()
	defer os.Remove(tmp) // gone already when the rename succeeded
	if err := f.Chmod(mode); err != nil && !errors.Is(err, errors.ErrUnsupported) && !chmodMayFail {
		f.Close()
		return err
	}
	if _, err := f.Write(b); err != nil {
		f.Close()
		return err
	}
	if err := f.Sync(); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if exclusive {
		if err := moveNew(tmp, path); err != nil {
			return err
		}
	} else if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return SyncDir(dir)
}

// moveNew moves tmp to path unless something is there.
func moveNew(tmp, path string) error {
	err := os.Link(tmp, path)
	if err == nil || errors.Is(err, os.ErrExist) {
		return err
	}
	// A file system without hard links (FAT on a device's card). Claim the
	// name first: O_EXCL is atomic where link is not to be had.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		os.Remove(path) // our own empty claim
		return err
	}
	return nil
}

// readPrivate reads a file that nobody else may read.
func readPrivate(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if err := checkPrivate(path, info); err != nil {
		return nil, err
	}
	return readAll(f, path)
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAll(f, path)
}

func readAll(f *os.File, path string) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("%s: %w: more than %d bytes", path, ErrTooLarge, maxFile)
	}
	return b, nil
}

// makeDir makes the directory that will hold private keys.
func makeDir(dir string) error { return os.MkdirAll(dir, 0o700) }
