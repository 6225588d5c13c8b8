package node

import (
	"log/slog"
	"slices"
	"sync"

	"meshnode/node/handover"
)

// A mailbox queues events for a machine. Putting never blocks, and what a peer
// can make it hold is bounded: one message of each type, and one change of the
// path, the newest. The machines repeat what matters and are explored with any
// loss and order. What this node has to say is its own and always goes in. Safe
// for concurrent use.
type mailbox struct {
	log *slog.Logger

	mu       sync.Mutex
	events   []handover.Event
	givenWay int           // messages that have, for others; the first may be a copy
	signal   chan struct{} // one token: there is something
}

func newMailbox(log *slog.Logger) *mailbox {
	return &mailbox{log: log, signal: make(chan struct{}, 1)}
}

func (b *mailbox) put(ev handover.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.IndexFunc(b.events, func(old handover.Event) bool { return sameRoom(old, ev) }); i >= 0 {
		switch now := ev.(type) {
		case handover.Received:
			if b.givenWay++; b.givenWay == 2 {
				b.log.Warn("hand-over messages come faster than they are handled: the newest of each type is kept",
					"move", now.Message.Move, "worker", now.Message.Worker, "type", now.Message.Body.Type())
			}
		case handover.PathUp:
			// A stream that this side opened does not tell the peer's.
			if old, ok := b.events[i].(handover.PathUp); ok && now.Incarnation == 0 {
				ev = old
			}
		}
		b.events = slices.Delete(b.events, i, i+1)
	}
	b.events = append(b.events, ev)
	select {
	case b.signal <- struct{}{}:
	default:
	}
}

// sameRoom reports whether two events share a place in the mailbox.
func sameRoom(a, b handover.Event) bool {
	switch a := a.(type) {
	case handover.Received:
		b, ok := b.(handover.Received)
		return ok && a.Message.Body.Type() == b.Message.Body.Type()
	case handover.PathUp, handover.PathDown:
		switch b.(type) {
		case handover.PathUp, handover.PathDown:
			return true
		}
	case handover.Progress:
		_, ok := b.(handover.Progress)
		return ok
	}
	return false
}

func (b *mailbox) take() []handover.Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	evs := b.events
	b.events = nil
	return evs
}
