package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"time"

	"meshnode/node/control"
)

// benchClose is how much longer than the best a blackout may be to count as one
// of the best.
const benchClose = 1.1

// blackouts is the median of a row's blackouts in ms, and how far they spread.
func (r benchRow) blackouts() (median, least, most float64) {
	of := func(a, b control.BenchRun) int { return cmp.Compare(benchBlackout(a), benchBlackout(b)) }
	return r.median(benchBlackout), benchBlackout(slices.MinFunc(r.runs, of)), benchBlackout(slices.MaxFunc(r.runs, of))
}

// blackoutText is the median of a row's blackouts, with the shortest and the
// longest in brackets, and how many moves failed.
func (r benchRow) blackoutText() string {
	median, least, most := r.blackouts()
	text := millis(median)
	if len(r.runs) > 1 {
		text += fmt.Sprintf(" (%.3g-%.3g)", least, most)
	}
	if r.failed > 0 {
		text += fmt.Sprintf(", %d failed", r.failed)
	}
	return text
}

// A benchSummed is a cell of a summary: the runs of the strategy it is about,
// and those of the others, none where only that one was measured.
type benchSummed struct {
	benchRow
	others []benchRow
}

// A benchStanding is how a strategy's blackout compares with the best.
type benchStanding uint8

const (
	benchAlone   benchStanding = iota // there is nothing to compare with
	benchBest                         // the shortest, or benchClose to it
	benchOverlap                      // longer, but some runs of both are alike
	benchWorse
)

// standing compares the medians, and says it in words.
func (c benchSummed) standing() (benchStanding, string) {
	if len(c.others) == 0 {
		return benchAlone, ""
	}
	best := slices.MinFunc(c.others, func(a, b benchRow) int {
		return cmp.Compare(a.median(benchBlackout), b.median(benchBlackout))
	})
	mine, least, _ := c.blackouts()
	its, _, most := best.blackouts()
	text := fmt.Sprintf("%.2f of %s", mine/its, best.strategy)
	switch {
	case mine <= its:
		return benchBest, "best"
	case mine <= benchClose*its:
		return benchBest, text
	case least <= most:
		return benchOverlap, text + ", runs overlap"
	}
	return benchWorse, text
}

// benchSum returns the cells of auto if it was measured, else of the strategy
// that was tried first; failed counts those in which it never succeeded.
func benchSum(runs []control.BenchRun) (cells []benchSummed, failed int) {
	rows := benchRows(runs)
	if len(rows) == 0 {
		return nil, 0
	}
	strategy := rows[0].strategy
	if slices.ContainsFunc(rows, func(r benchRow) bool { return r.strategy == control.StrategyAuto }) {
		strategy = control.StrategyAuto
	}
	for _, r := range rows {
		if r.strategy != strategy {
			continue
		}
		if len(r.runs) == 0 {
			failed++
			continue
		}
		c := benchSummed{benchRow: r}
		for _, o := range rows {
			if o.cell == r.cell && o.strategy != strategy && len(o.runs) > 0 {
				c.others = append(c.others, o)
			}
		}
		cells = append(cells, c)
	}
	return cells, failed
}

// benchSummary prints a line for each cell, of medians, and what can be said of
// all of them.
func benchSummary(w io.Writer, b control.Bench) {
	cells, failed := benchSum(b.Runs)
	fmt.Fprintf(w, "%s → %s, round trip %s, %s in %s\n", freeText(b.From), freeText(b.To), millis(b.RTTMs),
		plural(len(b.Runs), "move"), time.Duration(b.ElapsedMs*float64(time.Millisecond)).Round(time.Second))
	if len(cells) == 0 {
		fmt.Fprintf(w, "none succeeded\n")
		return
	}
	fmt.Fprintf(w, "%s, medians; in brackets the shortest and the longest\n\n", cells[0].strategy)
	row(w, "MEMORY", "DIRTY/S", "BLACKOUT", "GAP", "P99 DURING", "AFTER", "TOTAL", "OF MIN", "AGAINST THE BEST")
	for _, c := range cells {
		of := func(f func(control.BenchRun) float64) string { return millis(c.median(f)) }
		_, against := c.standing()
		row(w, size(c.cell.memory), size(c.cell.dirty), c.blackoutText(),
			of(func(r control.BenchRun) float64 { return r.Client.GapMs }),
			of(func(r control.BenchRun) float64 { return r.Client.During.P99Ms }),
			of(func(r control.BenchRun) float64 { return r.Client.After.P99Ms }),
			of(func(r control.BenchRun) float64 { return r.Migration.TotalMs }),
			fmt.Sprintf("%.2f", c.median(ofMinimum)), against)
	}
	fmt.Fprintln(w)
	for _, line := range benchConclusions(cells, failed) {
		fmt.Fprintln(w, line)
	}
}

// benchConclusions are what can be said of all cells together, in lines.
func benchConclusions(cells []benchSummed, failed int) (lines []string) {
	say := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	worst := slices.MaxFunc(cells, func(a, b benchSummed) int {
		return cmp.Compare(a.median(benchBlackout), b.median(benchBlackout))
	})
	say("longest blackout: %s, in the cell of %s", worst.blackoutText(), worst.cell)
	// Cells are in the order of their memory: for each dirty rate the first
	// against the last.
	for i, small := range cells {
		same := func(c benchSummed) bool { return c.cell.dirty == small.cell.dirty }
		if slices.ContainsFunc(cells[:i], same) {
			continue
		}
		large := small
		for _, c := range cells[i:] {
			if same(c) {
				large = c
			}
		}
		if large.cell != small.cell {
			say("blackout of %s against %s, %s/s: %.2f", shortSize(float64(large.cell.memory)), shortSize(float64(small.cell.memory)),
				shortSize(float64(small.cell.dirty)), large.median(benchBlackout)/small.median(benchBlackout))
		}
	}
	var stand [benchWorse + 1]int
	for _, c := range cells {
		is, _ := c.standing()
		stand[is]++
	}
	if n := len(cells) - stand[benchAlone]; n > 0 {
		say("blackout of %s against the other strategies: shortest, or within a tenth of it, in %d of %s; its runs and those of the best overlap in %d more",
			cells[0].strategy, stand[benchBest], plural(n, "cell"), stand[benchOverlap])
	}
	if failed > 0 {
		say("%s without a move that succeeded", plural(failed, "cell"))
	}
	return lines
}
