package placement

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"slices"
	"time"

	"meshnode/placement/manifest"
)

// An Action is what a decision says to do.
type Action uint8

// The actions.
const (
	// Stay where it is.
	Stay Action = iota
	// Move to Decision.To, or start there if it runs nowhere.
	Move
	// Stuck: it should leave or start, and no node would take it.
	Stuck
)

func (a Action) String() string { return [...]string{"stay", "move", "stuck"}[min(int(a), 2)] }

// MarshalText implements encoding.TextMarshaler.
func (a Action) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// A Reason says why a decision is what it is.
type Reason uint8

// The reasons. Those up to AtFallback are for staying.
const (
	// Content: no place could be enough better to pay for a move.
	Content Reason = iota
	// NoBetter: none of the candidates is enough better.
	NoBetter
	// Holding: a candidate is better, but not yet for holdFor.
	Holding
	// Dwelling: a candidate is better, but the minimum stay is not over.
	Dwelling
	// Capped: a candidate is better, but the moves of this hour are used up.
	Capped
	// Pinned, NotAutomatic and Immovable: the worker is pinned; the
	// manifest's migration mode is manual, or never.
	Pinned
	NotAutomatic
	Immovable
	// AtFallback: the owner is none that the manifest requires, but the fallback
	// list names it, and no node that is required fits.
	AtFallback
	// Better: the candidate has been better for long enough.
	Better
	// LeaveDraining, LeavePredicate, LeaveObjective: the owner drains, no
	// longer fits the required predicates, or breaks a hard objective.
	LeaveDraining
	LeavePredicate
	LeaveObjective
	// LeaveGone: the owner is not in the view.
	LeaveGone
	// Start: the worker runs nowhere.
	Start
	// NoCandidate: it must leave or start, and nobody fits.
	NoCandidate
	reasons
)

var reasonNames = [reasons]string{
	"content", "no-better", "holding", "dwelling", "capped", "pinned", "manual", "never", "fallback",
	"better", "draining", "predicate", "objective", "gone", "start", "no-candidate",
}

var reasonTexts = [reasons]string{
	"no other place could be enough better to be worth a move",
	"no other place is enough better",
	"another place is better, but has not been for long enough",
	"another place is better, but the worker has not stayed here for long enough",
	"another place is better, but the moves allowed in an hour are used up",
	"it is pinned",
	"its manifest leaves moves to the operator",
	"its manifest forbids moves",
	"it is at a node of its fallback list, and goes back when a node that its manifest requires fits",
	"another place has been enough better for long enough",
	"its node drains",
	"its node no longer fits what the manifest requires",
	"its node is predicted to break a hard objective",
	"its node is gone",
	"it runs nowhere yet",
	"no node fits",
}

func (r Reason) String() string {
	if r < reasons {
		return reasonNames[r]
	}
	return fmt.Sprintf("reason(%d)", uint8(r))
}

// Text says the reason in words.
func (r Reason) Text() string {
	if r < reasons {
		return reasonTexts[r]
	}
	return r.String()
}

// MarshalText implements encoding.TextMarshaler.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// A Decision says what to do with a worker now. [View.Explain] says more.
type Decision struct {
	Worker WorkerID
	At     time.Time
	Action Action
	Reason Reason
	From   NodeID
	// To is where to move. When the action is Stay and a candidate is waited
	// for, To is that candidate.
	To NodeID
	// Next are the nodes to ask, in this order, when To refuses; only for
	// moves.
	Next []NodeID
	// Until is when what is waited for (Holding, Dwelling, Capped) is over,
	// if nothing changes.
	Until time.Time
	// Degraded says that To breaks a hard objective too, and that nothing
	// better was found.
	Degraded bool
	// Cost and CostThere are violated seconds per second here and at To;
	// Gain is what the move is expected to save, in violated seconds, its own
	// cost subtracted.
	Cost, CostThere, Gain float64
	// Option is the predicted move, by the strategy to use.
	Option MoveOption
	// Event is the predicted event latency at To, at the objective's
	// quantile.
	Event time.Duration
	// Candidates is how many nodes were looked at closely, Passed how many
	// of them fulfil all that is required.
	Candidates, Passed int
	// Rivals are the nodes to which it is most likely to go next, the cheapest
	// first: their paths to the users are worth an eye.
	Rivals []NodeID
	// Measure are paths whose round trip is only estimated and on which the
	// choice depends: measure them before holdFor is over.
	Measure []PathWanted
}

// A PathWanted is a path to be measured.
type PathWanted struct {
	From NodeID `json:"from"`
	To   NodeID `json:"to"`
}

const (
	// shortlistSize is how many candidates are predicted in full; all are
	// when there are not more than scanAll.
	shortlistSize = 24
	scanAll       = 48
	// sameCost is by how much the costs of two candidates may differ, in
	// violated seconds per second, for them to count as equals, told apart by
	// a hash, so that not all workers choose the same of two equals. (A share
	// of the gain was tried: where staying is bad, a place at the edge of its
	// objective counted as equal to one with room, and was soon left again.)
	sameCost = 0.001
	// maxNext bounds Decision.Next.
	maxNext = 3
	// wantedPaths bounds Decision.Measure, maxRivals Decision.Rivals.
	wantedPaths = 3
	maxRivals   = 3
)

// Decide decides what to do with worker w of app now. st is what the last
// decision (or [State.Moved]) returned; the second result takes its place. The
// decision depends on the arguments and the view alone.
//
// The caller is the worker's owner; only when the owner has gone may another
// node decide, and it must first make sure, by the worker's epoch, that it is
// the one to take over.
func (v *View) Decide(app *manifest.App, w *Worker, st State) (Decision, State) {
	d := Decision{Worker: w.ID, At: v.now, From: w.Owner}
	next := st
	next.At = v.now
	next.Challengers = [maxChallengers]Challenger{}
	p := v.problem(app, w)
	m := &app.Migration

	var here candidate
	var leave Reason // Content when it need not
	switch {
	case p.here < 0 && w.Owner == "":
		leave = Start
	case p.here < 0:
		leave = LeaveGone
		if len(app.Fallback) > 0 {
			return v.afterGone(app, w, d), next
		}
	default:
		here = p.evaluate(p.here)
		d.Cost = here.cost
		switch {
		case here.fails.Has(CodeDraining):
			leave = LeaveDraining
		case here.fails&^(objectiveCodes|1<<CodeCPU) != 0:
			leave = LeavePredicate
		case here.fails&objectiveCodes != 0:
			leave = LeaveObjective
		}
		switch {
		case w.Pinned:
			d.Reason = Pinned
			return d, next
		case m.Mode == manifest.Never:
			d.Reason = Immovable
			return d, next
		case m.Mode == manifest.Manual && leave != LeaveDraining:
			d.Reason = NotAutomatic
			return d, next
		}
	}
	stay := st.stay(m)
	if leave == Content && (here.cost-p.floor())*stay <= movePrice {
		// Even the best place that there could be would not be worth the
		// move.
		d.Reason = Content
		return d, next
	}
	// What must leave at once, or runs nowhere, takes the best place there is.
	atOnce := leave == Start || leave == LeaveGone || leave == LeaveDraining || leave == LeavePredicate

	passed := p.rank(here.cost, stay, &st, 0, &d)
	if len(passed) == 0 && leave != Content {
		// Nothing keeps all promises. A node that keeps the predicates is
		// still better than none.
		passed = p.rank(here.cost, stay, &st, objectiveCodes, &d)
		if len(passed) == 0 && leave == LeaveDraining {
			passed = p.predict(p.listed(), here.cost, stay, objectiveCodes|placeCodes, &d)
		}
		d.Degraded = len(passed) > 0
	}
	d.Rivals = p.rivals(passed)
	if atOnce {
		if len(passed) == 0 && leave == LeavePredicate && here.fails&^(objectiveCodes|placeCodes|1<<CodeCPU) == 0 && p.named(p.here) {
			d.Reason = AtFallback
			return d, next
		}
		if len(passed) == 0 {
			d.Action, d.Reason = Stuck, NoCandidate
			return d, next
		}
		best := pick(v, w, passed, sameCost*stay)
		if d.Degraded {
			if i := p.chain(passed); i >= 0 {
				best = &passed[i]
			}
		}
		d.Action, d.Reason = Move, leave
		d.fill(v, best)
		d.Next = p.next(passed, best.node)
		return d, next
	}

	// Who is better than here by more than the offset, and since when.
	offset := float64(m.ImproveBy) * here.cost
	if leave == LeaveObjective && !d.Degraded {
		offset = 0 // a kept promise is worth more than the offset
	}
	step := st.step(v.now)
	better := passed[:0]
	for _, c := range passed {
		c.was = st.challenger(v.nodes[c.node].ID)
		c.was.Regret += step * (here.cost - c.cost - offset)
		ahead := here.cost-c.cost > offset
		if c.was.Regret <= 0 {
			c.was.Regret = 0
			if !ahead {
				continue
			}
		}
		if c.was.Since.IsZero() {
			c.was.Since = v.now
		}
		better = append(better, c)
	}
	// The best of this moment is always among those remembered, then those
	// with the most regret.
	slices.SortFunc(better, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(b.gain, a.gain), cmp.Compare(a.node, b.node))
	})
	if len(better) > maxChallengers {
		slices.SortStableFunc(better[1:], func(a, b candidate) int { return cmp.Compare(b.was.Regret, a.was.Regret) })
		better = better[:maxChallengers]
	}
	soonest := -1
	for i := range better {
		next.Challengers[i] = better[i].was
		if better[i].gain > 0 && (soonest < 0 || better[i].was.Since.Before(better[soonest].was.Since)) {
			soonest = i
		}
	}
	d.Measure = p.wanted(better)
	if soonest < 0 {
		d.Reason, d.Degraded = NoBetter, false
		return d, next
	}
	held := v.scratch.held[:0]
	for i := range better {
		c := &better[i]
		// Now as well as lately: a place that has just filled up is no
		// longer better.
		if c.gain > 0 && here.cost-c.cost > offset && v.now.Sub(c.was.Since) >= m.HoldFor.D() && c.was.Regret >= regretFor*m.HoldFor.Seconds() && !p.early(c) {
			held = append(held, better[i])
		}
	}
	v.scratch.held = held
	if len(held) == 0 {
		d.Reason, d.Until = Holding, better[soonest].holds(here.cost-offset, m, v.now)
		d.fill(v, &better[soonest])
		return d, next
	}
	best := pick(v, w, held, sameCost*stay)
	d.fill(v, best)
	if end := st.Since.Add(st.minDwell(m, v.now)); !st.Since.IsZero() && v.now.Before(end) {
		d.Reason, d.Until = Dwelling, end
		return d, next
	}
	if recent := st.movesSince(v.now.Add(-time.Hour)); len(recent) >= m.MaxPerHour {
		d.Reason, d.Until = Capped, recent[len(recent)-m.MaxPerHour].Add(time.Hour)
		return d, next
	}
	d.Action, d.Reason = Move, Better
	d.Next = p.next(held, best.node)
	if leave == LeaveObjective {
		d.Reason = LeaveObjective
	}
	return d, next
}

// rivals returns the cheapest of cs, cheapest first.
func (p *problem) rivals(cs []candidate) []NodeID {
	var best [maxRivals]*candidate
	for i := range cs {
		c := &cs[i]
		for k := range best {
			if best[k] == nil || c.cost < best[k].cost || c.cost == best[k].cost && c.node < best[k].node {
				c, best[k] = best[k], c
			}
			if c == nil {
				break
			}
		}
	}
	var out []NodeID
	for _, c := range best {
		if c != nil {
			out = append(out, p.v.nodes[c.node].ID)
		}
	}
	return out
}

// holds returns when c will have been better for long enough, if all stays as
// it is and here, less the offset, costs bar.
func (c *candidate) holds(bar float64, m *manifest.Migration, now time.Time) time.Time {
	at := c.was.Since.Add(m.HoldFor.D())
	if lacks := regretFor*m.HoldFor.Seconds() - c.was.Regret; lacks > 0 && bar > c.cost {
		if t := now.Add(seconds(lacks / (bar - c.cost))); t.After(at) {
			at = t
		}
	}
	return at
}

// next returns the best of cs after chosen, best first. It reorders cs.
func (p *problem) next(cs []candidate, chosen int32) []NodeID {
	slices.SortFunc(cs, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(b.gain, a.gain), cmp.Compare(a.node, b.node))
	})
	var out []NodeID
	for i := range cs {
		if cs[i].node != chosen && len(out) < maxNext {
			out = append(out, p.v.nodes[cs[i].node].ID)
		}
	}
	return out
}

func (d *Decision) fill(v *View, c *candidate) {
	d.To, d.CostThere, d.Gain = v.nodes[c.node].ID, c.cost, c.gain
	d.Option, d.Event = *c.move.Chosen(), seconds(c.event)
}

// A ranked is a node with the estimate by which it is shortlisted.
type ranked struct {
	key  float64
	node int32
}

// rank predicts the candidates other than here and returns those whose
// failures are all in allow, with their gains. The result is good until the
// next call.
func (p *problem) rank(hereCost, stay float64, st *State, allow Codes, d *Decision) []candidate {
	short := p.shortlist(st)
	out := p.predict(short, hereCost, stay, allow, d)
	if len(out) > 0 || len(p.t.eligible) <= scanAll {
		return out
	}
	// None of those that seemed nearest fits: look at all, and predict the
	// move to the cheapest of them, a few at a time.
	all := p.v.scratch.shortlist[:0]
	for _, n := range p.t.eligible {
		if n == p.here {
			continue
		}
		if c := p.evaluate(n); c.fails&^allow == 0 {
			all = append(all, ranked{c.cost, n})
		}
	}
	p.v.scratch.shortlist = all
	slices.SortFunc(all, func(a, b ranked) int { return cmp.Or(cmp.Compare(a.key, b.key), cmp.Compare(a.node, b.node)) })
	for len(all) > 0 && len(out) == 0 {
		k := min(len(all), scanAll)
		out = p.predict(all[:k], hereCost, stay, allow, d)
		all = all[k:]
	}
	return out
}

func (p *problem) predict(nodes []ranked, hereCost, stay float64, allow Codes, d *Decision) []candidate {
	out := p.v.scratch.passed[:0]
	d.Candidates = len(nodes)
	urgency := p.urgency()
	for i := range nodes {
		c := p.evaluate(nodes[i].node)
		if c.fails&^allow != 0 {
			continue
		}
		p.toMove(&c, urgency)
		if c.fails&^allow != 0 {
			continue
		}
		c.gain = (hereCost-c.cost)*stay - c.moveCost
		out = append(out, c)
	}
	p.v.scratch.passed = out
	d.Passed = len(out)
	return out
}

// shortlist returns the eligible nodes that are likely to be best: those with
// the lowest estimates, those that have been waiting, and the fallbacks.
func (p *problem) shortlist(st *State) []ranked {
	t := p.t
	list := p.v.scratch.shortlist[:0]
	if len(t.eligible) <= scanAll {
		for _, n := range t.eligible {
			if n != p.here {
				list = append(list, ranked{node: n})
			}
		}
		p.v.scratch.shortlist = list
		return list
	}
	// Keep the smallest keys in a heap whose root is the largest of them.
	memory := int64(t.app.Limits.Memory)
	for _, n := range t.eligible {
		// What has no room must not take the place of what has.
		if node := &p.v.nodes[n]; n == p.here || node.MemoryFree < memory || node.Load >= maxLoad {
			continue
		}
		key := p.lower(n)
		switch {
		case len(list) < shortlistSize:
			list = append(list, ranked{key, n})
			if len(list) == shortlistSize {
				for i := shortlistSize/2 - 1; i >= 0; i-- {
					siftDown(list, i)
				}
			}
		case key < list[0].key:
			list[0] = ranked{key, n}
			siftDown(list, 0)
		}
	}
	add := func(n int32) {
		if n != p.here && t.static[n] == 0 && !slices.ContainsFunc(list, func(r ranked) bool { return r.node == n }) {
			list = append(list, ranked{node: n})
		}
	}
	for i := range st.Challengers {
		if n, ok := p.v.index[st.Challengers[i].Node]; ok {
			add(n)
		}
	}
	for _, n := range t.fallback {
		add(n)
	}
	p.v.scratch.shortlist = list
	return list
}

// siftDown restores the heap order of h (largest key at the root) below i.
func siftDown(h []ranked, i int) {
	for {
		big := 2*i + 1
		if big >= len(h) {
			return
		}
		if r := big + 1; r < len(h) && h[r].key > h[big].key {
			big = r
		}
		if h[i].key >= h[big].key {
			return
		}
		h[i], h[big] = h[big], h[i]
		i = big
	}
}

// pick returns the candidate with the highest gain. Of those that gain less by
// no more than slack, a hash of worker and node chooses (rendezvous hashing; Thaler and
// Ravishankar, 1998): the same for one worker every time, different for
// different workers.
func pick(v *View, w *Worker, cs []candidate, slack float64) *candidate {
	best := 0
	for i := range cs {
		if cs[i].gain > cs[best].gain || cs[i].gain == cs[best].gain && cs[i].node < cs[best].node {
			best = i
		}
	}
	floor := cs[best].gain - slack
	var bestHash uint64
	for i := range cs {
		if cs[i].gain < floor {
			continue
		}
		h := fnv.New64a()
		h.Write([]byte(w.ID))
		h.Write([]byte{0})
		h.Write([]byte(v.nodes[cs[i].node].ID))
		if s := mix(h.Sum64()); bestHash == 0 || s > bestHash {
			best, bestHash = i, s
		}
	}
	return &cs[best]
}

// mix spreads differences in the last bytes over all bits, which FNV does not
// (the finalizer of MurmurHash3).
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// wanted returns the paths on which the choice among cs depends and that were
// not measured.
func (p *problem) wanted(cs []candidate) []PathWanted {
	var out []PathWanted
	for i := range cs {
		if !cs[i].estimated {
			continue
		}
		for k := range p.users {
			if len(out) == wantedPaths {
				return out
			}
			if u := &p.users[k]; u.row.from[cs[i].node] != Measured {
				out = append(out, PathWanted{p.v.nodes[u.entry].ID, p.v.nodes[cs[i].node].ID})
			}
		}
	}
	return out
}
