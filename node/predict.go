package node

import (
	"math"
	"time"

	"meshnode/node/control"
	"meshnode/node/handover"
	"meshnode/pager"
)

// moveFacts is what a move is predicted from. Sizes are in bytes.
type moveFacts struct {
	// content is the memory that was ever written, and working what the worker
	// touches again and again; 0 if not known.
	content, working int64
	// cached is how much of content the destination is known to hold.
	cached int64
	// dirty is what the worker writes in a second, as whole pages.
	dirty float64
	// rate is what the path carries in a second, and rtt its round trip; 0 if
	// not known.
	rate float64
	rtt  time.Duration
	// paging says that the destination can run a worker whose memory is not
	// there yet.
	paging bool
}

// What is taken for what is not known, and what was measured of the parts of a
// move that do not depend on memory (see "What was measured" in DESIGN.md).
const (
	assumedRate = 100e6 / 8
	assumedRTT  = 20 * time.Millisecond

	blackoutRTTs  = 1.25
	blackoutFixed = 5500 * time.Microsecond
	setupRTTs     = 3
	setupFixed    = 120 * time.Millisecond // the module compiled already
	wireShare     = 1.02                   // of a page: its name, frames, QUIC
)

// When rounds end: as pager.Rounds has it, but for what that learns within one.
const (
	fewBytes   = 32 * pager.PageSize
	shrink     = 0.5
	roundsMost = 30
)

// predictMove says what a move would be like with a strategy. It is arithmetic
// and nothing else: the model of Clark et al. (Live Migration of Virtual
// Machines, NSDI 2005), in which each round sends what was written during the
// one before.
func predictMove(f moveFacts, s handover.Strategy) control.Prediction {
	if f.rate <= 0 {
		f.rate = assumedRate
	}
	if f.rtt <= 0 {
		f.rtt = assumedRTT
	}
	left := float64(max(f.content-f.cached, 0))
	send := func(bytes float64) time.Duration {
		return time.Duration(bytes * wireShare / f.rate * float64(time.Second))
	}
	hot := float64(f.working)
	if hot <= 0 || hot > float64(f.content) {
		hot = float64(f.content)
	}
	// written is how many bytes of pages are written in t: first in proportion,
	// then the same ones again.
	written := func(t time.Duration) float64 {
		if hot <= 0 {
			return 0
		}
		return hot * -math.Expm1(-f.dirty*t.Seconds()/hot)
	}
	before := setupFixed + setupRTTs*f.rtt
	blackout := blackoutFixed + time.Duration(blackoutRTTs*float64(f.rtt))

	bytes, rounds := 0.0, 0
	for s.Rounds() && left > 0 && rounds < roundsMost {
		took := send(left)
		before += took
		bytes += left
		next := written(took)
		rounds++
		stalled := rounds > 1 && next >= shrink*left
		if left = next; stalled || left <= fewBytes {
			break
		}
	}
	bytes += left
	drain := f.rtt
	if s == handover.StopAndCopy || s == handover.PreCopy || !f.paging {
		blackout += send(left)
	} else {
		drain += send(left)
	}
	return control.Prediction{
		Strategy: s.String(), BlackoutMs: control.Millis(blackout), TotalMs: control.Millis(before + blackout + drain),
		Bytes: uint64(bytes * wireShare), Rounds: rounds,
	}
}
