package handover

import (
	"errors"
	"fmt"
	"time"
)

// A DestPhase is where a Dest stands.
type DestPhase uint8

const (
	DestNew       DestPhase = iota // before OFFER
	DestPreparing                  // module, runner
	DestPrepared                   // ACCEPT sent
	DestFilling                    // stop-and-copy: pages come in
	DestFilled                     // FILLED sent
	DestTaking                     // resumes, and its entry is on its way to the disk
	DestDraining                   // runs and speaks; pages still missing
	DestSettling                   // DRAINED sent; the move is over but for DONE
	DestRejecting                  // taken back; "declined" on its way to the disk
	DestLosing                     // lost; on its way to the disk
	DestLost                       // lost; told the source, which has not said DONE
	DestDone
)

var destPhases = [...]string{
	"new", "preparing", "prepared", "filling", "filled", "taking", "draining", "settling",
	"rejecting", "losing", "lost", "done",
}

// String returns the phase in one word.
func (p DestPhase) String() string {
	if int(p) < len(destPhases) {
		return destPhases[p]
	}
	return fmt.Sprintf("phase %d", uint8(p))
}

// A DestConfig describes the side that takes a worker. A node makes one for an
// OFFER of a move for which it has no machine.
type DestConfig struct {
	// Peer is the source's authenticated node id; Incarnation is this node's.
	Peer        string
	Incarnation uint64
	// Ticket is new: [NewTicket]. Everything rests on it.
	Ticket uint64
	// Known is the journal's record of the worker, nil if none. While the Dest
	// lives nobody else writes one.
	Known  *Record
	Params Params
}

// A Dest is the side that takes a worker. Not safe for concurrent use. It is a
// plain value: a copy is a snapshot.
type Dest struct {
	peer   string
	inc    uint64
	ticket uint64
	known  Record // zero if none
	params Params

	phase   DestPhase
	move    MoveID
	offer   Offer
	srcInc  uint64 // the source's, from OFFER
	copyAll bool   // every page travels before COMMIT
	accept  Accept
	meta    []byte

	resumed  bool
	durable  bool // the taken entry is on disk
	released bool // what the worker says leaves the node
	memoryIn bool // the worker needs no more of the source
	allIn    bool // nor is there anything that it could use
	asked    bool // a QUERY waits for its answer
	orphan   bool // the source has restarted: what is here is the only copy
	told     bool // REJECTED was sent although the disk may say taken

	seq     uint64
	writing uint64
	want    Record
	result  Result

	phaseAt time.Time // end of the phase
	holdEnd time.Time // latest end of DestPrepared
	pathAt  time.Time // end of the patience with a broken path
	retryAt time.Time // next DRAINED, STATUS or attempt to write
	retries int
}

// NewDest returns the machine for a move; feed it Received with the OFFER.
func NewDest(cfg DestConfig) (*Dest, error) {
	switch {
	case !printable(cfg.Peer, 64):
		return nil, errors.New("hand-over destination: no peer")
	case cfg.Incarnation == 0:
		return nil, errors.New("hand-over destination: no incarnation")
	case cfg.Ticket == 0:
		return nil, errors.New("hand-over destination: no ticket")
	}
	if err := cfg.Params.Validate(); err != nil {
		return nil, err
	}
	d := &Dest{peer: cfg.Peer, inc: cfg.Incarnation, ticket: cfg.Ticket, params: cfg.Params.withDefaults()}
	if cfg.Known != nil {
		if err := cfg.Known.Validate(); err != nil {
			return nil, fmt.Errorf("hand-over destination: record: %w", err)
		}
		d.known = *cfg.Known
	}
	return d, nil
}

// Phase says where the move stands.
func (d *Dest) Phase() DestPhase { return d.phase }

// Move and Peer name the move (zero before OFFER) and the source.
func (d *Dest) Move() MoveID { return d.move }
func (d *Dest) Peer() string { return d.peer }

// Offer returns what was offered; zero before OFFER.
func (d *Dest) Offer() Offer { return d.offer }

// Ticket returns the ticket that the page streams of this move carry.
func (d *Dest) Ticket() uint64 { return d.ticket }

// CanCancel says that a Cancel would still end the move here: COMMIT has not
// come.
func (d *Dest) CanCancel() bool { return d.phase >= DestPreparing && d.phase <= DestFilled }

// Deadline returns when the machine wants a Tick, if ever.
func (d *Dest) Deadline() (time.Time, bool) { return earliest(d.phaseAt, d.pathAt, d.retryAt) }

// Snapshot returns a copy that shares no state with d that either changes.
func (d *Dest) Snapshot() *Dest {
	c := *d
	return &c
}

// Handle takes one event and returns what to do, in order. The first event of a
// machine is Received with the OFFER. Now never goes backwards.
func (d *Dest) Handle(ev Event, now time.Time) []Action {
	switch ev := ev.(type) {
	case Received:
		return d.receive(ev.Message, now)
	case Prepared:
		if d.phase == DestPreparing {
			return d.prepared(ev, now)
		}
	case PrepareFailed:
		if d.phase == DestPreparing {
			return d.refuse(ev.Code, ev.Reason, ev.Hint)
		}
	case FilledAll:
		if d.phase == DestFilling {
			d.phase = DestFilled
			d.phaseAt = now.Add(d.params.HoldTimeout)
			return []Action{d.send(Filled{})}
		}
	case FillFailed:
		if d.phase == DestFilling {
			return d.refuse(CodePages, ev.Reason, "")
		}
	case Progress:
		switch d.phase {
		case DestPrepared:
			// Pages that trickle in do not hold a runner for ever.
			if d.phaseAt = now.Add(d.params.HoldTimeout); d.phaseAt.After(d.holdEnd) {
				d.phaseAt = d.holdEnd
			}
		case DestFilling:
			d.phaseAt = now.Add(d.params.FillTimeout)
		}
	case Resumed:
		if d.phase == DestTaking && !d.resumed {
			d.resumed, d.phaseAt = true, time.Time{}
			return append([]Action{d.send(Running{Durable: d.durable})}, d.release(now)...)
		}
	case ResumeFailed:
		if d.phase == DestTaking {
			return d.fail(CodeRunner, "it could not resume: "+ev.Reason, now)
		}
	case MemoryIn:
		if d.phase == DestTaking || d.phase == DestDraining {
			d.memoryIn, d.pathAt = true, time.Time{}
		}
	case DrainedAll:
		return d.drained(now)
	case PagesGone:
		return d.pagesGone(CodePages, ev.Reason, now)
	case RunnerDied:
		switch {
		case d.CanCancel():
			return d.refuse(CodeRunner, "the runner ended: "+ev.Reason, "")
		case d.phase == DestTaking || d.phase == DestDraining:
			return d.fail(CodeRunner, "its process ended: "+ev.Reason, now)
		}
		// In DestSettling the move is over: a worker that ends then is the
		// node's to tell of.
	case Persisted:
		if ev.ID == d.writing && ev.ID != 0 {
			d.writing = 0
			return d.persisted(now)
		}
	case PersistFailed:
		if ev.ID == d.writing && ev.ID != 0 {
			d.writing = 0
			return d.persistFailed(ev.Reason, now)
		}
	case PathDown:
		switch {
		case d.CanCancel():
			// The source gives up as well.
			return d.refuse(CodePath, "the path to the source broke", "")
		case (d.phase == DestTaking || d.phase == DestDraining) && !d.memoryIn && d.pathAt.IsZero():
			d.pathAt = now.Add(d.params.DrainTimeout)
		}
	case PathUp:
		d.pathAt = time.Time{}
		if ev.Incarnation != 0 && ev.Incarnation != d.srcInc {
			if out := d.restarted(now); out != nil {
				return out
			}
		}
		if d.phase == DestSettling || d.phase == DestLost {
			return d.repeat(now)
		}
	case Cancel:
		if d.CanCancel() {
			return d.refuse(CodeCancelled, ev.Reason, "")
		}
		return note("cancel ignored in phase %s", d.phase)
	case MoveOn:
		if d.phase == DestSettling {
			return []Action{d.finish()}
		}
		return note("cannot move on in phase %s", d.phase)
	case Tick:
		return d.tick(now)
	default:
		return note("%T is not for a destination", ev)
	}
	return nil
}

func (d *Dest) send(b Body) Action {
	return Send{Message{Move: d.move, Worker: d.offer.Worker, Incarnation: d.inc, Ticket: d.ticket, Body: b}}
}

// persist hands out a write; the caller has made sure that none is under way.
func (d *Dest) persist(r Record) Action {
	d.seq++
	d.writing, d.want = d.seq, r
	return Persist{ID: d.seq, Record: r}
}

// record returns the journal's entry for a fate of the worker here.
func (d *Dest) record(own Ownership, now time.Time) Record {
	return Record{
		Worker: d.offer.Worker, Epoch: d.offer.Epoch + 1, Own: own, Move: d.move, Peer: d.peer,
		Updated: now.Unix(), Meta: d.meta,
	}
}

func (d *Dest) receive(m Message, now time.Time) []Action {
	if m.Body == nil {
		return note("message without a body")
	}
	t := m.Body.Type()
	if d.phase == DestNew {
		if o, ok := m.Body.(Offer); ok {
			return d.offered(m, o, now)
		}
		return note("%s before OFFER", t)
	}
	if m.Move != d.move || m.Worker != d.offer.Worker {
		return note("message of another move")
	}
	if m.Incarnation != d.srcInc {
		if q, ok := m.Body.(Query); ok && q.Epoch == d.offer.Epoch+1 && m.Ticket == d.ticket && (d.phase == DestTaking || d.phase == DestDraining) {
			d.asked = true // by a source that has restarted; answered by what follows
		}
		if out := d.restarted(now); out != nil {
			return out
		}
	}
	switch b := m.Body.(type) {
	case Offer:
		if d.phase == DestPrepared { // a copy
			return []Action{d.send(d.accept)}
		}
		return nil
	case FrozenBody:
		if d.phase == DestPrepared && d.copyAll && m.Ticket == d.ticket {
			d.phase = DestFilling
			d.phaseAt = now.Add(d.params.FillTimeout)
			return []Action{Fill(b)}
		}
	case Commit:
		return d.commit(m, b, now)
	case Abort:
		if d.CanCancel() {
			return d.drop(CodeCancelled, b.Reason, "")
		}
	case Query:
		return d.query(m, b, now)
	case Done:
		if m.Ticket != d.ticket {
			break
		}
		if d.phase == DestSettling || d.phase == DestLost {
			return []Action{Settle{Worker: d.offer.Worker, Move: d.move}, d.finish()}
		}
	}
	return note("%s in phase %s", t, d.phase)
}

func (d *Dest) offered(m Message, o Offer, now time.Time) []Action {
	d.move, d.srcInc, d.offer = m.Move, m.Incarnation, o
	no := func(code Code, reason, hint string) []Action {
		d.result = Result{Outcome: Kept, Epoch: o.Epoch, Code: code, Reason: reason, Hint: hint}
		// Without a ticket: this Dest never had anything to give up.
		return []Action{
			Send{Message{Move: d.move, Worker: o.Worker, Incarnation: d.inc, Body: Refuse{Code: code, Reason: reason, Hint: hint}}},
			d.finish(),
		}
	}
	k := d.known
	switch {
	case k.Worker != "" && k.Worker != o.Worker:
		return no(CodeProtocol, "the record is another worker's", "this is a bug")
	case !o.Strategy.known():
		return no(CodeStrategy, o.Strategy.String()+" is not known here", "update meshnode at the destination, or choose post-copy")
	case k.Epoch > o.Epoch, k.Epoch == o.Epoch && k.Own.Owned():
		return no(CodeStale, fmt.Sprintf("the offer is of epoch %d, and the destination knows epoch %d (%s)", o.Epoch, k.Epoch, k.Own), "find the worker's home with worker show")
	case k.Own == OwnMovingOut:
		// Its Source has not heard yet how that ended, and writes the record
		// when it does. It asks by itself, so this passes.
		return no(CodeBusy, fmt.Sprintf("the destination gave the worker to %s in epoch %d and has not heard back", k.Peer, k.Epoch+1), "try again in a moment")
	case len(k.Unsettled) >= maxUnsettled:
		return no(CodeBusy, fmt.Sprintf("%d earlier moves of this worker to the destination were never settled", len(k.Unsettled)), "bring their sources back, or choose another destination")
	}
	d.phase = DestPreparing
	d.phaseAt = now.Add(d.params.HoldTimeout)
	return []Action{Prepare{Offer: o}}
}

func (d *Dest) prepared(ev Prepared, now time.Time) []Action {
	if len(ev.Meta) > MaxMetaBytes {
		return d.refuse(CodeOther, fmt.Sprintf("its journal record has %d bytes, limit %d", len(ev.Meta), MaxMetaBytes), "")
	}
	d.phase = DestPrepared
	d.phaseAt = now.Add(d.params.HoldTimeout)
	d.holdEnd = now.Add(d.params.WarmTimeout + d.params.HoldTimeout)
	d.meta = ev.Meta
	d.accept = Accept{Paging: ev.Paging}
	d.copyAll = d.offer.Strategy.copiesAll(ev.Paging)
	return []Action{d.send(d.accept)}
}

// drop ends the move before COMMIT without a word to the source.
func (d *Dest) drop(code Code, reason, hint string) []Action {
	d.result = Result{Outcome: Kept, Epoch: d.offer.Epoch, Code: code, Reason: cut(reason), Hint: cut(hint)}
	return []Action{Discard{}, d.finish()}
}

// refuse ends the move before COMMIT. Discard comes first: what the source
// hears is already so.
func (d *Dest) refuse(code Code, reason, hint string) []Action {
	m := d.send(Refuse{Code: code, Reason: cut(reason), Hint: cut(hint)}).(Send)
	if d.phase == DestPreparing {
		m.Message.Ticket = 0 // the source does not know it yet
	}
	out := d.drop(code, reason, hint)
	return []Action{out[0], m, out[1]}
}

func (d *Dest) commit(m Message, c Commit, now time.Time) []Action {
	switch d.phase {
	case DestPreparing, DestPrepared, DestFilling, DestFilled:
	case DestSettling, DestLost:
		return d.repeat(now)
	default:
		return nil // a copy
	}
	why := ""
	switch {
	case m.Ticket != d.ticket:
		// A late copy of this move's COMMIT from before this node restarted or
		// gave the move up. Nobody holds that ticket any more.
		why = "the destination no longer holds what it had prepared"
	case d.phase == DestPreparing:
		why = "COMMIT before ACCEPT"
	case c.Epoch != d.offer.Epoch+1:
		why = fmt.Sprintf("COMMIT of epoch %d after an offer of epoch %d", c.Epoch, d.offer.Epoch)
	case d.copyAll && d.phase != DestFilled:
		why = "COMMIT before every page was there"
	}
	if why != "" {
		out := d.drop(CodeProtocol, why, "")
		rej := Send{Message{Move: d.move, Worker: d.offer.Worker, Incarnation: d.inc, Ticket: m.Ticket,
			Body: Rejected{Code: CodeProtocol, Reason: why}}}
		return []Action{out[0], rej, out[1]}
	}
	d.phase = DestTaking
	d.phaseAt = now.Add(d.params.ResumeTimeout)
	d.memoryIn, d.allIn = d.copyAll, d.copyAll
	r := d.record(OwnTaken, now)
	r.Unsettled = d.known.unsettledWith(d.move)
	// The write first: it takes longest and everything else runs beside it. Of
	// what is started for these actions, Go runs the last at once: the worker
	// waits for that one.
	out := []Action{d.persist(r)}
	if !d.allIn {
		out = append(out, Drain{})
	}
	return append(out, Resume{Head: c.Head, Epoch: c.Epoch, Paging: !d.copyAll})
}

func (d *Dest) query(m Message, q Query, now time.Time) []Action {
	if d.CanCancel() {
		// The source no longer waits for RUNNING: COMMIT is lost, or late. From
		// here on it is "never".
		const why = "COMMIT never came"
		out := d.drop(CodePath, why, "")
		st := Send{Message{Move: d.move, Worker: d.offer.Worker, Incarnation: d.inc, Ticket: m.Ticket,
			Body: Status{State: NeverTook, Epoch: d.known.Epoch, Reason: why}}}
		return []Action{out[0], st, out[1]}
	}
	if m.Ticket != d.ticket || q.Epoch != d.offer.Epoch+1 {
		return note("QUERY for epoch %d with another ticket in phase %s", q.Epoch, d.phase)
	}
	switch d.phase {
	case DestTaking:
		d.asked = true // not known yet
	case DestDraining:
		return []Action{d.took()}
	case DestSettling, DestLost:
		return d.repeat(now)
	case DestRejecting:
		if d.told {
			return []Action{d.rejected()}
		}
	}
	return nil
}

func (d *Dest) took() Action {
	return d.send(Status{State: Took, Epoch: d.offer.Epoch + 1, Drained: d.allIn})
}

// release lets the worker speak once it runs and its entry is on disk.
func (d *Dest) release(now time.Time) []Action {
	if !d.resumed || !d.durable {
		return nil
	}
	d.released = true
	out := []Action{ReleaseOutput{}}
	if d.allIn {
		return append(out, d.settle(now)...)
	}
	d.phase = DestDraining
	out = append(out, d.send(Taken{}))
	if d.asked {
		d.asked = false
		out = append(out, d.took())
	}
	return out
}

func (d *Dest) settle(now time.Time) []Action {
	d.phase = DestSettling
	d.pathAt = time.Time{}
	d.phaseAt = now.Add(d.params.DoneTimeout)
	d.retries = 0
	d.result = Result{Outcome: Moved, Epoch: d.offer.Epoch + 1}
	return d.repeat(now)
}

// repeat says what the source has to know before it can say DONE.
func (d *Dest) repeat(now time.Time) []Action {
	d.again(now)
	if d.phase == DestLost {
		return []Action{d.send(Status{State: TookButLost, Epoch: d.offer.Epoch + 1, Reason: d.result.Reason})}
	}
	return []Action{d.send(Drained{})}
}

func (d *Dest) again(now time.Time) {
	d.retryAt = now.Add(d.params.retry(d.retries))
	if d.params.retry(d.retries) < d.params.MaxRetryInterval {
		d.retries++
	}
}

func (d *Dest) drained(now time.Time) []Action {
	switch {
	case d.phase == DestTaking && !d.allIn:
		d.memoryIn, d.allIn, d.pathAt = true, true, time.Time{}
	case d.phase == DestDraining:
		d.memoryIn, d.allIn = true, true
		return d.settle(now)
	}
	return nil
}

func (d *Dest) pagesGone(code Code, reason string, now time.Time) []Action {
	if (d.phase == DestTaking || d.phase == DestDraining) && !d.memoryIn {
		return d.fail(code, reason, now)
	}
	return nil
}

// restarted is called when the source turns out to be another process than the
// one that made the offer: the worker's memory there is gone.
func (d *Dest) restarted(now time.Time) []Action {
	switch {
	case d.CanCancel():
		return nil // a COMMIT cannot come any more; QUERY or the deadline ends it
	case d.phase == DestTaking && d.memoryIn:
		d.orphan = true
	case (d.phase == DestTaking || d.phase == DestDraining) && !d.memoryIn:
		return d.fail(CodePages, "the source "+d.peer+" restarted while pages were still to come", now)
	}
	return nil
}

// fail ends a worker that was taken. As long as it has not said anything it can
// be given back; afterwards it is lost.
func (d *Dest) fail(code Code, reason string, now time.Time) []Action {
	reason = cut(reason)
	d.phaseAt, d.pathAt, d.retryAt, d.retries = time.Time{}, time.Time{}, time.Time{}, 0
	if !d.released {
		d.phase = DestRejecting
		d.result = Result{Outcome: Kept, Epoch: d.offer.Epoch, Code: code, Reason: reason}
		out := []Action{Discard{}}
		if d.writing != 0 {
			return out // the entry has to be on disk, or not, before it can be replaced
		}
		return append(out, d.persist(d.declined(now)))
	}
	d.phase = DestLosing
	d.result = Result{Outcome: Lost, Epoch: d.offer.Epoch + 1, Code: code, Reason: reason}
	r := d.record(OwnLost, now)
	r.Reason = reason
	r.Unsettled = d.known.unsettledWith(d.move)
	// Released means that the taken entry is on disk, so no write is under way.
	return []Action{Lose{Epoch: d.offer.Epoch + 1, Reason: reason}, d.persist(r)}
}

func (d *Dest) declined(now time.Time) Record {
	r := d.record(OwnDeclined, now)
	r.Reason = d.result.Reason
	r.Unsettled = d.known.Unsettled
	return r
}

func (d *Dest) rejected() Action {
	return d.send(Rejected{Code: d.result.Code, Reason: d.result.Reason})
}

func (d *Dest) finish() Action {
	d.phase = DestDone
	d.phaseAt, d.pathAt, d.retryAt = time.Time{}, time.Time{}, time.Time{}
	d.result.Record = d.want
	return Finish{d.result}
}

func (d *Dest) persisted(now time.Time) []Action {
	switch d.phase {
	case DestTaking:
		d.durable = true
		return d.release(now)
	case DestRejecting:
		if d.want.Own == OwnTaken {
			return []Action{d.persist(d.declined(now))}
		}
		return []Action{d.rejected(), d.finish()}
	case DestLosing:
		d.phase = DestLost
		d.phaseAt = now.Add(d.params.DoneTimeout)
		d.retries = 0
		return d.repeat(now)
	}
	return nil
}

func (d *Dest) persistFailed(reason string, now time.Time) []Action {
	switch d.phase {
	case DestTaking:
		if d.orphan {
			// Giving it back would be losing it. It runs on, unheard, until the
			// disk takes the entry.
			d.again(now)
			return nil
		}
		return d.fail(CodeDisk, "the journal could not be written: "+reason, now)
	case DestRejecting:
		// The disk may hold the worker as taken, so this machine stays to say
		// that it is not, until it can be written or the node ends. The source
		// need not wait for that: a full disk here must not keep its worker
		// frozen.
		d.again(now)
		if !d.told {
			d.told = true
			return []Action{d.rejected()}
		}
	case DestLosing:
		d.again(now)
	}
	return nil
}

func (d *Dest) tick(now time.Time) []Action {
	if due(d.phaseAt, now) {
		d.phaseAt = time.Time{}
		switch d.phase {
		case DestPreparing:
			return d.refuse(CodeTimeout, "the destination did not get ready in time", "")
		case DestPrepared, DestFilled:
			return d.refuse(CodeTimeout, "the source did not go on", "")
		case DestFilling:
			return d.refuse(CodeTimeout, "the pages did not get across", "check the path between the nodes")
		case DestTaking:
			return d.fail(CodeRunner, "it did not resume in time", now)
		case DestSettling, DestLost:
			return []Action{d.finish()}
		}
	}
	if due(d.pathAt, now) {
		d.pathAt = time.Time{}
		return d.pagesGone(CodePath, fmt.Sprintf("the path to the source %s was gone for %s while pages were still to come", d.peer, d.params.DrainTimeout), now)
	}
	if due(d.retryAt, now) {
		d.retryAt = time.Time{}
		switch {
		case d.phase == DestSettling || d.phase == DestLost:
			return d.repeat(now)
		case d.writing == 0 && (d.phase == DestTaking || d.phase == DestRejecting || d.phase == DestLosing):
			r := d.want
			if d.phase == DestRejecting {
				r = d.declined(now)
			}
			return []Action{d.persist(r)}
		}
	}
	return nil
}
