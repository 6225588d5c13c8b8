package handover

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

// A MoveID names one move: 16 random bytes drawn by the source. The zero
// MoveID names none.
type MoveID [16]byte

// NewMoveID draws a MoveID.
func NewMoveID() MoveID {
	var m MoveID
	_, _ = rand.Read(m[:]) // never fails: crypto/rand.Read's contract
	return m
}

// String returns m in hexadecimal.
func (m MoveID) String() string { return hex.EncodeToString(m[:]) }

// A Hash is the BLAKE3 hash of a module's bytes.
type Hash [32]byte

// String returns h in hexadecimal.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// NewIncarnation draws the number that names one run of a node process. A node
// draws it once at start and uses it for every move; a peer that sees another
// one knows that the process, and every worker memory in it, is a new one. It
// is never 0.
func NewIncarnation() uint64 { return random() }

// NewTicket draws the number that names one [Dest]; see the package comment.
// It is never 0.
func NewTicket() uint64 { return random() }

func random() uint64 {
	for {
		var b [8]byte
		_, _ = rand.Read(b[:])
		if v := binary.BigEndian.Uint64(b[:]); v != 0 {
			return v
		}
	}
}

// A Strategy says when the pages travel. The numbers are on the wire.
type Strategy uint8

const (
	// PostCopy commits first and fetches pages afterwards, on demand and
	// pushed. A destination that cannot page turns it into StopAndCopy.
	PostCopy Strategy = 1
	// StopAndCopy freezes, copies every page, then commits.
	StopAndCopy Strategy = 2
	// PreCopy sends pages in rounds while the worker runs, then freezes, copies
	// what is missing, and commits.
	PreCopy Strategy = 3
	// Hybrid sends pages in rounds while the worker runs, then commits and
	// fetches what is missing. A destination that cannot page turns it into
	// PreCopy.
	Hybrid Strategy = 4
)

// String returns the strategy's name on the command line.
func (s Strategy) String() string {
	switch s {
	case PostCopy:
		return "post-copy"
	case StopAndCopy:
		return "stop-and-copy"
	case PreCopy:
		return "pre-copy"
	case Hybrid:
		return "hybrid"
	}
	return fmt.Sprintf("strategy %d", uint8(s))
}

// known says whether a move can be asked for with s.
func (s Strategy) known() bool { return s >= PostCopy && s <= Hybrid }

// Rounds says whether pages travel while the worker still runs.
func (s Strategy) Rounds() bool { return s == PreCopy || s == Hybrid }

// copiesAll says whether every page travels before COMMIT, at a destination
// that can page or cannot.
func (s Strategy) copiesAll(paging bool) bool { return s == StopAndCopy || s == PreCopy || !paging }

// Params are the waits of a move. A zero field means its default.
type Params struct {
	// OfferTimeout is how long the source waits for ACCEPT or REFUSE: the
	// destination fetches and compiles the module meanwhile. Default 30 s.
	OfferTimeout time.Duration
	// WarmTimeout is how long pages are sent while the worker runs before the
	// source goes on with what has arrived. Default 5 min.
	WarmTimeout time.Duration
	// PersistTimeout is how long the source waits for its "moving out" entry
	// before it gives the move up; the worker runs meanwhile. Default 10 s.
	PersistTimeout time.Duration
	// FreezeTimeout is how long the worker may take to reach a point where it
	// can be frozen. Default 10 s.
	FreezeTimeout time.Duration
	// FillTimeout is how long stop-and-copy waits, on either side, without a
	// [Progress]. Default 30 s.
	FillTimeout time.Duration
	// HoldTimeout is how long a destination keeps a prepared runner for a
	// COMMIT that does not come, since the last [Progress] and for WarmTimeout
	// more at most, and how long it prepares. Default 2 min.
	HoldTimeout time.Duration
	// ResumeTimeout is how long the runner may take to resume at the
	// destination. Default 30 s.
	ResumeTimeout time.Duration
	// DrainTimeout is how long a destination that still lacks pages waits for
	// a broken path to come back before the worker is lost. Default 2 min.
	DrainTimeout time.Duration
	// DoneTimeout is how long a destination that has everything goes on asking
	// for DONE. Nothing is lost when it passes: the source asks in turn.
	// Default 1 min.
	DoneTimeout time.Duration
	// RetryInterval is the first pause before a QUERY, a repeated DRAINED, or
	// another attempt to write the journal. It doubles up to MaxRetryInterval.
	// Defaults 2 s and 30 s.
	RetryInterval    time.Duration
	MaxRetryInterval time.Duration
}

// Validate rejects negative waits and a first retry longer than the last.
func (p Params) Validate() error {
	for _, d := range []time.Duration{
		p.OfferTimeout, p.WarmTimeout, p.PersistTimeout, p.FreezeTimeout, p.FillTimeout, p.HoldTimeout,
		p.ResumeTimeout, p.DrainTimeout, p.DoneTimeout, p.RetryInterval, p.MaxRetryInterval,
	} {
		if d < 0 {
			return fmt.Errorf("hand-over params: negative duration %s", d)
		}
	}
	d := p.withDefaults()
	if d.RetryInterval > d.MaxRetryInterval {
		return errors.New("hand-over params: RetryInterval is longer than MaxRetryInterval")
	}
	return nil
}

func (p Params) withDefaults() Params {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&p.OfferTimeout, 30*time.Second)
	def(&p.WarmTimeout, 5*time.Minute)
	def(&p.PersistTimeout, 10*time.Second)
	def(&p.FreezeTimeout, 10*time.Second)
	def(&p.FillTimeout, 30*time.Second)
	def(&p.HoldTimeout, 2*time.Minute)
	def(&p.ResumeTimeout, 30*time.Second)
	def(&p.DrainTimeout, 2*time.Minute)
	def(&p.DoneTimeout, time.Minute)
	def(&p.RetryInterval, 2*time.Second)
	def(&p.MaxRetryInterval, 30*time.Second)
	return p
}

// retry returns the pause before attempt n (from 0).
func (p Params) retry(n int) time.Duration {
	d := p.RetryInterval
	for ; n > 0 && d < p.MaxRetryInterval; n-- {
		d *= 2
	}
	return min(d, p.MaxRetryInterval)
}

// earliest returns the first of the times that are set.
func earliest(ts ...time.Time) (time.Time, bool) {
	var first time.Time
	for _, t := range ts {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	return first, !first.IsZero()
}

// due says whether the timer at t is set and has run out.
func due(t, now time.Time) bool { return !t.IsZero() && !now.Before(t) }
