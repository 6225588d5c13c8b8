package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"

	"meshnode/mesh/meshtest"
)

// A simNode is a node on a network in memory, in a bubble of its own time, with
// the settings a real node has.
type simNode struct {
	*testNode
	ip   netip.Addr
	conn *meshtest.Conn
}

func simIP(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + i)}) }

func simStart(t *testing.T, nw *meshtest.Network, dir string, i int, opts ...func(*Config)) *simNode {
	t.Helper()
	n := &simNode{ip: simIP(i)}
	n.testNode = start(t, dir, fmt.Sprintf("n%d", i), append([]func(*Config){func(c *Config) {
		c.Gossip = Gossip{}
		c.Listen = ":7946"
		c.ListenPacket = func(network, address string) (net.PacketConn, error) {
			pc, err := nw.Host(n.ip)(network, address)
			if err == nil {
				n.conn = pc.(*meshtest.Conn)
			}
			return pc, err
		}
	}}, opts...)...)
	return n
}

// simMesh makes a mesh of n nodes. It must run in a bubble.
func simMesh(t *testing.T, nw *meshtest.Network, n int, opts ...func(*Config)) []*simNode {
	t.Helper()
	var nodes []*simNode
	for i := range n {
		dir := t.TempDir()
		if i == 0 {
			if _, err := Found(FoundConfig{Dir: dir}); err != nil {
				t.Fatal(err)
			}
		} else {
			tok := token(t, nodes[0].testNode, TokenRequest{})
			if _, err := Enrol(t.Context(), EnrolConfig{Dir: dir, Token: tok, ListenPacket: nw.Host(simIP(i))}); err != nil {
				t.Fatal(err)
			}
		}
		nodes = append(nodes, simStart(t, nw, dir, i, opts...))
	}
	simConverge(t, nodes...)
	return nodes
}

// within waits for cond in the bubble's time, which costs none of ours.
func within(t *testing.T, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	start := time.Now()
	for !cond() {
		<-tick.C
		if time.Since(start) > limit {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
	t.Logf("after %v: %s", time.Since(start), what)
}

func simConverge(t *testing.T, nodes ...*simNode) {
	t.Helper()
	within(t, time.Minute, "all see each other", func() bool {
		return !slices.ContainsFunc(nodes, func(n *simNode) bool {
			return slices.ContainsFunc(nodes, func(o *simNode) bool { return !n.sees(Alive, o.testNode) })
		})
	})
}

func simulate(t *testing.T, f func(t *testing.T, nw *meshtest.Network)) {
	const seed = 20
	synctest.Test(t, func(t *testing.T) {
		nw := meshtest.NewNetwork(seed)
		nw.SetDelay(5 * time.Millisecond)
		// Runs last: memberlist does not wait for its probes when it shuts
		// down, so they end a little later.
		t.Cleanup(func() { time.Sleep(time.Minute) })
		f(t, nw)
	})
}

// Two halves of a mesh hold each other dead, longer than memberlist remembers
// the dead, and find back together by themselves.
func TestPartitionHeals(t *testing.T) {
	for _, long := range []bool{false, true} {
		t.Run(fmt.Sprintf("long=%v", long), func(t *testing.T) {
			simulate(t, func(t *testing.T, nw *meshtest.Network) {
				nodes := simMesh(t, nw, 4)
				left, right := nodes[:2], nodes[2:]
				each := func(f func(a, b *simNode)) {
					for _, a := range left {
						for _, b := range right {
							f(a, b)
						}
					}
				}
				each(func(a, b *simNode) { nw.Cut(a.ip, b.ip) })
				within(t, 2*time.Minute, "the halves hold each other dead", func() bool {
					dead := true
					each(func(a, b *simNode) {
						dead = dead && a.sees(Dead, b.testNode) && b.sees(Dead, a.testNode)
					})
					return dead
				})
				if !left[0].sees(Alive, left[1].testNode) || !right[0].sees(Alive, right[1].testNode) {
					t.Error("a half fell apart")
				}
				if long {
					time.Sleep(10 * time.Minute) // the bubble's
				}
				each(func(a, b *simNode) { nw.Heal(a.ip, b.ip) })
				simConverge(t, nodes...)
			})
		})
	}
}

// A node that was cut off alone finds back too.
func TestLonerReturns(t *testing.T) {
	simulate(t, func(t *testing.T, nw *meshtest.Network) {
		nodes := simMesh(t, nw, 3)
		for _, n := range nodes[:2] {
			nw.Cut(n.ip, nodes[2].ip)
		}
		within(t, 2*time.Minute, "n2 is alone", func() bool {
			return nodes[2].sees(Dead, nodes[0].testNode, nodes[1].testNode) && nodes[0].sees(Dead, nodes[2].testNode)
		})
		for _, n := range nodes[:2] {
			nw.Heal(n.ip, nodes[2].ip)
		}
		simConverge(t, nodes...)
	})
}

// A live node that moves to another address keeps its place, its connections
// are made anew or follow, and nobody ever holds it dead.
func TestRoam(t *testing.T) {
	simulate(t, func(t *testing.T, nw *meshtest.Network) {
		nodes := simMesh(t, nw, 3)
		rover := nodes[2]
		for i := range 3 {
			if err := rover.conn.Move(netip.AddrPortFrom(simIP(100+i), 7000)); err != nil {
				t.Fatal(err)
			}
			for _, n := range nodes[:2] {
				within(t, 30*time.Second, "record has the new address", func() bool {
					m, _ := n.Member(rover.ID())
					return slices.Equal(m.Record.Endpoints, rover.Endpoints()) && rover.Endpoints()[0].Addr() == simIP(100+i)
				})
				within(t, 30*time.Second, "talks to the new address", func() bool {
					m, _ := n.Member(rover.ID())
					return m.State == Alive && m.Endpoint.Addr() == simIP(100+i)
				})
				if p, err := n.Ping(t.Context(), rover.ID()); err != nil || p.RTT != 10*time.Millisecond {
					t.Errorf("ping: %+v, %v", p, err)
				}
			}
		}
		for _, n := range nodes[:2] {
			if got := countEvents(n.testNode, "event=dead"); got != 0 {
				t.Errorf("%s held the rover dead %d times", n.Name(), got)
			}
		}
	})
}

// Streams to a node that moves go on where its connection can follow, and fail
// soon where it cannot, so that they can be opened anew.
func TestRoamUnderStream(t *testing.T) {
	for _, dialled := range []bool{true, false} {
		t.Run(fmt.Sprintf("dialledByRover=%v", dialled), func(t *testing.T) {
			simulate(t, func(t *testing.T, nw *meshtest.Network) {
				nodes := simMesh(t, nw, 2)
				rover, home := nodes[1], nodes[0]
				caller, callee := home, rover
				if dialled {
					caller, callee = rover, home
				}
				s, err := caller.Open(t.Context(), callee.ID(), protoEcho, Bulk)
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				echo := func() error {
					if _, err := s.Write(make([]byte, 8)); err != nil {
						return err
					}
					_, err := io.ReadFull(s, make([]byte, 8))
					return err
				}
				if err := echo(); err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				if err := rover.conn.Move(netip.AddrPortFrom(simIP(100), 7000)); err != nil {
					t.Fatal(err)
				}
				err = echo()
				if dialled && err != nil {
					t.Errorf("the rover's own connection did not follow it: %v", err)
				}
				if !dialled && (err == nil || !errors.Is(err, ErrUnreachable)) {
					t.Errorf("a connection to the rover's old address: %v", err)
				}
				if d := time.Since(start); d > defaultIdleTimeout {
					t.Errorf("took %v", d)
				}
				t.Logf("settled after %v: %v", time.Since(start), err)
				s2, err := caller.Open(t.Context(), callee.ID(), protoEcho, Bulk)
				if err != nil {
					t.Fatal(err)
				}
				s2.Write(make([]byte, 8))
				if _, err := io.ReadFull(s2, make([]byte, 8)); err != nil {
					t.Errorf("stream after the move: %v", err)
				}
				s2.Close()
			})
		})
	}
}

// A peer that answers late, on all connections, keeps the streams on the older
// ones.
func TestProbeOfBusyPeer(t *testing.T) {
	simulate(t, func(t *testing.T, nw *meshtest.Network) {
		nodes := simMesh(t, nw, 2)
		a, b := nodes[0], nodes[1]
		s, err := a.Open(t.Context(), b.ID(), protoEcho, Bulk)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		a.t.redial(b.ID(), Bulk)
		within(t, time.Second, "two connections", func() bool {
			a.t.mu.Lock()
			defer a.t.mu.Unlock()
			return len(a.t.peers[b.ID()].links[Bulk].conns) == 2
		})
		nw.SetDelay(2 * probeTimeout) // each way, less than the idle timeout
		time.Sleep(2 * reapInterval)  // the bubble's
		nw.SetDelay(5 * time.Millisecond)
		if _, err := s.Write(make([]byte, 8)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(s, make([]byte, 8)); err != nil {
			t.Errorf("the older connection after the peer was late: %v", err)
		}
	})
}

func countEvents(n *testNode, what string) int {
	return strings.Count(n.log.String(), what)
}

// Both sides call at the same moment, again and again; one connection stands,
// and no call fails.
func TestSimultaneousDial(t *testing.T) {
	simulate(t, func(t *testing.T, nw *meshtest.Network) {
		nodes := simMesh(t, nw, 2)
		for round := range 20 {
			type result struct {
				s   *Stream
				err error
			}
			results := make(chan result, 2)
			for i := range nodes {
				a, b := nodes[i], nodes[1-i]
				go func() {
					if i == round%2 {
						// From the same instant to a round trip apart.
						time.Sleep(time.Duration(round/2) * 2 * time.Millisecond)
					}
					s, err := a.Open(t.Context(), b.ID(), protoEcho, Bulk)
					if err == nil {
						s.Write(make([]byte, 8))
						_, err = io.ReadFull(s, make([]byte, 8))
					}
					results <- result{s, err}
				}()
			}
			for range nodes {
				if r := <-results; r.err != nil {
					t.Fatalf("round %d: %v", round, r.err)
				} else {
					r.s.Close()
				}
			}
			time.Sleep(2*reapInterval + time.Second) // the bubble's
			for i, n := range nodes {
				n.t.mu.Lock()
				l := &n.t.peers[nodes[1-i].ID()].links[Bulk]
				if len(l.conns) != 1 || l.dialing != nil {
					t.Errorf("round %d: node %d has %d connections", round, i, len(l.conns))
				}
				conns := slices.Clone(l.conns)
				n.t.mu.Unlock()
				for _, c := range conns {
					n.t.shut(c, closeNormal, "next round")
				}
			}
			within(t, time.Second, "connections are gone", func() bool {
				for i, n := range nodes {
					n.t.mu.Lock()
					k := len(n.t.peers[nodes[1-i].ID()].links[Bulk].conns)
					n.t.mu.Unlock()
					if k > 0 {
						return false
					}
				}
				return true
			})
		}
	})
}

// A peer gives up one of two connections while a ping is on its way by it: the
// ping goes by the one that remains.
func TestPingNotTaken(t *testing.T) {
	simulate(t, func(t *testing.T, nw *meshtest.Network) {
		nodes := simMesh(t, nw, 2)
		a, b := nodes[0], nodes[1]
		conns := func(n, other *simNode) []*conn {
			n.t.mu.Lock()
			defer n.t.mu.Unlock()
			return slices.Clone(n.t.peers[other.ID()].links[Urgent].conns)
		}
		within(t, time.Minute, "one connection", func() bool { return len(conns(a, b)) == 1 && len(conns(b, a)) == 1 })
		remains := conns(a, b)[0]
		a.t.redial(b.ID(), Urgent)
		within(t, time.Second, "two connections", func() bool { return len(conns(a, b)) == 2 && len(conns(b, a)) == 2 })
		given := conns(b, a)[1]
		var code quic.ApplicationErrorCode
		within(t, time.Second, "the later one is given up", func() (ok bool) {
			code, ok = given.retire()
			return ok
		})

		errs := make(chan error, 1)
		go func() {
			_, err := a.Ping(t.Context(), b.ID())
			errs <- err
		}()
		time.Sleep(100 * time.Millisecond) // the bubble's: the ping is there, and is not taken
		select {
		case err := <-errs:
			t.Fatalf("a ping on a connection that was given up ended with %v", err)
		default:
		}
		b.t.shut(given, code, "superseded")
		if err := <-errs; err != nil {
			t.Errorf("ping: %v", err)
		}
		if left := conns(a, b); !slices.Equal(left, []*conn{remains}) {
			t.Errorf("%d connections left, want the earlier one", len(left))
		}
	})
}

// Unused connections close by themselves; gossip keeps the urgent ones.
func TestIdleConnectionsClose(t *testing.T) {
	simulate(t, func(t *testing.T, nw *meshtest.Network) {
		nodes := simMesh(t, nw, 2)
		s, err := nodes[0].Open(t.Context(), nodes[1].ID(), protoEcho, Bulk)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * idleBulk)
		count := func(class Class) int {
			nodes[0].t.mu.Lock()
			defer nodes[0].t.mu.Unlock()
			return len(nodes[0].t.peers[nodes[1].ID()].links[class].conns)
		}
		if count(Bulk) != 1 {
			t.Error("a connection with a stream on it was closed")
		}
		s.Close()
		within(t, 2*idleBulk, "the unused connection closes", func() bool { return count(Bulk) == 0 })
		if count(Urgent) != 1 {
			t.Error("the urgent connection was closed")
		}
	})
}

// Gossip lives with loss.
func TestLoss(t *testing.T) {
	simulate(t, func(t *testing.T, nw *meshtest.Network) {
		nodes := simMesh(t, nw, 4)
		nw.SetLoss(0.05)
		time.Sleep(5 * time.Minute)
		for _, n := range nodes {
			if got := countEvents(n.testNode, "event=dead"); got != 0 {
				t.Errorf("%s held someone dead %d times at 5%% loss", n.Name(), got)
			}
		}
		simConverge(t, nodes...)
	})
}

// Calls to a peer that cannot be reached end, all with the same verdict.
func TestUnreachable(t *testing.T) {
	simulate(t, func(t *testing.T, nw *meshtest.Network) {
		nodes := simMesh(t, nw, 2)
		nw.Cut(nodes[0].ip, nodes[1].ip)
		_, err := nodes[0].Open(t.Context(), nodes[1].ID(), protoEcho, Bulk)
		if !errors.Is(err, ErrUnreachable) {
			t.Errorf("open to a peer that is cut off: %v, want %v", err, ErrUnreachable)
		}
		t.Log(err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := nodes[0].Open(ctx, nodes[1].ID(), protoEcho, Bulk); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("open with a deadline: %v", err)
		}
		within(t, time.Minute, "suspected before gossip is sure", func() bool {
			return nodes[0].sees(Suspect, nodes[1].testNode) || nodes[0].sees(Dead, nodes[1].testNode)
		})
	})
}

// A node that is killed and comes back at once, at the same address: streams
// to its earlier life fail as soon as something is sent, not at a timeout.
func TestRestartIsNoticed(t *testing.T) {
	simulate(t, func(t *testing.T, nw *meshtest.Network) {
		nodes := simMesh(t, nw, 2)
		s, err := nodes[0].Open(t.Context(), nodes[1].ID(), protoEcho, Bulk)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := s.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		nodes[1].fails = true
		nodes[1].conn.Close()
		nodes[1].stop()
		again := simStart(t, nw, nodes[1].dir, 1)
		start := time.Now()
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, ErrUnreachable) {
			t.Errorf("read from a node that was restarted: %v", err)
		}
		if d := time.Since(start); d > defaultKeepAlive+time.Second {
			t.Errorf("noticed after %v", d)
		}
		simConverge(t, nodes[0], again)
	})
}

// News of a node that is about to leave may be heard after its good-bye.
func TestByeBeforeNews(t *testing.T) {
	simulate(t, func(t *testing.T, nw *meshtest.Network) {
		nodes := simMesh(t, nw, 2)
		a, b := nodes[0], nodes[1]
		a.noteBye(b.ID())
		b.UpdateRecord(func(r *Record) { r.Load = 77 })
		within(t, time.Minute, "the news", func() bool {
			m, _ := a.Member(b.ID())
			return m.Record.Load == 77
		})
		b.fails = true
		b.conn.Close()
		b.stop()
		within(t, time.Minute, "b left", func() bool { return a.sees(Left, b.testNode) })
	})
}

// A larger mesh, all behind one another's first words.
func TestManyNodes(t *testing.T) {
	simulate(t, func(t *testing.T, nw *meshtest.Network) {
		nodes := simMesh(t, nw, 10)
		for _, n := range nodes[5:] {
			n.stop()
		}
		for _, n := range nodes[5:] {
			within(t, time.Minute, "left", func() bool { return nodes[0].sees(Left, n.testNode) && nodes[4].sees(Left, n.testNode) })
		}
		for i := 5; i < 10; i++ {
			nodes[i] = simStart(t, nw, nodes[i].dir, i)
		}
		simConverge(t, nodes...)
	})
}

// urgentConns counts the urgent connections a node has.
func (n *simNode) urgentConns() int {
	n.t.mu.Lock()
	defer n.t.mu.Unlock()
	k := 0
	for _, p := range n.t.peers {
		if p.links[Urgent].current() != nil {
			k++
		}
	}
	return k
}

// In a mesh of more nodes than each keeps connections, nobody takes anybody for
// dead, news reach everyone at once, and the connections do not grow to one for
// each pair.
func TestFewNeighbours(t *testing.T) {
	simulate(t, func(t *testing.T, nw *meshtest.Network) {
		const size, most = 14, 4
		// Probes leave connections behind; the fewer, the clearer the picture.
		calm := func(c *Config) { c.Gossip.ProbeInterval = 5 * time.Second }
		nodes := simMesh(t, nw, size, calm)
		for _, n := range nodes {
			n.t.mu.Lock()
			n.t.maxIdle, n.t.neighbours = most, 3
			n.t.mu.Unlock()
		}
		total := func() (sum int) {
			for _, n := range nodes {
				sum += n.urgentConns()
			}
			return sum
		}
		if got := total(); got < size*(size-1)*3/4 {
			t.Errorf("%d ends of connections at the start, want nearly %d", got, size*(size-1))
		}
		for minute := range 3 {
			time.Sleep(time.Minute)
			// Those kept, those made by probes in the last two intervals, in both
			// directions, and some that only the other end has closed.
			if got := total(); got > size*(most+4) {
				t.Errorf("minute %d: %d ends of connections at %d nodes", minute, got, size)
			}
			n := nodes[minute]
			load := uint8(10 + minute)
			n.UpdateRecord(func(r *Record) { r.Load = load })
			within(t, 2*time.Second, "the load is known everywhere", func() bool {
				return !slices.ContainsFunc(nodes, func(o *simNode) bool {
					m, ok := o.Member(n.ID())
					return !ok || m.Record.Load != load
				})
			})
		}
		for _, n := range nodes {
			if got := countEvents(n.testNode, "event=dead"); got != 0 {
				t.Errorf("%s held someone dead %d times", n.Name(), got)
			}
		}
		t.Logf("%d ends of connections in the end", total())
		// One that dies without a word is noticed, and one that is killed and
		// comes back is welcome.
		gone := nodes[size-1]
		gone.fails = true
		gone.conn.Close()
		gone.stop()
		within(t, 5*time.Minute, "the loss is noticed everywhere", func() bool {
			return !slices.ContainsFunc(nodes[:size-1], func(o *simNode) bool { return !o.sees(Dead, gone.testNode) })
		})
		nodes[size-1] = simStart(t, nw, gone.dir, size-1, calm)
		simConverge(t, nodes...)
	})
}
