package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/spf13/cobra"

	"meshnode/node/control"
)

func (a *app) eventsCommand() *cobra.Command {
	var (
		follow bool
		all    bool
		at     string
	)
	cmd := a.outputFlag(&cobra.Command{
		Use:   "events",
		Short: "Show which workers were started and moved, and why",
		Long: `events shows what this node has decided about workers, oldest first: each start
and move with its reason, what came of it, and of moves what was expected and
what was measured; and what keeps a worker that should move. The node remembers
about a thousand, in memory only. A worker's moves are told by the nodes that it
left.

    meshnode events -f --all     # of all nodes, as they happen`,
		Args: func(cmd *cobra.Command, args []string) error {
			if all && at != "" {
				return usagef("--all and --node exclude each other")
			}
			return a.args()(cmd, args)
		},
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := a.client()
			defer c.Close()
			nodes, err := eventNodes(cmd.Context(), c, all, at)
			if err != nil {
				return err
			}
			return a.events(cmd.Context(), c, nodes, follow)
		},
	})
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with new ones")
	cmd.Flags().BoolVar(&all, "all", false, "those of all nodes")
	cmd.Flags().StringVar(&at, "node", "", "those of another node")
	_ = cmd.RegisterFlagCompletionFunc("node", a.completeNodeFlag)
	return cmd
}

// eventNodes are the ids of the nodes whose events are asked for.
func eventNodes(ctx context.Context, c *control.Client, all bool, at string) ([]string, error) {
	ctx, cancel := withTimeout(ctx, requestTimeout, "events")
	defer cancel()
	switch {
	case at != "":
		return []string{at}, nil
	case !all:
		s, err := c.Status(ctx)
		return []string{s.ID}, err
	}
	ns, err := c.Nodes(ctx)
	var ids []string
	for _, n := range ns {
		if n.State == "alive" {
			ids = append(ids, n.ID)
		}
	}
	return ids, err
}

// events prints the events of several nodes: those there are in the order of
// their times, then those that come as they come.
func (a *app) events(ctx context.Context, c *control.Client, nodes []string, follow bool) error {
	if !follow {
		ctx, cancel := withTimeout(ctx, requestTimeout, "events")
		defer cancel()
		var all []control.PlacementEvent
		var failed error
		for _, id := range nodes {
			err := c.Events(ctx, id, false, func(e control.PlacementEvent) error {
				all = append(all, e)
				return nil
			})
			if err != nil && len(nodes) == 1 {
				return err
			}
			if err != nil {
				fmt.Fprintf(a.stderr, "meshnode: the events of node %s are missing: %s\n", id, freeText(err.Error()))
				failed = silentError{control.ExitCode(err)}
			}
		}
		slices.SortStableFunc(all, func(x, y control.PlacementEvent) int { return x.At.Compare(y.At) })
		for i := range all {
			if err := a.printEvent(&all[i]); err != nil {
				return err
			}
		}
		return failed
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex // one line at a time
	var wg sync.WaitGroup
	errs := make([]error, len(nodes))
	for i, id := range nodes {
		wg.Go(func() {
			errs[i] = c.Events(ctx, id, true, func(e control.PlacementEvent) error {
				mu.Lock()
				defer mu.Unlock()
				return a.printEvent(&e)
			})
			mu.Lock()
			defer mu.Unlock()
			if err := errs[i]; err != nil && !errors.Is(err, context.Canceled) && len(nodes) > 1 {
				fmt.Fprintf(a.stderr, "meshnode: no more events of node %s: %s\n", id, freeText(err.Error()))
			}
		})
	}
	wg.Wait()
	err := errors.Join(errs...)
	if errors.Is(err, context.Canceled) {
		return nil // how one stops following
	}
	return err
}

func (a *app) printEvent(e *control.PlacementEvent) error {
	if a.format.value == "json" {
		return control.Encode(a.stdout, e)
	}
	_, err := fmt.Fprintln(a.stdout, eventText(e))
	return err
}

// eventText is an event on one line.
func eventText(e *control.PlacementEvent) string {
	s := fmt.Sprintf("%s %s %s", e.At.Local().Format("15:04:05.000"), freeText(e.Node), freeText(e.Event))
	if e.Worker != "" {
		s += " " + freeText(e.Worker)
	}
	switch {
	case e.From != "" && e.To != "":
		s += fmt.Sprintf(" %s -> %s", freeText(e.From), freeText(e.To))
	case e.To != "":
		s += " on " + freeText(e.To)
	}
	s += ": " + freeText(e.Text)
	if e.Outcome != "" {
		s += " [" + freeText(e.Outcome) + "]"
	}
	if m := e.Measured; m != nil {
		s += fmt.Sprintf("; %s: blackout %s, total %s", freeText(e.Strategy), millis(m.BlackoutMs), millis(m.TotalMs))
		if p := e.Predicted; p != nil {
			s += fmt.Sprintf(" (expected %s, %s)", millis(p.BlackoutMs), millis(p.TotalMs))
		}
	}
	if e.Error != "" {
		s += "; " + freeText(e.Error)
	}
	return s
}
