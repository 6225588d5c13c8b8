package mesh

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
)

const protoGuest = "test/guest"

// TestClient connects a client to a mesh: it reaches what is there for clients,
// and nothing else; and nobody takes it for a node.
func TestClient(t *testing.T) {
	dir, log := t.TempDir(), new(logBook)
	if _, err := Found(FoundConfig{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	m, err := New(testConfig(t, dir, "a", log))
	if err != nil {
		t.Fatal(err)
	}
	m.HandleClient(protoGuest, func(_ context.Context, s *Stream) {
		io.WriteString(s, string(s.Peer())+" ")
		io.Copy(s, s)
	})
	a := run(t, m, dir, log)
	ms := enrol(t, t.TempDir(), token(t, a, TokenRequest{Tier: Client}))
	if ms.Tier != Client {
		t.Errorf("enrolled as %v", ms.Tier)
	}
	clientDir := t.TempDir()
	ms = enrol(t, clientDir, token(t, a, TokenRequest{Tier: Client}))
	addr := a.LocalAddr().String()

	ct, err := NewClientTransport(ClientConfig{Dir: clientDir})
	if err != nil {
		t.Fatal(err)
	}
	defer ct.Close()
	// Of several nodes the first that answers serves.
	c, which, err := ct.Dial(t.Context(), []string{"127.0.0.1:9", addr})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if which != 1 || c.Node() != a.ID() || c.Endpoint().String() != addr || c.RTT() <= 0 {
		t.Errorf("connected to %d: node %s at %v, round trip %v", which, c.Node(), c.Endpoint(), c.RTT())
	}
	say := func(protocol string) (string, error) {
		s, err := c.Open(t.Context(), protocol)
		if err != nil {
			return "", err
		}
		defer s.Close()
		if _, err := io.WriteString(s, "hello"); err != nil {
			return "", err
		}
		if err := s.CloseWrite(); err != nil {
			return "", err
		}
		b, err := io.ReadAll(s)
		return string(b), err
	}
	if got, err := say(protoGuest); err != nil || got != string(ms.ID)+" hello" {
		t.Errorf("answered %q, %v", got, err)
	}
	for _, protocol := range []string{protoEcho, protoPing, protoGossip, protoDocument, protoEnrol, protoBye, protoHello} {
		if got, err := say(protocol); !errors.Is(err, ErrUnknownProtocol) {
			t.Errorf("a client reached %s: %q, %v", protocol, got, err)
		}
	}
	if list := a.Members(); len(list) != 1 {
		t.Errorf("the client is a member: %v", list)
	}

	// The certificate is not a node's, whatever it is tried for.
	if _, err := New(testConfig(t, clientDir, "b", log)); !errors.Is(err, ErrNotNode) {
		t.Errorf("a node on a client's certificate: %v", err)
	}
	member := ct.tls.Clone()
	member.NextProtos = []string{alpnUrgent}
	q, err := quic.DialAddr(t.Context(), addr, member, &quic.Config{HandshakeIdleTimeout: time.Minute})
	if err == nil {
		// The client is done before the server has looked at its certificate.
		_, err = q.AcceptStream(t.Context())
		q.CloseWithError(0, "")
	}
	if err == nil {
		t.Error("a client was let in as a node")
	}
	eventually(t, "the refusal in the log", func() bool { return strings.Contains(log.String(), ErrNotNode.Error()) })

	// A node that stops says so to its clients.
	a.stop()
	<-c.Context().Done()
	if _, err := c.Open(t.Context(), protoGuest); !errors.Is(err, ErrUnreachable) {
		t.Errorf("a node that has stopped: %v", err)
	}
}

// TestClientsNode: a client talks to nodes of its own mesh only.
func TestClientsNode(t *testing.T) {
	a, other := found(t, "a"), found(t, "other")
	dir := t.TempDir()
	enrol(t, dir, token(t, a, TokenRequest{Tier: Client}))
	ct, err := NewClientTransport(ClientConfig{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer ct.Close()
	if _, _, err := ct.Dial(t.Context(), []string{other.LocalAddr().String()}); !errors.Is(err, ErrForeignMesh) {
		t.Errorf("a node of another mesh: %v", err)
	}
	if _, err := NewClientTransport(ClientConfig{Dir: t.TempDir()}); !errors.Is(err, ErrNoMesh) {
		t.Errorf("no certificate: %v", err)
	}
}
