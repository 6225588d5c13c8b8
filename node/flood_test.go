package node

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"meshnode/node/control"
	"meshnode/node/guest"
	"meshnode/node/runner"
)

// TestStuckWorkerHoldsNobodyUp sends a worker that takes nothing more than its
// home and the connection's window hold, and uses the same connection for
// something else. Afterwards every message is there, once and in order.
func TestStuckWorkerHoldsNobodyUp(t *testing.T) {
	path := app(t, "probe")
	nodes := startNodes(t, 2)
	nodes[0].run(t, path, control.RunRequest{Name: "stuck"})
	waitFor(t, "the worker's name", func() bool {
		_, err := nodes[1].client.Worker(t.Context(), "stuck")
		return err == nil
	})
	if _, err := nodes[0].client.Pause(t.Context(), "stuck"); err != nil {
		t.Fatal(err)
	}
	const each = senderBytes / MaxPayload
	clients := 12
	if testing.Short() {
		clients = inboxBytes/senderBytes + 2 // a megabyte takes a second under the race detector
	}
	var sessions []*control.ClientSession
	for i := range clients {
		ses, err := nodes[1].client.Session(t.Context(), "stuck")
		if err != nil {
			t.Fatal(err)
		}
		defer ses.Close()
		sessions = append(sessions, ses)
		for k := range each {
			payload := bytes.Repeat([]byte{'-'}, MaxPayload)
			copy(payload, fmt.Sprintf("echo %d/%d ", i, k))
			if err := ses.Send(t.Context(), control.Message{Call: true, Payload: payload}); err != nil {
				t.Fatal(err)
			}
		}
	}
	home := nodes[0].locals()[0]
	waitFor(t, "senders to be told to hold", func() bool {
		home.inbox.mu.Lock()
		defer home.inbox.mu.Unlock()
		return len(home.inbox.held) >= clients-inboxBytes/senderBytes
	})
	// Over the connection that carries the messages.
	if w, err := nodes[1].client.Resume(t.Context(), "stuck"); err != nil || w.State != control.StateRunning {
		t.Fatalf("resumed from the node that floods it: %+v, %v", w, err)
	}
	for i, ses := range sessions {
		for k := range each {
			r, err := ses.Recv(t.Context())
			if err != nil || !bytes.HasPrefix(r.Payload, fmt.Appendf(nil, "%d/%d -", i, k)) {
				t.Fatalf("reply %d of client %d is %.20q, %v", k, i, r.Payload, err)
			}
		}
	}
}

// TestMutualFlood has two workers fill their outboxes with messages for each
// other, and one with messages for itself, before any of them looks at what has
// come. All must go on, what was refused must be told, and what was not must
// arrive.
func TestMutualFlood(t *testing.T) {
	path := app(t, "probe")
	n := startNodes(t, 1)[0]
	type flooder struct {
		name, to string
		ses      *control.ClientSession
		sent     int
	}
	flooders := []*flooder{{name: "a", to: "b"}, {name: "b", to: "a"}, {name: "self", to: "self"}}
	const calls = outboxMessages/runner.MaxSends + 3
	for _, f := range flooders {
		n.run(t, path, control.RunRequest{Name: f.name})
		if _, err := n.client.Pause(t.Context(), f.name); err != nil {
			t.Fatal(err)
		}
		var err error
		if f.ses, err = n.client.Session(t.Context(), f.name); err != nil {
			t.Fatal(err)
		}
		defer f.ses.Close()
		for range calls {
			m := control.Message{Call: true, Payload: fmt.Appendf(nil, "sends %d %s", runner.MaxSends, f.to)}
			if err := f.ses.Send(t.Context(), m); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, w := range n.locals() {
		waitFor(t, "the calls", func() bool { _, waiting := w.inbox.depth(); return waiting == calls })
	}
	for _, f := range flooders {
		if _, err := n.client.Resume(t.Context(), f.name); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range flooders {
		for range calls {
			r, err := f.ses.Recv(t.Context())
			switch {
			case err != nil:
				t.Fatal(err)
			case r.Status == int32(guest.ErrTooMany):
			case r.Status != 0:
				t.Fatalf("%s: status %d, %s", f.name, r.Status, r.Payload)
			default:
				f.sent += runner.MaxSends
			}
		}
	}
	if self := flooders[2]; self.sent != outboxMessages {
		t.Errorf("%d messages of a worker to itself were taken, of which no more than %d could wait", self.sent, outboxMessages)
	}
	for _, f := range flooders {
		waitFor(t, "all that was sent", func() bool {
			return n.call(t, f.to, "inbox") == fmt.Sprintf("%d %d", f.sent, runner.MaxSends-1)
		})
	}
	// There is room again.
	n.call(t, "self", "send self x")
	waitFor(t, "one more", func() bool { return n.call(t, "self", "inbox") == fmt.Sprintf("%d x", flooders[2].sent+1) })
}

// TestUndeliveredIsTold ends a worker whose messages wait for one that takes
// none, and looks into its log.
func TestUndeliveredIsTold(t *testing.T) {
	path := app(t, "probe")
	n := startNodes(t, 1)[0]
	n.run(t, path, control.RunRequest{Name: "deaf"})
	n.run(t, path, control.RunRequest{Name: "sender"})
	if _, err := n.client.Pause(t.Context(), "deaf"); err != nil {
		t.Fatal(err)
	}
	n.call(t, "sender", "sends 3 deaf")
	if _, err := n.client.Call(t.Context(), "sender", []byte("trap")); err == nil {
		t.Fatal("the worker did not trap")
	}
	var said []string
	err := n.client.Logs(t.Context(), "sender", false, func(l control.LogLine) error {
		said = append(said, l.Text)
		return nil
	})
	if err != nil || !strings.Contains(strings.Join(said, "\n"), "3 messages (3 bytes) to deaf had not been processed when the worker failed") {
		t.Errorf("the log says %q, %v", said, err)
	}
}
