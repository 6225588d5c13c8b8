package placement

import (
	"cmp"
	"fmt"
	"slices"

	"meshnode/placement/manifest"
)

// A Plan says where a worker would go, without changing anything.
type Plan struct {
	Decision Decision `json:"decision"`
	// Fits are the nodes that would take it, the best first; Others those
	// that would not, with all reasons, the nearest to fitting first.
	Fits   []Report `json:"fits"`
	Others []Report `json:"others"`
	// Changes are the changes that would let more nodes fit, the smallest
	// first: of the manifest, or of a node. When every node fails in several
	// ways, the only one is all that the nearest node lacks.
	Changes []Change `json:"changes,omitempty"`
}

// A Change is what would have to be different.
type Change struct {
	// Failures are what is in the way; one, unless no single change helps.
	Failures []Failure `json:"failures"`
	// Node is the nearest node that would fit then; Nodes how many would at
	// most, were the demand dropped.
	Node  NodeID `json:"node"`
	Nodes int    `json:"nodes"`
	Text  string `json:"text"`
}

// Plan decides on worker w of app and says what stands in the way of other
// places. To plan for a worker that does not exist yet, leave its Owner empty
// and give its expected figures and users.
func (v *View) Plan(app *manifest.App, w *Worker, st State) Plan {
	e := v.Explain(app, w, st)
	pl := Plan{Decision: e.Decision}
	all := e.Others
	if e.Here != nil {
		all = append([]Report{*e.Here}, all...)
	}
	for _, r := range all {
		if len(r.Failures) == 0 {
			pl.Fits = append(pl.Fits, r)
		} else {
			pl.Others = append(pl.Others, r)
		}
	}
	slices.SortStableFunc(pl.Fits, func(a, b Report) int { return cmp.Compare(a.Cost, b.Cost) })
	slices.SortStableFunc(pl.Others, func(a, b Report) int {
		return cmp.Or(cmp.Compare(len(a.Failures), len(b.Failures)), cmp.Compare(short(a.Failures), short(b.Failures)))
	})
	pl.Changes = changes(pl.Others)
	return pl
}

// short is how far a node is from fitting, all failures together.
func short(fs []Failure) float64 {
	sum := 0.0
	for _, f := range fs {
		sum += f.Short
	}
	return sum
}

// changes finds the smallest changes; others are sorted, the nearest first.
func changes(others []Report) []Change {
	var out []Change
	for _, r := range others {
		if len(r.Failures) > 1 {
			break
		}
		f := r.Failures[0]
		i := slices.IndexFunc(out, func(c Change) bool { return c.Failures[0].Code == f.Code })
		if i < 0 {
			out = append(out, Change{Failures: r.Failures, Node: r.Node, Text: fmt.Sprintf("%s would fit if not for %s", r.Name, f)})
			i = len(out) - 1
		}
		out[i].Nodes++
	}
	if len(out) == 0 && len(others) > 0 {
		r := others[0]
		text := r.Name + " is nearest to fitting; it lacks "
		for i, f := range r.Failures {
			if i > 0 {
				text += "; "
			}
			text += f.String()
		}
		out = append(out, Change{Failures: r.Failures, Node: r.Node, Nodes: 1, Text: text})
	}
	return out
}
