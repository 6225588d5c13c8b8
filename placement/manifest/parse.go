package manifest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Limits of a manifest.
const (
	// MaxBytes is the size of the largest manifest.
	MaxBytes = 64 << 10
	// maxDepth is how deep lists and maps may nest; the format needs 5. The
	// parser recurses, so this is checked on the tokens before it runs.
	maxDepth  = 16
	maxTokens = 16 << 10
)

// Parse reads one manifest. Name is what its problems call the file. The
// result has all defaults filled in. The error is an *[Error] with every
// problem found.
func Parse(name string, data []byte) (*App, error) {
	p := &source{lines: strings.Split(string(data), "\n")}
	app := &App{}
	if root := p.read(data); root != nil {
		d := &decoder{source: p, at: map[string]*token.Token{}}
		d.value(root, reflectOf(app), nil, "")
		if len(p.problems) == 0 {
			// Rules between fields make sense only once each is right.
			check(app, d.problemAt)
		}
	}
	if len(p.problems) == 0 {
		return app, nil
	}
	slices.SortStableFunc(p.problems, func(a, b Problem) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	if more := len(p.problems) - maxProblems; more > 0 {
		p.problems = p.problems[:maxProblems]
		p.problems[maxProblems-1].Reason += fmt.Sprintf(" (and %d more problems)", more)
	}
	return nil, &Error{File: name, Problems: p.problems}
}

// A source is the text of a manifest and what is wrong with it.
type source struct {
	lines    []string
	problems []Problem
}

func (s *source) problem(line, column int, path, reason, accepted string) {
	line = min(max(line, 1), len(s.lines))
	s.problems = append(s.problems, Problem{
		Line: line, Column: max(column, 1), Path: path, Reason: reason, Accepted: accepted,
		Excerpt: excerpt(s.lines, line, column),
	})
}

func (s *source) problemToken(t *token.Token, path, reason, accepted string) {
	line, column := 1, 1
	if t != nil && t.Position != nil {
		line, column = t.Position.Line, t.Position.Column
	}
	s.problem(line, column, path, reason, accepted)
}

// read returns the body of the only document, or nil after having reported
// why there is none.
func (s *source) read(data []byte) ast.Node {
	if len(data) > MaxBytes {
		s.lines = s.lines[:1]
		s.problem(1, 1, "", fmt.Sprintf("the file has %d bytes", len(data)), fmt.Sprintf("at most %d bytes", MaxBytes))
		return nil
	}
	if !utf8.Valid(data) {
		line := 1
		for _, l := range s.lines {
			if !utf8.ValidString(l) {
				break
			}
			line++
		}
		s.problem(line, 1, "", "the line is no valid UTF-8", "")
		return nil
	}
	for i, l := range s.lines {
		if c := strings.IndexFunc(l, func(r rune) bool { return r < ' ' && r != '\t' && r != '\r' }); c >= 0 {
			s.problem(i+1, c+1, "", "the line has a control character", "printable text")
			return nil
		}
	}
	tokens := lexer.Tokenize(string(data))
	if !s.plain(tokens) {
		return nil
	}
	// Repeated keys are reported by the decoder, along with other problems.
	f, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		var ye yaml.Error
		if errors.As(err, &ye) {
			s.problemToken(ye.GetToken(), "", "not YAML: "+ye.GetMessage(), "")
		} else {
			s.problem(1, 1, "", "not YAML", "")
		}
		return nil
	}
	var body ast.Node
	for _, d := range f.Docs {
		switch {
		case d.Body == nil || d.Body.Type() == ast.CommentType:
		case body != nil:
			s.problemToken(d.Body.GetToken(), "", "a second document in the file", "one manifest a file")
			return nil
		default:
			body = d.Body
		}
	}
	if body == nil {
		s.problem(1, 1, "", "the file is empty", "a manifest that begins with apiVersion: "+APIVersion)
	}
	return body
}

// plain reports whether the tokens stay within the dialect. What it refuses
// (anchors and aliases above all) could make a small file a large value.
func (s *source) plain(tokens token.Tokens) bool {
	if len(tokens) > maxTokens {
		s.problem(1, 1, "", fmt.Sprintf("the file has %d tokens", len(tokens)), fmt.Sprintf("at most %d", maxTokens))
		return false
	}
	var open []int // columns of the block lists and maps that are open
	flow := 0
	for _, t := range tokens {
		what := ""
		switch t.Type {
		case token.AnchorType, token.AliasType:
			what = "anchors and aliases"
		case token.MergeKeyType:
			what = "merge keys"
		case token.TagType:
			what = "tags"
		case token.DirectiveType:
			what = "directives"
		case token.MappingKeyType:
			what = "explicit keys (?)"
		case token.InvalidType:
			s.problemToken(t, "", "not YAML: "+t.Error, "")
			return false
		case token.SequenceStartType, token.MappingStartType:
			flow++
		case token.SequenceEndType, token.MappingEndType:
			flow = max(0, flow-1)
		case token.SequenceEntryType, token.MappingValueType:
			// A map's column is that of its key.
			at := t
			if t.Type == token.MappingValueType && t.Prev != nil {
				at = t.Prev
			}
			for len(open) > 0 && open[len(open)-1] >= at.Position.Column {
				open = open[:len(open)-1]
			}
			if flow == 0 {
				open = append(open, at.Position.Column)
			}
		}
		if what != "" {
			s.problemToken(t, "", "a manifest has no "+what, "plain keys, values and lists; quote a value that begins with & * ! or %")
			return false
		}
		if len(open)+flow > maxDepth {
			s.problemToken(t, "", fmt.Sprintf("lists and maps nest more than %d deep", maxDepth), "")
			return false
		}
	}
	return true
}
