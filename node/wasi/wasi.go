// Package wasi gives workers WASI preview1 with state that can be saved on one
// node and restored on another.
//
// A Host serves one guest. What the guest's WASI calls leave behind is in the
// Host, never in the operating system: a table of descriptors, a file system
// with its directories, links and files, the streams that are the guest's
// standard input, output and error, and a clock. State takes all of it between
// two calls, SetState puts it into another Host, and the guest cannot tell.
// No call reaches the node's own files.
//
//	guest   fd_read, path_open, poll_oneoff, ...     46 functions, functions.go
//	   │
//	   ├── descriptors   rights, flags, offsets           fd.go, rights.go
//	   │     ├── tree    directories, links, inodes       tree.go, lookup.go, path.go
//	   │     │     └── contents   pages and indexes       content.go
//	   │     │            └── store   blocks by hash      block.go
//	   │     └── Streams       messages in, bytes out     streams.go
//	   └── Clock, poll, random, arguments                 clock.go, poll.go, ...
//
// # Two kinds of worker
//
// An event worker has no streams: its standard input is at its end, what it
// writes becomes lines for Config.Output. A command worker, which has its own
// main, gets Streams and may get directories.
//
// # Calls that wait
//
// A guest that sleeps, or reads when there is no input, or writes when nobody
// takes the output, waits in Config.Wait, which ends also when a move wants the
// worker. The function then returns EINTR and has had no effect: no memory
// written, no byte consumed. Interrupted says so to whoever called the guest;
// Waits lists the functions this can happen to. A call that did not wait has
// happened, also while a move wants the worker: it must not be made again.
// The guest's code is rewritten to unwind at this point and, wherever it goes
// on, to make the same call with the same arguments again. A poll with a
// relative timeout then waits for what remained of it. Every other function
// happens in full or not at all, too, so that a call is never half done in a
// State.
//
// # Files that move like memory
//
// A file's pages are blocks named by their BLAKE3 hash (block.go, content.go).
// The State holds the tree and the names of indexes, 32 bytes for each 512 KiB
// of file. The blocks travel beside it: Stored lists what there is while the
// worker runs, Blocks what the State just taken needs, Block returns one, Put
// adds one that arrived. A Host that has the State but not yet a block fetches
// it when the guest needs it, through Config.Fetch; what does not hash to its
// name is refused. Of what a guest writes only the last pages are not named
// yet, so that little remains to be done when it is frozen.
//
// # Guest memory
//
// Guest memory is only ever read and written by Go code, never handed to a
// system call: while a worker's memory is still arriving, a system call that
// meets a missing page fails with EFAULT, where Go code waits for the page.
//
// No function traps, whatever its arguments; errors are preview1's numbers.
package wasi

import "fmt"

// Module is the name guests import WASI's functions from.
const Module = "wasi_snapshot_preview1"

// Limits.
const (
	// MaxLine is the longest line of output, in bytes; a longer one comes in
	// pieces.
	MaxLine = 8 << 10
	// MaxArgs bounds arguments and environment, each, in bytes with one more
	// for every string's end.
	MaxArgs = 256 << 10
	// MaxFiles is the most Limits.Files can be.
	MaxFiles = 64 << 10
	// MaxBytes is the most Limits.Bytes can be: their indexes' names are 2 MiB
	// of State.
	MaxBytes = 32 << 30
	// MaxFDs bounds the descriptors a guest has open.
	MaxFDs = 1024
	// maxVectors bounds the buffers of one read or write.
	maxVectors = 1024
	// maxSubscriptions bounds one poll.
	maxSubscriptions = 8192
)

// Config is what a Host gives its guest.
type Config struct {
	// Args and Env are the same for all of a worker's life: a guest may ask
	// for them at any time. Neither may contain a zero byte.
	Args, Env []string
	// Clock is the worker's monotonic clock; nil makes one that starts at 0.
	Clock *Clock

	// Output receives each line an event worker writes to standard output (1)
	// or error (2), without its end. The slice is only valid during the call.
	// nil drops them. It is not used if there are Streams.
	Output func(stream int, line []byte)

	// Streams are a command worker's standard input, output and error; nil for
	// an event worker.
	Streams *Streams
	// Dirs are the directories a new worker finds open, at descriptor 3 and
	// up. A Host that is to be restored needs none.
	Dirs []Dir
	// Limits bound what the guest may store.
	Limits Limits
	// Wait returns when the worker's clock reads until (math.MaxInt64: never),
	// when wake (which may be nil) can be received from, or, with true, when a
	// move wants the worker. It may return early. nil waits without ever being
	// interrupted.
	Wait func(until int64, wake <-chan struct{}) (interrupted bool)
	// Fetch returns a block that the guest needs and that has not arrived, of
	// at most PageSize bytes. It may wait; if a move wants the worker, it
	// returns ErrInterrupted. Any other error is EIO to the guest: a caller for
	// whom a lost block ends the worker ends it and does not return. nil fails.
	Fetch func(Hash) ([]byte, error)
}

// Limits bound a guest's file system. Zero means the default.
type Limits struct {
	// Files bounds files, directories and links together, at most MaxFiles.
	// The default is 16,384.
	Files int
	// Bytes bounds the sizes of all files added up, holes included, at most
	// MaxBytes. The default is 256 MiB.
	Bytes int64
}

func (l Limits) resolve() (limits, error) {
	if l.Files == 0 {
		l.Files = 16 << 10
	}
	if l.Bytes == 0 {
		l.Bytes = 256 << 20
	}
	if l.Files < 0 || l.Files > MaxFiles {
		return limits{}, fmt.Errorf("limit of %d files, want 1 to %d", l.Files, MaxFiles)
	}
	if l.Bytes < 0 || l.Bytes > MaxBytes {
		return limits{}, fmt.Errorf("limit of %d bytes of files, want 1 to %d", l.Bytes, int64(MaxBytes))
	}
	return limits{files: l.Files, bytes: l.Bytes}, nil
}

// A Host is WASI for one guest. The guest's calls, State, SetState, Blocks and
// Flush must not overlap; Stored, Block, Put, Missing and GiveUp may be called
// at any time.
type Host struct {
	args, env stringTable
	clock     *Clock
	wait      func(until int64, wake <-chan struct{}) bool
	output    func(stream int, line []byte)
	streams   *Streams
	store     *store
	tree      *tree

	fds []*descriptor // nil where none is open
	// lines holds the unfinished line of each output stream, without Streams.
	lines [3][]byte
	// waited is how long the guest has waited, in nanoseconds.
	waited int64
	// poll is the poll that was interrupted, until the guest's next call.
	poll *PollState
	// interrupted says that the last call was.
	interrupted bool
}

// New makes a Host for a new guest, reading all of its directories. It starts
// nothing.
func New(cfg Config) (*Host, error) {
	limits, err := cfg.Limits.resolve()
	if err != nil {
		return nil, err
	}
	h := &Host{clock: cfg.Clock, output: cfg.Output, streams: cfg.Streams, wait: cfg.Wait}
	if h.args, err = newStringTable(cfg.Args); err != nil {
		return nil, fmt.Errorf("arguments: %w", err)
	}
	if h.env, err = newStringTable(cfg.Env); err != nil {
		return nil, fmt.Errorf("environment: %w", err)
	}
	if h.clock == nil {
		h.clock = NewClock(0)
	}
	if h.output == nil {
		h.output = func(int, []byte) {}
	}
	if h.wait == nil {
		h.wait = h.sleep
	}
	// What is in use, its indexes, and as much again that is not swept yet.
	h.store = newStore(cfg.Fetch, 2*limits.bytes+64<<20)
	h.tree = newTree(h.store, limits)
	for i, rights := range streamRights {
		h.fds = append(h.fds, &descriptor{stream: uint8(i), base: rights})
	}
	for _, d := range cfg.Dirs {
		if err := h.preopen(d); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// Interrupted says whether the guest's last call was cut short by a move: it
// had no effect and is to be made again.
func (h *Host) Interrupted() bool { return h.interrupted }

// Stored returns the names of up to most of the blocks that are here, from a
// place in their list on, and the place behind those. Some may no longer be
// needed. When such have been forgotten the list begins anew. Safe for
// concurrent use, so that blocks may be sent while the worker runs.
func (h *Host) Stored(at Cursor, most int) ([]Hash, Cursor) { return h.store.since(at, most) }

// Block returns a block, or false if it is not here, or no longer. It must not
// be changed. Safe for concurrent use.
func (h *Host) Block(name Hash) ([]byte, bool) { return h.store.peek(name) }

// Put adds a block that arrived and returns its name. The error says why no
// worker has such a block. Safe for concurrent use.
func (h *Host) Put(data []byte) (Hash, error) { return h.store.put(data) }

// Blocks returns the names of all blocks that a State just taken needs: indexes
// before their pages, each once.
func (h *Host) Blocks() []Hash {
	var all []Hash
	seen := map[Hash]struct{}{}
	h.tree.each(func(b Hash) {
		if _, again := seen[b]; !again {
			seen[b] = struct{}{}
			all = append(all, b)
		}
	})
	return all
}

// Missing returns the names of up to most of the blocks that the State last set
// needs and that have not arrived, the one that the guest waits for first, and
// how many there are. Which pages an index names is known when it has arrived.
// Safe for concurrent use.
func (h *Host) Missing(most int) ([]Hash, int) { return h.store.wanted(most) }

// Expects says whether a block is one of those missing. Safe for concurrent use.
func (h *Host) Expects(name Hash) bool { return h.store.expects(name) }

// GiveUp says that blocks will not come: they are missing no more. It is for
// Config.Fetch to fail then. Safe for concurrent use.
func (h *Host) GiveUp(names []Hash) { h.store.giveUp(names) }

// Flush hands on output that did not end in a line end yet, each stream's as a
// line of its own.
func (h *Host) Flush() {
	for stream := 1; stream <= 2; stream++ {
		if len(h.lines[stream]) > 0 {
			h.output(stream, h.lines[stream])
			h.lines[stream] = h.lines[stream][:0]
		}
	}
}
