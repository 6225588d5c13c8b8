package node

import (
	"bytes"
	"os"
	"runtime"
	"strconv"
)

// memory returns the machine's memory and how much of it is available for new
// workers, in bytes (proc(5), MemTotal and MemAvailable of /proc/meminfo).
func memory() (total, free uint64) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, 0
	}
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) < 2 {
			continue
		}
		kib, err := strconv.ParseUint(string(f[1]), 10, 54)
		if err != nil {
			continue
		}
		switch string(f[0]) {
		case "MemTotal:":
			total = kib << 10
		case "MemAvailable:":
			free = kib << 10
		}
	}
	return total, free
}

// loadPercent returns the load average of the last minute as a share of the
// CPUs, at most 100 (proc(5), /proc/loadavg).
func loadPercent() uint8 {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	f := bytes.Fields(b)
	if len(f) == 0 {
		return 0
	}
	load, err := strconv.ParseFloat(string(f[0]), 64)
	if err != nil || load < 0 {
		return 0
	}
	return uint8(min(100, load/float64(runtime.NumCPU())*100))
}
