package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"meshnode/node/control"
	"meshnode/node/handover"
	"meshnode/pager"
)

// startPair starts two nodes for a test of moves in rounds, and with paging of
// those that also need missing pages to be faults; where the kernel has not what it
// takes the test is skipped.
func startPair(t *testing.T, paging bool) (a, b *testNode) {
	t.Helper()
	nodes := startNodes(t, 2)
	switch s := nodes[0].support; {
	case !s.Tracking():
		t.Skip("no rounds without write tracking: ", s.Reason)
	case paging && !s.Missing:
		t.Skip("no paging here: ", s.Reason)
	}
	return nodes[0], nodes[1]
}

// A worker that has handled an event since it was looked at is not frozen.
func TestFreezeStirred(t *testing.T) {
	n := startNodes(t, 1)[0]
	n.run(t, app(t, "counter"), control.RunRequest{Name: "counter"})
	w := n.locals()[0]
	other := w.handled() + 1
	if _, _, err := w.freeze(t.Context(), &other); !errors.Is(err, errStirred) {
		t.Fatalf("frozen after another event: %v", err)
	}
	standing := func() (frozen bool) {
		if err := w.do(t.Context(), func() { frozen = w.frozen }); err != nil {
			t.Fatal(err)
		}
		return frozen
	}
	if standing() {
		t.Fatal("it stands still")
	}
	now := w.handled()
	if img, _, err := w.freeze(t.Context(), &now); err != nil || img.Events != now {
		t.Fatalf("frozen with %d events handled: an image after %d: %v", now, img.Events, err)
	}
	if !standing() {
		t.Fatal("it does not stand still")
	}
	if err := w.thaw(t.Context(), w.epochNow()); err != nil {
		t.Fatal(err)
	}
}

// A node that starts again within its process, to take part in another mesh,
// leaves nothing behind of the moves that were under way.
func TestRestartDuringMove(t *testing.T) {
	nodes := startNodes(t, 2)
	a, b := nodes[0], nodes[1]
	before := pagemaps(t)
	a.run(t, app(t, "counter"), control.RunRequest{Name: "counter"})
	w := a.locals()[0]
	// In something that does not end, it is not frozen.
	busy := make(chan struct{})
	go func() { _ = w.do(a.ctx, func() { close(busy); <-a.ctx.Done() }) }()
	<-busy
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

// A worker that is busy when the last of its memory comes does not seem to be
// draining for ever.
func TestBusyWhenDrained(t *testing.T) {
	nodes := startNodes(t, 2)
	a, b := nodes[0], nodes[1]
	a.run(t, app(t, "counter"), control.RunRequest{Name: "counter"})
	w := a.locals()[0]
	to, ok := a.mesh.Member(b.id)
	if !ok {
		t.Fatal("the destination is no member")
	}
	m, err := a.moveAway(t.Context(), w, to, moveOptions{strategy: handover.PostCopy})
	if err != nil {
		t.Fatal(err)
	}
	var in *moveIn
	for in == nil {
		runtime.Gosched()
		in = b.arrival(w.ID)
	}
	for in.mu.Lock(); in.w == nil; in.mu.Lock() {
		in.mu.Unlock()
		runtime.Gosched()
	}
	busy, over := make(chan struct{}), make(chan struct{})
	arrived := in.w
	go func() { _ = arrived.do(b.ctx, func() { close(busy); <-over }) }()
	<-busy
	in.mu.Unlock() // the drain begins
	<-m.done
	<-in.done
	close(over)
	waitState(t, b, "counter", control.StateRunning)
}

// A worker that goes home at once brings what it has changed, and a byte for each
// of its other pages: what it has left behind is in the store by then.
func TestHomeAtOnce(t *testing.T) {
	a, b := startPair(t, false)
	a.runStore(t, "kv", "32MiB")
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
	a.runStore(t, "kv", "16MiB")
	want := a.call(t, "kv", "digest")
	known(t, "kv", b, c)
	a.migrate(t, "kv", b, control.StrategyAuto)
	b.budget = pager.NewBudget(128 << 10)
	m := b.migrate(t, "kv", c, control.StrategyPostCopy)
	// The source alone would take two minutes for all of it.
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

// What a module's data segments have written is not sent, though no worker of the
// module was ever at the destination.
func TestModuleData(t *testing.T) {
	a, b := startPair(t, false)
	a.run(t, app(t, "counter"), control.RunRequest{Name: "counter"})
	a.call(t, "counter", "add 42")
	known(t, "counter", b)
	m := a.migrate(t, "counter", b, control.StrategyHybrid)
	if got := b.call(t, "counter", "get"); got != "42" {
		t.Errorf("the counter is %q", got)
	}
	memory := b.locals()[0].runner.Region().Data[:m.MemoryBytes]
	var had, all uint64
	for at := 0; at < len(memory); at += pager.PageSize {
		page := memory[at:][:pager.PageSize]
		if pager.IsZero(page) {
			continue
		}
		all++
		if b.store.Has(pager.HashPage(page)) {
			had++
		}
	}
	// The guest's runtime writes some pages again and again, which are sent as often.
	const again = 24
	sent := m.PagesPushed + m.PagesDemanded
	t.Logf("%d of %d pages were in the store, %d sent", had, all, sent)
	if had < 2*again || sent > all-had+again {
		t.Errorf("%d pages were sent: of %d the store had %d", sent, all, had)
	}
}

// Pages that a worker has left behind are not sent for another one of its app.
func TestPagesOfAnother(t *testing.T) {
	a, b := startPair(t, false)
	a.runStore(t, "one", "8MiB")
	one := a.locals()[0]
	known(t, "one", b)
	a.migrate(t, "one", b, control.StrategyHybrid)
	if err := a.awaitKept(t.Context(), one.ID); err != nil {
		t.Fatal(err)
	}
	b.runStore(t, "two", "8MiB")
	want := b.call(t, "two", "digest")
	known(t, "two", a)
	m := b.migrate(t, "two", a, control.StrategyHybrid)
	if m.BytesOnWire > 4<<20 {
		t.Errorf("%d bytes brought a worker of which another one had left the same 8 MiB", m.BytesOnWire)
	}
	if got := a.call(t, "two", "digest"); got != want {
		t.Errorf("digest %s, was %s", got, want)
	}
}

// Pages that another worker of the module has at the destination, where it runs,
// are not sent.
func TestPagesOfNeighbour(t *testing.T) {
	const size = 16 << 20
	a, b := startNeighbour(t, "16MiB")
	for _, strategy := range []string{control.StrategyHybrid, control.StrategyPostCopy, control.StrategyPreCopy, control.StrategyStopAndCopy} {
		a.runStore(t, strategy, "16MiB")
		want := a.call(t, strategy, "digest")
		known(t, strategy, b)
		m := a.migrate(t, strategy, b, strategy)
		if got := b.call(t, strategy, "digest"); got != want {
			t.Errorf("%s: digest %s, was %s", strategy, got, want)
		}
		t.Logf("%s: %d bytes, %d pages pushed, %d demanded", strategy, m.BytesOnWire, m.PagesPushed, m.PagesDemanded)
		// What the guests' runtimes have is not all alike.
		if m.BytesOnWire > size/8 {
			t.Errorf("%s: %d bytes brought a worker of which another one had the same %d", strategy, m.BytesOnWire, size)
		}
		// It is not to be a neighbour of the next.
		if _, err := b.client.Stop(t.Context(), strategy); err != nil {
			t.Fatal(err)
		}
	}
}

// A worker that writes all the while has fewer pages for one that comes, and none
// that are wrong.
func TestPagesOfBusyNeighbour(t *testing.T) {
	a, b := startNeighbour(t, "8MiB")
	b.call(t, "neighbour", "churn 32MiB hot=4MiB")
	a.runStore(t, "kv", "8MiB")
	want := a.call(t, "kv", "digest arena")
	entries := a.call(t, "kv", "digest")
	known(t, "kv", b)
	m := a.migrate(t, "kv", b, control.StrategyHybrid)
	if got := b.call(t, "kv", "digest arena"); got != want {
		t.Errorf("digest %s, was %s", got, want)
	}
	if got := b.call(t, "neighbour", "digest"); got != entries {
		t.Errorf("its neighbour has digest %s, want %s", got, entries)
	}
	if m.BytesOnWire > 6<<20 {
		t.Errorf("%d bytes brought a worker of which another one had half of 8 MiB", m.BytesOnWire)
	}
}

// A worker that ends while its pages are looked for is no harm to one that comes.
func TestPagesOfNeighbourThatEnds(t *testing.T) {
	a, b := startNeighbour(t, "32MiB")
	id := a.runStore(t, "kv", "32MiB").ID
	want := a.call(t, "kv", "digest")
	known(t, "kv", b)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		var found uint64
		for found == 0 && ctx.Err() == nil {
			runtime.Gosched()
			if in := b.arrival(id); in != nil {
				in.mu.Lock()
				found = in.neighbours.Found()
				in.mu.Unlock()
			}
		}
		_, err := b.client.Stop(t.Context(), "neighbour")
		t.Logf("%d pages were found when it was to end", found)
		ended <- err
	}()
	m := a.migrate(t, "kv", b, control.StrategyHybrid)
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes", m.BytesOnWire)
	if got := b.call(t, "kv", "digest"); got != want {
		t.Errorf("digest %s, was %s", got, want)
	}
}

// Neighbours are workers of the same module that run here with all of their
// memory.
func TestNeighbours(t *testing.T) {
	n := startNodes(t, 1)[0]
	n.run(t, app(t, "counter"), control.RunRequest{Name: "counter"})
	w := n.locals()[0]
	draining := func(yes bool) {
		w.mu.Lock()
		w.draining = yes
		w.mu.Unlock()
	}
	if n.neighbours(w.Module) == nil {
		t.Error("a worker is not looked at")
	}
	if n.neighbours(pager.Hash{1}) != nil {
		t.Error("a worker of another module is looked at")
	}
	draining(true)
	if n.neighbours(w.Module) != nil {
		t.Error("a worker whose memory is arriving is looked at")
	}
	draining(false)
	w.kill(control.StateFailed, "so says a test")
	if n.neighbours(w.Module) != nil {
		t.Error("a worker that has ended is looked at")
	}
}

// startNeighbour starts two nodes, and at the second a kvstore called neighbour
// with entries of that size.
func startNeighbour(t *testing.T, size string) (a, b *testNode) {
	t.Helper()
	a, b = startPair(t, true)
	b.runStore(t, "neighbour", size)
	return a, b
}

// What a worker has left is still there when its node has been stopped and
// started, so that it brings home what has changed.
func TestHomeAfterRestart(t *testing.T) {
	a := startNode(t, t.TempDir(), "a", nil)
	if !a.support.Tracking() {
		t.Skip("no rounds without write tracking: ", a.support.Reason)
	}
	dir := t.TempDir()
	b := startNode(t, dir, "b", []*testNode{a})
	b.runStore(t, "kv", "8MiB")
	w := b.locals()[0]
	want := b.call(t, "kv", "digest")
	known(t, "kv", a)
	b.migrate(t, "kv", a, control.StrategyHybrid)
	if err := b.awaitKept(t.Context(), w.ID); err != nil {
		t.Fatal(err)
	}
	b.stop(t)
	b = startNode(t, dir, "b", nil)
	known(t, "kv", b)
	var m control.Migration
	waitFor(t, "a way to the node that has come back", func() (ok bool) {
		var err error
		m, err = a.client.Migrate(t.Context(), "kv", control.MigrateRequest{To: "b", Strategy: control.StrategyHybrid}, func(control.Progress) {})
		return err == nil
	})
	if pages := m.MemoryBytes / pager.PageSize; m.BytesOnWire > 64*pages {
		t.Errorf("%d bytes brought %d pages home", m.BytesOnWire, pages)
	}
	if got := b.call(t, "kv", "digest"); got != want {
		t.Errorf("digest %s, was %s", got, want)
	}
}

// The pages that a worker waited for when it came are its working set when it
// moves on, if nothing better is known.
func TestAwaitedIsWorkingSet(t *testing.T) {
	a, b := startPair(t, true)
	a.runStore(t, "kv", "1MiB")
	known(t, "kv", b)
	a.budget = pager.NewBudget(256 << 10) // so that the worker waits for pages
	got := make(chan error, 1)
	go func() {
		_, err := a.client.Migrate(t.Context(), "kv", control.MigrateRequest{To: b.name(), Strategy: control.StrategyPostCopy}, func(control.Progress) {})
		got <- err
	}()
	waitFor(t, "the worker's arrival", func() bool { return len(b.locals()) == 1 })
	want := b.call(t, "kv", "digest")
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	w := b.locals()[0]
	waitFor(t, "the end of the drain", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return !w.draining
	})
	awaited := w.awaitedNow()
	if len(awaited) == 0 {
		t.Fatal("the worker waited for nothing")
	}
	m, err := b.client.Migrate(t.Context(), "kv", control.MigrateRequest{To: a.name(), Strategy: control.StrategyHybrid, NoSampling: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if m.WorkingSetPages != uint64(len(awaited)) {
		t.Errorf("a working set of %d pages, the worker waited for %d", m.WorkingSetPages, len(awaited))
	}
	if got := a.call(t, "kv", "digest"); got != want {
		t.Errorf("digest %s, was %s", got, want)
	}
}

// Rounds end at the limit they were given, though little has been sent, and the
// worker runs at its new home with the rest still to come.
func TestRoundsLimit(t *testing.T) {
	a, b := startPair(t, true)
	a.runStore(t, "kv", "8MiB")
	known(t, "kv", b)
	a.budget = pager.NewBudget(64 << 10) // all of it takes more than two minutes
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan struct{})
	go func() {
		defer close(over)
		_, _ = a.client.Migrate(ctx, "kv", control.MigrateRequest{To: b.name(), Strategy: control.StrategyHybrid, RoundsLimitMs: 100}, func(control.Progress) {})
	}()
	waitFor(t, "the worker's arrival", func() bool { return len(b.locals()) == 1 })
	if got := b.call(t, "kv", "get k0"); got == "" {
		t.Error("the worker has lost an entry")
	}
	w, err := b.client.Worker(t.Context(), "kv")
	if err != nil || w.HomeName != b.name() || w.ResidentShare <= 0 || w.ResidentShare > 0.9 {
		t.Errorf("%+v, %v", w, err)
	}
	cancel()
	<-over
}

// Memory that a worker allocates and fills while its pages travel goes along.
func TestGrowsDuringRounds(t *testing.T) {
	a, b := startPair(t, true)
	a.runStore(t, "kv", "8MiB")
	known(t, "kv", b)
	w := a.locals()[0]
	before := w.memoryNow()
	a.budget = pager.NewBudget(256 << 10) // so that the rounds last until they are ended
	got := make(chan control.Migration, 1)
	go func() {
		defer close(got)
		m, err := a.client.Migrate(t.Context(), "kv", control.MigrateRequest{To: b.name(), Strategy: control.StrategyHybrid}, func(control.Progress) {})
		if err == nil {
			got <- m
		}
	}()
	var rounds *pager.Rounds
	waitFor(t, "the first pages", func() bool {
		w.mu.Lock()
		m := w.move
		w.mu.Unlock()
		if m != nil && m.writes.ready() {
			rounds = m.writes.rounds
		}
		return rounds != nil && rounds.Stats().Sent > 0
	})
	a.call(t, "kv", "init 12MiB")
	a.call(t, "kv", "fill")
	want := a.call(t, "kv", "digest arena")
	select {
	case <-rounds.Settled():
		t.Error("the rounds ended before the memory had grown")
	default:
	}
	waitFor(t, "a look at what has grown", func() bool {
		return rounds.Stats().Pages == int(w.memoryNow()/pager.PageSize)
	})
	rounds.End()
	waitFor(t, "the worker's arrival", func() bool { return len(b.locals()) == 1 })
	if got := b.call(t, "kv", "digest arena"); got != want {
		t.Errorf("digest %s, was %s", got, want)
	}
	if m := <-got; m.MemoryBytes <= uint64(before) {
		t.Errorf("the memory was %d bytes before the move, and %d in it", before, m.MemoryBytes)
	}
}

// Moves under way at the same time have their parts of what the node may push by
// their priorities.
func TestMovesByPriority(t *testing.T) {
	a, b := startPair(t, false)
	a.budget = pager.NewBudget(64 << 10)
	ctx, cancel := context.WithCancel(t.Context())
	var moves []*moveOut
	var over sync.WaitGroup
	for _, priority := range []int{1, 9} {
		name := fmt.Sprintf("kv%d", priority)
		id := a.runStore(t, name, "4MiB").ID
		known(t, name, b)
		over.Go(func() {
			if _, err := a.client.Migrate(ctx, name, control.MigrateRequest{To: b.name(), Priority: priority}, func(control.Progress) {}); err == nil {
				t.Errorf("%s has moved", name)
			}
		})
		var m *moveOut
		waitFor(t, "the move of "+name, func() bool {
			w := a.local(id)
			w.mu.Lock()
			defer w.mu.Unlock()
			m = w.move
			return m != nil
		})
		moves = append(moves, m)
	}
	waitFor(t, "one part and nine", func() bool {
		one, nine := moves[0].writes.share.Rate(), moves[1].writes.share.Rate()
		return nine > 8*one && one+nine <= 64<<10
	})
	cancel()
	over.Wait()
}
