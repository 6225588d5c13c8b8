package control

import "time"

// Module is a module that a node keeps, named by its hash.
type Module struct {
	Meta
	Hash  string `json:"hash"` // BLAKE3, hexadecimal
	Bytes int64  `json:"bytes"`
}

// ApplyRequest asks that an app runs as its manifest says.
type ApplyRequest struct {
	// PlanRequest has the manifest, and what is expected of workers that do not
	// run yet: where their users will be and what they will do.
	PlanRequest
	// Module is the hash of the module, which the node that answers has; empty
	// where the manifest names a hash.
	Module string `json:"module,omitempty"`
	// Replace starts workers anew whose node is gone. Should that node still run
	// them, cut off from the rest, there will be two of each.
	Replace bool `json:"replace,omitempty"`
}

// Applied says what applying a manifest came to.
type Applied struct {
	Meta
	App     string          `json:"app"`
	Workers []AppliedWorker `json:"workers"`
	// Failed counts the workers with the action "failed".
	Failed int      `json:"failed"`
	Notes  []string `json:"notes,omitempty"`
}

// What was done with a worker when its app was applied.
const (
	AppliedStarted   = "started"
	AppliedChanged   = "changed"   // it goes by the new manifest from now on
	AppliedUnchanged = "unchanged" // it went by this manifest already
	AppliedSurplus   = "surplus"   // it is more than the manifest has; it runs on
	AppliedFailed    = "failed"    // see Text
)

// AppliedWorker is one worker of an app that was applied.
type AppliedWorker struct {
	Worker   string `json:"worker"` // name
	ID       string `json:"id,omitempty"`
	Action   string `json:"action"`
	Node     string `json:"node,omitempty"` // name of the node it runs on
	Text     string `json:"text"`
	Degraded bool   `json:"degraded,omitempty"` // started where a hard objective is broken: none keeps all
}

// AppList holds the apps that have workers.
type AppList struct {
	Meta
	Apps []App `json:"apps"`
}

// App is one app, as the answering node knows it.
type App struct {
	Meta
	Name string `json:"name"`
	// Workers are those that were started for it; those of other nodes have all
	// their fields only where one app is asked for.
	Workers []Worker `json:"workers"`
	// Manifest is its text in the effective form, as its workers go by it; empty
	// in a list. Where they go by different ones, Notes say so.
	Manifest string   `json:"manifest,omitempty"`
	Notes    []string `json:"notes,omitempty"`
}

// StartRequest asks a node to start a worker of an app. It travels between
// nodes.
type StartRequest struct {
	Worker   string `json:"worker"`   // name
	Manifest string `json:"manifest"` // effective form
	// Module is the module's hash and ModuleBytes its size; Holder is a node that
	// has it.
	Module      string `json:"module"`
	ModuleBytes int64  `json:"moduleBytes"`
	Holder      string `json:"holder"`
}

// AppRequest gives a running worker a manifest, in the effective form.
type AppRequest struct {
	Manifest string `json:"manifest"`
}

// DrainRequest asks a node to let all its workers go.
type DrainRequest struct {
	// DeadlineMs is how long it may take; 0 for five minutes.
	DeadlineMs float64 `json:"deadlineMs,omitempty"`
	// Force moves pinned workers too.
	Force bool `json:"force,omitempty"`
}

// DrainProgress says what is left on a node that drains.
type DrainProgress struct {
	Meta
	Node      string      `json:"node"`
	ElapsedMs float64     `json:"elapsedMs"`
	Workers   int         `json:"workers"` // there were at the beginning
	Left      []DrainLeft `json:"left"`
}

// DrainLeft is a worker that is still there.
type DrainLeft struct {
	Worker string `json:"worker"`
	State  string `json:"state"`
	To     string `json:"to,omitempty"`     // where it is going
	Reason string `json:"reason,omitempty"` // what keeps it
	Hint   string `json:"hint,omitempty"`
}

// How a drain ended.
const (
	DrainDone     = "done"
	DrainDeadline = "deadline" // workers are left
	DrainUndone   = "undone"   // the node was opened again
)

// DrainResult is what a drain came to.
type DrainResult struct {
	Meta
	Node      string      `json:"node"`
	Outcome   string      `json:"outcome"`
	Workers   int         `json:"workers"` // there were at the beginning
	Moved     int         `json:"moved"`
	Left      []DrainLeft `json:"left"`
	ElapsedMs float64     `json:"elapsedMs"`
}

// Kinds of a PlacementEvent.
const (
	EventStart  = "start"  // a worker of an app was started
	EventMove   = "move"   // a move ended
	EventStay   = "stay"   // something keeps a worker that should move
	EventApply  = "apply"  // a running worker was given another manifest
	EventPin    = "pin"    // a worker was pinned
	EventUnpin  = "unpin"  // or may move again
	EventRemove = "remove" // an app was removed
	EventDrain  = "drain"  // of this node, begun or ended
	// EventFallback tells of a worker's guardian and lease, and that it was taken
	// over.
	EventFallback = "fallback"
)

// A Guardian is the node that takes a worker over if its own node falls silent,
// as onDisconnect: fallback of a manifest asks for.
type Guardian struct {
	Node     string `json:"node,omitempty"`
	NodeName string `json:"nodeName,omitempty"`
	State    string `json:"state"` // of the lease, see LeaseHeld
	// LeaseMs is how long the worker runs without an answer of its guardian's,
	// AgeMs how long ago that was asked which it answered last. Only from the
	// worker's own node.
	LeaseMs float64 `json:"leaseMs,omitempty"`
	AgeMs   float64 `json:"ageMs,omitempty"`
	Reason  string  `json:"reason,omitempty"` // why there is none
	// Checkpoint is the state that the guardian would go on from; nil if the
	// manifest asks for none. Only from the worker's own node.
	Checkpoint *Checkpoint `json:"checkpoint,omitempty"`
}

// A Checkpoint says how a worker's state is kept at its guardian.
type Checkpoint struct {
	// EveryMs is how often one is made, as the manifest says or less often, for
	// Reason.
	EveryMs float64 `json:"everyMs"`
	// Count is how many were made for this guardian. The rest is of the last of
	// them; all 0 if there is none.
	Count uint64  `json:"count"`
	AgeMs float64 `json:"ageMs,omitempty"`
	// Bytes is what of the worker is not zero, SentBytes what travelled of it.
	Bytes     uint64 `json:"bytes,omitempty"`
	SentBytes uint64 `json:"sentBytes,omitempty"`
	// PauseMs is how long the worker stood still for it, LongestMs the longest of
	// all of them.
	PauseMs   float64 `json:"pauseMs,omitempty"`
	LongestMs float64 `json:"longestMs,omitempty"`
	// BytesPerSecond is what all of them have sent since the first began.
	BytesPerSecond float64 `json:"bytesPerSecond,omitempty"`
	// Reason says why none is made, or less often.
	Reason string `json:"reason,omitempty"`
}

// States of a lease.
const (
	LeaseNone    = "none"    // nobody takes the worker
	LeaseAsked   = "asked"   // a node was asked to be the guardian
	LeaseHeld    = "held"    // the guardian takes it if it hears nothing
	LeaseLapsed  = "lapsed"  // the guardian does not answer: the worker stands still
	LeaseYielded = "yielded" // the worker's node runs it no more: the guardian takes it now
)

// Outcomes of moves and starts. Other events have words of their own.
const (
	OutcomeDone      = "done"
	OutcomeKept      = "kept"      // it runs on where it was
	OutcomeLost      = "lost"      // it runs nowhere
	OutcomeFailed    = "failed"    // it was not started
	OutcomeUnwatched = "unwatched" // whoever asked has gone; the move goes on
)

// PlacementEvent is something that a node decided about a worker, and what came
// of it. Nodes keep the last thousand or so, in memory only.
type PlacementEvent struct {
	Meta
	Seq   uint64    `json:"seq"` // of this node, from 1
	At    time.Time `json:"at"`
	Node  string    `json:"node"`  // that decided
	Event string    `json:"event"` // one of the kinds above
	// Worker, WorkerID and App are empty where the event is about a node.
	Worker   string `json:"worker,omitempty"`
	WorkerID string `json:"workerId,omitempty"`
	App      string `json:"app,omitempty"`
	// Reason is a word for programs: those of placement decisions, or operator.
	Reason  string `json:"reason"`
	Text    string `json:"text"`
	From    string `json:"from,omitempty"` // node names
	To      string `json:"to,omitempty"`
	Outcome string `json:"outcome,omitempty"`
	Error   string `json:"error,omitempty"`
	// Of moves: what was expected and what was measured.
	Strategy  string       `json:"strategy,omitempty"`
	Predicted *MoveFigures `json:"predicted,omitempty"`
	Measured  *MoveFigures `json:"measured,omitempty"`
}

// MoveFigures are what a move costs.
type MoveFigures struct {
	BlackoutMs float64 `json:"blackoutMs"`
	TotalMs    float64 `json:"totalMs"`
	Bytes      uint64  `json:"bytes"`
}

func (d *Module) stamp()         { d.set("Module") }
func (d *Applied) stamp()        { d.set("Applied") }
func (d *AppList) stamp()        { d.set("AppList") }
func (d *App) stamp()            { d.set("App") }
func (d *DrainProgress) stamp()  { d.set("DrainProgress") }
func (d *DrainResult) stamp()    { d.set("DrainResult") }
func (d *PlacementEvent) stamp() { d.set("PlacementEvent") }
