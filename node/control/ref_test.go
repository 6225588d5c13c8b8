package control

import (
	"errors"
	"reflect"
	"testing"
)

func TestMatch(t *testing.T) {
	nodes := []Named{{"aaaa1111", "device"}, {"aaaa2222", "edge-a"}, {"bbbb3333", "edge-b"}, {"cccc4444", "twin"}, {"dddd5555", "twin"}}
	for ref, want := range map[string]int{
		"device": 0, "edge-b": 2, "aaaa2222": 1, "bbbb": 2, "cccc4": 3,
	} {
		if got, err := Match("node", ref, nodes); err != nil || got != want {
			t.Errorf("Match(%q) = %d, %v, want %d", ref, got, err, want)
		}
	}
	for ref, want := range map[string]*Error{
		"edge-c": {Code: CodeNotFound, Message: `no node "edge-c" in the mesh`, Hint: "did you mean edge-a or edge-b?"},
		"deivce": {Code: CodeNotFound, Message: `no node "deivce" in the mesh`, Hint: "did you mean device?"},
		"qqq":    {Code: CodeNotFound, Message: `no node "qqq" in the mesh`, Hint: "`meshnode node ls` lists them"},
		"bbb":    {Code: CodeNotFound, Message: `no node "bbb" in the mesh`, Hint: "`meshnode node ls` lists them"},
		"aaaa":   {Code: CodeInvalid, Message: `"aaaa" means 2 nodes: aaaa1111, aaaa2222`, Hint: "name the node by its id"},
		"twin":   {Code: CodeInvalid, Message: `"twin" means 2 nodes: cccc4444, dddd5555`, Hint: "name the node by its id"},
	} {
		_, err := Match("node", ref, nodes)
		var got *Error
		if !errors.As(err, &got) || !reflect.DeepEqual(got, want) {
			t.Errorf("Match(%q): got %+v, want %+v", ref, err, want)
		}
	}
	_, err := Match("worker", "counter", nil)
	if e := AsError(err); e.Hint != "there are no workers yet" {
		t.Errorf("no candidates: %+v", e)
	}
}

func TestNear(t *testing.T) {
	names := []string{"counter", "physics", "kvstore", "counter-2"}
	for ref, want := range map[string][]string{
		"conter":  {"counter"},
		"phisics": {"physics"},
		"count":   {"counter", "counter-2"},
		"zzzz":    {},
		"":        {},
	} {
		if got := Near(ref, names); !reflect.DeepEqual(got, want) {
			t.Errorf("Near(%q) = %q, want %q", ref, got, want)
		}
	}
}

func TestCheckWorkerName(t *testing.T) {
	long := "a"
	for len(long) < 63 {
		long += "b"
	}
	for _, ok := range []string{"a", "0", "counter", "counter-2", "a-", long} {
		if err := CheckWorkerName(ok); err != nil {
			t.Errorf("%q: %v", ok, err)
		}
	}
	for _, bad := range []string{"", "-a", "A", "a_b", "a b", "a/b", "ü", long + "c"} {
		if err := CheckWorkerName(bad); ExitCode(err) != ExitUsage {
			t.Errorf("%q: got %v, want a usage error", bad, err)
		}
	}
}
