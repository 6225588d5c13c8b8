package pager

import (
	"context"
	"crypto/ed25519"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/sys/unix"
)

func quiet() *slog.Logger { return quietLog }

func quantile(ns []int64, q float64) float64 {
	slices.Sort(ns)
	return float64(ns[int(q*float64(len(ns)-1))]) / 1e3
}

// BenchmarkFault measures what a worker waits for a page that is already at
// its node: from the touch in the runner to the touch done.
func BenchmarkFault(b *testing.B) {
	const pages = 4096
	mem, table := benchMemory(pages)
	store := NewStore(64 << 20)
	for p := range pages {
		store.Put(mem[p*PageSize : (p+1)*PageSize])
	}
	bench := func(b *testing.B, order []PageNum, change func(*SinkConfig)) {
		startArmable(b, 1).kill()
		var ns []int64
		var service Latency
		for b.Loop() {
			b.StopTimer()
			c := startArmable(b, pages)
			sink := armSink(b, c, pages, func(cfg *SinkConfig) {
				cfg.Log = quiet()
				change(cfg)
			})
			ctx, cancel := context.WithCancelCause(context.Background())
			stop, err := sink.startFaults(cancel)
			if err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			ns = append(ns, c.do(childRequest{Op: "touch", Pages: order}).Nanos...)
			b.StopTimer()
			if ctx.Err() != nil {
				b.Fatal(context.Cause(ctx))
			}
			service = sink.Stats().Fault
			c.kill()
			stop()
			cancel(nil)
			b.StartTimer()
		}
		sum := int64(0)
		for _, n := range ns {
			sum += n
		}
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(quantile(ns, 0.5), "µs-p50/page")
		b.ReportMetric(quantile(ns, 0.99), "µs-p99/page")
		b.ReportMetric(float64(sum)/float64(len(ns))/1e3, "µs-mean/page")
		b.ReportMetric(float64(service.P50)/1e3, "µs-service-p50/fault")
	}
	random := make([]PageNum, pages)
	for i, p := range rand.New(rand.NewPCG(3, 4)).Perm(pages) {
		random[i] = PageNum(p)
	}
	named := func(cfg *SinkConfig) { cfg.Table, cfg.Store = table, store }
	// Backwards and eight apart: no fault brings what the next one needs.
	var apart []PageNum
	for p := pages - 8; p >= 0; p -= 8 {
		apart = append(apart, PageNum(p))
	}
	b.Run("store/order=random", func(b *testing.B) { bench(b, random, named) })
	b.Run("store/order=apart", func(b *testing.B) { bench(b, apart, named) })
	b.Run("store/order=sequential", func(b *testing.B) { bench(b, pageList(0, pages), named) })
	b.Run("zero/order=random", func(b *testing.B) {
		zeros := NewTable(pages)
		for p := 0; p < pages; p++ { // short stretches, so that they stay armed
			if p%128 != 0 {
				zeros.Set(Run{PageNum(p), 1}, Zero)
			}
		}
		var order []PageNum
		for _, p := range random {
			if p%128 != 0 {
				order = append(order, p)
			}
		}
		bench(b, order, func(cfg *SinkConfig) { cfg.Table = zeros })
	})
}

// delayed is one end of a link that delivers what is written after a time.
type delayed struct {
	net.Conn
	queue chan parcel
	all   *sync.WaitGroup
	once  sync.Once
}

type parcel struct {
	due  time.Time
	data []byte
}

func newDelayed(c net.Conn, delay time.Duration, all *sync.WaitGroup) *delayed {
	d := &delayed{Conn: c, queue: make(chan parcel, 1<<14), all: all}
	all.Go(func() {
		for p := range d.queue {
			time.Sleep(time.Until(p.due.Add(delay))) // the delay is what is emulated
			if _, err := c.Write(p.data); err != nil {
				break
			}
		}
		c.Close()
	})
	return d
}

func (d *delayed) Write(b []byte) (int, error) {
	d.queue <- parcel{time.Now(), append([]byte(nil), b...)}
	return len(b), nil
}

func (d *delayed) Close() error {
	d.once.Do(func() { close(d.queue) })
	return nil
}

type delayedDialer struct {
	src   *Source
	delay time.Duration
	all   sync.WaitGroup
}

func (d *delayedDialer) open(bulk bool) (io.ReadWriteCloser, error) {
	a, b := net.Pipe()
	here, there := newDelayed(a, d.delay, &d.all), newDelayed(b, d.delay, &d.all)
	d.all.Go(func() {
		defer there.Close()
		_ = serveStream(context.Background(), d.src, there)
	})
	return here, nil
}

func (d *delayedDialer) Demand(context.Context) (io.ReadWriteCloser, error) { return d.open(false) }
func (d *delayedDialer) Bulk(context.Context) (io.ReadWriteCloser, error)   { return d.open(true) }

// BenchmarkDemand measures what a worker waits for a page at the far end of
// an idle link of 10 ms there and back.
func BenchmarkDemand(b *testing.B) {
	const pages, rtt = 4096, 10 * time.Millisecond
	mem, _ := benchMemory(pages)
	var order []PageNum
	for p := pages - 32; p > 0; p -= 32 {
		order = append(order, PageNum(p))
	}
	var ns []int64
	for b.Loop() {
		c := startArmable(b, pages)
		sink := armSink(b, c, pages, func(cfg *SinkConfig) { cfg.Log = quiet() })
		d := &delayedDialer{delay: rtt / 2}
		d.src = newTestSource(b, mem, func(cfg *SourceConfig) {
			cfg.Log = quiet()
			cfg.Share = NewBudget(1).Share("sink", 1) // no push
		})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- sink.Run(ctx, d) }()
		ns = append(ns, c.do(childRequest{Op: "touch", Pages: order}).Nanos[1:]...)
		cancel()
		<-done
		d.src.Close()
		d.all.Wait()
		c.kill()
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(quantile(ns, 0.5)/1e3, "ms-p50/page")
	b.ReportMetric(quantile(ns, 0.99)/1e3, "ms-p99/page")
}

// BenchmarkArm measures what the sink adds to the time in which the worker
// runs nowhere.
func BenchmarkArm(b *testing.B) {
	for _, mib := range []int{64, 512} {
		for _, file := range []bool{true, false} {
			b.Run(fmt.Sprintf("mem=%dMiB/file=%t", mib, file), func(b *testing.B) {
				pages := mib << 20 / PageSize
				c := startArmable(b, pages)
				if !file {
					c.region.File = nil
				}
				table := NewTable(pages)
				for b.Loop() {
					sink, err := NewSink(SinkConfig{Worker: "w", Region: c.region, Size: int64(pages) * PageSize, Table: table, Log: quietLog})
					if err != nil {
						b.Fatal(err)
					}
					if err := sink.Arm(); err != nil {
						b.Fatal(err)
					}
					b.StopTimer()
					if err := sink.disarm(); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
				}
			})
		}
	}
}

// cpu is the processor time this process has used.
func cpu(b testing.TB) time.Duration {
	var ru unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &ru); err != nil {
		b.Fatal(err)
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// quicPair is a connection over loopback, both ends.
func quicPair(b testing.TB) (client, server *quic.Conn) {
	pub, priv, err := ed25519.GenerateKey(nil)
	if err != nil {
		b.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"pager"}}
	der, err := x509.CreateCertificate(crand.Reader, tmpl, tmpl, pub, priv)
	if err != nil {
		b.Fatal(err)
	}
	conf := &quic.Config{
		InitialStreamReceiveWindow: 8 << 20, MaxStreamReceiveWindow: 16 << 20,
		InitialConnectionReceiveWindow: 16 << 20, MaxConnectionReceiveWindow: 32 << 20,
	}
	ln, err := quic.ListenAddr("127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: priv}}, NextProtos: []string{"pager"},
	}, conf)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { ln.Close() })
	ctx := testContext(b)
	client, err = quic.DialAddr(ctx, ln.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"pager"}}, conf)
	if err != nil {
		b.Fatal(err)
	}
	if server, err = ln.Accept(ctx); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = client.CloseWithError(0, "")
		_ = server.CloseWithError(0, "")
	})
	return client, server
}

// quicDialer opens streams from the client and serves them at the server.
type quicDialer struct {
	client, server *quic.Conn
	src            *Source
	serving        sync.WaitGroup
}

type quicStream struct {
	*quic.Stream
	conn *quic.Conn
}

func (s quicStream) RTT() (time.Duration, uint64) {
	st := s.conn.ConnectionStats()
	return st.LatestRTT, st.PacketsReceived
}

func (s quicStream) Close() error {
	s.CancelRead(0)
	return s.Stream.Close()
}

func (d *quicDialer) open(ctx context.Context, bulk bool) (io.ReadWriteCloser, error) {
	st, err := d.client.OpenStreamSync(ctx)
	if err != nil {
		return nil, err
	}
	d.serving.Go(func() {
		st, err := d.server.AcceptStream(ctx)
		if err != nil {
			return
		}
		rw := quicStream{st, d.server}
		defer rw.Close()
		h, err := ReadHello(rw)
		if err == nil {
			_ = d.src.Serve(ctx, h, rw)
		}
	})
	return quicStream{st, d.client}, nil
}

func (d *quicDialer) Demand(ctx context.Context) (io.ReadWriteCloser, error) {
	return d.open(ctx, false)
}
func (d *quicDialer) Bulk(ctx context.Context) (io.ReadWriteCloser, error) { return d.open(ctx, true) }

// bare carries the memory over one QUIC stream and does nothing else.
func bare(b testing.TB, client, server *quic.Conn, mem []byte) {
	ctx := context.Background()
	var sending sync.WaitGroup
	sending.Go(func() {
		st, err := client.OpenStreamSync(ctx)
		if err != nil {
			b.Error(err)
			return
		}
		for at := 0; at < len(mem); at += 1 << 20 {
			if _, err := st.Write(mem[at : at+1<<20]); err != nil {
				b.Error(err)
				return
			}
		}
		_ = st.Close()
	})
	st, err := server.AcceptStream(ctx)
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 1<<20)
	n := 0
	for {
		m, err := st.Read(buf)
		n += m
		if err == io.EOF {
			break
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	_ = st.Close()
	if n != len(mem) {
		b.Fatalf("%d bytes of %d", n, len(mem))
	}
	sending.Wait()
}

// BenchmarkBulk carries a memory from source to sink, with hashing at both
// ends, against the same bytes over a bare stream in the same run.
func BenchmarkBulk(b *testing.B) {
	const pages = 16384
	mem, _ := benchMemory(pages)
	mib := float64(len(mem)) / (1 << 20)

	transfer := func(b *testing.B, armed, plain bool, share *Share, dialer func(*Source) Dialer) time.Duration {
		src, err := NewSource(SourceConfig{Worker: "w", Epoch: 3, Memory: mem, Share: share, Log: quiet()})
		if err != nil {
			b.Fatal(err)
		}
		var sink *Sink
		var c *child
		if armed {
			c = startArmable(b, pages)
			sink = armSink(b, c, pages, func(cfg *SinkConfig) { cfg.Log, cfg.Plain = quiet(), plain })
		} else {
			data, err := unix.Mmap(-1, 0, len(mem), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = unix.Munmap(data) }()
			sink, err = NewSink(SinkConfig{Worker: "w", Epoch: 3, Region: Region{Data: data, UFFD: -1}, Size: int64(len(mem)), Plain: plain, Log: quiet()})
			if err != nil {
				b.Fatal(err)
			}
		}
		start := time.Now()
		if err := sink.Run(context.Background(), dialer(src)); err != nil {
			b.Fatal(err)
		}
		took := time.Since(start)
		src.Close()
		if c != nil {
			c.kill()
		}
		return took
	}
	for _, tc := range []struct {
		name         string
		armed, plain bool
	}{
		{"mode=fill/encodings=none", false, true},
		{"mode=armed/encodings=none", true, true},
		{"mode=fill/encodings=all", false, false},
		{"mode=armed/encodings=all", true, false},
	} {
		b.Run("path=pipe/"+tc.name, func(b *testing.B) {
			var total time.Duration
			for b.Loop() {
				total += transfer(b, tc.armed, tc.plain, nil, func(src *Source) Dialer { return newPipes(b, src) })
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(mib*float64(b.N)/total.Seconds(), "MiB/s")
		})
		b.Run("path=quic/"+tc.name, func(b *testing.B) {
			client, server := quicPair(b)
			var clock, work []float64 // of bare, to ours
			var total, plain, paced time.Duration
			budget := NewBudget(0)
			for b.Loop() {
				start, used := time.Now(), cpu(b)
				bare(b, client, server, mem)
				bareTook, bareUsed := time.Since(start), cpu(b)-used
				d := &quicDialer{client: client, server: server}
				used = cpu(b)
				took := transfer(b, tc.armed, tc.plain, nil, func(src *Source) Dialer { d.src = src; return d })
				d.serving.Wait()
				clock = append(clock, bareTook.Seconds()/took.Seconds())
				work = append(work, bareUsed.Seconds()/(cpu(b)-used).Seconds())
				total, plain = total+took, plain+bareTook
				// The same with an eye on the queue, of which there is none.
				paced += transfer(b, tc.armed, tc.plain, budget.Share("sink", 1), func(src *Source) Dialer { d.src = src; return d })
				d.serving.Wait()
			}
			// On a machine that does other things too, processor time tells
			// more than the clock, and the median more than the mean.
			slices.Sort(clock)
			slices.Sort(work)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(mib*float64(b.N)/total.Seconds(), "MiB/s")
			b.ReportMetric(mib*float64(b.N)/plain.Seconds(), "MiB/s-bare")
			b.ReportMetric(work[len(work)/2], "cpu-of-bare")
			b.ReportMetric(clock[len(clock)/2], "of-bare")
			b.ReportMetric(clock[0], "of-bare-min")
			b.ReportMetric(total.Seconds()/paced.Seconds(), "paced-of-unpaced")
		})
	}
}

// BenchmarkNeighbours is what a look at a memory costs, and what a page that is
// found does.
func BenchmarkNeighbours(b *testing.B) {
	const pages = 64 << 20 / PageSize
	mem, table := benchMemory(pages)
	var here atomic.Bool
	b.Run(fmt.Sprintf("look/mem=%dMiB", len(mem)>>20), func(b *testing.B) {
		b.SetBytes(int64(len(mem)))
		b.ReportAllocs()
		before := cpu(b)
		for b.Loop() {
			newTestNeighbours(b, 1<<30, neighbour(mem, &here)).Run(b.Context())
		}
		b.ReportMetric(float64(cpu(b)-before)/1e6/float64(b.N), "cpu-ms/op")
	})
	b.Run("fetch", func(b *testing.B) {
		n := newTestNeighbours(b, 1<<30, neighbour(mem, &here))
		n.Run(b.Context())
		buf := make([]byte, PageSize)
		b.SetBytes(PageSize)
		p := PageNum(0)
		for b.Loop() {
			if h, _ := table.Get(p); !n.Fetch(h, buf) {
				b.Fatal("a page was not found")
			}
			p = (p + 1) % pages
		}
	})
}
