package sim

// A manifold is the contact of two cubes, or of a cube and a plane of the pit,
// as the solver wants it. Only its pair, its points and its accumulated
// impulses outlive the tick, in the cache.
type manifold struct {
	a, b        int32 // bodies; b is the pit's for planes
	first, last int32 // in World.points
	entry       int32 // in World.next.entries

	weightA, weightB float32 // 0 for what does not move: the pit and sleepers
	n, t1            vec     // from a to b, and across

	// Friction acts at the middle of the points: along t1 and n x t1, and
	// against turning about n, with a lever of size.
	armA, armB          vec
	mass1, mass2, massN float32
	drag1, drag2, twist float32
	size                float32
}

// A point is one contact point.
type point struct {
	leverA, leverB vec     // arm x n
	mass           float32 // effective, along n
	gap            float32 // distance when the tick began; overlap is negative
	now            float32 // distance after the last move
	impulse        float32 // accumulated, warm from the last tick
	most           float32 // largest that pressed in this tick
	speed          float32 // along n when the tick began; approaching is negative
}

// A spot is a contact point on its way from geometry to solver: where it is
// seen from both centres, and its gap.
type spot struct {
	armA, armB vec
	gap        float32
}

// findContacts turns pairs into manifolds, and planes likewise, in the order of
// the first cube, planes last.
func (w *World) findContacts() {
	w.next.clear(w.n)
	w.room(len(w.sorted) + planes*w.n)
	for i := range w.n {
		w.next.start[i] = int32(len(w.next.entries))
		a := &w.bodies[i]
		if a.awake == 0 {
			w.carry(i, false)
		}
		for j := w.pairStart[i]; j < w.pairStart[i+1]; j++ {
			p := w.sorted[j]
			b := &w.bodies[p.b]
			v := b.vel.sub(a.vel)
			limit := lesser(reach, margin+sqrt(v.dot(v))*tick)
			if n, k := collide(a, b, &w.axes[i], &w.axes[p.b], limit, &w.finder); k > 0 {
				w.addManifold(i, int(p.b), p.b, n, k)
			} else if a.awake*b.awake == 0 && w.cache.find(i, p.b) != nil {
				// A sleeper has lost what it may lie on.
				if a.awake == 0 {
					a.rest = -1
				} else {
					b.rest = -1
				}
			}
		}
		if a.awake == 0 {
			w.carry(i, true)
			continue
		}
		limit := margin + sqrt(a.vel.dot(a.vel))*tick
		if out := w.wall - radius - limit; a.pos.y > radius+limit && abs(a.pos.x) < out && abs(a.pos.z) < out {
			continue
		}
		for plane := range planes {
			n, gap := w.plane(plane, a.pos)
			if gap > radius+limit {
				continue
			}
			if k := rest(&w.axes[i], n, gap, limit, &w.finder.spots); k > 0 {
				w.addManifold(i, w.n, int32(w.n+plane), n.mul(-1), k)
			}
		}
	}
	w.next.start[w.n] = int32(len(w.next.entries))
}

// carry keeps the contacts of a sleeping cube with other sleepers, or with the
// planes, as they are: they have not moved.
func (w *World) carry(i int, planes bool) {
	for j := w.cache.start[i]; j < w.cache.start[i+1]; j++ {
		e := &w.cache.entries[j]
		if plane := int(e.b) >= w.n; plane == planes && (plane || w.bodies[e.b].awake == 0) {
			w.next.carry(&w.cache, e)
		}
	}
}

// plane returns the normal of a plane of the pit, pointing inwards, and the
// distance of p from it.
func (w *World) plane(i int, p vec) (n vec, distance float32) {
	switch i {
	case 0:
		return vec{0, 1, 0}, p.y
	case 1:
		return vec{1, 0, 0}, p.x + w.wall
	case 2:
		return vec{-1, 0, 0}, w.wall - p.x
	case 3:
		return vec{0, 0, 1}, p.z + w.wall
	}
	return vec{0, 0, -1}, w.wall - p.z
}

// rest finds the points of a cube within limit of a plane: corners of the face
// that looks at it. The gap given is that of the centre.
func rest(x *axes, n vec, gap, limit float32, spots *[8]spot) int {
	c := [3]float32{x.u.dot(n), x.v.dot(n), x.w.dot(n)}
	f := 0
	if abs(c[1]) > abs(c[f]) {
		f = 1
	}
	if abs(c[2]) > abs(c[f]) {
		f = 2
	}
	face, e1, e2 := x.at(f).mul(half), x.at((f+1)%3).mul(half), x.at((f+2)%3).mul(half)
	if c[f] > 0 {
		face = face.mul(-1)
	}
	sum, diff := e1.add(e2), e1.sub(e2)
	k := touch(face.add(sum), n, gap, limit, &spots[0])
	k += touch(face.add(diff), n, gap, limit, &spots[k])
	k += touch(face.sub(sum), n, gap, limit, &spots[k])
	k += touch(face.sub(diff), n, gap, limit, &spots[k])
	return k
}

// touch makes a spot of a corner, if it is near enough, and returns how many
// it made.
func touch(arm, n vec, gap, limit float32, s *spot) int {
	d := gap + arm.dot(n)
	if d > limit {
		return 0
	}
	s.armA, s.armB, s.gap = arm.plus(-d/2, n), vec{}, d
	return 1
}

// addManifold prepares the contact of which the finder has k points. key is
// what the cache knows the second body by.
func (w *World) addManifold(ia, ib int, key int32, n vec, k int) {
	a, b := &w.bodies[ia], &w.bodies[ib]
	old := w.cache.find(ia, key)
	e := w.next.add(key, k)
	first := len(w.points)
	w.points = w.points[:first+k]
	w.manifolds = w.manifolds[:len(w.manifolds)+1]
	m := &w.manifolds[len(w.manifolds)-1]
	m.first, m.last = int32(first), int32(first+k)
	m.a, m.b = int32(ia), int32(ib)
	m.entry = int32(len(w.next.entries)) - 1
	wa, wb := a.awake, b.awake
	m.weightA, m.weightB = wa, wb
	m.n = n

	relative := n.dot(b.vel.sub(a.vel))
	var armA, armB vec
	for i := range k {
		s := &w.finder.spots[i]
		p := &w.points[first+i]
		la, lb := s.armA.cross(n), s.armB.cross(n)
		p.leverA, p.leverB = la, lb
		p.gap, p.now = s.gap, s.gap
		p.mass = 1 / (wa + wb + invI*(wa*la.dot(la)+wb*lb.dot(lb)))
		p.speed = relative + lb.dot(b.spin) - la.dot(a.spin)
		p.most = 0
		p.impulse = 0
		if old != nil {
			p.impulse = w.cache.impulse(old, s.armA)
		}
		w.next.points[int(e.first)+i].arm = s.armA
		armA = armA.add(s.armA)
		armB = armB.add(s.armB)
	}
	m.size = 0
	if k > 1 {
		share := 1 / float32(k)
		armA, armB = armA.mul(share), armB.mul(share)
		for i := range k {
			d := w.finder.spots[i].armA.sub(armA)
			m.size += sqrt(d.dot(d)) * share
		}
	}
	m.armA, m.armB = armA, armB

	// Any two directions across n will do, if they depend on n alone.
	t1 := vec{-n.z, 0, n.x}
	if abs(n.x) < 0.6 {
		t1 = vec{0, n.z, -n.y}
	}
	t1 = t1.mul(1 / sqrt(t1.dot(t1)))
	t2 := n.cross(t1)
	m.t1 = t1
	m.mass1 = m.friction(t1)
	m.mass2 = m.friction(t2)
	m.massN = 1 / (invI * (wa + wb))
	m.drag1, m.drag2, m.twist = 0, 0, 0
	if old != nil {
		m.drag1 = old.drag.dot(t1)
		m.drag2 = old.drag.dot(t2)
		m.twist = old.twist
	}
}

// room empties the lists of contacts and makes them long enough for n in all,
// those carried included, so that adding one need not look.
func (w *World) room(n int) {
	n += len(w.cache.entries)
	if cap(w.manifolds) < n {
		w.manifolds = make([]manifold, n)
		w.points = make([]point, 4*n)
	}
	w.manifolds = w.manifolds[:0]
	w.points = w.points[:0]
	w.next.room(n)
}

// friction returns the effective mass of the contact's middle along t, which is
// of length 1: the square of arm x t is then what of the arm is not along t.
func (m *manifold) friction(t vec) float32 {
	ta, tb := m.armA.dot(t), m.armB.dot(t)
	return 1 / (m.weightA*(1+invI*(m.armA.dot(m.armA)-ta*ta)) + m.weightB*(1+invI*(m.armB.dot(m.armB)-tb*tb)))
}
