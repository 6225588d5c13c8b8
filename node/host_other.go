//go:build !linux

package node

// memory returns zeroes: this host's memory is not known.
func memory() (total, free uint64) { return 0, 0 }

// cpuTimes returns zeroes: this host's load is not known.
func cpuTimes(string) (busy, all uint64) { return 0, 0 }

// cpuModel names the CPU; unknown here.
func cpuModel() string { return "" }
