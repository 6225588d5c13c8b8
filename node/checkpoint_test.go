package node

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"meshnode/pager"
)

// sampleCheckpoint is one with some of everything, and, if it is large, with more
// than a record holds.
func sampleCheckpoint(tb testing.TB, large bool) []byte {
	tb.Helper()
	var b bytes.Buffer
	c, err := newCheckpointWriter(&b)
	if err != nil {
		tb.Fatal(err)
	}
	img := sampleImage()
	img.Senders, img.Outbox = nil, nil
	img.Spec.ID, img.Spec.MemoryLimit = strings.Repeat("a", 26), 256<<20
	head, err := img.encode()
	if err != nil {
		tb.Fatal(err)
	}
	memory := make([]byte, 200*pager.PageSize)
	for _, page := range []int{0, 1, 5, 199} {
		memory[page*pager.PageSize+7] = byte(page + 1)
	}
	module := "module"
	if large {
		module = strings.Repeat(module, 50_000)
		for page := 50; page < 150; page++ {
			memory[page*pager.PageSize] = 1
		}
	}
	for _, err := range []error{
		c.put(record{Image: head}),
		c.module(strings.NewReader(module)),
		c.memory(memory),
		c.put(record{Blocks: [][]byte{[]byte("a block")}}),
		c.end(),
	} {
		if err != nil {
			tb.Fatal(err)
		}
	}
	return b.Bytes()
}

// readAll reads a checkpoint and puts its parts together again.
func readAll(b []byte) (module, memory []byte, err error) {
	c, err := newCheckpointReader(bytes.NewReader(b))
	if err != nil {
		return nil, nil, err
	}
	memory = make([]byte, 200*pager.PageSize)
	for {
		r, err := c.read()
		if err != nil {
			return nil, nil, err
		}
		switch r.kind() {
		case recordModule:
			module = append(module, r.Module...)
		case recordMemory:
			if end := int(r.Page)*pager.PageSize + len(r.Memory); end <= len(memory) {
				copy(memory[int(r.Page)*pager.PageSize:], r.Memory)
			}
		case recordEnd:
			return module, memory, nil
		}
	}
}

func TestCheckpoint(t *testing.T) {
	b := sampleCheckpoint(t, true)
	module, memory, err := readAll(b)
	if err != nil {
		t.Fatal(err)
	}
	if string(module) != strings.Repeat("module", 50_000) {
		t.Errorf("a module of %d bytes", len(module))
	}
	for page := range 200 {
		written := page < 2 || page == 5 || page >= 50 && page < 150 || page == 199
		if got := !pager.IsZero(memory[page*pager.PageSize:][:pager.PageSize]); got != written {
			t.Errorf("page %d: content is there: %v, want %v", page, got, written)
		}
	}

	// Whatever is cut off or changed is noticed.
	for _, n := range []int{0, 3, 5, 20, len(b) / 2, len(b) - 1} {
		if _, _, err := readAll(b[:n]); err == nil {
			t.Errorf("took the first %d of %d bytes for all of it", n, len(b))
		}
	}
	for at := 0; at < len(b); at += 997 {
		damaged := bytes.Clone(b)
		damaged[at] ^= 0x10
		if _, _, err := readAll(damaged); err == nil {
			t.Errorf("took one with byte %d changed", at)
		}
	}
}

// What is out of order is refused, whatever its end says.
func TestCheckpointOrder(t *testing.T) {
	page := make([]byte, pager.PageSize)
	image, module := record{Image: []byte("i")}, record{Module: []byte("m")}
	for name, records := range map[string][]record{
		"no image":        {module},
		"no module":       {image, {Page: 1, Memory: page}},
		"two images":      {image, image},
		"module again":    {image, module, {Page: 1, Memory: page}, module},
		"memory again":    {image, module, {Page: 1, Memory: page}, {Page: 1, Memory: page}},
		"half a page":     {image, module, {Memory: page[1:]}},
		"two at once":     {image, {Module: []byte("m"), Blocks: [][]byte{page}}},
		"none":            {image, {}},
		"page of nothing": {image, {Page: 1, Module: []byte("m")}},
	} {
		var b bytes.Buffer
		c, err := newCheckpointWriter(&b)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			if err := c.put(r); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.end(); err != nil {
			t.Fatal(err)
		}
		if _, _, err := readAll(b.Bytes()); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// FuzzCheckpoint: no bytes panic or take more memory than they are, and what is
// accepted ends where it says.
func FuzzCheckpoint(f *testing.F) {
	f.Add(sampleCheckpoint(f, false))
	f.Add([]byte(checkpointMagic + "\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		c, err := newCheckpointReader(r)
		if err != nil {
			return
		}
		for {
			rec, err := c.read()
			if err != nil {
				return
			}
			if rec.kind() == recordImage {
				_, _ = parseImage(rec.Image)
			}
			if rec.kind() == recordEnd {
				break
			}
		}
		if _, _, err := readAll(b[:len(b)-r.Len()]); err != nil {
			t.Fatalf("taken, and then not: %v", err)
		}
		if _, err := io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	})
}
