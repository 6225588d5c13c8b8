package suspend

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
)

// A Cache keeps rewritten programs in the directory of that name, which must be
// there, a file each: Options, the rewriter's Version and the module's hash make
// its name. It may be shared by processes. Whoever can write to it decides what
// programs do, as with a directory of compiled code.
type Cache string

// maxCached bounds the length of a cached program, in bytes.
const maxCached = 1 << 30

// cacheMagic opens a cached program; the SHA-256 of the rest follows.
const cacheMagic = "meshnode program"

// Rewrite is as the function Rewrite, but takes the program from the cache if it
// is there, and puts it there if not. A file that is damaged is replaced. A
// directory that cannot be read or written costs time, and nothing else.
func (c Cache) Rewrite(module []byte, o Options) (*Program, error) {
	path := c.path(module, o)
	if p, err := readProgram(path); err == nil {
		return p, nil
	}
	p, err := Rewrite(module, o)
	if err != nil {
		return nil, err
	}
	_ = writeProgram(path, p) // the next one rewrites it again
	return p, nil
}

func (c Cache) path(module []byte, o Options) string {
	h := sha256.New()
	fmt.Fprintf(h, "%+v\n", o)
	h.Write(module)
	return filepath.Join(string(c), fmt.Sprintf("program-%d-%x", Version, h.Sum(nil)))
}

func readProgram(path string) (*Program, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// Room for all of it at once, but only if it is believable.
	var b bytes.Buffer
	if i, err := f.Stat(); err == nil && i.Size() < maxCached {
		b.Grow(int(i.Size()) + bytes.MinRead)
	}
	if _, err := io.Copy(&b, io.LimitReader(f, maxCached+1)); err != nil {
		return nil, err
	}
	if b.Len() > maxCached {
		return nil, fmt.Errorf("%s: more than %d bytes", path, maxCached)
	}
	rest, ok := bytes.CutPrefix(b.Bytes(), []byte(cacheMagic))
	if !ok || len(rest) < sha256.Size {
		return nil, fmt.Errorf("%s: no cached program", path)
	}
	sum, rest := rest[:sha256.Size], rest[sha256.Size:]
	if got := sha256.Sum256(rest); !bytes.Equal(got[:], sum) {
		return nil, fmt.Errorf("%s: damaged", path)
	}
	return ParseProgram(rest)
}

// writeProgram replaces the file at once or not at all. It is not synced: after
// a crash its sum tells.
func writeProgram(path string, p *Program) (err error) {
	body := p.AppendBinary(nil)
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.tmp")
	if err != nil {
		return err
	}
	sum := sha256.Sum256(body)
	for _, b := range [][]byte{[]byte(cacheMagic), sum[:], body} {
		if err == nil {
			_, err = f.Write(b)
		}
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// AppendBinary appends the program's encoding, which holds for one Version of
// the rewriter: numbers as 4 bytes, little endian, and lists and text with their
// length in front.
func (p *Program) AppendBinary(b []byte) []byte {
	c := codec{out: b}
	c.program(p)
	return c.out
}

// ParseProgram decodes a program. It accepts nothing that would lead a Stack out
// of the program's descriptions, and takes memory in proportion to b; whether the
// module in it is what they describe is for whoever keeps the encoding to know.
func ParseProgram(b []byte) (p *Program, err error) {
	defer func() {
		switch e := recover().(type) {
		case nil:
		case *RefusedError:
			p, err = nil, fmt.Errorf("decode program: %s", e.Why)
		default:
			panic(e)
		}
	}()
	c := codec{in: &reader{b: b, end: len(b)}}
	p = &Program{exports: map[string]uint32{}}
	c.program(p)
	if n := c.in.left(); n > 0 {
		return nil, fmt.Errorf("decode program: %d bytes too many", n)
	}
	if err := p.index(); err != nil {
		return nil, fmt.Errorf("decode program: %w", err)
	}
	return p, nil
}

// A codec writes a program, or reads one: the same lines say what there is for
// both.
type codec struct {
	out []byte
	in  *reader // nil while writing
}

func (c *codec) program(p *Program) {
	i := &p.Info
	c.numbers(&i.MemoryMin, &i.MemoryMax)
	c.text(&i.Memory)
	c.text(&i.Start)
	c.flags(&i.Initialize, &i.Event, &i.Command)
	n := uint32(i.Functions)
	c.numbers(&n)
	i.Functions = int(n)
	list(c, &i.Globals, func(g *Global) { c.numbers(&g.Index); c.byte(&g.Type); c.text(&g.Export) })
	list(c, &i.Imports, func(i *Import) { c.text(&i.Module); c.text(&i.Name); c.text(&i.Type) })
	list(c, &i.Exports, func(e *Export) { c.text(&e.Name); c.text(&e.Kind); c.numbers(&e.Index) })
	list(c, &p.Tables, func(t *uint32) { c.numbers(t) })
	list(c, &p.Hidden, func(h *HiddenGlobal) { c.numbers(&h.Index); c.byte(&h.Type); c.text(&h.Export) })

	list(c, &p.functions, func(f *programFunction) {
		c.numbers(&f.index, &f.first, &f.points, &f.ways, &f.units)
		c.text(&f.results)
	})
	list(c, &p.points, func(t *programPoint) {
		c.byte((*byte)(&t.kind))
		c.flags(&t.indirect)
		c.numbers(&t.function, &t.callee, &t.results, &t.region, &t.target, &t.first, &t.values, &t.units)
	})
	list(c, &p.regions, func(r *programRegion) {
		parent := uint32(r.parent)
		c.numbers(&parent, &r.target, &r.depth)
		r.parent = int32(parent)
	})
	c.bytes(&p.types)
	list(c, &p.places, func(at *uint32) { c.numbers(at) })
	list(c, &p.typeOf, func(t *uint32) { c.numbers(t) })
	names := slices.Sorted(maps.Keys(p.exports))
	list(c, &names, func(name *string) {
		index := p.exports[*name]
		c.text(name)
		c.numbers(&index)
		if c.in != nil {
			p.exports[*name] = index
		}
	})
	if !slices.IsSorted(names) || len(names) != len(p.exports) {
		c.in.malformed("exports are out of order")
	}
	c.bytes(&p.Module)
}

func (c *codec) numbers(list ...*uint32) {
	for _, v := range list {
		if c.in != nil {
			*v = binary.LittleEndian.Uint32(c.in.bytes(4))
		} else {
			c.out = binary.LittleEndian.AppendUint32(c.out, *v)
		}
	}
}

func (c *codec) byte(v *byte) {
	if c.in != nil {
		*v = c.in.byte()
	} else {
		c.out = append(c.out, *v)
	}
}

func (c *codec) flags(list ...*bool) {
	for _, v := range list {
		var b byte
		if *v {
			b = 1
		}
		if c.byte(&b); b > 1 {
			c.in.malformed("a flag of %d", b)
		}
		*v = b == 1
	}
}

func (c *codec) bytes(v *[]byte) {
	n := c.length(len(*v))
	if c.in != nil {
		*v = c.in.bytes(n)
	} else {
		c.out = append(c.out, *v...)
	}
}

func (c *codec) text(v *string) {
	b := []byte(*v)
	c.bytes(&b)
	*v = string(b)
}

// length is a length, which when it is read is at most that of what is left.
func (c *codec) length(n int) uint32 {
	if n > math.MaxInt32 {
		panic("suspend: a program of more than 2 GiB")
	}
	u := uint32(n)
	if c.numbers(&u); c.in != nil && uint64(u) > uint64(c.in.left()) {
		c.in.malformed("%d entries announced in %d bytes", u, c.in.left())
	}
	return u
}

// list is a list of things of at least a byte each.
func list[T any](c *codec, v *[]T, each func(*T)) {
	n := c.length(len(*v))
	if c.in == nil {
		for i := range *v {
			each(&(*v)[i])
		}
		return
	}
	*v = nil
	for range n {
		var t T
		each(&t)
		*v = append(*v, t)
	}
}

// index completes a program that was decoded, and checks all that a Stack
// relies on.
func (p *Program) index() error {
	p.byIndex = make(map[uint32]uint32, len(p.functions))
	points, values := uint64(0), uint64(0)
	for i := range p.functions {
		f := &p.functions[i]
		if _, ok := p.byIndex[f.index]; ok || uint64(f.index) >= uint64(len(p.typeOf)) {
			return fmt.Errorf("function %d, which is there already or not at all", f.index)
		}
		p.byIndex[f.index] = uint32(i)
		if uint64(f.first) != points || uint64(f.points) > uint64(len(p.points))-points {
			return fmt.Errorf("function %d: points %d+%d of %d", f.index, f.first, f.points, len(p.points))
		}
		points += uint64(f.points)
		all := uint64(0)
		for j := range p.points[f.first:points] {
			t := &p.points[int(f.first)+j]
			if t.function != uint32(i) || t.kind > pointTail || uint64(t.first) != values || uint64(t.values) > uint64(len(p.types))-values {
				return fmt.Errorf("function %d, point %d: values %d+%d of %d", f.index, j, t.first, t.values, len(p.types))
			}
			values += uint64(t.values)
			if values > uint64(len(p.places)) {
				return fmt.Errorf("function %d, point %d: %d places", f.index, j, len(p.places))
			}
			units := uint32(0)
			for k, typ := range p.typesAt(t) {
				n := unitsOf(typ)
				units += n
				if at := p.places[int(t.first)+k]; uint64(at)+uint64(n) > uint64(f.units) {
					return fmt.Errorf("function %d, point %d: value %d at %d of %d", f.index, j, k, at, f.units)
				}
			}
			all += uint64(units)
			if units != t.units || t.results > units {
				return fmt.Errorf("function %d, point %d: %d units, %d of them results", f.index, j, t.units, t.results)
			}
			if uint64(t.region) >= uint64(len(p.regions)) || p.regions[t.region].depth >= f.ways {
				return fmt.Errorf("function %d, point %d: region %d", f.index, j, t.region)
			}
		}
		// A Stack makes room for these: each unit is one of some point's.
		if uint64(f.units) > all || uint64(f.ways) > uint64(len(p.regions)) {
			return fmt.Errorf("function %d: a frame of %d units and %d ways", f.index, f.units, f.ways)
		}
	}
	if points != uint64(len(p.points)) || values != uint64(len(p.types)) || values != uint64(len(p.places)) {
		return errors.New("more points or values than functions have")
	}
	for i, r := range p.regions {
		if r.parent < -1 || int(r.parent) >= i || r.parent >= 0 && p.regions[r.parent].depth >= r.depth {
			return fmt.Errorf("region %d in region %d", i, r.parent)
		}
	}
	p.noteTails()
	return nil
}
