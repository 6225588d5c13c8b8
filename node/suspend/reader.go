package suspend

import (
	"fmt"
	"strconv"
)

// A reader takes a module apart. Its methods panic with a *RefusedError, which
// Prepare recovers: the format has so many small reads that checking each would
// hide what they are for. Positions count from the module's start.
type reader struct {
	b   []byte
	pos int
	end int // of the section, or of what is being read
	// where names what is being read, for errors.
	where string
}

// fail refuses the module.
func (r *reader) fail(e RefusedError) {
	if e.Where == "" {
		e.Where = fmt.Sprintf("%s, offset %#x", r.where, r.pos)
	}
	panic(&e)
}

// malformed refuses bytes that are no module.
func (r *reader) malformed(format string, args ...any) {
	r.fail(RefusedError{
		Feature: "malformed module",
		Why:     fmt.Sprintf(format, args...),
		Hint:    "the file is damaged or not WebAssembly: build it again",
	})
}

// left is the number of bytes not yet read.
func (r *reader) left() int { return r.end - r.pos }

func (r *reader) byte() byte {
	if r.pos >= r.end {
		r.malformed("unexpected end")
	}
	c := r.b[r.pos]
	r.pos++
	return c
}

func (r *reader) bytes(n uint32) []byte {
	if uint64(n) > uint64(r.left()) {
		r.malformed("%d bytes announced, %d left", n, r.left())
	}
	s := r.b[r.pos : r.pos+int(n) : r.pos+int(n)]
	r.pos += int(n)
	return s
}

// u32 reads an unsigned LEB128 of at most 32 bits.
func (r *reader) u32() uint32 {
	if r.pos < r.end && r.b[r.pos] < 0x80 { // by far the most
		r.pos++
		return uint32(r.b[r.pos-1])
	}
	return r.longU32()
}

func (r *reader) longU32() uint32 {
	var v uint32
	for shift := 0; ; shift += 7 {
		c := r.byte()
		if shift == 28 && c > 0x0f {
			r.malformed("integer over 32 bits")
		}
		v |= uint32(c&0x7f) << shift
		if c < 0x80 {
			return v
		}
	}
}

// skipLEB passes a LEB128 of at most n bytes.
func (r *reader) skipLEB(n int) {
	for range n {
		if r.byte() < 0x80 {
			return
		}
	}
	r.malformed("integer of more than %d bytes", n)
}

// count reads the length of a vector whose elements take at least size bytes
// each, at most limit of them.
func (r *reader) count(what string, limit uint32, size int) uint32 {
	n := r.u32()
	if n > limit {
		r.fail(RefusedError{
			Feature: "too many " + what,
			Why:     fmt.Sprintf("there are %d, at most %d are allowed", n, limit),
			Hint:    "split the module",
		})
	}
	if uint64(n)*uint64(size) > uint64(r.left()) {
		r.malformed("%d %s announced in %d bytes", n, what, r.left())
	}
	return n
}

func (r *reader) name() string {
	n := r.u32()
	if n > maxNameBytes {
		r.malformed("name of %d bytes", n)
	}
	return string(r.bytes(n))
}

// limits reads the limits of a memory or table.
func (r *reader) limits(what string) (min, max uint32, hasMax bool) {
	flags := r.byte()
	switch {
	case flags&0x02 != 0 && flags < 0x10:
		r.fail(RefusedError{
			Feature: "shared " + what,
			Why:     "threads are not supported",
			Hint:    "compile without threads (clang: without -pthread and --shared-memory)",
		})
	case flags&0x04 != 0 && flags < 0x10:
		r.fail(RefusedError{
			Feature: "64-bit " + what,
			Why:     "only 32-bit addresses are supported",
			Hint:    "compile for wasm32",
		})
	case flags&0x08 != 0 && flags < 0x10:
		r.fail(RefusedError{
			Feature: what + " with its own page size",
			Why:     "only pages of 64 KiB are supported",
			Hint:    "compile without custom page sizes",
		})
	case flags > 1:
		r.malformed("limits of kind %#02x", flags)
	}
	min = r.u32()
	if flags&1 != 0 {
		max, hasMax = r.u32(), true
		if max < min {
			r.malformed("%s of at least %d and at most %d", what, min, max)
		}
	}
	return min, max, hasMax
}

// quote makes a module's own name fit for an error message.
func quote(s string) string {
	const most = 100
	if len(s) > most {
		return strconv.Quote(s[:most]) + "..."
	}
	return strconv.Quote(s)
}

// appendU32 appends an unsigned LEB128.
func appendU32(b []byte, v uint32) []byte {
	for v >= 0x80 {
		b = append(b, byte(v)|0x80)
		v >>= 7
	}
	return append(b, byte(v))
}

// appendS32 appends a signed LEB128.
func appendS32(b []byte, v int32) []byte {
	for {
		c := byte(v & 0x7f)
		v >>= 7
		if v == 0 && c&0x40 == 0 || v == -1 && c&0x40 != 0 {
			return append(b, c)
		}
		b = append(b, c|0x80)
	}
}
