// Package pager moves the memory of a worker: it names pages, keeps page
// tables, finds what was written, and brings pages to a worker that already
// runs elsewhere, those it waits for first. It is given plain readers and
// writers and knows nothing of the network behind them.
//
// A move has two ends. Before the freeze, Rounds at the origin send the memory
// while the worker runs, and an Intake at the destination puts it in place:
//
//	Intake                                   Rounds
//	Hello ------------- rounds ------------>
//	      <------------------------- Welcome
//	      <--------------------------- Names        if asked for: ahead of the
//	Lacks ------------------------------->          first bytes of a page
//	      <--------------------------- Pages        written longest ago first,
//	Ack   ------------------------------->          then what was written since
//	      <--------------------------- Stale        written since, and not sent again
//	      <-------------------------- Frozen        the rest: as on a bulk stream
//
// What became stale last is listed in a Layout, which travels while the worker
// stands still. The Intake takes what is stale out of the memory and keeps it
// aside; all that it never had, or has taken out, is missing. Frames that are
// still on their way replace what is aside, so both ends know the same version of
// each page, and the last one comes as a patch of it. Then, or without any rounds,
// at the origin a Source serves the pages of a frozen
// worker. At the destination a Sink dials two streams to it: one asks for the
// pages the worker waits for, the other brings all others unasked. Each
// stream opens with a Hello that says what is already there, so a stream
// that breaks is dialled again and nothing crosses twice.
//
//	Sink                                     Source
//	Hello ------------ demand stream ------>
//	      <------------------------- Welcome
//	Want  ------------------------------->          a worker waits
//	      <------------------- Pages | Zeros
//
//	Hello ------------ bulk stream -------->
//	      <------------------------- Welcome
//	      <--------------------------- Zeros        holes, all at once
//	      <--------------------------- Pages        most recently written first
//	      <--------------------------- Names        only if asked for in Hello:
//	Lacks ------------------------------->          names ahead, pages as lacking
//	      <---------------------------- Done        all pushed
//	Done  ------------------------------->          all in
//
// What is named ahead, in rounds or after them, is looked for in a Store, and in
// the memories of other workers that run there, the Neighbours. What they do not
// have can be brought by other nodes as well, the Peers of an Intake or a Sink: a
// gather shares it out, and answers the Source once it is known what those do not
// bring. Of what was named, a page that the worker waits for is asked of them
// beside the Source: see askElsewhere.
//
// A Pages frame brings pages as they are, compressed together, or as patches of
// versions that came in rounds, if the Hello says that those are read. A patch
// whose base is not there breaks the stream, and the next one brings none. How
// to compress, a chooser decides frame by frame from what the link and the
// codecs were seen to do; on a fast link pages go as they are, straight from
// the frozen memory to the stream. A framer builds frames, for demanded pages
// and pushed ones alike, and (*frame).unpack takes them apart. However a page
// came, its bytes must hash to its name.
//
// Where the kernel has userfaultfd the worker runs meanwhile and waits only
// for the pages it touches. Elsewhere the same Sink fills the memory before
// the worker resumes.
package pager
