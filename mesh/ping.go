package mesh

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"time"
)

// Ping: the caller sends 8 bytes, the callee sends them back, as often as the
// caller likes.
const protoPing = "mesh/ping"

func servePing(ctx context.Context, s *Stream) {
	var b [8]byte
	for {
		s.SetDeadline(time.Now().Add(headerTimeout))
		if _, err := io.ReadFull(s, b[:]); err != nil {
			return
		}
		if _, err := s.Write(b[:]); err != nil {
			return
		}
	}
}

// ping measures one round trip on c.
func (c *conn) ping(ctx context.Context) (time.Duration, error) {
	s, err := c.open(ctx, protoPing)
	if err != nil {
		return 0, err
	}
	defer s.Close()
	stop := context.AfterFunc(ctx, func() { s.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	rtt, err := s.ping()
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return rtt, err
}

// ping measures one round trip.
func (s *Stream) ping() (time.Duration, error) {
	var out, in [8]byte
	rand.Read(out[:])
	start := time.Now()
	if _, err := s.Write(out[:]); err != nil {
		return 0, err
	}
	if _, err := io.ReadFull(s, in[:]); err != nil {
		return 0, err
	}
	rtt := time.Since(start)
	if in != out {
		return 0, fmt.Errorf("%w: ping came back changed", ErrMalformed)
	}
	return rtt, nil
}

func (t *transport) ping(ctx context.Context, id NodeID) (p Ping, err error) {
	var c *conn
	err = t.request(ctx, id, protoPing, Urgent, func(s *Stream) (err error) {
		c = s.conn
		p.RTT, err = s.ping()
		return err
	})
	switch {
	case err != nil && c == nil:
		return Ping{}, err
	case err != nil:
		return Ping{}, fmt.Errorf("ping %s at %v: %w", id, c.endpoint(), err)
	}
	st := c.q.ConnectionStats()
	p.Smoothed, p.Min = st.SmoothedRTT, st.MinRTT
	p.Endpoint, p.Local, p.Dialled = c.endpoint(), endpointOf(c.q.LocalAddr()), c.dialled
	return p, nil
}
