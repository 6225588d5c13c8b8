package pager

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Pages by name can be had from any node that has them, not only from the one
// that a worker comes from. A stream of this kind has an asker, NamedClient,
// and an answerer, ServeNamed; each ask is answered, in order, and many may be
// on their way.
//
//	NamedClient                            ServeNamed
//	WhichNamed  32 bytes a page ---------->
//	            <------------- NamedThere  a bit a page
//	GetNamed    32 bytes a page ---------->
//	            <------------- NamedPages  those that are there
//
// The frames, big endian. The first two are asks:
//
//	type    uint8      // 0x10
//	length  uint32
//	names   [32]byte, 1 to 2048 times
//
//	type    uint8      // 0x12
//	length  uint32
//	names   [32]byte, 1 to 64 times
//
//	type    uint8      // 0x11
//	length  uint32
//	count   uint16     // as asked
//	there   [(count+7)/8]uint8  // page i is bit i%8 of byte i/8; others 0
//
//	type    uint8      // 0x13
//	length  uint32
//	count   uint16     // as asked
//	kinds   [count]uint8  // 0 not there, 1 its bytes follow
//	bytes   [4096]byte for each page of kind 1
//
// Instead of an answer an Error frame may come, and ends the stream.
const (
	frameWhichNamed = 0x10
	frameNamedThere = 0x11
	frameGetNamed   = 0x12
	frameNamedPages = 0x13

	maxWhich = 2048
	// maxGet keeps an answer, 256 KiB at most, within what both ends gladly
	// keep in memory for a stream.
	maxGet = 64

	namedAbsent = 0
	namedRaw    = 1
)

// maxNamedBody is how long a frame may be.
func maxNamedBody(kind byte) uint32 {
	switch kind {
	case frameWhichNamed:
		return 32 * maxWhich
	case frameNamedThere:
		return 2 + maxWhich/8
	case frameGetNamed:
		return 32 * maxGet
	case frameNamedPages:
		return 2 + maxGet*(1+PageSize)
	case frameError:
		return 2 + maxMessageBytes
	}
	return 0
}

// readNamed reads a frame, whose body stands in buf, or in a larger buffer,
// until the next. The error is io.EOF at the end of the stream.
func readNamed(r *bufio.Reader, buf []byte) (kind byte, body []byte, err error) {
	var head [headBytes]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, buf, err
	}
	kind = head[0]
	length := binary.BigEndian.Uint32(head[1:])
	if limit := maxNamedBody(kind); length > limit {
		return 0, buf, badFrame("frame %#x of %d bytes, at most %d", kind, length, limit)
	}
	if cap(buf) < int(length) {
		buf = make([]byte, length)
	}
	buf = buf[:length]
	if _, err := io.ReadFull(r, buf); err != nil {
		return 0, buf, fmt.Errorf("read frame %#x: %w", kind, unexpected(err))
	}
	return kind, buf, nil
}

func appendNamedAsk(b []byte, kind byte, names []Hash) []byte {
	b, at := openFrame(b, kind)
	for i := range names {
		b = append(b, names[i][:]...)
	}
	return closeFrame(b, at)
}

// parseNamedAsk returns how many names an ask has.
func parseNamedAsk(kind byte, body []byte) (int, error) {
	if kind != frameWhichNamed && kind != frameGetNamed {
		return 0, badFrame("frame %#x where an ask was due", kind)
	}
	if len(body) == 0 || len(body)%32 != 0 {
		return 0, badFrame("names in %d bytes", len(body))
	}
	return len(body) / 32, nil
}

// appendThere answers which of the names are there.
func appendThere(b []byte, names int, there func(i int) bool) []byte {
	b, at := openFrame(b, frameNamedThere)
	b = binary.BigEndian.AppendUint16(b, uint16(names))
	bits := len(b)
	b = append(b, make([]byte, (names+7)/8)...)
	for i := range names {
		if there(i) {
			b[bits+i/8] |= 1 << (i % 8)
		}
	}
	return closeFrame(b, at)
}

func parseThere(body []byte, names int) (bits []byte, err error) {
	if len(body) != 2+(names+7)/8 || int(binary.BigEndian.Uint16(body)) != names {
		return nil, badFrame("%d bytes about %d names", len(body), names)
	}
	bits = body[2:]
	if names%8 != 0 && bits[names/8]>>(names%8) != 0 {
		return nil, badFrame("bits past the %d names", names)
	}
	return bits, nil
}

// appendNamedPages answers with the pages that read finds, which fills buf.
func appendNamedPages(b []byte, names int, read func(i int, buf []byte) bool) []byte {
	b, at := openFrame(b, frameNamedPages)
	b = binary.BigEndian.AppendUint16(b, uint16(names))
	kinds := len(b)
	b = append(b, make([]byte, names)...)
	for i := range names {
		page := len(b)
		b = append(b, zeroPage[:]...)
		if read(i, b[page:]) {
			b[kinds+i] = namedRaw
		} else {
			b = b[:page]
		}
	}
	return closeFrame(b, at)
}

func parseNamedPages(body []byte, names int) (kinds, pages []byte, err error) {
	if len(body) < 2+names || int(binary.BigEndian.Uint16(body)) != names {
		return nil, nil, badFrame("pages: %d bytes for %d names", len(body), names)
	}
	kinds, pages = body[2:2+names], body[2+names:]
	raw := 0
	for i, k := range kinds {
		switch k {
		case namedAbsent:
		case namedRaw:
			raw++
		default:
			return nil, nil, badFrame("pages: page %d is of kind %d", i, k)
		}
	}
	if len(pages) != raw*PageSize {
		return nil, nil, badFrame("pages: %d bytes for %d pages", len(pages), raw)
	}
	return kinds, pages, nil
}

// parseNamedError returns what the peer said before it ended the stream.
func parseNamedError(body []byte) error {
	if len(body) < 2 {
		return badFrame("error of %d bytes", len(body))
	}
	return &RemoteError{Code: Code(binary.BigEndian.Uint16(body)), Message: string(body[2:])}
}

// ErrNamedBroken is wrapped by the errors of a NamedClient whose stream has
// failed before; dial another.
var ErrNamedBroken = errors.New("stream of pages by name is broken")
