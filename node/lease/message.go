package lease

import (
	"errors"
	"fmt"
	"time"
)

// A Kind says what a message is. The numbers are on the wire.
type Kind uint8

const (
	// Of an owner.
	Ask     Kind = 1 // will you be the guardian of this worker?
	Renew   Kind = 2 // I run it
	Release Kind = 3 // I ask you to be so no more
	Heard   Kind = 4 // I have ended my copy of what you have taken
	Yield   Kind = 5 // I run it no more, and never will again: take it now

	// Of a guardian.
	Accepted Kind = 16 // I would; Ticket is to be in all that follows
	Refused  Kind = 17 // I would not, for Reason
	Renewed  Kind = 18 // the lease is held on
	Unknown  Kind = 19 // I do not hold a lease of that ticket, and never will
	Released Kind = 20 // the same, as the answer to Release
	Taken    Kind = 21 // the worker is not yours: it runs elsewhere, in Epoch or later
)

var kindNames = map[Kind]string{
	Ask: "ASK", Renew: "RENEW", Release: "RELEASE", Heard: "HEARD", Yield: "YIELD",
	Accepted: "ACCEPTED", Refused: "REFUSED", Renewed: "RENEWED", Unknown: "UNKNOWN", Released: "RELEASED", Taken: "TAKEN",
}

func (k Kind) String() string {
	if s := kindNames[k]; s != "" {
		return s
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// A Message goes from an owner to a guardian, or is the answer to one.
type Message struct {
	Kind   Kind   `cbor:"1,keyasint"`
	Worker string `cbor:"2,keyasint"`
	// Epoch is the owner's; in Taken the one that has superseded it.
	Epoch  uint64 `cbor:"3,keyasint"`
	Ticket uint64 `cbor:"4,keyasint,omitempty"` // of all but Ask, its Refused, and Heard
	Seq    uint64 `cbor:"5,keyasint,omitempty"` // of Renew and Renewed, from 1
	// Lease is how long the owner runs the worker without an answer (Ask).
	Lease time.Duration `cbor:"6,keyasint,omitempty"`
	// Meta is what the guardian has to know to start the worker (Ask). It is not
	// interpreted here.
	Meta   []byte `cbor:"7,keyasint,omitempty"`
	Reason string `cbor:"8,keyasint,omitempty"` // of Refused, for people
	// Home is the node where the worker is, as far as the guardian knows (Taken).
	Home string `cbor:"9,keyasint,omitempty"`
}

const (
	// MinLease and MaxLease bound Message.Lease.
	MinLease = time.Second
	MaxLease = 24 * time.Hour
	// MaxMeta bounds Message.Meta, MaxReason Message.Reason, in bytes, and
	// MaxMessage a whole message.
	MaxMeta    = 48 << 10
	MaxReason  = 1 << 10
	MaxMessage = MaxMeta + 4<<10
	// maxEpoch leaves room for more steps than any worker lives to see.
	maxEpoch = 1 << 61
)

// Validate rejects what no machine of this package sends.
func (m Message) Validate() error {
	switch {
	case kindNames[m.Kind] == "":
		return fmt.Errorf("lease message of %v", m.Kind)
	case len(m.Worker) == 0 || len(m.Worker) > 64:
		return errors.New("lease message without a worker")
	case m.Epoch == 0 || m.Epoch > maxEpoch:
		return fmt.Errorf("lease message of epoch %d", m.Epoch)
	case m.Kind == Ask && (m.Lease < MinLease || m.Lease > MaxLease):
		return fmt.Errorf("a lease of %v: at least %v, at most %v", m.Lease, MinLease, MaxLease)
	case (m.Kind == Renew || m.Kind == Release || m.Kind == Yield || m.Kind == Accepted) && m.Ticket == 0:
		return fmt.Errorf("%v without a ticket", m.Kind)
	case len(m.Meta) > MaxMeta || len(m.Reason) > MaxReason || len(m.Home) > 64:
		return errors.New("a field of a lease message is too long")
	}
	return nil
}
