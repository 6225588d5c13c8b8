package node

import (
	"bytes"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"meshnode/node/control"
	"meshnode/placement"
)

// TestAppState takes what travels with a worker to another node: manifest and
// pin stay, the stay begins anew, and the move is counted where it was the
// worker's own.
func TestAppState(t *testing.T) {
	app, err := parseManifest("", zoned("berlin", ""))
	if err != nil {
		t.Fatal(err)
	}
	for _, own := range []bool{true, false} {
		var here, there placed
		here.init(spec{Name: "counter"})
		there.init(spec{Name: "counter"})
		here.set(app, app.Effective())
		here.pinned, here.own = true, own
		now := time.Unix(1000, 0)
		here.state = placement.State{Since: now.Add(-time.Minute), Previous: "b", Moves: []time.Time{now.Add(-time.Minute)}}
		b, err := encMode.Marshal(here.pack(now))
		if err != nil {
			t.Fatal(err)
		}
		var a appState
		if err := decMode.Unmarshal(b, &a); err != nil {
			t.Fatal(err)
		}
		got, err := a.parse()
		if err != nil {
			t.Fatal(err)
		}
		// The clocks of the two differ.
		later := time.Unix(9000, 0)
		there.arrived(a, got, later, "a", "b")
		st := there.state
		moves := 1
		if own {
			moves = 2
		}
		if !there.pinned || there.appName() != "counter" || !bytes.Equal(there.text, here.text) || st.Since != later || st.Previous != "a" || len(st.Moves) != moves {
			t.Errorf("own %v: arrived as %+v, %+v", own, &there, st)
		}
		if !st.Moves[0].Equal(later.Add(-time.Minute)) {
			t.Errorf("an earlier move was at %v, want a minute ago", st.Moves[0])
		}
	}
}

func FuzzAppState(f *testing.F) {
	app, err := parseManifest("", zoned("berlin", ""))
	if err != nil {
		f.Fatal(err)
	}
	for _, a := range []appState{
		{}, {Version: appStateVersion, Manifest: app.Effective(), Pinned: true, Auto: true, CPU: 0.5, Speed: 1000},
		{Version: 2}, {Version: 1, CPU: math.NaN()}, {Version: 1, Manifest: []byte(strings.Repeat("#", maxManifest+1))},
		{Version: 1, State: placement.PackedState{Since: -1, Moves: []time.Duration{time.Second, -time.Second}}},
	} {
		b, err := encMode.Marshal(a)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var a appState
		if decMode.Unmarshal(b, &a) != nil {
			return
		}
		app, err := a.parse()
		if err != nil {
			return
		}
		if a.Version > appStateVersion || !(a.CPU >= 0 && a.CPU <= maxCores) || (app == nil) != (len(a.Manifest) == 0) {
			t.Errorf("accepted %+v", a)
		}
		var p placed
		p.init(spec{Name: "x"})
		p.arrived(a, app, time.Unix(1000, 0), "a", "b")
	})
}

// TestReserveRoom promises room to a crowd that arrives at the same time: no
// more of it than there is, and what does not come gives its room back.
func TestReserveRoom(t *testing.T) {
	n := &Node{
		guards: new(guards),
		cfg:    Config{WorkerMemory: 300 << 20},
		said:   &facts{},
		book:   placement.NewReservations(reserveMost, reserveFor),
		booked: make(map[string]float64),
	}
	if total, free := n.memory(); total != 300<<20 || free != total {
		t.Skipf("this machine has %d bytes free", free)
	}
	a := appState{Auto: true}
	for _, id := range []string{"a", "b"} {
		if err := n.reserveRoom(id, &a, 128<<20); err != nil {
			t.Fatal(err)
		}
	}
	err := n.reserveRoom("c", &a, 128<<20)
	if !errors.Is(err, &control.Error{Code: control.CodeConflict}) || !strings.Contains(err.Error(), "no room") {
		t.Fatalf("a third: %v", err)
	}
	n.releaseRoom("a", false)
	if err := n.reserveRoom("c", &a, 128<<20); err != nil {
		t.Fatal(err)
	}
	n.releaseRoom("c", false)
	n.releaseRoom("b", true)
	// CPU counts too: all cores but a tenth, at the speed of those here.
	n.said.setSpeed(calibration{Speed: 1000})
	busy := appState{Auto: true, CPU: 1000, Speed: 10}
	if err := n.reserveRoom("d", &busy, 1<<20); err == nil || !strings.Contains(err.Error(), "cores") {
		t.Errorf("a worker that needs ten cores of these for each of its own: %v", err)
	}
	n.load = 1
	some := appState{Auto: true, CPU: 0.1, Speed: 1000}
	if err := n.reserveRoom("e", &some, 1<<20); err == nil {
		t.Error("a busy node took another")
	}
	n.load = 0
	if err := n.reserveRoom("e", &some, 1<<20); err != nil {
		t.Error(err)
	}
	if got := n.bookedLoad(); got <= 0 {
		t.Errorf("the load that was promised is %v", got)
	}
}
