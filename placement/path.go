package placement

import "time"

// An RTT is a distribution of round trips, by its median and 99th percentile.
// A P99 below P50 means that only the median is known.
type RTT struct{ P50, P99 time.Duration }

// A Path is what was measured between two nodes. The round trip holds in both
// directions, the rate from From to To.
type Path struct {
	From, To NodeID
	RTT      RTT
	// Trend is by how much RTT.P50 grows in a second, as lately; negative for
	// what gets nearer.
	Trend time.Duration
	// Rate is in bytes per second; 0 means unknown.
	Rate float64
	// Loss is the share of packets lost, 0 to 1.
	Loss float64
	// Moves is what earlier moves from From to To have taught.
	Moves MoveModel
	Stamp Stamp
}

// What is assumed where nothing is known.
const (
	// PathFresh is how long a measured round trip is better than what
	// coordinates say.
	PathFresh = 2 * time.Minute
	// AssumedRate is what a path carries, in bytes per second: 100 Mbit/s.
	AssumedRate = 12.5e6

	maxRTT      = 60.0      // seconds: whatever is longer is as bad
	assumedRTT  = 0.1       // seconds
	unknownTail = 0.25      // p99 over p50, less 1, where only the median is known
	minTail     = 0.5 / 1e3 // seconds: nothing in a network is steadier
)
