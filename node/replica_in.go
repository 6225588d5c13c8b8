package node

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"time"

	"meshnode/mesh"
	"meshnode/node/handover"
	"meshnode/node/lease"
	"meshnode/node/runner"
)

// replicaShare is the part of a node's memory that checkpoints of others'
// workers may take. The collector lets them take twice that.
const replicaShare = 8

// admitReplica claims memory for a checkpoint, or says why there is none. The
// caller gives back what it does not keep.
func (n *Node) admitReplica(bytes int64) error {
	total, free := n.memory()
	gs := n.guards
	gs.mu.Lock()
	defer gs.mu.Unlock()
	most := int64(total / replicaShare)
	if total == 0 {
		most = maxStoreBytes
	}
	switch {
	case gs.replicaBytes+bytes > most:
		return fmt.Errorf("no room for %d MiB: checkpoints take %d of the %d MiB of memory that they may take", bytes>>20, gs.replicaBytes>>20, most>>20)
	case free > 0 && bytes > int64(free/2):
		return fmt.Errorf("no room for %d MiB: %d MiB of memory are free, of which a checkpoint may take half", bytes>>20, free>>20)
	}
	gs.replicaBytes += bytes
	return nil
}

// kept is what checkpoints take here, in bytes.
func (gs *guards) kept() uint64 {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	return uint64(gs.replicaBytes)
}

func (gs *guards) giveBack(bytes int64) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	gs.replicaBytes -= bytes
}

// holdsLocked says whether this node holds that lease of that owner.
func (g *guard) holdsLocked(owner mesh.NodeID, b *replicaBegin) bool {
	rec := g.g.Record()
	return rec.Held() && rec.Ticket == b.Ticket && rec.Epoch == b.Epoch && rec.Owner == string(owner)
}

// tidyLocked drops the worker's checkpoint once its lease is given up. One of a
// worker that was taken stays until that runs.
func (gs *guards) tidyLocked(g *guard) {
	r := g.replica
	if r == nil {
		return
	}
	rec := g.g.Record()
	held := rec.Held() && rec.Ticket == r.ticket
	taken := !rec.Held() && rec.Meta != nil && rec.Taken == r.epoch+lease.Step
	if held || taken {
		return
	}
	g.replica = nil
	gs.giveBack(r.bytes)
}

// serveReplica takes the checkpoints of one owner's worker.
func (n *Node) serveReplica(ctx context.Context, s *mesh.Stream) {
	stop := context.AfterFunc(ctx, func() { interrupt(s) })
	defer stop()
	for {
		var f replicaFrame
		err := mesh.ReadMessage(s, maxReplicaFrame, &f)
		if err == nil && f.Begin == nil {
			err = errors.New("a checkpoint without a beginning")
		}
		if err == nil {
			err = n.takeReplica(s, *f.Begin)
		}
		if err != nil {
			n.log.Debug("checkpoint stream ended", "peer", s.Peer(), "error", err)
			return
		}
	}
}

// takeReplica takes one checkpoint, or says why not. An error ends the stream.
func (n *Node) takeReplica(s *mesh.Stream, b replicaBegin) error {
	answer := func(a replicaAnswer) error {
		a.Reason = cutTo(a.Reason, maxReplicaReason)
		return mesh.WriteMessage(s, a)
	}
	if err := b.validate(); err != nil {
		return err
	}
	g := n.guards.find(b.Worker)
	if g == nil {
		return answer(replicaAnswer{Reason: errNoLease.Error()})
	}
	st, no, err := g.stage(s.Peer(), b)
	if err != nil {
		return err
	}
	if st == nil {
		return answer(no)
	}
	claimed := b.bytes()
	if err := n.admitReplica(claimed); err != nil {
		return answer(replicaAnswer{Reason: err.Error()})
	}
	defer func() { n.guards.giveBack(claimed) }()
	if err := answer(replicaAnswer{Go: true}); err != nil {
		return err
	}
	for over := false; !over; {
		var f replicaFrame
		if err := mesh.ReadMessage(s, st.limit(), &f); err != nil {
			return err
		}
		if over, err = st.take(f); err != nil {
			return errors.Join(err, answer(replicaAnswer{Reason: err.Error()}))
		}
	}
	if err := n.keepReplica(g, s.Peer(), st); err != nil {
		return answer(replicaAnswer{Reason: err.Error()})
	}
	return answer(replicaAnswer{Kept: true})
}

// stage begins a checkpoint, or says what to answer instead.
func (g *guard) stage(owner mesh.NodeID, b replicaBegin) (*stage, replicaAnswer, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	base := g.replica
	switch {
	case !g.holdsLocked(owner, &b):
		return nil, replicaAnswer{Reason: errNoLease.Error()}, nil
	case len(b.Base) == 0:
		base = nil
	case base == nil || !bytes.Equal(base.digest[:], b.Base):
		return nil, replicaAnswer{Unknown: true}, nil
	}
	st, err := newStage(b, base)
	return st, replicaAnswer{}, err
}

var errNoLease = errors.New("it does not hold the worker's lease (any more)")

// keepReplica makes a whole checkpoint the one that counts, unless the lease was
// given up meanwhile, or has run out, or another checkpoint came.
func (n *Node) keepReplica(g *guard, owner mesh.NodeID, st *stage) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.holdsLocked(owner, &st.begin) {
		return errNoLease
	}
	if st.base != nil && (g.replica != st.base || !bytes.Equal(st.base.digest[:], st.begin.Base)) {
		return errors.New("another checkpoint has come meanwhile")
	}
	before := int64(0)
	if g.replica != nil {
		before = g.replica.bytes
	}
	g.replica = st.replica(guardClock())
	n.guards.giveBack(before - g.replica.bytes)
	return nil
}

// find returns a worker's guard, or nil.
func (gs *guards) find(worker string) *guard {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	return gs.of[worker]
}

// continueReplica starts a worker that was taken, in that epoch, where its
// checkpoint has it. from is the node that fell silent; prepare is called before
// anyone hears of the worker.
func (n *Node) continueReplica(ctx context.Context, rep *replica, epoch uint64, from string, prepare func(*worker)) error {
	img, err := parseImage(rep.head)
	if err != nil {
		return err
	}
	s := img.Spec
	if err := n.reserve(s.claim()); err != nil {
		return err
	}
	defer n.unreserve(s.claim())
	logs := newLogRing()
	r, err := n.startRunner(ctx, s, "", epoch, logs)
	if err != nil {
		return err
	}
	w, err := n.fillReplica(ctx, r, rep, img, epoch, logs)
	if err == nil {
		w.origin = origin{Epoch: epoch, From: from, Checkpoint: true, Since: img.Origin.Epoch}
		prepare(w)
		w.place.pinned = img.App.Pinned
		err = n.journalTaken(w)
	}
	if err != nil {
		r.Close()
		return fmt.Errorf("from its checkpoint: %w", err)
	}
	n.mu.Lock()
	n.workers[w.ID] = w
	delete(n.ended, w.ID) // an earlier life of it here
	n.mu.Unlock()
	if !w.paused {
		w.timers.run(time.Now())
	}
	w.outbox.start()
	w.shown()
	w.start()
	return nil
}

// fillReplica makes a worker in a new runner what its checkpoint says.
func (n *Node) fillReplica(ctx context.Context, r *runner.Runner, rep *replica, img image, epoch uint64, logs *logRing) (*worker, error) {
	if err := r.Clear(ctx); err != nil {
		return nil, err
	}
	size := int(img.State.Pages) * wasmPage
	rep.fill(r.Region().Data[:size])
	if err := r.Restore(ctx, img.State); err != nil {
		return nil, err
	}
	w := n.newWorker(img.Spec, epoch, r, logs)
	w.events, w.memory, w.paused = img.Events, uint64(size), img.Paused
	if err := checkBound(img.App.Interfaces); err != nil {
		return nil, err
	}
	w.reads.bind(img.App.Interfaces)
	// Sessions that have seen nothing later than this go on.
	for i := range img.Senders {
		img.Senders[i].From = img.Senders[i].Done
	}
	if err := w.inbox.restore(img.Senders, time.Now()); err != nil {
		return nil, err
	}
	if !img.Last {
		img.Outbox = sentAnew(img.Outbox)
	}
	if err := w.outbox.restore(img.Outbox); err != nil {
		return nil, err
	}
	if err := w.timers.restore(img.Timers); err != nil {
		return nil, err
	}
	if err := w.restoreConsole(img); err != nil {
		return nil, err
	}
	w.look()
	return w, nil
}

// sentAnew is the outbox of a worker that goes on from an earlier moment. What it
// sends from then on may be other than what it sent then, under the same numbers;
// so it begins as another sender, and what had not been handled at that moment
// goes again.
func sentAnew(out []outState) (anew []outState) {
	for _, t := range out {
		if len(t.Pending) == 0 {
			continue
		}
		o := outState{Name: t.Name, Worker: t.Worker, Next: uint64(len(t.Pending)) + 1}
		crand.Read(o.Sender[:])
		for i, m := range t.Pending {
			o.Pending = append(o.Pending, deliverMessage{Seq: uint64(i) + 1, Call: m.Call, Payload: m.Payload})
		}
		anew = append(anew, o)
	}
	return anew
}

// journalTaken puts on disk that a worker which was taken is this node's.
func (n *Node) journalTaken(w *worker) error {
	earlier, _, err := n.journal.Get(w.ID)
	if err != nil {
		return err
	}
	return n.journal.Put(handover.Record{
		Worker: w.ID, Epoch: w.epoch, Own: handover.OwnRunning, Updated: time.Now().Unix(), Meta: w.spec.meta(""),
		Unsettled: earlier.Unsettled, // of when it was here before
	})
}

// ago says how long ago a checkpoint was whole.
func (r *replica) ago() string {
	return (guardClock() - r.at).Round(100 * time.Millisecond).String()
}

// superseded says whether a session can go on with a worker that began in o: one
// that was served in epoch last, has seen replies up to seen, and of which the
// worker's checkpoint has handled messages up to from.
func (o origin) superseded(epoch, seen, from uint64) bool {
	switch {
	case epoch == 0 || epoch >= o.Epoch:
		return false
	case !o.Checkpoint || epoch < o.Since:
		// It began anew; or it did once more since the session was served.
		return true
	}
	return seen > from
}

// reason says what became of a session that the worker cannot go on with.
func (o origin) reason() string {
	if o.Checkpoint {
		return fmt.Sprintf("node %s, which ran it, fell silent, and it goes on elsewhere from an earlier checkpoint; some of what this session had a reply to is undone, what has no reply may or may not have been handled", o.From)
	}
	return fmt.Sprintf("node %s, which ran it, fell silent, and it was started anew elsewhere, without its state; what has no reply may or may not have been handled", o.From)
}
