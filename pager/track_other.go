//go:build !linux

package pager

type kernelTracker struct{}

func (t *Tracker) startKernel() error                { return ErrUnsupported }
func (t *Tracker) growKernel(int) error              { return ErrUnsupported }
func (t *Tracker) scanKernel(r []Run) ([]Run, error) { return r, ErrUnsupported }
func (t *Tracker) stopKernel() error                 { return nil }

func (t *Tracker) presentKernel(runs []Run) ([]Run, error) { return runs, ErrUnsupported }
