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

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/placement"
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
	}{{0, 0, 0}, {100, 1000, 0}, {150, 1100, 50}, {250, 1200, 75}, {250, 1300, 38}, {250, 1300, 38}, {0, 0, 38}, {312, 1400, 50}, {10, 20, 50}} {
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

// A node that begins or ceases to work hard says so at its first look, and the
// others then know its load to within a tenth as soon as it is steady again. One
// that goes on as it is says so seldom, and one that changes all the time is held
// back.
func TestVitalsAreToldInTime(t *testing.T) {
	var r mesh.Record
	var use cpuUse
	var busy, all uint64
	now := time.Unix(1e9, 0)
	tell, nodes := newTeller(), 4
	// look goes on for an interval at a load, and reports whether it was told.
	look := func(load uint64) bool {
		now = now.Add(recordInterval)
		busy, all = busy+load, all+100
		v := vitals{free: 4000, load: use.percent(busy, all)}
		due := tell.due(v, &r, nodes, now)
		if due {
			r.MemoryFree, r.Load = v.free, v.load
		}
		return due
	}
	for range 10 {
		look(5)
	}
	told := 0
	for i := range 300 {
		if look(5 + uint64(i%5)) {
			told++
		}
	}
	if told != 10 {
		t.Errorf("told %d times in five minutes that nothing happens, want every %v", told, tellRefresh)
	}
	if !look(95) {
		t.Error("a node under load did not say so at once")
	}
	for range 5 {
		look(95)
	}
	if r.Load < 85 {
		t.Errorf("told of a load of %d %%, it is 95 %%", r.Load)
	}
	for range 5 {
		look(95)
	}
	if !look(0) {
		t.Error("a node that is idle again did not say so at once")
	}
	for _, nodes = range []int{4, 200} {
		told = 0
		const minutes = 10
		for i := range minutes * 60 {
			if look(uint64(i / 2 % 2 * 100)) {
				told++
			}
		}
		most := int(minutes*time.Minute/max(tellChange, time.Duration(nodes)*tellChangeShare)) + tellBurst + 20
		if told > most || told < most/4 {
			t.Errorf("a load that goes up and down was told %d times in %d minutes among %d nodes, at most %d", told, minutes, nodes, most)
		}
	}
}

func TestVitalsDiffer(t *testing.T) {
	r := mesh.Record{MemoryFree: 4000, Load: 50, Uplink: 1000, Downlink: 1000}
	same := vitals{free: 4000, load: 50, up: 1000, down: 1000}
	for _, c := range []struct {
		name   string
		change func(*vitals)
		want   bool
	}{
		{"nothing", func(*vitals) {}, false},
		{"a little of all", func(v *vitals) { v.free, v.load, v.up, v.down = 3800, 58, 1100, 900 }, false},
		{"memory", func(v *vitals) { v.free = 3000 }, true},
		{"load", func(v *vitals) { v.load = 40 }, true},
		{"uplink", func(v *vitals) { v.up = 2000 }, true},
		{"downlink", func(v *vitals) { v.down = 500 }, true},
	} {
		v := same
		c.change(&v)
		if got := v.differ(&r); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
	if first := (vitals{up: 1}); !first.differ(&mesh.Record{}) {
		t.Error("a first rate is nothing new")
	}
}

// A node's place and rates reach the placement view as they are, and no place
// is none there too.
func TestPlacementNodeHasPlace(t *testing.T) {
	heard := time.Unix(1e9, 0)
	m := mesh.Member{ID: "a", Heard: heard, Record: mesh.Record{
		Uplink: 1000, Downlink: 2000,
		Coordinate: mesh.Coordinate{Vec: [mesh.Dimensions]float64{0.01, -0.02, 0.03}, Height: 0.004, Adjustment: 0.001, Error: 0.2},
	}}
	n := &Node{}
	got := n.placementNode(m, heard.Add(time.Second))
	want := placement.Coordinate{Vec: [placement.Dimensions]float64{0.01, -0.02, 0.03}, Height: 0.004, Adjustment: 0.001, Error: 0.2}
	stamp := placement.Stamp{At: heard, From: placement.Claimed}
	if got.Coordinate != want || got.CoordinateAt != stamp {
		t.Errorf("coordinate %+v at %v, want %+v at %v", got.Coordinate, got.CoordinateAt, want, stamp)
	}
	if got.Uplink != 1000<<10 || got.Downlink != 2000<<10 || got.LinkAt != stamp {
		t.Errorf("rates %v and %v at %v", got.Uplink, got.Downlink, got.LinkAt)
	}
	if got := n.placementNode(mesh.Member{ID: "b"}, heard); got.Coordinate != (placement.Coordinate{}) || got.CoordinateAt != (placement.Stamp{}) {
		t.Errorf("a node without a place is at %+v", got.Coordinate)
	}
}
