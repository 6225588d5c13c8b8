//go:build unix

package runner

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
)

// plainArg makes the test binary run a module as a program that embeds wazero
// would: see plainMain.
const plainArg = "plain-wazero"

func init() { otherMains[plainArg] = plainMain }

// physicsInput returns event i of a run whose cubes never rest: most are steps
// of the simulation.
func physicsInput(i int) string {
	switch {
	case i == 0:
		return "init 512 7"
	case i%40 == 30:
		return fmt.Sprintf("explode %d 0 %d 5 10", i%7-3, i%5-2)
	case i%10 == 5:
		return fmt.Sprintf("push %d 0 3 1", i*7%512)
	}
	return "tick"
}

// plainMain runs the module os.Args[2] under wazero as it comes: its own memory,
// its own WASI, no sandbox and Go's own settings. For each line on standard
// input it handles so many events of physicsInput and answers with the last
// reply.
func plainMain() int {
	if err := servePlain(os.Args[2], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func servePlain(path string, in io.Reader, out io.Writer) error {
	ctx := context.Background()
	module, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	rt := wazero.NewRuntime(ctx)
	defer rt.Close(ctx)
	if _, err := wasi_snapshot_preview1.Instantiate(ctx, rt); err != nil {
		return err
	}
	var event string
	var reply []byte
	host := rt.NewHostModuleBuilder("meshnode_v1")
	export := func(name string, f any) { host.NewFunctionBuilder().WithFunc(f).Export(name) }
	export("event_read", func(_ context.Context, m api.Module, p, n, offset uint32) uint32 {
		m.Memory().WriteString(p, event[offset:][:n])
		return n
	})
	export("reply", func(_ context.Context, m api.Module, p, n uint32) uint32 {
		view, _ := m.Memory().Read(p, n)
		reply = append(reply[:0], view...)
		return resOK
	})
	export("log", func(context.Context, uint32, uint32, uint32) {})
	export("send", func(context.Context, uint32, uint32, uint32, uint32) uint32 { return resBadArg })
	export("timer_set", func(context.Context, uint64, uint64, uint64) uint32 { return resBadArg })
	export("timer_cancel", func(context.Context, uint64) uint32 { return resBadArg })
	export("random", func(context.Context, uint32, uint32) uint32 { return resBadArg })
	export("clock", func(context.Context) uint64 { return 0 })
	if _, err := host.Instantiate(ctx); err != nil {
		return err
	}
	m, err := rt.InstantiateWithConfig(ctx, module, wazero.NewModuleConfig().WithStartFunctions("_initialize"))
	if err != nil {
		return err
	}
	handler := m.ExportedFunction("meshnode_event")
	next := 0
	for lines := bufio.NewScanner(in); lines.Scan(); {
		var count int
		if _, err := fmt.Sscan(lines.Text(), &count); err != nil {
			return err
		}
		for range count {
			event = physicsInput(next)
			next++
			status, err := handler.Call(ctx, Call, uint64(next), uint64(len(event)))
			if err != nil || status[0] != 0 {
				return fmt.Errorf("event %d: status %d, %s, %w", next, status, reply, err)
			}
		}
		if _, err := fmt.Fprintf(out, "%s\n", reply); err != nil {
			return err
		}
	}
	return nil
}

// A plainProcess runs a module in a process of its own, under wazero alone.
type plainProcess struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func startPlain(b *testing.B, path string) *plainProcess {
	b.Helper()
	exe, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	p := &plainProcess{cmd: exec.Command(exe, plainArg, path)}
	p.cmd.Stderr = os.Stderr
	in, err := p.cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	p.in, p.out = in, bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		p.in.Close()
		if err := p.cmd.Wait(); err != nil {
			b.Error(err)
		}
	})
	return p
}

// run handles so many events and returns the last reply.
func (p *plainProcess) run(count int) (string, error) {
	if _, err := fmt.Fprintln(p.in, count); err != nil {
		return "", err
	}
	line, err := p.out.ReadString('\n')
	return strings.TrimSuffix(line, "\n"), err
}

// physicsModule builds the example app.
func physicsModule(b *testing.B) string {
	b.Helper()
	path := filepath.Join(b.TempDir(), "physics.wasm")
	cmd := exec.Command("go", "build", "-buildmode=c-shared", "-o", path, "meshnode/e2e/apps/physics")
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			b.Skip("the app is built with the Go toolchain: ", err)
		}
		b.Fatalf("%v\n%s", err, out)
	}
	return path
}

// BenchmarkPhysics compares the physics app in a runner with the same module
// and the same inputs under bare wazero, in a process of its own. The runner's
// events come one by one from this process, as a node sends them; the bare ones
// are made where they are handled, as a program that embeds wazero would. The two
// take turns of a few events, so that what else the machine does falls on both;
// a ratio is of two neighbouring turns.
func BenchmarkPhysics(b *testing.B) {
	if !CompilerSupported() {
		b.Skip("wazero does not compile for this machine")
	}
	const (
		turn  = 20 // events
		warm  = 200
		limit = 64 << 20
	)
	ctx := context.Background()
	path := physicsModule(b)
	plain := startPlain(b, path)
	ours := live(b, Config{ModulePath: path, CacheDir: b.TempDir(), MemoryLimit: limit})
	pid := ours.Region().PID
	next := 0
	runOurs := func(count int) (string, error) {
		var reply string
		for range count {
			e, err := ours.Call(ctx, Event{Kind: Call, ID: uint64(next + 1), Payload: []byte(physicsInput(next))})
			if err != nil || e.Status != 0 {
				return "", fmt.Errorf("event %d: status %d, %s, %w", next, e.Status, e.Reply, err)
			}
			next++
			reply = string(e.Reply)
		}
		return reply, nil
	}
	type cost struct{ cpu, wall float64 }
	measure := func(pid int, run func(int) (string, error), count int) (string, cost) {
		cpu, wall := spent(pid), time.Now()
		reply, err := run(count)
		if err != nil {
			b.Fatal(err)
		}
		took := time.Since(wall)
		return reply, cost{(spent(pid) - cpu).Seconds(), took.Seconds()}
	}
	measure(pid, runOurs, warm)
	measure(plain.cmd.Process.Pid, plain.run, warm)
	var cpu, wall, plainCPU, oursCPU []float64
	for turns := 0; b.Loop(); turns++ {
		var o, p cost
		var said, want string
		if turns%2 == 0 {
			said, o = measure(pid, runOurs, turn)
			want, p = measure(plain.cmd.Process.Pid, plain.run, turn)
		} else {
			want, p = measure(plain.cmd.Process.Pid, plain.run, turn)
			said, o = measure(pid, runOurs, turn)
		}
		if said != want { // the tick that the world has come to
			b.Fatalf("the runner says %q, bare wazero %q", said, want)
		}
		cpu, wall = append(cpu, o.cpu/p.cpu), append(wall, o.wall/p.wall)
		oursCPU, plainCPU = append(oursCPU, o.cpu), append(plainCPU, p.cpu)
	}
	slices.Sort(cpu)
	slices.Sort(wall)
	slices.Sort(oursCPU)
	slices.Sort(plainCPU)
	at := func(sorted []float64, percent int) float64 { return sorted[(len(sorted)-1)*percent/100] }
	b.ReportMetric(at(cpu, 50), "cpu-runner/bare")
	b.ReportMetric(at(cpu, 25), "cpu-p25")
	b.ReportMetric(at(cpu, 75), "cpu-p75")
	b.ReportMetric(at(oursCPU, 10)/at(plainCPU, 10), "cpu-of-p10s")
	b.ReportMetric(at(wall, 50), "wall-runner/bare")
	b.ReportMetric(at(wall, 25), "wall-p25")
	b.ReportMetric(at(wall, 75), "wall-p75")
	b.ReportMetric(at(plainCPU, 50)*1000/turn, "ms-bare/event")
}
