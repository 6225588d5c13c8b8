package wasi

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A waiter is a node's side of Config.Wait: it ends a wait when it is told to.
type waiter struct {
	clock *Clock
	stop  chan struct{}
}

func (w *waiter) wait(until int64, wake <-chan struct{}) bool {
	d := time.Duration(until - w.clock.Now())
	if until == never {
		d = math.MaxInt64
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-w.stop:
		return true
	default:
	}
	select {
	case <-w.stop:
		return true
	case <-wake:
	case <-timer.C:
	}
	return false
}

// A talker is a guest that reads and writes streams, on one node after another.
type talker struct {
	t   *testing.T
	h   *Host
	w   *waiter
	mem memory
}

func newTalker(t *testing.T, mem memory) *talker {
	t.Helper()
	k := &talker{t: t, mem: mem}
	k.host(0)
	return k
}

func (k *talker) host(clock int64) {
	k.t.Helper()
	k.w = &waiter{clock: NewClock(clock), stop: make(chan struct{}, 1)}
	var err error
	if k.h, err = New(Config{Clock: k.w.clock, Wait: k.w.wait, Streams: NewStreams()}); err != nil {
		k.t.Fatal(err)
	}
}

// move puts the guest on another node, where away later its clock goes on.
func (k *talker) move(away time.Duration) {
	k.t.Helper()
	s, err := ParseState(k.h.State().Encode())
	if err != nil {
		k.t.Fatal(err)
	}
	clock := k.w.clock.Now()
	time.Sleep(away)
	k.host(clock)
	if err := k.h.SetState(s); err != nil {
		k.t.Fatal(err)
	}
}

func (k *talker) call(name string, args ...uint64) errno {
	return k.h.call(name, functions[name], k.mem, append(make([]uint64, 0, 16), args...))
}

// read reads up to n bytes.
func (k *talker) read(n int) (string, errno) {
	le.PutUint32(k.mem.all()[0:], 100)
	le.PutUint32(k.mem.all()[4:], uint32(n))
	e := k.call("fd_read", 0, 0, 1, 8)
	return string(k.mem.all()[100:][:le.Uint32(k.mem.all()[8:])]), e
}

// write writes n bytes of s.
func (k *talker) write(stream uint64, s string) (int, errno) {
	copy(k.mem.all()[100:], s)
	le.PutUint32(k.mem.all()[0:], 100)
	le.PutUint32(k.mem.all()[4:], uint32(len(s)))
	e := k.call("fd_write", stream, 0, 1, 8)
	return int(le.Uint32(k.mem.all()[8:])), e
}

func TestInput(t *testing.T) {
	mem := newMemory(t)
	synctest.Test(t, func(t *testing.T) {
		k := newTalker(t, mem)
		check := func(n int, want string) {
			t.Helper()
			if got, e := k.read(n); e != success || got != want {
				t.Errorf("read %q, %d, want %q", got, e, want)
			}
		}
		push := func(s string) {
			t.Helper()
			if err := k.h.streams.Push([]byte(s)); err != nil {
				t.Fatal(err)
			}
		}
		push("one\n")
		push("two\n")
		check(2, "on")
		k.move(0) // in the middle of a message
		check(100, "e\n")
		check(0, "")
		check(100, "two\n")
		if total, unread := k.h.streams.Pushed(); total != 2 || unread != 0 {
			t.Errorf("pushed %d, unread %d", total, unread)
		}
		// A read that waits gets what comes.
		done := make(chan string)
		go func() { s, _ := k.read(100); done <- s }()
		synctest.Wait()
		push("")
		push("three")
		if got := <-done; got != "three" {
			t.Errorf("read %q", got)
		}
		// A read that is interrupted takes nothing, and can be made again.
		go func() { _, e := k.read(100); done <- fmt.Sprint(e) }()
		synctest.Wait()
		k.w.stop <- struct{}{}
		if got := <-done; got != fmt.Sprint(errIntr) || !k.h.Interrupted() {
			t.Errorf("interrupted: %s", got)
		}
		push("four")
		k.move(0)
		check(100, "four")
		// Without waiting.
		if e := k.call("fd_fdstat_set_flags", 0, flagNonblock); e != success {
			t.Fatal(e)
		}
		if _, e := k.read(1); e != errAgain {
			t.Errorf("nothing to read: %d", e)
		}
		push("end")
		k.h.streams.CloseInput()
		k.move(0)
		check(2, "en")
		check(100, "d")
		check(100, "")
		check(100, "")
		if err := k.h.streams.Push([]byte("x")); !errors.Is(err, ErrInputClosed) {
			t.Errorf("push to a closed input: %v", err)
		}
	})
}

func TestInputBounds(t *testing.T) {
	s := NewStreams()
	if err := s.Push(make([]byte, MaxInput+1)); err == nil || errors.Is(err, ErrFull) {
		t.Errorf("too large a message: %v", err)
	}
	if err := s.Push(make([]byte, MaxInput)); err != nil {
		t.Error(err)
	}
	if err := s.Push([]byte("x")); !errors.Is(err, ErrFull) {
		t.Errorf("full of bytes: %v", err)
	}
	s = NewStreams()
	for range MaxInputMessages {
		if err := s.Push([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Push([]byte("x")); !errors.Is(err, ErrFull) {
		t.Errorf("full of messages: %v", err)
	}
}

// A guest that writes as fast as it can, a node that takes the output now and
// then, and moves: every byte comes once and in order.
func TestOutput(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	k := newTalker(t, newMemory(t))
	k.w.stop <- struct{}{} // a write that must wait is interrupted
	var wrote, took strings.Builder
	at := uint64(0)
	for i := range 3000 {
		stream := uint64(1 + rng.IntN(2))
		text := strings.Repeat(fmt.Sprint(i, " "), rng.IntN(2000))
		n, e := k.write(stream, text)
		switch e {
		case success:
			if n != len(text) {
				t.Fatalf("wrote %d of %d bytes", n, len(text))
			}
			wrote.WriteString(text)
		case errIntr:
			k.w.stop <- struct{}{}
		default:
			t.Fatal(e)
		}
		if rng.IntN(3) == 0 {
			for range rng.IntN(10) {
				if o, ok := k.h.streams.Next(at, 1+rng.IntN(9000)); ok {
					if o.Offset != at || len(o.Data) == 0 {
						t.Fatalf("output at %d: %+v", at, o)
					}
					took.Write(o.Data)
					at += uint64(len(o.Data))
				}
			}
			if err := k.h.streams.Ack(at); err != nil {
				t.Fatal(err)
			}
		}
		if rng.IntN(20) == 0 {
			k.move(0)
			k.w.stop <- struct{}{}
			if k.h.streams.Acked() != at {
				t.Fatalf("acknowledged %d, then %d", at, k.h.streams.Acked())
			}
		}
	}
	for {
		o, ok := k.h.streams.Next(at, math.MaxInt)
		if !ok {
			break
		}
		took.Write(o.Data)
		at += uint64(len(o.Data))
	}
	if wrote.String() != took.String() || uint64(wrote.Len()) != at {
		t.Errorf("wrote %d bytes, took %d", wrote.Len(), took.Len())
	}
	if err := k.h.streams.Ack(at + 1); err == nil {
		t.Error("acknowledged what was not written")
	}
	select {
	case <-k.h.streams.More():
	default:
		t.Error("nobody was told")
	}
}

// A write that finds no room waits for it.
func TestFullOutput(t *testing.T) {
	mem := newMemory(t)
	synctest.Test(t, func(t *testing.T) {
		k := newTalker(t, mem)
		big := strings.Repeat("x", 100_000)
		for range MaxOutput / len(big) {
			if n, e := k.write(1, big); e != success || n != len(big) {
				t.Fatal(n, e)
			}
		}
		if e := k.call("fd_fdstat_set_flags", 1, flagNonblock); e != success {
			t.Fatal(e)
		}
		if n, e := k.write(1, big); e != success || n != MaxOutput%len(big) {
			t.Errorf("wrote %d, %d, want what there was room for", n, e)
		}
		if _, e := k.write(1, big); e != errAgain {
			t.Errorf("without room: %d", e)
		}
		done := make(chan errno)
		go func() { _, e := k.write(2, big); done <- e }()
		synctest.Wait()
		if err := k.h.streams.Ack(uint64(len(big)) - 1); err != nil { // not enough yet
			t.Fatal(err)
		}
		synctest.Wait()
		select {
		case e := <-done:
			t.Fatalf("wrote, %d", e)
		default:
		}
		if err := k.h.streams.Ack(uint64(len(big))); err != nil {
			t.Fatal(err)
		}
		if e := <-done; e != success {
			t.Error(e)
		}
	})
}

// Output in many small pieces is full before it takes much memory.
func TestPiecesOfOutput(t *testing.T) {
	k := newTalker(t, newMemory(t))
	for i := range maxPieces + 1 {
		if i == maxPieces {
			k.w.stop <- struct{}{}
		}
		_, e := k.write(uint64(1+i%2), "x")
		if want := i < maxPieces; (e == success) != want {
			t.Fatalf("write %d: %d", i, e)
		}
	}
	k.move(0)
	if err := k.h.streams.Ack(3); err != nil {
		t.Fatal(err)
	}
	if _, e := k.write(2, "x"); e != success {
		t.Error(e)
	}
}

// A node pushes, takes and sends blocks while the guest runs.
func TestNodeBesideGuest(t *testing.T) {
	cfg := worker()
	h, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	k := &talker{t: t, h: h, mem: newMemory(t)}
	const messages = 2000
	done := make(chan string)
	go func() { // the sender
		for i := 0; i < messages; {
			if err := h.streams.Push(fmt.Appendf(nil, "message %d\n", i)); err == nil {
				i++
			} else if !errors.Is(err, ErrFull) {
				panic(err)
			}
		}
		h.streams.CloseInput()
		done <- ""
	}()
	go func() { // whoever takes the output
		var out strings.Builder
		at := uint64(0)
		for range h.streams.More() {
			for {
				o, ok := h.streams.Next(at, 1000)
				if !ok {
					break
				}
				out.Write(o.Data)
				at += uint64(len(o.Data))
			}
			if err := h.streams.Ack(at); err != nil {
				panic(err)
			}
			if strings.HasSuffix(out.String(), "the end") {
				break
			}
		}
		done <- out.String()
	}()
	stop := make(chan struct{})
	go func() { // whoever sends blocks ahead
		for n := uint32(0); ; n++ {
			select {
			case <-stop:
				done <- ""
				return
			default:
			}
			for _, b := range allNames(h.store) {
				h.Block(b)
			}
			h.Missing(10)
			if _, err := h.Put(le.AppendUint32(nil, n+1)); err != nil {
				panic(err)
			}
		}
	}()
	want := ""
	copy(k.mem.all(), "file")
	if e := k.call("path_open", 3, 0, 0, 4, openCreate, fileRights, 0, 0, 50); e != success {
		t.Fatal(e)
	}
	for {
		line, e := k.read(5)
		if e != success {
			t.Fatal(e)
		}
		if line == "" {
			break
		}
		want += line
		for fd := range uint64(2) {
			if _, e := k.write(1+fd*4, line); e != success {
				t.Fatal(e)
			}
		}
	}
	k.write(2, "the end")
	close(stop)
	got := <-done + <-done + <-done
	if got != want+"the end" || strings.Count(got, "message") != messages {
		t.Errorf("%d bytes in, %d out", len(want), len(got))
	}
	if h.fd(5).node.size != int64(len(want)) {
		t.Errorf("%d bytes in the file, want %d", h.fd(5).node.size, len(want))
	}
}

// A sleep that is interrupted goes on for what remains of it, however long the
// way was.
func TestSleepMoves(t *testing.T) {
	mem := newMemory(t)
	synctest.Test(t, func(t *testing.T) {
		for _, flags := range []byte{0, clockAbsolute} {
			k := newTalker(t, mem)
			sub := mem.all()[1000:][:subscriptionSize]
			clear(sub)
			sub[16] = clockMonotonic
			timeout := int64(10 * time.Second)
			if flags == clockAbsolute {
				timeout += k.w.clock.Now()
			}
			le.PutUint64(sub[24:], uint64(timeout))
			sub[40] = flags
			began := k.w.clock.Now()
			for i := range 3 {
				done := make(chan errno)
				go func() { done <- k.call("poll_oneoff", 1000, 2000, 1, 3000) }()
				time.Sleep(3 * time.Second)
				k.w.stop <- struct{}{}
				if e := <-done; e != errIntr || !k.h.Interrupted() {
					t.Fatalf("move %d: %d", i, e)
				}
				k.move(time.Hour)
			}
			if e := k.call("poll_oneoff", 1000, 2000, 1, 3000); e != success {
				t.Fatal(e)
			}
			if took := k.w.clock.Now() - began; took != int64(10*time.Second) {
				t.Errorf("slept %v of the worker's time, want 10s", time.Duration(took))
			}
			// The next one is another, and takes as long again.
			if flags != clockAbsolute {
				began = k.w.clock.Now()
				k.call("poll_oneoff", 1000, 2000, 1, 3000)
				if took := k.w.clock.Now() - began; took != int64(10*time.Second) {
					t.Errorf("then slept %v", time.Duration(took))
				}
			}
			// All of it was waiting.
			k.call("clock_time_get", clockProcess, 0, 100)
			if cpu := le.Uint64(mem.all()[100:]); cpu != 0 {
				t.Errorf("%v of computing", time.Duration(cpu))
			}
		}
	})
}

// A poll that was interrupted is forgotten if the guest does something else.
func TestOtherCallAfterInterruption(t *testing.T) {
	mem := newMemory(t)
	synctest.Test(t, func(t *testing.T) {
		for name, other := range map[string]func(k *talker){
			"another function": func(k *talker) { k.call("sched_yield") },
			"another timeout": func(k *talker) {
				le.PutUint64(mem.all()[1024:], uint64(time.Second))
				k.call("poll_oneoff", 1000, 2000, 1, 3000)
				le.PutUint64(mem.all()[1024:], uint64(10*time.Second))
			},
		} {
			k := newTalker(t, mem)
			clear(mem.all())
			mem.all()[1016] = clockMonotonic
			le.PutUint64(mem.all()[1024:], uint64(10*time.Second))
			k.w.stop <- struct{}{}
			if e := k.call("poll_oneoff", 1000, 2000, 1, 3000); e != errIntr {
				t.Fatal(e)
			}
			time.Sleep(5 * time.Second)
			other(k)
			began := k.w.clock.Now()
			k.call("poll_oneoff", 1000, 2000, 1, 3000)
			if took := k.w.clock.Now() - began; took != int64(10*time.Second) {
				t.Errorf("%s: slept %v, want 10s", name, time.Duration(took))
			}
		}
	})
}

// A poll of the input and of a clock ends with whichever is first.
func TestPollStreams(t *testing.T) {
	mem := newMemory(t)
	synctest.Test(t, func(t *testing.T) {
		k := newTalker(t, mem)
		clear(mem.all())
		subs := mem.all()[1000:]
		subs[0], subs[16] = 7, clockMonotonic
		le.PutUint64(subs[24:], uint64(time.Minute))
		subs[48], subs[48+8] = 8, eventFDRead
		poll := func(n int) (users []byte) {
			t.Helper()
			if e := k.call("poll_oneoff", 1000, 2000, uint64(n), 3000); e != success {
				t.Fatal(e)
			}
			for i := range le.Uint32(mem.all()[3000:]) {
				users = append(users, mem.all()[2000+i*eventSize])
			}
			return users
		}
		start := time.Now()
		if got := poll(2); !bytes.Equal(got, []byte{7}) || time.Since(start) != time.Minute {
			t.Errorf("%v after %v", got, time.Since(start))
		}
		go func() {
			time.Sleep(time.Second)
			_ = k.h.streams.Push([]byte("hello"))
		}()
		start = time.Now()
		if got := poll(2); !bytes.Equal(got, []byte{8}) || time.Since(start) != time.Second {
			t.Errorf("%v after %v", got, time.Since(start))
		}
		if n := le.Uint64(mem.all()[2016:]); n != 5 {
			t.Errorf("%d bytes to read", n)
		}
		if s, e := k.read(10); s != "hello" || e != success {
			t.Error(s, e)
		}
		// The end of the input is ready too, and hung up.
		k.h.streams.CloseInput()
		if got := poll(2); !bytes.Equal(got, []byte{8}) || le.Uint16(mem.all()[2024:]) != hangup {
			t.Errorf("%v", got)
		}
		// Output is ready while there is room.
		subs[48], subs[48+8], subs[48+16] = 9, eventFDWrite, 1
		if got := poll(2); !bytes.Equal(got, []byte{9}) {
			t.Errorf("%v", got)
		}
		big := strings.Repeat("x", 65536)
		for range MaxOutput / len(big) {
			k.write(1, big)
		}
		clear(mem.all()[1000:1096])
		subs[0], subs[16] = 7, clockRealtime
		subs[40] = clockAbsolute
		le.PutUint64(subs[24:], uint64(time.Now().Add(time.Hour).UnixNano()))
		subs[48], subs[48+8], subs[48+16] = 9, eventFDWrite, 1
		start = time.Now()
		if got := poll(2); !bytes.Equal(got, []byte{7}) || time.Since(start) != time.Hour {
			t.Errorf("%v after %v", got, time.Since(start))
		}
	})
}
