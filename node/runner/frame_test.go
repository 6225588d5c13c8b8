//go:build unix

package runner

import (
	"bytes"
	"encoding/binary"
	"reflect"
	"testing"

	"meshnode/node/wasi"
)

// frameOf is putFrame into a buffer of its own.
func frameOf(typ byte, body any) ([]byte, error) {
	var b bytes.Buffer
	err := putFrame(&b, typ, body)
	return b.Bytes(), err
}

// FuzzMessages: whatever the other side sends is refused or means the same when
// it is sent on.
func FuzzMessages(f *testing.F) {
	seed := func(typ byte, v any) {
		b, err := frameOf(typ, v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	seed(msgSetup, &setup{ModulePath: "/m", MemoryLimit: 1 << 20, Args: []string{"a"}, Interpreter: true})
	seed(msgRestore, &State{Pages: 3, Globals: []Global{{1, 0x7f, 5}}, WASI: wasi.State{}, Clock: 9, Armed: []ArmedTimer{{1, true}}})
	seed(msgEvent, &Event{Kind: Call, ID: 7, Payload: []byte("hello")})
	seed(msgReady, &ready{Base: 1 << 40, Pages: 2, UFFD: true})
	seed(msgFailed, &failed{Reason: "no", Kind: Crashed})
	seed(msgStopped, &stopped{Kind: Trapped, Reason: "unreachable", Stack: "x"})
	seed(msgEffects, &Effects{Status: -1, Reply: []byte("r"), Replied: true, Sends: []Message{{"a", []byte("b")}}, Timers: []TimerOp{{ID: 1, After: 2}}})
	seed(msgLog, &logLine{Level: 4, Source: "guest", Text: "line"})
	seed(msgRestore, &State{Pages: 3, Program: []byte("frames"), WASI: wasi.State{Streams: &wasi.StreamState{In: [][]byte{{1}}, Pushed: 1}}})
	seed(msgPush, &input{Message: []byte("line\n")})
	seed(msgPushed, &pushed{Full: true})
	seed(msgTake, &ack{Acked: 9})
	seed(msgTaken, &taken{Output: []Output{{Stream: 1, Data: []byte("out")}}, Unread: 2, Pages: 3, Ended: &stopped{Kind: Exited}})
	seed(msgRead, &readAsk{Name: "location"})
	seed(msgReading, &reading{Data: []byte("52.5 13.4")})
	seed(msgReading, &reading{Code: resNoReading})
	seed(msgOK, nil)
	f.Fuzz(func(t *testing.T, b []byte) {
		typ, n, err := frameSize(b, 1<<16)
		if err != nil || n > len(b)-frameHeader {
			return
		}
		body := b[frameHeader : frameHeader+n]
		var v any
		switch typ {
		case msgSetup:
			v = new(setup)
		case msgRestore, msgStateIs:
			v = new(State)
		case msgEvent:
			v = new(Event)
		case msgReady:
			v = new(ready)
		case msgFailed:
			v = new(failed)
		case msgStopped:
			v = new(stopped)
		case msgEffects:
			v = new(Effects)
		case msgLog:
			v = new(logLine)
		case msgPush:
			v = new(input)
		case msgPushed:
			v = new(pushed)
		case msgTake:
			v = new(ack)
		case msgTaken:
			v = new(taken)
		case msgRead:
			v = new(readAsk)
		case msgReading:
			v = new(reading)
		default:
			return
		}
		if decode(body, v) != nil {
			return
		}
		if e, ok := v.(*Effects); ok && e.check() == nil && len(e.Sends) > MaxSends {
			t.Fatal("too many messages")
		}
		if tk, ok := v.(*taken); ok {
			_ = tk.check(1 << 20)
		}
		if l, ok := v.(*logLine); ok {
			if got := l.log(); len(got.Text) > 3*MaxLogLine {
				t.Fatalf("line of %d bytes", len(got.Text))
			}
		}
		again, err := frameOf(typ, v)
		if err != nil {
			t.Fatal(err)
		}
		w := reflect.New(reflect.TypeOf(v).Elem()).Interface()
		if err := decode(again[frameHeader:], w); err != nil {
			t.Fatal(err)
		}
		third, err := frameOf(typ, w)
		if err != nil || !bytes.Equal(again, third) {
			t.Fatalf("%x became %x, %v", again, third, err)
		}
	})
}

func TestFrameSize(t *testing.T) {
	for _, test := range []struct {
		header []byte
		limit  int
		body   int
	}{
		{[]byte{0, 0, 0, 1, 9}, 0, 0},
		{[]byte{0, 0, 0, 11, 9}, 10, 10},
		{[]byte{0, 0, 0, 12, 9}, 10, -1},
		{[]byte{0, 0, 0, 0, 9}, 10, -1},
		{[]byte{0xff, 0xff, 0xff, 0xff, 9}, maxAnswer, -1},
		{[]byte{0, 0, 0, 1}, 10, -1},
		{nil, 10, -1},
	} {
		typ, n, err := frameSize(test.header, test.limit)
		if test.body < 0 {
			if err == nil {
				t.Errorf("%x: accepted", test.header)
			}
			continue
		}
		if err != nil || typ != 9 || n != test.body {
			t.Errorf("%x: type %d, %d bytes, %v", test.header, typ, n, err)
		}
	}
	// The largest honest effects fit.
	e := &Effects{Reply: make([]byte, MaxPayload), Replied: true}
	for range MaxSends {
		e.Sends = append(e.Sends, Message{To: "a", Payload: make([]byte, MaxSendBytes/MaxSends)})
	}
	for i := range uint64(MaxTimerOps) {
		e.Timers = append(e.Timers, TimerOp{ID: 1<<60 + i, After: 1 << 60, Every: 1 << 60, Cancel: true})
	}
	b, err := frameOf(msgEffects, e)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.check(); err != nil || int(binary.BigEndian.Uint32(b)) > maxAnswer {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	s := &State{Globals: make([]Global, maxGlobals), Armed: make([]ArmedTimer, MaxTimers)}
	for i := range s.Globals {
		s.Globals[i] = Global{uint32(i) << 16, 0x7e, 1 << 63}
	}
	if b, err = frameOf(msgRestore, s); err != nil || len(b) > maxRequest {
		t.Errorf("state of %d bytes, %v", len(b), err)
	}
	if err := decode(b[frameHeader:], new(State)); err != nil {
		t.Error(err)
	}
	// So does the largest state of a command.
	s = &State{Program: make([]byte, maxProgramState), WASI: wasi.State{
		FDs: make([]wasi.FD, wasi.MaxFDs),
		Streams: &wasi.StreamState{
			In:  [][]byte{make([]byte, wasi.MaxInput)},
			Out: []wasi.OutputState{{Stream: 1, Data: make([]byte, wasi.MaxOutput)}},
		},
	}}
	if b, err = frameOf(msgRestore, s); err != nil || len(b) > maxRequest {
		t.Errorf("a command's state of %d bytes, %v", len(b), err)
	}
}

func TestTail(t *testing.T) {
	var l tail
	if got := l.lines(); got != nil {
		t.Errorf("got %q", got)
	}
	l.line("first")
	for range 10_000 {
		l.line("something in between")
	}
	l.line("last")
	got := l.lines()
	if got[0] != "first" || got[len(got)-1] != "last" || len(got) > 400 {
		t.Errorf("%d lines, from %q to %q", len(got), got[0], got[len(got)-1])
	}
	l.reset()
	l.line("again")
	if got := l.lines(); len(got) != 1 || got[0] != "again" {
		t.Errorf("got %q", got)
	}
}

func TestClip(t *testing.T) {
	for _, test := range []struct {
		in   string
		n    int
		want string
	}{
		{"abc", 5, "abc"}, {"abc", 2, "ab"}, {"aé", 2, "a"}, {"aé", 3, "aé"}, {"a\xffb", 9, "a\uFFFDb"}, {"", 0, ""}, {"é", 0, ""},
		{"日本", 5, "日"},
	} {
		if got := clip(test.in, test.n); got != test.want {
			t.Errorf("clip(%q, %d) is %q, want %q", test.in, test.n, got, test.want)
		}
	}
}
