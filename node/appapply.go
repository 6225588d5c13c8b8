package node

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/node/lease"
	"meshnode/node/runner"
	"meshnode/pager"
	"meshnode/placement"
	"meshnode/placement/manifest"
)

// An app is what its workers say it is: each carries the manifest along, and the
// directory says which workers are an app's. There is no other record of it, so
// none can disagree, and none has to be found again when a node goes.
//
// The node that gets `apply` decides where new workers start and asks that node
// to start them, which fetches the module by its hash. (Starting a worker here
// and moving it at once would need no such request, but this node may not be fit
// to run it, or be closed, and would run its start for nothing.)

// applyTime bounds an apply, replicas and modules over slow links included.
const applyTime = 5 * time.Minute

// PutModule keeps a module here.
func (b backend) PutModule(_ context.Context, module io.Reader) (control.Module, error) {
	h, size, err := b.n.modules.put(module, nil)
	return control.Module{Hash: h.String(), Bytes: size}, err
}

// Apply lets an app run as its manifest says.
func (b backend) Apply(ctx context.Context, req control.ApplyRequest) (control.Applied, error) {
	n := b.n
	ctx, cancel := context.WithTimeout(ctx, applyTime)
	defer cancel()
	app, err := parseManifest(req.File, req.Manifest)
	if err != nil {
		return control.Applied{}, err
	}
	text := app.Effective()
	if len(text) > maxManifest {
		return control.Applied{}, &control.Error{
			Code:    control.CodeTooLarge,
			Message: fmt.Sprintf("the manifest has %d bytes in its effective form; at most %d travel with a worker", len(text), maxManifest),
		}
	}
	module, size, err := n.appModule(ctx, app, req.Module)
	if err != nil {
		return control.Applied{}, err
	}
	// One at a time here: the second finds the workers of the first.
	select {
	case n.applying <- struct{}{}:
		defer func() { <-n.applying }()
	case <-ctx.Done():
		return control.Applied{}, context.Cause(ctx)
	}
	out := control.Applied{App: app.Name, Workers: []control.AppliedWorker{}}
	var gone []entry
	if req.Replace {
		if gone, err = n.goneWorkers(app); err != nil {
			return out, err
		}
	}
	missing, there, err := n.appWorkers(app, gone)
	if err != nil {
		return out, err
	}
	starts, notes, err := n.placeNew(ctx, app, missing, req.PlanRequest, size)
	if err != nil {
		return out, err
	}
	out.Notes = notes
	n.writeOff(gone) // not before others can take their place
	for _, e := range there {
		out.Workers = append(out.Workers, n.giveManifest(ctx, e, app, text, module))
	}
	for _, s := range starts {
		out.Workers = append(out.Workers, n.startBest(ctx, s, control.StartRequest{
			Worker: s.name, Manifest: string(text), Module: module.String(), ModuleBytes: size, Holder: string(n.id),
		}))
	}
	slices.SortFunc(out.Workers, func(a, b control.AppliedWorker) int { return strings.Compare(a.Worker, b.Worker) })
	for _, w := range out.Workers {
		if w.Action == control.AppliedFailed {
			out.Failed++
		}
	}
	return out, nil
}

// appModule makes sure that an app's module is here. given is the hash of the
// one that came with the request, if one did.
func (n *Node) appModule(ctx context.Context, app *manifest.App, given string) (h pager.Hash, size int64, err error) {
	name := cmp.Or(app.Module.Hash, given)
	switch {
	case name == "":
		return h, 0, &control.Error{Code: control.CodeInvalid, Message: "module.path names a file, and no module came with the manifest", Hint: "`meshnode app apply` brings it"}
	case given != "" && given != name:
		return h, 0, &control.Error{Code: control.CodeInvalid, Message: fmt.Sprintf("the manifest wants module %s, and %s came with it", name, given)}
	}
	b, err := hex.DecodeString(name)
	if err != nil || len(b) != len(h) {
		return h, 0, &control.Error{Code: control.CodeInvalid, Message: fmt.Sprintf("module %.80q is no hash", name)}
	}
	h = pager.Hash(b)
	if size, ok := n.modules.have(h); ok {
		return h, size, nil
	}
	for _, id := range n.reachable(n.moduleHomes(h), n.id) {
		if size, err = n.moduleSize(ctx, id, h); err != nil {
			continue
		}
		if err = n.fetchModule(ctx, id, n.reachable(n.moduleHomes(h), n.id), h, size); err == nil {
			return h, size, nil
		}
	}
	e := &control.Error{
		Code: control.CodeNotFound, Message: fmt.Sprintf("no node that runs workers has module %s", name),
		Hint: "name its file with module.path; a hash is enough only while the mesh has the module",
	}
	if err != nil {
		e.Message += ": " + err.Error()
	}
	return h, 0, e
}

// moduleSize asks a node how large a module is.
func (n *Node) moduleSize(ctx context.Context, id mesh.NodeID, h pager.Hash) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, modulePatience)
	defer cancel()
	s, err := n.openStream(ctx, id, protoModule, mesh.Urgent)
	if err != nil {
		return 0, err
	}
	defer s.Close()
	_ = s.SetDeadline(time.Now().Add(modulePatience))
	if err := mesh.WriteMessage(s, moduleWant{Hash: h}); err != nil {
		return 0, err
	}
	var have moduleHave
	if err := mesh.ReadMessage(s, maxModuleMessage, &have); err != nil {
		return 0, err
	}
	if have.Size < 0 {
		return 0, errNoModule
	}
	return have.Size, nil
}

// appWorkers compares the workers that an app should have with those that run:
// it returns the names of those missing, and the entries of those that are there,
// to which those that are gone do not belong.
func (n *Node) appWorkers(app *manifest.App, gone []entry) (missing []string, there []entry, err error) {
	wanted := make(map[string]bool)
	for i := range app.Replicas {
		wanted[replicaName(app, i)] = true
	}
	for _, e := range n.dir.list() {
		if ended(e.State) || e.App != app.Name && !wanted[e.Name] || slices.ContainsFunc(gone, func(g entry) bool { return g.ID == e.ID }) {
			continue
		}
		if e.App != "" && e.App != app.Name {
			return nil, nil, &control.Error{
				Code: control.CodeConflict, Message: fmt.Sprintf("a worker called %s is there already, of app %s", e.Name, e.App), Hint: "give this app another name",
			}
		}
		there = append(there, e)
	}
	for name := range wanted {
		if err := control.CheckWorkerName(name); err != nil {
			return nil, nil, err
		}
		if !slices.ContainsFunc(there, func(e entry) bool { return e.Name == name }) {
			missing = append(missing, name)
		}
	}
	slices.Sort(missing)
	return missing, there, nil
}

// goneWorkers returns an app's workers whose nodes are gone. One whose guardian
// is there is about to be taken over, and is not for others to start.
func (n *Node) goneWorkers(app *manifest.App) (gone []entry, err error) {
	there := func(id mesh.NodeID) bool {
		m, known := n.mesh.Member(id)
		return known && (m.State == mesh.Alive || m.State == mesh.Suspect)
	}
	for _, e := range n.dir.list() {
		if e.App != app.Name || ended(e.State) || there(e.Home) {
			continue
		}
		if e.Guardian != "" && there(e.Guardian) {
			return nil, &control.Error{
				Code:    control.CodeConflict,
				Message: fmt.Sprintf("worker %s is not for --replace to start anew: node %s is its guardian, and takes it over", e.Name, n.nameOf(e.Guardian)),
				Hint:    "wait until it runs there; `meshnode events` on that node says what keeps it",
			}
		}
		gone = append(gone, e)
	}
	return gone, nil
}

// writeOff lists workers as lost. Only an operator can say that they are: see the
// story in autopilot.go. A node that comes back with one after all says so
// (standBy).
func (n *Node) writeOff(gone []entry) {
	for _, e := range gone {
		if e.Guardian != "" {
			// Its owner and its guardian may both come back: neither is to run it.
			e.Epoch, e.Guardian = e.Epoch+lease.Step, ""
		}
		e.State, e.Reason = control.StateLost, fmt.Sprintf("node %s is gone, and an operator had the worker started anew", n.nameOf(e.Home))
		n.dir.set(e, time.Now())
		n.log.Warn("worker written off", "worker", e.ID, "name", e.Name, "node", e.Home)
	}
}

// A start is a worker that is to be started, and where: the best node first.
type start struct {
	name     string
	nodes    []placement.NodeID
	degraded bool
}

// placeNew decides where new workers start: all of them before any is started,
// so that one that fits nowhere stops the rest.
func (n *Node) placeNew(ctx context.Context, app *manifest.App, names []string, req control.PlanRequest, moduleBytes int64) (starts []start, notes []string, err error) {
	if len(names) == 0 {
		return nil, nil, nil
	}
	entries, err := n.entries(req.Users)
	if err != nil {
		return nil, nil, err
	}
	req.ModuleBytes = moduleBytes
	v, notes, err := n.view(ctx, entries)
	if err != nil {
		return nil, nil, err
	}
	for _, name := range names {
		w, _, err := n.planned(ctx, app, name, req, entries, v)
		if err != nil {
			return nil, nil, err
		}
		w.Owner = "" // one of that name may have ended
		d, _ := v.Decide(app, &w, placement.State{})
		n.metrics.decisions.WithLabelValues(d.Action.String(), d.Reason.String()).Inc()
		if d.Action != placement.Move {
			return nil, nil, refusedApp(app, name, v.Plan(app, &w, placement.State{}))
		}
		v.Apply(app, &w, &d)
		starts = append(starts, start{name: name, nodes: append([]placement.NodeID{d.To}, d.Next...), degraded: d.Degraded})
	}
	return starts, notes, nil
}

// refusedApp says why a worker fits nowhere.
func refusedApp(app *manifest.App, worker string, p placement.Plan) error {
	var b strings.Builder
	fmt.Fprintf(&b, "app %s was not started: no node fits worker %s", app.Name, worker)
	const most = 5
	for i, r := range p.Others {
		if i == most {
			fmt.Fprintf(&b, "\n  and %d more nodes", len(p.Others)-most)
			break
		}
		fmt.Fprintf(&b, "\n  %s: ", r.Name)
		for k, f := range r.Failures {
			if k > 0 {
				b.WriteString("; ")
			}
			b.WriteString(f.String())
		}
	}
	e := &control.Error{Code: control.CodeConflict, Message: b.String(), Hint: "`meshnode app plan` shows all there is to know"}
	if len(p.Changes) > 0 {
		e.Hint = "the nearest change: " + p.Changes[0].Text
	}
	return e
}

// startBest starts a worker at the first of its nodes that takes it.
func (n *Node) startBest(ctx context.Context, s start, req control.StartRequest) control.AppliedWorker {
	out := control.AppliedWorker{Worker: s.name, Action: control.AppliedFailed, Degraded: s.degraded}
	for i, id := range s.nodes {
		node := n.nameOf(mesh.NodeID(id))
		w, err := n.startAt(ctx, mesh.NodeID(id), req)
		e := control.PlacementEvent{
			Node: n.name(), Event: control.EventStart, Worker: s.name, WorkerID: w.ID, App: appOfManifest(req.Manifest), To: node,
			Reason: placement.Start.String(), Text: "the app was applied, and this is the best node for it", Outcome: control.OutcomeDone,
		}
		if i > 0 {
			e.Text = "the app was applied, and better nodes refused"
		}
		if err != nil {
			e.Outcome, e.Error = control.OutcomeFailed, err.Error()
			n.events.add(e)
			out.Text = fmt.Sprintf("node %s did not start it: %v", node, err)
			if !tryNext(err) {
				break
			}
			continue
		}
		n.events.add(e)
		out.ID, out.Node, out.Action = w.ID, node, control.AppliedStarted
		out.Text = "started on " + node
		if s.degraded {
			out.Text += "; it breaks a hard objective there, and no node keeps all"
		}
		break
	}
	return out
}

// errNotAsked means that a node was not asked: it does not answer.
var errNotAsked = errors.New("it does not answer")

// tryNext says whether a worker that a node did not start may be started by
// another. If the node may have started it after all there would be two.
func tryNext(err error) bool {
	var e *control.Error
	if errors.Is(err, errNotAsked) {
		return true
	}
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code {
	case control.CodeUnreachable, control.CodeTimeout:
		return false // the answer did not come
	case control.CodeInvalid:
		return false // the module is at fault: no other node would start it either
	}
	return true
}

// appOfManifest is the name in a manifest that has been parsed before.
func appOfManifest(text string) string {
	app, err := manifest.Parse("manifest", []byte(text))
	if err != nil {
		return ""
	}
	return app.Name
}

// startAt has a node, which may be this one, start a worker.
func (n *Node) startAt(ctx context.Context, id mesh.NodeID, req control.StartRequest) (control.Worker, error) {
	if id == n.id {
		return backend{n}.StartWorker(ctx, req)
	}
	short, cancel := context.WithTimeout(ctx, pingTimeout)
	_, err := n.mesh.Ping(short, id)
	cancel()
	if err != nil {
		return control.Worker{}, fmt.Errorf("%w: %w", errNotAsked, err)
	}
	w, err := control.NewPeerClient(backend{n}.Peer(string(id))).StartWorker(ctx, string(id), req)
	if err != nil {
		return w, err
	}
	if w.Home != string(id) || w.Name != req.Worker {
		return w, fmt.Errorf("node %s answered with worker %.40q at %.40q", id, w.Name, w.Home)
	}
	// Gossip brings it too, but whoever asks next may be sooner.
	n.dir.learn(entry{ID: w.ID, Name: w.Name, Home: id, Epoch: w.Epoch, State: w.State, Module: w.Module, App: w.App}, id)
	return w, nil
}

// StartWorker starts a worker of an app here.
func (b backend) StartWorker(ctx context.Context, req control.StartRequest) (control.Worker, error) {
	n := b.n
	app, err := parseManifest("", req.Manifest)
	if err != nil {
		return control.Worker{}, err
	}
	if !n.claimName(req.Worker) {
		return control.Worker{}, &control.Error{Code: control.CodeConflict, Message: fmt.Sprintf("a worker called %s is being started here", req.Worker)}
	}
	defer n.freeName(req.Worker)
	if e, err := n.dir.find(req.Worker); err == nil && !ended(e.State) && e.Name == req.Worker {
		return control.Worker{}, &control.Error{
			Code: control.CodeConflict, Message: fmt.Sprintf("a worker called %s runs at node %s already", req.Worker, n.nameOf(e.Home)),
		}
	}
	h, err := hex.DecodeString(req.Module)
	if err != nil || len(h) != len(pager.Hash{}) {
		return control.Worker{}, &control.Error{Code: control.CodeInvalid, Message: fmt.Sprintf("module %.80q is no hash", req.Module)}
	}
	s := appSpec(app, req.Worker, pager.Hash(h), req.ModuleBytes)
	if err := s.validate(); err != nil {
		return control.Worker{}, &control.Error{Code: control.CodeInvalid, Message: err.Error()}
	}
	a := appState{Version: appStateVersion, Manifest: app.Effective()}
	if err := n.reserveRoom(s.ID, &a, s.MemoryLimit); err != nil {
		return control.Worker{}, err
	}
	came := false
	defer func() { n.releaseRoom(s.ID, came) }()
	if holder := mesh.NodeID(req.Holder); holder != n.id {
		if !holder.Valid() {
			return control.Worker{}, &control.Error{Code: control.CodeInvalid, Message: fmt.Sprintf("holder %.40q is no node's id", req.Holder)}
		}
		if err := n.fetchModule(ctx, holder, n.reachable(n.moduleHomes(s.Module), holder), s.Module, s.ModuleBytes); err != nil {
			return control.Worker{}, fmt.Errorf("fetch the module from node %s: %w", n.nameOf(holder), err)
		}
	}
	w, err := n.create(ctx, s, "", 1, func(w *worker) { w.govern(app, a.Manifest) })
	if err != nil {
		return control.Worker{}, startError(err)
	}
	came = true
	return w.describe(), nil
}

// twinTime is how long a new worker may turn out to have a twin: longer than the
// news of a start takes to reach all.
const twinTime = 30 * time.Second

// giveWay ends workers here that were started a moment ago, and that another node
// had been told to start as well, before either could hear of the other. Of
// twins the one with the smaller id stays, which both sides know. One that has run
// for longer is not ended for anybody.
func (n *Node) giveWay(ctx context.Context, now time.Time) {
	for _, w := range n.locals() {
		app := w.place.appName()
		if app == "" || now.Sub(time.Unix(0, w.Created)) > twinTime || !w.settled() {
			continue
		}
		for _, e := range n.dir.list() {
			if e.Name != w.Name || e.App != app || e.ID >= w.ID || ended(e.State) {
				continue
			}
			ev := n.event(w, control.EventRemove, "twin", fmt.Sprintf("node %s was told to start it at the same moment, and keeps it", n.nameOf(e.Home)))
			ev.From, ev.To, ev.Outcome = n.name(), n.nameOf(e.Home), control.OutcomeDone
			if err := n.stop(ctx, w); err != nil {
				ev.Outcome, ev.Error = control.OutcomeFailed, err.Error()
			}
			n.events.add(ev)
			n.log.Info("worker gives way to its twin", "worker", w.ID, "name", w.Name, "twin", e.ID, "node", e.Home)
			break
		}
	}
}

// claimName keeps a second worker of a name from being started while the first
// fetches its module, until freeName.
func (n *Node) claimName(name string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.starting[name] {
		return false
	}
	n.starting[name] = true
	return true
}

func (n *Node) freeName(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.starting, name)
}

// appSpec is what a worker of an app is started with.
func appSpec(app *manifest.App, name string, module pager.Hash, bytes int64) spec {
	s := spec{
		ID: newID(), Name: name, Module: module, ModuleBytes: bytes, MemoryLimit: uint64(app.Limits.Memory),
		Args: app.Args, Created: time.Now().UnixNano(),
	}
	s.MemoryLimit -= s.MemoryLimit % runner.WasmPage
	for _, k := range slices.Sorted(maps.Keys(app.Env)) {
		s.Env = append(s.Env, k+"="+app.Env[k])
	}
	switch app.Suspend {
	case manifest.SuspendEvent:
		s.Suspend = control.SuspendEvent
	case manifest.SuspendCommand:
		s.Suspend = control.SuspendAnywhere
	}
	return s
}

// giveManifest lets a worker that runs go by a manifest, at its home.
func (n *Node) giveManifest(ctx context.Context, e entry, app *manifest.App, text []byte, module pager.Hash) control.AppliedWorker {
	out := control.AppliedWorker{Worker: e.Name, ID: e.ID, Node: n.nameOf(e.Home)}
	fail := func(err error) control.AppliedWorker {
		out.Action, out.Text = control.AppliedFailed, err.Error()
		return out
	}
	surplus := true
	for i := range app.Replicas {
		surplus = surplus && replicaName(app, i) != e.Name
	}
	if surplus {
		out.Action = control.AppliedSurplus
		out.Text = fmt.Sprintf("more than the %d that the manifest asks for; `meshnode worker stop %s` ends it", app.Replicas, e.Name)
		return out
	}
	if e.Module != module.String() {
		return fail(fmt.Errorf("it runs another module (%.12s), which cannot change while it runs; `meshnode app rm %s` ends it, and its state is gone", e.Module, app.Name))
	}
	if m, ok := n.mesh.Member(e.Home); !ok || m.State == mesh.Dead || m.State == mesh.Left {
		return fail(fmt.Errorf("its node is gone; if it will not come back, `meshnode app apply --replace` starts it anew, without its state"))
	}
	c := n.self()
	defer c.Close()
	w, err := c.Worker(ctx, e.ID)
	if err != nil {
		return fail(err)
	}
	out.Node = w.HomeName
	if w.App == app.Name && w.Manifest == string(text) {
		out.Action, out.Text = control.AppliedUnchanged, "goes by this manifest already"+notGuarded(app, w)
		return out
	}
	if w, err = c.SetApp(ctx, e.ID, control.AppRequest{Manifest: string(text)}); err != nil {
		return fail(err)
	}
	out.Node, out.Action, out.Text = w.HomeName, control.AppliedChanged, "goes by the new manifest from now on, and moves if that asks for it"+notGuarded(app, w)
	return out
}

// notGuarded says what of onDisconnect a worker that was started by hand cannot
// have.
func notGuarded(app *manifest.App, w control.Worker) string {
	if app.OnDisconnect.Action != manifest.DisconnectFallback || len(w.Dirs) == 0 {
		return ""
	}
	return "; but nobody takes it over if its node falls silent: it has directories, and a guardian is given no files"
}

// self returns a client of this node: the control API finds a worker wherever
// it is, and follows it. Its owner closes it.
func (n *Node) self() *control.Client { return control.NewClient(n.cfg.Socket) }

// SetApp gives a worker at home here a manifest.
func (b backend) SetApp(ctx context.Context, ref string, req control.AppRequest) (control.Worker, error) {
	app, err := parseManifest("", req.Manifest)
	if err != nil {
		return control.Worker{}, err
	}
	text := app.Effective()
	if len(text) > maxManifest {
		return control.Worker{}, &control.Error{Code: control.CodeTooLarge, Message: fmt.Sprintf("a manifest of %d bytes, at most %d", len(text), maxManifest)}
	}
	d, err := b.command(ctx, ref, func(w *worker, ctx context.Context) error {
		if err := w.fixed(app); err != nil {
			return err
		}
		return w.command(ctx, func() error {
			w.govern(app, text)
			return nil
		})
	})
	if err != nil {
		return d, err
	}
	if w, err := b.here(ref); err == nil {
		w.announce()
		e := b.n.event(w, control.EventApply, "operator", "it was given another manifest")
		e.Outcome = control.OutcomeDone
		b.n.events.add(e)
		d = w.describe()
	}
	b.n.lookSoon()
	return d, nil
}

// fixed refuses a manifest that changes what a running worker cannot change.
func (w *worker) fixed(app *manifest.App) error {
	want := appSpec(app, w.Name, w.Module, w.ModuleBytes)
	var what string
	switch {
	case app.Module.Hash != "" && app.Module.Hash != w.Module.String():
		what = fmt.Sprintf("module.hash: it runs %s", w.Module)
	case want.MemoryLimit != w.MemoryLimit:
		what = fmt.Sprintf("limits.memory: it was started with %s", manifest.Size(w.MemoryLimit))
	case !slices.Equal(want.Args, w.Args):
		what = fmt.Sprintf("args: it was started with %q", w.Args)
	case !slices.Equal(want.Env, slices.Sorted(slices.Values(w.Env))):
		what = fmt.Sprintf("env: it was started with %q", w.Env)
	case want.Suspend != "" && want.Suspend != w.Suspend:
		what = fmt.Sprintf("suspend: it was started with %s", w.Suspend)
	default:
		return nil
	}
	return &control.Error{
		Code: control.CodeConflict, Message: fmt.Sprintf("worker %s cannot change this while it runs: %s", w.Name, what),
		Hint: "stop it and apply the manifest again; its state is gone then",
	}
}

// Pin keeps a worker where its operator puts it.
func (b backend) Pin(ctx context.Context, ref string) (control.Worker, error) {
	return b.pin(ctx, ref, true)
}

// Unpin lets it move by itself again.
func (b backend) Unpin(ctx context.Context, ref string) (control.Worker, error) {
	return b.pin(ctx, ref, false)
}

func (b backend) pin(ctx context.Context, ref string, on bool) (control.Worker, error) {
	var pinned *worker
	d, err := b.command(ctx, ref, func(w *worker, ctx context.Context) error {
		return w.command(ctx, func() error {
			w.place.mu.Lock()
			defer w.place.mu.Unlock()
			if w.place.pinned != on {
				pinned = w
			}
			w.place.pinned = on
			w.place.due = time.Time{}
			return nil
		})
	})
	if err == nil && pinned != nil {
		kind, text := control.EventPin, "an operator pinned it"
		if !on {
			kind, text = control.EventUnpin, "an operator let it move again"
		}
		e := b.n.event(pinned, kind, "operator", text)
		e.From, e.Outcome = b.n.name(), control.OutcomeDone
		b.n.events.add(e)
	}
	b.n.lookSoon()
	return d, err
}

// Apps lists the apps that have workers.
func (b backend) Apps(ctx context.Context) ([]control.App, error) {
	ws, err := b.Workers(ctx)
	if err != nil {
		return nil, err
	}
	of := make(map[string]*control.App)
	for _, w := range ws {
		if w.App == "" {
			continue
		}
		if of[w.App] == nil {
			of[w.App] = &control.App{Name: w.App}
		}
		of[w.App].Workers = append(of[w.App].Workers, w)
	}
	apps := []control.App{}
	for _, name := range slices.Sorted(maps.Keys(of)) {
		apps = append(apps, *of[name])
	}
	return apps, nil
}

// App describes one app; its workers are asked at their homes.
func (b backend) App(ctx context.Context, name string) (control.App, error) {
	apps, err := b.Apps(ctx)
	if err != nil {
		return control.App{}, err
	}
	i := slices.IndexFunc(apps, func(a control.App) bool { return a.Name == name })
	if i < 0 {
		names := make([]string, len(apps))
		for i, a := range apps {
			names[i] = a.Name
		}
		return control.App{}, control.NotFound("app", name, names)
	}
	a := apps[i]
	c := b.n.self()
	defer c.Close()
	for i, w := range a.Workers {
		if ended(w.State) {
			continue
		}
		full, err := c.Worker(ctx, w.ID)
		if err != nil {
			a.Notes = append(a.Notes, fmt.Sprintf("worker %s did not answer: %v", w.Name, err))
			continue
		}
		switch {
		case a.Manifest == "":
			a.Manifest = full.Manifest
		case a.Manifest != full.Manifest:
			a.Notes = append(a.Notes, fmt.Sprintf("worker %s goes by another manifest than %s; apply it again", w.Name, a.Workers[0].Name))
		}
		full.Manifest = ""
		a.Workers[i] = full
	}
	return a, nil
}

// RemoveApp stops an app's workers.
func (b backend) RemoveApp(ctx context.Context, name string) (control.App, error) {
	a, err := b.App(ctx, name)
	if err != nil {
		return a, err
	}
	c := b.n.self()
	defer c.Close()
	var errs []error
	for i, w := range a.Workers {
		stopped, err := c.Stop(ctx, w.ID)
		if err != nil && !errors.Is(err, &control.Error{Code: control.CodeNotFound}) {
			errs = append(errs, fmt.Errorf("worker %s: %w", w.Name, err))
			continue
		}
		e := control.PlacementEvent{
			Node: b.n.name(), Event: control.EventRemove, Worker: w.Name, WorkerID: w.ID, App: name, Reason: "operator",
			Text: "its app was removed", From: w.HomeName, Outcome: control.OutcomeDone,
		}
		b.n.events.add(e)
		if err == nil {
			a.Workers[i] = stopped
		}
	}
	if len(errs) > 0 {
		return a, fmt.Errorf("app %s is removed but for some of its workers: %w", name, errors.Join(errs...))
	}
	return a, nil
}
