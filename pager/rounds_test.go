package pager

import (
	"io"
	"slices"
	"testing"
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
		choose: newChooser(0, 0), versions: make(versions), most: r.limit(),
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
	ahead, err := rounds.Freeze(pages, nil)
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
		ahead, err := rounds.Freeze(pages, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := ahead.recent(); !slices.Equal(got, want) {
			t.Errorf("sampled=%t: first go %v, want %v", sampled, got, want)
		}
	}
}
