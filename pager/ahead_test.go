package pager

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// A walk is a worker that touches pages in an order, over a link, with a policy
// of what to bring along. Time is the walk's own.
type walk struct {
	rtt     time.Duration
	perPage time.Duration // what the link takes for a page
	think   time.Duration // what the worker takes between two touches
	pages   int

	faults, brought int
	took            time.Duration
	excess          time.Duration // waits beyond a round trip and a page
	worst           time.Duration // the longest of them
}

// run walks. policy is told of each fault, and whether the page was asked for
// already, and returns what to bring along.
func (w *walk) run(order []int, policy func(p int, asked bool) guess, t *trend) {
	due := make(map[int]time.Duration) // when a page is there
	var now, free time.Duration
	type arrival struct{ at, gap time.Duration }
	var arrivals []arrival // of extra pages
	ask := func(p int) time.Duration {
		w.brought++
		free = max(free, now+w.rtt/2) + w.perPage
		due[p] = free + w.rtt/2
		return due[p]
	}
	for _, p := range order {
		now += w.think
		at, known := due[p]
		if known && at <= now {
			continue // no fault
		}
		for t != nil && len(arrivals) > 0 && arrivals[0].at <= now {
			t.took(arrivals[0].gap, 1)
			arrivals = arrivals[1:]
		}
		w.faults++
		if !known {
			at = ask(p)
			if t != nil {
				t.waited(at - now)
			}
		}
		g := policy(p, known)
		last := at
		for i := range g.count {
			q := g.first + i*g.stride
			if _, ok := due[q]; ok || q < 0 || q >= w.pages {
				continue
			}
			d := ask(q)
			if !known { // else the link stood idle before
				arrivals = append(arrivals, arrival{d, d - last})
			}
			last = d
		}
		over := at - now - w.rtt - w.perPage
		w.excess += max(0, over)
		w.worst = max(w.worst, over)
		now = max(now, at)
	}
	w.took = now
}

// fixed is the read-ahead this package had before: four pages, and twice as
// many with every fault that goes on where the last one's ended.
func fixed() func(int, bool) guess {
	var a readAhead
	return func(p int, asked bool) guess {
		if asked {
			return guess{}
		}
		n := int(a.at(PageNum(p)))
		a.next = PageNum(p + n)
		return guess{p + 1, 1, n - 1}
	}
}

func none(int, bool) guess { return guess{} }

const walkPages = 8192

// walkOrders are ways to touch a memory of walkPages pages.
func walkOrders(r *rand.Rand) map[string][]int {
	random := r.Perm(walkPages)[:1500]
	var forward, backward, strided, back7, two []int
	for p := range 2000 {
		forward = append(forward, 100+p)
		backward = append(backward, 4000-p)
	}
	for p := 0; p < walkPages; p += 8 {
		strided = append(strided, p)
	}
	for p := walkPages - 1; p >= 0; p -= 7 {
		back7 = append(back7, p)
	}
	for p := range 1000 {
		two = append(two, p, 5000+3*p)
	}
	return map[string][]int{
		"random": random, "forward": forward, "backward": backward,
		"stride=8": strided, "stride=-7": back7, "two at once": two,
	}
}

func newWalk() *walk {
	return &walk{rtt: 10 * time.Millisecond, perPage: 350 * time.Microsecond, think: 20 * time.Microsecond, pages: walkPages}
}

// Patterns are found: nearly all of a walk comes ahead of its faults, and a
// walk without one gets nothing it does not touch, and waits for nothing but
// its own pages.
func TestTrendPatterns(t *testing.T) {
	for name, order := range walkOrders(fixedRand()) {
		bare, w := newWalk(), newWalk()
		bare.run(order, none, nil)
		var tr trend
		w.run(order, func(p int, _ bool) guess { return tr.fault(p) }, &tr)
		t.Logf("%-12s %d touches: %d faults of %d without, %d pages, %v of %v, worst wait beyond its own %v",
			name, len(order), w.faults, bare.faults, w.brought, w.took, bare.took, w.worst)
		if over := w.brought - len(order); over > len(order)/50+aheadMost {
			t.Errorf("%s: %d pages brought in vain", name, over)
		}
		if name == "random" {
			if w.excess > bare.took/100 {
				t.Errorf("random: waits are %v longer in all for guesses", w.excess)
			}
			continue
		}
		if w.took > bare.took/4 {
			t.Errorf("%s: took %v, without read-ahead %v", name, w.took, bare.took)
		}
	}
}

// Whatever a worker does, what is brought along stays in bounds, and the waits
// it costs are less than an eighth of those it saves, and what chance adds.
func TestTrendNeverCostsMuch(t *testing.T) {
	r := fixedRand()
	for range 200 {
		// Strands that end at random, among random touches.
		var order []int
		for len(order) < 3000 {
			p, stride, n := r.IntN(walkPages), r.IntN(41)-20, 1+r.IntN(1+r.IntN(60))
			for i := range n {
				if q := p + i*stride; q >= 0 && q < walkPages {
					order = append(order, q)
				}
			}
		}
		bare, w := newWalk(), newWalk()
		w.perPage = time.Duration(1+r.IntN(2000)) * time.Microsecond
		bare.perPage = w.perPage
		bare.run(order, none, nil)
		var tr trend
		w.run(order, func(p int, _ bool) guess {
			g := tr.fault(p)
			if g.count < 0 || g.count > aheadMost || g.count > 0 && (g.stride == 0 || g.stride > strideMost || g.stride < -strideMost) {
				t.Fatalf("guess of %d pages, %d apart", g.count, g.stride)
			}
			return g
		}, &tr)
		if w.took > bare.took+bare.took/20 {
			t.Errorf("a page takes %v: the walk took %v with guesses and %v without", w.perPage, w.took, bare.took)
		}
	}
}

// BenchmarkReadAhead compares what is brought along for three ways to walk
// over a memory, across an emulated link of 10 ms and 100 Mbit/s, with the
// fixed read-ahead this package had, and with none. The time is the
// emulation's.
func BenchmarkReadAhead(b *testing.B) {
	orders := walkOrders(fixedRand())
	names := make([]string, 0, len(orders))
	for name := range orders {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		for _, policy := range []string{"none", "fixed", "trend"} {
			b.Run(fmt.Sprintf("order=%s/ahead=%s", name, policy), func(b *testing.B) {
				var w *walk
				for b.Loop() {
					w = newWalk()
					switch policy {
					case "none":
						w.run(orders[name], none, nil)
					case "fixed":
						w.run(orders[name], fixed(), nil)
					case "trend":
						var tr trend
						w.run(orders[name], func(p int, _ bool) guess { return tr.fault(p) }, &tr)
					}
				}
				n := float64(len(orders[name]))
				b.ReportMetric(float64(w.faults)/n, "faults/touch")
				b.ReportMetric(float64(w.brought)/n, "pages/touch")
				b.ReportMetric(ms(w.took)/n, "ms/touch")
				b.ReportMetric(ms(w.worst), "ms-worst-delay")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
