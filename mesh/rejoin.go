package mesh

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// rejoinWidth is how many nodes one round tries.
	rejoinWidth = 4
	// rejoinFast is the pause before the second round of a node that is alone;
	// it doubles from there to the ordinary interval.
	rejoinFast = 250 * time.Millisecond
)

// rejoinLoop brings this node together with whom it should know, for ever:
// memberlist itself never calls a dead node again, so two halves of a mesh
// would not find back together.
func (m *Mesh) rejoinLoop(ctx context.Context) {
	pause := rejoinFast
	for {
		tried := m.rejoin(ctx)
		wait := m.cfg.Gossip.RejoinInterval
		if tried && m.alone() && pause < wait {
			wait = pause
			pause *= 2
		} else if !m.alone() {
			pause = rejoinFast
		}
		// From half to one and a half, so that a mesh that lost its power does
		// not call in step.
		timer := time.NewTimer(wait/2 + rand.N(wait))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// alone reports whether no other member is alive.
func (m *Mesh) alone() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, ms := range m.members {
		if id != m.ms.ID && ms.state == Alive {
			return false
		}
	}
	return true
}

// rejoin tries some of those who are not alive here. It reports whether there
// were any.
func (m *Mesh) rejoin(ctx context.Context) bool {
	var calls []func(context.Context) error
	for _, s := range m.cfg.Seeds {
		if !m.seedAlive(s) {
			calls = append(calls, func(ctx context.Context) error { return m.callSeed(ctx, s) })
		}
	}
	absent := m.absent()
	rand.Shuffle(len(absent), func(i, j int) { absent[i], absent[j] = absent[j], absent[i] })
	for _, id := range absent[:min(len(absent), rejoinWidth)] {
		calls = append(calls, func(ctx context.Context) error { return m.meet(ctx, id) })
	}
	var wg sync.WaitGroup
	for _, call := range calls {
		wg.Go(func() {
			if err := call(ctx); err != nil && ctx.Err() == nil {
				m.noteRejoin(err)
			}
		})
	}
	wg.Wait()
	return len(calls) > 0
}

// noteRejoin logs why a call failed. What an operator must act on comes at a
// higher level, but not again and again.
func (m *Mesh) noteRejoin(err error) {
	if errors.Is(err, ErrForeignMesh) || errors.Is(err, ErrNotMesh) {
		m.t.gate.log(m.log, "cannot join", "err", err)
		return
	}
	m.log.Debug("not joined", "err", err)
}

// absent lists the nodes this one remembers and does not see alive.
func (m *Mesh) absent() []NodeID {
	m.mu.Lock()
	defer m.mu.Unlock()
	var ids []NodeID
	for id := range m.remembered {
		if ms := m.members[id]; ms == nil || ms.state != Alive {
			ids = append(ids, id)
		}
	}
	for id, ms := range m.members {
		// Who left on purpose comes back by itself.
		if _, ok := m.remembered[id]; !ok && ms.state == Dead && id != m.ms.ID {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// seedAlive reports whether the node last met at a seed is alive.
func (m *Mesh) seedAlive(seed string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	id, ok := m.seedNode[seed]
	if !ok {
		return false
	}
	ms := m.members[id]
	return id == m.ms.ID || ms != nil && ms.state == Alive
}

func (m *Mesh) callSeed(ctx context.Context, seed string) error {
	addrs, err := resolve(ctx, []string{seed})
	if err != nil {
		return fmt.Errorf("seed %s: %w", seed, err)
	}
	id, err := m.t.seed(ctx, addrs)
	if err != nil {
		return fmt.Errorf("seed %s: %w", seed, err)
	}
	m.mu.Lock()
	m.seedNode[seed] = id
	m.mu.Unlock()
	if id == m.ms.ID {
		return nil
	}
	return m.meet(ctx, id)
}

// meet exchanges states with a node. Where each side holds the other dead, the
// first exchange only makes both contradict, with a higher incarnation; the
// second makes that known.
func (m *Mesh) meet(ctx context.Context, id NodeID) error {
	if _, err := m.t.connect(ctx, id, Urgent); err != nil {
		return err
	}
	for range 2 {
		addr := netip.AddrPortFrom(gossipAddr(id), gossipPort)
		if _, err := m.ml.Join([]string{string(id) + "/" + addr.String()}); err != nil {
			return err
		}
		m.mu.Lock()
		ms := m.members[id]
		alive := ms != nil && ms.state == Alive
		m.mu.Unlock()
		if alive || ctx.Err() != nil {
			return nil
		}
	}
	return nil
}

// rememberInterval is how often at most what is known is written down.
const rememberInterval = 10 * time.Second

// rememberLoop writes down where members are, for the next start.
func (m *Mesh) rememberLoop(ctx context.Context) {
	// Soon after the start, for those who are killed young.
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			m.rememberPeers()
			return
		case <-timer.C:
			m.rememberPeers()
			timer.Reset(rememberInterval)
		}
	}
}

func (m *Mesh) rememberPeers() {
	m.mu.Lock()
	changed := m.peersChanged
	m.peersChanged = false
	alive := make(map[NodeID][]netip.AddrPort)
	for id, ms := range m.members {
		if id != m.ms.ID && ms.state == Alive {
			alive[id] = ms.record.Endpoints
		}
	}
	m.mu.Unlock()
	if !changed || len(alive) == 0 {
		return
	}
	for id, eps := range alive {
		// Where it is actually talked to may be in no record (a NAT).
		if ep, _ := m.t.status(id); ep.IsValid() {
			alive[id] = mergeEndpoints([]netip.AddrPort{ep}, eps...)
		}
	}
	if err := m.store.remember(alive, time.Now()); err != nil {
		m.log.Warn("peers not remembered", "err", err)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for id := range alive {
		if len(m.remembered) < maxRemembered {
			m.remembered[id] = struct{}{}
		}
	}
}
