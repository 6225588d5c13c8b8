package placement

import (
	"math"
	"slices"
	"time"

	"meshnode/placement/manifest"
)

// A State is what must be remembered of a worker between two decisions. It is
// a value: [View.Decide] returns the next one, and it travels with the worker,
// so that whoever owns the worker next goes on from there. Its times are on
// the clock of the node that decides; it travels as a [PackedState]. The zero
// State is that of a worker that has just been started.
type State struct {
	// Since is when the present owner got the worker. Previous is who had it
	// before.
	Since    time.Time
	Previous NodeID
	// Dwell is the minimum stay as of Since: it has grown if the worker
	// bounced. It recovers with time; see minDwell.
	Dwell time.Duration
	// Stay is the mean length of past stays, recent ones counting most: how
	// long an advantage can be expected to last.
	Stay time.Duration
	// Moves are the times of the moves of the last hour that the worker
	// decided on by itself, the oldest first.
	Moves []time.Time
	// At is when the last decision was made.
	At time.Time
	// Challengers are the nodes that may become better than the owner.
	Challengers [maxChallengers]Challenger
}

// A Challenger is a node that is better than the owner by more than the
// offset.
type Challenger struct {
	Node NodeID
	// Since is from when on, without a break.
	Since time.Time
	// Regret is what staying has cost against being there, beyond the
	// offset, in violated seconds: a cumulative sum that is never negative
	// (Page, "Continuous inspection schemes", 1954). What is much better soon
	// counts; noise between equals, which the offset pulls down, does not add
	// up. A smoothed advantage was tried instead: with the same delay it made
	// some fifty moves a day between equals where this makes none.
	Regret float64
}

// regretFor is the regret at which a worker moves, in violated seconds for
// each second of holdFor: less than 1, so that for a place that is better in
// full holdFor alone decides.
const regretFor = 2.0 / 3

// maxStep bounds the time, in seconds, that one look counts for.
const maxStep = 5

const (
	maxChallengers = 6
	// bounceWithin is how many minimum stays a stay may last for a return to
	// count as a bounce.
	bounceWithin = 8
	// maxGrowth is by how much the minimum stay can grow; recovery is how
	// many times itself it takes to halve. (Recovery in multiples of the
	// manifest's minimum was tried: a worker between two equals recovered
	// faster than it learnt.)
	maxGrowth = 64
	recovery  = 8
	// defaultStay is the expected stay of a worker that never moved;
	// maxStay bounds what is expected of one that stayed long.
	defaultStay = time.Minute
	maxStay     = 10 * time.Minute
)

// minDwell is how long the worker must stay with its owner, counted from
// Since, as of now.
func (s *State) minDwell(m *manifest.Migration, now time.Time) time.Duration {
	base := m.MinDwell.D()
	if s.Dwell <= base {
		return base
	}
	halvings := now.Sub(s.Since).Seconds() / (recovery * s.Dwell.Seconds())
	return max(base, time.Duration(float64(s.Dwell)*math.Exp2(-halvings)))
}

// stay is how long the worker can be expected to stay where it goes next, in
// seconds.
func (s *State) stay(m *manifest.Migration) float64 {
	d := s.Stay
	if d == 0 {
		d = defaultStay
	}
	return min(max(d, m.MinDwell.D()), maxStay).Seconds()
}

// movesSince returns the moves after t.
func (s *State) movesSince(t time.Time) []time.Time {
	i := 0
	for i < len(s.Moves) && !s.Moves[i].After(t) {
		i++
	}
	return s.Moves[i:]
}

// Moved returns the state after the worker has moved from one node to another
// at now. own says that the worker's own decision was the cause, rather than
// an operator or a node that drains: only those count against the cap.
func (s State) Moved(now time.Time, from, to NodeID, own bool, m *manifest.Migration) State {
	base := m.MinDwell.D()
	next := State{Since: now, Previous: from, Dwell: base, Stay: s.Stay, Moves: s.Moves}
	if !s.Since.IsZero() {
		// The minimum stay as it had recovered by now, doubled on a bounce.
		stayed := max(0, now.Sub(s.Since))
		dwell := s.minDwell(m, now)
		next.Dwell = dwell
		if to == s.Previous && to != "" && stayed < bounceWithin*max(dwell, time.Second) {
			next.Dwell = min(2*max(dwell, time.Second), maxGrowth*max(base, time.Second))
		}
		if s.Stay == 0 {
			next.Stay = (defaultStay + stayed) / 2
		} else {
			next.Stay = (3*s.Stay + stayed) / 4
		}
	}
	if own {
		recent := s.movesSince(now.Add(-time.Hour))
		next.Moves = append(append(make([]time.Time, 0, len(recent)+1), recent...), now)
	}
	return next
}

// step is the time since the last decision, in seconds.
func (s *State) step(now time.Time) float64 {
	if s.At.IsZero() {
		return 0
	}
	return min(max(0, now.Sub(s.At).Seconds()), maxStep)
}

// challenger returns what is remembered of n.
func (s *State) challenger(n NodeID) Challenger {
	for i := range s.Challengers {
		if s.Challengers[i].Node == n {
			return s.Challengers[i]
		}
	}
	return Challenger{Node: n}
}

// A PackedState is a State for the way to another node. It has ages in place
// of times, since the two nodes' clocks differ, and no challengers, since those
// are of the place that is left.
type PackedState struct {
	Since    time.Duration   `cbor:"1,keyasint"`
	Previous NodeID          `cbor:"2,keyasint,omitempty"`
	Dwell    time.Duration   `cbor:"3,keyasint"`
	Stay     time.Duration   `cbor:"4,keyasint"`
	Moves    []time.Duration `cbor:"5,keyasint,omitempty"`
}

// Pack returns s as of now.
func (s State) Pack(now time.Time) PackedState {
	p := PackedState{Previous: s.Previous, Dwell: s.Dwell, Stay: s.Stay}
	if !s.Since.IsZero() {
		p.Since = max(1, now.Sub(s.Since)) // 0 means never
	}
	for _, t := range s.movesSince(now.Add(-time.Hour)) {
		p.Moves = append(p.Moves, now.Sub(t))
	}
	return p
}

// Limits on what a peer may send as a state, by the bounds of the manifest.
const (
	maxMoves      = 120
	maxMinDwell   = 24 * time.Hour
	maxPreviousID = 128
)

// Unpack returns the state that p is at now. Whatever a peer sent, the result
// is within the bounds of a state.
func (p PackedState) Unpack(now time.Time) State {
	s := State{Previous: p.Previous, Dwell: min(max(p.Dwell, 0), maxGrowth*maxMinDwell), Stay: min(max(p.Stay, 0), maxMinDwell)}
	if len(s.Previous) > maxPreviousID {
		s.Previous = ""
	}
	if p.Since > 0 {
		s.Since = now.Add(-p.Since)
	}
	for _, age := range p.Moves[max(0, len(p.Moves)-maxMoves):] {
		if age >= 0 && age < time.Hour {
			s.Moves = append(s.Moves, now.Add(-age))
		}
	}
	slices.SortFunc(s.Moves, time.Time.Compare)
	return s
}
