package mesh

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// protoGossip carries memberlist's streams: exchanges of whole states, and the
// probes that datagrams failed to make.
const protoGossip = "mesh/gossip"

const (
	// gossipPacket is what memberlist may put into one packet, in bytes. With
	// its checksum (5) and our type byte it fits the smallest QUIC packet
	// (1,200 bytes) beside header and tag.
	gossipPacket = 1100
	// gossipFan is to how many members news go in each round. Each message is
	// passed on as often as RetransmitMult says whatever this is, so a larger one
	// costs no bytes; it gets through what many say at once before more is said.
	gossipFan = 5
	// inboxPackets is how many packets may wait for memberlist.
	inboxPackets = 512
	// streamTimeout bounds an exchange of states.
	streamTimeout = 10 * time.Second
	// maxGossipStream bounds what a peer may send on one gossip stream, in
	// bytes: members at some 700 bytes each, and a directory's state.
	maxGossipStream = 16 << 20
)

// A datagram on an urgent connection:
//
//	type     uint8  // 1: a memberlist packet
//	payload
const datagramGossip = 1

// parseDatagram returns the memberlist packet in b, which it keeps.
func parseDatagram(b []byte) ([]byte, error) {
	if len(b) < 2 || b[0] != datagramGossip {
		return nil, fmt.Errorf("%w: datagram", ErrMalformed)
	}
	return b[1:], nil
}

// A gossipTransport carries memberlist's packets and streams. memberlist names
// nodes by synthetic addresses; only here are they resolved.
type gossipTransport struct {
	t        *transport
	interval time.Duration              // between rounds
	ring     func() (prev, next NodeID) // see Mesh.ring
	packets  chan *memberlist.Packet
	streams  chan net.Conn

	mu     sync.Mutex
	closed bool
	round  round
	conns  map[*gossipConn]struct{}
}

// A round is what newsTo knows of memberlist's present one.
type round struct {
	last    time.Time // when its last packet was sent
	packets int       // how many were, at most two
	instead [2]NodeID // whom memberlist meant those for
}

var _ memberlist.NodeAwareTransport = (*gossipTransport)(nil)

func newGossipTransport(t *transport, interval time.Duration, ring func() (prev, next NodeID)) *gossipTransport {
	return &gossipTransport{
		t:        t,
		interval: interval,
		ring:     ring,
		packets:  make(chan *memberlist.Packet, inboxPackets),
		streams:  make(chan net.Conn),
		conns:    make(map[*gossipConn]struct{}),
	}
}

// receive takes in a datagram; it is the transport's onDatagram.
func (g *gossipTransport) receive(from NodeID, b []byte) {
	p, err := parseDatagram(b)
	if err != nil {
		return
	}
	if isPersonal(p) || g.beside(from) {
		g.t.used(from)
	}
	select {
	case g.packets <- &memberlist.Packet{Buf: p, From: gossipUDPAddr(from), Timestamp: time.Now()}:
	default: // memberlist is behind; it lives with losses
	}
}

// resolve finds out who is meant. The name is what memberlist believes; the
// address follows from it, and stands alone in some messages.
func (g *gossipTransport) resolve(a memberlist.Address) (NodeID, bool) {
	if id, err := ParseNodeID(a.Name); err == nil {
		return id, true
	}
	ap, err := netip.ParseAddrPort(a.Addr)
	if err != nil {
		return "", false
	}
	return g.t.nodeAt(ap.Addr())
}

// FinalAdvertiseAddr implements memberlist.Transport.
func (g *gossipTransport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return gossipAddr(g.t.id).AsSlice(), gossipPort, nil
}

// WriteTo implements memberlist.Transport.
func (g *gossipTransport) WriteTo(b []byte, addr string) (time.Time, error) {
	return g.WriteToAddress(b, memberlist.Address{Addr: addr})
}

// WriteToAddress implements memberlist.NodeAwareTransport. It never blocks, and
// an unknown or unreachable node is no error: any error but a *net.OpError
// would make memberlist abandon a probe without suspecting the node.
func (g *gossipTransport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	if id, ok := g.resolve(a); ok {
		use := true
		if !isPersonal(b) {
			id = g.newsTo(id)
			use = g.beside(id)
		}
		p := make([]byte, 0, 1+len(b))
		p = append(p, datagramGossip)
		g.t.send(id, append(p, b...), use)
	}
	return time.Now(), nil
}

// newsTo returns whom to give news that memberlist meant for id, a node it
// picked at random. Chance alone misses someone now and then: where nine nodes
// each pass news on to four of the others, one load in 25 left a node out, which
// heard seconds later, from an exchange of states. So the first two packets of a
// round go to the next node in the ring and to the one before (hybrid
// dissemination: Voulgaris and van Steen, Middleware 2007): whom chance misses,
// two others tell. What is new is in the first packets.
func (g *gossipTransport) newsTo(id NodeID) NodeID {
	if _, failing := g.t.status(id); failing {
		return id // it may have to hear that it is taken for dead
	}
	prev, next := g.ring()
	g.mu.Lock()
	defer g.mu.Unlock()
	r := &g.round
	// memberlist sends a round's packets one right after the other.
	if now := time.Now(); now.Sub(r.last) > g.interval/2 {
		*r = round{last: now}
	} else {
		r.last = now
	}
	beside := [...]NodeID{next, prev}
	for i, b := range beside[:min(r.packets, len(beside))] {
		if id == b && r.instead[i] != "" {
			id = r.instead[i]
		}
	}
	if r.packets < len(beside) {
		b := beside[r.packets]
		r.packets++
		if _, failing := g.t.status(b); b != "" && !failing {
			if b != id {
				// It has the packet that memberlist may yet mean for the neighbour.
				r.instead[r.packets-1] = id
			}
			return b
		}
	}
	return g.t.gossipTo(id)
}

// beside reports whether a node is this one's neighbour in the ring. Their
// connection is always of use, so that it is there when there are news.
func (g *gossipTransport) beside(id NodeID) bool {
	prev, next := g.ring()
	return id == prev || id == next
}

// Types of memberlist's messages, and where they stand in a packet:
//
//	packet    = [checksummed, checksum: 4 bytes,] message
//	message   = type uint8, ... | compound
//	compound  = 7, count uint8, count lengths of 2 bytes, count messages
//
// They are its wire format (protocol version 5) and do not change.
const (
	mlPing         = 0
	mlIndirectPing = 1
	mlAck          = 2
	mlCompound     = 7
	mlNack         = 11
	mlChecksummed  = 12
)

// isPersonal reports whether a packet of memberlist's means the one it is sent
// to, as probes and their answers do, with or without news behind them. What is
// not personal is news alone, as good for any node as for another.
func isPersonal(b []byte) bool {
	if len(b) > 5 && b[0] == mlChecksummed {
		b = b[5:]
	}
	if len(b) > 2 && b[0] == mlCompound {
		if first := 2 + 2*int(b[1]); first < len(b) {
			b = b[first:]
		}
	}
	if len(b) == 0 {
		return true
	}
	switch b[0] {
	case mlPing, mlIndirectPing, mlAck, mlNack, mlCompound:
		return true
	}
	return false
}

// PacketCh implements memberlist.Transport.
func (g *gossipTransport) PacketCh() <-chan *memberlist.Packet { return g.packets }

// DialTimeout implements memberlist.Transport.
func (g *gossipTransport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return g.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// DialAddressTimeout implements memberlist.NodeAwareTransport.
func (g *gossipTransport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	c, err := func() (net.Conn, error) {
		id, ok := g.resolve(a)
		if !ok {
			return nil, ErrUnknownPeer
		}
		ctx, cancel := context.WithTimeout(g.t.ctx, timeout)
		defer cancel()
		s, err := g.t.open(ctx, id, protoGossip, Urgent)
		if err != nil {
			return nil, err
		}
		return g.add(s)
	}()
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
	}
	return c, nil
}

// StreamCh implements memberlist.Transport.
func (g *gossipTransport) StreamCh() <-chan net.Conn { return g.streams }

// serve hands a peer's stream to memberlist and waits until it is done.
func (g *gossipTransport) serve(ctx context.Context, s *Stream) {
	c, err := g.add(s)
	if err != nil {
		return
	}
	defer c.Close()
	select {
	case g.streams <- c:
	case <-ctx.Done():
		return
	}
	select {
	case <-c.done:
	case <-ctx.Done():
	}
}

func (g *gossipTransport) add(s *Stream) (*gossipConn, error) {
	c := &gossipConn{Stream: s, g: g, done: make(chan struct{}), left: maxGossipStream}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		s.Close()
		return nil, ErrClosed
	}
	g.conns[c] = struct{}{}
	return c, nil
}

// Shutdown implements memberlist.Transport. The QUIC connections outlive it.
func (g *gossipTransport) Shutdown() error {
	g.mu.Lock()
	g.closed = true
	var all []*gossipConn
	for c := range g.conns {
		all = append(all, c)
	}
	g.mu.Unlock()
	for _, c := range all {
		c.Close()
	}
	return nil
}

// A gossipConn is a stream as memberlist knows it.
type gossipConn struct {
	*Stream
	g    *gossipTransport
	once sync.Once
	done chan struct{}
	left int // bytes the peer may still send; only the reader uses it
}

func (c *gossipConn) LocalAddr() net.Addr  { return gossipUDPAddr(c.g.t.id) }
func (c *gossipConn) RemoteAddr() net.Addr { return gossipUDPAddr(c.Peer()) }

func (c *gossipConn) Read(b []byte) (int, error) {
	if c.left == 0 {
		return 0, fmt.Errorf("gossip stream: %w", ErrTooLarge)
	}
	n, err := c.Stream.Read(b[:min(len(b), c.left)])
	c.left -= n
	if err != nil && !errors.Is(err, io.EOF) {
		err = &net.OpError{Op: "read", Net: "tcp", Err: err}
	}
	return n, err
}

func (c *gossipConn) Close() error {
	c.once.Do(func() {
		c.g.mu.Lock()
		delete(c.g.conns, c)
		c.g.mu.Unlock()
		c.Stream.Close()
		close(c.done)
	})
	return nil
}

// A member as this node knows it.
type memberState struct {
	record Record
	meta   []byte // the record as it came, signed
	state  State
	since  time.Time
	heard  time.Time // when record came
	bye    time.Time // when it said it would leave
}

const (
	// maxGone is how many dead and departed members are remembered, and
	// goneTime for how long.
	maxGone  = 256
	goneTime = 24 * time.Hour
	// byeTime is how long a good-bye explains a death.
	byeTime = time.Minute
)

// gossipDelegate is memberlist's view of a Mesh. memberlist calls the event
// methods with its lock held, so they only note what happened.
type gossipDelegate struct{ m *Mesh }

var (
	_ memberlist.Delegate      = gossipDelegate{}
	_ memberlist.AliveDelegate = gossipDelegate{}
	_ memberlist.EventDelegate = gossipDelegate{}
)

func (d gossipDelegate) NodeMeta(limit int) []byte {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	if len(d.m.meta) > limit {
		panic("record too large") // encodeRecord saw to it
	}
	return d.m.meta
}

// NotifyAlive refuses what no honest member would say of a node.
func (d gossipDelegate) NotifyAlive(n *memberlist.Node) error {
	id, err := ParseNodeID(n.Name)
	if err != nil {
		return err
	}
	if a, ok := netip.AddrFromSlice(n.Addr); !ok || a != gossipAddr(id) || n.Port != gossipPort {
		return fmt.Errorf("%w: address %v is not that of %s", ErrMalformed, n.Addr, id)
	}
	d.m.mu.Lock()
	ms := d.m.members[id]
	known := ms != nil && string(ms.meta) == string(n.Meta)
	d.m.mu.Unlock()
	if known {
		return nil // verified when it first came
	}
	r, err := decodeRecord(id, n.Meta)
	if err != nil {
		return err
	}
	return d.m.t.contradicts(id, &r)
}

// contradicts compares a record with what the node's certificate said when it
// was last connected.
func (t *transport) contradicts(id NodeID, r *Record) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peers[id]
	if p == nil || p.tier == 0 {
		return nil
	}
	if r.Tier != p.tier || r.Authority != p.authority {
		return fmt.Errorf("%w: record of %s claims tier %v, authority %v; its certificate says %v, %v",
			ErrMalformed, id, r.Tier, r.Authority, p.tier, p.authority)
	}
	return nil
}

func (d gossipDelegate) NotifyJoin(n *memberlist.Node)   { d.m.noteAlive(n, MemberJoined) }
func (d gossipDelegate) NotifyUpdate(n *memberlist.Node) { d.m.noteAlive(n, MemberUpdated) }

func (m *Mesh) noteAlive(n *memberlist.Node, kind EventKind) {
	id := NodeID(n.Name)
	// NotifyAlive has checked it a moment ago. To verify the signature once more
	// was a tenth of what gossip takes of a processor.
	e, err := openRecord(n.Meta)
	if err != nil {
		return // so this cannot be
	}
	r, err := decodeRecordBody(e.Body)
	if err != nil {
		return
	}
	if id != m.ms.ID {
		m.t.learn(id, r.Endpoints)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	ms := m.members[id]
	if ms == nil {
		ms = &memberState{}
		m.members[id] = ms
	}
	if ms.state != Alive {
		// It is back. One that leaves may have changed its record a moment before,
		// and that be heard after the good-bye, which then still holds.
		ms.bye = time.Time{}
		ms.since = time.Now()
		m.peersChanged = true
		m.ringStale = true
	}
	// Not for every change of the load: remembering costs a write to a flash
	// that may have to last for years.
	if !slices.Equal(ms.record.Endpoints, r.Endpoints) {
		m.peersChanged = true
	}
	ms.record, ms.meta, ms.state = r, append([]byte(nil), n.Meta...), Alive
	ms.heard = time.Now()
	m.eventLocked(kind, id)
}

func (d gossipDelegate) NotifyLeave(n *memberlist.Node) {
	m, id := d.m, NodeID(n.Name)
	said := m.t.saidBye(id)
	m.position.forget(id)
	m.mu.Lock()
	defer m.mu.Unlock()
	ms := m.members[id]
	if ms == nil {
		return
	}
	ms.state, ms.since = Dead, time.Now()
	m.ringStale = true
	kind := MemberDead
	if said || time.Since(ms.bye) < byeTime {
		ms.state, kind = Left, MemberLeft
	}
	m.pruneLocked()
	m.eventLocked(kind, id)
}

// ring returns this node's neighbours in the ring that all living members make
// in the order of their ids, the first after the last; no id for both where it
// is alone, and none for prev where there is one other. All nodes that agree on
// who lives agree on the ring.
func (m *Mesh) ring() (prev, next NodeID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.ringStale {
		return m.ringPrev, m.ringNext
	}
	self := m.ms.ID
	// nearer reports whether a comes before b on the way up from this node.
	nearer := func(a, b NodeID) bool {
		if (a > self) != (b > self) {
			return a > self
		}
		return a < b
	}
	for id, ms := range m.members {
		if ms.state != Alive || id == self {
			continue
		}
		if next == "" || nearer(id, next) {
			next = id
		}
		if prev == "" || nearer(prev, id) {
			prev = id
		}
	}
	if prev == next {
		prev = ""
	}
	m.ringPrev, m.ringNext, m.ringStale = prev, next, false
	return prev, next
}

// saidBye reports whether a peer closed its connection in order to leave.
func (t *transport) saidBye(id NodeID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peers[id]
	return p != nil && p.left
}

// pruneLocked forgets those who have been gone for long.
func (m *Mesh) pruneLocked() {
	var oldest NodeID
	gone := 0
	for id, ms := range m.members {
		if ms.state == Alive || id == m.ms.ID {
			continue
		}
		if time.Since(ms.since) > goneTime {
			m.forgetLocked(id)
			continue
		}
		gone++
		if oldest == "" || ms.since.Before(m.members[oldest].since) {
			oldest = id
		}
	}
	if gone > maxGone {
		m.forgetLocked(oldest)
	}
}

// forgetLocked drops a member. The transport's lock may be taken with the
// mesh's held, never the other way round.
func (m *Mesh) forgetLocked(id NodeID) {
	delete(m.members, id)
	if _, ok := m.remembered[id]; !ok {
		m.t.forget(id)
	}
}

// What is published, inside a memberlist user message:
//
//	kind     uint8     // 1: for the directory; 2: a node leaves, payload its id
//	id       16 bytes  // random, to tell copies from messages
//	payload  at most maxPublish bytes
//
// memberlist spreads only what a node itself queues, so every node queues each
// message once.
const (
	publishDirectory = 1
	publishBye       = 2
	publishHeader    = 17
)

type publishID [16]byte

func parsePublished(b []byte) (kind byte, id publishID, payload []byte, err error) {
	if len(b) < publishHeader || len(b) > publishHeader+maxPublish {
		return 0, id, nil, fmt.Errorf("%w: published message of %d bytes", ErrMalformed, len(b))
	}
	copy(id[:], b[1:])
	return b[0], id, b[publishHeader:], nil
}

// A broadcast is a published message on its way.
type broadcast []byte

func (b broadcast) Invalidates(memberlist.Broadcast) bool { return false }
func (b broadcast) Message() []byte                       { return b }
func (b broadcast) Finished()                             {}
func (b broadcast) UniqueBroadcast()                      {}

// maxSeen is how many published messages are remembered as seen.
const maxSeen = 8192

// A seenSet remembers the last maxSeen message ids.
type seenSet struct {
	set  map[publishID]struct{}
	ring []publishID
	next int
}

// add reports whether id is new.
func (s *seenSet) add(id publishID) bool {
	if _, ok := s.set[id]; ok {
		return false
	}
	if s.set == nil {
		s.set = make(map[publishID]struct{})
	}
	if len(s.ring) < maxSeen {
		s.ring = append(s.ring, id)
	} else {
		delete(s.set, s.ring[s.next])
		s.ring[s.next] = id
		s.next = (s.next + 1) % maxSeen
	}
	s.set[id] = struct{}{}
	return true
}

// maxQueued is how many published messages wait to be passed on; the oldest
// are dropped, since exchanges of whole states make up for them.
const maxQueued = 1024

// publish queues a message of this node's.
func (m *Mesh) publish(kind byte, payload []byte) {
	b := make([]byte, publishHeader, publishHeader+len(payload))
	b[0] = kind
	rand.Read(b[1:publishHeader])
	b = append(b, payload...)
	m.mu.Lock()
	m.seen.add(publishID(b[1:publishHeader]))
	m.mu.Unlock()
	m.queue.QueueBroadcast(broadcast(b))
	m.queue.Prune(maxQueued)
}

// NotifyMsg implements memberlist.Delegate. It must not block.
func (d gossipDelegate) NotifyMsg(b []byte) {
	m := d.m
	kind, id, payload, err := parsePublished(b)
	if err != nil {
		return
	}
	m.mu.Lock()
	fresh := m.seen.add(id)
	m.mu.Unlock()
	if !fresh {
		return
	}
	own := append([]byte(nil), b...) // memberlist uses b again
	m.queue.QueueBroadcast(broadcast(own))
	m.queue.Prune(maxQueued)
	payload = own[len(b)-len(payload):]
	switch kind {
	case publishDirectory:
		select {
		case m.inbox <- payload:
		default: // the directory is behind; a state exchange will tell it
		}
	case publishBye:
		m.noteBye(NodeID(payload))
	}
}

// protoBye tells a peer directly that this node leaves; the peer closes the
// stream to say that it has heard. Gossip alone may bring the news that the
// node is gone before the reason.
const protoBye = "mesh/bye"

// byeWait bounds the wait for the peers to have heard.
const byeWait = 500 * time.Millisecond

func (m *Mesh) serveBye(_ context.Context, s *Stream) { m.noteBye(s.Peer()) }

// sayBye tells every connected peer.
func (t *transport) sayBye() {
	ctx, cancel := context.WithTimeout(t.ctx, byeWait)
	defer cancel()
	var conns []*conn
	t.mu.Lock()
	for _, p := range t.peers {
		if c := p.links[Urgent].current(); c != nil {
			conns = append(conns, c)
		}
	}
	t.mu.Unlock()
	var wg sync.WaitGroup
	for _, c := range conns {
		wg.Go(func() {
			s, err := c.open(ctx, protoBye)
			if err != nil {
				return
			}
			defer s.Close()
			stop := context.AfterFunc(ctx, func() { s.SetDeadline(time.Unix(1, 0)) })
			defer stop()
			_, _ = s.Read(make([]byte, 1))
		})
	}
	wg.Wait()
}

// noteBye takes in that a node leaves. Whether it is really gone is for gossip
// to say; this only tells why.
func (m *Mesh) noteBye(id NodeID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	ms := m.members[id]
	if ms == nil || id == m.ms.ID {
		return
	}
	ms.bye = time.Now()
	if ms.state == Dead && time.Since(ms.since) < byeTime {
		ms.state = Left
	}
}

// GetBroadcasts implements memberlist.Delegate.
func (d gossipDelegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.m.queue.GetBroadcasts(overhead, limit)
}

// A directory's state as it travels in an exchange: CBOR, signed, since
// memberlist does not say whose state it merges.
type signedState struct {
	_         struct{} `cbor:",toarray"`
	Key       []byte
	Signature []byte
	State     []byte
}

const stateContext = "meshnode directory state v1\x00"

// signState signs state. The mesh id keeps a state of one mesh out of another.
func signState(key ed25519.PrivateKey, meshID string, state []byte) ([]byte, error) {
	return encode(signedState{
		Key:       key.Public().(ed25519.PublicKey),
		Signature: ed25519.Sign(key, stateMessage(meshID, state)),
		State:     state,
	})
}

func stateMessage(meshID string, state []byte) []byte {
	b := make([]byte, 0, len(stateContext)+len(meshID)+len(state))
	b = append(b, stateContext...)
	b = append(b, meshID...)
	return append(b, state...)
}

// openState returns the state in b and who signed it.
func openState(meshID string, b []byte) ([]byte, NodeID, error) {
	if len(b) > maxState+256 {
		return nil, "", fmt.Errorf("%w: state of %d bytes", ErrTooLarge, len(b))
	}
	var s signedState
	if err := decode(b, &s); err != nil {
		return nil, "", err
	}
	if len(s.Key) != ed25519.PublicKeySize || len(s.Signature) != ed25519.SignatureSize ||
		!ed25519.Verify(s.Key, stateMessage(meshID, s.State), s.Signature) {
		return nil, "", fmt.Errorf("%w: state's signature is wrong", ErrMalformed)
	}
	return s.State, DeriveNodeID(s.Key), nil
}

// LocalState implements memberlist.Delegate.
func (d gossipDelegate) LocalState(bool) []byte {
	if d.m.cfg.Directory == nil {
		return nil
	}
	state := d.m.cfg.Directory.State()
	if len(state) > maxState {
		d.m.log.Error("directory too large to exchange", "bytes", len(state), "max", maxState)
		return nil
	}
	b, err := signState(d.m.ms.identity.key, d.m.ms.MeshID, state)
	if err != nil {
		d.m.log.Error("directory not exchanged", "err", err)
		return nil
	}
	return b
}

// MergeRemoteState implements memberlist.Delegate.
func (d gossipDelegate) MergeRemoteState(b []byte, _ bool) {
	if d.m.cfg.Directory == nil || len(b) == 0 {
		return
	}
	state, peer, err := openState(d.m.ms.MeshID, b)
	if err != nil {
		d.m.log.Warn("directory state refused", "err", err)
		return
	}
	// Anyone can make a key; only members are believed.
	if mem, ok := d.m.Member(peer); (!ok || mem.Self) && !d.m.t.knows(peer) {
		d.m.log.Debug("directory state of a stranger ignored", "peer", peer)
		return
	}
	d.m.cfg.Directory.Merge(state, peer)
}

// knows reports whether a peer has proved its identity with a certificate.
func (t *transport) knows(id NodeID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peers[id]
	return p != nil && p.tier != 0
}

func (m *Mesh) memberlistConfig(g *gossipTransport) *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	t := &m.cfg.Gossip
	c.Name = string(m.ms.ID)
	c.Transport = g
	c.AdvertisePort = gossipPort
	c.BindPort = gossipPort
	c.ProtocolVersion = memberlist.ProtocolVersionMax
	c.TCPTimeout = streamTimeout
	c.GossipInterval = t.Interval
	c.GossipNodes = gossipFan
	c.ProbeInterval = t.ProbeInterval
	c.ProbeTimeout = t.ProbeTimeout
	c.PushPullInterval = t.PushPullInterval
	c.SuspicionMult = t.SuspicionMult
	c.RetransmitMult = t.RetransmitMult
	c.GossipToTheDeadTime = t.DeadTime
	c.UDPBufferSize = gossipPacket
	// QUIC encrypts, and records and states do not compress well.
	c.EnableCompression = false
	c.RequireNodeNames = true
	d := gossipDelegate{m}
	c.Delegate, c.Events, c.Alive = d, d, d
	c.Ping = pingDelegate{m}
	c.Logger = log.New(memberlistLog{m.log}, "", 0)
	return c
}

// memberlistLog brings memberlist's lines into our log. Its warnings are about
// what gossip deals with by itself.
type memberlistLog struct{ log *slog.Logger }

func (l memberlistLog) Write(b []byte) (int, error) {
	level, text := slog.LevelDebug, strings.TrimSpace(string(b))
	if rest, ok := strings.CutPrefix(text, "[ERR] "); ok {
		level, text = slog.LevelInfo, rest
	} else if i := strings.Index(text, "] "); i >= 0 && strings.HasPrefix(text, "[") {
		text = text[i+2:]
	}
	l.log.Log(context.Background(), level, "gossip", "detail", strings.TrimPrefix(text, "memberlist: "))
	return len(b), nil
}
