package control_test

import (
	"errors"
	"strings"
	"testing"

	"meshnode/node/control"
	"meshnode/node/control/controltest"
)

// TestAppRoutes takes an app through the API, asks a node about another, and
// sends what makes no sense.
func TestAppRoutes(t *testing.T) {
	m := controltest.New("device", "edge-a")
	c, _ := serve(t, m, "device")
	ctx := t.Context()
	const text = "apiVersion: meshnode/v1alpha1\nkind: App\nname: counter\nmodule: {path: x.wasm}\n"
	mod, err := c.PutModule(ctx, strings.NewReader("\x00asm"), 4)
	if err != nil || mod.Bytes != 4 {
		t.Fatal(mod, err)
	}
	req := control.ApplyRequest{PlanRequest: control.PlanRequest{File: "x.yaml", Manifest: text}, Module: mod.Hash}
	d, err := c.Apply(ctx, req)
	if err != nil || d.Kind != "Applied" || len(d.Workers) != 1 || d.Workers[0].Action != control.AppliedStarted {
		t.Fatalf("applied: %+v, %v", d, err)
	}
	a, err := c.App(ctx, "counter")
	if err != nil || !strings.Contains(a.Manifest, "name: counter") {
		t.Errorf("the app: %+v, %v", a, err)
	}
	if w, err := c.SetApp(ctx, "counter", control.AppRequest{Manifest: "new"}); err != nil || w.Manifest != "new" {
		t.Errorf("another manifest: %+v, %v", w, err)
	}
	if w, err := c.StartWorker(ctx, "edge-a", control.StartRequest{Worker: "more", Module: mod.Hash, ModuleBytes: 4}); err != nil || w.HomeName != "edge-a" {
		t.Errorf("a start elsewhere: %+v, %v", w, err)
	}
	var seen []string
	err = c.Events(ctx, "edge-a", false, func(e control.PlacementEvent) error {
		seen = append(seen, e.Kind+" "+e.Node+" "+e.Event)
		return nil
	})
	if err != nil || strings.Join(seen, ",") != "PlacementEvent edge-a move" {
		t.Errorf("events of another node: %q, %v", seen, err)
	}
	steps := 0
	r, err := c.Drain(ctx, "edge-a", control.DrainRequest{}, func(control.DrainProgress) { steps++ })
	if err != nil || steps != 1 || r.Outcome != control.DrainDone || r.Moved != 1 || r.Node != "edge-a" {
		t.Errorf("a drain elsewhere, %d steps: %+v, %v", steps, r, err)
	}
	if _, err := c.RemoveApp(ctx, "counter"); err != nil {
		t.Error(err)
	}

	bad := req
	bad.Module = "nothing"
	for name, ask := range map[string]func() error{
		"hash":     func() error { _, err := c.Apply(ctx, bad); return err },
		"manifest": func() error { _, err := c.Apply(ctx, control.ApplyRequest{}); return err },
		"rate": func() error {
			_, err := c.Apply(ctx, control.ApplyRequest{PlanRequest: control.PlanRequest{RatePerSecond: -1}})
			return err
		},
		"deadline": func() error {
			_, err := c.Drain(ctx, "device", control.DrainRequest{DeadlineMs: 1e12}, nil)
			return err
		},
		"name": func() error { _, err := c.StartWorker(ctx, "device", control.StartRequest{Worker: "-"}); return err },
		"module": func() error {
			_, err := c.StartWorker(ctx, "device", control.StartRequest{Worker: "x", Module: "?"})
			return err
		},
	} {
		if err := ask(); !errors.Is(err, &control.Error{Code: control.CodeInvalid}) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := c.PutModule(ctx, nil, control.MaxModuleBytes+1); !errors.Is(err, &control.Error{Code: control.CodeTooLarge}) {
		t.Errorf("a module that is too large: %v", err)
	}
	if _, err := c.StartWorker(ctx, "device", control.StartRequest{Worker: "x", Module: mod.Hash}); !errors.Is(err, &control.Error{Code: control.CodeTooLarge}) {
		t.Errorf("a start without a size: %v", err)
	}
	if _, err := c.App(ctx, "counter"); !errors.Is(err, &control.Error{Code: control.CodeNotFound}) {
		t.Errorf("an app that is gone: %v", err)
	}
}
