package manifest

import (
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

// A text is a scalar with a notation of its own. It is implemented by
// pointers to the types of the fields.
type text interface {
	set(s string) error
	form() form
}

// A form describes a notation: pattern, without anchors, in the part of
// regular expression syntax that Go and ECMA-262 share, and in words.
type form struct{ pattern, accepted string }

var textType = reflect.TypeFor[text]()

func bareNumber(s string) bool {
	_, err := strconv.ParseFloat(s, 64)
	return err == nil
}

// A field is what the tags of one struct field say.
type field struct {
	name     string
	index    []int
	typ      reflect.Type
	doc      string
	required bool
	def      string // "" when there is none
	enum     []string
	min, max string
	len      int            // 0 means maxLen
	pattern  string         // without anchors, names expanded
	re       *regexp.Regexp // of pattern, anchored
}

// Where a field's tag gives no len.
const (
	maxCharacters = 1024
	maxEntries    = 64
)

var fieldCache sync.Map // reflect.Type to []field

// fields returns the fields of struct type t, those of embedded structs among
// them. It panics on a tag that makes no sense, which is a bug of ours that
// any test finds.
func fields(t reflect.Type) []field {
	if f, ok := fieldCache.Load(t); ok {
		return f.([]field)
	}
	var out []field
	for i := range t.NumField() {
		sf := t.Field(i)
		if sf.Anonymous {
			for _, f := range fields(sf.Type) {
				f.index = append([]int{i}, f.index...)
				out = append(out, f)
			}
			continue
		}
		name, _, _ := strings.Cut(sf.Tag.Get("json"), ",")
		f := field{name: name, index: []int{i}, typ: sf.Type, doc: sf.Tag.Get("doc")}
		if name == "" || f.doc == "" {
			panic(fmt.Sprintf("manifest: field %s.%s has no name or no doc", t, sf.Name))
		}
		if tag := sf.Tag.Get("schema"); tag != "" {
			for _, opt := range strings.Split(tag, ";") {
				f.option(t, opt)
			}
		}
		out = append(out, f)
	}
	fieldCache.Store(t, out)
	return out
}

func (f *field) option(t reflect.Type, opt string) {
	key, val, _ := strings.Cut(opt, "=")
	switch key {
	case "required":
		f.required = true
	case "default":
		f.def = val
	case "enum":
		f.enum = strings.Split(val, "|")
	case "min":
		f.min = val
	case "max":
		f.max = val
	case "len":
		n, err := strconv.Atoi(val)
		if err != nil {
			panic(fmt.Sprintf("manifest: field %s.%s: len %q", t, f.name, val))
		}
		f.len = n
	case "pattern":
		f.pattern = "(" + strings.NewReplacer("NAME", namePattern, "LABEL", labelPattern).Replace(val) + ")"
		f.re = regexp.MustCompile(`^` + f.pattern + `$`)
	default:
		panic(fmt.Sprintf("manifest: field %s.%s: tag option %q", t, f.name, opt))
	}
}

// isList says whether the field is a list or a map, so that len counts
// entries and enum and pattern are about each of them.
func (f *field) isList() bool {
	return f.typ.Kind() == reflect.Slice || f.typ.Kind() == reflect.Map
}

// entries and characters are the bounds in force.
func (f *field) entries() int {
	if f.len > 0 {
		return f.len
	}
	return maxEntries
}

func (f *field) characters() int {
	if f.len > 0 && !f.isList() {
		return f.len
	}
	return maxCharacters
}
