package meshtest

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

var (
	hostA = netip.MustParseAddr("10.0.0.1")
	hostB = netip.MustParseAddr("10.0.0.2")
)

func pair(t *testing.T, n *Network) (a, b *Conn) {
	t.Helper()
	a, err := n.Listen(netip.AddrPortFrom(hostA, 1))
	if err != nil {
		t.Fatal(err)
	}
	if b, err = n.Listen(netip.AddrPortFrom(hostB, 0)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestDelayAndOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork(1)
		n.SetDelay(10 * time.Millisecond)
		a, b := pair(t, n)
		start := time.Now()
		for i := range byte(100) {
			a.WriteTo([]byte{i}, b.LocalAddr())
		}
		buf := make([]byte, 10)
		for i := range byte(100) {
			m, from, err := b.ReadFrom(buf)
			if err != nil || m != 1 || buf[0] != i || from.String() != a.LocalAddr().String() {
				t.Fatalf("packet %d: %d bytes, %v, from %v, %v", i, m, buf[:m], from, err)
			}
		}
		if d := time.Since(start); d != 10*time.Millisecond {
			t.Errorf("took %v of the bubble's time, want 10ms", d)
		}
	})
}

func TestCutMoveClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork(1)
		a, b := pair(t, n)
		heard := func() bool {
			b.SetReadDeadline(time.Now().Add(time.Second))
			_, _, err := b.ReadFrom(make([]byte, 10))
			if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
			return err == nil
		}
		old := b.LocalAddr()
		send := func(to net.Addr) { a.WriteTo([]byte("x"), to) }
		send(old)
		if !heard() {
			t.Error("packet lost on a whole link")
		}
		n.Cut(hostB, hostA)
		send(old)
		if heard() {
			t.Error("packet crossed a cut link")
		}
		n.Heal(hostA, hostB)
		if err := b.Move(netip.AddrPortFrom(netip.MustParseAddr("10.0.0.3"), 9)); err != nil {
			t.Fatal(err)
		}
		send(old)
		if heard() {
			t.Error("packet found the old address")
		}
		send(b.LocalAddr())
		if !heard() {
			t.Error("packet lost at the new address")
		}
		go b.Close()
		b.SetReadDeadline(time.Time{})
		if _, _, err := b.ReadFrom(nil); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read of a closed socket: %v", err)
		}
	})
}

func TestLoss(t *testing.T) {
	n := NewNetwork(7)
	n.SetLoss(0.25)
	a, b := pair(t, n)
	for range 4000 {
		a.WriteTo([]byte("x"), b.LocalAddr())
	}
	b.SetReadDeadline(time.Now().Add(time.Hour))
	got := len(b.queue)
	if got < 2800 || got > 3200 {
		t.Errorf("%d of 4000 packets arrived, want about 3000", got)
	}
}
