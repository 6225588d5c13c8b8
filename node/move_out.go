package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/node/handover"
	"meshnode/pager"
)

// A protocol is the machine of either side.
type protocol interface {
	Handle(handover.Event, time.Time) []handover.Action
	Deadline() (time.Time, bool)
}

// drive feeds a machine until apply reports that it has finished, or ctx ends:
// to the peer that looks like a crash. What the move holds of this process is
// then for the caller to let go of: a node that joins another mesh starts again
// within it.
func drive(ctx context.Context, p protocol, box *mailbox, apply func([]handover.Action) (finished bool)) (finished bool) {
	alarm := time.NewTimer(0)
	defer alarm.Stop()
	for {
		var due <-chan time.Time
		if at, ok := p.Deadline(); ok {
			alarm.Reset(time.Until(at))
			due = alarm.C
		}
		var evs []handover.Event
		select {
		case <-box.signal:
			evs = box.take()
		case <-due:
			evs = []handover.Event{handover.Tick{}}
		case <-ctx.Done():
			return false
		}
		for _, ev := range evs {
			if apply(p.Handle(ev, time.Now())) {
				return true
			}
		}
	}
}

// A moveOut is a worker's move away from here: it executes what the Source of
// the hand-over decides.
type moveOut struct {
	n      *Node
	w      *worker // nil after a restart, when its memory is gone
	spec   spec
	id     handover.MoveID
	to     mesh.NodeID
	toName string
	kind   handover.Strategy // unknown after a restart
	// roundsLimit is how long the rounds may take, and priority the move's weight.
	roundsLimit time.Duration
	priority    int
	machine     *handover.Source
	lnk         *link
	box         *mailbox
	done        chan struct{} // closed when the machine has finished

	cancelFreeze context.CancelFunc // of the freeze under way
	freezing     sync.WaitGroup     // the freeze under way
	held         sync.Once          // ends what letGo gives back
	writes       *writeLog          // nil after a restart
	// filesThere is closed when the destination has had all blocks of the
	// worker's files, those of a moment ago; blockBytes counts what of them was
	// sent.
	filesThere chan struct{}
	filesAhead sync.Once
	blockBytes atomic.Int64
	continued  sync.Once     // gives the rounds' stream the frozen memory
	runs       chan struct{} // closed when the destination has said that it runs
	forecast   forecast

	mu       sync.Mutex
	at       handover.SourcePhase
	strategy string
	started  time.Time
	frozen   time.Time // when the worker stopped
	running  time.Time // when the destination's word arrived
	parts    parts     // of the blackout
	finished time.Time
	memory   uint64
	epoch    uint64
	pages    *pager.Source // of the frozen memory
	serves   bool          // pages may be fetched
	report   moveReport
	result   handover.Result
}

// A moveReport is what the destination saw of a move's faults, and what its
// share of the blackout was. It is sent before DRAINED.
type moveReport struct {
	PagesDemanded uint64        `cbor:"1,keyasint"`
	FaultP50      time.Duration `cbor:"2,keyasint"`
	FaultP99      time.Duration `cbor:"3,keyasint"`
	Memory        time.Duration `cbor:"4,keyasint"`
	State         time.Duration `cbor:"5,keyasint"`
	// PagesElsewhere came from other nodes than the source.
	PagesElsewhere uint64 `cbor:"6,keyasint,omitempty"`
}

// parts is what the source knows of where a blackout went.
type parts struct {
	image, layout time.Duration
	filling       time.Time // when pages began to travel, zero if none did
	fill          time.Duration
}

func (m *moveOut) link() *link { return m.lnk }

func (m *moveOut) feed(ev handover.Event) {
	if r, ok := ev.(handover.Received); ok {
		m.received(r.Message)
	}
	m.box.put(ev)
}

// migrate moves a worker and waits until it has all of its memory there, or
// runs here again.
func (n *Node) migrate(ctx context.Context, w *worker, to mesh.Member, req control.MigrateRequest,
	progress func(control.Progress)) (control.Migration, error) {

	if to.ID == n.id {
		return control.Migration{}, atHome(w, n)
	}
	ms := func(v float64) time.Duration { return time.Duration(v * float64(time.Millisecond)) }
	m, err := n.moveAway(ctx, w, to, moveOptions{
		strategy: n.strategy(req.Strategy, w, to.ID), offer: ms(req.TimeoutMs), rounds: ms(req.RoundsLimitMs), priority: req.Priority,
		noSampling: req.NoSampling,
	})
	if err != nil {
		return control.Migration{}, err
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	gaveUp := ctx.Done()
	for {
		select {
		case <-tick.C:
			progress(m.progress())
		case <-gaveUp:
			m.feed(handover.Cancel{Reason: "cancelled by the user"})
			if !m.cancellable() {
				return control.Migration{}, context.Cause(ctx)
			}
			gaveUp = nil // the machine says how it ended
		case <-m.done:
			progress(m.progress())
			return m.migration()
		case <-n.ctx.Done():
			return control.Migration{}, errors.New("the node is stopping")
		}
	}
}

// moveOptions are what can be said of a move; zero is what is usual.
type moveOptions struct {
	strategy      handover.Strategy
	offer, rounds time.Duration // how long either may take
	priority      int           // its weight against other moves
	noSampling    bool          // of the working set
}

// moveAway begins a move.
func (n *Node) moveAway(ctx context.Context, w *worker, to mesh.Member, opt moveOptions) (*moveOut, error) {
	if w.Suspend == control.SuspendNever {
		return nil, &control.Error{
			Code: control.CodeConflict, Message: fmt.Sprintf("worker %s was started to stay where it is", w.Name),
			Hint: "start it without --suspend never",
		}
	}
	if err := w.mayMove(); err != nil {
		return nil, err
	}
	// A worker that has just arrived is moved on once all of its memory is
	// here: nobody else could serve what is missing.
	if err := n.settleArrival(ctx, w); err != nil {
		return nil, err
	}
	if err := w.measure(ctx); err != nil && !errors.Is(err, errGone) {
		return nil, err
	}
	rec, ok, err := n.journal.Get(w.ID)
	if err != nil || !ok {
		return nil, fmt.Errorf("worker %s in the journal: found %v, %w", w.Name, ok, err)
	}
	w.mu.Lock()
	if w.journalled != nil {
		rec = *w.journalled
	}
	w.mu.Unlock()
	rec.Meta = recordMeta{Spec: w.spec, To: to.Record.Name}.encode()
	params := n.cfg.Move
	if opt.offer > 0 {
		params.OfferTimeout = opt.offer
	}
	strategy := opt.strategy
	m := &moveOut{
		n: n, w: w, spec: w.spec, id: handover.NewMoveID(), to: to.ID, toName: to.Record.Name,
		box: newMailbox(n.log), done: make(chan struct{}), runs: make(chan struct{}), kind: strategy, strategy: strategy.String(), started: time.Now(),
		filesThere:  make(chan struct{}),
		roundsLimit: cmp.Or(opt.rounds, control.MaxRoundsLimitMs*time.Millisecond), priority: max(opt.priority, 1),
	}
	carried, pause := w.offered(), n.pauseLeft(w, to.ID, strategy)
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case ended(w.state):
		return nil, &control.Error{
			Code: control.CodeConflict, Message: fmt.Sprintf("worker %s is %s: %s", w.Name, w.state, w.reason),
		}
	case w.move != nil:
		return nil, &control.Error{
			Code:    control.CodeConflict,
			Message: fmt.Sprintf("worker %s is already on its way to node %s", w.Name, w.move.toName),
			Hint:    "wait for that move to end",
		}
	}
	m.memory, m.epoch = w.memory, w.epoch
	m.machine, err = handover.NewSource(handover.SourceConfig{
		Move: m.id, Peer: string(to.ID), Incarnation: n.incarnation, Record: rec, Params: params,
		Offer: handover.Offer{
			Worker: w.ID, Name: w.Name, Module: handover.Hash(w.Module), ModuleSize: uint64(w.ModuleBytes),
			MemoryBytes: w.memory, MemoryLimit: w.MemoryLimit, Epoch: w.epoch, Strategy: strategy,
			Config: recordMeta{Spec: w.spec, Holders: w.holders, App: &carried}.encode(),
		},
	})
	if err != nil {
		return nil, err
	}
	if !w.memoryIn.hold() { // until finish
		return nil, errGone
	}
	w.move = m
	m.writes = n.watchWrites(n.ctx, w, n.budget.Share(string(to.ID), m.priority), int64(m.memory), watchOptions{
		dear: comparesHashes(strategy, to.Record.Paging == "userfaultfd"), noSampling: opt.noSampling, pause: pause,
	})
	m.startForecast()
	n.startOut(m)
	return m, nil
}

// comparesHashes reports whether a move finds writes by hashes where the kernel
// cannot tell. Which pages sent ahead hold is then only known when all of the
// frozen memory was hashed: only a worker that stands still until its pages are
// there gains by that.
func comparesHashes(s handover.Strategy, paging bool) bool {
	return s == handover.PreCopy || s == handover.Hybrid && !paging
}

// startOut runs a source's machine until it has finished.
func (n *Node) startOut(m *moveOut) {
	m.lnk = n.newLink(m.id, m.to, m.feed)
	n.mu.Lock()
	n.outgoing[m.id] = m
	n.mu.Unlock()
	ctx, cancel := context.WithCancel(n.ctx)
	n.tasks.Go(func() { m.lnk.run(ctx) })
	m.feed(handover.Start{})
	n.tasks.Go(func() {
		defer cancel()
		if !drive(ctx, m.machine, m.box, func(as []handover.Action) bool { return m.apply(ctx, as) }) {
			m.letGo()
		}
	})
}

// ask finds out, after a restart, what became of a worker that was on its way.
func (n *Node) ask(rec handover.Record, meta recordMeta) error {
	machine, err := handover.RestartSource(rec, n.incarnation, n.cfg.Move)
	if err != nil {
		return err
	}
	to, s := mesh.NodeID(rec.Peer), meta.Spec
	name := meta.To
	if name == "" {
		name = n.nameOf(to)
	}
	m := &moveOut{
		n: n, spec: s, id: rec.Move, to: to, toName: name,
		machine: machine, box: newMailbox(n.log), done: make(chan struct{}), runs: make(chan struct{}), started: time.Now(), epoch: rec.Epoch,
	}
	w := n.bury(s, rec.Epoch, control.StateInDoubt,
		fmt.Sprintf("this node restarted while the worker was on its way to node %s; asking there", m.toName))
	w.mu.Lock()
	w.move = m // for stop, which has to give it up
	w.mu.Unlock()
	n.startOut(m)
	return nil
}

// apply carries out actions in order. It runs on the machine's goroutine.
func (m *moveOut) apply(ctx context.Context, as []handover.Action) (finished bool) {
	for _, a := range as {
		switch a := a.(type) {
		case handover.Send:
			m.lnk.send(a.Message)
			switch b := a.Message.Body.(type) {
			case handover.Commit:
				m.lnk.sendCopy(ctx, a.Message, m.runs)
				m.n.tasks.Go(func() { m.goOnSoon(ctx) })
				// Senders go where the worker goes, while it is on its way:
				// the destination lets them wait until it runs.
				if m.w != nil {
					m.w.movedTo(m.to, b.Epoch)
				}
			case handover.FrozenBody:
				m.mu.Lock()
				m.parts.filling = time.Now()
				m.mu.Unlock()
				m.goOn()
				m.n.tasks.Go(func() { m.reportProgress(ctx) })
			}
		case handover.Persist:
			m.n.persist(a, m.feed)
		case handover.Warm:
			m.predict()
			m.n.tasks.Go(func() { m.warm(ctx) })
		case handover.Freeze:
			m.predict()
			m.freeze(ctx)
		case handover.Thaw:
			m.thaw(ctx, a.Epoch)
		case handover.ServePages:
			m.serve(true)
		case handover.StopServing:
			m.serve(false)
		case handover.Forget:
			m.n.left(m, a.Epoch)
		case handover.Lose:
			m.lose(a)
		case handover.Note:
			m.n.log.Info("hand-over", "move", m.id, "worker", m.spec.ID, "note", a.Text)
		case handover.Finish:
			m.finish(a.Result)
			finished = true
		default:
			panic(fmt.Sprintf("a source asked for %T", a))
		}
	}
	m.show()
	return finished
}

// persist writes a record beside everything else.
func (n *Node) persist(p handover.Persist, feed func(handover.Event)) {
	n.tasks.Go(func() {
		if err := n.journal.Put(p.Record); err != nil {
			n.log.Error("journal not written", "worker", p.Record.Worker, "error", err)
			feed(handover.PersistFailed{ID: p.ID, Reason: err.Error()})
			return
		}
		feed(handover.Persisted{ID: p.ID})
	})
}

// warmStall is how long rounds may bring nothing before the move goes on
// without.
const warmStall = 5 * time.Second

// warm lets pages travel while the worker runs, until that brings little more.
// The destination has dialled, or is dialling.
func (m *moveOut) warm(ctx context.Context) {
	defer m.feed(handover.Warmed{})
	rounds := m.rounds(ctx)
	if rounds == nil {
		return
	}
	tick := time.NewTicker(warmStall)
	defer tick.Stop()
	settled, there := rounds.Settled(), m.filesThere
	if !m.w.runner.HasFiles() {
		there = nil
	}
	limit := time.NewTimer(m.roundsLimit)
	defer limit.Stop()
	sent := func() int64 { return int64(rounds.Stats().Bytes) + m.blockBytes.Load() }
	for before := sent(); settled != nil || there != nil; {
		select {
		case <-settled:
			settled = nil
		case <-there:
			there = nil
		case <-limit.C:
			rounds.End() // Settled follows
			there = nil
		case <-tick.C:
			now := sent()
			if now == before {
				m.n.log.Info("pages do not travel ahead", "worker", m.w.ID, "to", m.toName)
				return
			}
			before = now
		case <-ctx.Done():
			return
		}
	}
}

// reportProgress tells the machine that pages are fetched while the worker
// stands still, as long as they are.
func (m *moveOut) reportProgress(ctx context.Context) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	var before uint64
	for {
		select {
		case <-t.C:
		case <-m.done:
			return
		case <-ctx.Done():
			return
		}
		m.mu.Lock()
		now := m.sentLocked().Bytes
		m.mu.Unlock()
		if now != before {
			before = now
			m.feed(handover.Progress{})
		}
	}
}

// rounds returns what sends pages while the worker runs; nil if nothing does.
func (m *moveOut) rounds(ctx context.Context) *pager.Rounds {
	if m.writes == nil {
		return nil
	}
	select {
	case <-m.writes.began:
		return m.writes.rounds
	case <-ctx.Done():
		return nil
	}
}

// freeze stops the worker and makes its image, ready to be served.
func (m *moveOut) freeze(ctx context.Context) {
	ctx, m.cancelFreeze = context.WithCancel(ctx)
	m.freezing.Add(1)
	m.n.tasks.Go(func() {
		defer m.freezing.Done()
		head, table, err := m.image(ctx)
		if err != nil {
			m.feed(handover.FreezeFailed{Reason: err.Error()})
			return
		}
		m.feed(handover.Frozen{Head: head, Table: table})
	})
}

// halt makes the worker stand still: at a moment in which all that it has written is
// known already, if there is one, which is still.
func (m *moveOut) halt(ctx context.Context) (img image, at time.Time, still bool, err error) {
	m.writes.hold()
	for try := 0; m.writes.quiets() && try < quietTries; try++ {
		handled, err := m.writes.quiet(ctx)
		if err != nil {
			return image{}, time.Time{}, false, err
		}
		img, at, err = m.w.freeze(ctx, &handled)
		if !errors.Is(err, errStirred) {
			return img, at, true, err
		}
	}
	img, at, err = m.w.freeze(ctx, nil)
	return img, at, false, err
}

func (m *moveOut) image(ctx context.Context) (head, table []byte, err error) {
	img, at, still, err := m.halt(ctx)
	if err != nil {
		return nil, nil, err
	}
	m.mu.Lock()
	m.frozen = at
	m.mu.Unlock()
	size := int64(img.State.Pages) * wasmPage
	imaged := time.Now()
	frozen, err := m.writes.frozen(size, still)
	if err != nil {
		return nil, nil, err
	}
	m.forecast.holes = frozen.holes
	pages, err := m.n.frozenPages(m.w, m.n.budget.Share(string(m.to), pushWeight*m.priority), m.epoch, frozen)
	if err != nil {
		return nil, nil, err
	}
	m.mu.Lock()
	m.pages, m.memory = pages, uint64(size)
	m.parts.image, m.parts.layout = imaged.Sub(at), time.Since(imaged)
	m.mu.Unlock()
	img.Layout = frozen.layout.Append(nil)
	head, err = img.encode()
	m.n.log.Debug("worker frozen", "worker", m.w.ID, "head", len(head), "stale", len(frozen.layout.Stale))
	return head, img.Layout, err
}

// commitLead is how far ahead of the frozen memory COMMIT leaves, and half a round
// trip: the worker needs about that long to resume once COMMIT is there, and a push
// meanwhile takes the processors and the queues that COMMIT and RUNNING wait for, at
// either end. What the worker wants first, and asks for, cannot be there earlier
// than what is pushed then.
const commitLead = 4 * time.Millisecond

// goOnSoon is goOn once the worker runs again, or has had the time for it: it
// may be waiting for pages now, and word of that takes half a round trip.
func (m *moveOut) goOnSoon(ctx context.Context) {
	lead := time.NewTimer(commitLead + m.n.known(m.to).RTT.P50/2)
	defer lead.Stop()
	select {
	case <-lead.C:
	case <-m.runs:
	case <-ctx.Done():
		return
	}
	m.goOn()
}

// hasHeard reports whether the destination has said that the worker runs there.
func (m *moveOut) hasHeard() bool {
	select {
	case <-m.runs:
		return true
	default:
		return false
	}
}

// goOn lets the stream of the rounds bring the frozen memory, behind the message
// that says so: nothing is to be in that one's way.
func (m *moveOut) goOn() {
	if m.writes == nil {
		return
	}
	m.continued.Do(func() {
		m.mu.Lock()
		pages := m.pages
		m.mu.Unlock()
		if r := m.writes.rounds; r != nil && pages != nil {
			r.Continue(pages)
		}
	})
}

func (m *moveOut) thaw(ctx context.Context, epoch uint64) {
	if m.cancelFreeze != nil {
		m.cancelFreeze()
	}
	m.closePages()
	if err := m.w.thaw(ctx, epoch); err != nil {
		m.n.log.Warn("worker not thawed", "worker", m.w.ID, "error", err)
	}
}

// serve lets the destination fetch pages, or no more.
func (m *moveOut) serve(yes bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.serves = yes
}

// serving returns what serves the move's pages, or nil.
func (m *moveOut) serving() *pager.Source {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.serves {
		return nil
	}
	return m.pages
}

// show tells the mesh how the worker fares during the move.
func (m *moveOut) show() {
	phase := m.machine.Phase()
	m.mu.Lock()
	changed := m.at != phase
	m.at = phase
	m.mu.Unlock()
	if !changed || m.w == nil {
		return
	}
	switch phase {
	case handover.SourceOffering, handover.SourceWarming, handover.SourceRecording:
		m.w.setState(control.StateMoving, "")
	case handover.SourceFreezing, handover.SourceFilling:
		m.w.setState(control.StateFrozen, "")
	case handover.SourceCommitting:
		m.w.setState(control.StateInDoubt, fmt.Sprintf("waiting for node %s to say that it runs there", m.toName))
	}
}

// closePages ends the streams of pages; from then on the memory may change.
func (m *moveOut) closePages() {
	m.mu.Lock()
	pages := m.pages
	m.mu.Unlock()
	if pages != nil {
		pages.Close()
	}
}

func (m *moveOut) finish(r handover.Result) {
	m.freezing.Wait()
	m.mu.Lock()
	m.result, m.finished = r, time.Now()
	blackout := m.running.Sub(m.frozen)
	if m.running.IsZero() {
		blackout = 0
	}
	m.mu.Unlock()
	if r.Outcome != handover.Moved {
		m.letGo()
	}
	m.learn()
	m.n.mu.Lock()
	delete(m.n.outgoing, m.id)
	m.n.mu.Unlock()
	if m.w != nil {
		m.w.mu.Lock()
		m.w.move = nil
		if r.Outcome == handover.Kept && r.Record.Worker != "" {
			m.w.journalled = &r.Record
		}
		m.w.mu.Unlock()
		// If it has left, there is nothing to show; if it is in an event, it is
		// not waited for.
		m.n.tasks.Go(func() { _ = m.w.do(m.n.ctx, m.w.shown) })
	}
	m.mu.Lock()
	m.n.metrics.pageBytes.WithLabelValues("out").Add(float64(m.sentLocked().Bytes))
	m.mu.Unlock()
	m.n.metrics.moves.WithLabelValues("out", r.Outcome.String()).Inc()
	if blackout > 0 {
		m.n.metrics.blackout.Observe(blackout.Seconds())
	}
	m.n.log.Info("move ended", "worker", m.spec.ID, "name", m.spec.Name, "to", m.toName,
		"outcome", r.Outcome.String(), "reason", r.Reason, "blackout", blackout)
	close(m.done)
	if m.w != nil && r.Outcome == handover.Kept {
		m.n.settleEnd(m.w)
	}
}

// letGo gives back what the move holds: streams of pages, the watch over the
// writes, the memory. Only the first call does anything. The worker's image is
// no longer being made, or soon not.
func (m *moveOut) letGo() {
	if m.w == nil {
		return
	}
	m.held.Do(func() {
		m.freezing.Wait()
		m.writes.close(m.n)
		m.closePages()
		m.w.memoryIn.release()
	})
}

// received notes when the destination's word came: the end of the blackout.
func (m *moveOut) received(msg handover.Message) {
	switch msg.Body.(type) {
	case handover.Filled:
		m.mu.Lock()
		if m.parts.fill == 0 && !m.parts.filling.IsZero() {
			m.parts.fill = time.Since(m.parts.filling)
		}
		m.mu.Unlock()
	case handover.Running:
		m.mu.Lock()
		first := m.running.IsZero()
		if first {
			m.running = time.Now()
			close(m.runs)
		}
		blackout := m.running.Sub(m.frozen)
		// A baseline to measure against says nothing about the nodes; and after
		// a restart the beginning is not known.
		counts := first && !m.frozen.IsZero() && m.strategy != control.StrategyStopAndCopy
		m.mu.Unlock()
		if counts {
			m.lnk.tellBlackout(blackout)
			m.n.tasks.Go(func() { m.n.judgeMove(m.to, blackout) })
		}
	}
}

func (m *moveOut) cancellable() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.at < handover.SourceCommitting
}

// phase returns the move's phase in the control API's words.
func (m *moveOut) phase() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.phaseLocked()
}

func (m *moveOut) phaseLocked() string {
	switch m.at {
	case handover.SourceNew, handover.SourceOffering:
		return control.PhasePrepare
	case handover.SourceWarming:
		return control.PhaseWarm
	case handover.SourceRecording, handover.SourceFreezing:
		return control.PhaseFreeze
	case handover.SourceFilling:
		return control.PhaseCopy
	case handover.SourceCommitting, handover.SourceAsking:
		return control.PhaseCommit
	case handover.SourceDraining:
		return control.PhaseDrain
	}
	return control.PhaseDone
}

func (m *moveOut) progress() control.Progress {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := control.Progress{
		Phase: m.phaseLocked(), ElapsedMs: control.Millis(time.Since(m.started)), MemoryBytes: m.memory,
	}
	st := m.sentLocked()
	p.BytesOnWire, p.PagesTotal = st.Bytes, uint64(st.Pages)
	p.PagesPushed, p.PagesDemanded = st.BulkPages, st.DemandPages
	p.BlackoutMs = control.Millis(m.blackoutLocked())
	return p
}

// sentLocked counts the pages sent so far, before the freeze and after it.
func (m *moveOut) sentLocked() pager.SourceStats {
	var st pager.SourceStats
	if m.pages != nil {
		st = m.pages.Stats()
	}
	if m.writes != nil {
		ahead := m.writes.sent()
		st.Pages = max(st.Pages, ahead.Pages)
		st.BulkPages += ahead.Sent
		st.HeldPages += ahead.Held
		st.Bytes += ahead.Bytes
	}
	st.Bytes += uint64(m.blockBytes.Load())
	return st
}

func (m *moveOut) blackoutLocked() time.Duration {
	switch {
	case m.frozen.IsZero():
		return 0
	case m.running.IsZero():
		return time.Since(m.frozen)
	}
	return m.running.Sub(m.frozen)
}

// blackoutPartsLocked says where the blackout went, or nil if that is not known.
func (m *moveOut) blackoutPartsLocked() *control.BlackoutParts {
	p, r := m.parts, m.report
	all := m.blackoutLocked()
	if m.running.IsZero() || r.State == 0 {
		return nil
	}
	return &control.BlackoutParts{
		ImageMs: control.Millis(p.image), LayoutMs: control.Millis(p.layout), FillMs: control.Millis(p.fill),
		WayMs:    control.Millis(max(all-p.image-p.layout-p.fill-r.Memory-r.State, 0)),
		MemoryMs: control.Millis(r.Memory), StateMs: control.Millis(r.State),
	}
}

// migration returns what the move came to.
func (m *moveOut) migration() (control.Migration, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.result
	switch r.Outcome {
	case handover.Moved:
		sent := m.sentLocked()
		done := control.Migration{
			Worker: m.spec.Name, WorkerID: m.spec.ID, Strategy: m.strategy, From: m.n.name(), To: m.toName,
			Epoch: r.Epoch, BlackoutMs: control.Millis(m.blackoutLocked()), Blackout: m.blackoutPartsLocked(),
			TotalMs:   control.Millis(m.finished.Sub(m.started)),
			PrepareMs: control.Millis(m.frozen.Sub(m.started)), DrainMs: control.Millis(m.finished.Sub(m.running)),
			MemoryBytes: m.memory,
			BytesOnWire: sent.Bytes, PagesDemanded: sent.DemandPages, PagesPushed: sent.BulkPages,
			PagesElsewhere: m.report.PagesElsewhere,
			FaultMsP50:     control.Millis(m.report.FaultP50), FaultMsP99: control.Millis(m.report.FaultP99),
			Result: "done",
		}
		m.accountLocked(&done)
		return done, nil
	case handover.Kept:
		e := &control.Error{
			Code:    control.CodeFailed,
			Message: fmt.Sprintf("worker %s was not moved to node %s and runs on here: %s", m.spec.Name, m.toName, r.Reason),
			Hint:    r.Hint,
		}
		switch r.Code {
		case handover.CodeTimeout:
			e.Code = control.CodeTimeout
		case handover.CodePath:
			e.Code = control.CodeUnreachable
		}
		return control.Migration{}, e
	}
	return control.Migration{}, &control.Error{
		Code:    control.CodeFailed,
		Message: fmt.Sprintf("worker %s is lost: %s", m.spec.Name, r.Reason),
	}
}

// abandon gives the move up for good, for a worker that is to be stopped.
func (m *moveOut) abandon(ctx context.Context, reason string) error {
	m.feed(handover.Cancel{Reason: reason})
	m.feed(handover.Abandon{Reason: reason})
	select {
	case <-m.done:
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.result.Outcome == handover.Moved {
			return control.Moved(string(m.to))
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("worker %s is on its way to node %s: %w", m.spec.Name, m.toName, context.Cause(ctx))
	}
}

// lose ends the worker: here, or there, if it was the destination's already.
func (m *moveOut) lose(a handover.Lose) {
	if a.Epoch != m.epoch+1 { // the destination's epoch
		m.n.lose(m.w, m.spec, a.Epoch, a.Reason)
		return
	}
	m.n.dir.learn(entry{
		ID: m.spec.ID, Name: m.spec.Name, Home: m.to, Epoch: a.Epoch,
		State: control.StateLost, Reason: a.Reason, Module: m.spec.Module.String(), App: m.appName(),
	}, m.n.id)
	m.n.unlist(m.spec.ID, m.w)
	if m.w != nil {
		m.w.inbox.close(deliverFrame{Ended: &deliverEnded{State: control.StateLost, Reason: a.Reason}})
		m.w.discard()
	}
}

// left takes a worker off this node, that runs elsewhere now.
func (n *Node) left(m *moveOut, epoch uint64) {
	n.dir.learn(entry{
		ID: m.spec.ID, Name: m.spec.Name, Home: m.to, Epoch: epoch,
		State: control.StateRunning, Module: m.spec.Module.String(), App: m.appName(),
	}, n.id)
	keeping := make(chan struct{})
	if m.w != nil {
		n.mu.Lock()
		n.keeping[m.spec.ID] = keeping
		n.mu.Unlock()
	}
	n.unlist(m.spec.ID, m.w) // from here on it may come back
	if m.w == nil {
		return
	}
	m.w.movedTo(m.to, epoch)
	n.tasks.Go(func() {
		// Its pages stay, as far as there is room, for a return.
		table, err := m.pages.Keep(n.ctx, n.store)
		if err == nil {
			err = n.bases.Put(m.spec.ID, table)
		}
		if err != nil {
			n.log.Info("pages not kept for a return", "worker", m.w.ID, "error", err)
		}
		n.mu.Lock()
		n.kept[m.spec.Module] = true
		delete(n.keeping, m.spec.ID)
		n.mu.Unlock()
		close(keeping)
		m.letGo()
	})
	m.w.remark("worker moved to node %s", m.toName)
	if !m.w.runner.HasFiles() {
		m.w.discard()
		return
	}
	n.tasks.Go(func() {
		// The blocks of its files are in its process.
		if err := n.keepBlocks(context.WithoutCancel(n.ctx), m.w.runner); err != nil {
			n.log.Info("files not kept for a return", "worker", m.w.ID, "error", err)
		}
		m.w.discard()
	})
}

// lose ends a worker whose memory cannot be had.
func (n *Node) lose(w *worker, s spec, epoch uint64, reason string) {
	if w == nil {
		n.bury(s, epoch, control.StateLost, reason)
		return
	}
	w.mu.Lock()
	w.epoch = epoch
	over := ended(w.state)
	w.mu.Unlock()
	if !over { // else it ended by itself, or by its user, and stays what it is
		w.kill(control.StateLost, reason)
	}
}
