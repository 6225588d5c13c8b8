package mesh

import (
	"crypto/ed25519"
	"encoding/base32"
	"fmt"
	"net"
	"net/netip"

	"github.com/zeebo/blake3"
)

// A NodeID names a node for as long as it keeps its key: the first 16 bytes of
// the BLAKE3 hash of its Ed25519 public key in lower-case base32 (RFC 4648)
// without padding, 26 characters.
type NodeID string

const (
	idBytes = 16
	idChars = 26
)

var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// DeriveNodeID returns the id of the node that holds key.
func DeriveNodeID(key ed25519.PublicKey) NodeID {
	return NodeID(shortHash(key))
}

func shortHash(b []byte) string {
	sum := blake3.Sum256(b)
	return idEncoding.EncodeToString(sum[:idBytes])
}

// ParseNodeID checks that s has the form of a node id. The error is
// [ErrMalformed].
func ParseNodeID(s string) (NodeID, error) {
	if len(s) != idChars {
		return "", fmt.Errorf("%w: a node id has %d characters, not %d", ErrMalformed, idChars, len(s))
	}
	raw, err := idEncoding.DecodeString(s)
	// 26 characters hold 130 bits: the two that are left over must be zero, or
	// one node would have four spellings.
	if err != nil || len(raw) != idBytes || idEncoding.EncodeToString(raw) != s {
		return "", fmt.Errorf("%w: node id has characters outside a-z2-7", ErrMalformed)
	}
	return NodeID(s), nil
}

// Valid reports whether id has the form of a node id.
func (id NodeID) Valid() bool {
	_, err := ParseNodeID(string(id))
	return err == nil
}

// Short returns the first eight characters, enough for a person to tell the
// nodes of a mesh apart.
func (id NodeID) Short() string {
	if len(id) < 8 {
		return string(id)
	}
	return string(id[:8])
}

// gossipPort is the port of every synthetic address. It means nothing.
const gossipPort = 7946

// gossipAddr returns the address under which gossip knows a node: in the
// unique local range fd00::/8 (RFC 4193), the rest a hash of the id. It never
// changes, whatever network the node roams to; memberlist refuses a live node
// that changes its address.
func gossipAddr(id NodeID) netip.Addr {
	sum := blake3.Sum256([]byte("meshnode gossip address " + string(id)))
	var a [16]byte
	a[0] = 0xfd
	copy(a[1:], sum[:15])
	return netip.AddrFrom16(a)
}

func gossipUDPAddr(id NodeID) *net.UDPAddr {
	return net.UDPAddrFromAddrPort(netip.AddrPortFrom(gossipAddr(id), gossipPort))
}
