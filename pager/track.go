package pager

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
)

// TrackerConfig says which memory to watch.
type TrackerConfig struct {
	// Region is the memory. Writes are found through the kernel if it has a
	// PID and a userfaultfd and the host supports it, else by comparing
	// hashes.
	Region Region
	// Size is the memory in use, in bytes, whole kernel pages.
	Size int64
	// Hashes asks for hashes even where the kernel could do it.
	Hashes bool
	// Log is never nil.
	Log *slog.Logger
}

// A Tracker finds the pages of a running worker that were written. It costs
// the worker nothing before Start; after it the first write to each page
// costs some microsecond. It is not safe for concurrent use, and does not run
// while a Sink has the same memory armed: both use the one userfaultfd, and
// each would undo the other's registration.
type Tracker struct {
	cfg     TrackerConfig
	pages   int
	started bool
	kernel  kernelTracker
	hashes  []Hash // of the last scan, if the kernel is not used
}

// NewTracker makes a Tracker. It starts nothing and changes nothing.
func NewTracker(cfg TrackerConfig) (*Tracker, error) {
	if cfg.Log == nil {
		return nil, errors.New("tracker: no log")
	}
	if err := cfg.Region.validate(cfg.Size); err != nil {
		return nil, fmt.Errorf("tracker: %w", err)
	}
	return &Tracker{cfg: cfg, pages: PagesOf(cfg.Size)}, nil
}

// Method says how writes are found: "pagemap-scan" or "hashes". It is known
// after Start.
func (t *Tracker) Method() string {
	if t.hashes != nil {
		return "hashes"
	}
	return "pagemap-scan"
}

// Start begins to watch: what is written from now on will be found. With
// hashes it reads all of the memory that is not a hole.
func (t *Tracker) Start() error {
	if t.started {
		return errors.New("tracker: started already")
	}
	if !t.cfg.Hashes {
		err := t.startKernel()
		if err == nil {
			t.started = true
			return nil
		}
		if errors.Is(err, ErrRunnerGone) {
			return fmt.Errorf("track writes: %w", err)
		}
		t.cfg.Log.Debug("writes are found by hashes", "why", err)
	}
	t.hashes = make([]Hash, t.pages)
	for i := range t.hashes {
		t.hashes[i] = ZeroHash
	}
	if _, err := t.scanHashes(nil); err != nil {
		t.hashes = nil
		return fmt.Errorf("track writes: %w", err)
	}
	t.started = true
	return nil
}

// Scan appends the pages written since the last Scan, or since Start, in order and
// apart. A page that is written while Scan runs is in this one or in the next.
func (t *Tracker) Scan(runs []Run) ([]Run, error) {
	if !t.started {
		return runs, errors.New("tracker: not started")
	}
	var err error
	if t.hashes != nil {
		runs, err = t.scanHashes(runs)
	} else {
		runs, err = t.scanKernel(runs)
	}
	if err != nil {
		return runs, fmt.Errorf("track writes: %w", err)
	}
	return runs, nil
}

// Touched appends the pages that have a page-table entry in the runner: those
// that it has read or written since it dropped all entries (madvise(2),
// MADV_DONTNEED: the data stays in the memory file). That is what the kernel
// knows at no cost, where sampling by faults served from user space takes 17 µs
// a page. It fails with ErrUnsupported where writes are found by hashes.
func (t *Tracker) Touched(runs []Run) ([]Run, error) {
	if !t.started || t.hashes != nil {
		return runs, ErrUnsupported
	}
	runs, err := t.presentKernel(runs)
	if err != nil {
		return runs, fmt.Errorf("find touched pages: %w", err)
	}
	return runs, nil
}

// Grow makes the memory one of size bytes, as memory.grow does. The pages
// that are new are zero, and watched like the others.
func (t *Tracker) Grow(size int64) error {
	if err := t.cfg.Region.validate(size); err != nil {
		return fmt.Errorf("tracker: %w", err)
	}
	if size < t.cfg.Size {
		return fmt.Errorf("tracker: memory of %d bytes cannot shrink to %d", t.cfg.Size, size)
	}
	oldSize, old := t.cfg.Size, t.pages
	t.cfg.Size, t.pages = size, PagesOf(size)
	if !t.started {
		return nil
	}
	if t.hashes != nil {
		for range t.pages - old {
			t.hashes = append(t.hashes, ZeroHash)
		}
		return nil
	}
	if err := t.growKernel(old); err != nil {
		t.cfg.Size, t.pages = oldSize, old
		return err
	}
	return nil
}

// dear reports whether a scan reads all of the memory. It is known after Start.
func (t *Tracker) dear() bool { return t.hashes != nil }

// Stop ends the watch; the worker's writes cost nothing again.
func (t *Tracker) Stop() error {
	if !t.started {
		return nil
	}
	t.started = false
	if t.hashes != nil {
		t.hashes = nil
		return nil
	}
	return t.stopKernel()
}

// scanHashes compares every page that is not a hole with its last hash. A
// page that the worker writes meanwhile is found by the next scan at the
// latest, since its hash will differ from the one taken here, unless it is
// written back to what it was.
func (t *Tracker) scanHashes(runs []Run) ([]Run, error) {
	var holes []Run
	if t.cfg.Region.File != nil {
		var err error
		// The worker may fill a hole meanwhile: the next scan finds it.
		if holes, err = ZeroRuns(t.cfg.Region.File, t.cfg.Size); err != nil {
			return runs, err
		}
	}
	var batch [hashBatch][]byte
	var got, names [hashBatch]Hash
	var at [hashBatch]int
	for first := 0; first < t.pages; first += hashBatch {
		count, n := min(hashBatch, t.pages-first), 0
		for i := range count {
			p := PageNum(first + i)
			for len(holes) > 0 && p >= holes[0].end() {
				holes = holes[1:]
			}
			names[i] = ZeroHash
			if len(holes) > 0 && p >= holes[0].First {
				continue
			}
			if page := t.cfg.Region.Data[int(p)*PageSize:][:PageSize]; !IsZero(page) {
				batch[n], at[n] = page, i
				n++
			}
		}
		hashPages(got[:n], batch[:n])
		for b, i := range at[:n] {
			names[i] = got[b]
		}
		for i, h := range names[:count] {
			if p := first + i; h != t.hashes[p] {
				t.hashes[p] = h
				runs = appendRun(runs, Run{PageNum(p), 1})
			}
		}
	}
	return runs, nil
}

// appendRun appends r to runs in order, joining it to the last.
func appendRun(runs []Run, r Run) []Run {
	if n := len(runs); n > 0 && runs[n-1].end() == r.First {
		runs[n-1].Count += r.Count
		return runs
	}
	return append(runs, r)
}

// A Recency orders pages by when they were last seen written. It is not safe
// for concurrent use.
type Recency struct {
	scan uint32
	last []uint32 // the scan that found the page written, 0 for none
}

// NewRecency makes a Recency for a memory of pages.
func NewRecency(pages int) *Recency { return &Recency{last: make([]uint32, pages)} }

// Note takes the result of a scan.
func (r *Recency) Note(written []Run) {
	r.scan++
	for _, w := range written {
		if n := int(w.end()); n > len(r.last) {
			r.last = append(r.last, make([]uint32, n-len(r.last))...)
		}
		for p := w.First; p < w.end(); p++ {
			r.last[p] = r.scan
		}
	}
}

// when is the scan that last found page p written, 0 for none.
func (r *Recency) when(p PageNum) uint32 {
	if int(p) >= len(r.last) {
		return 0
	}
	return r.last[p]
}

// Order lists the pages that were seen written, most recently written first,
// and by address among those of one scan.
func (r *Recency) Order() []Run {
	return r.order(func(PageNum) bool { return true })
}

// order is Order of some pages.
func (r *Recency) order(of func(PageNum) bool) []Run {
	var pages []PageNum
	for p, scan := range r.last {
		if scan > 0 && of(PageNum(p)) {
			pages = append(pages, PageNum(p))
		}
	}
	slices.SortFunc(pages, func(a, b PageNum) int {
		if r.last[a] != r.last[b] {
			return int(int64(r.last[b]) - int64(r.last[a]))
		}
		return int(a) - int(b)
	})
	var runs []Run
	for i, p := range pages {
		if i > 0 && r.last[p] == r.last[pages[i-1]] {
			runs = appendRun(runs, Run{p, 1})
		} else {
			runs = append(runs, Run{p, 1})
		}
	}
	return runs
}
