package mesh

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"meshnode/mesh/meshtest"
)

// A crowd is a mesh of many nodes in this process: real nodes, QUIC and TLS
// included, with ordinary settings, over a network in memory. Only joining by
// token is left out: the founder's key signs everyone at once.
type crowd struct {
	nw      *meshtest.Network
	founder *Membership
	dir     string
	nodes   []*crowdNode
	stopAll context.CancelFunc
	ctx     context.Context
	running sync.WaitGroup
	failed  chan error
}

type crowdNode struct {
	*Mesh
	conn *meshtest.Conn
}

func newCrowd(dir string, delay time.Duration) (*crowd, error) {
	c := &crowd{nw: meshtest.NewNetwork(1), dir: dir, failed: make(chan error, 1)}
	c.nw.SetDelay(delay)
	c.ctx, c.stopAll = context.WithCancel(context.Background())
	var err error
	c.founder, err = Found(FoundConfig{Dir: filepath.Join(dir, "0")})
	return c, err
}

func crowdIP(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
}

const crowdPort = 7946

// add starts one node more, which knows the first.
func (c *crowd) add() (*crowdNode, error) {
	i := len(c.nodes)
	dir := filepath.Join(c.dir, fmt.Sprint(i))
	if i > 0 {
		id, err := prepareDir(dir)
		if err != nil {
			return nil, err
		}
		der, err := issueCert(c.founder.ca, c.founder.caKey, id.PublicKey(), peerCert{id: id.id, tier: Edge}, time.Now())
		if err != nil {
			return nil, err
		}
		if err := storeMembership(dir, c.founder.ca.Raw, der); err != nil {
			return nil, err
		}
	}
	n := &crowdNode{}
	ip := crowdIP(i + 1)
	cfg := Config{
		Dir: dir, Advertise: []string{netip.AddrPortFrom(ip, crowdPort).String()},
		Record: Record{Name: fmt.Sprint("n", i), Arch: "amd64", OS: "linux", Cores: 2, Engine: "compiler", Paging: "copy"},
		ListenPacket: func(network, address string) (net.PacketConn, error) {
			pc, err := c.nw.Host(ip)(network, address)
			if err == nil {
				n.conn = pc.(*meshtest.Conn)
			}
			return pc, err
		},
	}
	if i > 0 {
		cfg.Seeds = []string{netip.AddrPortFrom(crowdIP(1), crowdPort).String()}
	}
	m, err := New(cfg)
	if err != nil {
		return nil, err
	}
	n.Mesh = m
	c.nodes = append(c.nodes, n)
	c.running.Go(func() {
		if err := m.Run(c.ctx); err != nil {
			select {
			case c.failed <- err:
			default:
			}
		}
	})
	<-m.Ready()
	return n, nil
}

// stop ends all nodes.
func (c *crowd) stop() error {
	c.stopAll()
	c.running.Wait()
	select {
	case err := <-c.failed:
		return err
	default:
		return nil
	}
}

// ends counts the ends of connections that all nodes have.
func (c *crowd) ends() int {
	k := 0
	for _, n := range c.nodes {
		n.t.mu.Lock()
		for _, p := range n.t.peers {
			for i := range p.links {
				k += len(p.links[i].conns)
			}
		}
		n.t.mu.Unlock()
	}
	return k
}

func (c *crowd) sent() (sum meshtest.Traffic) {
	for _, n := range c.nodes {
		t := n.conn.Sent()
		sum.Bytes += t.Bytes
		sum.Packets += t.Packets
	}
	return sum
}

// A scale is what a mesh of some size costs and how fast news spread in it.
type scale struct {
	nodes   int
	bytes   float64       // sent by a node each second, IP and UDP headers included
	packets float64       // sent by a node each second
	conns   float64       // connections a node has
	memory  float64       // MiB of heap and stacks for each node
	join    time.Duration // the slowest of scaleJoins
	load    time.Duration // the slowest of scaleLoads
	typical time.Duration // the median of those
}

// Joins are measured one after the other, each with a load told right after it;
// then loads at intervals, long enough for every node to have told its place.
const (
	scaleJoins = 3
	scaleLoads = 30
	scalePause = 3 * time.Second
)

// Bounds that a mesh of any size keeps.
const (
	maxJoinTime = 5 * time.Second
	maxLoadTime = 2 * time.Second
	maxIdleRate = 30e3 // bytes a second; about what gossip's packets and the connections can come to
)

// TestScale says what a mesh of many nodes costs, in the third minute of its
// life, and how long it takes until a node that joins and a load that changes
// are known everywhere: the slowest of some. Time is the bubble's, so the
// figures are those of nodes on machines of their own, 10 ms of round trip
// apart, whatever this machine takes to compute them. It prints a row for each
// size in MESH_SCALE (numbers of nodes, divided by commas); without, it sees to
// it that small meshes keep the bounds. Six nodes are nine with those that join,
// the most for which memberlist passes news on only four times.
func TestScale(t *testing.T) {
	sizes := []int{6, 12}
	if env := os.Getenv("MESH_SCALE"); env != "" {
		sizes = nil
		for _, s := range strings.Split(env, ",") {
			n, err := strconv.Atoi(s)
			if err != nil || n < 2 || n > 4000 {
				t.Fatalf("MESH_SCALE=%q: want numbers of nodes, divided by commas", env)
			}
			sizes = append(sizes, n)
		}
	}
	table := "| nodes | join known | load known | half the loads | bytes/s each | packets/s each | connections each | MiB each |\n|---|---|---|---|---|---|---|---|\n"
	for _, size := range sizes {
		t.Run(fmt.Sprintf("nodes=%d", size), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				t.Cleanup(func() { time.Sleep(time.Minute) }) // memberlist's last probes
				s := measureScale(t, size)
				row := fmt.Sprintf("| %d | %.2f s | %.2f s | %.2f s | %.0f | %.1f | %.0f | %.1f |\n",
					s.nodes, s.join.Seconds(), s.load.Seconds(), s.typical.Seconds(), s.bytes, s.packets, s.conns, s.memory)
				table += row
				t.Log(row) // the next size may take an hour
				if s.join > maxJoinTime || s.load > maxLoadTime || s.bytes > maxIdleRate {
					t.Errorf("%+v: beyond %v until a join is known, %v until a load is, or %v bytes a second", s, maxJoinTime, maxLoadTime, maxIdleRate)
				}
			})
		})
	}
	t.Log("\n" + table)
}

func measureScale(t *testing.T, size int) scale {
	s := scale{nodes: size}
	c, err := newCrowd(t.TempDir(), 5*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.stop(); err != nil {
			t.Error(err)
		}
	}()
	until := func(what string, cond func(*crowdNode) bool) time.Duration {
		t.Helper()
		start := time.Now()
		for slices.ContainsFunc(c.nodes, func(n *crowdNode) bool { return !cond(n) }) {
			if time.Since(start) > 10*time.Minute {
				t.Fatalf("not within ten minutes: %s", what)
			}
			time.Sleep(10 * time.Millisecond)
		}
		return time.Since(start)
	}
	for range size {
		if _, err := c.add(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Logf("all know each other %v after the last joined", until("all know each other", func(n *crowdNode) bool { return n.Size() == size }))

	// Every node tells its record anew from time to time, as package node does.
	refresh := max(30*time.Second, time.Duration(size)*time.Second)
	ctx, stop := context.WithCancel(c.ctx)
	defer stop()
	for i, n := range c.nodes {
		c.running.Go(func() {
			next := time.NewTimer(time.Duration(i) * refresh / time.Duration(size))
			defer next.Stop()
			for free := uint32(1); ; free++ {
				select {
				case <-next.C:
				case <-ctx.Done():
					return
				}
				n.UpdateRecord(func(r *Record) { r.MemoryFree = free })
				next.Reset(refresh)
			}
		})
	}
	time.Sleep(2 * time.Minute)
	before, start := c.sent(), time.Now()
	time.Sleep(time.Minute)
	after, each := c.sent(), time.Since(start).Seconds()*float64(size)
	s.bytes, s.packets = float64(after.Bytes-before.Bytes)/each, float64(after.Packets-before.Packets)/each
	s.conns = float64(c.ends()) / float64(size)
	runtime.GC()
	var ms runtime.MemStats
	runtime.ReadMemStats(&ms)
	s.memory = float64(ms.HeapAlloc+ms.StackInuse) / (1 << 20) / float64(size)

	var loads []time.Duration
	for i := range scaleLoads {
		if i < scaleJoins {
			n, err := c.add()
			if err != nil {
				t.Fatal(err)
			}
			s.join = max(s.join, until("a join", func(o *crowdNode) bool {
				m, ok := o.Member(n.ID())
				return ok && m.State == Alive
			}))
		} else {
			time.Sleep(scalePause)
		}
		busy, load := c.nodes[i%len(c.nodes)], uint8(1+i)
		busy.UpdateRecord(func(r *Record) { r.Load = load })
		loads = append(loads, until("a load", func(o *crowdNode) bool {
			m, ok := o.Member(busy.ID())
			return ok && m.Record.Load == load
		}))
	}
	slices.Sort(loads)
	s.load, s.typical = loads[len(loads)-1], loads[len(loads)/2]
	return s
}
