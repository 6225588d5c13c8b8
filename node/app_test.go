package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/placement"
)

// zoned is the manifest of an app that must be in a zone.
func zoned(zone, more string) string {
	return `apiVersion: meshnode/v1alpha1
kind: App
name: counter
module: {path: counter.wasm}
limits: {memory: 64MiB, queue: {messages: 7}}
migration: {holdFor: 0s, minDwell: 0s` + more + `}
placement: {require: {labels: [{key: zone, in: [` + zone + `]}]}}
`
}

func (n *testNode) apply(t *testing.T, text string) (control.Applied, error) {
	t.Helper()
	return n.applyModule(t, text, "counter")
}

func (n *testNode) applyModule(t *testing.T, text, module string) (control.Applied, error) {
	t.Helper()
	f, err := os.Open(app(t, module))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := n.client.PutModule(t.Context(), f, -1)
	if err != nil {
		t.Fatal(err)
	}
	return n.client.Apply(t.Context(), control.ApplyRequest{
		PlanRequest: control.PlanRequest{File: "app.yaml", Manifest: text, RatePerSecond: 1, EventMs: 1}, Module: m.Hash,
	})
}

func (n *testNode) label(t *testing.T, key, value string) {
	t.Helper()
	if _, err := n.client.Configure(t.Context(), n.name(), control.NodeSettings{Labels: map[string]*string{key: &value}}); err != nil {
		t.Fatal(err)
	}
}

// waitAt waits until a worker runs on a node, as that node says.
func waitAt(t *testing.T, n *testNode, worker string) {
	t.Helper()
	waitFor(t, worker+" to run on "+n.name(), func() bool {
		w, err := n.client.Worker(t.Context(), worker)
		return err == nil && w.Home == string(n.id) && w.State == control.StateRunning
	})
}

func (n *testNode) eventsOf(t *testing.T, kind string) (out []control.PlacementEvent) {
	t.Helper()
	err := n.client.Events(t.Context(), n.name(), false, func(e control.PlacementEvent) error {
		if e.Event == kind {
			out = append(out, e)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestApp applies an app whose worker must be in a zone, and changes the zone:
// the worker goes where it belongs, with its state, unless it is pinned.
func TestApp(t *testing.T) {
	nodes := startNodes(t, 3)
	a, b, c := nodes[0], nodes[1], nodes[2]
	ctx := t.Context()
	b.label(t, "zone", "berlin")
	c.label(t, "zone", "munich")

	var ce *control.Error
	if _, err := a.apply(t, zoned("paris", "")); !errors.As(err, &ce) || ce.Code != control.CodeConflict || !strings.Contains(ce.Message, "zone") {
		t.Fatalf("an app that fits nowhere: %v", err)
	}
	if ws, err := a.client.Workers(ctx); err != nil || len(ws) != 0 {
		t.Fatalf("it left workers: %v, %v", ws, err)
	}
	var d control.Applied
	waitFor(t, "the label", func() bool {
		var err error
		d, err = a.apply(t, zoned("berlin", ""))
		return err == nil
	})
	if len(d.Workers) != 1 || d.Workers[0].Action != control.AppliedStarted || d.Workers[0].Node != b.name() {
		t.Fatalf("applied: %+v", d)
	}
	if d, err := a.apply(t, zoned("berlin", "")); err != nil || d.Workers[0].Action != control.AppliedUnchanged {
		t.Fatalf("applied again: %+v, %v", d, err)
	}
	for range 5 {
		a.call(t, "counter", "add 1")
	}
	if e := a.eventsOf(t, control.EventStart); len(e) != 1 || e[0].To != b.name() || e[0].App != "counter" {
		t.Errorf("the start's event: %+v", e)
	}

	// Another zone. The manifest is given to the worker where it is, and carried
	// along.
	if d, err := a.apply(t, zoned("munich", "")); err != nil || d.Workers[0].Action != control.AppliedChanged {
		t.Fatalf("another zone: %+v, %v", d, err)
	}
	waitAt(t, c, "counter")
	if got := a.call(t, "counter", "get"); got != "5" {
		t.Errorf("got %s, want 5", got)
	}
	in := c.worker(d.Workers[0].ID).inbox
	in.mu.Lock()
	limits := in.limits
	in.mu.Unlock()
	if limits.messages != 7 {
		t.Errorf("%d messages may wait, want 7", limits.messages)
	}
	var moves []control.PlacementEvent
	waitFor(t, "the move's event", func() bool { moves = b.eventsOf(t, control.EventMove); return len(moves) > 0 })
	if e := moves[0]; e.Reason != "predicate" || e.From != b.name() || e.To != c.name() || e.Outcome != control.OutcomeDone ||
		e.Measured == nil || e.Measured.BlackoutMs <= 0 || e.Predicted == nil || e.Predicted.BlackoutMs <= 0 {
		t.Errorf("the move's event: %+v", e)
	}
	ap, err := a.client.App(ctx, "counter")
	if err != nil || len(ap.Workers) != 1 || !strings.Contains(ap.Manifest, "munich") || ap.Workers[0].HomeName != c.name() {
		t.Errorf("the app: %+v, %v", ap, err)
	}

	// Pinned it stays, and says that it would not; let go it moves.
	if _, err := a.client.Pin(ctx, "counter"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.apply(t, zoned("berlin", "")); err != nil {
		t.Fatal(err)
	}
	e, err := a.client.Explain(ctx, "counter", control.ExplainRequest{})
	if err != nil || e.Decision.Reason != "pinned" || e.App != "counter" || len(e.Notes) != 0 {
		t.Errorf("explained: %+v, %v", e, err)
	}
	place := &c.worker(ap.Workers[0].ID).place
	place.mu.Lock()
	last := place.last
	place.mu.Unlock()
	if last.Action == placement.Move {
		t.Error("it did not stay")
	}
	if w, err := a.client.Unpin(ctx, "counter"); err != nil || w.Pinned {
		t.Fatal(w, err)
	}
	waitAt(t, b, "counter")
	if got := a.call(t, "counter", "get"); got != "5" {
		t.Errorf("got %s, want 5", got)
	}

	// What cannot change while it runs.
	d, err = a.apply(t, strings.Replace(zoned("berlin", ""), "64MiB", "128MiB", 1))
	if err != nil || d.Failed != 1 || !strings.Contains(d.Workers[0].Text, "limits.memory") {
		t.Errorf("another limit: %+v, %v", d, err)
	}
	// A worker that must not move does not, for anybody.
	if d, err := a.apply(t, zoned("berlin", ", mode: never")); err != nil || d.Failed != 0 {
		t.Fatal(d, err)
	}
	_, err = a.client.Migrate(ctx, "counter", control.MigrateRequest{To: c.name()}, nil)
	if !errors.As(err, &ce) || ce.Code != control.CodeConflict || !strings.Contains(ce.Message, "never") {
		t.Errorf("a move of what must not: %v", err)
	}

	if _, err := c.client.RemoveApp(ctx, "counter"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "no apps", func() bool { l, err := a.client.Apps(ctx); return err == nil && len(l) == 0 })
	if _, err := a.client.App(ctx, "counter"); !errors.As(err, &ce) || ce.Code != control.CodeNotFound {
		t.Errorf("an app that is gone: %v", err)
	}
}

// A worker that takes more processor time than its manifest gives it is held
// back, and handles its events all the same.
func TestAppCPU(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells what processor time another process took")
	}
	n := startNodes(t, 1)[0]
	n.label(t, "zone", "berlin")
	if _, err := n.apply(t, strings.Replace(zoned("berlin", ""), "64MiB", "64MiB, cpu: 0.01", 1)); err != nil {
		t.Fatal(err)
	}
	calls := 0
	waitFor(t, "it to be held back", func() bool {
		calls++
		if got := n.call(t, "counter", "add 1"); got != strconv.Itoa(calls) {
			t.Fatalf("call %d: %s", calls, got)
		}
		w, err := n.client.Worker(t.Context(), "counter")
		return err == nil && w.HeldMs > 0
	})
}

// TestDrain drains a node with a worker of an app, one without, and a pinned
// one.
func TestDrain(t *testing.T) {
	nodes := startNodes(t, 2)
	a, b := nodes[0], nodes[1]
	ctx := t.Context()
	b.label(t, "zone", "berlin")
	waitFor(t, "the label", func() bool { _, err := a.apply(t, zoned("berlin", ", mode: manual")); return err == nil })
	b.call(t, "counter", "add 7")
	for _, name := range []string{"free", "pinned"} {
		b.run(t, app(t, "counter"), control.RunRequest{Name: name, MemoryLimit: 64 << 20})
		b.call(t, name, "add 7")
	}
	if _, err := b.client.Pin(ctx, "pinned"); err != nil {
		t.Fatal(err)
	}
	// The app fits nowhere else, and the pinned worker stays.
	short, cancel := context.WithCancel(ctx)
	defer cancel()
	var left []string
	_, err := a.client.Drain(short, b.name(), control.DrainRequest{}, func(p control.DrainProgress) {
		left = nil
		why := 0
		for _, l := range p.Left {
			left = append(left, l.Worker)
			if l.Worker == "counter" && l.Reason == placement.NoCandidate.Text() || l.Worker == "pinned" && l.Reason == placement.Pinned.Text() {
				why++
			}
		}
		if len(left) == 2 && why == 2 {
			cancel()
		}
	})
	if err == nil || !slices.Equal(left, []string{"counter", "pinned"}) {
		t.Fatalf("drained with %v left: %v", left, err)
	}
	waitFor(t, "the drain's end", func() bool { on, _ := b.drains.state(); return !on })
	waitAt(t, a, "free")

	// Room for the one; the other is forced.
	a.label(t, "zone", "berlin")
	d, err := a.client.Drain(ctx, b.name(), control.DrainRequest{Force: true}, nil)
	if err != nil || d.Outcome != control.DrainDone || d.Moved != 2 || len(d.Left) != 0 {
		t.Fatalf("drained: %+v, %v", d, err)
	}
	for _, name := range []string{"counter", "free", "pinned"} {
		waitAt(t, a, name)
		if got := b.call(t, name, "get"); got != "7" {
			t.Errorf("%s: got %s, want 7", name, got)
		}
	}
	if w, err := a.client.Worker(ctx, "pinned"); err != nil || !w.Pinned {
		t.Errorf("it lost its pin: %+v, %v", w, err)
	}
	if s, err := b.client.Status(ctx); err != nil || !s.Cordoned {
		t.Errorf("after the drain: %+v, %v", s, err)
	}
	// A deadline that is too short says so.
	back := control.NodeSettings{Cordoned: ptr(false)}
	if _, err := a.client.Configure(ctx, b.name(), back); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "an open node", func() bool {
		for _, m := range a.mesh.Members() {
			if m.ID == b.id {
				return !m.Record.Cordoned
			}
		}
		return false
	})
	d, err = b.client.Drain(ctx, a.name(), control.DrainRequest{DeadlineMs: 0.001}, nil)
	if err != nil || d.Outcome != control.DrainDeadline || len(d.Left) == 0 {
		t.Errorf("a short drain: %+v, %v", d, err)
	}
}

// TestLoad lets a node's machine become busy: a worker whose events then take
// longer than its objective goes where they do not.
func TestLoad(t *testing.T) {
	nodes := startNodes(t, 2)
	a, b := nodes[0], nodes[1]
	ctx := t.Context()
	for _, n := range nodes {
		waitFor(t, "speeds", func() bool {
			return !slices.ContainsFunc(n.mesh.Members(), func(m mesh.Member) bool { return m.Record.Speed == 0 })
		})
	}
	manifest := func(limit time.Duration, stay float64) string {
		return fmt.Sprintf(`apiVersion: meshnode/v1alpha1
kind: App
name: kv
module: {path: kvstore.wasm}
limits: {memory: 64MiB}
objectives: {event: {max: %dus, quantile: p50, window: 10s}}
migration: {holdFor: 0s, minDwell: 0s}
placement: {prefer: [{nodes: [%s], weight: %g}]}
`, limit.Microseconds(), a.name(), stay)
	}
	if d, err := a.applyModule(t, manifest(time.Hour, 100), "kvstore"); err != nil || d.Workers[0].Node != a.name() {
		t.Fatalf("applied: %+v, %v", d, err)
	}
	a.call(t, "kv", "init 1MiB")
	a.call(t, "kv", "fill")
	for range 20 {
		a.call(t, "kv", "digest")
	}
	w, err := a.client.Worker(ctx, "kv")
	if err != nil {
		t.Fatal(err)
	}
	// Four times what an event takes here is far less than it takes here when
	// the machine has next to no time for it, and far more than there.
	limit := 4 * a.worker(w.ID).times.summary(time.Now()).p50
	if _, err := a.applyModule(t, manifest(limit, 0.1), "kvstore"); err != nil {
		t.Fatal(err)
	}
	a.load.Store(98)
	pace := time.NewTicker(100 * time.Millisecond)
	defer pace.Stop()
	waitFor(t, "the worker to leave", func() bool {
		<-pace.C // it must not be busy itself
		a.call(t, "kv", "digest")
		w, err := a.client.Worker(ctx, "kv")
		return err == nil && w.Home == string(b.id)
	})
	var moves []control.PlacementEvent
	waitFor(t, "the move's event", func() bool { moves = a.eventsOf(t, control.EventMove); return len(moves) > 0 })
	if e := moves[0]; e.Reason != "better" || e.Outcome != control.OutcomeDone {
		t.Errorf("the move: %+v", e)
	}
}

// TestTwins starts the same worker on two nodes, as two applies at the same moment
// do: one stays, and both nodes agree on which.
func TestTwins(t *testing.T) {
	nodes := startNodes(t, 2)
	a, b := nodes[0], nodes[1]
	text := guarded(time.Hour, a.name(), "nobody")
	if _, err := a.apply(t, text); err != nil {
		t.Fatal(err)
	}
	first, err := a.client.Worker(t.Context(), "counter")
	if err != nil {
		t.Fatal(err)
	}
	m, err := parseManifest("", text)
	if err != nil {
		t.Fatal(err)
	}
	local := a.worker(first.ID)
	if err := b.fetchModule(t.Context(), a.id, nil, local.Module, local.ModuleBytes); err != nil {
		t.Fatal(err)
	}
	// Past the look for a worker of that name, which both passed in time.
	s := appSpec(m, "counter", local.Module, local.ModuleBytes)
	if _, err := b.create(t.Context(), s, "", 1, func(w *worker) { w.govern(m, m.Effective()) }); err != nil {
		t.Fatal(err)
	}
	stays, home := first.ID, a
	if s.ID < first.ID {
		stays, home = s.ID, b
	}
	for _, n := range nodes {
		waitFor(t, "one worker", func() bool {
			ws, err := n.client.Workers(t.Context())
			return err == nil && len(ws) == 1 && ws[0].ID == stays && ws[0].Home == string(home.id)
		})
	}
}

func TestTryNext(t *testing.T) {
	for _, r := range []struct {
		err  error
		want bool
	}{
		{fmt.Errorf("%w: no route", errNotAsked), true},
		{&control.Error{Code: control.CodeConflict, Message: "no room"}, true},
		{&control.Error{Code: control.CodeFailed, Message: "no such file"}, true},
		{&control.Error{Code: control.CodeInvalid, Message: "a module that cannot run"}, false},
		{&control.Error{Code: control.CodeUnreachable, Message: "it went away"}, false}, // it may run there
		{&control.Error{Code: control.CodeTimeout, Message: "no answer"}, false},
		{context.DeadlineExceeded, false},
	} {
		if got := tryNext(r.err); got != r.want {
			t.Errorf("%v: got %v, want %v", r.err, got, r.want)
		}
	}
}
