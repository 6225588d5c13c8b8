package pager

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// A stretch of at least largeZeros pages of zeroes is not armed: the
	// kernel fills it by itself, at a twentieth of the cost of a fault served
	// from here. Each such stretch splits the runner's mapping, of which it
	// may have some 65,000 (vm.max_map_count), so at most maxSplits are taken.
	largeZeros = 256
	maxSplits  = 1024
)

// Arm makes the worker wait for pages that are not in. It is called before
// the worker resumes, and at most once. It fails with ErrUnsupported when the
// Region has no userfaultfd; the Sink then fills the memory before the worker
// runs. Between Arm and Run faults wait.
func (s *Sink) Arm() error {
	if s.cfg.Region.UFFD < 0 {
		return fmt.Errorf("arm memory: no userfaultfd: %w", ErrUnsupported)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.armed || s.running {
		return errors.New("arm memory: armed or running already")
	}
	if s.pages%s.kernelPage != 0 {
		return fmt.Errorf("arm memory: %d pages are not whole kernel pages of %d", s.pages, s.kernelPage)
	}
	if s.pages == 0 {
		return nil
	}
	s.group = s.kernelPage
	for p := 0; s.group > 1 && p < s.pages; p += s.group {
		for q := p + 1; q < p+s.group; q++ {
			if (s.state[p] == present) != (s.state[q] == present) {
				return fmt.Errorf("arm memory: page %d is in place but not the whole of its kernel page", q)
			}
		}
	}
	if err := s.vacantLocked(); err != nil {
		return err
	}
	u := uffd(s.cfg.Region.UFFD)
	if err := u.register(s.addr(0), uint64(s.pages)*PageSize, uffdRegisterMissing); err != nil {
		return fmt.Errorf("arm memory: %w", err)
	}
	s.armed = true
	return s.releaseLocked(Run{0, uint32(s.pages)})
}

// vacantLocked checks that no page to be brought is in the memory file: it
// would be there for the worker without a fault, with whatever it holds. This
// is part of the time in which the worker runs nowhere, so it asks the file
// for its data, of which there is next to none, and only without a file looks
// at every page (mincore(2), which touches none).
func (s *Sink) vacantLocked() error {
	if s.intake != nil && !lookTwice {
		// It has put in place all there is and dropped the rest, which may be
		// tens of thousands of stretches, each worth two system calls.
		return nil
	}
	occupied := func(p int) error { return fmt.Errorf("arm memory: page %d: %w", p, ErrOccupied) }
	if s.cfg.Region.File != nil {
		missing := runsOf(s.pages, func(p PageNum) bool { return s.state[p] != present })
		holes, err := ZeroRunsWithin(s.cfg.Region.File, missing)
		if err != nil {
			return fmt.Errorf("arm memory: %w", err)
		}
		if data := without(missing, holes); len(data) > 0 {
			return occupied(int(data[0].First))
		}
		return nil
	}
	data := s.cfg.Region.Data[:s.pages*PageSize]
	size := os.Getpagesize() // what the kernel counts in
	vec := make([]byte, (len(data)+size-1)/size)
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&data[0])), uintptr(len(data)), uintptr(unsafe.Pointer(&vec[0])))
	if errno != 0 {
		return fmt.Errorf("arm memory: find resident pages: %w", errno)
	}
	for i, resident := range vec {
		if p := i * size / PageSize; resident&1 != 0 && s.state[p] != present {
			return occupied(p)
		}
	}
	return nil
}

// addr is the address of page p in the runner.
func (s *Sink) addr(p PageNum) uint64 { return s.cfg.Region.Base + uint64(p)*PageSize }

// release hands large stretches of zeroes within r to the kernel.
func (s *Sink) release(r Run) error {
	if r.Count < largeZeros {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.releaseLocked(r)
}

func (s *Sink) releaseLocked(r Run) error {
	if !s.armed {
		return nil
	}
	allLazy := block(lazy)
	for p := r.First; ; {
		flags := s.state[p:r.end()]
		next := bytes.IndexByte(flags, lazy)
		if next < 0 {
			return nil
		}
		z := Run{p + PageNum(next), uint32(span(flags[next:], allLazy))}
		p = z.end()
		if z.First%PageNum(s.group) != 0 {
			skip := PageNum(s.group) - z.First%PageNum(s.group)
			if uint32(skip) >= z.Count {
				continue
			}
			z.First, z.Count = z.First+skip, z.Count-uint32(skip)
		}
		z.Count -= z.Count % uint32(s.group)
		if z.Count < largeZeros || s.splits >= maxSplits {
			continue
		}
		if err := uffd(s.cfg.Region.UFFD).unregister(s.addr(z.First), uint64(z.Count)*PageSize); err != nil {
			return fmt.Errorf("%w: release %d pages of zeroes from page %d: %w", errInstall, z.Count, z.First, err)
		}
		s.splits++
		for q := z.First; q < z.end(); q++ {
			s.state[q] = present
			delete(s.waits, q)
		}
	}
}

// disarm ends the service of faults after all pages are in.
func (s *Sink) disarm() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.armed {
		return nil
	}
	// Zeroes that nobody touched are holes still; from here on the kernel
	// fills them in.
	if err := uffd(s.cfg.Region.UFFD).unregister(s.addr(0), uint64(s.pages)*PageSize); err != nil {
		return fmt.Errorf("disarm memory: %w", err)
	}
	s.armed, s.group = false, 1
	clear(s.waits)
	return nil
}

func (s *Sink) wake(p PageNum) error {
	err := uffd(s.cfg.Region.UFFD).wake(s.addr(p), uint64(s.group)*PageSize)
	if err != nil {
		return fmt.Errorf("%w: %w", errInstall, err)
	}
	return nil
}

// install puts pages in place in the runner and wakes who waits for them.
func (s *Sink) install(first PageNum, data []byte) error {
	for n := 0; n < len(data); {
		done, err := uffd(s.cfg.Region.UFFD).copy(s.addr(first)+uint64(n), data[n:])
		n += done
		if errors.Is(err, unix.EEXIST) {
			step := s.group * PageSize
			if err := s.alreadyThere(first+PageNum(n/PageSize), data[n:n+step]); err != nil {
				return err
			}
			n += step
		} else if err != nil {
			return fmt.Errorf("%w %d: %w", errInstall, int(first)+n/PageSize, err)
		}
	}
	return nil
}

func (s *Sink) installZeros(r Run) error {
	total := int(r.Count) * PageSize
	for n := 0; n < total; {
		done, err := uffd(s.cfg.Region.UFFD).zeropage(s.addr(r.First)+uint64(n), total-n)
		n += done
		if errors.Is(err, unix.EEXIST) {
			for range s.group {
				if err := s.alreadyThere(r.First+PageNum(n/PageSize), zeroPage[:]); err != nil {
					return err
				}
				n += PageSize
			}
		} else if err != nil {
			return fmt.Errorf("%w %d: %w", errInstall, int(r.First)+n/PageSize, err)
		}
	}
	return nil
}

// alreadyThere deals with EEXIST. A page is only ever put in place by the one
// goroutine that took it, so somebody else was at the memory; if the content
// is the same, no harm was done, and who waits is woken.
func (s *Sink) alreadyThere(p PageNum, want []byte) error {
	for i := 0; i < len(want); i += PageSize {
		q := p + PageNum(i/PageSize)
		there := s.cfg.Region.Data[int(q)*PageSize:][:PageSize]
		if got, want := HashPage(there), HashPage(want[i:i+PageSize]); got != want {
			return s.pageError(q, want, got, ErrOccupied)
		}
	}
	return s.wake(p - p%PageNum(s.group))
}

// startFaults starts the goroutine that serves faults. stop ends it and waits.
func (s *Sink) startFaults(fail context.CancelCauseFunc) (stop func(), err error) {
	// A copy of its own, since it is closed at the end.
	fd, err := unix.FcntlInt(uintptr(s.cfg.Region.UFFD), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("serve faults: %w", err)
	}
	file := os.NewFile(uintptr(fd), "userfaultfd")
	if err := file.SetReadDeadline(time.Time{}); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("serve faults: the userfaultfd is not non-blocking: %w", err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := s.serveFaults(file); err != nil {
			fail(err)
		}
	})
	return func() {
		_ = file.SetReadDeadline(time.Unix(1, 0))
		serving.Wait()
		_ = file.Close()
	}, nil
}

// serveFaults reads faults and deals with each, until a deadline ends it.
//
// It waits in Go's network poller and not, as it did, in poll(2) on a thread of
// its own. A fault that is answered here takes the same either way (17 to 20 µs
// from touch to touch done). But one that has to be asked for wakes the
// goroutine that writes the want, and that was then queued for the processor
// (the runtime's P) that this thread took along into its system call: unless
// another was idle it ran when the runtime's monitor took the processor away,
// 10 to 20 ms later. One fault in seven took three round trips for that. In the
// poller the goroutine goes and its thread writes the want next. Spinning for 20
// or 60 µs before the wait was slower as soon as anything else wanted to run.
func (s *Sink) serveFaults(file *os.File) error {
	conn, err := file.SyscallConn()
	if err != nil {
		return fmt.Errorf("wait for faults: %w", err)
	}
	msgs := make([]byte, 16*uffdMsgSize)
	buf := make([]byte, aheadMost*PageSize)
	for {
		var n uintptr
		var errno unix.Errno
		err := conn.Read(func(fd uintptr) (done bool) {
			// A read that does not wait is too short to tell the scheduler of.
			n, _, errno = unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)))
			return errno != unix.EAGAIN
		})
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil:
			return fmt.Errorf("wait for faults: %w", err)
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return fmt.Errorf("read faults: %w", errno)
		}
		for i := 0; i+uffdMsgSize <= int(n); i += uffdMsgSize {
			if err := s.onMessage(msgs[i:i+uffdMsgSize], buf); err != nil {
				return err
			}
		}
	}
}

// onMessage takes a struct uffd_msg: event uint8, and for a page fault flags
// uint64 at 8 and address uint64 at 16, in the order of this machine.
func (s *Sink) onMessage(msg, buf []byte) error {
	if msg[0] != uffdEventPagefault {
		return nil // no other event was asked for, and none needs an answer
	}
	addr := binary.NativeEndian.Uint64(msg[16:])
	if addr < s.cfg.Region.Base || addr-s.cfg.Region.Base >= uint64(s.pages)*PageSize {
		return fmt.Errorf("fault at %#x, outside the memory at %#x", addr, s.cfg.Region.Base)
	}
	return s.onFault(PageNum((addr-s.cfg.Region.Base)/PageSize), buf)
}
