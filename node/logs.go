package node

import (
	"context"
	"slices"
	"sync"
	"time"

	"meshnode/node/control"
)

// logLines and logBytes are how much of a worker's log its node keeps. The log
// stays where it was written: it does not travel with the worker.
const (
	logLines = 2000
	logBytes = 1 << 20
)

// A logRing keeps the last lines that a worker, or its node about it, has
// logged. Safe for concurrent use.
type logRing struct {
	mu    sync.Mutex
	lines []control.LogLine
	bytes int           // of text in lines
	first uint64        // the number of the oldest line kept
	more  chan struct{} // closed and replaced at every line; closed for good at the end
	ended bool
}

func newLogRing() *logRing { return &logRing{more: make(chan struct{})} }

func (r *logRing) add(l control.LogLine) {
	if l.Time.IsZero() {
		l.Time = time.Now()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, l)
	r.bytes += len(l.Text)
	for len(r.lines) > logLines || r.bytes > logBytes && len(r.lines) > 1 {
		r.bytes -= len(r.lines[0].Text)
		r.lines[0] = control.LogLine{} // append copies only what is left
		r.lines = r.lines[1:]
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
		batch := slices.Clone(r.lines[next-r.first:])
		next += uint64(len(batch))
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
