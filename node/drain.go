package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"meshnode/node/control"
	"meshnode/placement"
	"meshnode/placement/manifest"
)

// drains says whether this node is being drained, or about to stop. Safe for
// concurrent use.
type drains struct {
	mu       sync.Mutex
	on       bool
	force    bool // pins do not count
	stopping bool
}

func (d *drains) state() (on, force bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.on || d.stopping, d.on && d.force
}

// takes says whether a worker is to leave, by what its manifest says.
func (d *drains) takes(app *manifest.App, applied bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.on || d.stopping && applied && app.Migration.Mode != manifest.Never && (app.Migration.Mode == manifest.Auto || len(app.Fallback) > 0)
}

// stop says that the node is about to stop, for good.
func (d *drains) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stopping = true
}

func (d *drains) isStopping() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stopping
}

// begin reports false where a drain is under way already.
func (d *drains) begin(force bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.on {
		return false
	}
	d.on, d.force = true, force
	return true
}

func (d *drains) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.on, d.force = false, false
}

const (
	// defaultDrainDeadline is how long a drain goes on if nobody says otherwise.
	defaultDrainDeadline = 5 * time.Minute
	// drainLook is how often a drain looks how far it has come.
	drainLook = 200 * time.Millisecond
)

// Drain closes the node to new workers and has the autopilot move all that are
// here elsewhere, each by the ordinary hand-over: it runs there before it is
// gone here. It ends when none is left, at the deadline, when the node is opened
// again, or with ctx; the node stays closed, and moves under way go on.
func (b backend) Drain(ctx context.Context, req control.DrainRequest, progress func(control.DrainProgress)) (control.DrainResult, error) {
	n := b.n
	deadline := defaultDrainDeadline
	if req.DeadlineMs > 0 {
		deadline = time.Duration(req.DeadlineMs * float64(time.Millisecond))
	}
	if !n.drains.begin(req.Force) {
		return control.DrainResult{}, &control.Error{
			Code: control.CodeConflict, Message: fmt.Sprintf("node %s is being drained already", n.name()), Hint: "wait for that to end, or end it with `meshnode node uncordon`",
		}
	}
	defer n.drains.end()
	closed := true
	if err := n.configure(control.NodeSettings{Cordoned: &closed}); err != nil {
		return control.DrainResult{}, err
	}
	begun := time.Now()
	begin := n.staying()
	n.log.Info("node drains", "workers", len(begin), "deadline", deadline)
	n.events.add(control.PlacementEvent{Node: n.name(), Event: control.EventDrain, Reason: "operator", From: n.name(),
		Text: fmt.Sprintf("drains: %d to leave within %v", len(begin), deadline), Outcome: "begun"})
	n.wakeAll()

	over := time.NewTimer(deadline)
	defer over.Stop()
	tick := time.NewTicker(drainLook)
	defer tick.Stop()
	result := control.DrainResult{Node: n.name(), Workers: len(begin)}
	var told string
	for result.Outcome == "" {
		left := n.staying()
		p := control.DrainProgress{Node: n.name(), ElapsedMs: control.Millis(time.Since(begun)), Workers: len(begin), Left: left}
		if now := drainKey(left); now != told {
			told = now
			progress(p)
		}
		if result.Left = left; len(left) == 0 {
			result.Outcome = control.DrainDone
			break
		}
		select {
		case <-tick.C:
			if !n.said.cordoned() {
				result.Outcome = control.DrainUndone
			}
		case <-over.C:
			result.Outcome, result.Left = control.DrainDeadline, n.staying()
			if len(result.Left) == 0 {
				result.Outcome = control.DrainDone
			}
		case <-ctx.Done():
			return control.DrainResult{}, context.Cause(ctx)
		case <-n.ctx.Done():
			return control.DrainResult{}, context.Cause(n.ctx)
		}
	}
	result.Moved = max(0, len(begin)-len(result.Left))
	result.ElapsedMs = control.Millis(time.Since(begun))
	n.events.add(control.PlacementEvent{Node: n.name(), Event: control.EventDrain, Reason: "operator", From: n.name(),
		Text: fmt.Sprintf("drain ended: %d have left, %d are still here", result.Moved, len(result.Left)), Outcome: result.Outcome})
	n.log.Info("drain ended", "outcome", result.Outcome, "moved", result.Moved, "left", len(result.Left))
	return result, nil
}

// drainKey changes when something worth telling has.
func drainKey(left []control.DrainLeft) string {
	var b strings.Builder
	for _, l := range left {
		b.WriteString(l.Worker + "\x00" + l.State + "\x00" + l.To + "\x00" + l.Reason + "\x00")
	}
	return b.String()
}

// wakeAll makes every worker here due, and has the autopilot look.
func (n *Node) wakeAll() {
	for _, w := range n.locals() {
		w.place.mu.Lock()
		w.place.due, w.place.after = time.Time{}, time.Time{}
		w.place.mu.Unlock()
	}
	n.lookSoon()
}

// staying lists the workers that are still here and run, with what keeps them.
func (n *Node) staying() []control.DrainLeft {
	left := []control.DrainLeft{}
	for _, w := range n.locals() {
		d := w.describe()
		if ended(d.State) {
			continue
		}
		l := control.DrainLeft{Worker: w.Name, State: d.State, To: d.MoveTo}
		app, _, pinned, _ := w.place.get()
		_, force := n.drains.state()
		w.place.mu.Lock()
		last, failure := w.place.last, w.place.failure
		w.place.mu.Unlock()
		switch {
		case d.MoveTo != "":
		case w.Suspend == control.SuspendNever:
			l.Reason, l.Hint = "it was started to stay where it is", "stop it: `meshnode worker stop "+w.Name+"`"
		case pinned && !force:
			l.Reason, l.Hint = placement.Pinned.Text(), "`meshnode worker unpin "+w.Name+"`, or drain with --force"
		case app.Migration.Mode == "never":
			l.Reason, l.Hint = placement.Immovable.Text(), "stop it, or change the manifest"
		case failure != "":
			l.Reason = failure
		case !last.At.IsZero() && last.Action == placement.Stuck:
			l.Reason, l.Hint = last.Reason.Text(), "`meshnode worker explain "+w.Name+"` says what each node lacks"
		default:
			l.Reason = "its turn has not come"
		}
		left = append(left, l)
	}
	slices.SortFunc(left, func(a, b control.DrainLeft) int { return strings.Compare(a.Worker, b.Worker) })
	return left
}
