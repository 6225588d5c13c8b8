// Package journal is a node's memory, on its disk, of whose its workers are: the
// [handover.Record] of each.
package journal

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"meshnode/mesh/boltfile"
	"meshnode/node/handover"
)

var (
	// ErrCorrupt means that the journal's file is damaged.
	ErrCorrupt = errors.New("journal damaged")
	// ErrForeign means that the file is not a journal, or a later version's.
	ErrForeign = errors.New("not a journal this program can read")
	// ErrInUse means that another process has the journal open.
	ErrInUse = errors.New("journal in use")
	// ErrStale means a record of an earlier epoch than the one in the journal.
	ErrStale = errors.New("journal has a later epoch")
	// ErrUnsettled means a record that a source in doubt may still ask about.
	ErrUnsettled = errors.New("journal record is unsettled")
)

const (
	// journalMagic and journalVersion stand in the header bucket.
	journalMagic   = "meshnode hand-over journal"
	journalVersion = 1
)

var (
	headerBucket  = []byte("header")
	workersBucket = []byte("workers")
	magicKey      = []byte("magic")
	versionKey    = []byte("version")
)

// A Journal is a node's memory of whose its workers are: a bbolt file with a
// record per worker. Safe for concurrent use; one process at a time.
//
//	header   magic, version
//	workers  worker id -> record; the bucket's sequence is their number, so that
//	         a page of them cannot vanish unseen
type Journal struct {
	path string
	db   *bbolt.DB

	// Writes that arrive while one is being synced share the next sync. The
	// first of a batch to find nobody committing commits for all; no goroutine
	// of our own is needed, and bbolt's own Batch would wait for company first.
	mu     sync.Mutex
	queue  []*write
	busy   bool
	idle   *sync.Cond
	closed bool
}

type write struct {
	do   func(*bbolt.Bucket) error
	err  error
	turn chan bool // true: commit for all that wait; false: done
}

// Open opens the journal at path, or makes an empty one that only its
// owner can read. The errors wrap ErrInUse, ErrForeign or ErrCorrupt and say what
// to do; a damaged journal is never replaced by itself, since it may hold the
// only word on who runs a worker.
func Open(path string) (j *Journal, err error) {
	var db *bbolt.DB
	defer func() {
		if err != nil {
			j = nil
			closeQuietly(db)
		}
	}()
	defer explain(path, &err)
	defer boltfile.Guard(&err)()
	db, err = boltfile.Open(path)
	switch {
	case errors.Is(err, boltfile.ErrInUse):
		return nil, fmt.Errorf("open journal %s: %w: another meshnode runs with the same state directory; stop it, or choose another directory", path, ErrInUse)
	case errors.Is(err, boltfile.ErrForeign):
		return nil, foreign(path, err)
	case errors.Is(err, boltfile.ErrDamaged):
		return nil, err // and explained
	case err != nil:
		return nil, fmt.Errorf("open journal: %w", err)
	}
	if err := db.Update(func(tx *bbolt.Tx) error { return prepare(tx, path) }); err != nil {
		return nil, err
	}
	j = &Journal{path: path, db: db}
	j.idle = sync.NewCond(&j.mu)
	// Reads every record, checks its sum, and that none is missing.
	if _, err := j.All(); err != nil {
		return nil, err
	}
	return j, nil
}

// explain makes of damage to the file an error that says what to do.
func explain(path string, err *error) {
	if errors.Is(*err, boltfile.ErrDamaged) {
		*err = corrupt(path, *err)
	}
}

// prepare writes the header of an empty file and checks that of another.
func prepare(tx *bbolt.Tx, path string) error {
	h := tx.Bucket(headerBucket)
	if h == nil {
		if k, _ := tx.Cursor().First(); k != nil {
			return foreign(path, fmt.Errorf("it is a database with a bucket %q", k))
		}
		h, err := tx.CreateBucket(headerBucket)
		if err != nil {
			return fmt.Errorf("make journal %s: %w", path, err)
		}
		_, err = tx.CreateBucket(workersBucket)
		return errors.Join(err, h.Put(magicKey, []byte(journalMagic)),
			h.Put(versionKey, binary.BigEndian.AppendUint32(nil, journalVersion)))
	}
	if !bytes.Equal(h.Get(magicKey), []byte(journalMagic)) {
		return foreign(path, errors.New("it is another program's database"))
	}
	v := h.Get(versionKey)
	if len(v) != 4 || tx.Bucket(workersBucket) == nil {
		return corrupt(path, errors.New("its header is incomplete"))
	}
	if n := binary.BigEndian.Uint32(v); n != journalVersion {
		return foreign(path, fmt.Errorf("its version is %d, this program knows %d; update meshnode", n, journalVersion))
	}
	return nil
}

func closeQuietly(db *bbolt.DB) {
	if db == nil {
		return
	}
	defer func() { _ = recover() }() // a damaged file may not even close
	_ = db.Close()
}

func corrupt(path string, err error) error {
	return fmt.Errorf("journal %s: %w: %w. Restore it from a copy. Without one, move it away to start empty: what this node was moving may then be told as never taken, so stop the workers it had on the other nodes first", path, ErrCorrupt, err)
}

func foreign(path string, err error) error {
	return fmt.Errorf("journal %s: %w: %w. Choose another state directory, or move the file away", path, ErrForeign, err)
}

// Close waits for writes under way and closes the file. Later calls fail.
func (j *Journal) Close() error {
	j.mu.Lock()
	j.closed = true
	for j.busy {
		j.idle.Wait()
	}
	j.mu.Unlock()
	if err := j.db.Close(); err != nil {
		return fmt.Errorf("close journal %s: %w", j.path, err)
	}
	return nil
}

// Put writes r and returns once it is on disk. Records put one after the other
// by one goroutine are written in that order. A record of an earlier epoch than
// the one it would replace is refused with ErrStale. After any other error r may
// be on disk or not.
func (j *Journal) Put(r handover.Record) error {
	b, err := r.Encode()
	if err != nil {
		return err
	}
	err = j.update(func(ws *bbolt.Bucket) error {
		if old := ws.Get([]byte(r.Worker)); old != nil {
			o, err := handover.DecodeRecord(old)
			if err != nil {
				return corrupt(j.path, err)
			}
			if o.Epoch > r.Epoch {
				return fmt.Errorf("%w: %d, the record has %d", ErrStale, o.Epoch, r.Epoch)
			}
		} else if err := ws.SetSequence(ws.Sequence() + 1); err != nil {
			return err
		}
		return ws.Put([]byte(r.Worker), b)
	})
	if err != nil {
		return fmt.Errorf("journal %s: put %s: %w", j.path, r.Worker, err)
	}
	return nil
}

// Settle takes move off worker's unsettled moves and returns once that is on
// disk. It does nothing if it is not among them.
func (j *Journal) Settle(worker string, move handover.MoveID) error {
	r, ok, err := j.Get(worker)
	if err != nil || !ok || !slices.Contains(r.Unsettled, move) {
		return err
	}
	err = j.update(func(ws *bbolt.Bucket) error {
		old := ws.Get([]byte(worker))
		if old == nil {
			return nil
		}
		r, err := handover.DecodeRecord(old)
		if err != nil {
			return corrupt(j.path, err)
		}
		r.Unsettled = slices.DeleteFunc(r.Unsettled, func(m handover.MoveID) bool { return m == move })
		b, err := r.Encode()
		if err != nil {
			return err
		}
		return ws.Put([]byte(worker), b)
	})
	if err != nil {
		return fmt.Errorf("journal %s: settle %s: %w", j.path, worker, err)
	}
	return nil
}

// Annotate replaces the Meta of the record of a worker that is this node's in that
// epoch, and returns once that is on disk. It refuses, with ErrStale, if it is not.
func (j *Journal) Annotate(worker string, epoch uint64, meta []byte) error {
	err := j.update(func(ws *bbolt.Bucket) error {
		old := ws.Get([]byte(worker))
		if old == nil {
			return fmt.Errorf("%w: there is no record", ErrStale)
		}
		r, err := handover.DecodeRecord(old)
		if err != nil {
			return corrupt(j.path, err)
		}
		if r.Epoch != epoch || !r.Own.Owned() {
			return fmt.Errorf("%w: the record says %v in epoch %d", ErrStale, r.Own, r.Epoch)
		}
		r.Meta = meta
		b, err := r.Encode()
		if err != nil {
			return err
		}
		return ws.Put([]byte(worker), b)
	})
	if err != nil {
		return fmt.Errorf("journal %s: annotate %s: %w", j.path, worker, err)
	}
	return nil
}

// Get returns worker's record, if there is one.
func (j *Journal) Get(worker string) (r handover.Record, ok bool, err error) {
	err = j.view(func(ws *bbolt.Bucket) error {
		b := ws.Get([]byte(worker))
		if b == nil {
			return nil
		}
		if r, err = handover.DecodeRecord(b); err != nil {
			return corrupt(j.path, err)
		}
		ok = true
		return nil
	})
	if err != nil {
		return handover.Record{}, false, fmt.Errorf("journal get %s: %w", worker, err)
	}
	return r, ok, nil
}

// All returns every record, by worker.
func (j *Journal) All() ([]handover.Record, error) {
	var rs []handover.Record
	err := j.view(func(ws *bbolt.Bucket) error {
		err := ws.ForEach(func(k, v []byte) error {
			r, err := handover.DecodeRecord(v)
			if err == nil && r.Worker != string(k) {
				err = fmt.Errorf("%w: record of %s under %q", handover.ErrRecord, r.Worker, k)
			}
			if err != nil {
				return corrupt(j.path, err)
			}
			rs = append(rs, r)
			return nil
		})
		if err == nil && ws.Sequence() != uint64(len(rs)) {
			err = corrupt(j.path, fmt.Errorf("it has %d records and should have %d", len(rs), ws.Sequence()))
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	return rs, nil
}

// Delete removes worker's record, unless that is of a later epoch, and returns
// once that is on disk. It refuses, with ErrUnsettled, a record that a source in
// doubt may still ask about: one with unsettled moves, or one that says "moving
// out".
func (j *Journal) Delete(worker string, epoch uint64) error {
	err := j.update(func(ws *bbolt.Bucket) error {
		old := ws.Get([]byte(worker))
		if old == nil {
			return nil
		}
		r, err := handover.DecodeRecord(old)
		if err != nil {
			return corrupt(j.path, err)
		}
		switch {
		case r.Epoch > epoch:
			return nil
		case len(r.Unsettled) > 0 || r.Own == handover.OwnMovingOut:
			return ErrUnsettled
		}
		return remove(ws, worker)
	})
	if err != nil {
		return fmt.Errorf("journal %s: delete %s: %w", j.path, worker, err)
	}
	return nil
}

func remove(ws *bbolt.Bucket, worker string) error {
	return errors.Join(ws.SetSequence(ws.Sequence()-1), ws.Delete([]byte(worker)))
}

// Expire removes records of workers that are not this node's any more and that
// nobody can ask about: those last written before the given time, and of the
// rest all but the newest keep. It returns how many. A node calls it at start and
// every hour or so; with it the file's size is bounded by the workers it owns,
// keep, and the moves whose source never came back.
func (j *Journal) Expire(before time.Time, keep int) (int, error) {
	removed := 0
	err := j.update(func(ws *bbolt.Bucket) error {
		removed = 0
		var old []handover.Record
		err := ws.ForEach(func(_, v []byte) error {
			r, err := handover.DecodeRecord(v)
			if err != nil {
				return corrupt(j.path, err)
			}
			if !r.Own.Owned() && len(r.Unsettled) == 0 {
				old = append(old, handover.Record{Worker: r.Worker, Updated: r.Updated})
			}
			return nil
		})
		if err != nil {
			return err
		}
		slices.SortFunc(old, func(a, b handover.Record) int { return cmp.Compare(b.Updated, a.Updated) })
		for i, r := range old {
			if i < keep && r.Updated >= before.Unix() {
				continue
			}
			if err := remove(ws, r.Worker); err != nil {
				return err
			}
			removed++
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("journal %s: expire: %w", j.path, err)
	}
	return removed, nil
}

// update runs do in a transaction, with those of other callers that wait, and
// returns once it is on disk. Do checks before it writes: its error does not undo
// what it wrote.
func (j *Journal) update(do func(*bbolt.Bucket) error) error {
	w := &write{do: do, turn: make(chan bool, 1)}
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return berrors.ErrDatabaseNotOpen
	}
	j.queue = append(j.queue, w)
	if j.busy {
		j.mu.Unlock()
		if mine := <-w.turn; !mine {
			return w.err
		}
		j.mu.Lock()
	}
	j.busy = true
	batch := j.queue
	j.queue = nil
	j.mu.Unlock()

	err := j.commit(batch)

	j.mu.Lock()
	defer j.mu.Unlock()
	for _, b := range batch {
		if err != nil {
			b.err = err
		}
		if b != w {
			b.turn <- false
		}
	}
	if len(j.queue) > 0 {
		// Whoever came first meanwhile commits next: nobody waits for a sync
		// that is not its own.
		j.queue[0].turn <- true
	} else {
		j.busy = false
		j.idle.Broadcast()
	}
	return w.err
}

func (j *Journal) commit(batch []*write) (err error) {
	defer explain(j.path, &err)
	defer boltfile.Guard(&err)()
	return j.db.Update(func(tx *bbolt.Tx) error {
		ws := tx.Bucket(workersBucket)
		for _, w := range batch {
			w.err = w.do(ws)
		}
		return nil
	})
}

func (j *Journal) view(read func(*bbolt.Bucket) error) (err error) {
	defer explain(j.path, &err)
	defer boltfile.Guard(&err)()
	return j.db.View(func(tx *bbolt.Tx) error { return read(tx.Bucket(workersBucket)) })
}
