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

// A pathsWant says between whom and the node that is asked a choice is being
// made: these paths are watched from now on, for watchFor. At most maxWatched.
type pathsWant struct {
	Watch []mesh.NodeID `cbor:"1,keyasint,omitempty"`
}

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
	// Trend is by how much P50 grows in a second.
	Trend time.Duration `cbor:"5,keyasint,omitempty"`
}

const (
	// pathFresh is how long measured round trips are used without measuring
	// again.
	pathFresh = 10 * time.Second
	// pathSamples are kept of each path, and pingsEach added whenever one is
	// measured.
	pathSamples = 32
	pingsEach   = 5
	// A path that is watched is pinged every watchEvery, until watchFor after
	// the last time that somebody asked for that; at most maxWatched are.
	watchEvery = trendFor / pathSamples
	watchFor   = userInterval + lookInterval
	maxWatched = 8
	// pingsAtOnce bounds the paths measured side by side, so that they do not
	// measure each other; maxPaths how many are measured at all.
	pingsAtOnce = 4
	maxPaths    = 128
	// measureTime bounds a round of measurements.
	measureTime = 3 * time.Second
	// maxPathsMessage is the largest pathsHave, and maxPathsWant the largest
	// pathsWant, in bytes.
	maxPathsMessage = 16 << 10
	maxPathsWant    = 1 << 10
)

// pathTimes are the round trips this node has measured lately. Safe for
// concurrent use.
type pathTimes struct {
	mu    sync.Mutex
	of    map[mesh.NodeID]*pathTime
	round chan struct{} // holds a value while a round of measurements runs
}

type pathTime struct {
	samples []pathSample // the oldest first
	watched time.Time    // until when it is; somebody pings it as long as this is not zero
}

// A pathEstimate is what the round trips to a node are like, as of At.
type pathEstimate struct {
	placement.RTT
	Trend time.Duration // by how much P50 grows in a second
	At    time.Time
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
	if p.samples = sinceChange(append(p.samples, pathSample{rtt, now})); len(p.samples) > pathSamples {
		p.samples = slices.Delete(p.samples, 0, 1)
	}
}

// get returns what the round trips to a node are like.
func (t *pathTimes) get(id mesh.NodeID) (e pathEstimate, ok bool) {
	t.mu.Lock()
	p := t.of[id]
	if p == nil || len(p.samples) == 0 {
		t.mu.Unlock()
		return pathEstimate{}, false
	}
	samples := slices.Clone(p.samples)
	t.mu.Unlock()
	e.At = samples[len(samples)-1].at
	e.RTT, e.Trend = estimate(samples)
	return e, true
}

// last returns the last round trip to a node, if that was just now.
func (t *pathTimes) last(id mesh.NodeID, now time.Time) (time.Duration, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.of[id]
	if p == nil || len(p.samples) == 0 {
		return 0, false
	}
	s := p.samples[len(p.samples)-1]
	return s.rtt, now.Sub(s.at) <= 4*watchEvery
}

// watch notes that a path is watched until then. It reports whether nobody
// pings it yet: the caller has to. Of more than maxWatched paths the last are
// not watched.
func (t *pathTimes) watch(id mesh.NodeID, until time.Time) (begin bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.of[id]
	if p != nil && !p.watched.IsZero() {
		p.watched = until
		return false
	}
	watched := 0
	for _, o := range t.of {
		if !o.watched.IsZero() {
			watched++
		}
	}
	if watched >= maxWatched {
		return false
	}
	if p == nil {
		p = &pathTime{}
		t.of[id] = p
	}
	p.watched = until
	return true
}

// unwatch reports whether a path need not be watched any longer; then nobody
// does.
func (t *pathTimes) unwatch(id mesh.NodeID, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.of[id]
	if p != nil && now.Before(p.watched) {
		return false
	}
	if p != nil {
		p.watched = time.Time{}
	}
	return true
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
	for id, p := range t.of {
		if !ids[id] && p.watched.IsZero() {
			delete(t.of, id)
		}
	}
}

// watchPaths has the round trips to these nodes measured all the time, for
// watchFor from now on.
func (n *Node) watchPaths(ids []mesh.NodeID) {
	for _, id := range ids {
		if m, ok := n.mesh.Member(id); !ok || m.Self || m.State != mesh.Alive || !n.rtts.watch(id, time.Now().Add(watchFor)) {
			continue
		}
		n.tasks.Go(func() {
			t := time.NewTicker(watchEvery)
			defer t.Stop()
			for now := time.Now(); !n.rtts.unwatch(id, now); {
				ctx, cancel := context.WithTimeout(n.ctx, measureTime)
				if p, err := n.mesh.Ping(ctx, id); err == nil {
					n.rtts.add(id, p.RTT, time.Now())
				}
				cancel()
				select {
				case now = <-t.C:
				case <-n.ctx.Done():
					return
				}
			}
		})
	}
}

// measurePaths has the round trips measured to the members, at most maxPaths of
// them, that were not measured lately. It waits for that, for measureTime at
// most, if one of them is not known or was measured long ago. Only one round
// runs at a time; a second asker waits for it and finds its results.
func (n *Node) measurePaths(ctx context.Context) {
	members := make(map[mesh.NodeID]bool)
	var stale []mesh.NodeID
	wait := false
	for _, m := range n.mesh.Members() {
		if m.Self || m.State != mesh.Alive {
			continue
		}
		members[m.ID] = true
		if e, ok := n.rtts.get(m.ID); !ok || time.Since(e.At) > pathFresh {
			stale = append(stale, m.ID)
			wait = wait || !ok || time.Since(e.At) > 2*pathFresh
		}
	}
	n.rtts.keep(members)
	if len(stale) == 0 {
		return
	}
	stale = stale[:min(maxPaths, len(stale))]
	if wait {
		n.measureRound(ctx, stale)
		return
	}
	select {
	case n.rtts.round <- struct{}{}:
	default:
		return // a round is under way
	}
	<-n.rtts.round
	n.tasks.Go(func() { n.measureRound(n.ctx, stale) })
}

// measureRound measures the round trips to these nodes, but for those that
// another round has measured meanwhile.
func (n *Node) measureRound(ctx context.Context, ids []mesh.NodeID) {
	ctx, cancel := context.WithTimeout(ctx, measureTime)
	defer cancel()
	select {
	case n.rtts.round <- struct{}{}:
	case <-ctx.Done():
		return
	}
	defer func() { <-n.rtts.round }()
	work := make(chan mesh.NodeID)
	var wg sync.WaitGroup
	for range min(pingsAtOnce, len(ids)) {
		wg.Go(func() {
			for id := range work {
				n.measurePath(ctx, id)
			}
		})
	}
	for _, id := range ids {
		if e, ok := n.rtts.get(id); ok && time.Since(e.At) <= pathFresh {
			continue
		}
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
	if err := mesh.ReadMessage(s, maxPathsWant, &want); err != nil {
		return
	}
	if err := want.validate(); err != nil {
		n.log.Debug("paths not told", "peer", s.Peer(), "error", err)
		return
	}
	n.watchPaths(want.Watch)
	n.measurePaths(ctx)
	have := pathsHave{}
	for _, m := range n.mesh.Members() {
		if e, ok := n.rtts.get(m.ID); ok && len(have.Paths) < maxPaths {
			have.Paths = append(have.Paths, pathHave{To: m.ID, P50: e.P50, P99: e.P99, Age: max(0, time.Since(e.At)), Trend: e.Trend})
		}
	}
	if err := mesh.WriteMessage(s, have); err != nil {
		n.log.Debug("paths not sent", "peer", s.Peer(), "error", err)
	}
}

// pathsFrom returns the paths from a node, which may be this one, to the
// others, and has it watch those to the nodes in watch.
func (n *Node) pathsFrom(ctx context.Context, from mesh.NodeID, watch []mesh.NodeID) ([]placement.Path, error) {
	var out []placement.Path
	watch = watch[:min(len(watch), maxWatched)]
	if from == n.id {
		n.watchPaths(watch)
		n.measurePaths(ctx)
		for _, m := range n.mesh.Members() {
			if e, ok := n.rtts.get(m.ID); ok {
				out = append(out, placement.Path{
					From: placement.NodeID(from), To: placement.NodeID(m.ID), RTT: e.RTT, Trend: e.Trend,
					Stamp: placement.Stamp{At: e.At, From: placement.Measured},
				})
			}
		}
		return out, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*measureTime)
	defer cancel()
	var have pathsHave
	err := n.mesh.Request(ctx, from, protoPaths, mesh.Urgent, func(s *mesh.Stream) error {
		if err := mesh.WriteMessage(s, pathsWant{Watch: watch}); err != nil {
			return err
		}
		return mesh.ReadMessage(s, maxPathsMessage, &have)
	})
	if err != nil {
		return nil, err
	}
	if err := have.validate(); err != nil {
		return nil, err
	}
	now := time.Now()
	for _, p := range have.Paths {
		out = append(out, placement.Path{
			From: placement.NodeID(from), To: placement.NodeID(p.To), RTT: placement.RTT{P50: p.P50, P99: p.P99}, Trend: p.Trend,
			Stamp: placement.Stamp{At: now.Add(-p.Age), From: placement.Measured},
		})
	}
	return out, nil
}

// validate refuses what no honest node would ask for.
func (w *pathsWant) validate() error {
	if len(w.Watch) > maxWatched {
		return fmt.Errorf("%d paths to watch, at most %d", len(w.Watch), maxWatched)
	}
	for _, id := range w.Watch {
		if !validID(string(id)) {
			return fmt.Errorf("path to %.40q", id)
		}
	}
	return nil
}

// validate refuses what no honest node would have measured.
func (h *pathsHave) validate() error {
	if len(h.Paths) > maxPaths {
		return fmt.Errorf("%d paths, at most %d", len(h.Paths), maxPaths)
	}
	for _, p := range h.Paths {
		if !validID(string(p.To)) || p.P50 <= 0 || p.P50 > time.Minute || p.P99 < 0 || p.P99 > time.Minute || p.Age < 0 || p.Age > time.Hour || p.Trend < -maxTrend || p.Trend > maxTrend {
			return fmt.Errorf("path to %.40q of %v, %v old, that grows by %v a second", p.To, p.P50, p.Age, p.Trend)
		}
	}
	return nil
}
