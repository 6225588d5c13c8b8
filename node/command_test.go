package node

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"meshnode/node/control"
	"meshnode/node/handover"
)

// program builds one of the suite, which knows nothing of moving.
func program(t testing.TB, name string) string {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("runners need Linux so far")
	}
	clang, err := exec.LookPath("clang")
	if err != nil {
		t.Skip("the program is built with clang:", err)
	}
	if _, err := os.Stat("/usr/include/wasm32-wasi/stdio.h"); err != nil {
		t.Skip("the program needs wasi-libc (Debian: wasi-libc, libclang-rt-dev-wasm32)")
	}
	out := filepath.Join(t.TempDir(), name+".wasm")
	cmd := exec.Command(clang, "--target=wasm32-wasi", "-O2", "-o", out, filepath.Join("../e2e/apps/suite", name, name+".c"))
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, msg)
	}
	return out
}

// A listener follows what a worker writes wherever it is.
type listener struct {
	mu    sync.Mutex
	lines []string
	ended chan struct{}
}

func listen(t testing.TB, n *testNode, worker string) *listener {
	l := &listener{ended: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(l.ended)
		err := n.client.Logs(ctx, worker, true, func(line control.LogLine) error {
			if line.Source == "stdout" {
				l.mu.Lock()
				defer l.mu.Unlock()
				l.lines = append(l.lines, line.Text)
			}
			return nil
		})
		if err != nil && ctx.Err() == nil {
			t.Errorf("follow %s: %v", worker, err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-l.ended
	})
	return l
}

func (l *listener) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "\n")
}

func waitState(t testing.TB, n *testNode, worker, state string) control.Worker {
	t.Helper()
	var w control.Worker
	waitFor(t, worker+" is "+state, func() bool {
		var err error
		w, err = n.client.Worker(t.Context(), worker)
		return err == nil && w.State == state
	})
	return w
}

// A program that computes says the same however it is moved meanwhile. It
// computes until the moves are over and says for how long it did; one that is
// left alone then computes for as long.
func TestCommandMovesComputing(t *testing.T) {
	nodes := startNodes(t, 2)
	path := program(t, "until")
	nodes[0].run(t, path, control.RunRequest{Name: "moved"})
	moved := listen(t, nodes[0], "moved")
	for i, strategy := range []string{control.StrategyHybrid, control.StrategyPostCopy, control.StrategyStopAndCopy, control.StrategyPreCopy} {
		m, err := nodes[0].client.Migrate(t.Context(), "moved", control.MigrateRequest{To: nodes[(i+1)%2].name(), Strategy: strategy}, nil)
		if err != nil {
			t.Fatalf("%s: %v", strategy, err)
		}
		t.Logf("%s: blackout %.2f ms", strategy, m.BlackoutMs)
	}
	if err := nodes[0].client.Send(t.Context(), "moved", []byte("enough")); err != nil {
		t.Fatal(err)
	}
	waitState(t, nodes[0], "moved", control.StateExited)
	<-moved.ended
	got := moved.text()
	rounds, _, ok := strings.Cut(got, " rounds ")
	if !ok {
		t.Fatalf("it said %q", got)
	}

	w := nodes[0].run(t, path, control.RunRequest{Name: "unmoved", Args: []string{rounds}})
	if w.Suspend != control.SuspendAnywhere {
		t.Errorf("suspend %q", w.Suspend)
	}
	unmoved := listen(t, nodes[0], "unmoved")
	waitState(t, nodes[0], "unmoved", control.StateExited)
	<-unmoved.ended
	if want := unmoved.text(); got != want {
		t.Errorf("after four moves %q, unmoved %q", got, want)
	}
}

// A program that waits for input is moved while it waits, then fed.
func TestCommandMovesWaiting(t *testing.T) {
	nodes := startNodes(t, 2)
	nodes[0].run(t, program(t, "waiter"), control.RunRequest{Name: "waiter"})
	out := listen(t, nodes[0], "waiter")
	send := func(n int, text string) {
		t.Helper()
		if err := nodes[n].client.Send(t.Context(), "waiter", []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	lines := func(n int) {
		t.Helper()
		waitFor(t, "its lines", func() bool { return strings.Count(out.text()+"\n", "\n") >= n })
	}
	migrate := func(n int) {
		t.Helper()
		if _, err := nodes[0].client.Migrate(t.Context(), "waiter", control.MigrateRequest{To: nodes[n].name()}, nil); err != nil {
			t.Fatal(err)
		}
	}
	migrate(1)
	send(0, "hello")
	lines(1)
	if _, err := nodes[0].client.Pause(t.Context(), "waiter"); err != nil {
		t.Fatal(err)
	}
	migrate(0)
	if _, err := nodes[0].client.Resume(t.Context(), "waiter"); err != nil {
		t.Fatal(err)
	}
	send(1, "sleep 3\n")
	send(1, "world")
	lines(3)
	r, err := nodes[0].client.Call(t.Context(), "waiter", []byte("anyone?"))
	if err != nil || r.Status == 0 || !strings.Contains(string(r.Payload), "no calls") {
		t.Errorf("a call: %+v, %v", r, err)
	}
	migrate(1)
	send(0, endOfInput)
	waitState(t, nodes[0], "waiter", control.StateExited)
	<-out.ended
	if got := out.text(); !strings.HasPrefix(got, "1 hello ") || !strings.HasSuffix(got, "\n3 lines") || strings.Count(got, "\n") != 3 {
		t.Errorf("it said %q", got)
	}
}

// More input than a program reads waits in the inbox, and none of it is lost or
// read twice, whatever moves.
func TestCommandInputWaits(t *testing.T) {
	nodes := startNodes(t, 2)
	nodes[0].run(t, program(t, "waiter"), control.RunRequest{Name: "waiter"})
	out := listen(t, nodes[0], "waiter")
	if _, err := nodes[0].client.Pause(t.Context(), "waiter"); err != nil {
		t.Fatal(err)
	}
	s, err := nodes[0].client.Session(t.Context(), "waiter")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const count = 3000 // more than its streams hold
	sent, received := make(chan error, 1), make(chan error, 1)
	go func() {
		for {
			if _, err := s.Recv(context.Background()); err != nil {
				received <- err
				return
			}
		}
	}()
	go func() {
		for range count {
			if err := s.Send(context.Background(), control.Message{Payload: []byte("x")}); err != nil {
				sent <- err
				return
			}
		}
		err := s.Send(context.Background(), control.Message{Payload: []byte(endOfInput)})
		sent <- errors.Join(err, s.End(context.Background()))
	}()
	if _, err := nodes[0].client.Resume(t.Context(), "waiter"); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		_, err := nodes[0].client.Migrate(t.Context(), "waiter", control.MigrateRequest{To: nodes[1-i].name()}, nil)
		if err != nil {
			t.Log("not moved, it may have ended: ", err)
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if err := <-received; !errors.Is(err, control.ErrSessionDone) {
		t.Error(err)
	}
	waitState(t, nodes[0], "waiter", control.StateExited)
	<-out.ended
	// Who follows a log may be too slow for all of it; the program counts.
	if got := out.text(); !strings.HasSuffix(got, "\n3000 lines") {
		t.Errorf("it said last %q", got[max(0, len(got)-40):])
	}
}

func TestCommandModes(t *testing.T) {
	nodes := startNodes(t, 2)
	path := program(t, "waiter")
	nodes[0].run(t, path, control.RunRequest{Name: "stays", Suspend: control.SuspendNever})
	_, err := nodes[0].client.Migrate(t.Context(), "stays", control.MigrateRequest{To: nodes[1].name()}, nil)
	var ce *control.Error
	if !errors.As(err, &ce) || ce.Code != control.CodeConflict {
		t.Errorf("a worker that is never suspended moved: %v", err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, err = nodes[0].client.RunWorker(t.Context(), control.RunRequest{Name: "event", Suspend: control.SuspendEvent}, f, -1)
	if !errors.As(err, &ce) || ce.Code != control.CodeInvalid {
		t.Errorf("a program as an event worker: %v", err)
	}
}

// A worker whose memory is here does not end with the node it came from: what it
// lacks of its files is an I/O error to it, and the rest it has.
func TestCommandOutlivesItsFiles(t *testing.T) {
	dir := t.TempDir()
	a := startNode(t, dir, "a", nil)
	b := startNode(t, t.TempDir(), "b", []*testNode{a})
	for _, n := range []*testNode{a, b} {
		waitFor(t, "the other member", func() bool { return len(n.mesh.Members()) == 2 })
	}
	book := make([]byte, 1<<20)
	for i := range book { // no two pages alike
		book[i] = byte(i>>12 + i%251)
	}
	var archive bytes.Buffer
	z := zip.NewWriter(&archive)
	f, err := z.Create("0/book")
	if err == nil {
		_, err = f.Write(book)
	}
	if err = errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	module, err := os.ReadFile(program(t, "notes"))
	if err != nil {
		t.Fatal(err)
	}
	req := control.RunRequest{Name: "notes", Dirs: []control.Dir{{Name: "/data"}}, FilesLimit: 4 << 20}
	if _, err := a.client.RunWorkerIn(t.Context(), req, bytes.NewReader(module), int64(len(module)), &archive); err != nil {
		t.Fatal(err)
	}
	w := a.locals()[0]

	// It is not frozen before the destination is kept from fetching its files:
	// from when the move has begun, requests wait.
	frozen := make(chan struct{})
	go func() {
		_ = w.do(a.ctx, func() {
			for {
				select {
				case f := <-w.requests:
					w.mu.Lock()
					moves := w.move != nil
					w.mu.Unlock()
					if moves {
						<-frozen
					}
					f()
				case <-frozen:
					return
				}
			}
		})
	}()
	to, ok := a.mesh.Member(b.id)
	if !ok {
		t.Fatal("the destination is no member")
	}
	if _, err := a.moveAway(t.Context(), w, to, moveOptions{strategy: handover.PostCopy}); err != nil {
		t.Fatal(err)
	}
	var files *arrivingFiles
	waitFor(t, "the arrival", func() bool {
		in := b.arrival(w.ID)
		if in == nil {
			return false
		}
		in.mu.Lock()
		defer in.mu.Unlock()
		files = in.files
		return files != nil
	})
	files.mu.Lock()
	close(frozen)
	waitFor(t, "all of its memory", func() bool {
		w, err := b.client.Worker(t.Context(), "notes")
		return err == nil && w.Home == string(b.id) && w.State == control.StateDraining && w.ResidentShare == 1
	})
	a.stop(t)
	startNode(t, dir, "a", nil)
	files.mu.Unlock()

	moved := listen(t, b, "notes")
	for _, line := range []string{"append more words", "sum more", "sum book"} {
		if err := b.client.Send(t.Context(), "notes", []byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "an answer", func() bool { return strings.Count(moved.text(), "\n") == 2 })
	if got, want := moved.text(), "ok\nsum 569\nI/O error"; got != want {
		t.Errorf("it said %q, want %q", got, want)
	}
	waitState(t, b, "notes", control.StateRunning)
}
