package node

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/node/handover"
	"meshnode/node/lease"
	"meshnode/placement/manifest"
)

// A node that ends takes its workers along, but for those that have a guardian.
// One that is told to stop yields them: it makes a last checkpoint of each, ends its
// copy, and has the guardian take it at once. One that dies cannot. When it is
// started again its journal knows the lease, from before that began; such a worker
// is an orphan, not lost, so that its sessions wait, until the guardian has said
// what became of it. Its guardian is told that it may take it now; if that one does
// not answer either, the worker is lost when its time is over.

const (
	// orphanPatience is how long a guardian may take to answer, beside the time
	// after which it takes the worker by itself: it may be starting as well.
	// orphanAsk is the time between two questions.
	orphanPatience = 30 * time.Second
	orphanAsk      = 500 * time.Millisecond
	// yieldTime bounds what a node that stops spends on last checkpoints, and on
	// telling guardians, if Config.StopTime does not.
	yieldTime = 10 * time.Second
)

// A leaseNote is what the journal keeps of a worker's lease. It is written before
// the lease begins, and stays when that is given back: the guardian knows better.
type leaseNote struct {
	Guardian mesh.NodeID `cbor:"1,keyasint"`
	// Name is the guardian's: after a restart gossip has yet to bring it.
	Name   string        `cbor:"2,keyasint,omitempty"`
	Ticket uint64        `cbor:"3,keyasint"`
	Lease  time.Duration `cbor:"4,keyasint"`
	App    string        `cbor:"5,keyasint,omitempty"` // the worker's
}

func (l *leaseNote) valid() bool {
	return l != nil && l.Guardian.Valid() && l.Ticket != 0 && l.Lease >= lease.MinLease && l.Lease <= lease.MaxLease
}

// note puts on disk that a lease is about to begin.
func (k *keeper) note() error {
	w := k.w
	k.mu.Lock()
	l := leaseNote{Guardian: k.guardian, Name: k.n.nameOf(k.guardian), Ticket: k.own.Ticket(), Lease: k.own.Lease(), App: w.place.appName()}
	k.mu.Unlock()
	return k.n.journal.Annotate(w.ID, w.epochNow(), recordMeta{Spec: w.spec, Lease: &l}.encode())
}

// orphan lists a worker that ran here under a lease when the node ended, and has
// its guardian take it.
func (n *Node) orphan(rec handover.Record, meta recordMeta) {
	l := meta.Lease
	w := n.newWorker(meta.Spec, rec.Epoch, nil, newLogRing())
	w.launch.Do(func() { close(w.ended) })
	if l.App != "" {
		w.place.set(manifest.New(l.App, meta.Spec.Module.String()), nil)
	}
	k := newKeeper(n, w)
	k.own, k.guardian, k.known = lease.RestartOwner(w.ID, rec.Epoch, l.Lease, l.Ticket), l.Guardian, l.Name
	w.keeper = k
	w.fence.Store(1)
	until := time.Now().Add(lease.Wait(l.Lease) + orphanPatience)
	n.mu.Lock()
	n.orphans[w.ID] = w
	n.mu.Unlock()
	w.inbox.close(deliverFrame{Refused: &deliverRefused{Gone: true}})
	w.setState(control.StateOrphaned, fmt.Sprintf("node %s restarted without it; node %s, its guardian, is to go on with it and is being told: if it does not answer until %s the worker is lost",
		n.name(), k.guardianName(), until.Format(time.TimeOnly)))
	n.log.Warn("worker is its guardian's", "worker", w.ID, "name", w.Name, "guardian", l.Guardian, "until", until)
	n.tasks.Go(func() { k.handOn(until) })
}

// orphaned returns a worker that is its guardian's, or nil.
func (n *Node) orphaned(id string) *worker {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.orphans[id]
}

// handOn tells the guardian of an orphan that it may take it, until that is so, or
// the worker is elsewhere, was stopped, or is lost.
func (k *keeper) handOn(until time.Time) {
	n, w := k.n, k.w
	defer k.hangUp()
	over := time.NewTimer(time.Until(until))
	defer over.Stop()
	lost := fmt.Sprintf("node %s restarted while the worker ran there, and ", n.name())
	for {
		changed := n.dir.watch()
		if e, ok := n.dir.get(w.ID); ok && e.Epoch > w.epochNow() {
			n.supersede(w, e.Home, e.Epoch)
			return
		}
		err := k.tellYield(w.ctx)
		switch k.phase() {
		case lease.Over:
			k.over()
			return
		case lease.Lost:
			n.loseOrphan(w, lost+"its guardian, node "+k.guardianName()+", does not have it")
			return
		}
		if err != nil {
			n.log.Debug("orphan not yielded", "worker", w.ID, "error", err)
		}
		select {
		case <-time.After(orphanAsk):
		case <-changed:
		case <-over.C:
			n.loseOrphan(w, lost+"its guardian, node "+k.guardianName()+", has not answered since")
			return
		case <-w.ctx.Done():
			if n.ctx.Err() != nil {
				return // the next start asks again
			}
			for range farewells { // its user has stopped it
				if k.release(n.ctx); k.phase() != lease.Yielded {
					return
				}
			}
			return
		}
	}
}

// tellYield asks the guardian once to take the worker, and takes its answer.
func (k *keeper) tellYield(ctx context.Context) error {
	k.mu.Lock()
	m, to := k.own.Yield(), k.guardian
	k.setFenceLocked()
	k.mu.Unlock()
	answer, err := k.exchange(ctx, to, m, releasePatience)
	if err != nil {
		return err
	}
	k.mu.Lock()
	k.own.Answer(answer, lease.Now())
	k.setFenceLocked()
	over := k.own.Phase() == lease.Over
	k.mu.Unlock()
	if over {
		k.n.supersede(k.w, k.takenTo(answer), answer.Epoch)
	}
	if answer.Kind == lease.Refused {
		return fmt.Errorf("node %s: %s", k.guardianName(), answer.Reason)
	}
	return nil
}

// loseOrphan ends an orphan that nobody takes.
func (n *Node) loseOrphan(w *worker, reason string) {
	e := n.event(w, control.EventFallback, "lost", reason)
	e.From, e.Outcome = n.name(), control.OutcomeLost
	n.forget(w)
	w.kill(control.StateLost, reason)
	n.events.add(e)
}

// stopOrphan ends an orphan for good; its guardian hears of that, if it can.
func (n *Node) stopOrphan(w *worker) error {
	w.kill(control.StateStopped, "")
	n.forget(w)
	return n.deleteRecord(w)
}

// describeOrphan says what can be said of a worker that is its guardian's.
func (w *worker) describeOrphan() control.Worker {
	c := w.describe()
	c.Guardian = w.guardianState()
	return c
}

// notHereError refuses what needs a worker itself that does not run yet.
func notHereError(e entry) error {
	return &control.Error{
		Code: control.CodeConflict, Message: strings.TrimSuffix(fmt.Sprintf("worker %s is %s: %s", e.Name, e.State, e.Reason), ": "),
		Hint: "try again in a moment; `meshnode worker show " + e.Name + "` says how it fares",
	}
}

// yieldWorkers gives workers that are still here to their guardians, because the
// node is about to stop. ctx says until when.
func (n *Node) yieldWorkers(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, yieldTime)
	defer cancel()
	var all sync.WaitGroup
	for _, k := range n.guarded() {
		all.Go(func() {
			l := leaving{ctx, make(chan struct{})}
			select {
			case k.leave <- l:
			case <-ctx.Done():
				return
			}
			select {
			case <-l.done:
			case <-ctx.Done():
			}
		})
	}
	all.Wait()
}

// guarded returns the keepers of the workers here that have a guardian which could
// take them now.
func (n *Node) guarded() (ks []*keeper) {
	for _, w := range n.locals() {
		w.mu.Lock()
		k, settled := w.keeper, w.settledLocked()
		w.mu.Unlock()
		if k == nil || !settled {
			continue
		}
		k.mu.Lock()
		bound, to := k.own.Phase() == lease.Bound, k.guardian
		k.mu.Unlock()
		if m, ok := n.mesh.Member(to); bound && ok && m.State == mesh.Alive && !m.Record.Leaving {
			ks = append(ks, k)
		}
	}
	return ks
}

// leaving asks a keeper to yield its worker until ctx is done, and to close done.
type leaving struct {
	ctx  context.Context
	done chan struct{}
}

// yield gives the worker to its guardian, with its last state if that has
// checkpoints. It is called on the keeper's goroutine; when it returns the copy here
// has ended.
func (k *keeper) yield(ctx context.Context) {
	n, w := k.n, k.w
	k.mu.Lock()
	rep := k.rep
	k.mu.Unlock()
	if rep != nil {
		if err := rep.finish(ctx); err != nil {
			n.log.Warn("no last checkpoint", "worker", w.ID, "name", w.Name, "error", err)
		}
	}
	k.endReplica()
	// Nothing that it does is seen from here on.
	w.fence.Store(1)
	w.endLoop()
	if err := k.tellYield(ctx); err != nil {
		n.log.Warn("worker not yielded to its guardian", "worker", w.ID, "name", w.Name, "guardian", k.guardianName(), "error", err)
	}
	if k.phase() == lease.Over {
		k.over()
	}
}

// leaveBehind ends the copy here of a worker that has a guardian, as the node
// does: sessions are to wait for what that one makes of it. It reports false where
// nobody takes the worker.
func (w *worker) leaveBehind() bool {
	w.mu.Lock()
	k := w.keeper
	w.mu.Unlock()
	if k == nil {
		return false
	}
	if p := k.phase(); p != lease.Bound && p != lease.Yielded {
		return false
	}
	w.endLoop()
	w.setState(control.StateOrphaned, fmt.Sprintf("node %s was stopped; node %s, its guardian, goes on with it within %v", w.node.name(), k.guardianName(), lease.Wait(k.leaseTime())))
	w.discard()
	return true
}
