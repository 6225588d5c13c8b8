package sim

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// A config is what a world is made from; the same config makes the same world.
type config struct {
	seed                   uint64
	edges, clouds, workers int
	seconds                int // simulated
	// radio adds episodes in which a user's own access is slow. Where the
	// worker is makes little difference then, so they are what no policy can
	// avoid.
	radio bool
}

// Delays and sizes of the world.
const (
	spacing      = 1.0     // km between edges
	perKm        = 0.8e-3  // seconds of round trip for each km
	cloudRTT     = 0.019   // seconds from any edge
	objectiveMax = 0.025   // seconds, at p99
	linkRate     = 62.5e6  // bytes per second between nodes: 500 Mbit/s
	maxCores     = 64      // of a cloud node
	z99          = 2.32635 // of the normal distribution
)

// A world is the truth.
type world struct {
	cfg   config
	nodes []place
	rtt   [][]float32 // seconds, without congestion
	// congestion in seconds and load from elsewhere, by node and second.
	congestion, background [][]float32
	users                  []user
	stretch                map[int][]float64 // by cores, in steps of 1/stretchSteps of load
}

type place struct {
	x, y   float64 // km
	cloud  bool
	cores  int
	speed  float64
	memory int64
	height float64 // seconds
}

// A user has one worker.
type user struct {
	entry              []int16   // the nearest edge, by second
	access, accessTail float64   // seconds
	radio              []float32 // seconds on top of access, by second; or nil
	mid, p99           float64   // seconds the handler takes at speed 1
	mean, second       float64   // its moments
	rate               float64   // events a second
	memory, working    int64
	dirty              float64
	start              int // the node where its worker is at first
}

// cpu is how many cores its worker keeps busy at speed 1.
func (u *user) cpu() float64 { return u.rate * u.mean }

// share is how much of node n's cores user u's worker keeps busy there.
func (w *world) share(u, n int) float64 {
	p := &w.nodes[n]
	return w.users[u].cpu() / p.speed / float64(p.cores)
}

const stretchSteps = 400

// erlang returns by how much work grows on c cores at a load, from the exact
// M/M/c queue (Erlang's C formula). The policy's own prediction uses an
// approximation of it.
func erlang(c int, load float64) float64 {
	b := 1.0 // Erlang's B, by its recurrence
	a := load * float64(c)
	for k := 1; k <= c; k++ {
		b = a * b / (float64(k) + a*b)
	}
	wait := b / (1 - load*(1-b))
	return 1 + wait/(float64(c)*(1-load))
}

func newWorld(cfg config) *world {
	r := rand.New(rand.NewPCG(cfg.seed, 1))
	w := &world{cfg: cfg, stretch: map[int][]float64{}}
	side := int(math.Ceil(math.Sqrt(float64(cfg.edges))))
	size := float64(side) * spacing
	for i := range cfg.edges {
		w.nodes = append(w.nodes, place{
			x: (float64(i%side) + 0.2 + 0.6*r.Float64()) * spacing, y: (float64(i/side) + 0.2 + 0.6*r.Float64()) * spacing,
			cores: []int{4, 8, 8, 16}[r.IntN(4)], speed: 0.7 + 0.8*r.Float64(), memory: 64 << 30, height: 0.2e-3 + 0.8e-3*r.Float64(),
		})
	}
	for range cfg.clouds {
		w.nodes = append(w.nodes, place{cloud: true, cores: maxCores, speed: 1.5, memory: 1 << 40, height: 0.5e-3})
	}
	n := len(w.nodes)
	for i := range n {
		w.rtt = append(w.rtt, make([]float32, n))
		for j := range i {
			a, b := &w.nodes[i], &w.nodes[j]
			d := a.height + b.height
			switch {
			case a.cloud && b.cloud:
				d += 2e-3
			case a.cloud || b.cloud:
				d += cloudRTT * (0.9 + 0.3*r.Float64())
			default:
				// Routes are longer than the crow flies, and not evenly so.
				d += 0.5e-3 + perKm*math.Hypot(a.x-b.x, a.y-b.y)*(1+0.3*r.Float64())
			}
			w.rtt[i][j], w.rtt[j][i] = float32(d), float32(d)
		}
	}
	for i := range n {
		// Episodes: congestion every half hour or so, foreign load every
		// quarter of an hour, each for one to five minutes.
		w.congestion = append(w.congestion, episodes(r, cfg.seconds, 0, 1800, func() float64 { return 4e-3 + 10e-3*r.Float64() }))
		base := 0.1 + 0.2*r.Float64()
		if w.nodes[i].cloud {
			base = 0.3
		}
		w.background = append(w.background, episodes(r, cfg.seconds, base, 900, func() float64 { return 0.2 + 0.5*r.Float64() }))
		c := w.nodes[i].cores
		if w.stretch[c] == nil {
			t := make([]float64, stretchSteps)
			for k := range t {
				t[k] = erlang(c, float64(k)/stretchSteps)
			}
			w.stretch[c] = t
		}
	}
	// Half of all trips lead to one of a few centres.
	var centres [][2]float64
	for range max(1, cfg.edges/60) {
		centres = append(centres, [2]float64{size * r.Float64(), size * r.Float64()})
	}
	aim := func() (x, y float64) {
		if r.IntN(2) == 0 {
			return size * r.Float64(), size * r.Float64()
		}
		c := centres[r.IntN(len(centres))]
		in := func(v float64) float64 { return min(max(v+0.7*r.NormFloat64(), 0), size) }
		return in(c[0]), in(c[1])
	}
	for i := range cfg.workers {
		u := user{
			access: 4e-3 + 2e-3*r.Float64(), rate: 20 + 40*r.Float64(),
			mid: 1e-3 + 2e-3*r.Float64(), memory: 16<<20 + r.Int64N(112<<20), dirty: 8e6 * r.Float64(),
		}
		u.accessTail = 0.4 * u.access
		u.p99 = 2 * u.mid
		sigma := math.Log(2) / z99
		u.mean, u.second = u.mid*math.Exp(sigma*sigma/2), u.mid*u.mid*math.Exp(2*sigma*sigma)
		u.working = u.memory / 16
		u.entry = w.trace(r, size, aim, i%2 == 0)
		if cfg.radio {
			u.radio = make([]float32, cfg.seconds)
			for at := 240 * r.ExpFloat64(); at < float64(cfg.seconds); at += 240 * r.ExpFloat64() {
				slow := float32(10e-3 + 30e-3*r.Float64())
				for k := int(at); k < min(cfg.seconds, int(at)+5+r.IntN(20)); k++ {
					u.radio[k] = slow
				}
			}
		}
		w.users = append(w.users, u)
	}
	w.place()
	return w
}

// episodes returns a value for each second: base, and more during episodes
// that begin every mean seconds on average.
func episodes(r *rand.Rand, seconds int, base, mean float64, height func() float64) []float32 {
	out := make([]float32, seconds)
	for i := range out {
		out[i] = float32(base)
	}
	for at := mean * r.ExpFloat64(); at < float64(seconds); at += mean * r.ExpFloat64() {
		h := height()
		for k := int(at); k < min(seconds, int(at)+60+r.IntN(240)); k++ {
			out[k] = float32(base + h)
		}
	}
	return out
}

// trace walks a user over the plane and returns the nearest edge by second:
// to a waypoint in a straight line (random waypoint), or along streets
// (Manhattan), at the pace of a walk, a bicycle or a car, with pauses.
func (w *world) trace(r *rand.Rand, size float64, aim func() (x, y float64), streets bool) []int16 {
	x, y := aim()
	var tx, ty, speed float64
	pause := 0
	next := func() {
		tx, ty = aim()
		speed = []float64{1.4, 5, 12}[r.IntN(3)] * (0.8 + 0.4*r.Float64()) / 1000 // km/s
		pause = r.IntN(120)
	}
	next()
	pause = 0
	out := make([]int16, w.cfg.seconds)
	for t := range out {
		out[t] = int16(w.nearest(x, y))
		if pause > 0 {
			pause--
			continue
		}
		dx, dy := tx-x, ty-y
		if streets && math.Abs(dx) > speed {
			dy = 0
		}
		d := math.Hypot(dx, dy)
		if d <= speed {
			x, y = tx, ty
			next()
			continue
		}
		x, y = x+dx/d*speed, y+dy/d*speed
	}
	return out
}

// nearest returns the edge nearest to a point. Edges stand on a jittered grid,
// so it is in the point's cell or one next to it.
func (w *world) nearest(x, y float64) int {
	side := int(math.Ceil(math.Sqrt(float64(w.cfg.edges))))
	cx, cy := int(x/spacing), int(y/spacing)
	best, bestD := 0, math.Inf(1)
	for gy := cy - 1; gy <= cy+1; gy++ {
		for gx := cx - 1; gx <= cx+1; gx++ {
			i := gy*side + gx
			if gx < 0 || gx >= side || gy < 0 || i >= w.cfg.edges {
				continue
			}
			if d := math.Hypot(w.nodes[i].x-x, w.nodes[i].y-y); d < bestD {
				best, bestD = i, d
			}
		}
	}
	return best
}

// place gives each worker its first node: of the eight nearest to its user the
// one with the lowest latency, one worker after the other.
func (w *world) place() {
	load := make([]float64, len(w.nodes))
	for i := range load {
		load[i] = float64(w.background[i][0])
	}
	for i := range w.users {
		u := &w.users[i]
		best, bestL := -1, math.Inf(1)
		for _, n := range w.around(int(u.entry[0]), 8) {
			more := load[n] + w.share(i, n)
			if l := w.latency(u, n, 0, more); best < 0 || l < bestL {
				best, bestL = n, l
			}
		}
		u.start = best
		load[best] += w.share(i, best)
	}
}

// around returns the k nodes with the shortest round trip from e, e first.
func (w *world) around(e, k int) []int {
	ids := make([]int, len(w.nodes))
	for i := range ids {
		ids[i] = i
	}
	slices.SortFunc(ids, func(a, b int) int {
		switch {
		case w.rtt[e][a] < w.rtt[e][b]:
			return -1
		case w.rtt[e][a] > w.rtt[e][b]:
			return 1
		}
		return a - b
	})
	return ids[:min(k, len(ids))]
}

// delay is the true round trip between two nodes in second t.
func (w *world) delay(a, b, t int) float64 {
	if a == b {
		return 0
	}
	return float64(w.rtt[a][b] + w.congestion[a][t] + w.congestion[b][t])
}

// accessAt is the median round trip between the user and its entry.
func (u *user) accessAt(t int) float64 {
	if u.radio == nil {
		return u.access
	}
	return u.access + float64(u.radio[t])
}

// latency is the 99th percentile of the event latency of u in second t with its
// worker on node n, whose load, the worker included, is given.
func (w *world) latency(u *user, n, t int, load float64) float64 {
	p := &w.nodes[n]
	load = min(max(load-u.cpu()/p.speed/float64(p.cores), 0), 0.995)
	f := w.stretch[p.cores][int(load*stretchSteps)] / p.speed
	rho := u.cpu() * f
	if rho >= 0.99 {
		return 10
	}
	wait := u.rate * u.second * f * f / (2 * (1 - rho))
	waitMid, waitTail := 0.0, 0.0
	if rho > 0.5 {
		waitMid = wait / rho * math.Log(rho/0.5)
	}
	if rho > 0.01 {
		waitTail = wait/rho*math.Log(rho/0.01) - waitMid
	}
	net := w.delay(int(u.entry[t]), n, t)
	serve := (u.p99 - u.mid) * f
	return u.accessAt(t) + net + waitMid + u.mid*f + math.Sqrt(u.accessTail*u.accessTail+0.04*net*net+waitTail*waitTail+serve*serve)
}

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func at(seconds float64) time.Time { return epoch.Add(time.Duration(seconds * 1e9)) }
