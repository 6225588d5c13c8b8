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
