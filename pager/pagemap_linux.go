package pager

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// PAGEMAP_SCAN, from Documentation/admin-guide/mm/pagemap.rst.
const (
	ioctlPagemapScan = 0xc0606610

	pageIsWritten = 1 << 1
	pageIsPresent = 1 << 3

	pmScanWPMatching   = 1 << 0
	pmScanCheckWPAsync = 1 << 1
)

type pmScanArg struct {
	size, flags, start, end, walkEnd, vec, vecLen, maxPages uint64
	inverted, mask, anyOf, returned                         uint64
}

// An addrRun is a struct page_region: addresses from start to before end.
type addrRun struct{ start, end, categories uint64 }

// scanBuffers keeps what the kernel writes to on the heap, where it does not
// move: its address is inside a structure, hidden from the compiler.
var scanBuffers = sync.Pool{New: func() any { return new([512]addrRun) }}

// scanWritten appends the parts of start to end that were written since they
// were last protected, and protects them again, in one step for each page so
// that no write falls between. pagemap is /proc/PID/pagemap of the process
// whose addresses these are.
//
// Mask and return mask are both exactly PAGE_IS_WRITTEN on purpose. Then the
// kernel takes every page that is not marked as protected, also one that has
// no page-table entry any more because it was reclaimed after it was written;
// asking for swapped or present pages as well would leave those out.
func scanWritten(pagemap *os.File, start, end uint64, runs []addrRun) ([]addrRun, error) {
	return scanPages(pagemap, start, end, pmScanWPMatching|pmScanCheckWPAsync, pageIsWritten, runs)
}

// scanPresent appends the parts of start to end that have a page-table entry.
func scanPresent(pagemap *os.File, start, end uint64, runs []addrRun) ([]addrRun, error) {
	return scanPages(pagemap, start, end, 0, pageIsPresent, runs)
}

func scanPages(pagemap *os.File, start, end, flags, mask uint64, runs []addrRun) ([]addrRun, error) {
	buf := scanBuffers.Get().(*[512]addrRun)
	defer scanBuffers.Put(buf)
	for start < end {
		arg := pmScanArg{
			flags: flags,
			start: start, end: end,
			vec: uint64(uintptr(unsafe.Pointer(&buf[0]))), vecLen: uint64(len(buf)),
			mask: mask, returned: mask,
		}
		arg.size = uint64(unsafe.Sizeof(arg))
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, pagemap.Fd(), ioctlPagemapScan, uintptr(unsafe.Pointer(&arg)))
		runtime.KeepAlive(buf)
		switch {
		case errno == unix.EINTR && arg.walkEnd <= start:
			continue
		case errno == unix.ESRCH:
			return runs, ErrRunnerGone
		case errno != 0 && errno != unix.EINTR:
			return runs, fmt.Errorf("scan pages %#x to %#x: %w", start, end, errno)
		}
		runs = append(runs, buf[:n]...)
		// The walk may stop early: at a full buffer or at a signal.
		if arg.walkEnd <= start || arg.walkEnd > end {
			return runs, errors.New("scan pages: the kernel made no progress")
		}
		start = arg.walkEnd
	}
	return runs, nil
}
