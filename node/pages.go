package node

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"meshnode/mesh"
	"meshnode/node/runner"
	"meshnode/pager"
)

// Streams of pages are dialled by the destination: one for what the worker
// waits for, one for the rest, on connections of their own.
const (
	protoDemand = "demand"
	protoBulk   = "bulk"
)

const (
	wasmPage = runner.WasmPage
	// maxStoreBytes bounds how much of the memory of workers that have left is
	// kept, so that one that comes back finds it; a small machine keeps a
	// sixteenth of its memory at most.
	maxStoreBytes = 256 << 20
	// pushWeight is the weight of a worker that runs at its destination and
	// still has pages here.
	pushWeight = 4
)

// storeBytes returns how much memory the store of pages may take.
func storeBytes() int64 {
	if total, _ := memory(); total > 0 {
		return int64(min(maxStoreBytes, total/16))
	}
	return maxStoreBytes / 4
}

// frozenPages makes what serves a frozen worker's pages, and its page table as
// it travels to its new home. The names of pages are computed as they are sent, not now: now
// the worker stands still.
func (n *Node) frozenPages(w *worker, to mesh.NodeID, epoch uint64, size int64, zero, recent []pager.Run) (*pager.Source, []byte, error) {
	r := w.runner.Region()
	t := pager.NewTable(int(size / pager.PageSize))
	for _, run := range zero {
		t.Set(run, pager.Zero)
	}
	share := n.budget.Share(string(to), pushWeight)
	s, err := pager.NewSource(pager.SourceConfig{
		Worker: w.ID, Epoch: epoch, Memory: r.Data[:size], Table: t, Recent: recent, Share: share, Log: n.log,
	})
	if err != nil {
		share.Close()
		return nil, nil, err
	}
	return s, t.Append(nil), nil
}

// appendFrozen and parseFrozen put a frozen memory's size before its page table,
// for FROZEN: the memory may have grown since the offer.
//
//	size   uint64  // bytes, big endian
//	table  ...     // package pager
func appendFrozen(size int64, table []byte) []byte {
	return append(binary.BigEndian.AppendUint64(nil, uint64(size)), table...)
}

func parseFrozen(b []byte) (size int64, table []byte, err error) {
	if len(b) < 8 {
		return 0, nil, fmt.Errorf("page table of %d bytes", len(b))
	}
	n := binary.BigEndian.Uint64(b)
	if n > runner.MaxMemory || n%wasmPage != 0 {
		return 0, nil, fmt.Errorf("page table of a memory of %d bytes", n)
	}
	return int64(n), b[8:], nil
}

// servePages answers a destination that fetches pages, on either stream.
func (n *Node) servePages(ctx context.Context, s *mesh.Stream) {
	hello, err := pager.ReadHello(s)
	if err != nil {
		n.log.Debug("page stream without a hello", "peer", s.Peer(), "error", err)
		return
	}
	var src *pager.Source
	n.mu.Lock()
	for _, m := range n.outgoing {
		if m.spec.ID == hello.Worker && m.to == s.Peer() {
			src = m.serving()
		}
	}
	n.mu.Unlock()
	if src == nil {
		err := pager.Refuse(s, pager.CodeGone, fmt.Sprintf("node %s does not hold the worker's memory (any more)", n.name()))
		n.log.Info("page stream refused", "worker", hello.Worker, "peer", s.Peer(), "error", err)
		return
	}
	if err := src.Serve(ctx, hello, s); err != nil {
		n.log.Debug("page stream ended", "worker", hello.Worker, "peer", s.Peer(), "error", err)
	}
}

// storeFor returns the store if it may hold pages of a worker of that module:
// names ahead of bytes cost round trips, which must be worth it.
func (n *Node) storeFor(module pager.Hash) *pager.Store {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.kept[module] {
		return nil
	}
	return n.store
}

// newSink makes what takes a worker's pages.
func (m *moveIn) newSink(table []byte, size int64) (*pager.Sink, error) {
	t, rest, err := pager.ParseTable(table, int(size/pager.PageSize))
	if err != nil {
		return nil, fmt.Errorf("page table: %w", err)
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("page table: %d bytes too many", len(rest))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sink, err = pager.NewSink(pager.SinkConfig{
		Worker: m.offer.Worker, Epoch: m.offer.Epoch, Region: m.runner.Region(), Size: size,
		Table: t, Store: m.n.storeFor(m.spec.Module), Log: m.n.log,
		// The machine decides when a path has been broken for too long; this
		// is for one that breaks only for pages.
		PathLimit: 2 * m.n.cfg.DrainTimeout,
		OnFault:   func(d time.Duration) { m.n.metrics.fault.Observe(d.Seconds()) },
	})
	return m.sink, err
}

// A dialer opens streams to a source of pages.
type dialer struct {
	n  *Node
	to mesh.NodeID
}

func (d dialer) Demand(ctx context.Context) (io.ReadWriteCloser, error) {
	return d.n.mesh.Open(ctx, d.to, protoDemand, mesh.Urgent)
}

func (d dialer) Bulk(ctx context.Context) (io.ReadWriteCloser, error) {
	return d.n.mesh.Open(ctx, d.to, protoBulk, mesh.Bulk)
}
