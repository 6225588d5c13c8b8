package sim

// A grid sorts the cubes into cells, so that each needs comparing with its
// neighbourhood only. Cells along x are adjacent in memory: a row of three
// neighbours is one run of cubes.
type grid struct {
	nx, ny, nz int
	origin     vec     // of cell 0
	start      []int32 // cells+1: where the cell's cubes begin in items
	items      []item
	cellOf     []int32 // per cube
}

// An item is a cube in its cell, with what the distance test needs beside it.
type item struct {
	pos   vec
	fast  float32 // how far it can move in a tick
	awake float32
	id    int32
}

// A pair is two cubes that are close, a < b.
type pair struct{ a, b int32 }

// shape makes cells for n cubes in a pit of the given half width, up to height.
// What is outside is counted to the nearest cell, which keeps neighbours
// neighbours.
func (g *grid) shape(n int, wall, height float32) {
	g.nx = int(2*wall/cell) + 1
	g.nz = g.nx
	g.ny = int(height/cell) + 1
	g.origin = vec{-wall, 0, -wall}
	if cells := g.nx * g.ny * g.nz; cap(g.start) < cells+1 {
		g.start = make([]int32, cells+1)
	} else {
		g.start = g.start[:cells+1]
	}
	if cap(g.items) < n {
		g.items = make([]item, n)
		g.cellOf = make([]int32, n)
	}
	g.items = g.items[:n]
	g.cellOf = g.cellOf[:n]
}

// place returns the index of x's cell in a row of n.
func place(x, origin float32, n int) int {
	i := int((x - origin) * (1 / cell))
	return max(0, min(i, n-1))
}

// fill sorts the cubes into their cells by counting.
func (g *grid) fill(bodies []body) {
	clear(g.start)
	for i := range g.cellOf {
		p := bodies[i].pos
		c := (place(p.y, g.origin.y, g.ny)*g.nz+place(p.z, g.origin.z, g.nz))*g.nx + place(p.x, g.origin.x, g.nx)
		g.cellOf[i] = int32(c)
		g.start[c]++
	}
	sum := int32(0)
	for c := range g.start {
		sum += g.start[c]
		g.start[c] = sum // the cell's end, which filling from behind moves to its start
	}
	for i := len(g.cellOf) - 1; i >= 0; i-- {
		c := g.cellOf[i]
		g.start[c]--
		b := &bodies[i]
		g.items[g.start[c]] = item{pos: b.pos, fast: sqrt(b.vel.dot(b.vel)) * tick, awake: b.awake, id: int32(i)}
	}
}

// findPairs leaves in w.sorted all pairs of cubes that may touch in this tick
// and of which at least one is awake, in groups by their first cube: w.pairStart has where each group begins.
func (w *World) findPairs() {
	g := &w.grid
	g.fill(w.bodies[:w.n])
	w.pairs = w.pairs[:0]
	c := 0
	for y := range g.ny {
		for z := range g.nz {
			for x := range g.nx {
				first, last := g.start[c], g.start[c+1]
				c++
				if first == last {
					continue
				}
				// Each pair of cells is visited once: this one with itself and
				// its successor, the next row, and the three rows above.
				x0, x1 := max(x-1, 0), min(x+1, g.nx-1)
				w.compare(first, last, g.start[c-1-x+x1+1])
				if z+1 < g.nz {
					w.row(first, last, y, z+1, x0, x1)
				}
				if y+1 < g.ny {
					for dz := max(z-1, 0); dz <= min(z+1, g.nz-1); dz++ {
						w.row(first, last, y+1, dz, x0, x1)
					}
				}
			}
		}
	}

	// Sort by the first cube, keeping the order otherwise.
	clear(w.pairStart)
	for _, p := range w.pairs {
		w.pairStart[p.a]++
	}
	sum := int32(0)
	for i := range w.pairStart {
		sum += w.pairStart[i]
		w.pairStart[i] = sum
	}
	if cap(w.sorted) < len(w.pairs) {
		w.sorted = make([]pair, cap(w.pairs))
	}
	w.sorted = w.sorted[:len(w.pairs)]
	for i := len(w.pairs) - 1; i >= 0; i-- {
		p := w.pairs[i]
		w.pairStart[p.a]--
		w.sorted[w.pairStart[p.a]] = p
	}
}

// row compares items [first, last) with those of the cells x0 to x1 in a row.
func (w *World) row(first, last int32, y, z, x0, x1 int) {
	base := (y*w.grid.nz + z) * w.grid.nx
	from, to := w.grid.start[base+x0], w.grid.start[base+x1+1]
	items := w.grid.items
	for i := first; i < last; i++ {
		a := items[i]
		for j := from; j < to; j++ {
			d := items[j].pos.sub(a.pos)
			if dd := d.dot(d); dd < farthest*farthest {
				w.addPair(dd, &a, &items[j])
			}
		}
	}
}

// compare compares items [first, last) with one another and with those up to
// end, which follow them.
func (w *World) compare(first, last, end int32) {
	items := w.grid.items
	for i := first; i < last; i++ {
		a := items[i]
		for j := i + 1; j < end; j++ {
			d := items[j].pos.sub(a.pos)
			if dd := d.dot(d); dd < farthest*farthest {
				w.addPair(dd, &a, &items[j])
			}
		}
	}
}

// farthest is the distance at which cubes can touch within a tick at all.
const farthest = 2*radius + reach

// addPair adds two cubes at a squared distance, if their speeds may bring them
// together and they are not both asleep.
func (w *World) addPair(dd float32, p, q *item) {
	if near := 2*radius + margin + p.fast + q.fast; dd > near*near || p.awake+q.awake == 0 {
		return
	}
	a, b := p.id, q.id
	if b < a {
		a, b = b, a
	}
	w.pairs = append(w.pairs, pair{a, b})
}
