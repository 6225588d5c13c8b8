package wasi

import (
	"crypto/rand"

	"github.com/tetratelabs/wazero/api"
)

func (h *Host) randomGet(mem memory, stack []uint64) errno {
	return Random(mem.Memory, uint32(stack[0]), uint32(stack[1]))
}

// Random fills n bytes of guest memory at p with random bytes from the
// operating system. The result is 0, or 21 (EFAULT) if they are not all in
// memory.
func Random(mem api.Memory, p, n uint32) uint32 {
	view, ok := mem.Read(p, n)
	if !ok {
		return errFault
	}
	var buf [256]byte
	for len(view) > 0 {
		chunk := buf[:min(len(view), len(buf))]
		_, _ = rand.Read(chunk) // never fails: crypto/rand ends the process first
		view = view[copy(view, chunk):]
	}
	return success
}
