package pager

import (
	"bytes"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A child is a second process that maps a memory file and touches it when
// told, as a runner does. Requests are answered in order; a request that
// touches a missing page is answered when the page has come.
type child struct {
	t      testing.TB
	cmd    *exec.Cmd
	conn   *net.UnixConn
	enc    *gob.Encoder
	dec    *gob.Decoder
	region Region
}

type childHello struct {
	Base     uint64
	Features uint64
}

type childRequest struct {
	Op     string // hash, write, touch, drop, threads
	Pages  []PageNum
	Value  byte
	Seed   uint64
	Number int
}

type childReply struct {
	Hashes []Hash
	Nanos  []int64
	Err    string
}

func childMain() {
	debug.SetGCPercent(-1)
	if err := childServe(); err != nil && !errors.Is(err, io.EOF) {
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(1)
	}
}

func childServe() error {
	size, err := strconv.Atoi(os.Getenv(childEnv))
	if err != nil {
		return err
	}
	conn, err := net.FileConn(os.NewFile(3, "socket"))
	if err != nil {
		return err
	}
	data, err := unix.Mmap(4, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	if err := PrepareMapping(data); err != nil {
		return err
	}
	var rights []byte
	uffd, features, uerr := OpenUserfault()
	if uerr == nil {
		rights = unix.UnixRights(uffd)
	}
	var hello bytes.Buffer
	if err := gob.NewEncoder(&hello).Encode(childHello{uint64(uintptr(unsafe.Pointer(&data[0]))), features}); err != nil {
		return err
	}
	if _, _, err := conn.(*net.UnixConn).WriteMsgUnix(hello.Bytes(), rights, nil); err != nil {
		return err
	}
	enc, dec := gob.NewEncoder(conn), gob.NewDecoder(conn)
	for {
		var req childRequest
		if err := dec.Decode(&req); err != nil {
			return err
		}
		if err := enc.Encode(childDo(data, req)); err != nil {
			return err
		}
	}
}

func childDo(data []byte, req childRequest) (rep childReply) {
	page := func(p PageNum) []byte { return data[int(p)*PageSize:][:PageSize] }
	buf := make([]byte, PageSize)
	switch req.Op {
	case "hash":
		for _, p := range req.Pages {
			copy(buf, page(p))
			rep.Hashes = append(rep.Hashes, HashPage(buf))
		}
	case "write":
		for _, p := range req.Pages {
			page(p)[0] = req.Value
		}
	case "touch":
		rep.Nanos = make([]int64, 0, len(req.Pages))
		var sum byte
		for _, p := range req.Pages {
			start := time.Now()
			sum += page(p)[0]
			rep.Nanos = append(rep.Nanos, int64(time.Since(start)))
		}
		runtime.KeepAlive(sum)
	case "drop":
		for _, p := range req.Pages {
			if err := unix.Madvise(page(p), unix.MADV_DONTNEED); err != nil {
				rep.Err = err.Error()
			}
		}
	case "threads":
		// Each thread reads all pages in an order of its own.
		rep.Hashes = make([]Hash, len(req.Pages))
		var mu sync.Mutex
		var all sync.WaitGroup
		for i := range req.Number {
			all.Go(func() {
				r := rand.New(rand.NewPCG(req.Seed, uint64(i)))
				buf := make([]byte, PageSize)
				for _, at := range r.Perm(len(req.Pages)) {
					copy(buf, page(req.Pages[at]))
					h := HashPage(buf)
					mu.Lock()
					if rep.Hashes[at] != (Hash{}) && rep.Hashes[at] != h {
						rep.Err = fmt.Sprintf("page %d read differently", req.Pages[at])
					}
					rep.Hashes[at] = h
					mu.Unlock()
				}
			})
		}
		all.Wait()
	default:
		rep.Err = "unknown op " + req.Op
	}
	return rep
}

// startChild starts a child with a memory of pages.
func startChild(t testing.TB, pages int) *child {
	t.Helper()
	size := pages * PageSize
	fd, err := unix.MemfdCreate("pager-test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Skipf("no memory files: %v", err)
	}
	file := os.NewFile(uintptr(fd), "memory")
	t.Cleanup(func() { file.Close() })
	if err := file.Truncate(int64(size)); err != nil {
		t.Fatal(err)
	}
	data, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(data) })
	if err := PrepareMapping(data); err != nil {
		t.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "theirs")
	ours := os.NewFile(uintptr(pair[0]), "ours")
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+strconv.Itoa(size))
	cmd.ExtraFiles = []*os.File{theirs, file}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	c := &child{t: t, cmd: cmd, conn: conn.(*net.UnixConn)}
	c.enc, c.dec = gob.NewEncoder(conn), gob.NewDecoder(conn)
	t.Cleanup(c.kill)

	msg, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := c.conn.ReadMsgUnix(msg, oob)
	if err != nil {
		t.Fatalf("hello from child: %v", err)
	}
	var hello childHello
	if err := gob.NewDecoder(bytes.NewReader(msg[:n])).Decode(&hello); err != nil {
		t.Fatal(err)
	}
	c.region = Region{Data: data, PID: cmd.Process.Pid, Base: hello.Base, UFFD: -1, File: file}
	if oobn > 0 {
		scms, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			t.Fatal(err)
		}
		fds, err := unix.ParseUnixRights(&scms[0])
		if err != nil {
			t.Fatal(err)
		}
		c.region.UFFD = fds[0]
		t.Cleanup(func() {
			c.kill() // never close it while the child lives
			unix.Close(fds[0])
		})
	}
	return c
}

// startArmable is startChild for tests that serve faults.
func startArmable(t testing.TB, pages int) *child {
	t.Helper()
	if s := Probe(); !s.Missing {
		t.Skipf("userfaultfd cannot serve missing pages here: %s", s.Reason)
	}
	return startChild(t, pages)
}

func (c *child) kill() {
	if c.cmd.ProcessState == nil {
		_ = c.cmd.Process.Kill()
		_ = c.cmd.Wait()
		c.conn.Close()
	}
}

func (c *child) send(req childRequest) {
	c.t.Helper()
	if err := c.enc.Encode(req); err != nil {
		c.t.Fatalf("ask child: %v", err)
	}
}

func (c *child) reply() childReply {
	c.t.Helper()
	var rep childReply
	if err := c.dec.Decode(&rep); err != nil {
		c.t.Fatalf("answer of child: %v", err)
	}
	if rep.Err != "" {
		c.t.Fatalf("child: %s", rep.Err)
	}
	return rep
}

func (c *child) do(req childRequest) childReply {
	c.t.Helper()
	c.send(req)
	return c.reply()
}

func pageList(first, count int) []PageNum {
	list := make([]PageNum, count)
	for i := range list {
		list[i] = PageNum(first + i)
	}
	return list
}

// checkHashes compares what the child read with the memory it should have.
func checkHashes(t testing.TB, mem []byte, pages []PageNum, got []Hash) {
	t.Helper()
	if len(got) != len(pages) {
		t.Fatalf("got %d hashes, want %d", len(got), len(pages))
	}
	for i, p := range pages {
		if want := HashPage(mem[int(p)*PageSize:][:PageSize]); got[i] != want {
			t.Fatalf("page %d: got %s, want %s", p, got[i], want)
		}
	}
}
