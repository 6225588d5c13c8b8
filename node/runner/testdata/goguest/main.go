// Command goguest is a worker in Go for the runner's tests, on the bare host
// interface.
package main

import (
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"
	"unsafe"
)

//go:wasmimport meshnode_v1 event_read
func eventRead(p unsafe.Pointer, n, offset uint32) uint32

//go:wasmimport meshnode_v1 reply
func reply(p unsafe.Pointer, n uint32) uint32

var (
	words   = map[string]int{}
	bodies  []float64
	started = time.Now()
)

// physics is a few thousand steps of arithmetic on a few hundred KiB.
func physics(steps int) {
	if bodies == nil {
		bodies = make([]float64, 6*4096)
		for i := range bodies {
			bodies[i] = float64(i%97) / 7
		}
	}
	const dt = 1.0 / 60
	for range steps {
		for i := 0; i < len(bodies); i += 6 {
			b := bodies[i : i+6 : i+6]
			b[4] -= 9.81 * dt
			b[0] += b[3] * dt
			b[1] += b[4] * dt
			b[2] += b[5] * dt
			if b[1] < 0 {
				b[1], b[4] = -b[1], -0.5*b[4]
			}
		}
	}
}

//go:wasmexport meshnode_event
func event(kind int32, id int64, n int32) int32 {
	payload := make([]byte, n)
	if n > 0 {
		eventRead(unsafe.Pointer(&payload[0]), uint32(n), 0)
	}
	var out []byte
	switch id {
	case 0: // the least there is
		return 0
	case 1: // count words, in goroutines, and say them all
		done := make(chan string)
		for _, w := range []string{string(payload), "all"} {
			go func() { done <- w }()
		}
		for range 2 {
			words[<-done]++
		}
		for _, w := range slices.Sorted(maps.Keys(words)) {
			out = fmt.Appendf(out, "%s=%d ", w, words[w])
		}
		fmt.Println("counted", string(payload))
		time.Sleep(time.Millisecond)
	case 2:
		physics(200)
		out = binary.LittleEndian.AppendUint64(nil, uint64(bodies[1]*1e9))
	case 3:
		panic("as asked: " + string(payload))
	case 4:
		os.Exit(3)
	case 5: // allocate until there is no more
		var keep [][]byte
		for {
			keep = append(keep, make([]byte, 1<<20))
			words["x"] = len(keep)
		}
	case 6:
		out = binary.LittleEndian.AppendUint64(nil, uint64(time.Since(started)))
	case 7:
		out = fmt.Append(nil, os.Args, os.Environ())
	case 8:
		out = payload
	}
	if len(out) > 0 {
		reply(unsafe.Pointer(&out[0]), uint32(len(out)))
	}
	return 0
}

func main() {}
