package node

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"meshnode/pager"
)

// breakingStream fails once so many bytes were read.
type breakingStream struct {
	stream
	left *atomic.Int64
}

func (b *breakingStream) Read(p []byte) (int, error) {
	n, err := b.stream.Read(p)
	if b.left.Add(-int64(n)) < 0 {
		return 0, errors.New("broken on purpose")
	}
	return n, err
}

// socketPair makes a stream with buffers, as a real one has.
func socketPair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Error(err)
		return net.Pipe()
	}
	defer l.Close()
	if b, err = net.Dial("tcp", l.Addr().String()); err == nil {
		a, err = l.Accept()
	}
	if err != nil {
		t.Error(err)
		return net.Pipe()
	}
	return a, b
}

// A module that nodes have, or not, or have until their streams break, comes
// whole, and no node is asked for all of it when there are others.
func TestModuleGather(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	content := make([]byte, 5*modulePart+r.IntN(modulePart))
	for i := range content {
		content[i] = byte(r.Uint32())
	}
	has := modules{dir: t.TempDir()}
	h, size, err := has.put(bytes.NewReader(content), nil)
	if err != nil {
		t.Fatal(err)
	}
	hasNot := modules{dir: t.TempDir()}
	var serving sync.WaitGroup
	defer serving.Wait()
	dial := func(m modules, breakAfter int64) func(context.Context) (stream, error) {
		return func(context.Context) (stream, error) {
			there, here := socketPair(t)
			serving.Go(func() {
				defer there.Close()
				_ = m.serve(there) // an asker leaves when it likes
			})
			if breakAfter == 0 {
				return here, nil
			}
			left := new(atomic.Int64)
			left.Store(breakAfter)
			return &breakingStream{here, left}, nil
		}
	}
	for _, tc := range []struct {
		name string
		from []func(context.Context) (stream, error)
		want error
	}{
		{"one", []func(context.Context) (stream, error){dial(has, 0)}, nil},
		{"many", []func(context.Context) (stream, error){dial(has, 0), dial(hasNot, 0), dial(has, 0)}, nil},
		{"breaks", []func(context.Context) (stream, error){dial(has, 3*modulePart/2), dial(hasNot, 0)}, nil},
		{"none", []func(context.Context) (stream, error){dial(hasNot, 0), dial(hasNot, 0)}, errNoModule},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f, err := os.Create(filepath.Join(t.TempDir(), "parts"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			g := newModuleGather(h, size, f)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var asking sync.WaitGroup
			for _, d := range tc.from {
				asking.Go(func() {
					if _, err := g.ask(ctx, d); err == nil {
						cancel()
					} else if tc.want != nil && !errors.Is(err, tc.want) {
						t.Errorf("got %v, want %v", err, tc.want)
					}
				})
			}
			asking.Wait()
			if g.complete() != (tc.want == nil) {
				t.Fatalf("complete: %v", g.complete())
			}
			if tc.want != nil {
				return
			}
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				t.Fatal(err)
			}
			if _, _, err := (modules{dir: t.TempDir()}).put(f, &h); err != nil {
				t.Error(err)
			}
		})
	}
	if err := has.send(io.Discard, moduleWant{Hash: h, Offset: size, Length: 1}); err == nil {
		t.Error("more was sent than there is")
	}
	if err := has.send(io.Discard, moduleWant{Hash: pager.Hash{1}}); err != nil {
		t.Errorf("of one that is not there: %v", err)
	}
}
