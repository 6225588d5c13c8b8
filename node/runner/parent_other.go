//go:build !unix

package runner

import (
	"context"
	"fmt"
	"os"
	"time"

	"meshnode/node/wasi"
)

// A Runner is one worker's process. There is none on this operating system.
type Runner struct{ done chan struct{} }

// Start returns ErrUnsupported.
func Start(context.Context, Config) (*Runner, error) {
	return nil, fmt.Errorf("start runner: %w", ErrUnsupported)
}

// Main is the child's entry; there is none here.
func Main() int {
	fmt.Fprintln(os.Stderr, ErrUnsupported)
	return 2
}

// CompilerSupported says whether wazero compiles here; without runners it does
// not matter.
func CompilerSupported() bool { return false }

// The methods of a Runner that Start never returned.
func (r *Runner) Init(context.Context) error                   { return ErrUnsupported }
func (r *Runner) Clear(context.Context) error                  { return ErrUnsupported }
func (r *Runner) Forget(context.Context, uint64, uint64) error { return ErrUnsupported }
func (r *Runner) Restore(context.Context, State) error         { return ErrUnsupported }
func (r *Runner) SetReader(Reader)                             {}
func (r *Runner) Call(context.Context, Event) (Effects, error) { return Effects{}, ErrUnsupported }
func (r *Runner) Command() bool                                { return false }
func (r *Runner) Bell() <-chan struct{}                        { return nil }
func (r *Runner) Run(context.Context) error                    { return ErrUnsupported }
func (r *Runner) Halt(context.Context) error                   { return ErrUnsupported }
func (r *Runner) Push(context.Context, []byte) error           { return ErrUnsupported }
func (r *Runner) EndInput(context.Context) error               { return ErrUnsupported }
func (r *Runner) Take(context.Context, uint64) (Taken, error)  { return Taken{}, ErrUnsupported }
func (r *Runner) State(context.Context) (State, error)         { return State{}, ErrUnsupported }
func (r *Runner) Region() Region                               { return Region{UFFD: -1} }
func (r *Runner) Compiled() bool                               { return false }
func (r *Runner) Pages() uint32                                { return 0 }
func (r *Runner) Features() uint64                             { return 0 }
func (r *Runner) Sandboxed() bool                              { return false }
func (r *Runner) HasFiles() bool                               { return false }
func (r *Runner) Stored(_ context.Context, at wasi.Cursor) ([]wasi.Hash, wasi.Cursor, error) {
	return nil, at, ErrUnsupported
}
func (r *Runner) Blocks(context.Context, []wasi.Hash) ([][]byte, error) { return nil, ErrUnsupported }
func (r *Runner) PutBlocks(context.Context, [][]byte) error             { return ErrUnsupported }
func (r *Runner) Missing(context.Context) ([]wasi.Hash, int, error)     { return nil, 0, ErrUnsupported }
func (r *Runner) GiveUp(context.Context, []wasi.Hash) error             { return ErrUnsupported }
func (r *Runner) Look(context.Context, string, string) (Looked, error) {
	return Looked{}, ErrUnsupported
}
func (r *Runner) ReadFile(context.Context, string, int64) (Looked, error) {
	return Looked{}, ErrUnsupported
}
func (r *Runner) SetCPU(float64)        {}
func (r *Runner) Held() time.Duration   { return 0 }
func (r *Runner) Kill()                 {}
func (r *Runner) Done() <-chan struct{} { return r.done }
func (r *Runner) Err() error            { return ErrUnsupported }
func (r *Runner) Close() error          { return nil }
