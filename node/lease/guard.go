package lease

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	// Step is how far the epoch of a worker that was taken lies above its
	// owner's: above N+2, the last that a move begun in epoch N can come to.
	Step = 3
	// Memory is how long a guardian remembers that it has taken a worker whose
	// owner has not heard of it.
	Memory = 30 * 24 * time.Hour
	// maxOwners bounds the owners that have not heard of it.
	maxOwners = 64
	// A guardian waits longer than the lease, by an equal part for clocks that
	// differ in rate, and by a time for the owner to stop the worker.
	driftShare = 20
	stopTime   = time.Second
)

// Wait is how long a guardian waits for a renewal of a lease.
func Wait(lease time.Duration) time.Duration { return lease + lease/driftShare + stopTime }

// A Record is what a guardian must not forget of one worker. Slices in it are
// never written to.
type Record struct {
	Worker string `cbor:"1,keyasint"`
	// The lease that is held; Ticket is 0 if none is.
	Owner  string        `cbor:"2,keyasint,omitempty"`
	Epoch  uint64        `cbor:"3,keyasint,omitempty"`
	Ticket uint64        `cbor:"4,keyasint,omitempty"`
	Lease  time.Duration `cbor:"5,keyasint,omitempty"`
	// Meta is the owner's; see Message. Of a worker that was taken it stays.
	Meta []byte `cbor:"6,keyasint,omitempty"`
	// Taken is the epoch in which this node has taken the worker, 0 if it has
	// not, TakenAt when, in Unix seconds, and Owners are those that have not heard
	// of it.
	Taken   uint64   `cbor:"7,keyasint,omitempty"`
	TakenAt int64    `cbor:"8,keyasint,omitempty"`
	Owners  []string `cbor:"9,keyasint,omitempty"`
}

// Held says whether a lease is held.
func (r *Record) Held() bool { return r.Ticket != 0 }

// Validate rejects a record that no Guard makes.
func (r Record) Validate() error {
	switch {
	case len(r.Worker) == 0 || len(r.Worker) > 64:
		return errors.New("lease record without a worker")
	case r.Held() && (r.Owner == "" || len(r.Owner) > 64 || r.Epoch == 0 || r.Epoch > maxEpoch || r.Lease < MinLease || r.Lease > MaxLease):
		return fmt.Errorf("lease record of worker %s: a lease of %v in epoch %d of owner %.40q", r.Worker, r.Lease, r.Epoch, r.Owner)
	case r.Taken > maxEpoch+Step || len(r.Owners) > maxOwners || len(r.Meta) > MaxMeta:
		return fmt.Errorf("lease record of worker %s: a field is too large", r.Worker)
	}
	return nil
}

// A Guard is the lease of one worker as the guardian sees it. Whatever Handle
// answers, and whatever follows from Tick, has to wait until the Record is on
// disk, if it is Unsaved. Not safe for concurrent use; a plain value. Its times
// are of one clock that never goes back; it may stand still.
type Guard struct {
	rec     Record
	offer   Record        // with a ticket that no renewal has named yet
	offered time.Duration // when it was made
	heard   time.Duration // when the last renewal of rec's lease came
	unsaved bool
	closed  bool
}

// offerFor is how long an offer stands.
const offerFor = time.Minute

// NewGuard returns the guard of a worker of which nothing is known. Record is
// what is on disk, if something is: the lease in it counts from now.
func NewGuard(worker string) Guard { return Guard{rec: Record{Worker: worker}} }

// RestoreGuard returns the guard of a record that was on disk when the node
// started: its lease counts anew from now.
func RestoreGuard(rec Record, now time.Duration) Guard { return Guard{rec: rec, heard: now} }

// Record is what is, or is to be, on disk.
func (g *Guard) Record() Record { return g.rec }

// Unsaved says that the record has changed; Saved that it is on disk.
func (g *Guard) Unsaved() bool { return g.unsaved }
func (g *Guard) Saved()        { g.unsaved = false }

// HeardAt is when the last renewal came; it has a meaning only while a lease is
// held.
func (g *Guard) HeardAt() time.Duration { return g.heard }

// Empty says that there is nothing to remember, at a time in Unix seconds: the
// record may go from the disk.
func (g *Guard) Empty(unix int64) bool {
	return !g.rec.Held() && (len(g.rec.Owners) == 0 || unix-g.rec.TakenAt > int64(Memory/time.Second))
}

// Idle says that not even an offer stands.
func (g *Guard) Idle(now time.Duration) bool {
	return g.offer.Ticket == 0 || now-g.offered > offerFor
}

// Close has the guard give its lease back at the next renewal and accept no
// other: the node is about to stop.
func (g *Guard) Close() { g.closed = true }

// Handle answers an owner's message, which is valid. ticket is a random number,
// not 0, for the case that an Ask is accepted; unix is the time for the record.
func (g *Guard) Handle(from string, m Message, ticket uint64, now time.Duration, unix int64) Message {
	a := Message{Worker: m.Worker, Epoch: m.Epoch, Ticket: m.Ticket, Seq: m.Seq}
	if m.Kind == Heard {
		if i := slices.Index(g.rec.Owners, from); i >= 0 && m.Epoch < g.rec.Taken {
			g.rec.Owners = slices.Delete(slices.Clone(g.rec.Owners), i, i+1)
			g.unsaved = true
		}
		a.Kind = Released
		return a
	}
	if m.Epoch < g.rec.Taken {
		a.Kind, a.Epoch = Taken, g.rec.Taken
		return a
	}
	switch m.Kind {
	case Ask:
		a.Kind = Refused
		switch {
		case g.closed:
			a.Reason = "the node is about to stop"
		case g.rec.Held():
			a.Reason = fmt.Sprintf("it holds the lease of node %s in epoch %d", g.rec.Owner, g.rec.Epoch)
		case len(g.rec.Owners) >= maxOwners:
			a.Reason = "too many earlier owners of the worker have not come back"
		default:
			a.Kind, a.Ticket = Accepted, ticket
			g.offer = Record{Owner: from, Epoch: m.Epoch, Ticket: ticket, Lease: m.Lease, Meta: m.Meta}
			g.offered = now
		}
	case Renew:
		switch {
		case m.Ticket == g.rec.Ticket && g.closed:
			g.forget()
			a.Kind = Unknown
		case m.Ticket == g.rec.Ticket:
			g.heard = now
			a.Kind = Renewed
		case m.Ticket == g.offer.Ticket && from == g.offer.Owner && now-g.offered <= offerFor && !g.rec.Held() && !g.closed:
			o := g.offer
			g.rec.Owner, g.rec.Epoch, g.rec.Ticket, g.rec.Lease, g.rec.Meta = o.Owner, o.Epoch, o.Ticket, o.Lease, o.Meta
			g.offer, g.heard, g.unsaved = Record{}, now, true
			a.Kind = Renewed
		default:
			a.Kind = Unknown
		}
	case Yield:
		switch {
		case m.Ticket != g.rec.Ticket:
			a.Kind = Unknown
		case g.closed:
			a.Kind, a.Reason = Refused, "the node is about to stop"
		default:
			g.take(unix)
			a.Kind, a.Epoch = Taken, g.rec.Taken
		}
	default:
		switch m.Ticket {
		case g.rec.Ticket:
			g.forget()
		case g.offer.Ticket:
			g.offer = Record{}
		}
		a.Kind = Released
	}
	return a
}

// forget gives the lease up that is held.
func (g *Guard) forget() {
	g.rec.Owner, g.rec.Epoch, g.rec.Ticket, g.rec.Lease, g.rec.Meta = "", 0, 0, 0, nil
	g.unsaved = true
}

// Due is when the worker is to be taken, unless a renewal comes first; ok is
// false where no lease is held.
func (g *Guard) Due() (at time.Duration, ok bool) {
	return g.heard + Wait(g.rec.Lease), g.rec.Held()
}

// Tick takes the worker if the lease has run out, and reports whether it did:
// once the record is on disk this node is to run it in epoch Record().Taken.
// unix is the time for the record.
func (g *Guard) Tick(now time.Duration, unix int64) bool {
	at, ok := g.Due()
	if !ok || now < at {
		return false
	}
	g.take(unix)
	return true
}

// take makes the worker, of which a lease is held, this node's.
func (g *Guard) take(unix int64) {
	owner, meta := g.rec.Owner, g.rec.Meta
	g.supersede(g.rec.Epoch+Step, owner, unix)
	g.rec.Meta = meta
}

// Started says that a worker that was taken runs: what it is need not be
// remembered any more.
func (g *Guard) Started() {
	if !g.rec.Held() && g.rec.Meta != nil {
		g.rec.Meta, g.unsaved = nil, true
	}
}

// Ended ends the lease of a worker that its owner says has ended for good.
func (g *Guard) Ended() {
	if g.rec.Held() {
		g.forget()
	}
}

// Superseded ends the lease of a worker that is known to be elsewhere, in an
// epoch above its owner's: the owner has to hear that.
func (g *Guard) Superseded(epoch uint64, unix int64) {
	if g.rec.Held() && epoch > g.rec.Epoch {
		g.supersede(epoch, g.rec.Owner, unix)
	}
}

func (g *Guard) supersede(epoch uint64, owner string, unix int64) {
	g.forget()
	g.rec.Taken, g.rec.TakenAt = epoch, unix
	if !slices.Contains(g.rec.Owners, owner) {
		g.rec.Owners = append(slices.Clip(g.rec.Owners), owner)
	}
}
