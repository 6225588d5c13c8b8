package pager

import (
	"bytes"
	"slices"
	"testing"
)

func TestLayout(t *testing.T) {
	l := Layout{Pages: 5000, Zero: []Run{{0, 3}, {900, 4000}}, Stale: []Run{{7, 1}, {20, 300}}}
	b := l.Append([]byte("before"))[len("before"):]
	got, rest, err := ParseLayout(append(b, "after"...), 5000)
	if err != nil || string(rest) != "after" || got.Pages != l.Pages || !slices.Equal(got.Zero, l.Zero) || !slices.Equal(got.Stale, l.Stale) {
		t.Fatalf("got %+v, %q, %v", got, rest, err)
	}
	if _, _, err := ParseLayout(b, 4999); err == nil {
		t.Error("a memory over its limit was accepted")
	}
	for n := range len(b) {
		if _, _, err := ParseLayout(b[:n], 5000); err == nil {
			t.Errorf("%d of %d bytes were accepted", n, len(b))
		}
	}
}

// What is accepted encodes to the same bytes.
func FuzzLayout(f *testing.F) {
	f.Add(Layout{Pages: 64, Zero: []Run{{1, 2}}, Stale: []Run{{5, 59}}}.Append(nil))
	f.Add([]byte{0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		l, rest, err := ParseLayout(b, MaxPages)
		if err != nil {
			return
		}
		if again := l.Append(nil); !bytes.Equal(again, b[:len(b)-len(rest)]) {
			t.Fatalf("%x encodes to %x", b, again)
		}
	})
}

func TestWithout(t *testing.T) {
	r := testRand(t)
	for range 300 {
		in := func() (set map[PageNum]bool, runs []Run) {
			set = map[PageNum]bool{}
			for range r.IntN(60) {
				set[PageNum(r.IntN(100))] = true
			}
			return set, runsOf(100, func(p PageNum) bool { return set[p] })
		}
		a, as := in()
		b, bs := in()
		want := runsOf(100, func(p PageNum) bool { return a[p] && !b[p] })
		if got := without(as, bs); !slices.Equal(got, want) {
			t.Fatalf("%v without %v: got %v, want %v", as, bs, got, want)
		}
	}
}
