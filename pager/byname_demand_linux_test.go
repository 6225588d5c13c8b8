package pager

import (
	"context"
	"io"
	"net"
	"testing"
	"time"
)

// silent is a Source that takes demands and answers none, as one behind a path
// that is lost.
type silent struct{}

func (silent) Demand(context.Context) (io.ReadWriteCloser, error) {
	here, there := net.Pipe()
	go func() { _, _ = io.Copy(io.Discard, there) }()
	return here, nil
}

func (silent) Bulk(context.Context) (io.ReadWriteCloser, error) { return nil, errTest }

// onDemand is a Peer that can only be asked for what somebody waits for.
func onDemand(p Peer, rtt time.Duration) Peer {
	p.Demand, p.RTT = p.Dial, rtt
	p.Dial = func(context.Context) (io.ReadWriteCloser, error) { return nil, errTest }
	return p
}

// What the worker waits for comes from a Peer if the Source does not answer: in
// time, or before that if the Peer is nearer.
func TestDemandedElsewhere(t *testing.T) {
	const pages = 64
	for _, tc := range []struct {
		name        string
		source, rtt time.Duration // the round trips to either
		kernel      int
	}{
		{"silence", 0, 0, 4096},
		{"large", 0, 0, 65536},
		// Its patience is hours.
		{"nearer", time.Hour, time.Minute, 4096},
	} {
		t.Run(tc.name, func(t *testing.T) {
			mem := testMemory(testRand(t), pages, 0)
			table := NewTable(pages)
			for p := range pages {
				table.SetName(PageNum(p), HashPage(mem[p*PageSize:][:PageSize]))
			}
			half := func(i int) Peer {
				return onDemand(named(t, "half", storeOf(mem, func(p int) bool { return p%2 == i })), tc.rtt)
			}
			c := startArmable(t, pages)
			sink := armSinkKernel(t, c, pages, tc.kernel, func(cfg *SinkConfig) {
				cfg.Table = table
				cfg.Peers = []Peer{onDemand(liar(t), tc.rtt), half(0), onDemand(refused, tc.rtt), half(1)}
				cfg.StallLimit = time.Hour
			})
			sink.rtt = tc.source
			list := pageList(0, pages)
			c.send(childRequest{Op: "threads", Pages: list, Number: 8, Seed: 7})
			wait, _ := runSink(t, sink, silent{})
			checkHashes(t, mem, list, c.reply().Hashes)
			if err := wait(); err != nil {
				t.Fatal(err)
			}
			if st := sink.Stats(); st.PeerPages != pages {
				t.Errorf("%d pages came from peers, want %d", st.PeerPages, pages)
			}
		})
	}
}

// Peers that are of no use do not keep the worker from what the Source brings.
func TestDemandedElsewhereInVain(t *testing.T) {
	const pages = 256
	mem := testMemory(testRand(t), pages, 0)
	table := NewTable(pages)
	for p := range pages {
		table.SetName(PageNum(p), HashPage(mem[p*PageSize:][:PageSize]))
	}
	src := newTestSource(t, mem, nil)
	c := startArmable(t, pages)
	sink := armSink(t, c, pages, func(cfg *SinkConfig) {
		cfg.Table = table
		cfg.Peers = []Peer{
			onDemand(liar(t), time.Minute), onDemand(stalled(t), time.Minute), onDemand(refused, time.Minute),
			onDemand(named(t, "none", NewStore(1<<20)), time.Minute),
		}
	})
	sink.rtt = time.Hour // they are asked at once
	list := pageList(0, pages)
	c.send(childRequest{Op: "threads", Pages: list, Number: 3, Seed: 7})
	wait, _ := runSink(t, sink, newPipes(t, src))
	checkHashes(t, mem, list, c.reply().Hashes)
	if err := wait(); err != nil {
		t.Fatal(err)
	}
}
