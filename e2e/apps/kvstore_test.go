package apps

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestKvstore(t *testing.T) {
	w := start(t, "kvstore", 256, false)
	for _, c := range []struct {
		command string
		status  int32
		reply   string // "*" is anything
	}{
		{"get a", 2, "no such key"},
		{"put a first", 0, ""},
		{"put a second value\x00\xff", 0, ""},
		{"put b ", 0, ""},
		{"get a", 0, "second value\x00\xff"},
		{"get b", 0, ""},
		{"scan", 0, "a 14\nb 0\n"},
		{"scan * 1", 0, "a 14\nmore 1\n"},
		{"scan * 1 1", 0, "b 0\n"},
		{"scan b", 0, "b 0\n"},
		{"scan * x", 1, "*"},
		{"scan * 1 0 0", 1, "*"},
		{"del a", 0, ""},
		{"del a", 2, "no such key"},
		{"put", 1, "*"},
		{"put big " + strings.Repeat("x", 1024), 1, "*"},
		{"fill 10", 1, "*"},
		{"fill 10 5000 1", 1, "*"},
		{"init", 1, "*"},
		{"init 1TiB", 1, "*"},
		{"init 513MiB", 1, "*"},
		{"init 64MiB 100", 1, "*"},
		{"touch", 1, "*"},
		{"touch some 1 2", 1, "*"},
		{"churn", 1, "*"},
		{"churn fast", 1, "*"},
		{"churn 1MiB cold=1MiB", 1, "*"},
		{"churn 1MiB hot=64B", 1, "*"},
		{"churn 1MiB hot=64KiB more", 1, "*"},
		{"pace now", 1, "*"},
		{"pace", 0, "ticks=0 gap=0s wallGap=0s p50=0s p99=0s max=0s"},
		{"digest both", 1, "*"},
		{"", 1, "*"},
		{"init 64KiB 64", 0, ""},
		{"get b", 2, "no such key"},
		{"fill 1025 8 1", 3, "*"},
		{"stats", 0, "slots=1024 slotBytes=64 used=1024 valueBytes=8192 arenaBytes=81920 pages=16 touches=0"},
		{"touch random 5 9", 0, ""},
		{"touch range 15 2", 0, ""},
		{"stats", 0, "slots=1024 slotBytes=64 used=1024 valueBytes=8192 arenaBytes=81920 pages=16 touches=7"},
	} {
		status := w.try(c.command)
		if status != c.status || c.reply != "*" && string(w.reply) != c.reply {
			t.Errorf("%.40q: got code %d, %q, want %d, %q", c.command, status, w.reply, c.status, c.reply)
		}
		if c.reply == "*" && len(w.reply) == 0 {
			t.Errorf("%.40q: no reason", c.command)
		}
	}

	// A scan in parts finds every key once.
	w.call("init 4MiB 64")
	w.call("fill 50000 8 1")
	keys := map[string]bool{}
	for from := "0"; from != ""; {
		lines := strings.Split(strings.TrimSpace(w.call("scan * 1000000000 "+from)), "\n")
		from = ""
		for _, line := range lines {
			word, rest, _ := strings.Cut(line, " ")
			if word == "more" {
				from = rest
				continue
			}
			if keys[word] {
				t.Fatalf("%s is there twice", word)
			}
			keys[word] = true
		}
	}
	if len(keys) != 50000 {
		t.Errorf("the scan found %d of 50000 keys", len(keys))
	}
}

// TestKvstorePages checks that the app dirties what it changes and little else:
// experiments with dirty rates rest on it.
func TestKvstorePages(t *testing.T) {
	w := start(t, "kvstore", 128, false)
	w.call("init 32MiB")
	w.call("fill")
	for _, n := range []int{1, 10, 100} {
		touch := fmt.Sprintf("touch range 5 %d", n)
		w.call(touch)
		before := w.memory()
		w.call(touch)
		got := w.dirtied(before)
		t.Logf("%s dirties %d pages", touch, got)
		if got < n || got > n+14 {
			t.Errorf("%s dirtied %d pages", touch, got)
		}
	}
	digest, arena := w.call("digest"), w.call("digest arena")
	w.call("touch random 100 1")
	if got := w.call("digest"); got != digest {
		t.Errorf("touching changed the digest from %s to %s", digest, got)
	}
	if got := w.call("digest arena"); got == arena {
		t.Error("touching did not change the arena's digest")
	}
}

// TestKvstoreChurn checks that the timer writes at the rate it was told, to
// where it was told, and that the app tells how that went.
func TestKvstoreChurn(t *testing.T) {
	w := start(t, "kvstore", 128, false)
	w.call("init 32MiB")
	w.call("fill")
	digest := w.call("digest")
	tick := func() {
		t.Helper()
		w.clock += int64(10 * time.Millisecond)
		if status, err := w.deliver(2, 1, nil); status != 0 || err != nil {
			t.Fatalf("tick: code %d, %v", status, err)
		}
	}
	for _, c := range []struct {
		command string
		pages   int // written in 20 ticks, apart from some of the app itself
	}{{"churn 10MiB", 512}, {"churn 1MiB", 51}, {"churn 50MiB hot=256KiB", 64}} {
		w.call(c.command)
		if want := (timer{ID: 1, After: 1e7, Every: 1e7}); len(w.timers) != 1 || w.timers[0] != want {
			t.Fatalf("%s: timers %+v, want %+v", c.command, w.timers, want)
		}
		tick() // from here on it knows how much time has passed
		before := w.memory()
		for range 20 {
			tick()
		}
		got := w.dirtied(before)
		t.Logf("%s: %d pages in 200 ms", c.command, got)
		if got < c.pages || got > c.pages+14 {
			t.Errorf("%s dirtied %d pages in 200 ms, want %d", c.command, got, c.pages)
		}
		if pace := w.call("pace"); !strings.HasPrefix(pace, "ticks=21 gap=10.") {
			t.Errorf("%s: pace %s", c.command, pace)
		}
	}
	w.clock += int64(time.Second)
	tick()
	if pace := w.call("pace"); !strings.HasPrefix(pace, "ticks=1 gap=1.01") {
		t.Errorf("after a second without a tick: pace %s", pace)
	}
	w.call("churn 0B")
	if want := (timer{ID: 1, Cancel: true}); len(w.timers) != 1 || w.timers[0] != want {
		t.Fatalf("churn 0B: timers %+v, want %+v", w.timers, want)
	}
	if got := w.call("digest"); got != digest {
		t.Errorf("churn changed the digest from %s to %s", digest, got)
	}
}

// TestKvstoreLarge checks that the largest table fits a worker of little more,
// and that making it anew does not need room for two.
func TestKvstoreLarge(t *testing.T) {
	w := start(t, "kvstore", 560, false)
	w.call("init 512MiB 4KiB")
	w.call("fill 1000 4000 1")
	w.call("init 256MiB")
	w.call("init 512MiB 4KiB")
	if size := w.mod.Memory().Size(); size > 544<<20 {
		t.Errorf("a table of 512 MiB takes %d MiB", size>>20)
	}
}

func BenchmarkKvstore(b *testing.B) {
	for _, command := range []string{"put k5 value", "get k5", "touch random 256 1", "digest", "digest arena"} {
		b.Run("mem=64MiB/"+strings.ReplaceAll(command, " ", "_"), func(b *testing.B) {
			w := start(b, "kvstore", 128, false)
			w.call("init 64MiB")
			w.call("fill")
			for b.Loop() {
				w.call(command)
			}
		})
	}
}
