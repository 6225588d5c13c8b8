package netlab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// insideVar marks a process that Enter has already moved into the
	// namespaces, and its children.
	insideVar = "NETLAB_INSIDE"
	// execName is the program name under which this binary only enters a
	// node's namespace and becomes another program.
	execName = "netlab-exec"
	// netnsDir is where ip(8) looks for named network namespaces, which makes
	// "ip netns exec" work while a test is stopped in a debugger.
	netnsDir = "/run/netns"
)

// errUnavailable is why there can be no labs in this process; Enter sets it.
var errUnavailable = errors.New("netlab.Enter has not been called")

// Enter moves the test binary into fresh user, mount and network namespaces by
// running it again in them, and ends the process that called it with the exit
// code of that run. It returns in the new process; and in the old one where
// namespaces are not to be had, after which [Unavailable] gives the reason.
// Call it first in TestMain. prepare, if not nil, runs in the old process,
// while there still is a network, and may leave words for the new one in the
// environment.
func Enter(prepare func()) {
	if os.Args[0] == execName {
		Exec(os.Args[1], os.Args[2:], os.Environ())
	}
	if os.Getenv(insideVar) == "" {
		if prepare != nil {
			prepare()
		}
		if errUnavailable = reenter(); errUnavailable != nil {
			return
		}
	}
	errUnavailable = settle()
}

// Unavailable is why no lab can be opened in this process, or nil.
func Unavailable() error { return errUnavailable }

// Inside is the environment entry that a process started in a lab needs if it
// is this same binary, so that Enter does not move it again.
func Inside() string { return insideVar + "=1" }

// reenter runs this binary in new namespaces and does not return, unless it
// could not be started there.
func reenter() error {
	var err error
	for _, flags := range []uintptr{
		unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWNET,
		unix.CLONE_NEWNS | unix.CLONE_NEWNET, // as root, where user namespaces are off
	} {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Args[0] = os.Args[0]
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.Env = append(os.Environ(), Inside())
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL}
		if flags&unix.CLONE_NEWUSER != 0 {
			cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
			cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
		} else if os.Geteuid() != 0 {
			break
		}

		// The death signal follows the thread that forks, so this one must
		// live as long as the process.
		runtime.LockOSThread()
		if startErr := cmd.Start(); startErr != nil {
			err = errors.Join(err, startErr)
			continue
		}
		signals := make(chan os.Signal, 8)
		signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT, unix.SIGHUP)
		go func() {
			for s := range signals {
				cmd.Process.Signal(s)
			}
		}()
		cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code >= 0 {
			os.Exit(code)
		}
		fmt.Fprintln(os.Stderr, "netlab:", cmd.ProcessState)
		os.Exit(2)
	}
	return fmt.Errorf("no user namespaces: %w", err)
}

// settle makes the new namespaces fit to hold labs.
func settle() error {
	// Nothing mounted here may show up outside.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("no mount namespace: make mounts private: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(netnsDir, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC {
		if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
			return fmt.Errorf("no mount namespace: mount a tmpfs on /run: %w", err)
		}
	}
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	if err := setUp("lo"); err != nil {
		return fmt.Errorf("no network namespace: %w", err)
	}
	tun, err := openTUN(probeDevice)
	if err != nil {
		return err
	}
	unix.Close(tun)

	// The emulator's threads come back from their system calls on time only
	// if the scheduler has a place free for them; the kernel shares out the
	// CPUs better than the runtime shares out its Ps.
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 4)
	return nil
}

// Exec turns this process into the program argv[0], found by PATH, in the
// network namespace that the file netns stands for. The program dies with the
// process that started this one. Exec does not return.
func Exec(netns string, argv, env []string) {
	fail := func(what string, err error) {
		fmt.Fprintf(os.Stderr, "%s: %s: %v\n", execName, what, err)
		os.Exit(127)
	}
	if len(argv) == 0 {
		fail("usage", errors.New("netns command [argument...]"))
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		fail("find", err)
	}
	runtime.LockOSThread()
	if err := enterNetns(netns); err != nil {
		fail("enter", err)
	}
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		fail("prctl", err)
	}
	if os.Getppid() == 1 {
		fail("start", errors.New("the process that asked is gone"))
	}
	argv[0] = lastArg0(argv[0])
	fail("exec "+path, unix.Exec(path, argv, env))
}

// lastArg0 keeps a program that looks at its own name, as testscript's
// commands do, from seeing the wrapper's.
func lastArg0(name string) string {
	return name[strings.LastIndexByte(name, '/')+1:]
}

// enterNetns moves the calling thread, which must be locked.
func enterNetns(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter %s: %w", path, err)
	}
	return nil
}
