package control

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// sessionProtocol is the token of the Upgrade that opens a session.
const sessionProtocol = "meshnode-session/1"

// statusHeader carries a Reply's status beside a raw payload.
const statusHeader = "Meshnode-Status"

// writeTimeout bounds how long a client may take no replies at all before its
// session ends; it is what keeps a stuck client from holding a worker's
// replies in memory for ever.
const writeTimeout = 2 * time.Minute

func (s *Server) postCall(w http.ResponseWriter, r *http.Request) error {
	reply, err := s.exchange(w, r, true)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set(statusHeader, fmt.Sprint(reply.Status))
	_, _ = w.Write(reply.Payload) // the client has gone
	return nil
}

func (s *Server) postSend(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.exchange(w, r, false); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// exchange delivers the body as one message through a session of its own.
func (s *Server) exchange(w http.ResponseWriter, r *http.Request, call bool) (Reply, error) {
	payload, err := readBody(w, r, "payload", MaxPayloadBytes)
	if err != nil {
		return Reply{}, err
	}
	ses, err := s.backend.Session(r.Context(), r.PathValue("ref"))
	if err != nil {
		return Reply{}, err
	}
	defer ses.Close()
	if err := ses.Send(r.Context(), Message{Call: call, Payload: payload}); err != nil {
		return Reply{}, err
	}
	reply, err := ses.Recv(r.Context())
	if err == nil && reply.Err != nil {
		err = reply.Err
	}
	return reply, err
}

func (s *Server) postSession(w http.ResponseWriter, r *http.Request) error {
	if r.Header.Get("Upgrade") != sessionProtocol {
		return &Error{Code: CodeInvalid, Message: fmt.Sprintf("Upgrade is %q, want %s", r.Header.Get("Upgrade"), sessionProtocol)}
	}
	// Opened first, so that an unknown worker is an ordinary error answer.
	ses, err := s.backend.Session(r.Context(), r.PathValue("ref"))
	if err != nil {
		return err
	}
	defer ses.Close()

	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return fmt.Errorf("open the session: %w", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil
	}
	head := "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + sessionProtocol + "\r\n\r\n"
	if _, err := io.WriteString(conn, head); err != nil {
		return nil
	}
	// What the server has read ahead comes first. Its reader is not used any
	// further: it ends the request's context at the first error, and a deadline
	// is one.
	ahead, err := rw.Reader.Peek(rw.Reader.Buffered())
	if err != nil {
		return nil
	}
	in := bufio.NewReaderSize(io.MultiReader(bytes.NewReader(ahead), conn), 32<<10)
	if err := relaySession(r.Context(), conn, in, ses); err != nil {
		s.log.Debug("session ended", "worker", r.PathValue("ref"), "err", err)
	}
	return nil
}

// errClientGone ends a relay without anything left to say.
var errClientGone = errors.New("the client is gone")

// relaySession carries frames from the client to ses and replies back until
// one of them or ctx ends. What bounds memory is ses: while its Send blocks,
// nothing is read from the client.
func relaySession(ctx context.Context, conn net.Conn, br *bufio.Reader, ses Session) error {
	g, gctx := errgroup.WithContext(ctx)
	out := &replyWriter{ctx: gctx, conn: conn}
	// Both loops sit in conn; only a deadline gets them out of it.
	stop := context.AfterFunc(gctx, func() {
		_ = conn.SetReadDeadline(time.Unix(1, 0))
		_ = conn.SetWriteDeadline(time.Now().Add(lastWords))
	})
	defer stop()

	// due counts messages sent to ses whose replies have not been asked for,
	// so that the writer never waits in Recv for a message that was not sent.
	due := newCounter()
	var finished atomic.Bool
	g.Go(func() error {
		defer due.close()
		for {
			f, err := readFrame(br)
			switch {
			case err == nil:
			case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
				return errClientGone
			default:
				return err
			}
			switch f.kind {
			case frameCall, frameSend:
				if err := ses.Send(gctx, Message{Call: f.kind == frameCall, Payload: f.body}); err != nil {
					return err
				}
				due.add()
				continue
			case frameEnd:
			default:
				return fmt.Errorf("%w: type %#02x from a client", errFrame, uint8(f.kind))
			}
			// Nothing more may come; what does is the client's going away,
			// which ends the wait for replies nobody will read.
			due.close()
			_, err = br.ReadByte()
			switch {
			case finished.Load():
				return nil
			case err == nil:
				return fmt.Errorf("%w: bytes after the end", errFrame)
			}
			return errClientGone
		}
	})
	g.Go(func() error {
		for due.take(gctx) {
			r, err := ses.Recv(gctx)
			if err != nil {
				return err
			}
			if err := out.reply(r); err != nil {
				return errClientGone
			}
		}
		finished.Store(true)
		return conn.SetReadDeadline(time.Unix(1, 0))
	})

	err := g.Wait()
	switch {
	case ctx.Err() != nil:
		return out.closed(context.Cause(ctx))
	case err == nil:
		return out.done()
	case errors.Is(err, errClientGone):
		return nil
	case errors.Is(err, errFrame):
		return errors.Join(err, out.closed(&Error{Code: CodeInvalid, Message: err.Error()}))
	}
	return errors.Join(err, out.closed(err))
}

// lastWords is what a client gets to take in why its session was closed.
const lastWords = time.Second

// A replyWriter writes a session's frames to its client.
type replyWriter struct {
	ctx  context.Context // of the session: its end cuts writes short
	conn net.Conn
	buf  []byte
}

func (w *replyWriter) reply(r Reply) error {
	w.buf = appendReply(w.buf[:0], r)
	return w.write(writeTimeout)
}

func (w *replyWriter) done() error {
	w.buf = appendFrame(w.buf[:0], frameDone)
	return w.write(lastWords)
}

func (w *replyWriter) closed(err error) error {
	w.buf = appendFrame(w.buf[:0], frameClosed, appendFailure(nil, AsError(err)))
	return w.write(lastWords)
}

func (w *replyWriter) write(timeout time.Duration) error {
	if err := w.conn.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if w.ctx.Err() != nil {
		// The deadline that the end of ctx has set is the one that counts.
		if err := w.conn.SetWriteDeadline(time.Now().Add(lastWords)); err != nil {
			return err
		}
	}
	_, err := w.conn.Write(w.buf)
	if cap(w.buf) > 64<<10 {
		w.buf = nil // one large reply must not cost a megabyte for ever
	}
	return err
}
