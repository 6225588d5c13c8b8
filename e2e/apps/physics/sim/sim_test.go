package sim

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"
)

func newWorld(tb testing.TB, n int, seed uint64) *World {
	tb.Helper()
	w, err := New(n, seed)
	if err != nil {
		tb.Fatal(err)
	}
	return w
}

// arrange makes a world of cubes where the test wants them.
func arrange(tb testing.TB, bodies ...body) *World {
	tb.Helper()
	w := newWorld(tb, len(bodies), 1)
	for i, b := range bodies {
		if b.rot == (quat{}) {
			b.rot.w = 1
		}
		b.awake = 1
		w.bodies[i] = b
	}
	return w
}

// separation is how far two cubes are apart, or negative by how much they
// overlap: the greatest distance over all separating axes, the slow and obvious
// way.
func separation(a, b *body) float64 {
	xa, xb := a.rot.axes(), b.rot.axes()
	wide := func(v vec) [3]float64 { return [3]float64{float64(v.x), float64(v.y), float64(v.z)} }
	dot := func(p, q [3]float64) float64 { return p[0]*q[0] + p[1]*q[1] + p[2]*q[2] }
	as := [3][3]float64{wide(xa.u), wide(xa.v), wide(xa.w)}
	bs := [3][3]float64{wide(xb.u), wide(xb.v), wide(xb.w)}
	pa, pb := wide(a.pos), wide(b.pos)
	d := [3]float64{pb[0] - pa[0], pb[1] - pa[1], pb[2] - pa[2]}

	best := math.Inf(-1)
	try := func(n [3]float64) {
		length := math.Sqrt(dot(n, n))
		if length < 1e-3 {
			return
		}
		reach := 0.0
		for i := range 3 {
			reach += half * (math.Abs(dot(n, as[i])) + math.Abs(dot(n, bs[i])))
		}
		best = max(best, (math.Abs(dot(n, d))-reach)/length)
	}
	for i := range 3 {
		try(as[i])
		try(bs[i])
		for j := range 3 {
			p, q := as[i], bs[j]
			try([3]float64{p[1]*q[2] - p[2]*q[1], p[2]*q[0] - p[0]*q[2], p[0]*q[1] - p[1]*q[0]})
		}
	}
	return best
}

// deepest is the greatest overlap of any two cubes, or of a cube and the pit.
func (w *World) deepest() float64 {
	deep := 0.0
	for i := range w.n {
		a := &w.bodies[i]
		for j := i + 1; j < w.n; j++ {
			b := &w.bodies[j]
			if d := b.pos.sub(a.pos); d.dot(d) < 4*radius*radius {
				deep = max(deep, -separation(a, b))
			}
		}
		x := a.rot.axes()
		for p := range planes {
			n, gap := w.plane(p, a.pos)
			gap -= half * (abs(x.u.dot(n)) + abs(x.v.dot(n)) + abs(x.w.dot(n)))
			deep = max(deep, -float64(gap))
		}
	}
	return deep
}

// energy is kinetic and potential, in joules.
func (w *World) energy() float64 {
	s := w.Stats()
	return s.Kinetic + 9.81*s.Height*float64(w.n)
}

func TestSettle(t *testing.T) {
	w := newWorld(t, 512, 1)
	start := w.energy()
	before, deepest := start, 0.0
	for i := range 600 {
		w.Step()
		now := w.energy()
		// Pushing overlap out lifts a little; it must not feed a motion.
		if now > before+start*0.0005 {
			t.Fatalf("tick %d: energy rose from %.1f to %.1f J", i, before, now)
		}
		before = now
		if i%10 == 0 {
			deepest = max(deepest, w.deepest())
		}
	}
	s := w.Stats()
	t.Logf("at rest: %+v; deepest overlap %.3f m while falling, %.3f m at rest", s, deepest, w.deepest())
	if s.Awake != 0 || s.Kinetic != 0 {
		t.Errorf("not at rest after 10 s: %+v", s)
	}
	if d := w.deepest(); d > 0.02 {
		t.Errorf("at rest, cubes overlap by %.3f m", d)
	}
	if deepest > 0.25 {
		t.Errorf("while falling, cubes overlapped by %.3f m", deepest)
	}
	if s.Height > 3 {
		t.Errorf("the pile has a mean height of %.2f m: it is not a pile", s.Height)
	}
}

func TestDeterminism(t *testing.T) {
	run := func(w *World) (ds [][32]byte) {
		for i := range 120 {
			if i%50 == 20 {
				if err := w.Explode([3]float32{1, 0, 1}, 4, 10); err != nil {
					t.Fatal(err)
				}
			}
			w.Step()
			ds = append(ds, w.Digest())
		}
		return ds
	}
	a := newWorld(t, 100, 7)
	first := run(a)
	second := run(newWorld(t, 100, 7))
	if err := a.Reset(30, 1); err != nil {
		t.Fatal(err)
	}
	if err := a.Reset(100, 7); err != nil {
		t.Fatal(err)
	}
	third := run(a)
	for i := range first {
		if first[i] != second[i] || first[i] != third[i] {
			t.Fatalf("tick %d: the same run gave another state", i+1)
		}
	}
	other := run(newWorld(t, 100, 8))
	if other[0] == first[0] {
		t.Error("another seed gives the same state")
	}
}

// TestDigestIsComplete changes each part of the state by its smallest step and
// wants another digest.
func TestDigestIsComplete(t *testing.T) {
	w := newWorld(t, 27, 1)
	for range 200 {
		w.Step()
	}
	if len(w.cache.points) == 0 {
		t.Fatal("no contacts to test with")
	}
	want := w.Digest()
	up := func(f *float32) func() func() {
		return func() func() {
			old := *f
			*f = math.Float32frombits(math.Float32bits(*f) ^ 1)
			return func() { *f = old }
		}
	}
	b, e, p := &w.bodies[26], &w.cache.entries[len(w.cache.entries)-1], &w.cache.points[len(w.cache.points)-1]
	for name, change := range map[string]func() func(){
		"position": up(&b.pos.z), "rotation": up(&b.rot.w), "velocity": up(&b.vel.x), "spin": up(&b.spin.y),
		"awake": up(&b.awake), "drag": up(&e.drag.x), "twist": up(&e.twist), "arm": up(&p.arm.z),
		"impulse": up(&p.impulse), "gravity": up(&w.gravity.y),
		"rest":   func() func() { b.rest++; return func() { b.rest-- } },
		"pair":   func() func() { e.b++; return func() { e.b-- } },
		"tick":   func() func() { w.tick++; return func() { w.tick-- } },
		"random": func() func() { w.random++; return func() { w.random-- } },
	} {
		undo := change()
		if w.Digest() == want {
			t.Errorf("the digest does not notice a change of %s", name)
		}
		undo()
		if w.Digest() != want {
			t.Fatalf("the change of %s was not undone", name)
		}
	}
}

// TestMomentum lets two cubes hit each other askew without gravity.
func TestMomentum(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2)) // the limits below are for these hits
	random := func(size float32) vec {
		return vec{(r.Float32()*2 - 1) * size, (r.Float32()*2 - 1) * size, (r.Float32()*2 - 1) * size}
	}
	const high = 100 // out of reach of the ground
	momentum := func(w *World) (p, l vec) {
		for i := range w.bodies[:w.n] {
			b := &w.bodies[i]
			p = p.add(b.vel)
			l = l.add(b.pos.sub(vec{0, high, 0}).cross(b.vel)).plus(1/invI, b.spin)
		}
		return p, l
	}
	hits := 0
	for round := range 200 {
		w := arrange(t,
			body{pos: vec{-1.5, high, 0}.add(random(0.2)), rot: quat{w: 1}.turned(random(2)), vel: vec{2, 0, 0}, spin: random(3)},
			body{pos: vec{1.5, high, 0}.add(random(0.2)), rot: quat{w: 1}.turned(random(2)), vel: vec{-2, 0, 0}.add(random(2)), spin: random(3)},
		)
		w.wall = 1000
		w.gravity = vec{}
		p0, l0 := momentum(w)
		e0 := w.Stats().Kinetic
		for range 120 {
			w.Step()
			if w.Stats().Contacts > 0 {
				hits++
			}
		}
		p1, l1 := momentum(w)
		if d := p1.sub(p0); d.dot(d) > 1e-3*1e-3 {
			t.Errorf("round %d: linear momentum went from %v to %v", round, p0, p1)
		}
		// Where impulses act is not looked at again within a tick, in which
		// cubes move by up to 0.1 m here, while 5 N s act.
		if d := l1.sub(l0); d.dot(d) > 0.5*0.5 {
			t.Errorf("round %d: angular momentum went from %v to %v", round, l0, l1)
		}
		if e1 := w.Stats().Kinetic; e1 > e0*1.001 {
			t.Errorf("round %d: energy went from %v to %v J", round, e0, e1)
		}
	}
	if hits < 200 {
		t.Errorf("only %d ticks with contact", hits)
	}
}

func TestStackStands(t *testing.T) {
	var bodies []body
	for i := range 10 {
		bodies = append(bodies, body{pos: vec{0, 0.5 + float32(i), 0}})
	}
	w := arrange(t, bodies...)
	for range 600 {
		w.Step()
	}
	top := w.bodies[9].pos
	t.Logf("the top of ten cubes is at %v", top)
	if abs(top.x) > 0.05 || abs(top.z) > 0.05 || top.y < 9.4 || top.y > 9.5 {
		t.Errorf("the top of ten cubes went from (0, 9.5, 0) to %v", top)
	}

	// Pull the lowest from under it: the rest has to wake up and come down.
	if s := w.Stats(); s.Awake != 0 {
		t.Fatalf("%d cubes are awake after 10 s", s.Awake)
	}
	if err := w.Push(0, [3]float32{20, 0, 0}); err != nil {
		t.Fatal(err)
	}
	for range 300 {
		w.Step()
	}
	if top := w.bodies[9].pos; top.y > 8.9 {
		t.Errorf("without its lowest cube, the top of the stack is still at %v", top)
	}
}

// TestFriction tilts the pit: below the angle of friction a cube stays, above
// it slides.
func TestFriction(t *testing.T) {
	for _, c := range []struct {
		slope  float64
		slides bool
	}{{friction * 0.8, false}, {friction * 1.2, true}} {
		w := arrange(t, body{pos: vec{0, 0.5, 0}}, body{pos: vec{5, 0.5, 0}})
		w.wall = 100
		angle := math.Atan(c.slope)
		if err := w.SetGravity([3]float32{0, float32(-9.81 * math.Cos(angle)), float32(9.81 * math.Sin(angle))}); err != nil {
			t.Fatal(err)
		}
		for range 120 {
			w.Step()
		}
		if z := w.bodies[0].pos.z; c.slides != (z > 0.5) {
			t.Errorf("on a slope of %.2f a cube with friction %.2f moved by %.3f m in 2 s", c.slope, friction, z)
		}
	}
}

// TestNothingTunnels shoots a packed pit at its walls and through one another.
func TestNothingTunnels(t *testing.T) {
	w := newWorld(t, 200, 3)
	for i := range 400 {
		if i%40 == 0 {
			for k := range 200 {
				dir := float32(1 - 2*(k%2))
				if err := w.Push(k, [3]float32{40 * dir, 10 * float32(i%3), -40 * dir}); err != nil {
					t.Fatal(err)
				}
			}
		}
		w.Step()
		for k := range w.n {
			p := w.bodies[k].pos
			if abs(p.x) > w.wall || abs(p.z) > w.wall || p.y < 0 {
				t.Fatalf("tick %d: cube %d is outside the pit at %v", i, k, p)
			}
		}
		if d := w.deepest(); d > 0.5 {
			t.Fatalf("tick %d: cubes overlap by %.2f m", i, d)
		}
	}
	for range 600 {
		w.Step()
	}
	// What was shot into one another may fall asleep before it has come apart.
	if d := w.deepest(); d > 0.04 {
		t.Errorf("at rest, cubes overlap by %.3f m", d)
	}
}

// TestCollide compares the contact of random pairs with the slow separation.
func TestCollide(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	random := func(size float32) vec {
		return vec{(r.Float32()*2 - 1) * size, (r.Float32()*2 - 1) * size, (r.Float32()*2 - 1) * size}
	}
	const limit = 0.05
	var f finder
	touching := 0
	for range 50000 {
		turn := random(3)
		if r.IntN(3) == 0 {
			turn = random(0.01) // nearly parallel is where it is hard
		}
		a := body{rot: quat{w: 1}.turned(random(3))}
		b := body{pos: random(1.2), rot: a.rot.turned(turn)}
		xa, xb := a.rot.axes(), b.rot.axes()
		n, k := collide(&a, &b, &xa, &xb, limit, &f)
		want := separation(&a, &b)
		if k == 0 {
			// Apart, a corner may be past the face that separates best, and so
			// farther away than that says.
			if want < -1e-4 {
				t.Fatalf("no contact at %v, %v to %v, which are %.4f apart", b.pos, a.rot, b.rot, want)
			}
			continue
		}
		touching++
		if want > limit+1e-4 {
			t.Fatalf("contact of cubes that are %.4f apart", want)
		}
		if l := n.dot(n); abs(l-1) > 1e-4 || n.dot(b.pos) < 0 {
			t.Fatalf("normal %v of length² %v for a cube at %v", n, l, b.pos)
		}
		gap := float32(math.Inf(1))
		for _, s := range f.spots[:k] {
			gap = lesser(gap, s.gap)
			if d := s.armA.sub(s.armB).sub(b.pos); d.dot(d) > 1e-8 {
				t.Fatalf("a point is not the same seen from both: %v and %v", s.armA, s.armB)
			}
			if l := s.armA.dot(s.armA); l > 1.2 {
				t.Fatalf("a point is %v away from a cube", s.armA)
			}
		}
		// Faces are preferred to edges that are better by a centimetre, and
		// points are half way between surfaces that need not be parallel.
		if math.Abs(float64(gap)-want) > 0.03 && float64(gap) < want {
			t.Fatalf("the contact says %.4f, the cubes are %.4f apart", gap, want)
		}
	}
	if touching < 5000 {
		t.Errorf("only %d pairs touched", touching)
	}
}

// TestPairs compares the grid with looking at all pairs.
func TestPairs(t *testing.T) {
	w := newWorld(t, 300, 9)
	for i := range 200 {
		w.Step()
		if i%10 != 0 {
			continue
		}
		w.findPairs()
		got := map[pair]bool{}
		for _, p := range w.sorted {
			if p.a >= p.b || got[p] {
				t.Fatalf("tick %d: pair %v is twice there or the wrong way round", i, p)
			}
			got[p] = true
		}
		for a := range w.n {
			for b := a + 1; b < w.n; b++ {
				p, q := &w.bodies[a], &w.bodies[b]
				d := q.pos.sub(p.pos)
				near := 2*radius + margin
				if d.dot(d) < float32(near*near) && (p.awake != 0 || q.awake != 0) && !got[pair{int32(a), int32(b)}] {
					t.Fatalf("tick %d: cubes at %v and %v were overlooked", i, p.pos, q.pos)
				}
			}
		}
	}
}

func TestInputs(t *testing.T) {
	w := newWorld(t, 8, 1)
	want := w.Digest()
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for name, err := range map[string]error{
		"no such cube":     w.Push(8, [3]float32{}),
		"negative cube":    w.Push(-1, [3]float32{}),
		"NaN":              w.Push(0, [3]float32{0, nan, 0}),
		"infinite":         w.SetGravity([3]float32{inf, 0, 0}),
		"too much":         w.SetGravity([3]float32{0, -31, 0}),
		"NaN radius":       w.Explode([3]float32{}, nan, 1),
		"zero radius":      w.Explode([3]float32{}, 0, 1),
		"NaN strength":     w.Explode([3]float32{}, 1, nan),
		"NaN place":        w.Explode([3]float32{nan, 0, 0}, 1, 1),
		"negative impulse": w.Explode([3]float32{}, 1, -1),
	} {
		if !errors.Is(err, ErrInput) {
			t.Errorf("%s: %v, want ErrInput", name, err)
		}
	}
	if w.Digest() != want {
		t.Error("refused inputs changed the world")
	}
	for _, n := range []int{-1, 0, MaxCubes + 1} {
		if _, err := New(n, 1); err == nil {
			t.Errorf("a world of %d cubes was made", n)
		}
	}

	// An explosion in the very middle of a cube must not divide by zero.
	if err := w.Explode([3]float32{w.bodies[0].pos.x, w.bodies[0].pos.y, w.bodies[0].pos.z}, 5, 1000); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		w.Step()
	}
	for i := range w.n {
		if p, _ := w.Pose(i); p[0] != p[0] || p[1] != p[1] || p[2] != p[2] {
			t.Fatalf("cube %d is nowhere: %v", i, p)
		}
	}
}

func TestStepDoesNotAllocate(t *testing.T) {
	w := newWorld(t, 512, 1)
	if n := testing.AllocsPerRun(300, w.Step); n != 0 {
		t.Errorf("a tick makes %v allocations", n)
	}
}

func TestManyCubes(t *testing.T) {
	w := newWorld(t, MaxCubes, 1)
	for range 20 {
		w.Step()
	}
	for i := range w.n {
		if p := w.bodies[i].pos; abs(p.x) > w.wall || p.y < 0 {
			t.Fatalf("cube %d is outside the pit at %v", i, p)
		}
	}
}

func BenchmarkStep(b *testing.B) {
	w := newWorld(b, 512, 1)
	for b.Loop() {
		if w.Tick() == 240 {
			if err := w.Reset(512, 1); err != nil {
				b.Fatal(err)
			}
		}
		w.Step()
	}
}
