//go:build unix

package runner

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"meshnode/node/suspend"
)

// BenchmarkHalt is from the node's request to a program that has stopped
// (µs-halt), and to one whose state is taken too (µs-state), for each program of
// the suite, at moments that have nothing to do with what it does. In turn with it,
// for what the machine is like at the time, the same is asked of two bare threads
// of another process (µs-bare): see bareMain. %-late is how many stops took more
// than 2 ms, %-steal how much the machine's host took away meanwhile, of one
// processor.
func BenchmarkHalt(b *testing.B) {
	ctx := context.Background()
	for _, p := range [][]string{
		{"fib", "60"}, {"nbody", "2000000000"}, {"mandelbrot", "40000"}, {"fannkuch", "12"}, {"binarytrees", "15"},
		{"sieve", "2000000000"}, {"matmul", "256", "1000000"}, {"quicksort", "1000000"}, {"sha256", "300000000"},
		{"lz", "1000000", "1000000"}, {"regex", "300000000"}, {"bytecode", "2000000000"}, {"mutual", "1000", "100000000"},
		{"goroutines", "100000000"}, {"virtual", "2000000000"}, {"files", "2000"}, {"waiter"},
	} {
		b.Run(p[0], func(b *testing.B) {
			cfg := command(b, p[0], p[1:]...)
			if p[0] == "files" {
				cfg.Dirs, cfg.FilesPath, cfg.FilesLimit = []Dir{{Name: "/data"}}, archive(b, nil), 64<<20
			}
			s := newSession(b, cfg)
			if err := s.r.Halt(ctx); err != nil {
				b.Fatal(err)
			}
			bare := newBare(b)
			rng := rand.New(rand.NewPCG(1, 2))
			compute := func() { time.Sleep(200*time.Microsecond + time.Duration(rng.IntN(5_000_000))) }
			var halts, states, bares []time.Duration
			frames := 0
			stolen, start := steal(), time.Now()
			for b.Loop() {
				bare.say()
				compute()
				begin := time.Now()
				bare.say()
				bare.hear()
				bares = append(bares, time.Since(begin))
				for {
					if err := s.r.Run(ctx); err != nil {
						b.Fatal(err)
					}
					compute()
					begin := time.Now()
					if err := s.r.Halt(ctx); err != nil {
						b.Fatal(err)
					}
					halted := time.Now()
					st, err := s.r.State(ctx)
					if err == nil {
						halts, states = append(halts, halted.Sub(begin)), append(states, time.Since(begin))
						if p, err := suspend.ParseState(st.Program); err == nil {
							frames = max(frames, len(p.Frames))
						}
						break
					}
					if s.take(); s.ended == nil || s.ended.Kind != Exited || s.ended.Code != 0 {
						b.Fatal(err, s.ended)
					}
					s.r.Close()
					s = newSession(b, cfg)
					if err := s.r.Halt(ctx); err != nil {
						b.Fatal(err)
					}
				}
			}
			passed := time.Since(start)
			for name, times := range map[string][]time.Duration{"halt": halts, "state": states, "bare": bares} {
				slices.Sort(times)
				for _, q := range []int{50, 99} {
					b.ReportMetric(float64(times[len(times)*q/100].Nanoseconds())/1000, fmt.Sprintf("µs-%s-p%d", name, q))
				}
				if name != "state" {
					i, _ := slices.BinarySearch(times, 2*time.Millisecond)
					b.ReportMetric(100*float64(len(times)-i)/float64(len(times)), "%-"+name+"-late")
				}
			}
			b.ReportMetric(100*(steal()-stolen).Seconds()/passed.Seconds(), "%-steal")
			b.ReportMetric(float64(frames), "frames")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// steal is the time, over all processors, that the host of a virtual machine has
// taken so far (proc_stat(5)); 0 where that is not known.
func steal() time.Duration {
	var name string
	var ticks [8]int64
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	args := []any{&name}
	for i := range ticks {
		args = append(args, &ticks[i])
	}
	if _, err := fmt.Sscan(string(stat), args...); err != nil {
		return 0
	}
	return time.Duration(ticks[7]) * 10 * time.Millisecond // USER_HZ is 100
}

// bareArg makes the test binary what BenchmarkHalt measures beside a runner.
const bareArg = "__bare"

func init() { otherMains[bareArg] = bareMain }

// bareMain is the least that a process must do to be halted: a thread that reads
// what the node says, and one that computes, looks at a flag, and answers. The
// first byte has it compute, the next halts it.
func bareMain() int {
	var stop atomic.Bool
	work := make(chan struct{})
	go func() {
		ownThread()
		for range work {
			for !stop.Load() {
			}
			_, _ = unix.Write(childSocket, []byte{1})
		}
	}()
	b := make([]byte, 1)
	for halt := false; ; halt = !halt {
		n, err := unix.Read(childSocket, b)
		switch {
		case err == unix.EINTR:
			halt = !halt
		case err != nil || n == 0:
			return 0
		case halt:
			stop.Store(true)
		default:
			stop.Store(false)
			work <- struct{}{}
		}
	}
}

// bareThreads is the node's end of a bareMain.
type bareThreads struct {
	b  *testing.B
	fd int
}

func newBare(b *testing.B) *bareThreads {
	b.Helper()
	ours, theirs, err := socketPair()
	if err != nil {
		b.Fatal(err)
	}
	defer theirs.Close()
	cmd := exec.Command(os.Args[0], bareArg)
	cmd.Env = childEnv()
	cmd.ExtraFiles = []*os.File{theirs}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		unix.Close(ours)
		_ = cmd.Wait()
	})
	return &bareThreads{b, ours}
}

func (c *bareThreads) say() {
	if _, err := sendBytes(c.fd, []byte{1}); err != nil {
		c.b.Fatal(err)
	}
}

func (c *bareThreads) hear() {
	for {
		n, err := unix.Read(c.fd, make([]byte, 1))
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			c.b.Fatal("the bare threads have gone: ", err)
		}
		return
	}
}
