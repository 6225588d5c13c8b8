package placement

import (
	"cmp"
	"slices"

	"meshnode/placement/manifest"
)

// chain returns the index in cs of the candidate that the fallback list names
// first, or -1: a node by name, or the best of a tier.
func (p *problem) chain(cs []candidate) int {
	for _, f := range p.t.app.Fallback {
		best := -1
		for i := range cs {
			if n := &p.v.nodes[cs[i].node]; named(f, n) && (best < 0 || cs[i].cost < cs[best].cost) {
				best = i
			}
		}
		if best >= 0 {
			return best
		}
	}
	return -1
}

func named(f manifest.Fallback, n *Node) bool {
	if f.Node != "" {
		return f.Node == n.Name || f.Node == string(n.ID)
	}
	return f.Tier == n.Tier
}

// named reports whether the fallback list names node n.
func (p *problem) named(n int32) bool {
	return slices.ContainsFunc(p.t.app.Fallback, func(f manifest.Fallback) bool { return named(f, &p.v.nodes[n]) })
}

// listed returns the nodes that the fallback list names and that have what the
// worker needs, whatever tiers and nodes the manifest requires else.
func (p *problem) listed() []ranked {
	var out []ranked
	for n := range int32(len(p.v.nodes)) {
		if n != p.here && p.t.static[n]&^placeCodes == 0 && p.named(n) {
			out = append(out, ranked{node: n})
		}
	}
	return out
}

// afterGone completes decision d for a worker whose owner is not in the view:
// the manifest's list decides, in its order.
func (v *View) afterGone(app *manifest.App, w *Worker, d Decision) Decision {
	ids := v.Fallback(app, w)
	if len(ids) == 0 {
		d.Action, d.Reason = Stuck, NoCandidate
		return d
	}
	d.Action, d.Reason, d.To = Move, LeaveGone, ids[0]
	d.Next = ids[1:min(len(ids), maxNext+1)]
	return d
}

// Fallback says who takes a worker whose owner has gone, by the manifest's
// list: the nodes to ask, in this order. Nodes that lack what is required are
// left out, but for tiers and nodes, since that is what the list names. Those
// that are predicted to break a hard objective are not, since a slow worker is
// better than none, but come later within their entry. The worker's owner is never among them. All nodes with the same
// view come to the same list, so the first that is up can act on it without
// asking the others.
func (v *View) Fallback(app *manifest.App, w *Worker) []NodeID {
	p := v.problem(app, w)
	p.here = -1 // there is no move to predict, and no way back
	var out []NodeID
	taken := make([]bool, len(v.nodes))
	listed := p.listed()
	for _, f := range app.Fallback {
		for _, degraded := range [...]bool{false, true} {
			var cs []candidate
			for _, r := range listed {
				if taken[r.node] || v.nodes[r.node].ID == w.Owner || !named(f, &v.nodes[r.node]) {
					continue
				}
				c := p.evaluate(r.node)
				if fails := c.fails &^ placeCodes; fails&^objectiveCodes == 0 && (fails != 0) == degraded {
					cs = append(cs, c)
				}
			}
			slices.SortFunc(cs, byCost)
			for i := range cs {
				taken[cs[i].node] = true
				out = append(out, v.nodes[cs[i].node].ID)
			}
		}
	}
	return out
}

// byCost orders candidates, the cheapest first.
func byCost(a, b candidate) int {
	return cmp.Or(cmp.Compare(a.cost, b.cost), cmp.Compare(a.node, b.node))
}
