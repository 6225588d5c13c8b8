//go:build unix

package runner

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// builtGuest is the module of testdata/goguest, built once for the process.
var builtGuest = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "meshnode-goguest-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "guest.wasm")
	cmd := exec.Command("go", "build", "-buildmode=c-shared", "-o", path, "./testdata/goguest")
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "GOFLAGS=", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, out)
	}
	return os.ReadFile(path)
})

// goGuest returns a configuration that runs the guest in Go, with a cache of its
// own for as long as the test.
func goGuest(tb testing.TB) Config {
	tb.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		tb.Skip("the guest is built with the Go toolchain:", err)
	}
	module, err := builtGuest()
	if err != nil {
		tb.Fatal(err)
	}
	return Config{ModulePath: moduleFile(tb, module), CacheDir: tb.TempDir(), MemoryLimit: 64 << 20}
}

func TestGoGuest(t *testing.T) {
	ctx := context.Background()
	cfg := goGuest(t)
	var l logs
	cfg.OnLog = l.add
	cfg.Args = []string{"guest", "-v"}
	cfg.Env = []string{"A=1"}
	a := live(t, cfg)
	if !a.Compiled() {
		t.Log("interpreted: this takes long")
	}
	if got, want := string(call(t, a, 7, "").Reply), "[guest -v] [A=1]"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	call(t, a, 1, "one")
	call(t, a, 2, "")
	uptime := func(r *Runner) time.Duration {
		return time.Duration(binary.LittleEndian.Uint64(call(t, r, 6, "").Reply))
	}
	before := uptime(a)

	b, s := move(t, a, cfg)
	if len(s.Globals) == 0 || s.Clock == 0 {
		t.Errorf("state %+v", s)
	}
	for _, r := range []*Runner{a, b} {
		if got, want := string(call(t, r, 1, "two").Reply), "all=2 one=1 two=1 "; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if x, y := call(t, a, 2, "").Reply, call(t, b, 2, "").Reply; !bytes.Equal(x, y) {
		t.Errorf("physics: %x unmoved, %x moved", x, y)
	}
	if after := uptime(b); after < before {
		t.Errorf("uptime %v before the move, %v after", before, after)
	}
	var said []string
	for _, line := range l.all() {
		said = append(said, line.Text)
	}
	if got, want := strings.Join(said, ","), "counted one,counted two,counted two"; got != want {
		t.Errorf("log %q, want %q", got, want)
	}

	_, err := a.Call(ctx, Event{ID: 3, Payload: []byte("now")})
	if e := exitOf(t, a, err); e.Kind != Trapped || !strings.Contains(e.Stack, ".main.event") ||
		len(e.Stderr) == 0 || e.Stderr[0] != "panic: as asked: now" || !strings.Contains(e.Error(), "panic: as asked: now") {
		t.Errorf("panic: %v\n%s\n%q", e, e.Stack, e.Stderr)
	}
	_, err = b.Call(ctx, Event{ID: 5})
	if e := exitOf(t, b, err); e.Kind != MemoryLimit {
		t.Errorf("out of memory: %v", e)
	}
}
