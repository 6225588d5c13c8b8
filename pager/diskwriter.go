package pager

import (
	"iter"
	"math/rand/v2"
	"slices"
	"time"
)

// A diskWriter is the state of the goroutine that writes the disk tier. The
// order of its writes keeps three things true at any instant, so that the end
// of the process, even by SIGKILL in the middle of a write, costs nothing that
// was written before:
//
//   - A page is written only to a slot whose record on disk is empty.
//   - A record is written only when its page is.
//   - A slot counts as free only when its record is empty.
//
// So a batch is: pages into free slots; their records; then the pages used
// longest ago leave the index, their records are emptied, and their slots are
// free for a later batch.
//
// Slots are filled a group after the other, always the one with the most free
// slots, of which a sixteenth of the tier is kept for this choice. Pages written
// together are mostly used, and dropped, together, so a write has several.
// Taking the lowest free slots mixed pages of all ages, and with a tenth of them
// used again it took twice as many writes (BenchmarkDiskChurn); evicting many
// pages at once left the choice with fewer slots, and did worse too.
type diskWriter struct {
	headless bool // the files are empty
	// top is how many slots there are records for. Those below it that have
	// none are in open, the rest of the group that is being filled, or in free.
	top   uint32
	open  []uint32
	free  []uint32
	stamp uint64 // the highest given out

	shard   int    // the last that a page was taken from
	buf     []byte // pages of a batch
	names   []Hash
	records []byte
	// failing is the error that is being waited out, and pause how long.
	failing error
	pause   time.Duration
}

const (
	// groupSlots are filled before another group is: 1 MiB.
	groupSlots = 256

	// spareShare is the part of the slots that is kept free. A batch takes as
	// much at most.
	spareShare = 16
	// batchPages are written at once, 1 MiB, if the tier is large enough.
	batchPages = 256

	// A disk that refuses writes is tried again after retryFirst, and then
	// after twice the time before, up to retryMost.
	retryFirst = time.Second
	retryMost  = time.Minute

	// closeGrace bounds how long Close writes what still waits.
	closeGrace = 2 * time.Second
)

// write writes what waits, until the tier is closed.
func (d *diskTier) write() {
	w := &d.writer
	w.buf = make([]byte, d.batch*PageSize)
	for {
		wake, retry := d.wake, (<-chan time.Time)(nil)
		if w.failing != nil {
			wake, retry = nil, time.After(w.pause)
		}
		select {
		case <-wake:
		case <-retry:
		case <-d.stop:
			d.finish()
			return
		}
		for more := true; more && !d.stopping(); {
			var err error
			more, err = d.writeBatch()
			d.noteWrite(err)
			more = more && err == nil
		}
	}
}

func (d *diskTier) stopping() bool {
	select {
	case <-d.stop:
		return true
	default:
		return false
	}
}

// noteWrite keeps what an operator is told of a failing disk to one line when
// it begins and one when it ends.
func (d *diskTier) noteWrite(err error) {
	w := &d.writer
	d.mu.Lock()
	d.stats.Failing = err != nil
	if err != nil {
		d.stats.Failures++
	}
	d.mu.Unlock()
	switch {
	case err == nil && w.failing != nil:
		d.log.Info("disk cache is written again", "was", w.failing)
		w.pause = 0
	case err != nil && w.failing == nil:
		d.log.Warn("disk cache cannot be written; it is read, and tried again later", "error", err)
		w.pause = retryFirst
	case err != nil:
		w.pause = min(2*w.pause, retryMost)
	}
	w.failing = err
}

// writeBatch writes pages that wait, and reports whether there may be more.
// After an error what was to be written waits again.
func (d *diskTier) writeBatch() (more bool, err error) {
	w := &d.writer
	if err := d.makeRoom(); err != nil {
		return false, err
	}
	room := min(d.batch, w.room(d.slots))
	defer d.writing.Store(0)
	w.names = w.names[:0]
	for none := 0; none < storeShards && len(w.names) < room; {
		// Round the shards, so that pages that came together stay together.
		w.shard = (w.shard + 1) % storeShards
		page := w.buf[len(w.names)*PageSize:][:PageSize]
		d.writing.Add(1) // first, so that a page that waits is always counted
		h, ok := d.memory.shards[w.shard].takeWaiting(page)
		if !ok {
			d.writing.Add(-1)
			none++
			continue
		}
		none = 0
		if !d.has(h) {
			w.names = append(w.names, h)
		}
	}
	if len(w.names) == 0 {
		return false, nil
	}
	slots := w.takeSlots(len(w.names), d.slots)
	if err := d.writePages(slots); err != nil {
		d.spoil(slots)
		for _, h := range w.names {
			d.memory.shard(h).waitAgain(h)
		}
		return false, err
	}
	d.mu.Lock()
	for i := range w.names {
		if !d.pages.add(&w.names[i], slots[i]) { // put again after it was taken
			d.spoiled = append(d.spoiled, slots[i])
		}
	}
	d.stats.Written += uint64(len(slots))
	d.mu.Unlock()
	return true, nil
}

// room is how many slots are free.
func (w *diskWriter) room(slots uint32) int {
	return len(w.open) + len(w.free) + int(slots-w.top)
}

// takeSlots takes n slots of those that are free.
func (w *diskWriter) takeSlots(n int, slots uint32) []uint32 {
	taken := make([]uint32, 0, n)
	for len(taken) < n {
		if len(w.open) == 0 {
			w.openGroup(slots)
		}
		some := min(n-len(taken), len(w.open))
		taken = append(taken, w.open[:some]...)
		w.open = w.open[some:]
	}
	return taken
}

// openGroup opens a group that was never filled, or else the one with the most
// free slots.
func (w *diskWriter) openGroup(slots uint32) {
	if w.top < slots {
		for end := min(w.top+groupSlots, slots); w.top < end; w.top++ {
			w.open = append(w.open, w.top)
		}
		return
	}
	slices.Sort(w.free)
	from, to := 0, 0
	for i := 0; i < len(w.free); {
		j := i + 1
		for j < len(w.free) && w.free[j]/groupSlots == w.free[i]/groupSlots {
			j++
		}
		if j-i > to-from {
			from, to = i, j
		}
		i = j
	}
	w.open = append(w.open[:0], w.free[from:to]...)
	w.free = slices.Delete(w.free, from, to)
}

// writePages writes pages and then records to slots, with one write for slots
// that follow each other.
func (d *diskTier) writePages(slots []uint32) error {
	w := &d.writer
	for i, n := range stretches(slots) {
		if _, err := d.slab.WriteAt(w.buf[i*PageSize:(i+n)*PageSize], slabAt(slots[i])); err != nil {
			return err
		}
	}
	w.records = w.records[:0]
	for i := range slots {
		w.stamp++
		w.records = appendRecord(w.records, slots[i], &w.names[i], w.stamp)
	}
	return d.writeRecords(slots)
}

// writeRecords writes the writer's records to slots.
func (d *diskTier) writeRecords(slots []uint32) error {
	for i, n := range stretches(slots) {
		if _, err := d.index.WriteAt(d.writer.records[i*recordBytes:(i+n)*recordBytes], recordAt(slots[i])); err != nil {
			return err
		}
	}
	return nil
}

// stretches goes through the parts of slots that follow each other: where one
// begins, and how long it is.
func stretches(slots []uint32) iter.Seq2[int, int] {
	return func(yield func(int, int) bool) {
		for i := 0; i < len(slots); {
			n := 1
			for i+n < len(slots) && slots[i+n] == slots[i]+uint32(n) {
				n++
			}
			if !yield(i, n) {
				return
			}
			i += n
		}
	}
}

// makeRoom sees to it that a batch can be written: it gives new files their
// heads, drops the pages used longest ago, and empties the records of all slots that have lost theirs.
func (d *diskTier) makeRoom() error {
	w := &d.writer
	if w.headless {
		pair := rand.Uint64()
		for kind, file := range map[uint16]diskFile{kindSlab: d.slab, kindIndex: d.index} {
			if _, err := file.WriteAt(appendDiskHead(nil, kind, pair), 0); err != nil {
				return err
			}
		}
		w.headless = false
	}
	d.mu.Lock()
	coming := len(d.spoiled)
	d.mu.Unlock()
	d.evict(int(d.slots)/spareShare - coming - w.room(d.slots))
	d.mu.Lock()
	slots := d.spoiled
	d.spoiled = nil
	d.mu.Unlock()
	if len(slots) == 0 {
		return nil
	}
	slices.Sort(slots)
	w.records = append(w.records[:0], make([]byte, len(slots)*recordBytes)...)
	if err := d.writeRecords(slots); err != nil {
		d.spoil(slots)
		return err
	}
	w.free = append(w.free, slots...)
	return nil
}

func (d *diskTier) spoil(slots []uint32) {
	d.mu.Lock()
	d.spoiled = append(d.spoiled, slots...)
	d.mu.Unlock()
}

// evict drops the n pages used longest ago. The order of use on disk knows
// nothing of what is served from memory, which tells it nothing to stay fast;
// so a page that is in memory still, and with that among those used last,
// counts as just used. That is done for so many pages at most, in case all are
// in memory; once done it holds until the order has come round.
func (d *diskTier) evict(n int) {
	for spare := 16 * d.batch; n > 0; {
		d.mu.Lock()
		slot, ok := d.pages.oldest()
		if !ok {
			d.mu.Unlock()
			return
		}
		h := d.pages.name(slot)
		d.mu.Unlock()
		keep := spare > 0 && d.memory.inMemory(h)

		d.mu.Lock()
		switch now, ok := d.pages.find(&h); {
		case !ok || now != slot: // it was bad and went
		case keep:
			d.pages.touch(slot)
			d.touched = true
			spare--
		default:
			d.pages.remove(slot)
			d.spoiled = append(d.spoiled, slot)
			n--
		}
		d.mu.Unlock()
	}
}

// finish writes what waits, for a while, and the order of use.
func (d *diskTier) finish() {
	w := &d.writer
	if w.failing != nil {
		return
	}
	deadline := time.Now().Add(closeGrace)
	for more := true; more && time.Now().Before(deadline); {
		var err error
		if more, err = d.writeBatch(); err != nil {
			d.noteWrite(err)
			return
		}
	}
	if err := d.saveOrder(); err != nil {
		d.noteWrite(err)
	}
}

// saveOrder stamps all records anew, in the order of use, if it has changed.
// Each record is right before and after, so this may end half way.
func (d *diskTier) saveOrder() error {
	w := &d.writer
	stamps := make([]uint64, w.top)
	d.mu.Lock()
	if !d.touched {
		d.mu.Unlock()
		return nil
	}
	d.touched = false
	n := uint64(0)
	for slot, ok := d.pages.oldest(); ok; slot, ok = d.pages.newer(slot) {
		n++
		stamps[slot] = n
	}
	d.mu.Unlock()
	for slot := uint32(0); slot < w.top; {
		first := slot
		w.records = w.records[:0]
		for ; slot < w.top && slot-first < loadRecords; slot++ {
			if stamps[slot] == 0 {
				w.records = append(w.records, make([]byte, recordBytes)...)
				continue
			}
			name := d.pages.name(slot) // only this goroutine changes names
			w.records = appendRecord(w.records, slot, &name, stamps[slot])
		}
		if _, err := d.index.WriteAt(w.records, recordAt(first)); err != nil {
			return err
		}
	}
	w.stamp = max(w.stamp, n)
	return nil
}
