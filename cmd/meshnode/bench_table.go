package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"meshnode/node/control"
)

// A benchRow is a strategy's runs in a cell.
type benchRow struct {
	cell     benchCell
	strategy string
	runs     []control.BenchRun // those that succeeded
	failed   int
}

// benchRows groups runs, cells by size and dirty rate, strategies as they were
// first tried.
func benchRows(runs []control.BenchRun) []benchRow {
	var rows []benchRow
	for _, r := range runs {
		cell := benchCell{r.MemoryBytes, r.DirtyBytesPerSec}
		i := slices.IndexFunc(rows, func(o benchRow) bool { return o.cell == cell && o.strategy == r.Strategy })
		if i < 0 {
			i = len(rows)
			rows = append(rows, benchRow{cell: cell, strategy: r.Strategy})
		}
		if r.Migration == nil || r.Error != "" {
			rows[i].failed++
			continue
		}
		rows[i].runs = append(rows[i].runs, r)
	}
	slices.SortStableFunc(rows, func(a, b benchRow) int {
		switch {
		case a.cell.memory != b.cell.memory:
			return int(int64(a.cell.memory) - int64(b.cell.memory))
		default:
			return int(int64(a.cell.dirty) - int64(b.cell.dirty))
		}
	})
	return rows
}

// median is that of a figure over a row's runs.
func (r benchRow) median(of func(control.BenchRun) float64) float64 {
	v := make([]float64, 0, len(r.runs))
	for _, run := range r.runs {
		v = append(v, of(run))
	}
	slices.Sort(v)
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

func benchBlackout(r control.BenchRun) float64 { return r.Migration.BlackoutMs }

// ofMinimum is what crossed the wire against what had to; 0 if that is not
// known.
func ofMinimum(r control.BenchRun) float64 {
	if r.Migration.MinimumBytes == 0 {
		return 0
	}
	return float64(r.Migration.BytesOnWire) / float64(r.Migration.MinimumBytes)
}

const benchColumns = 13

// benchTable prints medians, and for the blackout how far they spread.
func benchTable(w io.Writer, b control.Bench) {
	fmt.Fprintf(w, "%s → %s, round trip %s; the client calls every %s\n\n", freeText(b.From), freeText(b.To), millis(b.RTTMs), millis(b.PaceMs))
	row(w, "MEMORY", "DIRTY/S", "STRATEGY", "BLACKOUT", "EXPECTED", "GAP", "P50, P99 BEFORE", "DURING", "AFTER", "TOTAL", "BYTES", "OF MIN", "FAULTS")
	last := benchCell{}
	repeats := 1
	for _, r := range benchRows(b.Runs) {
		if r.cell != last && last.memory != 0 {
			fmt.Fprintln(w, strings.Repeat("\t", benchColumns-1)) // an empty line would end the columns
		}
		last = r.cell
		head := []any{size(r.cell.memory), size(r.cell.dirty), r.strategy}
		if len(r.runs) == 0 {
			row(w, append(head, "failed")...)
			continue
		}
		repeats = max(repeats, len(r.runs)+r.failed)
		expected := ""
		if p := r.runs[len(r.runs)-1].Migration.Predicted; p != nil {
			expected = millis(p.BlackoutMs)
		}
		of := func(f func(control.BenchRun) float64) string { return millis(r.median(f)) }
		calls := func(f func(control.BenchRun) control.BenchLatency) string {
			return of(func(r control.BenchRun) float64 { return f(r).P50Ms }) + ", " +
				of(func(r control.BenchRun) float64 { return f(r).P99Ms })
		}
		row(w, append(head, r.blackoutText(), expected,
			of(func(r control.BenchRun) float64 { return r.Client.GapMs }),
			calls(func(r control.BenchRun) control.BenchLatency { return r.Client.Before }),
			calls(func(r control.BenchRun) control.BenchLatency { return r.Client.During }),
			calls(func(r control.BenchRun) control.BenchLatency { return r.Client.After }),
			of(func(r control.BenchRun) float64 { return r.Migration.TotalMs }),
			shortSize(r.median(func(r control.BenchRun) float64 { return float64(r.Migration.BytesOnWire) })),
			fmt.Sprintf("%.2f", r.median(ofMinimum)),
			int(r.median(func(r control.BenchRun) float64 { return float64(r.Migration.PagesDemanded) })),
		)...)
	}
	if repeats > 1 {
		fmt.Fprintf(w, "\nMedians of %d runs; in brackets the shortest and the longest blackout in ms.\n", repeats)
	}
}
