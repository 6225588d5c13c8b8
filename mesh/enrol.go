package mesh

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/time/rate"
)

// How a node joins:
//
//	joiner                               a member
//	QUIC, ALPN meshnode-join/1      ->   shows its certificate and the CA's
//	checks the CA against the pin
//	joinRequest                     ->   is the authority, or passes it on to it
//	                                <-   joinReply
//
// The request proves the knowledge of the token's secret (token.go) and, being
// a PKCS #10 request signed with it, the possession of the node's key. A member
// that passes it on can neither change it nor use it for another node.

// protoEnrol carries a joinRequest from a member to the authority.
const protoEnrol = "mesh/enrol"

const (
	maxJoinRequest = 4 << 10
	maxJoinReply   = 16 << 10
	joinTimeout    = 10 * time.Second
	// maxJoins is how many strangers are served at a time, joinRate how many a
	// second.
	maxJoins  = 8
	joinRate  = 5
	joinBurst = 20
)

type joinRequest struct {
	TokenID []byte `cbor:"1,keyasint"`
	Proof   []byte `cbor:"2,keyasint"`
	Request []byte `cbor:"3,keyasint"` // PKCS #10
	// Foreign says that the joiner holds a token for another mesh, and asks
	// for nothing: both operators should know.
	Foreign bool `cbor:"4,keyasint,omitempty"`
}

type joinReply struct {
	Code   uint8       `cbor:"1,keyasint"`
	Reason string      `cbor:"2,keyasint,omitempty"`
	Cert   []byte      `cbor:"3,keyasint,omitempty"`
	Peers  []knownPeer `cbor:"4,keyasint,omitempty"`
}

type knownPeer struct {
	ID        string       `cbor:"1,keyasint"`
	Endpoints endpointList `cbor:"2,keyasint"`
}

// Codes of a joinReply. They travel; they are only ever appended.
const (
	joinOK          = 0
	joinForged      = 1
	joinUsed        = 2
	joinExpired     = 3
	joinBusy        = 4
	joinNoAuthority = 5
	joinRefused     = 6
)

var joinErrors = map[uint8]error{
	joinForged:      ErrTokenForged,
	joinUsed:        ErrTokenUsed,
	joinExpired:     ErrTokenExpired,
	joinBusy:        ErrBusy,
	joinNoAuthority: ErrAuthorityUnreachable,
	joinRefused:     ErrRefused,
}

// err says what a reply that is no success means.
func (r *joinReply) err() error {
	if r.Code == joinOK {
		return nil
	}
	e := joinErrors[r.Code]
	if e == nil {
		e = ErrRefused
	}
	if r.Reason != "" && printable(r.Reason) {
		return fmt.Errorf("%w: %s", e, clip(r.Reason, 200))
	}
	return e
}

// refusal turns an error into what the joiner is told: the sentinel, and
// nothing about what is inside.
func refusal(err error) joinReply {
	for code, e := range joinErrors {
		if code != joinRefused && errors.Is(err, e) {
			return joinReply{Code: code}
		}
	}
	if errors.Is(err, ErrMalformed) {
		return joinReply{Code: joinRefused, Reason: "malformed request"}
	}
	return joinReply{Code: joinRefused, Reason: "internal error, see the authority's log"}
}

// A TokenRequest says what token to make.
type TokenRequest struct {
	// TTL is how long it is good. Zero means one hour.
	TTL time.Duration
	// Uses is how many nodes may join with it, at most 1,000. Zero means one.
	Uses int
	// Tier is the tier of the nodes that join. Zero means [Device].
	Tier Tier
}

func (r *TokenRequest) normalize() error {
	if r.TTL == 0 {
		r.TTL = time.Hour
	}
	if r.Uses == 0 {
		r.Uses = 1
	}
	if r.Tier == 0 {
		r.Tier = Device
	}
	if r.TTL < time.Second || r.TTL > maxTokenTTL {
		return fmt.Errorf("create token: %w: a time to live of %v, between 1s and 10 years allowed", ErrMalformed, r.TTL)
	}
	if r.Uses < 1 || r.Uses > maxTokenUses {
		return fmt.Errorf("create token: %w: %d uses, between 1 and %d allowed", ErrMalformed, r.Uses, maxTokenUses)
	}
	if !r.Tier.Valid() {
		return fmt.Errorf("create token: %w: %v", ErrMalformed, r.Tier)
	}
	return nil
}

// CreateToken makes a join token that leads to this node. Only the authority
// can: [ErrNotAuthority] elsewhere.
func (m *Mesh) CreateToken(r TokenRequest) (token string, expires time.Time, err error) {
	if err := r.normalize(); err != nil {
		return "", time.Time{}, err
	}
	if !m.ms.Authority {
		return "", time.Time{}, fmt.Errorf("create token: %w", ErrNotAuthority)
	}
	eps := slices.Clone(m.cfg.Advertise)
	for _, a := range m.ownEndpoints() {
		if s := a.String(); !slices.Contains(eps, s) {
			eps = append(eps, s)
		}
	}
	t, err := newToken(pinOf(m.ms.ca), r.Tier, time.Now().Add(r.TTL), eps)
	if err != nil {
		return "", time.Time{}, fmt.Errorf("create token: %w", err)
	}
	if err := m.store.putToken(t, r.Uses, time.Now()); err != nil {
		return "", time.Time{}, fmt.Errorf("create token: %w", err)
	}
	m.log.Info("token created", "token", t, "expires", t.Expires, "uses", r.Uses, "tier", r.Tier)
	return t.String(), t.Expires, nil
}

// An enroller serves joins at a member.
type enroller struct {
	m     *Mesh
	slots chan struct{}
	rate  *rate.Limiter
}

func newEnroller(m *Mesh) *enroller {
	return &enroller{m: m, slots: make(chan struct{}, maxJoins), rate: rate.NewLimiter(joinRate, joinBurst)}
}

// serve serves one connection of a stranger.
func (e *enroller) serve(ctx context.Context, q *quic.Conn) {
	t := e.m.t
	refuse := func(reason any, args ...any) {
		t.gate.log(e.m.log, "join refused", append([]any{"from", q.RemoteAddr(), "reason", reason}, args...)...)
	}
	select {
	case e.slots <- struct{}{}:
		defer func() { <-e.slots }()
	default:
		refuse("too many joins at a time")
		q.CloseWithError(closeBusy, "too many joins")
		return
	}
	if !e.rate.Allow() {
		refuse("too many joins a second")
		q.CloseWithError(closeBusy, "too many joins")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { q.CloseWithError(closeBusy, "out of time") })
	defer stop()

	s, err := q.AcceptStream(ctx)
	var req joinRequest
	if err == nil {
		err = ReadMessage(s, maxJoinRequest, &req)
	}
	if err != nil {
		refuse(connError(err))
		q.CloseWithError(closeProtocol, "join request expected")
		return
	}
	if req.Foreign {
		refuse("the token is for another mesh")
		q.CloseWithError(closeForeign, "the token is for another mesh")
		return
	}
	reply, node, err := e.admit(ctx, &req)
	if err != nil {
		refuse(err, "token", shortToken(req.TokenID), "node", node)
	}
	if reply.Code == joinOK {
		reply.Peers = e.m.knownPeers()
	}
	if err := WriteMessage(s, reply); err == nil && s.Close() == nil {
		// The joiner closes when it has read the answer.
		select {
		case <-q.Context().Done():
		case <-ctx.Done():
		}
	}
	q.CloseWithError(closeNormal, "")
}

func shortToken(id []byte) string { return fmt.Sprintf("%x", id[:min(len(id), 4)]) }

// admit answers a request here or has the authority answer it. The error says
// why the reply is a refusal, for this node's log.
func (e *enroller) admit(ctx context.Context, req *joinRequest) (joinReply, NodeID, error) {
	if e.m.ms.Authority {
		return e.decide(req, "")
	}
	node, _, err := checkRequest(req)
	if err != nil {
		return refusal(err), "", err
	}
	authority, ok := e.m.authority()
	if !ok {
		return joinReply{Code: joinNoAuthority}, node, ErrAuthorityUnreachable
	}
	reply, err := e.relay(ctx, authority, req)
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrAuthorityUnreachable, err)
		return joinReply{Code: joinNoAuthority}, node, err
	}
	return reply, node, reply.err()
}

func (e *enroller) relay(ctx context.Context, authority NodeID, req *joinRequest) (r joinReply, err error) {
	err = e.m.t.request(ctx, authority, protoEnrol, Urgent, func(s *Stream) error {
		if err := WriteMessage(s, req); err != nil {
			return err
		}
		return ReadMessage(s, maxJoinReply, &r)
	})
	return r, err
}

// serveRelayed answers a request that a member passes on.
func (e *enroller) serveRelayed(ctx context.Context, s *Stream) {
	s.SetDeadline(time.Now().Add(joinTimeout))
	var req joinRequest
	if err := ReadMessage(s, maxJoinRequest, &req); err != nil {
		e.m.log.Debug("join request not read", "via", s.Peer(), "err", err)
		return
	}
	if !e.m.ms.Authority {
		WriteMessage(s, joinReply{Code: joinNoAuthority})
		return
	}
	reply, node, err := e.decide(&req, s.Peer())
	if err != nil {
		e.m.t.gate.log(e.m.log, "join refused", "via", s.Peer(), "reason", err, "token", shortToken(req.TokenID), "node", node)
	}
	WriteMessage(s, reply)
}

// checkRequest checks all that can be checked without the token.
func checkRequest(req *joinRequest) (NodeID, ed25519.PublicKey, error) {
	if len(req.TokenID) != len(tokenID{}) || len(req.Proof) != 32 {
		return "", nil, fmt.Errorf("%w: join request: a field has the wrong length", ErrMalformed)
	}
	csr, err := x509.ParseCertificateRequest(req.Request)
	if err != nil {
		return "", nil, fmt.Errorf("%w: certificate request: %v", ErrMalformed, err)
	}
	key, ok := csr.PublicKey.(ed25519.PublicKey)
	if !ok {
		return "", nil, fmt.Errorf("%w: certificate request for no Ed25519 key", ErrMalformed)
	}
	if err := csr.CheckSignature(); err != nil {
		return "", nil, fmt.Errorf("%w: certificate request is not signed with its key: %v", ErrMalformed, err)
	}
	return DeriveNodeID(key), key, nil
}

// decide spends a use of the token and signs the certificate, at the authority.
func (e *enroller) decide(req *joinRequest, via NodeID) (joinReply, NodeID, error) {
	node, key, err := checkRequest(req)
	if err != nil {
		return refusal(err), "", err
	}
	if node == e.m.ms.ID {
		err := fmt.Errorf("%w: the authority's own key", ErrMalformed)
		return refusal(err), node, err
	}
	now := time.Now()
	tier, err := e.m.store.redeem(tokenID(req.TokenID), req.Request, req.Proof, node, now)
	if err != nil {
		return refusal(err), node, err
	}
	der, err := issueCert(e.m.ms.ca, e.m.ms.caKey, key, peerCert{id: node, tier: tier}, now)
	if err != nil {
		return refusal(err), node, err
	}
	e.m.log.Info("node enrolled", "node", node, "tier", tier, "token", shortToken(req.TokenID), "via", via)
	return joinReply{Cert: der}, node, nil
}

// EnrolConfig says how to join a mesh.
type EnrolConfig struct {
	// Dir is the node's directory; its identity is made there if there is none.
	Dir string
	// Token is the join token.
	Token string
	// Via is HOST:PORT of members to ask instead of those in the token.
	Via []string
	// Log gets what happens. Nil means none.
	Log *slog.Logger
	// ListenPacket replaces net.ListenPacket, as in [Config].
	ListenPacket func(network, address string) (net.PacketConn, error)
	// Stage keeps the new membership beside the present one, if there is one,
	// until [AdoptStaged] puts it in its place: for a node that goes on in its
	// mesh until it is let into another.
	Stage bool
}

// Enrol makes the node in cfg.Dir a member of the token's mesh. The errors are
// [ErrHaveMesh], [ErrTokenMalformed], [ErrTokenForged], [ErrTokenUsed],
// [ErrTokenExpired], [ErrForeignMesh], [ErrNotMesh], [ErrBusy],
// [ErrAuthorityUnreachable], [ErrUnreachable], and ctx's. After a lost answer
// it may be called again: the same node spends one use of a token only once.
func Enrol(ctx context.Context, cfg EnrolConfig) (*Membership, error) {
	tok, err := ParseToken(cfg.Token)
	if err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.ListenPacket == nil {
		cfg.ListenPacket = net.ListenPacket
	}
	names := tok.Endpoints
	if len(cfg.Via) > 0 {
		names = cfg.Via
	}
	for _, n := range names {
		if err := checkHostPort(n); err != nil {
			return nil, fmt.Errorf("join: %w", err)
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("join: %w: the token names no endpoint; say which member to ask", ErrUnreachable)
	}
	if cfg.Stage {
		if cfg.Dir, err = stage(cfg.Dir); err != nil {
			return nil, fmt.Errorf("join: %w", err)
		}
	}
	id, err := prepareDir(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	cands, err := resolve(ctx, names)
	if err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	pc, err := cfg.ListenPacket("udp", ":0")
	if err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	defer pc.Close()
	qt := &quic.Transport{Conn: pc}
	defer qt.Close()

	j := joiner{qt: qt, tok: tok, id: id}
	req, err := j.request()
	if err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	var errs []error
	for len(cands) > 0 {
		r, err := j.ask(ctx, cands, req)
		if err == nil {
			return j.store(cfg.Dir, r)
		}
		errs = append(errs, err)
		// A member that is busy or cut off from the authority is not the
		// mesh's last word: ask the next one.
		if !r.from.IsValid() || !errors.Is(err, ErrBusy) && !errors.Is(err, ErrAuthorityUnreachable) && !errors.Is(err, ErrUnreachable) || ctx.Err() != nil {
			break
		}
		cands = slices.DeleteFunc(cands, func(a netip.AddrPort) bool { return a == r.from })
	}
	return nil, fmt.Errorf("join: %w", errors.Join(errs...))
}

type joiner struct {
	qt  *quic.Transport
	tok Token
	id  *Identity
}

// An admission is a reply with whom and where it came from.
type admission struct {
	joinReply
	ca     *x509.Certificate
	member NodeID
	from   netip.AddrPort
}

func (j *joiner) request() (joinRequest, error) {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, j.id.key)
	if err != nil {
		return joinRequest{}, err
	}
	return joinRequest{TokenID: j.tok.id[:], Proof: j.tok.key().proof(j.tok.id, csr), Request: csr}, nil
}

// dial connects to a member and checks that it is of the token's mesh.
func (j *joiner) dial(ctx context.Context, a netip.AddrPort) (*quic.Conn, error) {
	q, err := j.qt.Dial(ctx, net.UDPAddrFromAddrPort(a), &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{alpnJoin},
		// Checked right below, before anything is said: done here it would end
		// in a TLS alert, and the member could not tell its operator why.
		InsecureSkipVerify: true,
	}, &quic.Config{HandshakeIdleTimeout: handshakeTimeout, MaxIdleTimeout: joinTimeout, MaxIncomingStreams: -1, MaxIncomingUniStreams: -1})
	if err != nil {
		return nil, err
	}
	if _, _, err := j.check(q); err != nil {
		j.decline(ctx, q)
		return nil, err
	}
	return q, nil
}

// decline tells a member of another mesh why nothing more comes. Closing alone
// would not: the member's handshake may not be over.
func (j *joiner) decline(ctx context.Context, q *quic.Conn) {
	defer q.CloseWithError(closeForeign, "the token is for another mesh")
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	s, err := q.OpenStreamSync(ctx)
	if err != nil {
		return
	}
	if err := WriteMessage(s, joinRequest{Foreign: true}); err != nil {
		return
	}
	select {
	case <-q.Context().Done():
	case <-ctx.Done():
	}
}

// check verifies the chain a member showed against the token's pin.
func (j *joiner) check(q *quic.Conn) (*x509.Certificate, NodeID, error) {
	chain := q.ConnectionState().TLS.PeerCertificates
	for _, c := range chain {
		if pinOf(c) != j.tok.pin {
			continue
		}
		ca, err := parseCA(c.Raw)
		if err != nil {
			return nil, "", err
		}
		p, err := verifyNode(chain[0], ca, time.Now())
		return ca, p.id, err
	}
	return nil, "", fmt.Errorf("%w: the token's mesh is %x..., not the one that answers", ErrForeignMesh, j.tok.pin[:4])
}

func (j *joiner) ask(ctx context.Context, cands []netip.AddrPort, req joinRequest) (a admission, err error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout+joinTimeout)
	defer cancel()
	q, err := race(ctx, cands, j.dial)
	if err != nil {
		return a, err
	}
	defer q.CloseWithError(closeNormal, "")
	a.from = endpointOf(q.RemoteAddr())
	if a.ca, a.member, err = j.check(q); err != nil {
		return a, err
	}
	err = func() error {
		s, err := q.OpenStreamSync(ctx)
		if err != nil {
			return err
		}
		stop := context.AfterFunc(ctx, func() { s.SetDeadline(time.Unix(1, 0)) })
		defer stop()
		if err := WriteMessage(s, req); err != nil {
			return err
		}
		if err := s.Close(); err != nil {
			return err
		}
		return ReadMessage(s, maxJoinReply, &a.joinReply)
	}()
	if err != nil {
		if ctx.Err() != nil {
			return a, fmt.Errorf("%v: %w: no answer in time", a.from, ErrUnreachable)
		}
		return a, fmt.Errorf("%v: %w", a.from, connError(err))
	}
	if err := a.err(); err != nil {
		return a, fmt.Errorf("%v: %w", a.from, err)
	}
	return a, nil
}

// store checks what was granted and writes it down.
func (j *joiner) store(dir string, a admission) (*Membership, error) {
	cert, err := x509.ParseCertificate(a.Cert)
	if err != nil {
		return nil, fmt.Errorf("join: %w: certificate granted: %v", ErrMalformed, err)
	}
	p, err := verifyMember(cert, a.ca, time.Now())
	if err != nil {
		return nil, fmt.Errorf("join: certificate granted: %w", err)
	}
	if p.id != j.id.id {
		return nil, fmt.Errorf("join: %w: certificate granted is for %s", ErrMalformed, p.id)
	}
	peers := map[NodeID][]netip.AddrPort{}
	for _, k := range a.Peers[:min(len(a.Peers), maxRemembered)] {
		if id, err := ParseNodeID(k.ID); err == nil && id != j.id.id {
			peers[id] = k.Endpoints
		}
	}
	// The endpoint that has just worked goes first.
	peers[a.member] = mergeEndpoints([]netip.AddrPort{a.from}, peers[a.member]...)
	st, err := openStore(dir)
	if err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	err = st.remember(peers, time.Now())
	if err := errors.Join(err, st.Close()); err != nil {
		return nil, fmt.Errorf("join: %s: %w", filepath.Join(dir, storeFile), err)
	}
	if err := storeMembership(dir, a.ca.Raw, a.Cert); err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	return LoadMembership(dir)
}

// resolve looks names up. It fails only when nothing is left.
func resolve(ctx context.Context, names []string) ([]netip.AddrPort, error) {
	var list []netip.AddrPort
	var errs []error
	for _, n := range names {
		host, _, err := net.SplitHostPort(n)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if a, err := netip.ParseAddrPort(n); err == nil {
			list = append(list, normalEndpoint(a))
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		cancel()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, ip := range ips {
			list = append(list, netip.AddrPortFrom(ip.Unmap(), portOf(n)))
		}
	}
	var uniq []netip.AddrPort
	for _, a := range list {
		if validEndpoint(a) && !slices.Contains(uniq, a) && len(uniq) < maxCandidates {
			uniq = append(uniq, a)
		}
	}
	if len(uniq) == 0 {
		errs = append(errs, fmt.Errorf("%w: no usable address in %v", ErrUnreachable, names))
		return nil, errors.Join(errs...)
	}
	return uniq, nil
}
