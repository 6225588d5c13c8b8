package pager

import (
	"testing"
	"time"
)

func TestHistogram(t *testing.T) {
	var h histogram
	for i := range 1000 {
		h.add(time.Duration(i+1) * time.Microsecond)
	}
	l := h.snapshot()
	if l.Count != 1000 || l.Max != time.Millisecond {
		t.Errorf("got %+v", l)
	}
	for _, q := range []struct{ got, want time.Duration }{{l.P50, 500 * time.Microsecond}, {l.P99, 990 * time.Microsecond}} {
		if q.got < q.want || q.got > q.want*33/32+time.Microsecond {
			t.Errorf("got %s, want %s and at most a 32nd more", q.got, q.want)
		}
	}
	for _, d := range []time.Duration{-1, 0, subBuckets - 1, subBuckets, 1<<63 - 1} {
		h.add(d) // at the ends
	}
	last := time.Duration(-1)
	for i := range h.buckets {
		if top := bucketTop(i); top <= last && i < len(h.buckets)-subBuckets {
			t.Fatalf("bucket %d ends at %d, the one before at %d", i, top, last)
		} else {
			last = top
		}
	}
}
