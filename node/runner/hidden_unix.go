//go:build unix

package runner

import (
	"context"
	"errors"
	"fmt"

	"github.com/tetratelabs/wazero/api"

	"meshnode/node/suspend"
	"meshnode/node/suspend/drive"
)

// A hidden is the state of an event worker that exports do not reach: tables
// that change, dropped segments, vectors and references in globals. Nil for the
// workers that have none of it, which are nearly all.
type hidden struct {
	rewritten *suspend.Program
	driver    *drive.Driver
}

func newHidden(p *suspend.Program) *hidden {
	return &hidden{rewritten: p, driver: drive.New(p, suspend.Flag)}
}

func (h *hidden) attach(mod api.Module) error { return h.driver.Attach(mod) }

// capture returns the state, encoded, between two events. All of the worker's
// globals are in it.
func (h *hidden) capture(ctx context.Context) ([]byte, error) {
	s, err := h.driver.Capture(ctx)
	if err != nil {
		return nil, err
	}
	return encodeProgram(s)
}

// parse decodes a captured state and checks that the worker can have it.
func (h *hidden) parse(b []byte) (*suspend.State, error) {
	s, err := decodeProgram(b)
	if err != nil {
		return nil, err
	}
	if s.Entry != "" || len(s.Frames) > 0 {
		return nil, errors.New("the state of a command, the module is an event worker")
	}
	return s, s.Check(h.rewritten)
}

func encodeProgram(s *suspend.State) ([]byte, error) {
	b, err := s.AppendBinary(nil)
	if err != nil {
		return nil, err
	}
	if len(b) > maxProgramState {
		return nil, fmt.Errorf("the program is %d calls deep, which with its tables takes %d bytes, at most %d: it can move when it has returned from some, or its tables are smaller",
			len(s.Frames), len(b), maxProgramState)
	}
	return b, nil
}

func decodeProgram(b []byte) (*suspend.State, error) {
	if len(b) == 0 || len(b) > maxProgramState {
		return nil, fmt.Errorf("program state of %d bytes, at most %d", len(b), maxProgramState)
	}
	return suspend.ParseState(b)
}
