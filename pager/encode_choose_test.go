package pager

import (
	"fmt"
	"math"
	"testing"
	"time"
)

// A machineModel is a link and a processor, for choosers to find out about.
type machineModel struct {
	wire   float64 // ns a byte
	codecs [2]codecState
}

// frame tells c what one bulk frame did, with all measurements off by up to
// noise, and returns the time the frame took.
func (m machineModel) frame(c *chooser, noise func() float64) float64 {
	const size = bulkRun * PageSize
	k := c.choose()
	bytes, spent := float64(size), 0.0
	if k != pageRaw {
		st := m.codecs[k-pageS2]
		spent = st.spent * size
		bytes = st.ratio * size
		c.encoded(k, size, int(bytes), time.Duration(spent*noise()))
	}
	c.sent(int(bytes), time.Duration(bytes*m.wire*noise()))
	return m.cost(k)
}

// cost is the time a frame takes with a codec.
func (m machineModel) cost(k codec) float64 {
	const size = bulkRun * PageSize
	if k == pageRaw {
		return m.wire * size
	}
	st := m.codecs[k-pageS2]
	return (max(st.ratio*m.wire, st.spent*(1+decodeShare)+st.ratio*min(m.wire, wireWork)) + st.spent/10) * size
}

var guest = [2]codecState{{spent: 1.7, ratio: 0.29}, {spent: 6, ratio: 0.22}}

func TestChoose(t *testing.T) {
	mbit := func(n float64) float64 { return 8e3 / n }
	for _, tc := range []struct {
		name   string
		wire   float64
		codecs [2]codecState
		want   codec
	}{
		{"30 Mbit/s", mbit(30), guest, pageZstd},
		{"100 Mbit/s", mbit(100), guest, pageZstd},
		{"1 Gbit/s", mbit(1e3), guest, pageS2},
		{"10 Gbit/s", mbit(10e3), guest, pageRaw},
		{"40 Gbit/s", mbit(40e3), guest, pageRaw},
		{"30 Mbit/s, noise", mbit(30), [2]codecState{{spent: 0.4, ratio: 1}, {spent: 0.4, ratio: 1}}, pageRaw},
		{"30 Mbit/s, slow processor", mbit(30), [2]codecState{{spent: 40, ratio: 0.29}, {spent: 300, ratio: 0.22}}, pageS2},
	} {
		m := machineModel{tc.wire, tc.codecs}
		c := newChooser(encodeAll, 0)
		for range 40 {
			m.frame(c, func() float64 { return 1 })
		}
		if c.now != tc.want {
			t.Errorf("%s: kind %d, want %d: costs %.1f, %.1f and %.1f ns", tc.name, c.now, tc.want,
				c.cost(pageRaw), c.cost(pageS2), c.cost(pageZstd))
		}
	}
	if c := newChooser(encodeAll, 1<<20); c.choose() == pageRaw {
		t.Error("pages go as they are though the rate is known to be low")
	}
	c := newChooser(0, 0)
	for range 40 {
		machineModel{mbit(1), guest}.frame(c, func() float64 { return 1 })
	}
	if c.now != pageRaw {
		t.Errorf("kind %d is not accepted", c.now)
	}
}

// Whatever the link and the memory, and with measurements that are off by a
// third, the choice costs little more than the best would, and does not swing.
func TestChooseNearBest(t *testing.T) {
	r := fixedRand()
	noise := func() float64 { return 0.75 + 0.5*r.Float64() }
	for range 300 {
		m := machineModel{wire: math.Exp(2 + r.Float64()*5)} // 7 to 1,100 ns a byte
		s2 := codecState{spent: 0.5 + 4*r.Float64(), ratio: 0.1 + 0.7*r.Float64()}
		m.codecs = [2]codecState{s2, {spent: s2.spent * (2 + 3*r.Float64()), ratio: s2.ratio * (0.5 + 0.5*r.Float64())}}
		best := min(m.cost(pageRaw), m.cost(pageS2), m.cost(pageZstd))
		c := newChooser(encodeAll, 0)
		total, switches := 0.0, 0
		const frames, settle = 400, 60
		for i := range frames {
			before := c.now
			took := m.frame(c, noise)
			if i >= settle {
				total += took
				if c.now != before {
					switches++
				}
			}
		}
		at := fmt.Sprintf("wire %.1f, codecs %+v", m.wire, m.codecs)
		if got := total / (frames - settle) / best; got > 1.3 {
			t.Errorf("%s: %.2f of the best", at, got)
		}
		// More than the best without compression is what must never be.
		if got := total / (frames - settle) / m.cost(pageRaw); got > 1.05 {
			t.Errorf("%s: %.2f of what plain pages take", at, got)
		}
		if switches > frames/8 {
			t.Errorf("%s: %d switches in %d frames", at, switches, frames)
		}
	}
}

// A link whose rate changes is noticed within some frames, and so is a memory
// that begins to compress.
func TestChooseFollows(t *testing.T) {
	exact := func() float64 { return 1 }
	c := newChooser(encodeAll, 0)
	run := func(m machineModel, frames int) codec {
		for range frames {
			m.frame(c, exact)
		}
		return c.now
	}
	if got := run(machineModel{0.5, guest}, 30); got != pageRaw {
		t.Errorf("fast link: kind %d", got)
	}
	if got := run(machineModel{80, guest}, 30); got != pageZstd {
		t.Errorf("slow link: kind %d", got)
	}
	if got := run(machineModel{0.5, guest}, 30); got != pageRaw {
		t.Errorf("fast again: kind %d", got)
	}
	random := [2]codecState{{spent: 0.4, ratio: 1}, {spent: 0.4, ratio: 1}}
	if got := run(machineModel{80, random}, 100); got != pageRaw {
		t.Errorf("noise: kind %d", got)
	}
	if got := run(machineModel{80, guest}, 200); got != pageZstd {
		t.Errorf("no noise any more: kind %d", got)
	}
}
