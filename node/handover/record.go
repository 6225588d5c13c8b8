package handover

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"time"
)

// An Ownership is what a node's journal says of a worker. The numbers are on
// disk.
type Ownership uint8

const (
	// OwnRunning: the worker is this node's in Epoch and never came by a move
	// (or came back to it in doubt).
	OwnRunning Ownership = 1
	// OwnMovingOut: it is this node's in Epoch and may have been given to Peer
	// in Epoch+1 by Move.
	OwnMovingOut Ownership = 2
	// OwnTaken: it is this node's in Epoch, taken from Peer by Move.
	OwnTaken Ownership = 3
	// OwnGone: it went to Peer in Epoch by Move.
	OwnGone Ownership = 4
	// OwnLost: it was this node's and is lost; Reason says why.
	OwnLost Ownership = 5
	// OwnDeclined: Move would have brought it here in Epoch from Peer, and this
	// node has said, or will say, that it never took it.
	OwnDeclined Ownership = 6
)

var ownNames = [...]string{
	OwnRunning: "running", OwnMovingOut: "moving out", OwnTaken: "taken",
	OwnGone: "gone", OwnLost: "lost", OwnDeclined: "declined",
}

// String returns the ownership in words.
func (o Ownership) String() string {
	if int(o) < len(ownNames) && ownNames[o] != "" {
		return ownNames[o]
	}
	return fmt.Sprintf("ownership %d", uint8(o))
}

// Owned says that the worker is this node's, or may be.
func (o Ownership) Owned() bool { return o == OwnRunning || o == OwnMovingOut || o == OwnTaken }

// A Record is what a node's journal knows of one worker. Slices in it are never
// written to once they are in a Record.
type Record struct {
	Worker string    `cbor:"1,keyasint"`
	Epoch  uint64    `cbor:"2,keyasint"`
	Own    Ownership `cbor:"3,keyasint"`
	// Move and Peer are the last move's and the node at its other end; zero for
	// a worker that never moved.
	Move MoveID `cbor:"4,keyasint"`
	Peer string `cbor:"5,keyasint,omitempty"`
	// Ticket is the one that COMMIT carries (OwnMovingOut).
	Ticket uint64 `cbor:"6,keyasint,omitempty"`
	Reason string `cbor:"7,keyasint,omitempty"`
	// Updated is when the record was made, in Unix seconds of this node's
	// clock. For expiry and people only.
	Updated int64 `cbor:"8,keyasint,omitempty"`
	// Unsettled are the moves taken by this node whose source has not yet said
	// DONE. While there are any, the record never expires: a source in doubt
	// that is told "never took" runs the worker again.
	Unsettled []MoveID `cbor:"9,keyasint,omitempty"`
	// Meta is the node's: the worker's name, module, home and so on. At most
	// MaxMetaBytes; not interpreted here.
	Meta []byte `cbor:"10,keyasint,omitempty"`
}

const (
	// MaxMetaBytes limits Record.Meta.
	MaxMetaBytes = 64 << 10
	// maxUnsettled limits Record.Unsettled: so many times can a worker be taken
	// from sources that never said DONE. Further offers are refused.
	maxUnsettled = 32
	// maxRecord is more than any valid record has.
	maxRecord = MaxMetaBytes + 4<<10
)

// ErrRecord means bytes that are not a record of this version.
var ErrRecord = errors.New("not a journal record")

// recordVersion opens every record on disk. Keys are only ever added within it.
const recordVersion = 1

// Encode returns r's bytes:
//
//	version  uint8
//	sum      uint32  // CRC-32C of the rest, big endian; bbolt's pages have none
//	record   CBOR map with integer keys
func (r Record) Encode() ([]byte, error) {
	if err := r.Validate(); err != nil {
		return nil, fmt.Errorf("encode journal record: %w", err)
	}
	b, err := encMode.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode journal record: %w", err)
	}
	return sealRecord(b), nil
}

// recordHead is the length of what stands before the map.
const recordHead = 1 + 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sealRecord(b []byte) []byte {
	out := append(make([]byte, 0, recordHead+len(b)), recordVersion)
	return append(binary.BigEndian.AppendUint32(out, crc32.Checksum(b, castagnoli)), b...)
}

// DecodeRecord returns the record in b and keeps no reference to it. The error
// wraps ErrRecord.
func DecodeRecord(b []byte) (Record, error) {
	var r Record
	switch {
	case len(b) <= recordHead:
		return r, fmt.Errorf("%w: %d bytes", ErrRecord, len(b))
	case len(b) > maxRecord:
		return r, fmt.Errorf("%w: %d bytes, limit %d", ErrRecord, len(b), maxRecord)
	case b[0] != recordVersion:
		return r, fmt.Errorf("%w: version %d, this program knows %d", ErrRecord, b[0], recordVersion)
	}
	sum, b := binary.BigEndian.Uint32(b[1:]), b[recordHead:]
	switch {
	case sum != crc32.Checksum(b, castagnoli):
		return r, fmt.Errorf("%w: wrong checksum", ErrRecord)
	case b[0]>>5 != 5:
		return r, fmt.Errorf("%w: not a map", ErrRecord)
	}
	if err := decMode.Unmarshal(b, &r); err != nil {
		return Record{}, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	if err := r.Validate(); err != nil {
		return Record{}, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	return r, nil
}

// Validate rejects a record that no machine writes.
func (r Record) Validate() error {
	switch {
	case !printable(r.Worker, 64):
		return errors.New("worker id")
	case r.Epoch == 0 || r.Epoch > maxEpoch+2:
		return fmt.Errorf("epoch %d", r.Epoch)
	case r.Own < OwnRunning || r.Own > OwnDeclined:
		return fmt.Errorf("ownership %d", r.Own)
	case r.Peer != "" && !printable(r.Peer, 64):
		return errors.New("peer id")
	case (r.Own == OwnMovingOut || r.Own == OwnTaken || r.Own == OwnGone || r.Own == OwnDeclined) &&
		(r.Peer == "" || r.Move == MoveID{}):
		return fmt.Errorf("%s without a move or a peer", r.Own)
	case len(r.Reason) > MaxReasonBytes:
		return fmt.Errorf("reason of %d bytes", len(r.Reason))
	case len(r.Unsettled) > maxUnsettled:
		return fmt.Errorf("%d unsettled moves", len(r.Unsettled))
	case len(r.Meta) > MaxMetaBytes:
		return fmt.Errorf("meta of %d bytes", len(r.Meta))
	}
	return nil
}

// become returns r with another fate; what it says of the worker stays.
func (r Record) become(own Ownership, epoch uint64, now time.Time) Record {
	r.Own, r.Epoch, r.Updated = own, epoch, now.Unix()
	r.Ticket, r.Reason = 0, ""
	return r
}

// unsettledWith and unsettledWithout return r's unsettled moves in a new slice.
func (r Record) unsettledWith(m MoveID) []MoveID {
	if slices.Contains(r.Unsettled, m) {
		return r.Unsettled
	}
	return append(slices.Clip(slices.Clone(r.Unsettled)), m)
}

func (r Record) unsettledWithout(m MoveID) []MoveID {
	var out []MoveID
	for _, u := range r.Unsettled {
		if u != m {
			out = append(out, u)
		}
	}
	return out
}

// A Todo is what a node that has just started must do about a worker in its
// journal.
type Todo uint8

const (
	// TodoNothing: the worker is no longer this node's affair.
	TodoNothing Todo = 0
	// TodoForward: it lives at Record.Peer, or did in Record.Epoch; messages
	// for it go there.
	TodoForward Todo = 1
	// TodoLost: persist the returned record, and tell that the worker is lost,
	// for Record.Reason.
	TodoLost Todo = 2
	// TodoAsk: make a Source with RestartSource and feed it Start: only the
	// destination knows whether the worker runs there or is lost.
	TodoAsk Todo = 3
)

// Recover says what a node that has just started must do about r. A worker's
// memory lives in its runner, which does not outlive the node, so that whatever
// this node owned is lost. The returned record replaces r in the journal if it
// differs. A node recovers every record before it answers any message.
func Recover(r Record, now time.Time) (Record, Todo) {
	switch r.Own {
	case OwnRunning, OwnTaken:
		l := r.become(OwnLost, r.Epoch, now)
		l.Reason = "the node restarted while the worker's memory lived in it"
		return l, TodoLost
	case OwnMovingOut:
		return r, TodoAsk
	case OwnGone:
		return r, TodoForward
	case OwnLost:
		return r, TodoLost
	}
	return r, TodoNothing
}
