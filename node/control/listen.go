package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// SocketName is the control socket's name inside a node's state directory.
const SocketName = "control.sock"

// maxSocketPath is what fits sockaddr_un.sun_path with its end: 104 bytes on
// the BSDs and macOS, 108 on Linux and Windows (unix(7), unix(4)).
const maxSocketPath = 103

// A Lock keeps a state directory to one daemon. Close gives it up; so does
// the end of the process, however it ends.
type Lock struct{ f *os.File }

// LockState makes dir with mode 0700 where it is missing and locks it. Another
// daemon's hold on it is an *Error with CodeConflict.
func LockState(dir string) (*Lock, error) {
	if err := privateDir(dir); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the state directory: %w", err)
	}
	ok, err := tryLock(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if !ok {
		f.Close()
		return nil, &Error{
			Code:    CodeConflict,
			Message: fmt.Sprintf("another meshnode runs with the state directory %s", dir),
			Hint:    "stop it first, or give this one its own with --state-dir",
		}
	}
	return &Lock{f}, nil
}

// Close gives the lock up. The file stays: removing it would let two daemons
// lock two files of the same name.
func (l *Lock) Close() error { return l.f.Close() }

// Listen makes the control socket at path, with mode 0600, in a directory made
// with mode 0700 where it is missing. A socket left behind by a daemon that is
// gone is replaced; one that somebody answers on is an *Error with
// CodeConflict. Closing the listener removes the socket.
func Listen(path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, &Error{
			Code:    CodeInvalid,
			Message: fmt.Sprintf("the path of the control socket is %d bytes, systems take %d: %s", len(path), maxSocketPath, path),
			Hint:    "give a shorter one with --socket",
		}
	}
	if err := privateDir(filepath.Dir(path)); err != nil {
		return nil, err
	}
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("control socket: %w", err)
	case info.Mode().IsRegular() || info.IsDir():
		return nil, &Error{
			Code:    CodeConflict,
			Message: fmt.Sprintf("%s exists and is no socket", path),
			Hint:    "remove it, or choose another with --socket",
		}
	default:
		conn, err := net.DialTimeout("unix", path, 2*time.Second)
		if err == nil {
			conn.Close()
			return nil, &Error{
				Code:    CodeConflict,
				Message: fmt.Sprintf("another meshnode answers on %s", path),
				Hint:    "stop it first, or choose another with --socket",
			}
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("replace the stale control socket: %w", err)
		}
	}
	l, err := listenPrivate(path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return l, nil
}

// privateDir makes dir for its owner alone. One that exists is left as it is:
// it may be /run or a test's directory, and the socket has its own mode.
func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the state directory: %w", err)
	}
	return nil
}

// listenPrivate makes the socket with mode 0600 from its first moment where
// the system lets it (Linux takes a socket's mode at bind), and right after it
// elsewhere.
func listenPrivate(path string) (net.Listener, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(restrictSocket)
	}}
	l, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}
