package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/node/runner"
	"meshnode/placement"
	"meshnode/placement/manifest"
)

// A worker reads the interfaces that its manifest names, and no others. One that
// it is pinned to is read where it runs. One that is proxied is always read at
// the same node, which travels with the worker: the one where it got its
// manifest, if that has the interface, else the nearest that answered its first
// read. A position is that of one device, and would be wrong from any other.

// protoInterface asks a node for a reading of one of its interfaces: an
// interfaceAsk, answered by an interfaceAnswer. Nodes believe each other that a
// worker may read it; clients cannot ask.
const protoInterface = "interface"

type interfaceAsk struct {
	Name string `cbor:"1,keyasint"`
}

type interfaceAnswer struct {
	Data  []byte `cbor:"1,keyasint,omitempty"`
	Error string `cbor:"2,keyasint,omitempty"` // why there is none
}

// Limits of both, in bytes.
const (
	maxInterfaceAsk    = 256
	maxInterfaceAnswer = runner.MaxReading + 1<<10
	maxInterfaceError  = 512
)

// serveInterface answers a node.
func (n *Node) serveInterface(ctx context.Context, s *mesh.Stream) {
	_ = s.SetDeadline(time.Now().Add(helloTimeout))
	var ask interfaceAsk
	if err := mesh.ReadMessage(s, maxInterfaceAsk, &ask); err != nil {
		return
	}
	var a interfaceAnswer
	var err error
	if a.Data, err = n.readHost(ctx, ask.Name); err != nil {
		a.Error = err.Error()[:min(len(err.Error()), maxInterfaceError)]
	}
	if err := mesh.WriteMessage(s, a); err != nil {
		n.log.Debug("reading not sent", "peer", s.Peer(), "error", err)
	}
}

// readHost reads an interface of this node's host.
func (n *Node) readHost(ctx context.Context, name string) ([]byte, error) {
	if s := n.sources[name]; s != nil {
		return s.read(ctx)
	}
	if slices.ContainsFunc(n.cfg.Interfaces, func(f Interface) bool { return f.Name == name }) {
		return nil, fmt.Errorf("node %s has interface %s, but was not told how to read it: --interface %s=file:PATH or =exec:COMMAND", n.name(), name, name)
	}
	return nil, fmt.Errorf("node %s has no interface %.80q", n.name(), name)
}

// readAt reads an interface of a node, which may be this one.
func (n *Node) readAt(ctx context.Context, at mesh.NodeID, name string) ([]byte, error) {
	if at == n.id {
		return n.readHost(ctx, name)
	}
	var a interfaceAnswer
	err := n.mesh.Request(ctx, at, protoInterface, mesh.Urgent, func(s *mesh.Stream) error {
		if err := mesh.WriteMessage(s, interfaceAsk{Name: name}); err != nil {
			return err
		}
		return mesh.ReadMessage(s, maxInterfaceAnswer, &a)
	})
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, fmt.Errorf("node %s did not answer within %v", n.nameOf(at), interfaceTime)
	case err != nil:
		return nil, fmt.Errorf("node %s: %w", n.nameOf(at), err)
	case a.Error != "":
		return nil, fmt.Errorf("%.*s", maxInterfaceError, strings.ToValidUTF8(a.Error, "?"))
	}
	return a.Data, nil
}

// A boundInterface says at which node a worker reads a proxied interface.
type boundInterface struct {
	Name string      `cbor:"1,keyasint"`
	Node mesh.NodeID `cbor:"2,keyasint"`
}

// maxBound bounds the interfaces of one worker, as its manifest does.
const maxBound = 16

func checkBound(list []boundInterface) error {
	if len(list) > maxBound {
		return fmt.Errorf("%d interfaces, at most %d", len(list), maxBound)
	}
	for _, b := range list {
		if !labelForm.MatchString(b.Name) || !b.Node.Valid() {
			return fmt.Errorf("interface %.80q at node %.40q", b.Name, b.Node)
		}
	}
	return nil
}

// reads is what this node knows of a worker's interfaces. Safe for concurrent
// use.
type reads struct {
	mu sync.Mutex
	of map[string]*interfaceUse
	// events counts those that the worker has handled here.
	events uint64
}

// An interfaceUse is how a worker has used one interface since it came here.
type interfaceUse struct {
	at           mesh.NodeID // empty is not known yet
	done, failed uint64
	failure      string    // of the last read; empty if it did not fail
	rest         time.Time // until when reads fail at once
}

// useLocked returns what is known of the use of an interface.
func (r *reads) useLocked(name string) *interfaceUse {
	if r.of == nil {
		r.of = make(map[string]*interfaceUse)
	}
	u := r.of[name]
	if u == nil {
		u = new(interfaceUse)
		r.of[name] = u
	}
	return u
}

// bound lists the nodes at which interfaces are read, by name.
func (r *reads) bound() (list []boundInterface) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, u := range r.of {
		if u.at != "" && len(list) < maxBound {
			list = append(list, boundInterface{name, u.at})
		}
	}
	slices.SortFunc(list, func(a, b boundInterface) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// bind has interfaces read where the worker's last node said.
func (r *reads) bind(list []boundInterface) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range list {
		r.useLocked(b.Name).at = b.Node
	}
}

func (r *reads) handled() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events++
}

// hasPinned refuses an app whose workers run only where an interface is that
// this node lacks. Unlike what else a manifest requires, no operator can will
// that away.
func (n *Node) hasPinned(app *manifest.App) error {
	if app == nil {
		return nil
	}
	for _, f := range app.Placement.Interfaces {
		if f.Access == manifest.Pin && !slices.ContainsFunc(n.cfg.Interfaces, func(g Interface) bool { return g.Name == f.Name }) {
			return &control.Error{
				Code:    control.CodeConflict,
				Message: fmt.Sprintf("app %s is pinned to interface %s, which node %s lacks", app.Name, f.Name, n.name()),
				Hint:    "with `access: proxy` in its manifest it can be elsewhere",
			}
		}
	}
	return nil
}

// bindHere has the proxied interfaces of a new manifest read at this node, as far
// as it has them and no other was given before.
func (w *worker) bindHere(app *manifest.App) {
	w.reads.mu.Lock()
	defer w.reads.mu.Unlock()
	for _, f := range app.Placement.Interfaces {
		if u := w.reads.useLocked(f.Name); f.Access == manifest.Proxy && u.at == "" && w.node.sources[f.Name] != nil {
			u.at = w.node.id
		}
	}
}

// declared returns what the worker's manifest says of an interface.
func (w *worker) declared(name string) (manifest.Interface, bool) {
	app, _, _, _ := w.place.get()
	i := slices.IndexFunc(app.Placement.Interfaces, func(f manifest.Interface) bool { return f.Name == name })
	if i < 0 {
		return manifest.Interface{}, false
	}
	return app.Placement.Interfaces[i], true
}

// readInterface is the worker's runner.Reader.
func (w *worker) readInterface(ctx context.Context, name string) ([]byte, error) {
	f, ok := w.declared(name)
	if !ok {
		return nil, runner.ErrUndeclared
	}
	now := time.Now()
	w.reads.mu.Lock()
	u := w.reads.useLocked(name)
	at, rest := u.at, now.Before(u.rest)
	w.reads.mu.Unlock()
	if rest {
		return nil, errors.New("the last read took too long")
	}
	ctx, cancel := context.WithTimeout(ctx, interfaceTime)
	defer cancel()
	var data []byte
	var err error
	switch {
	case f.Access == manifest.Pin:
		at = w.node.id
		data, err = w.node.readHost(ctx, name)
	case at != "":
		data, err = w.node.readAt(ctx, at, name)
	default:
		at, data, err = w.node.readNearest(ctx, name)
	}

	w.reads.mu.Lock()
	defer w.reads.mu.Unlock()
	if f.Access == manifest.Proxy && err == nil {
		u.at = at
	}
	if err == nil {
		u.done++
		u.failure = ""
		return data, nil
	}
	u.failed++
	if ctx.Err() != nil {
		u.rest = time.Now().Add(interfaceRest)
	}
	if text := err.Error(); text != u.failure {
		u.failure = text
		w.remark("interface %s cannot be read: %s", name, text)
	}
	return nil, err
}

// readNearest reads an interface at this node, or else at the nearest that has
// it and answers.
func (n *Node) readNearest(ctx context.Context, name string) (at mesh.NodeID, data []byte, err error) {
	if n.sources[name] != nil {
		data, err = n.readHost(ctx, name)
		return n.id, data, err
	}
	var members []mesh.Member
	for _, m := range n.mesh.Members() {
		if m.State == mesh.Alive && !m.Self {
			members = append(members, m)
		}
	}
	n.fetchDocuments(ctx, members)
	members = slices.DeleteFunc(members, func(m mesh.Member) bool {
		d, ok := n.documents.get(m)
		return !ok || !slices.Contains(d.caps.Interfaces, name)
	})
	away := func(m mesh.Member) time.Duration {
		if rtt, ok := n.mesh.Estimate(n.id, m.ID); ok {
			return rtt
		}
		return time.Hour // those of which nothing is known come last
	}
	slices.SortFunc(members, func(a, b mesh.Member) int {
		return cmp.Or(cmp.Compare(away(a), away(b)), strings.Compare(string(a.ID), string(b.ID)))
	})
	err = fmt.Errorf("no node is known to have interface %s", name)
	for _, m := range members {
		if data, err = n.readAt(ctx, m.ID, name); err == nil {
			return m.ID, data, nil
		}
	}
	return "", nil, err
}

// interfaces returns what the control API shows of the worker's interfaces.
func (w *worker) interfaces() (list []control.WorkerInterface) {
	app, _, _, _ := w.place.get()
	w.reads.mu.Lock()
	defer w.reads.mu.Unlock()
	for _, f := range app.Placement.Interfaces {
		c := control.WorkerInterface{Name: f.Name, Access: string(f.Access)}
		at := w.node.id
		if u := w.reads.of[f.Name]; u != nil {
			c.Reads, c.Failed, c.Error = u.done, u.failed, u.failure
			if f.Access == manifest.Proxy {
				at = u.at
			}
		} else if f.Access == manifest.Proxy {
			at = ""
		}
		switch c.Node = string(at); at {
		case "":
		case w.node.id:
			c.NodeName = w.node.name()
		default:
			c.NodeName = w.node.nameOf(at)
		}
		list = append(list, c)
	}
	return list
}

// interfaceText says where an interface is read, and how that went.
func interfaceText(c control.WorkerInterface) string {
	switch {
	case c.Error != "":
		return fmt.Sprintf("interface %s cannot be read: %s", c.Name, c.Error)
	case c.Node == "":
		return fmt.Sprintf("interface %s will be read at the nearest node that has it, from the first read on", c.Name)
	}
	return fmt.Sprintf("interface %s is read at node %s", c.Name, c.NodeName)
}

// usesOf is what the placement should know of the worker's interfaces.
func (w *worker) usesOf() (list []placement.InterfaceUse) {
	app, _, _, _ := w.place.get()
	w.reads.mu.Lock()
	defer w.reads.mu.Unlock()
	for _, f := range app.Placement.Interfaces {
		if u := w.reads.of[f.Name]; u != nil && f.Access == manifest.Proxy && w.reads.events > 0 {
			list = append(list, placement.InterfaceUse{
				Name: f.Name, PerEvent: float64(u.done+u.failed) / float64(w.reads.events), At: placement.NodeID(u.at),
			})
		}
	}
	return list
}
