package pager

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/zeebo/blake3"
)

// Bases remember the page tables of workers that were here: of one that left
// or arrived, the last complete one. When the worker moves again, a page that is
// as it was then need not be named, if both ends have the same table:
// Table.Digest says whether they do.
//
// At most so many tables and bytes are kept, and those used longest ago are
// dropped. With a directory they lie there, a file each, which is replaced as
// a whole and checked when it is read; only who has one is kept in memory.
// Nothing is synced: what a power failure leaves behind is dropped when it is
// found, and costs a table told in full.
//
// Bases are safe for concurrent use. Put and Get may wait for the disk and
// have no place in a blackout.
type Bases struct {
	dir    string
	tables int
	bytes  int64
	lock   *os.File

	// files is held by who writes or removes files. It is taken before mu.
	files sync.Mutex

	mu   sync.Mutex
	of   map[string]*base
	last time.Time // the latest use
	size int64
}

type base struct {
	worker string
	digest [32]byte
	size   int64
	used   time.Time // also that of the file
	data   []byte    // without a directory: the file
}

// BasesConfig says what Bases may take. The zero value works.
type BasesConfig struct {
	// Dir is a directory that is made if it is missing and belongs to one
	// process at a time; it may be that of a Store. "" keeps the tables in
	// memory.
	Dir string
	// Tables is how many are kept, 0 for 64.
	Tables int
	// Bytes is what they may take, 0 for 64 MiB. A memory of 256 MiB without
	// holes has a table of 2 MiB.
	Bytes int64
}

// A base in a file of its own, named by the first half of the BLAKE3 of the
// worker's id in hexadecimal. Big endian:
//
//	magic    [16]byte  // "meshnode base\r\n\n"
//	version  uint16    // 1
//	pages    uint32    // of the table, at most MaxPages
//	digest   [32]byte  // of the table
//	size     uint8     // of the worker's id, 1 to 64
//	worker   [size]byte
//	sum      uint32    // CRC-32C of all before it
//	table    as Table.Append has it, to the end
const (
	basesLock   = "bases.lock"
	baseSuffix  = ".base"
	baseTemp    = "base.tmp" // one writer at a time
	baseVersion = 1

	baseFixed    = 16 + 2 + 4 + 32 + 1
	maxBaseHead  = baseFixed + maxWorkerBytes + 4
	maxBaseBytes = maxBaseHead + 5 + MaxPages*(5+32)
)

var baseMagic = [16]byte([]byte("meshnode base\r\n\n"))

var errBase = errors.New("file of a page table not valid")

// OpenBases finds what the directory has. The error wraps ErrInUse when
// another process has it.
func OpenBases(cfg BasesConfig) (*Bases, error) {
	if cfg.Tables < 0 || cfg.Bytes < 0 {
		return nil, fmt.Errorf("bases: %d tables of %d bytes: want none or more", cfg.Tables, cfg.Bytes)
	}
	b := &Bases{
		dir:    cfg.Dir,
		tables: cmp.Or(cfg.Tables, 64), bytes: cmp.Or(cfg.Bytes, 64<<20),
		of: make(map[string]*base),
	}
	if b.dir == "" {
		return b, nil
	}
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return nil, fmt.Errorf("open bases: %w", err)
	}
	lock, err := lockDir(b.dir, basesLock)
	if err != nil {
		return nil, fmt.Errorf("open bases: %w", err)
	}
	b.lock = lock
	if err := b.load(); err != nil {
		lock.Close()
		return nil, fmt.Errorf("open bases: %w", err)
	}
	return b, nil
}

// Close gives the directory back. Neither Put nor Get may be called after it.
func (b *Bases) Close() error {
	if b.lock == nil {
		return nil
	}
	return b.lock.Close()
}

// load lists the files. Those that are named as ours and are not are removed.
func (b *Bases) load() error {
	entries, err := os.ReadDir(b.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(b.dir, e.Name())
		if e.Name() == baseTemp {
			_ = os.Remove(path) // or it is written over
		}
		stem, ours := strings.CutSuffix(e.Name(), baseSuffix)
		if _, err := hex.DecodeString(stem); !ours || err != nil || len(stem) != 32 || !e.Type().IsRegular() {
			continue
		}
		info, err := e.Info()
		if err != nil {
			continue
		}
		h, err := readBaseHead(path)
		if err != nil || baseName(h.worker) != e.Name() {
			_ = os.Remove(path) // or it is found again at the next start
			continue
		}
		b.of[h.worker] = &base{worker: h.worker, digest: h.digest, size: info.Size(), used: info.ModTime()}
		b.size += info.Size()
		if info.ModTime().After(b.last) {
			b.last = info.ModTime()
		}
	}
	b.shrinkLocked()
	return nil
}

func readBaseHead(path string) (baseHead, error) {
	f, err := os.Open(path)
	if err != nil {
		return baseHead{}, err
	}
	defer f.Close()
	buf := make([]byte, maxBaseHead)
	n, err := io.ReadFull(f, buf)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return baseHead{}, err
	}
	h, _, err := parseBaseHead(buf[:n])
	return h, err
}

func baseName(worker string) string {
	h := blake3.Sum256([]byte(worker))
	return hex.EncodeToString(h[:16]) + baseSuffix
}

// Put remembers the table of a worker, whose id has 1 to 64 bytes, instead of
// the one before. The table must not have pages that are Unknown. After an
// error what was remembered before may still be.
func (b *Bases) Put(worker string, t *Table) error {
	if worker == "" || len(worker) > maxWorkerBytes {
		return fmt.Errorf("keep page table: worker id of %d bytes: want 1 to %d", len(worker), maxWorkerBytes)
	}
	if n := t.Count(Unknown); n > 0 {
		return fmt.Errorf("keep page table of %s: %d of %d pages are unknown: want all told", worker, n, t.Len())
	}
	data, digest := appendBase(nil, worker, t)
	e := &base{worker: worker, digest: digest, size: int64(len(data))}
	if e.size > b.bytes {
		return fmt.Errorf("keep page table of %s: %d bytes, at most %d for all", worker, e.size, b.bytes)
	}
	b.files.Lock()
	defer b.files.Unlock()
	if b.dir == "" {
		e.data = data
	} else if err := b.replace(worker, data); err != nil {
		return fmt.Errorf("keep page table of %s: %w", worker, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if old := b.of[worker]; old != nil {
		b.size -= old.size
	}
	b.of[worker] = e
	b.size += e.size
	b.touchLocked(e)
	b.shrinkLocked()
	return nil
}

func (b *Bases) path(worker string) string { return filepath.Join(b.dir, baseName(worker)) }

// replace writes a file as a whole: whoever reads, now or after a crash, finds
// the old one or the new.
func (b *Bases) replace(worker string, data []byte) error {
	temp := filepath.Join(b.dir, baseTemp)
	err := os.WriteFile(temp, data, 0o600)
	if err == nil {
		err = os.Rename(temp, b.path(worker))
	}
	if err != nil {
		_ = os.Remove(temp) // on a full disk its room is needed
	}
	return err
}

// shrinkLocked drops what was used longest ago until the rest is within the
// bounds. Its caller holds files too.
func (b *Bases) shrinkLocked() {
	for len(b.of) > b.tables || b.size > b.bytes {
		var oldest *base
		for _, e := range b.of { // few enough to look at all
			if oldest == nil || e.used.Before(oldest.used) {
				oldest = e
			}
		}
		b.removeLocked(oldest)
	}
}

func (b *Bases) removeLocked(e *base) {
	delete(b.of, e.worker)
	b.size -= e.size
	if b.dir != "" {
		_ = os.Remove(b.path(e.worker)) // or it is found again at the next start
	}
}

// touchLocked notes that e was used now, and after all others, whatever the
// clock says.
func (b *Bases) touchLocked(e *base) {
	e.used = time.Now()
	if next := b.last.Add(time.Microsecond); e.used.Before(next) {
		e.used = next
	}
	b.last = e.used
	if b.dir != "" {
		_ = os.Chtimes(b.path(e.worker), e.used, e.used) // or the order is another after a restart
	}
}

// Get returns a worker's base, which the caller owns.
func (b *Bases) Get(worker string) (*Table, bool) {
	b.mu.Lock()
	e, ok := b.of[worker]
	if !ok {
		b.mu.Unlock()
		return nil, false
	}
	b.touchLocked(e)
	b.mu.Unlock()

	data := e.data
	if b.dir != "" {
		var err error
		if data, err = readAtMost(b.path(worker), maxBaseBytes); err != nil {
			b.drop(e)
			return nil, false
		}
	}
	of, t, err := parseBase(data)
	if err != nil || of != worker {
		b.drop(e)
		return nil, false
	}
	return t, true
}

// readAtMost reads a file that is not longer than limit.
func readAtMost(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("%s: %d bytes, at most %d", path, info.Size(), limit)
	}
	return os.ReadFile(path)
}

// drop removes a base that could not be read, unless it has been replaced.
func (b *Bases) drop(e *base) {
	b.files.Lock()
	defer b.files.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.of[e.worker] == e {
		b.removeLocked(e)
	}
}

// Digest returns the Digest of a worker's base without reading it.
func (b *Bases) Digest(worker string) (digest [32]byte, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e, ok := b.of[worker]
	if !ok {
		return digest, false
	}
	return e.digest, true
}

type baseHead struct {
	worker string
	pages  int
	digest [32]byte
}

func appendBase(b []byte, worker string, t *Table) ([]byte, [32]byte) {
	table := t.Append(nil)
	digest := blake3.Sum256(table)
	at := len(b)
	b = append(b, baseMagic[:]...)
	b = binary.BigEndian.AppendUint16(b, baseVersion)
	b = binary.BigEndian.AppendUint32(b, uint32(t.Len()))
	b = append(b, digest[:]...)
	b = append(b, byte(len(worker)))
	b = append(b, worker...)
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b[at:], castagnoli))
	return append(b, table...), digest
}

func parseBaseHead(b []byte) (h baseHead, rest []byte, err error) {
	if len(b) < baseFixed {
		return h, nil, fmt.Errorf("%w: %w", errBase, errShort)
	}
	version := binary.BigEndian.Uint16(b[16:])
	pages := binary.BigEndian.Uint32(b[18:])
	size := int(b[54])
	switch {
	case !bytes.Equal(b[:16], baseMagic[:]) || version != baseVersion:
		return h, nil, fmt.Errorf("%w: magic %q, version %d", errBase, b[:16], version)
	case pages > MaxPages:
		return h, nil, fmt.Errorf("%w: %d pages, at most %d", errBase, pages, MaxPages)
	case size == 0 || size > maxWorkerBytes || len(b) < baseFixed+size+4:
		return h, nil, fmt.Errorf("%w: worker id of %d bytes in %d", errBase, size, len(b))
	}
	end := baseFixed + size
	if sum := crc32.Checksum(b[:end], castagnoli); sum != binary.BigEndian.Uint32(b[end:]) {
		return h, nil, fmt.Errorf("%w: head with a wrong sum", errBase)
	}
	return baseHead{string(b[baseFixed:end]), int(pages), [32]byte(b[22:])}, b[end+4:], nil
}

// parseBase decodes a whole file.
func parseBase(b []byte) (worker string, t *Table, err error) {
	h, table, err := parseBaseHead(b)
	if err != nil {
		return "", nil, err
	}
	if digest := blake3.Sum256(table); digest != h.digest {
		return "", nil, fmt.Errorf("%w: table with digest %x, want %x", errBase, digest, h.digest)
	}
	t, rest, err := ParseTable(table, h.pages)
	if err != nil {
		return "", nil, fmt.Errorf("%w: %w", errBase, err)
	}
	if n := t.Count(Unknown); n > 0 || len(rest) > 0 {
		return "", nil, fmt.Errorf("%w: %d unknown pages, %d bytes too many", errBase, n, len(rest))
	}
	return h.worker, t, nil
}
