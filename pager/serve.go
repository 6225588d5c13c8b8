package pager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/zeebo/blake3"
)

// A stream is one stream being served. Its fields belong to the goroutine
// that called Serve.
type stream struct {
	*Source
	ctx    context.Context
	rw     io.ReadWriter
	hasher *blake3.Hasher

	buf   []byte // frame being built
	kinds []byte
	names []byte
	runs  []Run
	pace  pace
	meter Meter // of rw; nil if it has none
}

func (st *stream) write(b []byte) error {
	n, err := st.rw.Write(b)
	st.stats.bytes.Add(uint64(n))
	if err != nil {
		return fmt.Errorf("send pages: %w", err)
	}
	return nil
}

// serveDemand answers wants in the order they come. That the next ones wait
// in the stream meanwhile bounds them: the peer's flow control does the rest.
func (st *stream) serveDemand() error {
	in := newFrameReader(st.rw, st.pages, frameWant, frameDone)
	for {
		fr, err := in.next()
		if err != nil {
			return streamEnd(err)
		}
		if fr.kind == frameDone {
			return nil
		}
		st.demanding.Add(1)
		st.stats.demands.Add(1)
		err = st.answer(fr.run, fr.again)
		st.demanding.Add(-1)
		st.notify()
		if err != nil {
			return err
		}
	}
}

func streamEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF // the other side had not said Done
	}
	return err
}

// answer sends the wanted pages. The first page, for which somebody waits, is
// sent in a frame of its own, so that it can be put in place before the rest
// has crossed; the next ones, which may be waited for before all are there, in
// frames that double.
func (st *stream) answer(r Run, again bool) error {
	st.mu.Lock()
	st.runs = st.takeLocked(st.runs[:0], Run{r.First, 1}, demand, again)
	for at, n := r.First+1, uint32(1); at < r.end(); at, n = at+PageNum(n), min(2*n, answerRun) {
		n = min(n, uint32(r.end()-at))
		st.runs = append(st.runs, st.takeLocked(nil, Run{at, n}, demand, again)...)
	}
	st.run = leastRun
	if end := r.end(); int(end) < st.pages {
		st.near = end
	}
	st.mu.Unlock()

	for _, run := range st.runs {
		kinds, names, data := st.describe(run)
		if data == 0 {
			st.stats.zeroPages.Add(uint64(run.Count))
			if err := st.write(appendZeros(st.buf[:0], run)); err != nil {
				return err
			}
			continue
		}
		// One write a frame: a demanded page is small, and copying it costs
		// less than a second packet.
		b := appendPagesHead(st.buf[:0], framePages, run.First, kinds, names, data*PageSize)
		for i, k := range kinds {
			if k == pageRaw {
				b = append(b, st.page(run.First+PageNum(i))...)
			}
		}
		st.buf = b
		st.stats.demandPages.Add(uint64(data))
		st.stats.zeroPages.Add(uint64(int(run.Count) - data))
		if err := st.write(b); err != nil {
			return err
		}
	}
	return nil
}

// describe finds the kinds and names of a run of pages and how many of them
// have bytes. What it returns holds until it is called again.
func (st *stream) describe(r Run) (kinds, names []byte, data int) {
	st.kinds, st.names = st.kinds[:0], st.names[:0]
	var last Hash
	for p := r.First; p < r.end(); p++ {
		h, zero := st.name(p, st.hasher)
		switch {
		case zero:
			st.kinds = append(st.kinds, pageZero)
		case data > 0 && h == last:
			st.kinds = append(st.kinds, pageRepeat)
		default:
			st.kinds = append(st.kinds, pageRaw)
			st.names = append(st.names, h[:]...)
			last = h
			data++
		}
	}
	return st.kinds, st.names, data
}

// An offer is what the reading half of a bulk stream passes to the writing
// half.
type offers struct {
	mu sync.Mutex
	// waiting are the runs whose names were sent, in order, and lacking the
	// pages of those answered that the far side does not have.
	waiting []Run
	pages   int // in waiting
	lacking []Run
	asked   int // pages answered
	hits    int // and how many of those the far side had
	done    bool
	err     error
}

// serveBulk pushes pages until the Sink says Done.
func (st *stream) serveBulk(names bool) error {
	o := new(offers)
	ctx, cancel := context.WithCancel(st.ctx)
	defer cancel()
	// The reading half ends with the stream: interrupt when this half fails.
	var reading sync.WaitGroup
	reading.Go(func() {
		err := st.readBulk(o)
		o.mu.Lock()
		o.done, o.err = err == nil, err
		o.mu.Unlock()
		cancel()
		st.notify()
	})
	ahead := make(chan Run, 1)
	reading.Go(func() { st.hashAhead(ahead) })

	err := st.push(ctx, o, names, ahead)
	close(ahead)
	o.mu.Lock()
	done, cause := o.done, o.err
	o.mu.Unlock()
	if !done {
		interrupt(st.rw)
	}
	reading.Wait()
	switch {
	case done:
		return nil
	case cause != nil:
		return cause
	}
	return err
}

// readBulk takes the Sink's answers until its Done, which is nil.
func (st *stream) readBulk(o *offers) error {
	in := newFrameReader(st.rw, st.pages, frameLacks, frameDone)
	for {
		fr, err := in.next()
		if err != nil {
			return streamEnd(err)
		}
		if fr.kind == frameDone {
			return nil
		}
		o.mu.Lock()
		if len(o.waiting) == 0 || o.waiting[0] != fr.run {
			o.mu.Unlock()
			return badFrame("lacks for pages %d+%d that were not offered next", fr.run.First, fr.run.Count)
		}
		o.waiting = o.waiting[1:]
		o.pages -= int(fr.run.Count)
		o.asked += int(fr.run.Count)
		var has []Run
		for i := range PageNum(fr.run.Count) {
			p := fr.run.First + i
			to := &o.lacking
			if fr.lacks[i/8]>>(i%8)&1 == 0 {
				to = &has
				o.hits++
			}
			if n := len(*to); n > 0 && (*to)[n-1].end() == p {
				(*to)[n-1].Count++
			} else {
				*to = append(*to, Run{p, 1})
			}
		}
		o.mu.Unlock()
		for _, r := range has {
			for _, t := range st.take(nil, r, held, false) {
				st.stats.heldPages.Add(uint64(t.Count))
			}
		}
		st.notify()
	}
}

// hashAhead names the pages of the runs it is given, so that the push finds
// them named when it has written the run before.
func (st *stream) hashAhead(runs <-chan Run) {
	hasher := blake3.New()
	for r := range runs {
		for p := r.First; p < r.end(); p++ {
			st.name(p, hasher)
		}
	}
}

// push sends what is left, then waits for more: a demand stream that broke
// gives pages back. It returns when ctx is done or a write fails.
func (st *stream) push(ctx context.Context, o *offers, names bool, ahead chan<- Run) error {
	if err := st.pushZeros(ctx); err != nil {
		return err
	}
	told := false
	for {
		if err := st.yield(ctx); err != nil {
			return err
		}
		r, what := st.plan(o, names)
		var err error
		switch what {
		case planPages:
			told = false
			st.peek(ahead)
			err = st.sendBulk(ctx, r)
		case planNames:
			told = false
			err = st.sendNames(r)
		case planDone:
			if !told {
				told = true
				if err = st.write(appendEmpty(nil, frameDone)); err != nil {
					return err
				}
			}
			fallthrough
		case planWait:
			select {
			case <-st.wake:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		if err != nil {
			return err
		}
	}
}

const (
	planWait = iota
	planPages
	planNames
	planDone
)

// plan decides what to send next, and takes it.
func (st *stream) plan(o *offers, names bool) (Run, int) {
	most := uint32(st.share.bytesIn(frameTime, bulkRun*PageSize) / PageSize)
	o.mu.Lock()
	defer o.mu.Unlock()
	st.mu.Lock()
	defer st.mu.Unlock()
	run := min(st.run, most)

	take := func(r Run) (Run, bool) {
		runs := st.takeLocked(st.runs[:0], r, bulk, false)
		st.runs = runs
		if len(runs) == 0 {
			return Run{}, false
		}
		return runs[0], true
	}
	// Answered offers first.
	for len(o.lacking) > 0 {
		r := o.lacking[0]
		// Skip what a demand took meanwhile, and stop at the next such page.
		for r.Count > 0 && st.state[r.First]&^offered != unsent {
			r.First, r.Count = r.First+1, r.Count-1
		}
		n := uint32(0)
		for n < r.Count && n < run && st.state[r.First+PageNum(n)]&^offered == unsent {
			n++
		}
		rest := Run{r.First + PageNum(n), r.Count - n}
		if rest.Count == 0 {
			o.lacking = o.lacking[1:]
		} else {
			o.lacking[0] = rest
		}
		if n > 0 {
			r, _ = take(Run{r.First, n})
			return r, planPages
		}
	}
	if names && (o.asked < namesTrial || o.hits*64 >= o.asked) {
		if o.pages+bulkRun <= namesAhead {
			if r, ok := st.nextLocked(bulkRun, true); ok {
				for p := r.First; p < r.end(); p++ {
					st.state[p] |= offered
				}
				o.waiting = append(o.waiting, r)
				o.pages += int(r.Count)
				return r, planNames
			}
		}
		if len(o.waiting) > 0 {
			return Run{}, planWait
		}
		// All that is left was offered and answered on this stream, and then
		// given back by a demand stream that broke. Send it.
	}
	if r, ok := st.nextLocked(run, len(o.waiting) > 0); ok {
		r, _ = take(r)
		return r, planPages
	}
	if len(o.waiting) > 0 || st.unsent > 0 {
		return Run{}, planWait
	}
	return Run{}, planDone
}

// peek has the pages hashed that will likely be pushed next.
func (st *stream) peek(ahead chan<- Run) {
	st.mu.Lock()
	runAt, pageAt, near := st.runAt, st.pageAt, st.near
	r, ok := st.nextLocked(bulkRun, true)
	st.runAt, st.pageAt, st.near = runAt, pageAt, near
	st.mu.Unlock()
	if ok {
		select {
		case ahead <- r:
		default: // it is still at the one before
		}
	}
}

// yield waits while demands are being answered.
func (st *stream) yield(ctx context.Context) error {
	for st.demanding.Load() > 0 {
		select {
		case <-st.wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// pushZeros tells all pages that are known to be zero, in a few bytes, before
// anything else.
func (st *stream) pushZeros(ctx context.Context) error {
	st.mu.Lock()
	zeros := runsOf(st.pages, func(p PageNum) bool {
		return st.known[p].Load() == nameZero && st.state[p]&^offered == unsent
	})
	var runs []Run
	for _, r := range zeros {
		runs = st.takeLocked(runs, r, bulk, false)
	}
	st.mu.Unlock()
	b := st.buf[:0]
	for _, r := range runs {
		b = appendZeros(b, r)
		st.stats.zeroPages.Add(uint64(r.Count))
		if len(b) >= bulkChunk {
			if err := st.yield(ctx); err != nil {
				return err
			}
			if err := st.write(b); err != nil {
				return err
			}
			b = b[:0]
		}
	}
	st.buf = b
	if len(b) == 0 {
		return nil
	}
	return st.write(b)
}

func (st *stream) sendNames(r Run) error {
	kinds, names, _ := st.describe(r)
	st.buf = appendPagesHead(st.buf[:0], frameNames, r.First, kinds, names, 0)
	st.stats.namedPages.Add(uint64(r.Count))
	return st.write(st.buf)
}

// sendBulk sends a run that was taken. The bytes go from the frozen memory to
// the stream without a copy of ours, chunk by chunk, and between chunks the
// push yields to demands and keeps to its rate.
func (st *stream) sendBulk(ctx context.Context, r Run) error {
	kinds, names, data := st.describe(r)
	st.stats.zeroPages.Add(uint64(int(r.Count) - data))
	if data == 0 {
		return st.write(appendZeros(st.buf[:0], r))
	}
	st.stats.bulkPages.Add(uint64(data))
	st.buf = appendPagesHead(st.buf[:0], framePages, r.First, kinds, names, data*PageSize)
	if err := st.pace.wait(ctx, st.share, st.meter, len(st.buf)); err != nil {
		return err
	}
	if err := st.write(st.buf); err != nil {
		return err
	}
	for i := 0; i < len(kinds); {
		if kinds[i] != pageRaw {
			i++
			continue
		}
		j, most := i, st.share.bytesIn(chunkTime, bulkChunk)/PageSize
		for j < len(kinds) && kinds[j] == pageRaw && j-i < most {
			j++
		}
		if err := st.yield(ctx); err != nil {
			return err
		}
		at := int(r.First) * PageSize
		chunk := st.mem[at+i*PageSize : at+j*PageSize]
		if err := st.pace.wait(ctx, st.share, st.meter, len(chunk)); err != nil {
			return err
		}
		if err := st.write(chunk); err != nil {
			return err
		}
		i = j
	}
	st.mu.Lock()
	st.run = min(st.run*2, bulkRun)
	st.mu.Unlock()
	return nil
}
