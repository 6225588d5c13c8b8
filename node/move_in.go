package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/node/handover"
	"meshnode/node/runner"
	"meshnode/pager"
	"meshnode/placement/manifest"
)

// maxArrivals bounds the workers that may be arriving at one time.
const maxArrivals = 64

// A moveIn is a worker's arrival here: it executes what the Dest of the
// hand-over decides.
type moveIn struct {
	n       *Node
	id      handover.MoveID
	from    mesh.NodeID
	offer   handover.Offer
	machine *handover.Dest
	lnk     *link
	box     *mailbox
	done    chan struct{} // closed when the machine has finished
	// settled is closed once it is known whether the worker runs here; senders
	// that came ahead of it wait for that.
	settled chan struct{}
	settle  sync.Once

	// ctx is of all that is under way for the move; tasks are its goroutines.
	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	mu       sync.Mutex
	at       handover.DestPhase
	changed  chan struct{} // closed and replaced when at changes
	spec     spec
	holders  []mesh.NodeID // besides from; see recordMeta
	app      *manifest.App // as offered, nil without one; appText is its text
	appText  []byte
	reserved uint64 // until the worker counts by itself
	logs     *logRing
	runner   *runner.Runner // until the worker has it
	// neighbours are other workers that may have pages of this one; nil if there
	// are none. endLook ends the look at what they have, which is set once that
	// has begun.
	neighbours *pager.Neighbours
	endLook    context.CancelFunc
	intake     *pager.Intake // of pages that come before the freeze
	sink       *pager.Sink
	files      *arrivingFiles // nil if it has none
	filled     int64          // bytes of memory that came before the commit
	w          *worker
	judged     bool // the source has told how long the worker ran nowhere
	// Of the blackout: until the memory was armed, and then until the worker
	// could run.
	memoryTook, stateTook time.Duration
}

func (m *moveIn) link() *link            { return m.lnk }
func (m *moveIn) feed(ev handover.Event) { m.box.put(ev) }

// arrive takes an OFFER: of a new move, or once more of one that is known.
func (n *Node) arrive(s *mesh.Stream, msg handover.Message, offer handover.Offer) error {
	n.mu.Lock()
	m := n.incoming[msg.Move]
	arriving := len(n.incoming)
	n.mu.Unlock()
	if m != nil {
		if m.from != s.Peer() {
			return fmt.Errorf("node %s offered a move that is %s's", s.Peer(), m.from)
		}
		m.feed(handover.Received{Message: msg})
		return nil
	}
	refuse := func(code handover.Code, reason string) error {
		return n.tell(s, handover.Message{
			Move: msg.Move, Worker: offer.Worker, Incarnation: n.incarnation,
			Body: handover.Refuse{Code: code, Reason: reason, Hint: "try again later"},
		})
	}
	if arriving >= maxArrivals {
		return refuse(handover.CodeBusy, fmt.Sprintf("%d workers are arriving already", arriving))
	}
	if same := n.arrival(offer.Worker); same != nil {
		// An earlier arrival of this worker that only waits for the source's
		// last word lets go; any other stands in the way.
		same.feed(handover.MoveOn{})
		select {
		case <-same.done:
		case <-time.After(time.Second):
			return refuse(handover.CodeBusy, "an earlier move of this worker to here has not ended")
		}
	}
	known, ok, err := n.journal.Get(offer.Worker)
	if err != nil {
		return refuse(handover.CodeDisk, err.Error())
	}
	cfg := handover.DestConfig{
		Peer: string(s.Peer()), Incarnation: n.incarnation, Ticket: handover.NewTicket(), Params: n.cfg.Move,
	}
	if ok {
		cfg.Known = &known
	}
	machine, err := handover.NewDest(cfg)
	if err != nil {
		return err
	}
	m = &moveIn{
		n: n, id: msg.Move, from: s.Peer(), offer: offer, machine: machine, box: newMailbox(n.log),
		done: make(chan struct{}), settled: make(chan struct{}), changed: make(chan struct{}), logs: newLogRing(),
	}
	m.ctx, m.cancel = context.WithCancel(n.ctx)
	m.lnk = n.newLink(m.id, m.from, m.feed)
	n.mu.Lock()
	if first := n.incoming[m.id]; first != nil {
		n.mu.Unlock()
		m.cancel()
		first.feed(handover.Received{Message: msg}) // two copies at one time
		return nil
	}
	n.incoming[m.id] = m
	n.mu.Unlock()
	m.lnk.attach(s, false, handoverHello{Move: m.id, Incarnation: msg.Incarnation})
	m.feed(handover.Received{Message: msg})
	linkCtx, endLink := context.WithCancel(n.ctx)
	n.tasks.Go(func() { m.lnk.run(linkCtx) })
	n.tasks.Go(func() {
		defer endLink()
		finished := drive(n.ctx, m.machine, m.box, m.apply)
		m.cancel()
		m.tasks.Wait()
		if !finished {
			m.letGo()
		}
	})
	return nil
}

// apply carries out actions in order. It runs on the machine's goroutine.
func (m *moveIn) apply(as []handover.Action) (finished bool) {
	for _, a := range as {
		switch a := a.(type) {
		case handover.Send:
			if _, ok := a.Message.Body.(handover.Drained); ok {
				m.sendReport()
			}
			m.lnk.send(a.Message)
			if _, ok := a.Message.Body.(handover.Running); ok {
				m.lnk.sendCopy(m.ctx, a.Message, nil)
			}
		case handover.Persist:
			m.n.persist(a, m.feed)
		case handover.Prepare:
			m.tasks.Go(m.prepare)
		case handover.Fill:
			m.tasks.Go(func() { m.fill(a.Table) })
		case handover.Resume:
			m.tasks.Go(func() { m.resume(a) })
		case handover.Drain:
			m.tasks.Go(m.drain)
		case handover.ReleaseOutput:
			m.w.release()
		case handover.Discard:
			m.discard()
		case handover.Settle:
			if err := m.n.journal.Settle(a.Worker, a.Move); err != nil {
				m.n.log.Error("journal not written", "worker", a.Worker, "error", err)
			}
		case handover.Lose:
			m.n.lose(m.worker(), m.spec, a.Epoch, a.Reason)
		case handover.Note:
			m.n.log.Info("hand-over", "move", m.id, "worker", m.offer.Worker, "note", a.Text)
		case handover.Finish:
			m.finish(a.Result)
			finished = true
		default:
			panic(fmt.Sprintf("a destination asked for %T", a))
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if at := m.machine.Phase(); at != m.at {
		m.at = at
		close(m.changed)
		m.changed = make(chan struct{})
	}
	return finished
}

// phase returns where the move stands, and a channel that is closed when that
// has changed.
func (m *moveIn) phase() (handover.DestPhase, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.at, m.changed
}

func (m *moveIn) worker() *worker {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.w
}

// prepare makes room, fetches the module and starts a runner with an empty
// memory.
func (m *moveIn) prepare() {
	ctx, cancel := context.WithTimeout(m.ctx, prepareTimeout)
	defer cancel()
	err := m.ready(ctx)
	if err == nil {
		if m.neighbours != nil {
			look, end := context.WithTimeout(m.ctx, neighbourTime)
			m.mu.Lock()
			m.endLook = end
			m.mu.Unlock()
			m.tasks.Go(func() {
				defer end()
				m.lookAround(look)
			})
		}
		if m.intake != nil {
			m.tasks.Go(func() { m.takeIn(m.intake) })
			if m.files != nil {
				m.tasks.Go(m.takeFiles)
			}
		}
		m.feed(handover.Prepared{
			Paging: m.n.support.Missing && m.runner.Region().UFFD >= 0, Meta: m.offer.Config,
		})
		return
	}
	failed := handover.PrepareFailed{Code: handover.CodeOther, Reason: err.Error()}
	var ce *control.Error
	if errors.As(err, &ce) {
		failed.Hint = ce.Hint
	}
	var pe *prepareError
	if errors.As(err, &pe) {
		failed.Code = pe.code
	}
	m.feed(failed)
}

// prepareTimeout bounds what a destination does before it accepts: the module
// may come over a slow link and be compiled on a slow machine.
const prepareTimeout = 100 * time.Second

type prepareError struct {
	code handover.Code
	err  error
}

func (e *prepareError) Error() string { return e.err.Error() }
func (e *prepareError) Unwrap() error { return e.err }

func (m *moveIn) ready(ctx context.Context) error {
	var meta recordMeta
	if err := decMode.Unmarshal(m.offer.Config, &meta); err != nil {
		return &prepareError{handover.CodeProtocol, fmt.Errorf("offer: %w", err)}
	}
	s := meta.Spec
	if err := s.validate(); err != nil {
		return &prepareError{handover.CodeProtocol, fmt.Errorf("offer: %w", err)}
	}
	if len(meta.Holders) > maxHolders || slices.ContainsFunc(meta.Holders, func(id mesh.NodeID) bool { return !id.Valid() }) {
		return &prepareError{handover.CodeProtocol, fmt.Errorf("offer: %d nodes with pages, at most %d, or ids that are none", len(meta.Holders), maxHolders)}
	}
	if s.ID != m.offer.Worker || s.MemoryLimit != m.offer.MemoryLimit || handover.Hash(s.Module) != m.offer.Module {
		return &prepareError{handover.CodeProtocol, errors.New("offer: it contradicts itself")}
	}
	var app *manifest.App
	if meta.App != nil {
		var err error
		if app, err = meta.App.parse(); err == nil {
			err = m.n.hasPinned(app)
		}
		if err != nil {
			return &prepareError{handover.CodePolicy, err}
		}
	}
	if m.n.worker(s.ID) != nil {
		return &prepareError{handover.CodeStale, fmt.Errorf("worker %s runs here already", s.Name)}
	}
	if meta.App != nil && meta.App.Auto {
		if err := m.n.reserveRoom(s.ID, meta.App, s.claim()); err != nil {
			return &prepareError{handover.CodeBusy, err}
		}
	}
	if err := m.n.reserve(s.claim()); err != nil {
		code := handover.CodeMemory
		if errors.Is(err, &control.Error{Code: control.CodeConflict}) {
			code = handover.CodePolicy // cordoned
		}
		return &prepareError{code, err}
	}
	m.mu.Lock()
	m.spec, m.reserved = s, s.claim()
	if m.app = app; app != nil {
		m.appText = meta.App.Manifest
	}
	m.holders = slices.DeleteFunc(meta.Holders, func(id mesh.NodeID) bool { return id == m.n.id || id == m.from })
	m.mu.Unlock()
	// The bulk connection is set up now, so that its handshake does not stand
	// in the drain's way.
	warm, err := m.n.mesh.Open(ctx, m.from, protoModule, mesh.Bulk)
	if err != nil {
		return &prepareError{handover.CodePath, err}
	}
	warm.Close()
	others := m.n.reachable(slices.Concat(m.holders, m.n.moduleHomes(s.Module)), m.from)
	if err := m.n.fetchModule(ctx, m.from, others, s.Module, s.ModuleBytes); err != nil {
		return &prepareError{handover.CodeModule, fmt.Errorf("fetch the module: %w", err)}
	}
	r, err := m.n.startRunner(ctx, s, "", m.offer.Epoch+1, m.logs)
	if err != nil {
		return &prepareError{handover.CodeModule, err}
	}
	m.mu.Lock()
	m.runner = r
	m.mu.Unlock()
	if m.offer.Strategy.Rounds() {
		if err := m.n.keepData(r); err != nil {
			m.n.log.Info("data of the module not kept", "module", s.Module, "error", err)
		}
	}
	if err := r.Clear(ctx); err != nil {
		return &prepareError{handover.CodeRunner, err}
	}
	if r.HasFiles() {
		m.mu.Lock()
		m.files = newArrivingFiles(m.n, s.ID, m.from, r)
		m.mu.Unlock()
	}
	// One that left a moment ago brings only what it has changed, if its pages
	// are in the store by now: to put them there takes less time than the way.
	if err := m.n.awaitKept(ctx, s.ID); err != nil {
		return &prepareError{handover.CodeOther, err}
	}
	neighbours := m.n.neighbours(s.Module)
	m.mu.Lock()
	m.neighbours = neighbours
	m.mu.Unlock()
	if m.offer.Strategy.Rounds() {
		intake, err := m.newIntake(r)
		if err != nil {
			return &prepareError{handover.CodeOther, err}
		}
		m.mu.Lock()
		m.intake = intake
		m.mu.Unlock()
	}
	return nil
}

// takeIn takes pages while the worker still runs elsewhere.
func (m *moveIn) takeIn(intake *pager.Intake) {
	ctx, cancel := context.WithCancel(m.ctx)
	defer cancel()
	m.tasks.Go(func() { m.reportProgress(ctx, func() uint64 { return intake.BytesIn() }) })
	m.tasks.Go(func() { m.n.paths.watch(ctx, intake.BytesIn) })
	d := dialer{m.n, m.from}
	if err := intake.Run(m.ctx, d.Bulk); err != nil && m.ctx.Err() == nil {
		// What did not come now comes after the commit.
		m.n.log.Info("pages did not come ahead", "worker", m.offer.Worker, "error", err)
	}
}

// takeFiles takes blocks of files while the worker still runs elsewhere.
func (m *moveIn) takeFiles() {
	ctx, cancel := context.WithCancel(m.ctx)
	defer cancel()
	m.tasks.Go(func() {
		select {
		case <-m.settled:
			cancel() // it runs here
		case <-ctx.Done():
		}
	})
	m.tasks.Go(func() { m.reportProgress(ctx, m.files.bytes.Load) })
	if err := m.files.ahead(ctx); err != nil && ctx.Err() == nil {
		m.n.log.Info("files did not come ahead", "worker", m.offer.Worker, "error", err)
	}
}

// fill fetches all pages before the worker runs.
func (m *moveIn) fill(table []byte) {
	layout, err := m.parseLayout(table)
	if err != nil {
		m.feed(handover.FillFailed{Reason: err.Error()})
		return
	}
	sink, err := m.newSink(layout, false)
	if err != nil {
		m.feed(handover.FillFailed{Reason: err.Error()})
		return
	}
	ctx, cancel := context.WithCancel(m.ctx)
	defer cancel()
	m.tasks.Go(func() { m.reportProgress(ctx, func() uint64 { return sink.Stats().BytesIn }) })
	m.tasks.Go(func() { m.n.paths.watch(ctx, func() uint64 { return sink.Stats().BytesIn }) })
	if err := sink.Run(ctx, dialer{m.n, m.from}); err != nil {
		m.feed(handover.FillFailed{Reason: err.Error()})
		return
	}
	if m.files != nil {
		m.tasks.Go(func() { m.reportProgress(ctx, m.files.bytes.Load) })
		if err := m.files.all(ctx); err != nil {
			m.feed(handover.FillFailed{Reason: fmt.Sprintf("its files: %s", err)})
			return
		}
	}
	m.mu.Lock()
	m.filled = int64(layout.Pages) * pager.PageSize
	m.mu.Unlock()
	m.feed(handover.FilledAll{})
}

// parseLayout decodes the layout of a frozen memory.
func (m *moveIn) parseLayout(b []byte) (pager.Layout, error) {
	l, rest, err := pager.ParseLayout(b, int(m.offer.MemoryLimit/pager.PageSize))
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("memory layout: %d bytes too many", len(rest))
	}
	return l, err
}

// reportProgress tells the machine that pages are coming, as long as the bytes
// received rise.
func (m *moveIn) reportProgress(ctx context.Context, received func() uint64) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	before := received()
	for {
		select {
		case <-t.C:
			if now := received(); now != before {
				before = now
				m.feed(handover.Progress{})
			}
		case <-ctx.Done():
			return
		}
	}
}

// resume continues the worker from its image.
func (m *moveIn) resume(a handover.Resume) {
	if err := m.continued(a); err != nil {
		m.feed(handover.ResumeFailed{Reason: err.Error()})
		return
	}
	m.settle.Do(func() { close(m.settled) })
	m.feed(handover.Resumed{})
}

func (m *moveIn) continued(a handover.Resume) error {
	begun := time.Now()
	img, err := parseImage(a.Head)
	if err != nil {
		return err
	}
	m.mu.Lock()
	s, r, filled := m.spec, m.runner, m.filled
	m.mu.Unlock()
	if img.Spec.ID != s.ID || img.Spec.Module != s.Module || img.Spec.MemoryLimit != s.MemoryLimit {
		return errors.New("the image is not of the worker that was offered")
	}
	size := int64(img.State.Pages) * wasmPage
	if !a.Paging && size != filled {
		return fmt.Errorf("a memory of %d bytes, of which %d came", size, filled)
	}
	if a.Paging {
		layout, err := m.parseLayout(img.Layout)
		if err != nil {
			return err
		}
		if int64(layout.Pages)*pager.PageSize != size {
			return fmt.Errorf("a memory of %d bytes with a layout of %d pages", size, layout.Pages)
		}
		sink, err := m.newSink(layout, true)
		if err != nil {
			return err
		}
		// From here on a page that is not here makes the worker wait.
		if err := sink.Arm(); err != nil {
			return err
		}
	}
	armed := time.Now()
	if err := r.Restore(m.ctx, img.State); err != nil {
		return err
	}
	if m.files != nil && !a.Paging {
		// The source may forget the worker once it runs here.
		if err := m.restOfFiles(m.logs); err != nil {
			return err
		}
	}
	w := m.n.newWorker(s, a.Epoch, r, m.logs)
	w.gated, w.draining, w.paused = true, a.Paging, img.Paused
	if !a.Paging {
		w.base = m.sink.Table()
	}
	w.events, w.memory, w.origin = img.Events, uint64(size), img.Origin
	w.holders = append([]mesh.NodeID{m.from}, m.holders[:min(len(m.holders), maxHolders-1)]...)
	w.arrived = time.Now()
	if err := m.carried(w, img.App); err != nil {
		return err
	}
	w.inbox.gate()
	if err := w.inbox.restore(img.Senders, time.Now()); err != nil {
		return err
	}
	if err := w.outbox.restore(img.Outbox); err != nil {
		return err
	}
	if err := w.timers.restore(img.Timers); err != nil {
		return err
	}
	if err := w.restoreConsole(img); err != nil {
		return err
	}
	w.look() // there may be output that its last home did not take
	m.mu.Lock()
	if m.ctx.Err() != nil {
		m.mu.Unlock()
		return context.Cause(m.ctx)
	}
	m.n.mu.Lock()
	if m.n.workers[s.ID] != nil {
		m.n.mu.Unlock()
		m.mu.Unlock()
		return errors.New("the worker runs here already")
	}
	delete(m.n.ended, s.ID) // an earlier life of it here
	m.n.workers[s.ID] = w
	m.n.mu.Unlock()
	m.w, m.runner = w, nil
	m.memoryTook, m.stateTook = armed.Sub(begun), time.Since(armed)
	m.mu.Unlock()
	m.unreserve()
	m.n.releaseRoom(s.ID, true)
	if !w.paused {
		w.timers.run(time.Now())
	}
	w.shown()
	// From here on it may be in an event that waits for a page, so nothing
	// below may wait for it.
	w.start()
	return nil
}

// restOfFiles brings what is missing of the worker's files.
func (m *moveIn) restOfFiles(logs *logRing) error {
	lost, err := m.files.rest(m.ctx, 2*m.n.cfg.DrainTimeout)
	if lost > 0 {
		text := fmt.Sprintf("%d blocks of the worker's files could not be had from node %s: reading them is an I/O error", lost, m.n.nameOf(m.from))
		logs.add(control.LogLine{Node: m.n.name(), Epoch: m.offer.Epoch + 1, Level: "warn", Source: "node", Text: text})
		m.n.log.Warn("blocks of files are lost", "worker", m.offer.Worker, "blocks", lost)
	}
	return err
}

// drain fetches the missing pages while the worker runs.
func (m *moveIn) drain() {
	select {
	case <-m.settled:
	case <-m.ctx.Done():
		return
	}
	m.mu.Lock()
	sink, w := m.sink, m.w
	m.mu.Unlock()
	if !w.memoryIn.hold() {
		return // it has ended and said so
	}
	watched, stop := context.WithCancel(m.ctx)
	m.tasks.Go(func() { m.n.paths.watch(watched, func() uint64 { return sink.Stats().BytesIn }) })
	files := make(chan error, 1)
	if m.files != nil {
		m.tasks.Go(func() { files <- m.restOfFiles(w.logs) })
	} else {
		files <- nil
	}
	err := sink.Run(m.ctx, dialer{m.n, m.from})
	stop()
	if err == nil && m.files != nil {
		// What is missing of its files is an error to the worker, not its end.
		m.feed(handover.MemoryIn{})
	}
	if err == nil {
		// A runner that is gone says so itself.
		<-files
	}
	w.memoryIn.release()
	switch {
	case m.ctx.Err() != nil:
	case errors.Is(err, pager.ErrRunnerGone):
		m.feed(handover.RunnerDied{Reason: "its process ended"})
	case err != nil:
		m.feed(handover.PagesGone{Reason: err.Error()})
	default:
		// Not on the loop: the worker may be in an event, and as long as it is
		// draining nobody ends one that takes too long.
		base, awaited := sink.Table(), sink.Touched()
		w.mu.Lock()
		w.draining, w.base, w.awaited = false, base, awaited
		w.mu.Unlock()
		m.feed(handover.DrainedAll{})
		// The move may be over before the loop has time for this. If the worker
		// has ended, it says so itself.
		m.n.tasks.Go(func() { _ = w.do(m.n.ctx, w.shown) })
	}
}

// sendReport tells the source what it cannot see.
func (m *moveIn) sendReport() {
	m.mu.Lock()
	sink, r := m.sink, moveReport{Memory: m.memoryTook, State: m.stateTook}
	m.mu.Unlock()
	if sink == nil {
		return
	}
	st := sink.Stats()
	r.PagesDemanded, r.FaultP50, r.FaultP99, r.PagesElsewhere = st.Demanded, st.Remote.P50, st.Remote.P99, st.PeerPages
	m.lnk.report(r)
}

// discard ends whatever is under way. After it the worker does not run here.
func (m *moveIn) discard() {
	m.cancel()
	m.mu.Lock()
	r, w, intake := m.runner, m.w, m.intake
	m.mu.Unlock()
	if intake != nil {
		intake.Close()
	}
	if r != nil {
		r.Kill()
	}
	if w != nil {
		w.discard()
		m.n.forget(w)
	}
	m.tasks.Wait()
	// A runner that came up meanwhile goes too.
	m.closeRunner()
	m.settle.Do(func() { close(m.settled) })
}

// closeRunner ends a runner that no worker has.
func (m *moveIn) closeRunner() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.runner != nil {
		m.runner.Close()
		m.runner = nil
	}
}

// letGo gives back what the move holds, when the node stops before the machine
// has finished and nothing is under way any more. A worker that runs here
// already ends as the node's others do.
func (m *moveIn) letGo() {
	m.mu.Lock()
	intake := m.intake
	m.mu.Unlock()
	if intake != nil {
		intake.Close()
	}
	m.closeRunner()
	m.unreserve()
	m.settle.Do(func() { close(m.settled) })
}

// unreserve gives back the room that prepare claimed.
func (m *moveIn) unreserve() {
	m.mu.Lock()
	bytes := m.reserved
	m.reserved = 0
	m.mu.Unlock()
	m.n.unreserve(bytes)
}

func (m *moveIn) finish(r handover.Result) {
	m.settle.Do(func() { close(m.settled) })
	m.unreserve()
	m.n.releaseRoom(m.offer.Worker, false)
	m.n.mu.Lock()
	delete(m.n.incoming, m.id)
	m.n.mu.Unlock()
	m.mu.Lock()
	if m.sink != nil {
		m.n.metrics.pageBytes.WithLabelValues("in").Add(float64(m.sink.Stats().BytesIn))
	}
	m.mu.Unlock()
	m.n.metrics.moves.WithLabelValues("in", r.Outcome.String()).Inc()
	m.n.log.Info("arrival ended", "worker", m.offer.Worker, "name", m.offer.Name, "from", m.n.nameOf(m.from),
		"outcome", r.Outcome.String(), "reason", r.Reason)
	if had := m.neighbours.Found(); had > 0 {
		m.n.log.Info("pages from other workers here", "worker", m.offer.Worker, "had", had)
	}
	if m.intake != nil {
		m.intake.Close()
	}
	if m.files != nil {
		m.files.close()
	}
	close(m.done)
	if w := m.worker(); w != nil {
		m.n.settleEnd(w)
	}
}

// arrival returns the move that brings or brought a worker here, if it has not
// ended.
func (n *Node) arrival(worker string) *moveIn {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, m := range n.incoming {
		if m.offer.Worker == worker {
			return m
		}
	}
	return nil
}

// settlePatience is how long a worker that is to move on waits for the last word
// of the node it came from. With it, it can even go back there at once.
const settlePatience = time.Second

// settleArrival waits until a worker that came by a move has all of its memory
// and its arrival has ended.
func (n *Node) settleArrival(ctx context.Context, w *worker) error {
	for {
		in := n.arrival(w.ID)
		if in == nil {
			return nil
		}
		at, changed := in.phase()
		var patience <-chan time.Time
		if at == handover.DestSettling {
			patience = time.After(settlePatience)
		}
		select {
		case <-in.done:
		case <-changed:
		case <-patience:
			// It only waits for the source's last word, and need not.
			in.feed(handover.MoveOn{})
		case <-ctx.Done():
			return fmt.Errorf("the worker's memory is still arriving from node %s: %w", n.nameOf(in.from), context.Cause(ctx))
		}
	}
}
