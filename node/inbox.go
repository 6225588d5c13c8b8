package node

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"meshnode/mesh"
)

// Limits of one worker's inbox. A sender that is over a limit is told to hold
// and, once there is room, from where to send again: it has kept everything, so
// nothing is lost. (Not reading its stream was simpler. But what nobody reads
// counts against the window of the whole connection, and a few stuck workers
// held up control messages and demanded pages between their two nodes.)
const (
	// MaxPayload is the largest message and the largest reply, in bytes.
	MaxPayload = 1 << 20
	// senderWindow is how many messages a sender may have sent without having
	// the reply. Both ends hold to it.
	senderWindow = 64
	// inboxBytes is how many bytes of messages may wait for a worker, unless its
	// manifest says otherwise; inboxMessages how many messages. Senders that were
	// told to hold go on when half of it is free: what a sender writes for too
	// little room travels in vain.
	inboxBytes    = 16 << 20
	inboxMessages = 1 << 16
	// senderReplies is how many bytes of replies are kept for a sender that does
	// not take them before no more of its messages are handled, and inboxReplies
	// how many for all senders together before only those are served that have
	// taken theirs. One reply more than that may be kept for each.
	senderReplies = 16 << 20
	inboxReplies  = 64 << 20
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
	from    string      // the name of the worker that sends; empty for a client
	access  time.Duration
	beyond  time.Duration // as in deliverMessage, of an earlier call
	seq     uint64        // from 1, without gaps
	call    bool          // the sender wants the worker's reply, not only its receipt
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
	from     uint64  // see senderCursor.From
	replies  []reply // processed, and not yet known to have reached the sender
	kept     int     // payload bytes in replies
	outlets  []*outlet
	seen     time.Time // when the last outlet went
}

// An outlet is one connection of a sender: where its replies go.
type outlet struct {
	sender *sender
	entry  mesh.NodeID // where the sender is attached; set before the first message
	from   string      // as in message; set before the first
	// access is the client's distance from entry, 0 if not known, and beyond as
	// in deliverMessage. Only the goroutine that calls push uses them.
	access, beyond time.Duration
	sent           uint64 // the last reply put on out
	out            chan deliverFrame
	// rewinding is set from when the sender was told to hold until it has gone
	// back: what it wrote before it heard of it is passed over.
	rewinding bool
	over      bool // out is closed
}

var (
	errGap         = errors.New("message numbers have a gap")
	errManySenders = fmt.Errorf("the worker already has %d senders", maxSenders)
	errDeaf        = errors.New("the sender does not read")
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
	kept    int        // payload bytes of replies, of all senders
	keeps   replyLimits
	limits  queueLimits
	// gated holds replies back: the worker runs, but what it did is not yet on
	// disk (output commit; Strom and Yemini 1985).
	gated bool
	// fenced, if set, says that nothing may leave now: the worker's lease has run
	// out. flush follows if it stands again.
	fenced func() bool
	// heldBack is set when that has kept a reply here.
	heldBack bool
	// closed is sent to every outlet when the worker has left or ended.
	closed *deliverFrame

	held  []*outlet     // told to hold, the first first
	ready chan struct{} // one token: the queue is not empty
}

// queueLimits bound what waits for a worker. One message may always wait,
// however large it is.
type queueLimits struct{ messages, bytes int }

// replyLimits are senderReplies and inboxReplies.
type replyLimits struct{ sender, all int }

func newInbox() *inbox {
	return &inbox{
		limits:  queueLimits{messages: inboxMessages, bytes: inboxBytes},
		keeps:   replyLimits{sender: senderReplies, all: inboxReplies},
		senders: make(map[senderID]*sender),
		ready:   make(chan struct{}, 1),
	}
}

// limit sets what may wait. What waits already stays.
func (in *inbox) limit(l queueLimits) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.limits = l
	in.roomLocked()
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
	in.ackLocked(s, base-1)
	// The channel holds all the replies that can be outstanding, so that the
	// worker never waits for a slow sender, and a few words beside them.
	o := &outlet{sender: s, sent: base - 1, out: make(chan deliverFrame, 2*senderWindow+8)}
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
	in.unholdLocked(o)
	s.seen = now
	if forget && len(s.outlets) == 0 && s.accepted == s.done && in.senders[s.id] == s {
		in.forgetLocked(s)
	}
}

// forgetLocked drops a sender and what is kept for it.
func (in *inbox) forgetLocked(s *sender) {
	in.kept -= s.kept
	s.replies, s.kept = nil, 0
	delete(in.senders, s.id)
}

// push takes a message into the queue or, if there is no room for it, tells the
// sender to hold. A message that was taken before is not taken again. acked is
// the last number up to which the sender has all replies. The error ends the
// connection.
func (in *inbox) push(o *outlet, seq uint64, call bool, payload []byte, acked uint64) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	s := o.sender
	if in.closed != nil || o.over {
		return nil // the outlet tells the sender
	}
	deaf := in.deafLocked(s)
	if in.ackLocked(s, acked); deaf && !in.deafLocked(s) {
		in.roomLocked() // no other frame may say that it has taken them
	}
	switch {
	case seq <= s.accepted:
		return nil
	case seq != s.accepted+1 && o.rewinding:
		return nil
	case seq != s.accepted+1:
		return fmt.Errorf("%w: %d after %d", errGap, seq, s.accepted)
	case in.fullLocked(s) || len(in.queue) >= in.limits.messages || len(in.queue) > 0 && in.bytes+len(payload) > in.limits.bytes:
		return in.holdLocked(o)
	}
	o.rewinding = false
	in.unholdLocked(o)
	s.accepted = seq
	in.queue = append(in.queue, &message{sender: s, entry: o.entry, from: o.from, access: o.access, beyond: o.beyond, seq: seq, call: call, payload: payload})
	in.bytes += len(payload)
	in.signalLocked()
	return nil
}

// fullLocked reports whether a sender has used its window up.
func (in *inbox) fullLocked(s *sender) bool {
	return s.accepted-s.done+uint64(len(s.replies)) >= senderWindow || in.deafLocked(s)
}

// deafLocked reports whether a sender leaves too much lying here.
func (in *inbox) deafLocked(s *sender) bool {
	return s.kept > 0 && (s.kept >= in.keeps.sender || in.kept >= in.keeps.all)
}

// holdLocked tells a sender to stop until it hears from roomLocked.
func (in *inbox) holdLocked(o *outlet) error {
	if slices.Contains(in.held, o) {
		return nil
	}
	select {
	case o.out <- deliverFrame{Hold: &deliverHold{}}:
	default:
		return errDeaf
	}
	o.rewinding = true
	in.held = append(in.held, o)
	return nil
}

func (in *inbox) unholdLocked(o *outlet) {
	if i := slices.Index(in.held, o); i >= 0 {
		in.held = slices.Delete(in.held, i, i+1)
	}
}

// roomLocked lets senders go on that were told to hold: one for every message
// that the worker has handled, so that they do not all write for the same room,
// and all when nothing waits, since then there may be no next time.
func (in *inbox) roomLocked() {
	if in.bytes > in.limits.bytes/2 || len(in.queue) > in.limits.messages/2 {
		return
	}
	all := len(in.queue) == 0
	for i := 0; i < len(in.held); {
		o := in.held[i]
		if in.fullLocked(o.sender) {
			i++
			continue
		}
		in.held = slices.Delete(in.held, i, i+1)
		select {
		case o.out <- deliverFrame{Go: o.sender.accepted + 1}:
		default:
			// Its connection is not read; it may ask again on the next one.
			in.dropLocked(o)
		}
		if !all {
			return
		}
	}
}

// dropLocked ends an outlet whose sender does not read.
func (in *inbox) dropLocked(o *outlet) {
	if i := slices.Index(o.sender.outlets, o); i >= 0 {
		o.sender.outlets = slices.Delete(o.sender.outlets, i, i+1)
	}
	o.over = true
	close(o.out)
}

// ack is what a sender says of the replies that it has.
func (in *inbox) ack(o *outlet, acked uint64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.ackLocked(o.sender, acked)
	in.roomLocked()
}

// ackLocked drops a sender's replies up to acked, which have reached it.
func (in *inbox) ackLocked(s *sender, acked uint64) {
	n := 0
	for n < len(s.replies) && s.replies[n].Seq <= acked {
		s.kept -= len(s.replies[n].Payload)
		in.kept -= len(s.replies[n].Payload)
		n++
	}
	s.replies = slices.Delete(s.replies, 0, n)
}

// pop takes the next message, or returns nil. What a sender sent that does not
// take its replies is put back to the sender.
func (in *inbox) pop() *message {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed != nil {
		return nil
	}
	for len(in.queue) > 0 && in.deafLocked(in.queue[0].sender) {
		in.returnLocked(in.queue[0].sender)
	}
	if len(in.queue) == 0 {
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

// returnLocked drops what a sender has in the queue and tells it to hold: it has
// kept everything, and sends it again once it has taken replies.
func (in *inbox) returnLocked(s *sender) {
	in.queue = slices.DeleteFunc(in.queue, func(m *message) bool {
		if m.sender != s {
			return false
		}
		in.bytes -= len(m.payload)
		s.accepted = min(s.accepted, m.seq-1)
		return true
	})
	for _, o := range slices.Clone(s.outlets) {
		if in.holdLocked(o) != nil {
			in.dropLocked(o)
		}
	}
}

// back puts m, which pop returned, where it was: it could not be processed yet.
// Nobody is told; wake does that. An inbox that has been closed drops it, as it
// did the rest.
func (in *inbox) back(m *message) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed != nil {
		return
	}
	in.queue = slices.Insert(in.queue, 0, m)
	in.bytes += len(m.payload)
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
	s.kept += len(r.Payload)
	in.kept += len(r.Payload)
	in.flushLocked(s)
	in.roomLocked()
}

// flushLocked puts the replies that an outlet has not had on it.
func (in *inbox) flushLocked(s *sender) {
	if in.gated {
		return
	}
	if in.fenced != nil && in.fenced() {
		in.heldBack = true
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
	in.gated = false
	in.mu.Unlock()
	in.flush()
}

func (in *inbox) isHeldBack() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.heldBack
}

// flush sends what has been held back.
func (in *inbox) flush() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.heldBack = false
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
			o.over = true
			close(o.out)
		}
		s.outlets = nil
	}
	in.held = nil
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
	// From is the last message that was processed in the checkpoint which a
	// guardian continued the worker from, 0 if there was none. A sender that has
	// seen the reply to a later one cannot go on.
	From uint64 `cbor:"4,keyasint,omitempty"`
}

// cursors returns what the image carries, in order of sender. The queue does
// not travel: what was not processed has no reply, so its sender sends it again
// to the new home.
func (in *inbox) cursors() []senderCursor {
	in.mu.Lock()
	defer in.mu.Unlock()
	cs := make([]senderCursor, 0, len(in.senders))
	for _, s := range in.senders {
		cs = append(cs, senderCursor{ID: s.id, Done: s.done, Replies: slices.Clone(s.replies), From: s.from})
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
		if c.From > c.Done {
			return errors.New("a sender's numbers are not valid")
		}
		if len(c.Replies) > senderWindow {
			return fmt.Errorf("a sender has %d open replies, more than %d", len(c.Replies), senderWindow)
		}
		kept := 0
		for i, r := range c.Replies {
			kept += len(r.Payload)
			if r.Seq > c.Done || i > 0 && r.Seq <= c.Replies[i-1].Seq || len(r.Payload) > MaxPayload {
				return errors.New("a sender's replies are not valid")
			}
		}
		in.senders[c.ID] = &sender{id: c.ID, accepted: c.Done, done: c.Done, from: c.From, replies: c.Replies, kept: kept, seen: now}
		in.kept += kept
	}
	return nil
}

// from returns a sender's senderCursor.From, 0 for one that is not known.
func (in *inbox) from(id senderID) uint64 {
	in.mu.Lock()
	defer in.mu.Unlock()
	if s := in.senders[id]; s != nil {
		return s.from
	}
	return 0
}

// depth returns the number of senders and of waiting messages.
func (in *inbox) depth() (senders, waiting int) {
	in.mu.Lock()
	defer in.mu.Unlock()
	return len(in.senders), len(in.queue)
}

func (in *inbox) expireLocked(now time.Time) {
	for _, s := range in.senders {
		if len(s.outlets) == 0 && s.accepted == s.done && now.Sub(s.seen) > senderIdle {
			in.forgetLocked(s)
		}
	}
}

func (in *inbox) signalLocked() {
	select {
	case in.ready <- struct{}{}:
	default:
	}
}
