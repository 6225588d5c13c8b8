package node

import (
	"context"
	"errors"
	"strings"
	"testing"

	"meshnode/node/control"
)

// TestEvents fills the ring more than once: the last are kept, in order, and a
// follower that is too slow is told what it has missed.
func TestEvents(t *testing.T) {
	var e events
	if err := e.each(t.Context(), false, func(control.PlacementEvent) error { t.Error("an event of nothing"); return nil }); err != nil {
		t.Fatal(err)
	}
	const extra = 10
	for range eventsRing + extra {
		e.add(control.PlacementEvent{Event: control.EventMove})
	}
	next := uint64(extra + 1)
	err := e.each(t.Context(), false, func(ev control.PlacementEvent) error {
		if ev.Seq != next || ev.At.IsZero() {
			t.Fatalf("event %d at %v, want %d", ev.Seq, ev.At, next)
		}
		next++
		return nil
	})
	if err != nil || next != eventsRing+extra+1 {
		t.Fatalf("the last was %d: %v", next-1, err)
	}

	// One that follows has what comes.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := 0
	err = e.each(ctx, true, func(ev control.PlacementEvent) error {
		if seen++; seen == eventsRing {
			e.add(control.PlacementEvent{Event: control.EventPin})
		}
		if ev.Event == control.EventPin {
			cancel()
		}
		return nil
	})
	if err != nil || seen != eventsRing+1 {
		t.Errorf("followed %d events: %v", seen, err)
	}

	// One that does not keep up is dropped.
	seen = 0
	err = e.each(t.Context(), true, func(control.PlacementEvent) error {
		if seen++; seen == 1 {
			for range eventsRing + extra {
				e.add(control.PlacementEvent{})
			}
		}
		return nil
	})
	var ce *control.Error
	if !errors.As(err, &ce) || seen != eventsRing || !strings.HasPrefix(ce.Message, "10 events") {
		t.Errorf("a slow follower, after %d events: %v", seen, err)
	}
}
