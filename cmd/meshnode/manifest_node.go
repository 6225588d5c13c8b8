package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"meshnode/node/control"
)

func (a *app) nodeCordonCommand(on bool) *cobra.Command {
	use, short, long := "cordon NODE", "Let a node take no new workers",
		`cordon closes a node to new workers: none can be started there or moved there.
Those that are there stay. It outlives the node's daemon; uncordon ends it.`
	if !on {
		use, short, long = "uncordon NODE", "Let a node take new workers again", "uncordon opens a node that was cordoned."
	}
	return a.outputFlag(&cobra.Command{
		Use: use, Short: short, Long: long,
		Args:              a.args("NODE, a node's name or id"),
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.configure(cmd, args[0], control.NodeSettings{Cordoned: &on})
		},
	})
}

func (a *app) nodeLabelCommand() *cobra.Command {
	return a.outputFlag(&cobra.Command{
		Use:   "label NODE KEY=VALUE... KEY-...",
		Short: "Set and remove labels of a node",
		Long: `label sets labels of a node, which manifests can ask for, and removes those that
are followed by a dash. They outlive the node's daemon and go above its flags.

    meshnode node label edge-a zone=berlin gpu-`,
		Args: func(cmd *cobra.Command, args []string) error {
			a.path = cmd.CommandPath()
			if len(args) < 2 {
				return usagef("`%s` needs NODE and at least one KEY=VALUE or KEY-", cmd.CommandPath())
			}
			return nil
		},
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			labels := make(map[string]*string)
			for _, arg := range args[1:] {
				key, value, set := strings.Cut(arg, "=")
				if !set {
					if key, set = strings.CutSuffix(arg, "-"); !set {
						return usagef("%q is neither KEY=VALUE nor KEY-", arg)
					}
				}
				if _, twice := labels[key]; twice {
					return usagef("label %q is given twice", key)
				}
				if labels[key] = nil; strings.Contains(arg, "=") {
					labels[key] = &value
				}
			}
			return a.configure(cmd, args[0], control.NodeSettings{Labels: labels})
		},
	})
}

// configure sends settings to a node and prints what it is then.
func (a *app) configure(cmd *cobra.Command, node string, s control.NodeSettings) error {
	ctx, cancel := withTimeout(cmd.Context(), requestTimeout, "configure "+node)
	defer cancel()
	c := a.client()
	defer c.Close()
	n, err := c.Configure(ctx, node, s)
	var e *control.Error
	if errors.As(err, &e) && e.Code == control.CodeMoved {
		return fmt.Errorf("node %s passes requests on to %s: its name has changed meanwhile, try again", node, e.Home)
	}
	if err != nil {
		return err
	}
	return a.print(&n, func(w io.Writer) {
		state := "open to new workers"
		if n.Cordoned {
			state = "cordoned"
		}
		if l := labelText(n.Labels); l != "" {
			state += ", labels " + l
		}
		fmt.Fprintf(w, "%s is %s\n", freeText(n.Name), state)
	})
}
