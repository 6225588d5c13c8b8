//go:build !linux

package pager

import "os"

// ZeroRuns finds nothing on this platform; pages of zeroes are found when
// they are read.
func ZeroRuns(file *os.File, size int64) ([]Run, error) { return nil, nil }

// ZeroRunsWithin finds no holes on this platform.
func ZeroRunsWithin(*os.File, []Run) ([]Run, error) { return nil, nil }

func punch(*os.File, Run) error { return ErrUnsupported }
