//go:build linux

// Package nodehost tests that a command worker continues under another runtime:
// checkpoints that meshnode writes go on under V8, in Node.js, and come back. The
// host, in JavaScript without any package, is host.mjs.
package nodehost

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"meshnode/node/suspend"
)

// patience bounds whatever is waited for; a machine that is busy takes its time.
const patience = 5 * time.Minute

func tool(t *testing.T, name, why string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s: %v", why, err)
	}
}

// run runs a command and returns what it wrote.
func run(t *testing.T, name string, args ...string) (stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var out, diag bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diag
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(cmd.Args, " "), err, out.String(), diag.String())
	}
	return out.String(), diag.String()
}

// A daemon is a node of a mesh of its own, on the loopback interface.
type daemon struct {
	t        *testing.T
	bin, dir string
}

func start(t *testing.T) daemon {
	t.Helper()
	dir := t.TempDir()
	d := daemon{t, filepath.Join(dir, "meshnode"), filepath.Join(dir, "state")}
	run(t, "go", "build", "-o", d.bin, "meshnode/cmd/meshnode")
	cmd := exec.Command(d.bin, "up", "--state-dir", d.dir, "--listen", "127.0.0.1:0", "--name", "home")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	gone := make(chan error, 1)
	go func() { gone <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		select {
		case <-gone:
		case <-time.After(30 * time.Second):
			_ = cmd.Process.Kill()
			<-gone
		}
		if t.Failed() {
			t.Log(log.String())
		}
	})
	d.until(".", "status")
	return d
}

// meshnode runs a command at the node.
func (d daemon) meshnode(args ...string) string {
	d.t.Helper()
	out, _ := run(d.t, d.bin, append([]string{"--state-dir", d.dir}, args...)...)
	return out
}

// until runs a command at the node until its output matches.
func (d daemon) until(want string, args ...string) string {
	d.t.Helper()
	re := regexp.MustCompile("(?m)" + want)
	var out []byte
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		out, _ = exec.Command(d.bin, append([]string{"--state-dir", d.dir}, args...)...).Output()
		if re.Match(out) {
			return string(out)
		}
	}
	d.t.Fatalf("%v does not say %s:\n%s", args, want, out)
	return ""
}

// said is what a worker has written to its standard output.
func (d daemon) said(worker string) string {
	d.t.Helper()
	var b strings.Builder
	dec := json.NewDecoder(strings.NewReader(d.meshnode("worker", "logs", worker, "-o", "json")))
	for {
		var line struct{ Source, Text string }
		if err := dec.Decode(&line); errors.Is(err, io.EOF) {
			return b.String()
		} else if err != nil {
			d.t.Fatal(err)
		}
		if line.Source == "stdout" {
			b.WriteString(line.Text + "\n")
		}
	}
}

// A host is the program's module as host.mjs takes it.
type host struct {
	t                           *testing.T
	plain, rewritten, described string
}

func newHost(t *testing.T, source string, flags ...string) host {
	t.Helper()
	dir := t.TempDir()
	h := host{t, filepath.Join(dir, "plain.wasm"), filepath.Join(dir, "rewritten.wasm"), filepath.Join(dir, "program.json")}
	run(t, "clang", append(flags, "--target=wasm32-wasi", "-O2", "-o", h.plain, source)...)
	plain, err := os.ReadFile(h.plain)
	if err != nil {
		t.Fatal(err)
	}
	p, err := suspend.Rewrite(plain, suspend.Options{Poll: suspend.Countdown})
	if err != nil {
		t.Fatal(err)
	}
	described, err := json.Marshal(p.Describe())
	if err != nil {
		t.Fatal(err)
	}
	for path, b := range map[string][]byte{h.rewritten: p.Module, h.described: described} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// run continues a checkpoint under V8.
func (h host) run(checkpoint string, options ...string) (stdout, how, digest string) {
	h.t.Helper()
	stdout, stderr := run(h.t, "node", append([]string{"host.mjs", h.rewritten, h.described, checkpoint}, options...)...)
	m := regexp.MustCompile(`(.*) memory ([0-9a-f]{64})\n$`).FindStringSubmatch(stderr)
	if m == nil {
		h.t.Fatalf("the host says %q", stderr)
	}
	return stdout, m[1], m[2]
}

// digest is the SHA-256 of a checkpoint's memory, which the host knows that is
// not to run the program at all.
func (h host) digest(checkpoint string) string {
	h.t.Helper()
	_, how, digest := h.run(checkpoint, "-polls", "0")
	if how == "exit 0" {
		h.t.Fatalf("%s: the program ended", checkpoint)
	}
	return digest
}

func setUp(t *testing.T) {
	t.Helper()
	tool(t, "node", "checkpoints continue under V8 in Node.js")
	tool(t, "clang", "the programs are built with clang")
	if _, err := os.Stat("/usr/include/wasm32-wasi/stdio.h"); err != nil {
		t.Skip("the programs need wasi-libc (Debian: wasi-libc, libclang-rt-dev-wasm32)")
	}
}

// A computation is stopped in its middle by meshnode, goes on under V8, is
// stopped there and ends in meshnode; and all of its rest runs under V8.
func TestComputing(t *testing.T) {
	setUp(t)
	computing(t, newHost(t, "../apps/suite/sha256/sha256.c"), "2000000")
}

// The same by tail calls, which stay what they are when a module is rewritten.
func TestTailCalls(t *testing.T) {
	setUp(t)
	const module = "0061736d01000000010401600000030201000a0601040012000b" // a function that tail-calls itself
	if out, _ := run(t, "node", "-p", `WebAssembly.validate(Buffer.from("`+module+`", "hex"))`); strings.TrimSpace(out) != "true" {
		t.Skip("this Node.js has no tail calls; 20 has")
	}
	computing(t, newHost(t, "testdata/threaded.c", "-mtail-call"), "30000000")
}

func computing(t *testing.T, h host, rounds string) {
	t.Helper()
	d := start(t)
	d.meshnode("worker", "run", h.plain, "--name", "plain", "--", rounds)
	d.until("^state +exited", "worker", "show", "plain")
	want := d.said("plain")
	// What was said before the first stop is in that worker's log.
	last := func(s string) string { return s[strings.LastIndexByte(strings.TrimSuffix(s, "\n"), '\n')+1:] }
	if want = last(want); want == "" {
		t.Fatal("the program says nothing")
	}
	dir := t.TempDir()
	first, second := filepath.Join(dir, "first"), filepath.Join(dir, "second")
	d.meshnode("worker", "run", h.plain, "--name", "moved", "--", rounds)
	d.meshnode("worker", "pause", "moved")
	d.meshnode("worker", "export", "moved", first)
	d.meshnode("worker", "stop", "moved")

	if out, how, _ := h.run(first); how != "exit 0" || last(out) != want {
		t.Errorf("under V8 to the end: %s, %q, want %q", how, out, want)
	}
	out, how, digest := h.run(first, "-polls", "100000", "-out", second)
	if how != "stopped" {
		t.Fatalf("under V8 for a while: %s, %q", how, out)
	}
	if got := h.digest(second); got != digest {
		t.Errorf("the checkpoint's memory is %s, the program's was %s", got, digest)
	}
	if got := h.digest(first); got == digest {
		t.Error("nothing has happened under V8")
	}
	d.meshnode("worker", "import", second, "--name", "back")
	d.until("^state +exited", "worker", "show", "back")
	if got := last(d.said("back")); got != want {
		t.Errorf("back in meshnode: %q, want %q", got, want)
	}
}

// A program that waits for input gets some under V8, and the same in meshnode:
// it says the same, and its memory is the same.
func TestWaiting(t *testing.T) {
	setUp(t)
	h, d := newHost(t, "../apps/suite/waiter/waiter.c"), start(t)
	dir := t.TempDir()
	first, there, here := filepath.Join(dir, "first"), filepath.Join(dir, "there"), filepath.Join(dir, "here")
	d.meshnode("worker", "run", h.plain, "--name", "waiter")
	d.meshnode("worker", "send", "waiter", "hello")
	d.until("stdout: 1 hello ", "worker", "logs", "waiter")
	d.meshnode("worker", "export", "waiter", first)

	d.meshnode("worker", "send", "waiter", "world")
	log := d.until("stdout: 2 world ", "worker", "logs", "waiter")
	out, how, digest := h.run(first, "-input", "world", "-out", there)
	if how != "waiting" || !strings.Contains(log, strings.TrimSuffix(out, "\n")) || out == "" {
		t.Fatalf("under V8: %s, %q; in meshnode:\n%s", how, out, log)
	}
	if got := h.digest(there); got != digest {
		t.Errorf("the checkpoint's memory is %s, the program's was %s", got, digest)
	}
	// The program may have said its line and not be waiting again yet.
	for end := time.Now().Add(patience); ; {
		d.meshnode("worker", "export", "waiter", here)
		got := h.digest(here)
		if got == digest {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("memory is %s in meshnode, %s under V8", got, digest)
		}
	}
	d.meshnode("worker", "import", there, "--name", "back")
	d.meshnode("worker", "send", "back", "again")
	d.meshnode("worker", "send", "waiter", "again")
	d.until("stdout: 3 again ", "worker", "logs", "back")
	d.until("stdout: 3 again ", "worker", "logs", "waiter")
	if got, want := d.said("back"), d.said("waiter"); !strings.HasSuffix(want, got) || !strings.HasPrefix(got, "2 world ") {
		t.Errorf("back in meshnode it says %q, the other %q", got, want)
	}
}
