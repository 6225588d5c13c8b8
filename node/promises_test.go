package node

import (
	"testing"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/placement"
)

// TestPromises moves a worker to and fro between a node that promises what it
// can keep and one that promises what nobody can: the others must find out, each
// in the way open to it.
func TestPromises(t *testing.T) {
	nodes := startNodes(t, 3)
	a, b, c := nodes[0], nodes[1], nodes[2]
	ctx := t.Context()
	promise := func(n *testNode, in, out time.Duration) {
		n.promises.mu.Lock()
		n.promises.own.moveIn.Promised, n.promises.own.moveOut.Promised = in, out
		n.promises.mu.Unlock()
		n.advertise()
	}
	promise(a, maxPromise, maxPromise)
	promise(b, time.Nanosecond, 0)
	show := func(at *testNode, of *testNode) control.Node {
		t.Helper()
		n, err := at.client.Node(ctx, of.name())
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for _, n := range nodes {
		waitFor(t, "the promises", func() bool {
			x, y := show(n, a), show(n, b)
			return x.Promises != nil && x.Promises.MoveOutMs > 0 && y.Promises != nil && y.Promises.MoveInMs > 0
		})
	}
	a.run(t, app(t, "counter"), control.RunRequest{Name: "counter"})
	const moves = 2
	for range moves {
		a.migrate(t, "counter", b, control.StrategyPostCopy)
		b.migrate(t, "counter", a, control.StrategyPostCopy)
	}

	// The source has seen it itself.
	near := func(r *control.PromiseRecord, kept, broken float64) bool {
		diff := func(x, y float64) bool { return x-y < 0.1 && y-x < 0.1 } // old cases fade
		return r != nil && diff(r.Kept, kept) && diff(r.Broken, broken)
	}
	waitFor(t, "the source's own view", func() bool { return near(show(a, b).KeptMoveIn, 0, moves) })
	waitFor(t, "the other source's", func() bool { return near(show(b, a).KeptMoveIn, moves, 0) })
	// The destination was told, and everyone has its word.
	waitFor(t, "the destination's word", func() bool {
		k := show(c, b).Kept
		return k != nil && near(k.MoveIn, 0, moves) && k.MoveIn.BrokenMs > 0 && k.MoveIn.Credibility < 1 && k.MoveOut == nil
	})
	waitFor(t, "the keeper's word", func() bool {
		k := show(c, a).Kept
		// Once told, a promise that is kept again is no news.
		kept := func(r *control.PromiseRecord) bool {
			return r != nil && r.Kept > 0 && r.Broken == 0 && r.Credibility == 1
		}
		return k != nil && kept(k.MoveIn) && kept(k.MoveOut)
	})
	if k := show(c, b); k.KeptMoveIn != nil {
		t.Errorf("a node that moved nothing there has seen %+v", k.KeptMoveIn)
	}

	// And it counts in the view of either.
	for _, n := range []*testNode{a, c} {
		waitFor(t, "the view", func() bool {
			v, _, err := n.view(ctx, []mesh.NodeID{n.id})
			if err != nil {
				t.Fatal(err)
			}
			p := v.Node(placement.NodeID(b.id))
			return p != nil && p.MoveIn.Credibility() < 1 && p.MoveIn.At(0.99) > time.Microsecond
		})
	}

	// What a baseline costs is not held against anyone.
	a.migrate(t, "counter", b, control.StrategyStopAndCopy)
	b.migrate(t, "counter", a, control.StrategyPostCopy) // counted after the other
	waitFor(t, "the last move", func() bool { return near(show(b, a).KeptMoveIn, moves+1, 0) })
	if r := show(a, b).KeptMoveIn; !near(r, 0, moves) {
		t.Errorf("a stop-and-copy was counted: %+v", r)
	}
}

func TestPromisesNews(t *testing.T) {
	p, now := newPromises(10*time.Millisecond, 0, 0), time.Unix(1, 0)
	if p.news() {
		t.Error("news of nothing")
	}
	p.access(time.Millisecond, now)
	if !p.news() {
		t.Error("a first case is no news")
	}
	p.telling()
	for range 100 {
		p.access(time.Millisecond, now)
	}
	if p.news() {
		t.Error("a promise that is kept as it was is news")
	}
	for range 20 {
		p.access(time.Hour, now)
	}
	_, r := p.record()
	if !p.news() || r.Access.BrokenMs != control.Millis(maxPromise) {
		t.Errorf("a promise that is broken: %+v", r.Access)
	}
	p.movedIn(time.Second, now)
	if _, r := p.record(); r.MoveIn != nil {
		t.Errorf("a case of no promise: %+v", r.MoveIn)
	}
	// A node that promises something else is looked at anew.
	p.movedTo("x", time.Second, time.Minute, now)
	if b, ok := p.movesIn("x", time.Second); !ok || b.Broken != 1 {
		t.Errorf("a broken promise: %+v, %v", b, ok)
	}
	if _, ok := p.movesIn("x", time.Minute); ok {
		t.Error("the record of a promise was used for another")
	}
	p.movedTo("x", time.Minute, time.Second, now)
	if b, ok := p.movesIn("x", time.Minute); !ok || b.Broken != 0 || b.Kept != 1 {
		t.Errorf("another promise: %+v, %v", b, ok)
	}
	p.keep(nil)
	if _, ok := p.movesIn("x", time.Minute); ok {
		t.Error("a node that is no member is remembered")
	}
}
