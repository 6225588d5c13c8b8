package mesh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// quic-go complains on stderr where the system allows only small socket
	// buffers, which these tests do not need.
	os.Setenv("QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING", "true")
	code := m.Run()
	if code == 0 {
		// memberlist's probes end by themselves, up to a probe interval late.
		err := goleak.Find()
		for limit := time.Now().Add(time.Minute); err != nil && time.Now().Before(limit); {
			err = goleak.Find()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// A logBook keeps a log so that tests can ask what was said.
type logBook struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBook) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logBook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// fastGossip is for meshes of a few nodes on one machine.
var fastGossip = Gossip{
	Interval:         10 * time.Millisecond,
	ProbeInterval:    100 * time.Millisecond,
	ProbeTimeout:     60 * time.Millisecond,
	PushPullInterval: 500 * time.Millisecond,
	SuspicionMult:    3,
	DeadTime:         10 * time.Second,
	RejoinInterval:   200 * time.Millisecond,
	RefreshInterval:  50 * time.Millisecond,
}

// protoEcho is served by every test node: all bytes come back.
const protoEcho = "test/echo"

type testNode struct {
	*Mesh
	dir   string
	log   *logBook
	stop  func()
	fails bool // Run may fail
}

func testConfig(t *testing.T, dir, name string, log *logBook) Config {
	return Config{
		Dir: dir, Listen: "127.0.0.1:0", Gossip: fastGossip,
		Record: Record{Name: name, Arch: "amd64", OS: "linux", Cores: 2, Engine: "compiler", Paging: "copy"},
		Log:    slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
}

// start runs a node on a directory that holds a membership.
func start(t *testing.T, dir, name string, opts ...func(*Config)) *testNode {
	t.Helper()
	log := new(logBook)
	cfg := testConfig(t, dir, name, log)
	for _, o := range opts {
		o(&cfg)
	}
	m, err := New(cfg)
	if err != nil {
		t.Fatalf("New(%s): %v", name, err)
	}
	return run(t, m, dir, log)
}

func run(t *testing.T, m *Mesh, dir string, log *logBook) *testNode {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	m.Handle(protoEcho, func(_ context.Context, s *Stream) { io.Copy(s, s) })
	go func() { done <- m.Run(ctx) }()
	n := &testNode{Mesh: m, dir: dir, log: log}
	t.Cleanup(func() {
		if t.Failed() {
			for _, mem := range n.Members() {
				t.Logf("%s (%s) sees %s (%s) %v since %v at %v", n.Name(), n.ID().Short(), mem.Record.Name, mem.ID.Short(), mem.State, mem.Since, mem.Endpoint)
			}
		}
	})
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil && !n.fails {
			t.Errorf("Run of %s: %v", m.Name(), err)
		}
		if t.Failed() && testing.Verbose() {
			t.Logf("log of %s:\n%s", m.Name(), log)
		}
	})
	t.Cleanup(n.stop)
	select {
	case <-m.Ready():
	case err := <-done:
		t.Fatalf("Run: %v", err)
	}
	return n
}

func found(t *testing.T, name string, opts ...func(*Config)) *testNode {
	t.Helper()
	dir := t.TempDir()
	if _, err := Found(FoundConfig{Dir: dir, Tier: Device}); err != nil {
		t.Fatal(err)
	}
	return start(t, dir, name, opts...)
}

func token(t *testing.T, n *testNode, r TokenRequest) string {
	t.Helper()
	tok, _, err := n.CreateToken(r)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// join enrols a new node with a token of authority's and starts it.
func join(t *testing.T, authority *testNode, name string, opts ...func(*Config)) *testNode {
	t.Helper()
	dir := t.TempDir()
	enrol(t, dir, token(t, authority, TokenRequest{Tier: Edge}))
	return start(t, dir, name, opts...)
}

func enrol(t *testing.T, dir, tok string, via ...string) *Membership {
	t.Helper()
	ms, err := enrolPatiently(t, EnrolConfig{Dir: dir, Token: tok, Via: via})
	if err != nil {
		t.Fatalf("Enrol: %v", err)
	}
	return ms
}

// eventually waits for cond, which it asks again and again.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// sees reports whether n holds every one of others for being in state.
func (n *testNode) sees(state State, others ...*testNode) bool {
	for _, o := range others {
		m, ok := n.Member(o.ID())
		if !ok || m.State != state {
			return false
		}
	}
	return true
}

func converge(t *testing.T, nodes ...*testNode) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d nodes see each other alive", len(nodes)), func() bool {
		return !slices.ContainsFunc(nodes, func(n *testNode) bool { return !n.sees(Alive, nodes...) })
	})
}

func testMesh(t *testing.T, n int) []*testNode {
	t.Helper()
	nodes := []*testNode{found(t, "n0")}
	for i := 1; i < n; i++ {
		nodes = append(nodes, join(t, nodes[0], fmt.Sprintf("n%d", i)))
	}
	converge(t, nodes...)
	return nodes
}

func TestConverge(t *testing.T) {
	nodes := testMesh(t, 4)
	for _, n := range nodes {
		members := n.Members()
		if len(members) != 4 {
			t.Errorf("%s sees %d members, want 4", n.Name(), len(members))
		}
		for _, m := range members {
			if m.Self != (m.ID == n.ID()) {
				t.Errorf("%s: Self of %s is %v", n.Name(), m.ID, m.Self)
			}
			wantTier := Edge
			if m.ID == nodes[0].ID() {
				wantTier = Device
			}
			if m.Record.Tier != wantTier || len(m.Record.Endpoints) != 1 {
				t.Errorf("%s sees record %+v", n.Name(), m.Record)
			}
		}
	}
	nodes[2].UpdateRecord(func(r *Record) { r.Load = 42; r.Tier = Cloud })
	eventually(t, "record update spreads", func() bool {
		for _, n := range nodes {
			if m, _ := n.Member(nodes[2].ID()); m.Record.Load != 42 || m.Record.Tier != Edge {
				return false
			}
		}
		return true
	})
	nodes[3].stop()
	eventually(t, "good-bye heard", func() bool {
		return nodes[0].sees(Left, nodes[3]) && nodes[1].sees(Left, nodes[3]) && nodes[2].sees(Left, nodes[3])
	})
}

func TestStreams(t *testing.T) {
	a := found(t, "a")
	dir := t.TempDir()
	enrol(t, dir, token(t, a, TokenRequest{}))
	log := new(logBook)
	m, err := New(testConfig(t, dir, "b", log))
	if err != nil {
		t.Fatal(err)
	}
	type got struct {
		peer  NodeID
		class Class
	}
	peers := make(chan got, 2)
	m.Handle("echo", func(ctx context.Context, s *Stream) {
		peers <- got{s.Peer(), s.Class()}
		io.Copy(s, s)
	})
	m.Handle("reset", func(ctx context.Context, s *Stream) { s.Reset(0x1234) })
	gone := make(chan error, 1)
	m.Handle("hold", func(ctx context.Context, s *Stream) {
		s.Write([]byte{1})
		<-ctx.Done()
		gone <- context.Cause(ctx)
	})
	b := run(t, m, dir, log)
	converge(t, a, b)

	for _, class := range []Class{Urgent, Bulk, Lane(1), Lane(Lanes)} {
		s, err := a.Open(t.Context(), b.ID(), "echo", class)
		if err != nil {
			t.Fatal(err)
		}
		if g := <-peers; g != (got{a.ID(), class}) {
			t.Errorf("handler saw %v, want %v", g, got{a.ID(), class})
		}
		want := bytes.Repeat([]byte("0123456789"), 100_000)
		go func() {
			s.Write(want)
			s.CloseWrite()
		}()
		back, err := io.ReadAll(s)
		if err != nil || !bytes.Equal(back, want) {
			t.Errorf("%v: echoed %d bytes, %v; want %d", class, len(back), err, len(want))
		}
		s.Close()
	}

	s, err := a.Open(t.Context(), b.ID(), "nobody-knows", Urgent)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, ErrUnknownProtocol) {
		t.Errorf("read for an unknown protocol: %v, want %v", err, ErrUnknownProtocol)
	}
	s.Close()

	s, err = a.Open(t.Context(), b.ID(), "reset", Urgent)
	if err != nil {
		t.Fatal(err)
	}
	var re *ResetError
	if _, err := s.Read(make([]byte, 1)); !errors.As(err, &re) || re.Code != 0x1234 {
		t.Errorf("read of a reset stream: %v", err)
	}
	s.Close()

	if _, err := a.Open(t.Context(), a.ID(), "echo", Urgent); !errors.Is(err, ErrUnknownPeer) {
		t.Errorf("open to self: %v", err)
	}
	if _, err := a.Open(t.Context(), DeriveNodeID(make([]byte, 32)), "echo", Urgent); !errors.Is(err, ErrUnknownPeer) {
		t.Errorf("open to a stranger: %v", err)
	}
	if _, err := a.Open(t.Context(), b.ID(), strings.Repeat("x", 33), Urgent); !errors.Is(err, ErrMalformed) {
		t.Errorf("open with a long name: %v", err)
	}

	s, err = a.Open(t.Context(), b.ID(), "hold", Urgent)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	b.stop()
	<-gone
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, ErrUnreachable) {
		t.Errorf("read after the peer left: %v, want %v", err, ErrUnreachable)
	}
	<-s.Context().Done()
	s.Close()
}

// A request that the peer has not taken when it closes the connection is made
// again, one that it has is not.
func TestRequest(t *testing.T) {
	a := found(t, "a")
	dir := t.TempDir()
	enrol(t, dir, token(t, a, TokenRequest{}))
	log := new(logBook)
	m, err := New(testConfig(t, dir, "b", log))
	if err != nil {
		t.Fatal(err)
	}
	var taken atomic.Int64
	m.Handle("count", func(_ context.Context, s *Stream) {
		taken.Add(1)
		var b [1]byte
		if _, err := io.ReadFull(s, b[:]); err == nil {
			s.Write(b[:])
		}
	})
	// The stream ends and the connection goes unused before the answer has left.
	m.Handle("lose", func(_ context.Context, s *Stream) {
		taken.Add(1)
		s.release()
		for { // those before may not have been closed yet
			if code, ok := s.conn.retire(); ok {
				s.conn.q.CloseWithError(code, "unused")
				return
			}
			time.Sleep(time.Millisecond)
		}
	})
	b := run(t, m, dir, log)
	converge(t, a, b)
	asked := 0
	ask := func(s *Stream) error {
		asked++
		var b [1]byte
		if _, err := s.Write(b[:]); err != nil {
			return err
		}
		_, err := io.ReadFull(s, b[:])
		return err
	}
	if err := a.Request(t.Context(), b.ID(), "count", Bulk, ask); err != nil || asked != 1 || taken.Load() != 1 {
		t.Fatalf("asked %d times, taken %d times: %v", asked, taken.Load(), err)
	}

	// giveUp makes b take nothing more on the connection until it is closed.
	giveUp := func() (shut func()) {
		var c *conn
		var code quic.ApplicationErrorCode
		eventually(t, "the connection is not used", func() (ok bool) {
			b.t.mu.Lock()
			c = b.t.peers[a.ID()].links[Bulk].current()
			b.t.mu.Unlock()
			if c == nil {
				return false
			}
			code, ok = c.retire()
			return ok
		})
		return func() { b.t.shut(c, code, "unused") }
	}
	for tries := 2; tries <= maxRequests+1; tries++ {
		asked = 0
		taken.Store(0)
		shut := giveUp()
		err := a.Request(t.Context(), b.ID(), "count", Bulk, func(s *Stream) error {
			if asked == tries-1 {
				return ask(s)
			}
			asked++
			if _, err := s.Write(make([]byte, 1)); err != nil {
				t.Error(err)
			}
			shut()
			_, err := s.Read(make([]byte, 1))
			if !errors.Is(err, ErrNotTaken) || !errors.Is(err, ErrUnreachable) {
				t.Errorf("read: %v, want %v", err, ErrNotTaken)
			}
			if asked < tries-1 {
				// The next try finds the next connection in the same state.
				a.t.gone(s.conn)
				if _, err := a.t.connect(t.Context(), b.ID(), Bulk); err != nil {
					t.Fatal(err)
				}
				shut = giveUp()
			}
			return err
		})
		switch {
		case tries <= maxRequests && (err != nil || asked != tries || taken.Load() != 1):
			t.Errorf("asked %d times, taken %d times, want %d and 1: %v", asked, taken.Load(), tries, err)
		case tries > maxRequests && (!errors.Is(err, ErrNotTaken) || asked != maxRequests || taken.Load() != 0):
			t.Errorf("asked %d times, taken %d times, want %d and 0: %v", asked, taken.Load(), maxRequests, err)
		}
	}

	asked = 0
	taken.Store(0)
	if err := a.Request(t.Context(), b.ID(), "lose", Bulk, ask); !errors.Is(err, ErrUnreachable) || errors.Is(err, ErrNotTaken) || asked != 1 || taken.Load() != 1 {
		t.Errorf("asked %d times, taken %d times: %v", asked, taken.Load(), err)
	}
}

// A request is made again for one reason only, and not for ever.
func TestAgain(t *testing.T) {
	notTaken := fmt.Errorf("read the answer: %w: %w", ErrUnreachable, ErrNotTaken)
	over, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		ctx   context.Context
		fails []error
		calls int
	}{
		{t.Context(), []error{nil}, 1},
		{t.Context(), []error{notTaken, nil}, 2},
		{t.Context(), []error{notTaken, ErrUnreachable}, 2},
		{t.Context(), []error{notTaken, notTaken, notTaken, nil}, maxRequests},
		{t.Context(), []error{ErrUnreachable, nil}, 1},
		{over, []error{notTaken, nil}, 1},
	} {
		calls := 0
		err := Again(c.ctx, func() error {
			calls++
			return c.fails[calls-1]
		})
		if calls != c.calls || err != c.fails[c.calls-1] {
			t.Errorf("%v, ended %v: %d calls, %v, want %d", c.fails, c.ctx.Err(), calls, err, c.calls)
		}
	}
}

func TestPing(t *testing.T) {
	nodes := testMesh(t, 2)
	p, err := nodes[0].Ping(t.Context(), nodes[1].ID())
	if err != nil {
		t.Fatal(err)
	}
	if p.RTT <= 0 || p.Min <= 0 || p.Endpoint != nodes[1].Endpoints()[0] && p.Dialled {
		t.Errorf("ping: %+v", p)
	}
}

// Many calls at once, from both sides, and no connection yet.
func TestManyOpens(t *testing.T) {
	nodes := testMesh(t, 2)
	a, b := nodes[0], nodes[1]
	var wg sync.WaitGroup
	for range 20 {
		for _, p := range [][2]*testNode{{a, b}, {b, a}} {
			wg.Go(func() {
				s, err := p[0].Open(t.Context(), p[1].ID(), protoPing, Bulk)
				if err != nil {
					t.Errorf("open: %v", err)
					return
				}
				s.Write(make([]byte, 8))
				if _, err := io.ReadFull(s, make([]byte, 8)); err != nil {
					t.Errorf("ping: %v", err)
				}
				s.Close()
			})
		}
	}
	wg.Wait()
}

func TestDocument(t *testing.T) {
	doc := bytes.Repeat([]byte("capable "), 10_000)
	a := found(t, "a", func(c *Config) { c.Document = doc })
	b := join(t, a, "b")
	converge(t, a, b)
	got, err := b.Document(t.Context(), a.ID())
	if err != nil || !bytes.Equal(got, doc) {
		t.Fatalf("document: %d bytes, %v", len(got), err)
	}
	if _, err := a.Document(t.Context(), b.ID()); !errors.Is(err, ErrNoDocument) {
		t.Errorf("document of a node without one: %v", err)
	}
	// Whatever has been heard of the changes so far, there is a document.
	for _, doc := range []string{"more", "other", "less"} {
		if err := a.SetDocument([]byte(doc)); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Document(t.Context(), a.ID()); err != nil {
			t.Fatalf("when it is becoming %q: %v", doc, err)
		}
	}
	eventually(t, "new document", func() bool {
		got, err := b.Document(t.Context(), a.ID())
		if err != nil {
			t.Fatal(err)
		}
		return string(got) == "less"
	})
}

// A node that answers for a digest with other bytes is not believed.
func TestDocumentMismatch(t *testing.T) {
	a := found(t, "a")
	dir := t.TempDir()
	enrol(t, dir, token(t, a, TokenRequest{}))
	log := new(logBook)
	cfg := testConfig(t, dir, "liar", log)
	cfg.Document = []byte("the truth")
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	m.t.handlers[protoDocument] = func(ctx context.Context, s *Stream) {
		// To end without having read the request would break the other's stream.
		var req documentRequest
		if err := ReadMessage(s, 128, &req); err != nil {
			return
		}
		WriteMessage(s, documentReply{Found: true, Body: []byte("a lie")})
	}
	b := run(t, m, dir, log)
	converge(t, a, b)
	if _, err := a.Document(t.Context(), b.ID()); !errors.Is(err, ErrMalformed) {
		t.Errorf("document with the wrong digest: %v, want %v", err, ErrMalformed)
	}
}

// A book is a Directory for tests.
type book struct {
	mu     sync.Mutex
	own    string
	merged map[NodeID]string
	heard  []string
}

func (b *book) State() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return []byte(b.own)
}

func (b *book) Merge(state []byte, peer NodeID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.merged == nil {
		b.merged = make(map[NodeID]string)
	}
	b.merged[peer] = string(state)
}

func (b *book) Notify(msg []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.heard = append(b.heard, string(msg))
}

func (b *book) get(peer NodeID) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.merged[peer]
}

func (b *book) count(msg string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, h := range b.heard {
		if h == msg {
			n++
		}
	}
	return n
}

func TestDirectory(t *testing.T) {
	var books []*book
	with := func(c *Config) {
		b := &book{own: "state of " + c.Record.Name}
		books = append(books, b)
		c.Directory = b
	}
	nodes := []*testNode{found(t, "n0", with)}
	for i := 1; i < 4; i++ {
		nodes = append(nodes, join(t, nodes[0], fmt.Sprintf("n%d", i), with))
	}
	converge(t, nodes...)
	long := strings.Repeat("m", maxPublish)
	if err := nodes[1].Publish([]byte(long)); err != nil {
		t.Fatal(err)
	}
	if err := nodes[1].Publish(make([]byte, maxPublish+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("publish of too much: %v", err)
	}
	for i, b := range books {
		if i == 1 {
			continue
		}
		eventually(t, "message reaches everyone", func() bool { return b.count(long) > 0 })
	}
	eventually(t, "states were exchanged", func() bool {
		for i, b := range books {
			some := false
			for j, n := range nodes {
				some = some || i != j && b.get(n.ID()) == "state of "+n.Name()
			}
			if !some {
				return false
			}
		}
		return true
	})
	for i, b := range books {
		if n := b.count(long); n > 1 || i == 1 && n > 0 {
			t.Errorf("n%d heard the message %d times", i, n)
		}
		if b.get(nodes[i].ID()) != "" {
			t.Errorf("n%d merged its own state", i)
		}
	}
}

// A node that is stopped and started again remembers its peers.
func TestRestart(t *testing.T) {
	nodes := testMesh(t, 3)
	a, b, c := nodes[0], nodes[1], nodes[2]
	c.stop()
	eventually(t, "c left", func() bool { return a.sees(Left, c) && b.sees(Left, c) })
	c = start(t, c.dir, "n2")
	converge(t, a, b, c)
	// The authority too: its peers remember it, and it them.
	a.stop()
	eventually(t, "a left", func() bool { return b.sees(Left, a) && c.sees(Left, a) })
	a = start(t, a.dir, "n0")
	converge(t, a, b, c)
}

// A node that is killed is found dead, and takes its place again when it comes
// back, at another port.
func TestKillAndMove(t *testing.T) {
	nodes := testMesh(t, 3)
	a, b, c := nodes[0], nodes[1], nodes[2]
	c.t.pc.Close() // no word leaves any more
	c.fails = true
	c.stop()
	eventually(t, "c is dead", func() bool { return a.sees(Dead, c) && b.sees(Dead, c) })
	c2 := start(t, c.dir, "n2")
	converge(t, a, b, c2)
	if got, _ := a.Member(c2.ID()); !slices.Equal(got.Record.Endpoints, c2.Endpoints()) {
		t.Errorf("a sees endpoints %v, want %v", got.Record.Endpoints, c2.Endpoints())
	}
	// A connection to its earlier run may still be there, and ends when the
	// later one calls.
	eventually(t, "a ping after the move", func() bool {
		_, err := a.Ping(t.Context(), c2.ID())
		return err == nil
	})
}
