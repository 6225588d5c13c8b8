package suspend

import (
	"iter"
	"runtime"
	"sync"
)

// Functions are decoded a run at a time: a run is of at least runBytes, so that
// handing it over costs nothing beside that, and of at most runFunctions. One of
// runBytes or more is alone, so that few of those are kept at a time.
const (
	runBytes     = 16 << 10
	runFunctions = 64
	maxDecoders  = 4 // what uses the functions cannot follow more
)

// A run is functions that follow one another.
type run struct {
	first     uint32
	functions []function
	decoded   chan struct{} // one message, once they are
}

func (r *run) decode(d *decoder) {
	for i := range r.functions {
		d.decode(&r.functions[i], r.first+uint32(i))
	}
}

// decoded returns the module's functions in their order, decoded; see
// decoder.decode. Those that follow are decoded by other goroutines in the
// meantime. A function is valid until the next one is asked for. It refuses the
// module where it comes to a function that has to be.
func (m *rewriter) decoded(p *plan) iter.Seq[*function] {
	return func(yield func(*function) bool) {
		decoders := max(1, min(runtime.GOMAXPROCS(0), maxDecoders, len(m.b)/(2*runBytes)))
		if m.runs == nil {
			m.runs = make([]run, 2*decoders)
		}
		runs := m.runs
		todo := make(chan *run, len(runs))
		var wg sync.WaitGroup
		defer wg.Wait()
		defer close(todo)
		for range decoders {
			wg.Go(func() {
				d := m.decoder(p)
				for r := range todo {
					r.decode(d)
					r.decoded <- struct{}{}
				}
			})
		}
		next := uint32(m.imported)
		order := func(r *run) {
			r.first = next
			next += m.runFrom(next)
			if n := int(next - r.first); n <= cap(r.functions) {
				r.functions = r.functions[:n]
			} else {
				r.functions = append(r.functions[:cap(r.functions)], make([]function, n-cap(r.functions))...)
			}
			todo <- r
		}
		for i := range runs {
			runs[i].decoded = make(chan struct{}, 1)
			order(&runs[i])
		}
		for i := 0; ; i = (i + 1) % len(runs) {
			r := &runs[i]
			if len(r.functions) == 0 {
				return
			}
			<-r.decoded
			for j := range r.functions {
				f := &r.functions[j]
				if f.refused != nil {
					m.function = -1 // it says itself where
					panic(f.refused)
				}
				if !yield(f) {
					return
				}
			}
			order(r)
		}
	}
}

// runFrom returns how many functions the run has that begins with function at.
func (m *rewriter) runFrom(at uint32) uint32 {
	bytes := 0
	code := m.code[at-uint32(m.imported):]
	for i, c := range code {
		size := c.end - c.pos
		if i > 0 && (i == runFunctions || bytes >= runBytes || size >= runBytes) {
			return uint32(i)
		}
		bytes += size
	}
	return uint32(len(code))
}
