package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"meshnode/pager"
)

// trackInterval is how often a worker that is about to move is asked what it
// has written.
const trackInterval = 20 * time.Millisecond

// A writeLog watches a worker's memory between the offer of a move and the
// freeze: what it writes, so that its pages can travel while it runs and those
// written last are pushed first; and which pages were never written, so that
// only those have to be looked at again while the worker stands still.
type writeLog struct {
	w     *worker
	share *pager.Share // of the link, for the rounds
	size  int64        // of the memory at the beginning, in bytes
	stop  context.CancelFunc
	began chan struct{}
	ended chan struct{}

	// Set once began is closed. tracker and rounds are nil where writes cannot
	// be tracked, or not cheaply.
	tracker *pager.Tracker
	dear    bool // to find writes takes reading all of the memory
	rounds  *pager.Rounds
	zero    []pager.Run // holes at the beginning; nil if not known
}

// watchOptions say how closely to watch a worker. With dear, writes are found by
// comparing hashes where the kernel cannot tell; see comparesHashes. pause is as
// in pager.RoundsConfig.
type watchOptions struct {
	dear, noSampling bool
	pause            time.Duration
}

// watchWrites starts to watch w, whose memory is size bytes now. It takes over
// the share.
func (n *Node) watchWrites(ctx context.Context, w *worker, share *pager.Share, size int64, opt watchOptions) *writeLog {
	ctx, cancel := context.WithCancel(ctx)
	l := &writeLog{w: w, share: share, size: size, stop: cancel, began: make(chan struct{}), ended: make(chan struct{})}
	n.tasks.Go(func() {
		defer close(l.ended)
		err := l.begin(n, opt)
		if err != nil {
			n.log.Warn("writes not tracked", "worker", w.ID, "error", err)
		}
		close(l.began)
		if l.rounds == nil || l.dear {
			return // dear ones are looked for between two rounds
		}
		if !opt.noSampling {
			if err := l.sample(ctx); err != nil && ctx.Err() == nil {
				n.log.Info("working set not sampled", "worker", w.ID, "error", err)
			}
		}
		tick := time.NewTicker(trackInterval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			if err := l.rounds.Scan(); err != nil {
				n.log.Warn("writes not tracked", "worker", w.ID, "error", err)
				return
			}
		}
	})
	return l
}

func (l *writeLog) begin(n *Node, opt watchOptions) error {
	r := l.w.runner.Region()
	if r.File != nil {
		var err error
		if l.zero, err = pager.ZeroRuns(r.File, l.size); err != nil {
			return fmt.Errorf("find holes: %w", err)
		}
	}
	if !n.support.Tracking() && !opt.dear {
		return nil // hashing all of a running worker's memory costs more than it brings
	}
	l.w.endSample()
	t, err := pager.NewTracker(pager.TrackerConfig{Region: r, Size: l.size, Log: n.log})
	if err == nil {
		err = t.Start()
	}
	if err != nil {
		return err
	}
	l.dear = t.Method() == "hashes"
	if l.dear && !opt.dear {
		return t.Stop()
	}
	l.tracker = t
	l.rounds, err = pager.NewRounds(pager.RoundsConfig{
		Worker: l.w.ID, Epoch: l.w.epochNow(), Memory: r.Data[:l.w.MemoryLimit], Size: l.w.memoryNow,
		Zero: l.zero, Tracker: t, Base: l.w.baseNow(), WorkingSet: l.w.awaitedNow(), Pause: opt.pause, Versions: versionBytes(), Share: l.share, Log: n.log,
	})
	return err
}

// forgetStep is how much of the memory is forgotten between two events, in
// bytes: the worker stands still for less than half a millisecond.
const forgetStep = 32 << 20

// sample begins to look which pages the worker touches. It waits for no event
// longer than for the one under way.
func (l *writeLog) sample(ctx context.Context) error {
	if err := l.w.forget(ctx, l.size); err != nil {
		return err
	}
	l.rounds.Sample()
	return nil
}

// forget makes the kernel's record of what the worker touches begin anew.
func (w *worker) forget(ctx context.Context, size int64) error {
	for at := int64(0); at < size; at += forgetStep {
		var err error
		derr := w.do(ctx, func() {
			// The request cannot be given up without ending the runner.
			err = w.runner.Forget(context.WithoutCancel(ctx), uint64(at), uint64(min(forgetStep, size-at)))
		})
		if err := errors.Join(derr, err); err != nil {
			return err
		}
	}
	return nil
}

// awaitedNow returns the pages that the worker waited for when it came here.
func (w *worker) awaitedNow() []pager.PageNum {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.awaited
}

// A frozenMemory is what is known of a memory that no longer changes.
type frozenMemory struct {
	layout pager.Layout
	ahead  *pager.Ahead // nil where writes were not tracked
	holes  int          // pages never written
}

// quietTries is how often a moment between two events is looked for that is long
// enough to scan the memory in.
const quietTries = 16

// tellTime is how long the last pages that are stale before the freeze may take to
// go from the far side's memory, so that COMMIT finds few to be dropped. Where the
// way is longer than that they are ahead of COMMIT by as much.
const tellTime = 5 * time.Millisecond

// hold is called when the worker is about to stand still, so that frozen finds
// nothing under way that it would have to wait for.
func (l *writeLog) hold() {
	l.stop()
	<-l.ended
	if l.rounds == nil {
		return
	}
	if !l.dear {
		// What was touched is looked for too, but not between two events.
		l.rounds.Tell(tellTime)
	}
	if !l.quiets() {
		l.rounds.Hold()
	}
}

// quiets reports whether the last scan can be made before the worker stands still:
// not where it takes long, or a command's program writes without any event.
func (l *writeLog) quiets() bool {
	return l.rounds != nil && !l.dear && l.w.console == nil
}

// quiet makes the last scan in a moment between two events, after hold. It returns
// how many events the worker had handled before: if it has handled none since, there
// is nothing that another could find.
func (l *writeLog) quiet(ctx context.Context) (events uint64, err error) {
	if events, err = l.w.eventsBetween(ctx); err != nil {
		return 0, err
	}
	l.rounds.Hold()
	zero, err := l.holes(l.w.memoryNow())
	if err != nil {
		return 0, err
	}
	l.rounds.Prepare(zero)
	return events, nil
}

// eventsBetween waits for the event under way, and returns how many the worker
// has handled.
func (w *worker) eventsBetween(ctx context.Context) (events uint64, err error) {
	err = w.do(ctx, func() { events = w.handled() })
	return events, err
}

// handled is how many events the worker has handled.
func (w *worker) handled() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.events
}

// frozen is called once after hold, when the worker stands still with that much
// memory. With still it has stood still since before quiet's last scan.
// Tracking goes on: to end it takes milliseconds, and is for close.
func (l *writeLog) frozen(size int64, still bool) (f frozenMemory, err error) {
	f.layout.Pages = int(size / pager.PageSize)
	f.layout.Zero, err = l.holes(size)
	f.holes = pager.CountPages(f.layout.Zero)
	if err != nil || l.rounds == nil {
		return f, err
	}
	if f.ahead, err = l.rounds.Freeze(f.layout.Pages, f.layout.Zero, still); err != nil {
		return f, err
	}
	f.layout = f.ahead.Layout
	return f, nil
}

// holes returns the pages of a memory of size bytes that were never written.
func (l *writeLog) holes(size int64) ([]pager.Run, error) {
	file := l.w.runner.Region().File
	switch {
	case file == nil:
		return nil, nil
	case l.zero == nil:
		return pager.ZeroRuns(file, size)
	}
	// What held data then holds data now.
	was, pages := l.size/pager.PageSize, size/pager.PageSize
	grown := pager.Run{First: pager.PageNum(was), Count: uint32(pages - was)}
	return pager.ZeroRunsWithin(file, pager.NormalizeRuns(append(slices.Clip(l.zero), grown)))
}

// sent says what travelled while the worker ran.
func (l *writeLog) sent() pager.RoundsStats {
	if !l.ready() || l.rounds == nil {
		return pager.RoundsStats{}
	}
	return l.rounds.Stats()
}

func (l *writeLog) ready() bool {
	select {
	case <-l.began:
		return true
	default:
		return false
	}
}

// close ends tracking, for a worker that stays, and the rounds.
func (l *writeLog) close(n *Node) {
	l.stop()
	<-l.ended
	if l.rounds != nil {
		l.rounds.Close() // and the share
	} else {
		l.share.Close()
	}
	if l.tracker == nil {
		return
	}
	if err := l.tracker.Stop(); err != nil {
		n.log.Warn("write tracking not ended", "worker", l.w.ID, "error", err)
	}
}
