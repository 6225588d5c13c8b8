package node

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/placement"
)

const planApp = `apiVersion: meshnode/v1alpha1
kind: App
name: counter
module: {hash: 00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff}
limits: {memory: 64MiB}
objectives:
  event: {max: 5s, quantile: p50, window: 10s}
`

// TestPlan plans on a mesh of three nodes as it is, changes what the nodes say
// of themselves, and finds the plan changed and the workers where they were.
func TestPlan(t *testing.T) {
	nodes := startNodes(t, 3)
	a, b, c := nodes[0], nodes[1], nodes[2]
	ctx := t.Context()
	for _, n := range nodes {
		waitFor(t, "speeds", func() bool {
			return !slices.ContainsFunc(n.mesh.Members(), func(m mesh.Member) bool { return m.Record.Speed == 0 })
		})
	}
	plan := func(text string, users ...string) control.Plan {
		t.Helper()
		p, err := a.client.PlanApp(ctx, control.PlanRequest{File: "app.yaml", Manifest: text, Users: users, RatePerSecond: 1, EventMs: 1})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	// A node that is slow to answer is planned with what is assumed of it.
	measured := func(p control.Plan) bool {
		return len(p.Notes) == 0 && len(p.Workers) == 1 && !slices.ContainsFunc(p.Workers[0].Fits, func(r control.PlacementReport) bool {
			n := r.Term("network")
			return n == nil || n.Value > 0 && n.From != "measured"
		})
	}
	var p control.Plan
	waitFor(t, "the ways to be measured", func() bool { p = plan(planApp); return measured(p) })
	if p.Pending != 1 || p.Workers[0].Decision.Reason != "start" || len(p.Workers[0].Fits) != 3 {
		t.Fatalf("an app that fits anywhere: %+v", p)
	}
	for _, r := range p.Workers[0].Fits {
		n := r.Term("network")
		if n == nil || r.Node != string(a.id) && (n.From != "measured" || n.Value <= 0) {
			t.Errorf("way from users to %s: %+v", r.Name, n)
		}
		if s := r.Term("slowdown"); s == nil || s.From == "assumed" {
			t.Errorf("slowdown on %s: %+v", r.Name, s)
		}
	}
	if w, err := a.client.Workers(ctx); err != nil || len(w) != 0 {
		t.Errorf("a plan made workers: %v, %v", w, err)
	}

	// Users who enter elsewhere: that node's own measurements count.
	waitFor(t, "the ways from there to be measured", func() bool { p = plan(planApp, b.name()); return measured(p) })
	for _, r := range p.Workers[0].Fits {
		if n := r.Term("network"); n == nil || (r.Node == string(b.id)) != (n.Value == 0) || n.Value > 0 && n.From != "measured" {
			t.Errorf("way from users at %s to %s: %+v", b.name(), r.Name, n)
		}
	}

	// A label that one node has; then that node is cordoned.
	const needs = planApp + "placement: {require: {labels: [{key: zone, in: [berlin]}]}}\n"
	p = plan(needs)
	if p.Stuck != 1 || len(p.Workers[0].Changes) == 0 || !strings.Contains(p.Workers[0].Changes[0].Text, "zone") {
		t.Fatalf("an app that fits nowhere: %+v", p)
	}
	if _, err := a.client.Configure(ctx, c.name(), control.NodeSettings{Labels: map[string]*string{"zone": ptr("berlin")}}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the label", func() bool { p = plan(needs); return p.Pending == 1 })
	if to := p.Workers[0].Decision.To; to != string(c.id) {
		t.Errorf("goes to %s, want %s", to, c.id)
	}
	if _, err := a.client.Configure(ctx, c.name(), control.NodeSettings{Cordoned: ptr(true)}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the cordon", func() bool { p = plan(needs); return p.Stuck == 1 })
	for _, r := range p.Workers[0].Others {
		if f := r.Failures; len(f) != 1 || (f[0].Code == "cordoned") != (r.Node == string(c.id)) {
			t.Errorf("%s fails for %+v", r.Name, f)
		}
	}

	// A worker that runs is where it is, as its home sees it and by its events.
	a.run(t, app(t, "counter"), control.RunRequest{Name: "counter"})
	for _, n := range nodes {
		waitFor(t, "the worker's entry", func() bool { _, err := n.dir.find("counter"); return err == nil })
	}
	for range 5 {
		b.call(t, "counter", "add 1")
	}
	var e control.Explanation
	waitFor(t, "the way from its users to be measured", func() bool {
		var err error
		if e, err = c.client.Explain(ctx, "counter", control.ExplainRequest{File: "app.yaml", Manifest: planApp}); err != nil {
			t.Fatal(err)
		}
		if e.Here == nil {
			return false
		}
		n := e.Here.Term("network")
		return n != nil && n.From == "measured"
	})
	if e.Here == nil || e.Here.Node != string(a.id) || e.Decision.Action != "stay" || len(e.Others) != 2 || e.Summary == "" {
		t.Errorf("got %+v", e)
	}
	if h := e.Here.Term("handler"); h == nil || h.Value <= 0 {
		t.Errorf("handler's time: %+v", h)
	}
	if n := e.Here.Term("network"); n == nil || n.Value <= 0 || n.From != "measured" {
		t.Errorf("way from its users, who are at %s: %+v", b.name(), n)
	}
	if p = plan(planApp); p.Pending != 0 || p.Workers[0].Decision.From != string(a.id) {
		t.Errorf("a plan for what runs: %+v", p.Workers[0].Decision)
	}

	var ce *control.Error
	if _, err := a.client.PlanApp(ctx, control.PlanRequest{Manifest: "kind: Ap"}); !errors.As(err, &ce) || ce.Code != control.CodeInvalid {
		t.Errorf("a bad manifest: %v", err)
	}
	if _, err := a.client.PlanApp(ctx, control.PlanRequest{Manifest: planApp, Users: []string{"nowhere"}}); !errors.As(err, &ce) || ce.Code != control.CodeNotFound {
		t.Errorf("users at a node that is not: %v", err)
	}
}

func TestEventTimes(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	var times eventTimes
	var all []eventTime
	now := time.Unix(1_000_000, 0)
	if s := times.summary(now); !s.last.IsZero() || s.rate != 0 {
		t.Errorf("of nothing: %+v", s)
	}
	for range 2000 {
		now = now.Add(time.Duration(r.IntN(300)) * time.Millisecond)
		e := eventTime{at: now, took: time.Duration(1+r.IntN(1e6)) * time.Microsecond, entry: []mesh.NodeID{"", "a", "b"}[r.IntN(3)]}
		times.add(e)
		if all = append(all, e); r.IntN(50) > 0 {
			continue
		}
		var took []time.Duration
		count := map[mesh.NodeID]int{}
		oldest := now
		for _, e := range all[max(0, len(all)-eventsKept):] {
			if now.Sub(e.at) <= eventsFor {
				took = append(took, e.took)
				count[e.entry]++
				oldest = time.Unix(0, min(oldest.UnixNano(), e.at.UnixNano()))
			}
		}
		slices.Sort(took)
		span := max(now.Sub(oldest).Seconds(), 1)
		s := times.summary(now)
		if s.p50 != took[len(took)/2] || s.p99 != took[len(took)*99/100] || s.last != now {
			t.Fatalf("after %d events: %+v, want p50 %v, p99 %v", len(all), s, took[len(took)/2], took[len(took)*99/100])
		}
		rate := func(s eventSummary, id mesh.NodeID) float64 {
			if u := s.users[id]; u != nil {
				return u.rate
			}
			return 0
		}
		near := func(x, y float64) bool { return x-y < 1e-6 && y-x < 1e-6 }
		if !near(s.rate, float64(len(took))/span) || !near(rate(s, "a"), float64(count["a"])/span) || s.users[""] != nil {
			t.Fatalf("after %d events: rate %v and %v, want %v and %v", len(all), s.rate, s.users, float64(len(took))/span, count)
		}
	}
}

// TestBeyond: a sender takes the time of each call that is answered, less the
// round trip as it was just then.
func TestBeyond(t *testing.T) {
	n := &Node{id: "here", rtts: newPathTimes()}
	now := time.Unix(1000, 0)
	n.rtts.add("far", 20*time.Millisecond, now)
	for _, r := range []struct {
		at   mesh.NodeID
		call bool
		took time.Duration
		when time.Time
		want time.Duration
	}{
		{"far", true, 25 * time.Millisecond, now, 5 * time.Millisecond},
		{"here", true, 3 * time.Millisecond, now, 3 * time.Millisecond},
		{"far", false, 25 * time.Millisecond, now, 0},                 // may wait for no answer
		{"far", true, 15 * time.Millisecond, now, 0},                  // cannot be
		{"far", true, 2 * time.Minute, now, 0},                        // it was away
		{"far", true, 25 * time.Millisecond, now.Add(time.Minute), 0}, // the round trip may be another now
		{"other", true, 25 * time.Millisecond, now, 0},                // not known
	} {
		s := &Sender{node: n, at: r.at, access: func() time.Duration { return localAccess }}
		s.timedLocked(&deliverMessage{Call: r.call, queued: r.when.Add(-r.took)}, r.when)
		if s.beyond != r.want {
			t.Errorf("%+v: %v", r, s.beyond)
		}
	}
	var times eventTimes
	for i := range 9 {
		times.add(eventTime{at: now, took: time.Millisecond, entry: "a", beyond: time.Duration(i) * time.Millisecond}) // 0 is not known
	}
	if got, want := times.summary(now).beyond, 3*time.Millisecond; got != want {
		t.Errorf("of nine events: %v, want %v", got, want)
	}
}

func TestPathTimes(t *testing.T) {
	p, now := newPathTimes(), time.Unix(1, 0)
	if _, ok := p.get("a"); ok {
		t.Error("a path that was never measured")
	}
	for i := range 2 * pathSamples {
		p.add("a", time.Duration(i+1)*time.Millisecond, now.Add(time.Duration(i)*time.Minute))
	}
	got, ok := p.get("a")
	want := pathEstimate{
		RTT: placement.RTT{P50: (1.5*pathSamples + 1) * time.Millisecond, P99: 2 * pathSamples * time.Millisecond}, At: now.Add((2*pathSamples - 1) * time.Minute),
	}
	if !ok || got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	p.keep(map[mesh.NodeID]bool{"b": true})
	if _, ok := p.get("a"); ok {
		t.Error("a path to a node that is gone is kept")
	}
}

// TestWatch: one goroutine pings a path, and only so many paths are watched.
func TestWatch(t *testing.T) {
	p, now := newPathTimes(), time.Unix(1, 0)
	id := func(i int) mesh.NodeID { return mesh.NodeID(fmt.Sprint(i)) }
	for i := range 2 * maxWatched {
		if got, want := p.watch(id(i), now.Add(watchFor)), i < maxWatched; got != want {
			t.Errorf("path %d: watched %v, want %v", i, got, want)
		}
	}
	if p.watch(id(0), now.Add(2*watchFor)) {
		t.Error("a path is watched twice")
	}
	p.keep(nil)
	for i := range 2 {
		if got, want := p.unwatch(id(i), now.Add(watchFor)), i == 1; got != want {
			t.Errorf("path %d: over %v, want %v", i, got, want)
		}
	}
	if p.watch(id(0), now) || !p.watch(id(maxWatched), now) {
		t.Error("a path that is watched no longer takes the place of another")
	}
}

func TestAppOf(t *testing.T) {
	for worker, want := range map[string]string{"counter": "counter", "counter-12": "counter", "counter-0": "counter-0", "a-b": "a-b", "a-1-2": "a-1"} {
		if got := appOf(worker); got != want {
			t.Errorf("%s: got %s, want %s", worker, got, want)
		}
	}
}

func FuzzPathsHave(f *testing.F) {
	good := pathsHave{Paths: []pathHave{{To: mesh.NodeID(newID()), P50: time.Millisecond, P99: 2 * time.Millisecond, Age: time.Second, Trend: -time.Millisecond}}}
	b, err := encMode.Marshal(good)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var h pathsHave
		if decMode.Unmarshal(b, &h) != nil || h.validate() != nil {
			return
		}
		for _, p := range h.Paths {
			if p.P50 <= 0 || p.P50 > time.Minute || p.Age > time.Hour || p.Trend > maxTrend || p.Trend < -maxTrend {
				t.Errorf("accepted %+v", p)
			}
		}
	})
}

func FuzzPathsWant(f *testing.F) {
	b, err := encMode.Marshal(pathsWant{Watch: []mesh.NodeID{mesh.NodeID(newID())}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var w pathsWant
		if decMode.Unmarshal(b, &w) != nil || w.validate() != nil {
			return
		}
		out, err := encMode.Marshal(w)
		if len(w.Watch) > maxWatched || err != nil || len(out) > maxPathsWant {
			t.Errorf("accepted %+v", w)
		}
	})
}
