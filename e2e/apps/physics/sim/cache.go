package sim

// A cache remembers the contacts of a tick with the impulses that held them,
// from which the next tick's solver starts. It is part of the world's state.
type cache struct {
	start   []int32 // n+1: where the entries of each first cube begin
	entries []entry
	points  []kept
}

// An entry is one pair that touched.
type entry struct {
	b           int32 // the second cube, or n and more for the pit's planes
	first, last int32 // in points
	drag        vec   // friction impulse on b
	twist       float32
}

// A kept is a contact point: where it was, seen from the first cube's centre
// and in the world's directions, and what held it.
type kept struct {
	arm     vec
	impulse float32
}

// room makes the cache, which must be empty, long enough for that many contacts.
func (c *cache) room(contacts int) {
	if cap(c.entries) < contacts {
		c.entries = make([]entry, 0, contacts)
		c.points = make([]kept, 0, 4*contacts)
	}
}

// clear empties the cache for n cubes.
func (c *cache) clear(n int) {
	c.start = c.start[:n+1]
	clear(c.start)
	c.entries = c.entries[:0]
	c.points = c.points[:0]
}

// of returns the entries whose first cube is a.
func (c *cache) of(a int) []entry {
	return c.entries[c.start[a]:c.start[a+1]]
}

// find returns the entry of a pair, or nil.
func (c *cache) find(a int, b int32) *entry {
	es := c.of(a)
	for i := range es {
		if es[i].b == b {
			return &es[i]
		}
	}
	return nil
}

// add makes room for an entry with k points, whose other fields still hold
// anything. See room.
func (c *cache) add(b int32, k int) *entry {
	first := len(c.points)
	c.points = c.points[:first+k]
	c.entries = c.entries[:len(c.entries)+1]
	e := &c.entries[len(c.entries)-1]
	e.b, e.first, e.last = b, int32(first), int32(first+k)
	return e
}

// carry copies an entry of old as it is.
func (c *cache) carry(old *cache, e *entry) {
	n := c.add(e.b, int(e.last-e.first))
	n.drag, n.twist = e.drag, e.twist
	for i := range e.last - e.first {
		c.points[n.first+i] = old.points[e.first+i]
	}
}

// sameSpot is the square of the distance in metres within which a contact point
// counts as the one of last tick.
const sameSpot = 0.08 * 0.08

// impulse returns what held the point at arm in the last tick. An old point
// serves one new point at most: it is taken out by moving it far away.
func (c *cache) impulse(e *entry, arm vec) float32 {
	best, at := float32(sameSpot), -1
	for i := e.first; i < e.last; i++ {
		d := arm.sub(c.points[i].arm)
		if dd := d.dot(d); dd < best {
			best, at = dd, int(i)
		}
	}
	if at < 0 {
		return 0
	}
	c.points[at].arm.x = 1e6
	return c.points[at].impulse
}
