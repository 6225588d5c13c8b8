package node

import (
	"math/rand/v2"
	"testing"
	"time"

	"meshnode/node/control"
	"meshnode/node/handover"
)

func TestPredictMove(t *testing.T) {
	fast := moveFacts{content: 64 << 20, rate: 12.5e6, rtt: 10 * time.Millisecond, paging: true}
	busy := fast
	busy.dirty, busy.working = 50<<20, 8<<20
	idle := fast
	idle.dirty = 1 << 20
	copyMs := 64 * (1 << 20) * wireShare / 12.5e6 * 1000
	for _, c := range []struct {
		name     string
		facts    moveFacts
		strategy handover.Strategy
		blackout [2]float64 // ms, from and to
		pages    [2]float64 // times the content that crosses
		rounds   [2]int
	}{
		{"post-copy", fast, handover.PostCopy, [2]float64{10, 20}, [2]float64{1, 1.03}, [2]int{0, 0}},
		{"stop-and-copy", fast, handover.StopAndCopy, [2]float64{copyMs, copyMs + 30}, [2]float64{1, 1.03}, [2]int{0, 0}},
		{"hybrid, nothing written", fast, handover.Hybrid, [2]float64{10, 20}, [2]float64{1, 1.03}, [2]int{1, 1}},
		{"hybrid, converging", idle, handover.Hybrid, [2]float64{10, 20}, [2]float64{1.05, 1.2}, [2]int{2, 4}},
		{"pre-copy, converging", idle, handover.PreCopy, [2]float64{10, 40}, [2]float64{1.05, 1.2}, [2]int{2, 4}},
		// What is rewritten all the time travels in the blackout.
		{"pre-copy, stalled", busy, handover.PreCopy, [2]float64{600, 800}, [2]float64{1.2, 1.6}, [2]int{2, 4}},
		{"hybrid, stalled", busy, handover.Hybrid, [2]float64{10, 20}, [2]float64{1.2, 1.6}, [2]int{2, 4}},
	} {
		p := predictMove(c.facts, c.strategy)
		wire := float64(p.Bytes) / float64(c.facts.content)
		if p.BlackoutMs < c.blackout[0] || p.BlackoutMs > c.blackout[1] || wire < c.pages[0] || wire > c.pages[1] ||
			p.Rounds < c.rounds[0] || p.Rounds > c.rounds[1] || p.Strategy != c.strategy.String() {
			t.Errorf("%s: %+v, %.2f times the content; want a blackout of %v ms, %v times the content, %v rounds",
				c.name, p, wire, c.blackout, c.pages, c.rounds)
		}
	}

	// A destination that cannot page holds the worker up for what is missing.
	blind := fast
	blind.paging = false
	if p := predictMove(blind, handover.PostCopy); p.BlackoutMs < copyMs {
		t.Errorf("post-copy without paging: %+v", p)
	}
	// Whatever the facts, all numbers are there and make sense.
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 2000 {
		f := moveFacts{
			content: r.Int64N(1 << 33), working: r.Int64N(1<<33) - 1<<30, cached: r.Int64N(1 << 33),
			dirty: r.Float64() * 1e10 * float64(r.IntN(2)), rate: r.Float64() * 1e9 * float64(r.IntN(2)),
			rtt: time.Duration(r.Int64N(int64(time.Second))), paging: r.IntN(2) == 0,
		}
		for _, s := range strategies {
			p := predictMove(f, s)
			if !(p.BlackoutMs > 0) || p.TotalMs < p.BlackoutMs || p.Rounds > roundsMost || (p.Rounds > 0) != (s.Rounds() && f.content > f.cached) {
				t.Fatalf("%+v by %s: %+v", f, s, p)
			}
			if lacking := max(f.content-f.cached, 0); p.Bytes < uint64(lacking) {
				t.Fatalf("%+v by %s: %d bytes of %d", f, s, p.Bytes, lacking)
			}
		}
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
	if a.paths.rate(b.ID()) <= 0 {
		t.Error("the move has not shown what the path carries")
	}
	call(b, "pace")
	call(b, "stats")
	p, err = b.client.Plan(t.Context(), "kv", control.MigrateRequest{To: "n0"})
	if err != nil || p.From != "n1" {
		t.Errorf("the way back: %+v, %v", p, err)
	}
}
