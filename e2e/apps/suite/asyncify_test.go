package suite

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// asyncify makes of a module what Binaryen's Asyncify makes of it when polls are
// put where Rewrite has them: at the head of every loop, and at the entry of
// every function that can call itself, in one step or several, which Asyncify
// needs where Rewrite looks behind the calls.
func asyncify(tb testing.TB, module []byte) []byte {
	tb.Helper()
	for _, tool := range []string{"wasm2wat", "wat2wasm", "wasm-opt"} {
		if _, err := exec.LookPath(tool); err != nil {
			tb.Logf("no Asyncify to compare with: it takes wabt and binaryen: %v", err)
			return nil
		}
	}
	dir := tb.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	run := func(args ...string) {
		if msg, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			tb.Fatalf("%v: %v\n%s", args, err, msg)
		}
	}
	if err := os.WriteFile(path("in.wasm"), module, 0o600); err != nil {
		tb.Fatal(err)
	}
	run("wasm2wat", "--generate-names", "--enable-all", path("in.wasm"), "-o", path("in.wat"))
	text, err := os.ReadFile(path("in.wat"))
	if err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(path("polls.wat"), addPolls(text), 0o600); err != nil {
		tb.Fatal(err)
	}
	run("wat2wasm", "--enable-all", path("polls.wat"), "-o", path("polls.wasm"))
	run("wasm-opt", path("polls.wasm"), "--asyncify", "--pass-arg=asyncify-imports@env.poll,wasi_snapshot_preview1.fd_read,"+
		"wasi_snapshot_preview1.fd_write,wasi_snapshot_preview1.poll_oneoff,wasi_snapshot_preview1.sched_yield",
		"-O3", "--enable-bulk-memory", "--enable-sign-ext", "--enable-nontrapping-float-to-int", "--enable-mutable-globals", "-o", path("out.wasm"))
	out, err := os.ReadFile(path("out.wasm"))
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

var (
	funcLine = regexp.MustCompile(`^  \(func (\$\S+)`)
	callLine = regexp.MustCompile(`^ *call (\$\S+)`)
	loopLine = regexp.MustCompile(`^ *loop\b`)
)

// addPolls adds polls to a module as wasm2wat writes it, an instruction a line.
func addPolls(text []byte) []byte {
	lines := strings.Split(string(text), "\n")
	calls := map[string][]string{}
	name := ""
	for _, l := range lines {
		if m := funcLine.FindStringSubmatch(l); m != nil {
			name = m[1]
		} else if m := callLine.FindStringSubmatch(l); m != nil {
			calls[name] = append(calls[name], strings.TrimRight(m[1], ")"))
		}
	}
	recursive := func(f string) bool {
		seen := map[string]bool{}
		next := append([]string(nil), calls[f]...)
		for len(next) > 0 {
			c := next[len(next)-1]
			next = next[:len(next)-1]
			if c == f {
				return true
			}
			if !seen[c] {
				seen[c] = true
				next = append(next, calls[c]...)
			}
		}
		return false
	}
	const poll = "global.get $stop__ if call $poll__ end"
	var out bytes.Buffer
	entry := false // a poll is due before the function's first instruction
	for i, l := range lines {
		if m := funcLine.FindStringSubmatch(l); m != nil {
			entry = recursive(m[1])
		} else if entry && !strings.HasPrefix(strings.TrimSpace(l), "(local") {
			fmt.Fprintln(&out, poll)
			entry = false
		}
		// A function without instructions ends on its first line.
		if entry && strings.HasSuffix(l, "))") && !strings.Contains(l, "(local") && !strings.Contains(l, "(type") {
			entry = false
		}
		fmt.Fprintln(&out, l)
		if i == 0 {
			fmt.Fprintln(&out, `(import "env" "poll" (func $poll__))`)
		}
		if loopLine.MatchString(l) {
			fmt.Fprintln(&out, poll)
		}
	}
	s := strings.TrimRight(out.String(), "\n ")
	return []byte(strings.TrimSuffix(s, ")") + "\n(global $stop__ (export \"stop__\") (mut i32) (i32.const 0)))\n")
}
