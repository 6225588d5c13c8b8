package mesh

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
)

// enrolPatiently is Enrol for tests on loopback, where nobody is out of reach: if
// a call took too long, the machine stood still meanwhile. To ask again costs
// the token no further use.
func enrolPatiently(t *testing.T, cfg EnrolConfig) (ms *Membership, err error) {
	for start := time.Now(); time.Since(start) < 2*time.Minute; {
		ms, err = Enrol(t.Context(), cfg)
		if !errors.Is(err, ErrUnreachable) {
			break
		}
	}
	return ms, err
}

func tryEnrol(t *testing.T, tok string, via ...string) error {
	t.Helper()
	dir := t.TempDir()
	_, err := enrolPatiently(t, EnrolConfig{Dir: dir, Token: tok, Via: via})
	have, herr := HasMembership(dir)
	if herr != nil || have != (err == nil) {
		t.Errorf("after Enrol said %v, HasMembership is %v, %v", err, have, herr)
	}
	return err
}

func TestTokens(t *testing.T) {
	a := found(t, "a")
	other := found(t, "other")

	t.Run("uses", func(t *testing.T) {
		tok := token(t, a, TokenRequest{Uses: 2, Tier: Cloud})
		dir := t.TempDir()
		ms := enrol(t, dir, tok)
		if ms.Tier != Cloud || ms.MeshID != a.MeshID() || ms.Authority {
			t.Errorf("membership: %+v", ms)
		}
		// The same node again, as if the answer had been lost.
		if err := RemoveMembership(dir); err != nil {
			t.Fatal(err)
		}
		if again := enrol(t, dir, tok); again.ID != ms.ID {
			t.Errorf("identity changed from %s to %s", ms.ID, again.ID)
		}
		if err := tryEnrol(t, tok); err != nil {
			t.Errorf("second node: %v", err)
		}
		if err := tryEnrol(t, tok); !errors.Is(err, ErrTokenUsed) {
			t.Errorf("third node: %v, want %v", err, ErrTokenUsed)
		}
		if _, err := Enrol(t.Context(), EnrolConfig{Dir: dir, Token: tok}); !errors.Is(err, ErrHaveMesh) {
			t.Errorf("member enrols: %v, want %v", err, ErrHaveMesh)
		}
		if _, err := Found(FoundConfig{Dir: dir}); !errors.Is(err, ErrHaveMesh) {
			t.Errorf("member founds: %v, want %v", err, ErrHaveMesh)
		}
		eventually(t, "the authority logs why", func() bool { return strings.Contains(a.log.String(), ErrTokenUsed.Error()) })
	})
	t.Run("race for the last use", func(t *testing.T) {
		tok := token(t, a, TokenRequest{Uses: 3})
		errs := make(chan error, 6)
		for range cap(errs) {
			go func() { errs <- tryEnrol(t, tok) }()
		}
		in := 0
		for range cap(errs) {
			if err := <-errs; err == nil {
				in++
			} else if !errors.Is(err, ErrTokenUsed) {
				t.Errorf("enrol: %v", err)
			}
		}
		if in != 3 {
			t.Errorf("%d nodes joined with 3 uses", in)
		}
	})
	t.Run("expired", func(t *testing.T) {
		tok, err := newToken(pinOf(a.ms.ca), Edge, time.Now().Add(-time.Minute), []string{a.LocalAddr().String()})
		if err != nil {
			t.Fatal(err)
		}
		if err := a.store.putToken(tok, 1, time.Now()); err != nil {
			t.Fatal(err)
		}
		if err := tryEnrol(t, tok.String()); !errors.Is(err, ErrTokenExpired) {
			t.Errorf("enrol: %v, want %v", err, ErrTokenExpired)
		}
	})
	t.Run("forged", func(t *testing.T) {
		// An id that never was, and one that was with another secret, cannot
		// be told apart, even when the token is used up or has expired.
		real, err := ParseToken(token(t, a, TokenRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		enrol(t, t.TempDir(), real.String())
		var texts []string
		for _, change := range []func(*Token){
			func(t *Token) { t.id[0] ^= 1 },
			func(t *Token) { t.secret[0] ^= 1 },
		} {
			tok := real
			change(&tok)
			err := tryEnrol(t, tok.String())
			if !errors.Is(err, ErrTokenForged) {
				t.Errorf("enrol: %v, want %v", err, ErrTokenForged)
			}
			texts = append(texts, fmt.Sprint(err))
		}
		if texts[0] != texts[1] {
			t.Errorf("the answers differ: %q, %q", texts[0], texts[1])
		}
		// Who knows what the database holds under an unknown id's default key
		// proves nothing.
		var id tokenID
		_, key, err := a.lookup(id)
		if err != nil {
			t.Fatal(err)
		}
		csr := []byte("x")
		if _, err := a.store.redeem(id, csr, key.proof(id, csr), a.ID(), time.Now()); !errors.Is(err, ErrTokenForged) {
			t.Errorf("redeem of an id that never was: %v", err)
		}
	})
	t.Run("foreign", func(t *testing.T) {
		tok := token(t, other, TokenRequest{})
		if err := tryEnrol(t, tok, a.LocalAddr().String()); !errors.Is(err, ErrForeignMesh) {
			t.Errorf("enrol: %v, want %v", err, ErrForeignMesh)
		}
		eventually(t, "the member logs why", func() bool { return strings.Contains(a.log.String(), "the token is for another mesh") })
	})
	t.Run("malformed", func(t *testing.T) {
		tok := token(t, a, TokenRequest{})
		for _, s := range []string{"", "mn1_", "mn2_" + tok[4:], tok[:len(tok)-1], tok + "A", tok[:10] + "!" + tok[11:], strings.Repeat("A", 1<<20)} {
			if err := tryEnrol(t, s); !errors.Is(err, ErrTokenMalformed) {
				t.Errorf("enrol with %.20q: %v, want %v", s, err, ErrTokenMalformed)
			}
		}
	})
	t.Run("nobody there", func(t *testing.T) {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer pc.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		_, err = Enrol(ctx, EnrolConfig{Dir: t.TempDir(), Token: token(t, a, TokenRequest{}), Via: []string{pc.LocalAddr().String()}})
		if !errors.Is(err, ErrUnreachable) {
			t.Errorf("enrol: %v, want %v", err, ErrUnreachable)
		}
	})
	t.Run("not the authority", func(t *testing.T) {
		b := join(t, a, "b")
		if _, _, err := b.CreateToken(TokenRequest{}); !errors.Is(err, ErrNotAuthority) {
			t.Errorf("create: %v, want %v", err, ErrNotAuthority)
		}
		for _, r := range []TokenRequest{{TTL: -1}, {TTL: time.Millisecond}, {Uses: -1}, {Uses: 1001}, {Tier: 9}} {
			if _, _, err := a.CreateToken(r); !errors.Is(err, ErrMalformed) {
				t.Errorf("create %+v: %v", r, err)
			}
		}
	})
}

func (m *Mesh) lookup(id tokenID) (it *issuedToken, key tokenKey, err error) {
	tx, err := m.store.db.Begin(false)
	if err != nil {
		return nil, key, err
	}
	defer tx.Rollback()
	return getToken(tx, id)
}

// A token works at any member, and the certificate is the authority's.
func TestRelayedEnrolment(t *testing.T) {
	nodes := testMesh(t, 2)
	a, b := nodes[0], nodes[1]
	dir := t.TempDir()
	ms := enrol(t, dir, token(t, a, TokenRequest{Tier: Cloud}), b.LocalAddr().String())
	if ms.Tier != Cloud || ms.MeshID != a.MeshID() {
		t.Errorf("membership: %+v", ms)
	}
	c := start(t, dir, "c")
	converge(t, a, b, c)

	tok := token(t, a, TokenRequest{})
	forged, _ := ParseToken(tok)
	forged.secret[5] ^= 1
	if err := tryEnrol(t, forged.String(), b.LocalAddr().String()); !errors.Is(err, ErrTokenForged) {
		t.Errorf("relayed forged token: %v, want %v", err, ErrTokenForged)
	}
	a.stop()
	eventually(t, "the authority left", func() bool { return b.sees(Left, a) })
	if err := tryEnrol(t, tok, b.LocalAddr().String()); !errors.Is(err, ErrAuthorityUnreachable) {
		t.Errorf("join without the authority: %v, want %v", err, ErrAuthorityUnreachable)
	}
}

// A member that relays cannot use what it sees for another node.
func TestProofIsBound(t *testing.T) {
	a := found(t, "a")
	tok, err := ParseToken(token(t, a, TokenRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	id1, err := CreateIdentity(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	id2, err := CreateIdentity(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	seen, err := (&joiner{tok: tok, id: id1}).request()
	if err != nil {
		t.Fatal(err)
	}
	own, err := (&joiner{tok: tok, id: id2}).request()
	if err != nil {
		t.Fatal(err)
	}
	e := newEnroller(a.Mesh)
	stolen := joinRequest{TokenID: seen.TokenID, Proof: seen.Proof, Request: own.Request}
	if _, _, err := e.decide(&stolen, ""); !errors.Is(err, ErrTokenForged) {
		t.Errorf("another node's proof: %v, want %v", err, ErrTokenForged)
	}
	tampered := seen
	tampered.Request = append([]byte(nil), seen.Request...)
	tampered.Request[len(tampered.Request)-1] ^= 1
	if _, _, err := e.decide(&tampered, ""); !errors.Is(err, ErrMalformed) {
		t.Errorf("request with a wrong signature: %v, want %v", err, ErrMalformed)
	}
	if r, id, err := e.decide(&seen, ""); err != nil || r.Code != joinOK || id != id1.ID() {
		t.Errorf("the real request: %+v, %v", r, err)
	}
}

// clientOf returns a bare QUIC transport.
func clientOf(t *testing.T) *quic.Transport {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	qt := &quic.Transport{Conn: pc}
	t.Cleanup(func() { qt.Close(); pc.Close() })
	return qt
}

func TestStrangersAreRefused(t *testing.T) {
	a := found(t, "a")
	foreign := found(t, "foreign")
	addr := a.LocalAddr()
	dial := func(c *tls.Config) error {
		c.InsecureSkipVerify = true
		c.MinVersion = tls.VersionTLS13
		q, err := clientOf(t).Dial(t.Context(), addr, c, &quic.Config{EnableDatagrams: true})
		if err != nil {
			return err
		}
		// In TLS 1.3 the refusal comes after the client's part is done.
		<-q.Context().Done()
		return context.Cause(q.Context())
	}
	alert := func(err error) int {
		var te *quic.TransportError
		if errors.As(err, &te) && te.Remote && te.ErrorCode.IsCryptoError() {
			return int(te.ErrorCode - 0x100)
		}
		return -1
	}
	t.Run("plain QUIC client", func(t *testing.T) {
		if err := dial(&tls.Config{NextProtos: []string{"h3"}}); alert(err) != 120 {
			t.Errorf("dial: %v, want alert no_application_protocol", err)
		}
		eventually(t, "logged", func() bool { return strings.Contains(a.log.String(), "the caller speaks no meshnode protocol") })
	})
	t.Run("no certificate", func(t *testing.T) {
		if err := dial(&tls.Config{NextProtos: []string{alpnUrgent}}); alert(err) != 116 {
			t.Errorf("dial: %v, want alert certificate_required", err)
		}
		eventually(t, "logged", func() bool { return strings.Contains(a.log.String(), "the caller showed no certificate") })
	})
	t.Run("foreign certificate", func(t *testing.T) {
		err := dial(&tls.Config{NextProtos: []string{alpnBulk}, Certificates: []tls.Certificate{foreign.ms.tlsCertificate()}})
		if alert(err) != 42 || !errors.Is(connError(err), ErrForeignMesh) {
			t.Errorf("dial: %v, want alert bad_certificate", err)
		}
		eventually(t, "logged", func() bool { return strings.Contains(a.log.String(), "certificate of \\\""+string(foreign.ID())) })
	})
	t.Run("certificate of the CA itself", func(t *testing.T) {
		err := dial(&tls.Config{NextProtos: []string{alpnUrgent}, Certificates: []tls.Certificate{{
			Certificate: [][]byte{a.ms.ca.Raw}, PrivateKey: a.ms.caKey}}})
		if alert(err) != 42 {
			t.Errorf("dial: %v, want alert bad_certificate", err)
		}
	})
	t.Run("stolen certificate", func(t *testing.T) {
		_, key, _ := ed25519.GenerateKey(nil)
		err := dial(&tls.Config{NextProtos: []string{alpnUrgent}, Certificates: []tls.Certificate{{
			Certificate: [][]byte{a.ms.cert.Raw}, PrivateKey: key}}})
		if err == nil {
			t.Error("a certificate without its key was accepted")
		}
	})
	t.Run("silent join", func(t *testing.T) {
		q, err := clientOf(t).Dial(t.Context(), addr, &tls.Config{NextProtos: []string{alpnJoin}, InsecureSkipVerify: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer q.CloseWithError(0, "")
		s, err := q.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		s.Write([]byte{0xff, 0xff, 0xff, 0xff, 0})
		<-q.Context().Done()
		if err := context.Cause(q.Context()); !strings.Contains(err.Error(), "join request expected") {
			t.Errorf("an oversized request: %v", err)
		}
	})
	t.Run("member calls a foreign node", func(t *testing.T) {
		id := foreign.ID()
		a.t.recall(id, foreign.Endpoints())
		_, err := a.Open(t.Context(), id, protoPing, Urgent)
		if !errors.Is(err, ErrForeignMesh) {
			t.Errorf("open: %v, want %v", err, ErrForeignMesh)
		}
		eventually(t, "logged there", func() bool {
			return strings.Contains(foreign.log.String(), "the caller refused this node's certificate")
		})
	})
	t.Run("another member answers", func(t *testing.T) {
		b := join(t, a, "b")
		converge(t, a, b)
		id := DeriveNodeID(make([]byte, 32))
		a.t.recall(id, b.Endpoints())
		if _, err := a.Open(t.Context(), id, protoPing, Urgent); !errors.Is(err, ErrWrongPeer) {
			t.Errorf("open: %v, want %v", err, ErrWrongPeer)
		}
	})
	t.Run("foreign seed", func(t *testing.T) {
		dir := t.TempDir()
		if _, err := Found(FoundConfig{Dir: dir}); err != nil {
			t.Fatal(err)
		}
		lost := start(t, dir, "lost", func(c *Config) { c.Seeds = []string{addr.String()} })
		eventually(t, "logged", func() bool { return strings.Contains(lost.log.String(), "cannot join") })
	})
}

// Too many joins at a time are turned away, and nothing else suffers.
func TestJoinFlood(t *testing.T) {
	a := found(t, "a")
	qt := clientOf(t)
	var open []*quic.Conn
	tok := token(t, a, TokenRequest{Uses: maxTokenUses})
	eventually(t, "all slots are taken", func() bool {
		// Those who are silent for long lose their slots; others come.
		open = slices.DeleteFunc(open, func(q *quic.Conn) bool { return q.Context().Err() != nil })
		for len(open) < maxJoins {
			q, err := qt.Dial(t.Context(), a.LocalAddr(), &tls.Config{NextProtos: []string{alpnJoin}, InsecureSkipVerify: true}, nil)
			if err != nil {
				t.Logf("dial: %v", err)
				return false
			}
			open = append(open, q)
		}
		return errors.Is(tryEnrol(t, tok), ErrBusy) && strings.Contains(a.log.String(), "too many joins at a time")
	})
	for _, q := range open {
		q.CloseWithError(0, "")
	}
	dir := t.TempDir()
	eventually(t, "the flood is over", func() bool {
		_, err := Enrol(t.Context(), EnrolConfig{Dir: dir, Token: tok})
		return err == nil
	})
}

func TestIdentity(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "er")
	if _, err := LoadIdentity(dir); !errors.Is(err, ErrNoIdentity) {
		t.Errorf("load of nothing: %v", err)
	}
	a, err := CreateIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := CreateIdentity(dir); !errors.Is(err, ErrHaveIdentity) {
		t.Errorf("second create: %v", err)
	}
	b, err := LoadIdentity(dir)
	if err != nil || a.ID() != b.ID() || !a.ID().Valid() {
		t.Errorf("load: %v, %v", b, err)
	}
	path := filepath.Join(dir, identityFile)
	if runtime.GOOS != "windows" {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("key file: %v, %v", info.Mode(), err)
		}
		if err := os.Chmod(path, 0o640); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadIdentity(dir); !errors.Is(err, ErrInsecureKey) || !strings.Contains(err.Error(), "chmod 600") {
			t.Errorf("load of a readable key: %v", err)
		}
		if _, err := EnsureIdentity(dir); !errors.Is(err, ErrInsecureKey) {
			t.Errorf("ensure with a readable key: %v", err)
		}
	}
	os.Chmod(path, 0o600)
	if err := os.WriteFile(path, []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := EnsureIdentity(dir); !errors.Is(err, ErrMalformed) {
		t.Errorf("ensure with a damaged key: %v", err)
	}
	if b, _ := os.ReadFile(path); string(b) != "rubbish" {
		t.Error("a damaged key was overwritten")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*tmp*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	// Many at once: one key.
	dir = t.TempDir()
	ids := make(chan NodeID, 8)
	for range cap(ids) {
		go func() {
			id, err := EnsureIdentity(dir)
			if err != nil {
				t.Errorf("ensure: %v", err)
				ids <- ""
				return
			}
			ids <- id.ID()
		}()
	}
	first := <-ids
	for range cap(ids) - 1 {
		if id := <-ids; id != first {
			t.Errorf("ids %s and %s", first, id)
		}
	}
}

func TestMembershipFiles(t *testing.T) {
	dir := t.TempDir()
	if _, err := LoadMembership(dir); !errors.Is(err, ErrNoMesh) {
		t.Errorf("load of nothing: %v", err)
	}
	if _, err := New(Config{Dir: dir}); !errors.Is(err, ErrNoMesh) {
		t.Errorf("New on nothing: %v", err)
	}
	ms, err := Found(FoundConfig{Dir: dir, Tier: Cloud})
	if err != nil {
		t.Fatal(err)
	}
	if !ms.Authority || ms.Tier != Cloud || len(ms.MeshID) != idChars {
		t.Errorf("membership: %+v", ms)
	}
	// Another node's key beside this certificate.
	other, err := CreateIdentity(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(dir, identityFile)
	old, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeKey(key, other.key, false); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadMembership(dir); !errors.Is(err, ErrMalformed) {
		t.Errorf("load with another key: %v", err)
	}
	if err := os.WriteFile(key, old, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, caKeyFile), filepath.Join(dir, "away")); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadMembership(dir); err == nil || !strings.Contains(err.Error(), "authority") {
		t.Errorf("load without the CA's key: %v", err)
	}
	if err := RemoveMembership(dir); err != nil {
		t.Fatal(err)
	}
	if have, err := HasMembership(dir); have || err != nil {
		t.Errorf("after removing: %v, %v", have, err)
	}
	if err := RemoveMembership(dir); err != nil {
		t.Errorf("removing nothing: %v", err)
	}
	if id, err := LoadIdentity(dir); err != nil || id.ID() != ms.ID {
		t.Errorf("identity after removing: %v, %v", id, err)
	}
}

// Certificates hold for a clock that is behind, and not for ever.
func TestClockSkew(t *testing.T) {
	ms, err := Found(FoundConfig{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		now time.Time
		ok  bool
	}{
		{time.Unix(0, 0), true},
		{time.Now().Add(-time.Hour), true},
		{time.Now(), true},
		{ms.Expires.Add(time.Hour), false},
	} {
		if _, err := verifyMember(ms.cert, ms.ca, c.now); (err == nil) != c.ok {
			t.Errorf("at %v: %v", c.now, err)
		}
	}
}

func TestVerifyMember(t *testing.T) {
	ms, err := Found(FoundConfig{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	other, err := Found(FoundConfig{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := verifyMember(other.cert, ms.ca, time.Now()); !errors.Is(err, ErrForeignMesh) {
		t.Errorf("foreign certificate: %v", err)
	}
	// A certificate of this CA that names another node than its key's.
	der, err := issueCert(ms.ca, ms.caKey, other.identity.PublicKey(), peerCert{id: ms.ID, tier: Edge}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := verifyMember(c, ms.ca, time.Now()); !errors.Is(err, ErrMalformed) {
		t.Errorf("certificate that names another node: %v", err)
	}
}

// A damaged mesh.db is refused with its name and what to do, and left as it is.
func TestStoreDamaged(t *testing.T) {
	dir := t.TempDir()
	st, err := openStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, storeFile)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	clear(b[2*os.Getpagesize():])
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = openStore(dir)
	if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "move it away") {
		t.Errorf("got %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || !slices.Equal(after, b) {
		t.Errorf("the file was changed, %v", err)
	}
}
