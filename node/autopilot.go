package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/placement"
	"meshnode/placement/manifest"
)

// The autopilot moves workers by itself. Every worker has one node that decides
// for it, its owner, and each node looks after the workers at home with it:
//
//	app apply   the node that is asked decides where a new worker starts, and
//	            asks that node to start it (appapply.go)
//	look        once a second, which of the workers here are due to be looked at:
//	            those whose situation has changed, those that something is waited
//	            for, and the rest every few seconds
//	view        one for all that are due: facts from gossip, round trips measured
//	            by the nodes where their users enter (view.go)
//	decide      placement.View.Decide, worker by worker; each decision is applied
//	            to the view before the next
//	warm        where a worker that is not content would go first has its module
//	            fetched and compiled, before a move is due (warm.go)
//	move        the ordinary hand-over. The destination keeps a book of what it
//	            has promised (appreserve.go) and refuses what is too much; then the
//	            next best node is asked. A worker that nobody takes waits, longer
//	            each time
//	arrive      the manifest, the pin and what must be remembered of earlier
//	            decisions travel in the worker's image (appstate.go); the new owner
//	            goes on from there
//	say so      every start, move and hindrance is an event (events.go)
//
// A node that is being drained (drain.go) uses the same loop: its workers have
// a reason to leave then, with or without a manifest.
//
// A worker whose owner dies is lost, as its memory is, and nobody starts it anew:
// a node cannot tell a dead owner from one that is cut off and still runs it. If
// its manifest asks for that, the owner holds a lease at another node, which may
// start it anew when the lease has run out (leased.go, guardian.go). What a node
// does that is cut off itself is in disconnect.go.

const (
	// lookInterval is how often a node asks itself which workers are due, and
	// restInterval how long one that is content where it is, and whose situation
	// does not change, is left alone.
	lookInterval = time.Second
	restInterval = 5 * time.Second
	// lookLeast is how long every worker is left alone: then there are new round
	// trips where its users enter.
	lookLeast = watchEvery
	// userInterval is how long one is left alone that has users: they may walk.
	userInterval = 2 * time.Second
	// movesAtOnce bounds the moves that the autopilot has under way.
	movesAtOnce = 4
	// offerPatience is how long a destination may take to accept before the
	// next one is asked.
	offerPatience = 30 * time.Second
	// backOff is how long a worker waits after a move that came to nothing; it
	// doubles each time, up to maxBackOff.
	backOff    = 5 * time.Second
	maxBackOff = 5 * time.Minute
	// loopPatience is how long a worker's own loop may take to say how much of
	// its memory is in use; then what it has in all counts.
	loopPatience = 200 * time.Millisecond
)

// A situation is what of a worker's surroundings makes it worth another look
// before its time.
type situation struct {
	entries  map[mesh.NodeID]int // where its users are, and the power of two of their rate
	event    int                 // power of two of its event time, in ns
	members  int
	closed   bool // this node is cordoned, or drains
	manifest string
}

func (s situation) equal(o situation) bool {
	return s.event == o.event && s.members == o.members && s.closed == o.closed && s.manifest == o.manifest && maps.Equal(s.entries, o.entries)
}

// keepPlaced looks after the workers here until ctx is done.
func (n *Node) keepPlaced(ctx context.Context) {
	t := time.NewTicker(lookInterval)
	defer t.Stop()
	var alone time.Time
	for {
		now := time.Now()
		alone = n.aloneSince(alone, now)
		n.watchDisconnect(ctx, alone, now)
		if err := n.lookAfter(ctx); err != nil && ctx.Err() == nil {
			n.log.Warn("no look at where workers should be", "error", err)
		}
		select {
		case <-t.C:
		case <-n.look:
		case <-ctx.Done():
			return
		}
	}
}

// lookSoon has the autopilot look at once.
func (n *Node) lookSoon() {
	select {
	case n.look <- struct{}{}:
	default:
	}
}

// A dueWorker is a worker that is due, with what is decided from.
type dueWorker struct {
	w      *worker
	app    *manifest.App
	state  placement.State
	text   string // of the manifest
	pinned bool
	forced bool // it may move although it is pinned
	facts  placement.Worker
	rivals []mesh.NodeID // where it would rather go, by the last decision
}

// lookAfter decides on the workers that are due, and begins the moves.
func (n *Node) lookAfter(ctx context.Context) error {
	now := time.Now()
	n.standBy()
	n.giveWay(ctx, now)
	due := n.due(now)
	if len(due) == 0 {
		return nil
	}
	apps := make(map[string]*manifest.App)       // replicas share one, so that they are counted together
	watch := make(map[mesh.NodeID][]mesh.NodeID) // by the nodes where users enter
	for i := range due {
		d := &due[i]
		if app := apps[d.w.place.key()]; app != nil {
			d.app = app
		} else {
			apps[d.w.place.key()] = d.app
		}
		short, cancel := context.WithTimeout(ctx, loopPatience)
		facts, err := d.w.placementWorker(short, now)
		cancel()
		if errors.Is(err, errGone) {
			d.w = nil
			continue
		}
		if err != nil {
			// It is in a long event. All of its memory counts as used.
			facts = d.w.factsInEvent(now)
		}
		d.facts, d.facts.Pinned = facts, d.pinned
		for _, u := range facts.Users {
			entry := mesh.NodeID(u.Entry)
			for _, id := range append([]mesh.NodeID{n.id}, d.rivals...) {
				if id != entry && !slices.Contains(watch[entry], id) {
					watch[entry] = append(watch[entry], id)
				}
			}
		}
	}
	v, _, err := n.viewFor(ctx, slices.Sorted(maps.Keys(watch)), watch)
	if err != nil {
		return err
	}
	for i := range due {
		d := &due[i]
		if d.w == nil {
			continue
		}
		decision, next := v.Decide(d.app, &d.facts, d.state)
		n.metrics.decisions.WithLabelValues(decision.Action.String(), decision.Reason.String()).Inc()
		if decision.Action == placement.Stay && decision.Reason != placement.Content && len(decision.Rivals) > 0 {
			n.warm(d.w, mesh.NodeID(decision.Rivals[0]))
		}
		rest := restInterval
		if len(d.facts.Users) > 0 {
			rest = userInterval
		}
		hindered := d.w.place.decided(v.Now(), rest, decision, next)
		if decision.Reason == placement.Holding {
			// The next turn may come when the objective is broken already.
			time.AfterFunc(max(decision.Until.Sub(v.Now()), lookLeast), n.lookSoon)
		}
		if decision.Action != placement.Move {
			if hindered {
				n.events.add(n.hindrance(d, &decision))
			}
			continue
		}
		if !n.beginMove(d, decision) {
			continue // its turn comes
		}
		v.Apply(d.app, &d.facts, &decision)
	}
	return nil
}

// standBy says again that workers run here that others list as lost, since this
// node was away: what runs is there, whatever was believed of it.
func (n *Node) standBy() {
	for _, w := range n.locals() {
		w.mu.Lock()
		epoch, over := w.epoch, ended(w.state)
		w.mu.Unlock()
		if e, ok := n.dir.get(w.ID); ok && !over && e.Epoch == epoch && e.Home == n.id && ended(e.State) {
			w.announce()
		}
	}
}

// due returns the workers at home here that are to be decided on now.
func (n *Node) due(now time.Time) []dueWorker {
	_, force := n.drains.state()
	alive := 0
	for _, m := range n.mesh.Members() {
		if m.State == mesh.Alive {
			alive++
		}
	}
	var due []dueWorker
	for _, w := range n.locals() {
		w.mu.Lock()
		settled := !ended(w.state) && w.state != control.StateStarting && w.move == nil && !w.gated && !w.draining
		w.mu.Unlock()
		if !settled {
			continue
		}
		p := &w.place
		p.mu.Lock()
		closed := n.drains.takes(p.app, p.applied)
		d := dueWorker{w: w, app: p.app, text: string(p.text), state: p.state, pinned: p.pinned && !force, forced: force}
		for _, id := range p.last.Rivals {
			d.rivals = append(d.rivals, mesh.NodeID(id))
		}
		looks := !p.auto && w.Suspend != control.SuspendNever && !now.Before(p.after) && (closed || p.applied && !p.pinned && p.app.Migration.Mode == manifest.Auto)
		if looks {
			s := w.times.summary(now)
			here := situation{entries: make(map[mesh.NodeID]int, len(s.users)), event: power(float64(s.p99)), members: alive,
				closed: closed || n.said.cordoned(), manifest: string(p.text)}
			for id, u := range s.users {
				here.entries[id] = power(u.rate)
			}
			looks = !now.Before(p.due) || !here.equal(p.seen)
			p.seen = here
		}
		p.mu.Unlock()
		if looks {
			due = append(due, d)
		}
	}
	return due
}

// power is the power of two next to x, so that small changes are none.
func power(x float64) int {
	if x <= 0 {
		return math.MinInt32
	}
	return int(math.Round(math.Log2(x)))
}

// decided notes a decision. It reports whether something stands in the way of
// the worker that did not before, or for another reason.
//
// A content worker is left alone for rest.
func (p *placed) decided(now time.Time, rest time.Duration, d placement.Decision, next placement.State) (hindered bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := p.last
	p.last, p.state = d, next
	p.due = now.Add(lookInterval / 2)
	switch d.Reason {
	case placement.Holding:
		p.due = now.Add(min(max(d.Until.Sub(now), lookLeast), lookInterval/2))
	case placement.Content, placement.AtFallback, placement.Pinned, placement.NotAutomatic, placement.Immovable:
		p.due = now.Add(rest)
	}
	switch d.Reason {
	case placement.NoCandidate, placement.Dwelling, placement.Capped, placement.Pinned, placement.Immovable:
		return d.Reason != p.told
	}
	if d.Reason == placement.Content || d.Reason != was.Reason {
		p.told = d.Reason
	}
	if d.Reason == placement.Content {
		p.failures, p.failure = 0, "" // what may come is another matter
	}
	return false
}

// A reason is why a worker is moved.
type reason struct {
	code, text string
	// own says that the worker's own situation is the cause, rather than an
	// operator or a node that drains: such moves are counted against the cap.
	own bool
	// predicted is what the decision expected of the move; nil if nothing was
	// decided.
	predicted *control.MoveFigures
}

var byOperator = reason{code: "operator", text: "an operator moved it"}

// beginMove begins to move a worker as decided. It reports false if there are
// too many moves under way, or if its operator has said something else since.
func (n *Node) beginMove(d *dueWorker, decision placement.Decision) bool {
	select {
	case n.moveSlots <- struct{}{}:
	default:
		return false
	}
	p := &d.w.place
	p.mu.Lock()
	stale := p.pinned && !d.forced || string(p.text) != d.text
	p.auto = !stale
	p.mu.Unlock()
	if stale {
		<-n.moveSlots
		return false
	}
	o := decision.Option
	why := reason{
		code: decision.Reason.String(), text: decision.Reason.Text(),
		own: decision.Reason != placement.LeaveDraining,
		predicted: &control.MoveFigures{
			BlackoutMs: control.Millis(o.Blackout), TotalMs: control.Millis(o.Before + o.Blackout + o.Drain), Bytes: uint64(max(o.Bytes, 0)),
		},
	}
	n.tasks.Go(func() {
		defer func() { <-n.moveSlots; n.lookSoon() }()
		err := n.moveToOne(d.w, &decision, why)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.auto = false
		if err == nil {
			return // it is another node's now
		}
		wait := min(backOff<<min(p.failures, 16), maxBackOff)
		if !why.own {
			wait = min(wait, 2*backOff) // a drain has a deadline
		}
		p.failures++
		p.failure = err.Error()
		p.after = time.Now().Add(wait)
	})
	return true
}

// moveToOne moves a worker to the first of the nodes of a decision that takes it.
func (n *Node) moveToOne(w *worker, d *placement.Decision, why reason) error {
	var last error
	for _, id := range append([]placement.NodeID{d.To}, d.Next...) {
		m, ok := n.mesh.Member(mesh.NodeID(id))
		if !ok {
			last = fmt.Errorf("node %s is not in the mesh any more", id)
			continue
		}
		req := control.MigrateRequest{Strategy: control.StrategyAuto, TimeoutMs: control.Millis(offerPatience)}
		if id == d.To && d.Option.Possible {
			req.Strategy = d.Option.Strategy.String() // by which the move was weighed
		}
		_, err := n.relocate(n.ctx, w, m, req, why, func(control.Progress) {})
		if err == nil {
			return nil
		}
		last = err
		if n.ctx.Err() != nil || n.worker(w.ID) != w {
			break // it runs here no more
		}
	}
	return last
}

// relocate moves a worker and records how it went.
func (n *Node) relocate(ctx context.Context, w *worker, to mesh.Member, req control.MigrateRequest, why reason,
	progress func(control.Progress)) (control.Migration, error) {

	// Nobody else may take it while it is on its way.
	done, err := w.withoutGuardian(ctx)
	if err != nil {
		return control.Migration{}, err
	}
	defer done()
	p := &w.place
	if w.moving() == nil { // else this move is refused
		p.mu.Lock()
		p.own = why.own
		p.mu.Unlock()
	}
	m, err := n.migrate(ctx, w, to, req, progress)
	e := n.event(w, control.EventMove, why.code, why.text)
	e.From, e.To, e.Predicted = n.name(), to.Record.Name, why.predicted
	if e.Predicted == nil && m.Predicted != nil {
		e.Predicted = &control.MoveFigures{BlackoutMs: m.Predicted.BlackoutMs, TotalMs: m.Predicted.TotalMs, Bytes: m.Predicted.Bytes}
	}
	switch {
	case err == nil:
		e.Outcome, e.Strategy = control.OutcomeDone, m.Strategy
		e.Measured = &control.MoveFigures{BlackoutMs: m.BlackoutMs, TotalMs: m.TotalMs, Bytes: m.BytesOnWire}
	case errors.Is(err, &control.Error{Code: control.CodeConflict}):
		return m, err // refused before anything was tried
	case n.worker(w.ID) == w:
		e.Outcome, e.Error = control.OutcomeKept, err.Error()
	default:
		e.Outcome, e.Error = control.OutcomeLost, err.Error()
		if ctx.Err() != nil {
			e.Outcome = control.OutcomeUnwatched
		}
	}
	n.events.add(e)
	return m, err
}

// hindrance is the event of a worker that should move and does not.
func (n *Node) hindrance(d *dueWorker, decision *placement.Decision) control.PlacementEvent {
	e := n.event(d.w, control.EventStay, decision.Reason.String(), decision.Reason.Text())
	e.From, e.Outcome = n.name(), decision.Action.String()
	if decision.To != "" {
		e.To = n.nameOf(mesh.NodeID(decision.To))
	}
	p := &d.w.place
	p.mu.Lock()
	p.told = decision.Reason
	p.mu.Unlock()
	return e
}
