package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/node/lease"
	"meshnode/node/runner"
	"meshnode/pager"
)

// checkpointed is guarded with checkpoints.
func checkpointed(after, every time.Duration, home string, list ...string) string {
	return strings.Replace(guarded(after, home, list...), "after: ", fmt.Sprintf("checkpoint: %v, after: ", every), 1)
}

// waitCheckpoint waits until a guardian has that many checkpoints of a worker, as
// the worker's node says.
func waitCheckpoint(t *testing.T, at *testNode, worker, guardian string, count uint64) control.Checkpoint {
	t.Helper()
	var c control.Checkpoint
	waitFor(t, fmt.Sprintf("%d checkpoints at %s", count, guardian), func() bool {
		w, err := at.client.Worker(t.Context(), worker)
		if err != nil || w.Guardian == nil || w.Guardian.NodeName != guardian || w.Guardian.Checkpoint == nil {
			return false
		}
		c = *w.Guardian.Checkpoint
		return c.Count >= count
	})
	return c
}

// fallSilent has the keeper of a worker's lease talk to nobody.
func (n *testNode) fallSilent(worker string) {
	w := n.worker(worker)
	w.mu.Lock()
	k := w.keeper
	w.mu.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.guardian = mesh.NodeID(newID())
}

// TestCheckpointTakeOver lets a worker's owner fall silent. The guardian goes on
// from the checkpoint that it has, and so do the sessions that have seen nothing
// later.
func TestCheckpointTakeOver(t *testing.T) {
	nodes := startNodes(t, 3)
	a, b, c := nodes[0], nodes[1], nodes[2]
	ctx := t.Context()
	if d, err := a.apply(t, guarded(10*time.Second, a.name(), b.name())); err != nil || d.Workers[0].Node != a.name() {
		t.Fatalf("applied: %+v, %v", d, err)
	}
	known(t, "counter", c)
	session := func() control.Session {
		t.Helper()
		s, err := c.client.Session(ctx, "counter")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	say := func(s control.Session, text, want string) {
		t.Helper()
		if err := s.Send(ctx, control.Message{Call: true, Payload: []byte(text)}); err != nil {
			t.Fatal(err)
		}
		if r, err := s.Recv(ctx); err != nil || string(r.Payload) != want {
			t.Fatalf("%s: got %q, %v, want %s", text, r.Payload, err, want)
		}
	}
	// It reads an interface at a node that is none of these.
	far := []boundInterface{{Name: "location", Node: mesh.NodeID(newID())}}
	running, err := a.client.Worker(ctx, "counter")
	if err != nil {
		t.Fatal(err)
	}
	a.worker(running.ID).reads.bind(far)
	before, after, idle := session(), session(), session()
	say(before, "add 3", "3")
	say(after, "get", "3")
	say(idle, "get", "3")
	// One checkpoint, and then none for an hour.
	if _, err := a.apply(t, checkpointed(10*time.Second, time.Hour, a.name(), b.name())); err != nil {
		t.Fatal(err)
	}
	if got := waitCheckpoint(t, a, "counter", b.name(), 1); got.Bytes == 0 || got.SentBytes == 0 || got.PauseMs <= 0 || got.Reason != "" || got.EveryMs != 3600e3 {
		t.Errorf("the first checkpoint: %+v", got)
	}
	say(after, "add 4", "7")
	w, err := a.client.Worker(ctx, "counter")
	if err != nil {
		t.Fatal(err)
	}

	a.fallSilent(w.ID)
	waitAt(t, b, "counter")
	now, err := b.client.Worker(ctx, "counter")
	if err != nil || now.ID != w.ID || now.Epoch != w.Epoch+lease.Step || now.App != "counter" || now.Events < 3 {
		t.Fatalf("taken: %+v, %v; it was %+v", now, err, w)
	}
	if got := b.worker(w.ID).reads.bound(); !slices.Equal(got, far) {
		t.Errorf("it reads interfaces at %v, want %v", got, far)
	}
	waitTaken(t, b, a, "owner-silent", "it goes on here, in epoch 4, from a checkpoint of ")
	say(before, "add 10", "13")
	say(idle, "get", "13")
	err = after.Send(ctx, control.Message{Call: true, Payload: []byte("add 100")})
	if err == nil {
		_, err = after.Recv(ctx)
	}
	var ce *control.Error
	if !errors.As(err, &ce) || !strings.Contains(ce.Message, "superseded: node "+a.name()+", which ran it, fell silent, and it goes on elsewhere from an earlier checkpoint") {
		t.Errorf("a session that has seen what was undone: %v", err)
	}
	if got := c.call(t, "counter", "get"); got != "13" {
		t.Errorf("got %s, want 13", got)
	}
	waitFor(t, "the earlier copy to end", func() bool { return a.local(w.ID) == nil })
	waitFor(t, "the guardian to let go of it", func() bool {
		b.guards.mu.Lock()
		defer b.guards.mu.Unlock()
		return b.guards.replicaBytes == 0
	})
}

// TestCheckpointLease follows checkpoints through a guardian without room, a move
// and an earlier owner's late word.
func TestCheckpointLease(t *testing.T) {
	nodes := startNodes(t, 3)
	a, b, c := nodes[0], nodes[1], nodes[2]
	ctx := t.Context()
	taken := func(n *testNode) int64 {
		n.guards.mu.Lock()
		defer n.guards.mu.Unlock()
		return n.guards.replicaBytes
	}
	const plenty = 1 << 60
	b.guards.giveBack(-plenty)
	if d, err := a.apply(t, checkpointed(time.Hour, 100*time.Millisecond, a.name(), b.name())); err != nil || d.Workers[0].Node != a.name() {
		t.Fatalf("applied: %+v, %v", d, err)
	}
	a.call(t, "counter", "add 3")
	waitFor(t, "the reason why there is no checkpoint", func() bool {
		w, err := a.client.Worker(ctx, "counter")
		return err == nil && w.Guardian != nil && w.Guardian.Checkpoint != nil && w.Guardian.Checkpoint.Count == 0 &&
			strings.Contains(w.Guardian.Checkpoint.Reason, "node "+b.name()+" does not keep a checkpoint: no room for ")
	})
	b.guards.giveBack(plenty)
	got := waitCheckpoint(t, a, "counter", b.name(), 3)
	if got.SentBytes >= got.Bytes {
		t.Errorf("the third checkpoint is %d bytes of %d", got.SentBytes, got.Bytes)
	}
	waitFor(t, "the reason to go", func() bool {
		w, err := a.client.Worker(ctx, "counter")
		return err == nil && w.Guardian.Checkpoint.Reason == "" && w.Guardian.Checkpoint.EveryMs == 100
	})
	w, err := a.client.Worker(ctx, "counter")
	if err != nil {
		t.Fatal(err)
	}
	if taken(b) < int64(got.Bytes) {
		t.Errorf("the guardian counts %d bytes of %d", taken(b), got.Bytes)
	}

	// A guardian that has lost its checkpoint gets all of it again.
	g := b.guards.find(w.ID)
	g.mu.Lock()
	rec := g.g.Record()
	b.guards.giveBack(g.replica.bytes)
	g.replica = nil
	g.mu.Unlock()
	waitFor(t, "the checkpoint again", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.replica != nil
	})

	// With the worker its lease and its checkpoints go; the next owner begins anew.
	text := checkpointed(time.Hour, 100*time.Millisecond, a.name(), a.name())
	a.migrate(t, "counter", c, control.StrategyAuto)
	if d, err := c.apply(t, text); err != nil || d.Workers[0].Node != c.name() {
		t.Fatalf("applied: %+v, %v", d, err)
	}
	waitCheckpoint(t, c, "counter", a.name(), 2)
	waitFor(t, "the first guardian to let go", func() bool { return taken(b) == 0 })
	if got := a.call(t, "counter", "add 1"); got != "4" {
		t.Errorf("got %s, want 4", got)
	}
	// What comes late from the first owner counts for nothing, here and there.
	for _, n := range []*testNode{a, b} {
		from := c
		if n == b {
			from = a
		}
		s, err := from.mesh.Open(ctx, n.id, protoReplica, mesh.Bulk)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		err = mesh.WriteMessage(s, replicaFrame{Begin: &replicaBegin{Worker: w.ID, Epoch: rec.Epoch, Ticket: rec.Ticket, Pages: 16, Head: 9}})
		var answer replicaAnswer
		if err == nil {
			err = mesh.ReadMessage(s, maxReplicaAnswer, &answer)
		}
		if err != nil || answer.Go || answer.Kept || answer.Reason != errNoLease.Error() {
			t.Errorf("node %s answers %+v, %v", n.name(), answer, err)
		}
	}
	// A worker that ends takes them along.
	if _, err := a.client.Stop(ctx, "counter"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "no checkpoint of what was stopped", func() bool { return taken(a)+taken(b)+taken(c) == 0 })
}

// TestCheckpointBase: a checkpoint whose answer was lost is a base like one that was
// kept, before all of the memory goes again.
func TestCheckpointBase(t *testing.T) {
	kept, unsure := version{digest: []byte("kept")}, version{digest: []byte("unsure")}
	for _, c := range []struct {
		kept, unsure version
		has          string
		tried        []string
	}{
		{kept, version{}, "kept", []string{"kept"}},
		{kept, unsure, "kept", []string{"kept"}},
		{kept, unsure, "unsure", []string{"kept", "unsure"}},
		{kept, unsure, "", []string{"kept", "unsure", ""}},
		{kept, version{}, "", []string{"kept", ""}},
		{version{}, unsure, "unsure", []string{"unsure"}},
		{version{}, unsure, "", []string{"unsure", ""}},
		{version{}, version{}, "", []string{""}},
	} {
		r := &replicator{version: c.kept, unsure: c.unsure}
		var tried []string
		err := r.fromBase(func() error {
			if tried = append(tried, string(r.digest)); string(r.digest) != c.has {
				return errUnknownBase
			}
			return nil
		})
		if err != nil || !slices.Equal(tried, c.tried) {
			t.Errorf("a guardian that has %q, with %q kept and %q unsure: tried %q, %v", c.has, c.kept.digest, c.unsure.digest, tried, err)
		}
	}
}

// give brings a checkpoint to a guardian's stage, by way of the wire.
func give(st *stage, c *taken, head, digest []byte) error {
	var wire bytes.Buffer
	err := mesh.WriteMessage(&wire, replicaFrame{Head: head})
	if err == nil {
		err = c.runs(func(r *replicaRun) error { return mesh.WriteMessage(&wire, replicaFrame{Run: r}) })
	}
	if err == nil {
		err = mesh.WriteMessage(&wire, replicaFrame{End: digest})
	}
	for over := false; err == nil && !over; {
		var f replicaFrame
		if err = mesh.ReadMessage(&wire, st.limit(), &f); err == nil {
			over, err = st.take(f)
		}
	}
	return err
}

// keep makes a checkpoint and returns what the guardian has then, and how many
// pages differ from what it had, kept.
func keep(t *testing.T, ctx context.Context, r *replicator, kept *replica) (now *replica, changed int) {
	t.Helper()
	c, err := r.take(ctx)
	if err != nil {
		t.Fatal(err)
	}
	head, err := c.img.encode()
	if err != nil {
		t.Fatal(err)
	}
	names := c.names(r.names)
	digest := replicaDigest(head, names)
	begin := replicaBegin{
		Worker: r.w.ID, Epoch: 1, Ticket: 7, Base: r.digest, Pages: uint32(c.pages), Changed: c.changed(), Head: uint32(len(head)),
	}
	if err := begin.validate(); err != nil {
		t.Fatal(err)
	}
	st, err := newStage(begin, kept)
	if err == nil {
		err = give(st, c, head, digest[:])
	}
	if err != nil {
		t.Fatal(err)
	}
	kept = st.replica(0)
	if kept.digest != digest {
		t.Fatal("the digests differ")
	}
	r.names, r.digest, r.failed = names, digest[:], false
	return kept, len(c.staged)
}

// TestCheckpointCommand goes on with a program from a checkpoint that was taken
// while it computed: it says what one says that was left alone.
func TestCheckpointCommand(t *testing.T) {
	nodes := startNodes(t, 2)
	a, b := nodes[0], nodes[1]
	if !a.support.Tracking() {
		t.Skip("the kernel does not track writes")
	}
	path := program(t, "until")
	d := a.run(t, path, control.RunRequest{Name: "first"})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r := &replicator{n: a.Node, w: a.worker(d.ID), every: time.Second, pause: 100 * time.Millisecond, failed: true, stretch: 1}
	var kept *replica
	for range 3 {
		kept, _ = keep(t, ctx, r, kept)
	}
	cancel()
	r.untrack()
	if _, err := a.client.Stop(t.Context(), "first"); err != nil {
		t.Fatal(err)
	}
	module, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer module.Close()
	if _, _, err := b.modules.put(module, nil); err != nil {
		t.Fatal(err)
	}
	if err := b.continueReplica(t.Context(), kept, 1+lease.Step, a.name(), func(*worker) {}); err != nil {
		t.Fatal(err)
	}
	went := listen(t, b, "first")
	if err := b.client.Send(t.Context(), "first", []byte("enough")); err != nil {
		t.Fatal(err)
	}
	waitState(t, b, "first", control.StateExited)
	<-went.ended
	rounds, _, ok := strings.Cut(went.text(), " rounds ")
	if !ok {
		t.Fatalf("it said %q", went.text())
	}
	b.run(t, path, control.RunRequest{Name: "alone", Args: []string{rounds}})
	alone := listen(t, b, "alone")
	waitState(t, b, "alone", control.StateExited)
	<-alone.ended
	if got, want := went.text(), alone.text(); got != want {
		t.Errorf("from a checkpoint %q, alone %q", got, want)
	}
}

// TestCheckpointWhileWritten makes checkpoints of a worker that writes all over
// its memory, that grows, and whose tracking is taken away now and then. What the
// guardian has is each time what the worker had when it stood still.
func TestCheckpointWhileWritten(t *testing.T) {
	a := startNodes(t, 1)[0]
	if !a.support.Tracking() {
		t.Skip("the kernel does not track writes")
	}
	d := a.run(t, app(t, "kvstore"), control.RunRequest{Name: "kv", MemoryLimit: 128 << 20})
	a.call(t, "kv", "init 2MiB")
	a.call(t, "kv", "fill")
	a.call(t, "kv", "churn 20MiB")
	w := a.worker(d.ID)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var want []byte
	r := &replicator{n: a.Node, w: w, every: time.Second, pause: 100 * time.Millisecond, failed: true, stretch: 1}
	r.frozen = func() { want = slices.Clone(w.runner.Region().Data[:w.memoryNow()]) }
	defer func() {
		cancel()
		r.untrack()
	}()
	var kept *replica
	least := 1 << 30
	for round := range 10 {
		switch round {
		case 5:
			r.untrack() // as a sample does
		case 8:
			a.call(t, "kv", "churn 0B")
			a.call(t, "kv", "init 6MiB")
			a.call(t, "kv", "churn 20MiB")
		}
		var changed int
		kept, changed = keep(t, ctx, r, kept)
		got := make([]byte, len(want))
		kept.fill(got)
		if !bytes.Equal(got, want) {
			for p := range len(want) / pager.PageSize {
				if at := p * pager.PageSize; !bytes.Equal(got[at:][:pager.PageSize], want[at:][:pager.PageSize]) {
					t.Errorf("round %d: page %d is not as it was", round, p)
				}
			}
			t.FailNow()
		}
		if round > 0 && round != 5 {
			least = min(least, changed)
		}
	}
	if all := len(want) / pager.PageSize; least > all/2 {
		t.Errorf("each time %d pages and more of %d travelled", least, all)
	}
	// A sample is not refused for the checkpoints' sake.
	if _, err := a.sample(ctx, w, time.Millisecond); err != nil {
		t.Errorf("sampled beside them: %v", err)
	}
}

// sampleReplica is a checkpoint of so many pages, as it begins and as it differs
// from base, which may be nil.
func sampleReplica(t testing.TB, base *replica, id string, pages int, fill func(p int) []byte) (begin replicaBegin, c *taken, head, digest []byte) {
	t.Helper()
	img := sampleImage()
	img.Spec.ID, img.Spec.MemoryLimit, img.State.Pages = id, 64<<20, uint32(pages*pager.PageSize/runner.WasmPage)
	head, err := img.encode()
	if err != nil {
		t.Fatal(err)
	}
	var known []pager.Hash
	begin = replicaBegin{Worker: id, Epoch: 1, Ticket: 7, Pages: uint32(pages), Head: uint32(len(head))}
	if base != nil {
		known, begin.Base = base.names, slices.Clone(base.digest[:])
	}
	c = &taken{img: img, pages: pages, staged: map[pager.PageNum]stagedPage{}}
	for p := range pages {
		page := fill(p)
		if page == nil {
			continue
		}
		s := stagedPage{name: pager.HashPage(page), data: page}
		if s.name == pager.ZeroHash {
			s.data = nil
		}
		c.staged[pager.PageNum(p)] = s
	}
	begin.Changed = c.changed()
	d := replicaDigest(head, c.names(known))
	return begin, c, head, d[:]
}

// TestReplica holds a replica that grows by differences against a plain memory,
// and gives it transfers that are torn, damaged or not what was announced: they
// change nothing.
func TestReplica(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	id := newID()
	var kept *replica
	var want []byte
	for round := range 20 {
		pages := 16 * (1 + round/4)
		want = append(want, make([]byte, pages*pager.PageSize-len(want))...)
		begin, c, head, digest := sampleReplica(t, kept, id, pages, func(p int) []byte {
			page := want[p*pager.PageSize:][:pager.PageSize]
			switch rng.IntN(4) {
			case 0:
				clear(page)
			case 1:
				for i := range page {
					page[i] = byte(rng.Uint32())
				}
			case 2:
				page[rng.IntN(len(page))]++
			default:
				return nil
			}
			return slices.Clone(page)
		})
		before, was := kept, [32]byte{}
		if kept != nil {
			was = kept.digest
		}
		refuse := func(what string, begin replicaBegin, c *taken, head, digest []byte) {
			t.Helper()
			st, err := newStage(begin, kept)
			if err == nil {
				err = give(st, c, head, digest)
			}
			if err == nil {
				t.Fatalf("%s was taken", what)
			}
			if kept != before || kept != nil && kept.digest != was {
				t.Fatalf("%s changed what there was", what)
			}
		}
		few := begin
		few.Changed--
		refuse("more than was announced", few, c, head, digest)
		refuse("another digest", begin, c, head, make([]byte, len(digest)))
		refuse("another image", begin, c, append(slices.Clone(head[:len(head)-1]), head[len(head)-1]+1), digest)
		other := begin
		other.Worker = newID()
		refuse("another worker's image", other, c, head, digest)
		for p, s := range c.staged {
			if s.data != nil {
				damaged := &taken{pages: pages, staged: map[pager.PageNum]stagedPage{}}
				for q, s := range c.staged {
					damaged.staged[q] = s
				}
				page := slices.Clone(s.data)
				page[rng.IntN(len(page))] ^= 1
				damaged.staged[p] = stagedPage{data: page}
				refuse("a damaged page", begin, damaged, head, digest)
				break
			}
		}
		st, err := newStage(begin, kept)
		if err == nil {
			err = give(st, c, head, digest)
		}
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		kept = st.replica(time.Second)
		got := make([]byte, len(want))
		kept.fill(got)
		if !bytes.Equal(got, want) {
			t.Fatalf("round %d: the memory differs", round)
		}
		content := int64(len(head)) + int64(pages)*replicaPageCost
		for p := range pages {
			if !pager.IsZero(want[p*pager.PageSize:][:pager.PageSize]) {
				content += pager.PageSize
			}
		}
		if kept.bytes != content {
			t.Errorf("round %d: it counts as %d bytes, want %d", round, kept.bytes, content)
		}
	}
	smaller, _, _, _ := sampleReplica(t, nil, id, 16, func(int) []byte { return nil })
	if _, err := newStage(smaller, kept); err == nil {
		t.Error("a memory that has shrunk was taken")
	}
}

// TestKeepReplica: a checkpoint counts only for the lease that it was taken in, and
// one that comes late changes nothing.
func TestKeepReplica(t *testing.T) {
	owner, id := mesh.NodeID(newID()), newID()
	rec := lease.Record{Worker: id, Owner: string(owner), Epoch: 1, Ticket: 7, Lease: time.Minute, Meta: []byte{1}}
	g := &guard{g: lease.RestoreGuard(rec, guardClock())}
	n := &Node{guards: &guards{dir: t.TempDir(), of: map[string]*guard{id: g}}}
	page := bytes.Repeat([]byte{1}, pager.PageSize)
	begin := func(base *replica, at int) *stage {
		t.Helper()
		b, c, head, digest := sampleReplica(t, base, id, 16, func(p int) []byte {
			if p == at {
				return page
			}
			return nil
		})
		st, no, err := g.stage(owner, b)
		if err != nil || st == nil {
			t.Fatalf("not begun: %+v, %v", no, err)
		}
		if err := give(st, c, head, digest); err != nil {
			t.Fatal(err)
		}
		return st
	}
	if err := n.keepReplica(g, owner, begin(nil, 0)); err != nil {
		t.Fatal(err)
	}
	first := g.replica
	if n.guards.replicaBytes != first.bytes {
		t.Errorf("%d bytes are counted, it has %d", n.guards.replicaBytes, first.bytes)
	}
	// Of two on the same base the first counts.
	one, other := begin(first, 1), begin(first, 2)
	if err := n.keepReplica(g, owner, one); err != nil {
		t.Fatal(err)
	}
	was := g.replica.digest
	if err := n.keepReplica(g, owner, other); err == nil || g.replica.digest != was {
		t.Errorf("one on a base that has gone was kept: %v", err)
	}
	late := begin(g.replica, 3)
	for _, b := range []struct {
		from          mesh.NodeID
		epoch, ticket uint64
	}{{mesh.NodeID(newID()), 1, 7}, {owner, 2, 7}, {owner, 1, 8}} {
		st, no, err := g.stage(b.from, replicaBegin{Worker: id, Epoch: b.epoch, Ticket: b.ticket, Pages: 16, Head: 9})
		if st != nil || no.Reason != errNoLease.Error() || err != nil {
			t.Errorf("one of %+v was begun: %+v, %v", b, no, err)
		}
	}
	st, no, err := g.stage(owner, replicaBegin{Worker: id, Epoch: 1, Ticket: 7, Pages: 16, Head: 9, Base: make([]byte, 32)})
	if st != nil || !no.Unknown || err != nil {
		t.Errorf("one on a base that was never there was begun: %+v, %v", no, err)
	}
	// The lease runs out: what has come until then is what the worker goes on from.
	g.g.Tick(guardClock()+time.Hour, time.Now().Unix())
	n.guards.tidyLocked(g)
	if err := n.keepReplica(g, owner, late); !errors.Is(err, errNoLease) || g.replica == nil || g.replica.digest != was {
		t.Errorf("one that came after the lease had ended: %v", err)
	}
	g.g.Started()
	n.guards.tidyLocked(g)
	if g.replica != nil || n.guards.replicaBytes != 0 {
		t.Errorf("%d bytes are left of a worker that runs", n.guards.replicaBytes)
	}
}

// FuzzReplica gives a guardian what a peer may send as a checkpoint.
func FuzzReplica(f *testing.F) {
	id := newID()
	begin, c, head, digest := sampleReplica(f, nil, id, 16, func(p int) []byte {
		if p%3 == 0 {
			return nil
		}
		return bytes.Repeat([]byte{byte(p)}, pager.PageSize)
	})
	st, err := newStage(begin, nil)
	if err == nil {
		err = give(st, c, head, digest)
	}
	if err != nil {
		f.Fatal(err)
	}
	base := st.replica(0)
	add := func(fs ...replicaFrame) {
		var b bytes.Buffer
		for _, fr := range fs {
			if err := mesh.WriteMessage(&b, fr); err != nil {
				f.Fatal(err)
			}
		}
		f.Add(b.Bytes())
	}
	var runs []replicaFrame
	_ = c.runs(func(r *replicaRun) error { runs = append(runs, replicaFrame{Run: r}); return nil })
	whole := append(append([]replicaFrame{{Begin: &begin}, {Head: head}}, runs...), replicaFrame{End: digest})
	add(whole...)
	again := begin
	again.Base, again.Changed = slices.Clone(base.digest[:]), 2
	add(replicaFrame{Begin: &again}, replicaFrame{Head: head}, replicaFrame{Run: &replicaRun{First: 3, Count: 9}}, replicaFrame{End: digest})
	add(replicaFrame{Begin: &again}, replicaFrame{Head: head}, replicaFrame{Run: newReplicaRun(1, make([]byte, 2*pager.PageSize))})
	f.Fuzz(func(t *testing.T, b []byte) {
		in := bytes.NewReader(b)
		var first replicaFrame
		if mesh.ReadMessage(in, maxReplicaFrame, &first) != nil || first.Begin == nil || first.Begin.validate() != nil || first.Begin.Pages > 1<<16 {
			return
		}
		var on *replica
		if len(first.Begin.Base) > 0 {
			on = base
		}
		st, err := newStage(*first.Begin, on)
		for over := false; err == nil && !over; {
			var fr replicaFrame
			if err = mesh.ReadMessage(in, st.limit(), &fr); err == nil {
				over, err = st.take(fr)
			}
		}
		if err != nil {
			return
		}
		copied := *base // what it is made of is the base no more
		copied.pages = slices.Clone(base.pages)
		if on != nil {
			st.base = &copied
		}
		r := st.replica(0)
		if d := replicaDigest(r.head, r.names); d != r.digest || len(r.pages) != len(r.names) {
			t.Fatal("it is not what its digest says")
		}
		for p, page := range r.pages {
			name := pager.ZeroHash
			if page != nil {
				name = pager.HashPage(page)
			}
			if name != r.names[p] {
				t.Fatalf("page %d does not have its name", p)
			}
		}
	})
}

// TestOriginSuperseded: which sessions can go on with a worker that a guardian took
// over.
func TestOriginSuperseded(t *testing.T) {
	anew, on := origin{Epoch: 7}, origin{Epoch: 7, Checkpoint: true, Since: 4}
	for _, c := range []struct {
		name              string
		o                 origin
		epoch, seen, from uint64
		want              bool
	}{
		{"never moved", origin{}, 3, 9, 0, false},
		{"anew, not served yet", anew, 0, 0, 0, false},
		{"anew, served", anew, 6, 0, 0, true},
		{"anew, served since", anew, 7, 9, 0, false},
		{"on, not served yet", on, 0, 0, 0, false},
		{"on, no reply yet", on, 4, 0, 0, false},
		{"on, all of its replies are in it", on, 4, 5, 5, false},
		{"on, seen less", on, 4, 4, 5, false},
		{"on, seen more", on, 4, 6, 5, true},
		{"on, began after the checkpoint", on, 5, 1, 0, true},
		{"on, missed a whole life", on, 3, 4, 5, true},
		{"on, served since", on, 8, 9, 5, false},
	} {
		if got := c.o.superseded(c.epoch, c.seen, c.from); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// TestSentAnew: what a worker had sent goes again under numbers of its own.
func TestSentAnew(t *testing.T) {
	out := []outState{
		{Name: "quiet", Sender: senderID{1}, Next: 9},
		{Name: "other", Worker: newID(), Sender: senderID{2}, Next: 9, Epoch: 3, Pending: []deliverMessage{{Seq: 7, Acked: 6, Payload: []byte("a")}, {Seq: 8, Payload: []byte("b")}}},
	}
	got := sentAnew(out)
	if len(got) != 1 || got[0].Sender == out[1].Sender || got[0].Next != 3 || got[0].Epoch != 0 || got[0].Worker != out[1].Worker {
		t.Fatalf("%+v", got)
	}
	for i, m := range got[0].Pending {
		if m.Seq != uint64(i)+1 || m.Acked != 0 || !bytes.Equal(m.Payload, out[1].Pending[i].Payload) {
			t.Errorf("message %d: %+v", i, m)
		}
	}
	if err := newOutbox(nil, "w", nil).restore(got); err != nil {
		t.Error(err)
	}
}
