package sim

import (
	"fmt"
	"time"

	"meshnode/placement"
	"meshnode/placement/manifest"
)

// never leaves every worker where it started.
type never struct{}

func (never) refresh(*run)               {}
func (never) decide(r *run, w int) order { return order{to: r.owner[w]} }
func (never) moved(*run, int, int, int)  {}

// nearest follows the user to the edge it is attached to, at once.
type nearest struct{ never }

func (nearest) decide(r *run, w int) order { return order{to: int(r.users[w].entry[r.second()])} }

// leastLoaded goes to the node with the lowest load in the view, when that is
// lower by a tenth of a node than here.
type leastLoaded struct {
	never
	load []float64
}

func (p *leastLoaded) refresh(r *run) {
	p.load = p.load[:0]
	for n := range r.nodes {
		p.load = append(p.load, r.total(n))
	}
}

func (p *leastLoaded) decide(r *run, w int) order {
	best := r.owner[w]
	for n, l := range p.load {
		if l < p.load[best] {
			best = n
		}
	}
	if p.load[best] > p.load[r.owner[w]]-0.1 {
		return order{to: r.owner[w]}
	}
	p.load[best] += r.share(w, best)
	return order{to: best}
}

// ours decides with package placement, from what nodes would know.
type ours struct {
	app   *manifest.App
	view  *placement.View
	nodes []placement.Node
	ids   []placement.NodeID
	index map[placement.NodeID]int
	paths map[[2]int]placement.Path
	// views counts the views; each node tells its load with every tellEvery-th.
	views   int
	states  []placement.State
	workers []placement.Worker
	books   []*placement.Reservations
	// seen is the load of each node as it measured it last.
	seen []float64
}

func newOurs(w *world) *ours {
	p := &ours{app: manifest.New("walk", fmt.Sprintf("%064d", 0)), index: map[placement.NodeID]int{}, paths: map[[2]int]placement.Path{}}
	second := manifest.Duration(time.Second)
	p.app.Objectives.Event = &manifest.Objective{Max: manifest.Duration(objectiveMax * 1e9), Quantile: 0.99, Window: 10 * second, Mode: manifest.Soft, Weight: 1}
	// What an app would declare whose users notice every second.
	p.app.Migration.HoldFor, p.app.Migration.MinDwell = second, 5*second
	for i := range w.nodes {
		n := &w.nodes[i]
		tier := manifest.Edge
		if n.cloud {
			tier = manifest.Cloud
		}
		c := placement.Coordinate{Height: n.height, Error: 0.1}
		c.Vec[0], c.Vec[1] = n.x*perKm*1.15, n.y*perKm*1.15
		if n.cloud { // far from all edges alike
			c.Vec[2+i%6] = cloudRTT
		}
		id := placement.NodeID(fmt.Sprintf("n%04d", i))
		p.nodes = append(p.nodes, placement.Node{
			ID: id, Name: string(id), Tier: tier, Arch: "amd64", OS: "linux", Paging: true, Cores: n.cores, Memory: n.memory,
			Speed: 1000 * n.speed, Coordinate: c, Uplink: linkRate, Downlink: linkRate,
		})
		p.ids = append(p.ids, id)
		p.index[id] = i
		p.books = append(p.books, placement.NewReservations(8, 10*time.Second))
	}
	p.seen = make([]float64, len(w.nodes))
	p.states = make([]placement.State, len(w.users))
	p.workers = make([]placement.Worker, len(w.users))
	for i := range w.users {
		u := &w.users[i]
		p.workers[i] = placement.Worker{
			ID: placement.WorkerID(fmt.Sprintf("w%05d", i)), Memory: u.memory, WorkingSet: u.working, DirtyRate: u.dirty,
			Users: make([]placement.User, 1),
		}
	}
	return p
}

// tellEvery is how many ticks apart a node tells the others its load.
const tellEvery = 2.0 / tick

func (p *ours) refresh(r *run) {
	now := at(r.now)
	for n := range p.nodes {
		p.seen[n] = r.noisy(r.total(n))
		if (n+p.views)%tellEvery == 0 || p.views == 0 {
			p.nodes[n].Load, p.nodes[n].LoadAt = p.ownLoad(r, n), placement.Stamp{At: now, From: placement.Claimed}
			p.nodes[n].MemoryFree = r.nodes[n].memory - p.books[n].Held(now).Memory
		}
	}
	p.views++
	paths := make([]placement.Path, 0, len(p.paths))
	for k, path := range p.paths {
		if path.Stamp.Age(now) > placement.PathFresh {
			delete(p.paths, k)
			continue
		}
		paths = append(paths, path)
	}
	v, err := placement.NewView(now, p.nodes, paths)
	if err != nil {
		panic(err)
	}
	p.view = v
}

// ownLoad is what a node knows of its own load: what it measures, less the
// workers that are leaving, plus those that are on their way here.
func (p *ours) ownLoad(r *run, n int) float64 {
	return min(max(0, p.seen[n]+r.coming[n]-r.leaving[n]), 1)
}

// measure tries a path; the result is in the next view.
func (p *ours) measure(r *run, a, b int) {
	if a == b {
		return
	}
	d := r.noisy(r.delay(a, b, r.second()))
	p.paths[[2]int{a, b}] = placement.Path{
		From: p.ids[a], To: p.ids[b], RTT: placement.RTT{P50: time.Duration(d * 1e9), P99: time.Duration(1.2 * d * 1e9)},
		Stamp: placement.Stamp{At: at(r.now), From: placement.Measured},
	}
}

func (p *ours) decide(r *run, i int) order {
	u, w := &r.users[i], &p.workers[i]
	owner, entry := r.owner[i], int(u.entry[r.second()])
	stamp := placement.Stamp{At: at(r.now), From: placement.Measured}
	speed := r.nodes[owner].speed
	w.Owner = p.ids[owner]
	w.Event = placement.EventTime{
		P50: time.Duration(r.noisy(u.mid/speed) * 1e9), P99: time.Duration(r.noisy(u.p99/speed) * 1e9), Rate: u.rate, Stamp: stamp,
	}
	access := r.noisy(u.accessAt(r.second()))
	w.Users[0] = placement.User{
		Entry: p.ids[entry], Access: placement.RTT{P50: time.Duration(access * 1e9), P99: time.Duration((access + u.accessTail) * 1e9)}, Rate: u.rate, Stamp: stamp,
	}
	p.measure(r, entry, owner)
	// All nodes share a view here. Each would have one of its own, in which
	// what it knows of itself is new.
	self := &p.view.Nodes()[owner]
	told := self.Load
	self.Load = p.ownLoad(r, owner)
	d, next := p.view.Decide(p.app, w, p.states[i])
	self.Load = told
	p.states[i] = next
	for _, m := range d.Measure {
		p.measure(r, p.index[m.From], p.index[m.To])
	}
	o := order{to: owner, urgency: min(max(0, d.Cost-d.CostThere), 1)}
	if !d.Until.IsZero() {
		o.again = d.Until.Sub(epoch).Seconds()
	}
	if d.Action != placement.Move {
		return o
	}
	for _, id := range append([]placement.NodeID{d.To}, d.Next...) {
		to := p.index[id]
		need := placement.Need{Memory: u.memory, CPU: u.cpu() / r.nodes[to].speed}
		free := placement.Need{Memory: r.nodes[to].memory, CPU: float64(r.nodes[to].cores) * max(0, 0.9-r.total(to))}
		if err := p.books[to].Reserve(at(r.now), w.ID, need, free); err == nil {
			o.to = to
			return o
		}
		r.result.refused++
	}
	return o
}

func (p *ours) moved(r *run, i, from, to int) {
	p.books[to].Release(p.workers[i].ID)
	p.states[i] = p.states[i].Moved(at(r.now), p.ids[from], p.ids[to], true, &p.app.Migration)
}
