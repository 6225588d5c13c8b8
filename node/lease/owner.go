package lease

import "time"

// A Phase is where an Owner stands.
type Phase uint8

const (
	Free    Phase = iota // no guardian: nobody takes the worker
	Asked                // Ask was sent
	Ready                // a guardian has accepted, and nothing was renewed yet
	Bound                // renewals were sent: the lease may be held
	Over                 // the worker was taken: it must not run here again
	Yielded              // the copy here has ended, and the guardian is to take the worker
	Lost                 // it has, and the guardian will not
)

var phaseNames = [...]string{"free", "asked", "ready", "bound", "over", "yielded", "lost"}

func (p Phase) String() string { return phaseNames[p] }

// An Owner is the lease of one worker as the node sees it that runs the worker.
// It sends one message at a time. Not safe for concurrent use; a plain value, so
// that a copy is a snapshot. Its times are of one clock, [Now] or a test's.
type Owner struct {
	worker string
	epoch  uint64
	lease  time.Duration
	phase  Phase
	ticket uint64
	seq    uint64        // of the last renewal
	sent   time.Duration // when it was sent
	good   time.Duration // when the last one was sent that was answered; at first, the first
}

// NewOwner returns the lease, which nobody holds yet, of a worker that runs here
// in that epoch.
func NewOwner(worker string, epoch uint64, lease time.Duration) Owner {
	return Owner{worker: worker, epoch: epoch, lease: lease}
}

// RestartOwner returns the lease of a worker that ran in that epoch, under that
// ticket, when its node ended: it is Yielded.
func RestartOwner(worker string, epoch uint64, lease time.Duration, ticket uint64) Owner {
	return Owner{worker: worker, epoch: epoch, lease: lease, phase: Yielded, ticket: ticket}
}

// Phase says where it stands.
func (o *Owner) Phase() Phase { return o.phase }

// Lease is how long the worker runs without an answer.
func (o *Owner) Lease() time.Duration { return o.lease }

// Ticket is the guardian's for this lease; it has a meaning in phases Ready,
// Bound and Yielded.
func (o *Owner) Ticket() uint64 { return o.ticket }

// Good is when the last renewal was sent that was answered, or the first, if
// none was; it has a meaning only in phase Bound.
func (o *Owner) Good() time.Duration { return o.good }

// Deadline is when the worker has to stand still unless an answer comes first;
// bound is false where there is no such time.
func (o *Owner) Deadline() (at time.Duration, bound bool) {
	switch o.phase {
	case Bound:
		return o.good + o.lease, true
	case Over, Yielded, Lost:
		return 0, true
	}
	return 0, false
}

// MayRun says whether the worker may run at now.
func (o *Owner) MayRun(now time.Duration) bool {
	at, bound := o.Deadline()
	return !bound || now < at
}

// Ask returns the message that asks a node to be the guardian. In phase Free, or
// Asked: another node may be asked when the first does not answer.
func (o *Owner) Ask(meta []byte) Message {
	o.phase = Asked
	return Message{Kind: Ask, Worker: o.worker, Epoch: o.epoch, Lease: o.lease, Meta: meta}
}

// Renew returns the next renewal, which is sent at now and not before. In phase
// Ready or Bound. From here on the owner is bound.
func (o *Owner) Renew(now time.Duration) Message {
	if o.phase == Ready {
		o.phase, o.good = Bound, now
	}
	o.seq++
	o.sent = now
	return Message{Kind: Renew, Worker: o.worker, Epoch: o.epoch, Ticket: o.ticket, Seq: o.seq}
}

// Release returns the message that gives the lease up. In phase Bound, and the
// owner stays so until the answer; it may renew again if none comes.
func (o *Owner) Release() Message {
	return Message{Kind: Release, Worker: o.worker, Epoch: o.epoch, Ticket: o.ticket}
}

// Yield returns the message that asks the guardian to take the worker without
// waiting for the end of the lease. In phase Bound, once the copy here has ended
// and nothing it did can leave the node any more, or Yielded.
func (o *Owner) Yield() Message {
	o.phase = Yielded
	return Message{Kind: Yield, Worker: o.worker, Epoch: o.epoch, Ticket: o.ticket}
}

// Heard is the last word, in phase Over.
func (o *Owner) Heard() Message {
	return Message{Kind: Heard, Worker: o.worker, Epoch: o.epoch}
}

// Answer takes what a guardian has answered, whenever it comes. Answers that are
// none to what was last asked change nothing.
func (o *Owner) Answer(m Message, now time.Duration) {
	if m.Worker != o.worker || o.phase == Over {
		return
	}
	switch {
	case m.Kind == Taken && m.Epoch > o.epoch:
		o.phase = Over
	case m.Kind == Accepted && o.phase == Asked && m.Epoch == o.epoch:
		o.phase, o.ticket, o.seq = Ready, m.Ticket, 0
	case m.Kind == Refused && o.phase == Asked:
		o.phase = Free
	case m.Ticket != o.ticket:
	case o.phase == Yielded && (m.Kind == Unknown || m.Kind == Released):
		o.phase = Lost
	case o.phase != Bound:
	case m.Kind == Renewed && m.Seq == o.seq:
		o.good = o.sent
	case m.Kind == Unknown && now-o.good > Memory/2:
		// It may have been taken, and that forgotten.
		o.phase = Over
	case m.Kind == Unknown, m.Kind == Released:
		o.phase, o.ticket = Free, 0
	}
}
