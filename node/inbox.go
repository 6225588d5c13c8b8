package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"meshnode/mesh"
)

// Limits of one worker's inbox. A sender that is over a limit waits: its
// stream is not read further, so QUIC's flow control carries the wait back to
// the client. Nothing is dropped.
const (
	// MaxPayload is the largest message and the largest reply, in bytes.
	MaxPayload = 1 << 20
	// senderWindow is how many messages a sender may have sent without having
	// the reply. Both ends hold to it.
	senderWindow = 64
	// inboxBytes is how many bytes of messages may wait for a worker.
	inboxBytes = 16 << 20
	// maxSenders is how many senders a worker remembers.
	maxSenders = 4096
	// senderIdle is how long a sender that is not connected is remembered. A
	// message sent again after that may be processed a second time.
	senderIdle = 10 * time.Minute
)

// A senderID names one ordered stream of messages to one worker. It is random,
// chosen by the sender, and stays the same across connections and moves.
type senderID [16]byte

// A message is one message of one sender.
type message struct {
	sender  *sender
	entry   mesh.NodeID // where the sender is attached
	seq     uint64      // from 1, without gaps
	call    bool        // the sender wants the worker's reply, not only its receipt
	payload []byte
}

// A reply answers the message of the same number.
type reply struct {
	Seq     uint64 `cbor:"1,keyasint"`
	Status  int32  `cbor:"2,keyasint,omitempty"` // the handler's return code; 0 is success
	Payload []byte `cbor:"3,keyasint,omitempty"`
}

// A sender is what the worker's home knows of one sender.
type sender struct {
	id       senderID
	accepted uint64  // the last message taken into the queue
	done     uint64  // the last message processed
	replies  []reply // processed, and not yet known to have reached the sender
	outlets  []*outlet
	seen     time.Time // when the last outlet went
}

// An outlet is one connection of a sender: where its replies go.
type outlet struct {
	sender *sender
	entry  mesh.NodeID // where the sender is attached; set before the first message
	sent   uint64      // the last reply put on out
	out    chan deliverFrame
}

var (
	errGap         = errors.New("message numbers have a gap")
	errManySenders = fmt.Errorf("the worker already has %d senders", maxSenders)
)

// An inbox holds the messages that wait for one worker and the replies that
// have not reached their senders. It keeps the promise that every message is
// processed once, in its sender's order: a message is told from its repetition
// by its number, and the numbers travel in the worker's image. Safe for
// concurrent use.
type inbox struct {
	mu      sync.Mutex
	senders map[senderID]*sender
	queue   []*message // in order of arrival
	bytes   int        // payload bytes in queue
	// gated holds replies back: the worker runs, but what it did is not yet on
	// disk (output commit; Strom and Yemini 1985).
	gated bool
	// closed is sent to every outlet when the worker has left or ended.
	closed *deliverFrame

	ready chan struct{} // one token: the queue is not empty
	room  chan struct{} // closed and replaced when a queue shrinks
}

func newInbox() *inbox {
	return &inbox{
		senders: make(map[senderID]*sender),
		ready:   make(chan struct{}, 1),
		room:    make(chan struct{}),
	}
}

// attach opens an outlet for a sender. base is the lowest number whose reply
// the sender lacks; a sender the inbox does not know starts there.
func (in *inbox) attach(id senderID, base uint64, now time.Time) (*outlet, *deliverFrame, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed != nil {
		return nil, in.closed, nil
	}
	if base == 0 {
		return nil, nil, errors.New("message numbers start at 1")
	}
	s := in.senders[id]
	if s == nil {
		in.expireLocked(now)
		if len(in.senders) >= maxSenders {
			return nil, nil, errManySenders
		}
		s = &sender{id: id, accepted: base - 1, done: base - 1}
		in.senders[id] = s
	}
	s.ackLocked(base - 1)
	// The channel holds all the replies that can be outstanding, so that the
	// worker never waits for a slow sender.
	o := &outlet{sender: s, sent: base - 1, out: make(chan deliverFrame, 2*senderWindow+2)}
	s.outlets = append(s.outlets, o)
	in.flushLocked(s)
	return o, nil, nil
}

// detach closes an outlet. forget says that the sender will never come back.
func (in *inbox) detach(o *outlet, forget bool, now time.Time) {
	in.mu.Lock()
	defer in.mu.Unlock()
	s := o.sender
	if i := slices.Index(s.outlets, o); i >= 0 {
		s.outlets = slices.Delete(s.outlets, i, i+1)
	}
	s.seen = now
	if forget && len(s.outlets) == 0 && s.accepted == s.done && in.senders[s.id] == s {
		delete(in.senders, s.id)
	}
}

// push takes a message into the queue and waits while there is no room for it.
// A message that was taken before is not taken again. acked is the last number
// up to which the sender has all replies.
func (in *inbox) push(ctx context.Context, o *outlet, seq uint64, call bool, payload []byte, acked uint64) error {
	for {
		in.mu.Lock()
		s := o.sender
		if in.closed != nil {
			in.mu.Unlock()
			return nil // the outlet tells the sender
		}
		s.ackLocked(acked)
		if seq <= s.accepted {
			in.mu.Unlock()
			return nil
		}
		if seq != s.accepted+1 {
			in.mu.Unlock()
			return fmt.Errorf("%w: %d after %d", errGap, seq, s.accepted)
		}
		full := s.accepted-s.done+uint64(len(s.replies)) >= senderWindow ||
			in.bytes > 0 && in.bytes+len(payload) > inboxBytes
		if !full {
			s.accepted = seq
			in.queue = append(in.queue, &message{sender: s, entry: o.entry, seq: seq, call: call, payload: payload})
			in.bytes += len(payload)
			in.signalLocked()
			in.mu.Unlock()
			return nil
		}
		room := in.room
		in.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// ack is what a sender says of the replies that it has.
func (in *inbox) ack(o *outlet, acked uint64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	o.sender.ackLocked(acked)
	in.roomLocked()
}

// ackLocked drops the replies up to acked, which have reached the sender.
func (s *sender) ackLocked(acked uint64) {
	n := 0
	for n < len(s.replies) && s.replies[n].Seq <= acked {
		n++
	}
	s.replies = slices.Delete(s.replies, 0, n)
}

// pop takes the next message, or returns nil.
func (in *inbox) pop() *message {
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.queue) == 0 || in.closed != nil {
		return nil
	}
	m := in.queue[0]
	in.queue[0] = nil
	in.queue = in.queue[1:]
	in.bytes -= len(m.payload)
	if len(in.queue) > 0 {
		in.signalLocked()
	}
	return m
}

// done records the reply to m, which pop returned, and sends it unless the
// inbox is gated.
func (in *inbox) done(m *message, r reply) {
	in.mu.Lock()
	defer in.mu.Unlock()
	r.Seq = m.seq
	s := m.sender
	s.done = m.seq
	s.replies = append(s.replies, r)
	in.flushLocked(s)
	in.roomLocked()
}

// flushLocked puts the replies that an outlet has not had on it.
func (in *inbox) flushLocked(s *sender) {
	if in.gated {
		return
	}
	for _, o := range s.outlets {
		for _, r := range s.replies {
			if r.Seq > o.sent {
				select { // r is a copy: s.replies shifts as the sender acknowledges
				case o.out <- deliverFrame{Reply: &r}:
					o.sent = r.Seq
				default:
					// More than two windows outstanding: this connection is
					// not read. What it lacks is sent on the next one.
				}
			}
		}
	}
}

// gate holds replies back from now on; release sends all that were held.
func (in *inbox) gate() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.gated = true
}

func (in *inbox) release() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.gated = false
	for _, s := range in.senders {
		in.flushLocked(s)
	}
}

// close tells every sender f, the last frame it gets from here: where the
// worker went, or why it ended. Messages still in the queue are dropped; their
// senders have no reply for them, so they send them again where f points.
func (in *inbox) close(f deliverFrame) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed != nil {
		return
	}
	in.closed = &f
	in.queue, in.bytes = nil, 0
	for _, s := range in.senders {
		s.accepted = s.done
		for _, o := range s.outlets {
			select {
			case o.out <- f:
			default:
			}
			close(o.out)
		}
		s.outlets = nil
	}
	in.roomLocked()
}

// reopen lets senders come again after a close whose move came to nothing.
func (in *inbox) reopen() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.closed = nil
}

// wake signals the worker's loop if there is something to do.
func (in *inbox) wake() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.queue) > 0 {
		in.signalLocked()
	}
}

// A senderCursor is a sender in a worker's image.
type senderCursor struct {
	ID      senderID `cbor:"1,keyasint"`
	Done    uint64   `cbor:"2,keyasint"`
	Replies []reply  `cbor:"3,keyasint,omitempty"`
}

// cursors returns what the image carries, in order of sender. The queue does
// not travel: what was not processed has no reply, so its sender sends it again
// to the new home.
func (in *inbox) cursors() []senderCursor {
	in.mu.Lock()
	defer in.mu.Unlock()
	cs := make([]senderCursor, 0, len(in.senders))
	for _, s := range in.senders {
		cs = append(cs, senderCursor{ID: s.id, Done: s.done, Replies: slices.Clone(s.replies)})
	}
	slices.SortFunc(cs, func(a, b senderCursor) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	return cs
}

// restore fills an empty inbox from an image.
func (in *inbox) restore(cs []senderCursor, now time.Time) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(cs) > maxSenders {
		return errManySenders
	}
	for _, c := range cs {
		if in.senders[c.ID] != nil {
			return errors.New("a sender appears twice")
		}
		if len(c.Replies) > senderWindow {
			return fmt.Errorf("a sender has %d open replies, more than %d", len(c.Replies), senderWindow)
		}
		for i, r := range c.Replies {
			if r.Seq > c.Done || i > 0 && r.Seq <= c.Replies[i-1].Seq || len(r.Payload) > MaxPayload {
				return errors.New("a sender's replies are not valid")
			}
		}
		in.senders[c.ID] = &sender{id: c.ID, accepted: c.Done, done: c.Done, replies: c.Replies, seen: now}
	}
	return nil
}

// depth returns the number of senders and of waiting messages.
func (in *inbox) depth() (senders, waiting int) {
	in.mu.Lock()
	defer in.mu.Unlock()
	return len(in.senders), len(in.queue)
}

func (in *inbox) expireLocked(now time.Time) {
	for id, s := range in.senders {
		if len(s.outlets) == 0 && s.accepted == s.done && now.Sub(s.seen) > senderIdle {
			delete(in.senders, id)
		}
	}
}

func (in *inbox) signalLocked() {
	select {
	case in.ready <- struct{}{}:
	default:
	}
}

func (in *inbox) roomLocked() {
	close(in.room)
	in.room = make(chan struct{})
}
