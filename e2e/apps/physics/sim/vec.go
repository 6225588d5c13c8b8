package sim

import "math"

// A vec is a vector in metres, or whatever its use says. Methods are small so
// that the compiler inlines them: a call costs much more than its arithmetic
// under WebAssembly.
type vec struct{ x, y, z float32 }

func (a vec) add(b vec) vec             { return vec{a.x + b.x, a.y + b.y, a.z + b.z} }
func (a vec) sub(b vec) vec             { return vec{a.x - b.x, a.y - b.y, a.z - b.z} }
func (a vec) mul(s float32) vec         { return vec{a.x * s, a.y * s, a.z * s} }
func (a vec) dot(b vec) float32         { return a.x*b.x + a.y*b.y + a.z*b.z }
func (a vec) plus(s float32, b vec) vec { return vec{a.x + s*b.x, a.y + s*b.y, a.z + s*b.z} }

func (a vec) cross(b vec) vec {
	return vec{a.y*b.z - a.z*b.y, a.z*b.x - a.x*b.z, a.x*b.y - a.y*b.x}
}

// sqrt is correctly rounded, by IEEE 754, on every engine.
func sqrt(x float32) float32 { return float32(math.Sqrt(float64(x))) }

// abs compiles to one instruction.
func abs(x float32) float32 { return float32(math.Abs(float64(x))) }

// lesser and greater are min and max without their care for NaN and the sign
// of zero, which costs a call under WebAssembly.
func lesser(a, b float32) float32 {
	if a < b {
		return a
	}
	return b
}

func greater(a, b float32) float32 {
	if a > b {
		return a
	}
	return b
}

// clamp limits x to [-limit, limit].
func clamp(x, limit float32) float32 {
	if x > limit {
		return limit
	}
	if x < -limit {
		return -limit
	}
	return x
}

// A quat is a rotation as a unit quaternion.
type quat struct{ w, x, y, z float32 }

// turned returns q turned by the small rotation d (axis times angle in
// radians), normalised.
func (q quat) turned(d vec) quat {
	x, y, z := d.x*0.5, d.y*0.5, d.z*0.5
	r := quat{
		q.w - x*q.x - y*q.y - z*q.z,
		q.x + x*q.w + y*q.z - z*q.y,
		q.y + y*q.w + z*q.x - x*q.z,
		q.z + z*q.w + x*q.y - y*q.x,
	}
	s := 1 / sqrt(r.w*r.w+r.x*r.x+r.y*r.y+r.z*r.z)
	return quat{r.w * s, r.x * s, r.y * s, r.z * s}
}

// An axes holds the directions of a cube's edges in the world: the columns of
// its rotation matrix.
type axes struct{ u, v, w vec }

func (q quat) axes() axes {
	xx, yy, zz := q.x*q.x, q.y*q.y, q.z*q.z
	xy, xz, yz := q.x*q.y, q.x*q.z, q.y*q.z
	wx, wy, wz := q.w*q.x, q.w*q.y, q.w*q.z
	return axes{
		vec{1 - 2*(yy+zz), 2 * (xy + wz), 2 * (xz - wy)},
		vec{2 * (xy - wz), 1 - 2*(xx+zz), 2 * (yz + wx)},
		vec{2 * (xz + wy), 2 * (yz - wx), 1 - 2*(xx+yy)},
	}
}

// at returns axis i, 0 to 2.
func (a *axes) at(i int) vec {
	switch i {
	case 0:
		return a.u
	case 1:
		return a.v
	}
	return a.w
}
