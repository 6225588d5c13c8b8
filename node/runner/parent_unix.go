//go:build unix

package runner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A Runner is one worker's process, seen from the node. Its methods are safe
// for concurrent use; requests to the worker wait for each other.
type Runner struct {
	onLog func(Log)
	read  Reader // nil has nothing to read
	log   *slog.Logger
	limit uint64

	cmd    *exec.Cmd
	memory *memory
	region Region
	info   ready
	stderr *tail // of the process

	// turn holds a token: who sends to it may use link, one request at a time.
	turn chan struct{}
	link *link
	// said is what the worker wrote to its own standard error in this request.
	said tail

	// chime is the bell's other end; bell has a token after it rang.
	chime *os.File
	bell  chan struct{}
	files bool // it may have files

	done chan struct{} // closed when the process is gone and exit is set

	share share

	mu sync.Mutex
	// cause is why the runner was made to stop, if it was; the first one wins.
	cause *ExitError
	// exit is why the runner stopped, once done is closed.
	exit   *ExitError
	closed bool
}

// Start runs a worker's process up to the point where nothing has been called
// yet: compiled, instantiated, active data segments in memory. Then follows
// either Init, or Clear and Restore.
//
// ctx bounds the start alone. The error is a *suspend.RefusedError if the
// module cannot be a worker, an *ExitError if the process failed, else an error
// that says what was tried. The caller ends the runner with Close.
func Start(ctx context.Context, cfg Config) (*Runner, error) {
	r, err := start(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("start runner: %w", err)
	}
	return r, nil
}

// prompt is done by the first Start, for this process and those it starts.
var prompt sync.Once

func start(ctx context.Context, cfg Config) (_ *Runner, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	prompt.Do(beginPrompt)
	if cfg.MemoryLimit == 0 {
		cfg.MemoryLimit = DefaultMemoryLimit
	}
	cfg.MemoryLimit -= cfg.MemoryLimit % WasmPage
	if err := checkLimit(cfg.MemoryLimit); err != nil {
		return nil, err
	}
	if cfg.Exe == "" {
		if cfg.Exe, err = ownBinary(); err != nil {
			return nil, fmt.Errorf("find own binary: %w", err)
		}
	}
	if cfg.OnLog == nil {
		cfg.OnLog = func(Log) {}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	// The child's working directory is not ours to rely on.
	if cfg.ModulePath, err = filepath.Abs(cfg.ModulePath); err != nil {
		return nil, err
	}
	if cfg.FilesPath != "" {
		if cfg.FilesPath, err = filepath.Abs(cfg.FilesPath); err != nil {
			return nil, err
		}
	}
	if cfg.CacheDir != "" {
		if cfg.CacheDir, err = filepath.Abs(cfg.CacheDir); err != nil {
			return nil, err
		}
		if err := os.MkdirAll(cfg.CacheDir, 0o700); err != nil {
			return nil, fmt.Errorf("make compilation cache: %w", err)
		}
	}

	mem, err := newMemory(cfg.MemoryLimit)
	if err != nil {
		return nil, err
	}
	r := &Runner{
		onLog:  cfg.OnLog,
		log:    cfg.Logger,
		limit:  cfg.MemoryLimit,
		files:  cfg.FilesLimit > 0,
		memory: mem,
		stderr: new(tail),
		turn:   make(chan struct{}, 1),
		bell:   make(chan struct{}, 1),
		done:   make(chan struct{}),
	}
	r.region = Region{Data: mem.data, UFFD: -1, File: mem.file}
	if err := r.spawn(cfg.Exe); err != nil {
		mem.close()
		return nil, err
	}
	if cfg.Background {
		if err := background(r.region.PID); err != nil {
			r.log.Debug("a child takes as much of the machine as others", "error", err)
		}
	}
	if err := r.setUp(ctx, cfg); err != nil {
		r.Close()
		if ctx.Err() != nil {
			return nil, ctx.Err() // and not an event that took too long
		}
		return nil, err
	}
	return r, nil
}

// parentKeep and childKeep are the largest message buffers kept between
// messages, in bytes. A node has many runners, and one large message to each
// must not cost it a megabyte each for good; a child that has had one large
// message is likely to have another, and making large buffers anew each time
// costs more than the event.
const (
	parentKeep = 64 << 10
	childKeep  = 4 << 20
)

// spawn starts the child process.
func (r *Runner) spawn(exe string) error {
	ours, theirs, err := socketPair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	chime, theirBell, err := os.Pipe()
	if err != nil {
		unix.Close(ours)
		return fmt.Errorf("make a pipe: %w", err)
	}
	defer theirBell.Close()
	cmd := &exec.Cmd{Path: exe, Args: []string{"meshnode", ChildArg}}
	cmd.Env = childEnv()
	cmd.Dir = "/"
	cmd.Stderr = r.stderr
	cmd.ExtraFiles = []*os.File{theirs, r.memory.file, theirBell}
	cmd.SysProcAttr = childAttr()

	// The kernel ends the child when the thread that forked it ends, so all
	// children are forked by one thread that outlives them.
	theSpawner.acquire()
	theSpawner.do(func() { err = cmd.Start() })
	if err != nil {
		theSpawner.release()
		unix.Close(ours)
		chime.Close()
		return fmt.Errorf("run %s: %w", exe, err)
	}
	r.cmd = cmd
	r.link = newLink(ours, parentKeep)
	r.chime = chime
	r.region.PID = cmd.Process.Pid
	r.share.p, r.share.done = cmd.Process, r.done
	go r.wait()
	return nil
}

// wait ends when the process has, and publishes why.
func (r *Runner) wait() {
	err := r.cmd.Wait()
	theSpawner.release()
	r.mu.Lock()
	exit := r.cause
	if exit == nil {
		reason := "process ended by itself"
		var status *exec.ExitError
		if errors.As(err, &status) {
			reason = status.Error()
		} else if err != nil {
			reason = err.Error()
		}
		exit = &ExitError{Kind: Crashed, Reason: reason}
	}
	if exit.Stderr == nil {
		exit.Stderr = r.stderr.lines()
	}
	r.exit = exit
	r.mu.Unlock()
	r.log.Debug("runner ended", "pid", r.region.PID, "kind", exit.Kind, "reason", exit.Reason)
	close(r.done)
}

// stop ends the process for the given reason. The first reason counts; nil
// leaves it to the process to say.
func (r *Runner) stop(why *ExitError) {
	r.mu.Lock()
	if r.cause == nil && r.exit == nil {
		r.cause = why
	}
	r.mu.Unlock()
	// An error means that it has ended already.
	_ = r.cmd.Process.Kill()
}

// setUp has the child compile and instantiate the module.
func (r *Runner) setUp(ctx context.Context, cfg Config) error {
	r.link.takeFDs = true
	var info ready
	err := r.request(ctx, msgSetup, &setup{
		ModulePath:  cfg.ModulePath,
		CacheDir:    cfg.CacheDir,
		MemoryLimit: cfg.MemoryLimit,
		Args:        cfg.Args,
		Env:         cfg.Env,
		Interpreter: cfg.Interpreter,
		Kind:        cfg.Kind,
		Dirs:        cfg.Dirs,
		FilesPath:   cfg.FilesPath,
		FilesLimit:  cfg.FilesLimit,
	}, msgReady, &info)
	// The process may be gone, but nobody else uses the link before Start
	// returns.
	r.link.takeFDs = false
	fds := r.link.fds
	if err != nil {
		r.link.closeFDs()
		return err
	}
	want := 0
	if info.UFFD {
		want = 1
	}
	if len(fds) != want {
		r.link.closeFDs()
		err := &ExitError{Kind: Crashed, Reason: fmt.Sprintf("runner sent %d descriptors, want %d", len(fds), want)}
		r.stop(err)
		return err
	}
	r.link.fds = nil
	if info.UFFD {
		r.region.UFFD = fds[0]
	}
	r.region.Base = info.Base
	r.info = info
	if info.Command {
		go r.listen()
	}
	r.log.Debug("runner started", "pid", r.region.PID, "compiler", info.Compiler, "userfaultfd", info.UFFD,
		"userfaultfd_error", info.UFFDError, "sandbox", info.Sandbox, "sandbox_error", info.SandboxError)
	return nil
}

// request sends one request and waits for its answer, which must be of type
// want and is decoded into answer if that is not nil.
//
// If ctx ends while the child works on it, the child is killed: it cannot be
// interrupted otherwise, and what it has done half way cannot be kept.
func (r *Runner) request(ctx context.Context, typ byte, body any, want byte, answer any) error {
	select {
	case r.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	case <-r.done:
		return r.Err()
	}
	defer func() { <-r.turn }()
	// Both may have been ready; a request that cannot be answered must not be
	// taken for a failure of the worker.
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := r.ended(); err != nil {
		return err
	}

	if typ != msgEvent {
		defer r.share.hurry()()
	}
	leave := context.AfterFunc(ctx, func() { r.stop(contextExit(ctx)) })
	err := r.exchange(ctx, typ, body, want, answer)
	if !leave() {
		// Too late, however close: the child is being killed, so that the
		// answer must not count.
		<-r.done
		return r.Err()
	}
	return err
}

func contextExit(ctx context.Context) *ExitError {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return &ExitError{Kind: Killed, Reason: ErrEventTimeout.Error(), Err: ErrEventTimeout}
	}
	return &ExitError{Kind: Killed, Reason: ErrCancelled.Error(), Err: ErrCancelled}
}

// ended returns why the worker runs no more, or nil.
func (r *Runner) ended() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.exit != nil:
		return r.exit
	case r.closed:
		return ErrClosed
	}
	return nil
}

// exchange is request without its care for ctx. The caller holds the turn.
func (r *Runner) exchange(ctx context.Context, typ byte, body any, want byte, answer any) error {
	r.said.reset()
	if err := r.link.write(typ, body); err != nil {
		return r.broken(nil)
	}
	for {
		got, b, err := r.link.read(maxAnswer)
		if err != nil {
			if errors.Is(err, errFrame) {
				return r.broken(err)
			}
			return r.broken(nil)
		}
		switch got {
		case msgLog:
			var line logLine
			if err := decode(b, &line); err != nil {
				return r.broken(err)
			}
			l := line.log()
			if l.Source == "stderr" {
				r.said.line(l.Text)
			}
			r.onLog(l)
		case msgRead:
			var ask readAsk
			if err := decode(b, &ask); err != nil || typ != msgEvent {
				return r.broken(errors.Join(err, fmt.Errorf("%w: a read in answer to %#x", errFrame, typ)))
			}
			if err := r.link.write(msgReading, r.reading(ctx, ask.Name)); err != nil {
				return r.broken(nil)
			}
		case msgFailed:
			var f failed
			if err := decode(b, &f); err != nil {
				return r.broken(err)
			}
			if f.Refused != nil {
				return f.Refused
			}
			if f.Kind != "" {
				e := &ExitError{Kind: f.Kind, Reason: clip(f.Reason, maxReason)}
				r.stop(e)
				<-r.done
				return r.Err()
			}
			return errors.New(clip(f.Reason, maxReason))
		case msgStopped:
			var s stopped
			if err := decode(b, &s); err != nil {
				return r.broken(err)
			}
			// The worker's memory may be half way through an event: it never
			// runs again.
			r.stop(&ExitError{Kind: s.Kind, Reason: clip(s.Reason, maxReason), Code: s.Code, Stack: clip(s.Stack, maxReason), Stderr: r.said.lines()})
			<-r.done
			return r.Err()
		case want:
			if answer == nil {
				return nil
			}
			if err := decode(b, answer); err != nil {
				return r.broken(err)
			}
			return nil
		default:
			return r.broken(fmt.Errorf("%w: type %#x in answer to %#x", errFrame, got, typ))
		}
	}
}

// SetReader gives the worker the host's interfaces to read. It must be called
// before the first event.
func (r *Runner) SetReader(read Reader) { r.read = read }

// reading reads an interface for the worker.
func (r *Runner) reading(ctx context.Context, name string) *reading {
	if r.read == nil {
		return &reading{Code: resUndeclared}
	}
	data, err := r.read(ctx, clip(name, MaxName))
	switch {
	case errors.Is(err, ErrUndeclared):
		return &reading{Code: resUndeclared}
	case err != nil:
		return &reading{Code: resNoReading}
	case len(data) > MaxReading:
		return &reading{Code: resTooLarge}
	}
	return &reading{Data: data}
}

// maxReason bounds what a worker can make the node keep as its last words, in
// bytes.
const maxReason = 8 << 10

// broken ends a child that broke the protocol, or if err is nil one whose
// socket is closed, which has ended or is about to.
func (r *Runner) broken(err error) error {
	if err != nil {
		r.stop(&ExitError{Kind: Crashed, Reason: err.Error()})
	} else {
		r.stop(nil)
	}
	<-r.done
	return r.Err()
}

// Init runs a new worker's own initialisation: its start function, then
// _initialize. It counts as an event as far as ctx and errors go.
func (r *Runner) Init(ctx context.Context) error {
	return r.request(ctx, msgInit, nil, msgOK, nil)
}

// Clear empties linear memory, in preparation for Restore: every page of the
// region reads as zero and none is resident in either process. It is an error
// after Init or Restore.
func (r *Runner) Clear(ctx context.Context) error {
	return r.request(ctx, msgClear, nil, msgOK, nil)
}

// Restore makes a cleared worker what State says, without touching linear
// memory, whose pages may arrive before, meanwhile and after. It is an error
// before Clear.
func (r *Runner) Restore(ctx context.Context, s State) error {
	return r.request(ctx, msgRestore, &s, msgOK, nil)
}

// Forget drops the page-table entries of part of linear memory, in bytes, so
// that the kernel's record of which pages the worker touches begins anew
// ([pager.Tracker.Touched]). Nothing of the content changes. It takes the runner
// some 50 ns for each page that was mapped. The error is ErrUnsupported where
// that would lose the content.
func (r *Runner) Forget(ctx context.Context, offset, length uint64) error {
	if !canForget {
		return ErrUnsupported
	}
	return r.request(ctx, msgForget, &stretch{offset, length}, msgOK, nil)
}

// Call has the worker handle one event. The effects are the worker's alone to
// wish and the node's to carry out.
//
// If ctx reaches its deadline first, the worker is killed and the error is an
// *ExitError that unwraps to ErrEventTimeout; if ctx is cancelled otherwise,
// likewise with ErrCancelled. A ctx that is done before the event begins has no
// effect and its error is returned as it is.
func (r *Runner) Call(ctx context.Context, e Event) (Effects, error) {
	if len(e.Payload) > MaxPayload {
		return Effects{}, ErrPayloadTooLarge
	}
	var out Effects
	if err := r.request(ctx, msgEvent, &e, msgEffects, &out); err != nil {
		return Effects{}, err
	}
	if err := out.check(); err != nil {
		return Effects{}, r.broken(err)
	}
	return out, nil
}

// State returns the worker's state between two events, or of a command that has
// been halted. Linear memory is still until the next request.
func (r *Runner) State(ctx context.Context) (State, error) {
	var s State
	if err := r.request(ctx, msgState, nil, msgStateIs, &s); err != nil {
		return State{}, err
	}
	if uint64(s.Pages)*WasmPage > r.limit {
		return State{}, r.broken(fmt.Errorf("%w: memory of %d pages is over its limit", errFrame, s.Pages))
	}
	return s, nil
}

// Region returns the worker's memory. It stays readable when the process has
// ended, until Close.
func (r *Runner) Region() Region { return r.region }

// Compiled is false if the worker is interpreted.
func (r *Runner) Compiled() bool { return r.info.Compiler }

// Pages is the size of linear memory that the worker started with, in WasmPage.
func (r *Runner) Pages() uint32 { return r.info.Pages }

// Features returns the userfaultfd features the kernel granted (UFFD_FEATURE_*),
// 0 if there is no userfaultfd.
func (r *Runner) Features() uint64 { return r.info.Features }

// Sandboxed is false where system calls of the child could not be restricted.
func (r *Runner) Sandboxed() bool { return r.info.Sandbox }

// SetCPU bounds the processor time that the worker takes from now on, in cores;
// from 1 on it may take all it can use. What is over waits: an event takes as
// much longer, while the other requests are answered at once. Only Linux can.
func (r *Runner) SetCPU(cores float64) { r.share.set(cores) }

// Held returns how long the worker has been held back for that.
func (r *Runner) Held() time.Duration { return r.share.total() }

// Kill ends the worker at once, in the middle of an event too. It does not wait;
// Done does.
func (r *Runner) Kill() {
	r.stop(&ExitError{Kind: Killed, Reason: "stopped by the node"})
}

// Done is closed when the worker's process has ended.
func (r *Runner) Done() <-chan struct{} { return r.done }

// Err returns why the worker ended, an *ExitError, and nil while it runs.
func (r *Runner) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.exit == nil {
		return nil
	}
	return r.exit
}

// Close kills the worker if it runs, waits for its process to end, and releases
// its memory: nobody may use the Region any more, nor its UFFD, which is
// closed. Calls after the first do nothing.
func (r *Runner) Close() error {
	r.mu.Lock()
	again := r.closed
	r.closed = true
	r.mu.Unlock()
	if again {
		<-r.done
		return nil
	}
	r.Kill()
	<-r.done
	// A request in flight may still be on its way out.
	r.turn <- struct{}{}
	defer func() { <-r.turn }()
	unix.Close(r.link.fd)
	r.chime.Close()
	// With the process dead nobody can fault on it any more, so that closing
	// the last copy hurts nobody.
	if r.region.UFFD >= 0 {
		unix.Close(r.region.UFFD)
	}
	return r.memory.close()
}

// log makes the line fit to be shown.
func (l *logLine) log() Log {
	return Log{
		Level:  slog.Level(max(-8, min(l.Level, 12))),
		Source: clip(l.Source, 16),
		Text:   clip(l.Text, MaxLogLine),
	}
}
