package node

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"meshnode/node/control"
	"meshnode/node/handover"
	"meshnode/pager"
)

// A node that starts again within its process, to take part in another mesh,
// leaves nothing behind of the moves that were under way.
func TestRestartDuringMove(t *testing.T) {
	nodes := startNodes(t, 2)
	a, b := nodes[0], nodes[1]
	before := pagemaps(t)
	a.run(t, app(t, "counter"), control.RunRequest{Name: "counter"})
	w := a.locals()[0]
	// In something that does not end, it is not frozen.
	go func() { _ = w.do(a.ctx, func() { <-a.ctx.Done() }) }()
	to, ok := a.mesh.Member(b.id)
	if !ok {
		t.Fatal("the destination is no member")
	}
	m, err := a.moveAway(t.Context(), w, to, moveOptions{strategy: handover.Hybrid})
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the freeze", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.at == handover.SourceFreezing
	})
	waitFor(t, "the arrival", func() bool { return b.arrival(w.ID) != nil })
	in := b.arrival(w.ID)
	for _, n := range nodes {
		n.Node.cancel(ErrRestart)
		if err := <-n.ended; !errors.Is(err, ErrRestart) {
			t.Fatalf("the node ended with %v", err)
		}
		n.cancel = nil
		n.client.Close()
	}
	w.memoryIn.mu.Lock()
	if !w.memoryIn.over || w.memoryIn.count != 0 {
		t.Errorf("the worker's memory is still held %d times", w.memoryIn.count)
	}
	w.memoryIn.mu.Unlock()
	in.mu.Lock()
	if in.runner != nil || in.reserved != 0 {
		t.Errorf("the destination still has a runner, or %d bytes set aside", in.reserved)
	}
	in.mu.Unlock()
	if now := pagemaps(t); now > before {
		t.Errorf("%d files of page tables are open, %d were", now, before)
	}
}

// A worker that goes home at once brings what it has changed, and a byte for each
// of its other pages: what it has left behind is in the store by then.
func TestHomeAtOnce(t *testing.T) {
	nodes := startNodes(t, 2)
	a, b := nodes[0], nodes[1]
	if !a.support.Tracking() {
		t.Skip("no rounds without write tracking: ", a.support.Reason)
	}
	a.run(t, app(t, "kvstore"), control.RunRequest{Name: "kv", MemoryLimit: 96 << 20})
	a.call(t, "kv", "init 32MiB")
	a.call(t, "kv", "fill")
	want := a.call(t, "kv", "digest")
	known(t, "kv", b)
	a.migrate(t, "kv", b, control.StrategyHybrid)
	m := b.migrate(t, "kv", a, control.StrategyHybrid)
	// Names alone would be 32 bytes a page. What the worker and its guest's
	// runtime write at any time is a page or two.
	if pages := m.MemoryBytes / pager.PageSize; m.BytesOnWire > 8*pages {
		t.Errorf("%d bytes brought %d pages home", m.BytesOnWire, pages)
	}
	if got := a.call(t, "kv", "digest"); got != want {
		t.Errorf("digest %s, was %s", got, want)
	}
}

// After the commit pages come from where the worker was before, too, when the way
// from its last home is thin.
func TestPagesElsewhere(t *testing.T) {
	nodes := startNodes(t, 3)
	a, b, c := nodes[0], nodes[1], nodes[2]
	a.run(t, app(t, "kvstore"), control.RunRequest{Name: "kv", MemoryLimit: 96 << 20})
	a.call(t, "kv", "init 16MiB")
	a.call(t, "kv", "fill")
	want := a.call(t, "kv", "digest")
	known(t, "kv", b, c)
	a.migrate(t, "kv", b, control.StrategyAuto)
	b.budget = pager.NewBudget(2 << 20)
	m := b.migrate(t, "kv", c, control.StrategyPostCopy)
	// The source alone would take eight seconds for all of it.
	if m.PagesElsewhere == 0 || m.BytesOnWire >= 16<<20 {
		t.Errorf("%d pages came from elsewhere, and %d bytes from the source", m.PagesElsewhere, m.BytesOnWire)
	}
	if got := c.call(t, "kv", "digest"); got != want {
		t.Errorf("digest %s, was %s", got, want)
	}
}

// A move that is not to sample the working set does not, however busy the worker is.
func TestNoSampling(t *testing.T) {
	nodes := startNodes(t, 2)
	a, b := nodes[0], nodes[1]
	a.run(t, app(t, "kvstore"), control.RunRequest{Name: "kv", MemoryLimit: 96 << 20})
	a.call(t, "kv", "churn 4MiB")
	known(t, "kv", b)
	m, err := a.client.Migrate(t.Context(), "kv", control.MigrateRequest{To: b.name(), NoSampling: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if m.WorkingSetPages > 0 {
		t.Errorf("a working set of %d pages", m.WorkingSetPages)
	}
}

// A worker that can run before its pages are there does not stand still until
// all of its memory was hashed.
func TestComparesHashes(t *testing.T) {
	for _, tc := range []struct {
		strategy     handover.Strategy
		paging, want bool
	}{
		{handover.Hybrid, true, false}, {handover.Hybrid, false, true}, {handover.PreCopy, true, true},
		{handover.PreCopy, false, true}, {handover.PostCopy, false, false}, {handover.StopAndCopy, true, false},
	} {
		if got := comparesHashes(tc.strategy, tc.paging); got != tc.want {
			t.Errorf("%s, the destination pages: %t: got %t", tc.strategy, tc.paging, got)
		}
	}
}

// pagemaps counts the descriptors of this process that watch a runner's writes.
func pagemaps(t *testing.T) (count int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no list of open files here: ", err)
	}
	for _, e := range entries {
		if to, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name())); err == nil && strings.HasSuffix(to, "/pagemap") {
			count++
		}
	}
	return count
}
