package node

import (
	"slices"
	"time"
)

// changeAfter is how many round trips in a row, all longer or all shorter than
// those before, mean that the path has changed rather than that it is noisy;
// changeLeast is the least difference that is worth noticing.
const (
	changeAfter = 4
	changeLeast = time.Millisecond
)

// sinceChange returns the last of samples, from where the path changed on. A
// median over all of them would follow a user who walks away half a minute
// late.
func sinceChange(samples []time.Duration) []time.Duration {
	n := len(samples) - changeAfter
	if n <= 0 {
		return samples
	}
	before, now := samples[:n], samples[n:]
	low, high := slices.Min(before), slices.Max(before)
	if slices.Min(now) > high+max(high/4, changeLeast) || slices.Max(now) < low-max(low/4, changeLeast) {
		return now
	}
	return samples
}
