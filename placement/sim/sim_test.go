package sim

import (
	"cmp"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

type outcome struct {
	name string
	result
}

// compare runs every policy in the same world. Ours is the first, the oracle
// the last.
func compare(w *world) []outcome {
	var out []outcome
	for _, c := range []struct {
		name   string
		policy policy
	}{{"ours", newOurs(w)}, {"never", never{}}, {"nearest", nearest{}}, {"least-loaded", &leastLoaded{}}, {"oracle", newOracle(w)}} {
		out = append(out, outcome{c.name, simulate(w, c.policy)})
	}
	return out
}

func logOutcomes(t testing.TB, cfg config, out []outcome) {
	t.Logf("seed %d, %d nodes, %d workers, %d s, radio %v", cfg.seed, cfg.edges+cfg.clouds, cfg.workers, cfg.seconds, cfg.radio)
	for _, o := range out {
		t.Logf("%-12s violated %8.0f user-s, %5.2f%%, of them by moving %5.0f; %6d moves, %5.2f per worker-hour; %d refused",
			o.name, o.violated, 100*o.violated/float64(cfg.workers*cfg.seconds), o.blackout, o.moves, o.movesPerHour(), o.refused)
	}
}

// A small world, with and without what nobody can avoid.
func TestCompare(t *testing.T) {
	for _, cfg := range []config{
		{seed: 1, edges: 46, clouds: 2, workers: 460, seconds: 300},
		{seed: 2, edges: 46, clouds: 2, workers: 460, seconds: 300, radio: true},
		{seed: 3, edges: 46, clouds: 2, workers: 460, seconds: 300, radio: true},
	} {
		out := compare(newWorld(cfg))
		logOutcomes(t, cfg, out)
		us, never, nearest, least, oracle := out[0], out[1], out[2], out[3], out[4]
		// What nobody can avoid weighs on all alike, so ratios to the worse
		// policies are taken without it, the ratio to the oracle with it.
		for _, o := range []outcome{never, nearest, least} {
			if !cfg.radio && us.violated > o.violated/2 {
				t.Errorf("seed %d: more than half of the violations of %s", cfg.seed, o.name)
			}
		}
		if us.movesPerHour() > nearest.movesPerHour()/3 {
			t.Errorf("seed %d: more than a third of the moves of nearest", cfg.seed)
		}
		if cfg.radio && us.violated > 1.25*oracle.violated {
			t.Errorf("seed %d: %.2f times the violations of the oracle", cfg.seed, us.violated/oracle.violated)
		}
	}
}

// The same seed makes the same run.
func TestRepeatable(t *testing.T) {
	cfg := config{seed: 4, edges: 24, clouds: 1, workers: 200, seconds: 120}
	a, b := newWorld(cfg), newWorld(cfg)
	if got, want := simulate(a, newOurs(a)), simulate(b, newOurs(b)); got != want {
		t.Errorf("got %+v, then %+v", got, want)
	}
}

// The figures of the design document. One run is the result; time does not
// matter. The package comment says how to run it at another scale.
func BenchmarkPolicies(b *testing.B) {
	numbers := func(name, otherwise string) (out []int) {
		for _, s := range strings.Split(cmp.Or(os.Getenv(name), otherwise), ",") {
			n, err := strconv.Atoi(s)
			if err != nil || n < 1 {
				b.Fatalf("%s: %q is no list of numbers from 1 up", name, os.Getenv(name))
			}
			out = append(out, n)
		}
		return out
	}
	nodes, seconds := numbers("SIM_NODES", "1000")[0], numbers("SIM_SECONDS", "600")[0]
	clouds := max(1, nodes*3/100)
	for _, radio := range []bool{false, true} {
		for _, seed := range numbers("SIM_SEEDS", "1,2") {
			b.Run(fmt.Sprintf("radio=%v/seed=%d", radio, seed), func(b *testing.B) {
				cfg := config{seed: uint64(seed), edges: nodes - clouds, clouds: clouds, workers: 10 * nodes, seconds: seconds, radio: radio}
				for b.Loop() {
					out := compare(newWorld(cfg))
					logOutcomes(b, cfg, out)
					us, nearest, oracle := out[0], out[2], out[4]
					b.ReportMetric(us.violated/oracle.violated, "violated/oracle")
					b.ReportMetric(us.violated/nearest.violated, "violated/nearest")
					b.ReportMetric(us.movesPerHour()/nearest.movesPerHour(), "moves/nearest")
					b.ReportMetric(us.movesPerHour()/oracle.movesPerHour(), "moves/oracle")
				}
			})
		}
	}
}
