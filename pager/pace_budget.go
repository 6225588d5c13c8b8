package pager

import (
	"math"
	"sync"
	"time"
)

// A Meter is what a bulk stream may implement so that its push watches the
// queue on the way: the stream's connection measures round trips anyway.
type Meter interface {
	// RTT is the latest round trip that a packet took, without the time the
	// peer held back its acknowledgement, and count rises with every packet
	// from the peer. It is called a thousand times a second, and must be safe
	// for concurrent use.
	RTT() (latest time.Duration, count uint64)
}

const (
	// shareIdle is how long after its last write a Share still counts as one
	// that wants to push.
	shareIdle = 100 * time.Millisecond
	// routesKept is how many peers without a Share are remembered, with the
	// rate their route carried.
	routesKept = 64
	// maxWeight keeps one Share from leaving next to nothing to another.
	maxWeight = 100
)

// A Budget divides what a node may push among the moves under way. Two things
// limit a push: the Budget's own rate, for all of them together, and the route
// to its peer, for those that share it. Within these limits each Share gets
// in proportion to its weight, and what one cannot use goes to the others
// (weighted max-min fairness). Nobody gets nothing.
//
// Its methods are safe for concurrent use.
type Budget struct {
	mu     sync.Mutex
	most   int64 // bytes a second; 0 or less is no limit
	routes map[string]*path
}

// A path is the route to one peer and the shares on it. Its fields are guarded
// by Budget.mu.
type path struct {
	route  route
	count  uint64 // the Meter's, at the last sample
	shares map[*Share]bool
}

// NewBudget makes a Budget of so many bytes a second; 0 or less is no limit.
func NewBudget(most int64) *Budget {
	return &Budget{most: most, routes: make(map[string]*path)}
}

// Share makes a share for one move to a peer, which is named as the caller
// likes. A weight counts against those of the other shares; it is clamped to 1
// to 100. The share must be closed.
func (b *Budget) Share(peer string, weight int) *Share {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.routes[peer]
	if p == nil {
		for name, other := range b.routes {
			if len(b.routes) < routesKept {
				break
			}
			if len(other.shares) == 0 {
				delete(b.routes, name)
			}
		}
		p = &path{shares: make(map[*Share]bool)}
		b.routes[peer] = p
	}
	s := &Share{budget: b, path: p, weight: clampWeight(weight)}
	p.shares[s] = true
	return s
}

func clampWeight(w int) float64 { return float64(max(1, min(w, maxWeight))) }

// A Share is one move's part of a Budget. Its methods are safe for concurrent
// use.
type Share struct {
	budget *Budget
	path   *path

	// Guarded by Budget.mu.
	weight  float64
	writers int       // goroutines that wait to write
	seen    time.Time // when one last did
}

// SetWeight changes the weight.
func (s *Share) SetWeight(weight int) {
	s.budget.mu.Lock()
	s.weight = clampWeight(weight)
	s.budget.mu.Unlock()
}

// Close gives the share up. It may be called twice. Who still writes does so
// at the rate the others leave.
func (s *Share) Close() {
	s.budget.mu.Lock()
	delete(s.path.shares, s)
	s.budget.mu.Unlock()
}

// Rate is how many bytes a second the share may push now; math.MaxInt64 if
// nothing limits it.
func (s *Share) Rate() int64 {
	r, _ := s.rate(time.Now(), nil, 0)
	if r >= math.MaxInt64 {
		return math.MaxInt64
	}
	return int64(r)
}

// most is the limit of the whole Budget, 0 for none.
func (s *Share) most() int64 {
	if s == nil {
		return 0
	}
	s.budget.mu.Lock()
	defer s.budget.mu.Unlock()
	return max(s.budget.most, 0)
}

// bytesIn is how much may be written in a time, in whole pages, at least one
// and at most most bytes.
func (s *Share) bytesIn(d time.Duration, most int) int {
	if s == nil {
		return most
	}
	rate, _ := s.rate(time.Now(), nil, 0)
	n := rate * d.Seconds()
	if n >= float64(most) {
		return most
	}
	return max(PageSize, int(n)/PageSize*PageSize)
}

func (s *Share) begin() {
	s.budget.mu.Lock()
	s.writers++
	s.budget.mu.Unlock()
}

func (s *Share) end() {
	now := time.Now()
	s.budget.mu.Lock()
	s.writers--
	s.seen = now
	s.budget.mu.Unlock()
}

// rate looks at what m measures, if not nil, and returns the rate now and
// whether the route is what limits it. waited is for how long it has done so
// since the last call.
func (s *Share) rate(now time.Time, m Meter, waited time.Duration) (rate float64, byRoute bool) {
	b := s.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	s.path.route.waited(waited)
	if m != nil {
		if rtt, count := m.RTT(); count != s.path.count {
			s.path.count = count
			s.path.route.sample(now, rtt)
		}
	}
	return b.divideLocked(now, s)
}

// divideLocked is how much one share gets, and whether that is all its route
// carries. The limit is poured out evenly by
// weight; a path that is full leaves its part to the others.
func (b *Budget) divideLocked(now time.Time, s *Share) (rate float64, byRoute bool) {
	mine := s.path.weightLocked(now, s)
	route := s.path.route.rate(now)
	if b.most <= 0 {
		return route * s.weight / mine, true
	}
	type demand struct{ weight, most float64 }
	paths := make([]demand, 0, 8)
	weights := 0.0
	for _, p := range b.routes {
		w := mine
		if p != s.path {
			w = p.weightLocked(now, nil)
		}
		if w > 0 {
			paths = append(paths, demand{w, p.route.rate(now)})
			weights += w
		}
	}
	left := float64(b.most)
	for full := true; full; {
		full = false
		for i, p := range paths {
			if p.weight > 0 && p.most < left*p.weight/weights {
				left -= p.most
				weights -= p.weight
				paths[i].weight = 0
				full = true
			}
		}
	}
	level := left / weights // bytes a second for each unit of weight
	if weights <= 0 || level*mine > route {
		return route * s.weight / mine, true
	}
	return level * s.weight, false
}

// weightLocked is the weight of all shares on the path that want to push, and
// of s, which asks.
func (p *path) weightLocked(now time.Time, s *Share) float64 {
	sum := 0.0
	for o := range p.shares {
		if o == s || o.writers > 0 || now.Sub(o.seen) < shareIdle {
			sum += o.weight
		}
	}
	if s != nil && !p.shares[s] { // closed
		sum += s.weight
	}
	return sum
}
