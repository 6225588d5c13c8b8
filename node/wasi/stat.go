package wasi

// filestatSize is the size of a filestat (typenames.witx), in bytes.
const filestatSize = 64

// putFilestat writes what there is to say about an inode; nil is a stream.
func putFilestat(out []byte, n *inode) {
	clear(out)
	if n == nil {
		out[16] = filetypeCharacter
		le.PutUint64(out[24:], 1) // links
		return
	}
	le.PutUint64(out[0:], 1) // the one device
	le.PutUint64(out[8:], n.ino)
	out[16] = n.kind
	links := n.links
	if n.dir != nil && n.dir.root {
		links = 1
	}
	le.PutUint64(out[24:], uint64(links))
	le.PutUint64(out[32:], uint64(n.size)+uint64(len(n.target)))
	le.PutUint64(out[40:], n.atim)
	le.PutUint64(out[48:], n.mtim)
	le.PutUint64(out[56:], n.ctim)
}

func (h *Host) fdFilestatGet(mem memory, stack []uint64) errno {
	d := h.fd(uint32(stack[0]))
	if d == nil {
		return errBadf
	}
	if d.base&rightFilestatGet == 0 {
		return errNotcapable
	}
	out, ok := mem.view(uint32(stack[1]), filestatSize)
	if !ok {
		return errFault
	}
	putFilestat(out, d.node)
	return success
}

func (h *Host) pathFilestatGet(mem memory, stack []uint64) errno {
	d, e := h.dir(uint32(stack[0]), rightPathFilestatGet)
	if e != success {
		return e
	}
	p, e := h.find(mem, d, uint32(stack[1]), stack[2:4])
	if e != success {
		return e
	}
	out, ok := mem.view(uint32(stack[4]), filestatSize)
	if !ok {
		return errFault
	}
	putFilestat(out, p)
	return success
}

// Flags of the functions that set times (typenames.witx, "fstflags").
const (
	setAtim    = 1 << 0
	setAtimNow = 1 << 1
	setMtim    = 1 << 2
	setMtimNow = 1 << 3
)

// setTimes sets an inode's times.
func (h *Host) setTimes(n *inode, atim, mtim uint64, flags uint32) {
	now := h.tree.now()
	switch {
	case flags&setAtim != 0:
		n.atim = atim
	case flags&setAtimNow != 0:
		n.atim = now
	}
	switch {
	case flags&setMtim != 0:
		n.mtim = mtim
	case flags&setMtimNow != 0:
		n.mtim = now
	}
	n.ctim = now
}

// timeFlags says whether flags contradict themselves.
func timeFlags(flags uint32) errno {
	if flags > 15 || flags&(setAtim|setAtimNow) == setAtim|setAtimNow || flags&(setMtim|setMtimNow) == setMtim|setMtimNow {
		return errInval
	}
	return success
}

func (h *Host) fdFilestatSetTimes(_ memory, stack []uint64) errno {
	d := h.fd(uint32(stack[0]))
	switch {
	case d == nil:
		return errBadf
	case d.base&rightFilestatSetTimes == 0:
		return errNotcapable // no stream has it
	}
	if e := timeFlags(uint32(stack[3])); e != success {
		return e
	}
	h.setTimes(d.node, stack[1], stack[2], uint32(stack[3]))
	return success
}

func (h *Host) pathFilestatSetTimes(mem memory, stack []uint64) errno {
	d, e := h.dir(uint32(stack[0]), rightPathSetTimes)
	if e != success {
		return e
	}
	if e := timeFlags(uint32(stack[6])); e != success {
		return e
	}
	n, e := h.find(mem, d, uint32(stack[1]), stack[2:4])
	if e != success {
		return e
	}
	h.setTimes(n, stack[4], stack[5], uint32(stack[6]))
	return success
}
