package node

import (
	"cmp"
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
)

// ClientConfig says how a [Client] runs. Its zero values take the defaults in
// brackets.
type ClientConfig struct {
	StateDir string   // holds the certificate that the mesh gave the client
	Nodes    []string // HOST:PORT of the nodes at which it may enter the mesh, the preferred first
	// Patience is how long a session waits while no node serves it, at most
	// [5 min]: homes remember a session for twice that, and no longer.
	Patience time.Duration
	// Roam is how often the ways to the other nodes are measured [10 s]; below 0
	// never.
	Roam time.Duration
	Log  *slog.Logger
}

const (
	defaultPatience = senderIdle / 2
	defaultRoam     = 10 * time.Second
	// A client goes to another node when the round trip there is shorter by
	// roamShare and by roamLeast, in roamLooks looks on end: a session that moves
	// to and fro gains nothing.
	roamShare = 0.2
	roamLeast = 2 * time.Millisecond
	roamLooks = 2
)

// A Client talks to workers without being a node of their mesh: it enters the
// mesh at one of several nodes, the access node, and changes to another when
// that one goes, or when another is nearer. Its sessions go on there, with
// nothing lost and nothing twice; see protoAttach. Safe for concurrent use.
type Client struct {
	cfg       ClientConfig
	log       *slog.Logger
	transport *mesh.ClientTransport

	ctx    context.Context
	cancel context.CancelCauseFunc
	tasks  tasks

	dialling chan struct{} // holds a value while a connection is being made
	mu       sync.Mutex
	conn     *mesh.ClientConn
	nodes    []string // as in the configuration, those that failed last
}

// NewClient prepares a client. It connects when a session is opened. Close ends
// it.
func NewClient(cfg ClientConfig) (*Client, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Patience = cmp.Or(cfg.Patience, defaultPatience)
	cfg.Roam = cmp.Or(cfg.Roam, defaultRoam)
	if cfg.Patience < 0 || cfg.Patience > defaultPatience {
		return nil, fmt.Errorf("a client's patience of %v: at most %v", cfg.Patience, defaultPatience)
	}
	if len(cfg.Nodes) == 0 {
		return nil, errors.New("a client needs the address of a node")
	}
	t, err := mesh.NewClientTransport(mesh.ClientConfig{Dir: cfg.StateDir})
	if errors.Is(err, mesh.ErrNoMesh) {
		return nil, &control.Error{
			Code: control.CodeDenied, Message: fmt.Sprintf("%s holds no certificate of a mesh", cfg.StateDir),
			Hint: "`meshnode token create --tier client` makes a token on the node that founded the mesh; `meshnode join` gets the certificate with it",
		}
	}
	if err != nil {
		return nil, err
	}
	c := &Client{cfg: cfg, log: cfg.Log, transport: t, dialling: make(chan struct{}, 1), nodes: slices.Clone(cfg.Nodes)}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	if len(cfg.Nodes) > 1 && cfg.Roam > 0 {
		c.tasks.Go(c.roam)
	}
	return c, nil
}

// Close ends the client and its sessions. Sessions that were not closed before
// leave their homes to forget them.
func (c *Client) Close() error {
	c.cancel(errHalted)
	c.tasks.Wait()
	c.mu.Lock()
	conn := c.conn
	c.conn = nil
	c.mu.Unlock()
	if conn != nil {
		_ = conn.Close() // it may be gone already
	}
	return c.transport.Close()
}

// Access returns the access node and the round trip to it; ok is false while
// there is none.
func (c *Client) Access() (node mesh.NodeID, rtt time.Duration, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil || c.conn.Context().Err() != nil {
		return "", 0, false
	}
	return c.conn.Node(), c.conn.RTT(), true
}

// Session opens a sender to the worker of that name or id. It returns once a
// node serves it; the errors are why none does, and ctx's. What follows is not
// bound by ctx: the session follows the worker, and goes on at another node
// where one fails, until Close or until no node serves it for
// ClientConfig.Patience.
func (c *Client) Session(ctx context.Context, worker string) (*ClientSession, error) {
	// Whether there is a node at all is known before anything waits for it.
	if _, err := c.connect(ctx); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, reachError(err)
	}
	s := &Sender{name: worker, follow: c.follow}
	crand.Read(s.id[:])
	s.init(1)
	s.start(c.ctx, &c.tasks)
	for {
		s.mu.Lock()
		served, err, changed := s.worker != "", s.err, s.changed
		s.mu.Unlock()
		switch {
		case served:
			return &ClientSession{s}, nil
		case err != nil:
			return nil, sessionError(err)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			s.Close()
			return nil, context.Cause(ctx)
		}
	}
}

// A ClientSession is an ordered exchange of messages and replies with one
// worker; see [control.Session].
type ClientSession struct{ s *Sender }

var _ control.Session = (*ClientSession)(nil)

// Send implements [control.Session].
func (s *ClientSession) Send(ctx context.Context, m control.Message) error {
	return session{s.s}.Send(ctx, m)
}

// Recv implements [control.Session].
func (s *ClientSession) Recv(ctx context.Context) (control.Reply, error) {
	return session{s.s}.Recv(ctx)
}

// Close implements [control.Session].
func (s *ClientSession) Close() error { return session{s.s}.Close() }

// follow connects s to an access node, again and again.
func (c *Client) follow(ctx context.Context, s *Sender) error {
	wait := retryWait{min: 5 * time.Millisecond, max: time.Second}
	served := time.Now() // when a node last served s
	var gone time.Time   // when they began to say that they know no such worker
	for {
		conn, err := c.connect(ctx)
		welcome := false
		if err == nil {
			var st *mesh.Stream
			if st, err = conn.Open(ctx, protoAttach); err == nil {
				_, welcome, err = s.converse(ctx, st, cmp.Or(s.worker, s.name))
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		now := time.Now()
		if welcome {
			wait.reset()
			served = now
		}
		var refused *refusedError
		if !errors.As(err, &refused) || !refused.gone {
			gone = time.Time{}
		} else if gone.IsZero() {
			gone = now
		}
		foreign := errors.Is(err, mesh.ErrForeignMesh) || errors.Is(err, mesh.ErrNotMesh) || errors.Is(err, mesh.ErrUnknownProtocol)
		if foreign && conn != nil {
			_ = conn.Close() // another node may serve where this one never will
		}
		switch {
		case errors.As(err, new(*endedError)):
			return err
		case errors.As(err, &refused) && !refused.gone:
			return &control.Error{Code: control.CodeFailed, Message: refused.Error()}
		case errors.As(err, &refused) && (s.worker == "" || now.Sub(gone) > nameWait):
			// A node that a session comes to may hear of the worker a little later.
			// An outage before that does not count: what comes back from one has
			// everything to learn.
			return &control.Error{Code: control.CodeNotFound, Message: refused.Error()}
		case foreign && s.worker == "":
			return &control.Error{Code: control.CodeDenied, Message: err.Error()}
		case now.Sub(served) > c.cfg.Patience:
			return &control.Error{
				Code:    control.CodeUnreachable,
				Message: fmt.Sprintf("no node has served the session for %v: %v", c.cfg.Patience, err),
				Hint:    "what was sent and has no reply may or may not have been handled",
			}
		}
		c.log.Debug("session interrupted", "worker", s.label(), "error", err)
		if !wait.pause(ctx, nil) {
			return context.Cause(ctx)
		}
	}
}

// connect returns the connection to the access node, or makes one.
func (c *Client) connect(ctx context.Context) (*mesh.ClientConn, error) {
	select {
	case c.dialling <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-c.dialling }()
	c.mu.Lock()
	if c.conn != nil && c.conn.Context().Err() == nil {
		defer c.mu.Unlock()
		return c.conn, nil
	}
	if c.conn != nil {
		// Its node is the last to be tried: it has just failed. With one node
		// only, that changes nothing.
		c.log.Debug("access node lost", "node", c.conn.Node(), "cause", context.Cause(c.conn.Context()))
		c.nodes = append(c.nodes[1:], c.nodes[0])
		c.conn = nil
	}
	nodes := slices.Clone(c.nodes)
	c.mu.Unlock()
	conn, i, err := c.transport.Dial(ctx, nodes)
	if err != nil {
		return nil, err
	}
	c.use(conn, nodes[i])
	return conn, nil
}

// use makes conn the connection of all sessions. What they had breaks, and they
// come to this one.
func (c *Client) use(conn *mesh.ClientConn, name string) {
	c.mu.Lock()
	old := c.conn
	c.conn = conn
	if i := slices.Index(c.nodes, name); i > 0 {
		c.nodes = slices.Insert(slices.Delete(c.nodes, i, i+1), 0, name)
	}
	c.mu.Unlock()
	c.log.Debug("access node", "node", conn.Node(), "endpoint", conn.Endpoint(), "rtt", conn.RTT())
	if old != nil {
		_ = old.Close()
	}
}

// roam looks for a nearer node, now and then until the client is closed.
func (c *Client) roam() {
	t := time.NewTicker(c.cfg.Roam)
	defer t.Stop()
	var last string // the node that was nearer, looks times on end
	looks := 0
	for {
		select {
		case <-t.C:
		case <-c.ctx.Done():
			return
		}
		conn, name := c.nearer()
		if conn == nil {
			last, looks = "", 0
			continue
		}
		if name != last {
			last, looks = name, 0
		}
		if looks++; looks < roamLooks {
			_ = conn.Close()
			continue
		}
		last, looks = "", 0
		c.use(conn, name)
	}
}

// nearer connects to the other nodes and returns the connection to the nearest
// of those that are nearer than the access node and serve c, nil if none does.
func (c *Client) nearer() (best *mesh.ClientConn, name string) {
	_, rtt, ok := c.Access()
	if !ok {
		return nil, "" // whoever needs a connection makes one
	}
	c.mu.Lock()
	others := slices.Clone(c.nodes[1:])
	c.mu.Unlock()
	limit := min(time.Duration(float64(rtt)*(1-roamShare)), rtt-roamLeast)
	for _, other := range others {
		ctx, cancel := context.WithTimeout(c.ctx, time.Second)
		conn, _, err := c.transport.Dial(ctx, []string{other})
		better := err == nil && conn.RTT() < limit && serves(ctx, conn)
		cancel()
		if err != nil {
			continue // not the nearest, whatever it is
		}
		if !better {
			_ = conn.Close()
			continue
		}
		if best != nil {
			_ = best.Close()
		}
		best, name, limit = conn, other, conn.RTT()
	}
	return best, name
}

// serves reports whether the node at the other end serves clients. That there is
// a connection does not say so: in TLS 1.3 the caller has it before the other
// side has looked at the certificate, and has counted its clients.
func serves(ctx context.Context, conn *mesh.ClientConn) bool {
	st, err := conn.Open(ctx, protoAttach)
	if err != nil {
		return false
	}
	defer st.Close()
	stop := context.AfterFunc(ctx, func() { interrupt(st) })
	defer stop()
	// A hello that asks for nothing: whoever serves clients refuses it.
	if mesh.WriteMessage(st, deliverFrame{Hello: &deliverHello{}}) != nil {
		return false
	}
	var f deliverFrame
	return mesh.ReadMessage(st, maxDeliverFrame, &f) == nil
}
