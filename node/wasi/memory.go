package wasi

import (
	"encoding/binary"

	"github.com/tetratelabs/wazero/api"
)

var le = binary.LittleEndian

// memory is the calling guest's linear memory.
type memory struct{ api.Memory }

// view returns n bytes of guest memory at p, or false if they are not all in
// it. The slice is the memory itself.
func (m memory) view(p uint32, n uint64) ([]byte, bool) {
	if m.Memory == nil || n > 1<<32-1 {
		return nil, false
	}
	return m.Read(p, uint32(n))
}
