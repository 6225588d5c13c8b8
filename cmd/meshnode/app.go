package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"meshnode/node/control"
)

// An app is one run of the command.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer

	stateDir string
	socket   string
	format   enumValue

	// began is set once a command has its flags and arguments: every error
	// before that is one of usage.
	began bool
	// path is the command that was asked for, for the hint after such an error.
	path string
}

const envStateDir, envSocket = "MESHNODE_STATE_DIR", "MESHNODE_SOCKET"

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "meshnode",
		Short: "Move running WebAssembly workers between devices, edge servers and clouds",
		Long: `meshnode runs stateful WebAssembly workers on a mesh of nodes and moves them
from one to another while they run: a worker goes on at once where it arrives,
and its memory follows.

    meshnode demo                       see it happen on this machine
    meshnode up                         run a node; the first founds the mesh
    meshnode token create               let another node in
    meshnode join TOKEN                 ... on that node
    meshnode worker run counter.wasm    start a worker
    meshnode worker migrate counter --to edge-a`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          a.noSubcommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.CompletionOptions.HiddenDefaultCmd = false
	pf := root.PersistentFlags()
	pf.StringVar(&a.stateDir, "state-dir", "", "where the node keeps its state [$"+envStateDir+" or "+defaultStateDir()+"]")
	pf.StringVar(&a.socket, "socket", "", "the daemon's control socket [$"+envSocket+" or "+control.SocketName+" in the state directory]")
	_ = root.MarkPersistentFlagDirname("state-dir")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		a.path = cmd.CommandPath()
		return flagError(cmd, err)
	})
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		a.began = true
		a.path = cmd.CommandPath()
		return a.locate()
	}
	root.AddGroup(
		&cobra.Group{ID: "node", Title: "This node:"},
		&cobra.Group{ID: "mesh", Title: "The mesh:"},
	)
	root.SetHelpCommandGroupID("node")
	root.SetCompletionCommandGroupID("node")
	for _, c := range []*cobra.Command{
		a.upCommand(), a.statusCommand(), a.joinCommand(), a.leaveCommand(), a.pingCommand(),
		a.demoCommand(), a.benchCommand(), a.versionCommand(), a.schemaCommand(),
	} {
		c.GroupID = "node"
		root.AddCommand(c)
	}
	for _, c := range []*cobra.Command{a.nodeCommand(), a.tokenCommand(), a.workerCommand(), a.appCommand(), a.eventsCommand()} {
		c.GroupID = "mesh"
		root.AddCommand(c)
	}
	return root
}

// group makes a command that only holds others.
func (a *app) group(use, short string, sub ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  a.noSubcommand,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var names []string
			for _, s := range cmd.Commands() {
				names = append(names, s.Name())
			}
			return usagef("`%s` needs a command: %s", cmd.CommandPath(), strings.Join(names, ", "))
		},
	}
	c.AddCommand(sub...)
	return c
}

// noSubcommand refuses a command that does not exist, and suggests others.
func (a *app) noSubcommand(cmd *cobra.Command, args []string) error {
	a.path = cmd.CommandPath()
	if len(args) == 0 {
		return nil
	}
	var names []string
	for _, s := range cmd.Commands() {
		names = append(names, s.Name())
	}
	e := usagef("`%s` has no command %q", cmd.CommandPath(), args[0])
	if near := control.Near(args[0], names); len(near) > 0 {
		e.Hint = "did you mean " + strings.Join(near, " or ") + "?"
	}
	return e
}

// locate settles where the state directory and the socket are.
func (a *app) locate() error {
	explicit := a.stateDir != ""
	if !explicit {
		a.stateDir = os.Getenv(envStateDir)
	}
	if a.stateDir == "" {
		a.stateDir = defaultStateDir()
	}
	dir, err := filepath.Abs(a.stateDir)
	if err != nil {
		return fmt.Errorf("the state directory: %w", err)
	}
	a.stateDir = dir
	// A directory named on the command line means the daemon that lives there,
	// whatever the environment says.
	if a.socket == "" && !explicit {
		a.socket = os.Getenv(envSocket)
	}
	if a.socket == "" {
		a.socket = filepath.Join(a.stateDir, control.SocketName)
	}
	return nil
}

// defaultStateDir is the system's place for root and the user's own for
// everybody else (XDG Base Directory Specification 0.8: XDG_STATE_HOME).
func defaultStateDir() string {
	if os.Geteuid() == 0 {
		return "/var/lib/meshnode"
	}
	if d := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, "meshnode")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		home = "."
	}
	return filepath.Join(home, ".local", "state", "meshnode")
}

// client returns a client of the daemon. Its owner closes it.
func (a *app) client() *control.Client { return control.NewClient(a.socket) }

// withTimeout bounds waiting for the daemon. 0 means for ever.
func withTimeout(ctx context.Context, d time.Duration, what string) (context.Context, context.CancelFunc) {
	if d == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, d, &control.Error{
		Code:    control.CodeTimeout,
		Message: fmt.Sprintf("%s: no answer within %s", what, d),
		Hint:    "wait longer with --timeout; the daemon's log may say what it waits for",
	})
}

// usagef makes an error that ends with exit code 2.
func usagef(format string, args ...any) *control.Error {
	return &control.Error{Code: control.CodeInvalid, Message: fmt.Sprintf(format, args...)}
}

// A silentError ends the command with a code after everything has been said.
type silentError struct{ code int }

func (e silentError) Error() string { return fmt.Sprintf("exit %d", e.code) }

// finish says what went wrong and returns the exit code.
func (a *app) finish(ctx context.Context, err error) int {
	if err == nil {
		return control.ExitDone
	}
	var silent silentError
	if errors.As(err, &silent) {
		return silent.code
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = &control.Error{Code: control.CodeFailed, Message: "interrupted"}
	}
	e := *control.AsError(err)
	if !a.began {
		e.Code = control.CodeInvalid
	}
	if e.Hint == "" && e.Code == control.CodeInvalid && a.path != "" && !a.began {
		e.Hint = fmt.Sprintf("`%s --help` shows how", a.path)
	}
	if a.format.value == "json" {
		_ = control.Encode(a.stderr, &e) // nothing is left to report to
		return control.ExitCode(&e)
	}
	fmt.Fprintf(a.stderr, "meshnode: %s\n", e.Message)
	if e.Hint != "" {
		fmt.Fprintf(a.stderr, "  %s\n", e.Hint)
	}
	return control.ExitCode(&e)
}

// args checks the number of arguments and names those that are missing.
func (a *app) args(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		a.path = cmd.CommandPath()
		switch {
		case len(args) < len(names):
			return usagef("`%s` needs %s", cmd.CommandPath(), strings.Join(names[len(args):], " and "))
		case len(args) > len(names):
			return usagef("`%s` does not know what to do with %q", cmd.CommandPath(), args[len(names)])
		}
		return nil
	}
}
