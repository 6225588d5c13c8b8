package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"meshnode/mesh"
	"meshnode/node/runner"
	"meshnode/pager"
)

// Streams of pages are dialled by the destination: protoDemand for what the
// worker waits for, protoLanes for the rest, on connections of their own.
const protoDemand = "demand"

// protoNamed is for pages by name, whichever worker they are of.
const protoNamed = "named"

const (
	wasmPage = runner.WasmPage
	// maxStoreBytes bounds how much of the memory of workers that have left is
	// kept, so that one that comes back finds it; a small machine keeps a
	// sixteenth of its memory at most.
	maxStoreBytes = 256 << 20
	// defaultPageCache is how much of it is kept on disk.
	defaultPageCache = 512 << 20
	// maxVersionBytes bounds what a move remembers of what it has sent, and an
	// eighth of the memory that is free.
	maxVersionBytes = 1 << 30
	// pushWeight is the weight of a worker that runs at its destination and
	// still has pages here.
	pushWeight = 4
	// maxHolders is how many nodes are remembered to hold pages of a worker,
	// and maxAsked how many of them are asked at once.
	maxHolders = 8
	maxAsked   = 4
	// maxNeighbourBytes bounds how much of the memory of workers that run here is
	// looked at for pages of one that is coming, and neighbourTime how long that
	// may take.
	maxNeighbourBytes = 256 << 20
	neighbourTime     = time.Second
	// maxNamed bounds the streams over which others ask for pages by name, of
	// which a move opens one or two, and namedIdle how long one may be silent,
	// for a move that pauses between rounds.
	maxNamed  = 24
	namedIdle = time.Minute
)

// storeBytes returns how much memory the store of pages may take.
func storeBytes() int64 {
	if total, _ := memory(); total > 0 {
		return int64(min(maxStoreBytes, total/16))
	}
	return maxStoreBytes / 4
}

// versionBytes returns how much memory a move may take to remember pages as they
// were sent.
func versionBytes() int64 {
	if _, free := memory(); free > 0 {
		return int64(min(maxVersionBytes, free/8))
	}
	return maxVersionBytes / 8
}

// openPages opens the store of pages, and what tells of which memories they
// were.
func (n *Node) openPages() (err error) {
	cfg := pager.StoreConfig{Memory: storeBytes(), Log: n.log}
	if n.cfg.PageCache >= 0 {
		cfg.Dir = filepath.Join(n.cfg.StateDir, "pages")
		cfg.Disk = cmp.Or(n.cfg.PageCache, defaultPageCache)
	}
	if n.store, err = pager.OpenStore(cfg); err == nil {
		if n.bases, err = pager.OpenBases(pager.BasesConfig{Dir: cfg.Dir}); err == nil {
			return nil
		}
		_ = n.store.Close()
	}
	// A node can do without: it is a cache.
	n.log.Warn("no page cache on disk", "dir", cfg.Dir, "error", err)
	n.store = pager.NewStore(cfg.Memory)
	n.bases, err = pager.OpenBases(pager.BasesConfig{})
	return err
}

func (n *Node) closePages() error {
	var errs []error
	if n.store != nil {
		errs = append(errs, n.store.Close())
	}
	if n.bases != nil {
		errs = append(errs, n.bases.Close())
	}
	return errors.Join(errs...)
}

// frozenPages makes what serves a frozen worker's pages to its new home, and
// takes over the share. The
// names of pages are computed as they are sent, not now: now the worker stands
// still.
func (n *Node) frozenPages(w *worker, share *pager.Share, epoch uint64, f frozenMemory) (*pager.Source, error) {
	r := w.runner.Region()
	cfg := pager.SourceConfig{
		Worker: w.ID, Epoch: epoch, Memory: r.Data[:f.layout.Pages*pager.PageSize],
		Ahead: f.ahead, Share: share, Log: n.log,
	}
	if f.ahead == nil {
		cfg.Table = zeroTable(f.layout)
		for _, p := range w.awaitedNow() {
			if int(p) < f.layout.Pages {
				cfg.Recent = append(cfg.Recent, pager.Run{First: p, Count: 1})
			}
		}
	}
	s, err := pager.NewSource(cfg)
	if err != nil {
		cfg.Share.Close()
	}
	return s, err
}

// zeroTable is what a layout says of a memory of which nothing else is known.
func zeroTable(l pager.Layout) *pager.Table {
	t := pager.NewTable(l.Pages)
	for _, run := range l.Zero {
		t.Set(run, pager.Zero)
	}
	return t
}

// servePages answers a destination that fetches pages, on either stream.
func (n *Node) servePages(ctx context.Context, s *mesh.Stream) { n.servePagesOn(ctx, s, s) }

// servePagesOn is servePages with what is read and written.
func (n *Node) servePagesOn(ctx context.Context, s *mesh.Stream, rw io.ReadWriter) {
	err := soon(s, true)
	var hello pager.Hello
	if err == nil {
		hello, err = pager.ReadHello(rw)
	}
	if err == nil {
		err = soon(s, false)
	}
	if err != nil {
		n.log.Debug("page stream without a hello", "peer", s.Peer(), "error", err)
		return
	}
	var move *moveOut
	n.mu.Lock()
	for _, m := range n.outgoing {
		if m.spec.ID == hello.Worker && m.to == s.Peer() {
			move = m
		}
	}
	n.mu.Unlock()
	var src interface {
		Serve(ctx context.Context, hello pager.Hello, rw io.ReadWriter) error
	}
	switch {
	case move == nil:
	case hello.Rounds:
		if r := move.rounds(ctx); r != nil {
			src = r
		}
	default:
		if p := move.serving(); p != nil {
			src = p
		}
	}
	if src == nil {
		err := pager.Refuse(rw, pager.CodeGone, fmt.Sprintf("node %s does not hold the worker's memory (any more)", n.name()))
		n.log.Info("page stream refused", "worker", hello.Worker, "peer", s.Peer(), "error", err)
		return
	}
	if err := src.Serve(ctx, hello, rw); err != nil {
		n.log.Debug("page stream ended", "worker", hello.Worker, "peer", s.Peer(), "error", err)
	}
}

// storeFor returns the store if it may hold pages of a worker of that module:
// names ahead of bytes cost round trips, which must be worth it.
func (n *Node) storeFor(module pager.Hash) *pager.Store {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.kept[module] {
		return nil
	}
	return n.store
}

// keepData puts the pages that a module's data segments have written into the
// store, as far as they take no more than a quarter of it: a worker of the module
// still has most of them. The runner is one that was just started.
func (n *Node) keepData(r *runner.Runner) error {
	region := r.Region()
	size := int64(r.Pages()) * wasmPage
	var holes []pager.Run // reading one would fill it
	if region.File != nil {
		var err error
		if holes, err = pager.ZeroRuns(region.File, size); err != nil {
			return err
		}
	}
	left := storeBytes() / 4 / pager.PageSize
	for p := pager.PageNum(0); int64(p)*pager.PageSize < size; p++ {
		for len(holes) > 0 && p >= holes[0].First+pager.PageNum(holes[0].Count) {
			holes = holes[1:]
		}
		if len(holes) > 0 && p >= holes[0].First {
			continue
		}
		if left--; left < 0 {
			return nil
		}
		n.store.Put(region.Data[int64(p)*pager.PageSize:][:pager.PageSize])
	}
	return nil
}

// awaitKept waits until the pages of a worker that has left are in the store.
func (n *Node) awaitKept(ctx context.Context, worker string) error {
	n.mu.Lock()
	keeping := n.keeping[worker]
	n.mu.Unlock()
	if keeping == nil {
		return nil
	}
	select {
	case <-keeping:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for what the worker has left here: %w", context.Cause(ctx))
	}
}

// newIntake makes what takes a worker's pages while it still runs elsewhere.
func (m *moveIn) newIntake(r *runner.Runner) (*pager.Intake, error) {
	region := r.Region()
	region.Data = region.Data[:m.offer.MemoryLimit]
	cfg := pager.IntakeConfig{
		Worker: m.offer.Worker, Epoch: m.offer.Epoch, Region: region, Store: m.n.store, Log: m.n.log,
	}
	if base, ok := m.n.bases.Get(m.offer.Worker); ok {
		cfg.Base = base
	}
	cfg.Peers, cfg.Neighbours = m.peers(), m.neighbours
	return pager.NewIntake(cfg)
}

// neighbours makes what finds pages in the memories of workers that run the same
// module here, nil if there are none.
func (n *Node) neighbours(module pager.Hash) *pager.Neighbours {
	var of []pager.Neighbour
	for _, w := range n.locals() {
		// Nobody may look at a memory that still arrives.
		if w.Module != module || w.runner == nil || w.isDraining() || !w.memoryIn.hold() {
			continue
		}
		w.memoryIn.release()
		of = append(of, pager.Neighbour{
			Region: w.runner.Region(), Size: w.memoryNow(), Hold: w.memoryIn.hold, Release: w.memoryIn.release,
		})
	}
	if len(of) == 0 {
		return nil
	}
	nb, err := pager.NewNeighbours(of, maxNeighbourBytes)
	if err != nil {
		n.log.Warn("workers here not looked at for pages", "module", module, "error", err)
		return nil
	}
	return nb
}

// lookAround looks what pages the neighbours have. Moves that come at the same
// time take turns, so that the workers here keep the other processors.
func (m *moveIn) lookAround(ctx context.Context) {
	select {
	case m.n.looking <- struct{}{}:
		defer func() { <-m.n.looking }()
	case <-ctx.Done():
	}
	m.neighbours.Run(ctx)
}

// peers are other nodes that may hold pages of the worker and can be reached.
func (m *moveIn) peers() (peers []pager.Peer) {
	for _, id := range m.n.reachable(m.holders, m.from) {
		if len(peers) == maxAsked {
			break
		}
		open := func(class mesh.Class) func(context.Context) (io.ReadWriteCloser, error) {
			return func(ctx context.Context) (io.ReadWriteCloser, error) {
				return m.n.mesh.Open(ctx, id, protoNamed, class)
			}
		}
		peers = append(peers, pager.Peer{
			Name: m.n.nameOf(id), Dial: open(mesh.Bulk), Demand: open(mesh.Urgent), RTT: m.n.known(id).RTT.P50,
		})
	}
	return peers
}

// serveNamed answers a node that asks for pages by name.
func (n *Node) serveNamed(ctx context.Context, s *mesh.Stream) {
	if n.named.Add(1) > maxNamed {
		n.named.Add(-1)
		_ = pager.Refuse(s, pager.CodeRefused, fmt.Sprintf("%d nodes ask for pages already", maxNamed))
		return
	}
	defer n.named.Add(-1)
	share := n.budget.Share(string(s.Peer()), 1)
	defer share.Close()
	if err := pager.ServeNamed(ctx, s, n.store, pager.NamedLimits{Share: share, Idle: namedIdle}); err != nil {
		n.log.Debug("stream of pages by name ended", "peer", s.Peer(), "error", err)
	}
}

// newSink makes what takes a frozen worker's pages. With arm the worker is to
// run meanwhile.
func (m *moveIn) newSink(l pager.Layout, arm bool) (*pager.Sink, error) {
	cfg := pager.SinkConfig{
		Store: m.n.storeFor(m.spec.Module),
		// The machine decides when a path has been broken for too long; this
		// is for one that breaks only for pages.
		PathLimit: 2 * m.n.cfg.DrainTimeout,
		OnFault:   func(d time.Duration) { m.n.metrics.fault.Observe(d.Seconds()) },
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var err error
	if m.intake != nil {
		if m.endLook != nil {
			m.endLook() // what follows is not named
		}
		m.sink, err = m.intake.Commit(l, arm, cfg)
		return m.sink, err
	}
	cfg.Worker, cfg.Epoch, cfg.Region, cfg.Log = m.offer.Worker, m.offer.Epoch, m.runner.Region(), m.n.log
	cfg.Size, cfg.Table, cfg.Peers = int64(l.Pages)*pager.PageSize, zeroTable(l), m.peers()
	cfg.Neighbours = m.neighbours
	m.sink, err = pager.NewSink(cfg)
	return m.sink, err
}

// A dialer opens streams to a source of pages.
type dialer struct {
	n  *Node
	to mesh.NodeID
}

func (d dialer) Demand(ctx context.Context) (io.ReadWriteCloser, error) {
	return d.n.mesh.Open(ctx, d.to, protoDemand, mesh.Urgent)
}

func (d dialer) Bulk(ctx context.Context) (io.ReadWriteCloser, error) {
	return d.n.openLanes(ctx, d.to)
}
