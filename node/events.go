package node

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"meshnode/node/control"
)

// eventsRing is how many events a node remembers.
const eventsRing = 1024

// events are the last decisions and moves of this node. They live in memory
// only. Safe for concurrent use; the zero value is ready.
type events struct {
	mu    sync.Mutex
	ring  []control.PlacementEvent // the oldest first
	first uint64                   // the number of the oldest, from 1
	more  chan struct{}            // closed and replaced at each one; nil while nobody waits
}

func (e *events) add(ev control.PlacementEvent) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if ev.At.IsZero() {
		ev.At = time.Now()
	}
	if e.first == 0 {
		e.first = 1
	}
	ev.Seq = e.first + uint64(len(e.ring))
	e.ring = append(e.ring, ev)
	if len(e.ring) > eventsRing {
		e.ring[0] = control.PlacementEvent{} // append copies only what is left
		e.ring = e.ring[1:]
		e.first++
	}
	if e.more != nil {
		close(e.more)
		e.more = nil
	}
}

// each calls f with every event remembered, oldest first, and with follow goes
// on with those that come until ctx is done. A follower that is so slow that
// events go before it has had them is dropped: the error says how many.
func (e *events) each(ctx context.Context, follow bool, f func(control.PlacementEvent) error) error {
	next := uint64(0)
	for {
		e.mu.Lock()
		if next != 0 && next < e.first {
			missed := e.first - next
			e.mu.Unlock()
			return &control.Error{
				Code: control.CodeFailed, Message: fmt.Sprintf("%d events came faster than they were read and are gone", missed),
				Hint: "ask again: the last ones are kept",
			}
		}
		next = max(next, e.first)
		batch := slices.Clone(e.ring[next-e.first:])
		next += uint64(len(batch))
		if e.more == nil {
			e.more = make(chan struct{})
		}
		more := e.more
		e.mu.Unlock()
		for _, ev := range batch {
			if err := f(ev); err != nil {
				return err
			}
		}
		if !follow {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil
		}
	}
}

// event begins an event about a worker.
func (n *Node) event(w *worker, kind, code, text string) control.PlacementEvent {
	return control.PlacementEvent{
		At: time.Now(), Node: n.name(), Event: kind, Worker: w.Name, WorkerID: w.ID, App: w.place.appName(), Reason: code, Text: text,
	}
}

// Events calls each with this node's events.
func (b backend) Events(ctx context.Context, follow bool, each func(control.PlacementEvent) error) error {
	return b.n.events.each(ctx, follow, each)
}
