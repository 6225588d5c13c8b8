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
	// Rate is that of the path, in bytes per second on the wire.
	Rate float64
	RTT  RTT
	// Paging says that the destination can resume before the memory is
	// there. Without it PostCopy and Hybrid are not possible: the worker waits
	// for what is missing.
	Paging bool
	// Untracked says that the source cannot tell what is written while it
	// copies. All of the memory is then compared at the freeze, where copying
	// ahead is to help at all: in PreCopy, and in Hybrid without Paging.
	Untracked bool
	// Setup is how long the destination needs to get ready, while the worker
	// still runs, beyond what starting a runner takes: to fetch and compile
	// the module.
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
	// Model is what earlier moves to the destination have taught.
	Model MoveModel
}

// A MoveModel is what the moves to one destination have taught: by how much
// they differed from what was predicted. It corrects the three things that the
// rest of a prediction follows from. The zero value has seen no move and
// corrects nothing.
type MoveModel struct {
	// Moves is how many moves it has seen.
	Moves int
	// Base is about the blackout without the copying in it, Setup about
	// getting ready, Bytes about what crosses the network: each the natural
	// logarithm of measured over predicted, so that twice and half as much
	// count alike.
	Base, Setup, Bytes float64
}

// A MoveMeasured is what a move was, by the source's clock: as [MoveOption] has
// it, Total from its start to the source being free.
type MoveMeasured struct {
	Blackout, Total time.Duration
	Bytes           int64
	// Rate is what the path carried, in bytes per second on the wire; 0 if it
	// did not show.
	Rate float64
}

const (
	// learnStep is the share of an error that is learnt, learnMost the largest
	// error that counts, so that one odd move shifts a prediction by less than
	// a sixth; the first few moves may teach more. learnBound bounds all that
	// is learnt.
	learnStep  = 0.2
	learnMost  = 0.7 // twice or half of what was predicted
	learnBound = 2.1 // eight times
	// learnBytes is added to both sides of a ratio of bytes: what crosses
	// beside pages, of which alone a small move consists.
	learnBytes = 64 << 10
)

// Learn returns m after a move that was predicted as o, with m, and came to got.
func (m MoveModel) Learn(o *MoveOption, got MoveMeasured) MoveModel {
	if got.Blackout <= 0 || got.Total <= 0 || got.Bytes < 0 || o.base <= 0 || o.setup <= 0 {
		return m // of a move that was not watched to its end
	}
	step := max(learnStep, 1/float64(m.Moves+2))
	learn := func(have, ratio, weight float64) float64 {
		e := min(max(math.Log(max(ratio, 1e-3)), -learnMost), learnMost)
		return min(max(have+step*weight*e, -learnBound), learnBound)
	}
	bytes := float64(got.Bytes+learnBytes) / float64(o.Bytes+learnBytes)
	slower := 1.0
	if rate := sane(got.Rate, 0); rate >= 1 {
		slower = o.rate / rate
	}
	// How long copying took follows from what was copied, and how fast. What is
	// left of a time is the rest, and the less certain the more of it was
	// copying.
	rest := func(all time.Duration, part, copied float64) (ratio, weight float64) {
		copied *= bytes * slower
		return (all.Seconds() - copied) / part, part / (part + copied)
	}
	ratio, weight := rest(got.Blackout, o.base, o.frozen)
	m.Base = learn(m.Base, ratio, weight)
	ratio, weight = rest(got.Total-got.Blackout, o.setup, o.copied)
	m.Setup = learn(m.Setup, ratio, weight)
	m.Bytes = learn(m.Bytes, bytes, 1)
	m.Moves++
	return m
}

// Factors returns by what predictions are multiplied: the blackout without the
// copying in it, getting ready, and bytes.
func (m MoveModel) Factors() (blackout, setup, bytes float64) {
	f := func(log float64) float64 { return math.Exp(min(max(log, -learnBound), learnBound)) }
	return f(m.Base), f(m.Setup), f(m.Bytes)
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

	// What of it a [MoveModel] tells apart, in seconds: the blackout without
	// copying, the copying in it, getting ready, and the copying before and
	// after the blackout; and the rate in bytes per second.
	base, frozen, setup, copied, rate float64
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

// What was measured of the parts of a move that do not depend on how fast its
// memory travels (see "What was measured" in DESIGN.md).
const (
	// The blackout: round trips and a fixed part, for stopping, journaling and
	// resuming, and going over the flags of all pages, in seconds a byte.
	blackoutRTTs  = 1.05
	blackoutFixed = 3.5e-3
	blackoutBytes = 4e-3 / (512 << 20)
	// Its 99th percentile: round trips, and what the fixed part is longer by.
	blackoutRTTsTop   = 1.5
	blackoutFixedTail = 4.5e-3
	// fillRTTs is what waiting for the memory adds beside copying it.
	fillRTTs = 1
	// Where no rounds have gone before, what the destination holds already is
	// named, which takes nameRTTs and nameShare of its bytes, and looked up
	// there, in seconds a byte.
	nameRTTs    = 1
	nameShare   = 32.0 / pageBytes
	lookupBytes = 30e-3 / (9 << 20)
	// compareBytes is what comparing all of an untracked memory takes, in
	// seconds a byte.
	compareBytes = 50e-3 / (64 << 20)
	// Getting ready, the module compiled already, in seconds.
	setupRTTs  = 3
	setupFixed = 120e-3
)

const (
	pageBytes = 4 << 10
	// wireOverhead is what framing, names and QUIC add to a page.
	wireOverhead = 1.02
	// patchShare is what a page that was sent before takes when it is sent
	// again, against a whole one: most go as patches.
	patchShare = 0.1
	// demandCost is what a demanded page costs beyond the round trip, in
	// seconds.
	demandCost = 0.5e-3
	// rateTail is how much longer than expected a copy takes at the 99th
	// percentile, relatively: path rates are estimates.
	rateTail = 0.15
)

// When rounds end, as in package pager: when little is left, when a round does
// not leave half of what the one before did, or after many.
const (
	roundFew    = 32 * pageBytes
	roundShrink = 0.5
	roundsMost  = 30
	roundPause  = 20e-3 // seconds between two rounds
)

// PredictMove predicts a move with every strategy and chooses one. It is pure
// and safe for concurrent use.
//
// The model is that of Clark et al. ("Live migration of virtual machines",
// NSDI 2005): each round sends what was written during the one before, so sizes
// shrink by the ratio of dirty rate to link rate, down to the writable working
// set, which is rewritten faster than it can be sent. Since what is sent again
// goes as patches, it shrinks faster than theirs.
func PredictMove(in MoveInput) MovePrediction {
	var p MovePrediction
	learntBase, learntSetup, learntBytes := in.Model.Factors()
	rate := sane(in.Rate, 0)
	if rate < 1 {
		rate = AssumedRate
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
	wire := wireOverhead * learntBytes
	copyTime := func(bytes float64) float64 { return bytes * wire / rate }
	// dirtied is how many distinct bytes are written in t: at first in
	// proportion, then the same pages again.
	dirtied := func(t float64) float64 {
		if hot <= 0 {
			return 0
		}
		return hot * -math.Expm1(-sane(in.DirtyRate, 0)*t/hot)
	}
	base := spread{blackoutRTTs*rtt.mid + blackoutFixed + blackoutBytes*memory, 0}
	base.tail = max(blackoutRTTsTop*(rtt.mid+rtt.tail)-blackoutRTTs*rtt.mid+blackoutFixedTail, 0)
	base = spread{learntBase * base.mid, learntBase * base.tail}
	setup := learntSetup * (setupFixed + setupRTTs*rtt.mid + in.Setup.Seconds())
	// stalled is how long the worker waits for the missing part of its
	// working set: each page it runs into costs a round trip, but none longer
	// than until the push, hottest first, has brought it anyway. Behind rounds
	// the push follows the commit at once, otherwise it is asked for.
	stalled := func(missing, asked float64) float64 {
		demand := rtt.mid + demandCost
		return min(missing/pageBytes*demand, copyTime(missing)+asked*demand*min(1, missing/pageBytes))
	}

	// The rounds: how long they take, what they send, and what is left then.
	// It goes whole: the far side has dropped what it was a version of.
	left, ahead, bytes, rounds := lacking, 0.0, 0.0, 0
	for wire := lacking; left > 0 && rounds < roundsMost; {
		took := copyTime(wire) + roundPause
		ahead, bytes, rounds = ahead+took, bytes+wire, rounds+1
		next := min(dirtied(took), memory)
		over := next <= roundFew || rounds > 1 && next >= roundShrink*left
		if left, wire = next, next*patchShare; over {
			// What is stale is told, and acknowledged, before the freeze.
			ahead += rtt.mid
			left = min(dirtied(took+rtt.mid), memory)
			break
		}
	}

	fill := func(s Strategy, inRounds bool) {
		o := &p.Options[s]
		*o = MoveOption{Strategy: s, Possible: in.Paging || s == PreCopy || s == StopAndCopy, base: base.mid, setup: setup, rate: rate}
		sent, rest, asked, named := 0.0, lacking, 1.0, memory-lacking
		if inRounds {
			o.copied, sent, rest, asked, named = ahead, bytes, left, 0, 0
			o.Rounds = rounds
		}
		filling := copyTime(rest+nameShare*named) + lookupBytes*named
		o.Before = seconds(setup + o.copied)
		if in.Untracked && inRounds {
			o.base += learntBase * compareBytes * memory
		}
		drain := rtt.mid
		if in.Paging && (s == PostCopy || s == Hybrid) {
			drain += filling
			o.Stall = seconds(stalled(min(hot, rest), asked))
		} else {
			o.base += learntBase * fillRTTs * rtt.mid
			if named > 0 {
				o.base += learntBase * nameRTTs * rtt.mid
			}
			o.frozen = filling
		}
		o.copied += drain
		black := spread{o.base, base.tail}.plus(spread{o.frozen, rateTail * o.frozen})
		o.Blackout, o.BlackoutAt, o.Drain = seconds(black.mid), seconds(black.at(z)), seconds(drain)
		o.Bytes = int64(math.Ceil((sent + rest + nameShare*named) * wire))
		o.Meets = o.Possible && black.at(z) <= limit
		o.InTime = o.Possible && (in.Deadline <= 0 || o.Total() <= in.Deadline)
	}
	fill(PostCopy, false)
	fill(Hybrid, !in.Untracked || !in.Paging)
	fill(PreCopy, true)
	fill(StopAndCopy, false)

	p.Auto = p.choose(in)
	return p
}

// harm is what an option costs the user, in seconds. A second of stalls counts
// like one of blackout: the worker gets on between them, but what it handles
// meanwhile is as late.
func (o *MoveOption) harm(urgency float64) float64 {
	return o.Blackout.Seconds() + o.Stall.Seconds() + urgency*o.Before.Seconds()
}

func (p *MovePrediction) choose(in MoveInput) Strategy {
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
		ha, hb := a.harm(in.Urgency), b.harm(in.Urgency)
		if math.Abs(ha-hb) > 1e-3 {
			return ha < hb
		}
		if a.Bytes != b.Bytes {
			return a.Bytes < b.Bytes
		}
		return a.Total() < b.Total()
	}
	for s := range strategies {
		if s == PreCopy && in.Untracked && in.Paging {
			continue // it hashes all memory again and again: only if asked for
		}
		if o := &p.Options[s]; o.Possible && better(o, &p.Options[best]) {
			best = s
		}
	}
	return best
}
