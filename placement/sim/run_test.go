package sim

import (
	"container/heap"
	"math"
	"math/rand/v2"
	"time"

	"meshnode/placement"
)

// An event is something that happens at a time; ties by kind, then by worker,
// so that a run depends on nothing but its seed.
type event struct {
	at     float64
	kind   kind
	worker int32
	to     int32
}

type kind uint8

const (
	arrive  kind = iota // a worker resumes at its destination
	refresh             // what nodes know is brought up to date
	decide              // a worker's owner decides
	meter               // the truth is looked at
)

type events []event

func (e events) Len() int      { return len(e) }
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e events) Less(i, j int) bool {
	a, b := &e[i], &e[j]
	switch {
	case a.at != b.at:
		return a.at < b.at
	case a.kind != b.kind:
		return a.kind < b.kind
	}
	return a.worker < b.worker
}
func (e *events) Push(x any) { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	old := *e
	x := old[len(old)-1]
	*e = old[:len(old)-1]
	return x
}

const (
	// Decisions are made in ticks, in seconds, so that those of one tick can
	// share a view.
	tick = 0.5
	// decideEvery is how often an owner looks at a worker when nothing is
	// waited for, in seconds.
	decideEvery = 2.0
)

// A run is one policy in one world.
type run struct {
	*world
	policy policy
	r      *rand.Rand
	now    float64
	queue  events

	owner  []int
	moving []bool
	// From when to when a moving worker runs nowhere.
	frozen [][2]float64
	load   []float64 // by workers alone
	// leaving is what of load is about to move elsewhere, coming what is about
	// to be added.
	leaving, coming []float64

	result result
}

// A result is what came out of a run.
type result struct {
	violated  float64 // user-seconds
	blackout  float64 // of them, seconds of blackout and stalls
	moves     int
	refused   int
	userHours float64
}

func (r result) movesPerHour() float64 { return float64(r.moves) / r.userHours }

// A policy says where a worker should be.
type policy interface {
	refresh(r *run)
	decide(r *run, w int) order
	moved(r *run, w, from, to int)
}

// An order is what a policy decides.
type order struct {
	to int // where the worker is to be, which may be where it is
	// urgency is how many violated seconds each second costs that a worker
	// stays where it is, 0 to 1.
	urgency float64
	// again is when to look at the worker again, if that is sooner than usual.
	again float64
}

func simulate(w *world, p policy) result {
	r := &run{
		world: w, policy: p, r: rand.New(rand.NewPCG(w.cfg.seed, 2)),
		owner: make([]int, len(w.users)), moving: make([]bool, len(w.users)), frozen: make([][2]float64, len(w.users)),
		load: make([]float64, len(w.nodes)), leaving: make([]float64, len(w.nodes)), coming: make([]float64, len(w.nodes)),
	}
	for i := range w.users {
		r.owner[i] = w.users[i].start
		r.shift(i, w.users[i].start, 1)
		r.push(event{at: tick * float64(i%(decideEvery/tick)), kind: decide, worker: int32(i)})
	}
	r.push(event{kind: refresh})
	r.push(event{at: 0.5, kind: meter})
	end := float64(w.cfg.seconds)
	for len(r.queue) > 0 {
		e := heap.Pop(&r.queue).(event)
		if e.at >= end {
			break
		}
		r.now = e.at
		i := int(e.worker)
		switch e.kind {
		case refresh:
			p.refresh(r)
			e.at += tick
			r.push(e)
		case decide:
			next := e.at + decideEvery
			if !r.moving[i] {
				o := p.decide(r, i)
				if o.to != r.owner[i] {
					r.move(i, o)
				}
				if o.again > 0 {
					next = min(next, max(tick*math.Ceil(o.again/tick), e.at+tick))
				}
			}
			e.at = next
			r.push(e)
		case arrive:
			from := r.owner[i]
			r.leaving[from] -= r.share(i, from)
			r.coming[e.to] -= r.share(i, int(e.to))
			r.owner[i], r.moving[i] = int(e.to), false
			r.shift(i, from, -1)
			r.shift(i, int(e.to), 1)
			p.moved(r, i, from, int(e.to))
		case meter:
			r.measure()
			e.at++
			r.push(e)
		}
	}
	r.result.userHours = float64(len(w.users)) * end / 3600
	return r.result
}

func (r *run) push(e event) { heap.Push(&r.queue, e) }

func (r *run) second() int { return min(int(r.now), r.cfg.seconds-1) }

func (r *run) shift(w, n int, sign float64) { r.load[n] += sign * r.share(w, n) }

// total is the true load of a node.
func (r *run) total(n int) float64 {
	return min(float64(r.background[n][r.second()])+r.load[n], 0.995)
}

func (r *run) moveInput(w, from, to int) placement.MoveInput {
	u := &r.users[w]
	d := time.Duration(r.delay(from, to, r.second()) * 1e9)
	return placement.MoveInput{
		Memory: u.memory, WorkingSet: u.working, DirtyRate: u.dirty, Rate: linkRate, RTT: placement.RTT{P50: d, P99: d + d/5},
		Paging: true,
	}
}

// move starts a move. It takes as long as predicted, give or take a quarter;
// what users feel of it is blackout and stalls.
func (r *run) move(w int, ord order) {
	in := r.moveInput(w, r.owner[w], ord.to)
	in.Urgency = ord.urgency
	p := placement.PredictMove(in)
	o := p.Chosen()
	f := 0.75 + 0.5*r.r.Float64()
	before, black, stall := f*o.Before.Seconds(), f*o.Blackout.Seconds(), f*o.Stall.Seconds()
	r.moving[w] = true
	r.leaving[r.owner[w]] += r.share(w, r.owner[w])
	r.coming[ord.to] += r.share(w, ord.to)
	r.frozen[w] = [2]float64{r.now + before, r.now + before + black}
	r.push(event{at: r.now + before + black, kind: arrive, worker: int32(w), to: int32(ord.to)})
	r.result.moves++
	r.result.blackout += black + stall
	r.result.violated += black + stall
}

// measure looks at the truth for one second.
func (r *run) measure() {
	t := r.second()
	for i := range r.users {
		n := r.owner[i]
		if r.latency(&r.users[i], n, t, r.total(n)) > objectiveMax {
			r.result.violated++
		}
	}
}

// noisy is a measured value: v, off by a normal error of five percent.
func (r *run) noisy(v float64) float64 { return v * math.Max(0.5, 1+0.05*r.r.NormFloat64()) }
