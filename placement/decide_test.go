package placement

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"meshnode/placement/manifest"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

const ms = time.Millisecond

// app returns a manifest with a 30 ms event objective, changed by edit.
func app(t testing.TB, edit func(*manifest.App)) *manifest.App {
	t.Helper()
	a := manifest.New("physics", strings.Repeat("0", 64))
	a.Objectives.Event = &manifest.Objective{Max: manifest.Duration(30 * ms), Quantile: 0.99, Window: manifest.Duration(10 * time.Second), Mode: manifest.Soft, Weight: 1}
	if edit != nil {
		edit(a)
	}
	if err := a.Validate(); err != nil {
		t.Fatal(err)
	}
	return a
}

func node(id string, edit func(*Node)) Node {
	st := Stamp{t0, Claimed}
	n := Node{
		ID: NodeID(id), Name: id, Tier: manifest.Edge, Arch: "amd64", OS: "linux", Engine: "compiler", Paging: true,
		Cores: 4, Memory: 8 << 30, MemoryFree: 4 << 30, Load: 0.2, LoadAt: st, Facts: st, Speed: 1000, SpeedAt: st,
	}
	if edit != nil {
		edit(&n)
	}
	return n
}

func path(a, b string, rtt time.Duration) Path {
	return Path{From: NodeID(a), To: NodeID(b), RTT: RTT{rtt, rtt + rtt/5}, Rate: 12.5e6, Stamp: Stamp{t0, Measured}}
}

func worker(owner string, entries ...string) *Worker {
	w := &Worker{
		ID: "w1", Name: "w1", Owner: NodeID(owner), Memory: 64 << 20, WorkingSet: 4 << 20, DirtyRate: 1 << 20,
		MemoryAt: Stamp{t0, Measured}, Module: 1 << 20,
		Event: EventTime{P50: 2 * ms, P99: 4 * ms, Rate: 60, Stamp: Stamp{t0, Measured}},
	}
	for _, e := range entries {
		w.Users = append(w.Users, User{Entry: NodeID(e), Access: RTT{5 * ms, 7 * ms}, Rate: 60, Stamp: Stamp{t0, Measured}})
	}
	return w
}

func view(t testing.TB, now time.Time, nodes []Node, paths ...Path) *View {
	t.Helper()
	v, err := NewView(now, nodes, paths)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// walk decides every second until the worker moves, at most n times, and
// returns the last decision and how many it took.
func walk(t *testing.T, n int, a *manifest.App, w *Worker, st *State, at func(now time.Time) *View) (Decision, int) {
	t.Helper()
	var d Decision
	for i := range n {
		d, *st = at(t0.Add(time.Duration(i)*time.Second)).Decide(a, w, *st)
		if d.Action == Move {
			return d, i
		}
	}
	return d, n
}

func TestMovesToUser(t *testing.T) {
	nodes := []Node{node("a", nil), node("b", nil), node("c", nil)}
	paths := []Path{path("a", "b", 40*ms), path("a", "c", 20*ms), path("b", "c", 20*ms)}
	a := app(t, nil)
	w := worker("a", "b")
	var st State
	d, n := walk(t, 20, a, w, &st, func(now time.Time) *View { return view(t, now, nodes, paths...) })
	if d.Action != Move || d.To != "b" || d.Reason != Better {
		t.Fatalf("got %+v, want a move to b", d)
	}
	if n != 3 {
		t.Errorf("moved after %d s, want holdFor, 3 s", n)
	}
	if d.Event <= 5*ms || d.Event > 20*ms {
		t.Errorf("event predicted as %v", d.Event)
	}

	// There it stays.
	st = st.Moved(t0.Add(3*time.Second), "a", "b", true, &a.Migration)
	w.Owner = "b"
	if d, _ := view(t, t0.Add(time.Minute), nodes, paths...).Decide(a, w, st); d.Action != Stay || d.Reason != Content {
		t.Errorf("got %+v, want to stay", d)
	}
	// When the user goes back at once, the minimum stay holds it.
	w.Users[0].Entry = "a"
	d, n = walk(t, 40, a, w, &st, func(now time.Time) *View { return view(t, now, nodes, paths...) })
	if d.Action != Move || d.To != "a" || n != 33 {
		t.Errorf("got %+v after %d s, want a move back after 3 s + 30 s", d, n)
	}
	st = st.Moved(t0.Add(33*time.Second), "b", "a", true, &a.Migration)
	if st.Dwell != time.Minute {
		t.Errorf("after a bounce the minimum stay is %v, want 1m", st.Dwell)
	}
	if got := st.minDwell(&a.Migration, t0.Add(10*time.Minute)); got != 30*time.Second {
		t.Errorf("10 minutes later it is %v, want 30s again", got)
	}
}

func TestGates(t *testing.T) {
	base := []Node{node("a", nil), node("b", nil)}
	far := path("a", "b", 60*ms)
	for _, c := range []struct {
		name   string
		edit   func(*manifest.App)
		nodes  func([]Node)
		worker func(*Worker)
		state  State
		action Action
		reason Reason
	}{
		{name: "better", action: Move, reason: Better},
		{name: "holding", state: State{Since: t0.Add(-time.Hour), At: t0.Add(-2 * time.Second)}, action: Stay, reason: Holding},
		{name: "pinned", worker: func(w *Worker) { w.Pinned = true }, reason: Pinned},
		{name: "manual", edit: func(a *manifest.App) { a.Migration.Mode = manifest.Manual }, reason: NotAutomatic},
		{name: "never", edit: func(a *manifest.App) { a.Migration.Mode = manifest.Never }, nodes: func(n []Node) { n[0].Draining = true }, reason: Immovable},
		{name: "manual, draining", edit: func(a *manifest.App) { a.Migration.Mode = manifest.Manual }, nodes: func(n []Node) { n[0].Draining = true }, action: Move, reason: LeaveDraining},
		{name: "cordoned owner keeps", nodes: func(n []Node) { n[0].Cordoned = true }, worker: func(w *Worker) { w.Users[0].Entry = "a" }, reason: Content},
		{name: "cordoned destination", nodes: func(n []Node) { n[1].Cordoned = true }, reason: NoBetter},
		{name: "no room", nodes: func(n []Node) { n[1].MemoryFree = 1 << 20 }, reason: NoBetter},
		{name: "busy", nodes: func(n []Node) { n[1].Load = 0.95 }, reason: NoBetter},
		{name: "wrong tier now", edit: func(a *manifest.App) { a.Placement.Require.Tier = []manifest.Tier{manifest.Cloud} },
			nodes: func(n []Node) { n[1].Tier = manifest.Cloud }, action: Move, reason: LeavePredicate},
		{name: "nobody fits", edit: func(a *manifest.App) { a.Placement.Require.Tier = []manifest.Tier{manifest.Cloud} }, action: Stuck, reason: NoCandidate},
		{name: "start", worker: func(w *Worker) { w.Owner = "" }, action: Move, reason: Start},
		{name: "pin interface", edit: func(a *manifest.App) {
			a.Placement.Interfaces = []manifest.Interface{{Name: "camera", Access: manifest.Pin}}
		}, nodes: func(n []Node) { n[0].Interfaces = []string{"camera"} }, reason: NoBetter},
		{name: "proxied interface", edit: func(a *manifest.App) {
			a.Placement.Interfaces = []manifest.Interface{{Name: "camera", Access: manifest.Proxy}}
		}, nodes: func(n []Node) { n[0].Interfaces = []string{"camera"} }, worker: func(w *Worker) { w.Interfaces = []InterfaceUse{{Name: "camera", PerEvent: 1}} }, reason: NoBetter},
		{name: "spread", edit: func(a *manifest.App) { a.Placement.Spread = []manifest.Spread{{Over: "node", AtMost: 1}} },
			nodes: func(n []Node) { n[1].Workers = map[string]int{"physics": 1} }, reason: NoBetter},
		{name: "hard blackout", edit: func(a *manifest.App) {
			a.Objectives.Blackout = &manifest.Objective{Max: manifest.Duration(10 * ms), Quantile: 0.99, Window: manifest.Duration(time.Hour), Mode: manifest.Hard}
		}, reason: NoBetter},
		{name: "hard event broken", edit: func(a *manifest.App) { a.Objectives.Event.Mode, a.Objectives.Event.Weight = manifest.Hard, 0 }, action: Move, reason: LeaveObjective},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			nodes := slices.Clone(base)
			if c.nodes != nil {
				c.nodes(nodes)
			}
			a, w := app(t, c.edit), worker("a", "b")
			if c.worker != nil {
				c.worker(w)
			}
			st := c.state
			if st.Since.IsZero() { // b has been waiting for long
				st.Challengers[0] = Challenger{"b", t0.Add(-time.Minute), 10}
				st.At = t0.Add(-time.Second)
			}
			d, _ := view(t, t0, nodes, far).Decide(a, w, st)
			if d.Action != c.action || d.Reason != c.reason {
				t.Errorf("got %v, %v (%+v)\nwant %v, %v", d.Action, d.Reason, d, c.action, c.reason)
			}
		})
	}
}

func TestCap(t *testing.T) {
	a := app(t, func(a *manifest.App) { a.Migration.MaxPerHour, a.Migration.MinDwell = 3, 0 })
	nodes := []Node{node("a", nil), node("b", nil)}
	w := worker("a", "b")
	st := State{}
	var moves []time.Time
	// The user jumps between the ends for three hours.
	for i := range 3 * 3600 {
		now := t0.Add(time.Duration(i) * time.Second)
		w.Users[0].Entry = NodeID("ab"[i/60%2 : i/60%2+1])
		d, next := view(t, now, nodes, path("a", "b", 60*ms)).Decide(a, w, st)
		if st = next; d.Action == Move {
			moves = append(moves, now)
			st = st.Moved(now, w.Owner, d.To, true, &a.Migration)
			w.Owner = d.To
		}
	}
	for i := 3; i < len(moves); i++ {
		if gap := moves[i].Sub(moves[i-3]); gap < time.Hour {
			t.Errorf("moves %d and %d are %v apart: more than 3 an hour", i-3, i, gap)
		}
	}
	if len(moves) < 6 || len(moves) > 9 {
		t.Errorf("%d moves in 3 hours, want 6 to 9", len(moves))
	}
}

// The device's own event time decides between it and the edge.
func TestOffloadAndReturn(t *testing.T) {
	dev := node("device", func(n *Node) { n.Tier, n.Speed, n.Cores = manifest.Device, 200, 2 })
	edge := node("edge", nil)
	a := app(t, func(a *manifest.App) {
		a.Placement.Prefer = []manifest.Preference{{Weight: 1, Predicate: manifest.Predicate{Tier: []manifest.Tier{manifest.Device}}}}
	})
	w := worker("device", "device")
	w.Users[0].Access = RTT{100 * time.Microsecond, 200 * time.Microsecond}
	var st State
	at := func(now time.Time) *View { return view(t, now, []Node{dev, edge}, path("device", "edge", 8*ms)) }
	w.Event = EventTime{P50: 28 * ms, P99: 45 * ms, Rate: 20, Stamp: Stamp{t0, Measured}}
	d, _ := walk(t, 60, a, w, &st, at)
	if d.Action != Move || d.To != "edge" {
		t.Fatalf("heavy: got %+v, want a move to the edge", d)
	}
	st = st.Moved(t0, "device", "edge", true, &a.Migration)
	w.Owner = "edge"
	w.Event = EventTime{P50: 28 * ms / 5, P99: 9 * ms, Rate: 20, Stamp: Stamp{t0, Measured}}
	if d, _ := walk(t, 200, a, w, &st, at); d.Action != Stay {
		t.Fatalf("still heavy: got %+v, want to stay on the edge", d)
	}
	w.Event = EventTime{P50: ms / 5, P99: ms / 2, Rate: 20, Stamp: Stamp{t0, Measured}}
	if d, _ := walk(t, 200, a, w, &st, at); d.Action != Move || d.To != "device" {
		t.Errorf("light again: got %+v, want to return to the device", d)
	}
}

func TestFallback(t *testing.T) {
	a := app(t, func(a *manifest.App) {
		a.Fallback = []manifest.Fallback{{Node: "home"}, {Tier: manifest.Cloud}}
		a.Placement.Require.Arch = []string{"amd64"}
	})
	nodes := []Node{
		node("edge", nil), node("edge2", nil), node("home", func(n *Node) { n.Tier = manifest.Device }),
		node("far", func(n *Node) { n.Tier = manifest.Cloud }), node("near", func(n *Node) { n.Tier = manifest.Cloud }),
		node("arm", func(n *Node) { n.Tier, n.Arch = manifest.Cloud, "arm64" }),
		node("full", func(n *Node) { n.Tier, n.MemoryFree = manifest.Cloud, 0 }),
	}
	paths := []Path{path("edge2", "far", 80*ms), path("edge2", "near", 20*ms), path("edge2", "home", 30*ms), path("edge2", "arm", ms)}
	w := worker("edge", "edge2")
	got := view(t, t0, nodes, paths...).Fallback(a, w)
	if want := []NodeID{"home", "near", "far"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	nodes[2].Cordoned = true
	got = view(t, t0, nodes[1:], paths...).Fallback(a, w) // and the owner's node is gone
	if want := []NodeID{"near", "far"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	d, _ := view(t, t0, nodes[1:], paths...).Decide(a, w, State{})
	if d.Action != Move || d.Reason != LeaveGone || d.To != "near" || !slices.Equal(d.Next, []NodeID{"far"}) {
		t.Errorf("got %+v, want near, then far", d)
	}
	// The list names places beyond those that are required, but no node that lacks
	// anything else.
	nodes[2].Cordoned = false
	edges := app(t, func(b *manifest.App) {
		b.Fallback, b.Placement.Require = a.Fallback, a.Placement.Require
		b.Placement.Require.Tier = []manifest.Tier{manifest.Edge}
		b.Placement.Require.Nodes = []string{"edge", "edge2"}
	})
	got = view(t, t0, nodes, paths...).Fallback(edges, w)
	if want := []NodeID{"home", "near", "far"}; !slices.Equal(got, want) {
		t.Errorf("beyond the edges: got %v, want %v", got, want)
	}
	drained := slices.Clone(nodes)
	drained[0].Draining, drained[1].Cordoned = true, true
	d, _ = view(t, t0, drained, paths...).Decide(edges, w, State{})
	if d.Action != Move || d.To != "home" || !d.Degraded || d.Reason != LeaveDraining {
		t.Errorf("no edge is left: got %+v, want a degraded move home", d)
	}
	// From there it goes back as soon as there is a place, and nowhere else.
	drained[0].Draining = false
	home := *w
	home.Owner = "home"
	d, _ = view(t, t0, drained, paths...).Decide(edges, &home, State{})
	if d.Action != Move || d.To != "edge" || d.Reason != LeavePredicate {
		t.Errorf("an edge is back: got %+v, want a move there", d)
	}
	drained[0].Cordoned = true
	d, _ = view(t, t0, drained, paths...).Decide(edges, &home, State{})
	if d.Action != Stay || d.Reason != AtFallback {
		t.Errorf("no edge is back: got %+v, want it to stay there meanwhile", d)
	}
	other := *edges
	other.Fallback = []manifest.Fallback{{Tier: manifest.Cloud}}
	d, _ = view(t, t0, drained, paths...).Decide(&other, &home, State{})
	if d.Action != Stuck || d.Reason != NoCandidate {
		t.Errorf("at a node that nothing names: got %+v, want it stuck", d)
	}
	// Draining with nothing that keeps the hard objective: the list decides.
	nodes[2].Cordoned = false
	nodes[0].Draining = true
	a = app(t, func(b *manifest.App) {
		b.Fallback = []manifest.Fallback{{Node: "far"}, {Tier: manifest.Cloud}}
		b.Objectives.Event = &manifest.Objective{Max: manifest.Duration(5 * ms), Quantile: 0.99, Window: manifest.Duration(10 * time.Second), Mode: manifest.Hard}
	})
	d, _ = view(t, t0, nodes, paths...).Decide(a, w, State{})
	if d.Action != Move || d.To != "far" || !d.Degraded || d.Reason != LeaveDraining {
		t.Errorf("got %+v, want a degraded move to far", d)
	}
}

// world makes a random view: nodes on a plane with coordinates, a few measured
// paths, some nodes unfit.
func world(r *rand.Rand, n int) ([]Node, []Path) {
	var nodes []Node
	for i := range n {
		nodes = append(nodes, node(fmt.Sprintf("n%04d", i), func(n *Node) {
			n.Coordinate = Coordinate{Vec: [Dimensions]float64{r.Float64() * 0.05, r.Float64() * 0.05}, Height: 0.0005 + 0.001*r.Float64(), Error: 0.2 * r.Float64()}
			n.CoordinateAt = Stamp{t0, Estimated}
			n.Tier = []manifest.Tier{manifest.Device, manifest.Edge, manifest.Edge, manifest.Cloud}[r.IntN(4)]
			n.Arch = []string{"amd64", "arm64"}[r.IntN(2)]
			n.Cores = 1 << r.IntN(5)
			n.Speed = 500 + 1000*r.Float64()
			n.Load = r.Float64()
			n.MemoryFree = int64(r.IntN(1 << 30))
			n.Cordoned = r.IntN(20) == 0
			n.Draining = r.IntN(20) == 0
			n.Labels = map[string]string{"zone": string(rune('a' + r.IntN(4)))}
		}))
	}
	var paths []Path
	for range 4 * n {
		a, b := r.IntN(n), r.IntN(n)
		if a != b {
			paths = append(paths, path(string(nodes[a].ID), string(nodes[b].ID), time.Duration(r.IntN(60_000))*time.Microsecond))
		}
	}
	return nodes, paths
}

func randomWorker(r *rand.Rand, nodes []Node) *Worker {
	w := worker(string(nodes[r.IntN(len(nodes))].ID))
	w.ID = WorkerID(fmt.Sprintf("w%d", r.IntN(1e6)))
	for range 1 + r.IntN(4) {
		w.Users = append(w.Users, User{Entry: nodes[r.IntN(len(nodes))].ID, Access: RTT{time.Duration(r.IntN(10_000)) * time.Microsecond, 0}, Rate: 60 * r.Float64(), Stamp: Stamp{t0, Measured}})
	}
	w.Event.P50 = time.Duration(r.IntN(5000)) * time.Microsecond
	w.Event.P99 = 2 * w.Event.P50
	return w
}

func seed(t testing.TB) *rand.Rand {
	s := uint64(time.Now().UnixNano())
	t.Logf("seed %d", s)
	return rand.New(rand.NewPCG(s, 0))
}

func TestOrderDoesNotMatter(t *testing.T) {
	r := seed(t)
	a := app(t, func(a *manifest.App) {
		a.Placement.Require.Tier = []manifest.Tier{manifest.Edge, manifest.Cloud}
		a.Migration.HoldFor = 0
	})
	moves := 0
	for range 200 {
		nodes, paths := world(r, 3+r.IntN(100))
		w := randomWorker(r, nodes)
		d1, s1 := view(t, t0, nodes, paths...).Decide(a, w, State{})
		if d1.Action == Move {
			moves++
		}
		r.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
		r.Shuffle(len(paths), func(i, j int) { paths[i], paths[j] = paths[j], paths[i] })
		w2 := *w
		w2.Users = slices.Clone(w.Users)
		r.Shuffle(len(w2.Users), func(i, j int) { w2.Users[i], w2.Users[j] = w2.Users[j], w2.Users[i] })
		v := view(t, t0, nodes, paths...)
		d2, s2 := v.Decide(a, &w2, State{})
		d3, s3 := v.Decide(a, &w2, State{}) // what the view keeps changes nothing
		if !reflect.DeepEqual(d1, d2) || !reflect.DeepEqual(s1, s2) || !reflect.DeepEqual(d2, d3) || !reflect.DeepEqual(s2, s3) {
			t.Fatalf("got\n%+v\n%+v\n%+v", d1, d2, d3)
		}
	}
	if moves == 0 {
		t.Error("no decision was to move")
	}
}

func TestPredicatesAreNeverViolated(t *testing.T) {
	r := seed(t)
	a := app(t, func(a *manifest.App) {
		a.Placement.Require = manifest.Predicate{
			Tier: []manifest.Tier{manifest.Edge, manifest.Cloud}, Arch: []string{"amd64"}, Cores: 2,
			Labels: []manifest.Label{{Key: "zone", NotIn: []string{"a"}}},
		}
		a.Migration.HoldFor = 0
		a.Fallback = []manifest.Fallback{{Tier: manifest.Device}, {Tier: manifest.Cloud}}
	})
	moves := 0
	for range 500 {
		nodes, paths := world(r, 3+r.IntN(100))
		w := randomWorker(r, nodes)
		v := view(t, t0, nodes, paths...)
		d, _ := v.Decide(a, w, State{})
		to := v.Fallback(a, w)
		listed := len(to) // those may be of a tier that is not required else
		if d.Action == Move {
			moves++
			to = append(to, d.To)
		}
		for i, id := range to {
			n := v.Node(id)
			beyond := i < listed || d.Reason == LeaveGone || d.Reason == LeaveDraining && d.Degraded
			if n.Tier == manifest.Device && !beyond || n.Arch != "amd64" || n.Cores < 2 || n.Labels["zone"] == "a" || n.Cordoned || n.Draining || n.MemoryFree < int64(a.Limits.Memory) {
				t.Fatalf("moved to %+v", n)
			}
		}
	}
	if moves == 0 {
		t.Error("no decision was to move")
	}
}

// Whatever other nodes claim, decisions remain numbers.
func TestNonsenseIn(t *testing.T) {
	r := seed(t)
	odd := []float64{math.NaN(), math.Inf(1), math.Inf(-1), -1, 0, 1e300, 5e-324, 0.5}
	float := func(p *float64) {
		if r.IntN(3) == 0 {
			*p = odd[r.IntN(len(odd))]
		}
	}
	duration := func(p *time.Duration) {
		if r.IntN(3) == 0 {
			*p = []time.Duration{math.MinInt64, math.MaxInt64, 0, -1}[r.IntN(4)]
		}
	}
	a := app(t, func(a *manifest.App) { a.Migration.HoldFor = 0 })
	for range 500 {
		nodes, paths := world(r, 2+r.IntN(60))
		for i := range nodes {
			n := &nodes[i]
			float(&n.Load)
			float(&n.Speed)
			float(&n.Uplink)
			float(&n.Downlink)
			float(&n.Coordinate.Height)
			float(&n.Coordinate.Adjustment)
			float(&n.Coordinate.Error)
			float(&n.Coordinate.Vec[0])
			duration(&n.Access.Promised)
			n.Cores = []int{-1, 0, 1, math.MaxInt32}[r.IntN(4)]
		}
		for i := range paths {
			float(&paths[i].Rate)
			duration(&paths[i].RTT.P50)
			duration(&paths[i].RTT.P99)
		}
		w := randomWorker(r, nodes)
		float(&w.DirtyRate)
		float(&w.Event.Rate)
		duration(&w.Event.P50)
		duration(&w.Event.P99)
		for i := range w.Users {
			float(&w.Users[i].Rate)
			duration(&w.Users[i].Access.P50)
		}
		v := view(t, t0, nodes, paths...)
		e := v.Explain(a, w, State{})
		for _, x := range []float64{e.Decision.Cost, e.Decision.CostThere, e.Decision.Gain} {
			if math.IsNaN(x) || math.IsInf(x, 0) {
				t.Fatalf("got %+v", e.Decision)
			}
		}
		if _, err := json.Marshal(e); err != nil {
			for _, o := range e.Others {
				if _, err := json.Marshal(o); err != nil {
					t.Fatalf("%v: %+v\n%+v", err, o, w)
				}
			}
			t.Fatalf("%v: %+v", err, e.Here)
		}
	}
}

// Two places that are equally good, seen through noise, for 12 hours. Noise
// within the offset moves nothing; beyond it, the minimum stay grows until
// moves are rare.
func TestNoFlapping(t *testing.T) {
	r := seed(t)
	for _, c := range []struct {
		noise float64
		most  int
	}{{0.05, 2}, {0.1, 100}} {
		for _, rtt := range []time.Duration{12 * ms, 15 * ms, 17 * ms} {
			a := app(t, nil)
			w := worker("a", "u")
			st := State{}
			moves := 0
			for i := range 12 * 3600 / 2 {
				now := t0.Add(2 * time.Duration(i) * time.Second)
				noisy := func(b string) Path {
					return path("u", b, time.Duration(float64(rtt)*(1+c.noise*(2*r.Float64()-1))))
				}
				nodes := []Node{node("a", nil), node("b", nil), node("u", func(n *Node) { n.Cordoned = true })}
				d, next := view(t, now, nodes, noisy("a"), noisy("b"), path("a", "b", 5*ms)).Decide(a, w, st)
				if st = next; d.Action == Move {
					moves++
					st = st.Moved(now, w.Owner, d.To, true, &a.Migration)
					w.Owner = d.To
				}
			}
			t.Logf("noise %v, rtt %v: %d moves in 12 hours", c.noise, rtt, moves)
			if moves > c.most {
				t.Errorf("noise %v, rtt %v: %d moves in 12 hours between equals, want at most %d", c.noise, rtt, moves, c.most)
			}
		}
	}
}

func TestReservationsConserve(t *testing.T) {
	r := seed(t)
	free := Need{1 << 30, 4}
	res := NewReservations(5, 10*time.Second)
	type held struct {
		need  Need
		until time.Time
	}
	want := map[WorkerID]held{} // the slow and obvious book
	now := t0
	accepted, refused := 0, 0
	for range 20_000 {
		now = now.Add(time.Duration(r.IntN(2000)) * ms)
		for w, h := range want {
			if !now.Before(h.until) {
				delete(want, w)
			}
		}
		w := WorkerID(fmt.Sprint(r.IntN(12)))
		switch r.IntN(4) {
		case 0:
			res.Release(w)
			delete(want, w)
		default:
			need := Need{int64(r.IntN(1 << 29)), 2 * r.Float64()}
			sum, others := need, 0
			for o, h := range want {
				if o != w {
					sum, others = sum.plus(h.need), others+1
				}
			}
			ok := others < 5 && sum.fits(free)
			if err := res.Reserve(now, w, need, free); (err == nil) != ok {
				t.Fatalf("got %v, want accepted %v", err, ok)
			}
			if ok {
				want[w] = held{need, now.Add(10 * time.Second)}
				accepted++
			} else {
				refused++
			}
		}
		got := res.Held(now)
		var sum Need
		for _, h := range want {
			sum = sum.plus(h.need)
		}
		if got.Memory != sum.Memory || got.CPU-sum.CPU > 1e-6 || sum.CPU-got.CPU > 1e-6 || len(res.held) != len(want) || !got.fits(free) {
			t.Fatalf("got %+v in %d, want %+v in %d", got, len(res.held), sum, len(want))
		}
	}
	if accepted == 0 || refused == 0 {
		t.Errorf("%d accepted, %d refused: nothing was tried", accepted, refused)
	}
}

// A state that travels means the same on a node whose clock differs.
func TestStateTravels(t *testing.T) {
	a := app(t, nil)
	st := State{}
	for i := range 10 {
		st = st.Moved(t0.Add(time.Duration(i)*time.Minute), NodeID("ab"[i%2:i%2+1]), NodeID("ba"[i%2:i%2+1]), true, &a.Migration)
	}
	now := t0.Add(10 * time.Minute)
	away := now.Add(-1000 * time.Hour)
	got := st.Pack(now).Unpack(away)
	if got.Previous != st.Previous || got.Dwell != st.Dwell || got.Stay != st.Stay || len(got.Moves) != len(st.Moves) {
		t.Errorf("got %+v, want %+v", got, st)
	}
	if got, want := away.Sub(got.Since), now.Sub(st.Since); got != want {
		t.Errorf("owned for %v, want %v", got, want)
	}
	if got, want := got.minDwell(&a.Migration, away), st.minDwell(&a.Migration, now); got != want {
		t.Errorf("must stay for %v, want %v", got, want)
	}
	// What a peer made up stays within bounds.
	bad := PackedState{Since: -time.Hour, Dwell: math.MaxInt64, Stay: -1, Moves: make([]time.Duration, 1e6)}.Unpack(now)
	if bad.Since.After(now) || bad.Dwell > 64*24*time.Hour || bad.Stay < 0 || len(bad.Moves) > 120 {
		t.Errorf("got since %v, dwell %v, stay %v, %d moves", bad.Since, bad.Dwell, bad.Stay, len(bad.Moves))
	}
}

// TestTrend: a place that is about to be too far is left in time, for one that
// comes nearer; one that is as far, and stays so, is not.
func TestTrend(t *testing.T) {
	for _, r := range []struct {
		grows time.Duration // in a second, of the way to the owner
		moves bool
	}{{0, false}, {-2 * ms, false}, {2 * ms, true}} {
		app := app(t, func(a *manifest.App) {
			a.Migration.ImproveBy = 0.2
			a.Placement.Require.Tier = []manifest.Tier{manifest.Edge}
		})
		st, moved := State{}, false
		for s := range 5 {
			now := t0.Add(time.Duration(s) * time.Second)
			stamp := Stamp{now, Measured}
			path := func(to NodeID, trend time.Duration) Path {
				return Path{From: "device", To: to, RTT: RTT{P50: 22 * ms, P99: 23 * ms}, Trend: trend, Stamp: stamp}
			}
			device := node("device", func(n *Node) { n.Tier = manifest.Device })
			v := view(t, now, []Node{device, node("a", nil), node("b", nil)}, path("a", r.grows), path("b", -r.grows))
			w := worker("a", "device")
			w.Users[0].Access = RTT{P50: ms}
			var d Decision
			d, st = v.Decide(app, w, st)
			if len(d.Rivals) != 1 || d.Rivals[0] != "b" {
				t.Errorf("rivals %v, want b", d.Rivals)
			}
			if moved = d.Action == Move; moved {
				break
			}
		}
		if moved != r.moves {
			t.Errorf("grows by %v a second: moved %v, want %v", r.grows, moved, r.moves)
		}
	}
}

// TestEarly: a user comes nearer to b, and farther from a. As soon as that is
// sure b will be the better place, but the worker goes when it is on arrival.
func TestEarly(t *testing.T) {
	app := app(t, func(a *manifest.App) {
		a.Migration.HoldFor = manifest.Duration(time.Second)
		a.Placement.Require.Tier = []manifest.Tier{manifest.Edge}
	})
	device := node("device", func(n *Node) { n.Tier = manifest.Device })
	const start, trend = 8, 2 * ms // before the user is half-way, in seconds; a second
	var st State
	for step := range 4 * 2 * start {
		at := time.Duration(step) * time.Second / 4
		now := t0.Add(at)
		stamp := Stamp{now, Measured}
		path := func(to NodeID, trend time.Duration) Path {
			rtt := 22*ms + time.Duration(float64(trend)*(at.Seconds()-start))
			return Path{From: "device", To: to, RTT: RTT{P50: rtt, P99: rtt + ms}, Trend: trend, Rate: 12.5e6, Stamp: stamp}
		}
		v := view(t, now, []Node{device, node("a", nil), node("b", nil)}, path("a", trend), path("b", -trend),
			Path{From: "a", To: "b", RTT: RTT{4 * ms, 5 * ms}, Rate: 12.5e6, Stamp: stamp})
		w := worker("a", "device")
		w.Memory = 4 << 20
		w.Users[0].Access = RTT{P50: ms / 10}
		w.Cached = []Cached{{Node: "b", Module: true}}
		var d Decision
		if d, st = v.Decide(app, w, st); d.Action != Move {
			continue
		}
		arrival := at + d.Option.Before + d.Option.Blackout
		if half := start * time.Second; arrival < half-time.Second/4 || arrival > half+time.Second {
			t.Errorf("the worker arrives after %v, the user is half-way after %v", arrival, half)
		}
		return
	}
	t.Error("the worker stays")
}

// TestBeyond: what an event takes that nobody can tell counts wherever the
// worker is, but for what the handler and waiting explain.
func TestBeyond(t *testing.T) {
	a := app(t, nil)
	events := func(beyond time.Duration) (here, there, overhead float64) {
		v := view(t, t0, []Node{node("a", nil), node("b", nil)}, path("a", "b", 10*ms))
		w := worker("a", "b")
		w.Event.Beyond = beyond
		e := v.Explain(a, w, State{})
		term := func(r *Report, name string) float64 {
			i := slices.IndexFunc(r.Terms, func(t Term) bool { return t.Name == name })
			return r.Terms[i].Value
		}
		return term(e.Here, "event"), term(&e.Others[0], "event"), term(e.Here, "overhead")
	}
	here, there, _ := events(0)
	for _, r := range []struct {
		beyond time.Duration
		want   float64 // ms
	}{{ms, 0}, {2 * ms, 0}, {5 * ms, 3}} {
		h, th, overhead := events(r.beyond)
		if math.Abs(overhead-r.want) > 0.1 || math.Abs(h-here-r.want) > 0.1 || math.Abs(th-there-r.want) > 0.1 {
			t.Errorf("%v beyond the round trip: overhead %.2f ms, and events %.2f ms later here and %.2f there, want %.1f", r.beyond, overhead, h-here, th-there, r.want)
		}
	}
}

// TestLate: where an objective is broken everywhere, the place with fewer late
// events is better still.
func TestLate(t *testing.T) {
	for _, tail := range []float64{0, 0.002, 0.02, 0.2} { // of the handler
		before := 0.0
		for mid := 0.005; mid < 0.06; mid += 0.001 {
			x := late(spread{mid, 0.002}, spread{0.002, tail}, 0.03, riskWidth)
			if x <= before || x >= 1 {
				t.Fatalf("tail %v, %.0f ms: %.3f of the cases late, and %.3f a millisecond nearer", tail, 1e3*mid, x, before)
			}
			before = x
		}
		if x := late(spread{0.028, 0.002}, spread{0.002, tail}, 0.03, riskWidth); math.Abs(x-0.5) > 1e-9 {
			t.Errorf("tail %v, a median at the limit: %.3f late, want half", tail, x)
		}
		// Far from the limit only as many as the handler's own quantile says.
		if x := late(spread{}, spread{0.002, tail}, 0.002+tail, 0); tail > 0 && math.Abs(x-0.01) > 0.01 {
			t.Errorf("tail %v, its 99th percentile at the limit: %.3f late", tail, x)
		}
	}
	if x := late(spread{}, spread{}, 0.03, riskWidth); x != 0 {
		t.Errorf("nothing known: %.3f late", x)
	}
}
