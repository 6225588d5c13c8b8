// Package boltfile opens bbolt databases that may be damaged.
//
// bbolt trusts its file: it follows lengths and page numbers from it by pointer,
// so that a damaged one makes it panic, fault, ask for any amount of memory, or
// read what is next to the page. So [Open] first walks the file with bounds on
// everything, and only a whole one is handed to bbolt.
package boltfile

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

var (
	// ErrDamaged means that the file was a database, and is not whole.
	ErrDamaged = errors.New("damaged")
	// ErrForeign means that the file is no bbolt database, or a later version's.
	ErrForeign = errors.New("not a database this program can read")
	// ErrInUse means that a process has the file open.
	ErrInUse = errors.New("in use")
)

// patience is how long Open waits for another process to close the file.
const patience = time.Second

// Open opens the database at path, or makes an empty one that only its owner can
// read. The errors wrap ErrInUse, ErrForeign or ErrDamaged, or they are what the
// operating system said; they do not name the path unless that does. A damaged
// file is left as it is.
func Open(path string) (*bbolt.DB, error) {
	if fi, err := os.Stat(path); err == nil && fi.Size() > 0 {
		if err := check(path); err != nil {
			return nil, err
		}
	}
	return open(path, bbolt.Options{})
}

// check reads the whole file under the lock that readers share.
func check(path string) (err error) {
	db, err := open(path, bbolt.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	defer Guard(&err)()
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	// A transaction says which of the two first pages counts, and reads nothing
	// more as long as it is not asked.
	return db.View(func(tx *bbolt.Tx) error {
		page := int64(db.Info().PageSize)
		if err := verify(f, page, int64(tx.ID())%2*page); err != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		return nil
	})
}

func open(path string, o bbolt.Options) (db *bbolt.DB, err error) {
	o.Timeout = patience
	o.FreelistType = bbolt.FreelistMapType
	defer Guard(&err)()
	db, err = bbolt.Open(path, 0o600, &o)
	var errno syscall.Errno
	switch {
	case err == nil, errors.As(err, &errno):
		return db, err
	case errors.Is(err, berrors.ErrTimeout):
		return nil, ErrInUse
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrVersionMismatch):
		return nil, fmt.Errorf("%w: %w", ErrForeign, err)
	default:
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
}

// Guard turns what bbolt does when the file is damaged under it into an
// ErrDamaged: it panics, and its map of a file that was cut short faults. Use:
//
//	defer boltfile.Guard(&err)()
//
// It is for the goroutine that calls it alone.
func Guard(err *error) func() {
	old := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(old)
		if p := recover(); p != nil {
			*err = fmt.Errorf("%w: %v", ErrDamaged, p)
		}
	}
}
