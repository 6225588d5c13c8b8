package pager

import (
	"context"
	"math"
	"time"
)

const (
	// paceSlack is how far a late writer may catch up. Timers are late by that
	// much on a busy machine, and a link would stand idle meanwhile.
	paceSlack = 2 * time.Millisecond
	// paceLook is the longest a writer sleeps before it asks for its rate anew.
	paceLook = 20 * time.Millisecond

	// chunkTime is how long a chunk takes at the rate of its Share. What is
	// written at once is queued at once, where the next demanded page finds it.
	chunkTime = time.Millisecond
	// frameTime is the same for a frame: its pages are of use only once all of
	// them are there, and one that is demanded meanwhile waits for the others.
	frameTime = 2 * time.Millisecond
)

// A pace keeps the writes of one goroutine to the rate of a Share: what was
// written is a debt that is paid off at the rate of the moment, so that a rate
// that changes holds at once.
type pace struct {
	debt  float64 // bytes
	at    time.Time
	timer *time.Timer
}

// pay takes account of the time up to now at a rate in bytes a second, and
// returns how long it takes to pay what is left.
func (p *pace) pay(now time.Time, rate float64) time.Duration {
	if math.IsInf(rate, 1) {
		p.debt, p.at = 0, now
		return 0
	}
	if !p.at.IsZero() {
		p.debt -= rate * now.Sub(p.at).Seconds()
	}
	p.at = now
	p.debt = max(p.debt, -rate*paceSlack.Seconds())
	if p.debt <= 0 {
		return 0
	}
	return time.Duration(min(p.debt/rate*float64(time.Second), float64(time.Hour)))
}

// wait waits until share lets bytes be written, and counts them as written. m
// is asked about the way there; it may be nil.
func (p *pace) wait(ctx context.Context, share *Share, m Meter, bytes int) error {
	if share == nil {
		return nil
	}
	share.begin()
	defer share.end()
	var waited time.Duration
	for {
		now := time.Now()
		rate, byRoute := share.rate(now, m, waited)
		wait := min(p.pay(now, rate), paceLook)
		if wait <= 0 {
			p.debt += float64(bytes)
			return nil
		}
		if p.timer == nil {
			p.timer = time.NewTimer(wait)
		} else {
			p.timer.Reset(wait)
		}
		select {
		case <-p.timer.C:
		case <-ctx.Done():
			p.timer.Stop()
			return context.Cause(ctx)
		}
		waited = 0
		if byRoute {
			waited = time.Since(now)
		}
	}
}
