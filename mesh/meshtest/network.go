// Package meshtest is a packet network that exists only in memory: hosts with
// addresses of their own, delay, loss, and links that can be cut. Its packet
// connections stand where a UDP socket would (mesh.Config.ListenPacket). All
// waiting is on timers and channels, so it runs in a testing/synctest bubble.
package meshtest

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

const (
	// maxPacket is the largest packet the network carries, in bytes; larger
	// ones vanish, as on a path with that MTU. 1,452 is what an Ethernet of
	// 1,500 leaves for UDP over IPv6.
	maxPacket = 1452
	// maxQueue is how many packets may be under way to one socket.
	maxQueue = 8192
)

// A Network connects sockets. The zero value is not ready; use [NewNetwork].
// Safe for concurrent use.
type Network struct {
	mu    sync.Mutex
	socks map[netip.AddrPort]*Conn
	cut   map[[2]netip.Addr]bool
	delay time.Duration
	links map[[2]netip.Addr]time.Duration // delays of their own
	loss  float64
	rng   *rand.Rand
	seq   uint64
	port  uint16
}

// NewNetwork returns a network without delay or loss. The seed decides which
// packets are lost once [Network.SetLoss] is called.
func NewNetwork(seed uint64) *Network {
	return &Network{
		socks: make(map[netip.AddrPort]*Conn),
		cut:   make(map[[2]netip.Addr]bool),
		links: make(map[[2]netip.Addr]time.Duration),
		rng:   rand.New(rand.NewPCG(seed, seed)),
		port:  40000,
	}
}

// SetDelay sets how long packets are under way, one way, between hosts of
// which nothing else was said.
func (n *Network) SetDelay(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delay = d
}

// SetLinkDelay sets how long packets between two hosts are under way, one way.
func (n *Network) SetLinkDelay(a, b netip.Addr, d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.links[link(a, b)] = d
}

// SetLoss sets the share of packets that are lost, 0 to 1.
func (n *Network) SetLoss(share float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loss = share
}

func link(a, b netip.Addr) [2]netip.Addr {
	if b.Less(a) {
		a, b = b, a
	}
	return [2]netip.Addr{a, b}
}

// Cut drops everything between two hosts, both ways, until [Network.Heal].
func (n *Network) Cut(a, b netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[link(a, b)] = true
}

// Heal restores what Cut cut.
func (n *Network) Heal(a, b netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.cut, link(a, b))
}

// Host returns a function like net.ListenPacket for a host with the address
// ip: it binds that address whatever host the caller names.
func (n *Network) Host(ip netip.Addr) func(network, address string) (net.PacketConn, error) {
	return func(_, address string) (net.PacketConn, error) {
		_, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		var p uint16
		if _, err := fmt.Sscan(port, &p); err != nil {
			return nil, fmt.Errorf("listen %s: port %q", address, port)
		}
		return n.Listen(netip.AddrPortFrom(ip, p))
	}
}

// Listen binds a socket. Port 0 means any free one.
func (n *Network) Listen(a netip.AddrPort) (*Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if a.Port() == 0 {
		n.port++
		a = netip.AddrPortFrom(a.Addr(), n.port)
	}
	if n.socks[a] != nil {
		return nil, fmt.Errorf("listen %v: address in use", a)
	}
	c := &Conn{net: n, addr: a, arrived: make(chan struct{}, 1), closed: make(chan struct{}), deadlineSet: make(chan struct{}, 1)}
	n.socks[a] = c
	return c, nil
}

// A Conn is a socket on a [Network]. It implements net.PacketConn.
type Conn struct {
	net *Network

	// Guarded by net.mu.
	addr     netip.AddrPort
	queue    packets
	deadline time.Time
	sent     Traffic

	arrived     chan struct{} // capacity 1: something was queued
	deadlineSet chan struct{} // capacity 1
	closeOnce   sync.Once
	closed      chan struct{}
}

type packet struct {
	at   time.Time
	seq  uint64
	from netip.AddrPort
	b    []byte
}

type packets []packet

func (p packets) Len() int { return len(p) }
func (p packets) Less(i, j int) bool {
	if !p[i].at.Equal(p[j].at) {
		return p[i].at.Before(p[j].at)
	}
	return p[i].seq < p[j].seq
}
func (p packets) Swap(i, j int) { p[i], p[j] = p[j], p[i] }
func (p *packets) Push(x any)   { *p = append(*p, x.(packet)) }
func (p *packets) Pop() any {
	old := *p
	x := old[len(old)-1]
	*p = old[:len(old)-1]
	return x
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Move gives the socket another address, as when a device joins another
// network. What is under way to the old one is lost.
func (c *Conn) Move(to netip.AddrPort) error {
	n := c.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.socks[to] != nil {
		return fmt.Errorf("move to %v: address in use", to)
	}
	delete(n.socks, c.addr)
	c.addr = to
	c.queue = nil
	n.socks[to] = c
	return nil
}

// WriteTo implements net.PacketConn. Like UDP it succeeds whatever becomes of
// the packet.
func (c *Conn) WriteTo(b []byte, to net.Addr) (int, error) {
	select {
	case <-c.closed:
		return 0, net.ErrClosed
	default:
	}
	u, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, fmt.Errorf("write to %v: not a UDP address", to)
	}
	dst := u.AddrPort()
	dst = netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())
	n := c.net
	n.mu.Lock()
	defer n.mu.Unlock()
	c.sent.Packets++
	c.sent.Bytes += uint64(len(b) + headers)
	peer := n.socks[dst]
	if peer == nil || len(b) > maxPacket || n.cut[link(c.addr.Addr(), dst.Addr())] ||
		n.loss > 0 && n.rng.Float64() < n.loss || len(peer.queue) >= maxQueue {
		return len(b), nil
	}
	delay, ok := n.links[link(c.addr.Addr(), dst.Addr())]
	if !ok {
		delay = n.delay
	}
	n.seq++
	heap.Push(&peer.queue, packet{at: time.Now().Add(delay), seq: n.seq, from: c.addr, b: append([]byte(nil), b...)})
	notify(peer.arrived)
	return len(b), nil
}

// headers is what IPv4 and UDP add to a packet on the wire, in bytes.
const headers = 20 + 8

// Traffic counts what a socket has sent since it was bound, the headers of
// IPv4 and UDP included, lost packets too.
type Traffic struct{ Packets, Bytes uint64 }

// Sent returns what the socket has sent so far.
func (c *Conn) Sent() Traffic {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	return c.sent
}

// ReadFrom implements net.PacketConn.
func (c *Conn) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		c.net.mu.Lock()
		now := time.Now()
		var wait time.Duration = -1
		if !c.deadline.IsZero() {
			if wait = c.deadline.Sub(now); wait <= 0 {
				c.net.mu.Unlock()
				return 0, nil, os.ErrDeadlineExceeded
			}
		}
		if len(c.queue) > 0 {
			d := c.queue[0].at.Sub(now)
			if d <= 0 {
				p := heap.Pop(&c.queue).(packet)
				c.net.mu.Unlock()
				return copy(b, p.b), net.UDPAddrFromAddrPort(p.from), nil
			}
			if wait < 0 || d < wait {
				wait = d
			}
		}
		c.net.mu.Unlock()
		var timer *time.Timer
		var due <-chan time.Time
		if wait >= 0 {
			timer = time.NewTimer(wait)
			due = timer.C
		}
		select {
		case <-due:
		case <-c.arrived:
		case <-c.deadlineSet:
		case <-c.closed:
			if timer != nil {
				timer.Stop()
			}
			return 0, nil, net.ErrClosed
		}
		if timer != nil {
			timer.Stop()
		}
	}
}

// Close implements net.PacketConn.
func (c *Conn) Close() error {
	c.closeOnce.Do(func() {
		close(c.closed)
		c.net.mu.Lock()
		defer c.net.mu.Unlock()
		if c.net.socks[c.addr] == c {
			delete(c.net.socks, c.addr)
		}
	})
	return nil
}

// LocalAddr implements net.PacketConn. It follows [Conn.Move].
func (c *Conn) LocalAddr() net.Addr {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	return net.UDPAddrFromAddrPort(c.addr)
}

// SetDeadline implements net.PacketConn.
func (c *Conn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetReadDeadline implements net.PacketConn.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.net.mu.Lock()
	c.deadline = t
	c.net.mu.Unlock()
	notify(c.deadlineSet)
	return nil
}

// SetWriteDeadline implements net.PacketConn; writes never block.
func (c *Conn) SetWriteDeadline(time.Time) error { return nil }
