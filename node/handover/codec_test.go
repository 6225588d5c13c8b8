package handover

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
)

var update = flag.Bool("update", false, "rewrite testdata")

func hash(b byte) (h Hash) {
	for i := range h {
		h[i] = b + byte(i)
	}
	return h
}

const (
	testWorker = "abcdefghijklmnopqrstuvwx27"
	testPeer   = "bbcdefghijklmnopqrstuvwx27"
)

func testMove(b byte) (m MoveID) {
	for i := range m {
		m[i] = b + byte(i)
	}
	return m
}

// samples has every message that can be sent.
func samples() []Message {
	var out []Message
	for _, b := range []Body{
		Offer{Worker: testWorker, Name: "counter", Module: hash(1), ModuleSize: 2_600_000, MemoryBytes: 64 << 20,
			MemoryLimit: 256 << 20, Epoch: 7, Strategy: PostCopy, Config: []byte{0xa0}},
		Accept{Paging: true},
		Refuse{Code: CodeMemory, Reason: "needs 256 MiB, 100 MiB are free", Hint: "stop a worker"},
		FrozenBody{Table: []byte{1, 2, 3}},
		Filled{},
		Commit{Epoch: 8, Head: []byte{4, 5, 6}},
		Running{Durable: false},
		Taken{},
		Drained{},
		Done{},
		Rejected{Code: CodeRunner, Reason: "it could not resume: trap"},
		Abort{Reason: "cancelled"},
		Query{Epoch: 8},
		Status{State: TookButLost, Epoch: 8, Reason: "the node restarted"},
		Status{State: Took, Epoch: 8, Drained: true},
	} {
		m := Message{Move: testMove(3), Worker: testWorker, Incarnation: 0x1122334455667788, Ticket: 0x99, Body: b}
		if b.Type() == TypeOffer {
			m.Ticket = 0
		}
		out = append(out, m)
	}
	return out
}

// golden compares lines with a file of bytes that were once sent or written and
// have to be read for ever.
func golden(t *testing.T, name string, lines []string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Split(strings.TrimSpace(strings.ReplaceAll(string(b), "\r", "")), "\n")
	if !reflect.DeepEqual(lines, want) {
		t.Errorf("%s: got\n%s\nwant\n%s", path, strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
}

func TestMessages(t *testing.T) {
	var lines []string
	for _, m := range samples() {
		b, err := Limits{}.Encode(m)
		if err != nil {
			t.Fatalf("%s: %v", m.Body.Type(), err)
		}
		lines = append(lines, fmt.Sprintf("%s %s", m.Body.Type(), hex.EncodeToString(b)))
		got, err := Limits{}.Decode(b)
		if err != nil {
			t.Fatalf("%s: %v", m.Body.Type(), err)
		}
		if !reflect.DeepEqual(got, m) {
			t.Errorf("got %+v, want %+v", got, m)
		}
	}
	golden(t, "messages.v1", lines)
}

func TestDecodeRefuses(t *testing.T) {
	good := samples()[5] // COMMIT
	wire := func(change func(*envelope)) []byte {
		body, err := encMode.Marshal(good.Body)
		if err != nil {
			t.Fatal(err)
		}
		e := envelope{Move: good.Move, Type: TypeCommit, Incarnation: 1, Ticket: 2, Worker: testWorker, Body: body}
		change(&e)
		b, err := encMode.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	body := func(v any) cbor.RawMessage {
		b, err := encMode.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, c := range []struct {
		name   string
		limits Limits
		b      []byte
		want   error // nil: accepted
	}{
		{"as it is", Limits{}, wire(func(*envelope) {}), nil},
		{"empty", Limits{}, nil, ErrMessage},
		{"null", Limits{}, []byte{0xf6}, ErrMessage},
		{"trailing byte", Limits{}, append(wire(func(*envelope) {}), 0), ErrMessage},
		{"unknown type", Limits{}, wire(func(e *envelope) { e.Type = 99 }), ErrUnknownType},
		{"reserved type", Limits{}, wire(func(e *envelope) { e.Type = TypeWarm }), ErrUnknownType},
		{"no move", Limits{}, wire(func(e *envelope) { e.Move = MoveID{} }), ErrMessage},
		{"no incarnation", Limits{}, wire(func(e *envelope) { e.Incarnation = 0 }), ErrMessage},
		{"no worker", Limits{}, wire(func(e *envelope) { e.Worker = "" }), ErrMessage},
		{"worker with a newline", Limits{}, wire(func(e *envelope) { e.Worker = "a\nb" }), ErrMessage},
		{"body null", Limits{}, wire(func(e *envelope) { e.Body = []byte{0xf6} }), ErrMessage},
		{"body a list", Limits{}, wire(func(e *envelope) { e.Body = []byte{0x80} }), ErrMessage},
		{"epoch 1 cannot be given", Limits{}, wire(func(e *envelope) { e.Body = body(Commit{Epoch: 1}) }), ErrMessage},
		{"epoch that overflows", Limits{}, wire(func(e *envelope) { e.Body = body(Commit{Epoch: 1<<64 - 1}) }), ErrMessage},
		{"head at the limit", Limits{MaxHead: 1000}, wire(func(e *envelope) { e.Body = body(Commit{Epoch: 2, Head: make([]byte, 990)}) }), nil},
		{"head above it", Limits{MaxHead: 1000}, wire(func(e *envelope) { e.Body = body(Commit{Epoch: 2, Head: make([]byte, 1000)}) }), ErrMessage},
		{"other bodies stay small", Limits{}, wire(func(e *envelope) { e.Type, e.Body = TypeAbort, body(map[int][]byte{7: make([]byte, 70_000)}) }), ErrMessage},
		{"unknown key is skipped", Limits{}, wire(func(e *envelope) { e.Body = body(map[int]any{1: 8, 2: []byte{1}, 77: "later"}) }), nil},
		{"key twice", Limits{}, wire(func(e *envelope) { e.Body = []byte{0xa2, 1, 8, 1, 9} }), ErrMessage},
		{"state 9", Limits{}, wire(func(e *envelope) { e.Type, e.Body = TypeStatus, body(Status{State: 9}) }), ErrMessage},
		{"long reason", Limits{}, wire(func(e *envelope) { e.Type, e.Body = TypeAbort, body(Abort{strings.Repeat("x", 2000)}) }), ErrMessage},
		{"offer of another worker", Limits{}, wire(func(e *envelope) {
			e.Type, e.Body = TypeOffer, body(Offer{Worker: "other", Name: "n", ModuleSize: 1, Epoch: 1, Strategy: 1})
		}), ErrMessage},
		{"offer with a short hash", Limits{}, wire(func(e *envelope) {
			e.Type, e.Body = TypeOffer, body(map[int]any{1: testWorker, 2: "n", 3: []byte{1}, 4: 1, 7: 1, 8: 1})
		}), ErrMessage},
		{"offer of more memory than there can be", Limits{}, wire(func(e *envelope) {
			e.Type, e.Body = TypeOffer, body(Offer{Worker: testWorker, Name: "n", ModuleSize: 1, Epoch: 1, Strategy: 1, MemoryBytes: 1, MemoryLimit: 5 << 30})
		}), ErrMessage},
	} {
		_, err := c.limits.Decode(c.b)
		if c.want == nil && err != nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
	if _, err := (Limits{MaxHead: 10}).Encode(Message{Move: testMove(1), Worker: "w", Incarnation: 1, Body: Commit{Epoch: 2, Head: make([]byte, 10)}}); err == nil {
		t.Error("encoded a head that no peer takes")
	}
	if b := make([]byte, (Limits{}).MaxMessage()+1); true {
		if _, err := (Limits{}).Decode(b); !errors.Is(err, ErrMessage) {
			t.Errorf("long frame: %v", err)
		}
	}
}

// A message as large as the limits allow passes.
func TestLargestMessages(t *testing.T) {
	l := Limits{MaxHead: 1 << 20}
	m := Message{Move: testMove(1), Worker: strings.Repeat("w", 64), Incarnation: 1<<64 - 1, Ticket: 1<<64 - 1,
		Body: Commit{Epoch: maxEpoch, Head: make([]byte, l.MaxHead-17)}}
	b, err := l.Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > l.MaxMessage() {
		t.Errorf("%d bytes, MaxMessage says %d", len(b), l.MaxMessage())
	}
	if _, err := l.Decode(b); err != nil {
		t.Error(err)
	}
	m.Body = Offer{Worker: m.Worker, Name: "n", ModuleSize: 1, Epoch: 1, Strategy: 1, Config: make([]byte, MaxConfigBytes)}
	if _, err := l.Encode(m); err != nil {
		t.Error(err)
	}
}

func TestCut(t *testing.T) {
	for _, s := range []string{"", "short", strings.Repeat("é", 600), strings.Repeat("x", 5000), "a\xffb", strings.Repeat("\xff", 3000)} {
		got := cut(s)
		if len(got) > MaxReasonBytes || got != strings.ToValidUTF8(got, "") {
			t.Errorf("cut to %d bytes, valid %t", len(got), got == strings.ToValidUTF8(got, ""))
		}
		if s == "short" && got != s {
			t.Errorf("got %q", got)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, m := range samples() {
		b, err := Limits{}.Encode(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	l := Limits{MaxHead: 1 << 12}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := l.Decode(b)
		if err != nil {
			if !errors.Is(err, ErrMessage) && !errors.Is(err, ErrUnknownType) {
				t.Fatalf("unnamed error %v", err)
			}
			return
		}
		one, err := l.Encode(m)
		if err != nil {
			t.Fatalf("accepted %+v, and cannot encode it: %v", m, err)
		}
		again, err := l.Decode(one)
		if err != nil {
			t.Fatalf("cannot decode what was encoded: %v", err)
		}
		two, err := l.Encode(again)
		if err != nil || !bytes.Equal(one, two) {
			t.Fatalf("encoded as %x, then as %x (%v)", one, two, err)
		}
	})
}

func testRecord() Record {
	return Record{Worker: testWorker, Epoch: 8, Own: OwnTaken, Move: testMove(3), Peer: testPeer, Ticket: 5,
		Updated: 1_700_000_000, Unsettled: []MoveID{testMove(3), testMove(9)}, Meta: []byte("meta")}
}

func TestRecords(t *testing.T) {
	var lines []string
	for _, r := range []Record{
		{Worker: testWorker, Epoch: 1, Own: OwnRunning},
		testRecord(),
		{Worker: testWorker, Epoch: 9, Own: OwnLost, Reason: "the node restarted"},
	} {
		b, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, fmt.Sprintf("%s %s", r.Own, hex.EncodeToString(b)))
		got, err := DecodeRecord(b)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, r) {
			t.Errorf("got %+v, want %+v", got, r)
		}
	}
	golden(t, "records.v1", lines)

	for name, change := range map[string]func(*Record){
		"worker":    func(r *Record) { r.Worker = "" },
		"epoch":     func(r *Record) { r.Epoch = 0 },
		"ownership": func(r *Record) { r.Own = 77 },
		"no move":   func(r *Record) { r.Move = MoveID{} },
		"no peer":   func(r *Record) { r.Peer = "" },
		"reason":    func(r *Record) { r.Reason = strings.Repeat("x", MaxReasonBytes+1) },
		"meta":      func(r *Record) { r.Meta = make([]byte, MaxMetaBytes+1) },
		"unsettled": func(r *Record) { r.Unsettled = make([]MoveID, maxUnsettled+1) },
	} {
		r := testRecord()
		change(&r)
		if _, err := r.Encode(); err == nil {
			t.Errorf("%s: encoded", name)
		}
	}
	largest := testRecord()
	largest.Meta = make([]byte, MaxMetaBytes)
	largest.Reason = strings.Repeat("x", MaxReasonBytes)
	largest.Unsettled = make([]MoveID, maxUnsettled)
	b, err := largest.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := DecodeRecord(b); err != nil {
		t.Errorf("largest record: %v", err)
	}
	b[0] = 2
	if _, err := DecodeRecord(b); !errors.Is(err, ErrRecord) || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("later version: %v", err)
	}
}

func FuzzDecodeRecord(f *testing.F) {
	b, err := testRecord().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[recordHead:])
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := DecodeRecord(b); err == nil {
			t.Log("a right checksum by chance")
		}
		r, err := DecodeRecord(sealRecord(b))
		if err != nil {
			if !errors.Is(err, ErrRecord) {
				t.Fatalf("unnamed error %v", err)
			}
			return
		}
		one, err := r.Encode()
		if err != nil {
			t.Fatalf("accepted %+v, and cannot encode it: %v", r, err)
		}
		again, err := DecodeRecord(one)
		if err != nil {
			t.Fatal(err)
		}
		if two, err := again.Encode(); err != nil || !bytes.Equal(one, two) {
			t.Fatalf("encoded as %x, then as %x (%v)", one, two, err)
		}
	})
}
