package suite

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"
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
	if prog != nil {
		v.driver = drive.New(prog, suspend.Flag)
		if _, err := v.driver.Instantiate(ctx, v.rt); err != nil {
			tb.Fatal(err)
		}
	}
	return v
}

// run runs the program once and returns what it wrote.
func (v *variant) run(tb testing.TB, p program) string {
	tb.Helper()
	ctx := context.Background()
	w := newWorld(tb, p, p.long...)
	mod, err := v.rt.InstantiateModule(ctx, v.compiled, w.config().WithName("").WithStartFunctions())
	if err != nil {
		tb.Fatal(err)
	}
	defer mod.Close(ctx)
	start := time.Now()
	_, err = mod.ExportedFunction("_start").Call(ctx)
	v.least = min(v.least, time.Since(start))
	if d := Describe(err); d != "" && d != "exit 0" {
		tb.Fatalf("%s: %v", v.name, err)
	}
	return w.out.String()
}

// BenchmarkSuspend measures what being able to stop costs a program that never
// does: each program as it is and rewritten, in turn, the least time of each.
func BenchmarkSuspend(b *testing.B) {
	repeats := 3
	if s := os.Getenv("REPEATS"); s != "" {
		repeats, _ = strconv.Atoi(s)
	}
	var logs, sizes, natives float64
	var count int
	for _, p := range programs {
		if p.long == nil {
			continue
		}
		b.Run(p.name, func(b *testing.B) {
			m := module(b, p)
			prog, err := suspend.Rewrite(m, suspend.Options{})
			if err != nil {
				b.Fatal(err)
			}
			plain := newVariant(b, "plain", m, nil)
			variants := []*variant{plain, newVariant(b, "rewritten", prog.Module, prog)}
			for b.Loop() {
				for range repeats {
					want := plain.run(b, p)
					for _, v := range variants[1:] {
						if got := v.run(b, p); got != want {
							b.Fatalf("%s wrote %q, plain %q", v.name, got, want)
						}
					}
				}
			}
			r := variants[1]
			time := float64(r.least) / float64(plain.least)
			size, native := float64(r.bytes)/float64(plain.bytes), float64(r.native)/float64(plain.native)
			b.ReportMetric(float64(plain.least.Milliseconds()), "ms-plain")
			b.ReportMetric(time, "x-time")
			b.ReportMetric(size, "x-wasm")
			b.ReportMetric(native, "x-native")
			b.ReportMetric(0, "ns/op")
			logs += math.Log(time)
			sizes += math.Log(size)
			natives += math.Log(native)
			count++
		})
	}
	if count > 0 {
		n := float64(count)
		b.Logf("geometric means of %d: time %.3f, wasm %.2f, native %.2f", count, math.Exp(logs/n), math.Exp(sizes/n), math.Exp(natives/n))
	}
}
