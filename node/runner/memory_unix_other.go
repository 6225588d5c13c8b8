//go:build unix && !linux

package runner

import (
	"os"

	"golang.org/x/sys/unix"
)

// memoryFile makes a temporary file without a name: these systems have no
// memory file that can be both passed to a child and mapped by it.
func memoryFile(size uint64) (*os.File, error) {
	f, err := os.CreateTemp("", "meshnode-worker-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	if err := f.Truncate(int64(size)); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func adviseMemory([]byte) error { return nil }

// dropMemory empties the file by cutting it to nothing and stretching it again.
// Nobody touches the mapping meanwhile: the worker has not begun, and the node
// waits for the answer.
func dropMemory(fd int, data []byte) error {
	if err := unix.Ftruncate(fd, 0); err != nil {
		return err
	}
	return unix.Ftruncate(fd, int64(len(data)))
}

// canForget is false: elsewhere madvise may drop the data as well.
const canForget = false

func forget([]byte) error { return ErrUnsupported }
