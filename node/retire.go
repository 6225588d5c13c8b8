package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
)

// A node that is told to stop lets its workers go first, as far as their
// manifests let them move by themselves or say who takes them: the autopilot moves
// them, as in a drain. Nobody is there to ask for more time, so what has not left
// when the time is up ends with the node; those that have a guardian begin anew
// there. Nodes that stop say so, and when no other is open nobody waits: a mesh
// that is switched off ends at once. The node stays open for when it is started
// again.

// retireLook is how often a node that is about to stop looks whether it may.
const retireLook = 100 * time.Millisecond

// retire lets workers leave, and gives back the leases of which this node is the
// guardian, until that is done, retireTime is over, or ctx is done.
func (n *Node) retire(ctx context.Context) {
	within := n.retireTime()
	n.drains.stop() // others must not send what they would lose
	n.guards.close()
	begin := n.mayLeave()
	alone := !slices.ContainsFunc(n.mesh.Members(), func(m mesh.Member) bool { return !m.Self && m.State == mesh.Alive })
	if alone || len(begin) == 0 && n.guards.held() == 0 && !n.sending() {
		return
	}
	n.advertise()
	n.log.Info("node lets its workers go before it stops", "workers", len(begin), "within", within)
	n.wakeAll()
	over := time.NewTimer(within)
	defer over.Stop()
	tick := time.NewTicker(retireLook)
	defer tick.Stop()
	for {
		left := n.mayLeave()
		switch {
		case n.sending():
		case len(left) == 0 && n.guards.held() == 0:
			n.log.Info("node stops, its workers have left", "workers", len(begin))
			return
		case n.nobodyTakes() && n.heldForOthers() == 0:
			n.log.Warn("node stops, and workers end with it: no other node takes new ones", "workers", strings.Join(left, ", "))
			return
		}
		select {
		case <-tick.C:
		case <-over.C:
			n.log.Warn("node stops, and workers end with it", "workers", strings.Join(left, ", "), "leases", n.guards.held())
			n.events.add(control.PlacementEvent{Node: n.name(), Event: control.EventDrain, Reason: "stop", From: n.name(),
				Text: fmt.Sprintf("stops: %d of %d have left within %v", len(begin)-min(len(left), len(begin)), len(begin), within), Outcome: control.DrainDeadline})
			return
		case <-ctx.Done():
			return
		}
	}
}

// retireTime is how much of Config.StopTime is for workers to leave: where some have
// a guardian, half of it is for yieldWorkers.
func (n *Node) retireTime() time.Duration {
	if len(n.guarded()) > 0 {
		return n.cfg.StopTime / 2
	}
	return n.cfg.StopTime
}

// nobodyTakes says whether no other node takes new workers: all that are there
// are cordoned, or stop as well.
func (n *Node) nobodyTakes() bool {
	return !slices.ContainsFunc(n.mesh.Members(), func(m mesh.Member) bool {
		return !m.Self && m.State == mesh.Alive && !m.Record.Cordoned && !m.Record.Leaving
	})
}

// heldForOthers counts the leases that this node holds for workers of nodes that
// stay, and that would be without a guardian.
func (n *Node) heldForOthers() (count int) {
	for _, g := range n.guards.list() {
		g.mu.Lock()
		rec := g.g.Record()
		g.mu.Unlock()
		if m, ok := n.mesh.Member(mesh.NodeID(rec.Owner)); rec.Held() && ok && m.State == mesh.Alive && !m.Record.Leaving {
			count++
		}
	}
	return count
}

// mayLeave names the workers that are here and may leave before the node stops.
func (n *Node) mayLeave() (names []string) {
	for _, w := range n.locals() {
		app, _, pinned, applied := w.place.get()
		if w.Suspend != control.SuspendNever && !pinned && n.drains.takes(app, applied) && !ended(w.describe().State) {
			names = append(names, w.Name)
		}
	}
	slices.Sort(names)
	return names
}

// sending says whether a move from here is under way: its worker may run elsewhere
// already, and still need its memory from here.
func (n *Node) sending() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.outgoing) > 0
}
