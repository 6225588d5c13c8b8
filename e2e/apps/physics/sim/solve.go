package sim

import "math"

// How a contact gives: the rate at which overlap is pushed out, and how far
// impulses are scaled and let go in doing so.
type softness struct{ rate, mass, impulse float32 }

// soft returns the softness of a spring of the given frequency in hertz and
// damping ratio, solved once a sub-step (Catto, "Soft Constraints", GDC 2011).
func soft(hertz, ratio float64) softness {
	omega := 2 * math.Pi * hertz
	a1 := 2*ratio + h*omega
	a2 := h * omega * a1
	a3 := 1 / (1 + a2)
	return softness{float32(omega / a1), float32(a2 * a3), float32(a3)}
}

// Against the pit contacts are stiffer than between cubes, so that a pile's
// lowest layer is not pressed into the ground.
var (
	betweenCubes = soft(30, 10)
	againstPit   = soft(60, 10)
)

// solve moves the awake cubes through one tick: it finds the impulses of the
// contacts and what motion they leave.
func (w *World) solve() {
	fall := w.gravity.mul(h)
	for range substeps {
		for i := range w.bodies[:w.n] {
			b := &w.bodies[i]
			if b.awake != 0 {
				b.vel = b.vel.add(fall)
			}
		}
		w.warm()
		w.press()
		for i := range w.bodies[:w.n] {
			b := &w.bodies[i]
			if b.awake != 0 {
				b.move = b.move.plus(h, b.vel)
				b.turn = b.turn.plus(h, b.spin)
			}
		}
		w.relax()
	}
	w.restitute()
	w.keep()
}

// drag is the friction impulse on b.
func (m *manifold) drag() vec {
	return m.t1.mul(m.drag1).plus(m.drag2, m.n.cross(m.t1))
}

// warm applies the impulses that held in the last sub-step.
func (w *World) warm() {
	for i := range w.manifolds {
		m := &w.manifolds[i]
		a, b := &w.bodies[m.a], &w.bodies[m.b]
		drag := m.drag()
		turnA := m.armA.cross(drag).plus(m.twist, m.n)
		turnB := m.armB.cross(drag).plus(m.twist, m.n)
		total := float32(0)
		points := w.points[m.first:m.last]
		for j := range points {
			p := &points[j]
			total += p.impulse
			turnA = turnA.plus(p.impulse, p.leverA)
			turnB = turnB.plus(p.impulse, p.leverB)
		}
		push := drag.plus(total, m.n)
		a.vel = a.vel.plus(-m.weightA, push)
		a.spin = a.spin.plus(-invI*m.weightA, turnA)
		b.vel = b.vel.plus(m.weightB, push)
		b.spin = b.spin.plus(invI*m.weightB, turnB)
	}
}

// press goes over all contacts once and removes overlap as well, at a speed that
// relax, after the move, takes away again.
func (w *World) press() {
	for i := range w.manifolds {
		m := &w.manifolds[i]
		a, b := &w.bodies[m.a], &w.bodies[m.b]
		soft := &betweenCubes
		if m.weightA*m.weightB == 0 {
			soft = &againstPit
		}
		// All points push along n: the speed along it and the sum of the
		// impulses stand for the velocities until the end.
		n := m.n
		speed := n.dot(b.vel.sub(a.vel))
		spinA, spinB := a.spin, b.spin
		total := float32(0)
		for j := m.first; j < m.last; j++ {
			p := &w.points[j]
			la, lb := p.leverA, p.leverB
			v := speed + lb.dot(spinB) - la.dot(spinA)
			gap, old := p.now, p.impulse
			var next float32
			if gap > 0 {
				next = old - p.mass*(v+gap*(1/h))
			} else {
				bias := greater(soft.rate*lesser(0, gap+slop), -maxPush)
				next = old - p.mass*soft.mass*(v+bias) - soft.impulse*old
			}
			next = greater(next, 0)
			p.impulse = next
			p.most = greater(p.most, next)
			d := next - old
			total += d
			speed += d * (m.weightA + m.weightB)
			spinA = spinA.plus(-invI*m.weightA*d, la)
			spinB = spinB.plus(invI*m.weightB*d, lb)
		}
		a.spin, b.spin = spinA, spinB
		a.vel = a.vel.plus(-m.weightA*total, n)
		b.vel = b.vel.plus(m.weightB*total, n)
	}
}

// relax goes over all contacts once, with friction, and finds how far apart the
// move has left them.
func (w *World) relax() {
	for i := range w.manifolds {
		m := &w.manifolds[i]
		a, b := &w.bodies[m.a], &w.bodies[m.b]

		// Friction first, since keeping cubes apart matters more and is solved
		// last. It is limited by what held in the previous pass.
		most := float32(0)
		for j := m.first; j < m.last; j++ {
			most += w.points[j].impulse
		}
		if most != 0 || m.drag1 != 0 || m.drag2 != 0 || m.twist != 0 {
			m.rub(a, b, friction*most)
		}

		n := m.n
		speed := n.dot(b.vel.sub(a.vel))
		moved := n.dot(b.move.sub(a.move))
		spinA, spinB := a.spin, b.spin
		total := float32(0)
		for j := m.first; j < m.last; j++ {
			p := &w.points[j]
			la, lb := p.leverA, p.leverB
			gap := p.gap + moved + lb.dot(b.turn) - la.dot(a.turn)
			p.now = gap
			v := speed + lb.dot(spinB) - la.dot(spinA)
			if gap > 0 {
				v += gap * (1 / h)
			}
			old := p.impulse
			next := greater(old-p.mass*v, 0)
			p.impulse = next
			d := next - old
			total += d
			speed += d * (m.weightA + m.weightB)
			spinA = spinA.plus(-invI*m.weightA*d, la)
			spinB = spinB.plus(invI*m.weightB*d, lb)
		}
		a.spin, b.spin = spinA, spinB
		a.vel = a.vel.plus(-m.weightA*total, n)
		b.vel = b.vel.plus(m.weightB*total, n)
	}
}

// rub applies the friction of a contact, of at most most.
func (m *manifold) rub(a, b *body, most float32) {
	iA, iB := invI*m.weightA, invI*m.weightB
	spinA, spinB := a.spin, b.spin
	if m.size != 0 {
		old := m.twist
		m.twist = clamp(old-m.massN*m.n.dot(spinB.sub(spinA)), most*m.size)
		d := m.twist - old
		spinA = spinA.plus(-iA*d, m.n)
		spinB = spinB.plus(iB*d, m.n)
	}
	t2 := m.n.cross(m.t1) // less work than to load it
	slip := b.vel.add(spinB.cross(m.armB)).sub(a.vel).sub(spinA.cross(m.armA))
	f1 := m.drag1 - m.mass1*m.t1.dot(slip)
	f2 := m.drag2 - m.mass2*t2.dot(slip)
	if ff := f1*f1 + f2*f2; ff > most*most {
		s := most / sqrt(ff)
		f1 *= s
		f2 *= s
	}
	drag := m.t1.mul(f1-m.drag1).plus(f2-m.drag2, t2)
	m.drag1, m.drag2 = f1, f2
	a.vel = a.vel.plus(-m.weightA, drag)
	b.vel = b.vel.plus(m.weightB, drag)
	a.spin = spinA.plus(-iA, m.armA.cross(drag))
	b.spin = spinB.plus(iB, m.armB.cross(drag))
}

// restitute makes what hit hard enough bounce.
func (w *World) restitute() {
	for i := range w.manifolds {
		m := &w.manifolds[i]
		a, b := &w.bodies[m.a], &w.bodies[m.b]
		iA, iB := invI*m.weightA, invI*m.weightB
		points := w.points[m.first:m.last]
		for j := range points {
			p := &points[j]
			if p.speed > -bounceAt || p.most == 0 {
				continue
			}
			v := m.n.dot(b.vel.sub(a.vel)) + p.leverB.dot(b.spin) - p.leverA.dot(a.spin)
			old := p.impulse
			p.impulse = greater(0, old-p.mass*(v+bounce*p.speed))
			d := p.impulse - old
			a.vel = a.vel.plus(-m.weightA*d, m.n)
			b.vel = b.vel.plus(m.weightB*d, m.n)
			a.spin = a.spin.plus(-iA*d, p.leverA)
			b.spin = b.spin.plus(iB*d, p.leverB)
		}
	}
}

// keep stores the impulses for the next tick.
func (w *World) keep() {
	for i := range w.manifolds {
		m := &w.manifolds[i]
		e := &w.next.entries[m.entry]
		e.drag = m.drag()
		e.twist = m.twist
		for j, p := range w.points[m.first:m.last] {
			w.next.points[int(e.first)+j].impulse = p.impulse
		}
	}
}
