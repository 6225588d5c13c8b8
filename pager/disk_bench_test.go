package pager

import (
	"fmt"
	"runtime"
	"testing"
	"time"
)

// benchDisk fills a store's disk with that many pages and closes it.
func benchDisk(b *testing.B, pages int) StoreConfig {
	b.Helper()
	cfg := StoreConfig{Memory: 64 << 20, Dir: b.TempDir(), Disk: int64(pages+pages/batchShare+batchPages) * (PageSize + recordBytes), Log: quietLog}
	s := openTestStore(b, cfg, nil)
	for n := range pages {
		s.Put(numbered(n))
		if n%4096 == 4095 || n == pages-1 {
			waitFor(b, "the writer", written(s))
		}
	}
	closeStore(b, s)
	return cfg
}

// BenchmarkDiskOpen measures what a restart costs, with the index in the
// kernel's cache.
func BenchmarkDiskOpen(b *testing.B) {
	for _, mib := range []int{64, 1024} {
		b.Run(fmt.Sprintf("disk=%dMiB", mib), func(b *testing.B) {
			pages := mib << 20 / PageSize
			cfg := benchDisk(b, pages)
			var before, after runtime.MemStats
			best := time.Hour
			for b.Loop() {
				runtime.GC()
				runtime.ReadMemStats(&before)
				start := time.Now()
				s := openTestStore(b, cfg, nil)
				best = min(best, time.Since(start))
				runtime.GC()
				runtime.ReadMemStats(&after)
				if got := s.Stats().Disk.Pages; got != pages {
					b.Fatalf("%d pages, want %d", got, pages)
				}
				closeStore(b, s)
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(best)/1e6, "ms-open-min/op")
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(pages), "heap-B/page")
		})
	}
}

// BenchmarkDisk measures, in turn: pages put into memory alone, put with a
// disk below, and put as fast as the disk takes them; and pages fetched from
// memory and from disk (which is the kernel's cache here), one after the other
// and from all over.
func BenchmarkDisk(b *testing.B) {
	const pages = 16 << 10
	mem, table := benchMemory(pages)
	page := func(n int) []byte { return mem[n*PageSize:][:PageSize] }
	name := func(n int) Hash { h, _ := table.Get(PageNum(n)); return h }

	put := func(b *testing.B, disk, wait bool) {
		b.SetBytes(PageSize * pages)
		for b.Loop() {
			b.StopTimer()
			s := NewStore(2 * pages * PageSize)
			if disk {
				s = openTestStore(b, StoreConfig{Memory: 2 * pages * PageSize, Dir: b.TempDir(), Disk: 2 * pages * PageSize, Log: quietLog}, nil)
			}
			b.StartTimer()
			for n := range pages {
				s.Put(page(n))
			}
			if wait {
				waitFor(b, "the writer", written(s))
			}
			b.StopTimer()
			if st := s.Stats().Disk; st.Dropped > 0 {
				b.Errorf("%+v", st)
			}
			closeStore(b, s)
			b.StartTimer()
		}
	}
	b.Run("put/memory", func(b *testing.B) { put(b, false, false) })
	b.Run("put/disk", func(b *testing.B) { put(b, true, false) })
	b.Run("put/disk-written", func(b *testing.B) { put(b, true, true) })

	cfg := StoreConfig{Memory: 2 * pages * PageSize, Dir: b.TempDir(), Disk: 2 * pages * PageSize, Log: quietLog}
	s := openTestStore(b, cfg, nil)
	for n := range pages {
		s.Put(page(n))
	}
	waitFor(b, "the writer", written(s))
	buf := make([]byte, PageSize)
	fetch := func(b *testing.B, get func(Hash, []byte) bool, step int) {
		b.SetBytes(PageSize)
		n := 0
		for b.Loop() {
			if !get(name(n), buf) {
				b.Fatal("not there")
			}
			n = (n + step) % pages
		}
	}
	b.Run("fetch/memory", func(b *testing.B) { fetch(b, s.Fetch, 1) })
	disk := func(h Hash, buf []byte) bool { return s.disk.read(h, buf, true) }
	b.Run("fetch/disk", func(b *testing.B) { fetch(b, disk, 1) })
	b.Run("fetch/disk-scattered", func(b *testing.B) { fetch(b, disk, 7919) })
	b.Run("has", func(b *testing.B) {
		n := 0
		for b.Loop() {
			s.Has(name(n))
			n = (n + 1) % pages
		}
	})
}
