//go:build linux && !amd64 && !arm64 && !arm

package runner

const auditArch = 0

var allowedHere, mapCalls, fcntlCalls []uint32
