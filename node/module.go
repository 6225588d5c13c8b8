package node

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/zeebo/blake3"

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/pager"
)

// protoModule hands out modules by name: the asker sends any number of
// moduleWant, and each is answered by a moduleHave and, unless the module is not
// here, the bytes that were asked for.
const protoModule = "module"

// A moduleWant asks for Length bytes of a module, from Offset on.
type moduleWant struct {
	Hash   pager.Hash `cbor:"1,keyasint"`
	Offset int64      `cbor:"2,keyasint"`
	Length int64      `cbor:"3,keyasint"`
}

type moduleHave struct {
	Size int64 `cbor:"1,keyasint"` // of all the module, in bytes; -1: not here
}

const (
	maxModuleMessage = 96 // bytes
	// moduleIdle is how long a stream may be without a moduleWant.
	moduleIdle = time.Minute
)

// modules keeps modules on disk, named by the BLAKE3 hash of their bytes. Safe
// for concurrent use, by several processes too: a file appears whole or not at
// all.
type modules struct{ dir string }

func (m modules) path(h pager.Hash) string {
	return filepath.Join(m.dir, hex.EncodeToString(h[:])+".wasm")
}

// put stores what r yields, at most control.MaxModuleBytes of it. If want is not
// nil, it stores nothing but the module of that name.
func (m modules) put(r io.Reader, want *pager.Hash) (pager.Hash, int64, error) {
	var h pager.Hash
	f, err := os.CreateTemp(m.dir, incoming+"*")
	if err != nil {
		return h, 0, err
	}
	defer os.Remove(f.Name()) // gone already if all went well
	defer f.Close()
	hasher := blake3.New()
	size, err := io.Copy(io.MultiWriter(f, hasher), io.LimitReader(r, control.MaxModuleBytes+1))
	if err != nil {
		return h, 0, err
	}
	if size > control.MaxModuleBytes {
		return h, 0, &control.Error{
			Code:    control.CodeTooLarge,
			Message: fmt.Sprintf("the module is larger than the limit of %d MiB", control.MaxModuleBytes>>20),
		}
	}
	hasher.Sum(h[:0])
	if want != nil && h != *want {
		return h, 0, fmt.Errorf("module %v arrived as %v", *want, h)
	}
	if err := f.Sync(); err != nil {
		return h, 0, err
	}
	if err := f.Close(); err != nil {
		return h, 0, err
	}
	return h, size, os.Rename(f.Name(), m.path(h))
}

// spool keeps what r yields in a file until its user removes it; if it does not,
// collect does.
func (m modules) spool(r io.Reader) (path string, err error) {
	f, err := os.CreateTemp(m.dir, incoming+"*")
	if err != nil {
		return "", err
	}
	_, err = io.Copy(f, r)
	if err = errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}

// have returns the size of a module that is here, in bytes. A file that does
// not hash to its name (a torn write, a disk error) is taken away.
func (m modules) have(h pager.Hash) (int64, bool) {
	f, err := os.Open(m.path(h))
	if err != nil {
		return 0, false
	}
	defer f.Close()
	hasher := blake3.New()
	size, err := io.Copy(hasher, f)
	var got pager.Hash
	hasher.Sum(got[:0])
	if err != nil || got != h {
		os.Remove(m.path(h))
		return 0, false
	}
	now := time.Now()
	_ = os.Chtimes(m.path(h), now, now) // for collect; a module that looks older than it is may be fetched again
	return size, true
}

// Of modules that no worker here needs, those last used stay, for a return: so
// many bytes of them. Nothing goes that was used in the last moduleGrace, since
// a worker may be about to need it.
const (
	moduleBytes = 256 << 20
	moduleGrace = time.Hour
)

// collect removes modules that are not in use, but those last used, up to keep
// bytes, and what was left of files that never arrived. It returns how many
// bytes went.
func (m modules) collect(used func(pager.Hash) bool, keep int64, before time.Time) (freed int64, err error) {
	entries, err := os.ReadDir(m.dir)
	if err != nil {
		return 0, err
	}
	var idle []os.FileInfo
	var errs []error
	remove := func(f os.FileInfo) {
		if err := os.Remove(filepath.Join(m.dir, f.Name())); err != nil {
			errs = append(errs, err)
			return
		}
		freed += f.Size()
	}
	for _, e := range entries {
		f, err := e.Info()
		if err != nil || !f.Mode().IsRegular() || !f.ModTime().Before(before) {
			continue
		}
		if strings.HasPrefix(f.Name(), incoming) {
			remove(f)
			continue
		}
		name, ok := strings.CutSuffix(f.Name(), ".wasm")
		b, err := hex.DecodeString(name)
		if !ok || err != nil || len(b) != len(pager.Hash{}) || used(pager.Hash(b)) {
			continue
		}
		idle = append(idle, f)
	}
	slices.SortFunc(idle, func(a, b os.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	for _, f := range idle {
		if keep -= f.Size(); keep < 0 {
			remove(f)
		}
	}
	return freed, errors.Join(errs...)
}

// incoming begins the names of files that are being written.
const incoming = "incoming-"

// serveModule answers what a moduleGather asks, until the stream ends.
func (n *Node) serveModule(_ context.Context, s *mesh.Stream) {
	if err := n.modules.serve(s); err != nil {
		n.log.Debug("module not sent", "peer", s.Peer(), "error", err)
	}
}

// serve answers what is asked on a stream until it ends, which is no error.
func (m modules) serve(s stream) error {
	for {
		if err := s.SetDeadline(time.Now().Add(moduleIdle)); err != nil {
			return err
		}
		var want moduleWant
		switch err := mesh.ReadMessage(s, maxModuleMessage, &want); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if err := m.send(s, want); err != nil {
			return fmt.Errorf("module %v: %w", want.Hash, err)
		}
	}
}

func (m modules) send(w io.Writer, want moduleWant) error {
	f, err := os.Open(m.path(want.Hash))
	if err != nil {
		return mesh.WriteMessage(w, moduleHave{Size: -1})
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if want.Offset < 0 || want.Length < 0 || want.Offset > st.Size() || want.Length > st.Size()-want.Offset {
		return fmt.Errorf("%d bytes at %d were asked of a module of %d", want.Length, want.Offset, st.Size())
	}
	if err := mesh.WriteMessage(w, moduleHave{Size: st.Size()}); err != nil {
		return err
	}
	_, err = io.Copy(w, io.NewSectionReader(f, want.Offset, want.Length))
	return err
}
