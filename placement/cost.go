package placement

import (
	"cmp"
	"slices"
	"time"

	"meshnode/placement/manifest"
)

// What things cost, in violated seconds per second. An objective of weight 1
// that is certainly broken costs 1, and as much again if every case is late: half
// of that hardly moved a worker whose own time varies much, twice as much moved
// others for little.
const (
	// hardWeight is what a hard objective counts while it is kept: it keeps
	// workers away from its edge.
	hardWeight = 4
	// preferenceCost is the cost of a preference of weight 1 that is not met.
	preferenceCost = 0.01
	// comfort is the cost of a latency as high as the objective's maximum,
	// whatever else: of two places that keep it the nearer one is better.
	comfort = 0.02
	// comfortScale stands for the maximum where there is no objective, in
	// seconds.
	comfortScale = 0.05
	// movePrice is what any move costs, in violated seconds, beyond what is
	// predicted of it: moves take bandwidth and can fail.
	movePrice = 0.5
	// moveAhead is about how long a move takes until the worker runs elsewhere,
	// its module fetched and compiled; maxAhead is how far ahead a place is
	// looked at. Both in seconds.
	moveAhead = 2
	maxAhead  = 5
	// earlySlack is by how much a place may be worse on arrival, if it soon is
	// better.
	earlySlack = 0.05
)

// A problem is one worker held against a view.
type problem struct {
	v    *View
	t    *target
	w    *Worker
	here int32 // -1 when it is nowhere
	svc  service
	// speed is the owner's, under which svc was measured; cpu the cores that
	// the worker keeps busy there.
	speed, cpu float64
	// overhead is what an event takes beside round trip, waiting and handler
	// wherever the worker is, in seconds.
	overhead float64
	users    []userTerm
	peers    []peerTerm
	uses     []useTerm
	// ahead is when a move that is thought of now would be over, in seconds from
	// now: places are compared as they will be then.
	ahead float64
	// alike says that what is predicted of the owner is as uncertain as what is
	// of others: both are of some time to come.
	alike bool
	// added is a round trip added to the owner's, in seconds: how far the
	// worker is from moving is found by varying it.
	added float64
}

type userTerm struct {
	entry  int32
	row    *row
	access spread
	share  float64 // of all events
}

type peerTerm struct {
	entry int32
	row   *row
	obj   int // index in target.apps
}

type useTerm struct {
	perEvent float64
	at       []*row // of the nodes that can answer; the nearest will
}

// scratch holds what one decision needs and the next can use again.
type scratch struct {
	users     []userTerm
	peers     []peerTerm
	uses      []useTerm
	values    []weighted
	shortlist []ranked
	passed    []candidate
	held      []candidate
}

type weighted struct{ value, share float64 }

func (v *View) problem(app *manifest.App, w *Worker) problem {
	p := problem{v: v, t: v.target(app), w: w, here: -1, svc: newService(w.Event), speed: 1}
	if i, ok := v.index[w.Owner]; ok {
		p.here, p.speed = i, v.host[i].speed
	}
	p.cpu = p.svc.rate * p.svc.mean
	if wait, ok := p.svc.queueWait(1); ok {
		p.overhead = min(max(w.Event.Beyond.Seconds()-wait.mid-p.svc.mid, 0), maxRTT)
	}
	p.ahead = min(app.Migration.HoldFor.Seconds()+moveAhead, maxAhead)
	s := &v.scratch
	s.users, s.peers, s.uses = s.users[:0], s.peers[:0], s.uses[:0]
	for i := range w.Users {
		u := &w.Users[i]
		e, ok := v.index[u.Entry]
		if !ok {
			continue // its node has gone; it will turn up elsewhere
		}
		access := u.Access.spread()
		if u.Stamp == (Stamp{}) || u.Access.P50 <= 0 {
			access = spread{mid: v.nodes[e].Access.At(0.99).Seconds()}
		}
		// A user who says nothing now still is one.
		share := max(sane(u.Rate, 0), 1e-3)
		s.users = append(s.users, userTerm{e, v.row(e), access, share})
	}
	// Sums of floats depend on their order; decisions must not.
	if len(s.users) > 1 {
		slices.SortFunc(s.users, func(a, b userTerm) int {
			return cmp.Or(cmp.Compare(a.entry, b.entry), cmp.Compare(a.access.mid, b.access.mid), cmp.Compare(a.access.tail, b.access.tail), cmp.Compare(a.share, b.share))
		})
	}
	total := 0.0
	for i := range s.users {
		total += s.users[i].share
	}
	for i := range s.users {
		s.users[i].share /= total
	}
	for k := range p.t.apps {
		for i := range w.Peers {
			if e, ok := v.index[w.Peers[i].Node]; ok && w.Peers[i].App == p.t.apps[k].app {
				s.peers = append(s.peers, peerTerm{e, v.row(e), k})
			}
		}
	}
	if len(s.peers) > 1 {
		slices.SortFunc(s.peers, func(a, b peerTerm) int { return cmp.Or(cmp.Compare(a.obj, b.obj), cmp.Compare(a.entry, b.entry)) })
	}
	for k, f := range app.Placement.Interfaces {
		if f.Access != manifest.Proxy {
			continue
		}
		for i := range w.Interfaces {
			u := &w.Interfaces[i]
			if u.Name != f.Name || !(u.PerEvent > 0) {
				continue
			}
			term := useTerm{u.PerEvent, p.t.providers[k]}
			if e, ok := v.index[u.At]; ok {
				term.at = []*row{v.row(e)}
			}
			s.uses = append(s.uses, term)
		}
	}
	p.users, p.peers, p.uses = s.users, s.peers, s.uses
	return p
}

// A candidate is a node as a place for the worker.
type candidate struct {
	node  int32
	fails Codes
	// cost is the sum of the following, per second.
	cost                                float64
	eventCost, rttCost, prefer, nearest float64
	// What was predicted, in seconds: local is waiting and handling, network
	// the mean over users; event and rtt are at their objectives' quantiles
	// (p99 where there is none).
	local         spread
	wait          float64
	factor        float64 // of the handler's time
	network       float64
	growth        float64 // of network, between now and then
	event, rtt    float64
	peer          float64 // the worst round trip to another app, against its maximum
	estimated     bool    // a round trip is not measured
	move          MovePrediction
	moveCost      float64
	gain          float64
	was           Challenger    // what is remembered of it
	blackout      time.Duration // at the objective's quantile, budgets considered
	convergeAfter time.Duration
}

// endless stands for the latency of a queue that grows without end, in
// seconds.
const endless = 1e3

// floor is what the worker costs wherever it is: the way between its users
// and the nodes at which they enter the mesh stays.
func (p *problem) floor() float64 {
	access := 0.0
	for i := range p.users {
		access += p.users[i].share * p.users[i].access.mid
	}
	if len(p.users) > 0 {
		access += p.overhead
	}
	return comfort * min(access/p.t.scale(), 2)
}

// scale is the latency that counts as uncomfortable, in seconds.
func (t *target) scale() float64 {
	switch {
	case t.event != nil:
		return t.event.Max.Seconds()
	case t.users != nil:
		return t.users.Max.Seconds()
	}
	return comfortScale
}

// evaluate predicts what node n would be like. It does not predict the move
// there; see toMove.
func (p *problem) evaluate(n int32) candidate {
	t, node, h := p.t, &p.v.nodes[n], &p.v.host[n]
	c := candidate{node: n, fails: t.static[n], factor: p.speed / h.speed}
	home := n == p.here
	load := node.Load
	if home {
		load -= p.cpu / float64(h.cores)
		c.fails &^= newcomerCodes
	} else {
		if node.MemoryFree < int64(t.app.Limits.Memory) {
			c.fails = c.fails.with(CodeMemory)
		}
		if load+p.cpu*c.factor/float64(h.cores) > maxLoad {
			c.fails = c.fails.with(CodeCPU)
		}
		if len(t.spreads) > 0 && t.crowded(n, p.here) {
			c.fails = c.fails.with(CodeSpread)
		}
	}
	c.factor *= stretch(load, h.exponent, h.cores)
	wait, ok := p.svc.queueWait(c.factor)
	if !ok {
		c.fails = c.fails.with(CodeCPU)
		wait.mid = endless
	}
	c.wait = wait.mid
	c.local = wait.plus(spread{p.svc.mid * c.factor, p.svc.tail * c.factor})
	for i := range p.uses {
		r := p.uses[i].rtt(n)
		c.local = c.local.plus(spread{r.mid * p.uses[i].perEvent, r.tail * p.uses[i].perEvent})
	}

	// z of the latencies that are kept for showing and for comfort.
	z := 1.0
	if t.event != nil {
		z = t.eventZ
	}
	if len(p.users) > 0 {
		values := p.v.scratch.values[:0]
		eventRisk, usersRisk := 0.0, 0.0
		worst := 0.0
		for i := range p.users {
			u := &p.users[i]
			way := u.row.after(n, p.ahead)
			c.growth += u.share * (way.mid - u.row.rtt[n].mid)
			net := u.access.plus(way)
			if home {
				net.mid += p.added
			}
			width := riskWidth
			if home && !p.alike {
				width = riskWidthHome
			}
			if u.row.from[n] != Measured {
				width, c.estimated = riskWidthEstimated, true
			}
			c.network += u.share * net.mid
			event := net
			event.mid += p.overhead
			total := event.plus(c.local).at(z)
			if t.event != nil {
				limit := t.event.Max.Seconds()
				eventRisk += u.share * (risk(total, limit, width) + late(event, c.local, limit, width))
			}
			if t.users != nil {
				r, limit := net.at(t.usersZ), t.users.Max.Seconds()
				usersRisk += u.share * (risk(r, limit, width) + late(net, spread{}, limit, width))
				worst = max(worst, r)
			}
			values = append(values, weighted{total, u.share})
		}
		p.v.scratch.values = values
		q := 0.99
		if t.event != nil {
			q = float64(t.event.Quantile)
		}
		c.event, c.rtt = overShare(values, 1-q), worst
		if o := t.event; o != nil {
			c.eventCost = weight(o) * eventRisk
			if o.Mode == manifest.Hard && c.event > o.Max.Seconds() {
				c.fails = c.fails.with(CodeEvent)
			}
		}
		if o := t.users; o != nil {
			c.rttCost = weight(o) * usersRisk
			if o.Mode == manifest.Hard && worst > o.Max.Seconds() {
				c.fails = c.fails.with(CodeRTT)
			}
		}
		c.nearest = comfort * min((c.network+p.overhead+c.local.mid)/t.scale(), 2)
	}
	for i := range p.peers {
		o := &t.apps[p.peers[i].obj]
		r := p.peers[i].row.rtt[n].at(o.z)
		width := riskWidth
		if p.peers[i].row.from[n] != Measured {
			width = riskWidthEstimated
		}
		limit := o.obj.Max.Seconds()
		c.rttCost += weight(o.obj) * risk(r, limit, width)
		c.peer = max(c.peer, r/limit)
		if o.obj.Mode == manifest.Hard && r > limit {
			c.fails = c.fails.with(CodeRTT)
		}
	}
	c.prefer = t.preference[n]
	c.cost = c.eventCost + c.rttCost + c.prefer + c.nearest
	return c
}

// urgency is what it costs a second to stay until a move would be over. Where
// the worker will be badly off in some seconds it is not yet: those seconds may
// be spent on a move that is hardly felt.
func (p *problem) urgency() float64 {
	if p.here < 0 {
		return 0
	}
	return p.costIn(0, p.here)
}

// costIn is what it will cost to be at node n in some seconds.
func (p *problem) costIn(ahead float64, n int32) float64 {
	then := p.ahead
	p.ahead = ahead
	defer func() { p.ahead = then }()
	return p.evaluate(n).cost
}

// early reports whether a move to c would be over before c is as good a place
// as the owner is then: it is on its user's way, and he has not come as far.
func (p *problem) early(c *candidate) bool {
	if p.here < 0 || c.growth >= 0 {
		return false
	}
	o := c.move.Chosen()
	arrival := min((o.Before + o.Blackout).Seconds(), p.ahead)
	p.alike = true
	defer func() { p.alike = false }()
	return p.costIn(arrival, c.node) > p.costIn(arrival, p.here)+earlySlack
}

// rtt is the round trip of one call from node n.
func (u *useTerm) rtt(n int32) spread {
	var best spread
	for i, r := range u.at {
		if i == 0 || r.rtt[n].mid < best.mid {
			best = r.rtt[n]
		}
	}
	return best
}

func weight(o *manifest.Objective) float64 {
	if o.Mode == manifest.Hard {
		return hardWeight
	}
	return o.Weight
}

// overShare returns the smallest of the values that at most the given share
// of cases exceeds. It reorders values.
func overShare(values []weighted, share float64) float64 {
	slices.SortFunc(values, func(a, b weighted) int {
		switch {
		case a.value > b.value:
			return -1
		case a.value < b.value:
			return 1
		}
		return 0
	})
	sum := 0.0
	for _, v := range values {
		if sum += v.share; sum > share {
			return v.value
		}
	}
	return 0
}

// compileRate is how many bytes of a module a node compiles in a second.
const compileRate = 2.6e6

// moveInput gathers what a move from here to n depends on.
func (p *problem) moveInput(n int32, urgency float64) MoveInput {
	w := p.w
	rate, _ := p.v.rate(p.here, n)
	r, _ := p.v.rtt(p.here, n)
	in := MoveInput{
		Memory: w.Memory, WorkingSet: w.WorkingSet, DirtyRate: w.DirtyRate, Rate: rate,
		RTT:    RTT{seconds(r.mid), seconds(r.mid + r.tail)},
		Paging: p.v.nodes[n].Paging, Untracked: w.Untracked, Urgency: urgency, Blackout: p.t.app.Objectives.Blackout,
		Model: p.v.model(p.here, n),
	}
	module := true
	for i := range w.Cached {
		if w.Cached[i].Node == p.v.nodes[n].ID {
			in.Cached, module = w.Cached[i].Bytes, !w.Cached[i].Module
		}
	}
	if module {
		in.Setup = seconds(float64(w.Module) * (1/rate + 1/compileRate))
	}
	return in
}

// toMove predicts the move from here to c's node and what it costs, and checks
// the hard objectives about moves. urgency is that of the problem.
func (p *problem) toMove(c *candidate, urgency float64) {
	if p.here < 0 || c.node == p.here {
		return
	}
	c.move = PredictMove(p.moveInput(c.node, min(max(urgency-c.cost, 0), 1)))
	o := c.move.Chosen()
	c.moveCost = movePrice + o.harm(0)
	c.blackout = o.BlackoutAt
	q := 0.99
	b := p.t.app.Objectives.Blackout
	if b != nil {
		q = float64(b.Quantile)
	}
	c.blackout = max(c.blackout, p.v.nodes[p.here].MoveOut.At(q), p.v.nodes[c.node].MoveIn.At(q))
	c.moveCost += p.once(c, b, CodeBlackout, c.blackout)
	c.convergeAfter = p.t.app.Migration.HoldFor.D() + o.Total()
	c.moveCost += p.once(c, p.t.app.Objectives.Converge, CodeConverge, c.convergeAfter)
}

// once returns what a move costs by an objective that is about moves.
func (p *problem) once(c *candidate, o *manifest.Objective, code Code, v time.Duration) float64 {
	if o == nil {
		return 0
	}
	if o.Mode == manifest.Hard {
		if v > o.Max.D() {
			c.fails = c.fails.with(code)
		}
		return 0
	}
	return weight(o) * risk(v.Seconds(), o.Max.Seconds(), riskWidthEstimated)
}

// lower returns a quick estimate by which a shortlist is made: the median
// latency at n, preferences converted to latency.
func (p *problem) lower(n int32) float64 {
	h := &p.v.host[n]
	key := 0.0
	for i := range p.users {
		key += p.users[i].share * p.users[i].row.rtt[n].mid
	}
	for i := range p.peers {
		key += p.peers[i].row.rtt[n].mid / float64(len(p.peers))
	}
	load := min(max(p.v.nodes[n].Load, 0), saturated)
	key += p.svc.mid * p.speed / h.speed * (1 + load/(float64(h.cores)*(1-load)))
	return key + p.t.preference[n]/preferenceCost*comfortScale/4
}
