package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/node/runner"
	"meshnode/pager"
)

// protoWarm asks a node to fetch and compile a module that a worker may soon
// bring, so that the move does neither when time is short: a warmWant, answered
// by a warmDone. It is asked of the node to which a worker that is not content
// would go first. Nothing depends on it; a node that has something else to do
// says so.
const protoWarm = "warm"

type warmWant struct {
	Module pager.Hash `cbor:"1,keyasint"`
	Bytes  int64      `cbor:"2,keyasint"`
	// MemoryLimit is the worker's, in bytes, and Kind how it runs: a module is
	// rewritten for that.
	MemoryLimit uint64      `cbor:"3,keyasint"`
	Kind        runner.Kind `cbor:"4,keyasint,omitempty"`
}

type warmDone struct {
	Error string `cbor:"1,keyasint,omitempty"` // why it is not
}

// maxWarmMessage bounds both, in bytes.
const maxWarmMessage = 1 << 10

// warmAgain is how long the node that a worker has asked is not asked again.
const warmAgain = 10 * time.Minute

func (w *warmWant) validate() error {
	if w.Bytes <= 0 || w.Bytes > control.MaxModuleBytes || w.MemoryLimit < wasmPage || w.MemoryLimit > runner.MaxMemory || w.Kind > runner.CommandWorker {
		return fmt.Errorf("a module of %d bytes, with up to %d of memory, of kind %d", w.Bytes, w.MemoryLimit, w.Kind)
	}
	return nil
}

// warm has a node make ready for a worker of this one, in the background, unless
// it was the last to be asked.
func (n *Node) warm(w *worker, to mesh.NodeID) {
	p := &w.place
	now := time.Now()
	p.mu.Lock()
	asked := p.warm == to && now.Before(p.warmUntil)
	if !asked {
		p.warm, p.warmUntil = to, now.Add(warmAgain)
	}
	p.mu.Unlock()
	if asked {
		return
	}
	n.tasks.Go(func() {
		err := n.askWarm(to, warmWant{Module: w.Module, Bytes: w.ModuleBytes, MemoryLimit: w.MemoryLimit, Kind: w.kind()})
		if n.ctx.Err() != nil {
			return
		}
		if err == nil {
			p.mu.Lock()
			p.warmed = to
			p.mu.Unlock()
			return
		}
		n.log.Debug("node not ready for a worker", "worker", w.ID, "node", to, "error", err)
		p.mu.Lock()
		if p.warm == to {
			p.warmUntil = time.Now().Add(restInterval)
		}
		p.mu.Unlock()
	})
}

func (n *Node) askWarm(to mesh.NodeID, want warmWant) error {
	ctx, cancel := context.WithTimeout(n.ctx, prepareTimeout)
	defer cancel()
	var done warmDone
	err := n.mesh.Request(ctx, to, protoWarm, mesh.Bulk, func(s *mesh.Stream) error {
		if err := mesh.WriteMessage(s, want); err != nil {
			return err
		}
		return mesh.ReadMessage(s, maxWarmMessage, &done)
	})
	if err != nil {
		return err
	}
	if done.Error != "" {
		return fmt.Errorf("node %s: %.200q", n.nameOf(to), done.Error)
	}
	return nil
}

// serveWarm answers a warmWant.
func (n *Node) serveWarm(ctx context.Context, s *mesh.Stream) {
	ctx, cancel := context.WithTimeout(ctx, prepareTimeout)
	defer cancel()
	_ = s.SetDeadline(time.Now().Add(prepareTimeout))
	var want warmWant
	if err := mesh.ReadMessage(s, maxWarmMessage, &want); err != nil {
		return
	}
	var done warmDone
	if err := n.makeWarm(ctx, s.Peer(), &want); err != nil {
		n.log.Debug("module not made ready", "module", want.Module, "peer", s.Peer(), "error", err)
		done.Error = err.Error()[:min(len(err.Error()), maxWarmMessage/2)]
	}
	if err := mesh.WriteMessage(s, done); err != nil {
		n.log.Debug("answer not sent", "peer", s.Peer(), "error", err)
	}
}

// makeWarm fetches a module from a node and compiles it, by a runner that is
// ended then and leaves the processors to whoever else wants them. Only one at a
// time.
func (n *Node) makeWarm(ctx context.Context, from mesh.NodeID, want *warmWant) error {
	if err := want.validate(); err != nil {
		return err
	}
	if n.closed() {
		return n.errClosed()
	}
	if n.memoryFree() < want.MemoryLimit {
		return fmt.Errorf("no room for the worker: %d bytes", want.MemoryLimit)
	}
	select {
	case n.warming <- struct{}{}:
	default:
		return errors.New("another module is being made ready")
	}
	defer func() { <-n.warming }()
	if err := n.fetchModule(ctx, from, n.reachable(n.moduleHomes(want.Module), from), want.Module, want.Bytes); err != nil {
		return err
	}
	r, err := runner.Start(ctx, runner.Config{
		Exe: n.cfg.Exe, ModulePath: n.modules.path(want.Module), CacheDir: n.cfg.CacheDir, MemoryLimit: want.MemoryLimit,
		Kind: want.Kind, Interpreter: n.cfg.Interpreter, Background: true, Logger: n.log,
	})
	if err != nil {
		return err
	}
	return r.Close()
}
