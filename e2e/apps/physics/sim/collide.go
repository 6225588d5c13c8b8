package sim

// collide finds the contact of two cubes that are at most limit apart: its
// normal from a to b and up to four points. It is the separating axis test over
// the 15 axes of two boxes (Gottschalk, Lin and Manocha, "OBBTree", 1996), then
// clipping of one face by the other (as in ODE and Bullet), or the point
// between two edges.
func collide(a, b *body, xa, xb *axes, limit float32, f *finder) (vec, int) {
	d := b.pos.sub(a.pos)

	// b's axes and the way to b, as a sees them.
	r00, r01, r02 := xa.u.dot(xb.u), xa.u.dot(xb.v), xa.u.dot(xb.w)
	r10, r11, r12 := xa.v.dot(xb.u), xa.v.dot(xb.v), xa.v.dot(xb.w)
	r20, r21, r22 := xa.w.dot(xb.u), xa.w.dot(xb.v), xa.w.dot(xb.w)
	q00, q01, q02 := abs(r00), abs(r01), abs(r02)
	q10, q11, q12 := abs(r10), abs(r11), abs(r12)
	q20, q21, q22 := abs(r20), abs(r21), abs(r22)
	d0, d1, d2 := xa.u.dot(d), xa.v.dot(d), xa.w.dot(d)

	// The faces of a, then those of b, which must be clearly better: flipping
	// between two faces that are as good loses the impulses of the last tick.
	const clearly = 0.005
	gap, axis := abs(d0)-half*(1+q00+q01+q02), 0
	if s := abs(d1) - half*(1+q10+q11+q12); s > gap {
		gap, axis = s, 1
	}
	if s := abs(d2) - half*(1+q20+q21+q22); s > gap {
		gap, axis = s, 2
	}
	if gap > limit {
		return vec{}, 0
	}
	if s := abs(xb.u.dot(d)) - half*(1+q00+q10+q20); s > gap+clearly {
		gap, axis = s, 3
	}
	if s := abs(xb.v.dot(d)) - half*(1+q01+q11+q21); s > gap+clearly {
		gap, axis = s, 4
	}
	if s := abs(xb.w.dot(d)) - half*(1+q02+q12+q22); s > gap+clearly {
		gap, axis = s, 5
	}
	if gap > limit {
		return vec{}, 0
	}

	// The nine pairs of edges. These distances are along the cross product of
	// the edges and have still to be divided by its length, which is at most 1:
	// only what is not negative or beats the faces already is worth that.
	e := edges{gap: gap + 2*clearly, best: -1}
	if s := abs(d2*r10-d1*r20) - half*(q10+q20+q01+q02); s > e.gap || s > 0 {
		e.try(0, s, r00)
	}
	if s := abs(d2*r11-d1*r21) - half*(q11+q21+q00+q02); s > e.gap || s > 0 {
		e.try(1, s, r01)
	}
	if s := abs(d2*r12-d1*r22) - half*(q12+q22+q00+q01); s > e.gap || s > 0 {
		e.try(2, s, r02)
	}
	if s := abs(d0*r20-d2*r00) - half*(q00+q20+q11+q12); s > e.gap || s > 0 {
		e.try(3, s, r10)
	}
	if s := abs(d0*r21-d2*r01) - half*(q01+q21+q10+q12); s > e.gap || s > 0 {
		e.try(4, s, r11)
	}
	if s := abs(d0*r22-d2*r02) - half*(q02+q22+q10+q11); s > e.gap || s > 0 {
		e.try(5, s, r12)
	}
	if s := abs(d1*r00-d0*r10) - half*(q00+q10+q21+q22); s > e.gap || s > 0 {
		e.try(6, s, r20)
	}
	if s := abs(d1*r01-d0*r11) - half*(q01+q11+q20+q22); s > e.gap || s > 0 {
		e.try(7, s, r21)
	}
	if s := abs(d1*r02-d0*r12) - half*(q02+q12+q20+q21); s > e.gap || s > 0 {
		e.try(8, s, r22)
	}
	if e.gap > limit && e.best >= 0 {
		return vec{}, 0
	}
	if e.best >= 0 {
		n := meet(xa, xb, d, e.best/3, e.best%3, &f.spots[0])
		f.spots[0].gap = e.gap
		return n, 1
	}
	var n vec
	var k int
	if axis < 3 {
		n, k = clip(xa, xb, d, axis, limit, f)
	} else {
		n, k = clip(xb, xa, d.mul(-1), axis-3, limit, f)
		n = n.mul(-1)
		for i := range k {
			s := &f.spots[i]
			s.armA, s.armB = s.armB, s.armA
		}
	}
	if k == 0 && gap < 0 {
		// The cubes overlap by so little that their faces, which were preferred
		// to better edges, do not meet: keep them apart by any point between.
		s := &f.spots[0]
		s.armA, s.armB, s.gap = d.mul(0.5), d.mul(-0.5), gap
		k = 1
	}
	return n, k
}

// edges is the search for the pair of edges that is farthest apart.
type edges struct {
	gap  float32
	best int
}

// try considers the pair of edges i, whose directions have the cosine c. s is
// the distance along their cross product, not yet divided by its length.
func (e *edges) try(i int, s, c float32) {
	// Nearly parallel edges tell nothing: their cross product is mostly
	// rounding, and faces have settled the case.
	ll := 1 - c*c
	if ll < 1e-4 {
		return
	}
	if s /= sqrt(ll); s > e.gap {
		e.gap, e.best = s, i
	}
}

// meet finds the point between edge i of a and edge j of b.
func meet(xa, xb *axes, d vec, i, j int, s *spot) vec {
	u, v := xa.at(i), xb.at(j)
	n := u.cross(v)
	n = n.mul(1 / sqrt(n.dot(n)))
	if n.dot(d) < 0 {
		n = n.mul(-1)
	}
	// The middles of the edges that are farthest towards the other cube.
	pa := corner(xa, n, (i+1)%3).add(corner(xa, n, (i+2)%3))
	pb := d.sub(corner(xb, n, (j+1)%3)).sub(corner(xb, n, (j+2)%3))

	// The closest points of the two lines, kept within the edges.
	c := u.dot(v)
	between := pb.sub(pa)
	bu, bv := between.dot(u), between.dot(v)
	k := 1 / (1 - c*c)
	pa = pa.plus(clamp((bu-c*bv)*k, half), u)
	pb = pb.plus(clamp((c*bu-bv)*k, half), v)

	s.armA = pa.add(pb).mul(0.5)
	s.armB = s.armA.sub(d)
	return n
}

// corner returns half of axis i, in the direction of n.
func corner(x *axes, n vec, i int) vec {
	u := x.at(i)
	if u.dot(n) < 0 {
		return u.mul(-half)
	}
	return u.mul(half)
}

// A finder is the room that finding a contact takes. It is the world's rather
// than the stack's because clearing an array costs a call under WebAssembly, as
// does copying a struct of more than four words: hence the many pointers here.
type finder struct {
	spots   [8]spot
	in, out [8]corner2
}

// A corner2 is a point of the other cube's face as the reference face sees it:
// x and y along the face, z the distance from it.
type corner2 struct{ x, y, z float32 }

// clip finds the points where the face of cube r across an axis of it, towards
// the other cube o at d, meets the face of o that looks back most. It returns
// the normal from r to o; armA of the spots is seen from r.
func clip(r, o *axes, d vec, axis int, limit float32, f *finder) (vec, int) {
	n, u, v := r.at(axis), r.at((axis+1)%3), r.at((axis+2)%3)
	if n.dot(d) < 0 {
		n = n.mul(-1)
	}

	c := [3]float32{o.u.dot(n), o.v.dot(n), o.w.dot(n)}
	g := 0
	if abs(c[1]) > abs(c[g]) {
		g = 1
	}
	if abs(c[2]) > abs(c[g]) {
		g = 2
	}
	face, e1, e2 := o.at(g).mul(half), o.at((g+1)%3).mul(half), o.at((g+2)%3).mul(half)
	if c[g] > 0 {
		face = face.mul(-1)
	}
	m := d.add(face)
	mx, my, mz := m.dot(u), m.dot(v), m.dot(n)-half
	x1, y1, z1 := e1.dot(u), e1.dot(v), e1.dot(n)
	x2, y2, z2 := e2.dot(u), e2.dot(v), e2.dot(n)

	in, out, k := &f.in, &f.out, 4
	in[0] = corner2{mx + x1 + x2, my + y1 + y2, mz + z1 + z2}
	in[1] = corner2{mx + x1 - x2, my + y1 - y2, mz + z1 - z2}
	in[2] = corner2{mx - x1 - x2, my - y1 - y2, mz - z1 - z2}
	in[3] = corner2{mx - x1 + x2, my - y1 + y2, mz - z1 + z2}
	wide, high := abs(x1)+abs(x2), abs(y1)+abs(y2)
	if mx+wide > half {
		k = cut(in, k, out, 1, 0)
		in, out = out, in
	}
	if mx-wide < -half {
		k = cut(in, k, out, -1, 0)
		in, out = out, in
	}
	if my+high > half {
		k = cut(in, k, out, 0, 1)
		in, out = out, in
	}
	if my-high < -half {
		k = cut(in, k, out, 0, -1)
		in, out = out, in
	}

	kept := 0
	for i := range k {
		if in[i].z <= limit {
			in[kept] = in[i]
			kept++
		}
	}
	if kept > 4 {
		kept = reduce(in, kept)
	}
	for i := range kept {
		p := &in[i]
		// Half way between the two surfaces.
		arm := n.mul(half+p.z/2).plus(p.x, u).plus(p.y, v)
		s := &f.spots[i]
		s.armA, s.armB, s.gap = arm, arm.sub(d), p.z
	}
	return n, kept
}

// cut keeps the part of a polygon of k corners where sx*x + sy*y is at most
// half, and returns its number of corners (Sutherland and Hodgman, "Reentrant
// polygon clipping", 1974). A square cut four times has at most eight.
func cut(in *[8]corner2, k int, out *[8]corner2, sx, sy float32) int {
	kept := 0
	if k == 0 {
		return 0
	}
	p := in[k-1]
	dp := sx*p.x + sy*p.y - half
	for i := range k {
		q := in[i]
		dq := sx*q.x + sy*q.y - half
		if (dp > 0) != (dq > 0) && kept < 8 {
			t := dp / (dp - dq)
			out[kept] = corner2{p.x + t*(q.x-p.x), p.y + t*(q.y-p.y), p.z + t*(q.z-p.z)}
			kept++
		}
		if dq <= 0 && kept < 8 {
			out[kept] = q
			kept++
		}
		p, dp = q, dq
	}
	return kept
}

// reduce keeps four corners that hold as well as all: the deepest, the one
// farthest from it, and the farthest to either side of the line between them.
func reduce(in *[8]corner2, k int) int {
	deep := 0
	for i := 1; i < k; i++ {
		if in[i].z < in[deep].z {
			deep = i
		}
	}
	in[0], in[deep] = in[deep], in[0]

	far, best := 1, float32(-1)
	for i := 1; i < k; i++ {
		x, y := in[i].x-in[0].x, in[i].y-in[0].y
		if dd := x*x + y*y; dd > best {
			far, best = i, dd
		}
	}
	in[1], in[far] = in[far], in[1]

	x, y := in[1].x-in[0].x, in[1].y-in[0].y
	left, right := -1, -1
	most, least := float32(1e-6), float32(-1e-6)
	for i := 2; i < k; i++ {
		side := x*(in[i].y-in[0].y) - y*(in[i].x-in[0].x)
		if side > most {
			left, most = i, side
		}
		if side < least {
			right, least = i, side
		}
	}
	kept := 2
	l, r := corner2{}, corner2{}
	if left >= 0 {
		l = in[left]
	}
	if right >= 0 {
		r = in[right]
	}
	if left >= 0 {
		in[kept] = l
		kept++
	}
	if right >= 0 {
		in[kept] = r
		kept++
	}
	return kept
}
