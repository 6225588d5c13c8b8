package placement

import (
	"math"
	"time"

	"meshnode/placement/manifest"
)

// A Node is what is known of one node. The caller does not change the maps
// and slices in it while a view uses it.
type Node struct {
	ID   NodeID
	Name string
	Tier manifest.Tier
	// Arch and OS are Go's names.
	Arch, OS string
	// Engine is how Wasm runs here; Speed was measured under it.
	Engine string
	// Paging says that a moved worker can resume before its memory is there.
	Paging bool
	// Cores is the number of usable CPUs; 0 counts as 1.
	Cores int
	// Memory is all of the node's, in bytes.
	Memory       int64
	Labels       map[string]string
	Interfaces   []string
	Accelerators []string
	// Workers counts the workers on the node by app.
	Workers map[string]int
	// Cordoned nodes take no new workers; draining ones also lose theirs.
	Cordoned, Draining bool
	Facts              Stamp // of all of the above

	// Speed is how many calibration events one core handles in a second.
	// Only ratios of it are used. 0 means unknown and counts as the median
	// of the view.
	Speed   float64
	SpeedAt Stamp

	// MemoryFree is what workers may still claim, in bytes, reservations
	// subtracted. Load is the use of all cores, 0 to 1, the node's workers
	// included.
	MemoryFree int64
	Load       float64
	LoadAt     Stamp

	// Uplink and Downlink are the rates seen, in bytes per second; 0 means
	// unknown.
	Uplink, Downlink float64
	LinkAt           Stamp

	// Coordinate is the node's place in the network; the zero Coordinate is
	// none.
	Coordinate   Coordinate
	CoordinateAt Stamp

	// Access is the round trip that the node promises to users attached to
	// it; MoveIn and MoveOut are the blackouts it promises for workers that
	// come and go.
	Access, MoveIn, MoveOut Budget
}

// A Budget is a promise of latency and the record of it.
type Budget struct {
	// Promised is what the node says; 0 means that it promises nothing.
	Promised time.Duration
	// Kept and Broken count what was observed, old observations less and
	// less. BrokenMean is the mean of those beyond the promise.
	Kept, Broken float64
	BrokenMean   time.Duration
	Stamp        Stamp
}

// budgetMemory is how much an observation still counts when the next comes:
// about the last 50 matter.
const budgetMemory = 0.98

// budgetPrior is the number of kept promises that an unknown node is credited
// with, so that one bad case does not ruin it.
const budgetPrior = 4

// Observe returns b after a case that took v.
func (b Budget) Observe(v time.Duration, s Stamp) Budget {
	b.Kept *= budgetMemory
	b.Broken *= budgetMemory
	if v <= b.Promised {
		b.Kept++
	} else {
		b.Broken++
		b.BrokenMean += time.Duration(float64(v-b.BrokenMean) / b.Broken)
	}
	b.Stamp = s
	return b
}

// Credibility is the share of cases in which the promise can be expected to
// hold, 0 to 1.
func (b Budget) Credibility() float64 {
	return (b.Kept + budgetPrior) / (b.Kept + b.Broken + budgetPrior)
}

// At returns what to expect at quantile q: the promise, or, when it is broken
// more often than q leaves room for, what it was when it was broken. It is 0
// for a node that promises nothing.
func (b Budget) At(q float64) time.Duration {
	if b.Promised > 0 && 1-b.Credibility() > 1-q {
		return max(b.Promised, b.BrokenMean)
	}
	return b.Promised
}

// Dimensions of a Coordinate.
const Dimensions = 8

// A Coordinate places a node so that distances predict round trips (Dabek,
// Cox, Kaashoek, Morris: "Vivaldi", SIGCOMM 2004). All are in seconds, Error
// is relative.
type Coordinate struct {
	Vec [Dimensions]float64
	// Height is the part of every round trip that is spent before the core
	// of the network: the access link.
	Height float64
	// Adjustment is added to distances (Lee et al.: "On suitability of
	// Euclidean embedding for host-based network coordinate systems", 2010).
	Adjustment float64
	// Error is the estimated relative error, 0 to about 1.5.
	Error float64
}

// known reports whether c was ever set: a height is never zero.
func (c *Coordinate) known() bool { return c.Height > 0 }

// distance returns the predicted round trip between c and d in seconds.
func (c *Coordinate) distance(d *Coordinate) float64 {
	s := 0.0
	for i := range c.Vec {
		x := c.Vec[i] - d.Vec[i]
		s += x * x
	}
	raw := math.Sqrt(s) + c.Height + d.Height
	if adj := raw + c.Adjustment + d.Adjustment; adj > 0 {
		return adj
	}
	return raw
}
