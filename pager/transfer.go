package pager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

const (
	redialFirst = 50 * time.Millisecond
	redialMost  = 2 * time.Second

	// A demanded page that the Source had already pushed waits in the bulk
	// stream's queue. After some round trips it is asked for once more, to be
	// sent on the demand stream all the same.
	rewantLeast = 20 * time.Millisecond
	rewantMost  = 5 * time.Second
	rewantLook  = 10 * time.Millisecond

	// farewell is how long the last frame may take to be written.
	farewell = 2 * time.Second

	// bulkBuffers is how many frames may be under way between the stream and
	// the memory: one read, one checked and put in place, one between.
	bulkBuffers = 3
)

// Run brings all pages in. It returns nil when they are, and the memory is
// then an ordinary one: no page is served any more and it may grow. It fails
// with ErrGone when the Source says so, with a PathError when the way to it
// stayed broken beyond the limit, with a PageError or ErrProtocol when the
// Source sent what must not be, with a RemoteError when it refused, with
// ErrRunnerGone when the runner ended, and with the cause of ctx. After a
// failure the memory stays as it is; see Sink.
func (s *Sink) Run(ctx context.Context, dialer Dialer) error {
	s.mu.Lock()
	if s.running {
		s.mu.Unlock()
		return errors.New("sink: Run called twice at once")
	}
	s.running = true
	armed := s.armed
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.running = false
		s.mu.Unlock()
	}()

	t := &transfer{Sink: s, dialer: dialer, links: make(map[*link]bool)}
	if err := t.run(ctx, armed); err != nil {
		return err
	}
	return s.disarm()
}

// A transfer is one call of Run.
type transfer struct {
	*Sink
	dialer Dialer

	mu    sync.Mutex
	links map[*link]bool // streams open now
}

// run returns nil when all pages are in.
func (t *transfer) run(ctx context.Context, armed bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var all, watching sync.WaitGroup
	each := func(f func(context.Context) error) {
		all.Go(func() {
			if err := f(ctx); err != nil {
				cancel(err)
			}
		})
	}
	if armed {
		// Faults are served until all streams have ended.
		stop, err := t.startFaults(cancel)
		if err != nil {
			return err
		}
		defer stop()
		each(func(ctx context.Context) error { return t.keep(ctx, "demand", t.dialer.Demand, t.demandStream) })
		for i, p := range t.peers.of {
			if p.Demand != nil {
				each(func(ctx context.Context) error { return t.askElsewhere(ctx, i, p) })
			}
		}
	}
	each(func(ctx context.Context) error {
		if err := t.fillFromStore(ctx); err != nil {
			return err
		}
		return t.keep(ctx, "bulk", t.dialBulk, t.bulkStream)
	})
	watchCtx, stopWatch := context.WithCancel(ctx)
	watching.Go(func() {
		if err := t.watch(watchCtx); err != nil {
			cancel(err)
		}
	})
	all.Wait()
	stopWatch()
	watching.Wait()
	select {
	case <-t.done:
		return nil
	default:
		return context.Cause(ctx)
	}
}

// dialBulk returns the stream that the intake has left, if it is still good, or
// dials another.
func (t *transfer) dialBulk(ctx context.Context) (io.ReadWriteCloser, error) {
	if t.intake == nil {
		return t.dialer.Bulk(ctx)
	}
	// What was on its way is still coming, ahead of what the push sends.
	stall := time.NewTimer(t.cfg.StallLimit)
	defer stall.Stop()
	select {
	case <-t.intake.ended:
		if l := t.intake.take(); l != nil {
			return l, nil
		}
	case <-stall.C:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return t.dialer.Bulk(ctx)
}

// errStalled breaks a stream on which nothing comes.
var errStalled = errors.New("nothing arrives")

// watch breaks the streams when nothing has arrived for StallLimit, and gives
// up when that lasts for PathLimit though streams can be opened.
func (t *transfer) watch(ctx context.Context) error {
	tick := time.NewTicker(max(t.cfg.StallLimit/4, time.Millisecond))
	defer tick.Stop()
	last, at, broke := t.stats.in.Load(), time.Now(), time.Now()
	for {
		select {
		case <-tick.C:
		case <-t.done:
			return nil
		case <-ctx.Done():
			return nil // told by who ended it
		}
		now := time.Now()
		if in := t.stats.in.Load(); in != last {
			last, at, broke = in, now, now
			continue
		}
		if now.Sub(at) >= max(t.cfg.PathLimit, t.cfg.StallLimit) {
			return &PathError{Worker: t.cfg.Worker, Stream: "bulk", Broken: now.Sub(at), Missing: t.Missing(), Err: errStalled}
		}
		if now.Sub(broke) >= t.cfg.StallLimit {
			broke = now
			t.mu.Lock()
			for l := range t.links {
				interrupt(l.rw)
			}
			t.mu.Unlock()
		}
	}
}

// keep keeps one stream open until all pages are in, which is nil: when it
// breaks it is dialled again, with pauses that grow and vary, until the path
// has been broken for too long.
func (t *transfer) keep(ctx context.Context, name string, dial func(context.Context) (io.ReadWriteCloser, error), serve func(context.Context, *link) error) error {
	broken := time.Now()
	pause := redialFirst
	for first := true; ; first = false {
		select {
		case <-t.done:
			return nil
		default:
		}
		if !first {
			t.stats.redials.Add(1)
		}
		l := &link{Sink: t.Sink}
		err := t.connect(ctx, dial, serve, l, broken.Add(t.cfg.PathLimit))
		select {
		case <-t.done:
			return nil
		default:
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if fatal(err) {
			return err
		}
		if l.up.Load() {
			broken, pause = time.Now(), redialFirst
		}
		t.log.Debug("stream broken", "stream", name, "err", err)
		if down := time.Since(broken); down >= t.cfg.PathLimit {
			return &PathError{Worker: t.cfg.Worker, Stream: name, Broken: down, Missing: t.Missing(), Err: err}
		}
		timer := time.NewTimer(pause/2 + rand.N(pause))
		pause = min(pause*2, redialMost)
		select {
		case <-timer.C:
		case <-t.done:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// fatal reports whether dialling again is no use.
func fatal(err error) bool {
	var page *PageError
	var remote *RemoteError
	return errors.As(err, &page) || errors.As(err, &remote) || errors.Is(err, ErrProtocol) ||
		errors.Is(err, ErrRunnerGone) || errors.Is(err, errInstall)
}

// errInstall is wrapped by failures of the kernel to put a page in place.
var errInstall = errors.New("put page in place")

// connect opens a stream and serves it until it breaks or all pages are in.
func (t *transfer) connect(ctx context.Context, dial func(context.Context) (io.ReadWriteCloser, error), serve func(context.Context, *link) error, l *link, limit time.Time) error {
	dialCtx, stop := context.WithDeadline(ctx, limit)
	defer stop()
	// All pages may come in over the other stream meanwhile.
	dialled := make(chan struct{})
	var waiting sync.WaitGroup
	waiting.Go(func() {
		select {
		case <-t.done:
			stop()
		case <-dialled:
		}
	})
	rw, err := dial(dialCtx)
	close(dialled)
	waiting.Wait()
	if err != nil {
		return fmt.Errorf("dial: %w", err)
	}
	l.rw = rw
	defer rw.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { interrupt(rw) })()

	t.mu.Lock()
	t.links[l] = true
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		delete(t.links, l)
		t.mu.Unlock()
	}()
	return serve(ctx, l)
}

// A link is one stream to the Source.
type link struct {
	*Sink
	rw io.ReadWriteCloser
	up atomic.Bool // the Source has welcomed us
	// base finds what patches are of; nil if none were asked for.
	base baseFunc
	// gather shares out what the Source has named; nil if nobody else is asked.
	gather  *gather
	writing sync.Mutex // what is shared out is answered meanwhile
}

// Read counts.
func (l *link) Read(b []byte) (int, error) {
	n, err := l.rw.Read(b)
	l.stats.in.Add(uint64(n))
	return n, err
}

func (l *link) write(b []byte) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	n, err := l.rw.Write(b)
	l.stats.out.Add(uint64(n))
	if err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

func (l *link) hello(bulk bool, have []Run) error {
	h := Hello{Worker: l.cfg.Worker, Epoch: l.cfg.Epoch, Pages: l.pages, Bulk: bulk, Have: have, Accepts: l.accepts()}
	if h.Accepts&EncodeDelta != 0 {
		l.base = l.version
	}
	h.Names = bulk && (l.cfg.Store != nil && l.cfg.Store.Len() > 0 || l.cfg.Neighbours != nil || l.peers.alive() > 0)
	return l.write(h.Append(nil))
}

// bye tells the Source that all is in. That it may not arrive is no matter.
func (l *link) bye() error {
	if s, ok := l.rw.(interface{ SetWriteDeadline(time.Time) error }); ok {
		_ = s.SetWriteDeadline(time.Now().Add(farewell))
	}
	_ = l.write(appendEmpty(nil, frameDone))
	return nil
}

// ended is the error of a stream that ended without a word.
func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// demandStream asks for the pages that are waited for and takes them in.
func (t *transfer) demandStream(ctx context.Context, l *link) error {
	if err := l.hello(false, t.restartDemand()); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var reading sync.WaitGroup
	reading.Go(func() { cancel(l.readDemand()) })
	err := l.writeWants(ctx)
	if err != nil {
		interrupt(l.rw)
	} else {
		_ = l.rw.Close()
	}
	reading.Wait()
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func (l *link) readDemand() error {
	in := newFrameReader(l, l.pages, frameWelcome, framePages, frameZeros, frameError)
	in.buffers = make(chan *pageBuffer, 1)
	in.buffers <- new(pageBuffer)
	for {
		fr, err := in.next()
		if err != nil {
			return ended(err)
		}
		switch fr.kind {
		case frameWelcome:
			l.up.Store(true)
		case frameError:
			return &RemoteError{Code: fr.code, Message: fr.message}
		default:
			l.answered(fr.run)
			err = l.receive(&fr, l.base, &l.stats.demandPages)
			in.putBuffer(fr.data)
			if err != nil {
				return err
			}
		}
	}
}

// restartDemand readies a new demand stream: what was asked for on the one
// before will not come, so all who wait ask again. It returns what is in.
func (s *Sink) restartDemand() []Run {
	s.mu.Lock()
	for p, state := range s.state {
		if state == asked {
			s.state[p] = absent
		}
	}
	s.wants, s.batches = s.wants[:0], s.batches[:0]
	now := time.Now()
	for p, w := range s.waits {
		if s.kernelPageLocked(p) > asked {
			continue
		}
		w.asked = now
		w.tries++
		w.lead = true
		s.askLocked(p, false)
	}
	s.mu.Unlock()
	return s.heldRuns()
}

// writeWants writes wants as they come until all pages are in, which is nil.
func (l *link) writeWants(ctx context.Context) error {
	look := time.NewTimer(rewantLook)
	defer look.Stop()
	var b []byte
	for {
		l.Sink.mu.Lock()
		b = b[:0]
		for _, w := range l.wants {
			b = w.append(b)
		}
		l.wants = l.wants[:0]
		waiting := len(l.waits) > 0
		l.Sink.mu.Unlock()
		if len(b) > 0 {
			if err := l.write(b); err != nil {
				return err
			}
		}
		// Without a wait there is nothing to look after, and no timer runs.
		var looks <-chan time.Time
		if waiting {
			look.Reset(rewantLook)
			looks = look.C
		}
		select {
		case <-l.wantsReady:
		case now := <-looks:
			l.rewant(now)
		case <-l.done:
			return l.bye()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// rewant asks again for pages that take much longer than others did.
func (s *Sink) rewant(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p, w := range s.waits {
		if s.kernelPageLocked(p) > asked {
			continue
		}
		patience := min(max(rewantLeast, 4*s.rtt)<<min(w.tries, 10), rewantMost)
		if now.Sub(w.asked) >= patience {
			w.asked = now
			w.tries++
			s.wants = append(s.wants, want{run: Run{p, uint32(s.group)}, again: true})
		}
	}
}

// bulkStream takes in what the Source pushes. Reading the stream, and checking
// and putting in place what was read, go on at the same time.
func (t *transfer) bulkStream(ctx context.Context, l *link) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var in *frameReader
	allow := []byte{frameWelcome, framePages, frameZeros, frameNames, frameDone, frameError}
	if from, ok := l.rw.(*intakeLink); ok {
		from.count.Store(&l.stats.in)
		in = from.reader
		in.reset(l.pages, allow...)
		l.base = l.version
		l.up.Store(true)
	} else {
		if err := l.hello(true, t.heldRuns()); err != nil {
			return err
		}
		in = newFrameReader(l, l.pages, allow...)
		in.buffers = make(chan *pageBuffer, bulkBuffers)
		for range bulkBuffers {
			in.buffers <- new(pageBuffer)
		}
		if l.peers.alive() > 0 { // what an intake has left is named no more
			l.gather = newGather(l.peers, l.pages, l.rw, l.write)
			l.gather.place = l.bring
			defer l.gather.start(cancel)()
		}
	}
	in.stop = ctx.Done()
	frames := make(chan frame)
	var reading sync.WaitGroup
	reading.Go(func() { cancel(in.feed(ctx, frames)) })
	err := l.takeBulk(ctx, in, frames)
	if err != nil {
		interrupt(l.rw)
	} else {
		_ = l.rw.Close()
	}
	cancel(err)
	reading.Wait()
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// feed passes on frames until the stream ends.
func (f *frameReader) feed(ctx context.Context, frames chan<- frame) error {
	for {
		fr, err := f.next()
		if err != nil {
			return ended(err)
		}
		if fr.kind == frameNames {
			// These lie where the next frame will be read.
			fr.kinds = append([]byte(nil), fr.kinds...)
			fr.names = append([]byte(nil), fr.names...)
		}
		select {
		case frames <- fr:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// takeBulk takes in frames until all pages are in, which is nil.
func (l *link) takeBulk(ctx context.Context, in *frameReader, frames <-chan frame) error {
	var lacks, out, buf []byte
	var names [maxRun]Hash
	for {
		var fr frame
		select {
		case <-l.done:
			return l.bye()
		case fr = <-frames:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		var err error
		switch fr.kind {
		case frameWelcome:
			l.up.Store(true)
		case frameDone:
			// The rest is on its way on the demand stream.
		case frameError:
			err = &RemoteError{Code: fr.code, Message: fr.message}
		case frameNames:
			if buf == nil {
				buf = make([]byte, PageSize)
			}
			lacks, err = l.lacking(ctx.Done(), &fr, &names, lacks, buf)
			if err == nil && !l.gather.offer(fr.run.First, names[:len(fr.kinds)], lacks) {
				out = appendLacks(out[:0], fr.run, lacks)
				err = l.write(out)
			}
		default:
			err = l.receive(&fr, l.base, &l.stats.bulkPages)
			in.putBuffer(fr.data)
			l.gather.received(fr.run)
		}
		if err != nil {
			return err
		}
	}
}
