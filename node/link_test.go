package node

import (
	"io"
	"sync"
	"testing"

	"meshnode/mesh"
	"meshnode/node/handover"
)

// underWay makes both sides of a move, each with its end of the control stream,
// and lists them at their nodes until forget is called. Nothing drives them.
func underWay(a, b *testNode) (id handover.MoveID, out *moveOut, in *moveIn, forget func()) {
	id = handover.NewMoveID()
	out = &moveOut{n: a.Node, id: id, to: b.id, box: newMailbox(a.log), runs: make(chan struct{})}
	in = &moveIn{n: b.Node, id: id, from: a.id, box: newMailbox(b.log)}
	out.lnk, in.lnk = a.newLink(id, b.id, out.feed), b.newLink(id, a.id, in.feed)
	a.mu.Lock()
	a.outgoing[id] = out
	a.mu.Unlock()
	b.mu.Lock()
	b.incoming[id] = in
	b.mu.Unlock()
	return id, out, in, func() {
		a.mu.Lock()
		delete(a.outgoing, id)
		a.mu.Unlock()
		b.mu.Lock()
		delete(b.incoming, id)
		b.mu.Unlock()
	}
}

// TestLinkDialledFromBothEnds has both ends of a move dial at the same moment,
// again and again: none may take the other's stream for an end of the path, and
// what is said must arrive, on one stream as on two.
func TestLinkDialledFromBothEnds(t *testing.T) {
	nodes := startNodes(t, 2)
	a, b := nodes[0], nodes[1]
	id, out, in, forget := underWay(a, b)
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
	links := []*link{out.lnk, in.lnk}
	var running sync.WaitGroup
	for _, l := range links {
		running.Go(func() { l.run(t.Context()) })
	}
	defer func() {
		forget()
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

// TestLinkMeetsOldDialLater: of two streams that a side dialled, the later one
// stays, in whichever order they are met.
func TestLinkMeetsOldDialLater(t *testing.T) {
	nodes := startNodes(t, 2)
	a, b := nodes[0], nodes[1]
	id, _, in, forget := underWay(a, b)
	defer forget()
	defer in.lnk.close()
	// dialled opens a stream as if in its turn.
	dialled := func(turn uint64) *mesh.Stream {
		t.Helper()
		s, err := a.mesh.Open(t.Context(), b.id, protoHandover, mesh.Urgent)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		hello := handoverHello{Move: id, Incarnation: 1, Dial: turn}
		if err := mesh.WriteMessage(s, handoverFrame{Hello: &hello}); err != nil {
			t.Fatal(err)
		}
		return s
	}
	met := func() *mesh.Stream {
		in.lnk.mu.Lock()
		defer in.lnk.mu.Unlock()
		return in.lnk.theirs
	}
	dialled(2)
	waitFor(t, "the second stream", func() bool { return met() != nil })
	second := met()
	if _, err := io.Copy(io.Discard, dialled(1)); err != nil { // until it is closed
		t.Fatal(err)
	}
	if met() != second {
		t.Error("the first stream took the second's place")
	}
	for _, ev := range in.box.take() {
		if _, up := ev.(handover.PathUp); !up {
			t.Errorf("heard %+v", ev)
		}
	}
	dialled(3)
	waitFor(t, "the third stream", func() bool { return met() != nil && met() != second })
}

// TestLinkCopies: a message for which a worker stands still arrives without the
// stream that has the first, if it is from whom it is to come and still waited
// for, and no other does.
func TestLinkCopies(t *testing.T) {
	nodes := startNodes(t, 3)
	a, b, c := nodes[0], nodes[1], nodes[2]
	id, out, in, forget := underWay(a, b)
	defer forget()
	message := func(move handover.MoveID, body handover.Body) handover.Message {
		return handover.Message{Move: move, Worker: newID(), Incarnation: 1, Ticket: 1, Body: body}
	}
	commit := func(image string) handover.Body { return handover.Commit{Epoch: 2, Head: []byte(image)} }
	// tell sends a copy, and waits until it was taken or not.
	tell := func(from, to *testNode, m handover.Message) {
		t.Helper()
		b, err := handover.Limits{}.Encode(m)
		if err != nil {
			t.Fatal(err)
		}
		s, err := from.mesh.Open(t.Context(), to.id, protoCopies, mesh.Urgent)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if err := mesh.WriteMessage(s, handoverFrame{Message: b}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, s); err != nil {
			t.Fatal(err)
		}
	}
	tell(c, b, message(id, commit("a stranger's")))
	tell(a, b, message(handover.NewMoveID(), commit("another move's")))
	tell(a, b, message(id, handover.Query{Epoch: 2}))
	if evs := in.box.take(); len(evs) > 0 {
		t.Errorf("heard %+v", evs)
	}
	heard := func(box *mailbox) handover.Message {
		t.Helper()
		select {
		case <-box.signal:
		case <-t.Context().Done():
			t.Fatal("nothing was heard")
		}
		return box.take()[0].(handover.Received).Message
	}
	out.lnk.sendCopy(t.Context(), message(id, commit("image")), out.runs)
	if m := heard(in.box); string(m.Body.(handover.Commit).Head) != "image" {
		t.Errorf("heard %+v", m)
	}
	in.lnk.sendCopy(t.Context(), message(id, handover.Running{}), nil)
	if m := heard(out.box); m.Body.Type() != handover.TypeRunning {
		t.Errorf("heard %+v", m)
	}
	tell(b, a, message(id, handover.Running{})) // or it takes the place of what was said since
	if evs := out.box.take(); len(evs) > 0 {
		t.Errorf("heard %+v again", evs)
	}
}
