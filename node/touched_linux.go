package node

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"syscall"

	"meshnode/pager"
)

// clearTouched lets the kernel forget which of a process's pages were touched:
// a walk over its page tables, some milliseconds for hundreds of MiB, during
// which its page faults wait. The processor may still remember some pages that
// it touches all the time; what touchedBytes then says is that much too low.
//
// It is the way of Gregg's wss (proc_pid_clear_refs(5), value 1): no page is
// unmapped, and the worker takes no fault.
func clearTouched(r pager.Region) error {
	return gone(os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", r.PID), []byte("1"), 0))
}

// touchedBytes is how much of the first size bytes of a worker's memory was
// read or written since clearTouched (proc_pid_smaps(5), Referenced).
func touchedBytes(r pager.Region, size int64) (int64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", r.PID))
	if err != nil {
		return 0, gone(err)
	}
	defer f.Close()
	var total int64
	inside := false
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := lines.Bytes()
		if start, _, ok := bytes.Cut(line, []byte("-")); ok && !bytes.HasSuffix(line, []byte(" kB")) {
			// A mapping's first line. Watching writes divides the memory into
			// several mappings.
			if at, err := strconv.ParseUint(string(start), 16, 64); err == nil {
				inside = at >= r.Base && at < r.Base+uint64(size)
			}
			continue
		}
		rest, ok := bytes.CutPrefix(line, []byte("Referenced:"))
		if !ok || !inside {
			continue
		}
		kib, err := strconv.ParseInt(string(bytes.TrimSuffix(bytes.TrimSpace(rest), []byte(" kB"))), 10, 53)
		if err != nil {
			return 0, fmt.Errorf("read %s: %w", f.Name(), err)
		}
		total += kib << 10
	}
	return min(total, size), gone(lines.Err())
}

// gone is err, or errGone where it says that the process has ended.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return errGone
	}
	return err
}
