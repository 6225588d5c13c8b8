package control_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"meshnode/node/control"
	"meshnode/node/control/controltest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve serves a node on a socket until the test ends and returns its client.
func serve(t testing.TB, m *controltest.Mesh, node string) (c *control.Client, socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "mn")
	if err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(dir, "s")
	l, err := control.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Node(node).Server.Serve(ctx, l) }()
	c = control.NewClient(socket)
	t.Cleanup(func() {
		c.Close()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
		m.Wait()
		os.RemoveAll(dir)
	})
	return c, socket
}

func wantCode(t *testing.T, err error, code control.Code) *control.Error {
	t.Helper()
	var e *control.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Fatalf("got error %v (%T), want code %s", err, err, code)
	}
	return e
}

func TestDocuments(t *testing.T) {
	m := controltest.New("device", "edge-a")
	m.Place("counter", "device")
	c, socket := serve(t, m, "device")
	ctx := t.Context()

	s, err := c.Status(ctx)
	if err != nil || s.Name != "device" || !s.Authority || s.Members.Alive != 2 {
		t.Errorf("status: %+v, %v", s, err)
	}
	nodes, err := c.Nodes(ctx)
	if err != nil || len(nodes) != 2 || nodes[1].Name != "edge-a" {
		t.Errorf("nodes: %+v, %v", nodes, err)
	}
	if _, err := c.Node(ctx, "edge-b"); err != nil {
		if e := wantCode(t, err, control.CodeNotFound); e.Hint != "did you mean edge-a?" || control.ExitCode(err) != control.ExitNotFound {
			t.Errorf("unknown node: %+v", e)
		}
	} else {
		t.Error("edge-b was found")
	}
	var pings []int
	if err := c.Ping(ctx, "edge-a", 3, func(p control.Ping) error { pings = append(pings, p.Seq); return nil }); err != nil || fmt.Sprint(pings) != "[1 2 3]" {
		t.Errorf("ping: %v, %v", pings, err)
	}
	wantCode(t, c.Ping(ctx, "nobody", 1, nil), control.CodeNotFound)
	if tok, err := c.CreateToken(ctx, control.TokenRequest{Uses: 2, Tier: "edge"}); err != nil || tok.Uses != 2 {
		t.Errorf("token: %+v, %v", tok, err)
	}
	if _, err := c.CreateToken(ctx, control.TokenRequest{Tier: "moon"}); err != nil {
		wantCode(t, err, control.CodeInvalid)
	} else {
		t.Error("tier moon was accepted")
	}
	_, err = c.Join(ctx, control.JoinRequest{Token: "used"})
	if wantCode(t, err, control.CodeDenied); control.ExitCode(err) != control.ExitDenied {
		t.Errorf("exit code %d", control.ExitCode(err))
	}
	if l, err := c.Leave(ctx); err != nil || l.ID == "" {
		t.Errorf("leave: %+v, %v", l, err)
	}
	if v, err := c.Version(ctx); err != nil || v.Go == "" {
		t.Errorf("version: %+v, %v", v, err)
	}
	w, err := c.RunWorker(ctx, control.RunRequest{Name: "kv", MemoryLimit: 1 << 20, Args: []string{"tüv", "\n"}}, strings.NewReader("module"), -1)
	if err != nil || w.HomeName != "device" || w.MemoryBytes != 6 {
		t.Errorf("run: %+v, %v", w, err)
	}
	if ws, err := c.Workers(ctx); err != nil || len(ws) != 2 {
		t.Errorf("workers: %+v, %v", ws, err)
	}
	_, err = c.RunWorker(ctx, control.RunRequest{Name: "kv"}, strings.NewReader("module"), 6)
	wantCode(t, err, control.CodeConflict)
	_, err = c.RunWorker(ctx, control.RunRequest{Name: "K V"}, strings.NewReader("module"), 6)
	wantCode(t, err, control.CodeInvalid)

	// Each document on the wire says what it is.
	hc := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	for path, want := range map[string]string{
		"status": "Status", "nodes": "NodeList", "nodes/device": "Node", "workers": "WorkerList",
		"workers/counter": "Worker", "version": "Version", "nothing": "Error", "nodes/x": "Error",
	} {
		resp, err := hc.Get("http://meshnode/v1/" + path)
		if err != nil {
			t.Fatal(err)
		}
		var meta control.Meta
		if err := json.NewDecoder(resp.Body).Decode(&meta); err != nil || meta.Kind != want || meta.APIVersion != control.APIVersion {
			t.Errorf("%s: got %+v, %v, want %s", path, meta, err, want)
		}
		resp.Body.Close()
	}
	for body, want := range map[string]string{
		`{"ttl":1}`:       `unknown field "ttl"`,
		`{"uses":1}{}`:    "goes on after its document",
		`{"uses":"many"}`: "cannot unmarshal",
	} {
		resp, err := hc.Post("http://meshnode/v1/tokens", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(b), strings.ReplaceAll(want, `"`, `\"`)) {
			t.Errorf("%s: got %s %s, want 400 with %q", body, resp.Status, b, want)
		}
	}
}

// repeat yields n zero bytes.
type repeat struct{ n int64 }

func (r *repeat) Read(p []byte) (int, error) {
	if r.n == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), r.n)
	r.n -= n
	return int(n), nil
}

func TestModuleLimit(t *testing.T) {
	m := controltest.New("device")
	c, _ := serve(t, m, "device")
	_, err := c.RunWorker(t.Context(), control.RunRequest{Name: "exact"}, &repeat{control.MaxModuleBytes}, -1)
	if err != nil {
		t.Errorf("a module of exactly the limit: %v", err)
	}
	_, err = c.RunWorker(t.Context(), control.RunRequest{Name: "over"}, &repeat{control.MaxModuleBytes + 1}, -1)
	if e := wantCode(t, err, control.CodeTooLarge); e.Message != "module is over the limit of 64 MiB" {
		t.Errorf("got %q", e.Message)
	}
	_, err = c.PutModule(t.Context(), &repeat{control.MaxModuleBytes + 1}, -1)
	if e := wantCode(t, err, control.CodeTooLarge); e.Message != "module is over the limit of 64 MiB" {
		t.Errorf("put: got %q", e.Message)
	}
	_, err = c.RunWorker(t.Context(), control.RunRequest{Name: "told"}, &repeat{70 << 20}, 70<<20)
	if e := wantCode(t, err, control.CodeTooLarge); e.Message != "module is 70 MiB, the limit is 64 MiB" {
		t.Errorf("got %q", e.Message)
	}
}

func TestNoDaemon(t *testing.T) {
	c := control.NewClient(filepath.Join(t.TempDir(), "none"))
	_, err := c.Status(t.Context())
	if e := wantCode(t, err, control.CodeUnreachable); !strings.Contains(e.Hint, "meshnode up") || control.ExitCode(err) != control.ExitUnreachable {
		t.Errorf("got %+v", e)
	}
	_, err = c.Session(t.Context(), "w")
	wantCode(t, err, control.CodeUnreachable)
}

func TestProxy(t *testing.T) {
	m := controltest.New("device", "edge-a", "edge-b")
	m.Place("counter", "edge-a")
	c, _ := serve(t, m, "device")
	ctx := t.Context()

	w, err := c.Worker(ctx, "counter")
	if err != nil || w.HomeName != "edge-a" {
		t.Fatalf("worker at a peer: %+v, %v", w, err)
	}
	if w, err = c.Pause(ctx, "counter"); err != nil || w.State != control.StatePaused {
		t.Errorf("pause at a peer: %+v, %v", w, err)
	}
	if w, err = c.Resume(ctx, w.ID[:6]); err != nil || w.State != control.StateRunning {
		t.Errorf("resume by id: %+v, %v", w, err)
	}
	_, err = c.Worker(ctx, "conter")
	if e := wantCode(t, err, control.CodeNotFound); e.Hint != "did you mean counter?" {
		t.Errorf("got %+v", e)
	}

	// It moves on while the request is on its way: followed.
	var moves atomic.Int32

	m.BeforeHome = func(string, string) {
		if moves.Add(1) == 1 {
			m.Place("counter", "edge-b")
		}
	}
	if w, err = c.Worker(ctx, "counter"); err != nil || w.HomeName != "edge-b" {
		t.Errorf("moved on the way: %+v, %v", w, err)
	}
	// Located here, gone when asked: passed on.
	m.Place("counter", "device")
	moves.Store(0)
	if w, err = c.Worker(ctx, "counter"); err != nil || w.HomeName != "edge-b" {
		t.Errorf("moved away from here: %+v, %v", w, err)
	}
	// It never stays: given up, not chased for ever.
	m.BeforeHome = func(node, _ string) {
		moves.Add(1)
		if next := "edge-a"; node != next {
			m.Place("counter", next)
		} else {
			m.Place("counter", "edge-b")
		}
	}
	_, err = c.Worker(ctx, "counter")
	wantCode(t, err, control.CodeUnreachable)
	if n := moves.Load(); n > 12 {
		t.Errorf("chased %d times", n)
	}
	m.BeforeHome = nil

	m.Place("counter", "edge-b")
	m.Node("edge-b").Unreachable = true
	_, err = c.Worker(ctx, "counter")
	if e := wantCode(t, err, control.CodeUnreachable); !strings.Contains(e.Message, "no route") {
		t.Errorf("got %+v", e)
	}
}

// TestPeerHandler holds what other nodes may ask to the routes of single
// workers.
func TestPeerHandler(t *testing.T) {
	m := controltest.New("device", "edge-a")
	m.Place("counter", "edge-a")
	t.Cleanup(m.Wait)
	peer := m.Node("device").Peer("edge-a")
	for _, tt := range []struct {
		method, path string
		want         int
	}{
		{"GET", "/v1/workers/counter", 200},
		{"POST", "/v1/workers/counter/pause", 200},
		{"GET", "/v1/workers/nobody", 404},
		{"GET", "/v1/status", 403},
		{"GET", "/v1/workers", 403},
		{"POST", "/v1/workers", 403},
		{"POST", "/v1/tokens", 403},
		{"POST", "/v1/leave", 403},
		{"POST", "/v1/workers/counter/session", 403},
		{"POST", "/v1/workers/counter/call", 403},
		{"POST", "/v1/workers/counter/pin", 200},
		{"GET", "/v1/apps", 403},
		{"POST", "/v1/apps", 403},
		{"POST", "/v1/modules", 403},
		{"GET", "/v1/nodes/edge-a/events", 200},
		{"POST", "/v1/nodes/device/drain", 421}, // it is not asked on behalf of others
		{"POST", "/v1/nodes/device/start", 421},
	} {
		req, err := http.NewRequestWithContext(t.Context(), tt.method, "http://edge-a"+tt.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := peer.RoundTrip(req)
		if err != nil {
			t.Fatalf("%s %s: %v", tt.method, tt.path, err)
		}
		resp.Body.Close()
		if resp.StatusCode != tt.want {
			t.Errorf("%s %s: got %s, want %d", tt.method, tt.path, resp.Status, tt.want)
		}
	}
}

func TestMigrateStreams(t *testing.T) {
	for _, home := range []string{"device", "edge-a"} {
		t.Run("home="+home, func(t *testing.T) {
			m := controltest.New("device", "edge-a", "edge-b")
			m.Place("counter", home)
			step := make(chan struct{}, 1)
			m.Step = step
			c, _ := serve(t, m, "device")
			var phases []string
			step <- struct{}{}
			mig, err := c.Migrate(t.Context(), "counter", control.MigrateRequest{To: "edge-b"}, func(p control.Progress) {
				phases = append(phases, p.Phase)
				if p.Phase != control.PhaseDrain {
					step <- struct{}{} // the next is reported only once this one has arrived
				}
			})
			if err != nil || mig.From != home || mig.To != "edge-b" || mig.Strategy != control.StrategyAuto || mig.Kind != "Migration" {
				t.Errorf("got %+v, %v", mig, err)
			}
			if got := strings.Join(phases, " "); got != "offer prepare freeze commit drain" {
				t.Errorf("phases %q", got)
			}
			m.Step = nil
			p, err := c.Plan(t.Context(), "counter", control.MigrateRequest{To: home})
			if err != nil || p.Kind != "MovePlan" || p.From != "edge-b" || p.To != home || len(p.Predictions) != 1 {
				t.Errorf("plan %+v, %v", p, err)
			}
			_, err = c.Plan(t.Context(), "counter", control.MigrateRequest{To: home, Strategy: "teleport"})
			wantCode(t, err, control.CodeInvalid)
			d, err := c.Files(t.Context(), "counter", "/data")
			if err != nil || d.Kind != "FileList" || len(d.Entries) != 1 || d.Entries[0].Name != "name" || d.More {
				t.Errorf("files %+v, %v", d, err)
			}
			var content strings.Builder
			if err := c.ReadFile(t.Context(), "counter", "/data/name", &content); err != nil || content.String() != "counter" {
				t.Errorf("read %q, %v", &content, err)
			}
			wantCode(t, c.ReadFile(t.Context(), "counter", "/data/none", &content), control.CodeNotFound)
			_, err = c.Files(t.Context(), "counter", "/none")
			wantCode(t, err, control.CodeNotFound)
			w, err := c.SampleWorker(t.Context(), "counter", 1500*time.Microsecond)
			if err != nil || w.HomeName != "edge-b" || w.Activity == nil || w.Activity.SampledMs != 1.5 {
				t.Errorf("sample %+v, %v", w, err)
			}
			_, err = c.SampleWorker(t.Context(), "counter", control.MaxSample+1)
			wantCode(t, err, control.CodeInvalid)
			_, err = c.Migrate(t.Context(), "counter", control.MigrateRequest{To: "edge-c"}, nil)
			wantCode(t, err, control.CodeNotFound)
			for _, req := range []control.MigrateRequest{
				{To: "device", Priority: control.MaxPriority + 1}, {To: "device", Priority: -1},
				{To: "device", RoundsLimitMs: control.MaxRoundsLimitMs + 1}, {To: "device", RoundsLimitMs: -1},
			} {
				if _, err := c.Migrate(t.Context(), "counter", req, nil); !errors.Is(err, &control.Error{Code: control.CodeInvalid}) {
					t.Errorf("%+v: got %v", req, err)
				}
			}
			_, err = c.Migrate(t.Context(), "counter", control.MigrateRequest{To: "device", Strategy: "teleport"}, nil)
			if e := wantCode(t, err, control.CodeInvalid); !strings.Contains(e.Message, "pre-copy, stop-and-copy") {
				t.Errorf("got %+v", e)
			}
		})
	}
}

// TestMigrateGivenUp ends the client in the middle of a move at a peer: the
// peer's context must end.
func TestMigrateGivenUp(t *testing.T) {
	m := controltest.New("device", "edge-a", "edge-b")
	m.Place("counter", "edge-a")
	step := make(chan struct{})
	m.Step = step
	c, _ := serve(t, m, "device")
	ctx, cancel := context.WithCancel(t.Context())
	go func() { step <- struct{}{} }()
	_, err := c.Migrate(ctx, "counter", control.MigrateRequest{To: "edge-b"}, func(control.Progress) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want %v", err, context.Canceled)
	}
	m.Wait() // would hang if the peer went on waiting for steps
	m.Step = nil
	if w, err := c.Worker(t.Context(), "counter"); err != nil || w.HomeName != "edge-a" {
		t.Errorf("after a move given up: %+v, %v", w, err)
	}
}

func TestLogsFollowAMove(t *testing.T) {
	m := controltest.New("device", "edge-a")
	m.Place("counter", "edge-a")
	c, _ := serve(t, m, "device")
	m.Log("counter", "one")
	m.Place("counter", "device")
	m.Log("counter", "two")
	m.Place("counter", "edge-a")
	m.Log("counter", "three")

	var got []string
	err := c.Logs(t.Context(), "counter", false, func(l control.LogLine) error { got = append(got, l.Text); return nil })
	if err != nil || strings.Join(got, " ") != "one three" {
		t.Errorf("logs at home: %q, %v", got, err)
	}
	got = nil
	stop := errors.New("enough")
	err = c.Logs(t.Context(), "counter", true, func(l control.LogLine) error {
		got = append(got, l.Text)
		switch l.Text {
		case "three":
			// device still has "two", from before: not to be told again.
			m.Place("counter", "device")
			m.Log("counter", "four")
		case "four":
			m.Log("counter", "five")
		case "five":
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || strings.Join(got, " ") != "one three four five" {
		t.Errorf("followed: %q, %v", got, err)
	}
}

func TestCallAndSend(t *testing.T) {
	m := controltest.New("device")
	m.NewHandler = func(string) controltest.Handler {
		return func(msg control.Message) control.Reply {
			if string(msg.Payload) == "fail" {
				return control.Reply{Status: 7, Payload: []byte("why")}
			}
			return controltest.Echo(msg)
		}
	}
	m.Place("echo", "device")
	c, socket := serve(t, m, "device")
	ctx := t.Context()
	if r, err := c.Call(ctx, "echo", []byte("hello")); err != nil || string(r.Payload) != "hello" {
		t.Errorf("call: %+v, %v", r, err)
	}
	if r, err := c.Call(ctx, "echo", []byte("fail")); err != nil || r.Status != 7 || string(r.Payload) != "why" {
		t.Errorf("failing call: %+v, %v", r, err)
	}
	if err := c.Send(ctx, "echo", nil); err != nil {
		t.Errorf("send: %v", err)
	}
	big := make([]byte, control.MaxPayloadBytes)
	if r, err := c.Call(ctx, "echo", big); err != nil || len(r.Payload) != len(big) {
		t.Errorf("call with 1 MiB: %d bytes, %v", len(r.Payload), err)
	}
	_, err := c.Call(ctx, "echo", make([]byte, 1468006))
	if e := wantCode(t, err, control.CodeTooLarge); e.Message != "payload is 1.4 MiB, the limit is 1 MiB" {
		t.Errorf("got %q", e.Message)
	}
	_, err = c.Call(ctx, "ecko", nil)
	wantCode(t, err, control.CodeNotFound)

	// The same over plain HTTP, as curl would.
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	resp, err := hc.Post("http://meshnode/v1/workers/echo/call", "", strings.NewReader("fail"))
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if string(b) != "why" || resp.Header.Get("Meshnode-Status") != "7" {
		t.Errorf("call over HTTP: %s %q %v", resp.Status, b, resp.Header)
	}
	resp, err = hc.Post("http://meshnode/v1/workers/echo/send", "", bytes.NewReader(make([]byte, control.MaxPayloadBytes+1)))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("send of too much over HTTP: %s", resp.Status)
	}
	c.Stop(ctx, "echo")
	_, err = c.Call(ctx, "echo", nil)
	wantCode(t, err, control.CodeConflict)
}

// TestSessionPipelines sends many calls before it reads the first reply's
// successor, over a move, and wants every reply in order.
func TestSessionPipelines(t *testing.T) {
	m := controltest.New("device", "edge-a")
	m.Place("echo", "device")
	c, _ := serve(t, m, "device")
	ctx := t.Context()
	s, err := c.Session(ctx, "echo")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const n = 5000
	sent := make(chan error, 1)
	go func() {
		for i := range n {
			msg := control.Message{Call: i%10 != 9, Payload: binary.BigEndian.AppendUint32(nil, uint32(i))}
			if err := s.Send(ctx, msg); err != nil {
				sent <- err
				return
			}
			if i == n/2 {
				m.Place("echo", "edge-a")
			}
		}
		sent <- s.End(ctx)
	}()
	for i := range n {
		r, err := s.Recv(ctx)
		if err != nil || r.Err != nil {
			t.Fatalf("reply %d: %+v, %v", i, r, err)
		}
		if i%10 == 9 {
			if len(r.Payload) != 0 {
				t.Fatalf("send %d was answered with %x", i, r.Payload)
			}
			continue
		}
		if got := binary.BigEndian.Uint32(r.Payload); got != uint32(i) {
			t.Fatalf("reply %d is that to message %d", i, got)
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(ctx); !errors.Is(err, control.ErrSessionDone) {
		t.Errorf("after the last: %v, want %v", err, control.ErrSessionDone)
	}
	if err := s.Send(ctx, control.Message{}); err == nil {
		t.Error("a message was taken after the end")
	}
}

// TestSessionBackPressure pauses the worker: a client that goes on sending is
// stopped, by what the session and the socket hold, and nothing is lost.
func TestSessionBackPressure(t *testing.T) {
	m := controltest.New("device")
	m.Place("echo", "device")
	c, _ := serve(t, m, "device")
	ctx := t.Context()
	if _, err := c.Pause(ctx, "echo"); err != nil {
		t.Fatal(err)
	}
	s, err := c.Session(ctx, "echo")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	payload := make([]byte, 256<<10)
	const n = 400 // 100 MiB
	var count atomic.Int64
	sent := make(chan error, 1)
	go func() {
		for range n {
			if err := s.Send(ctx, control.Message{Call: true, Payload: payload}); err != nil {
				sent <- err
				return
			}
			count.Add(1)
		}
		sent <- s.End(ctx)
	}()
	// The sender is stopped once its count stays the same over many looks.
	waitStill(t, &count, controltest.Window)
	stuck := count.Load()
	if limit := int64(controltest.Window + 40); stuck < controltest.Window || stuck > limit {
		t.Errorf("%d messages were taken from a client whose worker is paused, want %d to %d", stuck, controltest.Window, limit)
	}
	if _, err := c.Resume(ctx, "echo"); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if r, err := s.Recv(ctx); err != nil || len(r.Payload) != len(payload) {
			t.Fatalf("reply %d: %d bytes, %v", i, len(r.Payload), err)
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}

// waitStill returns once v has reached least and not changed for a while: there
// is no event for something that does not happen.
func waitStill(t *testing.T, v *atomic.Int64, least int64) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for last, same := v.Load(), 0; same < 20; {
		<-tick.C
		if now := v.Load(); now != last {
			last, same = now, 0
		} else if last >= least {
			same++
		}
	}
}

func TestSessionEnds(t *testing.T) {
	m := controltest.New("device")
	m.Place("echo", "device")
	c, socket := serve(t, m, "device")
	ctx := t.Context()

	if _, err := c.Session(ctx, "ecko"); err != nil {
		if e := wantCode(t, err, control.CodeNotFound); e.Hint != "did you mean echo?" {
			t.Errorf("got %+v", e)
		}
	} else {
		t.Error("a session to nobody")
	}

	// A worker that ends answers each message with the reason.
	s, err := c.Session(ctx, "echo")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(ctx, control.Message{Payload: make([]byte, control.MaxPayloadBytes+1)}); !errors.Is(err, &control.Error{Code: control.CodeTooLarge}) {
		t.Errorf("too large: %v", err)
	}
	c.Pause(ctx, "echo")
	if err := s.Send(ctx, control.Message{Call: true}); err != nil {
		t.Fatal(err)
	}
	c.Stop(ctx, "echo")
	if r, err := s.Recv(ctx); err != nil || !errors.Is(r.Err, &control.Error{Code: control.CodeConflict}) {
		t.Errorf("call to a stopped worker: %+v, %v", r, err)
	}
	s.Close()

	// A client that goes away while its worker is paused is noticed.
	c.Pause(ctx, "echo")
	s, err = c.Session(ctx, "echo")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Send(ctx, control.Message{Call: true}), s.End(ctx), s.Close()); err != nil {
		t.Fatal(err)
	}

	// So is one that breaks the protocol, and told so.
	for name, bytes := range map[string]string{
		"unknown type": "\x7f\x00\x00\x00\x00",
		"a reply":      "\x11\x00\x00\x00\x04\x00\x00\x00\x00",
		"after end":    "\x03\x00\x00\x00\x00\x03\x00\x00\x00\x00",
	} {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST /v1/workers/echo/session HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: meshnode-session/1\r\n\r\n%s", bytes)
		br := bufio.NewReader(conn)
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("%s: %v, %v", name, resp, err)
		}
		rest, err := io.ReadAll(br)
		if err != nil {
			t.Fatal(err)
		}
		done := name == "after end" && len(rest) == 5 && rest[0] == 0x14 // raced with the end: fine as well
		if !done && (len(rest) == 0 || rest[0] != 0x13 || !strings.Contains(string(rest), "bad session frame")) {
			t.Errorf("%s: got %q, want a closed frame", name, rest)
		}
		conn.Close()
	}
}

// TestSessionCancelled: a context that ends gets Recv and Send out of a
// session that hears nothing.
func TestSessionCancelled(t *testing.T) {
	m := controltest.New("device")
	m.Place("echo", "device")
	c, _ := serve(t, m, "device")
	c.Pause(t.Context(), "echo")
	ctx, cancel := context.WithCancel(t.Context())
	s, err := c.Session(ctx, "echo")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	got := make(chan error, 2)
	go func() { _, err := s.Recv(ctx); got <- err }()
	go func() {
		for {
			if err := s.Send(ctx, control.Message{Call: true, Payload: make([]byte, 512<<10)}); err != nil {
				got <- err
				return
			}
		}
	}()
	cancel()
	for range 2 {
		if err := <-got; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want %v", err, context.Canceled)
		}
	}
}

// TestServeEnds: what is under way when the server ends is told so.
func TestServeEnds(t *testing.T) {
	m := controltest.New("device")
	m.Place("echo", "device")
	socket := filepath.Join(t.TempDir(), "s")
	if len(socket) > 100 {
		t.Skipf("the path %s is too long for a socket", socket)
	}
	l, err := control.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- m.Node("device").Server.Serve(ctx, l) }()
	c := control.NewClient(socket)
	defer c.Close()
	c.Pause(t.Context(), "echo")
	s, err := c.Session(t.Context(), "echo")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Send(t.Context(), control.Message{Call: true}); err != nil {
		t.Fatal(err)
	}
	m.Log("echo", "one")
	logs, following := make(chan error, 1), make(chan struct{})
	go func() {
		logs <- c.Logs(context.Background(), "echo", true, func(control.LogLine) error { close(following); return nil })
	}()
	<-following
	cancel()
	if _, err := s.Recv(t.Context()); !errors.Is(err, &control.Error{Code: control.CodeUnreachable}) || !strings.Contains(err.Error(), "stopping") {
		t.Errorf("session: %v", err)
	}
	if err := <-logs; !errors.Is(err, &control.Error{Code: control.CodeUnreachable}) || !strings.Contains(err.Error(), "stopping") {
		t.Errorf("logs: %v", err)
	}
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
	if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestExitCodes(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("broke"), 1},
		{&control.Error{Code: control.CodeFailed}, 1},
		{&control.Error{Code: control.CodeConflict}, 1},
		{&control.Error{Code: control.CodeInvalid}, 2},
		{&control.Error{Code: control.CodeTooLarge}, 2},
		{fmt.Errorf("wrapped: %w", &control.Error{Code: control.CodeNotFound}), 4},
		{&control.Error{Code: control.CodeUnreachable}, 5},
		{context.DeadlineExceeded, 6},
		{&control.Error{Code: control.CodeTimeout}, 6},
		{&control.Error{Code: control.CodeDenied}, 7},
		{&control.Error{Code: "of-the-future"}, 1},
	} {
		if got := control.ExitCode(tt.err); got != tt.want {
			t.Errorf("%v: exit code %d, want %d", tt.err, got, tt.want)
		}
	}
}

// BenchmarkSession measures what the control socket adds to a call.
func BenchmarkSession(b *testing.B) {
	for _, size := range []int{16, 4 << 10, 64 << 10} {
		b.Run(fmt.Sprintf("payload=%dB/pipelined", size), func(b *testing.B) {
			m := controltest.New("device")
			m.Place("echo", "device")
			c, _ := serve(b, m, "device")
			s, err := c.Session(b.Context(), "echo")
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			payload := make([]byte, size)
			b.SetBytes(int64(size))
			done := make(chan error, 1)
			b.ResetTimer()
			go func() {
				for range b.N {
					if err := s.Send(b.Context(), control.Message{Call: true, Payload: payload}); err != nil {
						done <- err
						return
					}
				}
				done <- nil
			}()
			for range b.N {
				if _, err := s.Recv(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		})
	}
	b.Run("payload=16B/one-by-one", func(b *testing.B) {
		m := controltest.New("device")
		m.Place("echo", "device")
		c, _ := serve(b, m, "device")
		s, err := c.Session(b.Context(), "echo")
		if err != nil {
			b.Fatal(err)
		}
		defer s.Close()
		payload := make([]byte, 16)
		for b.Loop() {
			if err := s.Send(b.Context(), control.Message{Call: true, Payload: payload}); err != nil {
				b.Fatal(err)
			}
			if _, err := s.Recv(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
}
