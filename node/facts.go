package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	goruntime "runtime"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/time/rate"

	"meshnode/mesh"
	"meshnode/node/control"
)

// What a node says of itself goes out in two forms. The record (package mesh)
// rides on gossip and has what changes or matters at once: load, free memory,
// speed, whether the node is cordoned. All else is in the capability document,
// which others fetch when its digest in the record has changed. Of labels,
// interfaces and the like a node's operator is believed; speed is measured.

// capabilities is the capability document. Others' are untrusted: see
// [parseCapabilities].
type capabilities struct {
	APIVersion  string         `json:"apiVersion"`
	Kind        string         `json:"kind"`
	OS          string         `json:"os"`
	Arch        string         `json:"arch"`
	Cores       int            `json:"cores"`
	MemoryBytes uint64         `json:"memoryBytes,omitempty"`
	PageBytes   int            `json:"pageBytes"`
	Engine      string         `json:"engine"`
	Paging      control.Paging `json:"paging"`
	// Speed is in calibration events a second; 0 is not measured.
	Speed        uint32            `json:"speed,omitempty"`
	SpeedAt      time.Time         `json:"speedAt,omitzero"`
	Cordoned     bool              `json:"cordoned,omitempty"`
	Labels       map[string]string `json:"labels,omitempty"`
	Interfaces   []string          `json:"interfaces,omitempty"`
	Accelerators []string          `json:"accelerators,omitempty"`
	Promises     *control.Promises `json:"promises,omitempty"`
	// Kept is how the promises were kept, by the node's own word.
	Kept    *control.PromiseRecords `json:"kept,omitempty"`
	Version string                  `json:"version,omitempty"`
}

// Limits of what a node may say of itself.
const (
	maxLabels     = 64
	maxLabelValue = 128
	maxInterfaces = 32
	maxPromise    = time.Minute
	maxCases      = 1000 // in which a promise was kept or broken
)

var labelForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$`)

// CheckLabel refuses what cannot be a label. Keys are those that a manifest can
// name; values are short and printable.
func CheckLabel(key, value string) error {
	switch {
	case !labelForm.MatchString(key):
		return fmt.Errorf("label key %.80q: want 1 to 63 letters, digits and . _ / -, a letter or digit first and last", key)
	case len(value) > maxLabelValue || !utf8.ValidString(value) || !printableText(value):
		return fmt.Errorf("value of label %s: want at most %d printable bytes, got %.160q", key, maxLabelValue, value)
	}
	return nil
}

func printableText(s string) bool {
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}

// validate rejects facts beyond the limits.
func (c *capabilities) validate() error {
	if len(c.Labels) > maxLabels {
		return fmt.Errorf("%d labels, at most %d", len(c.Labels), maxLabels)
	}
	for k, v := range c.Labels {
		if err := CheckLabel(k, v); err != nil {
			return err
		}
	}
	for _, l := range []struct {
		what  string
		names []string
	}{{"host interface", c.Interfaces}, {"accelerator", c.Accelerators}} {
		if len(l.names) > maxInterfaces {
			return fmt.Errorf("%d of kind %s, at most %d", len(l.names), l.what, maxInterfaces)
		}
		for _, name := range l.names {
			if !labelForm.MatchString(name) {
				return fmt.Errorf("%s %.80q: want 1 to 63 letters, digits and . _ / -, a letter or digit first and last", l.what, name)
			}
		}
	}
	if p := c.Promises; p != nil {
		for _, ms := range []float64{p.AccessMs, p.MoveInMs, p.MoveOutMs} {
			if !(ms >= 0 && ms <= control.Millis(maxPromise)) {
				return fmt.Errorf("a promise of %v ms: want 0 to %v", ms, maxPromise)
			}
		}
	}
	if k := c.Kept; k != nil {
		for _, r := range [...]*control.PromiseRecord{k.Access, k.MoveIn, k.MoveOut} {
			if r != nil && !(r.Kept >= 0 && r.Kept <= maxCases && r.Broken >= 0 && r.Broken <= maxCases && r.BrokenMs >= 0 && r.BrokenMs <= control.Millis(maxPromise)) {
				return fmt.Errorf("a promise kept %v and broken %v times, by %v ms: want at most %d and %v", r.Kept, r.Broken, r.BrokenMs, maxCases, maxPromise)
			}
		}
	}
	return nil
}

// parseCapabilities reads another node's document. The mesh has bounded its
// size and checked its digest.
func parseCapabilities(b []byte) (capabilities, error) {
	var c capabilities
	if err := json.Unmarshal(b, &c); err != nil {
		return capabilities{}, fmt.Errorf("capability document: %w", err)
	}
	if c.Kind != "Capabilities" {
		return capabilities{}, fmt.Errorf("capability document: kind %.40q", c.Kind)
	}
	if err := c.validate(); err != nil {
		return capabilities{}, fmt.Errorf("capability document: %w", err)
	}
	return c, nil
}

// operatorFile keeps what an operator told the running node, in the state
// directory.
const operatorFile = "operator.json"

// An operator is what was said with `node cordon` and `node label`. It outlives
// the process and goes above the flags it was started with.
type operator struct {
	Version  int  `json:"version"` // 1
	Cordoned bool `json:"cordoned,omitempty"`
	// Labels holds a value for each label that was set and nil for each that was
	// taken away, even if a flag sets it.
	Labels map[string]*string `json:"labels,omitempty"`
}

// facts are what this node says of itself beyond what the machine is. Safe for
// concurrent use.
type facts struct {
	path     string
	flags    map[string]string // labels
	mu       sync.Mutex
	operator operator
	speed    calibration
}

// loadFacts reads what an operator said to an earlier run.
func loadFacts(dir string, flags map[string]string) (*facts, error) {
	f := &facts{path: filepath.Join(dir, operatorFile), flags: flags, operator: operator{Version: 1}}
	b, err := readSmall(f.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return f, nil
	case err != nil:
		return nil, err
	}
	if err := json.Unmarshal(b, &f.operator); err != nil {
		return nil, fmt.Errorf("%s: %w; remove it to go back to what the flags say", f.path, err)
	}
	if f.operator.Version != 1 {
		return nil, fmt.Errorf("%s has version %d, this meshnode reads 1", f.path, f.operator.Version)
	}
	return f, nil
}

func (f *facts) cordoned() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.operator.Cordoned
}

func (f *facts) setSpeed(c calibration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.speed = c
}

func (f *facts) speedNow() calibration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.speed
}

// labels are those of the flags with the operator's changes.
func (f *facts) labels() map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return merged(f.flags, f.operator.Labels)
}

func merged(flags map[string]string, changes map[string]*string) map[string]string {
	out := maps.Clone(flags)
	if out == nil {
		out = make(map[string]string, len(changes))
	}
	for k, v := range changes {
		if v == nil {
			delete(out, k)
		} else {
			out[k] = *v
		}
	}
	return out
}

// change takes what an operator says; it is on disk before it holds.
func (f *facts) change(req control.NodeSettings) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := operator{Version: 1, Cordoned: f.operator.Cordoned, Labels: maps.Clone(f.operator.Labels)}
	if req.Cordoned != nil {
		next.Cordoned = *req.Cordoned
	}
	for k, v := range req.Labels {
		value := ""
		if v != nil {
			value = *v
		}
		if err := CheckLabel(k, value); err != nil {
			return &control.Error{Code: control.CodeInvalid, Message: err.Error()}
		}
		if next.Labels == nil {
			next.Labels = make(map[string]*string)
		}
		if _, flag := f.flags[k]; v == nil && !flag {
			delete(next.Labels, k) // nothing to remember
		} else {
			next.Labels[k] = v
		}
	}
	if n := len(merged(f.flags, next.Labels)); n > maxLabels {
		return &control.Error{Code: control.CodeInvalid, Message: fmt.Sprintf("that would make %d labels, at most %d", n, maxLabels)}
	}
	b, err := json.Marshal(next)
	if err != nil {
		return err
	}
	if err := writeSmall(f.path, b); err != nil {
		return err
	}
	f.operator = next
	return nil
}

// capabilities describes this node in full.
func (n *Node) capabilities() capabilities {
	total, _ := memory()
	speed := n.said.speedNow()
	c := capabilities{
		APIVersion: control.APIVersion, Kind: "Capabilities", OS: goruntime.GOOS, Arch: goruntime.GOARCH,
		Cores: goruntime.NumCPU(), MemoryBytes: total, PageBytes: os.Getpagesize(), Engine: n.engine(), Paging: n.paging(),
		Speed: speed.Speed, SpeedAt: speed.At, Cordoned: n.closed(), Labels: n.said.labels(),
		Interfaces: interfaceNames(n.cfg.Interfaces), Accelerators: n.cfg.Accelerators, Version: n.cfg.Version.Version,
	}
	p, k := n.promises.record()
	if p != (control.Promises{}) {
		c.Promises = &p
	}
	if k != (control.PromiseRecords{}) {
		c.Kept = &k
	}
	return c
}

// advertise tells the others what has changed of this node's facts.
func (n *Node) advertise() {
	n.promises.telling()
	n.mesh.UpdateRecord(func(r *mesh.Record) {
		r.Speed, r.Cordoned, r.Leaving = n.said.speedNow().Speed, n.closed(), n.drains.isStopping()
	})
	b, err := json.Marshal(n.capabilities())
	if err == nil {
		err = n.mesh.SetDocument(b)
	}
	if err != nil {
		n.log.Error("capability document not updated", "error", err)
	}
}

// configure changes what this node says of itself, as an operator wants it.
func (n *Node) configure(req control.NodeSettings) error {
	if err := n.said.change(req); err != nil {
		return err
	}
	n.advertise()
	n.log.Info("node configured", "cordoned", n.said.cordoned(), "labels", n.said.labels())
	return nil
}

// closed says whether the node takes no new workers.
func (n *Node) closed() bool { return n.said.cordoned() || n.drains.isStopping() }

// errClosed refuses a worker that would be new here.
func (n *Node) errClosed() error {
	if n.drains.isStopping() {
		return &control.Error{
			Code: control.CodeConflict, Message: fmt.Sprintf("node %s is about to stop: it takes no new workers", n.name()), Hint: "use another node",
		}
	}
	return &control.Error{
		Code:    control.CodeConflict,
		Message: fmt.Sprintf("node %s is cordoned: it takes no new workers", n.name()),
		Hint:    "`meshnode node uncordon " + n.name() + "` opens it; or use another node",
	}
}

// memory is what there is for workers here, in all and to spare, in bytes.
func (n *Node) memory() (total, free uint64) {
	total, free = memory()
	if most := n.cfg.WorkerMemory; most > 0 {
		total, free = min(total, most), min(free, most)
	}
	return total, free
}

// memoryFree is what new workers may claim here, in bytes: what the machine has
// to spare, but not what running workers have been promised and do not use yet.
func (n *Node) memoryFree() uint64 {
	total, free := n.memory()
	// A checkpoint is of a worker that is to have its room: a guardian must not
	// become unfit by keeping it.
	free = min(free+n.guards.kept(), total)
	n.mu.Lock()
	defer n.mu.Unlock()
	claimed := n.reserved
	for _, w := range n.workers {
		claimed += w.claim()
	}
	return min(free, total-min(claimed, total))
}

// vitals are what changes all the time of what a node says of itself.
type vitals struct {
	free     uint32 // MiB of memory for new workers
	load     uint8  // percent
	up, down uint32 // KiB a second seen on the link
}

// differ reports whether v is so far from what the others were told that they
// should hear of it now: a tenth of the processors, a sixteenth of the memory,
// an eighth of a rate. Smaller changes are not worth a round of gossip each.
func (v vitals) differ(r *mesh.Record) bool {
	apart := func(a, b uint32) uint32 { return max(a, b) - min(a, b) }
	return apart(uint32(v.load), uint32(r.Load)) >= 10 || apart(v.free, r.MemoryFree) > r.MemoryFree/16 ||
		apart(v.up, r.Uplink) > r.Uplink/8 || apart(v.down, r.Downlink) > r.Downlink/8
}

// A teller says when a node tells its vitals. What one node tells all others
// hear and pass on a dozen times, so both rules make room for a large mesh: all
// nodes together tell no more than one record in tellRefreshShare when nothing
// happens, and one in tellChangeShare when all of them change all the time.
type teller struct {
	told    time.Time
	changes *rate.Limiter
}

const (
	// A change is told at once, but tellBurst of them at most and then one in
	// tellChange, or in tellChangeShare for each member.
	tellBurst       = 3
	tellChange      = 2 * time.Second
	tellChangeShare = 50 * time.Millisecond
	// What has hardly changed is told in every tellRefresh, or in
	// tellRefreshShare for each member.
	tellRefresh      = 30 * time.Second
	tellRefreshShare = time.Second
)

func newTeller() *teller {
	return &teller{changes: rate.NewLimiter(rate.Every(tellChange), tellBurst)}
}

// due reports whether to tell v now, in a mesh of so many nodes, to which r was
// told before.
func (t *teller) due(v vitals, r *mesh.Record, nodes int, now time.Time) bool {
	t.changes.SetLimitAt(now, rate.Every(max(tellChange, time.Duration(nodes)*tellChangeShare)))
	if now.Sub(t.told) < max(tellRefresh, time.Duration(nodes)*tellRefreshShare) && !(v.differ(r) && t.changes.AllowN(now, 1)) {
		return false
	}
	t.told = now
	return true
}

// A cpuUse turns counters of CPU time into a load. Each look counts as much as
// all before it, so that what was ten seconds ago hardly matters.
type cpuUse struct {
	busy, all uint64
	load      float64
	known     bool
}

// percent returns the load as of now, 0 to 100; 0 at the first look. Counters
// that could not be read, which are zero, tell nothing: what has passed meanwhile
// is in the next ones.
func (u *cpuUse) percent(busy, all uint64) uint8 {
	if all > u.all && u.all > 0 && busy >= u.busy {
		x := min(float64(busy-u.busy)/float64(all-u.all), 1)
		if u.known {
			x = (x + u.load) / 2
		}
		u.load, u.known = x, true
	}
	if all > 0 {
		u.busy, u.all = busy, all
	}
	return uint8(100*u.load + 0.5)
}

// maxSmall bounds the small files of the state directory, in bytes.
const maxSmall = 64 << 10

func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSmall+1))
	if err == nil && len(b) > maxSmall {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxSmall)
	}
	return b, err
}

// writeSmall puts b at path whole or not at all, whatever crashes.
func writeSmall(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".tmp*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already if all went well
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
