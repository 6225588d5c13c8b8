package node

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"meshnode/mesh"
	"meshnode/node/runner"
	"meshnode/placement/manifest"
)

func TestParseInterface(t *testing.T) {
	for _, test := range []struct {
		in, file, command, wrong string
	}{
		{in: "camera"},
		{in: "location=file:/run/a=b", file: "/run/a=b"},
		{in: "location=exec:gpspipe -w  -n 1", command: "gpspipe|-w|-n|1"},
		{in: "", wrong: "host interface"},
		{in: "two words=file:/x", wrong: "two words"},
		{in: "camera=/dev/video0", wrong: "sources are file:PATH and exec:COMMAND"},
		{in: "camera=", wrong: "sources are"},
		{in: "camera=file:", wrong: "no path or command behind file"},
		{in: "camera=exec: ", wrong: "no path or command behind exec"},
	} {
		f, err := ParseInterface(test.in)
		if test.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), test.wrong) {
				t.Errorf("%q: %v, want %q", test.in, err, test.wrong)
			}
			continue
		}
		name, _, _ := strings.Cut(test.in, "=")
		if err != nil || f.Name != name || f.File != test.file || strings.Join(f.Command, "|") != test.command {
			t.Errorf("%q: %+v, %v", test.in, f, err)
		}
	}
}

// wants checks a reading or an error.
func wants(t *testing.T, what string, data []byte, err error, want, wrong string) {
	t.Helper()
	if wrong != "" {
		if err == nil || !strings.Contains(err.Error(), wrong) {
			t.Errorf("%s: %.80q, %v, want %q", what, data, err, wrong)
		}
	} else if err != nil || string(data) != want {
		t.Errorf("%s: %.80q, %v, want %q", what, data, err, want)
	}
}

func TestReadFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "location")
	read := func(path string) ([]byte, error) {
		return sources([]Interface{{Name: "location", File: path}})["location"].read(t.Context())
	}
	write := func(n int) {
		if err := os.WriteFile(path, bytes.Repeat([]byte("x"), n), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, err := read(path)
	wants(t, "no file", nil, err, "", "location")
	write(runner.MaxReading)
	data, err := read(path)
	wants(t, "the largest", data, err, strings.Repeat("x", runner.MaxReading), "")
	write(runner.MaxReading + 1)
	data, err = read(path)
	wants(t, "too large", data, err, "", "larger than a reading may be")
	data, err = read(dir)
	wants(t, "a directory", data, err, "", "no regular file")
}

func TestReadCommand(t *testing.T) {
	sh, err := os.Stat("/bin/sh")
	if err != nil || sh.IsDir() {
		t.Skip("no /bin/sh here to run")
	}
	dir := t.TempDir()
	read := func(words ...string) ([]byte, error) {
		return sources([]Interface{{Name: "c", Command: words}})["c"].read(t.Context())
	}
	data, err := read("/bin/sh", "-c", "printf '52.5 13.4'")
	wants(t, "a command", data, err, "52.5 13.4", "")
	data, err = read("/bin/sh", "-c", "exit 3")
	wants(t, "one that fails", data, err, "", "exit status 3")
	data, err = read("/bin/sh", "-c", "while :; do echo too much; done")
	wants(t, "one that says too much", data, err, "", "wrote more than the 65536 bytes that it may")
	data, err = read("/bin/sh", "-c", "sleep 1000")
	wants(t, "one that does not end", data, err, "", "took longer than 1s")
	data, err = read(filepath.Join(dir, "none"))
	wants(t, "none", data, err, "", "none")

	// Who asks while it runs is served by the same run, or by one more.
	count := filepath.Join(dir, "count")
	s := sources([]Interface{{Name: "c", Command: []string{"/bin/sh", "-c", "echo run >>" + count + "; sleep 0.2; echo done"}}})["c"]
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			data, err := s.read(t.Context())
			wants(t, "one of many", data, err, "done\n", "")
		})
	}
	wg.Wait()
	if b, err := os.ReadFile(count); err != nil || bytes.Count(b, []byte("run")) > 5 {
		t.Errorf("20 readers at once: %d runs, %v", bytes.Count(b, []byte("run")), err)
	}
}

// A worker reads what its manifest names, and where it is read stays with it.
func TestWorkerReads(t *testing.T) {
	path := filepath.Join(t.TempDir(), "location")
	if err := os.WriteFile(path, []byte("here"), 0o600); err != nil {
		t.Fatal(err)
	}
	n := &Node{id: mesh.NodeID(newID()), log: slog.New(slog.DiscardHandler), ctx: t.Context()}
	n.cfg.Name = "home"
	n.cfg.Interfaces = []Interface{{Name: "location", File: path}, {Name: "camera"}, {Name: "secret", File: path}}
	n.sources = sources(n.cfg.Interfaces)
	w := n.newWorker(spec{ID: newID(), Name: "w", MemoryLimit: wasmPage}, 1, nil, newLogRing())
	app := manifest.New("w", strings.Repeat("0", 64))
	app.Placement.Interfaces = []manifest.Interface{
		{Name: "location", Access: manifest.Proxy}, {Name: "camera", Access: manifest.Pin},
	}
	w.place.set(app, app.Effective())
	w.bindHere(app)
	if err := n.hasPinned(app); err != nil {
		t.Error(err)
	}
	if err := (&Node{}).hasPinned(app); err == nil || !strings.Contains(err.Error(), "camera") {
		t.Errorf("a node without a camera: %v", err)
	}

	data, err := w.readInterface(t.Context(), "location")
	wants(t, "its own", data, err, "here", "")
	_, err = w.readInterface(t.Context(), "camera")
	wants(t, "a name alone", nil, err, "", "was not told how to read it")
	if _, err := w.readInterface(t.Context(), "secret"); !errors.Is(err, runner.ErrUndeclared) {
		t.Errorf("what the manifest does not name: %v", err)
	}
	w.reads.handled()
	w.reads.handled()
	if uses := w.usesOf(); len(uses) != 1 || uses[0].Name != "location" || uses[0].PerEvent != 0.5 || string(uses[0].At) != string(n.id) {
		t.Errorf("uses %+v", uses)
	}
	list := w.interfaces()
	if len(list) != 2 || list[0].NodeName != "home" || list[0].Reads != 1 || list[1].Failed != 1 || list[1].Error == "" {
		t.Errorf("shown as %+v", list)
	}

	// It takes along where it reads, and nothing that breaks the rules.
	bound := w.reads.bound()
	if len(bound) != 1 || bound[0] != (boundInterface{"location", n.id}) {
		t.Errorf("takes along %+v", bound)
	}
	var next reads
	next.bind(bound)
	if got := next.bound(); len(got) != 1 || got[0] != bound[0] {
		t.Errorf("arrived with %+v", got)
	}
	for _, bad := range [][]boundInterface{
		make([]boundInterface, maxBound+1), {{"location", "nobody"}}, {{"two words", n.id}},
	} {
		if a := (appState{Interfaces: bad}); checkBound(bad) == nil {
			t.Errorf("%+v was accepted", a)
		} else if _, err := a.parse(); err == nil {
			t.Errorf("%+v was taken", a)
		}
	}
}

// A worker whose interface does not answer waits once, not in every event.
func TestSlowInterface(t *testing.T) {
	if _, err := os.Stat("/bin/sh"); err != nil {
		t.Skip("no /bin/sh here to run")
	}
	n := &Node{id: mesh.NodeID(newID()), log: slog.New(slog.DiscardHandler), ctx: t.Context()}
	n.cfg.Interfaces = []Interface{{Name: "slow", Command: []string{"/bin/sh", "-c", "sleep 1000"}}}
	n.sources = sources(n.cfg.Interfaces)
	w := n.newWorker(spec{ID: newID(), Name: "w", MemoryLimit: wasmPage}, 1, nil, newLogRing())
	app := manifest.New("w", strings.Repeat("0", 64))
	app.Placement.Interfaces = []manifest.Interface{{Name: "slow", Access: manifest.Pin}}
	w.place.set(app, app.Effective())
	_, err := w.readInterface(context.Background(), "slow")
	wants(t, "the first read", nil, err, "", "took longer than")
	w.reads.mu.Lock()
	resting := !w.reads.of["slow"].rest.IsZero()
	w.reads.of["slow"].rest = w.reads.of["slow"].rest.Add(interfaceTime * 1000)
	w.reads.mu.Unlock()
	_, err = w.readInterface(context.Background(), "slow")
	wants(t, "the next", nil, err, "", "the last read took too long")
	if !resting {
		t.Error("it does not rest")
	}
}

// FuzzInterfaceFrames: whatever a peer writes, reading it ends with a frame
// within the limits or an error.
func FuzzInterfaceFrames(f *testing.F) {
	for _, v := range []any{interfaceAsk{Name: "location"}, interfaceAnswer{Data: []byte("x")}, interfaceAnswer{Error: "no"}} {
		var b bytes.Buffer
		if err := mesh.WriteMessage(&b, v); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var ask interfaceAsk
		if mesh.ReadMessage(bytes.NewReader(b), maxInterfaceAsk, &ask) == nil {
			n := &Node{sources: map[string]*source{}}
			if _, err := n.readHost(t.Context(), ask.Name); err == nil {
				t.Fatalf("a node without interfaces read %q", ask.Name)
			}
		}
		var a interfaceAnswer
		if mesh.ReadMessage(bytes.NewReader(b), maxInterfaceAnswer, &a) == nil && len(a.Data) > maxInterfaceAnswer {
			t.Fatalf("a reading of %d bytes", len(a.Data))
		}
	})
}
