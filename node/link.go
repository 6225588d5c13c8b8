package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"meshnode/mesh"
	"meshnode/node/handover"
)

// protoHandover carries the control messages of one move. Either side may open
// the stream; the newest one is used. It begins with a Hello.
const protoHandover = "handover"

// protoCopies carries a second copy of a message for which a worker stands
// still, alone on its stream: a handoverFrame. A packet that is lost is only
// missed when what follows it is acknowledged, and nothing follows here until the
// answer comes: QUIC then waits for a round trip and 25 ms and more (RFC 9002,
// section 6.2). The copy is in another packet and does not wait for the first.
const protoCopies = "handover-copies"

const (
	// copyAfter is how long after a message its copy leaves: often the answer is
	// here by then, or else losses that come together are over.
	copyAfter = 5 * time.Millisecond
	// maxCopy bounds what is sent twice, in bytes. Of a longer message most
	// losses show by the packets behind them.
	maxCopy = 16 << 10
)

// A handoverFrame has exactly one field set.
type handoverFrame struct {
	Hello   *handoverHello `cbor:"1,keyasint,omitempty"`
	Message []byte         `cbor:"2,keyasint,omitempty"` // handover.Message, encoded
	Report  *moveReport    `cbor:"3,keyasint,omitempty"`
	// Blackout is what the source measured, for the destination, which promises
	// how long it takes at most and cannot see it.
	Blackout time.Duration `cbor:"4,keyasint,omitempty"`
}

type handoverHello struct {
	Move        handover.MoveID `cbor:"1,keyasint"`
	Incarnation uint64          `cbor:"2,keyasint"`
	// Dial counts the streams that the node has dialled since it started.
	Dial uint64 `cbor:"3,keyasint,omitempty"`
}

// maxHandoverFrame bounds a frame, in bytes: a COMMIT with the largest image.
const maxHandoverFrame = maxImage + 128<<10

// linkQueue is how many messages may wait to be written. The machines repeat
// what matters, so what does not fit is dropped.
const linkQueue = 16

// A link is one side's end of a move's control stream. It dials when there is
// something to say and no stream, and tells the machine when the path breaks
// and when it is there again.
//
// Both ends may dial at the same moment. Were each to close the older of two
// streams, each would close the other's, and both would dial again, perhaps for
// ever. So a link has room for one stream of each side's making, reads both, and
// writes to the one that came last. Only a newer stream of the same side takes
// a stream's place: who dialled it has given the older one up. Which is newer the
// dialler says, as two of its streams may be met in either order.
type link struct {
	n    *Node
	move handover.MoveID
	peer mesh.NodeID
	feed func(handover.Event)

	out chan handoverFrame

	mu      sync.Mutex
	stream  *mesh.Stream // written to; one of the two
	own     *mesh.Stream // that this side dialled
	theirs  *mesh.Stream // that the peer did
	newest  struct{ own, theirs handoverHello }
	dialing bool
	closed  bool
}

func (n *Node) newLink(move handover.MoveID, peer mesh.NodeID, feed func(handover.Event)) *link {
	return &link{n: n, move: move, peer: peer, feed: feed, out: make(chan handoverFrame, linkQueue)}
}

// run writes what send queues, until ctx is done.
func (l *link) run(ctx context.Context) {
	defer l.close()
	// A peer that does not read must not hold the node up when it stops.
	stop := context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.stream != nil {
			_ = l.stream.SetWriteDeadline(time.Now().Add(time.Second))
		}
	})
	defer stop()
	for {
		select {
		case f := <-l.out:
			if s := l.connected(ctx); s != nil {
				if err := mesh.WriteMessage(s, f); err != nil {
					l.broken(s, err)
				}
			}
		case <-ctx.Done():
			// What was said last, DONE perhaps, still goes out.
			for {
				select {
				case f := <-l.out:
					l.mu.Lock()
					s := l.stream
					l.mu.Unlock()
					if s == nil || mesh.WriteMessage(s, f) != nil {
						return
					}
				default:
					return
				}
			}
		}
	}
}

// send queues a message. It does not block.
func (l *link) send(m handover.Message) {
	b, err := handover.Limits{}.Encode(m)
	if err != nil {
		l.n.log.Error("hand-over message not sent", "move", l.move, "error", err)
		return
	}
	l.put(handoverFrame{Message: b})
}

// sendCopy sends a message once more after copyAfter, beside the stream of the
// others, unless it was answered by then: nil for one without an answer. It does
// not block.
func (l *link) sendCopy(ctx context.Context, m handover.Message, answered <-chan struct{}) {
	b, err := handover.Limits{}.Encode(m)
	if err != nil || len(b) > maxCopy {
		return // what is wrong with it, send has said
	}
	l.n.tasks.Go(func() {
		select {
		case <-time.After(copyAfter):
		case <-answered:
			return
		case <-ctx.Done():
			return
		}
		s, err := l.n.mesh.Open(ctx, l.peer, protoCopies, mesh.Urgent)
		if err != nil {
			return // the first tells of the path
		}
		defer s.Close()
		_ = mesh.WriteMessage(s, handoverFrame{Message: b})
	})
}

// report queues what only this side knows.
func (l *link) report(r moveReport) { l.put(handoverFrame{Report: &r}) }

// tellBlackout queues how long the worker ran nowhere.
func (l *link) tellBlackout(d time.Duration) { l.put(handoverFrame{Blackout: d}) }

func (l *link) put(f handoverFrame) {
	select {
	case l.out <- f:
	default:
		l.n.log.Warn("hand-over message dropped", "move", l.move, "peer", l.peer)
	}
}

// connected returns the stream, dialling if there is none.
func (l *link) connected(ctx context.Context) *mesh.Stream {
	l.mu.Lock()
	s := l.stream
	l.mu.Unlock()
	if s != nil {
		return s
	}
	s, err := l.dial(ctx)
	if err != nil {
		l.n.log.Debug("hand-over peer not reached", "move", l.move, "peer", l.peer, "error", err)
		l.feed(handover.PathDown{})
		l.redial(ctx)
		return nil
	}
	return s
}

func (l *link) dial(ctx context.Context) (*mesh.Stream, error) {
	s, err := l.n.mesh.Open(ctx, l.peer, protoHandover, mesh.Urgent)
	if err != nil {
		return nil, err
	}
	hello := handoverHello{Move: l.move, Incarnation: l.n.incarnation, Dial: l.n.dials.Add(1)}
	if err := mesh.WriteMessage(s, handoverFrame{Hello: &hello}); err != nil {
		s.Close()
		return nil, err
	}
	l.attach(s, true, hello)
	l.n.tasks.Go(func() { l.n.readHandover(s.Context(), s, l.move) })
	return s, nil
}

// redial keeps trying in the background until there is a stream, from
// whichever side.
func (l *link) redial(ctx context.Context) {
	l.mu.Lock()
	if l.dialing || l.closed {
		l.mu.Unlock()
		return
	}
	l.dialing = true
	l.mu.Unlock()
	l.n.tasks.Go(func() {
		defer func() {
			l.mu.Lock()
			l.dialing = false
			l.mu.Unlock()
		}()
		wait := retryWait{min: 100 * time.Millisecond, max: 3 * time.Second}
		for wait.pause(ctx, nil) {
			l.mu.Lock()
			there := l.stream != nil || l.closed
			l.mu.Unlock()
			if there {
				return
			}
			if _, err := l.dial(ctx); err == nil {
				return
			}
		}
	})
}

// attach takes a stream that began with hello as the one to write to, own if
// this side dialled it, and tells the machine. It closes one that came late.
func (l *link) attach(s *mesh.Stream, own bool, hello handoverHello) {
	place, newest, incarnation := &l.theirs, &l.newest.theirs, hello.Incarnation
	if own {
		place, newest, incarnation = &l.own, &l.newest.own, 0 // the peer's is not known
	}
	l.mu.Lock()
	old := *place
	late := hello.Incarnation == newest.Incarnation && hello.Dial < newest.Dial
	drop := l.closed || late
	if !drop {
		l.stream, *place, *newest = s, s, hello
	}
	l.mu.Unlock()
	if drop {
		s.Close()
		return
	}
	if old != nil && old != s {
		old.Close()
	}
	l.feed(handover.PathUp{Incarnation: incarnation})
}

// broken forgets a stream that failed. If there is another, the machine is told
// of a new path, so that it repeats what may have been lost.
func (l *link) broken(s *mesh.Stream, err error) {
	l.mu.Lock()
	used := l.stream == s
	if l.own == s {
		l.own = nil
	}
	if l.theirs == s {
		l.theirs = nil
	}
	if used {
		l.stream = l.own
		if l.stream == nil {
			l.stream = l.theirs
		}
	}
	other, closed := l.stream, l.closed
	l.mu.Unlock()
	s.Close()
	if !used || closed {
		return
	}
	l.n.log.Debug("hand-over stream broke", "move", l.move, "peer", l.peer, "error", err)
	if other != nil {
		l.feed(handover.PathUp{})
		return
	}
	l.feed(handover.PathDown{})
	l.redial(l.n.ctx)
}

func (l *link) close() {
	l.mu.Lock()
	streams := []*mesh.Stream{l.own, l.theirs}
	l.stream, l.own, l.theirs, l.closed = nil, nil, nil, true
	l.mu.Unlock()
	for _, s := range streams {
		if s != nil {
			s.Close()
		}
	}
}

// A machine is one side of a move.
type machine interface {
	link() *link
	feed(handover.Event)
}

// serveHandover reads a stream that a peer opened.
func (n *Node) serveHandover(ctx context.Context, s *mesh.Stream) {
	var f handoverFrame
	if err := readFirst(s, maxHandoverFrame, &f); err != nil || f.Hello == nil {
		n.log.Debug("hand-over stream without a hello", "peer", s.Peer(), "error", err)
		return
	}
	for _, m := range n.machines(f.Hello.Move) {
		if m.link().peer == s.Peer() {
			m.link().attach(s, false, *f.Hello)
		}
	}
	n.readHandover(ctx, s, f.Hello.Move)
}

// serveCopy takes a copy of a message. It only ever goes to a machine that
// waits for the first: all else is for the stream that has that.
func (n *Node) serveCopy(ctx context.Context, s *mesh.Stream) {
	defer s.Close()
	var f handoverFrame
	err := readFirst(s, maxCopy+1<<10, &f)
	if err == nil && f.Message == nil {
		err = errors.New("no message in it")
	}
	var msg handover.Message
	if err == nil {
		msg, err = handover.Limits{}.Decode(f.Message)
	}
	if err == nil {
		n.mu.Lock()
		in, out := n.incoming[msg.Move], n.outgoing[msg.Move]
		n.mu.Unlock()
		switch msg.Body.(type) {
		case handover.Commit:
			if in != nil {
				err = n.dispatch(ctx, s, msg)
			}
		case handover.Running:
			if out != nil && !out.hasHeard() { // or what was said since would give way to it
				err = n.dispatch(ctx, s, msg)
			}
		default:
			err = fmt.Errorf("%s is not sent twice", msg.Body.Type())
		}
	}
	if err != nil {
		n.log.Debug("copy of a hand-over message", "peer", s.Peer(), "error", err)
	}
}

// machines returns the machines of a move that live here: normally one, both
// only if a node moves a worker to itself, which migrate refuses.
func (n *Node) machines(move handover.MoveID) []machine {
	n.mu.Lock()
	defer n.mu.Unlock()
	var ms []machine
	if m := n.outgoing[move]; m != nil {
		ms = append(ms, m)
	}
	if m := n.incoming[move]; m != nil {
		ms = append(ms, m)
	}
	return ms
}

// readHandover gives what arrives on a stream to the move's machine, or
// answers from the journal where there is none.
func (n *Node) readHandover(ctx context.Context, s *mesh.Stream, move handover.MoveID) {
	err := n.readMessagesOf(ctx, s, move)
	for _, m := range n.machines(move) {
		m.link().broken(s, err)
	}
	s.Close()
}

func (n *Node) readMessagesOf(ctx context.Context, s *mesh.Stream, move handover.MoveID) error {
	for {
		var f handoverFrame
		if err := mesh.ReadMessage(s, maxHandoverFrame, &f); err != nil {
			return err
		}
		if f.Report != nil {
			n.reported(s.Peer(), move, *f.Report)
			continue
		}
		if f.Blackout != 0 {
			n.movedIn(s.Peer(), move, f.Blackout)
			continue
		}
		msg, err := handover.Limits{}.Decode(f.Message)
		if errors.Is(err, handover.ErrUnknownType) {
			n.log.Info("hand-over message ignored", "peer", s.Peer(), "error", err)
			continue
		}
		if err != nil {
			return err
		}
		if msg.Move != move {
			return fmt.Errorf("a message of move %v on the stream of move %v", msg.Move, move)
		}
		if err := n.dispatch(ctx, s, msg); err != nil {
			return err
		}
	}
}

// dispatch finds the machine that a message is for.
func (n *Node) dispatch(ctx context.Context, s *mesh.Stream, msg handover.Message) error {
	if offer, ok := msg.Body.(handover.Offer); ok {
		return n.arrive(s, msg, offer)
	}
	n.mu.Lock()
	var m machine
	if in := n.incoming[msg.Move]; in != nil && msg.Body.Type().FromSource() {
		m = in
	} else if out := n.outgoing[msg.Move]; out != nil && !msg.Body.Type().FromSource() {
		m = out
	}
	n.mu.Unlock()
	if m != nil {
		if m.link().peer != s.Peer() {
			return fmt.Errorf("node %s spoke for a move that is %s's", s.Peer(), m.link().peer)
		}
		m.feed(handover.Received{Message: msg})
		return nil
	}
	var rec *handover.Record
	r, ok, err := n.journal.Get(msg.Worker)
	if err != nil {
		return err
	}
	if ok {
		rec = &r
	}
	a := handover.Answer(rec, msg, n.incarnation)
	if a.Note != "" {
		n.log.Info("hand-over message", "peer", s.Peer(), "note", a.Note)
	}
	if a.Settle != (handover.MoveID{}) {
		if err := n.journal.Settle(msg.Worker, a.Settle); err != nil {
			return err
		}
	}
	if a.Reply == nil {
		return nil
	}
	return n.tell(s, *a.Reply)
}

// tell writes a message of a move that has no machine.
func (n *Node) tell(s *mesh.Stream, msg handover.Message) error {
	b, err := handover.Limits{}.Encode(msg)
	if err != nil {
		return err
	}
	return mesh.WriteMessage(s, handoverFrame{Message: b})
}

// movedIn takes the source's word on how long a worker that has come ran
// nowhere, once for each move.
func (n *Node) movedIn(peer mesh.NodeID, move handover.MoveID, blackout time.Duration) {
	n.mu.Lock()
	m := n.incoming[move]
	n.mu.Unlock()
	if m == nil || m.from != peer || blackout < 0 {
		return
	}
	m.mu.Lock()
	first := !m.judged
	m.judged = true
	m.mu.Unlock()
	if first {
		n.promises.movedIn(blackout, time.Now())
	}
}

// reported takes the destination's report of a move.
func (n *Node) reported(peer mesh.NodeID, move handover.MoveID, r moveReport) {
	n.mu.Lock()
	m := n.outgoing[move]
	n.mu.Unlock()
	if m == nil || m.to != peer {
		return
	}
	m.mu.Lock()
	m.report = r
	m.mu.Unlock()
}
