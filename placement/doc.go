// Package placement decides where workers run, and says why.
//
// It is arithmetic: a view of the mesh goes in, a decision with its reasons
// comes out. There is no clock (the view says what time it is), no I/O, no
// goroutine and no randomness, so that every decision can be repeated from its
// inputs, and explained.
//
//	manifest.App ─┐   what the app needs
//	Node, Path   ─┤   what nodes can do, how far apart they are
//	Worker       ─┼─▶ View.Decide ─▶ Decision   stay, or move where and how
//	State        ─┘   its past       State      what to remember of it
//
// # The view
//
// A [View] is a snapshot that the caller assembles from [Node], [Path] and
// [Worker] facts. Each fact has a [Stamp]: when it was learnt, and how.
// Nothing is dropped for being old; its age is printed with it, and network
// coordinates take the place of round trips that were measured too long ago.
//
// # Filter, predict, score
//
// A candidate is first held against everything it must fulfil: the manifest's
// required predicates, room, and the hard objectives as predicted for it. All
// failures are kept (a set of [Code]), not the first.
//
// What is left has a cost, in violated seconds per second: for every soft
// objective its weight times the risk that the objective is broken there, plus
// preferences that the node does not fit, plus a little for latency as such,
// which breaks ties towards the user. The risk grows smoothly from 0 to 1
// around the objective's maximum, since predictions are uncertain (risk in
// latency.go); a worker therefore leaves shortly before its objective breaks,
// not after.
//
//	event latency(q) = network + wait for a CPU + wait in the worker's queue + handler's time × speed ratio
//	gain(n)          = (cost here − cost at n) × expected stay − what the move costs
//
// Package files, in the order in which to read them: stamp.go, node.go,
// path.go, worker.go (facts); latency.go, move.go (predictions); view.go,
// filter.go, cost.go (a candidate); state.go, decide.go (the decision);
// reserve.go, fallback.go, explain.go, plan.go (around it).
//
// # Stability
//
// A move is made when a candidate has been better by an offset for some time,
// as in a cellular handover (3GPP TS 36.331, 5.5.4.4, "Event A3": offset and
// time-to-trigger); after a minimum stay, which doubles when a worker bounces
// back to where it came from; and within a cap for each hour. One node
// decides for a worker, its owner; what it must remember between decisions is
// a [State], a small value that travels with the worker. A destination keeps
// [Reservations], so that a crowd that decides at the same time is turned away
// one by one, and equals are told apart by a hash of worker and node, so that
// the crowd does not form.
package placement
