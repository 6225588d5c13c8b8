package node

import (
	"context"
	"time"

	"meshnode/pager"
)

// trackInterval is how often a worker that is about to move is asked what it
// has written.
const trackInterval = 20 * time.Millisecond

// A writeLog watches what a worker writes between the offer of a move and the
// freeze, so that the pages written last are pushed first: they are what it
// will touch next.
type writeLog struct {
	tracker *pager.Tracker
	recency *pager.Recency
	stop    context.CancelFunc
	ended   chan struct{}
}

// watchWrites starts to watch w, or returns nil where that cannot be done;
// pages are then pushed by address.
func (n *Node) watchWrites(ctx context.Context, w *worker, size int64) *writeLog {
	t, err := pager.NewTracker(pager.TrackerConfig{Region: w.runner.Region(), Size: size, Log: n.log})
	if err == nil && !n.support.Tracking() {
		return nil // hashing all of a running worker's memory costs more than it brings
	}
	if err == nil {
		err = t.Start()
	}
	if err != nil {
		n.log.Warn("writes not tracked", "worker", w.ID, "error", err)
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	l := &writeLog{
		tracker: t, recency: pager.NewRecency(int(size / pager.PageSize)),
		stop: cancel, ended: make(chan struct{}),
	}
	n.tasks.Go(func() {
		defer close(l.ended)
		tick := time.NewTicker(trackInterval)
		defer tick.Stop()
		for l.scan(n, w) {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
	return l
}

func (l *writeLog) scan(n *Node, w *worker) bool {
	written, err := l.tracker.Scan(nil)
	if err != nil {
		n.log.Warn("writes not tracked", "worker", w.ID, "error", err)
		return false
	}
	l.recency.Note(written)
	return true
}

// end stops watching and returns the pages written, latest first. It is called
// once, or not at all on nil.
func (l *writeLog) end(n *Node, w *worker) []pager.Run {
	if l == nil {
		return nil
	}
	l.stop()
	<-l.ended
	l.scan(n, w)
	if err := l.tracker.Stop(); err != nil {
		n.log.Warn("write tracking not ended", "worker", w.ID, "error", err)
	}
	return l.recency.Order()
}
