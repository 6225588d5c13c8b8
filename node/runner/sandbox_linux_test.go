package runner

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sandboxMain locks itself down and says what it still can do.
func sandboxMain() int {
	r, w, err := os.Pipe()
	if err != nil {
		fmt.Println(err)
		return 1
	}
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
		done := make(chan struct{})
		for range 20 {
			go func() {
				buf := make([]byte, 1)
				_, _ = r.Read(buf)
				done <- struct{}{}
			}()
		}
		time.Sleep(time.Millisecond)
		if _, err := w.Write(make([]byte, 20)); err != nil {
			return err
		}
		for range 20 {
			<-done
		}
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
