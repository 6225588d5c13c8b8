package wasi

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
	"github.com/tetratelabs/wazero/sys"
)

// A Go program on a host that stays and on ones that move at different rates.
func TestGoProgram(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute under the race detector, and has one goroutine")
	}
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("the Go toolchain is needed to build the program: ", err)
	}
	binary := build(t, []string{"GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0", "GOFLAGS="},
		"testdata/goprogram", "go", "build", "-o")
	m := newMachine(t)
	program := m.compile(t, binary)
	want := "line ONE\nline TWO\nline THREE\nfiles 20\nlog \"entry 0\\nentry 1\\n\"\n"
	for _, every := range []int{0, 1, 7} {
		cfg := worker("program")
		host := newMover(t, cfg, every)
		host.feed = []string{"one\ntw", "o\n", "three"}
		host.interrupt = every > 0
		code := m.run(t, program, host)
		if out := host.output(); code != 0 || out[1] != want || out[2] != "" {
			t.Errorf("every %d calls: exit code %d, output %q, errors %q", every, code, out[1], out[2])
		}
		if every > 0 && (host.moves == 0 || host.cut == 0) {
			t.Errorf("%d moves, %d waits cut short", host.moves, host.cut)
		}
		t.Logf("every %d: %d calls, %d moves, %d waits", every, host.calls, host.moves, host.waits)
	}
}

// Programs in Rust, Zig, TinyGo and C that wazero tests its own WASI with, from
// its module: here they must do what they do there, moving behind every call.
func TestProgramsOfWazero(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/tetratelabs/wazero").Output()
	if err != nil {
		t.Skip("wazero's module is not at hand: ", err)
	}
	dir := filepath.Join(strings.TrimSpace(string(out)), "imports/wasi_snapshot_preview1/testdata")
	if _, err := os.Stat(dir); err != nil {
		t.Skip("wazero's module has no test programs: ", err)
	}
	m := newMachine(t)
	ctx := context.Background()
	theirs := wazero.NewRuntime(ctx)
	defer theirs.Close(ctx)
	wasi_snapshot_preview1.MustInstantiate(ctx, theirs)

	for file, commands := range map[string][][]string{
		"cargo-wasi/wasi.wasm": {{"ls", "."}, {"ls", "./given"}, {"ls", "given/text"}, {"ls", ".", "repeat"}, {"stat"}, {"other"}},
		"zig/wasi.wasm":        {{"ls", "."}, {"ls", "./given"}, {"ls", "given/text"}, {"ls", ".", "repeat"}, {"stat"}, {"preopen"}},
		"tinygo/wasi.wasm":     {{"ls", "."}, {"ls", "./given"}, {"stat"}}, // it cannot rewind a directory
		"zig-cc/wasi.wasm": {{"ls", "."}, {"ls", "./given"}, {"ls", "given/text"}, {"ls", ".", "repeat"}, {"stat"},
			{"poll"}, {"poll", "0", "10"}, {"sleepmillis", "3"}, {"open-rdonly"}, {"open-wronly"}},
		"print_args.wasm":            {{"a", "b c", ""}},
		"print_prestat_dirname.wasm": {{}},
		"exit_on_start.wasm":         {{}},
	} {
		binary, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Error(err)
			continue
		}
		program := m.compile(t, binary)
		reference, err := theirs.CompileModule(ctx, binary)
		if err != nil {
			t.Fatal(err)
		}
		for _, args := range commands {
			args = append([]string{"wasi"}, args...)
			t.Run(file+"/"+strings.Join(args[1:], " "), func(t *testing.T) {
				cfg := worker(args...)
				// One directory, as there.
				cfg.Dirs, cfg.Env = cfg.Dirs[:1], nil
				if err := cfg.Streams.Push([]byte("input\n")); err != nil {
					t.Fatal(err)
				}
				host := newMover(t, cfg, 1)
				host.interrupt = true
				code := m.run(t, program, host)
				got := host.output()

				var stdout, stderr bytes.Buffer
				config := wazero.NewModuleConfig().WithName("").WithArgs(args...).WithStdout(&stdout).WithStderr(&stderr).
					WithStdin(strings.NewReader("input\n")).WithSysNanosleep().WithSysNanotime().WithSysWalltime()
				disk := t.TempDir()
				if err := os.CopyFS(disk, cfg.Dirs[0].Source); err != nil {
					t.Fatal(err)
				}
				config = config.WithFSConfig(wazero.NewFSConfig().WithDirMount(disk, "/"))
				mod, err := theirs.InstantiateModule(ctx, reference, config)
				if mod != nil {
					mod.Close(ctx)
				}
				var exit *sys.ExitError
				want := uint32(0)
				if errors.As(err, &exit) {
					want = exit.ExitCode()
				} else if err != nil {
					t.Fatal(err)
				}
				// There streams are pipes, here terminals; directories have no order there.
				stat := args[len(args)-1] == "stat"
				if !stat && (sorted(got[1]) != sorted(stdout.String()) || sorted(got[2]) != sorted(stderr.String())) || code != want {
					t.Errorf("exit code %d, output %q, errors %q\nwant %d, %q, %q", code, got[1], got[2], want, stdout.String(), stderr.String())
				}
				if stat && strings.Count(got[1], "true") != 3 {
					t.Errorf("output %q", got[1])
				}
			})
		}
	}
}

// sorted orders the lines of a text.
func sorted(s string) string {
	lines := strings.Split(s, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
