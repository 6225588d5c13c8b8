package node

import (
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"meshnode/node/control"
	"meshnode/node/runner"
	"meshnode/pager"
	"meshnode/placement"
)

// compiled counts the files in the cache of compiled modules that node has.
func (n *testNode) compiled(t *testing.T) (files int) {
	t.Helper()
	err := filepath.WalkDir(n.cfg.CacheDir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files++
		}
		return ignoreNotExist(err)
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestWarm: a node has a module ready before a worker comes with it, and nothing
// else.
func TestWarm(t *testing.T) {
	nodes := startNodes(t, 2)
	a, b := nodes[0], nodes[1]
	listed := a.run(t, app(t, "counter"), control.RunRequest{Name: "counter"})
	w := a.worker(listed.ID)
	want := warmWant{Module: w.Module, Bytes: w.ModuleBytes, MemoryLimit: w.MemoryLimit, Kind: w.kind()}
	cordoned := true
	if err := b.configure(control.NodeSettings{Cordoned: &cordoned}); err != nil {
		t.Fatal(err)
	}
	if err := a.askWarm(b.id, want); err == nil || !strings.Contains(err.Error(), "cordoned") {
		t.Errorf("a node that takes no workers: %v", err)
	}
	cordoned = false
	if err := b.configure(control.NodeSettings{Cordoned: &cordoned}); err != nil {
		t.Fatal(err)
	}
	odd := want
	odd.Bytes = -1
	if err := a.askWarm(b.id, odd); err == nil {
		t.Error("a module of -1 bytes")
	}
	if _, ok := b.modules.have(w.Module); ok {
		t.Fatal("the module is there already")
	}

	a.warm(w, b.id)
	waitFor(t, "the module", func() bool { _, ok := b.modules.have(w.Module); return ok })
	// It is asked once: a second request goes to whoever is the first then.
	if err := a.askWarm(b.id, want); err != nil && !strings.Contains(err.Error(), "being made ready") {
		t.Error(err)
	}
	waitFor(t, "compiled code", func() bool { return b.compiled(t) > 0 })
	waitFor(t, "word of it", func() bool {
		return slices.Contains(w.factsInEvent(time.Now()).Cached, placement.Cached{Node: placement.NodeID(b.id), Module: true})
	})
	if ws := b.locals(); len(ws) != 0 {
		t.Errorf("%d workers are there", len(ws))
	}
	a.migrate(t, "counter", b, control.StrategyAuto)
	if got := b.call(t, "counter", "add 1"); got != "1" {
		t.Errorf("got %s, want 1", got)
	}
}

func FuzzWarmWant(f *testing.F) {
	b, err := encMode.Marshal(warmWant{Module: pager.Hash{1}, Bytes: 1, MemoryLimit: wasmPage, Kind: runner.CommandWorker})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var w warmWant
		if decMode.Unmarshal(b, &w) != nil || w.validate() != nil {
			return
		}
		if w.Bytes <= 0 || w.Bytes > control.MaxModuleBytes || w.MemoryLimit > runner.MaxMemory || w.Kind > runner.CommandWorker {
			t.Errorf("accepted %+v", w)
		}
	})
}
