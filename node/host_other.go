//go:build !linux

package node

// memory returns zeroes: this host's memory is not known.
func memory() (total, free uint64) { return 0, 0 }

// loadPercent returns 0: this host's load is not known.
func loadPercent() uint8 { return 0 }
