package node

import (
	"fmt"
	"time"

	"meshnode/node/runner"
)

// maxTimers is how many timers a worker may have armed.
const maxTimers = 1024

// A timer of a worker. While the worker is halted, due does not count and
// left is what remained.
type timer struct {
	due   time.Time
	left  time.Duration
	every time.Duration // 0 for a timer that fires once
}

// A timerState is a timer in a worker's image: remaining time, never a date,
// since the clocks of two machines differ.
type timerState struct {
	ID    uint64        `cbor:"1,keyasint"`
	Left  time.Duration `cbor:"2,keyasint"`
	Every time.Duration `cbor:"3,keyasint,omitempty"`
}

// timers are the timers of one worker. They belong to the worker's loop.
type timers struct {
	byID   map[uint64]*timer
	halted bool
}

// apply carries out what an event asked for.
func (t *timers) apply(ops []runner.TimerOp, now time.Time) {
	for _, op := range ops {
		if op.Cancel {
			delete(t.byID, op.ID)
			continue
		}
		if t.byID == nil {
			t.byID = make(map[uint64]*timer)
		}
		t.byID[op.ID] = &timer{due: now.Add(op.After), every: op.Every}
	}
}

// next returns the id of the timer that is due first and when that is. Of
// several at one time, the lowest id comes first, so that a worker sees the
// same order on every node.
func (t *timers) next() (id uint64, due time.Time, ok bool) {
	for i, tm := range t.byID {
		if !ok || tm.due.Before(due) || tm.due.Equal(due) && i < id {
			id, due, ok = i, tm.due, true
		}
	}
	return id, due, ok
}

// fired takes a due timer out, or arms it again. One that fell behind does not
// catch up with a burst.
func (t *timers) fired(id uint64, now time.Time) {
	tm := t.byID[id]
	if tm.every == 0 {
		delete(t.byID, id)
		return
	}
	tm.due = tm.due.Add(tm.every)
	if tm.due.Before(now) {
		tm.due = now.Add(tm.every)
	}
}

// halt stops all timers and run lets them go on with the time they had left.
func (t *timers) halt(now time.Time) {
	if t.halted {
		return
	}
	t.halted = true
	for _, tm := range t.byID {
		tm.left = max(0, tm.due.Sub(now))
	}
}

func (t *timers) run(now time.Time) {
	if !t.halted {
		return
	}
	t.halted = false
	for _, tm := range t.byID {
		tm.due = now.Add(tm.left)
	}
}

// state returns halted timers for the image, restore takes them from one and
// leaves them halted.
func (t *timers) state() []timerState {
	ts := make([]timerState, 0, len(t.byID))
	for id, tm := range t.byID {
		ts = append(ts, timerState{ID: id, Left: tm.left, Every: tm.every})
	}
	return ts
}

func (t *timers) restore(ts []timerState) error {
	if len(ts) > maxTimers {
		return fmt.Errorf("%d timers, more than %d", len(ts), maxTimers)
	}
	t.halted = true
	t.byID = make(map[uint64]*timer, len(ts))
	for _, s := range ts {
		if s.Left < 0 || s.Every < 0 || t.byID[s.ID] != nil {
			return fmt.Errorf("timer %d is not valid", s.ID)
		}
		t.byID[s.ID] = &timer{left: s.Left, every: s.Every}
	}
	return nil
}
