package mesh

import (
	"errors"
	"fmt"
)

var (
	// ErrNoMesh means that the directory holds no membership: found a mesh or
	// join one first.
	ErrNoMesh = errors.New("this node is in no mesh yet")

	// ErrHaveMesh means that the directory already holds a membership, which
	// founding or joining would overwrite.
	ErrHaveMesh = errors.New("this node is already in a mesh")

	// ErrNoIdentity means that the directory holds no node key.
	ErrNoIdentity = errors.New("no identity")

	// ErrHaveIdentity means that a node key exists and was left alone.
	ErrHaveIdentity = errors.New("identity exists already")

	// ErrInsecureKey means that others may read a private key, so it may not
	// be private any more.
	ErrInsecureKey = errors.New("private key is readable by others")

	// ErrNotAuthority means that only the node that founded the mesh, which
	// holds its CA key, can do this.
	ErrNotAuthority = errors.New("this node is not the authority of its mesh")

	// ErrTokenMalformed means that a string is no join token at all.
	ErrTokenMalformed = errors.New("not a join token")

	// ErrTokenForged means that the mesh's authority never issued this token,
	// or issued it with another secret: it does not say which.
	ErrTokenForged = errors.New("token is not valid in this mesh")

	// ErrTokenUsed means that the token's last use has been spent.
	ErrTokenUsed = errors.New("token is used up")

	// ErrTokenExpired means that the token's time is over, by the authority's
	// clock.
	ErrTokenExpired = errors.New("token has expired")

	// ErrForeignMesh means that the other side belongs to another mesh: its
	// certificates are not signed by the CA this side trusts, or the other
	// way round.
	ErrForeignMesh = errors.New("the other side belongs to another mesh")

	// ErrNotNode means that a certificate of this mesh is a client's, where a
	// node's is needed.
	ErrNotNode = errors.New("the certificate is a client's, not a node's")

	// ErrNotMesh means that something answered which does not speak the
	// meshnode protocols.
	ErrNotMesh = errors.New("the other side does not speak meshnode")

	// ErrBusy means that the other side has too much of this to do at the
	// moment; try again later.
	ErrBusy = errors.New("the other side is busy, try again later")

	// ErrAuthorityUnreachable means that a member was reached which could not
	// pass the request on to the mesh's authority.
	ErrAuthorityUnreachable = errors.New("the mesh's authority cannot be reached at the moment")

	// ErrRefused means that the other side refused a request it understood;
	// the text around it says why.
	ErrRefused = errors.New("refused")

	// ErrUnknownPeer means that nothing is known about a node id: no member,
	// no remembered peer.
	ErrUnknownPeer = errors.New("unknown node")

	// ErrUnreachable means that a known node could not be reached at any of
	// its endpoints, or that the connection to it broke.
	ErrUnreachable = errors.New("node unreachable")

	// ErrNotTaken means that the peer, which had no use for the connection, closed
	// it before it had seen anything of a stream: whatever was asked on it may be
	// asked again. It comes together with ErrUnreachable.
	ErrNotTaken = errors.New("the stream was not taken")

	// ErrWrongPeer means that the node that answered is not the one that was
	// called.
	ErrWrongPeer = errors.New("another node answered")

	// ErrUnknownProtocol means that the peer has no handler for a stream's
	// protocol.
	ErrUnknownProtocol = errors.New("peer does not know this protocol")

	// ErrClosed means that the mesh has stopped.
	ErrClosed = errors.New("mesh is closed")

	// ErrTooLarge means that a message is longer than the limit set for it.
	ErrTooLarge = errors.New("message too large")

	// ErrMalformed means that bytes from outside do not follow their format.
	ErrMalformed = errors.New("malformed")

	// ErrNoDocument means that a node advertises no capability document.
	ErrNoDocument = errors.New("node advertises no document")
)

// A ResetError says that the peer reset a stream, with the code it gave. See
// [Stream.Reset].
type ResetError struct {
	Code uint64
}

func (e *ResetError) Error() string { return fmt.Sprintf("stream reset by peer (code %d)", e.Code) }
