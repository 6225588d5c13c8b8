package node

import (
	"bytes"
	"log/slog"
	"testing"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/node/runner"
	"meshnode/node/suspend"
	"meshnode/node/wasi"
	"meshnode/pager"
)

func sampleImage() image {
	program, err := (&suspend.State{
		Version: 2, Entry: "_start", Globals: []uint64{9},
		Frames: []suspend.Frame{{Function: 3, Point: 1, Values: []uint64{1 << 40, 2}}},
		Tables: [][]uint32{{0, 4}},
	}).AppendBinary(nil)
	if err != nil {
		panic(err)
	}
	return image{
		Spec: spec{
			ID: newID(), Name: "sample", Module: pager.Hash{1}, ModuleBytes: 9, MemoryLimit: 2 * wasmPage,
			Args: []string{"a"}, Env: []string{"K=V"}, Created: 1,
		},
		State: runner.State{
			Pages: 2, Globals: []runner.Global{{Index: 1, Type: 0x7f, Value: 7}}, WASI: wasi.State{FDs: []wasi.FD{{}, {Stream: 1}, {Closed: true}}}, Clock: 5,
			Program: program,
		},
		Timers:  []timerState{{ID: 1, Left: time.Second, Every: time.Minute}},
		Senders: []senderCursor{{ID: senderID{1}, Done: 3, Replies: []reply{{Seq: 3, Payload: []byte("r")}}}},
		Outbox: []outState{{
			Name: "other", Sender: senderID{2}, Next: 2,
			Pending: []deliverMessage{{Seq: 1, Payload: []byte("m")}},
		}},
		Events: 4,
		Lines:  [][]byte{[]byte("half a li"), nil},
		Layout: pager.Layout{Pages: 32}.Append(nil),
	}
}

// FuzzImage: no bytes panic, and what is accepted encodes to the same bytes.
func FuzzImage(f *testing.F) {
	b, err := sampleImage().encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(imageMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		img, err := parseImage(b)
		if err != nil {
			return
		}
		out, err := img.encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseImage(out)
		if err != nil {
			t.Fatalf("%x: accepted once, then not: %v", b, err)
		}
		if twice, _ := again.encode(); !bytes.Equal(out, twice) {
			t.Fatalf("%x encodes to %x and then to %x", b, out, twice)
		}
		in, box := newInbox(), newOutbox(&Node{}, "w", func(string, ...any) {})
		_ = in.restore(img.Senders, time.Now()) // must not panic
		_ = box.restore(img.Outbox)
		_ = new(timers).restore(img.Timers)
	})
}

// FuzzDirectory: gossip from a hostile member neither panics nor makes the
// directory hold what is not valid.
func FuzzDirectory(f *testing.F) {
	e := entry{ID: newID(), Name: "w", Home: mesh.NodeID(newID()), Epoch: 1, Version: 2, State: control.StateRunning}
	one, err := encMode.Marshal(e)
	if err != nil {
		f.Fatal(err)
	}
	all, err := encMode.Marshal([]entry{e})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(one)
	f.Add(all)
	f.Fuzz(func(t *testing.T, b []byte) {
		d := newDirectory(slog.New(slog.DiscardHandler))
		d.Notify(b)
		d.Merge(b, "")
		for _, e := range d.list() {
			if err := e.validate(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// FuzzDeliverFrame and FuzzHandoverFrame: whatever a peer writes on a stream,
// reading it ends with a frame or an error.
func FuzzDeliverFrame(f *testing.F) {
	var b bytes.Buffer
	for _, fr := range []deliverFrame{
		{Hello: &deliverHello{Worker: newID(), Base: 1}},
		{Message: &deliverMessage{Seq: 1, Call: true, Payload: []byte("p")}},
		{Reply: &reply{Seq: 1}}, {Moved: &deliverMoved{Epoch: 2}}, {Bye: &deliverBye{}},
	} {
		b.Reset()
		if err := mesh.WriteMessage(&b, fr); err != nil {
			f.Fatal(err)
		}
		f.Add(bytes.Clone(b.Bytes()))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var fr deliverFrame
		_ = mesh.ReadMessage(bytes.NewReader(b), maxDeliverFrame, &fr)
	})
}

func FuzzHandoverFrame(f *testing.F) {
	var b bytes.Buffer
	for _, fr := range []handoverFrame{
		{Hello: &handoverHello{Incarnation: 1}}, {Message: []byte{1}}, {Report: &moveReport{PagesDemanded: 1}}, {Blackout: 1},
	} {
		b.Reset()
		if err := mesh.WriteMessage(&b, fr); err != nil {
			f.Fatal(err)
		}
		f.Add(bytes.Clone(b.Bytes()))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var fr handoverFrame
		_ = mesh.ReadMessage(bytes.NewReader(b), maxHandoverFrame, &fr)
	})
}

// FuzzRelay: whatever a client sends, its access node keeps no more than a
// window of it, and in order.
func FuzzRelay(f *testing.F) {
	var b bytes.Buffer
	for _, fr := range []deliverFrame{
		{Message: &deliverMessage{Seq: 1, Call: true, Payload: []byte("p")}},
		{Message: &deliverMessage{Seq: 2, Acked: 1, Access: time.Second, Beyond: time.Millisecond}},
		{Ack: 1}, {Bye: &deliverBye{}},
	} {
		if err := mesh.WriteMessage(&b, fr); err != nil {
			f.Fatal(err)
		}
		f.Add(bytes.Clone(b.Bytes()))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &Sender{relays: true}
		s.init(1)
		s.got = 1
		_, _ = relayMessages(bytes.NewReader(b), s)
		if len(s.pending) > senderWindow || s.acked > s.got {
			t.Fatalf("%d messages wait, %d acknowledged", len(s.pending), s.acked)
		}
		for i, m := range s.pending {
			if m.Seq != uint64(i+1) {
				t.Fatalf("message %d is number %d", i, m.Seq)
			}
		}
	})
}

// FuzzBlockNames: what is accepted as a list of names is that list.
func FuzzBlockNames(f *testing.F) {
	f.Add(packNames([]wasi.Hash{{1}, {2}}))
	f.Add(make([]byte, 33))
	f.Fuzz(func(t *testing.T, b []byte) {
		names, err := unpackNames(b)
		if err != nil {
			return
		}
		if out := packNames(names); !bytes.Equal(out, b) {
			t.Fatalf("%x became %x", b, out)
		}
	})
}
