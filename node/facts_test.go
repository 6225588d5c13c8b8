package node

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"meshnode/node/control"
)

func ptr[T any](v T) *T { return &v }

func TestFactsPersist(t *testing.T) {
	dir, flags := t.TempDir(), map[string]string{"zone": "berlin", "rack": "7"}
	f, err := loadFacts(dir, flags)
	if err != nil {
		t.Fatal(err)
	}
	err = f.change(control.NodeSettings{Cordoned: ptr(true), Labels: map[string]*string{"zone": ptr("potsdam"), "rack": nil, "gpu": ptr("")}})
	if err != nil {
		t.Fatal(err)
	}
	again, err := loadFacts(dir, flags)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"zone": "potsdam", "gpu": ""}
	if got := again.labels(); !again.cordoned() || !reflect.DeepEqual(got, want) {
		t.Errorf("after a restart: cordoned %v, labels %v, want %v", again.cordoned(), got, want)
	}
	if flags["zone"] != "berlin" {
		t.Error("the flags were changed")
	}

	// What is refused changes nothing, neither here nor on disk.
	for _, bad := range []map[string]*string{
		{"-x": ptr("y")}, {strings.Repeat("k", 64): ptr("y")}, {"x": ptr(strings.Repeat("v", maxLabelValue+1))}, {"x": ptr("a\nb")}, {"ü": nil},
	} {
		var e *control.Error
		if err := again.change(control.NodeSettings{Cordoned: ptr(false), Labels: bad}); !errors.As(err, &e) || e.Code != control.CodeInvalid {
			t.Errorf("%v: %v", bad, err)
		}
	}
	many := make(map[string]*string)
	for i := range maxLabels {
		many[string(rune('a'+i%26))+strings.Repeat("b", i/26)+"c"] = ptr("")
	}
	if err := again.change(control.NodeSettings{Labels: many}); err == nil {
		t.Error("too many labels were taken")
	}
	if third, err := loadFacts(dir, flags); err != nil || !reflect.DeepEqual(third.labels(), want) {
		t.Errorf("after refusals: %v, %v", third, err)
	}

	for _, text := range []string{"{", `{"version":2}`, strings.Repeat("x", maxSmall+1)} {
		if err := os.WriteFile(filepath.Join(dir, operatorFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := loadFacts(dir, nil); err == nil {
			t.Errorf("%.20q was taken", text)
		}
	}
}

func TestCPUUse(t *testing.T) {
	var u cpuUse
	for _, step := range []struct {
		busy, all uint64
		want      uint8
	}{{0, 0, 0}, {100, 1000, 0}, {150, 1100, 50}, {250, 1200, 75}, {250, 1300, 38}, {250, 1300, 38}, {10, 20, 38}} {
		if got := u.percent(step.busy, step.all); got != step.want {
			t.Errorf("after %d of %d: %d%%, want %d%%", step.busy, step.all, got, step.want)
		}
	}
}

// TestConfigure cordons and labels one node from another.
func TestConfigure(t *testing.T) {
	nodes := startNodes(t, 2)
	a, b := nodes[0], nodes[1]
	ctx := t.Context()
	w := a.run(t, app(t, "counter"), control.RunRequest{Name: "counter"})
	got, err := a.client.Configure(ctx, b.name(), control.NodeSettings{Cordoned: ptr(true), Labels: map[string]*string{"zone": ptr("berlin")}})
	if err != nil || !got.Cordoned || got.Labels["zone"] != "berlin" || got.ID != string(b.id) {
		t.Fatalf("got %+v, %v", got, err)
	}
	waitFor(t, "the news", func() bool {
		n, err := a.client.Node(ctx, b.name())
		return err == nil && n.Cordoned && n.Labels["zone"] == "berlin" && n.AgeMs > 0
	})
	_, err = a.client.Migrate(ctx, w.Name, control.MigrateRequest{To: b.name()}, func(control.Progress) {})
	if err == nil || !strings.Contains(err.Error(), "cordoned") {
		t.Errorf("moved to a cordoned node: %v", err)
	}
	if got, err := a.client.Worker(ctx, w.Name); err != nil || got.Home != string(a.id) || got.State != control.StateRunning {
		t.Errorf("after the refusal: %+v, %v", got, err)
	}
	if _, err := b.client.Configure(ctx, b.name(), control.NodeSettings{Cordoned: ptr(false)}); err != nil {
		t.Fatal(err)
	}
	if _, err = a.client.Migrate(ctx, w.Name, control.MigrateRequest{To: b.name()}, func(control.Progress) {}); err != nil {
		t.Errorf("moved to a node that was opened again: %v", err)
	}
	var e *control.Error
	if _, err := a.client.Configure(ctx, b.name(), control.NodeSettings{}); !errors.As(err, &e) || e.Code != control.CodeInvalid {
		t.Errorf("settings that change nothing: %v", err)
	}
}

func FuzzParseCapabilities(f *testing.F) {
	good, err := json.Marshal(capabilities{
		Kind: "Capabilities", OS: "linux", Cores: 2, Speed: 10000, SpeedAt: time.Unix(1, 0).UTC(), Labels: map[string]string{"zone": "berlin"},
		Interfaces: []string{"camera"}, Promises: &control.Promises{AccessMs: 2},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"kind":"Capabilities","labels":{"":""}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseCapabilities(b)
		if err != nil {
			return
		}
		again, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		d, err := parseCapabilities(again)
		if err != nil {
			t.Fatal(err)
		}
		if twice, _ := json.Marshal(d); string(twice) != string(again) {
			t.Errorf("%s became %s", again, twice)
		}
	})
}
