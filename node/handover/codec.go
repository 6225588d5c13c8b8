package handover

import (
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

var (
	// ErrUnknownType means a message of a type that this version does not
	// know, or that is reserved. Log it and go on: the peer may be newer.
	ErrUnknownType = errors.New("unknown message type")
	// ErrMessage means bytes that are not a message. The peer is broken.
	ErrMessage = errors.New("not a hand-over message")
)

const (
	// DefaultMaxHead is the default limit for COMMIT's head and FROZEN's table,
	// in bytes of their encoding.
	DefaultMaxHead = 16 << 20
	// MaxBodyBytes limits the encoded body of every other message.
	MaxBodyBytes = 64 << 10
	// envelopeBytes is more than the envelope adds to a body.
	envelopeBytes = 256
)

// Limits are the limits for decoding. The zero value works.
type Limits struct {
	// MaxHead limits the bodies of COMMIT and FROZEN, in bytes; 0 means
	// DefaultMaxHead.
	MaxHead int
}

func (l Limits) maxHead() int {
	if l.MaxHead <= 0 {
		return DefaultMaxHead
	}
	return l.MaxHead
}

// MaxMessage returns the most bytes that a message may have; a reader refuses
// longer frames before it allocates.
func (l Limits) MaxMessage() int { return max(l.maxHead(), MaxBodyBytes) + envelopeBytes }

func (l Limits) body(t Type) int {
	if t == TypeCommit || t == TypeFrozen {
		return l.maxHead()
	}
	return MaxBodyBytes
}

// An envelope is a message on the wire: a CBOR map with integer keys.
//
//	1  move         16 bytes
//	2  type         uint8
//	3  incarnation  uint64, of the sender, not 0
//	4  ticket       uint64, of the destination; absent for 0
//	5  worker       text, the worker's id
//	6  body         map with integer keys, by type
type envelope struct {
	Move        MoveID          `cbor:"1,keyasint"`
	Type        Type            `cbor:"2,keyasint"`
	Incarnation uint64          `cbor:"3,keyasint"`
	Ticket      uint64          `cbor:"4,keyasint,omitempty"`
	Worker      string          `cbor:"5,keyasint"`
	Body        cbor.RawMessage `cbor:"6,keyasint"`
}

// The modes are made once and never written to again: globals that are
// constants but for the language.
var encMode, decMode = modes()

func modes() (cbor.EncMode, cbor.DecMode) {
	enc, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		panic(err)
	}
	dec, err := cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		IndefLength:      cbor.IndefLengthForbidden,
		TagsMd:           cbor.TagsForbidden,
		UTF8:             cbor.UTF8RejectInvalid,
		MaxNestedLevels:  8,
		MaxArrayElements: 64,
		MaxMapPairs:      64,
	}.DecMode()
	if err != nil {
		panic(err)
	}
	return enc, dec
}

// Encode returns m's bytes. It fails if m could not be decoded by the peer with
// the same limits.
func (l Limits) Encode(m Message) ([]byte, error) {
	if m.Body == nil {
		return nil, errors.New("encode hand-over message: no body")
	}
	t := m.Body.Type()
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("encode %s: %w", t, err)
	}
	body, err := encMode.Marshal(m.Body)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", t, err)
	}
	if len(body) > l.body(t) {
		return nil, fmt.Errorf("encode %s: %d bytes, limit %d", t, len(body), l.body(t))
	}
	b, err := encMode.Marshal(envelope{m.Move, t, m.Incarnation, m.Ticket, m.Worker, body})
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", t, err)
	}
	return b, nil
}

// Decode returns the message in b. The error wraps ErrUnknownType or ErrMessage.
// Keys that this version does not know are skipped. The message keeps no
// reference to b.
func (l Limits) Decode(b []byte) (Message, error) {
	if len(b) > l.MaxMessage() {
		return Message{}, fmt.Errorf("%w: %d bytes, limit %d", ErrMessage, len(b), l.MaxMessage())
	}
	if len(b) == 0 || b[0]>>5 != 5 {
		return Message{}, fmt.Errorf("%w: not a map", ErrMessage)
	}
	var e envelope
	if err := decMode.Unmarshal(b, &e); err != nil {
		return Message{}, fmt.Errorf("%w: %w", ErrMessage, err)
	}
	if len(e.Body) > l.body(e.Type) {
		return Message{}, fmt.Errorf("%w: %s with a body of %d bytes, limit %d", ErrMessage, e.Type, len(e.Body), l.body(e.Type))
	}
	m := Message{Move: e.Move, Incarnation: e.Incarnation, Ticket: e.Ticket, Worker: e.Worker}
	var err error
	switch e.Type {
	case TypeOffer:
		m.Body, err = decodeBody[Offer](e.Body)
	case TypeAccept:
		m.Body, err = decodeBody[Accept](e.Body)
	case TypeRefuse:
		m.Body, err = decodeBody[Refuse](e.Body)
	case TypeFrozen:
		m.Body, err = decodeBody[FrozenBody](e.Body)
	case TypeFilled:
		m.Body, err = decodeBody[Filled](e.Body)
	case TypeCommit:
		m.Body, err = decodeBody[Commit](e.Body)
	case TypeRunning:
		m.Body, err = decodeBody[Running](e.Body)
	case TypeTaken:
		m.Body, err = decodeBody[Taken](e.Body)
	case TypeDrained:
		m.Body, err = decodeBody[Drained](e.Body)
	case TypeDone:
		m.Body, err = decodeBody[Done](e.Body)
	case TypeRejected:
		m.Body, err = decodeBody[Rejected](e.Body)
	case TypeAbort:
		m.Body, err = decodeBody[Abort](e.Body)
	case TypeQuery:
		m.Body, err = decodeBody[Query](e.Body)
	case TypeStatus:
		m.Body, err = decodeBody[Status](e.Body)
	default:
		return Message{}, fmt.Errorf("%w: %s", ErrUnknownType, e.Type)
	}
	if err == nil {
		err = m.check()
	}
	if err != nil {
		return Message{}, fmt.Errorf("%w: %s: %w", ErrMessage, e.Type, err)
	}
	return m, nil
}

func decodeBody[B Body](raw []byte) (Body, error) {
	var b B
	if len(raw) == 0 {
		return nil, errors.New("no body")
	}
	// Major type 5: cbor takes null for an empty struct, and so an empty
	// COMMIT for a COMMIT.
	if raw[0]>>5 != 5 {
		return nil, errors.New("body is not a map")
	}
	err := decMode.Unmarshal(raw, &b)
	return b, err
}

func (m Message) check() error {
	if m.Move == (MoveID{}) {
		return errors.New("no move id")
	}
	if m.Incarnation == 0 {
		return errors.New("no incarnation")
	}
	if !printable(m.Worker, 64) {
		return errors.New("worker id")
	}
	if o, ok := m.Body.(Offer); ok && o.Worker != m.Worker {
		return errors.New("two worker ids")
	}
	return m.Body.validate()
}

// MarshalCBOR writes m as a byte string of 16.
func (m MoveID) MarshalCBOR() ([]byte, error) { return append([]byte{0x50}, m[:]...), nil }

// UnmarshalCBOR reads a byte string of exactly 16; cbor's own reading of arrays
// pads and cuts.
func (m *MoveID) UnmarshalCBOR(b []byte) error {
	if len(b) != 17 || b[0] != 0x50 {
		return errors.New("move id is not a string of 16 bytes")
	}
	copy(m[:], b[1:])
	return nil
}

// MarshalCBOR writes h as a byte string of 32.
func (h Hash) MarshalCBOR() ([]byte, error) { return append([]byte{0x58, 32}, h[:]...), nil }

// UnmarshalCBOR reads a byte string of exactly 32.
func (h *Hash) UnmarshalCBOR(b []byte) error {
	if len(b) != 34 || b[0] != 0x58 || b[1] != 32 {
		return errors.New("hash is not a string of 32 bytes")
	}
	copy(h[:], b[2:])
	return nil
}
