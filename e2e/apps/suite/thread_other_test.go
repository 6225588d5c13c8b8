//go:build !linux

package suite

import "time"

// threadClock is the clock, where a thread's processor time is out of reach of
// other threads.
func threadClock() func() time.Duration {
	start := time.Now()
	return func() time.Duration { return time.Since(start) }
}
