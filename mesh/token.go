package mesh

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/zeebo/blake3"
)

// A Token is what a node needs to join a mesh: whom to ask, how to know that
// the right one answers, and a secret. Whoever has it can join in its place.
//
// As text it is mn1_ followed by base64url, without padding, of the CBOR array
//
//	[pin: 32 bytes, id: 16 bytes, secret: 32 bytes, expiry: Unix seconds,
//	 tier: uint, endpoints: up to 4 strings HOST:PORT]
type Token struct {
	// Tier is the tier the node will have.
	Tier Tier
	// Expires is when it ends by the authority's clock, to the second.
	Expires time.Time
	// Endpoints is where members of the mesh were when it was made.
	Endpoints []string

	pin    caPin
	id     tokenID
	secret [32]byte
}

type tokenID [16]byte

// String names the token in logs; it gives no power.
func (id tokenID) String() string { return hex.EncodeToString(id[:4]) }

const (
	tokenPrefix       = "mn1_"
	maxToken          = 2048 // characters
	maxTokenEndpoints = 4
)

type tokenWire struct {
	_         struct{} `cbor:",toarray"`
	Pin       []byte
	ID        []byte
	Secret    []byte
	Expires   int64
	Tier      uint8
	Endpoints []string
}

// String returns the token as text. It contains the secret.
func (t Token) String() string {
	b, err := encode(tokenWire{
		Pin: t.pin[:], ID: t.id[:], Secret: t.secret[:], Expires: t.Expires.Unix(),
		Tier: uint8(t.Tier), Endpoints: append([]string{}, t.Endpoints...),
	})
	if err != nil {
		panic(err) // plain types
	}
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// LogValue keeps the secret out of logs.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.id.String()) }

// ParseToken reads a token. The error is [ErrTokenMalformed]; whether the
// token is good, only the mesh can tell.
func ParseToken(s string) (Token, error) {
	var t Token
	bad := func(format string, args ...any) (Token, error) {
		return Token{}, fmt.Errorf("%w: %s", ErrTokenMalformed, fmt.Sprintf(format, args...))
	}
	if len(s) > maxToken {
		return bad("%d characters, at most %d", len(s), maxToken)
	}
	rest, ok := strings.CutPrefix(s, tokenPrefix)
	if !ok {
		return bad("it does not begin with %s", tokenPrefix)
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(rest)
	if err != nil {
		return bad("a character is wrong or missing")
	}
	var w tokenWire
	if err := decode(raw, &w); err != nil {
		return bad("its content is damaged")
	}
	if len(w.Pin) != len(t.pin) || len(w.ID) != len(t.id) || len(w.Secret) != len(t.secret) {
		return bad("a field has the wrong length")
	}
	copy(t.pin[:], w.Pin)
	copy(t.id[:], w.ID)
	copy(t.secret[:], w.Secret)
	// Year 9999: what time.Time can print and RFC 3339 can hold.
	if w.Expires < 0 || w.Expires > 253402300799 {
		return bad("its expiry is out of range")
	}
	t.Expires = time.Unix(w.Expires, 0)
	if t.Tier = Tier(w.Tier); !t.Tier.Valid() {
		return bad("tier %d", w.Tier)
	}
	if len(w.Endpoints) > maxTokenEndpoints {
		return bad("%d endpoints, at most %d", len(w.Endpoints), maxTokenEndpoints)
	}
	for _, e := range w.Endpoints {
		if err := checkHostPort(e); err != nil {
			return bad("%v", err)
		}
	}
	t.Endpoints = w.Endpoints
	// One token, one spelling.
	if t.String() != s {
		return bad("it is not written the way this program writes it")
	}
	return t, nil
}

func newToken(ca caPin, tier Tier, expires time.Time, endpoints []string) (Token, error) {
	t := Token{Tier: tier, Expires: time.Unix(expires.Unix(), 0), Endpoints: endpoints, pin: ca}
	if len(t.Endpoints) > maxTokenEndpoints {
		t.Endpoints = t.Endpoints[:maxTokenEndpoints]
	}
	if _, err := rand.Read(t.id[:]); err != nil {
		return Token{}, err
	}
	if _, err := rand.Read(t.secret[:]); err != nil {
		return Token{}, err
	}
	return t, nil
}

// A tokenKey is the hash of a token's secret, which is all the authority
// keeps. It is also the key of the proof below, so that the member that passes
// a request on to the authority learns nothing it could join with itself.
type tokenKey [32]byte

func (t Token) key() tokenKey {
	var k tokenKey
	blake3.DeriveKey("meshnode 2025 join token key", t.secret[:], k[:])
	return k
}

// proof binds the knowledge of the secret to one certificate request.
func (k tokenKey) proof(id tokenID, csr []byte) []byte {
	h, err := blake3.NewKeyed(k[:])
	if err != nil {
		panic(err) // 32 bytes
	}
	h.Write([]byte("meshnode join v1\x00"))
	h.Write(id[:])
	h.Write(csr)
	return h.Sum(nil)
}
