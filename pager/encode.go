package pager

import (
	"errors"
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

// Encodings is a set of ways to write pages in fewer bytes. A Sink says in its
// Hello which ones it reads; a Source uses those that it knows as well, where
// they save time.
type Encodings uint8

const (
	// EncodeS2 compresses the pages of a frame as one block of S2
	// (github.com/klauspost/compress/s2, a superset of Snappy's block format).
	EncodeS2 Encodings = 1 << iota
	// EncodeZstd compresses them as one Zstandard frame (RFC 8878).
	EncodeZstd
	// EncodeDelta writes what differs from a page that the far side holds.
	EncodeDelta
	// EncodeShort is for EncodeDelta: the first 4 bytes of the other page's name
	// will do.
	EncodeShort

	encodeAll = EncodeS2 | EncodeZstd | EncodeDelta | EncodeShort
)

// A codec is the way in which a frame's pages are compressed: the kind of its
// pages, pageRaw for not at all.
type codec = byte

// What was measured, on memories of the example apps (2 cores, one used):
//
//	block   S2            S2 better     zstd fastest  zstd default
//	4 KiB   0.30 510 MB/s 0.29 318      0.24 141      0.22  97   physics
//	64 KiB  0.29 620      0.27 257      0.22 168      0.20 123
//	256 KiB 0.28 535      0.26 261      0.21 169      0.21 122
//	64 KiB  0.40 830      0.40 275      0.36 202      0.36 101   kvstore, random values
//	64 KiB  0.17 810      0.16 365      0.10 242      0.10 190   kvstore, JSON
//
// So the pages of a frame are compressed together, which helps up to some
// 64 KiB, and the slower level of either codec is not worth its time.

// compress appends the block of pages, whole ones, to b.
func compress(b []byte, c codec, pages []byte) []byte {
	switch c {
	case pageS2:
		n := len(b)
		if most := s2.MaxEncodedLen(len(pages)); cap(b)-n < most {
			b = append(b, make([]byte, most)...)
		}
		return b[:n+len(s2.Encode(b[n:cap(b)], pages))]
	case pageZstd:
		return zstdEncoder().EncodeAll(pages, b)
	}
	panic("pager: no such codec")
}

// errBlock means just that: what exactly is wrong with a block helps nobody.
var errBlock = errors.New("block does not decode to its pages")

// decompress decodes a block, which must fill pages exactly. It writes nowhere
// else and allocates no more than the tables of the codec.
func decompress(pages []byte, c codec, block []byte) error {
	switch c {
	case pageS2:
		if n, err := s2.DecodedLen(block); err != nil || n != len(pages) {
			return errBlock
		}
		if _, err := s2.Decode(pages, block); err != nil {
			return errBlock
		}
		return nil
	case pageZstd:
		// The capacity is the limit; see zstdDecoder.
		out, err := zstdDecoder().DecodeAll(block, pages[:0:len(pages)])
		if err != nil || len(out) != len(pages) {
			return errBlock
		}
		return nil
	}
	panic("pager: no such codec")
}

// zstdEncoder and zstdDecoder are shared: each has state for as many calls at
// once as there are processors, made when first needed.
var (
	zstdEncoder = sync.OnceValue(func() *zstd.Encoder {
		e, err := zstd.NewWriter(nil,
			zstd.WithEncoderLevel(zstd.SpeedFastest),
			zstd.WithWindowSize(bulkRun*PageSize),
			zstd.WithSingleSegment(true),
			zstd.WithEncoderCRC(false), // pages have names
			zstd.WithLowerEncoderMem(true))
		if err != nil {
			panic(err) // the options are constants
		}
		return e
	})
	zstdDecoder = sync.OnceValue(func() *zstd.Decoder {
		d, err := zstd.NewReader(nil,
			zstd.WithDecoderConcurrency(0),
			zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxRun*PageSize),
			zstd.WithDecoderMaxMemory(maxRun*PageSize),
			zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			panic(err)
		}
		return d
	})
)

// probeFrom is how many pages are worth a look at two of them first.
const probeFrom = 8

// compressible looks at two of the pages and reports whether compressing all
// of them is likely to pay. It takes some microseconds, a hundredth of what
// compressing a bulk frame takes.
func compressible(pages [][]byte) bool {
	n := len(pages)
	size := 0
	for _, i := range [2]int{n / 4, 3 * n / 4} {
		est := s2.EstimateBlockSize(pages[i])
		if est < 0 { // it does not compress
			est = PageSize
		}
		size += est
	}
	return size <= 2*PageSize*worthwhile/16
}

// worthwhile is how large a block may be, in sixteenths of its pages, to be
// sent in their place.
const worthwhile = 14
