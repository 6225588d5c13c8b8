package manifest

import (
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// New returns an app with the name and the module's hash, all else at its
// default.
func New(name, hash string) *App {
	a := defaults() // all by value: setText knows of nothing else
	a.Name, a.Module.Hash = name, hash
	return &a
}

// defaults is read from the tags once: a worker that arrives, and stands still,
// waits for its own, and reading takes 0.2 ms.
var defaults = sync.OnceValue(func() App {
	a := &App{APIVersion: APIVersion, Kind: Kind}
	v := reflectOf(a)
	for _, f := range fields(v.Type()) {
		if !f.required {
			fillDefault(v.FieldByIndex(f.index), &f)
		}
	}
	return *a
})

// Effective returns the manifest as YAML with every default written out.
// Parse reads it back to the same App.
func (a *App) Effective() []byte {
	w := &writer{}
	w.structure(reflectOf(a), 0)
	return []byte(w.b.String())
}

// Validate checks an app that was put together in Go or came from elsewhere
// than a file, by the same rules as Parse. The error is an *[Error] whose
// lines count in the app's effective form.
func (a *App) Validate() error {
	_, err := Parse(a.Name, a.Effective())
	return err
}

// A writer writes the dialect that Parse reads. The YAML library's own encoder
// was tried: strings such as ".inf" or "a\r\nb" did not come back as they
// were, and strings come from outside.
type writer struct{ b strings.Builder }

func (w *writer) indent(n int) { w.b.WriteString(strings.Repeat("  ", n)) }

// structure writes the fields of v, each on lines of its own that are indented
// n steps. Optional fields that are not set are left out.
func (w *writer) structure(v reflect.Value, n int) {
	for _, f := range fields(v.Type()) {
		fv := v.FieldByIndex(f.index)
		if fv.Kind() == reflect.Pointer {
			if fv.IsNil() {
				continue
			}
			fv = fv.Elem()
		}
		if fv.IsZero() && !f.required && f.def == "" || fv.Kind() == reflect.Struct && !w.any(fv) {
			continue
		}
		w.indent(n)
		w.b.WriteString(f.name + ":")
		w.value(fv, n)
	}
}

// any says whether structure would write anything.
func (w *writer) any(v reflect.Value) bool {
	for _, f := range fields(v.Type()) {
		fv := v.FieldByIndex(f.index)
		if !fv.IsZero() || f.required || f.def != "" {
			return true
		}
	}
	return false
}

// value writes what follows a key that is indented n steps.
func (w *writer) value(v reflect.Value, n int) {
	switch {
	case v.Kind() == reflect.Struct:
		w.b.WriteByte('\n')
		w.structure(v, n+1)
	case v.Kind() == reflect.Map:
		w.b.WriteByte('\n')
		keys := v.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
		for _, k := range keys {
			w.indent(n + 1)
			w.b.WriteString(quote(k.String()) + ": " + scalar(v.MapIndex(k)) + "\n")
		}
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Struct:
		w.b.WriteByte('\n')
		for i := range v.Len() {
			// The first field of an entry stands behind its hyphen.
			inner := &writer{}
			inner.structure(v.Index(i), n+2)
			text := strings.TrimLeft(inner.b.String(), " ")
			w.indent(n + 1)
			if text == "" {
				text = "{}\n"
			}
			w.b.WriteString("- " + text)
		}
	case v.Kind() == reflect.Slice:
		items := make([]string, v.Len())
		for i := range items {
			items[i] = scalar(v.Index(i))
		}
		w.b.WriteString(" [" + strings.Join(items, ", ") + "]\n")
	default:
		w.b.WriteString(" " + scalar(v) + "\n")
	}
}

func scalar(v reflect.Value) string {
	if m, ok := v.Interface().(encoding.TextMarshaler); ok {
		b, err := m.MarshalText()
		if err != nil {
			panic(fmt.Sprintf("manifest: write %s: %v", v.Type(), err)) // ours never fail
		}
		return string(b)
	}
	switch v.Kind() {
	case reflect.Int:
		return strconv.FormatInt(v.Int(), 10)
	case reflect.Float64:
		return strconv.FormatFloat(v.Float(), 'f', -1, 64)
	case reflect.Bool:
		return strconv.FormatBool(v.Bool())
	}
	return quote(v.String())
}

// plainRE matches strings that no reader of YAML takes for something else,
// apart from the words below.
var plainRE = regexp.MustCompile(`^[A-Za-z_/][A-Za-z0-9_./-]*$`)

var notStrings = []string{"null", "true", "false", "yes", "no", "on", "off", "y", "n", "inf", "nan"}

func quote(s string) string {
	if plainRE.MatchString(s) && !slices.Contains(notStrings, strings.ToLower(s)) {
		return s
	}
	// JSON's strings are YAML's double-quoted strings.
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		panic(fmt.Sprintf("manifest: quote: %v", err)) // a string always encodes
	}
	return strings.TrimSuffix(b.String(), "\n")
}
