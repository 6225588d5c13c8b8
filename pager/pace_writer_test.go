package pager

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestPacedWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 1 << 20
		share := NewBudget(rate).Share("peer", 1)
		defer share.Close()
		ctx, cancel := context.WithCancel(t.Context())
		var out bytes.Buffer
		w := NewPacedWriter(ctx, &out, share)
		want := bytes.Repeat([]byte("0123456789abcdef"), rate/16)
		began := time.Now()
		if n, err := w.Write(want); n != len(want) || err != nil {
			t.Fatalf("wrote %d: %v", n, err)
		}
		// The clock is the test's own.
		if took := time.Since(began); took < 900*time.Millisecond || took > 1100*time.Millisecond {
			t.Errorf("%d bytes at %d a second took %v", len(want), rate, took)
		}
		if !bytes.Equal(out.Bytes(), want) {
			t.Error("other bytes arrived")
		}
		cancel()
		if n, err := w.Write(want); n == len(want) || !errors.Is(err, context.Canceled) {
			t.Errorf("after the end wrote %d: %v", n, err)
		}
	})
}
