package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"meshnode/e2e/apps/physics/proto"
	"meshnode/node/control"
)

// measure runs the worker, moves it along the route and compares it with one
// that stays.
func (d *demo) measure(ctx context.Context, m demoMesh) (control.Demo, error) {
	res := control.Demo{Nodes: demoRoute[:len(demoRoute)-1], Bodies: d.bodies, TickHz: demoHz}
	device := m["device"]
	d.say("the device compiles the physics app and starts it")
	if err := d.runWorker(ctx, device, demoWorker); err != nil {
		return res, err
	}
	s, err := device.Session(ctx, demoWorker)
	if err != nil {
		return res, err
	}
	defer s.Close()
	if _, err := exchange(ctx, s, physicsInit(d.bodies)); err != nil {
		return res, fmt.Errorf("set up %d bodies: %w", d.bodies, err)
	}
	d.say("%d bodies fall on the device; its client asks for %d steps a second", d.bodies, demoHz)

	drv := newDriver(s, d.bodies)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return drv.send(gctx) })
	g.Go(func() error { return drv.receive(gctx) })
	g.Go(func() error {
		defer drv.stop()
		// The first step after a pause is no measure of the pace.
		if err := drv.await(gctx, 1); err != nil {
			return err
		}
		drv.mark()
		if err := drv.await(gctx, d.hopTicks); err != nil {
			return err
		}
		res.SteadyGapMs = control.Millis(drv.longest())
		var err error
		res.Hops, err = d.hops(gctx, device, drv)
		return err
	})
	if err := g.Wait(); err != nil {
		return res, err
	}
	res.Ticks = drv.sent
	moved := drv.final

	d.say("the same %d steps on a worker that stays", res.Ticks)
	// On a node that compiled the module long ago and is otherwise idle.
	still, err := d.reference(ctx, m["cloud"], res.Ticks)
	if err != nil {
		return res, fmt.Errorf("the reference run: %w", err)
	}
	res.Digest, res.Reference = hex.EncodeToString(moved.Digest[:]), hex.EncodeToString(still.Digest[:])
	res.StateEqual = moved.Tick == still.Tick && *moved.Digest == *still.Digest && bytes.Equal(moved.Frame, still.Frame)
	return res, nil
}

func (d *demo) runWorker(ctx context.Context, c *control.Client, name string) error {
	f, err := os.Open(d.module)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if _, err := c.RunWorker(ctx, control.RunRequest{Name: name}, f, info.Size()); err != nil {
		return fmt.Errorf("run %s: %w", d.module, err)
	}
	return nil
}

// hops moves the worker along the route.
func (d *demo) hops(ctx context.Context, c *control.Client, drv *driver) ([]control.DemoHop, error) {
	var hops []control.DemoHop
	for i := 1; i < len(demoRoute); i++ {
		from, to := demoRoute[i-1], demoRoute[i]
		drv.mark()
		mig, err := c.Migrate(ctx, demoWorker, control.MigrateRequest{To: to}, func(p control.Progress) {
			d.line.set(fmt.Sprintf("%5.1fs  %s → %s  %s", time.Since(d.begin).Seconds(), from, to, progressText(p)))
		})
		if err != nil {
			return hops, fmt.Errorf("move from %s to %s: %w", from, to, err)
		}
		// What the move cost the client may show only in the replies after it.
		if err := drv.await(ctx, d.hopTicks); err != nil {
			return hops, err
		}
		gap := drv.longest()
		d.say("%s → %s: blackout %s, the client waited %s longer than usual", from, to, millis(mig.BlackoutMs), millis(control.Millis(gap)))
		hops = append(hops, control.DemoHop{
			From: from, To: to, MemoryBytes: mig.MemoryBytes, BytesOnWire: mig.BytesOnWire,
			PagesDemanded: mig.PagesDemanded, BlackoutMs: mig.BlackoutMs,
			ClientGapMs: control.Millis(gap), TotalMs: mig.TotalMs,
		})
	}
	return hops, nil
}

// A driver asks a worker for steps at a steady pace, without waiting for one
// before it asks for the next, and takes the time of the replies.
type driver struct {
	session *control.ClientSession
	bodies  int
	period  time.Duration
	ended   chan struct{}
	end     sync.Once

	sent  int         // owned by send
	final proto.Reply // owned by receive

	mu      sync.Mutex
	replies int
	last    time.Time     // of the last reply
	gap     time.Duration // longest between two replies since mark
	wake    chan struct{} // closed and renewed at each reply
}

func newDriver(s *control.ClientSession, bodies int) *driver {
	return &driver{session: s, bodies: bodies, period: time.Second / demoHz, ended: make(chan struct{}), wake: make(chan struct{})}
}

// stop lets send end.
func (v *driver) stop() { v.end.Do(func() { close(v.ended) }) }

// send asks for steps until stop. A step that is late does not delay the ones
// after it: the pace is that of a clock, as a game's is.
func (v *driver) send(ctx context.Context) error {
	next := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-v.ended:
			// Its reply tells receive that this was all.
			return v.session.Send(ctx, control.Message{Call: true, Payload: physicsState()})
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err := v.session.Send(ctx, control.Message{Call: true, Payload: physicsTick(v.sent, v.bodies)}); err != nil {
			return err
		}
		v.sent++
		next = next.Add(v.period)
		timer.Reset(time.Until(next))
	}
}

// receive takes replies until that to send's last message.
func (v *driver) receive(ctx context.Context) error {
	for n := uint64(1); ; n++ {
		r, err := v.session.Recv(ctx)
		if err := replyError(r, err); err != nil {
			return fmt.Errorf("step %d: %w", n, err)
		}
		reply, err := physicsReply(r.Payload)
		if err != nil {
			return fmt.Errorf("step %d: %w", n, err)
		}
		if reply.Digest != nil {
			v.final = reply
			return nil
		}
		if reply.Tick != n {
			return fmt.Errorf("step %d was answered as step %d: messages were lost, repeated or out of order", n, reply.Tick)
		}
		now := time.Now()
		v.mu.Lock()
		if !v.last.IsZero() {
			v.gap = max(v.gap, now.Sub(v.last))
		}
		v.last = now
		v.replies++
		close(v.wake)
		v.wake = make(chan struct{})
		v.mu.Unlock()
	}
}

// await waits for n more replies.
func (v *driver) await(ctx context.Context, n int) error {
	v.mu.Lock()
	want := v.replies + n
	v.mu.Unlock()
	for {
		v.mu.Lock()
		have, wake := v.replies, v.wake
		v.mu.Unlock()
		if have >= want {
			return nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// mark begins a new search for the longest time between replies.
func (v *driver) mark() {
	v.mu.Lock()
	v.gap = 0
	v.mu.Unlock()
}

// longest is the longest time between replies since mark, less the pace.
func (v *driver) longest() time.Duration {
	v.mu.Lock()
	defer v.mu.Unlock()
	return max(v.gap-v.period, 0)
}

func replyError(r control.Reply, err error) error {
	switch {
	case err != nil:
		return err
	case r.Err != nil:
		return r.Err
	case r.Status != 0:
		return statusError(demoWorker, r.Status)
	}
	return nil
}

// exchange sends one call and waits for its reply.
func exchange(ctx context.Context, s *control.ClientSession, payload []byte) ([]byte, error) {
	if err := s.Send(ctx, control.Message{Call: true, Payload: payload}); err != nil {
		return nil, err
	}
	r, err := s.Recv(ctx)
	return r.Payload, replyError(r, err)
}

// reference runs the same steps on a worker that never moves, as fast as they
// go.
func (d *demo) reference(ctx context.Context, c *control.Client, ticks int) (final proto.Reply, err error) {
	if err := d.runWorker(ctx, c, demoRef); err != nil {
		return final, err
	}
	s, err := c.Session(ctx, demoRef)
	if err != nil {
		return final, err
	}
	defer s.Close()
	if _, err := exchange(ctx, s, physicsInit(d.bodies)); err != nil {
		return final, err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		for i := range ticks {
			if err := s.Send(gctx, control.Message{Call: true, Payload: physicsTick(i, d.bodies)}); err != nil {
				return err
			}
		}
		return s.Send(gctx, control.Message{Call: true, Payload: physicsState()})
	})
	g.Go(func() error {
		for {
			r, err := s.Recv(gctx)
			if err := replyError(r, err); err != nil {
				return err
			}
			if final, err = physicsReply(r.Payload); err != nil || final.Digest != nil {
				return err
			}
		}
	})
	return final, g.Wait()
}
