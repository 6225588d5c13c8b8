// Package runner runs one worker's WebAssembly in a process of its own.
//
// The node is the parent: it makes the worker's linear memory (a shared
// mapping of a fixed size), starts the same binary again with [ChildArg] as
// its first argument, and talks to it over a socket pair, one request at a
// time. The child compiles the module, locks itself down and calls the
// worker's handler once for each event. Nothing the handler does leaves the
// child before it returns: an event's reply, messages and timers come back
// together in [Effects], and an event that traps has none.
//
// That is an event worker. A command worker has a main of its own: the child
// makes it able to stop anywhere (package suspend) and runs it from [Runner.Run]
// to [Runner.Halt] in a goroutine, while requests are answered as ever. What it
// reads and writes is kept in the child, and in its State ([wasi.Streams]): the
// node pushes input and takes output, and the child rings a bell, a byte in a
// pipe, when there is something new to take.
//
// A worker that traps, exits, loops for ever or breaks its process takes
// nothing else along: the node sees an [*ExitError] that says what happened.
package runner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"meshnode/node/wasi"
	"meshnode/pager"
)

// ChildArg is the first command line argument that makes a process a runner:
// main calls [Main] first thing when os.Args[1] is ChildArg.
const ChildArg = "__runner"

// Limits of one event. What a worker asks beyond them is refused to the worker
// with a result code; nothing is dropped silently.
const (
	// MaxPayload is the largest payload of an event, a reply or a message, in
	// bytes.
	MaxPayload = 1 << 20
	// MaxSends is the number of messages one event may send.
	MaxSends = 64
	// MaxSendBytes bounds the payloads of all messages of one event together.
	MaxSendBytes = 8 << 20
	// MaxTimers is the number of timers a worker may have armed.
	MaxTimers = 1024
	// MaxTimerOps bounds the timer changes of one event; a later change of a
	// timer replaces the earlier one and counts once.
	MaxTimerOps = 2 * MaxTimers
	// MaxName is the longest name of a message's receiver, in bytes.
	MaxName = 63
	// MaxReading is the largest reading of an interface of the host, in bytes.
	MaxReading = 64 << 10
	// MaxLogLine is the longest line of a worker's log, in bytes; longer ones
	// are cut and marked.
	MaxLogLine = 8 << 10
)

// WasmPage is the unit in which linear memory grows, in bytes.
const WasmPage = 64 << 10

// MaxMemory is the largest memory limit, in bytes: one page short of all that
// 32-bit addresses reach, so that sizes in bytes fit 32 bits too.
const MaxMemory = 1<<32 - WasmPage

var (
	// ErrEventTimeout means that an event ran longer than its caller allowed.
	// The worker was stopped, since WebAssembly cannot be interrupted half way
	// without losing the event.
	ErrEventTimeout = errors.New("the event ran longer than allowed")
	// ErrCancelled means that the caller gave up on an event that was running.
	// The worker was stopped.
	ErrCancelled = errors.New("the event's caller gave up")
	// ErrUnsupported means that runners do not work on this operating system
	// yet.
	ErrUnsupported = errors.New("runner not supported on this operating system yet")
	// ErrPayloadTooLarge means that an event's payload is over MaxPayload.
	ErrPayloadTooLarge = fmt.Errorf("payload larger than %d bytes", MaxPayload)
	// ErrInputFull means that a command has too much input that it has not read;
	// [Runner.Bell] rings when there is room.
	ErrInputFull = errors.New("the program has too much input that it has not read")
	// ErrInputEnded means that a command's input has ended.
	ErrInputEnded = errors.New("the program's input has ended")
	// ErrUndeclared refuses a read of an interface of the host that the worker
	// has not been given.
	ErrUndeclared = errors.New("the worker has not been given this interface")
	// ErrClosed means that Close was called.
	ErrClosed = errors.New("runner closed")
)

// Config says what to run and how.
type Config struct {
	// Exe is the path of the binary to run as the child; the current one if
	// empty. Its main must call Main when os.Args[1] is ChildArg.
	Exe string
	// ModulePath is the module as its author published it; the child checks it
	// and rewrites it (package suspend) itself, so that its bytes are parsed in
	// the child too.
	ModulePath string
	// CacheDir keeps compiled code between runs. It is made if it is missing;
	// empty means no cache.
	CacheDir string
	// MemoryLimit is the most linear memory the worker may have, in bytes; it
	// is rounded down to WasmPage, and this much address space (not memory) is
	// reserved. 0 means 256 MiB.
	MemoryLimit uint64
	// Args and Env are what the worker sees as its command line and
	// environment. Args[0] is its name.
	Args, Env []string
	// Kind is what to run the module as.
	Kind Kind
	// FilesLimit bounds the sizes of all of a command's files, added up, in
	// bytes, at most wasi.MaxBytes; 0 means that it can have none.
	FilesLimit int64
	// Dirs are the directories that a new command finds open, and FilesPath is a
	// zip archive of what is in them, read by Start and no longer: below 0/ that
	// of the first, and so on. A command that is to be restored has them in its
	// State.
	Dirs      []Dir
	FilesPath string
	// Interpreter runs the worker without compiling it. Where the compiler is
	// not supported, it is not used in any case.
	Interpreter bool
	// Background has the child give way to all other processes.
	Background bool
	// OnLog receives the worker's log lines as they are written; nil drops
	// them. It is called from the goroutine that waits for the worker, never
	// twice at once, and holds the worker up while it runs.
	OnLog func(Log)
	// Logger is for what the runner itself has to say; nil means none.
	Logger *slog.Logger
}

// A Kind says how a worker runs.
type Kind uint8

const (
	// ByExports is an event worker if the module exports a handler, else a
	// command.
	ByExports Kind = iota
	// EventWorker handles one event at a time, by [Runner.Call].
	EventWorker
	// CommandWorker runs its own main, from [Runner.Run] to [Runner.Halt].
	CommandWorker
)

// A Log is one line a worker wrote.
type Log struct {
	Level slog.Level
	// Source is "guest" (the host interface's log), "stdout" or "stderr" (the
	// worker's own, through WASI), or "runner" (the child process's standard
	// error, where a Go crash of the child shows).
	Source string
	// Text has no line end, is at most MaxLogLine bytes and is valid UTF-8.
	Text string
}

// A Reader reads an interface of the host for a worker whose event is running
// and waits for it; ctx is the event's, and a Reader sets itself a limit of its
// own. The worker is told [ErrUndeclared], that the reading is over MaxReading,
// or for any other error that there is no reading now.
type Reader func(ctx context.Context, name string) ([]byte, error)

// Kinds of event.
const (
	Call  = 0 // a message whose sender waits for the reply
	Send  = 1 // a message
	Timer = 2 // a timer that fired
)

// An Event is what a worker's handler is called with.
type Event struct {
	Kind uint8 `cbor:"1,keyasint"`
	// ID is the message's number or the timer's id.
	ID uint64 `cbor:"2,keyasint"`
	// Payload is at most MaxPayload bytes.
	Payload []byte `cbor:"3,keyasint,omitempty"`
	// NoSends has the handler's sends refused, as too many: what the worker
	// sent before does not arrive.
	NoSends bool `cbor:"4,keyasint,omitempty"`
}

// Effects are what an event asks of the world, handed over when its handler
// has returned.
type Effects struct {
	// Status is what the handler returned: 0, or an error code of the app's own
	// that the caller is told.
	Status int32 `cbor:"1,keyasint,omitempty"`
	// Reply answers a call. Replied tells an empty reply from none.
	Reply   []byte `cbor:"2,keyasint,omitempty"`
	Replied bool   `cbor:"3,keyasint,omitempty"`
	// Sends are in the order they were sent.
	Sends []Message `cbor:"4,keyasint,omitempty"`
	// Timers holds at most one change for each timer id, ordered by id.
	Timers []TimerOp `cbor:"5,keyasint,omitempty"`
	// Duration is how long the handler ran, measured in the child, without its
	// waits for interfaces of the host.
	Duration time.Duration `cbor:"6,keyasint,omitempty"`
	// Pages is the size of linear memory afterwards, in WasmPage.
	Pages uint32 `cbor:"7,keyasint,omitempty"`
}

// A Message is a one-way message to a worker by name.
type Message struct {
	To      string `cbor:"1,keyasint"`
	Payload []byte `cbor:"2,keyasint,omitempty"`
}

// A TimerOp arms timer ID, to fire once after After and then, if Every is not
// zero, again each Every; or cancels it.
type TimerOp struct {
	ID     uint64        `cbor:"1,keyasint"`
	After  time.Duration `cbor:"2,keyasint,omitempty"`
	Every  time.Duration `cbor:"3,keyasint,omitempty"`
	Cancel bool          `cbor:"4,keyasint,omitempty"`
}

// A State is everything a worker is besides its linear memory's content: what
// [Runner.Restore] needs to continue it elsewhere. It is taken between events.
type State struct {
	// Pages is the size of linear memory in WasmPage.
	Pages uint32 `cbor:"1,keyasint"`
	// Globals are all mutable globals, ordered by index.
	Globals []Global   `cbor:"2,keyasint"`
	WASI    wasi.State `cbor:"3,keyasint"`
	// Clock is the reading of the worker's monotonic clock, in nanoseconds. It
	// goes on from here after Restore, so that time the worker spent nowhere
	// does not count and the clock never runs backwards.
	Clock int64 `cbor:"4,keyasint"`
	// Armed are the timers the worker has armed, ordered by id. The timers
	// themselves live in the node; the runner only counts them.
	Armed []ArmedTimer `cbor:"5,keyasint,omitempty"`
	// Program is a command's frames, globals, tables and dropped segments: a
	// suspend.State, encoded. So it is, without frames, for an event worker that
	// has other state than numbers in globals. Its Globals above are empty.
	Program []byte `cbor:"6,keyasint,omitempty"`
}

// An Output is a piece of what a command wrote to one stream.
type Output struct {
	// Stream is 1 for standard output, 2 for standard error.
	Stream int    `cbor:"1,keyasint"`
	Data   []byte `cbor:"2,keyasint"`
}

// Taken is a command's output as far as it has come.
type Taken struct {
	// Output begins at the acknowledged offset, in the order it was written.
	Output []Output
	// Unread is how many messages the command has yet to read, in whole or in
	// part.
	Unread int
	// Pages is the size of linear memory, in WasmPage.
	Pages uint32
	// Ended says how the command ended, behind the last of its output; nil while
	// it has not.
	Ended *ExitError
}

// A Global is the value of one mutable global.
type Global struct {
	// Index is the global's index in the module.
	Index uint32 `cbor:"1,keyasint"`
	// Type is the value type's byte: 0x7f i32, 0x7e i64, 0x7d f32, 0x7c f64.
	Type byte `cbor:"2,keyasint"`
	// Value is the value's bits, zero-extended.
	Value uint64 `cbor:"3,keyasint"`
}

// An ArmedTimer is a timer a worker has set and not cancelled.
type ArmedTimer struct {
	ID uint64 `cbor:"1,keyasint"`
	// Periodic timers stay armed when they fire.
	Periodic bool `cbor:"2,keyasint,omitempty"`
}

// A Region is a worker's linear memory as the node sees it. Data maps the whole
// reservation; bytes beyond the size the worker has grown to are zero and out of
// its reach. No range is registered with UFFD yet.
type Region = pager.Region

// An ExitKind says how a worker ended.
type ExitKind string

const (
	// Trapped: the WebAssembly did something it must not; Reason says what and
	// where.
	Trapped ExitKind = "trapped"
	// Exited: the worker called proc_exit.
	Exited ExitKind = "exited"
	// Killed: the node ended it, by Kill or because an event took too long.
	Killed ExitKind = "killed"
	// MemoryLimit: it failed right after it was refused memory over its limit,
	// or the memory it starts with is over the limit.
	MemoryLimit ExitKind = "memory-limit"
	// Crashed: its process ended by itself, or broke the protocol.
	Crashed ExitKind = "crashed"
)

// An ExitError says why a worker runs no more. It unwraps to Err.
type ExitError struct {
	Kind ExitKind
	// Reason is for people: the trap's text, the exit code, the signal.
	Reason string
	// Code is proc_exit's argument if Kind is Exited.
	Code uint32
	// Stack is the WebAssembly call stack at the trap, innermost first.
	Stack string
	// Stderr holds the first and the last lines that the worker wrote to its
	// standard error in the event that ended it, or if its process crashed,
	// what that wrote.
	Stderr []string
	// Err is ErrEventTimeout, ErrCancelled or nil.
	Err error
}

func (e *ExitError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "worker %s: %s", e.Kind, e.Reason)
	if e.Kind != Killed && len(e.Stderr) > 0 {
		fmt.Fprintf(&b, " (%s)", e.Stderr[0])
	}
	return b.String()
}

func (e *ExitError) Unwrap() error { return e.Err }
