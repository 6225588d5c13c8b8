package netlab

import (
	"fmt"
	"math"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// batch is how many packets are taken from one device before the others, and
// what has become due meanwhile, have their turn.
const batch = 32

const (
	// early is how long before an event the emulator stops sleeping and polls
	// instead: a sleeping CPU of a virtual machine takes 60 to 400 µs to come
	// back, a busy one has no such need.
	early = 200 * time.Microsecond
	// pollShare limits that polling to one part in so many of all time. It is
	// used up while events come thick and fast, which is when sleeps are
	// short and their ends punctual anyway.
	pollShare = 10
	// pollCredit is the most polling that can be saved up.
	pollCredit = 4 * time.Millisecond
)

func (l *Lab) now() int64 { return int64(time.Since(l.start)) }

// emulate is the emulator, on a thread of its own: it sleeps until a device has a packet, a
// command comes or the next event is due. ppoll rather than Go's timers and
// poller: a timer of the runtime is late by a goroutine's scheduling and
// often by a millisecond under load.
func (l *Lab) emulate() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// By default the kernel rounds a thread's timeouts up by 50 µs.
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set timer slack: %w", err)
	}
	defer unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) // 0 is the default
	var polled []unix.PollFd
	for !l.stop {
		if len(polled) != 1+len(l.tuns) {
			polled = append(polled[:0], unix.PollFd{Fd: int32(l.wake), Events: unix.POLLIN})
			for _, fd := range l.tuns {
				polled = append(polled, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
			}
		}
		n, err := l.poll(polled)
		if err != nil {
			return err
		}
		if n > 0 {
			for node, p := range polled[1:] {
				if p.Revents != 0 {
					if err := l.read(node); err != nil {
						return err
					}
				}
			}
			if polled[0].Revents != 0 {
				l.serve()
			}
		}
		l.engine.advance(l.now())
	}
	return nil
}

// poll waits for a device, a command or the next event.
func (l *Lab) poll(fds []unix.PollFd) (int, error) {
	at := l.engine.deadline()
	if at == math.MaxInt64 {
		return ppoll(fds, nil)
	}
	now := l.now()
	l.credit = min(l.credit+(now-l.credited)/pollShare, int64(pollCredit))
	l.credited = now
	wait := max(0, at-now)
	if wait == 0 || l.credit < int64(early) {
		return ppoll(fds, &wait)
	}
	if wait > int64(early) {
		wait -= int64(early)
		return ppoll(fds, &wait)
	}
	wait = 0
	for {
		n, err := ppoll(fds, &wait)
		if t := l.now(); n != 0 || err != nil || t >= at {
			l.credit -= t - now
			return n, err
		}
	}
}

// ppoll is ppoll(2) with a timeout in nanoseconds, nil being none. An
// interruption counts as nothing to do.
func ppoll(fds []unix.PollFd, timeout *int64) (int, error) {
	var t *unix.Timespec
	if timeout != nil {
		ts := unix.NsecToTimespec(*timeout)
		t = &ts
	}
	n, err := unix.Ppoll(fds, t, nil)
	switch err {
	case nil:
		return n, nil
	case unix.EINTR:
		return 0, nil
	}
	return 0, fmt.Errorf("ppoll: %w", err)
}

// serve runs a command. The event counter is cleared before, so that another
// do which has written to it but not yet offered its command is not missed:
// its command is waited for, which takes no longer than its goroutine takes
// from the one to the other.
func (l *Lab) serve() {
	var count [8]byte
	n, err := unix.Read(l.wake, count[:])
	if n != len(count) || err != nil {
		return
	}
	for range count[0] {
		(<-l.commands)()
	}
}

// read takes packets from a node's device.
func (l *Lab) read(node int) error {
	for range batch {
		p := l.packet()
		n, err := unix.Read(l.tuns[node], p.buf[:bufferBytes])
		if err != nil {
			l.free = append(l.free, p)
			switch err {
			case unix.EAGAIN, unix.EINTR:
				return nil
			}
			return fmt.Errorf("read from a node's device: %w", err)
		}
		p.buf = p.buf[:n]
		l.engine.send(l.now(), node, p)
	}
	return nil
}

// deliver hands a packet to a node's kernel, which works through it, up to
// the socket, before the system call returns.
func (l *Lab) deliver(node int, p *packet) {
	if _, err := unix.Write(l.tuns[node], p.buf); err != nil {
		l.refused++
	}
	l.recycle(p)
}

func (l *Lab) packet() *packet {
	if n := len(l.free); n > 0 {
		p := l.free[n-1]
		l.free = l.free[:n-1]
		return p
	}
	return &packet{buf: make([]byte, 0, bufferBytes)}
}

func (l *Lab) recycle(p *packet) {
	// A few thousand buffers are enough for any steady flow; after a burst
	// the rest goes back to the garbage collector.
	if len(l.free) < 8192 {
		l.free = append(l.free, p)
	}
}
