package node

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"meshnode/mesh"
	"meshnode/pager"
)

// lanePair joins a writer to a reader by pipes. loss is what the writer hears of
// its connection, and lane may replace what a lane is written to.
func lanePair(t *testing.T, loss func() (sent, lost uint64), lane func(number int, s laneStream) laneStream) (*laneWriter, *laneReader) {
	t.Helper()
	here, there := net.Pipe()
	rtt := func() (time.Duration, uint64) { return lanesRTT, 1 }
	r := newLaneReader(there, rtt, func() {})
	w := newLaneWriter(t.Context(), here, rtt, loss, func(_ context.Context, number int) (laneStream, error) {
		near, far := net.Pipe()
		if !r.take(byte(number), far) {
			t.Errorf("lane %d was not taken", number)
		}
		return lane(number, near), nil
	})
	t.Cleanup(func() {
		r.Close()
		here.Close()
		w.close()
	})
	return w, r
}

func asItIs(_ int, s laneStream) laneStream { return s }

// lossy is a connection that begins to lose packets after its first look.
func lossy() func() (sent, lost uint64) {
	var sent, lost uint64
	return func() (uint64, uint64) {
		defer func() { sent, lost = sent+100, lost+lanesFrom }()
		return sent, lost
	}
}

// slowly delays what is written, so that lanes overtake each other.
type slowly struct {
	laneStream
	by func() time.Duration
}

func (s slowly) Write(p []byte) (int, error) {
	time.Sleep(s.by())
	return s.laneStream.Write(p)
}

// TestLanes: what was written in pieces of any size is read in order, by
// whatever lanes it came.
func TestLanes(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	var mu sync.Mutex
	used := make(map[int]bool)
	w, r := lanePair(t, lossy(), func(number int, s laneStream) laneStream {
		return slowly{s, func() time.Duration {
			mu.Lock()
			defer mu.Unlock()
			used[number] = true
			return time.Duration(random.IntN(1000)) * time.Microsecond
		}}
	})
	at := func(i int) byte { return byte(i>>16 ^ i>>8 ^ i) }
	var read atomic.Int64
	var reader sync.WaitGroup
	reader.Go(func() {
		defer r.Close() // which ends what is being written
		buf := make([]byte, 64<<10)
		for i := 0; ; {
			n, err := r.Read(buf)
			for k, c := range buf[:n] {
				if c != at(i+k) {
					t.Errorf("byte %d is %#x, want %#x", i+k, c, at(i+k))
					return
				}
			}
			i += n
			read.Store(int64(i))
			if err != nil {
				return
			}
		}
	})
	defer reader.Wait()
	defer r.Close()
	// Until every lane was used, whenever those come that open them.
	pieces := rand.New(rand.NewPCG(seed, 1))
	written := 0
	waitFor(t, "all lanes", func() bool {
		piece := make([]byte, 1+pieces.IntN(100<<10))
		for i := range piece {
			piece[i] = at(written + i)
		}
		n, err := w.Write(piece)
		if written += n; err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		defer mu.Unlock()
		return len(used) == mesh.Lanes && written >= 8<<20
	})
	waitFor(t, "all that was written", func() bool { return read.Load() == int64(written) })
}

// TestLanesOnlyForLoss: a connection that loses next to nothing carries all by
// itself.
func TestLanesOnlyForLoss(t *testing.T) {
	sent := uint64(0)
	w, r := lanePair(t, func() (uint64, uint64) {
		sent += lanesShare * lanesFrom * 2
		return sent, sent / (2 * lanesShare)
	}, func(number int, s laneStream) laneStream {
		t.Errorf("lane %d was opened", number)
		return s
	})
	go func() { _, _ = w.Write(make([]byte, 4*laneRun)) }()
	if _, err := io.CopyN(io.Discard, r, 4*laneRun); err != nil {
		t.Fatal(err)
	}
}

// TestLaneBreaks: a lane that fails ends the stream at both ends, as does one who
// interrupts either of them.
func TestLaneBreaks(t *testing.T) {
	fill := func(w *laneWriter) chan error {
		failed := make(chan error, 1)
		go func() {
			for {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					failed <- err
					return
				}
			}
		}()
		return failed
	}
	t.Run("lane", func(t *testing.T) {
		broken := errors.New("it broke")
		w, r := lanePair(t, lossy(), func(number int, s laneStream) laneStream {
			if number == 3 {
				return breaks{s, broken}
			}
			return s
		})
		failed := fill(w)
		go func() { _, _ = io.Copy(io.Discard, r) }()
		if err := <-failed; !errors.Is(err, broken) {
			t.Errorf("the writer: %v", err)
		}
	})
	t.Run("writer", func(t *testing.T) {
		w, r := lanePair(t, lossy(), asItIs)
		failed := fill(w)
		if _, err := io.CopyN(io.Discard, r, 2*laneRun); err != nil {
			t.Fatal(err)
		}
		interrupt(w) // it waits for lanes that nobody reads
		if err := <-failed; err == nil {
			t.Error("no error")
		}
	})
	t.Run("reader", func(t *testing.T) {
		here, there := net.Pipe()
		defer here.Close()
		r := newLaneReader(there, nil, func() {})
		go func() { _, _ = here.Write([]byte{1, 0, 0, 0, 9}) }() // a lane that does not come
		time.AfterFunc(time.Millisecond, func() { interrupt(r) })
		if _, err := r.Read(make([]byte, 1)); err == nil {
			t.Error("no error")
		}
		r.Close()
	})
}

type breaks struct {
	laneStream
	err error
}

func (b breaks) Write([]byte) (int, error) { return 0, b.err }

// A fedStream is one that everything has come on already.
type fedStream struct{ io.Reader }

func (fedStream) Write(p []byte) (int, error)      { return len(p), nil }
func (fedStream) Close() error                     { return nil }
func (fedStream) SetDeadline(time.Time) error      { return nil }
func (fedStream) SetWriteDeadline(time.Time) error { return nil }

// FuzzLaneReader reads whatever a peer may send: it must end, with no more bytes
// than came.
func FuzzLaneReader(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 2, 'a', 'b', 1, 0, 0, 0, 3}, []byte("cde"))
	f.Add([]byte{7, 0, 0, 0, 1, 0, 0xff, 0xff, 0xff, 0xff, 'x'}, []byte("y"))
	f.Add([]byte{8, 0, 0, 0, 1}, []byte{})
	f.Add([]byte{1, 0, 0, 0, 0}, []byte{})
	f.Fuzz(func(t *testing.T, directory, lane []byte) {
		r := newLaneReader(fedStream{bytes.NewReader(directory)}, nil, func() {})
		for number := byte(1); number <= mesh.Lanes; number++ {
			if !r.take(number, fedStream{bytes.NewReader(lane)}) || r.take(number, fedStream{}) {
				t.Fatalf("lane %d", number)
			}
		}
		if r.take(0, fedStream{}) || r.take(mesh.Lanes+1, fedStream{}) {
			t.Fatal("a lane that is none was taken")
		}
		got, _ := io.ReadAll(r)
		if most := len(directory) + mesh.Lanes*len(lane); len(got) > most {
			t.Errorf("read %d bytes of %d", len(got), most)
		}
	})
}

// TestLaneIsTaken: a node takes a lane from the node that it waits for, and from
// no other, and holds it until the stream ends.
func TestLaneIsTaken(t *testing.T) {
	nodes := startNodes(t, 3)
	a, b, c := nodes[0], nodes[1], nodes[2]
	rw, err := b.openLanes(t.Context(), a.id)
	if err != nil {
		t.Fatal(err)
	}
	defer rw.Close()
	meter, ok := rw.(pager.Meter)
	if !ok {
		t.Fatal("the pager is not told of round trips")
	}
	if latest, count := meter.RTT(); latest <= 0 || count == 0 {
		t.Errorf("a round trip of %v after %d packets", latest, count)
	}
	var key laneKey
	b.mu.Lock()
	for key = range b.lanes {
	}
	b.mu.Unlock()
	open := func(from *testNode, number byte) *mesh.Stream {
		t.Helper()
		s, err := from.mesh.Open(t.Context(), b.id, protoLane, mesh.Lane(int(number)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		if _, err := s.Write(append(key[:], number)); err != nil {
			t.Fatal(err)
		}
		return s
	}
	refused := func(s *mesh.Stream) {
		t.Helper()
		if n, err := s.Read(make([]byte, 1)); n > 0 || err == nil {
			t.Error("a lane was taken, or went on after its stream")
		}
	}
	r := rw.(*laneReader)
	one, seven := open(a, 1), open(a, mesh.Lanes)
	for _, number := range []byte{1, mesh.Lanes} {
		if _, err := r.lane(number); err != nil {
			t.Fatal(err)
		}
	}
	refused(open(a, 1)) // once more
	refused(open(c, 2))
	if r.lanes[1] != nil {
		t.Error("a stranger's lane was taken")
	}
	rw.Close()
	refused(one)
	refused(seven)
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.lanes) > 0 {
		t.Errorf("%d streams wait for lanes", len(b.lanes))
	}
}
