package wasi

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
	"github.com/tetratelabs/wazero/sys"
)

// build returns a WebAssembly file that a command writes; the command's last
// argument is where.
func build(t testing.TB, env []string, dir string, command ...string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "program.wasm")
	cmd := exec.Command(command[0], append(command[1:], out)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, text)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// withoutC says why programs in C cannot be built here, or nothing.
func withoutC() string {
	for _, tool := range []string{"clang", "wasm-ld"} {
		if _, err := exec.LookPath(tool); err != nil {
			return "no " + tool + " (Debian: clang, lld)"
		}
	}
	probe := exec.Command("clang", "--target=wasm32-wasi", "-x", "c", "-o", os.DevNull, "-")
	probe.Stdin = strings.NewReader("#include <stdio.h>\nint main(void) { return 0; }\n")
	if out, err := probe.CombinedOutput(); err != nil {
		return "clang cannot build for WASI (Debian: wasi-libc, libclang-rt-dev-wasm32): " + string(out)
	}
	return ""
}

// worker is the configuration of a command worker with some files.
func worker(args ...string) Config {
	then := time.Unix(1000, 0)
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s), ModTime: then} }
	return Config{
		Args: args,
		Env:  []string{"COLOUR=blue and green", "EMPTY="},
		Dirs: []Dir{
			{Name: "/", Source: fstest.MapFS{
				"given/text":       file("hello"),
				"given/two/file-0": file(""),
				"given/two/file-1": file("one"),
				"given/link":       {Mode: os.ModeSymlink, Data: []byte("two/file-1")},
			}},
			{Name: "/ro", ReadOnly: true, Source: fstest.MapFS{
				"text": file("only to read"), "sub": {Mode: os.ModeDir},
			}},
		},
		Streams: NewStreams(),
	}
}

// cases returns the program that has all cases in C.
func cases(t testing.TB) []byte {
	t.Helper()
	if why := withoutC(); why != "" {
		t.Skip(why)
	}
	sources, err := filepath.Glob("testdata/cases/*.c")
	if err != nil || len(sources) == 0 {
		t.Fatal("no sources", err)
	}
	for i := range sources {
		sources[i] = filepath.Base(sources[i])
	}
	command := append([]string{"clang", "--target=wasm32-wasi", "-O1", "-Wall"}, sources...)
	return build(t, nil, "testdata/cases", append(command, "-o")...)
}

// The cases in C, each on a host of its own: one that stays, and one that moves
// behind every call and in every wait.
func TestCases(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute under the race detector, and has one goroutine")
	}
	m := newMachine(t)
	program := m.compile(t, cases(t))
	list := newMover(t, worker("cases"), 0)
	if code := m.run(t, program, list); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	names := strings.Fields(list.output()[1])
	if len(names) < 50 {
		t.Fatalf("cases %q", names)
	}
	for _, every := range []int{0, 1} {
		for _, name := range names {
			t.Run(fmt.Sprintf("%s/every=%d", name, every), func(t *testing.T) {
				cfg := worker("cases", name)
				if name == "poll_oneoff_stdio" {
					if err := cfg.Streams.Push([]byte("ready")); err != nil {
						t.Fatal(err)
					}
				}
				every := every
				if name == "fd_readdir_lots" || name == "files" {
					every *= 37 // thousands of calls, a thousand files or blocks
				}
				host := newMover(t, cfg, every)
				host.interrupt = every > 0
				host.feed = []string{"first line\n", "second", "", " half\n"}
				code := m.run(t, program, host)
				out := host.output()
				if code != 0 || out[2] != "" {
					t.Fatalf("exit code %d after %d calls and %d moves\n%s", code, host.calls, host.moves, out[2])
				}
				want := ""
				if name == "lines" {
					for i := range 1000 {
						want += fmt.Sprintf("line %d\n", i)
					}
				}
				if out[1] != want {
					t.Errorf("output %q", out[1])
				}
				if name == "lines" && (len(host.feed) > 0 || every > 0 && host.cut == 0) {
					t.Errorf("%q was not read, %d waits cut short", host.feed, host.cut)
				}
			})
		}
	}
}

// BenchmarkFiles runs a program that writes, reads back and removes a megabyte
// in small pieces, here and with wazero's own functions on the node's disk, in
// turn.
func BenchmarkFiles(b *testing.B) {
	binary := cases(b)
	m := newMachine(b)
	program := m.compile(b, binary)
	ctx := context.Background()
	theirs := wazero.NewRuntime(ctx)
	defer theirs.Close(ctx)
	wasi_snapshot_preview1.MustInstantiate(ctx, theirs)
	reference, err := theirs.CompileModule(ctx, binary)
	if err != nil {
		b.Fatal(err)
	}
	here, there := time.Hour, time.Hour
	for b.Loop() {
		host := newMover(b, worker("cases", "files"), 0)
		start := time.Now()
		if code := m.run(b, program, host); code != 0 {
			b.Fatalf("exit code %d: %v", code, host.output())
		}
		here = min(here, time.Since(start))

		config := wazero.NewModuleConfig().WithName("").WithArgs("cases", "files").WithStderr(os.Stderr).
			WithFSConfig(wazero.NewFSConfig().WithDirMount(b.TempDir(), "/"))
		start = time.Now()
		mod, err := theirs.InstantiateModule(ctx, reference, config)
		if mod != nil {
			mod.Close(ctx)
		}
		if exit := (*sys.ExitError)(nil); err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 0) {
			b.Fatal(err)
		}
		there = min(there, time.Since(start))
	}
	b.ReportMetric(float64(here.Microseconds())/1000, "ms-min")
	b.ReportMetric(float64(there.Microseconds())/1000, "ms-min-wazero")
	b.ReportMetric(float64(here)/float64(there), "ratio")
}
