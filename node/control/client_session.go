package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// ErrSessionDone means that every message of an ended session is answered.
var ErrSessionDone = errors.New("session done")

// A ClientSession is a Session over the control socket. One goroutine may send
// while another receives.
type ClientSession struct {
	conn net.Conn
	r    *bufio.Reader

	mu    sync.Mutex
	buf   []byte
	ended bool
	sent  error // why nothing more can be sent
	recvd error // why nothing more comes; set by Recv alone
}

var _ Session = (*ClientSession)(nil)

// Session opens a sender to a worker, which follows it across moves. ctx
// bounds the opening alone.
func (c *Client) Session(ctx context.Context, ref string) (*ClientSession, error) {
	if err := checkRef("worker", ref); err != nil {
		return nil, err
	}
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, clientError(ctx, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	s, err := openSession(conn, ref)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, clientError(ctx, err)
	}
	return s, nil
}

func openSession(conn net.Conn, ref string) (*ClientSession, error) {
	req, err := http.NewRequest(http.MethodPost, "http://meshnode"+workerPath(ref, "/session"), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", sessionProtocol)
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	br := bufio.NewReaderSize(conn, 32<<10)
	resp, err := http.ReadResponse(br, req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer resp.Body.Close()
		return nil, readError(resp)
	}
	if got := resp.Header.Get("Upgrade"); got != sessionProtocol {
		return nil, fmt.Errorf("the daemon speaks %q, want %s", got, sessionProtocol)
	}
	return &ClientSession{conn: conn, r: br}, nil
}

// Send hands a message over and blocks while the daemon takes no more of them.
// A payload beyond MaxPayloadBytes is refused here, and the session goes on;
// any other error, also that of ctx, ends the sending side. It keeps no
// reference to the payload.
func (s *ClientSession) Send(ctx context.Context, m Message) error {
	if len(m.Payload) > MaxPayloadBytes {
		return payloadTooLarge(int64(len(m.Payload)))
	}
	kind := frameSend
	if m.Call {
		kind = frameCall
	}
	return s.write(ctx, kind, m.Payload)
}

// End says that no more messages come. Recv then returns the replies due and
// ErrSessionDone after the last.
func (s *ClientSession) End(ctx context.Context) error { return s.write(ctx, frameEnd, nil) }

func (s *ClientSession) write(ctx context.Context, kind frameKind, payload []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.sent != nil:
		return s.sent
	case s.ended:
		return errors.New("the session has ended")
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	stop := context.AfterFunc(ctx, func() { _ = s.conn.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	s.buf = appendFrame(s.buf[:0], kind, payload)
	if _, err := s.conn.Write(s.buf); err != nil {
		// Part of the frame may be out: there is no going on after it.
		s.sent = clientError(ctx, err)
		return s.sent
	}
	s.ended = kind == frameEnd
	if cap(s.buf) > 64<<10 {
		s.buf = nil
	}
	return nil
}

// Recv returns the next reply, in the order of the messages. Its error means
// that no more come: ErrSessionDone after End, the *Error the daemon closed
// the session with, or why the daemon cannot be heard. A ctx that ends closes
// the receiving side.
func (s *ClientSession) Recv(ctx context.Context) (Reply, error) {
	if s.recvd != nil {
		return Reply{}, s.recvd
	}
	stop := context.AfterFunc(ctx, func() { _ = s.conn.SetReadDeadline(time.Unix(1, 0)) })
	r, err := s.recv()
	if !stop() && err == nil {
		// The deadline is set and this reply was the last to slip through.
		err = context.Cause(ctx)
	}
	if err != nil {
		if !errors.Is(err, ErrSessionDone) {
			err = clientError(ctx, err)
		}
		s.recvd = err
		return Reply{}, err
	}
	return r, nil
}

func (s *ClientSession) recv() (Reply, error) {
	f, err := readFrame(s.r)
	if err != nil {
		return Reply{}, err
	}
	switch f.kind {
	case frameDone:
		return Reply{}, ErrSessionDone
	case frameClosed:
		e, err := parseFailure(f.body)
		if err != nil {
			return Reply{}, err
		}
		return Reply{}, e
	}
	return parseReply(f)
}

// Close ends the session without waiting for replies.
func (s *ClientSession) Close() error {
	err := s.conn.Close()
	if errors.Is(err, io.ErrClosedPipe) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
