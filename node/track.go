package node

import (
	"context"
	"time"

	"meshnode/pager"
)

// trackInterval is how often a worker that is about to move is asked what it
// has written.
const trackInterval = 20 * time.Millisecond

// A writeLog watches a worker's memory between the offer of a move and the
// freeze: what it writes, so that the pages written last are pushed first,
// since it will touch them next; and which pages were never written, so that
// only those have to be looked at again while the worker stands still.
type writeLog struct {
	w     *worker
	pages int
	stop  context.CancelFunc
	ended chan struct{}

	// Owned by the goroutine until ended is closed.
	tracker *pager.Tracker // nil where writes cannot be tracked cheaply
	recency *pager.Recency
	zero    []pager.Run // holes at the beginning; nil if not known
}

// watchWrites starts to watch w, whose memory is size bytes now.
func (n *Node) watchWrites(ctx context.Context, w *worker, size int64) *writeLog {
	ctx, cancel := context.WithCancel(ctx)
	l := &writeLog{w: w, pages: int(size / pager.PageSize), stop: cancel, ended: make(chan struct{})}
	n.tasks.Go(func() {
		defer close(l.ended)
		l.begin(n, size)
		tick := time.NewTicker(trackInterval)
		defer tick.Stop()
		for l.scan(n) {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
	return l
}

func (l *writeLog) begin(n *Node, size int64) {
	r := l.w.runner.Region()
	if r.File != nil {
		var err error
		if l.zero, err = pager.ZeroRuns(r.File, size); err != nil {
			n.log.Warn("holes not found", "worker", l.w.ID, "error", err)
		}
	}
	if !n.support.Tracking() {
		return // hashing all of a running worker's memory costs more than it brings
	}
	t, err := pager.NewTracker(pager.TrackerConfig{Region: r, Size: size, Log: n.log})
	if err == nil {
		err = t.Start()
	}
	if err != nil {
		n.log.Warn("writes not tracked", "worker", l.w.ID, "error", err)
		return
	}
	if t.Method() == "hashes" {
		_ = t.Stop() // too dear, as above
		return
	}
	l.tracker, l.recency = t, pager.NewRecency(l.pages)
}

func (l *writeLog) scan(n *Node) bool {
	if l.tracker == nil {
		return false
	}
	written, err := l.tracker.Scan(nil)
	if err != nil {
		n.log.Warn("writes not tracked", "worker", l.w.ID, "error", err)
		return false
	}
	l.recency.Note(written)
	return true
}

// frozen is called once, when the worker stands still with that much memory.
// It returns the pages that were never written, and those that were, latest
// first. Tracking goes on: to end it takes milliseconds, and is for close.
func (l *writeLog) frozen(n *Node, size int64) (zero, recent []pager.Run, err error) {
	l.stop()
	<-l.ended
	if l.scan(n) {
		recent = l.recency.Order()
	}
	file := l.w.runner.Region().File
	switch {
	case file == nil:
		return nil, recent, nil
	case l.zero == nil:
		zero, err = pager.ZeroRuns(file, size)
		return zero, recent, err
	}
	// What held data then holds data now.
	grown := pager.Run{First: pager.PageNum(l.pages), Count: uint32(int(size/pager.PageSize) - l.pages)}
	zero, err = pager.ZeroRunsWithin(file, pager.NormalizeRuns(append(l.zero, grown)))
	return zero, recent, err
}

// close ends tracking, for a worker that stays.
func (l *writeLog) close(n *Node) {
	l.stop()
	<-l.ended
	if l.tracker == nil {
		return
	}
	if err := l.tracker.Stop(); err != nil {
		n.log.Warn("write tracking not ended", "worker", l.w.ID, "error", err)
	}
}
