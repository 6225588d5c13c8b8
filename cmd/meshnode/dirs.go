package main

import (
	"archive/tar"
	"archive/zip"
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"meshnode/node/control"
)

// A hostDir is a directory or an archive here that a worker gets a copy of.
type hostDir struct {
	path string
	control.Dir
}

// parseDir reads HOST[:GUEST[:ro]].
func parseDir(s string) (hostDir, error) {
	d := hostDir{Dir: control.Dir{Name: "/"}}
	rest, ro := strings.CutSuffix(s, ":ro")
	d.ReadOnly = ro
	d.path = rest
	// The last colon: a path of Windows has one of its own.
	if i := strings.LastIndexByte(rest, ':'); i > 1 && !strings.ContainsRune(rest[i:], '\\') {
		d.path, d.Name = rest[:i], rest[i+1:]
	}
	if d.path == "" || d.Name == "" {
		return d, usagef("--dir %s: want HOST[:GUEST[:ro]], as data:/data or data.tar:/:ro", s)
	}
	if _, err := os.Stat(d.path); err != nil {
		return d, err
	}
	return d, nil
}

// packDirs writes copies of all that is in the directories, in the form that a
// node takes it: a zip archive, the first below 0/ and so on.
func packDirs(w io.Writer, dirs []hostDir) error {
	z := zip.NewWriter(w)
	for i, d := range dirs {
		info, err := os.Stat(d.path)
		if err != nil {
			return err
		}
		p := packer{z: z, prefix: strconv.Itoa(i)}
		if info.IsDir() {
			err = p.directory(d.path)
		} else {
			err = p.archive(d.path)
		}
		if err != nil {
			return fmt.Errorf("--dir %s: %w", d.path, err)
		}
	}
	return z.Close()
}

type packer struct {
	z      *zip.Writer
	prefix string
}

// add begins an entry; what is written next is its content. A symbolic link's is
// its target.
func (p packer) add(name string, info fs.FileInfo) (io.Writer, error) {
	h, err := zip.FileInfoHeader(info)
	if err != nil {
		return nil, err
	}
	h.Name = path.Join(p.prefix, name)
	if info.IsDir() {
		h.Name += "/"
	}
	h.Method = zip.Store // it crosses a local socket
	return p.z.CreateHeader(h)
}

func (p packer) directory(root string) error {
	return filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		info, err := e.Info()
		if err != nil {
			return err
		}
		switch {
		case rel == "." && !e.IsDir(): // a link to a directory
			return errors.New("a symbolic link: name the directory itself")
		case e.Type() == fs.ModeSymlink:
			target, err := os.Readlink(name)
			if err != nil {
				return err
			}
			w, err := p.add(rel, info)
			if err != nil {
				return err
			}
			_, err = io.WriteString(w, filepath.ToSlash(target))
			return err
		case e.IsDir():
			_, err := p.add(rel, info)
			return err
		case !e.Type().IsRegular():
			return fmt.Errorf("%s: only files, directories and symbolic links can be copied", name)
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		w, err := p.add(rel, info)
		if err != nil {
			return err
		}
		_, err = io.Copy(w, f)
		return err
	})
}

// archive copies a tar archive, compressed by gzip or not.
func (p packer) archive(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	b := bufio.NewReader(f)
	r := io.Reader(b)
	if magic, _ := b.Peek(2); len(magic) == 2 && magic[0] == 0x1f && magic[1] == 0x8b {
		if r, err = gzip.NewReader(b); err != nil {
			return err
		}
	}
	kinds := map[string]byte{} // of the entries so far, by name
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("not a tar archive, or a damaged one: %w", err)
		}
		rel := path.Clean(strings.TrimPrefix(h.Name, "/"))
		if rel == "." {
			continue
		}
		if !fs.ValidPath(rel) {
			return fmt.Errorf("entry %q leads out of the archive", h.Name)
		}
		switch h.Typeflag {
		case tar.TypeReg, tar.TypeDir, tar.TypeSymlink:
		case tar.TypeXGlobalHeader:
			continue
		default:
			return fmt.Errorf("entry %q: only files, directories and symbolic links can be copied", h.Name)
		}
		if kind, again := kinds[rel]; again {
			if kind == tar.TypeDir && h.Typeflag == tar.TypeDir {
				continue
			}
			// The last would be the one to take, but the first is copied by now.
			return fmt.Errorf("entry %q is there twice: extract the archive and name the directory", h.Name)
		}
		kinds[rel] = h.Typeflag
		w, err := p.add(rel, h.FileInfo())
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeSymlink {
			_, err = io.WriteString(w, h.Linkname)
		} else if h.Typeflag == tar.TypeReg {
			_, err = io.Copy(w, t)
		}
		if err != nil {
			return err
		}
	}
}

// dirsValue is the flag --dir.
type dirsValue struct{ dirs []hostDir }

func (v *dirsValue) String() string { return "" }
func (v *dirsValue) Type() string   { return "HOST[:GUEST[:ro]]" }
func (v *dirsValue) Set(s string) error {
	d, err := parseDir(s)
	v.dirs = append(v.dirs, d)
	return err
}

// A packing yields the archive of directories while they are read.
type packing struct {
	*io.PipeReader
	done chan error
}

// failed ends the packing and returns err, or why there was no archive, if that
// is what err comes of.
func (p *packing) failed(err error) error {
	p.Close()
	if why := <-p.done; why != nil && !errors.Is(why, io.ErrClosedPipe) {
		return usagef("%s", why)
	}
	return err
}

// request adds the directories to a request and returns what packs them; nil if
// there are none.
func (v *dirsValue) request(req *control.RunRequest, limit int64) (*packing, error) {
	if len(v.dirs) == 0 {
		if limit > 0 {
			return nil, usagef("--files-limit without --dir: a program without directories has no files")
		}
		return nil, nil
	}
	for _, d := range v.dirs {
		req.Dirs = append(req.Dirs, d.Dir)
	}
	req.FilesLimit = limit
	r, w := io.Pipe()
	p := &packing{r, make(chan error, 1)}
	go func() {
		err := packDirs(w, v.dirs)
		w.CloseWithError(err)
		p.done <- err
	}()
	return p, nil
}
