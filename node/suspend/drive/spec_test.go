package drive_test

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"meshnode/node/suspend"
	"meshnode/node/suspend/drive"
	. "meshnode/node/suspend/drive/drivetest"
)

// specDir finds the core specification's tests, compiled to binaries and JSON
// by wabt, which wazero's own source carries.
func specDir(t *testing.T) string {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/tetratelabs/wazero").Output()
	if err != nil {
		t.Skip("the specification's tests are in wazero's source, which is not here:", err)
	}
	dir := filepath.Join(strings.TrimSpace(string(out)), "internal", "integration_test", "spectest")
	if _, err := os.Stat(filepath.Join(dir, "v2", "testdata")); err != nil {
		t.Skip("the specification's tests are not in wazero's source:", err)
	}
	return dir
}

type specValue struct {
	Type     string          `json:"type"`
	LaneType string          `json:"lane_type"`
	Value    json.RawMessage `json:"value"`
}

type specCommand struct {
	Type     string `json:"type"`
	Line     int    `json:"line"`
	Name     string `json:"name"`
	Filename string `json:"filename"`
	Action   struct {
		Type   string      `json:"type"`
		Module string      `json:"module"`
		Field  string      `json:"field"`
		Args   []specValue `json:"args"`
	} `json:"action"`
	Expected []specValue `json:"expected"`
}

// units are the value as wazero passes it.
func (v specValue) units() (u []uint64, ok bool) {
	var texts []string
	if json.Unmarshal(v.Value, &texts) != nil {
		texts = []string{""}
		if json.Unmarshal(v.Value, &texts[0]) != nil {
			return nil, false
		}
	}
	width := map[string]int{"i8": 8, "i16": 16, "i32": 32, "f32": 32, "i64": 64, "f64": 64}[v.LaneType]
	if v.Type != "v128" {
		width = 64
	}
	var word uint64
	bits := 0
	for _, s := range texts {
		n, err := strconv.ParseUint(s, 10, 64)
		if s == "null" {
			n = 0
		} else if err != nil {
			return nil, false
		}
		word |= n << bits
		if bits += width; bits == 64 {
			u = append(u, word)
			word, bits = 0, 0
		}
	}
	return u, true
}

// sameResults compares results, of the types expected. Any NaN is as good as
// any other: the specification leaves their payloads open.
func sameResults(got, want []uint64, types []specValue) bool {
	if len(got) != len(want) {
		return false
	}
	nan32 := func(v uint32) bool { f := math.Float32frombits(v); return f != f }
	nan64 := func(v uint64) bool { f := math.Float64frombits(v); return f != f }
	i := 0
	for _, t := range types {
		n := 1
		lane := t.Type
		if t.Type == "v128" {
			n, lane = 2, t.LaneType
		}
		for ; n > 0 && i < len(got); n-- {
			g, w := got[i], want[i]
			i++
			if lane == "i32" && n == 1 && t.Type != "v128" || t.Type == "f32" {
				g, w = g&(1<<32-1), w&(1<<32-1) // the rest is not defined
			}
			switch {
			case g == w:
			case lane == "f64" && nan64(g) && nan64(w):
			case lane == "f32":
				for s := 0; s < 64; s += 32 {
					a, b := uint32(g>>s), uint32(w>>s)
					if a != b && !(nan32(a) && nan32(b)) {
						return false
					}
				}
			default:
				return false
			}
		}
	}
	return true
}

// A specModule is a module of a script, plain and rewritten.
type specModule struct {
	plain   api.Module
	moved   *Instance
	host    *Host
	engines []Engine
	moves   int
}

// TestSpec runs the core specification's tests through the rewriter: each call
// stops at every poll and is moved between engines, and is compared with the
// same call of the plain module.
func TestSpec(t *testing.T) {
	if raceDetector {
		t.Skip("nothing here runs concurrently")
	}
	dir := specDir(t)
	files, err := filepath.Glob(filepath.Join(dir, "v2", "testdata", "*.json"))
	tails, tailsErr := filepath.Glob(filepath.Join(dir, "tail-call", "testdata", "*.json"))
	if err = errors.Join(err, tailsErr); err != nil {
		t.Fatal(err)
	}
	if files = append(files, tails...); len(tails) == 0 {
		t.Error("no tests of tail calls")
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	support, err := os.ReadFile(filepath.Join(dir, "testdata", "spectest.wasm"))
	if err != nil {
		t.Fatal(err)
	}
	total := specCount{refused: map[string]int{}}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		t.Run(name, func(t *testing.T) {
			if testing.Short() && strings.HasPrefix(name, "simd") && rng.IntN(6) > 0 {
				t.Skip("a sixth of the vector tests is enough here")
			}
			runSpec(t, file, support, rng, &total)
		})
	}
	t.Logf("%d modules rewritten, %d calls compared, %d moves; %d calls of modules refused: %v",
		total.modules, total.calls, total.moves, total.skipped, total.refused)
	if total.calls < 1000 && !testing.Short() {
		t.Errorf("only %d calls", total.calls)
	}
}

type specCount struct {
	modules, calls, moves, skipped int
	refused                        map[string]int
}

func runSpec(t *testing.T, file string, support []byte, rng *rand.Rand, total *specCount) {
	ctx := context.Background()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var script struct{ Commands []specCommand }
	if err := json.Unmarshal(text, &script); err != nil {
		t.Fatal(err)
	}
	rt := wazero.NewRuntimeWithConfig(ctx, Compiler.Config())
	defer rt.Close(ctx)
	spectest := func(ctx context.Context, rt wazero.Runtime) {
		if _, err := rt.InstantiateWithConfig(ctx, support, wazero.NewModuleConfig().WithName("spectest")); err != nil {
			t.Fatal(err)
		}
	}
	spectest(ctx, rt)
	var current *specModule
	named := map[string]*specModule{}
	for _, c := range script.Commands {
		switch c.Type {
		case "module":
			if current != nil && current.moved != nil {
				total.moves += current.moves
			}
			current = specInstance(t, ctx, rt, spectest, filepath.Join(filepath.Dir(file), c.Filename), rng, total)
			if c.Name != "" {
				named[c.Name] = current
			}
		case "assert_return", "assert_trap", "action", "assert_exhaustion":
			m := current
			if c.Action.Module != "" {
				m = named[c.Action.Module]
			}
			if c.Action.Type != "invoke" {
				continue
			}
			if m == nil {
				total.skipped++
				continue
			}
			if c.Type == "assert_exhaustion" {
				continue // how deep a stack may get is not for a module to say
			}
			var args []uint64
			ok := true
			for _, a := range c.Action.Args {
				u, fine := a.units()
				ok = ok && fine && (a.Type != "funcref" || u[0] == 0)
				args = append(args, u...)
			}
			if !ok {
				total.skipped++
				continue
			}
			want, wantErr := m.plain.ExportedFunction(c.Action.Field).Call(ctx, args...)
			got, gotErr := m.call(ctx, c.Action.Field, args, rng)
			total.calls++
			if Describe(gotErr) != Describe(wantErr) {
				t.Errorf("line %d: %s: error %v, plain %v", c.Line, c.Action.Field, gotErr, wantErr)
			}
			for _, e := range c.Expected {
				if e.Type == "funcref" && len(got) == 1 {
					// Which reference it is cannot be told; whether it is null can.
					got[0], want[0] = min(got[0], 1), min(want[0], 1)
				}
			}
			if gotErr == nil && !sameResults(got, want, c.Expected) {
				t.Errorf("line %d: %s: %x, plain %x", c.Line, c.Action.Field, got, want)
			}
		case "register":
			// Modules that import from others are refused.
		}
	}
	if current != nil {
		total.moves += current.moves
	}
}

func specInstance(t *testing.T, ctx context.Context, rt wazero.Runtime, spectest func(context.Context, wazero.Runtime), file string, rng *rand.Rand, total *specCount) *specModule {
	module, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	p, err := suspend.Rewrite(module, suspend.Options{Poll: suspend.Countdown, Foreign: true, Everywhere: true, Once: rng.IntN(2) == 0})
	if err != nil {
		var e *suspend.RefusedError
		if !errors.As(err, &e) || e.Feature == "malformed module" {
			t.Fatalf("%s: %v", filepath.Base(file), err)
		}
		total.refused[e.Feature]++
		return nil
	}
	plain, err := rt.InstantiateWithConfig(ctx, module, wazero.NewModuleConfig().WithName(""))
	if err != nil {
		total.refused["not instantiable alone"]++
		return nil
	}
	total.modules++
	h := NewHost(t, p, suspend.Countdown)
	h.Imports = spectest
	m := &specModule{plain: plain, host: h, engines: []Engine{Compiler, Interpreter}}
	if m.moved, err = h.Instance(ctx, Compiler); err != nil {
		t.Fatalf("%s: %v", filepath.Base(file), err)
	}
	if p.Info.Start != "" {
		if _, err := m.call(ctx, suspend.StartExport, nil, rng); err != nil {
			t.Fatalf("%s: start: %v", filepath.Base(file), err)
		}
	}
	return m
}

// call calls an export and stops it at every poll, up to a number of moves that
// one call is worth.
func (m *specModule) call(ctx context.Context, field string, args []uint64, rng *rand.Rand) ([]uint64, error) {
	move := func() {
		m.moves++
		m.moved = m.host.Move(ctx, m.moved, m.engines[m.moves%2])
	}
	if rng.IntN(50) == 0 {
		move()
	}
	n := int32(1 + rng.IntN(2))
	m.moved.Countdown(n)
	results, err := m.moved.Call(ctx, field, args...)
	for stops := 1; errors.Is(err, drive.ErrStopped); stops++ {
		move()
		if stops%20 == 0 {
			n *= 4
		}
		m.moved.Countdown(min(n, 1<<20))
		results, err = m.moved.Continue(ctx)
	}
	m.moved.Countdown(1<<31 - 1)
	return results, err
}
