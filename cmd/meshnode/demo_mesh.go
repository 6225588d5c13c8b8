package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"meshnode/node/control"
)

const (
	// readyTimeout bounds how long a daemon may take to answer.
	readyTimeout = time.Minute
	// stopGrace is what daemons get to leave in order.
	stopGrace = 3 * time.Second
	// pollEvery is how often a condition in another process is looked at.
	pollEvery = 20 * time.Millisecond
)

// A process is one daemon of a demo.
type process struct {
	name   string
	dir    string
	cmd    *exec.Cmd
	log    string
	exited chan struct{}
	err    error // of Wait; after exited
}

// processes are the daemons of a demo. One goroutine, locked to its thread,
// starts them all and lives until stop: what makes a daemon die with the demo
// follows the thread that started it, not the process (prctl(2),
// PR_SET_PDEATHSIG).
type processes struct {
	dir    string
	level  string // of what the daemons log
	starts chan func()
	done   sync.WaitGroup

	mu  sync.Mutex
	all []*process
}

func newProcesses(dir, level string) *processes {
	p := &processes{dir: dir, level: level, starts: make(chan func())}
	p.done.Go(func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for f := range p.starts {
			f()
		}
	})
	return p
}

// start runs this binary as a daemon named name.
func (p *processes) start(name string, args ...string) (*process, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this binary: %w", err)
	}
	dir := filepath.Join(p.dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	pr := &process{name: name, dir: dir, log: filepath.Join(p.dir, name+".log"), exited: make(chan struct{})}
	log, err := os.OpenFile(pr.log, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the daemon has its own
	pr.cmd = exec.Command(exe, append([]string{"up", "--state-dir", dir, "--name", name,
		"--listen", "127.0.0.1:0", "--metrics", "off", "--log-level", p.level,
		// Four nodes of one machine need not compile the same app four times.
		"--cache-dir", filepath.Join(filepath.Dir(dir), "cache")}, args...)...)
	pr.cmd.Stdout, pr.cmd.Stderr = log, log
	pr.cmd.Env = demoEnv()
	pr.cmd.SysProcAttr = daemonAttr()
	started := make(chan error)
	p.starts <- func() { started <- pr.cmd.Start() }
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start the node %s: %w", name, err)
	}
	p.done.Go(func() {
		defer close(pr.exited)
		pr.err = pr.cmd.Wait()
	})
	p.mu.Lock()
	p.all = append(p.all, pr)
	p.mu.Unlock()
	return pr, nil
}

// demoEnv is this process's environment without what would lead a daemon to
// another's state.
func demoEnv() []string {
	var out []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, envStateDir+"=") && !strings.HasPrefix(kv, envSocket+"=") {
			out = append(out, kv)
		}
	}
	return out
}

// stop ends all daemons, in order where they let it be, and waits for them.
func (p *processes) stop() {
	p.mu.Lock()
	all := p.all
	p.mu.Unlock()
	for _, pr := range all {
		if pr.cmd.Process.Signal(os.Interrupt) != nil {
			_ = pr.cmd.Process.Kill() // gone already, or a system without signals
		}
	}
	grace := time.NewTimer(stopGrace)
	defer grace.Stop()
	for _, pr := range all {
		select {
		case <-pr.exited:
			continue
		case <-grace.C:
			grace.Reset(0) // no more waiting for the others either
		}
		_ = pr.cmd.Process.Kill()
		<-pr.exited
	}
	close(p.starts)
	p.done.Wait()
}

// explain adds to an error what a daemon that has died said last.
func (p *processes) explain(err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, pr := range p.all {
		select {
		case <-pr.exited:
			return pr.died(err)
		default:
		}
	}
	return err
}

func (pr *process) died(err error) error {
	e := *control.AsError(err)
	e.Message = fmt.Sprintf("the node %s ended by itself (%v): %s", pr.name, pr.err, e.Message)
	if tail := logTail(pr.log, 5); tail != "" {
		e.Message += "\n" + tail
	}
	return &e
}

func logTail(path string, lines int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	all := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	all = all[max(0, len(all)-lines):]
	var out []string
	for _, l := range all {
		out = append(out, "    "+freeText(string(l)))
	}
	return strings.Join(out, "\n")
}

// ready waits until the daemon answers.
func (pr *process) ready(ctx context.Context, c *control.Client) (control.Status, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, &control.Error{
		Code: control.CodeTimeout, Message: fmt.Sprintf("the node %s did not answer within %s", pr.name, readyTimeout),
	})
	defer cancel()
	var s control.Status
	err := poll(ctx, func() (bool, error) {
		var err error
		if s, err = c.Status(ctx); err == nil {
			return true, nil
		}
		select {
		case <-pr.exited:
			return false, pr.died(errors.New("it never answered"))
		default:
		}
		if !errors.Is(err, &control.Error{Code: control.CodeUnreachable}) {
			return false, err
		}
		return false, nil
	})
	return s, err
}

// poll asks until ok or an error.
func poll(ctx context.Context, ok func() (bool, error)) error {
	t := time.NewTicker(pollEvery)
	defer t.Stop()
	for {
		if done, err := ok(); done || err != nil {
			return err
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// A demoMesh is a client for each node, by name.
type demoMesh map[string]*control.Client

func (m demoMesh) close() {
	for _, c := range m {
		c.Close()
	}
}

// A demoNode is a node to start.
type demoNode struct{ name, tier string }

// startMesh lets the first of the nodes found a mesh and the others join it with
// tokens.
func startMesh(ctx context.Context, procs *processes, nodes []demoNode) (_ demoMesh, err error) {
	m := make(demoMesh)
	for _, n := range nodes {
		m[n.name] = control.NewClient(filepath.Join(procs.dir, n.name, control.SocketName))
	}
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	authority := m[nodes[0].name]
	first, err := procs.start(nodes[0].name, "--tier", nodes[0].tier)
	if err != nil {
		return nil, err
	}
	status, err := first.ready(ctx, authority)
	if err != nil {
		return nil, err
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, n := range nodes[1:] {
		g.Go(func() error {
			t, err := authority.CreateToken(gctx, control.TokenRequest{TTLMs: control.Millis(5 * time.Minute), Uses: 1, Tier: n.tier})
			if err != nil {
				return fmt.Errorf("a token for %s: %w", n.name, err)
			}
			file := filepath.Join(procs.dir, n.name+".token")
			if err := os.WriteFile(file, []byte(t.Token+"\n"), 0o600); err != nil {
				return err
			}
			pr, err := procs.start(n.name, "--join", status.Listen, "--token-file", file)
			if err != nil {
				return err
			}
			_, err = pr.ready(gctx, m[n.name])
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	// Each must know all: a move needs both ends to know each other.
	for _, n := range nodes {
		err := poll(ctx, func() (bool, error) {
			seen, err := m[n.name].Nodes(ctx)
			alive := 0
			for _, s := range seen {
				if s.State == "alive" {
					alive++
				}
			}
			return alive == len(nodes), err
		})
		if err != nil {
			return nil, procs.explain(err)
		}
	}
	return m, nil
}
