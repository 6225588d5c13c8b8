package runner

import (
	"errors"
	"fmt"

	"meshnode/node/wasi"
)

// A Dir is a directory that a new command finds open.
type Dir struct {
	// Name is what the command knows it by, such as "/" or "/data".
	Name string `cbor:"1,keyasint"`
	// ReadOnly takes away the rights to change anything.
	ReadOnly bool `cbor:"2,keyasint,omitempty"`
}

// Blocks are the pages that a command's files are made of (package wasi). They
// are in the runner, by name, and travel beside its State.
const (
	// MaxBlocks bounds the blocks, and the names, of one request.
	MaxBlocks = 512
	// maxTreeState bounds the part of a State that is the tree of a command's
	// files, in bytes.
	maxTreeState = 2 << 20
	// maxFiles is how many files, directories and links a command may have.
	maxFiles = 8 << 10
)

// storedAsk, storedAre: the names of what is there from a place in the list on.
type storedAsk struct {
	At   wasi.Cursor `cbor:"1,keyasint"`
	Most int         `cbor:"2,keyasint"`
}

type storedAre struct {
	Names blockNames  `cbor:"1,keyasint,omitempty"`
	Next  wasi.Cursor `cbor:"2,keyasint"`
}

// missingAsk, missingAre: the names of what has yet to arrive, and how many
// there are in all.
type missingAsk struct {
	Most int `cbor:"1,keyasint"`
}

type missingAre struct {
	Names blockNames `cbor:"1,keyasint,omitempty"`
	All   int        `cbor:"2,keyasint,omitempty"`
}

// lookAsk asks what is at a path: of a directory the entries behind the name
// After, of a file the bytes from Offset on.
type lookAsk struct {
	Path   string `cbor:"1,keyasint,omitempty"`
	After  string `cbor:"2,keyasint,omitempty"`
	Offset int64  `cbor:"3,keyasint,omitempty"`
	Read   bool   `cbor:"4,keyasint,omitempty"`
}

// A Looked is what is at a path of a command's files.
type Looked struct {
	Info wasi.FileInfo `cbor:"1,keyasint"`
	// Entries are a directory's, ordered by name, at most MaxLooked.
	Entries []wasi.FileInfo `cbor:"2,keyasint,omitempty"`
	// Data is a part of a file, of at most MaxLookedBytes; empty at its end.
	Data []byte `cbor:"3,keyasint,omitempty"`
	// Wrong says what is wrong with the path, if it is not that nothing is
	// there; that is Absent.
	Wrong  string `cbor:"4,keyasint,omitempty"`
	Absent bool   `cbor:"5,keyasint,omitempty"`
}

// Limits of one Looked.
const (
	MaxLooked      = 1 << 10
	MaxLookedBytes = 256 << 10
)

type blocksAsk struct {
	Names blockNames `cbor:"1,keyasint"`
}

// blocks are as many as were asked for, an empty one for each that is not there.
type blocks struct {
	Blocks [][]byte `cbor:"1,keyasint"`
}

// blockNames are names one after the other.
type blockNames []byte

const nameBytes = len(wasi.Hash{})

func packNames(names []wasi.Hash) blockNames {
	b := make(blockNames, 0, len(names)*nameBytes)
	for i := range names {
		b = append(b, names[i][:]...)
	}
	return b
}

func (b blockNames) unpack(most int) ([]wasi.Hash, error) {
	if len(b)%nameBytes != 0 || len(b)/nameBytes > most {
		return nil, fmt.Errorf("%w: names in %d bytes, at most %d", errFrame, len(b), most)
	}
	names := make([]wasi.Hash, len(b)/nameBytes)
	for i := range names {
		names[i] = wasi.Hash(b[i*nameBytes:])
	}
	return names, nil
}

// check says whether b can be the blocks of so many names.
func (b *blocks) check(names int) error {
	if len(b.Blocks) != names {
		return fmt.Errorf("%w: %d blocks for %d names", errFrame, len(b.Blocks), names)
	}
	for _, data := range b.Blocks {
		if len(data) > wasi.PageSize {
			return fmt.Errorf("%w: block of %d bytes", errFrame, len(data))
		}
	}
	return nil
}

var errBlockLost = errors.New("nobody has the block")
