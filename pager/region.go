package pager

import (
	"errors"
	"fmt"
	"os"
)

// A Region is the memory of a worker, as the node sees it. The worker runs in
// another process, the runner, and both map the same memory file. The Region
// owns nothing: whoever made it closes and unmaps it, after every Sink,
// Source and Tracker over it has ended.
//
// While a Sink has the memory armed, nobody may read or write Data beyond the
// pages that are in place: a look at a hole of a memory file fills the hole
// with zeroes, and the runner would read those instead of faulting.
type Region struct {
	// Data is the node's shared mapping of the whole reservation.
	Data []byte
	// PID is the runner's process, 0 if there is none.
	PID int
	// Base is the address of the mapping in the runner. It is page aligned.
	Base uint64
	// UFFD is the runner's userfaultfd as passed to the node, -1 if there is
	// none. Requests on it act on the runner's addresses. It must be
	// non-blocking, as OpenUserfault makes it.
	UFFD int
	// File is the memory file, if there is one. With it holes are found and
	// never read, which would fill them, and pages come and go without being in
	// the node's page table.
	File *os.File
}

func (r Region) validate(size int64) error {
	switch {
	case size < 0 || size > MaxPages*PageSize:
		return fmt.Errorf("memory of %d bytes: want 0 to %d", size, int64(MaxPages)*PageSize)
	case size%PageSize != 0:
		return fmt.Errorf("memory of %d bytes is not whole pages of %d", size, PageSize)
	case int64(len(r.Data)) < size:
		return fmt.Errorf("memory of %d bytes in a mapping of %d", size, len(r.Data))
	case r.UFFD >= 0 && r.Base%uint64(os.Getpagesize()) != 0:
		return fmt.Errorf("mapping at %#x is not page aligned", r.Base)
	}
	return nil
}

// write puts pages in place, from page p on, and read copies them from there: by
// the file, since to drop a page that the node has mapped takes an interrupt of
// every processor that one of its threads runs on, 20 to 60 µs instead of 2.
func (r Region) write(p PageNum, pages []byte) error {
	if r.File == nil {
		copy(r.Data[int(p)*PageSize:], pages)
		return nil
	}
	if _, err := r.File.WriteAt(pages, int64(p)*PageSize); err != nil {
		return fmt.Errorf("put page %d in place: %w", p, err)
	}
	return nil
}

func (r Region) read(p PageNum, pages []byte) error {
	if r.File == nil {
		copy(pages, r.Data[int(p)*PageSize:])
		return nil
	}
	if _, err := r.File.ReadAt(pages, int64(p)*PageSize); err != nil {
		return fmt.Errorf("read page %d: %w", p, err)
	}
	return nil
}

// drop makes pages zero, and holes where the memory is a file that can have some.
func (r Region) drop(run Run) error {
	if r.File != nil {
		if err := punch(r.File, run); !errors.Is(err, ErrUnsupported) {
			return err
		}
	}
	clear(r.Data[int(run.First)*PageSize : int(run.end())*PageSize])
	return nil
}

// ErrUnsupported means that the kernel or platform lacks what was asked for.
var ErrUnsupported = errors.New("not supported on this host")

// ErrRunnerGone means that the process whose memory was to be served or
// tracked has ended.
var ErrRunnerGone = errors.New("runner gone")

// Support says what the kernel lets this process do, found by trying it.
type Support struct {
	// Missing: faults on absent pages of a memory file can be served from
	// user space, so a worker can run before its memory has arrived.
	Missing bool
	// Minor: faults on present but unmapped pages can be served.
	Minor bool
	// WriteAsync: writes are recorded by the kernel without a message.
	WriteAsync bool
	// PagemapScan: what was written can be asked for and protected again in
	// one call.
	PagemapScan bool
	// Reason says why Missing is false, empty otherwise.
	Reason string
}

// Tracking reports whether a Tracker finds writes through the kernel.
func (s Support) Tracking() bool { return s.WriteAsync && s.PagemapScan }
