package sim

// settle decides which cubes are awake in this tick. A cube falls asleep when
// it has been slow for restTicks, and then costs next to nothing and does not
// move at all. It wakes when a neighbour moves, so that a shock travels through
// a sleeping pile by one cube a tick, and when a contact ends (see
// findContacts), so that nothing stays in the air. Neighbours are those of last
// tick's contacts, which begin at a distance: a cube is awake by the time it is
// hit. Moving is a good deal faster than not being slow: else a cube that is
// pushed now and then keeps all that lie around it awake for good. Waking whole
// piles at once, as is usual, was worse still.
func (w *World) settle() {
	for i := range w.n {
		b := &w.bodies[i]
		w.stirred[i] = b.rest < 0
		w.moving[i] = b.awake != 0 && (b.vel.dot(b.vel) > wakeSpeed*wakeSpeed || b.spin.dot(b.spin) > wakeSpin*wakeSpin)
	}
	for i := range w.n {
		for j := w.cache.start[i]; j < w.cache.start[i+1]; j++ {
			k := w.cache.entries[j].b
			if int(k) >= w.n {
				break // planes come last
			}
			if w.moving[i] {
				w.stirred[k] = true
			}
			if w.moving[k] {
				w.stirred[i] = true
			}
		}
	}
	for i := range w.n {
		b := &w.bodies[i]
		switch {
		case b.awake == 0 && w.stirred[i]:
			b.awake = 1
			b.rest = 0
		case b.awake != 0 && b.rest == restTicks && !w.stirred[i]:
			b.awake = 0
			b.vel, b.spin = vec{}, vec{}
		}
	}
}
