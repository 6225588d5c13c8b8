package pager

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// A bottleneck is a link with a queue and a delay, and a push over it that a
// route controls, chunk by chunk, as a stream does.
type bottleneck struct {
	r    *rand.Rand
	rate float64 // bytes a second
	base time.Duration
	// jitter is the most by which a round trip is longer by chance, and other
	// what else is on the link, bytes a second.
	jitter time.Duration
	other  float64
	// late is how late timers are in the mean.
	late time.Duration
	// supply is the most the push has to send, bytes a second; 0 is no limit.
	supply float64

	route  route
	now    time.Time
	free   time.Time // when the link has sent what waits
	acks   []ack
	odd    bool
	sent   float64
	queued []time.Duration // what each chunk found
}

type ack struct {
	at  time.Time
	rtt time.Duration
}

func newBottleneck(rate float64, base time.Duration) *bottleneck {
	b := &bottleneck{r: fixedRand(), rate: rate, base: base, now: time.Unix(0, 0)}
	b.free = b.now
	b.route.sample(b.now, base) // the handshake's
	return b
}

const simPacket = 1400

// run pushes for a time and returns what part of the link was used, by the
// push, and quantiles of the queue.
func (b *bottleneck) run(d time.Duration) (used float64, median, p99 time.Duration) {
	const step = 100 * time.Microsecond
	b.sent, b.queued = 0, b.queued[:0]
	var p pace
	var credit float64
	waited := false
	end := b.now.Add(d)
	for ; b.now.Before(end); b.now = b.now.Add(step) {
		for len(b.acks) > 0 && !b.acks[0].at.After(b.now) {
			b.route.sample(b.now, b.acks[0].rtt)
			b.acks = b.acks[1:]
		}
		b.carry(b.other * step.Seconds())
		if waited {
			b.route.waited(step)
		}
		b.queued = append(b.queued, max(0, b.free.Sub(b.now)))
		credit = min(credit+b.supply*step.Seconds(), 64<<10)
		for b.supply == 0 || credit >= PageSize {
			rate := b.route.rate(b.now)
			if p.pay(b.now, rate) > 0 {
				waited = true
				break
			}
			if b.late > 0 && waited && b.r.Float64() > float64(step)/float64(b.late) {
				break // the timer is late
			}
			chunk := max(PageSize, int(min(rate*chunkTime.Seconds(), bulkChunk))/PageSize*PageSize)
			waited = false
			p.debt += float64(chunk)
			credit -= float64(chunk)
			b.sent += float64(chunk)
			for ; chunk > 0; chunk -= simPacket {
				b.carry(float64(min(chunk, simPacket)))
				if b.odd = !b.odd; b.odd {
					continue // every other packet is acknowledged
				}
				rtt := b.base + max(0, b.free.Sub(b.now))
				if b.jitter > 0 {
					rtt += time.Duration(b.r.Int64N(int64(b.jitter)))
				}
				at := b.now.Add(rtt)
				if n := len(b.acks); n > 0 && at.Before(b.acks[n-1].at) {
					at = b.acks[n-1].at
				}
				b.acks = append(b.acks, ack{at, rtt})
			}
		}
	}
	slices.Sort(b.queued)
	return b.sent / b.rate / d.Seconds(), b.queued[len(b.queued)/2], b.queued[len(b.queued)*99/100]
}

// carry puts bytes into the link's queue.
func (b *bottleneck) carry(bytes float64) {
	if b.free.Before(b.now) {
		b.free = b.now
	}
	b.free = b.free.Add(time.Duration(bytes / b.rate * float64(time.Second)))
}

const mbit = 1e6 / 8

// On any link a push that has found its rate fills it, and its queue stays
// near the target.
func TestRouteSettles(t *testing.T) {
	for _, rate := range []float64{2, 10, 100, 1000} {
		for _, base := range []time.Duration{time.Millisecond, 10 * time.Millisecond, 50 * time.Millisecond, 200 * time.Millisecond} {
			t.Run(fmt.Sprintf("rate=%vmbit/rtt=%v", rate, base), func(t *testing.T) {
				b := newBottleneck(rate*mbit, base)
				start, _, startQueue := b.run(3*time.Second + 20*base)
				used, median, p99 := b.run(30 * time.Second)
				t.Logf("first %.2f of the link, queue p99 %v; then %.2f, queue %v, p99 %v", start, startQueue, used, median, p99)
				if used < 0.9 {
					t.Errorf("used %.2f of the link, want 0.9", used)
				}
				if most := b.tolerated(); p99 > most {
					t.Errorf("queue of %v, want at most %v", p99, most)
				}
			})
		}
	}
}

// tolerated is the queue that 99 of 100 chunks may find: the target and as
// much again, what a chunk is by itself, and on long routes what is pushed
// before the answer to it comes.
func (b *bottleneck) tolerated() time.Duration {
	chunk := time.Duration(queueBytes / b.rate * float64(time.Second))
	return 2*queueTarget + 3*chunk + b.base/8
}

// The start never leaves a queue of more than about a round trip.
func TestRouteStarts(t *testing.T) {
	for _, rate := range []float64{10, 100, 1000} {
		for _, base := range []time.Duration{2 * time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond} {
			b := newBottleneck(rate*mbit, base)
			b.run(100*time.Millisecond + 20*base)
			worst := b.queued[len(b.queued)-1]
			t.Logf("rate=%vmbit rtt=%v: worst queue %v", rate, base, worst)
			if most := base*3/2 + b.tolerated(); worst > most {
				t.Errorf("rate=%vmbit rtt=%v: queue of %v, want at most %v", rate, base, worst, most)
			}
		}
	}
}

// A link that changes under the push is found again within seconds.
func TestRouteFollows(t *testing.T) {
	for _, change := range []struct {
		name string
		do   func(*bottleneck)
		// settle is how long it may take.
		settle time.Duration
	}{
		{"half the rate", func(b *bottleneck) { b.rate /= 2 }, time.Second},
		{"a tenth of the rate", func(b *bottleneck) { b.rate /= 10 }, 2 * time.Second},
		{"four times the rate", func(b *bottleneck) { b.rate *= 4 }, 2 * time.Second},
		{"half of it taken", func(b *bottleneck) { b.other = b.rate / 2 }, time.Second},
		{"shorter", func(b *bottleneck) { b.base /= 3 }, time.Second},
		{"longer", func(b *bottleneck) { b.base += 20 * time.Millisecond }, 25 * time.Second},
	} {
		t.Run(change.name, func(t *testing.T) {
			b := newBottleneck(100*mbit, 10*time.Millisecond)
			b.run(3 * time.Second)
			change.do(b)
			b.run(change.settle)
			used, median, p99 := b.run(10 * time.Second)
			used += b.other / b.rate
			t.Logf("%.2f of the link, queue %v, p99 %v", used, median, p99)
			if used < 0.9 {
				t.Errorf("used %.2f of the link, want 0.9", used)
			}
			if most := b.tolerated(); p99 > most {
				t.Errorf("queue of %v, want at most %v", p99, most)
			}
		})
	}
}

// Round trips that vary by chance hold the push back a little, not to a halt.
func TestRouteJitter(t *testing.T) {
	for _, jitter := range []time.Duration{time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond} {
		b := newBottleneck(100*mbit, 20*time.Millisecond)
		b.jitter = jitter
		b.run(3 * time.Second)
		used, median, p99 := b.run(20 * time.Second)
		t.Logf("jitter %v: %.2f of the link, queue %v, p99 %v", jitter, used, median, p99)
		if used < 0.8 {
			t.Errorf("jitter %v: used %.2f of the link, want 0.8", jitter, used)
		}
	}
}

// On a machine that is busy with other things timers are late and
// acknowledgements are seen late.
func TestRouteOnBusyMachine(t *testing.T) {
	b := newBottleneck(100*mbit, 10*time.Millisecond)
	b.late, b.jitter = 5*time.Millisecond, 10*time.Millisecond
	b.run(5 * time.Second)
	used, median, p99 := b.run(20 * time.Second)
	t.Logf("%.2f of the link, queue %v, p99 %v", used, median, p99)
	if used < 0.6 {
		t.Errorf("used %.2f of the link, want 0.6", used)
	}
}

// A push that is held back by something else learns nothing from that: when
// nothing holds it back any more it does not flood the link.
func TestRouteUnused(t *testing.T) {
	b := newBottleneck(100*mbit, 10*time.Millisecond)
	b.supply = b.rate / 20
	b.run(30 * time.Second)
	if b.route.estimate > b.rate {
		t.Errorf("the estimate is %.1f of the link though a twentieth of it was tried", b.route.estimate/b.rate)
	}
	b.supply = 0
	b.run(time.Second)
	if worst, most := b.queued[len(b.queued)-1], 3*b.base/2+b.tolerated(); worst > most {
		t.Errorf("queue of %v, want at most %v", worst, most)
	}
}

// Where somebody else keeps the queue full the push goes on, slowly.
func TestRouteNotStarved(t *testing.T) {
	b := newBottleneck(100*mbit, 10*time.Millisecond)
	b.run(3 * time.Second)
	b.other = b.rate // whatever the push adds stays in the queue
	b.run(5 * time.Second)
	used, _, _ := b.run(5 * time.Second)
	if least := floorBytes / floorTime.Seconds() / b.rate / 2; used < least {
		t.Errorf("pushed %.4f of the link, want %.4f", used, least)
	}
	if math.IsNaN(b.route.estimate) || b.route.estimate > b.rate {
		t.Errorf("estimate of %v", b.route.estimate)
	}
}
