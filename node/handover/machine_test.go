package handover

import (
	"flag"
	"fmt"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// The machines start nothing.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Run the wide bounds with: go test ./node/handover -run Explore -v -timeout 2h -args -long
// That is some 15 million states and takes ten minutes or more.
var long = flag.Bool("long", false, "explore the hand-over within wide bounds")

// String names what is not zero.
func (b bounds) String() string {
	var out []string
	for _, f := range []struct {
		n    string
		have int
	}{
		{"loss", b.loss}, {"copy", b.dup}, {"source-crash", b.srcCrash}, {"destination-crash", b.dstCrash},
		{"cut", b.cut}, {"cancel", b.cancel}, {"abandon", b.abandon}, {"fault", b.fault}, {"disk", b.disk},
	} {
		if f.have > 0 {
			out = append(out, fmt.Sprintf("%s=%d", f.n, f.have))
		}
	}
	if b.files {
		out = append(out, "files")
	}
	if b.onward {
		out = append(out, "onward")
	}
	if len(out) == 0 {
		return "nothing-fails"
	}
	return strings.Join(out, ",")
}

var variants = []struct {
	name     string
	strategy Strategy
	paging   bool
}{
	{"post-copy", PostCopy, true},
	{"post-copy-without-paging", PostCopy, false},
	{"stop-and-copy", StopAndCopy, true},
	{"hybrid", Hybrid, true},
}

// TestExplore visits every state within each of the bounds. Messages arrive in
// any order whatever, deadlines pass at any time, and a crash may come between
// any two actions.
func TestExplore(t *testing.T) {
	if testing.Short() {
		t.Skip("a minute of one processor, and nothing in it runs concurrently")
	}
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	all := []bounds{
		{},
		{loss: 2, dup: 1},
		{loss: 1, srcCrash: 1},
		{loss: 1, dstCrash: 1},
		{srcCrash: 1, dstCrash: 1},
		{cut: 1, cancel: 1},
		{fault: 1, disk: 1, cancel: 1, abandon: 1},
		{srcCrash: 1, fault: 1},
		{dstCrash: 1, fault: 1},
		{srcCrash: 1, disk: 1},
		{dstCrash: 1, disk: 1},
		{cut: 1, onward: true},
		{srcCrash: 1, onward: true},
		{dstCrash: 1, onward: true},
		{files: true, loss: 1},
		{files: true, srcCrash: 1},
		{files: true, dstCrash: 1},
		{files: true, cut: 1},
	}
	switch {
	case *long:
		all = append(all,
			bounds{loss: 2, dup: 2},
			bounds{loss: 2, dup: 1, srcCrash: 1},
			bounds{loss: 2, dup: 1, dstCrash: 1},
			bounds{loss: 1, srcCrash: 1, dstCrash: 1},
			bounds{loss: 1, cut: 1, cancel: 1, onward: true},
			bounds{cut: 2},
			bounds{srcCrash: 2, dstCrash: 1},
			bounds{srcCrash: 1, dstCrash: 2},
			bounds{srcCrash: 1, dstCrash: 1, disk: 1, fault: 1},
			bounds{srcCrash: 1, dstCrash: 1, cut: 1},
			bounds{srcCrash: 1, dstCrash: 1, onward: true, loss: 1},
			bounds{dup: 1, dstCrash: 1, onward: true},
			bounds{files: true, srcCrash: 1, dstCrash: 1},
			bounds{files: true, srcCrash: 1, disk: 1},
			bounds{files: true, fault: 1, cut: 1, onward: true},
		)
	case testing.Short() || raceEnabled:
		all = []bounds{{loss: 1}, {dstCrash: 1}, {disk: 1}, {onward: true}, {files: true, srcCrash: 1}}
	}
	states, edges := 0, 0
	begin := time.Now()
	for _, b := range all {
		for _, v := range variants {
			if !v.paging && b != all[0] && b != all[1] && !*long {
				continue // the same as stop-and-copy but for one flag in ACCEPT
			}
			if b.files && (!v.paging || v.strategy == StopAndCopy) {
				continue // files come with the memory, before COMMIT
			}
			b.strategy, b.paging = v.strategy, v.paging
			t.Run(v.name+"/"+b.String(), func(t *testing.T) {
				start := time.Now()
				st, bad := explore(b)
				if bad != "" {
					t.Fatal(bad)
				}
				t.Logf("%d states, %d edges, ends %v, %v", st.states, st.edges, st.outcomes, time.Since(start).Round(time.Millisecond))
				states += st.states
				edges += st.edges
			})
		}
	}
	t.Logf("in all %d states, %d edges, %v", states, edges, time.Since(begin).Round(time.Millisecond))
}

// TestExploreFinds checks the explorer: machines with a bug each, which it must
// find, and by the right name.
func TestExploreFinds(t *testing.T) {
	const pc, sc = PostCopy, StopAndCopy
	for _, c := range []struct {
		bounds
		m    mutant
		want []string // any of
	}{
		{bounds{strategy: pc, paging: true}, mutant{name: "the source thaws when COMMIT is not answered in time",
			src: func(s *Source, ev Event, now time.Time) []Action {
				if _, ok := ev.(Tick); ok && s.phase == SourceCommitting {
					return s.abort(CodeTimeout, "no answer", "", now)
				}
				return s.Handle(ev, now)
			}}, []string{"thaw in epoch N+0 after COMMIT left"}},
		{bounds{strategy: pc, paging: true, cut: 1}, mutant{name: "the source thaws when the path breaks after COMMIT",
			src: func(s *Source, ev Event, now time.Time) []Action {
				if _, ok := ev.(PathDown); ok && s.phase == SourceCommitting {
					return s.givenBack(CodePath, "the path broke", now)
				}
				return s.Handle(ev, now)
			}}, []string{"runs at both nodes", "spoken at the destination"}},
		{bounds{strategy: pc, paging: true}, mutant{name: "the source thaws before its journal has N+2",
			src: func(s *Source, ev Event, now time.Time) []Action {
				out := s.Handle(ev, now)
				if s.phase == SourceReclaiming && s.writing != 0 {
					out = append(out, Thaw{Epoch: epochN + 2})
				}
				return out
			}}, []string{"thaw in epoch N+2 after COMMIT left, the journal has N+0"}},
		{bounds{strategy: pc, paging: true}, mutant{name: "the source does not freeze before COMMIT",
			src: func(s *Source, ev Event, now time.Time) []Action {
				if p, ok := ev.(Persisted); ok && s.phase == SourceRecording && p.ID == s.writing {
					s.writing, s.phase = 0, SourceFreezing
					return s.wasFrozen(Frozen{}, now)
				}
				return s.Handle(ev, now)
			}}, []string{"COMMIT left while the worker ran"}},
		{bounds{strategy: pc, paging: true}, mutant{name: "the source forgets at RUNNING",
			src: func(s *Source, ev Event, now time.Time) []Action {
				if r, ok := ev.(Received); ok && s.phase == SourceCommitting {
					if _, ok := r.Message.Body.(Running); ok {
						return s.forget(now)
					}
				}
				return s.Handle(ev, now)
			}}, []string{"forgets what the destination does not have"}},
		{bounds{strategy: sc, paging: true, loss: 1}, mutant{name: "the source in doubt does not ask",
			src: func(s *Source, ev Event, now time.Time) []Action {
				if _, ok := ev.(Tick); ok && s.phase == SourceCommitting {
					return nil
				}
				return s.Handle(ev, now)
			}}, []string{"no end can be reached"}},
		{bounds{strategy: sc, paging: true, srcCrash: 1, onward: true}, mutant{name: "the source says DONE before its journal does",
			src: func(s *Source, ev Event, now time.Time) []Action {
				out := s.Handle(ev, now)
				if s.phase == SourceForgetting && s.writing != 0 {
					out = append(out, s.send(Done{}))
				}
				return out
			}}, []string{"runs at a third node", "lost without need"}},
		{bounds{strategy: pc, paging: true}, mutant{name: "the destination speaks before its journal has the worker",
			dst: func(d *Dest, ev Event, now time.Time) []Action {
				if _, ok := ev.(Resumed); ok {
					d.durable = true
				}
				return d.Handle(ev, now)
			}}, []string{"output left before the journal had the worker"}},
		{bounds{strategy: pc, paging: true, dstCrash: 1}, mutant{name: "the destination says that it took the worker before its journal does",
			dst: func(d *Dest, ev Event, now time.Time) []Action {
				out := d.Handle(ev, now)
				if d.phase == DestTaking && d.asked {
					d.asked = false
					out = append(out, d.took())
				}
				return out
			}}, []string{"lost without need", "forgets what the destination does not have"}},
		{bounds{strategy: pc, paging: true}, mutant{name: "the destination says never and stays prepared",
			dst: func(d *Dest, ev Event, now time.Time) []Action {
				if r, ok := ev.(Received); ok && d.CanCancel() {
					if _, ok := r.Message.Body.(Query); ok {
						return []Action{d.send(Status{State: NeverTook})}
					}
				}
				return d.Handle(ev, now)
			}}, []string{"runs at both nodes", "spoken at the destination"}},
		{bounds{strategy: pc, paging: true, dup: 1, dstCrash: 1}, mutant{name: "the destination takes a COMMIT with another ticket",
			dst: func(d *Dest, ev Event, now time.Time) []Action {
				if r, ok := ev.(Received); ok {
					if _, ok := r.Message.Body.(Commit); ok {
						r.Message.Ticket = d.ticket
						ev = r
					}
				}
				return d.Handle(ev, now)
			}}, []string{"runs at both nodes", "spoken at the destination"}},
		{bounds{strategy: pc, paging: true, fault: 1}, mutant{name: "missing pages become zeroes",
			dst: func(d *Dest, ev Event, now time.Time) []Action {
				if _, ok := ev.(PagesGone); ok {
					ev = DrainedAll{}
				}
				return d.Handle(ev, now)
			}}, []string{"lacks pages", "forgets what the destination does not have"}},
		{bounds{strategy: pc, paging: true, srcCrash: 1}, mutant{name: "the destination does not see that the source restarted",
			dst: func(d *Dest, ev Event, now time.Time) []Action {
				switch e := ev.(type) {
				case Received:
					if d.srcInc != 0 {
						e.Message.Incarnation = d.srcInc
						ev = e
					}
				case PathUp:
					ev = PathUp{}
				case PagesGone:
					return nil
				}
				return d.Handle(ev, now)
			}}, []string{"no end can be reached"}},
		{bounds{strategy: pc, paging: true, files: true, srcCrash: 1}, mutant{name: "a worker is lost for its files",
			dst: func(d *Dest, ev Event, now time.Time) []Action {
				if _, ok := ev.(MemoryIn); ok {
					return nil
				}
				return d.Handle(ev, now)
			}}, []string{"lost without need"}},
		{bounds{strategy: pc, paging: true, files: true}, mutant{name: "the source may forget files that have yet to come",
			dst: func(d *Dest, ev Event, now time.Time) []Action {
				if _, ok := ev.(MemoryIn); ok {
					ev = DrainedAll{}
				}
				return d.Handle(ev, now)
			}}, []string{"forgets what the destination does not have", "lacks pages"}},
		{bounds{strategy: pc, paging: false}, mutant{name: "the destination resumes before it is filled",
			dst: func(d *Dest, ev Event, now time.Time) []Action {
				if r, ok := ev.(Received); ok {
					if f, ok := r.Message.Body.(FrozenBody); ok && d.phase == DestPrepared {
						d.phase = DestFilled
						return []Action{Fill(f), d.send(Filled{})}
					}
				}
				return d.Handle(ev, now)
			}}, []string{"resumed without paging and without pages"}},
		{bounds{strategy: sc, paging: true, onward: true}, mutant{name: "a taken move may be forgotten before DONE",
			dst: func(d *Dest, ev Event, now time.Time) []Action {
				out := d.Handle(ev, now)
				for i, a := range out {
					if p, ok := a.(Persist); ok {
						p.Record.Unsettled = nil
						out[i] = p
					}
				}
				return out
			}}, []string{"spoken at the destination"}},
		{bounds{strategy: sc, paging: true, disk: 1}, mutant{name: "a destination that could not write gives up before it has written so",
			dst: func(d *Dest, ev Event, now time.Time) []Action {
				if _, ok := ev.(PersistFailed); ok && d.phase == DestTaking {
					d.writing = 0
					return []Action{Discard{}, d.rejected(), d.finish()}
				}
				return d.Handle(ev, now)
			}}, []string{"runs nowhere and nobody says so", "forgets what the destination does not have", "lost without need"}},
	} {
		t.Run(c.m.name, func(t *testing.T) {
			if raceEnabled && c.dup > 0 {
				t.Skip("too many states for the race detector, and nothing here is concurrent")
			}
			c.mutant = &c.m
			c.maxStates = 1_000_000
			st, bad := explore(c.bounds)
			first, _, _ := strings.Cut(bad, "\n")
			for _, w := range c.want {
				if strings.Contains(first, w) {
					t.Log(first)
					return
				}
			}
			t.Fatalf("found %q after %d states, want one of %q", bad, st.states, c.want)
		})
	}
}
