//go:build unix

package runner

import (
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// A link is one end of the socket pair between the node and a runner. Both ends
// block in read(2) on a thread of their own rather than wait in Go's poller: a
// round trip then wakes two threads and not four. Not safe for concurrent use.
type link struct {
	fd int
	// in holds what was read and not yet taken: in[off:].
	in  []byte
	off int
	out []byte
	// takeFDs makes reads accept descriptors, which end up in fds.
	takeFDs bool
	fds     []int
}

// linkBuffer is the size of one read, in bytes: enough that a small message and
// its header arrive in one system call.
const linkBuffer = 16 << 10

func newLink(fd int) *link {
	return &link{fd: fd, in: make([]byte, 0, linkBuffer)}
}

// read returns the next message. The body is valid until the next read.
func (l *link) read(limit int) (typ byte, body []byte, err error) {
	if err := l.fill(frameHeader); err != nil {
		return 0, nil, err
	}
	typ, n, err := frameSize(l.in[l.off:], limit)
	if err != nil {
		return 0, nil, err
	}
	if err := l.fill(frameHeader + n); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	body = l.in[l.off+frameHeader : l.off+frameHeader+n]
	l.off += frameHeader + n
	return typ, body, nil
}

// fill reads until n bytes are there to take. The error is io.EOF if the other
// end closed before the first of them.
func (l *link) fill(n int) error {
	if len(l.in)-l.off >= n {
		return nil
	}
	if l.off > 0 {
		l.in = l.in[:copy(l.in, l.in[l.off:])]
		l.off = 0
	}
	if n <= linkBuffer && cap(l.in) > linkBuffer {
		// One large message must not keep its buffer for the worker's life.
		small := make([]byte, len(l.in), max(linkBuffer, len(l.in)))
		copy(small, l.in)
		l.in = small
	}
	if cap(l.in) < n {
		grown := make([]byte, len(l.in), n)
		copy(grown, l.in)
		l.in = grown
	}
	for len(l.in) < n {
		got, err := l.recv(l.in[len(l.in):cap(l.in)])
		if err != nil {
			return err
		}
		if got == 0 {
			if len(l.in) > 0 {
				return io.ErrUnexpectedEOF
			}
			return io.EOF
		}
		l.in = l.in[:len(l.in)+got]
	}
	return nil
}

func (l *link) recv(p []byte) (int, error) {
	for {
		var n int
		var err error
		if l.takeFDs {
			n, err = l.recvFDs(p)
		} else {
			n, err = unix.Read(l.fd, p)
		}
		if err == unix.EINTR {
			continue
		}
		if err == unix.ECONNRESET {
			return 0, nil
		}
		if err != nil {
			return 0, fmt.Errorf("read from runner socket: %w", err)
		}
		return n, nil
	}
}

// recvFDs reads like recv and collects the descriptors that came along.
func (l *link) recvFDs(p []byte) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4*4))
	n, oobn, _, _, err := recvmsgCloexec(l.fd, p, oob)
	if err != nil || oobn == 0 {
		return n, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return n, fmt.Errorf("parse control message: %w", err)
	}
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue // not a list of descriptors
		}
		l.fds = append(l.fds, fds...)
	}
	return n, nil
}

// write sends one message.
func (l *link) write(typ byte, body any) error { return l.writeFD(typ, body, -1) }

// writeFD sends one message and, if fd is not negative, that descriptor.
func (l *link) writeFD(typ byte, body any, fd int) error {
	b, err := appendFrame(l.out[:0], typ, body)
	if err != nil {
		return err
	}
	if cap(b) <= linkBuffer {
		l.out = b
	}
	if fd >= 0 {
		for {
			n, err := unix.SendmsgN(l.fd, b, unix.UnixRights(fd), nil, sendFlags)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return fmt.Errorf("write to runner socket: %w", err)
			}
			b = b[n:]
			break
		}
	}
	for len(b) > 0 {
		n, err := sendBytes(l.fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("write to runner socket: %w", err)
		}
		b = b[n:]
	}
	return nil
}

// closeFDs closes the descriptors that came along and were not taken.
func (l *link) closeFDs() {
	for _, fd := range l.fds {
		unix.Close(fd)
	}
	l.fds = nil
}
