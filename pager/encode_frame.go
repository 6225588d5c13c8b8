package pager

import (
	"encoding/binary"
	"errors"
	"time"
)

// A framer builds Pages frames. Begin it with the number of the first page,
// tell it each page that follows, and append the frame:
//
//	f.begin(first)
//	f.add(name, bytes) // or f.addZero(), or f.addDelta(...)
//	b = f.append(b, codec)
//
// The bytes are not copied before append, and must not change meanwhile:
// pages of a memory that is being written are copied by the caller, then named
// and told. Where all pages are sent as they are, head and the slices of pages
// make up the same frame, for those who write them without a copy.
//
// A framer keeps its buffers from frame to frame. The zero framer is ready;
// it is not safe for concurrent use.
type framer struct {
	first PageNum
	kinds []byte
	names []byte // 32 bytes for each page that has one, in order
	last  Hash   // the last of them
	pages [][]byte
	// Of pages that are sent as a patch: the names of the bases, the sizes of
	// the patches, and the patches.
	bases   []byte
	sizes   []byte
	patches []byte
	short   bool // the bases' names are, for as long as the framer is used

	gathered []byte // pages side by side, to be compressed
	block    []byte
	packed   codec // what block is; pageRaw if pages are sent as they are

	// Of the last frame, if compression was tried: the bytes of pages, what
	// they became, and how long it took.
	tried    codec
	in, out  int
	duration time.Duration
}

// newFramer makes a framer for who accepts that.
func newFramer(accepts Encodings) *framer { return &framer{short: accepts&EncodeShort != 0} }

// begin starts a frame at page first.
func (f *framer) begin(first PageNum) {
	f.first = first
	f.kinds, f.names, f.pages = f.kinds[:0], f.names[:0], f.pages[:0]
	f.bases, f.sizes, f.patches = f.bases[:0], f.sizes[:0], f.patches[:0]
	f.packed, f.tried = pageRaw, pageRaw
}

// addZero adds a page of zeroes.
func (f *framer) addZero() { f.kinds = append(f.kinds, pageZero) }

// add adds a page, PageSize bytes of that name.
func (f *framer) add(name Hash, page []byte) {
	if f.addName(name, pageRaw) {
		f.pages = append(f.pages, page)
	}
}

// addDelta adds a page of which the far side holds a base: as a patch of it,
// where that is short. The base is not kept.
func (f *framer) addDelta(name Hash, page []byte, baseName Hash, base []byte) {
	n := len(f.patches)
	var ok bool
	if f.patches, ok = appendPatch(f.patches, base, page); !ok {
		f.add(name, page)
		return
	}
	kind, base := byte(pageDelta), baseName[:]
	if f.short {
		kind, base = pageShort, baseName[:shortBase]
	}
	if !f.addName(name, kind) {
		f.patches = f.patches[:n]
		return
	}
	f.bases = append(f.bases, base...)
	f.sizes = binary.BigEndian.AppendUint16(f.sizes, uint16(len(f.patches)-n))
}

// addName reports false if the page is the one before it once more.
func (f *framer) addName(name Hash, kind byte) bool {
	if len(f.names) > 0 && f.last == name {
		f.kinds = append(f.kinds, pageRepeat)
		return false
	}
	f.kinds = append(f.kinds, kind)
	f.names = append(f.names, name[:]...)
	f.last = name
	return true
}

// count is how many pages the frame has, and named how many of them are
// neither zero nor repeats.
func (f *framer) count() int { return len(f.kinds) }
func (f *framer) named() int { return len(f.names) / 32 }

// pack compresses what is worth it: afterwards head, pages or block, and
// patches are final.
func (f *framer) pack(c codec) {
	if c == pageRaw || len(f.pages) == 0 || len(f.pages) >= probeFrom && !compressible(f.pages) {
		return
	}
	start := time.Now()
	all := f.pages[0]
	if len(f.pages) > 1 {
		f.gathered = f.gathered[:0]
		for _, p := range f.pages {
			f.gathered = append(f.gathered, p...)
		}
		all = f.gathered
	}
	f.block = compress(f.block[:0], c, all)
	f.tried, f.in, f.out, f.duration = c, len(all), len(f.block), time.Since(start)
	if f.out*16 > f.in*worthwhile {
		return
	}
	f.packed = c
	for i, k := range f.kinds {
		if k == pageRaw {
			f.kinds[i] = c
		}
	}
}

// appendHead appends the frame, but for the pages that are sent as they are
// and what follows them.
func (f *framer) appendHead(b []byte) []byte {
	body := len(f.bases) + len(f.sizes) + len(f.patches)
	if f.packed == pageRaw {
		body += len(f.pages) * PageSize
	} else {
		body += len(f.block)
	}
	b = appendPagesHead(b, framePages, f.first, f.kinds, f.names, body)
	b = append(b, f.bases...)
	return append(b, f.sizes...)
}

// appendTail appends what follows the pages that are sent as they are.
func (f *framer) appendTail(b []byte) []byte {
	b = append(b, f.patches...)
	if f.packed != pageRaw {
		b = append(b, f.block...)
	}
	return b
}

// append packs with codec c and appends the whole frame.
func (f *framer) append(b []byte, c codec) []byte {
	f.pack(c)
	b = f.appendHead(b)
	if f.packed == pageRaw {
		for _, p := range f.pages {
			b = append(b, p...)
		}
	}
	return f.appendTail(b)
}

// errNoBase means that a patch came whose base is not held (any more). It is no
// fault of the peer's: a store forgets.
var errNoBase = errors.New("base of a patch is not held")

// A baseFunc copies the version of page p whose name begins like that into buf,
// which is PageSize bytes, and reports whether it is held.
type baseFunc func(p PageNum, name, buf []byte) bool

// A namedPage is where the name and the bytes of a page of a frame are, both
// counted in pages; -1 for a page of zeroes. The bytes of a patch whose base is
// not held are nowhere.
type namedPage struct{ name, at int16 }

const nowhereAt = -2

// name is the name of a page of the frame.
func (fr *frame) name(p namedPage) Hash {
	if p.name < 0 {
		return ZeroHash
	}
	return Hash(fr.names[32*int(p.name):])
}

// unpack decodes a Pages frame in place: fr.data.bytes then holds all pages
// that have a name, those of one kind side by side, and at says where. The
// frame's lengths were checked when it was read. Contents are not checked: the
// caller compares each page with its name. It reports whether all bases of
// patches were held. The error wraps ErrProtocol.
func (fr *frame) unpack(base baseFunc, at *[maxRun]namedPage) (all bool, err error) {
	all = true
	d := fr.data
	raw, packed := 0, 0
	c := codec(pageRaw)
	for _, k := range fr.kinds {
		switch k {
		case pageRaw:
			raw++
		case pageS2, pageZstd:
			packed++
			c = k
		}
	}
	// Where the next page of each kind goes.
	nextRaw, nextPacked, nextDelta := 0, raw, raw+packed
	name := -1
	last := 0
	deltas := 0
	patches := d.patches
	for i, k := range fr.kinds {
		switch k {
		case pageZero:
			at[i] = namedPage{-1, -1}
			continue
		case pageRepeat:
			at[i] = namedPage{int16(name), int16(last)}
			continue
		case pageRaw:
			last, nextRaw = nextRaw, nextRaw+1
		case pageS2, pageZstd:
			last, nextPacked = nextPacked, nextPacked+1
		case pageDelta, pageShort:
			last, nextDelta = nextDelta, nextDelta+1
			p := fr.run.First + PageNum(i)
			buf := d.bytes[last*PageSize : (last+1)*PageSize]
			size := int(binary.BigEndian.Uint16(fr.sizes[2*deltas:]))
			each := 2 * len(fr.bases) / len(fr.sizes)
			if base == nil || !base(p, fr.bases[each*deltas:][:each], buf) {
				last, all = nowhereAt, false
			} else if err := applyPatch(buf, patches[:size]); err != nil {
				return false, badFrame("pages: page %d: %w", p, err)
			}
			patches = patches[size:]
			deltas++
		}
		name++
		at[i] = namedPage{int16(name), int16(last)}
	}
	if packed > 0 {
		if err := decompress(d.bytes[raw*PageSize:(raw+packed)*PageSize], c, d.block); err != nil {
			return false, badFrame("pages: %d pages from %d: %w", packed, fr.run.First, err)
		}
	}
	return all, nil
}

// verify checks that the pages of a frame, unpacked, have the names they came
// with. The error is a PageError.
func (fr *frame) verify(worker string, at *[maxRun]namedPage) error {
	var batch [hashBatch][]byte
	var pages [hashBatch]int
	var got [hashBatch]Hash
	n := 0
	for i, k := range fr.kinds {
		if k != pageZero && k != pageRepeat && at[i].at != nowhereAt {
			batch[n], pages[n] = fr.data.bytes[int(at[i].at)*PageSize:int(at[i].at+1)*PageSize], i
			n++
		}
		if n < hashBatch && i < len(fr.kinds)-1 {
			continue
		}
		hashPages(got[:n], batch[:n])
		for b, i := range pages[:n] {
			if want := fr.name(at[i]); got[b] != want {
				return &PageError{Worker: worker, Page: fr.run.First + PageNum(i), Want: want, Got: got[b], Err: ErrContent}
			}
		}
		n = 0
	}
	return nil
}
