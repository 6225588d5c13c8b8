package runner

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func init() {
	otherMains["__sandbox"] = sandboxMain
	otherMains["__parent"] = parentMain
}

// sandboxMain locks itself down and says what it still can do.
func sandboxMain() int {
	if err := lockDown(); err != nil {
		fmt.Println("unsupported:", err)
		return 0
	}
	try := func(name string, f func() error) {
		if err := f(); err != nil {
			fmt.Printf("%s: denied: %v\n", name, err)
			return
		}
		fmt.Printf("%s: allowed\n", name)
	}
	raw := func(nr uintptr, args ...uintptr) func() error {
		return func() error {
			var a [6]uintptr
			copy(a[:], args)
			_, _, errno := unix.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
			if errno != unix.EPERM && errno != unix.ENOSYS {
				return nil
			}
			return errno
		}
	}
	try("socket", func() error { _, err := net.Dial("tcp", "127.0.0.1:9"); return err })
	try("unix socket", raw(unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM))
	try("socketpair", raw(unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_STREAM))
	try("connect", raw(unix.SYS_CONNECT, 3))
	try("bind", raw(unix.SYS_BIND, 3))
	try("open", func() error { _, err := os.Open("/etc/passwd"); return err })
	try("create", func() error { _, err := os.Create("/tmp/should-not-exist"); return err })
	try("exec", func() error { return exec.Command("/bin/true").Run() })
	try("execve", raw(unix.SYS_EXECVE))
	try("execveat", raw(unix.SYS_EXECVEAT))
	try("fork", raw(unix.SYS_CLONE, uintptr(unix.SIGCHLD)))
	try("clone3", raw(unix.SYS_CLONE3))
	try("ptrace", raw(unix.SYS_PTRACE, unix.PTRACE_TRACEME))
	try("process_vm_readv", raw(unix.SYS_PROCESS_VM_READV, uintptr(os.Getppid())))
	try("kill parent", func() error { return unix.Kill(os.Getppid(), 0) })
	try("unlink", func() error { return unix.Unlink("/tmp/should-not-exist") })
	try("mount", raw(unix.SYS_MOUNT))
	try("bpf", raw(unix.SYS_BPF))
	try("io_uring", raw(unix.SYS_IO_URING_SETUP))
	try("ioctl", raw(unix.SYS_IOCTL, 0))
	try("dumpable", func() error { return unix.Prctl(unix.PR_SET_PDEATHSIG, 0, 0, 0, 0) })
	try("executable memory", func() error {
		_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE)
		return err
	})

	// What Go needs goes on.
	try("memory", func() error {
		b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			return err
		}
		return unix.Munmap(b)
	})
	try("threads", func() error {
		var all, ended sync.WaitGroup
		all.Add(20)
		for range 20 {
			ended.Go(func() {
				runtime.LockOSThread() // a thread for each
				all.Done()
				all.Wait()
			})
		}
		ended.Wait()
		return nil
	})
	return 0
}

func TestSandbox(t *testing.T) {
	out, err := exec.Command(os.Args[0], "__sandbox").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if strings.HasPrefix(string(out), "unsupported:") {
		t.Skip(string(out))
	}
	may := map[string]bool{"memory": true, "threads": true}
	lines := 0
	for s := bufio.NewScanner(strings.NewReader(string(out))); s.Scan(); lines++ {
		name, result, _ := strings.Cut(s.Text(), ": ")
		if got := result == "allowed"; got != may[name] {
			t.Errorf("%s: %s", name, result)
		}
	}
	if lines < 20 {
		t.Errorf("%d lines:\n%s", lines, out)
	}
}

// parentMain is a node that starts a worker, says its process id, and dies.
func parentMain() int {
	r, err := Start(context.Background(), Config{ModulePath: os.Args[2], MemoryLimit: 8 << 20})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := r.Init(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(r.Region().PID)
	if len(os.Args) > 3 {
		_, err := r.Call(context.Background(), Event{ID: doLoop})
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	select {}
}

// A worker does not outlive its node, be it idle or busy.
func TestParentDies(t *testing.T) {
	for _, args := range [][]string{nil, {"busy"}} {
		cmd := exec.Command(os.Args[0], append([]string{"__parent", moduleFile(t, counter())}, args...)...)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var pid int
		if _, err := fmt.Fscan(out, &pid); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // killed
		// It is not our child, so it cannot be waited for otherwise.
		pidfd, err := unix.PidfdOpen(pid, 0)
		if err == unix.ESRCH {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		for {
			_, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, -1)
			if err == nil {
				break
			}
			if err != unix.EINTR {
				t.Fatal(err)
			}
		}
		unix.Close(pidfd)
	}
}
