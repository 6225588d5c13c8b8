package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/node/handover"
	"meshnode/pager"
)

// TestSilentPeer opens a stream and says nothing on it.
func TestSilentPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &Node{log: slog.New(slog.DiscardHandler)}
		for patience, serve := range map[time.Duration]func(net.Conn){
			helloTimeout: func(c net.Conn) { n.serveDeliver(t.Context(), c) },
			moduleIdle:   func(c net.Conn) { _ = n.modules.serve(c) },
		} {
			near, far := net.Pipe()
			began := time.Now()
			serve(far)
			if got := time.Since(began); got != patience {
				t.Errorf("given up after %v, want %v", got, patience)
			}
			near.Close()
			far.Close()
		}
	})
}

func TestModulesCollect(t *testing.T) {
	m := modules{dir: t.TempDir()}
	now := time.Now()
	put := func(content string, age time.Duration) pager.Hash {
		t.Helper()
		h, _, err := m.put(strings.NewReader(content), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(m.path(h), now.Add(-age), now.Add(-age)); err != nil {
			t.Fatal(err)
		}
		return h
	}
	used := put("0123456789", 9*time.Hour)
	oldest := put("abcdefghij", 8*time.Hour)
	older := put("klmnopqrst", 7*time.Hour)
	recent := put("uvwxyz", 6*time.Hour)
	fresh := put(strings.Repeat("x", 1000), 0)
	if _, ok := m.have(oldest); !ok { // which makes it the newest
		t.Fatal("a module is not here")
	}
	if err := os.Chtimes(m.path(oldest), now.Add(-5*time.Hour), now.Add(-5*time.Hour)); err != nil {
		t.Fatal(err)
	}
	torn, foreign := filepath.Join(m.dir, incoming+"1"), filepath.Join(m.dir, "README")
	for _, path := range []string{torn, foreign} {
		if err := os.WriteFile(path, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, now.Add(-2*time.Hour), now.Add(-2*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	freed, err := m.collect(func(h pager.Hash) bool { return h == used }, 16, now.Add(-time.Hour))
	if err != nil || freed != 14 {
		t.Errorf("%d bytes went, want 14: %v", freed, err)
	}
	for path, want := range map[string]bool{
		m.path(used): true, m.path(oldest): true, m.path(older): false, m.path(recent): true, m.path(fresh): true,
		torn: false, foreign: true,
	} {
		if _, err := os.Stat(path); (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", filepath.Base(path), err == nil, want)
		}
	}
}

// TestTidy lets a worker that failed grow old beside one that runs.
func TestTidy(t *testing.T) {
	n := startNodes(t, 1)[0]
	running := n.run(t, app(t, "counter"), control.RunRequest{Name: "running"})
	n.run(t, app(t, "probe"), control.RunRequest{Name: "failed"})
	if _, err := n.client.Call(t.Context(), "failed", []byte("trap")); err == nil {
		t.Fatal("the worker did not trap")
	}
	n.tidy(t.Context(), time.Now())
	failed, err := n.client.Worker(t.Context(), "failed")
	if err != nil || failed.State != control.StateFailed {
		t.Fatalf("soon after: %+v, %v", failed, err)
	}
	n.tidy(t.Context(), time.Now().Add(endedAge+time.Hour))
	var ce *control.Error
	if w, err := n.client.Worker(t.Context(), "failed"); !errors.As(err, &ce) || ce.Code != control.CodeNotFound {
		t.Errorf("long after: %+v, %v", w, err)
	}
	if _, ok, err := n.journal.Get(failed.ID); ok || err != nil {
		t.Errorf("its record is there: %v, %v", ok, err)
	}
	used, err := n.modulesInUse()
	if err != nil || len(used) != 1 {
		t.Errorf("%d modules in use, %v", len(used), err)
	}
	for h := range used {
		if h.String() != running.Module {
			t.Errorf("module %v is in use instead of %s", h, running.Module)
		}
	}
	n.call(t, "running", "add 1")
}

func TestLogBounds(t *testing.T) {
	r := newLogRing()
	for i := range 3 * logLines {
		r.add(control.LogLine{Text: fmt.Sprint(i)})
	}
	read := func() (texts []string) {
		_ = r.each(context.Background(), false, func(l control.LogLine) error {
			texts = append(texts, l.Text)
			return nil
		})
		return texts
	}
	got := read()
	if len(got) != logLines || got[0] != fmt.Sprint(2*logLines) || got[logLines-1] != fmt.Sprint(3*logLines-1) {
		t.Errorf("%d lines from %s to %s", len(got), got[0], got[len(got)-1])
	}
	for range 5 {
		r.add(control.LogLine{Text: strings.Repeat("x", logBytes/3)})
	}
	if got := read(); len(got) != 3 {
		t.Errorf("%d lines of a third of the limit are kept", len(got))
	}
}

// TestDoubtNamesPeer recovers a move of which the journal knows more than
// gossip.
func TestDoubtNamesPeer(t *testing.T) {
	n := startNodes(t, 1)[0]
	s := sampleImage().Spec
	rec := handover.Record{
		Worker: s.ID, Epoch: 1, Own: handover.OwnMovingOut, Move: handover.NewMoveID(), Peer: newID(), Ticket: 1,
		Updated: time.Now().Unix(), Meta: recordMeta{Spec: s, To: "attic"}.encode(),
	}
	if err := n.journal.Put(rec); err != nil {
		t.Fatal(err)
	}
	var meta recordMeta
	if err := decMode.Unmarshal(rec.Meta, &meta); err != nil {
		t.Fatal(err)
	}
	if err := n.ask(rec, meta); err != nil {
		t.Fatal(err)
	}
	w, err := n.client.Worker(t.Context(), s.ID)
	if err != nil || w.State != control.StateInDoubt || w.MoveTo != "attic" || !strings.Contains(w.Reason, "to node attic;") {
		t.Errorf("%+v, %v", w, err)
	}
	if n.nameOf(mesh.NodeID(rec.Peer)) != rec.Peer {
		t.Error("gossip knows the peer, which is not there")
	}
}

// Of the cache what was never finished goes, and then the oldest.
func TestClearCache(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	put := func(name string, size int, age time.Duration) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, now.Add(-age), now.Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	put("wazero/old", 10, 3*time.Hour)
	put("wazero/new", 10, time.Minute)
	put("program-2-aa", 10, 2*time.Hour)
	put("program-2-bb.1.tmp", 10, 2*time.Hour)
	put("program-2-cc.1.tmp", 5, time.Minute) // being written
	freed, err := clearCache(dir, 25, now)
	if err != nil || freed != 20 {
		t.Errorf("freed %d, %v; want 20", freed, err)
	}
	var left []string
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			left = append(left, filepath.Base(path))
		}
		return err
	})
	if want := []string{"program-2-aa", "program-2-cc.1.tmp", "new"}; !slices.Equal(left, want) {
		t.Errorf("left are %v, want %v", left, want)
	}
	if _, err := clearCache(filepath.Join(dir, "nothing"), 25, now); err != nil {
		t.Errorf("a cache that is not there: %v", err)
	}
}
