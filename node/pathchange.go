package node

import (
	"cmp"
	"math"
	"slices"
	"time"

	"meshnode/placement"
)

// A pathSample is one round trip.
type pathSample struct {
	rtt time.Duration
	at  time.Time
}

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
func sinceChange(samples []pathSample) []pathSample {
	n := len(samples) - changeAfter
	if n <= 0 {
		return samples
	}
	shorter := func(a, b pathSample) int { return int(a.rtt - b.rtt) }
	before, now := samples[:n], samples[n:]
	low, high := slices.MinFunc(before, shorter).rtt, slices.MaxFunc(before, shorter).rtt
	if slices.MinFunc(now, shorter).rtt > high+max(high/4, changeLeast) || slices.MaxFunc(now, shorter).rtt < low-max(low/4, changeLeast) {
		return now
	}
	return samples
}

const (
	// trendFor is how far back a trend is looked for, and levelFor what counts
	// for where the path is now. Over half of that a user who walks is hardly told
	// from noise, over twice as much one who turns round is noticed late.
	trendFor = 8 * time.Second
	levelFor = trendFor / 2
	// levelLeast is how many round trips it takes; else all count.
	levelLeast = 4
	// trendLeast is how many round trips it takes, and trendSpan over how long.
	trendLeast = 10
	trendSpan  = 2 * time.Second
	// From trendSome on, in standard deviations that the order of the round trips
	// is from chance, a trend counts, and from trendSure on in full. That is more
	// than is usual: what a path does for a second is in four of them.
	trendSome = 3
	trendSure = 5
	// maxTrend bounds what is believed of a path, in each second.
	maxTrend = time.Second
)

// estimate sums up round trips, of which there is one at least, the oldest
// first, as of the last of them. Those of the last trendFor may lie along a
// line; then the round trip is where the line ends, and what is off the line
// its spread.
//
// The line's slope is that of Theil and Sen (the median slope between any two
// samples; Sen, "Estimates of the regression coefficient based on Kendall's
// tau", 1968), as far as the samples' order says that there is one (Mann, 1945):
// least squares would follow a few packets that were late.
func estimate(samples []pathSample) (rtt placement.RTT, trend time.Duration) {
	last := samples[len(samples)-1].at
	slope := 0.0
	if r := within(samples, trendFor); len(r) >= trendLeast && last.Sub(r[0].at) >= trendSpan {
		slope = slopeOf(r)
	}
	recent := within(samples, levelFor)
	if len(recent) < levelLeast {
		recent = samples
	}
	level := rtts(recent)
	for i, s := range recent {
		level[i] += time.Duration(slope * last.Sub(s.at).Seconds())
	}
	rtt = distribution(level)
	rtt.P50 = max(rtt.P50, time.Microsecond) // a line may end below what can be
	return rtt, min(max(time.Duration(slope), -maxTrend), maxTrend)
}

// within returns the samples of the last d.
func within(samples []pathSample, d time.Duration) []pathSample {
	last := samples[len(samples)-1].at
	for last.Sub(samples[0].at) > d {
		samples = samples[1:]
	}
	return samples
}

// slopeOf returns by how much the samples grow, in ns a second, as far as that
// is certain.
func slopeOf(samples []pathSample) float64 {
	n := len(samples)
	slopes := make([]float64, 0, n*(n-1)/2)
	order := 0.0 // pairs that grew, less those that shrank
	for i, a := range samples {
		for _, b := range samples[i+1:] {
			if t := b.at.Sub(a.at).Seconds(); t > 0 {
				slopes = append(slopes, float64(b.rtt-a.rtt)/t)
			}
			order += float64(cmp.Compare(b.rtt, a.rtt))
		}
	}
	if len(slopes) == 0 {
		return 0
	}
	slices.Sort(slopes)
	chance := math.Sqrt(float64(n*(n-1)*(2*n+5)) / 18)
	sure := (math.Abs(order)/chance - trendSome) / (trendSure - trendSome)
	return slopes[len(slopes)/2] * min(max(sure, 0), 1)
}

func rtts(samples []pathSample) []time.Duration {
	out := make([]time.Duration, len(samples))
	for i, s := range samples {
		out[i] = s.rtt
	}
	return out
}
