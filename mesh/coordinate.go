package mesh

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/hashicorp/serf/coordinate"
)

// Dimensions of a Coordinate, beside its height. Two to three capture most of
// what there is in the Internet's round trips (Dabek et al., section 5).
const Dimensions = 4

// A Coordinate places a node so that distances predict round trips (Dabek,
// Cox, Kaashoek, Morris: "Vivaldi", SIGCOMM 2004). Every node computes its own
// from round trips to others and their coordinates. The zero Coordinate is
// none.
type Coordinate struct {
	// Vec is the place in the core of the network, in seconds.
	Vec [Dimensions]float64
	// Height is the part of every round trip that is spent before the core,
	// in seconds: the access link. It is above zero wherever there is a
	// coordinate.
	Height float64
	// Adjustment is added to every distance, in seconds. It stands for what no
	// Euclidean space can express (Lee et al.: "On suitability of Euclidean
	// embedding for host-based network coordinate systems", 2010).
	Adjustment float64
	// Error is the expected relative error, 0 to 1.5.
	Error float64
}

// Known reports whether c is a coordinate.
func (c Coordinate) Known() bool { return c.Height > 0 }

// RTT returns the round trip to expect between two coordinates. It is false
// when one of them is none.
func (c Coordinate) RTT(d Coordinate) (time.Duration, bool) {
	if !c.Known() || !d.Known() {
		return 0, false
	}
	return c.vivaldi().DistanceTo(d.vivaldi()), true
}

func (c Coordinate) vivaldi() *coordinate.Coordinate {
	return &coordinate.Coordinate{Vec: c.Vec[:], Error: c.Error, Adjustment: c.Adjustment, Height: c.Height}
}

func fromVivaldi(v *coordinate.Coordinate) Coordinate {
	return Coordinate{Vec: [Dimensions]float64(v.Vec), Height: v.Height, Adjustment: v.Adjustment, Error: v.Error}
}

// away is by how much an estimate to or from c changes at most when it moves
// to d, in seconds.
func (c Coordinate) away(d Coordinate) float64 {
	s := 0.0
	for i := range c.Vec {
		x := c.Vec[i] - d.Vec[i]
		s += x * x
	}
	return math.Sqrt(s) + math.Abs(c.Height-d.Height) + math.Abs(c.Adjustment-d.Adjustment)
}

// The wire format of a coordinate, in a record and in the answer to a probe, is
// an array of integers: the vector, height, adjustment, each in units of
// coordinateUnit seconds, and the error in hundredths. None is beyond
// maxCoordinate: 1.3 seconds are not a distance but a disturbance. So whatever
// a peer sends is finite and of a size that arithmetic bears.
type coordinateWire []int32

const (
	coordinateUnit  = 20e-6
	maxCoordinate   = math.MaxUint16
	maxCoordError   = 150
	coordinateWords = Dimensions + 3
)

// wire returns c quantised, nil for none, and false if c is beyond what a
// coordinate can be.
func (c Coordinate) wire() (coordinateWire, bool) {
	if c == (Coordinate{}) {
		return nil, true
	}
	w := make(coordinateWire, 0, coordinateWords)
	for _, x := range append(c.Vec[:len(c.Vec):len(c.Vec)], c.Height, c.Adjustment) {
		x = math.Round(x / coordinateUnit)
		if !(math.Abs(x) <= maxCoordinate) {
			return nil, false
		}
		w = append(w, int32(x))
	}
	w[Dimensions] = max(w[Dimensions], 1) // none has height zero
	e := math.Round(c.Error * 100)
	if !(c.Height > 0) || !(e >= 0 && e <= maxCoordError) {
		return nil, false
	}
	return append(w, int32(e)), true
}

// coordinate checks what a peer sent.
func (w coordinateWire) coordinate() (Coordinate, error) {
	var c Coordinate
	if len(w) == 0 {
		return c, nil
	}
	if len(w) != coordinateWords {
		return c, fmt.Errorf("%w: coordinate of %d numbers, want %d", ErrMalformed, len(w), coordinateWords)
	}
	last := len(w) - 1
	for _, x := range w[:last] {
		if x < -maxCoordinate || x > maxCoordinate {
			return c, fmt.Errorf("%w: coordinate with %v seconds in it", ErrMalformed, float64(x)*coordinateUnit)
		}
	}
	if w[Dimensions] < 1 || w[last] < 0 || w[last] > maxCoordError {
		return c, fmt.Errorf("%w: coordinate with height %d and error %d%%", ErrMalformed, w[Dimensions], w[last])
	}
	for i := range c.Vec {
		c.Vec[i] = float64(w[i]) * coordinateUnit
	}
	c.Height = float64(w[Dimensions]) * coordinateUnit
	c.Adjustment = float64(w[Dimensions+1]) * coordinateUnit
	c.Error = float64(w[last]) / 100
	return c, nil
}

// quantised returns c as others will see it.
func (c Coordinate) quantised() Coordinate {
	w, ok := c.wire()
	if !ok {
		return Coordinate{}
	}
	q, err := w.coordinate()
	if err != nil {
		panic(err) // wire and coordinate disagree
	}
	return q
}

const (
	// maxSample is the longest round trip that says something about distance.
	maxSample = time.Second
	// maxStep is how far one sample may move the coordinate, in seconds, and
	// maxDoubt by how much it may raise the expected error: a node that lies,
	// or whose coordinate is still far off, must not undo what many others
	// agree on. From nowhere to another continent it is a minute of samples.
	maxStep  = 10e-3
	maxDoubt = 0.1
)

// A positioner keeps this node's coordinate. Safe for concurrent use.
type positioner struct {
	mu sync.Mutex
	v  *coordinate.Client
	at Coordinate // as others will see it
}

func newPositioner() *positioner {
	c := coordinate.DefaultConfig()
	c.Dimensionality = Dimensions
	c.HeightMin = coordinateUnit
	v, err := coordinate.NewClient(c)
	if err != nil {
		panic(err) // our own configuration
	}
	return &positioner{v: v}
}

// update takes in a round trip to a peer that says where it is. Of the last
// three to the same peer the median counts.
func (p *positioner) update(peer NodeID, where Coordinate, rtt time.Duration) {
	if !where.Known() || rtt <= 0 || rtt > maxSample {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.v.GetCoordinate()
	next, err := p.v.Update(string(peer), where.vivaldi(), rtt)
	if err != nil {
		return // refused, and nothing has changed
	}
	if step := fromVivaldi(old).away(fromVivaldi(next)); step > maxStep || next.Error > old.Error+maxDoubt {
		f := min(1, maxStep/step)
		for i := range next.Vec {
			next.Vec[i] = old.Vec[i] + f*(next.Vec[i]-old.Vec[i])
		}
		next.Height = old.Height + f*(next.Height-old.Height)
		next.Adjustment = old.Adjustment + f*(next.Adjustment-old.Adjustment)
		next.Error = min(next.Error, old.Error+maxDoubt)
		if p.v.SetCoordinate(next) != nil {
			return // not a number: Update has started over by itself
		}
	}
	p.at = fromVivaldi(next).quantised()
}

// place returns where this node is. Until the first round trip that is the
// origin, of which nothing can be expected.
func (p *positioner) place() Coordinate {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.at.Known() {
		return fromVivaldi(p.v.GetCoordinate()).quantised()
	}
	return p.at
}

// known returns where this node has been found to be; none before the first
// round trip.
func (p *positioner) known() Coordinate {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at
}

func (p *positioner) forget(peer NodeID) { p.v.ForgetNode(string(peer)) }

// pingDelegate feeds the coordinate from memberlist's probes, which are sent
// anyway: the answer carries where its sender is.
type pingDelegate struct{ m *Mesh }

var _ memberlist.PingDelegate = pingDelegate{}

// AckPayload implements memberlist.PingDelegate.
func (d pingDelegate) AckPayload() []byte {
	w, ok := d.m.position.place().wire()
	if !ok {
		return nil
	}
	b, err := encode(w)
	if err != nil {
		return nil
	}
	return b
}

// maxAck bounds the coordinate in an answer, in bytes.
const maxAck = 64

func parseAck(b []byte) (Coordinate, error) {
	if len(b) > maxAck {
		return Coordinate{}, fmt.Errorf("%w: coordinate of %d bytes", ErrTooLarge, len(b))
	}
	var w coordinateWire
	if err := decode(b, &w); err != nil {
		return Coordinate{}, err
	}
	return w.coordinate()
}

// NotifyPingComplete implements memberlist.PingDelegate.
func (d pingDelegate) NotifyPingComplete(n *memberlist.Node, rtt time.Duration, payload []byte) {
	id := NodeID(n.Name)
	where, err := parseAck(payload)
	if err != nil || id == d.m.ms.ID {
		return
	}
	// Where there was no connection yet, the probe has waited for one. QUIC's
	// own figure has no such wait in it, but sometimes the peer's delay in
	// acknowledging.
	if q := d.m.t.smoothed(id); q > 0 {
		rtt = min(rtt, q)
	}
	d.m.position.update(id, where, rtt)
	d.m.tellPlace()
}

// smoothed returns QUIC's smoothed round trip to a peer (RFC 9002, section
// 5.3), 0 if there is no connection.
func (t *transport) smoothed(id NodeID) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peers[id]
	if p == nil {
		return 0
	}
	c := p.links[Urgent].current()
	if c == nil {
		return 0
	}
	return c.q.ConnectionStats().SmoothedRTT
}

const (
	// A move of the coordinate is worth a record of its own when estimates
	// change by more than minShift seconds and the part shiftShare of what is
	// typical for them, and when the last such record is shiftPause ago; in a
	// large mesh shiftPer for each member on average, since everyone passes on
	// what anyone says. Neighbours learn more often: from answers to probes.
	minShift   = 1e-3
	shiftShare = 0.1
	shiftPause = 10 * time.Second
	shiftPer   = 2 * time.Second
	// The first such record waits up to shiftFirst for each member longer.
	shiftFirst = time.Second / 2
)

// placePause returns how long this node says nothing of its coordinate alone,
// in a mesh of size nodes; draw is from 0 to 1. Chance keeps nodes that
// started together from telling together: with fixed pauses 200 nodes told 200
// records within seconds, every two minutes, and the news of that time took
// twenty seconds to get through.
func placePause(size int, told bool, draw float64) time.Duration {
	each := float64(size) * draw
	if !told {
		return shiftPause + time.Duration(each*float64(shiftFirst)) // the very first samples say little
	}
	return max(shiftPause, time.Duration(2*each*float64(shiftPer)))
}

// tellPlace has the record told anew when this node's coordinate has moved by
// enough. Smaller moves go along with other changes.
func (m *Mesh) tellPlace() {
	now := m.position.known()
	members := m.Size()
	m.mu.Lock()
	told := m.record.Coordinate
	size := told.away(Coordinate{})
	pause := placePause(members, told.Known(), m.placeDraw)
	worth := !told.Known() && now.Known() || now.away(told) > max(minShift, shiftShare*size)
	if !worth || time.Since(m.toldPlace) < pause {
		m.mu.Unlock()
		return
	}
	m.toldPlace, m.placeDraw = time.Now(), rand.Float64()
	err := m.sealRecordLocked()
	m.mu.Unlock()
	if err != nil {
		m.log.Error("coordinate not told", "err", err)
		return
	}
	m.markDirty()
}

// Estimate returns the round trip to expect between two members, by what both
// say of where they are; a may be b. It is false when one of them is unknown
// or has not found out yet.
func (m *Mesh) Estimate(a, b NodeID) (time.Duration, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.memberLocked(a).Record.Coordinate.RTT(m.memberLocked(b).Record.Coordinate)
}
