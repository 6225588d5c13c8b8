package sim

import (
	"math"
	"slices"

	"meshnode/placement"
)

// The oracle knows each user's way, all congestion and all foreign load, in
// advance and exactly. For one worker, with all others fixed, it finds the
// schedule of nodes that costs the fewest violated seconds, by dynamic
// programming over time; it does so for one worker after the other, in several
// passes, each against what the others came to before. Left at that, workers
// would crowd each other out, since each looks at its own violations only; a
// price on nodes that are nearly full makes them leave room. So it is a best
// response of each to all others, not the best for all together (which is not
// feasible to compute), and it chooses in steps of oracleStep seconds among
// candidates: the nodes nearest to wherever the user goes, the cloud, and its
// first node.
type oracle struct {
	never
	schedule [][]int16 // by worker and step
}

const (
	oracleStep   = 5
	oracleAround = 10 // candidates for each entry
	oraclePasses = 4
	// crowding is what a full node costs, in violated seconds per second;
	// it falls to nothing at a load of crowded.
	crowding = 0.3
	crowded  = 0.75
	// oraclePrice keeps it from moves that gain nothing, in violated seconds.
	oraclePrice = 0.05
)

func newOracle(w *world) *oracle {
	steps := (w.cfg.seconds + oracleStep - 1) / oracleStep
	o := &oracle{schedule: make([][]int16, len(w.users))}
	load := make([][]float64, steps) // by workers, for each step and node
	for s := range load {
		load[s] = make([]float64, len(w.nodes))
	}
	add := func(i int, sign float64) {
		for s, n := range o.schedule[i] {
			load[s][n] += sign * w.share(i, int(n))
		}
	}
	for i := range w.users {
		o.schedule[i] = slices.Repeat([]int16{int16(w.users[i].start)}, steps)
		add(i, 1)
	}
	near := map[int][]int{}
	for range oraclePasses {
		for i := range w.users {
			add(i, -1)
			o.schedule[i] = w.best(i, load, near)
			add(i, 1)
		}
	}
	return o
}

func (w *world) best(i int, load [][]float64, near map[int][]int) []int16 {
	u := &w.users[i]
	cands := []int{u.start, w.cfg.edges + i%max(1, w.cfg.clouds)}
	if w.cfg.clouds == 0 {
		cands = cands[:1]
	}
	last := int16(-1)
	for _, e := range u.entry {
		if e == last {
			continue
		}
		last = e
		if near[int(e)] == nil {
			near[int(e)] = w.around(int(e), oracleAround)
		}
		for _, n := range near[int(e)] {
			if !slices.Contains(cands, n) {
				cands = append(cands, n)
			}
		}
	}
	steps := len(load)
	// What a move costs depends little on where to.
	p := placement.PredictMove((&run{world: w}).moveInput(i, u.start, int(u.entry[len(u.entry)/2])))
	chosen := p.Chosen()
	price := chosen.Blackout.Seconds() + chosen.Stall.Seconds() + oraclePrice
	cost := make([]float64, len(cands))
	for k := range cost {
		cost[k] = price
	}
	cost[0] = 0
	from := make([][]int16, steps)
	for s := range steps {
		from[s] = make([]int16, len(cands))
		cheapest := 0
		for k := range cands {
			if cost[k] < cost[cheapest] {
				cheapest = k
			}
		}
		least := cost[cheapest] + price
		for k, n := range cands {
			from[s][k] = int16(k)
			if least < cost[k] && s > 0 {
				cost[k], from[s][k] = least, int16(cheapest)
			}
			foreign := float64(w.background[n][min(s*oracleStep, w.cfg.seconds-1)])
			cost[k] += oracleStep * crowding * max(0, load[s][n]+foreign-crowded) / (1 - crowded)
			l := load[s][n] + w.share(i, n)
			// Two looks in a step suffice: foreign load and congestion last
			// for minutes.
			for _, t := range [...]int{s * oracleStep, s*oracleStep + oracleStep/2} {
				if t = min(t, w.cfg.seconds-1); w.latency(u, n, t, min(l+float64(w.background[n][t]), 0.995)) > objectiveMax {
					cost[k] += oracleStep / 2.0
				}
			}
		}
	}
	k := 0
	for c := range cost {
		if cost[c] < cost[k] {
			k = c
		}
	}
	out := make([]int16, steps)
	for s := steps - 1; s >= 0; s-- {
		out[s] = int16(cands[k])
		k = int(from[s][k])
	}
	return out
}

// decide looks ahead by as long as a move takes to commit, so that the worker
// arrives when it is due.
func (o *oracle) decide(r *run, w int) order {
	ahead := 0.1 + float64(r.users[w].memory)/linkRate
	s := min(int(math.Max(0, r.now+ahead)/oracleStep), len(o.schedule[w])-1)
	return order{to: int(o.schedule[w][s])}
}
