package control

func (d *Bench) stamp() { d.set("Bench") }

// Bench is the outcome of `meshnode bench`.
type Bench struct {
	Meta
	Version string `json:"version"`
	From    string `json:"from"` // node names
	To      string `json:"to"`
	// RTTMs is the round trip from the node that was asked, which is From
	// unless another one was named, to To.
	RTTMs float64 `json:"rttMs"`
	// PaceMs is the time between two calls of the client.
	PaceMs float64 `json:"paceMs"`
	// KeysBytes is the part of the memory that the client asks for, HotBytes
	// the part that the worker writes by itself, 0 for all of it.
	KeysBytes uint64 `json:"keysBytes"`
	HotBytes  uint64 `json:"hotBytes,omitempty"`
	// NoSampling is that of the [MigrateRequest].
	NoSampling bool       `json:"noSampling,omitempty"`
	Runs       []BenchRun `json:"runs"`
	ElapsedMs  float64    `json:"elapsedMs"`
}

// BenchRun is one move of a fresh worker.
type BenchRun struct {
	MemoryBytes      uint64 `json:"memoryBytes"`      // of the table, all of it written
	DirtyBytesPerSec uint64 `json:"dirtyBytesPerSec"` // asked of the worker
	Strategy         string `json:"strategy"`         // asked for; see Migration.Strategy
	Repeat           int    `json:"repeat"`           // from 1
	// Error says why there is no result.
	Error     string      `json:"error,omitempty"`
	Migration *Migration  `json:"migration,omitempty"`
	Client    BenchClient `json:"client"`
	// WorkerBefore and WorkerAfter are what the worker's own timer went
	// through: before the move, and from its begin to the end of After. Nil
	// where it writes nothing and so has no timer.
	WorkerBefore *BenchPace `json:"workerBefore,omitempty"`
	WorkerAfter  *BenchPace `json:"workerAfter,omitempty"`
	// Timeline are the reports of the move.
	Timeline []Progress `json:"timeline,omitempty"`
}

// BenchClient is what a client went through that calls the worker at a steady
// pace. A call's latency counts from when it was due, so one that could not be
// sent in time does not look quick.
type BenchClient struct {
	Before BenchLatency `json:"before"`
	During BenchLatency `json:"during"` // from the begin of the move to the resume
	After  BenchLatency `json:"after"`  // the first second after the resume
	// SteadyGapMs and GapMs are the longest time between two replies beyond
	// the pace: before the move, and from its begin to the end of After.
	SteadyGapMs float64 `json:"steadyGapMs"`
	GapMs       float64 `json:"gapMs"`
}

// BenchLatency sums up calls.
type BenchLatency struct {
	Calls int     `json:"calls"`
	P50Ms float64 `json:"p50Ms"`
	P99Ms float64 `json:"p99Ms"`
	MaxMs float64 `json:"maxMs"`
}

// BenchPace sums up a worker's timer events as the worker saw them.
type BenchPace struct {
	Ticks int `json:"ticks"`
	// GapMs is the longest time between two ticks on the worker's clock, which
	// stands still while it is handed over, and WallGapMs on the machine's.
	GapMs     float64 `json:"gapMs"`
	WallGapMs float64 `json:"wallGapMs"`
	P50Ms     float64 `json:"p50Ms"`
	P99Ms     float64 `json:"p99Ms"`
	MaxMs     float64 `json:"maxMs"`
}
