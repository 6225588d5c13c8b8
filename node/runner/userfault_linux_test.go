package runner

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"meshnode/node/suspend"
	. "meshnode/node/suspend/wasmtest"
)

// pageServer answers a runner's faults from another memory, a page at a time.
type pageServer struct {
	region Region
	from   []byte
	served atomic.Int64
}

// requests of ioctl_userfaultfd(2)
const (
	uffdioRegister = 0xc020aa00
	uffdioCopy     = 0xc028aa03
)

func (s *pageServer) register() error {
	arg := [4]uint64{s.region.Base, uint64(len(s.region.Data)), 1 /* missing */}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s.region.UFFD), uffdioRegister, uintptr(unsafe.Pointer(&arg))); errno != 0 {
		return errno
	}
	return nil
}

// run serves until stop is readable.
func (s *pageServer) run(stop int) error {
	page := make([]byte, os.Getpagesize())
	for {
		fds := []unix.PollFd{{Fd: int32(s.region.UFFD), Events: unix.POLLIN}, {Fd: int32(stop), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err == unix.EINTR {
			continue
		} else if err != nil {
			return err
		}
		if fds[1].Revents != 0 {
			return nil
		}
		var msg [32]byte
		if _, err := unix.Read(s.region.UFFD, msg[:]); err == unix.EAGAIN {
			continue
		} else if err != nil {
			return err
		}
		offset := binary.NativeEndian.Uint64(msg[16:])&^uint64(len(page)-1) - s.region.Base
		copy(page, s.from[offset:])
		arg := [5]uint64{s.region.Base + offset, uint64(uintptr(unsafe.Pointer(&page[0]))), uint64(len(page))}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s.region.UFFD), uffdioCopy, uintptr(unsafe.Pointer(&arg)))
		if errno != 0 && errno != unix.EEXIST {
			return errno
		}
		s.served.Add(1)
	}
}

// A worker runs before its memory has arrived: every instruction and every host
// function that meets a missing page waits for it, and gets it.
func TestMissingPages(t *testing.T) {
	engines(t, func(t *testing.T, cfg Config) {
		ctx := context.Background()
		var said [2]logs
		cfg.OnLog = said[0].add
		a := live(t, cfg)
		payload := strings.Repeat("0123456789abcdef", 3000)
		call(t, a, doEcho, payload)
		count(t, a)
		s, err := a.State(ctx)
		if err != nil {
			t.Fatal(err)
		}

		cfg.OnLog = said[1].add
		b := begin(t, cfg)
		if b.Region().UFFD < 0 {
			t.Skip("no userfaultfd:", b.info.UFFDError)
		}
		if err := b.Clear(ctx); err != nil {
			t.Fatal(err)
		}
		server := &pageServer{region: b.Region(), from: slices.Clone(a.Region().Data)}
		if err := server.register(); err != nil {
			t.Fatal(err)
		}
		if err := b.Restore(ctx, s); err != nil {
			t.Fatal(err)
		}
		if got := server.served.Load(); got != 0 {
			t.Errorf("%d pages served before anything ran", got)
		}
		var stop [2]int
		if err := unix.Pipe2(stop[:], unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- server.run(stop[0]) }()
		defer func() {
			unix.Close(stop[1])
			if err := <-ended; err != nil {
				t.Error(err)
			}
			unix.Close(stop[0])
		}()

		// Each begins with memory that nobody has touched: logs and output from
		// the data segment, a message's name, a payload into fresh pages.
		for _, id := range []uint64{doSpeak, doAct, doEcho, doCount, doClose, doCompute} {
			x, y := call(t, a, id, payload), call(t, b, id, payload)
			x.Duration, y.Duration = 0, 0
			if fmt.Sprint(x) != fmt.Sprint(y) {
				t.Errorf("event %d: unmoved and moved differ", id)
			}
		}
		if x, y := said[0].all(), said[1].all(); fmt.Sprint(x) != fmt.Sprint(y) || len(x) == 0 {
			t.Errorf("log of the unmoved: %v, of the moved: %v", x, y)
		}
		if server.served.Load() == 0 {
			t.Error("no page was served")
		}
	})
}

// Every function that a module may import is there.
func TestImports(t *testing.T) {
	m := new(Module)
	for _, f := range suspend.HostFunctions() {
		p, r, _ := strings.Cut(f.Type, " -> ")
		list := func(s string) (types []byte) {
			for _, w := range strings.FieldsFunc(s, func(r rune) bool { return strings.ContainsRune("(), ", r) }) {
				types = append(types, map[string]byte{"i32": I32, "i64": I64}[w])
			}
			return types
		}
		m.Import(f.Module, f.Name, list(p), list(r))
	}
	m.Mem(1, 0)
	m.Export("meshnode_event", Function, m.Func(Types(I32, I64, I32), Types(I32), nil, I32Const(5)))
	r := live(t, Config{ModulePath: moduleFile(t, m.Bytes())})
	if got := call(t, r, 0, "").Status; got != 5 {
		t.Errorf("status %d", got)
	}
}
