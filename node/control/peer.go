package control

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// A Conn is what a request between nodes travels on: a stream of the mesh.
type Conn interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// PeerTransport returns a transport that sends each request on a connection of
// its own, made by dial, and closes it with the response's body.
func PeerTransport(dial func(context.Context) (Conn, error)) http.RoundTripper {
	return peerTransport(dial)
}

type peerTransport func(context.Context) (Conn, error)

func (dial peerTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx := r.Context()
	conn, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	// The request ends with its context, also while the answer streams.
	stop := context.AfterFunc(ctx, func() { conn.Close(); _ = conn.SetDeadline(time.Unix(1, 0)) })
	fail := func(err error) (*http.Response, error) {
		stop()
		conn.Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	r = r.Clone(ctx)
	r.Close = true
	if err := r.Write(conn); err != nil {
		return fail(fmt.Errorf("send the request: %w", err))
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), r)
	if err != nil {
		return fail(fmt.Errorf("read the answer: %w", err))
	}
	resp.Body = &peerBody{ReadCloser: resp.Body, conn: conn, stop: stop}
	return resp, nil
}

type peerBody struct {
	io.ReadCloser
	conn Conn
	stop func() bool
}

func (b *peerBody) Close() error {
	b.stop()
	// The connection goes first: closing an unfinished body reads the rest of
	// it, and a stream of progress has no near end.
	err := b.conn.Close()
	_ = b.conn.SetDeadline(time.Unix(1, 0))
	b.ReadCloser.Close()
	return err
}

// ServePeer answers the one request on conn, from another node of the mesh,
// with PeerHandler. It returns when that is done or ctx is, and closes conn.
func (s *Server) ServePeer(ctx context.Context, conn Conn) error {
	l := newOneConn(conn)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)); l.Close() })
	defer stop()
	srv := &http.Server{
		Handler:           s.PeerHandler(),
		ReadHeaderTimeout: headerTimeout,
		MaxHeaderBytes:    64 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnState: func(_ net.Conn, st http.ConnState) {
			if st == http.StateClosed || st == http.StateHijacked {
				l.Close()
			}
		},
	}
	srv.SetKeepAlivesEnabled(false)
	err := srv.Serve(l) // ends with l
	<-l.finished
	if err == errServed || err == http.ErrServerClosed {
		return nil
	}
	return err
}

var errServed = fmt.Errorf("connection served: %w", net.ErrClosed)

// oneConn is a listener that accepts one connection.
type oneConn struct {
	conn     chan net.Conn
	done     chan struct{}
	finished chan struct{} // closed with the connection
	once     sync.Once
}

func newOneConn(c Conn) *oneConn {
	l := &oneConn{conn: make(chan net.Conn, 1), done: make(chan struct{}), finished: make(chan struct{})}
	l.conn <- &netConn{Conn: c, closed: l.finished}
	return l
}

func (l *oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	default:
	}
	<-l.done
	return nil, errServed
}

func (l *oneConn) Close() error {
	l.once.Do(func() {
		close(l.done)
		select {
		case c := <-l.conn: // never accepted
			c.Close()
		default:
		}
	})
	return nil
}

func (l *oneConn) Addr() net.Addr { return meshAddr{} }

// netConn gives a Conn the addresses that net/http wants to see.
type netConn struct {
	Conn
	once   sync.Once
	closed chan struct{}
}

func (c *netConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { close(c.closed) })
	return err
}

func (c *netConn) LocalAddr() net.Addr  { return meshAddr{} }
func (c *netConn) RemoteAddr() net.Addr { return meshAddr{} }

type meshAddr struct{}

func (meshAddr) Network() string { return "mesh" }
func (meshAddr) String() string  { return "mesh" }
