package mesh

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/fxamacker/cbor/v2"
)

// maxMessage bounds what [WriteMessage] will send, in bytes.
const maxMessage = 16 << 20

// The decoder refuses what the encoder never produces. String lengths need no
// limit of their own: a frame's length is bounded before it is decoded, and a
// string is never longer than its frame.
var (
	cborEnc = func() cbor.EncMode {
		o := cbor.CoreDetEncOptions()
		em, err := o.EncMode()
		if err != nil {
			panic(err) // our own options
		}
		return em
	}()
	cborDec = func() cbor.DecMode {
		dm, err := cbor.DecOptions{
			DupMapKey:         cbor.DupMapKeyEnforcedAPF,
			IndefLength:       cbor.IndefLengthForbidden,
			TagsMd:            cbor.TagsForbidden,
			MaxNestedLevels:   8,
			MaxArrayElements:  1 << 17,
			MaxMapPairs:       1 << 12,
			ExtraReturnErrors: cbor.ExtraDecErrorNone, // later versions append keys
		}.DecMode()
		if err != nil {
			panic(err) // our own options
		}
		return dm
	}()
)

// WriteMessage writes v in CBOR with its length in front:
//
//	length  uint32  // big endian, of what follows
//	body    CBOR    // core deterministic encoding (RFC 8949, 4.2.1)
//
// in one call of w.Write.
func WriteMessage(w io.Writer, v any) error {
	var buf bytes.Buffer
	buf.Write([]byte{0, 0, 0, 0})
	if err := cborEnc.NewEncoder(&buf).Encode(v); err != nil {
		return fmt.Errorf("encode %T: %w", v, err)
	}
	b := buf.Bytes()
	if len(b)-4 > maxMessage {
		return fmt.Errorf("encode %T: %w: %d bytes, at most %d", v, ErrTooLarge, len(b)-4, maxMessage)
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	_, err := w.Write(b)
	return err
}

// ReadMessage reads one message written by [WriteMessage] into v. A message of
// more than max bytes is refused with [ErrTooLarge] before any of it is read;
// one that does not decode with [ErrMalformed]. A stream that ends before the
// first byte gives io.EOF, one that ends later io.ErrUnexpectedEOF.
func ReadMessage(r io.Reader, max int, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if int64(n) > int64(max) {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, n, max)
	}
	// The length is the peer's claim: memory follows the bytes that arrive.
	var buf bytes.Buffer
	if _, err := io.CopyN(&buf, r, int64(n)); err != nil {
		if errors.Is(err, io.EOF) {
			return io.ErrUnexpectedEOF
		}
		return err
	}
	return decode(buf.Bytes(), v)
}

// decode decodes b, whose length the caller has bounded, into v.
func decode(b []byte, v any) error {
	if err := cborDec.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: %T: %v", ErrMalformed, v, err)
	}
	return nil
}

func encode(v any) ([]byte, error) {
	b, err := cborEnc.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", v, err)
	}
	return b, nil
}
