package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"meshnode/node/control"
)

// benchNodes are the two nodes of a bench on this machine.
var benchNodes = []demoNode{{"edge", "edge"}, {"device", "device"}}

// A bench is one run of the command.
type bench struct {
	app    *app
	client *control.Client
	module string

	from, to   string
	memory     sizesValue
	dirty      sizesValue
	strategies wordsValue
	repeat     int
	pace       durationValue
	before     durationValue
	limit      time.Duration
	keys, hot  sizeValue
	noSampling bool
	svg        string
	summary    bool

	line  *liveLine
	begin time.Time
}

// A benchCell is what the strategies are compared in.
type benchCell struct{ memory, dirty uint64 }

func (c benchCell) String() string { return fmt.Sprintf("%s, %s/s", size(c.memory), size(c.dirty)) }

func (a *app) benchCommand() *cobra.Command {
	b := bench{
		app:        a,
		memory:     sizesValue{sizes: []uint64{16 << 20, 64 << 20}, min: 1 << 20, max: 512 << 20},
		dirty:      sizesValue{sizes: []uint64{0, 10 << 20}, max: 512 << 20},
		strategies: wordsValue{words: control.Strategies, accepted: control.Strategies},
		repeat:     1, pace: durationValue{d: 10 * time.Millisecond}, before: durationValue{d: time.Second},
		keys: sizeValue{bytes: 4 << 20, min: 4 << 10, max: 512 << 20},
		hot:  sizeValue{min: 4 << 10, max: 512 << 20},
	}
	limit := durationValue{d: 10 * time.Minute}
	demo := false
	var read []string
	cmd := a.outputFlag(&cobra.Command{
		Use:   "bench --to NODE [--from NODE] | --demo",
		Short: "Measure moves between two nodes: memory, dirty rate and strategy against blackout",
		Long: `bench moves workers from one node to another and tells what that cost. For each
size of memory and each dirty rate it tries the strategies in turn, so that
whatever else the machines do hits all alike. Every move is that of a fresh
worker, a key-value store that was filled with content of its own and writes
its memory at the dirty rate by itself, while a client calls it at a steady
pace through this node.

    blackout    how long the worker ran nowhere, as the source saw it
    expected    what the source took that to become, before pages travelled
    gap         the longest a client waited for a reply beyond its pace
    p50, p99    of the client's calls: before, during the move up to the
                resume, and in the second after it
    of min      bytes on the wire against those that had to move
    faults      pages that the worker asked for and waited for

With -o json every run has these and more: what the worker's own timer went
through, and the reports of the move as it went.

The time a move takes is about memory divided by the link's rate, and for
stop-and-copy the worker stands still for all of it: begin with few cells.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := a.args()(cmd, args); err != nil {
				return err
			}
			switch {
			case len(read) > 0 && (demo || b.from != "" || b.to != ""):
				return usagef("--read shows what was measured before; --from, --to and --demo measure anew")
			case len(read) > 0:
			case demo && (b.from != "" || b.to != ""):
				return usagef("--demo starts nodes of its own; --from and --to are for those there are")
			case !demo && b.to == "":
				return usagef("`%s` needs --to NODE, or --demo", cmd.CommandPath())
			case b.repeat < 1 || b.repeat > 1000:
				return usagef("--repeat: %d is out of range; it goes from 1 to 1000", b.repeat)
			}
			for _, m := range b.memory.sizes {
				if m%(64<<10) != 0 {
					return usagef("--memory: %s is not a multiple of 64 KiB", size(m))
				}
			}
			return nil
		},
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			b.begin, b.line = time.Now(), newLiveLine(a.stderr)
			if len(read) > 0 {
				res, err := readBench(read)
				if err != nil {
					return err
				}
				return b.show(res)
			}
			if b.module, err = appModule(b.module, "kvstore"); err != nil {
				return err
			}
			b.limit = limit.d
			defer b.line.clear()
			if demo {
				return b.runDemo(cmd.Context())
			}
			b.client = a.client()
			defer b.client.Close()
			return b.runAll(cmd.Context())
		},
	})
	f := cmd.Flags()
	f.StringVar(&b.from, "from", "", "the node to move from (default: this one)")
	f.StringVar(&b.to, "to", "", "the node to move to")
	_ = cmd.RegisterFlagCompletionFunc("from", a.completeNodeFlag)
	_ = cmd.RegisterFlagCompletionFunc("to", a.completeNodeFlag)
	f.BoolVar(&demo, "demo", false, "start two nodes on this machine for it")
	f.Var(&b.memory, "memory", "how much memory the workers have")
	f.Var(&b.dirty, "dirty", "how much of it they write in a second")
	f.Var(&b.hot, "hot", "keep the writes to that much of the memory (default: all of it)")
	f.Var(&b.strategies, "strategy", "how their memory travels")
	f.BoolVar(&b.noSampling, "no-sampling", false, "do not look which pages the workers touch before they move")
	_ = cmd.RegisterFlagCompletionFunc("strategy", cobra.FixedCompletions(control.Strategies, cobra.ShellCompDirectiveNoFileComp))
	f.IntVar(&b.repeat, "repeat", b.repeat, "how often to measure each")
	f.Var(&b.pace, "pace", "the time between two calls of the client")
	f.Var(&b.keys, "keys", "how much of the memory the client asks for")
	f.Var(&b.before, "before", "how long to look at a worker before it moves")
	f.Var(&limit, "limit", "how long one run may take")
	f.StringVar(&b.module, "app", "", "the key-value store (default: apps/kvstore.wasm beside this binary, then bin/apps/kvstore.wasm)")
	f.BoolVar(&b.summary, "summary", false, "print a line for each cell, of auto, and how it compares with the other strategies")
	f.StringVar(&b.svg, "svg", "", "draw the result into this file")
	f.StringArrayVar(&read, "read", nil, "measure nothing: show what `FILE` holds of -o json (repeatable: runs of one pair of nodes)")
	_ = cmd.MarkFlagFilename("app", "wasm")
	_ = cmd.MarkFlagFilename("svg", "svg")
	_ = cmd.MarkFlagFilename("read", "json")
	return cmd
}

// runDemo measures between two nodes made for it.
func (b *bench) runDemo(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "meshnode-bench-")
	if err != nil {
		return fmt.Errorf("make a place for the nodes' state: %w", err)
	}
	procs := newProcesses(dir, "error")
	defer func() {
		b.line.clear()
		procs.stop()
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	b.say("starting two nodes")
	mesh, err := startMesh(ctx, procs, benchNodes)
	if err != nil {
		return err
	}
	defer mesh.close()
	b.client, b.to = mesh[benchNodes[0].name], benchNodes[1].name
	if err := b.runAll(ctx); err != nil {
		return procs.explain(err)
	}
	return nil
}

// say tells a person what is happening now.
func (b *bench) say(format string, args ...any) {
	b.line.clear()
	fmt.Fprintf(b.app.stderr, "%5.1fs  %s\n", time.Since(b.begin).Seconds(), fmt.Sprintf(format, args...))
}

// runAll measures every cell and prints what came of it, also of a part.
func (b *bench) runAll(ctx context.Context) error {
	res, err := b.prepare(ctx)
	if err != nil {
		return err
	}
	failed := 0
	err = b.cells(ctx, func(r control.BenchRun) {
		if r.Error != "" {
			failed++
		}
		res.Runs = append(res.Runs, r)
	})
	res.ElapsedMs = control.Millis(time.Since(b.begin))
	b.line.clear()
	if len(res.Runs) == 0 {
		return err
	}
	if serr := b.show(res); serr != nil {
		return errors.Join(err, serr)
	}
	if err == nil && failed > 0 {
		err = &control.Error{Code: control.CodeFailed, Message: fmt.Sprintf("%s of %d failed", plural(failed, "run"), len(res.Runs))}
	}
	return err
}

// show prints and draws a result.
func (b *bench) show(res control.Bench) error {
	if err := b.app.print(&res, func(w io.Writer) {
		if b.summary {
			benchSummary(w, res)
		} else {
			benchTable(w, res)
		}
	}); err != nil || b.svg == "" {
		return err
	}
	if err := os.WriteFile(b.svg, benchSVG(res), 0o644); err != nil {
		return err
	}
	b.say("drawn into %s", b.svg)
	return nil
}

// readBench reads the runs of earlier benches.
func readBench(files []string) (all control.Bench, err error) {
	for i, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return all, usagef("%s", err)
		}
		var one control.Bench
		if err := json.Unmarshal(text, &one); err != nil || one.Kind != "Bench" {
			return all, usagef("%s does not hold a result of `meshnode bench -o json`", file)
		}
		switch {
		case i == 0:
			all = one
			continue
		case one.NoSampling != all.NoSampling:
			return all, usagef("%s and %s differ in --no-sampling", file, files[0])
		case one.From != all.From || one.To != all.To:
			return all, usagef("%s is of moves from %s to %s, and %s from %s to %s", file, one.From, one.To, files[0], all.From, all.To)
		}
		all.Runs = append(all.Runs, one.Runs...)
		all.ElapsedMs += one.ElapsedMs
	}
	return all, nil
}

// prepare settles which nodes these are and moves a small worker that does not
// count: the destination compiles the module for it.
func (b *bench) prepare(ctx context.Context) (res control.Bench, err error) {
	status, err := b.client.Status(ctx)
	if err != nil {
		return res, err
	}
	for _, ref := range []*string{&b.from, &b.to} {
		if *ref == "" {
			*ref = status.Name
			continue
		}
		n, err := b.client.Node(ctx, *ref)
		if err != nil {
			return res, err
		}
		*ref = n.Name
	}
	if b.from == b.to {
		return res, usagef("a bench moves between two nodes, and both are %s", b.from)
	}
	res = control.Bench{
		Version: status.Version, From: b.from, To: b.to, PaceMs: control.Millis(b.pace.d),
		KeysBytes: b.keys.bytes, HotBytes: b.hot.bytes, NoSampling: b.noSampling, Runs: []control.BenchRun{},
	}
	if b.to != status.Name {
		err = b.client.Ping(ctx, b.to, 1, func(p control.Ping) error { res.RTTMs = p.RTTMs; return nil })
		if err != nil {
			return res, err
		}
	}
	b.say("from %s to %s, round trip %s; the first move, of a small worker, does not count", b.from, b.to, millis(res.RTTMs))
	_, err = b.run(ctx, benchCell{memory: 1 << 20}, control.Strategies[0], 0)
	return res, err
}

// cells measures everything once, then everything again. Within a cell the
// strategies take turns, and each time another one begins.
func (b *bench) cells(ctx context.Context, each func(control.BenchRun)) error {
	total := b.repeat * len(b.memory.sizes) * len(b.dirty.sizes) * len(b.strategies.words)
	n := 0
	for repeat := range b.repeat {
		for _, memory := range b.memory.sizes {
			for _, dirty := range b.dirty.sizes {
				cell := benchCell{memory, dirty}
				for i := range b.strategies.words {
					n++
					strategy := b.strategies.words[(i+repeat)%len(b.strategies.words)]
					r, err := b.run(ctx, cell, strategy, repeat+1)
					if ctx.Err() != nil {
						return context.Cause(ctx)
					}
					if err != nil {
						r.Error = err.Error()
						b.say("%d/%d  %s, %s: %s", n, total, cell, strategy, freeText(r.Error))
					} else {
						m := r.Migration
						b.say("%d/%d  %s, %s: blackout %s, gap %s, total %s", n, total, cell, strategy,
							millis(m.BlackoutMs), millis(r.Client.GapMs), millis(m.TotalMs))
					}
					each(r)
				}
			}
		}
	}
	return nil
}
