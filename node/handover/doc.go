// Package handover is the protocol that moves a worker from one node to
// another, as a machine without I/O on each side, and the [Record] in which a
// node remembers of a worker what it owns and what it has promised.
//
// One [Source] and one [Dest] exist per move. An executor (package node) owns
// each: it feeds events to Handle, performs the actions that come back, in
// order, and calls Handle with a [Tick] when Deadline has passed. A machine
// starts nothing, blocks on nothing, reads no clock and is not safe for
// concurrent use.
//
//	source                                   destination
//	OFFER    who, how big, epoch N      ->   Prepare: fetch module, start runner
//	         <- ACCEPT ticket / REFUSE
//	pages in rounds             ->   (pre-copy, hybrid) while the worker runs
//	Persist  moving-out; then Freeze
//	FROZEN   page table                 ->   Fill: all pages       (stop-and-copy, pre-copy)
//	         <- FILLED
//	COMMIT   head, epoch N+1, ticket    ->   Persist taken; Resume at once, beside it
//	         <- RUNNING                      what the worker says is held back
//	         <- TAKEN                        the entry is on disk: ReleaseOutput
//	         pages on demand and pushed ->   Drain
//	         <- DRAINED                      every page is in
//	Persist  gone; Forget
//	DONE                                ->   Settle: the source never asks again
//
// # Why it is safe
//
// A worker runs in one epoch at one node. The source may run it in epoch N
// until COMMIT has left, the destination in N+1 once it has COMMIT, and the
// source again, in N+2, only after the destination said that it never took the
// move and never will. That statement has to stay true for ever, whatever
// arrives late or twice and whoever restarts. It does, because a COMMIT is
// taken only by a live Dest whose ticket it carries: the ticket is drawn at
// random for each Dest and told in ACCEPT, so it exists before any COMMIT or
// QUERY that names it, and it dies with its Dest. A Dest that answers "never
// took" ends there; one created later from a late copy of the OFFER has
// another ticket. No tombstones are needed.
//
// The destination resumes before its journal entry is on disk (an fsync costs
// milliseconds), so what the worker says is held back until it is: a crash
// before that rolls the worker back to the source, and nobody can tell. After
// it, the worker is the destination's for good, and if it is lost there it is
// lost with a reason and never run twice.
//
// The source's "moving out" entry is written before the freeze, so that no
// fsync sits in the blackout. A source that restarts finds it and asks.
//
// An entry about a taken move is kept until the source has said, after writing
// its own, that it will never ask again (DONE); until then it survives any
// number of further moves in [Record.Unsettled].
package handover
