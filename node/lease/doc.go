// Package lease decides who may run a worker when its owner falls silent: the
// owner holds a lease at another node, its guardian, which takes the worker
// over when the lease has run out. An [Owner] and a [Guard] are machines without
// I/O, one of each for a worker; package node carries their messages, writes the
// guardian's [Record] and runs the worker.
//
//	owner                                    guardian
//	ASK      who, epoch N, how long     ->   fetch the module
//	         <- ACCEPTED ticket / REFUSED
//	RENEW    ticket, 1                  ->   the record goes to disk: held
//	         <- RENEWED 1
//	RENEW    ticket, 2, 3, ...          ->
//	         <- RENEWED 2, 3, ...
//	RELEASE  ticket                     ->   before a move, or at the end; off the disk
//	         <- RELEASED
//	YIELD    ticket                     ->   instead: the copy has ended, take it now
//	         <- TAKEN / UNKNOWN
//
// An owner whose renewals are not answered stops the worker when the lease has
// run out, counted on its own clock from when it sent the last renewal that was
// answered. A guardian that hears none takes the worker over, in epoch N+[Step],
// when the lease and a margin have run out, counted on its own clock from when it
// received the last one. Whatever the owner asks from then on is answered TAKEN,
// which ends the owner's copy; HEARD is its last word.
//
// # Why it is safe
//
// A renewal is received after it was sent, so the guardian counts from later,
// and for longer by the margin: that covers clocks that run at different rates
// and the moment that stopping takes. That holds whatever is lost, delayed or
// doubled, and does not ask that clocks agree, only that they run at like rates.
//
// An owner is bound from the moment in which it sends the first renewal, whether
// that arrives or not, until the guardian has said that it does not, and never
// will, hold the lease of that ticket (RELEASED, UNKNOWN). That statement stays
// true: a lease begins only with a renewal whose ticket the guardian has drawn
// and not yet forgotten, and it draws one for each ASK. So a late copy of a
// RENEW finds nothing, a late copy of an ASK makes an offer that nobody takes
// up, and the owner may move the worker on, to epochs that the guardian will
// not reach.
//
// A guardian that restarts has its leases on disk and counts each anew from
// then. That it has taken a worker is on disk before the worker runs, and stays
// there until the owner has heard of it, or for [Memory]; an owner that comes
// back much later than that takes UNKNOWN for TAKEN.
//
// An owner that restarts has lost its worker, and does not renew. It has the
// ticket on its disk from before the first renewal, and yields: so does one that
// stops in order, once its copy has ended. Nothing of that copy runs any more, so
// the guardian need not wait. YIELD names a ticket as RELEASE does, and says
// something that stays true, so it may be late, or come twice: it finds the lease
// of that one copy, or nothing. UNKNOWN then means that nobody takes the worker.
//
// The owner's clock goes on while its machine is suspended ([Now]); the
// guardian's need not: it only waits longer.
package lease
