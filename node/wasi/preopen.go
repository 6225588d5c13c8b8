package wasi

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path"
	"strings"
	"time"
)

// A Dir is a directory that a new guest finds open.
type Dir struct {
	// Name is what the guest knows it by, such as "/" or "/data".
	Name string
	// Source is what is in it at first: os.DirFS, a zip.Reader, an embed.FS;
	// nil is nothing. It is read when the Host is made and never again: what
	// the guest changes is the guest's own. Files, directories and symbolic
	// links can be in it.
	Source fs.FS
	// ReadOnly takes away the rights to change anything.
	ReadOnly bool
}

// preopen reads a directory and opens it. The error says which file stands in
// the way.
func (h *Host) preopen(d Dir) error {
	switch {
	case d.Name == "" || len(d.Name) > maxPath || checkText(d.Name) != success:
		return fmt.Errorf("directory %q: not a name a guest can use", d.Name)
	case h.tree.full():
		return fmt.Errorf("directory %s: more than %d files", d.Name, h.tree.limits.files)
	}
	n, ok := h.freeFD()
	if !ok {
		return fmt.Errorf("directory %s: more than %d descriptors", d.Name, MaxFDs)
	}
	fd := &descriptor{node: h.tree.newRoot(), preopen: d.Name}
	fd.base, fd.inheriting = fd.most()
	if d.ReadOnly {
		fd.base &^= changeRights
		fd.inheriting &^= changeRights
	}
	h.open(n, fd)
	if d.Source == nil {
		return nil
	}
	if err := h.tree.readAll(fd.node, d.Source); err != nil {
		return fmt.Errorf("directory %s: %w", d.Name, err)
	}
	return nil
}

// readAll puts all that is in a source into a directory.
func (t *tree) readAll(root *inode, source fs.FS) error {
	dirs := map[string]*inode{".": root}
	return fs.WalkDir(source, ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		if err := t.readEntry(dirs, source, name, e); err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		return nil
	})
}

func (t *tree) readEntry(dirs map[string]*inode, source fs.FS, name string, e fs.DirEntry) error {
	base := path.Base(name)
	info, err := e.Info()
	switch {
	case err != nil:
		return err
	case len(base) > maxName || checkText(base) != success:
		return errors.New("not a name a guest can use")
	case t.full():
		return fmt.Errorf("more than %d files", t.limits.files)
	case !t.spare(len(base)):
		return fmt.Errorf("more than %d bytes of names", maxNameBytes)
	}
	var n *inode
	switch e.Type() {
	case fs.ModeDir:
		n = t.create(filetypeDirectory)
		dirs[name] = n
	case fs.ModeSymlink:
		target, err := readLink(source, name)
		if err != nil {
			return err
		}
		if target == "" || len(target) > maxPath || checkText(target) != success || !t.spare(len(base)+len(target)) {
			return errors.New("not a target a guest can follow")
		}
		n = t.create(filetypeSymlink)
		n.target = target
		t.names.bytes += len(target)
	case 0:
		n = t.create(filetypeRegular)
		if err := t.readFile(n, source, name); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%v: only files, directories and symbolic links can move", e.Type())
	}
	t.link(dirs[path.Dir(name)], base, n)
	stamp := nanoseconds(info.ModTime())
	n.atim, n.mtim, n.ctim = stamp, stamp, stamp
	return nil
}

// nanoseconds counts from 1970; times out of reach are 1970.
func nanoseconds(t time.Time) uint64 {
	if s := t.Unix(); s < 0 || s > math.MaxInt64/int64(time.Second)-1 {
		return 0
	}
	return uint64(t.UnixNano())
}

// readLink returns a symbolic link's target. An archive that knows no links has
// it as the content of a file.
func readLink(source fs.FS, name string) (string, error) {
	if _, ok := source.(fs.ReadLinkFS); ok {
		return fs.ReadLink(source, name)
	}
	f, err := source.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := new(strings.Builder)
	_, err = io.Copy(b, io.LimitReader(f, maxPath+1))
	return b.String(), err
}

func (t *tree) readFile(n *inode, source fs.FS, name string) error {
	f, err := source.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 64<<10)
	for {
		k, err := io.ReadFull(f, buf)
		if k > 0 {
			one := func(yield func([]byte) bool) { yield(buf[:k]) }
			if e := t.writeAt(n, n.size, int64(k), one); e != success {
				return fmt.Errorf("more than %d bytes of files", t.limits.bytes)
			}
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			t.collapse(n.chunks)
			return nil
		}
		if err != nil {
			return err
		}
	}
}
