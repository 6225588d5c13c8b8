package node

import (
	"errors"
	"math"
	goruntime "runtime"
	"time"

	"meshnode/node/control"
	"meshnode/placement"
)

const (
	// reserveFor is how long room is kept for a worker that was accepted and
	// does not come; reserveMost how many can be on their way at a time.
	reserveFor  = 2 * time.Minute
	reserveMost = maxArrivals
	// loadSettles is how long it takes until the load that a node tells of has
	// what a worker that has just come adds to it.
	loadSettles = 5 * time.Second
	// fullLoad is the load that a node fills up to; the rest is for bursts.
	fullLoad = 0.9
)

// reserveRoom claims room for a worker that is about to come by an owner's own
// decision. Owners decide from facts that are seconds old: without this, all
// that leave one node at the same time would arrive at the same other one.
func (n *Node) reserveRoom(id string, a *appState, memory uint64) error {
	speed := n.said.speedNow().Speed
	need := placement.Need{Memory: int64(memory), CPU: a.CPU}
	if speed > 0 && a.Speed > 0 {
		need.CPU *= float64(a.Speed) / float64(speed)
	}
	free := n.memoryFree()
	if total, _ := n.memory(); total == 0 {
		free = math.MaxInt64 // not known: no reason to refuse
	}
	cores := float64(goruntime.NumCPU())
	n.mu.Lock()
	defer n.mu.Unlock()
	err := n.book.Reserve(time.Now(), placement.WorkerID(id), need, placement.Need{
		Memory: int64(min(free, math.MaxInt64-n.reserved) + n.reserved), CPU: max(0, fullLoad*cores-n.load*cores),
	})
	if err == nil {
		n.booked[id] = need.CPU
		return nil
	}
	hint := "another node may have room"
	if errors.Is(err, placement.ErrTooMany) {
		hint = "try again in a moment"
	}
	return &control.Error{Code: control.CodeConflict, Message: err.Error(), Hint: hint}
}

// releaseRoom gives back what was claimed for a worker: at once if it does not
// come, else when the node's load has it.
func (n *Node) releaseRoom(id string, came bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	cpu, ok := n.booked[id]
	if !ok {
		return
	}
	delete(n.booked, id)
	n.book.Release(placement.WorkerID(id))
	if !came || cpu == 0 {
		return
	}
	all := placement.Need{Memory: math.MaxInt64, CPU: math.MaxFloat64}
	if n.book.Reserve(time.Now(), placement.WorkerID(id), placement.Need{CPU: cpu}, all) == nil {
		time.AfterFunc(loadSettles, func() {
			n.mu.Lock()
			defer n.mu.Unlock()
			if _, again := n.booked[id]; !again {
				n.book.Release(placement.WorkerID(id))
			}
		})
	}
}

// bookedLoad is the share of this node's cores that is promised to workers on
// their way.
func (n *Node) bookedLoad() float64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.book.Held(time.Now()).CPU / float64(goruntime.NumCPU())
}
