package control

import (
	"time"

	"meshnode/placement/manifest"
)

// AppCheck says whether a file is a manifest.
type AppCheck struct {
	Meta
	File  string `json:"file"`
	App   string `json:"app,omitempty"` // its name
	Valid bool   `json:"valid"`
	// Problems are everything that is wrong, by line; empty when Valid.
	Problems []ManifestProblem `json:"problems"`
	// Warnings are what the manifest cannot help, such as a module that is not
	// built yet.
	Warnings []string `json:"warnings,omitempty"`
	// Effective is the manifest with every default filled in, where asked for.
	Effective *manifest.App `json:"effective,omitempty"`
}

// A ManifestProblem is one thing that is wrong with a manifest.
type ManifestProblem manifest.Problem

func (d *AppCheck) stamp() { d.set("AppCheck") }

// PlanRequest asks where the workers of an app would go.
type PlanRequest struct {
	// File is what problems call the manifest; Manifest is its text.
	File     string `json:"file"`
	Manifest string `json:"manifest"`
	// ModuleBytes is the size of its module; 0 where it is not known.
	ModuleBytes int64 `json:"moduleBytes,omitempty"`
	// Users are the nodes (name, id or beginning of an id) at which users would
	// enter, each the same share of them; without any, the node that answers.
	Users []string `json:"users,omitempty"`
	// RatePerSecond is how many events all users together would send to each
	// worker, EventMs how long the handler would take for one on the node that
	// answers; 0 where it is not known.
	RatePerSecond float64 `json:"ratePerSecond,omitempty"`
	EventMs       float64 `json:"eventMs,omitempty"`
}

// ExplainRequest asks why a worker is where it is.
type ExplainRequest struct {
	// File and Manifest are those of its app. Without a manifest the worker is
	// looked at as one that asks for nothing but its memory.
	File     string `json:"file,omitempty"`
	Manifest string `json:"manifest,omitempty"`
}

// Plan says where the workers of an app would go. Nothing is changed by it.
type Plan struct {
	Meta
	App string    `json:"app"`
	At  time.Time `json:"at"`
	// Workers are in the order of the app's replicas; each takes the ones before
	// it into account.
	Workers []WorkerPlan `json:"workers"`
	// Pending counts the workers that would start or move, Stuck those that no
	// node would take, Violated those for which an objective is predicted to be
	// broken where they would be.
	Pending  int `json:"pending"`
	Stuck    int `json:"stuck"`
	Violated int `json:"violated"`
	// Notes say what of the mesh was not known.
	Notes []string `json:"notes,omitempty"`
}

// WorkerPlan says where one worker would go.
type WorkerPlan struct {
	Worker   string            `json:"worker"` // its name
	Decision PlacementDecision `json:"decision"`
	// Fits are the nodes that would take it, the best first; Others those that
	// would not, the nearest to fitting first. Both are left out of all but the
	// first workers of a large app.
	Fits   []PlacementReport `json:"fits,omitempty"`
	Others []PlacementReport `json:"others,omitempty"`
	// Changes are the smallest changes, of the manifest or of a node, that would
	// let more nodes fit.
	Changes []PlacementChange `json:"changes,omitempty"`
	// Violated names the objectives that are predicted to be broken where it
	// would be.
	Violated []string `json:"violated,omitempty"`
}

// Explanation says why a worker is where it is, and why not elsewhere.
type Explanation struct {
	Meta
	Worker   string            `json:"worker"`
	App      string            `json:"app"`
	At       time.Time         `json:"at"`
	Summary  string            `json:"summary"`
	Decision PlacementDecision `json:"decision"`
	Here     *PlacementReport  `json:"here,omitempty"`
	Others   []PlacementReport `json:"others"`
	// Would says what would make it move.
	Would *struct {
		To      string  `json:"to"`
		AddedMs float64 `json:"addedMs"`
		EventMs float64 `json:"eventMs"`
		Text    string  `json:"text"`
	} `json:"would,omitempty"`
	Notes []string `json:"notes,omitempty"`
}

// PlacementDecision is what would be done with a worker.
type PlacementDecision struct {
	Action    string    `json:"action"` // stay, move (or start), stuck
	Reason    string    `json:"reason"`
	Text      string    `json:"text"`
	From      string    `json:"from,omitempty"` // node ids
	To        string    `json:"to,omitempty"`
	Next      []string  `json:"next,omitempty"`
	Degraded  bool      `json:"degraded,omitempty"`
	Cost      float64   `json:"cost"`      // violated seconds per second
	CostThere float64   `json:"costThere"` // at To
	Gain      float64   `json:"gain"`      // violated seconds
	EventMs   float64   `json:"eventMs,omitempty"`
	Move      *MoveCost `json:"move,omitempty"`
}

// MoveCost is a predicted move.
type MoveCost struct {
	Strategy   string  `json:"strategy"`
	BeforeMs   float64 `json:"beforeMs"`
	BlackoutMs float64 `json:"blackoutMs"`
	DrainMs    float64 `json:"drainMs"`
	StallMs    float64 `json:"stallMs"`
	Bytes      int64   `json:"bytes"`
}

// PlacementReport is one node as a place for a worker.
type PlacementReport struct {
	Node     string             `json:"node"`
	Name     string             `json:"name"`
	Tier     string             `json:"tier"`
	Failures []PlacementFailure `json:"failures,omitempty"`
	Cost     float64            `json:"cost"`
	Gain     float64            `json:"gain"`
	Terms    []PlacementTerm    `json:"terms"`
}

// Term returns a figure by its name, or nil.
func (r *PlacementReport) Term(name string) *PlacementTerm {
	for i := range r.Terms {
		if r.Terms[i].Name == name {
			return &r.Terms[i]
		}
	}
	return nil
}

// PlacementFailure is one thing that a node does not fulfil.
type PlacementFailure struct {
	Code  string  `json:"code"`
	Path  string  `json:"path,omitempty"` // where the manifest asks for it
	Have  string  `json:"have"`
	Want  string  `json:"want"`
	Short float64 `json:"short"`
	AgeMs float64 `json:"ageMs"`
	From  string  `json:"from"`
}

// PlacementTerm is one figure, with the age of what it was computed from.
type PlacementTerm struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	Limit float64 `json:"limit,omitempty"`
	AgeMs float64 `json:"ageMs"`
	From  string  `json:"from"`
}

// PlacementChange is what would have to be different.
type PlacementChange struct {
	Node  string `json:"node"`  // the nearest node that would fit then
	Nodes int    `json:"nodes"` // how many would at most
	Text  string `json:"text"`
}

func (d *Plan) stamp()        { d.set("Plan") }
func (d *Explanation) stamp() { d.set("Explanation") }
