package pager

import (
	"testing"
)

// What was told to be stale does not count when a Peer that was asked for it
// before brings it.
func TestGatherStale(t *testing.T) {
	const pages = 256
	in, err := NewIntake(IntakeConfig{
		Worker: "w", Epoch: 1, Region: Region{Data: make([]byte, pages*PageSize), UFFD: -1}, Peers: make([]Peer, 1), Log: testLog(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	g := newGather(in.peers, pages, nil, nil)
	g.mu, g.place = &in.mu, in.bringLocked
	in.gather = g

	mem := testMemory(testRand(t), pages, 0)
	store := NewStore(2 * int64(len(mem)))
	fr := frame{kind: frameNames, run: Run{0, pages}}
	for p := range pages {
		name := store.Put(mem[p*PageSize:][:PageSize])
		fr.kinds, fr.names = append(fr.kinds, pageRaw), append(fr.names, name[:]...)
	}
	if _, later, err := in.lacking(&fr, nil, make([]byte, PageSize)); err != nil || !later {
		t.Fatalf("names: %v, a Peer is asked: %v", err, later)
	}
	_, wants, names := g.claim(t.Context(), 0, pages)
	if len(wants) != pages {
		t.Fatalf("%d of %d pages are asked for", len(wants), pages)
	}
	if err := in.forget([]Run{{0, pages / 2}}); err != nil {
		t.Fatal(err)
	}
	for i, w := range wants {
		if err := g.take(w, names[i], mem[int(w.page)*PageSize:][:PageSize]); err != nil {
			t.Fatal(err)
		}
	}
	s, err := in.commit(Layout{Pages: pages}, false, SinkConfig{}, PageSize)
	if err != nil {
		t.Fatal(err)
	}
	if s.Missing() != pages/2 {
		t.Errorf("%d pages are missing, want the %d that are stale", s.Missing(), pages/2)
	}
}

// A source that names pages one by one, or the same ones again and again, does not
// make the destination remember more than its share for each page.
func TestGatherHostileNames(t *testing.T) {
	const pages = 4096
	for name, frame := range map[string]struct{ count, step int }{
		"one by one":  {1, 1},
		"overlapping": {gatherChunk, 1},
		"all anew":    {maxRun, 0},
	} {
		t.Run(name, func(t *testing.T) {
			ps := &peers{of: make([]Peer, 1), log: testLog(t)}
			g := newGather(ps, pages, nil, nil)
			lacks := make([]byte, maxRun/8)
			for i := range lacks {
				lacks[i] = 0xff
			}
			names := make([]Hash, frame.count)
			refused := 0
			for i := range 4 * pages {
				first := PageNum(i * frame.step % (pages - maxRun))
				g.mu.Lock()
				for p := range PageNum(frame.count) {
					g.replacedLocked(first + p)
				}
				if !g.offerLocked(first, names, lacks) {
					refused++
				}
				g.mu.Unlock()
			}
			held := 0
			for _, c := range g.chunks {
				held += len(c.names)
			}
			if held != g.named || held > 2*pages || len(g.chunks) > pages/gatherPages+2*gatherChunk || len(g.at) > pages {
				t.Errorf("%d names, said to be %d, in %d chunks for %d of %d pages", held, g.named, len(g.chunks), len(g.at), pages)
			}
			if refused == 0 {
				t.Error("all of it was taken")
			}
			// What was answered is forgotten, and there is room again.
			for _, c := range g.chunks {
				g.answerLocked(nil, nil, c)
			}
			if g.named != 0 || len(g.chunks) != 0 || len(g.at) != 0 || !g.offerLocked(0, names, lacks) {
				t.Errorf("%d names in %d chunks are left when all were answered", g.named, len(g.chunks))
			}
		})
	}
}
