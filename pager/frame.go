package pager

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// Every frame opens with its type and the length of what follows. Big endian:
//
//	type    uint8
//	length  uint32
//
// Type numbers are only ever added. 0x0d to 0x0f are kept for rounds that
// send pages while the worker still runs, 0x10 to 0x17 for pages asked for by
// their names.
const (
	frameHello   = 0x01
	frameWelcome = 0x02
	frameWant    = 0x03
	framePages   = 0x04
	frameZeros   = 0x05
	frameNames   = 0x06
	frameLacks   = 0x07
	frameDone    = 0x08
	frameError   = 0x09
	frameAck     = 0x0a
	frameFrozen  = 0x0b
	frameStale   = 0x0c
)

const (
	headBytes = 5

	// shortBase is how much of a name tells the versions of one page apart. What
	// a patch makes is compared with all of its own name.
	shortBase = 4

	// maxRun is the most pages in one frame: 1 MiB.
	maxRun = 256

	// maxStaleRuns is the most runs in one Stale frame.
	maxStaleRuns = 4096

	maxWorkerBytes  = 64
	maxMessageBytes = 512
)

// ErrProtocol is wrapped by the errors that mean the peer broke the rules:
// a frame that is not well formed, or one that must not come now.
var ErrProtocol = errors.New("protocol error")

func badFrame(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrProtocol}, args...)...)
}

// A Hello opens every stream, from the Sink to the Source:
//
//	type    uint8   // 0x01
//	length  uint32
//	flags   uint8   // 1 bulk stream, 2 names first, 4 accepts is there, 8 rounds, 16 base is there; others 0
//	epoch   uint64
//	pages   uint32  // of the memory, at most MaxPages
//	size    uint8   // of the worker's id, 1 to 64
//	worker  [size]byte
//	have    runs    // pages that need not be sent
//	accepts uint8   // with flag 4 only, and then not 0; unknown bits are ignored
//	base    [32]byte // with flag 16 only, and then not 0
type Hello struct {
	// Worker and Epoch say whose memory is meant.
	Worker string
	Epoch  uint64
	// Pages is the size of the memory; the Source refuses another.
	Pages int
	// Bulk is set on the stream that brings pages unasked.
	Bulk bool
	// Names asks for the names of pages ahead of their bytes, because the
	// destination may hold pages of the same content already.
	Names bool
	// Rounds asks for the memory while it is still written; see Rounds. Pages
	// is then what it may grow to.
	Rounds bool
	// Base, if not zero, is the Table.Digest of what the destination knows of
	// the memory from an earlier visit of the worker.
	Base [32]byte
	// Have lists what is there already, in order and apart.
	Have []Run
	// Accepts are the encodings that the Sink reads; it may list some that are
	// not known here.
	Accepts Encodings
}

const (
	helloBulk    = 1
	helloNames   = 2
	helloAccepts = 4
	helloRounds  = 8
	helloBase    = 16
)

// Append encodes the Hello.
func (h Hello) Append(b []byte) []byte {
	b, at := openFrame(b, frameHello)
	flags := byte(0)
	if h.Bulk {
		flags |= helloBulk
	}
	if h.Names {
		flags |= helloNames
	}
	if h.Accepts != 0 {
		flags |= helloAccepts
	}
	if h.Rounds {
		flags |= helloRounds
	}
	if h.Base != [32]byte{} {
		flags |= helloBase
	}
	b = append(b, flags)
	b = binary.BigEndian.AppendUint64(b, h.Epoch)
	b = binary.BigEndian.AppendUint32(b, uint32(h.Pages))
	b = append(b, byte(len(h.Worker)))
	b = append(b, h.Worker...)
	b = appendRuns(b, h.Have)
	if h.Accepts != 0 {
		b = append(b, byte(h.Accepts))
	}
	if h.Base != [32]byte{} {
		b = append(b, h.Base[:]...)
	}
	return closeFrame(b, at)
}

func parseHello(b []byte) (h Hello, err error) {
	const fixed = 1 + 8 + 4 + 1
	if len(b) < fixed {
		return h, badFrame("hello of %d bytes", len(b))
	}
	flags := b[0]
	if flags&^(helloBulk|helloNames|helloAccepts|helloRounds|helloBase) != 0 {
		return h, badFrame("hello with flags %#x", flags)
	}
	h.Bulk, h.Names, h.Rounds = flags&helloBulk != 0, flags&helloNames != 0, flags&helloRounds != 0
	if h.Rounds && h.Bulk {
		return h, badFrame("hello for rounds on a bulk stream")
	}
	h.Epoch = binary.BigEndian.Uint64(b[1:])
	pages := binary.BigEndian.Uint32(b[9:])
	if pages > MaxPages {
		return h, badFrame("hello for a memory of %d pages, at most %d", pages, MaxPages)
	}
	h.Pages = int(pages)
	size := int(b[13])
	b = b[fixed:]
	if size == 0 || size > maxWorkerBytes || size > len(b) {
		return h, badFrame("hello with a worker id of %d bytes", size)
	}
	h.Worker = string(b[:size])
	h.Have, b, err = parseRuns(b[size:], h.Pages)
	if err != nil {
		return h, badFrame("hello: %w", err)
	}
	if flags&helloAccepts != 0 {
		if len(b) == 0 || b[0] == 0 {
			return h, badFrame("hello without the encodings it promised")
		}
		h.Accepts, b = Encodings(b[0]), b[1:]
	}
	if flags&helloBase != 0 {
		if len(b) < len(h.Base) {
			return h, badFrame("hello: %w", errShort)
		}
		if b = b[copy(h.Base[:], b):]; h.Base == [32]byte{} {
			return h, badFrame("hello with an empty base")
		}
	}
	if len(b) != 0 {
		return h, badFrame("hello with %d bytes too many", len(b))
	}
	return h, nil
}

// ReadHello reads the Hello that opens a stream, so that the stream can be
// given to the Source it is for. It reads not a byte more. The caller sets a
// deadline on r.
func ReadHello(r io.Reader) (Hello, error) {
	var head [headBytes]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return Hello{}, fmt.Errorf("read hello: %w", err)
	}
	if head[0] != frameHello {
		return Hello{}, badFrame("frame %#x where hello was due", head[0])
	}
	body, err := readBody(r, nil, binary.BigEndian.Uint32(head[1:]), frameHello)
	if err != nil {
		return Hello{}, err
	}
	return parseHello(body)
}

// A want asks for a run of pages:
//
//	type    uint8   // 0x03
//	length  uint32  // 9
//	first   uint32
//	count   uint32  // 1 to 256, within the memory
//	flags   uint8   // 1 send even what was sent on the other stream
type want struct {
	run   Run
	again bool
}

func (w want) append(b []byte) []byte {
	b, at := openFrame(b, frameWant)
	b = binary.BigEndian.AppendUint32(b, uint32(w.run.First))
	b = binary.BigEndian.AppendUint32(b, w.run.Count)
	if w.again {
		b = append(b, 1)
	} else {
		b = append(b, 0)
	}
	return closeFrame(b, at)
}

// The kinds of a page within a frame. In Names there are only the first three and pageSame.
const (
	pageZero   = 0  // nothing follows
	pageRaw    = 1  // a name, and in Pages the bytes
	pageRepeat = 2  // as the last page with a name before it in this frame
	pageS2     = 3  // a name; part of the frame's block, which is S2
	pageZstd   = 4  // a name; part of the frame's block, which is a Zstandard frame
	pageDelta  = 5  // a name, that of another page, and the patch that makes it of that
	pageShort  = 6  // the same with the first shortBase bytes of the other's name
	pageSame   = 32 // only in Names: as in the base that the Hello told
)

// Pages brings pages. Names says which pages come, for the far side to answer
// with Lacks; it has no bytes. Zeros says that a run of any length is zero:
//
//	type    uint8   // 0x04
//	length  uint32
//	first   uint32
//	count   uint16  // 1 to 256, within the memory
//	kinds   [count]uint8    // of 3 and 4 at most one, and of 5 and 6
//	names   [32]byte for each page of kind 1, 3, 4, 5, 6
//	bases   [32]byte for each page of kind 5, [4]byte for each of kind 6
//	sizes   uint16 for each page of kind 5 or 6: of its patch, at most 1024
//	bytes   [4096]byte for each page of kind 1
//	patches for each page of kind 5 or 6; see appendPatch
//	block   the rest: all pages of kind 3 or 4, compressed together, shorter than they are
//
//	type    uint8   // 0x06
//	length  uint32
//	first, count, kinds, names  as above
//
//	type    uint8   // 0x05
//	length  uint32  // 8
//	first   uint32
//	count   uint32  // at least 1, within the memory
//
// Lacks answers Names, in any order. It may be about a part of the pages, each of
// which is answered once:
//
//	type    uint8   // 0x07
//	length  uint32
//	first   uint32
//	count   uint16
//	lacks   [(count+7)/8]uint8  // page i of the run is bit i%8 of byte i/8; others 0
//
// Ack says how many frames of rounds have been put in place on this stream,
// and Frozen (0x0b, length 0) that what follows is of the frozen memory:
//
//	type    uint8   // 0x0a
//	length  uint32  // 4
//	count   uint32  // more than the one before
//
// Stale lists pages of which the version that was sent no longer counts, but as
// what the last one is a patch of, and none will come before the freeze:
//
//	type    uint8   // 0x0c
//	length  uint32
//	runs    runs    // at most 4096
//
// Welcome (0x02) answers Hello, and Done (0x08) ends the push or, from the
// sink, the transfer. Both have length 0. Error ends the stream:
//
//	type     uint8   // 0x09
//	length   uint32
//	code     uint16  // 1 gone, 2 refused
//	message  UTF-8, at most 512 bytes
type frame struct {
	kind byte
	// run is that of want, pages, names, zeros and lacks.
	run   Run
	again bool
	count uint32 // of ack
	runs  []Run  // of stale
	// kinds, names and lacks hold until the next frame is read.
	kinds []byte
	names []byte
	bases []byte // of patches
	sizes []byte
	lacks []byte
	// data belongs to who took the frame.
	data    *pageBuffer
	hello   Hello
	code    Code
	message string
}

// A pageBuffer holds the bytes of one Pages frame and what describes them, so
// that the next frame can be read while this one is put in place.
type pageBuffer struct {
	// bytes has room for all pages with a name: first those that came as they
	// are, then, after unpack, those of the block, then those of patches.
	bytes []byte
	head  []byte
	tail  []byte
	// patches and block are the two parts of tail.
	patches, block []byte
}

func appendPagesHead(b []byte, kind byte, first PageNum, kinds, names []byte, data int) []byte {
	b = append(b, kind)
	b = binary.BigEndian.AppendUint32(b, uint32(6+len(kinds)+len(names)+data))
	b = binary.BigEndian.AppendUint32(b, uint32(first))
	b = binary.BigEndian.AppendUint16(b, uint16(len(kinds)))
	b = append(b, kinds...)
	return append(b, names...)
}

func appendZeros(b []byte, r Run) []byte {
	b, at := openFrame(b, frameZeros)
	b = binary.BigEndian.AppendUint32(b, uint32(r.First))
	b = binary.BigEndian.AppendUint32(b, r.Count)
	return closeFrame(b, at)
}

func appendLacks(b []byte, r Run, lacks []byte) []byte {
	b, at := openFrame(b, frameLacks)
	b = binary.BigEndian.AppendUint32(b, uint32(r.First))
	b = binary.BigEndian.AppendUint16(b, uint16(r.Count))
	b = append(b, lacks...)
	return closeFrame(b, at)
}

func appendStale(b []byte, runs []Run) []byte {
	b, at := openFrame(b, frameStale)
	return closeFrame(appendRuns(b, runs), at)
}

func appendAck(b []byte, count uint32) []byte {
	b, at := openFrame(b, frameAck)
	return closeFrame(binary.BigEndian.AppendUint32(b, count), at)
}

func appendEmpty(b []byte, kind byte) []byte { return append(b, kind, 0, 0, 0, 0) }

// A Code says why a stream was refused or ended by the peer.
type Code uint16

const (
	// CodeGone: the worker, in that epoch, is not held here.
	CodeGone Code = 1
	// CodeRefused: what was asked for makes no sense to the peer.
	CodeRefused Code = 2
)

func appendError(b []byte, code Code, message string) []byte {
	b, at := openFrame(b, frameError)
	b = binary.BigEndian.AppendUint16(b, uint16(code))
	b = append(b, message[:min(len(message), maxMessageBytes)]...)
	return closeFrame(b, at)
}

// Refuse answers a Hello that no Source here can serve. With CodeGone the
// Sink at the other end stops with ErrGone; with any other code it stops with
// a RemoteError.
func Refuse(w io.Writer, code Code, message string) error {
	if _, err := w.Write(appendError(nil, code, message)); err != nil {
		return fmt.Errorf("refuse stream: %w", err)
	}
	return nil
}

// A RemoteError is what the peer said before it ended the stream.
type RemoteError struct {
	Code    Code
	Message string
}

func (e *RemoteError) Error() string {
	return fmt.Sprintf("peer ended the transfer with code %d: %q", e.Code, e.Message)
}

// Unwrap makes a RemoteError with CodeGone an ErrGone.
func (e *RemoteError) Unwrap() error {
	if e.Code == CodeGone {
		return ErrGone
	}
	return nil
}

func openFrame(b []byte, kind byte) ([]byte, int) {
	return append(b, kind, 0, 0, 0, 0), len(b)
}

func closeFrame(b []byte, at int) []byte {
	binary.BigEndian.PutUint32(b[at+1:], uint32(len(b)-at-headBytes))
	return b
}

// maxBody is how long a frame may be.
func maxBody(kind byte) uint32 {
	switch kind {
	case frameHello:
		return uint32(14 + maxWorkerBytes + maxRunsBytes(MaxPages) + 1 + 32)
	case frameAck:
		return 4
	case frameStale:
		return 4 + maxStaleRuns*2*5
	case frameWant:
		return 9
	case framePages:
		return 6 + maxRun*(1+32+PageSize)
	case frameNames:
		return 6 + maxRun*(1+32)
	case frameZeros:
		return 8
	case frameLacks:
		return 6 + maxRun/8
	case frameError:
		return 2 + maxMessageBytes
	}
	return 0
}

// readBody reads length bytes into b, growing it no faster than they arrive.
func readBody(r io.Reader, b []byte, length uint32, kind byte) ([]byte, error) {
	if limit := maxBody(kind); length > limit {
		return nil, badFrame("frame %#x of %d bytes, at most %d", kind, length, limit)
	}
	b = b[:0]
	for len(b) < int(length) {
		n := len(b)
		step := min(int(length)-n, max(cap(b)-n, 64<<10))
		if cap(b)-n < step {
			b = append(b, make([]byte, step)...)
		} else {
			b = b[:n+step]
		}
		if _, err := io.ReadFull(r, b[n:n+step]); err != nil {
			return nil, fmt.Errorf("read frame %#x: %w", kind, unexpected(err))
		}
	}
	return b, nil
}

// unexpected tells the end of a stream within a frame from that between two.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// A frameReader reads frames. It allocates for a frame only what the frame's
// length justifies after it was checked, and keeps it for the next.
type frameReader struct {
	r     *bufio.Reader
	pages int    // of the memory that frames are about
	allow uint32 // bit n: frames of type n may come
	small []byte
	// buffers are taken for the bytes of Pages and put back by who used them.
	buffers chan *pageBuffer
	stop    <-chan struct{} // ends the wait for a buffer
}

func newFrameReader(r io.Reader, pages int, allow ...byte) *frameReader {
	f := &frameReader{r: bufio.NewReaderSize(r, 16<<10)}
	f.reset(pages, allow...)
	return f
}

// reset says anew what the frames are about and which may come.
func (f *frameReader) reset(pages int, allow ...byte) {
	f.pages, f.allow = pages, 0
	for _, kind := range allow {
		f.allow |= 1 << kind
	}
}

// next reads a frame. The error is io.EOF at the end of the stream, and wraps
// ErrProtocol when the frame is not one that may come.
func (f *frameReader) next() (fr frame, err error) {
	var head [headBytes]byte
	if _, err := io.ReadFull(f.r, head[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return fr, fmt.Errorf("read frame: %w", err)
		}
		return fr, err
	}
	fr.kind = head[0]
	length := binary.BigEndian.Uint32(head[1:])
	if fr.kind >= 32 || f.allow&(1<<fr.kind) == 0 {
		return fr, badFrame("frame %#x must not come here", fr.kind)
	}
	if limit := maxBody(fr.kind); length > limit {
		return fr, badFrame("frame %#x of %d bytes, at most %d", fr.kind, length, limit)
	}
	if fr.kind == framePages {
		return fr, f.readPages(&fr, int(length))
	}
	if f.small, err = readBody(f.r, f.small, length, fr.kind); err != nil {
		return fr, err
	}
	return fr, f.parse(&fr, f.small)
}

func (f *frameReader) parse(fr *frame, b []byte) (err error) {
	switch fr.kind {
	case frameStale:
		var rest []byte
		if fr.runs, rest, err = parseRuns(b, f.pages); err != nil || len(rest) > 0 || len(fr.runs) > maxStaleRuns {
			return badFrame("stale: %d runs, %d bytes too many: %v", len(fr.runs), len(rest), err)
		}
	case frameAck:
		if len(b) != 4 {
			return badFrame("ack of %d bytes", len(b))
		}
		fr.count = binary.BigEndian.Uint32(b)
	case frameWelcome, frameDone, frameFrozen:
		if len(b) != 0 {
			return badFrame("frame %#x of %d bytes", fr.kind, len(b))
		}
	case frameHello:
		fr.hello, err = parseHello(b)
		return err
	case frameWant:
		if len(b) != 9 || b[8] > 1 {
			return badFrame("want of %d bytes or with unknown flags", len(b))
		}
		fr.again = b[8] == 1
		fr.run = Run{PageNum(binary.BigEndian.Uint32(b)), binary.BigEndian.Uint32(b[4:])}
		if fr.run.Count > maxRun {
			return badFrame("want of %d pages, at most %d", fr.run.Count, maxRun)
		}
		return f.checkRun(fr)
	case frameZeros:
		if len(b) != 8 {
			return badFrame("zeros of %d bytes", len(b))
		}
		fr.run = Run{PageNum(binary.BigEndian.Uint32(b)), binary.BigEndian.Uint32(b[4:])}
		return f.checkRun(fr)
	case frameNames:
		n, err := f.parseKinds(fr, b)
		if err != nil {
			return err
		}
		if len(b) != 6+len(fr.kinds)+32*n.named() {
			return badFrame("names: %d bytes for %d names of %d pages", len(b), n.named(), len(fr.kinds))
		}
		fr.names = b[6+len(fr.kinds):]
	case frameLacks:
		if len(b) < 6 {
			return badFrame("lacks of %d bytes", len(b))
		}
		fr.run = Run{PageNum(binary.BigEndian.Uint32(b)), uint32(binary.BigEndian.Uint16(b[4:]))}
		if err := f.checkRun(fr); err != nil {
			return err
		}
		fr.lacks = b[6:]
		n := int(fr.run.Count)
		if n > maxRun || len(fr.lacks) != (n+7)/8 || n%8 != 0 && fr.lacks[n/8]>>(n%8) != 0 {
			return badFrame("lacks: %d bytes for %d pages", len(fr.lacks), n)
		}
	case frameError:
		if len(b) < 2 {
			return badFrame("error of %d bytes", len(b))
		}
		fr.code, fr.message = Code(binary.BigEndian.Uint16(b)), string(b[2:])
	}
	return nil
}

func (f *frameReader) checkRun(fr *frame) error {
	if !fr.run.within(f.pages) {
		return badFrame("frame %#x for %d pages from %d, in a memory of %d", fr.kind, fr.run.Count, fr.run.First, f.pages)
	}
	return nil
}

// parseKinds reads the part that Pages and Names share. b may hold more.
func (f *frameReader) parseKinds(fr *frame, b []byte) (n kindCount, err error) {
	if len(b) < 6 {
		return n, badFrame("frame %#x of %d bytes", fr.kind, len(b))
	}
	fr.run = Run{PageNum(binary.BigEndian.Uint32(b)), uint32(binary.BigEndian.Uint16(b[4:]))}
	if err := f.checkRun(fr); err != nil {
		return n, err
	}
	count := int(fr.run.Count)
	if count > maxRun || len(b) < 6+count {
		return n, badFrame("frame %#x of %d bytes for %d pages", fr.kind, len(b), count)
	}
	fr.kinds = b[6 : 6+count]
	most := byte(pageRepeat)
	if fr.kind == framePages {
		most = pageShort
	}
	for i, k := range fr.kinds {
		if k == pageSame && fr.kind == frameNames {
			continue
		}
		if k > most || k == pageRepeat && n.named() == 0 {
			return n, badFrame("frame %#x: page %d of the frame is of kind %d", fr.kind, i, k)
		}
		switch k {
		case pageRaw:
			n.raw++
		case pageS2, pageZstd:
			if n.packed > 0 && n.codec != k {
				return n, badFrame("pages: some of kind %d and some of kind %d", n.codec, k)
			}
			n.codec = k
			n.packed++
		case pageDelta, pageShort:
			base := len(Hash{})
			if k == pageShort {
				base = shortBase
			}
			if n.delta > 0 && n.base != base {
				return n, badFrame("pages: some of kind %d and some of kind %d", pageDelta, pageShort)
			}
			n.base = base
			n.delta++
		}
	}
	return n, nil
}

// A kindCount says how many pages of a frame are as they are, in its block,
// and patches.
type kindCount struct {
	raw, packed, delta int
	codec              codec // of the block
	base               int   // bytes of the name of what a patch is of
}

func (n kindCount) named() int { return n.raw + n.packed + n.delta }

// readPages reads a Pages frame in three parts: what describes it; the bytes
// of pages, which go straight from the stream to a buffer that the kernel
// copies from; and what has to be unpacked first.
func (f *frameReader) readPages(fr *frame, length int) error {
	if length < 6 {
		return badFrame("pages of %d bytes", length)
	}
	peek, err := f.r.Peek(6)
	if err != nil {
		return fmt.Errorf("read pages: %w", unexpected(err))
	}
	count := int(binary.BigEndian.Uint16(peek[4:]))
	if count > maxRun || 6+count > length {
		return badFrame("pages: %d pages in %d bytes", count, length)
	}
	if peek, err = f.r.Peek(6 + count); err != nil {
		return fmt.Errorf("read pages: %w", unexpected(err))
	}
	n, err := f.parseKinds(fr, peek)
	if err != nil {
		return err
	}
	names, bases := 6+count, 6+count+32*n.named()
	sizes := bases + n.base*n.delta
	head := sizes + 2*n.delta
	tail := length - head - n.raw*PageSize
	if most := n.packed*PageSize + n.delta*maxPatch; tail < 0 || tail > most {
		return badFrame("pages: %d bytes for %d pages, of which %d come as they are, %d compressed and %d as patches",
			length, count, n.raw, n.packed, n.delta)
	}

	buf, err := f.takeBuffer()
	if err != nil {
		return err
	}
	fr.data = buf
	buf.head = sized(buf.head, head)
	buf.bytes = sized(buf.bytes, n.named()*PageSize)
	buf.tail = sized(buf.tail, tail)
	for _, part := range [][]byte{buf.head, buf.bytes[:n.raw*PageSize], buf.tail} {
		if _, err = io.ReadFull(f.r, part); err != nil {
			err = fmt.Errorf("read pages: %w", unexpected(err))
			break
		}
	}
	fr.kinds, fr.names = buf.head[6:names], buf.head[names:bases]
	fr.bases, fr.sizes = buf.head[bases:sizes], buf.head[sizes:]
	if err == nil {
		err = buf.split(fr.sizes, n.packed)
	}
	if err != nil {
		f.putBuffer(fr.data)
		fr.data = nil
	}
	return err
}

// split tells the patches, whose sizes are given, from the block.
func (b *pageBuffer) split(sizes []byte, packed int) error {
	patches := 0
	for ; len(sizes) > 0; sizes = sizes[2:] {
		size := int(binary.BigEndian.Uint16(sizes))
		if size > maxPatch {
			return badFrame("pages: patch of %d bytes, at most %d", size, maxPatch)
		}
		patches += size
	}
	block := len(b.tail) - patches
	if block < 0 || packed == 0 && block != 0 || packed > 0 && (block == 0 || block >= packed*PageSize) {
		return badFrame("pages: %d bytes for patches of %d and a block of %d pages", len(b.tail), patches, packed)
	}
	b.patches, b.block = b.tail[:patches], b.tail[patches:]
	return nil
}

// sized is b with length n, in new memory if it has no room. What it holds is
// of no matter.
func sized(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, n)
	}
	return b[:n]
}

func (f *frameReader) takeBuffer() (*pageBuffer, error) {
	if f.buffers == nil {
		return new(pageBuffer), nil
	}
	select {
	case b := <-f.buffers:
		return b, nil
	case <-f.stop:
		return nil, errStopped
	}
}

// errStopped ends a reader whose frames nobody takes any more.
var errStopped = errors.New("stopped")

func (f *frameReader) putBuffer(b *pageBuffer) {
	if f.buffers != nil && b != nil {
		f.buffers <- b
	}
}

// interrupt makes reads and writes on a stream fail at once, by a deadline in
// the past where the stream has deadlines, else by closing it.
func interrupt(rw any) {
	switch s := rw.(type) {
	case interface{ SetDeadline(time.Time) error }:
		_ = s.SetDeadline(time.Unix(1, 0))
	case io.Closer:
		_ = s.Close()
	}
}
