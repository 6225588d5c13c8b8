package handover

import (
	"errors"
	"fmt"
	"time"
)

// A SourcePhase is where a Source stands.
type SourcePhase uint8

const (
	SourceNew        SourcePhase = iota // before Start
	SourceOffering                      // OFFER sent; the worker runs
	SourceWarming                       // pages travel; the worker runs
	SourceRecording                     // "moving out" on its way to the disk; the worker runs
	SourceFreezing                      // blackout begins when this ends
	SourceFilling                       // stop-and-copy: FROZEN sent
	SourceCommitting                    // COMMIT sent: in doubt
	SourceDraining                      // runs at the destination, pages are served
	SourceAborting                      // given up before COMMIT; the journal is put right
	SourceReclaiming                    // given back; N+2 on its way to the disk
	SourceForgetting                    // moved; "gone" on its way to the disk
	SourceLosing                        // lost; on its way to the disk
	SourceAsking                        // after a restart: in doubt, without memory
	SourceDone
)

var sourcePhases = [...]string{
	"new", "offering", "warming", "recording", "freezing", "filling", "committing", "draining",
	"aborting", "reclaiming", "forgetting", "losing", "asking", "done",
}

// String returns the phase in one word.
func (p SourcePhase) String() string {
	if int(p) < len(sourcePhases) {
		return sourcePhases[p]
	}
	return fmt.Sprintf("phase %d", uint8(p))
}

// A SourceConfig describes a move to begin.
type SourceConfig struct {
	// Move is new ([NewMoveID]); Peer is the destination's node id;
	// Incarnation is this node's.
	Move        MoveID
	Peer        string
	Incarnation uint64
	Offer       Offer
	// Record is the worker's in the journal: OwnRunning or OwnTaken, in
	// Offer.Epoch. If the worker came here by a move that has not settled, its
	// Dest has been told so ([MoveOn]) and is done.
	Record Record
	Params Params
}

// A Source is the side that gives a worker away. Not safe for concurrent use.
// It is a plain value: a copy is a snapshot.
type Source struct {
	move   MoveID
	peer   string
	inc    uint64
	offer  Offer
	orig   Record // what the journal says if nothing comes of the move
	params Params

	phase   SourcePhase
	ticket  uint64 // the destination's, from ACCEPT
	peerInc uint64 // the destination's, from ACCEPT
	copyAll bool   // every page travels before COMMIT
	frozen  bool   // Freeze was handed out
	serving bool
	memory  bool // this node has the worker's memory and a runner
	durable bool // the destination has said that its journal has the move
	touched bool // a Persist was handed out

	head []byte // kept from Frozen to COMMIT in stop-and-copy

	seq     uint64 // of the last Persist
	writing uint64 // ID of the Persist under way, or 0
	want    Record // what it writes
	result  Result // once the end is known

	phaseAt time.Time // end of the phase
	retryAt time.Time // next QUERY or next attempt to write
	retries int
}

// NewSource returns the machine for a move; feed it Start.
func NewSource(cfg SourceConfig) (*Source, error) {
	o, r := cfg.Offer, cfg.Record
	switch {
	case cfg.Move == MoveID{}:
		return nil, errors.New("hand-over source: no move id")
	case !printable(cfg.Peer, 64):
		return nil, errors.New("hand-over source: no peer")
	case cfg.Incarnation == 0:
		return nil, errors.New("hand-over source: no incarnation")
	case !o.Strategy.known():
		return nil, fmt.Errorf("hand-over source: %s is not known", o.Strategy)
	case r.Own != OwnRunning && r.Own != OwnTaken:
		return nil, fmt.Errorf("hand-over source: the journal has the worker as %s", r.Own)
	case r.Worker != o.Worker || r.Epoch != o.Epoch:
		return nil, fmt.Errorf("hand-over source: offer of %s in epoch %d, the journal has %s in %d", o.Worker, o.Epoch, r.Worker, r.Epoch)
	}
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("hand-over source: offer: %w", err)
	}
	if err := r.Validate(); err != nil {
		return nil, fmt.Errorf("hand-over source: record: %w", err)
	}
	if err := cfg.Params.Validate(); err != nil {
		return nil, err
	}
	return &Source{
		move: cfg.Move, peer: cfg.Peer, inc: cfg.Incarnation, offer: o, orig: r,
		params: cfg.Params.withDefaults(), memory: true,
	}, nil
}

// RestartSource returns the machine for a move that the journal of a restarted
// node has as OwnMovingOut; feed it Start. The worker's memory is gone, so the
// move ends with the worker at the destination or lost.
func RestartSource(rec Record, incarnation uint64, params Params) (*Source, error) {
	if rec.Own != OwnMovingOut {
		return nil, fmt.Errorf("hand-over source: the journal has the worker as %s", rec.Own)
	}
	if err := rec.Validate(); err != nil {
		return nil, fmt.Errorf("hand-over source: record: %w", err)
	}
	if incarnation == 0 {
		return nil, errors.New("hand-over source: no incarnation")
	}
	if err := params.Validate(); err != nil {
		return nil, err
	}
	return &Source{
		move: rec.Move, peer: rec.Peer, inc: incarnation, orig: rec, ticket: rec.Ticket,
		offer:  Offer{Worker: rec.Worker, Epoch: rec.Epoch},
		params: params.withDefaults(), touched: true, want: rec,
	}, nil
}

// Phase says where the move stands.
func (s *Source) Phase() SourcePhase { return s.phase }

// Move and Peer name the move and the destination.
func (s *Source) Move() MoveID { return s.move }
func (s *Source) Peer() string { return s.peer }

// CanCancel says that a Cancel would still end the move here: COMMIT has not
// left.
func (s *Source) CanCancel() bool {
	return s.phase >= SourceNew && s.phase <= SourceFilling
}

// InDoubt says that only the destination knows whose the worker is.
func (s *Source) InDoubt() bool {
	return s.phase == SourceCommitting || s.phase == SourceAsking || s.phase == SourceDraining && !s.durable
}

// CopiesAll says that every page travels before COMMIT, by the strategy or
// because the destination cannot page. Known from ACCEPT on.
func (s *Source) CopiesAll() bool { return s.copyAll }

// Deadline returns when the machine wants a Tick, if ever.
func (s *Source) Deadline() (time.Time, bool) { return earliest(s.phaseAt, s.retryAt) }

// Snapshot returns a copy that shares no state with s that either changes.
func (s *Source) Snapshot() *Source {
	c := *s
	return &c
}

// Handle takes one event and returns what to do, in order. The first events of
// a machine are Start and nothing before it. Now never goes backwards.
func (s *Source) Handle(ev Event, now time.Time) []Action {
	switch ev := ev.(type) {
	case Start:
		return s.start(now)
	case Received:
		return s.receive(ev.Message, now)
	case Persisted:
		if ev.ID == s.writing && ev.ID != 0 {
			s.writing = 0
			return s.persisted(now)
		}
	case PersistFailed:
		if ev.ID == s.writing && ev.ID != 0 {
			s.writing = 0
			return s.persistFailed(ev.Reason, now)
		}
	case Progress:
		if s.phase == SourceFilling {
			s.phaseAt = now.Add(s.params.FillTimeout)
		}
	case Warmed:
		if s.phase == SourceWarming {
			return s.warmed(now)
		}
	case Frozen:
		if s.phase == SourceFreezing {
			return s.wasFrozen(ev, now)
		}
	case FreezeFailed:
		if s.phase == SourceFreezing {
			return s.abort(CodeRunner, ev.Reason, "", now)
		}
	case PathDown:
		if s.CanCancel() {
			return s.abort(CodePath, "the path to the destination broke", "try again when it is back", now)
		}
	case PathUp:
		if s.asks() {
			return s.ask(now)
		}
	case Cancel:
		if s.CanCancel() {
			return s.abort(CodeCancelled, ev.Reason, "", now)
		}
		return note("cancel ignored in phase %s", s.phase)
	case Abandon:
		switch {
		case s.CanCancel():
			return s.abort(CodeCancelled, ev.Reason, "", now)
		case s.asks():
			// In epoch N: if the destination does have it, its word counts.
			return s.lose(Abandoned, s.offer.Epoch, CodeCancelled, ev.Reason, now)
		}
		return note("abandon ignored in phase %s", s.phase)
	case RunnerDied:
		return s.runnerDied(ev, now)
	case Tick:
		return s.tick(now)
	default:
		return note("%T is not for a source", ev)
	}
	return nil
}

func (s *Source) start(now time.Time) []Action {
	if s.phase != SourceNew {
		return nil
	}
	if !s.memory {
		s.phase = SourceAsking
		return s.ask(now)
	}
	s.phase = SourceOffering
	s.phaseAt = now.Add(s.params.OfferTimeout)
	return []Action{s.send(s.offer)}
}

func (s *Source) send(b Body) Action {
	return Send{Message{Move: s.move, Worker: s.offer.Worker, Incarnation: s.inc, Ticket: s.ticket, Body: b}}
}

// persist hands out a write; the caller has made sure that none is under way.
func (s *Source) persist(r Record) Action {
	s.seq++
	s.writing, s.want, s.touched = s.seq, r, true
	return Persist{ID: s.seq, Record: r}
}

// record returns the journal's entry for another fate of the worker.
func (s *Source) record(own Ownership, epoch uint64, now time.Time) Record {
	r := s.orig.become(own, epoch, now)
	r.Move, r.Peer = s.move, s.peer
	return r
}

func (s *Source) accepted(m Message, a Accept, now time.Time) []Action {
	s.ticket, s.peerInc = m.Ticket, m.Incarnation
	s.copyAll = s.offer.Strategy.copiesAll(a.Paging)
	if !s.offer.Strategy.Rounds() {
		return s.warmed(now)
	}
	s.phase = SourceWarming
	s.phaseAt = now.Add(s.params.WarmTimeout)
	return []Action{Warm{}}
}

func (s *Source) warmed(now time.Time) []Action {
	s.phase = SourceRecording
	s.phaseAt = now.Add(s.params.PersistTimeout)
	r := s.record(OwnMovingOut, s.offer.Epoch, now)
	r.Ticket = s.ticket
	return []Action{s.persist(r)}
}

func (s *Source) wasFrozen(ev Frozen, now time.Time) []Action {
	s.serving = true
	out := []Action{ServePages{Ticket: s.ticket}}
	if s.copyAll {
		s.phase = SourceFilling
		s.phaseAt = now.Add(s.params.FillTimeout)
		s.head = ev.Head
		return append(out, s.send(FrozenBody{Table: ev.Table}))
	}
	return append(out, s.commit(ev.Head, now))
}

func (s *Source) commit(head []byte, now time.Time) Action {
	s.phase, s.phaseAt = SourceCommitting, time.Time{}
	s.head = nil
	s.again(now, true)
	return s.send(Commit{Epoch: s.offer.Epoch + 1, Head: head})
}

// again sets the next retry.
func (s *Source) again(now time.Time, first bool) {
	if first {
		s.retries = 0
	}
	s.retryAt = now.Add(s.params.retry(s.retries))
	if s.params.retry(s.retries) < s.params.MaxRetryInterval {
		s.retries++
	}
}

// asks says that the machine's only way on is the destination's word.
func (s *Source) asks() bool {
	return s.phase == SourceCommitting || s.phase == SourceDraining || s.phase == SourceAsking
}

func (s *Source) ask(now time.Time) []Action {
	s.again(now, false)
	return []Action{s.send(Query{Epoch: s.offer.Epoch + 1})}
}

func (s *Source) receive(m Message, now time.Time) []Action {
	if m.Body == nil || m.Move != s.move || m.Worker != s.offer.Worker {
		return note("message of another move")
	}
	t := m.Body.Type()
	if s.phase == SourceOffering {
		switch b := m.Body.(type) {
		case Accept:
			if m.Ticket == 0 || m.Incarnation == 0 {
				return s.abort(CodeProtocol, "the destination accepted without a ticket", "", now)
			}
			return s.accepted(m, b, now)
		case Refuse:
			return s.abort(b.Code, b.Reason, b.Hint, now)
		}
		return note("%s in phase %s", t, s.phase)
	}
	if m.Ticket != s.ticket {
		return note("%s with another ticket in phase %s", t, s.phase)
	}
	switch b := m.Body.(type) {
	case Refuse:
		if s.CanCancel() {
			return s.abort(b.Code, b.Reason, b.Hint, now)
		}
	case Filled:
		if s.phase == SourceFilling {
			return []Action{s.commit(s.head, now)}
		}
	case Running:
		if s.phase == SourceCommitting || s.phase == SourceDraining {
			return s.drains(b.Durable, now)
		}
	case Taken:
		if s.phase == SourceCommitting || s.phase == SourceDraining {
			return s.drains(true, now)
		}
	case Drained:
		if s.asks() {
			return s.forget(now)
		}
	case Rejected:
		if s.asks() {
			return s.givenBack(b.Code, b.Reason, now)
		}
	case Status:
		if s.asks() {
			return s.status(b, now)
		}
	}
	return note("%s in phase %s", t, s.phase)
}

func (s *Source) status(b Status, now time.Time) []Action {
	switch b.State {
	case NeverTook:
		return s.givenBack(CodeOther, b.Reason, now)
	case TookButLost:
		return s.lose(Lost, s.offer.Epoch+1, CodeOther, "lost at "+s.peer+": "+b.Reason, now)
	case MovedOn:
		return s.forget(now)
	case Took:
		if b.Drained {
			return s.forget(now)
		}
		if s.phase == SourceAsking {
			// It will see by this node's incarnation that the pages it still
			// lacks are gone, and say so.
			return nil
		}
		return s.drains(true, now)
	}
	return note("status %s", b.State)
}

func (s *Source) drains(durable bool, now time.Time) []Action {
	s.durable = s.durable || durable
	if s.phase == SourceCommitting {
		s.phase = SourceDraining
		s.retries = 0
	}
	s.again(now, false)
	return nil
}

// givenBack is the destination's word that it never took the move and never will.
func (s *Source) givenBack(code Code, reason string, now time.Time) []Action {
	switch {
	case s.durable:
		// It had said the opposite. What it let out cannot be undone.
		return s.lose(Lost, s.offer.Epoch+2, CodeProtocol,
			s.peer+" had taken the worker and now says that it never did; was its journal removed?", now)
	case s.phase == SourceAsking:
		return s.lose(Lost, s.offer.Epoch+2, CodeOther,
			"the node restarted while it held the worker frozen for a move that "+s.peer+" never took", now)
	case !s.memory:
		return s.lose(Lost, s.offer.Epoch+2, CodeRunner,
			"the worker's process ended while it was frozen for a move that "+s.peer+" never took", now)
	}
	s.phase = SourceReclaiming
	s.phaseAt, s.retryAt, s.retries = time.Time{}, time.Time{}, 0
	s.result = Result{Outcome: Kept, Epoch: s.offer.Epoch + 2, Code: code, Reason: cut(s.peer + " did not take the worker: " + reason)}
	return append(s.stopServing(), s.persist(s.record(OwnRunning, s.offer.Epoch+2, now)))
}

func (s *Source) stopServing() []Action {
	if !s.serving {
		return nil
	}
	s.serving = false
	return []Action{StopServing{}}
}

func (s *Source) forget(now time.Time) []Action {
	out := s.stopServing()
	s.phase = SourceForgetting
	s.phaseAt, s.retryAt, s.retries = time.Time{}, time.Time{}, 0
	s.memory = false
	s.result = Result{Outcome: Moved, Epoch: s.offer.Epoch + 1}
	return append(out,
		Forget{To: s.peer, Epoch: s.offer.Epoch + 1},
		s.persist(s.record(OwnGone, s.offer.Epoch+1, now)))
}

func (s *Source) lose(o Outcome, epoch uint64, code Code, reason string, now time.Time) []Action {
	reason = cut(reason)
	out := s.stopServing()
	s.phase = SourceLosing
	s.phaseAt, s.retryAt, s.retries = time.Time{}, time.Time{}, 0
	s.memory = false
	s.result = Result{Outcome: o, Epoch: epoch, Code: code, Reason: reason}
	r := s.record(OwnLost, epoch, now)
	r.Reason = reason
	return append(out, Lose{Epoch: epoch, Reason: reason}, s.persist(r))
}

// abort ends the move before COMMIT: the worker goes on in epoch N.
func (s *Source) abort(code Code, reason, hint string, now time.Time) []Action {
	var out []Action
	if s.phase != SourceNew {
		out = append(out, s.send(Abort{Reason: cut(reason)}))
	}
	out = append(out, s.stopServing()...)
	if s.frozen && s.memory {
		out = append(out, Thaw{Epoch: s.offer.Epoch})
	}
	s.phase = SourceAborting
	s.head = nil
	s.phaseAt, s.retryAt = time.Time{}, time.Time{}
	s.result = Result{Outcome: Kept, Epoch: s.offer.Epoch, Code: code, Reason: cut(reason), Hint: cut(hint)}
	switch {
	case !s.touched:
		return append(out, s.finish())
	case s.writing != 0:
		return out // the entry has to be on disk, or not, before it can be undone
	}
	return append(out, s.persist(s.orig))
}

func (s *Source) finish() Action {
	s.phase = SourceDone
	s.phaseAt, s.retryAt = time.Time{}, time.Time{}
	if s.touched {
		s.result.Record = s.want
	}
	return Finish{s.result}
}

func (s *Source) persisted(now time.Time) []Action {
	switch s.phase {
	case SourceRecording:
		s.phase = SourceFreezing
		s.phaseAt = now.Add(s.params.FreezeTimeout)
		s.frozen = true
		return []Action{Freeze{}}
	case SourceAborting:
		if s.want.Own == OwnMovingOut {
			return []Action{s.persist(s.orig)}
		}
		return []Action{s.finish()}
	case SourceReclaiming:
		if !s.memory {
			return s.lose(Lost, s.offer.Epoch+2, CodeRunner, "the worker's process ended while it was frozen for a move that "+s.peer+" never took", now)
		}
		return []Action{Thaw{Epoch: s.offer.Epoch + 2}, s.finish()}
	case SourceForgetting, SourceLosing:
		return []Action{s.send(Done{}), s.finish()}
	}
	return nil
}

func (s *Source) persistFailed(reason string, now time.Time) []Action {
	switch s.phase {
	case SourceRecording:
		return s.abort(CodeDisk, "the move could not be written to the journal: "+reason, "make room on the disk", now)
	case SourceAborting:
		if s.want.Own == OwnMovingOut {
			return []Action{s.persist(s.orig)} // it may be there all the same
		}
		// The entry that stays says that the worker may be elsewhere. Nobody
		// else runs it, and the next entry replaces it.
		s.want = s.orig
		return []Action{s.finish()}
	}
	s.again(now, false)
	return nil
}

func (s *Source) runnerDied(ev RunnerDied, now time.Time) []Action {
	had := s.memory
	s.memory = false
	if had && s.CanCancel() {
		return s.abort(CodeRunner, "the worker ended: "+ev.Reason, "", now)
	}
	// The memory outlives the runner for as long as pages are served, so a
	// destination that has the worker is not harmed.
	return nil
}

func (s *Source) tick(now time.Time) []Action {
	if due(s.phaseAt, now) {
		s.phaseAt = time.Time{}
		switch s.phase {
		case SourceOffering:
			return s.abort(CodeTimeout, "the destination did not answer the offer", "see the destination's log; a large module takes long to fetch and compile", now)
		case SourceWarming:
			return s.warmed(now)
		case SourceRecording:
			return s.abort(CodeDisk, "the journal does not get written", "check the disk", now)
		case SourceFreezing:
			return s.abort(CodeTimeout, "the worker did not finish its event", "try again when it is less busy", now)
		case SourceFilling:
			return s.abort(CodeTimeout, "the pages did not get across", "check the path to the destination", now)
		}
	}
	if due(s.retryAt, now) {
		s.retryAt = time.Time{}
		switch {
		case s.asks():
			return s.ask(now)
		case s.writing == 0 && (s.phase == SourceReclaiming || s.phase == SourceForgetting || s.phase == SourceLosing):
			return []Action{s.persist(s.want)}
		}
	}
	return nil
}

func note(format string, args ...any) []Action {
	return []Action{Note{fmt.Sprintf(format, args...)}}
}
