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
