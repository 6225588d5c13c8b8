package node

import (
	"bytes"
	"fmt"
	"math"
	"sync"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/placement"
	"meshnode/placement/manifest"
)

const (
	// appStateVersion is what this node writes and the newest that it reads.
	appStateVersion = 1
	// maxManifest bounds a manifest that travels with a worker, in bytes: it is
	// part of every offer.
	maxManifest = 32 << 10
)

// An appState is what a worker carries along for those who own it next: in the
// offer of a move, for the destination to see whether it can do as it says, and
// in the image, as it is when the worker leaves. A worker that was started
// without an app, was never pinned and never moved by itself has one too.
type appState struct {
	Version int `cbor:"1,keyasint"`
	// Manifest is the text of its app's manifest in the effective form; empty
	// without an app.
	Manifest []byte                `cbor:"2,keyasint,omitempty"`
	Pinned   bool                  `cbor:"3,keyasint,omitempty"`
	State    placement.PackedState `cbor:"4,keyasint"`
	// Own says that the move under way is the worker's own decision.
	Own bool `cbor:"5,keyasint,omitempty"`
	// Auto says that an autopilot moves it, so that the destination looks whether
	// it has room for what the events take at the source: CPU cores, where one
	// core has Speed. All three are only in an offer.
	Auto  bool    `cbor:"6,keyasint,omitempty"`
	CPU   float64 `cbor:"7,keyasint,omitempty"`
	Speed uint32  `cbor:"8,keyasint,omitempty"`
	// Interfaces says where proxied interfaces are read.
	Interfaces []boundInterface `cbor:"9,keyasint,omitempty"`
}

// parse checks what a peer sent and reads the manifest; the result is nil
// without one.
func (a *appState) parse() (*manifest.App, error) {
	switch {
	case a.Version > appStateVersion:
		return nil, fmt.Errorf("what it carries of its app has version %d, this node reads %d", a.Version, appStateVersion)
	case len(a.Manifest) > maxManifest:
		return nil, fmt.Errorf("a manifest of %d bytes, at most %d", len(a.Manifest), maxManifest)
	case checkBound(a.Interfaces) != nil:
		return nil, checkBound(a.Interfaces)
	case !(a.CPU >= 0 && a.CPU <= maxCores):
		return nil, fmt.Errorf("a need of %v cores", a.CPU)
	case len(a.Manifest) == 0:
		return nil, nil
	}
	app, err := manifest.Parse("its manifest", a.Manifest)
	if err != nil {
		return nil, fmt.Errorf("the manifest of its app cannot be read here: %w", err)
	}
	return app, nil
}

// maxCores bounds what a worker can claim to need.
const maxCores = 4096

// placed is what this node knows of a worker's placement. Safe for concurrent
// use.
type placed struct {
	mu sync.Mutex
	// app is what the worker needs. Without a manifest (applied is false) that is
	// its memory, and moves are the operator's.
	app     *manifest.App
	applied bool
	text    []byte // of the manifest, effective form
	pinned  bool
	// state is what is remembered between decisions; own whether the move under
	// way is the worker's own decision.
	state placement.State
	own   bool
	// auto says that the autopilot's move is under way, or about to be.
	auto bool

	// The autopilot's.
	last     placement.Decision
	told     placement.Reason // the last hindrance that was made an event
	seen     situation
	due      time.Time // of the next look, if nothing changes
	failures int       // moves in a row that came to nothing
	failure  string    // why the last did
	after    time.Time // no look before

	// warm is the last node that was asked to make ready for the worker; it is
	// not asked again before warmUntil. warmed is the last that did.
	warm, warmed mesh.NodeID
	warmUntil    time.Time
}

// init makes p that of a worker without an app.
func (p *placed) init(s spec) {
	p.app = manifest.New(s.Name, s.Module.String())
	p.app.Limits.Memory = manifest.Size(s.MemoryLimit)
	p.app.Migration.Mode = manifest.Manual
}

// set gives the worker a manifest.
func (p *placed) set(app *manifest.App, text []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.app, p.text, p.applied = app, text, true
	p.due, p.after, p.failures = time.Time{}, time.Time{}, 0
}

// appName is the worker's app; empty if it was started without one.
func (p *placed) appName() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.applied {
		return ""
	}
	return p.app.Name
}

// key tells manifests apart.
func (p *placed) key() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.app.Name + "\x00" + string(p.text)
}

func (p *placed) get() (app *manifest.App, st placement.State, pinned, applied bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.app, p.state, p.pinned, p.applied
}

// pack returns what travels with the worker.
func (p *placed) pack(now time.Time) appState {
	p.mu.Lock()
	defer p.mu.Unlock()
	return appState{Version: appStateVersion, Manifest: p.text, Pinned: p.pinned, State: p.state.Pack(now), Own: p.own}
}

// arrived takes over what travelled with a worker that has come from another
// node to this one. app is its manifest, nil if it has none.
func (p *placed) arrived(a appState, app *manifest.App, now time.Time, from, here mesh.NodeID) {
	if app != nil {
		p.set(app, a.Manifest)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pinned = a.Pinned
	p.state = a.State.Unpack(now).Moved(now, placement.NodeID(from), placement.NodeID(here), a.Own, &p.app.Migration)
}

func (p *placed) isAuto() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.auto
}

// carries is what travels with the worker of its app.
func (w *worker) carries(now time.Time) appState {
	a := w.place.pack(now)
	a.Interfaces = w.reads.bound()
	return a
}

// offered is what an offer says of a worker's app.
func (w *worker) offered() appState {
	now := time.Now()
	a := w.carries(now)
	if !w.place.isAuto() {
		return a
	}
	a.Auto = true
	s := w.times.summary(now)
	if cpu := s.rate * s.p50.Seconds(); cpu <= maxCores && !math.IsNaN(cpu) {
		a.CPU, a.Speed = cpu, w.node.said.speedNow().Speed
	}
	return a
}

// mayMove refuses to move a worker whose manifest forbids it.
func (w *worker) mayMove() error {
	if app, _, _, _ := w.place.get(); app.Migration.Mode == manifest.Never {
		return &control.Error{
			Code:    control.CodeConflict,
			Message: fmt.Sprintf("worker %s stays where it is: migration.mode of app %s is never", w.Name, app.Name),
			Hint:    "change the manifest and run `meshnode app apply` to allow moves",
		}
	}
	return nil
}

// carried gives a worker that has arrived what travelled with it. The manifest
// was read when the move was offered, unless it has changed since.
func (m *moveIn) carried(w *worker, a appState) error {
	m.mu.Lock()
	app, text := m.app, m.appText
	m.mu.Unlock()
	if !bytes.Equal(text, a.Manifest) {
		var err error
		if app, err = a.parse(); err != nil {
			return err
		}
	}
	w.place.arrived(a, app, time.Now(), m.from, m.n.id)
	w.reads.bind(a.Interfaces)
	w.keepLimits(app)
	return nil
}

// govern lets the worker go by a manifest from now on; text is its effective
// form.
func (w *worker) govern(app *manifest.App, text []byte) {
	w.place.set(app, text)
	w.bindHere(app)
	w.keepLimits(app)
}

// keepLimits bounds the worker as its manifest says, if it has one.
func (w *worker) keepLimits(app *manifest.App) {
	if app == nil {
		return
	}
	w.inbox.limit(queueLimits{messages: app.Limits.Queue.Messages, bytes: int(app.Limits.Queue.Bytes)})
	w.runner.SetCPU(app.Limits.CPU)
}

// appName is the app of the worker that moves; empty without one, and where
// that is forgotten after a restart.
func (m *moveOut) appName() string {
	if m.w == nil {
		return ""
	}
	return m.w.place.appName()
}
