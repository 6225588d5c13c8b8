package churn

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestWalk: a round comes to every page once, and not in the order of
// addresses nor in steps of one length.
func TestWalk(t *testing.T) {
	for _, n := range []int{1, 2, 3, 4, 5, 16, 17, 1000, 4096, 16384, 16385} {
		w := walk{x: 12345}
		w.over(n)
		seen := make([]bool, n)
		last, steps := 0, map[int]int{}
		for i := range n {
			p := w.next()
			if seen[p] {
				t.Fatalf("%d pages: page %d came twice in a round", n, p)
			}
			seen[p] = true
			if i > 0 {
				steps[p-last]++
			}
			last = p
		}
		for step, count := range steps {
			if n >= 1000 && count > n/10 {
				t.Errorf("%d pages: %d steps of %d", n, count, step)
			}
		}
	}
}

func TestChurnRate(t *testing.T) {
	for _, c := range []struct {
		rate  uint64
		pages int
		hot   int
	}{{1 << 20, 16384, 0}, {50 << 20, 16384, 0}, {100, 16, 0}, {10 << 20, 4096, 256}, {0, 16, 0}} {
		ch := New(c.rate, c.hot, 1)
		writes, highest := 0, 0
		for range 1000 {
			ch.Step(10*time.Millisecond, c.pages, func(p int) { writes++; highest = max(highest, p) })
		}
		want := int(c.rate * 10 / PageSize)
		if writes < want-1 || writes > want {
			t.Errorf("%+v: %d pages written in ten seconds, want %d", c, writes, want)
		}
		if limit := c.pages; c.hot > 0 && highest >= c.hot || highest >= limit {
			t.Errorf("%+v: wrote page %d", c, highest)
		}
	}

	// Standing still is not made up for, and no step writes a page twice.
	ch := New(50<<20, 0, 1)
	seen := map[int]bool{}
	ch.Step(time.Hour, 128, func(p int) {
		if seen[p] {
			t.Fatalf("page %d came twice in one step", p)
		}
		seen[p] = true
	})
	if len(seen) != 128 {
		t.Errorf("%d pages after an hour, want no more than all 128", len(seen))
	}
	ch.Step(-time.Second, 512, func(int) { t.Error("time that ran backwards") })
	ch.Step(time.Second, 0, func(int) { t.Error("a page of none") })
}

// TestPace compares the histogram with all durations sorted.
func TestPace(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	var p Pace
	var all []time.Duration
	at := time.Duration(1)
	for range 5000 {
		d := time.Duration(random.ExpFloat64() * float64(time.Millisecond))
		all = append(all, d)
		p.Note(at, int64(at), d)
		at += 10 * time.Millisecond
	}
	p.Note(at+time.Second, int64(at+2*time.Second), 0)
	all = append(all, 0)
	slices.Sort(all)
	for _, q := range []float64{0.5, 0.99} {
		exact := all[int(q*float64(len(all)))-1]
		if got := p.quantile(q); got < exact || float64(got) > 1.13*float64(exact)+1 {
			t.Errorf("quantile %v is %v, exactly %v", q, got, exact)
		}
	}
	if want := "ticks=5001 gap=1.01s wallGap=2.01s "; !strings.HasPrefix(string(p.Append(nil)), want) {
		t.Errorf("got %s, want %s...", p.Append(nil), want)
	}
	p.Reset()
	if got, want := string(p.Append(nil)), "ticks=0 gap=0s wallGap=0s p50=0s p99=0s max=0s"; got != want {
		t.Errorf("after a reset: %s, want %s", got, want)
	}
	p.Note(at+time.Second+7, int64(at+2*time.Second+9), 5)
	if want := "ticks=1 gap=7ns wallGap=9ns p50=5ns p99=5ns max=5ns"; string(p.Append(nil)) != want {
		t.Errorf("the first after a reset: %s, want %s", p.Append(nil), want)
	}
}

func TestBuckets(t *testing.T) {
	last := -1
	for _, d := range []time.Duration{-1, 0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 1000, time.Microsecond, time.Millisecond, time.Second, time.Hour, 1 << 62} {
		b := bucket(d)
		if b < last || b >= buckets {
			t.Errorf("%v is in bucket %d, after %d", d, b, last)
		}
		if d >= 0 && d < time.Hour && (upper(b) < d || b > 0 && upper(b-1) >= d) {
			t.Errorf("%v is in bucket %d, which ends at %v", d, b, upper(b))
		}
		last = b
	}
}
