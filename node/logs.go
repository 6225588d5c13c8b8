package node

import (
	"context"
	"sync"
	"time"

	"meshnode/node/control"
)

// logLines is how many lines of a worker's log its node keeps. The log stays
// where it was written: it does not travel with the worker.
const logLines = 2000

// A logRing keeps the last lines that a worker, or its node about it, has
// logged. Safe for concurrent use.
type logRing struct {
	mu    sync.Mutex
	lines []control.LogLine // a ring once it is full
	first uint64            // the number of the oldest line kept
	more  chan struct{}     // closed and replaced at every line; closed for good at the end
	ended bool
}

func newLogRing() *logRing { return &logRing{more: make(chan struct{})} }

func (r *logRing) add(l control.LogLine) {
	if l.Time.IsZero() {
		l.Time = time.Now()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.lines) < logLines {
		r.lines = append(r.lines, l)
	} else {
		r.lines[r.first%logLines] = l
		r.first++
	}
	if !r.ended {
		close(r.more)
		r.more = make(chan struct{})
	}
}

// end says that no more lines will come from here.
func (r *logRing) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ended {
		r.ended = true
		close(r.more)
	}
}

// each calls f with every line kept and, with follow, with those that come
// until ctx or the log ends. A reader that is too slow misses lines.
func (r *logRing) each(ctx context.Context, follow bool, f func(control.LogLine) error) error {
	next := uint64(0)
	for {
		r.mu.Lock()
		next = max(next, r.first)
		var batch []control.LogLine
		for ; next < r.first+uint64(len(r.lines)); next++ {
			batch = append(batch, r.lines[next%logLines])
		}
		more, ended := r.more, r.ended
		r.mu.Unlock()
		for _, l := range batch {
			if err := f(l); err != nil {
				return err
			}
		}
		if !follow || ended {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil
		}
	}
}
