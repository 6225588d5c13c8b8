package pager

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// childEnv makes the test binary the other process: the one whose memory is
// moved.
const childEnv = "PAGER_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		childMain()
		return
	}
	lookTwice = true
	goleak.VerifyTestMain(m)
}

func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}

// testRand is seeded anew in each run, and says with what.
func testRand(t testing.TB) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// fixedRand is for tests of how well something does, as a figure: that depends
// on the seed a little, and some seed in many thousands would be past any limit.
func fixedRand() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }

// testMemory makes a memory in which about zero of ten pages are zero, some
// repeat the page before, and all others differ.
func testMemory(r *rand.Rand, pages, zero int) []byte {
	mem := make([]byte, pages*PageSize)
	for p := range pages {
		page := mem[p*PageSize : (p+1)*PageSize]
		switch {
		case r.IntN(10) < zero:
		case p > 0 && r.IntN(8) == 0:
			copy(page, mem[(p-1)*PageSize:])
		default:
			for i := 0; i < PageSize; i += 8 {
				v := r.Uint64()
				for j := range 8 {
					page[i+j] = byte(v >> (8 * j))
				}
			}
		}
	}
	return mem
}

// pipes is a Dialer that connects to a Source in this process.
type pipes struct {
	t   testing.TB
	ctx context.Context
	src *Source
	// wrap, if set, changes what the Sink reads and writes.
	wrap func(bulk bool, conn net.Conn) io.ReadWriteCloser
	// fail, if set, may refuse to dial.
	fail func(bulk bool) error

	serving sync.WaitGroup
	mu      sync.Mutex
	dials   [2]int
	errs    []error // of the Source
}

func newPipes(t testing.TB, src *Source) *pipes {
	p := &pipes{t: t, ctx: context.Background(), src: src}
	t.Cleanup(func() {
		p.src.Close()
		p.serving.Wait()
	})
	return p
}

func (p *pipes) Demand(ctx context.Context) (io.ReadWriteCloser, error) { return p.dial(false) }
func (p *pipes) Bulk(ctx context.Context) (io.ReadWriteCloser, error)   { return p.dial(true) }

func (p *pipes) dial(bulk bool) (io.ReadWriteCloser, error) {
	p.mu.Lock()
	if bulk {
		p.dials[1]++
	} else {
		p.dials[0]++
	}
	fail := p.fail
	p.mu.Unlock()
	if fail != nil {
		if err := fail(bulk); err != nil {
			return nil, err
		}
	}
	here, there := net.Pipe()
	p.serving.Go(func() {
		defer there.Close()
		if err := serveStream(p.ctx, p.src, there); err != nil {
			p.mu.Lock()
			p.errs = append(p.errs, err)
			p.mu.Unlock()
		}
	})
	if p.wrap != nil {
		return p.wrap(bulk, here), nil
	}
	return here, nil
}

// serveStream reads a Hello and serves the stream, as a node does.
func serveStream(ctx context.Context, src *Source, rw io.ReadWriter) error {
	stop := context.AfterFunc(ctx, func() { interrupt(rw) })
	hello, err := ReadHello(rw)
	if !stop() && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	return src.Serve(ctx, hello, rw)
}

func newTestSource(t testing.TB, mem []byte, change func(*SourceConfig)) *Source {
	t.Helper()
	cfg := SourceConfig{Worker: "w", Epoch: 3, Memory: mem, Log: testLog(t)}
	if change != nil {
		change(&cfg)
	}
	src, err := NewSource(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return src
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// waitFor waits until ok holds.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx := testContext(t)
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("timed out waiting for %s", what)
		case <-time.After(time.Millisecond):
		}
	}
}

// benchMemory fills a memory with pages that differ, and names them.
func benchMemory(pages int) ([]byte, *Table) {
	mem := make([]byte, pages*PageSize)
	table := NewTable(pages)
	r := rand.New(rand.NewPCG(1, 2))
	for p := range pages {
		page := mem[p*PageSize : (p+1)*PageSize]
		for i := 0; i < PageSize; i += 8 {
			page[i] = byte(r.Uint32())
		}
		page[0], page[1], page[2], page[3] = byte(p), byte(p>>8), byte(p>>16), 1
		table.SetName(PageNum(p), HashPage(page))
	}
	return mem, table
}

var errTest = errors.New("broken on purpose")

var quietLog = slog.New(slog.DiscardHandler)
