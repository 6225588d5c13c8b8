package apps

import (
	"fmt"
	"testing"
)

func TestCounter(t *testing.T) {
	for _, app := range []string{"counter", "counter-c"} {
		t.Run(app, func(t *testing.T) {
			w := start(t, app, 64, false)
			for _, c := range []struct {
				command string
				status  int32
				reply   string // "" is anything
			}{
				{"get", 0, "0"},
				{"add 42", 0, "42"},
				{"add -2", 0, "40"},
				{"get\n", 0, "40"},
				{"add", 1, ""},
				{"add x", 1, ""},
				{"add 1x", 1, ""},
				{"", 1, ""},
				{"count", 1, ""},
				{"every", 1, ""},
				{"every 10", 1, ""},
				{"every -1s", 1, ""},
				{"get", 0, "40"},
				{"reset", 0, "0"},
				{"add 9223372036854775807", 0, "9223372036854775807"},
				{"add 1", 0, "-9223372036854775808"},
			} {
				status := w.try(c.command)
				if status != c.status || c.reply != "" && string(w.reply) != c.reply {
					t.Errorf("%q: got code %d, %q, want %d, %q", c.command, status, w.reply, c.status, c.reply)
				}
				if status != 0 && len(w.reply) == 0 {
					t.Errorf("%q: refused without a reason", c.command)
				}
			}

			w.call("reset")
			w.call("every 100ms")
			if got, want := fmt.Sprint(w.timers), "[{1 100000000 100000000 false}]"; got != want {
				t.Errorf("every 100ms armed %s, want %s", got, want)
			}
			for range 3 {
				if status, err := w.deliver(2, 1, nil); status != 0 || err != nil || w.replied {
					t.Fatalf("timer: code %d, %v, replied %v", status, err, w.replied)
				}
			}
			w.call("stop")
			if got, want := fmt.Sprint(w.timers), "[{1 0 0 true}]"; got != want {
				t.Errorf("stop did %s, want %s", got, want)
			}
			if status, err := w.deliver(1, 8, []byte("add 4")); status != 0 || err != nil || w.replied {
				t.Errorf("add sent one-way: code %d, %v, replied %v", status, err, w.replied)
			}
			if got := w.call("get"); got != "7" {
				t.Errorf("three ticks and 4 are %s", got)
			}
		})
	}
}

// TestCounterPages pins how little memory an event dirties: what a worker
// writes is what has to move.
func TestCounterPages(t *testing.T) {
	for app, most := range map[string]int{"counter": 8, "counter-c": 3} {
		t.Run(app, func(t *testing.T) {
			w := start(t, app, 64, false)
			for range 10 {
				w.call("add 1")
			}
			size := w.mod.Memory().Size()
			worst := 0
			for range 100 {
				before := w.memory()
				w.call("add 1")
				worst = max(worst, w.dirtied(before))
			}
			t.Logf("an event dirties at most %d pages", worst)
			if worst > most {
				t.Errorf("an event dirtied %d pages, want at most %d", worst, most)
			}
			if now := w.mod.Memory().Size(); now != size {
				t.Errorf("memory grew from %d to %d bytes in 100 events", size, now)
			}
		})
	}
}
