package pager

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Memories of real guests are too large to keep here, so whoever measures
// brings some: any files are memories. One named as another with .later after
// it is a later version of it.
var memories = flag.String("memories", "", "folder of memory images to measure encodings with")

// An image is a memory for measurements, without its pages of zeroes.
type image struct {
	name       string
	mem, later []byte
}

// images are made-up memories, and those that were brought.
func images(b *testing.B) []image {
	r := rand.New(rand.NewPCG(5, 6))
	list := []image{
		{name: "text", mem: texturedMemory(r, 2048, 1)},
		{name: "words", mem: texturedMemory(r, 2048, 2)},
		{name: "noise", mem: texturedMemory(r, 2048, 0)},
		{name: "mixed", mem: texturedMemory(r, 2048, 0, 1, 2, 3)},
	}
	for i := range list {
		list[i].later = bytes.Clone(list[i].mem)
		for p := range 2048 {
			if p%8 == 0 {
				scribble(r, list[i].later[p*PageSize:(p+1)*PageSize], 8)
			}
		}
	}
	if *memories != "" {
		paths, err := filepath.Glob(filepath.Join(*memories, "*"))
		if err != nil {
			b.Fatal(err)
		}
		for _, path := range paths {
			if strings.HasSuffix(path, ".later") {
				continue
			}
			mem, err := os.ReadFile(path)
			if err != nil {
				b.Fatal(err)
			}
			later, err := os.ReadFile(path + ".later")
			if err != nil || len(later) != len(mem) {
				later = nil
			}
			im := image{name: filepath.Base(path)}
			for at := 0; at+PageSize <= len(mem); at += PageSize {
				if IsZero(mem[at:at+PageSize]) || later != nil && IsZero(later[at:at+PageSize]) {
					continue
				}
				im.mem = append(im.mem, mem[at:at+PageSize]...)
				if later != nil {
					im.later = append(im.later, later[at:at+PageSize]...)
				}
			}
			list = append(list, im)
		}
	}
	return list
}

// BenchmarkEncode builds frames of pages and takes them apart, with names that
// are known: bytes on the wire for those of memory, and the rate each way. For
// patches, only pages that have changed are sent.
func BenchmarkEncode(b *testing.B) {
	for _, im := range images(b) {
		for _, c := range []struct {
			name  string
			codec codec
			delta bool
		}{{"raw", pageRaw, false}, {"s2", pageS2, false}, {"zstd", pageZstd, false}, {"delta", pageRaw, true}, {"delta+s2", pageS2, true}} {
			if c.delta && im.later == nil {
				continue
			}
			b.Run("memory="+im.name+"/encoding="+c.name, func(b *testing.B) { benchEncode(b, im, c.codec, c.delta) })
		}
	}
}

func benchEncode(b *testing.B, im image, c codec, delta bool) {
	var names, bases []Hash
	var pages, olds [][]byte
	for at := 0; at < len(im.mem); at += PageSize {
		old := im.mem[at : at+PageSize]
		page := old
		if delta {
			if page = im.later[at : at+PageSize]; bytes.Equal(page, old) {
				continue
			}
		}
		pages, olds = append(pages, page), append(olds, old)
		names, bases = append(names, HashPage(page)), append(bases, HashPage(old))
	}
	if len(pages) == 0 {
		b.Skip("nothing changed")
	}
	index := make(map[Hash]int)
	for i, h := range bases {
		index[h] = i
	}
	baseOf := func(_ PageNum, name, buf []byte) bool { return copy(buf, olds[index[Hash(name)]]) == PageSize }

	var f framer
	in := newFrameReader(nil, MaxPages, framePages)
	in.buffers = make(chan *pageBuffer, 1)
	in.buffers <- new(pageBuffer)
	var encoding, decoding time.Duration
	var wire []byte
	sent := 0
	for b.Loop() {
		wire = wire[:0]
		start := time.Now()
		for at := 0; at < len(pages); at += bulkRun {
			f.begin(PageNum(at))
			for i := at; i < min(at+bulkRun, len(pages)); i++ {
				if delta {
					f.addDelta(names[i], pages[i], bases[i], olds[i])
				} else {
					f.add(names[i], pages[i])
				}
			}
			wire = f.append(wire, c)
		}
		encoding += time.Since(start)
		sent = len(wire)
		start = time.Now()
		in.r.Reset(bytes.NewReader(wire))
		for {
			fr, err := in.next()
			if err == io.EOF {
				break
			}
			if err != nil {
				b.Fatal(err)
			}
			var at [maxRun]namedPage
			if all, err := fr.unpack(baseOf, &at); err != nil || !all {
				b.Fatal(all, err)
			}
			in.putBuffer(fr.data)
		}
		decoding += time.Since(start)
	}
	total := float64(len(pages) * PageSize)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(len(pages)), "pages")
	b.ReportMetric(float64(sent)/total, "of-memory")
	b.ReportMetric(total*float64(b.N)/encoding.Seconds()/1e6, "MB/s-out")
	b.ReportMetric(total*float64(b.N)/decoding.Seconds()/1e6, "MB/s-in")
}

// A thin pipe lets bytes through at a rate, from the Source to the Sink.
type thin struct {
	net.Conn
	rate float64 // bytes a second
	due  time.Time
}

func (t *thin) Write(b []byte) (n int, err error) {
	for len(b) > 0 && err == nil {
		part := b[:min(len(b), 8<<10)]
		now := time.Now()
		if early := now.Add(-time.Millisecond); t.due.Before(early) {
			t.due = early
		}
		t.due = t.due.Add(time.Duration(float64(len(part)) / t.rate * 1e9))
		time.Sleep(time.Until(t.due)) // the rate is what is emulated
		var m int
		m, err = t.Conn.Write(part)
		n += m
		b = b[len(part):]
	}
	return n, err
}

// thinDialer connects to a Source over thin pipes.
type thinDialer struct {
	src     *Source
	rate    float64
	serving sync.WaitGroup
}

func (d *thinDialer) Demand(ctx context.Context) (io.ReadWriteCloser, error) { return d.Bulk(ctx) }
func (d *thinDialer) Bulk(context.Context) (io.ReadWriteCloser, error) {
	here, there := net.Pipe()
	d.serving.Go(func() {
		defer there.Close()
		_ = serveStream(context.Background(), d.src, &thin{Conn: there, rate: d.rate})
	})
	return here, nil
}

// BenchmarkThin brings a memory over a pipe of a given rate, with encodings
// and without, in turn: how much sooner it is there, and for how many bytes.
func BenchmarkThin(b *testing.B) {
	for _, im := range images(b) {
		for _, mbit := range []float64{30, 100, 1000, 10000} {
			b.Run(fmt.Sprintf("memory=%s/rate=%gMbit", im.name, mbit), func(b *testing.B) {
				const most = 2048
				mem := im.mem[:min(len(im.mem), most*PageSize)]
				transfer := func(plain bool) (time.Duration, uint64) {
					src, err := NewSource(SourceConfig{Worker: "w", Epoch: 3, Memory: mem, Log: quietLog})
					if err != nil {
						b.Fatal(err)
					}
					sink, err := NewSink(SinkConfig{Worker: "w", Epoch: 3, Region: Region{Data: make([]byte, len(mem)), UFFD: -1},
						Size: int64(len(mem)), Plain: plain, Log: quietLog})
					if err != nil {
						b.Fatal(err)
					}
					d := &thinDialer{src: src, rate: mbit * 1e6 / 8}
					start := time.Now()
					if err := sink.Run(context.Background(), d); err != nil {
						b.Fatal(err)
					}
					took := time.Since(start)
					d.serving.Wait()
					return took, src.Stats().Bytes
				}
				var times, sizes []float64
				for b.Loop() {
					plain, plainBytes := transfer(true)
					coded, codedBytes := transfer(false)
					times = append(times, coded.Seconds()/plain.Seconds())
					sizes = append(sizes, float64(codedBytes)/float64(plainBytes))
				}
				slices.Sort(times)
				slices.Sort(sizes)
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(times[len(times)/2], "time-of-plain")
				b.ReportMetric(times[0], "time-of-plain-min")
				b.ReportMetric(sizes[len(sizes)/2], "bytes-of-plain")
			})
		}
	}
}
