package wasi

import (
	"bytes"
	"slices"
)

// A file's bytes are pages of PageSize. A page is kept without the zeroes at its
// end; one of zeroes only has no name and no bytes. chunkPages page names in a row are a block too, the index, without the
// empty names at its end; the list of a file's index names is in its inode. So
// the state of a gigabyte of files is 64 KiB of names, whatever was written.
const (
	chunkPages = PageSize / hashSize
	chunkBytes = chunkPages * PageSize
)

// A chunk is up to chunkPages pages of a file.
type chunk struct {
	// name is the index's; zero if there are only zeroes. It is out of date
	// while dirty.
	name  Hash
	dirty bool
	// loaded says that pages is what the index says or said.
	loaded bool
	// pages ends with the last page that was ever written.
	pages []page
}

// A page is zeroes, or named, or being written.
type page struct {
	name Hash
	// buf is what the page holds, if it was written since it was last named.
	buf *[PageSize]byte
}

// dirtyPage is a page that was given a buffer: its own or, if buf is no longer
// that page's, one that has been dealt with.
type dirtyPage struct {
	c   *chunk
	i   int
	buf *[PageSize]byte
}

// maxDirty bounds the pages without a name, and with it the hashing that
// remains to be done when the worker is frozen: 256 pages are about 1 ms.
const maxDirty = 256

// contents are the bytes of all files: the store and what is not in it yet.
type contents struct {
	store *store
	// dirty lists pages with a buffer, oldest first.
	dirty []dirtyPage
	// swept is how many blocks there were after the last sweep.
	swept int
}

// load makes a chunk's pages known.
func (cs *contents) load(c *chunk) errno {
	if c.loaded {
		return success
	}
	if c.name == (Hash{}) {
		c.loaded = true
		return success
	}
	b, e := cs.store.get(c.name)
	if e != success {
		return e
	}
	names, ok := parseIndex(b)
	if !ok {
		return errIO
	}
	c.pages = make([]page, len(names))
	for i, h := range names {
		c.pages[i].name = h
	}
	c.loaded = true
	return success
}

// parseIndex returns the page names in an index, which may lack zeroes at its
// end, or false if it is not one.
func parseIndex(b []byte) ([]Hash, bool) {
	b = trimZeroes(b)
	if len(b) == 0 || len(b) > PageSize {
		return nil, false
	}
	names := make([]Hash, (len(b)+hashSize-1)/hashSize)
	for i := range names {
		copy(names[i][:], b[i*hashSize:])
	}
	return names, true
}

// view returns what a page holds, zeroes at its end left out. The slice must
// not be kept.
func (cs *contents) view(p *page) ([]byte, errno) {
	switch {
	case p.buf != nil:
		return p.buf[:], success
	case p.name == Hash{}:
		return nil, success
	}
	return cs.store.get(p.name)
}

// read copies what the chunks hold at off. All of it must be inside the file;
// an error leaves dst undefined.
func (cs *contents) read(chunks []*chunk, off int64, dst []byte) errno {
	for len(dst) > 0 {
		c := chunks[off/chunkBytes]
		i := int(off % chunkBytes / PageSize)
		at := int(off % PageSize)
		n := min(len(dst), PageSize-at)
		if e := cs.load(c); e != success {
			return e
		}
		var b []byte
		if i < len(c.pages) {
			var e errno
			if b, e = cs.view(&c.pages[i]); e != success {
				return e
			}
		}
		copied := 0
		if at < len(b) {
			copied = copy(dst[:n], b[at:])
		}
		clear(dst[copied:n])
		dst, off = dst[n:], off+int64(n)
	}
	return success
}

// ready fetches what reading n bytes at off will need, so that nothing fails
// once the first byte has been delivered.
func (cs *contents) ready(chunks []*chunk, off, n int64) errno {
	if n == 0 {
		return success // off may be anywhere behind the end
	}
	for p := off / PageSize; p*PageSize < off+n; p++ {
		c := chunks[p/chunkPages]
		if e := cs.load(c); e != success {
			return e
		}
		if i := int(p % chunkPages); i < len(c.pages) {
			if _, e := cs.view(&c.pages[i]); e != success {
				return e
			}
		}
	}
	return success
}

// reach fetches what overwriting n bytes at off will need: every index, and the
// pages at both ends of which a part remains. An error has changed nothing.
func (cs *contents) reach(chunks []*chunk, off, n int64) errno {
	end := off + n
	for ci := off / chunkBytes; ci*chunkBytes < end; ci++ {
		if e := cs.load(chunks[ci]); e != success {
			return e
		}
	}
	for _, at := range [2]int64{off, end} {
		if at%PageSize == 0 {
			continue
		}
		c := chunks[at/chunkBytes]
		if i := int(at % chunkBytes / PageSize); i < len(c.pages) {
			if _, e := cs.view(&c.pages[i]); e != success {
				return e
			}
		}
	}
	return success
}

// own gives the pages of n bytes at off buffers. The bytes are part of a write
// that reach was called for, that goes on to end, and that has come as far as
// off: a page that begins here and ends before end needs nothing of what it was.
func (cs *contents) own(chunks []*chunk, off, n, end int64) {
	for p := off / PageSize; p*PageSize < off+n; p++ {
		c := chunks[p/chunkPages]
		i := int(p % chunkPages)
		for len(c.pages) <= i {
			c.pages = append(c.pages, page{})
		}
		pg := &c.pages[i]
		c.dirty = true
		if pg.buf != nil {
			continue
		}
		buf := new([PageSize]byte)
		if p*PageSize < off || (p+1)*PageSize > end {
			old, _ := cs.view(pg) // it is here: reach or the write so far has seen to it
			copy(buf[:], old)
		}
		pg.buf = buf
		cs.dirty = append(cs.dirty, dirtyPage{c, i, buf})
	}
}

// write copies src to off, where own has been.
func (cs *contents) write(chunks []*chunk, off int64, src []byte) {
	for len(src) > 0 {
		c := chunks[off/chunkBytes]
		pg := &c.pages[off%chunkBytes/PageSize]
		n := copy(pg.buf[off%PageSize:], src)
		src, off = src[n:], off+int64(n)
	}
}

// cut returns the chunks of a file that ends at size, with zeroes behind it.
// An error has changed nothing.
func (cs *contents) cut(chunks []*chunk, size int64) ([]*chunk, errno) {
	n := int((size + chunkBytes - 1) / chunkBytes)
	if n >= len(chunks) && size%chunkBytes == 0 {
		return chunks, success
	}
	if size%chunkBytes != 0 && n <= len(chunks) {
		c := chunks[n-1]
		if e := cs.load(c); e != success {
			return chunks, e
		}
		keep := int(size % chunkBytes / PageSize)
		if at := size % PageSize; at != 0 && keep < len(c.pages) && (c.pages[keep].buf != nil || c.pages[keep].name != Hash{}) {
			if e := cs.reach(chunks, size, 1); e != success {
				return chunks, e
			}
			cs.own(chunks, size, 1, size+1)
			clear(c.pages[keep].buf[at:])
			keep++
		} else if at != 0 {
			keep++
		}
		if keep < len(c.pages) {
			clear(c.pages[keep:])
			c.pages = c.pages[:keep]
			c.dirty = true
		}
	}
	if n < len(chunks) {
		clear(chunks[n:])
		chunks = chunks[:n]
	}
	return chunks, success
}

// name gives a page with a buffer its name.
func (cs *contents) name(p *page) {
	b := trimZeroes(p.buf[:])
	switch {
	case len(b) == 0:
		p.name = Hash{}
	case len(b) < PageSize*3/4:
		p.name = cs.store.add(bytes.Clone(b))
	default:
		p.name = cs.store.add(b)
	}
	p.buf = nil
}

// trimZeroes returns b without the zeroes at its end.
func trimZeroes(b []byte) []byte {
	for len(b) >= 8 && le.Uint64(b[len(b)-8:]) == 0 {
		b = b[:len(b)-8]
	}
	for len(b) > 0 && b[len(b)-1] == 0 {
		b = b[:len(b)-1]
	}
	return b
}

// nameIndex gives a chunk whose pages all have theirs its name.
func (cs *contents) nameIndex(c *chunk) {
	n := len(c.pages)
	for n > 0 && c.pages[n-1].name == (Hash{}) {
		n--
	}
	c.pages = c.pages[:n]
	c.dirty = false
	c.name = Hash{}
	if n == 0 {
		return
	}
	b := make([]byte, 0, n*hashSize)
	for i := range c.pages {
		b = append(b, c.pages[i].name[:]...)
	}
	c.name = cs.store.add(b)
}

// settle names dirty pages, oldest first, until at most n remain.
func (cs *contents) settle(n int) {
	k := max(0, len(cs.dirty)-n)
	for _, d := range cs.dirty[:k] {
		if d.i < len(d.c.pages) && d.c.pages[d.i].buf == d.buf {
			cs.name(&d.c.pages[d.i])
		}
	}
	cs.dirty = slices.Delete(cs.dirty, 0, k)
}

// collapse names everything in a file that was just written whole and forgets
// its list of pages, which its index holds too.
func (cs *contents) collapse(chunks []*chunk) {
	cs.settle(0)
	for _, c := range chunks {
		if c.dirty {
			cs.nameIndex(c)
		}
		if c.name != (Hash{}) {
			c.loaded, c.pages = false, nil
		}
	}
}
