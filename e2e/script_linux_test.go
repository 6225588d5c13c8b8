package e2e

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"meshnode/e2e/netlab"
)

// patience is how long a script waits for what should happen soon. It bounds
// a failure; it is nothing to measure by.
const patience = 2 * time.Minute

func TestScripts(t *testing.T) {
	dir := ""
	if netlab.Unavailable() == nil {
		dir = built(t)
	}
	// The scripts run in parallel, after this function has returned.
	t.Cleanup(func() { goleak.VerifyNone(t) })
	commands := make(map[string]func(*testscript.TestScript, bool, []string))
	for name, c := range scriptCommands {
		commands[name] = func(ts *testscript.TestScript, neg bool, args []string) {
			if neg && !c.canNegate {
				ts.Fatalf("unsupported: ! %s", name)
			}
			w := ts.Value(worldKey{}).(*world)
			w.ts = ts
			if err := c.run(w, neg, args); errors.Is(err, errUsage) {
				ts.Fatalf("usage: %s %s", name, c.usage)
			} else if err != nil {
				ts.Fatalf("%v", err)
			}
		}
	}
	testscript.Run(t, testscript.Params{
		Dir:                filepath.Join("testdata", "script"),
		RequireUniqueNames: true,
		Setup:              func(env *testscript.Env) error { return setup(env, dir) },
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "netns":
				return netlab.Unavailable() == nil, nil
			case "clang":
				return haveClang(), nil
			case "qemu":
				return haveQemu(), nil
			case "race":
				return os.Getenv("E2E_RACE") == "1", nil
			}
			return false, fmt.Errorf("there is no such condition")
		},
		Cmds: commands,
	})
}

var errUsage = errors.New("usage")

// scriptCommands are the commands of scripts that are functions here; see the
// package comment for what they do.
var scriptCommands = map[string]struct {
	usage     string
	canNegate bool
	run       func(w *world, neg bool, args []string) error
}{
	"node":      {"NAME [tier=TIER]", false, (*world).cmdNode},
	"link":      {"A B [key=value...]", false, (*world).cmdLink},
	"setlink":   {"A B key=value...", false, (*world).cmdSetLink},
	"oneway":    {"A B key=value...", false, (*world).cmdOneWay},
	"cut":       {"A [B]", false, (*world).cmdCut},
	"heal":      {"A [B]", false, (*world).cmdHeal},
	"readdress": {"NAME", false, (*world).cmdReaddress},
	"linkstats": {"A B", false, (*world).cmdLinkStats},
	"start":     {"NAME [join=OTHER] [token=OTHER] [tier=TIER] [arch=ARCH] [flag...]", true, (*world).cmdStart},
	"shutdown":  {"NAME...", false, (*world).cmdShutdown},
	"crash":     {"NAME", false, (*world).cmdCrash},
	"restart":   {"NAME [flag...]", false, (*world).cmdRestart},
	"fails":     {"CODE NAME COMMAND...", false, (*world).cmdFails},
	"waitfor":   {"[TIMEOUT] NAME COMMAND... -- REGEXP", true, (*world).cmdWaitFor},
	"forge":     {"TOKENFILE FORGEDFILE", false, (*world).cmdForge},
	"logged":    {"NAME REGEXP", false, (*world).cmdLogged},
}

// A world is what a script has made: a lab, and daemons on its nodes. Only the
// script's goroutine touches it.
type world struct {
	ts      *testscript.TestScript // while a command runs
	dir     string                 // $WORK
	lab     *netlab.Lab
	tiers   map[string]string
	arches  map[string]string // of nodes that are emulated
	daemons map[string]*daemon
}

type worldKey struct{}

// netnsVar tells atMain where the namespaces of the script's nodes are: the
// name of a node goes behind it.
const netnsVar = "E2E_NETNS"

func setup(env *testscript.Env, dir string) error {
	t := env.T().(interface {
		testscript.T
		Failed() bool
	})
	if err := netlab.Unavailable(); err != nil {
		t.Skip(err)
	}
	seed, err := netlab.Seed()
	if err != nil {
		return err
	}
	t.Log(fmt.Sprintf("NETLAB_SEED=%d", seed))
	name := strings.TrimPrefix(filepath.Base(env.WorkDir), "script-")
	lab, err := netlab.Open(netlab.Config{Name: name, Seed: seed})
	if err != nil {
		return err
	}
	w := &world{
		dir: env.WorkDir, lab: lab,
		tiers: make(map[string]string), arches: make(map[string]string), daemons: make(map[string]*daemon),
	}
	env.Values[worldKey{}] = w
	env.Defer(func() {
		if err := w.close(); err != nil {
			t.Log(err)
			t.FailNow()
		}
		if t.Failed() || t.Verbose() {
			t.Log(w.report())
		}
	})
	env.Setenv("APPS", filepath.Join(dir, "apps"))
	env.Setenv("PATH", filepath.Join(dir, "bin")+string(os.PathListSeparator)+env.Getenv("PATH"))
	env.Setenv(netnsVar, netlab.NetnsPrefix(name))
	return nil
}

// close ends everything the script has started.
func (w *world) close() error {
	err := w.lab.Close()
	for _, d := range w.daemons {
		d.end()
	}
	return err
}

// report is what the daemons have logged, the end of it if it is long.
func (w *world) report() string {
	const most = 32 << 10
	var b strings.Builder
	for _, n := range w.lab.Nodes() {
		log, err := os.ReadFile(w.logFile(n.Name()))
		if err != nil {
			continue // it never ran
		}
		fmt.Fprintf(&b, "--- log of %s ---\n", n.Name())
		if len(log) > most {
			fmt.Fprintf(&b, "... (%d bytes)\n", len(log)-most)
			log = log[len(log)-most:]
		}
		b.Write(log)
	}
	return b.String()
}

func (w *world) stateDir(node string) string { return filepath.Join(w.dir, node) }
func (w *world) logFile(node string) string  { return w.stateDir(node) + ".log" }

// needNode returns a node, which it makes if there is none yet.
func (w *world) needNode(name string) (*netlab.Node, error) {
	if n := w.lab.Node(name); n != nil {
		return n, nil
	}
	n, err := w.lab.AddNode(name)
	if err != nil {
		return nil, err
	}
	w.setAddr(n)
	return n, nil
}

func (w *world) setAddr(n *netlab.Node) {
	w.ts.Setenv("ADDR_"+strings.ReplaceAll(n.Name(), "-", "_"), n.Addr().String())
}

func (w *world) cmdNode(_ bool, args []string) error {
	if len(args) < 1 || len(args) > 2 {
		return errUsage
	}
	if len(args) == 2 {
		tier, ok := strings.CutPrefix(args[1], "tier=")
		if !ok {
			return errUsage
		}
		w.tiers[args[0]] = tier
	}
	_, err := w.needNode(args[0])
	return err
}

// change returns what applies words to a link's parameters. Whether they can
// be read is known before any of them is applied.
func change(words []string) (func(*netlab.Params), error) {
	var scratch netlab.Params
	apply := func(p *netlab.Params) (err error) {
		for _, word := range words {
			err = errors.Join(err, p.Set(word))
		}
		return err
	}
	if err := apply(&scratch); err != nil {
		return nil, err
	}
	return func(p *netlab.Params) { _ = apply(p) }, nil
}

func (w *world) cmdLink(_ bool, args []string) error {
	if len(args) < 2 {
		return errUsage
	}
	set, err := change(args[2:])
	if err != nil {
		return err
	}
	for _, name := range args[:2] {
		if _, err := w.needNode(name); err != nil {
			return err
		}
	}
	var p netlab.Params
	set(&p)
	return w.lab.Link(args[0], args[1], p)
}

func (w *world) cmdSetLink(_ bool, args []string) error {
	return w.change(args, w.lab.SetLink)
}

func (w *world) cmdOneWay(_ bool, args []string) error {
	return w.change(args, w.lab.SetWire)
}

func (w *world) change(args []string, apply func(a, b string, change func(*netlab.Params)) error) error {
	if len(args) < 3 {
		return errUsage
	}
	set, err := change(args[2:])
	if err != nil {
		return err
	}
	return apply(args[0], args[1], set)
}

func (w *world) cmdCut(_ bool, args []string) error {
	switch len(args) {
	case 1:
		return w.lab.CutNode(args[0])
	case 2:
		return w.lab.Cut(args[0], args[1])
	}
	return errUsage
}

func (w *world) cmdHeal(_ bool, args []string) error {
	switch len(args) {
	case 1:
		return w.lab.HealNode(args[0])
	case 2:
		return w.lab.Heal(args[0], args[1])
	}
	return errUsage
}

func (w *world) cmdReaddress(_ bool, args []string) error {
	if len(args) != 1 {
		return errUsage
	}
	addr, err := w.lab.Readdress(args[0])
	if err != nil {
		return err
	}
	w.setAddr(w.lab.Node(args[0]))
	w.ts.Logf("%s is now at %v", args[0], addr)
	return nil
}

func (w *world) cmdLinkStats(_ bool, args []string) error {
	if len(args) != 2 {
		return errUsage
	}
	s, err := w.lab.Stats(args[0], args[1])
	if err != nil {
		return err
	}
	fmt.Fprintf(w.ts.Stdout(), "sent=%d delivered=%d queue=%d loss=%d down=%d reordered=%d duplicated=%d\n",
		s.Sent, s.Delivered, s.DroppedQueue, s.DroppedLoss, s.DroppedDown, s.Reordered, s.Duplicated)
	return nil
}

// environ is the environment of a process on a node.
func (w *world) environ(node string) []string {
	env := []string{stateDirVar + "=" + w.stateDir(node), socketVar + "=" + socket(w.stateDir(node))}
	for _, name := range []string{"WORK", "PATH", "HOME", "TMPDIR", "GOTRACEBACK", "GORACE", "GOCOVERDIR", netnsVar} {
		if v := w.ts.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env
}

const (
	stateDirVar = "MESHNODE_STATE_DIR"
	socketVar   = "MESHNODE_SOCKET"
)

func socket(stateDir string) string { return filepath.Join(stateDir, "control.sock") }

// atMain is the program `at NAME COMMAND...` of scripts.
func atMain() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: at NAME COMMAND...")
		os.Exit(2)
	}
	node := os.Args[1]
	dir := filepath.Join(os.Getenv("WORK"), node)
	os.Setenv(stateDirVar, dir)
	os.Setenv(socketVar, socket(dir))
	netlab.Exec(os.Getenv(netnsVar)+node, os.Args[2:], os.Environ())
}

func (w *world) cmdFails(_ bool, args []string) error {
	if len(args) < 3 {
		return errUsage
	}
	want, err := strconv.Atoi(args[0])
	if err != nil || want == 0 {
		return errUsage
	}
	err = w.ts.Exec("at", args[1:]...)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return fmt.Errorf("exit code 0, want %d", want)
	case !errors.As(err, &exit):
		return err
	case exit.ExitCode() != want:
		return fmt.Errorf("%v, want exit code %d", exit, want)
	}
	return nil
}

func (w *world) cmdWaitFor(neg bool, args []string) error {
	limit := patience
	if len(args) > 0 {
		if d, err := time.ParseDuration(args[0]); err == nil {
			limit, args = d, args[1:]
		}
	}
	sep := slices.Index(args, "--")
	if sep < 2 || sep != len(args)-2 {
		return errUsage
	}
	re, err := regexp.Compile("(?m)" + args[sep+1])
	if err != nil {
		return err
	}
	node, argv := w.lab.Node(args[0]), args[1:sep]
	if node == nil {
		return fmt.Errorf("no node %s", args[0])
	}
	var stdout, stderr string
	ok := poll(limit, func() bool {
		stdout, stderr, err = w.output(node, argv)
		return re.MatchString(stdout) != neg
	})
	fmt.Fprint(w.ts.Stdout(), stdout)
	fmt.Fprint(w.ts.Stderr(), stderr)
	switch {
	case ok:
		return nil
	case neg:
		return fmt.Errorf("after %v there still is a match for %#q; the command ended with %v", limit, args[sep+1], err)
	}
	return fmt.Errorf("after %v there is no match for %#q; the command ended with %v", limit, args[sep+1], err)
}

func (w *world) cmdLogged(_ bool, args []string) error {
	if len(args) != 2 {
		return errUsage
	}
	re, err := regexp.Compile("(?m)" + args[1])
	if err != nil {
		return err
	}
	if !poll(patience, func() bool {
		log, err := os.ReadFile(w.logFile(args[0]))
		return err == nil && re.Match(log)
	}) {
		return fmt.Errorf("after %v the log of %s has no match for %#q", patience, args[0], args[1])
	}
	return nil
}

// poll calls done until it returns true, or too much time has passed.
func poll(limit time.Duration, done func() bool) bool {
	deadline := time.Now().Add(limit)
	pause := 10 * time.Millisecond
	for !done() {
		if time.Now().After(deadline) {
			return false
		}
		<-time.After(pause)
		pause = min(2*pause, 200*time.Millisecond)
	}
	return true
}

// cmdForge writes a token with another secret but otherwise the same: what
// somebody who has seen a token's public parts could make of them.
func (w *world) cmdForge(_ bool, args []string) error {
	if len(args) != 2 {
		return errUsage
	}
	text := strings.TrimSpace(w.ts.ReadFile(args[0]))
	prefix, body, ok := strings.Cut(text, "_")
	raw, err := base64.RawURLEncoding.DecodeString(body)
	// A CBOR array of 6: 32 bytes of CA pin, 16 of id, 32 of secret, ...
	const secret = 1 + (2 + 32) + (1 + 16) + 2
	if !ok || err != nil || len(raw) < secret+32 || raw[secret-2] != 0x58 || raw[secret-1] != 32 {
		return fmt.Errorf("%s holds no token as this program knows them: %v", args[0], err)
	}
	raw[secret+7] ^= 1
	forged := prefix + "_" + base64.RawURLEncoding.EncodeToString(raw) + "\n"
	return os.WriteFile(w.ts.MkAbs(args[1]), []byte(forged), 0o600)
}
