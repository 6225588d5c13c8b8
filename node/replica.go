package node

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/klauspost/compress/s2"

	"meshnode/node/runner"
	"meshnode/pager"
)

// A worker whose manifest has onDisconnect.checkpoint is copied to its guardian
// again and again while it runs: a replica is what the guardian has of it, the
// state of one moment, to go on from if the owner falls silent. replica_out.go
// is the owner's side, replica_in.go the guardian's, package lease what decides
// who runs the worker: replicas change nothing about that.
//
// One checkpoint is told as the difference from one that the guardian has:
//
//	owner                                     guardian
//	Begin  ticket, base, how much        ->   is there room?
//	       <- Go | Unknown (base) | Reason
//	Head   the image                     ->
//	Run    pages, or that they are zero  ->
//	End    digest                        ->   whole, and what the owner has?
//	       <- Kept | Reason
//
// It counts once the digest, over the image and the name of every page, is that of
// what the guardian has then. Until that moment the one before counts, so that a
// transfer that ends in its middle changes nothing. The base is named by its
// digest, so an owner that did not hear whether its last one was kept, or a guardian
// that has restarted, finds that out, and all of the memory travels anew.
//
// A checkpoint belongs to the lease in which it was taken: the guardian drops it
// when it gives the lease up, and takes none for a lease that it does not hold. So
// a late one of an earlier owner's never counts.
const protoReplica = "replica"

const (
	// replicaPages bounds the pages of a Run that brings them.
	replicaPages = 64
	// maxReplicaFrame bounds a frame that is not a Head, in bytes.
	maxReplicaFrame = replicaPages*pager.PageSize + 1<<10
	// maxReplicaHead bounds a Head.
	maxReplicaHead = maxImage + 1<<10
)

// A replicaFrame has exactly one field set.
type replicaFrame struct {
	Begin *replicaBegin `cbor:"1,keyasint,omitempty"`
	Head  []byte        `cbor:"2,keyasint,omitempty"`
	Run   *replicaRun   `cbor:"3,keyasint,omitempty"`
	End   []byte        `cbor:"4,keyasint,omitempty"`
}

type replicaBegin struct {
	Worker string `cbor:"1,keyasint"`
	Epoch  uint64 `cbor:"2,keyasint"` // of the owner and its lease
	Ticket uint64 `cbor:"3,keyasint"` // of the lease
	// Base is the digest of the checkpoint that this one differs from; empty is a
	// memory of zeroes.
	Base    []byte `cbor:"4,keyasint,omitempty"`
	Pages   uint32 `cbor:"5,keyasint"`           // of the memory
	Changed uint32 `cbor:"6,keyasint,omitempty"` // of them are brought
	Head    uint32 `cbor:"7,keyasint"`           // bytes of the image
}

// bytes is how much the checkpoint takes at the guardian beside its base.
func (b *replicaBegin) bytes() int64 {
	return int64(b.Changed)*pager.PageSize + int64(b.Head) + int64(b.Pages)*replicaPageCost
}

// replicaPageCost is what a page takes beside its content: its name and where it
// is.
const replicaPageCost = 32 + 24

func (b *replicaBegin) validate() error {
	switch {
	case !validID(b.Worker) || b.Epoch == 0 || b.Ticket == 0:
		return errors.New("a checkpoint of no worker's lease")
	case len(b.Base) != 0 && len(b.Base) != sha256.Size:
		return fmt.Errorf("a checkpoint's base has a name of %d bytes, want %d", len(b.Base), sha256.Size)
	case b.Pages > runner.MaxMemory/pager.PageSize || b.Changed > b.Pages:
		return fmt.Errorf("a checkpoint of %d pages, of which %d changed: at most %d", b.Pages, b.Changed, runner.MaxMemory/pager.PageSize)
	case b.Head == 0 || b.Head > maxImage:
		return fmt.Errorf("a checkpoint with an image of %d bytes, at most %d", b.Head, maxImage)
	}
	return nil
}

// A replicaRun says what some pages hold: Data, or, where that is empty, zeroes.
type replicaRun struct {
	First  uint32 `cbor:"1,keyasint,omitempty"`
	Count  uint32 `cbor:"2,keyasint"`
	Data   []byte `cbor:"3,keyasint,omitempty"`
	Packed bool   `cbor:"4,keyasint,omitempty"` // Data is one block of S2
}

// newReplicaRun is a run of pages as it travels.
func newReplicaRun(first pager.PageNum, pages []byte) *replicaRun {
	r := &replicaRun{First: uint32(first), Count: uint32(len(pages) / pager.PageSize), Data: pages}
	if packed := s2.Encode(nil, pages); len(packed) < len(pages) {
		r.Data, r.Packed = packed, true
	}
	return r
}

// unpack returns the run's pages, in buf if there is room; nil if they are zero.
func (r *replicaRun) unpack(buf []byte) ([]byte, error) {
	if len(r.Data) == 0 {
		return nil, nil
	}
	want := int(r.Count) * pager.PageSize
	if r.Count > replicaPages {
		return nil, fmt.Errorf("a run of %d pages, at most %d", r.Count, replicaPages)
	}
	if !r.Packed {
		if len(r.Data) != want {
			return nil, fmt.Errorf("a run of %d pages in %d bytes", r.Count, len(r.Data))
		}
		return r.Data, nil
	}
	if n, err := s2.DecodedLen(r.Data); err != nil || n != want {
		return nil, fmt.Errorf("a run of %d pages packs %d bytes, want %d (%v)", r.Count, n, want, err)
	}
	return s2.Decode(buf[:cap(buf)], r.Data)
}

// A replicaAnswer is the guardian's to Begin and to End.
type replicaAnswer struct {
	Go      bool   `cbor:"1,keyasint,omitempty"`
	Kept    bool   `cbor:"2,keyasint,omitempty"`
	Unknown bool   `cbor:"3,keyasint,omitempty"` // it does not have the base
	Reason  string `cbor:"4,keyasint,omitempty"` // why it does not take the checkpoint
}

// maxReplicaAnswer bounds a replicaAnswer, in bytes, maxReplicaReason its text.
const (
	maxReplicaReason = 1 << 10
	maxReplicaAnswer = maxReplicaReason + 256
)

// replicaDigest names a checkpoint: its image, and the names of all its pages.
func replicaDigest(head []byte, names []pager.Hash) (d [sha256.Size]byte) {
	h := sha256.New()
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(head))))
	h.Write(head)
	for i := range names {
		h.Write(names[i][:])
	}
	h.Sum(d[:0])
	return d
}

// zeroNames makes names those of so many pages: those that are new are zero.
func zeroNames(names []pager.Hash, pages int) []pager.Hash {
	names = slices.Grow(names, pages-len(names))
	for len(names) < pages {
		names = append(names, pager.ZeroHash)
	}
	return names
}

// A replica is a whole checkpoint of a worker, at its guardian.
type replica struct {
	epoch, ticket uint64 // of the lease that it belongs to
	digest        [sha256.Size]byte
	head          []byte // the image
	names         []pager.Hash
	pages         [][]byte      // nil for one that is zero
	bytes         int64         // that it takes
	at            time.Duration // when it was whole, by guardClock
}

// A stage is a checkpoint on its way to the guardian: what differs from base.
type stage struct {
	begin replicaBegin
	base  *replica     // nil for a memory of zeroes; the guard's lock is over it
	known []pager.Hash // the base's names
	head  []byte
	runs  []stagedRun // in order
	next  uint64      // the first page that has not been told
	came  uint32      // pages with content
	buf   []byte
	names []pager.Hash // of all pages, once it is whole
}

// A stagedRun is a stretch of pages; without content they are zero.
type stagedRun struct {
	first, count uint32
	pages        [][]byte
}

// newStage begins a checkpoint that differs from base, which has that name.
func newStage(b replicaBegin, base *replica) (*stage, error) {
	s := &stage{begin: b, base: base, buf: make([]byte, 0, replicaPages*pager.PageSize)}
	if base != nil {
		s.known = base.names
	}
	if len(s.known) > int(b.Pages) {
		return nil, fmt.Errorf("a memory of %d pages has become one of %d", len(s.known), b.Pages)
	}
	return s, nil
}

// limit is how large the next frame may be.
func (s *stage) limit() int {
	if s.head == nil {
		return maxReplicaHead
	}
	return maxReplicaFrame
}

// take takes a frame; over says that it was the last, and the digest is right.
func (s *stage) take(f replicaFrame) (over bool, err error) {
	switch {
	case f.Begin != nil:
		return false, errors.New("a checkpoint begins within another")
	case s.head == nil:
		if len(f.Head) != int(s.begin.Head) || f.Run != nil || f.End != nil {
			return false, fmt.Errorf("an image of %d bytes, where one of %d was due", len(f.Head), s.begin.Head)
		}
		s.head = f.Head
		return false, s.checkHead()
	case f.Run != nil && f.Head == nil && f.End == nil:
		return false, s.takeRun(f.Run)
	case f.End != nil && f.Head == nil:
		return true, s.whole(f.End)
	}
	return false, errors.New("a frame that is none of a checkpoint")
}

// checkHead refuses an image that could not be continued here.
func (s *stage) checkHead() error {
	img, err := parseImage(s.head)
	if err != nil {
		return err
	}
	switch {
	case img.Spec.ID != s.begin.Worker:
		return errors.New("the image is of another worker")
	case uint64(img.State.Pages)*runner.WasmPage != uint64(s.begin.Pages)*pager.PageSize:
		return fmt.Errorf("an image of %d bytes of memory with %d pages", uint64(img.State.Pages)*runner.WasmPage, s.begin.Pages)
	}
	return nil
}

func (s *stage) takeRun(r *replicaRun) error {
	end := uint64(r.First) + uint64(r.Count)
	if uint64(r.First) < s.next || r.Count == 0 || end > uint64(s.begin.Pages) {
		return fmt.Errorf("%d pages at page %d of %d, where page %d was due", r.Count, r.First, s.begin.Pages, s.next)
	}
	data, err := r.unpack(s.buf)
	if err != nil {
		return err
	}
	run := stagedRun{first: r.First, count: r.Count}
	if data != nil {
		if s.came += r.Count; s.came > s.begin.Changed {
			return fmt.Errorf("more than the %d pages that were announced", s.begin.Changed)
		}
		for i := range int(r.Count) {
			// Each by itself: the next checkpoint may replace any of them.
			run.pages = append(run.pages, bytes.Clone(data[i*pager.PageSize:][:pager.PageSize]))
		}
	}
	s.runs, s.next = append(s.runs, run), end
	return nil
}

// whole says whether what has come, and what was there, is what the owner has.
func (s *stage) whole(digest []byte) error {
	names := zeroNames(slices.Clone(s.known), int(s.begin.Pages))
	for _, r := range s.runs {
		for i := range r.count {
			names[r.first+i] = pager.ZeroHash
			if r.pages != nil {
				names[r.first+i] = pager.HashPage(r.pages[i])
			}
		}
	}
	if d := replicaDigest(s.head, names); !bytes.Equal(d[:], digest) {
		return errors.New("what has come is not what was sent")
	}
	s.names = names
	return nil
}

// replica makes the checkpoint, which is whole, out of its base, which is none
// any more.
func (s *stage) replica(now time.Duration) *replica {
	r := s.base
	if r == nil {
		r = new(replica)
	}
	n := int(s.begin.Pages)
	r.epoch, r.ticket, r.head, r.names, r.at = s.begin.Epoch, s.begin.Ticket, s.head, s.names, now
	r.digest = replicaDigest(r.head, r.names)
	r.pages = append(r.pages, make([][]byte, n-len(r.pages))...)
	for _, run := range s.runs {
		for i := range run.count {
			p := run.first + i
			r.pages[p] = nil
			if r.names[p] != pager.ZeroHash {
				r.pages[p] = run.pages[i]
			}
		}
	}
	r.bytes = int64(len(r.head)) + int64(n)*replicaPageCost
	for _, page := range r.pages {
		r.bytes += int64(len(page))
	}
	return r
}

// fill writes the replica's memory to m, which is zero.
func (r *replica) fill(m []byte) {
	for i, page := range r.pages {
		copy(m[i*pager.PageSize:], page)
	}
}
