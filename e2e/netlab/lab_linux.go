package netlab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ErrClosed means the lab was closed.
var ErrClosed = errors.New("lab closed")

// Config configures a lab.
type Config struct {
	// Name is part of the names of the nodes' network namespaces, and so must
	// be unique among the open labs of a process.
	Name string
	// Seed is where all random decisions come from.
	Seed uint64
}

// A Lab is a network of nodes and links. Its methods are safe for concurrent
// use, and a change is in force when the method returns.
type Lab struct {
	name string
	seed uint64

	commands chan func()
	wake     int // eventfd: there is something in commands
	done     chan struct{}
	failed   error // why the emulator stopped; read after done

	closing atomic.Bool

	mu    sync.Mutex
	nodes map[string]*Node

	// The emulator's own, only touched by its thread.
	engine *engine
	tuns   []int // by node index
	free   []*packet
	start  time.Time
	stop   bool
	// credit is how long it may poll instead of sleeping, in nanoseconds, as
	// of the time credited.
	credit, credited int64
	// refused counts packets that a node's kernel would not take, as it does
	// while its device is down.
	refused uint64
}

// A Node is a network namespace with one device, reached by the other nodes
// under Addr.
type Node struct {
	lab   *Lab
	name  string
	index int
	netns string
	tun   int

	mu    sync.Mutex
	addr  netip.Addr
	moves int
}

var nameRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$`)

// New opens a lab for one test or benchmark: it skips where labs are
// unavailable, logs the seed, and closes the lab at the end. The environment
// variable NETLAB_SEED repeats an earlier run's decisions.
func New(tb testing.TB) *Lab {
	tb.Helper()
	if err := Unavailable(); err != nil {
		tb.Skip(err)
	}
	seed, err := Seed()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Logf("NETLAB_SEED=%d", seed)
	lab, err := Open(Config{Name: "test" + strconv.FormatUint(labs.Add(1), 10), Seed: seed})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := lab.Close(); err != nil {
			tb.Error(err)
		}
	})
	return lab
}

var labs atomic.Uint64

// Seed is the seed in the environment variable NETLAB_SEED or, without one, a
// random seed.
func Seed() (uint64, error) {
	s := os.Getenv("NETLAB_SEED")
	if s == "" {
		return rand.Uint64(), nil
	}
	seed, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("NETLAB_SEED: %w", err)
	}
	return seed, nil
}

// Open makes a lab without nodes and starts its emulator, a thread of its own
// that runs until Close.
func Open(cfg Config) (*Lab, error) {
	if errUnavailable != nil {
		return nil, errUnavailable
	}
	if !nameRE.MatchString(cfg.Name) {
		return nil, fmt.Errorf("lab name %q: want letters, digits and any of _ . -", cfg.Name)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	l := &Lab{
		name: cfg.Name, seed: cfg.Seed,
		commands: make(chan func()),
		wake:     wake,
		done:     make(chan struct{}),
		nodes:    make(map[string]*Node),
		start:    time.Now(),
	}
	l.engine = newEngine(cfg.Seed, l.deliver, l.recycle)
	go func() {
		defer close(l.done)
		l.failed = l.emulate()
	}()
	return l, nil
}

// Close ends every process that still runs in one of the lab's nodes, stops
// the emulator and removes the nodes.
func (l *Lab) Close() error {
	if l.closing.Swap(true) {
		return nil
	}
	var errs []error
	l.mu.Lock()
	nodes := slices.Collect(maps.Values(l.nodes))
	l.mu.Unlock()
	for _, n := range nodes {
		errs = append(errs, n.KillAll())
	}
	l.do(func() { l.stop = true })
	<-l.done
	errs = append(errs, l.failed)
	for _, n := range nodes {
		unix.Close(n.tun)
		errs = append(errs, removeNetns(n.netns))
	}
	unix.Close(l.wake)
	return errors.Join(errs...)
}

// do runs f on the emulator's thread and waits for it.
func (l *Lab) do(f func()) error {
	ran := make(chan struct{})
	command := func() { f(); close(ran) }
	// The emulator looks at commands after each wake-up, so that the write
	// may come first only if it stays signalled until the command is taken:
	// see serve.
	if _, err := unix.Write(l.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil && err != unix.EAGAIN {
		select {
		case <-l.done:
			return errors.Join(ErrClosed, l.failed)
		default:
			return fmt.Errorf("wake the emulator: %w", err)
		}
	}
	select {
	case l.commands <- command:
		<-ran
		return nil
	case <-l.done:
		return errors.Join(ErrClosed, l.failed)
	}
}

// AddNode makes a node with an address in 10/8 and no links.
func (l *Lab) AddNode(name string) (*Node, error) {
	if !nameRE.MatchString(name) {
		return nil, fmt.Errorf("node name %q: want letters, digits and any of _ . -", name)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.nodes[name] != nil {
		return nil, fmt.Errorf("node %s is there already", name)
	}
	n := &Node{
		lab: l, name: name, index: len(l.nodes),
		netns: NetnsPrefix(l.name) + name,
	}
	if n.index >= 250 {
		return nil, fmt.Errorf("node %s: a lab has at most 250 nodes", name)
	}
	n.addr = n.nthAddr()
	if err := n.create(); err != nil {
		return nil, fmt.Errorf("node %s: %w", name, err)
	}
	if err := l.do(func() {
		if i := l.engine.addNode(); i != n.index {
			panic(fmt.Sprintf("netlab: node %s has index %d in the engine, not %d", name, i, n.index))
		}
		l.engine.addrs[n.addr] = n.index
		l.tuns = append(l.tuns, n.tun)
	}); err != nil {
		unix.Close(n.tun)
		return nil, errors.Join(err, removeNetns(n.netns))
	}
	l.nodes[name] = n
	return n, nil
}

// Node returns the node of that name, nil if there is none.
func (l *Lab) Node(name string) *Node {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.nodes[name]
}

// Nodes returns all nodes in the order of their making.
func (l *Lab) Nodes() []*Node {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.SortedFunc(maps.Values(l.nodes), func(a, b *Node) int { return a.index - b.index })
}

// Link joins two nodes, making those that are not there yet. p holds for
// either direction.
func (l *Lab) Link(a, b string, p Params) error {
	if a == b {
		return fmt.Errorf("link %s to itself", a)
	}
	if err := p.Validate(); err != nil {
		return fmt.Errorf("link %s %s: %w", a, b, err)
	}
	var ends [2]*Node
	for i, name := range []string{a, b} {
		ends[i] = l.Node(name)
		if ends[i] == nil {
			var err error
			if ends[i], err = l.AddNode(name); err != nil {
				return err
			}
		}
	}
	var err error
	return errors.Join(l.do(func() {
		if l.engine.wires[[2]int{ends[0].index, ends[1].index}] != nil {
			err = fmt.Errorf("link %s %s: there already", a, b)
			return
		}
		l.engine.addLink(ends[0].index, ends[1].index, p)
	}), err)
}

// SetLink changes a link in both directions: change is called with the
// parameters of each.
func (l *Lab) SetLink(a, b string, change func(*Params)) error {
	return errors.Join(l.SetWire(a, b, change), l.SetWire(b, a, change))
}

// SetWire changes a link in the direction from one node to the other.
func (l *Lab) SetWire(from, to string, change func(*Params)) error {
	return l.withWire(from, to, func(w *wire) error {
		p := w.p
		change(&p)
		if err := p.Validate(); err != nil {
			return err
		}
		l.engine.setParams(l.now(), w, p)
		return nil
	})
}

// Cut makes a link lose everything, what is under way on it included. Traffic
// does not go round it.
func (l *Lab) Cut(a, b string) error { return l.setCut(a, b, true) }

// Heal undoes Cut.
func (l *Lab) Heal(a, b string) error { return l.setCut(a, b, false) }

func (l *Lab) setCut(a, b string, cut bool) error {
	set := func(w *wire) error {
		l.engine.setCut(w, cut)
		return nil
	}
	return errors.Join(l.withWire(a, b, set), l.withWire(b, a, set))
}

// CutNode cuts all links of a node.
func (l *Lab) CutNode(name string) error { return l.setCutNode(name, true) }

// HealNode heals all links of a node.
func (l *Lab) HealNode(name string) error { return l.setCutNode(name, false) }

func (l *Lab) setCutNode(name string, cut bool) error {
	n := l.Node(name)
	if n == nil {
		return fmt.Errorf("no node %s", name)
	}
	return l.do(func() {
		for ends, w := range l.engine.wires {
			if ends[0] == n.index || ends[1] == n.index {
				l.engine.setCut(w, cut)
			}
		}
	})
}

// Stats returns the counters of a link in one direction.
func (l *Lab) Stats(from, to string) (WireStats, error) {
	var s WireStats
	err := l.withWire(from, to, func(w *wire) error {
		s = w.stats
		return nil
	})
	return s, err
}

// withWire runs f on the emulator's thread.
func (l *Lab) withWire(from, to string, f func(*wire) error) error {
	a, b := l.Node(from), l.Node(to)
	for name, n := range map[string]*Node{from: a, to: b} {
		if n == nil {
			return fmt.Errorf("no node %s", name)
		}
	}
	var err error
	doErr := l.do(func() {
		if w := l.engine.wires[[2]int{a.index, b.index}]; w != nil {
			err = f(w)
		} else {
			err = errors.New("no such link")
		}
	})
	if err := errors.Join(doErr, err); err != nil {
		return fmt.Errorf("link %s %s: %w", from, to, err)
	}
	return nil
}

// Readdress gives a node another address, as when a device roams: its old one
// is gone for its own sockets and for the others at once.
func (l *Lab) Readdress(name string) (netip.Addr, error) {
	n := l.Node(name)
	if n == nil {
		return netip.Addr{}, fmt.Errorf("no node %s", name)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.moves == 250 {
		return netip.Addr{}, fmt.Errorf("node %s has used up its addresses", name)
	}
	old := n.addr
	n.moves++
	addr := n.nthAddr()
	if err := l.do(func() {
		delete(l.engine.addrs, old)
		l.engine.addrs[addr] = n.index
	}); err != nil {
		return netip.Addr{}, err
	}
	n.addr = addr
	return addr, n.Do(func() error { return setAddr(nodeDevice, addr) })
}

// nthAddr is 10.0.<moves>.<index+1>.
func (n *Node) nthAddr() netip.Addr {
	return netip.AddrFrom4([4]byte{10, 0, byte(n.moves), byte(n.index + 1)})
}

// Name is the node's name.
func (n *Node) Name() string { return n.name }

// NetnsPrefix is what [Node.Netns] of the nodes of a lab begins with; the rest
// is the node's name.
func NetnsPrefix(lab string) string { return filepath.Join(netnsDir, lab+"-") }

// Netns is the file that stands for the node's network namespace.
func (n *Node) Netns() string { return n.netns }

// Addr is the node's current address.
func (n *Node) Addr() netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.addr
}

// Command is [exec.CommandContext] for a program that runs in the node. It is
// killed when the test binary dies, but waiting for it is the caller's part.
func (n *Node) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append([]string{n.netns, name}, args...)...)
	cmd.Args[0] = execName
	return cmd
}

// Do runs f on a thread that is in the node's network namespace: the sockets
// it makes belong to the node for good. What f starts in other goroutines
// does not.
func (n *Node) Do(f func() error) error {
	return apart(func() error {
		if err := enterNetns(n.netns); err != nil {
			return err
		}
		return f()
	})
}

// apart runs f on a thread that is put back into the process's own network
// namespace afterwards. It is not simply ended: processes started with a death
// signal, as ours are, die with the thread that forked them, and this may be
// one.
func apart(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		own, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			result <- err
			return
		}
		defer unix.Close(own)
		err = f()
		if back := unix.Setns(own, unix.CLONE_NEWNET); back != nil {
			// Still locked, the thread ends with this goroutine.
			result <- errors.Join(err, fmt.Errorf("leave a node's namespace: %w", back))
			return
		}
		runtime.UnlockOSThread()
		result <- err
	}()
	return <-result
}

// create makes the namespace with its device. A namespace lives as long as a
// thread, a file or, as here, a mount refers to it.
func (n *Node) create() error {
	file, err := os.OpenFile(n.netns, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	file.Close()
	n.tun = -1
	err = apart(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", n.netns, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", n.netns, err)
		}
		if err := setUp("lo"); err != nil {
			return err
		}
		var err error
		if n.tun, err = openTUN(nodeDevice); err != nil {
			return err
		}
		if err := errors.Join(setQueue(nodeDevice, deviceQueue), setUp(nodeDevice)); err != nil {
			return err
		}
		return setAddr(nodeDevice, n.addr)
	})
	if err != nil {
		if n.tun > 0 {
			unix.Close(n.tun)
		}
		return errors.Join(err, removeNetns(n.netns))
	}
	return nil
}

func removeNetns(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	return os.Remove(path)
}

// Processes returns the ids of all processes in the node.
func (n *Node) Processes() ([]int, error) {
	var pids []int
	err := n.processes(func(pid, _ int) error {
		pids = append(pids, pid)
		return nil
	})
	return pids, err
}

// KillAll kills all processes in the node, again and again until there are
// none, since a process may have children that are not known yet.
func (n *Node) KillAll() error {
	deadline := time.Now().Add(30 * time.Second)
	for found := true; found; {
		found = false
		if err := n.processes(func(pid, fd int) error {
			found = true
			if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
				return nil // it has ended meanwhile
			}
			exited := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			for exited[0].Revents == 0 {
				if time.Now().After(deadline) {
					return fmt.Errorf("process %d in node %s survives being killed", pid, n.name)
				}
				if _, err := unix.Poll(exited, 1000); err != nil && err != unix.EINTR {
					return fmt.Errorf("wait for process %d: %w", pid, err)
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// processes calls f with the id and a pidfd of each process in the node. The
// pidfd is from before the process was seen to be in the node, so it cannot
// stand for another one that was given the same id since.
func (n *Node) processes(f func(pid, fd int) error) error {
	var want unix.Stat_t
	if err := unix.Stat(n.netns, &want); err != nil {
		return fmt.Errorf("stat %s: %w", n.netns, err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if err := func() error {
			fd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				return nil // gone
			}
			defer unix.Close(fd)
			var st unix.Stat_t
			if err := unix.Stat(filepath.Join("/proc", entry.Name(), "ns/net"), &st); err != nil {
				return nil // gone, or not ours; a dead process has no namespaces
			}
			if st.Dev != want.Dev || st.Ino != want.Ino {
				return nil
			}
			return f(pid, fd)
		}(); err != nil {
			return err
		}
	}
	return nil
}
