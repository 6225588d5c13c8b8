package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"meshnode/node/control"
)

func (a *app) workerMigrateCommand() *cobra.Command {
	var (
		to       string
		strategy = enumValue{value: control.Strategies[0]}
		timeout  durationValue
		plan     bool
		rounds   durationValue
		priority = 1
		noSample bool
	)
	cmd := a.outputFlag(&cobra.Command{
		Use:   "migrate NAME --to NODE",
		Short: "Move a running worker to another node",
		Long: `migrate moves a worker while it runs. With post-copy it goes on at the other
node at once and its memory follows, the pages it needs first; stop-and-copy
sends all memory while it stands still, as a baseline to compare with.

With --plan it only says what the move would be like with each strategy: the
blackout, the time in all and the bytes, and which would break the blackout
objective of the worker's manifest. The worker is watched for a moment for
that, and stays where it is.

It ends when all memory has arrived. Interrupting it before the worker has
moved gives the move up; later, the move goes on without being watched.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := a.args(workerArg)(cmd, args); err != nil {
				return err
			}
			if to == "" {
				return usagef("`%s` needs --to NODE, where the worker shall go", cmd.CommandPath())
			}
			if most := time.Duration(control.MaxRoundsLimitMs) * time.Millisecond; rounds.d > most {
				return usagef("--rounds-limit: %s is out of range; it goes to %s", rounds.d, most)
			}
			if priority < 1 || priority > control.MaxPriority {
				return usagef("--priority: %d is out of range; it goes from 1 to %d", priority, control.MaxPriority)
			}
			return nil
		},
		ValidArgsFunction: a.completeWorkers,
		RunE: func(cmd *cobra.Command, args []string) error {
			c := a.client()
			defer c.Close()
			req := control.MigrateRequest{To: to, Strategy: strategy.value, TimeoutMs: control.Millis(timeout.d),
				RoundsLimitMs: control.Millis(rounds.d), Priority: priority, NoSampling: noSample}
			if plan {
				ctx, cancel := withTimeout(cmd.Context(), requestTimeout, "plan a move of "+args[0])
				defer cancel()
				p, err := c.Plan(ctx, args[0], req)
				if err != nil {
					return err
				}
				return a.print(&p, func(w io.Writer) { planTable(w, p) })
			}
			line := newLiveLine(a.stderr)
			m, err := c.Migrate(cmd.Context(), args[0], req, func(p control.Progress) { line.set(progressText(p)) })
			line.clear()
			if err != nil {
				return err
			}
			return a.print(&m, func(w io.Writer) { fmt.Fprintln(w, migrationText(m)) })
		},
	})
	cmd.Flags().StringVar(&to, "to", "", "the node to move to: its name or id")
	_ = cmd.RegisterFlagCompletionFunc("to", a.completeNodeFlag)
	enumFlag(cmd, &strategy, "strategy", "", "how its memory travels", control.Strategies)
	cmd.Flags().Var(&timeout, "timeout", "how long it may take until the worker runs there (default: the node's)")
	cmd.Flags().Var(&rounds, "rounds-limit", "how long its memory may travel while it still runs here (default: until that brings little more, 290s at most)")
	cmd.Flags().IntVar(&priority, "priority", priority, "its share of the link against other moves, 1 to 10")
	cmd.Flags().BoolVar(&noSample, "no-sampling", false, "do not look which pages it touches, to send them first once it has moved")
	cmd.Flags().BoolVar(&plan, "plan", false, "say what the move would be like, and do not move anything")
	return cmd
}

// planTable shows what each strategy would come to.
func planTable(w io.Writer, p control.MovePlan) {
	row(w, "STRATEGY", "BLACKOUT", "TOTAL", "BYTES", "ROUNDS", "")
	for _, o := range p.Predictions {
		var marks []string
		if o.Strategy == p.Auto {
			marks = append(marks, "auto takes this one")
		}
		if o.BreaksBlackout {
			marks = append(marks, "breaks objectives.blackout")
		}
		row(w, o.Strategy, millis(o.BlackoutMs), millis(o.TotalMs), shortSize(float64(o.Bytes)), o.Rounds, cmp.Or(strings.Join(marks, ", "), " "))
	}
	s := fmt.Sprintf("\n%s of memory", size(p.MemoryBytes))
	if a := p.Activity; a != nil {
		s += fmt.Sprintf(", %s of it ever written, %s/s being written", shortSize(float64(a.ContentBytes)), shortSize(a.DirtyBytesPerSec))
	}
	s += fmt.Sprintf("; round trip to %s %s", freeText(p.To), millis(p.RTTMs))
	if p.RateBytesPerSec > 0 {
		s += fmt.Sprintf(", %s/s as of the last moves", shortSize(p.RateBytesPerSec))
	}
	fmt.Fprintln(w, s)
	if l := p.Learnt; l != nil {
		fmt.Fprintf(w, "learnt from %s there: blackout x %.2f, getting ready x %.2f, bytes x %.2f\n", plural(l.Moves, "move"), l.Blackout, l.Setup, l.Bytes)
	}
	for _, what := range p.Assumed {
		fmt.Fprintf(w, "assumed: %s\n", freeText(what))
	}
}

// migrationText is the one line a move ends with.
func migrationText(m control.Migration) string {
	s := fmt.Sprintf("%s moved from %s to %s: blackout %s, total %s, %s on the wire, %s demanded",
		freeText(m.Worker), freeText(m.From), freeText(m.To), millis(m.BlackoutMs), millis(m.TotalMs),
		size(m.BytesOnWire), plural(int(m.PagesDemanded), "page"))
	if m.PagesDemanded > 0 {
		s += fmt.Sprintf(", fault p50 %s p99 %s", millis(m.FaultMsP50), millis(m.FaultMsP99))
	}
	if p := m.Predicted; p != nil {
		s += fmt.Sprintf("\nexpected: blackout %s, total %s, %s", millis(p.BlackoutMs), millis(p.TotalMs), shortSize(float64(p.Bytes)))
		if p.RateAssumed {
			s += ", at a guessed 100 Mbit/s"
		}
	}
	return s
}

// progressText is what a person sees while a move is under way.
func progressText(p control.Progress) string {
	s := fmt.Sprintf("%-7s %7s", p.Phase, millis(p.ElapsedMs))
	if p.PagesTotal > 0 {
		done := min(p.PagesPushed+p.PagesDemanded, p.PagesTotal)
		s += fmt.Sprintf("  %s %3d%%", bar(int(done*20/p.PagesTotal), 20), done*100/p.PagesTotal)
	}
	s += fmt.Sprintf("  %d pages sent, %d demanded, %s", p.PagesPushed, p.PagesDemanded, size(p.BytesOnWire))
	if p.BlackoutMs > 0 {
		s += ", blackout " + millis(p.BlackoutMs)
	}
	return s
}

func bar(done, width int) string {
	return strings.Repeat("█", done) + strings.Repeat("░", width-done)
}

// A liveLine is the last line of a terminal, redrawn in place. Off a terminal
// it writes nothing.
type liveLine struct {
	w     io.Writer
	width int
	drawn bool
}

func newLiveLine(w io.Writer) *liveLine {
	width, _ := terminal(w)
	return &liveLine{w: w, width: width}
}

func (l *liveLine) set(text string) {
	if l.width == 0 {
		return
	}
	if r := []rune(text); len(r) >= l.width {
		text = string(r[:l.width-1]) // a line that wraps cannot be redrawn
	}
	l.drawn = true
	// To the first column, the text, and the rest of the line erased
	// (ECMA-48, EL).
	fmt.Fprintf(l.w, "\r%s\x1b[K", text)
}

func (l *liveLine) clear() {
	if l.drawn {
		fmt.Fprint(l.w, "\r\x1b[K")
		l.drawn = false
	}
}
