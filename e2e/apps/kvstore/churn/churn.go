// Package churn makes a worker write its memory at a steady rate, whoever
// calls it, and tells how evenly that went: what experiments with moves need
// to know of the worker itself.
package churn

import (
	"math/bits"
	"time"
)

// PageSize is the unit in which memory moves between nodes, in bytes.
const PageSize = 4 << 10

// maxElapsed bounds what one step makes up for, two of the app's ticks. A worker
// that stood still or waited for pages goes on at its rate; it does not write
// in a burst what it has missed, which would be many pages to wait for right
// after a move. (100 ms was tried: one tick then waited for 256 pages.)
const maxElapsed = 20 * time.Millisecond

// A Churn picks the pages to write. Within a round no page comes twice, so the
// rate in bytes is one of pages that have to be sent again. The zero value
// writes nothing. It is not safe for concurrent use.
type Churn struct {
	rate uint64 // bytes a second
	hot  int    // pages it keeps to, from the first on; 0 is all
	owed uint64 // bytes times nanoseconds of a second, less than a page
	at   walk
}

// New makes a Churn of rate bytes a second, at most 4 GiB, that keeps to the
// first hot pages, or with 0 to none in particular.
func New(rate uint64, hot int, seed uint64) Churn {
	return Churn{rate: min(rate, 4<<30), hot: hot, at: walk{x: seed}}
}

// Idle reports whether nothing is to be written.
func (c *Churn) Idle() bool { return c.rate == 0 }

// Step calls write for each page that is due after that much time, of a memory
// of that many pages.
func (c *Churn) Step(elapsed time.Duration, pages int, write func(page int)) {
	if c.hot > 0 {
		pages = min(pages, c.hot)
	}
	if pages <= 0 {
		return
	}
	c.owed += c.rate * uint64(min(max(elapsed, 0), maxElapsed))
	const page = PageSize * uint64(time.Second)
	due := c.owed / page
	c.owed %= page
	c.at.over(pages)
	for range min(due, uint64(pages)) {
		write(c.at.next())
	}
}

// A walk visits each of n pages once a round, in an order without a pattern
// that read-ahead could find. It keeps no list: a linear congruential generator
// with the full period of a power of two (Hull and Dobell 1962) counts through
// all of it, a bijection scatters that, and what lies beyond n is passed over.
type walk struct {
	n    int
	x    uint64
	mask uint64
	half int // half the bits of mask
}

// over makes the walk one of n pages, at least 1.
func (w *walk) over(n int) {
	if n == w.n {
		return
	}
	w.n = n
	width := max(2, bits.Len64(uint64(n-1)))
	w.mask, w.half = 1<<width-1, width/2
}

func (w *walk) next() int {
	for {
		w.x = (w.x*6364136223846793005 + 1442695040888963407) & w.mask
		y := w.x
		y ^= y >> w.half
		y = y * 0x9e3779b97f4a7c15 & w.mask
		y ^= y >> w.half
		if y < uint64(w.n) {
			return int(y)
		}
	}
}
