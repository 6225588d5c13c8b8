package placement

import (
	"fmt"
	"math"
	"time"

	"meshnode/placement/manifest"
)

// A Strategy says when a worker's memory travels.
type Strategy uint8

// The strategies.
const (
	// PostCopy commits first; pages follow on demand and hottest first.
	PostCopy Strategy = iota
	// Hybrid copies once while the worker runs, then commits; what was
	// written meanwhile follows as in PostCopy.
	Hybrid
	// PreCopy copies in rounds while the worker runs, until what is left is
	// small, then freezes and copies that.
	PreCopy
	// StopAndCopy freezes, copies everything, then commits.
	StopAndCopy
	strategies
)

var strategyNames = [strategies]string{"post-copy", "hybrid", "pre-copy", "stop-and-copy"}

func (s Strategy) String() string {
	if s < strategies {
		return strategyNames[s]
	}
	return fmt.Sprintf("strategy(%d)", uint8(s))
}

// MarshalText implements encoding.TextMarshaler.
func (s Strategy) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// A MoveInput is what a move depends on. The zero value of a field means that
// it is unknown or that there is none.
type MoveInput struct {
	// Memory, WorkingSet, DirtyRate: see [Worker].
	Memory, WorkingSet int64
	DirtyRate          float64
	// Cached is how many bytes of Memory the destination has already.
	Cached int64
	// Rate is that of the path, in bytes per second.
	Rate float64
	RTT  RTT
	// Paging says that the destination can resume before the memory is
	// there. Without it PostCopy and Hybrid are not possible.
	Paging bool
	// Setup is how long the destination needs to get ready (fetch and
	// compile the module, start a runner) while the worker still runs.
	Setup time.Duration
	// Urgency is how many violated seconds each second costs that the
	// worker stays where it is, 0 to 1: it makes the auto choice commit
	// earlier.
	Urgency float64
	// Blackout is the objective to keep, or nil.
	Blackout *manifest.Objective
	// Deadline is when the source goes away, from now; 0 for never. All
	// must have been copied by then.
	Deadline time.Duration
	// Model is what moves cost on this path apart from copying.
	Model MoveModel
}

// A MoveModel holds the part of a blackout that does not depend on memory:
// RTTs round trips and Fixed, for freezing, journaling and resuming. The zero
// value is what was measured on the reference machines. Learn adapts it.
type MoveModel struct {
	RTTs  float64
	Fixed time.Duration
}

// Over 1 to 1.5 round trips and 3 to 8 ms were measured, whatever the size of
// the memory.
const (
	modelRTTs    = 1.25
	modelRTTsTop = 1.5
	modelFixed   = 5500 * time.Microsecond
	modelFixTail = 2500 * time.Microsecond // from Fixed to its 99th percentile
)

func (m MoveModel) withDefaults() MoveModel {
	if m.RTTs == 0 {
		m.RTTs = modelRTTs
	}
	if m.Fixed == 0 {
		m.Fixed = modelFixed
	}
	return m
}

// Learn returns m after a move that was predicted by o and had the measured
// blackout. A tenth of the error goes to Fixed, so that one odd move does not
// spoil it.
func (m MoveModel) Learn(o MoveOption, measured time.Duration) MoveModel {
	m = m.withDefaults()
	const step = 10
	m.Fixed = min(max(m.Fixed+(measured-o.Blackout)/step, 500*time.Microsecond), time.Second)
	return m
}

// A MoveOption is what one strategy would do.
type MoveOption struct {
	Strategy Strategy
	// Possible is false when the destination cannot do it.
	Possible bool
	// Meets says that the blackout objective, if any, is kept at its
	// quantile; InTime that the deadline, if any, is met.
	Meets, InTime bool
	// Before is how long the worker runs on at the source; Blackout, then,
	// is the median of how long it runs nowhere, BlackoutAt its value at the
	// objective's quantile (0.99 without one); Drain is how long the source
	// is still needed afterwards.
	Before, Blackout, BlackoutAt, Drain time.Duration
	// Stall is how long the worker waits for pages after it has resumed, in
	// all. Stalls are short waits spread over Drain, not one.
	Stall time.Duration
	// Bytes is what crosses the network.
	Bytes int64
	// Rounds is the number of times memory is copied while the worker runs.
	Rounds int
}

// Total is the time from the start of the move to the source being free.
func (o *MoveOption) Total() time.Duration { return o.Before + o.Blackout + o.Drain }

// A MovePrediction says what a move would be like with each strategy, and
// which one to take.
type MovePrediction struct {
	// Auto is the choice: among the options that meet the objective, the one
	// that costs the user least time.
	Auto Strategy
	// Options are indexed by Strategy.
	Options [strategies]MoveOption
}

// Chosen returns the option that Auto names.
func (p *MovePrediction) Chosen() *MoveOption { return &p.Options[p.Auto] }

const (
	pageBytes = 4 << 10
	// wireOverhead is what framing, names and QUIC add to a page.
	wireOverhead = 1.01
	// demandCost is what a demanded page costs beyond the round trip, in
	// seconds.
	demandCost = 0.5e-3
	// rateTail is how much longer than expected a copy takes at the 99th
	// percentile, relatively: path rates are estimates.
	rateTail  = 0.15
	maxRounds = 8
	// shrink is by how much a round of pre-copy must be smaller than the one
	// before, or it has stopped converging.
	shrink = 0.8
)

// PredictMove predicts a move with every strategy and chooses one. It is pure
// and safe for concurrent use.
//
// The model is that of Clark et al. ("Live migration of virtual machines",
// NSDI 2005): each round of pre-copy sends what was written during the one
// before, so sizes shrink by the ratio of dirty rate to link rate, down to the
// writable working set, which is rewritten faster than it can be sent.
func PredictMove(in MoveInput) MovePrediction {
	var p MovePrediction
	m := in.Model.withDefaults()
	rate := sane(in.Rate, 0)
	if rate < 1 {
		rate = assumedRate
	}
	rtt := in.RTT.spread()
	if in.RTT.P50 <= 0 {
		rtt = spread{assumedRTT, unknownTail * assumedRTT}
	}
	z, limit := 1.0, math.Inf(1)
	if in.Blackout != nil {
		z, limit = score(float64(in.Blackout.Quantile)), in.Blackout.Max.Seconds()
	}
	memory := float64(max(in.Memory, 0))
	lacking := max(0, memory-float64(max(in.Cached, 0)))
	hot := float64(in.WorkingSet)
	if hot <= 0 || hot > memory {
		hot = memory
	}
	copyTime := func(bytes float64) float64 { return bytes * wireOverhead / rate }
	// dirtied is how many distinct bytes are written in t: at first in
	// proportion, then the same pages again.
	dirtied := func(t float64) float64 {
		if hot <= 0 {
			return 0
		}
		return hot * -math.Expm1(-sane(in.DirtyRate, 0)*t/hot)
	}
	base := spread{m.RTTs*rtt.mid + m.Fixed.Seconds(), 0}
	base.tail = modelRTTsTop*(rtt.mid+rtt.tail) - m.RTTs*rtt.mid + modelFixTail.Seconds()
	base.tail = max(base.tail, 0)
	// stalled is how long the worker waits for the missing part of its
	// working set: each page it runs into costs a round trip, but none longer
	// than until the drain, hottest first, has brought it anyway.
	stalled := func(missing float64) float64 {
		demand := rtt.mid + demandCost
		return min(missing/pageBytes*demand, copyTime(missing)+demand*min(1, missing/pageBytes))
	}
	setup := in.Setup.Seconds()
	fill := func(s Strategy, possible bool, before, frozen, drain, stall, bytes float64, rounds int) {
		black := base.plus(spread{frozen, rateTail * frozen})
		o := &p.Options[s]
		*o = MoveOption{
			Strategy: s, Possible: possible, Before: seconds(setup + before),
			Blackout: seconds(black.mid), BlackoutAt: seconds(black.at(z)), Drain: seconds(drain),
			Stall: seconds(stall), Bytes: int64(math.Ceil(bytes * wireOverhead)), Rounds: rounds,
		}
		o.Meets = possible && black.at(z) <= limit
		o.InTime = possible && (in.Deadline <= 0 || o.Total() <= in.Deadline)
	}

	fill(PostCopy, in.Paging, 0, 0, copyTime(lacking), stalled(min(hot, lacking)), lacking, 0)

	first := copyTime(lacking)
	rest := min(dirtied(first), memory)
	fill(Hybrid, in.Paging, first, 0, copyTime(rest), stalled(rest), lacking+rest, 1)

	left, before, bytes, rounds := lacking, 0.0, 0.0, 0
	// Half the room under the objective, at most 5 ms: waiting for less
	// does not pay, since every round is at least a round trip.
	enough := 5e-3
	if room := limit - base.at(z); room < 2*enough {
		enough = max(room/2, 0.5e-3)
	}
	for rounds < maxRounds && copyTime(left) > enough {
		t := copyTime(left) + rtt.mid
		before, bytes, rounds = before+t, bytes+left, rounds+1
		next := min(dirtied(t), memory)
		if stop := next > shrink*left; stop {
			left = next
			break
		}
		left = next
	}
	fill(PreCopy, true, before, copyTime(left), 0, 0, bytes+left, rounds)

	fill(StopAndCopy, true, 0, copyTime(lacking), 0, 0, lacking, 0)

	p.Auto = p.choose(in.Urgency)
	return p
}

// harm is what an option costs the user, in seconds. A second of stalls counts
// half of one of blackout: the worker gets on between them.
func (o *MoveOption) harm(urgency float64) float64 {
	return o.Blackout.Seconds() + o.Stall.Seconds()/2 + urgency*o.Before.Seconds()
}

func (p *MovePrediction) choose(urgency float64) Strategy {
	best := PostCopy // which wins among equals
	if !p.Options[best].Possible {
		best = StopAndCopy // always is
	}
	better := func(a, b *MoveOption) bool {
		// A source that goes away before the end takes the worker along:
		// worse than any blackout.
		if a.InTime != b.InTime {
			return a.InTime
		}
		if !a.InTime && a.Total() != b.Total() {
			return a.Total() < b.Total()
		}
		if a.Meets != b.Meets {
			return a.Meets
		}
		if !a.Meets && a.BlackoutAt != b.BlackoutAt {
			return a.BlackoutAt < b.BlackoutAt
		}
		ha, hb := a.harm(urgency), b.harm(urgency)
		if math.Abs(ha-hb) > 1e-3 {
			return ha < hb
		}
		if a.Bytes != b.Bytes {
			return a.Bytes < b.Bytes
		}
		return a.Total() < b.Total()
	}
	for s := range strategies {
		if o := &p.Options[s]; o.Possible && better(o, &p.Options[best]) {
			best = s
		}
	}
	return best
}
