package node

import (
	"bytes"
	"fmt"
	"testing"

	"meshnode/node/control"
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
	const clients, each = 12, senderBytes / MaxPayload
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
