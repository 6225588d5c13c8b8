//go:build !linux

package pager

import (
	"context"
	"fmt"
)

// Arm fails with ErrUnsupported on this platform: the Sink fills the memory
// before the worker runs.
func (s *Sink) Arm() error {
	return fmt.Errorf("arm memory: no userfaultfd: %w", ErrUnsupported)
}

// The rest is never called: nothing is ever armed.

func (s *Sink) disarm() error                                       { return nil }
func (s *Sink) release(Run) error                                   { return nil }
func (s *Sink) wake(PageNum) error                                  { return ErrUnsupported }
func (s *Sink) install(PageNum, []byte) error                       { return ErrUnsupported }
func (s *Sink) installZeros(Run) error                              { return ErrUnsupported }
func (s *Sink) startFaults(context.CancelCauseFunc) (func(), error) { return nil, ErrUnsupported }
