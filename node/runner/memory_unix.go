//go:build unix

package runner

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// A memory is what a worker's linear memory is kept in: a file without a name
// that both processes map, as large as the worker may ever grow. Its size never
// changes, so that no access can run off its end.
type memory struct {
	file *os.File
	data []byte
}

func newMemory(limit uint64) (*memory, error) {
	f, err := memoryFile(limit)
	if err != nil {
		return nil, fmt.Errorf("make worker memory: %w", err)
	}
	data, err := mapMemory(int(f.Fd()), limit)
	if err != nil {
		f.Close()
		return nil, err
	}
	return &memory{file: f, data: data}, nil
}

// mapMemory maps all of a memory, shared.
func mapMemory(fd int, limit uint64) ([]byte, error) {
	data, err := unix.Mmap(fd, 0, int(limit), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes of worker memory: %w", limit, err)
	}
	if err := adviseMemory(data); err != nil {
		unix.Munmap(data)
		return nil, err
	}
	return data, nil
}

func (m *memory) close() error {
	err := unix.Munmap(m.data)
	m.data = nil
	if cerr := m.file.Close(); err == nil {
		err = cerr
	}
	return err
}
