package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"meshnode/e2e/netlab"
)

// programs are the commands of scripts that are processes.
var programs = map[string]func(){
	"at":   atMain,
	"load": loadMain,
	"udp":  udpMain,
}

// What TestMain built, as environment variables: the directory with bin and
// apps, and the reason if there is none.
const (
	builtVar  = "E2E_BUILT"
	failedVar = "E2E_BUILD_FAILED"
)

func TestMain(m *testing.M) {
	if programs[filepath.Base(os.Args[0])] == nil {
		// What a script has in the background ends with an interrupt. A shell that
		// has these tests in its own background makes them ignore those, and all
		// that they start as well: the scripts would wait for ever.
		if signal.Ignored(os.Interrupt) {
			signal.Notify(make(chan os.Signal, 1), os.Interrupt)
		}
		// The building needs the network that there is outside: the go
		// command may have to fetch modules.
		netlab.Enter(func() {
			dir, err := build()
			os.Setenv(builtVar, dir)
			if err != nil {
				os.Setenv(failedVar, err.Error())
			}
		})
	}
	testscript.Main(tidy{m}, programs)
}

// tidy runs the tests and then removes what was built.
type tidy struct{ m *testing.M }

func (t tidy) Run() int {
	defer os.RemoveAll(os.Getenv(builtVar))
	return t.m.Run()
}

// built is the directory that holds bin/meshnode, apps/*.wasm, and cache for
// what the nodes make of those.
func built(tb testing.TB) string {
	tb.Helper()
	if reason := os.Getenv(failedVar); reason != "" {
		tb.Fatal(reason)
	}
	if err := readSources(); err != nil {
		tb.Fatal(err)
	}
	return os.Getenv(builtVar)
}

// readSources lists every directory that the binaries were built from, so that
// the go command, which notes the files a test opens, knows a result in its
// cache to be stale when one of them has changed.
var readSources = sync.OnceValue(func() error {
	return filepath.WalkDir("..", func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() && len(d.Name()) > 2 && d.Name()[0] == '.' {
			return filepath.SkipDir
		}
		return err
	})
})

// build makes meshnode and the example apps.
func build() (string, error) {
	dir, err := os.MkdirTemp("", "meshnode-e2e")
	if err != nil {
		return "", err
	}
	bin, apps := filepath.Join(dir, "bin"), filepath.Join(dir, "apps")
	for _, d := range []string{bin, apps, filepath.Join(dir, "cache")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return dir, err
		}
	}
	if given := os.Getenv("MESHNODE_BIN"); given != "" {
		path, err := filepath.Abs(given)
		if err != nil {
			return dir, err
		}
		if err := os.Symlink(path, filepath.Join(bin, "meshnode")); err != nil {
			return dir, err
		}
	} else {
		args := []string{"build", "-o", bin}
		if os.Getenv("E2E_RACE") == "1" {
			args = append(args, "-race")
		}
		if _, err := goTool(nil, append(args, "meshnode/cmd/meshnode")...); err != nil {
			return dir, err
		}
	}

	wasip1 := []string{"GOOS=wasip1", "GOARCH=wasm"}
	list, err := goTool(wasip1, "list", "-f", `{{if eq .Name "main"}}{{.ImportPath}}{{end}}`, "meshnode/e2e/apps/...")
	if err != nil {
		return dir, err
	}
	for _, app := range strings.Fields(list) {
		wasm := filepath.Join(apps, filepath.Base(app)+".wasm")
		mode := "-buildmode=c-shared"
		if strings.Contains(app, "/suite/") {
			mode = "-buildmode=exe" // ordinary programs
		}
		if _, err := goTool(wasip1, "build", mode, "-o", wasm, app); err != nil {
			return dir, err
		}
	}
	if haveClang() {
		for name, args := range map[string][]string{
			"counter-c": {"-mexec-model=reactor", "-I", "../node/guest", "apps/counter-c/counter.c"},
			"sha256":    {"apps/suite/sha256/sha256.c"},
			"until":     {"apps/suite/until/until.c"},
			"waiter":    {"apps/suite/waiter/waiter.c"},
			"files":     {"apps/suite/files/files.c"},
			"notes":     {"apps/suite/notes/notes.c"},
		} {
			cmd := exec.Command("clang", append([]string{"--target=wasm32-wasi", "-O2", "-o", filepath.Join(apps, name+".wasm")}, args...)...)
			if out, err := cmd.CombinedOutput(); err != nil {
				return dir, fmt.Errorf("%s: %w\n%s", cmd, err, out)
			}
		}
	}
	return dir, nil
}

func goTool(env []string, args ...string) (stdout string, err error) {
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), env...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", strings.Join(env, " "), cmd, err, stderr.String())
	}
	return string(out), nil
}

// haveClang reports whether clang makes WebAssembly and finds a libc for WASI.
var haveClang = sync.OnceValue(func() bool {
	cmd := exec.Command("clang", "--target=wasm32-wasi", "-mexec-model=reactor", "-x", "c", "-o", os.DevNull, "-")
	cmd.Stdin = strings.NewReader("#include <stdlib.h>\nint f(const char *s) { return atoi(s); }\n")
	return cmd.Run() == nil
})
