package main

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"meshnode/node/control"
	"meshnode/node/control/controltest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"meshnode": main})
}

// TestScripts runs the command as its users do: on a mesh in memory, whose
// node "device" the environment names, or without any daemon.
func TestScripts(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the scripts need a POSIX shell")
	}
	t.Cleanup(func() { goleak.VerifyNone(t) })
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			dir, err := os.MkdirTemp("", "mn") // a socket's path must be short
			if err != nil {
				return err
			}
			env.Defer(func() { os.RemoveAll(dir) })
			env.Setenv("HOME", env.WorkDir)
			env.Setenv(envStateDir, filepath.Join(dir, "none"))
			env.Setenv("MESH", filepath.Join(dir, "s"))
			return serveMesh(env, filepath.Join(dir, "s"))
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits,
		},
	})
}

// exits CODE COMMAND... runs a command and wants it to exit with a code.
// testscript itself tells zero from the rest only.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	// The shell reports the code on the last line of stderr, which is where
	// the checks that follow look.
	err := ts.Exec("sh", append([]string{"-c", `"$@"; code=$?; echo "exit code $code" >&2; exit $code`, "sh"}, args[1:]...)...)
	if got := ts.ReadFile("stderr"); !strings.HasSuffix(got, "exit code "+args[0]+"\n") {
		ts.Fatalf("want exit code %s, got: %v", args[0], err)
	}
}

// serveMesh serves the node "device" of a mesh in memory until the script
// ends.
func serveMesh(env *testscript.Env, socket string) error {
	m := controltest.New("device", "edge-a", "edge-b")
	m.NewHandler = func(string) controltest.Handler { return shout }
	m.Place("echo", "device")
	m.Place("far", "edge-a")
	m.Log("echo", "plain")
	m.Log("echo", "clever \x1b[2J")
	l, err := control.Listen(socket)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Node("device").Server.Serve(ctx, l) }()
	env.Defer(func() {
		cancel()
		<-done
		m.Wait()
	})
	return nil
}

// shout is what the workers of the scripts run.
func shout(msg control.Message) control.Reply {
	switch s := string(msg.Payload); s {
	case "fail":
		return control.Reply{Status: 3, Payload: []byte("no such thing\n")}
	case "escape":
		return control.Reply{Payload: []byte{0xff, 0xfe}}
	default:
		return control.Reply{Payload: []byte(strings.ToUpper(s))}
	}
}
