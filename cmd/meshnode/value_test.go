package main

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestParseSize(t *testing.T) {
	for s, want := range map[string]uint64{
		"256MiB": 256 << 20, "1GiB": 1 << 30, "64 KiB": 64 << 10, "1.5KiB": 1536, "10MB": 10e6, "0B": 0, "7B": 7,
	} {
		if got, err := parseSize(s); err != nil || got != want {
			t.Errorf("%q: got %d, %v, want %d", s, got, err, want)
		}
	}
	for s, want := range map[string]string{
		"": "is no size", "256": "has no unit", "MiB": "is no size", "-1MiB": "is no size", "1e3MiB": "is no size",
		"0x10MiB": "is no size", "infMiB": "is no size", "256M": "unknown unit", "1.3B": "no whole number",
		"99999999TiB": "no whole number", "1 000MiB": "is no size",
	} {
		if got, err := parseSize(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %d, %v, want an error with %q", s, got, err, want)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"256MiB", "1.5GB", "0x1p3KiB", "NaNB", "1_0B", "é"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := parseSize(s)
		if err == nil && n > 1<<53 {
			t.Errorf("%q is %d bytes", s, n)
		}
	})
}

func TestDurationValue(t *testing.T) {
	for s, want := range map[string]time.Duration{"10s": 10 * time.Second, "1m30s": 90 * time.Second, "250ms": 250 * time.Millisecond} {
		v := durationValue{}
		if err := v.Set(s); err != nil || v.d != want {
			t.Errorf("%q: got %s, %v, want %s", s, v.d, err, want)
		}
	}
	for s, want := range map[string]string{
		"10": "has no unit", "0": "has no unit", "ten": "is no duration", "0s": "more than 0s", "-1s": "more than 0s", "": "is no duration",
	} {
		v := durationValue{}
		if err := v.Set(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %s, %v, want an error with %q", s, v.d, err, want)
		}
	}
	for d, want := range map[time.Duration]string{0: "", time.Minute: "1m", time.Hour: "1h", 90 * time.Second: "1m30s", 10 * time.Minute: "10m", 10 * time.Second: "10s"} {
		if got := (&durationValue{d: d}).String(); got != want {
			t.Errorf("%s prints as %q, want %q", d, got, want)
		}
	}
}

func TestAddrValue(t *testing.T) {
	for _, tt := range []struct {
		v    addrValue
		s    string
		want string // of the error; "" for none
	}{
		{addrValue{}, ":7946", ""},
		{addrValue{}, "[::1]:0", ""},
		{addrValue{}, "host", "not HOST:PORT"},
		{addrValue{}, "host:http", "ports go from"},
		{addrValue{}, "host:-1", "ports go from"},
		{addrValue{needHost: true}, ":1", "no host"},
		{addrValue{needHost: true}, "host:0", "nobody can reach"},
		{addrValue{loopback: true}, "127.0.0.1:0", ""},
		{addrValue{loopback: true}, "localhost:1", ""},
		{addrValue{loopback: true}, "[::1]:1", ""},
		{addrValue{loopback: true}, "off", ""},
		{addrValue{loopback: true}, ":1", "loopback only"},
		{addrValue{loopback: true}, "10.0.0.1:1", "loopback only"},
		{addrValue{}, "off", "not HOST:PORT"},
	} {
		err := tt.v.Set(tt.s)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%q: got %v, want %q", tt.s, err, tt.want)
		}
	}
}

func TestWorkerName(t *testing.T) {
	for path, want := range map[string]string{
		"counter.wasm": "counter", "/a/b/My App.wasm": "my-app", "x__y.tar.wasm": "x-y-tar", "-": "", "é.wasm": "", "--a--": "a",
		strings.Repeat("a", 80) + ".wasm": strings.Repeat("a", 63),
	} {
		if got := workerName(path); got != want {
			t.Errorf("%q: got %q, want %q", path, got, want)
		}
	}
}

func TestMillis(t *testing.T) {
	for ms, want := range map[float64]string{
		0: "0 ms", 0.02: "20 µs", 0.5: "0.50 ms", 4.126: "4.13 ms", 12.34: "12.3 ms", 812.4: "812 ms", 1500: "1.50 s",
		math.Inf(1): "+Inf s",
	} {
		if got := millis(ms); got != want {
			t.Errorf("millis(%v) = %q, want %q", ms, got, want)
		}
	}
}

func TestFreeText(t *testing.T) {
	for s, want := range map[string]string{
		"plain": "plain", "tab\tstays": "tab\tstays", "a\x1b[2Jb": `a\x1b[2Jb`, "line\nbreak": `line\x0abreak`, "é ✓": "é ✓", "\u009b1m": `\x9b1m`,
	} {
		if got := freeText(s); got != want {
			t.Errorf("freeText(%q) = %q, want %q", s, got, want)
		}
	}
}
