package node

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
)

// A cddl checks values against a schema in as much of CDDL (RFC 8610) as the
// schemas here use: maps with integer keys, arrays, choices, ranges, and the
// controls .size and .cbor.
type cddl struct{ rules map[string][]string }

var cddlToken = regexp.MustCompile(`^(?:=>|\.\.|\.[a-z]+|"[^"]*"|-?(?:0x)?[0-9a-f]+\b|[a-z][a-z0-9-]*|[={}\[\]()?*,/])`)

// cddlRule begins a rule.
var cddlRule = regexp.MustCompile(`(?m)^([a-z][a-z-]*) = `)

func readCDDL(paths ...string) (*cddl, error) {
	c := &cddl{rules: map[string][]string{}}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		text := regexp.MustCompile(`(?m);.*$`).ReplaceAllString(string(b), "")
		at := cddlRule.FindAllStringSubmatchIndex(text, -1)
		for i, m := range at {
			end := len(text)
			if i+1 < len(at) {
				end = at[i+1][0]
			}
			name, rest := text[m[2]:m[3]], strings.TrimSpace(text[m[1]:end])
			if c.rules[name] != nil {
				return nil, fmt.Errorf("%s: %s twice", path, name)
			}
			for rest != "" {
				token := cddlToken.FindString(rest)
				if token == "" {
					return nil, fmt.Errorf("%s: %s: %.20q", path, name, rest)
				}
				c.rules[name] = append(c.rules[name], token)
				rest = strings.TrimSpace(rest[len(token):])
			}
		}
	}
	return c, nil
}

// check says whether v, as the cbor package decodes it, is what the rule says.
func (c *cddl) check(rule string, v any) error {
	tokens := c.rules[rule]
	if tokens == nil {
		return fmt.Errorf("no rule %s", rule)
	}
	p := &cddlMatch{c: c, tokens: tokens}
	err := p.choice(v, true)
	if err == nil && len(p.tokens) > 0 {
		err = fmt.Errorf("more behind it: %v", p.tokens)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", rule, err)
	}
	return nil
}

// A cddlMatch goes through a rule. With match false it only passes over it.
type cddlMatch struct {
	c      *cddl
	tokens []string
}

func (p *cddlMatch) peek() string {
	if len(p.tokens) == 0 {
		return ""
	}
	return p.tokens[0]
}

func (p *cddlMatch) take() string {
	t := p.peek()
	if t != "" {
		p.tokens = p.tokens[1:]
	}
	return t
}

func (p *cddlMatch) want(t string) {
	if got := p.take(); got != t {
		panic(fmt.Sprintf("schema: %q where %q was due", got, t))
	}
}

func (p *cddlMatch) choice(v any, match bool) error {
	err := p.one(v, match)
	for p.peek() == "/" {
		p.take()
		if again := p.one(v, match && err != nil); err != nil {
			err = again
		}
	}
	return err
}

func number(t string) (float64, bool) {
	n, err := strconv.ParseInt(t, 0, 64)
	return float64(n), err == nil
}

func numeric(v any) (float64, bool) {
	switch v := v.(type) {
	case uint64:
		return float64(v), true
	case int64:
		return float64(v), true
	}
	return 0, false
}

func (p *cddlMatch) one(v any, match bool) error {
	t := p.take()
	var err error
	switch t {
	case "{":
		return p.mapping(v, match)
	case "[":
		return p.array(v, match)
	case "any":
	case "uint", "int":
		n, ok := numeric(v)
		if !ok || t == "uint" && n < 0 {
			err = fmt.Errorf("%v is no %s", v, t)
		}
	case "bytes":
		if _, ok := v.([]byte); !ok {
			err = fmt.Errorf("%v is no bytes", v)
		}
	case "tstr":
		if _, ok := v.(string); !ok {
			err = fmt.Errorf("%v is no text", v)
		}
	case "bool", "true":
		if b, ok := v.(bool); !ok || t == "true" && !b {
			err = fmt.Errorf("%v is not %s", v, t)
		}
	case "null":
		if v != nil {
			err = fmt.Errorf("%v is not null", v)
		}
	default:
		if least, ok := number(t); ok {
			most := least
			if p.peek() == ".." {
				p.take()
				most, _ = number(p.take())
			}
			if n, ok := numeric(v); !ok || n < least || n > most {
				err = fmt.Errorf("%v is not in %v..%v", v, least, most)
			}
		} else if match {
			return p.c.check(t, v)
		}
		if !match {
			return nil
		}
		return err
	}
	switch p.peek() {
	case ".size":
		p.take()
		least, most := p.size()
		if err == nil && match {
			err = checkSize(v, least, most)
		}
	case ".cbor":
		p.take()
		rule := p.take()
		if err == nil && match {
			var inner any
			if err = cddlDecode.Unmarshal(v.([]byte), &inner); err == nil {
				err = p.c.check(rule, inner)
			}
		}
	}
	if !match {
		return nil
	}
	return err
}

func (p *cddlMatch) size() (least, most float64) {
	if p.peek() != "(" {
		n, _ := number(p.take())
		return n, n
	}
	p.want("(")
	least, _ = number(p.take())
	p.want("..")
	most, _ = number(p.take())
	p.want(")")
	return least, most
}

func checkSize(v any, least, most float64) error {
	if b, ok := v.([]byte); ok {
		if n := float64(len(b)); n < least || n > most {
			return fmt.Errorf("%v bytes, want %v to %v", n, least, most)
		}
		return nil
	}
	if n, _ := numeric(v); n >= math.Pow(256, most) {
		return fmt.Errorf("%v has more than %v bytes", n, most)
	}
	return nil
}

func (p *cddlMatch) mapping(v any, match bool) (err error) {
	m, ok := v.(map[any]any)
	if match && !ok {
		err = fmt.Errorf("%v is no map", v)
	}
	known := 0
	for p.peek() != "}" {
		optional := p.peek() == "?"
		if optional {
			p.take()
		}
		key, _ := number(p.take())
		p.want("=>")
		value, there := m[uint64(key)]
		if there {
			known++
		}
		e := p.choice(value, match && there)
		if p.peek() == "," {
			p.take()
		}
		switch {
		case err != nil:
		case e != nil:
			err = fmt.Errorf("key %v: %w", key, e)
		case match && !there && !optional:
			err = fmt.Errorf("no key %v", key)
		}
	}
	p.want("}")
	if err == nil && match && known < len(m) {
		err = fmt.Errorf("%d keys that the schema does not have", len(m)-known)
	}
	return err
}

func (p *cddlMatch) array(v any, match bool) (err error) {
	list, ok := v.([]any)
	if match && !ok {
		err = fmt.Errorf("%v is no array", v)
	}
	if p.peek() == "*" {
		p.take()
		element := p.tokens
		for i, e := range list {
			p.tokens = element
			if e := p.choice(e, match && err == nil); e != nil {
				err = fmt.Errorf("element %d: %w", i, e)
			}
		}
		p.tokens = element
		_ = p.choice(nil, false)
		p.want("]")
		return err
	}
	n := 0
	for ; p.peek() != "]"; n++ {
		var e any
		if n < len(list) {
			e = list[n]
		}
		if e := p.choice(e, match && err == nil); e != nil {
			err = fmt.Errorf("element %d: %w", n, e)
		}
		if p.peek() == "," {
			p.take()
		}
	}
	p.want("]")
	if err == nil && match && len(list) != n {
		err = fmt.Errorf("%d elements, want %d", len(list), n)
	}
	return err
}

var cddlDecode = func() cbor.DecMode {
	d, err := cbor.DecOptions{MaxArrayElements: 1 << 20}.DecMode()
	if err != nil {
		panic(err)
	}
	return d
}()

// The samples are what the schema says, and what it does not say is not.
func TestSchema(t *testing.T) {
	c, err := readCDDL("image.cddl", "wasi/state.cddl")
	if err != nil {
		t.Fatal(err)
	}
	c.rules["wasi"] = c.rules["state"]
	check := func(rule string, b []byte) error {
		var v any
		if err := cddlDecode.Unmarshal(b, &v); err != nil {
			t.Fatal(err)
		}
		return c.check(rule, v)
	}
	for path, rule := range map[string]string{"testdata/image.v1": "image", "wasi/testdata/state.v1": "state"} {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := check(rule, bytes.TrimPrefix(b, []byte(imageMagic+"\x01"))); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	b, err := os.ReadFile("testdata/checkpoint.v1")
	if err != nil {
		t.Fatal(err)
	}
	r, err := newCheckpointReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	for kind := 0; kind != recordEnd; {
		rec, err := r.read()
		if err != nil {
			t.Fatal(err)
		}
		kind = rec.kind()
		b, err := encMode.Marshal(rec)
		if err != nil {
			t.Fatal(err)
		}
		if err := check("record", b); err != nil {
			t.Error(err)
		}
	}
	// The checker checks.
	for what, v := range map[string]any{
		"a key too many":   map[int]any{1: 1, 2: 0x7f, 3: 7, 4: 1},
		"a key too few":    map[int]any{1: 1, 2: 0x7f},
		"text":             map[int]any{1: "1", 2: 0x7f, 3: 7},
		"more than 8 bits": map[int]any{1: 1, 2: 0x17f, 3: 7},
		"below zero":       map[int]any{1: 1, 2: 0x7f, 3: -7},
		"an array":         []int{1, 2, 3},
	} {
		b, err := cbor.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if check("global", b) == nil {
			t.Errorf("%s: taken for a global", what)
		}
	}
}
