package main

import (
	"encoding/json"
	"fmt"
	"io"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"meshnode/node/control"
)

// requestTimeout bounds requests that a daemon answers at once.
const requestTimeout = 30 * time.Second

func (a *app) statusCommand() *cobra.Command {
	return a.outputFlag(&cobra.Command{
		Use:               "status",
		Short:             "Describe this node",
		Args:              a.args(),
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := withTimeout(cmd.Context(), requestTimeout, "status")
			defer cancel()
			c := a.client()
			defer c.Close()
			s, err := c.Status(ctx)
			if err != nil {
				return err
			}
			return a.print(&s, func(w io.Writer) { statusTable(w, s) })
		},
	})
}

func statusTable(w io.Writer, s control.Status) {
	role := s.Tier
	if s.Authority {
		role += ", authority of the mesh"
	}
	paging := s.Paging.Mode
	if s.Paging.Reason != "" {
		paging += " (" + s.Paging.Reason + ")"
	}
	if s.Paging.WriteTracking != "" {
		paging += ", writes tracked by " + s.Paging.WriteTracking
	}
	members := []string{fmt.Sprintf("%d alive", s.Members.Alive)}
	for _, m := range []struct {
		n    int
		word string
	}{{s.Members.Suspect, "suspect"}, {s.Members.Dead, "dead"}, {s.Members.Left, "left"}} {
		if m.n > 0 {
			members = append(members, fmt.Sprintf("%d %s", m.n, m.word))
		}
	}
	field(w, "node", freeText(s.Name))
	field(w, "id", s.ID)
	field(w, "tier", role)
	field(w, "mesh", s.MeshID)
	field(w, "members", strings.Join(members, ", "))
	field(w, "workers", s.Workers)
	for i, c := range s.Clients {
		if i == maxClientLines {
			field(w, "", fmt.Sprintf("and %d more", len(s.Clients)-i))
			break
		}
		field(w, "client", fmt.Sprintf("%s at %s, round trip %s, for %s", c.ID, freeText(c.Worker), millis(c.RTTMs), ago(c.Since)))
	}
	field(w, "listens on", s.Listen)
	field(w, "endpoints", strings.Join(s.Endpoints, " "))
	field(w, "metrics", s.Metrics)
	field(w, "labels", labelText(s.Labels))
	field(w, "engine", s.Engine)
	field(w, "paging", paging)
	field(w, "state", s.StateDir)
	field(w, "up", fmt.Sprintf("%s, pid %d", age(time.Duration(s.UptimeMs*float64(time.Millisecond))), s.PID))
	field(w, "version", s.Version)
}

// maxClientLines bounds the clients that status lists.
const maxClientLines = 16

func labelText(labels map[string]string) string {
	var out []string
	for k, v := range labels {
		out = append(out, k+"="+v)
	}
	sort.Strings(out)
	return freeText(strings.Join(out, " "))
}

func (a *app) nodeCommand() *cobra.Command {
	return a.group("node", "See the nodes of the mesh", a.nodeListCommand(), a.nodeShowCommand(),
		a.nodeCordonCommand(true), a.nodeCordonCommand(false), a.nodeDrainCommand(), a.nodeLabelCommand())
}

func (a *app) nodeListCommand() *cobra.Command {
	return a.outputFlag(&cobra.Command{
		Use:               "ls",
		Aliases:           []string{"list"},
		Short:             "List the nodes",
		Args:              a.args(),
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := withTimeout(cmd.Context(), requestTimeout, "list the nodes")
			defer cancel()
			c := a.client()
			defer c.Close()
			nodes, err := c.Nodes(ctx)
			if err != nil {
				return err
			}
			sort.SliceStable(nodes, func(i, j int) bool { return nodes[i].Name < nodes[j].Name })
			return a.print(&control.NodeList{Nodes: nodes}, func(w io.Writer) {
				row(w, "NAME", "TIER", "STATE", "FOR", "ENDPOINT", "PLATFORM", "CORES", "FREE", "LOAD", "ID")
				for _, n := range nodes {
					name := freeText(n.Name)
					if n.Self {
						name += " *"
					}
					free := ""
					if n.MemoryFreeBytes > 0 {
						free = size(n.MemoryFreeBytes)
					}
					state := n.State
					if n.Cordoned {
						state += ",cordoned"
					}
					row(w, name, n.Tier, state, ago(n.Since), n.Endpoint, platform(n), n.Cores, free,
						fmt.Sprintf("%d%%", n.LoadPercent), n.ID)
				}
			})
		},
	})
}

func platform(n control.Node) string {
	if n.OS == "" && n.Arch == "" {
		return ""
	}
	return freeText(n.OS + "/" + n.Arch)
}

func (a *app) nodeShowCommand() *cobra.Command {
	return a.outputFlag(&cobra.Command{
		Use:               "show NODE",
		Short:             "Describe one node and what it can do",
		Args:              a.args("NODE, a node's name or id"),
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := withTimeout(cmd.Context(), requestTimeout, "show "+args[0])
			defer cancel()
			c := a.client()
			defer c.Close()
			n, err := c.Node(ctx, args[0])
			if err != nil {
				return err
			}
			return a.print(&n, func(w io.Writer) { nodeTable(w, n) })
		},
	})
}

// shown are the keys of a capability document that have lines of their own.
var shown = map[string]bool{
	"apiVersion": true, "kind": true, "labels": true, "interfaces": true, "accelerators": true, "promises": true,
	"speed": true, "cordoned": true, "kept": true,
}

// keptField says how a promise was kept.
func keptField(w io.Writer, promise, who string, r *control.PromiseRecord) {
	if r == nil {
		return
	}
	late := ""
	if r.Broken > 0 {
		late = ", when not " + millis(r.BrokenMs)
	}
	field(w, "kept", fmt.Sprintf("%s: %.0f%% to be expected%s, %s", promise, 100*r.Credibility, late, who))
}

func nodeTable(w io.Writer, n control.Node) {
	self := ""
	if n.Self {
		self = " (this node)"
	}
	field(w, "node", freeText(n.Name)+self)
	field(w, "id", n.ID)
	field(w, "tier", n.Tier)
	field(w, "state", n.State+" for "+ago(n.Since))
	field(w, "endpoint", n.Endpoint)
	field(w, "endpoints", freeText(strings.Join(n.Endpoints, " ")))
	field(w, "platform", platform(n))
	field(w, "cores", n.Cores)
	field(w, "memory free", size(n.MemoryFreeBytes))
	field(w, "load", fmt.Sprintf("%d%%", n.LoadPercent))
	if n.AgeMs > 0 {
		field(w, "as of", millis(n.AgeMs)+" ago")
	}
	if n.Cordoned {
		field(w, "cordoned", "takes no new workers")
	}
	if n.Speed > 0 {
		field(w, "speed", fmt.Sprintf("%d calibration events/s on a core", n.Speed))
	}
	field(w, "round trip", roundTrip(n))
	if n.UplinkBytesPerSec > 0 {
		field(w, "uplink seen", linkRate(n.UplinkBytesPerSec))
	}
	if n.DownlinkBytesPerSec > 0 {
		field(w, "downlink seen", linkRate(n.DownlinkBytesPerSec))
	}
	field(w, "engine", freeText(n.Engine))
	field(w, "paging", freeText(n.Paging))
	field(w, "labels", labelText(n.Labels))
	field(w, "interfaces", freeText(strings.Join(n.Interfaces, " ")))
	field(w, "accelerators", freeText(strings.Join(n.Accelerators, " ")))
	if p := n.Promises; p != nil {
		for _, m := range []struct {
			name string
			ms   float64
		}{{"access", p.AccessMs}, {"move in", p.MoveInMs}, {"move out", p.MoveOutMs}} {
			if m.ms > 0 {
				field(w, "promises", m.name+" within "+millis(m.ms))
			}
		}
	}
	if k := n.Kept; k != nil {
		keptField(w, "access", "by its own word", k.Access)
		keptField(w, "move in", "by its own word", k.MoveIn)
		keptField(w, "move out", "by its own word", k.MoveOut)
	}
	keptField(w, "move in", "as seen from here", n.KeptMoveIn)
	for i, wk := range n.Workers {
		name := "workers"
		if i > 0 {
			name = ""
		}
		fmt.Fprintf(w, "%s\t%s, %s, %s\n", name, freeText(wk.Name), wk.State, size(wk.MemoryBytes))
	}
	switch {
	case n.DocumentError != "":
		field(w, "capabilities", "not known: "+freeText(n.DocumentError))
	case len(n.Document) > 0:
		var doc map[string]json.RawMessage
		if json.Unmarshal(n.Document, &doc) != nil {
			break
		}
		keys := make([]string, 0, len(doc))
		for k := range doc {
			if !shown[k] {
				keys = append(keys, k)
			}
		}
		sort.Strings(keys)
		for i, k := range keys {
			name := "capabilities"
			if i > 0 {
				name = ""
			}
			fmt.Fprintf(w, "%s\t%s: %s\n", name, freeText(k), freeText(strings.Trim(string(doc[k]), `"`)))
		}
	}
}

// roundTrip says how far a node is from the one that answers, by QUIC and by
// the coordinates.
func roundTrip(n control.Node) string {
	var parts []string
	if n.RTTMs > 0 {
		parts = append(parts, millis(n.RTTMs))
	}
	if n.RTTEstimateMs > 0 {
		parts = append(parts, fmt.Sprintf("%s by coordinates, give or take %.0f%%", millis(n.RTTEstimateMs), 100*n.RTTErrorShare))
	}
	return strings.Join(parts, "; ")
}

func (a *app) pingCommand() *cobra.Command {
	count := 3
	timeout := durationValue{}
	cmd := a.outputFlag(&cobra.Command{
		Use:   "ping NODE",
		Short: "Measure round trips to a node over QUIC",
		Long: `ping measures round trips to a node over the mesh's own QUIC connections, a
second apart, and prints each with the endpoint that it went to.`,
		Args:              a.args("NODE, a node's name or id"),
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			if count < 1 || count > 1_000_000 {
				return usagef("--count: %d is out of range; it goes from 1 to 1000000", count)
			}
			wait := timeout.d
			if wait == 0 {
				wait = time.Duration(count)*time.Second + 10*time.Second
			}
			ctx, cancel := withTimeout(cmd.Context(), wait, "ping "+args[0])
			defer cancel()
			c := a.client()
			defer c.Close()
			return c.Ping(ctx, args[0], count, func(p control.Ping) error {
				if a.format.value == "json" {
					return control.Encode(a.stdout, &p)
				}
				via := p.Endpoint
				if p.Path != "" {
					via += " (" + p.Path + ")"
				}
				_, err := fmt.Fprintf(a.stdout, "%s via %s: %s (smoothed %s, least %s)\n",
					freeText(p.Name), via, millis(p.RTTMs), millis(p.SmoothedMs), millis(p.MinMs))
				return err
			})
		},
	})
	cmd.Flags().IntVarP(&count, "count", "c", count, "how many round trips")
	cmd.Flags().Var(&timeout, "timeout", "how long to wait in all (default: a second each and ten more)")
	return cmd
}

func linkRate(bytesPerSecond float64) string { return fmt.Sprintf("%.1f Mbit/s", bytesPerSecond*8/1e6) }
