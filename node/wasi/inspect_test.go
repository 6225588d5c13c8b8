package wasi

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"testing"
	"testing/fstest"
)

// What is seen of files from outside, of the Host that made them and of one that
// was restored and lacks some of their blocks.
func TestLook(t *testing.T) {
	random := make([]byte, 3*chunkBytes/2+100)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range random {
		random[i] = byte(rng.Uint32())
	}
	clear(random[5000:20000])
	source, err := New(Config{Streams: NewStreams(), Dirs: []Dir{
		{Name: "/data", Source: fstest.MapFS{
			"a/b/large":     {Data: random},
			"a/small":       {Data: []byte("small")},
			"to small":      {Data: []byte("a/small"), Mode: fs.ModeSymlink},
			"out":           {Data: []byte("../.."), Mode: fs.ModeSymlink},
			"empty/nothing": {},
		}},
		{Name: "/data/inner", Source: fstest.MapFS{"deep": {Data: []byte("deep")}}},
		{Name: "."},
	}})
	if err != nil {
		t.Fatal(err)
	}
	state := source.State()
	dest, err := New(Config{Streams: NewStreams()})
	if err == nil {
		err = dest.SetState(state)
	}
	if err != nil {
		t.Fatal(err)
	}
	names := func(h *Host, path, after string, most int) (s string) {
		t.Helper()
		_, list, err := h.Look(path, after, most)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		for _, e := range list {
			s += e.Name + ":" + e.Kind + " "
		}
		return s
	}
	all := func(h *Host, path string) []byte {
		t.Helper()
		var got []byte
		for {
			b, err := h.ReadAt(path, int64(len(got)), 70_001)
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			if len(b) == 0 {
				return got
			}
			got = append(got, b...)
		}
	}
	for name, h := range map[string]*Host{"source": source, "dest": dest} {
		for _, c := range []struct {
			path, after string
			most        int
			want        string
		}{
			{"", "", 10, ".:directory /data:directory /data/inner:directory "},
			{"", "/data", 10, "/data/inner:directory "},
			{"/data", "", 10, "a:directory empty:directory out:link to small:link "},
			{"/data/", "a", 2, "empty:directory out:link "},
			{"/data/a/b/..", "", 10, "b:directory small:file "},
			{"/data/inner", "", 10, "deep:file "},
			{"/data/a/small", "", 10, ""},
			{".", "", 10, ""},
		} {
			if got := names(h, c.path, c.after, c.most); got != c.want {
				t.Errorf("%s: %q behind %q: %q, want %q", name, c.path, c.after, got, c.want)
			}
		}
		for _, path := range []string{"/data/none", "/data/a/none/more", "/other", "/dat", "relative"} {
			if _, _, err := h.Look(path, "", 10); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %s: %v", name, path, err)
			}
		}
		for _, path := range []string{"/data/out", "/data/out/etc", "/data/a/small/more"} {
			if _, _, err := h.Look(path, "", 10); err == nil || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %s: %v", name, path, err)
			}
		}
		for _, off := range []int64{-1, -1 << 60} {
			if _, err := h.ReadAt("/data/a/small", off, 10); err == nil {
				t.Errorf("%s: read at %d", name, off)
			}
		}
		if _, err := h.ReadAt("/data/a", 0, 10); err == nil {
			t.Errorf("%s: read a directory", name)
		}
	}
	if got := all(source, "/data/to small"); string(got) != "small" {
		t.Errorf("through a link: %q", got)
	}
	if got := all(source, "/data/a/b/large"); !bytes.Equal(got, random) {
		t.Error("the large file reads differently")
	}

	// Nothing is fetched, or waited for.
	if _, err := dest.ReadAt("/data/a/small", 0, 10); !errors.Is(err, ErrNotHere) {
		t.Errorf("without its index: %v", err)
	}
	for {
		list, _ := dest.Missing(1)
		if len(list) == 0 {
			break
		}
		b, ok := source.Block(list[0])
		if !ok {
			t.Fatal("the source lacks a block")
		}
		if _, err := dest.Put(b); err != nil {
			t.Fatal(err)
		}
	}
	if got := all(dest, "/data/a/b/large"); !bytes.Equal(got, random) {
		t.Error("the large file reads differently where it was moved")
	}
	if !bytes.Equal(dest.State().Encode(), state.Encode()) {
		t.Error("looking has changed the state")
	}
}
