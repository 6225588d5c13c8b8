//go:build !linux

package pager

import (
	"errors"
	"testing"
)

func mountTmpfs(string, int) error { return errors.ErrUnsupported }

func unmount(*testing.T, string) {}
