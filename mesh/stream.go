package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
)

// A Class says which of the connections to a peer a stream uses.
type Class uint8

const (
	// Urgent is for what someone waits for: control, gossip, demanded pages.
	Urgent Class = iota
	// Bulk is for what may queue: transfers in the background.
	Bulk
	// lane1 and those behind it share what one bulk transfer brings, where a
	// connection alone does not fill the path: see Lane.
	lane1

	// Lanes is how many there are.
	Lanes = 7

	classes = 2 + Lanes
)

// Lane returns the class of lane number n, from 1 to [Lanes].
func Lane(n int) Class { return Bulk + Class(n) }

func (c Class) String() string {
	switch c {
	case Urgent:
		return "urgent"
	case Bulk:
		return "bulk"
	}
	if c < classes {
		return fmt.Sprintf("lane %d", c-Bulk)
	}
	return fmt.Sprintf("class(%d)", uint8(c))
}

// maxProtocol bounds a protocol's name, in bytes.
const maxProtocol = 32

// Codes of stream resets. Handlers choose theirs from 0x100 up.
const (
	resetClosed          = 0x00 // the reader needs no more
	resetUnknownProtocol = 0x01
	resetBadHeader       = 0x02
	resetShutdown        = 0x03
)

// appendHeader writes what every stream begins with:
//
//	length    uint8  // 1 to 32
//	protocol  length bytes, printable ASCII without space
func appendHeader(b []byte, protocol string) []byte {
	b = append(b, byte(len(protocol)))
	return append(b, protocol...)
}

func checkProtocol(p string) error {
	if len(p) == 0 || len(p) > maxProtocol {
		return fmt.Errorf("%w: protocol name of %d bytes, 1 to %d allowed", ErrMalformed, len(p), maxProtocol)
	}
	for i := range len(p) {
		if p[i] <= ' ' || p[i] > '~' {
			return fmt.Errorf("%w: protocol name has the byte %#x", ErrMalformed, p[i])
		}
	}
	return nil
}

// readHeader reads a stream's protocol, and not a byte more.
func readHeader(r io.Reader) (string, error) {
	var b [1 + maxProtocol]byte
	if _, err := io.ReadFull(r, b[:1]); err != nil {
		return "", err
	}
	n := int(b[0])
	if n == 0 || n > maxProtocol {
		return "", fmt.Errorf("%w: protocol name of %d bytes", ErrMalformed, n)
	}
	if _, err := io.ReadFull(r, b[1:1+n]); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return "", err
	}
	p := string(b[1 : 1+n])
	return p, checkProtocol(p)
}

// A Stream is one exchange with a peer: reliable, ordered bytes both ways. One
// goroutine may read while another writes. Whoever opened it must Close or
// Reset it.
type Stream struct {
	q        *quic.Stream
	conn     *conn
	protocol string
	opened   bool // by this node
	released atomic.Bool

	// wmu is held while writing: quic-go forbids closing beside a write.
	wmu    sync.Mutex
	closed bool // this side's bytes have ended
}

// Peer returns the node at the other end, as its certificate says.
func (s *Stream) Peer() NodeID { return s.conn.peer.id }

// Protocol returns the protocol the stream was opened for.
func (s *Stream) Protocol() string { return s.protocol }

// Class returns which connection to the peer the stream is on.
func (s *Stream) Class() Class { return s.conn.class }

// Context is done when the connection under the stream is: the peer is
// unreachable, has left, or this mesh has stopped.
func (s *Stream) Context() context.Context { return s.conn.q.Context() }

// RTT is the latest round trip that a packet of the stream's connection took,
// queues on the way included, and count rises with every packet that comes in.
// Nothing is sent for it.
func (s *Stream) RTT() (latest time.Duration, count uint64) {
	st := s.conn.q.ConnectionStats()
	return st.LatestRTT, st.PacketsReceived
}

// Loss is how many packets the stream's connection has sent, and how many of
// them QUIC took for lost.
func (s *Stream) Loss() (sent, lost uint64) {
	st := s.conn.q.ConnectionStats()
	return st.PacketsSent, st.PacketsLost
}

// Read implements io.Reader. It ends with io.EOF where the peer closed its
// side, with a [ResetError] or [ErrUnknownProtocol] where it reset the stream,
// and with [ErrUnreachable] where the connection broke; with that and
// [ErrNotTaken] where the peer has seen nothing of the stream.
func (s *Stream) Read(b []byte) (int, error) {
	n, err := s.q.Read(b)
	if err != nil {
		err = s.wrap(err)
	}
	return n, err
}

// Write implements io.Writer. It blocks while the peer's window is full. The
// errors are those of Read.
func (s *Stream) Write(b []byte) (int, error) {
	s.wmu.Lock()
	n, err := s.q.Write(b)
	s.wmu.Unlock()
	if err != nil {
		err = s.wrap(err)
	}
	return n, err
}

// wrap says in this package's words why a stream ended.
func (s *Stream) wrap(err error) error {
	var se *quic.StreamError
	switch {
	case err == io.EOF:
		return err // unwrapped, as io.Reader wants it
	case errors.As(err, &se):
		if !se.Remote {
			return fmt.Errorf("stream %s: %w", s.protocol, net.ErrClosed)
		}
		switch se.ErrorCode {
		case resetUnknownProtocol:
			return fmt.Errorf("stream %s to %s: %w", s.protocol, s.conn.peer.id, ErrUnknownProtocol)
		case resetShutdown:
			return fmt.Errorf("stream %s to %s: %w: it is leaving", s.protocol, s.conn.peer.id, ErrUnreachable)
		}
		return &ResetError{Code: uint64(se.ErrorCode)}
	case errors.Is(err, os.ErrDeadlineExceeded):
		return err // a net.Error that says Timeout
	case errors.Is(err, quic.ErrStreamClosed):
		return fmt.Errorf("stream %s: %w", s.protocol, net.ErrClosed)
	case s.notTaken(err):
		return fmt.Errorf("stream %s to %s: %w: %w", s.protocol, s.conn.peer.id, s.conn.why(err), ErrNotTaken)
	}
	return fmt.Errorf("stream %s to %s: %w", s.protocol, s.conn.peer.id, s.conn.why(err))
}

// notTaken reports whether the connection ended with the peer's word that it has
// not taken this stream.
func (s *Stream) notTaken(err error) bool {
	var ae *quic.ApplicationError
	return s.opened && errors.As(err, &ae) && ae.Remote &&
		ae.ErrorCode >= closeUnused && number(s.q) >= uint64(ae.ErrorCode-closeUnused)
}

// number is the how manyth stream q is of those that its side has opened,
// counted from 0.
func number(q *quic.Stream) uint64 { return uint64(q.StreamID()) / 4 }

// CloseWrite ends this side's bytes: the peer reads io.EOF after what was
// written. It waits for a Write that is under way.
func (s *Stream) CloseWrite() error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	return s.closeWriteLocked()
}

func (s *Stream) closeWriteLocked() error {
	if s.closed {
		return nil
	}
	s.closed = true
	if err := s.q.Close(); err != nil {
		return s.wrap(err)
	}
	return nil
}

// Close ends both directions: what was written still arrives, what the peer
// still sends is thrown away. It does not wait for the peer. A Write under way
// in another goroutine is cut short, and the peer then reads a [ResetError]
// instead of io.EOF. Closing twice does nothing.
func (s *Stream) Close() error {
	var err error
	if s.wmu.TryLock() {
		err = s.closeWriteLocked()
		s.wmu.Unlock()
	} else {
		s.q.CancelWrite(resetClosed)
	}
	s.q.CancelRead(resetClosed)
	s.release()
	return err
}

// Reset ends both directions at once; bytes under way are lost, and the peer
// gets a [ResetError] with code. Codes below 0x100 belong to the mesh.
func (s *Stream) Reset(code uint64) {
	s.q.CancelRead(quic.StreamErrorCode(code))
	s.q.CancelWrite(quic.StreamErrorCode(code))
	s.release()
}

// release tells the connection, once, that this stream needs it no longer.
func (s *Stream) release() {
	if !s.released.Swap(true) {
		s.conn.streams.Add(-1)
		s.conn.touch()
	}
}

// SetDeadline bounds every read and write, current and later ones. A zero time
// means none. The error that follows is os.ErrDeadlineExceeded.
func (s *Stream) SetDeadline(t time.Time) error { return s.q.SetDeadline(t) }

// SetReadDeadline is SetDeadline for reads.
func (s *Stream) SetReadDeadline(t time.Time) error { return s.q.SetReadDeadline(t) }

// SetWriteDeadline is SetDeadline for writes.
func (s *Stream) SetWriteDeadline(t time.Time) error { return s.q.SetWriteDeadline(t) }

// SetPriority orders what this side sends among the streams of one connection
// (RFC 9218): urgency 0 goes first, 7 last, 3 is the default; incremental
// streams of one urgency share, others go one after the other. It does not
// reorder what has already been sent.
func (s *Stream) SetPriority(urgency int8, incremental bool) { s.q.SetPriority(urgency, incremental) }
