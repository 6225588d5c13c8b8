package node

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/node/journal"
	"meshnode/node/lease"
	"meshnode/placement/manifest"
)

// This is the owner's side of a lease; package lease says what one is and why
// it is safe, guardian.go is the other side. A worker whose manifest has
// onDisconnect: fallback gets a keeper, which finds it a guardian, by the
// fallback list, and renews its lease there as long as it is at home here.
//
// Between two renewals nothing runs that could look at a clock in time: an event
// may take seconds, the node may be stopped and continued. So the end of the
// lease is a time that everything looks at which is about to do something of
// consequence (worker.fenced): the loop before it hands the worker an event, the
// inbox before a reply leaves, the outbox before it takes what an event sent. What
// an event did that was under way when the lease ran out is seen by nobody, until
// the guardian says that the lease still stands.

// protoLease carries lease.Messages: each of an owner's is answered before its
// next.
const protoLease = "lease"

const (
	// fenceLook is how often a node looks for leases that have run out: until
	// then a command's program computes on, which the guardian's margin covers.
	fenceLook = 200 * time.Millisecond
	// maxRenew is the longest time between two renewals; short leases are renewed
	// renewShare times while they last.
	maxRenew   = time.Second
	renewShare = 5
	// leaseLook is how often a worker without a guardian looks for one, and
	// betterLook how often one with a guardian looks for a better.
	leaseLook  = 5 * time.Second
	betterLook = 30 * time.Second
	// releasePatience is how long whoever wants to move a worker waits for its
	// guardian to let go, and farewells how often a worker that has ended tries
	// to tell its guardian.
	releasePatience = 3 * time.Second
	retryRelease    = 100 * time.Millisecond
	farewells       = 3
	// warmTries is how often a guardian is asked to make a module ready, which may
	// be at another.
	warmTries = 5
)

// A keeper keeps the lease of one worker at home here. Its goroutine sends the
// messages; the rest is safe for concurrent use.
type keeper struct {
	n    *Node
	w    *worker
	wake chan struct{} // a token: look now

	mu       sync.Mutex
	own      lease.Owner
	guardian mesh.NodeID      // who is asked, or has the lease
	held     bool             // it has answered a renewal
	text     []byte           // the manifest that the guardian has
	bound    []boundInterface // where the worker reads interfaces, as the guardian knows
	fenced   bool             // the worker has been told that it is
	telling  bool             // it is being told
	swap     bool             // there is a better guardian
	holds    int              // those who need it to have no guardian
	why      string           // why it has none
	known    string           // the guardian's name, of before the node was started
	rep      *replicator      // gives it the worker's state; nil without a lease, or a wish for that
	changed  chan struct{}

	line   *mesh.Stream // to lineTo; the goroutine's
	lineTo mesh.NodeID

	leave chan leaving // the node stops
}

func newKeeper(n *Node, w *worker) *keeper {
	return &keeper{
		n: n, w: w, wake: make(chan struct{}, 1), changed: make(chan struct{}), leave: make(chan leaving),
	}
}

// keepLeases looks after the leases of the workers here, and of those for which
// this node is the guardian, until ctx is done.
func (n *Node) keepLeases(ctx context.Context) {
	t := time.NewTicker(fenceLook)
	defer t.Stop()
	for {
		for _, w := range n.locals() {
			n.lookAtLease(w)
		}
		n.lookAtGuards()
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// lookAtLease finds out whether a worker here needs a keeper, has outlived its
// lease, or lives elsewhere by now.
func (n *Node) lookAtLease(w *worker) {
	w.mu.Lock()
	k, over, epoch := w.keeper, ended(w.state), w.epoch
	settled := w.move == nil && !w.gated && !w.draining
	if k == nil && w.settledLocked() && w.wantsGuardian() {
		k = newKeeper(n, w)
		w.keeper = k
		n.tasks.Go(k.run)
	}
	w.mu.Unlock()
	// A guardian that took it may be gone again: then the directory knows more.
	if e, ok := n.dir.get(w.ID); ok && settled && e.Epoch > epoch && (over && !ended(e.State) || !over && k != nil) && n.arrival(w.ID) == nil {
		if over {
			n.forgetEnded(w)
		} else {
			n.supersede(w, e.Home, e.Epoch)
		}
		return
	}
	if k != nil && !over && k.phase() != lease.Yielded {
		k.watch()
	}
}

// wantsGuardian says whether the worker's manifest asks for one.
func (w *worker) wantsGuardian() bool {
	app, _, _, applied := w.place.get()
	return applied && app.OnDisconnect.Action == manifest.DisconnectFallback
}

// fenced says that the worker must not do anything now that others would see:
// its lease has run out.
func (w *worker) fenced() bool {
	at := w.fence.Load()
	return at != 0 && int64(lease.Now()) >= at
}

// holdBack keeps what the worker sends here while it is fenced; the inbox does the
// same with replies. It is called on the loop.
func (w *worker) holdBack() {
	w.heldBack = true
	w.outbox.stop()
}

// letOut lets go what was held back, if the worker is not fenced any more. It is
// called on the loop.
func (w *worker) letOut() {
	if w.fenced() {
		return
	}
	if w.inbox.isHeldBack() {
		w.inbox.flush()
	}
	if w.heldBack {
		w.heldBack = false
		w.outbox.start()
	}
}

// setFenceLocked has fenced go by the lease. 0 is no fence.
func (k *keeper) setFenceLocked() {
	at, bound := k.own.Deadline()
	switch {
	case !bound:
		k.w.fence.Store(0)
	default:
		k.w.fence.Store(max(int64(at), 1))
	}
	close(k.changed)
	k.changed = make(chan struct{})
}

// watch has the worker told when its lease has run out, and when it has not
// after all.
func (k *keeper) watch() {
	now := k.w.fenced()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.telling || k.fenced == now {
		return
	}
	k.telling = true
	k.n.tasks.Go(func() {
		told := k.tell(now)
		k.mu.Lock()
		k.telling = false
		if told {
			k.fenced = now
		}
		k.mu.Unlock()
	})
}

// tell has the worker stand still, or go on.
func (k *keeper) tell(stop bool) (told bool) {
	w := k.w
	err := w.command(w.ctx, func() error {
		if w.fenced() != stop {
			return errors.New("it is not so any more") // another look finds out
		}
		if stop {
			w.holdBack()
			return w.stand(context.WithoutCancel(w.ctx))
		}
		w.letOut()
		w.runAgain()
		return nil
	})
	if err != nil {
		return false
	}
	e := k.n.event(w, control.EventFallback, "lease-lapsed", k.describeLapse())
	e.From, e.Outcome = k.n.name(), "frozen"
	if !stop {
		e.Reason, e.Text, e.Outcome = "lease-renewed", "its guardian answers again and has not taken it", "running"
	}
	e.To = k.guardianName()
	k.n.events.add(e)
	k.n.log.Info("worker told of its lease", "worker", w.ID, "name", w.Name, "lapsed", stop)
	return true
}

func (k *keeper) guardianName() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.guardianNameLocked()
}

func (k *keeper) guardianNameLocked() string {
	if k.guardian == "" {
		return ""
	}
	if _, ok := k.n.mesh.Member(k.guardian); !ok && k.known != "" {
		return k.known
	}
	return k.n.nameOf(k.guardian)
}

// describeLapse says why a worker stands still whose lease has run out.
func (k *keeper) describeLapse() string {
	return fmt.Sprintf("its guardian, node %s, has not answered for %v and may have taken it over", k.guardianName(), k.leaseTime())
}

func (k *keeper) leaseTime() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.own.Lease()
}

// describe is what the control API says of the lease; nil if the worker has no
// keeper.
func (w *worker) guardianState() *control.Guardian {
	w.mu.Lock()
	k := w.keeper
	w.mu.Unlock()
	if k == nil {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	g := &control.Guardian{State: control.LeaseNone, LeaseMs: control.Millis(k.own.Lease()), Reason: k.why}
	if k.guardian != "" {
		g.Node, g.NodeName = string(k.guardian), k.guardianNameLocked()
	}
	switch k.own.Phase() {
	case lease.Asked, lease.Ready:
		g.State = control.LeaseAsked
	case lease.Bound, lease.Over:
		g.State, g.Reason = control.LeaseHeld, ""
		g.AgeMs = control.Millis(lease.Now() - k.own.Good())
		switch {
		case w.fenced():
			g.State = control.LeaseLapsed
		case !k.held: // the guardian may know nothing of it yet
			g.State = control.LeaseAsked
		}
		if k.rep != nil {
			g.Checkpoint = k.rep.describe()
		}
	case lease.Yielded:
		g.State, g.Reason = control.LeaseYielded, ""
	}
	return g
}

// guardianNow is the node that holds the worker's lease; empty without one.
func (w *worker) guardianNowLocked() mesh.NodeID {
	k := w.keeper
	if k == nil {
		return ""
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if p := k.own.Phase(); p != lease.Bound && p != lease.Yielded {
		return ""
	}
	return k.guardian
}

// run keeps the lease until the worker is not this node's any more, or does not
// want one.
func (k *keeper) run() {
	w := k.w
	defer k.hangUp()
	defer func() {
		if p := k.phase(); k.n.ctx.Err() != nil && p == lease.Bound || p == lease.Yielded {
			return // whoever ends the worker must know that it has a guardian
		}
		w.mu.Lock()
		w.keeper = nil
		w.mu.Unlock()
	}()
	defer k.endReplica()
	var looked time.Time // for a guardian, or a better one
	for w.ctx.Err() == nil {
		k.mu.Lock()
		phase, held, swap := k.own.Phase(), k.holds > 0, k.swap
		k.swap = false
		k.mu.Unlock()
		pause := maxRenew
		switch {
		case phase == lease.Over:
			k.endReplica()
			k.over()
			return
		case phase == lease.Bound && (held || swap || !k.stillWanted()):
			k.endReplica()
			k.release(w.ctx)
			looked, pause = time.Time{}, retryRelease
		case phase == lease.Bound || phase == lease.Ready:
			pause = k.renew()
			k.replicate()
			if time.Since(looked) > betterLook && !w.fenced() {
				looked = time.Now()
				k.n.tasks.Go(k.lookForBetter)
			}
		case !w.wantsGuardian():
			return
		case !held && time.Since(looked) > leaseLook && w.settled():
			looked = time.Now()
			if k.find() {
				pause = 0
			}
		}
		select {
		case <-time.After(pause):
		case <-k.wake:
		case <-w.ctx.Done():
		case l := <-k.leave:
			yields := k.phase() == lease.Bound && w.settled()
			if yields {
				k.yield(l.ctx)
			}
			close(l.done)
			if yields {
				return
			}
		}
	}
	k.endReplica()
	if k.n.ctx.Err() != nil {
		return // the node stops; its guardian sees to the worker
	}
	// It has ended, or was found to live elsewhere: the guardian is to know.
	for range farewells {
		switch k.phase() {
		case lease.Bound:
			k.release(k.n.ctx)
		case lease.Over:
			k.over()
			return
		default:
			return
		}
	}
}

func (k *keeper) phase() lease.Phase {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.own.Phase()
}

// settled says that the worker is here for good, as far as is known.
func (w *worker) settled() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.settledLocked()
}

func (w *worker) settledLocked() bool {
	return !ended(w.state) && w.state != control.StateStarting && w.move == nil && !w.gated && !w.draining
}

// stillWanted says whether the guardian knows the manifest that the worker goes by,
// and where it reads interfaces, and the manifest asks for a guardian.
func (k *keeper) stillWanted() bool {
	if !k.w.wantsGuardian() {
		return false
	}
	k.w.place.mu.Lock()
	text := k.w.place.text
	k.w.place.mu.Unlock()
	bound := k.w.reads.bound()
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Equal(text, k.text) && slices.Equal(bound, k.bound)
}

// candidates returns the nodes that may be the guardian, the best first.
func (k *keeper) candidates() ([]mesh.NodeID, error) {
	w, n := k.w, k.n
	short, cancel := context.WithTimeout(w.ctx, loopPatience)
	facts, err := w.placementWorker(short, time.Now())
	cancel()
	if errors.Is(err, errGone) {
		return nil, err
	}
	if err != nil {
		facts = w.factsInEvent(time.Now())
	}
	v, _, err := n.view(w.ctx, nil)
	if err != nil {
		return nil, err
	}
	app, _, _, _ := w.place.get()
	var ids []mesh.NodeID
	for _, id := range v.Fallback(app, &facts) {
		ids = append(ids, mesh.NodeID(id))
	}
	return ids, nil
}

// find asks the nodes of the fallback list, in its order, until one accepts.
func (k *keeper) find() (found bool) {
	w, n := k.w, k.n
	ids, err := k.candidates()
	if err == nil && len(ids) == 0 {
		err = errors.New("no node of the fallback list is there and fits")
	}
	app, _, _, _ := w.place.get()
	w.place.mu.Lock()
	text := w.place.text
	w.place.mu.Unlock()
	bound := w.reads.bound()
	meta := recordMeta{Spec: w.spec, App: &appState{Version: appStateVersion, Manifest: text, Interfaces: bound}}.encode()
	for _, id := range ids {
		// A move needs hold, and then counts as one: no lease begins beside it.
		w.mu.Lock()
		settled := w.settledLocked()
		k.mu.Lock()
		if k.holds > 0 || !settled {
			k.mu.Unlock()
			w.mu.Unlock()
			return false
		}
		k.own, k.held = lease.NewOwner(w.ID, w.epoch, app.OnDisconnect.After.D()), false
		ask := k.own.Ask(meta)
		k.guardian, k.text, k.bound = id, text, bound
		k.mu.Unlock()
		w.mu.Unlock()
		// It fetches the module first. Whoever wants the worker to have no guardian
		// meanwhile ends the wait.
		ctx, cancel := context.WithTimeout(w.ctx, prepareTimeout)
		stop := context.AfterFunc(k.untilHeld(ctx), cancel)
		answer, aerr := k.exchange(ctx, id, ask, prepareTimeout)
		stop()
		cancel()
		k.mu.Lock()
		if aerr != nil {
			answer = lease.Message{Kind: lease.Refused, Worker: w.ID, Reason: aerr.Error()}
		}
		k.own.Answer(answer, lease.Now())
		phase := k.own.Phase()
		k.setFenceLocked()
		k.mu.Unlock()
		switch phase {
		case lease.Ready:
			// On disk before the lease begins: after a crash the node knows whom to
			// ask.
			if err = k.note(); err == nil {
				k.setWhy("")
				return true
			}
			k.mu.Lock()
			k.own = lease.NewOwner(w.ID, w.epochNow(), k.own.Lease())
			k.setFenceLocked()
			k.mu.Unlock()
		case lease.Over:
			k.taken(answer)
			return true
		default:
			err = fmt.Errorf("node %s did not accept: %s", n.nameOf(id), answer.Reason)
		}
	}
	k.mu.Lock()
	k.guardian = ""
	k.mu.Unlock()
	if err != nil && w.ctx.Err() == nil {
		k.setWhy(err.Error())
	}
	return false
}

// untilHeld returns a context that ends when somebody needs the worker to have
// no guardian, or with ctx.
func (k *keeper) untilHeld(ctx context.Context) context.Context {
	held, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		for {
			k.mu.Lock()
			stop, changed := k.holds > 0, k.changed
			k.mu.Unlock()
			if stop {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return held
}

// setWhy notes why there is no guardian, and tells it once.
func (k *keeper) setWhy(why string) {
	k.mu.Lock()
	was := k.why
	k.why = why
	k.mu.Unlock()
	if why == "" || why == was {
		return
	}
	e := k.n.event(k.w, control.EventFallback, "no-guardian", "nobody would take it over: "+why)
	e.From, e.Outcome = k.n.name(), "running"
	k.n.events.add(e)
}

// lookForBetter finds out whether another node should be the guardian: one that
// the list names earlier, or any, where this one does not fit any more. It asks
// other nodes for their paths, and renewals must not wait for that.
func (k *keeper) lookForBetter() {
	ids, err := k.candidates()
	if err != nil || len(ids) == 0 {
		return
	}
	app, _, _, _ := k.w.place.get()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.swap = !slices.Contains(ids, k.guardian) || k.n.inChain(app, ids[0]) < k.n.inChain(app, k.guardian)
}

// inChain is where the fallback list names a node first.
func (n *Node) inChain(app *manifest.App, id mesh.NodeID) int {
	m, _ := n.mesh.Member(id)
	i := slices.IndexFunc(app.Fallback, func(f manifest.Fallback) bool {
		if f.Node != "" {
			return f.Node == string(id) || f.Node == m.Record.Name
		}
		return string(f.Tier) == m.Record.Tier.String()
	})
	if i < 0 {
		return math.MaxInt
	}
	return i
}

// renew renews the lease once and returns how long to wait until the next time.
func (k *keeper) renew() time.Duration {
	k.mu.Lock()
	begun := lease.Now()
	m := k.own.Renew(begun)
	k.setFenceLocked()
	to, length := k.guardian, k.own.Lease()
	k.mu.Unlock()
	every := min(maxRenew, length/renewShare)
	answer, err := k.exchange(k.w.ctx, to, m, max(length/4, every))
	if err != nil {
		k.n.log.Debug("lease not renewed", "worker", k.w.ID, "guardian", to, "error", err)
		return max(0, every-(lease.Now()-begun))
	}
	k.answered(answer)
	select {
	case k.w.opened <- struct{}{}: // what was held back while it had run out may go
	default:
	}
	k.mu.Lock()
	first := !k.held && k.own.Phase() == lease.Bound
	k.held = k.held || first
	k.mu.Unlock()
	if first {
		e := k.n.event(k.w, control.EventFallback, "guardian", fmt.Sprintf("node %s takes it over if nothing is heard of this node for %v", k.n.nameOf(to), lease.Wait(length)))
		e.From, e.To, e.Outcome = k.n.name(), k.n.nameOf(to), control.OutcomeDone
		k.n.events.add(e)
		k.w.announce()
		k.n.tasks.Go(func() { k.warm(to) })
	}
	return max(0, every-(lease.Now()-begun))
}

// warm has the guardian make the worker's module ready, so that it starts the
// worker sooner if it has to. Nothing depends on it.
func (k *keeper) warm(to mesh.NodeID) {
	w := k.w
	for range warmTries {
		err := k.n.askWarm(to, warmWant{Module: w.Module, Bytes: w.ModuleBytes, MemoryLimit: w.MemoryLimit, Kind: w.kind()})
		if err == nil {
			return
		}
		k.n.log.Debug("guardian not ready for a worker", "worker", w.ID, "guardian", to, "error", err)
		select {
		case <-time.After(restInterval):
		case <-w.ctx.Done():
			return
		}
	}
}

// answered takes an answer of the guardian's.
func (k *keeper) answered(m lease.Message) {
	k.mu.Lock()
	before := k.own.Phase()
	k.own.Answer(m, lease.Now())
	after := k.own.Phase()
	k.setFenceLocked()
	k.mu.Unlock()
	if after == before {
		return
	}
	if after == lease.Over {
		k.taken(m)
	} else if k.w.ctx.Err() == nil {
		k.w.announce() // that it has no guardian
	}
}

// taken keeps in mind who has taken the worker.
func (k *keeper) taken(m lease.Message) {
	home := k.takenTo(m)
	k.n.tasks.Go(func() { k.n.supersede(k.w, home, m.Epoch) })
}

// takenTo is where the worker is that was taken.
func (k *keeper) takenTo(m lease.Message) mesh.NodeID {
	if home := mesh.NodeID(m.Home); home.Valid() {
		return home
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.guardian
}

// over tells the guardian that the copy here has ended.
func (k *keeper) over() {
	select {
	case <-k.w.ended:
	case <-k.n.ctx.Done():
		return
	}
	k.mu.Lock()
	m, to := k.own.Heard(), k.guardian
	k.mu.Unlock()
	for range farewells {
		if _, err := k.exchange(k.n.ctx, to, m, releasePatience); err == nil {
			return
		}
	}
}

// release gives the lease back. If no answer comes the worker stays bound.
func (k *keeper) release(ctx context.Context) {
	k.mu.Lock()
	m, to := k.own.Release(), k.guardian
	k.mu.Unlock()
	answer, err := k.exchange(ctx, to, m, time.Second)
	if err != nil {
		k.n.log.Debug("lease not given back", "worker", k.w.ID, "guardian", to, "error", err)
		return
	}
	k.answered(answer)
}

// exchange sends a message and returns the answer to it.
func (k *keeper) exchange(ctx context.Context, to mesh.NodeID, m lease.Message, patience time.Duration) (answer lease.Message, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if k.line != nil && k.lineTo != to {
		k.hangUp()
	}
	if k.line == nil {
		s, err := k.n.mesh.Open(ctx, to, protoLease, mesh.Urgent)
		if err != nil {
			return answer, err
		}
		k.line, k.lineTo = s, to
	}
	// What comes late must not pass for the answer to something else.
	defer func() {
		if err != nil {
			k.hangUp()
		}
	}()
	line := k.line
	stop := context.AfterFunc(ctx, func() { interrupt(line) })
	defer stop()
	if err := mesh.WriteMessage(line, m); err != nil {
		return answer, err
	}
	if err := mesh.ReadMessage(line, lease.MaxMessage, &answer); err != nil {
		return answer, err
	}
	if err := answer.Validate(); err != nil {
		return answer, err
	}
	if answer.Worker != m.Worker {
		return answer, fmt.Errorf("an answer about worker %.40q", answer.Worker)
	}
	if !stop() {
		return answer, context.Cause(ctx) // the stream has been interrupted
	}
	return answer, nil
}

func (k *keeper) hangUp() {
	if k.line != nil {
		_ = k.line.Close()
		k.line = nil
	}
}

// withoutGuardian waits until the worker has no guardian, and keeps it so until
// done is called: it is to be moved, and its guardian must not take it meanwhile.
func (w *worker) withoutGuardian(ctx context.Context) (done func(), err error) {
	w.mu.Lock()
	k := w.keeper
	w.mu.Unlock()
	if k == nil {
		return func() {}, nil
	}
	k.hold(1)
	done = func() { k.hold(-1) }
	patience := time.NewTimer(releasePatience)
	defer patience.Stop()
	for {
		k.mu.Lock()
		phase, changed := k.own.Phase(), k.changed
		k.mu.Unlock()
		switch phase {
		case lease.Free:
			return done, nil
		case lease.Over:
			done()
			return nil, errGone
		}
		select {
		case <-changed:
		case <-w.ended:
			done()
			return nil, errGone
		case <-patience.C:
			done()
			return nil, &control.Error{
				Code:    control.CodeUnreachable,
				Message: fmt.Sprintf("worker %s cannot be moved now: its guardian, node %s, has to give it up first, and does not answer", w.Name, k.guardianName()),
				Hint:    "try again when that node answers; `meshnode worker show " + w.Name + "` tells of the lease",
			}
		case <-ctx.Done():
			done()
			return nil, context.Cause(ctx)
		}
	}
}

func (k *keeper) hold(by int) {
	k.mu.Lock()
	k.holds += by
	close(k.changed)
	k.changed = make(chan struct{})
	k.mu.Unlock()
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// supersede ends a worker here that another node has taken over: what it did
// since its lease ran out has been seen by nobody, and what it did before is lost
// with its memory.
func (n *Node) supersede(w *worker, home mesh.NodeID, epoch uint64) {
	w.mu.Lock()
	was := w.superseded
	w.superseded = true
	w.mu.Unlock()
	if was {
		return
	}
	w.fence.Store(1)
	old := w.epochNow()
	w.remark("worker superseded: node %s has taken it over in epoch %d", n.nameOf(home), epoch)
	n.log.Warn("worker superseded", "worker", w.ID, "name", w.Name, "epoch", old, "by", home, "in", epoch)
	w.endLoop()
	w.over.Do(func() {
		w.letGo()
		w.outbox.end()
		w.outbox.abandon("superseded")
		w.inbox.close(deliverFrame{Moved: &deliverMoved{To: home, Epoch: epoch}})
		w.logs.end()
	})
	by := "node " + n.nameOf(home) + " has taken it over"
	if home == n.id {
		by = "an operator has written it off"
	}
	e := n.event(w, control.EventFallback, "superseded", fmt.Sprintf("%s, in epoch %d: the copy here, of epoch %d, has ended", by, epoch, old))
	e.From, e.To, e.Outcome = n.name(), n.nameOf(home), "ended"
	n.forgetEnded(w)
	n.dir.learn(entry{
		ID: w.ID, Name: w.Name, Home: home, Epoch: epoch, State: control.StateRunning, Module: w.Module.String(), App: w.place.appName(),
	}, n.id)
	n.events.add(e)
}

// forgetEnded takes a worker off the lists, and the journal, that lives elsewhere
// in a later epoch.
func (n *Node) forgetEnded(w *worker) {
	n.forget(w)
	err := n.journal.Delete(w.ID, w.epochNow())
	if errors.Is(err, journal.ErrUnsettled) {
		err = n.recordEnd(w, control.StateLost, "another node has taken it over")
	}
	if err != nil {
		n.log.Error("journal not written", "worker", w.ID, "error", err)
	}
}

// mayResume refuses to let a worker go on whose guardian may have taken it.
func (w *worker) mayResume() error {
	if !w.fenced() {
		return nil
	}
	w.mu.Lock()
	k := w.keeper
	w.mu.Unlock()
	why := "another node has taken it over"
	if k != nil {
		why = k.describeLapse()
	}
	return &control.Error{
		Code:    control.CodeConflict,
		Message: fmt.Sprintf("worker %s must not run here: %s", w.Name, why),
		Hint: "it goes on by itself once that node answers and has not taken it. If that node is gone for good, `meshnode worker export " +
			w.Name + "` saves its state, `worker stop` ends it and `worker import` starts another worker from there",
	}
}

// fencedReason says why a worker stands still that is fenced.
func (w *worker) fencedReason() string {
	w.mu.Lock()
	k := w.keeper
	w.mu.Unlock()
	if k == nil {
		return "another node has taken it over"
	}
	return k.describeLapse()
}

// leaseText says in a sentence how a lease stands.
func leaseText(g *control.Guardian) string {
	length := time.Duration(g.LeaseMs * float64(time.Millisecond))
	switch g.State {
	case control.LeaseHeld:
		how := "starts it anew"
		if c := g.Checkpoint; c != nil && c.Count > 0 {
			how = fmt.Sprintf("goes on with it, from a checkpoint that is %.1f s old now,", c.AgeMs/1000)
		} else if c != nil {
			how = "starts it anew, having no checkpoint yet,"
		}
		text := fmt.Sprintf("if this node falls silent node %s %s after %v; its lease was renewed %.1f s ago", g.NodeName, how, lease.Wait(length), g.AgeMs/1000)
		if c := g.Checkpoint; c != nil && c.Reason != "" {
			text += "; no newer checkpoint: " + c.Reason
		}
		return text
	case control.LeaseLapsed:
		return fmt.Sprintf("node %s, which is to take it over, has not answered for %.1f s: it stands still, and may run there", g.NodeName, g.AgeMs/1000)
	case control.LeaseAsked:
		return fmt.Sprintf("node %s was asked to take it over if this node falls silent", g.NodeName)
	}
	return "if this node falls silent nobody takes it over: " + g.Reason
}
