package handover

import "fmt"

// An Action is something that the executor has to do. Actions of one Handle are
// begun in order. Those that answer with an event (Persist, Freeze, Prepare,
// Fill, Resume, Drain) are begun and not waited for: the executor goes on with
// the next action and feeds the event back when it comes, so that an fsync runs
// beside a resume. All others are complete before the next one begins. The
// order is a promise: a crash between two actions leaves what the earlier ones
// did, and the protocol is safe at each of those points.
type Action interface{ action() }

// Actions of both sides.
type (
	// Send queues a message for the peer of the move, after those queued
	// before. If it cannot be sent it is dropped: the machines repeat what has
	// to be repeated. A COMMIT counts as having left once it was handed out.
	Send struct{ Message Message }

	// Persist writes a record to the journal ([Journal.Put]) and answers
	// Persisted once it is on disk. Writes of one worker reach the journal in
	// the order of their actions. A machine never has two of them under way.
	Persist struct {
		ID     uint64
		Record Record
	}

	// Lose tells the user that the worker is lost, with the reason. The
	// executor kills the runner if there is one, drops the memory, and publishes
	// the loss under Epoch. Nothing is answered.
	Lose struct {
		Epoch  uint64
		Reason string
	}

	// Finish is the machine's last action. The executor drops the machine;
	// later messages of the move go to [Answer].
	Finish struct{ Result Result }

	// Note is something for the log that needs nobody to act: a message that
	// does not fit, a cancel that came too late.
	Note struct{ Text string }
)

// Actions of a Source.
type (
	// Warm sends pages to the destination while the worker runs, until the
	// Freeze. Answered by Warmed.
	Warm struct{}

	// Freeze stops the worker at its next suspend point. From then on messages
	// to it are held. Answered by Frozen, FreezeFailed or RunnerDied.
	Freeze struct{}

	// Thaw lets the worker run here again, in Epoch: N if COMMIT never left,
	// else N+2. It undoes a Freeze that is still under way, too. Messages held
	// since the freeze are delivered here.
	Thaw struct{ Epoch uint64 }

	// ServePages lets the destination fetch pages of the frozen memory.
	ServePages struct{ Ticket uint64 }

	// StopServing ends that and closes the page streams.
	StopServing struct{}

	// Forget lets the memory and the runner go: the worker lives at To in
	// Epoch, and held messages are forwarded there.
	Forget struct {
		To    string
		Epoch uint64
	}
)

// Actions of a Dest.
type (
	// Prepare checks room and policy, fetches and compiles the module, and
	// starts a runner with an empty memory. Answered by Prepared or
	// PrepareFailed.
	Prepare struct{ Offer Offer }

	// Fill fetches every page of the table from the source. Answered by
	// FilledAll or FillFailed; Progress meanwhile.
	Fill struct{ Table []byte }

	// Resume restores the head and lets the worker take events in Epoch at
	// once, while everything that it says is held back until ReleaseOutput. If
	// Paging, missing pages are served by Drain, which follows in the same list:
	// the region is armed before the first event. Answered by Resumed or
	// ResumeFailed.
	Resume struct {
		Head   []byte
		Epoch  uint64
		Paging bool
	}

	// Drain fetches missing pages, those that the worker waits for first, and
	// redials when the path breaks. Answered by DrainedAll, perhaps after
	// MemoryIn, or by PagesGone.
	Drain struct{}

	// ReleaseOutput lets go what the worker said since Resume, and all that it
	// says from now on. The directory may now name this node as its home.
	ReleaseOutput struct{}

	// Discard ends whatever of Prepare, Fill, Resume and Drain is under way,
	// kills the runner with all that it said, and drops the memory. After it
	// returns the worker does not run here.
	Discard struct{}

	// Settle tells the journal that the source will never ask about this move
	// again (Settle of the journal). Nothing is answered.
	Settle struct {
		Worker string
		Move   MoveID
	}
)

func (Send) action()          {}
func (Persist) action()       {}
func (Lose) action()          {}
func (Finish) action()        {}
func (Note) action()          {}
func (Warm) action()          {}
func (Freeze) action()        {}
func (Thaw) action()          {}
func (ServePages) action()    {}
func (StopServing) action()   {}
func (Forget) action()        {}
func (Prepare) action()       {}
func (Fill) action()          {}
func (Resume) action()        {}
func (Drain) action()         {}
func (ReleaseOutput) action() {}
func (Discard) action()       {}
func (Settle) action()        {}

// An Outcome is how a move ended.
type Outcome uint8

const (
	// Moved: the worker is the destination's, with all of its memory.
	Moved Outcome = 1
	// Kept: the destination never took it; it is the source's as it was, in
	// the result's epoch.
	Kept Outcome = 2
	// Lost: it runs nowhere and never will; the result says why.
	Lost Outcome = 3
	// Abandoned: the operator gave up a source in doubt.
	Abandoned Outcome = 4
)

// String returns the outcome in one word.
func (o Outcome) String() string {
	switch o {
	case Moved:
		return "moved"
	case Kept:
		return "kept"
	case Lost:
		return "lost"
	case Abandoned:
		return "abandoned"
	}
	return fmt.Sprintf("outcome %d", uint8(o))
}

// A Result is the end of a move, for the user.
type Result struct {
	Outcome Outcome
	// Epoch is the worker's now, as far as this side knows.
	Epoch uint64
	// Record is what the journal holds of the worker now, or would hold if it
	// could be written (a broken disk does not keep a worker from thawing).
	// Zero if this side's journal was never touched.
	Record Record
	// Code, Reason and Hint say why it was not Moved, and what to do.
	Code   Code
	Reason string
	Hint   string
}
