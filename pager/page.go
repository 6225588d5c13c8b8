package pager

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"sync"

	"github.com/zeebo/blake3"
)

const (
	// PageSize is the unit of naming, tracking and transfer, in bytes: one
	// sixteenth of a WebAssembly page (64 KiB; Core 1.0, "Memory Instances")
	// and the kernel's page on most machines. Kernels with larger pages are
	// served in groups.
	PageSize = 4 << 10

	// MaxPages bounds every page number and count: 4 GiB, all that a 32-bit
	// WebAssembly memory can have.
	MaxPages = 1 << 20
)

// A PageNum numbers the pages of a worker's memory from its start.
type PageNum uint32

// A Hash is the name of a page: the BLAKE3 of its PageSize bytes.
type Hash [32]byte

// ZeroHash is the name of the page whose bytes are all zero. Such pages are
// told apart wherever pages are listed and never have bytes on the wire.
var ZeroHash = blake3.Sum256(zeroPage[:])

var zeroPage [PageSize]byte

// String gives the name in hexadecimal.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// hashers keeps hashing states: one is some 9 KiB, and clearing and
// allocating it for each page would cost more than a tenth of the hashing.
var hashers = sync.Pool{New: func() any { return blake3.New() }}

// HashPage names a page. It panics unless page is PageSize bytes. It does not
// allocate and is safe for concurrent use.
func HashPage(page []byte) (h Hash) {
	if len(page) != PageSize {
		panic(fmt.Sprintf("pager: HashPage of %d bytes", len(page)))
	}
	s := hashers.Get().(*blake3.Hasher)
	hashWith(s, page, &h)
	hashers.Put(s)
	return h
}

// hashWith is HashPage for a caller with its own state and many pages.
func hashWith(s *blake3.Hasher, page []byte, h *Hash) {
	s.Reset()
	_, _ = s.Write(page) // it has no error
	s.Sum(h[:0])
}

// hashBatch is how many pages are best hashed at once.
const hashBatch = 16

// hashPages names pages, at most hashBatch and each PageSize bytes, into
// names, as many.
func hashPages(names []Hash, pages [][]byte) {
	if hashVector && len(pages) > 1 {
		hashPagesVector(names, pages)
		return
	}
	s := hashers.Get().(*blake3.Hasher)
	for i, p := range pages {
		hashWith(s, p, &names[i])
	}
	hashers.Put(s)
}

// IsZero reports whether page, at most PageSize bytes, is all zero.
func IsZero(page []byte) bool {
	return bytes.Equal(page, zeroPage[:len(page)])
}

// PagesOf is the number of pages that hold size bytes.
func PagesOf(size int64) int { return int((size + PageSize - 1) / PageSize) }
