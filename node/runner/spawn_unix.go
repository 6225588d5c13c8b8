//go:build unix

package runner

import (
	"runtime"
	"sync"
)

// theSpawner is the process's one thread that forks runners.
var theSpawner spawner

// A spawner runs functions on one operating system thread that lives from the
// first acquire to the last release. PR_SET_PDEATHSIG fires when the thread
// that forked ends, and Go ends threads when it likes; this one it keeps, for as
// long as any child forked by it is alive.
type spawner struct {
	mu    sync.Mutex
	users int
	work  chan func()
	ended chan struct{}
}

// acquire keeps the thread alive until release.
func (s *spawner) acquire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users++
	if s.users > 1 {
		return
	}
	s.work = make(chan func())
	s.ended = make(chan struct{})
	go func(work <-chan func(), ended chan<- struct{}) {
		defer close(ended)
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}(s.work, s.ended)
}

// do runs f on the thread and waits for it. The caller has acquired.
func (s *spawner) do(f func()) {
	s.mu.Lock()
	work := s.work
	s.mu.Unlock()
	done := make(chan struct{})
	work <- func() {
		defer close(done)
		f()
	}
	<-done
}

// release lets the thread end if nobody else holds it, and waits for it.
func (s *spawner) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users--
	if s.users > 0 {
		return
	}
	close(s.work)
	<-s.ended
}
