package control

import (
	"bytes"
	"errors"
	"io"
	"math"
	"reflect"
	"strings"
	"testing"
)

func TestFrameRoundTrip(t *testing.T) {
	full := bytes.Repeat([]byte{7}, MaxPayloadBytes)
	for _, f := range []frame{
		{frameCall, []byte("hello")},
		{frameCall, nil},
		{frameSend, full},
		{frameEnd, nil},
		{frameReply, append([]byte{0, 0, 0, 1}, full...)},
		{frameDone, nil},
	} {
		b := appendFrame(nil, f.kind, f.body)
		got, err := readFrame(bytes.NewReader(b))
		if err != nil || got.kind != f.kind || !bytes.Equal(got.body, f.body) {
			t.Errorf("%#02x of %d bytes: got %#02x of %d, %v", f.kind, len(f.body), got.kind, len(got.body), err)
		}
		if len(b) > 0 {
			if _, err := readFrame(bytes.NewReader(b[:len(b)-1])); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%#02x cut short: got %v, want %v", f.kind, err, io.ErrUnexpectedEOF)
			}
		}
	}
	if _, err := readFrame(bytes.NewReader(nil)); err != io.EOF {
		t.Errorf("no frame: got %v, want %v", err, io.EOF)
	}
}

func TestFrameRefusals(t *testing.T) {
	for _, tt := range []struct {
		name string
		b    []byte
		want error
		text string
	}{
		{"unknown type", []byte{0x7f, 0, 0, 0, 0}, errFrame, "unknown type 0x7f"},
		{"payload over the limit", []byte{0x01, 0, 0x16, 0x66, 0x66}, &Error{Code: CodeTooLarge}, "payload is 1.4 MiB, the limit is 1 MiB"},
		{"payload a byte over", []byte{0x02, 0, 0x10, 0, 1}, &Error{Code: CodeTooLarge}, "payload is 1.0 MiB (1048577 bytes), the limit is 1 MiB"},
		{"huge failure", []byte{0x12, 0xff, 0xff, 0xff, 0xff}, errFrame, "4294967295 bytes"},
		{"end with a body", []byte{0x03, 0, 0, 0, 1, 0}, errFrame, "limit is 0"},
	} {
		_, err := readFrame(bytes.NewReader(tt.b))
		if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: got %v, want %v with %q", tt.name, err, tt.want, tt.text)
		}
	}
}

func TestReplyRoundTrip(t *testing.T) {
	for _, want := range []Reply{
		{Payload: []byte("42")},
		{Status: math.MinInt32},
		{Status: 3, Payload: bytes.Repeat([]byte{1}, MaxPayloadBytes)},
		{Err: &Error{Code: CodeConflict, Message: "stopped", Hint: "run it again"}},
		{Err: &Error{Code: CodeFailed}},
	} {
		f, err := readFrame(bytes.NewReader(appendReply(nil, want)))
		if err != nil {
			t.Fatal(err)
		}
		got, err := parseReply(f)
		if len(got.Payload) == 0 {
			got.Payload = nil
		}
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
	long := strings.Repeat("x", 1<<20)
	f, err := readFrame(bytes.NewReader(appendReply(nil, Reply{Err: &Error{Code: CodeFailed, Message: long, Hint: long}})))
	if err != nil {
		t.Fatalf("a failure with a long text makes a frame that is refused: %v", err)
	}
	if r, err := parseReply(f); err != nil || !strings.HasPrefix(long, r.Err.Message) || r.Err.Message == "" {
		t.Errorf("long failure: got %v, %v", r.Err, err)
	}
}

// FuzzFrame: no bytes panic, and what is accepted is written as it was read.
func FuzzFrame(f *testing.F) {
	f.Add(appendFrame(nil, frameCall, []byte("add 1")))
	f.Add(appendFrame(nil, frameEnd))
	f.Add(appendReply(nil, Reply{Status: -1, Payload: []byte("x")}))
	f.Add(appendReply(nil, Reply{Err: &Error{Code: CodeNotFound, Message: "no", Hint: "look"}}))
	f.Add([]byte{0x01, 0xff, 0xff, 0xff, 0xff, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		fr, err := readFrame(r)
		if err != nil {
			return
		}
		read := b[:len(b)-r.Len()]
		if again := appendFrame(nil, fr.kind, fr.body); !bytes.Equal(again, read) {
			t.Fatalf("read %x, wrote %x", read, again)
		}
		reply, err := parseReply(fr)
		if err != nil {
			return
		}
		again, err := readFrame(bytes.NewReader(appendReply(nil, reply)))
		if err != nil {
			t.Fatalf("reply written cannot be read: %v", err)
		}
		if back, err := parseReply(again); err != nil || !sameReply(back, reply) {
			t.Fatalf("reply %+v became %+v, %v", reply, back, err)
		}
	})
}

func sameReply(a, b Reply) bool {
	if a.Err == nil || b.Err == nil {
		return a.Err == b.Err && a.Status == b.Status && bytes.Equal(a.Payload, b.Payload)
	}
	// A failure's texts are cut to fit.
	return a.Err.Code == b.Err.Code && strings.HasPrefix(b.Err.Message, a.Err.Message) && strings.HasPrefix(b.Err.Hint, a.Err.Hint)
}

func TestFormatBytes(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 1 << 20: "1 MiB", 1<<20 + 1: "1.0 MiB (1048577 bytes)",
		1468006: "1.4 MiB", 64 << 20: "64 MiB", 3 << 30: "3 GiB", math.MaxUint64: "16.0 EiB (18446744073709551615 bytes)",
	} {
		if got := FormatBytes(n); got != want {
			t.Errorf("FormatBytes(%d) = %q, want %q", n, got, want)
		}
	}
}

// TestCodes holds the table of codes to what session frames need.
func TestCodes(t *testing.T) {
	seen := map[uint8]Code{}
	for c, v := range codes {
		if other, dup := seen[v.num]; dup || v.num == 0 {
			t.Errorf("%s has the number %d of %q", c, v.num, other)
		}
		seen[v.num] = c
		if v.exit == 0 || v.status < 400 {
			t.Errorf("%s has exit code %d and status %d", c, v.exit, v.status)
		}
		got, err := parseFailure(appendFailure(nil, &Error{Code: c, Message: "m"}))
		if err != nil || got.Code != c {
			t.Errorf("%s came back as %v, %v", c, got, err)
		}
	}
}
