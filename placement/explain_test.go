package placement

import (
	"encoding/json"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"meshnode/placement/manifest"
)

func TestExplainListsEverything(t *testing.T) {
	a := app(t, func(a *manifest.App) {
		a.Placement.Require = manifest.Predicate{
			Tier: []manifest.Tier{manifest.Edge}, Arch: []string{"amd64"}, Nodes: []string{"a", "b"}, Cores: 4, Memory: 8 << 30,
			Accelerators: []string{"gpu"}, Labels: []manifest.Label{{Key: "zone", In: []string{"x"}}},
		}
		a.Placement.Interfaces = []manifest.Interface{{Name: "camera", Access: manifest.Pin}}
		a.Placement.Spread = []manifest.Spread{{Over: "node", AtMost: 1}}
		hard := func(max time.Duration) *manifest.Objective {
			return &manifest.Objective{Max: manifest.Duration(max), Quantile: 0.99, Window: manifest.Duration(time.Minute), Mode: manifest.Hard}
		}
		a.Objectives.Event, a.Objectives.Blackout, a.Objectives.Converge = hard(30*ms), hard(20*ms), hard(time.Second)
		a.Objectives.RTT = []manifest.RTTObjective{{To: "users", Objective: *hard(15 * ms)}}
	})
	good := func(n *Node) {
		n.Accelerators, n.Labels, n.Interfaces = []string{"gpu"}, map[string]string{"zone": "x"}, []string{"camera"}
	}
	nodes := []Node{node("a", good), node("b", good), node("worst", func(n *Node) {
		n.Tier, n.Arch, n.Cores, n.Memory, n.MemoryFree, n.Load = manifest.Cloud, "arm64", 1, 1<<30, 0, 1
		n.Cordoned, n.Draining, n.Workers = true, true, map[string]int{"physics": 1}
		n.LoadAt.At = t0.Add(-7 * time.Second)
	})}
	w := worker("a", "a")
	v := view(t, t0, nodes, path("a", "worst", 50*ms), path("a", "b", 3*ms))
	e := v.Explain(a, w, State{})
	if e.Here == nil || e.Here.Node != "a" || len(e.Here.Failures) != 0 {
		t.Fatalf("here: %+v", e.Here)
	}
	worst := e.Others[len(e.Others)-1]
	var got []string
	for _, f := range worst.Failures {
		got = append(got, f.Code.String())
		if f.Have == "" || f.Want == "" {
			t.Errorf("%s does not say what there is and what is wanted: %+v", f.Code, f)
		}
		if f.Short <= 0 || math.IsNaN(f.Short) {
			t.Errorf("%s is short by %v", f.Code, f.Short)
		}
	}
	if want := codeNames[:]; !slices.Equal(got, want) {
		t.Errorf("got failures %v\nwant all: %v", got, want)
	}
	for _, r := range e.Others {
		for _, term := range r.Terms {
			if term.Name == "load" && r.Name == "worst" && (term.AgeMs != 7000 || term.From != Claimed) {
				t.Errorf("got %+v, want it to be 7 s old", term)
			}
			if math.IsNaN(term.Value) || math.IsInf(term.Value, 0) {
				t.Errorf("%s of %s is %v", term.Name, r.Name, term.Value)
			}
		}
	}
	if _, err := json.Marshal(e); err != nil {
		t.Error(err)
	}
}

// What Explain says would make it move does make it move, and a little less
// does not.
func TestExplainThreshold(t *testing.T) {
	a := app(t, func(a *manifest.App) { a.Migration.HoldFor = 0 })
	w := worker("a", "u")
	world := func(rtt time.Duration) *View {
		// With a tail that does not grow with the median, as Explain varies it.
		toA := Path{From: "u", To: "a", RTT: RTT{rtt, rtt + ms}, Rate: 1e7, Stamp: Stamp{t0, Measured}}
		return view(t, t0, []Node{node("a", nil), node("b", nil), node("u", func(n *Node) { n.Cordoned = true })}, toA, path("u", "b", 4*ms), path("a", "b", 4*ms))
	}
	e := world(2*ms).Explain(a, w, State{})
	if e.Decision.Action != Stay || e.Would == nil || e.Would.To != "b" || e.Would.AddedRTT <= 0 {
		t.Fatalf("got %+v, %+v", e.Decision, e.Would)
	}
	for _, c := range []struct {
		add  time.Duration
		want Action
	}{{-100 * time.Microsecond, Stay}, {100 * time.Microsecond, Move}} {
		if d, _ := world(2*ms+e.Would.AddedRTT+c.add).Decide(a, w, State{}); d.Action != c.want {
			t.Errorf("with %v added: got %v (%v), want %v", e.Would.AddedRTT+c.add, d.Action, d.Reason, c.want)
		}
	}
	if !strings.Contains(e.Would.Text, "would move to b") {
		t.Errorf("text: %s", e.Would.Text)
	}
}

// The decision does not depend on having been explained; and the shortlist,
// which Explain does without, rarely misses a place that is clearly better.
func TestExplainAgrees(t *testing.T) {
	r := seed(t)
	a := app(t, func(a *manifest.App) { a.Migration.HoldFor = 0 })
	moves, missed := 0, 0
	for range 300 {
		nodes, paths := world(r, 60+r.IntN(100))
		w := randomWorker(r, nodes)
		v := view(t, t0, nodes, paths...)
		e := v.Explain(a, w, State{})
		d, _ := v.Decide(a, w, State{})
		if d.Action != e.Decision.Action || d.To != e.Decision.To {
			t.Fatalf("got %+v and %+v", d, e.Decision)
		}
		if d.Action != Move {
			continue
		}
		moves++
		if top := e.Others[0].Gain; d.Gain < top-sameCost*defaultStay.Seconds()-0.05*top && d.Reason == Better {
			missed++
			t.Logf("moves to %s for a gain of %v, there was %s with %v", d.To, d.Gain, e.Others[0].Node, top)
		}
	}
	if moves < 20 || missed > moves/20 {
		t.Errorf("%d moves, %d of them to a place clearly worse than the best", moves, missed)
	}
}

func TestPlan(t *testing.T) {
	a := app(t, func(a *manifest.App) {
		a.Placement.Require.Tier = []manifest.Tier{manifest.Edge}
		a.Objectives.Event.Mode, a.Objectives.Event.Weight = manifest.Hard, 0
	})
	w := worker("", "far")
	nodes := []Node{
		node("far", func(n *Node) { n.Tier = manifest.Cloud }), node("far2", func(n *Node) { n.Tier = manifest.Cloud }),
		node("slow", func(n *Node) { n.Speed = 150 }),
		node("full", func(n *Node) { n.MemoryFree = 200 << 20 }),
		node("hopeless", func(n *Node) { n.Tier, n.Cordoned = manifest.Device, true }),
	}
	pl := view(t, t0, nodes, path("far", "far2", 2*ms), path("far", "slow", 2*ms), path("far", "full", 2*ms)).Plan(a, w, State{})
	if pl.Decision.Action != Move || !pl.Decision.Degraded || len(pl.Fits) != 0 || len(pl.Others) != 5 {
		t.Fatalf("got %+v, %d fit", pl.Decision, len(pl.Fits))
	}
	var got []string
	for _, c := range pl.Changes {
		got = append(got, c.Failures[0].Code.String()+"@"+string(c.Node))
	}
	slices.Sort(got)
	if want := []string{"event@slow", "memory@full", "tier@far"}; !slices.Equal(got, want) {
		t.Errorf("got changes %v, want %v\n%+v", got, want, pl.Changes)
	}
	for _, c := range pl.Changes {
		if c.Failures[0].Code == CodeTier && c.Nodes != 2 {
			t.Errorf("%d nodes would fit without the tier, want 2", c.Nodes)
		}
	}
	// When each node lacks several things, the nearest says all of them.
	pl = view(t, t0, nodes[4:]).Plan(a, w, State{})
	if len(pl.Changes) != 1 || len(pl.Changes[0].Failures) != 2 || pl.Decision.Action != Stuck {
		t.Errorf("got %+v", pl)
	}
}

// What moves to a node have taught shows in what is predicted of the next one
// there, in the reasons, and nowhere else.
func TestExplainShowsWhatWasLearnt(t *testing.T) {
	taught := path("a", "b", 3*ms)
	taught.Moves = MoveModel{Moves: 7, Base: math.Log(2), Bytes: math.Log(0.5)}
	back := path("b", "a", 3*ms) // what b has learnt is about moves from b
	back.Moves = MoveModel{Moves: 1, Base: 1}
	v := view(t, t0, []Node{node("a", nil), node("b", nil), node("c", nil)}, taught, back, path("a", "c", 3*ms))
	e := v.Explain(app(t, nil), worker("a", "a"), State{})
	learnt := map[string]map[string]float64{}
	moves := map[string]*MovePrediction{}
	for _, r := range e.Others {
		learnt[r.Name], moves[r.Name] = map[string]float64{}, r.Move
		for _, term := range r.Terms {
			if what, ok := strings.CutPrefix(term.Name, "learnt-"); ok {
				learnt[r.Name][what] = math.Round(term.Value*1e6) / 1e6
			}
		}
	}
	if got, want := learnt["b"], (map[string]float64{"from": 7, "blackout": 2, "setup": 1, "bytes": 0.5}); !maps.Equal(got, want) {
		t.Errorf("of b: got %v, want %v", got, want)
	}
	if len(learnt["c"]) != 0 {
		t.Errorf("of c, where nothing has gone: %v", learnt["c"])
	}
	b, c := moves["b"].Options[Hybrid], moves["c"].Options[Hybrid]
	if diff := b.Blackout - 2*c.Blackout; diff.Abs() > time.Microsecond || b.Bytes >= c.Bytes {
		t.Errorf("predicted of b: %v and %d bytes, of c: %v and %d", b.Blackout, b.Bytes, c.Blackout, c.Bytes)
	}
}
