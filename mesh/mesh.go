package mesh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

// A Handler serves one stream a peer opened. The mesh closes the stream when
// it returns. Its context is done when the connection breaks or the mesh
// stops.
type Handler func(ctx context.Context, s *Stream)

// A Directory is state that rides on gossip: whole states are exchanged in
// pairs now and then, and short messages reach everyone fast but perhaps not
// at all. All bytes it is given come from peers and are untrusted. Its methods
// are called from several goroutines and must not block for long.
type Directory interface {
	// State returns the whole state, at most 4 MiB.
	State() []byte
	// Merge takes in the state of peer, which signed it.
	Merge(state []byte, peer NodeID)
	// Notify takes in a message some node published. The same message is given
	// once; messages arrive in any order. It must not keep msg.
	Notify(msg []byte)
}

// Gossip tunes membership. The zero value of each field means the default, in
// brackets, which suits a LAN and a WAN of moderate delay.
type Gossip struct {
	// Interval is the time between gossip rounds [200 ms].
	Interval time.Duration
	// ProbeInterval is the time between liveness probes of one member after
	// another [1 s].
	ProbeInterval time.Duration
	// ProbeTimeout is how long a probe waits for its answer before others are
	// asked to probe too [500 ms].
	ProbeTimeout time.Duration
	// PushPullInterval is the time between exchanges of whole states [30 s].
	PushPullInterval time.Duration
	// SuspicionMult scales how long a member that answers nobody is suspected
	// before it is called dead: this times log10(members) probe intervals [4].
	SuspicionMult int
	// RetransmitMult scales how often a message is passed on [4].
	RetransmitMult int
	// DeadTime is how long the dead are remembered and gossiped to [30 s].
	DeadTime time.Duration
	// RejoinInterval is the mean time between attempts to reach seeds and
	// remembered peers that are not alive in this node's view [15 s].
	RejoinInterval time.Duration
	// RefreshInterval is how often the node's own addresses are read anew
	// [3 s].
	RefreshInterval time.Duration
}

// Config says how a node takes part in its mesh.
type Config struct {
	// Dir holds the node's key and membership; see [Found] and [Enrol].
	Dir string
	// Listen is the UDP address HOST:PORT to bind; an empty host means all
	// addresses, port 0 any free one. Empty means ":7946".
	Listen string
	// Advertise replaces the addresses found on the interfaces, as HOST:PORT;
	// for a node behind a port forwarding. Names are resolved anew all the
	// time.
	Advertise []string
	// Seeds are HOST:PORT of nodes to join through, besides the remembered
	// ones. They are tried for ever.
	Seeds []string
	// Record is what this node says of itself; the mesh fills in Tier,
	// Endpoints, DocumentDigest, Authority and Coordinate.
	Record Record
	// Document is the capability document, at most 256 KiB.
	Document []byte
	// Log gets the mesh's log. Nil means none.
	Log *slog.Logger
	// Directory rides on gossip. May be nil.
	Directory Directory
	// Gossip tunes membership.
	Gossip Gossip
	// KeepAlive is the pause after which an idle connection is poked [3 s].
	KeepAlive time.Duration
	// IdleTimeout is how long a connection may hear nothing before its peer
	// counts as unreachable [12 s]. The lower of both ends' values holds.
	IdleTimeout time.Duration
	// ListenPacket replaces net.ListenPacket, for tests on a network that is
	// not there. The mesh closes what it returns.
	ListenPacket func(network, address string) (net.PacketConn, error)
}

const (
	defaultListen      = ":7946"
	defaultKeepAlive   = 3 * time.Second
	defaultIdleTimeout = 12 * time.Second

	// maxDocument bounds a capability document, in bytes.
	maxDocument = 256 << 10
	// maxPublish bounds a published message, in bytes.
	maxPublish = 1000
	// maxState bounds a directory's state, in bytes.
	maxState = 4 << 20
)

// Validate rejects a configuration that cannot work.
func (c *Config) Validate() error {
	if c.Dir == "" {
		return errors.New("mesh config: Dir is empty")
	}
	if len(c.Document) > maxDocument {
		return fmt.Errorf("mesh config: document of %d bytes, at most %d", len(c.Document), maxDocument)
	}
	if len(c.Advertise) > maxEndpoints {
		return fmt.Errorf("mesh config: %d addresses to advertise, at most %d", len(c.Advertise), maxEndpoints)
	}
	for _, s := range c.Advertise {
		if err := checkHostPort(s); err != nil {
			return fmt.Errorf("mesh config: advertise: %w", err)
		}
	}
	for _, s := range c.Seeds {
		if err := checkHostPort(s); err != nil {
			return fmt.Errorf("mesh config: seed: %w", err)
		}
	}
	g := &c.Gossip
	for _, d := range []time.Duration{c.KeepAlive, c.IdleTimeout, g.Interval, g.ProbeInterval, g.ProbeTimeout,
		g.PushPullInterval, g.DeadTime, g.RejoinInterval, g.RefreshInterval} {
		if d < 0 {
			return errors.New("mesh config: negative duration")
		}
	}
	if g.SuspicionMult < 0 || g.RetransmitMult < 0 {
		return errors.New("mesh config: negative multiplier")
	}
	return nil
}

// withDefaults returns c with every zero value replaced.
func (c Config) withDefaults() Config {
	def := func(p *time.Duration, d time.Duration) {
		if *p == 0 {
			*p = d
		}
	}
	if c.Listen == "" {
		c.Listen = defaultListen
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.ListenPacket == nil {
		c.ListenPacket = net.ListenPacket
	}
	def(&c.KeepAlive, defaultKeepAlive)
	def(&c.IdleTimeout, defaultIdleTimeout)
	g := &c.Gossip
	def(&g.Interval, 200*time.Millisecond)
	def(&g.ProbeInterval, time.Second)
	def(&g.ProbeTimeout, 500*time.Millisecond)
	def(&g.PushPullInterval, 30*time.Second)
	def(&g.DeadTime, 30*time.Second)
	def(&g.RejoinInterval, 15*time.Second)
	def(&g.RefreshInterval, 3*time.Second)
	if g.SuspicionMult == 0 {
		g.SuspicionMult = 4
	}
	if g.RetransmitMult == 0 {
		g.RetransmitMult = 4
	}
	return c
}

// A State is what this node believes of a member.
type State uint8

const (
	// Alive members answer.
	Alive State = iota + 1
	// Suspect members are alive by gossip, but this node's last attempt to
	// reach them, or its connection to them, failed.
	Suspect
	// Dead members answered nobody for so long that gossip gave them up.
	Dead
	// Left members said good-bye.
	Left
)

func (s State) String() string {
	switch s {
	case Alive:
		return "alive"
	case Suspect:
		return "suspect"
	case Dead:
		return "dead"
	case Left:
		return "left"
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// MarshalText implements encoding.TextMarshaler.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// A Member is a node of the mesh in this node's view.
type Member struct {
	ID     NodeID
	Record Record
	State  State
	// Endpoint is where this node talks to it now; invalid (the zero value)
	// when there is no connection.
	Endpoint netip.AddrPort
	// RTT is QUIC's smoothed round trip to it (RFC 9002, section 5.3); 0 where
	// there is no urgent connection.
	RTT time.Duration
	// Since is when the member came into its state, by this node's clock.
	Since time.Time
	// Heard is when Record arrived, by this node's clock; zero for this node
	// itself and for members that were only told of.
	Heard time.Time
	// Self marks this node.
	Self bool
}

// An EventKind says what happened to a member.
type EventKind uint8

const (
	// MemberJoined: new, or back from the dead.
	MemberJoined EventKind = iota + 1
	// MemberUpdated: its record changed.
	MemberUpdated
	// MemberLeft: it said good-bye.
	MemberLeft
	// MemberDead: gossip gave it up.
	MemberDead
)

func (k EventKind) String() string {
	switch k {
	case MemberJoined:
		return "joined"
	case MemberUpdated:
		return "updated"
	case MemberLeft:
		return "left"
	case MemberDead:
		return "dead"
	}
	return fmt.Sprintf("event(%d)", uint8(k))
}

// An Event says that a member's state or record changed.
type Event struct {
	Kind   EventKind
	Member Member
}

// A Ping is the result of [Mesh.Ping].
type Ping struct {
	// RTT is the time from sending eight bytes to having them back, over a
	// connection that was already up.
	RTT time.Duration
	// Smoothed and Min are QUIC's own estimates for that connection (RFC 9002,
	// section 5): exponentially weighted, and the lowest seen.
	Smoothed, Min time.Duration
	// Endpoint is the address the packets went to, Local the one they left
	// from; the latter is unspecified when the system chooses.
	Endpoint, Local netip.AddrPort
	// Dialled says which side set the connection up: true for this one.
	Dialled bool
}

// A Mesh is this node's part in its mesh. [New] makes one, [Mesh.Run] lives
// it. Its methods are safe for concurrent use, except that Handle, HandleClient
// and OnMember must be called before Run.
type Mesh struct {
	cfg    Config
	ms     *Membership
	log    *slog.Logger
	store  *store
	t      *transport
	g      *gossipTransport
	ml     *memberlist.Memberlist // set before ready is closed
	queue  memberlist.TransmitLimitedQueue
	inbox  chan []byte // published messages for the directory
	notify []func(Event)

	started atomic.Bool
	ready   chan struct{}
	stopped chan struct{}
	dirty   chan struct{} // the record changed
	wake    chan struct{} // events wait

	position *positioner

	mu           sync.Mutex
	record       Record    // own
	meta         []byte    // own, encoded
	toldPlace    time.Time // when last for the coordinate alone; at first, the start
	placeDraw    float64   // of the pause since; see placePause
	documents    [][]byte  // own, the newest first; never empty
	own          []netip.AddrPort
	members      map[NodeID]*memberState
	remembered   map[NodeID]struct{}
	seedNode     map[string]NodeID
	peersChanged bool
	ringPrev     NodeID // see ring
	ringNext     NodeID
	ringStale    bool // who lives has changed since
	seen         seenSet
	events       []Event
}

// Ready is closed when the mesh has begun to serve, soon after Run's start.
// Before, Open, Ping and the like fail with [ErrClosed].
func (m *Mesh) Ready() <-chan struct{} { return m.ready }

// maxInbox is how many published messages may wait for the directory.
const maxInbox = 1024

// New prepares the node in cfg.Dir to take part in its mesh and binds its
// socket. It starts nothing; whoever does not call Run must call Close. The
// error is [ErrNoMesh] when the node is in no mesh.
func New(cfg Config) (*Mesh, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	ms, err := LoadMembership(cfg.Dir)
	if err != nil {
		return nil, err
	}
	if !ms.Tier.node() {
		return nil, fmt.Errorf("%s: %w: a node needs a directory and a token of its own", cfg.Dir, ErrNotNode)
	}
	m := &Mesh{
		cfg: cfg, ms: ms, log: cfg.Log,
		inbox:      make(chan []byte, maxInbox),
		ready:      make(chan struct{}),
		stopped:    make(chan struct{}),
		dirty:      make(chan struct{}, 1),
		wake:       make(chan struct{}, 1),
		position:   newPositioner(),
		toldPlace:  time.Now(),
		placeDraw:  rand.Float64(),
		record:     cfg.Record,
		documents:  [][]byte{bytes.Clone(cfg.Document)},
		members:    make(map[NodeID]*memberState),
		remembered: make(map[NodeID]struct{}),
		seedNode:   make(map[string]NodeID),
	}
	m.queue.RetransmitMult = cfg.Gossip.RetransmitMult
	m.queue.NumNodes = m.numAlive
	if m.store, err = openStore(cfg.Dir); err != nil {
		return nil, err
	}
	pc, err := cfg.ListenPacket("udp", cfg.Listen)
	if err != nil {
		m.store.Close()
		return nil, fmt.Errorf("mesh: %w", err)
	}
	m.t = newTransport(ms, &m.cfg, pc)
	m.g = newGossipTransport(m.t, cfg.Gossip.Interval, m.ring)
	m.t.onDatagram = m.g.receive
	m.t.endpoints = m.ownEndpoints
	e := newEnroller(m)
	m.t.serveJoin = e.serve
	m.t.handlers[protoGossip] = m.g.serve
	m.t.handlers[protoPing] = servePing
	m.t.handlers[protoDocument] = m.serveDocument
	m.t.handlers[protoEnrol] = e.serveRelayed
	m.t.handlers[protoBye] = m.serveBye

	m.own = m.findEndpoints(context.Background())
	if err := m.sealRecordLocked(); err != nil {
		m.Close()
		return nil, fmt.Errorf("mesh config: %w", err)
	}
	peers, err := m.store.remembered()
	if err != nil {
		m.Close()
		return nil, fmt.Errorf("read remembered peers: %w", err)
	}
	for id, eps := range peers {
		if id != ms.ID {
			m.remembered[id] = struct{}{}
			m.t.recall(id, eps)
		}
	}
	return m, nil
}

// Close releases what New took, for a mesh that never ran. After Run it does
// nothing.
func (m *Mesh) Close() error {
	if m.started.Swap(true) {
		return nil
	}
	close(m.stopped)
	return errors.Join(m.t.close(), m.store.Close())
}

// Run takes part in the mesh until ctx is done; then it says good-bye, closes
// every connection, waits for every handler and returns nil. It can run once.
func (m *Mesh) Run(ctx context.Context) error {
	if m.started.Swap(true) {
		return ErrClosed
	}
	defer close(m.stopped)
	err := m.run(ctx)
	return errors.Join(err, m.store.Close())
}

func (m *Mesh) run(ctx context.Context) error {
	if err := m.t.listen(); err != nil {
		return errors.Join(err, m.t.close())
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Events flow until the last one is out.
	var events, loops sync.WaitGroup
	ectx, estop := context.WithCancel(context.Background())
	events.Go(func() { m.eventLoop(ectx) })
	events.Go(func() { m.inboxLoop(ectx) })
	// The transport serves until memberlist has left.
	tctx, tstop := context.WithCancel(context.WithoutCancel(ctx))
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := m.t.run(tctx); err != nil {
			cancel(err)
		}
	})
	ml, err := memberlist.Create(m.memberlistConfig(m.g))
	if err == nil {
		m.ml = ml
		m.log.Info("mesh up", "mesh", m.ms.MeshID, "node", m.ms.ID, "listen", m.t.pc.LocalAddr(), "endpoints", m.ownEndpoints())
		close(m.ready)
		loops.Go(func() { m.rejoinLoop(ctx) })
		loops.Go(func() { m.recordLoop(ctx) })
		loops.Go(func() { m.endpointLoop(ctx) })
		loops.Go(func() { m.rememberLoop(ctx) })
		<-ctx.Done()
		loops.Wait()
		m.leave()
		err = ml.Shutdown()
		if c := context.Cause(ctx); c != nil && !errors.Is(c, context.Canceled) && !errors.Is(c, context.DeadlineExceeded) {
			err = errors.Join(err, c) // the socket failed
		}
	}
	tstop()
	err = errors.Join(err, m.t.close())
	serving.Wait()
	estop()
	events.Wait()
	return err
}

// leaveTimeout bounds the good-bye.
const leaveTimeout = 2 * time.Second

// leave tells the others that this node goes, so that nobody suspects anything.
func (m *Mesh) leave() {
	if m.alone() {
		return
	}
	m.t.sayBye()
	m.publish(publishBye, []byte(m.ms.ID))
	if err := m.ml.Leave(leaveTimeout); err != nil {
		m.log.Debug("left without an answer", "err", err)
	}
}

// Size returns how many members are alive, this node included.
func (m *Mesh) Size() int { return m.numAlive() }

func (m *Mesh) numAlive() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, ms := range m.members {
		if ms.state == Alive {
			n++
		}
	}
	return max(1, n)
}

// ID returns this node's id.
func (m *Mesh) ID() NodeID { return m.ms.ID }

// Name returns this node's display name.
func (m *Mesh) Name() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.record.Name
}

// MeshID returns the mesh's name; see [Membership].
func (m *Mesh) MeshID() string { return m.ms.MeshID }

// Membership returns what the node's directory said when the mesh was made.
func (m *Mesh) Membership() Membership { return *m.ms }

// LocalAddr returns the address of the socket.
func (m *Mesh) LocalAddr() net.Addr { return m.t.pc.LocalAddr() }

// Endpoints returns where this node says it can be reached.
func (m *Mesh) Endpoints() []netip.AddrPort { return m.ownEndpoints() }

// Handle makes h serve the streams peers open for protocol, a name of 1 to 32
// printable ASCII characters that does not begin with "mesh/". It must be
// called before Run.
func (m *Mesh) Handle(protocol string, h Handler) { handle(m.t.handlers, protocol, h) }

// HandleClient is Handle for streams that clients open (see
// [ClientTransport]). They reach nothing else. Stream.Peer is then the client's
// id.
func (m *Mesh) HandleClient(protocol string, h Handler) { handle(m.t.clientHandlers, protocol, h) }

// CloseClients ends the connections of clients, and lets no more in: they go
// to other nodes while this one still has things to do before Run may end.
func (m *Mesh) CloseClients() { m.t.closeClients() }

func handle(handlers map[string]Handler, protocol string, h Handler) {
	if err := checkProtocol(protocol); err != nil {
		panic(err) // our own names
	}
	if strings.HasPrefix(protocol, "mesh/") || handlers[protocol] != nil {
		panic("mesh: protocol " + protocol + " is taken")
	}
	handlers[protocol] = h
}

// Open opens a stream to a peer, connecting first if need be; ctx bounds that,
// and not the stream (see [Stream.SetDeadline]). It does not wait
// for the peer to take the stream: that nobody there knows the protocol shows
// in the first Read, as [ErrUnknownProtocol]. The errors are [ErrUnknownPeer],
// [ErrUnreachable], [ErrForeignMesh], [ErrWrongPeer], [ErrNotMesh],
// [ErrClosed] and ctx's.
func (m *Mesh) Open(ctx context.Context, peer NodeID, protocol string, class Class) (*Stream, error) {
	if err := m.running(); err != nil {
		return nil, err
	}
	return m.t.open(ctx, peer, protocol, class)
}

// Request opens a stream like [Mesh.Open] and has do make a request on it and
// read the answer. ctx bounds that too: once it is done, reads and writes end and
// its error is returned. do is called again, on another stream, if the peer has
// seen nothing of the first (see [ErrNotTaken]); what the peer may have seen is
// not asked again. The stream is closed when do has returned.
func (m *Mesh) Request(ctx context.Context, peer NodeID, protocol string, class Class, do func(*Stream) error) error {
	if err := m.running(); err != nil {
		return err
	}
	return m.t.request(ctx, peer, protocol, class, do)
}

// Again calls do, which makes a request, and calls it anew where its error says
// that the peer has seen nothing of that ([ErrNotTaken]), three times in all and
// not once ctx is done. The error is that of the last call. [Mesh.Request] does
// this already; Again is for requests made by way of [Mesh.Open].
func Again(ctx context.Context, do func() error) error {
	for try := 1; ; try++ {
		err := do()
		if !errors.Is(err, ErrNotTaken) || try == maxRequests || ctx.Err() != nil {
			return err
		}
	}
}

func (m *Mesh) running() error {
	select {
	case <-m.ready:
		return nil
	default:
		return ErrClosed
	}
}

// Ping measures the round trip to a peer over the urgent connection, which it
// sets up first if need be.
func (m *Mesh) Ping(ctx context.Context, peer NodeID) (Ping, error) {
	if err := m.running(); err != nil {
		return Ping{}, err
	}
	return m.t.ping(ctx, peer)
}

// Members returns this node and all others it knows, the dead and departed of
// the last day included, ordered by id.
func (m *Mesh) Members() []Member {
	m.mu.Lock()
	list := make([]Member, 0, len(m.members)+1)
	for id := range m.members {
		list = append(list, m.memberLocked(id))
	}
	if m.members[m.ms.ID] == nil {
		list = append(list, m.memberLocked(m.ms.ID))
	}
	m.mu.Unlock()
	for i := range list {
		m.addStatus(&list[i])
	}
	slices.SortFunc(list, func(a, b Member) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return list
}

// Member returns one node.
func (m *Mesh) Member(id NodeID) (Member, bool) {
	m.mu.Lock()
	if m.members[id] == nil && id != m.ms.ID {
		m.mu.Unlock()
		return Member{}, false
	}
	mem := m.memberLocked(id)
	m.mu.Unlock()
	m.addStatus(&mem)
	return mem, true
}

func (m *Mesh) memberLocked(id NodeID) Member {
	mem := Member{ID: id, State: Alive, Self: id == m.ms.ID}
	if ms := m.members[id]; ms != nil {
		mem.Record, mem.State, mem.Since, mem.Heard = ms.record, ms.state, ms.since, ms.heard
	}
	if mem.Self {
		mem.Record, mem.State, mem.Heard = m.record, Alive, time.Time{}
	}
	mem.Record.Endpoints = slices.Clone(mem.Record.Endpoints)
	return mem
}

// addStatus adds what the transport knows; it takes the transport's lock.
func (m *Mesh) addStatus(mem *Member) {
	if mem.Self {
		return
	}
	endpoint, failing := m.t.status(mem.ID)
	mem.Endpoint, mem.RTT = endpoint, m.t.smoothed(mem.ID)
	if failing && mem.State == Alive {
		mem.State = Suspect
	}
}

// authority returns the member that holds the CA's key.
func (m *Mesh) authority() (NodeID, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, ms := range m.members {
		if ms.record.Authority && ms.state == Alive {
			return id, true
		}
	}
	return "", false
}

// knownPeers is what a node that joins is told to begin with.
func (m *Mesh) knownPeers() []knownPeer {
	const most = 16
	list := []knownPeer{{ID: string(m.ms.ID), Endpoints: m.ownEndpoints()}}
	for _, mem := range m.Members() {
		if len(list) < most && mem.State == Alive && !mem.Self && len(mem.Record.Endpoints) > 0 {
			list = append(list, knownPeer{ID: string(mem.ID), Endpoints: mem.Record.Endpoints})
		}
	}
	return list
}

// UpdateRecord changes what this node says of itself and has gossip spread it,
// a few times a second at most. What the mesh keeps (see [Record]) it sets
// back. A change that makes the record invalid is logged and undone. f must
// not call the Mesh.
func (m *Mesh) UpdateRecord(f func(*Record)) {
	m.mu.Lock()
	old := m.record
	f(&m.record)
	if reflect.DeepEqual(m.record, old) {
		m.mu.Unlock()
		return
	}
	err := m.sealRecordLocked()
	if err != nil {
		m.record = old
	}
	m.mu.Unlock()
	if err != nil {
		m.log.Error("record not updated", "err", err)
		return
	}
	m.markDirty()
}

func (m *Mesh) markDirty() {
	select {
	case m.dirty <- struct{}{}:
	default:
	}
}

// SetDocument replaces the capability document.
func (m *Mesh) SetDocument(document []byte) error {
	if len(document) > maxDocument {
		return fmt.Errorf("document: %w: %d bytes, at most %d", ErrTooLarge, len(document), maxDocument)
	}
	m.mu.Lock()
	m.documents = slices.Insert(m.documents, 0, bytes.Clone(document))
	m.documents = m.documents[:min(len(m.documents), keptDocuments)]
	err := m.sealRecordLocked()
	m.mu.Unlock()
	m.markDirty()
	return err
}

// sealRecordLocked fills in what the mesh keeps and signs. The signature is
// made only for what has changed.
func (m *Mesh) sealRecordLocked() error {
	r := &m.record
	r.Tier = m.ms.Tier
	r.Authority = m.ms.Authority
	r.Endpoints = slices.Clone(m.own)
	r.DocumentDigest = digestOf(m.documents[0])
	r.Coordinate = m.position.known()
	meta, err := encodeRecord(r, m.ms.identity.key)
	if err != nil {
		return err
	}
	m.meta = meta
	return nil
}

// recordLoop spreads changes of the record. memberlist gossips each one to
// everyone, so they are gathered first.
func (m *Mesh) recordLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.dirty:
		}
		m.mu.Lock()
		ms := m.members[m.ms.ID]
		same := ms != nil && string(ms.meta) == string(m.meta)
		m.mu.Unlock()
		if !same {
			// It waits until the news has gone out, which is the pause we want;
			// that nobody was there to hear it is no failure.
			_ = m.ml.UpdateNode(2 * m.cfg.Gossip.Interval)
		}
		pause := time.NewTimer(m.cfg.Gossip.Interval)
		select {
		case <-ctx.Done():
			pause.Stop()
			return
		case <-pause.C:
		}
	}
}

func (m *Mesh) ownEndpoints() []netip.AddrPort {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.own)
}

// findEndpoints finds out where others can reach this node now.
func (m *Mesh) findEndpoints(ctx context.Context) []netip.AddrPort {
	if len(m.cfg.Advertise) == 0 {
		return localEndpoints(endpointOf(m.t.pc.LocalAddr()))
	}
	eps, err := resolve(ctx, m.cfg.Advertise)
	if err != nil {
		m.log.Warn("advertised address not found", "err", err)
		return nil
	}
	return mergeEndpoints(nil, eps...)
}

// endpointLoop notices when this node's addresses change.
func (m *Mesh) endpointLoop(ctx context.Context) {
	tick := time.NewTicker(m.cfg.Gossip.RefreshInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		eps := m.findEndpoints(ctx)
		m.mu.Lock()
		// With no address at all there is nobody to tell, and the old ones may
		// come back.
		changed := len(eps) > 0 && !slices.Equal(eps, m.own)
		if changed {
			m.own = eps
			if err := m.sealRecordLocked(); err != nil {
				m.log.Error("record not updated", "err", err)
			}
		}
		m.mu.Unlock()
		if changed {
			m.log.Info("own addresses changed", "endpoints", eps)
			m.markDirty()
			m.t.moved()
		}
	}
}

// OnMember has f called for every change of a member, one at a time and in
// order, this node's own joining included. It must be called before Run.
func (m *Mesh) OnMember(f func(Event)) { m.notify = append(m.notify, f) }

// maxEvents bounds the events that wait for a slow listener; it then misses
// the oldest, and Members has the truth.
const maxEvents = 4096

func (m *Mesh) eventLocked(kind EventKind, id NodeID) {
	if len(m.events) >= maxEvents {
		m.events = m.events[1:]
	}
	m.events = append(m.events, Event{Kind: kind, Member: m.memberLocked(id)})
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// eventLoop tells the listeners. memberlist holds its lock while it reports, so
// they cannot be called from there.
func (m *Mesh) eventLoop(ctx context.Context) {
	for {
		select {
		case <-m.wake:
		case <-ctx.Done():
			return
		}
		for {
			m.mu.Lock()
			if len(m.events) == 0 {
				m.mu.Unlock()
				break
			}
			ev := m.events[0]
			m.events = m.events[1:]
			m.mu.Unlock()
			m.addStatus(&ev.Member)
			level := slog.LevelInfo
			if ev.Kind == MemberUpdated || ev.Member.Self {
				level = slog.LevelDebug
			}
			m.log.Log(ctx, level, "member changed", "event", ev.Kind, "node", ev.Member.ID, "name", ev.Member.Record.Name)
			for _, f := range m.notify {
				f(ev)
			}
		}
	}
}

// Publish sends msg, at most 1,000 bytes, to the Directory of every other node
// that is in touch with this one, soon and probably.
func (m *Mesh) Publish(msg []byte) error {
	if len(msg) > maxPublish {
		return fmt.Errorf("publish: %w: %d bytes, at most %d", ErrTooLarge, len(msg), maxPublish)
	}
	if err := m.running(); err != nil {
		return err
	}
	m.publish(publishDirectory, msg)
	return nil
}

// inboxLoop gives published messages to the directory.
func (m *Mesh) inboxLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case msg := <-m.inbox:
			if m.cfg.Directory != nil {
				m.cfg.Directory.Notify(msg)
			}
		}
	}
}
