package e2e

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"time"
)

// loadMain is the program `load` of scripts.
func loadMain() {
	n := flag.Int("n", 0, "calls; 0 is until SIGINT")
	window := flag.Int("window", 8, "calls under way at a time")
	every := flag.Duration("every", 5*time.Millisecond, "between two calls")
	var via []string
	flag.Func("via", "a node to go through; see meshnode", func(addr string) error {
		via = append(via, "--via", addr)
		return nil
	})
	flag.Parse()
	if flag.NArg() != 1 || *n < 0 || *window < 1 {
		fmt.Fprintln(os.Stderr, "usage: load [-n N] [-window W] [-every D] [-via ADDR]... WORKER")
		os.Exit(2)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt)
	result, err := load(flag.Arg(0), via, *n, *window, *every, stop)
	fmt.Println(result)
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

type loadResult struct {
	calls, replies int
	longestGap     time.Duration // between two replies, or a call and the first
}

func (r loadResult) String() string {
	return fmt.Sprintf("calls=%d replies=%d longest-gap=%v", r.calls, r.replies, r.longestGap.Round(time.Millisecond))
}

// load is a client of a counter that nobody else talks to. Because each reply
// is the count, a call that was lost, came twice or in the wrong order shows.
func load(worker string, via []string, n, window int, every time.Duration, stop <-chan os.Signal) (loadResult, error) {
	var result loadResult
	base, err := count(worker, via)
	if err != nil {
		return result, err
	}

	cmd := exec.Command("meshnode", append([]string{"worker", "attach", worker}, via...)...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return result, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return result, err
	}
	if err := cmd.Start(); err != nil {
		return result, err
	}

	var mu sync.Mutex // guards result.calls
	slots := make(chan struct{}, window)
	ended := make(chan struct{}) // no more replies
	var writing sync.WaitGroup
	var writeErr error
	writing.Go(func() {
		defer in.Close()
		for i := 0; n == 0 || i < n; i++ {
			pace := time.After(every)
			select {
			case slots <- struct{}{}:
			case <-stop:
				return
			case <-ended:
				return
			}
			mu.Lock()
			result.calls++
			mu.Unlock()
			if _, writeErr = io.WriteString(in, "add 1\n"); writeErr != nil {
				return
			}
			select {
			case <-pace:
			case <-stop:
				return
			case <-ended:
				return
			}
		}
	})

	readErr := func() error {
		last := time.Now()
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			now := time.Now()
			result.longestGap = max(result.longestGap, now.Sub(last))
			last = now
			result.replies++
			want := strconv.Itoa(base + result.replies)
			if got := lines.Text(); got != want {
				return fmt.Errorf("reply %d is %q, want %s", result.replies, got, want)
			}
			<-slots
		}
		return lines.Err()
	}()
	close(ended)
	if readErr != nil {
		cmd.Process.Kill()
	}
	writing.Wait()
	waitErr := cmd.Wait()
	if err := errors.Join(readErr, writeErr); err != nil {
		return result, err
	}
	if waitErr != nil {
		return result, fmt.Errorf("%s: %w", cmd, waitErr)
	}
	if result.replies != result.calls {
		return result, fmt.Errorf("%d calls, %d replies", result.calls, result.replies)
	}
	final, err := count(worker, via)
	if err != nil {
		return result, err
	}
	if final != base+result.calls {
		return result, fmt.Errorf("the count went from %d to %d after %d calls", base, final, result.calls)
	}
	return result, nil
}

// count asks a counter for its count.
func count(worker string, via []string) (int, error) {
	cmd := exec.Command("meshnode", append([]string{"worker", "call", worker, "get"}, via...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("%s: %w", cmd, err)
	}
	return strconv.Atoi(strings.TrimSpace(string(out)))
}
