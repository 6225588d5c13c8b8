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
	var out, in [8]byte
	rand.Read(out[:])
	start := time.Now()
	if _, err := s.Write(out[:]); err != nil {
		return 0, err
	}
	if _, err := io.ReadFull(s, in[:]); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return 0, err
	}
	rtt := time.Since(start)
	if in != out {
		return 0, fmt.Errorf("%w: ping came back changed", ErrMalformed)
	}
	return rtt, nil
}

func (t *transport) ping(ctx context.Context, id NodeID) (Ping, error) {
	c, err := t.connect(ctx, id, Urgent)
	if err != nil {
		return Ping{}, err
	}
	rtt, err := c.ping(ctx)
	if err != nil {
		return Ping{}, fmt.Errorf("ping %s at %v: %w", id, c.endpoint(), err)
	}
	st := c.q.ConnectionStats()
	return Ping{
		RTT: rtt, Smoothed: st.SmoothedRTT, Min: st.MinRTT,
		Endpoint: c.endpoint(), Local: endpointOf(c.q.LocalAddr()), Dialled: c.dialled,
	}, nil
}
