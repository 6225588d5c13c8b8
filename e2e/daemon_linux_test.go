package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"meshnode/e2e/netlab"
)

// meshPort is where every daemon listens.
const meshPort = "7946"

// A daemon is `meshnode up` on a node.
type daemon struct {
	node  *netlab.Node
	flags []string // but for those of the first join
	cmd   *exec.Cmd
	done  chan struct{} // closed when it has ended, with err then set
	err   error
	began int64 // where in the log file its own lines begin
}

func (d *daemon) running() bool {
	select {
	case <-d.done:
		return false
	default:
		return true
	}
}

// end kills the daemon and waits for it.
func (d *daemon) end() {
	d.cmd.Process.Kill()
	<-d.done
}

// command is a command on a node.
func (w *world) command(ctx context.Context, node *netlab.Node, name string, args ...string) *exec.Cmd {
	cmd := node.Command(ctx, name, args...)
	cmd.Env = w.environ(node.Name())
	cmd.Dir = w.dir
	return cmd
}

// output runs a command on a node to its end.
func (w *world) output(node *netlab.Node, argv []string) (stdout, stderr string, err error) {
	// A command that hangs is a failure like any other, to be tried again.
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := w.command(ctx, node, argv[0], argv[1:]...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.Run()
	return out.String(), errOut.String(), err
}

func (w *world) cmdStart(neg bool, args []string) error {
	if len(args) < 1 {
		return errUsage
	}
	name, join, issuer := args[0], "", ""
	tier := w.tiers[name]
	var flags []string
	for _, arg := range args[1:] {
		if v, ok := strings.CutPrefix(arg, "join="); ok {
			join = v
		} else if v, ok := strings.CutPrefix(arg, "token="); ok {
			issuer = v
		} else if v, ok := strings.CutPrefix(arg, "tier="); ok {
			tier = v
		} else if v, ok := strings.CutPrefix(arg, "arch="); ok {
			w.arches[name] = v
		} else {
			flags = append(flags, arg)
		}
	}
	if d := w.daemons[name]; d != nil && d.running() {
		return fmt.Errorf("the daemon of %s runs already", name)
	}
	node, err := w.needNode(name)
	if err != nil {
		return err
	}
	if tier == "" {
		tier = "device"
	}
	flags = append([]string{"--name", name, "--tier", tier}, flags...)
	joining := flags
	if join != "" {
		if issuer == "" {
			issuer = join
		}
		member := w.lab.Node(join)
		if member == nil {
			return fmt.Errorf("no node %s", join)
		}
		file, err := w.token(issuer, name, tier)
		if err != nil {
			return err
		}
		via := net.JoinHostPort(member.Addr().String(), meshPort)
		joining = append(flags[:len(flags):len(flags)], "--join", via, "--token-file", file)
	}
	d, err := w.run(node, joining)
	if err != nil {
		return err
	}
	d.flags = flags
	return w.await(d, neg)
}

// token has a member make a token for a node and returns the file it is in.
func (w *world) token(from, to, tier string) (string, error) {
	node := w.lab.Node(from)
	if node == nil {
		return "", fmt.Errorf("no node %s", from)
	}
	argv := []string{"meshnode", "token", "create", "--ttl", "1h", "--uses", "1", "--tier", tier}
	stdout, stderr, err := w.output(node, argv)
	if err != nil {
		return "", fmt.Errorf("%s on %s: %w\n%s", strings.Join(argv, " "), from, err, stderr)
	}
	file := filepath.Join(w.dir, to+".token")
	return file, os.WriteFile(file, []byte(stdout), 0o600)
}

// run starts a daemon.
func (w *world) run(node *netlab.Node, flags []string) (*daemon, error) {
	name := node.Name()
	if err := w.shareCache(name); err != nil {
		return nil, err
	}
	args := append([]string{"up", "--state-dir", w.stateDir(name), "--listen", ":" + meshPort}, flags...)
	program := "meshnode"
	if arch := w.arches[name]; arch != "" {
		var err error
		if program, err = emulated(filepath.Dir(w.ts.Getenv("APPS")), arch); err != nil {
			return nil, err
		}
		args = append(args, "--runner", program)
	}
	cmd := w.command(context.Background(), node, program, args...)
	log, err := os.OpenFile(w.logFile(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	began, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = log, log
	w.ts.Logf("[%s] meshnode %s", name, strings.Join(args, " "))
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	d := &daemon{node: node, flags: flags, cmd: cmd, done: make(chan struct{}), began: began}
	go func() {
		defer close(d.done)
		d.err = cmd.Wait()
	}()
	w.daemons[name] = d
	return d, nil
}

// shareCache makes all nodes of all scripts keep the code they compile in one
// place: compiling an app takes seconds, and what is compiled is the same.
func (w *world) shareCache(node string) error {
	if err := os.MkdirAll(w.stateDir(node), 0o700); err != nil {
		return err
	}
	err := os.Symlink(filepath.Join(filepath.Dir(w.ts.Getenv("APPS")), "cache"), filepath.Join(w.stateDir(node), "cache"))
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// await waits until a daemon answers or has ended, and complains if it was the
// wrong one of the two. What an ended one has said becomes stderr.
func (w *world) await(d *daemon, wantFailure bool) error {
	name := d.node.Name()
	var why string
	settled := poll(patience, func() bool {
		if !d.running() {
			return true
		}
		var err error
		_, why, err = w.output(d.node, []string{"meshnode", "status"})
		return err == nil
	})
	if !d.running() {
		if log, err := os.ReadFile(w.logFile(name)); err == nil {
			w.ts.Stderr().Write(log[min(d.began, int64(len(log))):])
		}
		if wantFailure && d.err != nil {
			return nil
		}
		return fmt.Errorf("the daemon of %s ended: %v", name, d.cmd.ProcessState)
	}
	switch {
	case !settled:
		return fmt.Errorf("the daemon of %s does not answer after %v: %s", name, patience, why)
	case wantFailure:
		return fmt.Errorf("the daemon of %s runs, against expectation", name)
	}
	return nil
}

// daemon returns the running daemon of a node.
func (w *world) daemon(args []string) (*daemon, error) {
	if len(args) < 1 {
		return nil, errUsage
	}
	d := w.daemons[args[0]]
	if d == nil {
		return nil, fmt.Errorf("no daemon was started on %s", args[0])
	}
	return d, nil
}

func (w *world) cmdShutdown(_ bool, args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	var ds []*daemon
	for i := range args {
		d, err := w.daemon(args[i : i+1])
		if err != nil {
			return err
		}
		ds = append(ds, d)
	}
	errs := make([]error, len(ds))
	var wg sync.WaitGroup
	for i, d := range ds {
		wg.Go(func() { errs[i] = d.shutdown() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// shutdown ends the daemon as an operator would.
func (d *daemon) shutdown() error {
	name := d.node.Name()
	if !d.running() {
		return fmt.Errorf("the daemon of %s has ended before: %v", name, d.cmd.ProcessState)
	}
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-d.done:
	case <-time.After(patience):
		return fmt.Errorf("the daemon of %s has not ended %v after SIGTERM", name, patience)
	}
	if d.err != nil {
		return fmt.Errorf("the daemon of %s ended with %w", name, d.err)
	}
	return nil
}

func (w *world) cmdCrash(_ bool, args []string) error {
	d, err := w.daemon(args)
	if err != nil {
		return err
	}
	if !d.running() {
		return fmt.Errorf("the daemon of %s has ended before: %v", args[0], d.cmd.ProcessState)
	}
	d.end()
	return nil
}

func (w *world) cmdRestart(_ bool, args []string) error {
	d, err := w.daemon(args)
	if err != nil {
		return err
	}
	if d.running() {
		if err := d.shutdown(); err != nil {
			return err
		}
	}
	flags := d.flags
	if len(args) > 1 {
		flags = append(flags[:4:4], args[1:]...) // --name and --tier stay
	}
	next, err := w.run(d.node, flags)
	if err != nil {
		return err
	}
	return w.await(next, false)
}
