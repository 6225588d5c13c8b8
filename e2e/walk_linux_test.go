package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"meshnode/e2e/apps/physics/proto"
	"meshnode/e2e/netlab"
	"meshnode/node/control"
)

// The walk: a user with a device passes three edges in a row and plays the
// physics app all the way. Edge i stands at i; what a packet takes from the
// device to it grows with the distance, and wanders a little by itself every
// second, so that half-way it is chance which of two edges is nearer. Near one
// edge the next is out of bounds, and half-way both will do.
//
// How much longer the way gets in a unit of distance says how much half-way is
// to spare. A tick takes some 4 ms beside the way, so with 11 ms an event has
// 5 to 9 ms left there; with 16 ms it has 0 to 4, and every hitch of the machine
// shows.
const (
	walkEdges     = 3
	walkHz        = 60
	walkObjective = 30 * time.Millisecond
	walkStep      = 250 * time.Millisecond // of the trace
	walkTime      = 48 * time.Second
	walkNear      = 3 * time.Millisecond // from the device to an edge beside it
	walkNoise     = 2 * time.Millisecond // at most, either way together
	walkEvent     = 3 * time.Millisecond // about what a tick takes by itself, for the oracle
)

// walkFars are the walks: by how much more a packet takes for each unit of distance.
var walkFars = []time.Duration{11 * time.Millisecond, 16 * time.Millisecond}

// walkManifest is what the app declares.
const walkManifest = `apiVersion: meshnode/v1alpha1
kind: App
name: game
module: {path: %s}
limits: {memory: 64MiB}
objectives:
  blackout: {max: 100ms, quantile: p99, window: 1h}
  event: {max: 30ms, quantile: p99, window: 10s}
placement:
  require: {tier: [edge]}
migration: {mode: %s, improveBy: 20%%, holdFor: 1s, minDwell: 3s}
`

// walkTrace is the one-way delay from the device to each edge in each step.
func walkTrace(seed uint64, far time.Duration) [][walkEdges]time.Duration {
	rng := rand.New(rand.NewPCG(seed, 0))
	steps := make([][walkEdges]time.Duration, walkTime/walkStep)
	var noise [walkEdges]time.Duration
	for i := range steps {
		at := float64(i) / float64(len(steps)-1) * (walkEdges - 1)
		for e := range walkEdges {
			if i%int(time.Second/walkStep) == 0 {
				noise[e] = time.Duration(rng.Int64N(int64(walkNoise)))
			}
			steps[i][e] = walkNear + noise[e] + time.Duration(float64(far)*math.Abs(at-float64(e)))
		}
	}
	return steps
}

// walkOracle is the least number of moves that keep the objective whenever an
// edge can: it stays as long as its edge will do, and goes where it can then
// stay longest.
func walkOracle(trace [][walkEdges]time.Duration) (moves int) {
	until := func(e, from int) int {
		for i := from; i < len(trace); i++ {
			if 2*trace[i][e]+walkEvent > walkObjective {
				return i
			}
		}
		return len(trace)
	}
	for at, from := 0, 0; ; moves++ {
		from = max(until(at, from), from)
		if from == len(trace) {
			return moves
		}
		best := 0
		for e := range walkEdges {
			if until(e, from) > until(best, from) {
				best = e
			}
		}
		if until(best, from) == from {
			from++ // none will do
			moves--
			continue
		}
		at = best
	}
}

// BenchmarkWalk is the walk under four policies, one after the other, each in
// a lab of its own with the same trace: the app's manifest with automatic
// moves; the same without any; a script that moves the worker to whichever edge
// answers a ping first, every second; and the oracle, which moves it half-way
// between two edges, where the next becomes the nearer one, and of which the least
// number of moves is counted from the trace. It reports the share of events that
// were answered within the objective, and the moves. What the oracle is short of
// all is what the machine takes from every policy; %-stolen is how much of its
// processors' time its host took meanwhile.
func BenchmarkWalk(b *testing.B) {
	if err := netlab.Unavailable(); err != nil {
		b.Skip(err)
	}
	const seed = 1
	for _, far := range walkFars {
		for _, policy := range []string{"manifest", "never", "nearest", "oracle"} {
			b.Run(fmt.Sprintf("far=%v/%s", far, policy), func(b *testing.B) {
				trace := walkTrace(seed, far)
				for range b.N {
					w := newWalk(b, trace, policy)
					stolen := w.run()
					within := 0
					for _, d := range w.took {
						if d <= walkObjective {
							within++
						}
					}
					b.ReportMetric(100*float64(within)/float64(len(w.took)), "%-in-time")
					b.ReportMetric(ms(quantile(w.took, 0.99)), "ms-p99")
					b.ReportMetric(float64(w.moves), "moves")
					b.ReportMetric(float64(walkOracle(trace)), "moves-least")
					b.ReportMetric(100*stolen, "%-stolen")
				}
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// A walk is one policy's turn.
type walk struct {
	*pair
	policy string
	trace  [][walkEdges]time.Duration
	device *netlab.Node
	client *control.Client

	took  []time.Duration // of each event, as the client sees it
	moves int
}

func walkEdge(i int) string { return fmt.Sprintf("edge-%d", i) }

// newWalk builds the mesh, with the app on the first edge.
func newWalk(tb testing.TB, trace [][walkEdges]time.Duration, policy string) *walk {
	p := &pair{tb: tb, lab: netlab.New(tb), dir: built(tb), root: tb.TempDir()}
	w := &walk{pair: p, policy: policy, trace: trace}
	const device = "device"
	between := netlab.Params{Rate: 1e9, Delay: 2 * time.Millisecond}
	for e := range walkEdges {
		if err := p.lab.Link(device, walkEdge(e), netlab.Params{Rate: 100e6, Delay: trace[0][e]}); err != nil {
			tb.Fatal(err)
		}
		for other := range e {
			if err := p.lab.Link(walkEdge(other), walkEdge(e), between); err != nil {
				tb.Fatal(err)
			}
		}
	}
	// All nodes are on one machine. Each of them shall be taken for one of its
	// own, that does nothing else.
	idle := filepath.Join(p.root, "idle")
	if err := os.WriteFile(idle, []byte("cpu 0 0 0 100 0 0 0 0\n"), 0o600); err != nil {
		tb.Fatal(err)
	}
	first := p.lab.Node(walkEdge(0))
	p.start(first, "--tier", "edge", "--cpu-stat", idle)
	join := func(n *netlab.Node, tier string) {
		token := filepath.Join(p.root, n.Name()+".token")
		out := p.run(first, "token", "create", "--ttl", "1h", "--uses", "1", "--tier", tier)
		if err := os.WriteFile(token, out, 0o600); err != nil {
			tb.Fatal(err)
		}
		p.start(n, "--tier", tier, "--cpu-stat", idle, "--join", net.JoinHostPort(first.Addr().String(), meshPort), "--token-file", token)
	}
	for e := 1; e < walkEdges; e++ {
		join(p.lab.Node(walkEdge(e)), "edge")
	}
	w.device = p.lab.Node(device)
	join(w.device, "device")
	p.wait("all members", func() bool {
		var st control.Status
		p.json(w.device, &st, "status")
		return st.Members.Alive == walkEdges+1
	})
	w.client = control.NewClient(filepath.Join(p.state(w.device), control.SocketName))
	tb.Cleanup(w.client.Close)

	mode := "manual"
	if policy == "manifest" {
		mode = "auto"
	}
	file := filepath.Join(p.root, "game.yaml")
	manifest := fmt.Sprintf(walkManifest, filepath.Join(p.dir, "apps", "physics.wasm"), mode)
	if err := os.WriteFile(file, []byte(manifest), 0o600); err != nil {
		tb.Fatal(err)
	}
	p.run(first, "app", "apply", file)
	// Without users all edges are alike.
	w.wait("the game", func() bool { return w.game().State == "running" })
	if w.game().HomeName != first.Name() {
		p.run(first, "worker", "migrate", "game", "--to", first.Name())
	}
	w.wait("the game at the first edge", func() bool { return w.game().HomeName == first.Name() })
	if policy == "nearest" || policy == "oracle" {
		// Their moves are to be made at once: the edges have compiled the app. The
		// manifest's policy has to see to that itself, while the user walks.
		for e := 1; e < walkEdges; e++ {
			edge, name := p.lab.Node(walkEdge(e)), "before-"+walkEdge(e)
			p.run(edge, "worker", "run", filepath.Join(p.dir, "apps", "physics.wasm"), "--name", name)
			p.run(edge, "worker", "stop", name)
		}
	}
	return w
}

// game is the worker as the device sees it, or nothing.
func (w *walk) game() (game control.Worker) {
	out, err := w.command(w.device, "worker", "show", "game", "-o", "json").Output()
	if err == nil {
		err = json.Unmarshal(out, &game)
	}
	if err != nil {
		return control.Worker{}
	}
	return game
}

// run walks from the first edge to the last. It returns the share of the
// processors' time that the host took meanwhile.
func (w *walk) run() (stolen float64) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s, err := w.client.Session(ctx, "game")
	if err != nil {
		w.tb.Fatal(err)
	}
	defer s.Close()
	epoch := w.game().Epoch // each move is one more

	before, taken := processors(w.tb)
	g, gctx := errgroup.WithContext(ctx)
	arrived := make(chan struct{}) // the walk is over
	g.Go(func() error { return w.play(gctx, s, arrived) })
	g.Go(func() error {
		defer close(arrived)
		return w.step(gctx)
	})
	switch w.policy {
	case "nearest":
		g.Go(func() error { return w.chase(gctx, arrived) })
	case "oracle":
		g.Go(func() error { return w.foresee(gctx) })
	}
	if err := g.Wait(); err != nil {
		w.tb.Fatalf("%s: %v", w.policy, err)
	}
	after, takenAfter := processors(w.tb)
	w.moves = int(w.game().Epoch - epoch)
	return (takenAfter - taken) / (after - before)
}

// processors returns how much time the processors have had, idle or not, and how
// much of that the host ran something else, in /proc/stat's unit (proc(5)).
func processors(tb testing.TB) (all, stolen float64) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		tb.Fatal(err)
	}
	line, _, _ := strings.Cut(string(stat), "\n")
	var times [8]float64 // user, nice, system, idle, iowait, irq, softirq, steal
	for i, f := range strings.Fields(line)[1:9] {
		if times[i], err = strconv.ParseFloat(f, 64); err != nil {
			tb.Fatal(err)
		}
		all += times[i]
	}
	return all, times[7]
}

// step sets the delays as the trace has them.
func (w *walk) step(ctx context.Context) error {
	tick := time.NewTicker(walkStep)
	defer tick.Stop()
	for _, delays := range w.trace {
		for e, delay := range delays {
			if err := w.lab.SetLink(w.device.Name(), walkEdge(e), func(p *netlab.Params) { p.Delay = delay }); err != nil {
				return err
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// play asks for ticks at the pace of a clock until the walk is over, and takes
// the time of each.
func (w *walk) play(ctx context.Context, s *control.ClientSession, arrived <-chan struct{}) error {
	var mu sync.Mutex
	var sent []time.Time // of the ticks that were not answered
	g, ctx := errgroup.WithContext(ctx)
	last := make(chan int, 1) // how many there were
	g.Go(func() error {
		tick := time.NewTicker(time.Second / walkHz)
		defer tick.Stop()
		request := (&proto.Tick{Steps: 1, Frame: true}).Append(nil)
		for n := 0; ; n++ {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return ctx.Err()
			}
			select {
			case <-arrived:
				last <- n
				return s.Send(ctx, control.Message{Call: true, Payload: request})
			default:
			}
			mu.Lock()
			sent = append(sent, time.Now())
			mu.Unlock()
			if err := s.Send(ctx, control.Message{Call: true, Payload: request}); err != nil {
				return err
			}
		}
	})
	g.Go(func() error {
		for all := -1; len(w.took) != all; {
			r, err := s.Recv(ctx)
			switch {
			case err != nil:
				return err
			case r.Err != nil:
				return r.Err
			case r.Status != 0:
				return fmt.Errorf("the game answers status %d: %s", r.Status, r.Payload)
			}
			mu.Lock()
			if len(sent) > len(w.took) {
				w.took = append(w.took, time.Since(sent[len(w.took)]))
			}
			mu.Unlock()
			select {
			case all = <-last:
			default:
			}
		}
		return nil
	})
	return g.Wait()
}

// foresee moves the worker to the next edge half-way there.
func (w *walk) foresee(ctx context.Context) error {
	start := time.Now()
	for e := 1; e < walkEdges; e++ {
		half := start.Add(walkTime * time.Duration(2*e-1) / (2 * (walkEdges - 1)))
		select {
		case <-time.After(time.Until(half)):
		case <-ctx.Done():
			return ctx.Err()
		}
		if _, err := w.client.Migrate(ctx, "game", control.MigrateRequest{To: walkEdge(e)}, func(control.Progress) {}); err != nil {
			return err
		}
	}
	return nil
}

// chase moves the worker to the edge that answers the device's ping first,
// every second.
func (w *walk) chase(ctx context.Context, arrived <-chan struct{}) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	home := walkEdge(0)
	for {
		select {
		case <-tick.C:
		case <-arrived:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
		nearest, least := home, math.Inf(1)
		for e := range walkEdges {
			err := w.client.Ping(ctx, walkEdge(e), 1, func(p control.Ping) error {
				if p.RTTMs < least {
					nearest, least = walkEdge(e), p.RTTMs
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		if nearest == home {
			continue
		}
		if _, err := w.client.Migrate(ctx, "game", control.MigrateRequest{To: nearest}, func(control.Progress) {}); err != nil {
			return err
		}
		home = nearest
	}
}
