package node

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	crand "crypto/rand"

	"meshnode/node/control"
	"meshnode/node/runner"
)

// Limits of what a worker has sent and what has not arrived. At the limit the
// worker gets no further events, so that the wait reaches its own senders.
//
// That alone would let workers that flood each other, or one that floods
// itself, wait for each other for ever. So a worker whose outbox has been full
// for outboxPatience without one arrival gets its events again, and whatever
// they want to send is refused (guest.ErrTooMany), until the outbox has room:
// handling them is what makes room in those that wait for it. A refusal the
// handler can see was chosen over its alternatives: to drop messages behind its
// back, to keep them without a limit, or to acknowledge what is queued but not
// processed, which would then have to travel with the worker.
const (
	outboxMessages = 256
	outboxBytes    = 8 << 20
	outboxTargets  = 256
	outboxPatience = time.Second
)

// An outbox holds the messages that a worker has sent to other workers. Each
// target has a Sender of its own, whose numbers travel in the image, so that
// nothing is delivered twice however often either end moves. Safe for
// concurrent use.
type outbox struct {
	node *Node
	from string                           // the worker's name
	log  func(format string, args ...any) // into the worker's log

	mu      sync.Mutex
	targets map[string]*Sender // by the name that the worker used
	running bool
	ended   bool
	room    chan struct{} // one token: something has arrived
	// arrived is set with every token and taken by full. It is not under mu: a
	// Sender signals with its own lock held, which full takes under mu.
	arrived atomic.Bool
	// since is when an outbox that is full was last seen to change, zero if it
	// has room, and refusing that this was longer ago than its patience.
	since    time.Time
	refusing bool
}

func newOutbox(n *Node, from string, log func(string, ...any)) *outbox {
	return &outbox{node: n, from: from, log: log, targets: make(map[string]*Sender), room: make(chan struct{}, 1)}
}

// full reports whether there is no room for what another event may send. If so,
// the worker is to wait until then, or until a token is in room, and after that
// to handle events whose sends are refused.
func (o *outbox) full(now time.Time) (full bool, until time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.fullLocked() {
		if o.refusing {
			o.log("earlier messages have arrived: messages are taken again")
		}
		o.since, o.refusing = time.Time{}, false
		return false, time.Time{}
	}
	if o.arrived.Swap(false) && !o.refusing || o.since.IsZero() {
		o.since = now
	}
	until = o.since.Add(outboxPatience)
	if !o.refusing && !now.Before(until) {
		o.refusing = true
		o.log("no message has arrived for %v and there is no room for more: what the worker sends is refused until some have (too many)", outboxPatience)
	}
	return true, until
}

func (o *outbox) fullLocked() bool {
	messages, bytes, busy := 0, 0, 0
	for _, s := range o.targets {
		m, b := s.backlog()
		messages, bytes = messages+m, bytes+b
		busy += min(m, 1)
	}
	return messages >= outboxMessages || bytes >= outboxBytes || busy >= outboxTargets
}

// evictLocked forgets a target for which nothing waits, to make room. Its
// worker forgets it in turn.
func (o *outbox) evictLocked() {
	for name, s := range o.targets {
		if n, _ := s.backlog(); n == 0 {
			delete(o.targets, name)
			if o.running {
				o.node.tasks.Go(s.Close)
			}
			return
		}
	}
}

// add takes what an event has sent.
func (o *outbox) add(sends []runner.Message) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, m := range sends {
		s := o.targets[m.To]
		if s == nil {
			if len(o.targets) >= outboxTargets {
				o.evictLocked()
			}
			s = o.newTarget(m.To)
			s.init(1)
			crand.Read(s.id[:])
			o.targets[m.To] = s
			if o.running {
				s.start(o.node.ctx, &o.node.tasks)
			}
		}
		s.add(m.Payload)
	}
}

func (o *outbox) newTarget(name string) *Sender {
	s := &Sender{node: o.node, name: name, from: o.from, follow: o.node.follow}
	s.onReply = o.signal
	s.onEnd = func(err error) { o.drop(s, err) }
	return s
}

// drop forgets a target that cannot be reached any more and says so in the
// log. The next message to that name looks for a new worker.
func (o *outbox) drop(s *Sender, err error) {
	o.mu.Lock()
	if o.targets[s.name] == s {
		delete(o.targets, s.name)
	}
	o.mu.Unlock()
	if n, _ := s.backlog(); n > 0 {
		o.log("%d messages to %s were not delivered: %v", n, s.name, err)
	}
	o.signal()
}

func (o *outbox) signal() {
	o.arrived.Store(true)
	select {
	case o.room <- struct{}{}:
	default:
	}
}

// start lets messages leave; stop holds them and waits until none is on its
// way, so that state is complete.
func (o *outbox) start() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.running || o.ended {
		return
	}
	o.running = true
	for _, s := range o.targets {
		s.start(o.node.ctx, &o.node.tasks)
	}
}

func (o *outbox) stop() {
	o.mu.Lock()
	was := o.running
	o.running = false
	ss := make([]*Sender, 0, len(o.targets))
	for _, s := range o.targets {
		ss = append(ss, s)
	}
	o.mu.Unlock()
	if !was {
		return
	}
	for _, s := range ss { // all at once, and then wait for the slowest
		s.cancel(errHalted)
	}
	for _, s := range ss {
		<-s.done
	}
}

// end stops it for good.
func (o *outbox) end() {
	o.mu.Lock()
	o.ended = true
	o.mu.Unlock()
	o.stop()
}

// abandon says in the log what an outbox that has ended, with its worker, leaves
// undelivered. What is on its way may or may not be processed.
func (o *outbox) abandon(state string) {
	o.mu.Lock()
	targets := slices.SortedFunc(maps.Values(o.targets), func(a, b *Sender) int { return strings.Compare(a.name, b.name) })
	o.mu.Unlock()
	for _, s := range targets {
		if n, bytes := s.backlog(); n > 0 {
			o.log("%d messages (%d bytes) to %s had not been processed when the worker %s: they are dropped", n, bytes, s.name, ending(state))
			o.node.log.Warn("messages of a worker that ended dropped", "to", s.name, "messages", n, "bytes", bytes)
		}
	}
}

// ending says in a sentence that a worker has come to a state.
func ending(state string) string {
	if state == control.StateStopped {
		return "was stopped"
	}
	if state == control.StateLost {
		return "was lost"
	}
	return state
}

// An outState is one target of an outbox in a worker's image.
type outState struct {
	Name    string           `cbor:"1,keyasint"`
	Worker  string           `cbor:"2,keyasint,omitempty"` // id, once known
	Sender  senderID         `cbor:"3,keyasint"`
	Next    uint64           `cbor:"4,keyasint"`
	Pending []deliverMessage `cbor:"5,keyasint,omitempty"`
	Epoch   uint64           `cbor:"6,keyasint,omitempty"` // the target's, when it last welcomed the sender
}

// state returns a stopped outbox for the image, in order of name.
func (o *outbox) state() []outState {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []outState
	for name, s := range o.targets {
		s.mu.Lock()
		out = append(out, outState{
			Name: name, Worker: s.worker, Sender: s.id, Next: s.next, Pending: slices.Clone(s.pending), Epoch: s.epoch,
		})
		s.mu.Unlock()
	}
	slices.SortFunc(out, func(a, b outState) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// restore fills an empty outbox from an image; it does not start it.
func (o *outbox) restore(out []outState) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, t := range out {
		if o.targets[t.Name] != nil || !validName(t.Name) || t.Worker != "" && !validID(t.Worker) {
			return fmt.Errorf("outgoing messages to %.40q are not valid", t.Name)
		}
		first := t.Next - uint64(len(t.Pending))
		if t.Next == 0 || len(t.Pending) > outboxMessages+runner.MaxSends || first == 0 || first > t.Next {
			return fmt.Errorf("outgoing messages to %s are misnumbered", t.Name)
		}
		s := o.newTarget(t.Name)
		s.init(first)
		s.worker, s.id, s.next, s.pending, s.epoch = t.Worker, t.Sender, t.Next, t.Pending, t.Epoch
		for i, m := range t.Pending {
			if m.Seq != first+uint64(i) || len(m.Payload) > MaxPayload {
				return fmt.Errorf("outgoing messages to %s are misnumbered", t.Name)
			}
			s.bytes += len(m.Payload)
		}
		o.targets[t.Name] = s
	}
	return nil
}
