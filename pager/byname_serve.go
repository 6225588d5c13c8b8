package pager

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// NamedLimits bounds what one asker can take. The zero value sets no bounds
// but those of the frames.
type NamedLimits struct {
	// Share, if set, is what paces the answers. The caller closes it. The
	// stream's Meter, if it has one, tells of the way there.
	Share *Share
	// Idle, if not 0, bounds how long the asker may take until its next ask and
	// until it has taken an answer, on streams that have deadlines.
	Idle time.Duration
}

// PagesByName is what has pages by name: a Store, or whoever else keeps some.
type PagesByName interface {
	// Has says whether a page is there.
	Has(h Hash) bool
	// Peek fills buf, PageSize bytes, with a page and reports whether it is
	// there. The asker checks the content. What is in buf when it returns false
	// is of no use.
	Peek(h Hash, buf []byte) bool
}

// ServeNamed answers a NamedClient with the pages of store, until the stream
// ends, which is no error, or ctx does. It reads an ask only when the one
// before is answered, so an asker costs 350 KiB at most, whatever it sends;
// how many there are at once is for the caller to bound. What is asked for
// does not count as use. It panics if rw has neither SetDeadline nor Close.
//
// A page is given to whoever knows its name, whichever worker it is of. Knowing
// a name takes having been told it, or having had the content: to all others
// names are random numbers of 256 bits. So within a mesh, whose members alone
// can open such a stream, a name is a key that opens one page and nothing else.
// But who can guess the content of a page, all of its 4 KiB but for a few bits,
// can find out by its name whether this node has it, as with any store that is
// addressed by content. Where that is too much, the workers belong in different
// meshes.
func ServeNamed(ctx context.Context, rw io.ReadWriter, store PagesByName, limits NamedLimits) error {
	mustInterrupt(rw)
	stop := context.AfterFunc(ctx, func() { interrupt(rw) })
	defer stop()
	s := namedServing{rw: rw, r: bufio.NewReaderSize(rw, 4<<10), store: store, limits: limits}
	s.meter, _ = rw.(Meter)
	for {
		if err := s.answer(ctx); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("serve pages by name: %w", err)
		}
	}
}

type namedServing struct {
	rw       io.ReadWriter
	r        *bufio.Reader
	store    PagesByName
	limits   NamedLimits
	pace     pace
	meter    Meter // of rw; nil if it has none
	ask, out []byte
}

// answer reads an ask and answers it.
func (s *namedServing) answer(ctx context.Context) error {
	if err := s.patience(ctx); err != nil {
		return err
	}
	kind, ask, err := readNamed(s.r, s.ask)
	if err != nil {
		return err
	}
	s.ask = ask
	names, err := parseNamedAsk(kind, ask)
	if err != nil {
		return err
	}
	name := func(i int) Hash { return Hash(ask[32*i:]) }
	if kind == frameWhichNamed {
		s.out = appendThere(s.out[:0], names, func(i int) bool { return s.store.Has(name(i)) })
	} else {
		s.out = slices.Grow(s.out[:0], headBytes+2+names*(1+PageSize))
		s.out = appendNamedPages(s.out, names, func(i int, buf []byte) bool { return s.store.Peek(name(i), buf) })
	}
	for b := s.out; len(b) > 0; {
		n := min(len(b), s.limits.Share.bytesIn(chunkTime, bulkChunk))
		if err := s.pace.wait(ctx, s.limits.Share, s.meter, n); err != nil {
			return err
		}
		if err := s.patience(ctx); err != nil {
			return err
		}
		if _, err := s.rw.Write(b[:n]); err != nil {
			return fmt.Errorf("write answer: %w", err)
		}
		b = b[n:]
	}
	return nil
}

// patience sets the deadline anew. It must not move the one that the end of
// ctx sets, which comes after ctx has ended.
func (s *namedServing) patience(ctx context.Context) error {
	if d, ok := s.rw.(deadliner); ok && s.limits.Idle > 0 {
		if err := d.SetDeadline(time.Now().Add(s.limits.Idle)); err != nil {
			return err
		}
	}
	return ctx.Err()
}

type deadliner interface{ SetDeadline(time.Time) error }

// mustInterrupt panics if a stream cannot be interrupted: whoever waits on it
// could wait for ever.
func mustInterrupt(rw io.ReadWriter) {
	switch rw.(type) {
	case deadliner, io.Closer:
	default:
		panic(fmt.Sprintf("pager: %T has neither SetDeadline nor Close", rw))
	}
}
