package node

import (
	"context"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/placement/manifest"
)

// A node that has lost every other node cannot tell whether it is the one that
// is cut off. What becomes of its workers then is for their manifests to say
// (onDisconnect): they go on, or they freeze until the node is back, and nobody
// else takes them. Those with fallback have a guardian, and freeze when that one
// does not answer, whoever else does: see leased.go. While none is to be had
// nobody would take them, and they go on.

// A cut says whether a worker stands still because its node is cut off.
type cut uint8

const (
	cutNot cut = iota
	cutOff
	cutResumed // it was, and its operator let it go on
)

// aloneSince returns since when this node has been without any other, as far as
// gossip knows; zero if it is not, or never was with one.
func (n *Node) aloneSince(before, now time.Time) time.Time {
	lost := false
	for _, m := range n.mesh.Members() {
		switch {
		case m.Self:
		case m.State == mesh.Alive:
			return time.Time{}
		case m.State == mesh.Suspect, m.State == mesh.Dead:
			lost = true
		}
	}
	if before.IsZero() && lost {
		return now
	}
	return before // also when those that are lost are not listed any more
}

// watchDisconnect freezes and thaws workers as their manifests have it for a
// node that has been alone since then.
func (n *Node) watchDisconnect(ctx context.Context, alone, now time.Time) {
	for _, w := range n.locals() {
		app, _, _, applied := w.place.get()
		stop := applied && !alone.IsZero() && app.OnDisconnect.Action == manifest.DisconnectPause && now.Sub(alone) >= app.OnDisconnect.After.D()
		w.mu.Lock()
		is, over := w.cut, ended(w.state)
		arriving := w.gated || w.draining
		w.mu.Unlock()
		// One that arrives may wait for a page that does not come, and cannot be
		// frozen meanwhile. A later look finds it.
		if over || arriving || stop == (is != cutNot) {
			continue
		}
		short, cancel := context.WithTimeout(ctx, loopPatience)
		err := w.command(short, func() error { return w.setCut(context.WithoutCancel(ctx), stop) })
		cancel()
		if err != nil && ctx.Err() == nil {
			n.log.Debug("worker not told of the cut", "worker", w.ID, "error", err) // the next look tries again
			continue
		}
		n.log.Info("worker told of the cut", "worker", w.ID, "name", w.Name, "cut", stop)
		e := n.event(w, control.EventStay, "disconnected", "this node has lost all others: "+string(app.OnDisconnect.Action))
		e.From, e.Outcome = n.name(), "frozen"
		if !stop {
			e.Text, e.Outcome = "this node is back among others", "running"
		}
		n.events.add(e)
	}
}

// setCut stops the worker, or lets it go on. It is called on the loop.
func (w *worker) setCut(ctx context.Context, stop bool) error {
	w.mu.Lock()
	was := w.cut
	w.cut = cutNot
	if stop {
		w.cut = cutOff
	}
	w.mu.Unlock()
	if stop {
		return w.stand(ctx)
	}
	if was == cutOff {
		w.runAgain()
	}
	return nil
}

// resumeCut lets a worker go on that stands still because its node is cut off,
// as its operator wants it, until the node is back. It is called on the loop.
func (w *worker) resumeCut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut == cutOff {
		w.cut = cutResumed
	}
}

func (w *worker) isCut() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cut == cutOff
}
