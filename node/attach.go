package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
)

// protoAttach carries a session between a client that runs no node and the node
// at which it enters the mesh:
//
//	client                      access node                     home
//	Hello    worker, id    ->   Hello      the same id     ->
//	         <- Welcome
//	Message 1, 2, 3 ...    ->   Message    the same numbers ->
//	         <- Reply 1, 2 ...         <- Reply 1, 2 ...
//	Message  acked 2       ->   Message    acked 2         ->
//
// It is protoDeliver, without Hold, Go and Moved: the access node keeps what has
// no reply yet and follows the worker, so that a move costs a client no round
// trip of its own. What makes a session outlive its access node is that nothing
// in it belongs to that node. The session's id and numbers are the client's, the
// client keeps what has no reply, and only what the client acknowledges is
// acknowledged to the home, which keeps replies until then. At any other node
// the client says the same Hello, with the first number whose reply it lacks.
// Two access nodes may serve one session for a while: they tell the home the
// same messages under the same numbers.
//
// The id is a secret between a client and the nodes, being random: who knows it
// could end the session or take its replies.
const protoAttach = "attach"

// accessInterval is how often the round trip to a client is held against what
// the node promises.
const accessInterval = 5 * time.Second

// An attachment is a client's session as its access node sees it.
type attachment struct {
	client mesh.NodeID
	worker string // id
	since  time.Time
	stream *mesh.Stream
}

// access is how far away the client is: the latest round trip of a packet.
func (a *attachment) access() time.Duration {
	rtt, _ := a.stream.RTT()
	return min(rtt, maxAccess)
}

// attachments are the sessions of clients attached here. Safe for concurrent
// use.
type attachments struct {
	mu sync.Mutex
	of map[*attachment]bool
	// ids are each client's sessions that homes may still remember: what one
	// client makes them remember is bounded, so that others find room.
	ids map[mesh.NodeID]map[senderID]*attachedID
}

// An attachedID is one session's id: how many streams it has here, and when the
// last of them ended.
type attachedID struct {
	streams int
	left    time.Time
}

// maxAttached is how many sessions one client may have at one access node, and
// have left there without a word in the last senderIdle.
const maxAttached = 256

// admit takes a session's id in, or refuses it because its client has too many.
// The caller calls leave when it ends.
func (as *attachments) admit(client mesh.NodeID, id senderID, now time.Time) error {
	as.mu.Lock()
	defer as.mu.Unlock()
	if as.ids == nil {
		as.ids = make(map[mesh.NodeID]map[senderID]*attachedID)
	}
	for _, ids := range as.ids { // few clients, each with few ids
		maps.DeleteFunc(ids, func(_ senderID, a *attachedID) bool { return a.streams <= 0 && now.Sub(a.left) > senderIdle })
	}
	maps.DeleteFunc(as.ids, func(_ mesh.NodeID, ids map[senderID]*attachedID) bool { return len(ids) == 0 })
	ids := as.ids[client]
	if ids == nil {
		ids = make(map[senderID]*attachedID)
		as.ids[client] = ids
	}
	a := ids[id]
	if a == nil {
		if len(ids) >= maxAttached {
			return fmt.Errorf("the client has %d sessions here, or had them within %v and did not close them: close some, or wait", len(ids), senderIdle)
		}
		a = &attachedID{}
		ids[id] = a
	}
	a.streams++
	return nil
}

// leave says that a stream of an admitted session has ended; with bye the
// session has.
func (as *attachments) leave(client mesh.NodeID, id senderID, bye bool, now time.Time) {
	as.mu.Lock()
	defer as.mu.Unlock()
	a := as.ids[client][id]
	if a == nil {
		return // another stream of it said good-bye
	}
	if a.streams, a.left = a.streams-1, now; bye {
		delete(as.ids[client], id)
	}
}

func (as *attachments) add(a *attachment) {
	as.mu.Lock()
	defer as.mu.Unlock()
	if as.of == nil {
		as.of = make(map[*attachment]bool)
	}
	as.of[a] = true
}

func (as *attachments) remove(a *attachment) {
	as.mu.Lock()
	defer as.mu.Unlock()
	delete(as.of, a)
}

// list returns the sessions there are, the oldest first.
func (as *attachments) list() []*attachment {
	as.mu.Lock()
	defer as.mu.Unlock()
	return slices.SortedFunc(maps.Keys(as.of), func(a, b *attachment) int { return a.since.Compare(b.since) })
}

// serveAttach is the access node's end of an attach stream.
func (n *Node) serveAttach(ctx context.Context, st *mesh.Stream) {
	if n.ctx.Err() != nil {
		return // no sender would live here; the client's connection ends, too
	}
	var f deliverFrame
	if err := readFirst(st, maxDeliverFrame, &f); err != nil || f.Hello == nil {
		n.log.Debug("attach stream without a hello", "client", st.Peer(), "error", err)
		return
	}
	id, bye := f.Hello.Sender, false
	if err := n.attached.admit(st.Peer(), id, time.Now()); err != nil {
		n.log.Warn("client refused", "client", st.Peer(), "error", err)
		n.say(st, deliverFrame{Refused: &deliverRefused{Reason: err.Error()}})
		return
	}
	defer func() { n.attached.leave(st.Peer(), id, bye, time.Now()) }()
	s, last := n.newRelay(f.Hello)
	if last != nil {
		bye = true // no home knows it
		n.say(st, *last)
		return
	}
	at := &attachment{client: st.Peer(), worker: s.worker, since: time.Now(), stream: st}
	s.access = at.access
	s.start(n.ctx, &n.tasks)
	n.attached.add(at)
	defer n.attached.remove(at)
	n.log.Debug("client attached", "client", at.client, "worker", s.worker, "from", f.Hello.Base)

	ctx, cancel := context.WithCancel(ctx)
	written := make(chan struct{})
	go func() {
		defer close(written)
		defer cancel()
		n.say(st, deliverFrame{Welcome: &deliverWelcome{Worker: s.worker}})
		n.relayReplies(ctx, st, s)
	}()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		n.watchAccess(ctx, at)
	}()
	stop := context.AfterFunc(ctx, func() { interrupt(st) })
	var err error
	bye, err = relayMessages(st, s)
	cancel()
	<-written
	<-watched
	stop()
	if bye {
		s.Close() // the home hears that the session is over
	} else {
		s.halt() // the client may turn up elsewhere
	}
	if err != nil && !errors.Is(err, io.EOF) && ctx.Err() == nil {
		n.log.Debug("attach stream ended", "client", at.client, "worker", s.worker, "error", err)
	}
}

// newRelay makes, but does not start, the sender that stands for a client, or
// returns what to answer it instead.
func (n *Node) newRelay(h *deliverHello) (*Sender, *deliverFrame) {
	refuse := func(r deliverRefused) (*Sender, *deliverFrame) { return nil, &deliverFrame{Refused: &r} }
	if h.Base == 0 {
		return refuse(deliverRefused{Reason: "message numbers start at 1"})
	}
	s := &Sender{node: n, id: h.Sender, follow: n.follow, relays: true}
	e, ok := n.dir.get(h.Worker)
	var err error
	if !ok {
		e, err = n.dir.find(h.Worker)
	}
	switch {
	case err == nil && ended(e.State):
		return nil, &deliverFrame{Ended: &deliverEnded{State: e.State, Reason: e.Reason}}
	case err == nil:
		s.worker = e.ID
	case errors.Is(err, &control.Error{Code: control.CodeNotFound}):
		// The client asks again: gossip may not have brought the worker yet.
		return refuse(deliverRefused{Gone: true, Reason: err.Error()})
	default:
		return refuse(deliverRefused{Reason: err.Error()})
	}
	s.init(h.Base)
	s.epoch = h.Epoch
	return s, nil
}

// relayMessages gives s what the client sends, until the stream ends. bye says
// that the client needs the session no longer.
func relayMessages(st io.Reader, s *Sender) (bye bool, err error) {
	for {
		var f deliverFrame
		if err := mesh.ReadMessage(st, maxDeliverFrame, &f); err != nil {
			return false, err
		}
		switch {
		case f.Bye != nil:
			return true, nil
		case f.Ack != 0:
			err = s.acknowledge(f.Ack)
		case f.Message != nil:
			if err = s.acknowledge(f.Message.Acked); err == nil {
				err = s.take(*f.Message)
			}
		default:
			err = errors.New("a frame that is not a client's to send")
		}
		if err != nil {
			return false, err
		}
	}
}

// relayReplies writes to the client what has arrived for it, until ctx ends or
// the worker has.
func (n *Node) relayReplies(ctx context.Context, st io.Writer, s *Sender) {
	var told uint64 // the epoch, which the client says at its next access node
	for {
		r, err := s.Recv(ctx)
		var end *endedError
		switch {
		case err == nil:
			if epoch := s.epochNow(); epoch != told {
				told = epoch
				if mesh.WriteMessage(st, deliverFrame{Welcome: &deliverWelcome{Epoch: epoch}}) != nil {
					return
				}
			}
			if mesh.WriteMessage(st, deliverFrame{Reply: &r}) != nil {
				return
			}
		case errors.As(err, &end):
			n.say(st, deliverFrame{Ended: &deliverEnded{State: end.state, Reason: end.reason}})
			return
		default:
			return // the client asks elsewhere, or here again
		}
	}
}

// watchAccess holds the round trip to a client against the promise, now and
// then until ctx ends.
func (n *Node) watchAccess(ctx context.Context, at *attachment) {
	t := time.NewTicker(accessInterval)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			if rtt := at.access(); rtt > 0 {
				n.promises.access(rtt, time.Now())
			}
		case <-ctx.Done():
			return
		}
	}
}
