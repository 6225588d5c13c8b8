package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"meshnode/e2e/apps/physics/proto"
	"meshnode/node/control"
)

const (
	demoHz = 60
	// demoRef and demoWorker name the two workers of a demo.
	demoWorker, demoRef = "physics", "reference"
)

// demoRoute is where the worker goes: each hop starts where the last ended.
var demoRoute = []string{"device", "edge-a", "edge-b", "cloud", "device"}

func (a *app) demoCommand() *cobra.Command {
	d := demo{app: a, bodies: 512, hopTicks: demoHz}
	timeout := durationValue{d: 2 * time.Minute}
	cmd := a.outputFlag(&cobra.Command{
		Use:   "demo",
		Short: "Move a running worker through a mesh of four nodes on this machine",
		Long: `demo starts a mesh of four nodes on this machine, a device, two edge servers
and a cloud, each its own process with temporary state, and runs a physics
simulation on the device. A client at the device asks it for 60 steps a second
while it moves from the device through both edges to the cloud and back.

At the end the same steps run again on a worker that never moves. The two must
agree in every bit of their state, or the demo fails.`,
		Args:              a.args(),
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case d.bodies < 1 || d.bodies > proto.MaxCubes:
				return usagef("--bodies: %d is out of range; it goes from 1 to %d", d.bodies, proto.MaxCubes)
			case d.hopTicks < 1 || d.hopTicks > 1_000_000:
				return usagef("--ticks-per-hop: %d is out of range; it goes from 1 to 1000000", d.hopTicks)
			}
			module, err := appModule(d.module, "physics")
			if err != nil {
				return err
			}
			d.module = module
			ctx, cancel := context.WithTimeoutCause(cmd.Context(), timeout.d, &control.Error{
				Code: control.CodeTimeout, Message: fmt.Sprintf("the demo was not done within %s", timeout.d),
				Hint: "give it longer with --timeout, or less to do with --bodies",
			})
			defer cancel()
			return d.run(ctx)
		},
	})
	f := cmd.Flags()
	f.IntVar(&d.bodies, "bodies", d.bodies, "how many rigid bodies to simulate")
	f.IntVar(&d.hopTicks, "ticks-per-hop", d.hopTicks, "the least number of steps between two moves")
	f.StringVar(&d.module, "app", "", "the physics app (default: apps/physics.wasm beside this binary, then bin/apps/physics.wasm)")
	f.BoolVar(&d.keep, "keep", false, "keep the nodes' state and logs, and say where they are")
	f.Var(&timeout, "timeout", "how long it may take in all")
	_ = cmd.MarkFlagFilename("app", "wasm")
	return cmd
}

// appModule finds an example app to run, unless path names one.
func appModule(path, app string) (string, error) {
	candidates := []string{path}
	if path == "" {
		candidates = candidates[:0]
		if exe, err := os.Executable(); err == nil {
			candidates = append(candidates, filepath.Join(filepath.Dir(exe), "apps", app+".wasm"))
		}
		candidates = append(candidates, filepath.Join("bin", "apps", app+".wasm"))
	}
	for _, c := range candidates {
		switch _, err := os.Stat(c); {
		case err == nil:
			return c, nil
		case !errors.Is(err, fs.ErrNotExist):
			return "", usagef("%s", err)
		}
	}
	e := usagef("the app %s is not there", candidates[len(candidates)-1])
	e.Hint = "`task apps` builds it; --app names another place"
	return "", e
}

// A demo is one run of the command.
type demo struct {
	app      *app
	bodies   int
	hopTicks int
	module   string
	keep     bool

	line  *liveLine
	begin time.Time
}

// say tells a person what is happening now.
func (d *demo) say(format string, args ...any) {
	d.line.clear()
	fmt.Fprintf(d.app.stderr, "%5.1fs  %s\n", time.Since(d.begin).Seconds(), fmt.Sprintf(format, args...))
}

func (d *demo) run(ctx context.Context) (err error) {
	d.begin, d.line = time.Now(), newLiveLine(d.app.stderr)
	defer d.line.clear()
	dir, err := os.MkdirTemp("", "meshnode-demo-")
	if err != nil {
		return fmt.Errorf("make a place for the nodes' state: %w", err)
	}
	level := "info"
	if d.keep {
		level = "debug"
	}
	procs := newProcesses(dir, level)
	defer func() {
		d.line.clear()
		procs.stop()
		if d.keep {
			fmt.Fprintf(d.app.stderr, "state and logs are in %s\n", dir)
			return
		}
		err = errors.Join(err, os.RemoveAll(dir))
	}()

	d.say("starting four nodes: device, edge-a, edge-b, cloud")
	mesh, err := startMesh(ctx, procs, []demoNode{{"cloud", "cloud"}, {"device", "device"}, {"edge-a", "edge"}, {"edge-b", "edge"}})
	if err != nil {
		return err
	}
	defer mesh.close()
	result, err := d.measure(ctx, mesh)
	if err != nil {
		return procs.explain(err)
	}
	result.ElapsedMs = control.Millis(time.Since(d.begin))
	if err := d.app.print(&result, func(w io.Writer) { demoTable(w, result) }); err != nil {
		return err
	}
	if !result.StateEqual {
		return &control.Error{
			Code:    control.CodeFailed,
			Message: fmt.Sprintf("THE STATES DIFFER: the worker that moved has %s, the one that did not %s", result.Digest, result.Reference),
			Hint:    "this is a bug in meshnode: nothing about moving may change a worker's state",
		}
	}
	return nil
}

func demoTable(w io.Writer, r control.Demo) {
	fmt.Fprintln(w)
	row(w, "HOP", "MEMORY", "SENT", "DEMANDED", "BLACKOUT", "CLIENT GAP", "TOTAL")
	gap := 0.0
	for _, h := range r.Hops {
		gap = max(gap, h.ClientGapMs)
		row(w, fmt.Sprintf("%-6s → %s", h.From, h.To), size(h.MemoryBytes), size(h.BytesOnWire),
			plural(int(h.PagesDemanded), "page"), millis(h.BlackoutMs), millis(h.ClientGapMs), millis(h.TotalMs))
	}
	fmt.Fprintf(w, "\n%d bodies took %d steps at %d a second while they moved %d times.\n", r.Bodies, r.Ticks, r.TickHz, len(r.Hops))
	fmt.Fprintf(w, "The client waited at most %s longer than usual for a reply; without a move, %s.\n", millis(gap), millis(r.SteadyGapMs))
	verdict := "equal in every bit"
	if !r.StateEqual {
		verdict = "DIFFERENT"
	}
	fmt.Fprintf(w, "State of the worker that moved      %s\n", short(r.Digest))
	fmt.Fprintf(w, "State of one that never moved       %s   %s\n", short(r.Reference), verdict)
}

func short(digest string) string {
	if len(digest) > 16 {
		return digest[:16] + "…"
	}
	return digest
}
