package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"sync"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/node/handover"
	"meshnode/node/lease"
	"meshnode/pager"
	"meshnode/placement/manifest"
)

// This is the guardian's side of a lease: what this node does with workers of
// others that it is to take over if their owners fall silent. leased.go is the
// owner's side.

const (
	// maxGuards bounds the workers for which one node is the guardian.
	maxGuards = 4096
	// takePatience bounds the start of a worker that was taken, and takeAgain is
	// how long one that could not be started waits.
	takePatience = prepareTimeout
	takeAgain    = 5 * time.Second
)

// guards are the leases of which this node is the guardian. Each has a file, so
// that a damaged one concerns one worker.
type guards struct {
	dir string

	mu     sync.Mutex
	of     map[string]*guard // by worker
	closed bool
	// replicaBytes is what checkpoints take, those that are coming too.
	replicaBytes int64
}

// A guard is one of them.
type guard struct {
	mu sync.Mutex
	g  lease.Guard
	// gone is set when it was taken off the list.
	gone bool
	// yielded is set when its owner said that it may be taken.
	yielded bool
	// Of a worker that was taken and does not run yet.
	starting bool
	after    time.Time // no attempt before
	failure  string
	// replica is the last whole checkpoint, nil if there is none. It is not on
	// disk: a guardian that restarts has none until the next.
	replica *replica
}

// guardMagic and a version open each file, then comes the CRC-32C of the rest.
const (
	guardMagic   = "MNGU"
	guardVersion = 1
	guardHead    = len(guardMagic) + 1 + 4
)

var guardTable = crc32.MakeTable(crc32.Castagnoli)

func encodeGuard(r lease.Record) []byte {
	body, err := encMode.Marshal(r)
	if err != nil {
		panic(err) // a struct of strings and numbers
	}
	b := append([]byte(guardMagic), guardVersion)
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(body, guardTable))
	return append(b, body...)
}

func decodeGuard(b []byte) (lease.Record, error) {
	var r lease.Record
	switch {
	case len(b) < guardHead || string(b[:len(guardMagic)]) != guardMagic:
		return r, errors.New("not a lease record")
	case b[len(guardMagic)] != guardVersion:
		return r, fmt.Errorf("lease record of version %d, this program reads %d", b[len(guardMagic)], guardVersion)
	case binary.BigEndian.Uint32(b[len(guardMagic)+1:]) != crc32.Checksum(b[guardHead:], guardTable):
		return r, errors.New("lease record with a wrong checksum")
	}
	if err := decMode.Unmarshal(b[guardHead:], &r); err != nil {
		return r, fmt.Errorf("lease record: %w", err)
	}
	return r, r.Validate()
}

// openGuards reads what is on disk. A lease of before counts anew from now.
func openGuards(dir string) (*guards, error) {
	gs := &guards{dir: dir, of: make(map[string]*guard)}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		path := filepath.Join(dir, f.Name())
		if !validID(f.Name()) {
			_ = os.Remove(path) // of a write that was not finished
			continue
		}
		b, err := readSmall(path)
		var rec lease.Record
		if err == nil {
			rec, err = decodeGuard(b)
		}
		if err == nil && rec.Worker != f.Name() {
			err = fmt.Errorf("it is of worker %.40q", rec.Worker)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w. It says whether this node has taken that worker over: restore it from a copy, or, if no node runs the worker that once did, remove it", path, err)
		}
		gs.of[rec.Worker] = &guard{g: lease.RestoreGuard(rec, guardClock())}
	}
	return gs, nil
}

var guardEpoch = time.Now()

// guardClock is the clock of guardians. It may stand still while the machine is
// suspended: then the owner gets time to be heard before its worker is taken.
func guardClock() time.Duration { return time.Since(guardEpoch) }

// get returns a worker's guard, locked, and makes one if need be. ok is false
// where there are too many.
func (gs *guards) get(worker string) (g *guard, ok bool) {
	for {
		gs.mu.Lock()
		g := gs.of[worker]
		if g == nil {
			if len(gs.of) >= maxGuards {
				gs.mu.Unlock()
				return nil, false
			}
			g = &guard{g: lease.NewGuard(worker)}
			if gs.closed {
				g.g.Close()
			}
			gs.of[worker] = g
		}
		gs.mu.Unlock()
		g.mu.Lock()
		if !g.gone {
			return g, true
		}
		g.mu.Unlock()
	}
}

func (gs *guards) list() []*guard {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	out := make([]*guard, 0, len(gs.of))
	for _, g := range gs.of {
		out = append(out, g)
	}
	return out
}

// saveLocked puts a guard's record on disk, if it has changed, or takes it off.
func (gs *guards) saveLocked(g *guard) error {
	if !g.g.Unsaved() {
		return nil
	}
	rec := g.g.Record()
	path := filepath.Join(gs.dir, rec.Worker)
	var err error
	if g.g.Empty(time.Now().Unix()) {
		err = ignoreNotExist(os.Remove(path))
	} else {
		err = writeSmall(path, encodeGuard(rec))
	}
	if err = errors.Join(err, mesh.SyncDir(gs.dir)); err != nil {
		return fmt.Errorf("lease record not on disk: %w", err)
	}
	g.g.Saved()
	return nil
}

// close gives all leases back, each at its next renewal.
func (gs *guards) close() {
	gs.mu.Lock()
	gs.closed = true
	gs.mu.Unlock()
	for _, g := range gs.list() {
		g.mu.Lock()
		g.g.Close()
		g.mu.Unlock()
	}
}

// held counts the leases held.
func (gs *guards) held() (count int) {
	for _, g := range gs.list() {
		g.mu.Lock()
		if rec := g.g.Record(); rec.Held() {
			count++
		}
		g.mu.Unlock()
	}
	return count
}

// modules returns the modules that are needed to start what may have to be
// taken.
func (gs *guards) modules() (hs []pager.Hash) {
	for _, g := range gs.list() {
		g.mu.Lock()
		meta := g.g.Record().Meta
		g.mu.Unlock()
		if m, err := parseGuardMeta(meta); err == nil {
			hs = append(hs, m.Spec.Module)
		}
	}
	return hs
}

func parseGuardMeta(b []byte) (recordMeta, error) {
	var m recordMeta
	if err := decMode.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("what the worker is: %w", err)
	}
	if err := m.Spec.validate(); err != nil {
		return m, fmt.Errorf("what the worker is: %w", err)
	}
	if m.App == nil {
		return m, errors.New("what the worker is: it has no manifest")
	}
	return m, nil
}

// parseApp reads the manifest of a worker with a guardian, which has one.
func (m *recordMeta) parseApp() (*manifest.App, error) {
	app, err := m.App.parse()
	if err == nil && app == nil {
		err = errors.New("what the worker is: its manifest is empty")
	}
	return app, err
}

// serveLease answers an owner.
func (n *Node) serveLease(ctx context.Context, s *mesh.Stream) {
	stop := context.AfterFunc(ctx, func() { interrupt(s) })
	defer stop()
	for {
		var m lease.Message
		if err := mesh.ReadMessage(s, lease.MaxMessage, &m); err != nil {
			return
		}
		answer, err := n.answerOwner(ctx, s.Peer(), m)
		if err == nil {
			err = mesh.WriteMessage(s, answer)
		}
		if err != nil {
			n.log.Debug("lease stream ended", "peer", s.Peer(), "error", err)
			return
		}
	}
}

func (n *Node) answerOwner(ctx context.Context, from mesh.NodeID, m lease.Message) (lease.Message, error) {
	if err := m.Validate(); err != nil {
		return m, err
	}
	if !validID(m.Worker) || m.Kind > lease.Yield {
		return m, fmt.Errorf("%v about worker %.40q is not an owner's to send", m.Kind, m.Worker)
	}
	refused := lease.Message{Kind: lease.Refused, Worker: m.Worker, Epoch: m.Epoch}
	if m.Kind == lease.Ask {
		if err := n.mayGuard(ctx, from, m); err != nil {
			refused.Reason = cutTo(err.Error(), lease.MaxReason)
			return refused, nil
		}
	}
	g, ok := n.guards.get(m.Worker)
	if !ok {
		refused.Reason = fmt.Sprintf("it is the guardian of %d workers, the limit", maxGuards)
		if m.Kind == lease.Renew || m.Kind == lease.Yield { // of a lease that is not among them
			refused.Kind, refused.Ticket = lease.Unknown, m.Ticket
		}
		return refused, nil
	}
	defer g.mu.Unlock()
	rec := g.g.Record()
	answer := g.g.Handle(string(from), m, handover.NewTicket(), guardClock(), time.Now().Unix())
	n.guards.tidyLocked(g)
	if err := n.guards.saveLocked(g); err != nil {
		n.log.Error("lease not answered", "worker", m.Worker, "error", err)
		return answer, err
	}
	if m.Kind == lease.Yield && answer.Kind == lease.Taken && rec.Held() {
		g.yielded = true
		n.tasks.Go(func() { n.lookAtGuard(g) })
	}
	if e, ok := n.dir.get(m.Worker); ok && answer.Kind == lease.Taken {
		answer.Home = string(e.Home)
		if e.Epoch < answer.Epoch {
			answer.Home = string(n.id) // it is about to start here
		}
	}
	return answer, nil
}

// cutTo shortens a text for people.
func cutTo(s string, most int) string {
	if len(s) > most {
		s = s[:most]
	}
	return s
}

// mayGuard says why this node cannot be the guardian of a worker, and gets ready
// to start it: when it has to, its owner, who has the module, is gone.
func (n *Node) mayGuard(ctx context.Context, owner mesh.NodeID, m lease.Message) error {
	ctx, cancel := context.WithTimeout(ctx, prepareTimeout)
	defer cancel()
	meta, err := parseGuardMeta(m.Meta)
	if err != nil {
		return err
	}
	s := meta.Spec
	if _, err := meta.parseApp(); err != nil {
		return err
	}
	switch {
	case s.ID != m.Worker:
		return errors.New("it contradicts itself")
	case len(s.Dirs) > 0:
		return errors.New("it has directories, and a guardian is given no files")
	case n.worker(s.ID) != nil:
		return fmt.Errorf("worker %s runs here", s.Name)
	}
	// Room is looked for, and not kept: whoever is guardian of many would have
	// none left.
	if err := n.reserve(s.claim()); err != nil {
		return err
	}
	n.unreserve(s.claim())
	if _, have := n.modules.have(s.Module); have {
		return nil
	}
	if err := n.fetchModule(ctx, owner, n.reachable(n.moduleHomes(s.Module), owner), s.Module, s.ModuleBytes); err != nil {
		return fmt.Errorf("fetch the module: %w", err)
	}
	return nil
}

// lookAtGuards takes the workers whose leases have run out, and forgets what
// need not be remembered.
func (n *Node) lookAtGuards() {
	if n.ctx.Err() != nil {
		return
	}
	for _, g := range n.guards.list() {
		n.lookAtGuard(g)
	}
}

func (n *Node) lookAtGuard(g *guard) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	before := g.g.Record()
	if e, ok := n.dir.get(before.Worker); ok && before.Held() {
		switch {
		case e.Epoch > before.Epoch:
			g.g.Superseded(e.Epoch, now.Unix())
		case e.Epoch == before.Epoch && ended(e.State) && e.State != control.StateLost:
			// Its owner says so, and will not renew. One that is lost was not meant
			// to end.
			g.g.Ended()
		}
	}
	if !g.closedNow(n) {
		g.g.Tick(guardClock(), now.Unix())
	}
	n.guards.tidyLocked(g)
	if err := n.guards.saveLocked(g); err != nil {
		n.log.Error("lease record", "worker", before.Worker, "error", err)
		return
	}
	rec := g.g.Record()
	if rec.Taken > 0 && !rec.Held() && rec.Meta != nil && !g.starting && !now.Before(g.after) {
		g.starting = true
		n.announceTaken(rec, g.failure)
		rep := g.replica
		n.tasks.Go(func() { n.takeOver(g, rec, rep) })
		return
	}
	if g.g.Empty(now.Unix()) && g.g.Idle(guardClock()) && !g.starting {
		n.guards.mu.Lock()
		delete(n.guards.of, rec.Worker)
		n.guards.mu.Unlock()
		g.gone = true
		if rec.Taken > 0 { // remembered for long enough
			_ = os.Remove(filepath.Join(n.guards.dir, rec.Worker))
		}
	}
}

// closedNow says that the node is about to stop, and takes nothing any more.
func (g *guard) closedNow(n *Node) bool {
	n.guards.mu.Lock()
	defer n.guards.mu.Unlock()
	return n.guards.closed
}

// announceTaken tells the mesh that a worker is this node's that does not run yet;
// failure says why it could not be started so far.
func (n *Node) announceTaken(rec lease.Record, failure string) {
	meta, err := parseGuardMeta(rec.Meta)
	if err != nil {
		return // as its start will say
	}
	app, err := meta.parseApp()
	if err != nil {
		return
	}
	if e, ok := n.dir.get(rec.Worker); ok && e.Epoch >= rec.Taken && (e.State != control.StateStarting || e.Reason == failure) {
		return // it is known, or was started before this node was
	}
	n.dir.set(entry{
		ID: rec.Worker, Name: meta.Spec.Name, Home: n.id, Epoch: rec.Taken, State: control.StateStarting,
		Module: meta.Spec.Module.String(), Reason: failure, App: app.Name,
	}, time.Now())
}

// takesOver returns what is known of a worker that was taken and does not run yet;
// ok is false if it is none.
func (n *Node) takesOver(id string) (e entry, ok bool) {
	g := n.guards.find(id)
	if g == nil {
		return e, false
	}
	g.mu.Lock()
	rec := g.g.Record()
	g.mu.Unlock()
	e, ok = n.dir.get(id)
	return e, ok && rec.Taken > 0 && !rec.Held() && rec.Meta != nil && e.Home == n.id && e.Epoch == rec.Taken
}

// takeOver starts a worker here whose lease has run out, as its record on disk
// says: from its checkpoint, unless rep is nil.
func (n *Node) takeOver(g *guard, rec lease.Record, rep *replica) {
	owner := rec.Owners[len(rec.Owners)-1]
	how := "started anew here, in epoch %d, without its state"
	if rep != nil {
		how = "it goes on here, in epoch %d, from a checkpoint of " + rep.ago() + " ago"
	}
	name, started, err := n.startTaken(rec, owner, rep)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.starting = false
	why, code := "has not renewed its lease", "owner-silent"
	if g.yielded {
		why, code = "does not run it any more", "yielded"
	}
	e := control.PlacementEvent{
		Node: n.name(), Event: control.EventFallback, Worker: name, WorkerID: rec.Worker, Reason: code,
		From: n.nameOf(mesh.NodeID(owner)), To: n.name(), Outcome: control.OutcomeDone,
		Text: fmt.Sprintf("node %s %s: "+how, n.nameOf(mesh.NodeID(owner)), why, rec.Taken),
	}
	if err != nil {
		g.after = time.Now().Add(takeAgain)
		if err.Error() != g.failure && n.ctx.Err() == nil {
			g.failure = err.Error()
			e.Outcome, e.Error = control.OutcomeFailed, err.Error()
			e.Text = fmt.Sprintf("node %s %s, and it could not be started here; trying again", e.From, why)
			n.events.add(e)
			n.log.Error("worker taken over and not started", "worker", rec.Worker, "name", name, "error", err)
		}
		return
	}
	g.failure, g.yielded = "", false
	g.g.Started()
	n.guards.tidyLocked(g)
	if err := n.guards.saveLocked(g); err != nil {
		n.log.Error("lease record", "worker", rec.Worker, "error", err)
	}
	if started {
		e.App = appOf(name)
		n.events.add(e)
		n.log.Warn("worker taken over", "worker", rec.Worker, "name", name, "from", owner, "epoch", rec.Taken)
	}
}

// startTaken starts the worker of a record. started is false where that was done
// before, and this node has restarted since.
func (n *Node) startTaken(rec lease.Record, owner string, rep *replica) (name string, started bool, err error) {
	ctx, cancel := context.WithTimeout(n.ctx, takePatience)
	defer cancel()
	meta, err := parseGuardMeta(rec.Meta)
	if err != nil {
		return "", false, err
	}
	var app *manifest.App
	if app, err = meta.parseApp(); err != nil {
		return meta.Spec.Name, false, err
	}
	if known, ok, err := n.journal.Get(rec.Worker); err != nil || ok && known.Epoch >= rec.Taken {
		return meta.Spec.Name, false, err
	}
	from := n.nameOf(mesh.NodeID(owner))
	if rep != nil {
		err := n.continueReplica(ctx, rep, rec.Taken, from, func(w *worker) { w.govern(app, meta.App.Manifest) })
		return meta.Spec.Name, true, err
	}
	_, err = n.create(ctx, meta.Spec, "", rec.Taken, func(w *worker) {
		w.reads.bind(meta.App.Interfaces) // first: govern binds to this host what is not bound
		w.govern(app, meta.App.Manifest)
		w.origin = origin{Epoch: rec.Taken, From: from}
	})
	return meta.Spec.Name, true, err
}
