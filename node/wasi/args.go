package wasi

import (
	"errors"
	"fmt"
	"strings"
)

// A stringTable is a list of strings in the form guests read it.
type stringTable struct {
	count uint32
	// data holds the strings one after the other, each with a zero byte behind.
	data []byte
	// offsets are where each begins in data.
	offsets []uint32
}

func newStringTable(list []string) (stringTable, error) {
	var t stringTable
	for _, s := range list {
		if strings.IndexByte(s, 0) >= 0 {
			return t, errors.New("a string with a zero byte")
		}
		t.offsets = append(t.offsets, uint32(len(t.data)))
		t.data = append(append(t.data, s...), 0)
		if len(t.data) > MaxArgs {
			return t, fmt.Errorf("more than %d bytes", MaxArgs)
		}
	}
	t.count = uint32(len(list))
	return t, nil
}

func (t *stringTable) get(mem memory, stack []uint64) errno {
	pointers, data := uint32(stack[0]), uint32(stack[1])
	p, ok := mem.view(pointers, uint64(t.count)*4)
	if !ok {
		return errFault
	}
	d, ok := mem.view(data, uint64(len(t.data)))
	if !ok {
		return errFault
	}
	copy(d, t.data)
	for i, off := range t.offsets {
		le.PutUint32(p[4*i:], data+off)
	}
	return success
}

func (t *stringTable) sizes(mem memory, stack []uint64) errno {
	c, ok := mem.view(uint32(stack[0]), 4)
	if !ok {
		return errFault
	}
	n, ok := mem.view(uint32(stack[1]), 4)
	if !ok {
		return errFault
	}
	le.PutUint32(c, t.count)
	le.PutUint32(n, uint32(len(t.data)))
	return success
}

func (h *Host) argsGet(mem memory, stack []uint64) errno      { return h.args.get(mem, stack) }
func (h *Host) argsSizesGet(mem memory, stack []uint64) errno { return h.args.sizes(mem, stack) }
func (h *Host) environGet(mem memory, stack []uint64) errno   { return h.env.get(mem, stack) }
func (h *Host) environSizesGet(mem memory, stack []uint64) errno {
	return h.env.sizes(mem, stack)
}
