package manifest

import (
	"errors"
	"fmt"
	"strings"
)

// ErrManifest is what every [Error] unwraps to.
var ErrManifest = errors.New("manifest refused")

// An Error lists what is wrong with a manifest, in the order of the file.
type Error struct {
	// File is its name as given to Parse.
	File     string
	Problems []Problem
}

// A Problem is one thing that is wrong.
type Problem struct {
	// Line and Column count from 1.
	Line   int `json:"line"`
	Column int `json:"column"`
	// Path names the field: objectives.rtt[0].max. Empty for the whole file.
	Path string `json:"path,omitempty"`
	// Reason is what is wrong; Accepted, if known, what would not be.
	Reason   string `json:"reason"`
	Accepted string `json:"accepted,omitempty"`
	// Excerpt is the line with its neighbours, a caret under the column.
	Excerpt string `json:"excerpt,omitempty"`
}

// Beyond as many problems the rest is likely to follow from the first.
const maxProblems = 20

// Error lists all problems, each with its excerpt.
func (e *Error) Error() string {
	var b strings.Builder
	for i, p := range e.Problems {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%s:%d:%d: ", e.File, p.Line, p.Column)
		if p.Path != "" {
			b.WriteString(p.Path + ": ")
		}
		b.WriteString(p.Reason)
		if p.Accepted != "" {
			b.WriteString("\n  accepted: " + p.Accepted)
		}
		if p.Excerpt != "" {
			b.WriteString("\n" + p.Excerpt)
		}
	}
	return b.String()
}

// Unwrap returns [ErrManifest].
func (e *Error) Unwrap() error { return ErrManifest }

// excerpt draws line (from 1) of lines with one neighbour on each side and a
// caret under column (from 1, in characters).
func excerpt(lines []string, line, column int) string {
	if line < 1 || line > len(lines) {
		return ""
	}
	const maxWidth = 120
	var b strings.Builder
	for n := max(1, line-1); n <= min(len(lines), line+1); n++ {
		if n != line && n == len(lines) && lines[n-1] == "" {
			break // what follows the last newline is no line
		}
		text := []rune(strings.TrimRight(lines[n-1], "\r"))
		for i, r := range text {
			if r < ' ' || r == 0x7f {
				text[i] = ' '
			}
		}
		if len(text) > maxWidth {
			text = append(text[:maxWidth:maxWidth], '…')
		}
		mark := ' '
		if n == line {
			mark = '>'
		}
		b.WriteString(strings.TrimRight(fmt.Sprintf("  %c %4d | %s", mark, n, string(text)), " ") + "\n")
		if n == line && column >= 1 && column <= len(text)+1 {
			fmt.Fprintf(&b, "         | %s^\n", strings.Repeat(" ", column-1))
		}
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// clip shortens what a reason quotes.
func clip(s string) string {
	const most = 60
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}

// nearest returns the one of names that word is most likely a misspelling of,
// or "".
func nearest(word string, names []string) string {
	best, bestD := "", 3
	for _, n := range names {
		if strings.EqualFold(word, n) {
			return n
		}
		if d := distance(word, n); d < bestD && d < len(n) {
			best, bestD = n, d
		}
	}
	return best
}

// distance is the number of single-byte edits between a and b (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			next := min(row[j]+1, row[j+1]+1)
			if a[i] == b[j] {
				next = min(next, diag)
			} else {
				next = min(next, diag+1)
			}
			diag, row[j+1] = row[j+1], next
		}
	}
	return row[len(b)]
}
