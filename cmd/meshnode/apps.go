package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"meshnode/node/control"
)

const appArg = "NAME, an app's name"

func (a *app) appApplyCommand() *cobra.Command {
	var (
		demand  = appDemand{rate: 10}
		replace bool
		timeout = durationValue{d: 2 * applyTimeout}
	)
	cmd := a.outputFlag(&cobra.Command{
		Use:   "apply FILE",
		Short: "Let an app run as its manifest says",
		Long: `apply starts the workers that an app should have and does not, each on the node
where it fits best, and lets those that run go by the manifest from now on. It
says what it did with each; applied again, it does nothing.

    meshnode app apply physics.yaml

From then on each worker is moved by its own node whenever that pays, as the
manifest's section migration allows: ` + "`meshnode events -f`" + ` watches. A worker of the
app is one of the app's name, or, of several, the name and a number: physics-1.

Where no node fits a worker that is missing nothing is done, and the reasons are
given. Module, arguments, environment and memory limit of a running worker
cannot change. Workers beyond the number in the manifest are left alone, and so
are those whose node is gone, unless --replace says that it will not come back.`,
		Args:              demand.args(a),
		ValidArgsFunction: manifestFiles,
		RunE: func(cmd *cobra.Command, args []string) error {
			m, text, err := a.readManifest(args[0])
			if err != nil {
				return err
			}
			ctx, cancel := withTimeout(cmd.Context(), timeout.d, "apply "+m.Name)
			defer cancel()
			c := a.client()
			defer c.Close()
			req := control.ApplyRequest{PlanRequest: demand.request(args[0], text), Replace: replace}
			if m.Module.Path != "" {
				file, err := a.openModule(modulePath(args[0], m))
				if err != nil {
					return fmt.Errorf("module.path: %w", err)
				}
				defer file.Close()
				module, err := c.PutModule(ctx, file.r, file.size)
				if err != nil {
					return err
				}
				req.Module = module.Hash
			}
			d, err := c.Apply(ctx, req)
			if err != nil {
				return err
			}
			err = a.print(&d, func(w io.Writer) {
				row(w, "WORKER", "ACTION", "NODE", " ")
				for _, k := range d.Workers {
					row(w, freeText(k.Worker), k.Action, freeText(k.Node), freeText(k.Text))
				}
				for _, n := range d.Notes {
					fmt.Fprintf(w, "note: %s\n", freeText(n))
				}
			})
			if err == nil && d.Failed > 0 {
				err = silentError{control.ExitFailed}
			}
			return err
		},
	})
	demand.flags(a, cmd)
	f := cmd.Flags()
	f.BoolVar(&replace, "replace", false, "start workers anew whose node is gone for good: if it still runs them, cut off, there will be two")
	f.Var(&timeout, "timeout", "how long to wait until the workers run")
	return cmd
}

// applyTimeout is what starting workers may take: modules may have to travel
// and to be compiled.
const applyTimeout = 4 * requestTimeout

func (a *app) appListCommand() *cobra.Command {
	return a.outputFlag(&cobra.Command{
		Use:               "ls",
		Aliases:           []string{"list"},
		Short:             "List the apps that have workers",
		Args:              a.args(),
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := withTimeout(cmd.Context(), requestTimeout, "list the apps")
			defer cancel()
			c := a.client()
			defer c.Close()
			apps, err := c.Apps(ctx)
			if err != nil {
				return err
			}
			return a.print(&control.AppList{Apps: apps}, func(w io.Writer) {
				row(w, "NAME", "WORKERS", "ON")
				for _, p := range apps {
					row(w, freeText(p.Name), len(p.Workers), whereText(p.Workers))
				}
			})
		},
	})
}

// whereText says where workers are, and how they fare if they do not run.
func whereText(ws []control.Worker) string {
	var out []string
	for _, w := range ws {
		s := freeText(w.HomeName)
		if w.State != control.StateRunning {
			s += " (" + w.State + ")"
		}
		out = append(out, s)
	}
	return strings.Join(out, ", ")
}

func (a *app) appShowCommand() *cobra.Command {
	return a.outputFlag(&cobra.Command{
		Use:               "show NAME",
		Short:             "Describe one app: its workers, and the manifest they go by",
		Args:              a.args(appArg),
		ValidArgsFunction: a.completeApps,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := withTimeout(cmd.Context(), requestTimeout, "show "+args[0])
			defer cancel()
			c := a.client()
			defer c.Close()
			p, err := c.App(ctx, args[0])
			if err != nil {
				return err
			}
			if err := a.print(&p, func(w io.Writer) { appWorkerRows(w, p) }); err != nil || a.format.value == "json" {
				return err
			}
			_, err = fmt.Fprintf(a.stdout, "\n%s", p.Manifest)
			return err
		},
	})
}

func appWorkerRows(w io.Writer, p control.App) {
	row(w, "WORKER", "NODE", "STATE", "FOR", "EPOCH", "MEMORY", "EVENTS", " ")
	for _, k := range p.Workers {
		var more []string
		if k.Pinned {
			more = append(more, "pinned")
		}
		if g := guardianText(k.Guardian); g != "" {
			more = append(more, "guardian "+g)
		}
		row(w, freeText(k.Name), freeText(k.HomeName), workerState(k), ago(k.Since), k.Epoch, size(k.MemoryBytes), k.Events, strings.Join(more, "; ")+" ")
	}
	for _, n := range p.Notes {
		fmt.Fprintf(w, "note: %s\n", freeText(n))
	}
}

func (a *app) appRemoveCommand() *cobra.Command {
	timeout := durationValue{d: requestTimeout}
	cmd := a.outputFlag(&cobra.Command{
		Use:               "rm NAME",
		Aliases:           []string{"remove"},
		Short:             "End an app's workers; their state is gone",
		Args:              a.args(appArg),
		ValidArgsFunction: a.completeApps,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := withTimeout(cmd.Context(), timeout.d, "remove "+args[0])
			defer cancel()
			c := a.client()
			defer c.Close()
			p, err := c.RemoveApp(ctx, args[0])
			if err != nil {
				return err
			}
			return a.print(&p, func(w io.Writer) {
				fmt.Fprintf(w, "app %s is removed, and %s with it\n", freeText(p.Name), plural(len(p.Workers), "worker"))
			})
		},
	})
	cmd.Flags().Var(&timeout, "timeout", "how long to wait")
	return cmd
}

// completeApps offers the names of apps for the first argument.
func (a *app) completeApps(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.offer(cmd, func(ctx context.Context, c *control.Client) (out []cobra.Completion, err error) {
		apps, err := c.Apps(ctx)
		for _, p := range apps {
			out = append(out, cobra.CompletionWithDesc(p.Name, "on "+whereText(p.Workers)))
		}
		return out, err
	})
}

func (a *app) workerPinCommand() *cobra.Command {
	var to string
	cmd := a.outputFlag(&cobra.Command{
		Use:   "pin NAME [--to NODE]",
		Short: "Keep a worker from moving by itself",
		Long: `pin keeps a worker where it is until unpin: it does not move by itself, and a
node that drains keeps it unless the drain is forced. ` + "`worker migrate`" + ` still moves
it, and it stays pinned there. With --to it is pinned and moved at once.`,
		Args:              a.args(workerArg),
		ValidArgsFunction: a.completeWorkers,
		RunE: func(cmd *cobra.Command, args []string) error {
			c := a.client()
			defer c.Close()
			ctx, cancel := withTimeout(cmd.Context(), requestTimeout, "pin "+args[0])
			defer cancel()
			w, err := c.Pin(ctx, args[0])
			if err != nil {
				return err
			}
			if to != "" {
				node, err := c.Node(ctx, to)
				if err != nil {
					return fmt.Errorf("it is pinned to %s, and was not moved: %w", w.HomeName, err)
				}
				if node.ID != w.Home {
					if _, err := c.Migrate(cmd.Context(), w.ID, control.MigrateRequest{To: node.ID}, nil); err != nil {
						return fmt.Errorf("it is pinned, and was not moved: %w", err)
					}
					ctx, cancel := withTimeout(cmd.Context(), requestTimeout, "show "+args[0])
					defer cancel()
					if w, err = c.Worker(ctx, w.ID); err != nil {
						return err
					}
				}
			}
			return a.print(&w, func(out io.Writer) {
				fmt.Fprintf(out, "%s is pinned to %s\n", freeText(w.Name), freeText(w.HomeName))
			})
		},
	})
	cmd.Flags().StringVar(&to, "to", "", "move it to this node first")
	_ = cmd.RegisterFlagCompletionFunc("to", a.completeNodeFlag)
	return cmd
}

func (a *app) workerUnpinCommand() *cobra.Command {
	return a.outputFlag(&cobra.Command{
		Use:               "unpin NAME",
		Short:             "Let a worker move by itself again",
		Args:              a.args(workerArg),
		ValidArgsFunction: a.completeWorkers,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := withTimeout(cmd.Context(), requestTimeout, "unpin "+args[0])
			defer cancel()
			c := a.client()
			defer c.Close()
			w, err := c.Unpin(ctx, args[0])
			if err != nil {
				return err
			}
			return a.print(&w, func(out io.Writer) {
				fmt.Fprintf(out, "%s may move by itself\n", freeText(w.Name))
			})
		},
	})
}
