//go:build !linux

package lease

import (
	"sync"
	"time"
)

var clock struct {
	sync.Mutex
	at   time.Duration
	last time.Time
}

// Now is the clock of owners. The monotonic clock of these systems may stand
// still while the machine is suspended, so of it and of the wall clock the one
// counts that has gone further: a wall clock that is set forward lets leases run
// out early, which is safe, and one that is set back changes nothing. A machine
// whose wall clock is set back while it is suspended is not covered.
func Now() time.Duration {
	clock.Lock()
	defer clock.Unlock()
	now := time.Now()
	if clock.last.IsZero() {
		clock.last = now
	}
	clock.at += max(now.Sub(clock.last), now.Round(0).Sub(clock.last.Round(0)))
	clock.last = now
	return clock.at
}
