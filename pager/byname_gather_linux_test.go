package pager

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// storeOf keeps the pages of a memory for which in is true.
func storeOf(mem []byte, in func(p int) bool) *Store {
	s := NewStore(2 * int64(len(mem)))
	for p := range len(mem) / PageSize {
		if in(p) {
			s.Put(mem[p*PageSize : (p+1)*PageSize])
		}
	}
	return s
}

// named makes a Peer that has a store.
func named(t testing.TB, name string, s *Store) Peer {
	return Peer{Name: name, Dial: func(context.Context) (io.ReadWriteCloser, error) {
		here, there := net.Pipe()
		var serving sync.WaitGroup
		serving.Go(func() {
			defer there.Close()
			_ = ServeNamed(t.Context(), there, s, NamedLimits{}) // the asker leaves when it likes
		})
		t.Cleanup(serving.Wait)
		return here, nil
	}}
}

// stalled never answers; liar answers with pages of other content; refused is
// not there.
func stalled(t testing.TB) Peer {
	return Peer{Name: "stalled", Dial: func(context.Context) (io.ReadWriteCloser, error) {
		here, there := net.Pipe()
		t.Cleanup(func() { there.Close() })
		go func() { _, _ = io.Copy(io.Discard, there) }()
		return here, nil
	}}
}

func liar(t testing.TB) Peer {
	return Peer{Name: "liar", Dial: func(context.Context) (io.ReadWriteCloser, error) {
		here, there := net.Pipe()
		go func() {
			defer there.Close()
			for {
				var head [headBytes]byte
				if _, err := io.ReadFull(there, head[:]); err != nil {
					return
				}
				ask := make([]byte, int(head[3])<<8|int(head[4]))
				if _, err := io.ReadFull(there, ask); err != nil {
					return
				}
				b := appendNamedPages(nil, len(ask)/32, func(_ int, buf []byte) bool {
					copy(buf, bytes.Repeat([]byte("lies"), PageSize/4))
					return true
				})
				if _, err := there.Write(b); err != nil {
					return
				}
			}
		}()
		return here, nil
	}}
}

var refused = Peer{Name: "refused", Dial: func(context.Context) (io.ReadWriteCloser, error) { return nil, errors.New("nobody there") }}

// However Peers behave, the destination reads what the origin wrote last.
func TestRoundsPeers(t *testing.T) {
	const pages = 4096
	for _, tc := range []struct {
		name   string
		peers  func(t *testing.T, mem []byte) []Peer
		breaks bool
		had    bool // something is to come from them
	}{
		{"one", func(t *testing.T, mem []byte) []Peer {
			return []Peer{named(t, "all", storeOf(mem, func(int) bool { return true }))}
		}, false, true},
		{"halves", func(t *testing.T, mem []byte) []Peer {
			return []Peer{
				named(t, "even", storeOf(mem, func(p int) bool { return p%2 == 0 })),
				named(t, "odd", storeOf(mem, func(p int) bool { return p%2 == 1 })),
				named(t, "none", NewStore(1<<20)),
			}
		}, false, true},
		{"breaks", func(t *testing.T, mem []byte) []Peer {
			return []Peer{named(t, "all", storeOf(mem, func(int) bool { return true })), liar(t)}
		}, true, false},
		{"bad", func(t *testing.T, mem []byte) []Peer { return []Peer{stalled(t), liar(t), refused} }, false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := testRand(t)
			rt := &roundsTest{t: t, pages: pages, from: startArmable(t, pages), to: startArmable(t, pages), ran: make(chan error, 1)}
			rt.fill(r, 5)
			rt.peers = tc.peers(t, rt.from.region.Data)
			rt.share = NewBudget(20<<20).Share("to", 1)
			if tc.breaks {
				rt.wrap = func(conn net.Conn) io.ReadWriteCloser {
					left := new(atomic.Int64)
					left.Store(2 << 20)
					return &breaking{conn, left}
				}
			}
			rt.start(nil, nil, nil)
			for i := 0; !isClosed(rt.rounds.Settled()) || i < 20; i++ {
				var some []PageNum
				for range 40 {
					some = append(some, PageNum(r.IntN(pages/(1+i%4))))
				}
				rt.from.do(childRequest{Op: "write", Pages: some, Value: byte(i)})
			}
			src, sink := rt.finish(unix.Getpagesize())
			had := sink.Stats().PeerPages
			t.Logf("%d pages of peers\n%+v\n%+v\n%+v", had, rt.rounds.Stats(), src.Stats(), sink.Stats())
			if tc.had && had == 0 {
				t.Error("nothing came from peers")
			}
		})
	}
}

// Over a thin link most pages come from a node that has them, and few twice.
func TestRoundsPeersThin(t *testing.T) {
	const pages = 4096
	r := rand.New(rand.NewPCG(1, 2))
	rt := &roundsTest{t: t, pages: pages, from: startArmable(t, pages), to: startArmable(t, pages), ran: make(chan error, 1)}
	rt.fill(r, 0)
	rt.peers = []Peer{named(t, "all", storeOf(rt.from.region.Data, func(int) bool { return true }))}
	rt.share = NewBudget(1<<20).Share("to", 1)
	rt.start(nil, nil, nil)
	<-rt.rounds.Settled()
	_, sink := rt.finish(unix.Getpagesize())
	had, sent := sink.Stats().PeerPages, rt.rounds.Stats().Sent
	t.Logf("%d pages from a peer, %d from the source", had, sent)
	if had < pages*3/4 || had+sent > pages*9/8 {
		t.Errorf("%d pages from a peer, %d from the source, of %d", had, sent, pages)
	}
}

// After the commit Peers are asked as well, and however they behave the worker
// reads what it wrote.
func TestSinkPeers(t *testing.T) {
	const pages = 4096
	for _, tc := range []struct {
		name   string
		kernel int
		peers  func(t *testing.T, mem []byte) []Peer
		breaks bool
		had    bool // something is to come from them
	}{
		{"halves", 4096, func(t *testing.T, mem []byte) []Peer {
			return []Peer{
				named(t, "even", storeOf(mem, func(p int) bool { return p%2 == 0 })),
				named(t, "odd", storeOf(mem, func(p int) bool { return p%2 == 1 })),
				named(t, "none", NewStore(1<<20)),
			}
		}, false, true},
		{"large", 65536, func(t *testing.T, mem []byte) []Peer {
			return []Peer{named(t, "most", storeOf(mem, func(p int) bool { return p%5 > 0 }))}
		}, false, true},
		{"breaks", 4096, func(t *testing.T, mem []byte) []Peer {
			return []Peer{named(t, "all", storeOf(mem, func(int) bool { return true })), liar(t)}
		}, true, false},
		{"bad", 4096, func(t *testing.T, mem []byte) []Peer { return []Peer{stalled(t), liar(t), refused} }, false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := testRand(t)
			mem := testMemory(r, pages, 9)
			c := startArmable(t, pages)
			src := newTestSource(t, mem, func(cfg *SourceConfig) { cfg.Share = NewBudget(5<<20).Share("to", 1) })
			sink := armSinkKernel(t, c, pages, max(tc.kernel, unix.Getpagesize()), func(cfg *SinkConfig) { cfg.Peers = tc.peers(t, mem) })
			list := pageList(0, pages)
			c.send(childRequest{Op: "threads", Pages: list[:pages/8], Number: 3, Seed: r.Uint64()})
			p := newPipes(t, src)
			if tc.breaks {
				left := new(atomic.Int64)
				left.Store(2 << 20)
				p.wrap = func(bulk bool, conn net.Conn) io.ReadWriteCloser {
					if !bulk {
						return conn
					}
					return &breaking{conn, left}
				}
			}
			wait, _ := runSink(t, sink, p)
			checkHashes(t, mem, list[:pages/8], c.reply().Hashes)
			if err := wait(); err != nil {
				t.Fatal(err)
			}
			t.Logf("%+v\n%+v", src.Stats(), sink.Stats())
			checkHashes(t, mem, list, c.do(childRequest{Op: "hash", Pages: list}).Hashes)
			if tc.had && sink.Stats().PeerPages == 0 {
				t.Error("nothing came from peers")
			}
		})
	}
}

// Over a thin link most pages come from a node that has them, and few twice.
func TestSinkPeersThin(t *testing.T) {
	const pages = 4096
	src := newTestSource(t, testMemory(rand.New(rand.NewPCG(1, 2)), pages, 0), func(cfg *SourceConfig) { cfg.Share = NewBudget(1<<20).Share("to", 1) })
	sink, data := fillSink(t, pages, func(cfg *SinkConfig) {
		cfg.Peers = []Peer{named(t, "all", storeOf(src.mem, func(int) bool { return true }))}
	})
	if err := sink.Run(testContext(t), newPipes(t, src)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(data, src.mem) {
		t.Error("memory differs")
	}
	had, sent := sink.Stats().PeerPages, src.Stats().BulkPages
	t.Logf("%d pages from a peer, %d from the source", had, sent)
	if had < pages*3/4 || had+sent > pages*9/8 {
		t.Errorf("%d pages from a peer, %d from the source, of %d", had, sent, pages)
	}
}
