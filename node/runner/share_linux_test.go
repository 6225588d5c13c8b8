package runner

import (
	"context"
	"testing"
	"time"

	. "meshnode/node/suspend/wasmtest"
)

// A program over its share is held back again and again, answers at once all the
// same, and goes on as fast as it can when it may.
func TestSetCPU(t *testing.T) {
	ctx := context.Background()
	r := live(t, ends(t, func(*Module, uint32) []byte { return Cat(Loop, Br(0), End) }))
	if err := r.Run(ctx); err != nil {
		t.Fatal(err)
	}
	heldFor := func(d time.Duration) {
		t.Helper()
		for at := r.Held(); r.Held() < at+d; time.Sleep(time.Millisecond) {
			if err := r.Err(); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.SetCPU(0.05)
	for range 3 {
		heldFor(100 * time.Millisecond)
		spent, err := cpuTime(r.Region().PID)
		if err != nil || spent == 0 {
			t.Fatalf("%v spent, %v", spent, err)
		}
		if err := r.Halt(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := r.State(ctx); err != nil {
			t.Fatal(err)
		}
		if err := r.Run(ctx); err != nil {
			t.Fatal(err)
		}
	}
	r.SetCPU(1)
	for at := r.Held(); ; at = r.Held() { // the last look has let it go
		spent, err := cpuTime(r.Region().PID)
		if err != nil {
			t.Fatal(err)
		}
		for now := spent; now < spent+50*time.Millisecond; time.Sleep(time.Millisecond) {
			if now, err = cpuTime(r.Region().PID); err != nil {
				t.Fatal(err)
			}
		}
		if r.Held() == at {
			break
		}
	}
}
