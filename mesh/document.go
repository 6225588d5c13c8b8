package mesh

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"
)

// Documents are fetched by digest:
//
//	caller -> documentRequest
//	       <- documentReply
const protoDocument = "mesh/document"

type documentRequest struct {
	Digest []byte `cbor:"1,keyasint"`
}

type documentReply struct {
	// Found is false when the callee's document has changed several times since.
	Found bool   `cbor:"1,keyasint"`
	Body  []byte `cbor:"2,keyasint,omitempty"`
}

const (
	documentTimeout = 30 * time.Second
	// keptDocuments is how many documents of its own a node gives to those who
	// ask: the caller's record may be some changes behind, and a member that is
	// alive must not seem to have no document for that.
	keptDocuments = 4
)

func (m *Mesh) serveDocument(ctx context.Context, s *Stream) {
	s.SetDeadline(time.Now().Add(documentTimeout))
	var req documentRequest
	if err := ReadMessage(s, 128, &req); err != nil {
		return
	}
	m.mu.Lock()
	documents := slices.Clone(m.documents)
	m.mu.Unlock()
	var r documentReply
	for _, doc := range documents {
		if d := digestOf(doc); len(doc) > 0 && string(d[:]) == string(req.Digest) {
			r = documentReply{Found: true, Body: doc}
			break
		}
	}
	if err := WriteMessage(s, r); err != nil {
		m.log.Debug("document not sent", "peer", s.Peer(), "err", err)
	}
}

// Document returns the capability document of a member, which is what its
// record's digest says or an error: [ErrNoDocument] when it advertises none,
// [ErrUnknownPeer] when it is no member.
func (m *Mesh) Document(ctx context.Context, id NodeID) ([]byte, error) {
	mem, ok := m.Member(id)
	if !ok {
		return nil, fmt.Errorf("%w: %s", ErrUnknownPeer, clip(string(id), idChars))
	}
	want := mem.Record.DocumentDigest
	if want == ([32]byte{}) {
		return nil, fmt.Errorf("document of %s: %w", id, ErrNoDocument)
	}
	if id == m.ms.ID {
		m.mu.Lock()
		defer m.mu.Unlock()
		return bytes.Clone(m.documents[0]), nil
	}
	var r documentReply
	err := m.t.request(ctx, id, protoDocument, Urgent, func(s *Stream) error {
		s.SetDeadline(time.Now().Add(documentTimeout))
		if ctx.Err() != nil {
			return ctx.Err() // its deadline has just been overwritten
		}
		if err := WriteMessage(s, documentRequest{Digest: want[:]}); err != nil {
			return err
		}
		return ReadMessage(s, maxDocument+64, &r)
	})
	if err != nil {
		return nil, fmt.Errorf("document of %s: %w", id, err)
	}
	if !r.Found {
		return nil, fmt.Errorf("document of %s: %w by that digest any more; its record will follow", id, ErrNoDocument)
	}
	if got := digestOf(r.Body); got != want {
		return nil, fmt.Errorf("document of %s: %w: it hashes to %x, its record says %x", id, ErrMalformed, got[:8], want[:8])
	}
	return r.Body, nil
}
