package node

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"meshnode/mesh"
	"meshnode/placement"
	"meshnode/placement/manifest"
)

// A strollTrace is the round trip from a user to each of three edges in a row,
// in each quarter of a second of 48. It grows by far in each unit of distance, and
// wanders by up to noise from second to second. Near one edge the next is out of
// bounds; half-way both will do.
func strollTrace(rng *rand.Rand, far, noise time.Duration) [][3]time.Duration {
	steps := make([][3]time.Duration, 192)
	var wander [3]time.Duration
	for i := range steps {
		at := 2 * float64(i) / float64(len(steps)-1)
		for e := range 3 {
			if i%4 == 0 {
				wander[e] = time.Duration(rng.Int64N(int64(noise)))
			}
			steps[i][e] = 6*time.Millisecond + wander[e] + time.Duration(float64(far)*math.Abs(at-float64(e)))
		}
	}
	return steps
}

// stroll has a user walk past the edges and the worker follow, by the same code
// and the same measurements as in a node, in a world where a tick takes 4.3 ms
// beside the round trip and a move 0.6 s. It returns the share of ticks within
// 30 ms, and the moves.
func stroll(tb testing.TB, seed uint64, far, tail time.Duration) (inTime float64, moves int) {
	rng := rand.New(rand.NewPCG(seed, 0))
	trace := strollTrace(rng, far, 4*time.Millisecond)
	app := manifest.New("walk", fmt.Sprintf("%064d", 0))
	app.Objectives.Event = &manifest.Objective{Max: manifest.Duration(30 * time.Millisecond), Quantile: 0.99, Window: manifest.Duration(10 * time.Second), Mode: manifest.Soft, Weight: 1}
	app.Placement.Require.Tier = []manifest.Tier{manifest.Edge}
	app.Migration.ImproveBy = 0.2
	app.Migration.HoldFor, app.Migration.MinDwell = manifest.Duration(time.Second), manifest.Duration(3*time.Second)
	paths := newPathTimes()
	start := time.Unix(1000, 0)
	edge := func(e int) placement.NodeID { return placement.NodeID(fmt.Sprintf("edge-%d", e)) }
	home, going := 0, -1
	var arrive, until time.Time
	var st placement.State
	within, all := 0, 0
	for i, rtt := range trace {
		now := start.Add(time.Duration(i) * watchEvery)
		for e := range 3 {
			paths.add(edgeID(e), rtt[e]+200*time.Microsecond+time.Duration(rng.ExpFloat64()*float64(300*time.Microsecond)), now)
		}
		if going >= 0 && !now.Before(arrive) {
			st = st.Moved(now, edge(home), edge(going), true, &app.Migration)
			home, going = going, -1
			moves++
		}
		for range 15 {
			all++
			if rtt[home]+4300*time.Microsecond+time.Duration(rng.ExpFloat64()*float64(400*time.Microsecond)) <= 30*time.Millisecond {
				within++
			}
		}
		if i%4 != 3 && (until.IsZero() || now.Before(until)) || going >= 0 {
			continue
		}
		stamp := placement.Stamp{At: now, From: placement.Measured}
		nodes := []placement.Node{{ID: "device", Tier: manifest.Device, Cores: 2, MemoryFree: 1 << 30, Facts: stamp}}
		var ps []placement.Path
		for e := range 3 {
			nodes = append(nodes, placement.Node{ID: edge(e), Name: string(edge(e)), Tier: manifest.Edge, Cores: 2, MemoryFree: 1 << 30, Paging: true, Facts: stamp})
			est, _ := paths.get(edgeID(e))
			ps = append(ps, placement.Path{From: "device", To: edge(e), RTT: est.RTT, Trend: est.Trend, Stamp: stamp})
		}
		v, err := placement.NewView(now, nodes, ps)
		if err != nil {
			tb.Fatal(err)
		}
		w := &placement.Worker{
			ID: "w", Owner: edge(home), Memory: 3 << 20, WorkingSet: 2 << 20, DirtyRate: 2 << 20, MemoryAt: stamp,
			Event: placement.EventTime{P50: 1800 * time.Microsecond, P99: 1800*time.Microsecond + tail, Rate: 60, Beyond: 4300 * time.Microsecond, Stamp: stamp},
			Users: []placement.User{{Entry: "device", Access: placement.RTT{P50: 50 * time.Microsecond}, Rate: 60, Stamp: stamp}},
		}
		d, next := v.Decide(app, w, st)
		st, until = next, time.Time{}
		if d.Reason == placement.Holding {
			until = d.Until
		}
		if d.Action == placement.Move {
			fmt.Sscanf(string(d.To), "edge-%d", &going)
			arrive = now.Add(600 * time.Millisecond)
		}
	}
	return float64(within) / float64(all), moves
}

func edgeID(e int) mesh.NodeID { return mesh.NodeID(fmt.Sprintf("edge-%d", e)) }

// TestStroll: the worker follows its user, and no more than that, however much
// its own time varies. Where half-way an event has 5 to 9 ms to spare it is in time
// but for one in a hundred; where that is 0 to 4, not even who knows the way in
// advance is always: with two moves that is 99.9 %.
func TestStroll(t *testing.T) {
	const runs = 20
	for _, r := range []struct {
		far  time.Duration
		tail time.Duration // from a tick's median to its 99th percentile
		want float64       // of the ticks are in time at least
	}{
		{22 * time.Millisecond, 4 * time.Millisecond, 0.99}, {22 * time.Millisecond, 13 * time.Millisecond, 0.99},
		{32 * time.Millisecond, time.Millisecond, 0.985}, {32 * time.Millisecond, 4 * time.Millisecond, 0.985},
		{32 * time.Millisecond, 8 * time.Millisecond, 0.98}, {32 * time.Millisecond, 13 * time.Millisecond, 0.965},
		{32 * time.Millisecond, 90 * time.Millisecond, 0.88},
	} {
		sum, moves := 0.0, 0
		for seed := range uint64(runs) {
			share, n := stroll(t, seed, r.far, r.tail)
			sum += share
			moves += n
		}
		t.Logf("far %v, tail %v: %.2f %% in time, %.2f moves", r.far, r.tail, 100*sum/runs, float64(moves)/runs)
		if sum/runs < r.want || moves > 2*runs+2 {
			t.Errorf("far %v, tail %v: %.2f %% in time, want %.2f; %d moves in %d walks, want two each", r.far, r.tail, 100*sum/runs, 100*r.want, moves, runs)
		}
	}
}
