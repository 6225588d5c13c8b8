package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"meshnode/node/control"
	"meshnode/node/control/controltest"
)

// runBench runs what bench does on a mesh in memory, whose workers answer with
// handler, and returns what it printed.
func runBench(t *testing.T, ctx context.Context, handler controltest.Handler, configure func(*bench)) (control.Bench, string, error) {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t) })
	dir, err := os.MkdirTemp("", "mn")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m := controltest.New("a", "b")
	m.NewHandler = func(string) controltest.Handler { return handler }
	socket := filepath.Join(dir, "a")
	l, err := control.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	serving, cancel := context.WithCancel(context.Background())
	served := make(chan error)
	go func() { served <- m.Node("a").Server.Serve(serving, l) }()
	client := control.NewClient(socket)
	module := filepath.Join(dir, "kvstore.wasm")
	if err := os.WriteFile(module, []byte("\x00asm"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, log bytes.Buffer
	b := bench{
		app: &app{stdout: &out, stderr: &log, format: enumValue{value: "json"}}, client: client, module: module, to: "b",
		memory:     sizesValue{sizes: []uint64{1 << 20, 16 << 20}},
		dirty:      sizesValue{sizes: []uint64{0, 1 << 20}},
		strategies: wordsValue{words: []string{control.StrategyAuto, control.StrategyStopAndCopy}},
		repeat:     1, pace: durationValue{d: time.Millisecond}, before: durationValue{d: 300 * time.Millisecond},
		keys: sizeValue{bytes: 4 << 20}, limit: time.Minute, svg: filepath.Join(dir, "bench.svg"),
		line: newLiveLine(&log), begin: time.Now(),
	}
	if configure != nil {
		configure(&b)
	}
	runErr := b.runAll(ctx)
	left, err := client.Workers(t.Context())
	if err != nil {
		t.Error(err)
	}
	for _, w := range left {
		if w.State != control.StateStopped {
			t.Errorf("worker %s is still there, %s", w.Name, w.State)
		}
	}
	client.Close()
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
	m.Wait()
	var got control.Bench
	if out.Len() > 0 {
		if err := json.Unmarshal(out.Bytes(), &got); err != nil {
			t.Errorf("%s: %v", &out, err)
		}
	}
	if svg, err := os.ReadFile(b.svg); err == nil {
		for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
			if _, err := d.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("the drawing: %v\n%s", err, svg)
			}
		}
	} else if runErr == nil {
		t.Error(err)
	}
	return got, log.String(), runErr
}

// store answers as the key-value store does.
func store(m control.Message) control.Reply {
	if string(m.Payload) == "pace" {
		return control.Reply{Payload: []byte("ticks=100 gap=10.1ms wallGap=15ms p50=50µs p99=75µs max=1.2ms")}
	}
	return control.Reply{}
}

func TestBenchMeasures(t *testing.T) {
	got, log, err := runBench(t, t.Context(), store, nil)
	if err != nil {
		t.Fatal(err, log)
	}
	if got.Kind != "Bench" || got.From != "a" || got.To != "b" || got.RTTMs != 1 || len(got.Runs) != 8 {
		t.Fatalf("got %+v", got)
	}
	var order []string
	for _, r := range got.Runs {
		order = append(order, fmt.Sprintf("%d/%d/%s", r.MemoryBytes>>20, r.DirtyBytesPerSec>>20, r.Strategy[:4]))
		c := r.Client
		if r.Error != "" || r.Migration == nil || r.Migration.BlackoutMs != 5 || len(r.Timeline) != 5 ||
			c.Before.Calls == 0 || c.After.Calls == 0 || c.After.P50Ms <= 0 || c.After.P99Ms < c.After.P50Ms || c.After.MaxMs < c.After.P99Ms {
			t.Errorf("run %+v", r)
		}
		if paced := r.WorkerAfter != nil && r.WorkerBefore != nil; paced != (r.DirtyBytesPerSec > 0) {
			t.Errorf("paces of the worker: %+v", r)
		} else if want := (control.BenchPace{Ticks: 100, GapMs: 10.1, WallGapMs: 15, P50Ms: 0.05, P99Ms: 0.075, MaxMs: 1.2}); paced && *r.WorkerAfter != want {
			t.Errorf("pace %+v, want %+v", r.WorkerAfter, want)
		}
	}
	if want := "1/0/auto 1/0/stop 1/1/auto 1/1/stop 16/0/auto 16/0/stop 16/1/auto 16/1/stop"; strings.Join(order, " ") != want {
		t.Errorf("runs %s, want %s", strings.Join(order, " "), want)
	}
	var table bytes.Buffer
	benchTable(&table, got)
	if n := strings.Count(table.String(), "\n"); n != 3+8+3 {
		t.Errorf("%d lines:\n%s", n, &table)
	}
}

// TestBenchFails: a worker that is none of ours is told apart, every run says
// so, and nothing stays behind.
func TestBenchFails(t *testing.T) {
	calls := 0
	got, log, err := runBench(t, t.Context(), func(m control.Message) control.Reply {
		if strings.HasPrefix(string(m.Payload), "fill") {
			if calls++; calls > 1 { // the first is the run that does not count
				return control.Reply{Status: 3, Payload: []byte("store is full")}
			}
		}
		return store(m)
	}, func(b *bench) { b.repeat = 2 })
	if err == nil || len(got.Runs) != 16 || !strings.Contains(err.Error(), "16 runs of 16") {
		t.Fatalf("got %d runs, %v", len(got.Runs), err)
	}
	for _, r := range got.Runs {
		if !strings.Contains(r.Error, "store is full") {
			t.Errorf("run %+v", r)
		}
	}
	if !strings.Contains(log, "store is full") {
		t.Errorf("it said %s", log)
	}
	var table bytes.Buffer
	benchTable(&table, got)
	if strings.Count(table.String(), "failed") != 8 {
		t.Errorf("the table says:\n%s", &table)
	}
}

// TestBenchInterrupted: what was measured is printed, and nothing stays.
func TestBenchInterrupted(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	fills := 0
	got, _, err := runBench(t, ctx, func(m control.Message) control.Reply {
		if strings.HasPrefix(string(m.Payload), "fill") {
			if fills++; fills == 3 {
				interrupt()
			}
		}
		return store(m)
	}, nil)
	if !errors.Is(err, context.Canceled) || len(got.Runs) != 1 || got.Runs[0].Migration == nil {
		t.Errorf("got %+v, %v", got.Runs, err)
	}
}

func TestBenchFigures(t *testing.T) {
	start := time.Now()
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	var calls []benchCall
	for i := range 100 {
		calls = append(calls, benchCall{at(10 * i), at(10*i + 2)})
	}
	for i := range 10 { // all answered at once, at 1150
		calls = append(calls, benchCall{at(1000 + 10*i), at(1150)})
	}
	if got, want := latency(calls, at(0), at(1000)), (control.BenchLatency{Calls: 100, P50Ms: 2, P99Ms: 2, MaxMs: 2}); got != want {
		t.Errorf("before: %+v, want %+v", got, want)
	}
	if got, want := latency(calls, at(1000), at(2000)), (control.BenchLatency{Calls: 10, P50Ms: 100, P99Ms: 150, MaxMs: 150}); got != want {
		t.Errorf("after: %+v, want %+v", got, want)
	}
	if got := latency(calls, at(3000), at(4000)); got != (control.BenchLatency{}) {
		t.Errorf("none: %+v", got)
	}
	if got := longestGap(calls, at(0), at(990), 10*time.Millisecond); got != 0 {
		t.Errorf("steady gap %v, want 0", got)
	}
	if got := longestGap(calls, at(0), at(1000), 10*time.Millisecond); got != 148 {
		t.Errorf("gap %v that ends after what is looked at, want 148", got)
	}
	if got := longestGap(calls, at(1000), at(2000), 10*time.Millisecond); got != 148 {
		t.Errorf("gap %v, want 148", got)
	}
	for _, s := range []string{"ticks=x", "first value", "gap=12", "ticks=1 slack=1ms"} {
		if p, err := parsePace(s); err == nil {
			t.Errorf("pace %q: %+v", s, p)
		}
	}
}

// TestBenchTable: every figure of a cell is in its line, and the drawing has
// both its parts.
func TestBenchTable(t *testing.T) {
	run := func(mib uint64, strategy string) control.BenchRun {
		return control.BenchRun{
			MemoryBytes: mib << 20, DirtyBytesPerSec: 10 << 20, Strategy: strategy,
			Migration: &control.Migration{
				PrepareMs: 300, BlackoutMs: 12, TotalMs: 2000, BytesOnWire: 11 << 20, MinimumBytes: 10 << 20, PagesDemanded: 7,
				Predicted: &control.Prediction{BlackoutMs: 13},
			},
			Client: control.BenchClient{
				GapMs:  21,
				Before: control.BenchLatency{P50Ms: 1, P99Ms: 2}, During: control.BenchLatency{P50Ms: 3, P99Ms: 4},
				After: control.BenchLatency{P50Ms: 5, P99Ms: 6},
			},
			Timeline: []control.Progress{
				{Phase: control.PhaseWarm, ElapsedMs: 100}, {Phase: control.PhaseDrain, ElapsedMs: 400, BytesOnWire: 10 << 20, PagesDemanded: 7},
			},
		}
	}
	res := control.Bench{From: "a", To: "b", RTTMs: 10, PaceMs: 10, Runs: []control.BenchRun{run(16, "auto"), run(64, "auto"), run(16, "hybrid")}}
	var out bytes.Buffer
	benchTable(&out, res)
	var got []string
	for line := range strings.Lines(out.String()) {
		got = append(got, strings.Join(strings.Fields(line), " "))
	}
	for i, want := range map[int]string{
		2: "MEMORY DIRTY/S STRATEGY BLACKOUT EXPECTED GAP P50, P99 BEFORE DURING AFTER TOTAL BYTES OF MIN FAULTS",
		3: "16 MiB 10 MiB auto 12.0 ms 13.0 ms 21.0 ms 1.00 ms, 2.00 ms 3.00 ms, 4.00 ms 5.00 ms, 6.00 ms 2.00 s 11 MiB 1.10 7",
	} {
		if i >= len(got) || got[i] != want {
			t.Errorf("line %d is not %q:\n%s", i, want, &out)
		}
	}
	svg := string(benchSVG(res))
	for _, part := range []string{
		">Moves from a to b<", ">10 MiB/s written<", ">16 MiB<", ">64 MiB<", ">auto<", ">hybrid<",
		">One move: 16 MiB, 10 MiB/s written, auto<", ">blackout 12.0 ms<", ">bytes on the wire<", ">pages the worker waited for<",
	} {
		if !strings.Contains(svg, part) {
			t.Errorf("nothing in the drawing says %q", part)
		}
	}
	// Auto's line over two memories and its key; hybrid's key; and both strips.
	if n := strings.Count(svg, "<polyline"); n != 5 {
		t.Errorf("%d lines are drawn, want 5", n)
	}
}

func TestBenchSummary(t *testing.T) {
	res := control.Bench{From: "a", To: "b", RTTMs: 10, ElapsedMs: 83_000}
	add := func(mib, dirty uint64, strategy string, blackouts ...float64) {
		for _, ms := range blackouts {
			r := control.BenchRun{
				MemoryBytes: mib << 20, DirtyBytesPerSec: dirty << 20, Strategy: strategy,
				Migration: &control.Migration{BlackoutMs: ms, TotalMs: 2000, BytesOnWire: 11, MinimumBytes: 10},
				Client:    control.BenchClient{GapMs: 2 * ms, During: control.BenchLatency{P99Ms: 7}, After: control.BenchLatency{P99Ms: 9}},
			}
			if ms == 0 {
				r.Migration, r.Error = nil, "it failed"
			}
			res.Runs = append(res.Runs, r)
		}
	}
	add(16, 0, "hybrid", 10, 12, 11)
	add(16, 0, "auto", 10, 11.5, 13)
	add(16, 10, "auto", 8, 20, 0)
	add(16, 10, "post-copy", 9, 10)
	add(512, 10, "auto", 28)
	add(512, 10, "post-copy", 14)
	add(512, 0, "auto", 11)
	add(512, 50, "auto", 0)
	add(512, 50, "hybrid", 14)

	var out bytes.Buffer
	a := &app{stdout: &out, format: enumValue{value: "table"}}
	if err := (&bench{app: a, summary: true}).show(res); err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(out.String()) {
		got = append(got, strings.Join(strings.Fields(line), " "))
	}
	want := []string{
		"a → b, round trip 10.0 ms, 16 moves in 1m23s",
		"auto, medians; in brackets the shortest and the longest",
		"",
		"MEMORY DIRTY/S BLACKOUT GAP P99 DURING AFTER TOTAL OF MIN AGAINST THE BEST",
		"16 MiB 0 B 11.5 ms (10-13) 23.0 ms 7.00 ms 9.00 ms 2.00 s 1.10 1.05 of hybrid",
		"16 MiB 10 MiB 14.0 ms (8-20), 1 failed 28.0 ms 7.00 ms 9.00 ms 2.00 s 1.10 1.47 of post-copy, runs overlap",
		"512 MiB 0 B 11.0 ms 22.0 ms 7.00 ms 9.00 ms 2.00 s 1.10 -",
		"512 MiB 10 MiB 28.0 ms 56.0 ms 7.00 ms 9.00 ms 2.00 s 1.10 2.00 of post-copy",
		"",
		"longest blackout: 28.0 ms, in the cell of 512 MiB, 10 MiB/s",
		"blackout of 512 MiB against 16 MiB, 0 B/s: 0.96",
		"blackout of 512 MiB against 16 MiB, 10 MiB/s: 2.00",
		"blackout of auto against the other strategies: shortest, or within a tenth of it, in 1 of 3 cells; its runs and those of the best overlap in 1 more",
		"1 cell without a move that succeeded",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}

	for name, runs := range map[string][]control.BenchRun{"nothing": nil, "failures": {{Strategy: "auto", Error: "it failed"}}} {
		out.Reset()
		if err := (&bench{app: a, summary: true}).show(control.Bench{From: "a", To: "b", Runs: runs}); err != nil || !strings.Contains(out.String(), "none succeeded") {
			t.Errorf("%s: %v\n%s", name, err, &out)
		}
	}
}
