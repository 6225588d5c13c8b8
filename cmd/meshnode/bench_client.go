package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"meshnode/node/control"
)

// A benchCall is one call of a bench's client: when it was due, and when its
// reply came.
type benchCall struct{ due, replied time.Time }

// A benchClient asks a key-value store for keys at a steady pace and notes when
// each reply came.
type benchClient struct {
	session *control.ClientSession
	period  time.Duration
	keys    int
	random  *rand.Rand // of send
	group   *errgroup.Group
	ctx     context.Context
	ended   chan struct{}
	due     chan time.Time // of the calls that were sent, in order
	calls   []benchCall    // receive's until it has ended
}

// startBenchClient begins to call. The caller stops it.
func startBenchClient(ctx context.Context, c *control.Client, worker string, period time.Duration, keys int, seed uint64) (*benchClient, error) {
	s, err := c.Session(ctx, worker)
	if err != nil {
		return nil, err
	}
	b := &benchClient{
		session: s, period: period, keys: keys, random: rand.New(rand.NewPCG(seed, 0)),
		ended: make(chan struct{}), due: make(chan time.Time, 1<<16),
	}
	b.group, b.ctx = errgroup.WithContext(ctx)
	b.group.Go(b.send)
	b.group.Go(b.receive)
	return b, nil
}

// send calls when a call is due. One that is late does not delay those after
// it: they are due when they are due.
func (b *benchClient) send() error {
	next := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-b.ended:
			return b.session.End(b.ctx)
		case <-b.ctx.Done():
			return context.Cause(b.ctx)
		}
		select {
		case b.due <- next:
		case <-b.ctx.Done():
			return context.Cause(b.ctx)
		}
		m := control.Message{Call: true, Payload: fmt.Appendf(nil, "get k%d", b.random.IntN(b.keys))}
		if err := b.session.Send(b.ctx, m); err != nil {
			return err
		}
		next = next.Add(b.period)
		timer.Reset(time.Until(next))
	}
}

func (b *benchClient) receive() error {
	for {
		r, err := b.session.Recv(b.ctx)
		if errors.Is(err, control.ErrSessionDone) {
			return nil
		}
		if err := benchReply(r, err); err != nil {
			return fmt.Errorf("the client's call %d: %w", len(b.calls)+1, err)
		}
		b.calls = append(b.calls, benchCall{due: <-b.due, replied: time.Now()})
	}
}

// benchReply is the error that a reply is, if it is one.
func benchReply(r control.Reply, err error) error {
	switch {
	case err != nil:
		return err
	case r.Err != nil:
		return r.Err
	case r.Status != 0:
		return &control.Error{Code: control.CodeFailed, Message: fmt.Sprintf("the worker returned the error code %d: %.200s", r.Status, r.Payload)}
	}
	return nil
}

// until waits for a moment, or for the client's end if that comes first.
func (b *benchClient) until(ctx context.Context, at time.Time) error {
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-b.ctx.Done():
		return context.Cause(b.ctx)
	}
}

// stop ends the calls, waits for the replies and returns all of them.
func (b *benchClient) stop() ([]benchCall, error) {
	close(b.ended)
	err := b.group.Wait()
	b.session.Close()
	return b.calls, err
}

// latency sums up the calls that were due from one moment to another.
func latency(calls []benchCall, from, to time.Time) control.BenchLatency {
	var took []time.Duration
	for _, c := range calls {
		if !c.due.Before(from) && c.due.Before(to) {
			took = append(took, c.replied.Sub(c.due))
		}
	}
	if len(took) == 0 {
		return control.BenchLatency{}
	}
	slices.Sort(took)
	// The smallest that at least a share q does not exceed.
	quantile := func(q float64) float64 {
		return control.Millis(took[int(math.Ceil(q*float64(len(took))))-1])
	}
	return control.BenchLatency{
		Calls: len(took), P50Ms: quantile(0.5), P99Ms: quantile(0.99), MaxMs: control.Millis(took[len(took)-1]),
	}
}

// longestGap is the longest time between two replies that was, in part at least,
// between one moment and another, less the pace.
func longestGap(calls []benchCall, from, to time.Time, period time.Duration) float64 {
	gap := time.Duration(0)
	for i, c := range calls {
		if i > 0 && c.replied.After(from) && calls[i-1].replied.Before(to) {
			gap = max(gap, c.replied.Sub(calls[i-1].replied))
		}
	}
	return control.Millis(max(gap-period, 0))
}
