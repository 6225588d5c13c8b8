package node

import (
	"cmp"
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
)

// A Sender sends messages to one worker, wherever it lives and however often it
// moves: each is processed once, in the order of Send, and each has its reply,
// in the same order. It keeps what has no reply yet and sends it again on every
// new connection; the worker's home knows repetitions by their numbers.
//
// A client of this node has one here, and so has a worker that sends. A client
// elsewhere has one in its own process, which speaks to a node, and that node
// has another of the same id and numbers, which speaks to the home; see
// [Client] and serveAttach.
//
// Send and Recv may be called concurrently with each other.
type Sender struct {
	node *Node  // nil in a client's own process
	name string // of the worker; looked up where worker is not known yet
	id   senderID
	from string // the name of the worker that sends; empty for a client
	// follow connects s, again and again, until its context ends or the worker
	// has: see [Node.follow].
	follow func(ctx context.Context, s *Sender) error
	// relays says that a client elsewhere has to acknowledge the replies;
	// access returns how far away it is. Where access is nil, it is not known.
	relays bool
	access func() time.Duration
	// onReply is called for every reply instead of keeping it for Recv, and
	// onEnd with the reason when no more replies will come. Both may be nil.
	onReply func()
	onEnd   func(error)

	mu      sync.Mutex
	worker  string           // id
	pending []deliverMessage // sent or to be sent, no reply yet; in order
	bytes   int              // payload bytes in pending
	next    uint64           // the number of the next message
	acked   uint64           // all replies up to here have arrived
	got     uint64           // Recv has returned all replies up to here
	replies []reply          // arrived, and not yet taken by Recv
	err     error            // no more replies will come
	epoch   uint64           // the latest in which the worker has welcomed s
	held    bool             // the home has no room on this connection
	rewind  uint64           // the home has room again, from this number on; 0 if it did not say
	changed chan struct{}    // closed and replaced at every change of the above
	at      mesh.NodeID      // the home to which s is connected, or was last
	beyond  time.Duration    // what the last answered call took beyond a round trip there; 0 if not known

	cancel context.CancelCauseFunc
	done   chan struct{}
}

// senderBytes bounds the payload bytes that one sender keeps for sending again.
const senderBytes = 4 << 20

var (
	errClosed = errors.New("sender closed") // by its owner, for good
	errHalted = errors.New("sender halted") // to be started again, perhaps elsewhere
)

// ackDelay is how long a sender waits for a message that could carry what has
// arrived.
const ackDelay = 100 * time.Millisecond

// nameWait is how long messages to a name that no worker has are kept.
const nameWait = 30 * time.Second

// newSender starts a sender to the worker with that id, for a client of this
// node. Close ends it.
func (n *Node) newSender(worker string) *Sender {
	s := &Sender{node: n, worker: worker, follow: n.follow, access: func() time.Duration { return localAccess }}
	crand.Read(s.id[:])
	s.init(1)
	s.start(n.ctx, &n.tasks)
	return s
}

// localAccess stands for the round trip between a node and a client on the same
// machine: some tens of microseconds over the control socket.
const localAccess = 50 * time.Microsecond

// init makes a sender whose first message has that number.
func (s *Sender) init(first uint64) {
	s.next, s.acked, s.got = first, first-1, first-1
	s.changed = make(chan struct{})
}

// start begins to deliver, until ctx ends, in a goroutine of tasks. After halt
// it may be called again.
func (s *Sender) start(ctx context.Context, tasks *tasks) {
	ctx, cancel := context.WithCancelCause(ctx)
	s.cancel, s.done = cancel, make(chan struct{})
	tasks.Go(func() {
		defer close(s.done)
		err := s.follow(ctx, s)
		if errors.Is(err, errHalted) {
			return
		}
		s.mu.Lock()
		s.err = err
		s.changedLocked()
		s.mu.Unlock()
		if s.onEnd != nil {
			s.onEnd(err)
		}
	})
}

// Close ends the sender. Messages without a reply may or may not have been
// processed.
func (s *Sender) Close() {
	s.cancel(errClosed)
	<-s.done
}

// halt ends the deliveries until start: the home is not told that the sender will
// not come back.
func (s *Sender) halt() {
	s.cancel(errHalted)
	<-s.done
}

// backlog returns how much has no reply yet.
func (s *Sender) backlog() (messages, bytes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.pending), s.bytes
}

// add queues a message that wants no answer, without regard to the window: the
// outbox has its own.
func (s *Sender) add(payload []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addLocked(false, payload)
}

func (s *Sender) changedLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Send queues a message and waits while the window is full. The error is the
// reason why the worker cannot be reached any more, or ctx's. The payload must
// not be changed afterwards.
func (s *Sender) Send(ctx context.Context, call bool, payload []byte) error {
	if len(payload) > MaxPayload {
		return errPayload(len(payload))
	}
	for {
		s.mu.Lock()
		if s.err != nil {
			s.mu.Unlock()
			return s.err
		}
		if s.roomLocked(len(payload)) {
			s.addLocked(call, payload)
			s.mu.Unlock()
			return nil
		}
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// roomLocked reports whether a message of n bytes fits the window. Replies that
// nobody has taken count: a client that does not read is not sent for.
func (s *Sender) roomLocked(n int) bool {
	return len(s.pending)+len(s.replies) < senderWindow && (s.bytes == 0 || s.bytes+n <= senderBytes)
}

func (s *Sender) addLocked(call bool, payload []byte) {
	s.pending = append(s.pending, deliverMessage{Seq: s.next, Call: call, Payload: payload, queued: time.Now()})
	s.bytes += len(payload)
	s.next++
	s.changedLocked()
}

// Recv waits for the next reply. After the last one it returns the reason why
// no more come.
func (s *Sender) Recv(ctx context.Context) (reply, error) {
	for {
		s.mu.Lock()
		if len(s.replies) > 0 {
			r := s.replies[0]
			s.replies = slices.Delete(s.replies, 0, 1)
			s.got = r.Seq
			s.changedLocked()
			s.mu.Unlock()
			return r, nil
		}
		err, changed := s.err, s.changed
		s.mu.Unlock()
		if err != nil {
			return reply{}, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return reply{}, context.Cause(ctx)
		}
	}
}

// take queues a message as it came from the client of a sender that relays. The
// error is a breach of the rules by the client: it keeps to the window, which
// is not smaller than what waits here.
func (s *Sender) take(m deliverMessage) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case len(m.Payload) > MaxPayload:
		return fmt.Errorf("a payload of %d bytes", len(m.Payload))
	case m.Seq < s.next:
		return nil
	case m.Seq > s.next:
		return fmt.Errorf("%w: %d after %d", errGap, m.Seq, s.next-1)
	case s.err != nil:
		return nil // the client is being told
	case len(s.pending) >= senderWindow || s.bytes > 0 && s.bytes+len(m.Payload) > senderBytes:
		return errors.New("more messages than the window allows")
	}
	s.addLocked(m.Call, m.Payload)
	return nil
}

// acknowledge is what the client of a sender that relays says of the replies
// that it has. It cannot have one that is still here: if it could say so, a
// client that does not read would have replies pile up here.
func (s *Sender) acknowledge(acked uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if acked > s.got {
		return fmt.Errorf("reply %d acknowledged, the last was %d", acked, s.got)
	}
	if acked > s.acked {
		s.acked = acked
		s.changedLocked()
	}
	return nil
}

// follow connects s to the worker's home, wherever that is.
func (n *Node) follow(ctx context.Context, s *Sender) error {
	if err := s.lookup(ctx); err != nil {
		return err
	}
	var hint deliverMoved // where a home said the worker went
	wait := retryWait{min: 5 * time.Millisecond, max: time.Second}
	listed := time.Now() // when the directory last knew the worker
	for {
		// The watch is taken first, so that a change between the look and the
		// wait ends the wait.
		changed := s.node.dir.watch()
		home, err := s.home(hint)
		if errors.Is(err, errNotListed) && time.Since(listed) < nameWait {
			if !wait.pause(ctx, changed) {
				return context.Cause(ctx)
			}
			continue
		}
		if errors.Is(err, errNotListed) {
			err = &endedError{worker: s.worker, state: control.StateStopped}
		}
		if err != nil {
			return err
		}
		listed = time.Now()
		moved, welcome, err := s.visit(ctx, home)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.As(err, new(*endedError)):
			return err
		case moved.To != "" && moved.Epoch > hint.Epoch:
			hint = moved
			wait.reset()
			continue // at once: this is the gap that a client sees
		}
		if welcome {
			wait.reset()
		} else {
			// The hint led nowhere; what gossip says is as good.
			s.node.log.Debug("worker not reached", "worker", s.worker, "home", home, "error", err)
		}
		if !wait.pause(ctx, changed) {
			return context.Cause(ctx)
		}
		if !welcome && wait.tries > 3 {
			hint = deliverMoved{}
		}
	}
}

// lookup finds out which worker the name means.
func (s *Sender) lookup(ctx context.Context) error {
	if s.worker != "" {
		return nil
	}
	deadline := time.NewTimer(nameWait)
	defer deadline.Stop()
	for {
		changed := s.node.dir.watch()
		e, err := s.node.dir.find(s.name)
		if err == nil {
			s.mu.Lock()
			s.worker = e.ID
			s.mu.Unlock()
			return nil
		}
		select {
		case <-changed:
		case <-deadline.C:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// home says where to look for the worker: what the directory knows, unless a
// home has since said better.
func (s *Sender) home(hint deliverMoved) (mesh.NodeID, error) {
	e, ok := s.node.dir.get(s.worker)
	switch {
	case hint.To != "" && (!ok || hint.Epoch > e.Epoch):
		return hint.To, nil
	case ok && ended(e.State):
		return "", &endedError{worker: e.Name, state: e.State, reason: e.Reason}
	case ok:
		return e.Home, nil
	}
	return "", errNotListed
}

// errNotListed means that gossip has not brought, or no longer has, the worker.
var errNotListed = errors.New("the worker is not in the directory")

// visit holds one connection to a home until it breaks. welcome says that the
// home serves this sender.
func (s *Sender) visit(ctx context.Context, home mesh.NodeID) (moved deliverMoved, welcome bool, err error) {
	st, err := s.node.openStream(ctx, home, protoDeliver, mesh.Urgent)
	if err != nil {
		return moved, false, err
	}
	s.mu.Lock()
	s.at, s.beyond = home, 0
	s.mu.Unlock()
	return s.converse(ctx, st, s.worker)
}

// converse delivers over a stream until it breaks, and closes it.
func (s *Sender) converse(ctx context.Context, st stream, worker string) (moved deliverMoved, welcome bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer st.Close()
	stop := context.AfterFunc(ctx, func() {
		if s.node == nil && errors.Is(context.Cause(ctx), errClosed) {
			// The connection under the stream goes next, and what it has not
			// delivered goes with it. The node closes the stream when it has
			// heard the goodbye.
			_ = st.SetDeadline(time.Now().Add(time.Second))
			return
		}
		interrupt(st)
		if errors.Is(context.Cause(ctx), errClosed) {
			_ = st.SetWriteDeadline(time.Now().Add(time.Second)) // for the goodbye
		}
	})
	defer stop()

	s.mu.Lock()
	sent, epoch := s.acked, s.epoch // the last number written to this stream
	seen := s.seenLocked()
	s.mu.Unlock()
	hello := &deliverHello{Worker: worker, Sender: s.id, Base: sent + 1, From: s.from, Epoch: epoch}
	if seen > sent {
		hello.Seen = seen // a client has it, or is about to, and has not said so
	}
	if err := mesh.WriteMessage(st, deliverFrame{Hello: hello}); err != nil {
		return moved, false, err
	}
	s.mu.Lock()
	s.held, s.rewind = false, 0
	s.mu.Unlock()
	written := make(chan error, 1)
	go func() {
		err := s.write(ctx, st, sent)
		cancel()
		written <- err
	}()
	moved, welcome, err = s.read(st)
	// A closed sender says goodbye on its way out (in write), so that the home
	// forgets it at once.
	cancel()
	if werr := <-written; err == nil || errors.Is(err, io.EOF) {
		err = errors.Join(err, werr)
	}
	return moved, welcome, err
}

func bySeq(m deliverMessage, seq uint64) int { return cmp.Compare(m.Seq, seq) }

func (s *Sender) write(ctx context.Context, st io.Writer, sent uint64) error {
	told := sent // the home knows that replies up to here have arrived
	for {
		s.mu.Lock()
		changed := s.changed
		if s.rewind > 0 {
			sent, s.rewind = min(sent, s.rewind-1), 0
		}
		i, _ := slices.BinarySearchFunc(s.pending, sent+1, bySeq)
		// The window is the home's too: it reads no further than that, and it
		// learns what has arrived only from the messages.
		acked, beyond := s.acked, s.beyond
		j, _ := slices.BinarySearchFunc(s.pending, acked+senderWindow+1, bySeq)
		if s.held {
			j = i
		}
		batch := slices.Clone(s.pending[i:max(i, j)])
		s.mu.Unlock()
		for i := range batch {
			if ctx.Err() != nil || s.isHeld() {
				break
			}
			batch[i].Acked, batch[i].Beyond = acked, beyond
			if s.access != nil {
				batch[i].Access = s.access()
			}
			if err := mesh.WriteMessage(st, deliverFrame{Message: &batch[i]}); err != nil {
				return err
			}
			sent, told = batch[i].Seq, acked
		}
		var idle <-chan time.Time
		if acked > told {
			idle = time.After(ackDelay)
		}
		select {
		case <-changed:
		case <-idle:
			// No message came that could have said it: the home keeps replies
			// until it knows that they have arrived.
			if err := mesh.WriteMessage(st, deliverFrame{Ack: acked}); err != nil {
				return err
			}
			told = acked
		case <-ctx.Done():
			if errors.Is(context.Cause(ctx), errClosed) {
				return mesh.WriteMessage(st, deliverFrame{Bye: &deliverBye{}})
			}
			return nil
		}
	}
}

// isHeld reports whether the home would pass over what is written now.
func (s *Sender) isHeld() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held || s.rewind > 0
}

// hold and goOn are the home's word on whether it has room.
func (s *Sender) hold() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = true
}

func (s *Sender) goOn(from uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held, s.rewind = false, from
	s.changedLocked()
}

func (s *Sender) read(st io.Reader) (moved deliverMoved, welcome bool, err error) {
	for {
		var f deliverFrame
		if err := mesh.ReadMessage(st, maxDeliverFrame, &f); err != nil {
			return moved, welcome, err
		}
		switch {
		case f.Welcome != nil:
			welcome = true
			s.welcomed(f.Welcome.Worker, f.Welcome.Epoch)
		case f.Reply != nil:
			s.arrived(*f.Reply)
		case f.Hold != nil:
			s.hold()
		case f.Go != 0:
			s.goOn(f.Go)
		case f.Moved != nil:
			return *f.Moved, welcome, nil
		case f.Ended != nil:
			return moved, welcome, &endedError{worker: s.label(), state: f.Ended.State, reason: f.Ended.Reason}
		case f.Refused != nil:
			return moved, false, &refusedError{gone: f.Refused.Gone, reason: f.Refused.Reason}
		default:
			return moved, welcome, errors.New("an empty frame")
		}
	}
}

// arrived takes a reply. One that was had before, on an earlier connection, is
// dropped; they come in order on each.
func (s *Sender) arrived(r reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case len(s.pending) > 0 && r.Seq == s.pending[0].Seq:
		s.timedLocked(&s.pending[0], time.Now())
		s.bytes -= len(s.pending[0].Payload)
		s.pending = slices.Delete(s.pending, 0, 1)
	case s.relays && len(s.pending) == 0 && r.Seq == s.next:
		// The client sent it by another access node. It has not come here yet, and
		// need not: the home says each reply once on a connection.
		s.next++
	default:
		return
	}
	if !s.relays {
		s.acked = r.Seq
	}
	if s.onReply != nil {
		s.onReply()
	} else {
		s.replies = append(s.replies, r)
	}
	s.changedLocked()
}

// timedLocked notes what a message that was answered now took beyond a round
// trip, where that is known.
func (s *Sender) timedLocked(m *deliverMessage, now time.Time) {
	if s.node == nil || s.access == nil || !m.Call {
		return
	}
	rtt, ok := time.Duration(0), s.at == s.node.id
	if !ok {
		rtt, ok = s.node.rtts.last(s.at, now)
	}
	if took := now.Sub(m.queued) - rtt; ok && took > 0 && took <= maxBeyond {
		s.beyond = took
	}
}

// seenLocked is the last number whose reply has arrived.
func (s *Sender) seenLocked() uint64 {
	if len(s.pending) > 0 {
		return s.pending[0].Seq - 1
	}
	return s.next - 1
}

// welcomed takes the id of the worker that a name has turned out to mean, and
// the epoch that it is in; either may be missing.
func (s *Sender) welcomed(worker string, epoch uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.epoch = max(s.epoch, epoch)
	if s.worker == "" && validID(worker) {
		s.worker = worker
		s.changedLocked()
	}
}

func (s *Sender) epochNow() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.epoch
}

// label is what to call the worker in a message.
func (s *Sender) label() string {
	if s.node != nil {
		if e, ok := s.node.dir.get(s.worker); ok {
			return e.Name
		}
	}
	return cmp.Or(s.name, s.worker)
}

// A refusedError means that a node does not serve a sender, gone that it knows
// of no such worker.
type refusedError struct {
	gone   bool
	reason string
}

func (e *refusedError) Error() string {
	if e.gone {
		return cmp.Or(e.reason, "refused: the worker is not known there")
	}
	return "refused: " + e.reason
}

// An endedError means that the worker runs nowhere any more.
type endedError struct {
	worker string
	state  string
	reason string
}

func (e *endedError) Error() string {
	if e.reason == "" {
		return fmt.Sprintf("worker %s is %s", e.worker, e.state)
	}
	return fmt.Sprintf("worker %s is %s: %s", e.worker, e.state, e.reason)
}

// A retryWait paces attempts: exponential, with jitter, so that many waiting
// for one thing do not come all at once.
type retryWait struct {
	min, max time.Duration
	tries    int
}

func (w *retryWait) reset() { w.tries = 0 }

// pause waits for the next turn, or until early is closed. It reports whether
// ctx still stands.
func (w *retryWait) pause(ctx context.Context, early <-chan struct{}) bool {
	d := min(w.max, w.min<<min(w.tries, 20))
	w.tries++
	t := time.NewTimer(d/2 + rand.N(d/2+1))
	defer t.Stop()
	select {
	case <-t.C:
	case <-early:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}
