package placement

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"meshnode/placement/manifest"
)

// busy makes a mesh in which no worker is content, so that nothing is
// decided by the short way.
func busy(b *testing.B, n, workers int) (*manifest.App, []Node, []Path, []*Worker) {
	r := rand.New(rand.NewPCG(1, 2))
	a := app(b, func(a *manifest.App) {
		a.Objectives.Blackout = objective(100*ms, manifest.Soft)
		a.Placement.Require = manifest.Predicate{Arch: []string{"amd64", "arm64"}, Cores: 1, Labels: []manifest.Label{{Key: "zone", NotIn: []string{"z"}}}}
		a.Placement.Prefer = []manifest.Preference{{Weight: 1, Predicate: manifest.Predicate{Tier: []manifest.Tier{manifest.Edge}}}}
	})
	nodes, paths := world(r, n)
	for i := range nodes {
		nodes[i].Cordoned, nodes[i].Draining, nodes[i].MemoryFree, nodes[i].Load = false, false, 1<<40, 0.5*r.Float64()
	}
	ws := make([]*Worker, workers)
	for i := range ws {
		ws[i] = randomWorker(r, nodes)
		ws[i].Users = ws[i].Users[:1]
	}
	return a, nodes, paths, ws
}

func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{100, 1000} {
		a, nodes, paths, ws := busy(b, n, 100)
		v, err := NewView(t0, nodes, paths)
		if err != nil {
			b.Fatal(err)
		}
		// By the shortlist, as a node decides.
		b.Run(fmt.Sprintf("nodes=%d", n), func(b *testing.B) {
			i := 0
			for b.Loop() {
				v.Decide(a, ws[i%len(ws)], State{})
				i++
			}
		})
		// Every node predicted in full, moves included.
		b.Run(fmt.Sprintf("nodes=%d/all", n), func(b *testing.B) {
			i := 0
			for b.Loop() {
				w := ws[i%len(ws)]
				i++
				p := v.problem(a, w)
				here := p.evaluate(p.here)
				var d Decision
				all := v.scratch.shortlist[:0]
				for _, k := range p.t.eligible {
					all = append(all, ranked{node: k})
				}
				v.scratch.shortlist = all
				p.predict(all, here.cost, 60, objectiveCodes|1<<CodeCPU, &d)
				if d.Passed < n-1 {
					b.Fatalf("%d of %d predicted", d.Passed, n)
				}
			}
		})
	}
}

// A round decides for every worker from one new view, the view included.
func BenchmarkRound(b *testing.B) {
	a, nodes, paths, ws := busy(b, 1000, 10_000)
	for b.Loop() {
		v, err := NewView(t0, nodes, paths)
		if err != nil {
			b.Fatal(err)
		}
		for _, w := range ws {
			d, _ := v.Decide(a, w, State{})
			v.Apply(a, w, &d)
		}
	}
	b.ReportMetric(float64(len(ws)), "workers/op")
}

func BenchmarkPredictMove(b *testing.B) {
	in := MoveInput{Memory: 64 << 20, WorkingSet: 4 << 20, DirtyRate: 1 << 20, Rate: 12.5e6, RTT: RTT{10 * ms, 12 * ms}, Paging: true}
	for b.Loop() {
		PredictMove(in)
	}
}

func BenchmarkExplain(b *testing.B) {
	a, nodes, paths, ws := busy(b, 1000, 10)
	v, err := NewView(t0, nodes, paths)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		v.Explain(a, ws[0], State{})
	}
}
