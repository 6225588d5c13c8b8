//go:build unix && !linux

package runner

// beginPrompt and ownThread have nothing to do where threads have no time slices
// of their own.
func beginPrompt() {}
func ownThread()   {}
