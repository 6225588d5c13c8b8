package pager

import (
	"math"
	"testing"
	"time"
)

// fixedRoute makes a route that carries so much.
func fixedRoute(rate float64) route {
	r := route{estimate: rate, base: time.Second, n: 1}
	r.last[0] = r.base + r.target()
	return r
}

// wanting makes a share that wants to push now.
func wanting(b *Budget, peer string, weight int, now time.Time) *Share {
	s := b.Share(peer, weight)
	s.seen = now
	return s
}

func rateOf(s *Share, now time.Time) float64 {
	rate, _ := s.rate(now, nil, 0)
	return rate
}

func closeTo(got, want float64) bool { return math.Abs(got-want) <= want*1e-6 }

func TestBudgetDivides(t *testing.T) {
	now := time.Unix(0, 0)
	b := NewBudget(0)
	one := wanting(b, "a", 1, now)
	if got := rateOf(one, now); !math.IsInf(got, 1) {
		t.Errorf("without any limit: %v", got)
	}
	if got := one.Rate(); got != math.MaxInt64 {
		t.Errorf("without any limit: Rate is %v", got)
	}
	b.most = 1000
	if got := rateOf(one, now); !closeTo(got, 1000) {
		t.Errorf("alone: %v of 1000", got)
	}
	two := wanting(b, "b", 3, now)
	if got := rateOf(two, now); !closeTo(got, 750) {
		t.Errorf("weight 3 against 1: %v of 1000", got)
	}
	b.routes["b"].route = fixedRoute(200)
	if got := rateOf(two, now); !closeTo(got, 200) {
		t.Errorf("over a route of 200: %v", got)
	}
	if got := rateOf(one, now); !closeTo(got, 800) {
		t.Errorf("what the other cannot use is not given away: %v of 800", got)
	}
	later := now.Add(2 * shareIdle)
	if got := rateOf(one, later); !closeTo(got, 1000) {
		t.Errorf("beside one that pushes nothing: %v of 1000", got)
	}
	two.begin()
	if got := rateOf(one, later); !closeTo(got, 800) {
		t.Errorf("beside one that waits to push: %v of 800", got)
	}
	two.end()
	two.Close()
	two.Close()
	if got := rateOf(one, now); !closeTo(got, 1000) {
		t.Errorf("beside one that was closed: %v of 1000", got)
	}
	if got := rateOf(two, now); !(got > 0) {
		t.Errorf("one that was closed and still writes: %v", got)
	}
	one.SetWeight(-5)
	if got := rateOf(one, now); !(got > 0) {
		t.Errorf("with a negative weight: %v", got)
	}
}

// Whatever the weights, routes and limit: nothing is given twice, no share is
// left without, none gets more than its route carries, what is left over
// nobody could use, and of two shares the one that gets less for its weight is
// on a route that is full.
func TestBudgetIsFair(t *testing.T) {
	r := testRand(t)
	now := time.Unix(0, 0)
	for range 2000 {
		limit := math.Exp(r.Float64()*15 + 3)
		b := NewBudget(int64(limit))
		limit = float64(int64(limit))
		var shares []*Share
		for range 1 + r.IntN(12) {
			shares = append(shares, wanting(b, string(rune('a'+r.IntN(5))), 1+r.IntN(10), now))
		}
		carries := map[*path]float64{}
		for name, p := range b.routes {
			carries[p] = math.Inf(1)
			if r.IntN(4) > 0 {
				carries[p] = math.Exp(r.Float64()*15 + 3)
				b.routes[name].route = fixedRoute(carries[p])
			}
		}
		used := map[*path]float64{}
		var sum, could float64
		for _, s := range shares {
			got := rateOf(s, now)
			if !(got > 0) {
				t.Fatalf("a share gets %v", got)
			}
			used[s.path] += got
			sum += got
		}
		for p, c := range carries {
			could += c
			if used[p] > c*(1+1e-6) {
				t.Fatalf("a route that carries %v is given %v", c, used[p])
			}
		}
		if want := min(limit, could); !closeTo(sum, want) {
			t.Fatalf("%v given of %v", sum, want)
		}
		for _, s := range shares {
			for _, o := range shares {
				mine, other := rateOf(s, now)/s.weight, rateOf(o, now)/o.weight
				if mine < other*(1-1e-6) && used[s.path] < carries[s.path]*(1-1e-6) {
					t.Fatalf("one share gets %v for its weight, another %v, and the first one's route is not full", mine, other)
				}
			}
		}
	}
}

// A Budget remembers what a route carries, but not of any number of peers.
func TestBudgetForgets(t *testing.T) {
	b := NewBudget(0)
	kept := b.Share("kept", 1)
	for i := range 4 * routesKept {
		b.Share(string(rune(i+'a')), 1).Close()
	}
	if n := len(b.routes); n > routesKept {
		t.Errorf("%d routes remembered, at most %d wanted", n, routesKept)
	}
	if again := b.Share("kept", 1); again.path != kept.path {
		t.Error("two shares to one peer have different routes")
	}
}

type fakeMeter struct {
	rtt   time.Duration
	count uint64
}

func (m *fakeMeter) RTT() (time.Duration, uint64) { return m.rtt, m.count }

// A Meter is believed once for each time it says something new.
func TestShareLooksAtMeter(t *testing.T) {
	s := NewBudget(0).Share("a", 1)
	m := &fakeMeter{rtt: 10 * time.Millisecond}
	now := time.Unix(0, 0)
	if got, _ := s.rate(now, m, 0); !math.IsInf(got, 1) {
		t.Errorf("before anything was measured: %v", got)
	}
	m.count = 1
	if got, _ := s.rate(now, m, 0); math.IsInf(got, 1) {
		t.Error("what was measured is not looked at")
	}
	for range 5 {
		s.rate(now, m, 0)
	}
	if n := s.path.route.n; n != 1 {
		t.Errorf("one round trip was taken in %d times", n)
	}
	if n := s.bytesIn(time.Nanosecond, bulkChunk); n != PageSize {
		t.Errorf("%d bytes in a nanosecond, want one page", n)
	}
	if n := (*Share)(nil).bytesIn(time.Nanosecond, bulkChunk); n != bulkChunk {
		t.Errorf("%d bytes without a limit, want %d", n, bulkChunk)
	}
}
