package node

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/pager"
	"meshnode/placement"
)

const (
	// planSample is how long a worker is watched for a plan.
	planSample = 300 * time.Millisecond
	// planPings are sent to know the round trip to a destination, and none after
	// planPingTime: a forecast has to be there when the move is. The first has
	// pingTimeout.
	planPings    = 8
	planPingTime = 50 * time.Millisecond
	pingTimeout  = 2 * time.Second
	// rateFrom is the least that must have crossed to say what a path carries.
	rateFrom = 1 << 20
	// rateWindow is over how long arriving bytes are counted to tell a rate.
	rateWindow = time.Second
	// pathsMost bounds the nodes of which is kept what moves there have shown.
	pathsMost = 256
)

// paths knows what moves have shown of the way to other nodes. The zero value
// is ready. It is safe for concurrent use.
type paths struct {
	mu   sync.Mutex
	to   map[mesh.NodeID]*pathShown
	up   seenRate
	down seenRate
}

// A pathShown is what moves to one node have shown.
type pathShown struct {
	rate  float64 // bytes a second, the last move counting half
	model placement.MoveModel
	at    time.Time // of the last move
}

// A seenRate is what this node's link has carried of late in one direction, in
// bytes a second; 0 is nothing seen. What a link has carried it can carry, and
// what it did not carry need not have been its fault: so it rises fast and
// falls slowly.
type seenRate float64

func (r *seenRate) observe(rate float64) {
	switch {
	case *r == 0:
		*r = seenRate(rate)
	case rate > float64(*r):
		*r += (seenRate(rate) - *r) / 2
	default:
		*r += (seenRate(rate) - *r) / 8
	}
}

// seen returns the rates that this node's link has shown, up and down, in KiB
// a second.
func (p *paths) seen() (up, down uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	kib := func(r seenRate) uint32 { return uint32(min(float64(r)/1024, math.MaxUint32)) }
	return kib(p.up), kib(p.down)
}

// watch counts what a transfer receives until ctx is done.
func (p *paths) watch(ctx context.Context, received func() uint64) {
	tick := time.NewTicker(rateWindow)
	defer tick.Stop()
	at, had := time.Now(), received()
	look := func() {
		now, have := time.Now(), received()
		p.arrived(have-min(had, have), now.Sub(at))
		at, had = now, have
	}
	for {
		select {
		case <-tick.C:
			look()
		case <-ctx.Done():
			look() // most transfers are over within a window
			return
		}
	}
}

// arrived takes in what came within a time. A little of it says only that there
// was no more to send.
func (p *paths) arrived(bytes uint64, in time.Duration) {
	if bytes < rateFrom || in <= 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down.observe(float64(bytes) / in.Seconds())
}

// known returns the rate that moves to a node have shown, 0 if there were none,
// and what they have taught.
func (p *paths) known(to mesh.NodeID) (rate float64, model placement.MoveModel) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.to[to]; s != nil {
		return s.rate, s.model
	}
	return 0, placement.MoveModel{}
}

// shownLocked returns the entry of a node to which a move has just ended. If
// there are too many, that of the longest unused is forgotten.
func (p *paths) shownLocked(to mesh.NodeID, now time.Time) *pathShown {
	s := p.to[to]
	if s == nil {
		if p.to == nil {
			p.to = make(map[mesh.NodeID]*pathShown)
		}
		if len(p.to) >= pathsMost {
			oldest := to
			for id, o := range p.to {
				if oldest == to || o.at.Before(p.to[oldest].at) {
					oldest = id
				}
			}
			delete(p.to, oldest)
		}
		s = &pathShown{}
		p.to[to] = s
	}
	s.at = now
	return s
}

func (p *paths) learn(to mesh.NodeID, rate float64, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.shownLocked(to, now)
	if s.rate > 0 {
		// Half-way, as ratios go: a move on a busy machine may show a fraction
		// of what the path carries.
		s.rate = math.Sqrt(s.rate * rate)
	} else {
		s.rate = rate
	}
	p.up.observe(rate)
}

func (p *paths) learnModel(to mesh.NodeID, o *placement.MoveOption, got placement.MoveMeasured, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.shownLocked(to, now)
	s.model = s.model.Learn(o, got)
}

// plan says what a move would be like and changes nothing.
func (n *Node) plan(ctx context.Context, w *worker, to mesh.Member) (control.MovePlan, error) {
	if to.ID == n.id {
		return control.MovePlan{}, atHome(w, n)
	}
	f := n.facts(ctx, to.ID)
	if f.RTT.P50 == 0 {
		return control.MovePlan{}, &control.Error{
			Code: control.CodeUnreachable, Message: fmt.Sprintf("node %s does not answer", to.Record.Name),
			Hint: "`meshnode node ls` shows which nodes do",
		}
	}
	p := control.MovePlan{
		Worker: w.Name, WorkerID: w.ID, From: n.name(), To: to.Record.Name,
		MemoryBytes: uint64(w.memoryNow()), RTTMs: control.Millis(f.RTT.P50), RateBytesPerSec: f.Rate,
	}
	if n.support.Tracking() {
		a, err := n.sample(ctx, w, planSample)
		if err != nil {
			return p, err
		}
		p.Activity = &a
		f.DirtyRate, f.WorkingSet, f.Memory = a.DirtyBytesPerSec, int64(a.WrittenBytes), int64(a.ContentBytes)
	} else {
		f.Memory = int64(p.MemoryBytes)
		p.Assumed = append(p.Assumed, "the worker writes nothing: this kernel does not track writes")
	}
	if f.Rate == 0 {
		p.Assumed = append(p.Assumed, fmt.Sprintf("%.0f Mbit/s: no move has shown yet what the way to %s carries", placement.AssumedRate*8/1e6, to.Record.Name))
	}
	f.Blackout = w.blackoutObjective()
	f.Cached = w.leftAt(to.ID, f.Memory, f.DirtyRate, time.Now())
	if f.Cached > 0 {
		p.Assumed = append(p.Assumed, fmt.Sprintf("node %s still holds %d of the %d MiB, from which the worker came, and has compiled the module", to.Record.Name, f.Cached>>20, f.Memory>>20))
	} else {
		p.Assumed = append(p.Assumed, fmt.Sprintf("node %s holds none of the pages and has compiled the module", to.Record.Name))
	}
	// A worker that came to hardly a page twice may have many more to write.
	if f.DirtyRate*planSample.Seconds() < 1.5*float64(f.WorkingSet) {
		f.WorkingSet = 0
	}
	moves := placement.PredictMove(f)
	p.Auto = moves.Auto.String()
	for _, s := range strategies {
		p.Predictions = append(p.Predictions, prediction(&f, moves.Options[s.placement]))
	}
	if m := f.Model; m.Moves > 0 {
		l := &control.Learnt{Moves: m.Moves}
		l.Blackout, l.Setup, l.Bytes = m.Factors()
		p.Learnt = l
	}
	return p, nil
}

func atHome(w *worker, n *Node) error {
	return &control.Error{Code: control.CodeConflict, Message: fmt.Sprintf("worker %s is at node %s already", w.Name, n.name())}
}

// A forecast is the prediction for a move under way, made from what was known
// before any page travelled.
type forecast struct {
	facts chan placement.MoveInput // room for one
	holes int                      // pages never written, at the freeze

	mu     sync.Mutex
	in     placement.MoveInput
	option *placement.MoveOption // nil if nothing was predicted
	seen   bool
}

// startForecast begins to find out what the prediction needs.
func (m *moveOut) startForecast() {
	m.forecast.facts = make(chan placement.MoveInput, 1)
	m.n.tasks.Go(func() { m.forecast.facts <- m.n.facts(m.n.ctx, m.to) })
}

// predict makes the prediction, once, when pages are about to travel or the
// worker is about to stand still. It waits for nothing.
func (m *moveOut) predict() {
	c := &m.forecast
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.seen || m.w == nil {
		return
	}
	c.seen = true
	var f placement.MoveInput
	select {
	case f = <-c.facts:
	default:
		return // the destination was quicker than the ping
	}
	f.Memory = int64(m.memory)
	if m.writes.ready() {
		f.Memory -= int64(pager.CountPages(m.writes.zero)) * pager.PageSize
		if r := m.writes.rounds; r != nil {
			f.DirtyRate = r.Stats().Dirty
		}
	}
	f.Blackout = m.w.blackoutObjective()
	f.Cached = m.w.leftAt(m.to, f.Memory, f.DirtyRate, time.Now())
	o := predicted(f, m.kind)
	c.in, c.option = f, &o
}

// accountLocked adds to a move's result what it was expected to be, and what there is
// to compare it with.
func (m *moveOut) accountLocked(r *control.Migration) {
	m.forecast.mu.Lock()
	if o := m.forecast.option; o != nil {
		p := prediction(&m.forecast.in, *o)
		r.Predicted = &p
	}
	m.forecast.mu.Unlock()
	held := 0
	if m.pages != nil {
		held = int(m.pages.Stats().HeldPages)
	}
	if m.writes != nil && m.writes.ready() && m.writes.rounds != nil {
		st := m.writes.rounds.Stats()
		r.Rounds, r.BytesAhead, r.DirtyBytesPerSec = st.Round, st.Bytes, st.Dirty
		r.WorkingSetPages = uint64(st.WorkingSet)
		held += int(st.Held)
	}
	pages := int(m.memory/pager.PageSize) - m.forecast.holes
	r.MinimumBytes = uint64(max(pages-held, 0)) * pager.PageSize
}

// activity is what the move knows of what the worker does; nil if nothing.
func (m *moveOut) activity() *control.Activity {
	if m.writes == nil || !m.writes.ready() || m.writes.rounds == nil {
		return nil
	}
	st := m.writes.rounds.Stats()
	return &control.Activity{DirtyBytesPerSec: st.Dirty, WorkingSetBytes: uint64(st.WorkingSet) * pager.PageSize}
}
