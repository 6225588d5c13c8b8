package node

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"meshnode/node/handover"
)

// TestMailboxFlood puts what a peer can send without end, and what the node has
// to say in between.
func TestMailboxFlood(t *testing.T) {
	var said bytes.Buffer
	box := newMailbox(slog.New(slog.NewTextHandler(&said, nil)))
	const rounds = 1000
	for i := range rounds {
		for _, b := range []handover.Body{
			handover.Commit{Head: []byte{byte(i)}}, handover.Status{}, handover.Running{Durable: i == rounds-1},
		} {
			box.put(handover.Received{Message: handover.Message{Body: b}})
		}
		box.put(handover.PathUp{Incarnation: uint64(i)})
		box.put(handover.PathUp{})
		box.put(handover.Progress{})
		if i%100 == 0 {
			box.put(handover.Persisted{ID: uint64(i)})
		}
		if i == rounds-2 {
			box.put(handover.PathDown{})
		}
	}
	<-box.signal
	got := box.take()
	counts := make(map[string]int)
	for _, ev := range got {
		switch ev := ev.(type) {
		case handover.Received:
			counts[ev.Message.Body.Type().String()]++
			if r, ok := ev.Message.Body.(handover.Running); ok && !r.Durable {
				t.Error("an older message took a newer one's place")
			}
		case handover.Persisted:
			counts["persisted"]++
		case handover.PathUp:
			counts["path"]++
			if ev.Incarnation != rounds-1 {
				t.Errorf("the peer's incarnation is %d", ev.Incarnation)
			}
		case handover.PathDown:
			counts["path"]++
		}
	}
	for what, n := range counts {
		if want := map[bool]int{true: rounds / 100, false: 1}[what == "persisted"]; n != want {
			t.Errorf("%d of %s wait, want %d", n, what, want)
		}
	}
	if len(got) != 3+1+1+rounds/100 {
		t.Errorf("%d events wait", len(got))
	}
	if lines := strings.Count(said.String(), "\n"); lines != 1 {
		t.Errorf("%d lines in the log: %s", lines, said.String())
	}
	if len(box.take()) != 0 {
		t.Error("events are taken twice")
	}
}
