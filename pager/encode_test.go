package pager

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
)

// texture fills a page with content of a kind: 0 noise, 1 text, 2 words of
// which few bits are set, 3 one byte.
func texture(r *rand.Rand, kind int, page []byte) {
	text := "the page is named by its content; "
	at, b := r.IntN(len(text)), byte(1+r.IntN(255))
	for i := range page {
		switch kind {
		case 0:
			page[i] = byte(r.Uint32())
		case 1:
			page[i] = text[(at+i)%len(text)]
		case 2:
			if i%8 < 2 {
				page[i] = byte(r.Uint32())
			}
		case 3:
			page[i] = b
		}
	}
	binary.LittleEndian.PutUint64(page, r.Uint64()|1) // not zero, and not repeated
}

// texturedMemory is a memory of runs of textures.
func texturedMemory(r *rand.Rand, pages int, kinds ...int) []byte {
	mem := make([]byte, pages*PageSize)
	kind := 0
	for p := range pages {
		if p%13 == 0 {
			kind = kinds[r.IntN(len(kinds))]
		}
		texture(r, kind, mem[p*PageSize:(p+1)*PageSize])
	}
	return mem
}

// scribble changes a page in up to n places.
func scribble(r *rand.Rand, page []byte, n int) {
	for range r.IntN(n + 1) {
		at := r.IntN(PageSize)
		for i := range page[at:min(PageSize, at+1+r.IntN(12))] {
			page[at+i] = byte(r.Uint32())
		}
	}
}

func TestPatch(t *testing.T) {
	r := testRand(t)
	base, page := make([]byte, PageSize), make([]byte, PageSize)
	short := 0
	for range 2000 {
		texture(r, r.IntN(4), base)
		copy(page, base)
		scribble(r, page, 1<<r.IntN(9))
		patch, ok := appendPatch([]byte("kept"), base, page)
		if string(patch[:4]) != "kept" {
			t.Fatal("what was before the patch has changed")
		}
		patch = patch[4:]
		if !ok {
			if len(patch) > 0 {
				t.Fatal("part of a patch that is too long was left")
			}
			continue
		}
		short++
		got := bytes.Clone(base)
		if err := applyPatch(got, patch); err != nil || !bytes.Equal(got, page) {
			t.Fatalf("%v, or another page, from a patch of %d bytes", err, len(patch))
		}
		changed := 0
		for i := range page {
			if page[i] != base[i] {
				changed++
			}
		}
		if len(patch) > maxPatch || len(patch) > 5*changed {
			t.Errorf("patch of %d bytes for %d changed", len(patch), changed)
		}
	}
	if short < 1000 {
		t.Errorf("%d of 2000 pages had a patch", short)
	}
	if patch, ok := appendPatch(nil, page, page); !ok || len(patch) > 0 {
		t.Errorf("patch of nothing: %x", patch)
	}
}

func TestHostilePatch(t *testing.T) {
	for name, patch := range map[string][]byte{
		"cut in a number":     {0x80},
		"no size":             {5},
		"no bytes":            {5, 1},
		"nothing changed":     {5, 0},
		"changes touch":       {5, 1, 'x', 0, 1, 'y'},
		"skip beyond":         {0x81, 0x20, 1, 'x'},
		"beyond the page":     {0xff, 0x1f, 2, 'x', 'y'},
		"second beyond":       {0xff, 0x1f, 1, 'x', 1, 1, 'y'},
		"overflow":            binary.AppendUvarint(binary.AppendUvarint(nil, 1<<63), 1<<63),
		"number with ballast": {0x85, 0x00, 1, 'x'},
	} {
		if err := applyPatch(make([]byte, PageSize), patch); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// What applyPatch takes says the same as what appendPatch makes of it.
func FuzzPatch(f *testing.F) {
	f.Add([]byte{0, 1, 'x', 9, 3, 'a', 'b', 'c'})
	f.Add([]byte{0xff, 0x1f, 1, 'x'})
	f.Fuzz(func(t *testing.T, patch []byte) {
		base := bytes.Repeat([]byte("base"), PageSize/4)
		page := bytes.Clone(base)
		if applyPatch(page, patch) != nil {
			return
		}
		again, ok := appendPatch(nil, base, page)
		if !ok {
			return
		}
		got := bytes.Clone(base)
		if err := applyPatch(got, again); err != nil || !bytes.Equal(got, page) {
			t.Errorf("%v, or another page, from %x", err, again)
		}
	})
}

func FuzzDecompress(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	pages := texturedMemory(r, 3, 1, 2)
	for _, c := range []codec{pageS2, pageZstd} {
		f.Add(c == pageZstd, uint8(3), compress(nil, c, pages))
	}
	// A Zstandard frame that claims 4 GiB.
	f.Add(true, uint8(1), []byte{0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0})
	f.Fuzz(func(t *testing.T, zstd bool, count uint8, block []byte) {
		c := codec(pageS2)
		if zstd {
			c = pageZstd
		}
		n := int(count) * PageSize
		buf := make([]byte, n+64)
		if decompress(buf[:n], c, block) != nil {
			return
		}
		if !bytes.Equal(buf[n:], make([]byte, 64)) {
			t.Error("written beyond the pages")
		}
		again := make([]byte, n)
		if err := decompress(again, c, compress(nil, c, buf[:n])); err != nil || !bytes.Equal(again, buf[:n]) {
			t.Errorf("%v, or other pages, the second time", err)
		}
	})
}

// Frames of all kinds of pages arrive as they were sent, whether they are
// appended whole or written in parts, and whatever was in the buffers before.
func TestFramer(t *testing.T) {
	r := testRand(t)
	var f framer
	in := newFrameReader(nil, MaxPages)
	in.buffers = make(chan *pageBuffer, 1)
	in.buffers <- new(pageBuffer)
	in.allow = 1 << framePages
	packed, deltas := 0, 0
	for range 120 {
		first, count := PageNum(r.IntN(1000)), 1+r.IntN(maxRun)
		if r.IntN(2) == 0 {
			count = 1 + r.IntN(5)
		}
		mem := texturedMemory(r, count, r.IntN(4), 1+r.IntN(3))
		bases := make(map[string][]byte)
		f.short = r.IntN(2) == 0
		f.begin(first)
		for p := range count {
			page := mem[p*PageSize : (p+1)*PageSize]
			switch r.IntN(6) {
			case 0:
				clear(page)
				f.addZero()
				continue
			case 1:
				if p > 0 {
					copy(page, mem[(p-1)*PageSize:])
				}
			case 2, 3:
				base := bytes.Clone(page)
				scribble(r, page, 40)
				name := HashPage(base)
				bases[string(name[:])], bases[string(name[:shortBase])] = base, base
				f.addDelta(HashPage(page), page, name, base)
				continue
			}
			if IsZero(page) {
				f.addZero()
				continue
			}
			f.add(HashPage(page), page)
		}
		c := []codec{pageRaw, pageS2, pageZstd}[r.IntN(3)]
		var b []byte
		if r.IntN(2) == 0 {
			b = f.append([]byte("x"), c)[1:]
		} else {
			f.pack(c)
			b = f.appendHead(nil)
			if f.packed == pageRaw {
				b = append(b, bytes.Join(f.pages, nil)...)
			}
			b = f.appendTail(b)
		}
		if f.packed != pageRaw {
			packed++
		}
		deltas += len(f.sizes) / 2

		in.r.Reset(bytes.NewReader(b))
		fr, err := in.next()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := in.r.ReadByte(); err != io.EOF {
			t.Fatal("bytes too many")
		}
		if fr.run != (Run{first, uint32(count)}) {
			t.Fatalf("got pages %v, want %d from %d", fr.run, count, first)
		}
		var at [maxRun]namedPage
		all, err := fr.unpack(func(p PageNum, name, buf []byte) bool {
			return copy(buf, bases[string(name)]) == PageSize
		}, &at)
		if err != nil || !all {
			t.Fatal(all, err)
		}
		for i := range count {
			want, got := mem[i*PageSize:(i+1)*PageSize], zeroPage[:]
			if at[i].at >= 0 {
				got = fr.data.bytes[int(at[i].at)*PageSize:][:PageSize]
			}
			if !bytes.Equal(got, want) || fr.name(at[i]) != HashPage(want) {
				t.Fatalf("page %d of the frame, of kind %d, differs", i, fr.kinds[i])
			}
		}
		if deltas > 0 && len(fr.bases) > 0 {
			// The other pages of the frame are none the worse for it.
			all, err := fr.unpack(func(PageNum, []byte, []byte) bool { return false }, &at)
			if all || err != nil || fr.verify("w", &at) != nil {
				t.Errorf("without a base: %t, %v", all, err)
			}
			for i, k := range fr.kinds {
				if (k == pageDelta || k == pageShort) != (at[i].at == nowhereAt) && k != pageRepeat {
					t.Errorf("without a base: page %d, of kind %d, is at %d", i, k, at[i].at)
				}
			}
		}
		in.putBuffer(fr.data)
	}
	if packed == 0 || deltas == 0 {
		t.Errorf("%d frames packed, %d patches", packed, deltas)
	}
}

// On a link that is known to be slow, pages that compress are compressed; what
// does not compress takes no more than it did; and who asks for plain pages
// gets them. How many are compressed depends on measurements, here as ever.
func TestEncodedTransfer(t *testing.T) {
	const pages = 400
	r := testRand(t)
	for name, tc := range map[string]struct {
		kinds  []int
		plain  bool
		packed bool
	}{
		"text":  {[]int{1, 2}, false, true},
		"noise": {[]int{0}, false, false},
		"plain": {[]int{1, 2}, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			mem := texturedMemory(r, pages, tc.kinds...)
			sink, data := fillSink(t, pages, func(cfg *SinkConfig) { cfg.Plain = tc.plain })
			src := newTestSource(t, mem, func(cfg *SourceConfig) {
				cfg.Share = NewBudget(8<<20).Share("sink", 1)
			})
			if err := sink.Run(testContext(t), newPipes(t, src)); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(data, mem) {
				t.Error("memory differs")
			}
			st := src.Stats()
			if got := float64(st.Bytes) / float64(len(mem)); got > 1.02 {
				t.Errorf("%.2f of the memory's bytes were sent: %+v", got, st)
			}
			if (st.PackedPages > 0) != tc.packed {
				t.Errorf("%d pages were sent compressed", st.PackedPages)
			}
		})
	}
}

// A block that does not decode, or whose pages have other names, ends the
// transfer.
func TestCorruptBlock(t *testing.T) {
	r := testRand(t)
	mem := texturedMemory(r, 64, 1)
	for name, tc := range map[string]struct {
		spoil func(f *framer)
		err   error
	}{
		"name":  {func(f *framer) { f.names[40]++ }, ErrContent},
		"block": {func(f *framer) { clear(f.block[:4]) }, ErrProtocol},
	} {
		var f framer
		f.begin(0)
		for p := range 64 {
			page := mem[p*PageSize : (p+1)*PageSize]
			f.add(HashPage(page), page)
		}
		f.pack(pageZstd)
		tc.spoil(&f)
		sink, _ := fillSink(t, 64, nil)
		d := &scripted{frames: f.appendTail(f.appendHead(appendEmpty(nil, frameWelcome)))}
		if err := sink.Run(testContext(t), d); !errors.Is(err, tc.err) {
			t.Errorf("%s: got %v, want %v", name, err, tc.err)
		}
		d.all.Wait()
	}
}

// A frozen memory comes in no patches: one is the Source's fault, and nothing waits
// for the next.
func TestPatchNotAskedFor(t *testing.T) {
	mem := texturedMemory(testRand(t), 1, 0)
	was := bytes.Clone(mem)
	mem[7]++
	var f framer
	f.begin(0)
	f.addDelta(HashPage(mem), mem, HashPage(was), was)
	sink, _ := fillSink(t, 1, nil)
	d := &scripted{frames: f.append(appendEmpty(nil, frameWelcome), pageRaw)}
	if err := sink.Run(testContext(t), d); !errors.Is(err, ErrProtocol) {
		t.Errorf("got %v, want %v", err, ErrProtocol)
	}
	d.all.Wait()
}

// scripted is a Dialer whose bulk streams bring what was written beforehand.
type scripted struct {
	stuck
	frames []byte
}

func (s *scripted) Bulk(context.Context) (io.ReadWriteCloser, error) {
	here, there := net.Pipe()
	var write sync.Once
	s.all.Go(func() {
		if _, err := ReadHello(there); err == nil {
			write.Do(func() { _, _ = there.Write(s.frames) })
		}
		_, _ = io.Copy(io.Discard, there)
		there.Close()
	})
	return here, nil
}

// Demanded pages are compressed once the push found the link slow, if the far
// side reads that.
func TestEncodedDemand(t *testing.T) {
	r := testRand(t)
	mem := texturedMemory(r, 64, 1)
	src := newTestSource(t, mem, nil)
	defer src.Close()
	for _, tc := range []struct {
		slow    bool
		accepts Encodings
		want    byte
	}{
		{false, encodeAll, pageRaw},
		{true, EncodeZstd | 0x80, pageRaw},
		{true, encodeAll, pageS2},
	} {
		src.slow.Store(tc.slow)
		p := servePeer(t, src, Hello{Worker: "w", Epoch: 3, Pages: 64, Accepts: tc.accepts})
		p.want(frameWelcome)
		p.write(want{run: Run{7, 1}}.append(nil))
		fr := p.want(framePages)
		if fr.run != (Run{7, 1}) || fr.kinds[0] != tc.want {
			t.Errorf("%+v: got page %d of kind %d", tc, fr.run.First, fr.kinds[0])
		}
		p.write(appendEmpty(nil, frameDone))
		<-p.done
	}
}

// A Hello of before there were encodings still parses, and asks for none.
func TestHelloWithoutEncodings(t *testing.T) {
	old := []byte{0x01, 0, 0, 0, 21, 1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 9, 1, 'w', 0, 0, 0, 1, 2, 3}
	h, err := ReadHello(bytes.NewReader(old))
	if err != nil || h.Accepts != 0 || !h.Bulk || len(h.Have) != 1 || h.Have[0] != (Run{2, 3}) {
		t.Errorf("got %+v, %v", h, err)
	}
	if got := h.Append(nil); !bytes.Equal(got, old) {
		t.Errorf("got %x, want %x", got, old)
	}
}
