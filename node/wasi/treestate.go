package wasi

import (
	"errors"
	"fmt"
	"strings"

	"github.com/fxamacker/cbor/v2"
)

// The form a file system travels in: a version byte, then a treeState in CBOR
// (RFC 8949, core deterministic encoding) with integer keys. Inodes are ordered
// by number, entries too; what can be worked out (links, parents) is left out.
// Keys are only ever added; one that a node does not know is refused, since it
// would lose what is behind it. See state.cddl.
const treeVersion = 1

// MaxTree bounds an encoded tree, in bytes: what 65,536 files with 4 MiB of
// names come to, and some.
const MaxTree = 16 << 20

type treeState struct {
	// Next is the number of the next inode.
	Next  uint64       `cbor:"1,keyasint"`
	Nodes []inodeState `cbor:"2,keyasint"`
}

type inodeState struct {
	Ino  uint64 `cbor:"1,keyasint"`
	Kind uint8  `cbor:"2,keyasint"`
	Atim uint64 `cbor:"3,keyasint,omitempty"`
	Mtim uint64 `cbor:"4,keyasint,omitempty"`
	Ctim uint64 `cbor:"5,keyasint,omitempty"`
	// Size is a file's, Indexes the names of its indexes one after the other:
	// all zeroes for a chunk without content.
	Size    int64  `cbor:"6,keyasint,omitempty"`
	Indexes []byte `cbor:"7,keyasint,omitempty"`
	// Target is a symbolic link's.
	Target string `cbor:"8,keyasint,omitempty"`
	// Next is the number of a directory's next entry.
	Next    uint64       `cbor:"9,keyasint,omitempty"`
	Entries []entryState `cbor:"10,keyasint,omitempty"`
	// Root says that a directory is in no other.
	Root bool `cbor:"11,keyasint,omitempty"`
}

type entryState struct {
	_      struct{} `cbor:",toarray"`
	Number uint64
	Name   string
	Ino    uint64
}

var (
	stateEnc = must(cbor.CoreDetEncOptions().EncMode())
	stateDec = must(cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		MaxNestedLevels:   8,
		MaxArrayElements:  MaxFiles,
		MaxMapPairs:       16,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// encode returns the tree as it travels, with everything in it named.
func (t *tree) encode() []byte {
	t.settleAll()
	all := t.ordered()
	s := treeState{Next: t.next, Nodes: make([]inodeState, 0, len(all))}
	for _, n := range all {
		is := inodeState{
			Ino: n.ino, Kind: n.kind, Atim: n.atim, Mtim: n.mtim, Ctim: n.ctim,
			Size: n.size, Target: n.target,
		}
		for _, c := range n.chunks {
			is.Indexes = append(is.Indexes, c.name[:]...)
		}
		if n.dir != nil {
			is.Next, is.Root = n.dir.next, n.dir.root
			is.Entries = make([]entryState, 0, len(n.dir.byName))
			for _, e := range n.dir.list {
				if e.node != nil {
					is.Entries = append(is.Entries, entryState{Number: e.number, Name: e.name, Ino: e.node.ino})
				}
			}
		}
		s.Nodes = append(s.Nodes, is)
	}
	// Nothing in it can fail to encode.
	return append([]byte{treeVersion}, must(stateEnc.Marshal(s))...)
}

// decode makes a new tree what b says, within t's limits and with t's store. The
// error says what in b no tree would have said. Whether all inodes are in use
// depends on the descriptors: see reached.
func (t *tree) decode(b []byte) (*tree, error) {
	if len(b) == 0 || len(b) > MaxTree {
		return nil, fmt.Errorf("%d bytes, want 1 to %d", len(b), MaxTree)
	}
	if b[0] != treeVersion {
		return nil, fmt.Errorf("version %d, this node knows %d: update it", b[0], treeVersion)
	}
	var s treeState
	if err := stateDec.Unmarshal(b[1:], &s); err != nil {
		return nil, err
	}
	if s.Next == 0 || s.Next > 1<<63 {
		return nil, fmt.Errorf("next inode %d", s.Next)
	}
	if len(s.Nodes) > t.limits.files {
		return nil, fmt.Errorf("%d files, at most %d", len(s.Nodes), t.limits.files)
	}
	d := newTree(t.store, t.limits)
	d.now = t.now
	d.next = s.Next
	d.inodes = make(map[uint64]*inode, len(s.Nodes))
	last := uint64(0)
	for i := range s.Nodes {
		is := &s.Nodes[i]
		if is.Ino <= last || is.Ino >= s.Next {
			return nil, fmt.Errorf("inode %d behind %d, before %d", is.Ino, last, s.Next)
		}
		last = is.Ino
		n, err := d.decodeNode(is)
		if err != nil {
			return nil, fmt.Errorf("inode %d: %w", is.Ino, err)
		}
		d.inodes[n.ino] = n
	}
	if d.bytes > d.limits.bytes || d.names.bytes > maxNameBytes {
		return nil, fmt.Errorf("%d bytes of files, %d of names: at most %d, %d", d.bytes, d.names.bytes, d.limits.bytes, maxNameBytes)
	}
	for i := range s.Nodes {
		if err := d.decodeEntries(&s.Nodes[i]); err != nil {
			return nil, fmt.Errorf("directory %d: %w", s.Nodes[i].Ino, err)
		}
	}
	if d.names.count > d.limits.files || d.names.bytes > maxNameBytes {
		return nil, fmt.Errorf("%d names of %d bytes", d.names.count, d.names.bytes)
	}
	return d, d.checkShape()
}

// decodeNode makes an inode, without a directory's entries.
func (t *tree) decodeNode(is *inodeState) (*inode, error) {
	n := &inode{ino: is.Ino, kind: is.Kind, atim: is.Atim, mtim: is.Mtim, ctim: is.Ctim}
	file := is.Size != 0 || len(is.Indexes) > 0
	link := is.Target != ""
	dir := is.Next != 0 || len(is.Entries) > 0 || is.Root
	switch {
	case is.Kind == filetypeRegular && !link && !dir:
		chunks := (is.Size + chunkBytes - 1) / chunkBytes
		if is.Size < 0 || is.Size > t.limits.bytes || int64(len(is.Indexes)) != chunks*hashSize {
			return nil, fmt.Errorf("%d bytes with %d bytes of indexes", is.Size, len(is.Indexes))
		}
		if t.bytes += is.Size; t.bytes > t.limits.bytes {
			return nil, fmt.Errorf("more than %d bytes of files", t.limits.bytes)
		}
		n.size = is.Size
		for b := is.Indexes; len(b) > 0; b = b[hashSize:] {
			n.chunks = append(n.chunks, &chunk{name: Hash(b)})
		}
	case is.Kind == filetypeSymlink && link && !file && !dir:
		if len(is.Target) > maxPath || checkText(is.Target) != success {
			return nil, errors.New("not a link's target")
		}
		n.target = is.Target
		t.names.bytes += len(n.target)
	case is.Kind == filetypeDirectory && !file && !link:
		if is.Next < firstEntry || is.Next > 1<<63 {
			return nil, fmt.Errorf("next entry %d", is.Next)
		}
		n.dir = &directory{
			byName: make(map[string]*entry, len(is.Entries)),
			list:   make([]*entry, 0, len(is.Entries)),
			next:   firstEntry, root: is.Root,
		}
	default:
		return nil, fmt.Errorf("of kind %d with what another kind has", is.Kind)
	}
	return n, nil
}

// decodeEntries fills a directory.
func (t *tree) decodeEntries(is *inodeState) error {
	dir := t.inodes[is.Ino]
	for _, e := range is.Entries {
		node := t.inodes[e.Ino]
		d := dir.dir
		switch {
		case e.Number < d.next || e.Number >= is.Next:
			return fmt.Errorf("entry %d, want %d to %d", e.Number, d.next, is.Next)
		case e.Name == "" || e.Name == "." || e.Name == ".." || len(e.Name) > maxName ||
			checkText(e.Name) != success || strings.Contains(e.Name, "/"):
			return fmt.Errorf("entry %d: not a name", e.Number)
		case d.byName[e.Name] != nil:
			return fmt.Errorf("entry %d: a name that another has", e.Number)
		case node == nil:
			return fmt.Errorf("entry %d: no inode %d", e.Number, e.Ino)
		case node.dir != nil && (node.links > 0 || node.dir.root), node.links >= maxLinks:
			return fmt.Errorf("entry %d: one too many for inode %d", e.Number, e.Ino)
		}
		d.next = e.Number
		t.link(dir, e.Name, node)
	}
	if dir.dir != nil {
		dir.dir.next = is.Next
	}
	return nil
}

// checkShape says whether every directory is below one without a parent, and
// those that were removed are empty.
func (t *tree) checkShape() error {
	var queue []*inode
	dirs := 0
	for _, n := range t.inodes {
		if n.dir == nil {
			continue
		}
		dirs++
		if n.dir.parent == nil {
			queue = append(queue, n)
			if !n.dir.root && len(n.dir.byName) > 0 {
				return fmt.Errorf("directory %d was removed and is not empty", n.ino)
			}
		}
	}
	for ; len(queue) > 0; queue = queue[1:] {
		dirs--
		for _, e := range queue[0].dir.list {
			if e.node.dir != nil {
				queue = append(queue, e.node)
			}
		}
	}
	if dirs != 0 {
		return fmt.Errorf("%d directories lie in one another", dirs)
	}
	return nil
}

// reached says whether something leads to every inode.
func (t *tree) reached() error {
	for _, n := range t.inodes {
		if n.links == 0 && n.opens == 0 {
			return fmt.Errorf("nothing leads to inode %d", n.ino)
		}
	}
	return nil
}
