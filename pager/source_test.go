package pager

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// A peer is the far end of a stream that is served, by hand.
type peer struct {
	t    testing.TB
	conn net.Conn
	in   *frameReader
	done chan error
}

func servePeer(t testing.TB, src *Source, h Hello) *peer {
	t.Helper()
	here, there := net.Pipe()
	p := &peer{t: t, conn: here, done: make(chan error, 1)}
	p.in = newFrameReader(here, src.pages, frameWelcome, framePages, frameZeros, frameNames, frameDone, frameError)
	go func() {
		err := serveStream(context.Background(), src, there)
		there.Close()
		p.done <- err
	}()
	t.Cleanup(func() { here.Close() })
	p.write(h.Append(nil))
	return p
}

func (p *peer) write(b []byte) {
	p.t.Helper()
	_ = p.conn.SetDeadline(time.Now().Add(2 * time.Minute))
	if _, err := p.conn.Write(b); err != nil {
		p.t.Fatalf("write: %v", err)
	}
}

func (p *peer) next() frame {
	p.t.Helper()
	fr, err := p.in.next()
	if err != nil {
		p.t.Fatalf("read: %v", err)
	}
	return fr
}

func (p *peer) want(kind byte) frame {
	p.t.Helper()
	fr := p.next()
	if fr.kind != kind {
		p.t.Fatalf("got frame %#x, want %#x", fr.kind, kind)
	}
	return fr
}

// Zeroes come first and all at once, then what was written last, then the
// rest by address; what was demanded meanwhile is left out.
func TestPushOrder(t *testing.T) {
	const pages = 300
	mem := testMemory(testRand(t), pages, 0)
	for p := range pages { // no repeats
		mem[p*PageSize] = byte(p)
		mem[p*PageSize+1] = byte(p >> 8)
	}
	clear(mem[200*PageSize : 250*PageSize])
	table := NewTable(pages)
	table.Set(Run{200, 50}, Zero)
	src := newTestSource(t, mem, func(cfg *SourceConfig) {
		cfg.Table = table
		cfg.Recent = []Run{{290, 2}, {10, 5}, {0, 1}}
	})
	defer src.Close()
	d := servePeer(t, src, Hello{Worker: "w", Epoch: 3, Pages: pages})
	d.want(frameWelcome)
	d.write(want{run: Run{12, 1}}.append(nil))
	if fr := d.want(framePages); fr.run != (Run{12, 1}) {
		t.Errorf("demanded %v", fr.run)
	}

	b := servePeer(t, src, Hello{Worker: "w", Epoch: 3, Pages: pages, Bulk: true, Have: []Run{{100, 10}}})
	b.want(frameWelcome)
	if fr := b.want(frameZeros); fr.run != (Run{200, 50}) {
		t.Errorf("zeroes: got %v", fr.run)
	}
	var got []PageNum
	for {
		fr := b.next()
		if fr.kind == frameDone {
			break
		}
		for p := fr.run.First; p < fr.run.end(); p++ {
			got = append(got, p)
		}
	}
	wantOrder := []PageNum{290, 291, 10, 11, 13, 14, 0}
	if len(got) < len(wantOrder) || !slices.Equal(got[:len(wantOrder)], wantOrder) {
		t.Errorf("got %v first, want %v", got[:min(len(got), len(wantOrder))], wantOrder)
	}
	slices.Sort(got)
	var all []PageNum
	for p := range PageNum(pages) {
		if p != 12 && !(p >= 100 && p < 110) && !(p >= 200 && p < 250) {
			all = append(all, p)
		}
	}
	if !slices.Equal(got, all) {
		t.Errorf("pushed %d pages, want %d", len(got), len(all))
	}

	// The demand stream breaks before its page was read: it is pushed.
	d2 := servePeer(t, src, Hello{Worker: "w", Epoch: 3, Pages: pages, Have: []Run{{0, 12}, {13, pages - 13}}})
	d2.want(frameWelcome)
	if err := <-d.done; err == nil {
		t.Error("the replaced stream ended well")
	}
	if fr := b.want(framePages); fr.run != (Run{12, 1}) {
		t.Errorf("got %v, want the page given back", fr.run)
	}
	b.want(frameDone)
	// What was sent is sent again only when asked for in so many words.
	d2.write(want{run: Run{12, 1}}.append(nil))
	d2.write(want{run: Run{12, 1}, again: true}.append(nil))
	if fr := d2.want(framePages); fr.run != (Run{12, 1}) {
		t.Errorf("got %v", fr.run)
	}
	for _, p := range []*peer{b, d2} {
		p.write(appendEmpty(nil, frameDone))
		if err := <-p.done; err != nil {
			t.Errorf("after Done: %v", err)
		}
	}
	if st := src.Stats(); st.Unsent != 0 || st.Demands != 3 {
		t.Errorf("%+v", st)
	}
}

func TestSourceRefuses(t *testing.T) {
	const pages = 64
	mem := testMemory(testRand(t), pages, 0)
	src := newTestSource(t, mem, nil)
	good := Hello{Worker: "w", Epoch: 3, Pages: pages}
	change := func(f func(*Hello)) Hello {
		h := good
		f(&h)
		return h
	}
	for name, tc := range map[string]struct {
		hello Hello
		code  Code
		err   error
	}{
		"worker": {change(func(h *Hello) { h.Worker = "v" }), CodeGone, ErrGone},
		"epoch":  {change(func(h *Hello) { h.Epoch = 2 }), CodeGone, ErrGone},
		"pages":  {change(func(h *Hello) { h.Pages = 32 }), CodeRefused, ErrProtocol},
	} {
		p := servePeer(t, src, tc.hello)
		if fr := p.want(frameError); fr.code != tc.code {
			t.Errorf("%s: code %d, want %d", name, fr.code, tc.code)
		}
		if err := <-p.done; !errors.Is(err, tc.err) {
			t.Errorf("%s: got %v, want %v", name, err, tc.err)
		}
	}
	for name, b := range map[string][]byte{
		"pages from the sink": appendPagesHead(nil, framePages, 0, []byte{0}, nil, 0),
		"want outside":        want{run: Run{pages, 1}}.append(nil),
		"lacks unasked":       appendLacks(nil, Run{0, 8}, []byte{1}),
	} {
		h := good
		h.Bulk = name == "lacks unasked"
		p := servePeer(t, src, h)
		p.want(frameWelcome)
		go func() { _, _ = io.Copy(io.Discard, p.conn) }()
		p.write(b)
		if err := <-p.done; !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: got %v, want %v", name, err, ErrProtocol)
		}
	}
	src.Close()
	p := servePeer(t, src, good)
	if fr := p.want(frameError); fr.code != CodeGone {
		t.Errorf("closed: code %d, want %d", fr.code, CodeGone)
	}
	<-p.done
}

// Close ends streams that hang in a write, and waits for them.
func TestSourceClose(t *testing.T) {
	src := newTestSource(t, testMemory(testRand(t), 64, 0), nil)
	p := servePeer(t, src, Hello{Worker: "w", Epoch: 3, Pages: 64, Bulk: true})
	p.want(frameWelcome)
	p.want(framePages) // and nobody reads on
	src.Close()
	if err := <-p.done; !errors.Is(err, ErrGone) {
		t.Errorf("got %v, want %v", err, ErrGone)
	}
}

func TestKeep(t *testing.T) {
	const pages = 128
	mem := testMemory(testRand(t), pages, 3)
	src := newTestSource(t, mem, nil)
	defer src.Close()
	store := NewStore(4 << 20)
	table, err := src.Keep(context.Background(), store)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, PageSize)
	for p := range pages {
		h, state := table.Get(PageNum(p))
		if state == Unknown || !store.Get(h, buf) || string(buf) != string(mem[p*PageSize:(p+1)*PageSize]) {
			t.Fatalf("page %d: %v", p, state)
		}
	}
}

// fillSink brings a memory into plain bytes.
func fillSink(t testing.TB, pages int, change func(*SinkConfig)) (*Sink, []byte) {
	t.Helper()
	data := make([]byte, (pages+3)*PageSize)
	cfg := SinkConfig{Worker: "w", Epoch: 3, Region: Region{Data: data, UFFD: -1}, Size: int64(pages) * PageSize, Log: testLog(t)}
	if change != nil {
		change(&cfg)
	}
	s, err := NewSink(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s, data[:pages*PageSize]
}

// Without faults the memory is filled before the worker runs, over the same
// protocol; nobody asks on a demand stream.
func TestFill(t *testing.T) {
	r := testRand(t)
	for _, zero := range []int{0, 4, 10} {
		const pages = 700
		mem := testMemory(r, pages, zero)
		sink, data := fillSink(t, pages, nil)
		p := newPipes(t, newTestSource(t, mem, nil))
		if err := sink.Run(testContext(t), p); err != nil {
			t.Fatal(err)
		}
		if string(data) != string(mem) {
			t.Error("memory differs")
		}
		if p.dials != [2]int{0, 1} {
			t.Errorf("dialled %v", p.dials)
		}
	}
}

// A worker that comes home ships only what it changed.
func TestReturnHome(t *testing.T) {
	const pages = 4096
	r := testRand(t)
	mem := testMemory(r, pages, 0)
	store := NewStore(64 << 20)
	home := newTestSource(t, mem, nil)
	if _, err := home.Keep(context.Background(), store); err != nil {
		t.Fatal(err)
	}
	home.Close()

	changed := 0
	for p := 0; p < pages; p += 100 {
		mem[p*PageSize+r.IntN(PageSize)]++
		changed++
	}
	sink, data := fillSink(t, pages, func(cfg *SinkConfig) { cfg.Store = store })
	src := newTestSource(t, mem, nil)
	if err := sink.Run(testContext(t), newPipes(t, src)); err != nil {
		t.Fatal(err)
	}
	if string(data) != string(mem) {
		t.Error("memory differs")
	}
	st := sink.Stats()
	if int(st.BulkPages) > changed || st.StorePages+st.BulkPages < pages/2 {
		t.Errorf("%d pages changed: %+v", changed, st)
	}
	least := uint64(changed*PageSize + pages*33)
	if st.BytesIn > least*115/100 {
		t.Errorf("%d bytes, the changed pages and all names are %d", st.BytesIn, least)
	}
}

// Names ahead are given up when the far side has nothing of this memory.
func TestNamesGivenUp(t *testing.T) {
	const pages = 8192
	mem := testMemory(testRand(t), pages, 0)
	sink, data := fillSink(t, pages, func(cfg *SinkConfig) {
		cfg.Store = NewStore(1 << 20)
		cfg.Store.Put(append([]byte{1, 2, 3}, make([]byte, PageSize-3)...))
	})
	src := newTestSource(t, mem, nil)
	if err := sink.Run(testContext(t), newPipes(t, src)); err != nil {
		t.Fatal(err)
	}
	if string(data) != string(mem) {
		t.Error("memory differs")
	}
	if n := src.Stats().NamedPages; n < namesTrial || n > namesTrial+2*namesAhead {
		t.Errorf("%d names sent ahead", n)
	}
}

func TestConfigRefused(t *testing.T) {
	mem := make([]byte, 4*PageSize)
	for name, cfg := range map[string]SourceConfig{
		"worker": {Memory: mem, Log: quietLog},
		"memory": {Worker: "w", Memory: mem[1:], Log: quietLog},
		"table":  {Worker: "w", Memory: mem, Table: NewTable(3), Log: quietLog},
		"recent": {Worker: "w", Memory: mem, Recent: []Run{{3, 2}}, Log: quietLog},
		"log":    {Worker: "w", Memory: mem},
	} {
		if _, err := NewSource(cfg); err == nil {
			t.Errorf("source with a bad %s", name)
		}
	}
	region := Region{Data: mem, UFFD: -1}
	for name, cfg := range map[string]SinkConfig{
		"worker": {Region: region, Size: PageSize, Log: quietLog},
		"size":   {Worker: "w", Region: region, Size: PageSize + 1, Log: quietLog},
		"data":   {Worker: "w", Region: region, Size: 5 * PageSize, Log: quietLog},
		"table":  {Worker: "w", Region: region, Size: 4 * PageSize, Table: NewTable(3), Log: quietLog},
		"have":   {Worker: "w", Region: region, Size: 4 * PageSize, Have: []Run{{3, 2}}, Log: quietLog},
		"limit":  {Worker: "w", Region: region, Size: 4 * PageSize, PathLimit: -1, Log: quietLog},
		"log":    {Worker: "w", Region: region, Size: PageSize},
	} {
		if _, err := NewSink(cfg); err == nil {
			t.Errorf("sink with a bad %s", name)
		}
	}
	if _, err := NewTracker(TrackerConfig{Region: region, Size: 3}); err == nil {
		t.Error("tracker without a log")
	}
}

// A Run whose context ends returns, and says why.
func TestRunCancelled(t *testing.T) {
	sink, _ := fillSink(t, 64, nil)
	ctx, cancel := context.WithCancelCause(testContext(t))
	d := &stuck{cancel: func() { cancel(errTest) }}
	if err := sink.Run(ctx, d); !errors.Is(err, errTest) {
		t.Errorf("got %v, want %v", err, errTest)
	}
	d.all.Wait()
}

// stuck is a Dialer whose streams say nothing.
type stuck struct {
	cancel func()
	all    sync.WaitGroup
}

func (s *stuck) Demand(ctx context.Context) (io.ReadWriteCloser, error) { return s.Bulk(ctx) }

func (s *stuck) Bulk(context.Context) (io.ReadWriteCloser, error) {
	here, there := net.Pipe()
	s.all.Go(func() {
		if _, err := ReadHello(there); err == nil {
			s.cancel()
		}
		_, _ = io.Copy(io.Discard, there)
		there.Close()
	})
	return here, nil
}

// A Source that is connected and sends nothing counts as a broken path.
func TestStalled(t *testing.T) {
	sink, _ := fillSink(t, 64, func(cfg *SinkConfig) {
		cfg.PathLimit, cfg.StallLimit = 200*time.Millisecond, 20*time.Millisecond
	})
	d := &stuck{cancel: func() {}}
	err := sink.Run(testContext(t), d)
	var pe *PathError
	if !errors.As(err, &pe) || pe.Missing != 64 {
		t.Errorf("got %v, want a PathError with 64 pages missing", err)
	}
	d.all.Wait()
}
