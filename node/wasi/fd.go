package wasi

// maxFlags holds all fdflags: append, dsync, nonblock, rsync, sync.
const (
	flagAppend   = 1 << 0
	flagNonblock = 1 << 2
	maxFlags     = 1<<5 - 1
)

// A descriptor is an open stream, file or directory.
type descriptor struct {
	// stream is what it leads to if node is nil: 0 standard input, 1 output,
	// 2 error.
	stream uint8
	node   *inode
	// offset is where a file is read and written next, in bytes.
	offset           int64
	flags            uint16
	base, inheriting uint64
	// preopen is the name a preopened directory has for the guest.
	preopen string
}

func (d *descriptor) kind() uint8 {
	if d.node == nil {
		return filetypeCharacter
	}
	return d.node.kind
}

// most returns the most rights a descriptor can have.
func (d *descriptor) most() (base, inheriting uint64) {
	switch {
	case d.node == nil:
		return streamRights[d.stream], 0
	case d.node.kind == filetypeDirectory:
		return dirRights, dirRights | fileRights
	}
	return fileRights, 0
}

// fd returns a descriptor that is open, or nil.
func (h *Host) fd(n uint32) *descriptor {
	if n >= uint32(len(h.fds)) {
		return nil
	}
	return h.fds[n]
}

// freeFD returns the lowest number that is free, or false if there is none.
func (h *Host) freeFD() (int, bool) {
	for i, d := range h.fds {
		if d == nil {
			return i, true
		}
	}
	return len(h.fds), len(h.fds) < MaxFDs
}

// open puts a descriptor at a number that freeFD returned.
func (h *Host) open(n int, d *descriptor) {
	if n == len(h.fds) {
		h.fds = append(h.fds, nil)
	}
	h.fds[n] = d
	d.node.opens++
}

// shut frees a descriptor's number.
func (h *Host) shut(n uint32) {
	d := h.fds[n]
	h.fds[n] = nil
	if d.node != nil {
		d.node.opens--
		h.tree.release(d.node)
	}
}

// file returns a descriptor of a file that has a right. onStream is the error
// for a stream.
func (h *Host) file(n uint32, right uint64, onStream errno) (*descriptor, errno) {
	d := h.fd(n)
	switch {
	case d == nil:
		return nil, errBadf
	case d.node == nil:
		return nil, onStream
	case d.node.kind == filetypeDirectory:
		return nil, errIsdir
	case d.base&right == 0:
		return nil, errNotcapable
	}
	return d, success
}

// dir returns a descriptor of a directory that has all of some rights.
func (h *Host) dir(n uint32, rights uint64) (*descriptor, errno) {
	d := h.fd(n)
	switch {
	case d == nil:
		return nil, errBadf
	case d.kind() != filetypeDirectory:
		return nil, errNotdir
	case d.base&rights != rights:
		return nil, errNotcapable
	}
	return d, success
}

func (h *Host) fdClose(_ memory, stack []uint64) errno {
	n := uint32(stack[0])
	if h.fd(n) == nil {
		return errBadf
	}
	h.shut(n)
	return success
}

func (h *Host) fdRenumber(_ memory, stack []uint64) errno {
	from, to := uint32(stack[0]), uint32(stack[1])
	if h.fd(from) == nil || h.fd(to) == nil {
		return errBadf
	}
	if from != to {
		d := h.fds[from]
		h.fds[from] = nil
		h.shut(to)
		h.fds[to] = d
	}
	return success
}

func (h *Host) fdFdstatGet(mem memory, stack []uint64) errno {
	d := h.fd(uint32(stack[0]))
	if d == nil {
		return errBadf
	}
	out, ok := mem.view(uint32(stack[1]), 24)
	if !ok {
		return errFault
	}
	clear(out)
	out[0] = d.kind()
	le.PutUint16(out[2:], d.flags)
	le.PutUint64(out[8:], d.base)
	le.PutUint64(out[16:], d.inheriting)
	return success
}

func (h *Host) fdFdstatSetFlags(_ memory, stack []uint64) errno {
	d := h.fd(uint32(stack[0]))
	if d == nil {
		return errBadf
	}
	flags := uint32(stack[1])
	if flags > maxFlags {
		return errInval
	}
	if d.base&rightSetFlags == 0 {
		return errNotcapable
	}
	d.flags = uint16(flags)
	return success
}

func (h *Host) fdFdstatSetRights(_ memory, stack []uint64) errno {
	d := h.fd(uint32(stack[0]))
	if d == nil {
		return errBadf
	}
	base, inheriting := stack[1], stack[2]
	if base&^d.base != 0 || inheriting&^d.inheriting != 0 {
		return errNotcapable
	}
	d.base, d.inheriting = base, inheriting
	return success
}

func (h *Host) fdPrestatGet(mem memory, stack []uint64) errno {
	d := h.fd(uint32(stack[0]))
	if d == nil || d.preopen == "" {
		return errBadf
	}
	out, ok := mem.view(uint32(stack[1]), 8)
	if !ok {
		return errFault
	}
	le.PutUint32(out, 0) // preopentype: a directory
	le.PutUint32(out[4:], uint32(len(d.preopen)))
	return success
}

func (h *Host) fdPrestatDirName(mem memory, stack []uint64) errno {
	d := h.fd(uint32(stack[0]))
	if d == nil || d.preopen == "" {
		return errBadf
	}
	n := uint32(stack[2])
	if n < uint32(len(d.preopen)) {
		return errNametoolong
	}
	out, ok := mem.view(uint32(stack[1]), uint64(n))
	if !ok {
		return errFault
	}
	copy(out, d.preopen)
	return success
}

// fdAdvise takes advice and does nothing about it: files are in memory.
func (h *Host) fdAdvise(_ memory, stack []uint64) errno {
	if _, e := h.file(uint32(stack[0]), rightAdvise, errSpipe); e != success {
		return e
	}
	const adviceNoreuse = 5
	if uint32(stack[3]) > adviceNoreuse || int64(stack[1]) < 0 || int64(stack[2]) < 0 {
		return errInval
	}
	return success
}

// fdSync and fdDatasync have nothing to wait for: a file is as safe as the
// worker, whose state it is part of.
func (h *Host) fdSync(_ memory, stack []uint64) errno { return h.sync(stack, rightSync) }

func (h *Host) fdDatasync(_ memory, stack []uint64) errno {
	return h.sync(stack, rightDatasync|rightSync)
}

func (h *Host) sync(stack []uint64, rights uint64) errno {
	d := h.fd(uint32(stack[0]))
	switch {
	case d == nil:
		return errBadf
	case d.node == nil:
		return errInval
	case d.base&rights == 0:
		return errNotcapable
	}
	return success
}

// Whences (typenames.witx, "whence").
const (
	whenceSet = 0
	whenceCur = 1
	whenceEnd = 2
)

func (h *Host) fdSeek(mem memory, stack []uint64) errno {
	offset, whence := int64(stack[1]), uint32(stack[2])
	right := uint64(rightSeek)
	if offset == 0 && whence == whenceCur {
		right |= rightTell
	}
	d, e := h.file(uint32(stack[0]), right, errSpipe)
	if e != success {
		return e
	}
	out, ok := mem.view(uint32(stack[3]), 8)
	if !ok {
		return errFault
	}
	var from int64
	switch whence {
	case whenceSet:
	case whenceCur:
		from = d.offset
	case whenceEnd:
		from = d.node.size
	default:
		return errInval
	}
	to := from + offset // from is not negative: a sum over the top is
	if to < 0 {
		return errInval
	}
	d.offset = to
	le.PutUint64(out, uint64(to))
	return success
}

func (h *Host) fdTell(mem memory, stack []uint64) errno {
	d, e := h.file(uint32(stack[0]), rightTell|rightSeek, errSpipe)
	if e != success {
		return e
	}
	out, ok := mem.view(uint32(stack[1]), 8)
	if !ok {
		return errFault
	}
	le.PutUint64(out, uint64(d.offset))
	return success
}
