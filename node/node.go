// Package node runs one meshnode: it owns every lifetime and introduces mesh,
// pager and placement to each other.
//
// A [Node] takes part in one mesh (package mesh), is home to workers, each in
// a process of its own (node/runner), and hands them over to other nodes
// (node/handover). It answers the control API (node/control) on a unix socket
// and, for workers at home here, over the mesh.
//
//	directory   who lives where, by gossip
//	Sender      messages to a worker, once and in order
//	inbox       the other end of that, at the worker's home
//	Client      a sender's user that is no node; attach.go is its access node
//	worker      the loop that hands events to the runner
//	moveOut     a worker leaves: the source of a hand-over
//	moveIn      a worker arrives: the destination
//	autopilot   decides where the workers here should be, and moves them
//	reads       what a worker reads of hosts' interfaces (interface_read.go)
//	keeper      keeps a worker's lease at its guardian (leased.go)
//	guards      the workers for which this node is the guardian (guardian.go)
//	orphan      a worker that its node lost and its guardian takes (orphan.go)
//	replicator  gives a worker's state to its guardian (replica.go)
package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	goruntime "runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/node/handover"
	"meshnode/node/journal"
	"meshnode/node/runner"
	"meshnode/pager"
	"meshnode/placement"
)

// Config says how a node runs. Its zero values take the defaults in brackets.
type Config struct {
	StateDir string // where everything the node must remember lives
	Socket   string // control socket [StateDir/control.sock]
	CacheDir string // compiled modules, may be shared by nodes of one machine [StateDir/cache]

	Listen    string   // UDP address of the mesh [:7946]
	Advertise []string // endpoints told to the others [those of the interfaces]
	Seeds     []string // endpoints to join through, besides those remembered
	Name      string   // for people [the host's name]
	Tier      mesh.Tier
	Labels    map[string]string

	// What the node's machine has, and the latencies that the operator promises
	// for it; 0 promises nothing.
	Interfaces                                   []Interface
	Accelerators                                 []string
	PromiseAccess, PromiseMoveIn, PromiseMoveOut time.Duration

	MetricsAddr string // host:port of /metrics; empty means none
	Interpreter bool   // run Wasm without compiling it
	NoPaging    bool   // bring all memory before a worker runs, as where there is no userfaultfd

	CPUStat      string          // where the kernel counts CPU times, for containers with a count of their own [/proc/stat]
	EventTimeout time.Duration   // the longest an event may take [10 s]
	DrainTimeout time.Duration   // how long a drain waits for a lost path [60 s]
	StopTime     time.Duration   // how long a node that stops may take for its workers to leave, or to be given to guardians; 0 is none
	Move         handover.Params // waits of a move
	WorkerMemory uint64          // bytes that the limits of all workers here may add up to [the machine's memory]
	PushRate     int64           // bytes a second that all moves together may push; 0 is no limit
	PageCache    int64           // bytes on disk for pages of workers that were here [512 MiB]; below 0 none

	Exe     string // the meshnode binary, run again as the runner [this one]
	Version control.Version
	Log     *slog.Logger

	// cpuTimes tells how busy the machine is [cpuTimes]. Tests that plan replace
	// it: whether a node has room must not depend on what else runs beside them.
	cpuTimes func() (busy, all uint64)
}

const (
	defaultEventTimeout = 10 * time.Second
	defaultDrainTimeout = 60 * time.Second
	// The journal remembers where a worker went, for senders that ask late, for
	// so long and so many.
	journalAge     = 30 * 24 * time.Hour
	journalRecords = 10_000
	// recordInterval is how often a node looks at its load and free memory.
	recordInterval = time.Second
)

// ErrRestart is what Run returns when the node has joined another mesh: make a
// new Node and run that.
var ErrRestart = errors.New("restart to take part in another mesh")

// A Node is one member of a mesh. Make it with New, run it with Run, once.
type Node struct {
	cfg     Config
	log     *slog.Logger
	id      mesh.NodeID
	started time.Time
	support pager.Support

	lock *control.Lock
	mesh *mesh.Mesh
	dir  *directory
	said *facts
	// sources are the interfaces of this host that can be read, by name.
	sources map[string]*source
	// Of the autopilot: looks asked for, the moves it has under way, drains of
	// this node, what it has decided; and the apply that is being carried out.
	look      chan struct{}
	moveSlots chan struct{}
	warming   chan struct{} // holds a value while a module is made ready
	applying  chan struct{}
	drains    drains
	events    events
	rtts      *pathTimes
	modules   modules
	journal   *journal.Journal
	metrics   *metrics
	server    *control.Server
	store     *pager.Store
	bases     *pager.Bases  // page tables of workers that have left
	budget    *pager.Budget // of what all moves push
	paths     paths
	named     atomic.Int32 // streams of pages by name that are served
	// documents are those of other nodes.
	documents documents
	attached  attachments
	promises  *promises
	guards    *guards // workers of others that this node takes over if it must
	// looking has room for one move that looks at the neighbours of its worker.
	looking chan struct{}
	// incarnation tells this run of the node from its earlier ones.
	incarnation uint64
	dials       atomic.Uint64 // of hand-over streams

	metricsListener net.Listener
	controlListener net.Listener

	// ctx is done when Run is to return; tasks are all goroutines that Run
	// waits for. Both are set by Run before anything uses them.
	ctx    context.Context
	cancel context.CancelCauseFunc
	tasks  tasks

	mu       sync.Mutex
	workers  map[string]*worker // at home here, by id
	ended    map[string]*worker // failed, lost: kept to be looked at
	orphans  map[string]*worker // that ran here before the node was started, and are their guardians'
	starting map[string]bool    // names of an app's workers that are being started
	outgoing map[handover.MoveID]*moveOut
	incoming map[handover.MoveID]*moveIn
	reserved uint64              // bytes of memory limit promised to workers that are arriving
	kept     map[pager.Hash]bool // modules of workers whose pages the store may hold
	// keeping has workers that have left and whose pages are still being put into
	// the store, by id: each is closed when they are.
	keeping map[string]chan struct{}
	// lanes has the streams of pages that may yet get lanes.
	lanes map[laneKey]laneHome
	// book has what is promised to workers that owners send here by themselves;
	// booked is the CPU of each of those on their way, in cores here. load is
	// the use of all cores, 0 to 1, without them.
	book   *placement.Reservations
	booked map[string]float64
	load   float64
}

// New prepares a node: it founds a mesh if the state directory knows none,
// binds the ports and reads the journal. Nothing runs until Run; if Run is not
// called, Close releases what New took.
func New(cfg Config) (n *Node, err error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Socket == "" {
		cfg.Socket = filepath.Join(cfg.StateDir, control.SocketName)
	}
	if cfg.CacheDir == "" {
		cfg.CacheDir = filepath.Join(cfg.StateDir, "cache")
	}
	if cfg.Name == "" {
		if cfg.Name, err = os.Hostname(); err != nil {
			return nil, fmt.Errorf("the node needs a name: %w", err)
		}
	}
	if cfg.Tier == 0 {
		cfg.Tier = mesh.Cloud
	}
	if cfg.cpuTimes == nil {
		stat := cmp.Or(cfg.CPUStat, "/proc/stat")
		cfg.cpuTimes = func() (busy, all uint64) { return cpuTimes(stat) }
	}
	if cfg.EventTimeout == 0 {
		cfg.EventTimeout = defaultEventTimeout
	}
	if cfg.DrainTimeout == 0 {
		cfg.DrainTimeout = defaultDrainTimeout
	}
	if cfg.Move.DrainTimeout == 0 {
		cfg.Move.DrainTimeout = cfg.DrainTimeout
	}
	if cfg.Move.OfferTimeout == 0 {
		cfg.Move.OfferTimeout = prepareTimeout
	}
	n = &Node{
		cfg: cfg, log: cfg.Log, started: time.Now(), support: pager.Probe(),
		incarnation: handover.NewIncarnation(),
		modules:     modules{dir: filepath.Join(cfg.StateDir, "modules")},
		budget:      pager.NewBudget(cfg.PushRate),
		sources:     sources(cfg.Interfaces),
		rtts:        newPathTimes(),
		workers:     make(map[string]*worker),
		ended:       make(map[string]*worker),
		orphans:     make(map[string]*worker),
		starting:    make(map[string]bool),
		outgoing:    make(map[handover.MoveID]*moveOut),
		incoming:    make(map[handover.MoveID]*moveIn),
		kept:        make(map[pager.Hash]bool),
		looking:     make(chan struct{}, 1),
		keeping:     make(map[string]chan struct{}),
		lanes:       make(map[laneKey]laneHome),
		look:        make(chan struct{}, 1),
		moveSlots:   make(chan struct{}, movesAtOnce),
		warming:     make(chan struct{}, 1),
		applying:    make(chan struct{}, 1),
		book:        placement.NewReservations(reserveMost, reserveFor),
		booked:      make(map[string]float64),
	}
	if cfg.NoPaging {
		n.support.Missing, n.support.Reason = false, "switched off"
	}
	made := n // n is nil on every return with an error
	defer func() {
		if err != nil {
			_ = made.Close()
		}
	}()
	if n.lock, err = control.LockState(cfg.StateDir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(n.modules.dir, 0o700); err != nil {
		return nil, err
	}
	if err := n.openPages(); err != nil {
		return nil, err
	}
	if err := n.found(); err != nil {
		return nil, err
	}
	n.dir = newDirectory(cfg.Log)
	if n.said, err = loadFacts(cfg.StateDir, cfg.Labels); err != nil {
		return nil, err
	}
	n.said.setSpeed(n.speedKept(n.started))
	n.promises = newPromises(cfg.PromiseAccess, cfg.PromiseMoveIn, cfg.PromiseMoveOut)
	caps := n.capabilities()
	if err := caps.validate(); err != nil {
		return nil, err
	}
	doc, err := json.Marshal(caps)
	if err != nil {
		return nil, err
	}
	n.mesh, err = mesh.New(mesh.Config{
		Dir: cfg.StateDir, Listen: cfg.Listen, Advertise: cfg.Advertise, Seeds: cfg.Seeds,
		Record: mesh.Record{
			Name: cfg.Name, Arch: goruntime.GOARCH, OS: goruntime.GOOS, Cores: uint16(goruntime.NumCPU()),
			Engine: n.engine(), Paging: n.paging().Mode, Speed: caps.Speed, Cordoned: caps.Cordoned,
		},
		Document: doc, Log: cfg.Log, Directory: n.dir,
	})
	if err != nil {
		return nil, err
	}
	n.id = n.mesh.ID()
	n.dir.publish = n.publish
	if n.journal, err = journal.Open(filepath.Join(cfg.StateDir, "journal.db")); err != nil {
		return nil, err
	}
	if n.guards, err = openGuards(filepath.Join(cfg.StateDir, "guards")); err != nil {
		return nil, err
	}
	// Said from the first word on: a node without free memory fits nothing.
	n.mesh.UpdateRecord(func(r *mesh.Record) { r.MemoryFree = uint32(n.memoryFree() >> 20) })
	n.metrics = newMetrics(n)
	n.server = control.NewServer(control.ServerConfig{Backend: backend{n}, Log: cfg.Log, Version: cfg.Version})
	if n.controlListener, err = control.Listen(cfg.Socket); err != nil {
		return nil, err
	}
	if cfg.MetricsAddr != "" {
		if n.metricsListener, err = net.Listen("tcp", cfg.MetricsAddr); err != nil {
			return nil, fmt.Errorf("metrics: %w", err)
		}
	}
	return n, nil
}

// found makes this node the authority of a new mesh unless it is in one.
func (n *Node) found() error {
	if _, err := mesh.AdoptStaged(n.cfg.StateDir); err != nil {
		return err
	}
	in, err := mesh.HasMembership(n.cfg.StateDir)
	if err != nil || in {
		return err
	}
	m, err := mesh.Found(mesh.FoundConfig{Dir: n.cfg.StateDir, Tier: n.cfg.Tier})
	if err != nil {
		return err
	}
	n.log.Info("founded a mesh", "mesh", m.MeshID, "node", m.ID)
	return nil
}

// Close releases what New took, for a node that is not run.
func (n *Node) Close() error {
	var errs []error
	if n.metricsListener != nil {
		errs = append(errs, n.metricsListener.Close())
	}
	if n.controlListener != nil {
		errs = append(errs, n.controlListener.Close())
	}
	if n.journal != nil {
		errs = append(errs, n.journal.Close())
	}
	if n.mesh != nil {
		errs = append(errs, n.mesh.Close())
	}
	errs = append(errs, n.closePages())
	if n.lock != nil {
		errs = append(errs, n.lock.Close())
	}
	return errors.Join(errs...)
}

// ID returns the node's id.
func (n *Node) ID() mesh.NodeID { return n.id }

// Addr returns the UDP address that the mesh is bound to.
func (n *Node) Addr() net.Addr { return n.mesh.LocalAddr() }

// Metrics returns the address of /metrics, empty if there is none.
func (n *Node) Metrics() string {
	if n.metricsListener == nil {
		return ""
	}
	return n.metricsListener.Addr().String()
}

// Run takes part in the mesh until ctx is done or the node is told to leave.
// When ctx is done it goes on for Config.StopTime at most, to let workers leave.
// The error is nil after an orderly end and ErrRestart after a join.
func (n *Node) Run(ctx context.Context) error {
	asked := ctx
	ctx, n.cancel = context.WithCancelCause(context.WithoutCancel(asked))
	defer n.cancel(nil)
	// The mesh outlives everything else: workers that end say so through it.
	meshCtx, stopMesh := context.WithCancel(context.WithoutCancel(ctx))
	defer stopMesh()
	n.ctx = ctx

	n.mesh.Handle(protoDeliver, func(ctx context.Context, s *mesh.Stream) { n.serveDeliver(ctx, s) })
	n.mesh.HandleClient(protoAttach, n.serveAttach)
	n.mesh.Handle(protoModule, n.serveModule)
	n.mesh.Handle(protoNamed, n.serveNamed)
	n.mesh.Handle(protoStored, n.serveStored)
	n.mesh.Handle(protoBlocks, n.serveBlocks)
	n.mesh.Handle(protoHandover, n.serveHandover)
	n.mesh.Handle(protoCopies, n.serveCopy)
	n.mesh.Handle(protoPaths, n.servePaths)
	n.mesh.Handle(protoWarm, n.serveWarm)
	n.mesh.Handle(protoLease, n.serveLease)
	n.mesh.Handle(protoInterface, n.serveInterface)
	n.mesh.Handle(protoReplica, n.serveReplica)
	n.mesh.Handle(protoDemand, n.servePages)
	n.mesh.Handle(protoLanes, n.serveInLanes)
	n.mesh.Handle(protoLane, n.serveLane)
	n.mesh.Handle(protoControl, func(ctx context.Context, s *mesh.Stream) {
		if err := n.server.ServePeer(ctx, s); err != nil {
			n.log.Debug("request of a peer", "peer", s.Peer(), "error", err)
		}
	})

	// Before anyone asks: what the journal says of this node's workers.
	if err := n.recover(); err != nil {
		n.cancel(err)
	}

	meshed := make(chan error, 1)
	go func() {
		err := n.mesh.Run(meshCtx)
		n.cancel(err) // a mesh that ends by itself takes the node along
		meshed <- err
	}()

	var g errgroup.Group
	serve := func(f func() error) {
		g.Go(func() error {
			err := f()
			n.cancel(err) // a server that ends by itself takes the node along
			return err
		})
	}
	serve(func() error { return n.server.Serve(ctx, n.controlListener) })
	if n.metricsListener != nil {
		serve(func() error { return serveHTTP(ctx, n.metricsListener, n.metrics.handler()) })
	}
	g.Go(func() error { n.keepRecord(ctx); return nil })
	g.Go(func() error { n.keepHouse(ctx); return nil })
	g.Go(func() error { n.keepSpeed(ctx); return nil })
	g.Go(func() error { n.keepPlaced(ctx); return nil })
	g.Go(func() error { n.keepPromises(ctx); return nil })
	g.Go(func() error { n.keepLeases(ctx); return nil })

	select {
	case <-asked.Done():
		if n.cfg.StopTime > 0 {
			stop, cancel := context.WithTimeout(ctx, n.cfg.StopTime)
			n.retire(ctx)
			n.yieldWorkers(stop)
			cancel()
		}
		n.cancel(context.Cause(asked))
	case <-ctx.Done():
	}
	cause := context.Cause(ctx)
	n.mesh.CloseClients() // other nodes serve them while the workers end here

	// In reverse order of start: first what serves requests, then the workers,
	// which tell the mesh that they ended, then the mesh.
	err := g.Wait()
	n.endWorkers()
	n.tasks.Wait()
	stopMesh()
	err = errors.Join(err, <-meshed)
	n.tasks.Wait() // for what peers asked for until then
	err = errors.Join(err, n.journal.Close(), n.closePages(), n.lock.Close())
	switch {
	case errors.Is(cause, ErrRestart):
		return ErrRestart
	case errors.Is(cause, context.Canceled), errors.Is(cause, errLeft):
		return err
	}
	return errors.Join(cause, err)
}

var errLeft = errors.New("the node has left its mesh")

// publish gossips a worker's entry. One that cannot go out now travels with the
// next exchange of whole states.
func (n *Node) publish(b []byte) {
	if err := n.mesh.Publish(b); err != nil && !errors.Is(err, mesh.ErrClosed) {
		n.log.Warn("worker entry not published", "error", err)
	}
}

// serveHTTP serves h on l until ctx is done.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, WriteTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() }) // scrapes are repeated anyway
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (n *Node) name() string { return n.cfg.Name }

// nameOf returns a node's name, or its id where the name is not known.
func (n *Node) nameOf(id mesh.NodeID) string {
	if m, ok := n.mesh.Member(id); ok && m.Record.Name != "" {
		return m.Record.Name
	}
	return string(id)
}

func (n *Node) engine() string {
	if n.cfg.Interpreter || !runner.CompilerSupported() {
		return "interpreter"
	}
	return "compiler"
}

func (n *Node) paging() control.Paging {
	p := control.Paging{Mode: "userfaultfd", WriteTracking: "hash"}
	if !n.support.Missing {
		p.Mode, p.Reason = "copy", n.support.Reason
	}
	if n.support.Tracking() {
		p.WriteTracking = "pagemap-scan"
	}
	return p
}

// keepRecord keeps what gossip says of this node's load and memory true.
func (n *Node) keepRecord(ctx context.Context) {
	t := time.NewTicker(recordInterval)
	defer t.Stop()
	var use cpuUse
	tell := newTeller()
	for {
		now := time.Now()
		v := vitals{free: uint32(n.memoryFree() >> 20), load: use.percent(n.cfg.cpuTimes())}
		v.up, v.down = n.paths.seen()
		n.mu.Lock()
		n.load = float64(v.load) / 100
		n.mu.Unlock()
		// Others are to count those who are on their way.
		v.load = uint8(min(100, float64(v.load)+100*n.bookedLoad()))
		size := n.mesh.Size()
		n.mesh.UpdateRecord(func(r *mesh.Record) {
			if tell.due(v, r, size, now) {
				r.MemoryFree, r.Load, r.Uplink, r.Downlink = v.free, v.load, v.up, v.down
			}
		})
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// worker returns a worker at home here, or nil.
func (n *Node) worker(id string) *worker {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.workers[id]
}

// locals returns the workers at home here, those that failed or were lost
// included.
func (n *Node) locals() []*worker {
	n.mu.Lock()
	defer n.mu.Unlock()
	ws := make([]*worker, 0, len(n.workers)+len(n.ended))
	for _, w := range n.workers {
		ws = append(ws, w)
	}
	for _, w := range n.ended {
		ws = append(ws, w)
	}
	return ws
}

// A stream is one to another node, or to this one.
type stream interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// openStream opens a stream to a node, which may be this one.
func (n *Node) openStream(ctx context.Context, to mesh.NodeID, protocol string, class mesh.Class) (stream, error) {
	if to != n.id {
		return n.mesh.Open(ctx, to, protocol, class)
	}
	if protocol != protoDeliver {
		return nil, fmt.Errorf("a %s stream to this node itself", protocol)
	}
	near, far := net.Pipe()
	n.tasks.Go(func() {
		defer far.Close()
		n.serveDeliver(n.ctx, far)
	})
	return near, nil
}
