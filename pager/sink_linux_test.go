package pager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func armSink(t testing.TB, c *child, pages int, change func(*SinkConfig)) *Sink {
	t.Helper()
	return armSinkKernel(t, c, pages, unix.Getpagesize(), change)
}

func armSinkKernel(t testing.TB, c *child, pages, kernelPage int, change func(*SinkConfig)) *Sink {
	t.Helper()
	cfg := SinkConfig{Worker: "w", Epoch: 3, Region: c.region, Size: int64(pages) * PageSize, Log: testLog(t)}
	if change != nil {
		change(&cfg)
	}
	s, err := newSink(cfg, nil, kernelPage)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Arm(); err != nil {
		t.Fatal(err)
	}
	return s
}

// runSink runs the sink beside the test.
func runSink(t testing.TB, s *Sink, d Dialer) (wait func() error, cancel context.CancelFunc) {
	ctx, cancel := context.WithCancel(testContext(t))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, d) }()
	var once sync.Once
	var err error
	wait = func() error {
		once.Do(func() { err = <-done })
		return err
	}
	t.Cleanup(func() {
		cancel()
		_ = wait()
	})
	return wait, cancel
}

// A child whose threads read all of the memory at once, in orders of their
// own, sees exactly what the source had, while the push goes on.
func TestFaultsBesidePush(t *testing.T) {
	for _, tc := range []struct {
		zero, kernelPage int
		names            bool
	}{
		{0, 4096, false}, {3, 4096, false}, {9, 4096, true}, {3, 16384, false}, {7, 65536, false}, {0, 65536, true},
	} {
		t.Run(fmt.Sprintf("zero=%d/kernel=%d/names=%t", tc.zero, tc.kernelPage, tc.names), func(t *testing.T) {
			const pages = 2048
			r := testRand(t)
			mem := testMemory(r, pages, tc.zero)
			c := startArmable(t, pages+64)
			src := newTestSource(t, mem, nil)
			sink := armSinkKernel(t, c, pages, max(tc.kernelPage, unix.Getpagesize()), func(cfg *SinkConfig) {
				if tc.names {
					cfg.Store = NewStore(64 << 20)
					for p := 0; p < pages; p += 3 {
						cfg.Store.Put(mem[p*PageSize : (p+1)*PageSize])
					}
				}
			})
			list := pageList(0, pages)
			c.send(childRequest{Op: "threads", Pages: list, Number: 4, Seed: r.Uint64()})
			wait, _ := runSink(t, sink, newPipes(t, src))
			checkHashes(t, mem, list, c.reply().Hashes)
			if err := wait(); err != nil {
				t.Fatal(err)
			}
			st := sink.Stats()
			if st.Missing != 0 || st.Armed {
				t.Errorf("after the transfer: %+v", st)
			}
			if st.Faults != st.Fault.Count && tc.kernelPage == 4096 {
				t.Errorf("%d faults, %d measured", st.Faults, st.Fault.Count)
			}
			t.Logf("%+v", st)
			// The memory is an ordinary one now, also beyond its old end.
			checkHashes(t, mem, list, c.do(childRequest{Op: "hash", Pages: list}).Hashes)
			c.do(childRequest{Op: "write", Pages: pageList(pages, 64), Value: 7})
			for p := range pages {
				want, state := sink.Table().Get(PageNum(p))
				if state == Unknown || want != HashPage(mem[p*PageSize:(p+1)*PageSize]) {
					t.Fatalf("page %d is %v in the table", p, state)
				}
				if p > 64 {
					break
				}
			}
		})
	}
}

// What the worker writes while pages arrive is never overwritten.
func TestWritesWhilePagesArrive(t *testing.T) {
	const pages = 1024
	r := testRand(t)
	mem := testMemory(r, pages, 2)
	c := startArmable(t, pages)
	sink := armSink(t, c, pages, nil)
	var odd []PageNum
	for p := 1; p < pages; p += 2 {
		odd = append(odd, PageNum(p))
	}
	c.send(childRequest{Op: "write", Pages: odd, Value: 0xa5})
	src := newTestSource(t, mem, nil)
	wait, _ := runSink(t, sink, newPipes(t, src))
	c.reply()
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	src.Close() // until then it may look at its memory
	for _, p := range odd {
		mem[int(p)*PageSize] = 0xa5
	}
	list := pageList(0, pages)
	checkHashes(t, mem, list, c.do(childRequest{Op: "hash", Pages: list}).Hashes)
}

// breaking breaks a stream after some bytes.
type breaking struct {
	net.Conn
	left *atomic.Int64
}

func (b *breaking) Read(p []byte) (int, error) {
	if b.left.Load() <= 0 {
		b.Conn.Close()
		return 0, errTest
	}
	if n := b.left.Load(); int64(len(p)) > n {
		p = p[:n]
	}
	n, err := b.Conn.Read(p)
	b.left.Add(int64(-n))
	return n, err
}

// Streams that break in the middle are dialled again, and what had arrived is
// not sent twice.
func TestBrokenStreams(t *testing.T) {
	const pages = 1024
	r := testRand(t)
	mem := testMemory(r, pages, 1)
	c := startArmable(t, pages)
	src := newTestSource(t, mem, nil)
	p := newPipes(t, src)
	p.wrap = func(bulk bool, conn net.Conn) io.ReadWriteCloser {
		left := new(atomic.Int64)
		left.Store(int64(300_000))
		if !bulk {
			left.Store(int64(60_000))
		}
		return &breaking{conn, left}
	}
	sink := armSink(t, c, pages, nil)
	list := pageList(0, pages)
	c.send(childRequest{Op: "threads", Pages: list, Number: 3, Seed: 1})
	wait, _ := runSink(t, sink, p)
	checkHashes(t, mem, list, c.reply().Hashes)
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	st := sink.Stats()
	if st.Redials == 0 {
		t.Error("no stream was dialled again")
	}
	// Each break loses at most what was on the way.
	sent := src.Stats()
	if most := uint64(pages) + st.Redials*(bulkRun+maxRun); sent.BulkPages+sent.DemandPages > most {
		t.Errorf("%d pages sent with %d redials, at most %d expected", sent.BulkPages+sent.DemandPages, st.Redials, most)
	}
	t.Logf("%+v %+v", st, sent)
}

// With both streams whole, no page crosses twice.
func TestNothingTwice(t *testing.T) {
	const pages = 2048
	r := testRand(t)
	mem := testMemory(r, pages, 0)
	c := startArmable(t, pages)
	src := newTestSource(t, mem, nil)
	sink := armSink(t, c, pages, nil)
	list := pageList(0, pages)
	c.send(childRequest{Op: "threads", Pages: list, Number: 2, Seed: 1})
	wait, _ := runSink(t, sink, newPipes(t, src))
	c.reply()
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	st := sink.Stats()
	if got := st.DemandPages + st.BulkPages + st.ZeroPages; st.Duplicates > 64 || got > pages {
		t.Errorf("%d pages of %d, %d twice", got, pages, st.Duplicates)
	}
}

// A page whose bytes are not those of its name fails the transfer, and who
// waits for it waits on.
func TestCorruptPage(t *testing.T) {
	const pages = 64
	r := testRand(t)
	mem := testMemory(r, pages, 0)
	c := startArmable(t, pages)
	const bad = 17
	// Not a copy of a page beside it, whose bytes would do for it too.
	copy(mem[bad*PageSize:], "a page like no other")
	other := append([]byte(nil), mem...)
	other[bad*PageSize+99] ^= 1
	names := NewTable(pages)
	for p := range pages {
		names.SetName(PageNum(p), HashPage(mem[p*PageSize:(p+1)*PageSize]))
	}
	// The source believes its table, and has another content.
	src := newTestSource(t, other, func(cfg *SourceConfig) { cfg.Table = names })
	sink := armSink(t, c, pages, nil)
	c.send(childRequest{Op: "hash", Pages: []PageNum{bad}})
	wait, _ := runSink(t, sink, newPipes(t, src))
	err := wait()
	var pe *PageError
	if !errors.As(err, &pe) || !errors.Is(err, ErrContent) {
		t.Fatalf("got %v, want a PageError", err)
	}
	want, _ := names.Get(bad)
	if pe.Page != bad || pe.Worker != "w" || pe.Want != want || pe.Got != HashPage(other[bad*PageSize:][:PageSize]) {
		t.Errorf("got %+v", pe)
	}
	if !sink.Stats().Armed {
		t.Error("memory is not armed any more: the worker would read zeroes")
	}
	// The child answers only after the page came, from a source that has it.
	wait, _ = runSink(t, sink, newPipes(t, newTestSource(t, mem, nil)))
	checkHashes(t, mem, []PageNum{bad}, c.reply().Hashes)
	if err := wait(); err != nil {
		t.Fatal(err)
	}
}

// The path stays broken: Run gives up in time, the worker waits, and a second
// Run goes on where the first stopped.
func TestPathBroken(t *testing.T) {
	const pages = 1024
	r := testRand(t)
	mem := testMemory(r, pages, 0)
	c := startArmable(t, pages)
	src := newTestSource(t, mem, nil)
	p := newPipes(t, src)
	// More than both streams can hold in frames that are cut short, so that
	// some pages arrive, and less than all pages.
	left := new(atomic.Int64)
	left.Store(3 * maxRun * PageSize)
	p.wrap = func(bulk bool, conn net.Conn) io.ReadWriteCloser { return &breaking{conn, left} }
	p.fail = func(bool) error {
		if left.Load() <= 0 {
			return errTest
		}
		return nil
	}
	sink := armSink(t, c, pages, func(cfg *SinkConfig) { cfg.PathLimit = 300 * time.Millisecond })
	list := pageList(0, pages)
	c.send(childRequest{Op: "hash", Pages: list})
	wait, _ := runSink(t, sink, p)
	err := wait()
	var pe *PathError
	if !errors.As(err, &pe) || !errors.Is(err, errTest) {
		t.Fatalf("got %v, want a PathError", err)
	}
	missing := sink.Missing()
	if pe.Missing == 0 || missing == 0 || missing == pages {
		t.Errorf("%d pages missing, error says %d", missing, pe.Missing)
	}
	left.Store(1 << 40)
	wait, _ = runSink(t, sink, p)
	checkHashes(t, mem, list, c.reply().Hashes)
	if err := wait(); err != nil {
		t.Fatal(err)
	}
}

func TestGone(t *testing.T) {
	const pages = 64
	mem := testMemory(testRand(t), pages, 0)
	t.Run("closed", func(t *testing.T) {
		c := startArmable(t, pages)
		src := newTestSource(t, mem, nil)
		src.Close()
		wait, _ := runSink(t, armSink(t, c, pages, nil), newPipes(t, src))
		if err := wait(); !errors.Is(err, ErrGone) {
			t.Errorf("got %v, want %v", err, ErrGone)
		}
	})
	t.Run("epoch", func(t *testing.T) {
		c := startArmable(t, pages)
		src := newTestSource(t, mem, func(cfg *SourceConfig) { cfg.Epoch = 4 })
		wait, _ := runSink(t, armSink(t, c, pages, nil), newPipes(t, src))
		if err := wait(); !errors.Is(err, ErrGone) {
			t.Errorf("got %v, want %v", err, ErrGone)
		}
	})
}

// Faults on pages that are known to be zero, or whose content the store has,
// need no source at all.
func TestLocalFaults(t *testing.T) {
	const pages = 512
	r := testRand(t)
	mem := testMemory(r, pages, 0)
	clear(mem[100*PageSize : 400*PageSize])
	c := startArmable(t, pages)
	store := NewStore(16 << 20)
	table := NewTable(pages)
	for p := range pages {
		table.SetName(PageNum(p), store.Put(mem[p*PageSize:(p+1)*PageSize]))
	}
	sink := armSink(t, c, pages, func(cfg *SinkConfig) { cfg.Store, cfg.Table = store, table })
	list := pageList(0, pages)
	c.send(childRequest{Op: "threads", Pages: list, Number: 4})
	wait, _ := runSink(t, sink, failing{})
	checkHashes(t, mem, list, c.reply().Hashes)
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	if st := sink.Stats(); st.Demanded != 0 || st.BytesIn != 0 {
		t.Errorf("%+v", st)
	}
}

// failing is a Dialer without a path.
type failing struct{}

func (failing) Demand(context.Context) (io.ReadWriteCloser, error) { return nil, errTest }
func (failing) Bulk(context.Context) (io.ReadWriteCloser, error)   { return nil, errTest }

// A look at the memory before Arm would make zeroes of what is missing. Arm
// notices; so does the installation of a page after Arm.
func TestOccupied(t *testing.T) {
	const pages = 64
	mem := testMemory(testRand(t), pages, 0)
	for _, file := range []bool{false, true} {
		t.Run(fmt.Sprintf("before/file=%t", file), func(t *testing.T) {
			c := startArmable(t, pages)
			if !file {
				c.region.File = nil
			}
			cfg := SinkConfig{Worker: "w", Region: c.region, Size: pages * PageSize, Log: testLog(t)}
			c.region.Data[5*PageSize] = 1
			s, err := NewSink(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Arm(); !errors.Is(err, ErrOccupied) {
				t.Errorf("got %v, want %v", err, ErrOccupied)
			}
			cfg.Have = []Run{{4, 2}} // unless it is meant to be there
			if s, err = NewSink(cfg); err != nil {
				t.Fatal(err)
			}
			if err := s.Arm(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("after", func(t *testing.T) {
		c := startArmable(t, pages)
		s := armSink(t, c, pages, nil)
		c.region.Data[5*PageSize] = 1
		wait, _ := runSink(t, s, newPipes(t, newTestSource(t, mem, nil)))
		err := wait()
		var pe *PageError
		if !errors.As(err, &pe) || !errors.Is(err, ErrOccupied) || pe.Page != 5 {
			t.Errorf("got %v, want %v at page 5", err, ErrOccupied)
		}
	})
	t.Run("same", func(t *testing.T) {
		c := startArmable(t, pages)
		s := armSink(t, c, pages, nil)
		copy(c.region.Data[5*PageSize:6*PageSize], mem[5*PageSize:])
		wait, _ := runSink(t, s, newPipes(t, newTestSource(t, mem, nil)))
		if err := wait(); err != nil {
			t.Fatal(err)
		}
		list := pageList(0, pages)
		checkHashes(t, mem, list, c.do(childRequest{Op: "hash", Pages: list}).Hashes)
	})
}

// A worker that walks backward by strides gets the pages of its walk, each
// with the right bytes, and next to no others, with small pages of the kernel
// and with large ones.
func TestPagesBroughtAlong(t *testing.T) {
	for _, group := range []int{1, 4} {
		t.Run(fmt.Sprintf("kernel page=%dKiB", group*PageSize>>10), func(t *testing.T) {
			const pages, stride = 4096, 24
			mem := testMemory(testRand(t), pages, 0)
			c := startArmable(t, pages)
			sink := armSinkKernel(t, c, pages, group*PageSize, nil)
			src := newTestSource(t, mem, func(cfg *SourceConfig) { cfg.Share = NewBudget(1).Share("sink", 1) }) // no push
			wait, cancel := runSink(t, sink, newPipes(t, src))
			var list []PageNum
			for p := pages - stride; p > 0; p -= stride {
				list = append(list, PageNum(p))
			}
			checkHashes(t, mem, list, c.do(childRequest{Op: "hash", Pages: list}).Hashes)
			st := src.Stats()
			if least, most := uint64(len(list)), uint64((len(list)+aheadMost)*group); st.DemandPages < least || st.DemandPages > most {
				t.Errorf("%d pages sent for %d touches, want %d to %d", st.DemandPages, len(list), least, most)
			}
			c.kill()
			cancel()
			_ = wait()
		})
	}
}

// The runner is killed while pages arrive.
func TestRunnerGone(t *testing.T) {
	const pages = 4096
	mem := testMemory(testRand(t), pages, 0)
	c := startArmable(t, pages)
	sink := armSink(t, c, pages, nil)
	src := newTestSource(t, mem, func(cfg *SourceConfig) { cfg.Share = NewBudget(8<<20).Share("sink", 1) })
	wait, _ := runSink(t, sink, newPipes(t, src))
	waitFor(t, "first pages", func() bool { return sink.Stats().BulkPages > 0 })
	c.kill()
	if err := wait(); !errors.Is(err, ErrRunnerGone) {
		t.Errorf("got %v, want %v", err, ErrRunnerGone)
	}
}

// Arm twice, too late, or without the means is refused.
func TestArmRefused(t *testing.T) {
	c := startArmable(t, 64)
	s := armSink(t, c, 64, nil)
	if err := s.Arm(); err == nil {
		t.Error("armed twice")
	}
	r := c.region
	r.UFFD = -1
	s, err := NewSink(SinkConfig{Worker: "w", Region: r, Size: 64 * PageSize, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Arm(); !errors.Is(err, ErrUnsupported) {
		t.Errorf("got %v, want %v", err, ErrUnsupported)
	}
}
