// Goroutines is a program of the suite: goroutines, channels, maps, and enough
// garbage for the collector to run.
package main

import (
	"fmt"
	"hash/fnv"
	"os"
	"runtime"
	"sort"
	"strconv"
	"strings"
)

type tree struct {
	left, right *tree
	words       []string
}

func grow(depth int) *tree {
	if depth == 0 {
		return &tree{words: []string{strconv.Itoa(depth)}}
	}
	return &tree{grow(depth - 1), grow(depth - 1), strings.Fields(strings.Repeat("a node ", depth))}
}

func (t *tree) count() int {
	if t == nil {
		return 0
	}
	return len(t.words) + t.left.count() + t.right.count()
}

func main() {
	n := 30
	if len(os.Args) > 1 {
		n, _ = strconv.Atoi(os.Args[1])
	}
	jobs, results := make(chan int), make(chan map[string]int, 4)
	for range 4 {
		go func() {
			for job := range jobs {
				found := map[string]int{}
				for i := range 20 {
					found[fmt.Sprintf("%d/%d", job%7, i%5)] += job * i
				}
				found["nodes"] = grow(job % 6).count()
				results <- found
			}
			results <- nil
		}()
	}
	go func() {
		for job := range n {
			jobs <- job
		}
		close(jobs)
	}()
	total := map[string]int{}
	for running := 4; running > 0; {
		m := <-results
		if m == nil {
			running--
			continue
		}
		for k, v := range m {
			total[k] += v
		}
		if total["nodes"]%16 == 0 {
			runtime.Gosched()
		}
	}
	runtime.GC()
	keys := make([]string, 0, len(total))
	for k := range total {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	h := fnv.New64a()
	for _, k := range keys {
		fmt.Fprintln(h, k, total[k])
	}
	defer func() { fmt.Printf("%d keys: %016x, %v\n", len(keys), h.Sum64(), recover()) }()
	var none []int
	_ = none[len(keys)]
}
