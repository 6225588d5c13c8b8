package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/node/runner"
	"meshnode/node/suspend"
)

// protoControl carries requests of the control API that concern a worker at
// home at the peer.
const protoControl = "control"

// defaultMemoryLimit is what a worker may use if nobody says otherwise, in
// bytes.
const defaultMemoryLimit = 256 << 20

// backend is the node as the control API sees it.
type backend struct{ n *Node }

var _ control.Backend = backend{}

func (b backend) Status(context.Context) (control.Status, error) {
	n := b.n
	st := control.Status{
		ID: string(n.id), Name: n.name(), Tier: n.mesh.Membership().Tier.String(), MeshID: n.mesh.MeshID(),
		Authority: n.mesh.Membership().Authority, Version: n.cfg.Version.Version, PID: os.Getpid(),
		Started: n.started, UptimeMs: control.Millis(time.Since(n.started)),
		StateDir: n.cfg.StateDir, Listen: n.mesh.LocalAddr().String(), Endpoints: []string{},
		Metrics: n.Metrics(), Labels: n.said.labels(), Cordoned: n.said.cordoned(), Engine: n.engine(), Paging: n.paging(),
	}
	for _, m := range n.mesh.Members() {
		switch m.State {
		case mesh.Alive:
			st.Members.Alive++
		case mesh.Suspect:
			st.Members.Suspect++
		case mesh.Dead:
			st.Members.Dead++
		case mesh.Left:
			st.Members.Left++
		}
		if m.Self {
			for _, e := range m.Record.Endpoints {
				st.Endpoints = append(st.Endpoints, e.String())
			}
		}
	}
	n.mu.Lock()
	st.Workers = len(n.workers)
	n.mu.Unlock()
	for _, a := range n.attached.list() {
		name := a.worker
		if e, ok := n.dir.get(a.worker); ok {
			name = e.Name
		}
		st.Clients = append(st.Clients, control.AttachedClient{ID: string(a.client), Worker: name, Since: a.since, RTTMs: control.Millis(a.access())})
	}
	return st, nil
}

func (b backend) Nodes(context.Context) ([]control.Node, error) {
	var ns []control.Node
	for _, m := range b.n.mesh.Members() {
		ns = append(ns, b.n.describeNode(m))
	}
	return ns, nil
}

func (n *Node) describeNode(m mesh.Member) control.Node {
	r := m.Record
	c := control.Node{
		ID: string(m.ID), Name: r.Name, Self: m.Self, Tier: r.Tier.String(), State: m.State.String(), Since: m.Since,
		OS: r.OS, Arch: r.Arch, Cores: int(r.Cores), MemoryFreeBytes: uint64(r.MemoryFree) << 20,
		LoadPercent: int(r.Load), Engine: r.Engine, Paging: r.Paging, Cordoned: r.Cordoned, Speed: r.Speed,
		UplinkBytesPerSec: float64(r.Uplink) * 1024, DownlinkBytesPerSec: float64(r.Downlink) * 1024, RTTMs: control.Millis(m.RTT),
	}
	if self, ok := n.mesh.Member(n.id); ok && !m.Self {
		if est, ok := self.Record.Coordinate.RTT(r.Coordinate); ok {
			c.RTTEstimateMs = control.Millis(est)
			c.RTTErrorShare = (self.Record.Coordinate.Error + r.Coordinate.Error) / 2
		}
	}
	if !m.Heard.IsZero() {
		c.AgeMs = control.Millis(time.Since(m.Heard))
	}
	if m.Endpoint.IsValid() {
		c.Endpoint = m.Endpoint.String()
	}
	for _, e := range r.Endpoints {
		c.Endpoints = append(c.Endpoints, e.String())
	}
	if r.DocumentDigest != ([32]byte{}) {
		c.DocumentDigest = fmt.Sprintf("%x", r.DocumentDigest)
	}
	return c
}

// member resolves a node's name, id, or the beginning of its id. Nodes that
// left or died come after those that are there.
func (n *Node) member(ref string) (mesh.Member, error) {
	members := n.mesh.Members()
	there := slices.Clone(members)
	there = slices.DeleteFunc(there, func(m mesh.Member) bool { return m.State == mesh.Dead || m.State == mesh.Left })
	if i, err := control.Match("node", ref, nodeRefs(there)); err == nil {
		return there[i], nil
	}
	i, err := control.Match("node", ref, nodeRefs(members))
	if err != nil {
		return mesh.Member{}, err
	}
	return members[i], nil
}

func nodeRefs(ms []mesh.Member) []control.Named {
	refs := make([]control.Named, len(ms))
	for i, m := range ms {
		refs[i] = control.Named{ID: string(m.ID), Name: m.Record.Name}
	}
	return refs
}

func (b backend) Node(ctx context.Context, ref string) (control.Node, error) {
	m, err := b.n.member(ref)
	if err != nil {
		return control.Node{}, err
	}
	c := b.n.describeNode(m)
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if doc, err := b.n.mesh.Document(ctx, m.ID); err != nil {
		c.DocumentError = err.Error()
	} else {
		c.Document = doc
		if caps, err := parseCapabilities(doc); err != nil {
			c.DocumentError = err.Error()
		} else {
			c.Labels, c.Interfaces, c.Accelerators, c.Promises = caps.Labels, caps.Interfaces, caps.Accelerators, caps.Promises
			c.Kept = caps.Kept
			if p := caps.Promises; p != nil {
				if seen, ok := b.n.promises.movesIn(m.ID, duration(p.MoveInMs)); ok {
					c.KeptMoveIn = recordOf(seen)
				}
			}
		}
	}
	for _, e := range b.n.dir.list() {
		if e.Home == m.ID {
			c.Workers = append(c.Workers, b.n.fromEntry(e))
		}
	}
	return c, nil
}

func (b backend) LocateNode(_ context.Context, ref string) (control.Location, error) {
	m, err := b.n.member(ref)
	if err != nil {
		return control.Location{}, err
	}
	return control.Location{Home: string(m.ID), Local: m.ID == b.n.id}, nil
}

func (b backend) Configure(ctx context.Context, req control.NodeSettings) (control.Node, error) {
	if err := b.n.configure(req); err != nil {
		return control.Node{}, err
	}
	return b.Node(ctx, string(b.n.id))
}

// fromEntry returns what the directory knows of a worker.
func (n *Node) fromEntry(e entry) control.Worker {
	w := control.Worker{
		ID: e.ID, Name: e.Name, Module: e.Module, Home: string(e.Home), HomeName: n.nameOf(e.Home),
		Epoch: e.Epoch, State: e.State, Reason: e.Reason, App: e.App,
	}
	if e.Guardian != "" {
		w.Guardian = &control.Guardian{Node: string(e.Guardian), NodeName: n.nameOf(e.Guardian), State: control.LeaseHeld}
	}
	return w
}

func (b backend) Ping(ctx context.Context, ref string, count int, each func(control.Ping) error) error {
	m, err := b.n.member(ref)
	if err != nil {
		return err
	}
	for i := 1; i <= count; i++ {
		if i > 1 {
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		p, err := b.n.mesh.Ping(ctx, m.ID)
		if err != nil {
			return reachError(err)
		}
		err = each(control.Ping{
			Node: string(m.ID), Name: m.Record.Name, Seq: i, Endpoint: p.Endpoint.String(), Path: "direct",
			RTTMs: control.Millis(p.RTT), SmoothedMs: control.Millis(p.Smoothed), MinMs: control.Millis(p.Min),
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// reachError marks an error of the mesh that means: no way to that node.
func reachError(err error) error {
	if errors.Is(err, mesh.ErrUnreachable) || errors.Is(err, mesh.ErrUnknownPeer) || errors.Is(err, mesh.ErrWrongPeer) {
		return &control.Error{
			Code: control.CodeUnreachable, Message: err.Error(),
			Hint: "`meshnode node ls` shows which nodes answer",
		}
	}
	return err
}

func (b backend) CreateToken(_ context.Context, req control.TokenRequest) (control.Token, error) {
	tr := mesh.TokenRequest{TTL: time.Duration(req.TTLMs * float64(time.Millisecond)), Uses: req.Uses}
	if req.Tier != "" {
		tier, err := mesh.ParseTier(req.Tier)
		if err != nil {
			return control.Token{}, &control.Error{Code: control.CodeInvalid, Message: err.Error()}
		}
		tr.Tier = tier
	}
	token, expires, err := b.n.mesh.CreateToken(tr)
	if errors.Is(err, mesh.ErrNotAuthority) {
		hint := "ask the node that founded the mesh"
		for _, m := range b.n.mesh.Members() {
			if m.Record.Authority {
				hint = fmt.Sprintf("ask node %s, which founded the mesh", m.Record.Name)
			}
		}
		return control.Token{}, &control.Error{Code: control.CodeDenied, Message: err.Error(), Hint: hint}
	}
	if err != nil {
		return control.Token{}, err
	}
	return control.Token{Token: token, Expires: expires, Uses: max(1, req.Uses), Tier: req.Tier}, nil
}

// Join enrols the node in another mesh. It must be the only member of its own
// and have no worker: both would be left behind.
func (b backend) Join(ctx context.Context, req control.JoinRequest) (control.JoinResult, error) {
	n := b.n
	if len(n.locals()) > 0 || len(n.mesh.Members()) > 1 {
		return control.JoinResult{}, &control.Error{
			Code:    control.CodeConflict,
			Message: "this node belongs to a mesh with other nodes or workers in it",
			Hint:    "stop or move its workers and run `meshnode leave` first",
		}
	}
	// The mesh it is in goes on until the new membership is there, and is
	// replaced when nothing runs on it any more.
	m, err := mesh.Enrol(ctx, mesh.EnrolConfig{
		Dir: n.cfg.StateDir, Token: req.Token, Via: req.Via, Log: n.log, Stage: true,
	})
	if err != nil {
		return control.JoinResult{}, JoinError(err)
	}
	n.cancel(ErrRestart)
	return control.JoinResult{
		ID: string(m.ID), Name: n.name(), MeshID: m.MeshID, Tier: m.Tier.String(), Expires: m.Expires,
	}, nil
}

// JoinError gives an error of [mesh.Enrol] its code in the control API, and says
// what to do.
func JoinError(err error) error {
	e := &control.Error{Code: control.CodeFailed, Message: err.Error()}
	switch {
	case errors.Is(err, mesh.ErrTokenMalformed):
		e.Code = control.CodeInvalid
		e.Hint = "`meshnode token create` makes a token on the node that founded the mesh; pass it on whole"
	case errors.Is(err, mesh.ErrHaveMesh):
		e.Code, e.Hint = control.CodeConflict, "`meshnode leave` takes this node out of it"
	case errors.Is(err, mesh.ErrTokenUsed), errors.Is(err, mesh.ErrTokenExpired), errors.Is(err, mesh.ErrTokenForged):
		e.Code, e.Hint = control.CodeDenied, "`meshnode token create` makes a new token on the node that founded the mesh"
	case errors.Is(err, mesh.ErrForeignMesh):
		e.Code, e.Hint = control.CodeDenied, "the token is from another mesh than the node that answered"
	case errors.Is(err, mesh.ErrInsecureKey):
		e.Code = control.CodeDenied
	case errors.Is(err, mesh.ErrAuthorityUnreachable), errors.Is(err, mesh.ErrBusy):
		e.Code, e.Hint = control.CodeUnreachable, "try again when it is back"
	case errors.Is(err, mesh.ErrUnreachable), errors.Is(err, mesh.ErrNotMesh):
		e.Code, e.Hint = control.CodeUnreachable, "check the address and the port (UDP) of a node of the mesh, and that its daemon runs"
	case errors.Is(err, context.DeadlineExceeded):
		e.Code = control.CodeTimeout
	}
	return e
}

// Leave takes the node out of its mesh for good and ends the daemon.
func (b backend) Leave(context.Context) (control.LeaveResult, error) {
	n := b.n
	n.mu.Lock()
	busy := len(n.workers) + len(n.incoming) + len(n.outgoing)
	n.mu.Unlock()
	if busy > 0 {
		return control.LeaveResult{}, &control.Error{
			Code:    control.CodeConflict,
			Message: fmt.Sprintf("%d workers are at home here or on their way", busy),
			Hint:    "move them with `meshnode worker migrate NAME --to NODE`, or stop them",
		}
	}
	if err := mesh.RemoveMembership(n.cfg.StateDir); err != nil {
		return control.LeaveResult{}, err
	}
	n.cancel(errLeft)
	return control.LeaveResult{ID: string(n.id), MeshID: n.mesh.MeshID()}, nil
}

func (b backend) Workers(context.Context) ([]control.Worker, error) {
	ws := []control.Worker{}
	for _, e := range b.n.dir.list() {
		if e.Home == b.n.id {
			if w := b.n.local(e.ID); w != nil {
				ws = append(ws, w.describe())
				continue
			}
		}
		ws = append(ws, b.n.fromEntry(e))
	}
	return ws, nil
}

// local returns a worker at home here, even one that failed or was lost.
func (n *Node) local(id string) *worker {
	n.mu.Lock()
	defer n.mu.Unlock()
	if w := n.workers[id]; w != nil {
		return w
	}
	return n.ended[id]
}

func (b backend) RunWorker(ctx context.Context, req control.RunRequest, module, files io.Reader) (control.Worker, error) {
	n := b.n
	if err := n.free(req.Name); err != nil {
		return control.Worker{}, err
	}
	h, size, err := n.modules.put(module, nil)
	if err != nil {
		return control.Worker{}, err
	}
	s := spec{
		ID: newID(), Name: req.Name, Module: h, ModuleBytes: size, MemoryLimit: req.MemoryLimit,
		Args: req.Args, Env: req.Env, Created: time.Now().UnixNano(), Suspend: req.Suspend,
	}
	var archive string
	if files != nil {
		if archive, err = n.modules.spool(files); err != nil {
			return control.Worker{}, err
		}
		defer os.Remove(archive)
		s.FilesLimit = req.FilesLimit
		for _, d := range req.Dirs {
			s.Dirs = append(s.Dirs, runner.Dir(d))
		}
	}
	if s.MemoryLimit == 0 {
		s.MemoryLimit = defaultMemoryLimit
	}
	s.MemoryLimit -= s.MemoryLimit % runner.WasmPage
	if err := s.validate(); err != nil {
		return control.Worker{}, &control.Error{Code: control.CodeInvalid, Message: err.Error()}
	}
	w, err := n.create(ctx, s, archive, 1, nil)
	if err != nil {
		return control.Worker{}, startError(err)
	}
	return w.describe(), nil
}

// startError gives an error of starting a worker its code and what to do.
func startError(err error) error {
	var refused *suspend.RefusedError
	if errors.As(err, &refused) {
		return &control.Error{Code: control.CodeInvalid, Message: refused.Error(), Hint: refused.Hint}
	}
	return err
}

func (b backend) Locate(_ context.Context, ref string) (control.Location, error) {
	e, err := b.n.dir.find(ref)
	if err != nil {
		return control.Location{}, err
	}
	if b.n.local(e.ID) != nil {
		return control.Location{Worker: e.ID, Home: string(b.n.id), Local: true}, nil
	}
	if _, taken := b.n.takesOver(e.ID); e.Home == b.n.id && (taken || b.n.orphaned(e.ID) != nil) {
		return control.Location{Worker: e.ID, Home: string(b.n.id), Local: true}, nil
	}
	if e.Home == b.n.id {
		// Stopped here a moment ago.
		return control.Location{}, control.NotFound("worker", ref, nil)
	}
	return control.Location{Worker: e.ID, Home: string(e.Home)}, nil
}

func (b backend) Peer(node string) http.RoundTripper {
	return repeater{control.PeerTransport(func(ctx context.Context) (control.Conn, error) {
		s, err := b.n.mesh.Open(ctx, mesh.NodeID(node), protoControl, mesh.Urgent)
		if err != nil {
			return nil, reachError(err)
		}
		return s, nil
	})}
}

// A repeater sends a request again of which the peer has seen nothing.
type repeater struct{ http.RoundTripper }

func (t repeater) RoundTrip(r *http.Request) (resp *http.Response, err error) {
	hasBody := r.Body != nil && r.Body != http.NoBody
	if hasBody && r.GetBody == nil {
		return t.RoundTripper.RoundTrip(r)
	}
	err = mesh.Again(r.Context(), func() error {
		next := r
		if err != nil && hasBody { // which the try before has read
			body, bodyErr := r.GetBody()
			if bodyErr != nil {
				return err
			}
			next = r.Clone(r.Context())
			next.Body = body
		}
		resp, err = t.RoundTripper.RoundTrip(next)
		return err
	})
	return resp, err
}

// here returns a local worker, or the error that says where it is.
func (b backend) here(ref string) (*worker, error) {
	e, err := b.n.dir.find(ref)
	if err != nil {
		return nil, err
	}
	if w := b.n.local(e.ID); w != nil {
		return w, nil
	}
	if e.Home == b.n.id {
		if w := b.n.orphaned(e.ID); w != nil {
			e.State, e.Reason = control.StateOrphaned, w.describe().Reason
			return nil, notHereError(e)
		}
		if e, ok := b.n.takesOver(e.ID); ok {
			return nil, notHereError(e)
		}
		return nil, control.NotFound("worker", ref, nil)
	}
	return nil, control.Moved(string(e.Home))
}

func (b backend) Worker(_ context.Context, ref string) (control.Worker, error) {
	w, err := b.here(ref)
	if err != nil {
		if e, ferr := b.n.dir.find(ref); ferr == nil && e.Home == b.n.id {
			if o := b.n.orphaned(e.ID); o != nil {
				return o.describeOrphan(), nil
			}
			if e, ok := b.n.takesOver(e.ID); ok {
				return b.n.fromEntry(e), nil
			}
		}
		return control.Worker{}, err
	}
	c := w.describe()
	if !ended(c.State) {
		c.ResidentShare = b.n.residentShare(w)
	}
	w.place.mu.Lock()
	c.Manifest = string(w.place.text)
	w.place.mu.Unlock()
	b.n.describeUse(w, &c)
	c.Guardian = w.guardianState()
	return c, nil
}

// describeUse adds who used a worker in the last minute, and what that took.
func (n *Node) describeUse(w *worker, c *control.Worker) {
	s := w.times.summary(time.Now())
	c.EventMsP50, c.EventMsP99 = control.Millis(s.p50), control.Millis(s.p99)
	if w.runner != nil {
		c.HeldMs = control.Millis(w.runner.Held())
		c.Interfaces = w.interfaces()
	}
	for id, u := range s.users {
		c.Users = append(c.Users, control.WorkerUsers{
			Node: string(id), NodeName: n.nameOf(id), RatePerSecond: u.rate,
			AccessMsP50: control.Millis(u.access.P50), AccessMsP99: control.Millis(u.access.P99),
		})
	}
	slices.SortFunc(c.Users, func(a, b control.WorkerUsers) int {
		return cmp.Or(cmp.Compare(b.RatePerSecond, a.RatePerSecond), strings.Compare(a.Node, b.Node))
	})
}

func (b backend) Sample(ctx context.Context, ref string, length time.Duration) (control.Worker, error) {
	w, err := b.here(ref)
	if err != nil {
		return control.Worker{}, err
	}
	a, err := b.n.sample(ctx, w, length)
	if err != nil {
		return control.Worker{}, err
	}
	c, err := b.Worker(ctx, w.ID)
	c.Activity = &a
	return c, err
}

func (b backend) Plan(ctx context.Context, ref string, req control.MigrateRequest) (control.MovePlan, error) {
	w, err := b.here(ref)
	if err != nil {
		return control.MovePlan{}, err
	}
	to, err := b.n.member(req.To)
	if err != nil {
		return control.MovePlan{}, err
	}
	return b.n.plan(ctx, w, to)
}

func (b backend) Logs(ctx context.Context, ref string, follow bool, each func(control.LogLine) error) error {
	w, err := b.here(ref)
	if err != nil {
		return err
	}
	if err := w.logs.each(ctx, follow, each); err != nil || !follow || ctx.Err() != nil {
		return err
	}
	if e, ok := b.n.dir.get(w.ID); ok && e.Home != b.n.id && !ended(e.State) {
		return control.Moved(string(e.Home))
	}
	return nil
}

func (b backend) Migrate(ctx context.Context, ref string, req control.MigrateRequest, progress func(control.Progress)) (control.Migration, error) {
	w, err := b.here(ref)
	if err != nil {
		return control.Migration{}, err
	}
	to, err := b.n.member(req.To)
	if err != nil {
		return control.Migration{}, err
	}
	return b.n.relocate(ctx, w, to, req, byOperator, progress)
}

func (b backend) Pause(ctx context.Context, ref string) (control.Worker, error) {
	return b.command(ctx, ref, (*worker).pause)
}

func (b backend) Resume(ctx context.Context, ref string) (control.Worker, error) {
	return b.command(ctx, ref, (*worker).resume)
}

// Stop ends a worker for good; one that failed or was lost is forgotten.
func (b backend) Stop(ctx context.Context, ref string) (control.Worker, error) {
	w, err := b.here(ref)
	if err != nil {
		if e, ferr := b.n.dir.find(ref); ferr == nil && b.n.orphaned(e.ID) != nil {
			o := b.n.orphaned(e.ID)
			err = b.n.stopOrphan(o)
			return o.describe(), err
		}
		return control.Worker{}, err
	}
	if err := b.n.stop(ctx, w); err != nil {
		return control.Worker{}, err
	}
	return w.describe(), nil
}

func (b backend) command(ctx context.Context, ref string, do func(*worker, context.Context) error) (control.Worker, error) {
	w, err := b.here(ref)
	if err != nil {
		return control.Worker{}, err
	}
	err = do(w, ctx)
	if errors.Is(err, errGone) {
		d := w.describe()
		if e, ok := b.n.dir.get(w.ID); ok && e.Home != b.n.id {
			return control.Worker{}, control.Moved(string(e.Home))
		}
		return control.Worker{}, &control.Error{
			Code:    control.CodeConflict,
			Message: strings.TrimSuffix(fmt.Sprintf("worker %s is %s: %s", w.Name, d.State, d.Reason), ": "),
		}
	}
	if err != nil {
		return control.Worker{}, err
	}
	return w.describe(), nil
}

// Session opens a sender for a client of this node.
func (b backend) Session(_ context.Context, ref string) (control.Session, error) {
	e, err := b.n.dir.find(ref)
	if err != nil {
		return nil, err
	}
	if ended(e.State) {
		return nil, sessionError(&endedError{worker: e.Name, state: e.State, reason: e.Reason})
	}
	return session{b.n.newSender(e.ID)}, nil
}

type session struct{ s *Sender }

func (s session) Send(ctx context.Context, m control.Message) error {
	return sessionError(s.s.Send(ctx, m.Call, slices.Clone(m.Payload)))
}

func (s session) Recv(ctx context.Context) (control.Reply, error) {
	r, err := s.s.Recv(ctx)
	if err != nil {
		return control.Reply{}, sessionError(err)
	}
	return control.Reply{Payload: r.Payload, Status: r.Status}, nil
}

func (s session) Close() error {
	s.s.Close()
	return nil
}

func sessionError(err error) error {
	var e *endedError
	if errors.As(err, &e) {
		if e.state == control.StateSuperseded {
			return &control.Error{Code: control.CodeFailed, Message: e.Error(), Hint: "a new session reaches the worker that runs now"}
		}
		hint := "`meshnode worker logs " + e.worker + "` may say more; `worker stop` forgets it"
		if e.state == control.StateStopped {
			return &control.Error{Code: control.CodeNotFound, Message: e.Error()}
		}
		return &control.Error{Code: control.CodeFailed, Message: e.Error(), Hint: hint}
	}
	return err
}

func errPayload(n int) error {
	return &control.Error{
		Code:    control.CodeTooLarge,
		Message: fmt.Sprintf("payload is %d bytes, the limit is %d", n, MaxPayload),
	}
}
