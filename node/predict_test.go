package node

import (
	"fmt"
	"testing"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/node/handover"
	"meshnode/placement"
	"meshnode/placement/manifest"
)

// Every strategy is predicted under its own name, and "auto" is one of them.
func TestPredictedStrategies(t *testing.T) {
	in := placement.MoveInput{Memory: 64 << 20, Rate: 12.5e6, RTT: placement.RTT{P50: 10 * time.Millisecond}, Paging: true}
	for i, s := range strategies {
		o := predicted(in, s.handover)
		if name := control.Strategies[1+i]; s.handover.String() != name || o.Strategy != s.placement || prediction(&in, o).Strategy != name {
			t.Errorf("%s is predicted as %+v", name, o)
		}
	}
	for _, c := range []struct {
		paging, untracked bool
		want              handover.Strategy
	}{
		{true, false, handover.Hybrid},
		{true, true, handover.PostCopy},
		{false, false, handover.PreCopy},
		{false, true, handover.PreCopy},
	} {
		in := in
		in.Paging, in.Untracked = c.paging, c.untracked
		if got := chosen(in); got != c.want {
			t.Errorf("paging %v, untracked %v: %s, want %s", c.paging, c.untracked, got, c.want)
		}
	}
}

// What would stop a worker for longer than its manifest allows is said to.
func TestPredictedToBreak(t *testing.T) {
	in := placement.MoveInput{Memory: 64 << 20, Rate: 1e6, RTT: placement.RTT{P50: 10 * time.Millisecond}}
	for _, c := range []struct {
		s    handover.Strategy
		max  time.Duration // 0 is no objective
		want bool
	}{
		{handover.StopAndCopy, 0, false}, {handover.StopAndCopy, time.Second, true}, {handover.StopAndCopy, time.Hour, false},
		{handover.PreCopy, time.Second, false}, {handover.PreCopy, time.Millisecond, true},
		{handover.PostCopy, time.Second, true}, // which waits for all, without paging
	} {
		in := in
		if c.max > 0 {
			in.Blackout = &manifest.Objective{Max: manifest.Duration(c.max), Quantile: 0.99}
		}
		o := predicted(in, c.s)
		if got := prediction(&in, o); got.BreaksBlackout != c.want {
			t.Errorf("%s, %v at most: %+v", c.s, c.max, got)
		}
	}
}

// A worker that waits for all of its memory may stand still for that as long as its
// manifest lets a move stop it, less what else there is in a blackout.
func TestPauseLeft(t *testing.T) {
	nodes := startNodes(t, 2)
	a, b := nodes[0], nodes[1]
	a.run(t, app(t, "counter"), control.RunRequest{Name: "counter"})
	w := a.locals()[0]
	for _, tc := range []struct {
		max  time.Duration // 0 is no objective
		s    handover.Strategy
		some bool
	}{
		{0, handover.PreCopy, false}, {time.Minute, handover.PreCopy, true}, {time.Millisecond, handover.PreCopy, false},
		{time.Minute, handover.PostCopy, false}, {time.Minute, handover.StopAndCopy, false},
		{time.Minute, handover.Hybrid, !a.known(b.id).Paging},
	} {
		w.place.mu.Lock()
		app := *w.place.app
		app.Objectives.Blackout = nil
		if tc.max > 0 {
			app.Objectives.Blackout = &manifest.Objective{Max: manifest.Duration(tc.max), Quantile: 0.99}
		}
		w.place.app = &app
		w.place.mu.Unlock()
		got := a.pauseLeft(w, b.id, tc.s)
		if got < 0 || got >= time.Minute || (got > 0) != tc.some {
			t.Errorf("%s, %v at most: %v are left", tc.s, tc.max, got)
		}
	}
}

// What moves have shown is kept for a bounded number of nodes, those of late.
func TestPathsBounded(t *testing.T) {
	var p paths
	start := time.Now()
	for i := range 3 * pathsMost {
		p.learn(mesh.NodeID(fmt.Sprint(i)), 1e6, start.Add(time.Duration(i)))
		o := predicted(placement.MoveInput{Memory: 1 << 20}, handover.Hybrid)
		p.learnModel("often", &o, placement.MoveMeasured{Blackout: o.Blackout, Total: o.Total(), Bytes: o.Bytes}, start.Add(time.Duration(i)))
	}
	if len(p.to) != pathsMost {
		t.Errorf("%d nodes, want %d", len(p.to), pathsMost)
	}
	if _, m := p.known("often"); m.Moves != 3*pathsMost {
		t.Errorf("%d moves to the node in use, want %d", m.Moves, 3*pathsMost)
	}
	if rate, _ := p.known("0"); rate != 0 {
		t.Error("the node of the longest ago is still known")
	}
}

// TestSampleAndPlan asks running nodes for what a worker does and what its move
// would be like, and compares the move with that.
func TestSampleAndPlan(t *testing.T) {
	nodes := startNodes(t, 2)
	a, b := nodes[0], nodes[1]
	if !a.support.Tracking() {
		t.Skip("this kernel does not track writes")
	}
	a.run(t, app(t, "kvstore"), control.RunRequest{Name: "kv", MemoryLimit: 64 << 20})
	call := func(n *testNode, payload string) { t.Helper(); n.call(t, "kv", payload) }
	call(a, "init 16MiB")
	call(a, "fill")
	call(a, "churn 4MiB hot=1MiB")

	waitFor(t, "the worker's name", func() bool {
		_, err := b.client.Worker(t.Context(), "kv")
		return err == nil
	})
	// A busy machine may give the worker no time while it is watched.
	var w control.Worker
	waitFor(t, "a sample with writes", func() bool {
		var err error
		if w, err = b.client.SampleWorker(t.Context(), "kv", 500*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		return w.Activity != nil && w.Activity.WrittenBytes > 0
	})
	act := w.Activity
	t.Logf("sample: %+v, resident %v", act, w.ResidentShare)
	// 4 MiB/s go to 256 pages, on a machine with time for it; beside them there is
	// the app itself.
	if act == nil || act.WrittenBytes == 0 || act.WrittenBytes > 2<<20 || act.DirtyBytesPerSec <= 0 ||
		act.ContentBytes < 16<<20 || act.ContentBytes > w.MemoryBytes || w.ResidentShare != 1 {
		t.Errorf("sample: %+v of %+v", act, w)
	}
	if act.WorkingSetBytes != 0 && act.WorkingSetBytes > 8<<20 {
		t.Errorf("%d bytes touched", act.WorkingSetBytes)
	}
	if _, err := a.client.SampleWorker(t.Context(), "kv", time.Hour); err == nil {
		t.Error("sampled for an hour")
	}

	p, err := b.client.Plan(t.Context(), "kv", control.MigrateRequest{To: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("plan: %+v", p)
	if len(p.Predictions) != len(strategies) || p.Auto != control.StrategyHybrid || p.RateBytesPerSec != 0 || len(p.Assumed) != 2 || p.RTTMs <= 0 {
		t.Errorf("plan: %+v", p)
	}
	if _, err := a.client.Plan(t.Context(), "kv", control.MigrateRequest{To: "n0"}); err == nil {
		t.Error("a move to where the worker is was planned")
	}

	// A move that begins ends a sample, which is then of what there was.
	sampled := make(chan error, 1)
	go func() {
		w, err := a.client.SampleWorker(t.Context(), "kv", 20*time.Second)
		if err == nil && w.Activity.SampledMs >= 20_000 {
			t.Error("the sample went on during the move")
		}
		sampled <- err
	}()
	waitFor(t, "the sample", func() bool {
		w := a.local(w.ID)
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.sampling != nil
	})
	m, err := a.client.Migrate(t.Context(), "kv", control.MigrateRequest{To: "n1"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("move: %+v, predicted %+v", m, m.Predicted)
	<-sampled // an error if the worker had left when it was to be described
	if m.Predicted == nil || !m.Predicted.RateAssumed || m.Rounds < 1 || m.BytesAhead == 0 || m.BytesAhead > m.BytesOnWire {
		t.Errorf("move: %+v, predicted %+v", m, m.Predicted)
	}
	if m.MinimumBytes < 16<<20 || m.MinimumBytes > m.MemoryBytes {
		t.Errorf("at least %d bytes had to move, of %d", m.MinimumBytes, m.MemoryBytes)
	}
	if rate, model := a.paths.known(b.ID()); rate <= 0 || model.Moves != 1 {
		t.Errorf("the move has shown a rate of %v and taught %+v", rate, model)
	}
	call(b, "pace")
	call(b, "stats")
	p, err = b.client.Plan(t.Context(), "kv", control.MigrateRequest{To: "n0"})
	if err != nil || p.From != "n1" || p.Learnt != nil {
		t.Errorf("the way back: %+v, %v", p, err)
	}
	for _, to := range []string{"n0", "n1"} {
		if _, err := a.client.Migrate(t.Context(), "kv", control.MigrateRequest{To: to}, nil); err != nil {
			t.Fatal(err)
		}
	}
	call(b, "stats")
	if _, model := a.paths.known(b.ID()); model.Moves != 2 {
		t.Errorf("two moves there have taught %+v", model)
	}
	if p, err = b.client.Plan(t.Context(), "kv", control.MigrateRequest{To: "n0"}); err != nil || p.Learnt == nil || p.Learnt.Moves != 1 {
		t.Errorf("a plan after a move: %+v, %v", p, err)
	}
}

// A cap is a rate where the way carries more, or nobody knows what it carries and
// it would be taken for more.
func TestCapIsKnown(t *testing.T) {
	for _, c := range []struct {
		limit      int64
		rate, want float64
	}{
		{0, 0, 0}, {0, 5e6, 5e6}, {1e6, 0, 1e6}, {1e6, 5e6, 1e6}, {1e9, 5e6, 5e6}, {1e9, 0, 0}, {1e9, 2e9, 1e9},
	} {
		n := &Node{cfg: Config{PushRate: c.limit}}
		n.paths.to = map[mesh.NodeID]*pathShown{"to": {rate: c.rate}}
		if got, _ := n.shown("to"); got != c.want {
			t.Errorf("a cap of %d, a way that carries %v: %v, want %v", c.limit, c.rate, got, c.want)
		}
	}
}
