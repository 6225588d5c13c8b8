package wasi

import "bytes"

// Rights (typenames.witx, "rights") that mean something for a stream.
const (
	rightRead        = 1 << 1
	rightSetFlags    = 1 << 3
	rightWrite       = 1 << 6
	rightFilestatGet = 1 << 21
	rightPoll        = 1 << 27
)

// streamRights are the most each stream has.
var streamRights = [3]uint64{
	rightRead | rightSetFlags | rightFilestatGet | rightPoll,
	rightWrite | rightSetFlags | rightFilestatGet | rightPoll,
	rightWrite | rightSetFlags | rightFilestatGet | rightPoll,
}

const (
	// maxFlags holds all fdflags: append, dsync, nonblock, rsync, sync.
	maxFlags = 1<<5 - 1
	// filetypeCharacter makes C libraries flush output at each line end.
	filetypeCharacter = 2
)

func freshFDs() (fds [3]FD) {
	for i := range fds {
		fds[i] = FD{Stream: uint8(i), Base: streamRights[i]}
	}
	return fds
}

// fd returns a descriptor that is open, or nil.
func (h *Host) fd(n uint32) *FD {
	if n >= uint32(len(h.fds)) || h.fds[n].Closed {
		return nil
	}
	return &h.fds[n]
}

func (h *Host) fdClose(_ memory, stack []uint64) errno {
	fd := h.fd(uint32(stack[0]))
	if fd == nil {
		return errBadf
	}
	*fd = FD{Closed: true}
	return success
}

func (h *Host) fdRenumber(_ memory, stack []uint64) errno {
	from, to := h.fd(uint32(stack[0])), h.fd(uint32(stack[1]))
	if from == nil || to == nil {
		return errBadf
	}
	if from != to {
		*to = *from
		*from = FD{Closed: true}
	}
	return success
}

func (h *Host) fdFdstatGet(mem memory, stack []uint64) errno {
	fd := h.fd(uint32(stack[0]))
	if fd == nil {
		return errBadf
	}
	out, ok := mem.view(uint32(stack[1]), 24)
	if !ok {
		return errFault
	}
	clear(out)
	out[0] = filetypeCharacter
	le.PutUint16(out[2:], fd.Flags)
	le.PutUint64(out[8:], fd.Base)
	le.PutUint64(out[16:], fd.Inheriting)
	return success
}

func (h *Host) fdFdstatSetFlags(_ memory, stack []uint64) errno {
	fd := h.fd(uint32(stack[0]))
	if fd == nil {
		return errBadf
	}
	flags := uint32(stack[1])
	if flags > maxFlags {
		return errInval
	}
	if fd.Base&rightSetFlags == 0 {
		return errNotcapable
	}
	fd.Flags = uint16(flags)
	return success
}

func (h *Host) fdFdstatSetRights(_ memory, stack []uint64) errno {
	fd := h.fd(uint32(stack[0]))
	if fd == nil {
		return errBadf
	}
	base, inheriting := stack[1], stack[2]
	if base&^fd.Base != 0 || inheriting&^fd.Inheriting != 0 {
		return errNotcapable
	}
	fd.Base, fd.Inheriting = base, inheriting
	return success
}

func (h *Host) fdFilestatGet(mem memory, stack []uint64) errno {
	fd := h.fd(uint32(stack[0]))
	if fd == nil {
		return errBadf
	}
	if fd.Base&rightFilestatGet == 0 {
		return errNotcapable
	}
	out, ok := mem.view(uint32(stack[1]), 64)
	if !ok {
		return errFault
	}
	clear(out)
	out[16] = filetypeCharacter
	le.PutUint64(out[24:], 1) // links
	return success
}

// vectors returns a guest's list of buffers, each an address and a length, all
// of them in memory.
func vectors(mem memory, p, n uint32) ([]byte, errno) {
	if n > maxVectors {
		return nil, errInval
	}
	list, ok := mem.view(p, uint64(n)*8)
	if !ok {
		return nil, errFault
	}
	total := uint64(0)
	for v := list; len(v) > 0; v = v[8:] {
		size := le.Uint32(v[4:])
		if _, ok := mem.view(le.Uint32(v), uint64(size)); !ok {
			return nil, errFault
		}
		total += uint64(size)
	}
	if total > 1<<32-1 {
		return nil, errInval // more than can be answered
	}
	return list, success
}

func (h *Host) fdRead(mem memory, stack []uint64) errno {
	fd := h.fd(uint32(stack[0]))
	if fd == nil || fd.Stream != 0 {
		return errBadf
	}
	if fd.Base&rightRead == 0 {
		return errNotcapable
	}
	if _, e := vectors(mem, uint32(stack[1]), uint32(stack[2])); e != success {
		return e
	}
	n, ok := mem.view(uint32(stack[3]), 4)
	if !ok {
		return errFault
	}
	le.PutUint32(n, 0) // the end of the input
	return success
}

func (h *Host) fdWrite(mem memory, stack []uint64) errno {
	fd := h.fd(uint32(stack[0]))
	if fd == nil || fd.Stream == 0 {
		return errBadf
	}
	if fd.Base&rightWrite == 0 {
		return errNotcapable
	}
	// Everything is checked before anything is written: a write that fails has
	// not happened.
	list, e := vectors(mem, uint32(stack[1]), uint32(stack[2]))
	if e != success {
		return e
	}
	n, ok := mem.view(uint32(stack[3]), 4)
	if !ok {
		return errFault
	}
	var total uint32
	for ; len(list) > 0; list = list[8:] {
		buf, _ := mem.view(le.Uint32(list), uint64(le.Uint32(list[4:])))
		h.write(int(fd.Stream), buf)
		total += uint32(len(buf))
	}
	le.PutUint32(n, total)
	return success
}

// write adds output to a stream and hands on the lines that are whole.
func (h *Host) write(stream int, p []byte) {
	line := h.lines[stream]
	for len(p) > 0 {
		// One more than fits: a line of exactly MaxLine bytes and its end.
		piece := p[:min(len(p), MaxLine-len(line)+1)]
		if i := bytes.IndexByte(piece, '\n'); i >= 0 {
			line = append(line, piece[:i]...)
			p = p[i+1:]
			h.output(stream, line)
			line = line[:0]
			continue
		}
		room := min(len(p), MaxLine-len(line))
		line = append(line, p[:room]...)
		p = p[room:]
		if len(p) > 0 {
			h.output(stream, line)
			line = line[:0]
		}
	}
	h.lines[stream] = line
}

func (h *Host) pathSymlink(_ memory, stack []uint64) errno {
	// Its descriptor comes third, behind the old path.
	if h.fd(uint32(stack[2])) == nil {
		return errBadf
	}
	return errNotdir
}
