package mesh

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
)

// benchPair runs two nodes with ordinary settings on loopback.
func benchPair(b *testing.B) (from, to *Mesh) {
	b.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var nodes []*Mesh
	done := make(chan error, 2)
	for i := range 2 {
		dir := b.TempDir()
		if i == 0 {
			if _, err := Found(FoundConfig{Dir: dir}); err != nil {
				b.Fatal(err)
			}
		} else {
			tok, _, err := nodes[0].CreateToken(TokenRequest{})
			if err != nil {
				b.Fatal(err)
			}
			if _, err := Enrol(ctx, EnrolConfig{Dir: dir, Token: tok}); err != nil {
				b.Fatal(err)
			}
		}
		m, err := New(Config{Dir: dir, Listen: "127.0.0.1:0", Record: Record{Name: fmt.Sprint("n", i)}})
		if err != nil {
			b.Fatal(err)
		}
		m.Handle("sink", func(_ context.Context, s *Stream) { sink(s, s) })
		m.Handle("page", func(_ context.Context, s *Stream) { serve4K(s) })
		go func() { done <- m.Run(ctx) }()
		<-m.Ready()
		nodes = append(nodes, m)
	}
	b.Cleanup(func() {
		cancel()
		for range nodes {
			if err := <-done; err != nil {
				b.Error(err)
			}
		}
	})
	for {
		if _, ok := nodes[0].Member(nodes[1].ID()); ok {
			return nodes[0], nodes[1]
		}
		time.Sleep(time.Millisecond)
	}
}

// sink swallows a stream and answers with one byte at its end.
func sink(r io.Reader, w io.Writer) {
	buf := make([]byte, 64<<10)
	for {
		if _, err := r.Read(buf); err == io.EOF {
			w.Write([]byte{1})
			return
		} else if err != nil {
			return
		}
	}
}

// serve4K answers every 8 bytes with 4 KiB.
func serve4K(rw io.ReadWriter) {
	req, page := make([]byte, 8), make([]byte, 4<<10)
	for {
		if _, err := io.ReadFull(rw, req); err != nil {
			return
		}
		if _, err := rw.Write(page); err != nil {
			return
		}
	}
}

// barePair is a QUIC connection with nothing on it but TLS, and quic-go's
// default settings.
func barePair(b *testing.B, serve func(*quic.Stream)) *quic.Conn {
	b.Helper()
	ms, err := Found(FoundConfig{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	var ends [2]*quic.Transport
	for i := range ends {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		ends[i] = &quic.Transport{Conn: pc}
		b.Cleanup(func() { ends[i].Close(); pc.Close() })
	}
	ln, err := ends[0].Listen(&tls.Config{Certificates: []tls.Certificate{ms.tlsCertificate()}, NextProtos: []string{"bare"}}, nil)
	if err != nil {
		b.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		q, err := ln.Accept(context.Background())
		if err != nil {
			return
		}
		for {
			s, err := q.AcceptStream(context.Background())
			if err != nil {
				return
			}
			serve(s)
			s.Close()
		}
	}()
	q, err := ends[1].Dial(context.Background(), ends[0].Conn.LocalAddr(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"bare"}}, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		q.CloseWithError(0, "")
		<-served
	})
	return q
}

const benchBytes = 64 << 20

func push(b *testing.B, w io.Writer, closeWrite func() error, r io.Reader) time.Duration {
	b.Helper()
	buf := make([]byte, 256<<10)
	start := time.Now()
	for sent := 0; sent < benchBytes; sent += len(buf) {
		if _, err := w.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	if err := closeWrite(); err != nil {
		b.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}

// BenchmarkBulk compares a bulk stream with one of bare quic-go, in turn.
func BenchmarkBulk(b *testing.B) {
	os.Setenv("QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING", "true")
	from, to := benchPair(b)
	bare := barePair(b, func(s *quic.Stream) { sink(s, s) })
	ctx := context.Background()
	var ours, theirs time.Duration
	n := 0
	b.SetBytes(2 * benchBytes)
	for b.Loop() {
		s, err := from.Open(ctx, to.ID(), "sink", Bulk)
		if err != nil {
			b.Fatal(err)
		}
		ours += push(b, s, s.CloseWrite, s)
		s.Close()
		q, err := bare.OpenStreamSync(ctx)
		if err != nil {
			b.Fatal(err)
		}
		theirs += push(b, q, q.Close, q)
		n++
	}
	mb := float64(n) * benchBytes / 1e6
	b.ReportMetric(mb/ours.Seconds(), "mesh-MB/s")
	b.ReportMetric(mb/theirs.Seconds(), "bare-MB/s")
	b.ReportMetric(theirs.Seconds()/ours.Seconds(), "mesh/bare")
}

// BenchmarkPage compares eight bytes out and 4 KiB back over a stream that is
// kept with the same over bare quic-go, in turn, and with a stream for each.
func BenchmarkPage(b *testing.B) {
	os.Setenv("QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING", "true")
	from, to := benchPair(b)
	bare := barePair(b, func(s *quic.Stream) { serve4K(s) })
	ctx := context.Background()
	s, err := from.Open(ctx, to.ID(), "page", Urgent)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	q, err := bare.OpenStreamSync(ctx)
	if err != nil {
		b.Fatal(err)
	}
	defer q.CancelRead(0)
	defer q.Close()
	req, page := make([]byte, 8), make([]byte, 4<<10)
	ask := func(rw io.ReadWriter) time.Duration {
		start := time.Now()
		if _, err := rw.Write(req); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(rw, page); err != nil {
			b.Fatal(err)
		}
		return time.Since(start)
	}
	var kept, plain, fresh time.Duration
	n := 0
	for b.Loop() {
		kept += ask(s)
		plain += ask(q)
		start := time.Now()
		one, err := from.Open(ctx, to.ID(), "page", Urgent)
		if err != nil {
			b.Fatal(err)
		}
		ask(one)
		one.Close()
		fresh += time.Since(start)
		n++
	}
	us := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(n) }
	b.ReportMetric(us(kept), "mesh-us")
	b.ReportMetric(us(plain), "bare-us")
	b.ReportMetric(us(fresh), "mesh-new-stream-us")
	b.ReportMetric(float64(plain)/float64(kept), "bare/mesh")
}
