package pager

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ZeroRuns lists the pages below size of a memory file that were never
// written, which are zero. It asks the file system (SEEK_DATA and SEEK_HOLE,
// lseek(2)) and reads nothing: reading a hole of a memory file through a
// mapping would fill it. Pages that are zero though once written are not
// among them. The file must not be written meanwhile.
func ZeroRuns(file *os.File, size int64) ([]Run, error) {
	if size < 0 || size > MaxPages*PageSize {
		return nil, fmt.Errorf("find holes in %d bytes: at most %d", size, int64(MaxPages)*PageSize)
	}
	if size == 0 {
		return nil, nil
	}
	return ZeroRunsWithin(file, []Run{{0, uint32((size + PageSize - 1) / PageSize)}})
}

// ZeroRunsWithin is ZeroRuns for parts of a memory file: runs in order and
// apart. A file that is only ever written gets no new holes, so those found
// earlier are all that have to be looked at again.
func ZeroRunsWithin(file *os.File, within []Run) ([]Run, error) {
	if err := checkRuns(within, MaxPages); err != nil {
		return nil, fmt.Errorf("find holes: %w", err)
	}
	var runs []Run
	err := control(file, func(fd int) error {
		for _, part := range within {
			var err error
			if runs, err = appendHoles(runs, fd, part); err != nil {
				return err
			}
		}
		return nil
	})
	return runs, err
}

func appendHoles(runs []Run, fd int, part Run) ([]Run, error) {
	// The offset of the descriptor moves, and it is shared with every
	// duplicate. Nobody reads or writes a memory file by offset.
	end := int64(part.end()) * PageSize
	for at := int64(part.First) * PageSize; at < end; {
		data, err := unix.Seek(fd, at, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO): // no more data
			data = end
		case err != nil:
			return nil, fmt.Errorf("find data after %d: %w", at, err)
		}
		data = min(data, end)
		// A page that is hole and data in parts counts as data.
		first, last := (at+PageSize-1)/PageSize, data/PageSize
		if last > first {
			runs = append(runs, Run{PageNum(first), uint32(last - first)})
		}
		if data == end {
			break
		}
		if at, err = unix.Seek(fd, data, unix.SEEK_HOLE); err != nil {
			return nil, fmt.Errorf("find a hole after %d: %w", data, err)
		}
	}
	return runs, nil
}

// punch makes a run of pages holes (fallocate(2)).
func punch(file *os.File, r Run) error {
	return control(file, func(fd int) error {
		return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(r.First)*PageSize, int64(r.Count)*PageSize)
	})
}

// control calls f with the descriptor of file, which stays as it is and open
// meanwhile.
func control(file *os.File, f func(fd int) error) error {
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := conn.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}
