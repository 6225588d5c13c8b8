package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"meshnode/e2e/netlab"
	"meshnode/node/control"
)

// A pair is two nodes of a lab with a daemon each.
type pair struct {
	tb   testing.TB
	lab  *netlab.Lab
	dir  string // what was built
	root string // of the state directories
	a, b *netlab.Node
}

// newPair starts two nodes that are in one mesh, with nothing between them but
// the emulator.
func newPair(tb testing.TB, flags ...string) *pair {
	tb.Helper()
	if err := netlab.Unavailable(); err != nil {
		tb.Skip(err)
	}
	p := &pair{tb: tb, lab: netlab.New(tb), dir: built(tb), root: tb.TempDir()}
	if err := p.lab.Link("a", "b", netlab.Params{}); err != nil {
		tb.Fatal(err)
	}
	p.a, p.b = p.lab.Node("a"), p.lab.Node("b")
	p.start(p.a, flags...)
	token := filepath.Join(p.root, "token")
	out := p.run(p.a, "token", "create", "--ttl", "1h", "--uses", "1", "--tier", "edge")
	if err := os.WriteFile(token, out, 0o600); err != nil {
		tb.Fatal(err)
	}
	p.start(p.b, "--join", net.JoinHostPort(p.a.Addr().String(), meshPort), "--token-file", token)
	p.wait("two members", func() bool {
		var st control.Status
		p.json(p.a, &st, "status")
		return st.Members.Alive == 2
	})
	return p
}

// link sets what is between the nodes, in words such as "rate=100mbit
// delay=5ms".
func (p *pair) link(params string) {
	p.tb.Helper()
	var ps netlab.Params
	for word := range strings.FieldsSeq(params) {
		if err := ps.Set(word); err != nil {
			p.tb.Fatal(err)
		}
	}
	if err := p.lab.SetLink("a", "b", func(p *netlab.Params) { *p = ps }); err != nil {
		p.tb.Fatal(err)
	}
}

func (p *pair) command(n *netlab.Node, args ...string) *exec.Cmd {
	cmd := n.Command(context.Background(), filepath.Join(p.dir, "bin", "meshnode"), args...)
	cmd.Env = append(os.Environ(), "MESHNODE_STATE_DIR="+p.state(n))
	return cmd
}

func (p *pair) state(n *netlab.Node) string { return filepath.Join(p.root, n.Name()) }

func (p *pair) start(n *netlab.Node, flags ...string) {
	p.tb.Helper()
	cmd := p.command(n, append([]string{"up", "--listen", ":" + meshPort, "--name", n.Name(), "--log-level", "error"}, flags...)...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		p.tb.Fatal(err)
	}
	p.tb.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	p.wait("the daemon of "+n.Name(), func() bool { return p.command(n, "status").Run() == nil })
}

func (p *pair) wait(what string, is func() bool) {
	p.tb.Helper()
	if !poll(patience, is) {
		p.tb.Fatalf("waited in vain for %s", what)
	}
}

func (p *pair) run(n *netlab.Node, args ...string) []byte {
	p.tb.Helper()
	cmd := p.command(n, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		p.tb.Fatalf("meshnode %s on %s: %v\n%s", strings.Join(args, " "), n.Name(), err, &stderr)
	}
	return out
}

func (p *pair) json(n *netlab.Node, v any, args ...string) {
	p.tb.Helper()
	if err := json.Unmarshal(p.run(n, append(args, "-o", "json")...), v); err != nil {
		p.tb.Fatal(err)
	}
}

// worker starts a kvstore of that much memory, all of it written.
func (p *pair) worker(mib int) {
	p.tb.Helper()
	// Go's heap in the worker needs room beside the table.
	limit := fmt.Sprintf("%dMiB", mib+64)
	p.run(p.a, "worker", "run", filepath.Join(p.dir, "apps", "kvstore.wasm"), "--name", "kv", "--memory-limit", limit)
	p.run(p.a, "worker", "call", "kv", fmt.Sprintf("init %dMiB", mib))
	p.run(p.a, "worker", "call", "kv", "fill")
}

// move moves the worker to the other node, over the link of params, and back
// over one without limits, so that the next move starts alike.
func (p *pair) move(params, strategy string) control.Migration {
	p.tb.Helper()
	p.link(params)
	var m control.Migration
	p.json(p.a, &m, "worker", "migrate", "kv", "--to", "b", "--strategy", strategy)
	p.link("")
	return m
}

// BenchmarkMove is the blackout of a worker with much memory over a link of
// 100 Mbit/s and a round trip of 10 ms, post-copy beside stop-and-copy of the
// same worker. blackout-ratio says how much longer it stands still in the
// latter.
func BenchmarkMove(b *testing.B) {
	const link = "rate=100mbit delay=5ms"
	for _, mib := range []int{16, 64, 256} {
		b.Run(fmt.Sprintf("mem=%dMiB/rate=100mbit/rtt=10ms", mib), func(b *testing.B) {
			moves := map[string]control.Migration{}
			for range b.N {
				for _, strategy := range control.Strategies {
					// A node keeps pages of what left it: each move gets
					// nodes that have never seen the worker.
					p := newPair(b)
					p.worker(mib)
					moves[strategy] = p.move(link, strategy)
				}
			}
			post, stop := moves[control.StrategyPostCopy], moves[control.StrategyStopAndCopy]
			b.ReportMetric(stop.BlackoutMs, "ms-blackout-stop-and-copy")
			b.ReportMetric(stop.BlackoutMs/post.BlackoutMs, "blackout-ratio")
			for _, strategy := range []string{control.StrategyPostCopy, control.StrategyHybrid} {
				m := moves[strategy]
				b.ReportMetric(m.BlackoutMs, "ms-blackout-"+strategy)
				b.ReportMetric(m.TotalMs, "ms-total-"+strategy)
				b.ReportMetric(float64(m.BytesOnWire)/float64(m.MemoryBytes), "wire/memory-"+strategy)
				b.ReportMetric(float64(m.PagesDemanded), "demanded-"+strategy)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkCommandMove is the blackout of a program that is moved in the middle
// of its computation beside that of an event worker with as much memory, in turn,
// there and back: the medians of COMMAND_MOVES (default 20) each, and how much
// longer the program stands still.
func BenchmarkCommandMove(b *testing.B) {
	const link = "rate=1gbit delay=500us"
	moves := 20
	if s := os.Getenv("COMMAND_MOVES"); s != "" {
		moves, _ = strconv.Atoi(s)
	}
	for _, mib := range []int{16, 64} {
		b.Run(fmt.Sprintf("mem=%dMiB/rate=1gbit/rtt=1ms", mib), func(b *testing.B) {
			p := newPair(b)
			p.worker(mib)
			p.run(p.a, "worker", "run", filepath.Join(p.dir, "apps", "until.wasm"), "--name", "command",
				"--memory-limit", fmt.Sprintf("%dMiB", mib+64), "--", "-1", strconv.Itoa(mib))
			p.wait("the program's memory", func() bool {
				return bytes.Contains(p.run(p.a, "worker", "logs", "command"), []byte("filled"))
			})
			p.link(link)
			blackouts := map[string][]float64{}
			for range b.N {
				clear(blackouts)
				for i := range moves {
					for _, name := range []string{"kv", "command"} {
						var m control.Migration
						p.json(p.a, &m, "worker", "migrate", name, "--to", []string{"b", "a"}[i%2])
						blackouts[name] = append(blackouts[name], m.BlackoutMs)
					}
				}
			}
			median := func(name string) float64 {
				slices.Sort(blackouts[name])
				return blackouts[name][len(blackouts[name])/2]
			}
			for name, metric := range map[string]string{"kv": "event", "command": "command"} {
				b.ReportMetric(median(name), "ms-"+metric)
				b.ReportMetric(blackouts[name][len(blackouts[name])*9/10], "ms-p90-"+metric)
			}
			b.ReportMetric(median("command")-median("kv"), "ms-more")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkDrainRate is how much of a capped link the drain of a worker's memory
// uses, hashing and verification included.
func BenchmarkDrainRate(b *testing.B) {
	b.Run("mem=64MiB/rate=200mbit/rtt=10ms", func(b *testing.B) {
		var m control.Migration
		for range b.N {
			p := newPair(b)
			p.worker(64)
			m = p.move("rate=200mbit delay=5ms", control.StrategyPostCopy)
		}
		seconds := m.DrainMs / 1000
		b.ReportMetric(float64(m.BytesOnWire)*8/seconds/200e6, "of-the-cap")
		b.ReportMetric(float64(m.BytesOnWire)/seconds/1e6, "MB/s")
		b.ReportMetric(0, "ns/op")
	})
}

// BenchmarkIdle is what a node costs that does nothing: its memory without
// workers, and the CPU time of a node and of a worker that nobody calls.
func BenchmarkIdle(b *testing.B) {
	p := newPair(b)
	rss := func() float64 { return float64(procKiB(b, pidOf(p, p.b), "VmRSS:")) / 1024 }
	alone := rss()
	p.worker(16)
	const watch = 10 * time.Second
	node := cpuTime(b, pidOf(p, p.b))
	host := cpuTime(b, pidOf(p, p.a))
	time.Sleep(watch) // the length of the measurement, not a wait for anything
	node, host = cpuTime(b, pidOf(p, p.b))-node, cpuTime(b, pidOf(p, p.a))-host
	b.ReportMetric(alone, "MiB-rss-without-workers")
	b.ReportMetric(100*node.Seconds()/watch.Seconds(), "%cpu-without-workers")
	b.ReportMetric(100*host.Seconds()/watch.Seconds(), "%cpu-with-idle-worker")
	b.ReportMetric(0, "ns/op")
}

func pidOf(p *pair, n *netlab.Node) int {
	var st control.Status
	p.json(n, &st, "status")
	return st.PID
}

// procKiB reads a field of /proc/PID/status (proc(5)), in KiB.
func procKiB(tb testing.TB, pid int, field string) (kib int) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, field); ok {
			fmt.Sscan(rest, &kib)
		}
	}
	return kib
}

// cpuTime is what a process and the children it has waited for have used
// (proc(5), fields 14 to 17 of /proc/PID/stat), children that run included.
func cpuTime(tb testing.TB, pid int) time.Duration {
	var total time.Duration
	pids := []int{pid}
	children, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, c := range children {
		list, _ := os.ReadFile(c)
		for f := range strings.FieldsSeq(string(list)) {
			var child int
			fmt.Sscan(f, &child)
			pids = append(pids, child)
		}
	}
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			tb.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		f := strings.Fields(rest)
		var user, system int64
		fmt.Sscan(f[11], &user)
		fmt.Sscan(f[12], &system)
		total += time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100 everywhere
	}
	return total
}

// BenchmarkReturn is what a worker of 256 MiB brings home after a detour in
// which it wrote to one page in a hundred: bytes on the wire against those pages
// and their names.
func BenchmarkReturn(b *testing.B) {
	const (
		mib     = 256
		parts   = 8
		changed = mib << 8 / 100 / parts * parts
	)
	var home control.Migration
	for range b.N {
		p := newPair(b)
		p.worker(mib)
		p.move("", control.StrategyAuto)
		for i := range parts {
			p.run(p.b, "worker", "call", "kv", fmt.Sprintf("touch range %d %d", i*(mib<<8/parts), changed/parts))
		}
		p.link("rate=100mbit delay=5ms")
		p.json(p.b, &home, "worker", "migrate", "kv", "--to", "a")
	}
	b.ReportMetric(float64(home.BytesOnWire)/(changed*(4096+32)), "wire/changed")
	b.ReportMetric(float64(home.BytesOnWire)/(1<<20), "MiB-wire")
	b.ReportMetric(home.BlackoutMs, "ms-blackout")
	b.ReportMetric(home.TotalMs, "ms-total")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkFirstSecond is what a move does to the latency of events in the second
// after the resume, with the working set sampled and without, beside that of the
// same worker before it moved. over-target is by how much the 99th percentile with
// sampling is above the undisturbed one and two round trips: the client asks for
// as many keys as it gets through in a few rounds, so that there is a working set.
func BenchmarkFirstSecond(b *testing.B) {
	const rtt = 10 // ms
	for _, strategy := range []string{control.StrategyAuto, control.StrategyPostCopy} {
		for _, dirty := range []string{"0B", "10MiB"} {
			b.Run(fmt.Sprintf("mem=64MiB/rate=100mbit/rtt=10ms/dirty=%s/%s", dirty, strategy), func(b *testing.B) {
				p := newPair(b)
				p.link("rate=100mbit delay=5ms")
				var before []float64
				after := map[bool][]float64{} // by whether sampling was off
				for range 3 * b.N {
					for _, off := range []bool{false, true} {
						res, _ := p.bench(b, "--memory", "64MiB", "--dirty", dirty, "--strategy", strategy,
							"--keys", "64KiB", fmt.Sprintf("--no-sampling=%t", off))
						if r := res.Runs[0]; r.Error != "" {
							b.Fatal(r.Error)
						}
						before = append(before, res.Runs[0].Client.Before.P99Ms)
						after[off] = append(after[off], res.Runs[0].Client.After.P99Ms)
					}
				}
				median := func(v []float64) float64 {
					slices.Sort(v)
					return v[len(v)/2]
				}
				b.ReportMetric(median(before), "ms-p99-before")
				b.ReportMetric(median(after[false]), "ms-p99-after")
				b.ReportMetric(median(after[true]), "ms-p99-after-unsampled")
				b.ReportMetric(median(after[false])-median(before)-2*rtt, "ms-over-target")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}
