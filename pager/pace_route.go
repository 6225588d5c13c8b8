package pager

import (
	"math"
	"time"
)

const (
	// queueTarget is how long a queue the pushed pages may keep at the
	// narrowest place of a route: enough to keep it busy between two looks,
	// and all that a demanded page waits for them.
	queueTarget = 3 * time.Millisecond
	// queueBytes is the least queue there is, on links so slow that it takes
	// longer than queueTarget: a page with what is around it.
	queueBytes = PageSize + 512

	// firstBytes is pushed in the first round trip on an unknown route, or in
	// the first firstTime if that is longer, and floorBytes in each, or each
	// floorTime, while others keep the queue full: see route.
	firstBytes = 16 << 10
	firstTime  = 10 * time.Millisecond
	floorBytes = 8 << 10
	floorTime  = 100 * time.Millisecond
	// ceiling is far above what any route carries, in bytes a second.
	ceiling = 64 << 30

	// routeGain is how much of the way to its target the rate goes in one round
	// trip. Half is as fast and swings; see TestRouteSettles.
	routeGain = 0.25
	// leastRound is the shortest time to judge a rate by, and leastSamples the
	// fewest round trips.
	leastRound   = 4 * time.Millisecond
	leastSamples = 4
	// baseAge is how long a round trip counts as the route's own, without a
	// queue. A route that gets longer is believed after that time.
	baseAge = 10 * time.Second
)

// A route finds how fast pages may be pushed to a peer, from the round trips
// its packets take: what they take longer than the shortest one they have
// spent in queues. It is arithmetic alone, samples and the time in, a rate
// out.
//
// A loss-driven congestion control (the transport's, RFC 9438) fills the queue
// at the bottleneck until it overflows, 50 ms and more, and a demanded page
// would wait behind all of it, whatever its priority here. So the push is held
// below what that would allow. The law is FAST TCP's (Jin, Wei, Low 2004) for a
// rate in place of a window: with base the round trip without a queue, q the
// queueing delay and target the one we want,
//
//	f    = (base + target) / (base + q)
//	rate = estimate * f                             at every sample
//	estimate += gain * estimate * (f - 1)           once in a round trip
//
// The first line answers a queue at once, as a window does (more delay, fewer
// bytes a second), which is what damps the second. The second alone, as in
// LEDBAT (RFC 6817) with a rate, swings for ever: a queue is the integral of a
// rate's error, so its control must not be another integral.
//
//   - q is the least of a round's samples. Jitter and late acknowledgements
//     only ever add to a round trip.
//   - On a new route the estimate doubles until there is a queue, and is then
//     halved. It does so in every second round trip, since what a rate does to
//     the queue is seen a round trip later: doubling in each left a queue of
//     three round trips, not one.
//   - It grows only while it is what the push waits for: one that something
//     else holds back says nothing about the route. (What part of it was used
//     says less: on a busy machine timers are late, and it never grew.)
//   - base is the least of the last 10 to 20 s. For two round trips in that
//     time the push halves its rate, so that its own queue does not pass for
//     the length of the route (BBR's ProbeRTT).
//   - Where others keep a queue that our yielding does not empty, floorBytes a
//     round trip are pushed all the same, until that queue is believed to be
//     the route's length.
//
// The transport's own congestion control stays in force underneath and sees to
// losses. The methods are not safe for concurrent use.
type route struct {
	estimate float64 // bytes a second; 0 before the first sample
	starting bool

	base     time.Duration // least round trip of this period and the one before
	next     time.Duration // least of this period
	periodAt time.Time
	probing  time.Time // the rate is halved until then

	last [3]time.Duration // latest samples, a ring
	n    int

	roundAt time.Time
	round   time.Duration // least sample of this round; 0 if none
	samples int
	waits   time.Duration // what the push waited for this route's rate in it
}

// sample takes in a round trip that was measured just now.
func (r *route) sample(now time.Time, rtt time.Duration) {
	if rtt <= 0 {
		return
	}
	if r.estimate == 0 {
		r.base, r.next, r.periodAt = rtt, rtt, now
		r.estimate = firstBytes / max(rtt, firstTime).Seconds()
		r.starting = true
		r.roundAt = now
	}
	r.last[r.n%len(r.last)] = rtt
	r.n++
	if r.round == 0 || rtt < r.round {
		r.round = rtt
	}
	r.samples++
	r.base, r.next = min(r.base, rtt), min(r.next, rtt)
	if now.Sub(r.periodAt) >= baseAge {
		if r.probing.Before(r.periodAt) {
			r.probing = now.Add(2*rtt + leastRound)
		}
		if now.After(r.probing) {
			r.base, r.next, r.periodAt = r.next, rtt, now
		}
	}
	length := max(r.round, leastRound)
	if r.starting {
		if r.least()-r.base >= r.target()/2 {
			r.starting = false
			r.estimate /= 2
			r.begin(now)
			return
		}
		length *= 2
	}
	if now.Sub(r.roundAt) >= length && r.samples >= leastSamples {
		r.judge(now)
	}
}

// begin begins a round.
func (r *route) begin(now time.Time) {
	r.roundAt, r.round, r.samples, r.waits = now, 0, 0, 0
}

// least is the least of the latest samples.
func (r *route) least() time.Duration {
	least := r.last[0]
	for _, rtt := range r.last[1:min(r.n, len(r.last))] {
		least = min(least, rtt)
	}
	return least
}

// judge ends a round.
func (r *route) judge(now time.Time) {
	f := r.factor(r.round)
	busy := r.waits >= now.Sub(r.roundAt)/2
	switch {
	case r.starting && busy:
		r.estimate *= 2
	case r.starting:
	case f < 0.5:
		r.estimate /= 2
	case f < 1:
		r.estimate *= 1 + routeGain*(f-1)
	case busy:
		// On a long route f is next to 1 even without a queue.
		empty := 1 - float64(r.round-r.base)/float64(r.target())
		r.estimate *= 1 + routeGain*max(min(f, 2)-1, empty/16)
	}
	r.estimate = max(floorBytes/max(r.round, floorTime).Seconds(), min(r.estimate, ceiling))
	r.begin(now)
}

// target is the queueing delay to keep.
func (r *route) target() time.Duration {
	return max(queueTarget, time.Duration(queueBytes/r.estimate*float64(time.Second)))
}

// factor is f of the law above.
func (r *route) factor(rtt time.Duration) float64 {
	return float64(r.base+r.target()) / float64(rtt)
}

// waited says that the push has waited so long for this route's rate.
func (r *route) waited(d time.Duration) { r.waits += d }

// rate is how fast to push now, in bytes a second. It is infinite before the
// first sample: a stream that measures nothing is not held back.
func (r *route) rate(now time.Time) float64 {
	if r.estimate == 0 {
		return math.Inf(1)
	}
	if now.Before(r.probing) {
		return r.estimate / 2
	}
	return r.estimate * max(0.25, min(r.factor(r.least()), 1.25))
}
