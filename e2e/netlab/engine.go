package netlab

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"net/netip"
	"time"
)

// maxInFlight limits the packet bytes the emulator holds in all, so that a
// sender on a link without a rate but with a long delay cannot take all
// memory.
const maxInFlight = 512 << 20

// A packet is one IP packet on its way. The engine owns it from send until
// it is delivered or dropped.
type packet struct {
	buf []byte // the whole packet, from the IP header on; capacity bufferBytes
	dst int    // the node it goes to
	via uint32 // the wire's cuts when it was put on the wire
}

// bufferBytes is the capacity of a packet's buffer.
const bufferBytes = 2048

// WireStats counts what happened in one direction of a link, in packets if
// the name says nothing else.
type WireStats struct {
	Sent           uint64 // offered to the link
	SentBytes      uint64
	Delivered      uint64 // arrived at the other end, duplicates included
	DeliveredBytes uint64
	DroppedQueue   uint64 // found the queue full
	DroppedLoss    uint64 // lost at random
	DroppedDown    uint64 // were on a link that was down or cut
	Reordered      uint64
	Duplicated     uint64
}

// A wire is one direction of a link.
type wire struct {
	from, to int
	p        Params
	cut      bool
	cuts     uint32 // how often it was cut: what was on it then is lost

	// The transmitter. free is the theoretical arrival time of GCRA: when the
	// link would be idle if it had no burst. The packet at the head of the
	// queue is being sent since headSince and is through at headDone.
	queue      []*packet
	head       int // index in queue of the first packet still waiting
	queueBytes int
	free       int64
	headSince  int64
	version    uint32 // of the departure event in force; older ones are void

	lastArrival int64

	jitterFrom, jitterTo struct {
		at     int64
		offset float64
	}

	rng   *rand.Rand
	stats WireStats
}

func (w *wire) waiting() int { return len(w.queue) - w.head }

func (w *wire) pop() *packet {
	p := w.queue[w.head]
	w.queue[w.head] = nil
	w.head++
	w.queueBytes -= len(p.buf)
	if w.head == len(w.queue) {
		w.queue, w.head = w.queue[:0], 0
	} else if w.head >= 1024 && w.head > len(w.queue)/2 {
		n := copy(w.queue, w.queue[w.head:])
		clear(w.queue[n:])
		w.queue, w.head = w.queue[:n], 0
	}
	return p
}

// departure is when the packet at the head of the queue has been sent, and
// the transmitter's free then. GCRA with the packet's own transmission time
// added: an idle link has saved up at most Burst bytes of sending.
func (w *wire) departure() (at, free int64) {
	if w.p.Rate == 0 {
		return w.headSince, w.headSince
	}
	size := len(w.queue[w.head].buf)
	credit := int64(w.p.Burst) * 8 * int64(time.Second) / w.p.Rate
	free = max(w.free, w.headSince-credit) + int64(size)*8*int64(time.Second)/w.p.Rate
	return max(w.headSince, free), free
}

// delay is the propagation delay of a packet that leaves at t. For jitter it
// follows a broken line between random offsets 4 × Jitter apart. Its slope is
// at most a half, so that of two packets the later one also arrives later,
// and the mean is Delay at any packet rate; clamping independent draws would
// keep the order too, but with packets close together push all of them
// towards Delay + Jitter.
func (w *wire) delay(t int64) int64 {
	d := int64(w.p.Delay)
	if w.p.Jitter == 0 {
		return d
	}
	step := 4 * int64(w.p.Jitter)
	draw := func() float64 { return (2*w.rng.Float64() - 1) * float64(w.p.Jitter) }
	if t >= w.jitterTo.at {
		w.jitterFrom = w.jitterTo
		if t-w.jitterTo.at >= step { // idle for so long that it starts anew
			w.jitterFrom.at, w.jitterFrom.offset = t, draw()
		}
		w.jitterTo.at, w.jitterTo.offset = w.jitterFrom.at+step, draw()
	}
	x := float64(t-w.jitterFrom.at) / float64(w.jitterTo.at-w.jitterFrom.at)
	return d + int64(w.jitterFrom.offset+x*(w.jitterTo.offset-w.jitterFrom.offset))
}

// An event is the arrival of packet p at the far end of w or, if p is nil,
// the departure of the head of w's queue.
type event struct {
	at      int64
	seq     uint64 // among events of the same time, the order of their making
	w       *wire
	p       *packet
	version uint32
}

func (e *event) before(f *event) bool {
	return e.at < f.at || e.at == f.at && e.seq < f.seq
}

// An engine is the emulation without I/O: packets and the time go in, packets
// and the time of the next event come out. Times are nanoseconds on any clock
// that does not go back. Not safe for concurrent use.
type engine struct {
	// deliver takes a packet that has reached node; it owns it from then on.
	deliver func(node int, p *packet)
	// drop takes back a packet that goes nowhere.
	drop func(p *packet)
	// late, if not nil, is told how long after its time each packet is
	// delivered.
	late func(int64)
	seed uint64

	nodes  int
	addrs  map[netip.Addr]int
	wires  map[[2]int]*wire
	next   [][]*wire // next[a][b] is the first wire from a to b, nil if none
	events []event   // a binary heap
	seq    uint64
	held   int // bytes in queues and on wires

	// unroutable counts packets for addresses that no node has or that no
	// links lead to; overflowed those dropped for maxInFlight.
	unroutable, overflowed uint64
}

func newEngine(seed uint64, deliver func(int, *packet), drop func(*packet)) *engine {
	return &engine{
		deliver: deliver, drop: drop, seed: seed,
		addrs: make(map[netip.Addr]int), wires: make(map[[2]int]*wire),
	}
}

func (e *engine) addNode() int {
	e.nodes++
	e.route()
	return e.nodes - 1
}

// addLink joins two nodes. The random numbers of each direction depend on the
// seed and the two nodes alone, so what happens to its nth packet does not
// depend on the traffic elsewhere.
func (e *engine) addLink(a, b int, p Params) {
	for _, ends := range [][2]int{{a, b}, {b, a}} {
		e.wires[ends] = &wire{
			from: ends[0], to: ends[1], p: p,
			free: math.MinInt64, // idle for ever, the burst saved up
			rng:  rand.New(rand.NewPCG(e.seed, uint64(ends[0])<<32|uint64(ends[1]))),
		}
	}
	e.route()
}

// route finds the fewest hops between all nodes, breadth first. Links that are
// cut count as well: like two static routers with a dead cable between them,
// the lab does not heal a cut by going round it.
func (e *engine) route() {
	e.next = make([][]*wire, e.nodes)
	for a := range e.next {
		e.next[a] = make([]*wire, e.nodes)
		seen := make([]bool, e.nodes)
		seen[a] = true
		for frontier := []int{a}; len(frontier) > 0; frontier = frontier[1:] {
			at := frontier[0]
			for to := range e.nodes {
				w := e.wires[[2]int{at, to}]
				if w == nil || seen[to] {
					continue
				}
				seen[to] = true
				if at == a {
					e.next[a][to] = w
				} else {
					e.next[a][to] = e.next[a][at]
				}
				frontier = append(frontier, to)
			}
		}
	}
}

// setParams changes a wire at time now, also for what already waits for its
// rate; what has left its transmitter arrives as it would have.
func (e *engine) setParams(now int64, w *wire, p Params) {
	w.p = p
	w.jitterFrom.at, w.jitterTo.at = 0, 0
	if p.Down {
		e.loseAll(w)
	}
	if w.waiting() > 0 {
		w.headSince = now
		e.schedule(w)
	}
}

// setCut cuts or heals a wire.
func (e *engine) setCut(w *wire, cut bool) {
	w.cut = cut
	if cut {
		e.loseAll(w)
	}
}

func (e *engine) loseAll(w *wire) {
	w.cuts++ // what is on the wire is dropped when its time comes
	for w.waiting() > 0 {
		e.discard(w.pop(), &w.stats.DroppedDown)
	}
	w.version++
}

func (e *engine) discard(p *packet, counter *uint64) {
	*counter++
	e.held -= len(p.buf)
	e.drop(p)
}

// send takes a packet from a node's kernel.
func (e *engine) send(now int64, from int, p *packet) {
	// What is due comes first. A packet that was queued behind one whose time
	// had passed took over its time, and arrived before it was sent whenever
	// the emulator's thread was late.
	e.advance(now)
	e.held += len(p.buf)
	dst, ok := destination(p.buf)
	if !ok {
		e.discard(p, &e.unroutable)
		return
	}
	if p.dst, ok = e.addrs[dst]; !ok || p.dst == from {
		e.discard(p, &e.unroutable)
		return
	}
	e.forward(now, from, p)
}

// destination reads the destination address of an IPv4 packet (RFC 791,
// section 3.1).
func destination(b []byte) (netip.Addr, bool) {
	if len(b) < 20 || b[0]>>4 != 4 || int(binary.BigEndian.Uint16(b[2:])) != len(b) {
		return netip.Addr{}, false
	}
	return netip.AddrFrom4([4]byte(b[16:20])), true
}

// forward puts a packet that is at a node into the queue of the next wire.
func (e *engine) forward(now int64, at int, p *packet) {
	w := e.next[at][p.dst]
	if w == nil {
		e.discard(p, &e.unroutable)
		return
	}
	w.stats.Sent++
	w.stats.SentBytes += uint64(len(p.buf))
	if w.cut || w.p.Down {
		e.discard(p, &w.stats.DroppedDown)
		return
	}
	if e.held > maxInFlight {
		e.discard(p, &e.overflowed)
		return
	}
	if w.p.Rate == 0 && w.waiting() == 0 {
		e.transmitted(now, w, p)
		return
	}
	if bytes, packets := w.p.queueLimit(); w.queueBytes+len(p.buf) > bytes || w.waiting() >= packets {
		e.discard(p, &w.stats.DroppedQueue)
		return
	}
	w.queue = append(w.queue, p)
	w.queueBytes += len(p.buf)
	if w.waiting() == 1 {
		w.headSince = now
		e.schedule(w)
	}
}

// schedule makes the event at which the head of w's queue has been sent.
func (e *engine) schedule(w *wire) {
	w.version++
	at, _ := w.departure()
	e.push(event{at: at, w: w, version: w.version})
}

// transmitted puts a packet that has left the transmitter at t on the wire.
func (e *engine) transmitted(t int64, w *wire, p *packet) {
	if w.p.Loss > 0 && w.rng.Float64() < w.p.Loss {
		e.discard(p, &w.stats.DroppedLoss)
		return
	}
	p.via = w.cuts
	at := t + w.delay(t)
	if w.p.Reorder > 0 && w.rng.Float64() < w.p.Reorder {
		w.stats.Reordered++
		by := w.p.ReorderBy
		if by == 0 {
			by = defaultReorderBy
		}
		at += int64(by)
	} else {
		// Only a change of the delay can make this a limit.
		at = max(at, w.lastArrival)
		w.lastArrival = at
	}
	if w.p.Duplicate > 0 && w.rng.Float64() < w.p.Duplicate {
		w.stats.Duplicated++
		again := &packet{buf: append(make([]byte, 0, bufferBytes), p.buf...), dst: p.dst, via: p.via}
		e.held += len(again.buf)
		e.push(event{at: at, w: w, p: again})
	}
	e.push(event{at: at, w: w, p: p})
}

// deadline is the time of the next event, MaxInt64 if there is none.
func (e *engine) deadline() int64 {
	if len(e.events) == 0 {
		return math.MaxInt64
	}
	return e.events[0].at
}

// advance does all that is due by now. An event happens at its own time, not
// at now, so that a late call does not add up over hops or lower a rate.
func (e *engine) advance(now int64) {
	for len(e.events) > 0 && e.events[0].at <= now {
		ev := e.popEvent()
		w := ev.w
		if ev.p == nil {
			if ev.version != w.version {
				continue
			}
			_, w.free = w.departure()
			p := w.pop()
			if w.waiting() > 0 {
				w.headSince = ev.at
				e.schedule(w)
			}
			e.transmitted(ev.at, w, p)
			continue
		}
		p := ev.p
		if p.via != w.cuts {
			e.discard(p, &w.stats.DroppedDown)
			continue
		}
		w.stats.Delivered++
		w.stats.DeliveredBytes += uint64(len(p.buf))
		if p.dst == w.to {
			if e.late != nil {
				e.late(now - ev.at)
			}
			e.held -= len(p.buf)
			e.deliver(p.dst, p)
		} else {
			e.forward(ev.at, w.to, p)
		}
	}
}

func (e *engine) push(ev event) {
	e.seq++
	ev.seq = e.seq
	h := append(e.events, ev)
	i := len(h) - 1
	for i > 0 {
		parent := (i - 1) / 2
		if !ev.before(&h[parent]) {
			break
		}
		h[i] = h[parent]
		i = parent
	}
	h[i] = ev
	e.events = h
}

func (e *engine) popEvent() event {
	h := e.events
	top, last := h[0], h[len(h)-1]
	h[len(h)-1] = event{}
	h = h[:len(h)-1]
	e.events = h
	if len(h) == 0 {
		return top
	}
	i := 0
	for {
		child := 2*i + 1
		if child >= len(h) {
			break
		}
		if child+1 < len(h) && h[child+1].before(&h[child]) {
			child++
		}
		if !h[child].before(&last) {
			break
		}
		h[i] = h[child]
		i = child
	}
	h[i] = last
	return top
}
