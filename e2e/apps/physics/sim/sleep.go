package sim

// settle decides which cubes are awake in this tick. A cube falls asleep when
// it has been slow for restTicks and its neighbours for half of that, and then
// costs next to nothing and does not move at all. It wakes when a neighbour
// moves, so that a shock travels through a sleeping pile by one cube a tick.
// Neighbours are those of last tick's contacts, which begin at a distance: a
// cube is awake by the time it is hit. Waking whole piles at once, as is usual,
// was tried: one cube that rocks keeps 500 awake.
func (w *World) settle() {
	for i := range w.n {
		w.calm[i] = w.bodies[i].rest
	}
	for i := range w.n {
		a := w.bodies[i].rest
		for _, e := range w.cache.of(i) {
			if int(e.b) >= w.n {
				break // planes come last
			}
			w.calm[i] = min(w.calm[i], w.bodies[e.b].rest)
			w.calm[e.b] = min(w.calm[e.b], a)
		}
	}
	for i := range w.n {
		b := &w.bodies[i]
		switch {
		case b.awake == 0 && w.calm[i] == 0:
			b.awake = 1
			b.rest = min(b.rest, restTicks/2)
		case b.awake != 0 && b.rest == restTicks && w.calm[i] >= restTicks/2:
			b.awake = 0
			b.vel, b.spin = vec{}, vec{}
		}
	}
}
