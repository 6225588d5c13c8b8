package pager

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
	"time"
)

// nowhere takes all that is written and says nothing.
type nowhere struct{ io.Reader }

func (nowhere) Write(b []byte) (int, error) { return len(b), nil }

// hashedRounds makes Rounds over a memory of this process, whose writes are found
// by hashes.
func hashedRounds(t *testing.T, mem []byte, workingSet []PageNum) *Rounds {
	t.Helper()
	size := int64(len(mem))
	tracker, err := NewTracker(TrackerConfig{Region: Region{Data: mem, UFFD: -1}, Size: size, Hashes: true, Log: testLog(t)})
	if err == nil {
		err = tracker.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	rounds, err := NewRounds(RoundsConfig{
		Worker: "w", Epoch: 3, Memory: mem, Size: func() int64 { return size }, Tracker: tracker, WorkingSet: workingSet, Log: testLog(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	return rounds
}

// streamOf makes a stream of rounds that goes nowhere, for a test that takes its
// steps itself.
func streamOf(r *Rounds, accepts Encodings) *roundStream {
	return &roundStream{
		Rounds: r, rw: nowhere{}, buf: make([]byte, maxRun*PageSize), accepts: accepts,
		choose: newChooser(0, 0), framer: newFramer(accepts), resend: PageSize, most: r.limit(),
	}
}

// Where writes are found by hashes, a page that is sent between two scans with
// a content that it has only then does not count as held.
func TestRoundsWrittenBack(t *testing.T) {
	const pages = 64
	r := testRand(t)
	mem := testMemory(r, pages, 0)
	was := append([]byte(nil), mem...)
	rounds := hashedRounds(t, mem, nil)
	st := streamOf(rounds, 0)
	for p := range 5 {
		mem[p*PageSize]++
	}
	st.begin()
	run, seq, what := st.pick()
	if what != planPages || run.First != 0 || run.Count < 6 {
		t.Fatalf("picked %+v, %d", run, what)
	}
	if err := st.send(t.Context(), run, seq, false); err != nil {
		t.Fatal(err)
	}
	if err := st.acknowledged(1); err != nil {
		t.Fatal(err)
	}
	copy(mem, was)
	ahead, err := rounds.Freeze(pages, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	if got := ahead.Layout.Stale; len(got) != 1 || got[0] != (Run{0, 5}) {
		t.Errorf("stale are %v, want the first 5", got)
	}
	if held := pages - ahead.unsent; held != int(run.Count)-5 {
		t.Errorf("%d pages are held of %d sent", held, run.Count)
	}
	// What is pushed later has the names of what it is.
	src := newTestSource(t, mem, func(cfg *SourceConfig) { cfg.Ahead = ahead })
	table, err := src.Keep(t.Context(), NewStore(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	for p := range PageNum(pages) {
		if h, _ := table.Get(p); h != HashPage(src.page(p)) {
			t.Errorf("page %d has the name of another content", p)
		}
	}
}

// A worker that writes as fast as the link carries ends the rounds, unless what
// it writes can go as patches of what was sent before.
func TestRoundsPatches(t *testing.T) {
	const pages = judgeFrom + 76
	for _, small := range []bool{true, false} {
		r := testRand(t)
		mem := testMemory(r, pages, 0)
		st := streamOf(hashedRounds(t, mem, nil), encodeAll)
		round := func() {
			st.begin()
			for {
				run, seq, what := st.pick()
				if what == planDone {
					break
				}
				if err := st.send(t.Context(), run, seq, false); err != nil {
					t.Fatal(err)
				}
				if err := st.acknowledged(seq); err != nil {
					t.Fatal(err)
				}
			}
			if err := st.flush(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		round()
		for p := range pages {
			page := mem[p*PageSize:][:PageSize]
			if small {
				page[100]++
				continue
			}
			for i := range page {
				page[i] = byte(r.Uint32())
			}
		}
		if err := st.look(); err != nil {
			t.Fatal(err)
		}
		if st.isClosing() == small {
			t.Errorf("small=%t: after a round in which all was written again the rounds end: %t", small, st.isClosing())
		}
		before := st.stats.bytes.Load()
		round()
		sent := st.stats.bytes.Load() - before
		if small && (st.patches < pages*3/4 || sent > pages*256) || !small && st.patches > 0 {
			t.Errorf("small=%t: the second round had %d patches of %d pages, %d bytes", small, st.patches, pages, sent)
		}
	}
}

// What the worker is known to use is pushed first, until it was sampled.
func TestRoundsWorkingSet(t *testing.T) {
	const pages = 64
	mem := testMemory(testRand(t), pages, 0)
	for _, sampled := range []bool{false, true} {
		rounds := hashedRounds(t, mem, []PageNum{9, 5, 6, pages + 1})
		want := []Run{{9, 1}, {5, 2}}
		if sampled {
			rounds.Sample()
			want = nil
		}
		ahead, err := rounds.Freeze(pages, nil, false)
		if err != nil {
			t.Fatal(err)
		}
		if got := ahead.recent(); !slices.Equal(got, want) {
			t.Errorf("sampled=%t: first go %v, want %v", sampled, got, want)
		}
	}
}

// staleTest is rounds and an intake in this process, whose stream the test carries
// itself: what is written to wire arrives when arrive is called.
type staleTest struct {
	t         testing.TB
	mem       []byte // here
	rounds    *Rounds
	st        *roundStream
	wire      bytes.Buffer
	in        *frameReader
	intake    *Intake
	delivered uint32 // frames
}

func newStaleTest(t testing.TB, r *rand.Rand, pages int) *staleTest {
	s := &staleTest{t: t, mem: testMemory(r, pages, 0)}
	s.rounds = hashedRounds(t.(*testing.T), s.mem, nil)
	s.st = streamOf(s.rounds, encodeAll)
	s.st.again = true // what is sent is remembered
	s.st.rw = &s.wire
	s.in = newFrameReader(&s.wire, pages, framePages, frameStale)
	var err error
	s.intake, err = NewIntake(IntakeConfig{
		Worker: "w", Epoch: 3, Region: Region{Data: make([]byte, len(s.mem)), UFFD: -1}, Log: testLog(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// send sends a round.
func (s *staleTest) send() {
	s.t.Helper()
	s.st.begin()
	for {
		run, seq, what := s.st.pick()
		if what != planPages {
			break
		}
		if err := s.st.send(s.t.Context(), run, seq, false); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := s.st.flush(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

// arrive gives the intake all that is on the wire, and with ack says so.
func (s *staleTest) arrive(ack bool) {
	s.t.Helper()
	for {
		fr, err := s.in.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil && fr.kind == frameStale {
			err = s.intake.forget(fr.runs)
		} else if err == nil {
			err = s.intake.receive(&fr)
		}
		if err != nil {
			s.t.Fatal(err)
		}
		s.delivered++
	}
	if ack {
		if err := s.st.acknowledged(s.delivered); err != nil {
			s.t.Fatal(err)
		}
	}
}

// write changes a few bytes of pages, which the next look finds.
func (s *staleTest) write(from, to int) {
	s.t.Helper()
	for p := from; p < to; p++ {
		s.mem[p*PageSize+p%1000]++
	}
	if err := s.st.Scan(); err != nil {
		s.t.Fatal(err)
	}
}

// What is stale at the freeze comes as patches, whatever had become of the
// version before: told to be stale, in place, or still on its way.
func TestStaleAsPatches(t *testing.T) {
	for _, lost := range []string{"", "base", "stream"} {
		t.Run("lost="+lost, func(t *testing.T) {
			const pages = 512
			s := newStaleTest(t, testRand(t), pages)
			s.send()
			s.arrive(true)
			s.write(0, 100) // told to be stale
			if err := s.st.tellStale(); err != nil {
				t.Fatal(err)
			}
			s.arrive(true)
			s.write(200, 300) // on their way
			s.send()
			s.write(250, 350) // of the first ones the last versions; some were in place
			ahead, err := s.rounds.Freeze(pages, nil, false)
			if err != nil {
				t.Fatal(err)
			}
			if n := CountPages(ahead.Layout.Stale); n != 150 {
				t.Errorf("%d pages are listed as stale, want 150", n)
			}
			sink, err := s.intake.Commit(ahead.Layout, false, SinkConfig{})
			if err != nil {
				t.Fatal(err)
			}
			if lost != "stream" {
				s.arrive(false) // late
			}
			if sink.aside.held == 0 {
				t.Fatal("nothing is kept aside")
			}
			if lost == "base" {
				sink.aside.drop(17)
			}

			src := newTestSource(t, s.mem, func(cfg *SourceConfig) { cfg.Ahead = ahead })
			dialer := newPipes(t, src)
			here, there := net.Pipe()
			me := &serving{cancel: func(error) { interrupt(there) }, done: make(chan struct{})}
			ended := make(chan error, 1)
			go func() {
				_, err := newFrameReader(there, pages, frameDone).next()
				ended <- err
			}()
			go func() {
				defer close(me.done)
				_ = src.takeOver(t.Context(), there, me, encodeAll, &s.st.versions, ended)
			}()
			link := &intakeLink{ReadWriteCloser: here, reader: newFrameReader(here, pages)}
			link.reader.buffers = make(chan *pageBuffer, bulkBuffers)
			for range bulkBuffers {
				link.reader.buffers <- new(pageBuffer)
			}
			s.intake.link = link
			close(s.intake.ended)
			if err := sink.Run(testContext(t), dialer); err != nil {
				t.Fatal(err)
			}
			<-me.done
			if !bytes.Equal(s.intake.cfg.Region.Data, s.mem) {
				t.Error("the memory differs")
			}
			if sink.aside.held > 0 {
				t.Errorf("%d pages are still kept aside", sink.aside.held)
			}
			st := src.Stats()
			if lost == "" && (st.Patches < 200 || st.Bytes > 250*256) {
				t.Errorf("%d patches of 250 pages, %d bytes: %+v", st.Patches, st.Bytes, st)
			}
		})
	}
}

// writesUntilDone counts writes, and says when the push is over.
type writesUntilDone struct {
	io.ReadCloser
	writes, bytes int
	done          chan error
}

func (w *writesUntilDone) Write(b []byte) (int, error) {
	w.writes, w.bytes = w.writes+1, w.bytes+len(b)
	if len(b) == headBytes && b[0] == frameDone {
		w.done <- nil
	}
	return len(b), nil
}

// Patches of pages that lie apart are written together: each by itself would be
// a packet.
func TestPatchesShareWrites(t *testing.T) {
	const pages = 512
	s := newStaleTest(t, testRand(t), pages)
	s.send()
	s.arrive(true)
	for p := 0; p < pages; p += 2 {
		s.mem[p*PageSize+p]++
	}
	ahead, err := s.rounds.Freeze(pages, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	src := newTestSource(t, s.mem, func(cfg *SourceConfig) { cfg.Ahead = ahead })
	rw := &writesUntilDone{done: make(chan error, 1)}
	me := &serving{cancel: func(error) {}, done: make(chan struct{})}
	if err := src.takeOver(t.Context(), rw, me, encodeAll, &s.st.versions, rw.done); err != nil {
		t.Fatal(err)
	}
	if st := src.Stats(); st.Patches < pages/2*9/10 || rw.bytes > pages/2*64 || rw.writes > rw.bytes/(bulkWrite/2)+2 {
		t.Errorf("%d patches in %d bytes took %d writes", st.Patches, rw.bytes, rw.writes)
	}
}

// A demanded page goes as a patch if its version is known to have arrived: the
// demand stream may be ahead of the one on which it is on its way.
func TestStaleDemanded(t *testing.T) {
	const pages = 64
	s := newStaleTest(t, testRand(t), pages)
	s.send()
	s.arrive(true)
	s.write(10, 12)
	if err := s.st.tellStale(); err != nil {
		t.Fatal(err)
	}
	s.arrive(true)
	s.write(20, 22)
	s.send()
	s.write(20, 21)
	ahead, err := s.rounds.Freeze(pages, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	src := newTestSource(t, s.mem, func(cfg *SourceConfig) { cfg.Ahead = ahead })
	src.sent.Store(&s.st.versions)
	for _, tc := range []struct {
		accepts Encodings
		page    PageNum
		want    byte
	}{
		{encodeAll, 10, pageShort}, {encodeAll, 11, pageShort}, {encodeAll, 20, pageRaw}, {encodeAll, 21, pageRaw},
		{encodeAll &^ EncodeShort, 10, pageDelta}, {encodeAll &^ EncodeDelta, 10, pageRaw},
	} {
		rw, err := newPipes(t, src).Demand(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := rw.Write(Hello{Worker: "w", Epoch: 3, Pages: pages, Accepts: tc.accepts}.Append(nil)); err != nil {
			t.Fatal(err)
		}
		in := newFrameReader(rw, pages, frameWelcome, framePages)
		fr, err := in.next()
		if err == nil {
			_, err = rw.Write(want{run: Run{tc.page, 1}, again: true}.append(nil))
		}
		if err == nil {
			fr, err = in.next()
		}
		if err != nil || fr.run != (Run{tc.page, 1}) || fr.kinds[0] != tc.want {
			t.Errorf("page %d: %v, of kinds %d, want %d: %v", tc.page, fr.run, fr.kinds, tc.want, err)
		}
		rw.Close()
	}
}

// The link's rate is what most of the bytes showed, not what the first few did.
func TestRoundsRate(t *testing.T) {
	st := streamOf(hashedRounds(t, testMemory(testRand(t), 16, 0), nil), 0)
	for _, sent := range []struct {
		bytes uint64
		took  time.Duration
		want  float64 // bytes a second, within a fiftieth
	}{
		{4 << 10, 40 * time.Millisecond, 100 << 10},
		{20 << 20, 2 * time.Second, 10 << 20},
		{8 << 10, 80 * time.Millisecond, 10 << 20},
		{64 << 20, 32 * time.Second, 2 << 20}, // it has got slower
		{0, 0, 2 << 20},
	} {
		st.measure(sent.took, sent.bytes)
		if got := st.Stats().Rate; got < sent.want*0.98 || got > sent.want*1.02 {
			t.Fatalf("%d bytes in %s: the rate is %.0f, want %.0f", sent.bytes, sent.took, got, sent.want)
		}
	}
}

// Where patches do, one round that brings little does not end the rounds, as what
// is left would make the worker wait; but several in a row do.
func TestRoundsPatience(t *testing.T) {
	for _, patching := range []bool{true, false} {
		const pages = 4096
		mem := testMemory(testRand(t), pages, 0)
		rounds := hashedRounds(t, mem, nil)
		st := streamOf(rounds, encodeAll)
		for p := range PageNum(pages) {
			st.there[p] = true // and all are to be sent again
			if patching {
				st.versions.put(p, Hash{1}, mem[int(p)*PageSize:][:PageSize], pages, pages)
			}
		}
		ends := 0
		for ; !st.isClosing() && ends < roundsMost; ends++ {
			st.round++
			st.end()
		}
		want := 1 + 1 // the first has none to be compared with
		if patching {
			want = 1 + roundsSlow
		}
		if ends != want {
			t.Errorf("patching=%t: the rounds ended with the %d. that brought nothing, want %d", patching, ends, want)
		}
		// A thousand patches are as little as some pages.
		st.closing, st.slow, st.round = false, 0, 1
		for p := range pages - 1000 {
			st.state[p] = roundSent
			st.todo--
		}
		if st.end(); st.isClosing() != patching {
			t.Errorf("patching=%t: with a quarter of the pages left the rounds end: %t", patching, st.isClosing())
		}
	}
}

// A worker that has to stand still until its pages are there is frozen as soon as
// what is left, and on its way, takes no longer than it may.
func TestRoundsPause(t *testing.T) {
	const pages, rate = 4096, 10 << 20
	for _, tc := range []struct {
		pause    time.Duration
		inFlight int
		want     bool
	}{
		{0, 0, false}, {799 * time.Millisecond, 0, false}, {801 * time.Millisecond, 0, true}, {801 * time.Millisecond, 1 << 20, false},
	} {
		st := streamOf(hashedRounds(t, testMemory(testRand(t), pages, 0), nil), 0)
		st.cfg.Pause, st.rate, st.inFlight = tc.pause, rate, tc.inFlight
		for p := range pages / 2 { // 8 MiB are left
			st.state[p] = roundSent
			st.todo--
		}
		if st.end(); st.isClosing() != tc.want {
			t.Errorf("with %v to stand still and %d bytes on their way the rounds end: %t", tc.pause, tc.inFlight, !tc.want)
		}
	}
}

// A round begins with the pages that were written longest ago.
func TestRoundsColdestFirst(t *testing.T) {
	const pages = 64
	rounds := hashedRounds(t, testMemory(testRand(t), pages, 0), nil)
	for _, written := range [][]Run{{{20, 2}, {40, 1}}, {{5, 3}, {40, 1}}} {
		rounds.runs = written
		rounds.note()
	}
	st := streamOf(rounds, 0)
	st.begin()
	var got []Run
	for {
		run, seq, what := st.pick()
		if what == planDone {
			break
		}
		got = append(got, run)
		if err := st.send(t.Context(), run, seq, false); err != nil {
			t.Fatal(err)
		}
		if err := st.acknowledged(seq); err != nil {
			t.Fatal(err)
		}
	}
	want := []Run{{0, 5}, {8, 12}, {22, 16}, {38, 2}, {41, 16}, {57, 7}, {20, 2}, {5, 3}, {40, 1}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// What the far side lacks of the pages named to it has yet to be sent for the first
// time: it counts neither as stale nor as written again.
func TestRoundsNamesLacking(t *testing.T) {
	const pages = 3 * maxRun
	mem := testMemory(testRand(t), pages, 0)
	rounds := hashedRounds(t, mem, nil)
	st := streamOf(rounds, encodeAll)
	st.ahead, st.offered = true, make([]bool, rounds.limit())
	st.there[maxRun+7] = true // an earlier stream has sent what it was before
	st.begin()
	var named []Run
	for {
		run, seq, what := st.pick()
		if what == planWait {
			break
		}
		if what != planNames {
			t.Fatalf("picked %+v, %d", run, what)
		}
		if err := st.send(t.Context(), run, seq, true); err != nil {
			t.Fatal(err)
		}
		named = append(named, run)
	}
	for _, run := range named {
		lacks := bytes.Repeat([]byte{0xff}, (int(run.Count)+7)/8)
		if run.First == 0 {
			lacks[0] &^= 1 // page 0 it has
		}
		if err := st.answered(run, lacks); err != nil {
			t.Fatal(err)
		}
	}
	for p, there := range st.there {
		if want := p == 0 || p == maxRun+7; there != want {
			t.Fatalf("the far side may have page %d: %v, want %v", p, there, want)
		}
	}
	if cost := st.costLocked(); cost != (pages-1)*PageSize {
		t.Errorf("what is left takes %v bytes, want those of %d pages", cost, pages-1)
	}
	ahead, err := rounds.Freeze(pages, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	if got := ahead.Layout.Stale; !slices.Equal(got, []Run{{maxRun + 7, 1}}) {
		t.Errorf("stale are %v, want page %d alone", got, maxRun+7)
	}
}

// Pages that the far side has are soon found to lie together.
func TestNamesTally(t *testing.T) {
	for _, test := range []struct {
		name string
		has  func(i int) bool
		want int // answers until it pays no more
	}{
		{"nothing", func(int) bool { return false }, namesTrial},
		{"the first pages", func(i int) bool { return i < 400 }, 2 * namesTrial},
		{"one in 32", func(i int) bool { return i%32 == 0 }, 20 * namesTrial},
	} {
		var tally namesTally
		n := 0
		for ; tally.pays() && n < 20*namesTrial; n++ {
			tally.add(test.has(n))
		}
		if n != test.want {
			t.Errorf("%s: gave up after %d answers, want %d", test.name, n, test.want)
		}
	}
}
