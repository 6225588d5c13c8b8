package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"meshnode/node/control"
	"meshnode/node/lease"
)

// asker is a session whose calls are answered as a test wants them to be.
type asker struct {
	t *testing.T
	s control.Session
}

func newAsker(t *testing.T, at *testNode, worker string) asker {
	t.Helper()
	s, err := at.client.Session(t.Context(), worker)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return asker{t, s}
}

func (a asker) ask(text, want string) {
	a.t.Helper()
	if err := a.s.Send(a.t.Context(), control.Message{Call: true, Payload: []byte(text)}); err != nil {
		a.t.Fatal(err)
	}
	if r, err := a.s.Recv(a.t.Context()); err != nil || string(r.Payload) != want {
		a.t.Fatalf("%s: got %q, %v, want %s", text, r.Payload, err, want)
	}
}

// TestOrphan restarts the node of a worker long before its lease ends. Nobody
// calls the worker lost: its sessions wait, and go on with the guardian, which is
// told. When the guardian of the next such worker has forgotten it, it is lost.
func TestOrphan(t *testing.T) {
	nodes := startNodes(t, 3)
	a, b, c := nodes[0], nodes[1], nodes[2]
	ctx := t.Context()
	if d, err := a.apply(t, checkpointed(time.Hour, time.Hour, a.name(), b.name())); err != nil || d.Workers[0].Node != a.name() {
		t.Fatalf("applied: %+v, %v", d, err)
	}
	known(t, "counter", c)
	session := newAsker(t, c, "counter")
	waitCheckpoint(t, a, "counter", b.name(), 1)
	w, err := a.client.Worker(ctx, "counter")
	if err != nil {
		t.Fatal(err)
	}

	// The node ends without a word to the guardian, as when it dies.
	dir := a.cfg.StateDir
	a.stop(t)
	waitFor(t, "the others to know", func() bool {
		e, ok := c.dir.get(w.ID)
		return ok && e.State == control.StateOrphaned && strings.Contains(e.Reason, "node "+b.name()+", its guardian, goes on with it within ")
	})
	// An answer before that would be to what the checkpoint does not have.
	if err := session.s.Send(ctx, control.Message{Payload: []byte("add 3")}); err != nil {
		t.Fatal(err)
	}
	a = startNode(t, dir, a.name(), nil)
	waitAt(t, b, "counter")
	now, err := b.client.Worker(ctx, "counter")
	if err != nil || now.ID != w.ID || now.Epoch != w.Epoch+lease.Step || now.App != "counter" {
		t.Fatalf("taken: %+v, %v; it was %+v", now, err, w)
	}
	waitTaken(t, b, a, "yielded", "node "+a.name()+" does not run it any more: it goes on here, in epoch 4, from a checkpoint of ")
	if _, err := session.s.Recv(ctx); err != nil {
		t.Fatal(err)
	}
	session.ask("add 4", "7")
	waitFor(t, "nothing of it at its old node", func() bool {
		_, known, err := a.journal.Get(w.ID)
		return err == nil && !known && a.orphaned(w.ID) == nil && a.local(w.ID) == nil
	})
	waitFor(t, "the guardian to hear of that", func() bool { return b.guards.find(w.ID) == nil || !heldBy(b, w.ID) })

	// The next guardian is a, whose disk is lost.
	if _, err := b.apply(t, guarded(time.Hour, b.name(), a.name())); err != nil {
		t.Fatal(err)
	}
	waitGuardian(t, b, "counter", a.name())
	bdir := b.cfg.StateDir
	b.stop(t)
	a.stop(t)
	if err := os.Remove(filepath.Join(dir, "guards", w.ID)); err != nil {
		t.Fatal(err)
	}
	b = startNode(t, bdir, b.name(), nil)
	waitFor(t, "it to be an orphan", func() bool {
		w, err := b.client.Worker(ctx, "counter")
		return err == nil && w.State == control.StateOrphaned && w.App == "counter" && w.Guardian != nil && w.Guardian.NodeName == a.name() &&
			w.Guardian.State == control.LeaseYielded && strings.Contains(w.Reason, "if it does not answer until ")
	})
	if _, err := b.client.Pause(ctx, "counter"); err == nil || !strings.Contains(err.Error(), "worker counter is orphaned: node "+b.name()+" restarted without it") {
		t.Errorf("paused: %v", err)
	}
	startNode(t, dir, a.name(), nil)
	waitFor(t, "it to be lost", func() bool {
		w, err := b.client.Worker(ctx, "counter")
		return err == nil && w.State == control.StateLost && strings.Contains(w.Reason, "its guardian, node "+a.name()+", does not have it")
	})
}

// heldBy says whether a node has anything to remember of a worker.
func heldBy(n *testNode, worker string) bool {
	g := n.guards.find(worker)
	if g == nil {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return !g.g.Empty(time.Now().Unix())
}

// TestYield stops a node in order whose worker must not move. Its guardian has all
// that it did, and at once.
func TestYield(t *testing.T) {
	nodes := startNodes(t, 3)
	a, b, c := nodes[0], nodes[1], nodes[2]
	ctx := t.Context()
	text := strings.Replace(checkpointed(time.Hour, time.Hour, a.name(), b.name()), "mode: manual", "mode: never", 1)
	if d, err := a.apply(t, text); err != nil || d.Workers[0].Node != a.name() {
		t.Fatalf("applied: %+v, %v", d, err)
	}
	known(t, "counter", c)
	session := newAsker(t, c, "counter")
	waitCheckpoint(t, a, "counter", b.name(), 1)
	session.ask("add 3", "3")
	w, err := a.client.Worker(ctx, "counter")
	if err != nil {
		t.Fatal(err)
	}
	a.cfg.StopTime = time.Minute
	if a, b := a.retireTime(), b.retireTime(); a != time.Minute/2 || b != 0 {
		t.Errorf("for workers to leave there are %v and %v, want 30s where one is guarded", a, b)
	}
	a.stop(t)
	session.ask("add 4", "7")
	if now, err := b.client.Worker(ctx, "counter"); err != nil || now.ID != w.ID || now.Epoch != w.Epoch+lease.Step {
		t.Errorf("taken: %+v, %v", now, err)
	}
}

// TestOrphanStopped stops an orphan before its guardian has answered.
func TestOrphanStopped(t *testing.T) {
	nodes := startNodes(t, 3) // the third has the two find each other again
	a, b := nodes[0], nodes[1]
	ctx := t.Context()
	if _, err := a.apply(t, guarded(time.Hour, a.name(), b.name())); err != nil {
		t.Fatal(err)
	}
	waitGuardian(t, a, "counter", b.name())
	adir, bdir := a.cfg.StateDir, b.cfg.StateDir
	b.stop(t)
	a.stop(t)
	a = startNode(t, adir, a.name(), nil)
	if w, err := a.client.Worker(ctx, "counter"); err != nil || w.State != control.StateOrphaned {
		t.Fatalf("it is %+v, %v", w, err)
	}
	w, err := a.client.Stop(ctx, "counter")
	if err != nil || w.State != control.StateStopped {
		t.Fatalf("stopped: %+v, %v", w, err)
	}
	if _, known, err := a.journal.Get(w.ID); err != nil || known {
		t.Errorf("the journal knows it: %t, %v", known, err)
	}
	b = startNode(t, bdir, b.name(), nil)
	waitFor(t, "the guardian to forget it", func() bool { return b.guards.held() == 0 })
	if b.worker(w.ID) != nil {
		t.Error("the guardian has started it")
	}
}
