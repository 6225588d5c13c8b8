package mesh

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"meshnode/mesh/meshtest"
)

// A worldMap is a network as Vivaldi's authors describe it: a plane of cables, and
// for each node the link that leads there.
type worldMap struct {
	x, y, access []float64 // seconds
	rng          *rand.Rand
}

func newWorldMap(seed uint64, nodes int) *worldMap {
	w := &worldMap{rng: rand.New(rand.NewPCG(seed, 1))}
	// Half a dozen cities up to 100 ms apart; links of fibre, cable and radio.
	var cities [6][2]float64
	for i := range cities {
		cities[i] = [2]float64{w.rng.Float64() * 0.1, w.rng.Float64() * 0.1}
	}
	for range nodes {
		c := cities[w.rng.IntN(len(cities))]
		w.x = append(w.x, c[0]+0.002*w.rng.NormFloat64())
		w.y = append(w.y, c[1]+0.002*w.rng.NormFloat64())
		w.access = append(w.access, []float64{0.0005, 0.005, 0.02}[w.rng.IntN(3)]*(0.5+w.rng.Float64()))
	}
	return w
}

func (w *worldMap) rtt(a, b int) float64 {
	return math.Hypot(w.x[a]-w.x[b], w.y[a]-w.y[b]) + w.access[a] + w.access[b]
}

// sample is a round trip as it would be measured: with queues, and in one case
// in fifty with a packet that was lost and sent again.
func (w *worldMap) sample(a, b int) time.Duration {
	rtt := w.rtt(a, b) * (1 + 0.1*w.rng.ExpFloat64())
	if w.rng.IntN(50) == 0 {
		rtt += 0.2 + 0.5*w.rng.Float64()
	}
	return time.Duration(rtt * float64(time.Second))
}

// position lets the nodes of w probe each other; liars say what they like.
func (w *worldMap) position(rounds int, lie func(node int) (Coordinate, bool)) []*positioner {
	nodes := make([]*positioner, len(w.x))
	for i := range nodes {
		nodes[i] = newPositioner()
	}
	for range rounds {
		for a := range nodes {
			b := w.rng.IntN(len(nodes) - 1)
			if b >= a {
				b++
			}
			where := nodes[b].place()
			if l, ok := lie(b); ok {
				where = l
			}
			nodes[a].update(NodeID('a'+rune(b)), where, w.sample(a, b))
		}
	}
	return nodes
}

func honest(int) (Coordinate, bool) { return Coordinate{}, false }

// errors lists the errors of the estimates between the nodes from first, in
// order: relative, but to no less than 10 ms.
func (w *worldMap) errors(t *testing.T, nodes []*positioner, first int) []float64 {
	t.Helper()
	var all []float64
	for a := first; a < len(nodes); a++ {
		for b := first; b < a; b++ {
			est, ok := nodes[a].known().RTT(nodes[b].known())
			if !ok {
				t.Fatalf("nodes %d and %d have not found out where they are", a, b)
			}
			all = append(all, math.Abs(est.Seconds()-w.rtt(a, b))/max(w.rtt(a, b), 0.01))
		}
	}
	slices.Sort(all)
	return all
}

// Estimates come close to the truth in spite of queues and lost packets, within
// as many samples as a node takes in ten minutes. The bounds leave room: see
// what is logged.
func TestCoordinatesPredict(t *testing.T) {
	for seed := range uint64(8) {
		w := newWorldMap(seed, 60)
		e := w.errors(t, w.position(600, honest), 0)
		median, p90 := e[len(e)/2], e[len(e)*9/10]
		t.Logf("seed %d: median error %.1f%%, 90th percentile %.1f%%", seed, 100*median, 100*p90)
		if median > 0.2 || p90 > 0.5 {
			t.Errorf("seed %d: median error %.3f, 90th percentile %.3f; at most 0.2 and 0.5", seed, median, p90)
		}
	}
}

// One member in twenty that names far-off places and calls itself sure of them
// makes the estimates among the others worse, but not useless. Without bounds
// on what one sample does, the median error was 350 %.
func TestCoordinatesBearLiars(t *testing.T) {
	const liars = 3
	for seed := range uint64(4) {
		w := newWorldMap(seed, 60)
		e := w.errors(t, w.position(300, func(node int) (Coordinate, bool) {
			far := Coordinate{Height: 1}
			for i := range far.Vec {
				far.Vec[i] = 1.3 * (2*w.rng.Float64() - 1)
			}
			return far, node < liars
		}), liars)
		median := e[len(e)/2]
		t.Logf("seed %d: median error %.1f%%", seed, 100*median)
		if median > 1 {
			t.Errorf("seed %d: median error %.3f, at most 1", seed, median)
		}
	}
}

func TestCoordinateWire(t *testing.T) {
	good := Coordinate{Vec: [Dimensions]float64{0.1, -0.25}, Height: 0.004, Adjustment: -0.001, Error: 0.25}
	w, ok := good.wire()
	if !ok {
		t.Fatalf("%v is refused", good)
	}
	if got, err := w.coordinate(); err != nil || got.away(good) > Dimensions*coordinateUnit {
		t.Errorf("got %v, %v, want %v", got, err, good)
	}
	if tiny := (Coordinate{Height: 1e-9}); !tiny.quantised().Known() {
		t.Error("a node next to another is nowhere")
	}
	for name, spoil := range map[string]func(*Coordinate){
		"not a number":     func(c *Coordinate) { c.Vec[0] = math.NaN() },
		"infinite":         func(c *Coordinate) { c.Vec[1] = math.Inf(-1) },
		"absurd":           func(c *Coordinate) { c.Adjustment = 2 },
		"no height":        func(c *Coordinate) { c.Height = 0 },
		"height below 0":   func(c *Coordinate) { c.Height = -0.1 },
		"height a NaN":     func(c *Coordinate) { c.Height = math.NaN() },
		"error below 0":    func(c *Coordinate) { c.Error = -0.1 },
		"error of 200%":    func(c *Coordinate) { c.Error = 2 },
		"error not number": func(c *Coordinate) { c.Error = math.NaN() },
	} {
		c := good
		spoil(&c)
		if w, ok := c.wire(); ok {
			t.Errorf("%s: sent as %v", name, w)
		}
	}
	for _, w := range []coordinateWire{
		{1}, {0, 0, 0, 0, 1, 0}, {0, 0, 0, 0, 1, 0, 0, 0},
		{0, 0, 0, 0, 0, 0, 0}, {0, 0, 0, 0, -1, 0, 0}, {0, 0, 0, 0, 1, 0, -1}, {0, 0, 0, 0, 1, 0, 151},
		{maxCoordinate + 1, 0, 0, 0, 1, 0, 0}, {0, 0, 0, math.MinInt32, 1, 0, 0}, {0, 0, 0, 0, 1, math.MaxInt32, 0},
	} {
		if c, err := w.coordinate(); err == nil {
			t.Errorf("%v is taken as %v", w, c)
		}
	}
}

// Samples that cannot be distances change nothing.
func TestCoordinateSamples(t *testing.T) {
	p := newPositioner()
	there := newPositioner().place()
	p.update("b", Coordinate{}, 10*time.Millisecond)
	p.update("b", there, 0)
	p.update("b", there, -time.Second)
	p.update("b", there, maxSample+1)
	if got := p.known(); got.Known() {
		t.Errorf("a coordinate out of nothing: %v", got)
	}
	p.update("b", there, 10*time.Millisecond)
	if !p.known().Known() {
		t.Error("no coordinate after a sample")
	}
}

func FuzzAck(f *testing.F) {
	b, err := encode(coordinateWire{100, -200, 0, 65535, 50, -3, 20})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{0x80})
	f.Add([]byte{0xf6})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseAck(b)
		if err != nil {
			return
		}
		w, ok := c.wire()
		if !ok {
			t.Fatalf("%v was taken and cannot be sent", c)
		}
		if again, err := w.coordinate(); err != nil || again != c {
			t.Fatalf("%v sent again is %v, %v", c, again, err)
		}
		out, err := encode(w)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := parseAck(out); err != nil || back != c {
			t.Fatalf("%x came back as %v, %v; it was %v", out, back, err, c)
		}
		if rtt, ok := c.RTT(c); ok && (rtt < 0 || rtt > time.Minute) {
			t.Fatalf("round trip of %v to itself: %v", c, rtt)
		}
	})
}

// In a mesh every node can tell the round trip between any two others, soon
// after the start, and hardly says anything once it has found its place.
func TestCoordinatesInMesh(t *testing.T) {
	simulate(t, func(t *testing.T, nw *meshtest.Network) {
		// Two sites 40 ms apart; the last node of each hangs on a slow link.
		const n = 6
		site := func(i int) int { return i / (n / 2) }
		slow := func(i int) bool { return i%(n/2) == n/2-1 }
		truth := func(a, b int) time.Duration {
			d := 2 * time.Millisecond
			if site(a) != site(b) {
				d += 40 * time.Millisecond
			}
			for _, i := range []int{a, b} {
				if slow(i) {
					d += 15 * time.Millisecond
				}
			}
			return d
		}
		for a := range n {
			for b := range a {
				nw.SetLinkDelay(simIP(a), simIP(b), truth(a, b)/2)
			}
		}
		nodes := simMesh(t, nw, n)
		close := func() bool {
			for _, asked := range nodes {
				for a := range n {
					for b := range a {
						got, ok := asked.Estimate(nodes[a].ID(), nodes[b].ID())
						want := truth(a, b)
						if !ok || (got-want).Abs() > max(want*3/10, 3*time.Millisecond) {
							return false
						}
					}
				}
			}
			return true
		}
		within(t, 10*time.Minute, "every node can tell every round trip within 30 % or 3 ms", close)
		if _, ok := nodes[0].Estimate(nodes[1].ID(), NodeID("nobody")); ok {
			t.Error("a round trip to a node that is not there")
		}
		// From then on records change seldom.
		before := countEvents(nodes[0].testNode, "event=updated")
		time.Sleep(5 * time.Minute)
		got := countEvents(nodes[0].testNode, "event=updated") - before
		t.Logf("%d records in five minutes for coordinates alone", got)
		if got > 5*n {
			t.Errorf("%d records in five minutes for coordinates alone, at most one a minute and node", got)
		}
	})
}

// Nodes that start together do not tell their coordinates together, and all of
// them together do not tell more than gossip carries.
func TestPlacePause(t *testing.T) {
	for _, test := range []struct {
		size     int
		told     bool
		draw     float64
		min, max time.Duration
	}{
		{1, false, 0.99, shiftPause, shiftPause + shiftFirst},
		{1, true, 0.99, shiftPause, shiftPause},
		{200, false, 0, shiftPause, shiftPause},
		{200, false, 0.5, shiftPause + 50*time.Second, shiftPause + 50*time.Second},
		{200, true, 0, shiftPause, shiftPause},
		{200, true, 0.5, 400 * time.Second, 400 * time.Second},
	} {
		if got := placePause(test.size, test.told, test.draw); got < test.min || got > test.max {
			t.Errorf("%d nodes, told %v, draw %v: %v, want %v to %v", test.size, test.told, test.draw, got, test.min, test.max)
		}
	}
	// An hour of 200 nodes that always have something to tell.
	const size, seconds = 200, 3600
	rng := rand.New(rand.NewPCG(1, 2))
	told := make([]int, seconds)
	for range size {
		at, first := time.Duration(0), true
		for {
			if at += placePause(size, !first, rng.Float64()); at >= seconds*time.Second {
				break
			}
			first = false
			told[at/time.Second]++
		}
	}
	most := 0
	for i := range seconds - 10 {
		sum := 0
		for _, n := range told[i : i+10] {
			sum += n
		}
		most = max(most, sum)
	}
	if most > 42 { // gossip carries 4.2 a second, see DESIGN.md
		t.Errorf("%d told in ten seconds", most)
	}
}
