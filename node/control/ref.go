package control

import (
	"fmt"
	"sort"
	"strings"
)

// minIDPrefix is the shortest beginning of an id that counts as a ref: below
// it, a name mistyped would too often hit an id by chance.
const minIDPrefix = 4

// A Named is what a ref can mean.
type Named struct{ ID, Name string }

// Match finds what ref means among the candidates: a name, an id or the
// beginning of one. what is "node" or "worker" and appears in the error: an
// *Error with CodeNotFound and the near names, or CodeInvalid when several
// match.
func Match(what, ref string, candidates []Named) (int, error) {
	var hits []int
	for i, c := range candidates {
		if c.ID == ref {
			return i, nil
		}
		if c.Name == ref {
			hits = append(hits, i)
		}
	}
	if len(hits) == 0 && len(ref) >= minIDPrefix {
		for i, c := range candidates {
			if strings.HasPrefix(c.ID, ref) {
				hits = append(hits, i)
			}
		}
	}
	switch len(hits) {
	case 1:
		return hits[0], nil
	case 0:
		names := make([]string, len(candidates))
		for i, c := range candidates {
			names[i] = c.Name
		}
		return 0, NotFound(what, ref, names)
	}
	ids := make([]string, len(hits))
	for i, h := range hits {
		ids[i] = candidates[h].ID
	}
	return 0, &Error{
		Code:    CodeInvalid,
		Message: fmt.Sprintf("%q means %d %ss: %s", ref, len(hits), what, strings.Join(ids, ", ")),
		Hint:    "name the " + what + " by its id",
	}
}

// NoFile is the error for a path at which a worker has nothing.
func NoFile(worker, path string) *Error {
	return &Error{
		Code: CodeNotFound, Message: fmt.Sprintf("worker %s has no file %s", worker, path),
		Hint: fmt.Sprintf("`meshnode worker files %s` lists its directories", worker),
	}
}

// NotFound says that there is no such node or worker (what), and suggests
// those of names that ref may have meant.
func NotFound(what, ref string, names []string) *Error {
	e := &Error{Code: CodeNotFound, Message: fmt.Sprintf("no %s %q in the mesh", what, ref)}
	near := Near(ref, names)
	switch {
	case len(near) > 0:
		e.Hint = "did you mean " + strings.Join(near, " or ") + "?"
	case len(names) == 0:
		e.Hint = fmt.Sprintf("there are no %ss yet", what)
	default:
		e.Hint = fmt.Sprintf("`meshnode %s ls` lists them", what)
	}
	return e
}

// Moved says that a worker's home is now another node.
func Moved(home string) *Error {
	return &Error{Code: CodeMoved, Message: "the worker has moved to node " + home, Home: home}
}

// Near returns up to three of names that ref could be a misspelling of, the
// nearest first.
func Near(ref string, names []string) []string {
	type hit struct {
		name string
		dist int
	}
	var hits []hit
	seen := make(map[string]bool)
	limit := 1 + len(ref)/4
	for _, n := range names {
		if n == "" || seen[n] {
			continue
		}
		seen[n] = true
		d := editDistance(strings.ToLower(ref), strings.ToLower(n))
		if len(ref) >= 2 && strings.HasPrefix(n, ref) {
			d = min(d, 1)
		}
		if d <= limit {
			hits = append(hits, hit{n, d})
		}
	}
	sort.SliceStable(hits, func(i, j int) bool { return hits[i].dist < hits[j].dist })
	out := make([]string, 0, 3)
	for _, h := range hits[:min(3, len(hits))] {
		out = append(out, h.name)
	}
	return out
}

// editDistance is the optimal string alignment distance: insertions,
// deletions, replacements and swaps of neighbours each count one.
func editDistance(a, b string) int {
	prev2, prev := []int(nil), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur := make([]int, len(b)+1)
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev = prev, cur
	}
	return prev[len(b)]
}
