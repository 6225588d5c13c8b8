//go:build !unix

package suite

import "time"

var started = time.Now()

// cpuTime is the clock, where there is no other.
func cpuTime() time.Duration { return time.Since(started) }
