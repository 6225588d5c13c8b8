package manifest

// The tags, beside json for the name:
//
//	schema:"required"       the key must be there
//	schema:"default=30s"    its value when the key is not there
//	schema:"enum=a|b"       the only values
//	schema:"min=1;max=64"   bounds, in the field's own notation
//	schema:"len=256"        most characters of a string, or most entries of a list or map
//	schema:"pattern=..."    what a string must match; of a map, its keys
//	doc:"..."               what the field is for; ends up in the JSON Schema
//
// Options are separated by semicolons. A field of struct type without pointer
// is always there, filled with its defaults.

// APIVersion and Kind open every manifest.
const (
	APIVersion = "meshnode/v1alpha1"
	Kind       = "App"
)

const (
	namePattern  = `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`
	labelPattern = `[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?`
)

// An App is what one manifest says, with every default filled in. Treat one
// that others may hold as read-only.
type App struct {
	APIVersion string            `json:"apiVersion" schema:"required;enum=meshnode/v1alpha1" doc:"Version of this format."`
	Kind       string            `json:"kind" schema:"required;enum=App" doc:"What the document describes."`
	Name       string            `json:"name" schema:"required;len=63;pattern=NAME" doc:"Name of the app: lower-case letters, digits and inner hyphens."`
	Module     Module            `json:"module" schema:"required" doc:"The WebAssembly module that the app's workers run."`
	Args       []string          `json:"args,omitempty" schema:"len=64" doc:"Arguments of the module, without its name."`
	Env        map[string]string `json:"env,omitempty" schema:"len=64;pattern=[A-Za-z_][A-Za-z0-9_]{0,127}" doc:"Environment variables of the module. Values are strings: quote numbers."`
	Suspend    Suspend           `json:"suspend" schema:"default=auto;enum=auto|event|command" doc:"How a worker is stopped for a move: event, between two events; command, anywhere in its code, which is rewritten for that; auto, as the module's exports suggest."`
	Replicas   int               `json:"replicas" schema:"default=1;min=1;max=1000" doc:"How many workers of the app there are."`

	Limits       Limits       `json:"limits" doc:"The most that a worker may take."`
	Objectives   Objectives   `json:"objectives" doc:"The latencies to keep."`
	Placement    Placement    `json:"placement" doc:"Where workers may and should run."`
	Migration    Migration    `json:"migration" doc:"When a worker moves by itself."`
	OnDisconnect OnDisconnect `json:"onDisconnect" doc:"What a node does with a worker when it has lost every other node."`
	Fallback     []Fallback   `json:"fallback,omitempty" schema:"len=16" doc:"Who takes a worker whose node drains or is gone and for which no ranked place is left, first entry first, whatever tiers and nodes placement requires."`
}

// A Module is named by a file or by the hash of its bytes; exactly one.
type Module struct {
	Path string `json:"path,omitempty" schema:"len=4096;pattern=.+" doc:"Path of the module's file, relative to the manifest."`
	Hash string `json:"hash,omitempty" schema:"pattern=[0-9a-f]{64}" doc:"BLAKE3 hash of a module that the mesh already has, in hexadecimal."`
}

// Suspend says where a worker can be stopped.
type Suspend string

// The ways to suspend.
const (
	SuspendAuto    Suspend = "auto"
	SuspendEvent   Suspend = "event"
	SuspendCommand Suspend = "command"
)

// Limits bound one worker.
type Limits struct {
	Memory Size    `json:"memory" schema:"default=256MiB;min=64KiB;max=4GiB" doc:"Largest linear memory. A node must have as much free to take the worker."`
	CPU    float64 `json:"cpu" schema:"default=1;min=0.01;max=64" doc:"Largest share of CPU time, in cores."`
	Queue  Queue   `json:"queue" doc:"Messages that wait for the worker; when it is full, senders wait."`
}

// A Queue is bounded in both counts.
type Queue struct {
	Messages int  `json:"messages" schema:"default=1024;min=1;max=65536" doc:"Most messages."`
	Bytes    Size `json:"bytes" schema:"default=8MiB;min=64KiB;max=256MiB" doc:"Most bytes in them."`
}

// Objectives are the latencies to keep; all are optional.
type Objectives struct {
	Blackout *Objective     `json:"blackout,omitempty" doc:"How long a move may stop the worker. The quantile is over moves."`
	Event    *Objective     `json:"event,omitempty" doc:"Time from a client's message to the reply, as the client sees it. The quantile is over events."`
	Converge *Objective     `json:"converge,omitempty" doc:"Time from an objective being broken to the worker running with all its memory where it is kept. The quantile is over such episodes."`
	RTT      []RTTObjective `json:"rtt,omitempty" schema:"len=16" doc:"Network round trips from the worker to others. The quantile is over round trips."`
}

// An Objective is a promise of the form: over any window, this quantile stays
// at or below the maximum.
type Objective struct {
	Max      Duration `json:"max" schema:"required;min=100us;max=24h" doc:"The value to stay at or below."`
	Quantile Quantile `json:"quantile" schema:"required" doc:"The share of cases that must, as a percentile: p50, p99, p99.9."`
	Window   Duration `json:"window" schema:"required;min=1s;max=720h" doc:"The time over which the quantile is taken."`
	Mode     Mode     `json:"mode" schema:"default=soft;enum=hard|soft" doc:"hard: no node that is predicted to break it is chosen; soft: breaking it costs its weight."`
	Weight   float64  `json:"weight,omitempty" schema:"min=0.01;max=100" doc:"What breaking a soft objective costs, against 1 for others. Default 1."`
}

// Mode tells objectives that exclude nodes from those that cost.
type Mode string

// The modes of an objective.
const (
	Hard Mode = "hard"
	Soft Mode = "soft"
)

// An RTTObjective is about the network between the worker and To.
type RTTObjective struct {
	To string `json:"to" schema:"required;pattern=users|app/NAME" doc:"The other end: users, or app/ and an app's name."`
	Objective
}

// Placement says where workers may and should run.
type Placement struct {
	Require    Predicate    `json:"require" doc:"What a node must have. All terms must hold."`
	Prefer     []Preference `json:"prefer,omitempty" schema:"len=32" doc:"What a node should have."`
	Interfaces []Interface  `json:"interfaces,omitempty" schema:"len=16" doc:"Host interfaces that the worker may read; no others."`
	Spread     []Spread     `json:"spread,omitempty" schema:"len=4" doc:"How the app's workers are kept apart."`
}

// A Predicate holds for a node when all of its terms do; one without terms
// always holds.
type Predicate struct {
	Tier         []Tier   `json:"tier,omitempty" schema:"enum=device|edge|cloud" doc:"Any of these tiers."`
	Arch         []string `json:"arch,omitempty" schema:"len=16;pattern=[a-z0-9]{1,16}" doc:"Any of these architectures, in Go's names: amd64, arm64."`
	Nodes        []string `json:"nodes,omitempty" schema:"len=64" doc:"Any of these nodes, by name or id."`
	Cores        int      `json:"cores,omitempty" schema:"min=1;max=4096" doc:"At least as many cores."`
	Memory       Size     `json:"memory,omitempty" schema:"min=1MiB;max=1024TiB" doc:"At least as much memory in all."`
	Accelerators []string `json:"accelerators,omitempty" schema:"len=16;pattern=LABEL" doc:"All of these accelerators."`
	Labels       []Label  `json:"labels,omitempty" schema:"len=32" doc:"All of these terms over labels."`
}

// A Tier is a place in the continuum, as in a node's certificate.
type Tier string

// The tiers.
const (
	Device Tier = "device"
	Edge   Tier = "edge"
	Cloud  Tier = "cloud"
)

// A Label is a term over one of a node's labels: it has one of the values In,
// none of NotIn, or is there at all. Exactly one of the three.
type Label struct {
	Key    string   `json:"key" schema:"required;pattern=LABEL" doc:"The label's key."`
	In     []string `json:"in,omitempty" schema:"len=64" doc:"The label must be there with one of these values."`
	NotIn  []string `json:"notIn,omitempty" schema:"len=64" doc:"The label must have none of these values; a node without it fits."`
	Exists bool     `json:"exists,omitempty" doc:"The label must be there, with any value."`
}

// A Preference costs its weight on nodes where its predicate does not hold.
type Preference struct {
	Weight float64 `json:"weight" schema:"default=1;min=0.01;max=100" doc:"What a node costs that does not fit, in hundredths of a broken objective of weight 1."`
	Predicate
}

// An Interface is something of the host that the worker reads.
type Interface struct {
	Name   string `json:"name" schema:"required;pattern=LABEL" doc:"Its name, such as camera or location."`
	Access Access `json:"access" schema:"default=pin;enum=pin|proxy" doc:"pin: the worker runs only where the interface is; proxy: from elsewhere its reads travel to the node where it was started, or, if that lacks the interface, to the nearest that answered its first read."`
}

// Access says whether an interface can be used over the network.
type Access string

// The ways to reach an interface.
const (
	Pin   Access = "pin"
	Proxy Access = "proxy"
)

// Spread keeps at most AtMost workers of the app on the nodes that share a
// value of Over.
type Spread struct {
	Over   string `json:"over" schema:"required;pattern=node|tier|label/LABEL" doc:"What is counted by: node, tier, or label/ and a key."`
	AtMost int    `json:"atMost" schema:"default=1;min=1;max=1000" doc:"Most workers of the app for each value."`
}

// Migration says when a worker moves by itself.
type Migration struct {
	Mode       MigrationMode `json:"mode" schema:"default=auto;enum=auto|manual|never" doc:"auto: whenever it pays; manual: only when an operator says so, or its node drains; never: not even then."`
	ImproveBy  Percent       `json:"improveBy" schema:"default=20%;max=95%" doc:"How much less the cost must be elsewhere: the offset of a cellular handover."`
	HoldFor    Duration      `json:"holdFor" schema:"default=3s;max=1h" doc:"How long that must last without a break: the time-to-trigger of a cellular handover."`
	MinDwell   Duration      `json:"minDwell" schema:"default=30s;max=24h" doc:"How long a worker stays after a move. Doubles when it bounces back to where it came from, and recovers."`
	MaxPerHour int           `json:"maxPerHour" schema:"default=30;min=1;max=120" doc:"Most moves in any hour that the worker decides on by itself."`
}

// MigrationMode says who may move a worker.
type MigrationMode string

// The modes of migration.
const (
	Auto   MigrationMode = "auto"
	Manual MigrationMode = "manual"
	Never  MigrationMode = "never"
)

// OnDisconnect says what becomes of a worker on a node that has lost every
// other node, or its guardian.
type OnDisconnect struct {
	Action DisconnectAction `json:"action" schema:"default=run;enum=run|pause|fallback" doc:"run: it goes on, and nobody else takes it; pause: it freezes until the node is back, and nobody else takes it; fallback: the first of the fallback list that fits is its guardian; when the two nodes do not reach each other it freezes, and the guardian takes it over: from its last checkpoint, or anew, without its state."`
	After  Duration         `json:"after" schema:"default=10s;min=1s;max=24h" doc:"How long the node must have been alone; with fallback, have had no answer of the guardian: its lease, which the guardian waits out, and a twentieth and a second longer."`
	// Checkpoint is 0 if none are made.
	Checkpoint Duration `json:"checkpoint,omitempty" schema:"min=100ms;max=1h" doc:"With fallback: how often the guardian is given the worker's state, to go on from there; what it did since then is lost. Without it the guardian starts it anew. Workers with directories have no guardian, and those that hold more than a quarter of their node's free memory get no checkpoints: worker show says so."`
}

// DisconnectAction says what happens to a worker that is cut off.
type DisconnectAction string

// The actions of a disconnected node.
const (
	DisconnectRun      DisconnectAction = "run"
	DisconnectPause    DisconnectAction = "pause"
	DisconnectFallback DisconnectAction = "fallback"
)

// A Fallback is a node, or the best node of a tier; exactly one.
type Fallback struct {
	Node string `json:"node,omitempty" schema:"len=64;pattern=.+" doc:"A node, by name or id."`
	Tier Tier   `json:"tier,omitempty" schema:"enum=device|edge|cloud" doc:"The best node of a tier."`
}
