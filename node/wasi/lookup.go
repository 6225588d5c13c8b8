package wasi

import (
	"strings"
	"unicode/utf8"
)

// Limits of paths, in bytes, and of the symbolic links one path may lead over.
const (
	maxPath     = 4096
	maxName     = 255
	maxSymlinks = 40
)

// A place is where a path leads.
type place struct {
	// dir lists name; nil if the path leads to where it started or to . or ..
	dir  *inode
	name string
	// node is what is there; nil if nothing is.
	node *inode
	// slash says that the path ended in a slash and means a directory.
	slash bool
}

// lookup follows a path from a directory, which it never leaves: neither
// upwards nor by way of a symbolic link. A symbolic link at the path's end is
// followed if follow says so.
func lookup(start *inode, path string, follow bool) (place, errno) {
	if e := checkPath(path); e != success {
		return place{}, e
	}
	// trail holds the directories from start to where we are. A path has at
	// most maxPath/2 components, a symbolic link too.
	trail := []*inode{start}
	slash := strings.HasSuffix(path, "/")
	rest := path
	links := 0
	for {
		var name string
		rest = strings.TrimLeft(rest, "/")
		if rest == "" {
			return place{node: trail[len(trail)-1], slash: slash}, success
		}
		name, rest, _ = strings.Cut(rest, "/")
		last := strings.Trim(rest, "/") == ""
		here := trail[len(trail)-1]
		switch {
		case name == ".":
			continue
		case name == "..":
			if len(trail) == 1 {
				return place{}, errPerm
			}
			trail = trail[:len(trail)-1]
			continue
		case len(name) > maxName:
			return place{}, errNametoolong
		}
		var node *inode
		if e := here.dir.byName[name]; e != nil {
			node = e.node
		}
		switch {
		case node != nil && node.kind == filetypeSymlink && (!last || follow):
			links++
			if links > maxSymlinks {
				return place{}, errLoop
			}
			if strings.HasPrefix(node.target, "/") {
				return place{}, errPerm
			}
			if last && strings.HasSuffix(node.target, "/") {
				slash = true
			}
			rest = node.target + "/" + rest
		case last:
			return place{here, name, node, slash}, success
		case node == nil:
			return place{}, errNoent
		case node.kind != filetypeDirectory:
			return place{}, errNotdir
		default:
			trail = append(trail, node)
		}
	}
}

func checkPath(path string) errno {
	switch {
	case path == "":
		return errNoent
	case len(path) > maxPath:
		return errNametoolong
	case path[0] == '/':
		return errPerm
	}
	return checkText(path)
}

// checkText refuses what no name in a file system may contain.
func checkText(s string) errno {
	switch {
	case strings.IndexByte(s, 0) >= 0:
		return errInval
	case !utf8.ValidString(s):
		return errIlseq
	}
	return success
}

// within says whether dir is node or lies in it.
func within(dir, node *inode) bool {
	for ; dir != nil; dir = dir.dir.parent {
		if dir == node {
			return true
		}
	}
	return false
}
