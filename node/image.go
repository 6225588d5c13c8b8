package node

import (
	"bytes"
	"errors"
	"fmt"

	"meshnode/node/runner"
)

// imageMagic opens an image: four letters and the version of what follows.
const (
	imageMagic   = "MNIM"
	imageVersion = 1
	// maxImage bounds an encoded image, in bytes: replies that have not
	// reached their senders, and a command's frames and streams, are the only
	// large parts.
	maxImage = 12 << 20
)

// An image is a frozen worker without its memory: what a node needs to
// continue it.
type image struct {
	Spec    spec           `cbor:"1,keyasint"`
	State   runner.State   `cbor:"2,keyasint"`
	Timers  []timerState   `cbor:"3,keyasint,omitempty"`
	Senders []senderCursor `cbor:"4,keyasint,omitempty"`
	Outbox  []outState     `cbor:"5,keyasint,omitempty"`
	Events  uint64         `cbor:"6,keyasint,omitempty"`
	Paused  bool           `cbor:"7,keyasint,omitempty"`
	// Layout is a pager.Layout: how large the memory is, and what of it need
	// not travel any more.
	Layout []byte `cbor:"8,keyasint"`
	// Lines are what a command worker has written behind its last line end, to
	// standard output and error.
	Lines [][]byte `cbor:"9,keyasint,omitempty"`
	// App is what it carries along of its app and its placement.
	App appState `cbor:"10,keyasint,omitzero"`
	// Origin is set if a guardian took the worker over.
	Origin origin `cbor:"11,keyasint,omitzero"`
	// Last says that the worker stood still from then on until it ended: what a
	// guardian goes on with is all that it did.
	Last bool `cbor:"12,keyasint,omitempty"`
}

// An origin is where a worker began that a guardian took over, without its state
// or from a checkpoint: sessions of before cannot go on with it, unless they have
// seen nothing later than that. The zero value is that of a worker that has been
// itself since it was made.
type origin struct {
	Epoch uint64 `cbor:"1,keyasint"`           // its first
	From  string `cbor:"2,keyasint,omitempty"` // name of the node that fell silent
	// Checkpoint says that it went on from one, Since the origin's epoch of the
	// worker in it: sessions last served before that have missed a whole life.
	Checkpoint bool   `cbor:"3,keyasint,omitempty"`
	Since      uint64 `cbor:"4,keyasint,omitempty"`
}

// encode returns the image as it travels: magic, version, CBOR.
func (img image) encode() ([]byte, error) {
	b := append([]byte(imageMagic), imageVersion)
	buf := bytes.NewBuffer(b)
	if err := encMode.NewEncoder(buf).Encode(img); err != nil {
		return nil, err
	}
	if buf.Len() > maxImage {
		return nil, fmt.Errorf("the worker's image is %d bytes, the limit is %d: its clients leave too many replies unread, or its program is too many calls deep",
			buf.Len(), maxImage)
	}
	return buf.Bytes(), nil
}

// parseImage decodes an image and checks what does not depend on the node.
func parseImage(b []byte) (image, error) {
	var img image
	if len(b) > maxImage {
		return img, fmt.Errorf("an image of %d bytes, the limit is %d", len(b), maxImage)
	}
	rest, ok := bytes.CutPrefix(b, []byte(imageMagic))
	if !ok || len(rest) == 0 {
		return img, errors.New("not an image of a worker")
	}
	if rest[0] != imageVersion {
		return img, fmt.Errorf("image version %d: this node reads version %d", rest[0], imageVersion)
	}
	if err := decMode.Unmarshal(rest[1:], &img); err != nil {
		return img, fmt.Errorf("image: %w", err)
	}
	if err := img.Spec.validate(); err != nil {
		return img, fmt.Errorf("image: %w", err)
	}
	if size := uint64(img.State.Pages) * runner.WasmPage; size > img.Spec.MemoryLimit {
		return img, fmt.Errorf("image: memory of %d bytes is over the worker's limit of %d", size, img.Spec.MemoryLimit)
	}
	if len(img.Origin.From) > 64 {
		return img, errors.New("image: the name of an earlier node is too long")
	}
	return img, nil
}
