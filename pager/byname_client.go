package pager

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"sync"
)

// namedWindow is how many asks may be without an answer: 1024 pages, 4 MiB,
// covers 1 Gbit/s for 30 ms. What the answerer sends meanwhile is held back by
// the stream's own flow control.
const namedWindow = 16

// A NamedClient asks another node for pages by their names, over one stream.
// Its methods may be called concurrently and take turns. Nothing but their
// contexts bounds how long they wait for the peer. After an error the stream is
// in an unknown state, and every further call fails with ErrNamedBroken.
type NamedClient struct {
	rw io.ReadWriter

	mu     sync.Mutex
	r      *bufio.Reader
	body   []byte
	broken error
}

// NewNamedClient makes a client on a stream to a ServeNamed, which the caller
// closes when no call is under way. It panics if rw has neither SetDeadline
// nor Close, one of which ends a call whose context has.
func NewNamedClient(rw io.ReadWriter) *NamedClient {
	mustInterrupt(rw)
	return &NamedClient{rw: rw, r: bufio.NewReaderSize(rw, 64<<10)}
}

// Fetch asks for pages. each is called with every page that the peer has, by
// its place in names, in order but for zero pages, which come first since
// nobody has to be asked; the page has the content of its name and is valid
// until each returns. What the peer has not is missing, in order. An error of
// each ends the call and the stream. A peer that sends a page of other content
// is an error that wraps ErrContent.
func (c *NamedClient) Fetch(ctx context.Context, names []Hash, each func(i int, page []byte) error) (missing []int, err error) {
	at := make([]int, 0, len(names))
	for i := range names {
		if names[i] != ZeroHash {
			at = append(at, i)
		} else if err := each(i, zeroPage[:]); err != nil {
			return nil, err
		}
	}
	batch := make([]Hash, 0, maxGet)
	err = c.exchange(ctx, frameGetNamed, frameNamedPages, len(at), maxGet,
		func(i, n int) []Hash {
			batch = batch[:0]
			for _, at := range at[i : i+n] {
				batch = append(batch, names[at])
			}
			return batch
		},
		func(i, n int, body []byte) error {
			kinds, pages, err := parseNamedPages(body, n)
			if err != nil {
				return err
			}
			for k, kind := range kinds {
				at := at[i+k]
				if kind == namedAbsent {
					missing = append(missing, at)
					continue
				}
				page := pages[:PageSize]
				pages = pages[PageSize:]
				if got := HashPage(page); got != names[at] {
					return fmt.Errorf("%w: asked for page %s, got one of name %s", ErrContent, names[at], got)
				}
				if err := each(at, page); err != nil {
					return err
				}
			}
			return nil
		})
	return missing, err
}

// Has asks which pages the peer has, at a cost of 32 bytes each there and a
// bit back. It may have dropped them when it is asked for them.
func (c *NamedClient) Has(ctx context.Context, names []Hash) (there []bool, err error) {
	there = make([]bool, len(names))
	err = c.exchange(ctx, frameWhichNamed, frameNamedThere, len(names), maxWhich,
		func(i, n int) []Hash { return names[i : i+n] },
		func(i, n int, body []byte) error {
			bits, err := parseThere(body, n)
			if err != nil {
				return err
			}
			for k := range n {
				there[i+k] = bits[k/8]>>(k%8)&1 == 1 || names[i+k] == ZeroHash
			}
			return nil
		})
	if err != nil {
		return nil, err
	}
	return there, nil
}

// exchange asks about total names, most at a time, and takes the answers. ask
// returns names i to i+n and take an answer about them; they are called from
// two goroutines, each in order.
func (c *NamedClient) exchange(ctx context.Context, askKind, answerKind byte, total, most int, ask func(i, n int) []Hash, take func(i, n int, body []byte) error) (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return fmt.Errorf("%w: %w", ErrNamedBroken, c.broken)
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	interrupted := context.AfterFunc(ctx, func() { interrupt(c.rw) })
	quit := make(chan struct{})
	window := make(chan struct{}, namedWindow)
	writing := make(chan error, 1)
	go func() {
		var b []byte
		for i := 0; i < total; i += most {
			select {
			case window <- struct{}{}:
			case <-quit:
				writing <- nil
				return
			}
			b = appendNamedAsk(b[:0], askKind, ask(i, min(most, total-i)))
			if _, err := c.rw.Write(b); err != nil {
				// The answers do not tell: the peer may have sent an error.
				writing <- fmt.Errorf("write ask: %w", err)
				return
			}
		}
		writing <- nil
	}()
	for i := 0; i < total && err == nil; i += most {
		if err = c.readAnswer(answerKind); err == nil {
			err = take(i, min(most, total-i), c.body)
		}
		if err == nil {
			<-window // by the ask that was answered
		}
	}
	close(quit)
	if err != nil {
		interrupt(c.rw)
	}
	if werr := <-writing; err == nil {
		err = werr
	}
	if !interrupted() {
		err = context.Cause(ctx)
	}
	if err != nil {
		c.broken = err
		return fmt.Errorf("pages by name: %w", err)
	}
	return nil
}

func (c *NamedClient) readAnswer(want byte) error {
	kind, body, err := readNamed(c.r, c.body)
	c.body = body
	switch {
	case err == io.EOF:
		return fmt.Errorf("read answer: %w", io.ErrUnexpectedEOF)
	case err != nil:
		return err
	case kind == frameError:
		return parseNamedError(body)
	case kind != want:
		return badFrame("frame %#x where %#x was due", kind, want)
	}
	return nil
}
