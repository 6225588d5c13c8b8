package control

import (
	"encoding/json"
	"io"
	"slices"
	"time"
)

// APIVersion is the version that every document of this package carries. It
// changes only when a field changes its meaning or goes away; fields may be
// added under the same version.
const APIVersion = "meshnode/v1alpha1"

// Limits of the API. A request beyond one of them is refused with
// CodeTooLarge and a message that names both the size and the limit.
const (
	// MaxModuleBytes is the largest module RunWorker takes.
	MaxModuleBytes = 64 << 20
	// MaxPayloadBytes is the largest payload of a message to or reply from a
	// worker.
	MaxPayloadBytes = 1 << 20
	// MaxSample is how long a worker may be watched at a time.
	MaxSample = 30 * time.Second
	// maxDocumentBytes is the largest JSON request body.
	maxDocumentBytes = 64 << 10
)

// Meta opens each document. The server and Encode fill it in; whoever builds
// a document can leave it alone. Documents inside a list carry none.
type Meta struct {
	APIVersion string `json:"apiVersion,omitempty"`
	Kind       string `json:"kind,omitempty"`
}

func (m *Meta) set(kind string) { *m = Meta{APIVersion: APIVersion, Kind: kind} }

// A Document is anything that is printed or sent as one JSON value. The types
// of this package implement it on their pointers.
type Document interface{ stamp() }

func (d *Status) stamp()      { d.set("Status") }
func (d *NodeList) stamp()    { d.set("NodeList") }
func (d *Node) stamp()        { d.set("Node") }
func (d *Ping) stamp()        { d.set("Ping") }
func (d *Token) stamp()       { d.set("Token") }
func (d *JoinResult) stamp()  { d.set("JoinResult") }
func (d *LeaveResult) stamp() { d.set("LeaveResult") }
func (d *WorkerList) stamp()  { d.set("WorkerList") }
func (d *Worker) stamp()      { d.set("Worker") }
func (d *FileList) stamp()    { d.set("FileList") }
func (d *LogLine) stamp()     { d.set("LogLine") }
func (d *CallResult) stamp()  { d.set("CallResult") }
func (d *Progress) stamp()    { d.set("Progress") }
func (d *Migration) stamp()   { d.set("Migration") }
func (d *MovePlan) stamp()    { d.set("MovePlan") }
func (d *Demo) stamp()        { d.set("Demo") }
func (d *Version) stamp()     { d.set("Version") }
func (d *Error) stamp()       { d.set("Error") }

// Encode writes d to w as one line of JSON, apiVersion and kind filled in.
func Encode(w io.Writer, d Document) error {
	d.stamp()
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(d)
}

// Millis turns a duration into the unit of every *Ms field.
func Millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// Status describes the node that answers.
type Status struct {
	Meta
	ID     string `json:"id"`
	Name   string `json:"name"`
	Tier   string `json:"tier"`
	MeshID string `json:"meshId"`
	// Authority says whether this node holds the mesh's CA key and so can
	// create tokens.
	Authority bool              `json:"authority"`
	Version   string            `json:"version"`
	PID       int               `json:"pid"`
	Started   time.Time         `json:"started"`
	UptimeMs  float64           `json:"uptimeMs"`
	StateDir  string            `json:"stateDir"`
	Listen    string            `json:"listen"`            // UDP address bound
	Endpoints []string          `json:"endpoints"`         // UDP addresses told to the others
	Metrics   string            `json:"metrics,omitempty"` // host:port of /metrics, "" when off
	Labels    map[string]string `json:"labels,omitempty"`
	Cordoned  bool              `json:"cordoned,omitempty"`
	Members   Members           `json:"members"`
	Workers   int               `json:"workers"` // workers whose home is this node
	// Clients are the sessions of programs that are no nodes and have entered
	// the mesh here, the oldest first.
	Clients []AttachedClient `json:"clients,omitempty"`
	Engine  string           `json:"engine"` // compiler or interpreter
	Paging  Paging           `json:"paging"`
}

// AttachedClient is one session of a client that runs no node.
type AttachedClient struct {
	ID     string    `json:"id"` // of the client, from its certificate
	Worker string    `json:"worker"`
	Since  time.Time `json:"since"` // when it came here
	// RTTMs is the round trip to the client, as QUIC last measured it.
	RTTMs float64 `json:"rttMs"`
}

// Members counts the nodes of the mesh by state, the answering one included.
type Members struct {
	Alive   int `json:"alive"`
	Suspect int `json:"suspect"`
	Dead    int `json:"dead"`
	Left    int `json:"left"`
}

// Paging says how a worker's memory arrives at this node and how it finds out
// what a worker wrote.
type Paging struct {
	Mode          string `json:"mode"`             // userfaultfd or copy
	Reason        string `json:"reason,omitempty"` // why not userfaultfd
	WriteTracking string `json:"writeTracking"`    // pagemap-scan or hash
}

// NodeList holds the members of the mesh.
type NodeList struct {
	Meta
	Nodes []Node `json:"nodes"`
}

// Node is one member of the mesh as the answering node sees it.
type Node struct {
	Meta
	ID              string    `json:"id"`
	Name            string    `json:"name"`
	Self            bool      `json:"self"`
	Tier            string    `json:"tier"`
	State           string    `json:"state"` // alive, suspect, dead, left
	Since           time.Time `json:"since"` // when it entered State
	Endpoint        string    `json:"endpoint,omitempty"`
	Endpoints       []string  `json:"endpoints,omitempty"`
	OS              string    `json:"os,omitempty"`
	Arch            string    `json:"arch,omitempty"`
	Cores           int       `json:"cores,omitempty"`
	MemoryFreeBytes uint64    `json:"memoryFreeBytes,omitempty"`
	LoadPercent     int       `json:"loadPercent"`
	Engine          string    `json:"engine,omitempty"`
	Paging          string    `json:"paging,omitempty"` // userfaultfd or copy
	// Cordoned nodes take no new workers.
	Cordoned bool `json:"cordoned,omitempty"`
	// Speed is how many calibration events a core handles in a second; only
	// ratios of it mean anything. 0 is not measured yet.
	Speed uint32 `json:"speed,omitempty"`
	// UplinkBytesPerSec and DownlinkBytesPerSec are the rates that moves have
	// shown of its link of late; 0 is none seen.
	UplinkBytesPerSec   float64 `json:"uplinkBytesPerSec,omitempty"`
	DownlinkBytesPerSec float64 `json:"downlinkBytesPerSec,omitempty"`
	// RTTMs is QUIC's smoothed round trip from the node that answers, where
	// there is a connection; RTTEstimateMs what the coordinates of both say,
	// where they have any. RTTErrorShare is by how much that is expected to be
	// off, as a part of it.
	RTTMs          float64 `json:"rttMs,omitempty"`
	RTTEstimateMs  float64 `json:"rttEstimateMs,omitempty"`
	RTTErrorShare  float64 `json:"rttErrorShare,omitempty"`
	DocumentDigest string  `json:"documentDigest,omitempty"`
	// AgeMs is how old the record of all of the above is; 0 for the node that
	// answers.
	AgeMs float64 `json:"ageMs,omitempty"`
	// Labels, Interfaces, Accelerators and Promises are from Document.
	Labels       map[string]string `json:"labels,omitempty"`
	Interfaces   []string          `json:"interfaces,omitempty"`
	Accelerators []string          `json:"accelerators,omitempty"`
	Promises     *Promises         `json:"promises,omitempty"`
	// Kept is how the node's promises were kept by its own word, from Document;
	// KeptMoveIn is how the one for moves in was, in those that the answering
	// node made.
	Kept       *PromiseRecords `json:"kept,omitempty"`
	KeptMoveIn *PromiseRecord  `json:"keptMoveIn,omitempty"`
	// Workers are the workers at home there, as far as the answering node
	// knows; only where one node is asked for.
	Workers []Worker `json:"workers,omitempty"`
	// Document is the capability document, fetched from the node and checked
	// against DocumentDigest; only where one node is asked for and it answers.
	Document json.RawMessage `json:"document,omitempty"`
	// DocumentError says why Document is missing.
	DocumentError string `json:"documentError,omitempty"`
}

// Promises are latencies that a node's operator promises for it; 0 is none.
type Promises struct {
	// AccessMs is the round trip to users attached to it.
	AccessMs float64 `json:"accessMs,omitempty"`
	// MoveInMs and MoveOutMs are the blackouts of workers that come and go.
	MoveInMs  float64 `json:"moveInMs,omitempty"`
	MoveOutMs float64 `json:"moveOutMs,omitempty"`
}

// PromiseRecords say how promises were kept; what is nil was not observed.
type PromiseRecords struct {
	Access  *PromiseRecord `json:"access,omitempty"`
	MoveIn  *PromiseRecord `json:"moveIn,omitempty"`
	MoveOut *PromiseRecord `json:"moveOut,omitempty"`
}

// A PromiseRecord counts the cases in which a promise was kept and broken, old
// ones less and less, so that about the last 50 matter.
type PromiseRecord struct {
	Kept     float64 `json:"kept"`
	Broken   float64 `json:"broken"`
	BrokenMs float64 `json:"brokenMs,omitempty"` // the mean where it was broken
	// Credibility is the share of cases in which it can be expected to hold, 0 to 1.
	Credibility float64 `json:"credibility"`
}

// NodeSettings are what an operator changes of a running node; what is nil
// stays as it is. They outlive the daemon.
type NodeSettings struct {
	Cordoned *bool `json:"cordoned,omitempty"`
	// Labels are set, or taken away where the value is null.
	Labels map[string]*string `json:"labels,omitempty"`
}

// Ping is one measured round trip to a node over QUIC.
type Ping struct {
	Meta
	Node     string `json:"node"`
	Name     string `json:"name"`
	Seq      int    `json:"seq"` // from 1
	Endpoint string `json:"endpoint"`
	// Path names how the packets travel; the only way there is is "direct".
	Path       string  `json:"path,omitempty"`
	RTTMs      float64 `json:"rttMs"`
	SmoothedMs float64 `json:"smoothedMs"`
	MinMs      float64 `json:"minMs"`
}

// TokenRequest asks for a join token. Zero values take the defaults: one
// hour, one use, any tier.
type TokenRequest struct {
	TTLMs float64 `json:"ttlMs,omitempty"`
	Uses  int     `json:"uses,omitempty"`
	Tier  string  `json:"tier,omitempty"`
}

// Token is a join token. Who holds it can join the mesh until it is used up
// or expires.
type Token struct {
	Meta
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
	Uses    int       `json:"uses"`
	Tier    string    `json:"tier,omitempty"`
}

// JoinRequest asks the node to enrol in the mesh of a token.
type JoinRequest struct {
	Token string `json:"token"`
	// Via are the UDP endpoints to enrol through, beside those in the token.
	Via []string `json:"via,omitempty"`
}

// JoinResult says in what a node has been enrolled.
type JoinResult struct {
	Meta
	ID      string    `json:"id"`
	Name    string    `json:"name,omitempty"`
	MeshID  string    `json:"meshId"`
	Tier    string    `json:"tier,omitempty"`
	Via     string    `json:"via,omitempty"`     // endpoint that answered
	Expires time.Time `json:"expires,omitzero"`  // of the certificate
	Restart bool      `json:"restart,omitempty"` // takes effect at the next `meshnode up`
}

// LeaveResult says what a node has left.
type LeaveResult struct {
	Meta
	ID     string `json:"id"`
	MeshID string `json:"meshId"`
}

// RunRequest describes a worker to start. The module itself travels beside it.
type RunRequest struct {
	// Name is [a-z0-9][a-z0-9-]{0,62} and unique in the mesh.
	Name string `json:"name"`
	// MemoryLimit is the most linear memory in bytes, 0 for the node's default.
	MemoryLimit uint64   `json:"memoryLimit,omitempty"`
	Args        []string `json:"args,omitempty"`
	Env         []string `json:"env,omitempty"` // KEY=VALUE
	// Suspend is one of the Suspend modes; empty leaves it to the module's
	// exports.
	Suspend string `json:"suspend,omitempty"`
	// Dirs are the directories that a program finds open, copies of what follows
	// the module's ModuleBytes bytes in the request's body: a zip archive with what
	// is in the first below 0/, and so on. There is no more than one byte of
	// archive for each of FilesLimit and 64 MiB.
	Dirs        []Dir `json:"dirs,omitempty"`
	ModuleBytes int64 `json:"moduleBytes,omitempty"`
	// FilesLimit bounds the sizes of all of a program's files added up, in bytes;
	// 0 is the default if there are Dirs.
	FilesLimit int64 `json:"filesLimit,omitempty"`
}

// A FileList describes one of a command worker's files or directories, and what
// is in that.
type FileList struct {
	Meta
	Path string `json:"path"` // as asked for
	// File says what is there. Its Name is that in its directory.
	File File `json:"file"`
	// Entries are a directory's, ordered by name. More says that there are others
	// behind them.
	Entries []File `json:"entries,omitempty"`
	More    bool   `json:"more,omitempty"`
}

// FileRegular is the Kind of a File with content.
const FileRegular = "file"

// A File is one of a command worker's files, directories or symbolic links.
type File struct {
	Name     string    `json:"name"`
	Kind     string    `json:"kind"` // file, directory or link
	Size     int64     `json:"size"` // a file's, in bytes
	Modified time.Time `json:"modified,omitzero"`
	Target   string    `json:"target,omitempty"` // a link's
}

// A Dir is a directory that a program finds open.
type Dir struct {
	// Name is what the program knows it by, as /data.
	Name     string `json:"name"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// MaxArchiveBytes is the largest archive of directories for a limit.
func MaxArchiveBytes(filesLimit int64) int64 { return filesLimit + 64<<20 }

// DefaultFilesLimit is the limit of a program with directories that names none,
// in bytes.
const DefaultFilesLimit = 256 << 20

// Where a worker can be stopped to be moved.
const (
	// SuspendAnywhere is for a program with a main of its own: it stops wherever
	// it is, within a loop or a call.
	SuspendAnywhere = "anywhere"
	// SuspendEvent is for a module with a handler, which stops between events.
	SuspendEvent = "event"
	// SuspendNever is for either: it stays on the node that started it.
	SuspendNever = "never"
	// SuspendModes lists them, for messages.
	SuspendModes = "anywhere, event or never"
)

// ValidSuspend says whether s is a Suspend mode.
func ValidSuspend(s string) bool {
	return s == SuspendAnywhere || s == SuspendEvent || s == SuspendNever
}

// States of a worker.
const (
	StateStarting = "starting" // module checked, compiled, first instance made
	StateRunning  = "running"
	StatePaused   = "paused"   // takes no events until resumed
	StateMoving   = "moving"   // still answers here; see Worker.Phase
	StateFrozen   = "frozen"   // answers nowhere: between freeze and commit
	StateDraining = "draining" // answers here, memory still arriving
	StateInDoubt  = "in-doubt" // committed, the destination has not answered
	StateStopped  = "stopped"  // ended on request
	StateExited   = "exited"   // its program ran to its end
	StateFailed   = "failed"   // ended by itself: see Worker.Reason
	StateLost     = "lost"     // its memory cannot be had any more: see Worker.Reason
	StateOrphaned = "orphaned" // its node runs it no more, its guardian is about to: see Worker.Reason
	// StateSuperseded is what a session hears that began with a worker whose node
	// fell silent, and which another node has started anew.
	StateSuperseded = "superseded"
)

// Phases of a move, in order. The phase "freeze" opens the blackout, "commit"
// ends with it.
const (
	PhaseOffer   = "offer"
	PhasePrepare = "prepare" // the destination fetches, compiles, starts a runner
	PhaseWarm    = "warm"    // memory travels while the worker runs
	PhaseFreeze  = "freeze"
	PhaseCopy    = "copy" // where memory travels while the worker stands still
	PhaseCommit  = "commit"
	PhaseDrain   = "drain" // runs at the destination, memory follows
	PhaseDone    = "done"
)

// Strategies of a move.
const (
	StrategyAuto        = "auto" // the best of the others
	StrategyPostCopy    = "post-copy"
	StrategyStopAndCopy = "stop-and-copy"
	StrategyPreCopy     = "pre-copy"
	StrategyHybrid      = "hybrid"
)

// Strategies lists what MigrateRequest.Strategy accepts, the default first.
var Strategies = []string{StrategyAuto, StrategyHybrid, StrategyPostCopy, StrategyPreCopy, StrategyStopAndCopy}

// Tiers lists the tiers a node can have.
var Tiers = []string{"device", "edge", "cloud"}

// TokenTiers lists what a token can be for: those, and clients, which are no
// nodes.
var TokenTiers = append(slices.Clone(Tiers), TierClient)

// TierClient is what programs have that talk to workers through nodes.
const TierClient = "client"

// WorkerList holds the workers of the mesh.
type WorkerList struct {
	Meta
	Workers []Worker `json:"workers"`
}

// Worker is one running instance of a module.
type Worker struct {
	Meta
	ID       string `json:"id"`
	Name     string `json:"name"`
	Module   string `json:"module"` // hex BLAKE3 of the module's original bytes
	Home     string `json:"home"`   // id of the node that runs it
	HomeName string `json:"homeName"`
	// Epoch rises by one at every change of owner, from 1.
	Epoch       uint64 `json:"epoch"`
	State       string `json:"state"`
	Reason      string `json:"reason,omitempty"` // why it failed, is lost, is in doubt
	Phase       string `json:"phase,omitempty"`  // of a move in progress
	MoveTo      string `json:"moveTo,omitempty"` // name of its destination
	MemoryBytes uint64 `json:"memoryBytes"`
	MemoryLimit uint64 `json:"memoryLimit"`
	Events      uint64 `json:"events"` // handled since it was created
	Senders     int    `json:"senders"`
	Inbox       int    `json:"inbox"` // messages waiting
	// Suspend is one of the Suspend modes.
	Suspend string `json:"suspend,omitempty"`
	// Dirs are the directories that a program found open, and FilesLimit bounds
	// what its files hold, in bytes.
	Dirs       []Dir `json:"dirs,omitempty"`
	FilesLimit int64 `json:"filesLimit,omitempty"`
	// Command says that the worker runs a main of its own: messages are lines of
	// its input, and it answers no calls.
	Command bool      `json:"command,omitempty"`
	Since   time.Time `json:"since"` // when it entered State
	Created time.Time `json:"created"`
	// Guardian takes the worker over if its node falls silent.
	Guardian *Guardian `json:"guardian,omitempty"`
	// ResidentShare is how much of its memory is at its home: below 1 while
	// it drains. Only where one worker is asked for.
	ResidentShare float64 `json:"residentShare,omitempty"`
	// App is the app it was started for; empty without one. Pinned workers do not
	// move by themselves.
	App    string `json:"app,omitempty"`
	Pinned bool   `json:"pinned,omitempty"`
	// Manifest is the app's in the effective form, as this worker goes by it.
	// Only where one worker is asked for.
	Manifest string `json:"manifest,omitempty"`
	// Activity is what it does to its memory: during a move, and where a
	// sample was asked for.
	Activity *Activity `json:"activity,omitempty"`
	// Users are its clients of the last minute by the node at which they enter
	// the mesh, the most active first, EventMsP50 and EventMsP99 how long its
	// handler ran for an event. Only where one worker is asked for.
	Users      []WorkerUsers `json:"users,omitempty"`
	EventMsP50 float64       `json:"eventMsP50,omitempty"`
	EventMsP99 float64       `json:"eventMsP99,omitempty"`
	// HeldMs is how long it was held back, where it runs now, because its
	// manifest's limits.cpu gives it no more. Only where one worker is asked for.
	HeldMs float64 `json:"heldMs,omitempty"`
	// Interfaces are those of its manifest. Only where one worker is asked for.
	Interfaces []WorkerInterface `json:"interfaces,omitempty"`
}

// WorkerInterface is an interface of a host that a worker's manifest names.
type WorkerInterface struct {
	Name   string `json:"name"`
	Access string `json:"access"` // pin or proxy
	// Node is the id of the node that is read; empty until the first read of one
	// that is proxied.
	Node     string `json:"node,omitempty"`
	NodeName string `json:"nodeName,omitempty"`
	// Reads and Failed count since the worker came to where it runs; Error says
	// why the last read failed, if it did.
	Reads  uint64 `json:"reads"`
	Failed uint64 `json:"failed"`
	Error  string `json:"error,omitempty"`
}

// WorkerUsers are the clients of a worker that enter the mesh at one node.
type WorkerUsers struct {
	Node          string  `json:"node"` // id
	NodeName      string  `json:"nodeName"`
	RatePerSecond float64 `json:"ratePerSecond"` // events
	// AccessMsP50 and AccessMsP99 are round trips between the clients and that
	// node; 0 is not known.
	AccessMsP50 float64 `json:"accessMsP50,omitempty"`
	AccessMsP99 float64 `json:"accessMsP99,omitempty"`
}

// Activity is what a worker does to its memory.
type Activity struct {
	// SampledMs is how long it was watched for this; 0 during a move.
	SampledMs float64 `json:"sampledMs,omitempty"`
	// DirtyBytesPerSec counts each page written between two looks, 20 ms
	// apart, as 4 KiB; WrittenBytes counts each page once.
	DirtyBytesPerSec float64 `json:"dirtyBytesPerSec"`
	WrittenBytes     uint64  `json:"writtenBytes,omitempty"`
	// WorkingSetBytes is what it read or wrote, as the kernel noted it; 0
	// where the kernel was not asked or cannot tell.
	WorkingSetBytes uint64 `json:"workingSetBytes,omitempty"`
	// ContentBytes is what was ever written of its memory.
	ContentBytes uint64 `json:"contentBytes,omitempty"`
}

// LogLine is one line a worker, or its node about it, has logged.
type LogLine struct {
	Meta
	Time   time.Time `json:"time"`
	Node   string    `json:"node,omitempty"` // name of the node it ran on
	Epoch  uint64    `json:"epoch,omitempty"`
	Level  string    `json:"level"`  // debug, info, warn, error
	Source string    `json:"source"` // app, stdout, stderr, node
	Text   string    `json:"text"`
}

// CallResult is the printed form of a worker's answer.
type CallResult struct {
	Meta
	Worker string `json:"worker"`
	// Status is what the handler returned: 0, or an application error code.
	Status int32 `json:"status"`
	Bytes  int   `json:"bytes"`
	// Payload holds the reply where it is valid UTF-8, PayloadBase64 otherwise.
	Payload       string  `json:"payload,omitempty"`
	PayloadBase64 string  `json:"payloadBase64,omitempty"`
	RTTMs         float64 `json:"rttMs"`
}

// MigrateRequest asks for a move.
type MigrateRequest struct {
	To       string `json:"to"`                 // node: name, id or unique beginning of an id
	Strategy string `json:"strategy,omitempty"` // "" for Strategies[0]
	// TimeoutMs bounds the move up to its commit; 0 for the node's default.
	// A move that has committed goes on regardless.
	TimeoutMs float64 `json:"timeoutMs,omitempty"`
	// RoundsLimitMs is how long pages travel while the worker still runs here,
	// up to MaxRoundsLimitMs; 0 for that. What is missing then follows.
	RoundsLimitMs float64 `json:"roundsLimitMs,omitempty"`
	// Priority is the move's share of the link against other moves, 1 to
	// MaxPriority: one of 3 gets three times what one of 1 does. 0 for 1.
	Priority int `json:"priority,omitempty"`
	// NoSampling leaves out looking which pages the worker touches before it
	// stands still. Those it wrote last then follow first.
	NoSampling bool `json:"noSampling,omitempty"`
}

// Limits of a MigrateRequest.
const (
	MaxRoundsLimitMs = 290_000
	MaxPriority      = 10
)

// MovePlan is what a move would be like, per strategy. Nothing has moved.
type MovePlan struct {
	Meta
	Worker   string `json:"worker"` // name
	WorkerID string `json:"workerId"`
	From     string `json:"from"` // node name
	To       string `json:"to"`   // node name
	// Auto is the strategy that "auto" takes.
	Auto        string       `json:"auto"`
	Predictions []Prediction `json:"predictions"`
	// What they are made from. RateBytesPerSec is what moves to that node have
	// shown, the last one counting most, 0 if there were none.
	MemoryBytes     uint64    `json:"memoryBytes"`
	Activity        *Activity `json:"activity,omitempty"`
	RTTMs           float64   `json:"rttMs"`
	RateBytesPerSec float64   `json:"rateBytesPerSec"`
	// Learnt is what earlier moves there have changed in the predictions; nil
	// if there were none.
	Learnt *Learnt `json:"learnt,omitempty"`
	// Assumed says in sentences what was not known and taken for granted.
	Assumed []string `json:"assumed"`
}

// Learnt is what a node has learnt from the moves to another.
type Learnt struct {
	// Moves is how many there were.
	Moves int `json:"moves"`
	// By what predictions are multiplied: the blackout but for copying in it,
	// the time to get ready, and what crosses the network.
	Blackout float64 `json:"blackout"`
	Setup    float64 `json:"setup"`
	Bytes    float64 `json:"bytes"`
}

// Prediction is what a move is expected to be.
type Prediction struct {
	Strategy   string  `json:"strategy"`
	BlackoutMs float64 `json:"blackoutMs"`
	TotalMs    float64 `json:"totalMs"`
	Bytes      uint64  `json:"bytes"`
	// Rounds is how often pages are sent while the worker runs.
	Rounds int `json:"rounds"`
	// RateAssumed says that nobody knew what the path carries: TotalMs, and a
	// blackout that pages travel in, rest on a guess of 100 Mbit/s.
	RateAssumed bool `json:"rateAssumed,omitempty"`
	// BreaksBlackout says that the blackout, at its objective's quantile, is
	// longer than the worker's manifest lets a move stop it.
	BreaksBlackout bool `json:"breaksBlackout,omitempty"`
}

// Progress is one report of a move under way. Counters only grow.
type Progress struct {
	Meta
	Phase         string  `json:"phase"`
	ElapsedMs     float64 `json:"elapsedMs"`
	MemoryBytes   uint64  `json:"memoryBytes"`
	BytesOnWire   uint64  `json:"bytesOnWire"`
	PagesTotal    uint64  `json:"pagesTotal"` // that have bytes: zero pages do not count
	PagesPushed   uint64  `json:"pagesPushed"`
	PagesDemanded uint64  `json:"pagesDemanded"`
	// BlackoutMs is the blackout so far, final once Phase is drain or done.
	BlackoutMs float64 `json:"blackoutMs"`
}

// Migration is the outcome of a move.
type Migration struct {
	Meta
	Worker   string `json:"worker"` // name
	WorkerID string `json:"workerId"`
	Strategy string `json:"strategy"`
	From     string `json:"from"` // node name
	To       string `json:"to"`   // node name
	Epoch    uint64 `json:"epoch"`
	// BlackoutMs is how long the worker ran nowhere, measured at the source
	// from the freeze to the arrival of "running": an upper bound.
	BlackoutMs float64 `json:"blackoutMs"`
	// Blackout says where BlackoutMs went; nil if the destination did not tell
	// of its share.
	Blackout *BlackoutParts `json:"blackout,omitempty"`
	TotalMs  float64        `json:"totalMs"` // offer to drained
	// PrepareMs is the part before the freeze, while the worker ran at the
	// source, and DrainMs the part after the blackout, while it ran at the
	// destination and its memory followed.
	PrepareMs     float64 `json:"prepareMs"`
	DrainMs       float64 `json:"drainMs"`
	MemoryBytes   uint64  `json:"memoryBytes"`
	BytesOnWire   uint64  `json:"bytesOnWire"`
	PagesDemanded uint64  `json:"pagesDemanded"`
	PagesPushed   uint64  `json:"pagesPushed"`
	// PagesElsewhere came from other nodes that held them, and are not in
	// BytesOnWire.
	PagesElsewhere uint64 `json:"pagesElsewhere,omitempty"`
	// FaultMsP50 and FaultMsP99 are the time from a fault's arrival at the
	// destination to its page being in place; 0 without demanded pages.
	FaultMsP50 float64 `json:"faultMsP50"`
	FaultMsP99 float64 `json:"faultMsP99"`
	// Predicted is what the source expected before pages travelled; nil if the
	// destination was ready before it knew the round trip.
	Predicted *Prediction `json:"predicted,omitempty"`
	// WorkingSetPages is what the worker touched while the destination got
	// ready, as the kernel noted it; 0 where it was not asked.
	WorkingSetPages uint64 `json:"workingSetPages"`
	// Rounds is how often pages were sent while the worker ran at the source,
	// and BytesAhead what that was of BytesOnWire.
	Rounds     int    `json:"rounds"`
	BytesAhead uint64 `json:"bytesAhead"`
	// DirtyBytesPerSec is what the worker wrote last before the freeze, as in
	// Activity; 0 where writes are not tracked.
	DirtyBytesPerSec float64 `json:"dirtyBytesPerSec"`
	// MinimumBytes is what no way of moving could have left out: the bytes of
	// each page that was ever written and that the destination did not say it
	// had, once, however often it was written during the move. Pages that
	// are equal to another or went back to zero count, so a source that knows
	// them, or compresses, can stay below. Pages that the destination had and
	// that were written afterwards do not, so it can be a little low.
	MinimumBytes uint64 `json:"minimumBytes"`
	Result       string `json:"result"` // done: anything else is an Error
}

// BlackoutParts are the parts of a blackout, in their order but for WayMs. Each
// node measures its own on its own clock; together they are BlackoutMs.
type BlackoutParts struct {
	// ImageMs is the source's time to stop the worker and take its state, and
	// LayoutMs to find what was written last and say which pages hold.
	ImageMs  float64 `json:"imageMs"`
	LayoutMs float64 `json:"layoutMs"`
	// FillMs is the time in which pages travelled, 0 where the worker resumes
	// without them.
	FillMs float64 `json:"fillMs"`
	// WayMs is what is left: COMMIT on its way there and RUNNING back, both
	// nodes' processors and the link's queue included.
	WayMs float64 `json:"wayMs"`
	// MemoryMs is the destination's time to drop what does not hold and to
	// arm the memory, and StateMs to put the worker's state in place.
	MemoryMs float64 `json:"memoryMs"`
	StateMs  float64 `json:"stateMs"`
}

// Demo is the outcome of `meshnode demo`.
type Demo struct {
	Meta
	Nodes  []string  `json:"nodes"`
	Bodies int       `json:"bodies"`
	TickHz int       `json:"tickHz"`
	Ticks  int       `json:"ticks"`
	Hops   []DemoHop `json:"hops"`
	// SteadyGapMs is what ClientGapMs is while nothing moves: what the machine
	// itself does to the client.
	SteadyGapMs float64 `json:"steadyGapMs"`
	Digest      string  `json:"digest"`          // of the worker that moved
	Reference   string  `json:"referenceDigest"` // of the one that did not
	StateEqual  bool    `json:"stateEqual"`
	ElapsedMs   float64 `json:"elapsedMs"`
}

// DemoHop is one move of the demo's worker.
type DemoHop struct {
	From          string  `json:"from"`
	To            string  `json:"to"`
	MemoryBytes   uint64  `json:"memoryBytes"`
	BytesOnWire   uint64  `json:"bytesOnWire"`
	PagesDemanded uint64  `json:"pagesDemanded"`
	BlackoutMs    float64 `json:"blackoutMs"`
	// ClientGapMs is the longest time between two replies during the hop, less
	// the client's normal pace.
	ClientGapMs float64 `json:"clientGapMs"`
	TotalMs     float64 `json:"totalMs"`
}

// Version describes a build.
type Version struct {
	Meta
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}
