package pager

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The request numbers and structures of userfaultfd(2), ioctl_userfaultfd(2)
// and Documentation/admin-guide/mm/{userfaultfd,pagemap}.rst. Every field is
// 64 bits wide, so that the layouts are the same on 32 and 64 bits; the
// encoding of the numbers is that of all architectures but the MIPS, PowerPC
// and SPARC families, where the kernel refuses them and Probe says so.
const (
	uffdAPI = 0xaa

	ioctlUffdAPI          = 0xc018aa3f
	ioctlUffdRegister     = 0xc020aa00
	ioctlUffdUnregister   = 0x8010aa01
	ioctlUffdWake         = 0x8010aa02
	ioctlUffdCopy         = 0xc028aa03
	ioctlUffdZeropage     = 0xc020aa04
	ioctlUffdWriteprotect = 0xc018aa06
	ioctlUffdContinue     = 0xc020aa07

	uffdUserModeOnly = 1

	uffdRegisterMissing = 1 << 0
	uffdRegisterWP      = 1 << 1
	uffdRegisterMinor   = 1 << 2

	uffdEventPagefault = 0x12

	uffdMsgSize = 32
)

// Features of userfaultfd, as ioctl_userfaultfd(2) numbers them.
const (
	FeaturePagefaultFlagWP  = 1 << 0
	FeatureMissingShmem     = 1 << 5
	FeatureMinorShmem       = 1 << 10
	FeatureWPHugetlbfsShmem = 1 << 12
	FeatureWPUnpopulated    = 1 << 13
	FeatureWPAsync          = 1 << 15
)

// wantedFeatures is asked for as far as the kernel has it. No event but the
// page fault is among them: a runner neither forks nor unmaps its memory, and
// while an event is pending every request fails with EAGAIN.
const wantedFeatures = FeaturePagefaultFlagWP | FeatureMissingShmem | FeatureMinorShmem |
	FeatureWPHugetlbfsShmem | FeatureWPUnpopulated | FeatureWPAsync

type uffdioAPI struct{ api, features, ioctls uint64 }
type uffdioRange struct{ start, len uint64 }
type uffdioRegister struct {
	uffdioRange
	mode, ioctls uint64
}
type uffdioCopy struct {
	dst, src, len, mode uint64
	copied              int64
}
type uffdioZeropage struct {
	uffdioRange
	mode   uint64
	zeroed int64
}
type uffdioWriteprotect struct {
	uffdioRange
	mode uint64
}

// ioctl passes arg to the kernel. Requests on a userfaultfd never wait for
// another process, so they are made without telling the Go scheduler unless
// long says that the request may take more than some ten microseconds.
func ioctl(fd int, req uintptr, arg unsafe.Pointer, long bool) error {
	var errno unix.Errno
	if long {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(arg))
	} else {
		_, _, errno = unix.RawSyscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(arg))
	}
	if errno != 0 {
		return errno
	}
	return nil
}

// OpenUserfault opens a userfaultfd for the calling process, the runner, and
// returns it with the features that were enabled. The descriptor is
// non-blocking and closed on exec; the runner passes a duplicate to the node,
// which makes all requests, and keeps its own open for as long as it lives:
// when the last copy is closed every page that has not arrived reads as
// zeroes and whoever waited goes on with those. It needs no privilege, since
// it serves faults in user mode only; a system call that touches an absent
// page fails with EFAULT.
func OpenUserfault() (fd int, features uint64, err error) {
	// The features a kernel has are asked for on a descriptor of their own:
	// asking for one it lacks fails the handshake.
	probe, err := newUserfault()
	if err != nil {
		return -1, 0, err
	}
	have, err := handshake(probe, 0)
	_ = unix.Close(probe)
	if err != nil {
		return -1, 0, err
	}
	fd, err = newUserfault()
	if err != nil {
		return -1, 0, err
	}
	features = have & wantedFeatures
	if _, err = handshake(fd, features); err != nil {
		_ = unix.Close(fd)
		return -1, 0, err
	}
	return fd, features, nil
}

func newUserfault() (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK|uffdUserModeOnly, 0, 0)
	if errno != 0 {
		return -1, fmt.Errorf("open userfaultfd: %w", errno)
	}
	return int(fd), nil
}

func handshake(fd int, features uint64) (uint64, error) {
	api := uffdioAPI{api: uffdAPI, features: features}
	if err := ioctl(fd, ioctlUffdAPI, unsafe.Pointer(&api), true); err != nil {
		return 0, fmt.Errorf("userfaultfd handshake: %w", err)
	}
	return api.features, nil
}

// uffd makes requests on a userfaultfd. They act on the addresses of the
// process that opened it, whichever process makes them.
type uffd int

func (u uffd) register(start, length, mode uint64) error {
	r := uffdioRegister{uffdioRange: uffdioRange{start, length}, mode: mode}
	if err := ioctl(int(u), ioctlUffdRegister, unsafe.Pointer(&r), true); err != nil {
		return fmt.Errorf("register %#x+%#x with userfaultfd: %w", start, length, u.gone(start, err))
	}
	return nil
}

// unregister also wakes all who wait for a page of the range; they find what
// is there, or zeroes.
func (u uffd) unregister(start, length uint64) error {
	r := uffdioRange{start, length}
	if err := ioctl(int(u), ioctlUffdUnregister, unsafe.Pointer(&r), true); err != nil {
		return fmt.Errorf("unregister %#x+%#x from userfaultfd: %w", start, length, u.gone(start, err))
	}
	return nil
}

func (u uffd) wake(start, length uint64) error {
	r := uffdioRange{start, length}
	if err := ioctl(int(u), ioctlUffdWake, unsafe.Pointer(&r), false); err != nil {
		return fmt.Errorf("wake %#x+%#x: %w", start, length, gone(err))
	}
	return nil
}

// copy installs src at dst at once and wakes who waits there. n says how many
// bytes were installed, whole kernel pages, before err. The error is
// unix.EEXIST when the page at dst+n was already there.
//
// The address of src travels inside a structure, where the compiler does not
// see it, so src must not be on a stack, which may move.
func (u uffd) copy(dst uint64, src []byte) (n int, err error) {
	onHeap(src)
	for n < len(src) {
		c := uffdioCopy{
			dst: dst + uint64(n),
			src: uint64(uintptr(unsafe.Pointer(&src[n]))),
			len: uint64(len(src) - n),
		}
		err := ioctl(int(u), ioctlUffdCopy, unsafe.Pointer(&c), len(src) > 64<<10)
		runtime.KeepAlive(src)
		done, again, err := progress(c.copied, err)
		n += done
		if err != nil {
			return n, err
		}
		if again {
			runtime.Gosched()
		}
	}
	return n, nil
}

var never bool

// onHeap makes the compiler believe that b is kept, so that no caller's b is
// ever on a stack.
func onHeap(b []byte) {
	if never {
		panic(b)
	}
}

// zeropage installs pages of zeroes at dst at once and wakes who waits there.
func (u uffd) zeropage(dst uint64, length int) (n int, err error) {
	for n < length {
		z := uffdioZeropage{uffdioRange: uffdioRange{dst + uint64(n), uint64(length - n)}}
		err := ioctl(int(u), ioctlUffdZeropage, unsafe.Pointer(&z), length > 64<<10)
		done, again, err := progress(z.zeroed, err)
		n += done
		if err != nil {
			return n, err
		}
		if again {
			runtime.Gosched()
		}
	}
	return n, nil
}

// progress reads the two answers of UFFDIO_COPY and UFFDIO_ZEROPAGE: the
// errno of the call and the count, which is a negative errno of its own when
// nothing was done. A call that did a part and stopped fails with EAGAIN; so
// does one made while the address space changes. Both are tried again.
func progress(count int64, err error) (done int, again bool, _ error) {
	if count > 0 {
		done = int(count)
	}
	if err == nil {
		return done, false, nil
	}
	if errors.Is(err, unix.EAGAIN) {
		if count < 0 && unix.Errno(-count) != unix.EAGAIN {
			return 0, false, gone(unix.Errno(-count))
		}
		return done, true, nil
	}
	return done, false, gone(err)
}

// writeprotect protects the range, or lifts the protection.
func (u uffd) writeprotect(start, length uint64, on bool) error {
	w := uffdioWriteprotect{uffdioRange: uffdioRange{start, length}}
	if on {
		w.mode = 1
	}
	for {
		err := ioctl(int(u), ioctlUffdWriteprotect, unsafe.Pointer(&w), true)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			runtime.Gosched()
			continue
		}
		if err != nil {
			return fmt.Errorf("write protect %#x+%#x: %w", start, length, gone(err))
		}
		return nil
	}
}

// gone is for UFFDIO_REGISTER and UFFDIO_UNREGISTER, which say ENOMEM both
// when the process has ended and when it may have no more mappings. Lifting a
// write protection tells the two apart, and does nothing in a range that is
// not yet, or about to be no more, registered.
func (u uffd) gone(start uint64, err error) error {
	if errors.Is(err, unix.ENOMEM) {
		w := uffdioWriteprotect{uffdioRange: uffdioRange{start, uint64(os.Getpagesize())}}
		if errors.Is(ioctl(int(u), ioctlUffdWriteprotect, unsafe.Pointer(&w), false), unix.ESRCH) {
			return ErrRunnerGone
		}
	}
	return gone(err)
}

func gone(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return ErrRunnerGone
	}
	return err
}

// PrepareMapping readies this process's mapping of a memory file, data, for
// paging: huge pages are turned off, since one page installed would map 511
// others with it, as zeroes. Both the runner and the node call it.
func PrepareMapping(data []byte) error {
	if len(data) == 0 {
		return nil
	}
	// EINVAL is the answer of kernels built without huge pages.
	if err := unix.Madvise(data, unix.MADV_NOHUGEPAGE); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("turn off huge pages: %w", err)
	}
	return nil
}

// Probe finds out what this host supports by doing it once, on a small memory
// file of its own. It takes less than a millisecond.
func Probe() Support {
	var s Support
	if err := s.probe(); err != nil {
		s.Reason = err.Error()
	}
	return s
}

func (s *Support) probe() error {
	page := os.Getpagesize()
	fd, features, err := OpenUserfault()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	mem, err := unix.MemfdCreate("probe", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("make a memory file: %w", err)
	}
	defer unix.Close(mem)
	if err := unix.Ftruncate(mem, int64(2*page)); err != nil {
		return fmt.Errorf("size a memory file: %w", err)
	}
	data, err := unix.Mmap(mem, 0, 2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map a memory file: %w", err)
	}
	defer func() { _ = unix.Munmap(data) }()
	base := uint64(uintptr(unsafe.Pointer(&data[0])))
	u := uffd(fd)

	// The thread that looks is also the one that would serve, so pages are
	// installed before they are looked at.
	if err := u.register(base, uint64(2*page), uffdRegisterMissing); err != nil {
		return err
	}
	src := make([]byte, page)
	src[0] = 1
	if _, err := u.copy(base, src); err != nil {
		return fmt.Errorf("install a page: %w", err)
	}
	if _, err := u.copy(base, src); !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("install a page twice: got %v, want %v", err, unix.EEXIST)
	}
	if data[0] != 1 {
		return errors.New("install a page: its content is not what was installed")
	}
	if _, err := u.zeropage(base+uint64(page), page); err != nil {
		return fmt.Errorf("install a page of zeroes: %w", err)
	}
	s.Missing = true

	if features&FeatureMinorShmem != 0 && u.unregister(base, uint64(2*page)) == nil {
		s.Minor = u.register(base, uint64(2*page), uffdRegisterMinor) == nil
	}
	_ = u.unregister(base, uint64(2*page))

	if features&FeatureWPAsync == 0 || features&FeatureWPHugetlbfsShmem == 0 ||
		u.register(base, uint64(2*page), uffdRegisterWP) != nil ||
		u.writeprotect(base, uint64(2*page), true) != nil {
		return nil
	}
	maps, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return nil
	}
	defer maps.Close()
	if runs, err := scanWritten(maps, base, base+uint64(2*page), nil); err != nil || len(runs) != 0 {
		return nil
	}
	s.WriteAsync = true
	data[page] = 1
	runs, err := scanWritten(maps, base, base+uint64(2*page), nil)
	s.PagemapScan = err == nil && len(runs) == 1 && runs[0].start == base+uint64(page)
	return nil
}
