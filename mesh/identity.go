package mesh

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// The files of a node's directory.
const (
	identityFile = "node.key" // private: what makes this node this node
	certFile     = "node.crt" // written last; its presence means membership
	caCertFile   = "ca.crt"
	caKeyFile    = "ca.key" // private: only at the authority
	storeFile    = "mesh.db"
)

// An Identity is a node's Ed25519 key.
type Identity struct {
	key ed25519.PrivateKey
	id  NodeID
}

// ID returns the node id that follows from the key.
func (i *Identity) ID() NodeID { return i.id }

// PublicKey returns the public half.
func (i *Identity) PublicKey() ed25519.PublicKey { return i.key.Public().(ed25519.PublicKey) }

// CreateIdentity makes a new key in dir, which it creates if need be: file
// node.key, PKCS #8 in PEM, readable by the owner alone. A key that is there
// already is never overwritten: [ErrHaveIdentity].
func CreateIdentity(dir string) (*Identity, error) {
	if err := makeDir(dir); err != nil {
		return nil, fmt.Errorf("create identity: %w", err)
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("create identity: %w", err)
	}
	path := filepath.Join(dir, identityFile)
	err = writeKey(path, key, true)
	if errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("%s: %w", path, ErrHaveIdentity)
	}
	if err != nil {
		return nil, fmt.Errorf("create identity: %w", err)
	}
	return &Identity{key: key, id: DeriveNodeID(key.Public().(ed25519.PublicKey))}, nil
}

// LoadIdentity reads the key in dir. The error is [ErrNoIdentity] when there
// is none and [ErrInsecureKey] when others could read it.
func LoadIdentity(dir string) (*Identity, error) {
	path := filepath.Join(dir, identityFile)
	key, err := readKey(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", path, ErrNoIdentity)
	}
	if err != nil {
		return nil, err
	}
	return &Identity{key: key, id: DeriveNodeID(key.Public().(ed25519.PublicKey))}, nil
}

// EnsureIdentity loads the key in dir, or makes it when there is none.
func EnsureIdentity(dir string) (*Identity, error) {
	i, err := LoadIdentity(dir)
	if !errors.Is(err, ErrNoIdentity) {
		return i, err
	}
	i, err = CreateIdentity(dir)
	if errors.Is(err, ErrHaveIdentity) {
		return LoadIdentity(dir) // someone else was faster
	}
	return i, err
}

const keyBlock = "PRIVATE KEY"

func writeKey(path string, key ed25519.PrivateKey, exclusive bool) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return writeFile(path, pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der}), 0o600, exclusive)
}

func readKey(path string) (ed25519.PrivateKey, error) {
	b, err := readPrivate(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != keyBlock {
		return nil, fmt.Errorf("%s: %w: no PEM block of type %q", path, ErrMalformed, keyBlock)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %v", path, ErrMalformed, err)
	}
	key, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: %w: holds a %T, not an Ed25519 key", path, ErrMalformed, k)
	}
	return key, nil
}
