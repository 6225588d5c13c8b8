package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"meshnode/e2e/netlab"
	"meshnode/node/control"
)

// A tableLink is a column of the table: what is between the nodes, and about
// how much of it a move gets, in bytes a second, by which its length is told.
type tableLink struct {
	name, params string
	carries      float64
}

var tableLinks = []tableLink{
	{"100mbit-10ms", "rate=100mbit delay=5ms", 11.5e6},
	{"1gbit-1ms", "rate=1gbit delay=500us", 60e6},
	{"30mbit-40ms-1%loss", "rate=30mbit delay=20ms loss=1%", 1.5e6},
}

// BenchmarkTable is the table of moves: memory by dirty rate by link by
// strategy, measured by `meshnode bench` between two nodes in the lab. A
// sub-benchmark is a cell; -bench 'Table/link=1gbit.*/mem=16MiB' picks some.
// The strategies of a cell take turns on the same two nodes.
//
// A move takes 4 to 6 s, up to 15 with much memory to fill, and its memory's way
// over the link. That makes all of the table, once each, about 20 minutes for the
// second link, 40 for the first and three and a half hours for the third. So by
// default it is a corner, without cells whose memory takes more than half a minute
// to cross. The environment asks for more: see the package comment.
func BenchmarkTable(b *testing.B) {
	if err := netlab.Unavailable(); err != nil {
		b.Skip(err)
	}
	list := func(name, short string) []string {
		if s := os.Getenv(name); s != "" {
			return strings.Split(s, ",")
		}
		return strings.Split(short, ",")
	}
	memories, rates, strategies := "16MiB,64MiB", "0B,10MiB", "auto,post-copy,stop-and-copy"
	longest := 30.0 // seconds
	if os.Getenv("E2E_TABLE") == "full" {
		memories, rates = "16MiB,64MiB,256MiB,512MiB", "0B,1MiB,10MiB,50MiB"
		strategies, longest = strings.Join(control.Strategies, ","), 1e9
	}
	strategies = strings.Join(list("E2E_TABLE_STRATEGY", strategies), ",")
	repeat := list("E2E_TABLE_REPEAT", "1")[0]
	for _, link := range tableLinks {
		b.Run("link="+link.name, func(b *testing.B) {
			var p *pair // once a cell is wanted
			var files []string
			out := b.TempDir()
			for _, memory := range list("E2E_TABLE_MEMORY", memories) {
				for _, rate := range list("E2E_TABLE_DIRTY", rates) {
					b.Run(fmt.Sprintf("mem=%s/dirty=%s", memory, rate), func(cell *testing.B) {
						var mib float64
						if _, err := fmt.Sscanf(memory, "%fMiB", &mib); err != nil {
							cell.Fatalf("E2E_TABLE_MEMORY: %s is not as 16MiB", memory)
						}
						if took := mib * (1 << 20) / link.carries; took > longest {
							cell.Skipf("%s take %.0f s over this link: E2E_TABLE=full has the patience", memory, took)
						}
						if p == nil {
							p = newPair(b) // for all cells of the link
						}
						p.tb = cell
						p.link(link.params)
						file := filepath.Join(out, memory+"-"+rate+".json")
						p.table(cell, file, "--memory", memory, "--dirty", rate, "--strategy", strategies, "--repeat", repeat)
						files = append(files, file)
					})
				}
			}
			if len(files) > 0 {
				p.tb = b
				p.showTable(b, link, files)
			}
		})
	}
}

// bench runs `meshnode bench`, and returns what it measured, and as it was printed.
func (p *pair) bench(b *testing.B, args ...string) (res control.Bench, text []byte) {
	args = append([]string{"bench", "--to", "b", "--app", filepath.Join(p.dir, "apps", "kvstore.wasm"), "--limit", "1h", "-o", "json"}, args...)
	cmd := p.command(p.a, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	runErr := cmd.Run()
	if err := json.Unmarshal(stdout.Bytes(), &res); err != nil {
		b.Fatalf("meshnode %s: %v\n%s", strings.Join(args, " "), runErr, &stderr)
	}
	if runErr != nil { // that a move fails is a result too
		b.Logf("meshnode %s: %v\n%s", strings.Join(args, " "), runErr, &stderr)
	}
	return res, stdout.Bytes()
}

// table measures a cell, keeps what was measured in a file, and reports it.
func (p *pair) table(b *testing.B, file string, args ...string) {
	res, text := p.bench(b, args...)
	if err := os.WriteFile(file, text, 0o644); err != nil {
		b.Fatal(err)
	}
	for _, strategy := range control.Strategies {
		report := func(unit string, of func(control.BenchRun) float64) {
			var v []float64
			for _, r := range res.Runs {
				if r.Strategy == strategy && r.Error == "" {
					v = append(v, of(r))
				}
			}
			if len(v) > 0 {
				slices.Sort(v)
				b.ReportMetric(v[len(v)/2], unit+"-"+strategy)
			}
		}
		report("ms-blackout", func(r control.BenchRun) float64 { return r.Migration.BlackoutMs })
		report("ms-gap", func(r control.BenchRun) float64 { return r.Client.GapMs })
		report("ms-p99-after", func(r control.BenchRun) float64 { return r.Client.After.P99Ms })
		report("ms-total", func(r control.BenchRun) float64 { return r.Migration.TotalMs })
		report("wire/minimum", func(r control.BenchRun) float64 {
			return float64(r.Migration.BytesOnWire) / float64(max(r.Migration.MinimumBytes, 1))
		})
	}
	b.ReportMetric(0, "ns/op")
}

// showTable prints the cells of a link together, and keeps them where the
// environment says.
func (p *pair) showTable(b *testing.B, link tableLink, files []string) {
	var read []string
	for _, f := range files {
		read = append(read, "--read", f)
	}
	if dir := os.Getenv("E2E_TABLE_OUT"); dir != "" {
		name := filepath.Join(dir, strings.ReplaceAll(link.name, "%", ""))
		all := p.run(p.a, append([]string{"bench", "-o", "json", "--svg", name + ".svg"}, read...)...)
		if err := os.WriteFile(name+".json", all, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	// The log of a benchmark that is made of others is not shown.
	fmt.Printf("\n%s (%s)\n%s\n", b.Name(), link.params, p.run(p.a, append([]string{"bench"}, read...)...))
	fmt.Printf("%s\n", p.run(p.a, append([]string{"bench", "--summary"}, read...)...))
}
