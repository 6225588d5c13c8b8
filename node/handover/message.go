package handover

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// A Type is the number of a message on the wire. Numbers are only ever added.
type Type uint8

const (
	TypeOffer    Type = 1  // source
	TypeAccept   Type = 2  // destination
	TypeRefuse   Type = 3  // destination
	TypeWarm     Type = 4  // source; reserved
	TypeWarmed   Type = 5  // destination; reserved
	TypeFreeze   Type = 6  // source; reserved: the last round begins
	TypeFrozen   Type = 7  // source
	TypeFilled   Type = 8  // destination
	TypeCommit   Type = 9  // source
	TypeRunning  Type = 10 // destination
	TypeTaken    Type = 11 // destination
	TypeDrained  Type = 12 // destination
	TypeDone     Type = 13 // source
	TypeRejected Type = 14 // destination
	TypeAbort    Type = 15 // source
	TypeQuery    Type = 16 // source
	TypeStatus   Type = 17 // destination
)

var typeNames = [...]string{
	TypeOffer: "OFFER", TypeAccept: "ACCEPT", TypeRefuse: "REFUSE", TypeWarm: "WARM", TypeWarmed: "WARMED",
	TypeFreeze: "FREEZE", TypeFrozen: "FROZEN", TypeFilled: "FILLED", TypeCommit: "COMMIT", TypeRunning: "RUNNING",
	TypeTaken: "TAKEN", TypeDrained: "DRAINED", TypeDone: "DONE", TypeRejected: "REJECTED", TypeAbort: "ABORT",
	TypeQuery: "QUERY", TypeStatus: "STATUS",
}

// String returns the message's name in the protocol.
func (t Type) String() string {
	if int(t) < len(typeNames) && typeNames[t] != "" {
		return typeNames[t]
	}
	return fmt.Sprintf("message type %d", uint8(t))
}

// FromSource says that messages of this type travel from the source to the
// destination, so that they are for a [Dest] (or, without one, for [Answer]).
func (t Type) FromSource() bool {
	switch t {
	case TypeOffer, TypeWarm, TypeFreeze, TypeFrozen, TypeCommit, TypeDone, TypeAbort, TypeQuery:
		return true
	}
	return false
}

// A Message is one control message of a move. Messages of one move should
// travel on one ordered stream, so that a QUERY does not overtake the COMMIT it
// asks about; nothing breaks if they do not.
type Message struct {
	Move MoveID
	// Worker is the worker's id, at most 64 bytes of printable ASCII.
	Worker string
	// Incarnation is the sender's; see [NewIncarnation].
	Incarnation uint64
	// Ticket is the destination's; 0 in OFFER and in a REFUSE of it.
	Ticket uint64
	// Body is one of the types below, by value.
	Body Body
}

// A Body is the content of a message: [Offer], [Accept], [Refuse], [FrozenBody],
// [Filled], [Commit], [Running], [Taken], [Drained], [Done], [Rejected],
// [Abort], [Query] or [Status].
type Body interface {
	// Type returns the body's number on the wire.
	Type() Type
	validate() error
}

// An Offer says what is to be moved. It is the first message of a move.
type Offer struct {
	// Worker is the worker's id, the same as in the envelope.
	Worker string `cbor:"1,keyasint"`
	// Name is the worker's name, at most 63 bytes of printable ASCII.
	Name string `cbor:"2,keyasint"`
	// Module is the hash of the module's bytes, ModuleSize their number.
	Module     Hash   `cbor:"3,keyasint"`
	ModuleSize uint64 `cbor:"4,keyasint"`
	// MemoryBytes is the linear memory's size now, MemoryLimit the most it may
	// grow to.
	MemoryBytes uint64 `cbor:"5,keyasint"`
	MemoryLimit uint64 `cbor:"6,keyasint"`
	// Epoch is N, in which the worker runs at the source.
	Epoch    uint64   `cbor:"7,keyasint"`
	Strategy Strategy `cbor:"8,keyasint"`
	// Config is for the node: whatever else the destination needs to prepare.
	// At most MaxConfigBytes; not interpreted here.
	Config []byte `cbor:"9,keyasint,omitempty"`
}

// An Accept says that the destination is prepared: the module is compiled, the
// memory is reserved, a runner waits. Its envelope carries the ticket.
type Accept struct {
	// Paging says that pages can be fetched after the resume. Without it every
	// page travels before COMMIT, whatever the strategy.
	Paging bool `cbor:"1,keyasint"`
	// Key 2 was a bool that nobody looked at.
}

// A Code classifies a refusal. The numbers are on the wire; a receiver treats
// one it does not know as CodeOther.
type Code uint8

const (
	CodeOther     Code = 0
	CodeBusy      Code = 1 // another move of this worker, or too many moves
	CodeMemory    Code = 2 // no room
	CodeModule    Code = 3 // module not to be had, or it cannot run here
	CodePolicy    Code = 4 // not wanted here
	CodeStale     Code = 5 // the destination knows a later epoch
	CodeTimeout   Code = 6
	CodePages     Code = 7 // pages did not arrive, or were not what their names say
	CodeStrategy  Code = 8 // strategy not known here
	CodeCancelled Code = 9
	CodePath      Code = 10 // the path broke
	CodeDisk      Code = 11 // the journal could not be written
	CodeRunner    Code = 12 // the runner did not freeze, resume or stay alive
	CodeProtocol  Code = 13 // the peer broke the protocol
)

var codeNames = [...]string{
	CodeOther: "other", CodeBusy: "busy", CodeMemory: "memory", CodeModule: "module", CodePolicy: "policy",
	CodeStale: "stale", CodeTimeout: "timeout", CodePages: "pages", CodeStrategy: "strategy",
	CodeCancelled: "cancelled", CodePath: "path", CodeDisk: "disk", CodeRunner: "runner", CodeProtocol: "protocol",
}

// String returns the code's name.
func (c Code) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("code %d", uint8(c))
}

// A Refuse ends a move before COMMIT: what, why and what to do next.
type Refuse struct {
	Code   Code   `cbor:"1,keyasint"`
	Reason string `cbor:"2,keyasint"`
	Hint   string `cbor:"3,keyasint,omitempty"`
}

// A FrozenBody is FROZEN: the worker stands still, and this is the layout of its
// memory. Only where every page travels before COMMIT.
type FrozenBody struct {
	Table []byte `cbor:"1,keyasint"`
}

// Filled says that every page of the table is in.
type Filled struct{}

// A Commit gives the worker away.
type Commit struct {
	// Epoch is N+1.
	Epoch uint64 `cbor:"1,keyasint"`
	// Head is the image without page contents; not interpreted here.
	Head []byte `cbor:"2,keyasint"`
}

// Running says that the worker runs at the destination.
type Running struct {
	// Durable says that the destination's journal has it, as TAKEN would.
	Durable bool `cbor:"1,keyasint"`
}

// Taken says that the destination's journal has the move.
type Taken struct{}

// Drained says that the destination has every page and its journal entry, and
// needs the source no longer.
type Drained struct{}

// Done says that the source has forgotten the worker, on disk, and will never
// ask about this move again.
type Done struct{}

// A Rejected says that the destination never took the move and never will.
type Rejected struct {
	Code   Code   `cbor:"1,keyasint"`
	Reason string `cbor:"2,keyasint"`
}

// An Abort is the source's end of a move before COMMIT.
type Abort struct {
	Reason string `cbor:"1,keyasint"`
}

// A Query asks what became of a move whose COMMIT may have arrived.
type Query struct {
	// Epoch is N+1.
	Epoch uint64 `cbor:"1,keyasint"`
}

// A State is the answer to a Query. The numbers are on the wire.
type State uint8

const (
	// NeverTook: the destination never took the move and never will.
	NeverTook State = 1
	// Took: the worker is the destination's, on disk, and runs there.
	Took State = 2
	// TookButLost: the worker was the destination's and is lost; Reason says why.
	TookButLost State = 3
	// MovedOn: the worker was the destination's and has left it since, or its
	// fate there is a later epoch's.
	MovedOn State = 4
)

// String returns the state in words.
func (s State) String() string {
	switch s {
	case NeverTook:
		return "never took it"
	case Took:
		return "took it"
	case TookButLost:
		return "took it and lost it"
	case MovedOn:
		return "moved it on"
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// A Status answers a Query, or tells of a loss unasked.
type Status struct {
	State State `cbor:"1,keyasint"`
	// Epoch is the epoch that the destination knows of the worker; 0 if none.
	Epoch uint64 `cbor:"2,keyasint,omitempty"`
	// Drained says, with Took, that the destination needs no more pages.
	Drained bool `cbor:"3,keyasint,omitempty"`
	// Reason says why, with NeverTook and TookButLost.
	Reason string `cbor:"4,keyasint,omitempty"`
}

func (Offer) Type() Type      { return TypeOffer }
func (Accept) Type() Type     { return TypeAccept }
func (Refuse) Type() Type     { return TypeRefuse }
func (FrozenBody) Type() Type { return TypeFrozen }
func (Filled) Type() Type     { return TypeFilled }
func (Commit) Type() Type     { return TypeCommit }
func (Running) Type() Type    { return TypeRunning }
func (Taken) Type() Type      { return TypeTaken }
func (Drained) Type() Type    { return TypeDrained }
func (Done) Type() Type       { return TypeDone }
func (Rejected) Type() Type   { return TypeRejected }
func (Abort) Type() Type      { return TypeAbort }
func (Query) Type() Type      { return TypeQuery }
func (Status) Type() Type     { return TypeStatus }

const (
	// MaxReasonBytes limits every reason and hint; the machines cut theirs.
	MaxReasonBytes = 1 << 10
	// MaxConfigBytes limits Offer.Config.
	MaxConfigBytes = 48 << 10
	// maxEpoch leaves room for N+2 for longer than any worker lives.
	maxEpoch = 1 << 62
	// maxMemory is the most that a WebAssembly memory of 32-bit addresses has.
	maxMemory = 4 << 30
	// maxModule is far above any module a node compiles.
	maxModule = 1 << 32
)

func (o Offer) validate() error {
	switch {
	case !printable(o.Worker, 64):
		return errors.New("worker id")
	case !printable(o.Name, 63):
		return errors.New("worker name")
	case o.Epoch == 0 || o.Epoch > maxEpoch:
		return fmt.Errorf("epoch %d", o.Epoch)
	case o.ModuleSize == 0 || o.ModuleSize > maxModule:
		return fmt.Errorf("module of %d bytes", o.ModuleSize)
	case o.MemoryBytes > maxMemory || o.MemoryLimit > maxMemory || o.MemoryBytes > o.MemoryLimit:
		return fmt.Errorf("memory of %d bytes with a limit of %d", o.MemoryBytes, o.MemoryLimit)
	case o.Strategy == 0:
		return errors.New("no strategy")
	case len(o.Config) > MaxConfigBytes:
		return fmt.Errorf("config of %d bytes", len(o.Config))
	}
	return nil
}

func (Accept) validate() error       { return nil }
func (r Refuse) validate() error     { return reasons(r.Reason, r.Hint) }
func (f FrozenBody) validate() error { return nil }
func (Filled) validate() error       { return nil }
func (c Commit) validate() error     { return given(c.Epoch) }
func (Running) validate() error      { return nil }
func (Taken) validate() error        { return nil }
func (Drained) validate() error      { return nil }
func (Done) validate() error         { return nil }
func (r Rejected) validate() error   { return reasons(r.Reason) }
func (a Abort) validate() error      { return reasons(a.Reason) }
func (q Query) validate() error      { return given(q.Epoch) }

func (s Status) validate() error {
	if s.State < NeverTook || s.State > MovedOn {
		return fmt.Errorf("state %d", s.State)
	}
	return reasons(s.Reason)
}

// given rejects an epoch that no COMMIT can give.
func given(epoch uint64) error {
	if epoch < 2 || epoch > maxEpoch+1 {
		return fmt.Errorf("epoch %d", epoch)
	}
	return nil
}

func reasons(ss ...string) error {
	for _, s := range ss {
		if len(s) > MaxReasonBytes {
			return fmt.Errorf("reason of %d bytes", len(s))
		}
	}
	return nil
}

// printable says whether s is 1 to n bytes of ASCII without spaces or controls.
func printable(s string, n int) bool {
	if len(s) == 0 || len(s) > n {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// cut makes s fit for a reason: valid UTF-8 of at most MaxReasonBytes.
func cut(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= MaxReasonBytes {
		return s
	}
	n := MaxReasonBytes - len("…")
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}
