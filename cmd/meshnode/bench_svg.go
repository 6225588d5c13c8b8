package main

import (
	"bytes"
	"cmp"
	"fmt"
	"html"
	"math"
	"slices"

	"meshnode/node/control"
)

// The drawing's measures, in its units.
const (
	svgWidth   = 1000.0
	svgMargin  = 64.0
	svgPanel   = 300.0 // height of a panel of blackouts
	svgLegend  = 96.0  // where the panels begin
	svgPerRow  = 4     // panels side by side
	svgStrip   = 110.0 // height of each strip of the time line
	svgBetween = 76.0
)

// svgStyles tell strategies apart by colour (Okabe and Ito's, made for all
// eyes), by dashes and by order.
var svgStyles = map[string]struct{ colour, dash string }{
	control.StrategyAuto:        {"#000000", ""},
	control.StrategyHybrid:      {"#0072B2", "7 3"},
	control.StrategyPostCopy:    {"#009E73", "2 3"},
	control.StrategyPreCopy:     {"#E69F00", "9 3 2 3"},
	control.StrategyStopAndCopy: {"#D55E00", ""},
}

// svgPhases are the colours of a time line's phases.
var svgPhases = map[string]string{
	control.PhasePrepare: "#dddddd", control.PhaseWarm: "#a6cee3", "blackout": "#D55E00", control.PhaseDrain: "#b2df8a",
}

// An svgCanvas collects elements.
type svgCanvas struct{ bytes.Buffer }

func (c *svgCanvas) text(x, y float64, anchor, class, format string, args ...any) {
	fmt.Fprintf(c, `<text x="%.1f" y="%.1f" text-anchor="%s" class="%s">%s</text>`+"\n", x, y, anchor, class, html.EscapeString(fmt.Sprintf(format, args...)))
}

func (c *svgCanvas) line(x1, y1, x2, y2 float64, class string) {
	fmt.Fprintf(c, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" class="%s"/>`+"\n", x1, y1, x2, y2, class)
}

func (c *svgCanvas) rect(x, y, w, h float64, fill string) {
	fmt.Fprintf(c, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/>`+"\n", x, y, max(w, 0), h, fill)
}

func (c *svgCanvas) path(points [][2]float64, colour, dash string, width float64) {
	fmt.Fprintf(c, `<polyline fill="none" stroke="%s" stroke-width="%.1f" stroke-dasharray="%s" points="`, colour, width, dash)
	for _, p := range points {
		fmt.Fprintf(c, "%.1f,%.1f ", p[0], p[1])
	}
	c.WriteString("\"/>\n")
}

// benchSVG draws blackout against memory size, a panel for each dirty rate and
// a line for each strategy, and the time line of one move.
func benchSVG(b control.Bench) []byte {
	var c svgCanvas
	height := svgLegend
	rows := benchRows(b.Runs)
	rows = slices.DeleteFunc(rows, func(r benchRow) bool { return len(r.runs) == 0 })
	if len(rows) > 0 {
		height = c.blackouts(rows, height)
	}
	if run := timelineOf(b.Runs); run != nil {
		height = c.timeline(*run, height)
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" role="img" aria-labelledby="title">
<title id="title">Moves from %s to %s</title>
<style>
text { font: 12px sans-serif; fill: #333 } .head { font-size: 18px; font-weight: bold; fill: #000 } .panel { font-weight: bold; fill: #000 }
.axis { stroke: #333; stroke-width: 1 } .grid { stroke: #ddd; stroke-width: 1 } .small { font-size: 11px }
</style>
<rect width="100%%" height="100%%" fill="#fff"/>
`, svgWidth, height, html.EscapeString(b.From), html.EscapeString(b.To))
	var head svgCanvas
	head.text(svgMargin, 30, "start", "head", "Blackout of a moving worker by the size of its memory")
	head.text(svgMargin, 50, "start", "small", "%s to %s, round trip %s; medians; both axes logarithmic", b.From, b.To, millis(b.RTTMs))
	x := svgMargin
	for _, s := range control.Strategies {
		if slices.ContainsFunc(rows, func(r benchRow) bool { return r.strategy == s }) {
			head.path([][2]float64{{x, 70}, {x + 30, 70}}, svgStyles[s].colour, svgStyles[s].dash, 2.5)
			head.text(x+36, 74, "start", "", "%s", s)
			x += 150
		}
	}
	out.Write(head.Bytes())
	out.Write(c.Bytes())
	out.WriteString("</svg>\n")
	return out.Bytes()
}

// blackouts draws the panels from y on and returns where they end.
func (c *svgCanvas) blackouts(rows []benchRow, y float64) float64 {
	var dirty, memory []uint64
	least, most := math.Inf(1), 0.0
	for _, r := range rows {
		dirty, memory = append(dirty, r.cell.dirty), append(memory, r.cell.memory)
		m := r.median(benchBlackout)
		least, most = min(least, m), max(most, m)
	}
	slices.Sort(dirty)
	slices.Sort(memory)
	dirty, memory = slices.Compact(dirty), slices.Compact(memory)
	least, most = max(least, 0.1), max(most, 0.1)
	low, high := math.Floor(math.Log10(least)), math.Ceil(math.Log10(most)+1e-9)
	high = max(high, low+1)

	across := min(len(dirty), svgPerRow)
	width := (svgWidth - svgMargin*0.5 - float64(across)*svgMargin) / float64(across)
	for i, d := range dirty {
		left := svgMargin + float64(i%across)*(width+svgMargin)
		top := y + 24 + float64(i/across)*(svgPanel+svgBetween)
		atY := func(ms float64) float64 {
			return top + svgPanel*(1-(math.Log10(max(ms, math.Pow(10, low)))-low)/(high-low))
		}
		atX := func(m uint64) float64 {
			if len(memory) == 1 {
				return left + width/2
			}
			span := math.Log2(float64(memory[len(memory)-1]) / float64(memory[0]))
			return left + 16 + (width-32)*math.Log2(float64(m)/float64(memory[0]))/span
		}
		c.text(left, top-8, "start", "panel", "%s/s written", size(d))
		for e := low; e <= high; e++ {
			c.line(left, atY(math.Pow(10, e)), left+width, atY(math.Pow(10, e)), "grid")
			c.text(left-6, atY(math.Pow(10, e))+4, "end", "small", "%s", millis(math.Pow(10, e)))
		}
		c.line(left, top+svgPanel, left+width, top+svgPanel, "axis")
		for _, m := range memory {
			c.line(atX(m), top+svgPanel, atX(m), top+svgPanel+4, "axis")
			c.text(atX(m), top+svgPanel+18, "middle", "small", "%s", size(m))
		}
		// The default on top of all others.
		for _, s := range slices.Backward(control.Strategies) {
			var points [][2]float64
			for _, r := range rows {
				if r.strategy == s && r.cell.dirty == d {
					points = append(points, [2]float64{atX(r.cell.memory), atY(r.median(benchBlackout))})
				}
			}
			style := svgStyles[s]
			if len(points) > 1 {
				c.path(points, style.colour, style.dash, 2.5)
			}
			for _, p := range points {
				fmt.Fprintf(c, `<circle cx="%.1f" cy="%.1f" r="3.5" fill="%s"/>`+"\n", p[0], p[1], style.colour)
			}
		}
	}
	return y + 24 + float64((len(dirty)-1)/across+1)*(svgPanel+svgBetween)
}

// timelineOf is the run that shows most: the longest one of the strategy tried
// first.
func timelineOf(runs []control.BenchRun) *control.BenchRun {
	var best *control.BenchRun
	for i, r := range runs {
		if r.Migration == nil || len(r.Timeline) < 2 || r.Strategy != runs[0].Strategy {
			continue
		}
		if best == nil || r.Migration.TotalMs > best.Migration.TotalMs {
			best = &runs[i]
		}
	}
	return best
}

// timeline draws one move from y on and returns where it ends: its phases, its
// bytes, and the pages that the worker waited for.
func (c *svgCanvas) timeline(r control.BenchRun, y float64) float64 {
	m := r.Migration
	left, width := svgMargin, svgWidth-2*svgMargin
	total := max(m.TotalMs, 1)
	atX := func(ms float64) float64 { return left + width*min(ms/total, 1) }
	c.text(left, y+16, "start", "head", "One move: %s, %s/s written, %s", size(r.MemoryBytes), size(r.DirtyBytesPerSec), r.Strategy)
	y += 34

	warm := m.PrepareMs
	if i := slices.IndexFunc(r.Timeline, func(p control.Progress) bool { return p.Phase == control.PhaseWarm }); i >= 0 {
		warm = min(r.Timeline[i].ElapsedMs, m.PrepareMs)
	}
	const band = 26.0
	key := left // below, since the phases are too short for words
	for _, p := range []struct {
		name     string
		from, to float64
	}{
		{control.PhasePrepare, 0, warm}, {control.PhaseWarm, warm, m.PrepareMs},
		{"blackout", m.PrepareMs, m.PrepareMs + m.BlackoutMs}, {control.PhaseDrain, m.PrepareMs + m.BlackoutMs, total},
	} {
		if p.to <= p.from {
			continue
		}
		// A blackout of some milliseconds would not be seen.
		c.rect(atX(p.from), y, max(atX(p.to)-atX(p.from), 1.5), band, svgPhases[p.name])
		c.rect(key, y+band+6, 10, 10, svgPhases[p.name])
		c.text(key+15, y+band+15, "start", "small", "%s %s", p.name, millis(p.to-p.from))
		key += 150
	}
	y += band + 30

	strip := func(what string, value func(control.Progress) float64, final float64, show func(float64) string) {
		top := cmp.Or(final, 1)
		points := [][2]float64{{atX(0), y + svgStrip}}
		for _, p := range r.Timeline {
			top = max(top, value(p))
		}
		atY := func(v float64) float64 { return y + svgStrip*(1-v/top) }
		for _, p := range r.Timeline {
			points = append(points, [2]float64{atX(p.ElapsedMs), atY(value(p))})
		}
		points = append(points, [2]float64{atX(total), atY(final)})
		c.line(left, y, left+width, y, "grid")
		c.rect(atX(m.PrepareMs), y, max(atX(m.PrepareMs+m.BlackoutMs)-atX(m.PrepareMs), 1.5), svgStrip, svgPhases["blackout"])
		c.path(points, "#0072B2", "", 2)
		c.line(left, y+svgStrip, left+width, y+svgStrip, "axis")
		c.text(left-6, y+4, "end", "small", "%s", show(top))
		c.text(left+6, y+14, "start", "panel", "%s", what)
		y += svgStrip + 26
	}
	strip("bytes on the wire", func(p control.Progress) float64 { return float64(p.BytesOnWire) }, float64(m.BytesOnWire),
		shortSize)
	strip("pages the worker waited for", func(p control.Progress) float64 { return float64(p.PagesDemanded) }, float64(m.PagesDemanded),
		func(v float64) string { return fmt.Sprintf("%.0f", v) })
	for i := range 6 {
		ms := total * float64(i) / 5
		c.line(atX(ms), y-26, atX(ms), y-22, "axis")
		c.text(atX(ms), y-8, "middle", "small", "%s", millis(ms))
	}
	return y + 16
}
