package pager

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// A histogram counts durations in buckets that are an eighth of a power of
// two wide, so that a quantile is at most 12.5 % off. It is safe for
// concurrent use and never allocates.
type histogram struct {
	buckets [61 * 8]atomic.Uint64
	max     atomic.Int64
}

func (h *histogram) add(d time.Duration) {
	d = max(d, 0)
	h.buckets[bucketOf(uint64(d))].Add(1)
	for {
		old := h.max.Load()
		if int64(d) <= old || h.max.CompareAndSwap(old, int64(d)) {
			return
		}
	}
}

func bucketOf(ns uint64) int {
	if ns < 8 {
		return int(ns)
	}
	exp := bits.Len64(ns) - 4 // ns>>exp is 8 to 15
	return (exp+1)*8 + int(ns>>exp) - 8
}

// bucketTop is the largest duration of bucket i.
func bucketTop(i int) time.Duration {
	if i < 8 {
		return time.Duration(i)
	}
	exp := i/8 - 1
	return time.Duration((uint64(i%8+9) << exp) - 1)
}

// Latency sums up how long something took. Quantiles are at most 12.5 % too
// high.
type Latency struct {
	Count         uint64
	P50, P99, Max time.Duration
}

func (h *histogram) snapshot() Latency {
	var counts [len(h.buckets)]uint64
	l := Latency{Max: time.Duration(h.max.Load())}
	for i := range h.buckets {
		counts[i] = h.buckets[i].Load()
		l.Count += counts[i]
	}
	quantile := func(q float64) time.Duration {
		rank := uint64(q * float64(l.Count))
		for i, n := range counts {
			if rank < n {
				return min(bucketTop(i), l.Max)
			}
			rank -= n
		}
		return l.Max
	}
	if l.Count > 0 {
		l.P50, l.P99 = quantile(0.50), quantile(0.99)
	}
	return l
}
