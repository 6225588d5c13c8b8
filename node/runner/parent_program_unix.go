//go:build unix

package runner

import (
	"context"
	"fmt"

	"meshnode/node/wasi"
)

// Command tells a command worker from an event worker.
func (r *Runner) Command() bool { return r.info.Command }

// Bell has a token when [Runner.Take] may have something new: output, the end
// of the command, or room for input that was refused.
func (r *Runner) Bell() <-chan struct{} { return r.bell }

// listen passes the bell on until the process or the runner ends.
func (r *Runner) listen() {
	b := make([]byte, 64)
	for {
		if _, err := r.chime.Read(b); err != nil {
			return
		}
		select {
		case r.bell <- struct{}{}:
		default:
		}
	}
}

// Run starts a command, or continues it where it was halted or its state was
// taken. It does not wait for it. One that runs or has ended is left alone.
func (r *Runner) Run(ctx context.Context) error {
	return r.request(ctx, msgRun, nil, msgOK, nil)
}

// Halt stops a command wherever it is, also in a call that waits, and returns
// when it has stopped; then its State can be taken. One that is halted or has
// ended is left alone.
//
// A command that waits for a page of its memory stops when that has come. If ctx
// ends first the worker is killed, as with [Runner.Call].
func (r *Runner) Halt(ctx context.Context) error {
	return r.request(ctx, msgHalt, nil, msgOK, nil)
}

// Push appends a message to a command's standard input, whether it runs or not.
// The error is ErrInputFull, ErrInputEnded or ErrPayloadTooLarge, and nothing
// has happened then, or one that says why the worker is gone. An empty message
// does nothing.
func (r *Runner) Push(ctx context.Context, message []byte) error {
	if len(message) > wasi.MaxInput {
		return ErrPayloadTooLarge
	}
	return r.push(ctx, &input{Message: message})
}

// EndInput ends a command's standard input behind what was pushed.
func (r *Runner) EndInput(ctx context.Context) error {
	return r.push(ctx, &input{End: true})
}

func (r *Runner) push(ctx context.Context, in *input) error {
	var out pushed
	if err := r.request(ctx, msgPush, in, msgPushed, &out); err != nil {
		return err
	}
	switch {
	case out.Full:
		return ErrInputFull
	case out.Ended:
		return ErrInputEnded
	}
	return nil
}

// Take says that all of a command's output before the offset acked is in safe
// hands, and returns what follows. Offsets count the bytes of both streams from
// the command's beginning, across moves. What was acknowledged is not in State
// any more, what was not is.
func (r *Runner) Take(ctx context.Context, acked uint64) (Taken, error) {
	var t taken
	if err := r.request(ctx, msgTake, &ack{acked}, msgTaken, &t); err != nil {
		return Taken{}, err
	}
	if err := t.check(r.limit); err != nil {
		return Taken{}, r.broken(err)
	}
	out := Taken{Output: t.Output, Unread: t.Unread, Pages: t.Pages}
	if s := t.Ended; s != nil {
		out.Ended = &ExitError{Kind: s.Kind, Reason: clip(s.Reason, maxReason), Code: s.Code, Stack: clip(s.Stack, maxReason)}
	}
	return out, nil
}

// check says whether t is what an honest runner would send.
func (t *taken) check(limit uint64) error {
	size := 0
	for _, o := range t.Output {
		if o.Stream != 1 && o.Stream != 2 || len(o.Data) == 0 {
			return fmt.Errorf("%w: %d bytes of output on stream %d", errFrame, len(o.Data), o.Stream)
		}
		size += len(o.Data)
	}
	if size > maxTake || t.Unread < 0 {
		return fmt.Errorf("%w: %d bytes of output, %d messages unread", errFrame, size, t.Unread)
	}
	if uint64(t.Pages)*WasmPage > limit {
		return fmt.Errorf("%w: memory of %d pages is over its limit", errFrame, t.Pages)
	}
	return nil
}
