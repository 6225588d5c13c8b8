package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"meshnode/node/control"
)

func (a *app) appPlanCommand() *cobra.Command {
	var (
		demand   = appDemand{rate: 10}
		all      bool
		exitCode bool
	)
	cmd := a.outputFlag(&cobra.Command{
		Use:   "plan FILE",
		Short: "Show where an app's workers would go, and why",
		Long: `plan looks at the mesh as the daemon knows it, measures what it needs, and says
for each worker of an app where it would go, what stands in the way of the other
nodes, and the smallest change that would let more of them fit. Nothing is
changed.

    meshnode app plan physics.yaml --users edge-a --rate 60 --event-time 4ms

A worker of the app that runs already is one of the app's name, or, of several,
the name and a number: physics-1. With --exit-code the exit code is 3 when
something would start, move or find no place, or break an objective.`,
		Args:              demand.args(a),
		ValidArgsFunction: manifestFiles,
		RunE: func(cmd *cobra.Command, args []string) error {
			m, text, err := a.readManifest(args[0])
			if err != nil {
				return err
			}
			req := demand.request(args[0], text)
			if m.Module.Path != "" {
				if st, err := os.Stat(modulePath(args[0], m)); err == nil {
					req.ModuleBytes = st.Size()
				} else {
					fmt.Fprintf(a.stderr, "meshnode: warning: %s\n", moduleMissing(args[0], m))
				}
			}
			ctx, cancel := withTimeout(cmd.Context(), requestTimeout, "plan "+m.Name)
			defer cancel()
			c := a.client()
			defer c.Close()
			p, err := c.PlanApp(ctx, req)
			if err != nil {
				return err
			}
			if err := a.print(&p, func(w io.Writer) { appPlanTable(w, p, all) }); err != nil {
				return err
			}
			if exitCode && p.Pending+p.Stuck+p.Violated > 0 {
				return silentError{control.ExitPending}
			}
			return nil
		},
	})
	demand.flags(a, cmd)
	f := cmd.Flags()
	f.BoolVar(&all, "all", false, "show all nodes and figures, not only the first few")
	f.BoolVar(&exitCode, "exit-code", false, "exit with 3 when something is to be done or an objective broken")
	return cmd
}

// An appDemand is what is expected of the users of an app's new workers.
type appDemand struct {
	users     []string
	rate      float64 // events a second, to each worker
	eventTime durationValue
}

func (d *appDemand) flags(a *app, cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVar(&d.users, "users", nil, "a node at which users of new workers will enter (repeatable) (default: this one)")
	f.Float64Var(&d.rate, "rate", d.rate, "how many events a second they will send to each new worker")
	f.Var(&d.eventTime, "event-time", "how long the handler takes for one on this node (default: not known)")
	_ = cmd.RegisterFlagCompletionFunc("users", a.completeNodeFlag)
}

// args wants a manifest's file, and a rate that makes sense.
func (d *appDemand) args(a *app) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := a.args("FILE, an app's manifest")(cmd, args); err != nil {
			return err
		}
		if !(d.rate >= 0 && d.rate <= 1e6) {
			return usagef("--rate: %v is out of range; it goes from 0 to 1000000", d.rate)
		}
		return nil
	}
}

// request asks about the manifest in file, whose content is text.
func (d *appDemand) request(file string, text []byte) control.PlanRequest {
	return control.PlanRequest{
		File: file, Manifest: string(text), Users: d.users, RatePerSecond: d.rate, EventMs: control.Millis(d.eventTime.d),
	}
}

// fewNodes is how many nodes a table shows unless asked for all.
const fewNodes = 5

func appPlanTable(w io.Writer, p control.Plan, all bool) {
	names := make(map[string]string)
	for _, wk := range p.Workers {
		learnNames(names, wk.Fits)
		learnNames(names, wk.Others)
	}
	for i, wk := range p.Workers {
		if i > 0 {
			fmt.Fprintln(w)
		}
		field(w, "worker", freeText(wk.Worker))
		decisionRows(w, wk.Decision, names)
		for _, v := range wk.Violated {
			field(w, "violated", v+" is predicted to be broken there")
		}
		reportRows(w, "fits", wk.Fits, all)
		reportRows(w, "does not fit", wk.Others, all)
		for i, c := range wk.Changes {
			if i == 0 || all {
				field(w, "nearest change", freeText(c.Text))
			}
		}
	}
	noteRows(w, p.Notes)
}

func learnNames(names map[string]string, rs []control.PlacementReport) {
	for _, r := range rs {
		names[r.Node] = r.Name
	}
}

func nodeName(names map[string]string, id string) string {
	if n := names[id]; n != "" {
		return freeText(n)
	}
	return freeText(id)
}

func decisionRows(w io.Writer, d control.PlacementDecision, names map[string]string) {
	switch {
	case d.Action == "stuck":
		field(w, "decision", "finds no place: "+freeText(d.Text))
	case d.Action == "move" && d.From == "":
		field(w, "decision", "would start on "+nodeName(names, d.To))
	case d.Action == "move":
		field(w, "decision", fmt.Sprintf("would move from %s to %s: %s", nodeName(names, d.From), nodeName(names, d.To), freeText(d.Text)))
	default:
		field(w, "decision", fmt.Sprintf("stays on %s: %s", nodeName(names, d.From), freeText(d.Text)))
	}
	if d.Degraded {
		field(w, "degraded", "it breaks a hard objective there too, and no node keeps all")
	}
	if m := d.Move; m != nil {
		field(w, "move", fmt.Sprintf("%s: blackout %s, %s before it, %s after it, %s", freeText(m.Strategy),
			millis(m.BlackoutMs), millis(m.BeforeMs), millis(m.DrainMs), size(uint64(max(m.Bytes, 0)))))
	}
}

// reportRows lists nodes: those that fit with their figures, the others with
// what they lack.
func reportRows(w io.Writer, title string, rs []control.PlacementReport, all bool) {
	for i := range rs {
		r := &rs[i]
		if i == fewNodes && !all {
			fmt.Fprintf(w, "\tand %d more; --all shows them\n", len(rs)-i)
			return
		}
		if i > 0 {
			title = ""
		}
		line := fmt.Sprintf("%s (%s)", freeText(r.Name), freeText(r.Tier))
		if len(r.Failures) == 0 {
			line += fmt.Sprintf(", cost %.3f", r.Cost)
			for _, name := range []string{"event", "network", "load", "blackout"} {
				if t := r.Term(name); t != nil {
					line += ", " + termText(t, false)
				}
			}
		}
		fmt.Fprintf(w, "%s\t%s\n", title, line)
		for _, f := range r.Failures {
			where := ""
			if f.Path != "" {
				where = " (" + f.Path + ")"
			}
			fmt.Fprintf(w, "\t  %s: %s, want %s%s\n", freeText(f.Code), freeText(f.Have), freeText(f.Want), freeText(where))
		}
		if all {
			for j := range r.Terms {
				fmt.Fprintf(w, "\t  %s\n", termText(&r.Terms[j], true))
			}
		}
	}
}

// termText writes a figure, with the age of its inputs where asked for.
func termText(t *control.PlacementTerm, origin bool) string {
	value, limit := fmt.Sprintf("%.3g", t.Value), fmt.Sprintf("%.3g", t.Limit)
	switch t.Unit {
	case "ms":
		value, limit = millis(t.Value), millis(t.Limit)
	case "B":
		value, limit = size(uint64(max(t.Value, 0))), size(uint64(max(t.Limit, 0)))
	}
	s := freeText(t.Name) + " " + value
	if t.Limit > 0 {
		s += " of " + limit
	}
	if origin {
		s += fmt.Sprintf(" (%s", freeText(t.From))
		if t.AgeMs > 0 {
			s += ", " + time.Duration(t.AgeMs*float64(time.Millisecond)).Round(100*time.Millisecond).String() + " old"
		}
		s += ")"
	}
	return s
}

func noteRows(w io.Writer, notes []string) {
	for i, n := range notes {
		title := "note"
		if i > 0 {
			title = ""
		}
		fmt.Fprintf(w, "%s\t%s\n", title, freeText(n))
	}
}

func (a *app) workerExplainCommand() *cobra.Command {
	var (
		file string
		all  bool
	)
	cmd := a.outputFlag(&cobra.Command{
		Use:   "explain WORKER",
		Short: "Say why a worker is where it is, and why not elsewhere",
		Long: `explain asks the worker's home to look at all nodes as places for it: the figures
behind each, how old they are, what each node lacks, and how far the worker is
from moving. Nothing is changed.

    meshnode worker explain physics --manifest physics.yaml`,
		Args:              a.args("WORKER, its name or id"),
		ValidArgsFunction: a.completeWorkers,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := control.ExplainRequest{}
			if file != "" {
				_, text, err := a.readManifest(file)
				if err != nil {
					return err
				}
				req.File, req.Manifest = file, string(text)
			}
			ctx, cancel := withTimeout(cmd.Context(), requestTimeout, "explain "+args[0])
			defer cancel()
			c := a.client()
			defer c.Close()
			e, err := c.Explain(ctx, args[0], req)
			if err != nil {
				return err
			}
			return a.print(&e, func(w io.Writer) { explanationTable(w, e, all) })
		},
	})
	cmd.Flags().StringVar(&file, "manifest", "", "the app's manifest (default: the one it was started with)")
	cmd.Flags().BoolVar(&all, "all", false, "show all nodes and figures, not only the first few")
	_ = cmd.RegisterFlagCompletionFunc("manifest", func(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return manifestFiles(cmd, nil, "")
	})
	return cmd
}

func explanationTable(w io.Writer, e control.Explanation, all bool) {
	field(w, "worker", freeText(e.Worker))
	field(w, "app", freeText(e.App))
	field(w, "summary", freeText(e.Summary))
	if m := e.Decision.Move; m != nil {
		field(w, "move", fmt.Sprintf("%s: blackout %s", freeText(m.Strategy), millis(m.BlackoutMs)))
	}
	if e.Would != nil {
		field(w, "would move", freeText(e.Would.Text))
	}
	if e.Here != nil {
		title := "here"
		for i := range e.Here.Terms {
			fmt.Fprintf(w, "%s\t%s\n", title, termText(&e.Here.Terms[i], true))
			title = ""
		}
		for _, f := range e.Here.Failures {
			fmt.Fprintf(w, "%s\t%s\n", title, strings.TrimSpace(freeText(fmt.Sprintf("lacks %s: %s, want %s", f.Code, f.Have, f.Want))))
			title = ""
		}
	}
	reportRows(w, "elsewhere", e.Others, all)
	noteRows(w, e.Notes)
}
