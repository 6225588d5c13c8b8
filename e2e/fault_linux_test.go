package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"meshnode/e2e/netlab"
	"meshnode/node/control"
	"meshnode/pager"
)

// A faulter calls a worker that has just arrived at b, so that it waits for
// pages, and measures the round trip beside it.
type faulter struct {
	tb      testing.TB
	client  *control.Client
	session *control.ClientSession

	rtts, cold, warm []time.Duration
}

func newFaulter(p *pair, at *netlab.Node) *faulter {
	f := &faulter{tb: p.tb, client: control.NewClient(filepath.Join(p.state(at), control.SocketName))}
	p.tb.Cleanup(f.client.Close)
	var err error
	if f.session, err = f.client.Session(context.Background(), "kv"); err != nil {
		p.tb.Fatal(err)
	}
	p.tb.Cleanup(func() { _ = f.session.Close() })
	return f
}

// awaitAt waits until the worker runs at a node, in that node's own eyes.
func (p *pair) awaitAt(n *netlab.Node) {
	p.tb.Helper()
	p.wait("the worker at "+n.Name(), func() bool {
		var w control.Worker
		out, err := p.command(n, "worker", "show", "kv", "-o", "json").Output()
		return err == nil && json.Unmarshal(out, &w) == nil && w.HomeName == n.Name()
	})
}

// call is how long the worker takes to answer.
func (f *faulter) call(format string, args ...any) time.Duration {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	start := time.Now()
	if err := f.session.Send(ctx, control.Message{Call: true, Payload: fmt.Appendf(nil, format, args...)}); err != nil {
		f.tb.Fatal(err)
	}
	r, err := f.session.Recv(ctx)
	if err != nil {
		f.tb.Fatal(err)
	}
	if r.Err != nil || r.Status != 0 {
		f.tb.Fatalf("worker answers status %d, %v: %s", r.Status, r.Err, r.Payload)
	}
	return time.Since(start)
}

// ping measures a round trip to the node of that name over the connection that
// demanded pages use.
func (f *faulter) ping(to string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err := f.client.Ping(ctx, to, 1, func(p control.Ping) error {
		f.rtts = append(f.rtts, time.Duration(p.RTTMs*float64(time.Millisecond)))
		return nil
	})
	if err != nil {
		f.tb.Fatal(err)
	}
}

// touch has the worker write to a page that is likely missing, and again now
// that it is there.
func (f *faulter) touch(page int) {
	f.cold = append(f.cold, f.call("touch range %d 1", page))
	f.warm = append(f.warm, f.call("touch range %d 1", page))
}

func quantile(ds []time.Duration, q float64) time.Duration {
	ds = slices.Sorted(slices.Values(ds))
	return ds[int(q*float64(len(ds)-1))]
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// BenchmarkFaultIdle is how much longer than a round trip a worker waits for a
// page over a link that carries nothing else: the source pushes a page every
// four seconds. The round trip is one over QUIC, measured before each fault.
func BenchmarkFaultIdle(b *testing.B) {
	b.Run("rtt=10ms", func(b *testing.B) {
		for range b.N {
			p := newPair(b, "--push-rate", "1KiB")
			p.worker(16)
			p.link("delay=5ms")
			move := p.command(p.a, "worker", "migrate", "kv", "--to", "b", "--strategy", "post-copy")
			if err := move.Start(); err != nil {
				b.Fatal(err)
			}
			p.awaitAt(p.b)
			f := newFaulter(p, p.b)
			for i := range 20 { // what every call needs
				f.call("touch range %d 1", i)
			}
			for _, page := range rand.Perm(200) {
				f.ping("a")
				f.touch(100 + page*16)
			}
			// What a call takes by itself is not the fault's. The lower
			// quartiles tell more on a machine that does other things too.
			call := quantile(f.warm, 0.5)
			for _, q := range []float64{0.25, 0.5} {
				rtt, fault := quantile(f.rtts, q), quantile(f.cold, q)-call
				b.ReportMetric(ms(rtt), fmt.Sprintf("ms-rtt-p%.0f", 100*q))
				b.ReportMetric(ms(fault), fmt.Sprintf("ms-fault-p%.0f", 100*q))
				b.ReportMetric(ms(fault-rtt), fmt.Sprintf("ms-over-rtt-p%.0f", 100*q))
			}
			b.ReportMetric(ms(quantile(f.cold, 0.99)), "ms-fault-p99")
			b.ReportMetric(0, "ns/op")
		}
	})
}

// BenchmarkFaultUnderBulk is how long a worker waits for a page while the rest
// of its memory fills a link of 100 Mbit/s, against the round trip of the same
// link when it is idle, and how much of the link the rest uses meanwhile.
func BenchmarkFaultUnderBulk(b *testing.B) {
	const rate = 100e6
	b.Run("mem=64MiB/rate=100mbit/rtt=10ms", func(b *testing.B) {
		for range b.N {
			p := newPair(b)
			p.worker(64)
			p.link("rate=100mbit delay=5ms")
			idle := &faulter{tb: b, client: control.NewClient(filepath.Join(p.state(p.b), control.SocketName))}
			for range 50 {
				idle.ping("a")
			}
			idle.client.Close()
			move := p.command(p.a, "worker", "migrate", "kv", "--to", "b", "--strategy", "post-copy", "-o", "json")
			var out bytes.Buffer
			move.Stdout, move.Stderr = &out, os.Stderr
			if err := move.Start(); err != nil {
				b.Fatal(err)
			}
			p.awaitAt(p.b)
			f := newFaulter(p, p.b)
			moved := make(chan error, 1)
			go func() { moved <- move.Wait() }()
			const pages = 64 << 20 / pager.PageSize
			for done := false; !done; {
				f.ping("a")
				f.touch(rand.IntN(pages))
				select {
				case err := <-moved:
					if err != nil {
						b.Fatal(err)
					}
					done = true
				default:
				}
			}
			var m control.Migration
			if err := json.Unmarshal(out.Bytes(), &m); err != nil {
				b.Fatal(err)
			}
			rtt := ms(quantile(idle.rtts, 0.5))
			b.ReportMetric(rtt, "ms-rtt-idle-p50")
			b.ReportMetric(ms(quantile(f.rtts, 0.5))-rtt, "ms-queue-p50")
			b.ReportMetric(ms(quantile(f.rtts, 0.99))-rtt, "ms-queue-p99")
			b.ReportMetric(m.FaultMsP50, "ms-fault-p50")
			b.ReportMetric(m.FaultMsP99, "ms-fault-p99")
			b.ReportMetric(m.FaultMsP99-1.5*rtt-5, "ms-p99-over-1.5rtt+5")
			b.ReportMetric(float64(m.PagesDemanded), "pages-demanded")
			b.ReportMetric(float64(m.BytesOnWire)*8/(m.DrainMs/1000)/rate, "of-the-link")
			b.ReportMetric(0, "ns/op")
		}
	})
}
