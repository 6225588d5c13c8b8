//go:build unix

package runner

import (
	"archive/zip"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"runtime/debug"
	"strconv"

	"meshnode/node/suspend"
	"meshnode/node/wasi"
)

// filesOf gives a command its directories, which come in a zip archive: what is
// in it below 0/ is the first, and so on.
func (c *child) filesOf(s *setup, world *wasi.Config) (closeArchive func(), err error) {
	closeArchive = func() {}
	if s.FilesLimit == 0 {
		// No descriptor leads to a file, and none can be made.
		world.Limits = wasi.Limits{Files: 1, Bytes: 1}
		if len(s.Dirs) > 0 {
			return closeArchive, fmt.Errorf("%w: directories without a limit", errFrame)
		}
		return closeArchive, nil
	}
	if c.program == nil {
		return closeArchive, &suspend.RefusedError{
			Feature: "directories",
			Why:     "a worker that handles events has no files",
			Hint:    "leave out --dir, or run a program with a main of its own",
		}
	}
	world.Limits = wasi.Limits{Files: maxFiles, Bytes: s.FilesLimit}
	world.Fetch = func(name wasi.Hash) ([]byte, error) { return c.program.fetch(c.wasi, name) }
	debug.SetMemoryLimit(setUpMemory + s.FilesLimit)
	if len(s.Dirs) == 0 {
		return closeArchive, nil // to be restored
	}
	archive, err := zip.OpenReader(s.FilesPath)
	if err != nil {
		return closeArchive, fmt.Errorf("open the archive of the worker's directories: %w", err)
	}
	for i, d := range s.Dirs {
		dir := wasi.Dir{Name: d.Name, Source: below{archive, strconv.Itoa(i)}, ReadOnly: d.ReadOnly}
		if _, err := fs.Stat(dir.Source, "."); err != nil {
			dir.Source = nil // nothing is in it
		}
		world.Dirs = append(world.Dirs, dir)
	}
	return func() { archive.Close() }, nil
}

// below is what is in a directory of an archive. Unlike fs.Sub's it does not claim
// to read symbolic links, which in an archive are files with a mode.
type below struct {
	archive fs.FS
	dir     string
}

func (b below) Open(name string) (fs.File, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	return b.archive.Open(path.Join(b.dir, name))
}

// setUpMemory is what the process may take for compiling, in bytes, before it
// collects garbage more often.
const setUpMemory = 256 << 20

// serveFiles answers what is asked about the blocks of a command's files.
func (c *child) serveFiles(typ byte, body []byte) error {
	switch typ {
	case msgStored:
		var ask storedAsk
		if err := decode(body, &ask); err != nil {
			return c.refuse(err.Error())
		}
		names, next := c.wasi.Stored(ask.At, max(0, min(ask.Most, MaxBlocks)))
		return c.link.write(msgStoredAre, &storedAre{Names: packNames(names), Next: next})

	case msgMissing:
		var ask missingAsk
		if err := decode(body, &ask); err != nil {
			return c.refuse(err.Error())
		}
		names, all := c.wasi.Missing(max(0, min(ask.Most, MaxBlocks)))
		return c.link.write(msgMissingAre, &missingAre{Names: packNames(names), All: all})

	case msgLook:
		var ask lookAsk
		if err := decode(body, &ask); err != nil {
			return c.refuse(err.Error())
		}
		var l Looked
		c.program.paused(func() { l = c.look(ask) })
		return c.link.write(msgLooked, &l)

	case msgPutBlocks:
		var in blocks
		if err := decode(body, &in); err != nil {
			return c.refuse(err.Error())
		}
		defer c.program.blocksCame()
		for _, b := range in.Blocks {
			if _, err := c.wasi.Put(b); err != nil {
				return c.refuse(err.Error())
			}
		}
		err := c.link.write(msgOK, nil)
		// A program that waits or has yet to run collects nothing, however many
		// blocks come meanwhile.
		c.program.collect()
		return err
	}
	var ask blocksAsk
	if err := decode(body, &ask); err != nil {
		return c.refuse(err.Error())
	}
	names, err := ask.Names.unpack(MaxBlocks)
	if err != nil {
		return c.refuse(err.Error())
	}
	if typ == msgGiveUp {
		c.wasi.GiveUp(names)
		c.program.blocksCame()
		return c.link.write(msgOK, nil)
	}
	out := blocks{Blocks: make([][]byte, len(names))}
	for i, name := range names {
		out.Blocks[i], _ = c.wasi.Block(name)
	}
	return c.link.write(msgBlocksAre, &out)
}

// look looks at the files of a program that does not run meanwhile.
func (c *child) look(ask lookAsk) (l Looked) {
	var err error
	if ask.Read {
		l.Data, err = c.wasi.ReadAt(ask.Path, ask.Offset, MaxLookedBytes)
	} else {
		l.Info, l.Entries, err = c.wasi.Look(ask.Path, ask.After, MaxLooked)
	}
	if err != nil {
		l = Looked{Wrong: clip(err.Error(), maxReason), Absent: errors.Is(err, fs.ErrNotExist)}
	}
	return l
}

// fetch is wasi.Config.Fetch: it runs on the program's goroutine, in the middle
// of a call of the program's, and waits for a block that the node brings.
func (p *program) fetch(host *wasi.Host, name wasi.Hash) ([]byte, error) {
	p.watch.Stop()
	defer p.watch.Reset(collectInterval)
	p.collectWaiting()
	for {
		expected := host.Expects(name)
		if b, here := host.Block(name); here {
			return b, nil
		}
		if !expected {
			return nil, errBlockLost
		}
		select {
		case <-p.halting:
			p.driver.Block()
			return nil, wasi.ErrInterrupted
		case <-p.came:
		}
	}
}

// blocksCame wakes a program that waits for a block.
func (p *program) blocksCame() {
	select {
	case p.came <- struct{}{}:
	default:
	}
}

// HasFiles says whether a command has directories, and with them blocks.
func (r *Runner) HasFiles() bool { return r.files }

// Stored returns the names of up to MaxBlocks of the blocks that a command's
// files are made of, or were, from a place in their list on, and the place
// behind them. There are no more if there are no names. While it runs it makes
// more.
func (r *Runner) Stored(ctx context.Context, at wasi.Cursor) ([]wasi.Hash, wasi.Cursor, error) {
	var are storedAre
	if err := r.request(ctx, msgStored, &storedAsk{At: at, Most: MaxBlocks}, msgStoredAre, &are); err != nil {
		return nil, at, err
	}
	names, err := are.Names.unpack(MaxBlocks)
	if err != nil {
		return nil, at, r.broken(err)
	}
	return names, are.Next, nil
}

// Blocks returns blocks, at most MaxBlocks, in the order of their names: empty
// for each that is not there, or no longer; without the zeroes at their ends.
// Nobody has looked whether they have the content of their names.
func (r *Runner) Blocks(ctx context.Context, names []wasi.Hash) ([][]byte, error) {
	var out blocks
	if err := r.request(ctx, msgBlocks, &blocksAsk{packNames(names)}, msgBlocksAre, &out); err != nil {
		return nil, err
	}
	if err := out.check(len(names)); err != nil {
		return nil, r.broken(err)
	}
	return out.Blocks, nil
}

// PutBlocks gives a command blocks that have arrived, at most MaxBlocks: after
// Clear, and also while it runs. The error says that it cannot have so many.
func (r *Runner) PutBlocks(ctx context.Context, data [][]byte) error {
	return r.request(ctx, msgPutBlocks, &blocks{data}, msgOK, nil)
}

// Missing returns the names of up to MaxBlocks of the blocks that a restored
// command's files are made of and that have yet to arrive, the one that it waits
// for first, and how many there are. More may turn out to be missing when these
// are there.
func (r *Runner) Missing(ctx context.Context) ([]wasi.Hash, int, error) {
	var are missingAre
	if err := r.request(ctx, msgMissing, &missingAsk{MaxBlocks}, msgMissingAre, &are); err != nil {
		return nil, 0, err
	}
	names, err := are.Names.unpack(MaxBlocks)
	if err == nil && len(names) > are.All {
		err = fmt.Errorf("%w: %d names of %d", errFrame, len(names), are.All)
	}
	if err != nil {
		return nil, 0, r.broken(err)
	}
	return names, are.All, nil
}

// GiveUp says that blocks, at most MaxBlocks, will not come: a command that reads
// what is in them gets EIO.
func (r *Runner) GiveUp(ctx context.Context, names []wasi.Hash) error {
	return r.request(ctx, msgGiveUp, &blocksAsk{packNames(names)}, msgOK, nil)
}

// Look describes what is at a path of a command's files, and lists the entries
// of a directory behind the name after; the path "" lists the directories that
// the command has. The command stands still for it, for microseconds.
func (r *Runner) Look(ctx context.Context, path, after string) (Looked, error) {
	return r.look(ctx, lookAsk{Path: path, After: after})
}

// ReadFile returns a part of one of a command's files, likewise.
func (r *Runner) ReadFile(ctx context.Context, path string, offset int64) (Looked, error) {
	return r.look(ctx, lookAsk{Path: path, Offset: offset, Read: true})
}

func (r *Runner) look(ctx context.Context, ask lookAsk) (l Looked, err error) {
	if err = r.request(ctx, msgLook, &ask, msgLooked, &l); err != nil {
		return l, err
	}
	if len(l.Entries) > MaxLooked || len(l.Data) > MaxLookedBytes {
		return l, r.broken(fmt.Errorf("%w: %d entries, %d bytes of a file", errFrame, len(l.Entries), len(l.Data)))
	}
	return l, nil
}
