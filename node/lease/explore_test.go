package lease

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"testing"
	"time"
)

// The explorer walks, breadth first, through every state that the lease of one
// worker can reach: two nodes that may own it, one after the other, a guardian
// with its disk, and a network between them that is a set of messages, so that
// every order of arrival is a possible one. Time goes on in steps of a second,
// whenever it likes: whoever may act may also be late. What cannot go on for
// ever has a budget.

const (
	second    = time.Second
	testLease = 2 * second
	testEpoch = 5
)

// bounds are the budgets of one exploration.
type bounds struct {
	ticks    int // seconds that pass
	messages int // sent by owners, but for renewals
	renewals int
	inFlight int
	dup      int // messages that arrive twice
	crash    int // owners that restart, and guardians
	stops    int // owners that stop in order
	slow     int // seconds for which the guardian's clock stands still
	fast     int // seconds that it gains
	moves    int // of the worker from the first owner to the second
	mutant   string
}

// An ownerNode is a node that runs the worker, did, or may come to.
type ownerNode struct {
	runs bool // the worker is here; whether it may run its lease says
	back bool // it was, and the node knows its guardian
	m    Owner
}

type envelope struct {
	to, from string
	m        Message
}

// world is one state.
type world struct {
	now     time.Duration
	owners  [2]ownerNode
	guard   Guard
	disk    Record
	lag     time.Duration // of the guardian's clock
	tickets uint64
	net     []envelope
	left    bounds
	top     uint64 // the highest epoch in which an owner ran the worker
	took    bool
}

var ownerNames = [2]string{"a", "b"}

func (w *world) clone() world {
	c := *w
	c.net = slices.Clone(w.net)
	return c
}

// key is all that the future depends on: times count from now.
func (w *world) key(b []byte) []byte {
	num := func(n uint64) { b = binary.AppendUvarint(b, n) }
	ago := func(d time.Duration) { num(uint64(min(w.now-d, 20*second) / second)) }
	text := func(s string) { b = append(append(b, s...), 0) }
	record := func(r *Record) {
		text(r.Owner)
		num(r.Epoch)
		num(r.Ticket)
		num(r.Taken)
		num(uint64(len(r.Owners)))
		for _, o := range r.Owners {
			text(o)
		}
	}
	l := &w.left
	for _, n := range [...]int{l.ticks, l.messages, l.renewals, l.dup, l.crash, l.stops, l.slow, l.fast, l.moves} {
		num(uint64(n))
	}
	for i := range w.owners {
		o := &w.owners[i]
		switch {
		case o.runs:
			num(1)
		case o.back:
			num(2)
		default:
			num(0)
			continue
		}
		num(uint64(o.m.phase))
		num(o.m.epoch)
		num(o.m.ticket)
		num(o.m.seq)
		ago(o.m.sent)
		ago(o.m.good)
	}
	record(&w.guard.rec)
	record(&w.guard.offer)
	record(&w.disk)
	ago(w.guard.heard + w.lag)
	ago(w.guard.offered + w.lag)
	num(w.tickets)
	// The order of the messages says nothing.
	first := len(b)
	var sums []uint64
	for _, e := range w.net {
		b = b[:first]
		text(e.to)
		text(e.from)
		for _, n := range [...]uint64{uint64(e.m.Kind), e.m.Epoch, e.m.Ticket, e.m.Seq} {
			num(n)
		}
		sums = append(sums, maphash.Bytes(seed, b[first:]))
	}
	b = b[:first]
	slices.Sort(sums)
	for _, s := range sums {
		num(s)
	}
	return b
}

var seed = maphash.MakeSeed()

func (w *world) guardNow() time.Duration { return w.now - w.lag }

func (w *world) send(from, to string, m Message) {
	w.net = append(w.net, envelope{to, from, m})
}

// save puts the guardian's record on its disk, if it has changed.
func (w *world) save() {
	if w.guard.Unsaved() {
		w.disk = w.guard.Record()
		w.guard.Saved()
	}
}

type step struct {
	what string
	w    world
}

// steps returns what may happen next.
func (w *world) steps() []step {
	var out []step
	add := func(what string, do func(c *world)) {
		c := w.clone()
		do(&c)
		if len(c.net) <= c.left.inFlight {
			out = append(out, step{what, c})
		}
	}
	if w.left.ticks > 0 {
		add("a second passes", func(c *world) { c.now += second; c.left.ticks-- })
		if w.left.slow > 0 {
			add("a second passes, not for the guardian", func(c *world) { c.now += second; c.lag += second; c.left.ticks--; c.left.slow-- })
		}
	}
	if w.left.fast > 0 {
		add("the guardian's clock gains a second", func(c *world) { c.lag -= second; c.left.fast-- })
	}
	for i := range w.owners {
		out = append(out, w.ownerSteps(i)...)
	}
	for i, e := range w.net {
		name := fmt.Sprintf("%v of %s to %s", e.m.Kind, e.from, e.to)
		add(name+" is lost", func(c *world) { c.net = slices.Delete(c.net, i, i+1) })
		add(name+" arrives", func(c *world) { c.net = slices.Delete(c.net, i, i+1); c.deliver(e, true) })
		if w.left.dup > 0 {
			add(name+" arrives and will again", func(c *world) { c.left.dup--; c.deliver(e, true) })
		}
		if w.left.crash > 0 && e.to == "g" {
			add(name+" arrives, and the guardian restarts before its disk has it", func(c *world) {
				c.left.crash--
				c.net = slices.Delete(c.net, i, i+1)
				c.deliver(e, false)
				c.restart()
			})
		}
	}
	if w.left.crash > 0 {
		add("the guardian restarts", func(c *world) { c.left.crash--; c.restart() })
	}
	add("the guardian looks at its clock", func(c *world) { c.tick() })
	return out
}

func (w *world) ownerSteps(i int) []step {
	o := &w.owners[i]
	if !o.runs && !o.back {
		return nil
	}
	var out []step
	name := ownerNames[i]
	do := func(what string, do func(c *world, o *ownerNode)) {
		c := w.clone()
		do(&c, &c.owners[i])
		if len(c.net) <= c.left.inFlight {
			out = append(out, step{name + " " + what, c})
		}
	}
	if o.back {
		if o.m.Phase() == Yielded && w.left.messages > 0 {
			do("yields", func(c *world, o *ownerNode) { c.left.messages--; c.send(name, "g", o.m.Yield()) })
		}
		return out
	}
	if w.left.crash > 0 {
		do("restarts", func(c *world, o *ownerNode) {
			c.left.crash--
			o.runs = false
			if o.back = o.m.Phase() == Bound; o.back {
				o.m = RestartOwner("w", o.m.epoch, testLease, o.m.ticket)
			}
		})
	}
	if o.m.Phase() == Bound && w.left.stops > 0 {
		do("stops in order", func(c *world, o *ownerNode) {
			c.left.stops--
			m := o.m
			c.send(name, "g", m.Yield())
			if w.left.mutant != "yields before its copy has ended" {
				o.runs, o.back, o.m = false, true, m
			}
		})
	}
	switch o.m.Phase() {
	case Free, Asked:
		if w.left.messages > 0 {
			do("asks", func(c *world, o *ownerNode) { c.left.messages--; c.send(name, "g", o.m.Ask(nil)) })
		}
	case Ready, Bound:
		if w.left.renewals > 0 {
			do("renews", func(c *world, o *ownerNode) { c.left.renewals--; c.send(name, "g", o.m.Renew(c.now)) })
		}
	}
	if o.m.Phase() == Bound && w.left.messages > 0 {
		do("releases", func(c *world, o *ownerNode) { c.left.messages--; c.send(name, "g", o.m.Release()) })
	}
	if o.m.Phase() == Over {
		do("ends its copy", func(c *world, o *ownerNode) { o.runs = false; c.send(name, "g", o.m.Heard()) })
	}
	// The hand-over is another package's. Here it is one step, of a worker that
	// is not bound.
	free := o.m.Phase() == Free || w.left.mutant == "moves while it is bound" && o.m.Phase() == Bound && o.m.MayRun(w.now)
	if i == 0 && w.left.moves > 0 && free {
		do("moves the worker to b", func(c *world, o *ownerNode) {
			c.left.moves--
			o.runs = false
			c.owners[1] = ownerNode{runs: true, m: NewOwner("w", o.m.epoch+1, testLease)}
		})
	}
	return out
}

func (w *world) restart() {
	w.guard = RestoreGuard(w.disk, w.guardNow())
	switch w.left.mutant {
	case "a guardian that restarts takes at once":
		w.guard.heard = w.guardNow() - time.Hour
	case "a guardian that restarts forgets what it took":
		w.guard.rec.Taken, w.guard.rec.Owners = 0, nil
	}
}

func (w *world) tick() {
	if w.left.mutant == "no margin" && w.guard.rec.Held() && w.guardNow() >= w.guard.heard+testLease {
		w.guard.heard = w.guardNow() - time.Hour
	}
	if w.guard.Tick(w.guardNow(), 0) {
		w.took = true
	}
	w.save()
}

func (w *world) deliver(e envelope, save bool) {
	if e.to == "g" {
		w.tickets++
		ticket := w.tickets
		if w.left.mutant == "the same ticket each time" {
			ticket = 1
		}
		answer := w.guard.Handle(e.from, e.m, ticket, w.guardNow(), 0)
		if save {
			w.save()
			w.took = w.took || e.m.Kind == Yield && answer.Kind == Taken
			w.send("g", e.from, answer)
		}
		return
	}
	o := &w.owners[slices.Index(ownerNames[:], e.to)]
	if !o.runs && !o.back {
		return
	}
	o.m.Answer(e.m, w.now)
	switch {
	case w.left.mutant == "counts from the answer" && e.m.Kind == Renewed && o.m.Phase() == Bound:
		o.m.good = w.now
	case w.left.mutant == "any renewal's answer counts" && e.m.Kind == Renewed && o.m.Phase() == Bound:
		o.m.good = o.m.sent
	case w.left.mutant == "bound by the first answer only" && o.m.Phase() == Bound && e.m.Kind != Renewed:
		o.m.phase = Free
	}
}

// broken says what must never be and is, or "".
func (w *world) broken() string {
	running := 0
	for i := range w.owners {
		o := &w.owners[i]
		if o.runs && o.m.MayRun(w.now) {
			running++
		}
	}
	if w.took {
		running++
	}
	if running > 1 {
		return "it runs twice"
	}
	if w.took && w.disk.Taken <= w.top {
		return fmt.Sprintf("it was taken in epoch %d, and an owner had %d", w.disk.Taken, w.top)
	}
	// A lease that is held and not renewed any more ends with the worker taken.
	if g := w.guard; g.rec.Held() && !g.Tick(w.guardNow()+Wait(testLease), 0) {
		return "a guardian that hears nothing does not take the worker"
	}
	// An owner that reaches its guardian may run, or hears that it must not. One
	// that yields hears at once that the worker is the guardian's, or nobody's.
	for i := range w.owners {
		o, g := w.owners[i].m, w.guard
		if w.owners[i].back && o.Phase() == Yielded {
			held := g.rec.Held()
			o.Answer(g.Handle(ownerNames[i], o.Yield(), 99, w.guardNow(), 0), w.now)
			if o.Phase() != Over && o.Phase() != Lost || o.Phase() == Lost && (held || w.took) {
				return "a worker that is yielded is not taken"
			}
		}
		if !w.owners[i].runs || o.Phase() != Bound {
			continue
		}
		o.Answer(g.Handle(ownerNames[i], o.Renew(w.now), 99, w.guardNow(), 0), w.now)
		if !o.MayRun(w.now) && o.Phase() != Over {
			return "an owner whose guardian answers stands still"
		}
	}
	return ""
}

// explore returns how many states there are, and what breaks the rules with what
// led to it, or "".
func explore(b bounds) (states int, violation string) {
	first := world{left: b, guard: NewGuard("w"), disk: Record{Worker: "w"}, top: testEpoch}
	first.owners[0] = ownerNode{runs: true, m: NewOwner("w", testEpoch, testLease)}
	type node struct {
		w      world
		what   string
		parent *node
	}
	trace := func(n *node) string {
		var out []string
		for ; n.parent != nil; n = n.parent {
			out = append(out, n.what)
		}
		slices.Reverse(out)
		return "\n  " + strings.Join(out, "\n  ")
	}
	seen := make(map[uint64]bool)
	var buf []byte
	frontier := []*node{{w: first}}
	for len(frontier) > 0 {
		var next []*node
		for _, n := range frontier {
			for _, s := range n.w.steps() {
				for i := range s.w.owners {
					if o := &s.w.owners[i]; o.runs && o.m.MayRun(s.w.now) {
						s.w.top = max(s.w.top, o.m.epoch)
					}
				}
				child := &node{s.w, s.what, n}
				if bad := s.w.broken(); bad != "" {
					return len(seen), bad + trace(child)
				}
				buf = s.w.key(buf[:0])
				if k := maphash.Bytes(seed, buf); !seen[k] {
					seen[k] = true
					next = append(next, child)
				}
			}
		}
		frontier = next
	}
	return len(seen), ""
}

// TestExplore looks at all orders of events within several bounds.
func TestExplore(t *testing.T) {
	if testing.Short() {
		t.Skip("half a minute of one processor, and nothing in it runs concurrently")
	}
	for _, b := range []bounds{
		{ticks: 7, messages: 1, renewals: 3, inFlight: 2},
		{ticks: 5, messages: 1, renewals: 2, inFlight: 2, dup: 1, slow: 1, fast: 1},
		{ticks: 5, messages: 2, renewals: 2, inFlight: 2, crash: 1},
		{ticks: 4, messages: 3, renewals: 2, inFlight: 1, dup: 1, moves: 1},
		{ticks: 5, messages: 3, renewals: 2, inFlight: 1, crash: 1, moves: 1},
		{ticks: 4, messages: 1, renewals: 2, inFlight: 2, dup: 1, stops: 1},
		{ticks: 3, messages: 4, renewals: 1, inFlight: 1, crash: 1, stops: 1, moves: 1},
	} {
		t.Run(fmt.Sprintf("%+v", b), func(t *testing.T) {
			t.Parallel()
			states, bad := explore(b)
			if bad != "" {
				t.Fatal(bad)
			}
			if states < 1000 {
				t.Fatalf("only %d states were reached", states)
			}
			t.Logf("%d states", states)
		})
	}
}

// TestExploreMutants has the explorer look for bugs: it must find each.
func TestExploreMutants(t *testing.T) {
	if testing.Short() {
		t.Skip("half a minute of one processor, and nothing in it runs concurrently")
	}
	for _, b := range []bounds{
		{mutant: "counts from the answer", ticks: 6, messages: 1, renewals: 2, inFlight: 1},
		{mutant: "any renewal's answer counts", ticks: 5, messages: 1, renewals: 2, inFlight: 2},
		{mutant: "bound by the first answer only", ticks: 5, messages: 2, renewals: 2, inFlight: 2},
		{mutant: "no margin", ticks: 3, messages: 1, renewals: 1, inFlight: 1, fast: 1},
		{mutant: "a guardian that restarts takes at once", ticks: 2, messages: 1, renewals: 1, inFlight: 1, crash: 1},
		{mutant: "a guardian that restarts forgets what it took", ticks: 5, messages: 1, renewals: 3, inFlight: 1, crash: 1},
		{mutant: "moves while it is bound", ticks: 5, messages: 1, renewals: 1, inFlight: 1, moves: 1},
		{mutant: "yields before its copy has ended", ticks: 3, messages: 1, renewals: 2, inFlight: 1, stops: 1},
		{mutant: "the same ticket each time", ticks: 5, messages: 4, renewals: 2, inFlight: 2, dup: 1, moves: 1},
	} {
		t.Run(b.mutant, func(t *testing.T) {
			t.Parallel()
			states, bad := explore(b)
			if bad == "" {
				t.Fatalf("the bug was not found in %d states", states)
			}
			t.Logf("found after %d states: %s", states, bad)
		})
	}
}
