package node

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// A client sends numbered messages and reconnects at random, as Sender does,
// but one step at a time.
type testClient struct {
	id      senderID
	next    uint64 // the next message to make
	acked   uint64
	sent    uint64 // on this connection
	told    uint64 // what it has acknowledged on it
	wire    []wired
	held    bool
	outlet  *outlet
	replies []reply
}

// A wired message is on its way: what the client knew when it wrote it. Without a
// number it only says that.
type wired struct{ seq, acked uint64 }

// write puts the next message on the wire, if there is one that may be sent, or
// what has been acknowledged.
func (c *testClient) write() (message bool) {
	switch {
	case c.sent+1 < c.next && !c.held:
		c.sent++
		c.wire, c.told = append(c.wire, wired{c.sent, c.acked}), c.acked
		return true
	case c.acked > c.told:
		c.wire, c.told = append(c.wire, wired{0, c.acked}), c.acked
	}
	return false
}

// TestInboxOnceAndInOrder drives an inbox with clients that lose connections
// and send again, and with moves from node to node at any point, and compares
// with what must come out: each message once, in each client's order, and each
// reply once.
func TestInboxOnceAndInOrder(t *testing.T) {
	const maxReply = 3 // bytes: a message's number
	for round := range 400 {
		seed := uint64(round)
		rng := rand.New(rand.NewPCG(seed, 1))
		in := newInbox()
		limits := in.limits
		if rng.IntN(2) == 0 {
			limits = queueLimits{messages: 1 + rng.IntN(4), bytes: MaxPayload}
		}
		in.limit(limits)
		if rng.IntN(2) == 0 {
			in.keeps = replyLimits{sender: 1 + rng.IntN(6), all: 1 + rng.IntN(12)}
		}
		processed := make(map[senderID][]uint64)
		clients := make([]*testClient, 3)
		large := make([]byte, rng.IntN(2)*MaxPayload) // so that the inbox fills, or nothing
		var handling *message
		for i := range clients {
			clients[i] = &testClient{id: senderID{byte(i)}, next: 1}
		}
		now := time.Now()
		for range 400 {
			c := clients[rng.IntN(len(clients))]
			switch rng.IntN(10) {
			case 0: // connection lost
				if c.outlet != nil && rng.IntN(4) == 0 {
					in.detach(c.outlet, false, now)
					c.outlet = nil
				}
			case 1, 2, 3: // another message
				if c.next-c.acked <= senderWindow {
					c.next++
				}
			case 4: // the worker takes one, or has handled it
				if m := handling; m != nil {
					handling = nil
					processed[m.sender.id] = append(processed[m.sender.id], m.seq)
					in.done(m, reply{Payload: fmt.Appendf(nil, "%d", m.seq)})
				} else {
					handling = in.pop()
				}
			case 5: // the worker moves: what is not in the image is forgotten
				if handling == nil && rng.IntN(10) == 0 {
					if rng.IntN(2) == 0 {
						in.gate()
					}
					cursors := in.cursors()
					in.close(deliverFrame{Moved: &deliverMoved{}})
					keeps := in.keeps
					in = newInbox()
					in.keeps = keeps
					in.limit(limits)
					if err := in.restore(cursors, now); err != nil {
						t.Fatal(err)
					}
					for _, c := range clients {
						c.outlet = nil
					}
				}
			case 6: // what was written arrives
				if c.outlet != nil {
					c.deliver(t, in, large)
				}
			default: // send, from the first without a reply on a new connection
				if c.outlet == nil {
					o, _, err := in.attach(c.id, c.acked+1, now)
					if err != nil {
						t.Fatal(err)
					}
					c.outlet, c.sent, c.told, c.wire, c.held = o, c.acked, c.acked, nil, false
				}
				c.write()
				c.take()
			}
			kept := 0
			for _, s := range in.senders {
				if kept += s.kept; s.kept >= in.keeps.sender+maxReply {
					t.Fatalf("seed %d: %d bytes of replies are kept for a sender, the limit is %d", seed, s.kept, in.keeps.sender)
				}
			}
			if kept != in.kept || kept >= in.keeps.all+len(clients)*maxReply {
				t.Fatalf("seed %d: %d bytes of replies are kept, counted as %d, the limit is %d", seed, kept, in.kept, in.keeps.all)
			}
		}
		// Everybody goes on, and it comes to an end.
		in.release()
		last, idle := uint64(0), 0
		for open := true; open; {
			open = false
			all := uint64(0)
			for _, c := range clients {
				if c.outlet == nil {
					o, _, err := in.attach(c.id, c.acked+1, now)
					if err != nil {
						t.Fatal(err)
					}
					c.outlet, c.sent, c.told, c.wire, c.held = o, c.acked, c.acked, nil, false
				}
				c.take()
				for c.write() {
				}
				open = open || c.acked+1 < c.next
				all += c.acked
				c.deliver(t, in, large)
			}
			if idle++; all != last {
				last, idle = all, 0
			}
			if idle > 100 {
				t.Fatalf("seed %d: the clients wait for ever", seed)
			}
			m := handling
			if handling = nil; m == nil {
				m = in.pop()
			}
			if m != nil {
				processed[m.sender.id] = append(processed[m.sender.id], m.seq)
				in.done(m, reply{Payload: fmt.Appendf(nil, "%d", m.seq)})
			}
		}
		for _, c := range clients {
			for i, seq := range processed[c.id] {
				if seq != uint64(i+1) {
					t.Fatalf("seed %d: message %d was processed in place %d", seed, seq, i+1)
				}
			}
			for i, r := range c.replies {
				if want := fmt.Sprint(i + 1); string(r.Payload) != want || r.Seq != uint64(i+1) {
					t.Fatalf("seed %d: reply %d is %q of message %d", seed, i+1, r.Payload, r.Seq)
				}
			}
		}
	}
}

// deliver gives the inbox all that is on its way.
func (c *testClient) deliver(t *testing.T, in *inbox, payload []byte) {
	t.Helper()
	for _, m := range c.wire {
		if m.seq == 0 {
			in.ack(c.outlet, m.acked)
			continue
		}
		if err := in.push(c.outlet, m.seq, true, payload, m.acked); err != nil {
			t.Fatal(err)
		}
		if in.bytes > in.limits.bytes || len(in.queue) > in.limits.messages {
			t.Fatalf("%d bytes in %d messages wait", in.bytes, len(in.queue))
		}
	}
	c.wire = nil
}

// take reads the replies that have arrived, dropping those had before.
func (c *testClient) take() {
	for {
		select {
		case f, open := <-c.outlet.out:
			if !open {
				return
			}
			if f.Hold != nil {
				c.held = true
				continue
			}
			if f.Go != 0 {
				c.held, c.sent = false, min(c.sent, f.Go-1)
				continue
			}
			if f.Reply.Seq == c.acked+1 {
				c.acked++
				c.replies = append(c.replies, *f.Reply)
			}
		default:
			return
		}
	}
}

func TestInboxGate(t *testing.T) {
	in := newInbox()
	in.gate()
	o, _, err := in.attach(senderID{1}, 1, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := in.push(o, 1, true, nil, 0); err != nil {
		t.Fatal(err)
	}
	in.done(in.pop(), reply{})
	select {
	case f := <-o.out:
		t.Fatalf("%+v left before it was let go", f)
	default:
	}
	in.release()
	if f := <-o.out; f.Reply == nil || f.Reply.Seq != 1 {
		t.Fatalf("got %+v after the release", f)
	}
}

func TestInboxBackPressure(t *testing.T) {
	in := newInbox()
	o, _, err := in.attach(senderID{1}, 1, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	push := func(seq uint64) {
		t.Helper()
		if err := in.push(o, seq, false, nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	for seq := range uint64(senderWindow) {
		push(seq + 1)
	}
	push(senderWindow + 1)
	if f := <-o.out; f.Hold == nil {
		t.Fatalf("a full inbox said %+v", f)
	}
	// What was written before that was heard is passed over.
	push(senderWindow + 2)
	push(senderWindow + 1)
	if _, waiting := in.depth(); waiting != senderWindow || len(o.out) != 0 {
		t.Fatalf("%d messages wait, and %d frames were said", waiting, len(o.out))
	}
	in.done(in.pop(), reply{})
	if f := <-o.out; f.Reply == nil {
		t.Fatalf("got %+v instead of a reply", f)
	}
	in.ack(o, 1)
	if f := <-o.out; f.Go != senderWindow+1 {
		t.Fatalf("after room was made the inbox said %+v", f)
	}
	push(senderWindow + 2)
	push(senderWindow + 1)
	if err := in.push(o, senderWindow+9, false, nil, 1); !errors.Is(err, errGap) {
		t.Fatalf("a gap gave %v", err)
	}
}

func TestInboxLimits(t *testing.T) {
	in := newInbox()
	in.limit(queueLimits{messages: 2, bytes: 100})
	o, _, err := in.attach(senderID{1}, 1, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	push := func(seq uint64, size int) {
		t.Helper()
		if err := in.push(o, seq, false, make([]byte, size), 0); err != nil {
			t.Fatal(err)
		}
	}
	held := func(why string) {
		t.Helper()
		if f := <-o.out; f.Hold == nil {
			t.Fatalf("%s: the inbox said %+v", why, f)
		}
	}
	handle := func() {
		t.Helper()
		m := in.pop()
		if m == nil {
			t.Fatal("nothing waits")
		}
		in.done(m, reply{})
		if f := <-o.out; f.Reply == nil {
			t.Fatalf("got %+v instead of a reply", f)
		}
	}
	push(1, 500) // alone, however large
	push(2, 1)
	held("over the bytes")
	handle()
	if f := <-o.out; f.Go != 2 {
		t.Fatalf("after room was made the inbox said %+v", f)
	}
	push(2, 1)
	push(3, 1)
	push(4, 1)
	held("over the messages")
	in.limit(queueLimits{messages: 8, bytes: 100})
	if f := <-o.out; f.Go != 4 {
		t.Fatalf("after the manifest allowed more the inbox said %+v", f)
	}
	push(4, 1)
	for range 3 {
		handle()
	}
}

func TestInboxRestoreRefuses(t *testing.T) {
	ok := senderCursor{ID: senderID{1}, Done: 3, Replies: []reply{{Seq: 2}, {Seq: 3}}}
	for name, cs := range map[string][]senderCursor{
		"twice":       {ok, ok},
		"future":      {{Done: 1, Replies: []reply{{Seq: 2}}}},
		"disordered":  {{Done: 3, Replies: []reply{{Seq: 3}, {Seq: 2}}}},
		"large":       {{Done: 1, Replies: []reply{{Seq: 1, Payload: make([]byte, MaxPayload+1)}}}},
		"too many":    {{Done: 999, Replies: slices.Repeat([]reply{{Seq: 1}}, senderWindow+1)}},
		"all senders": make([]senderCursor, maxSenders+1),
	} {
		if err := newInbox().restore(cs, time.Now()); err == nil {
			t.Errorf("%s: restored", name)
		}
	}
	if err := newInbox().restore([]senderCursor{ok}, time.Now()); err != nil {
		t.Errorf("a valid cursor: %v", err)
	}
}
