package node

import (
	"context"
	"maps"
	"math"
	"sync"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/placement"
)

// Three latencies are promised by a node's operator, and each is checked by
// whoever can see it:
//
//	access    the round trip to attached clients: by the node itself, which alone
//	          can measure it. Others have its word.
//	move out  the blackout of workers that leave: by the node itself, as the
//	          source of the move, which alone has both ends of it on its clock.
//	move in   the blackout of workers that come: by the source of each move. It
//	          believes what it has seen itself, and tells the destination, whose
//	          word goes to those that have not moved anything there.
//
// A node's own word travels in its capability document. A node that lies about
// itself is found out for moves in, by those that move workers there.

// promises is the record of how this node's promises and those of others were
// kept. Safe for concurrent use.
type promises struct {
	mu     sync.Mutex
	own    records
	others map[mesh.NodeID]placement.Budget // moves in, as seen from here
	told   control.PromiseRecords           // in the capability document
}

// records are budgets of what one node promises.
type records struct{ access, moveIn, moveOut placement.Budget }

func newPromises(access, moveIn, moveOut time.Duration) *promises {
	return &promises{
		own: records{
			access: placement.Budget{Promised: access}, moveIn: placement.Budget{Promised: moveIn}, moveOut: placement.Budget{Promised: moveOut},
		},
		others: make(map[mesh.NodeID]placement.Budget),
	}
}

// observe counts a case against a budget; without a promise there is nothing to
// keep.
func observe(b *placement.Budget, v time.Duration, now time.Time) {
	if b.Promised > 0 {
		*b = b.Observe(min(v, maxPromise), placement.Stamp{At: now, From: placement.Observed})
	}
}

// access counts a round trip to a client attached here.
func (p *promises) access(rtt time.Duration, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	observe(&p.own.access, rtt, now)
}

// movedIn counts the blackout of a worker that came here, as its source says.
func (p *promises) movedIn(blackout time.Duration, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	observe(&p.own.moveIn, blackout, now)
}

// movedOut counts the blackout of a worker that left here.
func (p *promises) movedOut(blackout time.Duration, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	observe(&p.own.moveOut, blackout, now)
}

// movedTo counts the blackout of a worker that left for to, which promises
// promised for moves in; 0 is nothing.
func (p *promises) movedTo(to mesh.NodeID, promised, blackout time.Duration, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.others[to]
	if b.Promised != promised {
		b = placement.Budget{Promised: promised} // another promise, another record
	}
	if observe(&b, blackout, now); b.Promised > 0 {
		p.others[to] = b
	} else {
		delete(p.others, to)
	}
}

// movesIn returns what was seen from here of a node that promises promised.
func (p *promises) movesIn(id mesh.NodeID, promised time.Duration) (placement.Budget, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b, ok := p.others[id]
	return b, ok && b.Promised == promised
}

// keep forgets all nodes but these.
func (p *promises) keep(members []mesh.Member) {
	there := make(map[mesh.NodeID]bool, len(members))
	for _, m := range members {
		there[m.ID] = true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.others, func(id mesh.NodeID, _ placement.Budget) bool { return !there[id] })
}

// record returns this node's own promises and how they were kept.
func (p *promises) record() (control.Promises, control.PromiseRecords) {
	p.mu.Lock()
	defer p.mu.Unlock()
	o := &p.own
	promised := control.Promises{
		AccessMs: control.Millis(o.access.Promised), MoveInMs: control.Millis(o.moveIn.Promised), MoveOutMs: control.Millis(o.moveOut.Promised),
	}
	return promised, o.record()
}

// telling notes that the record is about to be told as it is now.
func (p *promises) telling() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.told = p.own.record()
}

// news reports whether what has been told is no longer near enough: a document
// that changed with every case would be fetched by every node each time.
func (p *promises) news() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.own.record()
	for _, x := range [...][2]*control.PromiseRecord{{now.Access, p.told.Access}, {now.MoveIn, p.told.MoveIn}, {now.MoveOut, p.told.MoveOut}} {
		if (x[0] == nil) != (x[1] == nil) {
			return true
		}
		if x[0] != nil && (math.Abs(x[0].Credibility-x[1].Credibility) >= 0.05 || math.Abs(x[0].BrokenMs-x[1].BrokenMs) > x[1].BrokenMs/4) {
			return true
		}
	}
	return false
}

func (r *records) record() control.PromiseRecords {
	return control.PromiseRecords{Access: recordOf(r.access), MoveIn: recordOf(r.moveIn), MoveOut: recordOf(r.moveOut)}
}

// recordOf describes a budget, nil if nothing was observed.
func recordOf(b placement.Budget) *control.PromiseRecord {
	if b.Stamp == (placement.Stamp{}) {
		return nil
	}
	return &control.PromiseRecord{
		Kept: round2(b.Kept), Broken: round2(b.Broken), BrokenMs: control.Millis(b.BrokenMean), Credibility: round2(b.Credibility()),
	}
}

func round2(x float64) float64 { return math.Round(x*100) / 100 }

// budgetOf is what another node says of a promise of its.
func budgetOf(promisedMs float64, r *control.PromiseRecord, s placement.Stamp) placement.Budget {
	b := placement.Budget{Promised: duration(promisedMs), Stamp: s}
	if r != nil {
		b.Kept, b.Broken, b.BrokenMean = r.Kept, r.Broken, duration(r.BrokenMs)
	}
	return b
}

func duration(ms float64) time.Duration { return time.Duration(ms * float64(time.Millisecond)) }

// judgeMove holds the blackout of a worker that has left for a node against
// what both have promised.
func (n *Node) judgeMove(to mesh.NodeID, blackout time.Duration) {
	now := time.Now()
	n.promises.movedOut(blackout, now)
	m, ok := n.mesh.Member(to)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(n.ctx, documentsTime)
	defer cancel()
	n.fetchDocument(ctx, m)
	d, ok := n.documents.get(m)
	if !ok {
		return // what it promises is not known
	}
	promised := time.Duration(0)
	if d.caps.Promises != nil {
		promised = duration(d.caps.Promises.MoveInMs)
	}
	n.promises.movedTo(to, promised, blackout, now)
}

// promisesInterval is how often it is looked whether the others should hear how
// promises are kept.
const promisesInterval = 5 * time.Second

// keepPromises tells the others how this node's promises are kept.
func (n *Node) keepPromises(ctx context.Context) {
	t := time.NewTicker(promisesInterval)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		n.promises.keep(n.mesh.Members())
		if n.promises.news() {
			n.advertise()
		}
	}
}
