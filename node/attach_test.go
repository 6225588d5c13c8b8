package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
)

// clientDir enrols a client of the mesh of n and returns its directory.
func clientDir(t *testing.T, n *testNode) string {
	t.Helper()
	token, err := n.client.CreateToken(t.Context(), control.TokenRequest{Tier: control.TierClient})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	m, err := mesh.Enrol(t.Context(), mesh.EnrolConfig{Dir: dir, Token: token.Token, Via: []string{n.Addr().String()}})
	if err != nil {
		t.Fatal(err)
	}
	if m.Tier != mesh.Client {
		t.Fatalf("enrolled as %v", m.Tier)
	}
	return dir
}

func startClient(t *testing.T, dir string, nodes ...*testNode) *Client {
	t.Helper()
	cfg := ClientConfig{StateDir: dir, Roam: -1, Log: nodes[0].log}
	for _, n := range nodes {
		cfg.Nodes = append(cfg.Nodes, n.Addr().String())
	}
	c, err := NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestClientRoams has a client stream to a counter while its worker moves, its
// connections break, and its access nodes end: every message must be handled
// once and in order.
func TestClientRoams(t *testing.T) {
	nodes := startNodes(t, 3)
	a, b, c := nodes[0], nodes[1], nodes[2]
	ctx := t.Context()
	a.run(t, app(t, "counter"), control.RunRequest{Name: "counter"})
	for _, n := range nodes {
		waitFor(t, "the worker", func() bool { _, err := n.dir.find("counter"); return err == nil })
	}
	cl := startClient(t, clientDir(t, a), b, c)
	s, err := cl.Session(ctx, "counter")
	if err != nil {
		t.Fatal(err)
	}
	// access returns the access node and the other one. Which is which depends
	// on who answers first, and on a busy machine that need not be the first.
	access := func() (at, other *testNode) {
		t.Helper()
		waitFor(t, "an access node", func() bool {
			id, _, ok := cl.Access()
			at, other = b, c
			if id == c.id {
				at, other = c, b
			}
			return ok
		})
		return at, other
	}
	var mu sync.Mutex
	got := 0
	sending, stop := context.WithCancel(ctx)
	sent, received := make(chan int, 1), make(chan error, 1) // how many; what was wrong
	go func() {
		n := 0
		for ; sending.Err() == nil; n++ {
			if err := s.Send(ctx, control.Message{Call: true, Payload: []byte("add 1")}); err != nil {
				t.Errorf("message %d: %v", n, err)
				break
			}
			time.Sleep(time.Millisecond) // a client's pace, not a wait
		}
		sent <- n
	}()
	receiving, enough := context.WithCancel(ctx)
	defer enough()
	go func() {
		defer close(received)
		for n := 1; ; n++ {
			r, err := s.Recv(receiving)
			if receiving.Err() != nil {
				return
			}
			if want := strconv.Itoa(n); err != nil || string(r.Payload) != want {
				received <- fmt.Errorf("reply %q, %v, want %s", r.Payload, err, want)
				return
			}
			mu.Lock()
			got = n
			mu.Unlock()
		}
	}()
	replies := func() int {
		mu.Lock()
		defer mu.Unlock()
		return got
	}
	progress := func(what string) {
		t.Helper()
		from := replies()
		waitFor(t, "replies "+what, func() bool {
			select {
			case err := <-received:
				t.Fatal(err)
			default:
			}
			return replies() > from+50
		})
	}
	progress("to begin with")
	users := func() {
		t.Helper()
		waitFor(t, "the worker to know where its user is", func() bool {
			at, _ := access()
			for _, n := range nodes {
				if w := n.worker(mustFind(t, n, "counter")); w != nil {
					u := w.times.summary(time.Now()).users[at.id]
					return u != nil && u.access.P50 > 0
				}
			}
			return false
		})
	}
	users()

	// The connection breaks, and the client comes back.
	breakConn := func() {
		cl.mu.Lock()
		conn := cl.conn
		cl.mu.Unlock()
		conn.Close()
	}
	breakConn()
	progress("behind a broken connection")
	users()

	// The worker moves to the access node, and the client goes to another.
	at, other := access()
	a.migrate(t, "counter", at, control.StrategyAuto)
	progress("behind a move")
	breakConn()
	at.migrate(t, "counter", other, control.StrategyAuto)
	progress("behind a move and a broken connection")
	other.migrate(t, "counter", a, control.StrategyAuto)

	// The access node ends.
	at, _ = access()
	at.stop(t)
	progress("behind the end of the access node")
	stop()
	total := <-sent
	waitFor(t, "the last reply", func() bool { return replies() == total })
	enough()
	if err := <-received; err != nil {
		t.Fatal(err)
	}
	if got := a.call(t, "counter", "get"); got != strconv.Itoa(total) {
		t.Errorf("the counter is %s after %d messages", got, total)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// The home heard the goodbye.
	w := a.worker(mustFind(t, a, "counter"))
	waitFor(t, "the sender to be forgotten", func() bool { senders, _ := w.inbox.depth(); return senders == 0 })
}

// TestRelayAhead gives an access node the replies to messages that the client sent
// by another, before the client has sent them again.
func TestRelayAhead(t *testing.T) {
	s := &Sender{relays: true}
	s.init(5)
	for _, seq := range []uint64{4, 5, 6} { // 4 the client has
		s.arrived(reply{Seq: seq})
	}
	for _, seq := range []uint64{5, 6, 7} { // 5 and 6 were on their way
		if err := s.take(deliverMessage{Seq: seq}); err != nil {
			t.Fatalf("message %d: %v", seq, err)
		}
	}
	s.arrived(reply{Seq: 7})
	for want := uint64(5); want <= 7; want++ {
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // what there is comes all the same
		if r, err := s.Recv(ctx); err != nil || r.Seq != want {
			t.Fatalf("reply %d, %v, want %d", r.Seq, err, want)
		}
	}
	if err := s.acknowledge(7); err != nil {
		t.Fatal(err)
	}
}

func mustFind(t *testing.T, n *testNode, name string) string {
	t.Helper()
	e, err := n.dir.find(name)
	if err != nil {
		t.Fatal(err)
	}
	return e.ID
}

// TestClientServes: a client goes only to nodes that serve it.
func TestClientServes(t *testing.T) {
	n := startNodes(t, 1)[0]
	cl := startClient(t, clientDir(t, n), n)
	served := func() bool {
		conn, _, err := cl.transport.Dial(t.Context(), cl.cfg.Nodes)
		return err == nil && serves(t.Context(), conn)
	}
	if !served() {
		t.Error("a node does not serve its client")
	}
	n.mesh.CloseClients()
	if served() {
		t.Error("a node serves clients while it stops")
	}
}

func TestClientErrors(t *testing.T) {
	n := startNodes(t, 1)[0]
	ctx := t.Context()
	if _, err := NewClient(ClientConfig{StateDir: t.TempDir(), Nodes: []string{"127.0.0.1:1"}}); !errors.Is(err, &control.Error{Code: control.CodeDenied}) {
		t.Errorf("without a certificate: %v", err)
	}
	dir := clientDir(t, n)
	cl := startClient(t, dir, n)
	if _, err := cl.Session(ctx, "nobody"); !errors.Is(err, &control.Error{Code: control.CodeNotFound}) {
		t.Errorf("a worker that is not there: %v", err)
	}
	// A client's certificate makes no node.
	if _, err := New(Config{StateDir: dir, Listen: "127.0.0.1:0"}); !errors.Is(err, mesh.ErrNotNode) {
		t.Errorf("a node on a client's certificate: %v", err)
	}
	// A worker that ends, ends the session, with the reason.
	n.run(t, app(t, "counter"), control.RunRequest{Name: "counter"})
	s, err := cl.Session(ctx, "counter")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.client.Stop(ctx, "counter"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(ctx); !errors.Is(err, &control.Error{Code: control.CodeNotFound}) {
		t.Errorf("a worker that was stopped: %v", err)
	}
}

// TestRelayRules: a client that breaks the rules is let go, and one that repeats
// itself is not.
func TestRelayRules(t *testing.T) {
	s := &Sender{relays: true}
	s.init(3)
	message := func(seq uint64, bytes int) error {
		return s.take(deliverMessage{Seq: seq, Payload: make([]byte, bytes)})
	}
	if err := message(3, 1); err != nil {
		t.Error(err)
	}
	if err := message(3, 1); err != nil || len(s.pending) != 1 {
		t.Errorf("a repetition: %v, %d wait", err, len(s.pending))
	}
	if err := message(5, 1); !errors.Is(err, errGap) {
		t.Errorf("a gap: %v", err)
	}
	if err := message(4, MaxPayload+1); err == nil {
		t.Error("a payload beyond the limit was taken")
	}
	if err := s.acknowledge(3); err == nil {
		t.Error("a reply was acknowledged that nobody has given")
	}
	s.arrived(reply{Seq: 3})
	if err := s.acknowledge(3); err == nil {
		t.Error("a reply was acknowledged that the client has not been sent")
	}
	if r, err := s.Recv(t.Context()); err != nil || r.Seq != 3 || s.acked != 2 {
		t.Errorf("reply %d, %v; the home would hear that replies up to %d have arrived", r.Seq, err, s.acked)
	}
	if err := s.acknowledge(3); err != nil || s.acked != 3 {
		t.Errorf("acknowledged: %v, %d", err, s.acked)
	}
	if err := s.acknowledge(2); err != nil || s.acked != 3 {
		t.Errorf("acknowledged once more: %v, %d", err, s.acked)
	}
	for i := range senderWindow {
		if err := message(uint64(4+i), 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := message(4+senderWindow, 1); err == nil {
		t.Error("more than a window was taken")
	}
}

// One client cannot fill what homes remember of senders, and others, and its own
// sessions, are not held up by its trying.
func TestAttachedBounds(t *testing.T) {
	var as attachments
	now := time.Now()
	id := func(i int) (id senderID) {
		binary.BigEndian.PutUint64(id[:], uint64(i))
		return id
	}
	admit := func(client mesh.NodeID, i int, want bool) {
		t.Helper()
		if err := as.admit(client, id(i), now); (err == nil) != want {
			t.Fatalf("session %d: %v", i, err)
		}
	}
	for i := range maxAttached {
		admit("greedy", i, true)
		if i%2 == 0 {
			as.leave("greedy", id(i), false, now)
		}
	}
	admit("greedy", maxAttached, false)
	admit("greedy", 0, true) // back again
	as.leave("greedy", id(0), false, now)
	admit("modest", maxAttached, true)
	as.leave("greedy", id(1), true, now)
	admit("greedy", maxAttached, true)
	admit("greedy", maxAttached+1, false)
	now = now.Add(senderIdle + 1)
	admit("greedy", maxAttached+1, true)
	if got := len(as.ids["greedy"]); got != maxAttached/2+1 {
		t.Errorf("%d sessions, want those that are open, %d", got, maxAttached/2+1)
	}
}
