package store

import (
	"encoding/binary"
	"math/bits"
)

// The digests tell stores apart that differ by accident, in tests and
// experiments; they are no protection against malice. Cryptographic hashes
// were tried: BLAKE3 takes 8 s for 512 MiB under WebAssembly, during which the
// worker can neither answer nor move.

// A hash is four lanes of the accumulator of XXH64 (Yann Collet, xxHash fast
// digest algorithm), each of which takes every fourth word of 8 bytes. A lane's
// step is a bijection of the lane for any word, and of the word for any lane,
// so no change of a single word goes unnoticed.
type hash [4]uint64

const (
	prime1 = 0x9e3779b185ebca87
	prime2 = 0xc2b2ae3d27d4eb4f
	prime3 = 0x165667b19e3779f9
)

// sum hashes p. Different seeds give unrelated hashes.
func sum(seed uint64, p []byte) hash {
	a, b, c, d := seed+prime1, seed^prime2, seed+prime3, seed*prime1+prime2
	n := uint64(len(p))
	for len(p) >= 32 {
		a = bits.RotateLeft64(a+binary.LittleEndian.Uint64(p)*prime2, 31) * prime1
		b = bits.RotateLeft64(b+binary.LittleEndian.Uint64(p[8:])*prime2, 31) * prime1
		c = bits.RotateLeft64(c+binary.LittleEndian.Uint64(p[16:])*prime2, 31) * prime1
		d = bits.RotateLeft64(d+binary.LittleEndian.Uint64(p[24:])*prime2, 31) * prime1
		p = p[32:]
	}
	for i, x := range p {
		a = bits.RotateLeft64(a+(uint64(x)+uint64(i)<<8+1)*prime2, 31) * prime1
	}
	a = bits.RotateLeft64(a+n*prime2, 31) * prime1

	// Every lane gets to every word of the result, twice around.
	h := hash{a, b, c, d}
	for range 2 {
		for i := range h {
			h[i] = mix(h[i] + bits.RotateLeft64(h[(i+3)%4], 17)*prime3)
		}
	}
	return h
}

// mix is the output function of SplitMix64, a bijection.
func mix(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

func (h hash) bytes() (b [32]byte) {
	for i, x := range h {
		binary.LittleEndian.PutUint64(b[8*i:], x)
	}
	return b
}

// Digest names the content: the same entries have the same digest, wherever
// they are and however they came. It is the sum of the entries' hashes, hashed.
func (s *Store) Digest() [32]byte {
	var total hash
	s.Scan(0, func(k, v []byte) bool {
		// Key and value are one piece; the lengths tell where it is divided.
		h := sum(uint64(len(k))<<32|uint64(len(v)), k[:len(k)+len(v)])
		for i := range total {
			total[i] += h[i]
		}
		return true
	})
	b := total.bytes()
	return sum(uint64(s.used), b[:]).bytes()
}

// DigestArena is a hash of the store's memory as it is, every byte of it.
func (s *Store) DigestArena() [32]byte {
	return sum(0, s.arena).bytes()
}
