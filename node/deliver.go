package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
)

// protoDeliver carries messages from a sender to a worker's home. One stream
// serves one sender. The sender opens with Hello and the home answers Welcome;
// then Message frames go one way and Reply frames the other, until either says
// its last word (Bye, Moved, Ended, Refused).
//
// Both sides always read. A home that has no room for a message says Hold and
// passes over what follows; the sender stops when it hears that. Go says that
// there is room, and the number from which to send again.
const protoDeliver = "deliver"

// maxDeliverFrame is a payload and what stands around it, in bytes.
const maxDeliverFrame = MaxPayload + 1<<10

// A deliverFrame has exactly one field set.
type deliverFrame struct {
	Hello   *deliverHello   `cbor:"1,keyasint,omitempty"`
	Welcome *deliverWelcome `cbor:"2,keyasint,omitempty"`
	Message *deliverMessage `cbor:"3,keyasint,omitempty"`
	Reply   *reply          `cbor:"4,keyasint,omitempty"`
	Bye     *deliverBye     `cbor:"5,keyasint,omitempty"`
	Moved   *deliverMoved   `cbor:"6,keyasint,omitempty"`
	Ended   *deliverEnded   `cbor:"7,keyasint,omitempty"`
	Refused *deliverRefused `cbor:"8,keyasint,omitempty"`
	// Ack says that the sender has all replies up to here, when no message
	// comes to say it.
	Ack  uint64       `cbor:"9,keyasint,omitempty"`
	Hold *deliverHold `cbor:"10,keyasint,omitempty"`
	Go   uint64       `cbor:"11,keyasint,omitempty"`
}

type deliverHello struct {
	Worker string   `cbor:"1,keyasint"`
	Sender senderID `cbor:"2,keyasint"`
	Base   uint64   `cbor:"3,keyasint"` // the lowest number whose reply the sender lacks
	// From is the name of the worker that sends; empty for a client.
	From string `cbor:"4,keyasint,omitempty"`
	// Epoch is the latest in which the worker has welcomed the sender, 0 if it
	// never has: a worker that began anew since has none of what was said.
	Epoch uint64 `cbor:"5,keyasint,omitempty"`
	// Seen is the last number whose reply may have been seen, where that is above
	// Base-1: a worker that went on from a checkpoint must know it.
	Seen uint64 `cbor:"6,keyasint,omitempty"`
}

type deliverWelcome struct {
	Epoch uint64 `cbor:"1,keyasint,omitempty"`
	// Worker is the worker's id, for a client that gave a name.
	Worker string `cbor:"2,keyasint,omitempty"`
}

type deliverMessage struct {
	Seq     uint64 `cbor:"1,keyasint"`
	Call    bool   `cbor:"2,keyasint,omitempty"`
	Payload []byte `cbor:"3,keyasint,omitempty"`
	Acked   uint64 `cbor:"4,keyasint,omitempty"` // the sender has all replies up to here
	// Access is the round trip between the client and the node at which it is
	// attached, as that node measures it; 0 is not known.
	Access time.Duration `cbor:"5,keyasint,omitempty"`
	// Beyond is what a call that was answered lately took from that node beyond
	// a round trip to the worker's home, as that node measures it; 0 is not
	// known.
	Beyond time.Duration `cbor:"6,keyasint,omitempty"`

	queued time.Time // by the sender; does not travel
}

// maxBeyond bounds Beyond: what takes longer is a worker that was away.
const maxBeyond = time.Minute

// maxAccess bounds the round trip to a client: what is longer is a lie.
const maxAccess = time.Minute

type deliverBye struct{}

type deliverHold struct{}

// deliverMoved says that the worker lives, or is about to live, elsewhere.
type deliverMoved struct {
	To    mesh.NodeID `cbor:"1,keyasint"`
	Epoch uint64      `cbor:"2,keyasint"`
}

// deliverEnded says that the worker runs nowhere any more.
type deliverEnded struct {
	State  string `cbor:"1,keyasint"`
	Reason string `cbor:"2,keyasint,omitempty"`
}

// deliverRefused says that this node does not serve the sender. Gone means
// that it does not know the worker at all: ask the directory.
type deliverRefused struct {
	Gone   bool   `cbor:"1,keyasint,omitempty"`
	Reason string `cbor:"2,keyasint,omitempty"`
}

// serveDeliver is the home's end of a deliver stream.
func (n *Node) serveDeliver(ctx context.Context, s io.ReadWriter) {
	var f deliverFrame
	if err := readFirst(s, maxDeliverFrame, &f); err != nil || f.Hello == nil {
		n.log.Debug("deliver stream without a hello", "error", err)
		return
	}
	w := n.worker(f.Hello.Worker)
	if in := n.arrival(f.Hello.Worker); w == nil && in != nil {
		// It is on its way here; its sender came ahead.
		select {
		case <-in.settled:
		case <-ctx.Done():
			return
		}
		w = n.worker(f.Hello.Worker)
	}
	if w == nil {
		last := deliverFrame{Refused: &deliverRefused{Gone: true}}
		if e, ok := n.dir.get(f.Hello.Worker); ok && e.Home != n.id {
			last = deliverFrame{Moved: &deliverMoved{To: e.Home, Epoch: e.Epoch}}
		}
		n.say(s, last)
		return
	}
	if f.Hello.From != "" && !validName(f.Hello.From) {
		n.say(s, deliverFrame{Refused: &deliverRefused{Reason: "the name of the worker that sends is not valid"}})
		return
	}
	if h := f.Hello; h.Base > 0 && w.origin.superseded(h.Epoch, max(h.Seen, h.Base-1), w.inbox.from(h.Sender)) {
		n.say(s, deliverFrame{Ended: &deliverEnded{State: control.StateSuperseded, Reason: w.origin.reason()}})
		return
	}
	o, last, err := w.inbox.attach(f.Hello.Sender, f.Hello.Base, time.Now())
	if err != nil {
		n.say(s, deliverFrame{Refused: &deliverRefused{Reason: err.Error()}})
		return
	}
	if last != nil {
		n.say(s, *last)
		return
	}

	o.entry, o.from = n.id, f.Hello.From
	if s, ok := s.(*mesh.Stream); ok {
		o.entry = s.Peer()
	}

	ctx, cancel := context.WithCancel(ctx)
	written := make(chan struct{})
	go func() {
		defer close(written)
		defer cancel()
		n.say(s, deliverFrame{Welcome: &deliverWelcome{Epoch: w.epochNow()}})
		for {
			select {
			case f, open := <-o.out:
				if !open || mesh.WriteMessage(s, f) != nil {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()

	// The reader stops when the writer does: a stream that takes no replies
	// is of no use, and its end wakes a blocked read.
	stop := context.AfterFunc(ctx, func() { interrupt(s) })
	bye, err := n.readMessages(w, s, o)
	cancel()
	<-written
	stop()
	w.inbox.detach(o, bye, time.Now())
	if err != nil && !errors.Is(err, io.EOF) && ctx.Err() == nil {
		n.log.Debug("deliver stream ended", "worker", w.ID, "error", err)
	}
}

func (n *Node) readMessages(w *worker, s io.Reader, o *outlet) (bye bool, err error) {
	for {
		var f deliverFrame
		if err := mesh.ReadMessage(s, maxDeliverFrame, &f); err != nil {
			return false, err
		}
		switch {
		case f.Ack != 0:
			w.inbox.ack(o, f.Ack)
		case f.Bye != nil:
			return true, nil
		case f.Message != nil:
			m := f.Message
			if len(m.Payload) > MaxPayload {
				return false, fmt.Errorf("a payload of %d bytes", len(m.Payload))
			}
			if m.Access < 0 || m.Access > maxAccess {
				return false, fmt.Errorf("a client %v away", m.Access)
			}
			if m.Beyond < 0 || m.Beyond > maxBeyond {
				return false, fmt.Errorf("a call that took %v more than a round trip", m.Beyond)
			}
			o.access, o.beyond = m.Access, m.Beyond
			if err := w.inbox.push(o, m.Seq, m.Call, m.Payload, m.Acked); err != nil {
				return false, err
			}
		default:
			return false, errors.New("a frame that is not the sender's to send")
		}
	}
}

// say writes a frame whose loss the other side notices by itself.
func (n *Node) say(s io.Writer, f deliverFrame) {
	if err := mesh.WriteMessage(s, f); err != nil {
		n.log.Debug("deliver stream not written", "error", err)
	}
}

// helloTimeout is how long a peer that has opened a stream may take to send its
// first message: it holds a stream, and a goroutine, for nothing.
const helloTimeout = 10 * time.Second

// readFirst reads a stream's first message, which must come soon.
func readFirst(s io.Reader, limit int, v any) error {
	if err := soon(s, true); err != nil {
		return err
	}
	if err := mesh.ReadMessage(s, limit, v); err != nil {
		return err
	}
	return soon(s, false)
}

// soon bounds reads of s by helloTimeout, or no more.
func soon(s io.Reader, yes bool) error {
	d, ok := s.(interface{ SetReadDeadline(time.Time) error })
	if !ok {
		return nil
	}
	if yes {
		return d.SetReadDeadline(time.Now().Add(helloTimeout))
	}
	return d.SetReadDeadline(time.Time{})
}

// interrupt makes reads and writes that block on s return.
func interrupt(s any) {
	if s, ok := s.(interface{ SetDeadline(time.Time) error }); ok {
		_ = s.SetDeadline(time.Unix(1, 0)) // an ended stream needs no deadline
	}
}
