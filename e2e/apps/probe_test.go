package apps

import (
	"fmt"
	"strings"
	"testing"
)

func TestProbe(t *testing.T) {
	w := start(t, "probe", 256, false)

	if got := w.call("echo a  b\x00c"); got != "a  b\x00c" {
		t.Errorf("echo: %q", got)
	}
	if status := w.try("fail 42 so it goes"); status != 42 || string(w.reply) != "so it goes" {
		t.Errorf("fail: code %d, %q", status, w.reply)
	}
	if status := w.try("fail -1 "); status != -1 {
		t.Errorf("fail -1: code %d", status)
	}
	w.call("log warn careful %d")
	if got, want := fmt.Sprint(w.logs), "[{2 careful %d}]"; got != want {
		t.Errorf("log: %s, want %s", got, want)
	}
	w.call("print hello")
	w.call("warn oh")
	if w.stdout.String() != "hello\n" || w.stderr.String() != "oh\n" {
		t.Errorf("print and warn: %q and %q", w.stdout.String(), w.stderr.String())
	}
	if a, b := w.call("now"), w.call("now"); a == b || a == "" {
		t.Errorf("now: %s, then %s", a, b)
	}
	if a, b := w.call("random 16"), w.call("random 16"); len(a) != 32 || a == b {
		t.Errorf("random: %s, then %s", a, b)
	}

	// An event that was kept must not answer a later call.
	w.call("late")
	if status := w.try("late"); status != notInCall || !strings.Contains(string(w.reply), "not in a call") {
		t.Errorf("a late reply: code %d, %q", status, w.reply)
	}

	// Messages.
	w.call("send other hello there")
	if got, want := fmt.Sprint(w.sends), "[{other hello there}]"; got != want {
		t.Errorf("send: %s, want %s", got, want)
	}
	if status := w.try("sends 65 other"); status != tooMany || len(w.sends) != 64 {
		t.Errorf("65 messages in one event: code %d, %d sent", status, len(w.sends))
	}
	if status := w.try("send " + strings.Repeat("x", 64) + " hi"); status != badArgument {
		t.Errorf("a name too long: code %d", status)
	}
	if status, err := w.deliver(1, 9, []byte("not a command")); status != 0 || err != nil || w.replied {
		t.Errorf("one-way: code %d, %v, replied %v", status, err, w.replied)
	}
	if got := w.call("inbox"); got != "1 not a command" {
		t.Errorf("inbox: %q", got)
	}

	// Timers.
	w.call("timer 18446744073709551615 10ms 1s")
	if got, want := fmt.Sprint(w.timers), "[{18446744073709551615 10000000 1000000000 false}]"; got != want {
		t.Errorf("timer: %s, want %s", got, want)
	}
	for _, id := range []int64{-1, 3, -1} {
		if _, err := w.deliver(2, id, nil); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.call("fired"); got != "3=1\n18446744073709551615=2\n" {
		t.Errorf("fired: %q", got)
	}
	if status := w.try("timer 5 -1s 0s"); status != badArgument {
		t.Errorf("a timer in the past: code %d", status)
	}
	if status := w.try("timers 1025"); status != tooMany {
		t.Errorf("1,025 timers: code %d", status)
	}
	w.call("cancel 5")

	// Sizes.
	if got := w.call("big 1048576"); len(got) != maxPayload {
		t.Errorf("a reply of 1 MiB has %d bytes", len(got))
	}
	if status := w.try("big 1048577"); status != tooLarge {
		t.Errorf("a reply above 1 MiB: code %d", status)
	}
	if got := w.call("echo " + strings.Repeat("y", maxPayload-5)); len(got) != maxPayload-5 {
		t.Errorf("a payload of 1 MiB: %d bytes came back", len(got))
	}
	if got := w.call("grow 32"); got != "32" {
		t.Errorf("grow: %s", got)
	}
	if size := w.mod.Memory().Size(); size < 32<<20 {
		t.Errorf("the memory has %d bytes after growing by 32 MiB", size)
	}
	if status := w.try("nonsense"); status != 100 {
		t.Errorf("nonsense: code %d", status)
	}
	w.call("sleep 1ms")
	if got := w.call("memory"); got != "32" {
		t.Errorf("memory: %s", got)
	}
}

// TestProbeEnds checks that what is to end a worker does, and says why on
// standard error: the Go runtime traps after a message.
func TestProbeEnds(t *testing.T) {
	for command, want := range map[string]struct {
		err    string
		stderr string
	}{
		"trap":      {"unreachable", "panic: trap was asked for"},
		"exit 7":    {"exit_code(7)", ""},
		"deadlock":  {"unreachable", "all goroutines are asleep"},
		"grow 4096": {"unreachable", "out of memory"},
	} {
		t.Run(command, func(t *testing.T) {
			w := start(t, "probe", 64, false)
			if _, err := w.deliver(0, 1, []byte(command)); err == nil || !strings.Contains(err.Error(), want.err) {
				t.Fatalf("got %v, want %s", err, want.err)
			}
			if !strings.Contains(w.stderr.String(), want.stderr) {
				t.Errorf("standard error is %q, want %q in it", w.stderr.String(), want.stderr)
			}
		})
	}
}
