package pager

import (
	"math/bits"
	"sync/atomic"
	"time"
)

const (
	// subBits makes a histogram's buckets a 32nd of a power of two wide, so that a
	// quantile is at most 3.2 % off.
	subBits    = 5
	subBuckets = 1 << subBits
)

// A histogram counts durations. It is safe for concurrent use and never allocates.
type histogram struct {
	buckets [(64 - subBits) * subBuckets]atomic.Uint64
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
	if ns < subBuckets {
		return int(ns)
	}
	exp := bits.Len64(ns) - 1 - subBits // ns>>exp is subBuckets to twice that
	return exp*subBuckets + int(ns>>exp)
}

// bucketTop is the largest duration of bucket i.
func bucketTop(i int) time.Duration {
	if i < subBuckets {
		return time.Duration(i)
	}
	exp := i/subBuckets - 1
	return time.Duration((uint64(i%subBuckets+subBuckets+1) << exp) - 1)
}

// Latency sums up how long something took. Quantiles are at most 3.2 % too high.
type Latency struct {
	Count         uint64
	P50, P99, Max time.Duration
}

func (h *histogram) snapshot() Latency {
	l := Latency{Max: time.Duration(h.max.Load())}
	for i := range h.buckets {
		l.Count += h.buckets[i].Load()
	}
	quantile := func(q float64) time.Duration {
		rank := uint64(q * float64(l.Count))
		for i := range h.buckets {
			n := h.buckets[i].Load() // not less than when it was counted
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
