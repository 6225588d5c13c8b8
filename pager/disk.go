package pager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// A diskTier is the part of a Store that lies in files. Reads are plain reads
// at the caller's cost; all writes are one goroutine's (diskwriter.go).
// Mapping the files into memory was never an option: whoever dirties a mapped
// page can be stopped in the kernel until the disk has caught up
// (balance_dirty_pages).
//
// Locks: mu is held for what is done in memory only, never for a read or a
// write. A shard's lock is never held while mu is taken, nor the other way
// round.
type diskTier struct {
	log    *slog.Logger
	memory *Store
	slots  uint32
	batch  int // pages written at once
	lock   *os.File
	slab   diskFile
	index  diskFile
	// loaded is closed when pages tells what is in the files.
	loaded chan struct{}

	mu      sync.Mutex
	pages   *diskIndex // empty until loaded, and again once closed
	touched bool       // the order of use differs from that on disk
	// spoiled lists slots that have no page, but a record on disk.
	spoiled []uint32
	stats   DiskStats

	// wake has room for one, so that nobody waits to send.
	wake    chan struct{}
	stop    chan struct{}
	done    chan struct{}
	closing sync.Once
	closeOf error

	writing atomic.Int32 // pages that wait no more and are not yet there
	writer  diskWriter
}

// DiskStats counts what the disk tier of a Store holds and how it served.
type DiskStats struct {
	// Pages are on disk, of at most Limit, of which some are kept free to be
	// written, and Waiting are in memory to be written.
	Pages, Limit, Waiting int
	// Hits were read and had the content of their name; Misses were asked for
	// and were not there; Bad were there and had other content, or could not be
	// read. Those were dropped.
	Hits, Misses, Bad uint64
	// Written pages, and those Dropped from memory before they were, because
	// the disk did not take them fast enough, or not at all.
	Written, Dropped uint64
	// Failing says that the disk refuses writes at present, and Failures how
	// often it did.
	Failing  bool
	Failures uint64
}

func openDisk(cfg StoreConfig, memory *Store, wrap func(string, diskFile) diskFile) (d *diskTier, err error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := lockDir(cfg.Dir, lockFile)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			closeFiles(lock)
		}
	}()
	slots := slotsFor(cfg.Disk)
	slab, index, empty, err := openFiles(cfg.Dir, slots)
	if err != nil {
		return nil, err
	}
	log := cfg.Log.With("dir", cfg.Dir)
	if empty != "" {
		log.Info("disk cache starts empty", "reason", empty)
	}
	d = &diskTier{
		log: log, memory: memory, slots: uint32(slots), lock: lock, slab: slab, index: index,
		batch:  min(batchPages, int(slots)/spareShare),
		loaded: make(chan struct{}),
		pages:  newDiskIndex(0),
		wake:   make(chan struct{}, 1),
		stop:   make(chan struct{}),
		done:   make(chan struct{}),
		writer: diskWriter{headless: empty != ""},
	}
	if wrap != nil {
		d.slab, d.index = wrap(slabFile, slab), wrap(indexFile, index)
	}
	// Slots past the end of the slab have no page, whatever the index says.
	info, err := slab.Stat()
	if err != nil {
		closeFiles(slab, index)
		return nil, err
	}
	go d.run(uint32(max(info.Size()-diskHead, 0) / PageSize))
	return d, nil
}

// run is the tier's goroutine. It finds out first what is in the files: for
// 1 GiB of pages that takes a tenth of a second, more where the index has to
// come from a slow disk, and nobody else should have to wait for it.
func (d *diskTier) run(slabPages uint32) {
	defer close(d.done)
	start := time.Now()
	pages := newDiskIndex(int(d.slots))
	w := &d.writer
	var err error
	w.top, w.free, w.stamp, err = loadIndex(io.NewSectionReader(d.index, diskHead, int64(d.slots)*recordBytes), pages, d.slots, slabPages)
	if err == nil {
		d.mu.Lock()
		d.pages = pages
		d.mu.Unlock()
		d.log.Debug("disk cache loaded", "pages", pages.count, "limit", d.slots, "took", time.Since(start))
	}
	close(d.loaded)
	if err != nil {
		// What is there cannot be told from what is free.
		d.log.Warn("disk cache cannot be read, and is not used until the next start", "error", err)
		<-d.stop
		return
	}
	d.write()
}

func (d *diskTier) notify() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// has reports whether a page is there, as far as the index knows.
func (d *diskTier) has(h Hash) bool {
	<-d.loaded
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.pages.find(&h)
	return ok
}

// touch notes that a page was used, and reports whether it is there. It never
// waits, and knows of none before the index is loaded: such a page waits to be
// written like a new one, and the writer finds that it need not be.
func (d *diskTier) touch(h Hash) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	slot, ok := d.pages.find(&h)
	if ok {
		d.pages.touch(slot)
		d.touched = true
	}
	return ok
}

// read copies a page to buf and checks it. use says that this counts as use.
func (d *diskTier) read(h Hash, buf []byte, use bool) bool {
	<-d.loaded
	d.mu.Lock()
	slot, ok := d.pages.find(&h)
	if !ok {
		d.stats.Misses++
		d.mu.Unlock()
		return false
	}
	d.mu.Unlock()

	_, err := d.slab.ReadAt(buf[:PageSize], slabAt(slot))
	good := err == nil && HashPage(buf) == h

	d.mu.Lock()
	now, still := d.pages.find(&h)
	still = still && now == slot
	switch {
	case good:
		d.stats.Hits++
		if use && still {
			d.pages.touch(slot)
			d.touched = true
		}
	case !still: // it made room for another while it was read
		d.stats.Misses++
	default:
		d.pages.remove(slot)
		d.spoiled = append(d.spoiled, slot)
		d.stats.Bad++
		first := d.stats.Bad == 1
		d.mu.Unlock()
		d.notify()
		level := slog.LevelDebug
		if first { // the others are in the statistics
			level = slog.LevelWarn
		}
		if err == nil {
			err = ErrContent
		}
		d.log.Log(context.Background(), level, "bad page on disk dropped", "page", h, "slot", slot, "error", err)
		return false
	}
	d.mu.Unlock()
	return good
}

func (d *diskTier) addStats(st *DiskStats) {
	d.mu.Lock()
	defer d.mu.Unlock()
	waiting, dropped := st.Waiting+int(d.writing.Load()), st.Dropped
	*st = d.stats
	st.Waiting, st.Dropped = waiting, dropped
	st.Pages, st.Limit = d.pages.count, int(d.slots)
}

// close ends the writer, and then gives up files and directory.
func (d *diskTier) close() error {
	d.closing.Do(func() {
		close(d.stop)
		<-d.done
		d.mu.Lock()
		d.pages = newDiskIndex(0)
		d.mu.Unlock()
		// The lock goes last: until then nobody else may write the files.
		d.closeOf = errors.Join(d.slab.Close(), d.index.Close(), d.lock.Close())
	})
	return d.closeOf
}

// lockDir takes a directory for this process, by a lock on a file in it that
// ends with the process.
func lockDir(dir, name string) (*os.File, error) {
	path := filepath.Join(dir, name)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := lockWhole(f); err != nil {
		f.Close()
		if errors.Is(err, errLocked) {
			return nil, fmt.Errorf("lock %s: %w: another meshnode runs with the same directory; stop it, or choose another", path, ErrInUse)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// errLocked means that somebody else has the lock.
var errLocked = errors.New("locked")
