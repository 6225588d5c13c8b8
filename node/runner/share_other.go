//go:build !linux

package runner

import (
	"errors"
	"os"
	"time"
)

// cpuTime is only known on Linux; elsewhere nobody is held back.
func cpuTime(int) (time.Duration, error) { return 0, errors.ErrUnsupported }

func signalStop(*os.Process, bool) error { return errors.ErrUnsupported }
