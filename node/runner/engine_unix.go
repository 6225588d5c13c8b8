//go:build unix

package runner

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/cpu"
	"golang.org/x/sys/unix"
)

// addressOf returns where a mapping lies.
func addressOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }

// CompilerSupported says whether wazero compiles on this machine rather than
// interprets. It decides the same way but does not tell (its internal package
// platform, CompilerSupports).
func CompilerSupported() bool {
	switch runtime.GOOS {
	case "linux", "darwin", "freebsd", "netbsd":
		if runtime.GOARCH == "arm64" {
			return executable()
		}
	case "dragonfly", "solaris", "illumos":
	default:
		return false
	}
	return runtime.GOARCH == "amd64" && cpu.X86.HasSSE41 && executable()
}

// executable says whether code may be made at run time.
func executable() bool {
	code, err := unix.Mmap(-1, 0, 1, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return false
	}
	err = unix.Mprotect(code, unix.PROT_READ|unix.PROT_EXEC)
	_ = unix.Munmap(code)
	return err == nil
}
