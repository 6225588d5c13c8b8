package node

import (
	"sync"
	"testing"

	"meshnode/node/handover"
)

// TestLinkDialledFromBothEnds has both ends of a move dial at the same moment,
// again and again: none may take the other's stream for an end of the path, and
// what is said must arrive, on one stream as on two.
func TestLinkDialledFromBothEnds(t *testing.T) {
	nodes := startNodes(t, 2)
	a, b := nodes[0], nodes[1]
	id := handover.NewMoveID()
	out := &moveOut{n: a.Node, id: id, to: b.id, box: newMailbox(a.log)}
	in := &moveIn{n: b.Node, id: id, from: a.id, box: newMailbox(b.log)}
	var mu sync.Mutex
	downs, heard := 0, make(chan handover.Type, 16)
	watch := func(ev handover.Event) {
		switch ev := ev.(type) {
		case handover.PathDown:
			mu.Lock()
			downs++
			mu.Unlock()
		case handover.Received:
			select {
			case heard <- ev.Message.Body.Type():
			default:
			}
		}
	}
	drained := func(box *mailbox) {
		for {
			select {
			case <-box.signal:
				for _, ev := range box.take() {
					watch(ev)
				}
			case <-t.Context().Done():
				return
			}
		}
	}
	go drained(out.box)
	go drained(in.box)
	out.lnk = a.newLink(id, b.id, out.feed)
	in.lnk = b.newLink(id, a.id, in.feed)
	a.mu.Lock()
	a.outgoing[id] = out
	a.mu.Unlock()
	b.mu.Lock()
	b.incoming[id] = in
	b.mu.Unlock()
	links := []*link{out.lnk, in.lnk}
	var running sync.WaitGroup
	for _, l := range links {
		running.Go(func() { l.run(t.Context()) })
	}
	defer func() {
		a.mu.Lock()
		delete(a.outgoing, id)
		a.mu.Unlock()
		b.mu.Lock()
		delete(b.incoming, id)
		b.mu.Unlock()
		for _, l := range links {
			l.close()
		}
	}()

	both := func() bool {
		for _, l := range links {
			l.mu.Lock()
			there := l.own != nil && l.theirs != nil
			l.mu.Unlock()
			if !there {
				return false
			}
		}
		return true
	}
	// What is on a stream that is replaced is lost, so it is repeated, as the
	// machines do.
	talk := func() {
		t.Helper()
		got := make(map[handover.Type]bool)
		waitFor(t, "what both sides say", func() bool {
			out.lnk.send(handover.Message{Move: id, Worker: newID(), Incarnation: 1, Ticket: 1, Body: handover.Query{Epoch: 2}})
			in.lnk.send(handover.Message{Move: id, Worker: newID(), Incarnation: 1, Ticket: 1, Body: handover.Running{}})
			for {
				select {
				case typ := <-heard:
					got[typ] = true
				default:
					return len(got) == 2
				}
			}
		})
	}
	for range 10 {
		var dials sync.WaitGroup
		for _, l := range links {
			dials.Go(func() {
				if _, err := l.dial(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		dials.Wait()
		waitFor(t, "a stream from each end", both)
		talk()
	}
	mu.Lock()
	if downs != 0 {
		t.Errorf("the path was given up %d times, and never broke", downs)
	}
	mu.Unlock()
	// One of the two ends: the other carries on.
	out.lnk.mu.Lock()
	own := out.lnk.own
	out.lnk.mu.Unlock()
	own.Close()
	waitFor(t, "its end", func() bool { return !both() })
	talk()
}
