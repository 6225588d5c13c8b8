package netlab

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What the emulator itself adds: a round trip over the loopback device of a
// node beside one over links of various delays, in one run. us-over is by how
// much the median is more than the delay asked for; us-late is how much of it,
// each way, the emulator's thread is late. The rest is what the two ends take
// to wake up.
func BenchmarkEcho(b *testing.B) {
	for _, test := range []struct {
		name, params string
		delay        time.Duration
	}{
		{"loopback", "", 0},
		{"link/delay=0", "", 0},
		{"link/delay=1ms", "delay=1ms", time.Millisecond},
		{"link/delay=5ms", "delay=5ms", 5 * time.Millisecond},
		{"link/delay=25ms", "delay=25ms", 25 * time.Millisecond},
	} {
		b.Run(test.name, func(b *testing.B) {
			l := New(b)
			n, m := link(b, l, "a", "b", test.params)
			if test.name == "loopback" {
				m = n
			}
			conn, to := listen(b, n), echo(b, m)
			if m == n {
				to = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), to.Port())
			}
			var rtts, late []time.Duration
			check(b, l.do(func() {
				l.engine.late = func(ns int64) { late = append(late, time.Duration(ns)) }
			}))
			for b.Loop() {
				rtts = append(rtts, ping(b, conn, to))
			}
			check(b, l.do(func() { l.engine.late = nil }))
			slices.Sort(rtts)
			us := func(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
			b.ReportMetric(us(rtts[len(rtts)/2]), "us-p50")
			b.ReportMetric(us(rtts[len(rtts)*99/100]), "us-p99")
			if test.delay > 0 {
				slices.Sort(late)
				b.ReportMetric(us(rtts[len(rtts)/2]-2*test.delay), "us-over")
				b.ReportMetric(us(late[len(late)/2]), "us-late-p50")
				b.ReportMetric(us(late[len(late)*99/100]), "us-late-p99")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// cpu is the CPU time the emulator has used.
func cpu(tb testing.TB, l *Lab) time.Duration {
	var usage unix.Rusage
	check(tb, l.do(func() { check(tb, unix.Getrusage(unix.RUSAGE_THREAD, &usage)) }))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// How many UDP packets a second get through when a sender sends all it can.
// The sender, the emulator and the receiver share the CPUs of this machine.
func BenchmarkFlood(b *testing.B) {
	for _, size := range []int{64, 1400} {
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			l := New(b)
			n, m := link(b, l, "a", "b", "")
			conn, sink := listen(b, n), listen(b, m)
			sink.SetReadBuffer(64 << 20)
			done := make(chan struct{})
			go func() {
				defer close(done)
				buf := make([]byte, 2048)
				for {
					if _, _, err := sink.ReadFromUDPAddrPort(buf); err != nil {
						return
					}
				}
			}()
			to := netip.AddrPortFrom(m.Addr(), sink.LocalAddr().(*net.UDPAddr).AddrPort().Port())
			payload := make([]byte, size)
			before := cpu(b, l)
			start := time.Now()
			for b.Loop() {
				if _, err := conn.WriteToUDPAddrPort(payload, to); err != nil {
					b.Fatal(err)
				}
			}
			took := time.Since(start)
			s, err := l.Stats("a", "b")
			check(b, err)
			used := cpu(b, l) - before
			sink.Close()
			<-done
			b.ReportMetric(float64(s.Delivered)/took.Seconds(), "packets/s")
			b.ReportMetric(float64(s.DeliveredBytes)*8/took.Seconds()/1e6, "Mbit/s")
			b.ReportMetric(float64(used.Nanoseconds())/float64(s.Delivered), "cpu-ns/packet")
			b.ReportMetric(100*(1-float64(s.Delivered)/float64(b.N)), "%lost-before")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// How near a limited link comes to its rate while a sender offers it a quarter
// more than that.
func BenchmarkRate(b *testing.B) {
	for _, rate := range []string{"1mbit", "10mbit", "100mbit", "200mbit", "500mbit"} {
		b.Run(rate, func(b *testing.B) {
			l := New(b)
			n, m := link(b, l, "a", "b", "delay=5ms rate="+rate)
			conn, sink := listen(b, n), listen(b, m)
			to := netip.AddrPortFrom(m.Addr(), sink.LocalAddr().(*net.UDPAddr).AddrPort().Port())
			p := mustParams(b, "rate="+rate)
			const size = 1400
			gap := time.Duration(float64(size*8) / (1.25 * float64(p.Rate)) * float64(time.Second))
			stop, stopped := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(stopped)
				payload := make([]byte, size-28) // IP and UDP take 28
				for next := time.Now(); ; next = next.Add(gap) {
					select {
					case <-stop:
						return
					case <-time.After(time.Until(next)):
					}
					conn.WriteToUDPAddrPort(payload, to)
				}
			}()
			buf := make([]byte, 2048)
			var first, last time.Time
			for b.Loop() {
				_, _, err := sink.ReadFromUDPAddrPort(buf)
				check(b, err)
				last = time.Now()
				if first.IsZero() {
					first = last
				}
			}
			close(stop)
			<-stopped
			if took := last.Sub(first).Seconds(); took > 0 {
				got := float64(b.N-1) * size * 8 / took
				b.ReportMetric(got/1e6, "Mbit/s")
				b.ReportMetric(got/float64(p.Rate), "of-rate")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// What TCP gets through links without a rate; its payload is 1448 of 1500
// bytes.
func BenchmarkTCP(b *testing.B) {
	for _, params := range []string{"delay=0ms", "delay=5ms"} {
		b.Run(params, func(b *testing.B) {
			l := New(b)
			n, m := link(b, l, "a", "b", params)
			var ln net.Listener
			check(b, m.Do(func() (err error) {
				ln, err = net.Listen("tcp4", "0.0.0.0:0")
				return err
			}))
			defer ln.Close()
			addr := netip.AddrPortFrom(m.Addr(), uint16(ln.Addr().(*net.TCPAddr).Port))
			var out net.Conn
			check(b, n.Do(func() (err error) {
				out, err = net.Dial("tcp4", addr.String())
				return err
			}))
			in, err := ln.Accept()
			check(b, err)
			defer in.Close()
			go func() {
				chunk := make([]byte, 64<<10)
				for {
					if _, err := out.Write(chunk); err != nil {
						return
					}
				}
			}()
			defer out.Close()
			// Past the slow start, and the burst of its end.
			chunk := make([]byte, 64<<10)
			for warm := time.Now().Add(500 * time.Millisecond); time.Now().Before(warm); {
				if _, err := io.ReadFull(in, chunk); err != nil {
					b.Fatal(err)
				}
			}
			b.SetBytes(int64(len(chunk)))
			before, start := cpu(b, l), time.Now()
			bytes := 0
			for b.Loop() {
				k, err := io.ReadFull(in, chunk)
				check(b, err)
				bytes += k
			}
			took := time.Since(start)
			rate := float64(bytes) * 8 / took.Seconds() * MTU / (MTU - 52)
			b.ReportMetric(rate/1e6, "Mbit/s")
			b.ReportMetric(100*float64(cpu(b, l)-before)/float64(took), "%cpu")
			b.ReportMetric(0, "ns/op")
		})
	}
}
