package pager

import (
	"errors"
	"fmt"
	"os"
)

// kernelTracker is what finding writes through the kernel needs: write
// protection that the kernel lifts by itself at the first write
// (UFFD_FEATURE_WP_ASYNC), and PAGEMAP_SCAN to read and renew it.
type kernelTracker struct {
	pagemap *os.File
	addrs   []addrRun
}

func (t *Tracker) startKernel() error {
	r := t.cfg.Region
	if r.UFFD < 0 || r.PID <= 0 {
		return fmt.Errorf("no userfaultfd or no process: %w", ErrUnsupported)
	}
	if t.cfg.Size%int64(os.Getpagesize()) != 0 {
		return fmt.Errorf("memory of %d bytes is not whole kernel pages", t.cfg.Size)
	}
	if t.pages == 0 {
		return fmt.Errorf("no memory to watch: %w", ErrUnsupported)
	}
	pagemap, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", r.PID))
	if err != nil {
		return err
	}
	t.kernel.pagemap = pagemap
	if err := t.growKernel(0); err != nil {
		_ = t.stopKernel()
		return err
	}
	// The first scan shows whether the kernel can: it fails with EPERM where
	// the protection is of the other kind, and ENOTTY where it is unknown.
	if _, err := t.scanKernel(nil); err != nil {
		_ = t.stopKernel()
		return err
	}
	return nil
}

// growKernel protects the pages from old on.
func (t *Tracker) growKernel(old int) error {
	if t.pages == old {
		return nil
	}
	u := uffd(t.cfg.Region.UFFD)
	start, length := t.cfg.Region.Base+uint64(old)*PageSize, uint64(t.pages-old)*PageSize
	if err := u.register(start, length, uffdRegisterWP); err != nil {
		return err
	}
	// This marks pages without a page-table entry too, so that a scan finds
	// the first write to those.
	return u.writeprotect(start, length, true)
}

func (t *Tracker) scanKernel(runs []Run) ([]Run, error) { return t.scanWith(scanWritten, runs) }

func (t *Tracker) scanWith(scan func(*os.File, uint64, uint64, []addrRun) ([]addrRun, error), runs []Run) ([]Run, error) {
	base := t.cfg.Region.Base
	var err error
	t.kernel.addrs, err = scan(t.kernel.pagemap, base, base+uint64(t.pages)*PageSize, t.kernel.addrs[:0])
	if err != nil {
		return runs, err
	}
	for _, a := range t.kernel.addrs {
		if a.start < base || a.end <= a.start || a.end > base+uint64(t.pages)*PageSize {
			return runs, errors.New("the kernel listed pages outside the memory")
		}
		runs = appendRun(runs, Run{PageNum((a.start - base) / PageSize), uint32((a.end - a.start) / PageSize)})
	}
	return runs, nil
}

// presentKernel appends the pages that the worker has touched since its
// page-table entries were dropped. That there are no others among them rests
// on the registration for write protection: without it a fault on one page of
// a file maps those around it as well (fault-around).
func (t *Tracker) presentKernel(runs []Run) ([]Run, error) { return t.scanWith(scanPresent, runs) }

func (t *Tracker) stopKernel() error {
	err := uffd(t.cfg.Region.UFFD).unregister(t.cfg.Region.Base, uint64(t.pages)*PageSize)
	if cerr := t.kernel.pagemap.Close(); err == nil {
		err = cerr
	}
	t.kernel.pagemap = nil
	if errors.Is(err, ErrRunnerGone) {
		return nil // nothing left to watch
	}
	return err
}
