package wasi

import (
	"math"
	"time"
)

// never is a deadline that does not come.
const never = math.MaxInt64

// Waits says whether a function may wait, for the world or for a block, and so
// be interrupted: a guest that is to move must be able to unwind where it calls
// one of these. All others return at once.
func Waits(name string) bool {
	switch name {
	case "fd_read", "fd_pread", "fd_write", "fd_pwrite", "fd_filestat_set_size", "poll_oneoff", "sched_yield":
		return true
	}
	return false
}

// sleep is Config.Wait for a worker that is never interrupted.
func (h *Host) sleep(until int64, wake <-chan struct{}) (interrupted bool) {
	if until == never {
		<-wake
		return false
	}
	d := until - h.clock.Now()
	if d <= 0 {
		return false
	}
	timer := time.NewTimer(time.Duration(d))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-wake:
	}
	return false
}

// pause waits, and counts the time as not spent computing. It returns success
// if the caller is to look again, errIntr if it must return that.
func (h *Host) pause(until int64, wake <-chan struct{}) errno {
	start := h.clock.Now()
	interrupted := h.wait(until, wake)
	h.waited += max(0, h.clock.Now()-start)
	if interrupted {
		return errIntr
	}
	return success
}

// schedYield lets a move have the worker.
func (h *Host) schedYield(memory, []uint64) errno {
	if h.streams == nil {
		return success
	}
	return h.pause(h.clock.Now(), nil)
}
