package manifest

import (
	"fmt"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

// A decoder fills Go values from a syntax tree, by the tags of their types.
// It goes on after a problem, so that all are found in one run.
type decoder struct {
	*source
	at map[string]*token.Token // path to where its value begins
}

func reflectOf(app *App) reflect.Value { return reflect.ValueOf(app).Elem() }

// problemAt reports a problem with the field at path, or with the nearest one
// around it that is in the file.
func (d *decoder) problemAt(path, reason, accepted string) {
	where := path
	for {
		if t, ok := d.at[where]; ok || where == "" {
			d.problemToken(t, path, reason, accepted)
			return
		}
		where = where[:max(0, strings.LastIndexAny(where, ".["))]
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func kindOf(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a map"
	case *ast.SequenceNode:
		return "a list"
	case *ast.NullNode:
		return "empty"
	case *ast.StringNode, *ast.LiteralNode:
		return "a string"
	case *ast.BoolNode:
		return "a boolean"
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		return "a number"
	}
	return "something else"
}

// mismatch reports that n is not what path wants.
func (d *decoder) mismatch(n ast.Node, path, want string) {
	if _, empty := n.(*ast.NullNode); empty {
		d.problemToken(n.GetToken(), path, "has no value", want+"; or leave the key out")
		return
	}
	d.problemToken(n.GetToken(), path, "is "+kindOf(n), want)
}

// value decodes n into v. f is the field that v belongs to, nil for the root.
func (d *decoder) value(n ast.Node, v reflect.Value, f *field, path string) {
	d.at[path] = n.GetToken()
	if t, ok := v.Addr().Interface().(text); ok {
		d.text(n, t, v, f, path)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(n, v.Elem(), f, path)
	case reflect.Struct:
		d.structure(n, v, path)
	case reflect.Slice:
		d.list(n, v, f, path)
	case reflect.Map:
		d.table(n, v, f, path)
	case reflect.String:
		d.str(n, v, f, path)
	case reflect.Bool:
		b, ok := n.(*ast.BoolNode)
		if !ok {
			d.mismatch(n, path, "true or false")
			return
		}
		v.SetBool(b.Value)
	case reflect.Int, reflect.Float64:
		d.number(n, v, f, path)
	default:
		panic(fmt.Sprintf("manifest: no decoder for %s", v.Type()))
	}
}

// An entry is a key of a map with its value.
type entry struct {
	key   string
	token *token.Token
	value ast.Node
}

// entries returns what is in map n, without repeated keys and keys that are
// no strings, which it reports. It is false when n is no map.
func (d *decoder) entries(n ast.Node, path string) ([]entry, bool) {
	var values []*ast.MappingValueNode
	switch n := n.(type) {
	case *ast.MappingNode:
		values = n.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{n}
	default:
		return nil, false
	}
	seen := make(map[string]bool, len(values))
	var out []entry
	for _, mv := range values {
		t := mv.Key.GetToken()
		s, ok := mv.Key.(*ast.StringNode)
		switch {
		case !ok:
			d.problemToken(t, path, fmt.Sprintf("key %q is no string", clip(t.Value)), "quote it")
		case seen[s.Value]:
			d.problemToken(t, join(path, s.Value), "is given twice", "")
		default:
			seen[s.Value] = true
			out = append(out, entry{s.Value, t, mv.Value})
		}
	}
	return out, true
}

func (d *decoder) structure(n ast.Node, v reflect.Value, path string) {
	es, ok := d.entries(n, path)
	fs := fields(v.Type())
	names := make([]string, len(fs))
	for i := range fs {
		names[i] = fs[i].name
	}
	if !ok {
		d.mismatch(n, path, "a map with any of "+strings.Join(names, ", "))
		return
	}
	given := make([]bool, len(fs))
	for _, e := range es {
		i := slices.Index(names, e.key)
		if i < 0 {
			reason := "unknown key"
			if near := nearest(e.key, names); near != "" {
				reason += "; did you mean " + near + "?"
			}
			d.problemToken(e.token, join(path, clip(e.key)), reason, strings.Join(names, ", "))
			continue
		}
		given[i] = true
		d.value(e.value, v.FieldByIndex(fs[i].index), &fs[i], join(path, fs[i].name))
	}
	for i := range fs {
		if given[i] {
			continue
		}
		if fs[i].required {
			d.problemAt(path, "needs "+fs[i].name, fs[i].name+": "+fs[i].accepted())
		}
		fillDefault(v.FieldByIndex(fs[i].index), &fs[i])
	}
}

// fillDefault gives a field that is not in the file its default.
func fillDefault(v reflect.Value, f *field) {
	if v.Kind() == reflect.Struct {
		for _, g := range fields(v.Type()) {
			fillDefault(v.FieldByIndex(g.index), &g)
		}
		return
	}
	if f.def == "" {
		return
	}
	if err := setText(v, f.def); err != nil {
		panic(fmt.Sprintf("manifest: default of %s: %v", f.name, err))
	}
}

// setText sets a scalar from its notation in a tag.
func setText(v reflect.Value, s string) error {
	if t, ok := v.Addr().Interface().(text); ok {
		return t.set(s)
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(s)
	case reflect.Int:
		n, err := strconv.ParseInt(s, 10, 32)
		v.SetInt(n)
		return err
	case reflect.Float64:
		n, err := strconv.ParseFloat(s, 64)
		v.SetFloat(n)
		return err
	default:
		return fmt.Errorf("no notation for %s", v.Type())
	}
	return nil
}

// accepted says in words what a field takes.
func (f *field) accepted() string {
	t := f.typ
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	of := ""
	if t.Kind() == reflect.Slice {
		of, t = fmt.Sprintf("a list of up to %d of: ", f.entries()), t.Elem()
	}
	switch {
	case len(f.enum) > 0:
		return of + strings.Join(f.enum, ", ")
	case reflect.PointerTo(t).Implements(textType):
		return of + reflect.New(t).Interface().(text).form().accepted + f.bounds()
	case t.Kind() == reflect.Struct:
		names := []string{}
		for _, g := range fields(t) {
			names = append(names, g.name)
		}
		return of + "a map with " + strings.Join(names, ", ")
	case t.Kind() == reflect.Map:
		return fmt.Sprintf("a map of up to %d strings%s", f.entries(), f.matching(" with keys that match "))
	case t.Kind() == reflect.Int:
		return of + "a whole number" + f.bounds()
	case t.Kind() == reflect.Float64:
		return of + "a number" + f.bounds()
	case t.Kind() == reflect.Bool:
		return of + "true or false"
	}
	return of + fmt.Sprintf("a string of up to %d characters", f.characters()) + f.matching(" that matches ")
}

func (f *field) matching(how string) string {
	if f.pattern == "" {
		return ""
	}
	return how + "^" + f.pattern + "$"
}

func (f *field) bounds() string {
	switch {
	case f.min != "" && f.max != "":
		return "; from " + f.min + " to " + f.max
	case f.min != "":
		return "; at least " + f.min
	case f.max != "":
		return "; at most " + f.max
	}
	return ""
}

// inBounds reports a value outside the field's bounds.
func (d *decoder) inBounds(n ast.Node, v reflect.Value, f *field, path string) {
	got := number(v)
	for _, b := range [...]struct {
		bound string
		bad   func(limit float64) bool
		word  string
	}{
		{f.min, func(l float64) bool { return got < l }, "less than"},
		{f.max, func(l float64) bool { return got > l }, "more than"},
	} {
		if b.bound == "" {
			continue
		}
		limit := reflect.New(v.Type()).Elem()
		if err := setText(limit, b.bound); err != nil {
			panic(fmt.Sprintf("manifest: bound of %s: %v", f.name, err))
		}
		if b.bad(number(limit)) {
			d.problemToken(n.GetToken(), path, fmt.Sprintf("%s is %s %s", clip(n.GetToken().Value), b.word, b.bound), f.accepted())
			return
		}
	}
}

func number(v reflect.Value) float64 {
	if v.CanFloat() {
		return v.Float()
	}
	return float64(v.Int())
}

func (d *decoder) text(n ast.Node, t text, v reflect.Value, f *field, path string) {
	// A bare number is read too, so that the answer is that its unit is
	// missing.
	var s string
	switch n := n.(type) {
	case *ast.StringNode:
		s = n.Value
	case *ast.IntegerNode, *ast.FloatNode:
		s = n.GetToken().Value
	default:
		d.mismatch(n, path, f.accepted())
		return
	}
	if err := t.set(clip(s)); err != nil {
		d.problemToken(n.GetToken(), path, err.Error(), f.accepted())
		return
	}
	d.inBounds(n, v, f, path)
}

var (
	intRE   = regexp.MustCompile(`^-?(0|[1-9][0-9]{0,15})$`)
	floatRE = regexp.MustCompile(`^-?(0|[1-9][0-9]{0,15})(\.[0-9]{1,15})?$`)
)

func (d *decoder) number(n ast.Node, v reflect.Value, f *field, path string) {
	switch n.(type) {
	case *ast.IntegerNode, *ast.FloatNode:
	default:
		d.mismatch(n, path, f.accepted())
		return
	}
	// YAML knows 0x10, 1_000 and 1e3 too; JSON Schema and readers do not.
	s, re := n.GetToken().Value, floatRE
	if v.Kind() == reflect.Int {
		re = intRE
	}
	x, err := strconv.ParseFloat(s, 64)
	if !re.MatchString(s) || err != nil || v.Kind() == reflect.Int && math.Abs(x) > math.MaxInt32 {
		d.problemToken(n.GetToken(), path, fmt.Sprintf("%q is no number of this kind", clip(s)), f.accepted())
		return
	}
	if v.Kind() == reflect.Int {
		v.SetInt(int64(x))
	} else {
		v.SetFloat(x)
	}
	d.inBounds(n, v, f, path)
}

func (d *decoder) str(n ast.Node, v reflect.Value, f *field, path string) {
	var s string
	switch n := n.(type) {
	case *ast.StringNode:
		s = n.Value
	case *ast.LiteralNode:
		s = n.Value.Value
	case *ast.BoolNode, *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		d.problemToken(n.GetToken(), path, fmt.Sprintf("%s is %s, not a string", clip(n.GetToken().Value), kindOf(n)), fmt.Sprintf("quote it: %q", clip(n.GetToken().Value)))
		return
	default:
		d.mismatch(n, path, f.accepted())
		return
	}
	switch {
	case utf8.RuneCountInString(s) > f.characters():
		d.problemToken(n.GetToken(), path, fmt.Sprintf("has %d characters", utf8.RuneCountInString(s)), fmt.Sprintf("at most %d", f.characters()))
	case strings.IndexFunc(s, func(r rune) bool { return r == 0 || r == utf8.RuneError }) >= 0:
		d.problemToken(n.GetToken(), path, "has a character that is no text", "")
	case len(f.enum) > 0 && !slices.Contains(f.enum, s):
		reason := fmt.Sprintf("%q is not known", clip(s))
		if near := nearest(s, f.enum); near != "" {
			reason += "; did you mean " + near + "?"
		}
		d.problemToken(n.GetToken(), path, reason, strings.Join(f.enum, ", "))
	case f.re != nil && f.typ.Kind() != reflect.Map && !f.re.MatchString(s):
		d.problemToken(n.GetToken(), path, fmt.Sprintf("%q does not match", clip(s)), f.matching("text that matches "))
	default:
		v.SetString(s)
	}
}

func (d *decoder) list(n ast.Node, v reflect.Value, f *field, path string) {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		d.mismatch(n, path, f.accepted())
		return
	}
	if len(seq.Values) == 0 || len(seq.Values) > f.entries() {
		d.problemToken(n.GetToken(), path, fmt.Sprintf("has %d entries", len(seq.Values)), fmt.Sprintf("1 to %d entries; or leave the key out", f.entries()))
		return
	}
	out := reflect.MakeSlice(v.Type(), len(seq.Values), len(seq.Values))
	for i, e := range seq.Values {
		d.value(e, out.Index(i), f, fmt.Sprintf("%s[%d]", path, i))
	}
	v.Set(out)
}

func (d *decoder) table(n ast.Node, v reflect.Value, f *field, path string) {
	es, ok := d.entries(n, path)
	if !ok {
		d.mismatch(n, path, f.accepted())
		return
	}
	if len(es) == 0 || len(es) > f.entries() {
		d.problemToken(n.GetToken(), path, fmt.Sprintf("has %d entries", len(es)), fmt.Sprintf("1 to %d entries; or leave the key out", f.entries()))
		return
	}
	out := reflect.MakeMapWithSize(v.Type(), len(es))
	for _, e := range es {
		if !f.re.MatchString(e.key) {
			d.problemToken(e.token, path, fmt.Sprintf("key %q does not match", clip(e.key)), f.matching("keys that match "))
			continue
		}
		val := reflect.New(v.Type().Elem()).Elem()
		d.value(e.value, val, f, join(path, e.key))
		out.SetMapIndex(reflect.ValueOf(e.key), val)
	}
	v.Set(out)
}
