package node

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// What moves carry shows in the rates a node tells, up from what was sent and
// down from what arrived; a trickle shows nothing.
func TestSeenRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p paths
		p.learn("b", 10<<20, time.Now())
		if up, down := p.seen(); up != 10<<10 || down != 0 {
			t.Errorf("after a move out at 10 MiB/s: %d and %d KiB/s", up, down)
		}
		var received atomic.Uint64
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			p.watch(ctx, received.Load)
		}()
		time.Sleep(50 * time.Millisecond) // so that no two things happen at once
		for range 30 {
			time.Sleep(100 * time.Millisecond)
			received.Add(1000)
		}
		synctest.Wait()
		if _, down := p.seen(); down != 0 {
			t.Errorf("a trickle counts as %d KiB/s", down)
		}
		for range 30 {
			time.Sleep(100 * time.Millisecond)
			received.Add(1 << 20)
		}
		synctest.Wait()
		if _, down := p.seen(); down < 9<<10 || down > 10<<10 {
			t.Errorf("10 MiB/s for three seconds: %d KiB/s", down)
		}
		cancel()
		<-done
	})
}

// One move that was slow counts half, a path that is slow for good shows soon.
func TestPathRate(t *testing.T) {
	var p paths
	for _, rate := range []float64{100e6, 25e6} {
		p.learn("b", rate, time.Now())
	}
	if rate, _ := p.known("b"); rate < 49e6 || rate > 51e6 {
		t.Errorf("100 MB/s, then 25: %v", rate)
	}
	for range 5 {
		p.learn("b", 10e6, time.Now())
	}
	if rate, _ := p.known("b"); rate > 11e6 {
		t.Errorf("10 MB/s five times: %v", rate)
	}
}

// A link that was fast once stays so for a while; a faster one shows at once.
func TestSeenRateFallsSlowly(t *testing.T) {
	var r seenRate
	for _, x := range []float64{100, 10, 10} {
		r.observe(x)
	}
	if r < 75 || r > 100 {
		t.Errorf("two slow moves after a fast one: %v", r)
	}
	r.observe(300)
	if r < 150 {
		t.Errorf("a fast move after slow ones: %v", r)
	}
	for range 50 {
		r.observe(10)
	}
	if r > 11 {
		t.Errorf("slow for good: %v", r)
	}
}
