package drive_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"meshnode/node/suspend"
	"meshnode/node/suspend/drive"
	. "meshnode/node/suspend/drive/drivetest"
)

var (
	randomModules = flag.Int("random", 2500, "number of random modules to try")
	randomSeed    = flag.Uint64("seed", 1, "seed of the random modules; 0 picks one")
)

// TestRandom makes valid modules of random bytes, by Binaryen, and compares each
// with what it is when it is rewritten, stopped at every n-th poll, and moved:
// results, traps, what it logs, and its memory.
//
// Binaryen gives each function a limit to its loops and recursion, which every
// call begins anew, and takes the payloads of NaNs out, which are open, but for
// those in vectors. So a call that wazero's two engines do not agree on, plain,
// proves nothing, and ends its module. Nor does a difference where they do not
// agree on the rewritten module, left alone.
func TestRandom(t *testing.T) {
	if raceDetector {
		t.Skip("nothing here runs concurrently")
	}
	tool, err := exec.LookPath("wasm-opt")
	if err != nil {
		t.Skip("random modules are made by wasm-opt (Debian: binaryen):", err)
	}
	seed := *randomSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d", seed)
	var mu sync.Mutex
	var calls, stops, traps, refused int
	why := map[string]int{}
	var failed atomic.Bool
	t.Run("each", func(t *testing.T) {
		shares := runtime.GOMAXPROCS(0)
		for share := range shares {
			t.Run(fmt.Sprint(share), func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				for i := share; i < *randomModules && !failed.Load(); i += shares {
					c, s, tr, err := tryRandom(t, tool, dir, seed, i)
					mu.Lock()
					calls, stops, traps = calls+c, stops+s, traps+tr
					if err != nil {
						refused++
						why[err.Feature]++
					}
					mu.Unlock()
					if t.Failed() {
						failed.Store(true)
					}
				}
			})
		}
	})
	t.Logf("%d modules, %d refused %v, %d calls, %d stops, %d traps", *randomModules, refused, why, calls, stops, traps)
}

// tryRandom makes module i and compares it with itself, unless Rewrite refuses
// it by name.
func tryRandom(t *testing.T, tool, dir string, seed uint64, i int) (calls, stops, traps int, refused *suspend.RefusedError) {
	rng := rand.New(rand.NewPCG(seed, uint64(i)))
	input := make([]byte, 500+rng.IntN(6000))
	for j := range input {
		input[j] = byte(rng.Uint32())
	}
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out.wasm")
	if err := os.WriteFile(in, input, 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{in, "-ttf", "--mvp-features", "--enable-simd", "--enable-bulk-memory", "--enable-multivalue",
		"--enable-sign-ext", "--enable-nontrapping-float-to-int", "--enable-mutable-globals", "--enable-tail-call", "--denan", "-o", out}
	if i%3 == 0 { // most of these have externref globals, or types of later proposals
		args = append(args, "--enable-reference-types")
	}
	cmd := exec.Command(tool, args...)
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, msg)
	}
	module, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	options := suspend.Options{Poll: suspend.Countdown, Foreign: true, Everywhere: rng.IntN(2) == 0, Once: rng.IntN(2) == 0}
	p, err := suspend.Rewrite(module, options)
	if err != nil {
		if !errors.As(err, &refused) || refused.Feature == "malformed module" {
			t.Fatalf("module %d: %v", i, err)
		}
		return 0, 0, 0, refused
	}
	calls, stops, traps = compareRandom(context.Background(), t, i, module, p, rng)
	return calls, stops, traps, nil
}

// logger is the module that random modules import, which notes what they log.
func logger(out *bytes.Buffer) func(context.Context, wazero.Runtime) {
	return func(ctx context.Context, rt wazero.Runtime) {
		b := rt.NewHostModuleBuilder("fuzzing-support")
		for name, typ := range map[string]api.ValueType{
			"log-i32": api.ValueTypeI32, "log-i64": api.ValueTypeI64, "log-f32": api.ValueTypeF32, "log-f64": api.ValueTypeF64, "log-v128": 0x7b,
		} {
			b.NewFunctionBuilder().WithGoFunction(api.GoFunc(func(_ context.Context, stack []uint64) {
				if typ == api.ValueTypeI32 || typ == api.ValueTypeF32 {
					stack[0] &= 1<<32 - 1
				}
				fmt.Fprintln(out, name, stack[0])
			}), []api.ValueType{typ}, nil).Export(name)
		}
		if _, err := b.Instantiate(ctx); err != nil {
			panic(err)
		}
	}
}

// A randomCall is a call of a random module.
type randomCall struct {
	name string
	args []uint64
}

// sameOnBoth reports whether the rewritten module, which nobody stops, does the
// same on both of wazero's engines.
func sameOnBoth(ctx context.Context, t *testing.T, p *suspend.Program, made []randomCall) bool {
	var logs [2]bytes.Buffer
	var on [2]*Instance
	for i, e := range []Engine{Compiler, Interpreter} {
		h := NewHost(t, p, suspend.Countdown)
		h.Imports = logger(&logs[i])
		in, err := h.Instance(ctx, e)
		if err != nil {
			t.Error(err)
			return true
		}
		in.Countdown(1<<31 - 1)
		on[i] = in
	}
	for _, c := range made {
		var errs [2]error
		for i, in := range on {
			if f := in.Module.ExportedFunction("hangLimitInitializer"); f != nil {
				f.Call(ctx)
			}
			_, errs[i] = in.Driver.Call(ctx, c.name, c.args...)
		}
		if Describe(errs[0]) != Describe(errs[1]) || logs[0].String() != logs[1].String() || !sameMemory(on[0].Module, on[1].Module) {
			return false
		}
	}
	return true
}

func compareRandom(ctx context.Context, t *testing.T, number int, module []byte, p *suspend.Program, rng *rand.Rand) (calls, stops, traps int) {
	var plainLog, otherLog, movedLog bytes.Buffer
	var runtimes []wazero.Runtime
	defer func() {
		for _, rt := range runtimes {
			rt.Close(ctx)
		}
	}()
	instantiate := func(e Engine, log *bytes.Buffer) (api.Module, error) {
		rt := wazero.NewRuntimeWithConfig(ctx, e.Config())
		runtimes = append(runtimes, rt)
		logger(log)(ctx, rt)
		return rt.InstantiateWithConfig(ctx, module, wazero.NewModuleConfig().WithName(""))
	}
	plain, plainErr := instantiate(Compiler, &plainLog)
	other, _ := instantiate(Interpreter, &otherLog)
	h := NewHost(t, p, suspend.Countdown)
	h.Imports = logger(&movedLog)
	engines := []Engine{Compiler, Interpreter}
	in, err := h.Instance(ctx, Compiler)
	if plainErr != nil || err != nil {
		// What is not valid to begin with is nobody's fault here.
		if plainErr == nil || !strings.Contains(plainErr.Error(), "invalid") && Describe(plainErr) != Describe(err) {
			t.Errorf("module %d: instantiation: %v, plain %v", number, err, plainErr)
		}
		return 0, 0, 0
	}
	var names []string
	types := plain.ExportedFunctionDefinitions()
	for name := range types {
		names = append(names, name)
	}
	sort.Strings(names)
	var made []randomCall
	var differs []string
	differ := func(format string, a ...any) { differs = append(differs, fmt.Sprintf(format, a...)) }
	for _, name := range names {
		var args []uint64
		for _, typ := range types[name].ParamTypes() {
			switch typ {
			case api.ValueTypeI32, api.ValueTypeF32:
				args = append(args, uint64(rng.Uint32()>>rng.IntN(32)))
			case 0x7b:
				args = append(args, rng.Uint64(), rng.Uint64())
			case api.ValueTypeI64, api.ValueTypeF64:
				args = append(args, rng.Uint64()>>rng.IntN(64))
			default:
				args = append(args, 0)
			}
		}
		if f := plain.ExportedFunction("hangLimitInitializer"); f != nil {
			f.Call(ctx)
			other.ExportedFunction("hangLimitInitializer").Call(ctx)
			in.Module.ExportedFunction("hangLimitInitializer").Call(ctx)
		}
		made = append(made, randomCall{name, slices.Clone(args)})
		want, wantErr := plain.ExportedFunction(name).Call(ctx, args...)
		_, otherErr := other.ExportedFunction(name).Call(ctx, args...)
		if Describe(otherErr) != Describe(wantErr) || plainLog.String() != otherLog.String() || !sameMemory(plain, other) {
			break
		}
		n := int32(1 + rng.IntN(4))
		in.Countdown(n)
		got, gotErr := in.Driver.Call(ctx, name, args...)
		for errors.Is(gotErr, drive.ErrStopped) {
			stops++
			in = h.Move(ctx, in, engines[stops%2])
			in.Countdown(n)
			got, gotErr = in.Continue(ctx)
		}
		in.Countdown(1<<31 - 1)
		calls++
		if wantErr != nil {
			traps++
		}
		if Describe(gotErr) != Describe(wantErr) {
			differ("module %d: %s%x: %v, plain %v", number, name, args, gotErr, wantErr)
			break
		}
		for i, typ := range types[name].ResultTypes() {
			if len(types[name].ResultTypes()) != len(want) || gotErr != nil {
				break // vectors are compared in memory and in logs
			}
			switch typ {
			case api.ValueTypeI32, api.ValueTypeF32:
				got[i], want[i] = got[i]&(1<<32-1), want[i]&(1<<32-1)
			case api.ValueTypeI64, api.ValueTypeF64:
			default:
				got[i], want[i] = min(got[i], 1), min(want[i], 1)
			}
			if got[i] != want[i] {
				differ("module %d: %s%x: result %d of %s: %x, plain %x", number, name, args, i, api.ValueTypeName(typ), got, want)
			}
		}
		if !sameMemory(plain, in.Module) {
			differ("module %d: %s%x: memory differs", number, name, args)
		}
		if plainLog.String() != movedLog.String() {
			differ("module %d: %s%x logs\n%s\nplain\n%s", number, name, args, movedLog.String(), plainLog.String())
		}
		if len(differs) > 0 {
			break
		}
	}
	if len(differs) > 0 && !sameOnBoth(ctx, t, p, made) {
		t.Logf("wazero's engines do not agree on a rewritten module: %s", differs[0])
		return calls, stops, traps
	}
	for _, d := range differs {
		t.Error(d)
	}
	if t.Failed() {
		file := filepath.Join(os.TempDir(), fmt.Sprintf("meshnode-random-%d.wasm", number))
		if os.WriteFile(file, module, 0o600) == nil {
			t.Logf("the module is in %s", strings.TrimSpace(file))
		}
	}
	in.Close(ctx)
	return calls, stops, traps
}

func sameMemory(a, b api.Module) bool {
	m, n := Memory(a), Memory(b)
	if m == nil || n == nil {
		return (m == nil) == (n == nil)
	}
	x, _ := m.Read(0, m.Size())
	y, _ := n.Read(0, n.Size())
	return bytes.Equal(x, y)
}
