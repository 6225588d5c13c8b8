package node

import (
	"bytes"
	"os"
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

// cpuTimes returns how long the CPUs have been busy and how long they have been
// there since the machine started, in ticks, all of them together, as stat says,
// which is as /proc/stat (proc(5)). Zeroes mean that it is not known.
func cpuTimes(stat string) (busy, all uint64) {
	b, err := os.ReadFile(stat)
	if err != nil {
		return 0, 0
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	f := bytes.Fields(line)
	if len(f) < 5 || string(f[0]) != "cpu" {
		return 0, 0
	}
	// user nice system idle iowait irq softirq steal; what follows is counted
	// in the first two already.
	for i, s := range f[1:min(len(f), 9)] {
		v, err := strconv.ParseUint(string(s), 10, 62)
		if err != nil {
			return 0, 0
		}
		all += v
		if i != 3 && i != 4 {
			busy += v
		}
	}
	return busy, all
}

// cpuModel names the CPU (proc(5), /proc/cpuinfo); empty where the kernel does
// not.
func cpuModel() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	for line := range bytes.Lines(b) {
		key, value, _ := bytes.Cut(line, []byte(":"))
		switch string(bytes.TrimSpace(key)) {
		case "model name", "CPU part", "uarch": // x86, ARM, RISC-V
			return string(bytes.TrimSpace(value))
		}
	}
	return ""
}
