package pager

import (
	"bytes"
	"context"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// neighbour is a memory of this process that is held as long as here says so.
func neighbour(mem []byte, here *atomic.Bool) Neighbour {
	here.Store(true)
	return Neighbour{
		Region: Region{Data: mem, UFFD: -1}, Size: int64(len(mem)), Hold: here.Load, Release: func() {},
	}
}

func newTestNeighbours(t testing.TB, most int64, of ...Neighbour) *Neighbours {
	t.Helper()
	n, err := NewNeighbours(of, most)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// What neighbours have is found, and only that: not what they have written since,
// nor what was of one that has gone.
func TestNeighbours(t *testing.T) {
	const pages = 500
	r := testRand(t)
	mems := [][]byte{testMemory(r, pages, 3), testMemory(r, pages/3, 0)}
	was := [][]byte{slices.Clone(mems[0]), slices.Clone(mems[1])}
	var here [2]atomic.Bool
	n := newTestNeighbours(t, 1<<30, neighbour(mems[0], &here[0]), neighbour(mems[1], &here[1]))
	buf := make([]byte, PageSize)
	if n.Fetch(HashPage(mems[0][:PageSize]), buf) {
		t.Error("a page was found before anyone has looked")
	}
	n.Run(t.Context())
	// there says in which memory each content may be.
	there := func() map[string]bool {
		m := map[string]bool{}
		for i, mem := range mems {
			for p := 0; here[i].Load() && p < len(mem); p += PageSize {
				m[string(mem[p:][:PageSize])] = true
			}
		}
		return m
	}
	check := func(what string, least int) {
		t.Helper()
		there, found := there(), 0
		for _, mem := range was {
			for p := 0; p < len(mem); p += PageSize {
				page := mem[p:][:PageSize]
				if IsZero(page) || !n.Fetch(HashPage(page), buf) {
					continue
				}
				found++
				if !bytes.Equal(buf, page) || !there[string(page)] {
					t.Fatalf("%s: a page has other content, or was found where it is not", what)
				}
			}
		}
		if found < least {
			t.Errorf("%s: %d pages were found, want %d", what, found, least)
		}
	}
	all := 0
	for _, mem := range was {
		for p := 0; p < len(mem); p += PageSize {
			if !IsZero(mem[p:][:PageSize]) {
				all++
			}
		}
	}
	check("at first", all)
	if int(n.Found()) != all {
		t.Errorf("%d pages are said to be found, want %d", n.Found(), all)
	}
	unknown := HashPage(was[0][:PageSize])
	unknown[31] ^= 1 // what it is found by is the same
	if n.Fetch(unknown, buf) {
		t.Error("a page was found by a name that it has not")
	}
	for p := 0; p < pages; p += 2 {
		mems[0][p*PageSize+r.IntN(PageSize)]++
	}
	check("written", all/3)
	here[0].Store(false)
	check("gone", pages/3)
	here[1].Store(false)
	check("all gone", 0)
}

// A look at neighbours ends where it is to, and what was seen counts.
func TestNeighboursBounds(t *testing.T) {
	const pages = 300
	mem := testMemory(testRand(t), pages, 5)
	var here atomic.Bool
	count := func(n *Neighbours) (found int) {
		for p := range pages {
			if page := mem[p*PageSize:][:PageSize]; !IsZero(page) && n.Fetch(HashPage(page), make([]byte, PageSize)) {
				found++
			}
		}
		return found
	}
	for _, most := range []int{0, 1, 40} {
		n := newTestNeighbours(t, int64(most)*PageSize, neighbour(mem, &here))
		n.Run(t.Context())
		// Pages that are alike are known once.
		if len(n.at) > most || count(n) < most/2 {
			t.Errorf("most=%d: %d pages are known, and %d were found", most, len(n.at), count(n))
		}
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	n := newTestNeighbours(t, 1<<30, neighbour(mem, &here))
	n.Run(over)
	n.wait(nil, nil)
	if got := count(n); got != 0 {
		t.Errorf("%d pages were found in a look that was given up", got)
	}
	if _, err := NewNeighbours([]Neighbour{{Region: Region{Data: mem}, Size: int64(len(mem)) + PageSize}}, 1); err == nil {
		t.Error("a neighbour with more memory than it has was accepted")
	}
	n = nil
	n.wait(nil, nil)
	if n.Fetch(HashPage(mem[:PageSize]), make([]byte, PageSize)) || n.Found() != 0 {
		t.Error("nobody has a page")
	}
}

// Names wait for the look at neighbours, which has just begun, but not longer
// than the worker for the commit.
func TestNeighboursIntake(t *testing.T) {
	const pages = 64
	mem := testMemory(testRand(t), pages, 2)
	fr := frame{kind: frameNames, run: Run{0, pages}}
	for p := range pages {
		name := HashPage(mem[p*PageSize:][:PageSize])
		fr.kinds, fr.names = append(fr.kinds, pageRaw), append(fr.names, name[:]...)
	}
	test := func(t *testing.T, commit bool) {
		var here atomic.Bool
		n := newTestNeighbours(t, 1<<30, neighbour(mem, &here))
		data := make([]byte, len(mem))
		in, err := NewIntake(IntakeConfig{Worker: "w", Epoch: 1, Region: Region{Data: data, UFFD: -1}, Neighbours: n, Log: testLog(t)})
		if err != nil {
			t.Fatal(err)
		}
		answered := make(chan []byte)
		go func() {
			lacks, _, err := in.lacking(&fr, nil, make([]byte, PageSize))
			if err != nil {
				t.Error(err)
			}
			answered <- lacks
		}()
		synctest.Wait()
		select {
		case <-answered:
			t.Fatal("names were answered before anyone has looked")
		default:
		}
		if commit {
			in.Close()
			<-answered
			return
		}
		n.Run(t.Context())
		if lacks := <-answered; !bytes.Equal(lacks, make([]byte, pages/8)) || !bytes.Equal(data, mem) {
			t.Errorf("lacking are %x, or the memory differs", lacks)
		}
		in.Close()
	}
	for _, commit := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) { test(t, commit) })
	}
}

// What a neighbour has is not sent after the commit either, and what it has
// written is.
func TestNeighboursSink(t *testing.T) {
	const pages = 4096
	r := testRand(t)
	mem := testMemory(r, pages, 0)
	other := slices.Clone(mem)
	changed := 0
	for p := 0; p < pages; p += 100 {
		other[p*PageSize+r.IntN(PageSize)]++
		changed++
	}
	var here atomic.Bool
	n := newTestNeighbours(t, 1<<30, neighbour(other, &here))
	sink, data := fillSink(t, pages, func(cfg *SinkConfig) { cfg.Neighbours = n })
	src := newTestSource(t, mem, nil)
	ctx := testContext(t)
	looked := make(chan struct{})
	go func() {
		defer close(looked)
		for src.Stats().NamedPages == 0 && ctx.Err() == nil { // the first names wait
			runtime.Gosched()
		}
		n.Run(ctx)
	}()
	if err := sink.Run(ctx, newPipes(t, src)); err != nil {
		t.Fatal(err)
	}
	<-looked
	if !bytes.Equal(data, mem) {
		t.Error("memory differs")
	}
	if st := sink.Stats(); int(st.BulkPages) > changed || st.StorePages < pages/2 || n.Found() != st.StorePages {
		t.Errorf("%d pages differ, %d were found: %+v", changed, n.Found(), st)
	}
}
