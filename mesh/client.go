package mesh

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
)

const (
	// clientKeepAlive and clientIdle are a client's: it has nobody to tell it
	// that its node is gone, and other nodes to go to.
	clientKeepAlive = 1500 * time.Millisecond
	clientIdle      = 5 * time.Second
	// maxClients is how many connections of clients a node serves, and
	// maxClientStreams how many streams each may have open.
	maxClients       = 1024
	maxClientStreams = 64
)

// verifyClient checks the certificate of a caller that asks for no more than a
// client may: nodes may too.
func verifyClient(cs tls.ConnectionState, ca *x509.Certificate) (peerCert, error) {
	if len(cs.PeerCertificates) == 0 {
		return peerCert{}, fmt.Errorf("%w: no certificate", ErrForeignMesh)
	}
	return verifyMember(cs.PeerCertificates[0], ca, time.Now())
}

// serveClient serves a connection of a client until it ends. The client is no
// peer: gossip and the tables of peers know nothing of it.
func (t *transport) serveClient(q *quic.Conn) {
	cert, err := verifyClient(q.ConnectionState().TLS, t.ms.ca)
	if err != nil {
		t.gate.log(t.log, "refused client", "from", q.RemoteAddr(), "reason", err)
		q.CloseWithError(closeForeign, "certificate of another mesh")
		return
	}
	t.mu.Lock()
	full, closed := len(t.clients) >= maxClients, t.closing
	if !full && !closed {
		t.clients[q] = true
	}
	t.mu.Unlock()
	switch {
	case closed:
		q.CloseWithError(closeLeaving, "node is leaving")
		return
	case full:
		t.gate.log(t.log, "refused client", "from", q.RemoteAddr(), "reason", "too many clients")
		q.CloseWithError(closeBusy, "too many clients")
		return
	}
	t.log.Debug("client connected", "client", cert.id, "from", q.RemoteAddr())
	c := &conn{t: t, peer: &peer{id: cert.id}, class: Urgent, q: q, since: time.Now()}
	var wg sync.WaitGroup
	defer func() {
		wg.Wait()
		t.releaseWindow(q)
		t.mu.Lock()
		delete(t.clients, q)
		t.mu.Unlock()
		t.log.Debug("client disconnected", "client", cert.id, "cause", context.Cause(q.Context()))
	}()
	for {
		st, err := q.AcceptStream(q.Context())
		if err != nil {
			return
		}
		if c.streams.Add(1) > maxClientStreams {
			c.streams.Add(-1)
			st.CancelRead(resetClosed)
			st.CancelWrite(resetClosed)
			continue
		}
		s := &Stream{q: st, conn: c}
		wg.Go(func() { t.serveStream(s, t.clientHandlers) })
	}
}

// closeClients says good-bye to the clients there are, and to those that come
// from now on.
func (t *transport) closeClients() {
	t.mu.Lock()
	t.closing = true
	clients := slices.Collect(maps.Keys(t.clients))
	t.mu.Unlock()
	var wg sync.WaitGroup
	for _, q := range clients {
		wg.Go(func() { q.CloseWithError(closeLeaving, "node is leaving") })
	}
	wg.Wait()
}

// ClientConfig says how a [ClientTransport] is made.
type ClientConfig struct {
	// Dir holds the certificate, from [Enrol]. That of a node serves as well.
	Dir string
	// ListenPacket replaces net.ListenPacket, as in [Config].
	ListenPacket func(network, address string) (net.PacketConn, error)
}

// A ClientTransport connects a program that is no node to nodes of its mesh. It
// takes no part in gossip, serves nothing, and reaches only what nodes offer to
// clients (see [Mesh.HandleClient]). Safe for concurrent use.
type ClientTransport struct {
	ms  *Membership
	pc  net.PacketConn
	qt  *quic.Transport
	tls *tls.Config
}

// NewClientTransport reads the certificate in cfg.Dir and binds a socket. The
// error is [ErrNoMesh] where there is none. Close releases it.
func NewClientTransport(cfg ClientConfig) (*ClientTransport, error) {
	ms, err := LoadMembership(cfg.Dir)
	if err != nil {
		return nil, err
	}
	if cfg.ListenPacket == nil {
		cfg.ListenPacket = net.ListenPacket
	}
	pc, err := cfg.ListenPacket("udp", ":0")
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	c := &ClientTransport{ms: ms, pc: pc, qt: &quic.Transport{Conn: pc}}
	c.tls = &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{ms.tlsCertificate()},
		NextProtos:   []string{alpnClient},
		// As between nodes: the CA counts, and names mean nothing.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return fmt.Errorf("%w: no certificate", ErrForeignMesh)
			}
			_, err := verifyNode(cs.PeerCertificates[0], ms.ca, time.Now())
			return err
		},
	}
	return c, nil
}

// Close ends all connections.
func (c *ClientTransport) Close() error {
	err := c.qt.Close()
	if cerr := c.pc.Close(); err == nil {
		err = cerr
	}
	return err
}

// Dial connects to the first of the nodes at names, HOST:PORT each, that
// answers, and returns which that was: they are tried in their order, each with
// a short head start. The errors are those of [Mesh.Open], and ctx's.
func (c *ClientTransport) Dial(ctx context.Context, names []string) (cc *ClientConn, which int, err error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var addrs []netip.AddrPort
	var errs []error
	of := make(map[netip.AddrPort]int) // the name of each address
	for i, n := range names {
		if err := checkHostPort(n); err != nil {
			return nil, 0, fmt.Errorf("connect: %w", err)
		}
		found, err := resolve(ctx, []string{n})
		if err != nil {
			errs = append(errs, err) // the others may do
		}
		for _, a := range found {
			if _, ok := of[a]; !ok {
				addrs, of[a] = append(addrs, a), i
			}
		}
	}
	if len(addrs) == 0 {
		return nil, 0, fmt.Errorf("connect: %w", errors.Join(errs...))
	}
	q, err := race(ctx, addrs, func(ctx context.Context, a netip.AddrPort) (*quic.Conn, error) {
		return c.qt.Dial(ctx, net.UDPAddrFromAddrPort(a), c.tls, &quic.Config{
			HandshakeIdleTimeout: handshakeTimeout, MaxIdleTimeout: clientIdle, KeepAlivePeriod: clientKeepAlive,
			InitialStreamReceiveWindow: streamWindow, MaxStreamReceiveWindow: maxStreamWindow,
			InitialConnectionReceiveWindow: connWindow, MaxConnectionReceiveWindow: maxConnWindow,
			MaxIncomingStreams: -1, MaxIncomingUniStreams: -1,
		})
	})
	if err != nil {
		return nil, 0, fmt.Errorf("connect: %w", err)
	}
	cert, err := verifyNode(q.ConnectionState().TLS.PeerCertificates[0], c.ms.ca, time.Now())
	if err != nil {
		q.CloseWithError(closeForeign, "certificate of another mesh")
		return nil, 0, fmt.Errorf("connect: %w", err)
	}
	cc = &ClientConn{c: &conn{peer: &peer{id: cert.id}, class: Urgent, q: q, dialled: true, since: time.Now()}}
	return cc, of[endpointOf(q.RemoteAddr())], nil
}

// A ClientConn is a client's connection to one node. It survives a change of
// the client's own address: packets leave from the new one, and the node
// follows (RFC 9000, section 9). Safe for concurrent use.
type ClientConn struct{ c *conn }

// Node returns the node at the other end, as its certificate says.
func (c *ClientConn) Node() NodeID { return c.c.peer.id }

// Endpoint returns the node's address.
func (c *ClientConn) Endpoint() netip.AddrPort { return c.c.endpoint() }

// RTT returns QUIC's smoothed estimate of the round trip (RFC 9002, section 5).
func (c *ClientConn) RTT() time.Duration { return c.c.q.ConnectionStats().SmoothedRTT }

// Context is done when the connection is.
func (c *ClientConn) Context() context.Context { return c.c.q.Context() }

// Open opens a stream, as [Mesh.Open] does.
func (c *ClientConn) Open(ctx context.Context, protocol string) (*Stream, error) {
	if err := checkProtocol(protocol); err != nil {
		return nil, err
	}
	return c.c.open(ctx, protocol)
}

// Close ends the connection and its streams.
func (c *ClientConn) Close() error { return c.c.q.CloseWithError(closeNormal, "") }
