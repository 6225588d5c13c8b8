package mesh

import (
	"cmp"
	"context"
	crand "crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/zeebo/blake3"
	"golang.org/x/time/rate"
)

// Application protocols (RFC 7301). The version is in the name.
const (
	alpnUrgent = "meshnode/1"
	alpnBulk   = "meshnode-bulk/1"
	alpnJoin   = "meshnode-join/1"
	alpnClient = "meshnode-client/1"
)

var alpnOf = func() (names [classes]string) {
	names[Urgent], names[Bulk] = alpnUrgent, alpnBulk
	for c := lane1; c < classes; c++ {
		names[c] = fmt.Sprintf("meshnode-lane%d/1", c-Bulk)
	}
	return names
}()

// Codes with which connections are closed.
const (
	closeNormal     = 0x00
	closeLeaving    = 0x01 // the node stops
	closeSuperseded = 0x02 // another connection to this peer is in use
	closeForeign    = 0x04 // the other side belongs to another mesh
	closeBusy       = 0x05
	closeProtocol   = 0x06 // the other side broke the rules
	closeWrongPeer  = 0x07 // another node was called
	// closeUnused and all above it say that there was no use for the connection,
	// and which streams of the peer's the node that closes it has not taken:
	// those from number code-closeUnused on, counted from 0 as their ids are. The
	// peer may open one at that very moment, and may then do so elsewhere
	// (RFC 9114, section 5.2, has the same in its GOAWAY frame).
	closeUnused = 0x100
)

// TLS alerts (RFC 8446, section 6.2, and RFC 7301) as QUIC carries them (RFC
// 9001, section 4.8).
const (
	alertBadCert     = 0x100 + 42 // from here to alertUnknownCert: about a certificate
	alertUnknownCert = 0x100 + 46
	alertUnknownCA   = 0x100 + 48
	alertNoCert      = 0x100 + 116
	alertNoProtocol  = 0x100 + 120
)

const (
	// dialTimeout bounds setting up a connection, all endpoints together.
	dialTimeout = 8 * time.Second
	// handshakeTimeout bounds the wait for one endpoint's next packet.
	handshakeTimeout = 4 * time.Second
	// dialStagger is the head start an endpoint has before the next is tried
	// beside it (RFC 8305 calls it the connection attempt delay).
	dialStagger = 150 * time.Millisecond
	// headerTimeout bounds how long a stream may be open without saying what
	// it is for.
	headerTimeout = 10 * time.Second
	// maxStreams is how many streams a peer may have open on one connection.
	maxStreams = 1024
	// reapInterval is how often idle and superseded connections are looked for.
	reapInterval = 5 * time.Second
	// idleBulk and idleUrgent are after how long an unused connection closes.
	idleBulk   = time.Minute
	idleUrgent = 3 * time.Minute
	// maxIdleUrgent is how many unused urgent connections are kept while there
	// are others; above it, those unused for longest close early. Gossip needs
	// some dozens of neighbours, not everyone: a connection costs memory, a
	// hundred KiB or so, and a packet every KeepAlive each way.
	maxIdleUrgent = 64
	// maxRequests bounds how often a request is made that no peer takes.
	maxRequests = 3
	// minNeighbours is how many connections a node has before it begins to give
	// news to those it is connected to rather than call others.
	minNeighbours = 32
	// probeTimeout is how long a superseded connection with streams on it may
	// take to show that it still carries them.
	probeTimeout = 2 * time.Second

	// Flow control windows, in bytes. A stream starts with what fills a fast
	// LAN for a millisecond; quic-go doubles it as the reader keeps up. The
	// largest fill 100 ms at 1.3 Gbit/s.
	streamWindow    = 1 << 20
	maxStreamWindow = 16 << 20
	connWindow      = 2 << 20
	maxConnWindow   = 24 << 20
	// windowBudget bounds what all connections together may grow by.
	windowBudget = 256 << 20

	// newConnRate is how many new connections a second are taken before an
	// unknown address must first show that it is not spoofed, which costs a
	// round trip (RFC 9000, section 8.1.2).
	newConnRate  = 50
	newConnBurst = 100
)

// maxCandidates bounds how many endpoints of one peer are tried.
const maxCandidates = 2*maxEndpoints + 2

// A transport keeps at most one connection in use for each peer and class,
// over one socket, and does not insist on it at once:
//
//   - A call from a peer is always taken: it may be the only way to reach it,
//     and a connection that exists already may have failed in the peer's eyes.
//     (Refusing calls while calling oneself was tried, to keep one connection
//     where both call at the same moment. With a peer behind a NAT, or at a new
//     address, the own call never arrives, and the two never met.)
//   - The newest connection is the one in use. Older ones stay for the streams
//     on them, as long as they answer a ping.
//   - Of connections nobody uses, only the lower id closes the superseded ones:
//     the two sides may differ in which came last, and would close both.
type transport struct {
	ms   *Membership
	id   NodeID
	boot bootID
	log  *slog.Logger
	gate logGate // for what strangers can cause

	keepAlive, idleTimeout, backoff time.Duration

	maxIdle, neighbours int // maxIdleUrgent and minNeighbours; tests lower them

	pc      net.PacketConn
	qt      *quic.Transport
	ln      *quic.Listener
	tlsCert tls.Certificate
	newConn *rate.Limiter

	handlers map[string]Handler
	// clientHandlers serve the streams of clients.
	clientHandlers map[string]Handler
	serveJoin      func(ctx context.Context, q *quic.Conn)
	onDatagram     func(from NodeID, b []byte) // must not block
	endpoints      func() []netip.AddrPort     // own

	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	closing bool // clients are no longer served
	peers   map[NodeID]*peer
	gossip  map[netip.Addr]NodeID // by synthetic address
	clients map[*quic.Conn]bool   // connections of clients
	windows map[*quic.Conn]uint64 // growth granted
	granted uint64                // sum of windows
}

// A bootID tells one run of a node's process from the next.
type bootID [8]byte

// A peer is what the transport knows of a node. Its fields are guarded by
// transport.mu.
type peer struct {
	id         NodeID
	links      [classes]link
	record     []netip.AddrPort // from its record
	remembered []netip.AddrPort // from before
	observed   netip.AddrPort   // where it last called from, or answered
	failing    bool             // the last connection broke or could not be made
	left       bool             // it closed the connection to leave
	tier       Tier             // as certified; zero before the first connection
	authority  bool
	retryAt    time.Time // no dialling in the background before
	queue      chan datagram
	sending    bool // a sendLoop runs
}

// A datagram waits to be sent to a peer.
type datagram struct {
	b   []byte
	use bool // it counts as use of the connection
}

// A link is the connections of one class to a peer.
type link struct {
	conns   []*conn // alive; the last is in use
	dialing *attempt
}

func (l *link) current() *conn {
	if len(l.conns) == 0 {
		return nil
	}
	return l.conns[len(l.conns)-1]
}

// A conn is one QUIC connection to a peer that has proved its identity.
type conn struct {
	t       *transport
	peer    *peer
	class   Class
	q       *quic.Conn
	dialled bool // by this node
	boot    bootID
	since   time.Time

	streams  atomic.Int64  // open ones of both sides; negative once retired
	taken    atomic.Uint64 // how many of the peer's have been taken
	lastUsed atomic.Int64  // nanoseconds since epoch
	probing  atomic.Bool
}

// An attempt is a dialling under way, for everyone who waits for it.
type attempt struct {
	anew context.CancelFunc // ends the calls under way; guarded by transport.mu
	done chan struct{}      // closed when conn or err is set
	conn *conn
	err  error
}

// epoch is what lastUsed counts from, on the monotonic clock.
var epoch = time.Now()

func (c *conn) touch() { c.lastUsed.Store(int64(time.Since(epoch))) }

func (c *conn) idleFor() time.Duration { return time.Since(epoch) - time.Duration(c.lastUsed.Load()) }

// alive reports whether streams can be opened on c.
func (c *conn) alive() bool { return c.q.Context().Err() == nil && c.streams.Load() >= 0 }

// retired is what conn.streams is once the connection is given up: those who
// find it so and take their stream off again do not make it positive.
const retired = math.MinInt64 / 2

// hold notes one more stream on c, unless c is retired.
func (c *conn) hold() bool {
	if c.streams.Add(1) < 0 {
		c.streams.Add(-1)
		return false
	}
	c.touch()
	return true
}

// retire makes sure that no stream begins on c any more, on this side or the
// peer's, and returns the code to close it with. It fails while c is in use.
func (c *conn) retire() (quic.ApplicationErrorCode, bool) {
	if !c.streams.CompareAndSwap(0, retired) {
		return 0, false
	}
	return closeUnused + quic.ApplicationErrorCode(c.taken.Load()), true
}

func (c *conn) endpoint() netip.AddrPort { return endpointOf(c.q.RemoteAddr()) }

// why says in this package's words why the connection is of no more use.
func (c *conn) why(err error) error { return connError(err) }

// connError translates quic-go's errors. What remains is ErrUnreachable.
func connError(err error) error {
	var (
		te *quic.TransportError
		ae *quic.ApplicationError
	)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrForeignMesh), errors.Is(err, ErrWrongPeer), errors.Is(err, ErrNotMesh):
		return err
	case errors.As(err, &ae):
		if !ae.Remote {
			if ae.ErrorCode == closeLeaving {
				return ErrClosed
			}
			return fmt.Errorf("%w: this node closed the connection: %s", ErrUnreachable, clip(ae.ErrorMessage, 200))
		}
		switch ae.ErrorCode {
		case closeForeign:
			return fmt.Errorf("%w: it says: %q", ErrForeignMesh, clip(ae.ErrorMessage, 200))
		case closeBusy:
			return ErrBusy
		}
		return fmt.Errorf("%w: it closed the connection: %q", ErrUnreachable, clip(ae.ErrorMessage, 200))
	case errors.As(err, &te):
		switch {
		case te.ErrorCode == alertNoProtocol:
			return fmt.Errorf("%w: no common protocol", ErrNotMesh)
		case te.Remote && (te.ErrorCode >= alertBadCert && te.ErrorCode <= alertUnknownCert ||
			te.ErrorCode == alertUnknownCA || te.ErrorCode == alertNoCert):
			return fmt.Errorf("%w: it refused our certificate (%v)", ErrForeignMesh, te.ErrorCode)
		}
		return fmt.Errorf("%w: %v", ErrUnreachable, err)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	}
	return fmt.Errorf("%w: %v", ErrUnreachable, err)
}

func newTransport(ms *Membership, cfg *Config, pc net.PacketConn) *transport {
	t := &transport{
		ms: ms, id: ms.ID, log: cfg.Log,
		keepAlive: cfg.KeepAlive, idleTimeout: cfg.IdleTimeout, backoff: cfg.Gossip.ProbeInterval,
		pc: pc, tlsCert: ms.tlsCertificate(),
		maxIdle: maxIdleUrgent, neighbours: minNeighbours,
		newConn:  rate.NewLimiter(newConnRate, newConnBurst),
		handlers: make(map[string]Handler), clientHandlers: make(map[string]Handler),
		clients: make(map[*quic.Conn]bool),
		peers:   make(map[NodeID]*peer),
		gossip:  make(map[netip.Addr]NodeID),
		windows: make(map[*quic.Conn]uint64),
	}
	t.gate.limit = rate.NewLimiter(rate.Every(time.Second), 10)
	crand.Read(t.boot[:])
	t.ctx, t.cancel = context.WithCancelCause(context.Background())
	// With a key that survives a restart, peers that still hold connections to
	// the earlier process hear at the first packet that they are gone.
	var reset quic.StatelessResetKey
	blake3.DeriveKey("meshnode 2025 quic stateless reset", ms.identity.key.Seed(), reset[:])
	t.qt = &quic.Transport{
		Conn:                pc,
		ConnectionIDLength:  8,
		StatelessResetKey:   &reset,
		VerifySourceAddress: func(net.Addr) bool { return !t.newConn.Allow() },
		ConnContext:         t.inboundContext,
	}
	return t
}

func (t *transport) quicConfig() *quic.Config {
	return &quic.Config{
		HandshakeIdleTimeout:           handshakeTimeout,
		MaxIdleTimeout:                 t.idleTimeout,
		KeepAlivePeriod:                t.keepAlive,
		InitialStreamReceiveWindow:     streamWindow,
		MaxStreamReceiveWindow:         maxStreamWindow,
		InitialConnectionReceiveWindow: connWindow,
		MaxConnectionReceiveWindow:     maxConnWindow,
		AllowConnectionWindowIncrease:  t.growWindow,
		MaxIncomingStreams:             maxStreams,
		MaxIncomingUniStreams:          -1,
		EnableDatagrams:                true,
	}
}

// growWindow bounds the memory that peers together can make this node hold.
// Clients, of which there may be many, do with what a connection begins with.
func (t *transport) growWindow(q *quic.Conn, delta uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.granted+delta > windowBudget || t.clients[q] {
		return false
	}
	t.granted += delta
	t.windows[q] += delta
	return true
}

func (t *transport) releaseWindow(q *quic.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.granted -= t.windows[q]
	delete(t.windows, q)
}

// A logGate keeps strangers from filling the log.
type logGate struct {
	limit *rate.Limiter
	held  atomic.Int64
}

func (g *logGate) log(l *slog.Logger, msg string, args ...any) {
	if !g.limit.Allow() {
		g.held.Add(1)
		return
	}
	if n := g.held.Swap(0); n > 0 {
		args = append(args, "unloggedBefore", n)
	}
	l.Warn(msg, args...)
}

type inboundKey struct{}

// An inbound marks a connection attempt from outside until it is accepted.
type inbound struct{ accepted atomic.Bool }

// inboundContext makes handshakes that fail known: the listener returns only
// those that succeed.
func (t *transport) inboundContext(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
	in := new(inbound)
	context.AfterFunc(ctx, func() {
		if in.accepted.Load() || t.ctx.Err() != nil {
			return
		}
		reason, refused := inboundReason(context.Cause(ctx))
		if !refused {
			t.log.Debug("connection not made", "from", info.RemoteAddr, "cause", reason)
			return
		}
		t.gate.log(t.log, "refused connection", "from", info.RemoteAddr, "reason", reason)
	})
	return context.WithValue(ctx, inboundKey{}, in), nil
}

// inboundReason says why a handshake from outside failed, from this side, and
// whether either side refused the other: a caller that gave up, since another
// of this node's addresses was faster or packets were lost, is ordinary.
func inboundReason(err error) (reason error, refused bool) {
	var te *quic.TransportError
	if !errors.As(err, &te) || !te.ErrorCode.IsCryptoError() {
		return err, false
	}
	switch {
	case te.Remote:
		err = fmt.Errorf("the caller refused this node's certificate: another mesh? (%v)", te.ErrorCode)
	case te.ErrorCode == alertNoProtocol:
		err = errors.New("the caller speaks no meshnode protocol")
	case te.ErrorCode == alertNoCert:
		err = errors.New("the caller showed no certificate")
	}
	return err, true
}

// serverTLS chooses what a caller must show by the protocol it asks for.
func (t *transport) serverTLS() *tls.Config {
	base := tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{t.tlsCert},
		SessionTicketsDisabled: true, // every connection proves its key anew
	}
	member := base.Clone()
	member.NextProtos = append(alpnOf[:], alpnClient)
	member.ClientAuth = tls.RequireAnyClientCert
	member.VerifyConnection = func(cs tls.ConnectionState) error {
		if cs.NegotiatedProtocol == alpnClient {
			_, err := verifyClient(cs, t.ms.ca)
			return err
		}
		_, err := t.verify(cs)
		return err
	}
	join := base.Clone()
	join.NextProtos = []string{alpnJoin}
	outer := member.Clone()
	outer.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		if slices.Contains(h.SupportedProtos, alpnJoin) {
			return join, nil
		}
		return member, nil
	}
	return outer
}

func (t *transport) clientTLS(class Class, want NodeID) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{t.tlsCert},
		NextProtos:   []string{alpnOf[class]},
		// Names mean nothing here: the certificate's key is the node's name,
		// and VerifyConnection checks it against this mesh's CA alone.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			p, err := t.verify(cs)
			if err != nil {
				return err
			}
			if want != "" && p.id != want {
				return fmt.Errorf("%w: %s", ErrWrongPeer, p.id)
			}
			return nil
		},
	}
}

func (t *transport) verify(cs tls.ConnectionState) (peerCert, error) {
	if len(cs.PeerCertificates) == 0 {
		return peerCert{}, fmt.Errorf("%w: no certificate", ErrForeignMesh)
	}
	return verifyNode(cs.PeerCertificates[0], t.ms.ca, time.Now())
}

// listen begins to take packets in.
func (t *transport) listen() error {
	ln, err := t.qt.Listen(t.serverTLS(), t.quicConfig())
	if err != nil {
		return fmt.Errorf("listen on %v: %w", t.pc.LocalAddr(), err)
	}
	t.ln = ln
	return nil
}

// run accepts connections until ctx is done or the socket fails.
func (t *transport) run(ctx context.Context) error {
	t.goes(func() { t.reapLoop() })
	for {
		q, err := t.ln.Accept(ctx)
		if err != nil {
			if ctx.Err() != nil || t.ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept on %v: %w", t.pc.LocalAddr(), err)
		}
		if in, ok := q.Context().Value(inboundKey{}).(*inbound); ok {
			in.accepted.Store(true)
		}
		if !t.goes(func() { t.serveInbound(q) }) {
			q.CloseWithError(closeLeaving, "node is leaving")
		}
	}
}

// goes runs f in a goroutine that close waits for, unless it is too late.
func (t *transport) goes(f func()) bool {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return false
	}
	t.wg.Add(1)
	t.mu.Unlock()
	go func() {
		defer t.wg.Done()
		f()
	}()
	return true
}

// close says good-bye on every connection and waits for everything started.
func (t *transport) close() error {
	t.closeClients()
	t.mu.Lock()
	t.closed = true
	var all []*conn
	for _, p := range t.peers {
		for i := range p.links {
			all = append(all, p.links[i].conns...)
		}
	}
	t.mu.Unlock()
	t.cancel(ErrClosed)
	var wg sync.WaitGroup
	for _, c := range all {
		wg.Go(func() { c.q.CloseWithError(closeLeaving, "node is leaving") })
	}
	wg.Wait()
	var errs []error
	if t.ln != nil {
		errs = append(errs, t.ln.Close())
		errs = append(errs, t.qt.Close())
	}
	errs = append(errs, t.pc.Close())
	t.wg.Wait()
	return errors.Join(errs...)
}

// peerLocked returns the entry of id, made if need be.
func (t *transport) peerLocked(id NodeID) *peer {
	p := t.peers[id]
	if p == nil {
		p = &peer{id: id, queue: make(chan datagram, packetQueue)}
		t.peers[id] = p
		t.gossip[gossipAddr(id)] = id
	}
	return p
}

// learn takes in the endpoints of a peer's record. A connection this node
// dialled to an endpoint that has vanished from the record is replaced ahead of
// its failure.
func (t *transport) learn(id NodeID, eps []netip.AddrPort) {
	t.mu.Lock()
	p := t.peerLocked(id)
	changed := !slices.Equal(p.record, eps)
	first := p.record == nil
	p.record = slices.Clone(eps)
	var stale []Class
	if changed {
		p.retryAt = time.Time{}
		for i := range p.links {
			if a := p.links[i].dialing; a != nil {
				a.anew() // what it is calling may be an old address
			}
		}
	}
	for class := range Class(classes) {
		c := p.links[class].current()
		if changed && !first && c != nil && c.dialled && len(eps) > 0 && !slices.Contains(eps, c.endpoint()) {
			stale = append(stale, class)
		}
	}
	t.mu.Unlock()
	for _, class := range stale {
		t.log.Debug("peer has moved, calling it anew", "peer", id, "class", class)
		t.redial(id, class)
	}
}

// recall takes in endpoints from an earlier time.
func (t *transport) recall(id NodeID, eps []netip.AddrPort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.peerLocked(id).remembered = mergeEndpoints(nil, eps...)
}

// forget drops a peer nobody talks about any more.
func (t *transport) forget(id NodeID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peers[id]
	if p == nil || p.sending {
		return
	}
	for i := range p.links {
		if len(p.links[i].conns) > 0 || p.links[i].dialing != nil {
			return
		}
	}
	delete(t.peers, id)
	delete(t.gossip, gossipAddr(id))
}

// candidatesLocked returns where to look for p, best first.
func (p *peer) candidatesLocked() []netip.AddrPort {
	var list []netip.AddrPort
	add := func(eps ...netip.AddrPort) {
		for _, a := range eps {
			if len(list) < maxCandidates && validEndpoint(a) && !slices.Contains(list, a) {
				list = append(list, a)
			}
		}
	}
	// What the node says itself counts most; of that, where a connection to it
	// is right now, or was. An address that it does not name may be one it has
	// moved away from, or one that only a NAT knows: after the others.
	var now []netip.AddrPort
	for i := range p.links {
		if c := p.links[i].current(); c != nil {
			now = append(now, c.endpoint())
		}
	}
	now = append(now, p.observed)
	for _, a := range now {
		if slices.Contains(p.record, a) {
			add(a)
		}
	}
	add(p.record...)
	add(now...)
	add(p.remembered...)
	return list
}

// status is what Members shows of a peer.
func (t *transport) status(id NodeID) (endpoint netip.AddrPort, failing bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peers[id]
	if p == nil {
		return netip.AddrPort{}, false
	}
	for i := range p.links {
		if c := p.links[i].current(); c != nil {
			return c.endpoint(), false
		}
	}
	return netip.AddrPort{}, p.failing
}

// open opens a stream, calling the peer first if need be.
func (t *transport) open(ctx context.Context, id NodeID, protocol string, class Class) (*Stream, error) {
	if err := checkProtocol(protocol); err != nil {
		return nil, err
	}
	if class >= classes {
		return nil, fmt.Errorf("%w: %v", ErrMalformed, class)
	}
	for try := 0; ; try++ {
		c, err := t.connect(ctx, id, class)
		if err != nil {
			return nil, err
		}
		s, err := c.open(ctx, protocol)
		if err == nil {
			return s, nil
		}
		// The connection may have died since we looked; once is chance.
		if c.alive() || try > 0 || ctx.Err() != nil {
			return nil, err
		}
		t.gone(c)
	}
}

// request opens a stream and has do make a request on it and read the answer.
// A peer closes connections that it has no use for, and may do so at the moment
// when this node makes use of one: do is called anew, on another connection, if
// the peer says that it has not taken the stream. What it may have taken is not
// asked again.
func (t *transport) request(ctx context.Context, id NodeID, protocol string, class Class, do func(*Stream) error) error {
	once := func() error {
		s, err := t.open(ctx, id, protocol, class)
		if err != nil {
			return err
		}
		defer s.Close()
		stop := context.AfterFunc(ctx, func() { s.SetDeadline(time.Unix(1, 0)) })
		defer stop()
		if err = do(s); err == nil {
			return nil
		}
		if errors.Is(err, ErrNotTaken) {
			t.gone(s.conn) // the next one is to go by another
		} else if ctx.Err() != nil {
			err = ctx.Err()
		}
		return err
	}
	return Again(ctx, once)
}

func (c *conn) open(ctx context.Context, protocol string) (*Stream, error) {
	if !c.hold() {
		return nil, fmt.Errorf("open stream %s to %s: %w: this node had no use for the connection", protocol, c.peer.id, ErrUnreachable)
	}
	q, err := c.q.OpenStreamSync(ctx)
	if err != nil {
		c.streams.Add(-1)
		if ctx.Err() != nil {
			return nil, fmt.Errorf("open stream %s to %s: %w", protocol, c.peer.id, err)
		}
		return nil, fmt.Errorf("open stream %s to %s: %w", protocol, c.peer.id, c.why(err))
	}
	s := &Stream{q: q, conn: c, protocol: protocol, opened: true}
	if _, err := s.Write(appendHeader(make([]byte, 0, 1+maxProtocol), protocol)); err != nil {
		s.Reset(resetClosed)
		return nil, err
	}
	return s, nil
}

// connect returns the connection in use, or dials one. Everyone who waits for
// the same peer and class shares one attempt.
func (t *transport) connect(ctx context.Context, id NodeID, class Class) (*conn, error) {
	if id == t.id {
		return nil, fmt.Errorf("%w: %s is this node", ErrUnknownPeer, id)
	}
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil, ErrClosed
	}
	p := t.peers[id]
	if p == nil {
		t.mu.Unlock()
		return nil, fmt.Errorf("%w: %s", ErrUnknownPeer, clip(string(id), idChars))
	}
	if c := p.links[class].current(); c != nil && c.alive() {
		t.mu.Unlock()
		return c, nil
	}
	a := t.dialLocked(p, class)
	t.mu.Unlock()
	select {
	case <-a.done:
		return a.conn, a.err
	case <-ctx.Done():
		return nil, fmt.Errorf("connect to %s: %w", id, ctx.Err())
	}
}

// redial calls a peer although there is a connection, whose path may have gone.
func (t *transport) redial(id NodeID, class Class) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.peers[id]; p != nil && !t.closed {
		t.dialLocked(p, class)
	}
}

// dialLocked starts an attempt unless one is under way.
func (t *transport) dialLocked(p *peer, class Class) *attempt {
	l := &p.links[class]
	if l.dialing != nil {
		return l.dialing
	}
	a := &attempt{done: make(chan struct{}), anew: func() {}}
	l.dialing = a
	t.wg.Add(1)
	go func() {
		defer t.wg.Done()
		ctx, cancel := context.WithTimeout(t.ctx, dialTimeout)
		defer cancel()
		q, err := t.call(ctx, a, p, class)
		if err == nil {
			err = t.greet(ctx, q, class)
		}
		if err == nil {
			return // registered, which settled the attempt
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		if l.dialing != a {
			return // settled by the peer's call
		}
		p.failing = len(l.conns) == 0
		p.retryAt = time.Now().Add(t.backoff)
		t.settleLocked(l, nil, fmt.Errorf("connect to %s: %w", p.id, err))
	}()
	return a
}

// settleLocked gives those who wait for the attempt on l, if any, its result.
func (t *transport) settleLocked(l *link, c *conn, err error) {
	a := l.dialing
	if a == nil {
		return
	}
	l.dialing = nil
	a.conn, a.err = c, err
	close(a.done)
	// A call that has not been answered yet is given up. One that has been is
	// completed, since the peer may be using it already.
	a.anew()
}

// call tries the endpoints of p, and starts over when others become known. It
// gives up when the attempt is settled otherwise.
func (t *transport) call(ctx context.Context, a *attempt, p *peer, class Class) (*quic.Conn, error) {
	for {
		once, stop := context.WithCancel(ctx)
		t.mu.Lock()
		settled := p.links[class].dialing != a
		a.anew = stop
		cands := p.candidatesLocked()
		t.mu.Unlock()
		if settled {
			stop()
			return nil, fmt.Errorf("%w: the peer's call was faster", ErrUnreachable)
		}
		if len(cands) == 0 {
			stop()
			return nil, fmt.Errorf("%w: no endpoint of it is known", ErrUnreachable)
		}
		q, err := race(once, cands, t.dialer(class, p.id))
		again := once.Err() != nil && ctx.Err() == nil
		stop()
		if err == nil || !again {
			return q, err
		}
	}
}

// race tries endpoints one after the other, each with a short head start, and
// returns the first connection that dial is content with.
func race(ctx context.Context, cands []netip.AddrPort, dial func(context.Context, netip.AddrPort) (*quic.Conn, error)) (*quic.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	type result struct {
		q    *quic.Conn
		addr netip.AddrPort
		err  error
	}
	results := make(chan result, len(cands))
	running := 0
	defer func() {
		// Losers that made it all the same are closed, not leaked.
		cancel()
		for ; running > 0; running-- {
			if r := <-results; r.q != nil {
				r.q.CloseWithError(closeSuperseded, "another endpoint was faster")
			}
		}
	}()
	timer := time.NewTimer(dialStagger)
	defer timer.Stop()
	next, start := 0, true
	var errs []error
	for {
		if start && next < len(cands) {
			addr := cands[next]
			next++
			running++
			go func() {
				q, err := dial(ctx, addr)
				results <- result{q, addr, err}
			}()
			timer.Reset(dialStagger)
		}
		start = false
		if running == 0 {
			return nil, errors.Join(errs...)
		}
		select {
		case r := <-results:
			running--
			if r.err == nil {
				return r.q, nil
			}
			if ctx.Err() != nil {
				// Out of time, not refused.
				errs = append(errs, fmt.Errorf("%v: %w: no answer in time", r.addr, ErrUnreachable))
				next = len(cands)
			} else {
				errs = append(errs, fmt.Errorf("%v: %w", r.addr, connError(r.err)))
			}
			start = true
		case <-timer.C:
			start = true
		}
	}
}

// dialer returns how to reach want, or any member when want is empty.
func (t *transport) dialer(class Class, want NodeID) func(context.Context, netip.AddrPort) (*quic.Conn, error) {
	return func(ctx context.Context, a netip.AddrPort) (*quic.Conn, error) {
		return t.qt.Dial(ctx, net.UDPAddrFromAddrPort(a), t.clientTLS(class, want), t.quicConfig())
	}
}

// The first stream on a member connection, opened by the caller. Without it the
// caller would not know whether its certificate was accepted, since in TLS 1.3
// the server checks it after the client is done.
const protoHello = "mesh/hello"

const maxHello = 1024

type hello struct {
	Endpoints endpointList `cbor:"1,keyasint,omitempty"` // the caller's own
	Boot      []byte       `cbor:"2,keyasint"`
}

type helloReply struct {
	Boot []byte `cbor:"1,keyasint"`
}

// greet completes a connection this node dialled.
func (t *transport) greet(ctx context.Context, q *quic.Conn, class Class) error {
	cert, err := t.verify(q.ConnectionState().TLS)
	if err != nil {
		q.CloseWithError(closeForeign, "certificate of another mesh")
		return err
	}
	r, err := t.sayHello(ctx, q)
	if err != nil {
		if q.Context().Err() != nil {
			err = context.Cause(q.Context())
		}
		q.CloseWithError(closeProtocol, "no answer to hello")
		return fmt.Errorf("%v: %w", endpointOf(q.RemoteAddr()), connError(err))
	}
	if !t.register(q, cert, class, true, bootID(r.Boot)) {
		q.CloseWithError(closeLeaving, "node is leaving")
		return ErrClosed
	}
	return nil
}

func (t *transport) sayHello(ctx context.Context, q *quic.Conn) (r helloReply, err error) {
	s, err := q.OpenStreamSync(ctx)
	if err != nil {
		return r, err
	}
	stop := context.AfterFunc(ctx, func() { s.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	defer s.CancelRead(resetClosed)
	if _, err := s.Write(appendHeader(nil, protoHello)); err != nil {
		return r, err
	}
	if err := WriteMessage(s, hello{Endpoints: t.endpoints(), Boot: t.boot[:]}); err != nil {
		return r, err
	}
	_ = s.Close() // the far side may have read all it needs, and said so: then it has answered
	if err := ReadMessage(s, maxHello, &r); err != nil {
		return r, err
	}
	if len(r.Boot) != len(bootID{}) {
		return r, fmt.Errorf("%w: boot id of %d bytes", ErrMalformed, len(r.Boot))
	}
	return r, nil
}

// serveInbound serves a connection that completed its handshake.
func (t *transport) serveInbound(q *quic.Conn) {
	cs := q.ConnectionState().TLS
	var class Class
	switch cs.NegotiatedProtocol {
	case alpnJoin:
		t.serveJoin(t.ctx, q)
		t.releaseWindow(q)
		return
	case alpnClient:
		t.serveClient(q)
		return
	default:
		i := slices.Index(alpnOf[:], cs.NegotiatedProtocol)
		if i < 0 { // TLS has negotiated one of ours
			q.CloseWithError(closeProtocol, "unknown protocol")
			return
		}
		class = Class(i)
	}
	cert, err := t.verify(cs)
	if err != nil {
		t.gate.log(t.log, "refused connection", "from", q.RemoteAddr(), "reason", err)
		q.CloseWithError(closeForeign, "certificate of another mesh")
		return
	}
	if err := t.answerHello(q, cert, class); err != nil {
		if q.Context().Err() == nil {
			t.gate.log(t.log, "refused connection", "from", q.RemoteAddr(), "peer", cert.id, "reason", err)
		}
		q.CloseWithError(closeProtocol, "hello expected")
	}
}

func (t *transport) answerHello(q *quic.Conn, cert peerCert, class Class) error {
	ctx, cancel := context.WithTimeout(t.ctx, headerTimeout)
	defer cancel()
	s, err := q.AcceptStream(ctx)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { s.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	defer s.CancelRead(resetClosed)
	proto, err := readHeader(s)
	if err != nil {
		return err
	}
	if proto != protoHello {
		return fmt.Errorf("%w: first stream is %q", ErrMalformed, proto)
	}
	var h hello
	if err := ReadMessage(s, maxHello, &h); err != nil {
		return err
	}
	if len(h.Boot) != len(bootID{}) {
		return fmt.Errorf("%w: boot id of %d bytes", ErrMalformed, len(h.Boot))
	}
	if cert.id == t.id {
		return errors.New("called by myself")
	}
	t.mu.Lock()
	p := t.peerLocked(cert.id)
	// What it says now counts more than what was remembered; its record, when
	// gossip brings it, counts more.
	p.remembered = mergeEndpoints(nil, append(h.Endpoints, p.remembered...)...)
	t.mu.Unlock()
	if !t.register(q, cert, class, false, bootID(h.Boot)) {
		return ErrClosed
	}
	r := helloReply{Boot: t.boot[:]}
	if err := WriteMessage(s, r); err != nil {
		return err
	}
	_ = s.Close() // the caller may have read all it needs, and said so
	return nil
}

// register puts a connection to use. It reports false when the mesh is closing.
func (t *transport) register(q *quic.Conn, cert peerCert, class Class, dialled bool, boot bootID) bool {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return false
	}
	p := t.peerLocked(cert.id)
	l := &p.links[class]
	c := &conn{t: t, peer: p, class: class, q: q, dialled: dialled, boot: boot, since: time.Now()}
	c.touch()
	var old, dead []*conn
	for i := range p.links {
		for _, o := range p.links[i].conns {
			if o.boot != boot {
				dead = append(dead, o)
			} else if o.class == class && o.streams.Load() > 0 {
				old = append(old, o)
			}
		}
	}
	l.conns = append(l.conns, c)
	p.observed = c.endpoint()
	p.failing, p.left = false, false
	p.tier, p.authority = cert.tier, cert.authority
	p.retryAt = time.Time{}
	t.settleLocked(l, c, nil)
	t.wg.Add(1)
	t.mu.Unlock()
	t.log.Debug("connected", "peer", cert.id, "class", class, "endpoint", c.endpoint(), "dialled", dialled)
	go func() {
		defer t.wg.Done()
		t.serve(c)
	}()
	// The peer called although it had a connection, or this node did: does the
	// old one still work?
	for _, o := range old {
		t.probe(o)
	}
	for _, o := range dead {
		t.goes(func() { t.shut(o, closeSuperseded, "the peer has restarted") })
	}
	return true
}

// serve takes in what the peer sends until the connection ends.
func (t *transport) serve(c *conn) {
	ctx := c.q.Context()
	var wg sync.WaitGroup
	defer func() {
		// Streams of a broken connection fail by themselves, so their handlers
		// return.
		wg.Wait()
		t.releaseWindow(c.q)
	}()
	if c.class == Urgent {
		wg.Go(func() {
			for {
				b, err := c.q.ReceiveDatagram(ctx)
				if err != nil {
					return
				}
				t.onDatagram(c.peer.id, b)
			}
		})
	}
	for {
		q, err := c.q.AcceptStream(ctx)
		if err != nil {
			break
		}
		if !c.hold() {
			<-ctx.Done() // with a code that says that this stream is not taken
			break
		}
		c.taken.Store(number(q) + 1)
		s := &Stream{q: q, conn: c}
		wg.Go(func() { t.serveStream(s, t.handlers) })
	}
	t.gone(c)
}

// serveStream has the handler of a stream's protocol serve it.
func (t *transport) serveStream(s *Stream, handlers map[string]Handler) {
	defer s.Close()
	s.SetReadDeadline(time.Now().Add(headerTimeout))
	proto, err := readHeader(s.q)
	if err != nil {
		s.Reset(resetBadHeader)
		t.log.Debug("stream without a header", "peer", s.Peer(), "err", err)
		return
	}
	s.SetReadDeadline(time.Time{})
	s.protocol = proto
	h := handlers[proto]
	if h == nil {
		t.log.Debug("stream for an unknown protocol", "peer", s.Peer(), "protocol", proto)
		s.Reset(resetUnknownProtocol)
		return
	}
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	stop := context.AfterFunc(t.ctx, cancel)
	defer stop()
	h(ctx, s)
	if t.ctx.Err() != nil {
		// Stopping, the handler may have returned half way: that must not look
		// like a proper end.
		s.Reset(resetShutdown)
	}
}

// gone takes a dead connection out of use.
func (t *transport) gone(c *conn) {
	if c.alive() {
		c.q.CloseWithError(closeNormal, "")
	}
	cause := context.Cause(c.q.Context()) // none yet if it has only just been retired
	t.mu.Lock()
	l := &c.peer.links[c.class]
	i := slices.Index(l.conns, c)
	if i < 0 {
		t.mu.Unlock()
		return
	}
	l.conns = slices.Delete(l.conns, i, i+1)
	var ae *quic.ApplicationError
	byChoice := errors.As(cause, &ae)
	if byChoice && ae.Remote && ae.ErrorCode == closeLeaving {
		c.peer.left = true
	}
	if len(l.conns) == 0 && !byChoice && cause != nil {
		c.peer.failing = true
	}
	t.mu.Unlock()
	t.log.Debug("disconnected", "peer", c.peer.id, "class", c.class, "cause", cause)
}

// reapLoop closes connections nobody uses.
func (t *transport) reapLoop() {
	tick := time.NewTicker(reapInterval)
	defer tick.Stop()
	for {
		select {
		case <-t.ctx.Done():
			return
		case <-tick.C:
			t.reap()
		}
	}
}

func (t *transport) reap() {
	type doomed struct {
		c   *conn
		why string
	}
	var close []doomed
	var probe, idle []*conn
	t.mu.Lock()
	for _, p := range t.peers {
		for class := range p.links {
			l := &p.links[class]
			for i, c := range l.conns {
				busy := c.streams.Load() > 0
				limit := idleUrgent
				if Class(class) != Urgent {
					limit = idleBulk
				}
				switch {
				case i < len(l.conns)-1 && time.Since(l.current().since) > reapInterval:
					if busy {
						probe = append(probe, c)
					} else if t.id < p.id {
						close = append(close, doomed{c, "superseded"})
					}
				case i == len(l.conns)-1 && !busy && c.idleFor() > limit:
					close = append(close, doomed{c, "idle"})
				case !busy && Class(class) == Urgent:
					idle = append(idle, c)
				}
			}
		}
	}
	if extra := len(idle) - t.maxIdle; extra > 0 {
		slices.SortFunc(idle, func(a, b *conn) int { return cmp.Compare(b.idleFor(), a.idleFor()) })
		for _, c := range idle[:extra] {
			if c.idleFor() > reapInterval {
				close = append(close, doomed{c, "unused for longer than others"})
			}
		}
	}
	t.mu.Unlock()
	for _, d := range close {
		if code, ok := d.c.retire(); ok { // else it has come to be used
			t.shut(d.c, code, d.why)
		}
	}
	for _, c := range probe {
		t.probe(c)
	}
}

// shut closes a connection on purpose.
func (t *transport) shut(c *conn, code quic.ApplicationErrorCode, why string) {
	c.q.CloseWithError(code, why)
	t.gone(c)
}

// probe closes c unless it answers a ping soon: its path may have gone with
// the peer's old address, and the streams on it should fail now rather than at
// the idle timeout. A peer that does not answer elsewhere either is busy or out
// of reach, which says nothing of this path: c stays, and the idle timeout
// bounds that.
func (t *transport) probe(c *conn) {
	if c.probing.Swap(true) {
		return
	}
	started := t.goes(func() {
		defer c.probing.Store(false)
		ctx, cancel := context.WithTimeout(t.ctx, t.idleTimeout)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_, _ = c.ping(ctx) // an error means that the connection has broken
		}()
		soon := func() bool {
			timer := time.NewTimer(probeTimeout)
			defer timer.Stop()
			select {
			case <-ended:
				return true
			case <-timer.C:
				return false
			}
		}
		// One that was busy may answer there first, and here a moment later.
		if !soon() && t.answers(ctx, c.peer, c.class) && !soon() {
			t.shut(c, closeSuperseded, "no answer on the old path")
		}
		cancel()
		<-ended
	})
	if !started {
		c.probing.Store(false)
	}
}

// answers reports whether a peer answers on the connection in use.
func (t *transport) answers(ctx context.Context, p *peer, class Class) bool {
	t.mu.Lock()
	c := p.links[class].current()
	t.mu.Unlock()
	if c == nil {
		return false
	}
	_, err := c.ping(ctx)
	return err == nil
}

// moved is called when this node's own addresses have changed. Connections
// this node dialled move along with the next packet (RFC 9000, section 9); a
// server cannot move, so the others are dialled anew.
func (t *transport) moved() {
	type call struct {
		id    NodeID
		class Class
	}
	var calls []call
	var pokes []*conn
	t.mu.Lock()
	for id, p := range t.peers {
		p.retryAt = time.Time{}
		for class := range Class(classes) {
			if c := p.links[class].current(); c != nil {
				if c.dialled {
					pokes = append(pokes, c)
				} else {
					calls = append(calls, call{id, class})
				}
			}
		}
	}
	t.mu.Unlock()
	for _, c := range calls {
		t.redial(c.id, c.class)
	}
	for _, c := range pokes {
		t.goes(func() {
			ctx, cancel := context.WithTimeout(t.ctx, probeTimeout)
			defer cancel()
			if _, err := c.ping(ctx); err != nil && c.alive() {
				t.redial(c.peer.id, c.class)
			}
		})
	}
}

// seed calls whoever listens at one of addrs, and returns who it is.
func (t *transport) seed(ctx context.Context, addrs []netip.AddrPort) (NodeID, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	q, err := race(ctx, addrs, t.dialer(Urgent, ""))
	if err != nil {
		return "", err
	}
	cert, err := t.verify(q.ConnectionState().TLS)
	if err != nil {
		q.CloseWithError(closeForeign, "certificate of another mesh")
		return "", err
	}
	if cert.id == t.id {
		q.CloseWithError(closeNormal, "called myself")
		return cert.id, nil
	}
	t.mu.Lock()
	p := t.peerLocked(cert.id)
	p.remembered = mergeEndpoints([]netip.AddrPort{endpointOf(q.RemoteAddr())}, p.remembered...)
	have := p.links[Urgent].current() != nil
	t.mu.Unlock()
	if have {
		q.CloseWithError(closeSuperseded, "connected already")
		return cert.id, nil
	}
	return cert.id, t.greet(ctx, q, Urgent)
}

// packetQueue is how many datagrams may wait for a peer.
const packetQueue = 64

// send queues a datagram for a peer. It never blocks: gossip counts on that,
// and on losing packets now and then. use says whether it counts as use of the
// connection.
func (t *transport) send(id NodeID, b []byte, use bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peers[id]
	if p == nil || t.closed {
		return
	}
	if p.links[Urgent].current() == nil && p.links[Urgent].dialing == nil && time.Now().Before(p.retryAt) {
		return // it was not there a moment ago
	}
	select {
	case p.queue <- datagram{b, use}:
	default:
		return
	}
	if !p.sending {
		p.sending = true
		t.wg.Add(1)
		go func() {
			defer t.wg.Done()
			t.sendLoop(p)
		}()
	}
}

// sendLoop sends what is queued for a peer, and ends when nothing is for a
// while.
func (t *transport) sendLoop(p *peer) {
	const linger = 5 * time.Second
	idle := time.NewTimer(linger)
	defer idle.Stop()
	for {
		select {
		case d := <-p.queue:
			idle.Reset(linger)
			c, err := t.connect(t.ctx, p.id, Urgent)
			if err != nil {
				// What waits is as stale as what failed.
				for len(p.queue) > 0 {
					<-p.queue
				}
				continue
			}
			if d.use {
				c.touch()
			}
			if err := c.q.SendDatagram(d.b); err != nil && c.alive() {
				t.log.Debug("datagram not sent", "peer", p.id, "bytes", len(d.b), "err", err)
			}
		case <-idle.C:
			t.mu.Lock()
			if len(p.queue) == 0 {
				p.sending = false
				t.mu.Unlock()
				return
			}
			t.mu.Unlock()
			idle.Reset(linger)
		case <-t.ctx.Done():
			return
		}
	}
}

// gossipTo returns whom to give news that were meant for id: id itself if it is
// connected or there are few neighbours yet, else some neighbour. memberlist
// picks nodes at random among all; calling each of them would make every node
// keep a connection to every other. Neighbours change all the time, since
// probes go round among all nodes and leave connections behind.
func (t *transport) gossipTo(id NodeID) NodeID {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peers[id]
	if p == nil || p.failing || p.links[Urgent].current() != nil {
		return id // one that fails may have to hear that it is taken for dead
	}
	neighbours, some := 0, id
	for _, o := range t.peers {
		if o.links[Urgent].current() == nil {
			continue
		}
		neighbours++
		if rand.IntN(neighbours) == 0 {
			some = o.id
		}
		if neighbours >= 2*t.neighbours {
			break
		}
	}
	if neighbours < t.neighbours {
		return id
	}
	return some
}

// used notes that a peer has sent something that counts as use of the connection.
func (t *transport) used(id NodeID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.peers[id]; p != nil {
		if c := p.links[Urgent].current(); c != nil {
			c.touch()
		}
	}
}

// nodeAt returns the node with a synthetic address.
func (t *transport) nodeAt(a netip.Addr) (NodeID, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	id, ok := t.gossip[a]
	return id, ok
}
