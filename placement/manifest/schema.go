package manifest

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
)

// SchemaID names the schema of this version.
const SchemaID = "urn:meshnode:v1alpha1:App"

// An object keeps its keys in the order in which it was written, so that the
// schema reads like the types.
type object []member

type member struct {
	key   string
	value any
}

// MarshalJSON implements json.Marshaler.
func (o object) MarshalJSON() ([]byte, error) {
	out := []byte{'{'}
	for i, m := range o {
		if i > 0 {
			out = append(out, ',')
		}
		k, err := json.Marshal(m.key)
		if err != nil {
			return nil, err
		}
		v, err := json.Marshal(m.value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.key, err)
		}
		out = append(append(append(out, k...), ':'), v...)
	}
	return append(out, '}'), nil
}

// Schema returns the JSON Schema (2020-12) of a manifest, indented. It refuses
// nothing that Parse takes, and most of what Parse refuses: bounds of
// quantities with units, and rules that compare entries, are Parse's alone.
func Schema() []byte {
	g := &generator{defs: map[reflect.Type]bool{}}
	root := g.structure(reflect.TypeFor[App]())
	doc := object{
		{"$schema", "https://json-schema.org/draft/2020-12/schema"},
		{"$id", SchemaID},
		{"title", "meshnode app"},
		{"description", "What an app runs, the latency its users can bear, where it may be placed and when it moves."},
	}
	doc = append(doc, root...)
	doc = append(doc, member{"$defs", g.out})
	b, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		panic(fmt.Sprintf("manifest: schema: %v", err)) // only strings, numbers and maps in it
	}
	return append(b, '\n')
}

type generator struct {
	defs map[reflect.Type]bool
	out  object
}

// rules are those of check.go that hold within one object.
var rules = map[reflect.Type]object{
	reflect.TypeFor[Module]():   {{"oneOf", oneOf("path", "hash")}},
	reflect.TypeFor[Fallback](): {{"oneOf", oneOf("node", "tier")}},
	reflect.TypeFor[Label](): {
		{"oneOf", []object{
			{{"required", []string{"in"}}}, {{"required", []string{"notIn"}}},
			{{"required", []string{"exists"}}, {"properties", object{{"exists", object{{"const", true}}}}}},
		}},
	},
	reflect.TypeFor[Objective]():    {{"not", hardWeight}},
	reflect.TypeFor[RTTObjective](): {{"not", hardWeight}},
	reflect.TypeFor[Preference]():   {{"anyOf", oneOf("tier", "arch", "nodes", "cores", "memory", "accelerators", "labels")}},
	reflect.TypeFor[OnDisconnect](): {
		{"if", object{{"required", []string{"checkpoint"}}}},
		{"then", object{
			{"required", []string{"action"}}, {"properties", object{{"action", object{{"const", DisconnectFallback}}}}},
		}},
	},
	reflect.TypeFor[App](): {
		{"if", object{
			{"required", []string{"onDisconnect"}},
			{"properties", object{{"onDisconnect", object{
				{"required", []string{"action"}}, {"properties", object{{"action", object{{"const", DisconnectFallback}}}}},
			}}}},
		}},
		{"then", object{{"required", []string{"fallback"}}}},
	},
}

var hardWeight = object{
	{"required", []string{"mode", "weight"}},
	{"properties", object{{"mode", object{{"const", Hard}}}}},
}

func oneOf(names ...string) []object {
	var out []object
	for _, n := range names {
		out = append(out, object{{"required", []string{n}}})
	}
	return out
}

func (g *generator) structure(t reflect.Type) object {
	var props object
	var required []string
	for _, f := range fields(t) {
		props = append(props, member{f.name, g.field(&f)})
		if f.required {
			required = append(required, f.name)
		}
	}
	o := object{{"type", "object"}, {"properties", props}, {"additionalProperties", false}}
	if len(required) > 0 {
		o = append(o, member{"required", required})
	}
	return append(o, rules[t]...)
}

func (g *generator) ref(t reflect.Type) string {
	if !g.defs[t] {
		g.defs[t] = true
		def := g.structure(t)
		g.out = append(g.out, member{t.Name(), def})
	}
	return "#/$defs/" + t.Name()
}

func (g *generator) field(f *field) object {
	o := object{{"description", f.doc}}
	t := f.typ
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.Slice:
		o = append(o, member{"type", "array"}, member{"minItems", 1}, member{"maxItems", f.entries()},
			member{"items", append(object{}, g.one(t.Elem(), f)...)})
	case reflect.Map:
		o = append(o, member{"type", "object"}, member{"minProperties", 1}, member{"maxProperties", f.entries()},
			member{"propertyNames", object{{"pattern", "^" + f.pattern + "$"}}},
			member{"additionalProperties", object{{"type", "string"}, {"maxLength", f.characters()}}})
	default:
		o = append(o, g.one(t, f)...)
	}
	if f.def != "" {
		o = append(o, member{"default", literal(t, f.def)})
	}
	return o
}

// one describes a value of type t by the options of its field.
func (g *generator) one(t reflect.Type, f *field) object {
	if reflect.PointerTo(t).Implements(textType) {
		return object{{"type", "string"}, {"pattern", "^" + reflect.New(t).Interface().(text).form().pattern + "$"}}
	}
	var o object
	switch t.Kind() {
	case reflect.Struct:
		return object{{"$ref", g.ref(t)}}
	case reflect.Bool:
		return object{{"type", "boolean"}}
	case reflect.Int, reflect.Float64:
		o = object{{"type", map[reflect.Kind]string{reflect.Int: "integer", reflect.Float64: "number"}[t.Kind()]}}
		if f.min != "" {
			o = append(o, member{"minimum", literal(t, f.min)})
		}
		if f.max != "" {
			o = append(o, member{"maximum", literal(t, f.max)})
		}
	case reflect.String:
		o = object{{"type", "string"}}
		switch {
		case len(f.enum) > 0:
			o = append(o, member{"enum", f.enum})
		case f.pattern != "":
			o = append(o, member{"pattern", "^" + f.pattern + "$"}, member{"maxLength", f.characters()})
		default:
			o = append(o, member{"maxLength", f.characters()})
		}
	default:
		panic(fmt.Sprintf("manifest: no schema for %s", t))
	}
	return o
}

// literal turns a tag's notation into a JSON value.
func literal(t reflect.Type, s string) any {
	switch {
	case reflect.PointerTo(t).Implements(textType):
		return s
	case t.Kind() == reflect.Int || t.Kind() == reflect.Float64:
		return json.Number(s)
	case t.Kind() == reflect.Bool:
		b, _ := strconv.ParseBool(s)
		return b
	}
	return s
}
