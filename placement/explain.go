package placement

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"meshnode/placement/manifest"
)

// An Explanation says why a worker is where it is, why it is not elsewhere,
// and what would change that.
type Explanation struct {
	Decision Decision `json:"decision"`
	// Summary is the decision in one sentence.
	Summary string `json:"summary"`
	// Here is the owner; nil when the worker runs nowhere.
	Here *Report `json:"here,omitempty"`
	// Others are all other nodes: first those that fit, the best first, then
	// those with the fewest failures.
	Others []Report `json:"others"`
	// Would says what would make it move; nil when it moves now, must not
	// move, or has nowhere to go.
	Would *Threshold `json:"would,omitempty"`
	// Observed is what was seen of the objectives lately.
	Observed []Term `json:"observed,omitempty"`
}

// A Report is one node as a place for a worker.
type Report struct {
	Node NodeID        `json:"node"`
	Name string        `json:"name"`
	Tier manifest.Tier `json:"tier"`
	// Failures are all reasons why it does not fit; none when it does.
	Failures []Failure `json:"failures,omitempty"`
	// Cost is in violated seconds per second; Gain is what moving there is
	// expected to save, in violated seconds.
	Cost float64 `json:"cost"`
	Gain float64 `json:"gain"`
	// Terms are the figures behind cost and gain, with the age of what they
	// were computed from.
	Terms []Term `json:"terms"`
	// Move is the predicted move there, by each strategy; nil for the owner.
	Move *MovePrediction `json:"move,omitempty"`
}

// A Term is one figure.
type Term struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	// Unit is ms, B, cost (violated seconds per second), s (violated
	// seconds), x for ratios, or what is counted.
	Unit string `json:"unit"`
	// Limit is the most it may be, in the same unit; 0 without one.
	Limit float64 `json:"limit,omitempty"`
	// Age is that of the oldest fact behind it, AgeMs in ms; From is how that
	// fact is known.
	AgeMs float64 `json:"ageMs"`
	From  Source  `json:"from"`
}

// String writes the figure as people read it.
func (t Term) String() string {
	s := fmt.Sprintf("%s %.4g %s", t.Name, t.Value, t.Unit)
	if t.Limit > 0 {
		s += fmt.Sprintf(" of %.4g", t.Limit)
	}
	return s + fmt.Sprintf(" (%s, %s old)", t.From, time.Duration(t.AgeMs*float64(time.Millisecond)).Round(100*time.Millisecond))
}

// A Failure is one thing that a node does not fulfil.
type Failure struct {
	Code Code `json:"code"`
	// Path is where the manifest asks for it; empty for what the node's
	// operator decided.
	Path string `json:"path,omitempty"`
	Have string `json:"have"`
	Want string `json:"want"`
	// Short is how far it is from fitting, relative to what is wanted; 1 for
	// what is no matter of degree.
	Short float64 `json:"short"`
	AgeMs float64 `json:"ageMs"`
	From  Source  `json:"from"`
}

// String says what is lacking.
func (f Failure) String() string {
	s := fmt.Sprintf("%s: %s, want %s", f.Code, f.Have, f.Want)
	if f.Path != "" {
		s += " (" + f.Path + ")"
	}
	return s
}

// A Threshold is how far a worker is from moving.
type Threshold struct {
	To NodeID `json:"to"`
	// AddedRTT is by how much the way to the present node must grow before To
	// becomes enough better; AddedMs the same in ms.
	AddedRTT time.Duration `json:"-"`
	AddedMs  float64       `json:"addedMs"`
	// Event is the event latency here at that point, in ms.
	EventMs float64 `json:"eventMs"`
	Text    string  `json:"text"`
}

// Explain decides as [View.Decide] does, but reports on every node, with all
// figures. It changes no state: the worker's next decision is the same whether
// or not somebody asked why.
func (v *View) Explain(app *manifest.App, w *Worker, st State) Explanation {
	d, _ := v.Decide(app, w, st)
	e := Explanation{Decision: d}
	p := v.problem(app, w)
	stay := st.stay(&app.Migration)
	var here candidate
	if p.here >= 0 {
		here = p.evaluate(p.here)
		r := p.report(&here)
		e.Here = &r
	}
	var best *candidate
	urgency := p.urgency()
	for i := range v.nodes {
		if int32(i) == p.here {
			continue
		}
		c := p.evaluate(int32(i))
		p.toMove(&c, urgency)
		c.gain = (here.cost-c.cost)*stay - c.moveCost
		e.Others = append(e.Others, p.report(&c))
		if c.fails == 0 && (best == nil || c.gain > best.gain) {
			best = &c
		}
	}
	sortReports(e.Others)
	if d.Action == Stay && best != nil && p.here >= 0 && d.Reason != Pinned && d.Reason != Immovable && d.Reason != NotAutomatic {
		e.Would = p.would(best, stay)
	}
	for _, o := range w.Observed {
		e.Observed = append(e.Observed, p.term(o.Path, o.Value.Seconds()*1e3, "ms", 0, o.Stamp))
	}
	e.Summary = p.summary(&e)
	return e
}

func sortReports(rs []Report) {
	slices.SortFunc(rs, func(a, b Report) int {
		return cmp.Or(cmp.Compare(len(a.Failures), len(b.Failures)), cmp.Compare(b.Gain, a.Gain), cmp.Compare(a.Cost, b.Cost), cmp.Compare(a.Node, b.Node))
	})
}

func (p *problem) summary(e *Explanation) string {
	d := &e.Decision
	name := func(id NodeID) string {
		if n := p.v.Node(id); n != nil && n.Name != "" {
			return n.Name
		}
		return string(id)
	}
	var b strings.Builder
	switch d.Action {
	case Move:
		fmt.Fprintf(&b, "goes to %s by %s: %s", name(d.To), d.Option.Strategy, d.Reason.Text())
	case Stuck:
		fmt.Fprintf(&b, "cannot be placed: %s", d.Reason.Text())
	default:
		fmt.Fprintf(&b, "stays on %s: %s", name(d.From), d.Reason.Text())
		if !d.Until.IsZero() {
			fmt.Fprintf(&b, " (%s, in %s)", name(d.To), d.Until.Sub(d.At).Round(100*time.Millisecond))
		}
	}
	if d.Degraded {
		b.WriteString("; it would break a hard objective there too, and no node keeps all")
	}
	return b.String()
}

// term makes a Term from facts with the given stamps: the oldest counts.
func (p *problem) term(name string, value float64, unit string, limit float64, stamps ...Stamp) Term {
	t := Term{Name: name, Value: value, Unit: unit, Limit: limit}
	t.AgeMs, t.From = p.oldest(stamps)
	return t
}

func (p *problem) oldest(stamps []Stamp) (ageMs float64, from Source) {
	for i, s := range stamps {
		if a := s.Age(p.v.now).Seconds() * 1e3; i == 0 || a > ageMs || a == ageMs && s.From < from {
			ageMs, from = a, s.From
		}
	}
	return ageMs, from
}

// network returns the stamps of the round trips between users and node n.
func (p *problem) network(n int32) []Stamp {
	out := []Stamp{}
	for i := range p.users {
		u := &p.users[i]
		switch {
		case u.entry == n:
		case u.row.from[n] == Measured && u.row.path[n] >= 0:
			out = append(out, p.v.refs[u.row.path[n]].Stamp)
		case u.row.from[n] == Estimated:
			out = append(out, Stamp{p.v.nodes[n].CoordinateAt.At, Estimated}, Stamp{p.v.nodes[u.entry].CoordinateAt.At, Estimated})
		default:
			out = append(out, Stamp{})
		}
	}
	for i := range p.w.Users {
		out = append(out, p.w.Users[i].Stamp)
	}
	return out
}

func (p *problem) report(c *candidate) Report {
	n := &p.v.nodes[c.node]
	r := Report{Node: n.ID, Name: n.Name, Tier: n.Tier, Cost: c.cost, Gain: c.gain}
	for _, code := range c.fails.List() {
		r.Failures = append(r.Failures, p.failure(c, code))
	}
	ms := func(s float64) float64 { return s * 1e3 }
	limit := func(o *manifest.Objective) float64 {
		if o == nil {
			return 0
		}
		return ms(o.Max.Seconds())
	}
	net := p.network(c.node)
	if len(p.users) > 0 {
		all := append([]Stamp{p.w.Event.Stamp, n.SpeedAt, n.LoadAt}, net...)
		r.Terms = append(r.Terms,
			p.term("event", ms(c.event), "ms", limit(p.t.event), all...),
			p.term("network", ms(c.network), "ms", 0, net...),
			p.term("rtt", ms(c.rtt), "ms", limit(p.t.users), net...))
		if c.growth != 0 {
			// Of network: by how much it is expected to be longer when a move
			// would be over than it is now.
			r.Terms = append(r.Terms, p.term("growth", ms(c.growth), "ms", 0, net...))
		}
	}
	r.Terms = append(r.Terms,
		p.term("handler", ms(p.svc.mid*c.factor), "ms", 0, p.w.Event.Stamp, n.SpeedAt, n.LoadAt),
		p.term("overhead", ms(p.overhead), "ms", 0, p.w.Event.Stamp),
		p.term("queue", ms(c.wait), "ms", 0, p.w.Event.Stamp, n.LoadAt),
		p.term("slowdown", c.factor, "x", 0, n.SpeedAt, n.LoadAt),
		p.term("load", n.Load, "x", maxLoad, n.LoadAt))
	for _, t := range [...]struct {
		name  string
		value float64
	}{{"event-risk", c.eventCost}, {"rtt-risk", c.rttCost}, {"preferences", c.prefer}, {"nearness", c.nearest}} {
		if t.value > 0 {
			r.Terms = append(r.Terms, p.term(t.name, t.value, "cost", 0, n.Facts, n.LoadAt))
		}
	}
	if p.here >= 0 && c.node != p.here {
		move := c.move
		r.Move = &move
		_, rate := p.v.rate(p.here, c.node)
		o := move.Chosen()
		r.Terms = append(r.Terms,
			p.term("blackout", ms(c.blackout.Seconds()), "ms", limit(p.t.app.Objectives.Blackout), p.w.MemoryAt, rate),
			p.term("converge", ms(c.convergeAfter.Seconds()), "ms", limit(p.t.app.Objectives.Converge), p.w.MemoryAt, rate),
			p.term("bytes", float64(o.Bytes), "B", 0, p.w.MemoryAt),
			p.term("move", c.moveCost, "s", 0, p.w.MemoryAt, rate))
		if m := p.v.model(p.here, c.node); m.Moves > 0 {
			// By what of earlier moves there the prediction was corrected.
			blackout, setup, bytes := m.Factors()
			seen := Stamp{p.v.now, Observed}
			r.Terms = append(r.Terms,
				p.term("learnt-from", float64(m.Moves), "moves", 0, seen),
				p.term("learnt-blackout", blackout, "x", 0, seen),
				p.term("learnt-setup", setup, "x", 0, seen),
				p.term("learnt-bytes", bytes, "x", 0, seen))
		}
	}
	return r
}

// failure says what is behind a code.
func (p *problem) failure(c *candidate, code Code) Failure {
	n, a := &p.v.nodes[c.node], p.t.app
	f := Failure{Code: code, Short: 1}
	req := &a.Placement.Require
	stamps := []Stamp{n.Facts}
	above := func(path string, have, want float64) {
		f.Path, f.Have, f.Want = path, seconds(have).Round(10*time.Microsecond).String(), "at most "+seconds(want).String()
		f.Short = have/want - 1
	}
	switch code {
	case CodeTier:
		f.Path, f.Have, f.Want = "placement.require.tier", string(n.Tier), list(req.Tier)
	case CodeArch:
		f.Path, f.Have, f.Want = "placement.require.arch", n.Arch, list(req.Arch)
	case CodeNodes:
		f.Path, f.Have, f.Want = "placement.require.nodes", n.Name, list(req.Nodes)
	case CodeCores:
		f.Path, f.Have, f.Want = "placement.require.cores", fmt.Sprint(n.Cores), fmt.Sprintf("at least %d", req.Cores)
		f.Short = 1 - float64(n.Cores)/float64(req.Cores)
	case CodeTotalMemory:
		f.Path, f.Have, f.Want = "placement.require.memory", size(n.Memory), "at least "+size(int64(req.Memory))
		f.Short = 1 - float64(n.Memory)/float64(req.Memory)
	case CodeAccelerators:
		f.Path, f.Have, f.Want = "placement.require.accelerators", "has "+list(n.Accelerators), "all of "+list(req.Accelerators)
	case CodeLabels:
		for i := range req.Labels {
			if l := &req.Labels[i]; !labelHolds(l, n) {
				f.Path, f.Have, f.Want = fmt.Sprintf("placement.require.labels[%d]", i), label(n, l.Key), wantLabel(l)
				break
			}
		}
	case CodeInterface:
		for i, in := range a.Placement.Interfaces {
			if !slices.Contains(n.Interfaces, in.Name) && len(p.t.providers[i]) == 0 {
				f.Path, f.Have, f.Want = fmt.Sprintf("placement.interfaces[%d]", i), "has "+list(n.Interfaces), in.Name
				if in.Access == manifest.Proxy {
					f.Want += " on any node"
				}
				break
			}
		}
	case CodeCordoned:
		f.Have, f.Want = "cordoned", "open"
	case CodeDraining:
		f.Have, f.Want = "draining", "open"
	case CodeMemory:
		stamps = []Stamp{n.LoadAt}
		f.Path, f.Have, f.Want = "limits.memory", size(n.MemoryFree)+" free", size(int64(a.Limits.Memory))
		f.Short = 1 - float64(max(n.MemoryFree, 0))/float64(a.Limits.Memory)
	case CodeCPU:
		stamps = []Stamp{n.LoadAt, n.SpeedAt, p.w.Event.Stamp}
		cpu := p.cpu * p.speed / p.v.host[c.node].speed
		f.Have = fmt.Sprintf("load %.2f on %d cores, and the worker would need %.2f of one", n.Load, p.v.host[c.node].cores, cpu)
		f.Want = fmt.Sprintf("at most %.2f with it, and less than one core for the worker", maxLoad)
		f.Short = max(n.Load+cpu/float64(p.v.host[c.node].cores)-maxLoad, cpu-saturated, 0)
	case CodeSpread:
		f.Path, f.Have = "placement.spread", "as many workers of the app as may be together"
		f.Want = "fewer"
	case CodeEvent:
		stamps = append(p.network(c.node), n.LoadAt, n.SpeedAt, p.w.Event.Stamp)
		above("objectives.event.max", c.event, a.Objectives.Event.Max.Seconds())
	case CodeRTT:
		stamps = p.network(c.node)
		if o := p.t.users; o != nil && o.Mode == manifest.Hard && c.rtt > o.Max.Seconds() {
			above("objectives.rtt.max", c.rtt, o.Max.Seconds())
		} else {
			f.Path, f.Have, f.Want, f.Short = "objectives.rtt.max", fmt.Sprintf("%.2f times the maximum to another app", c.peer), "at most 1", c.peer-1
		}
	case CodeBlackout:
		stamps = []Stamp{p.w.MemoryAt}
		above("objectives.blackout.max", c.blackout.Seconds(), a.Objectives.Blackout.Max.Seconds())
	case CodeConverge:
		stamps = []Stamp{p.w.MemoryAt}
		above("objectives.converge.max", c.convergeAfter.Seconds(), a.Objectives.Converge.Max.Seconds())
	}
	f.AgeMs, f.From = p.oldest(stamps)
	return f
}

func list[S ~string](xs []S) string {
	if len(xs) == 0 {
		return "none"
	}
	out := make([]string, len(xs))
	for i, x := range xs {
		out[i] = string(x)
	}
	return strings.Join(out, ", ")
}

func size(b int64) string {
	if b >= 1<<20 {
		b &^= 1<<20 - 1 // whole MiB are exact enough to read
	}
	return manifest.Size(max(b, 0)).String()
}

func label(n *Node, key string) string {
	if v, ok := n.Labels[key]; ok {
		return key + "=" + v
	}
	return "no label " + key
}

func wantLabel(l *manifest.Label) string {
	switch {
	case len(l.In) > 0:
		return l.Key + " in " + list(l.In)
	case len(l.NotIn) > 0:
		return l.Key + " not in " + list(l.NotIn)
	}
	return "a label " + l.Key
}

// would returns by how much the way from the users to the present node must
// grow until candidate c would be worth a move, everything else as it is.
func (p *problem) would(c *candidate, stay float64) *Threshold {
	improve := float64(p.t.app.Migration.ImproveBy)
	if p.t.app.Migration.Mode != manifest.Auto {
		return nil
	}
	at := func(added float64) (float64, bool) {
		p.added = added
		here := p.evaluate(p.here)
		p.added = 0
		moves := here.cost-c.cost > improve*here.cost && (here.cost-c.cost)*stay > c.moveCost && (here.cost-p.floor())*stay > movePrice
		return here.event, moves || here.fails&objectiveCodes != 0
	}
	hi := 1e-3
	for {
		if _, ok := at(hi); ok {
			break
		}
		if hi *= 2; hi > 10 {
			return nil // not even ten seconds: what keeps it here is not the network
		}
	}
	lo := 0.0
	if _, ok := at(0); ok {
		hi = 0
	}
	for hi-lo > 1e-5 {
		mid := (lo + hi) / 2
		if _, ok := at(mid); ok {
			hi = mid
		} else {
			lo = mid
		}
	}
	event, _ := at(hi)
	t := &Threshold{To: p.v.nodes[c.node].ID, AddedRTT: seconds(hi), AddedMs: hi * 1e3, EventMs: event * 1e3}
	if hi == 0 {
		t.Text = fmt.Sprintf("%s is enough better already; what is left is to wait", p.v.nodes[c.node].Name)
	} else {
		t.Text = fmt.Sprintf("it would move to %s when the way to this node is %s longer (event latency %s)",
			p.v.nodes[c.node].Name, t.AddedRTT.Round(100*time.Microsecond), seconds(event).Round(100*time.Microsecond))
	}
	return t
}
