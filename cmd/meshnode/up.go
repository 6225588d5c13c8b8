package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"time"

	"github.com/spf13/cobra"

	"meshnode/mesh"
	"meshnode/node"
	"meshnode/node/control"
)

func (a *app) upCommand() *cobra.Command {
	var (
		listen       = addrValue{addr: ":7946"}
		metrics      = addrValue{addr: "127.0.0.1:0", loopback: true}
		join         = addrValue{needHost: true}
		advertise    addrsValue
		labels       pairsValue
		interfaces   interfacesValue
		accelerators []string
		access       durationValue
		moveIn       durationValue
		moveOut      durationValue
		name         string
		tokenFile    string
		cacheDir     string
		cpuStat      string
		workerMemory = sizeValue{min: 1 << 20, max: 1 << 50}
		pushRate     sizeValue
		pageCache    = sizeValue{bytes: 512 << 20, max: 1 << 40}
		interpreter  bool
		noPaging     bool
		exe          string
		tier         enumValue
		level        = enumValue{value: "info"}
		format       = enumValue{value: "text"}
		eventTimeout = durationValue{d: 10 * time.Second}
		drainTimeout = durationValue{d: time.Minute}
		joinTimeout  = durationValue{d: time.Minute}
		stopTimeout  = durationValue{d: 8 * time.Second, zeroOK: true}
	)
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run a node",
		Long: `up runs this machine's node until it is interrupted (SIGINT, SIGTERM), then
moves away the workers of apps that move by themselves or have a fallback list,
within --stop-timeout, and leaves the mesh in order. A second interrupt ends it
at once. A node that is in no mesh yet founds one and becomes its authority, the
node that lets others in; --join enrols it in an existing mesh instead.

    meshnode up --name cloud --tier cloud
    meshnode up --join cloud.example:7946 --token-file token`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := a.args()(cmd, args); err != nil {
				return err
			}
			if (join.addr == "") != (tokenFile == "") {
				return usagef("--join and --token-file belong together: where to join, and what lets this node in")
			}
			return nil
		},
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := newLogger(a.stderr, level.value, format.value)
			cfg := node.Config{
				StateDir:     a.stateDir,
				Socket:       a.socket,
				Listen:       listen.addr,
				Advertise:    advertise.addrs,
				Name:         name,
				Labels:       labels.labels(),
				Interfaces:   interfaces.list,
				Accelerators: accelerators,

				PromiseAccess:  access.d,
				PromiseMoveIn:  moveIn.d,
				PromiseMoveOut: moveOut.d,

				CacheDir:     cacheDir,
				CPUStat:      cpuStat,
				WorkerMemory: workerMemory.bytes,
				MetricsAddr:  metrics.addr,
				Interpreter:  interpreter,
				NoPaging:     noPaging,
				Exe:          exe,
				EventTimeout: eventTimeout.d,
				DrainTimeout: drainTimeout.d,
				StopTime:     stopTimeout.d,
				PushRate:     int64(min(pushRate.bytes, math.MaxInt64)),
				PageCache:    int64(pageCache.bytes),
				Version:      control.BuildVersion(),
				Log:          log,
			}
			if cfg.PageCache == 0 {
				cfg.PageCache = -1
			}
			if tier.value != "" {
				t, err := mesh.ParseTier(tier.value)
				if err != nil {
					return err // the flag accepts what mesh does
				}
				cfg.Tier = t
			}
			if join.addr != "" {
				cfg.Seeds = []string{join.addr}
				ctx, cancel := withTimeout(cmd.Context(), joinTimeout.d, "join")
				defer cancel()
				if err := a.upJoin(ctx, log, join.addr, tokenFile); err != nil {
					return err
				}
			}
			return runNode(cmd.Context(), cfg)
		},
	}
	f := cmd.Flags()
	f.Var(&listen, "listen", "UDP address to bind")
	f.Var(&advertise, "advertise", "an endpoint to tell the others (repeatable) (default: those of the interfaces)")
	f.StringVar(&name, "name", "", "the node's name (default: the host's)")
	f.StringVar(&cacheDir, "cache-dir", "", "where compiled modules are kept; nodes of one machine may share it (default: in the state directory)")
	f.StringVar(&cpuStat, "cpu-stat", "", "the file that counts this node's CPU times, for containers that have their own (default: /proc/stat)")
	f.Var(&workerMemory, "worker-memory", "the most that the memory limits of all workers here may add up to, as 8GiB (default: the machine's memory)")
	f.Var(&labels, "label", "a label for the capability document (repeatable)")
	f.Var(&interfaces, "interface", "an interface of this host that workers may use (repeatable): a name, as camera, and behind it =file:PATH, or =exec: and a command, for workers to read")
	f.StringArrayVar(&accelerators, "accelerator", nil, "an accelerator of this host (repeatable)")
	f.Var(&access, "promise-access", "the round trip that this node promises to users attached to it")
	f.Var(&moveIn, "promise-move-in", "the blackout that it promises for workers that arrive")
	f.Var(&moveOut, "promise-move-out", "the blackout that it promises for workers that leave")
	f.Var(&join, "join", "join the mesh through this endpoint, unless already in one")
	f.StringVar(&tokenFile, "token-file", "", "the join token for --join; - is standard input")
	f.Var(&joinTimeout, "join-timeout", "how long --join tries")
	f.Var(&metrics, "metrics", "where to serve Prometheus metrics (port 0: any, see status), or off")
	f.Var(&eventTimeout, "event-timeout", "how long a worker may take over one event before it is stopped")
	f.Var(&drainTimeout, "drain-timeout", "how long a worker waits for memory still at a node that cannot be reached")
	f.Var(&stopTimeout, "stop-timeout", "how long a node that is told to stop may take for its workers: to leave, or to be given to their guardians; 0 ends them at once")
	f.Var(&pushRate, "push-rate", "the most memory a second that all moves from here together may push, as 10MiB; what a worker waits for is not held back (default: no limit)")
	f.Var(&pageCache, "page-cache", "how much disk the memory of workers that were here may take, so that they return with less; 0B is none")
	f.BoolVar(&interpreter, "interpreter", false, "run WebAssembly without compiling it")
	f.BoolVar(&noPaging, "no-paging", false, "let a worker that moves here run only once all of its memory is here, as where the kernel has no userfaultfd")
	f.StringVar(&exe, "runner", "", "what to start for each worker, if it is not this binary: a script that runs it under an emulator")
	enumFlag(cmd, &tier, "tier", "", "what this node is when it founds a mesh; one that joins has its token's (default cloud)", control.Tiers)
	enumFlag(cmd, &level, "log-level", "", "the least that is logged", []string{"debug", "info", "warn", "error"})
	enumFlag(cmd, &format, "log-format", "", "how it is logged", []string{"text", "json"})
	_ = cmd.MarkFlagFilename("token-file")
	_ = cmd.MarkFlagFilename("cpu-stat")
	_ = cmd.MarkFlagFilename("runner")
	_ = cmd.MarkFlagDirname("cache-dir")
	return cmd
}

// upJoin enrols the state directory, unless it is in a mesh already: `up` with
// the same flags must be good for every start.
func (a *app) upJoin(ctx context.Context, log *slog.Logger, via, tokenFile string) error {
	have, err := mesh.HasMembership(a.stateDir)
	if err != nil {
		return err
	}
	if have {
		log.Info("in a mesh already, no token needed")
		return nil
	}
	token, err := a.readToken(tokenFile)
	if err != nil {
		return err
	}
	j, err := a.joinOffline(ctx, token, []string{via})
	if err != nil {
		return err
	}
	log.Info("joined a mesh", "mesh", j.MeshID, "node", j.ID, "tier", j.Tier)
	return nil
}

// runNode runs a node, and another in its place each time it joins another
// mesh.
func runNode(ctx context.Context, cfg node.Config) error {
	for {
		n, err := node.New(cfg)
		if err != nil {
			return fmt.Errorf("start the node: %w", err)
		}
		if err := n.Run(ctx); !errors.Is(err, node.ErrRestart) {
			return err
		}
		cfg.Log.Info("starting again in the other mesh")
	}
}

func newLogger(w io.Writer, level, format string) *slog.Logger {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		panic(err) // the flag accepts slog's names alone
	}
	opts := &slog.HandlerOptions{Level: l}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}
