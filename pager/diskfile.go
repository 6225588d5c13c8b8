package pager

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
)

// The disk tier is two files. The slab has the pages, one to a slot of
// PageSize bytes, and the index a record for each slot. Both open with a head
// that fills the room of one page. Big endian:
//
//	magic    [16]byte  // "meshnode pages\r\n"
//	version  uint16    // 1
//	kind     uint16    // 1 slab, 2 index
//	page     uint32    // PageSize
//	pair     uint64    // random, the same in both
//	sum      uint32    // CRC-32C of all before it
//
// A record is all zero for a slot that is free, else:
//
//	name   [32]byte
//	stamp  uint64  // rises with every page written, and Close stamps all anew:
//	               // the order of use at a restart
//	sum    uint32  // CRC-32C of all before it, begun with the slot's number
//
// A page that is read is checked against its name, always. So nothing here
// has to be in order or whole for the right bytes to be served, nothing is
// ever synced, and a power failure costs pages of the last half minute. What
// the order of writes does see to (diskwriter.go) is that the end of the
// process alone costs nothing that was written.
const (
	slabFile  = "pages.slab"
	indexFile = "pages.index"
	lockFile  = "pages.lock"

	diskVersion = 1
	kindSlab    = 1
	kindIndex   = 2

	diskHead    = PageSize
	headFields  = 16 + 2 + 2 + 4 + 8
	recordBytes = 32 + 8 + 4

	// maxSlots bounds the tier at 256 GiB.
	maxSlots = 1 << 26

	// loadRecords are read at once: 704 KiB.
	loadRecords = 16 << 10
)

var diskMagic = [16]byte([]byte("meshnode pages\r\n"))

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var (
	// ErrInUse means that another process has the directory, or that this one
	// opened it twice.
	ErrInUse = errors.New("directory in use")
	// ErrForeign means a file that is not what its name says. It was left
	// alone.
	ErrForeign = errors.New("not a file of this program")
)

// A diskFile is what the tier does with its files once they are open.
type diskFile interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
}

// slotsFor is how many pages fit in files of limit bytes.
func slotsFor(limit int64) int64 {
	return max(limit-2*diskHead, 0) / (PageSize + recordBytes)
}

func slabAt(slot uint32) int64   { return diskHead + int64(slot)*PageSize }
func recordAt(slot uint32) int64 { return diskHead + int64(slot)*recordBytes }

func appendDiskHead(b []byte, kind uint16, pair uint64) []byte {
	at := len(b)
	b = append(b, diskMagic[:]...)
	b = binary.BigEndian.AppendUint16(b, diskVersion)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint32(b, PageSize)
	b = binary.BigEndian.AppendUint64(b, pair)
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b[at:], castagnoli))
	return append(b, make([]byte, diskHead-headFields-4)...)
}

// parseDiskHead returns what ties two files together. foreign says that the
// file is none of ours; without it, a file that is not ok may be replaced.
func parseDiskHead(b []byte, kind uint16) (pair uint64, ok, foreign bool) {
	magic := b[:min(len(b), len(diskMagic))]
	if !bytes.HasPrefix(diskMagic[:], magic) {
		// All zero is a file whose length reached the disk before its head.
		return 0, false, !bytes.Equal(magic, make([]byte, len(magic)))
	}
	if len(b) < headFields+4 || crc32.Checksum(b[:headFields], castagnoli) != binary.BigEndian.Uint32(b[headFields:]) {
		return 0, false, false
	}
	b = b[len(diskMagic):]
	if binary.BigEndian.Uint16(b) != diskVersion || binary.BigEndian.Uint16(b[2:]) != kind || binary.BigEndian.Uint32(b[4:]) != PageSize {
		return 0, false, false
	}
	return binary.BigEndian.Uint64(b[8:]), true, false
}

func appendRecord(b []byte, slot uint32, h *Hash, stamp uint64) []byte {
	at := len(b)
	b = append(b, h[:]...)
	b = binary.BigEndian.AppendUint64(b, stamp)
	return binary.BigEndian.AppendUint32(b, crc32.Update(slot, castagnoli, b[at:]))
}

// parseRecord returns what a slot has, and false if that is nothing, or not
// known any more.
func parseRecord(b []byte, slot uint32) (h Hash, stamp uint64, ok bool) {
	stamp = binary.BigEndian.Uint64(b[32:])
	if stamp == 0 || crc32.Update(slot, castagnoli, b[:40]) != binary.BigEndian.Uint32(b[40:]) {
		return h, 0, false
	}
	h = Hash(b)
	// The zero page is never written, and no stamp is so high that the next
	// would not be higher.
	return h, stamp, h != ZeroHash && stamp < math.MaxUint64>>1
}

// openFiles opens the tier's files, empties them if they are damaged or do not
// belong together, and cuts them to the given number of slots. empty, unless it
// is "", says why the files have nothing yet, not even heads, which the writer
// gives them: on a full disk that has to wait.
func openFiles(dir string, slots int64) (slab, index *os.File, empty string, err error) {
	defer func() {
		if err != nil {
			closeFiles(slab, index)
			slab, index = nil, nil
		}
	}()
	open := func(name string, kind uint16) (f *os.File, pair uint64, ok bool, err error) {
		f, err = os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, 0, false, err
		}
		head := make([]byte, headFields+4)
		n, err := f.ReadAt(head, 0)
		if err != nil && !errors.Is(err, io.EOF) {
			return f, 0, false, err
		}
		pair, ok, foreign := parseDiskHead(head[:n], kind)
		if foreign {
			return f, 0, false, fmt.Errorf("%s: %w: remove it or choose another directory", f.Name(), ErrForeign)
		}
		return f, pair, ok, nil
	}
	slab, slabPair, slabOK, err := open(slabFile, kindSlab)
	if err != nil {
		return slab, index, "", err
	}
	index, indexPair, indexOK, err := open(indexFile, kindIndex)
	if err != nil {
		return slab, index, "", err
	}
	switch {
	case !slabOK && !indexOK:
		empty = "no files yet, or both damaged"
	case !slabOK:
		empty = "slab missing or damaged"
	case !indexOK:
		empty = "index missing or damaged"
	case slabPair != indexPair:
		empty = "slab and index of two stores"
	default:
		return slab, index, "", errors.Join(
			truncate(slab, slabAt(uint32(slots))), truncate(index, recordAt(uint32(slots))))
	}
	return slab, index, empty, errors.Join(slab.Truncate(0), index.Truncate(0))
}

// truncate cuts a file that is longer than size.
func truncate(f *os.File, size int64) error {
	info, err := f.Stat()
	if err != nil || info.Size() <= size {
		return err
	}
	return f.Truncate(size)
}

func closeFiles(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// loadIndex reads the records into x, in the order of their use. top is the
// number of slots in use or free, free lists the latter, and stamp is the
// highest there is. pages is how many slots the slab has: what lies past its
// end is gone.
func loadIndex(r io.Reader, x *diskIndex, slots, pages uint32) (top uint32, free []uint32, stamp uint64, err error) {
	type entry struct {
		stamp uint64
		slot  uint32
	}
	var entries []entry
	buf := make([]byte, loadRecords*recordBytes)
	for top < slots {
		n, err := io.ReadFull(r, buf)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return 0, nil, 0, err
		}
		for b := buf[:n]; len(b) >= recordBytes && top < slots; b = b[recordBytes:] {
			h, s, ok := parseRecord(b, top)
			if ok && top < pages && x.place(&h, top) {
				entries = append(entries, entry{s, top})
			} else {
				free = append(free, top)
			}
			top++
		}
		if n < len(buf) {
			break
		}
	}
	slices.SortFunc(entries, func(a, b entry) int { return cmp.Compare(a.stamp, b.stamp) })
	for _, e := range entries {
		x.link(e.slot)
		stamp = e.stamp
	}
	return top, free, stamp, nil
}
