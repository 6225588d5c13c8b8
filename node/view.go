package node

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/pager"
	"meshnode/placement"
	"meshnode/placement/manifest"
)

// The placement view is put together from five sources, each with its age:
//
//	gossiped records     tier, load, free memory, speed, cordon; as old as the record's arrival
//	capability documents labels, interfaces, promises; fetched when the digest changed
//	coordinates          in the records: a first idea of the round trips between any two nodes
//	round trips          measured from here and from the nodes where users enter, when asked for
//	the directory        how many workers of which app are where
//
// A node that gossip calls suspect or dead is in no view: nothing can be moved
// to what cannot be reached.

const (
	// documentsAtOnce bounds the documents fetched side by side, documentsTime
	// the time for all of them: a node whose document does not come is looked at
	// by its record alone.
	documentsAtOnce = 8
	documentsTime   = 3 * time.Second
	// maxEntryNodes bounds the nodes that are asked for their paths.
	maxEntryNodes = 16
)

// documents caches other nodes' capability documents by their digest. Safe for
// concurrent use.
type documents struct {
	mu sync.Mutex
	of map[mesh.NodeID]document
}

type document struct {
	digest [32]byte
	caps   capabilities
	err    error // it is there and cannot be read
}

func (d *documents) get(m mesh.Member) (document, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	have, ok := d.of[m.ID]
	return have, ok && have.digest == m.Record.DocumentDigest
}

func (d *documents) put(id mesh.NodeID, doc document) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.of == nil {
		d.of = make(map[mesh.NodeID]document)
	}
	d.of[id] = doc
}

// keep forgets the documents of all nodes but these.
func (d *documents) keep(members []mesh.Member) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id := range d.of {
		if !slices.ContainsFunc(members, func(m mesh.Member) bool { return m.ID == id }) {
			delete(d.of, id)
		}
	}
}

// fetchDocuments fetches the documents that are not here yet, as many as
// documentsTime allows.
func (n *Node) fetchDocuments(ctx context.Context, members []mesh.Member) {
	ctx, cancel := context.WithTimeout(ctx, documentsTime)
	defer cancel()
	n.documents.keep(members)
	var g errgroup.Group
	g.SetLimit(documentsAtOnce)
	for _, m := range members {
		if _, ok := n.documents.get(m); ok || m.Self || m.Record.DocumentDigest == ([32]byte{}) {
			continue
		}
		g.Go(func() error {
			n.fetchDocument(ctx, m)
			return nil
		})
	}
	_ = g.Wait() // the goroutines return nil
}

// fetchDocument fetches a member's document unless it is here already.
func (n *Node) fetchDocument(ctx context.Context, m mesh.Member) {
	if _, ok := n.documents.get(m); ok {
		return
	}
	b, err := n.mesh.Document(ctx, m.ID)
	if err != nil {
		n.log.Debug("capability document not fetched", "node", m.ID, "error", err)
		return
	}
	doc := document{digest: m.Record.DocumentDigest}
	if doc.caps, doc.err = parseCapabilities(b); doc.err != nil {
		n.log.Warn("capability document of another node is of no use", "node", m.ID, "name", m.Record.Name, "error", doc.err)
	}
	n.documents.put(m.ID, doc)
}

// view puts together what is known of the mesh now, for users who enter it at
// the given nodes. The notes say what is missing in it.
func (n *Node) view(ctx context.Context, entries []mesh.NodeID) (*placement.View, []string, error) {
	return n.viewFor(ctx, entries, nil)
}

// viewFor is view for a node that will look again soon: each of the entries
// watches its paths to the nodes that watch has for it.
func (n *Node) viewFor(ctx context.Context, entries []mesh.NodeID, watch map[mesh.NodeID][]mesh.NodeID) (v *placement.View, notes []string, err error) {
	var members []mesh.Member
	for _, m := range n.mesh.Members() {
		if m.State == mesh.Alive {
			members = append(members, m)
		} else if m.State == mesh.Suspect {
			notes = append(notes, fmt.Sprintf("node %s does not answer and is left out", m.Record.Name))
		}
	}
	// This node's own paths are always of use: it runs the worker, or will be
	// the source of its module.
	if entries = slices.Clone(entries); !slices.Contains(entries, n.id) {
		entries = append(entries, n.id)
	}
	slices.Sort(entries)
	entries = slices.Compact(entries)
	if len(entries) > maxEntryNodes {
		notes = append(notes, fmt.Sprintf("paths were asked of %d of the %d nodes at which users enter", maxEntryNodes, len(entries)))
		entries = entries[:maxEntryNodes]
	}
	var mu sync.Mutex // guards paths, own and notes
	var paths, own []placement.Path
	var wg sync.WaitGroup
	wg.Go(func() { n.fetchDocuments(ctx, members) })
	for _, id := range entries {
		wg.Go(func() {
			ps, err := n.pathsFrom(ctx, id, watch[id])
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				notes = append(notes, fmt.Sprintf("the paths from node %s are not known: %v", n.nameOf(id), err))
			}
			if id == n.id {
				own = ps
			} else {
				paths = append(paths, ps...)
			}
		})
	}
	wg.Wait()
	// Where users enter the way here is watched; what this node has of the same
	// path is a few round trips now and then, however young.
	for _, p := range own {
		if !slices.ContainsFunc(paths, func(q placement.Path) bool { return q.From == p.To && q.To == p.From }) {
			paths = append(paths, p)
		}
	}
	if ctx.Err() != nil {
		return nil, nil, context.Cause(ctx)
	}

	now := time.Now()
	workers := make(map[mesh.NodeID]map[string]int)
	for _, e := range n.dir.list() {
		if ended(e.State) {
			continue
		}
		if workers[e.Home] == nil {
			workers[e.Home] = make(map[string]int)
		}
		workers[e.Home][cmp.Or(e.App, appOf(e.Name))]++
	}
	nodes := make([]placement.Node, len(members))
	for i, m := range members {
		nodes[i] = n.placementNode(m, now)
		nodes[i].Workers = workers[m.ID]
		if m.Self {
			nodes[i].Draining, _ = n.drains.state()
		}
		if _, ok := n.documents.get(m); !ok && !m.Self {
			notes = append(notes, fmt.Sprintf("the capability document of node %s is missing: it counts as one without labels and interfaces", m.Record.Name))
		}
	}
	for i := range paths {
		if p := &paths[i]; p.From == placement.NodeID(n.id) {
			p.Rate, p.Moves = n.shown(mesh.NodeID(p.To))
		}
	}
	slices.Sort(notes)
	v, err = placement.NewView(now, nodes, paths)
	return v, notes, err
}

// A coordinate of the mesh must fit into one of the placement.
var _ [placement.Dimensions - mesh.Dimensions]struct{}

// placementNode is what is known of a member.
func (n *Node) placementNode(m mesh.Member, now time.Time) placement.Node {
	r := &m.Record
	claimed := placement.Stamp{At: m.Heard, From: placement.Claimed}
	var caps capabilities
	if m.Self {
		claimed = placement.Stamp{At: now, From: placement.Observed}
		caps = n.capabilities()
	} else if d, ok := n.documents.get(m); ok {
		caps = d.caps
	}
	p := placement.Node{
		ID: placement.NodeID(m.ID), Name: r.Name, Tier: manifest.Tier(r.Tier.String()), Arch: r.Arch, OS: r.OS, Engine: r.Engine,
		Paging: r.Paging == "userfaultfd", Cores: int(r.Cores), Memory: int64(min(caps.MemoryBytes, 1<<62)),
		Labels: caps.Labels, Interfaces: caps.Interfaces, Accelerators: caps.Accelerators, Cordoned: r.Cordoned, Facts: claimed,
		Speed: float64(r.Speed), SpeedAt: claimed,
		MemoryFree: int64(r.MemoryFree) << 20, Load: float64(r.Load) / 100, LoadAt: claimed,
		Uplink: float64(r.Uplink) * 1024, Downlink: float64(r.Downlink) * 1024, LinkAt: claimed,
	}
	if c := r.Coordinate; c.Known() {
		p.Coordinate = placement.Coordinate{Height: c.Height, Adjustment: c.Adjustment, Error: c.Error}
		copy(p.Coordinate.Vec[:], c.Vec[:]) // what dimensions there are more stay 0
		p.CoordinateAt = claimed
	}
	if m.Self && r.Speed > 0 {
		p.SpeedAt = placement.Stamp{At: caps.SpeedAt, From: placement.Measured}
	}
	if r.Speed == 0 {
		p.SpeedAt = placement.Stamp{}
	}
	if c := caps.Promises; c != nil {
		var kept control.PromiseRecords
		if caps.Kept != nil {
			kept = *caps.Kept
		}
		p.Access = budgetOf(c.AccessMs, kept.Access, claimed)
		p.MoveIn = budgetOf(c.MoveInMs, kept.MoveIn, claimed)
		p.MoveOut = budgetOf(c.MoveOutMs, kept.MoveOut, claimed)
		if seen, ok := n.promises.movesIn(m.ID, p.MoveIn.Promised); ok {
			p.MoveIn = seen // better than its word
		}
	}
	return p
}

// replicaName is what the workers of an app are called: as the app, if there is
// one, else with a number from 1.
func replicaName(app *manifest.App, i int) string {
	if app.Replicas <= 1 {
		return app.Name
	}
	return fmt.Sprintf("%s-%d", app.Name, i+1)
}

var replicaNumber = regexp.MustCompile(`-[1-9][0-9]{0,3}$`)

// appOf is the app that a worker of that name belongs to; see replicaName.
func appOf(worker string) string {
	return strings.TrimSuffix(worker, replicaNumber.FindString(worker))
}

// dirtyPerEvent is how much memory one event is assumed to write, in bytes: the
// writes of a worker are only watched while it moves.
const dirtyPerEvent = 64 << 10

// placementWorker is what is known of a worker at home here.
func (w *worker) placementWorker(ctx context.Context, now time.Time) (placement.Worker, error) {
	used := w.memoryNow()
	var holes []pager.Run
	err := w.do(ctx, func() {
		if f := w.runner.Region().File; f != nil {
			var err error
			if holes, err = pager.ZeroRuns(f, used); err != nil {
				w.node.log.Debug("zero pages not counted", "worker", w.ID, "error", err)
			}
		}
	})
	if err != nil {
		return placement.Worker{}, err
	}
	for _, h := range holes {
		used -= int64(h.Count) * pager.PageSize
	}
	return w.factsOf(max(used, 0), now), nil
}

// factsInEvent is what is known of a worker that is in a long event: all of its
// memory counts as used.
func (w *worker) factsInEvent(now time.Time) placement.Worker { return w.factsOf(w.memoryNow(), now) }

func (w *worker) factsOf(used int64, now time.Time) placement.Worker {
	observed := placement.Stamp{At: now, From: placement.Observed}
	s := w.times.summary(now)
	p := placement.Worker{
		ID: placement.WorkerID(w.ID), Name: w.Name, Owner: placement.NodeID(w.node.id),
		Memory: used, WorkingSet: min(used, int64(s.rate*dirtyPerEvent)), DirtyRate: min(s.rate*dirtyPerEvent, float64(used)),
		Untracked: !w.node.support.Tracking(), MemoryAt: observed, Module: w.ModuleBytes,
	}
	for _, id := range w.holders {
		// The module is where it ran; of its memory the last one has most.
		p.Cached = append(p.Cached, placement.Cached{Node: placement.NodeID(id), Bytes: w.leftAt(id, used, p.DirtyRate, now), Module: true})
	}
	w.place.mu.Lock()
	warmed := w.place.warmed
	w.place.mu.Unlock()
	if warmed != "" && !slices.Contains(w.holders, warmed) {
		p.Cached = append(p.Cached, placement.Cached{Node: placement.NodeID(warmed), Module: true})
	}
	if !s.last.IsZero() {
		p.Event = placement.EventTime{
			P50: s.p50, P99: s.p99, Mean: s.mean, Deviation: s.deviation, Rate: s.rate, Beyond: s.beyond,
			Stamp: placement.Stamp{At: s.last, From: placement.Observed},
		}
	}
	p.Interfaces = w.usesOf()
	for id, u := range s.users {
		p.Users = append(p.Users, placement.User{Entry: placement.NodeID(id), Access: u.access, Rate: u.rate, Stamp: observed})
	}
	for at, rate := range s.peers {
		if at.app != appOf(w.Name) {
			p.Peers = append(p.Peers, placement.Peer{App: at.app, Node: placement.NodeID(at.node), Rate: rate, Stamp: observed})
		}
	}
	return p
}
