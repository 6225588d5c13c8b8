package control

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
)

// NewPeerClient returns a client of another node, reached as rt does.
func NewPeerClient(rt http.RoundTripper) *Client { return &Client{http: &http.Client{Transport: rt}} }

func appPath(name string) string { return "/v1/apps/" + url.PathEscape(name) }

// PutModule gives the daemon's node a module of size bytes, or of unknown size
// with -1.
func (c *Client) PutModule(ctx context.Context, module io.Reader, size int64) (d Module, err error) {
	if size > MaxModuleBytes {
		return d, tooLarge("module", size, MaxModuleBytes)
	}
	return d, c.upload(ctx, "/v1/modules", module, size, http.Header{"Content-Type": {"application/wasm"}}, &d)
}

// Apply lets an app run as its manifest says.
func (c *Client) Apply(ctx context.Context, req ApplyRequest) (d Applied, err error) {
	return d, c.do(ctx, http.MethodPost, "/v1/apps", req, &d)
}

// Apps lists the apps that have workers.
func (c *Client) Apps(ctx context.Context) ([]App, error) {
	var d AppList
	err := c.do(ctx, http.MethodGet, "/v1/apps", nil, &d)
	return d.Apps, err
}

// App describes one app.
func (c *Client) App(ctx context.Context, name string) (d App, err error) {
	if err := checkRef("app", name); err != nil {
		return d, err
	}
	return d, c.do(ctx, http.MethodGet, appPath(name), nil, &d)
}

// RemoveApp stops an app's workers and returns the app as it was.
func (c *Client) RemoveApp(ctx context.Context, name string) (d App, err error) {
	if err := checkRef("app", name); err != nil {
		return d, err
	}
	return d, c.do(ctx, http.MethodDelete, appPath(name), nil, &d)
}

// StartWorker asks a node to start a worker of an app.
func (c *Client) StartWorker(ctx context.Context, node string, req StartRequest) (d Worker, err error) {
	if err := checkRef("node", node); err != nil {
		return d, err
	}
	return d, c.do(ctx, http.MethodPost, nodePath(node, "/start"), req, &d)
}

// SetApp gives a running worker a manifest.
func (c *Client) SetApp(ctx context.Context, ref string, req AppRequest) (d Worker, err error) {
	if err := checkRef("worker", ref); err != nil {
		return d, err
	}
	return d, c.do(ctx, http.MethodPost, workerPath(ref, "/app"), req, &d)
}

// Pin keeps a worker from moving by itself until Unpin.
func (c *Client) Pin(ctx context.Context, ref string) (Worker, error) {
	return c.workerDo(ctx, http.MethodPost, ref, "/pin")
}

// Unpin ends a Pin.
func (c *Client) Unpin(ctx context.Context, ref string) (Worker, error) {
	return c.workerDo(ctx, http.MethodPost, ref, "/unpin")
}

// Drain moves all workers of a node elsewhere. It calls progress, which may be
// nil, whenever something has changed.
func (c *Client) Drain(ctx context.Context, node string, req DrainRequest, progress func(DrainProgress)) (d DrainResult, err error) {
	if err := checkRef("node", node); err != nil {
		return d, err
	}
	return watch[DrainProgress, DrainResult](ctx, c, nodePath(node, "/drain"), req, "DrainProgress", progress, "DrainResult")
}

// Events calls each with a node's placement events, oldest first; with follow,
// until ctx ends.
func (c *Client) Events(ctx context.Context, node string, follow bool, each func(PlacementEvent) error) error {
	if err := checkRef("node", node); err != nil {
		return err
	}
	return c.stream(ctx, http.MethodGet, nodePath(node, "/events?follow="+strconv.FormatBool(follow)), nil, true, func(_ string, doc []byte) (bool, error) {
		var e PlacementEvent
		if err := json.Unmarshal(doc, &e); err != nil {
			return false, err
		}
		return false, each(e)
	})
}
