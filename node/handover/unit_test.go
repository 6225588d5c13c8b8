package handover

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

func newSource(t testing.TB, strategy Strategy) *Source {
	t.Helper()
	o := Offer{Worker: testWorker, Name: "counter", Module: hash(1), ModuleSize: 1, MemoryBytes: 1, MemoryLimit: 1, Epoch: 7, Strategy: strategy}
	s, err := NewSource(SourceConfig{Move: testMove(1), Peer: testPeer, Incarnation: 11, Offer: o,
		Record: Record{Worker: testWorker, Epoch: 7, Own: OwnRunning, Meta: []byte("meta"), Unsettled: []MoveID{testMove(50)}}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newDest(t testing.TB, known *Record) *Dest {
	t.Helper()
	d, err := NewDest(DestConfig{Peer: testPeer, Incarnation: 22, Ticket: 33, Known: known})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// names puts actions into words.
func names(as []Action) string {
	var out []string
	for _, a := range as {
		n := strings.TrimPrefix(fmt.Sprintf("%T", a), "handover.")
		switch a := a.(type) {
		case Send:
			n = a.Message.Body.Type().String()
			if r, ok := a.Message.Body.(Running); ok && r.Durable {
				n += "(durable)"
			}
		case Persist:
			n += "(" + a.Record.Own.String() + fmt.Sprintf(" %d)", a.Record.Epoch)
		case Thaw:
			n += fmt.Sprintf("(%d)", a.Epoch)
		case Finish:
			n += fmt.Sprintf("(%s %d)", a.Result.Outcome, a.Result.Epoch)
		}
		out = append(out, n)
	}
	return strings.Join(out, " ")
}

// A step is an event for one side and the actions that have to follow.
type step struct {
	side string // "s" or "d"
	ev   Event
	want string
}

// play carries the messages and the answers of writes between the two.
func play(t *testing.T, s *Source, d *Dest, steps []step) {
	t.Helper()
	now := t0
	last := map[string]Message{}
	var sid, did uint64
	for i, st := range steps {
		now = now.Add(time.Millisecond)
		var out []Action
		switch st.side {
		case "s":
			ev := st.ev
			if ty, ok := ev.(arrives); ok {
				ev = Received{last[Type(ty).String()]}
			}
			if _, ok := ev.(Persisted); ok {
				ev = Persisted{sid}
			}
			if f, ok := ev.(PersistFailed); ok {
				f.ID = sid
				ev = f
			}
			out = s.Handle(ev, now)
		case "d":
			ev := st.ev
			if ty, ok := ev.(arrives); ok {
				ev = Received{last[Type(ty).String()]}
			}
			if _, ok := ev.(Persisted); ok {
				ev = Persisted{did}
			}
			if f, ok := ev.(PersistFailed); ok {
				f.ID = did
				ev = f
			}
			out = d.Handle(ev, now)
		}
		for _, a := range out {
			switch a := a.(type) {
			case Send:
				b, err := Limits{}.Encode(a.Message)
				if err != nil {
					t.Fatalf("step %d: %v", i, err)
				}
				m, err := Limits{}.Decode(b)
				if err != nil {
					t.Fatalf("step %d: %v", i, err)
				}
				last[m.Body.Type().String()] = m
			case Persist:
				if st.side == "s" {
					sid = a.ID
				} else {
					did = a.ID
				}
			}
		}
		if got := names(out); got != st.want {
			t.Fatalf("step %d, %s %T: got %q, want %q", i, st.side, st.ev, got, st.want)
		}
	}
}

// arrives is, in a script, the arrival of the last message of a type.
type arrives Type

func (arrives) event() {}

// The moves of the package comment, action by action and in their order.
func TestMoves(t *testing.T) {
	begin := []step{
		{"s", Start{}, "OFFER"},
		{"d", arrives(TypeOffer), "Prepare"},
		{"d", Prepared{Paging: true}, "ACCEPT"},
		{"s", arrives(TypeAccept), "Persist(moving out 7)"},
		{"s", Persisted{}, "Freeze"},
	}
	committed := append(slices.Clone(begin), []step{
		{"s", Frozen{Head: []byte("head")}, "ServePages COMMIT"},
		{"d", arrives(TypeCommit), "Persist(taken 8) Drain Resume"},
	}...)
	filled := append(slices.Clone(begin), []step{
		{"s", Frozen{Head: []byte("head"), Table: []byte("table")}, "ServePages FROZEN"},
		{"d", arrives(TypeFrozen), "Fill"},
		{"d", Progress{}, ""},
		{"d", FilledAll{}, "FILLED"},
		{"s", arrives(TypeFilled), "COMMIT"},
	}...)
	for _, c := range []struct {
		name     string
		strategy Strategy
		before   []step
		steps    []step
	}{
		{"post-copy, resumed before durable", PostCopy, committed, []step{
			{"d", Resumed{}, "RUNNING"},
			{"s", arrives(TypeRunning), ""},
			{"d", Persisted{}, "ReleaseOutput TAKEN"},
			{"s", arrives(TypeTaken), ""},
			{"d", DrainedAll{}, "DRAINED"},
			{"s", arrives(TypeDrained), "StopServing Forget Persist(gone 8)"},
			{"s", Persisted{}, "DONE Finish(moved 8)"},
			{"d", arrives(TypeDone), "Settle Finish(moved 8)"},
		}},
		{"post-copy, durable before resumed", PostCopy, committed, []step{
			{"d", Persisted{}, ""},
			{"d", DrainedAll{}, ""},
			{"d", Resumed{}, "RUNNING(durable) ReleaseOutput DRAINED"},
			{"d", arrives(TypeDone), "Note"}, // none was ever sent: an empty message
			{"s", arrives(TypeDrained), "StopServing Forget Persist(gone 8)"},
		}},
		{"stop-and-copy", StopAndCopy, filled, []step{
			{"d", arrives(TypeCommit), "Persist(taken 8) Resume"},
			{"d", Resumed{}, "RUNNING"},
			{"d", Persisted{}, "ReleaseOutput DRAINED"},
			{"s", arrives(TypeDrained), "StopServing Forget Persist(gone 8)"},
			{"s", PersistFailed{}, ""},
		}},
		{"the runner does not resume", PostCopy, committed, []step{
			{"d", ResumeFailed{"trap"}, "Discard"},
			{"d", Persisted{}, "Persist(declined 8)"},
			{"d", Persisted{}, "REJECTED Finish(kept 7)"},
			{"s", arrives(TypeRejected), "StopServing Persist(running 9)"},
			{"s", Persisted{}, "Thaw(9) Finish(kept 9)"},
		}},
		{"the destination's disk is full", PostCopy, committed, []step{
			{"d", Resumed{}, "RUNNING"},
			{"s", arrives(TypeRunning), ""},
			{"d", PersistFailed{}, "Discard Persist(declined 8)"},
			{"d", PersistFailed{}, "REJECTED"},
			{"s", arrives(TypeRejected), "StopServing Persist(running 9)"},
			{"s", Persisted{}, "Thaw(9) Finish(kept 9)"},
		}},
		{"the source restarts when only files are missing", PostCopy, committed, []step{
			{"d", Resumed{}, "RUNNING"},
			{"d", Persisted{}, "ReleaseOutput TAKEN"},
			{"d", MemoryIn{}, ""},
			{"d", PathDown{}, ""},
			{"d", PathUp{Incarnation: 99}, ""},
			{"d", DrainedAll{}, "DRAINED"},
			{"s", arrives(TypeDrained), "StopServing Forget Persist(gone 8)"},
		}},
		{"a page that is not what its name says, after the worker has spoken", PostCopy, committed, []step{
			{"d", Resumed{}, "RUNNING"},
			{"d", Persisted{}, "ReleaseOutput TAKEN"},
			{"d", PagesGone{"hash"}, "Lose Persist(lost 8)"},
			{"d", Persisted{}, "STATUS"},
			{"s", arrives(TypeStatus), "StopServing Lose Persist(lost 8)"},
			{"s", Persisted{}, "DONE Finish(lost 8)"},
			{"d", arrives(TypeDone), "Settle Finish(lost 8)"},
		}},
		{"cancelled while freezing", PostCopy, begin, []step{
			{"s", Cancel{"user"}, "ABORT Thaw(7) Persist(running 7)"},
			{"d", arrives(TypeAbort), "Discard Finish(kept 7)"},
			{"s", Frozen{}, ""},
			{"s", Persisted{}, "Finish(kept 7)"},
		}},
		{"the path breaks while pages are copied", StopAndCopy, filled[:len(filled)-2], []step{
			{"s", PathDown{}, "ABORT StopServing Thaw(7) Persist(running 7)"},
			{"d", PathDown{}, "Discard REFUSE Finish(kept 7)"},
		}},
		{"COMMIT is lost", StopAndCopy, filled, []step{
			{"s", PathDown{}, ""},
			{"s", Cancel{"user"}, "Note"},
			{"s", PathUp{}, "QUERY"},
			{"d", arrives(TypeQuery), "Discard STATUS Finish(kept 7)"},
			{"s", arrives(TypeStatus), "StopServing Persist(running 9)"},
		}},
		{"the worker is moved on before DONE", StopAndCopy, filled, []step{
			{"d", arrives(TypeCommit), "Persist(taken 8) Resume"},
			{"d", Resumed{}, "RUNNING"},
			{"d", MoveOn{}, "Note"},
			{"d", Persisted{}, "ReleaseOutput DRAINED"},
			{"d", MoveOn{}, "Finish(moved 8)"},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			play(t, newSource(t, c.strategy), newDest(t, nil), append(slices.Clone(c.before), c.steps...))
		})
	}
}

// What the journal says of a worker survives a move, and what it must not lose is
// carried on.
func TestRecordsOfAMove(t *testing.T) {
	s := newSource(t, StopAndCopy)
	s.Handle(Start{}, t0)
	out := s.Handle(Received{Message{Move: testMove(1), Worker: testWorker, Incarnation: 22, Ticket: 33, Body: Accept{}}}, t0)
	r := out[0].(Persist).Record
	if r.Own != OwnMovingOut || r.Ticket != 33 || r.Peer != testPeer || string(r.Meta) != "meta" || len(r.Unsettled) != 1 {
		t.Errorf("moving out: %+v", r)
	}

	known := Record{Worker: testWorker, Epoch: 6, Own: OwnGone, Move: testMove(40), Peer: testPeer, Unsettled: []MoveID{testMove(41)}}
	d := newDest(t, &known)
	offer := s.offer
	offer.Strategy = PostCopy
	msg := Message{Move: testMove(1), Worker: testWorker, Incarnation: 11, Body: offer}
	d.Handle(Received{msg}, t0)
	d.Handle(Prepared{Paging: true, Meta: []byte("new")}, t0)
	msg.Ticket, msg.Body = 33, Commit{Epoch: 8, Head: []byte{1}}
	r = d.Handle(Received{msg}, t0)[0].(Persist).Record
	if r.Own != OwnTaken || r.Epoch != 8 || string(r.Meta) != "new" || !slices.Equal(r.Unsettled, []MoveID{testMove(41), testMove(1)}) {
		t.Errorf("taken: %+v", r)
	}
	if len(known.Unsettled) != 1 {
		t.Error("a record was written to")
	}
}

func TestRefusedOffers(t *testing.T) {
	offer := newSource(t, PostCopy).offer
	rec := func(epoch uint64, own Ownership) *Record {
		return &Record{Worker: testWorker, Epoch: epoch, Own: own, Move: testMove(9), Peer: testPeer}
	}
	many := rec(3, OwnGone)
	many.Unsettled = make([]MoveID, maxUnsettled)
	future := offer
	future.Strategy = Hybrid + 1
	for _, c := range []struct {
		name  string
		known *Record
		offer Offer
		want  Code
		takes bool
	}{
		{"unknown worker", nil, offer, 0, true},
		{"an old visitor", rec(3, OwnGone), offer, 0, true},
		{"it gave it to the source", rec(7, OwnGone), offer, 0, true},
		{"it declined it before", rec(7, OwnDeclined), offer, 0, true},
		{"it has it", rec(7, OwnRunning), offer, CodeStale, false},
		{"it has it later", rec(8, OwnTaken), offer, CodeStale, false},
		{"it has lost it later", rec(8, OwnLost), offer, CodeStale, false},
		{"on its way out", rec(5, OwnMovingOut), offer, CodeBusy, false},
		{"never settled", many, offer, CodeBusy, false},
		{"strategy of a later version", nil, future, CodeStrategy, false},
	} {
		out := newDest(t, c.known).Handle(Received{Message{Move: testMove(1), Worker: testWorker, Incarnation: 1, Body: c.offer}}, t0)
		if c.takes {
			if got := names(out); got != "Prepare" {
				t.Errorf("%s: %s", c.name, got)
			}
			continue
		}
		r, ok := out[0].(Send).Message.Body.(Refuse)
		if !ok || r.Code != c.want || r.Reason == "" || r.Hint == "" {
			t.Errorf("%s: %+v, want code %s, a reason and a hint", c.name, out[0], c.want)
		}
	}
}

func TestAnswer(t *testing.T) {
	rec := func(own Ownership, epoch uint64, move byte) *Record {
		return &Record{Worker: testWorker, Epoch: epoch, Own: own, Move: testMove(move), Peer: testPeer, Reason: "r"}
	}
	unsettled := rec(OwnGone, 8, 2) // contradictory on its own; the list decides
	unsettled.Unsettled = []MoveID{testMove(1)}
	for _, c := range []struct {
		name string
		rec  *Record
		body Body
		want Body
	}{
		{"nothing known", nil, Query{Epoch: 8}, Status{State: NeverTook}},
		{"late COMMIT", nil, Commit{Epoch: 8}, Status{State: NeverTook}},
		{"taken", rec(OwnTaken, 8, 1), Query{Epoch: 8}, Status{State: Took, Epoch: 8, Drained: true}},
		{"taken by another move", rec(OwnTaken, 8, 2), Query{Epoch: 8}, Status{State: NeverTook, Epoch: 8}},
		{"lost", rec(OwnLost, 8, 1), Query{Epoch: 8}, Status{State: TookButLost, Epoch: 8, Reason: "r"}},
		{"declined", rec(OwnDeclined, 8, 1), Query{Epoch: 8}, Status{State: NeverTook, Epoch: 8, Reason: "r"}},
		{"moving on", rec(OwnMovingOut, 8, 2), Query{Epoch: 8}, Status{State: MovedOn, Epoch: 8}},
		{"gone on", rec(OwnGone, 9, 2), Query{Epoch: 8}, Status{State: MovedOn, Epoch: 9}},
		{"an earlier visit", rec(OwnGone, 5, 2), Query{Epoch: 8}, Status{State: NeverTook, Epoch: 5}},
		{"never settled", unsettled, Query{Epoch: 8}, Status{State: MovedOn, Epoch: 8}},
		{"DRAINED again", rec(OwnGone, 8, 1), Drained{}, Done{}},
		{"DRAINED, all forgotten", nil, Drained{}, Done{}},
		{"DRAINED, in doubt", rec(OwnMovingOut, 7, 1), Drained{}, nil},
		{"lost, told again", rec(OwnLost, 8, 1), Status{State: TookButLost}, Done{}},
		{"ACCEPT after all", rec(OwnRunning, 7, 0), Accept{}, Abort{}},
		{"FILLED after all", nil, Filled{}, Abort{}},
		{"FROZEN after all", nil, FrozenBody{}, Refuse{Code: CodeTimeout}},
		{"RUNNING after all", nil, Running{}, nil},
	} {
		a := Answer(c.rec, Message{Move: testMove(1), Worker: testWorker, Incarnation: 5, Ticket: 6, Body: c.body}, 7)
		if c.want == nil {
			if a.Reply != nil || a.Note == "" {
				t.Errorf("%s: %+v", c.name, a)
			}
			continue
		}
		if a.Reply == nil || a.Reply.Ticket != 6 || a.Reply.Incarnation != 7 || a.Reply.Move != testMove(1) {
			t.Errorf("%s: %+v", c.name, a)
			continue
		}
		if _, err := (Limits{}).Encode(*a.Reply); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		got := a.Reply.Body
		switch b := got.(type) { // words do not matter here, but there have to be some
		case Status:
			if b.State == NeverTook {
				if b.Reason == "" {
					t.Errorf("%s: no reason", c.name)
				}
				if c.want.(Status).Reason == "" {
					b.Reason = ""
				}
			}
			got = b
		case Abort:
			got = Abort{}
		case Refuse:
			got = Refuse{Code: b.Code}
		}
		if got != c.want {
			t.Errorf("%s: got %+v, want %+v", c.name, got, c.want)
		}
	}

	r := rec(OwnTaken, 8, 1)
	r.Unsettled = []MoveID{testMove(1)}
	m := Message{Move: testMove(1), Worker: testWorker, Incarnation: 5, Ticket: 6, Body: Done{}}
	if a := Answer(r, m, 7); a.Settle != testMove(1) || a.Reply != nil {
		t.Errorf("DONE: %+v", a)
	}
	m.Move = testMove(2)
	if a := Answer(r, m, 7); a.Settle != (MoveID{}) {
		t.Errorf("DONE of another move: %+v", a)
	}
}

func TestRecover(t *testing.T) {
	for own, want := range map[Ownership]Todo{
		OwnRunning: TodoLost, OwnTaken: TodoLost, OwnMovingOut: TodoAsk, OwnGone: TodoForward, OwnLost: TodoLost, OwnDeclined: TodoNothing,
	} {
		r := Record{Worker: testWorker, Epoch: 8, Own: own, Move: testMove(1), Peer: testPeer, Unsettled: []MoveID{testMove(1)}, Reason: "r"}
		got, todo := Recover(r, t0)
		if todo != want {
			t.Errorf("%s: todo %d, want %d", own, todo, want)
		}
		if todo == TodoLost && (got.Own != OwnLost || got.Reason == "" || len(got.Unsettled) != 1 || got.Epoch != 8) {
			t.Errorf("%s: %+v", own, got)
		}
		if _, again := Recover(got, t0); again != todo {
			t.Errorf("%s: recovering twice gives todo %d", own, again)
		}
	}
}

func TestDeadlines(t *testing.T) {
	s := newSource(t, PostCopy)
	if _, ok := s.Deadline(); ok {
		t.Error("a deadline before Start")
	}
	s.Handle(Start{}, t0)
	at, ok := s.Deadline()
	if !ok || at.Sub(t0) != 30*time.Second {
		t.Fatalf("OFFER's deadline is after %v", at.Sub(t0))
	}
	if out := s.Handle(Tick{}, at.Add(-1)); out != nil {
		t.Errorf("early: %s", names(out))
	}
	if got := names(s.Handle(Tick{}, at)); got != "ABORT Finish(kept 7)" {
		t.Errorf("got %q", got)
	}
	if _, ok := s.Deadline(); ok {
		t.Error("a deadline after Finish")
	}

	// In doubt it asks for ever, ever more slowly.
	s = newSource(t, PostCopy)
	s.Handle(Start{}, t0)
	s.Handle(Received{Message{Move: testMove(1), Worker: testWorker, Incarnation: 22, Ticket: 33, Body: Accept{Paging: true}}}, t0)
	s.Handle(Persisted{1}, t0)
	s.Handle(Frozen{}, t0)
	var pauses []time.Duration
	now := t0
	for range 8 {
		at, ok := s.Deadline()
		if !ok {
			t.Fatal("it stopped asking")
		}
		pauses = append(pauses, at.Sub(now))
		now = at
		if got := names(s.Handle(Tick{}, now)); got != "QUERY" {
			t.Fatalf("got %q", got)
		}
	}
	want := []time.Duration{2, 4, 8, 16, 30, 30, 30, 30}
	for i := range want {
		want[i] *= time.Second
	}
	if !slices.Equal(pauses, want) {
		t.Errorf("pauses %v, want %v", pauses, want)
	}
}

func TestConfigs(t *testing.T) {
	ok := SourceConfig{Move: testMove(1), Peer: testPeer, Incarnation: 1, Offer: newSource(t, PostCopy).offer,
		Record: Record{Worker: testWorker, Epoch: 7, Own: OwnRunning}}
	for name, change := range map[string]func(*SourceConfig){
		"move":        func(c *SourceConfig) { c.Move = MoveID{} },
		"peer":        func(c *SourceConfig) { c.Peer = "" },
		"incarnation": func(c *SourceConfig) { c.Incarnation = 0 },
		"strategy":    func(c *SourceConfig) { c.Offer.Strategy = Hybrid + 1 },
		"record":      func(c *SourceConfig) { c.Record.Own = OwnGone },
		"epoch":       func(c *SourceConfig) { c.Record.Epoch = 6 },
		"offer":       func(c *SourceConfig) { c.Offer.ModuleSize = 0 },
		"params":      func(c *SourceConfig) { c.Params.OfferTimeout = -1 },
		"retry":       func(c *SourceConfig) { c.Params.RetryInterval = time.Hour },
	} {
		c := ok
		change(&c)
		if _, err := NewSource(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := NewSource(ok); err != nil {
		t.Error(err)
	}
	if _, err := RestartSource(ok.Record, 1, Params{}); err == nil {
		t.Error("restarted a move that is none")
	}
	if _, err := NewDest(DestConfig{Peer: testPeer, Incarnation: 1}); err == nil {
		t.Error("a destination without a ticket")
	}
}

// FuzzMachines feeds both machines whatever there is, in any order: messages
// with right and wrong tickets, epochs and incarnations in every phase, answers
// to what was never asked. Neither panics, and neither breaks its own rules.
func FuzzMachines(f *testing.F) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		b := make([]byte, 200)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		f.Add(b)
	}
	// The straight way through, so that the fuzzer starts from depth.
	f.Add([]byte{0, 0, 0, 1, 0, 0, 2, 0, 0, 3, 0, 0, 4, 0, 0, 5, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 3000 {
			return
		}
		s, d := newSource(t, PostCopy+Strategy(len(b)%4)), newDest(t, nil)
		check := &rules{t: t}
		now := t0
		check.source(s, s.Handle(Start{}, now))
		offer := Message{Move: testMove(1), Worker: testWorker, Incarnation: 11, Body: s.offer}
		check.dest(d, d.Handle(Received{offer}, now))
		for len(b) >= 3 {
			op, arg, side := b[0], b[1], b[2]
			b = b[3:]
			now = now.Add(time.Duration(arg) * 100 * time.Millisecond)
			ev := fuzzEvent(op, arg, check, s, d, side&1 == 0)
			if side&1 == 0 {
				check.source(s, s.Handle(ev, now))
			} else {
				check.dest(d, d.Handle(ev, now))
			}
		}
	})
}

func fuzzEvent(op, arg byte, c *rules, s *Source, d *Dest, src bool) Event {
	m := Message{Move: testMove(1), Worker: testWorker, Incarnation: 11, Ticket: 33}
	id := c.dstWriting
	if src {
		m.Incarnation = 22
		id = c.srcWriting
	}
	if arg&1 != 0 {
		m.Ticket++
	}
	if arg&2 != 0 && arg&4 != 0 {
		m.Incarnation++
	}
	if arg&24 == 24 {
		m.Move = testMove(2)
	}
	epoch := uint64(8)
	if arg&96 == 96 {
		epoch = uint64(arg)
	}
	bodies := []Body{
		s.offer, Accept{Paging: arg&128 != 0}, Refuse{}, FrozenBody{}, Filled{}, Commit{Epoch: epoch, Head: []byte{1}}, Running{arg&128 != 0},
		Taken{}, Drained{}, Done{}, Rejected{}, Abort{}, Query{Epoch: epoch},
		Status{State: NeverTook}, Status{State: Took, Drained: arg&128 != 0}, Status{State: TookButLost}, Status{State: MovedOn}, nil,
	}
	events := []Event{
		Persisted{id}, PersistFailed{id, "r"}, Persisted{id + 1}, Progress{}, PathDown{}, PathUp{uint64(arg)}, Cancel{"r"}, RunnerDied{"r"},
		Tick{}, Frozen{Head: []byte{1}}, FreezeFailed{"r"}, Abandon{"r"}, Prepared{Paging: arg&128 == 0}, PrepareFailed{}, FilledAll{},
		FillFailed{"r"}, Resumed{}, ResumeFailed{"r"}, DrainedAll{}, PagesGone{"r"}, MoveOn{}, Start{}, Prepared{Meta: make([]byte, MaxMetaBytes+1)},
		MemoryIn{},
	}
	n := int(op) % (len(bodies) + 2*len(events))
	if n < len(bodies) {
		m.Body = bodies[n]
		return Received{m}
	}
	return events[(n-len(bodies))%len(events)]
}

// rules are what no machine may break, whatever it is fed.
type rules struct {
	t                      testing.TB
	srcWriting, dstWriting uint64
	committed              bool
	resumed, released      bool
	srcDone, dstDone       bool
}

func (r *rules) common(a Action, done bool, writing *uint64) {
	r.t.Helper()
	if _, ok := a.(Note); done && !ok {
		if _, ok := a.(Send); !ok {
			r.t.Fatalf("%s after Finish", names([]Action{a}))
		}
	}
	switch a := a.(type) {
	case Send:
		if _, err := (Limits{}).Encode(a.Message); err != nil {
			r.t.Fatal(err)
		}
	case Persist:
		if err := a.Record.Validate(); err != nil {
			r.t.Fatal(err)
		}
		*writing = a.ID
	case Lose:
		if a.Epoch == 0 {
			r.t.Fatal("lost in no epoch")
		}
	}
}

func (r *rules) source(s *Source, as []Action) {
	r.t.Helper()
	for _, a := range as {
		r.common(a, r.srcDone, &r.srcWriting)
		switch a := a.(type) {
		case Send:
			if !a.Message.Body.Type().FromSource() {
				r.t.Fatalf("the source sends %s", a.Message.Body.Type())
			}
			if _, ok := a.Message.Body.(Commit); ok {
				if r.committed {
					r.t.Fatal("COMMIT twice")
				}
				r.committed = true
			}
		case Thaw:
			if want := uint64(7); !r.committed && a.Epoch != want || r.committed && a.Epoch != want+2 {
				r.t.Fatalf("thaw in epoch %d, committed %t", a.Epoch, r.committed)
			}
		case Forget:
			if !r.committed {
				r.t.Fatal("forgets what it never gave")
			}
		case Finish:
			r.srcDone = true
		}
	}
	if _, ok := s.Deadline(); ok && r.srcDone {
		r.t.Fatal("a deadline after Finish")
	}
	if s.InDoubt() && s.phase != SourceDraining {
		if _, ok := s.Deadline(); !ok {
			r.t.Fatal("in doubt, and does not ask")
		}
	}
}

func (r *rules) dest(d *Dest, as []Action) {
	r.t.Helper()
	for _, a := range as {
		r.common(a, r.dstDone, &r.dstWriting)
		switch a := a.(type) {
		case Send:
			if a.Message.Body.Type().FromSource() {
				r.t.Fatalf("the destination sends %s", a.Message.Body.Type())
			}
			switch a.Message.Body.(type) {
			case Drained, Taken:
				if !r.released {
					r.t.Fatal("taken, and nothing released")
				}
			case Rejected:
				if r.released {
					r.t.Fatal("rejects a worker that has spoken")
				}
			}
		case Resume:
			if r.resumed {
				r.t.Fatal("resumes twice")
			}
			r.resumed = true
		case ReleaseOutput:
			if !r.resumed || !d.durable || r.released {
				r.t.Fatal("releases what did not resume, is not durable, or is out already")
			}
			r.released = true
		case Discard:
			if r.released {
				r.t.Fatal("discards a worker that has spoken")
			}
		case Finish:
			r.dstDone = true
		}
	}
	if _, ok := d.Deadline(); ok && r.dstDone {
		r.t.Fatal("a deadline after Finish")
	}
}
