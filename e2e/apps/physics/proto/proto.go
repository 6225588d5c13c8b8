// Package proto is the binary protocol of the physics worker: what a client
// sends in a call, and what it gets back. It depends on nothing, so that both
// sides and any tool can import it.
//
// A request begins with its operation, a byte below 0x20, which tells it from
// the text commands that the worker also takes. All numbers are big endian,
// floating point numbers IEEE 754 single precision.
//
// A request that is refused ends the call with a code other than zero and the
// reason as text instead of the replies described here.
package proto

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// ErrMalformed is what every parse error unwraps to.
var ErrMalformed = errors.New("malformed")

// The operations. Numbers are only ever appended.
const (
	OpTick   = 0x01 // a Tick; the reply is a Reply
	OpInit   = 0x02 // an Init; the reply is a Reply without digest and frame
	OpFrame  = 0x03 // no more bytes; the reply is a Reply with a frame
	OpDigest = 0x04 // no more bytes; the reply is a Reply with a digest
)

// MaxInputs is how many inputs one tick can carry.
const MaxInputs = 255

// An Init starts the world anew:
//
//	op     uint8   // OpInit
//	cubes  uint16  // 1 to MaxCubes
//	seed   uint64
type Init struct {
	Cubes uint16
	Seed  uint64
}

// Append appends the request to b.
func (i Init) Append(b []byte) []byte {
	b = append(b, OpInit)
	b = binary.BigEndian.AppendUint16(b, i.Cubes)
	return binary.BigEndian.AppendUint64(b, i.Seed)
}

// ParseInit is the inverse of Append.
func ParseInit(b []byte) (Init, error) {
	if len(b) != 11 || b[0] != OpInit {
		return Init{}, fmt.Errorf("init of %d bytes: %w", len(b), ErrMalformed)
	}
	return Init{binary.BigEndian.Uint16(b[1:]), binary.BigEndian.Uint64(b[3:])}, nil
}

// A Tick applies inputs and then advances the world. The worker refuses it at
// the first input that makes no sense; those before it hold, and no step is
// made:
//
//	op      uint8    // OpTick
//	flags   uint8    // 1: reply with a frame, 2: with a digest
//	steps   uint8    // ticks to advance, all after the inputs; 0 is allowed
//	inputs  uint8    // their number
//	...              // the inputs
type Tick struct {
	Frame, Digest bool
	Steps         uint8
	Inputs        []Input // at most MaxInputs
}

const (
	flagFrame  = 1
	flagDigest = 2
)

// The kinds of input.
const (
	Push    = 1
	Explode = 2
	Gravity = 3
)

// An Input acts on the world before a tick:
//
//	kind  uint8       // Push
//	cube  uint16
//	x, y, z float32   // impulse in newton seconds; a cube weighs 1 kg
//
//	kind  uint8       // Explode
//	x, y, z float32   // where, in metres; y points up
//	radius float32    // in metres
//	strength float32  // in newton seconds, at the centre
//
//	kind  uint8       // Gravity
//	x, y, z float32   // in m/s²
type Input struct {
	Kind     uint8
	Cube     uint16 // Push only
	Vec      [3]float32
	Radius   float32 // Explode only
	Strength float32 // Explode only
}

// Append appends the request to b. It panics if there are more than MaxInputs
// inputs or one of an unknown kind.
func (t *Tick) Append(b []byte) []byte {
	if len(t.Inputs) > MaxInputs {
		panic("proto: too many inputs")
	}
	var flags uint8
	if t.Frame {
		flags |= flagFrame
	}
	if t.Digest {
		flags |= flagDigest
	}
	b = append(b, OpTick, flags, t.Steps, uint8(len(t.Inputs)))
	for _, in := range t.Inputs {
		b = append(b, in.Kind)
		switch in.Kind {
		case Push:
			b = binary.BigEndian.AppendUint16(b, in.Cube)
			b = appendFloats(b, in.Vec[:]...)
		case Explode:
			b = appendFloats(b, in.Vec[:]...)
			b = appendFloats(b, in.Radius, in.Strength)
		case Gravity:
			b = appendFloats(b, in.Vec[:]...)
		default:
			panic("proto: unknown kind of input")
		}
	}
	return b
}

// Parse is the inverse of Append. It reuses t.Inputs, so that a worker that
// parses one tick after another leaves no garbage. After an error t is
// undefined. Numbers are not judged here: they may be infinite or NaN.
func (t *Tick) Parse(b []byte) error {
	if len(b) < 4 || b[0] != OpTick {
		return fmt.Errorf("tick of %d bytes: %w", len(b), ErrMalformed)
	}
	if b[1]&^(flagFrame|flagDigest) != 0 {
		return fmt.Errorf("tick with unknown flags %#x: %w", b[1], ErrMalformed)
	}
	t.Frame, t.Digest = b[1]&flagFrame != 0, b[1]&flagDigest != 0
	t.Steps = b[2]
	t.Inputs = t.Inputs[:0]
	n := int(b[3])
	b = b[4:]
	for i := range n {
		if len(b) == 0 {
			return fmt.Errorf("tick ends before input %d of %d: %w", i, n, ErrMalformed)
		}
		in := Input{Kind: b[0]}
		b = b[1:]
		size := 12
		switch in.Kind {
		case Push:
			size += 2
		case Explode:
			size += 8
		case Gravity:
		default:
			return fmt.Errorf("input %d of unknown kind %d: %w", i, in.Kind, ErrMalformed)
		}
		if len(b) < size {
			return fmt.Errorf("input %d is cut short: %w", i, ErrMalformed)
		}
		rest := b[size:]
		if in.Kind == Push {
			in.Cube = binary.BigEndian.Uint16(b)
			b = b[2:]
		}
		in.Vec = [3]float32{float(b), float(b[4:]), float(b[8:])}
		if in.Kind == Explode {
			in.Radius, in.Strength = float(b[12:]), float(b[16:])
		}
		t.Inputs = append(t.Inputs, in)
		b = rest
	}
	if len(b) != 0 {
		return fmt.Errorf("%d bytes after a tick: %w", len(b), ErrMalformed)
	}
	return nil
}

// A Reply answers a request:
//
//	flags   uint8     // 1: a frame follows, 2: a digest follows
//	tick    uint64    // how many ticks the world has made
//	digest  [32]byte  // if so flagged
//	frame   ...       // if so flagged, to the end: see Frame
type Reply struct {
	Tick   uint64
	Digest *[32]byte // BLAKE3 of the world's whole state; nil if not asked for
	Frame  []byte    // for ParseFrame; nil if not asked for
}

// AppendReply appends a reply's beginning to b. With frame, the frame has to be
// appended by the caller; digest may be nil.
func AppendReply(b []byte, tick uint64, digest *[32]byte, frame bool) []byte {
	var flags uint8
	if frame {
		flags |= flagFrame
	}
	if digest != nil {
		flags |= flagDigest
	}
	b = append(b, flags)
	b = binary.BigEndian.AppendUint64(b, tick)
	if digest != nil {
		b = append(b, digest[:]...)
	}
	return b
}

// ParseReply reads a reply. Its frame points into b and is not looked at.
func ParseReply(b []byte) (Reply, error) {
	if len(b) < 9 || b[0]&^(flagFrame|flagDigest) != 0 {
		return Reply{}, fmt.Errorf("reply of %d bytes: %w", len(b), ErrMalformed)
	}
	r := Reply{Tick: binary.BigEndian.Uint64(b[1:])}
	flags := b[0]
	b = b[9:]
	if flags&flagDigest != 0 {
		if len(b) < 32 {
			return Reply{}, fmt.Errorf("reply with half a digest: %w", ErrMalformed)
		}
		r.Digest = new([32]byte)
		copy(r.Digest[:], b)
		b = b[32:]
	}
	if flags&flagFrame != 0 {
		r.Frame = b
	} else if len(b) != 0 {
		return Reply{}, fmt.Errorf("%d bytes after a reply: %w", len(b), ErrMalformed)
	}
	return r, nil
}

func appendFloats(b []byte, vs ...float32) []byte {
	for _, v := range vs {
		b = binary.BigEndian.AppendUint32(b, math.Float32bits(v))
	}
	return b
}

func float(b []byte) float32 {
	return math.Float32frombits(binary.BigEndian.Uint32(b))
}
