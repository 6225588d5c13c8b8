package wasi

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Kinds of files that a FileInfo tells apart.
const (
	KindFile = "file"
	KindDir  = "directory"
	KindLink = "link"
)

// A FileInfo describes one of a guest's files, directories or symbolic links.
type FileInfo struct {
	Name string `cbor:"1,keyasint"`
	Kind string `cbor:"2,keyasint"`
	// Size is a file's, in bytes, and Modified when it was last changed, in
	// nanoseconds since 1970.
	Size     int64  `cbor:"3,keyasint,omitempty"`
	Modified uint64 `cbor:"4,keyasint,omitempty"`
	// Target is where a symbolic link leads.
	Target string `cbor:"5,keyasint,omitempty"`
}

// ErrNotHere means that a part of a file has yet to arrive, or is lost.
var ErrNotHere = errors.New("a part of the file is not at this node (yet)")

// Look describes what is at a path as the guest sees it, following symbolic
// links, and lists up to most of a directory's entries, ordered by name, from
// behind the name after on. The path "" lists the directories that the guest
// has open from its start. Like ReadAt it changes nothing, and must not overlap
// with the guest's calls. The error says what is wrong with the path;
// fs.ErrNotExist is one.
func (h *Host) Look(name, after string, most int) (FileInfo, []FileInfo, error) {
	var entries []FileInfo
	if name == "" {
		for _, d := range h.fds {
			if d != nil && d.preopen != "" && d.preopen > after {
				entries = append(entries, describe(d.preopen, d.node))
			}
		}
		return FileInfo{Kind: KindDir}, first(entries, most), nil
	}
	node, err := h.follow(name)
	if err != nil {
		return FileInfo{}, nil, err
	}
	if node.dir != nil {
		for n, e := range node.dir.byName {
			if n > after {
				entries = append(entries, describe(n, e.node))
			}
		}
	}
	return describe(path.Base(name), node), first(entries, most), nil
}

// ReadAt returns up to most bytes of a file from off on; none are its end.
func (h *Host) ReadAt(name string, off int64, most int) ([]byte, error) {
	node, err := h.follow(name)
	switch {
	case err != nil:
		return nil, err
	case node.kind != filetypeRegular:
		return nil, fmt.Errorf("%s is a %s", name, describe("", node).Kind)
	case off < 0:
		return nil, fmt.Errorf("read %s at %d", name, off)
	}
	out := make([]byte, max(0, min(int64(most), node.size-off)))
	for done := 0; done < len(out); {
		at := off + int64(done)
		page, ok := h.tree.peek(node.chunks[at/chunkBytes], int(at%chunkBytes/PageSize))
		if !ok {
			return nil, ErrNotHere
		}
		// What is behind the page's last byte is zero, as out is.
		part := out[done:min(len(out), done+PageSize-int(at%PageSize))]
		if skip := int(at % PageSize); skip < len(page) {
			copy(part, page[skip:])
		}
		done += len(part)
	}
	return out, nil
}

// peek returns a page's content, zeroes at its end left out, and false if it is
// not here. Unlike view it neither fetches nor loads anything.
func (cs *contents) peek(c *chunk, i int) ([]byte, bool) {
	var p page
	switch {
	case c.loaded:
		if i < len(c.pages) {
			p = c.pages[i]
		}
	case c.name != Hash{}:
		b, ok := cs.store.peek(c.name)
		if !ok {
			return nil, false
		}
		names, ok := parseIndex(b)
		if !ok {
			return nil, false
		}
		if i < len(names) {
			p.name = names[i]
		}
	}
	switch {
	case p.buf != nil:
		return p.buf[:], true
	case p.name == Hash{}:
		return nil, true
	}
	return cs.store.peek(p.name)
}

// follow finds what a path leads to: the rest of it in the directory whose name is
// the longest that begins it.
func (h *Host) follow(name string) (*inode, error) {
	var root *descriptor
	var rest string
	clean := path.Clean(name)
	for _, d := range h.fds {
		if d == nil || d.preopen == "" {
			continue
		}
		dir := path.Clean(d.preopen)
		r, ok := strings.CutPrefix(clean, dir)
		if ok = ok && (r == "" || r[0] == '/' || dir == "/"); !ok && dir == "." {
			r, ok = clean, !path.IsAbs(clean) // as seen from the guest's own directory
		}
		if ok && (root == nil || len(dir) > len(path.Clean(root.preopen))) {
			root, rest = d, strings.TrimPrefix(r, "/")
		}
	}
	if root == nil {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	if rest == "" || rest == "." {
		return root.node, nil
	}
	p, e := lookup(root.node, rest, true)
	switch {
	case e == errNoent || e == success && p.node == nil:
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	case e == errNotdir:
		return nil, fmt.Errorf("%s: a part of it is no directory", name)
	case e != success:
		return nil, fmt.Errorf("%s: it leads out of the directory, or nowhere (WASI error %d)", name, e)
	}
	return p.node, nil
}

func describe(name string, n *inode) FileInfo {
	i := FileInfo{Name: name, Modified: n.mtim}
	switch n.kind {
	case filetypeDirectory:
		i.Kind = KindDir
	case filetypeSymlink:
		i.Kind, i.Target = KindLink, n.target
	default:
		i.Kind, i.Size = KindFile, n.size
	}
	return i
}

func first(list []FileInfo, most int) []FileInfo {
	slices.SortFunc(list, func(a, b FileInfo) int { return cmp.Compare(a.Name, b.Name) })
	return list[:min(len(list), max(0, most))]
}
