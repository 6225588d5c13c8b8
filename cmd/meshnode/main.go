// Command meshnode runs nodes of a mesh that moves running WebAssembly
// workers, and tells them what to do.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"meshnode/node/runner"
)

func main() {
	// A worker's process is this binary again. It must become one before
	// anything else runs in it.
	if len(os.Args) > 1 && os.Args[1] == runner.ChildArg {
		os.Exit(runner.Main())
	}
	os.Exit(mainExit())
}

func mainExit() int {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as nohup wants it
		signals = append(signals, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	defer stop()
	// The first signal ends things in order, the second at once.
	defer context.AfterFunc(ctx, stop)()
	return run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
}

// run is the whole command on given streams; it returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr}
	root := a.command()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return a.finish(ctx, root.ExecuteContext(ctx))
}
