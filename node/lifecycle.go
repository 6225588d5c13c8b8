package node

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/node/handover"
	"meshnode/node/journal"
	"meshnode/node/runner"
)

// maxWorkers bounds the workers at home on one node.
const maxWorkers = 1024

var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// newID draws a worker id: 128 random bits in base32, like a node id.
func newID() string {
	var b [16]byte
	rand.Read(b[:])
	return idEncoding.EncodeToString(b[:])
}

func validID(s string) bool {
	b, err := idEncoding.DecodeString(s)
	return err == nil && len(b) == 16 && len(s) == 26
}

var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

func validName(s string) bool { return nameForm.MatchString(s) }

func (s spec) validate() error {
	switch {
	case !validID(s.ID):
		return fmt.Errorf("worker id %.40q is not valid", s.ID)
	case !validName(s.Name):
		return fmt.Errorf("worker name %.80q: want up to 63 of a-z, 0-9 and -, not - first", s.Name)
	case s.MemoryLimit < runner.WasmPage || s.MemoryLimit > runner.MaxMemory || s.MemoryLimit%runner.WasmPage != 0:
		return fmt.Errorf("memory limit of %d bytes: want a multiple of 64 KiB up to %d", s.MemoryLimit, int64(runner.MaxMemory))
	case s.Suspend != "" && !control.ValidSuspend(s.Suspend):
		return fmt.Errorf("suspend mode %.20q: want %s", s.Suspend, control.SuspendModes)
	case s.ModuleBytes <= 0 || s.ModuleBytes > control.MaxModuleBytes:
		return fmt.Errorf("module of %d bytes, the limit is %d", s.ModuleBytes, control.MaxModuleBytes)
	}
	if err := s.validateFiles(); err != nil {
		return err
	}
	total := 0
	for _, a := range append(append([]string(nil), s.Args...), s.Env...) {
		if strings.ContainsRune(a, 0) {
			return fmt.Errorf("arguments and environment must not hold NUL")
		}
		total += len(a) + 1
	}
	if total > 16<<10 {
		return fmt.Errorf("arguments and environment are %d bytes, the limit is %d", total, 16<<10)
	}
	return nil
}

// startRunner starts the process for a worker, checks the module and compiles
// it. Nothing of the worker has run yet.
//
// A new worker's directories are in the archive at path files, see
// [runner.Config]; one that is to be restored needs none.
func (n *Node) startRunner(ctx context.Context, s spec, files string, epoch uint64, logs *logRing) (*runner.Runner, error) {
	dirs := s.Dirs
	if files == "" {
		dirs = nil
	}
	return runner.Start(ctx, runner.Config{
		Dirs: dirs, FilesPath: files, FilesLimit: s.FilesLimit,
		Exe: n.cfg.Exe, ModulePath: n.modules.path(s.Module), CacheDir: n.cfg.CacheDir,
		MemoryLimit: s.MemoryLimit, Args: append([]string{s.Name}, s.Args...), Env: s.Env,
		Kind: s.kind(), Interpreter: n.cfg.Interpreter, Logger: n.log.With("worker", s.ID),
		OnLog: func(l runner.Log) {
			logs.add(control.LogLine{
				Node: n.name(), Epoch: epoch, Level: strings.ToLower(l.Level.String()), Source: logSource(l.Source), Text: l.Text,
			})
		},
	})
}

func logSource(s string) string {
	if s == "guest" {
		return "app"
	}
	return s
}

// create starts a new worker here. files is the archive of its directories, if
// it has some. epoch is 1, but for a worker that was taken over. prepare, which
// may be nil, is called before anyone hears of it.
func (n *Node) create(ctx context.Context, s spec, files string, epoch uint64, prepare func(*worker)) (*worker, error) {
	if err := n.reserve(s.claim()); err != nil {
		return nil, err
	}
	defer n.unreserve(s.claim())
	logs := newLogRing()
	r, err := n.startRunner(ctx, s, files, epoch, logs)
	if err != nil {
		return nil, err
	}
	if err := r.Init(ctx); err != nil {
		r.Close()
		return nil, fmt.Errorf("start worker %s: %w", s.Name, err)
	}
	if s.Suspend == "" {
		s.Suspend = control.SuspendEvent
		if r.Command() {
			s.Suspend = control.SuspendAnywhere
		}
	}
	w := n.newWorker(s, epoch, r, logs)
	if prepare != nil {
		prepare(w)
	}
	st, err := r.State(ctx)
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("start worker %s: %w", s.Name, err)
	}
	w.memory = uint64(st.Pages) * wasmPage
	// On disk before anyone hears of it: after a crash the node knows what it
	// owned.
	earlier, _, err := n.journal.Get(s.ID)
	if err == nil {
		err = n.journal.Put(handover.Record{
			Worker: s.ID, Epoch: epoch, Own: handover.OwnRunning, Updated: time.Now().Unix(), Meta: s.meta(""),
			Unsettled: earlier.Unsettled, // of when it was here before
		})
	}
	if err != nil {
		r.Close()
		return nil, err
	}
	n.list(w)
	n.log.Info("worker started", "worker", s.ID, "name", s.Name, "module", s.Module, "suspend", s.Suspend)
	return w, nil
}

// list makes a new worker one of this node's, and runs it.
func (n *Node) list(w *worker) {
	n.mu.Lock()
	n.workers[w.ID] = w
	delete(n.ended, w.ID) // an earlier life of it here
	n.mu.Unlock()
	w.timers.run(time.Now())
	w.outbox.start()
	w.start()
	w.setState(control.StateRunning, "")
}

// reserve claims memory for a worker that is being made or is arriving, or
// says why there is none. Memory counts by limit, not by use: a worker that
// may grow must be able to.
func (n *Node) reserve(bytes uint64) error {
	if n.closed() {
		return n.errClosed()
	}
	total, _ := n.memory()
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.workers)+len(n.incoming) >= maxWorkers {
		return &control.Error{Code: control.CodeFailed, Message: fmt.Sprintf("this node is home to %d workers, the limit", maxWorkers)}
	}
	claimed := n.reserved
	for _, w := range n.workers {
		claimed += w.claim()
	}
	if total > 0 && claimed+bytes > total {
		return &control.Error{
			Code: control.CodeFailed,
			Message: fmt.Sprintf("no room for %d MiB: %d of this node's %d MiB are promised to workers",
				bytes>>20, claimed>>20, total>>20),
			Hint: "lower --memory-limit or --files-limit, or use another node",
		}
	}
	n.reserved += bytes
	return nil
}

func (n *Node) unreserve(bytes uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.reserved -= bytes
}

// stop ends a worker for good, or forgets one that has ended by itself.
func (n *Node) stop(ctx context.Context, w *worker) error {
	if m := w.moving(); m != nil {
		if err := m.abandon(ctx, stoppedByUser); err != nil {
			return err
		}
	}
	// One whose arrival is not on disk yet could still be given back to where
	// it came from, and run there.
	for in := n.arrival(w.ID); in != nil && w.isGated(); {
		_, changed := in.phase()
		if !w.isGated() {
			break
		}
		select {
		case <-changed:
		case <-in.done:
			return control.Moved(string(in.from))
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	w.kill(control.StateStopped, "")
	n.forget(w)
	if in := n.arrival(w.ID); in != nil {
		// While a move is under way its machine writes the journal.
		in.feed(handover.RunnerDied{Reason: stoppedByUser})
		return nil
	}
	return n.deleteRecord(w)
}

// deleteRecord makes the journal forget a worker that its user stopped.
func (n *Node) deleteRecord(w *worker) error {
	err := n.journal.Delete(w.ID, w.epochNow())
	if errors.Is(err, journal.ErrUnsettled) {
		// A node that it came from may still ask what became of it.
		return n.recordEnd(w, control.StateStopped, stoppedByUser)
	}
	return err
}

const stoppedByUser = "stopped by the user"

// workerEnded takes a worker that runs no more off the list of those that do.
func (n *Node) workerEnded(w *worker, state, reason string) {
	gated := w.isGated() // before n.mu: a move that begins holds the worker's lock and takes the node's
	n.mu.Lock()
	if n.workers[w.ID] == w {
		delete(n.workers, w.ID)
	}
	// One that is not known to be this node's is nothing to show.
	if state != control.StateStopped && !gated {
		n.ended[w.ID] = w
	}
	n.mu.Unlock()
	if n.ctx.Err() != nil || state == control.StateStopped {
		return
	}
	// While a move is under way its machine writes the journal.
	died := handover.RunnerDied{Reason: reason}
	if in := n.arrival(w.ID); in != nil {
		in.feed(died)
	} else if out := w.moving(); out != nil {
		out.feed(died)
	} else if err := n.recordEnd(w, state, reason); err != nil {
		n.log.Error("worker's end not on disk", "worker", w.ID, "error", err)
	}
}

// settleEnd writes how a worker ended that did so while a move was under way,
// which had the journal to itself.
func (n *Node) settleEnd(w *worker) {
	w.mu.Lock()
	state, reason, gated := w.state, w.reason, w.gated
	w.mu.Unlock()
	var err error
	switch {
	case gated || !ended(state) || n.ctx.Err() != nil:
	case state == control.StateStopped:
		err = n.deleteRecord(w)
	default:
		err = n.recordEnd(w, state, reason)
	}
	if err != nil {
		n.log.Error("worker's end not on disk", "worker", w.ID, "error", err)
	}
}

// forget takes a worker off this node's lists.
func (n *Node) forget(w *worker) { n.unlist(w.ID, w) }

// unlist takes a worker off the lists: w, or, if that is nil, what was listed
// of it after a restart.
func (n *Node) unlist(id string, w *worker) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if w != nil && n.workers[id] == w {
		delete(n.workers, id)
	}
	if w == nil || n.ended[id] == w {
		delete(n.ended, id)
	}
	if w == nil || n.orphans[id] == w {
		delete(n.orphans, id)
	}
}

func (n *Node) recordEnd(w *worker, state, reason string) error {
	rec, ok, err := n.journal.Get(w.ID)
	if err != nil || !ok {
		return err
	}
	rec.Own, rec.Epoch, rec.Reason = handover.OwnLost, w.epochNow(), reason
	rec.Meta = w.spec.meta(state)
	return n.journal.Put(rec)
}

// endWorkers ends all workers, because the node does. Their memory goes with
// them; the journal says so at the next start.
func (n *Node) endWorkers() {
	for _, w := range n.locals() {
		if w.runner == nil {
			continue // what became of it is not known here, and asked at the next start
		}
		if !ended(w.describe().State) && !w.leaveBehind() {
			w.kill(control.StateLost, fmt.Sprintf("node %s was stopped while the worker ran there", n.name()))
		}
	}
}

// A recordMeta is what the journal keeps of a worker for the node itself, and
// what an offer says besides the hand-over's own.
type recordMeta struct {
	Spec  spec   `cbor:"1,keyasint"`
	State string `cbor:"2,keyasint,omitempty"` // how it ended, failed or lost
	// To is the name of the node that a move under way goes to: after a restart
	// gossip has yet to bring it.
	To string `cbor:"3,keyasint,omitempty"`
	// Holders may have pages of the worker, and its module: the nodes where it
	// was, the last one first. Only in an offer.
	Holders []mesh.NodeID `cbor:"4,keyasint,omitempty"`
	// App is what the worker carries along of its app. Only in an offer.
	App *appState `cbor:"5,keyasint,omitempty"`
	// Lease is the last that the worker got here. Only in the journal.
	Lease *leaseNote `cbor:"6,keyasint,omitempty"`
}

func (s spec) meta(state string) []byte { return recordMeta{Spec: s, State: state}.encode() }

func (r recordMeta) encode() []byte {
	b, err := encMode.Marshal(r)
	if err != nil {
		panic(err) // a struct of strings and numbers
	}
	return b
}

// recover reads the journal after a start: what this node owned is lost, since
// memory does not outlive the process, unless it has a guardian; what it was giving
// away it asks about.
func (n *Node) recover() error {
	records, err := n.journal.All()
	if err != nil {
		return err
	}
	for _, old := range records {
		rec, todo := handover.Recover(old, time.Now())
		var meta recordMeta
		if err := decMode.Unmarshal(rec.Meta, &meta); err != nil && todo != handover.TodoNothing {
			return fmt.Errorf("the journal's entry of worker %s cannot be read: %w", rec.Worker, err)
		}
		switch todo {
		case handover.TodoForward:
			// Version 0: whatever the mesh says is newer.
			n.dir.learn(entry{
				ID: rec.Worker, Name: meta.Spec.Name, Home: mesh.NodeID(rec.Peer), Epoch: rec.Epoch,
				State: control.StateRunning, Module: meta.Spec.Module.String(),
			}, n.id)
		case handover.TodoLost:
			if meta.State == control.StateStopped {
				continue
			}
			if old.Own != handover.OwnLost && meta.Lease.valid() {
				n.orphan(old, meta) // the journal stays as it is until its guardian has answered
				continue
			}
			if old.Own != handover.OwnLost || meta.State == "" {
				meta.State = control.StateLost
				rec.Meta = meta.Spec.meta(meta.State)
				if err := n.journal.Put(rec); err != nil {
					return err
				}
			}
			n.bury(meta.Spec, rec.Epoch, meta.State, rec.Reason)
		case handover.TodoAsk:
			if err := n.ask(rec, meta); err != nil {
				return err
			}
		}
	}
	return nil
}

// bury lists a worker that runs no more.
func (n *Node) bury(s spec, epoch uint64, state, reason string) *worker {
	w := n.newWorker(s, epoch, nil, newLogRing())
	w.launch.Do(func() { close(w.ended) })
	n.mu.Lock()
	n.ended[s.ID] = w
	n.mu.Unlock()
	w.inbox.close(deliverFrame{Ended: &deliverEnded{State: state, Reason: reason}})
	w.setState(state, reason)
	n.log.Warn("worker ended", "worker", s.ID, "name", s.Name, "state", state, "reason", reason)
	return w
}
