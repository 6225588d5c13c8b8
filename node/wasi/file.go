package wasi

import (
	"bytes"
	"iter"
	"math"
)

// vectors returns a guest's list of buffers, each an address and a length, all
// of them in memory, and how many bytes they are together.
func vectors(mem memory, p, n uint32) (list []byte, total int64, e errno) {
	if n > maxVectors {
		return nil, 0, errInval
	}
	list, ok := mem.view(p, uint64(n)*8)
	if !ok {
		return nil, 0, errFault
	}
	for v := list; len(v) > 0; v = v[8:] {
		size := le.Uint32(v[4:])
		if _, ok := mem.view(le.Uint32(v), uint64(size)); !ok {
			return nil, 0, errFault
		}
		total += int64(size)
	}
	if total > math.MaxUint32 {
		return nil, 0, errInval // more than can be answered
	}
	// A buffer may lie over the list: what is read must not change it.
	return append([]byte(nil), list...), total, success
}

// buffers yields the buffers of a list that vectors returned, the first max
// bytes of them.
func buffers(mem memory, list []byte, max int64) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		left := max
		for v := list; len(v) > 0 && left > 0; v = v[8:] {
			b, _ := mem.view(le.Uint32(v), uint64(le.Uint32(v[4:])))
			b = b[:min(int64(len(b)), left)]
			left -= int64(len(b))
			if len(b) > 0 && !yield(b) {
				return
			}
		}
	}
}

// readFile delivers what is at offset; all of it or nothing.
func (h *Host) readFile(mem memory, f *inode, offset int64, list []byte, total int64, out []byte) (int64, errno) {
	n := min(total, max(0, f.size-offset))
	if e := h.tree.ready(f.chunks, offset, n); e != success {
		return 0, e
	}
	at := offset
	for b := range buffers(mem, list, n) {
		if e := h.tree.read(f.chunks, at, b); e != success {
			return 0, e
		}
		at += int64(len(b))
	}
	le.PutUint32(out, uint32(n))
	return n, success
}

func (h *Host) fdRead(mem memory, stack []uint64) errno {
	d := h.fd(uint32(stack[0]))
	switch {
	case d == nil || d.node == nil && d.stream != 0:
		return errBadf
	case d.kind() == filetypeDirectory:
		return errIsdir
	case d.base&rightRead == 0:
		return errNotcapable
	}
	list, total, e := vectors(mem, uint32(stack[1]), uint32(stack[2]))
	if e != success {
		return e
	}
	out, ok := mem.view(uint32(stack[3]), 4)
	if !ok {
		return errFault
	}
	if d.node != nil {
		n, e := h.readFile(mem, d.node, d.offset, list, total, out)
		d.offset += n
		return e
	}
	n := 0
	for h.streams != nil && total > 0 {
		if input := h.streams.first(); input != nil {
			for b := range buffers(mem, list, int64(len(input))) {
				n += copy(b, input[n:])
			}
			h.streams.consume(n)
			break
		}
		waiting, ended := h.streams.readable()
		if ended {
			break
		}
		if waiting > 0 {
			continue // it came just now
		}
		if d.flags&flagNonblock != 0 {
			return errAgain
		}
		if e := h.pause(never, h.streams.wake); e != success {
			return e
		}
	}
	le.PutUint32(out, uint32(n))
	return success
}

func (h *Host) fdPread(mem memory, stack []uint64) errno {
	d, e := h.file(uint32(stack[0]), rightRead, errSpipe)
	if e != success {
		return e
	}
	list, total, e := vectors(mem, uint32(stack[1]), uint32(stack[2]))
	if e != success {
		return e
	}
	out, ok := mem.view(uint32(stack[4]), 4)
	if !ok {
		return errFault
	}
	if int64(stack[3]) < 0 {
		return errInval
	}
	_, e = h.readFile(mem, d.node, int64(stack[3]), list, total, out)
	return e
}

func (h *Host) fdWrite(mem memory, stack []uint64) errno {
	d := h.fd(uint32(stack[0]))
	switch {
	case d == nil || d.node == nil && d.stream == 0:
		return errBadf
	case d.kind() == filetypeDirectory:
		return errIsdir
	case d.base&rightWrite == 0:
		return errNotcapable
	}
	// Everything is checked before anything is written: a write that fails has
	// not happened.
	list, total, e := vectors(mem, uint32(stack[1]), uint32(stack[2]))
	if e != success {
		return e
	}
	out, ok := mem.view(uint32(stack[3]), 4)
	if !ok {
		return errFault
	}
	switch {
	case d.node != nil:
		at := d.offset
		if d.flags&flagAppend != 0 {
			at = d.node.size
		}
		if e := h.writeFile(mem, d.node, at, list, total); e != success {
			return e
		}
		if total > 0 {
			d.offset = at + total
		}
	case h.streams != nil:
		if total, e = h.say(mem, d, list, total); e != success {
			return e
		}
	default:
		for b := range buffers(mem, list, total) {
			h.writeLines(int(d.stream), b)
		}
	}
	le.PutUint32(out, uint32(total))
	return success
}

// writeFile writes all buffers to a file, or nothing.
func (h *Host) writeFile(mem memory, f *inode, at int64, list []byte, total int64) errno {
	if at < 0 || at > math.MaxInt64-total {
		return errFbig
	}
	return h.tree.writeAt(f, at, total, buffers(mem, list, total))
}

func (h *Host) fdPwrite(mem memory, stack []uint64) errno {
	d, e := h.file(uint32(stack[0]), rightWrite, errSpipe)
	if e != success {
		return e
	}
	list, total, e := vectors(mem, uint32(stack[1]), uint32(stack[2]))
	if e != success {
		return e
	}
	out, ok := mem.view(uint32(stack[4]), 4)
	if !ok {
		return errFault
	}
	if int64(stack[3]) < 0 {
		return errInval
	}
	// POSIX: at the offset, also of a file that is appended to.
	if e := h.writeFile(mem, d.node, int64(stack[3]), list, total); e != success {
		return e
	}
	le.PutUint32(out, uint32(total))
	return success
}

// say writes to a command worker's output and returns how much. A write goes
// out in one piece unless it is more than all the room there ever is, or must
// not wait.
func (h *Host) say(mem memory, d *descriptor, list []byte, total int64) (int64, errno) {
	for total > 0 {
		room := int64(h.streams.writable())
		switch {
		case room >= total:
		case d.flags&flagNonblock != 0 && room <= 0:
			return 0, errAgain
		case room > 0 && (total > MaxOutput || d.flags&flagNonblock != 0):
			total = room
		default:
			if e := h.pause(never, h.streams.wake); e != success {
				return 0, e
			}
			continue
		}
		data := make([]byte, 0, total)
		for b := range buffers(mem, list, total) {
			data = append(data, b...)
		}
		h.streams.write(int(d.stream), data)
		break
	}
	return total, success
}

// writeLines adds output to an event worker's stream and hands on the lines
// that are whole.
func (h *Host) writeLines(stream int, p []byte) {
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

func (h *Host) fdAllocate(_ memory, stack []uint64) errno {
	d, e := h.file(uint32(stack[0]), rightAllocate, errSpipe)
	if e != success {
		return e
	}
	offset, n := int64(stack[1]), int64(stack[2])
	switch {
	case offset < 0 || n <= 0:
		return errInval
	case offset > math.MaxInt64-n:
		return errFbig
	case offset+n <= d.node.size:
		return success
	}
	return h.tree.resize(d.node, offset+n)
}

func (h *Host) fdFilestatSetSize(_ memory, stack []uint64) errno {
	d, e := h.file(uint32(stack[0]), rightFilestatSetSize, errInval)
	if e != success {
		return e
	}
	if int64(stack[1]) < 0 {
		return errFbig
	}
	return h.tree.resize(d.node, int64(stack[1]))
}
