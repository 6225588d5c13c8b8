package node

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"meshnode/node/control"
	"meshnode/node/runner"
)

// BenchmarkSampled is what a worker pays for being looked at while a move is being
// prepared: the time of its events, each of which touches all of its working set and
// begins 5 ms after the one before if that has ended, forty at a time while neither
// its writes are tracked nor is it sampled, while they are tracked, and while it is
// sampled as well, in turn. x-tracked is tracking against nothing, x-sampled sampling
// against tracking alone, all forty together; x-first is that for the first, which
// finds no page-table entries. Each is the median of the turns.
func BenchmarkSampled(b *testing.B) {
	const turns, events, pace = 8, 40, 5 * time.Millisecond
	a := startNodes(b, 1)[0]
	if !a.support.Tracking() {
		b.Skip("the kernel does not track writes")
	}
	for _, set := range []struct {
		size  string
		pages int
	}{{"256KiB", 64}, {"32MiB", 8192}} {
		d := a.run(b, app(b, "kvstore"), control.RunRequest{Name: fmt.Sprintf("kv%d", set.pages), MemoryLimit: 128 << 20})
		w := a.worker(d.ID)
		a.call(b, w.Name, "init "+set.size)
		a.call(b, w.Name, "fill")
		for _, op := range []struct{ name, payload string }{
			{"read", "scan none"}, {"write", fmt.Sprintf("touch range 0 %d", set.pages)},
		} {
			b.Run(fmt.Sprintf("%s/set=%s", op.name, set.size), func(b *testing.B) {
				const free, tracked, sampled, ways = 0, 1, 2, 3
				event := func() (took time.Duration) {
					began := time.Now()
					if err := w.do(b.Context(), func() {
						if _, err := w.runner.Call(b.Context(), runner.Event{Kind: runner.Call, Payload: []byte(op.payload)}); err != nil {
							b.Error(err)
						}
					}); err != nil {
						b.Fatal(err)
					}
					return time.Since(began)
				}
				// prepare has the worker handle events while it is looked at.
				prepare := func(way int) (all, first time.Duration) {
					if way != free {
						l := a.watchWrites(b.Context(), w, a.budget.Share("nobody", 1), w.memoryNow(), watchOptions{noSampling: way == tracked})
						defer l.close(a.Node)
						<-l.began
					}
					tick := time.NewTicker(pace)
					defer tick.Stop()
					<-tick.C
					first = event()
					all = first
					for range events - 1 {
						<-tick.C
						all += event()
					}
					return all, first
				}
				var alone, tracking, sampling, firsts, one []float64
				for b.Loop() {
					for range turns {
						var all, first [ways]time.Duration
						for way := range ways {
							all[way], first[way] = prepare(way)
						}
						alone = append(alone, all[free].Seconds()/events)
						tracking = append(tracking, all[tracked].Seconds()/all[free].Seconds())
						sampling = append(sampling, all[sampled].Seconds()/all[tracked].Seconds())
						firsts = append(firsts, first[sampled].Seconds()/first[tracked].Seconds())
						one = append(one, first[sampled].Seconds())
					}
				}
				median := func(v []float64) float64 {
					slices.Sort(v)
					return v[len(v)/2]
				}
				b.ReportMetric(1e6*median(alone), "µs-event")
				b.ReportMetric(median(tracking), "x-tracked")
				b.ReportMetric(median(sampling), "x-sampled")
				b.ReportMetric(median(firsts), "x-first")
				b.ReportMetric(1e3*median(one), "ms-first")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}
