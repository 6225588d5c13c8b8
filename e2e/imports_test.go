package e2e

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// An importRule says that packages of the module must not import others.
type importRule struct {
	// in are the packages it is about, those below them included; "" is all.
	in []string
	// but are those among them that may, those below them included.
	but []string
	// not are the import paths they must not import. One that ends in ... is
	// a prefix.
	not []string
	// tests may import them nevertheless.
	tests bool
	// why is the reason.
	why string
}

var importRules = []importRule{
	{
		in: []string{"mesh"}, not: []string{"meshnode/pager...", "meshnode/placement...", "meshnode/node...", "meshnode/cmd...", "meshnode/e2e..."},
		why: "mesh knows who is out there and moves bytes; what they mean is node's affair",
	},
	{
		in: []string{"pager"}, not: []string{"meshnode/mesh...", "meshnode/placement...", "meshnode/node...", "meshnode/cmd...", "meshnode/e2e..."},
		why: "pager is given readers and writers; node decides what is behind them",
	},
	{
		in: []string{"placement"}, not: []string{"meshnode/mesh...", "meshnode/pager...", "meshnode/node...", "meshnode/cmd...", "meshnode/e2e..."},
		why: "placement is arithmetic on a view that node hands to it",
	},
	{
		in: []string{"placement"}, not: []string{"os", "net", "net/...", "os/..."}, tests: true,
		why: "a decision must depend on its inputs alone, or it cannot be explained or repeated",
	},
	{
		in:  []string{"node/runner", "node/suspend", "node/wasi", "node/handover", "node/control", "node/guest"},
		not: []string{"meshnode/node", "meshnode/node/journal", "meshnode/mesh...", "meshnode/cmd...", "meshnode/e2e..."},
		why: "node introduces its parts to each other and to the mesh; they do not reach up",
	},
	{
		in: []string{"node/handover"}, not: []string{"meshnode/...", "net", "net/...", "os", "os/..."}, tests: true,
		why: "the hand-over is a machine without I/O that can be explored exhaustively",
	},
	{
		in: []string{"node/journal"}, not: []string{"meshnode/node", "meshnode/mesh", "meshnode/pager...", "meshnode/placement...", "net", "net/..."},
		why: "it keeps records on disk; who is told of them is node's affair",
	},
	{
		in: []string{"node/suspend", "node/wasi"}, not: []string{"meshnode/node/runner...", "meshnode/node/handover...", "meshnode/node/control...", "meshnode/pager..."},
		why: "they know Wasm and nothing of who runs or moves it",
	},
	{
		in: []string{"node/control"}, not: []string{"meshnode/node/runner...", "meshnode/node/handover...", "meshnode/node/suspend...", "meshnode/node/wasi...", "meshnode/pager..."},
		why: "the control API is what the outside sees, not how it is done",
	},
	{
		in: []string{"node"}, not: []string{"meshnode/cmd...", "meshnode/e2e..."},
		why: "node is called by cmd",
	},
	{
		in: []string{""}, but: []string{"e2e", "cmd"}, not: []string{"meshnode/e2e..."},
		why: "the product does not contain its test bench",
	},
	{
		in: []string{"cmd"}, not: []string{"meshnode/e2e/netlab..."},
		why: "the product does not contain its test bench; the demo speaks to an example app, nothing more",
	},
	{
		in: []string{""}, but: []string{"mesh"}, not: []string{"github.com/quic-go/...", "github.com/hashicorp/..."}, tests: true,
		why: "QUIC and gossip stop at mesh, so that they can be replaced there",
	},
	{
		in: []string{""}, but: []string{"node/runner", "node/wasi", "node/suspend/drive"}, not: []string{"github.com/tetratelabs/wazero..."}, tests: true,
		why: "the engine runs in the runner's process only; a fault it waits for in the node would be the node's own to serve",
	},
	{
		in: []string{""}, but: []string{"node/runner", "node/suspend/drive"}, not: []string{"meshnode/node/suspend/drive..."}, tests: true,
		why: "it drives the engine, which runs in the runner's process only",
	},
	{
		in: []string{""}, but: []string{"mesh", "node/journal"}, not: []string{"go.etcd.io/bbolt..."}, tests: true,
		why: "each file on disk has one package that knows its format",
	},
	{
		in: []string{""}, but: []string{"cmd"}, not: []string{"github.com/spf13/...", "golang.org/x/term"},
		why: "flags and terminals are for cmd",
	},
	{
		in: []string{""}, but: []string{"node", "node/control", "cmd"}, not: []string{"net/http..."}, tests: true,
		why: "HTTP is the control API and the metrics; between nodes there is only the mesh",
	},
	{
		in: []string{"node/runner", "node/suspend", "node/wasi", "node/handover", "node/guest"}, not: []string{"net/http..."}, tests: true,
		why: "HTTP is the control API and the metrics; what runs a worker is not for the network",
	},
	{
		in: []string{""}, but: []string{"node/runner", "cmd", "e2e"}, not: []string{"os/exec"}, tests: true,
		why: "the only processes are runners, what reads a host's interfaces, and the nodes of a demo",
	},
	{
		in: []string{""}, but: []string{"e2e/netlab", "node/suspend/drive/drivetest"}, not: []string{"testing", "testing/..."}, tests: true,
		why: "tests do not end up in the binary",
	},
	{
		in: []string{""}, not: []string{"C"},
		why: "the binary is built without a C compiler, for every system",
	},
	{
		in: []string{""}, but: []string{"mesh"}, not: []string{"log"}, // memberlist wants a log.Logger
		why: "logs are structured: log/slog",
	},
	{
		in: []string{""}, not: []string{"math/rand"},
		why: "math/rand/v2 has generators whose sequence is specified",
	},
	{
		in: []string{""}, but: []string{"pager", "node/runner", "node/guest"}, not: []string{"unsafe"}, tests: true,
		why: "what can corrupt memory stays where memory is mapped, and in the guest",
	},
}

// covers reports whether the package pkg is one of those, or below one.
func covers(packages []string, pkg string) bool {
	for _, p := range packages {
		if p == "" || pkg == p || strings.HasPrefix(pkg, p+"/") {
			return true
		}
	}
	return false
}

func (r importRule) forbids(pkg, imported string, test bool) bool {
	if !covers(r.in, pkg) || covers(r.but, pkg) || test && r.tests {
		return false
	}
	for _, n := range r.not {
		prefix, isPrefix := strings.CutSuffix(n, "...")
		switch {
		case imported == n:
			return true
		case isPrefix && strings.HasPrefix(imported, prefix):
			return true
		}
	}
	return false
}

func TestImports(t *testing.T) {
	const root = ".."
	files := 0
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if base := d.Name(); base == "testdata" || len(base) > 2 && base[0] == '.' {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		files++
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range f.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			for _, r := range importRules {
				if r.forbids(path.Dir(rel), imported, strings.HasSuffix(rel, "_test.go")) {
					t.Errorf("%s imports %s: %s", rel, imported, r.why)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files == 0 {
		t.Error("no Go files found")
	}
}
