package proto

import (
	"encoding/binary"
	"fmt"
	"math"
)

// MaxCubes is how many cubes a world, and so a frame, can hold.
const MaxCubes = 8192

// A Frame is what there is to see of a world:
//
//	version  uint8    // 1
//	tick     uint64
//	wall     float32  // distance of the four walls from the middle, in metres
//	cubes    uint16
//	...               // 10 bytes a cube
//
// and a cube is
//
//	x, y, z  int16    // of its centre in 1/512 m; y points up
//	rotation uint32   // see packRotation
//
// which places it to a millimetre and turns it to a tenth of a degree. All
// cubes have sides of 1 m.
type Frame struct {
	Tick  uint64
	Wall  float32
	Cubes []Cube
}

// A Cube is where a cube is, in metres, and its rotation as a unit quaternion
// (w, x, y, z).
type Cube struct {
	Pos [3]float32
	Rot [4]float32
}

const (
	frameVersion = 1
	frameHeader  = 15
	cubeSize     = 10
	perMetre     = 512
)

// AppendFrame appends the beginning of a frame to b; that many calls of
// AppendCube have to follow.
func AppendFrame(b []byte, tick uint64, wall float32, cubes int) []byte {
	if cubes < 0 || cubes > MaxCubes {
		panic("proto: too many cubes for a frame")
	}
	b = append(b, frameVersion)
	b = binary.BigEndian.AppendUint64(b, tick)
	b = appendFloats(b, wall)
	return binary.BigEndian.AppendUint16(b, uint16(cubes))
}

// AppendCube appends a cube to b, rounded. What is farther than 64 m from the
// middle is shown at that distance.
func AppendCube(b []byte, pos [3]float32, rot [4]float32) []byte {
	for _, x := range pos {
		q := math.RoundToEven(float64(x) * perMetre)
		if q > math.MaxInt16 {
			q = math.MaxInt16
		} else if !(q >= math.MinInt16) { // NaN too
			q = math.MinInt16
		}
		b = binary.BigEndian.AppendUint16(b, uint16(int16(q)))
	}
	return binary.BigEndian.AppendUint32(b, packRotation(rot))
}

// ParseFrame reads a frame.
func ParseFrame(b []byte) (Frame, error) {
	if len(b) < frameHeader || b[0] != frameVersion {
		return Frame{}, fmt.Errorf("frame of %d bytes: %w", len(b), ErrMalformed)
	}
	n := int(binary.BigEndian.Uint16(b[13:]))
	if n > MaxCubes || len(b) != frameHeader+n*cubeSize {
		return Frame{}, fmt.Errorf("frame of %d cubes in %d bytes: %w", n, len(b), ErrMalformed)
	}
	f := Frame{Tick: binary.BigEndian.Uint64(b[1:]), Wall: float(b[9:]), Cubes: make([]Cube, n)}
	for i := range f.Cubes {
		p := b[frameHeader+i*cubeSize:]
		c := &f.Cubes[i]
		for k := range c.Pos {
			c.Pos[k] = float32(int16(binary.BigEndian.Uint16(p[2*k:]))) / perMetre
		}
		c.Rot = unpackRotation(binary.BigEndian.Uint32(p[6:]))
	}
	return f, nil
}

// packRotation packs a unit quaternion into 32 bits: two bits say which
// component is largest in magnitude, and ten bits each hold the other three,
// which are at most 1/sqrt(2). The largest follows from the length being 1, and
// is made positive, since a quaternion and its negative are the same rotation.
func packRotation(q [4]float32) uint32 {
	big := 0
	for i := 1; i < 4; i++ {
		if math.Abs(float64(q[i])) > math.Abs(float64(q[big])) {
			big = i
		}
	}
	scale := 511 * math.Sqrt2
	if q[big] < 0 {
		scale = -scale
	}
	packed := uint32(big)
	for i := range q {
		if i == big {
			continue
		}
		v := math.RoundToEven(float64(q[i]) * scale)
		if !(v >= -511) {
			v = -511
		} else if v > 511 {
			v = 511
		}
		packed = packed<<10 | uint32(int32(v)+512)&1023
	}
	return packed
}

func unpackRotation(p uint32) (q [4]float32) {
	big := int(p >> 30)
	left := 1.0
	shift := 20
	for i := range q {
		if i == big {
			continue
		}
		v := float64(int32(p>>shift&1023)-512) / (511 * math.Sqrt2)
		q[i] = float32(v)
		left -= v * v
		shift -= 10
	}
	q[big] = float32(math.Sqrt(math.Max(left, 0)))
	return q
}
