package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

func TestParseDir(t *testing.T) {
	dir := t.TempDir()
	for arg, want := range map[string]hostDir{
		dir:                      {path: dir},
		dir + ":/data":           {path: dir},
		dir + ":/data:ro":        {path: dir},
		dir + ":relative":        {path: dir},
		filepath.Join(dir, "no"): {},
		":/data":                 {},
		dir + ":":                {},
	} {
		got, err := parseDir(arg)
		if (err == nil) != (want.path != "") {
			t.Errorf("%s: %v", arg, err)
			continue
		}
		if err == nil && got.path != want.path {
			t.Errorf("%s: %+v", arg, got)
		}
	}
	if d, err := parseDir(dir + ":/data:ro"); err != nil || d.Name != "/data" || !d.ReadOnly {
		t.Errorf("%+v, %v", d, err)
	}
	if d, err := parseDir(dir); err != nil || d.Name != "/" || d.ReadOnly {
		t.Errorf("%+v, %v", d, err)
	}
}

// A directory and archives of it give the worker the same.
func TestPackDirs(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("symbolic links need rights there")
	}
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "sub", "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sub", "file"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("sub/file", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	var plain, packed bytes.Buffer
	w := tar.NewWriter(&plain)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(plain.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	paths := []string{dir, filepath.Join(t.TempDir(), "a.tar"), filepath.Join(t.TempDir(), "a.tgz")}
	for i, b := range [][]byte{plain.Bytes(), packed.Bytes()} {
		if err := os.WriteFile(paths[i+1], b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var dirs []hostDir
	for _, p := range paths {
		dirs = append(dirs, hostDir{path: p})
	}
	var out bytes.Buffer
	if err := packDirs(&out, dirs); err != nil {
		t.Fatal(err)
	}
	r, err := zip.NewReader(bytes.NewReader(out.Bytes()), int64(out.Len()))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]string{}
	for _, f := range r.File {
		at, name, _ := strings.Cut(f.Name, "/")
		rc, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(rc)
		if err != nil {
			t.Fatal(err)
		}
		if name != "" { // the directory itself, which an archive may lack
			got[at] = append(got[at], f.Mode().Type().String()+" "+name+" "+string(b))
		}
	}
	want := []string{"---------- sub/file content", "L--------- link sub/file", "d--------- sub/ ", "d--------- sub/empty/ "}
	for i := range paths {
		at := string(rune('0' + i))
		slices.Sort(got[at])
		if !slices.Equal(got[at], want) {
			t.Errorf("%s: got %q, want %q", paths[i], got[at], want)
		}
	}

	// What leads elsewhere is refused.
	plain.Reset()
	w = tar.NewWriter(&plain)
	if err := w.WriteHeader(&tar.Header{Name: "../out", Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(paths[1], plain.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := packDirs(io.Discard, dirs[1:2]); err == nil || !strings.Contains(err.Error(), "leads out") {
		t.Errorf("packed what leads out of the archive: %v", err)
	}
}

// An archive that was added to may name a directory twice, but no file.
func TestPackRepeated(t *testing.T) {
	pack := func(names ...string) error {
		t.Helper()
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, name := range names {
			h := tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600}
			if strings.HasSuffix(name, "/") {
				h.Typeflag, h.Mode = tar.TypeDir, 0o700
			}
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "a.tar")
		if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := packDirs(&out, []hostDir{{path: path}}); err != nil {
			return err
		}
		r, err := zip.NewReader(bytes.NewReader(out.Bytes()), int64(out.Len()))
		if err != nil {
			t.Fatal(err)
		}
		if len(r.File) != 2 {
			t.Errorf("%q became %d entries, want 2", names, len(r.File))
		}
		return nil
	}
	if err := pack("d/", "d/f", "./d/"); err != nil {
		t.Error(err)
	}
	for _, names := range [][]string{{"f", "g", "./f"}, {"f", "f/"}, {"f/", "f"}} {
		if err := pack(names...); err == nil || !strings.Contains(err.Error(), "there twice") {
			t.Errorf("packed %q: %v", names, err)
		}
	}
}
