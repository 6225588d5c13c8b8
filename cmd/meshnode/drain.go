package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"meshnode/node/control"
)

func (a *app) nodeDrainCommand() *cobra.Command {
	var (
		deadline = durationValue{d: 5 * time.Minute}
		force    bool
	)
	cmd := a.outputFlag(&cobra.Command{
		Use:   "drain NODE",
		Short: "Move all workers of a node elsewhere",
		Long: `drain closes a node to new workers, as cordon does, and moves those that are
there to the nodes where they fit best: each runs there before it is gone here.
It ends when none is left or at the deadline, and says what is left and why; the
exit code is 6 then. Interrupted, it moves nothing more. The node stays closed
until uncordon, which also ends a drain.

With -o json each change is a line, and the last line the result.`,
		Args:              a.args("NODE, a node's name or id"),
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			c := a.client()
			defer c.Close()
			line := newLiveLine(a.stderr)
			d, err := c.Drain(cmd.Context(), args[0], control.DrainRequest{DeadlineMs: control.Millis(deadline.d), Force: force},
				func(p control.DrainProgress) {
					if a.format.value == "json" {
						_ = control.Encode(a.stdout, &p)
						return
					}
					line.set(drainText(p))
				})
			line.clear()
			if err != nil {
				return err
			}
			if err := a.print(&d, func(w io.Writer) { drainTable(w, d) }); err != nil {
				return err
			}
			switch d.Outcome {
			case control.DrainDone:
				return nil
			case control.DrainDeadline:
				return silentError{control.ExitTimeout}
			}
			return silentError{control.ExitFailed}
		},
	})
	cmd.Flags().Var(&deadline, "deadline", "how long it may take")
	cmd.Flags().BoolVar(&force, "force", false, "move pinned workers too")
	return cmd
}

// drainText is what a person sees while a node drains.
func drainText(p control.DrainProgress) string {
	done := max(0, p.Workers-len(p.Left))
	s := fmt.Sprintf("%s  %d of %d workers have left", millis(p.ElapsedMs), done, p.Workers)
	if p.Workers > 0 {
		s = bar(done*20/p.Workers, 20) + "  " + s
	}
	var moving []string
	for _, l := range p.Left {
		if l.To != "" {
			moving = append(moving, freeText(l.Worker)+" to "+freeText(l.To))
		}
	}
	if len(moving) > 0 {
		s += ": " + strings.Join(moving, ", ")
	}
	return s
}

func drainTable(w io.Writer, d control.DrainResult) {
	switch d.Outcome {
	case control.DrainDone:
		fmt.Fprintf(w, "node %s is empty: %s moved in %s\n", freeText(d.Node), plural(d.Moved, "worker"), millis(d.ElapsedMs))
	case control.DrainUndone:
		fmt.Fprintf(w, "node %s was opened again: %s moved, %d still here\n", freeText(d.Node), plural(d.Moved, "worker"), len(d.Left))
	default:
		fmt.Fprintf(w, "node %s is not empty after %s: %s moved, %d left\n", freeText(d.Node), millis(d.ElapsedMs), plural(d.Moved, "worker"), len(d.Left))
	}
	for _, l := range d.Left {
		s := freeText(l.Reason)
		if l.To != "" {
			s = "on its way to " + freeText(l.To)
		}
		if l.Hint != "" {
			s += "; " + freeText(l.Hint)
		}
		fmt.Fprintf(w, "  %s (%s): %s\n", freeText(l.Worker), l.State, s)
	}
}
