package control

import (
	"context"
	"sync"
)

// A counter is a semaphore without a bound: one goroutine adds, one takes.
type counter struct {
	mu     sync.Mutex
	n      int
	closed bool
	wake   chan struct{} // holds one token while the taker has reason to look
}

func newCounter() *counter { return &counter{wake: make(chan struct{}, 1)} }

func (c *counter) add() {
	c.mu.Lock()
	c.n++
	c.mu.Unlock()
	c.signal()
}

// close lets take return false once everything added has been taken.
func (c *counter) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.signal()
}

func (c *counter) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// take waits for one and reports whether there was: false after close, or once
// ctx is done.
func (c *counter) take(ctx context.Context) bool {
	for {
		c.mu.Lock()
		n, closed := c.n, c.closed
		if n > 0 {
			c.n--
		}
		c.mu.Unlock()
		switch {
		case n > 0:
			return true
		case closed:
			return false
		}
		select {
		case <-c.wake:
		case <-ctx.Done():
			return false
		}
	}
}
