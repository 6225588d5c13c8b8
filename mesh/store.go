package mesh

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/zeebo/blake3"
	bolt "go.etcd.io/bbolt"

	"meshnode/mesh/boltfile"
)

// A store is the node's mesh.db: the tokens it issued as authority and the
// peers it remembers. Safe for concurrent use.
type store struct {
	db *bolt.DB
}

var (
	bucketTokens = []byte("tokens")
	bucketPeers  = []byte("peers")
)

const (
	maxTokens     = 1024 // issued and not yet forgotten
	maxTokenUses  = 1000
	maxTokenTTL   = 10 * 365 * 24 * time.Hour
	maxRemembered = 256
	// tokenMemory is how long a token is remembered after its end, so that who
	// still uses it hears that it expired, and not that it never was.
	tokenMemory = 30 * 24 * time.Hour
)

func openStore(dir string) (*store, error) {
	path := filepath.Join(dir, storeFile)
	db, err := boltfile.Open(path)
	switch {
	case errors.Is(err, boltfile.ErrInUse):
		return nil, fmt.Errorf("open %s: another process holds it: is a daemon running on this directory?", path)
	case errors.Is(err, boltfile.ErrDamaged), errors.Is(err, boltfile.ErrForeign):
		return nil, fmt.Errorf("open %s: %w. Restore it from a copy, or move it away: then the tokens this node issued are forgotten, and the peers it knew", path, err)
	case err != nil:
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, b := range [][]byte{bucketTokens, bucketPeers} {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		db.Close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return &store{db: db}, nil
}

func (s *store) Close() error { return s.db.Close() }

// An issued token, under its id.
type issuedToken struct {
	Key     []byte `cbor:"1,keyasint"` // hash of the secret
	Expires int64  `cbor:"2,keyasint"` // Unix seconds
	Tier    uint8  `cbor:"3,keyasint"`
	Uses    int    `cbor:"4,keyasint"` // left
	// Redeemed are the ids of the nodes that used it, 26 characters each. A
	// node that asks again, because the answer got lost, spends nothing.
	Redeemed []string `cbor:"5,keyasint,omitempty"`
}

// putToken remembers a token just made, and forgets those long over.
func (s *store) putToken(t Token, uses int, now time.Time) error {
	k := t.key()
	v, err := encode(issuedToken{Key: k[:], Expires: t.Expires.Unix(), Tier: uint8(t.Tier), Uses: uses})
	if err != nil {
		return err
	}
	return s.db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketTokens)
		var old [][]byte
		n := 0
		err := b.ForEach(func(id, v []byte) error {
			var it issuedToken
			if err := decode(v, &it); err != nil || now.Sub(time.Unix(it.Expires, 0)) > tokenMemory {
				old = append(old, slices.Clone(id))
				return nil
			}
			n++
			return nil
		})
		if err != nil {
			return err
		}
		for _, id := range old {
			if err := b.Delete(id); err != nil {
				return err
			}
		}
		if n >= maxTokens {
			return fmt.Errorf("%d tokens were issued in the last %d days, no more are remembered",
				n, tokenMemory/(24*time.Hour))
		}
		return b.Put(t.id[:], v)
	})
}

// redeem spends one use of a token on node, unless node has had one already.
// It returns after the use is on disk, so that a certificate signed afterwards
// was paid for whatever crashes. The errors are [ErrTokenForged],
// [ErrTokenExpired] and [ErrTokenUsed]; only who knows the secret hears the
// last two.
func (s *store) redeem(id tokenID, csr, proof []byte, node NodeID, now time.Time) (Tier, error) {
	var tier Tier
	// Reading first keeps those who guess from making the disk sync.
	var known bool
	err := s.db.View(func(tx *bolt.Tx) error {
		it, key, err := getToken(tx, id)
		if err != nil {
			return err
		}
		// An unknown id costs the same work as a wrong secret, and gets the
		// same answer.
		if subtle.ConstantTimeCompare(key.proof(id, csr), proof) != 1 || it == nil {
			return ErrTokenForged
		}
		known = slices.Contains(it.Redeemed, string(node))
		tier = Tier(it.Tier)
		if !now.Before(time.Unix(it.Expires, 0)) {
			return ErrTokenExpired
		}
		return nil
	})
	if err != nil || known {
		return tier, err
	}
	return tier, s.db.Update(func(tx *bolt.Tx) error {
		it, _, err := getToken(tx, id)
		if err != nil {
			return err
		}
		if it == nil {
			return ErrTokenForged
		}
		if slices.Contains(it.Redeemed, string(node)) {
			return nil
		}
		if it.Uses <= 0 {
			return ErrTokenUsed
		}
		it.Uses--
		it.Redeemed = append(it.Redeemed, string(node))
		v, err := encode(it)
		if err != nil {
			return err
		}
		return tx.Bucket(bucketTokens).Put(id[:], v)
	})
}

// getToken returns the token called id, or nil and a key that proves nothing.
func getToken(tx *bolt.Tx, id tokenID) (*issuedToken, tokenKey, error) {
	var key tokenKey
	v := tx.Bucket(bucketTokens).Get(id[:])
	if v == nil {
		return nil, blake3.Sum256(id[:]), nil
	}
	var it issuedToken
	if err := decode(v, &it); err != nil {
		return nil, key, fmt.Errorf("token %s in %s: %w", id, storeFile, err)
	}
	if len(it.Key) != len(key) {
		return nil, key, fmt.Errorf("token %s in %s: %w", id, storeFile, ErrMalformed)
	}
	copy(key[:], it.Key)
	return &it, key, nil
}

// A rememberedPeer is where a member was, for the next start.
type rememberedPeer struct {
	Endpoints endpointList `cbor:"1,keyasint"`
	Seen      int64        `cbor:"2,keyasint"` // Unix seconds, own clock
}

// remember merges peers into what is remembered; the longest unseen are
// forgotten when there are too many.
func (s *store) remember(peers map[NodeID][]netip.AddrPort, now time.Time) error {
	if len(peers) == 0 {
		return nil
	}
	return s.db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketPeers)
		for id, eps := range peers {
			v, err := encode(rememberedPeer{Endpoints: eps, Seen: now.Unix()})
			if err != nil {
				return err
			}
			if err := b.Put([]byte(id), v); err != nil {
				return err
			}
		}
		type aged struct {
			id   []byte
			seen int64
		}
		var all []aged
		err := b.ForEach(func(id, v []byte) error {
			var p rememberedPeer
			if decode(v, &p) != nil {
				p.Seen = 0
			}
			all = append(all, aged{slices.Clone(id), p.Seen})
			return nil
		})
		if err != nil {
			return err
		}
		slices.SortFunc(all, func(a, b aged) int { return int(min(1, max(-1, a.seen-b.seen))) })
		for len(all) > maxRemembered {
			if err := b.Delete(all[0].id); err != nil {
				return err
			}
			all = all[1:]
		}
		return nil
	})
}

// remembered returns the peers remembered, skipping what does not decode.
func (s *store) remembered() (map[NodeID][]netip.AddrPort, error) {
	peers := make(map[NodeID][]netip.AddrPort)
	err := s.db.View(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketPeers).ForEach(func(k, v []byte) error {
			id, err := ParseNodeID(string(k))
			if err != nil {
				return nil
			}
			var p rememberedPeer
			if decode(v, &p) == nil {
				peers[id] = p.Endpoints
			}
			return nil
		})
	})
	return peers, err
}
