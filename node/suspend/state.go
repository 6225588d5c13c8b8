package suspend

import (
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// MaxStateBytes is the largest encoded State.
const MaxStateBytes = 1 << 28

// A State is all that a stopped program consists of but its memory and what its
// host keeps for it. It is encoded as CBOR (RFC 8949) with integer keys.
type State struct {
	// Version is that of the rewriter.
	Version int `cbor:"1,keyasint"`
	// Entry is the export in which the program has stopped; empty if it is not
	// running.
	Entry string `cbor:"2,keyasint,omitempty"`
	// Frames are the suspended calls, outermost first.
	Frames []Frame `cbor:"3,keyasint,omitempty"`
	// Globals are the values of Info.Globals, in that order.
	Globals []uint64 `cbor:"4,keyasint,omitempty"`
	// Hidden are the values of Program.Hidden, in that order: two units for a
	// vector, one for a reference.
	Hidden []uint64 `cbor:"5,keyasint,omitempty"`
	// Tables are the entries of Program.Tables, in that order: a function's
	// index plus one, or 0.
	Tables [][]uint32 `cbor:"6,keyasint,omitempty"`
}

var (
	stateDecoder = func() cbor.DecMode {
		d, err := cbor.DecOptions{
			DupMapKey:         cbor.DupMapKeyEnforcedAPF,
			ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
			IndefLength:       cbor.IndefLengthForbidden,
			TagsMd:            cbor.TagsForbidden,
			MaxNestedLevels:   4,
			MaxArrayElements:  MaxFrameUnits,
			MaxMapPairs:       16,
		}.DecMode()
		if err != nil {
			panic(err)
		}
		return d
	}()
	stateEncoder = func() cbor.EncMode {
		e, err := cbor.CoreDetEncOptions().EncMode()
		if err != nil {
			panic(err)
		}
		return e
	}()
)

// AppendBinary appends the state's encoding.
func (s *State) AppendBinary(b []byte) ([]byte, error) {
	e, err := stateEncoder.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode state: %w", err)
	}
	if len(e) > MaxStateBytes {
		return nil, fmt.Errorf("encode state: %d bytes, at most %d", len(e), MaxStateBytes)
	}
	return append(b, e...), nil
}

// ParseState decodes a state. It allocates memory in proportion to the bytes
// that are there; whether the state fits a program is for Check to say.
func ParseState(b []byte) (*State, error) {
	if len(b) > MaxStateBytes {
		return nil, fmt.Errorf("decode state: %d bytes, at most %d", len(b), MaxStateBytes)
	}
	s := new(State)
	if err := stateDecoder.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("decode state: %w", err)
	}
	return s, nil
}

// Check says whether the state can be one of the program.
func (s *State) Check(p *Program) error {
	if s.Version != Version {
		return fmt.Errorf("state of version %d of the rewriter, this is version %d: update the older node", s.Version, Version)
	}
	if len(s.Globals) != len(p.Info.Globals) {
		return fmt.Errorf("%d globals, the program has %d", len(s.Globals), len(p.Info.Globals))
	}
	for i, g := range p.Info.Globals {
		if (g.Type == typI32 || g.Type == typF32) && s.Globals[i] > 1<<32-1 {
			return fmt.Errorf("global %d has more than 32 bits", g.Index)
		}
	}
	hidden := s.Hidden
	for _, h := range p.Hidden {
		n := int(unitsOf(h.Type))
		if len(hidden) < n {
			return errors.New("too few values of hidden globals")
		}
		if h.Type == typFuncref && hidden[0] > uint64(len(p.typeOf)) {
			return fmt.Errorf("global %d refers to function %d of %d", h.Index, hidden[0]-1, len(p.typeOf))
		}
		hidden = hidden[n:]
	}
	if len(hidden) > 0 {
		return errors.New("too many values of hidden globals")
	}
	if len(s.Tables) != len(p.Tables) {
		return fmt.Errorf("%d tables that change, the program has %d", len(s.Tables), len(p.Tables))
	}
	for i, entries := range s.Tables {
		if len(entries) > maxTableSize {
			return fmt.Errorf("table %d has %d entries, at most %d", p.Tables[i], len(entries), maxTableSize)
		}
		for j, e := range entries {
			if uint64(e) > uint64(len(p.typeOf)) {
				return fmt.Errorf("table %d, entry %d refers to function %d of %d", p.Tables[i], j, e-1, len(p.typeOf))
			}
		}
	}
	return p.CheckFrames(s.Entry, s.Frames)
}

// SaveSizes and LoadSizes are the sizes, in units, in which there are imports
// save and load.
func SaveSizes() []int { return saveSizes[:] }

// LoadSizes is described with SaveSizes.
func LoadSizes() []int { return loadSizes[:] }
