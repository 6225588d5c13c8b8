package sim

import (
	"errors"
	"fmt"
	"math"
)

// ErrInput is what every refused input unwraps to. The world is as before.
var ErrInput = errors.New("input refused")

// Inputs act between ticks. They are part of what determines the world: the
// same inputs before the same ticks give the same state.

// Push gives cube i an impulse in newton seconds, which for a cube of 1 kg is
// the change of its velocity.
func (w *World) Push(i int, impulse [3]float32) error {
	if i < 0 || i >= w.n {
		return fmt.Errorf("%w: push: no cube %d among %d", ErrInput, i, w.n)
	}
	p, err := finite("push", impulse, 1000)
	if err != nil {
		return err
	}
	b := &w.bodies[i]
	w.rouse(b)
	b.vel = limited(b.vel.add(p), maxSpeed)
	return nil
}

// Explode pushes all cubes within radius metres of a point away from it, with
// up to strength newton seconds, less with the distance, and spins them at
// random.
func (w *World) Explode(at [3]float32, radius, strength float32) error {
	p, err := finite("explode", at, 1000)
	if err != nil {
		return err
	}
	// Written so that NaN is refused too.
	if !(radius > 0 && radius <= 1000) || !(strength >= 0 && strength <= 1000) {
		return fmt.Errorf("%w: explode: radius %v, strength %v: want at most 1000 of both", ErrInput, radius, strength)
	}
	for i := range w.n {
		b := &w.bodies[i]
		d := b.pos.sub(p)
		dd := d.dot(d)
		if dd >= radius*radius {
			continue
		}
		distance := sqrt(dd)
		push := strength * (1 - distance/radius)
		w.rouse(b)
		b.vel = limited(b.vel.plus(push/greater(distance, 0.1), d), maxSpeed)
		b.spin = limited(b.spin.add(w.randomVec(push)), maxSpin)
	}
	return nil
}

// SetGravity changes the acceleration that all cubes feel, in m/s²: tilting it
// is tilting the pit. At the start it is (0, -9.81, 0).
func (w *World) SetGravity(g [3]float32) error {
	v, err := finite("gravity", g, 30)
	if err != nil {
		return err
	}
	w.gravity = v
	for i := range w.bodies[:w.n] {
		w.rouse(&w.bodies[i])
	}
	return nil
}

func (w *World) rouse(b *body) {
	b.awake = 1
	b.rest = 0
}

// finite refuses what is not a number, which would spread through the world,
// and what is absurd.
func finite(what string, v [3]float32, most float32) (vec, error) {
	for _, x := range v {
		if math.IsNaN(float64(x)) || abs(x) > most {
			return vec{}, fmt.Errorf("%w: %s: %v: want at most %v on each axis", ErrInput, what, v, most)
		}
	}
	return vec{v[0], v[1], v[2]}, nil
}
