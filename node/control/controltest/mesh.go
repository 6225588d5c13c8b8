// Package controltest has a mesh in memory that implements control.Backend:
// nodes without a network and workers without WebAssembly, for tests of what
// stands in front of them.
package controltest

import (
	"context"
	"encoding/base32"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"meshnode/node/control"
	"meshnode/placement/manifest"
)

// Window is how many messages a session takes before replies are read.
const Window = 64

// A Handler is a worker's code. It is called with one message at a time.
type Handler func(control.Message) control.Reply

// Echo replies with the message.
func Echo(m control.Message) control.Reply { return control.Reply{Payload: slices.Clone(m.Payload)} }

// A Mesh holds the nodes. Its fields may be changed between requests.
type Mesh struct {
	// NewHandler makes what a worker runs; workers Echo if it is nil.
	NewHandler func(worker string) Handler
	// BeforeHome is called, if not nil, when a request for a single worker has
	// arrived where it was located, before the worker is looked for there: the
	// moment in which it can have moved away.
	BeforeHome func(node, worker string)
	// MoveSteps are the phases a Migrate reports, one Progress each; it waits
	// for Step before each one if that is not nil.
	MoveSteps []string
	Step      <-chan struct{}

	mu      sync.Mutex
	nodes   []*Backend
	workers []*worker
	serving sync.WaitGroup
}

type worker struct {
	control.Worker
	handler  Handler
	changed  chan struct{} // closed and renewed at each change of the fields here
	logs     []control.LogLine
	inFlight sync.Mutex // held by the handler
}

// New makes a mesh of named nodes.
func New(names ...string) *Mesh {
	m := &Mesh{MoveSteps: []string{
		control.PhaseOffer, control.PhasePrepare, control.PhaseFreeze, control.PhaseCommit, control.PhaseDrain,
	}}
	for _, n := range names {
		m.nodes = append(m.nodes, newBackend(m, n))
	}
	return m
}

func newBackend(m *Mesh, name string) *Backend {
	b := &Backend{mesh: m, name: name, id: ID(name), started: time.Now(), labels: make(map[string]string)}
	b.Server = control.NewServer(control.ServerConfig{Backend: b})
	return b
}

// ID is the id that a node or worker of that name has.
func ID(name string) string {
	var b [16]byte
	copy(b[:], name)
	b[15] = byte(len(name))
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b[:]))
}

// Node returns a node by name.
func (m *Mesh) Node(name string) *Backend {
	for _, b := range m.nodes {
		if b.name == name {
			return b
		}
	}
	panic("controltest: no node " + name)
}

// Wait returns once all requests between nodes have ended.
func (m *Mesh) Wait() { m.serving.Wait() }

// Place puts a worker at a node, moving it there without ceremony or making it.
func (m *Mesh) Place(name, node string) {
	b := m.Node(node)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, w := range m.workers {
		if w.Name == name {
			w.Home, w.HomeName = b.id, b.name
			w.Epoch++
			m.changedLocked(w)
			return
		}
	}
	m.addLocked(name, b)
}

func (m *Mesh) addLocked(name string, b *Backend) *worker {
	h := Handler(Echo)
	if m.NewHandler != nil {
		h = m.NewHandler(name)
	}
	w := &worker{handler: h, changed: make(chan struct{}), Worker: control.Worker{
		ID: ID(name), Name: name, Module: strings.Repeat("ab", 32), Home: b.id, HomeName: b.name, Epoch: 1,
		State: control.StateRunning, MemoryBytes: 1 << 20, MemoryLimit: 256 << 20, Since: time.Now(), Created: time.Now(),
	}}
	m.workers = append(m.workers, w)
	return w
}

// Log lets a worker log a line.
func (m *Mesh) Log(name, text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, w := range m.workers {
		if w.Name == name {
			w.logs = append(w.logs, control.LogLine{
				Time: time.Now(), Node: w.HomeName, Epoch: w.Epoch, Level: "info", Source: "app", Text: text,
			})
			m.changedLocked(w)
		}
	}
}

func (m *Mesh) changedLocked(w *worker) {
	close(w.changed)
	w.changed = make(chan struct{})
}

func (m *Mesh) findLocked(ref string) (*worker, error) {
	named := make([]control.Named, len(m.workers))
	for i, w := range m.workers {
		named[i] = control.Named{ID: w.ID, Name: w.Name}
	}
	i, err := control.Match("worker", ref, named)
	if err != nil {
		return nil, err
	}
	return m.workers[i], nil
}

func (m *Mesh) node(ref string) (*Backend, error) {
	named := make([]control.Named, len(m.nodes))
	for i, b := range m.nodes {
		named[i] = control.Named{ID: b.id, Name: b.name}
	}
	i, err := control.Match("node", ref, named)
	if err != nil {
		return nil, err
	}
	return m.nodes[i], nil
}

// A Backend is one node.
type Backend struct {
	mesh     *Mesh
	name, id string
	started  time.Time
	cordoned bool
	labels   map[string]string
	// Server answers for this node.
	Server *control.Server
	// Unreachable lets requests from other nodes fail to arrive.
	Unreachable bool
}

var _ control.Backend = (*Backend)(nil)

// Status implements control.Backend.
func (b *Backend) Status(context.Context) (control.Status, error) {
	b.mesh.mu.Lock()
	defer b.mesh.mu.Unlock()
	n := 0
	for _, w := range b.mesh.workers {
		if w.Home == b.id {
			n++
		}
	}
	return control.Status{
		ID: b.id, Name: b.name, Tier: "edge", MeshID: ID("mesh"), Authority: b == b.mesh.nodes[0],
		Started: b.started, UptimeMs: control.Millis(time.Since(b.started)), Listen: "127.0.0.1:7946",
		Endpoints: []string{"127.0.0.1:7946"}, Members: control.Members{Alive: len(b.mesh.nodes)}, Workers: n,
		Engine: "compiler", Paging: control.Paging{Mode: "copy", Reason: "there is no memory here", WriteTracking: "hash"},
	}, nil
}

func (b *Backend) describe(of *Backend) control.Node {
	n := control.Node{
		ID: of.id, Name: of.name, Self: of == b, Tier: "edge", State: "alive", Since: of.started,
		Endpoint: "127.0.0.1:7946", OS: "linux", Arch: "amd64", Cores: 2, MemoryFreeBytes: 1 << 30,
		Cordoned: of.cordoned, Labels: maps.Clone(of.labels),
		UplinkBytesPerSec: 12.5e6, DownlinkBytesPerSec: 25e6,
	}
	if of != b {
		n.RTTMs, n.RTTEstimateMs, n.RTTErrorShare = 1, 1.2, 0.25
	}
	return n
}

// Nodes implements control.Backend.
func (b *Backend) Nodes(context.Context) ([]control.Node, error) {
	var out []control.Node
	for _, n := range b.mesh.nodes {
		out = append(out, b.describe(n))
	}
	return out, nil
}

// Node implements control.Backend.
func (b *Backend) Node(_ context.Context, ref string) (control.Node, error) {
	n, err := b.mesh.node(ref)
	if err != nil {
		return control.Node{}, err
	}
	return b.describe(n), nil
}

// LocateNode implements control.Backend.
func (b *Backend) LocateNode(_ context.Context, ref string) (control.Location, error) {
	n, err := b.mesh.node(ref)
	if err != nil {
		return control.Location{}, err
	}
	return control.Location{Home: n.id, Local: n == b}, nil
}

// Configure implements control.Backend.
func (b *Backend) Configure(_ context.Context, req control.NodeSettings) (control.Node, error) {
	b.mesh.mu.Lock()
	defer b.mesh.mu.Unlock()
	if req.Cordoned != nil {
		b.cordoned = *req.Cordoned
	}
	for k, v := range req.Labels {
		if v == nil {
			delete(b.labels, k)
		} else {
			b.labels[k] = *v
		}
	}
	return b.describe(b), nil
}

// PlanApp implements control.Backend: it finds room on the first node alone, and
// only for apps not called "stuck".
func (b *Backend) PlanApp(_ context.Context, req control.PlanRequest) (control.Plan, error) {
	app, err := manifest.Parse(req.File, []byte(req.Manifest))
	if err != nil {
		return control.Plan{}, &control.Error{Code: control.CodeInvalid, Message: err.Error()}
	}
	first, second := b.mesh.nodes[0], b.mesh.nodes[1]
	term := control.PlacementTerm{Name: "event", Value: 12, Unit: "ms", Limit: 30, AgeMs: 1500, From: "measured"}
	fail := control.PlacementFailure{Code: "tier", Path: "placement.require.tier", Have: "edge", Want: "cloud", Short: 1, From: "claimed"}
	p := control.WorkerPlan{
		Worker: app.Name, Decision: control.PlacementDecision{Action: "move", Reason: "start", Text: "it runs nowhere yet", To: first.id, EventMs: 12},
		Fits:    []control.PlacementReport{{Node: first.id, Name: first.name, Tier: "edge", Cost: 0.01, Terms: []control.PlacementTerm{term}}},
		Others:  []control.PlacementReport{{Node: second.id, Name: second.name, Tier: "edge", Failures: []control.PlacementFailure{fail}}},
		Changes: []control.PlacementChange{{Node: second.id, Nodes: 1, Text: second.name + " would fit if not for tier: edge, want cloud"}},
	}
	out := control.Plan{App: app.Name, At: time.Now(), Pending: 1, Notes: []string{"nothing is measured here"}}
	if app.Name == "stuck" {
		p.Decision = control.PlacementDecision{Action: "stuck", Reason: "no-candidate", Text: "no node fits"}
		p.Fits, out.Pending, out.Stuck = nil, 0, 1
	}
	out.Workers = []control.WorkerPlan{p}
	return out, nil
}

// Explain implements control.Backend: every worker is content.
func (b *Backend) Explain(_ context.Context, ref string, req control.ExplainRequest) (control.Explanation, error) {
	w, err := b.home(ref)
	if err != nil {
		return control.Explanation{}, err
	}
	return control.Explanation{
		Worker: w.Name, App: w.Name, At: time.Now(), Summary: "stays on " + b.name,
		Decision: control.PlacementDecision{Action: "stay", Reason: "content", From: b.id},
		Here:     &control.PlacementReport{Node: b.id, Name: b.name, Tier: "edge", Terms: []control.PlacementTerm{{Name: "load", Value: 0.25, Unit: "x", From: "observed"}}},
	}, nil
}

// PutModule implements control.Backend: it keeps nothing.
func (b *Backend) PutModule(_ context.Context, module io.Reader) (control.Module, error) {
	n, err := io.Copy(io.Discard, module)
	return control.Module{Hash: strings.Repeat("ab", 32), Bytes: n}, err
}

// Apply implements control.Backend: workers start on the first node, and an app
// called "stuck" fits nowhere.
func (b *Backend) Apply(_ context.Context, req control.ApplyRequest) (control.Applied, error) {
	app, err := manifest.Parse(req.File, []byte(req.Manifest))
	if err != nil {
		return control.Applied{}, &control.Error{Code: control.CodeInvalid, Message: err.Error()}
	}
	if app.Name == "stuck" {
		return control.Applied{}, &control.Error{Code: control.CodeConflict, Message: "app stuck was not started: no node fits worker stuck"}
	}
	b.mesh.mu.Lock()
	defer b.mesh.mu.Unlock()
	first := b.mesh.nodes[0]
	out := control.AppliedWorker{Worker: app.Name, Action: control.AppliedUnchanged, Node: first.name, Text: "goes by this manifest already"}
	w, err := b.mesh.findLocked(app.Name)
	if err != nil {
		w = b.mesh.addLocked(app.Name, first)
		out.Action, out.Text = control.AppliedStarted, "started on "+first.name
	}
	w.App, w.Manifest, out.ID = app.Name, string(app.Effective()), w.ID
	return control.Applied{App: app.Name, Workers: []control.AppliedWorker{out}}, nil
}

// Apps implements control.Backend.
func (b *Backend) Apps(context.Context) ([]control.App, error) {
	b.mesh.mu.Lock()
	defer b.mesh.mu.Unlock()
	var out []control.App
	for _, w := range b.mesh.workers {
		if w.App != "" {
			out = append(out, control.App{Name: w.App, Manifest: w.Manifest, Workers: []control.Worker{w.Worker}})
		}
	}
	return out, nil
}

// App implements control.Backend.
func (b *Backend) App(ctx context.Context, name string) (control.App, error) {
	apps, _ := b.Apps(ctx)
	for _, a := range apps {
		if a.Name == name {
			return a, nil
		}
	}
	return control.App{}, control.NotFound("app", name, nil)
}

// RemoveApp implements control.Backend.
func (b *Backend) RemoveApp(ctx context.Context, name string) (control.App, error) {
	a, err := b.App(ctx, name)
	if err != nil {
		return a, err
	}
	b.mesh.mu.Lock()
	defer b.mesh.mu.Unlock()
	b.mesh.workers = slices.DeleteFunc(b.mesh.workers, func(w *worker) bool { return w.App == name })
	return a, nil
}

// StartWorker implements control.Backend.
func (b *Backend) StartWorker(_ context.Context, req control.StartRequest) (control.Worker, error) {
	b.mesh.mu.Lock()
	defer b.mesh.mu.Unlock()
	return b.mesh.addLocked(req.Worker, b).Worker, nil
}

// SetApp implements control.Backend.
func (b *Backend) SetApp(_ context.Context, ref string, req control.AppRequest) (control.Worker, error) {
	return b.change(ref, func(w *worker) { w.App, w.Manifest = w.Name, req.Manifest })
}

// Pin implements control.Backend.
func (b *Backend) Pin(_ context.Context, ref string) (control.Worker, error) {
	return b.change(ref, func(w *worker) { w.Pinned = true })
}

// Unpin implements control.Backend.
func (b *Backend) Unpin(_ context.Context, ref string) (control.Worker, error) {
	return b.change(ref, func(w *worker) { w.Pinned = false })
}

func (b *Backend) change(ref string, f func(*worker)) (control.Worker, error) {
	w, err := b.home(ref)
	if err != nil {
		return control.Worker{}, err
	}
	b.mesh.mu.Lock()
	defer b.mesh.mu.Unlock()
	f(w)
	return w.Worker, nil
}

// Drain implements control.Backend: workers go to the first other node, but for
// those that are pinned, for which it does not wait.
func (b *Backend) Drain(_ context.Context, req control.DrainRequest, progress func(control.DrainProgress)) (control.DrainResult, error) {
	b.mesh.mu.Lock()
	defer b.mesh.mu.Unlock()
	b.cordoned = true
	r := control.DrainResult{Node: b.name, Outcome: control.DrainDone, Left: []control.DrainLeft{}}
	for _, w := range b.mesh.workers {
		if w.Home != b.id {
			continue
		}
		r.Workers++
		if w.Pinned && !req.Force {
			r.Outcome = control.DrainDeadline
			r.Left = append(r.Left, control.DrainLeft{Worker: w.Name, State: w.State, Reason: "it is pinned", Hint: "unpin it"})
			continue
		}
		r.Moved++
		for _, n := range b.mesh.nodes {
			if n != b {
				w.Home, w.HomeName = n.id, n.name
				b.mesh.changedLocked(w)
				break
			}
		}
		progress(control.DrainProgress{Node: b.name, Workers: r.Workers, Left: []control.DrainLeft{{Worker: w.Name, State: control.StateMoving, To: w.HomeName}}})
	}
	return r, nil
}

// Events implements control.Backend: there is one of each node, and following
// brings no more.
func (b *Backend) Events(ctx context.Context, follow bool, each func(control.PlacementEvent) error) error {
	err := each(control.PlacementEvent{
		Seq: 1, At: b.started, Node: b.name, Event: control.EventMove, Worker: "counter", Reason: "better", Text: "another place is better",
		From: b.name, To: "elsewhere", Outcome: control.OutcomeDone, Strategy: "hybrid",
		Predicted: &control.MoveFigures{BlackoutMs: 12, TotalMs: 300}, Measured: &control.MoveFigures{BlackoutMs: 13, TotalMs: 280},
	})
	if err == nil && follow {
		<-ctx.Done()
	}
	return err
}

// Ping implements control.Backend, without the second in between.
func (b *Backend) Ping(ctx context.Context, ref string, count int, each func(control.Ping) error) error {
	n, err := b.mesh.node(ref)
	if err != nil {
		return err
	}
	for i := range count {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := each(control.Ping{Node: n.id, Name: n.name, Seq: i + 1, Endpoint: "127.0.0.1:7946", Path: "direct", RTTMs: 1}); err != nil {
			return err
		}
	}
	return nil
}

// CreateToken implements control.Backend: the first node is the authority.
func (b *Backend) CreateToken(_ context.Context, r control.TokenRequest) (control.Token, error) {
	if a := b.mesh.nodes[0]; b != a {
		return control.Token{}, &control.Error{
			Code: control.CodeConflict, Message: b.name + " is not the authority of its mesh", Hint: "ask " + a.name,
		}
	}
	return control.Token{Token: "token", Uses: max(1, r.Uses), Tier: r.Tier, Expires: time.Now().Add(time.Hour)}, nil
}

// Join implements control.Backend: every token is refused.
func (b *Backend) Join(context.Context, control.JoinRequest) (control.JoinResult, error) {
	return control.JoinResult{}, &control.Error{Code: control.CodeDenied, Message: "token is used up"}
}

// Leave implements control.Backend.
func (b *Backend) Leave(context.Context) (control.LeaveResult, error) {
	return control.LeaveResult{ID: b.id, MeshID: ID("mesh")}, nil
}

// Workers implements control.Backend.
func (b *Backend) Workers(context.Context) ([]control.Worker, error) {
	b.mesh.mu.Lock()
	defer b.mesh.mu.Unlock()
	var out []control.Worker
	for _, w := range b.mesh.workers {
		out = append(out, w.Worker)
	}
	return out, nil
}

// RunWorker implements control.Backend.
func (b *Backend) RunWorker(_ context.Context, r control.RunRequest, module, _ io.Reader) (control.Worker, error) {
	n, err := io.Copy(io.Discard, module)
	if err != nil {
		return control.Worker{}, err
	}
	b.mesh.mu.Lock()
	defer b.mesh.mu.Unlock()
	for _, w := range b.mesh.workers {
		if w.Name == r.Name {
			return control.Worker{}, &control.Error{Code: control.CodeConflict, Message: fmt.Sprintf("there is a worker %q already", r.Name)}
		}
	}
	w := b.mesh.addLocked(r.Name, b)
	w.MemoryBytes, w.MemoryLimit = uint64(n), r.MemoryLimit
	return w.Worker, nil
}

// Import implements control.Backend: the file is the module of a new worker.
func (b *Backend) Import(ctx context.Context, name string, file io.Reader) (control.Worker, error) {
	return b.RunWorker(ctx, control.RunRequest{Name: name}, file, nil)
}

// Export implements control.Backend: a worker's name.
func (b *Backend) Export(_ context.Context, ref string) (io.ReadCloser, error) {
	w, err := b.home(ref)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(strings.NewReader(w.Name)), nil
}

// Files implements control.Backend: there is one file, called name, with the
// worker's name in it, in the directory /data.
func (b *Backend) Files(_ context.Context, ref, path, after string) (control.FileList, error) {
	w, err := b.home(ref)
	if err != nil {
		return control.FileList{}, err
	}
	file := control.File{Name: "name", Kind: "file", Size: int64(len(w.Name))}
	switch path {
	case "/data":
		d := control.FileList{Path: path, File: control.File{Name: "data", Kind: "directory"}}
		if after < file.Name {
			d.Entries, d.More = append(d.Entries, file), true
		}
		return d, nil
	case "/data/name":
		return control.FileList{Path: path, File: file}, nil
	}
	return control.FileList{}, control.NoFile(w.Name, path)
}

// ReadFile implements control.Backend, a byte at a time.
func (b *Backend) ReadFile(_ context.Context, ref, path string, offset int64) ([]byte, error) {
	w, err := b.home(ref)
	if err != nil {
		return nil, err
	}
	if path != "/data/name" {
		return nil, control.NoFile(w.Name, path)
	}
	return []byte(w.Name[offset:min(offset+1, int64(len(w.Name)))]), nil
}

// Locate implements control.Backend.
func (b *Backend) Locate(_ context.Context, ref string) (control.Location, error) {
	b.mesh.mu.Lock()
	defer b.mesh.mu.Unlock()
	w, err := b.mesh.findLocked(ref)
	if err != nil {
		return control.Location{}, err
	}
	return control.Location{Worker: w.ID, Home: w.Home, Local: w.Home == b.id}, nil
}

// Peer implements control.Backend: each request has a pipe of its own.
func (b *Backend) Peer(node string) http.RoundTripper {
	return control.PeerTransport(func(ctx context.Context) (control.Conn, error) {
		to, err := b.mesh.node(node)
		if err != nil {
			return nil, err
		}
		if to.Unreachable {
			return nil, fmt.Errorf("dial %s: no route", to.name)
		}
		near, far := net.Pipe()
		b.mesh.serving.Go(func() { _ = to.Server.ServePeer(context.WithoutCancel(ctx), far) })
		return near, nil
	})
}

// home finds a worker that must be at home here.
func (b *Backend) home(ref string) (*worker, error) {
	b.mesh.mu.Lock()
	w, err := b.mesh.findLocked(ref)
	b.mesh.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if f := b.mesh.BeforeHome; f != nil {
		f(b.name, w.Name)
	}
	b.mesh.mu.Lock()
	defer b.mesh.mu.Unlock()
	if w.Home != b.id {
		return nil, control.Moved(w.Home)
	}
	return w, nil
}

// Worker implements control.Backend.
func (b *Backend) Worker(_ context.Context, ref string) (control.Worker, error) {
	w, err := b.home(ref)
	if err != nil {
		return control.Worker{}, err
	}
	b.mesh.mu.Lock()
	defer b.mesh.mu.Unlock()
	return w.Worker, nil
}

// Logs implements control.Backend: a node keeps what was logged on it.
func (b *Backend) Logs(ctx context.Context, ref string, follow bool, each func(control.LogLine) error) error {
	w, err := b.home(ref)
	if err != nil {
		return err
	}
	for next := 0; ; {
		b.mesh.mu.Lock()
		lines, home, changed := slices.Clone(w.logs[next:]), w.Home, w.changed
		b.mesh.mu.Unlock()
		next += len(lines)
		for _, l := range lines {
			if l.Node != b.name {
				continue
			}
			if err := each(l); err != nil {
				return err
			}
		}
		if !follow {
			return nil
		}
		if home != b.id {
			return control.Moved(home)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Migrate implements control.Backend.
func (b *Backend) Migrate(ctx context.Context, ref string, req control.MigrateRequest, progress func(control.Progress)) (control.Migration, error) {
	w, err := b.home(ref)
	if err != nil {
		return control.Migration{}, err
	}
	to, err := b.mesh.node(req.To)
	if err != nil {
		return control.Migration{}, err
	}
	if to == b {
		return control.Migration{}, &control.Error{Code: control.CodeConflict, Message: w.Name + " is at home there already"}
	}
	for i, phase := range b.mesh.MoveSteps {
		if b.mesh.Step != nil {
			select {
			case <-b.mesh.Step:
			case <-ctx.Done():
				return control.Migration{}, ctx.Err()
			}
		}
		progress(control.Progress{Phase: phase, MemoryBytes: w.MemoryBytes, PagesTotal: 256, PagesPushed: uint64(i)})
	}
	b.mesh.Place(w.Name, to.name)
	b.mesh.mu.Lock()
	defer b.mesh.mu.Unlock()
	return control.Migration{
		Worker: w.Name, WorkerID: w.ID, Strategy: req.Strategy, From: b.name, To: to.name, Epoch: w.Epoch,
		BlackoutMs: 5, TotalMs: 50, MemoryBytes: w.MemoryBytes, BytesOnWire: 4096, PagesDemanded: 1, Result: "done",
	}, nil
}

// Sample implements control.Backend: every worker writes at the same rate.
func (b *Backend) Sample(ctx context.Context, ref string, length time.Duration) (control.Worker, error) {
	w, err := b.Worker(ctx, ref)
	w.ResidentShare = 1
	w.Activity = &control.Activity{SampledMs: control.Millis(length), DirtyBytesPerSec: 1 << 20, WrittenBytes: 1 << 19}
	return w, err
}

// Plan implements control.Backend: what Migrate then is.
func (b *Backend) Plan(_ context.Context, ref string, req control.MigrateRequest) (control.MovePlan, error) {
	w, err := b.home(ref)
	if err != nil {
		return control.MovePlan{}, err
	}
	to, err := b.mesh.node(req.To)
	if err != nil {
		return control.MovePlan{}, err
	}
	return control.MovePlan{
		Worker: w.Name, WorkerID: w.ID, From: b.name, To: to.name, Auto: control.StrategyHybrid, RTTMs: 1,
		Predictions: []control.Prediction{{Strategy: control.StrategyHybrid, BlackoutMs: 5, TotalMs: 50, Bytes: 4096, RateAssumed: true}},
		Assumed:     []string{"there is no memory here"},
	}, nil
}

func (b *Backend) set(ref, state string) (control.Worker, error) {
	w, err := b.home(ref)
	if err != nil {
		return control.Worker{}, err
	}
	b.mesh.mu.Lock()
	defer b.mesh.mu.Unlock()
	w.State, w.Since = state, time.Now()
	b.mesh.changedLocked(w)
	return w.Worker, nil
}

// Pause implements control.Backend.
func (b *Backend) Pause(_ context.Context, ref string) (control.Worker, error) {
	return b.set(ref, control.StatePaused)
}

// Resume implements control.Backend.
func (b *Backend) Resume(_ context.Context, ref string) (control.Worker, error) {
	return b.set(ref, control.StateRunning)
}

// Stop implements control.Backend.
func (b *Backend) Stop(_ context.Context, ref string) (control.Worker, error) {
	return b.set(ref, control.StateStopped)
}

// Session implements control.Backend. Messages are handled in Recv, when the
// worker is running; at most Window wait for it.
func (b *Backend) Session(_ context.Context, ref string) (control.Session, error) {
	b.mesh.mu.Lock()
	defer b.mesh.mu.Unlock()
	w, err := b.mesh.findLocked(ref)
	if err != nil {
		return nil, err
	}
	return &session{mesh: b.mesh, worker: w, queue: make(chan control.Message, Window)}, nil
}

type session struct {
	mesh   *Mesh
	worker *worker
	queue  chan control.Message
}

func (s *session) Send(ctx context.Context, m control.Message) error {
	select {
	case s.queue <- m:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *session) Recv(ctx context.Context) (control.Reply, error) {
	var m control.Message
	select {
	case m = <-s.queue:
	case <-ctx.Done():
		return control.Reply{}, context.Cause(ctx)
	}
	for {
		s.mesh.mu.Lock()
		state, changed := s.worker.State, s.worker.changed
		s.mesh.mu.Unlock()
		switch state {
		case control.StateStopped:
			return control.Reply{Err: &control.Error{Code: control.CodeConflict, Message: s.worker.Name + " is stopped"}}, nil
		case control.StateRunning:
			return s.handle(m), nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return control.Reply{}, context.Cause(ctx)
		}
	}
}

func (s *session) handle(m control.Message) control.Reply {
	s.worker.inFlight.Lock()
	defer s.worker.inFlight.Unlock()
	r := s.worker.handler(m)
	s.mesh.mu.Lock()
	s.worker.Events++
	s.mesh.mu.Unlock()
	if !m.Call {
		return control.Reply{}
	}
	return r
}

func (s *session) Close() error { return nil }
