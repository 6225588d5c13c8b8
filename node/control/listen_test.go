package control

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// socketDir is short: a test's own temporary directory can be longer than a
// socket's path may be.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "mn")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestListenIsPrivate(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("file modes do not describe access on Windows")
	}
	path := filepath.Join(socketDir(t), "state", SocketName)
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", name, got, want)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket outlives its listener: %v", err)
	}
}

func TestListenReplacesOnlyStaleSockets(t *testing.T) {
	path := filepath.Join(socketDir(t), SocketName)
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); !errors.Is(err, &Error{Code: CodeConflict}) || !strings.Contains(err.Error(), "another meshnode answers") {
		t.Errorf("second listener: got %v, want a conflict", err)
	}
	// What a killed daemon leaves: a socket that nobody listens on.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Fatal(err)
	}
	l, err = Listen(path)
	if err != nil {
		t.Fatalf("stale socket: %v", err)
	}
	l.Close()

	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); !errors.Is(err, &Error{Code: CodeConflict}) {
		t.Errorf("a file in its place: got %v, want a conflict", err)
	}
	if b, _ := os.ReadFile(path); string(b) != "precious" {
		t.Error("the file was replaced")
	}
	if _, err := Listen(filepath.Join(socketDir(t), strings.Repeat("x", 120))); !errors.Is(err, &Error{Code: CodeInvalid}) {
		t.Errorf("long path: got %v, want invalid", err)
	}
}

func TestLockState(t *testing.T) {
	dir := filepath.Join(socketDir(t), "state")
	l, err := LockState(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := LockState(dir); !errors.Is(err, &Error{Code: CodeConflict}) || !strings.Contains(err.Error(), dir) {
		t.Errorf("second lock: got %v, want a conflict that names the directory", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, err = LockState(dir)
	if err != nil {
		t.Fatalf("after the first was given up: %v", err)
	}
	l.Close()
}
