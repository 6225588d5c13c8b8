package node

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"meshnode/pager"
)

const (
	// houseInterval is how often a node looks for what it need not keep.
	houseInterval = time.Hour
	// endedAge and endedKeep say how long, and how many, workers that failed or
	// were lost stay listed with their logs, for someone to look at.
	endedAge  = 7 * 24 * time.Hour
	endedKeep = 100
	// cacheBytes bounds the compiled and rewritten modules. What is lost is made
	// again at the next start.
	cacheBytes = 1 << 30
	// unfinishedAge is when a file that was to be renamed is nobody's any more.
	unfinishedAge = time.Hour
)

// keepHouse removes, every now and then, what would otherwise only grow.
func (n *Node) keepHouse(ctx context.Context) {
	t := time.NewTicker(houseInterval)
	defer t.Stop()
	for {
		n.tidy(ctx, time.Now())
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// tidy forgets ended workers, records of workers that went elsewhere, and
// modules that nobody here needs: in this order, since each needs the next.
func (n *Node) tidy(ctx context.Context, now time.Time) {
	for _, w := range n.overdue(now) {
		if err := n.stop(ctx, w); err != nil {
			n.log.Warn("ended worker not forgotten", "worker", w.ID, "error", err)
			continue
		}
		n.log.Info("ended worker forgotten", "worker", w.ID, "name", w.Name)
	}
	if _, err := n.journal.Expire(now.Add(-journalAge), journalRecords); err != nil {
		n.log.Error("journal not cleared of old records", "error", err)
	}
	used, err := n.modulesInUse()
	if err != nil {
		n.log.Error("modules not cleared", "error", err)
		return
	}
	freed, err := n.modules.collect(func(h pager.Hash) bool { return used[h] }, moduleBytes, now.Add(-moduleGrace))
	if err != nil {
		n.log.Warn("modules not cleared", "error", err)
	}
	if freed > 0 {
		n.log.Info("modules cleared", "bytes", freed)
	}
	freed, err = clearCache(n.cfg.CacheDir, cacheBytes, now)
	if err != nil {
		n.log.Warn("cache of compiled modules not cleared", "error", err)
	}
	if freed > 0 {
		n.log.Info("cache of compiled modules cleared", "bytes", freed)
	}
}

// clearCache removes files that were never finished, and then the oldest until
// the rest has at most that many bytes. Runners may use the files meanwhile, and
// other nodes may do the same: a file that is gone is no error.
func clearCache(dir string, most int64, now time.Time) (freed int64, err error) {
	type file struct {
		path string
		size int64
		at   time.Time
	}
	var files []file
	var total int64
	remove := func(f file) {
		if e := os.Remove(f.path); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
			return
		}
		freed += f.size
	}
	walkErr := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return ignoreNotExist(err)
		}
		info, err := d.Info()
		if err != nil {
			return ignoreNotExist(err)
		}
		f := file{path, info.Size(), info.ModTime()}
		if strings.HasSuffix(path, ".tmp") && now.Sub(f.at) > unfinishedAge {
			remove(f)
			return nil
		}
		files = append(files, f)
		total += f.size
		return nil
	})
	slices.SortFunc(files, func(a, b file) int { return a.at.Compare(b.at) })
	for _, f := range files {
		if total <= most {
			break
		}
		remove(f)
		total -= f.size
	}
	return freed, errors.Join(err, walkErr)
}

func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// overdue returns the workers that have ended and been listed for long enough.
// One in doubt has not ended.
func (n *Node) overdue(now time.Time) []*worker {
	n.mu.Lock()
	listed := slices.Collect(maps.Values(n.ended))
	n.mu.Unlock()
	type old struct {
		w     *worker
		since time.Time
	}
	var olds []old
	for _, w := range listed {
		w.mu.Lock()
		if ended(w.state) && w.move == nil {
			olds = append(olds, old{w, w.since})
		}
		w.mu.Unlock()
	}
	slices.SortFunc(olds, func(a, b old) int { return b.since.Compare(a.since) })
	var ws []*worker
	for i, o := range olds {
		if i >= endedKeep || now.Sub(o.since) > endedAge {
			ws = append(ws, o.w)
		}
	}
	return ws
}

// modulesInUse returns the modules of workers that are here, come, go, or are
// the journal's to answer for.
func (n *Node) modulesInUse() (map[pager.Hash]bool, error) {
	used := make(map[pager.Hash]bool)
	n.mu.Lock()
	for _, w := range n.workers {
		used[w.Module] = true
	}
	for _, m := range n.outgoing {
		used[m.spec.Module] = true
	}
	for _, m := range n.incoming {
		used[pager.Hash(m.offer.Module)] = true
	}
	n.mu.Unlock()
	for _, h := range n.guards.modules() {
		used[h] = true
	}
	records, err := n.journal.All()
	if err != nil {
		return nil, err
	}
	for _, rec := range records {
		if !rec.Own.Owned() {
			continue
		}
		var meta recordMeta
		if err := decMode.Unmarshal(rec.Meta, &meta); err != nil {
			return nil, err
		}
		used[meta.Spec.Module] = true
	}
	return used, nil
}
