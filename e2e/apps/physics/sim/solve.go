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
		w.iterate(true)
		for i := range w.bodies[:w.n] {
			b := &w.bodies[i]
			if b.awake != 0 {
				b.move = b.move.plus(h, b.vel)
				b.turn = b.turn.plus(h, b.spin)
			}
		}
		w.iterate(false)
	}
	w.restitute()
	w.keep()
}

// warm applies the impulses that held in the last sub-step.
func (w *World) warm() {
	for i := range w.manifolds {
		m := &w.manifolds[i]
		a, b := &w.bodies[m.a], &w.bodies[m.b]
		drag := m.t1.mul(m.drag1).plus(m.drag2, m.t2)
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

// iterate goes over all contacts once. With push it also removes overlap, at a
// speed that the pass without push, after the move, takes away again.
func (w *World) iterate(push bool) {
	for i := range w.manifolds {
		m := &w.manifolds[i]
		a, b := &w.bodies[m.a], &w.bodies[m.b]
		points := w.points[m.first:m.last]
		iA, iB := invI*m.weightA, invI*m.weightB
		spinA, spinB := a.spin, b.spin
		velA, velB := a.vel, b.vel
		n := m.n

		// Friction first, since keeping cubes apart matters more and is solved
		// last. It is limited by what held in the previous pass.
		if !push {
			most := float32(0)
			for j := range points {
				most += points[j].impulse
			}
			most *= friction
			turn := n.dot(spinB) - n.dot(spinA)
			limit := most * m.size
			old := m.twist
			m.twist = clamp(old-m.massN*turn, limit)
			d := m.twist - old
			spinA = spinA.plus(-iA*d, n)
			spinB = spinB.plus(iB*d, n)

			slip := velB.add(spinB.cross(m.armB)).sub(velA).sub(spinA.cross(m.armA))
			old1, old2 := m.drag1, m.drag2
			f1 := old1 - m.mass1*m.t1.dot(slip)
			f2 := old2 - m.mass2*m.t2.dot(slip)
			if ff := f1*f1 + f2*f2; ff > most*most {
				s := most / sqrt(ff)
				f1 *= s
				f2 *= s
			}
			m.drag1, m.drag2 = f1, f2
			drag := m.t1.mul(f1-old1).plus(f2-old2, m.t2)
			velA = velA.plus(-m.weightA, drag)
			velB = velB.plus(m.weightB, drag)
			spinA = spinA.plus(-iA, m.armA.cross(drag))
			spinB = spinB.plus(iB, m.armB.cross(drag))
		}

		// All points push along n: the speed along it and the sum of the
		// impulses stand for the velocities until the end.
		soft := betweenCubes
		if m.weightA*m.weightB == 0 {
			soft = againstPit
		}
		speed := n.dot(velB) - n.dot(velA)
		moved := n.dot(b.move) - n.dot(a.move)
		turnA, turnB := a.turn, b.turn
		weight := m.weightA + m.weightB
		total := float32(0)
		for j := range points {
			p := &points[j]
			gap := p.gap + moved + p.leverB.dot(turnB) - p.leverA.dot(turnA)
			v := speed + p.leverB.dot(spinB) - p.leverA.dot(spinA)
			mass, old := p.mass, p.impulse
			var next float32
			if gap > 0 {
				next = old - mass*(v+gap*(1/h))
			} else if push {
				bias := greater(soft.rate*lesser(0, gap+slop), -maxPush)
				next = old - mass*soft.mass*(v+bias) - soft.impulse*old
			} else {
				next = old - mass*v
			}
			next = greater(next, 0)
			p.impulse = next
			p.most = greater(p.most, next)
			d := next - old
			total += d
			speed += d * weight
			spinA = spinA.plus(-iA*d, p.leverA)
			spinB = spinB.plus(iB*d, p.leverB)
		}
		a.spin, b.spin = spinA, spinB
		a.vel = velA.plus(-m.weightA*total, n)
		b.vel = velB.plus(m.weightB*total, n)
	}
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
		e.drag = m.t1.mul(m.drag1).plus(m.drag2, m.t2)
		e.twist = m.twist
		for j, p := range w.points[m.first:m.last] {
			w.next.points[int(e.first)+j].impulse = p.impulse
		}
	}
}
