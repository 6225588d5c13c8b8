package placement

import (
	"fmt"
	"time"
)

// A NodeID names a node in the mesh.
type NodeID string

// A WorkerID names a worker.
type WorkerID string

// A Source says how a fact came to be known.
type Source uint8

// The sources, the least trustworthy first.
const (
	// Assumed is a default of this package: nobody said anything.
	Assumed Source = iota
	// Configured is what an operator wrote.
	Configured
	// Claimed is what a node says of itself.
	Claimed
	// Estimated is computed from other facts, such as coordinates.
	Estimated
	// Observed is seen in the ordinary course of work.
	Observed
	// Measured was tried on purpose.
	Measured
)

var sourceNames = [...]string{"assumed", "configured", "claimed", "estimated", "observed", "measured"}

func (s Source) String() string {
	if int(s) < len(sourceNames) {
		return sourceNames[s]
	}
	return fmt.Sprintf("source(%d)", uint8(s))
}

// MarshalText implements encoding.TextMarshaler.
func (s Source) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// A Stamp says when a fact was learnt, on the clock of the view, and how. The
// zero Stamp is that of a fact nobody has given.
type Stamp struct {
	At   time.Time
	From Source
}

// Age returns how old the fact is at now, never negative; zero for facts
// without a time.
func (s Stamp) Age(now time.Time) time.Duration {
	if s.At.IsZero() {
		return 0
	}
	return max(0, now.Sub(s.At))
}
