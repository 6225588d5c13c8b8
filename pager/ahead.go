package pager

import "time"

const (
	aheadFirst = 4
	aheadMost  = 64
)

// A readAhead decides how many pages of this node's own store, or of zeroes, to
// put in place with one that is waited for: few at first, more with each fault
// that goes on where the last one's pages ended.
type readAhead struct {
	next PageNum // the page after the last brought along
	run  uint32
}

// at is how many pages to bring at a fault on page p.
func (a *readAhead) at(p PageNum) uint32 {
	if a.run > 0 && p >= a.next && p-a.next <= PageNum(a.run) {
		a.run = min(a.run*2, aheadMost)
	} else {
		a.run = aheadFirst
	}
	return a.run
}

const (
	// strands is how many patterns are followed at a time: a worker walks
	// over a few arrays at once.
	strands = 8
	// periods is how many patterns may begin at once, their faults taking
	// turns. More would see patterns in chance.
	periods = 4
	// strideMost is the longest stride, in pages.
	strideMost = 1024
	// sureHits is how often a pattern must have foretold a fault before a
	// whole round trip of the link is risked on it.
	sureHits = 8
)

// A trend finds patterns in the pages that a worker waits for at the far end
// of a link, and says which to bring along. Without a pattern that is none:
// on an idle link the three pages that used to come along made a fault 0.3 ms
// longer, and on a busy one they stand in the way of the next.
//
// A pattern is a strand of faults at equal distances, forward or backward, the
// shortest distance being 1. Three faults make one, or two on neighbours; up
// to four strands may begin at the same time by turns. A strand that goes on
// gets more pages ahead, twice as many each time. The link limits them: as
// long as they are on their way the next fault waits for them if it is
// elsewhere, so what is under way for a strand that has foretold n faults
// takes the link at most n eighths of a round trip, and never more than one. A
// wrong guess then costs, for every fault that guesses saved, at most an
// eighth of what that fault would have.
//
// Pages are in units of the kernel's pages. The methods are not safe for
// concurrent use.
type trend struct {
	strands [strands]strand
	clock   uint32
	// recent are the last faults that no strand foretold, latest first.
	recent [2 * periods]int
	seen   int

	perPage time.Duration // smoothed, how long the link takes for one; 0 if unknown
	rtt     time.Duration // near the least a demanded page took; 0 if unknown
}

// A strand is one pattern. It is unused if stride is 0.
type strand struct {
	last   int // page of its last fault
	stride int
	ahead  int // pages brought along beyond last
	window int // how many should be
	hits   int // faults it has foretold
	used   uint32
}

// A guess is a row of pages that will likely be touched: first, first+stride
// and so on.
type guess struct {
	first, stride, count int
}

// fault takes in a fault on a page and returns what to bring along.
func (t *trend) fault(p int) guess {
	t.clock++
	for i := range t.strands {
		s := &t.strands[i]
		if s.stride == 0 || (p-s.last)%s.stride != 0 {
			continue
		}
		// Beyond what was brought along there may be pages that came by
		// themselves.
		steps := (p - s.last) / s.stride
		if steps < 1 || steps > s.ahead+1+s.window {
			continue
		}
		s.last, s.ahead = p, max(0, s.ahead-steps)
		s.hits++
		s.used = t.clock
		s.window = min(2*s.window, t.most(s.hits))
		if s.ahead > s.window/2 {
			return guess{} // enough is on its way
		}
		return s.extend()
	}

	copy(t.recent[1:], t.recent[:])
	t.recent[0] = p
	t.seen = min(t.seen+1, len(t.recent))
	if stride := t.stride(); stride != 0 {
		s := &t.strands[0]
		for i := range t.strands {
			if t.strands[i].used < s.used {
				s = &t.strands[i]
			}
		}
		*s = strand{last: p, stride: stride, window: min(2, t.most(1)), used: t.clock}
		return s.extend()
	}
	return guess{}
}

// extend brings a strand up to its window.
func (s *strand) extend() guess {
	g := guess{first: s.last + s.stride*(s.ahead+1), stride: s.stride, count: s.window - s.ahead}
	if g.count <= 0 {
		return guess{}
	}
	s.ahead = s.window
	return g
}

// stride is the stride of a strand that begins with the latest fault, 0 if
// none does.
func (t *trend) stride() int {
	p := t.recent[0]
	for i := 1; i <= periods && i < t.seen; i++ {
		if d := p - t.recent[i]; d == 1 || d == -1 {
			return d
		}
	}
	for i := 1; i <= periods && 2*i < t.seen; i++ {
		d := p - t.recent[i]
		if d != 0 && d == t.recent[i]-t.recent[2*i] && d <= strideMost && d >= -strideMost {
			return d
		}
	}
	return 0
}

// most is how many pages may be under way for a strand with so many hits.
func (t *trend) most(hits int) int {
	if t.perPage == 0 || t.rtt == 0 {
		return 2
	}
	risk := t.rtt * time.Duration(min(hits, sureHits)) / sureHits
	return int(max(1, min(risk/t.perPage, aheadMost)))
}

// took says that pages which followed another at once came so much later.
func (t *trend) took(later time.Duration, pages int) {
	each := max(later/time.Duration(pages), time.Microsecond)
	if t.perPage == 0 {
		t.perPage = each
		return
	}
	t.perPage += (each - t.perPage) / 4
}

// waited says how long a page took that was asked for by itself.
func (t *trend) waited(d time.Duration) {
	if t.rtt == 0 || d < t.rtt {
		t.rtt = d
		return
	}
	t.rtt += (d - t.rtt) / 64
}
