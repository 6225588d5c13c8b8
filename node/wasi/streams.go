package wasi

import (
	"errors"
	"fmt"
	"sync"
)

// Limits of Streams.
const (
	// MaxInput bounds the input that waits for the guest, in bytes, and with it
	// one message.
	MaxInput = 1 << 20
	// MaxInputMessages bounds the messages that wait.
	MaxInputMessages = 1024
	// MaxOutput bounds the output that nobody has acknowledged, in bytes. A
	// guest that writes more waits.
	MaxOutput = 1 << 20
	// maxPieces bounds the pieces that output is in: a guest that writes to its
	// two streams in turn makes one each time.
	maxPieces = 1024
)

// ErrFull means that there is no room for another message until the guest has
// read some.
var ErrFull = errors.New("input queue full")

// ErrInputClosed means that the input has ended already.
var ErrInputClosed = errors.New("input closed")

// Streams are a command worker's standard input, output and error, between the
// guest on one side and its node on the other. Safe for concurrent use.
//
// Input is a queue of messages, which the guest reads as one stream of bytes; a
// read ends at a message's end at the latest, as a terminal's does at a line's.
// Output is a log with an offset that counts the bytes of both streams ever
// written: what the guest has been told is written stays in the log, and in the
// worker's state, until the node acknowledges it. So each byte is read and
// written once across any number of moves: whoever takes the output over goes
// on at the last acknowledged offset, whoever sends the input at Pushed.
type Streams struct {
	// wake tells the guest's side that something happened, more the node's.
	wake, more chan struct{}

	mu      sync.Mutex
	in      [][]byte
	inBytes int
	pushed  uint64
	closed  bool
	// refused says that a message was, for want of room.
	refused bool
	// out are bytes of one stream each; the first begins at acked.
	out      []Output
	outBytes int
	acked    uint64
}

// An Output is what the guest wrote to one stream, in the order of all it wrote.
type Output struct {
	// Offset counts the bytes written before, to both streams.
	Offset uint64
	// Stream is 1 for standard output, 2 for standard error.
	Stream int
	// Data must not be changed.
	Data []byte
}

// NewStreams makes streams that nothing has been written to.
func NewStreams() *Streams {
	return &Streams{wake: make(chan struct{}, 1), more: make(chan struct{}, 1)}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Push appends a message to the input, of which it keeps a copy. The error is
// ErrFull, ErrInputClosed, or says that the message is too large.
func (s *Streams) Push(message []byte) error {
	if len(message) > MaxInput {
		return fmt.Errorf("message of %d bytes, at most %d", len(message), MaxInput)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return ErrInputClosed
	case s.inBytes+len(message) > MaxInput || len(s.in) >= MaxInputMessages:
		s.refused = true
		return ErrFull
	}
	s.pushed++
	if len(message) == 0 {
		return nil // nothing to read; an empty read would mean the end
	}
	s.in = append(s.in, append([]byte(nil), message...))
	s.inBytes += len(message)
	signal(s.wake)
	return nil
}

// CloseInput ends the input behind the messages that wait.
func (s *Streams) CloseInput() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	signal(s.wake)
}

// Pushed returns how many messages were ever pushed and how many of them the
// guest has yet to read, in whole or in part.
func (s *Streams) Pushed() (total uint64, unread int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pushed, len(s.in)
}

// Next returns the output that begins at an offset, of one stream and with at
// most max bytes, or false if there is none yet. The offset is one that Acked,
// or Output.Offset and the length of its data, lead to.
func (s *Streams) Next(offset uint64, max int) (Output, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.out {
		end := o.Offset + uint64(len(o.Data))
		if offset >= o.Offset && offset < end {
			data := o.Data[offset-o.Offset:]
			return Output{offset, o.Stream, data[:min(len(data), max):min(len(data), max)]}, true
		}
	}
	return Output{}, false
}

// Acked returns the offset up to which output has been acknowledged.
func (s *Streams) Acked() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.acked
}

// Ack says that all output before an offset is in safe hands. The error is that
// nothing was written there yet.
func (s *Streams) Ack(offset uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if offset > s.acked+uint64(s.outBytes) {
		return fmt.Errorf("acknowledged offset %d, written are %d bytes", offset, s.acked+uint64(s.outBytes))
	}
	for s.acked < offset {
		first := &s.out[0]
		n := min(uint64(len(first.Data)), offset-s.acked)
		s.acked += n
		s.outBytes -= int(n)
		if int(n) == len(first.Data) {
			s.out[0] = Output{}
			s.out = s.out[1:]
			continue
		}
		first.Data, first.Offset = first.Data[n:], s.acked
	}
	signal(s.wake)
	return nil
}

// More receives when there may be new output, or room for input after ErrFull.
// One receiver at a time.
func (s *Streams) More() <-chan struct{} { return s.more }

// readable returns the bytes a read can have now, and whether the input has
// ended.
func (s *Streams) readable() (n int, ended bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inBytes, s.closed && len(s.in) == 0
}

// writable returns how many bytes of output there is room for.
func (s *Streams) writable() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.out) >= maxPieces {
		return 0
	}
	return MaxOutput - s.outBytes
}

// first returns the input that comes next, nil if there is none. Guest memory
// is read and written without the lock: its pages may have yet to arrive, and
// the node must not wait for them.
func (s *Streams) first() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.in) == 0 {
		return nil
	}
	return s.in[0]
}

// consume takes n bytes of what first returned.
func (s *Streams) consume(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.in[0] = s.in[0][n:]; len(s.in[0]) == 0 {
		s.in[0] = nil
		s.in = s.in[1:]
	}
	s.inBytes -= n
	if s.refused {
		s.refused = false
		signal(s.more)
	}
}

// write appends output, which it keeps.
func (s *Streams) write(stream int, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.appendLocked(stream, data)
	signal(s.more)
}

// sharedOutput is the size of buffers that small writes share, in bytes, so
// that their number is not the limit.
const sharedOutput = 4 << 10

// appendLocked adds output. A reader may hold what a shared buffer held before,
// but never what comes behind it.
func (s *Streams) appendLocked(stream int, data []byte) {
	if n := len(s.out); n > 0 && s.out[n-1].Stream == stream {
		last := &s.out[n-1]
		k := min(cap(last.Data)-len(last.Data), len(data))
		last.Data = append(last.Data, data[:k]...)
		s.outBytes += k
		data = data[k:]
	}
	if len(data) == 0 {
		return
	}
	if len(data) < sharedOutput {
		data = append(make([]byte, 0, sharedOutput), data...)
	}
	s.out = append(s.out, Output{s.acked + uint64(s.outBytes), stream, data})
	s.outBytes += len(data)
}

// A StreamState is what Streams remember.
type StreamState struct {
	// In are the messages the guest has yet to read, the first of them perhaps
	// in part.
	In [][]byte `cbor:"1,keyasint,omitempty"`
	// Pushed counts all messages ever pushed: the next is Pushed+1.
	Pushed uint64 `cbor:"2,keyasint,omitempty"`
	// Closed says that no message follows.
	Closed bool `cbor:"3,keyasint,omitempty"`
	// Out is the output from Acked on, without gaps.
	Out []OutputState `cbor:"4,keyasint,omitempty"`
	// Acked counts the bytes of output that were acknowledged.
	Acked uint64 `cbor:"5,keyasint,omitempty"`
}

// An OutputState is output of one stream.
type OutputState struct {
	Stream int    `cbor:"1,keyasint"`
	Data   []byte `cbor:"2,keyasint"`
}

// state returns a copy of what the streams remember.
func (s *Streams) state() *StreamState {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &StreamState{Pushed: s.pushed, Closed: s.closed, Acked: s.acked}
	for _, m := range s.in {
		st.In = append(st.In, append([]byte(nil), m...))
	}
	for _, o := range s.out {
		if n := len(st.Out); n > 0 && st.Out[n-1].Stream == o.Stream {
			st.Out[n-1].Data = append(st.Out[n-1].Data, o.Data...)
			continue
		}
		st.Out = append(st.Out, OutputState{o.Stream, append([]byte(nil), o.Data...)})
	}
	return st
}

// check says what in st no Streams would have said.
func (st *StreamState) check() error {
	total := 0
	for _, m := range st.In {
		if len(m) == 0 {
			return errors.New("an empty message waits")
		}
		total += len(m)
	}
	if total > MaxInput || len(st.In) > MaxInputMessages || uint64(len(st.In)) > st.Pushed {
		return fmt.Errorf("%d messages of %d bytes wait, %d were pushed", len(st.In), total, st.Pushed)
	}
	total = 0
	for _, o := range st.Out {
		if o.Stream != 1 && o.Stream != 2 || len(o.Data) == 0 {
			return fmt.Errorf("%d bytes of output on stream %d", len(o.Data), o.Stream)
		}
		total += len(o.Data)
	}
	if total > MaxOutput || len(st.Out) > maxPieces || st.Acked > 1<<62 {
		return fmt.Errorf("%d bytes of output in %d pieces behind %d", total, len(st.Out), st.Acked)
	}
	return nil
}

// setState makes the streams what st says, which check has accepted.
func (s *Streams) setState(st *StreamState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.in, s.inBytes, s.out, s.outBytes = nil, 0, nil, 0
	s.pushed, s.closed, s.acked = st.Pushed, st.Closed, st.Acked
	for _, m := range st.In {
		s.in = append(s.in, append([]byte(nil), m...))
		s.inBytes += len(m)
	}
	for _, o := range st.Out {
		s.appendLocked(o.Stream, append([]byte(nil), o.Data...))
	}
	signal(s.wake)
	signal(s.more)
}
