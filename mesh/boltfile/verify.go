package boltfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// The format, in the byte order of the machine that wrote it (bbolt v1.5,
// internal/common): a page is one or more pages of the file, with a header of 16
// bytes (its number, its kind, how many elements, how many more pages).
//
//	pages 0, 1  what the last and the last but one transaction left: root and
//	            sequence of the root bucket, page of the free list, number of pages
//	branch      elements of 16 bytes: where key begins, its length, page
//	leaf        elements of 16 bytes: kind, where key begins, its length, value's
//	free list   numbers of pages, of 8 bytes
//
// The value follows its key. The value of a bucket is its root and sequence; if
// the root is 0 its one leaf follows, with a header as a page has it.
const (
	headerSize  = 16
	elementSize = 16
	bucketSize  = 16

	kindBranch = 1
	kindLeaf   = 2
	kindFree   = 16

	elementBucket = 1

	noFreeList = 1<<64 - 1
	longFree   = 1<<16 - 1 // the count is the first number of the list

	// maxDepth bounds branches below branches and buckets in buckets.
	maxDepth = 64
)

var order = binary.NativeEndian

// A walk is one pass over a file.
type walk struct {
	file  io.ReaderAt
	page  int64  // bytes
	pages uint64 // beyond which nothing is in use
	used  map[uint64]struct{}
}

// keys are those a page may have: from low on, and below high unless that is nil.
type keys struct{ low, high []byte }

// verify reports what is wrong with the database of which the pages have that many
// bytes, and of which the page that counts, itself known to be good, is at meta.
// It needs memory for the largest pages on the way from the root to a leaf.
func verify(file io.ReaderAt, page, meta int64) error {
	if page < 1024 { // bbolt's least; below headerSize no page could be read
		return fmt.Errorf("its pages have %d bytes", page)
	}
	b := make([]byte, headerSize+48)
	if err := readFull(file, b, meta); err != nil {
		return err
	}
	root, free, pages := order.Uint64(b[headerSize+16:]), order.Uint64(b[headerSize+32:]), order.Uint64(b[headerSize+40:])
	if pages > math.MaxInt64/uint64(page) {
		return fmt.Errorf("it has %d pages", pages)
	}
	// The last byte first: no memory for what the file does not have.
	if err := readFull(file, b[:1], int64(pages)*page-1); err != nil {
		return err
	}
	w := walk{file: file, page: page, pages: pages, used: make(map[uint64]struct{})}
	if err := w.tree(root, keys{}, 0); err != nil {
		return err
	}
	if free == noFreeList {
		return nil
	}
	return w.freeList(free)
}

// readFull reads all of b, in which a file that ends before is an error.
func readFull(file io.ReaderAt, b []byte, at int64) error {
	if n, err := file.ReadAt(b, at); n < len(b) {
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("it ends at byte %d, and should have %d more", at+int64(n), len(b)-n)
		}
		return err
	}
	return nil
}

// use takes page id, which nothing else may have.
func (w *walk) use(id uint64) error {
	if id < 2 || id >= w.pages {
		return fmt.Errorf("it speaks of page %d and has %d", id, w.pages)
	}
	if _, ok := w.used[id]; ok {
		return fmt.Errorf("page %d is in use twice", id)
	}
	w.used[id] = struct{}{}
	return nil
}

// read returns page id with its header and all that belongs to it.
func (w *walk) read(id uint64) ([]byte, error) {
	if err := w.use(id); err != nil {
		return nil, err
	}
	at := int64(id) * w.page
	var header [headerSize]byte
	if err := readFull(w.file, header[:], at); err != nil {
		return nil, err
	}
	if n := order.Uint64(header[:]); n != id {
		return nil, fmt.Errorf("page %d says it is %d", id, n)
	}
	more := uint64(order.Uint32(header[12:]))
	if more >= w.pages-id {
		return nil, fmt.Errorf("page %d goes on beyond page %d", id, w.pages)
	}
	for i := range more {
		if err := w.use(id + 1 + i); err != nil {
			return nil, err
		}
	}
	b := make([]byte, (1+int64(more))*w.page)
	return b, readFull(w.file, b, at)
}

func (w *walk) tree(id uint64, ks keys, depth int) error {
	b, err := w.read(id)
	if err != nil {
		return err
	}
	if err := w.elements(b, ks, depth); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

// An element of a branch or leaf.
type element struct {
	key    []byte
	branch bool
	page   uint64 // of a branch's
	flags  uint32 // of a leaf's
	value  []byte // of a leaf's
}

// parse returns the elements of the branch or leaf b; they point into it.
func parse(b []byte) ([]element, error) {
	kind, es := order.Uint16(b[8:]), make([]element, order.Uint16(b[10:]))
	switch {
	case kind != kindBranch && kind != kindLeaf:
		return nil, fmt.Errorf("it is of kind %d", kind)
	case kind == kindBranch && len(es) == 0:
		return nil, errors.New("it is a branch to nothing")
	case headerSize+len(es)*elementSize > len(b):
		return nil, fmt.Errorf("it cannot have %d elements", len(es))
	}
	for i := range es {
		from := b[headerSize+i*elementSize:]
		var at, size, vsize uint64
		if kind == kindBranch {
			es[i].branch, es[i].page = true, order.Uint64(from[8:])
			at, size = uint64(order.Uint32(from)), uint64(order.Uint32(from[4:]))
		} else {
			es[i].flags = order.Uint32(from)
			at, size, vsize = uint64(order.Uint32(from[4:])), uint64(order.Uint32(from[8:])), uint64(order.Uint32(from[12:]))
		}
		if at+size+vsize > uint64(len(from)) {
			return nil, fmt.Errorf("element %d is not all in it", i)
		}
		es[i].key, es[i].value = from[at:at+size], from[at+size:at+size+vsize]
	}
	return es, nil
}

// elements checks the branch or leaf b, and all that is below.
func (w *walk) elements(b []byte, ks keys, depth int) error {
	if depth > maxDepth {
		return errors.New("it is nested too deeply")
	}
	es, err := parse(b)
	if err != nil {
		return err
	}
	for i, e := range es {
		below := keys{low: e.key, high: ks.high}
		if i+1 < len(es) {
			below.high = es[i+1].key
		}
		if bytes.Compare(e.key, ks.low) < 0 || below.high != nil && bytes.Compare(e.key, below.high) >= 0 {
			return fmt.Errorf("element %d is out of order", i)
		}
		switch {
		case e.branch:
			err = w.tree(e.page, below, depth+1)
		case e.flags == elementBucket:
			err = w.bucket(e.value, depth+1)
		case e.flags != 0:
			err = fmt.Errorf("it is of kind %d", e.flags)
		}
		if err != nil {
			return fmt.Errorf("element %d: %w", i, err)
		}
	}
	return nil
}

func (w *walk) bucket(value []byte, depth int) error {
	if len(value) < bucketSize {
		return fmt.Errorf("its head has %d bytes", len(value))
	}
	if root := order.Uint64(value); root != 0 {
		return w.tree(root, keys{}, depth)
	}
	leaf := value[bucketSize:]
	if len(leaf) < headerSize || order.Uint16(leaf[8:]) != kindLeaf {
		return errors.New("it has neither a root nor a leaf")
	}
	return w.elements(leaf, keys{}, depth)
}

func (w *walk) freeList(id uint64) error {
	b, err := w.read(id)
	if err != nil {
		return err
	}
	if kind := order.Uint16(b[8:]); kind != kindFree {
		return fmt.Errorf("page %d is of kind %d and not the free list", id, kind)
	}
	list, n := b[headerSize:], uint64(order.Uint16(b[10:]))
	if n == longFree {
		n, list = order.Uint64(list), list[8:]
	}
	if n > uint64(len(list)/8) {
		return fmt.Errorf("the free list, page %d, cannot have %d numbers", id, n)
	}
	for i := range n {
		if err := w.use(order.Uint64(list[8*i:])); err != nil {
			return fmt.Errorf("the free list: %w", err)
		}
	}
	return nil
}
