package churn

import (
	"fmt"
	"math/bits"
	"time"
)

// A Pace records how evenly events came and how long each took. It has a fixed
// size, so that recording dirties one or two pages. It is not safe for
// concurrent use.
type Pace struct {
	count    uint64
	last     time.Duration // on the worker's clock
	lastWall int64         // Unix nanoseconds
	gap      time.Duration
	wallGap  time.Duration
	longest  time.Duration
	took     [buckets]uint32
}

// Durations are counted in buckets of an eighth of a power of two each: a
// quantile is at most 12.5 % too high.
const (
	perOctave = 8
	buckets   = 40 * perOctave // up to 2^42 ns, 73 minutes
)

// Note records an event that began then, on the worker's clock and on the
// machine's, and took that long.
func (p *Pace) Note(began time.Duration, wall int64, took time.Duration) {
	if p.last != 0 {
		p.gap = max(p.gap, began-p.last)
		p.wallGap = max(p.wallGap, time.Duration(wall-p.lastWall))
	}
	p.last, p.lastWall = began, wall
	p.count++
	p.longest = max(p.longest, took)
	p.took[bucket(took)]++
}

// Since is the time between the last event and one that begins now; 0 if there
// was none.
func (p *Pace) Since(now time.Duration) time.Duration {
	if p.last == 0 {
		return 0
	}
	return now - p.last
}

// Reset forgets all but when the last event was, so that the time up to the
// next one counts.
func (p *Pace) Reset() { *p = Pace{last: p.last, lastWall: p.lastWall} }

// Append writes what was recorded, as text:
//
//	ticks=200 gap=10.1ms wallGap=10.1ms p50=52µs p99=70µs max=81µs
func (p *Pace) Append(b []byte) []byte {
	return fmt.Appendf(b, "ticks=%d gap=%v wallGap=%v p50=%v p99=%v max=%v", p.count, p.gap, p.wallGap,
		p.quantile(0.5), p.quantile(0.99), p.longest)
}

// quantile is an upper bound of the duration that a share q of the events did
// not exceed.
func (p *Pace) quantile(q float64) time.Duration {
	var seen uint64
	for i, n := range p.took {
		seen += uint64(n)
		if seen > 0 && float64(seen) >= q*float64(p.count) {
			return min(upper(i), p.longest)
		}
	}
	return p.longest
}

// bucket is where a duration counts. Below 8 ns each has its own.
func bucket(d time.Duration) int {
	n := uint64(max(d, 0))
	if n < perOctave {
		return int(n)
	}
	octave := bits.Len64(n) - 4 // of 8 to 15 ns: 0
	return min(perOctave+octave*perOctave+int(n>>octave&(perOctave-1)), buckets-1)
}

// upper is the longest duration that counts in bucket i.
func upper(i int) time.Duration {
	if i < perOctave {
		return time.Duration(i)
	}
	octave, part := i/perOctave-1, i%perOctave
	return time.Duration((perOctave+part+1)<<octave - 1)
}
