package runner

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"
)

// commandGrace is how long what a command has started may hold its output open
// after the command has ended.
const commandGrace = 100 * time.Millisecond

// RunCommand runs a command of the host, without a shell and with this process's
// rights, and returns what it writes to its standard output. One that writes more
// than limit bytes, or is not done when ctx is, is killed. It is no runner, but
// here all processes are started.
func RunCommand(ctx context.Context, command []string, limit int) ([]byte, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.WaitDelay = commandGrace
	out := limitedBuffer{limit: limit, full: cancel}
	cmd.Stdout = &out
	err := cmd.Run()
	switch {
	case out.over:
		return nil, fmt.Errorf("%s wrote more than the %d bytes that it may", command[0], limit)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", command[0], err)
	}
	return out.b, nil
}

// A limitedBuffer takes up to limit bytes; it refuses what comes then, and calls
// full.
type limitedBuffer struct {
	b     []byte // no bytes.Buffer, whose ReadFrom knows no limit
	limit int
	full  func()
	over  bool
}

var errOverLimit = errors.New("more output than there may be")

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if b.over = b.over || len(b.b)+len(p) > b.limit; b.over {
		b.full()
		return 0, errOverLimit
	}
	b.b = append(b.b, p...)
	return len(p), nil
}
