package wasi

import (
	"errors"
	"fmt"
)

// A State is what a guest's WASI functions remember between two calls. It is
// CBOR with the integer keys below, which are only ever added to; state.cddl is
// its schema. The Clock is not in it, its reading travels beside it; nor are the
// blocks of the files.
type State struct {
	// FDs are the descriptors by number, closed ones between them included.
	FDs []FD `cbor:"1,keyasint"`
	// Tree is the file system: a version byte, then CBOR.
	Tree []byte `cbor:"2,keyasint,omitempty"`
	// Streams are a command worker's.
	Streams *StreamState `cbor:"3,keyasint,omitempty"`
	// Poll is the poll that was interrupted.
	Poll *PollState `cbor:"4,keyasint,omitempty"`
	// Waited is how long the guest has waited, in nanoseconds.
	Waited int64 `cbor:"5,keyasint,omitempty"`
	// Lines are what an event worker has written to standard output and error
	// behind the last line end.
	Lines [][]byte `cbor:"6,keyasint,omitempty"`
}

// An FD is one descriptor.
type FD struct {
	// Stream is what it leads to if Inode is 0: 0 standard input, 1 output,
	// 2 error.
	Stream uint8 `cbor:"1,keyasint,omitempty"`
	Closed bool  `cbor:"2,keyasint,omitempty"`
	// Flags are fdflags.
	Flags uint16 `cbor:"3,keyasint,omitempty"`
	// Base and Inheriting are rights; a guest can only give them up.
	Base       uint64 `cbor:"4,keyasint,omitempty"`
	Inheriting uint64 `cbor:"5,keyasint,omitempty"`
	// Inode is the file or directory it leads to.
	Inode uint64 `cbor:"6,keyasint,omitempty"`
	// Offset is where a file is read and written next, in bytes.
	Offset int64 `cbor:"7,keyasint,omitempty"`
	// Preopen is the name of a preopened directory.
	Preopen string `cbor:"8,keyasint,omitempty"`
}

// MaxState bounds an encoded State, in bytes.
const MaxState = MaxTree + MaxInput + MaxOutput + 2<<20

// State returns the guest's state, between two of its calls. What is not named
// yet is named first, so that Block has all that the state needs.
func (h *Host) State() State {
	var s State
	for _, d := range h.fds {
		if d == nil {
			s.FDs = append(s.FDs, FD{Closed: true})
			continue
		}
		fd := FD{
			Stream: d.stream, Flags: d.flags, Base: d.base, Inheriting: d.inheriting,
			Offset: d.offset, Preopen: d.preopen,
		}
		if d.node != nil {
			fd.Inode = d.node.ino
		}
		s.FDs = append(s.FDs, fd)
	}
	if len(h.tree.inodes) > 0 || h.tree.next > 1 {
		s.Tree = h.tree.encode()
	}
	if h.streams != nil {
		s.Streams = h.streams.state()
	}
	if h.poll != nil {
		p := *h.poll
		s.Poll = &p
	}
	s.Waited = h.waited
	if len(h.lines[1])+len(h.lines[2]) > 0 {
		for stream := 1; stream <= 2; stream++ {
			s.Lines = append(s.Lines, append([]byte{}, h.lines[stream]...))
		}
	}
	return s
}

// SetState makes the guest's state what another Host's was; the slices in it
// are not kept. Blocks that are here already stay. The error says what in s no
// Host would have said, and nothing has changed then.
func (h *Host) SetState(s State) error {
	if err := h.setState(s); err != nil {
		return fmt.Errorf("WASI state: %w", err)
	}
	return nil
}

func (h *Host) setState(s State) error {
	if (s.Streams != nil) != (h.streams != nil) {
		return errors.New("streams are a command worker's, and only its")
	}
	if s.Streams != nil {
		if err := s.Streams.check(); err != nil {
			return fmt.Errorf("streams: %w", err)
		}
	}
	if s.Waited < 0 || s.Poll != nil && (s.Poll.Began < 0 || s.Poll.N > maxSubscriptions || s.Streams == nil) {
		return errors.New("waits that cannot be")
	}
	if len(s.Lines) != 0 && (len(s.Lines) != 2 || s.Streams != nil) {
		return fmt.Errorf("%d unfinished lines", len(s.Lines))
	}
	for _, line := range s.Lines {
		if len(line) > MaxLine {
			return fmt.Errorf("a line of %d bytes, at most %d", len(line), MaxLine)
		}
	}
	t := newTree(h.store, h.tree.limits)
	t.now = h.tree.now
	if len(s.Tree) > 0 {
		var err error
		if t, err = h.tree.decode(s.Tree); err != nil {
			return fmt.Errorf("file system: %w", err)
		}
	}
	if len(s.FDs) > MaxFDs {
		return fmt.Errorf("%d descriptors, at most %d", len(s.FDs), MaxFDs)
	}
	fds := make([]*descriptor, len(s.FDs))
	for i, fd := range s.FDs {
		if fd == (FD{Closed: true}) {
			continue
		}
		d, err := t.descriptor(fd)
		if err != nil {
			return fmt.Errorf("descriptor %d: %w", i, err)
		}
		fds[i] = d
	}
	if err := t.reached(); err != nil {
		return fmt.Errorf("file system: %w", err)
	}

	h.fds, h.tree, h.waited, h.poll, h.interrupted = fds, t, s.Waited, nil, false
	t.expectAll()
	if s.Poll != nil {
		p := *s.Poll
		h.poll = &p
	}
	if s.Streams != nil {
		h.streams.setState(s.Streams)
	}
	h.lines = [3][]byte{}
	for i, line := range s.Lines {
		h.lines[i+1] = append([]byte(nil), line...)
	}
	return nil
}

// descriptor makes a descriptor that is open.
func (t *tree) descriptor(fd FD) (*descriptor, error) {
	if fd.Closed {
		return nil, errors.New("closed, and not nothing")
	}
	if fd.Stream > 2 {
		return nil, fmt.Errorf("stream %d", fd.Stream)
	}
	d := &descriptor{
		stream: fd.Stream, offset: fd.Offset, flags: fd.Flags,
		base: fd.Base, inheriting: fd.Inheriting, preopen: fd.Preopen,
	}
	if fd.Inode != 0 {
		n := t.inodes[fd.Inode]
		if n == nil || n.kind == filetypeSymlink || fd.Stream != 0 {
			return nil, fmt.Errorf("inode %d and stream %d", fd.Inode, fd.Stream)
		}
		d.node = n
		n.opens++
	}
	base, inheriting := d.most()
	switch {
	case fd.Base&^base != 0 || fd.Inheriting&^inheriting != 0:
		return nil, fmt.Errorf("rights %#x and %#x, at most %#x and %#x", fd.Base, fd.Inheriting, base, inheriting)
	case fd.Flags > maxFlags:
		return nil, fmt.Errorf("flags %#x", fd.Flags)
	case fd.Offset < 0 || fd.Offset > 0 && d.kind() != filetypeRegular:
		return nil, fmt.Errorf("offset %d", fd.Offset)
	case fd.Preopen != "" && (d.kind() != filetypeDirectory || len(fd.Preopen) > maxPath || checkText(fd.Preopen) != success):
		return nil, errors.New("a name that no directory has")
	}
	return d, nil
}

// Encode returns the State in CBOR.
func (s State) Encode() []byte {
	return must(stateEnc.Marshal(s)) // nothing in it can fail to encode
}

// ParseState is the reverse of Encode. It checks form and sizes; SetState checks
// the rest.
func ParseState(b []byte) (State, error) {
	var s State
	if len(b) > MaxState {
		return s, fmt.Errorf("WASI state of %d bytes, at most %d", len(b), MaxState)
	}
	if err := stateDec.Unmarshal(b, &s); err != nil {
		return State{}, fmt.Errorf("WASI state: %w", err)
	}
	return s, nil
}
