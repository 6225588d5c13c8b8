package sim

import (
	"encoding/binary"
	"math"

	"github.com/zeebo/blake3"
)

// Digest returns the BLAKE3 hash of everything that determines the world's
// future: counters, generator, gravity, every cube with its velocities, and the
// contacts with the impulses they start from. Floating point numbers count with
// all their bits.
func (w *World) Digest() [32]byte {
	if w.hash == nil {
		w.hash = blake3.New()
	}
	w.hash.Reset()
	w.put64(uint64(w.n), w.seed, w.tick, w.random)
	w.putVec(w.gravity)
	w.putFloats(w.wall)
	for i := range w.bodies[:w.n] {
		b := &w.bodies[i]
		w.putVec(b.pos)
		w.putFloats(b.rot.w, b.rot.x, b.rot.y, b.rot.z)
		w.putVec(b.vel)
		w.putVec(b.spin)
		w.putFloats(float32(b.rest), b.awake)
	}
	w.put64(uint64(len(w.cache.entries)))
	for a := range w.n {
		for _, e := range w.cache.of(a) {
			w.put64(uint64(a)<<32|uint64(e.b), uint64(e.last-e.first))
			w.putVec(e.drag)
			w.putFloats(e.twist)
			for _, p := range w.cache.points[e.first:e.last] {
				w.putVec(p.arm)
				w.putFloats(p.impulse)
			}
		}
	}
	w.flush()
	var sum [32]byte
	w.hash.Sum(sum[:0])
	return sum
}

func (w *World) put64(vs ...uint64) {
	for _, v := range vs {
		w.hashed = binary.LittleEndian.AppendUint64(w.hashed, v)
	}
	w.spill()
}

func (w *World) putVec(v vec) { w.putFloats(v.x, v.y, v.z) }

func (w *World) putFloats(vs ...float32) {
	for _, v := range vs {
		w.hashed = binary.LittleEndian.AppendUint32(w.hashed, math.Float32bits(v))
	}
	w.spill()
}

// spill keeps the buffer small.
func (w *World) spill() {
	if len(w.hashed) >= 2048 {
		w.flush()
	}
}

func (w *World) flush() {
	w.hash.Write(w.hashed)
	w.hashed = w.hashed[:0]
}
