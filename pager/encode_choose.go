package pager

import (
	"math"
	"slices"
	"time"
)

// A chooser decides how the next frame is compressed, from what the last ones
// cost. It is arithmetic only: who uses it measures. It is not safe for
// concurrent use.
//
// For each codec it predicts the nanoseconds that a byte of memory takes:
//
//	cost = max(ratio * wire, work) + encoding / 10
//	work = encoding + decoding + ratio * min(wire, wireWork)
//
// where wire is what a byte takes on the stream, encoding what the codec took
// lately, and wireWork what the network's own work on a byte takes of a
// processor. On a slow link work goes on beside the wire, and the wire
// decides. On a fast one all of it competes for the processors, and what
// decides is the sum. So a fast link is not slowed down by a codec that could
// just keep up with it alone. The last term is for what else the processor
// could do, and tips the scales when all else is equal.
type chooser struct {
	accepts Encodings
	now     codec
	wire    float64 // ns a byte on the stream, 0 if nothing was sent
	codecs  [2]codecState
	// What was written since wire was last worked out, and what wire was worked
	// out from: the last measurements, of which the oldest is the next to go.
	bytes int
	took  time.Duration
	wires []float64
	next  int
	// frames counts calls of choose.
	frames int
}

// A codecState is what is known of a codec on this memory.
type codecState struct {
	spent float64 // ns to encode a byte of memory
	ratio float64 // of what comes out to what goes in
	seen  bool
	tried int // frames when last used
}

// What is assumed before anything was measured: as on the memories of the
// example apps, a little worse.
var codecPriors = [2]codecState{
	{spent: 2, ratio: 0.45, tried: -trialEvery},
	{spent: 7, ratio: 0.38, tried: -trialEvery},
}

const (
	// decodeShare is what decoding takes of the time that encoding took.
	decodeShare = 0.4

	// wireWork is what quic-go needs for a byte at both ends, in ns, as
	// measured over loopback.
	wireWork = 4

	// fastLink is what a byte takes on a link so fast that nothing is
	// compressed, in ns: 1.6 Gbit/s. There the processors are measured more
	// than the link, and S2 could win little or lose much.
	fastLink = 5

	// A codec must be predicted to be better than the one in use by this
	// factor. Noise in the measurements stays below it, and a codec that wins
	// by less is not worth its heat. Sending pages as they are need not be
	// better by as much.
	switchGain    = 0.85
	switchGainRaw = 0.95

	// blend is the weight of a new measurement, and blendStale that of one on
	// trial, when those before are old.
	blend      = 0.25
	blendStale = 0.75

	// wireMemory is of how many measurements of the link the median counts: a
	// far side that stalls for once passes for a slow link, and bytes that end
	// in buffers pass for a fast one. An average was tried, and let one stall
	// on a busy machine begin to compress on a link of 10 Gbit/s.
	wireMemory = 7

	// trialEvery is how often, in frames, a codec that is not in use is tried
	// on a frame, if it would win with the ratio hoped for: what it made of
	// other parts of the memory may not hold for the next.
	trialEvery = 16

	// wireFloor is how many bytes it takes to say something about the link;
	// fewer may end in a buffer.
	wireFloor = 16 << 10
)

// What may be hoped for, as reason for a trial: the ratios on an ordinary
// memory, the time on a fast processor, and what Zstandard does to S2's ratio
// and time at best.
var codecHopes = [2]codecState{{spent: 0.8, ratio: 0.3}, {ratio: 0.22}}

const (
	hopedGain  = 0.6
	hopedSpent = 2.5
)

// newChooser makes a chooser for a Sink that reads what accepts has. rate, if
// above 0, is what the stream will not exceed, in bytes a second.
//
// Before anything was measured pages go as they are. Beginning with S2 was
// tried: on a link of 10 Gbit/s it made memories of a few MiB take up to
// twice as long, and what it saves on a slow one is a few small frames, most
// of which the network's first window takes without waiting anyway.
func newChooser(accepts Encodings, rate int64) *chooser {
	c := &chooser{accepts: accepts, now: pageRaw, codecs: codecPriors}
	if rate > 0 {
		c.wire = 1e9 / float64(rate)
	}
	return c
}

func (c *chooser) accepted(k codec) bool {
	switch k {
	case pageS2:
		return c.accepts&EncodeS2 != 0
	case pageZstd:
		return c.accepts&EncodeZstd != 0
	}
	return true
}

// sent notes that the stream took bytes in a time, pauses for others not
// counted.
func (c *chooser) sent(bytes int, took time.Duration) {
	c.bytes, c.took = c.bytes+bytes, c.took+took
	if c.bytes < wireFloor {
		return
	}
	ns := max(float64(c.took), 1) / float64(c.bytes)
	c.bytes, c.took = 0, 0
	if len(c.wires) < wireMemory {
		c.wires = append(c.wires, ns)
	} else {
		c.wires[c.next] = ns
		c.next = (c.next + 1) % wireMemory
	}
	var sorted [wireMemory]float64
	n := copy(sorted[:], c.wires)
	slices.Sort(sorted[:n])
	c.wire = sorted[(n-1)/2]
}

// encoded notes what a codec made of in bytes of memory, and in what time.
// Pages that were found not to compress without trying are not told: they say
// nothing of the others.
func (c *chooser) encoded(k codec, in, out int, took time.Duration) {
	st := &c.codecs[k-pageS2]
	spent, ratio := float64(took)/float64(in), min(float64(out)/float64(in), 1)
	if !st.seen {
		st.seen, st.spent, st.ratio = true, spent, ratio
	}
	weight := blend
	if k != c.now {
		weight = blendStale
	}
	st.spent += (spent - st.spent) * weight
	st.ratio += (ratio - st.ratio) * weight
}

// cost predicts what a byte of memory takes, in ns.
func (c *chooser) cost(k codec) float64 {
	if k == pageRaw {
		return c.wire
	}
	st := c.codecs[k-pageS2]
	if !st.seen {
		// What one codec can make of this memory tells of the other: if S2
		// finds little, Zstandard finds little more.
		if other := c.codecs[1-(k-pageS2)]; other.seen {
			prior := codecPriors[1-(k-pageS2)]
			st.ratio = min(1, st.ratio*other.ratio/prior.ratio)
		}
	}
	if st.ratio*16 > worthwhile {
		return math.Inf(1) // such blocks are not sent
	}
	return c.costOf(st.spent, st.ratio)
}

func (c *chooser) costOf(spent, ratio float64) float64 {
	work := spent*(1+decodeShare) + ratio*min(c.wire, wireWork)
	return max(ratio*c.wire, work) + spent/10
}

// choose says how to compress the next frame.
func (c *chooser) choose() codec {
	c.frames++
	if c.wire < fastLink {
		c.now = pageRaw
		return c.now
	}
	best := c.now
	for _, k := range [...]codec{pageRaw, pageS2, pageZstd} {
		if c.accepted(k) && c.cost(k) < c.cost(best) {
			best = k
		}
	}
	gain := switchGain
	if best == pageRaw {
		gain = switchGainRaw
	}
	if c.cost(best) < c.cost(c.now)*gain {
		if c.now != pageRaw {
			c.codecs[c.now-pageS2].tried = c.frames
		}
		c.now = best
	}
	return c.trial()
}

// trial is the codec in use, or another whose turn it is to be tried.
func (c *chooser) trial() codec {
	for k := codec(pageS2); k <= pageZstd; k++ {
		st := &c.codecs[k-pageS2]
		if k == c.now || !c.accepted(k) || c.frames-st.tried < trialEvery {
			continue
		}
		hope := codecHopes[k-pageS2]
		spent, ratio := st.spent, min(st.ratio, hope.ratio)
		if k == pageZstd {
			ratio = min(ratio, c.codecs[0].ratio*hopedGain)
			hope.spent = c.codecs[0].spent * hopedSpent
		}
		if !st.seen {
			spent = min(spent, hope.spent)
		}
		if c.costOf(spent, ratio) < c.cost(c.now)*switchGain {
			st.tried = c.frames
			return k
		}
	}
	return c.now
}
