package runner

import (
	"os"
	"sync"
	"time"
)

// A share holds a process back that takes more processor time than it may: it
// is stopped (SIGSTOP) until what it had is no more than its part of the time
// that has passed, as a cgroup's cpu.max does where there is one to write to.
// Safe for concurrent use.
type share struct {
	p    *os.Process
	done <-chan struct{} // closed when the process has ended

	mu      sync.Mutex
	cores   float64 // at most 1: all that a worker, which is one thread, can take
	running bool    // keep runs
	urgent  int     // requests that are not to wait
	since   time.Time
	held    time.Duration // before since
	stopped bool          // since then
}

const (
	// A process that runs is looked at every shareLook, one that does not ever
	// less, down to shareIdle.
	shareLook = 20 * time.Millisecond
	shareIdle = 320 * time.Millisecond
	// shareBurst is how much time's part may be saved up, shareDebt how much
	// overdrawn.
	shareBurst = 100 * time.Millisecond
	shareDebt  = time.Second
)

// set bounds the process to a number of cores from now on.
func (s *share) set(cores float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cores = min(cores, 1)
	if s.cores < 1 && !s.running {
		s.running = true
		go s.keep()
	}
}

// keep holds the process to its share until it ends or may take all it wants.
func (s *share) keep() {
	pause := shareLook
	t := time.NewTimer(pause)
	defer t.Stop()
	at := time.Now()
	spent, err := cpuTime(s.p.Pid)
	budget := time.Duration(0)
	for {
		select {
		case <-t.C:
		case <-s.done:
			return
		}
		now := time.Now()
		var used time.Duration
		if err == nil {
			used, err = cpuTime(s.p.Pid)
		}
		s.mu.Lock()
		if err != nil || s.cores >= 1 {
			s.holdLocked(false, now)
			s.running = false
			s.mu.Unlock()
			return
		}
		part := func(d time.Duration) time.Duration { return time.Duration(s.cores * float64(d)) }
		budget += part(now.Sub(at)) - (used - spent)
		budget = max(min(budget, part(shareBurst)), -part(shareDebt))
		s.holdLocked(budget < 0 && s.urgent == 0, now)
		if used > spent || s.stopped {
			pause = shareLook
		} else {
			pause = min(2*pause, shareIdle)
		}
		s.mu.Unlock()
		at, spent = now, used
		t.Reset(pause)
	}
}

func (s *share) holdLocked(stop bool, now time.Time) {
	if stop == s.stopped {
		return
	}
	if err := signalStop(s.p, stop); err != nil {
		return // it has ended
	}
	if s.stopped = stop; stop {
		s.since = now
	} else {
		s.held += now.Sub(s.since)
	}
}

// hurry lets the process run until the function that it returns is called.
func (s *share) hurry() func() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.urgent++
	s.holdLocked(false, time.Now())
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.urgent--
	}
}

// total returns how long the process was held back in all.
func (s *share) total() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return s.held + time.Since(s.since)
	}
	return s.held
}
