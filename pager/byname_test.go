package pager

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// serveNamed serves a store at the far end of a pipe.
func serveNamed(t testing.TB, s *Store, limits NamedLimits) net.Conn {
	here, there := net.Pipe()
	var serving sync.WaitGroup
	serving.Go(func() {
		defer there.Close()
		if err := ServeNamed(t.Context(), there, s, limits); err != nil && t.Context().Err() == nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		here.Close()
		serving.Wait()
	})
	return here
}

// What is asked for comes, or is missing; and which is which is told ahead.
func TestNamed(t *testing.T) {
	r := testRand(t)
	s := openTestStore(t, testStoreConfig(t, t.TempDir()), nil)
	pages := map[Hash][]byte{}
	var known []Hash
	for range 500 {
		page := testMemory(r, 1, 1)
		h := s.Put(page)
		pages[h] = page
		known = append(known, h)
	}
	c := NewNamedClient(serveNamed(t, s, NamedLimits{}))
	ctx := testContext(t)
	for _, n := range []int{0, 1, maxGet, maxGet + 1, 3000, 2 * maxWhich} {
		names := make([]Hash, n)
		var want []int // are missing
		for i := range names {
			if names[i] = known[r.IntN(len(known))]; r.IntN(3) == 0 {
				names[i][5] ^= 1
				want = append(want, i)
			}
		}
		got := 0
		missing, err := c.Fetch(ctx, names, func(i int, page []byte) error {
			if !bytes.Equal(page, pages[names[i]]) {
				t.Fatalf("page %d has other content", i)
			}
			got++
			return nil
		})
		if err != nil || !slices.Equal(missing, want) || got != n-len(want) {
			t.Fatalf("%d names: got %d pages, %d missing, want %d, %v", n, got, len(missing), len(want), err)
		}
		there, err := c.Has(ctx, names)
		if err != nil || len(there) != n {
			t.Fatalf("%d names: %d answers, %v", n, len(there), err)
		}
		for i := range there {
			if there[i] == slices.Contains(want, i) {
				t.Fatalf("page %d: there %v", i, there[i])
			}
		}
	}
}

// Serving others comes from disk too, and is not use.
func TestNamedIsNoUse(t *testing.T) {
	cfg := testStoreConfig(t, t.TempDir())
	s := openTestStore(t, cfg, nil)
	var names []Hash
	for n := range 20 {
		names = append(names, s.Put(numbered(n)))
	}
	waitFor(t, "the writer", written(s))
	closeStore(t, s)
	s = openTestStore(t, cfg, nil)
	order := onDisk(s)
	c := NewNamedClient(serveNamed(t, s, NamedLimits{}))
	slices.Reverse(names)
	missing, err := c.Fetch(testContext(t), names, func(int, []byte) error { return nil })
	if err != nil || len(missing) > 0 {
		t.Fatal(missing, err)
	}
	if st := s.Stats(); st.Pages != 0 || st.Disk.Hits != 20 || !slices.Equal(onDisk(s), order) {
		t.Errorf("serving changed the store: %+v", st)
	}
}

// A link is filled whatever its round trip: asks do not wait for answers.
func TestNamedPipelined(t *testing.T) {
	const rtt, pages = 200 * time.Millisecond, 4 * maxGet * namedWindow
	synctest.Test(t, func(t *testing.T) {
		s := NewStore(64 << 20)
		var names []Hash
		for n := range pages {
			names = append(names, s.Put(numbered(n)))
		}
		var all sync.WaitGroup
		a, b := net.Pipe()
		here, there := newLagging(a, rtt/2, &all), newLagging(b, rtt/2, &all)
		all.Go(func() {
			defer there.Close()
			if err := ServeNamed(context.Background(), there, s, NamedLimits{}); err != nil {
				t.Error(err)
			}
		})
		c := NewNamedClient(here)
		start := time.Now()
		missing, err := c.Fetch(context.Background(), names, func(int, []byte) error { return nil })
		if err != nil || len(missing) > 0 {
			t.Error(missing, err)
		}
		// On the bubble's clock, where only the link takes time.
		if took, want := time.Since(start), pages/(maxGet*namedWindow)*rtt; took > want {
			t.Errorf("took %v, want %v: one round trip a window", took, want)
		}
		here.Close()
		all.Wait()
	})
}

// lagging is one end of a link on which what is written arrives later.
type lagging struct {
	net.Conn
	queue chan lagged
	once  sync.Once
}

type lagged struct {
	due  time.Time
	data []byte
}

func newLagging(c net.Conn, lag time.Duration, all *sync.WaitGroup) *lagging {
	l := &lagging{Conn: c, queue: make(chan lagged, 1<<12)}
	all.Go(func() {
		defer c.Close()
		for p := range l.queue {
			time.Sleep(time.Until(p.due.Add(lag)))
			if _, err := c.Write(p.data); err != nil {
				return
			}
		}
	})
	return l
}

func (l *lagging) Write(b []byte) (int, error) {
	l.queue <- lagged{time.Now(), bytes.Clone(b)}
	return len(b), nil
}

func (l *lagging) Close() error {
	l.once.Do(func() { close(l.queue) })
	return nil
}

// Answers are paced, and an asker that is idle, or does not take them, is let
// go.
func TestNamedLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewStore(4 << 20)
		var names []Hash
		for n := range 100 {
			names = append(names, s.Put(numbered(n)))
		}
		const rate = 10_000
		share := NewBudget(rate).Share("asker", 1)
		defer share.Close()
		limits := NamedLimits{Idle: time.Minute, Share: share}
		begun := time.Now() // on the bubble's clock
		fetched := 0
		for _, taking := range []bool{false, true} {
			here, there := net.Pipe()
			done := make(chan error, 1)
			go func() { done <- ServeNamed(context.Background(), there, s, limits) }()
			c := NewNamedClient(here)
			if _, err := c.Fetch(context.Background(), names, func(int, []byte) error { return nil }); err != nil {
				t.Error(err)
			}
			fetched += 100 * PageSize
			if least := time.Duration(fetched-2*PageSize) * time.Second / rate; time.Since(begun) < least {
				t.Errorf("%d bytes after %v, at %d bytes a second", fetched, time.Since(begun), rate)
			}
			if !taking {
				if _, err := here.Write(appendNamedAsk(nil, frameGetNamed, names[:1])); err != nil {
					t.Error(err)
				}
			}
			if err := <-done; !isTimeout(err) {
				t.Errorf("taking %v: got %v, want a timeout", taking, err)
			}
			here.Close()
			there.Close()
		}
	})
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// answerer is a peer that reads one ask and answers as it likes.
func answerer(t *testing.T, answer []byte) net.Conn {
	here, there := net.Pipe()
	var all sync.WaitGroup
	all.Go(func() {
		defer there.Close()
		r := bufio.NewReader(there)
		if _, _, err := readNamed(r, nil); err != nil {
			return
		}
		all.Go(func() { _, _ = io.Copy(io.Discard, r) })
		_, _ = there.Write(answer)
	})
	t.Cleanup(func() {
		here.Close()
		all.Wait()
	})
	return here
}

func TestNamedHostileAnswers(t *testing.T) {
	page := numbered(1)
	names := make([]Hash, 300)
	for i := range names {
		names[i] = HashPage(page)
	}
	good := appendNamedPages(nil, maxGet, func(i int, buf []byte) bool { copy(buf, page); return true })
	set := func(b []byte, at int, v byte) []byte {
		b = bytes.Clone(b)
		b[at] = v
		return b
	}
	none := func(int, []byte) bool { return false }
	for what, row := range map[string]struct {
		answer []byte
		want   error
	}{
		"other content":   {set(good, len(good)-1, 7), ErrContent},
		"another kind":    {set(good, headBytes+2, 2), ErrProtocol},
		"bytes too many":  {set(good, headBytes+2, namedAbsent), ErrProtocol},
		"too few":         {appendNamedPages(nil, maxGet-1, none), ErrProtocol},
		"another frame":   {appendThere(nil, maxGet, func(int) bool { return true }), ErrProtocol},
		"unknown frame":   {appendEmpty(nil, 0x1f), ErrProtocol},
		"huge frame":      {[]byte{frameNamedPages, 0xff, 0, 0, 0}, ErrProtocol},
		"end":             {nil, io.ErrUnexpectedEOF},
		"end in a frame":  {good[:1000], io.ErrUnexpectedEOF},
		"error":           {appendError(nil, CodeGone, "no"), ErrGone},
		"error cut short": {[]byte{frameError, 0, 0, 0, 1, 0}, ErrProtocol},
	} {
		c := NewNamedClient(answerer(t, row.answer))
		_, err := c.Fetch(testContext(t), names, func(int, []byte) error { return nil })
		if !errors.Is(err, row.want) {
			t.Errorf("%s: got %v, want %v", what, err, row.want)
		}
		if _, again := c.Has(testContext(t), names); !errors.Is(again, ErrNamedBroken) || !errors.Is(again, row.want) {
			t.Errorf("%s: then got %v, want %v", what, again, ErrNamedBroken)
		}
	}
	there := appendThere(nil, len(names), func(int) bool { return true })
	for what, answer := range map[string][]byte{
		"bits past the end": set(there, len(there)-1, 0xff),
		"of another number": appendThere(nil, len(names)-1, func(int) bool { return true }),
		"pages":             good,
	} {
		c := NewNamedClient(answerer(t, answer))
		if _, err := c.Has(testContext(t), names); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: got %v, want %v", what, err, ErrProtocol)
		}
	}
}

func TestNamedHostileAsks(t *testing.T) {
	for what, ask := range map[string][]byte{
		"no names":      appendNamedAsk(nil, frameGetNamed, nil),
		"half a name":   {frameGetNamed, 0, 0, 0, 16, 15: 0, 20: 0},
		"names to get":  appendNamedAsk(nil, frameGetNamed, make([]Hash, maxGet+1)),
		"names to find": appendNamedAsk(nil, frameWhichNamed, make([]Hash, maxWhich+1)),
		"an answer":     appendThere(nil, 8, func(int) bool { return true }),
		"huge":          {frameGetNamed, 0xff, 0xff, 0xff, 0xff},
		"unknown":       appendEmpty(nil, 0x1f),
	} {
		here, there := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- ServeNamed(t.Context(), there, NewStore(0), NamedLimits{}) }()
		go func() { _, _ = here.Write(ask) }()
		if err := <-done; !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: got %v, want %v", what, err, ErrProtocol)
		}
		here.Close()
		there.Close()
	}
}

// A call ends when its context does, or when each fails, whatever the peer
// does.
func TestNamedEnds(t *testing.T) {
	s := NewStore(4 << 20)
	names := make([]Hash, 2000)
	for n := range names {
		names[n] = s.Put(numbered(n % 10))
	}
	c := NewNamedClient(serveNamed(t, s, NamedLimits{}))
	if _, err := c.Fetch(testContext(t), names, func(i int, _ []byte) error { return errTest }); !errors.Is(err, errTest) {
		t.Errorf("got %v, want %v", err, errTest)
	}
	here, there := net.Pipe() // nobody there
	defer there.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	go cancel(errTest)
	c = NewNamedClient(here)
	if _, err := c.Has(ctx, names); !errors.Is(err, errTest) {
		t.Errorf("got %v, want %v", err, errTest)
	}
	ctx, cancel = context.WithCancelCause(t.Context())
	go cancel(errTest)
	if err := ServeNamed(ctx, there, s, NamedLimits{}); !errors.Is(err, errTest) {
		t.Errorf("got %v, want %v", err, errTest)
	}
}

func TestNamedConcurrent(t *testing.T) {
	s := NewStore(4 << 20)
	names := make([]Hash, 200)
	for n := range names {
		names[n] = s.Put(numbered(n))
	}
	c := NewNamedClient(serveNamed(t, s, NamedLimits{}))
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 5 {
				got := 0
				if missing, err := c.Fetch(t.Context(), names, func(int, []byte) error { got++; return nil }); err != nil || len(missing) > 0 || got != len(names) {
					t.Error(got, missing, err)
				}
				if there, err := c.Has(t.Context(), names); err != nil || slices.Contains(there, false) {
					t.Error(there, err)
				}
			}
		})
	}
	all.Wait()
}

// FuzzNamed feeds both ends: what is taken for a frame is one.
func FuzzNamed(f *testing.F) {
	names := []Hash{{1}, {2}, {3}}
	f.Add(appendNamedAsk(nil, frameWhichNamed, names))
	f.Add(appendNamedAsk(nil, frameGetNamed, names[:1]))
	f.Add(appendThere(nil, 3, func(i int) bool { return i != 1 }))
	f.Add(appendNamedPages(nil, 3, func(i int, buf []byte) bool { return i == 1 }))
	f.Add(appendError(nil, CodeRefused, "no"))
	f.Fuzz(func(t *testing.T, b []byte) {
		kind, body, err := readNamed(bufio.NewReader(bytes.NewReader(b)), nil)
		if err != nil {
			return
		}
		if n, err := parseNamedAsk(kind, body); err == nil {
			names := make([]Hash, n)
			for i := range names {
				names[i] = Hash(body[32*i:])
			}
			if got := appendNamedAsk(nil, kind, names); !bytes.HasPrefix(b, got) {
				t.Errorf("ask: got %x, want %x", got, b)
			}
		}
		for n := range 5 {
			if bits, err := parseThere(body, n); err == nil && kind == frameNamedThere {
				got := appendThere(nil, n, func(i int) bool { return bits[i/8]>>(i%8)&1 == 1 })
				if !bytes.HasPrefix(b, got) {
					t.Errorf("there: got %x, want %x", got, b)
				}
			}
			if kinds, pages, err := parseNamedPages(body, n); err == nil && kind == frameNamedPages {
				got := appendNamedPages(nil, n, func(i int, buf []byte) bool {
					if kinds[i] == namedAbsent {
						return false
					}
					pages = pages[copy(buf, pages):]
					return true
				})
				if !bytes.HasPrefix(b, got) {
					t.Errorf("pages: got %x, want %x", got, b)
				}
			}
		}
		if kind == frameError {
			_ = parseNamedError(body)
		}
	})
}

// BenchmarkNamed measures a page asked for by name over a pipe in memory, with
// the check of its content, and a question whether it is there.
func BenchmarkNamed(b *testing.B) {
	const pages = 4096
	mem, table := benchMemory(pages)
	s := NewStore(2 * pages * PageSize)
	names := make([]Hash, pages)
	for p := range pages {
		s.Put(mem[p*PageSize:][:PageSize])
		names[p], _ = table.Get(PageNum(p))
	}
	c := NewNamedClient(serveNamed(b, s, NamedLimits{}))
	b.Run("fetch", func(b *testing.B) {
		b.SetBytes(pages * PageSize)
		for b.Loop() {
			if missing, err := c.Fetch(b.Context(), names, func(int, []byte) error { return nil }); err != nil || len(missing) > 0 {
				b.Fatal(missing, err)
			}
		}
	})
	b.Run("has", func(b *testing.B) {
		for b.Loop() {
			if _, err := c.Has(b.Context(), names); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/pages, "ns/page")
	})
}
