package pager

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"reflect"
	"slices"
	"testing"
)

const fuzzPages = 5000

var allFrames = []byte{frameHello, frameWelcome, frameWant, framePages, frameZeros, frameNames, frameLacks, frameDone, frameError}

// encode writes a frame that was read, as whoever sent it did.
func encode(b []byte, fr *frame) []byte {
	switch fr.kind {
	case frameHello:
		return fr.hello.Append(b)
	case frameWant:
		return want{fr.run, fr.again}.append(b)
	case framePages:
		raw := fr.data.bytes[:bytes.Count(fr.kinds, []byte{pageRaw})*PageSize]
		rest := slices.Concat(fr.bases, fr.sizes, raw, fr.data.patches, fr.data.block)
		b = appendPagesHead(b, framePages, fr.run.First, fr.kinds, fr.names, len(rest))
		return append(b, rest...)
	case frameNames:
		return appendPagesHead(b, frameNames, fr.run.First, fr.kinds, fr.names, 0)
	case frameZeros:
		return appendZeros(b, fr.run)
	case frameLacks:
		return appendLacks(b, fr.run, fr.lacks)
	case frameError:
		return appendError(b, fr.code, fr.message)
	}
	return appendEmpty(b, fr.kind)
}

// sampleFramer has a frame of pages of all kinds, of which the first compress.
func sampleFramer(first PageNum, accepts Encodings) *framer {
	f := newFramer(accepts)
	f.begin(first)
	f.addZero()
	base := bytes.Repeat([]byte("meshnode"), PageSize/8)
	for i := range 3 {
		page := slices.Clone(base)
		page[0] = byte(i)
		f.add(HashPage(page), page)
		f.add(HashPage(page), page)
	}
	page := slices.Clone(base)
	copy(page[77:], "delta")
	f.addDelta(HashPage(page), page, HashPage(base), base)
	return f
}

func sampleFrames() []byte {
	var b []byte
	b = Hello{Worker: "w", Epoch: 7, Pages: fuzzPages, Bulk: true, Names: true, Have: []Run{{0, 3}, {9, 1}, {400, 4000}}, Accepts: encodeAll}.Append(b)
	b = appendEmpty(b, frameWelcome)
	b = want{Run{5, 64}, true}.append(b)
	name := HashPage(bytes.Repeat([]byte{1}, PageSize))
	b = appendPagesHead(b, framePages, 8, []byte{pageZero, pageRaw, pageRepeat}, name[:], PageSize)
	b = append(b, bytes.Repeat([]byte{1}, PageSize)...)
	for _, c := range []codec{pageRaw, pageS2, pageZstd} {
		b = sampleFramer(8, 0).append(b, c)
		b = sampleFramer(8, EncodeShort).append(b, c)
	}
	b = appendZeros(b, Run{0, fuzzPages})
	b = appendPagesHead(b, frameNames, 8, []byte{pageRaw, pageRaw}, append(name[:], name[:]...), 0)
	b = appendLacks(b, Run{3, 12}, []byte{0xff, 0x0f})
	b = appendEmpty(b, frameDone)
	return appendError(b, CodeGone, "gone")
}

func TestFrames(t *testing.T) {
	b := sampleFrames()
	in := newFrameReader(bytes.NewReader(b), fuzzPages, allFrames...)
	var again []byte
	var kinds []byte
	for {
		fr, err := in.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, fr.kind)
		again = encode(again, &fr)
	}
	if kinds = slices.Compact(kinds); !bytes.Equal(kinds, allFrames) || !bytes.Equal(again, b) {
		t.Errorf("got frames %x, want %x", kinds, allFrames)
	}
	// Cut anywhere, it ends with an error and never with a frame too many.
	for cut := range b {
		in := newFrameReader(bytes.NewReader(b[:cut]), fuzzPages, allFrames...)
		for {
			if _, err := in.next(); err != nil {
				break
			}
		}
	}
}

func TestReadHello(t *testing.T) {
	want := Hello{Worker: "worker", Epoch: 1 << 60, Pages: 16, Have: []Run{{2, 14}}}
	r := bytes.NewReader(append(want.Append(nil), "next"...))
	got, err := ReadHello(r)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, %v, want %+v", got, err, want)
	}
	if rest, _ := io.ReadAll(r); string(rest) != "next" {
		t.Errorf("left %q", rest)
	}
}

// Frames that no honest peer sends are refused with ErrProtocol.
func TestHostileFrames(t *testing.T) {
	name := make([]byte, 32)
	set := func(b []byte, at int, v ...byte) []byte {
		b = slices.Clone(b)
		copy(b[at:], v)
		return b
	}
	hello := Hello{Worker: "w", Pages: fuzzPages}.Append(nil)
	lacks := appendLacks(nil, Run{3, 12}, []byte{0xff, 0x0f})
	for what, b := range map[string][]byte{
		"unknown type":         {0x1f, 0, 0, 0, 0},
		"type beyond the mask": {0xe1, 0, 0, 0, 0},
		"huge length":          {framePages, 0xff, 0xff, 0xff, 0xff},
		"huge hello":           {frameHello, 0x7f, 0xff, 0xff, 0xff},
		"pages cut to nothing": {framePages, 0, 0, 0, 0},
		"long welcome":         {frameWelcome, 0, 0, 0, 1, 0},
		"want of none":         want{Run{5, 0}, false}.append(nil),
		"want of many":         want{Run{5, maxRun + 1}, false}.append(nil),
		"want beyond the end":  want{Run{fuzzPages - 1, 2}, false}.append(nil),
		"want that overflows":  want{Run{0xffffffff, 2}, false}.append(nil),
		"want with flags":      set(want{Run{5, 1}, true}.append(nil), 13, 2),
		"pages beyond the end": appendPagesHead(nil, framePages, fuzzPages-1, []byte{0, 0}, nil, 0),
		"no pages":             appendPagesHead(nil, framePages, 0, nil, nil, 0),
		"repeat of nothing":    appendPagesHead(nil, framePages, 0, []byte{pageZero, pageRepeat}, nil, 0),
		"unknown kind":         appendPagesHead(nil, framePages, 0, []byte{7}, name, PageSize),
		"packed names":         appendPagesHead(nil, frameNames, 0, []byte{pageS2}, name, 0),
		"two codecs":           appendPagesHead(nil, framePages, 0, []byte{pageS2, pageZstd}, append(name, name...), 100),
		"two bases":            append(appendPagesHead(nil, framePages, 0, []byte{pageDelta, pageShort}, append(name, name...), 50), make([]byte, 50)...),
		"short base missing":   append(appendPagesHead(nil, framePages, 0, []byte{pageShort}, name, 5), make([]byte, 5)...),
		"no block":             appendPagesHead(nil, framePages, 0, []byte{pageS2}, name, 0),
		"long block":           append(appendPagesHead(nil, framePages, 0, []byte{pageS2}, name, PageSize), make([]byte, PageSize)...),
		"block unasked":        append(appendPagesHead(nil, framePages, 0, []byte{pageRaw}, name, PageSize+1), make([]byte, PageSize+1)...),
		"huge patch":           append(appendPagesHead(nil, framePages, 0, []byte{pageDelta}, name, 34), append(make([]byte, 32), 0xff, 0xff)...),
		"long patch":           append(appendPagesHead(nil, framePages, 0, []byte{pageDelta}, name, 34+maxPatch), slices.Concat(make([]byte, 32), []byte{4, 1}, make([]byte, maxPatch))...),
		"patch unasked":        append(appendPagesHead(nil, framePages, 0, []byte{pageDelta}, name, 35), make([]byte, 35)...),
		"bytes missing":        appendPagesHead(nil, framePages, 0, []byte{pageRaw}, name, 0),
		"bytes too many":       appendPagesHead(nil, framePages, 0, []byte{pageZero}, nil, PageSize),
		"zeros beyond the end": appendZeros(nil, Run{1, fuzzPages}),
		"zeros that overflow":  appendZeros(nil, Run{0xfffffff0, 0x20}),
		"lacks with more bits": set(lacks, len(lacks)-1, 0x1f),
		"lacks of no bits":     appendLacks(nil, Run{3, 12}, nil),
		"hello flags":          set(hello, 5, 0x80),
		"hello too large":      set(hello, 14, 0xff),
		"hello without worker": set(hello, 18, 0),
		"hello long worker":    set(hello, 18, 200),
		"hello run count":      set(hello, len(hello)-4, 0xff, 0xff, 0xff, 0xff),
		"hello no encodings":   append(set(set(hello, 4, hello[4]+1), 5, helloAccepts), 0),
		"hello accepts cut":    set(hello, 5, helloAccepts),
		"hello runs touch":     Hello{Worker: "w", Pages: 9, Have: []Run{{0, 1}, {1, 1}}}.Append(nil),
		"hello run beyond":     Hello{Worker: "w", Pages: 9, Have: []Run{{0, 10}}}.Append(nil),
		"long message":         append([]byte{frameError, 0, 0, 3, 0}, make([]byte, 768)...),
	} {
		in := newFrameReader(bytes.NewReader(b), fuzzPages, allFrames...)
		if _, err := in.next(); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: got %v, want %v", what, err, ErrProtocol)
		}
	}
	in := newFrameReader(bytes.NewReader(appendEmpty(nil, frameDone)), 1, frameWant)
	if _, err := in.next(); !errors.Is(err, ErrProtocol) {
		t.Errorf("frame that must not come: got %v, want %v", err, ErrProtocol)
	}
}

func FuzzFrames(f *testing.F) {
	b := sampleFrames()
	for len(b) > 0 { // one by one: small inputs are mutated faster
		n := headBytes + int(binary.BigEndian.Uint32(b[1:]))
		f.Add(b[:n])
		b = b[n:]
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		in := newFrameReader(bytes.NewReader(b), fuzzPages, allFrames...)
		var again []byte
		for {
			fr, err := in.next()
			if err != nil {
				break
			}
			again = encode(again, &fr)
			if fr.kind != framePages {
				continue
			}
			var at [maxRun]namedPage
			any := func(_ PageNum, _, buf []byte) bool {
				clear(buf)
				return true
			}
			even := func(p PageNum, name, buf []byte) bool { return p%2 == 0 && any(p, name, buf) }
			for _, base := range []baseFunc{any, even} {
				if _, err := fr.unpack(base, &at); err != nil && !errors.Is(err, ErrProtocol) {
					t.Error(err)
				}
				var page *PageError
				if err := fr.verify("w", &at); err != nil && !errors.As(err, &page) {
					t.Error(err)
				}
			}
		}
		if !bytes.HasPrefix(b, again) {
			t.Errorf("got %x, want the beginning of %x", again, b)
		}
	})
}

func FuzzReadHello(f *testing.F) {
	f.Add(Hello{Worker: "w", Epoch: 7, Pages: 100, Bulk: true, Have: []Run{{1, 2}, {5, 90}}, Accepts: 0x81}.Append(nil))
	f.Add(Hello{Worker: "w", Epoch: 7, Pages: 100}.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ReadHello(bytes.NewReader(b))
		if err != nil {
			return
		}
		if err := checkRuns(h.Have, h.Pages); err != nil {
			t.Error(err)
		}
		if got := h.Append(nil); !bytes.HasPrefix(b, got) {
			t.Errorf("got %x, want %x", got, b)
		}
	})
}
