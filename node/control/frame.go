package control

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A frame is the unit of a session's connection. Big endian:
//
//	type  uint8
//	len   uint32  // bytes of body, at most maxFrameBody
//	body  [len]byte
//
// From the client:
//
//	0x01 call    body: payload
//	0x02 send    body: payload
//	0x03 end     body: empty. No more messages; the server closes after the
//	             last reply
//
// From the server, one per message and in their order:
//
//	0x11 reply   body: status int32, payload
//	0x12 failed  body: failure. This message was not handled
//
// or in place of all further ones:
//
//	0x13 closed  body: failure. The session is over
//	0x14 done    body: empty. Every message is answered, after end
//
// where a failure is
//
//	code    uint8   // of an Error
//	msglen  uint16
//	msg     [msglen]byte
//	hint    the rest
//
// Type numbers are only ever appended.
type frame struct {
	kind frameKind
	body []byte
}

type frameKind uint8

const (
	frameCall   frameKind = 0x01
	frameSend   frameKind = 0x02
	frameEnd    frameKind = 0x03
	frameReply  frameKind = 0x11
	frameFailed frameKind = 0x12
	frameClosed frameKind = 0x13
	frameDone   frameKind = 0x14
)

const (
	frameHeader = 5
	// maxFrameBody leaves room for a reply's status before a full payload.
	maxFrameBody = 4 + MaxPayloadBytes
	// maxFailure bounds a failure's text, so that it stays a small frame.
	maxFailure = 4 << 10
)

// errFrame is wrapped by every error that a malformed frame causes.
var errFrame = errors.New("bad session frame")

// maxBody is the largest body of a kind of frame; ok is false for a kind that
// does not exist.
func (k frameKind) maxBody() (n int, ok bool) {
	switch k {
	case frameCall, frameSend:
		return MaxPayloadBytes, true
	case frameReply:
		return maxFrameBody, true
	case frameFailed, frameClosed:
		return maxFailure, true
	case frameEnd, frameDone:
		return 0, true
	}
	return 0, false
}

// appendFrame appends a frame whose body is the concatenation of parts.
func appendFrame(b []byte, kind frameKind, parts ...[]byte) []byte {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	b = append(b, byte(kind))
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

// readFrame reads one frame, checking its kind and length before it allocates
// the body. It returns io.EOF only where the stream ends between frames. A
// call or send beyond MaxPayloadBytes is an *Error with CodeTooLarge.
func readFrame(r io.Reader) (frame, error) {
	var head [frameHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return frame{}, err
	}
	f := frame{kind: frameKind(head[0])}
	limit, ok := f.kind.maxBody()
	if !ok {
		return frame{}, fmt.Errorf("%w: unknown type %#02x", errFrame, head[0])
	}
	n := binary.BigEndian.Uint32(head[1:])
	if uint64(n) > uint64(limit) {
		if f.kind == frameCall || f.kind == frameSend {
			return frame{}, payloadTooLarge(int64(n))
		}
		return frame{}, fmt.Errorf("%w: type %#02x with %d bytes, the limit is %d", errFrame, head[0], n, limit)
	}
	if n == 0 {
		return f, nil
	}
	f.body = make([]byte, n)
	if _, err := io.ReadFull(r, f.body); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return frame{}, err
	}
	return f, nil
}

// appendReply appends r as a reply or failed frame.
func appendReply(b []byte, r Reply) []byte {
	if r.Err != nil {
		return appendFrame(b, frameFailed, appendFailure(nil, r.Err))
	}
	var status [4]byte
	binary.BigEndian.PutUint32(status[:], uint32(r.Status))
	return appendFrame(b, frameReply, status[:], r.Payload)
}

// parseReply reads the body of a reply or failed frame.
func parseReply(f frame) (Reply, error) {
	switch f.kind {
	case frameReply:
		if len(f.body) < 4 {
			return Reply{}, fmt.Errorf("%w: reply of %d bytes", errFrame, len(f.body))
		}
		return Reply{Status: int32(binary.BigEndian.Uint32(f.body)), Payload: f.body[4:]}, nil
	case frameFailed:
		e, err := parseFailure(f.body)
		return Reply{Err: e}, err
	}
	return Reply{}, fmt.Errorf("%w: type %#02x where a reply was due", errFrame, uint8(f.kind))
}

// appendFailure appends e, its texts cut to fit maxFailure.
func appendFailure(b []byte, e *Error) []byte {
	msg, hint := e.Message, e.Hint
	if len(msg) > maxFailure/2 {
		msg = msg[:maxFailure/2]
	}
	if len(hint) > maxFailure/4 {
		hint = hint[:maxFailure/4]
	}
	num := codes[e.Code].num
	if num == 0 {
		num = codes[CodeFailed].num
	}
	b = append(b, num)
	b = binary.BigEndian.AppendUint16(b, uint16(len(msg)))
	b = append(b, msg...)
	return append(b, hint...)
}

func parseFailure(b []byte) (*Error, error) {
	if len(b) < 3 {
		return nil, fmt.Errorf("%w: failure of %d bytes", errFrame, len(b))
	}
	n := int(binary.BigEndian.Uint16(b[1:]))
	if n > len(b)-3 {
		return nil, fmt.Errorf("%w: failure text of %d bytes in %d", errFrame, n, len(b)-3)
	}
	// A number from a newer server is still a failure.
	e := &Error{Code: CodeFailed, Message: string(b[3 : 3+n]), Hint: string(b[3+n:])}
	for code, c := range codes {
		if c.num == b[0] {
			e.Code = code
		}
	}
	return e, nil
}

func payloadTooLarge(n int64) *Error {
	return tooLarge("payload", n, MaxPayloadBytes)
}

func tooLarge(what string, n, limit int64) *Error {
	e := &Error{Code: CodeTooLarge}
	if n > limit {
		e.Message = fmt.Sprintf("%s is %s, the limit is %s", what, FormatBytes(uint64(n)), FormatBytes(uint64(limit)))
	} else {
		e.Message = fmt.Sprintf("%s is over the limit of %s", what, FormatBytes(uint64(limit)))
	}
	return e
}

// FormatBytes writes n in the largest binary unit that keeps it at least one,
// with up to two decimals where they are needed to tell it from a round number: 1 MiB,
// 1.4 MiB, 512 B.
func FormatBytes(n uint64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	units := []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	v, u := float64(n)/1024, 0
	for v >= 1024 && u < len(units)-1 {
		v, u = v/1024, u+1
	}
	size := uint64(1) << (10 * (u + 1))
	if n%size == 0 {
		return fmt.Sprintf("%d %s", n/size, units[u])
	}
	s := fmt.Sprintf("%.1f", v)
	if s[len(s)-2:] == ".0" {
		// Near a round number without being it: "1.0 MiB, the limit is
		// 1 MiB" must not happen one byte above the limit.
		return fmt.Sprintf("%s %s (%d bytes)", s, units[u], n)
	}
	return s + " " + units[u]
}
