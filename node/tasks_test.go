package node

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Whoever waits does until the last has ended, whoever started it, and those
// that nobody waited for when they were started are waited for the next time.
func TestTasks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ts tasks
		ts.Wait()
		start := time.Now()
		ts.Go(func() {
			time.Sleep(time.Second)
			ts.Go(func() { time.Sleep(time.Second) })
		})
		var both sync.WaitGroup
		for range 2 {
			both.Go(ts.Wait)
		}
		both.Wait()
		if d := time.Since(start); d != 2*time.Second {
			t.Errorf("waited %v for tasks of 1 s and 1 s", d)
		}
		ts.Go(func() { time.Sleep(time.Second) })
		ts.Wait()
		if d := time.Since(start); d != 3*time.Second {
			t.Errorf("waited %v for another of 1 s", d)
		}
	})
}

// Tasks may be started by those who know nothing of the one who waits.
func TestTasksWhileWaiting(t *testing.T) {
	var ts tasks
	var ran atomic.Int32
	var starting sync.WaitGroup
	const starters, each = 4, 1000
	for range starters {
		starting.Go(func() {
			for range each {
				ts.Go(func() { ran.Add(1) })
			}
		})
	}
	started := make(chan struct{})
	go func() {
		starting.Wait()
		close(started)
	}()
	for waiting := true; waiting; {
		select {
		case <-started:
			waiting = false
		default:
		}
		ts.Wait()
	}
	if got := ran.Load(); got != starters*each {
		t.Errorf("%d of %d ran", got, starters*each)
	}
}
