package netlab

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// A bench is an engine with a record of what came out. Node i has the address
// 10.0.0.i.
type testNet struct {
	*engine
	now      int64
	arrivals []arrival
	dropped  int
}

type arrival struct {
	at   int64
	node int
	id   uint32
	size int
}

func newTestNet(seed uint64, nodes int) *testNet {
	n := &testNet{}
	n.engine = newEngine(seed, func(node int, p *packet) {
		n.arrivals = append(n.arrivals, arrival{n.now, node, binary.BigEndian.Uint32(p.buf[20:]), len(p.buf)})
	}, func(*packet) { n.dropped++ })
	for i := range nodes {
		n.addNode()
		n.addrs[testAddr(i)] = i
	}
	return n
}

func testAddr(node int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 0, 0, byte(node)})
}

// run does all events up to the time t, each at its own time.
func (n *testNet) run(t int64) {
	for n.deadline() <= t {
		n.now = n.deadline()
		n.advance(n.now)
	}
	n.now = t
}

func (n *testNet) packet(to int, id uint32, size int) *packet {
	b := make([]byte, size)
	b[0] = 0x45
	binary.BigEndian.PutUint16(b[2:], uint16(size))
	dst := testAddr(to).As4()
	copy(b[16:], dst[:])
	binary.BigEndian.PutUint32(b[20:], id)
	return &packet{buf: b}
}

func (n *testNet) finish() { n.run(math.MaxInt64 - 1) }

func TestTransmitter(t *testing.T) {
	const packets, size = 1000, 1250 // 10,000 bits: 1 ms at 10 Mbit/s
	for _, test := range []struct {
		params      string
		first, last time.Duration
	}{
		{"rate=10mbit queue=1000p", 1 * time.Millisecond, 1000 * time.Millisecond},
		{"rate=10mbit queue=1000p delay=30ms", 31 * time.Millisecond, 1030 * time.Millisecond},
		{"rate=10mbit queue=1000p burst=12500", 0, 990 * time.Millisecond},
		{"delay=30ms", 30 * time.Millisecond, 30 * time.Millisecond},
	} {
		n := newTestNet(1, 2)
		n.addLink(0, 1, mustParams(t, test.params))
		for i := range packets {
			n.send(0, 0, n.packet(1, uint32(i), size))
		}
		n.finish()
		if len(n.arrivals) != packets {
			t.Errorf("%s: %d packets arrived, want %d", test.params, len(n.arrivals), packets)
			continue
		}
		first, last := time.Duration(n.arrivals[0].at), time.Duration(n.arrivals[packets-1].at)
		if first != test.first || last != test.last {
			t.Errorf("%s: first arrived at %v, last at %v; want %v and %v", test.params, first, last, test.first, test.last)
		}
	}
}

// The fast transmitter, which computes when a packet will have been sent,
// against a slow one that fills a bucket nanosecond by nanosecond's worth.
func TestTransmitterAgainstBucket(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		// 1 byte per 8,000 ns keeps the arithmetic of both exact.
		const rate, perByte = 1_000_000, 8000
		burst := rng.IntN(2) * rng.IntN(5000)
		n := newTestNet(1, 2)
		n.addLink(0, 1, Params{Rate: rate, Burst: burst, QueuePackets: 1 << 20})

		var want []int64
		// balance is how many nanoseconds of sending are saved up (or, if
		// negative, owed) at the time then.
		balance, then := int64(burst)*perByte, int64(0)
		at := int64(0)
		for i := range 100 {
			at += rng.Int64N(4_000_000) * rng.Int64N(2)
			size := 24 + rng.IntN(1476)
			n.run(at)
			n.send(at, 0, n.packet(1, uint32(i), size))

			head := at
			if len(want) > 0 {
				head = max(head, want[len(want)-1])
			}
			balance = min(balance+head-then, int64(burst)*perByte)
			then = head
			balance -= int64(size) * perByte
			if balance < 0 { // wait until nothing is owed
				head += -balance
				then, balance = head, 0
			}
			want = append(want, head)
		}
		n.finish()
		var got []int64
		for _, a := range n.arrivals {
			got = append(got, a.at)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("burst %d: packets arrive at\n%v, want\n%v", burst, got, want)
		}
	}
}

func TestQueueDropsTail(t *testing.T) {
	for _, test := range []struct {
		params string
		want   int
	}{
		{"rate=1mbit queue=10p", 10},
		{"rate=1mbit queue=10000", 10},
		{"rate=1mbit", 48}, // 32 packets of 1,500 bytes
		{"rate=100mbit", 500},
	} {
		n := newTestNet(1, 2)
		n.addLink(0, 1, mustParams(t, test.params))
		for i := range 1000 {
			n.send(0, 0, n.packet(1, uint32(i), 1000))
		}
		n.finish()
		want := min(test.want, 1000)
		if test.params == "rate=100mbit" {
			want = 625 // 50 ms
		}
		if len(n.arrivals) != want {
			t.Errorf("%s: %d packets of 1000 arrive, want %d", test.params, len(n.arrivals), want)
		}
		for i, a := range n.arrivals {
			if a.id != uint32(i) {
				t.Errorf("%s: packet %d arrives as number %d", test.params, a.id, i)
				break
			}
		}
	}
}

// Whatever happens to a link, packets stay in order, none is made up, and all
// are accounted for.
func TestOrderAndConservation(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 100 {
		n := newTestNet(rng.Uint64(), 4)
		random := func() Params {
			p := Params{
				Rate:  []int64{0, 1e6, 1e8}[rng.IntN(3)],
				Delay: time.Duration(rng.IntN(30)) * time.Millisecond,
				Loss:  []float64{0, 0, 0.1}[rng.IntN(3)],
				Burst: rng.IntN(2) * 5000,
				Down:  rng.IntN(10) == 0,
			}
			p.Jitter = time.Duration(rng.Float64() * float64(p.Delay))
			return p
		}
		// A line 0-1-2, and 3 which cannot be reached.
		n.addLink(0, 1, random())
		n.addLink(1, 2, random())
		w := n.wires[[2]int{0, 1}]
		sent := 0
		for i := range 2000 {
			n.run(n.now + rng.Int64N(200_000))
			to := 1 + rng.IntN(2)
			if rng.IntN(50) == 0 {
				to = 3
			}
			n.send(n.now, 0, n.packet(to, uint32(i), 24+rng.IntN(1476)))
			sent++
			switch rng.IntN(100) {
			case 0:
				n.setParams(n.now, w, random())
			case 1:
				n.setCut(w, !w.cut)
			}
		}
		n.finish()
		if got := len(n.arrivals) + n.dropped; got != sent {
			t.Errorf("%d packets sent, %d arrived or dropped", sent, got)
		}
		if n.held != 0 {
			t.Errorf("%d bytes are still held", n.held)
		}
		for _, w := range n.wires {
			s := w.stats
			if got := s.Delivered + s.DroppedDown + s.DroppedLoss + s.DroppedQueue; got != s.Sent {
				t.Errorf("wire %d-%d: %d packets accounted for: %+v", w.from, w.to, got, s)
			}
		}
		last := map[int]uint32{}
		for _, a := range n.arrivals {
			if id, ok := last[a.node]; ok && a.id <= id {
				t.Fatalf("node %d: packet %d after %d", a.node, a.id, id)
			}
			last[a.node] = a.id
		}
	}
}

func TestJitter(t *testing.T) {
	const delay, jitter = 20 * time.Millisecond, 5 * time.Millisecond
	for _, gap := range []time.Duration{10 * time.Microsecond, time.Millisecond, time.Second} {
		n := newTestNet(1, 2)
		n.addLink(0, 1, Params{Delay: delay, Jitter: jitter})
		sum, low, high := 0.0, time.Hour, time.Duration(0)
		const packets = 200_000
		for i := range packets {
			n.run(n.now + int64(gap))
			n.send(n.now, 0, n.packet(1, uint32(i), 24))
		}
		n.finish()
		for i, a := range n.arrivals {
			if a.id != uint32(i) {
				t.Fatalf("gap %v: packet %d arrives as number %d", gap, a.id, i)
			}
			d := time.Duration(a.at - int64(i+1)*int64(gap))
			sum += float64(d)
			low, high = min(low, d), max(high, d)
		}
		mean := time.Duration(sum / packets)
		if low < delay-jitter || high > delay+jitter || (mean-delay).Abs() > jitter/10 || high-low < jitter {
			t.Errorf("gap %v: delay %v to %v, mean %v; want %v ± %v", gap, low, high, mean, delay, jitter)
		}
	}
}

func TestProbabilities(t *testing.T) {
	const packets = 100_000
	n := newTestNet(7, 2)
	p := Params{Delay: time.Millisecond, Loss: 0.01, Reorder: 0.05, Duplicate: 0.02}
	n.addLink(0, 1, p)
	for i := range packets {
		n.run(n.now + 10_000)
		n.send(n.now, 0, n.packet(1, uint32(i), 24))
	}
	n.finish()
	s := n.wires[[2]int{0, 1}].stats
	remaining := float64(s.Sent - s.DroppedLoss)
	for _, test := range []struct {
		what      string
		got       uint64
		of, share float64
	}{
		{"lost", s.DroppedLoss, packets, p.Loss},
		{"reordered", s.Reordered, remaining, p.Reorder},
		{"duplicated", s.Duplicated, remaining, p.Duplicate},
	} {
		want := test.of * test.share
		if sigma := math.Sqrt(want * (1 - test.share)); math.Abs(float64(test.got)-want) > 5*sigma {
			t.Errorf("%d packets %s, want %.0f ± %.0f", test.got, test.what, want, sigma)
		}
	}
	if want := s.Sent - s.DroppedLoss + s.Duplicated; uint64(len(n.arrivals)) != want || s.Delivered != want {
		t.Errorf("%d packets arrive, %d are counted, want %d", len(n.arrivals), s.Delivered, want)
	}
	// A packet held back by 2 ms is overtaken by those of the 2 ms behind it.
	overtaken := 0
	highest := uint32(0)
	for _, a := range n.arrivals {
		if a.id < highest {
			overtaken++
		}
		highest = max(highest, a.id)
	}
	if float64(overtaken) < 0.9*float64(s.Reordered) {
		t.Errorf("%d packets overtaken, want about %d", overtaken, s.Reordered)
	}
}

// The same seed makes the same decisions for the nth packet of a link,
// whatever goes on at other links.
func TestSeed(t *testing.T) {
	var got [2]string
	for run := range got {
		n := newTestNet(42, 3)
		n.addLink(0, 1, Params{Loss: 0.5})
		n.addLink(0, 2, Params{Loss: 0.5})
		for i := range 100 {
			n.send(0, 0, n.packet(1, uint32(i), 24))
			if run == 1 {
				n.send(0, 0, n.packet(2, uint32(i), 24))
			}
		}
		n.finish()
		for _, a := range n.arrivals {
			if a.node == 1 {
				got[run] += fmt.Sprint(a.id, " ")
			}
		}
	}
	if got[0] != got[1] || got[0] == "" {
		t.Errorf("survivors of two runs with one seed:\n%s\n%s", got[0], got[1])
	}
}

func TestRoutes(t *testing.T) {
	n := newTestNet(1, 5)
	// 0-1-2-3 with a short cut 0-3; 4 is alone.
	for _, l := range [][2]int{{0, 1}, {1, 2}, {2, 3}, {0, 3}} {
		n.addLink(l[0], l[1], Params{Delay: time.Millisecond})
	}
	n.send(0, 1, n.packet(3, 1, 24))
	n.send(0, 1, n.packet(4, 2, 24))
	n.send(0, 1, n.packet(9, 3, 24))
	n.send(0, 1, &packet{buf: []byte{0x60, 0, 0}})
	n.finish()
	if want := []arrival{{2_000_000, 3, 1, 24}}; !slices.Equal(n.arrivals, want) {
		t.Errorf("got %v, want %v", n.arrivals, want)
	}
	if n.unroutable != 3 {
		t.Errorf("%d packets unroutable, want 3", n.unroutable)
	}

	// A dead direct link is not gone round.
	n.setCut(n.wires[[2]int{0, 3}], true)
	n.send(n.now, 0, n.packet(3, 4, 24))
	n.finish()
	if len(n.arrivals) != 1 {
		t.Errorf("a packet found a way round a cut: %v", n.arrivals)
	}
}

func TestCutLosesWhatIsUnderWay(t *testing.T) {
	n := newTestNet(1, 2)
	n.addLink(0, 1, Params{Delay: 10 * time.Millisecond, Rate: 1_000_000, QueuePackets: 100})
	w := n.wires[[2]int{0, 1}]
	for i := range 10 {
		n.send(0, 0, n.packet(1, uint32(i), 125)) // 1 ms each
	}
	n.run(5_500_000) // five on the wire, five in the queue
	n.setCut(w, true)
	n.setCut(w, false)
	n.send(n.now, 0, n.packet(1, 99, 125))
	n.finish()
	if len(n.arrivals) != 1 || n.arrivals[0].id != 99 || w.stats.DroppedDown != 10 {
		t.Errorf("arrivals %v, stats %+v; want packet 99 alone", n.arrivals, w.stats)
	}
}

func TestChangeOfRateReachesTheQueue(t *testing.T) {
	n := newTestNet(1, 2)
	n.addLink(0, 1, Params{Rate: 1000, QueuePackets: 100})
	w := n.wires[[2]int{0, 1}]
	for i := range 10 {
		n.send(0, 0, n.packet(1, uint32(i), 125)) // 1 s each
	}
	n.run(1_500_000_000)
	n.setParams(n.now, w, Params{Rate: 1_000_000, QueuePackets: 100})
	n.finish()
	if last := n.arrivals[9].at; last > 1_600_000_000 {
		t.Errorf("the queue of a slow link takes until %v after it has become fast", time.Duration(last))
	}
}

func mustParams(t testing.TB, s string) Params {
	t.Helper()
	p, err := parseParams(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A thread that comes late to a packet whose time has passed does not send the
// next one before it was there.
func TestLateAdvanceKeepsOrderOfTime(t *testing.T) {
	n := newTestNet(1, 2)
	n.addLink(0, 1, mustParams(t, "rate=10mbit delay=5ms"))
	const sent = int64(15 * time.Millisecond)
	n.send(0, 0, n.packet(1, 1, 1250))
	n.send(sent, 0, n.packet(1, 2, 1250)) // nobody was there in between
	n.now = sent
	n.finish()
	if len(n.arrivals) != 2 {
		t.Fatalf("%d packets arrived, want 2", len(n.arrivals))
	}
	if got, want := n.arrivals[1].at, sent+int64(6*time.Millisecond); got != want {
		t.Errorf("the second packet arrived at %v, want %v", time.Duration(got), time.Duration(want))
	}
}
