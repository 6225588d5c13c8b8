package node

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"meshnode/mesh"
	"meshnode/placement"
)

// protoPaths asks a node for the round trips that it has measured: the asker
// sends a pathsWant, the answer is a pathsHave. It is how a node learns how far
// others are from where a worker's users are.
const protoPaths = "paths"

type pathsWant struct{}

// A pathsHave has at most maxPaths entries.
type pathsHave struct {
	Paths []pathHave `cbor:"1,keyasint"`
}

type pathHave struct {
	To  mesh.NodeID   `cbor:"1,keyasint"`
	P50 time.Duration `cbor:"2,keyasint"`
	// P99 is 0 where too few round trips were measured.
	P99 time.Duration `cbor:"3,keyasint,omitempty"`
	// Age is how long ago the last of the round trips was: clocks differ.
	Age time.Duration `cbor:"4,keyasint,omitempty"`
}

const (
	// pathFresh is how long measured round trips are used without measuring
	// again.
	pathFresh = 10 * time.Second
	// pathSamples are kept of each path, and pingsEach added whenever one is
	// measured.
	pathSamples = 20
	pingsEach   = 5
	// pingsAtOnce bounds the paths measured side by side, so that they do not
	// measure each other; maxPaths how many are measured at all.
	pingsAtOnce = 4
	maxPaths    = 128
	// measureTime bounds a round of measurements.
	measureTime = 3 * time.Second
	// maxPathsMessage is the largest pathsHave, in bytes.
	maxPathsMessage = 16 << 10
)

// pathTimes are the round trips this node has measured lately. Safe for
// concurrent use.
type pathTimes struct {
	mu    sync.Mutex
	of    map[mesh.NodeID]*pathTime
	round chan struct{} // holds a value while a round of measurements runs
}

type pathTime struct {
	samples []time.Duration // the oldest first
	at      time.Time
}

func newPathTimes() *pathTimes {
	return &pathTimes{of: make(map[mesh.NodeID]*pathTime), round: make(chan struct{}, 1)}
}

func (t *pathTimes) add(id mesh.NodeID, rtt time.Duration, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.of[id]
	if p == nil {
		p = &pathTime{}
		t.of[id] = p
	}
	if p.samples = sinceChange(append(p.samples, rtt)); len(p.samples) > pathSamples {
		p.samples = slices.Delete(p.samples, 0, 1)
	}
	p.at = now
}

// get returns the distribution of round trips to a node.
func (t *pathTimes) get(id mesh.NodeID) (rtt placement.RTT, at time.Time, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.of[id]
	if p == nil {
		return placement.RTT{}, time.Time{}, false
	}
	return distribution(slices.Clone(p.samples)), p.at, true
}

// distribution sums up round trips, of which there is one at least; it sorts
// them. Of few the largest stands for the 99th percentile, of less than three
// there is none.
func distribution(rtts []time.Duration) (rtt placement.RTT) {
	slices.Sort(rtts)
	rtt.P50 = rtts[len(rtts)/2]
	if len(rtts) > 2 {
		rtt.P99 = rtts[(len(rtts)*99)/100]
	}
	return rtt
}

// keep forgets the paths to all nodes but these.
func (t *pathTimes) keep(ids map[mesh.NodeID]bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id := range t.of {
		if !ids[id] {
			delete(t.of, id)
		}
	}
}

// measurePaths measures the round trips to the members that it has not
// measured lately, at most maxPaths of them, and returns when it has or when
// measureTime is over. Only one round runs at a time; a second asker waits for
// it and finds its results.
func (n *Node) measurePaths(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, measureTime)
	defer cancel()
	select {
	case n.rtts.round <- struct{}{}:
	case <-ctx.Done():
		return
	}
	defer func() { <-n.rtts.round }()
	members := make(map[mesh.NodeID]bool)
	var stale []mesh.NodeID
	for _, m := range n.mesh.Members() {
		if m.Self || m.State != mesh.Alive {
			continue
		}
		members[m.ID] = true
		if _, at, ok := n.rtts.get(m.ID); !ok || time.Since(at) > pathFresh {
			stale = append(stale, m.ID)
		}
	}
	n.rtts.keep(members)
	work := make(chan mesh.NodeID)
	var wg sync.WaitGroup
	for range min(pingsAtOnce, len(stale)) {
		wg.Go(func() {
			for id := range work {
				n.measurePath(ctx, id)
			}
		})
	}
	for _, id := range stale[:min(maxPaths, len(stale))] {
		select {
		case work <- id:
		case <-ctx.Done():
		}
	}
	close(work)
	wg.Wait()
}

func (n *Node) measurePath(ctx context.Context, id mesh.NodeID) {
	for range pingsEach {
		p, err := n.mesh.Ping(ctx, id)
		if err != nil {
			n.log.Debug("path not measured", "node", id, "error", err)
			return
		}
		n.rtts.add(id, p.RTT, time.Now())
	}
}

// servePaths answers a pathsWant.
func (n *Node) servePaths(ctx context.Context, s *mesh.Stream) {
	_ = s.SetDeadline(time.Now().Add(2 * measureTime))
	var want pathsWant
	if err := mesh.ReadMessage(s, 64, &want); err != nil {
		return
	}
	n.measurePaths(ctx)
	have := pathsHave{}
	for _, m := range n.mesh.Members() {
		if rtt, at, ok := n.rtts.get(m.ID); ok && len(have.Paths) < maxPaths {
			have.Paths = append(have.Paths, pathHave{To: m.ID, P50: rtt.P50, P99: rtt.P99, Age: max(0, time.Since(at))})
		}
	}
	if err := mesh.WriteMessage(s, have); err != nil {
		n.log.Debug("paths not sent", "peer", s.Peer(), "error", err)
	}
}

// pathsFrom returns the paths from a node, which may be this one, to the
// others.
func (n *Node) pathsFrom(ctx context.Context, from mesh.NodeID) ([]placement.Path, error) {
	var out []placement.Path
	if from == n.id {
		n.measurePaths(ctx)
		for _, m := range n.mesh.Members() {
			if rtt, at, ok := n.rtts.get(m.ID); ok {
				out = append(out, placement.Path{
					From: placement.NodeID(from), To: placement.NodeID(m.ID), RTT: rtt, Stamp: placement.Stamp{At: at, From: placement.Measured},
				})
			}
		}
		return out, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*measureTime)
	defer cancel()
	s, err := n.mesh.Open(ctx, from, protoPaths, mesh.Urgent)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	stop := context.AfterFunc(ctx, func() { interrupt(s) })
	defer stop()
	var have pathsHave
	if err := mesh.WriteMessage(s, pathsWant{}); err != nil {
		return nil, err
	}
	if err := mesh.ReadMessage(s, maxPathsMessage, &have); err != nil {
		return nil, err
	}
	if err := have.validate(); err != nil {
		return nil, err
	}
	now := time.Now()
	for _, p := range have.Paths {
		out = append(out, placement.Path{
			From: placement.NodeID(from), To: placement.NodeID(p.To), RTT: placement.RTT{P50: p.P50, P99: p.P99},
			Stamp: placement.Stamp{At: now.Add(-p.Age), From: placement.Measured},
		})
	}
	return out, nil
}

// validate refuses what no honest node would have measured.
func (h *pathsHave) validate() error {
	if len(h.Paths) > maxPaths {
		return fmt.Errorf("%d paths, at most %d", len(h.Paths), maxPaths)
	}
	for _, p := range h.Paths {
		if !validID(string(p.To)) || p.P50 <= 0 || p.P50 > time.Minute || p.P99 < 0 || p.P99 > time.Minute || p.Age < 0 || p.Age > time.Hour {
			return fmt.Errorf("path to %.40q of %v, %v old", p.To, p.P50, p.Age)
		}
	}
	return nil
}
