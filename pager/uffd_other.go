//go:build !linux

package pager

// OpenUserfault fails with ErrUnsupported: only Linux has userfaultfd. There
// a runner opens one for its memory and passes it to the node.
func OpenUserfault() (fd int, features uint64, err error) { return -1, 0, ErrUnsupported }

// PrepareMapping does nothing on this platform.
func PrepareMapping([]byte) error { return nil }

// Probe reports that faults cannot be served and writes are found by
// comparing hashes.
func Probe() Support { return Support{Reason: "userfaultfd is a Linux feature"} }
