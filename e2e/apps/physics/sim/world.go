// Package sim is a small rigid body simulation: equal cubes that fall into a
// square pit, collide, pile up and come to rest.
//
// It is deterministic to the bit. The same count, seed and inputs give the same
// state after the same number of ticks on every WebAssembly engine: arithmetic
// is IEEE 754 single precision in a fixed order, with no function beyond the
// square root, no fused multiply-add (WebAssembly has none), no map iteration,
// no clock and no randomness but the world's own generator. Outside WebAssembly
// a compiler may fuse operations, so digests of native builds are comparable
// with one another on one architecture only.
//
// The method is sequential impulses with soft contacts and sub-steps, as in
// Erin Catto, "Soft Step", Solver2D, 2024: contacts are found once a tick by
// the separating axis test; each sub-step warm-starts, solves with a soft
// push-out, moves, and relaxes without push-out, so that removing overlap adds
// no energy. All cubes have mass 1 and side 1, whose inertia is the same about
// every axis; so the solver needs no inertia tensors.
package sim

import (
	"fmt"

	"github.com/zeebo/blake3"
)

// Fixed properties of every world. Lengths are in metres, times in seconds,
// the mass of a cube is 1 kg.
const (
	TickRate = 60 // ticks a second
	MinCubes = 1
	MaxCubes = 8192

	half     = 0.5       // half the side of a cube
	radius   = 0.8660254 // of the sphere around a cube
	invI     = 6.0       // inverse moment of inertia about any axis
	friction = 0.5       // Coulomb's coefficient
	bounce   = 0.25      // coefficient of restitution,
	bounceAt = 1.0       // above this approach speed
	maxSpeed = 20.0      // a third of a side per tick: nothing tunnels
	maxSpin  = 20.0      // rad/s
	maxPush  = 3.0       // m/s at which overlap is pushed out
	slop     = 0.004     // overlap that is left alone, so that contacts last
	margin   = 0.01      // distance at which a contact begins
	reach    = 0.25      // greatest such distance, for fast cubes
	cell     = 2.0       // of the grid: at least 2*radius + reach
	spacing  = 1.8       // of the lattice at the start
	tick     = 1.0 / TickRate
	substeps = 2
	h        = tick / substeps

	// A cube that has been slower than this for restTicks may fall asleep.
	restSpeed = 0.1  // m/s
	restSpin  = 0.15 // rad/s
	restTicks = TickRate / 4

	// And one that is faster than this wakes the sleepers it touches.
	wakeSpeed = 0.3 // m/s
	wakeSpin  = 0.6 // rad/s
)

// planes is how many the pit has: the ground and four walls.
const planes = 5

// A body is the state of one cube. The last body of a world is the pit itself,
// which never moves.
type body struct {
	pos   vec
	rot   quat
	vel   vec
	spin  vec
	rest  int32   // ticks in a row of being slow
	awake float32 // 1 or 0: the weight of impulses on it

	// Motion since the tick began, applied at its end. Zero between ticks.
	move vec
	turn vec
}

// A World is one simulation. It is not safe for concurrent use.
type World struct {
	n       int
	seed    uint64
	tick    uint64
	random  uint64
	gravity vec
	wall    float32 // distance of the walls from the middle
	bodies  []body  // n+1
	cache   cache   // contacts of the last tick

	scratch
}

// scratch holds what lives within one tick only. It is kept to spare the
// allocation, and holds no state.
type scratch struct {
	axes      []axes
	next      cache
	manifolds []manifold
	points    []point
	stirred   []bool // per cube: a neighbour moves
	moving    []bool // per cube: fast enough to wake others
	grid      grid
	finder    finder
	pairs     []pair
	sorted    []pair
	pairStart []int32
	hash      *blake3.Hasher
	hashed    []byte
}

// New makes a world of n cubes hanging in a loose lattice above the pit, each
// turned and spun at random from the seed.
func New(n int, seed uint64) (*World, error) {
	w := new(World)
	return w, w.Reset(n, seed)
}

// Reset starts the world anew, as New does, and reuses its memory.
func (w *World) Reset(n int, seed uint64) error {
	if n < MinCubes || n > MaxCubes {
		return fmt.Errorf("a world of %d cubes: want %d to %d", n, MinCubes, MaxCubes)
	}
	side := 1
	for side*side*side < n {
		side++
	}
	w.reserve(n, float32(side))
	w.n = n
	w.seed = seed
	w.random = seed
	w.tick = 0
	w.gravity = vec{0, -9.81, 0}

	for i := range n {
		layer, row, col := i/(side*side), i/side%side, i%side
		// Every other layer hangs over the gaps of the one below, so that they
		// do not fall as columns.
		shift := -float32(side-1)/2 - 0.25 + 0.5*float32(layer%2)
		b := &w.bodies[i]
		*b = body{
			pos: vec{
				(float32(col) + shift) * spacing,
				float32(layer)*spacing + 1,
				(float32(row) + shift) * spacing,
			},
			rot:   quat{w: 1}.turned(w.randomVec(2)),
			spin:  w.randomVec(2),
			awake: 1,
		}
		b.pos = b.pos.add(w.randomVec(0.05))
	}
	w.bodies[n] = body{rot: quat{w: 1}}
	return nil
}

// reserve makes the slices big enough for n cubes and as many contacts as even
// the tightest pile has, so that a tick allocates nothing. Memory that is never
// written costs a worker nothing.
func (w *World) reserve(n int, side float32) {
	w.wall = side*spacing/2 + 0.5
	w.grid.shape(n, w.wall, side*spacing+2)
	if cap(w.bodies) < n+1 {
		w.bodies = make([]body, n+1)
		w.axes = make([]axes, n+1)
		w.cache.start = make([]int32, n+1)
		w.next.start = make([]int32, n+1)
		w.stirred = make([]bool, n)
		w.moving = make([]bool, n)
		w.pairs = make([]pair, 0, 10*n)
		w.sorted = make([]pair, 10*n)
		w.pairStart = make([]int32, n+1)
		w.cache.room(16 * n)
		w.next.room(16 * n)
		w.room(16 * n)
	}
	w.bodies = w.bodies[:n+1]
	w.axes = w.axes[:n+1]
	w.stirred = w.stirred[:n]
	w.moving = w.moving[:n]
	w.pairStart = w.pairStart[:n+1]
	w.cache.clear(n)
	w.next.clear(n)
}

// uniform returns a number in [-1, 1) from the world's generator (SplitMix64;
// Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
// OOPSLA 2014), exact in single precision.
func (w *World) uniform() float32 {
	w.random += 0x9e3779b97f4a7c15
	z := w.random
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	z ^= z >> 31
	return float32(int32(z>>40)-1<<23) / (1 << 23)
}

func (w *World) randomVec(size float32) vec {
	x := w.uniform()
	y := w.uniform()
	z := w.uniform()
	return vec{x * size, y * size, z * size}
}

// Cubes is the number of cubes.
func (w *World) Cubes() int { return w.n }

// Wall is the distance of the walls from the middle, in metres.
func (w *World) Wall() float32 { return w.wall }

// Tick is the number of ticks since the start.
func (w *World) Tick() uint64 { return w.tick }

// Pose returns where cube i is, in metres, and its rotation as a unit
// quaternion (w, x, y, z). The y axis points up.
func (w *World) Pose(i int) (pos [3]float32, rot [4]float32) {
	b := &w.bodies[i]
	return [3]float32{b.pos.x, b.pos.y, b.pos.z}, [4]float32{b.rot.w, b.rot.x, b.rot.y, b.rot.z}
}

// Stats describes a world at the end of a tick.
type Stats struct {
	Awake    int     // cubes that are not asleep
	Contacts int     // pairs that touch, walls and ground included
	Kinetic  float64 // energy in joules
	Height   float64 // mean height of the cubes' centres in metres
}

// Stats takes time proportional to the number of cubes.
func (w *World) Stats() Stats {
	s := Stats{Contacts: len(w.cache.entries)}
	for i := range w.bodies[:w.n] {
		b := &w.bodies[i]
		s.Awake += int(b.awake)
		s.Kinetic += float64(b.vel.dot(b.vel))/2 + float64(b.spin.dot(b.spin))/(2*invI)
		s.Height += float64(b.pos.y)
	}
	s.Height /= float64(w.n)
	return s
}

// Step advances the world by one tick.
func (w *World) Step() {
	w.tick++
	w.settle()
	for i := range w.bodies {
		w.axes[i] = w.bodies[i].rot.axes()
	}
	w.findPairs()
	w.findContacts()
	w.solve()
	w.finish()
	w.cache, w.next = w.next, w.cache
}

// finish applies the tick's motion and counts the ticks of rest.
func (w *World) finish() {
	for i := range w.bodies[:w.n] {
		b := &w.bodies[i]
		if b.awake == 0 {
			continue
		}
		b.pos = b.pos.add(b.move)
		b.rot = b.rot.turned(b.turn)
		b.move, b.turn = vec{}, vec{}
		b.vel = limited(b.vel, maxSpeed)
		b.spin = limited(b.spin, maxSpin)
		if b.vel.dot(b.vel) < restSpeed*restSpeed && b.spin.dot(b.spin) < restSpin*restSpin {
			b.rest = min(b.rest+1, restTicks)
		} else {
			b.rest = 0
		}
	}
}

// limited shortens v to at most max.
func limited(v vec, max float32) vec {
	if d := v.dot(v); d > max*max {
		return v.mul(max / sqrt(d))
	}
	return v
}
