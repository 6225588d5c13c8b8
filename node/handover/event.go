package handover

// An Event is something that happened to a move. The executor feeds events to
// the machine one at a time, in the order in which they happened. A machine
// ignores an event that does not fit its phase, so an executor need not know
// which ones still matter.
type Event interface{ event() }

type (
	// Start begins a move (Source) or, after a restart, the asking.
	Start struct{}

	// Received is a message of this move, decoded, from the authenticated peer
	// of this move. The executor drops messages of other peers.
	Received struct{ Message Message }

	// Persisted says that the record of [Persist] with this ID is on disk.
	Persisted struct{ ID uint64 }

	// PersistFailed says that it may not be.
	PersistFailed struct {
		ID     uint64
		Reason string
	}

	// Progress says that pages are still coming or going; it extends
	// Params.FillTimeout. An executor sends it at most a few times a second.
	Progress struct{}

	// PathDown says that the connection to the peer broke.
	PathDown struct{}

	// PathUp says that it is there again. Incarnation is the peer's, 0 if not
	// known.
	PathUp struct{ Incarnation uint64 }

	// Cancel ends the move if that is still possible: before COMMIT. Afterwards
	// it does nothing but produce a [Note]; ask CanCancel first.
	Cancel struct{ Reason string }

	// RunnerDied says that the worker's process ended by itself.
	RunnerDied struct{ Reason string }

	// Tick says that time has passed.
	Tick struct{}
)

// Events of a Source.
type (
	// Warmed answers [Warm]: to go on sending pages would bring little more.
	Warmed struct{}

	// Frozen answers [Freeze]: the worker stands still. Head is the image for
	// COMMIT and Table the page table for FROZEN; in post-copy the table, or
	// what is left of it, travels in Head.
	Frozen struct{ Head, Table []byte }

	// FreezeFailed says that the worker cannot be frozen and runs on, or will
	// at [Thaw].
	FreezeFailed struct{ Reason string }

	// Abandon is the operator's word that the destination of a move in doubt
	// will never answer: the frozen worker is given up. Before COMMIT it is a
	// Cancel.
	Abandon struct{ Reason string }
)

// Events of a Dest.
type (
	// Prepared answers [Prepare]. Meta goes into the journal's record as it is.
	Prepared struct {
		Paging bool
		Meta   []byte
	}

	// PrepareFailed answers Prepare; the words go to the user at the source.
	PrepareFailed struct {
		Code   Code
		Reason string
		Hint   string
	}

	// FilledAll answers [Fill]: every page is in and verified.
	FilledAll struct{}

	// FillFailed answers Fill: a page cannot be had or is not what its name says.
	FillFailed struct{ Reason string }

	// Resumed answers [Resume]: the worker takes events.
	Resumed struct{}

	// ResumeFailed answers Resume. The worker has not run a single event.
	ResumeFailed struct{ Reason string }

	// DrainedAll answers [Drain]: every page is in and verified.
	DrainedAll struct{}

	// MemoryIn may come between [Drain] and DrainedAll: every page of memory is
	// in and verified, and what is still to come the worker can do without. From
	// here on it is not lost with its source.
	MemoryIn struct{}

	// PagesGone says that a page will never be had: the source does not serve
	// it any more, or what it serves is not what its name says. A broken path is
	// not that; the executor redials while the machine waits.
	PagesGone struct{ Reason string }

	// MoveOn says that the node wants the worker's record for itself, to move
	// it on. In DestSettling the machine ends there and then, and [Answer] takes
	// over what is left. In any other phase there is only a [Note]: a worker
	// whose pages are not all in cannot move on.
	MoveOn struct{}
)

func (Start) event()         {}
func (Received) event()      {}
func (Persisted) event()     {}
func (PersistFailed) event() {}
func (Progress) event()      {}
func (PathDown) event()      {}
func (PathUp) event()        {}
func (Cancel) event()        {}
func (RunnerDied) event()    {}
func (Tick) event()          {}
func (Warmed) event()        {}
func (Frozen) event()        {}
func (FreezeFailed) event()  {}
func (Abandon) event()       {}
func (Prepared) event()      {}
func (PrepareFailed) event() {}
func (FilledAll) event()     {}
func (FillFailed) event()    {}
func (Resumed) event()       {}
func (ResumeFailed) event()  {}
func (DrainedAll) event()    {}
func (MemoryIn) event()      {}
func (PagesGone) event()     {}
func (MoveOn) event()        {}
