package placement

import "time"

// A Worker is what is known of one running worker, or of one to be placed
// (then Owner is empty and the figures are expectations). The caller does not
// change the slices in it while it is being decided on.
type Worker struct {
	ID   WorkerID
	Name string
	// Owner is the node that runs it.
	Owner NodeID
	// Pinned workers move only when an operator moves them.
	Pinned bool

	// Memory is the linear memory that is not zero, WorkingSet what of it is
	// touched within a second or so, in bytes; DirtyRate is how many bytes
	// of distinct pages are written in a second.
	Memory, WorkingSet int64
	DirtyRate          float64
	// Untracked says that its node cannot tell what it writes while it is
	// copied.
	Untracked bool
	MemoryAt  Stamp
	// Module is the size of its module, in bytes.
	Module int64
	Cached []Cached

	Event EventTime
	Users []User
	Peers []Peer
	// Interfaces is what of its host it uses.
	Interfaces []InterfaceUse
	// Observed is what was seen of its objectives lately, to be shown beside
	// the predictions.
	Observed []Observation
}

// EventTime is how long the handler runs for one event on the owner, without
// any waiting, and how many events come in a second from all senders.
type EventTime struct {
	P50, P99 time.Duration
	// Mean and Deviation, the standard deviation, say how busy the worker is and
	// how long its queue gets; without a mean, a lognormal distribution with these
	// quantiles does.
	Mean, Deviation time.Duration
	Rate            float64
	// Beyond is what an event takes beyond a round trip between the owner and
	// the node where its user enters, as that node sees it: the handler, waiting,
	// and what is in no other figure, as large messages on their way and the
	// processes that pass them on. The lower quartile; 0 is not known.
	Beyond time.Duration
	Stamp  Stamp
}

// A User is one client, or several that enter the mesh at the same node and
// are equally far from it.
type User struct {
	// Entry is the node to which the client is attached.
	Entry NodeID
	// Access is the round trip between client and Entry; without a stamp it
	// is unknown, and what Entry promises counts.
	Access RTT
	// Rate is in events per second.
	Rate  float64
	Stamp Stamp
}

// A Peer is a worker of another app that this one talks to.
type Peer struct {
	App   string
	Node  NodeID
	Rate  float64 // messages per second
	Stamp Stamp
}

// An InterfaceUse counts calls to an interface of the host.
type InterfaceUse struct {
	Name     string
	PerEvent float64
	// At is the node that answers when the worker runs elsewhere; empty for
	// the nearest that has the interface.
	At NodeID
}

// Cached says what of a worker's memory and module a node has already.
type Cached struct {
	Node   NodeID
	Bytes  int64
	Module bool
}

// An Observation is the value of an objective as seen over its window.
type Observation struct {
	// Path is the objective's in the manifest, such as objectives.event.
	Path  string
	Value time.Duration
	Stamp Stamp
}
