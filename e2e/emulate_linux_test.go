package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

// qemus are the emulators of other processors, by GOARCH.
var qemus = map[string]string{"arm64": "qemu-aarch64-static", "arm": "qemu-arm-static"}

func haveQemu() bool {
	for _, name := range qemus {
		if _, err := exec.LookPath(name); err != nil {
			return false
		}
	}
	return true
}

var emulators struct {
	mu   sync.Mutex
	made map[string]string
}

// emulated returns a script that runs meshnode, built for another processor,
// under its emulator. The kernel need not know of the emulator: a node starts its
// runners by the script, too. It is built when it is first needed.
func emulated(dir, arch string) (string, error) {
	emulators.mu.Lock()
	defer emulators.mu.Unlock()
	if script, ok := emulators.made[arch]; ok {
		return script, nil
	}
	if qemus[arch] == "" {
		return "", fmt.Errorf("no emulator for %s", arch)
	}
	qemu, err := exec.LookPath(qemus[arch])
	if err != nil {
		return "", err
	}
	binary := filepath.Join(dir, "bin", arch, "meshnode")
	if _, err := goTool([]string{"GOARCH=" + arch, "CGO_ENABLED=0"}, "build", "-o", binary, "meshnode/cmd/meshnode"); err != nil {
		return "", err
	}
	script := filepath.Join(dir, "bin", "meshnode-"+arch)
	text := fmt.Sprintf("#!/bin/sh\nexec %q %q \"$@\"\n", qemu, binary)
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		return "", err
	}
	if emulators.made == nil {
		emulators.made = make(map[string]string)
	}
	emulators.made[arch] = script
	return script, nil
}
