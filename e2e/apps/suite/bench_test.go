package suite

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"

	"meshnode/node/suspend"
	"meshnode/node/suspend/drive"
	. "meshnode/node/suspend/drive/drivetest"
)

// A variant is one form of a program, compiled.
type variant struct {
	name     string
	rt       wazero.Runtime
	compiled wazero.CompiledModule
	driver   *drive.Driver
	bytes    int // of Wasm
	native   int // of machine code, as wazero caches it
	least    time.Duration
	// asked is when the program has asked for the next frame to continue, in
	// processor time: once as it goes on, and then when one has returned.
	asked []time.Duration
}

func newVariant(tb testing.TB, name string, module []byte, prog *suspend.Program) *variant {
	tb.Helper()
	ctx := context.Background()
	dir := tb.TempDir()
	cache, err := wazero.NewCompilationCacheWithDir(dir)
	if err != nil {
		tb.Fatal(err)
	}
	v := &variant{name: name, bytes: len(module), least: math.MaxInt64}
	v.rt = wazero.NewRuntimeWithConfig(ctx, Compiler.Config().WithCompilationCache(cache))
	tb.Cleanup(func() { v.rt.Close(ctx); cache.Close(ctx) })
	if v.compiled, err = v.rt.CompileModule(ctx, module); err != nil {
		tb.Fatal(err)
	}
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			if i, err := d.Info(); err == nil {
				v.native += int(i.Size())
			}
		}
		return nil
	})
	wasi_snapshot_preview1.MustInstantiate(ctx, v.rt)
	if _, err := v.rt.NewHostModuleBuilder("env").NewFunctionBuilder().WithFunc(func() {}).Export("poll").Instantiate(ctx); err != nil {
		tb.Fatal(err)
	}
	if prog != nil {
		v.driver = drive.New(prog, suspend.Flag)
		note := experimental.FunctionListenerFunc(func(context.Context, api.Module, api.FunctionDefinition, []uint64, experimental.StackIterator) {
			v.asked = append(v.asked, cpuTime())
		})
		listen := experimental.FunctionListenerFactoryFunc(func(f api.FunctionDefinition) experimental.FunctionListener {
			if slices.Contains(f.ExportNames(), "next") {
				return note
			}
			return nil
		})
		if _, err := v.driver.Instantiate(experimental.WithFunctionListenerFactory(ctx, listen), v.rt); err != nil {
			tb.Fatal(err)
		}
	}
	return v
}

// run runs the program once, by calling _start unless told otherwise, and
// returns what it wrote.
func (v *variant) run(tb testing.TB, p program, stop func(api.Module) error) string {
	tb.Helper()
	ctx := context.Background()
	w := newWorld(tb, p, p.long...)
	mod, err := v.rt.InstantiateModule(ctx, v.compiled, w.config().WithName("").WithStartFunctions())
	if err != nil {
		tb.Fatal(err)
	}
	defer mod.Close(ctx)
	// A garbage collection would wait for the program to call the host, and all
	// other goroutines for the collection, the one that asks it to stop included.
	runtime.GC()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	start := cpuTime()
	if stop != nil {
		err = stop(mod)
	} else {
		_, err = mod.ExportedFunction("_start").Call(ctx)
	}
	v.least = min(v.least, cpuTime()-start)
	if d := Describe(err); d != "" && d != "exit 0" {
		tb.Fatalf("%s: %v", v.name, err)
	}
	return w.out.String()
}

// means collects ratios for their geometric mean.
type means struct {
	logs  map[string]float64
	count map[string]int
	names []string
}

func (m *means) add(b *testing.B, name string, v float64) {
	b.ReportMetric(v, name)
	if m.logs == nil {
		m.logs, m.count = map[string]float64{}, map[string]int{}
	}
	if m.count[name] == 0 {
		m.names = append(m.names, name)
	}
	m.logs[name] += math.Log(v)
	m.count[name]++
}

// report reports the means in a line of their own: a benchmark with others in it
// has none.
func (m *means) report(b *testing.B) {
	b.Run("mean", func(b *testing.B) {
		for b.Loop() {
		}
		b.ReportMetric(0, "ns/op")
		for _, name := range m.names {
			b.ReportMetric(math.Exp(m.logs[name]/float64(m.count[name])), "mean-"+name)
		}
	})
}

// BenchmarkSuspend measures what being able to stop costs a program that never
// does: each program as it is, rewritten, and as Asyncify makes it, in turn, and
// the least processor time of each. "x" metrics are ratios to the plain program: x-time,
// x-wasm and x-native (the size of wazero's cached code) for ours; with
// "counting-" in front for ours that counts polls down, and with "asyncify-" for
// the other.
func BenchmarkSuspend(b *testing.B) {
	repeats := 5
	if s := os.Getenv("REPEATS"); s != "" {
		repeats, _ = strconv.Atoi(s)
	}
	var m means
	for _, p := range programs {
		if p.long == nil {
			continue
		}
		b.Run(p.name, func(b *testing.B) {
			source := module(b, p)
			prog, err := suspend.Rewrite(source, suspend.Options{})
			if err != nil {
				b.Fatal(err)
			}
			plain := newVariant(b, "plain", source, nil)
			ours := newVariant(b, "rewritten", prog.Module, prog)
			counted, err := suspend.Rewrite(source, suspend.Options{Poll: suspend.Countdown})
			if err != nil {
				b.Fatal(err)
			}
			variants := []*variant{ours, newVariant(b, "counting", counted.Module, counted)}
			if p.name != "goroutines" { // Asyncify takes minutes for it
				if a := asyncify(b, source); a != nil {
					variants = append(variants, newVariant(b, "asyncify", a, nil))
				}
			}
			for b.Loop() {
				for range repeats {
					want := plain.run(b, p, nil)
					for _, v := range variants {
						if got := v.run(b, p, nil); got != want {
							b.Fatalf("%s wrote %q, plain %q", v.name, got, want)
						}
					}
				}
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(plain.least.Microseconds())/1e3, "ms-plain")
			for i, prefix := range []string{"x", "counting-x", "asyncify-x"} {
				if i < len(variants) {
					v := variants[i]
					m.add(b, prefix+"-time", float64(v.least)/float64(plain.least))
					m.add(b, prefix+"-wasm", float64(v.bytes)/float64(plain.bytes))
					m.add(b, prefix+"-native", float64(v.native)/float64(plain.native))
				}
			}
		})
	}
	m.report(b)
}

// BenchmarkResumed measures a program's old frames: each program is stopped once,
// after a tenth of its time, and goes on in the frames that were rebuilt. The
// figures are processor time against what is then left of the plain program, the
// least of several runs in turn.
//
//   - x-resumed is from the resume to the end.
//   - x-after is from when frames have returned, where they do within a tenth of
//     the program's time: from the last of them on. What was done until then counts
//     as if plain code had done it as fast, so the figure is rather too high.
//   - x-never is the program that never stops, all of it: what runs when the old
//     frames have returned is the same code.
//
// returned is the number of runs in which frames have returned so early, and left
// how many old frames there were then still, at most. Where main does the work, its
// frame is one of them to the end, so that x-after is an old frame's too.
func BenchmarkResumed(b *testing.B) {
	repeats := 15
	if s := os.Getenv("REPEATS"); s != "" {
		repeats, _ = strconv.Atoi(s)
	}
	var m means
	for _, p := range programs {
		if p.long == nil {
			continue
		}
		b.Run(p.name, func(b *testing.B) {
			source := module(b, p)
			prog, err := suspend.Rewrite(source, suspend.Options{})
			if err != nil {
				b.Fatal(err)
			}
			ctx := context.Background()
			plain := newVariant(b, "plain", source, nil)
			never := newVariant(b, "rewritten", prog.Module, prog)
			once := newVariant(b, "stopped", prog.Module, prog)
			// A run until it stops, from there to its end, and of that the part until
			// frames have returned, or 0.
			type parts struct{ before, rest, until time.Duration }
			var runs []parts
			left := 0 // old frames, at most, that had not
			stopping := func(mod api.Module) error {
				d := once.driver
				if err := d.Attach(mod); err != nil {
					return err
				}
				timer := time.AfterFunc(plain.least/10, d.Stop)
				defer timer.Stop()
				start := cpuTime()
				_, err := d.Call(ctx, "_start")
				if !errors.Is(err, drive.ErrStopped) {
					return err
				}
				run := parts{before: cpuTime() - start}
				state, err := d.Capture(ctx)
				if err != nil {
					return err
				}
				once.asked = once.asked[:0]
				still := 0
				start = cpuTime()
				_, err = d.Continue(ctx)
				run.rest = cpuTime() - start
				// Asked for the innermost frame, and again whenever one has returned.
				for returned, at := range once.asked {
					if returned > 0 && at-start <= plain.least/10 {
						run.until, still = at-start, len(state.Frames)-returned
					}
				}
				left = max(left, still)
				runs = append(runs, run)
				return err
			}
			for b.Loop() {
				for range repeats {
					want := plain.run(b, p, nil)
					for _, got := range []string{never.run(b, p, nil), once.run(b, p, stopping)} {
						if got != want {
							b.Fatalf("rewritten it wrote %q, plain %q", got, want)
						}
					}
				}
			}
			if len(runs) == 0 {
				b.Fatal("it always ended before it was to stop")
			}
			resumed, after, returned := math.Inf(1), math.Inf(1), 0
			for _, r := range runs {
				rest := (1 - float64(r.before)/float64(never.least)) * float64(plain.least)
				resumed = min(resumed, float64(r.rest)/rest)
				if rest -= float64(r.until); r.until > 0 && rest > 0 {
					after = min(after, float64(r.rest-r.until)/rest)
					returned++
				}
			}
			m.add(b, "x-never", float64(never.least)/float64(plain.least))
			m.add(b, "x-resumed", resumed)
			if returned > 0 {
				m.add(b, "x-after", after)
			}
			b.ReportMetric(float64(returned), "returned")
			b.ReportMetric(float64(left), "left")
			b.ReportMetric(float64(plain.least.Microseconds())/1e3, "ms-plain")
			b.ReportMetric(0, "ns/op")
		})
	}
	m.report(b)
}

// BenchmarkStop measures how long a program takes to stop, from the request
// until its last frame is out, at STOPS (default 3,000) moments that have
// nothing to do with what it does. "own" metrics are the processor time that the
// program's thread took meanwhile. "control" ones are what the machine and Go
// make of that by the clock: after each stop the same thread looks at nothing but
// a flag, is asked in the same way, and then computes for as long as it took the
// program. What is late there is late without any program.
func BenchmarkStop(b *testing.B) {
	want := 3000
	if s := os.Getenv("STOPS"); s != "" {
		want, _ = strconv.Atoi(s)
	}
	for _, p := range programs {
		if p.input != "" { // they wait: see BenchmarkHalt in node/runner
			continue
		}
		b.Run(p.name, func(b *testing.B) {
			prog, err := suspend.Rewrite(module(b, p), suspend.Options{})
			if err != nil {
				b.Fatal(err)
			}
			ctx := context.Background()
			v := newVariant(b, "rewritten", prog.Module, prog)
			var took, own, control []time.Duration
			rng := rand.New(rand.NewPCG(1, 2))
			type request struct {
				at   time.Time
				used time.Duration
			}
			asked := make(chan request, 1)
			stopping := func(mod api.Module) error {
				d := v.driver
				if err := d.Attach(mod); err != nil {
					return err
				}
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				used := threadClock()
				soon := func(stop func()) *time.Timer {
					return time.AfterFunc(200*time.Microsecond+time.Duration(rng.IntN(300_000)), func() {
						r := request{time.Now(), used()}
						stop()
						asked <- r
					})
				}
				run := func() ([]uint64, error) { return d.Call(ctx, "_start") }
				for {
					timer := soon(d.Stop)
					_, err := run()
					if !errors.Is(err, drive.ErrStopped) {
						if !timer.Stop() {
							<-asked
						}
						return err
					}
					stopped, computed := time.Now(), used()
					r := <-asked
					computed -= r.used
					took, own = append(took, stopped.Sub(r.at)), append(own, computed)

					var stop atomic.Bool
					soon(func() { stop.Store(true) })
					for !stop.Load() { // it takes no time to see it
					}
					r = <-asked
					for used()-r.used < computed {
					}
					control = append(control, time.Since(r.at))
					if len(took)%200 == 0 {
						runtime.GC() // as a process that runs programs does
					}
					run = func() ([]uint64, error) { return d.Continue(ctx) }
				}
			}
			for b.Loop() {
				took, own, control = took[:0], own[:0], control[:0]
				for len(took) < want {
					v.run(b, p, stopping)
				}
			}
			report := func(name string, d []time.Duration) {
				slices.Sort(d)
				us := func(d time.Duration, of string) { b.ReportMetric(float64(d.Microseconds()), "µs-"+name+of) }
				us(d[len(d)/2], "p50")
				us(d[len(d)*99/100], "p99")
				us(d[len(d)*999/1000], "p99.9")
				us(d[len(d)-1], "max")
			}
			report("", took)
			report("own-", own)
			report("control-", control)
			b.ReportMetric(float64(len(took)), "stops")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkLoad measures how long a Go program takes to load, with nothing
// cached: x-load-cpu is the processor time of rewriting and compiling against
// that of compiling the plain program, each on one thread; x-load is what passes
// against the same if two threads compile, as in the runner. x-rewrite-cached is
// rewriting against taking it from a cache.
func BenchmarkLoad(b *testing.B) {
	i := slices.IndexFunc(programs, func(p program) bool { return p.name == "goroutines" })
	source := module(b, programs[i])
	cache := suspend.Cache(b.TempDir())
	rewrite := func(f func([]byte, suspend.Options) (*suspend.Program, error)) []byte {
		p, err := f(source, suspend.Options{})
		if err != nil {
			b.Fatal(err)
		}
		return p.Module
	}
	compile := func(m []byte, workers int) {
		ctx := experimental.WithCompilationWorkers(context.Background(), workers)
		rt := wazero.NewRuntimeWithConfig(ctx, Compiler.Config())
		defer rt.Close(ctx)
		if _, err := rt.CompileModule(ctx, m); err != nil {
			b.Fatal(err)
		}
	}
	type cost struct{ wall, cpu time.Duration }
	least := map[string]cost{}
	measure := func(name string, f func()) {
		runtime.GC()
		start, cpu := time.Now(), cpuTime()
		f()
		c := cost{time.Since(start), cpuTime() - cpu}
		if old, ok := least[name]; ok {
			c = cost{min(c.wall, old.wall), min(c.cpu, old.cpu)}
		}
		least[name] = c
	}
	rewrite(cache.Rewrite)
	for b.Loop() {
		for range 3 {
			measure("plain", func() { compile(source, 1) })
			measure("load", func() { compile(rewrite(suspend.Rewrite), 2) })
			measure("alone", func() { compile(rewrite(suspend.Rewrite), 1) })
			measure("rewrite", func() { rewrite(suspend.Rewrite) })
			measure("cached", func() { rewrite(cache.Rewrite) })
		}
	}
	ms := func(name string) float64 { return least[name].wall.Seconds() * 1e3 }
	b.ReportMetric(ms("plain"), "ms-plain")
	b.ReportMetric(ms("load")/ms("plain"), "x-load")
	b.ReportMetric(float64(least["alone"].cpu)/float64(least["plain"].cpu), "x-load-cpu")
	b.ReportMetric(ms("rewrite"), "ms-rewrite")
	b.ReportMetric(ms("rewrite")/ms("cached"), "x-rewrite-cached")
	b.ReportMetric(0, "ns/op")
}
