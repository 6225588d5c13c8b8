package node

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"

	"meshnode/mesh"
	"meshnode/node/control"
)

const (
	// maxEntries bounds the directory: what a hostile or broken peer can make
	// a node remember.
	maxEntries = 20_000
	// maxEntryBytes is the largest entry that fits one gossip message.
	maxEntryBytes = 900
	// buriedFor is how long the entry of a stopped worker is kept, so that a
	// node that was away does not bring it back.
	buriedFor = 30 * time.Minute
)

// ended reports whether a worker in that state runs nowhere any more.
func ended(state string) bool {
	switch state {
	case control.StateFailed, control.StateLost, control.StateStopped, control.StateExited:
		return true
	}
	return false
}

// An entry says where a worker lives. Entries travel by gossip; of two entries
// for one worker the one with the higher epoch is right, and within an epoch,
// which has one owner, the one with the higher version.
type entry struct {
	ID      string      `cbor:"1,keyasint"`
	Name    string      `cbor:"2,keyasint"`
	Home    mesh.NodeID `cbor:"3,keyasint"`
	Epoch   uint64      `cbor:"4,keyasint"`
	Version uint64      `cbor:"5,keyasint"` // Unix milliseconds at the owner, made to rise
	State   string      `cbor:"6,keyasint"`
	Module  string      `cbor:"7,keyasint,omitempty"` // BLAKE3, hexadecimal
	Reason  string      `cbor:"8,keyasint,omitempty"`
	App     string      `cbor:"9,keyasint,omitempty"` // the app it was started for
	// Guardian is the node that takes it over if its home falls silent.
	Guardian mesh.NodeID `cbor:"10,keyasint,omitempty"`
}

func (e entry) newer(o entry) bool {
	if e.Epoch != o.Epoch {
		return e.Epoch > o.Epoch
	}
	return e.Version > o.Version
}

func (e entry) validate() error {
	switch {
	case !validID(e.ID):
		return fmt.Errorf("worker id %.40q", e.ID)
	case !validName(e.Name):
		return fmt.Errorf("worker name %.40q", e.Name)
	case !validID(string(e.Home)):
		return fmt.Errorf("node id %.40q", e.Home)
	case e.Guardian != "" && !validID(string(e.Guardian)):
		return fmt.Errorf("guardian id %.40q", e.Guardian)
	case e.App != "" && !validName(e.App):
		return fmt.Errorf("app name %.40q", e.App)
	case len(e.State) > 16 || len(e.Module) > 64 || len(e.Reason) > 300:
		return fmt.Errorf("a field of worker %s is too long", e.ID)
	}
	return nil
}

// A directory knows where every worker of the mesh lives. It is fed by gossip
// (it is the mesh.Directory of the node) and by this node's own workers. Safe
// for concurrent use.
type directory struct {
	log     *slog.Logger
	publish func([]byte) // gossips an entry; set before use

	mu      sync.Mutex
	entries map[string]entry
	heard   map[string]time.Time // when an entry last changed here, for burying
	changed chan struct{}        // closed and replaced at every change
}

func newDirectory(log *slog.Logger) *directory {
	return &directory{
		log:     log,
		entries: make(map[string]entry),
		heard:   make(map[string]time.Time),
		changed: make(chan struct{}),
	}
}

// set records and gossips what this node knows first hand.
func (d *directory) set(e entry, now time.Time) {
	if len(e.Reason) > 300 {
		e.Reason = strings.ToValidUTF8(e.Reason[:297], "") + "…"
	}
	d.mu.Lock()
	e.Version = max(uint64(now.UnixMilli()), d.entries[e.ID].Version+1)
	if old, ok := d.entries[e.ID]; ok && !e.newer(old) {
		d.mu.Unlock()
		return
	}
	d.putLocked(e, now)
	d.mu.Unlock()
	b, err := encMode.Marshal(e)
	if err != nil {
		panic(err) // a struct of strings and numbers
	}
	d.publish(b)
}

func (d *directory) putLocked(e entry, now time.Time) {
	d.entries[e.ID] = e
	d.heard[e.ID] = now
	close(d.changed)
	d.changed = make(chan struct{})
}

// State implements mesh.Directory.
func (d *directory) State() []byte {
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	es := make([]entry, 0, len(d.entries))
	for id, e := range d.entries {
		if e.State == control.StateStopped && now.Sub(d.heard[id]) > buriedFor {
			delete(d.entries, id)
			delete(d.heard, id)
			continue
		}
		es = append(es, e)
	}
	b, err := encMode.Marshal(es)
	if err != nil {
		panic(err)
	}
	return b
}

// Merge implements mesh.Directory.
func (d *directory) Merge(state []byte, peer mesh.NodeID) {
	var es []entry
	if err := decMode.Unmarshal(state, &es); err != nil {
		d.log.Warn("worker directory refused", "peer", peer, "error", err)
		return
	}
	for _, e := range es {
		d.learn(e, peer)
	}
}

// Notify implements mesh.Directory.
func (d *directory) Notify(msg []byte) {
	if len(msg) > maxEntryBytes {
		d.log.Warn("worker entry refused", "bytes", len(msg))
		return
	}
	var e entry
	if err := decMode.Unmarshal(msg, &e); err != nil {
		d.log.Warn("worker entry refused", "error", err)
		return
	}
	d.learn(e, "")
}

// learn takes an entry from elsewhere, if it is newer than what is known.
func (d *directory) learn(e entry, peer mesh.NodeID) {
	if err := e.validate(); err != nil {
		d.log.Warn("worker entry refused", "peer", peer, "error", err)
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	old, known := d.entries[e.ID]
	if known && !e.newer(old) || !known && len(d.entries) >= maxEntries {
		return
	}
	d.putLocked(e, time.Now())
}

// get returns a worker's entry by id.
func (d *directory) get(id string) (entry, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e, ok := d.entries[id]
	return e, ok
}

// watch returns a channel that is closed at the next change.
func (d *directory) watch() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.changed
}

// list returns all entries but those of stopped workers, by name and id.
func (d *directory) list() []entry {
	d.mu.Lock()
	defer d.mu.Unlock()
	es := make([]entry, 0, len(d.entries))
	for _, e := range d.entries {
		if e.State != control.StateStopped {
			es = append(es, e)
		}
	}
	slices.SortFunc(es, func(a, b entry) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.ID, b.ID))
	})
	return es
}

// find resolves a worker's name, id, or beginning of an id. Workers that run
// come before those that failed or were lost under the same name.
func (d *directory) find(ref string) (entry, error) {
	var all, live []entry
	var named, namedLive []control.Named
	for _, e := range d.list() {
		all, named = append(all, e), append(named, control.Named{ID: e.ID, Name: e.Name})
		if !ended(e.State) {
			live, namedLive = append(live, e), append(namedLive, control.Named{ID: e.ID, Name: e.Name})
		}
	}
	if i, err := control.Match("worker", ref, namedLive); err == nil {
		return live[i], nil
	}
	i, err := control.Match("worker", ref, named)
	if err != nil {
		return entry{}, err
	}
	return all[i], nil
}

var (
	encMode = func() cbor.EncMode {
		m, err := cbor.CoreDetEncOptions().EncMode()
		if err != nil {
			panic(err)
		}
		return m
	}()
	// decMode bounds what a peer's bytes can make the decoder do; the length
	// is bounded where the bytes are read.
	decMode = func() cbor.DecMode {
		m, err := cbor.DecOptions{
			DupMapKey:        cbor.DupMapKeyEnforcedAPF,
			MaxNestedLevels:  8,
			MaxArrayElements: 1 << 17,
			MaxMapPairs:      64,
			IndefLength:      cbor.IndefLengthForbidden,
			TagsMd:           cbor.TagsForbidden,
		}.DecMode()
		if err != nil {
			panic(err)
		}
		return m
	}()
)
