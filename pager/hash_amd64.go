package pager

import xcpu "golang.org/x/sys/cpu"

var (
	hashVector = xcpu.X86.HasAVX2
	hashWide   = xcpu.X86.HasAVX512F
)

// chain8 and chain16 compute as many chaining values of BLAKE3, each of an
// input of blocks times 64 bytes, with the flags of each block and a counter
// for each input. They need AVX2 and AVX-512F.
//
//go:noescape
func chain8(in *[8]*byte, blocks int, counters *[8]uint32, flags *uint32, out *[8]Hash)

//go:noescape
func chain16(in *[16]*byte, blocks int, counters *[16]uint32, flags *uint32, out *[16]Hash)

// The flags of BLAKE3, and those of the blocks of a chunk, 1024 bytes; of a
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
	parentFlags = [1]uint32{flagParent}
	rootFlags   = [1]uint32{flagParent | flagRoot}

	chunkCounters = [hashLanes]uint32{0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3}
	nodeCounters  [hashLanes]uint32
)

// hashLanes is how many chaining values are computed at once, in one step or
// in two.
const hashLanes = 16

// chains computes the first count of the lanes, at least; all must have an
// input.
func chains(in *[hashLanes]*byte, count int, blocks []uint32, counters *[hashLanes]uint32, out *[hashLanes]Hash) {
	if hashWide && count > 8 {
		chain16(in, len(blocks), counters, &blocks[0], out)
		return
	}
	chain8((*[8]*byte)(in[:8]), len(blocks), (*[8]uint32)(counters[:8]), &blocks[0], (*[8]Hash)(out[:8]))
	if count > 8 {
		chain8((*[8]*byte)(in[8:]), len(blocks), (*[8]uint32)(counters[8:]), &blocks[0], (*[8]Hash)(out[8:]))
	}
}

// hashPagesVector is hashPages, with vectors.
//
// A page has four chunks and above them a tree of two nodes and the root. The
// lanes take the chunks of several pages at once, then their nodes, then their
// roots, so that all have work. The library, which is given one page at a
// time, can use but four.
func hashPagesVector(names []Hash, pages [][]byte) {
	var (
		in     [hashLanes]*byte
		chunks [hashBatch * pageChunks]Hash
		nodes  [hashBatch * 2]Hash
		roots  [hashBatch]Hash
	)
	n := len(pages)
	const at = hashLanes / pageChunks // pages at once
	for i := 0; i < n; i += at {
		count := min(at, n-i)
		for lane := range in {
			// A lane without a page does the work of the last one once more.
			page := pages[i+min(lane/pageChunks, count-1)]
			in[lane] = &page[lane%pageChunks*chunkBytes]
		}
		chains(&in, count*pageChunks, chunkFlags[:], &chunkCounters, (*[hashLanes]Hash)(chunks[i*pageChunks:]))
	}
	// The two chaining values below a node lie side by side: its only block.
	level := func(below, above []Hash, n int, flags []uint32) {
		for i := 0; i < n; i += hashLanes {
			for lane := range in {
				in[lane] = &below[2*min(i+lane, n-1)][0]
			}
			chains(&in, min(hashLanes, n-i), flags, &nodeCounters, (*[hashLanes]Hash)(above[i:]))
		}
	}
	level(chunks[:], nodes[:], 2*n, parentFlags[:])
	level(nodes[:], roots[:], n, rootFlags[:])
	copy(names, roots[:n])
}
