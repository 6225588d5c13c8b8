package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"meshnode/node/control"
)

// outputFlag adds -o to a command that prints a result.
func (a *app) outputFlag(cmd *cobra.Command) *cobra.Command {
	a.format.value = "table"
	enumFlag(cmd, &a.format, "output", "o", "how to print the result", []string{"table", "json"})
	return cmd
}

// print writes a result: as JSON, or as table does.
func (a *app) print(d control.Document, table func(w io.Writer)) error {
	if a.format.value == "json" {
		return control.Encode(a.stdout, d)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 3, ' ', 0)
	table(w)
	return w.Flush()
}

// row writes cells of a table; an empty one shows as a dash.
func row(w io.Writer, cells ...any) {
	out := make([]string, len(cells))
	for i, c := range cells {
		if out[i] = fmt.Sprint(c); out[i] == "" {
			out[i] = "-"
		}
	}
	fmt.Fprintln(w, strings.Join(out, "\t"))
}

// field writes a line of a table of two columns, unless the value is empty.
func field(w io.Writer, name string, value any) {
	if s := fmt.Sprint(value); s != "" {
		fmt.Fprintf(w, "%s\t%s\n", name, s)
	}
}

// terminal returns the width of w in columns where it is a terminal.
func terminal(w any) (columns int, ok bool) {
	f, isFile := w.(*os.File)
	if !isFile || !term.IsTerminal(int(f.Fd())) {
		return 0, false
	}
	columns, _, err := term.GetSize(int(f.Fd()))
	return columns, err == nil && columns > 0
}

// millis writes milliseconds with three significant digits, as seconds from a
// second up.
func millis(ms float64) string {
	switch {
	case ms <= 0:
		return "0 ms"
	case ms < 0.1:
		return fmt.Sprintf("%.0f µs", ms*1000)
	case ms < 10:
		return fmt.Sprintf("%.2f ms", ms)
	case ms < 100:
		return fmt.Sprintf("%.1f ms", ms)
	case ms < 1000:
		return fmt.Sprintf("%.0f ms", ms)
	case ms < 100_000:
		return fmt.Sprintf("%.2f s", ms/1000)
	}
	return fmt.Sprintf("%.0f s", ms/1000)
}

// ago writes how long ago t was, in the two largest units.
func ago(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return age(time.Since(t))
}

func age(d time.Duration) string {
	switch s := int64(max(d, 0) / time.Second); {
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return fmt.Sprintf("%dm%02ds", s/60, s%60)
	case s < 86400:
		return fmt.Sprintf("%dh%02dm", s/3600, s/60%60)
	default:
		return fmt.Sprintf("%dd%02dh", s/86400, s/3600%24)
	}
}

func size(n uint64) string { return control.FormatBytes(n) }

// shortSize is size without the exact number in brackets.
func shortSize(n float64) string {
	s, _, _ := strings.Cut(size(uint64(n)), " (")
	return s
}

// freeText makes text from elsewhere fit for a terminal: control characters,
// which could move the cursor or worse, are shown as escapes.
func freeText(s string) string {
	clean := true
	for _, r := range s {
		if r < ' ' && r != '\t' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0xfffd {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if r < ' ' && r != '\t' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			fmt.Fprintf(&b, `\x%02x`, r)
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}
