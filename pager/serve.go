package pager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"sync"
	"time"
)

// A stream is one stream being served. Its fields belong to the goroutine
// that called Serve.
type stream struct {
	*Source
	ctx     context.Context
	rw      io.ReadWriter
	accepts Encodings
	patch   patchScope

	framer *framer // of the frame being sent
	buf    []byte
	runs   []Run
	pace   pace
	meter  Meter // of rw; nil if it has none
	// Of a bulk stream.
	choose *chooser
	ahead  *ahead
	out    []byte // small frames not yet written
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

	// Zstandard takes a page longer than its bytes take on all but the slowest
	// links, and somebody waits for this one.
	c := codec(pageRaw)
	if st.accepts&EncodeS2 != 0 && st.slow.Load() {
		c = pageS2
	}
	f := st.framer
	for _, run := range st.runs {
		st.describe(f, run, st.patch)
		st.stats.zeroPages.Add(uint64(f.count() - f.named()))
		if f.named() == 0 {
			if err := st.write(appendZeros(st.buf[:0], run)); err != nil {
				return err
			}
			continue
		}
		// One write a frame: a demanded page is small, and copying it costs
		// less than a second packet.
		st.buf = f.append(st.buf[:0], c)
		st.stats.demandPages.Add(uint64(f.named()))
		st.count(f)
		if err := st.write(st.buf); err != nil {
			return err
		}
	}
	return nil
}

// count counts how the pages of a frame were encoded.
func (s *Source) count(f *framer) {
	s.stats.patches.Add(uint64(len(f.sizes) / 2))
	if f.packed != pageRaw {
		s.stats.packedPages.Add(uint64(len(f.pages)))
	}
}

// A patchScope says of which pages a stream may bring patches.
type patchScope int

const (
	patchNone patchScope = iota
	patchSure            // of those that the far side has said it has a version of
	patchAll             // of all that went out ahead on the same stream
)

// version returns page p as the far side has it, nil if that is not known.
func (s *Source) version(p PageNum, of patchScope) (name Hash, page *[PageSize]byte) {
	sent := s.sent.Load()
	if sent == nil || of == patchNone || of == patchSure && !s.sure(p) {
		return name, nil
	}
	return sent.get(p)
}

// describe tells f the pages of a run.
func (s *Source) describe(f *framer, r Run, of patchScope) {
	f.begin(r.First)
	var names [hashBatch]Hash
	for r.Count > 0 {
		part := Run{r.First, min(r.Count, hashBatch)}
		r.First, r.Count = part.end(), r.Count-part.Count
		s.nameRun(part, &names)
		for i := range part.Count {
			p, name := part.First+PageNum(i), names[i]
			if name == ZeroHash {
				f.addZero()
				continue
			}
			if base, was := s.version(p, of); was != nil {
				f.addDelta(name, s.page(p), base, was[:])
			} else {
				f.add(name, s.page(p))
			}
		}
	}
}

// An offer is what the reading half of a bulk stream passes to the writing
// half.
type offers struct {
	mu sync.Mutex
	// waiting are the runs whose names were sent and not answered, and lacking
	// the pages of those answered that the far side does not have.
	waiting []Run
	pages   int // in waiting
	lacking []Run
	lacks   int // pages in lacking
	tally   namesTally
	done    bool
	err     error
}

// serveBulk pushes pages until the Sink says Done. read takes what it says.
func (st *stream) serveBulk(names bool, read func(*offers) error) error {
	o := new(offers)
	ctx, cancel := context.WithCancel(st.ctx)
	defer cancel()
	// The reading half ends with the stream: interrupt when this half fails.
	var reading sync.WaitGroup
	reading.Go(func() {
		err := read(o)
		o.mu.Lock()
		o.done, o.err = err == nil, err
		o.mu.Unlock()
		cancel()
		st.notify()
	})
	st.choose = newChooser(st.accepts, st.share.most())
	st.ahead = newAhead(st.patch, st.accepts)
	reading.Go(func() { st.ahead.run(st.Source) })

	err := st.push(ctx, o, names)
	st.ahead.stop()
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

// answeredLocked takes a run off those that wait. It reports false if it was not
// all in one of them.
func (o *offers) answeredLocked(r Run) bool {
	i := slices.IndexFunc(o.waiting, func(w Run) bool { return w.First <= r.First && r.end() <= w.end() })
	if i < 0 {
		return false
	}
	w := o.waiting[i]
	var rest []Run
	if n := uint32(r.First - w.First); n > 0 {
		rest = append(rest, Run{w.First, n})
	}
	if n := uint32(w.end() - r.end()); n > 0 {
		rest = append(rest, Run{r.end(), n})
	}
	o.waiting = slices.Replace(o.waiting, i, i+1, rest...)
	return true
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
		if !o.answeredLocked(fr.run) {
			o.mu.Unlock()
			return badFrame("lacks for pages %d+%d that were not offered", fr.run.First, fr.run.Count)
		}
		o.pages -= int(fr.run.Count)
		var has []Run
		for i := range PageNum(fr.run.Count) {
			p := fr.run.First + i
			to, had := &o.lacking, fr.lacks[i/8]>>(i%8)&1 == 0
			o.tally.add(had)
			if had {
				to = &has
			} else {
				o.lacks++
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

// push sends what is left, then waits for more: a demand stream that broke
// gives pages back. It returns when ctx is done or a write fails.
func (st *stream) push(ctx context.Context, o *offers, names bool) error {
	order := st.first()
	st.mu.Lock()
	st.order = order
	st.mu.Unlock()
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
		if what != planPages {
			// Nothing follows at once that those could wait for.
			if err = st.flush(ctx); err != nil {
				return err
			}
		}
		switch what {
		case planPages:
			told = false
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
	most := st.frameMost()
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
	naming := names && o.tally.pays()
	// Names are small, and whoever else is asked for the pages has to have them;
	// but what is lacking is not to wait for more than a few.
	if naming && o.lacks < lackingMost {
		if r, ok := st.offerLocked(o); ok {
			return r, planNames
		}
	}
	for len(o.lacking) > 0 {
		r := o.lacking[0]
		had := r.Count
		// Skip what a demand took meanwhile, and stop at the next such page.
		for r.Count > 0 && st.state[r.First]&^offered != unsent {
			r.First, r.Count = r.First+1, r.Count-1
		}
		n := uint32(0)
		for n < r.Count && n < run && st.state[r.First+PageNum(n)]&^offered == unsent {
			n++
		}
		rest := Run{r.First + PageNum(n), r.Count - n}
		o.lacks -= int(had - rest.Count)
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
	if naming {
		if r, ok := st.offerLocked(o); ok {
			return r, planNames
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

// offerLocked takes what is to be named next, if there is something and not too
// much of it has no answer yet.
func (st *stream) offerLocked(o *offers) (Run, bool) {
	if o.pages+bulkRun > namesAhead {
		return Run{}, false
	}
	r, ok := st.nextLocked(bulkRun, true)
	if !ok {
		return Run{}, false
	}
	for p := r.First; p < r.end(); p++ {
		st.state[p] |= offered
	}
	o.waiting = append(o.waiting, r)
	o.pages += int(r.Count)
	return r, true
}

// frameMost is how many pages a frame may have at the rate of the moment: a
// power of two, so that a rate that varies a little does not change it.
func (st *stream) frameMost() uint32 {
	n := uint32(st.share.bytesIn(frameTime, bulkRun*PageSize) / PageSize)
	return 1 << (bits.Len32(max(n, 1)) - 1)
}

// peek finds the pages that will likely be pushed after this run.
func (st *stream) peek() (Run, bool) {
	most := st.frameMost()
	st.mu.Lock()
	defer st.mu.Unlock()
	runAt, pageAt, near := st.runAt, st.pageAt, st.near
	r, ok := st.nextLocked(min(st.run*2, bulkRun, most), true)
	st.runAt, st.pageAt, st.near = runAt, pageAt, near
	return r, ok
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
	f := st.framer
	st.describe(f, r, patchNone)
	st.buf = appendPagesHead(st.buf[:0], frameNames, r.First, f.kinds, f.names, 0)
	st.stats.namedPages.Add(uint64(r.Count))
	return st.write(st.buf)
}

// sendBulk sends a run that was taken. What is sent as it is goes from the
// frozen memory to the stream without a copy of ours, chunk by chunk, and
// between chunks the push yields to demands and keeps to its rate.
func (st *stream) sendBulk(ctx context.Context, r Run) error {
	f, made := st.ahead.take(r, st.framer)
	st.framer = f
	if !made {
		st.describe(f, r, st.patch)
		f.pack(st.choose.choose())
	}
	if f.tried != pageRaw {
		st.choose.encoded(f.tried, f.in, f.out, f.duration)
	}
	// While this run is written, the next one is made ready.
	if next, ok := st.peek(); ok {
		c := st.choose.choose()
		st.slow.Store(c != pageRaw)
		st.ahead.ask(next, c)
	}

	st.stats.zeroPages.Add(uint64(f.count() - f.named()))
	st.stats.bulkPages.Add(uint64(f.named()))
	st.count(f)
	asTheyAre := len(f.pages) > 0 && f.packed == pageRaw
	switch {
	case f.named() == 0:
		st.out = appendZeros(st.out, r)
	case asTheyAre:
		st.out = f.appendHead(st.out)
	default:
		st.out = f.appendTail(f.appendHead(st.out))
	}
	most := st.share.bytesIn(chunkTime, bulkChunk)
	// A patch fills a tenth of a packet, and a path that loses packets loses as
	// many of ten with one each as of ten full ones.
	if asTheyAre || len(st.out) >= min(most, bulkWrite) {
		if err := st.flush(ctx); err != nil {
			return err
		}
	}
	if asTheyAre {
		// Pages that lie side by side are written at once.
		for i := 0; i < len(f.pages); {
			chunk := f.pages[i]
			for i++; i < len(f.pages) && len(chunk) < most && adjacent(chunk, f.pages[i]); i++ {
				chunk = chunk[:len(chunk)+PageSize]
			}
			if err := st.writeBulk(ctx, chunk); err != nil {
				return err
			}
		}
		if len(f.patches) > 0 {
			if err := st.writeBulk(ctx, f.patches); err != nil {
				return err
			}
		}
	}
	st.mu.Lock()
	st.run = min(st.run*2, bulkRun)
	st.mu.Unlock()
	return nil
}

// flush writes the frames that wait for it.
func (st *stream) flush(ctx context.Context) error {
	out := st.out
	st.out = st.out[:0]
	most := st.share.bytesIn(chunkTime, bulkChunk)
	for at := 0; at < len(out); at += most {
		if err := st.writeBulk(ctx, out[at:min(at+most, len(out))]); err != nil {
			return err
		}
	}
	return nil
}

// adjacent reports whether page follows chunk in one memory.
func adjacent(chunk, page []byte) bool {
	return cap(chunk) >= len(chunk)+len(page) && &chunk[:len(chunk)+1][len(chunk)] == &page[0]
}

// writeBulk writes a part of a bulk frame: after demands, and in its time.
func (st *stream) writeBulk(ctx context.Context, b []byte) error {
	if err := st.yield(ctx); err != nil {
		return err
	}
	// The time that keeping to the rate takes counts: to what the link lets
	// through it is all the same whether it cannot or must not do more.
	start := time.Now()
	if err := st.pace.wait(ctx, st.share, st.meter, len(b)); err != nil {
		return err
	}
	if err := st.write(b); err != nil {
		return err
	}
	st.choose.sent(len(b), time.Since(start))
	return nil
}
