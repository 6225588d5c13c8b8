package netlab

import (
	"fmt"
	"net"
	"os"
	"os/signal"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// helperVar makes the test binary run one of the helpers below instead of the
// tests.
const helperVar = "NETLAB_TEST_HELPER"

func TestMain(m *testing.M) {
	Enter(nil)
	switch os.Getenv(helperVar) {
	case "":
		goleak.VerifyTestMain(m)
	case "addrs":
		addrs, err := net.InterfaceAddrs()
		fmt.Println(addrs, err)
	case "hang":
		// A process that does not go by itself, with a child that is of no
		// concern to its parent.
		if len(os.Args) == 1 {
			p, err := os.StartProcess("/proc/self/exe", []string{"hang", "child"}, &os.ProcAttr{
				Files: []*os.File{nil, os.Stdout, nil},
			})
			fmt.Println(p != nil, err)
		}
		signal.Ignore()
		for {
			time.Sleep(time.Hour) // Go's runtime ends a program that waits for nothing
		}
	}
}
