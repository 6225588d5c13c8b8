//go:build !linux

package node

import (
	"errors"

	"meshnode/pager"
)

// clearTouched fails: what a worker touches is not known here.
func clearTouched(pager.Region) error { return errors.ErrUnsupported }

// touchedBytes fails like clearTouched.
func touchedBytes(pager.Region, int64) (int64, error) { return 0, errors.ErrUnsupported }
