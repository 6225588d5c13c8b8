package node

import "sync"

// tasks are goroutines that their owner waits for. Unlike those of a
// [sync.WaitGroup] they may be started while somebody waits: a peer may ask for
// something as the node stops. The zero value has none; safe for concurrent use.
type tasks struct {
	mu      sync.Mutex
	running int
	none    chan struct{} // closed when none runs any more; nil while nobody waits
}

// Go runs f in a goroutine of its own.
func (t *tasks) Go(f func()) {
	t.mu.Lock()
	t.running++
	t.mu.Unlock()
	go func() {
		defer t.done()
		f()
	}()
}

func (t *tasks) done() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.running--
	if t.running == 0 && t.none != nil {
		close(t.none)
		t.none = nil
	}
}

// Wait returns when at one moment none ran.
func (t *tasks) Wait() {
	t.mu.Lock()
	if t.running == 0 {
		t.mu.Unlock()
		return
	}
	if t.none == nil {
		t.none = make(chan struct{})
	}
	none := t.none
	t.mu.Unlock()
	<-none
}
