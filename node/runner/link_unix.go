//go:build unix

package runner

import (
	"bytes"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// A link is one end of the socket pair between the node and a runner. Both ends
// block in read(2) rather than wait in Go's poller, which takes 13 µs for a
// round trip with an empty event instead of 19 µs: the poller has to wake twice.
// The price is a thread for each event that is running. Not safe for concurrent
// use.
type link struct {
	fd int
	// in holds what was read and not yet taken: in[off:].
	in  []byte
	off int
	out bytes.Buffer
	// keep is the largest buffer kept from one message to the next, in bytes.
	keep int
	// takeFDs makes reads accept descriptors, which end up in fds.
	takeFDs bool
	fds     []int
}

// linkBuffer is the size of one read, in bytes: enough that a small message and
// its header arrive in one system call.
const linkBuffer = 16 << 10

func newLink(fd, keep int) *link {
	return &link{fd: fd, keep: keep, in: make([]byte, 0, linkBuffer)}
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
	if n <= linkBuffer && cap(l.in) > l.keep {
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
	if err := putFrame(&l.out, typ, body); err != nil {
		return err
	}
	b := l.out.Bytes()
	if l.out.Cap() > l.keep {
		l.out = bytes.Buffer{}
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
