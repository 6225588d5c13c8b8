package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/node/runner"
)

// apps is where the example apps are built, once.
var apps struct {
	sync.Once
	dir string
	err error
}

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == runner.ChildArg {
		os.Exit(runner.Main())
	}
	code := m.Run()
	if apps.dir != "" {
		os.RemoveAll(apps.dir)
	}
	os.RemoveAll(cacheDir)
	if code == 0 {
		// memberlist's probes end by themselves, up to a probe interval late.
		err := goleak.Find()
		for limit := time.Now().Add(time.Minute); err != nil && time.Now().Before(limit); {
			err = goleak.Find()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// cacheDir keeps the compiled apps for all nodes of all tests: under the race
// detector one takes most of a minute.
var cacheDir = filepath.Join(os.TempDir(), fmt.Sprintf("meshnode-cache-%d", os.Getpid()))

// app builds an example app and returns its path.
func app(t testing.TB, name string) string {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("runners need Linux so far")
	}
	apps.Do(func() {
		if apps.dir, apps.err = os.MkdirTemp("", "meshnode-apps-"); apps.err != nil {
			return
		}
		for _, name := range []string{"counter", "probe", "kvstore"} {
			cmd := exec.Command("go", "build", "-buildmode=c-shared", "-ldflags=-s -w",
				"-o", filepath.Join(apps.dir, name+".wasm"), "meshnode/e2e/apps/"+name)
			cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm")
			if out, err := cmd.CombinedOutput(); err != nil {
				apps.err = fmt.Errorf("build %s: %w\n%s", name, err, out)
				return
			}
		}
	})
	if apps.err != nil {
		t.Fatal(apps.err)
	}
	return filepath.Join(apps.dir, name+".wasm")
}

// runnerExe is the binary that runs workers: this one, or, under the race
// detector, which has its own tests in package runner, one without. It makes
// compiling a module ten times as slow.
var runnerExe = sync.OnceValues(func() (string, error) {
	info, _ := debug.ReadBuildInfo()
	if !slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		return "", nil
	}
	exe := filepath.Join(cacheDir, "meshnode")
	cmd := exec.Command("go", "build", "-o", exe, "meshnode/cmd/meshnode")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build meshnode: %w\n%s", err, out)
	}
	return exe, nil
})

// A testNode is a node that runs in this process.
type testNode struct {
	*Node
	client *control.Client
	cancel context.CancelFunc
	ended  chan error
	load   *atomic.Int64 // what the node takes for the use of its machine, in percent
}

// startNodes runs a mesh of that many nodes on the loopback interface and
// waits until all see each other.
func startNodes(t testing.TB, count int) []*testNode {
	t.Helper()
	var nodes []*testNode
	for i := range count {
		nodes = append(nodes, startNode(t, t.TempDir(), fmt.Sprintf("n%d", i), nodes))
	}
	for _, n := range nodes {
		waitFor(t, "all members", func() bool {
			alive := 0
			for _, m := range n.mesh.Members() {
				if m.State == mesh.Alive {
					alive++
				}
			}
			return alive == count
		})
	}
	return nodes
}

// outputOf is a test's output, until that has ended: memberlist's probes end by
// themselves, some after the test, and what they say then is nobody's.
func outputOf(t testing.TB) io.Writer {
	w := &lateWriter{w: t.Output()}
	t.Cleanup(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.w = io.Discard
	})
	return w
}

type lateWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (w *lateWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.w.Write(b)
}

// startNode runs one node; it joins the mesh of the first of others.
func startNode(t testing.TB, dir, name string, others []*testNode) *testNode {
	t.Helper()
	level := slog.LevelWarn
	if testing.Verbose() {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(outputOf(t), &slog.HandlerOptions{Level: level})).With("node", name)
	exe, err := runnerExe()
	if err != nil {
		t.Fatal(err)
	}
	load := new(atomic.Int64)
	var busy, all uint64
	cfg := Config{
		cpuTimes: func() (uint64, uint64) {
			busy, all = busy+uint64(load.Load()), all+100
			return busy, all
		},
		StateDir: dir, CacheDir: cacheDir, Exe: exe,
		Listen: "127.0.0.1:0", Name: name, Tier: mesh.Edge, DrainTimeout: 5 * time.Second, Log: log,
	}
	if in, err := mesh.HasMembership(dir); err != nil {
		t.Fatal(err)
	} else if !in && len(others) > 0 {
		token, err := others[0].client.CreateToken(t.Context(), control.TokenRequest{Tier: "edge"})
		if err != nil {
			t.Fatal(err)
		}
		cfg.Seeds = []string{others[0].Addr().String()}
		_, err = mesh.Enrol(t.Context(), mesh.EnrolConfig{Dir: dir, Token: token.Token, Via: cfg.Seeds, Log: log})
		if err != nil {
			t.Fatal(err)
		}
	}
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	tn := &testNode{Node: n, cancel: cancel, ended: make(chan error, 1), client: control.NewClient(n.cfg.Socket), load: load}
	go func() { tn.ended <- n.Run(ctx) }()
	t.Cleanup(func() { tn.stop(t) })
	waitFor(t, "the control socket", func() bool {
		_, err := tn.client.Status(t.Context())
		return err == nil
	})
	return tn
}

func (n *testNode) stop(t testing.TB) {
	if n.cancel == nil {
		return
	}
	n.cancel()
	n.cancel = nil
	n.client.Close()
	if err := <-n.ended; err != nil {
		t.Errorf("node %s: %v", n.name(), err)
	}
}

// waitFor waits until what is so. The limit is only there to end a test that
// has failed.
func waitFor(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !is(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (n *testNode) run(t testing.TB, path string, req control.RunRequest) control.Worker {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	w, err := n.client.RunWorker(t.Context(), req, f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// runStore runs a kvstore with entries of that size in all, which is at most 64 MiB.
func (n *testNode) runStore(t testing.TB, name, size string) control.Worker {
	t.Helper()
	w := n.run(t, app(t, "kvstore"), control.RunRequest{Name: name, MemoryLimit: 96 << 20})
	n.call(t, name, "init "+size)
	n.call(t, name, "fill")
	return w
}

func (n *testNode) call(t testing.TB, worker, payload string) string {
	t.Helper()
	r, err := n.client.Call(t.Context(), worker, []byte(payload))
	if err != nil {
		t.Fatalf("call %s %q at %s: %v", worker, payload, n.name(), err)
	}
	if r.Status != 0 || r.Err != nil {
		t.Fatalf("call %s %q at %s: status %d, %v", worker, payload, n.name(), r.Status, r.Err)
	}
	return string(r.Payload)
}

func (n *testNode) migrate(t testing.TB, worker string, to *testNode, strategy string) control.Migration {
	t.Helper()
	m, err := n.client.Migrate(t.Context(), worker, control.MigrateRequest{To: to.name(), Strategy: strategy}, func(control.Progress) {})
	if err != nil {
		t.Fatalf("migrate %s from %s to %s: %v", worker, n.name(), to.name(), err)
	}
	return m
}

// known waits until nodes have heard of a worker.
func known(t testing.TB, worker string, nodes ...*testNode) {
	t.Helper()
	for _, n := range nodes {
		waitFor(t, "the worker's name at "+n.name(), func() bool {
			_, err := n.client.Worker(t.Context(), worker)
			return err == nil
		})
	}
}

// TestMove moves a counter around a mesh of three nodes with every strategy,
// home again included, and asks every node for it after every move.
func TestMove(t *testing.T) {
	path := app(t, "counter")
	nodes := startNodes(t, 3)
	nodes[0].run(t, path, control.RunRequest{Name: "counter"})
	want := 0
	for hop, strategy := range []string{
		control.StrategyPostCopy, control.StrategyStopAndCopy, control.StrategyHybrid, control.StrategyPreCopy,
		control.StrategyAuto, control.StrategyAuto, control.StrategyPostCopy,
	} {
		from, to := nodes[hop%3], nodes[(hop+1)%3]
		known(t, "counter", nodes...)
		want += hop + 1
		from.call(t, "counter", fmt.Sprintf("add %d", hop+1))
		m := from.migrate(t, "counter", to, strategy)
		if m.Epoch != uint64(hop+2) || m.Result != "done" {
			t.Errorf("hop %d: %+v", hop, m)
		}
		for _, n := range nodes {
			if got := n.call(t, "counter", "get"); got != strconv.Itoa(want) {
				t.Fatalf("hop %d: the counter is %q at node %s, want %d", hop, got, n.name(), want)
			}
		}
		w, err := nodes[0].client.Worker(t.Context(), "counter")
		if err != nil || w.HomeName != to.name() || w.State != control.StateRunning {
			t.Errorf("hop %d: %+v, %v", hop, w, err)
		}
	}
}

// TestMoveUnderLoad sends numbered messages through one session while the
// worker moves to and fro: each must be counted once, in order.
func TestMoveUnderLoad(t *testing.T) {
	path := app(t, "counter")
	nodes := startNodes(t, 3)
	nodes[0].run(t, path, control.RunRequest{Name: "counter"})
	known(t, "counter", nodes...)
	ses, err := nodes[2].client.Session(t.Context(), "counter")
	if err != nil {
		t.Fatal(err)
	}
	defer ses.Close()
	stop := make(chan struct{})
	sent := make(chan int, 1)
	go func() {
		n := 0
		defer func() { sent <- n }()
		for ; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			if err := ses.Send(t.Context(), control.Message{Call: true, Payload: []byte("add 1")}); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	got := make(chan int, 1)
	go func() {
		n := 0
		defer func() { got <- n }()
		for {
			r, err := ses.Recv(t.Context())
			if errors.Is(err, control.ErrSessionDone) {
				return
			}
			if n++; err != nil || string(r.Payload) != strconv.Itoa(n) {
				t.Errorf("reply %d is %q, %v", n, r.Payload, err)
				return
			}
		}
	}()
	for hop := range 4 {
		nodes[hop%2].migrate(t, "counter", nodes[(hop+1)%2], "")
	}
	close(stop)
	n := <-sent
	if err := ses.End(t.Context()); err != nil {
		t.Error(err)
	}
	if g := <-got; g != n {
		t.Errorf("%d replies to %d messages", g, n)
	}
	if v := nodes[2].call(t, "counter", "get"); v != strconv.Itoa(n) {
		t.Errorf("the counter is %s after %d messages", v, n)
	}
	t.Logf("%d messages across 4 moves", n)
}

// TestWorkerFailures ends workers in every way a worker can end by itself, and
// looks at what is told, and at a neighbour that must not notice.
func TestWorkerFailures(t *testing.T) {
	counter, probe := app(t, "counter"), app(t, "probe")
	n := startNodes(t, 1)[0]
	n.cfg.EventTimeout = 3 * time.Second // which the neighbour never needs
	n.run(t, counter, control.RunRequest{Name: "neighbour"})
	for _, payload := range []string{"trap", "spin", "exit 3"} {
		n.run(t, probe, control.RunRequest{Name: "victim"})
		_, err := n.client.Call(t.Context(), "victim", []byte(payload))
		var ce *control.Error
		if !errors.As(err, &ce) || ce.Code != control.CodeFailed {
			t.Errorf("%s: the caller is told %v", payload, err)
		}
		w, err := n.client.Worker(t.Context(), "victim")
		if err != nil || w.State != control.StateFailed || w.Reason == "" {
			t.Errorf("%s: %+v, %v", payload, w, err)
		}
		t.Logf("%s: %v", payload, w.Reason)
		if got := n.call(t, "neighbour", "add 1"); got == "" {
			t.Errorf("%s: the neighbour is silent", payload)
		}
		if _, err := n.client.Stop(t.Context(), "victim"); err != nil {
			t.Errorf("%s: stop: %v", payload, err)
		}
	}
}

// TestOverdueWhileDraining runs an event that never ends: as long as pages are
// missing it may be waiting for one, so only then is it let run past its limit.
func TestOverdueWhileDraining(t *testing.T) {
	n := startNodes(t, 1)[0]
	n.run(t, app(t, "probe"), control.RunRequest{Name: "victim"})
	w := n.locals()[0]
	const limit = 100 * time.Millisecond
	drain := func(yes bool) {
		w.mu.Lock()
		w.draining = yes
		w.mu.Unlock()
	}
	if err := w.do(t.Context(), func() { drain(true); n.cfg.EventTimeout = limit }); err != nil {
		t.Fatal(err)
	}
	told := make(chan error, 1)
	go func() {
		_, err := n.client.Call(t.Context(), "victim", []byte("spin"))
		told <- err
	}()
	select {
	case err := <-told:
		t.Fatalf("while pages were missing: %v", err)
	case <-time.After(5 * limit):
	}
	drain(false)
	err := <-told
	var ce *control.Error
	if !errors.As(err, &ce) || ce.Code != control.CodeFailed {
		t.Errorf("the caller is told %v", err)
	}
	shown, err := n.client.Worker(t.Context(), "victim")
	if err != nil || shown.State != control.StateFailed || !strings.Contains(shown.Reason, "longer than the limit") {
		t.Errorf("%+v, %v", shown, err)
	}
}

// TestRestart stops a node with a worker and starts it again: the worker is
// listed as lost, with the reason, and its name can be used again.
func TestRestart(t *testing.T) {
	path := app(t, "counter")
	dir := t.TempDir()
	n := startNode(t, dir, "n0", nil)
	n.run(t, path, control.RunRequest{Name: "counter"})
	n.stop(t)
	n = startNode(t, dir, "n0", nil)
	w, err := n.client.Worker(t.Context(), "counter")
	if err != nil || w.State != control.StateLost || w.Reason == "" {
		t.Fatalf("after the restart: %+v, %v", w, err)
	}
	n.run(t, path, control.RunRequest{Name: "counter"})
	if got := n.call(t, "counter", "get"); got != "0" {
		t.Errorf("a new worker of the name counts %s", got)
	}
}

// TestJoinRunning lets a node that runs a mesh of its own into another, without
// a restart by hand, and leaves it again.
func TestJoinRunning(t *testing.T) {
	a := startNode(t, t.TempDir(), "a", nil)
	dir := t.TempDir()
	b := startNode(t, dir, "b", nil)
	token, err := a.client.CreateToken(t.Context(), control.TokenRequest{Tier: "edge"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.client.Join(t.Context(), control.JoinRequest{Token: "mn1_nonsense"}); err == nil {
		t.Fatal("a token that is none was accepted")
	}
	if st, err := b.client.Status(t.Context()); err != nil || st.MeshID == a.mesh.MeshID() {
		t.Fatalf("after a refused join: %+v, %v", st, err)
	}
	j, err := b.client.Join(t.Context(), control.JoinRequest{Token: token.Token, Via: []string{a.Addr().String()}})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-b.ended; !errors.Is(err, ErrRestart) {
		t.Fatalf("after a join the node ended with %v", err)
	}
	b.cancel = nil
	b.client.Close()
	b = startNode(t, dir, "b", nil)
	if b.mesh.MeshID() != a.mesh.MeshID() || j.MeshID != a.mesh.MeshID() || string(b.id) != j.ID {
		t.Fatalf("joined %+v, runs in %s", j, b.mesh.MeshID())
	}
	waitFor(t, "both members", func() bool { return len(a.mesh.Members()) == 2 && len(b.mesh.Members()) == 2 })
	if _, err := b.client.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-b.ended; err != nil {
		t.Fatal(err)
	}
	b.cancel = nil
	b.client.Close()
	waitFor(t, "its leaving", func() bool {
		m, ok := a.mesh.Member(b.id)
		return !ok || m.State == mesh.Left
	})
	if in, err := mesh.HasMembership(dir); err != nil || in {
		t.Fatalf("after leaving it is a member: %v, %v", in, err)
	}
}
