package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/placement"
	"meshnode/placement/manifest"
)

// fullPlans is how many workers of a plan come with all nodes: a thousand
// workers with a hundred nodes each are more than anybody reads.
const fullPlans = 8

// parseManifest reads a manifest that a client sent.
func parseManifest(file, text string) (*manifest.App, error) {
	if file == "" {
		file = "manifest"
	}
	app, err := manifest.Parse(file, []byte(text))
	if err != nil {
		return nil, &control.Error{Code: control.CodeInvalid, Message: err.Error(), Hint: "`meshnode app check` says the same without a daemon"}
	}
	return app, nil
}

// PlanApp says where the workers of an app would go. Nothing is changed.
func (b backend) PlanApp(ctx context.Context, req control.PlanRequest) (control.Plan, error) {
	n := b.n
	app, err := parseManifest(req.File, req.Manifest)
	if err != nil {
		return control.Plan{}, err
	}
	entries, err := n.entries(req.Users)
	if err != nil {
		return control.Plan{}, err
	}
	v, notes, err := n.view(ctx, entries)
	if err != nil {
		return control.Plan{}, err
	}
	out := control.Plan{App: app.Name, At: v.Now(), Workers: []control.WorkerPlan{}, Notes: notes}
	for i := range app.Replicas {
		w, note, err := n.planned(ctx, app, replicaName(app, i), req, entries, v)
		if err != nil {
			return control.Plan{}, err
		}
		if note != "" {
			out.Notes = append(out.Notes, note)
		}
		pl := v.Plan(app, &w, placement.State{})
		v.Apply(app, &w, &pl.Decision)
		p := control.WorkerPlan{Worker: w.Name}
		if err := sameShape(pl, &p); err != nil {
			return control.Plan{}, err
		}
		switch pl.Decision.Action {
		case placement.Move:
			out.Pending++
		case placement.Stuck:
			out.Stuck++
		}
		if p.Violated = violated(&p); len(p.Violated) > 0 {
			out.Violated++
		}
		if i >= fullPlans {
			p.Fits, p.Others = nil, nil
		}
		out.Workers = append(out.Workers, p)
	}
	return out, nil
}

// entries resolves the nodes at which users would enter; without any, it is
// this one.
func (n *Node) entries(refs []string) ([]mesh.NodeID, error) {
	if len(refs) == 0 {
		return []mesh.NodeID{n.id}, nil
	}
	var entries []mesh.NodeID
	for _, ref := range refs {
		m, err := n.member(ref)
		if err != nil {
			return nil, err
		}
		entries = append(entries, m.ID)
	}
	return entries, nil
}

// planned is a worker of an app as a plan looks at it: one that runs where it
// runs, else one that is to be started, with the figures that the request
// expects.
func (n *Node) planned(ctx context.Context, app *manifest.App, name string, req control.PlanRequest, entries []mesh.NodeID, v *placement.View) (w placement.Worker, note string, err error) {
	assumed := placement.Stamp{At: v.Now(), From: placement.Assumed}
	w = placement.Worker{
		ID: placement.WorkerID(name), Name: name, Memory: int64(app.Limits.Memory), WorkingSet: int64(app.Limits.Memory) / 8,
		MemoryAt: assumed, Module: req.ModuleBytes,
	}
	if e, findErr := n.dir.find(name); findErr == nil && !ended(e.State) {
		w.ID, w.Owner = placement.WorkerID(e.ID), placement.NodeID(e.Home)
		local := n.worker(e.ID)
		if local == nil {
			note = fmt.Sprintf("worker %s is at home on %s: its memory and events are assumed; `worker explain %s` asks there", name, n.nameOf(e.Home), name)
		} else if w, err = local.placementWorker(ctx, v.Now()); err != nil {
			if errors.Is(err, errGone) {
				err = &control.Error{Code: control.CodeConflict, Message: fmt.Sprintf("worker %s left this node just now", name), Hint: "try again"}
			}
			return w, "", err
		}
	}
	if w.Event.Stamp == (placement.Stamp{}) {
		w.Event = placement.EventTime{
			P50: time.Duration(req.EventMs * float64(time.Millisecond)), Rate: req.RatePerSecond, Stamp: placement.Stamp{At: v.Now(), From: placement.Configured},
		}
		if req.EventMs == 0 && req.RatePerSecond == 0 {
			w.Event.Stamp.From = placement.Assumed
		}
	}
	if len(w.Users) == 0 || len(req.Users) > 0 {
		w.Users = nil
		for _, id := range entries {
			w.Users = append(w.Users, placement.User{
				Entry: placement.NodeID(id), Rate: req.RatePerSecond / float64(len(entries)), Stamp: placement.Stamp{At: v.Now(), From: placement.Configured},
			})
		}
	}
	return w, note, nil
}

// violated names the objectives that are predicted to be broken where a worker
// would be.
func violated(p *control.WorkerPlan) []string {
	at := p.Decision.To
	if p.Decision.Action == placement.Stay.String() {
		at = p.Decision.From
	}
	var out []string
	for _, rs := range [...][]control.PlacementReport{p.Fits, p.Others} {
		for i := range rs {
			if rs[i].Node != at {
				continue
			}
			for _, name := range [...]string{"event", "rtt", "blackout", "converge"} {
				if t := rs[i].Term(name); t != nil && t.Limit > 0 && t.Value > t.Limit {
					out = append(out, "objectives."+name)
				}
			}
		}
	}
	return out
}

// Explain says why a worker at home here is here.
func (b backend) Explain(ctx context.Context, ref string, req control.ExplainRequest) (control.Explanation, error) {
	w, err := b.here(ref)
	if err != nil {
		return control.Explanation{}, err
	}
	app, state, pinned, applied := w.place.get()
	if !applied {
		// What it was started with is all that is known of it.
		app = manifest.New(appOf(w.Name), w.Module.String())
		app.Limits.Memory = manifest.Size(w.MemoryLimit)
	}
	if req.Manifest != "" {
		if app, err = parseManifest(req.File, req.Manifest); err != nil {
			return control.Explanation{}, err
		}
	}
	pw, err := w.placementWorker(ctx, time.Now())
	if errors.Is(err, errGone) {
		if e, ok := b.n.dir.get(w.ID); ok && e.Home != b.n.id {
			return control.Explanation{}, control.Moved(string(e.Home))
		}
		return control.Explanation{}, &control.Error{Code: control.CodeConflict, Message: fmt.Sprintf("worker %s runs no more", w.Name)}
	}
	if err != nil {
		return control.Explanation{}, err
	}
	var entries []mesh.NodeID
	for _, u := range pw.Users {
		entries = append(entries, mesh.NodeID(u.Entry))
	}
	v, notes, err := b.n.view(ctx, entries)
	if err != nil {
		return control.Explanation{}, err
	}
	if req.Manifest == "" && !applied {
		notes = append(notes, "no manifest was given: no objective counts, only nearness to users")
	}
	for _, c := range w.interfaces() {
		notes = append(notes, interfaceText(c))
	}
	if g := w.guardianState(); g != nil {
		notes = append(notes, leaseText(g))
	}
	out := control.Explanation{Worker: w.Name, App: app.Name, At: v.Now(), Notes: notes, Others: []control.PlacementReport{}}
	pw.Pinned = pinned
	return out, sameShape(v.Explain(app, &pw, state), &out)
}

// sameShape copies what package placement returns into the document that the
// control API promises: the two are alike in JSON, and only there, so that
// each can change by itself.
func sameShape(from, to any) error {
	b, err := json.Marshal(from)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, to)
}
