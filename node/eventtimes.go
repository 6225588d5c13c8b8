package node

import (
	"math"
	"slices"
	"sync"
	"time"

	"meshnode/mesh"
	"meshnode/placement"
)

const (
	// eventsKept is how many of a worker's last events are remembered, and
	// eventsFor for how long they count.
	eventsKept = 512
	eventsFor  = time.Minute
)

// An eventTime is one event that a worker has handled.
type eventTime struct {
	at    time.Time // when it ended
	took  time.Duration
	entry mesh.NodeID // where its sender is attached; empty for a timer
	from  string      // the name of the worker that sent it; empty for a client
	// access is how far from entry the client was; 0 if not known.
	access time.Duration
	// beyond is what an earlier call of the sender took beyond the round trip
	// from entry; 0 if not known.
	beyond time.Duration
}

// eventTimes remembers a worker's last events, for placement. Safe for
// concurrent use.
type eventTimes struct {
	mu   sync.Mutex
	ring []eventTime
	next int
}

func (t *eventTimes) add(e eventTime) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.ring) < eventsKept {
		t.ring = append(t.ring, e)
		return
	}
	t.ring[t.next] = e
	t.next = (t.next + 1) % eventsKept
}

// An eventSummary is what the events of the last minute were like.
type eventSummary struct {
	p50, p99        time.Duration
	mean, deviation time.Duration
	beyond          time.Duration                 // the lower quartile of what is known, else 0
	rate            float64                       // a second, of all events
	users           map[mesh.NodeID]*usersSummary // clients, by where they are attached
	peers           map[peerAt]float64            // events a second of other apps' workers
	last            time.Time                     // zero without any
}

// A usersSummary is what the clients at one node were like.
type usersSummary struct {
	rate   float64 // events a second
	access placement.RTT
}

// A peerAt is the workers of an app at one node.
type peerAt struct {
	app  string
	node mesh.NodeID
}

// summary sums up the events of the last minute as of now. Rates are over the
// time since the oldest of them, a second at least.
func (t *eventTimes) summary(now time.Time) eventSummary {
	t.mu.Lock()
	recent := make([]eventTime, 0, len(t.ring))
	for _, e := range t.ring {
		if now.Sub(e.at) <= eventsFor {
			recent = append(recent, e)
		}
	}
	t.mu.Unlock()
	if len(recent) == 0 {
		return eventSummary{}
	}
	s := eventSummary{users: make(map[mesh.NodeID]*usersSummary), peers: make(map[peerAt]float64)}
	access := make(map[mesh.NodeID][]time.Duration)
	oldest, took := recent[0].at, make([]time.Duration, len(recent))
	var beyond []time.Duration
	for i, e := range recent {
		took[i] = e.took
		if e.beyond > 0 {
			beyond = append(beyond, e.beyond)
		}
		if e.at.Before(oldest) {
			oldest = e.at
		}
		if e.at.After(s.last) {
			s.last = e.at
		}
	}
	s.mean, s.deviation = moments(took)
	slices.Sort(took)
	s.p50, s.p99 = took[len(took)/2], took[(len(took)*99)/100]
	if len(beyond) > 0 {
		// Longer ones have waited, for this worker or a busy machine, which
		// need not be so elsewhere.
		slices.Sort(beyond)
		s.beyond = beyond[len(beyond)/4]
	}
	each := 1 / max(now.Sub(oldest).Seconds(), 1)
	for _, e := range recent {
		s.rate += each
		switch {
		case e.entry == "": // a timer
		case e.from != "":
			s.peers[peerAt{appOf(e.from), e.entry}] += each
		default:
			u := s.users[e.entry]
			if u == nil {
				u = new(usersSummary)
				s.users[e.entry] = u
			}
			u.rate += each
			if e.access > 0 {
				access[e.entry] = append(access[e.entry], e.access)
			}
		}
	}
	for id, rtts := range access {
		s.users[id].access = distribution(rtts)
	}
	return s
}

// moments returns the mean of took, which is not empty, and the standard
// deviation.
func moments(took []time.Duration) (mean, deviation time.Duration) {
	n, sum, squares := float64(len(took)), 0.0, 0.0
	for _, d := range took {
		sum += d.Seconds()
	}
	for _, d := range took {
		squares += (d.Seconds() - sum/n) * (d.Seconds() - sum/n)
	}
	seconds := func(s float64) time.Duration { return time.Duration(math.Round(s * float64(time.Second))) }
	return seconds(sum / n), seconds(math.Sqrt(squares / n))
}
