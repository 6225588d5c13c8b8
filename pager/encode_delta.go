package pager

import (
	"encoding/binary"
	"errors"
	"math/bits"
)

// A patch says how a page differs from another, its base. It is a list of
// changes, from the start of the page to its end; what lies between them and
// after the last is as in the base:
//
//	each: skip   uvarint  // bytes that are as in the base, 0 only in the first
//	      size   uvarint  // bytes that are not, at least 1
//	      bytes  [size]byte
//
// The idea is that of QEMU's XBZRLE (docs/devel/migration), with the new bytes
// in place of their difference from the old ones, which spares a pass over the
// page and compresses as well.

const (
	// patchGap is how many equal bytes end a change. Two would pay for the
	// lengths they cost; four keep changes whole that are one word each.
	patchGap = 4

	// maxPatch is the longest patch, in bytes. Beyond a quarter of the page,
	// compression does about as well and needs no base.
	maxPatch = PageSize / 4
)

// appendPatch appends the patch that makes page out of base. It reports false,
// and leaves b as it was, if that is longer than maxPatch.
func appendPatch(b, base, page []byte) ([]byte, bool) {
	start := len(b)
	base, page = base[:PageSize], page[:PageSize]
	at := 0 // after the last change
	for {
		first := firstDifference(base, page, at)
		if first == PageSize {
			return b, true
		}
		end := first + 1
		for i := end; i < PageSize && i-end < patchGap; i++ {
			if base[i] != page[i] {
				end = i + 1
			}
		}
		b = binary.AppendUvarint(b, uint64(first-at))
		b = binary.AppendUvarint(b, uint64(end-first))
		b = append(b, page[first:end]...)
		at = end
		if len(b)-start > maxPatch {
			return b[:start], false
		}
	}
}

// firstDifference is the first index from i on at which a and b, both of
// PageSize bytes, differ, or PageSize.
func firstDifference(a, b []byte, i int) int {
	for ; i+8 <= PageSize; i += 8 {
		if x := binary.LittleEndian.Uint64(a[i:]) ^ binary.LittleEndian.Uint64(b[i:]); x != 0 {
			return i + bits.TrailingZeros64(x)/8
		}
	}
	for ; i < PageSize; i++ {
		if a[i] != b[i] {
			return i
		}
	}
	return PageSize
}

var errPatch = errors.New("patch reaches beyond its page or is not well formed")

// applyPatch makes page, PageSize bytes that hold the base, the page that the
// patch describes. After an error page holds neither.
func applyPatch(page, patch []byte) error {
	at := 0
	for first := true; len(patch) > 0; first = false {
		skip, rest, err := parseUvarint(patch)
		if err != nil {
			return errPatch
		}
		size, rest, err := parseUvarint(rest)
		if err != nil {
			return errPatch
		}
		if skip == 0 && !first || size == 0 || skip > PageSize || size > PageSize ||
			at+int(skip)+int(size) > PageSize || int(size) > len(rest) {
			return errPatch
		}
		at += int(skip)
		copy(page[at:], rest[:size])
		at += int(size)
		patch = rest[size:]
	}
	return nil
}
