package node

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestSinceChange(t *testing.T) {
	ms := func(xs ...int) (out []time.Duration) {
		for _, x := range xs {
			out = append(out, time.Duration(x)*time.Millisecond)
		}
		return out
	}
	for _, r := range []struct{ samples, want []time.Duration }{
		{ms(10, 11), ms(10, 11)},
		{ms(10, 11, 50, 51, 49), ms(10, 11, 50, 51, 49)},         // three are not enough
		{ms(10, 11, 50, 51, 49, 52), ms(50, 51, 49, 52)},         // farther
		{ms(50, 52, 10, 11, 10, 12), ms(10, 11, 10, 12)},         // nearer
		{ms(10, 11, 50, 51, 10, 52), ms(10, 11, 50, 51, 10, 52)}, // noise
		{ms(10, 10, 12, 12, 12, 12), ms(10, 10, 12, 12, 12, 12)}, // within a quarter
		{ms(1, 1, 1, 1, 1, 1, 1), ms(1, 1, 1, 1, 1, 1, 1)},       // nothing
	} {
		samples := make([]pathSample, len(r.samples))
		for i, rtt := range r.samples {
			samples[i].rtt = rtt
		}
		if got := rtts(sinceChange(samples)); !slices.Equal(got, r.want) {
			t.Errorf("%v: got %v, want %v", r.samples, got, r.want)
		}
	}
}

// TestTrend follows a path that is pinged four times a second, whose round trip
// is at, and wanders by as much as noise from second to second.
func TestTrend(t *testing.T) {
	const ms = float64(time.Millisecond)
	for _, r := range []struct {
		name         string
		grows, noise float64 // ms a second, ms
		late         int     // one packet in so many is 50 ms late; 0 for none
	}{
		{"still", 0, 0, 0},
		{"noise", 0, 4, 0},
		{"away", 1.3, 2, 0},
		{"nearer", -1.3, 2, 0},
		{"away past a busy cell", 1.3, 2, 20},
		{"late packets", 0, 1, 7},
	} {
		t.Run(r.name, func(t *testing.T) {
			wrong, off, levels := 0, 0.0, 0.0
			const runs = 200
			for seed := range uint64(runs) {
				rng := rand.New(rand.NewPCG(seed, 0))
				var samples []pathSample
				wander, rtt := 0.0, 0.0
				for i := range pathSamples {
					at := float64(i) * watchEvery.Seconds()
					if i%int(time.Second/watchEvery) == 0 {
						wander = r.noise * (rng.Float64() - 0.5)
					}
					rtt = 30 + r.grows*at
					late := 0.0
					if r.late > 0 && rng.IntN(r.late) == 0 {
						late = 50
					}
					samples = append(samples, pathSample{time.Duration((rtt + wander + late + 0.2*rng.Float64()) * ms), time.Unix(0, 0).Add(time.Duration(at * 1e9))})
				}
				got, trend := estimate(samples)
				if math.Abs(float64(trend)/ms-r.grows) > 0.7 {
					wrong++
				}
				off += math.Abs(float64(trend)/ms - r.grows)
				levels += math.Abs(float64(got.P50)/ms - rtt)
			}
			t.Logf("%d of %d wrong, %.2f ms/s and %.2f ms off", wrong, runs, off/runs, levels/runs)
			if wrong > runs/10 || off/runs > 0.4 || levels/runs > 1+r.noise/2 {
				t.Errorf("%d of %d wrong, %.2f ms/s and %.2f ms off", wrong, runs, off/runs, levels/runs)
			}
		})
	}
}
