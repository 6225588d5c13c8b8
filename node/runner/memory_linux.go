package runner

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// memoryFile makes a memfd of the given size and seals the size: a worker that
// has taken over its process cannot shrink it under the node, which would then
// die of SIGBUS.
func memoryFile(size uint64) (*os.File, error) {
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("meshnode-worker", flags|unix.MFD_NOEXEC_SEAL)
	if err == unix.EINVAL { // before Linux 6.3
		fd, err = unix.MemfdCreate("meshnode-worker", flags)
	}
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "memfd:meshnode-worker")
	if err := f.Truncate(int64(size)); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		f.Close()
		return nil, fmt.Errorf("seal size: %w", err)
	}
	return f, nil
}

// adviseMemory keeps huge pages away, since installing one page would map 2 MiB
// of zeroes over pages that have yet to arrive, and keeps the mapping out of
// core dumps and of any process forked by mistake.
func adviseMemory(data []byte) error {
	// EINVAL: a kernel built without huge pages.
	if err := unix.Madvise(data, unix.MADV_NOHUGEPAGE); err != nil && err != unix.EINVAL {
		return fmt.Errorf("madvise: %w", err)
	}
	_ = unix.Madvise(data, unix.MADV_DONTDUMP)
	_ = unix.Madvise(data, unix.MADV_DONTFORK)
	return nil
}

const canForget = true

// forget drops page-table entries; the data stays in the file.
func forget(data []byte) error {
	if len(data) == 0 {
		return nil
	}
	if err := unix.Madvise(data, unix.MADV_DONTNEED); err != nil {
		return fmt.Errorf("madvise: %w", err)
	}
	return nil
}

// dropMemory frees all of a memory's content; every mapping of it reads zeroes.
func dropMemory(fd int, data []byte) error {
	if err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, int64(len(data))); err != nil {
		return fmt.Errorf("punch hole: %w", err)
	}
	// The hole takes the page table entries with it, but not page tables that
	// hold markers of userfaultfd's write protection.
	if err := unix.Madvise(data, unix.MADV_DONTNEED); err != nil {
		return fmt.Errorf("madvise: %w", err)
	}
	return nil
}
