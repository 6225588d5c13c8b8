//go:build unix

package runner

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
)

// BenchmarkStart is a worker's start up to its first event, its code compiled
// before.
func BenchmarkStart(b *testing.B) {
	ctx := context.Background()
	for _, bench := range []struct {
		name string
		cfg  Config
	}{
		{"module=small", Config{ModulePath: moduleFile(b, counter()), CacheDir: b.TempDir(), MemoryLimit: 64 << 20}},
		{"module=Go", goGuest(b)},
	} {
		b.Run(bench.name, func(b *testing.B) {
			first := time.Now()
			r, err := Start(ctx, bench.cfg)
			if err != nil {
				b.Fatal(err)
			}
			cold := time.Since(first)
			r.Close()
			for b.Loop() {
				r, err := Start(ctx, bench.cfg)
				if err != nil {
					b.Fatal(err)
				}
				if err := r.Init(ctx); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				r.Close()
				b.StartTimer()
			}
			b.ReportMetric(float64(cold.Microseconds())/1000, "ms-uncached")
			b.ReportMetric(float64(b.Elapsed().Microseconds())/1000/float64(b.N), "ms/start")
		})
	}
}

// BenchmarkEvent is one event from the node and back.
func BenchmarkEvent(b *testing.B) {
	ctx := context.Background()
	for _, size := range []int{0, 1 << 10, 64 << 10, MaxPayload} {
		b.Run(fmt.Sprintf("echo=%d", size), func(b *testing.B) {
			r := live(b, Config{})
			payload := make([]byte, size)
			_, _ = rand.Read(payload)
			e := Event{Kind: Call, ID: doEcho, Payload: payload}
			var times []time.Duration
			for b.Loop() {
				start := time.Now()
				if _, err := r.Call(ctx, e); err != nil {
					b.Fatal(err)
				}
				times = append(times, time.Since(start))
			}
			slices.Sort(times)
			b.ReportMetric(float64(times[len(times)/2].Nanoseconds())/1000, "µs-p50")
			b.ReportMetric(float64(times[len(times)*99/100].Nanoseconds())/1000, "µs-p99")
		})
	}
	b.Run("module=Go", func(b *testing.B) {
		r := live(b, goGuest(b))
		for b.Loop() {
			if _, err := r.Call(ctx, Event{Kind: Call}); err != nil {
				b.Fatal(err)
			}
		}
	})
	// With a deadline, as the node calls.
	b.Run("deadline", func(b *testing.B) {
		r := live(b, Config{})
		for b.Loop() {
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			if _, err := r.Call(ctx, Event{Kind: Call, ID: doEcho}); err != nil {
				b.Fatal(err)
			}
			cancel()
		}
	})
}

// bare runs the guest in Go in this process, under wazero's own WASI and with
// its own memory.
func bare(b *testing.B) api.Function {
	b.Helper()
	ctx := context.Background()
	module, err := os.ReadFile(goGuest(b).ModulePath)
	if err != nil {
		b.Fatal(err)
	}
	rt := wazero.NewRuntime(ctx)
	b.Cleanup(func() { _ = rt.Close(ctx) })
	wasi_snapshot_preview1.MustInstantiate(ctx, rt)
	zero := api.GoModuleFunc(func(_ context.Context, _ api.Module, stack []uint64) { stack[0] = 0 })
	i32 := api.ValueTypeI32
	_, err = rt.NewHostModuleBuilder("meshnode_v1").
		NewFunctionBuilder().WithGoModuleFunction(zero, []api.ValueType{i32, i32, i32}, []api.ValueType{i32}).Export("event_read").
		NewFunctionBuilder().WithGoModuleFunction(zero, []api.ValueType{i32, i32}, []api.ValueType{i32}).Export("reply").
		Instantiate(ctx)
	if err != nil {
		b.Fatal(err)
	}
	m, err := rt.InstantiateWithConfig(ctx, module, wazero.NewModuleConfig().WithStartFunctions("_initialize"))
	if err != nil {
		b.Fatal(err)
	}
	return m.ExportedFunction("meshnode_event")
}

// spent is the processor time of a process so far, to the nanosecond (Linux,
// Documentation/scheduler/sched-stats.rst); elsewhere the time of day.
func spent(pid int) time.Duration {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	var total time.Duration
	for _, path := range threads {
		var ran int64
		if line, err := os.ReadFile(path); err == nil {
			_, _ = fmt.Sscan(string(line), &ran)
		}
		total += time.Duration(ran)
	}
	if total == 0 {
		return time.Duration(time.Now().UnixNano())
	}
	return total
}

// BenchmarkCompute compares a step of arithmetic in a runner with the same
// module under bare wazero, measured in turn.
func BenchmarkCompute(b *testing.B) {
	if !CompilerSupported() {
		b.Skip("wazero does not compile for this machine")
	}
	ctx := context.Background()
	f := bare(b)
	r := live(b, goGuest(b))
	// Processor time where it can be had, since other things run beside us; the
	// time of day otherwise. The tenth percentile of each: whatever else
	// happens only adds.
	pid := r.Region().PID
	var plain, ours []float64
	for b.Loop() {
		start := spent(os.Getpid())
		if _, err := f.Call(ctx, 0, 2, 0); err != nil {
			b.Fatal(err)
		}
		plain = append(plain, (spent(os.Getpid()) - start).Seconds())
		start = spent(pid)
		if _, err := r.Call(ctx, Event{ID: 2}); err != nil {
			b.Fatal(err)
		}
		ours = append(ours, (spent(pid) - start).Seconds())
	}
	slices.Sort(plain)
	slices.Sort(ours)
	p, o := plain[len(plain)/10], ours[len(ours)/10]
	b.ReportMetric(o/p, "runner/bare")
	b.ReportMetric(p*1000, "ms-bare")
	b.ReportMetric(o*1000, "ms-runner")
}
