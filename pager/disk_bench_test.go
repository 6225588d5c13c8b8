package pager

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// BenchmarkDiskOpen measures how long a restart takes, until the store can be
// used and until it knows what is on disk, with the index in the
// kernel's cache and pages used in any order.
func BenchmarkDiskOpen(b *testing.B) {
	for _, mib := range []int{64, 1024} {
		b.Run(fmt.Sprintf("disk=%dMiB", mib), func(b *testing.B) {
			pages := mib << 20 / PageSize
			slots := pages + pages/(spareShare-1) + 1
			cfg := StoreConfig{Memory: 64 << 20, Dir: b.TempDir(), Disk: 2*diskHead + int64(slots)*(PageSize+recordBytes), Log: quietLog}
			s := openTestStore(b, cfg, nil)
			for n := range pages {
				s.Put(numbered(n))
				if n%4096 == 4095 {
					waitFor(b, "the writer", written(s))
				}
			}
			waitFor(b, "the writer", written(s))
			for _, n := range rand.New(rand.NewPCG(1, 2)).Perm(pages) {
				s.disk.touch(s.disk.pages.name(uint32(n)))
			}
			closeStore(b, s)

			var opened, loaded []time.Duration
			var before, after runtime.MemStats
			for b.Loop() {
				runtime.GC()
				runtime.ReadMemStats(&before)
				start := time.Now()
				s, err := OpenStore(cfg)
				if err != nil {
					b.Fatal(err)
				}
				opened = append(opened, time.Since(start))
				<-s.disk.loaded
				loaded = append(loaded, time.Since(start))
				runtime.GC()
				runtime.ReadMemStats(&after)
				if got := s.Stats().Disk.Pages; got != pages {
					b.Fatalf("%d pages, want %d", got, pages)
				}
				closeStore(b, s)
			}
			slices.Sort(opened)
			slices.Sort(loaded)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(opened[0])/1e6, "ms-open-min/op")
			b.ReportMetric(float64(loaded[0])/1e6, "ms-loaded-min/op")
			b.ReportMetric(float64(loaded[len(loaded)/2])/1e6, "ms-loaded-p50/op")
			// Without the writer's buffer, whatever the number of pages.
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc-batchPages*PageSize)/float64(pages), "heap-B/page")
		})
	}
}

// A fastest keeps the shortest time of several things done in turn, and
// reports it for a page, and what it is of the first's.
type fastest struct {
	names []string
	times []time.Duration
}

func (f *fastest) time(name string, do func()) {
	i := slices.Index(f.names, name)
	if i < 0 {
		i = len(f.names)
		f.names, f.times = append(f.names, name), append(f.times, time.Hour)
	}
	start := time.Now()
	do()
	f.times[i] = min(f.times[i], time.Since(start))
}

func (f *fastest) report(b *testing.B, pages int) {
	b.ReportMetric(0, "ns/op")
	for i, name := range f.names {
		b.ReportMetric(float64(f.times[i])/float64(pages), "ns-"+name+"/page")
		if i > 0 {
			b.ReportMetric(float64(f.times[i])/float64(f.times[0]), name+"/"+f.names[0])
		}
	}
}

// BenchmarkDiskPut measures pages put into memory alone and with a disk below,
// and what it takes beyond that until they are written.
func BenchmarkDiskPut(b *testing.B) {
	const pages = 16 << 10
	mem, _ := benchMemory(pages)
	put := func(s *Store) {
		for n := range pages {
			s.Put(mem[n*PageSize:][:PageSize])
		}
	}
	var f fastest
	for b.Loop() {
		cfg := StoreConfig{Memory: 2 * pages * PageSize, Dir: b.TempDir(), Disk: 2 * pages * PageSize, Log: quietLog}
		s := openTestStore(b, cfg, nil)
		f.time("memory", func() { put(NewStore(cfg.Memory)) })
		f.time("disk", func() { put(s) })
		f.time("rest", func() { waitFor(b, "the writer", written(s)) })
		closeStore(b, s)
	}
	f.report(b, pages)
}

// BenchmarkDiskFetch measures pages fetched from disk, which is the kernel's
// cache here, against a bare read and hash of as many, in the order they were
// written and in any other; and pages fetched from memory.
func BenchmarkDiskFetch(b *testing.B) {
	const pages = 16 << 10
	mem, _ := benchMemory(pages)
	s := openTestStore(b, StoreConfig{Memory: 2 * pages * PageSize, Dir: b.TempDir(), Disk: 2 * pages * PageSize, Log: quietLog}, nil)
	for n := range pages {
		s.Put(mem[n*PageSize:][:PageSize])
	}
	waitFor(b, "the writer", written(s))
	for _, order := range []string{"written", "random"} {
		b.Run("order="+order, func(b *testing.B) {
			slots := make([]uint32, pages)
			for i, n := range rand.New(rand.NewPCG(3, 4)).Perm(pages) {
				slots[i] = uint32(n)
			}
			if order == "written" {
				slices.Sort(slots)
			}
			buf := make([]byte, PageSize)
			each := func(do func(slot uint32, h Hash) bool) func() {
				return func() {
					for _, slot := range slots {
						if !do(slot, s.disk.pages.name(slot)) {
							b.Fatal("not there")
						}
					}
				}
			}
			var f fastest
			for b.Loop() {
				f.time("bare", each(func(slot uint32, h Hash) bool {
					_, err := s.disk.slab.ReadAt(buf, slabAt(slot))
					return err == nil && HashPage(buf) == h
				}))
				f.time("disk", each(func(_ uint32, h Hash) bool { return s.disk.read(h, buf, true) }))
				f.time("memory", each(func(_ uint32, h Hash) bool { return s.Fetch(h, buf) }))
				f.time("has", each(func(_ uint32, h Hash) bool { return s.Has(h) }))
			}
			f.report(b, pages)
		})
	}
}

// BenchmarkDiskChurn measures what is written for a new page once the disk
// tier is full, while a share of what is there is used again and stays: in
// bytes, and in writes.
func BenchmarkDiskChurn(b *testing.B) {
	for _, used := range []int{0, 10, 50} {
		b.Run(fmt.Sprintf("used=%d%%", used), func(b *testing.B) {
			const slots = 16 << 10
			var writes, bytes atomic.Int64
			cfg := StoreConfig{Memory: 8 << 20, Dir: b.TempDir(), Disk: 2*diskHead + slots*(PageSize+recordBytes), Log: quietLog}
			s := openTestStore(b, cfg, func(_ string, f diskFile) diskFile {
				return &hookedFile{diskFile: f, write: func(p []byte, _ int64) error {
					writes.Add(1)
					bytes.Add(int64(len(p)))
					return nil
				}}
			})
			r := rand.New(rand.NewPCG(1, 2))
			next := 0
			fill := func(pages int) {
				for range pages / batchPages {
					for range batchPages {
						s.Put(numbered(next))
						next++
						if r.IntN(100) < used {
							s.disk.touch(HashPage(numbered(max(0, next-1-r.IntN(slots)))))
						}
					}
					waitFor(b, "the writer", written(s))
				}
			}
			fill(4 * slots)
			writes.Store(0)
			bytes.Store(0)
			pages := 0
			for b.Loop() {
				fill(slots)
				pages += slots
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(bytes.Load())/float64(pages)/PageSize, "B-written/B")
			b.ReportMetric(float64(pages)/float64(writes.Load()), "pages/write")
		})
	}
}
