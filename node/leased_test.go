package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/node/lease"
	"meshnode/pager"
)

// guarded is the manifest of an app that starts on one node and that others take
// over.
func guarded(after time.Duration, home string, list ...string) string {
	var fallback []string
	for _, name := range list {
		fallback = append(fallback, "{node: "+name+"}")
	}
	return fmt.Sprintf(`apiVersion: meshnode/v1alpha1
kind: App
name: counter
module: {path: counter.wasm}
limits: {memory: 64MiB}
migration: {mode: manual}
placement: {prefer: [{nodes: [%s], weight: 100}]}
onDisconnect: {action: fallback, after: %v}
fallback: [%s]
`, home, after, strings.Join(fallback, ", "))
}

// waitTaken waits until a node has the event of having taken a worker over. What
// the worker's new home says of its next guardian may come before it.
func waitTaken(t *testing.T, by, from *testNode, reason, text string) {
	t.Helper()
	waitFor(t, "the event", func() bool {
		return slices.ContainsFunc(by.eventsOf(t, control.EventFallback), func(e control.PlacementEvent) bool {
			return e.Reason == reason && e.From == from.name() && e.Outcome == control.OutcomeDone && strings.Contains(e.Text, text)
		})
	})
}

// waitGuardian waits until a node holds the lease of a worker, as the node says
// that the worker is at home on.
func waitGuardian(t *testing.T, at *testNode, worker, guardian string) {
	t.Helper()
	waitFor(t, guardian+" as guardian of "+worker, func() bool {
		w, err := at.client.Worker(t.Context(), worker)
		return err == nil && w.Home == string(at.id) && w.Guardian != nil && w.Guardian.NodeName == guardian && w.Guardian.State == control.LeaseHeld
	})
}

// TestTakeOver lets the node end that runs a worker. Its guardian starts the
// worker anew when the lease has run out; sessions of before end, and new
// ones reach it.
func TestTakeOver(t *testing.T) {
	nodes := startNodes(t, 3)
	a, b, c := nodes[0], nodes[1], nodes[2]
	ctx := t.Context()
	// Far longer than a busy machine keeps a renewal waiting.
	if d, err := a.apply(t, guarded(10*time.Second, a.name(), "nobody", b.name())); err != nil || d.Workers[0].Node != a.name() {
		t.Fatalf("applied: %+v, %v", d, err)
	}
	waitGuardian(t, a, "counter", b.name())
	known(t, "counter", c)
	if got := c.call(t, "counter", "add 3"); got != "3" {
		t.Fatalf("got %s, want 3", got)
	}
	w, err := a.client.Worker(ctx, "counter")
	if err != nil {
		t.Fatal(err)
	}

	// It comes to read an interface at a node that is none of these: the guardian
	// is told.
	far := []boundInterface{{Name: "location", Node: mesh.NodeID(newID())}}
	a.worker(w.ID).reads.bind(far)
	waitFor(t, "the guardian to know where it reads", func() bool {
		g := b.guards.find(w.ID)
		if g == nil {
			return false
		}
		g.mu.Lock()
		rec := g.g.Record()
		g.mu.Unlock()
		m, err := parseGuardMeta(rec.Meta)
		return err == nil && rec.Held() && slices.Equal(m.App.Interfaces, far)
	})

	dir := a.cfg.StateDir
	a.stop(t)
	waitAt(t, b, "counter")
	if got := b.worker(w.ID).reads.bound(); !slices.Equal(got, far) {
		t.Errorf("it reads interfaces at %v, want %v", got, far)
	}
	now, err := b.client.Worker(ctx, "counter")
	if err != nil || now.ID != w.ID || now.Epoch != w.Epoch+lease.Step || now.App != "counter" || now.Manifest == "" {
		t.Fatalf("taken: %+v, %v; it was %+v", now, err, w)
	}
	waitTaken(t, b, a, "owner-silent", "")
	// A session that the worker had served before is not for the one that began
	// anew.
	old := &Sender{node: c.Node, worker: w.ID, follow: c.follow, epoch: w.Epoch}
	old.init(2)
	old.add([]byte("add 100"))
	old.start(c.ctx, &c.tasks)
	defer old.Close()
	_, err = old.Recv(ctx)
	var ce *control.Error
	if !errors.As(sessionError(err), &ce) || !strings.Contains(ce.Message, "superseded: node "+a.name()+", which ran it, fell silent") || !strings.Contains(ce.Hint, "new session") {
		t.Errorf("an old session: %v", err)
	}
	if got := c.call(t, "counter", "get"); got != "0" {
		t.Errorf("it began with %s", got)
	}
	c.call(t, "counter", "add 7")

	// The old owner comes back without it, and sends others where it is.
	again := startNode(t, dir, a.name(), nil)
	waitFor(t, "the worker's new home", func() bool {
		w, err := again.client.Worker(ctx, "counter")
		return err == nil && w.Home == string(b.id) && again.local(w.ID) == nil
	})
	if got := again.call(t, "counter", "get"); got != "7" {
		t.Errorf("got %s, want 7", got)
	}
}

// TestGuardian follows a lease through a move, a restart of the guardian and the
// worker's end.
func TestGuardian(t *testing.T) {
	nodes := startNodes(t, 3)
	a, b, c := nodes[0], nodes[1], nodes[2]
	ctx := t.Context()
	text := guarded(time.Hour, a.name(), c.name(), b.name())
	if d, err := a.apply(t, text); err != nil || d.Workers[0].Node != a.name() {
		t.Fatalf("applied: %+v, %v", d, err)
	}
	waitGuardian(t, a, "counter", c.name())
	a.call(t, "counter", "add 3")
	e, err := b.client.Explain(ctx, "counter", control.ExplainRequest{})
	if err != nil || !strings.Contains(strings.Join(e.Notes, "\n"), "node "+c.name()+" starts it anew") {
		t.Errorf("explained: %+v, %v", e.Notes, err)
	}

	// The guardian gives it up before it moves, here to the guardian itself; the
	// next home finds another.
	a.migrate(t, "counter", c, control.StrategyAuto)
	waitGuardian(t, c, "counter", b.name())
	if got := a.call(t, "counter", "get"); got != "3" {
		t.Errorf("got %s, want 3", got)
	}
	waitFor(t, "no lease at the first guardian", func() bool { return c.guards.held() == 0 })

	// A guardian that restarts holds the lease on: its epoch shows that no other
	// was asked for.
	dir := b.cfg.StateDir
	b.stop(t)
	b = startNode(t, dir, b.name(), nil)
	if b.guards.held() != 1 {
		t.Error("it came back without the lease")
	}
	w, err := c.client.Worker(ctx, "counter")
	if err != nil {
		t.Fatal(err)
	}
	renewed := func() time.Duration {
		k := c.worker(w.ID).keeper
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.own.Good()
	}
	before := renewed()
	waitFor(t, "a renewal", func() bool { return renewed() > before })
	if w.Guardian.NodeName != b.name() {
		t.Errorf("the guardian is %+v", w.Guardian)
	}

	// Another manifest, without a guardian.
	if d, err := a.apply(t, strings.Replace(text, "action: fallback", "action: run", 1)); err != nil || d.Workers[0].Action != control.AppliedChanged {
		t.Fatalf("applied: %+v, %v", d, err)
	}
	waitFor(t, "no lease", func() bool { return b.guards.held() == 0 })
	if _, err := a.apply(t, text); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "a lease again", func() bool { return a.guards.held()+b.guards.held() == 1 })
	// What is stopped is not taken over.
	if _, err := a.client.Stop(ctx, "counter"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "no lease of a worker that was stopped", func() bool { return a.guards.held()+b.guards.held() == 0 })
}

// TestFenced ends the lease of a worker by hand: it handles nothing, and what it
// has done meanwhile is seen by nobody until the lease stands again.
func TestFenced(t *testing.T) {
	nodes := startNodes(t, 1)
	a := nodes[0]
	ctx := t.Context()
	d := a.run(t, app(t, "counter"), control.RunRequest{Name: "counter", MemoryLimit: 64 << 20})
	a.call(t, "counter", "add 3")
	w := a.worker(d.ID)
	w.fence.Store(1)
	s, err := a.client.Session(ctx, "counter")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Send(ctx, control.Message{Call: true, Payload: []byte("add 1")}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "a message that waits", func() bool { _, waiting := w.inbox.depth(); return waiting == 1 })
	if err := w.do(ctx, func() {}); err != nil { // the loop has looked
		t.Fatal(err)
	}
	if _, waiting := w.inbox.depth(); waiting != 1 {
		t.Error("it was handled")
	}
	var ce *control.Error
	if _, err := a.client.Resume(ctx, "counter"); !errors.As(err, &ce) || ce.Code != control.CodeConflict {
		t.Errorf("resumed: %v", err)
	}
	// A reply to what was being handled when the lease ran out.
	m := w.inbox.pop()
	w.inbox.done(m, reply{Payload: []byte("held")})
	w.inbox.mu.Lock()
	out := m.sender.outlets[0].sent
	w.inbox.mu.Unlock()
	if out != 0 {
		t.Error("a reply has left")
	}
	w.fence.Store(0)
	w.opened <- struct{}{} // as a renewal does
	if r, err := s.Recv(ctx); err != nil || string(r.Payload) != "held" {
		t.Errorf("got %q, %v", r.Payload, err)
	}
}

func sampleRecord() lease.Record {
	s := spec{ID: newID(), Name: "counter", Module: pager.Hash{1}, ModuleBytes: 1, MemoryLimit: 64 << 20}
	return lease.Record{
		Worker: s.ID, Owner: newID(), Epoch: 5, Ticket: 7, Lease: 10 * time.Second,
		Meta: recordMeta{Spec: s, App: &appState{Version: appStateVersion}}.encode(), Taken: 3, TakenAt: time.Now().Unix(), Owners: []string{newID()},
	}
}

// TestGuardFiles reads the leases of a node that restarts, and refuses to start
// on damaged ones.
func TestGuardFiles(t *testing.T) {
	dir := t.TempDir()
	rec := sampleRecord()
	path := filepath.Join(dir, rec.Worker)
	b := encodeGuard(rec)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, ".half.tmp1"), b[:20], 0o600); err != nil {
		t.Fatal(err)
	}
	gs, err := openGuards(dir)
	if err != nil || gs.held() != 1 {
		t.Fatalf("opened with %v", err)
	}
	if hs := gs.modules(); len(hs) != 1 || hs[0] != (pager.Hash{1}) {
		t.Errorf("modules %v", hs)
	}
	// Given back, it is remembered that an earlier owner has to hear of a loss.
	g, _ := gs.get(rec.Worker)
	g.g.Ended()
	if err := gs.saveLocked(g); err != nil {
		t.Fatal(err)
	}
	g.mu.Unlock()
	if gs, err = openGuards(dir); err != nil || gs.held() != 0 || len(gs.of) != 1 {
		t.Fatalf("opened again: %v, %v", gs, err)
	}
	for i := range b {
		bad := append([]byte(nil), b...)
		bad[i] ^= 0x10
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := openGuards(dir); err == nil || !strings.Contains(err.Error(), path) {
			t.Fatalf("with byte %d changed: %v", i, err)
		}
	}
}

// TestGuardEmptyManifest refuses to be the guardian of a worker that names no app:
// nothing would say how it is to be run.
func TestGuardEmptyManifest(t *testing.T) {
	n := startNodes(t, 1)[0]
	rec := sampleRecord()
	m := lease.Message{Kind: lease.Ask, Worker: rec.Worker, Epoch: 1, Lease: time.Second, Meta: rec.Meta}
	a, err := n.answerOwner(t.Context(), mesh.NodeID(rec.Owner), m)
	if err != nil || a.Kind != lease.Refused || !strings.Contains(a.Reason, "its manifest is empty") {
		t.Errorf("answered %+v, %v", a, err)
	}
}

func FuzzGuardRecord(f *testing.F) {
	f.Add(encodeGuard(sampleRecord()))
	f.Add(encodeGuard(lease.Record{Worker: newID()}))
	f.Fuzz(func(t *testing.T, b []byte) {
		rec, err := decodeGuard(b)
		if err != nil {
			return
		}
		again, err := decodeGuard(encodeGuard(rec))
		if err != nil || again.Worker != rec.Worker || again.Ticket != rec.Ticket || again.Taken != rec.Taken {
			t.Errorf("%+v became %+v, %v", rec, again, err)
		}
		_, _ = parseGuardMeta(rec.Meta)
	})
}

// FuzzLeaseMessage gives a node what a peer may send as an owner.
func FuzzLeaseMessage(f *testing.F) {
	rec := sampleRecord()
	for _, m := range []lease.Message{
		{Kind: lease.Ask, Worker: rec.Worker, Epoch: 1, Lease: time.Second, Meta: rec.Meta},
		{Kind: lease.Renew, Worker: rec.Worker, Epoch: 5, Ticket: 7, Seq: 1},
		{Kind: lease.Release, Worker: rec.Worker, Epoch: 5, Ticket: 7},
		{Kind: lease.Heard, Worker: rec.Worker, Epoch: 2},
		{Kind: lease.Yield, Worker: rec.Worker, Epoch: 5, Ticket: 7},
	} {
		b, err := encMode.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m lease.Message
		if decMode.Unmarshal(b, &m) != nil || m.Validate() != nil {
			return
		}
		_, _ = parseGuardMeta(m.Meta)
		g := lease.RestoreGuard(rec, 0)
		answer := g.Handle(string(mesh.NodeID(rec.Owners[0])), m, 9, time.Second, 1)
		if err := answer.Validate(); err != nil {
			t.Errorf("%+v was answered %+v: %v", m, answer, err)
		}
		if err := g.Record().Validate(); err != nil {
			t.Errorf("%+v left %+v: %v", m, g.Record(), err)
		}
	})
}
