package node

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"meshnode/mesh"
)

// protoLanes is for the pages that nobody waits for, and protoLane for one of the
// lanes that they may come in; see laneEntry.
const (
	protoLanes = "bulk-lanes"
	protoLane  = "bulk-lane"
)

const (
	// laneChunk is how much goes on a lane at once, and laneRun how much goes on
	// the stream itself before it is looked again whether lanes would be better,
	// both in bytes.
	laneChunk = 16 << 10
	laneRun   = 256 << 10
	// lanesFrom is how many packets must have been lost, and lanesShare of how
	// many packets one, before lanes are opened: below that a connection carries
	// 12 Mbit/s over a round trip of 40 ms, and more over a shorter one.
	lanesFrom  = 4
	lanesShare = 400
	// lanesRTT is the shortest round trip for which they are.
	lanesRTT = 5 * time.Millisecond
	// laneDial bounds opening a lane, and at the other end the wait for one that
	// was announced.
	laneDial = 10 * time.Second
)

// A laneKey names one stream to those who open lanes for it.
type laneKey [16]byte

// A laneStream is what streams and lanes are made of.
type laneStream interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// Lanes spread what a source sends over several connections. A congestion control
// that takes every loss for congestion gets 5 Mbit/s out of any link of 40 ms that
// loses one packet in a hundred (Mathis et al., The macroscopic behavior of the TCP
// congestion avoidance algorithm, 1997), and quic-go has no other. But it is not
// what keeps pages from pushing others aside: their pace is, which yields to any
// queue. So where packets are lost, several connections take what is free and no
// more.
//
// What the destination reads from the stream that it has dialled is a directory,
// big endian, and bytes:
//
//	lane    uint8   // 0: the bytes follow here; else they are on that lane
//	length  uint32  // at least 1
//
// It begins with a laneKey from the destination, and a lane, which the source
// opens, with that key and its number, a uint8. On a lane there are bytes and
// nothing else: who reads the directory knows how many, and needs no buffer to
// put them in order.
const laneEntry = 5

// A laneWriter is the source's end. One goroutine may write.
type laneWriter struct {
	laneStream
	rtt  func() (latest time.Duration, count uint64)
	loss func() (sent, lost uint64)
	// open opens a lane.
	open func(ctx context.Context, number int) (laneStream, error)

	ctx    context.Context
	cancel context.CancelCauseFunc
	tasks  sync.WaitGroup
	left   int // of the bytes announced on the stream itself
	// sent and lost are the connection's packets before this stream, and tried
	// says that lanes were opened since, or are being opened.
	sent, lost uint64
	tried      bool
	lanes      atomic.Int32 // that carry
	work       chan []byte  // what a lane is to take a copy of
	taken      chan int     // the lane that has
}

func newLaneWriter(ctx context.Context, s laneStream, rtt func() (time.Duration, uint64), loss func() (sent, lost uint64),
	open func(ctx context.Context, number int) (laneStream, error)) *laneWriter {

	w := &laneWriter{laneStream: s, rtt: rtt, loss: loss, open: open, work: make(chan []byte), taken: make(chan int)}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	w.sent, w.lost = loss()
	return w
}

// RTT is for package pager's pace.
func (w *laneWriter) RTT() (latest time.Duration, count uint64) { return w.rtt() }

// SetDeadline is for those who end a Write: one in the past is for good.
func (w *laneWriter) SetDeadline(at time.Time) error {
	if passed(at) {
		w.cancel(os.ErrDeadlineExceeded)
	}
	return w.laneStream.SetDeadline(at)
}

// passed reports whether a deadline is one that interrupts.
func passed(at time.Time) bool { return !at.IsZero() && !at.After(time.Now()) }

// close ends the lanes, and returns when nothing is written to them any more.
// The stream itself is its owner's.
func (w *laneWriter) close() {
	w.cancel(net.ErrClosed)
	w.tasks.Wait()
}

// Write returns when all of p is on its way, or in the buffer of a lane.
func (w *laneWriter) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		if w.ctx.Err() != nil {
			return n, context.Cause(w.ctx)
		}
		var k int
		switch {
		case w.left > 0:
			k, err = w.laneStream.Write(p[:min(len(p), w.left)])
			w.left -= k
		case w.lanes.Load() > 0:
			k, err = w.spread(p[:min(len(p), laneChunk)])
		default:
			w.look()
			w.left = laneRun
			err = w.announce(0, laneRun)
		}
		if n, p = n+k, p[k:]; err != nil {
			if w.ctx.Err() != nil {
				err = context.Cause(w.ctx)
			}
			return n, err
		}
	}
	return n, nil
}

func (w *laneWriter) announce(lane, length int) error {
	var e [laneEntry]byte
	e[0] = byte(lane)
	binary.BigEndian.PutUint32(e[1:], uint32(length))
	_, err := w.laneStream.Write(e[:])
	return err
}

// spread gives a chunk to the lane that is the first to have room.
func (w *laneWriter) spread(p []byte) (n int, err error) {
	select {
	case w.work <- p:
	case <-w.ctx.Done():
		return 0, context.Cause(w.ctx)
	}
	return len(p), w.announce(<-w.taken, len(p))
}

// look begins to open lanes if the way loses packets.
func (w *laneWriter) look() {
	sent, lost := w.loss()
	sent, lost = sent-w.sent, lost-min(w.lost, lost) // one that comes late after all is taken back
	rtt, _ := w.rtt()
	if w.tried || lost < lanesFrom || lost*lanesShare < sent || rtt < lanesRTT {
		return
	}
	w.tried = true
	for number := 1; number <= mesh.Lanes; number++ {
		w.tasks.Go(func() { w.carry(number) })
	}
}

// carry opens a lane and writes what it takes, until the writer is closed or a
// write fails, which ends the stream: it is the far side that opens another.
func (w *laneWriter) carry(number int) {
	ctx, cancel := context.WithTimeout(w.ctx, laneDial)
	s, err := w.open(ctx, number)
	cancel()
	if err != nil {
		return // the others do without it
	}
	defer s.Close()
	defer context.AfterFunc(w.ctx, func() { interrupt(s) })()
	w.lanes.Add(1)
	for buf := make([]byte, laneChunk); ; {
		select {
		case p := <-w.work:
			n := copy(buf, p)
			w.taken <- number // which spread waits for
			if _, err := s.Write(buf[:n]); err != nil {
				w.cancel(fmt.Errorf("lane %d: %w", number, err))
				interrupt(w.laneStream)
				return
			}
		case <-w.ctx.Done():
			return
		}
	}
}

// A laneReader is the destination's end. One goroutine may read while another
// writes.
type laneReader struct {
	laneStream
	rtt    func() (latest time.Duration, count uint64)
	forget func() // takes the reader off the list of those that wait for lanes

	entry [laneEntry]byte
	from  laneStream // of the bytes under way
	left  uint32     // of them

	once sync.Once
	over chan struct{} // closed when nothing is read any more

	mu    sync.Mutex
	lanes [mesh.Lanes]laneStream
	came  chan struct{} // closed and replaced when a lane came
}

func newLaneReader(s laneStream, rtt func() (time.Duration, uint64), forget func()) *laneReader {
	return &laneReader{laneStream: s, rtt: rtt, forget: forget, over: make(chan struct{}), came: make(chan struct{})}
}

// RTT is for package pager, which asks the source for what a round trip carries.
func (r *laneReader) RTT() (latest time.Duration, count uint64) { return r.rtt() }

// Read reads what was sent, whichever way it came.
func (r *laneReader) Read(p []byte) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	if r.left == 0 {
		if _, err := io.ReadFull(r.laneStream, r.entry[:]); err != nil {
			return 0, err // io.EOF between two entries is the end
		}
		if r.left = binary.BigEndian.Uint32(r.entry[1:]); r.left == 0 {
			return 0, errors.New("pages in lanes: an entry of no bytes")
		}
		if r.from, err = r.lane(r.entry[0]); err != nil {
			return 0, err
		}
	}
	n, err = r.from.Read(p[:min(len(p), int(min(r.left, laneRun)))])
	r.left -= uint32(n)
	if err == io.EOF && r.from != r.laneStream {
		// What was announced for the stream itself need not come: that is its end.
		if err = nil; r.left > 0 {
			err = io.ErrUnexpectedEOF
		}
	}
	return n, err
}

// lane returns the stream that an entry names, which may be on its way.
func (r *laneReader) lane(number byte) (laneStream, error) {
	switch {
	case number == 0:
		return r.laneStream, nil
	case number > mesh.Lanes:
		return nil, fmt.Errorf("pages in lanes: there is no lane %d", number)
	}
	limit := time.NewTimer(laneDial)
	defer limit.Stop()
	for {
		r.mu.Lock()
		s, came := r.lanes[number-1], r.came
		r.mu.Unlock()
		if s != nil {
			return s, nil
		}
		select {
		case <-came:
		case <-r.over:
			return nil, os.ErrDeadlineExceeded
		case <-limit.C:
			return nil, fmt.Errorf("pages in lanes: lane %d did not come", number)
		}
	}
}

// take reads from a lane from now on. It reports false if that number is taken,
// or none.
func (r *laneReader) take(number byte, s laneStream) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if number < 1 || number > mesh.Lanes || r.lanes[number-1] != nil {
		return false
	}
	r.lanes[number-1] = s
	close(r.came)
	r.came = make(chan struct{})
	return true
}

// end lets no Read begin to wait, and interrupts those that do.
func (r *laneReader) end() {
	r.once.Do(func() {
		close(r.over)
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, s := range r.lanes {
			if s != nil {
				interrupt(s)
			}
		}
	})
}

// SetDeadline is for those who end a Read: one in the past is for good.
func (r *laneReader) SetDeadline(at time.Time) error {
	if passed(at) {
		r.end()
	}
	return r.laneStream.SetDeadline(at)
}

// Close ends the stream and its lanes.
func (r *laneReader) Close() error {
	r.forget()
	r.end()
	return r.laneStream.Close()
}

// openLanes opens a stream of pages that may come in lanes.
func (n *Node) openLanes(ctx context.Context, from mesh.NodeID) (io.ReadWriteCloser, error) {
	s, err := n.mesh.Open(ctx, from, protoLanes, mesh.Bulk)
	if err != nil {
		return nil, err
	}
	var key laneKey
	_, _ = rand.Read(key[:]) // never fails
	r := newLaneReader(s, s.RTT, func() {
		n.mu.Lock()
		delete(n.lanes, key)
		n.mu.Unlock()
	})
	n.mu.Lock()
	n.lanes[key] = laneHome{from: from, reader: r}
	n.mu.Unlock()
	if _, err := s.Write(key[:]); err != nil {
		_ = r.Close()
		return nil, err
	}
	return r, nil
}

// A laneHome is a stream that waits for lanes from a node.
type laneHome struct {
	from   mesh.NodeID
	reader *laneReader
}

// serveLane takes a lane, and holds it for as long as the stream lives.
func (n *Node) serveLane(ctx context.Context, s *mesh.Stream) {
	defer s.Close()
	var head [len(laneKey{}) + 1]byte
	err := soon(s, true)
	if err == nil {
		_, err = io.ReadFull(s, head[:])
	}
	if err == nil {
		err = soon(s, false)
	}
	if err != nil {
		n.log.Debug("lane without a head", "peer", s.Peer(), "error", err)
		return
	}
	n.mu.Lock()
	home, ok := n.lanes[laneKey(head[:len(laneKey{})])]
	n.mu.Unlock()
	if !ok || home.from != s.Peer() || !home.reader.take(head[len(head)-1], s) {
		n.log.Debug("lane that nobody waits for", "peer", s.Peer())
		return
	}
	select {
	case <-home.reader.over:
	case <-ctx.Done():
	}
}

// serveInLanes is servePages for a stream that may use lanes.
func (n *Node) serveInLanes(ctx context.Context, s *mesh.Stream) {
	var key laneKey
	err := soon(s, true)
	if err == nil {
		_, err = io.ReadFull(s, key[:])
	}
	if err != nil {
		n.log.Debug("page stream without a key", "peer", s.Peer(), "error", err)
		return
	}
	w := newLaneWriter(ctx, s, s.RTT, s.Loss, func(ctx context.Context, number int) (laneStream, error) {
		lane, err := n.mesh.Open(ctx, s.Peer(), protoLane, mesh.Lane(number))
		if err != nil {
			return nil, err
		}
		if _, err := lane.Write(append(key[:len(key):len(key)], byte(number))); err != nil {
			lane.Close()
			return nil, err
		}
		return lane, nil
	})
	defer w.close()
	n.servePagesOn(ctx, s, w)
}
