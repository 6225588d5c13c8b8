package e2e

import (
	"fmt"
	"math"
	"path/filepath"
	"testing"

	"meshnode/e2e/netlab"
	"meshnode/node/control"
)

// The moves of BenchmarkPredict over each link: there and back.
var predictMoves = []struct {
	mib      int
	churn    string // what the worker writes in a second, as the app wants it
	strategy string
}{
	{16, "0B", control.StrategyAuto},
	{4, "1MiB", control.StrategyAuto},
	{32, "4MiB", control.StrategyAuto},
	{16, "20MiB", control.StrategyAuto},
	{16, "1MiB", control.StrategyPreCopy},
	{8, "0B", control.StrategyStopAndCopy},
}

// BenchmarkPredict compares what moves were predicted to be with what they were:
// workers of different sizes that write at different rates, over three links,
// each with two nodes of its own that have never moved anything. It reports the
// share of moves whose blackout was within 30 % or 5 ms, whichever is larger, of
// the prediction, and those whose total time and bytes were within 30 %.
func BenchmarkPredict(b *testing.B) {
	if err := netlab.Unavailable(); err != nil {
		b.Skip(err)
	}
	for range b.N {
		moves, blackout, total, bytes := 0, 0, 0, 0
		within := func(predicted, measured, least float64) int {
			if math.Abs(predicted-measured) <= max(0.3*measured, least) {
				return 1
			}
			return 0
		}
		for _, link := range []string{"rate=100mbit delay=5ms", "rate=1gbit delay=500us", "rate=30mbit delay=20ms"} {
			p := newPair(b)
			p.link(link)
			for i, c := range predictMoves {
				name := fmt.Sprint("kv", i)
				p.run(p.a, "worker", "run", filepath.Join(p.dir, "apps", "kvstore.wasm"), "--name", name, "--memory-limit", fmt.Sprintf("%dMiB", c.mib+64))
				p.run(p.a, "worker", "call", name, fmt.Sprintf("init %dMiB", c.mib))
				// Values of its own, so that no move finds pages of another.
				p.run(p.a, "worker", "call", name, fmt.Sprintf("fill %d 1000 %d", c.mib<<10, 1+i))
				p.run(p.a, "worker", "call", name, "churn "+c.churn)
				for _, to := range []string{"b", "a"} {
					var m control.Migration
					p.json(p.a, &m, "worker", "migrate", name, "--to", to, "--strategy", c.strategy)
					if m.Predicted == nil {
						b.Fatalf("a move was not predicted: %+v", m)
					}
					q := m.Predicted
					b.Logf("%s: %d MiB, %s/s, by %s: blackout %.1f ms, predicted %.1f; total %.0f, %.0f; MiB %.1f, %.1f", link, c.mib, c.churn, m.Strategy,
						m.BlackoutMs, q.BlackoutMs, m.TotalMs, q.TotalMs, float64(m.BytesOnWire)/(1<<20), float64(q.Bytes)/(1<<20))
					moves++
					blackout += within(q.BlackoutMs, m.BlackoutMs, 5)
					total += within(q.TotalMs, m.TotalMs, 0)
					bytes += within(float64(q.Bytes), float64(m.BytesOnWire), 0)
				}
				p.run(p.a, "worker", "stop", name)
			}
		}
		share := func(n int) float64 { return float64(n) / float64(moves) }
		b.ReportMetric(float64(moves), "moves")
		b.ReportMetric(share(blackout), "blackout-within")
		b.ReportMetric(share(total), "total-within")
		b.ReportMetric(share(bytes), "bytes-within")
		b.ReportMetric(0, "ns/op")
	}
}
