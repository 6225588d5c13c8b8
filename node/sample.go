package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"meshnode/node/control"
	"meshnode/pager"
)

// A sample is a look at what a worker does to its memory. It uses the worker's
// one userfaultfd, as a move does: a move that begins ends it.
type sample struct {
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when the userfaultfd is free
	yields bool          // to another sample too: checkpoints can do without for a while
}

var errMoving = errors.New("the worker is about to move")

// endSample ends the sample under way, if any, and waits until it has. No other
// begins while a move is under way.
func (w *worker) endSample() { w.endSampleIf(func(*sample) bool { return true }) }

// endYielding is endSample for what gives way to any sample.
func (w *worker) endYielding() { w.endSampleIf(func(s *sample) bool { return s.yields }) }

func (w *worker) endSampleIf(which func(*sample) bool) {
	w.mu.Lock()
	s := w.sampling
	w.mu.Unlock()
	if s != nil && which(s) {
		s.cancel(errMoving)
		<-s.done
	}
}

// sample watches a worker's memory for that long, or until a move begins. It
// costs the worker a microsecond for the first write to each page between two
// scans, and where the kernel cannot track writes it is refused: to hash all of
// the memory many times a second would cost far more.
func (n *Node) sample(ctx context.Context, w *worker, length time.Duration) (control.Activity, error) {
	var a control.Activity
	busy := func(why string) error {
		return &control.Error{
			Code: control.CodeConflict, Message: fmt.Sprintf("worker %s cannot be sampled: %s", w.Name, why), Hint: "try again when that is over",
		}
	}
	if !n.support.Tracking() {
		return a, &control.Error{
			Code: control.CodeConflict, Message: fmt.Sprintf("worker %s cannot be sampled: the kernel of node %s does not track writes", w.Name, n.name()),
			Hint: "Linux 6.7 does",
		}
	}
	if w.isDraining() {
		return a, busy("its memory is still arriving")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &sample{cancel: cancel, done: make(chan struct{})}
	w.endYielding()
	w.mu.Lock()
	switch {
	case ended(w.state):
		w.mu.Unlock()
		return a, &control.Error{Code: control.CodeConflict, Message: fmt.Sprintf("worker %s is %s", w.Name, w.state)}
	case w.move != nil:
		w.mu.Unlock()
		return a, busy("it is on its way to node " + w.move.toName)
	case w.sampling != nil:
		w.mu.Unlock()
		return a, busy("somebody else is doing it")
	}
	w.sampling = s
	w.mu.Unlock()
	defer w.sampled(s)
	if !w.memoryIn.hold() {
		return a, errGone
	}
	defer w.memoryIn.release()
	return n.watch(ctx, w, length)
}

// sampled says that the userfaultfd is free.
func (w *worker) sampled(s *sample) {
	w.mu.Lock()
	w.sampling = nil
	w.mu.Unlock()
	close(s.done)
}

// watch is sample once nobody else can.
func (n *Node) watch(ctx context.Context, w *worker, length time.Duration) (a control.Activity, err error) {
	region, size := w.runner.Region(), w.memoryNow()
	t, err := pager.NewTracker(pager.TrackerConfig{Region: region, Size: size, Log: n.log})
	if err == nil {
		err = t.Start()
	}
	if err != nil {
		return a, err
	}
	defer func() {
		if serr := t.Stop(); err == nil {
			err = serr
		}
	}()
	touching := w.forget(ctx, size)
	began := time.Now()
	end := time.NewTimer(length)
	defer end.Stop()
	tick := time.NewTicker(trackInterval)
	defer tick.Stop()
	written := pager.NewRecency(pager.PagesOf(size))
	var runs []pager.Run
	pages := 0 // written, counted at each scan
	for over := false; !over; {
		select {
		case <-tick.C:
		case <-end.C:
			over = true
		case <-ctx.Done():
			if context.Cause(ctx) != errMoving {
				return a, context.Cause(ctx)
			}
			over = true // what was seen so far is still true
		}
		if now := w.memoryNow(); now > size {
			if err := t.Grow(now); err != nil {
				return a, err
			}
			size = now
		}
		if runs, err = t.Scan(runs[:0]); err != nil {
			return a, err
		}
		written.Note(runs)
		pages += pager.CountPages(runs)
	}
	took := time.Since(began)
	a = control.Activity{
		SampledMs:        control.Millis(took),
		DirtyBytesPerSec: float64(pages) * pager.PageSize / max(took, time.Millisecond).Seconds(),
		WrittenBytes:     uint64(pager.CountPages(written.Order())) * pager.PageSize,
	}
	if touching == nil {
		if runs, err = t.Touched(runs[:0]); err != nil {
			return a, err
		}
		a.WorkingSetBytes = uint64(pager.CountPages(runs)) * pager.PageSize
	}
	if region.File != nil {
		zero, err := pager.ZeroRuns(region.File, size)
		if err != nil {
			return a, err
		}
		a.ContentBytes = uint64(size) - uint64(pager.CountPages(zero))*pager.PageSize
	} else {
		a.ContentBytes = uint64(size)
	}
	return a, nil
}

// residentShare is how much of the worker's memory is here: less than 1 while
// it is still arriving.
func (n *Node) residentShare(w *worker) float64 {
	in := n.arrival(w.ID)
	if in == nil {
		return 1
	}
	in.mu.Lock()
	sink := in.sink
	in.mu.Unlock()
	if sink == nil {
		return 1
	}
	st := sink.Stats()
	if st.Pages == 0 {
		return 1
	}
	return 1 - float64(st.Missing)/float64(st.Pages)
}
