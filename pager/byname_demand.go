package pager

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"
)

const (
	// elsewhereLeast is how long the Source has to answer a demand, at least,
	// before Peers that are not nearer are asked as well. It gets four times as
	// long as it took for others.
	elsewhereLeast = 50 * time.Millisecond
	// elsewhereNearer is how many times nearer than the Source a Peer must be to
	// be asked at once: it may not have the page.
	elsewhereNearer = 2
	// elsewhereTries is how often in a row a Peer may fail.
	elsewhereTries = 3
)

// askElsewhere asks a Peer for pages that the worker waits for, beside the Source
// and not in its place: who is faster serves the fault, and a Peer that has not
// got the page, lies or stalls costs nothing. It can only be asked for pages
// that the Source has named. An error is no fault of the Peer's; nil means that
// all pages are in, or that nothing is to be expected of it.
func (t *transfer) askElsewhere(ctx context.Context, i int, p Peer) error {
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() {
		select {
		case <-t.done:
			cancel()
		case <-ctx.Done():
		}
	})
	defer watching.Wait()
	defer cancel()
	var rw io.ReadWriteCloser
	var client *NamedClient
	had := 0
	defer func() {
		if rw != nil {
			_ = rw.Close()
		}
		if had > 0 {
			t.log.Info("awaited pages from another node", "node", p.Name, "had", had)
		}
	}()
	failed := 0
	for {
		pages, names := t.awaited(ctx, i, p)
		if len(pages) == 0 || t.peers.useless[i].Load() {
			return nil
		}
		fctx, done := context.WithTimeoutCause(ctx, gatherPatience, errSlowPeer)
		var err, placing error
		if client == nil {
			if rw, err = p.Demand(fctx); err == nil {
				client = NewNamedClient(rw)
			} else {
				rw = nil
			}
		}
		if err == nil {
			_, err = client.Fetch(fctx, names, func(at int, page []byte) error {
				had++
				placing = t.bring(pages[at], names[at], page)
				return placing
			})
		}
		done()
		switch {
		case placing != nil:
			return placing
		case err == nil:
			failed = 0
			t.answeredElsewhere(i, pages)
			continue
		case ctx.Err() != nil:
			return nil
		}
		// It may have closed a stream that was idle for long.
		if rw != nil {
			_ = rw.Close()
			rw, client = nil, nil
		}
		if failed++; failed == elsewhereTries || errors.Is(err, ErrContent) {
			t.log.Info("awaited pages are not asked of another node any more", "node", p.Name, "error", err)
			return nil
		}
		select {
		case <-time.After(redialFirst << failed):
		case <-ctx.Done():
			return nil
		}
	}
}

// awaited waits for pages that a Peer is to be asked for, and lists them with
// their names. There are none when ctx is done.
func (t *transfer) awaited(ctx context.Context, i int, p Peer) (pages []PageNum, names []Hash) {
	look := time.NewTimer(0)
	defer look.Stop()
	for {
		now := time.Now()
		t.Sink.mu.Lock()
		patience := max(elsewhereLeast, 4*t.rtt)
		if p.RTT > 0 && p.RTT*elsewhereNearer <= t.rtt {
			patience = 0
		}
		later := false
		for first, w := range t.waits {
			if !w.remote || w.others>>i&1 == 1 {
				continue
			}
			for q := first; q < first+PageNum(t.group); q++ {
				name, state := t.table.Get(q)
				switch {
				case !t.lacksLocked(q):
				case state != Named || now.Sub(w.since) < patience || len(pages) == maxGet:
					later = true // it may be named yet
				default:
					w.asking = true
					pages, names = append(pages, q), append(names, name)
				}
			}
		}
		t.Sink.mu.Unlock()
		if len(pages) > 0 {
			return pages, names
		}
		var looks <-chan time.Time
		if later {
			look.Reset(rewantLook)
			looks = look.C
		}
		select {
		case <-t.faulted[i]:
		case <-looks:
		case <-ctx.Done():
			return nil, nil
		}
	}
}

// answeredElsewhere notes that a Peer has brought what it had of some pages.
func (s *Sink) answeredElsewhere(i int, pages []PageNum) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range pages {
		if w := s.waits[p-p%PageNum(s.group)]; w != nil {
			w.others |= 1 << i
		}
	}
}
