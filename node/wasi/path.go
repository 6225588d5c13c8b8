package wasi

// followSymlinks is the one lookupflag.
const followSymlinks = 1

// Oflags of path_open (typenames.witx, "oflags").
const (
	openCreate    = 1 << 0
	openDirectory = 1 << 1
	openExclusive = 1 << 2
	openTruncate  = 1 << 3
	maxOflags     = 1<<4 - 1
)

// text copies a string out of guest memory.
func text(mem memory, p, n uint32) (string, errno) {
	if n > maxPath {
		return "", errNametoolong
	}
	b, ok := mem.view(p, uint64(n))
	if !ok {
		return "", errFault
	}
	return string(b), success
}

// at looks up a path, given by address and length, below a directory.
func (h *Host) at(mem memory, d *descriptor, args []uint64, follow bool) (place, errno) {
	path, e := text(mem, uint32(args[0]), uint32(args[1]))
	if e != success {
		return place{}, e
	}
	// A slash at the end means the directory that a symbolic link leads to.
	return lookup(d.node, path, follow)
}

// find returns the inode at a path.
func (h *Host) find(mem memory, d *descriptor, flags uint32, args []uint64) (*inode, errno) {
	if flags&^followSymlinks != 0 {
		return nil, errInval
	}
	p, e := h.at(mem, d, args, flags&followSymlinks != 0)
	switch {
	case e != success:
		return nil, e
	case p.node == nil:
		return nil, errNoent
	case p.slash && p.node.kind == filetypeSymlink:
		// As if it had been followed.
		if p, e = h.at(mem, d, args, true); e != success {
			return nil, e
		}
		if p.node == nil {
			return nil, errNoent
		}
	}
	if p.slash && p.node.kind != filetypeDirectory {
		return nil, errNotdir
	}
	return p.node, success
}

// vacant returns the place of a new directory entry. onSlash is the error for a
// path that ends in a slash, which only a directory's may.
func (h *Host) vacant(mem memory, d *descriptor, args []uint64, onSlash errno) (place, errno) {
	p, e := h.at(mem, d, args, false)
	switch {
	case e != success:
		return p, e
	case p.node != nil:
		return p, errExist
	case p.slash && onSlash != success:
		return p, onSlash
	}
	return p, h.room(p.dir)
}

// room says whether a directory may have one more entry.
func (h *Host) room(dir *inode) errno {
	switch {
	case dir.links == 0 && !dir.dir.root:
		return errNoent // it was removed
	case h.tree.full():
		return errNospc
	}
	return success
}

func (h *Host) pathCreateDirectory(mem memory, stack []uint64) errno {
	d, e := h.dir(uint32(stack[0]), rightCreateDir)
	if e != success {
		return e
	}
	p, e := h.vacant(mem, d, stack[1:3], success)
	if e != success {
		return e
	}
	if !h.tree.spare(len(p.name)) {
		return errNospc
	}
	h.tree.link(p.dir, p.name, h.tree.create(filetypeDirectory))
	h.tree.touch(p.dir)
	return success
}

func (h *Host) pathLink(mem memory, stack []uint64) errno {
	from, e := h.dir(uint32(stack[0]), rightLinkSource)
	if e != success {
		return e
	}
	to, e := h.dir(uint32(stack[4]), rightLinkTarget)
	if e != success {
		return e
	}
	if uint32(stack[1]) != 0 {
		return errInval // links are not followed here
	}
	old, e := h.at(mem, from, stack[2:4], false)
	switch {
	case e != success:
		return e
	case old.node == nil:
		return errNoent
	case old.node.kind == filetypeDirectory:
		return errPerm
	case old.slash:
		return errNotdir
	}
	p, e := h.vacant(mem, to, stack[5:7], errNoent)
	switch {
	case e != success:
		return e
	case !h.tree.spare(len(p.name)):
		return errNospc
	case old.node.links >= maxLinks:
		return errMlink
	}
	h.tree.link(p.dir, p.name, old.node)
	h.tree.touch(p.dir)
	old.node.ctim = h.tree.now()
	return success
}

func (h *Host) pathSymlink(mem memory, stack []uint64) errno {
	d, e := h.dir(uint32(stack[2]), rightSymlink)
	if e != success {
		return e
	}
	target, e := text(mem, uint32(stack[0]), uint32(stack[1]))
	if e != success {
		return e
	}
	if e := checkPath(target); e != success {
		return e
	}
	p, e := h.vacant(mem, d, stack[3:5], errNoent)
	if e != success {
		return e
	}
	if !h.tree.spare(len(p.name) + len(target)) {
		return errNospc
	}
	n := h.tree.create(filetypeSymlink)
	n.target = target
	h.tree.names.bytes += len(target)
	h.tree.link(p.dir, p.name, n)
	h.tree.touch(p.dir)
	return success
}

func (h *Host) pathReadlink(mem memory, stack []uint64) errno {
	d, e := h.dir(uint32(stack[0]), rightReadlink)
	if e != success {
		return e
	}
	p, e := h.at(mem, d, stack[1:3], false)
	switch {
	case e != success:
		return e
	case p.node == nil:
		return errNoent
	case p.node.kind != filetypeSymlink:
		return errInval
	case p.slash:
		return errNotdir
	}
	buf, ok := mem.view(uint32(stack[3]), uint64(uint32(stack[4])))
	if !ok {
		return errFault
	}
	used, ok := mem.view(uint32(stack[5]), 4)
	if !ok {
		return errFault
	}
	le.PutUint32(used, uint32(copy(buf, p.node.target)))
	return success
}

func (h *Host) pathRemoveDirectory(mem memory, stack []uint64) errno {
	d, e := h.dir(uint32(stack[0]), rightRemoveDir)
	if e != success {
		return e
	}
	p, e := h.at(mem, d, stack[1:3], false)
	switch {
	case e != success:
		return e
	case p.dir == nil:
		return errInval // . or ..
	case p.node == nil:
		return errNoent
	case p.node.kind != filetypeDirectory:
		return errNotdir
	case len(p.node.dir.byName) > 0:
		return errNotempty
	}
	h.tree.unlink(p.dir, p.name)
	h.tree.touch(p.dir)
	return success
}

func (h *Host) pathUnlinkFile(mem memory, stack []uint64) errno {
	d, e := h.dir(uint32(stack[0]), rightUnlink)
	if e != success {
		return e
	}
	p, e := h.at(mem, d, stack[1:3], false)
	switch {
	case e != success:
		return e
	case p.node == nil:
		return errNoent
	case p.node.kind == filetypeDirectory:
		return errIsdir
	case p.slash:
		return errNotdir
	}
	p.node.ctim = h.tree.now()
	h.tree.unlink(p.dir, p.name)
	h.tree.touch(p.dir)
	return success
}

func (h *Host) pathRename(mem memory, stack []uint64) errno {
	from, e := h.dir(uint32(stack[0]), rightRenameSource)
	if e != success {
		return e
	}
	to, e := h.dir(uint32(stack[3]), rightRenameTarget)
	if e != success {
		return e
	}
	a, e := h.at(mem, from, stack[1:3], false)
	if e != success {
		return e
	}
	b, e := h.at(mem, to, stack[4:6], false)
	if e != success {
		return e
	}
	switch {
	case a.dir == nil || b.dir == nil:
		return errBusy // . or ..
	case a.node == nil:
		return errNoent
	case a.node.kind == filetypeDirectory:
		switch {
		case a.node == b.node:
			return success
		case within(b.dir, a.node):
			return errInval
		case b.node != nil && b.node.kind != filetypeDirectory:
			return errNotdir
		case b.node != nil && len(b.node.dir.byName) > 0:
			return errNotempty
		}
	case b.node != nil && b.node.kind == filetypeDirectory:
		return errIsdir
	case a.slash || b.slash:
		return errNotdir
	case a.node == b.node:
		return success // POSIX: both names stay
	}
	if b.dir.links == 0 && !b.dir.dir.root {
		return errNoent // it was removed
	}
	if grow := len(b.name) - len(a.name); b.node == nil && grow > 0 && !h.tree.spare(grow) {
		return errNospc
	}
	if b.node != nil {
		h.tree.unlink(b.dir, b.name)
	}
	a.node.links++ // not gone between its two names
	h.tree.unlink(a.dir, a.name)
	h.tree.link(b.dir, b.name, a.node)
	a.node.links--
	a.node.ctim = h.tree.now()
	h.tree.touch(a.dir)
	h.tree.touch(b.dir)
	return success
}

func (h *Host) pathOpen(mem memory, stack []uint64) errno {
	flags, oflags, fdflags := uint32(stack[1]), uint32(stack[4]), uint32(stack[7])
	base, inheriting := stack[5], stack[6]
	need := uint64(rightPathOpen)
	if oflags&openCreate != 0 {
		need |= rightCreateFile
	}
	if oflags&openTruncate != 0 {
		need |= rightPathSetSize
	}
	d, e := h.dir(uint32(stack[0]), need)
	if e != success {
		return e
	}
	if flags&^followSymlinks != 0 || oflags > maxOflags || fdflags > maxFlags {
		return errInval
	}
	out, ok := mem.view(uint32(stack[8]), 4)
	if !ok {
		return errFault
	}
	// What a guest asks for beyond what it may have is left out, as libraries
	// ask for all there is; but not the rights that it opens a file for.
	if base&^d.inheriting&(rightRead|rightWrite) != 0 {
		return errNotcapable
	}
	fresh := oflags&(openCreate|openExclusive) == openCreate|openExclusive
	follow := flags&followSymlinks != 0 && !fresh
	p, e := h.at(mem, d, stack[2:4], follow)
	if e == success && p.slash && !fresh && p.node != nil && p.node.kind == filetypeSymlink {
		p, e = h.at(mem, d, stack[2:4], true)
	}
	if e != success {
		return e
	}
	if e := openable(p, oflags, base); e != success {
		return e
	}
	number, ok := h.freeFD()
	if !ok {
		return errMfile
	}
	node := p.node
	switch {
	case node == nil:
		if e := h.room(p.dir); e != success {
			return e
		}
		if !h.tree.spare(len(p.name)) {
			return errNospc
		}
		node = h.tree.create(filetypeRegular)
		h.tree.link(p.dir, p.name, node)
		h.tree.touch(p.dir)
	case oflags&openTruncate != 0:
		if e := h.tree.resize(node, 0); e != success {
			return e
		}
	}
	fd := &descriptor{node: node, flags: uint16(fdflags)}
	mayBase, mayInherit := fd.most()
	fd.base, fd.inheriting = base&d.inheriting&mayBase, inheriting&d.inheriting&mayInherit
	h.open(number, fd)
	le.PutUint32(out, uint32(number))
	return success
}

// openable says whether what is at p can be opened in a way.
func openable(p place, oflags uint32, base uint64) errno {
	create := oflags&openCreate != 0
	switch {
	case p.node == nil && !create:
		return errNoent
	case p.node == nil && p.slash:
		return errIsdir
	case p.node == nil && oflags&openDirectory != 0:
		return errInval
	case p.node == nil:
		return success
	case create && oflags&openExclusive != 0:
		return errExist
	case p.node.kind == filetypeSymlink:
		return errLoop
	case p.node.kind == filetypeDirectory:
		if create || oflags&openTruncate != 0 || base&rightWrite != 0 {
			return errIsdir
		}
	case oflags&openDirectory != 0 || p.slash:
		return errNotdir
	}
	return success
}

// direntSize is the size of a dirent (typenames.witx) without the name that
// follows it, in bytes.
const direntSize = 24

// fdReaddir fills a buffer with entries; the last may be cut off. A cookie is
// the number of the entry it follows.
func (h *Host) fdReaddir(mem memory, stack []uint64) errno {
	d, e := h.dir(uint32(stack[0]), rightReaddir)
	if e != success {
		return e
	}
	buf, ok := mem.view(uint32(stack[1]), uint64(uint32(stack[2])))
	if !ok {
		return errFault
	}
	used, ok := mem.view(uint32(stack[4]), 4)
	if !ok {
		return errFault
	}
	cookie := stack[3]
	n := 0
	put := func(number uint64, name string, node *inode) (more bool) {
		var head [direntSize]byte
		le.PutUint64(head[0:], number)
		le.PutUint64(head[8:], node.ino)
		le.PutUint32(head[16:], uint32(len(name)))
		head[20] = node.kind
		n += copy(buf[n:], head[:])
		n += copy(buf[n:], name)
		return n < len(buf)
	}
	dir := d.node
	up := dir.dir.parent
	if up == nil {
		up = dir // a guest cannot leave it
	}
	more := len(buf) > 0
	if more && cookie < 1 {
		more = put(1, ".", dir)
	}
	if more && cookie < 2 {
		more = put(2, "..", up)
	}
	for i := dir.dir.after(cookie); more && i < len(dir.dir.list); i++ {
		if e := dir.dir.list[i]; e.node != nil {
			more = put(e.number, e.name, e.node)
		}
	}
	le.PutUint32(used, uint32(n))
	return success
}
