package mesh

import (
	"crypto/ed25519"
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/zeebo/blake3"
)

// A Tier says where in the continuum a node stands, or that the holder of a
// certificate is no node at all.
type Tier uint8

// The tiers. Numbers travel; they are only ever appended.
const (
	Device Tier = 1
	Edge   Tier = 2
	Cloud  Tier = 3
	// Client is for programs that talk to workers through nodes; see
	// [ClientTransport]. No node has it, and no node talks to another that does.
	Client Tier = 4
)

func (t Tier) String() string {
	switch t {
	case Device:
		return "device"
	case Edge:
		return "edge"
	case Cloud:
		return "cloud"
	case Client:
		return "client"
	}
	return fmt.Sprintf("tier(%d)", uint8(t))
}

// Valid reports whether t is one of the tiers.
func (t Tier) Valid() bool { return t >= Device && t <= Client }

// node reports whether t is one that nodes have.
func (t Tier) node() bool { return t >= Device && t <= Cloud }

// ParseTier returns the tier called s: device, edge, cloud or client.
func ParseTier(s string) (Tier, error) {
	for t := Device; t <= Client; t++ {
		if s == t.String() {
			return t, nil
		}
	}
	return 0, fmt.Errorf("%w: tier %q is none of device, edge, cloud, client", ErrMalformed, s)
}

// MarshalText implements encoding.TextMarshaler.
func (t Tier) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *Tier) UnmarshalText(b []byte) error {
	v, err := ParseTier(string(b))
	if err == nil {
		*t = v
	}
	return err
}

// A Record is what every node knows about every other through gossip. It is
// the node's own claim, signed with its key.
type Record struct {
	// Name is for people: 1 to 63 printable characters, not unique.
	Name string
	// Tier is the tier in the node's certificate; [New] sets it.
	Tier Tier
	// Arch and OS are Go's names (amd64, linux), at most 16 characters.
	Arch, OS string
	// Cores is the number of usable CPUs.
	Cores uint16
	// MemoryFree is what workers may still claim, in MiB.
	MemoryFree uint32
	// Load is the use of the CPUs over the last seconds, in percent of all of
	// them: 0 to 100.
	Load uint8
	// Endpoints is where the node can be reached, best first, at most 8. The
	// mesh keeps it.
	Endpoints []netip.AddrPort
	// Engine is how Wasm runs here: "compiler" or "interpreter".
	Engine string
	// Paging is how a moved worker's memory arrives: "userfaultfd" (on
	// demand) or "copy" (all of it before the worker resumes).
	Paging string
	// Speed is how many calibration events one core handles in a second under
	// Engine; only ratios of it mean anything. 0 is not measured yet.
	Speed uint32
	// Cordoned says that the node takes no new workers.
	Cordoned bool
	// Leaving says that the node is about to stop; it takes no new workers either.
	Leaving bool
	// DocumentDigest is the BLAKE3 hash of the capability document; zero when
	// there is none. The mesh keeps it.
	DocumentDigest [32]byte
	// Authority says that this node holds the mesh's CA key and can enrol
	// others. The mesh keeps it.
	Authority bool
	// Coordinate is where the node is by the round trips it has seen; the zero
	// value is not known yet. The mesh keeps it.
	Coordinate Coordinate
	// Uplink and Downlink are the rates the node has seen of late on what it
	// sent and received, in KiB a second; 0 is none seen.
	Uplink, Downlink uint32
}

// The format:
//
//	envelope = [version=1, body: bytes, public key: 32 bytes, signature: 64 bytes]
//	body     = map with integer keys, below
//
// all in CBOR, at most maxRecord bytes, which is what memberlist will carry.
// The signature covers recordContext followed by body; the key must hash to
// the node's id. So a record passed on by another member is still the word of
// the node it describes.
const (
	maxRecord     = 512
	recordVersion = 1
	maxName       = 63
	maxWord       = 16
	recordContext = "meshnode record v1\x00"
)

type recordWire struct {
	Name       string         `cbor:"1,keyasint"`
	Tier       uint8          `cbor:"2,keyasint"`
	Arch       string         `cbor:"3,keyasint"`
	OS         string         `cbor:"4,keyasint"`
	Cores      uint16         `cbor:"5,keyasint"`
	MemoryFree uint32         `cbor:"6,keyasint"`
	Load       uint8          `cbor:"7,keyasint"`
	Endpoints  endpointList   `cbor:"8,keyasint,omitempty"`
	Engine     string         `cbor:"9,keyasint,omitempty"`
	Paging     string         `cbor:"10,keyasint,omitempty"`
	Document   []byte         `cbor:"11,keyasint,omitempty"`
	Authority  bool           `cbor:"12,keyasint,omitempty"`
	Speed      uint32         `cbor:"13,keyasint,omitempty"`
	Cordoned   bool           `cbor:"14,keyasint,omitempty"`
	Coordinate coordinateWire `cbor:"15,keyasint,omitempty"`
	Uplink     uint32         `cbor:"16,keyasint,omitempty"`
	Downlink   uint32         `cbor:"17,keyasint,omitempty"`
	Leaving    bool           `cbor:"18,keyasint,omitempty"`
}

type recordEnvelope struct {
	_         struct{} `cbor:",toarray"`
	Version   uint8
	Body      []byte
	Key       []byte
	Signature []byte
}

// Validate rejects a record that could not be gossiped. The error is
// [ErrMalformed] and names the field.
func (r *Record) Validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: record: %s", ErrMalformed, fmt.Sprintf(format, args...))
	}
	if !printable(r.Name) || r.Name == "" || len(r.Name) > maxName {
		return bad("name must have 1 to %d printable bytes, got %q", maxName, clip(r.Name, 80))
	}
	if !r.Tier.node() {
		return bad("tier %d", r.Tier)
	}
	for _, w := range [...]struct{ name, s string }{
		{"arch", r.Arch}, {"os", r.OS}, {"engine", r.Engine}, {"paging", r.Paging},
	} {
		if !printable(w.s) || len(w.s) > maxWord || strings.ContainsRune(w.s, ' ') {
			return bad("%s must be a word of at most %d bytes, got %q", w.name, maxWord, clip(w.s, 80))
		}
	}
	if r.Load > 100 {
		return bad("load %d%%, at most 100", r.Load)
	}
	if len(r.Endpoints) > maxEndpoints {
		return bad("%d endpoints, at most %d", len(r.Endpoints), maxEndpoints)
	}
	for _, a := range r.Endpoints {
		if !validEndpoint(a) {
			return bad("endpoint %v cannot be dialled", a)
		}
	}
	if _, ok := r.Coordinate.wire(); !ok {
		return bad("coordinate %v is no place in a network", r.Coordinate)
	}
	return nil
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}

// encodeRecord validates and signs r.
func encodeRecord(r *Record, key ed25519.PrivateKey) ([]byte, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	w := recordWire{
		Name: r.Name, Tier: uint8(r.Tier), Arch: r.Arch, OS: r.OS, Cores: r.Cores,
		MemoryFree: r.MemoryFree, Load: r.Load, Endpoints: r.Endpoints,
		Engine: r.Engine, Paging: r.Paging, Authority: r.Authority, Speed: r.Speed, Cordoned: r.Cordoned,
		Uplink: r.Uplink, Downlink: r.Downlink, Leaving: r.Leaving,
	}
	w.Coordinate, _ = r.Coordinate.wire() // Validate has seen it
	if r.DocumentDigest != [32]byte{} {
		w.Document = r.DocumentDigest[:]
	}
	body, err := encode(w)
	if err != nil {
		return nil, err
	}
	b, err := encode(recordEnvelope{
		Version: recordVersion, Body: body, Key: key.Public().(ed25519.PublicKey),
		Signature: ed25519.Sign(key, append([]byte(recordContext), body...)),
	})
	if err != nil {
		return nil, err
	}
	if len(b) > maxRecord {
		return nil, fmt.Errorf("%w: record of %d bytes, at most %d", ErrTooLarge, len(b), maxRecord)
	}
	return b, nil
}

// openRecord returns the envelope in b, whose signature is unchecked.
func openRecord(b []byte) (e recordEnvelope, err error) {
	if len(b) > maxRecord {
		return e, fmt.Errorf("%w: record of %d bytes", ErrTooLarge, len(b))
	}
	if err := decode(b, &e); err != nil {
		return e, err
	}
	if e.Version != recordVersion {
		return e, fmt.Errorf("%w: record version %d, this node reads %d", ErrMalformed, e.Version, recordVersion)
	}
	return e, nil
}

// decodeRecord checks that b is a record which the node id signed.
func decodeRecord(id NodeID, b []byte) (Record, error) {
	e, err := openRecord(b)
	if err != nil {
		return Record{}, err
	}
	if len(e.Key) != ed25519.PublicKeySize || len(e.Signature) != ed25519.SignatureSize {
		return Record{}, fmt.Errorf("%w: record key or signature has the wrong length", ErrMalformed)
	}
	if DeriveNodeID(e.Key) != id {
		return Record{}, fmt.Errorf("%w: record is signed by %s, not by the node it is about", ErrMalformed, DeriveNodeID(e.Key))
	}
	if !ed25519.Verify(e.Key, append([]byte(recordContext), e.Body...), e.Signature) {
		return Record{}, fmt.Errorf("%w: record's signature is wrong", ErrMalformed)
	}
	return decodeRecordBody(e.Body)
}

func decodeRecordBody(body []byte) (Record, error) {
	var w recordWire
	if err := decode(body, &w); err != nil {
		return Record{}, err
	}
	r := Record{
		Name: w.Name, Tier: Tier(w.Tier), Arch: w.Arch, OS: w.OS, Cores: w.Cores,
		MemoryFree: w.MemoryFree, Load: w.Load, Endpoints: w.Endpoints,
		Engine: w.Engine, Paging: w.Paging, Authority: w.Authority, Speed: w.Speed, Cordoned: w.Cordoned,
		Uplink: w.Uplink, Downlink: w.Downlink, Leaving: w.Leaving,
	}
	var err error
	if r.Coordinate, err = w.Coordinate.coordinate(); err != nil {
		return Record{}, fmt.Errorf("record: %w", err)
	}
	switch len(w.Document) {
	case 0:
	case len(r.DocumentDigest):
		copy(r.DocumentDigest[:], w.Document)
	default:
		return Record{}, fmt.Errorf("%w: record: document digest of %d bytes", ErrMalformed, len(w.Document))
	}
	if err := r.Validate(); err != nil {
		return Record{}, err
	}
	return r, nil
}

func digestOf(document []byte) [32]byte {
	if len(document) == 0 {
		return [32]byte{}
	}
	return blake3.Sum256(document)
}
