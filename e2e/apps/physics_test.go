package apps

import (
	"testing"

	"meshnode/e2e/apps/physics/proto"
)

// script returns the request for tick i of a run whose cubes never rest.
func script(i int) []byte {
	t := proto.Tick{Steps: 1}
	if i%40 == 30 {
		t.Inputs = append(t.Inputs, proto.Input{
			Kind: proto.Explode, Vec: [3]float32{float32(i%7) - 3, 0, float32(i%5) - 2}, Radius: 5, Strength: 10,
		})
	}
	if i%90 == 45 {
		t.Inputs = append(t.Inputs, proto.Input{Kind: proto.Gravity, Vec: [3]float32{float32(i%5) - 2, -9.81, 0}})
	}
	t.Inputs = append(t.Inputs, proto.Input{Kind: proto.Push, Cube: uint16(i * 7 % 64), Vec: [3]float32{0, 3, 1}})
	return t.Append(nil)
}

func (w *worker) request(b []byte) proto.Reply {
	w.tb.Helper()
	r, err := proto.ParseReply([]byte(w.call(string(b))))
	if err != nil {
		w.tb.Fatal(err)
	}
	return r
}

// TestPhysicsEngines checks that the state after a run does not depend on the
// engine: a worker may move to a node whose processor has no compiler.
func TestPhysicsEngines(t *testing.T) {
	const ticks = 60 // each takes the interpreter 50 times as long
	type end struct {
		digest [32]byte
		frame  string
	}
	var ends []end
	for _, interpreter := range []bool{false, true} {
		w := start(t, "physics", 64, interpreter)
		w.request(proto.Init{Cubes: 64, Seed: 5}.Append(nil))
		for i := range ticks {
			if r := w.request(script(i)); r.Tick != uint64(i+1) || r.Frame != nil || r.Digest != nil {
				t.Fatalf("tick %d: %+v", i, r)
			}
		}
		r := w.request((&proto.Tick{Frame: true, Digest: true}).Append(nil))
		if r.Tick != ticks || r.Digest == nil {
			t.Fatalf("state after %d ticks: %+v", ticks, r)
		}
		f, err := proto.ParseFrame(r.Frame)
		if err != nil {
			t.Fatal(err)
		}
		if f.Tick != ticks || len(f.Cubes) != 64 {
			t.Fatalf("frame of tick %d, %d cubes", f.Tick, len(f.Cubes))
		}
		for i, c := range f.Cubes {
			for k, limit := range [3]float32{f.Wall, 100, f.Wall} {
				if x := c.Pos[k]; x > limit || x < -limit || k == 1 && x < 0.4 {
					t.Errorf("cube %d is at %v, outside the pit", i, c.Pos)
				}
			}
		}
		ends = append(ends, end{*r.Digest, string(r.Frame)})
	}
	if ends[0] != ends[1] {
		t.Errorf("compiled and interpreted runs end differently: %x and %x", ends[0].digest, ends[1].digest)
	}
}

func TestPhysicsRequests(t *testing.T) {
	w := start(t, "physics", 64, false)
	if r := w.request([]byte{proto.OpFrame}); r.Frame == nil {
		t.Error("no frame")
	} else if f, err := proto.ParseFrame(r.Frame); err != nil || len(f.Cubes) != 512 {
		t.Errorf("a new world: %v, %d cubes", err, len(f.Cubes))
	}
	w.call("init 10 3")
	first := w.request([]byte{proto.OpDigest})
	if got := w.call("tick 50"); got != "50" {
		t.Errorf("tick 50: %s", got)
	}
	if w.call("digest") == w.call("tick 0") {
		t.Error("digest and tick answer the same")
	}
	w.call("push 3 0 5 0")
	w.call("explode 0 0 0 3 10")
	w.call("gravity 0 -5 0")
	w.call("stats")
	w.call("tick")
	if r := w.request(proto.Init{Cubes: 10, Seed: 3}.Append(nil)); r.Tick != 0 {
		t.Errorf("tick %d after init", r.Tick)
	}
	if again := w.request([]byte{proto.OpDigest}); *again.Digest != *first.Digest {
		t.Error("init of the same seed gave another world")
	}

	nan := (&proto.Tick{Steps: 1, Inputs: []proto.Input{{Kind: proto.Gravity, Vec: [3]float32{0, float32(nan()), 0}}}}).Append(nil)
	far := (&proto.Tick{Steps: 1, Inputs: []proto.Input{{Kind: proto.Push, Cube: 10}}}).Append(nil)
	for _, bad := range []string{
		"", " ", "\x01", "\x01\x00\x01\x01", "\x02", "\x03\x00", "\x1f", "go", "tick x", "tick -1", "init 0 1", "init 10",
		"init 10 x", "init 9000 1", "push 10 0 0 0", "push 1 0 0", "push x 0 0 0", "gravity 0 1e9 0", "gravity NaN 0 0", "explode 0 0 0 -1 1",
		string(proto.Init{Cubes: 0}.Append(nil)), string(nan), string(far),
	} {
		if status := w.try(bad); status != 1 || len(w.reply) == 0 {
			t.Errorf("%q: code %d, %q, want 1 and a reason", bad, status, w.reply)
		}
	}
	if again := w.request([]byte{proto.OpDigest}); *again.Digest != *first.Digest {
		t.Error("refused requests changed the world")
	}
}

func nan() float64 { zero := 0.0; return zero / zero }

// TestPhysicsPages reports how much memory a tick dirties, and wants that
// nothing accumulates.
func TestPhysicsPages(t *testing.T) {
	w := start(t, "physics", 64, false)
	w.request(proto.Init{Cubes: 512, Seed: 1}.Append(nil))
	var size uint32
	most, sum, asleep := 0, 0, 0
	const ticks = 400
	for i := range ticks {
		if i == 150 {
			size = w.mod.Memory().Size()
		}
		before := w.memory()
		w.request((&proto.Tick{Steps: 1, Frame: true}).Append(nil))
		asleep = w.dirtied(before)
		most, sum = max(most, asleep), sum+asleep
	}
	t.Logf("512 cubes: a tick with frame dirties %d pages on average over %d ticks from the fall to rest, at most %d, %d at rest",
		sum/ticks, ticks, most, asleep)
	if most > 250 {
		t.Errorf("a tick dirtied %d pages", most)
	}
	if now := w.mod.Memory().Size(); now != size {
		t.Errorf("memory grew from %d to %d bytes after tick 150", size, now)
	}
	t.Log(w.call("stats"), "memory", size>>10, "KiB")
}

// BenchmarkPhysicsStep measures one tick: from the start over falling and
// piling up (4 s), at rest, and with a client who pushes all the time.
func BenchmarkPhysicsStep(b *testing.B) {
	step := (&proto.Tick{Steps: 1, Frame: true}).Append(nil)
	b.Run("cubes=512/phase=fall", func(b *testing.B) {
		w := start(b, "physics", 64, false)
		for i := 0; b.Loop(); i++ {
			if i%240 == 0 {
				w.request(proto.Init{Cubes: 512, Seed: 1}.Append(nil))
			}
			w.request(step)
		}
	})
	b.Run("cubes=512/phase=rest", func(b *testing.B) {
		w := start(b, "physics", 64, false)
		w.call("tick 600")
		for b.Loop() {
			w.request(step)
		}
	})
	b.Run("cubes=512/phase=pushed", func(b *testing.B) {
		w := start(b, "physics", 64, false)
		w.call("tick 300")
		for i := 0; b.Loop(); i++ {
			w.request(script(i))
		}
	})
}
