package manifest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/jsonschema-go/jsonschema"
)

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestFull(t *testing.T) {
	a, err := Parse("full.yaml", read(t, "full.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what      string
		got, want any
	}{
		{"name", a.Name, "physics"},
		{"arg", a.Args[1], "512"},
		{"env", a.Env["MOTTO"], "two\nlines\n"},
		{"memory", a.Limits.Memory, Size(128 << 20)},
		{"queue", a.Limits.Queue.Bytes, Size(3 << 19)},
		{"blackout", *a.Objectives.Blackout, Objective{Max: Duration(50 * time.Millisecond), Quantile: 0.99, Window: Duration(time.Hour), Mode: Hard}},
		{"event weight", a.Objectives.Event.Weight, 3.0},
		{"weight by default", a.Objectives.Converge.Weight, 1.0},
		{"rtt", a.Objectives.RTT[1].To, "app/scores"},
		{"rtt window", a.Objectives.RTT[1].Window.D(), 90 * time.Second},
		{"preference", a.Placement.Prefer[0].Tier[0], Edge},
		{"preference by default", a.Placement.Prefer[1].Weight, 1.0},
		{"access by default", a.Placement.Interfaces[0].Access, Pin},
		{"spread by default", a.Placement.Spread[0].AtMost, 1},
		{"improve", a.Migration.ImproveBy, Percent(0.125)},
		{"fallback", a.Fallback[1].Tier, Cloud},
	} {
		if !reflect.DeepEqual(c.got, c.want) {
			t.Errorf("%s: got %v, want %v", c.what, c.got, c.want)
		}
	}
}

func TestDefaults(t *testing.T) {
	got, err := Parse("small.yaml", read(t, "small.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	want := New("counter", "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff")
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	if got.Migration.MinDwell.D() != 30*time.Second || got.Limits.Memory != 256<<20 || got.Replicas != 1 {
		t.Errorf("defaults not filled in: %+v", got)
	}
}

func TestEffective(t *testing.T) {
	for _, name := range []string{"full.yaml", "small.yaml"} {
		a, err := Parse(name, read(t, name))
		if err != nil {
			t.Fatal(err)
		}
		b := a.Effective()
		again, err := Parse("effective "+name, b)
		if err != nil {
			t.Fatalf("%v\n%s", err, b)
		}
		if !reflect.DeepEqual(a, again) {
			t.Errorf("%s: got %+v\nwant %+v\nby way of\n%s", name, again, a, b)
		}
		if err := a.Validate(); err != nil {
			t.Error(err)
		}
	}
}

// broken holds manifests that must be refused: what is put in place of or
// behind which text of full.yaml, the place and words of the first problem.
var broken = []struct {
	name      string
	old, new  string
	line      int
	path      string
	says      string
	accepted  string
	schemaToo bool // the schema can see it as well
}{
	{"unknown key", "replicas: 2", "replica: 2", 14, "replica", "did you mean replicas?", "apiVersion, kind", true},
	{"unknown inner key", "cpu: 0.5", "cpus: 0.5", 17, "limits.cpus", "did you mean cpu?", "memory, cpu, queue", true},
	{"duration without unit", "max: 50ms", "max: 50", 20, "objectives.blackout.max", "say 50ms or 50s", "from 100us to 24h", true},
	{"size without unit", "memory: 128MiB", "memory: 128", 16, "limits.memory", "say 128MiB or 128B", "from 64KiB to 4GiB", true},
	{"percent without unit", "improveBy: 12.5%", "improveBy: 12.5", 50, "migration.improveBy", "say 12.5%", "at most 95%", true},
	{"no maximum", "{max: 50ms, quantile: p99,", "{quantile: p99,", 20, "objectives.blackout", "needs max", "ms", true},
	{"no quantile", "quantile: p99, window: 1h", "window: 1h", 20, "objectives.blackout", "needs quantile", "p50", true},
	{"no window", "quantile: p99, window: 1h", "quantile: p99", 20, "objectives.blackout", "needs window", "10s", true},
	{"quantile as share", "quantile: p99, window: 1h", "quantile: 0.99, window: 1h", 20, "objectives.blackout.quantile", "say p99", "", true},
	{"duration out of range", "window: 1h,", "window: 1ms,", 20, "objectives.blackout.window", "less than 1s", "from 1s", false},
	{"hard with weight", "mode: hard}\n  event", "mode: hard, weight: 2}\n  event", 20, "objectives.blackout.weight", "hard objective has no weight", "", true},
	{"mode misspelt", "mode: hard}\n  event", "mode: herd}\n  event", 20, "objectives.blackout.mode", "did you mean hard?", "hard, soft", true},
	{"module twice", "path: ../bin/apps/physics.wasm", "path: a\n  hash: 00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff", 6, "module", "twice", "exactly one", true},
	{"module not at all", "module:\n  path: ../bin/apps/physics.wasm", "module: {}", 5, "module", "not at all", "exactly one", true},
	{"number as string", `LEVEL: "3"`, "LEVEL: 3", 9, "env.LEVEL", "not a string", `quote it: "3"`, true},
	{"other version", "meshnode/v1alpha1", "meshnode/v2", 2, "apiVersion", "not known", "meshnode/v1alpha1", true},
	{"name", "name: physics", "name: Physics!", 4, "name", "does not match", "", true},
	{"no name", "name: physics", "", 2, "", "needs name", "name", true},
	{"repeated key", "replicas: 2", "replicas: 2\nreplicas: 3", 15, "replicas", "twice", "", false},
	{"empty value", "  memory: 128MiB", "  memory:", 16, "limits.memory", "no value", "leave the key out", true},
	{"empty list", "args: [--cubes, \"512\"]", "args: []", 7, "args", "0 entries", "leave the key out", true},
	{"list for map", "onDisconnect: {action: fallback, after: 30s, checkpoint: 2s}", "onDisconnect: [run]", 54, "onDisconnect", "is a list", "action, after, checkpoint", true},
	{"tier in a list", "tier: [device, edge]", "tier: [device, egde]", 28, "placement.require.tier[1]", "did you mean edge?", "device, edge, cloud", true},
	{"label asks twice", "{key: rack, exists: true}", "{key: rack, exists: true, in: [a]}", 37, "placement.require.labels[2]", "more than one", "exactly one", true},
	{"preference of nothing", "- labels: [{key: green, exists: true}]", "- weight: 2", 41, "placement.prefer[1]", "nothing in particular", "", true},
	{"checkpoints for nobody", "action: fallback, after: 30s, checkpoint: 2s", "action: pause, after: 30s, checkpoint: 2s", 54, "onDisconnect.checkpoint", "nobody to keep checkpoints", "action: fallback", true},
	{"checkpoints too often", "checkpoint: 2s", "checkpoint: 1ms", 54, "onDisconnect.checkpoint", "less than", "100ms", false},
	{"fallback without list", "fallback:\n  - {node: home}\n  - {tier: cloud}\n", "", 54, "onDisconnect.action", "no fallback list", "run, pause", true},
	{"fallback both", "{node: home}", "{node: home, tier: edge}", 56, "fallback[0]", "both", "exactly one", true},
	{"too many moves", "maxPerHour: 12", "maxPerHour: 1200", 53, "migration.maxPerHour", "more than 120", "from 1 to 120", true},
	{"other notation", "maxPerHour: 12", "maxPerHour: 0x10", 53, "migration.maxPerHour", "no number", "", false},
	{"anchor", "name: physics", "name: &x physics", 4, "", "no anchors", "", false},
	{"merge", "env:", "env:\n  <<: {A: b}", 9, "", "merge keys", "", false},
	{"tag", "name: physics", "name: !!str physics", 4, "", "no tags", "", false},
	{"second document", "# Every key", "---\na: b\n---\n# Every key", 5, "", "second document", "", false},
	{"not YAML", "name: physics", "name: [physics", 5, "", "not YAML", "", false},
	{"rtt to itself", "to: app/scores", "to: app/physics", 25, "objectives.rtt[1].to", "the app itself", "", false},
	{"rtt twice", "to: app/scores", "to: users", 25, "objectives.rtt[1].to", "second objective", "", false},
}

func TestBroken(t *testing.T) {
	full := string(read(t, "full.yaml"))
	schema := compile(t)
	for _, c := range broken {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			if strings.Count(full, c.old) == 0 {
				t.Fatalf("full.yaml has no %q", c.old)
			}
			text := strings.Replace(full, c.old, c.new, 1)
			_, err := Parse("full.yaml", []byte(text))
			var e *Error
			if !errors.As(err, &e) || !errors.Is(err, ErrManifest) {
				t.Fatalf("got %v, want an *Error", err)
			}
			p := e.Problems[0]
			if p.Line != c.line || p.Path != c.path || !strings.Contains(p.Reason, c.says) || !strings.Contains(p.Accepted, c.accepted) {
				t.Errorf("got %+v\nwant line %d, path %q, saying %q, accepting %q", p, c.line, c.path, c.says, c.accepted)
			}
			if !strings.Contains(p.Excerpt, "> ") || !strings.Contains(p.Excerpt, "^") {
				t.Errorf("excerpt without a mark:\n%s", p.Excerpt)
			}
			if c.schemaToo {
				if err := schema.Validate(asJSON(t, []byte(text))); err == nil {
					t.Error("the schema takes it")
				}
			}
		})
	}
}

// asJSON reads YAML as a JSON validator would see it.
func asJSON(t testing.TB, b []byte) any {
	t.Helper()
	j, err := yaml.YAMLToJSON(b)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(j, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func compile(t testing.TB) *jsonschema.Resolved {
	t.Helper()
	var s jsonschema.Schema
	if err := json.Unmarshal(Schema(), &s); err != nil {
		t.Fatal(err)
	}
	r, err := s.Resolve(&jsonschema.ResolveOptions{ValidateDefaults: true})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestSchemaTakesWhatParseTakes(t *testing.T) {
	s := compile(t)
	for _, name := range []string{"full.yaml", "small.yaml"} {
		b := read(t, name)
		if err := s.Validate(asJSON(t, b)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		a, err := Parse(name, b)
		if err != nil {
			t.Fatal(err)
		}
		b = a.Effective()
		if err := s.Validate(asJSON(t, b)); err != nil {
			t.Errorf("%s, effective: %v\n%s", name, err, b)
		}
	}
}

func TestAllProblemsAreListed(t *testing.T) {
	_, err := Parse("x.yaml", []byte("apiVersion: meshnode/v1alpha1\nkind: App\nname: X\nmodule: {path: a}\nlimits: {memory: 5, cpu: much}\nwhat: 1\n"))
	var e *Error
	if !errors.As(err, &e) {
		t.Fatal(err)
	}
	var paths []string
	for _, p := range e.Problems {
		paths = append(paths, p.Path)
	}
	if got, want := strings.Join(paths, " "), "name limits.memory limits.cpu what"; got != want {
		t.Errorf("got %s, want %s\n%v", got, want, err)
	}
}

func TestLimits(t *testing.T) {
	head := "apiVersion: meshnode/v1alpha1\nkind: App\nname: x\nmodule: {path: a}\n"
	for _, c := range []struct{ name, text, says string }{
		{"bytes", head + strings.Repeat("#", MaxBytes), "bytes"},
		{"flow depth", head + "args: " + strings.Repeat("[", 10_000), "nest more than"},
		{"block depth", head + "args:\n" + strings.Repeat("- ", 10_000), "nest more than"},
		{"map depth", head + strings.Repeat("{a: ", 5_000), "nest more than"},
		{"tokens", head + "args: [" + strings.Repeat("a,", 20_000) + "]", "tokens"},
		{"entries", head + "args: [" + strings.Repeat("a, ", 65) + "]", "65 entries"},
		{"string", head + "args: [" + strings.Repeat("a", 1025) + "]", "1025 characters"},
		{"laughs", "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "no anchors"},
		{"empty", "", "empty"},
		{"comment", "# nothing\n", "empty"},
		{"scalar", "hello\n", "is a string"},
		{"no text", head + "args: [\xff]", "UTF-8"},
		{"control", head + "args: [\x01]", "control character"},
	} {
		_, err := Parse("x.yaml", []byte(c.text))
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, want one that says %q", c.name, err, c.says)
		}
		if err != nil && len(err.Error()) > 32<<10 {
			t.Errorf("%s: the error has %d bytes", c.name, len(err.Error()))
		}
	}
}

func TestErrorText(t *testing.T) {
	_, err := Parse("app.yaml", []byte("apiVersion: meshnode/v1alpha1\nkind: App\nname: x\nmodule: {path: a}\nobjectives:\n  event: {max: 30, quantile: p99, window: 10s}\n"))
	want := `app.yaml:6:16: objectives.event.max: "30" has no unit; say 30ms or 30s
  accepted: a number and its unit, as in 250ms, 10s, 1m30s; units are ns, us, ms, s, m, h; from 100us to 24h
       5 | objectives:
  >    6 |   event: {max: 30, quantile: p99, window: 10s}
         |                ^`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

func FuzzParse(f *testing.F) {
	full := read(f, "full.yaml")
	f.Add(full)
	f.Add(read(f, "small.yaml"))
	for _, c := range broken {
		f.Add([]byte(strings.Replace(string(full), c.old, c.new, 1)))
	}
	schema := compile(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := Parse("fuzz", b)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || len(e.Problems) == 0 || len(e.Problems) > maxProblems {
				t.Fatalf("%v", err)
			}
			return
		}
		out := a.Effective()
		again, err := Parse("again", out)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if !reflect.DeepEqual(a, again) {
			t.Fatalf("got %+v\nwant %+v\n%s", again, a, out)
		}
		if err := schema.Validate(asJSON(t, out)); err != nil {
			t.Fatalf("the schema refuses what Parse takes: %v\n%s", err, out)
		}
	})
}

// Strings that YAML could take for something else come back as they were.
func TestOddStrings(t *testing.T) {
	a := New("odd", strings.Repeat("0", 64))
	a.Env = map[string]string{}
	for _, s := range []string{
		"", " ", "a ", " a", "- a", "a: b", "a #b", "#", "&a", "*a", "!a", "%a", "@a", "`a", "|", ">", "?", "{", "[", "]", ",",
		"null", "~", "true", "no", "1", "1e3", "0x1f", ".inf", ".nan", "2026-01-01", "1:30", "<<", "=", "---", "...",
		"'", `"`, `\`, "a\nb", "a\n", "\na", "a\n\n", "a\tb", "\t", "a\rb", "a\r\nb", "ä€😀", "'a", `"a`, "a'b\"c\n", "  a\n b", "a\n  b\n",
	} {
		a.Args = append(a.Args, s)
		a.Env[fmt.Sprintf("E%d", len(a.Args))] = s
	}
	b := a.Effective()
	got, err := Parse("odd", b)
	if err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	for i := range a.Args {
		if got.Args[i] != a.Args[i] {
			t.Errorf("argument %q came back as %q", a.Args[i], got.Args[i])
		}
		if k := fmt.Sprintf("E%d", i+1); got.Env[k] != a.Env[k] {
			t.Errorf("variable %q came back as %q", a.Env[k], got.Env[k])
		}
	}
}
