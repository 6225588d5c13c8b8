package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/pager"
)

const (
	// modulePart is what is asked of a node at a time, in bytes.
	modulePart = 256 << 10
	// moduleAhead is how many parts a node is asked for before the first has
	// come: 1 MiB covers 200 Mbit/s for 40 ms.
	moduleAhead = 4
	// modulePatience is how long a node may take over a part.
	modulePatience = 10 * time.Second
	// moduleTries is how often a node is called again in vain.
	moduleTries = 4
	// moduleNodes is how many nodes are asked at once.
	moduleNodes = 4
)

// errNoModule means that a node does not have the module.
var errNoModule = errors.New("the module is not there")

// fetchModule makes sure that a module of size bytes is here, asking from and,
// at the same time, others that may have it. Nodes take the parts of it in
// turns, so the faster bring more, and what one of them leaves unfinished is
// fetched from the rest. If what came does not hash to h, from is asked alone,
// since nobody can tell who lied.
func (n *Node) fetchModule(ctx context.Context, from mesh.NodeID, others []mesh.NodeID, h pager.Hash, size int64) error {
	if _, ok := n.modules.have(h); ok {
		return nil
	}
	if size <= 0 || size > control.MaxModuleBytes {
		return fmt.Errorf("a module of %d bytes; the limit is %d", size, control.MaxModuleBytes)
	}
	nodes := []mesh.NodeID{from}
	for _, id := range others {
		if id != n.id && len(nodes) < moduleNodes && !slices.Contains(nodes, id) {
			nodes = append(nodes, id)
		}
	}
	err := n.gatherModule(ctx, nodes, h, size)
	if err != nil && len(nodes) > 1 && ctx.Err() == nil {
		n.log.Warn("module not had from several nodes", "module", h, "nodes", len(nodes), "error", err)
		err = n.gatherModule(ctx, nodes[:1], h, size)
	}
	return err
}

// moduleHomes lists nodes that run workers of a module.
func (n *Node) moduleHomes(h pager.Hash) (homes []mesh.NodeID) {
	for _, e := range n.dir.list() {
		if e.Module == h.String() && !ended(e.State) {
			homes = append(homes, e.Home)
		}
	}
	return homes
}

// reachable leaves of nodes those that gossip says are alive, other than this
// one and except.
func (n *Node) reachable(nodes []mesh.NodeID, except mesh.NodeID) (alive []mesh.NodeID) {
	for _, id := range nodes {
		if m, ok := n.mesh.Member(id); ok && m.State == mesh.Alive && id != n.id && id != except {
			alive = append(alive, id)
		}
	}
	return alive
}

// gatherModule fetches a module from several nodes and stores it.
func (n *Node) gatherModule(ctx context.Context, nodes []mesh.NodeID, h pager.Hash, size int64) error {
	f, err := os.CreateTemp(n.modules.dir, "parts-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g := newModuleGather(h, size, f)
	errs := make([]error, len(nodes))
	var asking sync.WaitGroup
	for i, id := range nodes {
		asking.Go(func() {
			brought, err := g.ask(ctx, func(ctx context.Context) (stream, error) {
				return n.openStream(ctx, id, protoModule, mesh.Bulk)
			})
			n.log.Debug("module asked for", "module", h, "node", n.nameOf(id), "parts", brought, "of", len(g.parts), "error", err)
			if errs[i] = err; err == nil {
				cancel() // all parts are there
			}
		})
	}
	asking.Wait()
	if !g.complete() {
		return errors.Join(errs...)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	_, _, err = n.modules.put(f, &h)
	return err
}

// A moduleGather is a module that is being fetched in parts. Safe for
// concurrent use.
type moduleGather struct {
	hash pager.Hash
	size int64
	file *os.File

	mu    sync.Mutex
	parts []modulePartState
	left  int           // parts that are not there
	wake  chan struct{} // closed and replaced at every change
}

type modulePartState struct {
	done bool
	by   int // who are being asked for it
}

func newModuleGather(h pager.Hash, size int64, f *os.File) *moduleGather {
	parts := (size + modulePart - 1) / modulePart
	return &moduleGather{
		hash: h, size: size, file: f, parts: make([]modulePartState, parts), left: int(parts), wake: make(chan struct{}),
	}
}

func (g *moduleGather) complete() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.left == 0
}

// ask asks a node for parts until all are there, which is nil. A broken stream
// is opened again, as long as that brings anything. brought counts parts that
// nobody else was faster with.
func (g *moduleGather) ask(ctx context.Context, dial func(context.Context) (stream, error)) (brought int, err error) {
	pause := 200 * time.Millisecond
	for failed := 0; ; {
		n, err := g.askOnce(ctx, dial)
		brought += n
		switch {
		case g.complete():
			return brought, nil
		case ctx.Err() != nil:
			return brought, context.Cause(ctx)
		case errors.Is(err, errNoModule):
			return brought, err
		case n > 0:
			failed = 0
		}
		if failed++; failed > moduleTries {
			return brought, err
		}
		select {
		case <-time.After(pause << failed):
		case <-ctx.Done():
		}
	}
}

// askOnce asks over one stream.
func (g *moduleGather) askOnce(ctx context.Context, dial func(context.Context) (stream, error)) (brought int, err error) {
	dctx, cancel := context.WithTimeout(ctx, modulePatience)
	s, err := dial(dctx)
	cancel()
	if err != nil {
		return 0, err
	}
	defer s.Close()
	defer context.AfterFunc(ctx, func() { interrupt(s) })()
	var asked []int
	defer func() { g.giveBack(asked) }()
	buf := make([]byte, modulePart)
	for {
		if err := s.SetDeadline(time.Now().Add(modulePatience)); err != nil {
			return brought, err
		}
		if ctx.Err() != nil { // its deadline must not be moved
			return brought, context.Cause(ctx)
		}
		for len(asked) < moduleAhead {
			part, wake := g.claim(asked)
			if part < 0 && len(asked) > 0 {
				break
			}
			if part < 0 {
				if g.complete() {
					return brought, nil
				}
				select {
				case <-wake:
				case <-ctx.Done():
					return brought, context.Cause(ctx)
				}
				break // the deadline has to be set anew
			}
			asked = append(asked, part)
			at, length := g.span(part)
			if err := mesh.WriteMessage(s, moduleWant{Hash: g.hash, Offset: at, Length: length}); err != nil {
				return brought, err
			}
		}
		if len(asked) == 0 {
			continue
		}
		var have moduleHave
		if err := mesh.ReadMessage(s, maxModuleMessage, &have); err != nil {
			return brought, err
		}
		switch {
		case have.Size < 0:
			return brought, errNoModule
		case have.Size != g.size:
			return brought, fmt.Errorf("%w as it was offered: %d bytes instead of %d", errNoModule, have.Size, g.size)
		}
		at, length := g.span(asked[0])
		if _, err := io.ReadFull(s, buf[:length]); err != nil {
			return brought, err
		}
		first, err := g.arrived(asked[0], buf[:length], at)
		if err != nil {
			return brought, err
		}
		asked = asked[1:]
		if first {
			brought++
		}
	}
}

// span returns where a part begins and how long it is, in bytes.
func (g *moduleGather) span(part int) (at, length int64) {
	at = int64(part) * modulePart
	return at, min(modulePart, g.size-at)
}

// claim chooses a part to ask for besides those asked: one that nobody was
// asked for, or, when there is none, one that is still on its way from only one
// other node, which may be slow. It is -1 if there is none.
func (g *moduleGather) claim(asked []int) (part int, wake <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for by := range 2 {
		for i, p := range g.parts {
			if !p.done && p.by == by && !slices.Contains(asked, i) {
				g.parts[i].by++
				return i, nil
			}
		}
	}
	return -1, g.wake
}

func (g *moduleGather) giveBack(asked []int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, i := range asked {
		g.parts[i].by--
	}
	g.wakeLocked()
}

// arrived stores a part and reports whether it is the first copy.
func (g *moduleGather) arrived(part int, b []byte, at int64) (first bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.parts[part].by--
	defer g.wakeLocked()
	if g.parts[part].done {
		return false, nil
	}
	if _, err := g.file.WriteAt(b, at); err != nil {
		g.parts[part].by++ // for giveBack
		return false, err
	}
	g.parts[part].done = true
	g.left--
	return true, nil
}

func (g *moduleGather) wakeLocked() {
	close(g.wake)
	g.wake = make(chan struct{})
}
