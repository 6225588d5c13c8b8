package node

import (
	"context"
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
	outlet  *outlet
	replies []reply
}

// TestInboxOnceAndInOrder drives an inbox with clients that lose connections
// and send again, and with moves from node to node at any point, and compares
// with what must come out: each message once, in each client's order, and each
// reply once.
func TestInboxOnceAndInOrder(t *testing.T) {
	for round := range 200 {
		seed := uint64(round)
		rng := rand.New(rand.NewPCG(seed, 1))
		in := newInbox()
		processed := make(map[senderID][]uint64)
		clients := make([]*testClient, 3)
		for i := range clients {
			clients[i] = &testClient{id: senderID{byte(i)}, next: 1}
		}
		now := time.Now()
		for range 400 {
			c := clients[rng.IntN(len(clients))]
			switch rng.IntN(8) {
			case 0: // connection lost
				if c.outlet != nil {
					in.detach(c.outlet, false, now)
					c.outlet = nil
				}
			case 1, 2: // another message
				if c.next-c.acked <= senderWindow {
					c.next++
				}
			case 3: // the worker handles one
				if m := in.pop(); m != nil {
					processed[m.sender.id] = append(processed[m.sender.id], m.seq)
					in.done(m, reply{Payload: fmt.Appendf(nil, "%d", m.seq)})
				}
			case 4: // the worker moves: what is not in the image is forgotten
				if rng.IntN(10) == 0 {
					if rng.IntN(2) == 0 {
						in.gate()
					}
					cursors := in.cursors()
					in.close(deliverFrame{Moved: &deliverMoved{}})
					in = newInbox()
					if err := in.restore(cursors, now); err != nil {
						t.Fatal(err)
					}
					for _, c := range clients {
						c.outlet = nil
					}
				}
			default: // send, from the first without a reply on a new connection
				if c.outlet == nil {
					o, _, err := in.attach(c.id, c.acked+1, now)
					if err != nil {
						t.Fatal(err)
					}
					c.outlet, c.sent = o, c.acked
				}
				if c.sent+1 < c.next {
					c.sent++
					if err := in.push(t.Context(), c.outlet, c.sent, true, nil, c.acked); err != nil {
						t.Fatalf("seed %d: %v", seed, err)
					}
				}
				c.take()
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

// take reads the replies that have arrived, dropping those had before.
func (c *testClient) take() {
	for {
		select {
		case f, open := <-c.outlet.out:
			if !open {
				return
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
	if err := in.push(t.Context(), o, 1, true, nil, 0); err != nil {
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
	for seq := range uint64(senderWindow) {
		if err := in.push(t.Context(), o, seq+1, false, nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	pushed := make(chan error)
	go func() { pushed <- in.push(t.Context(), o, senderWindow+1, false, nil, 1) }()
	in.done(in.pop(), reply{})
	if err := <-pushed; err != nil {
		t.Fatalf("after room was made: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := in.push(ctx, o, senderWindow+2, false, nil, 1); !errors.Is(err, context.Canceled) {
		t.Fatalf("a full inbox took a message: %v", err)
	}
	if err := in.push(t.Context(), o, senderWindow+9, false, nil, 1); !errors.Is(err, errGap) {
		t.Fatalf("a gap gave %v", err)
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
