package pager

import (
	"context"
	"io"
)

// A PacedWriter writes at the rate of a Share, a millisecond's worth at a time,
// and so gives way to whatever has a larger weight. It is for what is not pages
// of a move. One goroutine uses it.
type PacedWriter struct {
	ctx   context.Context
	w     io.Writer
	share *Share
	meter Meter // of w, if it has one
	pace  pace
}

// NewPacedWriter makes a PacedWriter to w. The share stays the caller's. When ctx
// ends a Write that waits for its turn returns; one that waits for w does not.
func NewPacedWriter(ctx context.Context, w io.Writer, share *Share) *PacedWriter {
	m, _ := w.(Meter)
	return &PacedWriter{ctx: ctx, w: w, share: share, meter: m}
}

// Write implements [io.Writer].
func (p *PacedWriter) Write(b []byte) (n int, err error) {
	for n < len(b) {
		chunk := b[n:]
		chunk = chunk[:min(len(chunk), p.share.bytesIn(chunkTime, len(chunk)))]
		if err := p.pace.wait(p.ctx, p.share, p.meter, len(chunk)); err != nil {
			return n, err
		}
		k, err := p.w.Write(chunk)
		n += k
		if err != nil {
			return n, err
		}
	}
	return n, nil
}
