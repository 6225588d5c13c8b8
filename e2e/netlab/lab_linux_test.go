package netlab

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

// listen opens a UDP socket in a node that echoes what it gets until the test
// ends.
func echo(tb testing.TB, n *Node) netip.AddrPort {
	tb.Helper()
	conn := listen(tb, n)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			k, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			conn.WriteToUDPAddrPort(buf[:k], from)
		}
	}()
	tb.Cleanup(func() { conn.Close(); <-done })
	return netip.AddrPortFrom(n.Addr(), conn.LocalAddr().(*net.UDPAddr).AddrPort().Port())
}

func listen(tb testing.TB, n *Node) *net.UDPConn {
	tb.Helper()
	var conn *net.UDPConn
	if err := n.Do(func() (err error) {
		conn, err = net.ListenUDP("udp4", &net.UDPAddr{})
		return err
	}); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { conn.Close() })
	return conn
}

// ping sends a packet until it comes back, and reports how long that took
// the last time.
func ping(tb testing.TB, conn *net.UDPConn, to netip.AddrPort) time.Duration {
	tb.Helper()
	var buf [64]byte
	for id := byte(1); id < 100; id++ {
		sent := time.Now()
		if _, err := conn.WriteToUDPAddrPort([]byte{id}, to); err != nil {
			tb.Fatal(err)
		}
		conn.SetReadDeadline(time.Now().Add(30 * time.Second))
		for {
			n, _, err := conn.ReadFromUDPAddrPort(buf[:])
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				tb.Fatal(err)
			}
			if n == 1 && buf[0] == id {
				return time.Since(sent)
			}
		}
	}
	tb.Fatalf("no echo from %v", to)
	return 0
}

func link(tb testing.TB, l *Lab, a, b, params string) (*Node, *Node) {
	tb.Helper()
	if err := l.Link(a, b, mustParams(tb, params)); err != nil {
		tb.Fatal(err)
	}
	return l.Node(a), l.Node(b)
}

func check(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func TestDelay(t *testing.T) {
	l := New(t)
	a, b := link(t, l, "a", "b", "delay=20ms")
	link(t, l, "b", "c", "delay=10ms")
	conn, to, far := listen(t, a), echo(t, b), echo(t, l.Node("c"))
	// The emulator may be late but never early.
	if rtt := ping(t, conn, to); rtt < 40*time.Millisecond {
		t.Errorf("round trip of %v over 20 ms each way", rtt)
	}
	if rtt := ping(t, conn, far); rtt < 60*time.Millisecond {
		t.Errorf("round trip of %v over 30 ms each way", rtt)
	}
	check(t, l.SetWire("a", "b", func(p *Params) { p.Delay = 0 }))
	if rtt := ping(t, conn, to); rtt < 20*time.Millisecond {
		t.Errorf("round trip of %v over 0 ms there and 20 ms back", rtt)
	}
}

func TestCut(t *testing.T) {
	l := New(t)
	a, b := link(t, l, "a", "b", "")
	c, _ := link(t, l, "c", "b", "")
	conn, other, to := listen(t, a), listen(t, c), echo(t, b)
	ping(t, conn, to)
	ping(t, other, to)

	for _, cut := range []struct{ cut, heal func() error }{
		{func() error { return l.Cut("a", "b") }, func() error { return l.Heal("b", "a") }},
		{func() error { return l.CutNode("a") }, func() error { return l.HealNode("a") }},
		{
			func() error { return l.SetWire("a", "b", func(p *Params) { p.Down = true }) },
			func() error { return l.SetLink("a", "b", func(p *Params) { p.Down = false }) },
		},
	} {
		check(t, cut.cut())
		before, err := l.Stats("a", "b")
		check(t, err)
		for range 10 {
			_, err := conn.WriteToUDPAddrPort([]byte{0}, to)
			check(t, err)
		}
		ping(t, other, to)
		after := waitStats(t, l, "a", "b", func(s WireStats) bool { return s.DroppedDown >= before.DroppedDown+10 })
		if after.Delivered != before.Delivered {
			t.Errorf("%d packets went over a cut link", after.Delivered-before.Delivered)
		}
		check(t, cut.heal())
		ping(t, conn, to)
	}
	if err := l.Cut("a", "c"); err == nil {
		t.Error("a link that is not there can be cut")
	}
}

// waitStats waits until the counters of a link are as they should be.
func waitStats(tb testing.TB, l *Lab, from, to string, ok func(WireStats) bool) WireStats {
	tb.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	limit := time.After(2 * time.Minute)
	for {
		s, err := l.Stats(from, to)
		check(tb, err)
		if ok(s) {
			return s
		}
		select {
		case <-tick.C:
		case <-limit:
			tb.Fatalf("the counters of %s-%s stay at %+v", from, to, s)
		}
	}
}

func TestReaddress(t *testing.T) {
	l := New(t)
	a, b := link(t, l, "a", "b", "delay=1ms")
	conn, to := listen(t, a), echo(t, b)
	ping(t, conn, to)
	was := b.Addr()
	now, err := l.Readdress("b")
	check(t, err)
	if now == was || b.Addr() != now {
		t.Errorf("address %v, then %v and %v", was, now, b.Addr())
	}
	// The same sockets go on on either side.
	ping(t, conn, netip.AddrPortFrom(now, to.Port()))
	_, err = l.Readdress("a")
	check(t, err)
	ping(t, conn, netip.AddrPortFrom(now, to.Port()))

	// Nobody answers at the old address.
	before, err := l.Stats("a", "b")
	check(t, err)
	_, err = conn.WriteToUDPAddrPort([]byte{0}, to)
	check(t, err)
	ping(t, conn, netip.AddrPortFrom(now, to.Port()))
	after, err := l.Stats("a", "b")
	check(t, err)
	if got := after.Sent - before.Sent; got != 1 {
		t.Errorf("%d packets for b on the link, want that to the new address alone", got)
	}
}

func TestLossyStream(t *testing.T) {
	l := New(t)
	a, b := link(t, l, "a", "b", "rate=100mbit delay=2ms jitter=1ms loss=1% reorder=1% duplicate=1%")
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<17) // some 1,500 packets: something happens to one
	var ln net.Listener
	check(t, b.Do(func() (err error) {
		ln, err = net.Listen("tcp4", "0.0.0.0:0")
		return err
	}))
	defer ln.Close()
	sent := make(chan error, 1)
	go func() {
		var conn net.Conn
		err := a.Do(func() (err error) {
			addr := netip.AddrPortFrom(b.Addr(), uint16(ln.Addr().(*net.TCPAddr).Port))
			conn, err = net.Dial("tcp4", addr.String())
			return err
		})
		if err == nil {
			_, err = conn.Write(want)
			conn.Close()
		}
		sent <- err
	}()
	conn, err := ln.Accept()
	check(t, err)
	defer conn.Close()
	got, err := io.ReadAll(conn)
	check(t, err)
	check(t, <-sent)
	if !bytes.Equal(got, want) {
		t.Error("TCP did not get through what the link did to it")
	}
	s, err := l.Stats("a", "b")
	check(t, err)
	if s.DroppedLoss == 0 && s.Reordered == 0 && s.Duplicated == 0 {
		t.Errorf("nothing happened to %d packets", s.Sent)
	}
}

func TestCommand(t *testing.T) {
	l := New(t)
	a, b := link(t, l, "a", "b", "")
	for _, n := range []*Node{a, b} {
		cmd := n.Command(context.Background(), "/proc/self/exe")
		cmd.Env = append(os.Environ(), helperVar+"=addrs")
		out, err := cmd.CombinedOutput()
		if want := " " + n.Addr().String() + "/8 "; err != nil || !strings.Contains(string(out), want) {
			t.Errorf("addresses seen in %s: %s%v, want%s", n.Name(), out, err, want)
		}
	}
	out, err := a.Command(context.Background(), "no-such-program").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "not found") {
		t.Errorf("a program that is not there: %v, %s", err, out)
	}
}

func TestCloseEndsProcesses(t *testing.T) {
	if err := Unavailable(); err != nil {
		t.Skip(err)
	}
	l, err := Open(Config{Name: "close"})
	check(t, err)
	n, err := l.AddNode("n")
	check(t, err)
	cmd := n.Command(context.Background(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), helperVar+"=hang")
	stdout, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	line := make([]byte, 100)
	k, err := stdout.Read(line) // there is a child
	if err != nil || string(line[:k]) != "true <nil>\n" {
		t.Fatalf("helper says %q, %v", line[:k], err)
	}
	if pids, err := n.Processes(); len(pids) != 2 || err != nil {
		t.Errorf("processes %v, %v; want two", pids, err)
	}
	check(t, l.Close())
	io.Copy(io.Discard, stdout) // ends when no process has the pipe any more
	if err := cmd.Wait(); err == nil || cmd.ProcessState.String() != "signal: killed" {
		t.Errorf("helper ended with %v, want a kill", err)
	}
	check(t, l.Close())
	if err := l.Link("x", "y", Params{}); !errors.Is(err, ErrClosed) {
		t.Errorf("a link in a closed lab: %v, want %v", err, ErrClosed)
	}
	if _, err := os.Stat(n.Netns()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", n.Netns(), err)
	}
}
