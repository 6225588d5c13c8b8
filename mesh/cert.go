package mesh

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"time"

	"github.com/zeebo/blake3"
)

const (
	certBlock = "CERTIFICATE"

	// certLife is how long certificates hold. There is no renewal yet, and
	// short lives would put nodes out of the mesh that were switched off for
	// a season.
	certLife = 20 * 365 * 24 * time.Hour
	// certBackdate makes a fresh certificate acceptable to a node whose clock
	// is behind.
	certBackdate = 7 * 24 * time.Hour

	uriScheme    = "meshnode"
	uriNode      = "node:"
	uriTier      = "tier:"
	uriAuthority = "role:authority"
)

// A caPin names a mesh's CA: the BLAKE3 hash of its public key in PKIX form.
type caPin [32]byte

func pinOf(ca *x509.Certificate) caPin { return blake3.Sum256(ca.RawSubjectPublicKeyInfo) }

// meshIDOf returns the mesh's name, which follows from its CA.
func meshIDOf(ca *x509.Certificate) string { return shortHash(ca.RawSubjectPublicKeyInfo) }

// A peerCert is what a member's certificate says.
type peerCert struct {
	id        NodeID
	tier      Tier
	authority bool
}

func serialNumber() (*big.Int, error) {
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		return nil, err
	}
	b[0] &= 0x7f
	b[15] |= 1 // never zero
	return new(big.Int).SetBytes(b), nil
}

// newCA signs a CA certificate for key.
func newCA(key ed25519.PrivateKey, now time.Time) (*x509.Certificate, error) {
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "meshnode mesh " + shortHash(spki)},
		NotBefore:             now.Add(-certBackdate),
		NotAfter:              now.Add(certLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// issueCert signs the certificate of a member.
func issueCert(ca *x509.Certificate, caKey ed25519.PrivateKey, pub ed25519.PublicKey, p peerCert, now time.Time) ([]byte, error) {
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	uris := []*url.URL{
		{Scheme: uriScheme, Opaque: uriNode + string(p.id)},
		{Scheme: uriScheme, Opaque: uriTier + p.tier.String()},
	}
	if p.authority {
		uris = append(uris, &url.URL{Scheme: uriScheme, Opaque: uriAuthority})
	}
	notAfter := now.Add(certLife)
	if notAfter.After(ca.NotAfter) {
		notAfter = ca.NotAfter
	}
	t := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: string(p.id)},
		NotBefore:    now.Add(-certBackdate),
		NotAfter:     notAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs:         uris,
	}
	return x509.CreateCertificate(rand.Reader, t, ca, pub, caKey)
}

// verifyMember checks that leaf was signed by ca and says which member it
// belongs to. The error is [ErrForeignMesh] when another CA signed it.
func verifyMember(leaf, ca *x509.Certificate, now time.Time) (peerCert, error) {
	var p peerCert
	key, ok := leaf.PublicKey.(ed25519.PublicKey)
	if !ok {
		return p, fmt.Errorf("%w: certificate holds no Ed25519 key", ErrForeignMesh)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	// A device without a battery for its clock starts in 1970. The beginning
	// of a certificate's life protects nothing here, so a clock that is behind
	// it counts as being at it.
	if now.Before(leaf.NotBefore) {
		now = leaf.NotBefore
	}
	if now.Before(ca.NotBefore) {
		now = ca.NotBefore
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		var unknown x509.UnknownAuthorityError
		if errors.As(err, &unknown) {
			return p, fmt.Errorf("%w: certificate of %q is signed by %q", ErrForeignMesh,
				clip(leaf.Subject.CommonName, 64), clip(leaf.Issuer.CommonName, 64))
		}
		return p, fmt.Errorf("certificate of %q: %w", clip(leaf.Subject.CommonName, 64), err)
	}
	p.id = DeriveNodeID(key)
	if leaf.IsCA || leaf.Subject.CommonName != string(p.id) {
		return p, fmt.Errorf("%w: certificate is no member's: name %q, key of %s", ErrMalformed,
			clip(leaf.Subject.CommonName, 64), p.id)
	}
	for _, u := range leaf.URIs {
		if u.Scheme != uriScheme {
			continue
		}
		if s, ok := strings.CutPrefix(u.Opaque, uriNode); ok && s != string(p.id) {
			return p, fmt.Errorf("%w: certificate names node %q but holds the key of %s", ErrMalformed, clip(s, 64), p.id)
		}
		if s, ok := strings.CutPrefix(u.Opaque, uriTier); ok {
			if p.tier, err = ParseTier(s); err != nil {
				return p, err
			}
		}
		if u.Opaque == uriAuthority {
			p.authority = true
		}
	}
	if !p.tier.Valid() {
		return p, fmt.Errorf("%w: certificate of %s names no tier", ErrMalformed, p.id)
	}
	return p, nil
}

// verifyNode is verifyMember for whom only a node may be: a client's
// certificate is [ErrNotNode].
func verifyNode(leaf, ca *x509.Certificate, now time.Time) (peerCert, error) {
	p, err := verifyMember(leaf, ca, now)
	if err == nil && !p.tier.node() {
		err = fmt.Errorf("%w: %s is of tier %v", ErrNotNode, p.id, p.tier)
	}
	return p, err
}

// parseCA parses a CA certificate and checks that it is one and signed itself.
func parseCA(der []byte) (*x509.Certificate, error) {
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("%w: CA certificate: %v", ErrMalformed, err)
	}
	if _, ok := ca.PublicKey.(ed25519.PublicKey); !ok || !ca.IsCA {
		return nil, fmt.Errorf("%w: CA certificate is no Ed25519 CA", ErrMalformed)
	}
	if err := ca.CheckSignatureFrom(ca); err != nil {
		return nil, fmt.Errorf("%w: CA certificate: %v", ErrMalformed, err)
	}
	return ca, nil
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: certBlock, Bytes: der})
}

func readCert(path string) (*x509.Certificate, error) {
	b, err := readFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != certBlock {
		return nil, fmt.Errorf("%s: %w: no PEM block of type %q", path, ErrMalformed, certBlock)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %v", path, ErrMalformed, err)
	}
	return c, nil
}
