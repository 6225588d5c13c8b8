package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"meshnode/node/control"
)

const (
	// benchSettle is how long the client calls before its calls count, and
	// benchAfter how long it goes on after the worker has resumed.
	benchSettle = 200 * time.Millisecond
	benchAfter  = time.Second
	// benchClean bounds ending a worker that a run has left behind.
	benchClean = 20 * time.Second

	// The store's slots, and what an entry of them holds, in bytes: see
	// e2e/apps/kvstore.
	benchSlot, benchValue = 1 << 10, 992
)

// run moves one fresh worker.
func (b *bench) run(ctx context.Context, cell benchCell, strategy string, repeat int) (res control.BenchRun, err error) {
	res = control.BenchRun{MemoryBytes: cell.memory, DirtyBytesPerSec: cell.dirty, Strategy: strategy, Repeat: repeat}
	ctx, cancel := context.WithTimeoutCause(ctx, b.limit, &control.Error{
		Code: control.CodeTimeout, Message: fmt.Sprintf("the run was not done within %s", b.limit),
		Hint: "give each more time with --limit",
	})
	defer cancel()
	var seed [8]byte
	_, _ = rand.Read(seed[:]) // never fails
	name := "bench-" + hex.EncodeToString(seed[:4])
	if err := b.start(ctx, name, cell); err != nil {
		return res, err
	}
	defer func() {
		// Whatever has happened, it does not stay. While it is on its way,
		// stopping takes until the move lets go of it.
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), benchClean)
		defer cancel()
		if _, serr := b.client.Stop(clean, name); serr != nil {
			err = errors.Join(err, fmt.Errorf("the worker %s is still there: %w", name, serr))
		}
	}()
	// Each has content of its own: a node keeps pages of what has left it.
	slots := int(cell.memory / benchSlot)
	for _, command := range []string{
		fmt.Sprintf("init %dKiB", cell.memory>>10),
		fmt.Sprintf("fill %d %d %d", slots, benchValue, binary.LittleEndian.Uint64(seed[:])),
		b.churn(cell),
	} {
		if _, err := b.call(ctx, name, command); err != nil {
			return res, err
		}
	}
	keys := min(slots, int(b.keys.bytes/benchSlot))
	c, err := startBenchClient(ctx, b.client, name, b.pace.d, keys, uint64(repeat))
	if err != nil {
		return res, err
	}
	mv, err := b.move(ctx, c, name, cell, &res)
	calls, cerr := c.stop()
	if err := errors.Join(err, cerr); err != nil {
		return res, err
	}
	res.Client = control.BenchClient{
		Before: latency(calls, mv.settled, mv.began), During: latency(calls, mv.began, mv.resumed),
		After:       latency(calls, mv.resumed, mv.ended),
		SteadyGapMs: longestGap(calls, mv.settled, mv.began, b.pace.d),
		GapMs:       longestGap(calls, mv.began, mv.ended, b.pace.d),
	}
	return res, nil
}

// start starts a worker at the node that it is to move from.
func (b *bench) start(ctx context.Context, name string, cell benchCell) error {
	f, err := os.Open(b.module)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	// The index and Go's heap need room beside the table.
	w, err := b.client.RunWorker(ctx, control.RunRequest{Name: name, MemoryLimit: cell.memory + 64<<20}, f, info.Size())
	if err != nil {
		return fmt.Errorf("run %s: %w", b.module, err)
	}
	if w.HomeName == b.from {
		return nil
	}
	// Empty as it is, it takes nothing along that its next move would find.
	if _, err = b.client.Migrate(ctx, name, control.MigrateRequest{To: b.from}, nil); err != nil {
		_, _ = b.client.Stop(ctx, name)
		return fmt.Errorf("bring the worker to %s first: %w", b.from, err)
	}
	return nil
}

func (b *bench) churn(cell benchCell) string {
	s := fmt.Sprintf("churn %dB", cell.dirty)
	if b.hot.bytes > 0 && cell.dirty > 0 {
		s += fmt.Sprintf(" hot=%dKiB", b.hot.bytes>>10)
	}
	return s
}

func (b *bench) call(ctx context.Context, worker, command string) (string, error) {
	r, err := b.client.Call(ctx, worker, []byte(command))
	if err := benchReply(r, err); err != nil {
		return "", fmt.Errorf("%s: %w", command, err)
	}
	return string(r.Payload), nil
}

// benchTimes are the moments of a move on this process's clock.
type benchTimes struct{ settled, began, resumed, ended time.Time }

// move moves the worker while the client calls.
func (b *bench) move(ctx context.Context, c *benchClient, name string, cell benchCell, res *control.BenchRun) (t benchTimes, err error) {
	t.settled = time.Now().Add(benchSettle)
	if err := c.until(ctx, t.settled); err != nil {
		return t, err
	}
	if _, err := b.workerPace(ctx, name, cell); err != nil { // from here on
		return t, err
	}
	if err := c.until(ctx, t.settled.Add(b.before.d)); err != nil {
		return t, err
	}
	if res.WorkerBefore, err = b.workerPace(ctx, name, cell); err != nil {
		return t, err
	}
	t.began = time.Now()
	what := fmt.Sprintf("%s %s ", cell, res.Strategy)
	m, err := b.client.Migrate(ctx, name, control.MigrateRequest{To: b.to, Strategy: res.Strategy, NoSampling: b.noSampling}, func(p control.Progress) {
		p.Meta = control.Meta{}
		res.Timeline = append(res.Timeline, p)
		b.line.set(what + progressText(p))
	})
	if err != nil {
		return t, err
	}
	m.Meta = control.Meta{}
	res.Migration = &m
	t.resumed = t.began.Add(time.Duration((m.PrepareMs + m.BlackoutMs) * float64(time.Millisecond)))
	t.ended = t.resumed.Add(benchAfter)
	if err := c.until(ctx, t.ended); err != nil {
		return t, err
	}
	res.WorkerAfter, err = b.workerPace(ctx, name, cell)
	return t, err
}

// workerPace asks the worker what its timer went through since it was last
// asked; nil if it has none.
func (b *bench) workerPace(ctx context.Context, name string, cell benchCell) (*control.BenchPace, error) {
	if cell.dirty == 0 {
		return nil, nil
	}
	text, err := b.call(ctx, name, "pace")
	if err != nil {
		return nil, err
	}
	return parsePace(text)
}

// parsePace reads what the store says of its pace.
func parsePace(text string) (*control.BenchPace, error) {
	var p control.BenchPace
	for field := range strings.FieldsSeq(text) {
		key, value, _ := strings.Cut(field, "=")
		if key == "ticks" {
			n, err := strconv.Atoi(value)
			if err != nil {
				return nil, fmt.Errorf("the worker's pace %q: %w", text, err)
			}
			p.Ticks = n
			continue
		}
		to := map[string]*float64{"gap": &p.GapMs, "wallGap": &p.WallGapMs, "p50": &p.P50Ms, "p99": &p.P99Ms, "max": &p.MaxMs}[key]
		d, err := time.ParseDuration(value)
		if err != nil || to == nil {
			return nil, fmt.Errorf("the worker's pace is %q: is it the key-value store?", text)
		}
		*to = control.Millis(d)
	}
	return &p, nil
}
