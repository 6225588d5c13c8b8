package main

import (
	"context"
	"sync"

	"github.com/spf13/cobra"

	"meshnode/node"
	"meshnode/node/control"
)

func viaFlag(cmd *cobra.Command, via *addrsValue) {
	cmd.Flags().Var(via, "via", "talk to this node over the network, with the certificate in the state directory, instead of to this machine's; another is used when it fails (repeatable)")
}

// A lineSession is a session that can be told that no more messages come: Recv
// then returns control.ErrSessionDone after the last reply.
type lineSession interface {
	Send(ctx context.Context, m control.Message) error
	End(ctx context.Context) error
	Recv(ctx context.Context) (control.Reply, error)
}

// remote opens a client of the nodes at those addresses.
func (a *app) remote(via []string) (*node.Client, error) {
	return node.NewClient(node.ClientConfig{StateDir: a.stateDir, Nodes: via})
}

// exchange sends one message and returns the reply, through this machine's node
// or, if there are any, those at the addresses.
func (a *app) exchange(ctx context.Context, via []string, worker string, m control.Message) (control.Reply, error) {
	if len(via) == 0 {
		c := a.client()
		defer c.Close()
		if m.Call {
			return c.Call(ctx, worker, m.Payload)
		}
		return control.Reply{}, c.Send(ctx, worker, m.Payload)
	}
	c, err := a.remote(via)
	if err != nil {
		return control.Reply{}, err
	}
	defer c.Close()
	s, err := c.Session(ctx, worker)
	if err != nil {
		return control.Reply{}, err
	}
	defer s.Close()
	if err := s.Send(ctx, m); err != nil {
		return control.Reply{}, err
	}
	return s.Recv(ctx)
}

func (a *app) attachVia(ctx context.Context, via []string, worker string) error {
	c, err := a.remote(via)
	if err != nil {
		return err
	}
	defer c.Close()
	open, stop := withTimeout(ctx, requestTimeout, "attach to "+worker)
	defer stop()
	s, err := c.Session(open, worker)
	if err != nil {
		return err
	}
	defer s.Close()
	return a.attach(ctx, worker, &counted{s: s, changed: make(chan struct{})})
}

// A counted session counts what has no reply, so that its user can be told when
// nothing more comes. Send and Recv may be called concurrently.
type counted struct {
	s *node.ClientSession

	mu      sync.Mutex
	due     int
	ended   bool
	changed chan struct{} // closed and replaced at every change of the above
}

func (c *counted) Send(ctx context.Context, m control.Message) error {
	if err := c.s.Send(ctx, m); err != nil {
		return err
	}
	c.change(func() { c.due++ })
	return nil
}

func (c *counted) End(context.Context) error {
	c.change(func() { c.ended = true })
	return nil
}

func (c *counted) change(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *counted) Recv(ctx context.Context) (control.Reply, error) {
	for {
		c.mu.Lock()
		due, ended, changed := c.due, c.ended, c.changed
		c.mu.Unlock()
		switch {
		case due > 0:
			r, err := c.s.Recv(ctx)
			if err == nil {
				c.change(func() { c.due-- })
			}
			return r, err
		case ended:
			return control.Reply{}, control.ErrSessionDone
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return control.Reply{}, context.Cause(ctx)
		}
	}
}
