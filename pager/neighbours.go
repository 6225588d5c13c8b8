package pager

import (
	"context"
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
)

// A Neighbour is the memory of a worker that runs on this node, beside the one
// that is about to come.
type Neighbour struct {
	// Region is the memory, and Size how much of it is in use, in bytes, whole
	// pages. All of that is in place: no Sink has it armed.
	Region Region
	Size   int64
	// Hold keeps Region mapped until Release is called. It reports false when
	// the worker is not here any more. Both are safe for concurrent use.
	Hold    func() bool
	Release func()
}

// Neighbours finds pages by their names in memories that are in use, so that a
// worker brings no page that another one here has. Run looks what there is;
// nothing is copied, and it takes some 40 bytes for a page. The workers write on
// meanwhile: a page is read when somebody asks for it, and counts if it still
// has its name then. So what Fetch has given is as good as what a Store has,
// and what was found may be gone.
//
// All methods are safe for concurrent use, and those that look for pages may be
// called on nil, which has none.
type Neighbours struct {
	of   []Neighbour
	most int           // pages to be hashed
	done chan struct{} // closed when Run has returned

	found atomic.Uint64

	mu sync.Mutex
	// at has the first bytes of a name: the rest is compared with the page.
	at map[uint64]neighbourPage
}

type neighbourPage struct {
	of   int32
	page PageNum
}

// NewNeighbours makes Neighbours of which Run reads that many bytes that are not
// zero at most, in the order given. It starts nothing.
func NewNeighbours(of []Neighbour, most int64) (*Neighbours, error) {
	for _, w := range of {
		if err := w.Region.validate(w.Size); err != nil {
			return nil, fmt.Errorf("neighbours: %w", err)
		}
	}
	return &Neighbours{
		of: of, most: int(max(most, 0) / PageSize), done: make(chan struct{}), at: make(map[uint64]neighbourPage),
	}, nil
}

// Run looks what pages there are, until it has seen all or as many as it may, or
// ctx is done. It is called once: who asks for pages waits for it.
func (n *Neighbours) Run(ctx context.Context) {
	defer close(n.done)
	for i := range n.of {
		if ctx.Err() != nil || n.most == 0 {
			return
		}
		n.look(ctx, i)
	}
}

// look names the pages of a memory. It lets go of it now and then, as it does of
// the processor.
func (n *Neighbours) look(ctx context.Context, i int) {
	w := &n.of[i]
	var holes []Run
	if !w.Hold() {
		return
	}
	if w.Region.File != nil {
		// Reading one would fill it. What is written meanwhile is left out.
		holes, _ = ZeroRuns(w.Region.File, w.Size)
	}
	w.Release()
	var pages [hashBatch][]byte
	var nums [hashBatch]PageNum
	var names [hashBatch]Hash
	for _, r := range without([]Run{{0, uint32(PagesOf(w.Size))}}, holes) {
		for r.Count > 0 {
			part := Run{r.First, min(r.Count, hashBatch)}
			r.First, r.Count = part.end(), r.Count-part.Count
			if ctx.Err() != nil || n.most == 0 || !w.Hold() {
				return
			}
			count := 0
			for p := part.First; p < part.end() && count < n.most; p++ {
				if page := w.page(p); !IsZero(page) {
					pages[count], nums[count] = page, p
					count++
				}
			}
			hashPages(names[:count], pages[:count])
			w.Release()
			n.most -= count
			n.mu.Lock()
			for k, name := range names[:count] {
				n.at[neighbourKey(name)] = neighbourPage{int32(i), nums[k]}
			}
			n.mu.Unlock()
			runtime.Gosched() // it may be the only processor
		}
	}
}

func neighbourKey(h Hash) uint64 { return binary.LittleEndian.Uint64(h[:]) }

func (w *Neighbour) page(p PageNum) []byte { return w.Region.Data[int(p)*PageSize:][:PageSize] }

// wait returns when Run has, or one of two channels is closed.
func (n *Neighbours) wait(stop, other <-chan struct{}) {
	if n == nil {
		return
	}
	select {
	case <-n.done:
	case <-stop:
	case <-other:
	}
}

// Fetch fills buf, which must be PageSize bytes, with the page of that name, and
// reports whether a neighbour has it now. It does not wait for Run. What is in
// buf when it returns false is of no use.
func (n *Neighbours) Fetch(h Hash, buf []byte) bool {
	if len(buf) != PageSize {
		panic(fmt.Sprintf("pager: Neighbours.Fetch into %d bytes", len(buf)))
	}
	if n == nil {
		return false
	}
	n.mu.Lock()
	at, ok := n.at[neighbourKey(h)]
	n.mu.Unlock()
	if !ok {
		return false
	}
	w := &n.of[at.of]
	if !w.Hold() {
		return false
	}
	copy(buf, w.page(at.page))
	w.Release()
	if HashPage(buf) != h { // written since, or just then
		return false
	}
	n.found.Add(1)
	return true
}

// Found is how many pages Fetch has found.
func (n *Neighbours) Found() uint64 {
	if n == nil {
		return 0
	}
	return n.found.Load()
}
