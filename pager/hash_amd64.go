package pager

import xcpu "golang.org/x/sys/cpu"

var hashVector = xcpu.X86.HasAVX2

// chain8 computes eight chaining values of BLAKE3, each of an input of blocks
// times 64 bytes, with the flags of each block and one counter for each
// input. It needs AVX2.
//
//go:noescape
func chain8(in *[8]*byte, blocks int, counters *[8]uint32, flags *uint32, out *[8]Hash)

// The flags of BLAKE3 and those of the blocks of a chunk, of 1024 bytes; of a
// node; and of the root.
const (
	flagChunkStart = 1 << 0
	flagChunkEnd   = 1 << 1
	flagParent     = 1 << 2
	flagRoot       = 1 << 3

	chunkBytes  = 1024
	chunkBlocks = 16
	pageChunks  = PageSize / chunkBytes
)

var (
	chunkFlags  = [chunkBlocks]uint32{0: flagChunkStart, chunkBlocks - 1: flagChunkEnd}
	parentFlags = uint32(flagParent)
	rootFlags   = uint32(flagParent | flagRoot)

	chunkCounters = [8]uint32{0, 1, 2, 3, 0, 1, 2, 3}
	nodeCounters  [8]uint32
)

// hashPagesVector is hashPages for at most hashBatch pages. A page has four
// chunks, so the eight lanes take two pages; a page's tree above them is two
// nodes and the root, and the lanes take those of several pages.
//
// The library hashes one page at a time and leaves half of the lanes empty;
// this takes about half of its time a page.
func hashPagesVector(names []Hash, pages [][]byte) {
	// Lanes without a page of their own do the last page's work once more.
	const lanes = 8
	var (
		in     [lanes]*byte
		chunks [hashBatch * pageChunks]Hash
		nodes  [hashBatch * 2]Hash
		roots  [hashBatch]Hash
	)
	n := len(pages)
	for i := 0; i < n; i += 2 {
		for half, page := range [2][]byte{pages[i], pages[min(i+1, n-1)]} {
			for c := range pageChunks {
				in[half*pageChunks+c] = &page[c*chunkBytes]
			}
		}
		chain8(&in, chunkBlocks, &chunkCounters, &chunkFlags[0], (*[lanes]Hash)(chunks[i*pageChunks:]))
	}
	// The two chaining values below a node lie side by side.
	level := func(below, above []Hash, count int, flags *uint32) {
		for i := 0; i < count; i += lanes {
			for lane := range lanes {
				in[lane] = &below[2*min(i+lane, count-1)][0]
			}
			chain8(&in, 1, &nodeCounters, flags, (*[lanes]Hash)(above[i:]))
		}
	}
	level(chunks[:], nodes[:], 2*n, &parentFlags)
	level(nodes[:], roots[:], n, &rootFlags)
	copy(names, roots[:n])
}
