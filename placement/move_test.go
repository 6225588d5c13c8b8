package placement

import (
	"math"
	"testing"
	"time"

	"meshnode/placement/manifest"
)

func objective(max time.Duration, mode manifest.Mode) *manifest.Objective {
	return &manifest.Objective{Max: manifest.Duration(max), Quantile: 0.99, Window: manifest.Duration(time.Hour), Mode: mode, Weight: 1}
}

func TestPredictMove(t *testing.T) {
	const mbit = 1e6 / 8
	base := MoveInput{Memory: 64 << 20, WorkingSet: 4 << 20, DirtyRate: 1 << 20, Rate: 100 * mbit, RTT: RTT{10 * ms, 12 * ms}, Paging: true}
	for _, c := range []struct {
		name string
		edit func(*MoveInput)
		want Strategy
		// Bounds of the chosen option's blackout.
		min, max time.Duration
	}{
		// Measured in the lab: 13 to 24 ms after freezing, and 6.0 to 6.1 s
		// for stop-and-copy, each at 64 MiB, 100 Mbit/s and 10 ms.
		{"quiet", nil, PreCopy, 13 * ms, 30 * ms},
		{"writes faster than the link", func(in *MoveInput) { in.DirtyRate, in.WorkingSet = 100<<20, 32<<20 }, PostCopy, 13 * ms, 24 * ms},
		{"hurry", func(in *MoveInput) { in.Urgency = 1 }, PostCopy, 13 * ms, 24 * ms},
		{"no paging, a fast writer", func(in *MoveInput) { in.Paging, in.DirtyRate, in.WorkingSet = false, 100<<20, 32<<20 }, PreCopy, 2 * time.Second, 4 * time.Second},
		{"tiny", func(in *MoveInput) { in.Memory, in.WorkingSet, in.DirtyRate = 8<<10, 8<<10, 0 }, Hybrid, 13 * ms, 24 * ms},
		{"already there", func(in *MoveInput) { in.Cached = 64 << 20 }, PostCopy, 13 * ms, 24 * ms},
		{"source leaves in 3 s", func(in *MoveInput) { in.Deadline, in.Cached = 3*time.Second, 40<<20 }, PreCopy, 13 * ms, 30 * ms},
	} {
		in := base
		if c.edit != nil {
			c.edit(&in)
		}
		p := PredictMove(in)
		o := p.Chosen()
		t.Logf("%s: %s: %+v", c.name, p.Auto, *o)
		if p.Auto != c.want || o.Blackout < c.min || o.Blackout > c.max {
			t.Errorf("%s: got %s with %v, want %s with %v to %v\n%+v", c.name, p.Auto, o.Blackout, c.want, c.min, c.max, p)
		}
	}
	p := PredictMove(base)
	if got := p.Options[StopAndCopy].Blackout; got < 5*time.Second || got > 6*time.Second {
		t.Errorf("stop-and-copy of 64 MiB at 100 Mbit/s: %v, want 5.4 s", got)
	}
	if got := p.Options[PostCopy].Stall; got <= 0 || got > time.Second {
		t.Errorf("post-copy stalls for %v, want at most what 4 MiB take", got)
	}
}

// What must hold for any input.
func TestPredictMoveProperties(t *testing.T) {
	r := seed(t)
	for range 20_000 {
		in := MoveInput{
			Memory: int64(r.IntN(1 << 30)), WorkingSet: int64(r.IntN(1 << 28)), DirtyRate: 1e8 * r.Float64(), Cached: int64(r.IntN(1 << 29)),
			Rate: 1e9 * r.Float64() * r.Float64(), RTT: RTT{time.Duration(r.IntN(1e9)), time.Duration(r.IntN(1e9))}, Paging: r.IntN(2) == 0,
			Urgency: r.Float64(),
		}
		if r.IntN(2) == 0 {
			in.Blackout = objective(time.Duration(1+r.IntN(1e9)), manifest.Hard)
		}
		p := PredictMove(in)
		anyMeets := false
		for s := range strategies {
			o := &p.Options[s]
			anyMeets = anyMeets || o.Meets
			if o.Blackout <= 0 || o.BlackoutAt < o.Blackout || o.Before < 0 || o.Drain < 0 || o.Stall < 0 || o.Bytes < 0 {
				t.Fatalf("%+v gives %+v", in, *o)
			}
			if !in.Paging && (s == PostCopy || s == Hybrid) && o.Possible {
				t.Fatalf("%s without paging", s)
			}
			lacking := max(0, in.Memory-in.Cached)
			if o.Bytes < lacking {
				t.Fatalf("%s sends %d of %d bytes", s, o.Bytes, lacking)
			}
		}
		o := p.Chosen()
		if !o.Possible || anyMeets && !o.Meets {
			t.Fatalf("%+v chooses %+v", in, p)
		}
		if p.Options[PostCopy].Blackout > p.Options[StopAndCopy].Blackout {
			t.Fatalf("post-copy stops longer than stop-and-copy: %+v", p)
		}
		faster := in
		faster.Rate *= 2
		if q := PredictMove(faster); q.Options[StopAndCopy].Blackout > p.Options[StopAndCopy].Blackout {
			t.Fatalf("a faster path makes stop-and-copy slower: %+v", in)
		}
	}
}

func TestMoveModelLearns(t *testing.T) {
	r := seed(t)
	var m MoveModel
	in := MoveInput{Memory: 16 << 20, Rate: 1e7, RTT: RTT{20 * ms, 22 * ms}, Paging: true}
	good := 0
	for i := range 300 {
		in.Model = m
		p := PredictMove(in)
		o := p.Options[PostCopy]
		measured := 45*ms + time.Duration(r.IntN(6e6)) // 15 ms more than the default model says
		m = m.Learn(o, measured)
		if i >= 100 && math.Abs(float64(measured-o.Blackout)) < math.Max(0.3*float64(measured), float64(5*ms)) {
			good++
		}
	}
	if good < 180 {
		t.Errorf("within 30%% or 5 ms in %d of 200 moves after learning, want 180", good)
	}
}

func TestBudget(t *testing.T) {
	b := Budget{Promised: 20 * ms}
	if b.At(0.99) != 20*ms || b.Credibility() != 1 {
		t.Errorf("a node without a record is not believed: %+v", b)
	}
	for range 50 {
		b = b.Observe(15*ms, Stamp{t0, Observed})
	}
	for range 2 {
		b = b.Observe(60*ms, Stamp{t0, Observed})
	}
	if got := b.At(0.9); got != 20*ms {
		t.Errorf("promise broken in 4%% of cases, at p90: got %v, want the promise", got)
	}
	if got := b.At(0.99); got != 60*ms {
		t.Errorf("at p99: got %v, want what it was when broken", got)
	}
	for range 200 {
		b = b.Observe(15*ms, Stamp{t0, Observed})
	}
	if got := b.At(0.99); got != 20*ms {
		t.Errorf("after 200 kept promises: got %v, want the promise", got)
	}
}

// The queue against a simulation of it, event by event.
func TestQueueWait(t *testing.T) {
	r := seed(t)
	for _, rho := range []float64{0.2, 0.5, 0.8} {
		s := newService(EventTime{P50: 2 * ms, P99: 8 * ms})
		s.rate = rho / s.mean
		got, ok := s.queueWait(1)
		if !ok {
			t.Fatal("saturated")
		}
		sigma := math.Log(4) / z99
		sum, wait, late := 0.0, 0.0, 0
		p99 := got.mid + got.tail
		const n = 1_000_000
		for range n {
			sum += wait
			if wait > p99 {
				late++
			}
			wait = max(0, wait+0.002*math.Exp(sigma*r.NormFloat64())-r.ExpFloat64()/s.rate)
		}
		pk := s.rate * s.second / (2 * (1 - rho))
		if mean := sum / n; math.Abs(mean-pk) > 0.1*pk {
			t.Errorf("load %v: mean wait %.3f ms, the formula says %.3f", rho, mean*1e3, pk*1e3)
		}
		if share := float64(late) / n; share < 0.005 || share > 0.02 {
			t.Errorf("load %v: %.2f%% wait longer than the predicted p99", rho, 100*share)
		}
	}
}
