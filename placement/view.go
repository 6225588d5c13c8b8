package placement

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"meshnode/placement/manifest"
)

// A View is a snapshot of the mesh to decide from. It computes what several
// decisions share once, and keeps it: not safe for concurrent use.
type View struct {
	now   time.Time
	nodes []Node // by ID
	index map[NodeID]int32
	// Of each node, by its index.
	host  []host
	paths [][]pathRef // to others, by their index
	rows  []*row      // filled as needed

	refs    []Path
	targets map[*manifest.App]*target
	scratch scratch
}

// host is what of a node every prediction needs.
type host struct {
	speed    float64 // against the median of the view
	exponent float64 // of stretch
	cores    int
}

type pathRef struct{ to, path int32 }

// A row is the round trips from one node to all, in seconds, and by how much
// each grows in one.
type row struct {
	rtt   []spread
	trend []float64
	// from says of each how it is known; path its index in refs, or -1.
	from []Source
	path []int32
}

// ErrView is what the errors of [NewView] unwrap to.
var ErrView = errors.New("view is inconsistent")

// maxSpeedRatio bounds how much faster or slower than the median a node can
// count: what is beyond says more about who measured than about the node.
const maxSpeedRatio = 32.0

// sanitize replaces figures that no node can have. They come from other nodes,
// and one of them that is mistaken or lies must not upset the arithmetic for
// all: not a number, above all, compares as neither better nor worse.
func (n *Node) sanitize() {
	n.Load = min(sane(n.Load, 1), 1)
	n.Speed = sane(n.Speed, 0)
	n.Uplink, n.Downlink = sane(n.Uplink, 0), sane(n.Downlink, 0)
	n.MemoryFree = max(n.MemoryFree, 0)
	n.Cores = min(max(n.Cores, 0), 4096)
	c := &n.Coordinate
	sum := c.Height + c.Adjustment + c.Error
	for _, x := range c.Vec {
		sum += math.Abs(x)
	}
	// A round trip of a minute is no coordinate.
	if !(math.Abs(sum) < 60) || c.Height < 0 || c.Error < 0 {
		*c = Coordinate{}
	}
}

// sane returns x if it is a number from 0 up, else otherwise.
func sane(x, otherwise float64) float64 {
	if !(x >= 0) || math.IsInf(x, 1) {
		return otherwise
	}
	return x
}

// NewView returns a view as of now. It keeps copies of the slices, but not of
// what is behind them. Paths to nodes that are not in the view are left out:
// facts arrive one by one. The order of nodes and paths does not matter; of
// several paths between the same two nodes the youngest counts.
func NewView(now time.Time, nodes []Node, paths []Path) (*View, error) {
	v := &View{
		now: now, nodes: slices.Clone(nodes), index: make(map[NodeID]int32, len(nodes)),
		host: make([]host, len(nodes)), paths: make([][]pathRef, len(nodes)), rows: make([]*row, len(nodes)),
		refs: slices.Clone(paths), targets: map[*manifest.App]*target{},
	}
	slices.SortFunc(v.nodes, func(a, b Node) int { return cmp.Compare(a.ID, b.ID) })
	var speeds []float64
	for i := range v.nodes {
		n := &v.nodes[i]
		n.sanitize()
		if _, ok := v.index[n.ID]; ok || n.ID == "" {
			return nil, fmt.Errorf("%w: node %q is in it twice or has no id", ErrView, n.ID)
		}
		v.index[n.ID] = int32(i)
		if n.Speed > 0 {
			speeds = append(speeds, n.Speed)
		}
	}
	median := 1.0
	if len(speeds) > 0 {
		slices.Sort(speeds)
		median = speeds[len(speeds)/2]
	}
	for i := range v.nodes {
		n := &v.nodes[i]
		h := &v.host[i]
		h.cores = max(n.Cores, 1)
		h.exponent = stretchExponent(h.cores)
		h.speed = 1
		if n.Speed > 0 {
			h.speed = min(max(n.Speed/median, 1/maxSpeedRatio), maxSpeedRatio)
		}
	}
	slices.SortStableFunc(v.refs, comparePaths)
	for i := range v.refs {
		p := &v.refs[i]
		p.Rate = sane(p.Rate, 0)
		a, okA := v.index[p.From]
		b, okB := v.index[p.To]
		if !okA || !okB || a == b {
			continue
		}
		v.paths[a] = append(v.paths[a], pathRef{b, int32(i)})
		v.paths[b] = append(v.paths[b], pathRef{a, int32(i)})
	}
	return v, nil
}

// comparePaths orders by age, the oldest first, so that the youngest is the
// last to be written into a row; then by all else, so that order of arrival
// does not matter.
func comparePaths(a, b Path) int {
	return cmp.Or(a.Stamp.At.Compare(b.Stamp.At), cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To),
		cmp.Compare(a.RTT.P50, b.RTT.P50), cmp.Compare(a.RTT.P99, b.RTT.P99), cmp.Compare(a.Rate, b.Rate))
}

// Now is the time of the view.
func (v *View) Now() time.Time { return v.now }

// Nodes returns the nodes, by id. The caller must not change them.
func (v *View) Nodes() []Node { return v.nodes }

// Node returns a node by its id, or nil.
func (v *View) Node(id NodeID) *Node {
	if i, ok := v.index[id]; ok {
		return &v.nodes[i]
	}
	return nil
}

// row returns the round trips from node e.
func (v *View) row(e int32) *row {
	if r := v.rows[e]; r != nil {
		return r
	}
	r := &row{rtt: make([]spread, len(v.nodes)), trend: make([]float64, len(v.nodes)), from: make([]Source, len(v.nodes)), path: make([]int32, len(v.nodes))}
	c := &v.nodes[e].Coordinate
	known := c.known()
	for i := range v.nodes {
		d := &v.nodes[i].Coordinate
		r.path[i] = -1
		if known && d.known() {
			mid := c.distance(d)
			tail := max(mid*max(unknownTail, (c.Error+d.Error)/2), minTail)
			r.rtt[i], r.from[i] = spread{mid, tail}, Estimated
		} else {
			r.rtt[i] = spread{assumedRTT, unknownTail * assumedRTT}
		}
	}
	r.rtt[e], r.from[e] = spread{}, Measured
	for _, ref := range v.paths[e] {
		p := &v.refs[ref.path]
		if p.RTT.P50 > 0 && (r.from[ref.to] != Estimated || p.Stamp.Age(v.now) <= PathFresh) {
			r.rtt[ref.to], r.trend[ref.to], r.from[ref.to] = p.RTT.spread(), p.Trend.Seconds(), Measured
		}
		r.path[ref.to] = ref.path
	}
	v.rows[e] = r
	return r
}

// maxChange is by how much of itself a round trip is believed to change before
// a worker could have moved.
const maxChange = 0.5

// after returns the round trip to n in ahead seconds.
func (r *row) after(n int32, ahead float64) spread {
	s := r.rtt[n]
	s.mid += min(max(r.trend[n]*ahead, -maxChange*s.mid), maxChange*s.mid)
	return s
}

// rtt returns the round trip between two nodes and how it is known.
func (v *View) rtt(a, b int32) (spread, Source) {
	r := v.row(a)
	return r.rtt[b], r.from[b]
}

// rate returns the rate from a to b in bytes per second: what was seen of the
// path, bounded by the uplink of one and the downlink of the other.
func (v *View) rate(a, b int32) (float64, Stamp) {
	rate, stamp := 0.0, Stamp{}
	for _, ref := range v.paths[a] {
		if p := &v.refs[ref.path]; ref.to == b && p.From == v.nodes[a].ID && p.Rate > 0 {
			rate, stamp = p.Rate, p.Stamp // the youngest is last
		}
	}
	if rate > 0 {
		return rate, stamp
	}
	rate = AssumedRate
	if up := v.nodes[a].Uplink; up > 0 {
		rate, stamp = up, Stamp{v.nodes[a].LinkAt.At, Estimated}
	}
	if down := v.nodes[b].Downlink; down > 0 && (stamp.From == Assumed || down < rate) {
		rate, stamp = down, Stamp{v.nodes[b].LinkAt.At, Estimated}
	}
	return rate, stamp
}

// model returns what moves from a to b have taught.
func (v *View) model(a, b int32) MoveModel {
	var m MoveModel
	for _, ref := range v.paths[a] {
		if p := &v.refs[ref.path]; ref.to == b && p.From == v.nodes[a].ID && p.Moves.Moves > 0 {
			m = p.Moves // the youngest is last
		}
	}
	return m
}

// Apply changes the view as if the move in d had been made: room, load and
// count of the app go from one node to the other. A caller that decides for
// many workers from one view applies each decision before the next, so that
// it does not send all of them to the same node.
func (v *View) Apply(app *manifest.App, w *Worker, d *Decision) {
	if d.Action != Move {
		return
	}
	s := newService(w.Event)
	from, hadFrom := v.index[w.Owner]
	to, ok := v.index[d.To]
	if !ok || d.To == w.Owner {
		return
	}
	ownerSpeed := 1.0
	if hadFrom {
		ownerSpeed = v.host[from].speed
		v.shift(from, app, -1, -s.rate*s.mean)
	}
	v.shift(to, app, 1, s.rate*s.mean*ownerSpeed/v.host[to].speed)
}

func (v *View) shift(i int32, app *manifest.App, sign int64, cpu float64) {
	n := &v.nodes[i]
	n.MemoryFree -= sign * int64(app.Limits.Memory)
	n.Load = min(max(n.Load+cpu/float64(v.host[i].cores), 0), 1)
	// The map may be the caller's.
	workers := make(map[string]int, len(n.Workers)+1)
	for k, c := range n.Workers {
		workers[k] = c
	}
	workers[app.Name] = max(0, workers[app.Name]+int(sign))
	n.Workers = workers
	if t := v.targets[app]; t != nil {
		t.countSpread(v)
	}
}
