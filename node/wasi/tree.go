package wasi

import (
	"cmp"
	"slices"
	"sort"
	"time"
)

// Filetypes (typenames.witx, "filetype").
const (
	// filetypeCharacter makes C libraries flush output at each line end.
	filetypeCharacter = 2
	filetypeDirectory = 3
	filetypeRegular   = 4
	filetypeSymlink   = 7
)

// An inode is a file, a directory or a symbolic link. It lives as long as a
// directory lists it or a descriptor is open on it.
type inode struct {
	ino  uint64
	kind uint8
	// Times in nanoseconds since 1970.
	atim, mtim, ctim uint64
	// links counts the directory entries that name it, opens its descriptors.
	links, opens int

	// size and chunks are a file's. Bytes of a chunk behind size are zeroes.
	size   int64
	chunks []*chunk
	// target is a symbolic link's.
	target string
	// dir is a directory's.
	dir *directory
}

// A directory lists inodes. Its entries have numbers that rise and are never
// used again, so that a guest may go on reading where it stopped whatever was
// added and removed meanwhile, here or on another node.
type directory struct {
	byName map[string]*entry
	// list is ordered by number. Removed entries stay, without a node, until
	// they are half of it.
	list []*entry
	gone int
	next uint64
	// parent is nil for a root, and for one that was removed.
	parent *inode
	root   bool
}

type entry struct {
	number uint64
	name   string
	node   *inode
}

// firstEntry is the number of a directory's first entry: 1 and 2 are . and ..
const firstEntry = 3

func newDirectory() *directory {
	return &directory{byName: map[string]*entry{}, next: firstEntry}
}

// after returns the index in list of the first entry whose number is over n.
func (d *directory) after(n uint64) int {
	return sort.Search(len(d.list), func(i int) bool { return d.list[i].number > n })
}

// limits bound what a guest may make of its files.
type limits struct {
	files int   // inodes, and also names
	bytes int64 // sizes of files, added up
}

// maxLinks bounds the names of one inode.
const maxLinks = 32000

// A tree is a guest's file system: the directories its preopened descriptors
// lead to, with all that is in them.
type tree struct {
	contents
	limits limits
	now    func() uint64 // realtime

	inodes map[uint64]*inode
	next   uint64 // inode number
	bytes  int64
	names  names
}

// names counts directory entries, and the bytes of their names and of the
// targets of symbolic links: all of them are in every State.
type names struct{ count, bytes int }

// maxNameBytes bounds names.bytes.
const maxNameBytes = 4 << 20

func newTree(s *store, l limits) *tree {
	return &tree{
		contents: contents{store: s},
		limits:   l,
		now:      func() uint64 { return uint64(max(0, time.Now().UnixNano())) },
		inodes:   map[uint64]*inode{},
		next:     1,
	}
}

// full says whether there is no room for another inode or name.
func (t *tree) full() bool {
	return len(t.inodes) >= t.limits.files || t.names.count >= t.limits.files
}

// spare says whether there is room for n more bytes of names.
func (t *tree) spare(n int) bool { return t.names.bytes+n <= maxNameBytes }

// create makes an inode that no directory lists yet.
func (t *tree) create(kind uint8) *inode {
	now := t.now()
	n := &inode{ino: t.next, kind: kind, atim: now, mtim: now, ctim: now}
	if kind == filetypeDirectory {
		n.dir = newDirectory()
	}
	t.next++
	t.inodes[n.ino] = n
	return n
}

// newRoot makes a directory that is in no other.
func (t *tree) newRoot() *inode {
	n := t.create(filetypeDirectory)
	n.dir.root = true
	return n
}

// link adds an entry.
func (t *tree) link(dir *inode, name string, node *inode) {
	d := dir.dir
	e := &entry{d.next, name, node}
	d.next++
	d.byName[name] = e
	d.list = append(d.list, e)
	node.links++
	t.names.count++
	t.names.bytes += len(name)
	if node.dir != nil {
		node.dir.parent = dir
	}
}

// unlink removes an entry, and the inode if nothing else leads to it.
func (t *tree) unlink(dir *inode, name string) {
	d := dir.dir
	e := d.byName[name]
	node := e.node
	delete(d.byName, name)
	e.name, e.node = "", nil
	d.gone++
	if d.gone > len(d.list)/2 {
		d.list = slices.DeleteFunc(d.list, func(e *entry) bool { return e.node == nil })
		d.gone = 0
	}
	t.names.count--
	t.names.bytes -= len(name)
	node.links--
	if node.dir != nil {
		node.dir.parent = nil
	}
	t.release(node)
}

// release forgets an inode that nothing leads to, with all that is in it.
func (t *tree) release(n *inode) {
	for queue := []*inode{n}; len(queue) > 0; queue = queue[1:] {
		n := queue[0]
		if n.links > 0 || n.opens > 0 {
			continue
		}
		t.bytes -= n.size
		t.names.bytes -= len(n.target)
		delete(t.inodes, n.ino)
		if n.dir == nil {
			continue
		}
		// Only a root has entries here; others must be empty to be removed.
		for _, e := range n.dir.list {
			if e.node == nil {
				continue
			}
			t.names.count--
			t.names.bytes -= len(e.name)
			e.node.links--
			if e.node.dir != nil {
				// It is open still: as good as removed, and empty or not, what
				// is in it can be reached through it.
				e.node.dir.parent = nil
				e.node.dir.root = e.node.opens > 0
			}
			queue = append(queue, e.node)
		}
	}
}

// touch notes a change of what is in n.
func (t *tree) touch(n *inode) {
	now := t.now()
	n.mtim, n.ctim = now, now
}

// fits says whether a file may be as long as size.
func (t *tree) fits(n *inode, size int64) errno {
	switch {
	case size > t.limits.bytes:
		return errFbig
	case size > n.size && t.bytes+size-n.size > t.limits.bytes:
		return errNospc
	}
	return success
}

// grow makes a file longer; fits has said that it may be.
func (t *tree) grow(n *inode, size int64) {
	if size <= n.size {
		return
	}
	for int64(len(n.chunks))*chunkBytes < size {
		n.chunks = append(n.chunks, &chunk{loaded: true})
	}
	t.bytes += size - n.size
	n.size = size
}

// resize cuts a file or makes it longer.
func (t *tree) resize(n *inode, size int64) errno {
	if e := t.fits(n, size); e != success {
		return e
	}
	if size < n.size {
		chunks, e := t.cut(n.chunks, size)
		if e != success {
			return e
		}
		n.chunks = chunks
		t.bytes -= n.size - size
		n.size = size
		t.tidy()
	} else {
		t.grow(n, size)
	}
	t.touch(n)
	return success
}

// writeAt writes the pieces one after the other, all of them or nothing. pieces
// are n bytes together.
func (t *tree) writeAt(f *inode, off, n int64, pieces func(yield func([]byte) bool)) errno {
	if n == 0 {
		return success
	}
	end := off + n
	if e := t.fits(f, end); e != success {
		return e
	}
	// The chunks of a longer file, but not yet a longer file.
	chunks := f.chunks
	for int64(len(chunks))*chunkBytes < end {
		chunks = append(chunks, &chunk{loaded: true})
	}
	if e := t.reach(chunks, off, n); e != success {
		return e
	}
	f.chunks = chunks
	t.grow(f, end)
	for p := range pieces {
		// Bit by bit, so that a large write does not need twice its size.
		for len(p) > 0 {
			k := min(len(p), maxDirty/2*PageSize)
			t.own(f.chunks, off, int64(k), end)
			t.write(f.chunks, off, p[:k])
			p, off = p[k:], off+int64(k)
			t.tidy()
		}
	}
	t.touch(f)
	return success
}

// tidy keeps what is not named yet, and what is named and no longer used,
// within bounds.
func (t *tree) tidy() {
	if len(t.dirty) > maxDirty {
		t.settle(maxDirty / 2)
	}
	if t.store.count() > 2*t.swept+4096 {
		t.sweep()
	}
}

// settleAll names all there is.
func (t *tree) settleAll() {
	t.settle(0)
	for _, n := range t.inodes {
		for _, c := range n.chunks {
			if c.dirty {
				t.nameIndex(c)
			}
		}
	}
}

// each calls f with the name of every block in use that is known of: indexes
// before their pages, a block of several files several times.
func (t *tree) each(f func(Hash)) {
	for _, n := range t.ordered() {
		for _, c := range n.chunks {
			if !c.dirty && c.name != (Hash{}) {
				f(c.name)
				if !c.loaded {
					if b, ok := t.store.peek(c.name); ok {
						names, _ := parseIndex(b)
						for _, h := range names {
							if h != (Hash{}) {
								f(h)
							}
						}
					}
				}
			}
			for i := range c.pages {
				if h := c.pages[i].name; c.pages[i].buf == nil && h != (Hash{}) {
					f(h)
				}
			}
		}
	}
}

// expectAll makes the blocks that a tree just decoded needs expected, as far as
// they are not here. Blocks that came ahead of it and fill the store, since what
// their worker has overwritten was among them, make room: some may have to come
// once more.
func (t *tree) expectAll() {
	if t.store.crowded() {
		live := map[Hash]struct{}{}
		t.each(func(h Hash) { live[h] = struct{}{} })
		t.store.keep(live)
	}
	t.store.expectNothing()
	for _, n := range t.ordered() {
		for _, c := range n.chunks {
			if c.name != (Hash{}) {
				t.store.expect(c.name)
			}
		}
	}
	t.swept = t.store.count()
}

// ordered returns all inodes by number.
func (t *tree) ordered() []*inode {
	all := make([]*inode, 0, len(t.inodes))
	for _, n := range t.inodes {
		all = append(all, n)
	}
	slices.SortFunc(all, func(a, b *inode) int { return cmp.Compare(a.ino, b.ino) })
	return all
}

// sweep forgets blocks that are not in use. It does nothing while an index has
// yet to arrive: pages that only it names may be here already. One that will not
// come any more holds up nothing.
func (t *tree) sweep() {
	// Indexes arrive meanwhile. One that is here now stays; one that came after
	// its pages were looked for would lose them.
	complete := true
	for _, n := range t.inodes {
		for _, c := range n.chunks {
			if !c.loaded && t.store.expects(c.name) {
				complete = false
			}
		}
	}
	if complete {
		live := map[Hash]struct{}{}
		t.each(func(h Hash) { live[h] = struct{}{} })
		t.store.keep(live)
	}
	t.swept = t.store.count()
}
