package node

import (
	"context"
	"slices"
	"testing"
	"time"

	"meshnode/node/control"
	"meshnode/pager"
)

// BenchmarkCheckpoint makes a checkpoint each second of a worker of 64 MiB that
// writes all over its memory: how long it stands still, and what would travel.
func BenchmarkCheckpoint(b *testing.B) {
	a := startNodes(b, 1)[0]
	if !a.support.Tracking() {
		b.Skip("the kernel does not track writes")
	}
	d := a.run(b, app(b, "kvstore"), control.RunRequest{Name: "kv", MemoryLimit: 256 << 20})
	a.call(b, "kv", "init 64MiB")
	a.call(b, "kv", "fill")
	for _, rate := range []string{"0B", "10MiB", "50MiB"} {
		b.Run("mem=64MiB/written="+rate, func(b *testing.B) {
			a.call(b, "kv", "churn "+rate)
			ctx, cancel := context.WithCancel(b.Context())
			r := &replicator{n: a.Node, w: a.worker(d.ID), every: time.Second, pause: maxPause, failed: true, stretch: 1}
			defer func() {
				cancel()
				r.untrack()
			}()
			checkpoint := func() (*taken, []byte) {
				c, err := r.take(ctx)
				if err != nil {
					b.Fatal(err)
				}
				head, err := c.img.encode()
				if err != nil {
					b.Fatal(err)
				}
				r.names, r.failed = c.names(r.names), false
				return c, head
			}
			checkpoint()
			var pauses, took []time.Duration
			var changed, bytes int
			for b.Loop() {
				time.Sleep(r.every)
				began := time.Now()
				c, head := checkpoint()
				bytes += len(head)
				_ = c.runs(func(run *replicaRun) error { bytes += len(run.Data); return nil })
				pauses, took = append(pauses, c.pause), append(took, time.Since(began))
				changed += len(c.staged)
			}
			slices.Sort(pauses)
			slices.Sort(took)
			b.ReportMetric(control.Millis(pauses[len(pauses)/2]), "ms-pause-p50")
			b.ReportMetric(control.Millis(pauses[len(pauses)-1]), "ms-pause-max")
			b.ReportMetric(control.Millis(took[len(took)/2]), "ms-all-p50")
			b.ReportMetric(float64(changed*pager.PageSize>>10)/float64(len(pauses)), "KiB-changed")
			b.ReportMetric(float64(bytes>>10)/float64(len(pauses)), "KiB-packed")
		})
	}
}
