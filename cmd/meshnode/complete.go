package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"meshnode/node/control"
)

// completeTimeout bounds how long a shell waits for names after a tab.
const completeTimeout = time.Second

// completeNodes offers the names of nodes for the first argument.
func (a *app) completeNodes(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.nodeNames(cmd)
}

// completeNodeFlag offers them for a flag.
func (a *app) completeNodeFlag(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.nodeNames(cmd)
}

func (a *app) nodeNames(cmd *cobra.Command) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.offer(cmd, func(ctx context.Context, c *control.Client) (out []cobra.Completion, err error) {
		nodes, err := c.Nodes(ctx)
		for _, n := range nodes {
			out = append(out, cobra.CompletionWithDesc(n.Name, n.Tier+", "+n.State))
		}
		return out, err
	})
}

// completeWorkers offers the names of workers for the first argument.
func (a *app) completeWorkers(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.offer(cmd, func(ctx context.Context, c *control.Client) (out []cobra.Completion, err error) {
		workers, err := c.Workers(ctx)
		for _, w := range workers {
			out = append(out, cobra.CompletionWithDesc(w.Name, w.State+" on "+w.HomeName))
		}
		return out, err
	})
}

// offer asks the daemon for what may stand here. Without one there is nothing
// to offer.
func (a *app) offer(cmd *cobra.Command, names func(context.Context, *control.Client) ([]cobra.Completion, error)) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx, cancel, ok := a.completing(cmd)
	if !ok {
		return nil, cobra.ShellCompDirectiveError
	}
	defer cancel()
	c := a.client()
	defer c.Close()
	out, err := names(ctx, c)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// completing prepares a completion: it runs in place of a command, before
// which the flags have been read and nothing else.
func (a *app) completing(cmd *cobra.Command) (context.Context, context.CancelFunc, bool) {
	if a.locate() != nil {
		return nil, nil, false
	}
	parent := cmd.Context()
	if parent == nil {
		parent = context.Background()
	}
	ctx, cancel := context.WithTimeout(parent, completeTimeout)
	return ctx, cancel, true
}

// noFiles completes nothing, rather than with the names of files.
func noFiles(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveNoFileComp
}
