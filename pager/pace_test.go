package pager

import (
	"context"
	"errors"
	"math"
	"testing"
	"time"
)

// What was written is paid off at the rate of the moment, and a late writer
// catches up for paceSlack and no more.
func TestPacePays(t *testing.T) {
	var p pace
	now := time.Unix(0, 0)
	if d := p.pay(now, 1000); d != 0 {
		t.Errorf("the first write waits %v", d)
	}
	p.debt += 1000
	if d := p.pay(now, 1000); d != time.Second {
		t.Errorf("1000 bytes at 1000 a second take %v", d)
	}
	now = now.Add(500 * time.Millisecond)
	if d := p.pay(now, 1000); d != 500*time.Millisecond {
		t.Errorf("after half a second %v are left, want 500ms", d)
	}
	if d := p.pay(now, 100); d != 5*time.Second {
		t.Errorf("at a tenth of the rate %v are left, want 5s", d)
	}
	now = now.Add(time.Hour)
	if d := p.pay(now, 1000); d != 0 || p.debt != -1000*paceSlack.Seconds() {
		t.Errorf("after an hour %v are left and the debt is %v", d, p.debt)
	}
	p.debt = 1e9
	if d := p.pay(now, math.Inf(1)); d != 0 || p.debt != 0 {
		t.Errorf("without a limit %v are left and the debt is %v", d, p.debt)
	}
}

func TestPaceWait(t *testing.T) {
	var p pace
	if err := p.wait(context.Background(), nil, nil, 1); err != nil {
		t.Error(err)
	}
	share := NewBudget(1).Share("b", 1)
	defer share.Close()
	if err := p.wait(context.Background(), share, nil, 1<<20); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errTest)
	if err := p.wait(ctx, share, nil, 1); !errors.Is(err, errTest) {
		t.Errorf("got %v, want %v", err, errTest)
	}
}
