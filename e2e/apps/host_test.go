// Package apps tests the example apps as they are: built by the Go toolchain
// (and clang), and run by wazero with a small host beside them.
package apps

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"

	"meshnode/node/suspend"
)

const pageSize = 4 << 10

var built = struct {
	dir   string
	cache wazero.CompilationCache // in dir: one in memory forgets closed modules

	mu      sync.Mutex
	modules map[string][]byte
}{modules: map[string][]byte{}}

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "meshnode-apps-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	built.dir = dir
	if built.cache, err = wazero.NewCompilationCacheWithDir(filepath.Join(dir, "cache")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	built.cache.Close(context.Background())
	os.RemoveAll(dir)
	os.Exit(code)
}

// module returns an app's bytes, built once. The app's name is that of its
// folder.
func module(tb testing.TB, app string) []byte {
	tb.Helper()
	if raceDetector {
		tb.Skip("nothing here runs concurrently, and under the race detector compiling the apps takes minutes")
	}
	built.mu.Lock()
	defer built.mu.Unlock()
	if b := built.modules[app]; b != nil {
		return b
	}
	path := filepath.Join(built.dir, app+".wasm")
	var cmd *exec.Cmd
	if app == "counter-c" {
		if why := missingForC(); why != "" {
			tb.Skip(why)
		}
		cmd = exec.Command("clang", "--target=wasm32-wasi", "-O2", "-mexec-model=reactor",
			"-Wall", "-Wextra", "-Werror", "-I", "../../node/guest", "-o", path, "counter-c/counter.c")
	} else {
		if _, err := exec.LookPath("go"); err != nil {
			tb.Skip("the Go toolchain is needed to build the apps: ", err)
		}
		cmd = exec.Command("go", "build", "-buildmode=c-shared", "-o", path, "./"+app)
		cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0")
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	built.modules[app] = b
	return b
}

// missingForC says what of the C toolchain for WASI is not here, if anything.
func missingForC() string {
	for _, tool := range []string{"clang", "wasm-ld"} {
		if _, err := exec.LookPath(tool); err != nil {
			return "no " + tool + " (Debian: clang, lld)"
		}
	}
	probe := exec.Command("clang", "--target=wasm32-wasi", "-mexec-model=reactor", "-x", "c", "-o", os.DevNull, "-")
	probe.Stdin = strings.NewReader("#include <stdlib.h>\n")
	if out, err := probe.CombinedOutput(); err != nil {
		return "clang cannot build for WASI (Debian: wasi-libc, libclang-rt-dev-wasm32): " + string(out)
	}
	return ""
}

// A send and a timer are effects of an event, as the host sees them.
type (
	send  struct{ To, Payload string }
	timer struct {
		ID           uint64
		After, Every int64
		Cancel       bool
	}
	logLine struct {
		Level int32
		Text  string
	}
)

// A worker is an app that runs under a host made for tests: it checks what the
// app passes, and records what it does. Its clock and its randomness are the
// same in every run.
type worker struct {
	tb     testing.TB
	mod    api.Module
	event  api.Function
	stdout bytes.Buffer
	stderr bytes.Buffer

	payload []byte
	kind    int32
	id      int64
	clock   int64
	random  *rand.ChaCha8

	// What the last event did.
	reply   []byte
	replied bool
	sends   []send
	timers  []timer
	logs    []logLine
}

// start runs an app, limited to limit MiB. interpreter selects wazero's other
// engine.
func start(tb testing.TB, app string, limit uint32, interpreter bool) *worker {
	tb.Helper()
	binary := module(tb, app)
	ctx := tb.Context()
	config := wazero.NewRuntimeConfig()
	if interpreter {
		config = wazero.NewRuntimeConfigInterpreter()
	}
	r := wazero.NewRuntimeWithConfig(ctx, config.WithMemoryLimitPages(limit*16).WithCompilationCache(built.cache))
	tb.Cleanup(func() { r.Close(context.Background()) })

	w := &worker{tb: tb, random: rand.NewChaCha8([32]byte{1})}
	if _, err := wasi_snapshot_preview1.Instantiate(ctx, r); err != nil {
		tb.Fatal(err)
	}
	if _, err := w.host(r.NewHostModuleBuilder("meshnode_v1")).Instantiate(ctx); err != nil {
		tb.Fatal(err)
	}
	mod, err := r.InstantiateWithConfig(ctx, binary, wazero.NewModuleConfig().
		WithStartFunctions("_initialize").WithStdout(&w.stdout).WithStderr(&w.stderr))
	if err != nil {
		tb.Fatalf("%s: %v\n%s", app, err, w.stderr.String())
	}
	w.mod = mod
	if w.event = mod.ExportedFunction("meshnode_event"); w.event == nil {
		tb.Fatalf("%s does not export meshnode_event", app)
	}
	return w
}

const (
	ok = iota
	tooLarge
	notInCall
	tooMany
	badPointer
	badArgument
)

const maxPayload = 1 << 20

func (w *worker) host(b wazero.HostModuleBuilder) wazero.HostModuleBuilder {
	read := func(p, n uint32) ([]byte, bool) {
		view, ok := w.mod.Memory().Read(p, n)
		return bytes.Clone(view), ok
	}
	armed := map[uint64]bool{}
	for name, f := range map[string]any{
		"event_read": func(_ context.Context, p, n, offset uint32) uint32 {
			if offset > uint32(len(w.payload)) {
				return 0
			}
			part := w.payload[offset:min(uint64(offset)+uint64(n), uint64(len(w.payload)))]
			if !w.mod.Memory().Write(p, part) {
				w.tb.Errorf("event_read to %d+%d, outside the memory", p, n)
			}
			return uint32(len(part))
		},
		"reply": func(_ context.Context, p, n uint32) uint32 {
			switch b, inside := read(p, n); {
			case n > maxPayload:
				return tooLarge
			case w.kind != 0:
				return notInCall
			case !inside:
				return badPointer
			default:
				w.reply, w.replied = b, true
				return ok
			}
		},
		"send": func(_ context.Context, np, nn, p, n uint32) uint32 {
			name, inside := read(np, nn)
			payload, inside2 := read(p, n)
			switch {
			case n > maxPayload:
				return tooLarge
			case len(w.sends) == 64:
				return tooMany
			case !inside || !inside2:
				return badPointer
			case len(name) == 0 || len(name) > 63:
				return badArgument
			}
			w.sends = append(w.sends, send{string(name), string(payload)})
			return ok
		},
		"timer_set": func(_ context.Context, id uint64, after, every int64) uint32 {
			if after < 0 || every < 0 {
				return badArgument
			}
			if !armed[id] && len(armed) == 1024 {
				return tooMany
			}
			armed[id] = true
			w.timers = append(w.timers, timer{ID: id, After: after, Every: every})
			return ok
		},
		"timer_cancel": func(_ context.Context, id uint64) uint32 {
			delete(armed, id)
			w.timers = append(w.timers, timer{ID: id, Cancel: true})
			return ok
		},
		"log": func(_ context.Context, level int32, p, n uint32) {
			text, inside := read(p, n)
			if !inside {
				w.tb.Errorf("log from %d+%d, outside the memory", p, n)
			}
			w.logs = append(w.logs, logLine{level, string(text)})
		},
		"clock": func(context.Context) int64 {
			w.clock += 1000
			return w.clock
		},
		"random": func(_ context.Context, p, n uint32) uint32 {
			b := make([]byte, n)
			w.random.Read(b)
			if !w.mod.Memory().Write(p, b) {
				return badPointer
			}
			return ok
		},
	} {
		b = b.NewFunctionBuilder().WithFunc(f).Export(name)
	}
	return b
}

// deliver hands the app an event and returns its status, or the trap or exit
// that ended it.
func (w *worker) deliver(kind int32, id int64, payload []byte) (int32, error) {
	w.kind, w.id, w.payload = kind, id, payload
	w.reply, w.replied, w.sends, w.timers, w.logs = nil, false, nil, nil, nil
	res, err := w.event.Call(w.tb.Context(), api.EncodeI32(kind), api.EncodeI64(id), api.EncodeI32(int32(len(payload))))
	if err != nil {
		return 0, err
	}
	return api.DecodeI32(res[0]), nil
}

// call sends a call and wants it to succeed.
func (w *worker) call(payload string) string {
	w.tb.Helper()
	if status := w.try(payload); status != 0 {
		w.tb.Fatalf("%.60q: code %d: %s", payload, status, w.reply)
	}
	return string(w.reply)
}

// try sends a call and wants an answer of some kind.
func (w *worker) try(payload string) int32 {
	w.tb.Helper()
	status, err := w.deliver(0, 7, []byte(payload))
	if err != nil {
		w.tb.Fatalf("%.60q: %v\n%s", payload, err, w.stderr.String())
	}
	if !w.replied {
		w.tb.Fatalf("%.60q was not answered", payload)
	}
	return status
}

// memory copies the app's memory.
func (w *worker) memory() []byte {
	m := w.mod.Memory()
	view, _ := m.Read(0, m.Size())
	return bytes.Clone(view)
}

// dirtied counts the pages that differ from an earlier copy of the memory,
// growth included.
func (w *worker) dirtied(before []byte) int {
	m := w.mod.Memory()
	now, _ := m.Read(0, m.Size())
	n := 0
	for i := 0; i < len(now); i += pageSize {
		if i >= len(before) || !bytes.Equal(now[i:i+pageSize], before[i:i+pageSize]) {
			n++
		}
	}
	return n
}

// TestModules checks that every app is a worker that can move.
func TestModules(t *testing.T) {
	for _, app := range []string{"counter", "counter-c", "probe", "physics", "kvstore"} {
		t.Run(app, func(t *testing.T) {
			b := module(t, app)
			p, err := suspend.Prepare(b)
			var refused *suspend.RefusedError
			if errors.As(err, &refused) {
				t.Fatalf("cannot move: %v", refused)
			} else if err != nil {
				t.Fatal(err)
			}
			if err := p.Info.CanBeEventWorker(); err != nil {
				t.Error(err)
			}
			if !p.Info.Initialize {
				t.Error("no _initialize")
			}
			w := start(t, app, 512, false)
			m := w.memory()
			zero := 0
			for i := 0; i < len(m); i += pageSize {
				if bytes.Equal(m[i:i+pageSize], make([]byte, pageSize)) {
					zero++
				}
			}
			t.Logf("module %d bytes, memory after _initialize %d KiB, of which %d KiB are not zero",
				len(b), len(m)>>10, (len(m)/pageSize-zero)*pageSize>>10)
		})
	}
}
