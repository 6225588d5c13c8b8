package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/node/handover"
	"meshnode/node/runner"
	"meshnode/pager"
)

// A spec is what a worker was started with. It never changes and travels in
// the image.
type spec struct {
	ID          string     `cbor:"1,keyasint"`
	Name        string     `cbor:"2,keyasint"`
	Module      pager.Hash `cbor:"3,keyasint"` // BLAKE3 of the module as it was given
	ModuleBytes int64      `cbor:"4,keyasint"`
	MemoryLimit uint64     `cbor:"5,keyasint"` // bytes
	Args        []string   `cbor:"6,keyasint,omitempty"`
	Env         []string   `cbor:"7,keyasint,omitempty"`
	Created     int64      `cbor:"8,keyasint"` // Unix nanoseconds at the node that made it
	// Suspend is where the worker can be stopped to be moved, one of the control
	// API's Suspend modes; empty is by the module's exports.
	Suspend string `cbor:"9,keyasint,omitempty"`
	// Dirs are the directories that a command worker found open, and FilesLimit
	// bounds the sizes of its files, in bytes; 0 is none.
	Dirs       []runner.Dir `cbor:"10,keyasint,omitempty"`
	FilesLimit int64        `cbor:"11,keyasint,omitempty"`
}

// kind is what the worker's runner is to run it as.
func (s spec) kind() runner.Kind {
	switch s.Suspend {
	case control.SuspendEvent:
		return runner.EventWorker
	case control.SuspendAnywhere:
		return runner.CommandWorker
	}
	return runner.ByExports
}

// A worker is one worker at home on this node. Its loop goroutine owns the
// runner and the timers and handles one event at a time; everything else
// reaches them through do. A command worker's program runs beside the loop,
// which feeds it its messages and takes its output.
type worker struct {
	spec
	node   *Node
	inbox  *inbox
	outbox *outbox
	logs   *logRing
	times  eventTimes
	reads  reads
	place  placed
	origin origin // set before start
	// fence is when its lease runs out, by lease.Now; 0 is never. See fenced.
	fence atomic.Int64

	// Owned by the loop.
	runner *runner.Runner
	timers timers
	frozen bool // for a hand-over
	paused bool // by the user
	leaves bool // for good: its node stops, and its guardian has its last state, or is about to
	// noSends has the sends of the next event refused: see outboxPatience.
	noSends bool
	// heldBack says that the outbox was stopped because the lease had run out.
	heldBack bool
	// console is a command worker's; nil for an event worker.
	console *console
	// attention has a token when there may be output that the runner's bell
	// has rung for already.
	attention chan struct{}

	requests chan func()
	opened   chan struct{}   // a token: what the worker says may leave the node
	ctx      context.Context // of the loop
	cancel   context.CancelCauseFunc
	launch   sync.Once     // the loop was started, or never will be
	ended    chan struct{} // closed when the loop has returned
	over     sync.Once     // what the worker held has been let go
	memoryIn use           // who reads or fills the runner's memory

	mu     sync.Mutex
	epoch  uint64
	state  string
	reason string
	since  time.Time
	events uint64
	memory uint64 // bytes of linear memory
	move   *moveOut
	// sampling is the sample under way, or nil; none begins during a move.
	sampling *sample
	// journalled is what the journal was to say after a move that came to
	// nothing, in case it could not be written.
	journalled *handover.Record
	// gated is set until this node's ownership is on disk: until then nothing
	// that the worker says leaves the node.
	gated bool
	// cut says whether it stands still because its node is cut off.
	cut cut
	// keeper keeps its lease, nil if it has none; superseded is set once another
	// node is known to have taken the worker.
	keeper     *keeper
	superseded bool
	// draining is set while pages are still to come. An event may then wait
	// for the network for as long as the drain is allowed to take.
	draining bool
	// base is what the memory was when the worker came here, every page named;
	// nil if it was made here, or all of it is not here yet.
	base *pager.Table
	// awaited are the pages that it waited for after it came here, in order: what
	// is known of its working set where that cannot be sampled.
	awaited []pager.PageNum
	// holders are the nodes where it was, the last one first: they may still
	// have pages of it. It came here at arrived, zero if it was made here. Set
	// before start.
	holders []mesh.NodeID
	arrived time.Time
}

// newWorker makes a worker around a runner. It runs once start is called.
func (n *Node) newWorker(s spec, epoch uint64, r *runner.Runner, logs *logRing) *worker {
	w := &worker{
		spec: s, node: n, inbox: newInbox(), logs: logs, runner: r,
		requests: make(chan func()), opened: make(chan struct{}, 1), ended: make(chan struct{}),
		epoch: epoch, state: control.StateStarting, since: time.Now(), attention: make(chan struct{}, 1),
	}
	if r != nil {
		r.SetReader(w.readInterface)
		if r.Command() {
			w.console = new(console)
		}
	}
	w.place.init(s)
	w.inbox.fenced = w.fenced
	w.ctx, w.cancel = context.WithCancelCause(n.ctx)
	w.outbox = newOutbox(n, w.Name, w.remark)
	return w
}

// remark puts a line from the node into the worker's log.
func (w *worker) remark(format string, args ...any) {
	w.logs.add(control.LogLine{
		Node: w.node.name(), Epoch: w.epochNow(), Level: "info", Source: "node", Text: fmt.Sprintf(format, args...),
	})
}

// start runs the loop until the worker ends or leaves.
func (w *worker) start() {
	w.launch.Do(func() {
		w.node.tasks.Go(func() {
			defer close(w.ended)
			defer w.cancel(nil)
			w.loop(w.ctx)
		})
	})
}

// endLoop ends the loop and waits for it. One that was not started never will
// be.
func (w *worker) endLoop() {
	w.cancel(errGone)
	if w.runner != nil {
		w.runner.Kill()
	}
	w.launch.Do(func() { close(w.ended) })
	<-w.ended
}

// errGone means that the worker's loop has ended: it left or it stopped.
var errGone = errors.New("the worker is not here any more")

// do runs f on the worker's loop, between two events.
func (w *worker) do(ctx context.Context, f func()) error {
	done := make(chan struct{})
	select {
	case w.requests <- func() { defer close(done); f() }:
	case <-w.ended:
		return errGone
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	<-done
	return nil
}

func (w *worker) loop(ctx context.Context) {
	alarm := time.NewTimer(0)
	defer alarm.Stop()
	w.goOn()
	for {
		w.letOut()
		var ready, bell, attention <-chan struct{}
		var due, patience <-chan time.Time
		if w.console != nil && !w.frozen && !w.isGated() {
			// Frozen, what it wrote is in its image.
			bell, attention = w.runner.Bell(), w.attention
		}
		if !w.halted() && (w.console == nil || !w.console.full) {
			now := time.Now()
			full, until := w.outbox.full(now)
			w.noSends = full
			if full && now.Before(until) {
				alarm.Reset(until.Sub(now))
				patience = alarm.C
			} else {
				ready = w.inbox.ready
				if _, at, ok := w.timers.next(); ok {
					alarm.Reset(at.Sub(now))
					due = alarm.C
				}
			}
		}
		var err error
		select {
		case f := <-w.requests:
			f()
		case <-ready:
			if w.fenced() {
				continue // since the loop looked; there is a signal when it goes on
			}
			if m := w.inbox.pop(); m != nil {
				err = w.message(ctx, m)
			}
		case <-due:
			err = w.timer(ctx)
		case <-patience:
		case <-w.outbox.room:
		case <-bell:
			err = w.takeOutput(ctx)
		case <-attention:
			err = w.takeOutput(ctx)
		case <-w.opened:
		case <-w.runner.Done():
			err = w.runner.Err()
		case <-ctx.Done():
			return
		}
		if err != nil && ctx.Err() == nil {
			w.fail(err)
			return
		}
	}
}

func (w *worker) message(ctx context.Context, m *message) error {
	if w.console != nil {
		return w.feed(ctx, m)
	}
	ev := runner.Event{Kind: runner.Send, ID: m.seq, Payload: m.payload}
	if m.call {
		ev.Kind = runner.Call
	}
	eff, err := w.handle(ctx, ev)
	if err != nil {
		return err
	}
	w.times.add(eventTime{at: time.Now(), took: eff.Duration, entry: m.entry, from: m.from, access: m.access, beyond: m.beyond})
	w.inbox.done(m, reply{Status: eff.Status, Payload: eff.Reply})
	return nil
}

func (w *worker) timer(ctx context.Context) error {
	id, at, ok := w.timers.next()
	now := time.Now()
	if !ok || now.Before(at) || w.fenced() {
		return nil
	}
	w.timers.fired(id, now)
	eff, err := w.handle(ctx, runner.Event{Kind: runner.Timer, ID: id})
	if err == nil {
		w.times.add(eventTime{at: time.Now(), took: eff.Duration})
	}
	return err
}

// eventLimit is how long an event may take: as much longer as the worker's
// manifest gives it less than a processor.
func (w *worker) eventLimit() time.Duration {
	app, _, _, _ := w.place.get()
	return time.Duration(float64(w.node.cfg.EventTimeout) / min(app.Limits.CPU, 1))
}

// handle runs one event and takes what it did: an event that traps has done
// nothing.
func (w *worker) handle(ctx context.Context, ev runner.Event) (runner.Effects, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	limit := w.eventLimit()
	var check func()
	check = func() {
		switch {
		case ctx.Err() != nil: // the event is over
		case w.isDraining():
			// It may be waiting for a page, which the drain's own limit ends.
			time.AfterFunc(limit, check)
		default:
			cancel(errOverdue)
		}
	}
	defer time.AfterFunc(limit, check).Stop()

	ev.NoSends = w.noSends
	started := time.Now()
	eff, err := w.runner.Call(ctx, ev)
	if err != nil {
		if errors.Is(context.Cause(ctx), errOverdue) {
			err = fmt.Errorf("an event ran longer than the limit of %v", limit)
		}
		return eff, err
	}
	w.node.metrics.event(time.Since(started))
	w.reads.handled()
	w.timers.apply(eff.Timers, time.Now())
	if len(eff.Sends) > 0 {
		if w.fenced() {
			w.holdBack()
		}
		w.outbox.add(eff.Sends)
	}
	w.mu.Lock()
	w.events++
	w.memory = uint64(eff.Pages) * runner.WasmPage
	w.mu.Unlock()
	return eff, nil
}

var errOverdue = errors.New("event overdue")

func (w *worker) isGated() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.gated
}

// memoryNow is how much linear memory the worker had after its last event, in
// bytes.
func (w *worker) memoryNow() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return int64(w.memory)
}

func (w *worker) baseNow() *pager.Table {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.base
}

func (w *worker) isDraining() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.draining
}

// fail ends a worker that cannot go on. It is called on the loop.
func (w *worker) fail(err error) {
	reason := err.Error()
	state, level := control.StateFailed, slog.LevelWarn
	var lost *lostError
	var exit *runner.ExitError
	switch {
	case errors.As(err, &lost):
		state, reason = control.StateLost, lost.reason
	case w.console != nil && errors.As(err, &exit) && exit.Kind == runner.Exited && exit.Code == 0:
		state, reason, level = control.StateExited, exit.Reason, slog.LevelInfo
	}
	w.node.log.Log(context.Background(), level, "worker ended", "worker", w.ID, "name", w.Name, "state", state, "reason", reason)
	w.remark("worker %s: %s", state, reason)
	w.finish(state, reason)
}

// A lostError ends a worker whose memory cannot be had.
type lostError struct{ reason string }

func (e *lostError) Error() string { return "lost: " + e.reason }

// finish ends the worker in that state, for good. It is called on the loop, or
// after it has returned.
func (w *worker) finish(state, reason string) {
	w.setState(state, reason)
	w.over.Do(func() {
		w.letGo()
		w.outbox.end()
		f := deliverFrame{Ended: &deliverEnded{State: state, Reason: reason}}
		if w.isGated() {
			// It may yet run on where it came from: its senders ask again.
			f = deliverFrame{Refused: &deliverRefused{Gone: true}}
		} else {
			w.outbox.abandon(state)
		}
		w.inbox.close(f)
		w.logs.end()
	})
	w.node.workerEnded(w, state, reason)
}

// letGo ends the worker's process now, and gives its memory back once nobody
// looks at it any more.
func (w *worker) letGo() {
	if w.runner == nil {
		return
	}
	w.runner.Kill()
	w.memoryIn.end(func() { w.runner.Close() })
}

// A use counts those who use something that must outlive them all.
type use struct {
	mu    sync.Mutex
	count int
	over  bool
	close func() // set once it is to be closed
}

// hold reports false where it is too late.
func (u *use) hold() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.over {
		return false
	}
	u.count++
	return true
}

func (u *use) release() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.count--
	if u.over && u.count == 0 {
		u.close()
	}
}

// end calls close when nobody holds, which may be now. It is called once.
func (u *use) end(close func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.over, u.close = true, close
	if u.count == 0 {
		close()
	}
}

// kill ends a worker from outside its loop, even in the middle of an event.
func (w *worker) kill(state, reason string) {
	w.endLoop()
	w.finish(state, reason)
}

// setState sets what the mesh sees of the worker.
func (w *worker) setState(state, reason string) {
	w.mu.Lock()
	if ended(w.state) && !ended(state) { // what a move had to say came late
		w.mu.Unlock()
		return
	}
	w.state, w.reason, w.since = state, reason, time.Now()
	w.mu.Unlock()
	w.announce()
}

// announce tells the mesh where the worker is and how it fares.
func (w *worker) announce() {
	w.mu.Lock()
	if w.gated {
		w.mu.Unlock()
		return
	}
	e := entry{
		ID: w.ID, Name: w.Name, Home: w.node.id, Epoch: w.epoch, State: w.state,
		Module: w.Module.String(), Reason: w.reason, App: w.place.appName(), Guardian: w.guardianNowLocked(),
	}
	w.mu.Unlock()
	w.node.dir.set(e, time.Now())
}

func (w *worker) epochNow() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.epoch
}

// halt and run stop and continue timers and events for one of two reasons:
// the user's pause or a hand-over's freeze. They are called on the loop.
//
// An error means that the runner is gone, which the loop sees for itself.
func (w *worker) halt(ctx context.Context, why *bool) error {
	*why = true
	return w.stand(ctx)
}

// stand makes the worker stand still.
func (w *worker) stand(ctx context.Context) error {
	w.timers.halt(time.Now())
	if w.console == nil {
		return nil
	}
	return w.runner.Halt(ctx)
}

// goOn lets a command's program run unless it must not. If its runner is gone
// the loop sees it.
func (w *worker) goOn() {
	if w.console != nil && !w.halted() {
		_ = w.runner.Run(context.WithoutCancel(w.ctx))
	}
}

func (w *worker) run(why *bool) {
	*why = false
	w.runAgain()
}

// halted says whether there is a reason for the worker to stand still. It is
// called on the loop.
func (w *worker) halted() bool { return w.frozen || w.paused || w.leaves || w.isCut() || w.fenced() }

// runAgain lets it go on unless there is.
func (w *worker) runAgain() {
	if !w.halted() {
		w.timers.run(time.Now())
		w.inbox.wake()
		w.goOn()
	}
}

// errStirred means that the worker has handled an event meanwhile.
var errStirred = errors.New("the worker has handled an event meanwhile")

// freeze stops the worker after the event it is in and returns its image, all
// but the memory, which stays as it is until thaw. If handled is not nil and the
// worker has not handled as many events, it goes on, and that is errStirred.
func (w *worker) freeze(ctx context.Context, handled *uint64) (img image, at time.Time, err error) {
	derr := w.do(ctx, func() {
		if handled != nil && w.handled() != *handled {
			err = errStirred
			return
		}
		at = time.Now()
		// A request to the runner cannot be given up without ending it.
		whole := context.WithoutCancel(ctx)
		err = w.halt(whole, &w.frozen)
		w.outbox.stop()
		if err == nil {
			img, err = w.image(whole)
		}
		if err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			w.thawLocked()
		}
	})
	return img, at, errors.Join(derr, err)
}

// thaw lets a frozen worker go on here, as the owner of epoch.
func (w *worker) thaw(ctx context.Context, epoch uint64) error {
	return w.do(ctx, func() {
		w.mu.Lock()
		w.epoch = epoch
		w.mu.Unlock()
		w.thawLocked()
	})
}

func (w *worker) thawLocked() {
	w.inbox.reopen()
	w.outbox.start()
	w.run(&w.frozen)
}

func (w *worker) image(ctx context.Context) (image, error) {
	st, err := w.runner.State(ctx)
	if err != nil {
		return image{}, err
	}
	w.setMemory(st.Pages)
	return image{
		Spec: w.spec, State: st, Timers: w.timers.state(),
		Senders: w.inbox.cursors(), Outbox: w.outbox.state(),
		Events: w.handled(), Paused: w.paused, Lines: w.console.state(), App: w.carries(time.Now()), Origin: w.origin,
	}, nil
}

// pause and resume are the user's.
func (w *worker) pause(ctx context.Context) error {
	return w.command(ctx, func() error { return w.halt(context.WithoutCancel(ctx), &w.paused) })
}

func (w *worker) resume(ctx context.Context) error {
	if err := w.mayResume(); err != nil {
		return err
	}
	return w.command(ctx, func() error {
		w.resumeCut()
		w.run(&w.paused)
		return nil
	})
}

// command carries out what the user wants of the worker, unless it is on its
// way: its image is made, and would not have it.
func (w *worker) command(ctx context.Context, f func() error) (err error) {
	derr := w.do(ctx, func() {
		if w.frozen {
			err = &control.Error{
				Code: control.CodeConflict, Message: fmt.Sprintf("worker %s is being handed over", w.Name), Hint: "try again in a moment",
			}
			return
		}
		if err = f(); err == nil {
			w.shown()
		}
	})
	return errors.Join(derr, err)
}

// shown sets the state that the worker has when no move is under way. It is
// called on the loop.
func (w *worker) shown() {
	switch {
	case w.moving() != nil:
	case w.isDraining():
		w.setState(control.StateDraining, "")
	case w.paused:
		w.setState(control.StatePaused, "")
	case w.fenced():
		w.setState(control.StatePaused, w.fencedReason())
	case w.isCut():
		w.setState(control.StatePaused, "its node has lost all others, and onDisconnect of its app is not run")
	default:
		w.setState(control.StateRunning, "")
	}
}

func (w *worker) moving() *moveOut {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.move
}

// describe returns what the control API shows of the worker.
func (w *worker) describe() control.Worker {
	senders, waiting := w.inbox.depth()
	_, _, pinned, _ := w.place.get()
	w.mu.Lock()
	defer w.mu.Unlock()
	c := control.Worker{
		ID: w.ID, Name: w.Name, Module: w.Module.String(),
		Home: string(w.node.id), HomeName: w.node.name(), Epoch: w.epoch,
		State: w.state, Reason: w.reason, MemoryBytes: w.memory, MemoryLimit: w.MemoryLimit,
		Events: w.events, Senders: senders, Inbox: waiting,
		Since: w.since, Created: time.Unix(0, w.Created), Suspend: w.Suspend, Command: w.console != nil,
		App: w.place.appName(), Pinned: pinned,
		FilesLimit: w.FilesLimit,
	}
	for _, d := range w.Dirs {
		c.Dirs = append(c.Dirs, control.Dir(d))
	}
	if m := w.move; m != nil {
		c.Phase, c.MoveTo = m.phase(), m.toName
		c.Activity = m.activity()
	}
	return c
}

// movedTo sends the worker's senders to another node.
func (w *worker) movedTo(to mesh.NodeID, epoch uint64) {
	w.inbox.close(deliverFrame{Moved: &deliverMoved{To: to, Epoch: epoch}})
}

// discard ends the worker here without a word to anyone.
func (w *worker) discard() {
	w.endLoop()
	w.over.Do(func() {
		w.letGo()
		w.outbox.end()
		w.inbox.close(deliverFrame{Refused: &deliverRefused{Gone: true}})
		w.logs.end()
	})
}

// release lets out what the worker has said since it resumed here, and tells
// the mesh that it is here.
func (w *worker) release() {
	w.mu.Lock()
	w.gated = false
	over := ended(w.state)
	w.mu.Unlock()
	if over { // it ended meanwhile, as this node's
		w.node.mu.Lock()
		w.node.ended[w.ID] = w
		w.node.mu.Unlock()
	}
	w.inbox.release()
	w.outbox.start()
	select {
	case w.opened <- struct{}{}:
	default:
	}
	w.announce()
}
