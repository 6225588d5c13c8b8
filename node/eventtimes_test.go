package node

import (
	"testing"
	"time"
)

func TestEventMoments(t *testing.T) {
	now := time.Now()
	var times eventTimes
	times.add(eventTime{at: now.Add(-2 * eventsFor), took: time.Hour}) // too old to count
	for _, ms := range []int{2, 4, 4, 4, 5, 5, 7, 9} {
		times.add(eventTime{at: now, took: time.Duration(ms) * time.Millisecond})
	}
	s := times.summary(now)
	if s.mean != 5*time.Millisecond || s.deviation != 2*time.Millisecond {
		t.Errorf("mean %v, deviation %v: want 5ms, 2ms", s.mean, s.deviation)
	}
	if s.p50 != 5*time.Millisecond || s.p99 != 9*time.Millisecond || s.rate != 8 {
		t.Errorf("median %v, 99th percentile %v, rate %v", s.p50, s.p99, s.rate)
	}
}
