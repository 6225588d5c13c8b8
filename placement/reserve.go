package placement

import (
	"errors"
	"fmt"
	"time"
)

// Why a reservation is refused; the worker's owner then asks its next best
// candidate.
var (
	// ErrNoRoom means that memory or CPU do not suffice, what others have
	// reserved subtracted.
	ErrNoRoom = errors.New("no room")
	// ErrTooMany means that as many moves are under way as the node takes at
	// a time.
	ErrTooMany = errors.New("too many moves at a time")
)

// A Need is what a worker takes of a node.
type Need struct {
	Memory int64   // bytes
	CPU    float64 // cores
}

func (n Need) plus(m Need) Need { return Need{n.Memory + m.Memory, n.CPU + m.CPU} }

// fits allows for what adding up floats loses.
func (n Need) fits(m Need) bool { return n.Memory <= m.Memory && n.CPU <= m.CPU+1e-9 }

// Reservations are what a node has promised to workers that are on their way.
// Owners decide on their own, from facts that are seconds old; without this, a
// crowd that leaves one node would all arrive at the same other one. A
// reservation is held from the moment the node accepts an offer until the
// worker runs here (its use then shows in the node's load) or the time is up.
//
// The zero value refuses everything; see NewReservations. Not safe for
// concurrent use.
type Reservations struct {
	most int
	ttl  time.Duration
	held map[WorkerID]reservation
}

type reservation struct {
	need  Need
	until time.Time
}

// NewReservations returns an empty book that holds at most as many
// reservations at a time, each for at most ttl.
func NewReservations(most int, ttl time.Duration) *Reservations {
	return &Reservations{most: most, ttl: ttl, held: map[WorkerID]reservation{}}
}

// Reserve takes what worker w needs out of free, which is what the node has
// without looking at reservations. A second one for the same worker replaces
// the first, so that an offer that is sent again counts once. The error
// unwraps to [ErrNoRoom] or [ErrTooMany].
func (r *Reservations) Reserve(now time.Time, w WorkerID, need, free Need) error {
	r.expire(now)
	had, again := r.held[w]
	delete(r.held, w)
	held := r.total()
	refuse := func(err error) error {
		if again {
			r.held[w] = had
		}
		return err
	}
	if len(r.held) >= r.most {
		return refuse(fmt.Errorf("reserve for worker %s: %w: %d of %d", w, ErrTooMany, len(r.held), r.most))
	}
	if need.Memory < 0 || !(need.CPU >= 0) || !held.plus(need).fits(free) {
		return refuse(fmt.Errorf("reserve for worker %s: %w: it needs %d bytes and %.2f cores; of %d bytes and %.2f cores free, %d and %.2f are reserved",
			w, ErrNoRoom, need.Memory, need.CPU, free.Memory, free.CPU, held.Memory, held.CPU))
	}
	r.held[w] = reservation{need, now.Add(r.ttl)}
	return nil
}

// Release ends the reservation of w, if there is one: the worker is here, or
// does not come.
func (r *Reservations) Release(w WorkerID) { delete(r.held, w) }

// Held returns the sum of what is reserved at now. A node subtracts it from
// the memory that it says is free and adds it to its load.
func (r *Reservations) Held(now time.Time) Need {
	r.expire(now)
	return r.total()
}

func (r *Reservations) total() Need {
	var n Need
	for _, h := range r.held {
		n = n.plus(h.need)
	}
	return n
}

func (r *Reservations) expire(now time.Time) {
	for w, h := range r.held {
		if !now.Before(h.until) {
			delete(r.held, w)
		}
	}
}
