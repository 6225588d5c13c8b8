package placement

import (
	"math/bits"
	"slices"
	"strings"

	"meshnode/placement/manifest"
)

// A Code names one thing that a candidate must fulfil.
type Code uint8

// The codes. Those up to CodeDraining depend on app and node alone.
const (
	CodeTier Code = iota
	CodeArch
	CodeNodes
	CodeCores
	CodeTotalMemory
	CodeAccelerators
	CodeLabels
	CodeInterface
	CodeCordoned
	CodeDraining
	// CodeMemory and CodeCPU are about room.
	CodeMemory
	CodeCPU
	CodeSpread
	// The hard objectives, as predicted.
	CodeEvent
	CodeRTT
	CodeBlackout
	CodeConverge
	codes
)

var codeNames = [codes]string{
	"tier", "arch", "nodes", "cores", "total-memory", "accelerators", "labels", "interface", "cordoned", "draining",
	"memory", "cpu", "spread", "event", "rtt", "blackout", "converge",
}

func (c Code) String() string {
	if c < codes {
		return codeNames[c]
	}
	return "unknown"
}

// MarshalText implements encoding.TextMarshaler.
func (c Code) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// Codes is a set of codes.
type Codes uint32

func (s Codes) with(c Code) Codes { return s | 1<<c }

// Has says whether c is in s.
func (s Codes) Has(c Code) bool { return s&(1<<c) != 0 }

// Len is the number of codes in s.
func (s Codes) Len() int { return bits.OnesCount32(uint32(s)) }

// List returns the codes in s, in their order.
func (s Codes) List() []Code {
	var out []Code
	for c := range codes {
		if s.Has(c) {
			out = append(out, c)
		}
	}
	return out
}

// String joins the names of the codes in s.
func (s Codes) String() string {
	var names []string
	for _, c := range s.List() {
		names = append(names, c.String())
	}
	return strings.Join(names, ",")
}

const (
	objectiveCodes Codes = 1<<CodeEvent | 1<<CodeRTT | 1<<CodeBlackout | 1<<CodeConverge
	// placeCodes say where a worker is to be, not what it needs there. The fallback
	// list names places beyond those.
	placeCodes Codes = 1<<CodeTier | 1<<CodeNodes
	// newcomerCodes do not concern the node where the worker already is.
	newcomerCodes Codes = 1<<CodeCordoned | 1<<CodeMemory
)

// maxLoad is the load that a node may have once the worker is there. Beyond
// it waits for a CPU grow so steeply that no prediction holds.
const maxLoad = 0.9

// A target is what an app means in a view, computed once for all its workers.
type target struct {
	app *manifest.App
	// static are the failures of each node, preference the cost there of
	// preferences that do not hold, eligible the nodes without failures.
	static     []Codes
	preference []float64
	eligible   []int32
	// providers are the round trips from the nodes with each proxied
	// interface, in the order of the manifest's list; nil for those that pin.
	providers [][]*row
	spreads   []spreadCount
	// fallback are the nodes that the fallback list names.
	fallback []int32

	event  *manifest.Objective
	eventZ float64
	users  *manifest.Objective // rtt to users
	usersZ float64
	apps   []appRTT
}

type appRTT struct {
	app string
	obj *manifest.Objective
	z   float64
}

// A spreadCount counts an app's workers by the value that nodes share.
type spreadCount struct {
	atMost int
	of     []string // each node's value, without its label none
	count  map[string]int
}

func (v *View) target(app *manifest.App) *target {
	if t := v.targets[app]; t != nil {
		return t
	}
	t := &target{app: app, static: make([]Codes, len(v.nodes)), preference: make([]float64, len(v.nodes))}
	for _, f := range app.Placement.Interfaces {
		var has []*row
		if f.Access == manifest.Proxy {
			for i := range v.nodes {
				if slices.Contains(v.nodes[i].Interfaces, f.Name) {
					has = append(has, v.row(int32(i)))
				}
			}
		}
		t.providers = append(t.providers, has)
	}
	for i := range v.nodes {
		n := &v.nodes[i]
		s := unmet(&app.Placement.Require, n)
		for k, f := range app.Placement.Interfaces {
			if !slices.Contains(n.Interfaces, f.Name) && len(t.providers[k]) == 0 {
				s = s.with(CodeInterface)
			}
		}
		if n.Cordoned {
			s = s.with(CodeCordoned)
		}
		if n.Draining {
			s = s.with(CodeDraining)
		}
		t.static[i] = s
		if s == 0 {
			t.eligible = append(t.eligible, int32(i))
		}
		for k := range app.Placement.Prefer {
			if p := &app.Placement.Prefer[k]; unmet(&p.Predicate, n) != 0 {
				t.preference[i] += preferenceCost * p.Weight
			}
		}
		for _, f := range app.Fallback {
			if f.Node != "" && (f.Node == n.Name || f.Node == string(n.ID)) {
				t.fallback = append(t.fallback, int32(i))
			}
		}
	}
	for _, s := range app.Placement.Spread {
		sc := spreadCount{atMost: s.AtMost, of: make([]string, len(v.nodes))}
		for i := range v.nodes {
			n := &v.nodes[i]
			switch label, ok := strings.CutPrefix(s.Over, "label/"); {
			case ok:
				sc.of[i] = n.Labels[label]
			case s.Over == "tier":
				sc.of[i] = string(n.Tier)
			default:
				sc.of[i] = string(n.ID)
			}
		}
		t.spreads = append(t.spreads, sc)
	}
	t.countSpread(v)
	if o := app.Objectives.Event; o != nil {
		t.event, t.eventZ = o, score(float64(o.Quantile))
	}
	for i := range app.Objectives.RTT {
		o := &app.Objectives.RTT[i]
		z := score(float64(o.Quantile))
		if name, ok := strings.CutPrefix(o.To, "app/"); ok {
			t.apps = append(t.apps, appRTT{name, &o.Objective, z})
		} else {
			t.users, t.usersZ = &o.Objective, z
		}
	}
	v.targets[app] = t
	return t
}

func (t *target) countSpread(v *View) {
	for k := range t.spreads {
		s := &t.spreads[k]
		s.count = make(map[string]int)
		for i := range v.nodes {
			if c := v.nodes[i].Workers[t.app.Name]; c > 0 {
				s.count[s.of[i]] += c
			}
		}
	}
}

// crowded says whether a worker that comes from node here (or -1) would be one
// too many at node n.
func (t *target) crowded(n, here int32) bool {
	for k := range t.spreads {
		s := &t.spreads[k]
		if s.of[n] == "" {
			continue // a node without the label shares it with none
		}
		have := s.count[s.of[n]]
		if here >= 0 && s.of[here] == s.of[n] {
			have-- // itself
		}
		if have >= s.atMost {
			return true
		}
	}
	return false
}

// unmet returns the terms of p that do not hold for n.
func unmet(p *manifest.Predicate, n *Node) Codes {
	var s Codes
	if len(p.Tier) > 0 && !slices.Contains(p.Tier, n.Tier) {
		s = s.with(CodeTier)
	}
	if len(p.Arch) > 0 && !slices.Contains(p.Arch, n.Arch) {
		s = s.with(CodeArch)
	}
	if len(p.Nodes) > 0 && !slices.Contains(p.Nodes, n.Name) && !slices.Contains(p.Nodes, string(n.ID)) {
		s = s.with(CodeNodes)
	}
	if n.Cores < p.Cores {
		s = s.with(CodeCores)
	}
	if n.Memory < int64(p.Memory) {
		s = s.with(CodeTotalMemory)
	}
	for _, a := range p.Accelerators {
		if !slices.Contains(n.Accelerators, a) {
			s = s.with(CodeAccelerators)
		}
	}
	for i := range p.Labels {
		if !labelHolds(&p.Labels[i], n) {
			s = s.with(CodeLabels)
		}
	}
	return s
}

func labelHolds(l *manifest.Label, n *Node) bool {
	val, ok := n.Labels[l.Key]
	switch {
	case len(l.In) > 0:
		return ok && slices.Contains(l.In, val)
	case len(l.NotIn) > 0:
		return !ok || !slices.Contains(l.NotIn, val)
	}
	return ok
}
