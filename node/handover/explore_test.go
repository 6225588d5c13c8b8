package handover

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"time"
)

// The explorer walks, breadth first, through every state that one move can
// reach: a source node and a destination node, each with its machine, its
// journal, its runner and the operations that its executor has under way, and a
// network between them that is a set of messages, so that every order of arrival
// is a possible one. Time is a choice: any deadline that is set may pass next.
// What cannot go on for ever (losses, copies, crashes, cuts, failures) has a
// budget.

// bounds are the budgets of one exploration.
type bounds struct {
	loss, dup int
	srcCrash  int
	dstCrash  int
	cut       int  // path breaks
	cancel    int  // by the user, on either side
	abandon   int  // by the operator
	fault     int  // a runner that dies or does not freeze, fill or resume; a page that is not what it should be
	disk      int  // journal writes that fail
	onward    bool // the destination may move the worker on, and records may expire
	strategy  Strategy
	paging    bool
	files     bool // there are files, which come behind the memory
	mutant    *mutant
	maxStates int
}

// A mutant is a machine with a bug. The explorer has to find it.
type mutant struct {
	name string
	src  func(s *Source, ev Event, now time.Time) []Action
	dst  func(d *Dest, ev Event, now time.Time) []Action
}

// epochN is the epoch in which the worker runs before the move.
const epochN = 5

var (
	t0       = time.Unix(1_000_000, 0)
	theMove  = MoveID{1}
	onward   = MoveID{2}
	theOffer = Offer{Worker: "w", Name: "w", ModuleSize: 1, MemoryBytes: 1, MemoryLimit: 1, Epoch: epochN}
)

// disk is what a node's journal file holds, with a write that may be under way.
type disk struct {
	rec     *Record // never nil, and never written to; noRecord if none
	next    *Record
	pending bool
	id      uint64
}

var noRecord = &Record{}

// world is one state. It is copied by value; machines and net are replaced, not
// written to.
type world struct {
	src *Source // nil without a machine
	dst *Dest

	srcUp, dstUp     bool
	srcInc, dstInc   uint64
	tickets          uint64
	srcDisk, dstDisk disk

	// the source's runner and operations
	srcRun   uint64 // epoch in which the worker runs here, 0 if it does not
	srcMem   bool   // the memory is here
	freezing bool
	serving  bool

	// the destination's
	dstRun                                 uint64
	preparing, filling, resuming, draining bool
	full                                   bool // every page is in
	files                                  bool // but not the files
	released                               bool

	net            []uint16 // sorted set of message numbers
	path           bool
	srcSaw, dstSaw uint8 // path events to come: see saw*

	left bounds // budgets left; the fixed part is shared

	// history, for the invariants
	committed    bool // COMMIT was handed out
	everReleased bool // something that the worker said in N+1 left the destination
	everFull     bool // the destination had all, on disk
	wentOn       bool // the destination moved the worker on
	abandoned    bool
	justified    bool // something happened after which a loss is nobody's bug
	srcLost      uint64
	dstLost      uint64
}

var (
	srcSees = [...]string{sawDown: "src: path down", sawUp: "src: path up", sawDownUp: "src: path down"}
	dstSees = [...]string{sawDown: "dst: path down", sawUp: "dst: path up", sawDownUp: "dst: path down"}
)

const (
	sawNothing = iota
	sawDown
	sawUp
	sawDownUp
)

// A label says how an edge came about; it is put into words only for a trace.
type label struct {
	what        string
	after       int8 // crash after so many actions; -1 without a crash
	there, gone bool // the crash's variant
	broken      string
}

func (l label) String() string {
	if l.after < 0 {
		return l.what
	}
	return fmt.Sprintf("%s, crash after %d actions (write on disk %t, network emptied %t)", l.what, l.after, l.there, l.gone)
}

type edge struct {
	label label
	fault bool
	w     world
}

type explorer struct {
	b       bounds
	msgs    []Message
	labels  []string // "deliver X to dst"
	lose    []string
	copies  []string
	index   map[msgKey]uint16
	broken  string // invariant violated while the current edge was made
	seed    maphash.Seed
	buf     []byte
	edges   []edge
	srcHand func(s *Source, ev Event, now time.Time) []Action
	dstHand func(d *Dest, ev Event, now time.Time) []Action
}

type stats struct {
	states, edges, ends int
	outcomes            map[string]int
}

// explore returns the first violation with the events that lead to it, or "".
func explore(b bounds) (st stats, violation string) {
	x := &explorer{b: b, index: map[msgKey]uint16{}, seed: maphash.MakeSeed(),
		srcHand: (*Source).Handle, dstHand: (*Dest).Handle}
	if b.mutant != nil && b.mutant.src != nil {
		x.srcHand = b.mutant.src
	}
	if b.mutant != nil && b.mutant.dst != nil {
		x.dstHand = b.mutant.dst
	}
	st.outcomes = map[string]int{}

	first := x.first()
	var (
		seen     = map[uint64]uint32{x.hash(&first): 0}
		frontier = []world{first}
		parent   = []uint32{0}
		how      = []label{{}}
		head     uint32
		isEnd    []bool
		starts   []uint32
		targets  []uint32
	)
	trace := func(i uint32, last string) string {
		var out []string
		for ; i != 0; i = parent[i] {
			out = append(out, how[i].String())
		}
		slices.Reverse(out)
		if last != "" {
			out = append(out, last)
		}
		return "\n  " + strings.Join(out, "\n  ")
	}
	for len(frontier) > 0 {
		var next []world
		for i := range frontier {
			w := &frontier[i]
			id := head
			head++
			end, what, bad := x.end(w)
			if bad != "" {
				return st, bad + trace(id, "")
			}
			isEnd = append(isEnd, end)
			if end {
				st.ends++
				st.outcomes[what]++
			}
			starts = append(starts, uint32(len(targets)))
			x.broken = ""
			for _, e := range x.successors(w) {
				st.edges++
				if e.label.broken != "" {
					return st, e.label.broken + trace(id, e.label.String())
				}
				h := x.hash(&e.w)
				to, ok := seen[h]
				if !ok {
					to = uint32(len(parent))
					seen[h] = to
					parent = append(parent, id)
					how = append(how, e.label)
					next = append(next, e.w)
				}
				if !e.fault {
					targets = append(targets, to)
				}
			}
		}
		frontier = next
		if b.maxStates > 0 && len(parent) > b.maxStates {
			return st, fmt.Sprintf("more than %d states", b.maxStates)
		}
	}
	st.states = len(parent)
	starts = append(starts, uint32(len(targets)))

	// From every state an end must be reachable without a further fault: walk
	// back from the ends.
	n := len(parent)
	count := make([]uint32, n+1)
	for _, t := range targets {
		count[t+1]++
	}
	for i := range n {
		count[i+1] += count[i]
	}
	back := make([]uint32, len(targets))
	fill := slices.Clone(count)
	for i := range n {
		for _, t := range targets[starts[i]:starts[i+1]] {
			back[fill[t]] = uint32(i)
			fill[t]++
		}
	}
	good := make([]bool, n)
	var stack []uint32
	for i, e := range isEnd {
		if e {
			good[i] = true
			stack = append(stack, uint32(i))
		}
	}
	for len(stack) > 0 {
		i := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for _, p := range back[count[i]:count[i+1]] {
			if !good[p] {
				good[p] = true
				stack = append(stack, p)
			}
		}
	}
	for i, g := range good {
		if !g {
			return st, "no end can be reached from here" + trace(uint32(i), "")
		}
	}
	return st, ""
}

func (x *explorer) first() world {
	rec := Record{Worker: "w", Epoch: epochN, Own: OwnRunning}
	o := theOffer
	o.Strategy = x.b.strategy
	s, err := NewSource(SourceConfig{Move: theMove, Peer: "dst", Incarnation: 1, Offer: o, Record: rec})
	if err != nil {
		panic(err)
	}
	w := world{
		src: s, srcUp: true, dstUp: true, srcInc: 1, dstInc: 1, srcDisk: disk{rec: &rec, next: noRecord}, dstDisk: disk{rec: noRecord, next: noRecord},
		srcRun: epochN, srcMem: true, path: true, left: x.b,
	}
	w.left.mutant = nil
	x.onSrc(&w, Start{}, -1)
	return w
}

// end says whether w is an end, which, and whether it is a wrong one.
func (x *explorer) end(w *world) (end bool, what, bad string) {
	switch {
	case w.srcRun != 0 && w.dstRun != 0:
		return false, "", "the worker runs at both nodes"
	case w.srcRun != 0 && (w.everReleased || w.wentOn):
		return false, "", "the source runs a worker that has spoken at the destination"
	}
	if w.src != nil || w.dst != nil || !w.srcUp || !w.dstUp || w.srcDisk.pending || w.dstDisk.pending {
		return false, "", ""
	}
	lost := max(w.srcLost, w.dstLost)
	switch {
	case w.srcRun != 0:
		what = fmt.Sprintf("at the source in N+%d", w.srcRun-epochN)
		if lost >= w.srcRun {
			return true, what, "reported lost in its own epoch or a later one, and runs at the source"
		}
		if w.srcDisk.rec.Own.Owned() && w.srcDisk.rec.Epoch == w.srcRun {
			return true, what, ""
		}
		return true, what, "runs at the source and is not in its journal"
	case w.wentOn:
		if lost >= epochN+2 {
			return true, "", "reported lost in an epoch in which it runs at a third node"
		}
		return true, "moved on", ""
	case w.dstRun != 0:
		what = "at the destination"
		if lost >= w.dstRun {
			return true, what, "reported lost in its own epoch or a later one, and runs at the destination"
		}
		if !w.released || !w.full || w.files {
			return true, what, "the move is over, and the worker lacks pages or is gagged"
		}
		return true, what, ""
	case lost == 0 && !w.abandoned:
		return true, "", "the worker runs nowhere and nobody says so"
	case !w.justified && !w.abandoned:
		return true, "", "the worker is lost without need"
	case w.abandoned:
		return true, "abandoned", ""
	}
	return true, "lost", ""
}

func (x *explorer) fail(format string, args ...any) {
	if x.broken == "" {
		x.broken = fmt.Sprintf(format, args...)
	}
}

// add records a successor.
func (x *explorer) add(what string, fault bool, w world) {
	x.addLabel(label{what: what, after: -1}, fault, w)
}

func (x *explorer) addLabel(l label, fault bool, w world) {
	l.broken, x.broken = x.broken, ""
	x.edges = append(x.edges, edge{l, fault, w})
}

// step is one event for one side, done on a copy of w by do, which performs the
// actions up to the limit and returns how many there are in all.
func (x *explorer) step(label string, fault bool, w *world, isSrc bool, do func(w *world, limit int) int) {
	c := *w
	n := do(&c, -1)
	x.add(label, fault, c)
	if isSrc && w.left.srcCrash > 0 || !isSrc && w.left.dstCrash > 0 {
		for k := 1; k < n; k++ {
			c := *w
			do(&c, k)
			x.crash(label, k, &c, isSrc)
		}
	}
}

func (x *explorer) successors(w *world) []edge {
	x.edges = x.edges[:0]
	srcEv := func(label string, fault bool, pre func(*world), ev Event) {
		x.step(label, fault, w, true, func(c *world, limit int) int {
			if pre != nil {
				pre(c)
			}
			return x.onSrc(c, ev, limit)
		})
	}
	dstEv := func(label string, fault bool, pre func(*world), ev Event) {
		x.step(label, fault, w, false, func(c *world, limit int) int {
			if pre != nil {
				pre(c)
			}
			return x.onDst(c, ev, limit)
		})
	}

	// The network.
	for i, m := range w.net {
		toDst := x.msgs[m].Body.Type().FromSource()
		if toDst && w.dstUp || !toDst && w.srcUp {
			deliver := func(keep bool) func(*world, int) int {
				return func(c *world, limit int) int {
					if keep {
						c.left.dup--
					} else {
						c.net = slices.Delete(slices.Clone(c.net), i, i+1)
					}
					if toDst {
						return x.arriveDst(c, x.msgs[m], limit)
					}
					return x.arriveSrc(c, x.msgs[m], limit)
				}
			}
			x.step(x.labels[m], false, w, !toDst, deliver(false))
			if w.left.dup > 0 {
				x.step(x.copies[m], true, w, !toDst, deliver(true))
			}
		}
		if w.left.loss > 0 {
			c := *w
			c.left.loss--
			c.net = slices.Delete(slices.Clone(c.net), i, i+1)
			x.add(x.lose[m], true, c)
		}
	}
	if w.path && w.left.cut > 0 && w.srcSaw == sawNothing && w.dstSaw == sawNothing {
		for _, drop := range []bool{true, false} {
			c := *w
			c.left.cut--
			label := "path breaks, what is on the way arrives late"
			if drop {
				c.net = nil
				label = "path breaks, what is on the way is gone"
			}
			x.cut(&c)
			x.add(label, true, c)
		}
	}
	if !w.path && w.srcUp && w.dstUp {
		c := *w
		c.path = true
		c.srcSaw, c.dstSaw = healed(c.srcSaw), healed(c.dstSaw)
		x.add("path heals", false, c)
	}
	if w.srcUp && w.srcSaw != sawNothing {
		ev, rest := saw(w.srcSaw, w.dstInc)
		srcEv(srcSees[w.srcSaw], false, func(c *world) { c.srcSaw = rest }, ev)
	}
	if w.dstUp && w.dstSaw != sawNothing {
		ev, rest := saw(w.dstSaw, w.srcInc)
		dstEv(dstSees[w.dstSaw], false, func(c *world) { c.dstSaw = rest }, ev)
	}

	// The source's executor, disk and clock.
	if w.srcUp {
		if w.src != nil && w.src.phase == SourceWarming {
			srcEv("src: warmed", false, func(*world) {}, Warmed{})
		}
		if w.freezing {
			srcEv("src: frozen", false, func(c *world) { c.freezing, c.srcRun = false, 0 }, Frozen{Head: []byte{1}, Table: []byte{2}})
			if w.left.fault > 0 {
				srcEv("src: freeze failed", true, func(c *world) { c.freezing = false; c.left.fault-- }, FreezeFailed{"busy"})
			}
		}
		if w.srcDisk.pending {
			srcEv("src: persisted", false, func(c *world) { c.srcDisk.sync() }, Persisted{w.srcDisk.id})
			if w.left.disk > 0 {
				for _, there := range []bool{false, true} {
					srcEv(map[bool]string{true: "src: persist failed but is on disk", false: "src: persist failed"}[there], true, func(c *world) {
						c.left.disk--
						c.srcDisk.fail(there)
					}, PersistFailed{w.srcDisk.id, "full"})
				}
			}
		}
		if w.src != nil {
			for i, name := range []string{"src: phase timer", "src: retry timer"} {
				s := w.src.Snapshot()
				if !arm(&s.phaseAt, nil, &s.retryAt, []*time.Time{&s.phaseAt, &s.retryAt}[i]) {
					continue
				}
				srcEv(name, false, func(c *world) { c.src = s.Snapshot() }, Tick{})
			}
			if w.left.cancel > 0 {
				srcEv("src: cancel", true, func(c *world) { c.left.cancel-- }, Cancel{"user"})
			}
			if w.left.abandon > 0 && w.src.asks() {
				srcEv("src: abandon", true, func(c *world) { c.left.abandon--; c.abandoned = true }, Abandon{"operator"})
			}
			if w.left.fault > 0 && w.srcMem {
				srcEv("src: runner died", true, func(c *world) {
					c.left.fault--
					if c.srcRun != 0 || c.src.CanCancel() {
						c.srcLost = epochN // the node tells of a worker that ends by itself
					}
					c.srcRun, c.freezing, c.justified = 0, false, true
				}, RunnerDied{"trap"})
			}
		}
		if w.left.srcCrash > 0 {
			c := *w
			x.crash("src", 0, &c, true)
		}
	} else {
		x.restartSrc(w)
	}

	// The destination's.
	if w.dstUp {
		if w.preparing {
			dstEv("dst: prepared", false, func(c *world) { c.preparing = false }, Prepared{Paging: x.b.paging})
			if w.left.fault > 0 {
				dstEv("dst: prepare failed", true, func(c *world) { c.preparing = false; c.left.fault-- }, PrepareFailed{Code: CodeModule, Reason: "no"})
			}
		}
		pages := w.path && w.srcUp && w.serving && w.srcMem
		if w.filling {
			if pages {
				dstEv("dst: filled", false, func(c *world) { c.filling, c.full = false, true }, FilledAll{})
			}
			if w.left.fault > 0 {
				dstEv("dst: fill failed", true, func(c *world) { c.filling = false; c.left.fault-- }, FillFailed{"hash"})
			}
		}
		if w.resuming {
			dstEv("dst: resumed", false, func(c *world) { c.resuming = false; c.dstRun = epochN + 1 }, Resumed{})
			if w.left.fault > 0 {
				dstEv("dst: resume failed", true, func(c *world) {
					c.left.fault--
					c.resuming = false
					c.justified = c.justified || !c.srcMem
				}, ResumeFailed{"no"})
			}
		}
		if w.draining {
			switch {
			case pages && x.b.files:
				dstEv("dst: memory is in", false, func(c *world) { c.draining, c.full, c.files = false, true, true }, MemoryIn{})
			case pages:
				dstEv("dst: drained", false, func(c *world) { c.draining, c.full = false, true }, DrainedAll{})
			}
			if w.path && w.srcUp && !w.serving {
				dstEv("dst: source does not serve", false, func(c *world) { c.draining = false }, PagesGone{"not served"})
			}
			if w.left.fault > 0 {
				dstEv("dst: bad page", true, func(c *world) {
					c.left.fault--
					c.draining = false
					c.justified = c.justified || c.released || !c.srcMem
				}, PagesGone{"hash"})
			}
		}
		if w.files {
			// Those that cannot be had are given up.
			dstEv("dst: drained", false, func(c *world) { c.files = false }, DrainedAll{})
		}
		if w.dstDisk.pending {
			dstEv("dst: persisted", false, func(c *world) { c.dstDisk.sync() }, Persisted{w.dstDisk.id})
			if w.left.disk > 0 {
				for _, there := range []bool{false, true} {
					dstEv(map[bool]string{true: "dst: persist failed but is on disk", false: "dst: persist failed"}[there], true, func(c *world) {
						c.left.disk--
						c.dstDisk.fail(there)
						// The only copy, and a disk that does not take it: given back
						// in vain, unless the destination knows better.
						c.justified = c.justified || !c.srcMem && !c.dst.orphan
					}, PersistFailed{w.dstDisk.id, "full"})
				}
			}
		}
		if w.dst != nil {
			for i, name := range []string{"dst: phase timer", "dst: path timer", "dst: retry timer"} {
				d := w.dst.Snapshot()
				if !arm(&d.phaseAt, &d.pathAt, &d.retryAt, []*time.Time{&d.phaseAt, &d.pathAt, &d.retryAt}[i]) {
					continue
				}
				dstEv(name, false, func(c *world) {
					// A path that stays away for longer than the patience, or a
					// runner that does not resume the only copy.
					c.justified = c.justified || i == 1 && c.released && !c.full || i == 0 && d.phase == DestTaking && !c.srcMem
					c.dst = d.Snapshot()
				}, Tick{})
			}
			if w.left.cancel > 0 {
				dstEv("dst: cancel", true, func(c *world) { c.left.cancel-- }, Cancel{"user"})
			}
			if w.left.fault > 0 && (w.dstRun != 0 || w.dst.CanCancel() || w.resuming) && w.dst.phase != DestSettling {
				dstEv("dst: runner died", true, func(c *world) {
					c.left.fault--
					c.dstRun, c.resuming = 0, false
					c.justified = c.justified || c.released || !c.srcMem
				}, RunnerDied{"trap"})
			}
		}
		if x.b.onward {
			if w.dst != nil && w.dst.phase == DestSettling {
				dstEv("dst: move on", true, nil, MoveOn{})
			}
			r := w.dstDisk.rec
			if w.dst == nil && !w.dstDisk.pending && w.dstRun != 0 && r.Own == OwnTaken {
				c := *w
				c.dstRun, c.wentOn, c.released, c.full = 0, true, false, false
				gone := r.become(OwnGone, r.Epoch+1, t0)
				gone.Move, gone.Peer = onward, "third"
				c.dstDisk.rec = &gone
				x.add("dst: moved on to a third node", true, c)
			}
			if w.dst == nil && !w.dstDisk.pending && r.Worker != "" && !r.Own.Owned() && len(r.Unsettled) == 0 {
				c := *w
				c.dstDisk.rec = noRecord
				x.add("dst: record expires", true, c)
			}
		}
		if w.left.dstCrash > 0 {
			c := *w
			x.crash("dst", 0, &c, false)
		}
	} else {
		c := *w
		c.dstUp = true
		c.dstInc++
		if c.dstDisk.rec.Worker != "" {
			r, todo := Recover(*c.dstDisk.rec, t0)
			c.dstDisk.rec = &r
			if todo == TodoLost {
				c.dstLost = max(c.dstLost, c.dstDisk.rec.Epoch)
			}
		}
		x.add("dst: restart", false, c)
	}
	return x.edges
}

// arm makes the one timer due and the others not.
func arm(phase, path, retry *time.Time, due *time.Time) bool {
	if due.IsZero() {
		return false
	}
	for _, t := range []*time.Time{phase, path, retry} {
		if t != nil && !t.IsZero() {
			*t = t0.Add(time.Hour)
		}
	}
	*due = t0
	return true
}

func (d *disk) sync() {
	d.rec, d.pending, d.next, d.id = d.next, false, noRecord, 0
}

func (d *disk) fail(there bool) {
	if there {
		d.rec = d.next
	}
	d.pending, d.next, d.id = false, noRecord, 0
}

func saw(s uint8, inc uint64) (Event, uint8) {
	switch s {
	case sawDown:
		return PathDown{}, sawNothing
	case sawDownUp:
		return PathDown{}, sawUp
	}
	return PathUp{Incarnation: inc}, sawNothing
}

func healed(s uint8) uint8 {
	if s == sawDown {
		return sawDownUp
	}
	return sawUp
}

func (x *explorer) cut(w *world) {
	w.path = false
	w.srcSaw, w.dstSaw = sawDown, sawDown
}

// crash adds the ways in which a node can crash now: the write under way is on
// disk or not, what it had sent arrives late or never.
func (x *explorer) crash(what string, after int, w *world, isSrc bool) {
	broken := x.broken
	for _, drop := range []bool{true, false} {
		if !drop && len(w.net) == 0 {
			continue
		}
		for _, there := range []bool{false, true} {
			c := *w
			d := &c.srcDisk
			if !isSrc {
				d = &c.dstDisk
			}
			if there && !d.pending {
				continue
			}
			if d.pending {
				d.fail(there)
			}
			x.cut(&c)
			if drop {
				c.net = nil
			}
			if isSrc {
				c.left.srcCrash--
				// Whatever the destination still lacks is gone with it.
				c.justified = c.justified || c.srcMem && !(c.full && (c.dstRun != 0 || c.resuming))
				c.src, c.srcUp, c.srcSaw = nil, false, sawNothing
				c.srcRun, c.srcMem, c.freezing, c.serving = 0, false, false, false
			} else {
				c.left.dstCrash--
				c.justified = c.justified || d.rec.Own == OwnTaken || (c.dstRun != 0 || c.resuming) && !c.srcMem
				c.dst, c.dstUp, c.dstSaw = nil, false, sawNothing
				c.dstRun, c.full, c.released = 0, false, false
				c.preparing, c.filling, c.resuming, c.draining, c.files = false, false, false, false, false
			}
			x.broken = broken
			x.addLabel(label{what: what, after: int8(after), there: there, gone: drop}, true, c)
		}
	}
}

func (x *explorer) restartSrc(w *world) {
	x.step("src: restart", false, w, true, func(c *world, limit int) int {
		c.srcUp = true
		c.srcInc++
		r, todo := Recover(*c.srcDisk.rec, t0)
		c.srcDisk.rec = &r
		switch todo {
		case TodoLost:
			c.srcLost = max(c.srcLost, c.srcDisk.rec.Epoch)
		case TodoAsk:
			s, err := RestartSource(r, c.srcInc, Params{})
			if err != nil {
				x.fail("restart: %v", err)
				return 0
			}
			c.src = s
			return x.onSrc(c, Start{}, limit)
		}
		return 0
	})
}

// arriveSrc is what a node does with a message for a source.
func (x *explorer) arriveSrc(w *world, m Message, limit int) int {
	if w.src != nil {
		return x.onSrc(w, Received{m}, limit)
	}
	x.answer(w, Answer(w.srcDisk.known(), m, w.srcInc), &w.srcDisk)
	return 0
}

func (x *explorer) arriveDst(w *world, m Message, limit int) int {
	if w.dst == nil {
		if m.Body.Type() != TypeOffer {
			x.answer(w, Answer(w.dstDisk.known(), m, w.dstInc), &w.dstDisk)
			return 0
		}
		w.tickets++
		d, err := NewDest(DestConfig{Peer: "src", Incarnation: w.dstInc, Ticket: w.tickets, Known: w.dstDisk.known()})
		if err != nil {
			x.fail("new destination: %v", err)
			return 0
		}
		w.dst = d
	}
	return x.onDst(w, Received{m}, limit)
}

// known is what the journal gives for the worker.
func (d *disk) known() *Record {
	if d.rec == noRecord {
		return nil
	}
	return d.rec
}

func (d *disk) settle(m MoveID) {
	r := *d.rec
	r.Unsettled = r.unsettledWithout(m)
	d.rec = &r
}

func (x *explorer) answer(w *world, a Answered, d *disk) {
	if a.Settle != (MoveID{}) {
		d.settle(a.Settle)
	}
	if a.Reply != nil {
		x.send(w, *a.Reply)
	}
}

func (x *explorer) onSrc(w *world, ev Event, limit int) int {
	if w.src == nil {
		return 0
	}
	s := w.src.Snapshot()
	w.src = s
	acts := x.srcHand(s, ev, t0)
	for i, a := range acts {
		if i == limit {
			break
		}
		x.doSrc(w, a)
	}
	return len(acts)
}

func (x *explorer) onDst(w *world, ev Event, limit int) int {
	if w.dst == nil {
		return 0
	}
	d := w.dst.Snapshot()
	w.dst = d
	acts := x.dstHand(d, ev, t0)
	for i, a := range acts {
		if i == limit {
			break
		}
		x.doDst(w, a)
	}
	return len(acts)
}

func (x *explorer) doSrc(w *world, a Action) {
	switch a := a.(type) {
	case Send:
		if a.Message.Body.Type() == TypeCommit {
			w.committed = true
			if w.srcRun != 0 || w.srcDisk.rec.Own != OwnMovingOut {
				x.fail("COMMIT left while the worker ran or was not journaled as moving out")
			}
		}
		x.send(w, a.Message)
	case Persist:
		x.persist(&w.srcDisk, a)
	case Warm: // for as long as the machine is in SourceWarming
	case Freeze:
		w.freezing = true
	case Thaw:
		w.freezing = false
		if !w.srcMem {
			x.fail("thaw without memory")
		}
		if w.committed && (a.Epoch != epochN+2 || w.srcDisk.rec.Epoch != a.Epoch) {
			x.fail("thaw in epoch N+%d after COMMIT left, the journal has N+%d", a.Epoch-epochN, w.srcDisk.rec.Epoch-epochN)
		}
		if !w.committed && a.Epoch != epochN {
			x.fail("thaw in epoch N+%d although COMMIT never left", a.Epoch-epochN)
		}
		w.srcRun = a.Epoch
	case ServePages:
		w.serving = true
	case StopServing:
		w.serving = false
	case Forget:
		if w.srcMem && !w.everFull {
			x.fail("the source forgets what the destination does not have")
		}
		w.srcMem, w.srcRun = false, 0
	case Lose:
		if a.Reason == "" {
			x.fail("lost without a reason")
		}
		if w.srcRun != 0 {
			x.fail("a running worker is called lost")
		}
		w.srcMem = false
		w.srcLost = max(w.srcLost, a.Epoch)
	case Finish:
		w.src = nil
	case Note:
	default:
		x.fail("source: %T", a)
	}
}

func (x *explorer) doDst(w *world, a Action) {
	switch a := a.(type) {
	case Send:
		x.send(w, a.Message)
	case Persist:
		x.persist(&w.dstDisk, a)
	case Prepare:
		w.preparing = true
	case Fill:
		w.filling = true
	case Resume:
		if !a.Paging && !w.full {
			x.fail("resumed without paging and without pages")
		}
		w.resuming = true
	case Drain:
		w.draining = true
	case ReleaseOutput:
		if w.dstDisk.rec.Own != OwnTaken || w.dstRun == 0 {
			x.fail("output left before the journal had the worker")
		}
		w.released, w.everReleased = true, true
		if w.full && !w.files {
			w.everFull = true
		}
	case Discard, Lose:
		if l, ok := a.(Lose); ok {
			if l.Reason == "" {
				x.fail("lost without a reason")
			}
			w.dstLost = max(w.dstLost, l.Epoch)
		} else if w.released {
			x.fail("a worker that has spoken is discarded")
		}
		w.dstRun, w.full, w.released = 0, false, false
		w.preparing, w.filling, w.resuming, w.draining, w.files = false, false, false, false, false
	case Settle:
		w.dstDisk.settle(a.Move)
	case Finish:
		w.dst = nil
	case Note:
	default:
		x.fail("destination: %T", a)
	}
	if w.released && w.full && !w.files {
		w.everFull = true
	}
}

func (x *explorer) persist(d *disk, a Persist) {
	if d.pending {
		x.fail("two writes under way")
	}
	if err := a.Record.Validate(); err != nil {
		x.fail("record: %v", err)
	}
	if d.rec.Epoch > a.Record.Epoch {
		x.fail("the journal goes back from epoch N+%d to N+%d", d.rec.Epoch-epochN, a.Record.Epoch-epochN)
	}
	*d = disk{rec: d.rec, pending: true, id: a.ID, next: &a.Record}
}

func (x *explorer) send(w *world, m Message) {
	if !w.path {
		return
	}
	n := x.number(m)
	if i, ok := slices.BinarySearch(w.net, n); !ok {
		w.net = slices.Insert(slices.Clone(w.net), i, n)
	}
}

// number gives equal messages one number. Their words do not matter.
func (x *explorer) number(m Message) uint16 {
	key := msgKey{t: m.Body.Type(), inc: byte(m.Incarnation), ticket: byte(m.Ticket)}
	switch b := m.Body.(type) {
	case Accept:
		key.flag = b.Paging
	case Running:
		key.flag = b.Durable
	case Commit:
		key.epoch = byte(b.Epoch)
	case Query:
		key.epoch = byte(b.Epoch)
	case Status:
		key.state, key.epoch, key.flag = b.State, byte(b.Epoch), b.Drained
	}
	n, ok := x.index[key]
	if !ok {
		b, err := (Limits{}).Encode(m)
		if err == nil {
			m, err = (Limits{}).Decode(b)
		}
		if err != nil {
			x.fail("send: %v", err)
		}
		n = uint16(len(x.msgs))
		x.index[key] = n
		x.msgs = append(x.msgs, m)
		what := fmt.Sprintf("%s %+v (incarnation %d, ticket %d)", m.Body.Type(), m.Body, m.Incarnation, m.Ticket)
		x.labels = append(x.labels, what+" arrives")
		x.lose = append(x.lose, what+" is lost")
		x.copies = append(x.copies, "a copy of "+what+" arrives")
	}
	return n
}

type msgKey struct {
	t                  Type
	inc, ticket, epoch byte
	state              State
	flag               bool
}

// hash is of everything in w that can matter to what comes.
func (x *explorer) hash(w *world) uint64 {
	b := x.buf[:0]
	bit := func(vs ...bool) {
		var n byte
		for i, v := range vs {
			if i > 0 && i%8 == 0 {
				b, n = append(b, n), 0
			}
			if v {
				n |= 1 << (i % 8)
			}
		}
		b = append(b, n)
	}
	rec := func(r *Record) {
		b = append(b, byte(r.Own), byte(r.Epoch), r.Move[0], byte(len(r.Unsettled)), byte(r.Ticket))
	}
	if s := w.src; s == nil {
		b = append(b, 0xff)
	} else {
		b = append(b, byte(s.phase), byte(s.ticket), byte(s.peerInc), byte(s.inc), byte(s.result.Outcome), byte(s.result.Epoch))
		bit(s.copyAll, s.frozen, s.serving, s.memory, s.durable, s.touched, s.writing != 0, !s.phaseAt.IsZero(), !s.retryAt.IsZero(), s.head != nil)
		rec(&s.want)
	}
	if d := w.dst; d == nil {
		b = append(b, 0xff)
	} else {
		b = append(b, byte(d.phase), byte(d.ticket), byte(d.srcInc), byte(d.inc), byte(d.result.Outcome), byte(d.result.Epoch))
		bit(d.copyAll, d.resumed, d.durable, d.released, d.memoryIn, d.allIn, d.asked, d.told, d.orphan, d.writing != 0,
			!d.phaseAt.IsZero(), !d.pathAt.IsZero(), !d.retryAt.IsZero(), d.accept.Paging)
		rec(&d.want)
		rec(&d.known)
	}
	for _, d := range [...]*disk{&w.srcDisk, &w.dstDisk} {
		rec(d.rec)
		bit(d.pending)
		rec(d.next)
	}
	bit(w.srcUp, w.dstUp, w.srcMem, w.freezing, w.serving, w.preparing, w.filling, w.resuming, w.draining,
		w.full, w.files, w.released, w.path, w.committed, w.everReleased, w.everFull, w.wentOn, w.abandoned, w.justified)
	b = append(b, byte(w.srcInc), byte(w.dstInc), byte(w.tickets), byte(w.srcRun), byte(w.dstRun),
		w.srcSaw, w.dstSaw, byte(w.srcLost), byte(w.dstLost),
		byte(w.left.loss), byte(w.left.dup), byte(w.left.srcCrash), byte(w.left.dstCrash), byte(w.left.cut),
		byte(w.left.cancel), byte(w.left.abandon), byte(w.left.fault), byte(w.left.disk))
	for _, n := range w.net {
		b = binary.BigEndian.AppendUint16(b, n)
	}
	x.buf = b
	return maphash.Bytes(x.seed, b)
}
