package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"meshnode/mesh"
	"meshnode/node"
	"meshnode/node/control"
)

// maxTokenBytes is far beyond any token, and keeps a wrong file from being
// read whole.
const maxTokenBytes = 16 << 10

func (a *app) tokenCommand() *cobra.Command {
	return a.group("token", "Let nodes into the mesh", a.tokenCreateCommand())
}

func (a *app) tokenCreateCommand() *cobra.Command {
	ttl := durationValue{d: time.Hour}
	uses := 1
	var tier enumValue
	cmd := a.outputFlag(&cobra.Command{
		Use:   "create",
		Short: "Make a join token",
		Long: `create makes a token that lets nodes join this mesh: as many as --uses, until
--ttl is over. The token pins the mesh's certificate authority, so that a node
that joins with it cannot be led into another mesh. Whoever holds it can join:
pass it on as you would a password.

A token of tier client is for devices that run no node: with the certificate
they get for it they can talk to workers (worker call --via), and nothing else.

It is made on the node that founded the mesh.`,
		Args:              a.args(),
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if uses < 1 {
				return usagef("--uses: %d is out of range; it goes from 1", uses)
			}
			ctx, cancel := withTimeout(cmd.Context(), requestTimeout, "create a token")
			defer cancel()
			c := a.client()
			defer c.Close()
			t, err := c.CreateToken(ctx, control.TokenRequest{TTLMs: control.Millis(ttl.d), Uses: uses, Tier: tier.value})
			if err != nil {
				return err
			}
			// The token alone on stdout, so that it can be redirected to a file.
			if a.format.value != "json" {
				fmt.Fprintf(a.stderr, "good for %s until %s; use it with: meshnode join TOKEN\n",
					plural(t.Uses, "node"), t.Expires.Local().Format(time.RFC1123))
			}
			return a.print(&t, func(w io.Writer) { fmt.Fprintln(w, t.Token) })
		},
	})
	cmd.Flags().Var(&ttl, "ttl", "how long it is good for")
	cmd.Flags().IntVar(&uses, "uses", uses, "how many nodes may join with it")
	enumFlag(cmd, &tier, "tier", "", "the tier of the nodes that join with it (default device), or client", control.TokenTiers)
	return cmd
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func (a *app) joinCommand() *cobra.Command {
	var tokenFile string
	var via addrsValue
	timeout := durationValue{d: time.Minute}
	cmd := a.outputFlag(&cobra.Command{
		Use:   "join TOKEN | --token-file FILE",
		Short: "Enrol this node in a mesh",
		Long: `join enrols this node in the mesh that the token is from. A daemon that is
running is told to; without one, the state directory is enrolled and the next
` + "`meshnode up`" + ` takes part in the mesh.

A token on the command line can be seen by other users of this machine; --token-file
keeps it from them (- reads standard input).`,
		Args: func(cmd *cobra.Command, args []string) error {
			a.path = cmd.CommandPath()
			switch {
			case len(args) > 1:
				return usagef("`meshnode join` takes one TOKEN")
			case len(args) == 0 && tokenFile == "":
				return usagef("`meshnode join` needs a TOKEN or --token-file")
			case len(args) == 1 && tokenFile != "":
				return usagef("`meshnode join` takes a TOKEN or --token-file, not both")
			}
			return nil
		},
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, args []string) error {
			token := ""
			if len(args) == 1 {
				token = args[0]
			}
			if tokenFile != "" {
				var err error
				if token, err = a.readToken(tokenFile); err != nil {
					return err
				}
			}
			if _, err := mesh.ParseToken(token); err != nil {
				return tokenError(err)
			}
			ctx, cancel := withTimeout(cmd.Context(), timeout.d, "join")
			defer cancel()
			j, err := a.join(ctx, token, via.addrs)
			if err != nil {
				return err
			}
			return a.print(&j, func(w io.Writer) {
				fmt.Fprintf(w, "joined mesh %s as %s (%s)\n", j.MeshID, j.ID, j.Tier)
				switch {
				case j.Tier == control.TierClient:
					fmt.Fprintln(w, "`meshnode worker call NAME --via HOST:PORT` talks to its workers through a node")
				case j.Restart:
					fmt.Fprintln(w, "`meshnode up` takes part in it")
				}
			})
		},
	}, // the daemon's log says how it went on
	)
	cmd.Flags().StringVar(&tokenFile, "token-file", "", "read the token from a file")
	cmd.Flags().Var(&via, "via", "an endpoint of a member to join through, besides those in the token (repeatable)")
	cmd.Flags().Var(&timeout, "timeout", "how long to try")
	return cmd
}

// join asks the daemon, or enrols the state directory where there is none.
func (a *app) join(ctx context.Context, token string, via []string) (control.JoinResult, error) {
	c := a.client()
	defer c.Close()
	j, err := c.Join(ctx, control.JoinRequest{Token: token, Via: via})
	if !errors.Is(err, &control.Error{Code: control.CodeUnreachable}) {
		return j, err
	}
	if _, verr := c.Version(ctx); verr == nil {
		return j, err // the daemon is there: it was the mesh that is not
	}
	return a.joinOffline(ctx, token, via)
}

func (a *app) joinOffline(ctx context.Context, token string, via []string) (control.JoinResult, error) {
	// No daemon may start in between.
	lock, err := control.LockState(a.stateDir)
	if err != nil {
		return control.JoinResult{}, err
	}
	defer lock.Close()
	m, err := mesh.Enrol(ctx, mesh.EnrolConfig{Dir: a.stateDir, Token: token, Via: via})
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return control.JoinResult{}, node.JoinError(err)
	}
	return control.JoinResult{
		ID: string(m.ID), MeshID: m.MeshID, Tier: m.Tier.String(), Expires: m.Expires, Restart: true,
	}, nil
}

// readToken reads a token from a file, or from standard input for "-".
func (a *app) readToken(path string) (string, error) {
	r := a.stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return "", usagef("--token-file: %s", err)
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, maxTokenBytes+1))
	if err != nil {
		return "", usagef("--token-file: %s", err)
	}
	token := strings.TrimSpace(string(b))
	switch {
	case len(b) > maxTokenBytes:
		return "", usagef("--token-file: %s holds no token: it is larger than %s", path, size(maxTokenBytes))
	case token == "":
		return "", usagef("--token-file: %s is empty", path)
	}
	return token, nil
}

func tokenError(err error) error {
	e := usagef("%s", err)
	e.Hint = "`meshnode token create` makes a token on the node that founded the mesh; pass it on whole"
	return e
}

func (a *app) leaveCommand() *cobra.Command {
	return a.outputFlag(&cobra.Command{
		Use:   "leave",
		Short: "Take this node out of its mesh",
		Long: `leave takes this node out of its mesh for good: the others see that it has
left, its certificate and its memory of them are removed, and its identity is
kept. A daemon that is running ends. It refuses while workers are at home here:
migrate or stop them first.

To stop a node for a while, end its daemon instead.`,
		Args:              a.args(),
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := withTimeout(cmd.Context(), requestTimeout, "leave")
			defer cancel()
			c := a.client()
			defer c.Close()
			l, err := c.Leave(ctx)
			if errors.Is(err, &control.Error{Code: control.CodeUnreachable}) {
				l, err = a.leaveOffline(err)
			}
			if err != nil {
				return err
			}
			return a.print(&l, func(w io.Writer) { fmt.Fprintf(w, "left mesh %s\n", l.MeshID) })
		},
	})
}

// leaveOffline removes the membership from a state directory that no daemon
// uses. The others will find this node dead rather than left.
func (a *app) leaveOffline(unreachable error) (control.LeaveResult, error) {
	have, err := mesh.HasMembership(a.stateDir)
	if err != nil || !have {
		return control.LeaveResult{}, errors.Join(unreachable, err)
	}
	lock, err := control.LockState(a.stateDir)
	if err != nil {
		return control.LeaveResult{}, err
	}
	defer lock.Close()
	m, err := mesh.LoadMembership(a.stateDir)
	if err != nil {
		return control.LeaveResult{}, err
	}
	if err := mesh.RemoveMembership(a.stateDir); err != nil {
		return control.LeaveResult{}, err
	}
	return control.LeaveResult{ID: string(m.ID), MeshID: m.MeshID}, nil
}
