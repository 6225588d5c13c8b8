package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"meshnode/node/control"
)

const workerArg = "NAME, a worker's name or id"

func (a *app) workerCommand() *cobra.Command {
	return a.group("worker", "Run workers, talk to them, move them",
		a.workerRunCommand(), a.workerListCommand(), a.workerShowCommand(), a.workerLogsCommand(),
		a.workerCallCommand(), a.workerSendCommand(), a.workerAttachCommand(), a.workerMigrateCommand(),
		a.workerExplainCommand(), a.workerPinCommand(), a.workerUnpinCommand(),
		a.workerFilesCommand(), a.workerExportCommand(), a.workerImportCommand(),
		a.workerVerbCommand("pause", "Let a worker take no more messages; they wait", (*control.Client).Pause),
		a.workerVerbCommand("resume", "Let a paused worker go on", (*control.Client).Resume),
		a.workerVerbCommand("stop", "End a worker; its state is gone", (*control.Client).Stop),
	)
}

func (a *app) workerRunCommand() *cobra.Command {
	var (
		name    string
		limit   = sizeValue{min: 64 << 10, max: 4 << 30}
		env     pairsValue
		dirs    dirsValue
		files   = sizeValue{min: 1, max: wasiMaxFiles}
		suspend string
		timeout = durationValue{d: 2 * time.Minute}
	)
	cmd := a.outputFlag(&cobra.Command{
		Use:   "run FILE [-- ARGS...]",
		Short: "Start a worker on this node",
		Long: `run starts a worker from a WebAssembly file on this node (- reads standard
input). The worker keeps its name and its id wherever it moves.

A module that exports meshnode_event handles one message at a time and moves
between two of them. An ordinary WASI program, which exports _start, runs its
own main and moves in the middle of it: each message is a line of its standard
input (one that is a single Ctrl-D character ends it), and its log is what it
writes. --suspend never keeps a worker of either kind on this node.

Such a program may have directories: --dir HOST:GUEST gives it a copy of the
directory or tar archive HOST, under the name GUEST (/ if not said), to read and,
without :ro, to change. The copy is the worker's own and moves with it.`,
		Args: func(cmd *cobra.Command, args []string) error {
			own := args
			if n := cmd.ArgsLenAtDash(); n >= 0 {
				own = args[:n]
			}
			err := a.args("FILE, a WebAssembly module")(cmd, own)
			if e := (*control.Error)(nil); errors.As(err, &e) && len(own) > 1 {
				e.Hint = "arguments for the worker come after --"
			}
			return err
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			file, err := a.openModule(args[0])
			if err != nil {
				return err
			}
			defer file.Close()
			if name == "" {
				name = workerName(args[0])
			}
			if name == "" {
				return usagef("%s gives no name for the worker; say --name", args[0])
			}
			if err := control.CheckWorkerName(name); err != nil {
				return err
			}
			if suspend != "" && !control.ValidSuspend(suspend) {
				return usagef("--suspend %s: want %s", suspend, control.SuspendModes)
			}
			ctx, cancel := withTimeout(cmd.Context(), timeout.d, "run "+name)
			defer cancel()
			c := a.client()
			defer c.Close()
			req := control.RunRequest{
				Name: name, MemoryLimit: limit.bytes, Args: args[1:], Env: env.pairs, Suspend: suspend,
			}
			archive, err := dirs.request(&req, int64(files.bytes))
			if err != nil {
				return err
			}
			var w control.Worker
			if archive == nil {
				w, err = c.RunWorker(ctx, req, file.r, file.size)
			} else {
				if w, err = c.RunWorkerIn(ctx, req, file.r, file.size, archive); err != nil {
					err = archive.failed(err)
				}
			}
			if err != nil {
				return err
			}
			return a.print(&w, func(out io.Writer) {
				fmt.Fprintf(out, "%s runs on %s (%s, limit %s, suspend %s, id %s)\n",
					freeText(w.Name), freeText(w.HomeName), size(w.MemoryBytes), size(w.MemoryLimit), freeText(w.Suspend), w.ID)
			})
		},
	})
	cmd.Flags().StringVar(&name, "name", "", "the worker's name (default: the file's)")
	cmd.Flags().Var(&limit, "memory-limit", "the most memory it may have, as 256MiB (default: the node's)")
	cmd.Flags().StringVar(&suspend, "suspend", "", "where it can be stopped to be moved: anywhere, event or never (default: by the module's exports)")
	cmd.Flags().Var(&env, "env", "a variable of its environment (repeatable)")
	cmd.Flags().Var(&dirs, "dir", "a directory or tar archive that the program gets a copy of (repeatable)")
	cmd.Flags().Var(&files, "files-limit", "how much its files may hold, as 1GiB (default: 256MiB if it has directories)")
	cmd.Flags().Var(&timeout, "timeout", "how long to wait until it runs")
	return cmd
}

// wasiMaxFiles is how much the files of any worker may hold, in bytes.
const wasiMaxFiles = 32 << 30

// A moduleFile is what a worker is started from. size is -1 where unknown.
type moduleFile struct {
	r     io.Reader
	size  int64
	Close func() error
}

// openModule checks what can be checked before the daemon is bothered.
func (a *app) openModule(path string) (moduleFile, error) {
	if path == "-" {
		return moduleFile{a.stdin, -1, func() error { return nil }}, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return moduleFile{}, usagef("%s", err)
	}
	info, err := f.Stat()
	fail := func(format string, args ...any) (moduleFile, error) {
		f.Close()
		return moduleFile{}, usagef(format, args...)
	}
	switch {
	case err != nil:
		return fail("%s", err)
	case info.IsDir():
		return fail("%s is a directory, want a WebAssembly file", path)
	case info.Mode().IsRegular() && info.Size() > control.MaxModuleBytes:
		return fail("%s is %s, the limit is %s", path, size(uint64(info.Size())), size(control.MaxModuleBytes))
	case !info.Mode().IsRegular():
		return moduleFile{f, -1, f.Close}, nil
	}
	var magic [4]byte
	if n, _ := f.ReadAt(magic[:], 0); n < 4 || string(magic[:]) != "\x00asm" {
		return fail("%s is no WebAssembly binary: it does not begin with \\0asm", path)
	}
	return moduleFile{f, info.Size(), f.Close}, nil
}

// workerName makes a worker's name from a file's: "My App.wasm" is my-app.
func workerName(path string) string {
	base := filepath.Base(path)
	base = strings.ToLower(strings.TrimSuffix(base, filepath.Ext(base)))
	if path == "-" {
		return ""
	}
	var b strings.Builder
	for _, r := range base {
		switch {
		case r >= 'a' && r <= 'z' || r >= '0' && r <= '9':
			b.WriteRune(r)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
	}
	s := b.String()
	return strings.Trim(s[:min(len(s), 63)], "-")
}

func (a *app) workerListCommand() *cobra.Command {
	return a.outputFlag(&cobra.Command{
		Use:               "ls",
		Aliases:           []string{"list"},
		Short:             "List the workers of the mesh",
		Args:              a.args(),
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := withTimeout(cmd.Context(), requestTimeout, "list the workers")
			defer cancel()
			c := a.client()
			defer c.Close()
			workers, err := c.Workers(ctx)
			if err != nil {
				return err
			}
			sort.SliceStable(workers, func(i, j int) bool { return workers[i].Name < workers[j].Name })
			return a.print(&control.WorkerList{Workers: workers}, func(w io.Writer) {
				row(w, "NAME", "NODE", "STATE", "FOR", "EPOCH", "MEMORY", "EVENTS", "MODULE", "ID")
				for _, k := range workers {
					row(w, freeText(k.Name), freeText(k.HomeName), workerState(k), ago(k.Since), k.Epoch,
						size(k.MemoryBytes), k.Events, k.Module[:min(12, len(k.Module))], k.ID)
				}
			})
		},
	})
}

// workerState adds to a state what explains it.
func workerState(w control.Worker) string {
	s := w.State
	if w.MoveTo != "" {
		s += " to " + freeText(w.MoveTo)
	}
	if w.Phase != "" {
		s += " (" + w.Phase + ")"
	}
	return s
}

func (a *app) workerShowCommand() *cobra.Command {
	var sample durationValue
	cmd := a.outputFlag(&cobra.Command{
		Use:   "show NAME",
		Short: "Describe one worker",
		Long: `show describes one worker. How much of its memory it writes and works with is
known while it moves; --sample 1s watches it that long for it. Meanwhile the
first write to a page costs it some microsecond, every 20 ms anew.`,
		Args:              a.args(workerArg),
		ValidArgsFunction: a.completeWorkers,
		RunE: func(cmd *cobra.Command, args []string) error {
			if sample.d > control.MaxSample {
				return usagef("--sample: %s is too long; it goes up to %s", sample.d, control.MaxSample)
			}
			ctx, cancel := withTimeout(cmd.Context(), requestTimeout+sample.d, "show "+args[0])
			defer cancel()
			c := a.client()
			defer c.Close()
			var w control.Worker
			var err error
			if sample.d > 0 {
				w, err = c.SampleWorker(ctx, args[0], sample.d)
			} else {
				w, err = c.Worker(ctx, args[0])
			}
			if err != nil {
				return err
			}
			return a.print(&w, func(out io.Writer) { workerTable(out, w) })
		},
	})
	cmd.Flags().Var(&sample, "sample", "watch its memory for that long first, as 1s")
	return cmd
}

// activityText says what a worker works with; empty if that is not known.
func activityText(a control.Activity) string {
	var parts []string
	if a.WorkingSetBytes > 0 {
		parts = append(parts, shortSize(float64(a.WorkingSetBytes))+" touched")
	}
	if a.WrittenBytes > 0 {
		parts = append(parts, shortSize(float64(a.WrittenBytes))+" written")
	}
	s := strings.Join(parts, ", ")
	if s != "" && a.SampledMs > 0 {
		s += " in " + millis(a.SampledMs)
	}
	if a.ContentBytes > 0 {
		s = strings.TrimPrefix(s+", of "+shortSize(float64(a.ContentBytes))+" ever written", ", ")
	}
	return s
}

func workerTable(out io.Writer, w control.Worker) {
	field(out, "worker", freeText(w.Name))
	field(out, "id", w.ID)
	field(out, "state", workerState(w)+" for "+ago(w.Since))
	field(out, "reason", freeText(w.Reason))
	field(out, "node", fmt.Sprintf("%s (%s)", freeText(w.HomeName), w.Home))
	field(out, "epoch", w.Epoch)
	memory := fmt.Sprintf("%s of at most %s", size(w.MemoryBytes), size(w.MemoryLimit))
	if w.ResidentShare > 0 && w.ResidentShare < 1 {
		memory += fmt.Sprintf(", %.0f %% of it here", 100*w.ResidentShare)
	}
	field(out, "memory", memory)
	if a := w.Activity; a != nil {
		field(out, "writes", shortSize(a.DirtyBytesPerSec)+"/s")
		field(out, "working set", activityText(*a))
	}
	field(out, "app", freeText(w.App))
	if w.Pinned {
		field(out, "pinned", "does not move by itself")
	}
	for _, f := range w.Interfaces {
		field(out, "interface", interfaceText(f))
	}
	field(out, "guardian", guardianText(w.Guardian))
	if w.Guardian != nil {
		field(out, "checkpoint", checkpointText(w.Guardian.Checkpoint))
	}
	field(out, "suspend", freeText(w.Suspend))
	field(out, "directories", dirsText(w))
	events := fmt.Sprint(w.Events)
	if w.EventMsP50 > 0 {
		events += fmt.Sprintf(", of the last minute p50 %s, p99 %s", millis(w.EventMsP50), millis(w.EventMsP99))
	}
	field(out, "events", events)
	if w.HeldMs > 0 {
		field(out, "held back", millis(w.HeldMs)+" by limits.cpu, here")
	}
	for _, u := range w.Users {
		access := ""
		if u.AccessMsP50 > 0 {
			access = ", " + millis(u.AccessMsP50) + " away from it"
		}
		field(out, "users", fmt.Sprintf("at %s%s, %.1f events/s", freeText(u.NodeName), access, u.RatePerSecond))
	}
	field(out, "inbox", fmt.Sprintf("%s waiting, from %s", plural(w.Inbox, "message"), plural(w.Senders, "sender")))
	field(out, "module", w.Module)
	field(out, "created", w.Created.Local().Format(time.RFC3339)+", "+ago(w.Created)+" ago")
}

// interfaceText says where a worker reads an interface, and how that goes.
func interfaceText(f control.WorkerInterface) string {
	s := fmt.Sprintf("%s, %s", freeText(f.Name), freeText(f.Access))
	if f.Node != "" {
		s += ", read at " + freeText(f.NodeName)
	}
	s += fmt.Sprintf(", %s here", plural(int(f.Reads), "reading"))
	if f.Failed > 0 {
		s += fmt.Sprintf(", %d failed", f.Failed)
	}
	if f.Error != "" {
		s += ": " + freeText(f.Error)
	}
	return s
}

// guardianText says who takes a worker over, and how its lease stands; empty if
// it asks for nobody.
func guardianText(g *control.Guardian) string {
	if g == nil {
		return ""
	}
	name := freeText(g.NodeName)
	switch g.State {
	case control.LeaseNone:
		return "none: " + freeText(g.Reason)
	case control.LeaseAsked:
		return name + ", was asked"
	}
	s := name + ", lease " + freeText(g.State)
	if g.LeaseMs > 0 {
		s += fmt.Sprintf(", of %s, renewed %s ago", millis(g.LeaseMs), millis(g.AgeMs))
	}
	return s
}

// checkpointText says what the guardian has of a worker's state; empty if nobody
// asks for that.
func checkpointText(c *control.Checkpoint) string {
	if c == nil {
		return ""
	}
	s := "none yet"
	if c.Count > 0 {
		s = fmt.Sprintf("%s ago, %s, of which %s travelled; pause %s, the longest %s; %s/s in all", millis(c.AgeMs), size(c.Bytes),
			size(c.SentBytes), millis(c.PauseMs), millis(c.LongestMs), shortSize(c.BytesPerSecond))
	}
	s += "; every " + millis(c.EveryMs)
	if c.Reason != "" {
		s += ": " + freeText(c.Reason)
	}
	return s
}

// dirsText says which directories a worker has; empty if it has none.
func dirsText(w control.Worker) string {
	var parts []string
	for _, d := range w.Dirs {
		s := freeText(d.Name)
		if d.ReadOnly {
			s += " (read-only)"
		}
		parts = append(parts, s)
	}
	if len(parts) == 0 {
		return ""
	}
	return strings.Join(parts, ", ") + ", at most " + size(uint64(w.FilesLimit))
}

func (a *app) workerLogsCommand() *cobra.Command {
	follow := false
	cmd := a.outputFlag(&cobra.Command{
		Use:   "logs NAME",
		Short: "Show what a worker has logged",
		Long: `logs shows the last lines that a worker has logged at its present node. With
--follow it goes on, also when the worker moves.`,
		Args:              a.args(workerArg),
		ValidArgsFunction: a.completeWorkers,
		RunE: func(cmd *cobra.Command, args []string) error {
			c := a.client()
			defer c.Close()
			err := c.Logs(cmd.Context(), args[0], follow, func(l control.LogLine) error {
				if a.format.value == "json" {
					return control.Encode(a.stdout, &l)
				}
				_, err := fmt.Fprintf(a.stdout, "%s %s %-5s %s: %s\n", l.Time.Local().Format("15:04:05.000"),
					freeText(l.Node), l.Level, l.Source, freeText(l.Text))
				return err
			})
			if follow && errors.Is(err, context.Canceled) {
				return nil // how one stops following
			}
			return err
		},
	})
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with new lines")
	return cmd
}

func (a *app) workerVerbCommand(verb, short string, do func(*control.Client, context.Context, string) (control.Worker, error)) *cobra.Command {
	timeout := durationValue{d: requestTimeout}
	cmd := a.outputFlag(&cobra.Command{
		Use:               verb + " NAME",
		Short:             short,
		Args:              a.args(workerArg),
		ValidArgsFunction: a.completeWorkers,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := withTimeout(cmd.Context(), timeout.d, verb+" "+args[0])
			defer cancel()
			c := a.client()
			defer c.Close()
			w, err := do(c, ctx, args[0])
			if err != nil {
				return err
			}
			return a.print(&w, func(out io.Writer) {
				fmt.Fprintf(out, "%s is %s\n", freeText(w.Name), w.State)
			})
		},
	})
	cmd.Flags().Var(&timeout, "timeout", "how long to wait")
	return cmd
}
