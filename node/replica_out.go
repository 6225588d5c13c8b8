package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/node/lease"
	"meshnode/pager"
)

const (
	// maxPause is how long a worker may stand still for a checkpoint, or its
	// blackout objective if that is shorter; pageCopy is what copying a page out
	// takes at most, on a machine that is not busy.
	maxPause = 50 * time.Millisecond
	pageCopy = 2 * time.Microsecond
	// What was written is copied while the worker runs until that was littleShare
	// of what the pause is enough for, aheadRounds times at most.
	aheadRounds = 4
	littleShare = 20
	// maxStretch bounds how much less often checkpoints are made that fail or stop
	// the worker for too long, and longestWait the time until the next.
	maxStretch  = 64
	longestWait = time.Minute
	// retryCheckpoint is how soon one is tried again that could not be made at the
	// moment, and how soon at most the first time that one fails.
	retryCheckpoint = time.Second
	// replicaPatience bounds the wait for an answer of the guardian's.
	replicaPatience = 30 * time.Second
)

// A replicator gives the state of a worker here to its guardian, again and again
// as its manifest says, for as long as one lease lasts; replica.go has the
// exchange.
//
// What was written since the last checkpoint is found by the kernel. It is copied
// while the worker runs, then once more what was written meanwhile, until that is
// little; the rest is copied while the worker stands still between two events. So
// the pause is as long as copying what it wrote in the last few milliseconds takes,
// and hashing, packing and sending are in no pause.
type replicator struct {
	n      *Node
	w      *worker
	to     mesh.NodeID // the guardian
	epoch  uint64
	ticket uint64
	every  time.Duration
	pause  time.Duration // at most
	cancel context.CancelFunc
	done   chan struct{}
	last   chan struct{} // closed: the worker stands still for its last checkpoint
	final  error         // what came of that; before done is closed

	// The goroutine's.
	line    *mesh.Stream
	version         // the last checkpoint that was kept
	unsure  version // one that was sent whole, if no answer to it came
	failed  bool    // what was found written since is not in version
	stretch int
	told    string // the reason that was made an event last

	// frozen, if set, is called while the worker stands still: for tests.
	frozen func()

	use     sync.Mutex // over the tracker; held while pages are copied
	tracker *pager.Tracker
	size    int64 // of the memory that it watches
	scanned bool  // what it found was copied, or will be
	claim   *sample
	ctx     context.Context // until the tracker has to go

	mu    sync.Mutex
	shown control.Checkpoint
	taken time.Time // when the last one was, that was kept
	first time.Time // when the first began
	sent  uint64
}

// A version is a checkpoint, as its owner knows it.
type version struct {
	names  []pager.Hash // of all pages
	digest []byte       // nil if there is none
}

// errNotNow means that a checkpoint cannot be made at the moment.
var errNotNow = errors.New("not now")

// newReplicator makes what gives w's state to the guardian of that lease.
func (k *keeper) newReplicator(to mesh.NodeID, ticket uint64) *replicator {
	app, _, _, _ := k.w.place.get()
	r := &replicator{
		n: k.n, w: k.w, to: to, epoch: k.w.epochNow(), ticket: ticket, every: app.OnDisconnect.Checkpoint.D(), pause: maxPause,
		done: make(chan struct{}), last: make(chan struct{}), final: errNotNow, failed: true, stretch: 1, told: "nothing yet",
	}
	if o := app.Objectives.Blackout; o != nil {
		r.pause = min(r.pause, o.Max.D())
	}
	r.shown.EveryMs = control.Millis(r.every)
	return r
}

// wantsCheckpoints says whether the worker's manifest asks for them.
func (w *worker) wantsCheckpoints() bool {
	app, _, _, applied := w.place.get()
	return applied && app.OnDisconnect.Checkpoint > 0
}

// replicate has the guardian given checkpoints while the lease is bound. It is
// called on the keeper's goroutine.
func (k *keeper) replicate() {
	k.mu.Lock()
	bound, to, ticket, rep := k.own.Phase() == lease.Bound, k.guardian, k.own.Ticket(), k.rep
	k.mu.Unlock()
	if !bound || rep != nil && (rep.ticket != ticket || rep.to != to) {
		k.endReplica()
		rep = nil
	}
	if !bound || rep != nil || !k.w.wantsCheckpoints() {
		return
	}
	rep = k.newReplicator(to, ticket)
	var ctx context.Context
	ctx, rep.cancel = context.WithCancel(k.w.ctx)
	k.mu.Lock()
	k.rep = rep
	k.mu.Unlock()
	k.n.tasks.Go(func() { rep.run(ctx) })
}

// endReplica ends the checkpoints and waits until nothing of them is under way:
// a move that follows needs what they use. It is called on the keeper's
// goroutine.
func (k *keeper) endReplica() {
	k.mu.Lock()
	rep := k.rep
	k.rep = nil
	k.mu.Unlock()
	if rep != nil {
		rep.cancel()
		<-rep.done
	}
}

// describe is what the control API says of the checkpoints.
func (r *replicator) describe() *control.Checkpoint {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.shown
	if !r.taken.IsZero() {
		c.AgeMs = control.Millis(time.Since(r.taken))
		c.BytesPerSecond = float64(r.sent) / max(time.Since(r.first), time.Second).Seconds()
	}
	return &c
}

// run makes checkpoints until ctx is done.
func (r *replicator) run(ctx context.Context) {
	defer close(r.done)
	defer r.hangUp()
	defer r.untrack()
	if err := r.possible(); err != nil {
		r.fails(err)
		select {
		case <-r.last:
			r.final = err
		case <-ctx.Done():
		}
		return
	}
	for {
		began := time.Now()
		next, final := r.last, false
		select {
		case <-r.last:
			next, final = nil, true
		default:
		}
		err := r.fromBase(func() error { return r.checkpoint(ctx) })
		if ctx.Err() != nil || errors.Is(err, errGone) {
			return
		}
		if r.final = err; final && err == nil {
			return
		}
		wait := min(r.every*time.Duration(r.stretch), max(longestWait, r.every))
		switch {
		case errors.Is(err, errNotNow) || errors.Is(err, errMoving):
			wait = min(wait, retryCheckpoint)
		case err != nil:
			r.stretch = min(2*r.stretch, maxStretch)
			wait = min(r.every*time.Duration(r.stretch), retryCheckpoint*time.Duration(r.stretch), longestWait)
			r.fails(err)
		}
		r.mu.Lock()
		r.shown.EveryMs = control.Millis(wait)
		r.mu.Unlock()
		select {
		case <-time.After(max(time.Until(began.Add(wait)), wait/10)):
		case <-next:
		case <-ctx.Done():
			return
		}
	}
}

// finish has the worker stand still for good and gives its guardian what it is
// then, until ctx is done. An event that does not end in time is not waited for.
func (r *replicator) finish(ctx context.Context) error {
	short, cancel := context.WithTimeout(ctx, yieldTime/2)
	defer cancel()
	var err error
	derr := r.w.do(short, func() {
		r.w.leaves = true
		r.w.outbox.stop() // what it has sent is complete, as in a move
		err = r.w.stand(context.WithoutCancel(ctx))
	})
	if err = errors.Join(derr, err); err != nil {
		return err
	}
	close(r.last)
	select {
	case <-r.done:
		return r.final
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// fromBase makes a checkpoint that differs from one which the guardian has: the
// last that it said it keeps, the one after, if its answer was lost, or none, if it
// has restarted.
func (r *replicator) fromBase(checkpoint func() error) error {
	if r.digest == nil {
		r.version, r.unsure = r.unsure, version{}
	}
	err := checkpoint()
	for errors.Is(err, errUnknownBase) && r.digest != nil {
		r.version, r.unsure, r.failed = r.unsure, version{}, true
		err = checkpoint()
	}
	return err
}

// possible says why no checkpoint of the worker can be made.
func (r *replicator) possible() error {
	if r.w.runner.HasFiles() {
		return errors.New("it has files, which checkpoints for a guardian do not hold yet")
	}
	if !r.n.support.Tracking() {
		return errors.New("the kernel of its node does not track writes (Linux 6.7 does)")
	}
	return nil
}

// fails notes why there is no new checkpoint, and tells it once.
func (r *replicator) fails(err error) { r.note("no-checkpoint", err.Error()) }

func (r *replicator) note(code, why string) {
	r.mu.Lock()
	r.shown.Reason = why
	r.mu.Unlock()
	if why == r.told {
		return
	}
	r.told = why
	text := "its guardian does not get its state: " + why
	switch {
	case why == "":
		text = fmt.Sprintf("node %s has its state, and is to have it again every %v", r.n.nameOf(r.to), r.every)
	case code != "no-checkpoint":
		text = why
	}
	e := r.n.event(r.w, control.EventFallback, code, text)
	e.From, e.To, e.Outcome = r.n.name(), r.n.nameOf(r.to), "running"
	r.n.events.add(e)
	r.n.log.Info("checkpoints", "worker", r.w.ID, "guardian", r.to, "reason", cmp.Or(why, "made"))
}

// checkpoint makes one and gives it to the guardian.
func (r *replicator) checkpoint(ctx context.Context) error {
	if r.w.fenced() || !r.w.settled() {
		return errNotNow
	}
	began := time.Now()
	c, err := r.take(ctx)
	if err != nil {
		return err
	}
	head, err := c.img.encode()
	if err != nil {
		return err
	}
	if r.first.IsZero() {
		r.mu.Lock()
		r.first = began
		r.mu.Unlock()
	}
	v := version{names: c.names(r.names)}
	digest := replicaDigest(head, v.names)
	v.digest = digest[:]
	sent, err := r.send(ctx, c, head, v)
	if err != nil {
		r.hangUp()
		return err
	}
	r.version, r.unsure, r.failed = v, version{}, false
	r.kept(c, len(head), sent)
	return nil
}

// kept notes a checkpoint that the guardian has.
func (r *replicator) kept(c *taken, head int, sent uint64) {
	content := uint64(head)
	for i := range r.names {
		if r.names[i] != pager.ZeroHash {
			content += pager.PageSize
		}
	}
	r.mu.Lock()
	r.taken, r.sent = c.at, r.sent+sent
	s := &r.shown
	s.Count++
	s.Bytes, s.SentBytes, s.PauseMs = content, sent, control.Millis(c.pause)
	s.LongestMs = max(s.LongestMs, s.PauseMs)
	s.Reason = ""
	r.mu.Unlock()
	r.n.log.Debug("checkpoint kept", "worker", r.w.ID, "guardian", r.to, "pages", len(c.staged), "sent", sent, "pause", c.pause)
	app, _, _, _ := r.w.place.get()
	if o := app.Objectives.Blackout; o != nil && c.pause > o.Max.D() {
		r.stretch = min(2*r.stretch, maxStretch)
		r.note("checkpoint-rare", fmt.Sprintf("checkpoints have stopped it for longer than its blackout objective of %v, and are made less often", o.Max.D()))
		return
	}
	r.stretch = max(r.stretch/2, 1)
	if r.stretch == 1 {
		r.note("checkpoint", "")
	}
}

// A taken checkpoint is the state of one moment, as far as it differs from the
// last that was kept.
type taken struct {
	at     time.Time
	pause  time.Duration
	img    image
	pages  int // of the memory
	staged map[pager.PageNum]stagedPage
}

// A stagedPage is one to be sent; data is nil if it is zero.
type stagedPage struct {
	name pager.Hash
	data []byte
}

// stageMost is how many pages may differ: what is to be sent is a copy.
func stageMost() int { return int(2 * versionBytes() / pager.PageSize) }

// take makes a checkpoint.
func (r *replicator) take(ctx context.Context) (*taken, error) {
	r.use.Lock()
	defer r.use.Unlock()
	if err := r.trackLocked(ctx); err != nil {
		return nil, err
	}
	all := r.failed || !r.scanned
	r.failed, r.scanned = true, true // until the guardian has it
	most := max(int(r.pause/pageCopy), 1)
	c := &taken{staged: make(map[pager.PageNum]stagedPage)}
	last := 0 // pages found written
	for range aheadRounds {
		runs, grown, err := r.writtenLocked(r.w.memoryNow())
		if err != nil {
			return nil, err
		}
		if all {
			// Found after the scan: it renewed the protection of what is read now.
			runs, grown, all = nil, []pager.Run{{Count: uint32(r.size / pager.PageSize)}}, false
		}
		// What was written is no hole, and to ask takes as long as the memory is
		// large, for each run.
		var holes []pager.Run
		if file := r.w.runner.Region().File; file != nil {
			if holes, err = pager.ZeroRunsWithin(file, grown); err != nil {
				return nil, err
			}
		}
		if err := r.copyLocked(c, grown, holes); err != nil {
			return nil, err
		}
		if err := r.copyLocked(c, runs, nil); err != nil {
			return nil, err
		}
		runs = append(runs, grown...)
		if last = pager.CountPages(runs); last <= most/littleShare {
			break
		}
	}
	var late []pager.PageNum
	copies := make([]byte, (min(last, most)+64)*pager.PageSize)
	clear(copies) // its pages are there before the pause begins
	copies = copies[:0]
	if err := r.freezeLocked(c, func(runs []pager.Run) error {
		if n := pager.CountPages(runs); n > most {
			return fmt.Errorf("it writes too fast: %d MiB were written since the last look, and a pause of %v is enough for %d", n*pager.PageSize>>20, r.pause, most*pager.PageSize>>20)
		}
		data := r.w.runner.Region().Data
		for _, run := range runs {
			for p := run.First; p < run.First+pager.PageNum(run.Count); p++ {
				copies = append(copies, data[int(p)*pager.PageSize:][:pager.PageSize]...)
				late = append(late, p)
			}
		}
		return nil
	}); err != nil {
		return nil, err
	}
	for i, p := range late {
		if err := r.stage(c, p, copies[i*pager.PageSize:][:pager.PageSize]); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// freezeLocked stops the worker, calls last with what was written since the last
// look, and lets it go on.
func (r *replicator) freezeLocked(c *taken, last func([]pager.Run) error) (err error) {
	w := r.w
	derr := w.do(r.ctx, func() {
		if w.frozen || w.fenced() {
			err = errNotNow
			return
		}
		c.at = time.Now()
		// A request to the runner cannot be given up without ending it.
		whole := context.WithoutCancel(r.ctx)
		w.timers.halt(c.at)
		defer func() {
			w.runAgain()
			c.pause = time.Since(c.at)
		}()
		if w.console != nil {
			if err = w.runner.Halt(whole); err != nil {
				return
			}
		}
		if c.img, err = w.image(whole); err != nil {
			return
		}
		c.img.Last = w.leaves
		size := int64(c.img.State.Pages) * wasmPage
		c.pages = int(size / pager.PageSize)
		c.img.Layout = pager.Layout{Pages: c.pages}.Append(nil)
		var runs, grown []pager.Run
		if runs, grown, err = r.writtenLocked(size); err == nil {
			err = last(pager.NormalizeRuns(append(runs, grown...)))
		}
		if r.frozen != nil {
			r.frozen()
		}
	})
	if derr != nil && r.ctx.Err() != nil {
		return context.Cause(r.ctx)
	}
	return errors.Join(derr, err)
}

// writtenLocked returns what was written since the last look, and what is new in a
// memory that has grown to size: what was written there before it was watched is
// not found by a scan.
func (r *replicator) writtenLocked(size int64) (runs, grown []pager.Run, err error) {
	if size > r.size {
		grown = []pager.Run{{First: pager.PageNum(r.size / pager.PageSize), Count: uint32((size - r.size) / pager.PageSize)}}
		if err := r.tracker.Grow(size); err != nil {
			return nil, nil, err
		}
		r.size = size
	}
	runs, err = r.tracker.Scan(nil)
	return runs, grown, err
}

// copyLocked stages what pages hold while the worker runs; holes among them are
// zero, and reading one would fill it. A page that the worker writes meanwhile is
// found by the next scan.
func (r *replicator) copyLocked(c *taken, runs, holes []pager.Run) error {
	data := r.w.runner.Region().Data
	buf := make([]byte, pager.PageSize)
	for _, run := range runs {
		for p := run.First; p < run.First+pager.PageNum(run.Count); p++ {
			if (p == run.First || p%256 == 0) && r.ctx.Err() != nil {
				return context.Cause(r.ctx) // a move waits
			}
			for len(holes) > 0 && p >= holes[0].First+pager.PageNum(holes[0].Count) {
				holes = holes[1:]
			}
			if len(holes) > 0 && p >= holes[0].First {
				clear(buf)
			} else {
				copy(buf, data[int(p)*pager.PageSize:])
			}
			if err := r.stage(c, p, buf); err != nil {
				return err
			}
		}
	}
	return nil
}

// stage notes what a page holds, of which it keeps nothing.
func (r *replicator) stage(c *taken, p pager.PageNum, page []byte) error {
	s := stagedPage{name: pager.ZeroHash}
	if !pager.IsZero(page) {
		s.name = pager.HashPage(page)
	}
	was := pager.ZeroHash
	if int(p) < len(r.names) {
		was = r.names[p]
	}
	if s.name == was {
		delete(c.staged, p)
		return nil
	}
	if s.name != pager.ZeroHash {
		s.data = slices.Clone(page)
	}
	if c.staged[p] = s; len(c.staged) > stageMost() {
		return fmt.Errorf("more than %d MiB differ from the last checkpoint, the most that this node copies for one", stageMost()*pager.PageSize>>20)
	}
	return nil
}

// trackLocked begins to watch what the worker writes, unless it is watched. A
// sample, or a move, ends that, and then all of the memory is looked at.
func (r *replicator) trackLocked(ctx context.Context) error {
	if r.tracker != nil {
		return nil
	}
	w := r.w
	if !w.memoryIn.hold() {
		return errGone
	}
	tctx, cancel := context.WithCancelCause(ctx)
	claim := &sample{cancel: cancel, done: make(chan struct{}), yields: true}
	w.mu.Lock()
	free := w.sampling == nil && w.settledLocked()
	if free {
		w.sampling = claim
	}
	w.mu.Unlock()
	if !free {
		cancel(nil)
		w.memoryIn.release()
		return errNotNow
	}
	size := w.memoryNow()
	t, err := pager.NewTracker(pager.TrackerConfig{Region: w.runner.Region(), Size: size, Log: r.n.log})
	if err == nil {
		err = t.Start()
	}
	if err == nil && t.Method() == "hashes" {
		err = errors.Join(errors.New("what it writes cannot be tracked"), t.Stop())
	}
	if err != nil {
		cancel(nil)
		w.sampled(claim)
		w.memoryIn.release()
		return err
	}
	r.tracker, r.size, r.scanned, r.claim, r.ctx = t, size, false, claim, tctx
	context.AfterFunc(tctx, r.dropTracker)
	return nil
}

// dropTracker lets go of what trackLocked has claimed.
func (r *replicator) dropTracker() {
	r.use.Lock()
	defer r.use.Unlock()
	if err := r.tracker.Stop(); err != nil {
		r.n.log.Warn("write tracking not ended", "worker", r.w.ID, "error", err)
	}
	r.tracker = nil
	r.w.memoryIn.release()
	r.w.sampled(r.claim)
}

// untrack has the tracker dropped and waits until it is.
func (r *replicator) untrack() {
	r.use.Lock()
	claim := r.claim
	r.use.Unlock()
	if claim != nil {
		claim.cancel(errMoving)
		<-claim.done
	}
}

var errUnknownBase = errors.New("the guardian does not have the checkpoint before")

// send gives the guardian a checkpoint. sent counts the bytes.
func (r *replicator) send(ctx context.Context, c *taken, head []byte, v version) (sent uint64, err error) {
	if r.line == nil {
		if r.line, err = r.n.mesh.Open(ctx, r.to, protoReplica, mesh.Bulk); err != nil {
			return 0, err
		}
	}
	line := r.line
	stop := context.AfterFunc(ctx, func() { interrupt(line) })
	defer stop()
	share := r.n.budget.Share(string(r.to), 1)
	defer share.Close()
	out := &countingWriter{w: pager.NewPacedWriter(ctx, line, share)}

	begin := &replicaBegin{
		Worker: r.w.ID, Epoch: r.epoch, Ticket: r.ticket, Base: r.digest,
		Pages: uint32(c.pages), Changed: c.changed(), Head: uint32(len(head)),
	}
	if err := mesh.WriteMessage(out, replicaFrame{Begin: begin}); err != nil {
		return 0, err
	}
	a, err := r.answer(line)
	if err != nil || !a.Go {
		return 0, r.refused(a, err)
	}
	if err := mesh.WriteMessage(out, replicaFrame{Head: head}); err != nil {
		return 0, err
	}
	err = c.runs(func(run *replicaRun) error { return mesh.WriteMessage(out, replicaFrame{Run: run}) })
	if err != nil {
		return 0, err
	}
	r.unsure = v
	if err := mesh.WriteMessage(out, replicaFrame{End: v.digest}); err != nil {
		return 0, err
	}
	if a, err = r.answer(line); err != nil || !a.Kept {
		return 0, r.refused(a, err)
	}
	if !stop() {
		return 0, context.Cause(ctx) // the stream has been interrupted
	}
	r.n.metrics.pageBytes.WithLabelValues("out").Add(float64(out.n))
	return out.n, nil
}

// names are those of all pages; base are those of the checkpoint before.
func (c *taken) names(base []pager.Hash) []pager.Hash {
	names := zeroNames(slices.Clone(base), c.pages)
	for p, page := range c.staged {
		names[p] = page.name
	}
	return names
}

// changed is how many pages are brought.
func (c *taken) changed() (n uint32) {
	for _, page := range c.staged {
		if page.data != nil {
			n++
		}
	}
	return n
}

// runs calls each with what differs, in order.
func (c *taken) runs(each func(*replicaRun) error) error {
	pages := slices.Sorted(maps.Keys(c.staged))
	for len(pages) > 0 {
		first, zero, n := pages[0], c.staged[pages[0]].data == nil, 0
		var data []byte
		for n < len(pages) && pages[n] == first+pager.PageNum(n) && (zero || n < replicaPages) {
			page := c.staged[pages[n]]
			if (page.data == nil) != zero {
				break
			}
			data = append(data, page.data...)
			n++
		}
		run := &replicaRun{First: uint32(first), Count: uint32(n)}
		if !zero {
			run = newReplicaRun(first, data)
		}
		if err := each(run); err != nil {
			return err
		}
		pages = pages[n:]
	}
	return nil
}

func (r *replicator) answer(line *mesh.Stream) (a replicaAnswer, err error) {
	if err := line.SetReadDeadline(time.Now().Add(replicaPatience)); err != nil {
		return a, err
	}
	err = mesh.ReadMessage(line, maxReplicaAnswer, &a)
	return a, err
}

func (r *replicator) refused(a replicaAnswer, err error) error {
	switch {
	case err != nil:
		return fmt.Errorf("node %s does not answer: %w", r.n.nameOf(r.to), err)
	case a.Unknown:
		return errUnknownBase
	}
	return fmt.Errorf("node %s does not keep a checkpoint: %s", r.n.nameOf(r.to), cutTo(cmp.Or(a.Reason, "it does not say why"), maxReplicaReason))
}

func (r *replicator) hangUp() {
	if r.line != nil {
		_ = r.line.Close()
		r.line = nil
	}
}

// A countingWriter counts what goes through it.
type countingWriter struct {
	w io.Writer
	n uint64
}

func (c *countingWriter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += uint64(n)
	return n, err
}
