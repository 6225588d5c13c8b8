package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"meshnode/e2e/apps/physics/proto"
	"meshnode/node/control"
	"meshnode/node/control/controltest"
)

// A world answers as the physics app does. Its state is all the inputs it has
// had.
type world struct {
	tick  uint64
	state [32]byte
}

func (w *world) handle(m control.Message) control.Reply {
	if i, err := proto.ParseInit(m.Payload); err == nil {
		*w = world{state: sha256.Sum256(i.Append(nil))}
		return control.Reply{Payload: proto.AppendReply(nil, 0, nil, false)}
	}
	var t proto.Tick
	if err := t.Parse(m.Payload); err != nil {
		return control.Reply{Status: 1, Payload: []byte(err.Error())}
	}
	if t.Steps > 0 {
		w.state = sha256.Sum256(append(w.state[:], m.Payload...))
		w.tick += uint64(t.Steps)
	}
	var digest *[32]byte
	if t.Digest {
		d := w.state
		digest = &d
	}
	b := proto.AppendReply(nil, w.tick, digest, t.Frame)
	if t.Frame {
		b = proto.AppendFrame(b, w.tick, 1, 0)
	}
	return control.Reply{Payload: b}
}

// runDemo runs what the demo does once its nodes are there, on a mesh in
// memory.
func runDemo(t *testing.T, newWorld func(worker string) controltest.Handler) (control.Demo, error) {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t) })
	dir, err := os.MkdirTemp("", "mn")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m := controltest.New("cloud", "device", "edge-a", "edge-b")
	m.NewHandler = newWorld
	ctx, cancel := context.WithCancel(context.Background())
	clients := make(demoMesh)
	served := make(chan error)
	for _, name := range []string{"cloud", "device", "edge-a", "edge-b"} {
		l, err := control.Listen(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		go func() { served <- m.Node(name).Server.Serve(ctx, l) }()
		clients[name] = control.NewClient(filepath.Join(dir, name))
	}
	t.Cleanup(func() {
		clients.close()
		cancel()
		for range clients {
			if err := <-served; err != nil {
				t.Error(err)
			}
		}
		m.Wait()
	})
	module := filepath.Join(dir, "physics.wasm")
	if err := os.WriteFile(module, []byte("\x00asm"), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	d := demo{app: &app{stderr: &log}, bodies: 8, hopTicks: 3, module: module, line: newLiveLine(&log), begin: time.Now()}
	return d.measure(t.Context(), clients)
}

func TestDemoMeasures(t *testing.T) {
	got, err := runDemo(t, func(string) controltest.Handler { return new(world).handle })
	if err != nil {
		t.Fatal(err)
	}
	if !got.StateEqual || got.Digest != got.Reference || len(got.Digest) != 64 {
		t.Errorf("the states differ: %s, %s", got.Digest, got.Reference)
	}
	var route []string
	for _, h := range got.Hops {
		route = append(route, h.From+">"+h.To)
		if h.BlackoutMs != 5 || h.TotalMs != 50 || h.BytesOnWire != 4096 || h.PagesDemanded != 1 {
			t.Errorf("hop %+v does not say what the migration did", h)
		}
	}
	if want := "device>edge-a edge-a>edge-b edge-b>cloud cloud>device"; strings.Join(route, " ") != want {
		t.Errorf("route %s, want %s", strings.Join(route, " "), want)
	}
	if got.Ticks < 5*3 {
		t.Errorf("%d steps, want at least 15", got.Ticks)
	}
	var out bytes.Buffer
	demoTable(&out, got)
	if !strings.Contains(out.String(), "equal in every bit") {
		t.Errorf("the table says:\n%s", out.String())
	}
	b, err := json.Marshal(got)
	if err != nil || !strings.Contains(string(b), `"stateEqual":true`) {
		t.Errorf("JSON: %s, %v", b, err)
	}
}

// TestDemoSeesDifferentStates: one lost input must not go by unnoticed.
func TestDemoSeesDifferentStates(t *testing.T) {
	got, err := runDemo(t, func(worker string) controltest.Handler {
		w := new(world)
		return func(m control.Message) control.Reply {
			if worker == demoWorker && w.tick == 7 {
				w.state[0] ^= 1
			}
			return w.handle(m)
		}
	})
	if err != nil || got.StateEqual || got.Digest == got.Reference {
		t.Errorf("a worker with a flipped bit: %+v, %v", got, err)
	}
	var out bytes.Buffer
	demoTable(&out, got)
	if !strings.Contains(out.String(), "DIFFERENT") {
		t.Errorf("the table says:\n%s", out.String())
	}
}

// TestDemoSeesLostSteps: a reply out of turn ends the demo.
func TestDemoSeesLostSteps(t *testing.T) {
	_, err := runDemo(t, func(string) controltest.Handler {
		w := new(world)
		return func(m control.Message) control.Reply {
			if w.tick == 7 {
				w.tick++
			}
			return w.handle(m)
		}
	})
	if err == nil || !strings.Contains(err.Error(), "step 8 was answered as step 9") {
		t.Errorf("got %v", err)
	}
}

func TestDemoSeesFailures(t *testing.T) {
	_, err := runDemo(t, func(string) controltest.Handler {
		w := new(world)
		return func(m control.Message) control.Reply {
			if w.tick == 7 {
				return control.Reply{Err: &control.Error{Code: control.CodeFailed, Message: "out of memory"}}
			}
			return w.handle(m)
		}
	})
	if !errors.Is(err, &control.Error{Code: control.CodeFailed}) || !strings.Contains(err.Error(), "step 8: out of memory") {
		t.Errorf("got %v", err)
	}
}

// TestInputsRepeat: two runs get the same inputs, and each step its own.
func TestInputsRepeat(t *testing.T) {
	pushes, explosions := 0, 0
	for i := range 1000 {
		a, b := physicsTick(i, 512), physicsTick(i, 512)
		if !bytes.Equal(a, b) {
			t.Fatalf("step %d differs from itself", i)
		}
		var tick proto.Tick
		if err := tick.Parse(a); err != nil || tick.Steps != 1 || !tick.Frame {
			t.Fatalf("step %d: %+v, %v", i, tick, err)
		}
		for _, in := range tick.Inputs {
			switch in.Kind {
			case proto.Push:
				pushes++
			case proto.Explode:
				explosions++
			}
			if in.Cube >= 512 {
				t.Fatalf("step %d pushes cube %d of 512", i, in.Cube)
			}
		}
	}
	if pushes != 100 || explosions == 0 {
		t.Errorf("%d pushes and %d explosions in 1000 steps", pushes, explosions)
	}
}

func TestLiveLine(t *testing.T) {
	var b bytes.Buffer
	l := &liveLine{w: &b, width: 10}
	l.set("█████ and more than fits")
	l.set("short")
	l.clear()
	l.clear()
	if got, want := b.String(), "\r█████ and\x1b[K\rshort\x1b[K\r\x1b[K"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	b.Reset()
	l = newLiveLine(&b)
	l.set("not a terminal")
	l.clear()
	if b.Len() != 0 {
		t.Errorf("off a terminal: %q", b.String())
	}
}

func TestProgressText(t *testing.T) {
	p := control.Progress{
		Phase: control.PhaseDrain, ElapsedMs: 820, PagesTotal: 1000, PagesPushed: 480, PagesDemanded: 20,
		BytesOnWire: 2 << 20, BlackoutMs: 4.2,
	}
	if got, want := progressText(p), "drain    820 ms  ██████████░░░░░░░░░░  50%  480 pages sent, 20 demanded, 2 MiB, blackout 4.20 ms"; got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}
