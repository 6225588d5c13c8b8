package runner

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"meshnode/node/suspend"
)

// Messages between the node and a runner. Big endian:
//
//	length uint32  // of all that follows, at least 1
//	type   uint8
//	body   [length-1]byte  // CBOR, one item
//
// The node asks, the runner answers with one message; before its answer the
// runner may send any number of msgLog, and before that to an event any number
// of msgRead, each answered by the node with a msgReading. A runner is no more trusted than the
// worker in it, so both sides check length before they read and CBOR is decoded
// with limits.
const (
	// From the node.
	msgSetup   = 0x01 // setup -> ready | failed
	msgInit    = 0x02 // nothing -> ok | stopped
	msgClear   = 0x03 // nothing -> ok | failed
	msgRestore = 0x04 // State -> ok | failed
	msgEvent   = 0x05 // Event -> effects | stopped
	msgState   = 0x06 // nothing -> state
	msgForget  = 0x07 // stretch -> ok | failed
	msgRun     = 0x08 // nothing -> ok | failed
	msgHalt    = 0x09 // nothing -> ok | failed
	msgPush    = 0x0a // input -> pushed | failed
	msgTake    = 0x0b // ack -> taken | failed
	// About the blocks of a command's files.
	msgStored    = 0x0c // storedAsk -> storedAre | failed
	msgBlocks    = 0x0d // blocksAsk -> blocksAre | failed
	msgPutBlocks = 0x0e // blocks -> ok | failed
	msgMissing   = 0x0f // missingAsk -> missingAre | failed
	msgGiveUp    = 0x10 // blocksAsk -> ok | failed
	msgLook      = 0x11 // lookAsk -> looked | failed

	msgReading = 0x12 // reading: the answer to msgRead

	// From the runner.
	msgReady   = 0x81 // ready; the userfaultfd, if any, travels with its first byte
	msgOK      = 0x82 // nothing
	msgFailed  = 0x83 // failed: the request could not be done; the worker is as before
	msgStopped = 0x84 // stopped: the worker runs no more
	msgEffects = 0x85 // Effects
	msgStateIs = 0x86 // State
	msgLog     = 0x87 // logLine
	msgPushed  = 0x88 // pushed
	msgTaken   = 0x89 // taken

	msgStoredAre  = 0x8a // storedAre
	msgBlocksAre  = 0x8b // blocks
	msgMissingAre = 0x8c // missingAre
	msgLooked     = 0x8d // Looked

	msgRead = 0x8e // readAsk -> reading, during an event
)

const (
	frameHeader = 5
	// maxRequest bounds a message to the runner: a payload or the state of a
	// worker with as many globals, timers, frames, files and bytes in its streams
	// as allowed.
	maxRequest = MaxPayload + MaxSendBytes + maxTreeState + 1<<20
	// maxAnswer bounds a message from the runner: the largest reply, the most
	// messages and the most timers, or a state.
	maxAnswer = maxRequest
	// maxTake bounds the output in one answer, in bytes.
	maxTake = 256 << 10
)

type setup struct {
	ModulePath  string   `cbor:"1,keyasint"`
	CacheDir    string   `cbor:"2,keyasint,omitempty"`
	MemoryLimit uint64   `cbor:"3,keyasint"`
	Args        []string `cbor:"4,keyasint,omitempty"`
	Env         []string `cbor:"5,keyasint,omitempty"`
	Interpreter bool     `cbor:"6,keyasint,omitempty"`
	Kind        Kind     `cbor:"7,keyasint,omitempty"`
	Dirs        []Dir    `cbor:"8,keyasint,omitempty"`
	FilesPath   string   `cbor:"9,keyasint,omitempty"`
	FilesLimit  int64    `cbor:"10,keyasint,omitempty"`
}

// An input is what comes next on a command's standard input: a message, or its
// end.
type input struct {
	Message []byte `cbor:"1,keyasint,omitempty"`
	End     bool   `cbor:"2,keyasint,omitempty"`
}

// A pushed says what became of an input. Full: there was no room. Ended: the
// input had ended before.
type pushed struct {
	Full  bool `cbor:"1,keyasint,omitempty"`
	Ended bool `cbor:"2,keyasint,omitempty"`
}

type ack struct {
	Acked uint64 `cbor:"1,keyasint"`
}

// A taken is Taken on its way.
type taken struct {
	Output []Output `cbor:"1,keyasint,omitempty"`
	Unread int      `cbor:"2,keyasint,omitempty"`
	Pages  uint32   `cbor:"3,keyasint"`
	Ended  *stopped `cbor:"4,keyasint,omitempty"`
}

type ready struct {
	// Base is where the runner mapped the memory.
	Base uint64 `cbor:"1,keyasint"`
	// Pages is linear memory's size with nothing called yet, in WasmPage.
	Pages uint32 `cbor:"2,keyasint"`
	// Compiler is false if the module is interpreted.
	Compiler bool `cbor:"3,keyasint,omitempty"`
	// UFFD says that a userfaultfd came with this message, and Features what
	// the kernel granted it; if not, UFFDError says why.
	UFFD      bool   `cbor:"4,keyasint,omitempty"`
	Features  uint64 `cbor:"5,keyasint,omitempty"`
	UFFDError string `cbor:"6,keyasint,omitempty"`
	// Sandbox is false where system calls could not be restricted, and
	// SandboxError says why.
	Sandbox      bool   `cbor:"7,keyasint,omitempty"`
	SandboxError string `cbor:"8,keyasint,omitempty"`
	// Command tells a command worker from an event worker.
	Command bool `cbor:"9,keyasint,omitempty"`
}

// A stretch of linear memory, in bytes.
type stretch struct {
	Offset uint64 `cbor:"1,keyasint"`
	Length uint64 `cbor:"2,keyasint"`
}

type failed struct {
	Reason string `cbor:"1,keyasint"`
	// Kind is an ExitKind if that is why.
	Kind ExitKind `cbor:"2,keyasint,omitempty"`
	// Refused is set if the module cannot be a worker.
	Refused *suspend.RefusedError `cbor:"3,keyasint,omitempty"`
}

type stopped struct {
	Kind   ExitKind `cbor:"1,keyasint"`
	Reason string   `cbor:"2,keyasint"`
	Code   uint32   `cbor:"3,keyasint,omitempty"`
	Stack  string   `cbor:"4,keyasint,omitempty"`
}

type logLine struct {
	Level  int    `cbor:"1,keyasint,omitempty"`
	Source string `cbor:"2,keyasint"`
	Text   string `cbor:"3,keyasint"`
}

// A readAsk asks for a reading of an interface of the host.
type readAsk struct {
	Name string `cbor:"1,keyasint"`
}

// A reading is what an interface of the host said, or in Code, one of the result
// codes of the host interface, why it did not.
type reading struct {
	Code uint32 `cbor:"1,keyasint,omitempty"`
	Data []byte `cbor:"2,keyasint,omitempty"`
}

var (
	encMode = must(cbor.EncOptions{}.UserBufferEncMode())
	// decMode's limits are those of the largest honest message; the frame's
	// length bounds strings.
	decMode = must(cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		IndefLength:      cbor.IndefLengthForbidden,
		TagsMd:           cbor.TagsForbidden,
		MaxNestedLevels:  8,
		MaxArrayElements: maxGlobals,
		MaxMapPairs:      64,
	}.DecMode())
)

// maxGlobals bounds the mutable globals of a worker, and with them every other
// list in a message.
const maxGlobals = 64 << 10

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

var errFrame = errors.New("malformed runner message")

// putFrame puts a message into b, in place of what is there. body nil means an
// empty body.
func putFrame(b *bytes.Buffer, typ byte, body any) error {
	b.Reset()
	b.Write([]byte{0, 0, 0, 0, typ})
	if body != nil {
		if err := encMode.MarshalToBuffer(body, b); err != nil {
			return fmt.Errorf("encode message %#x: %w", typ, err)
		}
	}
	binary.BigEndian.PutUint32(b.Bytes(), uint32(b.Len()-4))
	return nil
}

// frameSize reads a header and returns the length of the body that follows it.
func frameSize(h []byte, limit int) (typ byte, body int, err error) {
	if len(h) < frameHeader {
		return 0, 0, fmt.Errorf("%w: short header", errFrame)
	}
	n := binary.BigEndian.Uint32(h)
	if n == 0 || uint64(n) > uint64(limit)+1 {
		return 0, 0, fmt.Errorf("%w: length %d, limit %d", errFrame, n, limit)
	}
	return h[4], int(n) - 1, nil
}

// decode reads a message's body, which must be one CBOR item without anything
// after it.
func decode(body []byte, v any) error {
	if err := decMode.Unmarshal(body, v); err != nil {
		return fmt.Errorf("%w: %w", errFrame, err)
	}
	return nil
}
