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
		{"quiet", nil, Hybrid, 13 * ms, 24 * ms},
		{"writes faster than the link", func(in *MoveInput) { in.DirtyRate, in.WorkingSet = 100<<20, 32<<20 }, Hybrid, 13 * ms, 24 * ms},
		{"hurry", func(in *MoveInput) { in.Urgency = 1 }, PostCopy, 13 * ms, 24 * ms},
		{"no paging, a fast writer", func(in *MoveInput) { in.Paging, in.DirtyRate, in.WorkingSet = false, 100<<20, 32<<20 }, PreCopy, 1200 * ms, 2400 * ms},
		{"tiny", func(in *MoveInput) { in.Memory, in.WorkingSet, in.DirtyRate = 8<<10, 8<<10, 0 }, Hybrid, 13 * ms, 24 * ms},
		{"already there", func(in *MoveInput) { in.Cached = 64 << 20 }, Hybrid, 13 * ms, 24 * ms},
		{"source leaves in 3 s", func(in *MoveInput) { in.Deadline, in.Cached = 3*time.Second, 40<<20 }, Hybrid, 13 * ms, 24 * ms},
		{"writes are not seen", func(in *MoveInput) { in.Untracked = true }, PostCopy, 13 * ms, 24 * ms},
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

// What each strategy comes to, against what was measured of it.
func TestPredictStrategies(t *testing.T) {
	fast := MoveInput{Memory: 64 << 20, Rate: 12.5e6, RTT: RTT{10 * ms, 12 * ms}, Paging: true}
	idle, busy, blind, held := fast, fast, fast, fast
	held.Cached = held.Memory
	idle.DirtyRate = 1 << 20
	busy.DirtyRate, busy.WorkingSet = 50<<20, 8<<20
	blind.Paging = false
	memory := float64(fast.Memory)
	copying := seconds(memory * wireOverhead / fast.Rate)
	for _, c := range []struct {
		name     string
		in       MoveInput
		strategy Strategy
		blackout [2]time.Duration // from and to
		bytes    [2]float64       // times the memory
		rounds   [2]int
	}{
		{"post-copy", fast, PostCopy, [2]time.Duration{10 * ms, 20 * ms}, [2]float64{1, 1.03}, [2]int{0, 0}},
		{"stop-and-copy", fast, StopAndCopy, [2]time.Duration{copying, copying + 50*ms}, [2]float64{1, 1.03}, [2]int{0, 0}},
		{"hybrid, nothing written", fast, Hybrid, [2]time.Duration{10 * ms, 20 * ms}, [2]float64{1, 1.03}, [2]int{1, 1}},
		{"hybrid, converging", idle, Hybrid, [2]time.Duration{10 * ms, 20 * ms}, [2]float64{1.01, 1.1}, [2]int{2, 4}},
		{"pre-copy, converging", idle, PreCopy, [2]time.Duration{10 * ms, 50 * ms}, [2]float64{1.01, 1.1}, [2]int{2, 4}},
		// What is rewritten all the time travels in the blackout, whole.
		{"pre-copy, stalled", busy, PreCopy, [2]time.Duration{150 * ms, 800 * ms}, [2]float64{1.05, 1.3}, [2]int{2, 4}},
		{"hybrid, stalled", busy, Hybrid, [2]time.Duration{10 * ms, 20 * ms}, [2]float64{1.05, 1.3}, [2]int{2, 4}},
		// What is there already is named, and looked up while the worker waits.
		{"stop-and-copy, held", held, StopAndCopy, [2]time.Duration{200 * ms, 400 * ms}, [2]float64{0.005, 0.01}, [2]int{0, 0}},
		{"hybrid, held", held, Hybrid, [2]time.Duration{10 * ms, 20 * ms}, [2]float64{0, 0}, [2]int{0, 0}},
		// A destination that cannot page holds the worker up for what is missing.
		{"post-copy without paging", blind, PostCopy, [2]time.Duration{copying, copying + 50*ms}, [2]float64{1, 1.03}, [2]int{0, 0}},
	} {
		o := PredictMove(c.in).Options[c.strategy]
		if bytes := float64(o.Bytes) / memory; o.Blackout < c.blackout[0] || o.Blackout > c.blackout[1] || bytes < c.bytes[0] || bytes > c.bytes[1] ||
			o.Rounds < c.rounds[0] || o.Rounds > c.rounds[1] {
			t.Errorf("%s: %+v, %.2f times the memory; want a blackout of %v, %v times the memory, %v rounds", c.name, o, bytes, c.blackout, c.bytes, c.rounds)
		}
	}
}

// What must hold for any input.
func TestPredictMoveProperties(t *testing.T) {
	r := seed(t)
	for range 20_000 {
		in := MoveInput{
			Memory: int64(r.IntN(1 << 30)), WorkingSet: int64(r.IntN(1 << 28)), DirtyRate: 1e8 * r.Float64(), Cached: int64(r.IntN(1 << 29)),
			Rate: 1e9 * r.Float64() * r.Float64(), RTT: RTT{time.Duration(r.IntN(1e9)), time.Duration(r.IntN(1e9))}, Paging: r.IntN(2) == 0,
			Untracked: r.IntN(4) == 0, Urgency: r.Float64(),
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
			rounds := lacking > 0 && (s == PreCopy || s == Hybrid && (!in.Untracked || !in.Paging))
			if o.Total() < o.Blackout || o.Rounds > roundsMost || (o.Rounds > 0) != rounds {
				t.Fatalf("%+v by %s: %+v", in, s, *o)
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

// What was measured corrects what is predicted, for each part by itself, and one
// odd move does not spoil it.
func TestMoveModelLearns(t *testing.T) {
	r := seed(t)
	var m MoveModel
	in := MoveInput{Memory: 16 << 20, Rate: 1e7, RTT: RTT{20 * ms, 22 * ms}, Paging: true}
	truth := func(o *MoveOption) MoveMeasured {
		noise := func() float64 { return 0.9 + 0.2*r.Float64() }
		got := MoveMeasured{Bytes: int64(0.4 * float64(in.Memory) * noise()), Rate: in.Rate} // it compresses
		copied := float64(got.Bytes) / in.Rate
		black := 0.045 * noise() // against 0.031 by default
		if o.Strategy == StopAndCopy {
			black += copied
			copied = 0
		}
		got.Blackout = seconds(black)
		got.Total = got.Blackout + seconds((0.4+copied)*noise())
		return got
	}
	within := func(have, want time.Duration) bool {
		return math.Abs(float64(have-want)) <= max(0.3*float64(want), float64(5*ms))
	}
	good, all := 0, 0
	for i := range 300 {
		in.Model = m
		p := PredictMove(in)
		o := &p.Options[[]Strategy{PostCopy, Hybrid, StopAndCopy}[r.IntN(3)]]
		got := truth(o)
		if i >= 10 {
			all++
			if within(o.Blackout, got.Blackout) && within(o.Total(), got.Total) {
				good++
			}
		}
		m = m.Learn(o, got)
	}
	if good*10 < all*9 {
		t.Errorf("within 30%% or 5 ms in %d of %d moves after learning, want nine in ten; learnt %+v", good, all, m)
	}
	in.Model = m
	p := PredictMove(in)
	o := p.Options[Hybrid]
	in.Model = m.Learn(&o, MoveMeasured{Blackout: time.Minute, Total: time.Hour, Bytes: 1 << 40, Rate: in.Rate})
	if q := PredictMove(in); float64(q.Options[Hybrid].Blackout) > 1.16*float64(o.Blackout) {
		t.Errorf("one move of a minute changed a predicted blackout from %v to %v", o.Blackout, q.Options[Hybrid].Blackout)
	}
	// Nothing that could be measured leads out of bounds.
	for range 10_000 {
		in.Model = m
		p := PredictMove(in)
		m = m.Learn(&p.Options[r.IntN(int(strategies))], MoveMeasured{
			time.Duration(r.Int64() - r.Int64()), time.Duration(r.Int64() - r.Int64()), r.Int64() - r.Int64(), r.NormFloat64() * 1e9,
		})
		for _, x := range []float64{m.Base, m.Setup, m.Bytes} {
			if !(math.Abs(x) <= learnBound) {
				t.Fatalf("learnt %+v", m)
			}
		}
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

// One late event of a hundred makes no worker busy.
func TestServiceMoments(t *testing.T) {
	e := EventTime{P50: 5 * ms, P99: 425 * ms, Rate: 50}
	if s := newService(e); s.rate*s.mean < 1 {
		t.Errorf("by the quantiles alone: busy for %.2f, want more than all of its time", s.rate*s.mean)
	}
	e.Mean, e.Deviation = 99*5*ms/100+425*ms/100, 42*ms
	s := newService(e)
	if busy := s.rate * s.mean; math.Abs(busy-0.46) > 0.001 {
		t.Errorf("busy for %.3f, want 0.460", busy)
	}
	if wait, ok := s.queueWait(1); !ok || wait.tail <= 0 {
		t.Errorf("waits for %v, saturated %v", wait, !ok)
	}
	if s.mid != 0.005 || s.tail != 0.42 {
		t.Errorf("median %v and tail %v are not what they were", s.mid, s.tail)
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
