package mesh

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// A Membership says which mesh a node's directory belongs to.
type Membership struct {
	// MeshID names the mesh: the first 16 bytes of the BLAKE3 hash of its CA's
	// public key, in the letters of a node id.
	MeshID string
	ID     NodeID
	Tier   Tier
	// Authority says that the directory holds the CA's key.
	Authority bool
	// Expires is when the node's certificate ends.
	Expires time.Time

	identity *Identity
	ca       *x509.Certificate
	caKey    ed25519.PrivateKey // nil except at the authority
	cert     *x509.Certificate
}

// tlsCertificate returns the chain this node presents: its own certificate and
// the CA's, which a node that joins compares with its token's pin.
func (m *Membership) tlsCertificate() tls.Certificate {
	return tls.Certificate{
		Certificate: [][]byte{m.cert.Raw, m.ca.Raw},
		PrivateKey:  m.identity.key,
		Leaf:        m.cert,
	}
}

// FoundConfig says how to found a mesh.
type FoundConfig struct {
	// Dir is the node's directory.
	Dir string
	// Tier is the founding node's tier. Zero means [Device].
	Tier Tier
}

// Found makes a mesh whose only member, and authority, is the node in
// cfg.Dir; it makes the node's identity if there is none. The error is
// [ErrHaveMesh] when the node is in a mesh already.
func Found(cfg FoundConfig) (*Membership, error) {
	if cfg.Tier == 0 {
		cfg.Tier = Device
	}
	if !cfg.Tier.node() {
		return nil, fmt.Errorf("found mesh: %w: %v", ErrMalformed, cfg.Tier)
	}
	id, err := prepareDir(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("found mesh: %w", err)
	}
	now := time.Now()
	pub, caKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("found mesh: %w", err)
	}
	ca, err := newCA(caKey, now)
	if err != nil {
		return nil, fmt.Errorf("found mesh: sign %x: %w", pub, err)
	}
	der, err := issueCert(ca, caKey, id.PublicKey(), peerCert{id: id.id, tier: cfg.Tier, authority: true}, now)
	if err != nil {
		return nil, fmt.Errorf("found mesh: %w", err)
	}
	// Without node.crt there is no membership, so a CA key that is here is
	// what a crash left of an earlier attempt, and nobody was enrolled with it.
	if err := writeKey(filepath.Join(cfg.Dir, caKeyFile), caKey, false); err != nil {
		return nil, fmt.Errorf("found mesh: %w", err)
	}
	if err := storeMembership(cfg.Dir, ca.Raw, der); err != nil {
		return nil, fmt.Errorf("found mesh: %w", err)
	}
	return LoadMembership(cfg.Dir)
}

// prepareDir makes dir and the identity in it, and checks that there is no
// membership.
func prepareDir(dir string) (*Identity, error) {
	if dir == "" {
		return nil, errors.New("no directory given")
	}
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	have, err := HasMembership(dir)
	if err != nil {
		return nil, err
	}
	if have {
		return nil, fmt.Errorf("%s: %w: leave it first", dir, ErrHaveMesh)
	}
	return EnsureIdentity(dir)
}

// storeMembership writes the certificates, the node's own last and never over
// another: its presence is what makes the node a member.
func storeMembership(dir string, caDER, certDER []byte) error {
	if err := writeFile(filepath.Join(dir, caCertFile), encodeCert(caDER), 0o644, false); err != nil {
		return err
	}
	err := writeFile(filepath.Join(dir, certFile), encodeCert(certDER), 0o644, true)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s: %w", dir, ErrHaveMesh)
	}
	return err
}

// HasMembership reports whether the node in dir is in a mesh, without checking
// that its files are sound.
func HasMembership(dir string) (bool, error) {
	_, err := os.Stat(filepath.Join(dir, certFile))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// LoadMembership reads and checks the membership in dir. The error is
// [ErrNoMesh] when there is none.
func LoadMembership(dir string) (*Membership, error) {
	cert, err := readCert(filepath.Join(dir, certFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", dir, ErrNoMesh)
	}
	if err != nil {
		return nil, err
	}
	id, err := LoadIdentity(dir)
	if err != nil {
		return nil, err
	}
	caRaw, err := readCert(filepath.Join(dir, caCertFile))
	if err != nil {
		return nil, err
	}
	ca, err := parseCA(caRaw.Raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, caCertFile), err)
	}
	p, err := verifyMember(cert, ca, time.Now())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, certFile), err)
	}
	if p.id != id.id {
		return nil, fmt.Errorf("%s: %w: certificate is of node %s, key of %s: one of them was replaced",
			filepath.Join(dir, certFile), ErrMalformed, p.id, id.id)
	}
	m := &Membership{
		MeshID: meshIDOf(ca), ID: id.id, Tier: p.tier, Expires: cert.NotAfter,
		identity: id, ca: ca, cert: cert,
	}
	if p.authority {
		m.caKey, err = readKey(filepath.Join(dir, caKeyFile))
		if err != nil {
			return nil, fmt.Errorf("this node is its mesh's authority, but: %w", err)
		}
		if !m.caKey.Public().(ed25519.PublicKey).Equal(ca.PublicKey) {
			return nil, fmt.Errorf("%s: %w: not the key of the mesh's CA", filepath.Join(dir, caKeyFile), ErrMalformed)
		}
		m.Authority = true
	}
	return m, nil
}

// RemoveMembership makes the node in dir forget its mesh; its identity stays.
// No [Mesh] may be running on dir. Removing the authority's membership takes
// the CA key with it: nobody can be enrolled in that mesh any more.
func RemoveMembership(dir string) error {
	// In the reverse of the order in which they were written: a crash in
	// between leaves no membership.
	for _, name := range [...]string{certFile, caCertFile, caKeyFile, storeFile} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove membership: %w", err)
		}
	}
	return SyncDir(dir)
}

// stageDir is where a membership waits to take another's place.
const stageDir = "joining"

// stage makes an empty stage with the node's own identity and returns its
// directory.
func stage(dir string) (string, error) {
	id, err := LoadIdentity(dir)
	if err != nil {
		return "", err
	}
	staged := filepath.Join(dir, stageDir)
	if err := os.RemoveAll(staged); err != nil {
		return "", err
	}
	if err := makeDir(staged); err != nil {
		return "", err
	}
	return staged, writeKey(filepath.Join(staged, identityFile), id.key, true)
}

// AdoptStaged puts a staged membership (see [EnrolConfig]) in the place of the
// one in dir and reports whether there was one. No [Mesh] may be running on
// dir. After a crash in between it is called again and goes on.
func AdoptStaged(dir string) (bool, error) {
	staged := filepath.Join(dir, stageDir)
	have, err := HasMembership(staged)
	if err != nil || !have {
		return false, err
	}
	// Without a certificate in dir the old membership is gone already, and
	// what else is there may be the new one's.
	if old, err := HasMembership(dir); err != nil {
		return false, err
	} else if old {
		if err := RemoveMembership(dir); err != nil {
			return false, err
		}
	}
	// The certificate comes last: until it has moved, the stage is what holds.
	for _, name := range [...]string{storeFile, caCertFile, certFile} {
		err := os.Rename(filepath.Join(staged, name), filepath.Join(dir, name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return false, fmt.Errorf("adopt membership: %w", err)
		}
	}
	if err := SyncDir(dir); err != nil {
		return false, err
	}
	return true, os.RemoveAll(staged)
}
